"""The solver and its certificates: optimal for every penalty, loss and shape by formulas written out here; resume; limits."""

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import lsq_linear
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LogisticRegression,
    MultiTaskElasticNet,
    MultiTaskLasso,
    PoissonRegressor,
)
from sklearn.linear_model import (
    Ridge as SkRidge,
)
from sklearn.svm import LinearSVC
from tests.linear.linear_problems import LOSSES, SHAPES, make_case

from taskloom.linear._distance_penalties import CrossLearning, Fusion
from taskloom.linear._gram_problem import GramProblem
from taskloom.linear._objective import Objective
from taskloom.linear._penalty import Sum
from taskloom.linear._smooth_penalties import FeatureRelations, Graph, MeanRegularized, Ridge
from taskloom.linear._solver import Fista, SolverOptions, SolverState, minimize
from taskloom.linear._sparse_penalties import L1, L21, Fused
from taskloom.linear._spectral_penalties import Clustered, Trace
from taskloom.linear._split_penalties import Dirty, L1Inf, OutlierTasks, Robust, SparseLowRank
from taskloom.tasks import OptionError

TIGHT = SolverOptions(tol=1e-8)
D, K = 5, 3
CHAIN = np.diag(np.ones(K - 1), 1) + np.diag(np.ones(K - 1), -1)
LAPLACIAN = np.diag(CHAIN.sum(0)) - CHAIN
WEIGHTS = np.random.default_rng(0).uniform(0.2, 2, size=(D, K))
RELATIONS = np.random.default_rng(7).normal(size=(2, D))


def solve(case, penalty, options=TIGHT, **more):
    problem = case if hasattr(case, "bregman") else case.problem()
    return minimize(problem, penalty, solver=Fista(), options=options, **more)


# Penalties once more, in plain numpy: value of W, and proximal map at step s.


def norm(axis):
    def prox(a):
        def of(V, s):
            size = np.linalg.norm(V, axis=axis, keepdims=True)
            return np.where(size > s * a, V * (1 - s * a / np.where(size > 0, size, 1)), 0)

        return of

    return (lambda a: lambda W: a * np.linalg.norm(W, axis=axis).sum()), prox


def entries(a):
    return (lambda W: (a * np.abs(W)).sum()), (lambda V, s: np.sign(V) * np.maximum(np.abs(V) - s * a, 0))


def rows(a):
    value, prox = norm(1)
    return value(a), prox(a)


def columns(a):
    value, prox = norm(0)
    return value(a), prox(a)


def spectrum(a):
    def prox(V, s):
        U, sigma, Vt = np.linalg.svd(V, full_matrices=False)
        return U * np.maximum(sigma - s * a, 0) @ Vt

    return (lambda W: a * np.linalg.svd(W, compute_uv=False).sum()), prox


def largest(a):
    def prox(V, s):
        size = np.abs(V)
        low, high = np.zeros(len(V)), size.max(1)
        for _ in range(60):
            top = (low + high) / 2
            above = np.maximum(size - top[:, None], 0).sum(1) > s * a
            low, high = np.where(above, top, low), np.where(above, high, top)
        return np.clip(V, -high[:, None], high[:, None])

    return (lambda W: a * np.abs(W).max(1).sum()), prox


def tasks_by(M):
    return (lambda W: np.trace(W @ M @ W.T)), (lambda V, s: V @ np.linalg.inv(np.eye(K) + 2 * s * M))


def features_by(M):
    return (lambda W: np.trace(W.T @ M @ W)), (lambda V, s: np.linalg.solve(np.eye(D) + 2 * s * M, V))


def fused(fusion, sparsity, group):
    B = np.vstack([fusion * np.diff(np.eye(K), axis=0), sparsity * np.eye(K)])
    shrink = rows(group)[1]

    def prox(V, s):
        x = [v - s * B.T @ lsq_linear(s * B.T, v, bounds=(-1, 1), method="bvls", tol=1e-15).x for v in V]
        return shrink(np.array(x), s)

    return (lambda W: np.abs(B @ W.T).sum() + group * np.linalg.norm(W, axis=1).sum()), prox


def group_and_entries(a, b):
    return (lambda W: entries(a)[0](W) + rows(b)[0](W)), (lambda V, s: rows(b)[1](entries(a)[1](V, s), s))


def pairs(a, A):
    return (
        lambda W: a * sum(A[s, t] * np.linalg.norm(W[:, s] - W[:, t]) for s, t in itertools.combinations(range(K), 2))
    ), None


def ball(eps, *, free):
    def value(W, slack=1e-9):
        g = W.mean(1)
        # A free centre: steps towards the column that is farthest away end at the centre of the smallest ball.
        for i in range(3000 if free else 0):
            away = W - g[:, None]
            g = g + away[:, (away**2).sum(0).argmax()] / (i + 2)
        return 0.0 if np.linalg.norm(W - g[:, None], axis=0).max() <= eps * (1 + slack) else np.inf

    return value, None


