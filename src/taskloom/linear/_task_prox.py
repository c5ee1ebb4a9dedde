"""The proximal map of one task's loss on its own rows: what a site solves for itself.

Letters: n rows, d features, w (d,) coefficients, v (d,) any point, s row weights, gamma step.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from taskloom.linear._check import is_sparse
from taskloom.linear._design import OwnRows
from taskloom.linear._gram_problem import smooth_problem
from taskloom.linear._losses import Loss, get_loss
from taskloom.linear._problem import Labels, Problem, RowsProblem
from taskloom.tasks import Array, OptionError

NEWTON_STEPS = 50
EXACT = 1e-12


class TaskProx:
    """argmin_w of gamma sum_i s_i loss(y_i, x_i' w + b) + |w - v|^2 / 2, with the intercept b minimised out.

    Squared losses take one eigendecomposition of the Gram matrix of the smaller side, once for all; each call then costs
    O(d^2), or O(n d) where n < d, for any gamma. Other losses take a few Newton steps, fewer from a good start.

    Args:
        X: (n, d) the task's rows.
        y: (n,) labels, as the loss takes them.
        loss: a loss or its name.
        weight: s, (n,); default 1 / n each, the mean loss.
        fit_intercept: whether there is an intercept.

    Examples:
        >>> prox = TaskProx(np.eye(2), np.array([1.0, 0.0]), "squared", np.ones(2), fit_intercept=False)
        >>> prox(np.zeros(2), 1.0)
        array([0.5, 0. ])
    """

    def __init__(
        self, X: Any, y: Array, loss: str | Loss = "squared", weight: Array | None = None, *, fit_intercept: bool = True
    ) -> None:
        self.X = X.toarray() if is_sparse(X) else np.asarray(X, dtype=np.float64)
        self.loss = get_loss(loss)
        self.weight = np.full(len(self.X), 1 / len(self.X)) if weight is None else weight
        self.fit_intercept = fit_intercept
        self.labels = Labels(np.asarray(y, dtype=np.float64), self.weight, [self.loss], fit_intercept=fit_intercept)
        self.rows = RowsProblem(OwnRows([self.X]), self.labels)
        self.problem: Problem = smooth_problem(self.rows.design, self.labels) if self.loss.name == "squared" else self.rows

    def __call__(self, v: Array, gamma: float, start: Array | None = None) -> Array:
        """The proximal map at v.

        Args:
            v: (d,).
            gamma: above 0.
            start: (d,) a first guess, for losses that are not squared.

        Raises:
            OptionError: gamma is not a positive number.
        """
        if not 0 < gamma < np.inf:
            raise OptionError(f"`gamma`={gamma!r}: need a positive number")
        return self._squared(v, gamma) if self.loss.name == "squared" else self._newton(v, gamma, v if start is None else start)

    def intercept(self, w: Array) -> float:
        """B that minimises the loss at w."""
        return float(self.problem.intercepts(w[:, None], self.problem.image(w[:, None]))[0])

    def gradient(self, w: Array) -> Array:
        """(d,) of the task's loss at w."""
        return self.problem.point(w[:, None], self.problem.image(w[:, None])).gradient[:, 0]

    @cached_property
    def curvature(self) -> float:
        """The greatest curvature of the task's loss: its gradient's Lipschitz constant; infinite for Poisson."""
        return float(self.problem.lipschitz()[0])

    @cached_property
    def _rows(self) -> tuple[Array, Array]:
        """Centred, weighted rows and labels."""
        root, y = np.sqrt(self.weight)[:, None], self.labels.y
        total = self.weight.sum()
        keep = self.fit_intercept and total > 0
        X = self.X - (self.weight @ self.X / total if keep else 0.0)
        return X * root, (y - (self.weight @ y / total if keep else 0.0)) * root[:, 0]

    @cached_property
    def _eigen(self) -> tuple[Array, Array, Array]:
        """Eigenvalues and vectors of the Gram matrix, rows' side where there are fewer rows than features; and A'y."""
        A, y = self._rows
        values, Q = np.linalg.eigh(A @ A.T if A.shape[0] < A.shape[1] else A.T @ A)
        return np.maximum(values, 0), Q, A.T @ y

    def _squared(self, v: Array, gamma: float) -> Array:
        values, Q, pull = self._eigen
        right = v + gamma * pull
        if len(values) == len(v):
            return Q @ ((Q.T @ right) / (1 + gamma * values))
        A, _ = self._rows
        # (I + gamma A'A)^-1 = I - A' (I / gamma + A A')^-1 A
        return right - A.T @ (Q @ ((Q.T @ (A @ right)) / (1 / gamma + values)))

    def _newton(self, v: Array, gamma: float, w: Array) -> Array:
        value, slope, hessian = self._model(w, v, gamma)
        for _ in range(NEWTON_STEPS):
            if np.linalg.norm(slope) <= EXACT * (1 + np.linalg.norm(v) + np.linalg.norm(w)):
                break
            step = -np.linalg.solve(hessian, slope)
            damping = 1.0
            new = self._model(w + step, v, gamma)
            # Near the minimum values differ by rounding alone: there the slope decides.
            while not new[0] <= value + 1e-4 * damping * float(slope @ step) and damping > 1e-8:
                if np.linalg.norm(new[1]) < 0.5 * np.linalg.norm(slope):
                    break
                damping /= 2
                new = self._model(w + damping * step, v, gamma)
            w, (value, slope, hessian) = w + damping * step, new
        return w

    def _model(self, w: Array, v: Array, gamma: float) -> tuple[float, Array, Array]:
        W, Z = w[:, None], self.problem.image(w[:, None])
        at = self.problem.point(W, Z)
        curvature = self.weight * self.loss.second(self.rows.y, Z + at.intercepts[0])
        X = self.X
        if self.fit_intercept and curvature.sum() > 0:
            X = X - curvature @ X / curvature.sum()
        hessian = np.eye(len(w)) + gamma * (X * curvature[:, None]).T @ X
        value = gamma * self.problem.value(at, W, Z) + 0.5 * float((w - v) @ (w - v))
        return value, gamma * at.gradient[:, 0] + w - v, hessian
