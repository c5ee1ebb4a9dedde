"""Which groups to train under a budget, so that the tasks gain most; each task is served by its best group.

Letters: K tasks, G groups, A (K, K) gains, row = receiver, S a group, T the tasks that it serves, b groups bought.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import cast

import numpy as np

from taskloom.relate._affinity import Affinity, as_affinity
from taskloom.relate._arrays import Members
from taskloom.relate._dynamic_programme import best_partition, best_supersets, masks, worth_of_table
from taskloom.relate._groups import Groups
from taskloom.relate._milp import best_of_candidates
from taskloom.relate._pool import candidate_pool, even_cuts, improved, starting_points
from taskloom.relate._prices import Candidates
from taskloom.relate._values import MOST_LISTED, GroupGains, all_groups, mean_gains, pair_gains
from taskloom.tasks import Array, OptionError, Rows, is_number, unknown

CostOf = Callable[[tuple[str, ...]], float]
Costs = CostOf | Sequence[float] | Array | None

SOLVERS = ("auto", "dp", "milp", "pool")
# Seconds at 18 tasks with `dp`, at 16 with `milp`; each further task takes three times as long.
MOST_EXACT, MOST_MILP = MOST_LISTED, 16
_ROUNDS = 4


def select(
    gains: Affinity | GroupGains | Array,
    budget: float,
    costs: Costs = None,
    overlap: bool = True,
    solver: str = "auto",
    time_limit: float = 120.0,
) -> Groups:
    """Choose groups of total cost at most `budget` that serve every task and have the greatest sum of gains.

    A task's gain in a group is the mean of its gains from the other members, as in TAG (Fifty et al. 2021) and HOA (Standley
    et al. 2020), or what a table of groups says. A group of one is worth the task's own gain where the affinity has one; else
    its `zero`, which is the gain of learning alone; an affinity without either, such as a plain array, never leaves a task
    alone (TAG's rule). The papers enumerate or branch and bound; here the same optimum comes from

    * `dp`, a programme over subsets: groups of equal cost, to 18 tasks, exact;
    * `milp`, facility location by HiGHS: any costs, exact over all groups to 16 tasks, or over a table's groups;
    * `pool`, the same over candidates (linkage trees, spectral cuts, each task with its best partners, and moves from the
      choice in hand): any number of tasks. `Groups.gap` is then of the candidates.

    Args:
        gains: an affinity, a plain (K, K) array with row = receiver, or a table of measured or predicted group gains.
        budget: for all groups together; that of equal groups of cost 1 is their number.
        costs: of a group, by the names of its tasks; or one number for each group of a table. 1 when not given.
        overlap: whether a task may also help in groups that do not serve it.
        solver: `auto` takes the first of `dp`, `milp`, `pool` that can.
        time_limit: seconds that `milp` and `pool` may take; what they have by then comes with its gap.

    Raises:
        DataError: gains that are not known, or shapes that do not fit.
        OptionError: a budget that serves not all tasks, costs that are not positive, or a solver that cannot.
        UnknownNameError: no such solver.

    Examples:
        >>> A = np.array([[0, 5, 1, 0], [4, 0, 0, 1], [1, 0, 0, 3], [0, 1, 2, 0]])
        >>> select(A, budget=2)
        2 groups of 4 tasks by dp, value 14, the best
          1  task 1, task 2
          2  task 3, task 4
        >>> select(A, budget=1).value
        6.0
    """
    start = perf_counter()
    check_question(budget, solver, time_limit)
    if isinstance(gains, GroupGains):
        found = _of_table(gains, float(budget), _table_costs(costs, gains), overlap, solver, time_limit)
    else:
        affinity = as_affinity(gains)
        question = _Pairs(affinity, float(budget), costs, overlap, time_limit)
        found = question.answer(solver)
    return replace(found, seconds=perf_counter() - start)


def check_question(budget: float, solver: str, time_limit: float) -> None:
    """Refuse a budget or a time that is no positive number, and a solver that is none.

    Raises:
        OptionError: names it.
        UnknownNameError: no such solver.
    """
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    for name, value in {"budget": budget, "time_limit": time_limit}.items():
        if not is_number(value) or not 0 < float(value) < math.inf:
            raise OptionError(f"`{name}`={value!r}; need a positive number")


def _table_costs(costs: Costs, table: GroupGains) -> Array:
    """(G,) of a table's groups."""
    if costs is None:
        return np.asarray(table.costs)
    if callable(costs):
        return costs_of(cast("CostOf", costs), table.members, table.tasks or [])
    given = np.asarray(costs, dtype=np.float64)
    if given.shape != (table.n_groups,) or not (np.isfinite(given) & (given > 0)).all():
        raise OptionError(f"`costs` has shape {given.shape}; need ({table.n_groups},) positive numbers, one for each group")
    return given


def costs_of(costs: CostOf, members: Members, tasks: Sequence[str]) -> Array:
    """(G,) what a function asks for each group."""
    out = np.zeros(len(members))
    for g, row in enumerate(members):
        names = tuple(tasks[i] for i in np.flatnonzero(row))
        cost = costs(names)
        if not is_number(cost) or not 0 < cost < math.inf:
            shown = cost if is_number(cost) else repr(cost)
            raise OptionError(f"`costs` gives {shown} for the group {', '.join(names)}; need a positive number")
        out[g] = cost
    return out


class _Pairs:
    """The question put with pairwise gains."""

    def __init__(self, affinity: Affinity, budget: float, costs: Costs, overlap: bool, time_limit: float) -> None:
        if costs is not None and not callable(costs):
            raise OptionError("`costs` is a list, but pairwise gains name no groups; give a function of a group's task names")
        self.gains, self.alone = pair_gains(affinity)
        self.affinity, self.budget, self.costs, self.overlap, self.time_limit = affinity, budget, costs, overlap, time_limit
        self.tasks, self.K = tuple(affinity.tasks), affinity.n_tasks
        if self.K == 1 and not np.isfinite(self.alone[0]):
            self.alone = np.zeros(1)

    def answer(self, solver: str) -> Groups:
        """By the solver, or by the first that can."""
        if solver == "auto":
            equal = self.costs is None and self.K <= MOST_EXACT
            solver = "dp" if equal else "milp" if self.K <= MOST_MILP else "pool"
        if solver == "dp":
            return self._by_programme()
        return self._by_milp() if solver == "milp" else self._by_pool()

    def _by_programme(self) -> Groups:
        if self.costs is not None:
            raise OptionError("`solver`='dp' counts groups and knows no `costs`; use 'milp' or 'pool'")
        if self.K > MOST_EXACT:
            raise OptionError(f"`solver`='dp' lists all subsets, too many of {self.K} tasks; use 'pool' above {MOST_EXACT}")
        worth = np.zeros(1 << self.K)
        everything = all_groups(self.K)
        worth[1:], _ = self.worth(everything)
        blocks = best_partition(worth, _count(self.budget, 1.0))
        _, sets = self.worth(everything[np.array(blocks) - 1])
        return _groups(self.tasks, sets, mean_gains(self.gains, self.alone, sets), np.ones(len(sets)), "dp")

    def worth(self, served: Members) -> tuple[Array, Members]:
        """(M,) the most that one group is worth to tasks (M, K) that it serves together, and (M, K) that group."""
        if self.overlap:
            return best_supersets(self.gains, self.alone, served)
        return np.where(served, mean_gains(self.gains, self.alone, served), 0.0).sum(axis=1), served

    def _by_milp(self) -> Groups:
        if self.K > MOST_MILP:
            raise OptionError(f"`solver`='milp' lists all groups, too many of {self.K} tasks; use 'pool' above {MOST_MILP}")
        sets = all_groups(self.K)
        return self._solved(sets, self._costs(sets), "milp", self.time_limit)

    def _costs(self, sets: Members) -> Array:
        return np.ones(len(sets)) if self.costs is None else costs_of(cast("CostOf", self.costs), sets, self.tasks)

    def _solved(self, sets: Members, costs: Array, method: str, time_limit: float) -> Groups:
        values = mean_gains(self.gains, self.alone, sets)
        return _by_candidates(self.tasks, Candidates(values, sets, costs, self.budget, self.overlap), method, time_limit)

    def _by_pool(self) -> Groups:
        """The best of the pool; then the pool grows by what is near that choice, as long as that helps."""
        end = perf_counter() + self.time_limit
        pool = candidate_pool(self.gains, self.alone, self.affinity.similarity())
        many = int(np.clip(self.budget / np.median(self._costs(pool)), 1, self.K))
        near = [improved(self.worth, start) for start in starting_points(self.affinity.similarity(), many)]
        cuts = [] if self.costs is None else [even_cuts(self.affinity.similarity(), self.alone)]
        pool = np.unique(np.concatenate([pool, *near, *cuts]), axis=0)
        costs = self._costs(pool)
        best = self._solved(pool, costs, "pool", self.time_limit)
        for _ in range(_ROUNDS):
            serving = np.arange(max(many, len(best.sets)))[:, None] == best.labels
            near = np.unique(improved(self.worth, serving), axis=0)
            near = near[~np.isin(_keys(near), _keys(pool))]
            if not len(near) or perf_counter() > end:
                break
            pool, costs = np.concatenate([pool, near]), np.concatenate([costs, self._costs(near)])
            better = self._solved(pool, costs, "pool", max(end - perf_counter(), 0.1))
            done, best = better.value <= best.value + 1e-12 * abs(best.value), max(better, best, key=lambda each: each.value)
            if done:
                break
        return best


def _keys(sets: Members) -> Array:
    """(M,) one value for each set."""
    packed = np.ascontiguousarray(np.packbits(sets, axis=1))
    return packed.view(np.dtype((np.void, packed.shape[1]))).ravel()


def _of_table(table: GroupGains, budget: float, costs: Array, overlap: bool, solver: str, time_limit: float) -> Groups:
    """The question put with a table of groups."""
    members, K = table.members, table.n_tasks
    values = np.where(np.isnan(table.gains), -np.inf, table.gains)
    tasks = tuple(table.tasks or ())
    numbers = masks(members) if K <= MOST_EXACT else np.zeros(2, dtype=np.int64)
    countable = bool(np.ptp(costs) == 0) and len(np.unique(numbers)) == len(numbers)
    if solver == "pool":
        raise OptionError("`solver`='pool' makes groups out of pairwise gains; a table has its own, use 'auto'")
    if solver == "dp" and not countable:
        raise OptionError(f"`solver`='dp' needs different groups of equal cost and at most {MOST_EXACT} tasks; use 'milp'")
    if solver == "milp" or not countable or (solver == "auto" and K > MOST_MILP):
        return _by_candidates(tasks, Candidates(values, members, costs, budget, overlap), "milp", time_limit)
    listed = np.full((1 << K, K), -np.inf)
    listed[numbers] = values
    blocks = best_partition(worth_of_table(listed, overlap), _count(budget, float(costs[0])))
    if not blocks:
        raise OptionError(f"`budget`={budget:g} buys no groups of the table that serve all tasks; raise it or list more groups")
    chosen = [_best_row(numbers, values, block, overlap) for block in blocks]
    return _groups(tasks, members[chosen], values[chosen], costs[chosen], "dp")


def _best_row(numbers: Rows, values: Array, block: int, overlap: bool) -> int:
    """The group that is worth most to the tasks of a block."""
    serves = np.flatnonzero(block >> np.arange(values.shape[1]) & 1)
    fits = np.flatnonzero((numbers & block) == block if overlap else numbers == block)
    return int(fits[values[np.ix_(fits, serves)].sum(axis=1).argmax()])


def _count(budget: float, cost: float) -> int:
    """How many groups of one cost a budget buys."""
    count = math.floor(budget / cost + 1e-9)
    if not count:
        raise OptionError(f"`budget`={budget:g} buys no group, each costs {cost:g}; raise it")
    return count


def _by_candidates(tasks: tuple[str, ...], given: Candidates, method: str, time_limit: float) -> Groups:
    choice = best_of_candidates(given, time_limit)
    rows = np.unique(choice.serving)
    return _groups(tasks, given.members[rows], given.values[rows], given.costs[rows], method, choice.bound)


def _groups(
    tasks: tuple[str, ...], sets: Members, values: Array, costs: Array, method: str, bound: float | None = None
) -> Groups:
    """Chosen sets with what they are worth (b, K); those that are not missed are left out."""
    rows = list(range(len(sets)))
    best = values.max(axis=0)
    slack = 1e-12 * max(float(np.abs(best).sum()), 1e-300)
    for row in sorted(rows, key=lambda row: -costs[row]):
        rest = [other for other in rows if other != row]
        if rest and values[rest].max(axis=0).sum() >= best.sum() - slack:
            rows = rest
    home = values[rows].argmax(axis=0)
    # In the order of the first task that each serves.
    firsts = [int((home == place).argmax()) for place in range(len(rows))]
    rows = [rows[place] for place in np.argsort(firsts)]
    home = values[rows].argmax(axis=0)
    gains = values[rows][home, np.arange(len(tasks))]
    total = math.fsum(gains.tolist())
    return Groups(
        tasks,
        tuple(tuple(tasks[i] for i in np.flatnonzero(sets[row])) for row in rows),
        {task: int(place) for task, place in zip(tasks, home, strict=True)},
        {task: float(gain) for task, gain in zip(tasks, gains, strict=True)},
        method,
        total if bound is None else max(bound, total),
        method != "pool",
        tuple(costs[rows].tolist()),
    )