def clusters(k, strength, ridge):
    eta = ridge / strength

    def value(W):
        s = np.linalg.svd(W, compute_uv=False)
        theta = lambda mu: np.clip(mu * s, eta, 1 + eta)  # noqa: E731
        low, high = 0.0, (1 + eta) / max(s.min(), 1e-12)
        for _ in range(200):
            mu = (low + high) / 2
            low, high = (mu, high) if theta(mu).sum() < k + eta * len(s) else (low, mu)
        return strength * eta * (1 + eta) * (s**2 / theta(low)).sum()

    return value, None


EYE = np.eye(K)
TWINS = {
    "L1": (L1(0.1), entries(0.1)),
    "L1 weighted": (L1(0.1, WEIGHTS), entries(0.1 * WEIGHTS)),
    "L21": (L21(0.1), rows(0.1)),
    "L1 + L21": (L1(0.05) + L21(0.05), group_and_entries(0.05, 0.05)),
    "Fused": (Fused(0.05, 0.05, 0.02), fused(0.05, 0.05, 0.02)),
    "Fused alone": (Fused(0.1), fused(0.1, 0, 0)),
    "Trace": (Trace(0.1), spectrum(0.1)),
    "L1Inf": (L1Inf(0.1), largest(0.1)),
    "OutlierTasks": (OutlierTasks(0.1), columns(0.1)),
    "Ridge": (Ridge(0.1), tasks_by(0.1 * EYE)),
    "Graph": (Graph(0.1, CHAIN), tasks_by(0.1 * LAPLACIAN)),
    "Graph with ridge": (Graph(0.1, CHAIN, ridge=0.5), tasks_by(0.1 * (LAPLACIAN + 0.5 * EYE))),
    "MeanRegularized": (MeanRegularized(0.1), tasks_by(0.1 * (EYE - 1 / K))),
    "FeatureRelations": (FeatureRelations(0.1, RELATIONS), features_by(0.1 * RELATIONS.T @ RELATIONS)),
    "Clustered": (Clustered(2, 0.1, 0.05), clusters(2, 0.1, 0.05)),
    "CrossLearning free": (CrossLearning(0.2), ball(0.2, free=True)),
    "CrossLearning mean": (CrossLearning(0.2, "mean"), ball(0.2, free=False)),
    "Fusion": (Fusion(0.05), pairs(0.05, 1 - EYE)),
    "Fusion of neighbours": (Fusion(0.05, CHAIN), pairs(0.05, CHAIN)),
    "Dirty": (Dirty(0.15, 0.08), (largest(0.15), entries(0.08))),
    "Robust": (Robust(0.15, 0.1), (spectrum(0.15), columns(0.1))),
    "SparseLowRank": (SparseLowRank(0.15, 0.05), (spectrum(0.15), entries(0.05))),
}
# Smooth terms M, R of sums: value tr(W M W') + tr(W' R W).
SUMS = {
    "Ridge + L1": (Ridge(0.05) + L1(0.05), entries(0.05), 0.05 * EYE, 0 * np.eye(D)),
    "Graph + L21": (Graph(0.1, CHAIN) + L21(0.1), rows(0.1), 0.1 * LAPLACIAN, 0 * np.eye(D)),
    "Mean + Trace": (Sum([MeanRegularized(0.1)], Trace(0.1)), spectrum(0.1), 0.1 * (EYE - 1 / K), 0 * np.eye(D)),
    "Relations + Ridge + L21": (
        Sum([FeatureRelations(0.1, RELATIONS), Ridge(0.02)], L21(0.1)), rows(0.1), 0.02 * EYE, 0.1 * RELATIONS.T @ RELATIONS,
    ),
    "Ridge + Graph + Relations": (
        Sum([Ridge(0.05), Graph(0.1, CHAIN), FeatureRelations(0.1, RELATIONS)], None),
        ((lambda W: 0.0), (lambda V, s: V)), 0.05 * EYE + 0.1 * LAPLACIAN, 0.1 * RELATIONS.T @ RELATIONS,
    ),
    "Ridge + CrossLearning": (Sum([Ridge(0.05)], CrossLearning(0.2)), ball(0.2, free=True), 0.05 * EYE, 0 * np.eye(D)),
    "Ridge + Clustered": (Sum([Ridge(0.05)], Clustered(2, 0.1, 0.05)), clusters(2, 0.1, 0.05), 0.05 * EYE, 0 * np.eye(D)),
    "Ridge + Dirty": (
        Sum([Ridge(0.1)], Dirty(0.15, 0.08)), (largest(0.15), entries(0.08)), 0.1 * EYE, 0 * np.eye(D),
    ),
}  # fmt: skip
ALL = {**{name: (*twin, 0 * EYE, 0 * np.eye(D)) for name, twin in TWINS.items()}, **SUMS}
# The proximal map of fusion is solved to a gap that leaves the certificate near 1e-7.
TOL = {name: 1e-6 for name in ALL if name.startswith("Fusion")}


