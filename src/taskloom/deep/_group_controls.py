"""What selective task group updates are held against: steps that make as many updates, with other groups or with none.

Letters: K tasks, M groups of them.

A step of M groups moves the weights M times a batch where the sum of all losses (`SumStep`) moves them once. Whether the choice
of groups has anything to do with what comes of it, only steps of the same cost can tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.optim import Optimizer

from taskloom.deep._group_passes import GroupPasses, Tasks, check_fabric, named_tasks
from taskloom.deep._group_step import GroupStep
from taskloom.tasks import OptionError, is_whole, unknown

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class RepeatedStep(GroupStep):
    """M steps down the sum of all losses on the same batch: joint training at the cost of M groups.

    Args:
        optimizer: of all weights.
        fabric: that the net was set up with; None for none.
        tasks: their number or their names; None: as many as the first losses.
        times: M, or a sequence with that of each batch, the last of which goes on.
        passes: see `GroupPasses`.

    Raises:
        OptionError: `times` below 1.

    Examples:
        >>> import torch
        >>> weight = torch.ones(2, requires_grad=True)
        >>> step = RepeatedStep(torch.optim.SGD([weight], lr=0.1), times=3)
        >>> step.step(lambda: weight.square()), step.costs.updates
        (tensor([1., 1.]), 3)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        fabric: Fabric | None = None,
        tasks: Tasks = None,
        times: int | Sequence[int] = 2,
        passes: GroupPasses | None = None,
    ) -> None:
        self.times = _numbers("times", times)
        super().__init__(optimizer, fabric, tasks, passes or GroupPasses())

    def _plan(self) -> list[list[int]]:
        return [list(range(self.n_tasks or 0))] * _at(self.times, self.costs.batches)


class RandomGroups(GroupStep):
    """A new random partition into M groups in every batch, after a warm-up in which each task is a group of its own.

    Groups are as even as they can be. With the warm-up and the M of `SelectiveGroups` it costs as much as that does.

    Args:
        optimizer: of all weights.
        fabric: that the net was set up with; None for none.
        tasks: their number or their names; None: as many as the first losses.
        n_groups: M, or a sequence with that of each batch, the last of which goes on.
        warmup: batches of single tasks at the start.
        passes: see `GroupPasses`; its `seed` is that of the groups and of their order.

    Raises:
        OptionError: `n_groups` below 1, or a warm-up below 0.

    Examples:
        >>> import torch
        >>> weight = torch.ones(4, requires_grad=True)
        >>> step = RandomGroups(torch.optim.SGD([weight], lr=0.1), n_groups=2, warmup=0)
        >>> losses = step.step(lambda: weight.square())
        >>> sorted(map(len, step.groups)), step.costs.updates
        ([2, 2], 2)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        fabric: Fabric | None = None,
        tasks: Tasks = None,
        n_groups: int | Sequence[int] = 2,
        warmup: int = 100,
        passes: GroupPasses | None = None,
    ) -> None:
        self.n_groups, self.warmup = _numbers("n_groups", n_groups), _batches(warmup)
        super().__init__(optimizer, fabric, tasks, passes or GroupPasses())

    @property
    def groups(self) -> list[set[Any]]:
        """The groups of the last batch, sets of names, or of numbers where no names were given."""
        return self._named_sets(self._groups_of(self.costs.batches - 1) if self.costs.batches else [])

    def _plan(self) -> list[list[int]]:
        return self._shuffled(self._groups_of(self.costs.batches))

    def _groups_of(self, batch: int) -> list[list[int]]:
        n_tasks = self.n_tasks or 0
        n_groups = n_tasks if batch < self.warmup else min(n_tasks, _at(self.n_groups, batch))
        shuffled = self._drawn(batch)[n_tasks:].argsort()
        return [sorted(part.tolist()) for part in np.array_split(shuffled, n_groups)]


class Singletons(GroupStep):
    """Each task a group of its own, in a random order in every batch.

    Args:
        optimizer: of all weights.
        fabric: that the net was set up with; None for none.
        tasks: their number or their names; None: as many as the first losses.
        passes: see `GroupPasses`.

    Examples:
        >>> import torch
        >>> weight = torch.ones(3, requires_grad=True)
        >>> step = Singletons(torch.optim.SGD([weight], lr=0.1))
        >>> losses = step.step(lambda: weight.square())
        >>> step.costs.updates
        3
    """

    def __init__(
        self, optimizer: Optimizer, fabric: Fabric | None = None, tasks: Tasks = None, passes: GroupPasses | None = None
    ) -> None:
        super().__init__(optimizer, fabric, tasks, passes or GroupPasses())

    def _plan(self) -> list[list[int]]:
        return self._shuffled([[k] for k in range(self.n_tasks or 0)])


class FixedGroups(GroupStep):
    """Given groups, updated one after the other in a random order in every batch.

    Args:
        optimizer: of all weights.
        fabric: that the net was set up with; None for none.
        tasks: their number or their names; None: as many as the groups have.
        groups: of names or numbers, each task in one of them; or the number of each task's group, as `labels` of
            `relate.Groups` and of sklearn's clusterings are.
        warmup: batches at the start in which each task is a group of its own.
        passes: see `GroupPasses`.

    Raises:
        OptionError: no groups, or groups that do not have each task once.
        UnknownNameError: a name that no task has.

    Examples:
        >>> import torch
        >>> weight = torch.ones(3, requires_grad=True)
        >>> step = FixedGroups(torch.optim.SGD([weight], lr=0.1), tasks=["a", "b", "c"], groups=[["a", "c"], ["b"]])
        >>> losses = step.step(lambda: weight.square())
        >>> step.costs.updates, [sorted(group) for group in step.groups]
        (2, [['a', 'c'], ['b']])
        >>> FixedGroups(torch.optim.SGD([weight], lr=0.1), groups=[0, 1, 0]).groups
        [{0, 2}, {1}]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        fabric: Fabric | None = None,
        tasks: Tasks = None,
        groups: Iterable[Iterable[Any]] | Iterable[int] = (),
        warmup: int = 0,
        passes: GroupPasses | None = None,
    ) -> None:
        check_fabric(fabric)
        names, n_tasks = named_tasks(tasks)
        given = _listed(groups, names)
        if n_tasks is None:
            n_tasks = sum(map(len, given))
        self._given = _partition(given, list(names or range(n_tasks)))
        self.warmup = _batches(warmup)
        super().__init__(optimizer, fabric, names or n_tasks or None, passes or GroupPasses())

    @property
    def groups(self) -> list[set[Any]]:
        """The groups, sets of names, or of numbers where no names were given."""
        return self._named_sets(self._given)

    def _plan(self) -> list[list[int]]:
        is_warm = self.costs.batches >= self.warmup
        return self._shuffled(self._given if is_warm else [[k] for k in range(self.n_tasks or 0)])


