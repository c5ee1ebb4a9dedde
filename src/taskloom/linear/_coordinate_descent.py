"""scikit-learn's compiled coordinate descent, for the problems that it solves: one X for all tasks, squared losses, L21 or L1.

Letters: K tasks, n rows, d features, W (d, K) coefficients, Y (n, K) labels.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import enet_path

from taskloom.linear._check import is_sparse
from taskloom.linear._design import SharedRows
from taskloom.linear._objective import Objective
from taskloom.linear._problem import RowsProblem
from taskloom.linear._solver import Solver, SolverOptions, SolverState
from taskloom.linear._sparse_penalties import L1, L21
from taskloom.tasks import Array


class CoordinateDescent(Solver):
    """That of `MultiTaskLasso` for L21 and of `Lasso` for L1; the certificate is ours all the same.

    A step is a whole fit from the last W; scikit-learn scales its gap otherwise than we do, so that a step that falls short is
    followed by one with a tenth of the tolerance.
    """

    name: ClassVar[str] = "coordinate_descent"
    looks_every_step: ClassVar[bool] = True
    looks_first: ClassVar[bool] = False

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
        tol = options.tol * 0.1**state.n_iter
        alpha = objective.rest.strength / (labels.weight.flat[0] * design.shape[0])  # ty: ignore[missing-attribute]
        Y = labels.y if labels.offset is None else labels.y - labels.offset
        center = labels.fit_intercept
        X = np.empty(design.X.shape, order="F")
        np.subtract(design.X, design.X.mean(axis=0) if center else 0.0, out=X)
        Y = Y - Y.mean(axis=0) if center else Y
        W = _descend(X, Y, isinstance(objective.rest, L21), alpha, (tol, options.max_iter), state.P)
        Z = problem.image_by_support(W)
        stuck = bool((W == state.P).all()) and tol < 1e-15
        return SolverState(W, Z, state.P, state.Z, state.level, 1.0, 0.0, state.n_iter + 1, state.memory, state.trace, stuck)

    def init(self, objective: Objective, W: Array | None = None) -> SolverState:
        P = objective.start(W)
        Z = objective.problem.image_by_support(P)
        return SolverState(P, Z, P, Z)


def _descend(X: Array, Y: Array, joint: bool, alpha: float, stop: tuple[float, int], W: Array) -> Array:
    """Coordinate descent from W on centred X and Y: rows of W together, or task by task."""
    settings: dict[str, Any] = {"l1_ratio": 1.0, "alphas": np.array([alpha]), "precompute": False, "check_input": False}
    settings |= {"tol": stop[0], "max_iter": stop[1]}
    targets = [np.asfortranarray(Y)] if joint and Y.shape[1] > 1 else [np.ascontiguousarray(y) for y in Y.T]
    starts = [np.array(W.T, order="F")] if joint and Y.shape[1] > 1 else [np.array(w) for w in W.T]
    # What it would check has been checked, and whether it converged is for our certificate to say.
    with config_context(assume_finite=True, skip_parameter_validation=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fits = [enet_path(X, y, coef_init=w, **settings) for y, w in zip(targets, starts, strict=True)]
    columns = [fit[1][..., 0] for fit in fits]
    found = columns[0].T if columns[0].ndim == 2 else np.stack(columns, axis=1)
    return np.ascontiguousarray(found)
