"""Jobs on Ray, for machines that are all one's own: an actor for the coordinator, and one for each site where its rows are.

Rows are read inside the site's actor from its machine's disk, and never enter Ray's object store.
"""

from __future__ import annotations

import importlib
import logging
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import joblib

from taskloom.engines._desk import Desk, take_part
from taskloom.engines._job import Job
from taskloom.engines._result import JobResult
from taskloom.engines._rows import make_job_site
from taskloom.engines._session import Progress, Watch, check_start, forget
from taskloom.engines._site_file import SiteFile
from taskloom.tasks import FitError, OptionError

log = logging.getLogger(__name__)

# Seconds between two looks of the driver.
TICK = 0.25
# Seconds between two calls of a coordinator that is away: from the first to the last.
FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0
# Seconds for a machine to say that it is there.
REACH = 10.0
# Bytes of the object store of a Ray that is started for one job: messages of large models pass through it, nothing else does.
STORE_BYTES = 100_000_000
# Resource of the machine on which the coordinator is to run, where it is not that of whoever starts the job.
COORDINATOR_RESOURCE = "coordinator"


@dataclass(frozen=True)
class RayOptions:
    """Where Ray is. How to reach it safely (TLS, tokens) is said to Ray by its own environment variables and files.

    Attributes:
        address: of a running cluster: `auto`, `host:port` or `ray://host:port`; None for a Ray of this machine alone, which
            ends with the job. A Ray that this process has begun is used as it is.
        namespace: of the actors' names, which are `JOB/coordinator` and `JOB/site/NAME`.

    Examples:
        >>> RayOptions().namespace
        'taskloom'
    """

    address: str | None = None
    namespace: str = "taskloom"


def run_on_ray(job: Job, options: RayOptions, *, resume: bool, watch: Watch | None) -> JobResult:
    """Run a job on Ray and write what comes of it; see `run_job`.

    The coordinator is an actor on the machine of whoever starts the job, or on that with the resource `coordinator`; it comes
    up again by itself, from the checkpoint. Each site is an actor on the machine with the resource `site:NAME`, or anywhere
    where the cluster has no such resource; it comes up again, joins, and goes on with its last sequence number.

    Args:
        job: that names each site's table, as a path on the machine of the site.
        options: where Ray is.
        resume: whether to go on with a run that ended before.
        watch: called with a `Progress` a few times a second.

    Raises:
        OptionError: Ray is not installed or not there, a job of that name runs already, or as `run_job`.
        FitError: the coordinator could not be kept up.
    """
    with _cluster(options) as ray:
        run = _Run(ray, job, options)
        try:
            run.start(resume=resume)
            result = run.coordinate(watch)
            result.save()
            if result.converged:
                run.ask("forget")
            return result
        finally:
            run.close()


@contextmanager
def ray_backend(address: str | None = None, called: str = "address") -> Generator[None]:
    """Within this block joblib, and so `taskloom.study`, runs its work on Ray.

    Args:
        address: see `RayOptions`.
        called: the name by which errors call the address, where whoever gave it knows it by another.

    Raises:
        OptionError: Ray is not installed, or not there.
    """
    with _cluster(RayOptions(address), called):
        importlib.import_module("ray.util.joblib").register_ray()
        with joblib.parallel_config("ray", n_jobs=-1):
            yield


