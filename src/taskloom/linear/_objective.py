"""Losses plus penalty as a solver sees them, and the certificate of how far from the optimum a point is.

Letters: K tasks, d features, m parts, P variable: (d, K), or (m, d, K) for a penalty that splits W; W (d, K) coefficients,
Z image of W, G (d, K) gradient of everything smooth, q smooth penalty.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from taskloom.linear._penalty import Penalty
from taskloom.linear._problem import Point, Problem
from taskloom.linear._smooth_penalties import TaskQuadratic
from taskloom.linear._split_penalties import Split
from taskloom.tasks import Array, DataError, OptionError

# How far above the objective rounding may put a dual value.
DUAL_NOISE = 1e-12


@dataclass(frozen=True)
class Certificate:
    """How good a point is, whoever found it.

    Attributes:
        objective: losses plus penalty.
        relative: what a solver stops at: `gap` over the losses of the empty model (above their least value) where there is a
            dual, else `distance` over the norm of the gradient at zero.
        gap: duality gap: the objective is at most this far above the optimum; None without a dual.
        distance: of minus the gradient to the subdifferential; NaN where there is a gap, which says more.
    """

    objective: float
    relative: float
    gap: float | None
    distance: float


@dataclass(frozen=True, eq=False)
class _TaskMatrix(TaskQuadratic):
    """The sum of several penalties of the form tr(W M W')."""

    matrix: Array
    strengths: ClassVar[tuple[str, ...]] = ()

    @cached_property
    def _cached(self) -> tuple[Array, Array]:
        return TaskQuadratic._eigen(self, len(self.matrix))

    def _eigen(self, K: int) -> tuple[Array, Array]:  # noqa: ARG002
        return self._cached

    def task_matrix(self, K: int) -> Array:  # noqa: ARG002
        return self.matrix


class Objective:
    """f + q + the penalty's rest.

    Args:
        problem: f.
        penalty: everything else; its smooth terms are added to f, unless nothing else is left that has a proximal map.
    """

    def __init__(self, problem: Problem, penalty: Penalty) -> None:
        penalty.check(problem.n_features, problem.n_tasks)
        self.problem, self.penalty = problem, penalty
        terms, rest = penalty.split()
        self.smooth = list(terms)
        self.rest = self._rest_of_smooth() if rest is None else rest
        self.n_parts = len(self.rest.parts) if isinstance(self.rest, Split) else 1

    def _rest_of_smooth(self) -> Penalty:
        if len(self.smooth) == 1:
            return self.smooth.pop()
        K = self.problem.n_tasks
        matrices = [(term, term.task_matrix(K)) for term in self.smooth]
        coupled = [matrix for _, matrix in matrices if matrix is not None]
        if not coupled:
            term, *self.smooth = self.smooth
            return term
        self.smooth = [term for term, matrix in matrices if matrix is None]
        return _TaskMatrix(np.sum(coupled, axis=0))

    @property
    def is_split(self) -> bool:
        """Whether the variable is W in parts."""
        return isinstance(self.rest, Split)

    def start(self, W: Array | None = None) -> Array:
        """The variable at W, all of it in the first part, or at zero."""
        d, K = self.problem.n_features, self.problem.n_tasks
        W = np.zeros((d, K)) if W is None else W
        return np.concatenate([W[None], np.zeros((self.n_parts - 1, d, K))]) if self.is_split else W

    def combine(self, P: Array) -> Array:
        """W of the variable."""
        return P.sum(0) if self.is_split else P

    def gradient(self, at: Point, W: Array) -> Array:
        """Of f + q, in W: the same for every part."""
        if not self.smooth:
            return at.gradient
        return at.gradient + sum((term.gradient(W) for term in self.smooth), np.zeros_like(W))

    def smooth_value(self, W: Array) -> float:
        """q(W)."""
        return sum(term.value(W) for term in self.smooth)

    def prox(self, V: Array, step: float, memory: dict[str, Array]) -> Array:
        """The proximal map of the rest, with what it remembers of the last call."""
        return self.rest.prox_from(V, step, memory)

    def curvature(self, D: Array, dZ: Array, at: Point) -> float:
        """Twice the rise of f + q above its tangent along D, over |D|^2: a step of its inverse is safe."""
        W = self.combine(D)
        length = float(np.vdot(D, D))
        return 2 * (self.problem.bregman(W, dZ, at) + self.smooth_value(W)) / length if length > 0 else 0.0

    def value(self, P: Array, Z: Array, at: Point) -> float:
        """Losses plus penalty."""
        W = self.combine(P)
        return self.problem.value(at, W, Z) + self.smooth_value(W) + self.rest.value(P)

    def certificate(self, P: Array, Z: Array, at: Point) -> Certificate:
        """Gap, where there is a dual, and distance to optimality at P."""
        W = self.combine(P)
        G = self.gradient(at, W)
        objective = self.value(P, Z, at)
        if self.problem.is_flat and not P.any():
            # Nothing to explain, and nothing explained: what a gap would show is rounding.
            return Certificate(objective, 0.0, None, 0.0)
        dual = self._dual(W, Z, at, G)
        # A dual value above the objective is no certificate but rounding: then the distance must do.
        if dual is not None and objective - dual >= -DUAL_NOISE * (abs(objective) + self.problem.spread):
            gap = max(objective - dual, 0.0)
            return Certificate(objective, gap / self.problem.spread, gap, np.nan)
        distance = self.rest.distance(P, G)
        scale = float(np.linalg.norm(self.problem.origin.gradient))
        return Certificate(objective, distance / max(scale, 1e-300), None, distance)

    def _dual(self, W: Array, Z: Array, at: Point, G: Array) -> float | None:
        q = self.smooth_value(W)
        conjugate = self.rest.conjugate(-G)
        if conjugate is not None:
            return self.problem.dual_value(at, W, Z, 1.0) - q - conjugate
        polar = self.rest.polar(-G)
        if polar is None or np.isinf(polar):
            return None
        # Shrunk residuals are feasible; a smooth penalty is one more squared loss and shrinks with them.
        c = 1.0 if polar <= 1 else 1 / polar
        return self.problem.dual_value(at, W, Z, c) - c**2 * q


def certify(problem: Problem, penalty: Penalty, W: Array) -> Certificate:
    """How good coefficients are, whoever found them.

    Args:
        problem: the losses.
        penalty: one that does not split W into parts (then a solver's own certificate is needed).
        W: (d, K).

    Raises:
        OptionError: the penalty splits W.
        DataError: W has another shape.

    Examples:
        >>> from taskloom.linear import L1, Labels, SharedRows, Squared, smooth_problem
        >>> labels = Labels(np.array([[1.0], [3.0]]), np.ones((2, 1)), [Squared()], fit_intercept=False)
        >>> problem = smooth_problem(SharedRows(np.eye(2), 1), labels)
        >>> round(certify(problem, L1(1.0), np.array([[0.0], [2.0]])).gap, 12)
        0.0
    """
    objective = Objective(problem, penalty)
    if objective.is_split:
        raise OptionError(f"`penalty`={penalty!r} splits W into parts; `minimize` certifies its own solution")
    if np.shape(W) != (problem.n_features, problem.n_tasks):
        raise DataError(f"`W` has shape {np.shape(W)}; need {(problem.n_features, problem.n_tasks)}, features x tasks")
    Z = problem.image(W)
    return objective.certificate(W, Z, problem.point(W, Z))
