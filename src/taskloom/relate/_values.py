"""What a group is worth to each of its members: by a matrix of pairwise gains, or as it was measured.

Letters: K tasks, G groups, A (K, K) gains, row = receiver, column = source, S a group, T the tasks that it serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taskloom.relate._affinity import Affinity
from taskloom.relate._arrays import Members, check_members
from taskloom.tasks import Array, DataError, OptionError

# A table of all groups of so many tasks holds 2^18 rows; beyond that memory, not time, is the limit.
MOST_LISTED = 18


@dataclass(frozen=True, eq=False)
class GroupGains:
    """Gains of groups, measured or predicted: for each group and each of its members what training together is worth.

    Attributes:
        members: (G, K), true where a task is in a group.
        gains: (G, K), larger is better (a loss is given with a minus); NaN outside of the group. A member with NaN
            cannot be served by it.
        tasks: K names; `task 1`, ... when not given.
        costs: (G,) of training each group; 1 when not given.

    Raises:
        DataError: shapes that do not fit, an empty group, a gain that is infinite, a task without a gain, or a cost that is
            not positive.

    Examples:
        >>> table = GroupGains([[1, 1], [1, 0], [0, 1]], [[0.3, -0.1], [0.0, np.nan], [np.nan, 0.0]], ["sun", "rain"])
        >>> table.n_groups, table.costs.tolist()
        (3, [1.0, 1.0, 1.0])
    """

    members: Members
    gains: Array
    tasks: Sequence[str] | None = None
    costs: Array | None = None

    def __post_init__(self) -> None:
        members, gains = check_members("members", self.members), np.array(self.gains, dtype=np.float64)
        if members.shape != gains.shape:
            raise DataError(f"`members` has shape {members.shape} and `gains` {gains.shape}; need (G, K) for both")
        G, K = members.shape
        tasks = [f"task {t + 1}" for t in range(K)] if self.tasks is None else [str(name) for name in self.tasks]
        if len(tasks) != K or len(set(tasks)) != K:
            raise DataError(f"`tasks` has {len(set(tasks))} different names; need {K}, one for each column")
        if not members.any(axis=1).all():
            raise DataError(f"group {int(np.argmin(members.any(axis=1)))} of `members` is empty; leave it out")
        gains[~members] = np.nan
        if np.isinf(gains).any():
            g, i = np.argwhere(np.isinf(gains))[0]
            raise DataError(f"`gains` of {tasks[i]!r} in group {g} is infinite; use NaN where it cannot serve")
        never = np.isnan(gains).all(axis=0)
        if never.any():
            raise DataError(f"`gains` has none for {tasks[int(np.argmax(never))]!r}; every task needs a group that serves it")
        costs = np.ones(G) if self.costs is None else np.asarray(self.costs, dtype=np.float64)
        if costs.shape != (G,) or not (np.isfinite(costs) & (costs > 0)).all():
            raise DataError(f"`costs` has shape {costs.shape}; need ({G},) positive numbers, one for each group")
        for name, value in {"members": members, "gains": gains, "tasks": tasks, "costs": costs}.items():
            object.__setattr__(self, name, value)

    @property
    def n_tasks(self) -> int:
        """K."""
        return self.members.shape[1]

    @property
    def n_groups(self) -> int:
        """G."""
        return self.members.shape[0]


def group_gains(affinity: Affinity, members: Members | None = None) -> GroupGains:
    """What groups are worth by pairwise gains: for each member the mean of its gains from the other members.

    This is the reading of TAG (Fifty et al. 2021) and of HOA (Standley et al. 2020). A group of one is worth the task's own
    gain where the affinity has one, else its `zero`, else it can serve nothing.

    Args:
        affinity: row = receiver.
        members: (G, K) groups, all 2^K - 1 when not given.

    Raises:
        OptionError: all groups of more than 18 tasks.
        DataError: a pair whose gain is not known, or groups of another shape or of other values than true and false.

    Examples:
        >>> affinity = Affinity(np.array([[0.0, 0.4, 0.2], [0.2, 0.0, 0.0], [0.1, 0.1, 0.0]]), ["a", "b", "c"])
        >>> group_gains(affinity, np.array([[1, 1, 1]])).gains.round(2).tolist()
        [[0.3, 0.1, 0.1]]
    """
    gains, alone = pair_gains(affinity)
    if members is None:
        if affinity.n_tasks > MOST_LISTED:
            raise OptionError(f"`members` of all groups of {affinity.n_tasks} tasks; give those to value above {MOST_LISTED}")
        members = all_groups(affinity.n_tasks)
    members = check_members("members", members, affinity.n_tasks)
    values = mean_gains(gains, alone, members)
    return GroupGains(members, np.where(np.isfinite(values), values, np.nan), affinity.tasks)


def pair_gains(affinity: Affinity) -> tuple[Array, Array]:
    """(K, K) gains with a diagonal of 0, and (K,) the worth of a group of one: -inf where it can serve nothing.

    Raises:
        DataError: a gain that is not known.
    """
    gains, K = affinity.gains.copy(), affinity.n_tasks
    alone = np.full(K, -np.inf)
    if affinity.has_own:
        alone = np.diag(gains).copy()
    elif affinity.zero is not None:
        alone[:] = affinity.zero if affinity.higher_is_better else -affinity.zero
    np.fill_diagonal(gains, 0.0)
    if np.isnan(alone).any():
        raise DataError(f"`affinity` has no own gain for {affinity.tasks[int(np.isnan(alone).argmax())]!r}; measure it")
    if np.isnan(gains).any():
        i, j = np.argwhere(np.isnan(gains))[0]
        n = int(np.isnan(gains).sum())
        raise DataError(
            f"`affinity` of {affinity.tasks[i]!r} from {affinity.tasks[j]!r} is NaN ({n} pairs are); measure or fill them first"
        )
    return gains, alone


def all_groups(K: int) -> Members:
    """(2^K - 1, K) every group; task i is in group g where bit i of g + 1 is set."""
    return (np.arange(1, 1 << K)[:, None] >> np.arange(K) & 1).astype(bool)


def mean_gains(gains: Array, alone: Array, members: Members) -> Array:
    """(G, K) mean gain of each member from the others; -inf outside of the group and where a group of one serves nothing."""
    sizes = members.sum(axis=1)
    values = (members.astype(np.float64) @ gains.T) / np.maximum(sizes - 1, 1)[:, None]
    values[sizes == 1] = alone
    values[~members] = -np.inf
    return values
