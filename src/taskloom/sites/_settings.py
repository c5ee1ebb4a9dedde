"""How a run goes: when it ends, what it keeps, what the network is like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from taskloom.sites._coordinator import StopRule
from taskloom.sites._delays import Delays, Faults, OffsetDelays
from taskloom.sites._methods import StepOptions
from taskloom.sites._privacy import GaussianRelease
from taskloom.sites._session import Observer
from taskloom.tasks import OptionError, is_number, is_whole


class RunSettings(TypedDict, total=False):
    """Keyword arguments of `fit` on how a run goes.

    Attributes:
        sites: names of the tasks that each site holds; if not given, one site a task, of its name.
        delays: time of a round trip: a number for `OffsetDelays` of that mean, a law of your own, or None for no delay.
        faults: what goes wrong in a simulated network.
        max_updates: of all sites together.
        max_rounds: of each site; None for no limit.
        tol: the run ends when the fixed-point residual, relative to the norm of V, is below this and every site has reported
            since. It is seen from the coordinator: no bound on the distance from the optimum.
        gap: the run ends when the relative duality gap is below this. Only where all rows are at hand, as they are here.
        seed: of delays and faults.
        callback: called with the `Session` after every batch of messages, with real sites also while none comes; its
            `coordinator.stop()` ends the run.
        step: gamma, in place of the method's own.
        relaxation: greatest relaxation eta, in place of the method's own.
        is_dynamic: the paper's dynamic step, for `amtl-paper`.
        unit: of the dynamic step, in units of the clock.
        checkpoint: file that the coordinator is saved to; where it is there already, the run goes on from it.
        checkpoint_every: updates between two saves.
        look_every: updates between two looks at the model for the history; default one of each site.
        release: what becomes of columns before they leave a site: see `GaussianRelease`; each site has noise of its own. Such a
            run ends by `max_rounds`, `max_updates` or `gap`, never by `tol`.
        withhold: whether curvatures and intercepts stay at the sites: see `Withheld`. For `local-prox`, or with `step`.
        give_up: seconds without a word of a site that owes one, after which it counts as lost until it is heard of again; None
            to wait for ever. More than a site's longest step and its start. For `processes`.
    """

    sites: Mapping[str, Sequence[str]] | None
    delays: float | Delays | None
    faults: Faults
    max_updates: int
    max_rounds: int | None
    tol: float
    gap: float | None
    seed: int
    callback: Observer | None
    step: float | None
    relaxation: float | None
    is_dynamic: bool
    unit: float
    checkpoint: str | Path | None
    checkpoint_every: int
    look_every: int | None
    release: GaussianRelease | None
    withhold: bool
    give_up: float | None


@dataclass(frozen=True)
class Settings:
    """The same as `RunSettings`, checked.

    Raises:
        OptionError: a value outside of what it may be.
    """

    sites: Mapping[str, Sequence[str]] | None = None
    delays: float | Delays | None = None
    faults: Faults = field(default_factory=Faults)
    max_updates: int = 100_000
    max_rounds: int | None = None
    tol: float = 1e-6
    gap: float | None = None
    seed: int = 0
    callback: Observer | None = None
    step: float | None = None
    relaxation: float | None = None
    is_dynamic: bool = False
    unit: float = 1.0
    checkpoint: str | Path | None = None
    checkpoint_every: int = 1000
    look_every: int | None = None
    release: GaussianRelease | None = None
    withhold: bool = False
    give_up: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_updates", "max_rounds", "checkpoint_every", "look_every"):
            value = getattr(self, name)
            if value is not None and not is_whole(value, 1):
                raise OptionError(f"`{name}`={value!r}: need a whole number of at least 1")
        if not is_whole(self.seed, 0):
            raise OptionError(f"`seed`={self.seed!r}: need a whole number of 0 or more")
        for name, least in (
            ("tol", "0 or more"),
            ("gap", "0 or more"),
            ("step", "above 0"),
            ("unit", "above 0"),
            ("give_up", "above 0"),
        ):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0 <= value < np.inf and (value > 0 or least == "0 or more")):
                raise OptionError(f"`{name}`={value!r}: need a number {least}")
        if self.relaxation is not None and not (is_number(self.relaxation) and 0 < self.relaxation < 2):
            raise OptionError(f"`relaxation`={self.relaxation!r}: need a number above 0 and below 2")
        if not isinstance(self.faults, Faults):
            raise OptionError(f"`faults`={self.faults!r}: need Faults(...)")
        if self.sites is not None and not isinstance(self.sites, Mapping):
            raise OptionError(f"`sites`={self.sites!r}: need the names of the tasks by site, such as {{'ward': ['a', 'b']}}")
        if self.callback is not None and not callable(self.callback):
            raise OptionError(f"`callback`={self.callback!r}: need something to call with the session")
        _ = self.steps, self.law

    @property
    def steps(self) -> StepOptions:
        """Lengths of steps."""
        return StepOptions(self.step, self.relaxation, self.is_dynamic, self.unit)

    @property
    def rule(self) -> StopRule:
        """When it is over; clipped or blurred columns that stand still say nothing of the optimum."""
        return StopRule(self.tol if self.release is None else 0.0, self.max_updates, self.max_rounds)

    @property
    def law(self) -> Delays | None:
        """Of the trips."""
        given: Any = self.delays
        if is_number(given):
            if not 0 <= given < np.inf:
                raise OptionError(f"`delays`={given!r}: need a time of 0 or more, or a law with `draw(site, rng)`")
            return OffsetDelays(float(given))
        if given is not None and not hasattr(given, "draw"):
            raise OptionError(f"`delays`={given!r}: need a number, or a law with `draw(site, rng)` such as OffsetDelays")
        return given