def nearby_in_ball(W, eps, *, free):
    """Points between W and random points of the ball around any centre."""
    rng = np.random.default_rng(0)
    for size in (1e-1, 1e-2, 1e-3, 1e-4):
        for _ in range(20):
            away = rng.normal(size=W.shape) + 3 * (W - W.mean(1, keepdims=True))
            away = away if free else away - away.mean(1, keepdims=True)
            far = (
                W.mean(1, keepdims=True) + 0.3 * rng.normal(size=(len(W), 1)) + away * eps / np.linalg.norm(away, axis=0).max()
            )
            yield W + size * (far - W)


def check_optimal(case, solution, name, tol):
    """Optimality by the formulas above, not by the library's objects."""
    _, plain, M, R = ALL[name]
    split = isinstance(plain[0], tuple)
    parts = solution.parts
    twins = plain if split else (plain,)
    W, b, certificate = solution.W, solution.intercepts, solution.certificate
    assert certificate.relative <= tol
    assert solution.converged
    np.testing.assert_allclose(parts.sum(0), W, atol=1e-14)

    def F(P):  # noqa: N802
        V = P.sum(0)
        smooth = np.trace(V @ M @ V.T) + np.trace(V.T @ R @ V)
        return case.value(V, b) + smooth + sum(value(p) for (value, _), p in zip(twins, P, strict=True))

    at = certificate.objective
    if "eps" in repr(ALL[name][0]):
        assert plain[0](W, 1e-3) == 0
        rivals = nearby_in_ball(W, 0.2, free="free" in repr(ALL[name][0]))
        # The ball is convex: between a point of it and another there is nothing outside.
        value = lambda V: case.value(V, b) + np.trace(V @ M @ V.T) + np.trace(V.T @ R @ V)  # noqa: E731
        assert value(W) == pytest.approx(at, rel=1e-9)
        assert min(value(V) for V in rivals) >= at - 1e-9
        return
    assert F(parts) == pytest.approx(at, rel=1e-9)
    G, slopes = case.gradient(W, b)
    G = G + 2 * W @ M + 2 * R @ W
    np.testing.assert_allclose(slopes, 0, atol=1e-10)
    curvature = (
        max(float(s @ (X**2).sum(1)) for X, _, s, _, _ in case.tasks) + 2 * np.linalg.norm(M, 2) + 2 * np.linalg.norm(R, 2)
    )
    step = 1 / (curvature * len(parts))
    if all(prox is not None for _, prox in twins):
        moved = np.array([p - prox(p - step * G, step) for (_, prox), p in zip(twins, parts, strict=True)])
        residual = np.linalg.norm(moved)
        if certificate.gap is not None:
            if case.tasks[0][-1] != "poisson":
                # One proximal step gains residual^2 / (2 step), which is never more than the gap.
                assert residual <= np.sqrt(2 * step * certificate.gap) + 1e-7
            else:
                assert residual <= 1e-3
        else:
            assert residual <= 1e-6
    gap = 1e-9 if certificate.gap is None else certificate.gap
    rng = np.random.default_rng(0)
    for size in (1e-1, 1e-2, 1e-3, 1e-4):
        for mask in (1.0, 0.2):
            rival = parts + size * rng.normal(size=parts.shape) * (rng.random(parts.shape) < mask)
            assert F(rival) >= at - gap - 1e-12
    for factor in (0.0, 0.9, 0.999, 1.001):
        assert F(factor * parts) >= at - gap - 1e-12


PAIRS = [(name, loss) for name in ALL for loss in LOSSES if loss != "poisson" or "CrossLearning" not in name]


@pytest.mark.parametrize(("name", "loss"), PAIRS)
def test_solutions_are_optimal(name, loss):
    tol = TOL.get(name, 1e-8)
    # Counts take a thousand steps from a first one that is far too short: one shape will do.
    for shape in [SHAPES[len(name) % 3]] if loss == "poisson" else SHAPES:
        case = make_case(shape, loss, d=D, K=K, n=40, seed=2)
        check_optimal(case, solve(case, ALL[name][0], replace(TIGHT, tol=tol)), name, tol)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["L1", "L21", "Trace", "Dirty", "Graph", "Ridge + L1"])
def test_solutions_of_mixed_losses_weights_and_offsets_are_optimal(name, shape):
    case = make_case(shape, ["squared", "logistic", "squared_hinge"], d=D, K=K, n=40, weighted=True, offset=True)
    check_optimal(case, solve(case, ALL[name][0]), name, 1e-8)


@pytest.mark.parametrize("name", ["L1", "L21", "Trace", "Ridge"])
def test_solutions_without_intercepts_are_optimal(name):
    case = make_case("own", "logistic", d=D, K=K, intercept=False)
    solution = solve(case, ALL[name][0])
    W, (_, prox) = solution.W, ALL[name][1]
    np.testing.assert_array_equal(solution.intercepts, 0)
    G, _ = case.gradient(W, solution.intercepts)
    np.testing.assert_allclose(W, prox(W - G, 1.0), atol=1e-3)


