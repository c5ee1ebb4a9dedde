"""How much an update of some tasks helps each task: the maths of proximal inter-task affinity.

Letters: K tasks, i the source and k the target of an effect, T observations, r relative gain of a loss, B effect of one task on
another, b decay, P numbers of a layer, g gradient of a task by them.

An observation is an update of a group of tasks, with the losses of one batch before and after it. Jeong & Yoon (ICLR 2025,
arXiv 2502.11986) take the relative gain r_k = 1 - L_k(after) / L_k(before) of the update that is really made, shared out evenly
over the members of the group, and keep a decayed mean of it. How a gain of a group becomes effects of pairs is read in their
published code; the text of the paper has not been at hand here.

What differs here, each for a reason. Means have their bias corrected and each entry its own count: from a start of zero an
entry that was seen less often would look smaller than it is. A task's effect on itself is also kept where it is negative: to
leave such observations out makes progress look larger than it is. Losses may be zero or negative: their differences are then
taken in units of a running mean of their size. Gains are bounded to [-1, 1]: one batch with a loss near zero would otherwise
be all that a mean remembers. `official=True` is the arithmetic of the published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskloom.tasks import Array

Flags = NDArray[np.bool_]
# Effects that are taken at once: 32 MB of numbers.
_ENTRIES = 1 << 22
# Least unit that an effect is measured in, as a share of the median task's own progress.
_FLOOR = 0.1


def relative_gains(before: Array, after: Array, scale: Array | None = None, *, official: bool = False) -> Array:
    """R (T, K): how much smaller each loss has become, relative to what it was; NaN where that cannot be said.

    Args:
        before: losses (T, K) before an update, NaN for an absent task.
        after: losses (T, K) of the same batch after it.
        scale: (K,) what to divide by where a loss was not positive; NaN: the loss itself. A task that has a number here is
            divided by it always: one that goes through zero has no other unit.
        official: losses that are not positive are never looked at, and gains have no bound.

    Examples:
        >>> relative_gains(np.array([[2.0, 0.0, np.nan]]), np.array([[1.5, 1.0, 1.0]]))
        array([[0.25,  nan,  nan]])
        >>> relative_gains(np.array([[-2.0]]), np.array([[-3.0]]), np.array([4.0]))
        array([[0.25]])
    """
    unit = before if scale is None or official else np.where(np.isnan(scale), before, scale)
    is_good = np.isfinite(before) & np.isfinite(after) & (unit > 0)
    gains = np.full(before.shape, np.nan)
    np.divide(before - after, unit, out=gains, where=is_good)
    return gains if official else gains.clip(-1.0, 1.0)


def pair_effects(gains: Array, members: Flags, *, official: bool = False) -> Array:
    """B (T, K, K): the effect of task i on task k that T updates of groups speak for; NaN where one says nothing.

    With r = gains / size of the group, for each member i: a task outside of the group gets B_ik = r_k; task i itself r_i;
    another member r_k if both won or both lost, and -max(r_i, r_k) if one won and the other lost, so that the pair can come
    apart. The members of a group cannot be told apart by this: a pair inside of it that wins looks as close as a task is to
    itself.

    Args:
        gains: (T, K).
        members: (T, K) which tasks were updated.
        official: a task's own loss that rose is left out.

    Examples:
        >>> pair_effects(np.array([[0.2, -0.1, 0.3]]), np.array([[True, True, False]]))[0]
        array([[ 0.1 , -0.1 ,  0.15],
               [-0.1 , -0.05,  0.15],
               [  nan,   nan,   nan]])
    """
    share = gains / np.maximum(members.sum(axis=1, keepdims=True), 1)
    source, target = share[:, :, None], share[:, None, :]
    own = np.eye(gains.shape[1], dtype=bool)
    effects = np.where(members[:, :, None], target, np.nan)
    is_split = members[:, :, None] & members[:, None, :] & ((source >= 0) != (target >= 0)) & ~own
    np.copyto(effects, -np.maximum(source, target), where=is_split)
    if official:
        effects[(own & (target < 0))] = np.nan
    return effects


def first_order_effects(steps: Array, gradients: Array, losses: Array) -> Array:
    """B (K, K) to first order: how much a step along task i's own direction lowers the loss of task k, relative to it.

    B_ik = <s_i, g_k> / |L_k| with the step s_i that an optimizer would make of the gradient g_i alone. Nothing is updated for
    it, momentum has no part in it, and members of one group are told apart; it is our choice, the paper has none of it.

    Args:
        steps: (K, P) how far each task's gradient alone would move a layer that tasks share, NaN rows for absent tasks.
        gradients: (K, P).
        losses: (K,).

    Examples:
        >>> first_order_effects(np.eye(2), np.array([[1.0, 0.5], [-1.0, 2.0]]), np.array([1.0, 2.0]))
        array([[ 1. , -0.5],
               [ 0.5,  1. ]])
    """
    unit = np.where(losses == 0, np.nan, np.abs(losses))
    return steps @ gradients.T / unit


def similarity(affinity: Array, *, official: bool = False) -> Array:
    """(K, K) symmetric, 1 on the diagonal: effects in units of the target's own progress, the mean of both directions.

    The unit is guarded: it is no less than a tenth of the median task's own progress, so that a task that stands still does not
    seem to be moved by all others. What has never been seen counts as no effect.

    Args:
        affinity: effects (K, K).
        official: no guard, and what has never been seen stays NaN.

    Examples:
        >>> similarity(np.array([[0.2, 0.1], [-0.1, 0.4]]))
        array([[ 1.   , -0.125],
               [-0.125,  1.   ]])
    """
    if official:
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = affinity / np.diag(affinity)
        return (scaled + scaled.T) / 2
    scaled = in_own_progress(affinity)
    # Further off than a task is to itself says no more than that.
    symmetric = (scaled + scaled.T).clip(-2.0, 2.0) / 2
    np.fill_diagonal(symmetric, 1.0)
    return symmetric


def in_own_progress(affinity: Array) -> Array:
    """(K, K) effects in units of the target's own progress, guarded as in `similarity`; 0 for what has never been seen.

    Examples:
        >>> in_own_progress(np.array([[0.2, 0.1], [-0.1, 0.4]]))
        array([[ 1.  ,  0.25],
               [-0.5 ,  1.  ]])
    """
    own = np.diag(affinity)
    progress = own[own > 0]
    floor = _FLOOR * float(np.median(progress)) if len(progress) else float(np.nanmax(np.abs(affinity), initial=0.0)) or 1.0
    return np.nan_to_num(affinity) / np.maximum(np.nan_to_num(own), floor)


class DecayedMean:
    """A mean in which each observation counts 1 - b times as much as the one after it, for each entry on its own.

    Args:
        shape: of the entries.
        beta: b.
        official: a start of zero that is never corrected for.

    Attributes:
        sums: (shape) decayed sums.
        counts: (shape) observations.

    Examples:
        >>> mean = DecayedMean((2,), beta=0.5)
        >>> mean.add(np.array([[1.0, np.nan], [4.0, 3.0]]))
        >>> mean.value(), mean.counts
        (array([3., 3.]), array([2, 1]))
    """

    def __init__(self, shape: tuple[int, ...], beta: float, *, official: bool = False) -> None:
        self.beta, self.official = beta, official
        self.sums: Array = np.zeros(shape)
        self.counts: NDArray[np.int64] = np.zeros(shape, dtype=np.int64)

    def add(self, values: Array) -> None:
        """Take in values (T, shape), the oldest first; NaN is no observation."""
        if not len(values):
            return
        is_new = np.isfinite(values)
        reversed_counts = is_new[::-1].cumsum(axis=0)[::-1]
        powers = (1 - self.beta) ** np.arange(len(values) + 1)
        weights = powers[reversed_counts - is_new] * self.beta
        self.sums = self.sums * powers[reversed_counts[0]] + (np.where(is_new, values, 0.0) * weights).sum(axis=0)
        self.counts = self.counts + reversed_counts[0]

    def value(self) -> Array:
        """(shape); NaN for what was never seen, and zero with `official`."""
        if self.official:
            return self.sums.copy()
        share = 1 - (1 - self.beta) ** self.counts
        return np.divide(self.sums, share, out=np.full(self.sums.shape, np.nan), where=self.counts > 0)

    def copy(self) -> DecayedMean:
        """One of its own with the same content."""
        twin = DecayedMean(self.sums.shape, self.beta, official=self.official)
        twin.sums, twin.counts = self.sums.copy(), self.counts.copy()
        return twin

    def state_dict(self) -> dict[str, Any]:
        """As tensors."""
        return {"sums": torch.from_numpy(self.sums.copy()), "counts": torch.from_numpy(self.counts.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.sums, self.counts = (state[name].cpu().numpy().copy() for name in ("sums", "counts"))


class AffinityTracker:
    """A decayed mean of effects between K tasks, out of losses before and after updates.

    Observations wait until there are enough of them to be worth their while, or until they are asked for: taken at once they
    cost a fraction of what they do one by one.

    Args:
        n_tasks: K.
        beta: decay.
        official: see the module.
    """

    def __init__(self, n_tasks: int, beta: float, *, official: bool = False) -> None:
        self.n_tasks, self.official = n_tasks, official
        self.effects = DecayedMean((n_tasks, n_tasks), beta, official=official)
        self.sizes = DecayedMean((n_tasks,), beta)
        # Tasks with a loss that was negative once: their unit is the running size for good.
        self.is_signed: Flags = np.zeros(n_tasks, dtype=bool)
        self._waiting: list[tuple[Flags, Array, Array]] = []

    def observe(self, members: Flags, before: Array, after: Array) -> None:
        """Note an update of some tasks (K,) with the losses (K,) before and after it."""
        self._waiting.append((members, before, after))
        if len(self._waiting) * self.n_tasks**2 >= _ENTRIES:
            self.settle()

    def observe_effects(self, effects: Array) -> None:
        """Take in effects (K, K) that are known as such."""
        self.effects.add(effects[None])

    def settle(self) -> None:
        """Put what waits into the means."""
        if self._waiting:
            _take_in(self._waiting, self.effects, self.sizes, self.is_signed, official=self.official)
            self._waiting = []

    def affinity(self) -> Array:
        """(K, K) effects of rows on columns, NaN where none was seen; leaves everything as it is."""
        return self._with_waiting().value()

    def counts(self) -> NDArray[np.int64]:
        """(K, K) observations, those that wait included; leaves everything as it is."""
        return self._with_waiting().counts.copy()

    def _with_waiting(self) -> DecayedMean:
        if not self._waiting:
            return self.effects
        effects = self.effects.copy()
        _take_in(self._waiting, effects, self.sizes.copy(), self.is_signed.copy(), official=self.official)
        return effects

    def state_dict(self) -> dict[str, Any]:
        """All of it, with what waits."""
        stacked = [np.array([each[j] for each in self._waiting]).reshape(-1, self.n_tasks) for j in range(3)]
        return {
            "effects": self.effects.state_dict(),
            "sizes": self.sizes.state_dict(),
            "is_signed": torch.from_numpy(self.is_signed.copy()),
            "members": torch.from_numpy(stacked[0].astype(bool)),
            "before": torch.from_numpy(stacked[1].astype(float)),
            "after": torch.from_numpy(stacked[2].astype(float)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.effects.load_state_dict(state["effects"])
        self.sizes.load_state_dict(state["sizes"])
        self.is_signed = state["is_signed"].cpu().numpy().copy()
        waiting = (list(state[name].cpu().numpy().copy()) for name in ("members", "before", "after"))
        self._waiting = list(zip(*waiting, strict=True))


def _take_in(
    waiting: Sequence[tuple[Flags, Array, Array]], effects: DecayedMean, sizes: DecayedMean, is_signed: Flags, *, official: bool
) -> None:
    members, before, after = (np.array(part) for part in zip(*waiting, strict=True))
    # Means of sizes and the list of signed tasks are those of the caller, and change with it.
    sizes.add(np.abs(before))
    is_signed |= (np.where(np.isfinite(before), before, 0.0) < 0).any(axis=0)
    scale = np.where(is_signed, np.where(sizes.counts > 0, sizes.value(), 0.0), np.nan)
    gains = relative_gains(before, after, scale, official=official)
    # A task that was absent has moved nothing.
    effects.add(pair_effects(gains, members & np.isfinite(before), official=official))


def task_steps(gradients: Sequence[Tensor | None], scales: Sequence[Tensor | float]) -> tuple[Array, Array]:
    """Steps and gradients (K, P) on the host, for `first_order_effects`.

    Args:
        gradients: of each task by one layer; None: absent.
        scales: what an optimizer multiplies each task's gradient by, learning rate included.
    """
    template = next(grad for grad in gradients if grad is not None)
    rows = [torch.full_like(template, torch.nan) if grad is None else grad for grad in gradients]
    kind = torch.float64 if template.dtype == torch.float64 else torch.float32
    matrix = torch.stack([row.to(kind).flatten() for row in rows])
    steps = torch.stack([(row.to(kind) * scale).flatten() for row, scale in zip(rows, scales, strict=True)])
    both = torch.stack([steps, matrix]).double().cpu().numpy()
    return both[0], both[1]
