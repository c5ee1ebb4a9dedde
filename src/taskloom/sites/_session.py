"""A run of a coordinator, whatever carries its messages: what is recorded, saved and shown.

Letters: K tasks, d features, W (d, K) the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from taskloom.linear import Certificate
from taskloom.sites._coordinator import Coordinator
from taskloom.sites._messages import Answer, Update
from taskloom.tasks import Array

# A history of the model holds at most so many points: beyond, every other one goes.
MOST_LOOKS = 400


@dataclass
class Trip:
    """One round trip of one site.

    Attributes:
        site: its name.
        asked_at: clock when its answer left.
        arrived_at: clock when its columns came.
        version: of the model after them.
        staleness: in updates.
        residual: of the whole run after them.
    """

    site: str
    asked_at: float
    arrived_at: float
    version: int
    staleness: int
    residual: float


@dataclass
class Look:
    """The model at one time.

    Attributes:
        time: of the clock.
        version: updates so far.
        W: (d, K).
        certificate: objective and gap, where the rows are at hand.
    """

    time: float
    version: int
    W: Array
    certificate: Certificate | None = None


@dataclass
class Recorder:
    """What is kept of a run.

    Attributes:
        every: updates from one look at the model to the next; it doubles when there are too many looks.
        judge: objective and gap of W, where the rows are at hand; else None.
        gap: relative gap at which the run is over; None to leave that to the residual. It needs `judge`.
        trips: all round trips.
        looks: at the model.
    """

    every: int
    judge: Callable[[Array], Certificate] | None = None
    gap: float | None = None
    trips: list[Trip] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    def look(self, coordinator: Coordinator, now: float) -> bool:
        """Keep the model of now; whether it is good enough to stop."""
        look = Look(now, coordinator.version, np.array(coordinator.finish()))
        self.looks.append(look)
        if len(self.looks) > MOST_LOOKS:
            self.looks, self.every = self.looks[::2], 2 * self.every
        if self.gap is None or self.judge is None:
            return False
        look.certificate = self.judge(look.W)
        return look.certificate.relative <= self.gap

    def judge_all(self) -> None:
        """Objective and gap of all looks that have none yet."""
        for look in self.looks:
            if look.certificate is None and self.judge is not None:
                look.certificate = self.judge(look.W)


class Observer(Protocol):
    """What is called with the session after every batch of messages; with real sites, also while none comes."""

    def __call__(self, session: Session) -> None:
        """Look; a call of `session.coordinator.stop()` ends the run."""
        ...


class Session:
    """Messages in, answers out: what a transport talks to. One thread at a time.

    Args:
        coordinator: of the run.
        recorder: of what happens.
        save: called with the coordinator every `save_every` updates and at the end; None for never.
        save_every: updates.
        callback: called after every batch of messages, and by transports with real sites also while none comes.

    Attributes:
        now: clock of the last batch.
        is_over: whether sites are being told to stop.
        failed: sites that have ended with an error, with what it said.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        recorder: Recorder,
        *,
        save: Callable[[Coordinator], None] | None = None,
        save_every: int = 1000,
        callback: Observer | None = None,
    ) -> None:
        self.coordinator, self.recorder, self.callback = coordinator, recorder, callback
        self.save, self.save_every, self._saved = save, save_every, coordinator.version
        self.now = 0.0
        self.failed: dict[str, str] = {}
        self._looked = coordinator.version

    @property
    def is_over(self) -> bool:
        return self.coordinator.is_over

    @property
    def everyone_parted(self) -> bool:
        """Whether all sites have sent their intercepts."""
        return all(self.has_ended(name) for name in self.coordinator.sites)

    def has_ended(self, name: str) -> bool:
        """Whether nothing more is to come from a site: it has parted, or failed."""
        return name in self.failed or self.coordinator.sites[name].intercepts is not None

    def silence(self, name: str, since: float = 0.0) -> float:
        """Seconds for which a site has owed a word; 0 for one that waits for an answer itself, or has ended.

        Args:
            name: of the site.
            since: clock from which on to count.
        """
        if self.has_ended(name) or self.coordinator.is_waiting(name):
            return 0.0
        asked_at = self.coordinator.sites[name].asked_at
        return self.now - max(since, 0.0 if math.isnan(asked_at) else asked_at)

    def give_up(self, limit: float, since: float = 0.0) -> None:
        """Wait no longer for sites that have owed a word for too long.

        Args:
            limit: seconds.
            since: clock from which on to count.
        """
        for name in self.coordinator.sites:
            silence = self.silence(name, since)
            if silence > limit:
                self.fail(name, f"silent for {silence:.0f} s")

    @property
    def notes(self) -> list[str]:
        """What went wrong at each site that did not part."""
        silent = [name for name in self.coordinator.sites if not self.has_ended(name)]
        failed = [f"site {name}: {reason}" for name, reason in self.failed.items()]
        return failed + [f"site {name}: gone at the end, with the intercepts of its tasks" for name in silent]

    def handle(self, messages: Sequence[Update], now: float) -> list[Answer]:
        """Take in what has come, and answer whoever can go on.

        Args:
            messages: that have come since the last call; they share one proximal map. Transports with real sites call this
                about ten times a second also while none comes: a site that is silent can be seen by nothing else.
            now: the clock.
        """
        self.now = now
        coordinator = self.coordinator
        for message in messages:
            self._receive(message, now)
        if coordinator.version - self._looked >= self.recorder.every:
            self._looked = coordinator.version
            if self.recorder.look(coordinator, now):
                coordinator.converged = True
                coordinator.stop()
        # What a site says when it joins, and when it parts, it says once.
        told = any(message.columns is None for message in messages)
        if self.save is not None and (told or coordinator.version - self._saved >= self.save_every):
            self._saved = coordinator.version
            self.save(coordinator)
        if self.callback is not None:
            self.callback(self)
        return coordinator.answers(now)

    def fail(self, name: str, reason: str) -> None:
        """A site has ended with an error, and is not waited for."""
        self.failed[name] = reason
        self.coordinator.lose(name)

    def replace(self, coordinator: Coordinator) -> None:
        """Go on with another coordinator, such as one that was loaded from a file."""
        self.coordinator = coordinator
        for name in self.failed:
            coordinator.lose(name)
        self._saved = self._looked = coordinator.version

    def _receive(self, message: Update, now: float) -> None:
        coordinator, version = self.coordinator, self.coordinator.version
        asked = coordinator.sites[message.site].asked_at if message.site in coordinator.sites else np.nan
        refusal = coordinator.receive(message, now)
        if refusal and (message.sequence == 0 or message.intercepts is not None):
            # These say all that a site knows of itself: it would say the same again.
            what = "intercepts were" if message.sequence else "first message was"
            self.fail(message.site, f"its {what} refused ({refusal})")
        if coordinator.version > version:
            site = coordinator.sites[message.site]
            trip = Trip(message.site, asked, now, coordinator.version, site.staleness, coordinator.residual)
            self.recorder.trips.append(trip)

    def close(self) -> None:
        """The last look and the last save."""
        self.recorder.look(self.coordinator, self.now)
        self.recorder.judge_all()
        if self.save is not None:
            self.save(self.coordinator)
