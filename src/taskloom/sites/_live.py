"""A run over sites as it goes, for whoever looks at a terminal: per site what came of it, and how long it waited."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
from rich import box
from rich.bar import Bar
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from taskloom.sites._session import Observer, Session

# Seconds between two pictures.
REFRESH = 0.2
# Sites that fit on a screen.
MOST_ROWS = 30


@contextmanager
def live_view(
    title: str = "", *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Generator[Observer]:
    """A live table of a run, for `fit(callback=...)`; it goes when the block ends, and nothing is shown in a pipe.

    For each site: its updates, how stale the last one was, how long ago it was seen, and a bar for the share of its time that
    it has waited for the coordinator.

    Args:
        title: over the table.
        console: to draw on; default standard error.
        clock: gives seconds: the table is drawn five times a second at the most.

    Examples:
        >>> from taskloom.linear import Trace
        >>> from taskloom.sites import fit
        >>> rng = np.random.default_rng(0)
        >>> pairs = [(X, X @ np.ones(3)) for X in rng.normal(size=(4, 20, 3))]
        >>> with live_view("four wards") as view:
        ...     result = fit(pairs, Trace(0.1), callback=view)
    """
    console = Console(stderr=True) if console is None else console
    if not console.is_terminal:
        yield lambda session: None  # noqa: ARG005 - the parameter's name is part of the protocol
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield _View(title, live, clock)


class _View:
    """Draws a session now and then; the sums of waiting are kept from one picture to the next."""

    def __init__(self, title: str, live: Live, clock: Callable[[], float]) -> None:
        self.title, self.live, self.clock = title, live, clock
        self._drawn = -np.inf
        self._has_ended = False
        self._read = 0
        self._waited: dict[str, float] = {}
        self._arrived: dict[str, float] = {}

    def __call__(self, session: Session) -> None:
        """Draw, if the last picture is old enough."""
        now = self.clock()
        ends = session.is_over and not self._has_ended
        if now - self._drawn < REFRESH and not ends:
            return
        self._drawn, self._has_ended = now, session.is_over
        trips = session.recorder.trips
        for trip in trips[self._read :]:
            wait = trip.asked_at - self._arrived.get(trip.site, 0.0)
            self._waited[trip.site] = self._waited.get(trip.site, 0.0) + max(wait if np.isfinite(wait) else 0.0, 0.0)
            self._arrived[trip.site] = trip.arrived_at
        self._read = len(trips)
        self.live.update(self._table(session), refresh=True)

    def _table(self, session: Session) -> Table:
        coordinator, now = session.coordinator, session.now
        title = f"{self.title}  {now:.1f} s, {coordinator.version} updates, residual {coordinator.residual:.1e}".strip()
        table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
        for name in ("site", "updates", "staleness", "last seen", "waited", ""):
            table.add_column(name, justify="left" if name in ("site", "") else "right", no_wrap=True)
        for name, site in list(coordinator.sites.items())[:MOST_ROWS]:
            waiting = max(now - self._arrived.get(name, 0.0), 0.0) if not site.asked_at > site.seen_at else 0.0
            share = min((self._waited.get(name, 0.0) + waiting) / now, 1.0) if now > 0 else 0.0
            seen = f"{max(now - site.seen_at, 0.0):.2f} s ago" if np.isfinite(site.seen_at) else "never"
            bar = Bar(size=1.0, begin=0.0, end=share, width=20)
            table.add_row(Text(name), str(site.updates), str(site.staleness), seen, f"{100 * share:.0f} %", bar)
        hidden = len(coordinator.sites) - MOST_ROWS
        if hidden > 0:
            table.add_row(f"and {hidden} more")
        return table
