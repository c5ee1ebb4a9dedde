"""How far a site goes towards its new column: the relaxation eta of an asynchronous iteration, and what it may depend on.

Letters: K blocks of columns that come together (one a site), tau greatest delay in updates, eta relaxation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

SHORTEST = 1e-3
GROWTH, CUT = 1.5, 0.5


def theory_bound(n_blocks: int, tau: int, c: float = 0.9) -> float:
    """C / (2 tau / sqrt(K) + 1): the longest relaxation for which AMTL is known to converge.

    Baytas, Yan, Jain & Zhou (ICDM 2016), theorem 1, after ARock (Peng, Xu, Yan & Yin 2016); any 0 < c < 1. There every site
    has one task; the columns of a site with several are one block.

    Examples:
        >>> round(theory_bound(5, 5), 3)
        0.164
    """
    return float(c / (2 * tau / np.sqrt(n_blocks) + 1))


def dynamic_factor(delays: Iterable[float], unit: float = 1.0) -> float:
    """log(max(mean of the last delays, 10)): the paper's dynamic step (section III-D), which has no theory.

    It is never below log 10 = 2.3 and depends on the unit of time, which the paper takes to be seconds.

    Args:
        delays: of one site, in units of the clock.
        unit: in units of the clock.

    Examples:
        >>> round(dynamic_factor([5.0, 5.0]), 3), round(dynamic_factor([20.0]), 3)
        (2.303, 2.996)
    """
    each = list(delays)
    return float(np.log(max(np.mean(each) / unit if each else 0.0, 10.0)))


class Safeguard:
    """As long as the residual of a round falls, eta grows by 1.5 to its limit; where it rises, eta is halved.

    The rule of TMAC's controller (Edmunds, Peng & Yin 2016), with a limit.

    Args:
        limit: greatest eta.
        slack: by what factor a residual may be above that of the round before and not count as risen: rounds without a common
            clock are noisy.

    Attributes:
        eta: in use.

    Examples:
        >>> guard = Safeguard()
        >>> [guard.look(residual) for residual in (1.0, 0.5, 50.0, 0.1)]
        [1.0, 1.0, 0.5, 0.75]
    """

    def __init__(self, limit: float = 1.0, slack: float = 1.2) -> None:
        self.limit, self.slack, self.eta = limit, slack, limit
        self.before = np.inf

    def look(self, residual: float) -> float:
        """The eta to go on with after a round with this residual."""
        if residual > self.slack * self.before:
            self.eta = max(SHORTEST, CUT * self.eta)
        else:
            self.eta = min(self.limit, GROWTH * self.eta)
        self.before = residual
        return self.eta

    def state_dict(self) -> dict[str, Any]:
        """Both numbers."""
        return {"eta": self.eta, "before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.eta, self.before = float(state["eta"]), float(state["before"])