@pytest.mark.parametrize("name", [n for n in ALL if not n.startswith("CrossLearning")])
def test_gram_matrices_and_rows_have_one_solution(name):
    case = make_case("missing", d=D, K=K)
    tol = TOL.get(name, 1e-8)
    one, two = (solve(case.problem(gram=gram), ALL[name][0], replace(TIGHT, tol=tol)) for gram in (True, False))
    assert one.certificate.objective == pytest.approx(two.certificate.objective, rel=1e-6)
    np.testing.assert_allclose(one.W, two.W, atol=2e-3)


@pytest.mark.parametrize("name", ["L1", "L21", "Trace", "Fused"])
def test_more_features_than_rows_are_served(name):
    case = make_case("shared", d=40, n=15, K=K)
    solution = solve(case, ALL[name][0])
    assert solution.certificate.relative <= 1e-8
    assert not isinstance(case.problem(), GramProblem)
    rng = np.random.default_rng(0)
    value = ALL[name][1][0]
    at = case.value(solution.W, solution.intercepts) + value(solution.W)
    for size in (1e-1, 1e-2, 1e-3):
        rival = solution.W + size * rng.normal(size=solution.W.shape) * (rng.random(solution.W.shape) < 0.1)
        assert case.value(rival, solution.intercepts) + value(rival) >= at - solution.certificate.gap - 1e-12


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("name", ["L1", "Trace", "Graph", "Robust", "Ridge + L1"])
def test_a_plain_proximal_gradient_reaches_the_same_objective(name, loss):
    case = make_case("own", loss, d=D, K=K)
    _, plain, M, R = ALL[name]
    twins = plain if isinstance(plain[0], tuple) else (plain,)
    ours = solve(case, ALL[name][0], SolverOptions(tol=1e-10))
    ones = [np.column_stack([X, np.ones(len(X))]) * np.sqrt(s)[:, None] for X, _, s, _, _ in case.tasks]
    curvature = max(np.linalg.norm(A, 2) ** 2 for A in ones)
    curvature += 2 * np.linalg.norm(M, 2) + 2 * np.linalg.norm(R, 2)
    step = 1 / (curvature * len(twins))
    P, b = np.zeros((len(twins), D, K)), np.zeros(K)
    for _ in range(800):
        W = P.sum(0)
        G, g = case.gradient(W, b)
        G = G + 2 * W @ M + 2 * R @ W
        b = b - step * g
        P = np.array([prox(p - step * G, step) for (_, prox), p in zip(twins, P, strict=True)])
    W = P.sum(0)
    theirs = case.value(W, b) + np.trace(W @ M @ W.T) + np.trace(W.T @ R @ W)
    theirs += sum(value(p) for (value, _), p in zip(twins, P, strict=True))
    assert ours.certificate.objective <= theirs + 1e-9
    assert ours.certificate.objective == pytest.approx(theirs, abs=1e-4)


# Agreement with scikit-learn


def xy(case, t=0):
    X, y, _, _, _ = case.tasks[t]
    return X, y


def test_lasso_of_one_task_and_of_each_task_is_scikit_learns():
    strict = {"tol": 1e-14, "max_iter": 100_000}
    for shape, k in (("shared", 1), ("own", 3), ("missing", 3)):
        case = make_case(shape, K=k, n=40)
        ours = solve(case, L1(0.1), SolverOptions(tol=1e-14))
        for t in range(k):
            theirs = Lasso(alpha=0.1, **strict).fit(*xy(case, t))
            np.testing.assert_allclose(ours.W[:, t], theirs.coef_, atol=1e-6)
            assert ours.intercepts[t] == pytest.approx(theirs.intercept_, abs=1e-6)


def test_joint_features_are_scikit_learns_multi_task_lasso():
    case = make_case("shared", n=40, d=12)
    Y = np.stack([y for _, y, *_ in case.tasks], axis=1)
    strict = {"tol": 1e-14, "max_iter": 100_000}
    for strength in (0.02, 0.2):
        ours = solve(case, L21(strength), SolverOptions(tol=1e-14))
        theirs = MultiTaskLasso(alpha=strength, **strict).fit(case.design.X, Y)
        np.testing.assert_allclose(ours.W, theirs.coef_.T, atol=1e-6)
        np.testing.assert_allclose(ours.intercepts, theirs.intercept_, atol=1e-6)
        elastic = MultiTaskElasticNet(alpha=strength, l1_ratio=0.4, **strict).fit(case.design.X, Y)
        ours = solve(case, Sum([Ridge(0.3 * strength)], L21(0.4 * strength)), SolverOptions(tol=1e-14))
        np.testing.assert_allclose(ours.W, elastic.coef_.T, atol=1e-6)


