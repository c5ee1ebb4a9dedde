"""The two ends of a job on any engine that can carry a call: bytes there, bytes back.

The coordinator's end is a `Desk`, the site's end is `take_part`. What a site sends is `encode(Update)` and nothing else.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Condition

from taskloom.engines._job import Job
from taskloom.engines._result import JobResult, collect
from taskloom.engines._session import Progress, forget, open_session
from taskloom.sites import Answer, Reception, Site, Update, decode, encode
from taskloom.tasks import DataError, FitError, TaskloomError

log = logging.getLogger(__name__)

# To a site: nothing more is to come, it may go.
GOODBYE = b""
# To a site: there is no answer yet, ask again.
LATER = b"?"
# To a site, with a reason: it is not wanted.
REJECT = b"!"


class Desk:
    """The coordinator of a job behind any engine: messages of sites in, answers out. Any number of threads may call it.

    Messages that come while another is handled are handled together, with one proximal map. The state is in the job's
    checkpoint: a desk that comes up where one was before goes on from it.

    Args:
        job: that is run.
        resume: False to delete what was saved before, and to begin anew.
        clock: gives seconds.

    Raises:
        DataError: the checkpoint is damaged, or of another job.
    """

    def __init__(self, job: Job, *, resume: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        if not resume:
            forget(job)
        self.job = job
        self.session = open_session(job, meter=False)
        self._reception = Reception(self.session, clock)
        self._arrivals: SimpleQueue[Update] = SimpleQueue()
        self._answers: dict[str, bytes] = {}
        self._turns: Counter[str] = Counter()
        self._changed = Condition()

    def ask(self, raw: bytes, timeout: float = 5.0) -> bytes:
        """Take a site's message in, and wait for what is due to it.

        Args:
            raw: `encode(Update)`.
            timeout: seconds to wait for an answer that must wait for others.

        Returns:
            `encode(Answer)`, `GOODBYE`, `LATER` (ask again with the same bytes), or `REJECT` and a reason.
        """
        try:
            message = decode(raw)
        except DataError as error:
            log.warning("refused bytes of a caller: %s", error)
            return REJECT + str(error).encode()
        name = message.site
        if name not in self.session.coordinator.sites or not isinstance(message, Update):
            known = ", ".join(self.session.coordinator.sites)
            log.warning("refused a message of %r, which is no site of this job", name)
            return REJECT + f"it is called {name!r}, this job has {known}".encode()
        self._arrivals.put(message)
        with self._changed:
            self.session.bytes_in[name] += len(raw)
            self._turns[name] += 1
            turn = self._turns[name]
            self._handle()
            self._changed.wait_for(lambda: self._turns[name] != turn or self._reply(name) is not None, timeout)
            reply = self._reply(name)
            # A site that has asked again has left this call behind.
            if reply is None or self._turns[name] != turn:
                return LATER
            self._answers.pop(name, None)
            self.session.bytes_out[name] += len(reply)
            return reply

    def fail(self, site: str, reason: str) -> None:
        """A site has ended with an error.

        Args:
            site: its name.
            reason: in words that may be seen at the coordinator.
        """
        with self._changed:
            self._reception.fail(site, reason)
            self._flush()

    def look(self) -> None:
        """Find sites that are silent, and runs that stand still; to be called about once a second."""
        with self._changed:
            self._flush()

    def stop(self, reason: str, status: str = "stopped") -> None:
        """End the run: every site is told with its next answer."""
        with self._changed:
            self.session.end(status, reason)
            self._flush()

    @property
    def is_done(self) -> bool:
        """Whether every site has parted or is lost."""
        return self.session.everyone_parted

    def progress(self) -> Progress:
        """How far the run is."""
        with self._changed:
            return self.session.progress()

    def collect(self, engine: str) -> JobResult:
        """What the run leaves behind.

        Args:
            engine: that it was run on.
        """
        with self._changed:
            return collect(self.session, engine)

    def _reply(self, name: str) -> bytes | None:
        """What is due to a site; None if nothing is yet."""
        if name in self._answers:
            return self._answers[name]
        reason = self.session.failed.get(name)
        if reason is not None:
            return REJECT + reason.encode()
        return GOODBYE if self._reception.has_ended(name) else None

    def _handle(self) -> None:
        """All that has come."""
        messages = []
        try:
            while True:
                messages.append(self._arrivals.get_nowait())
        except Empty:
            pass
        if messages:
            for message in messages:
                self._answers.pop(message.site, None)
            self._settle(messages)

    def _flush(self) -> None:
        """What is due although nothing has come."""
        self._settle([])
        self._changed.notify_all()

    def _settle(self, messages: list[Update]) -> None:
        was_over = self.session.is_over
        try:
            self._take(self._reception.handle(messages))
            self._reception.check()
        except (FitError, TaskloomError) as error:
            self.session.end("failed", str(error))
        if self.session.is_over and not was_over:
            self._take(self._reception.handle([]))
        self._changed.notify_all()

    def _take(self, answers: list[Answer]) -> None:
        self._answers.update({answer.site: encode(answer) for answer in answers})


def take_part(site: Site, ask: Callable[[bytes], bytes | None]) -> None:
    """Take part in a job as a site, until the coordinator says goodbye.

    Args:
        site: with its rows.
        ask: carries bytes to `Desk.ask` and brings back what it returns; None where the coordinator was away or did not
            answer in time. Then the site says anew who it is, and goes on where it stood.

    Raises:
        DataError: the coordinator does not want this site.
    """
    raw = encode(site.hello())
    while (said := ask(raw)) != GOODBYE:
        if said is None:
            if site.is_over:
                # The coordinator may have died with this site's last word, and may have to begin again.
                site.is_over = False
                site.join()
            raw = encode(site.hello())
        elif said.startswith(REJECT):
            raise DataError(f"the coordinator does not want this site: {said[len(REJECT) :].decode()}")
        elif said != LATER:
            answer = decode(said)
            if not isinstance(answer, Answer):
                raise DataError(f"the coordinator sent {type(answer).__name__}, no answer; both ends must run the same version")
            site.take(answer)
            raw = encode(site.pending)
