"""A job's run, whatever carries its messages: who is there, who is silent, what went in and out, and how it ended."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from taskloom.engines._job import Job
from taskloom.engines._lock import FolderLock
from taskloom.sites import Answer, Coordinator, Recorder, Session, Update, encode, revive_coordinator, save_coordinator
from taskloom.tasks import OptionError, OutputError, check_folder, write_file

log = logging.getLogger(__name__)

COORDINATOR_FILE, BYTES_FILE = "coordinator.safetensors", "bytes.json"
# No looks at the model while it is learned: they would keep it many times over, and there are no rows to judge it by.
NEVER = 10**12
# Seconds between two calls of whoever watches.
REFRESH = 0.2


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        seconds: since the coordinator came up.
        updates: of all sites.
        residual: relative to the norm of V; infinite until all sites have sent columns.
        states: of each site: `not yet there`, `there`, `silent`, `done`, or `lost: ` and why.
    """

    seconds: float
    updates: int
    residual: float
    states: dict[str, str]

    def __str__(self) -> str:
        odd = [f"{name} {state}" for name, state in self.states.items() if state not in ("there", "done")]
        residual = f", residual {self.residual:.1e}" if math.isfinite(self.residual) else ""
        return f"{self.seconds:.1f} s, {self.updates} updates{residual}" + (f"; {'; '.join(odd)}" if odd else "")


Watch = Callable[[Progress], None]


class JobSession(Session):
    """A `Session` that counts bytes, finds sites that are silent, and ends when too few are left.

    Args:
        job: that is run.
        coordinator: of the run.
        watch: called with a `Progress` a few times a second.
        meter: whether to count the bytes of messages here; an engine that sees frames counts those.

    A run that cannot be saved any more ends as `failed`, with the model that it has.

    Attributes:
        lock: on the checkpoint, until the session is closed.
        lasting: sites that would fail in the same way if they came back.
        ended: status and reason, where something other than the coordinator's own rules ended the run.
        bytes_in: from each site.
        bytes_out: to each site.
    """

    def __init__(self, job: Job, coordinator: Coordinator, watch: Watch | None = None, *, meter: bool = True) -> None:
        super().__init__(coordinator, Recorder(NEVER), save=self._save, save_every=job.checkpoint_every)
        self.job, self.watch, self.meter = job, watch, meter
        self.lock: FolderLock | None = None
        self.lasting: set[str] = set()
        self.ended: tuple[str, str] | None = None
        self.bytes_in, self.bytes_out = Counter[str](), Counter[str]()
        self._over_at: float | None = None
        self._shown_at = -np.inf

    def handle(self, messages: Sequence[Update], now: float) -> list[Answer]:
        """As `Session.handle`."""
        for message in messages if self.meter else ():
            self.bytes_in[message.site] += len(encode(message))
        answers = super().handle(messages, now)
        for answer in answers if self.meter else ():
            self.bytes_out[answer.site] += len(encode(answer))
        self.look(now)
        if self.watch is not None and now - self._shown_at >= REFRESH:
            self._shown_at = now
            self.watch(self.progress())
        return answers

    def fail(self, name: str, reason: str) -> None:
        """A site is lost, until it joins again; the run ends if too few are left."""
        log.warning("site %s is lost: %s", name, reason)
        super().fail(name, reason)
        left = len(self.coordinator.sites) - len(self.failed)
        if left < self.job.min_sites and not self.is_over:
            said = "; ".join(f"{site}: {why}" for site, why in self.failed.items())
            self.end(
                "too few sites",
                f"{left} of {len(self.coordinator.sites)} sites are left, need {self.job.min_sites}; lost {said}",
            )

    def end(self, status: str, reason: str) -> None:
        """End the run; what was found until now is kept."""
        self.ended = self.ended or (status, reason)
        self.coordinator.stop()

    def close(self) -> None:
        """As `Session.close`; others may go on with the run then."""
        try:
            super().close()
        finally:
            self.release()

    def release(self) -> None:
        """Let others go on with the run from its last save."""
        if self.lock is not None:
            self.lock.release()

    def look(self, now: float) -> None:
        """Give up sites that have owed a word for too long.

        Args:
            now: of the session's clock.
        """
        self.now = max(self.now, now)
        if self.is_over and self._over_at is None:
            self._over_at = self.now
        # At the end a site has but its last word to say.
        limit = self.job.give_up if self._over_at is None else min(self.job.give_up, self.job.patience)
        self.give_up(limit, self._over_at or 0.0)

    def progress(self) -> Progress:
        """How far it is."""
        states = {name: self._state(name) for name in self.coordinator.sites}
        return Progress(self.now, self.coordinator.version, self.coordinator.residual, states)

    @property
    def status(self) -> str:
        """How it ended."""
        if self.ended is not None:
            return self.ended[0]
        if self.coordinator.converged:
            return "converged"
        return "sites lost" if self.coordinator.lost else "limit reached"

    @property
    def message(self) -> str:
        """How it ended, in a sentence."""
        if self.ended is None:
            return self.coordinator.verdict()
        return f"{self.ended[0]}: {self.ended[1]}; the model is that of {self.coordinator.version} updates"

    def _state(self, name: str) -> str:
        site = self.coordinator.sites[name]
        if name in self.failed:
            return f"lost: {self.failed[name]}"
        if site.intercepts is not None:
            return "done"
        if math.isnan(site.seen_at):
            return "not yet there"
        return "silent" if self.silence(name) > self.job.patience else "there"

    def _save(self, coordinator: Coordinator) -> None:
        counted = {"in": dict(self.bytes_in), "out": dict(self.bytes_out)}
        try:
            save_coordinator(coordinator, self.job.checkpoint / COORDINATOR_FILE, self.job.problem)
            write_file(self.job.checkpoint / BYTES_FILE, json.dumps(counted))
        except OutputError as error:
            log.warning("the run cannot be saved: %s", error)
            if not self.is_over:
                self.end("failed", f"it cannot be saved any more ({error})")