def test_sums_with_a_ridge_are_scikit_learns_elastic_net():
    case = make_case("own", n=40)
    ours = solve(case, Sum([Ridge(0.06)], L1(0.08)), SolverOptions(tol=1e-14))
    for t in range(case.K):
        theirs = ElasticNet(alpha=0.2, l1_ratio=0.4, tol=1e-14, max_iter=100_000).fit(*xy(case, t))
        np.testing.assert_allclose(ours.W[:, t], theirs.coef_, atol=1e-6)


def test_ridge_is_scikit_learns():
    case = make_case("own", n=40)
    ours = solve(case, Ridge(0.05), SolverOptions(tol=1e-14))
    for t in range(case.K):
        X, y = xy(case, t)
        theirs = SkRidge(alpha=0.1 * len(y)).fit(X, y)
        np.testing.assert_allclose(ours.W[:, t], theirs.coef_, atol=1e-6)
        assert ours.intercepts[t] == pytest.approx(theirs.intercept_, abs=1e-6)


def test_logistic_regression_is_scikit_learns():
    case = make_case("own", "logistic", n=60)
    small, sparse = (solve(case, penalty, SolverOptions(tol=1e-13)) for penalty in (Ridge(0.05), L1(0.05)))
    for t in range(case.K):
        X, y = xy(case, t)
        theirs = LogisticRegression(C=1 / (0.1 * len(y)), tol=1e-12, max_iter=10_000).fit(X, y)
        np.testing.assert_allclose(small.W[:, t], theirs.coef_[0], atol=1e-6)
        assert small.intercepts[t] == pytest.approx(theirs.intercept_[0], abs=1e-6)
        saga = LogisticRegression(C=1 / (0.05 * len(y)), l1_ratio=1, solver="saga", tol=1e-12, max_iter=100_000, random_state=0)
        theirs = saga.fit(X, y)
        np.testing.assert_allclose(sparse.W[:, t], theirs.coef_[0], atol=1e-6)
        assert sparse.intercepts[t] == pytest.approx(theirs.intercept_[0], abs=1e-6)


def test_counts_and_margins_are_scikit_learns():
    case = make_case("own", "poisson", n=60)
    ours = solve(case, Ridge(0.05), SolverOptions(tol=1e-13))
    for t in range(case.K):
        theirs = PoissonRegressor(alpha=0.1, tol=1e-10, max_iter=10_000).fit(*xy(case, t))
        np.testing.assert_allclose(ours.W[:, t], theirs.coef_, atol=1e-6)
    case = make_case("own", "squared_hinge", n=60, intercept=False)
    ours = solve(case, Ridge(0.05), SolverOptions(tol=1e-13))
    for t in range(case.K):
        X, y = xy(case, t)
        svc = LinearSVC(C=1 / (0.2 * len(y)), fit_intercept=False, tol=1e-12, max_iter=100_000, dual=False).fit(X, y)
        np.testing.assert_allclose(ours.W[:, t], svc.coef_[0], atol=1e-6)


# Kernels and limits


def test_a_graph_is_a_kernel_machine_with_its_task_kernel():
    case = make_case("own", intercept=False)
    gamma, ridge = 0.03, 0.4
    ours = solve(case, Graph(gamma, CHAIN, ridge=ridge), SolverOptions(tol=1e-15))
    A = np.linalg.inv(LAPLACIAN + ridge * np.eye(K)) / (2 * gamma)
    X = np.concatenate([X for X, *_ in case.tasks])
    y, s = (np.concatenate([task[i] for task in case.tasks]) for i in (1, 2))
    owner = np.repeat(np.arange(K), [len(y) for _, y, *_ in case.tasks])
    kernel = A[np.ix_(owner, owner)] * (X @ X.T)
    alpha = np.linalg.solve(kernel + np.diag(1 / s), y)
    predictions = np.concatenate([X @ w for (X, *_), w in zip(case.tasks, ours.W.T, strict=True)])
    np.testing.assert_allclose(predictions, kernel @ alpha, atol=1e-8)


def least_squares(blocks, weights):
    """Coefficients of (X, y) pairs with one intercept each."""
    Xs = [X - s @ X / s.sum() for (X, _), s in zip(blocks, weights, strict=True)]
    ys = [y - s @ y / s.sum() for (_, y), s in zip(blocks, weights, strict=True)]
    roots = [np.sqrt(s) for s in weights]
    A = np.concatenate([X * r[:, None] for X, r in zip(Xs, roots, strict=True)])
    return np.linalg.lstsq(A, np.concatenate([y * r for y, r in zip(ys, roots, strict=True)]), rcond=None)[0]


def pooled(case):
    """One vector for all tasks, each with its own intercept."""
    return least_squares([task[:2] for task in case.tasks], [task[2] for task in case.tasks])


