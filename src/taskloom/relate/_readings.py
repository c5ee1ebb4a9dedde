"""Nets as the measures see them: a body whose weights are compared, and how the tasks read its outputs.

Letters: K tasks, B rows, D outputs of the body, H width of a trunk, C outputs of the widest task.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from taskloom.deep import SharedBottom, is_shared, task_gradients
from taskloom.deep import new_net as net_of_seed
from taskloom.relate._options import Model
from taskloom.relate._probe import Probe
from taskloom.relate._rows import labels_of
from taskloom.tasks import OptionError, Rows, Task, TaskData

# Rows that a net is tried on.
_TRIED = 8


class Reading(Protocol):
    """How K tasks read outputs (B, D) of a body."""

    def outputs(self, out: Tensor) -> Tensor:
        """(B, K, C); classes that a task does not have are -inf."""

    def back(self, cotangents: Tensor) -> Tensor:
        """(K, B, D) by the outputs of the body, out of (B, K, C) by those of the tasks."""


class ColumnReading:
    """Each task finds its outputs in columns of its own, or all find them in the first ones.

    Args:
        tasks: K tasks.
        common: all in the first ones: one head, cut to the size of each task.
    """

    def __init__(self, tasks: Sequence[Task], *, common: bool = False) -> None:
        widths = np.array([task.n_outputs for task in tasks])
        starts = np.zeros(len(widths), dtype=int) if common else np.cumsum(widths) - widths
        C = int(widths.max())
        self.is_padding = torch.from_numpy(np.arange(C) >= widths[:, None])
        self.index = torch.from_numpy(starts[:, None] + np.minimum(np.arange(C), widths[:, None] - 1))
        self.n_outputs = C if common else int(widths.sum())

    def outputs(self, out: Tensor) -> Tensor:
        """(B, K, C)."""
        return out[:, self.index].masked_fill(self.is_padding, -torch.inf)

    def back(self, cotangents: Tensor) -> Tensor:
        """(K, B, D)."""
        B, K, C = cotangents.shape
        whole = cotangents.new_zeros(K, B, self.n_outputs)
        masked = cotangents.masked_fill(self.is_padding, 0.0).movedim(1, 0)
        return whole.scatter_add_(2, self.index.unsqueeze(1).expand(K, B, C), masked)


class HeadReading:
    """Each task has a linear head on the features that the body gives.

    Args:
        weight: (K, C, H), zero where a task has no such class.
        bias: (K, C), -inf there.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight.detach(), bias.detach()

    @classmethod
    def of(cls, heads: Sequence[tuple[Tensor, Tensor]]) -> HeadReading:
        """From weights (C_t, H) and biases (C_t,)."""
        C, (first, _) = max(len(bias) for _, bias in heads), heads[0]
        weight, bias = first.new_zeros(len(heads), C, first.shape[1]), first.new_full((len(heads), C), -torch.inf)
        for t, (w, b) in enumerate(heads):
            weight[t, : len(b)], bias[t, : len(b)] = w.detach(), b.detach()
        return cls(weight, bias)

    def outputs(self, out: Tensor) -> Tensor:
        """(B, K, C)."""
        return torch.einsum("bh,kch->bkc", out, self.weight) + self.bias

    def back(self, cotangents: Tensor) -> Tensor:
        """(K, B, H)."""
        return torch.einsum("bkc,kch->kbh", cotangents, self.weight)


@dataclass
class View:
    """A net, cut where the tasks part.

    Attributes:
        probe: of the body.
        reading: of the tasks.
        note: what is compared.
    """

    probe: Probe
    reading: Reading
    note: str


def new_net(model: Model, data: TaskData, tasks: Sequence[Task], seed: int) -> nn.Module:
    """A net of a maker's, its weights out of the seed alone; of a net, a copy."""
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    if not callable(model):
        raise OptionError(f"`model`={model!r}: give a net, or what makes one, such as `MLP()`")
    return net_of_seed(model, data.X.shape[1:], tasks, seed)


def tensor_of(data: TaskData, rows: np.ndarray | slice, net: nn.Module) -> Tensor:
    """Features of some rows, in the precision of the net."""
    return torch.as_tensor(data.X[rows], dtype=next(net.parameters()).dtype)


