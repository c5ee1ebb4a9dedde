"""What a run over sites leaves behind.

Letters: K tasks, d features, W (d, K) coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from taskloom.sites._coordinator import SiteRecord
from taskloom.sites._session import Look, Trip
from taskloom.tasks import Array, DataError, unknown


@dataclass
class SitesResult:
    """A linear model of K tasks, learned over sites, and how it came about.

    Attributes:
        W: (d, K) coefficients.
        intercepts: (K,); NaN for a task whose site was gone at the end.
        tasks: K names.
        converged: whether the tolerance was reached.
        message: why the run ended, and what keeps it from being converged.
        method: its name.
        sites: the last record of each site: updates, staleness, refused messages.
        trips: all round trips, in the order of arrival.
        looks: at the model, with time, updates, W and, where the rows were at hand, objective and gap.
        seconds: of the run's clock.
        notes: what went wrong on the way: sites that failed.

    Examples:
        >>> from taskloom.linear import Trace
        >>> from taskloom.sites import fit
        >>> rng = np.random.default_rng(0)
        >>> X = [rng.normal(size=(20, 3)) for _ in range(4)]
        >>> result = fit([(each, each @ [1.0, 2.0, 0.0]) for each in X], Trace(0.1), transport="simulated", gap=1e-8)
        >>> result.W.shape, result.converged
        ((3, 4), True)
    """

    W: Array
    intercepts: Array
    tasks: list[str]
    converged: bool
    message: str
    method: str
    sites: dict[str, SiteRecord]
    trips: list[Trip] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def updates(self) -> int:
        """Of all sites together."""
        return sum(site.updates for site in self.sites.values())

    @property
    def objective(self) -> float:
        """Losses plus penalty at W; NaN where the rows were not at hand."""
        last = self.looks[-1].certificate if self.looks else None
        return np.nan if last is None else last.objective

    @property
    def gap(self) -> float:
        """How far above the optimum the objective can be at most, relative; NaN where the rows were not at hand."""
        last = self.looks[-1].certificate if self.looks else None
        return np.nan if last is None else last.relative

    @property
    def history(self) -> dict[str, Array]:
        """`time`, `updates`, `objective` and `gap` of every look, as columns."""
        judged = [look.certificate for look in self.looks]
        return {
            "time": np.array([look.time for look in self.looks]),
            "updates": np.array([look.version for look in self.looks]),
            "objective": np.array([np.nan if each is None else each.objective for each in judged]),
            "gap": np.array([np.nan if each is None else each.relative for each in judged]),
        }

    @property
    def staleness(self) -> dict[str, Array]:
        """Delay in updates of every trip of each site."""
        return {name: np.array([trip.staleness for trip in self.trips if trip.site == name], dtype=int) for name in self.sites}

    def predict(self, X: Any, task: str | int) -> Array:
        """(n,) scores of one task; the class is their sign where labels are.

        Args:
            X: (n, d).
            task: its name, or number from 0 on.

        Raises:
            UnknownNameError: there is no such task.
            DataError: X has another number of features, or the task's intercept is not known.
        """
        if isinstance(task, str) and task not in self.tasks:
            raise unknown("task", task, self.tasks)
        t = self.tasks.index(task) if isinstance(task, str) else task
        if X.shape[1] != len(self.W):
            raise DataError(f"`X` has {X.shape[1]} features; the model has {len(self.W)}")
        if np.isnan(self.intercepts[t]):
            raise DataError(f"`task`={self.tasks[t]!r} has no intercept here: its site was gone at the end, or withheld it")
        return X @ self.W[:, t] + self.intercepts[t]
