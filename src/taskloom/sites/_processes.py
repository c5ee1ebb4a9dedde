"""A transport between processes: one for each site, which alone holds its rows; the coordinator runs in the one that calls.

Only frames of `_lines` travel between them. What a site process gets at its start goes through a pipe of its own.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, cast

import numpy as np

from taskloom.sites._delays import Delays
from taskloom.sites._lines import GOODBYE, HURRY, REJECT, Address, Server, broken_line, read_failure
from taskloom.sites._messages import MOST_HEAD, Answer, Update, decode, encode
from taskloom.sites._reception import Reception, check_names
from taskloom.sites._session import Session
from taskloom.sites._site import Site
from taskloom.sites._site_process import HAS_TOLD, Errand
from taskloom.tasks import OptionError

# Seconds after which the coordinator looks after its processes even if nothing has come.
TICK = 0.1
# Looks at a process until what it has said before it ended is taken for lost.
LOOKS = 20
# Seconds that site processes have to end by themselves when the run is over.
GRACE = 5.0

# A fresh interpreter, not one that imports the caller's script again: works from a script without a guard, and from a notebook.
_BOOT = (
    "import json, sys; stream = sys.stdin.buffer; sys.path[:] = json.loads(stream.readline()); "
    "raw = stream.read(int(stream.readline())); from taskloom.sites._site_process import main; main(stream, raw)"
)
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


class ProcessesTransport:
    """Runs a session with one process for each site, and with sites that are started elsewhere (`serve_site`).

    Processes talk over a Unix socket in a private folder, or the loopback where there are none, and must know a key that is
    made for each run. A site process gets its rows, or whatever loads them, through a pipe at its start; afterwards nothing but
    the messages leaves it. It starts from a fresh interpreter with one BLAS thread: the script that is run is not imported
    again and needs no `if __name__ == "__main__":`, but what makes a site has to be defined in a module, not in that script.

    A process that dies is started again and joins again. An error in a site ends that site alone: `session.failed` holds what
    it said. When `run` returns or raises, KeyboardInterrupt included, no process, socket or file of it is left; when the
    coordinator is killed, its site processes end by themselves, and sites from elsewhere look for it at the same address.

    Args:
        delays: law of the trips, in seconds, slept by a site after its local step; None for no sleep.
        seed: of the delays; every site draws from a stream of its own.
        address: path of a Unix socket, or (host, port), for sites from elsewhere; None for a private one.
        authkey: for sites from elsewhere; None for a new one.
        restarts: how often a site's process may be started again.
        patience: seconds without an answer after which a site calls again and repeats its message.
        clock: gives seconds.

    Raises:
        OptionError: a number outside of what it may be, or an address without a key.

    Examples:
        >>> ProcessesTransport(restarts=2).restarts
        2
    """

    def __init__(
        self,
        delays: Delays | None = None,
        seed: int | np.random.Generator = 0,
        *,
        address: Address | None = None,
        authkey: bytes | None = None,
        restarts: int = 5,
        patience: float = 20.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not patience > 0:
            raise OptionError(f"`patience`={patience!r}: need a positive number of seconds")
        if restarts < 0:
            raise OptionError(f"`restarts`={restarts!r}: need a number of 0 or more")
        if (address is None) != (authkey is None):
            raise OptionError("`address` and `authkey` go together: sites from elsewhere need both; give both, or neither")
        self.delays, self.address, self.authkey = delays, address, authkey
        self.restarts, self.patience, self.clock = restarts, patience, clock
        self.rng = np.random.default_rng(seed)

    def run(self, session: Session, make_sites: Mapping[str, Callable[[], Site]]) -> None:
        """Until every site has parted or failed.

        Args:
            session: of the coordinator.
            make_sites: makes each site, in its own process: something that can be pickled, such as a `functools.partial` of a
                function of a module. Sites of the session that are not among them are waited for at the address.

        Raises:
            OptionError: `make_sites` are not the sites of the session, or cannot be pickled; nothing can listen at the address.
            FitError: sites have failed, and none is left or all others wait for them.
        """
        check_names(session, make_sites, may_lack=self.address is not None)
        with Server(self.address, self.authkey) as server, closing(_Run(self, session, server)) as run:
            for (name, make), rng in zip(make_sites.items(), self.rng.spawn(len(make_sites)), strict=True):
                run.processes[name] = process = _SiteProcess(name, make, self, server, rng)
                process.start()
            run.coordinate()
            run.see_off()


class _SiteProcess:
    """The process of one site, which may have to be started more than once."""

    def __init__(
        self, name: str, make: Callable[[], Site], transport: ProcessesTransport, server: Server, rng: np.random.Generator
    ) -> None:
        self.name, self.make, self.transport, self.server, self.rng = name, make, transport, server, rng
        self.starts = 0
        # Looks at it since it ended with an error that it has told: the word may still be on its way.
        self.looks_since = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.starts += 1
        try:
            make = pickle.dumps(self.make)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise OptionError(
                f"`make_sites`: that of site {self.name!r} cannot be sent to a process ({error}); "
                "use `functools.partial` of a function of a module"
            ) from error
        transport, rng = self.transport, self.rng.spawn(1)[0]
        errand = Errand(self.name, self.server.address, self.server.authkey, transport.patience, make, transport.delays, rng)
        raw = pickle.dumps(errand)
        self._process = process = subprocess.Popen(
            [sys.executable, "-c", _BOOT], stdin=subprocess.PIPE, env=os.environ | _ONE_THREAD
        )
        # A process that has died already is found by its exit status.
        with broken_line():
            path = json.dumps([each or str(Path.cwd()) for each in sys.path])
            stream = cast("IO[bytes]", process.stdin)
            stream.write(path.encode() + b"\n%d\n" % len(raw) + raw)
            stream.flush()

    @property
    def status(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def close(self, grace: float = 0.0) -> None:
        """End it, if it does not do so by itself."""
        process, self._process = self._process, None
        if process is None:
            return
        with broken_line():
            cast("IO[bytes]", process.stdin).close()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Run:
    """The coordinator's side of one run: lines, processes, and who is at the other end of which line."""

    def __init__(self, transport: ProcessesTransport, session: Session, server: Server) -> None:
        self.transport, self.session, self.server = transport, session, server
        self.reception = Reception(session, transport.clock)
        self.processes: dict[str, _SiteProcess] = {}
        self.lines: dict[str, Connection] = {}
        self._names: dict[Connection, str | None] = {}
        self._has_hurried = False
        self._gone: set[str] = set()
        self._looked_at = time.monotonic()
        most = max(len(site.tasks) for site in session.coordinator.sites.values())
        self._longest = MOST_HEAD + 16 * session.coordinator.n_features * most

    def coordinate(self) -> None:
        """Until every site has parted or failed."""
        session, reception = self.session, self.reception
        while not session.everyone_parted:
            self._turn()
            if session.is_over and not self._has_hurried:
                self._has_hurried = True
                for name, line in list(self.lines.items()):
                    if not reception.is_waiting(name):
                        self._say(line, HURRY)
            self._look_after()
            reception.check()

    def _turn(self) -> None:
        """Take what has come, and answer; at least once a `TICK`, so that sites that are silent are found."""
        messages = self._receive()
        self._send(self.reception.handle(messages))
        self._see_out({message.site for message in messages})

    def see_off(self) -> None:
        """Wait a little until all have gone who may: who had just hung up calls again, and is told once more."""
        deadline = time.monotonic() + GRACE
        while self.session.coordinator.sites.keys() - self.session.failed.keys() - self._gone and time.monotonic() < deadline:
            self._turn()
        for name, process in self.processes.items():
            if name not in self.session.failed:
                process.close(max(deadline - time.monotonic(), 0.0))

    def close(self) -> None:
        """End every process at once, and every line."""
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.close(GRACE)
        for line in list(self._names):
            self._drop(line)

    def _receive(self) -> list[Update]:
        """The messages of all lines on which something has come."""
        messages = []
        for ready in wait([self.server, *self._names], TICK):  # ty: ignore[invalid-argument-type]
            if ready is self.server:
                line = self.server.accept()
                if line is not None:
                    self._names[line] = None
            elif isinstance(ready, Connection) and ready in self._names:
                message = self._read(ready)
                if message is not None:
                    messages.append(message)
        return messages

    def _read(self, line: Connection) -> Update | None:
        try:
            frame = line.recv_bytes(self._longest)
            if frame == GOODBYE:
                self._gone.add(self._names.get(line) or "")
                self._drop(line)
                return None
            failure = read_failure(frame)
            message = None if failure else decode(frame)
        except (EOFError, OSError, ValueError):
            # The other end is gone, or speaks nonsense: a site calls again.
            self._drop(line)
            return None
        name = failure[0] if failure else getattr(message, "site", "")
        if name not in self.session.coordinator.sites:
            known = ", ".join(self.session.coordinator.sites)
            self._say(line, REJECT + f"it is called {name!r}, this run has {known}".encode())
            self._drop(line)
        elif failure:
            self.reception.fail(*failure)
            self._drop(line)
        elif isinstance(message, Update):
            self._bind(line, name)
            return message
        return None

    def _bind(self, line: Connection, name: str) -> None:
        """This is now the line of that site."""
        before = self.lines.get(name)
        if before is line:
            return
        if before is not None:
            self._drop(before)
        self.lines[name], self._names[line] = line, name

    def _drop(self, line: Connection) -> None:
        name = self._names.pop(line, None)
        if name is not None and self.lines.get(name) is line:
            del self.lines[name]
        with broken_line():
            line.close()

    def _say(self, line: Connection, frame: bytes) -> None:
        try:
            line.send_bytes(frame)
        except (EOFError, OSError):
            self._drop(line)

    def _send(self, answers: Iterable[Answer]) -> None:
        """An answer to a site that is away is lost: it will ask again."""
        for answer in answers:
            line = self.lines.get(answer.site)
            if line is not None:
                self._say(line, encode(answer))

    def _see_out(self, names: Iterable[str]) -> None:
        """Those who have parted may go; those who have failed must."""
        for name in names:
            line = self.lines.get(name)
            if line is not None and self.reception.has_ended(name):
                reason = self.session.failed.get(name)
                self._say(line, GOODBYE if reason is None else REJECT + reason.encode())

    def _look_after(self) -> None:
        """Start processes again that have died."""
        now = time.monotonic()
        if now - self._looked_at < TICK:
            return
        self._looked_at = now
        for name, each in self.processes.items():
            status = each.status
            if status is None or self.reception.has_ended(name):
                continue
            each.looks_since += 1
            if status == HAS_TOLD and each.looks_since < LOOKS:
                continue
            if status == HAS_TOLD or each.starts > self.transport.restarts:
                self.reception.fail(name, f"its process has ended {each.starts} times, at last with status {status}")
            else:
                each.close()
                each.looks_since = 0
                each.start()
