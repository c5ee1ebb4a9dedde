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
from taskloom.engines._session import Progress, open_session
from taskloom.sites import Answer, Reception, Site, Update, decode, encode, one_line
from taskloom.tasks import DataError, FitError, TaskloomError

log = logging.getLogger(__name__)

# To a site: nothing more is to come, it may go.
GOODBYE = b""
# To a site: there is no answer yet, ask again.
LATER = b"?"
# To a site, with a reason: it is not wanted.
REJECT = b"!"
# Bytes that a message may have beside its columns.
HEAD = 10_000


class Desk:
    """The coordinator of a job behind any engine: messages of sites in, answers out. Any number of threads may call it.

    Messages that come while another is handled are handled together, with one proximal map. The state is in the job's
    checkpoint: a desk that comes up where one was before goes on from it.

    Args:
        job: that is run.
        clock: gives seconds.

    Raises:
        DataError: the checkpoint is damaged, or of another job.
        OptionError: another desk has the job.
        OutputError: the checkpoint cannot be written.
    """

    def __init__(self, job: Job, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.job = job
        self.session = open_session(job, meter=False)
        self._reception = Reception(self.session, clock)
        self._arrivals: SimpleQueue[Update] = SimpleQueue()
        self._answers: dict[str, bytes] = {}
        self._turns: Counter[str] = Counter()
        self._changed = Condition()
        # A column for each task, and room for the line before it.
        self._longest = 8 * job.n_features * max(map(len, job.sites.values())) + HEAD

    def ask(self, raw: bytes, timeout: float = 5.0) -> bytes:
        """Take a site's message in, and wait for what is due to it.

        Args:
            raw: `encode(Update)`.
            timeout: seconds to wait for an answer that must wait for others.

        Returns:
            `encode(Answer)`, `GOODBYE`, `LATER` (ask again with the same bytes), or `REJECT` and a reason.
        """
        try:
            message = self._read(raw)
        except DataError as error:
            reason = one_line(str(error))
            log.warning("refused bytes of a caller: %s", reason)
            return REJECT + reason.encode()
        name = message.site
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

    def fail(self, site: str, reason: str, *, lasting: bool = False) -> None:
        """A site has ended with an error. One that has said its last word has not, and strangers do not count.

        Args:
            site: its name.
            reason: in words that may be seen at the coordinator.
            lasting: whether it would fail in the same way if it came back.
        """
        with self._changed:
            record = self.session.coordinator.sites.get(site)
            if record is not None and record.intercepts is None:
                self._reception.fail(site, one_line(reason))
                self.session.lasting.update({site} if lasting else ())
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

    def close(self) -> None:
        """Leave the job to another desk, which goes on from the last save."""
        with self._changed:
            self.session.release()

    def _read(self, raw: bytes) -> Update:
        """The message of a site of this job.

        Raises:
            DataError: it is none.
        """
        if len(raw) > self._longest:
            raise DataError(f"a message has {len(raw)} bytes, those of this job at most {self._longest}")
        message = decode(raw)
        if message.site not in self.session.coordinator.sites or not isinstance(message, Update):
            known = ", ".join(self.session.coordinator.sites)
            raise DataError(f"it is called {message.site[:50]!r}, this job has {known}")
        return message

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
            raise DataError(f"the coordinator does not want this site: {said[len(REJECT) :].decode(errors='replace')}")
        elif said != LATER:
            answer = decode(said)
            if not isinstance(answer, Answer):
                raise DataError(f"the coordinator sent {type(answer).__name__}, no answer; both ends must run the same version")
            site.take(answer)
            raw = encode(site.pending)
