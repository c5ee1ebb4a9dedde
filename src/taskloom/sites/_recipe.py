"""The recipe `sites`: what a study knows of learning over sites.

Letters: K tasks, d features, W (d, K) coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from taskloom.linear import Design, Labels, LowRankRecipe, Penalty, Solution, certify
from taskloom.sites._coordinator import StopRule
from taskloom.sites._data import SiteData
from taskloom.sites._delays import OffsetDelays
from taskloom.sites._make import make_coordinator, site_makers
from taskloom.sites._methods import StepOptions, get_method
from taskloom.sites._session import Recorder, Session
from taskloom.sites._simulated import SimulatedTransport
from taskloom.tasks import register_recipe


@register_recipe
@dataclass(frozen=True)
class SitesRecipe(LowRankRecipe):
    """The model of `lowrank`, learned over sites that keep their rows: one site a task, nobody waits, on a virtual clock.

    Its scores are those of `lowrank`, whose optimum it has: it shows that nothing is lost when rows stay where they are. For
    that reason it is not a part of studies without names. Other settings: see `LowRankRecipe`.

    Attributes:
        method: see `taskloom.sites.fit`.
        gap: relative duality gap to reach.
        max_updates: of all sites together, for each strength.
        strongest: first factor, below 1.
        weakest: last factor.
        title: name in a study, if not the recipe's.

    Examples:
        >>> SitesRecipe(method="amtl").label
        'sites'
    """

    method: str = "local-prox"
    gap: float = 1e-5
    max_updates: int = 50_000

    name: ClassVar[str] = "sites"
    summary: ClassVar[str] = "linear models near one small subspace, learned over sites that keep their rows (asynchronous)"
    paper: ClassVar[str] = "Baytas, Yan, Jain & Zhou, AMTL, ICDM 2016"
    by_default: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        get_method(self.method)

    def solve(self, design: Design, labels: Labels, penalties: list[Penalty]) -> list[Solution]:
        """A run for each penalty."""
        names = [str(t) for t in range(design.n_tasks)]
        data = SiteData(design, labels, names, {name: [t] for t, name in enumerate(names)})
        return [self._run(data, penalty) for penalty in penalties]

    def _run(self, data: SiteData, penalty: Penalty) -> Solution:
        method = get_method(self.method)
        coordinator = make_coordinator(data, penalty, method, StopRule(0.0, self.max_updates), StepOptions())
        judge = partial(certify, data.problem, penalty)
        session = Session(coordinator, Recorder(len(data.sites), judge, self.gap))
        SimulatedTransport(OffsetDelays()).run(session, site_makers(data, method))
        W = np.array(coordinator.finish())
        certificate = judge(W)
        return Solution(
            W=W,
            intercepts=data.problem.intercepts(W, data.problem.image(W)),
            parts=W[None],
            certificate=certificate,
            n_iter=coordinator.version,
            converged=certificate.relative <= self.gap,
            message=coordinator.verdict(),
            state=None,
        )
