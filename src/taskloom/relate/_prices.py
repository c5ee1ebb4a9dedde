"""Prices of serving tasks, and the bound that they put on every choice of groups under a budget.

When the rule that each task is served once is replaced by a price for each, every group can be judged on its own. Whatever the
prices are, what the best groups are then worth is an upper bound (Lagrangian relaxation); a subgradient method lowers it.
The groups that it picks on the way, each task served by the best of them, are choices in their own right.

Letters: K tasks, G candidates, v (G, K) what each is worth to each task, c (G,) costs, B budget, p (K,) price of a
task, q price of a unit of cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from taskloom.relate._arrays import Members
from taskloom.tasks import Array, Rows

_ROUNDS = 800
# Rounds without a lower bound until the steps become shorter, and by how much.
_PATIENCE, _SHORTER = 15, 0.7
# Share of the last direction that is kept, which damps zigzags.
_KEEP = 0.6
# Bounds and values that are this close are the same.
CLOSE = 1e-7


@dataclass(frozen=True)
class Candidates:
    """Groups to choose from.

    Attributes:
        values: (G, K), -inf where a group cannot serve a task.
        members: (G, K).
        costs: (G,).
        budget: for all groups that are chosen.
        overlap: whether a group may hold tasks that another one serves.
    """

    values: Array
    members: Members
    costs: Array
    budget: float
    overlap: bool = True

    def take(self, rows: Rows) -> Candidates:
        """Some of them."""
        return replace(self, values=self.values[rows], members=self.members[rows], costs=self.costs[rows])


@dataclass(frozen=True)
class Judged:
    """What prices say.

    Attributes:
        bound: no choice is worth more.
        adds: (G,) what each candidate is worth above the prices; below 0 the bound falls by that much where it must be chosen.
        served: (G, K) gains above the price, -inf where a group cannot serve.
        picked: candidates, the best first, that the budget buys; the last may be bought in part.
        shares: how much of each.
    """

    bound: float
    adds: Array
    served: Array
    picked: Rows
    shares: Array


@dataclass
class Found:
    """The best bound, and the best choice met on the way.

    Attributes:
        judged: by the prices with the least bound.
        serving: (K,) candidate that serves each task; None where no choice was met.
        value: of that choice, else -inf.
    """

    judged: Judged
    serving: Rows | None = None
    value: float = -np.inf

    @property
    def gap(self) -> float:
        """Of the bound over the value."""
        return self.judged.bound - self.value


def find_prices(given: Candidates, deadline: float) -> Found:
    """Lower the bound by subgradient steps, as long as a straight line would need to reach the best value met."""
    prices = at_best = _first_prices(given)
    found = Found(judge(given, prices))
    one = given.values.sum(axis=1)
    if np.isfinite(one.max()):
        found.serving, found.value = np.full(len(prices), one.argmax()), float(one.max())
    scale, stalled, direction = 1.5, 0, np.zeros(len(prices))
    for _ in range(_ROUNDS):
        judged = judge(given, prices)
        _note_choice(given, judged, found)
        stalled += 1
        if judged.bound < found.judged.bound:
            found.judged, at_best, stalled = judged, prices, 0
        if found.gap <= CLOSE or perf_counter() > deadline:
            break
        if stalled >= _PATIENCE:
            scale, stalled, prices, direction = scale * _SHORTER, 0, at_best, np.zeros(len(prices))
            continue
        serves = judged.served[judged.picked] > 0 if given.overlap else given.members[judged.picked]
        direction = 1 - judged.shares @ serves + _KEEP * direction
        length = float(direction @ direction)
        if length < CLOSE**2:
            break
        away = judged.bound - found.value if np.isfinite(found.value) else 0.1 * max(abs(judged.bound), 1.0)
        prices = prices - scale * away / length * direction
    return found


def judge(given: Candidates, prices: Array) -> Judged:
    """The bound of some prices, valid whatever they are, and the groups that reach it."""
    served = given.values - prices
    surplus = np.maximum(served, 0.0).sum(axis=1) if given.overlap else np.where(given.members, served, 0.0).sum(axis=1)
    rates = surplus / given.costs
    # Enough of the best that the budget is spent.
    n = min(len(rates), int(given.budget / given.costs.min()) + 1)
    best = np.argpartition(-rates, n - 1)[:n]
    best = best[np.argsort(-rates[best], kind="stable")]
    spent = np.cumsum(given.costs[best])
    whole = int(np.searchsorted(spent, given.budget * (1 + 1e-12), side="right"))
    rate = max(float(rates[best[whole]]), 0.0) if whole < n else 0.0
    adds = surplus - rate * given.costs
    bound = float(prices.sum() + rate * given.budget + np.maximum(adds, 0.0).sum())
    shares = np.zeros(n)
    shares[:whole] = 1.0
    if whole < n:
        shares[whole] = max(given.budget - (spent[whole - 1] if whole else 0.0), 0.0) / given.costs[best[whole]]
    wanted = (shares > 0) & (rates[best] > 0)
    return Judged(bound, adds, served, best[wanted], shares[wanted])


def _first_prices(given: Candidates) -> Array:
    """What the greatest group is worth, and half of the range where it serves nothing."""
    finite = np.isfinite(given.values)
    greatest = int(finite.sum(axis=1).argmax())
    middle = given.values.min(axis=0, where=finite, initial=np.inf) + given.values.max(axis=0)
    return np.where(finite[greatest], given.values[greatest], middle / 2)


def _note_choice(given: Candidates, judged: Judged, found: Found) -> None:
    """Keep what was picked, if it is a choice and the best so far."""
    whole = judged.picked[judged.shares == 1]
    if not len(whole) or (not given.overlap and (given.members[whole].sum(axis=0) != 1).any()):
        return
    values = given.values[whole]
    total = float(values.max(axis=0).sum())
    if total > found.value:
        found.value, found.serving = total, whole[values.argmax(axis=0)]