def common_view(model: Model, data: TaskData, seed: int) -> View:
    """One start for all tasks, head included.

    A maker of nets makes a net of one task that is as wide as the widest; task t reads its first outputs. A net that is given
    must be one like that.

    Raises:
        OptionError: a net in which tasks have heads of their own, or tasks of different widths and a net without `encoder`.
    """
    C = max(task.n_outputs for task in data.tasks)
    one = Task("common", "multiclass", classes=tuple(range(C))) if C > 1 else Task("common")
    net = new_net(model, data, [one], seed)
    x = tensor_of(data, slice(0, _TRIED), net)
    with torch.no_grad():
        found = net.eval()(x).shape[1]
    if found != C:
        raise OptionError(
            f"`model` gives {found} outputs, `samplewise` needs {C}: one start for all tasks, head included. With random heads "
            "of their own the gradients of tasks differ by their heads, and say nothing of the tasks. Give what makes nets "
            f"(such as `MLP()`), or a net with one head of {C} that all tasks use"
        )
    names = [name for name, _ in net.named_parameters()]
    note = "all weights are compared, the common head's too"
    if len({task.n_outputs for task in data.tasks}) > 1:
        names, note = _trunk_names(net), "tasks differ in their outputs: the weights of the trunk are compared"
        if not names:
            raise OptionError("`model`: tasks differ in their outputs, so that trunks are compared: name the trunk `encoder`")
    # A subclass may compute something else.
    if type(net) is SharedBottom:
        # As a sequence the head is a layer like the others; the net itself joins heads past their modules.
        names = [name.replace("encoder.", "0.").replace("heads.0.", "1.") for name in names]
        net = nn.Sequential(net.encoder, net.heads[0])
    return View(Probe(net, names, x), ColumnReading(data.tasks, common=True), note)


def joint_view(net: nn.Module, data: TaskData) -> View:
    """A net of all tasks; the weights that several tasks use are compared.

    Raises:
        OptionError: outputs that do not fit the tasks, or no weight that several tasks use.
    """
    net.eval()
    x = tensor_of(data, slice(0, _TRIED), net)
    expected = sum(task.n_outputs for task in data.tasks)
    with torch.no_grad():
        found = tuple(net(x).shape)
    if found != (len(x), expected):
        raise OptionError(f"`model` maps {len(x)} rows to {found}; it must give {(len(x), expected)}, columns in task order")
    if type(net) is SharedBottom:
        heads = [(head.weight, head.bias) for head in net.heads if isinstance(head, nn.Linear)]
        names = [name for name, _ in net.encoder.named_parameters()]
        return View(Probe(net.encoder, names, x), HeadReading.of(heads), "the weights of the trunk are compared")
    reading = ColumnReading(data.tasks)
    names = _trunk_names(net) or _names_in_common(net, x, reading)
    return View(Probe(net, names, x), reading, "the weights that several tasks use are compared")


def _trunk_names(net: nn.Module) -> list[str]:
    return [name for name, _ in net.named_parameters() if name.startswith("encoder.")]


def _names_in_common(net: nn.Module, x: Tensor, reading: ColumnReading) -> list[str]:
    """Parameters of which some number is moved by two tasks or more."""
    named = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    with torch.enable_grad():
        outputs = net(x)
        of_tasks = torch.stack([outputs[:, columns.unique()].sum() for columns in reading.index])
    jacobians = task_gradients(of_tasks, [*named.values()])
    return [name for name, jac in zip(named, jacobians, strict=True) if is_shared(jac)]


def loss_gradients(outputs: Tensor, labels: Tensor, tasks: Sequence[Task]) -> Tensor:
    """(B, K, C) gradients of the tasks' losses by their outputs (B, K, C) at labels (B, K); zero where a label is missing.

    Examples:
        >>> loss_gradients(torch.zeros(1, 2, 1), torch.tensor([[1.0, 1.0]]), [Task("a"), Task("b", "binary")]).ravel()
        tensor([-2.0000, -0.5000])
    """
    known, y = ~labels.isnan(), labels.nan_to_num()
    first = outputs[..., 0]
    is_binary = torch.tensor([task.kind == "binary" for task in tasks])
    found = torch.zeros_like(outputs)
    found[..., 0] = torch.where(is_binary, first.sigmoid() - y, 2 * (first - y))
    many = torch.tensor([t for t, task in enumerate(tasks) if task.kind == "multiclass"], dtype=torch.long)
    if len(many):
        truth = nn.functional.one_hot(y[:, many].long(), outputs.shape[2])
        found[:, many] = outputs[:, many].softmax(dim=2) - truth
    return found * known.unsqueeze(2)


def drawn_labels(outputs: Tensor, labels: Tensor, tasks: Sequence[Task], generator: torch.Generator) -> Tensor:
    """Labels (B, K) in which missing ones of multiclass tasks are drawn from what the net holds for likely."""
    filled = labels.clone()
    for t, task in enumerate(tasks):
        lacks = labels[:, t].isnan()
        if task.kind == "multiclass" and bool(lacks.any()):
            chances = outputs[lacks, t, : task.n_outputs].softmax(dim=1)
            filled[lacks, t] = torch.multinomial(chances, 1, generator=generator)[:, 0].to(labels.dtype)
    return filled


def batch_of(view: View, data: TaskData, rows: Rows) -> tuple[Tensor, Tensor]:
    """Features (B, ...) and labels (B, K) of some rows, in the precision of the net."""
    dtype = view.probe.dtype
    return torch.as_tensor(data.X[rows], dtype=dtype), torch.as_tensor(labels_of(data, rows), dtype=dtype)
