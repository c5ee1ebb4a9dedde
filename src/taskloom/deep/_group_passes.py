"""How the groups of a batch are passed through, and what that costs.

Letters: K tasks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from taskloom.deep._adatask_step import AdaTaskOptimizer
from taskloom.tasks import DataError, OptionError, is_whole

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
        if not is_whole(self.seed, 0):
            raise OptionError(f"`seed`={self.seed!r}: give a whole number that is not negative")
        for name in ("common_randomness", "freeze_heads", "own_rows"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"`{name}`={getattr(self, name)!r}: give True or False")


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


def named_tasks(tasks: Any) -> tuple[list[str] | None, int | None]:
    """Names, None where a number was given, and K, None where nothing is said.

    Raises:
        OptionError: no task, a name that is no text, or a name twice.

    Examples:
        >>> named_tasks(["a", "b"]), named_tasks(2)
        ((['a', 'b'], 2), (None, 2))
    """
    if tasks is None:
        return None, None
    if is_whole(tasks, 1):
        return None, int(tasks)
    names = list(tasks) if isinstance(tasks, Iterable) and not isinstance(tasks, str) else []
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        shown = names or tasks
        raise OptionError(f"`tasks`={shown!r}: give a number of at least 1, or a list of names (texts), none twice")
    return names, len(names)


def check_fabric(fabric: Any) -> None:
    """Refuse what is no fabric.

    Raises:
        OptionError: it has no `backward`.
    """
    if fabric is not None and not callable(getattr(fabric, "backward", None)):
        raise OptionError(f"`fabric`={fabric!r} is no Fabric: give `tasks`= and `groups`= by their names")


def check_closure(closure: Callable[..., Any]) -> None:
    """Refuse a closure that cannot be told which tasks are wanted.

    Raises:
        OptionError: it takes no argument.
    """
    try:
        inspect.signature(closure).bind([0])
    except TypeError as error:
        raise OptionError(
            "`own_rows`=True calls `closure` with the list of the tasks that are wanted, None for all, and it takes no such "
            "argument: give it one, or leave `own_rows` out"
        ) from error


def check_state(state: Any, kind: str, names: list[str] | None, n_tasks: int | None) -> None:
    """Refuse the state of another step.

    Raises:
        DataError: it is that of another kind of step, or of other tasks.
    """
    other = state.get("step")
    if other != kind:
        raise DataError(f"`state` is that of {other or 'something else'}: it cannot be loaded into {kind}")
    saved, n_saved = state["names"], state["n_tasks"]
    if names is not None and saved is not None and saved != names:
        raise DataError(
            f"`state` is of the tasks {', '.join(saved)}, this step of {', '.join(names)}: give it the same `tasks`"
        )
    if n_tasks is not None and n_saved is not None and n_saved != n_tasks:
        raise DataError(f"`state` is of {n_saved} tasks, this step of {n_tasks}: give it the same `tasks`")


def check_parts(optimizer: Any, passes: Any) -> None:
    """Refuse what steps of groups cannot be made of.

    Raises:
        OptionError: no optimizer, or one whose step has to be given a closure; no `GroupPasses`.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, Optimizer):
        raise OptionError(f"`optimizer` is a {type(inner).__name__}: give a torch optimizer of all weights")
    closure = inspect.signature(type(inner).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise OptionError(
            f"`optimizer`: the step of {type(inner).__name__} goes through the net several times, for which an update of a "
            "group has no place; give one whose step takes no closure"
        )
    if not isinstance(passes, GroupPasses):
        raise OptionError(f"`passes` is a {type(passes).__name__}: give GroupPasses(...)")


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