def independent(case):
    return np.stack([least_squares([task[:2]], [task[2]]) for task in case.tasks], axis=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_coupling_goes_from_independent_to_pooled(shape):
    case = make_case(shape)
    one = pooled(case)[:, None] * np.ones(K)
    for penalty in (Graph(1e7, CHAIN), MeanRegularized(1e7), Fusion(10.0), CrossLearning(0.0), CrossLearning(0.0, "mean")):
        solution = solve(case, penalty, SolverOptions(tol=1e-7))
        np.testing.assert_allclose(solution.W, one, atol=1e-4)
    for penalty in (CrossLearning(np.inf), Fusion(0.0), CrossLearning(1e6, "mean"), Fused(0.0)):
        np.testing.assert_allclose(solve(case, penalty, SolverOptions(tol=1e-9)).W, independent(case), atol=1e-5)


@pytest.mark.parametrize("penalty", [
    L1(0.0), L21(0.0), Trace(0.0), Ridge(0.0), Graph(0.0, CHAIN), MeanRegularized(0.0), FeatureRelations(0.0, RELATIONS),
    Fused(0.0), L1Inf(0.0), OutlierTasks(0.0), Dirty(0.0, 0.0), Robust(0.0, 0.0), SparseLowRank(0.0, 0.0),
    Sum([Ridge(0.0)], L1(0.0)),
], ids=lambda p: repr(p)[:30])  # fmt: skip
def test_without_strength_every_task_is_least_squares(penalty):
    for shape in SHAPES:
        case = make_case(shape, n=30)
        solution = solve(case, penalty, SolverOptions(tol=1e-10))
        assert solution.converged
        np.testing.assert_allclose(solution.W, independent(case), atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("penalty", [
    L1(1.0), L1(1.0, WEIGHTS), L21(1.0), Trace(1.0), L1Inf(1.0), OutlierTasks(1.0), Fused(1.0, 0.5, 0.5), Fused(1.0, 1.0),
    Fused(0.0, 1.0, 1.0), Dirty(1.0, 0.6), Robust(1.0, 0.8), SparseLowRank(1.0, 0.5), Sum([Ridge(0.1)], L1(1.0)),
    Sum([Graph(0.1, CHAIN)], L21(1.0)),
], ids=lambda p: repr(p).split("array")[0][:40])  # fmt: skip
def test_the_solution_is_zero_from_lambda_max_on_and_not_before(penalty, loss):
    for shape in [SHAPES[(len(repr(penalty)) + len(loss)) % 3]]:
        case = make_case(shape, loss, d=D, K=K)
        problem = case.problem()
        critical = penalty.lambda_max(problem.origin.gradient)
        at = solve(problem, penalty.scaled(critical))
        assert not at.W.any()
        assert at.converged
        rng = np.random.default_rng(0)
        if loss != "poisson":
            begun = solve(problem, penalty.scaled(1.05 * critical), start=0.05 * rng.normal(size=(D, K)))
            np.testing.assert_allclose(begun.W, 0, atol=1e-3)
        below = solve(problem, penalty.scaled(0.99 * critical), SolverOptions(tol=1e-6))
        assert below.W.any()


@pytest.mark.parametrize("name", list(TWINS))
def test_one_task_is_served_by_every_penalty(name):
    penalty = {
        "L1 weighted": L1(0.1, WEIGHTS[:, :1]), "Graph": Graph(0.1, [[0.0]]),
        "Graph with ridge": Graph(0.1, [[0.0]], ridge=0.5),
        "Clustered": Clustered(1, 0.1, 0.05), "Fusion of neighbours": Fusion(0.05, [[0.0]]),
    }.get(name, TWINS[name][0])  # fmt: skip
    for shape in ("own", "shared"):
        case = make_case(shape, d=D, K=1)
        solution = solve(case, penalty)
        assert solution.converged
        free = name in (
            "Graph",
            "MeanRegularized",
            "CrossLearning free",
            "CrossLearning mean",
            "Fusion",
            "Fusion of neighbours",
            "Fused alone",
        )
        assert np.allclose(solution.W, independent(case), atol=1e-4) == free


def test_features_far_from_zero_do_not_change_the_solution():
    for loss, shape in itertools.product(("squared", "logistic", "huber"), SHAPES):
        near, far = make_case(shape, loss), make_case(shape, loss, mean=1e3)
        one, two = solve(near, L1(0.05)), solve(far, L1(0.05))
        assert two.converged
        np.testing.assert_allclose(two.W, one.W, atol=1e-3)
        assert two.certificate.objective == pytest.approx(one.certificate.objective, abs=1e-7)


def test_a_task_without_labels_stays_out_of_it():
    case = make_case("missing", "squared")
    weight = case.labels.weight.copy()
    weight[:, 1] = 0
    case.labels = replace(case.labels, weight=weight)
    for gram in (True, False):
        solution = solve(case.problem(gram=gram), L21(0.1))
        assert solution.converged
        np.testing.assert_array_equal(solution.W[:, 1], 0)


@pytest.mark.parametrize("loss", ["logistic", "squared_hinge"])
def test_a_task_of_one_class_gets_its_intercept_alone(loss):
    case = make_case("shared", loss)
    y = case.labels.y.copy()
    y[:, 1] = 1
    case.labels = replace(case.labels, y=y)
    solution = solve(case, L1(0.05))
    assert solution.converged
    np.testing.assert_allclose(solution.W[:, 1], 0, atol=1e-6)


def test_constant_labels_and_constant_features_have_nothing_to_learn():
    case = make_case("shared")
    case.labels = replace(case.labels, y=np.full_like(case.labels.y, 0.1))
    for gram, penalty in itertools.product((True, False), (L1(0.1), Ridge(0.1), Trace(0.1))):
        solution = solve(case.problem(gram=gram), penalty, SolverOptions(max_iter=50))
        np.testing.assert_allclose(solution.W, 0, atol=1e-12)
        np.testing.assert_allclose(solution.intercepts, 0.1, atol=1e-12)


def test_constant_labels_converge_by_rows_too():
    case = make_case("shared")
    case.labels = replace(case.labels, y=np.full_like(case.labels.y, 0.1))
    for penalty in (L1(0.1), Ridge(0.1), MeanRegularized(0.1)):
        assert solve(case.problem(gram=False), penalty, SolverOptions(max_iter=50)).converged


# Stop, save, go on


def saved(state):
    file = io.BytesIO()
    np.savez(file, **state.to_dict())
    file.seek(0)
    with np.load(file) as plain:
        return SolverState.from_dict(dict(plain))


def assert_same_state(one, two):
    plain = two.to_dict()
    for name, value in one.to_dict().items():
        if name != "trace":
            np.testing.assert_array_equal(value, plain[name], err_msg=name)


RESUMED = [
    "L1",
    "L21",
    "Trace",
    "Fused",
    "Fusion",
    "Dirty",
    "Robust",
    "Graph",
    "Clustered",
    "CrossLearning free",
    "Ridge + L1",
    "Ridge + Dirty",
]


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("name", RESUMED)
def test_resumed_equals_uninterrupted_to_the_bit(name, loss):
    options = SolverOptions(tol=1e-300, max_iter=7)
    for shape in ("own", "missing"):
        make = lambda: make_case(shape, loss, d=D, K=K).problem()  # noqa: E731, B023
        whole = solve(make(), ALL[name][0], replace(options, max_iter=14))
        first = solve(make(), ALL[name][0], options)
        second = solve(make(), ALL[name][0], options, state=saved(first.state))
        assert (first.n_iter, second.n_iter) == (7, 14)
        assert_same_state(whole.state, second.state)
        np.testing.assert_array_equal(whole.W, second.W)
        np.testing.assert_array_equal(whole.intercepts, second.intercepts)
        assert whole.certificate.objective == second.certificate.objective
        assert second.state.memory.keys() == ({"pairs"} if name == "Fusion" else set())


def test_same_input_same_bits():
    one, two = (solve(make_case("own", "logistic"), Dirty(0.1, 0.05)) for _ in range(2))
    np.testing.assert_array_equal(one.W, two.W)
    assert one.state.trace == two.state.trace


def test_the_trace_falls_and_survives_saving():
    solution = solve(make_case("own", "logistic"), L1(0.02), SolverOptions(tol=1e-10, check_every=5))
    state = saved(solution.state)
    assert state.trace == solution.state.trace
    steps, objectives, relatives = zip(*state.trace, strict=True)
    assert steps[:3] == (0, 5, 10)
    assert steps[-1] == solution.n_iter
    assert objectives[-1] == min(objectives)
    assert relatives[-1] == solution.certificate.relative <= 1e-10


def test_a_warm_start_is_where_it_begins():
    case = make_case("own", "logistic")
    cold = solve(case, L1(0.02))
    warm = solve(case, L1(0.02), start=cold.W)
    assert warm.n_iter == 0
    assert warm.converged
    np.testing.assert_array_equal(warm.W, cold.W)
    near, afresh = solve(case, L1(0.0199), start=cold.W), solve(case, L1(0.0199))
    assert near.n_iter <= afresh.n_iter
    assert near.state.trace[0][2] < 0.1 * afresh.state.trace[0][2]
    assert near.certificate.objective == pytest.approx(afresh.certificate.objective, abs=1e-8)
    for penalty in (Dirty(0.1, 0.06), Fusion(0.05), Sum([Ridge(0.1)], Trace(0.1))):
        # From anywhere it ends in the same place.
        far = solve(case, penalty, replace(TIGHT, tol=1e-6), start=np.ones((case.d, case.K)))
        here = solve(case, penalty, replace(TIGHT, tol=1e-6))
        assert far.converged
        assert far.certificate.objective == pytest.approx(here.certificate.objective, abs=1e-5)


def test_a_warm_start_outside_of_the_ball_is_taken_into_it():
    case = make_case("own")
    start = np.random.default_rng(0).normal(size=(case.d, case.K))
    assert solve(case, CrossLearning(0.1), start=start).converged


def test_going_on_from_a_state_leaves_it_as_it_was():
    case = make_case("own", "logistic")
    first = solve(case, L1(0.02), SolverOptions(tol=1e-12, max_iter=5))
    before = first.state.to_dict()
    solve(case, L1(0.02), state=first.state)
    np.testing.assert_array_equal(first.state.to_dict()["trace"], before["trace"])


# Messages and options


def test_messages_say_what_was_reached_and_what_to_do():
    case = make_case("own", "logistic")
    done = solve(case, L1(0.02))
    assert done.converged
    assert done.message.startswith("converged: relative duality gap")
    assert solve(case, MeanRegularized(0.1)).message.startswith("converged: relative distance to the subdifferential")
    early = solve(case, L1(0.02), SolverOptions(tol=1e-12, max_iter=3))
    assert not early.converged
    assert early.n_iter == 3
    for word in (
        "not converged: relative duality gap",
        "after 3 iterations",
        "`tol`=1e-12",
        "`max_iter`=3",
        "standardise the features",
    ):
        assert word in early.message

    class Immovable(Fista):
        def step(self, objective, state, options):
            return replace(state, n_iter=state.n_iter + 1, stuck=True)

    stuck = minimize(case.problem(), L1(0.02), solver=Immovable(), options=SolverOptions(tol=1e-300))
    assert not stuck.converged
    assert stuck.n_iter == 1
    assert "rounding allows no further step; raise `tol` (now 1e-300)" in stuck.message


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_infinite_objective_is_said_at_once():
    case = make_case("own", "poisson", intercept=False)
    result = solve(case, L1(0.1), start=np.full((case.d, case.K), 1e4))
    assert not result.converged
    assert "the objective is inf" in result.message or "the objective is nan" in result.message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tol": 0}, r"`tol`=0"),
        ({"tol": -1e-3}, r"`tol`=-0.001"),
        ({"tol": np.inf}, r"`tol`=inf"),
        ({"tol": np.nan}, r"`tol`=nan"),
        ({"tol": "tight"}, r"`tol`='tight'"),
        ({"max_iter": 0}, r"`max_iter`=0"),
        ({"max_iter": 2.5}, r"`max_iter`=2.5"),
        ({"max_iter": True}, r"`max_iter`=True"),
        ({"check_every": 0}, r"`check_every`=0"),
    ],
)
def test_options_out_of_range_are_refused(settings, words):
    with pytest.raises(OptionError, match=words):
        SolverOptions(**settings)


