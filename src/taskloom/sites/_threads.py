"""A transport within one process: every site is a thread, the coordinator runs in the thread that calls.

Threads share the interpreter, so that sites run at the same time only while they are in BLAS or wait; what is real is the order
in which messages come, and the clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import numpy as np
from threadpoolctl import threadpool_limits

from taskloom.sites._delays import Delays
from taskloom.sites._messages import Answer, Update
from taskloom.sites._reception import Reception, check_names, describe
from taskloom.sites._session import Session
from taskloom.sites._site import Site
from taskloom.tasks import OptionError

# Seconds after which the coordinator looks up even if nothing has come: a run may be stopped from another thread, and a site
# may be silent.
TICK = 0.1


@dataclass(frozen=True)
class Failure:
    """What a site's thread says last when it ends with an error."""

    site: str
    reason: str


class ThreadsTransport:
    """Runs a session with one thread for each site.

    What has come while the coordinator was at work is handled in one go, with one proximal map. While a run lasts, BLAS has one
    thread in the whole process. An error in a site ends that site alone: `session.failed` holds what it said. No thread is left
    when `run` returns or raises, KeyboardInterrupt included; it waits for local steps that have begun.

    Args:
        delays: law of the trips, in seconds, slept by a site after its local step; None for no sleep.
        seed: of the delays; every site draws from a stream of its own.
        patience: seconds without an answer after which a site sends its message again.
        clock: gives seconds.
        sleep: called with an event and seconds; must return when the event is set, which it is when the run is over.

    Raises:
        OptionError: patience is not positive.

    Examples:
        >>> ThreadsTransport(patience=5.0).patience
        5.0
    """

    def __init__(
        self,
        delays: Delays | None = None,
        seed: int | np.random.Generator = 0,
        *,
        patience: float = 20.0,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        if not patience > 0:
            raise OptionError(f"`patience`={patience!r}: need a positive number of seconds")
        self.delays, self.patience, self.clock, self.sleep = delays, patience, clock, sleep
        self.rng = np.random.default_rng(seed)

    def run(self, session: Session, make_sites: Mapping[str, Callable[[], Site]]) -> None:
        """Until every site has parted or failed.

        Args:
            session: of the coordinator.
            make_sites: makes each site, in its own thread.

        Raises:
            OptionError: `make_sites` are not the sites of the session.
            FitError: sites have failed, and none is left or all others wait for them.
        """
        check_names(session, make_sites)
        hurry = threading.Event()
        arrivals: SimpleQueue[Update | Failure] = SimpleQueue()
        workers = {
            name: _Worker(name, make, self, arrivals, hurry, rng)
            for (name, make), rng in zip(make_sites.items(), self.rng.spawn(len(make_sites)), strict=True)
        }
        # Daemons: a second interrupt while they are waited for must not keep the interpreter from ending.
        threads = [threading.Thread(target=each.run, name=f"site {name}", daemon=True) for name, each in workers.items()]
        with threadpool_limits(limits=1, user_api="blas"):
            try:
                for thread in threads:
                    thread.start()
                _coordinate(Reception(session, self.clock), workers, arrivals, hurry)
            finally:
                hurry.set()
                for worker in workers.values():
                    worker.inbox.put(None)
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()


@dataclass
class _Worker:
    """One site's thread: its inbox, and what it does."""

    name: str
    make: Callable[[], Site]
    transport: ThreadsTransport
    arrivals: SimpleQueue[Update | Failure]
    hurry: threading.Event
    rng: np.random.Generator
    inbox: SimpleQueue[Answer | None] = field(default_factory=SimpleQueue)

    def run(self) -> None:
        try:
            site = self.make()
            self.arrivals.put(site.pending)
            while (answer := self._hear(site)) is not None:
                message = site.take(answer)
                if message is not None:
                    self._rest()
                    self.arrivals.put(message)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this site alone, and is told
            self.arrivals.put(Failure(self.name, describe(error)))

    def _hear(self, site: Site) -> Answer | None:
        while True:
            try:
                return self.inbox.get(timeout=self.transport.patience)
            except Empty:
                self.arrivals.put(site.pending)

    def _rest(self) -> None:
        delays = self.transport.delays
        seconds = 0.0 if delays is None else delays.draw(self.name, self.rng)
        if seconds > 0:
            self.transport.sleep(self.hurry, seconds)


def _coordinate(
    reception: Reception, workers: Mapping[str, _Worker], arrivals: SimpleQueue[Update | Failure], hurry: threading.Event
) -> None:
    session = reception.session
    while not session.everyone_parted:
        items = _drain(arrivals)
        messages = [item for item in items if isinstance(item, Update)]
        for answer in reception.handle(messages):
            workers[answer.site].inbox.put(answer)
        for item in items:
            if isinstance(item, Failure):
                reception.fail(item.site, item.reason)
        for message in messages:
            if reception.has_ended(message.site):
                workers[message.site].inbox.put(None)
        if session.is_over:
            hurry.set()
        reception.check()


def _drain(arrivals: SimpleQueue[Update | Failure]) -> list[Update | Failure]:
    """All that is there, after a wait for the first."""
    items = []
    try:
        items.append(arrivals.get(timeout=TICK))
        while True:
            items.append(arrivals.get_nowait())
    except Empty:
        return items
