"""A transport on a virtual clock: sites and coordinator are real, time and network are drawn from a seed.

The same seed gives the same run to the bit. Nothing sleeps: a run takes as long as its arithmetic.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping

import numpy as np

from taskloom.sites._delays import Delays, Faults, check_sites
from taskloom.sites._messages import Answer, Update
from taskloom.sites._session import Session
from taskloom.sites._site import Site
from taskloom.tasks import FitError

# Beyond this many deliveries without an update, a run goes nowhere.
MOST_IDLE = 100_000


class SimulatedTransport:
    """Runs a session with sites on a virtual clock.

    Args:
        delays: law of the trips; None for all at once, in turn.
        faults: what goes wrong.
        seed: of both.
        revive: gives the session after a crash of the coordinator; needed for `coordinator_crashes` alone.
    """

    def __init__(
        self,
        delays: Delays | None = None,
        faults: Faults = Faults(),  # noqa: B008 - frozen
        seed: int | np.random.Generator = 0,
        revive: Callable[[Session], None] | None = None,
    ) -> None:
        self.delays, self.faults, self.revive = delays, faults, revive
        self.rng = np.random.default_rng(seed)
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def run(self, session: Session, make_sites: Mapping[str, Callable[[], Site]]) -> None:
        """Until every site has parted.

        Args:
            session: of the coordinator.
            make_sites: makes each site anew, from nothing but its rows.

        Raises:
            OptionError: delays or crashes of a site that is not there.
            FitError: the network lets nothing through, so that no update has come for very long; or sites were refused, and
                none is left or all others wait for them.
        """
        check_sites(self.delays, self.faults, make_sites)
        self.session, self.make_sites = session, make_sites
        self.sites: dict[str, Site | None] = {name: make() for name, make in make_sites.items()}
        for name in self.sites:
            self._send_up(name, join=True)
        for name, (begin, end) in self.faults.crashes.items():
            self._at(begin, lambda name=name: self.sites.update({name: None}))
            if end < np.inf:
                self._at(end, lambda name=name: self._come_up(name))
        for time in self.faults.coordinator_crashes:
            self._at(time, self._crash_coordinator)
        idle, version = 0, 0
        while self._events and not session.everyone_parted:
            self.now, _, event = heapq.heappop(self._events)
            event()
            idle = 0 if session.coordinator.version != version else idle + 1
            version = session.coordinator.version
            if idle > MOST_IDLE:
                if session.is_over:
                    return
                down = [name for name, site in self.sites.items() if site is None]
                who = f" (down: site {', '.join(down)})" if down else ""
                raise FitError(
                    f"no update came through in {MOST_IDLE} deliveries{who}; lower `loss`, raise `patience`, "
                    "or take a method that waits for nobody"
                )
        if session.failed and not session.is_over:
            raise FitError("; ".join(f"site {name} failed: {reason}" for name, reason in session.failed.items()))

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._count), event))

    def _come_up(self, name: str) -> None:
        self.sites[name] = self.make_sites[name]()
        self._send_up(name, join=True)

    def _crash_coordinator(self) -> None:
        if self.revive is not None and not self.session.is_over:
            self.revive(self.session)

    def _send_up(self, name: str, *, join: bool = False) -> None:
        """A site's pending message on its way, and its alarm for no answer."""
        site = self.sites[name]
        if site is None:
            return
        message, life = site.pending, site
        trip = self.delays.draw(name, self.rng) if self.delays is not None and not join else 0.0
        self._deliver(trip, lambda: self._arrive_up(message))
        if self.faults.loss or self.faults.coordinator_crashes or self.faults.crashes:
            self._at(self.now + trip + self.faults.patience, lambda: self._alarm(name, life, message))

    def _alarm(self, name: str, life: Site, message: Update) -> None:
        if self.sites[name] is life and life.pending is message and not self.session.has_ended(name):
            self._send_up(name)

    def _deliver(self, trip: float, arrival: Callable[[], None]) -> None:
        faults, rng = self.faults, self.rng
        if faults.loss and rng.random() < faults.loss:
            return
        copies = 2 if faults.duplication and rng.random() < faults.duplication else 1
        for _ in range(copies):
            late = rng.uniform(0, faults.patience) if faults.reordering and rng.random() < faults.reordering else 0.0
            self._at(self.now + trip + late, arrival)

    def _arrive_up(self, message: Update) -> None:
        for answer in self.session.handle([message], self.now):
            self._deliver(0.0, lambda answer=answer: self._arrive_down(answer))

    def _arrive_down(self, answer: Answer) -> None:
        site = self.sites[answer.site]
        if site is not None and site.take(answer) is not None:
            self._send_up(answer.site)
