"""What `engines_flare.py` has FLARE build: a coordinator that echoes and coordinates, and sites that time both in turn.

Letters: d numbers of a message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from nvflare.collab import collab

from _engine_pings import Pinger, ping_job
from taskloom.engines import Desk, take_part
from taskloom.engines._flare_server import FlareCoordinator

CLASSES = ("_flare_pings.PingCoordinator", "_flare_pings.PingSite")


class PingCoordinator(FlareCoordinator):
    """Rounds of two applications in turn: a bare echo, and a job's coordinator.

    Args:
        names: of the sites.
        d: of a message.
        trips: of each site, application and round.
        rounds: how many.
        folder: that sites write their times to.
    """

    def __init__(self, names: list[str], d: int, trips: int, rounds: int, folder: str) -> None:
        super().__init__("")
        self.names, self.d, self.trips, self.rounds, self.folder = names, d, trips, rounds, folder

    @collab.init
    def open(self) -> None:
        """A job's desk, for the first round."""
        logging.getLogger("nvflare.collab").setLevel(logging.WARNING)

    @collab.publish
    def echo(self, raw: bytes) -> bytes:
        """The same."""
        return raw

    @collab.main
    def coordinate(self) -> None:
        """All rounds; all sites begin each at the same time."""
        for turn in range(self.rounds):
            self._desk = Desk(ping_job(self.names, self.d, self.trips, f"{self.folder}/job{turn}"))
            # In turn, and not always the same one first.
            for is_ours in (turn % 2 == 0, turn % 2 == 1):
                list(collab.clients(timeout=600.0).call(is_ours, self.d, self.trips, f"{self.folder}/{int(is_ours)}-{turn}"))


class PingSite:
    """A site without rows."""

    @collab.publish
    def call(self, is_ours: bool, d: int, trips: int, folder: str) -> str:
        """All trips of a round."""
        logging.getLogger("nvflare.collab").setLevel(logging.WARNING)
        name, server = collab.site_name, collab.server
        Path(folder).mkdir(exist_ok=True, parents=True)
        if is_ours:
            take_part(Pinger(name, d, folder), server(timeout=60.0).ask)  # ty: ignore[invalid-argument-type]
        else:
            np.save(f"{folder}/{name}.npy", np.array(_times(server(timeout=60.0).echo, d, trips)))
        return ""


def _times(call: Callable[[bytes], Any], d: int, trips: int) -> list[float]:
    value, seconds = np.random.default_rng(0).normal(size=(d, 1)), []
    for _ in range(trips):
        began = perf_counter()
        np.frombuffer(call(value.tobytes()))
        seconds.append(perf_counter() - began)
    return seconds
