"""The losses of K tasks with intercepts minimised out: gradients, bounds, duals, and two routes to the same numbers."""

import itertools

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize
from tests.linear.linear_problems import LOSSES, SHAPES, make_case

from taskloom.linear._design import OwnRows, SharedRows
from taskloom.linear._gram_problem import GramProblem, smooth_problem
from taskloom.linear._losses import Poisson, get_loss
from taskloom.linear._problem import Labels, RowsProblem

MIXED = ["squared", "logistic", "poisson"]
KINDS = [*LOSSES, MIXED]


def name_of(kind):
    return kind if isinstance(kind, str) else "mixed"


def f(problem, W):
    Z = problem.image(W)
    return problem.value(problem.point(W, Z), W, Z)


def points(case, n, seed=0, size=0.4):
    rng = np.random.default_rng(seed)
    return [size * rng.normal(size=(case.d, case.K)) for _ in range(n)]


@pytest.fixture(params=itertools.product(KINDS, SHAPES), ids=lambda pair: f"{name_of(pair[0])}-{pair[1]}")
def case(request):
    kind, shape = request.param
    return make_case(shape, kind, weighted=True, offset=True)


def routes(case):
    """The problem on rows, and by Gram matrices where there are any."""
    fast = case.problem(gram=True)
    return [case.problem(gram=False), *([fast] if isinstance(fast, GramProblem) else [])]


def test_value_gradient_and_intercepts_are_the_formulas(case):
    for problem in routes(case):
        for W in points(case, 3):
            Z = problem.image(W)
            at, b = problem.point(W, Z), problem.intercepts(W, Z)
            assert problem.value(at, W, Z) == pytest.approx(case.value(W, b), rel=1e-11)
            G, slopes = case.gradient(W, b)
            np.testing.assert_allclose(at.gradient, G, atol=1e-11)
            np.testing.assert_allclose(slopes, 0, atol=1e-11)


def test_the_profiled_gradient_is_that_of_finite_differences(case):
    for problem in routes(case):
        (W, D) = points(case, 2)
        at = problem.point(W, problem.image(W))
        h = 1e-5
        slope = (f(problem, W + h * D) - f(problem, W - h * D)) / (2 * h)
        assert slope == pytest.approx(float(np.vdot(at.gradient, D)), abs=1e-7)


def test_intercepts_are_those_of_a_generic_minimiser(case):
    (W,) = points(case, 1)
    problem = case.problem(gram=False)
    b = problem.intercepts(W, problem.image(W))
    theirs = minimize(lambda c: case.value(W, c), np.zeros(case.K), jac=lambda c: case.gradient(W, c)[1], tol=1e-10)
    assert f(problem, W) <= theirs.fun + 1e-12
    np.testing.assert_allclose(b, theirs.x, atol=1e-4)


def test_without_intercepts_there_are_none():
    for kind, shape in itertools.product(KINDS, SHAPES):
        case = make_case(shape, kind, intercept=False, offset=True)
        for problem in routes(case):
            (W,) = points(case, 1)
            Z = problem.image(W)
            at, b = problem.point(W, Z), problem.intercepts(W, Z)
            np.testing.assert_array_equal(b, 0)
            assert problem.value(at, W, Z) == pytest.approx(case.value(W, b), rel=1e-11)
            np.testing.assert_allclose(at.gradient, case.gradient(W, b)[0], atol=1e-11)


def test_bregman_bounds_the_rise_above_the_tangent_and_is_exact_for_squared_losses(case):
    for problem in routes(case):
        for i, (W, D) in enumerate(itertools.pairwise(points(case, 9))):
            D = D / 10.0 ** (i % 4)  # noqa: PLW2901
            Z, dZ = problem.image(W), problem.image(D)
            at = problem.point(W, Z)
            rise = f(problem, W + D) - problem.value(at, W, Z) - float(np.vdot(at.gradient, D))
            bound = problem.bregman(D, dZ, at)
            assert bound >= rise - 1e-12
            if isinstance(problem, GramProblem) or all(loss.name == "squared" for loss in case.labels.losses):
                assert bound == pytest.approx(rise, abs=1e-11)


def test_bregman_keeps_its_digits_for_tiny_steps():
    case = make_case("shared", "poisson")
    problem = case.problem()
    W, D = points(case, 2)
    at = problem.point(W, problem.image(W))
    ratios = [problem.bregman(e * D, problem.image(e * D), at) / e**2 for e in (1e-4, 1e-7, 1e-9)]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)


