"""Applications that `engines.py` times: sites that do nothing but answer, and bare echoes on the same engines.

Letters: d numbers of a message.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import Any

import numpy as np

from taskloom.engines import read_job, take_part
from taskloom.engines._job import Job
from taskloom.engines._ray import RayCoordinator, RaySite, _Line
from taskloom.sites import Answer, ProcessesTransport, Recorder, Session, ThreadsTransport, Update

NEVER = 10**12

# Of sites, with d numbers a message, for so many trips each, whose seconds are left in a folder.
App = Callable[[list[str], int, int, str], None]


class Pinger:
    """A site without rows: whatever it is answered, it sends a column at once, and notes how long the answer took."""

    def __init__(self, name: str, d: int, folder: str) -> None:
        self.name, self.folder, self.is_over, self.sequence = name, folder, False, -1
        self.column = np.random.default_rng(len(name)).normal(size=(d, 1))
        self.seconds: list[float] = []
        self._last, self._sent = self.hello(), perf_counter()

    @property
    def pending(self) -> Update:
        """As a site's."""
        return self._last

    def hello(self) -> Update:
        """As a site's."""
        return Update(self.name, 0, curvature=np.ones(1))

    def join(self) -> Update:
        """As a site's."""
        self.sequence, self._last = -1, self.hello()
        return self._last

    def take(self, answer: Answer) -> Update:
        """The next message, at once."""
        self.seconds.append(perf_counter() - self._sent)
        self.sequence = answer.sequence + 1
        if answer.stop:
            self.is_over = True
            self._last = Update(self.name, self.sequence, answer.epoch, intercepts=np.zeros(1))
            # The first trip is the joining, the last the parting.
            save(self.folder, self.name, self.seconds[1:-1])
        else:
            self._last = Update(self.name, self.sequence, answer.epoch, columns=self.column, version=answer.version)
        self._sent = perf_counter()
        return self._last


def save(folder: str, name: str, seconds: list[float]) -> None:
    np.save(Path(folder) / f"{name}.npy", np.array(seconds))


def ping_job(names: list[str], d: int, trips: int, folder: str) -> Job:
    """A job of one task a site whose coordinator has next to nothing to work out."""
    model: dict[str, Any] = {"features": [f"x{j}" for j in range(d)], "penalty": {"mean": 0.1}, "step": 1.0}
    rule = {"tol": 0, "max_rounds": trips, "max_updates": 10**9, "checkpoint_every": 10**9}
    return read_job({"sites": {name: [f"task of {name}"] for name in names}} | model | rule, folder)


def ping_here(transport: ThreadsTransport | ProcessesTransport, names: list[str], d: int, trips: int, folder: str) -> None:
    """Taskloom's own application on threads or processes."""
    session = Session(ping_job(names, d, trips, folder).make_coordinator(), Recorder(NEVER))
    makers: Any = {name: partial(Pinger, name, d, folder) for name in names}
    transport.run(session, makers)


def echo_threads(names: list[str], d: int, trips: int, folder: str) -> None:
    """A server's queue, and one for each site."""
    arrivals: SimpleQueue[str | None] = SimpleQueue()
    boxes: dict[str, SimpleQueue[Any]] = {name: SimpleQueue() for name in names}
    meet = threading.Barrier(len(names)).wait
    columns = {name: np.zeros((d, 1)) for name in names}

    def call(name: str, value: Any) -> Any:
        columns[name] = value
        arrivals.put(name)
        return boxes[name].get()

    def serve() -> None:
        while (name := arrivals.get()) is not None:
            boxes[name].put(columns[name].copy())

    server = threading.Thread(target=serve)
    server.start()
    callers = [threading.Thread(target=_call_on, args=(partial(call, name), meet, name, d, trips, folder)) for name in names]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    arrivals.put(None)
    server.join()


def _call_on(call: Callable[[Any], Any], meet: Callable[[], Any], name: str, d: int, trips: int, folder: str) -> None:
    """A caller that waits for each answer, once all callers are there."""
    value, seconds = np.random.default_rng(0).normal(size=(d, 1)), []
    meet()
    for _ in range(trips):
        began = perf_counter()
        call(value)
        seconds.append(perf_counter() - began)
    save(folder, name, seconds)


def echo_processes(names: list[str], d: int, trips: int, folder: str) -> None:
    """A pipe for each process, all served by this one."""
    lines = {}
    for name in names:
        ours, theirs = Pipe()
        process = subprocess.Popen(
            [sys.executable, "-c", _ECHO, str(theirs.fileno()), name, str(d), str(trips), folder],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parent,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        lines[ours] = process
    for line in lines:
        line.recv_bytes()
    for line in lines:
        line.send_bytes(b"begin")
    while lines:
        for line in wait(list(lines)):
            try:
                line.send_bytes(line.recv_bytes())
            except (EOFError, OSError):
                lines.pop(line).wait()


_ECHO = (
    "import sys; from multiprocessing.connection import Connection; from _engine_pings import call_by_pipe; "
    "call_by_pipe(Connection(int(sys.argv[1])), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])"
)


def call_by_pipe(line: Any, name: str, d: int, trips: int, folder: str) -> None:
    """The other end of `echo_processes`."""

    def call(value: np.ndarray) -> np.ndarray:
        line.send_bytes(value.tobytes())
        return np.frombuffer(line.recv_bytes())

    def meet() -> None:
        line.send_bytes(b"here")
        line.recv_bytes()

    _call_on(call, meet, name, d, trips, folder)


class RayServer(RayCoordinator):
    """A coordinator that can be a bare server as well."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.barrier = threading.Barrier(len(job.sites))

    def meet(self) -> None:
        """Wait for all callers."""
        self.barrier.wait()

    def echo(self, raw: bytes) -> bytes:
        """The same."""
        return raw


class RayPinger(RaySite):
    """A site of a job, but for its rows, that can be a bare caller as well."""

    def serve(self, coordinator: Any) -> str:
        """All trips to a coordinator."""
        site, d, _, folder, _ = self.table
        take_part(Pinger(site, d, folder), _Line(coordinator, self.job))
        return ""

    def call(self, server: Any) -> None:
        """All trips to a bare server."""
        import ray

        def ask(value: np.ndarray) -> np.ndarray:
            return np.frombuffer(ray.get(server.echo.remote(value.tobytes())))

        site, d, trips, _, folder = self.table
        _call_on(ask, lambda: ray.get(server.meet.remote()), site, d, trips, folder)


def both_on_ray(names: list[str], d: int, trips: int, folders: tuple[str, str]) -> None:
    """Taskloom's application on a Ray that is there, and a bare one before it, both in the same actors."""
    import ray

    job = ping_job(names, d, trips, folders[0])
    few = {"num_cpus": 0, "max_concurrency": 2 * len(names) + 4}
    server = ray.remote(RayServer).options(**few).remote(job)
    callers = [ray.remote(RayPinger).options(num_cpus=0).remote(job, (name, d, trips, *folders)) for name in names]
    # The first time is to warm up.
    for _ in range(2):
        ray.get([caller.call.remote(server) for caller in callers])
    ray.get([caller.serve.remote(server) for caller in callers])
    for actor in (server, *callers):
        ray.kill(actor)


def both_here(ours: App, echo: App, names: list[str], d: int, trips: int, folders: tuple[str, str]) -> None:
    """Taskloom's application, and a bare one."""
    ours(names, d, trips, folders[0])
    echo(names, d, trips, folders[1])
