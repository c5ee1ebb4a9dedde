"""Losses of many tasks at once.

Letters: R nets or tasks side by side, B rows of each, C outputs of each (the widest), K tasks, D = sum of the tasks' outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from taskloom.tasks import DataError, Task, unknown

# Losses by task in their order, NaN for one that is absent, or by name, None for one that is absent.
Losses = Tensor | Mapping[Any, Tensor | None]
_ELEMENTWISE = {
    "squared": lambda outputs, labels: (outputs - labels).square(),
    # log(1 + exp(z)) - y z: the same number as torch's BCE with logits, in fewer kernels.
    "logistic": lambda outputs, labels: functional.softplus(outputs) - labels * outputs,
}


class TaskLosses:
    """The loss of each of R tasks on its labelled rows.

    A missing label is NaN, adds nothing and passes no gradient.

    Args:
        tasks: R tasks.
        complete: a promise that no label is missing, which saves the masks.

    Examples:
        >>> losses = TaskLosses([Task("a"), Task("b")])
        >>> outputs, labels = torch.zeros(2, 2, 1), torch.tensor([[1.0, float("nan")], [2.0, 2.0]])
        >>> losses.means(outputs, labels)
        tensor([1., 4.])
    """

    def __init__(self, tasks: Sequence[Task], complete: bool = False) -> None:
        self._set([task.loss for task in tasks], complete)

    def _set(self, names: list[str], complete: bool) -> None:
        self.names, self.complete = names, complete
        self.only = names[0] if len(set(names)) == 1 else None

    def take(self, chosen: Sequence[int]) -> TaskLosses:
        """The losses of some of the tasks."""
        part = TaskLosses([])
        part._set([self.names[r] for r in chosen], self.complete)
        return part

    def sums(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed losses (R,) and numbers of labels (R,) for outputs (R, B, C) and labels (R, B)."""
        if self.complete:
            return self._each_row(outputs, labels).sum(dim=1), torch.full(
                labels.shape[:1], labels.shape[1], device=labels.device
            )
        seen = ~labels.isnan()
        return (self._each_row(outputs, labels.nan_to_num()) * seen).sum(dim=1), seen.sum(dim=1)

    def means(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean losses (R,); NaN, without gradient, for a task that has no label among these rows."""
        if self.complete:
            return self._each_row(outputs, labels).mean(dim=1)
        sums, counts = self.sums(outputs, labels)
        return torch.where(counts > 0, sums / counts.clamp(min=1), torch.nan)

    def _each_row(self, outputs: Tensor, labels: Tensor) -> Tensor:
        # Losses and their ratios are kept in single precision under autocast: half a percent is all that bfloat16 resolves.
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        if self.only is not None:
            return self._of_kind(self.only, outputs, labels)
        each = torch.zeros_like(labels)
        for name in dict.fromkeys(self.names):
            chosen = torch.tensor([r for r, other in enumerate(self.names) if other == name], device=labels.device)
            each = each.index_copy(0, chosen, self._of_kind(name, outputs[chosen], labels[chosen]))
        return each

    def _of_kind(self, name: str, outputs: Tensor, labels: Tensor) -> Tensor:
        if name == "cross_entropy":
            return functional.cross_entropy(outputs.movedim(-1, 1), labels.long(), reduction="none")
        return _ELEMENTWISE[name](outputs.squeeze(-1) if outputs.shape[-1] == 1 else outputs[..., 0], labels)


def losses_by_task(found: Any, names: Sequence[Any] | None) -> tuple[Tensor | list[Tensor | None], Tensor]:
    """What a closure gave, in the order of the tasks and checked.

    Args:
        found: a vector (K,), or a mapping from names to scalars, None or left out for an absent task.
        names: of the K tasks, or their numbers; None: not known yet.

    Returns:
        The losses with their graph, and one detached vector (K,) of at least 32 bits, NaN for absent tasks.

    Raises:
        DataError: neither of the two, another number of losses, a loss that is no scalar tensor, or a mapping where no names
            are known.
        UnknownNameError: the loss of an unknown task.

    Examples:
        >>> losses_by_task({"b": torch.tensor(2.0)}, ["a", "b"])
        ([None, tensor(2.)], tensor([nan, 2.]))
    """
    if isinstance(found, Tensor):
        if found.dim() != 1 or (names is not None and len(found) != len(names)):
            wanted = "K" if names is None else len(names)
            raise DataError(f"`closure` gave losses of shape {tuple(found.shape)}: give ({wanted},)")
        return found, _at_least_single(found.detach())
    if not isinstance(found, Mapping):
        raise DataError(f"`closure` gave a {type(found).__name__}: give a tensor (K,) (`torch.stack` of scalars) or a mapping")
    if names is None:
        given = f"give `tasks`={list(found)}, and others that there are" if found else "give `tasks`"
        raise DataError(f"`closure` gave a mapping, from which tasks may be left out, and `tasks` has no names: {given}")
    for name, loss in found.items():
        if name not in names:
            raise unknown("task", str(name), [str(one) for one in names])
        if loss is not None and (not isinstance(loss, Tensor) or loss.numel() != 1):
            what = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise DataError(f"`closure`: the loss of task `{name}` is {what}: give a tensor of one number, with its graph")
    losses = [found.get(name) for name in names]
    known = next((loss for loss in losses if loss is not None), None)
    if known is None:
        return losses, torch.full((len(losses),), torch.nan)
    values = [torch.full((), torch.nan, device=known.device) if loss is None else loss.detach().reshape(()) for loss in losses]
    return losses, torch.stack([_at_least_single(value.to(known.device)) for value in values])


def has_graph(losses: Tensor | Sequence[Tensor | None], members: Sequence[int]) -> bool:
    """Whether there is a way back from a loss of these tasks, out of what `losses_by_task` gives.

    Examples:
        >>> has_graph([torch.ones(1), torch.ones(1, requires_grad=True)], [0])
        False
    """
    if isinstance(losses, Tensor):
        return losses.requires_grad
    return any((loss := losses[k]) is not None and loss.requires_grad for k in members)


def _at_least_single(losses: Tensor) -> Tensor:
    # Gains are of the size of 1e-3, and bfloat16 resolves no more than 4e-3.
    return losses if losses.dtype == torch.float64 else losses.float()


class OutputColumns:
    """Where each task finds its outputs among the D columns of a net, as one array of R x B x C.

    Args:
        tasks: K tasks; task t has `n_outputs` neighbouring columns.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        widths = [task.n_outputs for task in tasks]
        starts = [sum(widths[:t]) for t in range(len(widths))]
        self.slices = [slice(start, start + width) for start, width in zip(starts, widths, strict=True)]
        self.total = sum(widths)
        self.is_simple = max(widths) == 1
        self.index = torch.tensor(
            [[s + min(c, w - 1) for c in range(max(widths))] for s, w in zip(starts, widths, strict=True)]
        )
        self.is_padding = torch.tensor([[c >= w > 1 for c in range(max(widths))] for w in widths])

    def by_task(self, outputs: Tensor) -> Tensor:
        """Outputs (B, D) of shared rows as (K, B, C); classes that a task does not have get a logit of -inf."""
        if self.is_simple:
            return outputs.T.unsqueeze(-1)
        picked = outputs[:, self.index.to(outputs.device)].movedim(1, 0)
        return picked.masked_fill(self.is_padding.to(outputs.device).unsqueeze(1), -torch.inf)

    def own(self, outputs: Tensor, tasks: Sequence[int] | None = None) -> Tensor:
        """Outputs (K, B, D) of own rows as (K, B, C): of all columns only those of the task that owns the row.

        Args:
            outputs: of the net.
            tasks: numbers of the K tasks that own the rows; None: all tasks.
        """
        chosen = slice(None) if tasks is None else list(tasks)
        index = self.index[chosen].to(outputs.device).unsqueeze(1).expand(-1, outputs.shape[1], -1)
        padding = self.is_padding[chosen].to(outputs.device).unsqueeze(1)
        return outputs.gather(2, index).masked_fill(padding, -torch.inf)