def test_lipschitz_constants_bound_gradients_and_are_the_top_curvature_of_squared_losses(case):
    for problem in routes(case):
        L = problem.lipschitz()
        assert L.shape == (case.K,)
        assert (np.isinf(L) == [loss.name == "poisson" for loss in case.labels.losses]).all()
        for W, V in itertools.pairwise(points(case, 6, size=1.5)):
            difference = problem.point(W, problem.image(W)).gradient - problem.point(V, problem.image(V)).gradient
            with np.errstate(invalid="ignore"):
                bound = L * np.linalg.norm(W - V, axis=0)
            assert (np.linalg.norm(difference, axis=0) <= bound * (1 + 1e-9)).all()
        for t, (X, _, s, _, name) in enumerate(case.tasks):
            if name == "squared":
                centred = X - (s @ X) / s.sum()
                assert L[t] == pytest.approx(np.linalg.eigvalsh(centred.T @ (s[:, None] * centred))[-1])


def test_the_dual_value_is_below_everything_it_must_be_below(case):
    # -f*(c G) <= f(V) - <c G, V> for all V, c in [0, 1]: weak duality before any penalty.
    Ws = points(case, 3)
    for problem in routes(case):
        for W, c in itertools.product(Ws, (0.0, 0.3, 1.0)):
            Z = problem.image(W)
            at = problem.point(W, Z)
            dual = problem.dual_value(at, W, Z, c)
            assert np.isfinite(dual)
            for V in [*Ws, *points(case, 5, seed=9, size=1.0)]:
                assert dual <= f(problem, V) - c * float(np.vdot(at.gradient, V)) + 1e-10
        # At c = 1 it is the conjugate itself: the bound is met at W.
        assert dual == pytest.approx(problem.value(at, W, Z) - float(np.vdot(at.gradient, W)), abs=1e-10)


def test_spread_is_the_loss_at_zero_above_its_floor(case):
    for problem in routes(case):
        zero = np.zeros((case.d, case.K))
        floor = sum(float(s @ -get_loss(name).conjugate(y, np.zeros_like(y))) for _, y, s, _, name in case.tasks)
        b = problem.intercepts(zero, problem.image(zero))
        assert problem.spread == pytest.approx(case.value(zero, b) - floor, rel=1e-10)
        assert problem.spread == pytest.approx(f(problem, zero) - floor, rel=1e-10)


def test_the_image_is_linear_and_that_of_few_features_is_the_same(case):
    for problem in routes(case):
        V, W = points(case, 2)
        combined = problem.image(2 * V - 3 * W)
        np.testing.assert_allclose(combined, 2 * problem.image(V) - 3 * problem.image(W), atol=1e-12)
        features = np.array([3, 0])
        sparse_W = np.zeros_like(W)
        sparse_W[features] = W[:2]
        np.testing.assert_allclose(problem.image_of(features, W[:2]), problem.image(sparse_W), atol=1e-13)
        assert not problem.image_of(np.arange(0), W[:0]).any()


def test_restriction_is_the_problem_with_the_other_features_at_zero(case):
    features = np.array([1, 4])
    for problem in routes(case):
        part = problem.restrict(features)
        (W,) = points(case, 1)
        whole = np.zeros_like(W)
        whole[features] = W[:2]
        assert part.n_features == 2
        if isinstance(part, RowsProblem):
            assert f(smooth_problem(part.design, part.labels), W[:2]) == pytest.approx(f(part, W[:2]), rel=1e-11)
        assert f(part, W[:2]) == pytest.approx(f(problem, whole), rel=1e-11)
        Z = problem.image(whole)
        at_part, at = part.point(W[:2], part.image(W[:2])), problem.point(whole, Z)
        np.testing.assert_allclose(at_part.gradient, at.gradient[features], atol=1e-11)
        np.testing.assert_allclose(part.intercepts(W[:2], part.image(W[:2])), problem.intercepts(whole, Z), atol=1e-9)
        assert part.spread == pytest.approx(problem.spread, rel=1e-9)


