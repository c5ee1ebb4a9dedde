"""Groups of tasks on several levels, from coarse to fine: fusion of all tasks, stage by stage.

Letters: K tasks, d features, H levels, W (d, K) coefficients, W_h (d, K) those of level h, Omega the fusion penalty.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from taskloom.linear._design import Design
from taskloom.linear._distance_penalties import Fusion
from taskloom.linear._gram_problem import smooth_problem
from taskloom.linear._penalty import check_strength
from taskloom.linear._problem import Labels
from taskloom.linear._procedure import Procedure
from taskloom.linear._solver import Fista, Solution, SolverOptions, minimize
from taskloom.tasks import Array, OptionError, is_whole

GROUP_TOL = 1e-4


@dataclass(frozen=True)
class MultiLevel(Procedure):
    """W = W_1 + ... + W_H, each with groups of tasks that share its columns (MeTaG: Han & Zhang, AAAI 2015), fitted by stages.

    Level 1 is fitted to the labels with the greatest strength, level h to what the levels before leave over, with strength
    strength / decay^(h - 1). Each level minimises losses plus strength_h Omega(W_h), Omega(W) = sum_{s<t} |w_s - w_t|_2: a
    convex problem with a certificate. The number of groups need not be given.

    Why by stages: the paper states one joint problem, min sum_t f_t(sum_h w_t^h) + sum_h strength_h Omega(W_h). With one and
    the same semi-norm Omega at all levels that problem collapses: sum_h strength_h Omega(W_h) >= min_h strength_h
    Omega(sum_h W_h), with equality when everything lies in the level of least strength, so that its optimum and its W are
    those of one level with the least strength, and no other level tells tasks apart. We know the paper by its beginning and
    by descriptions of others, one of whose programs fits stage by stage with strengths divided by 1.2; that is what we do.
    One level is the penalty `Fusion`.

    The stages give finer groups from level to level as a rule, but nothing forces the groups of one level to be subsets of
    those before.

    The certificate is that of the last level, relative to the gradient of level 1 at zero. Intercepts are minimised out at
    each level by itself; those of the last level, where the scores of all levels are in the problem, are the best for W and
    are the ones returned. `details` of the solution: `levels` (H, K, d); `groups`, for each level a list of lists of task
    indices, where tasks are of one group if their columns differ by at most 1e-4 of the greatest column norm of W. `parts`
    are the levels, (H, d, K). For more than about 200 tasks a step is slow: see `Fusion`.

    Attributes:
        strength: of level 1, 0 or more.
        n_levels: H, 1 or more.
        decay: what the strength is divided by from level to level, 1 or more.

    Raises:
        OptionError: an option out of range.

    Examples:
        >>> from taskloom.linear import MultiTaskRegressor
        >>> X, W = np.random.default_rng(0).normal(size=(50, 2)), np.array([[1.0, 1.0, 5.0], [0.0, 0.0, 3.0]])
        >>> MultiTaskRegressor(MultiLevel(0.3, decay=2.0)).fit(X, X @ W).details_["groups"]
        [[[0, 1], [2]], [[0, 1], [2]]]
    """

    strength: float = 1.0
    n_levels: int = 2
    decay: float = 1.2
    paper: ClassVar[str] = "Han & Zhang 2015"

    def __post_init__(self) -> None:
        check_strength("strength", self.strength)
        if not is_whole(self.n_levels, 1):
            raise OptionError(f"`n_levels`={self.n_levels!r}: need a whole number, 1 or more")
        check_strength("decay", self.decay)
        if self.decay < 1:
            raise OptionError(f"`decay`={self.decay!r}: need 1 or more, so that levels go from coarse to fine")

    def scaled(self, factor: float) -> Self:
        """The strengths of all levels multiplied."""
        return replace(self, strength=factor * self.strength)

    def factor_range(self, G: Array, lipschitz: Array) -> float:
        """That of the level of least strength: with it all levels fuse."""
        return Fusion(self.strength / self.decay ** (self.n_levels - 1)).factor_range(G, lipschitz)

    def solve(self, design: Design, labels: Labels, options: SolverOptions) -> Solution:
        fits: list[Solution] = []
        offset, whole = labels.offset, 0.0
        for h in range(self.n_levels):
            problem = smooth_problem(design, replace(labels, offset=offset))
            whole = whole or float(np.linalg.norm(problem.origin.gradient))
            # What is left over may be next to nothing: how far a level is from its optimum is judged by the labels' gradient.
            share = max(float(np.linalg.norm(problem.origin.gradient)) / max(whole, 1e-300), 1e-12)
            penalty, judged = Fusion(self.strength / self.decay**h), replace(options, tol=options.tol / share)
            fit = minimize(problem, penalty, solver=Fista(), options=judged)
            fits.append(replace(fit, certificate=replace(fit.certificate, relative=fit.certificate.relative * share)))
            scores = design.scores(fit.W)
            offset = scores if offset is None else offset + scores
        parts = np.stack([fit.W for fit in fits])
        return Solution(
            W=parts.sum(0),
            intercepts=fits[-1].intercepts,
            parts=parts,
            certificate=fits[-1].certificate,
            n_iter=sum(fit.n_iter for fit in fits),
            converged=all(fit.converged for fit in fits),
            message=_message(fits),
            state=None,
            details={"levels": parts.transpose(0, 2, 1), "groups": level_groups(parts)},
        )


def level_groups(parts: Array) -> list[list[list[int]]]:
    """Groups of tasks at each level, (H, d, K) coefficients: distances are judged by the norms of the sum of all levels.

    Examples:
        >>> level_groups(np.array([[[2.0, 2.0, 1.0]], [[0.0, 1e-9, 0.0]]]))
        [[[0, 1], [2]], [[0, 1, 2]]]
    """
    whole = np.linalg.norm(parts.sum(0), axis=0).max()
    groups = []
    for W in parts:
        # `Fusion.groups` measures by the level's own norms, which on a level of almost nothing are those of rounding.
        own = max(float(np.linalg.norm(W, axis=0).max()), 1e-300)
        groups.append(Fusion().groups(W, GROUP_TOL * max(whole / own, 1.0)))
    return groups


def _message(fits: list[Solution]) -> str:
    late = next((h for h, fit in enumerate(fits) if not fit.converged), None)
    if late is not None:
        return f"level {late + 1} of {len(fits)}: {fits[late].message}"
    worst = max(fit.certificate.relative for fit in fits)
    return f"converged: relative distance to the subdifferential at most {worst:.2g} at each of {len(fits)} levels"
