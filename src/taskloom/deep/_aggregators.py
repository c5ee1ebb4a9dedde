"""Aggregators as update steps call them: told whose rows they get, guarded, and with a memory that is saved whole.

Letters: K tasks, k of them in a batch, P columns (shared parameters, or numbers that a trunk puts out), w weights of the rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskloom.tasks import FitError

Aggregator = Callable[[Tensor], Tensor]


def aggregate(aggregator: Aggregator, matrix: Tensor, tasks: Sequence[Hashable]) -> Tensor:
    """One direction (P,) out of a matrix (k, P), after the aggregator was told whose rows these are, if it wants to know."""
    if isinstance(aggregator, GuardedAggregator):
        aggregator.tell(tasks)
    return aggregator(matrix)


class GuardedAggregator(nn.Module):
    """An aggregator that lets a diverged net end its fit, and no more than that.

    Most aggregators stop with an error of their solver at gradients that are not finite, or whose products are not. Here those
    give a direction of NaN, by which a fit loop sees that it has diverged. Gradients that are all zero give zero.

    Args:
        name: for messages.
        inner: maps a matrix (k, P) to a direction (P,).

    Raises:
        FitError: the solver failed at a finite matrix.

    Examples:
        >>> guarded = GuardedAggregator("sum", nn.Flatten())
        >>> guarded(torch.tensor([[1.0, torch.inf]]))
        tensor([nan, nan])
    """

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.name, self.inner = name, inner

    def tell(self, tasks: Sequence[Hashable]) -> None:
        """Say which tasks the rows of the next matrix belong to."""
        if isinstance(self.inner, NashBargain):
            self.inner.tasks = tuple(tasks)

    def forward(self, matrix: Tensor) -> Tensor:
        """The direction (P,)."""
        size = float(matrix.square().sum())
        if not np.isfinite(size):
            return matrix.new_full(matrix.shape[1:], torch.nan)
        if size == 0:
            return matrix.new_zeros(matrix.shape[1:])
        try:
            return self.inner(matrix)
        except Exception as error:
            raise FitError(
                f"`{self.name}` found no direction for {len(matrix)} gradients ({error}); try smaller learning rates"
            ) from error


class ScaledFairGrad(nn.Module):
    """torchjd's FairGrad, solved for gradients of length one in the mean and scaled back.

    The weights solve G w = w^(-1/alpha) for the Gram matrix G (Ban & Ji, ICML 2024, their equation 4). With gradients s times
    as long they are s^(-2 alpha / (1 + alpha)) times as large, so that scaling back is exact. Without it the solver, whose
    tolerances are absolute, stops far from the solution where gradients are small.

    Args:
        inner: `torchjd.aggregation.FairGrad`.
        alpha: its alpha.
    """

    def __init__(self, inner: nn.Module, alpha: float) -> None:
        super().__init__()
        self.inner, self.alpha = inner, alpha

    def forward(self, matrix: Tensor) -> Tensor:
        """The direction (P,)."""
        length = matrix.square().sum(dim=1).mean().sqrt()
        return self.inner(matrix / length) * length ** ((1 - self.alpha) / (1 + self.alpha))


class NashBargain(nn.Module):
    """torchjd's Nash-MTL for tasks that come and go, with all that it remembers in plain attributes.

    The weights solve G w = 1 / w for the Gram matrix G of the rows, by a sequence of convex programs that begins at the last
    weights (Navon and others, ICML 2022, their algorithm 1). Deviation: the paper has all tasks in every batch; here the
    bargain is between those that are present, a task that comes back begins at the weight that it had, and weights are
    never kept for other tasks than those that they were made for.

    Args:
        make: makes `torchjd.aggregation.NashMTL` for k tasks, without a bound on the norm.
        max_norm: greatest length of the direction; 0 for none.
        every: steps for which weights are kept before they are solved for anew.

    Attributes:
        tasks: whose rows come next; their numbers, if empty.
        known: pairs of a task and its last weight.
        last: the tasks that the last weights were made for.
        age: directions made.
    """

    def __init__(self, make: Callable[[int], Any], max_norm: float = 1.0, every: int = 1) -> None:
        super().__init__()
        self.make, self.max_norm, self.every = make, max_norm, every
        self.tasks: tuple[Hashable, ...] = ()
        self.known: tuple[tuple[Hashable, float], ...] = ()
        self.last: tuple[Hashable, ...] = ()
        self.age = 0
        # By the number of rows. A tuple, so that no solver is taken for a part of the memory: all of it is in `known`.
        self._solvers: dict[int, tuple[Any]] = {}

    def forward(self, matrix: Tensor) -> Tensor:
        """The direction (P,)."""
        tasks = self.tasks or tuple(range(len(matrix)))
        if self.age % self.every == 0 or tasks != self.last:
            self._solve(matrix, tasks)
        self.age += 1
        weights = dict(self.known)
        direction = matrix.new_tensor([weights[task] for task in tasks]) @ matrix
        if self.max_norm:
            direction = direction * (self.max_norm / direction.norm()).clamp(max=1.0)
        return direction

    def _solve(self, matrix: Tensor, tasks: tuple[Hashable, ...]) -> None:
        weights = dict(self.known)
        if len(tasks) == 1:
            # Alone, a task bargains with no one, and torchjd's program cannot be written down.
            self.known, self.last = tuple({**weights, tasks[0]: 1.0}.items()), tasks
            return
        if len(matrix) not in self._solvers:
            self._solvers[len(matrix)] = (self.make(len(matrix)).weighting,)
        solver = self._solvers[len(matrix)][0]
        # torchjd begins with ones in 32 bits, and goes on in 64.
        begun = any(task in weights for task in tasks)
        solver.prvs_alpha = np.array([weights.get(task, 1.0) for task in tasks], np.float64 if begun else np.float32)
        with warnings.catch_warnings():
            # That the program is compiled anew at every step, and that a step of the sequence is solved roughly.
            warnings.simplefilter("ignore")
            solver(matrix)
        weights.update(zip(tasks, solver.prvs_alpha.tolist(), strict=True))
        self.known, self.last = tuple(weights.items()), tasks


_PLAIN = (Tensor, int, float, bool, str, tuple, list, type(None), torch.dtype)


def memory_of(module: nn.Module) -> dict[str, dict[str, Any]]:
    """All buffers and plain attributes of a module and its parts, by the part's name.

    Some aggregators of torchjd make their buffers when they are first used, and keep beside them what tells whether they are
    still valid: their own `state_dict` loses the latter, and their `load_state_dict` refuses the former.

    Examples:
        >>> part = torch.nn.Identity()
        >>> part.age = 3
        >>> memory_of(part)[""]["age"]
        3
    """
    return {
        name: {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in {**vars(part), **part._buffers}.items()
            if isinstance(value, _PLAIN) and key != "training"
        }
        for name, part in module.named_modules(remove_duplicate=False)
    }


def set_memory(module: nn.Module, memory: dict[str, dict[str, Any]]) -> None:
    """Give a module what `memory_of` read off another of its kind.

    Raises:
        AttributeError: it has other parts.
    """
    parts = {name: module.get_submodule(name) for name in memory}
    for name, values in memory.items():
        for key, value in values.items():
            setattr(parts[name], key, value.clone() if isinstance(value, Tensor) else value)
