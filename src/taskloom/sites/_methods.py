"""The ways for sites to learn together: what a site does, and how the coordinator joins it.

Letters: K tasks, L greatest curvature of the tasks' losses, eta relaxation, tau delay in updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from taskloom.tasks import OptionError, unknown


@dataclass(frozen=True)
class Method:
    """One way.

    Attributes:
        local: `gradient`: a forward step on the task's loss; `prox`: its proximal map.
        is_synchronous: whether everybody waits for everybody.
        relaxation: `theory`: within the bounds of the convergence theorem; `guarded`: as long as possible while the residual
            falls. Synchronous methods have none.
        relaxation_limit: the greatest.
        is_accelerated: whether points are extrapolated.
        steps: length of a gradient step in units of 1 / L.
        summary: a line for a table.
    """

    local: Literal["gradient", "prox"]
    is_synchronous: bool = False
    relaxation: Literal["theory", "guarded"] = "guarded"
    relaxation_limit: float = 1.0
    is_accelerated: bool = False
    steps: float = 1.0
    summary: str = ""


@dataclass(frozen=True)
class StepOptions:
    """Lengths of steps.

    Attributes:
        step: gamma itself; None for the method's own: a multiple of 1 / L for gradient steps, for proximal steps one that is
            found while running (`StepBalance`).
        limit: greatest relaxation, below 2; None for the method's own: 1 for gradient steps, 1.8 for proximal ones.
        is_dynamic: whether `amtl-paper` multiplies its relaxation by the dynamic factor, clamped to `limit`.
        unit: of the dynamic factor, in units of the clock.
    """

    step: float | None = None
    limit: float | None = None
    is_dynamic: bool = False
    unit: float = 1.0

    def __post_init__(self) -> None:
        if self.step is not None and not 0 < self.step < np.inf:
            raise OptionError(f"`step`={self.step!r}: need a positive number, or None to have it found")
        if self.limit is not None and not 0 < self.limit < 2:
            raise OptionError(f"`limit`={self.limit!r}: a relaxation is above 0 and below 2")
        if not 0 < self.unit < np.inf:
            raise OptionError(f"`unit`={self.unit!r}: need a positive number")


METHODS: dict[str, Method] = {
    "local-prox": Method("prox", relaxation_limit=1.8, summary="asynchronous Douglas-Rachford: a proximal step at each site"),
    "amtl": Method("gradient", steps=1.9, summary="asynchronous gradient steps, as long as the residual falls"),
    "amtl-paper": Method("gradient", relaxation="theory", summary="asynchronous gradient steps, with the paper's relaxation"),
    "smtl": Method("gradient", is_synchronous=True, summary="proximal gradient: all wait for all"),
    "smtl-fista": Method(
        "gradient", is_synchronous=True, is_accelerated=True, summary="accelerated proximal gradient: all wait for all"
    ),
}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]