class RayCoordinator:
    """The coordinator as an actor. Ray makes it anew where it has died: then it goes on from the checkpoint."""

    def __init__(self, job: Job) -> None:
        self.job, self._desk, self._lock = job, None, threading.Lock()

    def check(self, *, resume: bool) -> None:
        """Whether the job can begin, or go on; done by the actor, on whose disk the checkpoint is."""
        check_start(self.job, resume=resume)
        _ = self.desk

    @property
    def desk(self) -> Desk:
        """Opened by the first call."""
        with self._lock:
            if self._desk is None:
                self._desk = Desk(self.job)
            return self._desk

    def ask(self, raw: bytes) -> bytes:
        """A site's message in, its answer out."""
        return self.desk.ask(raw)

    def look(self, ended: dict[str, str]) -> tuple[Progress, bool]:
        """How far the run is, and whether it is over.

        Args:
            ended: sites whose actors have ended with an error, and what they said; a coordinator that has come up anew does not
                know of them.
        """
        desk = self.desk
        for site, reason in ended.items():
            if site not in desk.session.failed:
                desk.fail(site, reason)
        desk.look()
        return desk.progress(), desk.is_done

    def collect(self) -> JobResult | None:
        """What the run leaves behind; None if this coordinator came up after its end, and has to hear the sites again."""
        return self.desk.collect("ray") if self.desk.is_done else None

    def forget(self) -> None:
        """Delete the checkpoint."""
        forget(self.job)


class RaySite:
    """A site as an actor. Ray makes it anew where it has died, and calls `serve` again."""

    def __init__(self, job: Job, table: SiteFile) -> None:
        self.job, self.table = job, table

    def serve(self, coordinator: Any) -> str:
        """Take part until the run is over; why it had to end before, or nothing."""
        try:
            take_part(make_job_site(self.table, self.job), _Line(coordinator, self.job))
        except Exception as error:
            log.exception("site %s has ended", self.table.site)
            return f"{type(error).__name__}: {error}"
        return ""


class _Line:
    """A site's way to the coordinator: bytes there and back, or None where it did not answer in time or is away."""

    def __init__(self, coordinator: Any, job: Job) -> None:
        self.ray, self.coordinator, self.job = _import_ray(), coordinator, job
        self._away_since: float | None = None
        self._pause = FIRST_PAUSE

    def __call__(self, raw: bytes) -> bytes | None:
        """As `take_part` has it.

        Raises:
            FitError: it has been away for too long.
        """
        try:
            reply = self.ray.get(self.coordinator.ask.remote(raw), timeout=self.job.patience)
        except self.ray.exceptions.GetTimeoutError:
            return None
        except self.ray.exceptions.RayActorError as error:
            now = time.monotonic()
            self._away_since = now if self._away_since is None else self._away_since
            if now - self._away_since > self.job.give_up:
                raise FitError(f"the coordinator has been away for {self.job.give_up:g} s") from error
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, LAST_PAUSE)
            return None
        self._away_since, self._pause = None, FIRST_PAUSE
        return reply


