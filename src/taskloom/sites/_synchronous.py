"""The coordinator of synchronous methods: a round is over when all sites have answered.

Letters: K tasks, d features, W (d, K) the model, Y (d, K) the point at which gradients are taken, V (d, K) the forward steps
from it, gamma step, L greatest curvature of a task's loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from taskloom.linear import Penalty, column_prox
from taskloom.sites._coordinator import Coordinator, SiteRecord, StopRule, Waiting
from taskloom.sites._messages import Answer, Update
from taskloom.sites._methods import Method, StepOptions
from taskloom.tasks import Array


class SynchronousCoordinator(Coordinator):
    """Proximal gradient steps (SMTL, the baseline of Baytas and others, ICDM 2016), or accelerated ones.

    The acceleration is FISTA's (Beck & Teboulle 2009), begun anew where a step points back (O'Donoghue & Candes 2015). The step
    is known once every site has joined.

    Args:
        sites: columns of the tasks of each site, by its name.
        n_features: d.
        rule: when it is over.
        penalty: of the model.
        method: whose steps are synchronous.
        steps: their lengths.
    """

    def __init__(
        self,
        sites: Mapping[str, Sequence[int]],
        n_features: int,
        rule: StopRule,
        penalty: Penalty,
        method: Method,
        steps: StepOptions = StepOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(sites, n_features, rule, penalty, method, steps)
        zero = np.zeros((n_features, self.n_tasks))
        column_prox(penalty, 1.0, zero)
        self.W, self.Y, self.V = zero, zero.copy(), zero.copy()
        self.curvature = np.full(self.n_tasks, np.nan)
        self.momentum = 1.0
        self.arrived: set[str] = set()

    @property
    def step(self) -> float:
        """Gamma."""
        return self._gradient_step(self.curvature) if self.steps.step is None else self.steps.step

    def finish(self) -> Array:
        return self.W

    def _join(self, message: Update, site: SiteRecord) -> None:
        super()._join(message, site)
        if message.curvature is not None:
            self.curvature[site.tasks] = message.curvature

    def _take(self, message: Update, site: SiteRecord, now: float) -> None:
        if message.columns is None or message.epoch != self.epoch:
            return
        self.V[:, site.tasks] = message.columns
        self.arrived.add(message.site)
        self._count(message, site.residual, now)
        if len(self.arrived) == len(self.sites):
            self._end_round()

    def _end_round(self) -> None:
        new = column_prox(self.penalty, self.step, self.V).matrix()
        moved = new - self.Y
        for site in self.sites.values():
            site.residual = float(np.linalg.norm(moved[:, site.tasks]))
        if self.method.is_accelerated:
            if float(np.vdot(-moved, new - self.W)) > 0:
                self.momentum = 1.0
            momentum = (1 + np.sqrt(1 + 4 * self.momentum**2)) / 2
            self.Y = new + (self.momentum - 1) / momentum * (new - self.W)
            self.momentum = momentum
        else:
            self.Y = new
        self.W = new
        self.arrived.clear()
        self.epoch += 1
        self._check_over(self.sites, self.version, self.residual)

    def _due(self, waiting: list[str]) -> list[str]:
        """Nobody before all have joined; then those that have not yet reported in this round."""
        is_blind = self.steps.step is None and np.isnan(self.curvature).any()
        if is_blind or any(site.sequence < 0 for site in self.sites.values()):
            return []
        return [name for name in waiting if name not in self.arrived]

    def _answer(self, name: str, waiting: Waiting, now: float) -> Answer:
        site = self.sites[name]
        columns = (self.W if self.is_over else self.Y)[:, site.tasks].copy()
        site.answered, site.asked_at = self.version, now
        restart = columns if waiting.epoch < 0 else None
        return Answer(
            name, site.sequence, self.epoch, self.version, columns, self.step, 1.0, restart, self.is_over, waiting.refusal
        )

    def _size(self) -> float:
        return float(np.linalg.norm(self.W))

    def state_dict(self) -> dict[str, Any]:
        arrays = {"W": self.W, "Y": self.Y, "V": self.V, "curvature": self.curvature}
        numbers = {"momentum": self.momentum, "arrived": sorted(self.arrived)}
        return super().state_dict() | numbers | {"arrays": arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        arrays = {name: np.array(value) for name, value in state["arrays"].items()}
        self.W, self.Y, self.V, self.curvature = arrays["W"], arrays["Y"], arrays["V"], arrays["curvature"]
        self.momentum, self.arrived = float(state["momentum"]), set(state["arrived"])
