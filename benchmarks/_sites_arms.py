"""Ways to beat `local-prox` that were tried: they live here, since none of them has earned its place in the package.

Letters: K tasks, d features, m tasks of a site, V (d, K) auxiliary matrix, v (d, m) columns of it, p (d, m) the answer to them,
z (d, m) the site's proximal points, gamma step, eta relaxation, beta inertia.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from taskloom.sites import (
    Answer,
    AsynchronousCoordinator,
    Delays,
    Session,
    SimulatedTransport,
    Site,
    SiteRecord,
    Update,
)


class Inertial(Site):
    """A heavy ball at each site: beta of the last change of its column comes on top; at a fixed point there is none."""

    beta = 0.3
    _before: np.ndarray | None = None

    def take(self, answer: Answer) -> Update | None:
        v = np.array(self.columns if answer.restart is None else answer.restart)
        last = self._before if answer.restart is None else None
        message = super().take(answer)
        if message is None or message.columns is None:
            return message
        self._before = v
        return message if last is None else _instead(self, message, message.columns + self.beta * (v - last))


class Predicting(Site):
    """Two local steps a trip: the answer to the first is foretold from how the last answers followed the site's own columns.

    p(v') = p + a (v' - v) with a the slope of the last two answers on the last two columns, 0 to 1. Fixed points stay where
    they are: there, the first step leads nowhere.
    """

    _before: tuple[np.ndarray, np.ndarray] | None = None

    def take(self, answer: Answer) -> Update | None:
        v, p = np.array(self.columns if answer.restart is None else answer.restart), np.array(answer.columns)
        last = self._before if answer.restart is None else None
        message = super().take(answer)
        if message is None or message.columns is None:
            return message
        self._before = v, p
        if last is None:
            return message
        first, change = message.columns, v - last[0]
        slope = float(np.clip(np.vdot(change, p - last[1]) / max(float(np.vdot(change, change)), 1e-300), 0.0, 1.0))
        foretold = p + slope * (first - v)
        pairs = zip(self.losses, (2 * foretold - first).T, strict=True)
        z = np.stack([loss(point, answer.step) for loss, point in pairs], axis=1)
        return _instead(self, message, first + answer.relaxation * (z - foretold))


def _instead(site: Site, message: Update, columns: np.ndarray) -> Update:
    """The same message with other columns, also in the site's own memory."""
    site.columns, site._last = columns, replace(message, columns=columns)
    return site._last


class DroppingCoordinator(AsynchronousCoordinator):
    """Columns that were worked out at a step before this one are not taken, instead of being converted."""

    def _take(self, message: Update, site: SiteRecord, now: float) -> None:
        if message.epoch == self.epoch:
            super()._take(message, site, now)


class AndersonCoordinator(AsynchronousCoordinator):
    """Anderson extrapolation (type II) of V over rounds of K updates.

    A column that comes in is taken as a change of the one that the site was sent, so that extrapolated columns are not lost to
    messages under way. The memory is emptied where a round's change is twice the least so far. For a fixed step.
    """

    memory, period = 5, 1

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._sent: dict[str, np.ndarray] = {}
        self._rounds = 0
        self._forget()

    def _forget(self) -> None:
        self._points: list[np.ndarray] = []
        self._changes: list[np.ndarray] = []
        self._least = np.inf
        self._from = self.prox.V.copy()

    def _answer(self, name: str, waiting: Any, now: float) -> Answer:
        answer = super()._answer(name, waiting, now)
        self._sent[name] = self.prox.V[:, self.sites[name].tasks].copy()
        return answer if answer.stop else replace(answer, restart=self._sent[name])

    def _take(self, message: Update, site: SiteRecord, now: float) -> None:
        if message.epoch == self.epoch and message.columns is not None and message.site in self._sent:
            moved = self.prox.V[:, site.tasks] + message.columns - self._sent[message.site]
            message = replace(message, columns=moved)
        super()._take(message, site, now)

    def _end_round(self) -> None:
        super()._end_round()
        self._rounds += 1
        if self._rounds % self.period == 0:
            self._extrapolate()

    def _extrapolate(self) -> None:
        change = (self.prox.V - self._from).ravel(order="F")
        length = float(np.linalg.norm(change))
        if length > 2 * self._least:
            self._forget()
            return
        self._least = min(self._least, length)
        self._points = [*self._points, self._from.ravel(order="F")][-self.memory - 1 :]
        self._changes = [*self._changes, change][-self.memory - 1 :]
        if len(self._points) > 2:
            dX, dF = np.diff(self._points, axis=0).T, np.diff(self._changes, axis=0).T
            gram = dF.T @ dF
            weights = np.linalg.solve(gram + 1e-8 * np.trace(gram) * np.eye(len(gram)), dF.T @ change)
            new = self.prox.V - ((dX + dF) @ weights).reshape(self.prox.V.shape, order="F")
            for t in range(self.n_tasks):
                self.prox.set(t, new[:, t])
        self._from = self.prox.V.copy()


class Arm(SimulatedTransport):
    """The simulated network with sites or a coordinator of another kind.

    Args:
        delays: law of the trips.
        seed: of them.
        site: kind of the sites.
        coordinator: kind of the coordinator; None for the package's own.
        options: attributes of the sites or of the coordinator.
    """

    def __init__(
        self,
        delays: Delays,
        seed: int,
        site: type[Site] = Site,
        coordinator: type[AsynchronousCoordinator] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(delays, seed=seed)
        self.site, self.coordinator, self.options = site, coordinator, options

    def run(self, session: Session, make_sites: Mapping[str, Callable[[], Site]]) -> None:
        """Until every site has parted."""
        if self.coordinator is not None:
            plain: Any = session.coordinator
            sites = {name: each.tasks for name, each in plain.sites.items()}
            other = self.coordinator(sites, plain.n_features, plain.rule, plain.penalty, plain.method, plain.steps)
            vars(other).update(self.options)
            session.replace(other)
        super().run(session, {name: lambda make=make: self._convert(make()) for name, make in make_sites.items()})

    def _convert(self, plain: Site) -> Site:
        if self.site is Site:
            return plain
        other = self.site(plain.name, plain.losses, len(plain.columns), plain.local)
        vars(other).update(self.options)
        return other
