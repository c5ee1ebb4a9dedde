"""Nets for tables: an encoder that all tasks share and one head per task.

Letters: K tasks, n rows, d features, B rows of one task in a step, H width of the encoder's last layer, D = sum of the tasks'
outputs, C outputs of one task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from taskloom.deep._losses import OutputColumns
from taskloom.tasks import OptionError, Task, TaskloomError, is_number, is_whole

NetFactory = Callable[[tuple[int, ...], Sequence[Task]], nn.Module]


class SharedBottom(nn.Module):
    """An MLP encoder shared by all tasks, and a linear head for each.

    Hard parameter sharing (Caruana 1997, section 2.1). Deviation: ReLU and torch's initialisation in place of sigmoids.

    Args:
        n_features: d.
        tasks: K tasks.
        hidden: widths of the encoder's layers.
        dropout: share of units dropped after each layer while training.

    Raises:
        OptionError: a width below 1, or a share outside of [0, 1).

    Examples:
        >>> net = SharedBottom(4, [Task("a"), Task("b", "multiclass", classes=(0, 1, 2))])
        >>> net(torch.zeros(5, 4)).shape
        torch.Size([5, 4])
    """

    def __init__(self, n_features: int, tasks: Sequence[Task], hidden: Sequence[int] = (64, 64), dropout: float = 0.0) -> None:
        super().__init__()
        _check_shape(hidden, dropout)
        widths = [n_features, *hidden]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        self.encoder = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(widths[-1], task.n_outputs) for task in tasks)
        self.equal_widths = len({task.n_outputs for task in tasks}) == 1

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n, D) of all tasks for rows (n, d)."""
        # One product for all heads: K small ones cost K kernel starts forward and 2K backward.
        return functional.linear(self.encoder(x), *self._packed_heads(torch.cat))

    def forward_own(self, x: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        """Outputs (K, B, C) for rows (K, B, d) of which each K-slice belongs to one task; all tasks have C outputs.

        Args:
            x: rows.
            tasks: numbers of the K tasks that the rows belong to; None: all tasks of the net.
        """
        weight, bias = self._packed_heads(torch.stack)
        if tasks is not None:
            weight, bias = weight[list(tasks)], bias[list(tasks)]
        return _stacked_linear(self.encoder(x), weight, bias)

    def forward_stacked(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs (M, B, D) of M nets of this shape side by side, for rows (M, B, d).

        Args:
            weights: this module's parameters by name, each with a leading dimension of M.
            x: rows of each net.
        """
        for i, layer in enumerate(self.encoder):
            if isinstance(layer, nn.Linear):
                x = _stacked_linear(x, weights[f"encoder.{i}.weight"], weights[f"encoder.{i}.bias"])
            elif isinstance(layer, nn.Dropout):
                x = functional.dropout(x, layer.p, self.training)
            else:
                x = functional.relu(x)
        heads = range(len(self.heads))
        weight = torch.cat([weights[f"heads.{k}.weight"] for k in heads], dim=1)
        return _stacked_linear(x, weight, torch.cat([weights[f"heads.{k}.bias"] for k in heads], dim=1))

    def _packed_heads(self, pack: Callable[[list[Tensor]], Tensor]) -> tuple[Tensor, Tensor]:
        heads = [head for head in self.heads if isinstance(head, nn.Linear)]
        if len(heads) == 1 and pack is torch.cat:
            return heads[0].weight, heads[0].bias
        return pack([head.weight for head in heads]), pack([head.bias for head in heads])


def _check_shape(hidden: Any, dropout: Any) -> None:
    if not isinstance(hidden, Sequence) or not all(is_whole(width, 1) for width in hidden):
        raise OptionError(f"`hidden`={hidden!r}: every width must be at least 1; give whole numbers, such as (64, 64)")
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise OptionError(f"`dropout`={dropout!r}: give a share from 0 to below 1")


def _stacked_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear layers side by side: rows (M, B, in), weights (M, out, in), biases (M, out) -> (M, B, out)."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


@dataclass(frozen=True)
class MLP:
    """A factory of `SharedBottom` nets: what recipes build when no other net is given.

    Attributes:
        hidden: widths of the encoder's layers.
        dropout: share of units dropped while training.

    Raises:
        OptionError: a width below 1, or a share outside of [0, 1).

    Examples:
        >>> MLP(hidden=(8,))((3,), [Task("a")])(torch.zeros(2, 3)).shape
        torch.Size([2, 1])
    """

    hidden: tuple[int, ...] = (64, 64)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_shape(self.hidden, self.dropout)

    def __call__(self, shape: tuple[int, ...], tasks: Sequence[Task]) -> nn.Module:
        """A new net for rows of that shape.

        Raises:
            OptionError: rows that are not vectors.
        """
        if len(shape) != 1:
            raise OptionError(f"`net`: the default MLP takes rows of shape (d,), not {shape}; give a net of your own")
        return SharedBottom(shape[0], tasks, self.hidden, self.dropout)


def check_factory(net: Any) -> None:
    """Refuse what is easily taken for a factory of nets.

    Raises:
        OptionError: a name, nothing, or a net itself.
    """
    if net is None or isinstance(net, str | nn.Module):
        raise OptionError(
            f"`net` is a {type(net).__name__}: give what makes a net, `MLP()` or a function of the shape of a row and the tasks"
        )


class SharedRowsNet(nn.Module):
    """A net of the user's whose outputs are laid out by task: (B, ...) -> (K, B, C)."""

    def __init__(self, net: nn.Module, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.net, self.columns = net, OutputColumns(tasks)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (K, B, C) of all tasks for all rows."""
        return self.columns.by_task(self.net(x))


class OwnRowsNet(nn.Module):
    """A net of the user's that sees each task's own rows: (K, B, ...) -> (K, B, C)."""

    def __init__(self, net: nn.Module, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.net, self.columns = net, OutputColumns(tasks)
        self.is_fast = isinstance(net, SharedBottom) and net.equal_widths

    def forward(self, x: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        """Outputs (K, B, C), each row's for the task that owns it; `tasks` are the owners' numbers, None: all tasks."""
        if self.is_fast and isinstance(self.net, SharedBottom):
            return self.net.forward_own(x, tasks)
        outputs = self.net(x.flatten(0, 1))
        return self.columns.own(outputs.unflatten(0, x.shape[:2]), tasks)


def check_outputs(net: nn.Module, shape: tuple[int, ...], tasks: Sequence[Task]) -> None:
    """Refuse a net whose outputs do not fit the tasks, before any work is done.

    Raises:
        OptionError: names the shape found and the one needed, or what the net says of rows of this shape.
    """
    expected = OutputColumns(tasks).total
    was_training = net.training
    parameter = next(net.parameters(), torch.zeros(()))
    net.eval()
    try:
        with torch.no_grad():
            found = tuple(net(torch.zeros(2, *shape, dtype=parameter.dtype, device=parameter.device)).shape)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, TaskloomError):
            raise
        raise OptionError(f"`net` does not map rows of shape {shape} to a tensor ({error}); give one for such rows") from error
    finally:
        net.train(was_training)
    if found != (2, expected):
        raise OptionError(
            f"`net` maps 2 rows of shape {shape} to {found}; it must give (2, {expected}): one column for each regression or "
            "binary task, one a class for each multiclass task, in the order of the tasks"
        )