def test_what_does_not_fit_is_refused_before_work():
    case = make_case("own")
    for penalty in (L1(1.0, np.ones((2, 2))), Graph(1.0, np.ones((9, 9))), Clustered(9), FeatureRelations(1.0, [[1.0]])):
        with pytest.raises(OptionError, match="need"):
            solve(case, penalty)

    class Picky(Fista):
        def unsupported(self, objective):
            return "takes no penalty"

    with pytest.raises(OptionError, match=r"`solver`='fista' takes no penalty; use"):
        minimize(case.problem(), L1(1.0), solver=Picky())


def test_objectives_tell_parts_from_wholes():
    case = make_case("own")
    split, whole = Objective(case.problem(), Dirty()), Objective(case.problem(), L1())
    W = np.ones((case.d, case.K))
    assert split.is_split
    assert not whole.is_split
    assert split.start(W).shape == (2, case.d, case.K)
    np.testing.assert_array_equal(split.combine(split.start(W)), W)
    np.testing.assert_array_equal(whole.combine(whole.start(W)), W)
    assert not whole.start().any()


# Steps that are neither too long nor too short


def test_the_certificate_of_fusion_reaches_1e_8():
    for name in ("Fusion", "Fusion of neighbours"):
        assert solve(make_case("missing", d=D, K=K), ALL[name][0], SolverOptions(tol=1e-8, max_iter=300)).converged