def test_feature_norms_bound_how_fast_a_gradient_moves(case):
    for problem in routes(case):
        norms = problem.feature_norms
        assert norms.shape == (case.d, case.K)
        for t, (X, _, s, _, name) in enumerate(case.tasks):
            root = np.sqrt(get_loss(name).curvature)
            upper = root * np.sqrt(s @ X**2)
            lower = root * np.sqrt(s @ (X - s @ X / s.sum()) ** 2)
            assert (norms[:, t] <= upper * (1 + 1e-9)).all()
            assert (norms[:, t] >= lower * (1 - 1e-9)).all()


# Two routes


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_array, sparse.csc_array, sparse.csr_matrix])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(5, 24), (30, 12)], ids=["tall", "wide"])
def test_gram_matrices_give_the_numbers_of_the_rows(shape, convert, intercept, size):
    d, n = size
    case = make_case(shape, d=d, n=n, weighted=True, offset=True, intercept=intercept, convert=convert)
    rows, gram = case.problem(gram=False), case.problem(gram=True)
    assert isinstance(rows, RowsProblem)
    assert isinstance(gram, GramProblem)
    V, D = points(case, 2)
    at_rows, at_gram = rows.point(V, rows.image(V)), gram.point(V, gram.image(V))
    close = {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(at_gram.gradient, at_rows.gradient, **close)
    intercepts = [problem.intercepts(V, problem.image(V)) for problem in (rows, gram)]
    np.testing.assert_allclose(*intercepts, **close)
    np.testing.assert_allclose(f(gram, V), f(rows, V), **close)
    np.testing.assert_allclose(gram.lipschitz(), rows.lipschitz(), **close)
    np.testing.assert_allclose(gram.spread, rows.spread, **close)
    np.testing.assert_allclose(gram.bregman(D, gram.image(D), at_gram), rows.bregman(D, rows.image(D), at_rows), **close)
    for c in (0.0, 0.4, 1.0):
        pair = [problem.dual_value(at, V, problem.image(V), c) for problem, at in ((rows, at_rows), (gram, at_gram))]
        np.testing.assert_allclose(pair[1], pair[0], **close)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES)
def test_sparse_features_give_the_numbers_of_dense_ones(shape, kind):
    options = {"weighted": True, "offset": True}
    dense = make_case(shape, kind, **options).problem(gram=False)
    thin = make_case(shape, kind, convert=sparse.csr_array, **options).problem(gram=False)
    (W,) = points(make_case(shape, kind), 1)
    one, two = dense.point(W, dense.image(W)), thin.point(W, thin.image(W))
    np.testing.assert_allclose(two.gradient, one.gradient, atol=1e-12)
    np.testing.assert_allclose(thin.lipschitz(), dense.lipschitz(), rtol=1e-12)
    np.testing.assert_allclose(thin.feature_norms, dense.feature_norms, rtol=1e-12)


def test_one_task_is_the_same_as_own_rows_and_as_shared_rows():
    for kind in ("squared", "logistic", "poisson"):
        shared = make_case("shared", kind, K=1, weighted=True)
        X, y, s, _, _ = shared.tasks[0]
        labels = Labels(y, s, shared.labels.losses)
        for gram in (False, True):
            own = smooth_problem(OwnRows([X]), labels, gram=gram)
            both = [own, shared.problem(gram=gram)]
            (W,) = points(shared, 1)
            values = [f(problem, W) for problem in both]
            gradients = [problem.point(W, problem.image(W)).gradient for problem in both]
            assert values[0] == pytest.approx(values[1], rel=1e-13)
            np.testing.assert_allclose(*gradients, atol=1e-13)


def test_the_fast_form_is_chosen_where_it_is_small():
    assert isinstance(make_case("shared", d=5, n=40).problem(), GramProblem)
    assert isinstance(make_case("shared", d=90, n=40).problem(), RowsProblem)
    assert isinstance(make_case("own", d=5, n=40).problem(), GramProblem)
    assert isinstance(make_case("own", "logistic").problem(gram=True), RowsProblem)
    assert make_case("shared").problem().G.ndim == 2
    assert make_case("missing").problem(gram=True).G.ndim == 3


