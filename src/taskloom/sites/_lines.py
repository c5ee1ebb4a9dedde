"""Lines between processes: sockets that carry frames of bytes, opened by whoever knows the key.

A frame is a message (`encode`), or one of the signs below. Nothing that comes over a line is unpickled.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import socket
import stat
import struct
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any, Self

from taskloom.sites._messages import one_line
from taskloom.tasks import OptionError

Address = str | tuple[str, int]

log = logging.getLogger(__name__)

# To a site: its parting message has come, it may go. From a site: it goes.
GOODBYE = b""
# To a site: the run is over, do not sleep before the next message.
HURRY = b"?"
# To a site, with a reason: it is not wanted. From a site, see `failure`: it has ended with an error.
REJECT = b"!"

# Seconds that either end has for a handshake, and for the rest of a frame that it has begun.
FRAME_SECONDS = 5.0
# Characters that are kept of why a site has ended.
MOST_REASON = 2000
# Paths of Unix sockets have about 104 bytes on some systems.
LONGEST_PATH = 100


def failure(name: str, reason: str) -> bytes:
    """The frame by which a site says that it has ended with an error."""
    return REJECT + json.dumps([name, reason]).encode()


def read_failure(frame: bytes) -> tuple[str, str] | None:
    """Name and reason of a `failure`; None if the frame is none.

    Raises:
        ValueError: the frame only begins like one.
    """
    if not frame.startswith(REJECT):
        return None
    try:
        name, reason = json.loads(frame[len(REJECT) :])
    except (TypeError, RecursionError) as error:
        raise ValueError("not a name and a reason") from error
    return str(name), one_line(str(reason), MOST_REASON)


class Server:
    """Where lines come in: a listening socket, with `fileno` so that it can be waited for.

    Args:
        address: path of a Unix socket, or (host, port), port 0 for any; None for a Unix socket in a private folder, or the
            loopback where there are none. A Unix socket that a dead process has left behind is taken over.
        authkey: what both ends must know; None for a new one.

    Raises:
        OptionError: nothing can listen at the address.
    """

    def __init__(self, address: Address | None = None, authkey: bytes | None = None) -> None:
        self.authkey = secrets.token_bytes(32) if authkey is None else authkey
        self._folder: Path | None = None
        self._path: Path | None = None
        if address is None:
            address = self._private_address()
        if isinstance(address, str) and not hasattr(socket, "AF_UNIX"):
            raise OptionError(f"`address`={address!r}: there are no Unix sockets here; give (host, port)")
        self._socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        try:
            self._bind(address)
        except OSError as error:
            self.close()
            raise OptionError(
                f"`address`={address!r}: cannot listen there ({error}); choose another, or end who does"
            ) from error
        self.address: Address = address if isinstance(address, str) else self._socket.getsockname()[:2]
        self._path = Path(address) if isinstance(address, str) else None

    def _private_address(self) -> Address:
        if not hasattr(socket, "AF_UNIX"):
            return ("127.0.0.1", 0)
        self._folder = Path(tempfile.mkdtemp(prefix="taskloom-"))
        path = str(self._folder / "coordinator")
        return path if len(os.fsencode(path)) <= LONGEST_PATH else ("127.0.0.1", 0)

    def _bind(self, address: Address) -> None:
        if isinstance(address, str):
            _clear(Path(address))
        elif os.name == "posix":
            # A port is free again at once after a coordinator that was killed.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(address)
        self._socket.listen(128)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Of the listening socket."""
        return self._socket.fileno()

    def accept(self) -> Connection | None:
        """The line of who has called, if it knows the key; else None."""
        try:
            peer, _ = self._socket.accept()
        except OSError:
            return None
        peer.setblocking(True)
        _limit(peer)
        line = Connection(peer.detach())
        try:
            deliver_challenge(line, self.authkey)
            answer_challenge(line, self.authkey)
        except (AuthenticationError, EOFError, OSError) as error:
            log.warning("a caller was turned away: %s", error or "it hung up")
            line.close()
            return None
        return line

    def close(self) -> None:
        """Nothing is left on disk."""
        self._socket.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _clear(path: Path) -> None:
    """Remove a Unix socket at which nobody listens."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


def _limit(peer: socket.socket) -> None:
    """A peer that stops in the middle of a frame must not stop the coordinator."""
    whole = int(FRAME_SECONDS)
    value: Any = whole * 1000 if os.name == "nt" else struct.pack("ll", whole, int((FRAME_SECONDS - whole) * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        peer.setsockopt(socket.SOL_SOCKET, option, value)


@contextmanager
def broken_line() -> Generator[None]:
    """A line that has broken is not an error of whoever closes it or speaks a last word."""
    try:
        yield
    except (EOFError, OSError):
        log.debug("a line broke", exc_info=True)
