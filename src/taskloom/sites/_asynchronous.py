"""The coordinator of asynchronous methods: every column is answered when it comes.

Letters: K tasks, d features, V (d, K) auxiliary matrix, W = prox(V) the model, U = (V - W) / gamma a subgradient of the penalty
at W, gamma step, eta relaxation, L greatest curvature of a task's loss, tau delay in updates.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from taskloom.linear import Penalty, column_prox
from taskloom.sites._balance import FIRST_STEP, StepBalance, gradient_point, proximal_point
from taskloom.sites._coordinator import LEAST_CURVATURE, MOST_CURVATURE, Coordinator, SiteRecord, StopRule, Waiting
from taskloom.sites._messages import Answer, Update
from taskloom.sites._methods import Method, StepOptions
from taskloom.sites._relaxation import Safeguard, dynamic_factor, theory_bound
from taskloom.tasks import Array


@dataclass(frozen=True)
class Terms:
    """On what terms a site was answered.

    Attributes:
        epoch: of the step.
        step: gamma.
        eta: relaxation.
        told: (d, m) columns of the model in the answer.
        before: (d, m) its columns of V.
    """

    epoch: int
    step: float
    eta: float
    told: Array
    before: Array


class AsynchronousCoordinator(Coordinator):
    """Random block coordinate steps on an averaged operator of V (ARock; Peng, Xu, Yan & Yin 2016).

    With gradient steps the operator is backward-forward (AMTL), with proximal steps Douglas-Rachford; both have W = prox(V) at
    their fixed points, and the same messages. Beyond the papers: a safeguard on the residual instead of a bound on eta,
    and a proximal step that is balanced while running. When the step changes from gamma to gamma', V becomes
    W + (gamma' / gamma) (V - W), which leaves the subgradient U as it is; what sites found at the old one is converted.

    Args:
        sites: columns of the tasks of each site, by its name.
        n_features: d.
        rule: when it is over.
        penalty: of the model.
        method: whose steps are asynchronous.
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
        self.limit = method.relaxation_limit if steps.limit is None else steps.limit
        self.step = 1.0 if steps.step is None else steps.step
        self.prox = column_prox(penalty, self.step, np.zeros((n_features, self.n_tasks)))
        self.curvature = np.zeros(self.n_tasks)
        self.guard = Safeguard(self.limit)
        self.balance = StepBalance(n_features, self.n_tasks)
        self.most_stale = 0
        # Of the last answers: what a site found can be worked out from them.
        self._terms: dict[str, Terms] = {}
        self._round_starts = 0

    @property
    def V(self) -> Array:  # noqa: N802
        """(d, K)."""
        return self.prox.V

    def finish(self) -> Array:
        return self.prox.matrix()

    def _join(self, message: Update, site: SiteRecord) -> None:
        super()._join(message, site)
        if message.curvature is None:
            return
        before = self.curvature.max()
        self.curvature[site.tasks] = message.curvature
        known = self.curvature.max()
        if self.steps.step is not None or known <= before:
            return
        if self.method.local == "gradient":
            self._set_step(self._gradient_step(self.curvature))
        elif not self.version:
            bounds = self.curvature[(self.curvature >= LEAST_CURVATURE) & (self.curvature <= MOST_CURVATURE)]
            self._set_step(FIRST_STEP / float(bounds.mean()) if len(bounds) else 1.0)

    def _set_step(self, step: float) -> None:
        """Go on at another step from the same model and subgradient."""
        W, V = self.prox.matrix(), self.prox.V
        self.prox = column_prox(self.penalty, step, W + (step / self.step) * (V - W))
        self.step = step
        self.epoch += 1

    def _take(self, message: Update, site: SiteRecord, now: float) -> None:
        terms = self._terms.get(message.site)
        # An answer that came twice, or was lost and given anew: which of them the site went on from, it alone knows.
        if terms is not None and (message.version != site.answered or message.epoch != terms.epoch):
            terms = None
        if message.columns is None or (message.epoch != self.epoch and terms is None):
            return
        new = message.columns
        if terms is not None and self._is_balanced:
            self.balance.see(site.tasks, *self._found(new, terms))
        if terms is not None and message.epoch != self.epoch:
            new = self._converted(self.prox.V[:, site.block], new, terms)
        moved = math.hypot(*[self.prox.set(t, column) for t, column in zip(site.tasks, new.T, strict=True)])
        self._count(message, site.residual if terms is None else moved / terms.eta, now)
        self.most_stale = max(self.most_stale, site.staleness)
        residual = self.residual
        if self.version - self._round_starts >= len(self.sites) and self._end_round(residual):
            # A step that has changed has changed V.
            residual = self.residual
        self._check_over([message.site], message.version, residual)

    def _found(self, new: Array, terms: Terms) -> tuple[Array, Array]:
        """The point (d, m) at which a site took gradients, and the gradients."""
        if self.method.local == "gradient":
            return terms.told, gradient_point(terms.before, terms.told, new, terms.step, terms.eta)
        return proximal_point(terms.before, terms.told, new, terms.step, terms.eta)

    def _converted(self, v: Array, new: Array, terms: Terms) -> Array:
        """The columns (d, m) that what a site found at another step leads to at this one.

        With a proximal step it found z and a gradient g with z + gamma g = 2 p - v: at the step of now that is what it would
        have found from p = (z + gamma g + v) / 2, and so it is a step from a model that is a little off, like any old one.
        """
        point, g = self._found(new, terms)
        if self.method.local == "gradient":
            return v + terms.eta * (point - self.step * g - v)
        return v + terms.eta * (point - (point + self.step * g + v) / 2)

    def _end_round(self, residual: float) -> bool:
        """Look at the lengths of steps; whether that of the proximal map has changed."""
        self._round_starts = self.version
        if math.isfinite(residual):
            self.guard.look(residual)
        if not self._is_balanced:
            return False
        rounds = float(statistics.median(site.updates for site in self.sites.values()))
        step = self.balance.look(rounds, self.step)
        if step is None:
            return False
        self._set_step(step)
        return True

    @property
    def _is_balanced(self) -> bool:
        return self.method.local == "prox" and self.steps.step is None

    def _relaxation(self, site: SiteRecord) -> float:
        if self.method.relaxation != "theory":
            return self.guard.eta
        eta = theory_bound(len(self.sites), self.most_stale)
        return min(self.limit, eta * (dynamic_factor(site.delays, self.steps.unit) if self.steps.is_dynamic else 1.0))

    def _due(self, waiting: list[str]) -> list[str]:
        return waiting

    def _answer(self, name: str, waiting: Waiting, now: float) -> Answer:
        site = self.sites[name]
        columns, v = self.prox.columns(site.tasks), self.prox.V[:, site.block].copy()
        site.answered, site.asked_at = self.version, now
        terms = self._terms[name] = Terms(self.epoch, self.step, self._relaxation(site), columns, v)
        numbers = (site.sequence, self.epoch, self.version, columns, self.step, terms.eta)
        return Answer(name, *numbers, None if waiting.epoch == self.epoch else v, self.is_over, waiting.refusal)

    def _size(self) -> float:
        return self.prox.norm

    def state_dict(self) -> dict[str, Any]:
        balance = self.balance.state_dict()
        told, before = np.zeros_like(self.prox.V), np.zeros_like(self.prox.V)
        for name, terms in self._terms.items():
            told[:, self.sites[name].block], before[:, self.sites[name].block] = terms.told, terms.before
        arrays = {"V": self.prox.V, "curvature": self.curvature, "told": told, "from": before} | balance.pop("arrays")
        numbers = {"step": self.step, "most_stale": self.most_stale, "round_starts": self._round_starts}
        numbers["terms"] = {name: [terms.epoch, terms.step, terms.eta] for name, terms in self._terms.items()}
        return super().state_dict() | numbers | {"guard": self.guard.state_dict(), "balance": balance, "arrays": arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.step, self.most_stale = float(state["step"]), int(state["most_stale"])
        self._round_starts = int(state["round_starts"])
        told, before = np.array(state["arrays"]["told"]), np.array(state["arrays"]["from"])
        self._terms = {
            name: Terms(int(epoch), step, eta, told[:, self.sites[name].block], before[:, self.sites[name].block])
            for name, (epoch, step, eta) in state["terms"].items()
        }
        self.balance.load_state_dict(state["balance"] | {"arrays": state["arrays"]})
        self.guard.load_state_dict(state["guard"])
        self.curvature = np.array(state["arrays"]["curvature"])
        self.prox = column_prox(self.penalty, self.step, state["arrays"]["V"])
