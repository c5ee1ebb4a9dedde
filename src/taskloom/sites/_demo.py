"""The demonstration: related tasks at sites of which one is slow, learned with and without waiting for it.

Letters: K tasks, n rows of a task, d features, r rank of what the tasks share.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from taskloom.linear import Trace
from taskloom.sites._delays import OffsetDelays
from taskloom.sites._fit import TRANSPORTS, fit
from taskloom.sites._methods import get_method
from taskloom.sites._result import SitesResult
from taskloom.sites._session import Observer, Session
from taskloom.tasks import Array, OptionError, unknown

D, RANK, NOISE, STRENGTH = 30, 3, 0.5, 0.1


@dataclass(frozen=True)
class DemoOptions:
    """What the demonstration runs.

    Attributes:
        sites: how many, 2 or more; each holds one task.
        straggler: how many times slower than the others the last site is.
        methods: to compare, in this order.
        transport: `threads`, `processes` or `simulated`.
        seconds: after which a run is ended, counted from when all sites have joined.
        delay: mean seconds of a round trip of a site that is not slow.
        gap: relative gap at which a run is over.
        seed: of the data and of the delays.

    Raises:
        OptionError: a value outside of what it may be.
        UnknownNameError: an unknown method or transport.
    """

    sites: int = 8
    straggler: float = 5.0
    methods: tuple[str, ...] = ("local-prox", "smtl-fista")
    transport: str = "threads"
    seconds: float = 6.0
    delay: float = 0.01
    gap: float = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.sites <= 500:
            raise OptionError(f"`sites`={self.sites!r}: need 2 to 500")
        if not 1 <= self.straggler < np.inf:
            raise OptionError(f"`straggler`={self.straggler!r}: need a factor of 1 or more; 1 for no slow site")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise OptionError(f"`methods`={','.join(self.methods)!r}: name at least one method, and each once")
        for name in self.methods:
            get_method(name)
        if self.transport not in TRANSPORTS:
            raise unknown("transport", self.transport, TRANSPORTS)
        for name in ("seconds", "delay", "gap"):
            if not 0 < getattr(self, name) < np.inf:
                raise OptionError(f"`{name}`={getattr(self, name)!r}: need a positive number")
        if self.seed < 0:
            raise OptionError(f"`seed`={self.seed!r}: need a whole number of 0 or more")

    @property
    def slow(self) -> str:
        """Name of the slow site."""
        return f"site {self.sites}"


def demo_tasks(sites: int, seed: int = 0) -> dict[str, tuple[Array, Array]]:
    """Related regression tasks, one for each site: (X_t, y_t) by its name.

    Their true coefficients have rank 3; X_t has 20 to 79 rows of 30 features, whose deviations fall from 1 to 0.2; the noise of
    y has deviation 0.5. Everything is drawn from the seed.

    Args:
        sites: K.
        seed: of all.

    Examples:
        >>> {name: X.shape for name, (X, _) in demo_tasks(2).items()}
        {'site 1': (42, 30), 'site 2': (73, 30)}
    """
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(D, RANK)) @ rng.normal(size=(RANK, sites)) / np.sqrt(RANK)
    tasks = {}
    for t in range(sites):
        n = int(rng.integers(20, 80))
        X = rng.normal(size=(n, D)) * np.geomspace(1, 0.2, D)
        tasks[f"site {t + 1}"] = (X, X @ truth[:, t] + NOISE * rng.normal(size=n))
    return tasks


Show = Callable[[str], AbstractContextManager[Observer | None]]


def unwatched(method: str) -> AbstractContextManager[Observer | None]:  # noqa: ARG001
    """A context in which nobody looks."""
    return nullcontext()


def run_demo(options: DemoOptions, show: Show = unwatched) -> dict[str, SitesResult]:
    """Run each method on the same tasks, one after the other.

    All minimise the same: the mean squared losses of the tasks, halved, plus the trace norm times 0.1.

    Args:
        options: what to run.
        show: makes, out of the name of a method, a context in which the run is watched, such as `live_view`.

    Examples:
        >>> runs = run_demo(DemoOptions(sites=4, transport="simulated"))
        >>> {name: run.converged for name, run in runs.items()}
        {'local-prox': True, 'smtl-fista': True}
    """
    tasks = demo_tasks(options.sites, options.seed)
    results = {}
    for method in options.methods:
        with show(method) as watcher:
            results[method] = fit(
                tasks,
                Trace(STRENGTH),
                method=method,
                transport=options.transport,
                delays=OffsetDelays(options.delay, slow={options.slow: options.straggler}),
                seed=options.seed,
                tol=0,
                gap=options.gap,
                callback=_Limit(options.seconds, watcher),
            )
    return results


class _Limit:
    """Ends a run some time after all sites have joined: processes take seconds to come up."""

    def __init__(self, seconds: float, watcher: Observer | None) -> None:
        self.seconds, self.watcher = seconds, watcher
        self._began: float | None = None

    def __call__(self, session: Session) -> None:
        if self._began is None and all(np.isfinite(site.asked_at) for site in session.coordinator.sites.values()):
            self._began = session.now
        if self._began is not None and session.now - self._began > self.seconds:
            session.coordinator.stop()
        if self.watcher is not None:
            self.watcher(session)
