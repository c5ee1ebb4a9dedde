"""Who waited, and how far a run was at a time: what reports and the live view show, out of the trips of a run.

Letters: m round trips of one site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from taskloom.sites._result import SitesResult
from taskloom.sites._session import Trip
from taskloom.tasks import Array

# Gaps below this are nothing but rounding.
SMALLEST = 1e-15


@dataclass(frozen=True)
class Timeline:
    """What one site did with its time, from its first answer to its last update.

    Attributes:
        away: (m, 2) from when to when an answer was on its way, worked on, or on its way back as columns that were taken.
        waits: (m, 2) the time between: the site waited for the coordinator. Trips that brought nothing, because a message was
            lost or the step had changed meanwhile, leave no trace and fall in here.
    """

    away: Array
    waits: Array

    @property
    def waited(self) -> float:
        """Share of `waits`; 0 where nothing came of the site."""
        waits, away = (float(np.diff(spans).sum()) for spans in (self.waits, self.away))
        return waits / (waits + away) if waits + away > 0 else 0.0


def timeline(trips: Sequence[Trip], site: str) -> Timeline:
    """What a site did with its time.

    A trip whose start is not known, because the coordinator was loaded from a file meanwhile, is left out.

    Args:
        trips: of a run, in the order of arrival.
        site: its name.

    Examples:
        >>> each = timeline([Trip("a", 0.0, 2.0, 1, 0, 1.0), Trip("a", 3.0, 5.0, 3, 1, 0.5)], "a")
        >>> each.waits.tolist(), each.waited
        ([[2.0, 3.0]], 0.2)
    """
    away = np.array([(trip.asked_at, trip.arrived_at) for trip in trips if trip.site == site]).reshape(-1, 2)
    return Timeline(_spans(away), _spans(np.stack([away[:-1, 1], away[1:, 0]], axis=1)))


def _spans(pairs: Array) -> Array:
    """Those of a known, positive length."""
    with np.errstate(invalid="ignore"):
        return pairs[np.isfinite(pairs).all(axis=1) & (pairs[:, 1] > pairs[:, 0])]


def under_way(result: SitesResult) -> float:
    """When half of the sites had their first answer that led to an update: processes take seconds to come up."""
    first: dict[str, float] = {}
    for trip in result.trips:
        first.setdefault(trip.site, trip.asked_at)
    known = sorted(time for time in first.values() if np.isfinite(time))
    return known[len(known) // 2] if known else 0.0


@dataclass(frozen=True)
class RunSummary:
    """A run in a line.

    Attributes:
        name: of the run.
        seconds: from when it was under way to its end.
        slowest: updates of the site with the fewest.
        fastest: updates of the site with the most.
        waited: share of their time that the sites waited for the coordinator, or were on trips that brought nothing; mean.
        gap: the least relative gap; NaN where none is known.
        level: the power of ten that the best of the compared runs got below.
        reached: seconds from when it was under way to `level`; NaN for never, and where no gap is known.
    """

    name: str
    seconds: float
    slowest: int
    fastest: int
    waited: float
    gap: float
    level: float
    reached: float


def compare_runs(results: Mapping[str, SitesResult]) -> list[RunSummary]:
    """Runs in a line each, in the order that they are given in.

    Args:
        results: of runs on the same tasks, by the names to show.

    Examples:
        >>> from taskloom.linear import Trace
        >>> from taskloom.sites import fit
        >>> rng = np.random.default_rng(0)
        >>> pairs = [(X, X @ np.ones(3)) for X in rng.normal(size=(4, 20, 3))]
        >>> runs = {m: fit(pairs, Trace(0.1), method=m, transport="simulated", delays=1.0) for m in ("local-prox", "smtl")}
        >>> fast, slow = compare_runs(runs)
        >>> fast.waited < slow.waited
        True
    """
    least = [gap for gap in (_least_gap(result) for result in results.values()) if np.isfinite(gap)]
    level = float(f"1e{math.ceil(math.log10(max(min(least), SMALLEST)))}") if least else np.nan
    return [_summary(name, result, level) for name, result in results.items()]


def _least_gap(result: SitesResult) -> float:
    gaps = result.history["gap"]
    return float(np.nanmin(gaps)) if np.isfinite(gaps).any() else np.nan


def _summary(name: str, result: SitesResult, level: float) -> RunSummary:
    updates = [site.updates for site in result.sites.values()]
    waited = [timeline(result.trips, site).waited for site in result.sites]
    history = result.history
    there, begin = np.flatnonzero(history["gap"] <= level), under_way(result)
    reached = max(float(history["time"][there[0]]) - begin, 0.0) if len(there) else np.nan
    return RunSummary(
        name, result.seconds - begin, min(updates), max(updates), float(np.mean(waited)), _least_gap(result), level, reached
    )


def describe_runs(runs: Sequence[RunSummary]) -> str:
    """The comparison in a sentence; empty where there is none to make.

    Examples:
        >>> describe_runs([RunSummary("a", 1.0, 1, 1, 0.0, 9e-6, 1e-5, 0.5), RunSummary("b", 4.0, 1, 1, 0.5, 8e-6, 1e-5, 2.0)])
        'To a relative gap of 1e-05: a 0.50 s, b 2.00 s (4.0 times as long).'
    """
    there = [run for run in runs if np.isfinite(run.reached)]
    if not there:
        return ""
    least = min(run.reached for run in there)
    each = [
        f"{run.name} {run.reached:.2f} s" + (f" ({run.reached / least:.1f} times as long)" if run.reached > least > 0 else "")
        for run in there
    ]
    others = [f"{run.name} ({run.gap:.1e})" for run in runs if np.isfinite(run.gap) and not np.isfinite(run.reached)]
    never = f"; not reached by {', '.join(others)}" if others else ""
    return f"To a relative gap of {runs[0].level:.0e}: {', '.join(each)}{never}."
