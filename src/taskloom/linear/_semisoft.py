"""Semisoft clustering of tasks: each task's coefficients a mixture of a few sparse centres, most tasks of one centre alone.

Letters: K tasks, C clusters, d features, W (d, K) coefficients = U V', U (d, C) centres, V (K, C) memberships, E (K, K) errors
of each model on each task, Z image of W, p (K,) strengths of the single tasks' lassos.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
from scipy.special import expit

from taskloom.linear._design import Design, OwnRows, SharedRows
from taskloom.linear._gram_problem import smooth_problem
from taskloom.linear._penalty import Penalty, check_strength
from taskloom.linear._problem import Labels, Point, Problem, RowsProblem
from taskloom.linear._procedure import Procedure
from taskloom.linear._semisoft_steps import align, deal_folds, fit_centers, project_to_simplex, semisoft
from taskloom.linear._solver import Fista, Solution, SolverOptions, minimize
from taskloom.linear._sparse_penalties import L1
from taskloom.tasks import Array, OptionError, Rows, is_whole

N_FOLDS = 5
TASK_FACTORS = np.geomspace(1.0, 0.02, 15)
CENTER_FACTORS = np.geomspace(8.0, 0.05, 15)
LOOSE = SolverOptions(tol=1e-3, max_iter=500)
SETTLED = 1e-3
REFIT = 0.1
CORRECTION_STEPS = 5
PURE = 0.9


class MixtureProblem(Problem):
    """The losses of W = U V' as a problem in U: convex as they are, with C "tasks" that are the centres.

    Args:
        inner: the losses of W.
        V: (K, C) memberships.
    """

    def __init__(self, inner: Problem, V: Array) -> None:
        self.inner, self.V = inner, V
        self.n_features, self.n_tasks = inner.n_features, V.shape[1]

    def image(self, W: Array) -> Array:
        return self.inner.image(W @ self.V.T)

    def image_of(self, features: Rows, W: Array) -> Array:
        return self.inner.image_of(features, W @ self.V.T)

    def point(self, W: Array, Z: Array, start: Array | None = None) -> Point:
        at = self.inner.point(W @ self.V.T, Z, start)
        return Point(at.gradient @ self.V, at.intercepts, at.slope)

    def intercepts(self, W: Array, Z: Array, start: Array | None = None) -> Array:
        return self.inner.intercepts(W @ self.V.T, Z, start)

    def value(self, at: Point, W: Array, Z: Array) -> float:
        return self.inner.value(at, W @ self.V.T, Z)

    def bregman(self, D: Array, dZ: Array, at: Point) -> float:
        return self.inner.bregman(D @ self.V.T, dZ, at)

    def dual_value(self, at: Point, W: Array, Z: Array, c: float) -> float:
        return self.inner.dual_value(at, W @ self.V.T, Z, c)

    @cached_property
    def _spread(self) -> tuple[float, float]:
        return self.inner.spread, 0.0

    def lipschitz(self) -> Array:
        return self.inner.lipschitz() @ self.V**2

    def restrict(self, features: Rows) -> MixtureProblem:
        return MixtureProblem(self.inner.restrict(features), self.V)

    @property
    def feature_sizes(self) -> Array:
        return np.sqrt(self.inner.feature_sizes**2 @ self.V**2)

    def _feature_norms(self) -> Array:
        return np.sqrt(self.inner.feature_norms**2 @ self.V**2)


@dataclass(frozen=True)
class SimplexColumns(Penalty):
    """Columns on the probability simplex, where a fit must also start: memberships are not negative and sum to 1 a task."""

    strengths: ClassVar[tuple[str, ...]] = ()

    def value(self, W: Array) -> float:
        """0 on the simplex (to 1e-9), infinite elsewhere."""
        return 0.0 if W.min() >= -1e-9 and np.abs(W.sum(0) - 1).max() <= 1e-9 else np.inf

    def prox(self, V: Array, step: float) -> Array:  # noqa: ARG002
        return project_to_simplex(V)

    def conjugate(self, U: Array) -> float:
        """The greatest entry of each column, summed."""
        return float(U.max(0).sum())


@dataclass(frozen=True)
class SemisoftClusters(Procedure):
    """W = U V': C sparse centres, and memberships of which many are of one centre alone (STCMTL, Zhang & Sun 2022).

    Zhang & Sun, "Semisoft Task Clustering for Multi-Task Learning" (arXiv 2211.17204). We know the algorithm from the authors'
    package and have not read the paper in full. A lasso of each task by cross-validation gives first coefficients; then, until
    the losses settle: every task's model is tried on every task's rows, a semisoft clustering of these errors gives V, a lasso
    on all rows gives U, and a few proximal steps of each task's own lasso away from U V' keep the models to be tried from
    agreeing too soon. Not convex: the result depends on the start, which is the tasks' own lassos.

    Where we deviate, and why:
        The steps away from U V' go over all coefficients: the package leaves out those at zero, which then stay zero for good.
        Clusters are matched to those before by an optimal assignment and not by trying all C! orders.
        A task without a positive raw membership goes to its greatest one and not to one drawn at random.
        All centres are fitted at once, by a convex problem that has a certificate, and not one after the other.
        The centres' strength is sqrt(sum_t v_tc^2 p_t^2) times a factor, which is how the noise of their gradient grows with
        the tasks that they serve; the package takes the mean p_t. The factor is 1 until the last fit, which cross-validates it.
        Intercepts are each task's own and no mixtures, and errors are taken at the intercept that suits the task tried on.
        `refine` rounds at the end minimise the losses over V with U fixed, then over U: two convex problems. On the synthetic
        data of the tests this about halves what the error exceeds the noise by; `refine=0` leaves it out.

    Left out: the SCAD penalty of the last fit, and the robust version with outlier tasks.

    `solve` serves squared and logistic losses, one for all tasks. The certificate is that of the last fit of U with V fixed.
    `details` of the solution: `centers` (C, d); `memberships` (K, C), rows sum to 1, clusters in falling order of their size
    at the start; `pure_tasks`, the indices of tasks whose greatest membership is 0.9 or more; `objectives`, losses plus
    penalty of the last fit and of each round of `refine`.

    Attributes:
        n_clusters: C, 1 to K.
        strength: factor on every strength that cross-validation chose, 0 or more.
        pure_fraction: share of tasks taken as pure when V is estimated, above 0, at most 1.
        max_loops: loops at most.
        refine: rounds of convex refinement.
        seed: of the folds (equal for tasks with equally many rows, whatever their order) and of k-means.

    Raises:
        OptionError: an option out of range; more clusters than tasks; another loss than these two.

    Examples:
        >>> from taskloom.linear import MultiTaskRegressor
        >>> X, U = np.random.default_rng(0).normal(size=(60, 4)), np.eye(4)[:, :2]
        >>> Y = X @ U @ np.array([[1, 1, 1, 0, 0, 0.6], [0, 0, 0, 1, 1, 0.4]])
        >>> MultiTaskRegressor(SemisoftClusters(2)).fit(X, Y).details_["memberships"].round(1)
        array([[1. , 0. ],
               [1. , 0. ],
               [1. , 0. ],
               [0. , 1. ],
               [0. , 1. ],
               [0.6, 0.4]])
    """

    n_clusters: int = 2
    strength: float = 1.0
    pure_fraction: float = 0.5
    max_loops: int = 10
    refine: int = 2
    seed: int = 0
    paper: ClassVar[str] = "Zhang & Sun 2022"

    def __post_init__(self) -> None:
        check_strength("strength", self.strength)
        check_strength("pure_fraction", self.pure_fraction, positive=True)
        if self.pure_fraction > 1:
            raise OptionError(f"`pure_fraction`={self.pure_fraction!r}: need a share above 0, at most 1")
        for name, least in (("n_clusters", 1), ("max_loops", 1), ("refine", 0), ("seed", 0)):
            value = getattr(self, name)
            if not is_whole(value, least):
                raise OptionError(f"`{name}`={value!r}: need a whole number, {least} or more")

    def check(self, d: int, K: int) -> None:  # noqa: ARG002
        """Refuse more clusters than tasks."""
        if self.n_clusters > K:
            raise OptionError(f"`n_clusters`={self.n_clusters} for {K} tasks; need at most one cluster a task")

    def scaled(self, factor: float) -> Self:
        """`strength` multiplied."""
        return replace(self, strength=factor * self.strength)

    def solve(self, design: Design, labels: Labels, options: SolverOptions) -> Solution:
        self.check(design.n_features, design.n_tasks)
        _check_losses(labels)
        problem = smooth_problem(design, labels)
        folds = _folds(design, labels, self.seed)
        p = self.strength * _task_strengths(design, labels, problem, folds)
        U, V, n_iter, settled = self._cluster(design, labels, problem, p)
        strengths = self._center_strengths(design, labels, (p, V), folds)
        fit = minimize(MixtureProblem(problem, V), strengths, solver=Fista(), options=options, start=U)
        objectives, n_iter = [fit.certificate.objective], n_iter + fit.n_iter
        for _ in range(self.refine):
            V = _fit_memberships(design, labels, fit.W, V, options)
            fit = minimize(MixtureProblem(problem, V), strengths, solver=Fista(), options=options, start=fit.W)
            objectives.append(fit.certificate.objective)
            n_iter += fit.n_iter
        message = f"centres {fit.message}" if settled else _unsettled(self.max_loops, fit.message)
        details = {
            "centers": fit.W.T,
            "memberships": V,
            "pure_tasks": np.flatnonzero(V.max(1) >= PURE),
            "objectives": np.array(objectives),
        }
        W = fit.W @ V.T
        return Solution(W, fit.intercepts, W[None], fit.certificate, n_iter, settled and fit.converged, message, None, details)

    def _cluster(self, design: Design, labels: Labels, problem: Problem, p: Array) -> tuple[Array, Array, int, bool]:
        """U, V, iterations and whether the losses settled."""
        rows = RowsProblem(design, labels)
        own = _entrywise(REFIT * p, problem.n_features)
        first = minimize(problem, own, solver=Fista(), options=LOOSE)
        V, _ = semisoft(_cross_errors(rows, first.W), self.n_clusters, self.pure_fraction, self.seed)
        U, before, n_iter = fit_centers(first.W, V), np.inf, first.n_iter
        few = SolverOptions(tol=1e-12, max_iter=CORRECTION_STEPS, check_every=CORRECTION_STEPS)
        for _ in range(self.max_loops):
            mixture = MixtureProblem(problem, V)
            centers = minimize(mixture, _entrywise(_noise(p, V), problem.n_features), solver=Fista(), options=LOOSE, start=U)
            U, n_iter = centers.W, n_iter + centers.n_iter
            loss = mixture.value(mixture.point(U, mixture.image(U)), U, mixture.image(U))
            if abs(before - loss) <= SETTLED * max(loss, 1e-6 * problem.spread):
                return U, V, n_iter, True
            before = loss
            away = minimize(problem, own, solver=Fista(), options=few, start=U @ V.T)
            new, _ = semisoft(_cross_errors(rows, away.W), self.n_clusters, self.pure_fraction, self.seed)
            V, n_iter = align(new, V), n_iter + away.n_iter
        return U, V, n_iter, False

    def _center_strengths(self, design: Design, labels: Labels, at: tuple[Array, Array], folds: Rows) -> L1:
        """Strengths of the centres, with the cross-validated factor."""
        p, V = at
        penalties = [_entrywise(factor * _noise(p, V), design.n_features) for factor in CENTER_FACTORS]
        errors = _held_out(design, labels, penalties, folds, V)
        return penalties[int(errors.sum(1).argmin())]


def _unsettled(max_loops: int, message: str) -> str:
    return f"not converged: the memberships still change after {max_loops} loops; raise `max_loops` (centres {message})"


def _check_losses(labels: Labels) -> None:
    names = {loss.name for loss in labels.losses}
    if len(names) > 1 or not names <= {"squared", "logistic"}:
        found = ", ".join(sorted(names))
        raise OptionError(f"`loss`: semisoft clusters need 'squared' or 'logistic', one for all tasks; found {found}")


def _entrywise(strengths: Array, d: int) -> L1:
    """One strength a column."""
    return L1(1.0, np.tile(strengths, (d, 1)))


def _noise(p: Array, V: Array) -> Array:
    """(C,) noise of the centres' gradients where p is that of the tasks'."""
    return np.sqrt((V**2 * p[:, None] ** 2).sum(0))


def _folds(design: Design, labels: Labels, seed: int) -> Rows:
    """Fold of each score; classes are spread evenly."""
    folds = np.empty(design.shape, dtype=np.intp)
    for t, loss in enumerate(labels.losses):
        index = design.index(np.array([t]))
        groups = np.where(labels.y[index] > 0, 1, 0) if loss.labels == "sign" else np.zeros_like(folds[index])
        groups = np.where(labels.weight[index] > 0, groups, -1)
        folds[index] = deal_folds(groups.ravel(), N_FOLDS, seed).reshape(groups.shape)
    return folds


def _held_out(design: Design, labels: Labels, penalties: list[L1], folds: Rows, V: Array | None) -> Array:
    """Losses of each task on the rows held out, summed over the folds, (penalties, K)."""
    errors = np.zeros((len(penalties), design.n_tasks))
    for fold in range(N_FOLDS):
        train = smooth_problem(design, replace(labels, weight=np.where(folds == fold, 0.0, labels.weight)))
        problem = train if V is None else MixtureProblem(train, V)
        held_out = np.where(folds == fold, labels.weight, 0.0)
        rows, start = RowsProblem(design, labels), None
        for i, penalty in enumerate(penalties):
            fit = minimize(problem, penalty, solver=Fista(), options=LOOSE, start=start)
            start = fit.W
            W = fit.W if V is None else fit.W @ V.T
            errors[i] += design.sum_rows(held_out * rows.each("value", _scores(rows, W, fit.intercepts)))
    return errors


def _scores(rows: RowsProblem, W: Array, intercepts: Array) -> Array:
    scores = rows.design.scores(W) + rows.design.spread(intercepts)
    return scores if rows.labels.offset is None else scores + rows.labels.offset


def _task_strengths(design: Design, labels: Labels, problem: Problem, folds: Rows) -> Array:
    """p: the cross-validated strength of each task's own lasso, all tasks at once."""
    greatest = np.abs(problem.origin.gradient).max(0)
    penalties = [_entrywise(factor * greatest, problem.n_features) for factor in TASK_FACTORS]
    errors = _held_out(design, labels, penalties, folds, None)
    return greatest * TASK_FACTORS[errors.argmin(0)]


def _cross_errors(rows: RowsProblem, B: Array) -> Array:
    """E: weighted absolute errors, or probabilities of the wrong label, at each task's best intercept."""
    K = rows.n_tasks
    E = np.empty((K, K))
    for t in range(K):
        same = np.repeat(B[:, [t]], K, axis=1)
        z = _scores(rows, same, rows.intercepts(same, rows.image(same)))
        y = rows.labels.y
        error = np.abs(z - y) if rows.labels.losses[0].name == "squared" else expit(-y * z)
        E[t] = rows.design.sum_rows(rows.labels.weight * error)
    return E


def _fit_memberships(design: Design, labels: Labels, U: Array, V: Array, options: SolverOptions) -> Array:
    """V that minimises the losses with U fixed: the scores of the centres are the features."""
    K = design.n_tasks
    if isinstance(design, SharedRows):
        mixed: Design = SharedRows(design.X @ U, K)
    else:
        mixed = OwnRows([design.block(t) @ U for t in range(K)])
    fit = minimize(smooth_problem(mixed, labels), SimplexColumns(), solver=Fista(), options=options, start=V.T)
    return fit.W.T