# Numbers that cancel


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_features_far_from_zero_do_not_cancel(shape, gram):
    near, far = make_case(shape), make_case(shape, mean=1e6)
    (W,) = points(near, 1)
    one, two = near.problem(gram=gram), far.problem(gram=gram)
    at_one, at_two = one.point(W, one.image(W)), two.point(W, two.image(W))
    # Features of size 1e6 carry 10 digits of their differences.
    np.testing.assert_allclose(at_two.gradient, at_one.gradient, atol=1e-8 if gram else 1e-3)
    np.testing.assert_allclose(f(two, W), f(one, W), rtol=1e-8)
    np.testing.assert_allclose(two.lipschitz(), one.lipschitz(), rtol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_sparse_features_far_from_zero_do_not_cancel(shape):
    near, far = make_case(shape), make_case(shape, mean=1e6, convert=sparse.csr_array)
    np.testing.assert_allclose(far.problem(gram=True).G, near.problem(gram=True).G, atol=1e-8)


@pytest.mark.parametrize("gram", [False, True])
def test_a_huge_constant_feature_has_no_gradient(gram):
    for shape in SHAPES:
        case = make_case(shape)
        blocks = [np.column_stack([X, np.full(len(X), 1e8)]) for X in getattr(case.design, "blocks", [case.design.block(0)])]
        design = OwnRows(blocks) if shape == "own" else SharedRows(blocks[0], case.K)
        problem = smooth_problem(design, case.labels, gram=gram)
        W = np.vstack([points(case, 1)[0], np.zeros((1, case.K))])
        G = problem.point(W, problem.image(W)).gradient
        np.testing.assert_allclose(G[-1], 0, atol=1e-6)
        np.testing.assert_allclose(G[:-1], case.problem().point(W[:-1], case.problem().image(W[:-1])).gradient, atol=1e-9)


def test_zero_features_and_unbounded_curvature_give_no_warning():
    X = np.random.default_rng(0).normal(size=(20, 3))
    X[:, 1] = 0
    problem = RowsProblem(OwnRows([X]), Labels(np.ones(20), np.full(20, 0.05), [Poisson()]))
    norms = problem.feature_norms
    assert np.isinf(norms[[0, 2]]).all()


def test_an_overflow_is_no_number_but_no_crash():
    case = make_case("shared", "poisson", intercept=False)
    problem = case.problem()
    W = np.zeros((case.d, case.K))
    at = problem.origin
    D = np.full_like(W, 1e4)
    assert problem.bregman(D, problem.image(D), at) > 1e300


# Designs


def test_designs_map_and_sum_by_task():
    rng = np.random.default_rng(0)
    Xs = [rng.normal(size=(n, 4)) for n in (5, 1, 8)]
    own, shared = OwnRows(Xs), SharedRows(Xs[0], 3)
    W = rng.normal(size=(4, 3))
    R_own, R_shared = rng.normal(size=14), rng.normal(size=(5, 3))
    parts = np.split(R_own, [5, 6])
    np.testing.assert_allclose(own.scores(W), np.concatenate([X @ w for X, w in zip(Xs, W.T, strict=True)]))
    np.testing.assert_allclose(own.adjoint(R_own), np.stack([X.T @ r for X, r in zip(Xs, parts, strict=True)], axis=1))
    np.testing.assert_allclose(own.square_adjoint(R_own), np.stack([(X**2).T @ r for X, r in zip(Xs, parts, strict=True)], 1))
    np.testing.assert_allclose(own.sum_rows(R_own), [r.sum() for r in parts])
    np.testing.assert_array_equal(own.spread(np.arange(3.0)), np.repeat([0.0, 1, 2], [5, 1, 8]))
    np.testing.assert_array_equal(own.index(np.array([0, 2])), [*range(5), *range(6, 14)])
    np.testing.assert_allclose(
        own.columns(np.array([2, 0])).scores(W[:2]),
        own.scores(np.vstack([W[1:2], W[:0], np.zeros((1, 3)), W[:1], np.zeros((1, 3))])),
    )
    np.testing.assert_allclose(shared.adjoint(R_shared), Xs[0].T @ R_shared)
    np.testing.assert_allclose(shared.square_adjoint(R_shared), (Xs[0] ** 2).T @ R_shared)
    np.testing.assert_allclose(shared.sum_rows(R_shared), R_shared.sum(0))
    # Adjoint is the transpose: <X W, R> = <W, X' R>.
    for design, R in ((own, R_own), (shared, R_shared)):
        assert np.vdot(design.scores(W), R) == pytest.approx(np.vdot(W, design.adjoint(R)))


@pytest.mark.parametrize("sizes", [(3, 0, 2), (3, 2, 0)])
def test_a_task_without_rows_sums_to_zero(sizes):
    design = OwnRows([np.ones((n, 2)) for n in sizes])
    np.testing.assert_array_equal(design.sum_rows(np.ones(5)), sizes)
