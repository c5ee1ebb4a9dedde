"""Features and tasks in blocks: a weighted lasso whose weights come from the spectrum of the graph that W itself makes.

Letters: K tasks, d features, N blocks, W (d, K) coefficients, L (d + K, d + K) Laplacian of the graph with weights |W| between
features and tasks, lambda its eigenvalues, U (d + K, d + K) matrix with 0 <= U <= I and trace N, D (d, K) weights.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from taskloom.linear._design import Design
from taskloom.linear._gram_problem import smooth_problem
from taskloom.linear._penalty import Sum, check_strength
from taskloom.linear._problem import Labels, Problem
from taskloom.linear._procedure import Procedure
from taskloom.linear._smooth_penalties import Ridge
from taskloom.linear._solver import Fista, Solution, SolverOptions, minimize
from taskloom.linear._sparse_penalties import L1
from taskloom.tasks import Array, OptionError, Rows, is_whole

RESTARTS = 10
DEAD = 1e-8


def bipartite_laplacian(W: Array) -> Array:
    """L of the graph that joins feature j and task t with weight |w_jt|, features first.

    Its null space has one dimension for each connected block, features without a task counting as blocks.

    Examples:
        >>> bipartite_laplacian(np.array([[2.0, -1.0]]))
        array([[ 3., -2., -1.],
               [-2.,  2.,  0.],
               [-1.,  0.,  1.]])
    """
    d, K = W.shape
    A = np.abs(W)
    L = np.zeros((d + K, d + K))
    L[:d, d:], L[d:, :d] = -A, -A.T
    np.fill_diagonal(L, np.concatenate([A.sum(1), A.sum(0)]))
    return L


def block_weights(U: Array, d: int) -> Array:
    """D with <L(W), U> = sum_jt D_jt |w_jt|: the squared distance of feature j and task t where U holds inner products.

    Args:
        U: (d + K, d + K), symmetric and positive semi-definite.
        d: number of features.

    Examples:
        >>> block_weights(np.eye(3), 1)
        array([[2., 2.]])
    """
    diagonal = np.diag(U)
    return np.maximum(diagonal[:d, None] + diagonal[None, d:] - 2 * U[:d, d:], 0.0)


def project_to_capped_simplex(v: Array, total: float) -> Array:
    """The nearest c to v with 0 <= c <= 1 and sum `total`, exactly: the sum is piecewise linear in a common shift.

    Args:
        v: (m,).
        total: 0 to m.

    Examples:
        >>> project_to_capped_simplex(np.array([3.0, 0.4, 0.2]), 2.0)
        array([1. , 0.6, 0.4])
    """
    corners = np.sort(np.concatenate([v - 1, v]))
    low, high = 0, len(corners) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if np.clip(v - corners[middle], 0, 1).sum() >= total else (low, middle)
    shift = 0.5 * (corners[low] + corners[high])
    free = (v - shift > 0) & (v - shift < 1)
    if free.any():
        shift = (v[free].sum() + (v - shift >= 1).sum() - total) / free.sum()
    return np.clip(v - shift, 0, 1)


def spectral_step(L: Array, n_blocks: int, ratio: float) -> Array:
    """argmin_U ratio <L, U> + |U|_F^2 / 2 over 0 <= U <= I with trace N.

    U has the eigenvectors of L, and as eigenvalues the projection of -ratio lambda. Where ratio (lambda_{N+1} - lambda_N) >= 1
    that is V_N V_N', with the N eigenvectors of least eigenvalue.

    Args:
        L: (m, m), symmetric.
        n_blocks: N, at most m.
        ratio: 0 or more.

    Examples:
        >>> spectral_step(np.diag([0.0, 3.0, 3.0]), 1, ratio=1.0).round(6)
        array([[1., 0., 0.],
               [0., 0., 0.],
               [0., 0., 0.]])
    """
    values, vectors = np.linalg.eigh(L)
    c = project_to_capped_simplex(-ratio * values, n_blocks)
    return (vectors * c) @ vectors.T


def co_clusters(W: Array, n_blocks: int, seed: int = 0) -> tuple[Rows, Rows]:
    """Block of each feature (d,) and of each task (K,): k-means on the leading eigenvectors of the graph of |W|.

    Features and tasks without any coefficient belong to no block, -1. Of the rest, the N eigenvectors of least eigenvalue (and
    those that tie with the Nth) are scaled to rows of norm 1, so that small blocks lie no farther out than great ones.

    Args:
        W: (d, K).
        n_blocks: N.
        seed: of k-means.

    Examples:
        >>> features, tasks = co_clusters(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 0.0]]), 2)
        >>> int(features[0] == tasks[0]), int(features[1] == features[2] == tasks[1]), int(features[3])
        (1, 1, -1)
    """
    d = len(W)
    small = np.abs(W) <= DEAD * np.abs(W).max(initial=0)
    A = np.where(small, 0.0, W)
    labels = np.full(sum(W.shape), -1)
    used = np.flatnonzero(np.concatenate([A.any(1), A.any(0)]))
    if len(used) <= n_blocks:
        labels[used] = np.arange(len(used))
        return labels[:d], labels[d:]
    values, vectors = np.linalg.eigh(bipartite_laplacian(A)[np.ix_(used, used)])
    leading = vectors[:, values <= values[n_blocks - 1] + 1e-9 * values[-1]]
    rows = leading / np.maximum(np.linalg.norm(leading, axis=1, keepdims=True), 1e-300)
    with warnings.catch_warnings():
        # Fewer distinct rows than blocks: a block too many stays empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels[used] = KMeans(n_blocks, n_init=RESTARTS, random_state=seed).fit_predict(rows)
    return labels[:d], labels[d:]


@dataclass(frozen=True)
class FeatureCollaborative(Procedure):
    """Blocks of features that serve blocks of tasks (TFCL: Yang, Xu, Cao & Huang 2020).

    Yang, Xu, Cao & Huang, "Task-Feature Collaborative Learning with Application to Personalized Attribute Prediction" (arXiv
    2004.13930). Minimises over W and U, 0 <= U <= I with trace N,

        losses + alpha1 <L(W), U> + alpha2 / 2 |W|_F^2 + alpha3 / 2 |U|_F^2,

    where the least <L(W), U> is the sum of the N least eigenvalues of the Laplacian of the graph with weights |W|, zero just
    where W has N blocks or more. We have read the abstract and the authors' sibling paper on latent tasks; the objective above
    is our reconstruction from these.

    <L(W), U> is a lasso of W with weights D_jt, the squared distances of features and tasks in U. So two convex steps
    alternate from U = N / (d + K) I, a plain elastic net: the weighted lasso with ridge, solved to the tolerance (the paper's
    method, as we understand it, takes one proximal step), and U in closed form from the eigenvectors of L. The objective never
    rises; what is found is a stationary point, as the problem is not convex in both. It is not the least one: W can always be
    cut into blocks of a few features or tasks and one great block that goes free, which the objective likes and a user does
    not. In our trials better starts and paths of alpha1 found lower objectives of that kind and worse blocks, so that the
    elastic net is the start, and alpha1 is best large enough to make it sparse. An alternation costs O((d + K)^3) for the
    eigenvectors.

    The certificate is that of the last W for the U before it. Each step minimises its own intercepts out. `details` of the
    solution: `objectives` (alternations + 1,), at the start and after each alternation; `embedding`, U (d + K, d + K), features
    first; `weights`, D of that U; `feature_blocks` (d,) and `task_blocks` (K,), see `co_clusters`.

    Attributes:
        n_blocks: N, 1 to d + K; features without use count as blocks of their own.
        alpha1: pull to blocks, 0 or more.
        alpha2: ridge, 0 or more.
        alpha3: spread of U, above 0 so that U is unique. At alpha1 (lambda_{N+1} - lambda_N) >= alpha3 it plays no part.
        max_alternations: alternations at most.
        seed: of k-means.

    Raises:
        OptionError: an option out of range; more blocks than features and tasks.

    Examples:
        >>> from taskloom.linear._design import SharedRows
        >>> from taskloom.linear._losses import Squared
        >>> X, W = np.random.default_rng(0).normal(size=(50, 4)), np.kron(np.eye(2), np.ones((2, 3)))
        >>> labels = Labels(X @ W, np.full((50, 6), 1 / 50), [Squared()] * 6)
        >>> solution = FeatureCollaborative(2, 0.1, 0.01, 0.01).solve(SharedRows(X, 6), labels, SolverOptions())
        >>> blocks = solution.details["task_blocks"]
        >>> bool((blocks == blocks[[0, 0, 0, 3, 3, 3]]).all())
        True
    """

    n_blocks: int = 2
    alpha1: float = 1.0
    alpha2: float = 0.01
    alpha3: float = 0.01
    max_alternations: int = 100
    seed: int = 0
    paper: ClassVar[str] = "Yang, Xu, Cao & Huang 2020"

    def __post_init__(self) -> None:
        check_strength("alpha1", self.alpha1)
        check_strength("alpha2", self.alpha2)
        check_strength("alpha3", self.alpha3, positive=True)
        for name, least in (("n_blocks", 1), ("max_alternations", 1), ("seed", 0)):
            value = getattr(self, name)
            if not is_whole(value, least):
                raise OptionError(f"`{name}`={value!r}: need a whole number, {least} or more")

    def check(self, d: int, K: int) -> None:
        """Refuse more blocks than features and tasks."""
        if self.n_blocks > d + K:
            raise OptionError(f"`n_blocks`={self.n_blocks} for {d} features and {K} tasks; need at most {d + K}")

    def scaled(self, factor: float) -> Self:
        """All three strengths multiplied."""
        alphas = {name: factor * getattr(self, name) for name in ("alpha1", "alpha2", "alpha3")}
        return replace(self, **alphas)

    def factor_range(self, G: Array, lipschitz: Array) -> float:
        """The factor at which W = 0 is where it begins and ends."""
        even = 2 * self.n_blocks / sum(G.shape)
        return L1(self.alpha1 * even).factor_range(G, lipschitz)

    def solve(self, design: Design, labels: Labels, options: SolverOptions) -> Solution:
        d, K = design.n_features, design.n_tasks
        self.check(d, K)
        problem = smooth_problem(design, labels)
        W, U = np.zeros((d, K)), np.eye(d + K) * self.n_blocks / (d + K)
        objectives = [self._objective(problem, W, U)]
        fit, U, objective = self._alternate(problem, W, U, options)
        n_iter, settled = fit.n_iter, objectives[0] - objective <= options.tol * problem.spread
        objectives.append(objective)
        while len(objectives) <= self.max_alternations and not settled:
            step, next_U, objective = self._alternate(problem, fit.W, U, options)
            n_iter += step.n_iter
            settled = objectives[-1] - objective <= options.tol * problem.spread
            if objective > objectives[-1]:
                # Steps solved to a tolerance may rise by it at the end: the point before is then kept.
                break
            fit, U = step, next_U
            objectives.append(objective)
        W = fit.W
        features, tasks = co_clusters(W, self.n_blocks, self.seed)
        details = {
            "objectives": np.array(objectives),
            "embedding": U,
            "weights": block_weights(U, d),
            "feature_blocks": features,
            "task_blocks": tasks,
        }
        message = f"{fit.message}, in the last of {len(objectives) - 1} alternations"
        if not settled:
            message = f"not converged: the objective still falls after {self.max_alternations} alternations; raise "
            message += f"`max_alternations` or `tol` ({fit.message})"
        done = settled and fit.converged
        return Solution(W, fit.intercepts, W[None], fit.certificate, n_iter, done, message, None, details)

    def _alternate(self, problem: Problem, W: Array, U: Array, options: SolverOptions) -> tuple[Solution, Array, float]:
        """One step in W, one in U, and the objective there."""
        D = block_weights(U, len(W))
        # Weights of rounding size would ask for a slope that is exact to their size; zeros ask for a slope of zero.
        weights = np.where(D / max(D.max(), 1e-300) > DEAD, D, 0.0)
        penalty = Sum([Ridge(0.5 * self.alpha2)], L1(self.alpha1, weights))
        step = minimize(problem, penalty, solver=Fista(), options=options, start=W)
        U = spectral_step(bipartite_laplacian(step.W), self.n_blocks, self.alpha1 / self.alpha3)
        return step, U, self._objective(problem, step.W, U)

    def _objective(self, problem: Problem, W: Array, U: Array) -> float:
        Z = problem.image(W)
        losses = problem.value(problem.point(W, Z), W, Z)
        blocks = float((block_weights(U, len(W)) * np.abs(W)).sum())
        ridges = self.alpha2 * float(np.vdot(W, W)) + self.alpha3 * float(np.vdot(U, U))
        return losses + self.alpha1 * blocks + 0.5 * ridges
