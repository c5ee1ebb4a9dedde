"""Proximal gradient with Anderson extrapolation.

Letters: P variable, Z image of its W, R residuals of the last steps, M how many are kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from taskloom.linear._objective import Objective
from taskloom.linear._solver import Solver, SolverOptions, SolverState, proximal_step
from taskloom.tasks import Array


class Anderson(Solver):
    """Proximal gradient steps; every few of them the best combination of the last ones is tried, and kept if it is better.

    Bertrand & Massias (AISTATS 2021, "Anderson acceleration of coordinate descent"), with gradient steps in place of coordinate
    steps. The safeguard is theirs: the extrapolated point is taken only if its objective is lower.
    """

    name: ClassVar[str] = "anderson"
    n_kept: ClassVar[int] = 5

    def step(self, objective: Objective, state: SolverState, options: SolverOptions) -> SolverState:  # noqa: ARG002
        P, Z, L, level, memory = proximal_step(objective, state.P, state.Z, replace(state, L=0.99 * state.L))
        stuck = bool((P == state.P).all())
        points, images = _kept(memory, "points", P), _kept(memory, "images", Z)
        if not len(points):
            points, images = state.P[None], state.Z[None]
        points, images = np.concatenate([points, P[None]]), np.concatenate([images, Z[None]])
        if len(points) > self.n_kept:
            weights = extrapolation_weights(np.diff(points.reshape(len(points), -1), axis=0))
            if weights is not None:
                P, Z = _better(objective, (P, Z), (_mix(weights, points[1:]), _mix(weights, images[1:])), state.first_guess)
            points, images = P[None], Z[None]
        memory = {**memory, "points": points, "images": images}
        return SolverState(P, Z, P, Z, level, 1.0, L, state.n_iter + 1, memory, state.trace, stuck)


def extrapolation_weights(R: Array) -> Array | None:
    """C with sum 1 that minimises |sum c_i r_i|, or None where the residuals are too alike.

    Args:
        R: (M, p) residuals.

    Examples:
        >>> extrapolation_weights(np.array([[2.0], [1.0]])).round(3)
        array([-1.,  2.])
    """
    gram = R @ R.T
    scale = float(np.trace(gram))
    if not scale > 0:
        return None
    solved = np.linalg.solve(gram + 1e-12 * scale * np.eye(len(R)), np.ones(len(R)))
    total = float(solved.sum())
    return solved / total if np.isfinite(total) and total != 0 else None


def _kept(memory: dict[str, Array], name: str, like: Array) -> Array:
    return memory.get(name, np.zeros((0, *like.shape)))


def _mix(weights: Array, points: Array) -> Array:
    return np.tensordot(weights, points, axes=1)


def _better(
    objective: Objective, plain: tuple[Array, Array], extrapolated: tuple[Array, Array], start: Array | None
) -> tuple[Array, Array]:
    def value(P: Array, Z: Array) -> float:
        return objective.value(P, Z, objective.problem.point(objective.combine(P), Z, start))

    return extrapolated if value(*extrapolated) < value(*plain) else plain
