"""A site on a line to its coordinator: the loop of a site in a process of its own, started by hand or by a transport."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from typing import BinaryIO

import numpy as np

from taskloom.sites._delays import Delays
from taskloom.sites._lines import GOODBYE, HURRY, REJECT, Address, broken_line, failure
from taskloom.sites._messages import Answer, decode, encode
from taskloom.sites._reception import describe
from taskloom.sites._site import Site
from taskloom.tasks import DataError, FitError, OptionError

# Seconds between two calls of a coordinator that does not answer: from the first to the last.
FIRST_PAUSE, LAST_PAUSE = 0.02, 0.5
# The longest wait for an answer, in units of the shortest.
MOST_PATIENCE = 8
# Exit status of a site process that has told the coordinator why it ends.
HAS_TOLD = 3


def serve_site(
    address: Address,
    authkey: bytes,
    site: Site,
    *,
    delays: Delays | None = None,
    seed: int | np.random.Generator = 0,
    patience: float = 20.0,
    give_up: float = 600.0,
) -> None:
    """Take part in a run as a site, from wherever this is called, until the run is over.

    The coordinator may come up later than the site; it may be killed and come up again at the same address, from its last save,
    and is found again. The rows stay in this process.

    Args:
        address: of the coordinator: path of a Unix socket, or (host, port).
        authkey: that of the coordinator.
        site: that takes part.
        delays: law of the trips, in seconds, slept after each local step; None for no sleep.
        seed: of the delays.
        patience: seconds without an answer after which the site calls again and repeats its message.
        give_up: seconds without a coordinator after which it ends.

    Raises:
        OptionError: the key is not that of the coordinator, or a time is not positive.
        DataError: the coordinator does not want this site.
        FitError: no coordinator was there for `give_up` seconds.
    """
    for name, value in (("patience", patience), ("give_up", give_up)):
        if not value > 0:
            raise OptionError(f"`{name}`={value!r}: need a positive number of seconds")
    rng = np.random.default_rng(seed)
    call = Call(address, authkey, patience, give_up)
    try:
        call.serve(site, lambda: 0.0 if delays is None else delays.draw(site.name, rng))
    except Exception as error:
        call.tell(site.name, error)
        raise


@dataclass
class Call:
    """A site's way to its coordinator.

    Attributes:
        address: of the coordinator.
        authkey: of both.
        patience: seconds without an answer after which to call again; doubled with each call in vain, up to `MOST_PATIENCE`
            times, so that a coordinator that is slow is not kept busy by calls.
        give_up: seconds without a coordinator after which to end.
        orphaned: set when nobody needs the site any more.
        is_unwanted: whether the coordinator has said so.
    """

    address: Address
    authkey: bytes
    patience: float
    give_up: float = np.inf
    orphaned: threading.Event = field(default_factory=threading.Event)
    is_unwanted: bool = False
    _in_vain: int = 0

    def serve(self, site: Site, rest: Callable[[], float]) -> None:
        """Until the coordinator has said goodbye; `rest` gives the seconds to sleep after a step."""
        while (line := self.dial()) is not None:
            if site.is_over:
                # The coordinator may have died with this site's last word, and may have to begin again.
                site.is_over = False
                site.join()
            with line, broken_line():
                if self._talk(line, site, rest):
                    return
            self.orphaned.wait(FIRST_PAUSE)
        if not site.is_over and not self.orphaned.is_set():
            raise FitError(f"no coordinator at {self.address!r} for {self.give_up:g} s; start it, or raise `give_up`")

    def dial(self) -> Connection | None:
        """A line; None when it is time to give up."""
        began, pause = time.monotonic(), FIRST_PAUSE
        while not self.orphaned.is_set():
            try:
                return Client(self.address, authkey=self.authkey)
            except AuthenticationError as error:
                raise OptionError(f"`authkey` is not that of the coordinator at {self.address!r}") from error
            except (EOFError, OSError):
                if time.monotonic() - began + pause > self.give_up:
                    return None
                self.orphaned.wait(pause)
                pause = min(2 * pause, LAST_PAUSE)
        return None

    def tell(self, name: str, error: Exception) -> bool:
        """Tell the coordinator why the site ends; whether that was possible."""
        if self.is_unwanted:
            return False
        try:
            with Client(self.address, authkey=self.authkey) as line:
                line.send_bytes(failure(name, describe(error)))
        except (AuthenticationError, EOFError, OSError):
            return False
        return True

    def _talk(self, line: Connection, site: Site, rest: Callable[[], float]) -> bool:
        """Whether the coordinator has said goodbye; else there was no answer in time."""
        line.send_bytes(encode(site.hello()))
        # Repeated only when the coordinator has answered: were both to speak at once, both could find the line full.
        must_repeat = site.sequence >= 0
        send_at: float | None = None
        while True:
            patience = self.patience * min(2**self._in_vain, MOST_PATIENCE)
            if not line.poll(patience if send_at is None else max(send_at - time.monotonic(), 0.0)):
                if send_at is None:
                    self._in_vain += 1
                    return False
                line.send_bytes(encode(site.pending))
                send_at = None
                continue
            frame = line.recv_bytes()
            self._in_vain = 0
            if frame == GOODBYE:
                with broken_line():
                    line.send_bytes(GOODBYE)
                return True
            if frame == HURRY:
                send_at = None if send_at is None else 0.0
                continue
            if _take(site, self._answer(frame)):
                seconds = 0.0 if site.is_over else rest()
                if seconds > 0:
                    send_at = time.monotonic() + seconds
                else:
                    line.send_bytes(encode(site.pending))
            elif must_repeat:
                line.send_bytes(encode(site.pending))
            must_repeat = False

    def _answer(self, frame: bytes) -> Answer:
        if frame.startswith(REJECT):
            self.is_unwanted = True
            raise DataError(f"the coordinator does not want this site: {frame[len(REJECT) :].decode()}")
        message = decode(frame)
        if not isinstance(message, Answer):
            raise DataError(f"the coordinator sent {type(message).__name__}, no answer; both ends must run the same version")
        return message


def _take(site: Site, answer: Answer) -> bool:
    """Whether there is something new to send."""
    try:
        return site.take(answer) is not None
    except (EOFError, OSError) as error:
        # Of the site's own, such as a file that it cannot read: not to be taken for a broken line.
        raise RuntimeError(describe(error)) from error


@dataclass(frozen=True)
class Errand:
    """What a site process gets at its start.

    Attributes:
        name: of the site.
        address: of the coordinator.
        authkey: of the coordinator.
        patience: seconds.
        make: how to make the site, pickled, so that a process that cannot unpickle it can still say so.
        delays: law of the trips.
        rng: of the delays.
    """

    name: str
    address: Address
    authkey: bytes
    patience: float
    make: bytes
    delays: Delays | None
    rng: np.random.Generator


def main(stream: BinaryIO, raw: bytes) -> None:
    """A site process, from its start to its end.

    Args:
        stream: that ends when the process that has started this one does.
        raw: an `Errand`, pickled by that process.
    """
    # An interrupt goes to all processes of a terminal; the coordinator is the one that ends the run.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    errand: Errand = pickle.loads(raw)  # noqa: S301 - from the parent, over its own pipe
    call = Call(errand.address, errand.authkey, errand.patience)
    threading.Thread(target=_watch, args=(stream, call.orphaned), daemon=True).start()
    try:
        site = _make(errand)
        delays = errand.delays
        call.serve(site, lambda: 0.0 if delays is None else delays.draw(errand.name, errand.rng))
    except Exception as error:  # noqa: BLE001 - whatever it is, the coordinator is told
        sys.exit(HAS_TOLD if call.tell(errand.name, error) else 1)


def _make(errand: Errand) -> Site:
    try:
        make = pickle.loads(errand.make)  # noqa: S301 - from the parent, over its own pipe
    except (AttributeError, ImportError) as error:
        raise DataError(
            f"its process cannot load how to make it ({error}); define that in a module, not in the script that is run"
        ) from error
    return make()


def _watch(stream: BinaryIO, orphaned: threading.Event) -> None:
    # Not through the stream's buffer: its lock would be held when the interpreter ends.
    while os.read(stream.fileno(), 1):
        pass
    orphaned.set()