class CycledGroups(FixedGroups):
    """Given groups, one in each batch and then the next: as many updates as batches, as joint training has.

    In every round of M batches each group has its turn, in a random order.

    Args:
        optimizer: of all weights.
        fabric: that the net was set up with; None for none.
        tasks: their number or their names; None: as many as the groups have.
        groups: as for `FixedGroups`.
        warmup: batches at the start in which each task is a group of its own, and all have their turn.
        passes: see `GroupPasses`.

    Examples:
        >>> import torch
        >>> weight = torch.ones(3, requires_grad=True)
        >>> step = CycledGroups(torch.optim.SGD([weight], lr=0.1), groups=[[0, 2], [1]])
        >>> losses = [step.step(lambda: weight.square()) for _ in range(4)]
        >>> step.costs.updates, weight.detach()
        (4, tensor([0.6400, 0.6400, 0.6400]))
    """

    def _plan(self) -> list[list[int]]:
        age = self.costs.batches - self.warmup
        if age < 0:
            return super()._plan()
        turn, place = divmod(age, len(self._given))
        order = np.random.default_rng([self._agreed_seed(), turn, 1]).permutation(len(self._given))
        return [self._given[order[place]]]


def _listed(groups: Any, names: list[str] | None) -> list[list[Any]]:
    """Lists of tasks, also of a number for each task; what is a number or a text in place of a list is left to complain of."""
    if isinstance(groups, str) or not isinstance(groups, Iterable):
        raise OptionError(
            f"`groups` is a {type(groups).__name__}: give lists of tasks, or the number of each task's group (`.labels`)"
        )
    given = list(groups)
    if given and all(is_whole(one) for one in given):
        return [[_name(k, names) for k, label in enumerate(given) if label == one] for one in dict.fromkeys(given)]
    strange = next((one for one in given if isinstance(one, str) or not isinstance(one, Iterable)), None)
    if strange is not None:
        raise OptionError(f"`groups` has {strange!r} in place of a list of tasks: give a list for each group")
    return [list(one) for one in given]


def _name(k: int, names: list[str] | None) -> Any:
    return k if names is None or k >= len(names) else names[k]


def _partition(given: list[list[Any]], names: list[Any]) -> list[list[int]]:
    strange = next((name for group in given for name in group if name not in names), None)
    if strange is not None:
        raise unknown("task", str(strange), [str(name) for name in names])
    members = [names.index(name) for group in given for name in group]
    if not given or sorted(members) != list(range(len(names))) or not all(given):
        raise OptionError(f"`groups`={given}: give each of the {len(names)} tasks in one group, and no empty group")
    return [sorted(names.index(name) for name in group) for group in given]


def _numbers(name: str, value: int | Sequence[int]) -> list[int]:
    numbers = list(value) if isinstance(value, Iterable) else [value]
    if not numbers or not all(is_whole(number, 1) for number in numbers):
        raise OptionError(f"`{name}`={value!r}: give a whole number of at least 1, or one for each batch")
    return [int(number) for number in numbers]


def _at(numbers: list[int], batch: int) -> int:
    return numbers[min(batch, len(numbers) - 1)]


def _batches(warmup: int) -> int:
    if not is_whole(warmup, 0):
        raise OptionError(f"`warmup`={warmup!r}: give a whole number of batches that is not negative")
    return warmup
