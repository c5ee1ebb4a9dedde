"""How the groups of a batch are passed through, and what that costs.

Letters: K tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taskloom.deep._adatask_step import AdaTaskOptimizer
from taskloom.tasks import OptionError, is_whole

Tasks = int | Sequence[str] | None


@dataclass(frozen=True)
class GroupPasses:
    """How the groups of a batch are passed through, whatever decides on them.

    Attributes:
        seed: of all that is drawn: orders and random groups. What is drawn for a batch follows from it and the batch's number
            alone, so that no generator has to be saved.
        common_randomness: all passes of a batch have the same dropout masks, and batch normalisation counts a batch once.
        freeze_heads: heads of tasks that are not in an update stay as they are, under momentum and weight decay too.
        own_rows: the closure takes the tasks whose losses are wanted, a list of their numbers, or None for all. A `fit` sets
            this by itself.
        scaler: of half precision, for loops without a fabric; the step scales, unscales, steps and updates it.
        data_parallel: process group that agrees on losses and groups, True or None for all processes (None: only if
            torch.distributed runs), False for none.
    """

    seed: int = 0
    common_randomness: bool = True
    freeze_heads: bool = True
    own_rows: bool = False
    scaler: Any = None
    data_parallel: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or not is_whole(self.seed, 0):
            raise OptionError(f"`seed`={self.seed!r}: give a whole number that is not negative")


@dataclass
class StepCosts:
    """What a step has cost so far.

    Attributes:
        batches: seen.
        updates: optimizer steps.
        forwards: forward passes, in units of one for all tasks' rows of a batch.
        backwards: backward passes, in the same unit.

    Examples:
        >>> StepCosts(batches=10, updates=20, forwards=20.0, backwards=20.0).trunk_passes()
        60.0
    """

    batches: int = 0
    updates: int = 0
    forwards: float = 0.0
    backwards: float = 0.0

    def trunk_passes(self) -> float:
        """Cost of the trunk in forward passes of a batch, a backward pass being two of them."""
        return self.forwards + 2 * self.backwards


def count_tasks(tasks: Tasks) -> int | None:
    """K; None where nothing is said.

    Raises:
        OptionError: no task, or a name twice.

    Examples:
        >>> count_tasks(["a", "b"])
        2
    """
    if tasks is None:
        return None
    if isinstance(tasks, int):
        if isinstance(tasks, bool) or tasks < 1:
            raise OptionError(f"`tasks`={tasks!r}: give a number of at least 1 or a list of names")
        return tasks
    names = list(tasks)
    if not names or isinstance(tasks, str) or len(set(names)) < len(names):
        raise OptionError(f"`tasks`={tasks!r}: give at least one name, and none twice")
    return len(names)


def check_scaler(fabric: Any, own: Any, scaler: Any, optimizer: Any) -> None:
    """Refuse what cannot be scaled.

    Raises:
        OptionError: a scaler beside a fabric, or an AdaTask optimizer in a fabric that scales losses.
    """
    if own is not None and fabric is not None:
        raise OptionError("`scaler` beside a `fabric`, which has its own: leave `scaler` out and choose `precision`='16-mixed'")
    if fabric is not None and scaler is not None and isinstance(optimizer, AdaTaskOptimizer):
        raise OptionError(
            "`precision`='16-mixed' scales losses, which an AdaTask optimizer in a fabric does not allow; take 'bf16-mixed'"
        )
