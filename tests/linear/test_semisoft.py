"""Semisoft clusters of tasks: the steps, the convex problems they are made of, and what is recovered from mixtures."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import approx_fprime
from tests.linear.linear_problems import SHAPES, make_case

from taskloom.linear._design import OwnRows, SharedRows
from taskloom.linear._gram_problem import smooth_problem
from taskloom.linear._losses import Squared, get_loss
from taskloom.linear._problem import Labels, RowsProblem
from taskloom.linear._semisoft import MixtureProblem, SemisoftClusters, SimplexColumns
from taskloom.linear._semisoft_steps import align, deal_folds, fit_centers, project_to_simplex, purity, semisoft, to_simplex
from taskloom.linear._solver import Fista, SolverOptions, minimize
from taskloom.linear._sparse_penalties import L1
from taskloom.tasks import OptionError

OPTIONS = SolverOptions()
SMALL = {"K": 24, "C": 3, "d": 40, "q": 5, "n": 40}


def draw_mixtures(K=24, C=3, d=40, q=5, n=40, seed=0, loss="squared"):
    """Centres of 2 q coefficients that overlap with their neighbours', half of the tasks pure; as STCMTL's own simulation."""
    rng = np.random.default_rng(seed)
    U = np.zeros((d, C))
    for c in range(C):
        U[c * q : (c + 2) * q, c] = rng.choice([-1, 1], 2 * q) * rng.uniform(0.1, 0.5, 2 * q)
    V = np.zeros((K, C))
    for t in range(K):
        one, two = (t % C, (t + 1) % C) if t < K // 2 else rng.choice(C, 2, replace=False)
        V[t, one], V[t, two] = (1, 0) if t < K // 2 else (rng.uniform(0.5, 1), rng.uniform(0.1, 0.5))
    V /= V.sum(1, keepdims=True)
    X = [rng.normal(size=(n, d)) for _ in range(K)]
    scores = [2 + x @ w for x, w in zip(X, V @ U.T, strict=True)]
    if loss == "logistic":
        y = [np.where(rng.random(n) < 1 / (1 + np.exp(-3 * (z - 2))), 1.0, -1.0) for z in scores]
    else:
        y = [z + 0.5 * rng.normal(size=n) for z in scores]
    return U, V, OwnRows(X), Labels(np.concatenate(y), np.full(n * K, 1 / n), [get_loss(loss)] * K)


def excess(W, truth):
    """Root mean squared error of scores on new rows, beyond the noise: features are independent with variance 1."""
    return np.sqrt(((W - truth) ** 2).sum(0).mean())


@pytest.fixture(scope="module")
def mixtures():
    drawn = draw_mixtures(**SMALL)
    return *drawn, SemisoftClusters(3).solve(*drawn[2:], OPTIONS)


@pytest.fixture(scope="module")
def single_lasso(mixtures):
    """The best of many single-task lassos, chosen task by task with the truth in hand."""
    U, V, design, labels, _ = mixtures
    problem = smooth_problem(design, labels)
    top = np.abs(problem.origin.gradient).max(0)
    fits = [
        minimize(problem, L1(1.0, np.tile(f * top, (40, 1))), solver=Fista(), options=SolverOptions(tol=1e-4)).W
        for f in np.geomspace(1, 0.02, 10)
    ]
    errors = np.array([((W - U @ V.T) ** 2).sum(0) for W in fits])
    return np.sqrt(errors.min(0).mean())


def test_mixtures_beat_single_lassos_and_come_near_the_oracle(mixtures, single_lasso):
    U, V, _, _, solution = mixtures
    assert solution.converged
    # Root mean squared errors of predictions with noise of 0.5; the oracle has the noise alone.
    error, alone = (np.hypot(0.5, e) for e in (excess(solution.W, U @ V.T), single_lasso))
    assert error < 0.56
    assert error - 0.5 < 0.35 * (alone - 0.5)


def test_pure_tasks_and_memberships_are_recovered(mixtures):
    _, V, _, _, solution = mixtures
    memberships = align(solution.details["memberships"], V)
    found = solution.details["pure_tasks"]
    assert np.isin(np.arange(12), found).mean() >= 0.9
    assert np.abs(memberships - V).mean() < 0.05
    assert (memberships[:12].argmax(1) == V[:12].argmax(1)).all()
    # Memberships that are zero are exactly so, as far as a simplex makes them.
    assert (memberships == 0).mean() > 0.2


def test_refinement_lowers_the_objective_and_the_error(mixtures):
    U, V, design, labels, solution = mixtures
    objectives = solution.details["objectives"]
    assert len(objectives) == 3
    assert (np.diff(objectives) <= 1e-6 * objectives[0]).all()
    plain = SemisoftClusters(3, refine=0).solve(design, labels, OPTIONS)
    assert plain.details["objectives"] == pytest.approx(objectives[:1])
    assert excess(solution.W, U @ V.T) < excess(plain.W, U @ V.T)


def test_the_result_is_the_product_of_what_it_is_made_of(mixtures):
    _, _, design, labels, solution = mixtures
    V, U = solution.details["memberships"], solution.details["centers"]
    assert V.shape == (24, 3)
    assert U.shape == (3, 40)
    assert V.min() >= 0
    np.testing.assert_allclose(V.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(solution.W, (V @ U).T)
    np.testing.assert_array_equal(solution.parts[0], solution.W)
    np.testing.assert_array_equal(solution.details["pure_tasks"], np.flatnonzero(V.max(1) >= 0.9))
    assert solution.state is None
    assert solution.certificate.relative <= 1e-6
    rows = RowsProblem(design, labels)
    np.testing.assert_allclose(rows.intercepts(solution.W, rows.image(solution.W)), solution.intercepts, atol=1e-9)


def test_the_same_seed_gives_the_same_bits(mixtures):
    *_, design, labels, solution = mixtures
    again = SemisoftClusters(3).solve(design, labels, OPTIONS)
    np.testing.assert_array_equal(again.W, solution.W)
    np.testing.assert_array_equal(again.details["memberships"], solution.details["memberships"])


def test_the_order_of_the_tasks_changes_nothing_but_rounding(mixtures):
    *_, design, labels, solution = mixtures
    order = np.random.default_rng(7).permutation(24)
    y = np.concatenate([labels.y[design.index(np.array([t]))] for t in order])
    moved = Labels(y, labels.weight, labels.losses)
    other = SemisoftClusters(3).solve(OwnRows([design.block(t) for t in order]), moved, OPTIONS)
    np.testing.assert_allclose(other.W, solution.W[:, order], atol=1e-3)
    # Clusters come in the order of their size, whatever the order of the tasks.
    np.testing.assert_allclose(other.details["memberships"], solution.details["memberships"][order], atol=1e-3)


def test_signs_are_clustered_by_the_log_loss():
    U, V, design, labels = draw_mixtures(K=10, C=2, d=9, q=3, n=120, loss="logistic")
    solution = SemisoftClusters(2).solve(design, labels, OPTIONS)
    assert solution.converged
    memberships = align(solution.details["memberships"], V)
    assert (memberships[:5].argmax(1) == V[:5].argmax(1)).all()
    angles = [np.corrcoef(w, v)[0, 1] for w, v in zip(solution.W.T, (U @ V.T).T, strict=True)]
    assert np.mean(angles) > 0.9


@pytest.mark.parametrize(("shape", "loss"), [*((shape, "squared") for shape in SHAPES), ("missing", "logistic")])
def test_all_shapes_of_data_are_served(shape, loss):
    case = make_case(shape, loss, d=4, K=5, weighted=True, offset=True)
    solution = SemisoftClusters(2).solve(case.design, case.labels, OPTIONS)
    assert np.isfinite(solution.W).all()
    G, slopes = case.gradient(solution.W, solution.intercepts)
    assert np.abs(slopes).max() < 1e-9
    # The centres are optimal for the memberships: their gradient is bounded where they are zero, and even where not.
    V, U = solution.details["memberships"], solution.details["centers"].T
    pull = G @ V
    bounds = np.abs(np.where(U != 0, pull, np.nan))
    strengths = np.nanmax(bounds, axis=0, initial=0)
    scale = np.linalg.norm(case.problem().origin.gradient)
    assert np.nanmax(np.where(U != 0, np.abs(bounds - strengths), 0)) < 2e-2 * scale
    used = (U != 0).any(0)
    assert (np.abs(pull)[:, used] <= strengths[used] + 2e-2 * scale).all()


def test_one_cluster_is_one_pooled_lasso():
    case = make_case("own", d=4, K=4)
    solution = SemisoftClusters(1, strength=0.0).solve(case.design, case.labels, SolverOptions(tol=1e-9))
    np.testing.assert_array_equal(solution.details["memberships"], 1)
    X = np.concatenate([(X - s @ X) * np.sqrt(s)[:, None] for X, _, s, _, _ in case.tasks])
    y = np.concatenate([(y - s @ y) * np.sqrt(s) for _, y, s, _, _ in case.tasks])
    pooled = np.linalg.lstsq(X, y, rcond=None)[0]
    np.testing.assert_allclose(solution.W, np.repeat(pooled[:, None], 4, axis=1), atol=1e-4)


def test_copies_of_one_task_are_one_cluster():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 3))
    y = X @ [1.0, 0.0, -1.0] + 0.1 * rng.normal(size=30)
    labels = Labels(np.repeat(y[:, None], 4, axis=1), np.full((30, 4), 1 / 30), [Squared()] * 4)
    solution = SemisoftClusters(2).solve(SharedRows(X, 4), labels, OPTIONS)
    assert np.abs(solution.W - solution.W[:, :1]).max() < 1e-4
    np.testing.assert_allclose(solution.W[:, 0], [1, 0, -1], atol=0.1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", ["squared", "logistic", "poisson"])
def test_the_mixture_problem_is_the_losses_at_the_mixed_coefficients(shape, loss):
    case = make_case(shape, loss, weighted=True, offset=True)
    rng = np.random.default_rng(0)
    V = rng.dirichlet(np.ones(2), size=case.K)
    U = 0.3 * rng.normal(size=(case.d, 2))
    problem = MixtureProblem(case.problem(), V)

    def f(u):
        W = u.reshape(U.shape)
        return problem.value(problem.point(W, problem.image(W)), W, problem.image(W))

    at = problem.point(U, problem.image(U))
    b = problem.intercepts(U, problem.image(U))
    assert f(U.ravel()) == pytest.approx(case.value(U @ V.T, b))
    np.testing.assert_allclose(at.gradient.ravel(), approx_fprime(U.ravel(), f), atol=1e-6)
    D = 0.1 * rng.normal(size=U.shape)
    rise = f((U + D).ravel()) - f(U.ravel()) - np.vdot(at.gradient, D)
    assert problem.bregman(D, problem.image(D), at) >= rise - 1e-9
    kept = np.array([0, 2])
    part, padded = problem.restrict(kept), np.where(np.isin(range(5), kept)[:, None], U, 0)
    np.testing.assert_allclose(problem.image_of(kept, U[kept]), problem.image(padded))
    Z = part.image(U[kept])
    assert part.value(part.point(U[kept], Z), U[kept], Z) == pytest.approx(f(padded.ravel()))


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_the_gap_of_the_mixture_problem_bounds_what_is_left_to_gain(loss):
    case = make_case("own", loss, K=4)
    problem = MixtureProblem(case.problem(), np.random.default_rng(1).dirichlet(np.ones(2), size=4))
    rough = minimize(problem, L1(0.1), solver=Fista(), options=SolverOptions(tol=1e-1, check_every=1))
    exact = minimize(problem, L1(0.1), solver=Fista(), options=SolverOptions(tol=1e-10))
    assert exact.converged
    assert 0 <= rough.certificate.objective - exact.certificate.objective <= rough.certificate.gap
    curvature = problem.lipschitz()
    norms = problem.feature_norms
    for c in range(2):
        one = np.zeros((case.d, 2))
        for j in range(case.d):
            one[:] = 0
            one[j, c] = 1
            at = problem.point(one * 0, problem.image(one * 0))
            bend = 2 * problem.bregman(one, problem.image(one), at)
            assert bend <= curvature[c] * (1 + 1e-9)
            assert bend <= norms[j, c] ** 2 * (1 + 1e-9)


def test_memberships_on_the_simplex_have_a_closing_gap():
    case = make_case("own", "squared", d=3, K=4)
    solution = minimize(
        case.problem(), SimplexColumns(), solver=Fista(), options=SolverOptions(tol=1e-10), start=np.full((3, 4), 1 / 3)
    )
    assert solution.converged
    assert solution.certificate.gap >= 0
    # Frank-Wolfe: no vertex lies further down.
    G, _ = case.gradient(solution.W, solution.intercepts)
    assert np.abs((G * solution.W).sum(0) - G.min(0)).max() < 1e-4
    assert SimplexColumns().value(np.array([[0.5], [0.6]])) == np.inf
    assert SimplexColumns().scaled(3.0) == SimplexColumns()


def test_the_projection_to_the_simplex_is_the_nearest_point():
    Y = np.random.default_rng(0).normal(size=(4, 30))
    P = project_to_simplex(Y)
    np.testing.assert_allclose(P.sum(0), 1)
    assert P.min() >= 0
    np.testing.assert_allclose(((Y - P) * P).sum(0), (Y - P).max(0), atol=1e-12)
    np.testing.assert_allclose(project_to_simplex(P), P, atol=1e-12)


def test_exact_mixtures_are_found_exactly():
    rng = np.random.default_rng(0)
    truth = np.vstack([np.repeat(np.eye(3), 6, axis=0), rng.dirichlet(np.ones(3), size=10)])
    # Rows of equal sum: scaling them to shares then keeps the memberships.
    corners = rng.uniform(size=(3, 40))
    E = truth @ (corners / corners.sum(1, keepdims=True))
    V, pure = semisoft(E, 3)
    np.testing.assert_allclose(align(V, truth), truth, atol=1e-9)
    assert set(pure) <= set(np.flatnonzero(truth.max(1) > 0.5))
    assert (np.diff(V.sum(0)) <= 1e-12).all()


def test_purity_is_greatest_at_the_vertices():
    shares = np.vstack([np.repeat(np.eye(2), 3, axis=0), [[0.5, 0.5], [0.3, 0.7]]])
    scores = purity(shares, 3)
    np.testing.assert_allclose(scores[:6], 1)
    assert scores[6:].max() < 0.9


def test_a_task_without_a_positive_membership_goes_to_its_greatest():
    np.testing.assert_array_equal(to_simplex(np.array([[-0.1, -0.5], [-3.0, -2.0], [0.0, 0.0]])), [[1, 0], [0, 1], [1, 0]])


def test_clusters_are_aligned_by_the_best_assignment():
    rng = np.random.default_rng(0)
    V = rng.dirichlet(0.3 * np.ones(5), size=20)
    order = rng.permutation(5)
    np.testing.assert_array_equal(align(V[:, order], V), V)


def test_centres_are_the_least_squares_fit():
    rng = np.random.default_rng(0)
    V, U = rng.dirichlet(np.ones(3), size=9), rng.normal(size=(4, 3))
    np.testing.assert_allclose(fit_centers(U @ V.T, V), U, atol=1e-9)


def test_folds_spread_classes_evenly_and_leave_the_unlabelled_out():
    groups = np.repeat([0, 1, 2, -1], [13, 7, 1, 4])
    folds = deal_folds(groups, 5, seed=3)
    np.testing.assert_array_equal(folds, deal_folds(groups, 5, seed=3))
    assert (folds != deal_folds(groups, 5, seed=4)).any()
    assert (folds[groups == -1] == -1).all()
    assert (folds[groups == 2] == -1).all()
    for group in (0, 1):
        counts = np.bincount(folds[groups == group], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_a_fit_cut_short_says_so():
    case = make_case("own", d=4, K=5)
    solution = SemisoftClusters(2, max_loops=1).solve(case.design, case.labels, OPTIONS)
    assert not solution.converged
    assert "raise `max_loops`" in solution.message


def test_strength_shrinks_to_nothing_and_scaling_multiplies_it():
    case = make_case("own", d=4, K=5)
    solution = SemisoftClusters(2).scaled(1e6).solve(case.design, case.labels, OPTIONS)
    assert not solution.W.any()
    assert SemisoftClusters(3, 2.0, seed=1).scaled(3.0) == SemisoftClusters(3, 6.0, seed=1)


@pytest.mark.parametrize("shape", ["own", "shared"])
def test_sparse_features_give_the_same_models_as_dense_ones(shape):
    dense, thin = (make_case(shape, d=6, K=4, convert=convert) for convert in (np.asarray, sparse.csr_array))
    one, two = (SemisoftClusters(2).solve(case.design, case.labels, OPTIONS) for case in (dense, thin))
    np.testing.assert_allclose(two.W, one.W, atol=1e-4)
    np.testing.assert_allclose(two.intercepts, one.intercepts, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"n_clusters": 0}, "n_clusters"),
        ({"n_clusters": 2.0}, "n_clusters"),
        ({"strength": -1.0}, "strength"),
        ({"pure_fraction": 0.0}, "pure_fraction"),
        ({"pure_fraction": 1.5}, "pure_fraction"),
        ({"max_loops": 0}, "max_loops"),
        ({"refine": -1}, "refine"),
        ({"seed": True}, "seed"),
    ],
)
def test_bad_options_are_named(options, name):
    with pytest.raises(OptionError, match=f"`{name}`="):
        SemisoftClusters(**options)


def test_more_clusters_than_tasks_are_refused():
    with pytest.raises(OptionError, match="`n_clusters`=4 for 3 tasks"):
        SemisoftClusters(4).solve(SharedRows(np.ones((5, 2)), 3), Labels(None, None, []), OPTIONS)


@pytest.mark.parametrize("losses", [["poisson"] * 2, ["huber"] * 2, ["squared", "logistic"]])
def test_losses_it_cannot_serve_are_refused(losses):
    labels = Labels(np.ones((5, 2)), np.ones((5, 2)), [get_loss(name) for name in losses])
    with pytest.raises(OptionError, match="`loss`.*found " + ", ".join(sorted(set(losses)))):
        SemisoftClusters(2).solve(SharedRows(np.ones((5, 2)), 2), labels, OPTIONS)
