"""The coordinator: the model of all tasks, and what it knows of each site. No thread, clock or socket is in here.

Letters: K tasks, d features, V (d, K) auxiliary matrix, W = prox(V) the model, gamma step, eta relaxation, tau delay of a
column in updates: how many others came in between the answer that it was worked out from and its arrival.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from taskloom.linear import Penalty
from taskloom.sites._messages import Answer, Update
from taskloom.sites._methods import Method, StepOptions
from taskloom.tasks import Array, DataError

log = logging.getLogger(__name__)

# Delays that the dynamic step looks back on, as in the paper's experiments.
RECENT = 5
# Greatest curvatures of a loss that a step is taken from. What is below is none, as of features that do not vary; what is above
# is no bound, as of a Poisson loss. Between them no step overflows.
LEAST_CURVATURE, MOST_CURVATURE = 1e-100, 1e100


@dataclass
class SiteRecord:
    """What the coordinator knows of a site.

    Attributes:
        tasks: columns of its tasks.
        sequence: of the last message that was taken; -1 before it joined.
        updates: columns taken.
        answered: version of the model in the last answer.
        asked_at: clock at the last answer; NaN before.
        seen_at: clock at the last message.
        staleness: tau of the last update.
        most_stale: greatest so far.
        residual: norm of its last step, as if it had been a full one; NaN before the first.
        refused: messages that were not taken.
        duplicates: messages that had been seen before.
        delays: last few times from answer to arrival, in units of the clock.
        intercepts: (m,) when it has parted.
    """

    tasks: list[int]
    sequence: int = -1
    updates: int = 0
    answered: int = 0
    asked_at: float = np.nan
    seen_at: float = np.nan
    staleness: int = 0
    most_stale: int = 0
    residual: float = np.nan
    refused: int = 0
    duplicates: int = 0
    delays: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    intercepts: Array | None = None

    @cached_property
    def block(self) -> slice | list[int]:
        """`tasks`, as the quickest index of columns."""
        first, m = self.tasks[0], len(self.tasks)
        return slice(first, first + m) if self.tasks == list(range(first, first + m)) else self.tasks


@dataclass(frozen=True)
class Waiting:
    """A site that is owed an answer.

    Attributes:
        epoch: of its last message; -1 if it does not know its columns: it joins, or was refused.
        refusal: why its last message was not taken.
    """

    epoch: int
    refusal: str = ""


@dataclass(frozen=True)
class StopRule:
    """When a run is over.

    Attributes:
        tol: the fixed-point residual relative to the norm of V, below which every site must have reported; 0 for never.
        max_updates: of all sites together.
        max_rounds: of each site; None for no limit.
    """

    tol: float = 1e-6
    max_updates: int = 100_000
    max_rounds: int | None = None


class Coordinator(ABC):
    """What all methods have in common: who is who, what is taken, when it is over.

    Args:
        sites: columns of the tasks of each site, by its name.
        n_features: d.
        rule: when it is over.
        penalty: of the model.
        method: of all sites.
        steps: their lengths.

    Attributes:
        version: updates so far.
        epoch: rises when the step changes.
        sites: the record of each site.
        converged: whether the residual fell below the tolerance.
        lost: sites that nothing more is to come from; their columns stay what they were.
        max_norm: greatest norm of a site's columns that is believed.
    """

    def __init__(
        self,
        sites: Mapping[str, Sequence[int]],
        n_features: int,
        rule: StopRule,
        penalty: Penalty,
        method: Method,
        steps: StepOptions,
    ) -> None:
        self.sites = {name: SiteRecord(list(tasks)) for name, tasks in sites.items()}
        self.n_tasks, self.n_features = sum(len(each.tasks) for each in self.sites.values()), n_features
        self.rule, self.penalty, self.method, self.steps = rule, penalty, method, steps
        self.version, self.epoch = 0, 0
        self.converged, self.is_over = False, False
        self.lost: set[str] = set()
        self.max_norm = np.inf
        self._waiting: dict[str, Waiting] = {}
        self._quiet: set[str] = set()
        # The first model since the residual fell below the tolerance: what was worked out from an older one says nothing of it.
        self._quiet_from = 0

    def receive(self, message: Update, now: float) -> str:
        """Take a message in; whoever sent it is owed an answer, see `answers`.

        Messages that were seen before change nothing, but are answered: the last answer may have been lost. So is a site that
        parts before the run is over, as one may whose coordinator died and began again from an older save: it is told where it
        stands, and goes on.

        Args:
            message: of a site.
            now: the clock.

        Returns:
            Why it cannot be taken; empty if it can.

        Raises:
            DataError: there is no such site.
        """
        site = self.sites.get(message.site)
        if site is None:
            raise DataError(f"`site`={message.site!r} is none of this run's; known are {', '.join(self.sites)}")
        site.seen_at = now
        refusal = self._flaw(message, site)
        if refusal:
            site.refused, site.sequence = site.refused + 1, max(site.sequence, message.sequence)
            log.warning("refused a message of site %s: %s", message.site, refusal)
            self._waiting[message.site] = Waiting(-1, refusal)
            return refusal
        if message.intercepts is not None and self.is_over:
            site.intercepts = message.intercepts
            return ""
        is_known = message.sequence > 0 and message.intercepts is None
        self._waiting[message.site] = Waiting(message.epoch if is_known else -1)
        if message.intercepts is not None:
            log.info("site %s parted before the run was over, and is told to go on", message.site)
            site.sequence = max(site.sequence, message.sequence)
        elif message.sequence == 0:
            self._join(message, site)
        elif message.sequence <= site.sequence:
            site.duplicates += 1
        else:
            site.sequence = message.sequence
            if not self.is_over:
                self._take(message, site, now)
        return ""

    def answers(self, now: float) -> list[Answer]:
        """Answers to all sites that can go on now; the model's map is taken once for all of them."""
        due = list(self._waiting) if self.is_over else self._due(list(self._waiting))
        return [self._answer(name, self._waiting.pop(name), now) for name in due]

    def is_waiting(self, name: str) -> bool:
        """Whether a site is owed an answer."""
        return name in self._waiting

    def stop(self) -> None:
        """End the run: every site is told with its next answer."""
        self.is_over = True

    def recheck(self) -> None:
        """Take nothing for settled: data, tolerance and limits may be others than when the state was saved."""
        rounds, sites = self.rule.max_rounds, self.sites.values()
        spent = rounds is not None and all(site.updates >= rounds for site in sites)
        self.converged, self.is_over = False, spent or self.version >= self.rule.max_updates
        self._quiet, self._quiet_from = set(), self.version + 1
        for site in sites:
            site.residual = np.nan
            site.intercepts = site.intercepts if self.is_over else None

    def lose(self, name: str) -> None:
        """Wait no longer for a site, unless it joins again: the run ends, unconverged, when the others have settled."""
        self.lost.add(name)
        self._waiting.pop(name, None)

    @abstractmethod
    def finish(self) -> Array:
        """(d, K) the model W: one more proximal map of V."""

    def _flaw(self, message: Update, site: SiteRecord) -> str:
        """Why a message cannot be taken; empty if it can."""
        m = len(site.tasks)
        shapes = {"columns": (self.n_features, m), "curvature": (m,), "intercepts": (m,)}
        for name, wanted in shapes.items():
            value = getattr(message, name)
            if value is None:
                continue
            if np.shape(value) != wanted:
                return f"`{name}` has shape {np.shape(value)}; need {wanted}, features x tasks of the site"
            norm = math.sqrt(np.vdot(value, value))
            # A norm tells in one pass that all numbers are finite; where it does not, it may have overflowed.
            is_suspect = not math.isfinite(norm)
            if is_suspect and (np.isnan(value).any() or (name != "curvature" and np.isinf(value).any())):
                return f"`{name}` holds a number that is not finite; check the rows of the site for extreme values"
            if name == "columns" and norm > self.max_norm:
                return f"`columns` have the norm {norm:.1e}, above {self.max_norm:g}; check the units of the site's rows"
        if message.sequence > 0 and message.columns is None and message.intercepts is None:
            return "there are no `columns` in it"
        if message.version < 0:
            return f"`version`={message.version}: a model has seen 0 updates or more"
        return "" if message.curvature is None else self._flaw_of_curvature(message.curvature)

    def _flaw_of_curvature(self, curvature: Array) -> str:
        """Why steps cannot be taken from what a site that joins says of its losses; empty if they can."""
        least, most = float(curvature.min(initial=0.0)), float(curvature.max(initial=0.0))
        if least < 0:
            return f"`curvature` is {least:.1e}; that of a convex loss is 0 or more"
        if most > MOST_CURVATURE and self.method.local == "gradient" and self.steps.step is None:
            return (
                f"`curvature` is {most:.1e}, but gradient steps need a bounded curvature; "
                "check the units of the site's rows, or use `local-prox`"
            )
        return ""

    def _gradient_step(self, curvature: Array) -> float:
        """The method's step on losses of these greatest curvatures."""
        return self.method.steps / max(float(curvature.max()), LEAST_CURVATURE)

    def _join(self, message: Update, site: SiteRecord) -> None:
        """A site is there, or there again."""
        self.lost.discard(message.site)
        site.sequence = max(site.sequence, 0)

    @abstractmethod
    def _take(self, message: Update, site: SiteRecord, now: float) -> None:
        """Take the columns of a new message."""

    @abstractmethod
    def _due(self, waiting: list[str]) -> list[str]:
        """Which of the waiting sites can be answered now."""

    @abstractmethod
    def _answer(self, name: str, waiting: Waiting, now: float) -> Answer:
        """The answer to one site."""

    def _count(self, message: Update, residual: float, now: float) -> None:
        """Book a column that was taken."""
        site = self.sites[message.site]
        site.staleness = max(0, self.version - message.version)
        self.version += 1
        site.updates += 1
        site.most_stale = max(site.most_stale, site.staleness)
        site.residual = residual
        if math.isfinite(site.asked_at):
            site.delays.append(now - site.asked_at)

    @property
    def residual(self) -> float:
        """Norm of the last steps of all sites, relative to that of V; infinite until all have taken one."""
        each = [site.residual for name, site in self.sites.items() if name not in self.lost]
        norm = math.hypot(*each)
        return math.inf if math.isnan(norm) or not each else norm / max(self._size(), 1e-300)

    @abstractmethod
    def _size(self) -> float:
        """Norm of V, or of the model where V is zero."""

    def _check_over(self, reported: Iterable[str], version: int, residual: float) -> None:
        """Stop when all sites have reported since the residual fell below the tolerance, or a limit is reached.

        Args:
            reported: sites whose columns have just come.
            version: of the model that these were worked out from.
            residual: after them, see `residual`.
        """
        if not residual < self.rule.tol:
            self._quiet.clear()
            self._quiet_from = self.version + 1
        # A later one than there is was worked out before the coordinator was restarted from an older state.
        elif self._quiet_from <= version <= self.version:
            self._quiet.update(reported)
            if len(self._quiet | self.lost) == len(self.sites):
                self.is_over, self.converged = True, not self.lost
        rounds = self.rule.max_rounds
        spent = rounds is not None and all(site.updates >= rounds or name in self.lost for name, site in self.sites.items())
        self.is_over = bool(self.is_over or spent or self.version >= self.rule.max_updates)

    def verdict(self) -> str:
        """Why the run is over, or what keeps it from being so."""
        if self.converged:
            return f"converged: the residual is {self.residual:.1e} of V's norm (tol {self.rule.tol:g})"
        if self.lost:
            return (
                f"not converged: site {', '.join(sorted(self.lost))} was lost, and the model is that of its last columns; "
                f"the residual of the others is {self.residual:.1e} after {self.version} updates"
            )
        silent = [name for name, site in self.sites.items() if site.updates == 0]
        if silent:
            return f"not converged after {self.version} updates: never heard of site {', '.join(silent)}"
        # A slow site is as late as it was before: one that is much later than ever is gone.
        gone = [name for name, s in self.sites.items() if self.version - s.answered > 3 * (s.most_stale + len(self.sites))]
        late = gone or [name for name in self.sites if self._quiet and name not in self._quiet]
        waits = f"; {'nothing came any more from' if gone else 'waiting for'} site {', '.join(late[:5])}" if late else ""
        return f"not converged after {self.version} updates: the residual is {self.residual:.1e} (tol {self.rule.tol:g}){waits}"

    def state_dict(self) -> dict[str, Any]:
        """Everything that goes on depends on: plain numbers, and arrays under `arrays`."""
        kept = ("sequence", "updates", "answered", "staleness", "most_stale", "residual", "refused", "duplicates")
        return {
            "version": self.version,
            "epoch": self.epoch,
            "converged": self.converged,
            "is_over": self.is_over,
            "quiet": sorted(self._quiet),
            "quiet_from": self._quiet_from,
            "sites": {
                name: {key: getattr(site, key) for key in kept}
                | {
                    "tasks": site.tasks,
                    "delays": list(site.delays),
                    "intercepts": None if site.intercepts is None else site.intercepts.tolist(),
                }
                for name, site in self.sites.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            DataError: it is of other sites.
        """
        mine = {name: site.tasks for name, site in self.sites.items()}
        theirs = {name: list(site["tasks"]) for name, site in state["sites"].items()}
        if mine != theirs:
            raise DataError(
                f"`state` is of sites and tasks {theirs}, this run has {mine}; give the data that it was begun with"
            )
        self.version, self.epoch = int(state["version"]), int(state["epoch"])
        self.converged, self.is_over, self._quiet = state["converged"], state["is_over"], set(state["quiet"])
        self._quiet_from = int(state["quiet_from"])
        for name, kept in state["sites"].items():
            values = {key: value for key, value in kept.items() if key not in ("tasks", "delays", "intercepts")}
            intercepts = None if kept["intercepts"] is None else np.array(kept["intercepts"])
            delays = deque(kept["delays"], maxlen=RECENT)
            self.sites[name] = SiteRecord(mine[name], **values, delays=delays, intercepts=intercepts)
