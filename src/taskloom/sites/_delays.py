"""How long round trips take, and what goes wrong on them: laws for the simulated transport, and waits for the others.

All times are in one unit, seconds where a real clock runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from taskloom.tasks import OptionError, is_number


class Delays(Protocol):
    """The law of the time from an answer to the arrival of the next columns."""

    def draw(self, site: str, rng: np.random.Generator) -> float:
        """The time of one trip."""
        ...


@dataclass(frozen=True)
class OffsetDelays:
    """offset x (1 - jitter + Exp(jitter)), multiplied for slow sites.

    The paper on AMTL has `offset` plus a random value of a law that it does not state. That the random part grows with the
    offset, and is exponential with share 0.27, is what we read out of how the times of its table I grow with the tasks.

    Attributes:
        offset: mean time of a trip.
        jitter: share of it that is random, 0 to 1.
        slow: factors by site, such as {"ward 3": 5}.

    Examples:
        >>> OffsetDelays(2.0, jitter=0.0, slow={"far": 5}).draw("far", np.random.default_rng(0))
        10.0
    """

    offset: float = 1.0
    jitter: float = 0.27
    slow: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_number(self.offset) or not 0 <= self.offset < np.inf:
            raise OptionError(f"`offset`={self.offset!r}: need a time of 0 or more")
        if not is_number(self.jitter) or not 0 <= self.jitter <= 1:
            raise OptionError(f"`jitter`={self.jitter!r}: need a share from 0 to 1")
        if not isinstance(self.slow, Mapping):
            raise OptionError(f"`slow`={self.slow!r}: need factors by site, such as {{'ward 3': 5}}")
        for name, factor in self.slow.items():
            if not is_number(factor) or not 0 < factor < np.inf:
                raise OptionError(f"`slow`: the factor of {name!r} is {factor!r}; need a positive number")

    def draw(self, site: str, rng: np.random.Generator) -> float:
        """The time of one trip."""
        random = rng.exponential(self.jitter) if self.jitter > 0 else 0.0
        return self.offset * (1 - self.jitter + random) * self.slow.get(site, 1.0)


@dataclass(frozen=True)
class Faults:
    """What goes wrong in a simulated network.

    Attributes:
        loss: share of messages, either way, that never arrive.
        duplication: share that arrive twice.
        reordering: share that take up to `patience` longer, so that later ones overtake them.
        crashes: from when to when a site is down, infinity for ever; it comes up with nothing but its rows, and joins again.
        coordinator_crashes: times at which the coordinator dies and comes up at once from its last save.
        patience: time without an answer after which a site sends its message again.

    Examples:
        >>> Faults(loss=0.2).loss
        0.2
    """

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    crashes: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    coordinator_crashes: tuple[float, ...] = ()
    patience: float = 20.0

    def __post_init__(self) -> None:
        for name in ("loss", "duplication", "reordering"):
            share = getattr(self, name)
            if not is_number(share) or not 0 <= share < 1:
                raise OptionError(f"`{name}`={share!r}: need a share from 0 to below 1")
        if not is_number(self.patience) or not 0 < self.patience < np.inf:
            raise OptionError(f"`patience`={self.patience!r}: need a positive time")
        if not isinstance(self.crashes, Mapping):
            raise OptionError(f"`crashes`={self.crashes!r}: need (from, to) by site, such as {{'ward 3': (10, 20)}}")
        for site, times in self.crashes.items():
            if not isinstance(times, tuple | list) or len(times) != 2 or not all(map(is_number, times)):
                raise OptionError(f"`crashes`: site {site!r} is down {times!r}; need (from, to)")
            begin, end = times
            if not 0 <= begin < end:
                raise OptionError(f"`crashes`: site {site!r} is down from {begin!r} to {end!r}; need 0 <= from < to")
        for time in self.coordinator_crashes:
            if not is_number(time) or not 0 <= time < np.inf:
                raise OptionError(f"`coordinator_crashes`: {time!r} is no time; need a number of 0 or more")


def check_sites(delays: Delays | None, faults: Faults, names: Iterable[str]) -> None:
    """Refuse delays and crashes of sites that are not there.

    Raises:
        OptionError: there are some.
    """
    known = list(names)
    for parameter, given in (("slow", getattr(delays, "slow", {})), ("crashes", faults.crashes)):
        for name in given:
            if name not in known:
                raise OptionError(f"`{parameter}`: {name!r} is none of the sites; known are {', '.join(known)}")
