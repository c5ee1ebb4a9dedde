"""scikit-learn's compiled coordinate descent, for the problems that it solves: one X for all tasks, squared losses, L21 or L1.

Letters: K tasks, n rows, d features, W (d, K) coefficients, Y (n, K) labels.
"""

from __future__ import annotations

import warnings
from typing import ClassVar

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, MultiTaskLasso

from taskloom.linear._check import is_sparse
from taskloom.linear._design import SharedRows
from taskloom.linear._objective import Objective
from taskloom.linear._problem import RowsProblem
from taskloom.linear._solver import Solver, SolverOptions, SolverState
from taskloom.linear._sparse_penalties import L1, L21
from taskloom.tasks import Array


class CoordinateDescent(Solver):
    """`MultiTaskLasso` for L21 and `Lasso` for L1; the certificate is ours all the same.

    A step is a whole fit from the last W; scikit-learn scales its gap otherwise than we do, so that a step that falls short is
    followed by one with a tenth of the tolerance.
    """

    name: ClassVar[str] = "coordinate_descent"
    looks_every_step: ClassVar[bool] = True

    def unsupported(self, objective: Objective) -> str:
        """It serves L21 or L1 alone, squared losses, one dense X, complete labels and equal weights."""
        penalty, problem = objective.rest, objective.problem
        if objective.smooth or not isinstance(penalty, L21 | L1) or getattr(penalty, "weights", None) is not None:
            return f"needs L21 or L1 alone, not {objective.penalty!r}"
        if not penalty.strength > 0:
            return "needs a strength above 0"
        if not isinstance(problem, RowsProblem) or not isinstance(problem.design, SharedRows) or is_sparse(problem.design.X):
            return "needs one dense X for all tasks"
        labels = problem.labels
        if any(loss.name != "squared" for loss in labels.losses):
            return "needs squared losses"
        if not (labels.weight == labels.weight.flat[0]).all():
            return "needs complete labels and equal weights"
        return ""

    def step(self, objective: Objective, state: SolverState, options: SolverOptions) -> SolverState:
        problem = objective.problem
        design, labels = problem.design, problem.labels  # ty: ignore[missing-attribute]
        tol = 0.5 * options.tol * 0.1**state.n_iter
        alpha = objective.rest.strength / (labels.weight.flat[0] * design.shape[0])  # ty: ignore[missing-attribute]
        kind = MultiTaskLasso if isinstance(objective.rest, L21) else Lasso
        # It overwrites what it is given: X is copied, save where centring makes a copy anyway.
        model = kind(alpha=alpha, tol=tol, max_iter=options.max_iter, fit_intercept=labels.fit_intercept, warm_start=True)
        if state.P.any():
            model.coef_ = np.array(state.P.T, order="F")
        Y = labels.y if labels.offset is None else labels.y - labels.offset
        W = self._fit(model, np.asarray(design.X, order="F"), Y)
        support = np.flatnonzero(W.any(axis=1))
        Z = problem.image_of(support, W[support])
        at = problem.point(W, Z)
        sweeps = int(np.max(model.n_iter_))
        stuck = bool((W == state.P).all()) and tol < 1e-15
        memory = {"sweeps": state.memory.get("sweeps", np.zeros(1)) + sweeps}
        return SolverState(W, Z, state.P, state.Z, at.intercepts, 1.0, 0.0, state.n_iter + 1, memory, state.trace, stuck)

    def init(self, objective: Objective, W: Array | None = None) -> SolverState:
        problem = objective.problem
        P = objective.start(W)
        support = np.flatnonzero(P.any(axis=1))
        Z = problem.image_of(support, P[support])
        return SolverState(P, Z, P, Z, problem.point(P, Z).intercepts)

    @staticmethod
    def _fit(model: MultiTaskLasso | Lasso, X: Array, Y: Array) -> Array:
        with warnings.catch_warnings():
            # Whether it converged is for our certificate to say.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(X, Y if isinstance(model, MultiTaskLasso) or Y.shape[1] > 1 else Y[:, 0])
        return np.ascontiguousarray(np.atleast_2d(model.coef_).T)
