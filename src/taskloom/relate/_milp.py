"""The best groups out of a list of candidates with costs: facility location as an integer programme.

Maximise the gains of all tasks, each served by one chosen group that holds it, with groups of total cost at most B. Prices
(`_prices`) bound what any choice with a given group, or with a given task served by it, can be worth: what cannot beat a
choice in hand is left out, and HiGHS decides the rest.

Letters: K tasks, G candidates, v (G, K) what each is worth to each task, B budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from taskloom.relate._arrays import Members
from taskloom.relate._prices import CLOSE, Candidates, Found, find_prices
from taskloom.tasks import Array, OptionError, Rows

# Gains are stretched to this range: HiGHS stops at an absolute gap of 1e-6.
_RANGE = 100.0
# So many groups that add most are tried first, to have a good choice in hand.
_FIRST = 150
# HiGHS meets its constraints to about 1e-7; nothing this close to the best is left out.
_SLACK = 1e-4
# The scale is set anew where what no good choice can use makes it so many times too coarse.
_FINER = 10.0


@dataclass(frozen=True)
class Choice:
    """Which candidate serves each task (K,), and what no choice of candidates can exceed."""

    serving: Rows
    bound: float


def best_of_candidates(given: Candidates, time_limit: float) -> Choice:
    """Solve it to a gap of nothing, or as far as the time goes.

    Raises:
        OptionError: the budget is too small for any choice that serves all tasks, or time ran out before one was found.
    """
    deadline = perf_counter() + time_limit
    finite = np.isfinite(given.values)
    usable = finite.any(axis=1) if given.overlap else (finite == given.members).all(axis=1)
    usable = np.flatnonzero(usable & (given.costs <= given.budget * (1 + 1e-12)))
    given = given.take(usable)
    if not np.isfinite(given.values).any(axis=0).all():
        raise OptionError(f"`budget`={given.budget:g} buys no group for one of the tasks; raise it or lower the costs")
    known: Rows | None = None
    while True:
        unit, choice = _solved(given, known, deadline)
        # A gain far below all others makes the scale too coarse to tell these apart; no choice as good as this one has it.
        rows, useful = _useful(given, choice.serving)
        if not _unit(useful) < unit / _FINER or perf_counter() > deadline:
            return replace(choice, serving=usable[choice.serving])
        given, usable, known = useful, usable[rows], np.searchsorted(rows, choice.serving)


def _solved(given: Candidates, known: Rows | None, deadline: float) -> tuple[float, Choice]:
    """The best choice, no worse than one that is known, and the unit of the scale that it was found on."""
    scaled, unit, undo = _scaled(given)
    # Half of the time at most: an integer programme of what is left proves more than further steps.
    found = find_prices(scaled, (perf_counter() + deadline) / 2)
    if known is not None:
        _keep_better(found, (known, float(scaled.values[known, np.arange(len(known))].sum()), -np.inf))
    bound = found.judged.bound
    if found.gap > CLOSE:
        bound = min(bound, _finished(scaled, found, deadline))
    if found.serving is None:
        raise OptionError(
            f"`budget`={given.budget:g} buys no groups among the candidates that serve all tasks, or `time_limit` was too "
            "short; raise it"
        )
    return unit, Choice(found.serving, undo(max(bound, found.value)))


def _finished(given: Candidates, found: Found, deadline: float) -> float:
    """Find the best choice by integer programmes; its bound."""
    judged = found.judged
    first = np.zeros(len(judged.adds), dtype=bool)
    first[np.argsort(-judged.adds, kind="stable")[:_FIRST]] = True
    able = np.isfinite(given.values)
    falls = np.minimum(judged.adds, 0.0)[:, None]
    if given.overlap:
        falls = falls + np.minimum(judged.served, 0.0)
    _keep_better(found, _integer(given, able & first[:, None] & _may_win(judged.bound + falls, found), deadline))
    kept = able & _may_win(judged.bound + falls, found)
    return _keep_better(found, _integer(given, kept, deadline))


def _may_win(bounds: Array, found: Found) -> Members:
    """Where a bound reaches the choice in hand."""
    return bounds >= found.value - _SLACK


def _keep_better(found: Found, solved: tuple[Rows | None, float, float]) -> float:
    """Take over a better choice; the bound of the programme."""
    serving, value, bound = solved
    if serving is not None and value > found.value:
        found.serving, found.value = serving, value
    return max(bound, found.value)


def _below(given: Candidates) -> Array:
    """(G, K) gains of each task from 0 downwards, -inf where a group cannot serve it."""
    return given.values - given.values.max(axis=0)


def _unit(given: Candidates) -> float:
    below = _below(given)
    return float(-below[np.isfinite(below)].min()) / _RANGE


def _scaled(given: Candidates) -> tuple[Candidates, float, Callable[[float], float]]:
    """Gains of each task from 0 downwards, stretched; their unit, and the way back from a total."""
    unit, total = _unit(given), float(given.values.max(axis=0).sum())
    return replace(given, values=_below(given) / (unit or 1.0)), unit, lambda bound: total + (unit or 1.0) * bound


def _useful(given: Candidates, serving: Rows) -> tuple[Rows, Candidates]:
    """Candidates, by their rows, of which a choice may be as good as the one in hand, and what they may serve in it."""
    below = _below(given)
    lost = float(below[serving, np.arange(len(serving))].sum()) * (1 + 1e-9)
    if not given.overlap:
        rows = np.flatnonzero(np.where(given.members, below, 0.0).sum(axis=1) >= lost)
        return rows, given.take(rows)
    values = np.where(below >= lost, given.values, -np.inf)
    rows = np.flatnonzero(np.isfinite(values).any(axis=1))
    return rows, replace(given, values=values).take(rows)


def _integer(given: Candidates, kept: Members, deadline: float) -> tuple[Rows | None, float, float]:
    """The integer programme over pairs (candidate, task it may serve): who serves each task, its value, a bound of any such."""
    K = kept.shape[1]
    rows = np.flatnonzero(kept.any(axis=1))
    if not kept.any(axis=0).all():
        return None, -np.inf, -np.inf
    kept, members, values = kept[rows], given.members[rows], given.values[rows]
    place, task = np.nonzero(kept)
    n, m = len(rows), len(place)
    pairs = n + np.arange(m)
    once = coo_array((np.ones(m), (task, pairs)), shape=(K, n + m))
    # A task is served by what is chosen; without overlap a chosen group serves all it holds.
    ends = (np.tile(np.arange(m), 2), np.append(pairs, place))
    link = coo_array((np.repeat([1.0, -1.0], m), ends), shape=(m, n + m))
    spent = coo_array((given.costs[rows], (np.zeros(n, dtype=int), np.arange(n))), shape=(1, n + m))
    result = milp(
        np.append(np.zeros(n), -values[place, task]),
        integrality=np.append(np.ones(n), np.zeros(m)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(once.tocsr(), 1, 1),
            LinearConstraint(link.tocsr(), -np.inf if given.overlap else 0, 0),
            LinearConstraint(spent.tocsr(), -np.inf, given.budget),
        ],
        options={"mip_rel_gap": 0, "time_limit": max(deadline - perf_counter(), 0.1)},
    )
    bound = -result.mip_dual_bound if result.mip_dual_bound is not None else np.inf
    if result.x is None:
        return None, -np.inf, -np.inf if result.status == 2 else bound
    chosen = np.flatnonzero(result.x[:n] > 0.5)
    reached = np.where(members[chosen], values[chosen], -np.inf)
    best = reached.argmax(axis=0)
    return rows[chosen[best]], float(reached[best, np.arange(K)].sum()), bound