def test_the_gap_of_fused_closes_beyond_its_polars_rounding():
    assert solve(make_case("shared"), Fused(0.1, 0.1, 0.1), SolverOptions(tol=1e-11, max_iter=500)).converged


def test_counts_need_no_more_steps_than_other_labels():
    case = make_case("own", "poisson")
    assert solve(case, L1(0.05), SolverOptions(tol=1e-8, max_iter=300)).converged


def test_the_scale_of_features_is_no_matter_for_counts():
    case = make_case("own", "poisson", convert=lambda X: 1000 * X)
    assert solve(case, L1(10.0), SolverOptions(tol=1e-6, max_iter=500)).converged


@pytest.mark.parametrize(
    ("loss", "level"),
    [
        ("poisson", 1000),
        ("poisson", 300),
        ("huber", 200_000),
    ],
)
def test_great_labels_are_served(loss, level):
    case = make_case("shared", loss)
    case.labels = replace(case.labels, y=case.labels.y + level)
    case.tasks = [(X, y + level, *rest) for X, y, *rest in case.tasks]
    solution = solve(case, L1(0.05), SolverOptions(tol=1e-6))
    assert solution.converged
    _, slopes = case.gradient(solution.W, solution.intercepts)
    np.testing.assert_allclose(slopes, 0, atol=1e-6)
