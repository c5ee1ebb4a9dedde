"""Blocks of features and tasks: the spectral step, the identity behind the weighted lasso, descent, and what is recovered."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog
from sklearn.linear_model import ElasticNet
from sklearn.metrics import normalized_mutual_info_score
from tests.linear.linear_problems import SHAPES, make_case

from taskloom.linear._design import OwnRows, SharedRows
from taskloom.linear._feature_collaborative import (
    FeatureCollaborative,
    bipartite_laplacian,
    block_weights,
    co_clusters,
    project_to_capped_simplex,
    spectral_step,
)
from taskloom.linear._gram_problem import smooth_problem
from taskloom.linear._losses import Squared
from taskloom.linear._problem import Labels
from taskloom.linear._smooth_penalties import Ridge
from taskloom.linear._solver import Fista, SolverOptions, minimize
from taskloom.linear._sparse_penalties import L1
from taskloom.tasks import OptionError

KINDS = ["squared", "logistic", ["squared", "logistic", "poisson"]]


def draw_feasible(m, trace, rng):
    """A random U with 0 <= U <= I and the given trace."""
    Q, _ = np.linalg.qr(rng.normal(size=(m, m)))
    return (Q * project_to_capped_simplex(rng.normal(size=m), trace)) @ Q.T


def draw_blocks(d=30, K=40, blocks=4, n=40, seed=0):
    rng = np.random.default_rng(seed)
    features, tasks = rng.permutation(np.arange(d) % blocks), rng.permutation(np.arange(K) % blocks)
    W = np.where(features[:, None] == tasks[None], rng.normal(size=(d, K)), 0)
    X = [rng.normal(size=(n, d)) for _ in range(K)]
    y = np.concatenate([x @ w + rng.normal(size=n) for x, w in zip(X, W.T, strict=True)])
    return features, tasks, W, OwnRows(X), Labels(y, np.full(n * K, 1 / n), [Squared()] * K)


@pytest.fixture(scope="module")
def blocks():
    """The simulation and its fit."""
    drawn = draw_blocks()
    return *drawn, FeatureCollaborative(4, 1.0, 0.01, 0.01).solve(*drawn[3:], SolverOptions())


def error(W, truth):
    return np.linalg.norm(W - truth) / np.linalg.norm(truth)


@pytest.mark.parametrize("seed", range(3))
def test_the_weights_are_those_of_the_identity(seed):
    rng = np.random.default_rng(seed)
    W, U = rng.normal(size=(5, 4)), draw_feasible(9, 3, rng)
    D = block_weights(U, 5)
    assert np.vdot(bipartite_laplacian(W), U) == pytest.approx((D * np.abs(W)).sum(), rel=1e-12)
    # Squared distances of the rows of any root of U.
    root = np.linalg.cholesky(U + 1e-12 * np.eye(9))
    apart = ((root[:5, None] - root[None, 5:]) ** 2).sum(-1)
    np.testing.assert_allclose(D, apart, atol=1e-9)


def test_the_null_space_of_three_blocks_has_three_dimensions():
    rng = np.random.default_rng(0)
    W = np.zeros((7, 6))
    W[:3, :2], W[3:5, 2:3], W[5:, 3:] = rng.normal(size=(3, 2)), rng.normal(size=(2, 1)), rng.normal(size=(2, 3))
    W = W[rng.permutation(7)][:, rng.permutation(6)]
    values = np.linalg.eigvalsh(bipartite_laplacian(W))
    assert (values[:3] < 1e-12).all()
    assert values[3] > 1e-3
    assert np.linalg.eigvalsh(bipartite_laplacian(W + 0.01))[1] > 1e-4


@pytest.mark.parametrize("total", [0, 1, 2.5, 6])
@pytest.mark.parametrize("scale", [0.1, 1.0, 1e6])
def test_the_projection_is_the_nearest_feasible_point(total, scale):
    v = scale * np.random.default_rng(1).normal(size=6)
    c = project_to_capped_simplex(v, total)
    assert c.sum() == pytest.approx(total, abs=1e-9)
    assert c.min() >= 0
    assert c.max() <= 1
    # No feasible direction leads nearer: the best vertex along v - c is no better than c.
    best = linprog(c - v, A_eq=np.ones((1, 6)), b_eq=[total], bounds=(0, 1))
    assert (v - c) @ c >= -best.fun - 1e-9 * scale


def test_the_projection_of_equal_numbers_is_even():
    np.testing.assert_allclose(project_to_capped_simplex(np.zeros(8), 3), 3 / 8)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, 30.0])
def test_the_spectral_step_is_optimal(ratio):
    rng = np.random.default_rng(2)
    L = bipartite_laplacian(rng.normal(size=(4, 3)))

    def value(U):
        return ratio * np.vdot(L, U) + 0.5 * np.vdot(U, U)

    U = spectral_step(L, 2, ratio)
    assert np.trace(U) == pytest.approx(2)
    assert -1e-12 < np.linalg.eigvalsh(U)[0] <= np.linalg.eigvalsh(U)[-1] < 1 + 1e-12
    # The first-order condition against every direction to a feasible point, and the value itself.
    for _ in range(50):
        other = draw_feasible(7, 2, rng)
        assert np.vdot(ratio * L + U, other - U) > -1e-9
        assert value(U) <= value(other)


@pytest.mark.parametrize(("gaps", "exact"), [(0.5, True), (0.999, True), (1.5, False)])
def test_the_spectral_step_is_a_projector_just_where_the_gap_is_wide_enough(gaps, exact):
    """`gaps` is alpha3 over alpha1 (lambda_{N+1} - lambda_N)."""
    L = bipartite_laplacian(np.random.default_rng(3).normal(size=(6, 5)))
    values, vectors = np.linalg.eigh(L)
    projector = vectors[:, :3] @ vectors[:, :3].T
    U = spectral_step(L, 3, 1 / (gaps * (values[3] - values[2])))
    assert (np.abs(U - projector).max() < 1e-10) == exact


def test_the_start_is_an_elastic_net():
    """With one alternation only the first convex step counts, whose weights are all equal."""
    case = make_case("own", d=6, K=3)
    model = FeatureCollaborative(2, 0.3, 0.2, 0.1, max_alternations=1)
    W = model.solve(case.design, case.labels, SolverOptions(tol=1e-10)).W
    one, two = 0.3 * 2 * 2 / 9, 0.2
    for t, (X, y, _, _, _) in enumerate(case.tasks):
        net = ElasticNet(alpha=one + two, l1_ratio=one / (one + two), tol=1e-10, max_iter=100_000).fit(X, y)
        np.testing.assert_allclose(W[:, t], net.coef_, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS, ids=["squared", "logistic", "mixed"])
def test_the_objective_never_rises_and_is_the_one_stated(shape, kind):
    case = make_case(shape, kind, d=6, weighted=True, offset=True)
    solution = FeatureCollaborative(2, 0.2, 0.05, 0.1).solve(case.design, case.labels, SolverOptions())
    objectives, U = solution.details["objectives"], solution.details["embedding"]
    assert (np.diff(objectives) <= 0).all()
    assert len(objectives) >= 3
    L = bipartite_laplacian(solution.W)
    spectral = 0.2 * np.vdot(L, U) + 0.025 * (solution.W**2).sum() + 0.05 * (U**2).sum()
    assert objectives[-1] == pytest.approx(case.value(solution.W, solution.intercepts) + spectral, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_at_the_end_each_half_is_optimal_for_the_other(shape):
    case = make_case(shape, "squared", d=6)
    options = SolverOptions(tol=1e-9)
    solution = FeatureCollaborative(2, 0.2, 0.05, 0.1, max_alternations=2000).solve(case.design, case.labels, options)
    assert solution.converged
    W, D = solution.W, solution.details["weights"]
    np.testing.assert_allclose(D, block_weights(solution.details["embedding"], 6))
    G, slopes = case.gradient(W, solution.intercepts)
    assert np.abs(slopes).max() < 1e-9
    assert L1(0.2, D).distance(W, G + 0.05 * W) < 1e-3 * np.linalg.norm(case.problem().origin.gradient)
    best = spectral_step(bipartite_laplacian(W), 2, 2.0)
    np.testing.assert_allclose(solution.details["embedding"], best, atol=1e-9)


def test_blocks_of_features_and_tasks_are_recovered(blocks):
    features, tasks, *_, solution = blocks
    assert solution.converged
    assert normalized_mutual_info_score(features, solution.details["feature_blocks"]) > 0.9
    assert normalized_mutual_info_score(tasks, solution.details["task_blocks"]) > 0.9
    # Features and tasks of a block have the same number.
    inside = solution.details["feature_blocks"][:, None] == solution.details["task_blocks"][None]
    assert (inside == (features[:, None] == tasks[None])).mean() > 0.95


def test_blocks_beat_ridge_and_lasso_where_there_are_blocks(blocks):
    _, _, W, design, labels, solution = blocks
    problem, loose = smooth_problem(design, labels), SolverOptions(tol=1e-4)
    strengths = np.geomspace(0.01, 0.5, 6)
    best = {
        penalty: min(error(minimize(problem, penalty(s), solver=Fista(), options=loose).W, W) for s in strengths)
        for penalty in (Ridge, L1)
    }
    assert error(solution.W, W) < 0.9 * best[L1]
    assert error(solution.W, W) < 0.6 * best[Ridge]


def test_the_order_of_tasks_and_features_changes_nothing_but_rounding(blocks):
    _, _, _, design, labels, solution = blocks
    rng = np.random.default_rng(5)
    tasks, features = rng.permutation(design.n_tasks), rng.permutation(design.n_features)
    y = np.concatenate([labels.y[design.index(np.array([t]))] for t in tasks])
    moved = OwnRows([design.block(t)[:, features] for t in tasks])
    model = FeatureCollaborative(4, 1.0, 0.01, 0.01)
    other = model.solve(moved, Labels(y, labels.weight, labels.losses), SolverOptions())
    np.testing.assert_allclose(other.W, solution.W[features][:, tasks], atol=1e-3)
    one, two = solution.details["task_blocks"][tasks], other.details["task_blocks"]
    assert normalized_mutual_info_score(one, two) == pytest.approx(1)


def test_the_same_seed_gives_the_same_bits():
    case = make_case("shared", d=6)
    one, two = (FeatureCollaborative(2, 0.2).solve(case.design, case.labels, SolverOptions()) for _ in range(2))
    np.testing.assert_array_equal(one.W, two.W)
    for name, value in one.details.items():
        np.testing.assert_array_equal(value, two.details[name])


def test_what_no_block_needs_belongs_to_none():
    W = np.zeros((4, 4))
    W[:2, :2], W[2, 2] = 1.0, 3.0
    features, tasks = co_clusters(W, 2)
    assert features[3] == tasks[3] == -1
    assert features[0] == features[1] == tasks[0] == tasks[1] != features[2] == tasks[2]


def test_more_blocks_than_asked_for_are_joined_and_fewer_are_kept_apart():
    features, tasks = co_clusters(np.kron(np.diag([1.0, 2.0, 3.0]), np.ones((2, 2))), 2)
    assert len(set(features)) == 2
    np.testing.assert_array_equal(features, tasks)
    few = co_clusters(np.diag([1.0, 0.0]), 3)
    assert sorted([few[0][0], few[1][0]]) == [0, 1]
    np.testing.assert_array_equal(co_clusters(np.zeros((2, 3)), 2)[1], [-1, -1, -1])


def test_without_pull_to_blocks_it_is_ridge():
    case = make_case("shared", d=6)
    solution = FeatureCollaborative(2, alpha1=0.0, alpha2=0.4).solve(case.design, case.labels, SolverOptions(tol=1e-9))
    ridge = minimize(case.problem(), Ridge(0.2), solver=Fista(), options=SolverOptions(tol=1e-9))
    np.testing.assert_allclose(solution.W, ridge.W, atol=1e-5)


def test_a_strong_pull_leaves_nothing_from_the_start_of_a_path_on():
    case = make_case("own", d=6)
    model, problem = FeatureCollaborative(2, 0.2), case.problem()
    factor = model.factor_range(problem.origin.gradient, problem.lipschitz())
    for share, empty in ((1.001, True), (0.9, False)):
        solution = model.scaled(share * factor).solve(case.design, case.labels, SolverOptions())
        assert (not solution.W.any()) == empty
        assert solution.converged


def test_a_fit_cut_short_says_so():
    case = make_case("own", d=6)
    solution = FeatureCollaborative(2, 0.2, max_alternations=1).solve(case.design, case.labels, SolverOptions())
    assert not solution.converged
    assert "`max_alternations`" in solution.message
    assert len(solution.details["objectives"]) == 2
    assert solution.state is None


def test_scaling_multiplies_all_three_strengths():
    assert FeatureCollaborative(3, 1.0, 2.0, 3.0, seed=4).scaled(2.0) == FeatureCollaborative(3, 2.0, 4.0, 6.0, seed=4)


@pytest.mark.parametrize("shape", ["own", "shared"])
def test_sparse_features_give_the_same_models_as_dense_ones(shape):
    dense, thin = (make_case(shape, d=6, K=4, convert=convert) for convert in (np.asarray, sparse.csr_array))
    one, two = (FeatureCollaborative(2, 0.2).solve(case.design, case.labels, SolverOptions()) for case in (dense, thin))
    np.testing.assert_allclose(two.W, one.W, atol=1e-4)
    np.testing.assert_allclose(two.intercepts, one.intercepts, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"alpha1": -1.0}, "alpha1"),
        ({"alpha2": np.nan}, "alpha2"),
        ({"alpha3": 0.0}, "alpha3"),
        ({"n_blocks": 0}, "n_blocks"),
        ({"n_blocks": 2.5}, "n_blocks"),
        ({"max_alternations": 0}, "max_alternations"),
        ({"seed": -1}, "seed"),
        ({"seed": None}, "seed"),
    ],
)
def test_bad_options_are_named(options, name):
    with pytest.raises(OptionError, match=f"`{name}`="):
        FeatureCollaborative(**options)


def test_more_blocks_than_features_and_tasks_are_refused():
    labels = Labels(np.zeros((5, 2)), np.ones((5, 2)), [Squared()] * 2)
    with pytest.raises(OptionError, match="`n_blocks`=6 for 3 features and 2 tasks; need at most 5"):
        FeatureCollaborative(6).solve(SharedRows(np.ones((5, 3)), 2), labels, SolverOptions())
    FeatureCollaborative(5).check(3, 2)