def has_checkpoint(job: Job) -> bool:
    """Whether a run of the job was saved."""
    return (job.checkpoint / COORDINATOR_FILE).exists()


def check_start(job: Job, *, resume: bool) -> None:
    """Whether a run can begin, or go on, before anything is started.

    Args:
        job: that is to be run.
        resume: whether it is to go on.

    Raises:
        OptionError: there is a saved run that would be lost, or none to go on from; or it is being carried out.
        OutputError: a folder cannot be written.
    """
    if resume and not has_checkpoint(job):
        raise OptionError(f"`checkpoint`='{job.checkpoint}' holds no run to go on with; begin a new one")
    if has_checkpoint(job) and not resume:
        FolderLock(job.checkpoint).release()
        raise OptionError(f"`checkpoint`='{job.checkpoint}' holds a run that is not over; resume it, or delete it")
    check_folder(job.out)
    FolderLock(job.checkpoint).release()


def open_session(job: Job, watch: Watch | None = None, *, meter: bool = True) -> JobSession:
    """A session of a job, which goes on from its checkpoint where there is one.

    Args:
        job: that is run.
        watch: see `JobSession`.
        meter: see `JobSession`.

    Raises:
        DataError: the checkpoint is damaged, or of another job.
        OptionError: the job is being carried out.
        OutputError: the checkpoint cannot be written.
    """
    coordinator, counted, lock = job.make_coordinator(), {}, FolderLock(job.checkpoint)
    try:
        if has_checkpoint(job):
            revive_coordinator(coordinator, job.checkpoint / COORDINATOR_FILE, job.problem)
            counted = _counted(job.checkpoint / BYTES_FILE)
    except BaseException:
        lock.release()
        raise
    session = JobSession(job, coordinator, watch, meter=meter)
    session.lock = lock
    session.bytes_in.update(counted.get("in", {}))
    session.bytes_out.update(counted.get("out", {}))
    return session


def forget(job: Job) -> None:
    """Delete the checkpoint of a run that is over."""
    for name in (COORDINATOR_FILE, BYTES_FILE):
        (job.checkpoint / name).unlink(missing_ok=True)


def _counted(path: Path) -> dict[str, dict[str, int]]:
    """Bytes as they were saved; none where the file is not there, or not whole: they are but counts."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