class _Run:
    """The driver's side: it starts the actors, looks after them, and ends them. No message of a site passes through it."""

    def __init__(self, ray: Any, job: Job, options: RayOptions) -> None:
        self.ray, self.job, self.options = ray, job, options
        self.coordinator: Any = None
        self.sites: dict[str, Any] = {}
        self.ended: dict[str, str] = {}
        self._running: dict[Any, str] = {}

    def start(self, *, resume: bool) -> None:
        """All actors, once it is known that the job can begin."""
        resources = self.ray.cluster_resources()
        strategy = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        # A call of a site may have to wait for others, and an old one of the same site may still be there.
        where: dict[str, Any] = {"max_concurrency": 2 * len(self.job.sites) + 4}
        if COORDINATOR_RESOURCE in resources:
            where["resources"] = {COORDINATOR_RESOURCE: 1}
        else:
            where["scheduling_strategy"] = strategy(self.ray.get_runtime_context().get_node_id(), soft=False)
        self.coordinator = self._actor(RayCoordinator, "coordinator", where).remote(self.job)
        self.ask("check", resume=resume)
        for site, table in self.job.tables.items():
            pinned = {"resources": {f"site:{site}": 1}} if f"site:{site}" in resources else {}
            self.sites[site] = self._actor(RaySite, f"site/{site}", pinned | {"max_task_retries": -1}).remote(self.job, table)
            self._serve(site)

    def _serve(self, site: str) -> None:
        self._running[self.sites[site].serve.remote(self.coordinator)] = site

    def _actor(self, kind: type, name: str, options: dict[str, Any]) -> Any:
        full = f"{self.job.name}/{name}"
        if self._is_there(full):
            raise OptionError(
                f"`name`={self.job.name!r}: a job of that name is running on this cluster; wait, or name this one anew"
            )
        usual = {"max_restarts": -1, "num_cpus": 0, "name": full, "namespace": self.options.namespace}
        return self.ray.remote(kind).options(**usual, **options)

    def _is_there(self, name: str) -> bool:
        """Whether there is an actor of a name."""
        try:
            self.ray.get_actor(name, namespace=self.options.namespace)
        except ValueError:
            return False
        return True

    def coordinate(self, watch: Watch | None) -> JobResult:
        """Until the run is over, and what it leaves behind."""
        while True:
            self._hear_ends()
            progress, is_done = self.ask("look", self.ended)
            if watch is not None:
                watch(progress)
            if is_done and (result := self.ask("collect")) is not None:
                return result
            self._call_back(progress)

    def _call_back(self, progress: Progress) -> None:
        """A coordinator that died at the end, and came up from a save, needs sites again that have left."""
        serving = {*self._running.values(), *self.ended}
        for site in self.sites:
            if site not in serving and progress.states[site] != "done":
                self._serve(site)

    def _hear_ends(self) -> None:
        """Wait a moment for sites that end, and note why those did that had to."""
        if not self._running:
            time.sleep(TICK)
            return
        ready, _ = self.ray.wait(list(self._running), timeout=TICK)
        for ref in ready:
            site = self._running.pop(ref)
            try:
                reason = self.ray.get(ref)
            except self.ray.exceptions.RayError as error:
                reason = f"its actor is gone ({type(error).__name__})"
            if reason:
                self.ended[site] = reason

    def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """A call of the coordinator, repeated where it is just coming up again."""
        began = time.monotonic()
        while True:
            try:
                return self.ray.get(getattr(self.coordinator, method).remote(*arguments, **named))
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except self.ray.exceptions.RayActorError as error:
                if time.monotonic() - began > self.job.give_up:
                    raise FitError(f"the coordinator has been away for {self.job.give_up:g} s; resume the job") from error
                time.sleep(LAST_PAUSE)

    def close(self) -> None:
        """No actor is left."""
        for actor in (*self.sites.values(), self.coordinator):
            if actor is not None:
                with suppress(self.ray.exceptions.RayError):
                    self.ray.kill(actor)


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise OptionError("engine `ray` needs Ray; install taskloom[ray]") from error


def _check_address(address: str | None, called: str) -> None:
    """Whether somebody listens at an address: Ray itself would try for minutes.

    Raises:
        OptionError: nobody does, or it is none.
    """
    if address in (None, "auto", "local"):
        return
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        known = "`local`, `auto`, `HOST:PORT` or `ray://HOST:PORT`"
        raise OptionError(f"`{called}`={address!r} is no address of a Ray; give {known}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except (OSError, OverflowError) as error:
        raise OptionError(f"`{called}`={address!r}: nobody listens there ({error}); start Ray, or leave it out") from error


@contextmanager
def _cluster(options: RayOptions, called: str = "address") -> Generator[Any]:
    """Ray, as it is or begun for this block."""
    ray = _import_ray()
    if ray.is_initialized():
        yield ray
        return
    _check_address(options.address, called)
    settings: dict[str, Any] = {"namespace": options.namespace, "log_to_driver": False, "logging_level": logging.ERROR}
    if options.address is None:
        settings |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        ray.init(options.address or "local", **settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise OptionError(
            f"`{called}`={options.address!r}: no Ray there, or none that lets one in ({error}); start one, set "
            "RAY_AUTH_MODE=token where it asks for a token, or leave it out"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()
