"""The proximal map of a matrix whose columns change: equal to the map of the whole, whatever came before; and `certify`."""

import numpy as np
import pytest
from tests.linear.linear_problems import make_case

from taskloom import linear
from taskloom.linear import (
    L1,
    L21,
    Clustered,
    CrossLearning,
    Dirty,
    FeatureRelations,
    Fista,
    Fused,
    Fusion,
    Graph,
    L1Inf,
    Labels,
    MeanRegularized,
    MultiTaskRegressor,
    OutlierTasks,
    Penalty,
    Ridge,
    Robust,
    SharedRows,
    SolverOptions,
    SparseLowRank,
    Squared,
    Trace,
    certify,
    column_prox,
    minimize,
    smooth_problem,
)
from taskloom.tasks import DataError, OptionError

K = 4
rng0 = np.random.default_rng(3)
CHAIN = np.diag(np.ones(K - 1), 1) + np.diag(np.ones(K - 1), -1)
SHAPES = {"tall": 7, "square": 4, "wide": 3, "one row": 1}


def penalties(d):
    """One of every class with a proximal map, and sums."""
    weights = np.random.default_rng(1).uniform(0.2, 2, size=(d, K))
    return [
        Ridge(0.7), L1(0.7), L1(0.7, weights), L21(0.7), Fused(0.4, 0.3, 0.2), L1(0.3) + L21(0.2), L1Inf(0.7),
        OutlierTasks(0.7), Trace(0.7), Clustered(2, 0.7, 0.3), CrossLearning(0.6), CrossLearning(0.6, "mean"), Fusion(0.3),
        Fusion(0.3, CHAIN), Graph(0.7, CHAIN), Graph(0.7, CHAIN, ridge=0.5), MeanRegularized(0.7),
        FeatureRelations(0.7, np.ones((1, d))), Trace(0.7) + Ridge(0.3), L21(0.7) + Ridge(0.3), Fusion(0.3) + Ridge(0.2),
        L1(0.7, weights) + Ridge(0.3), Trace(0.4) + Ridge(0.1) + Ridge(0.2), MeanRegularized(0.7) + Ridge(0.3),
        Graph(0.7, CHAIN) + MeanRegularized(0.2), CrossLearning(0.6) + Ridge(0.2),
    ]  # fmt: skip


def whole(penalty, V, step):
    """The proximal map of all of V by the penalty's own formula; of a sum, by what its terms are."""
    smooth, rest = penalty.split()
    if rest is None and len(smooth) > 1:
        M = sum(term.task_matrix(V.shape[1]) for term in smooth)
        return V @ np.linalg.inv(np.eye(V.shape[1]) + 2 * step * M)
    if not smooth or rest is None:
        return penalty.prox(V, step)
    factor = 1 / (1 + 2 * step * sum(term.strength for term in smooth))
    return rest.prox(factor * V, step * factor)


def worst_error(penalty, d, step, scale, n=40, seed=0):
    """Greatest error of any column and of the matrix, relative to V, over a history of single changes."""
    rng = np.random.default_rng(seed)
    V = rng.normal(size=(d, K))
    prox, worst = column_prox(penalty, step, V), 0.0
    for i in range(n):
        t = int(rng.integers(K))
        V[:, t] = scale(i, rng) * rng.normal(size=d)
        prox.set(t, V[:, t])
        if rng.random() < 0.4:
            continue  # several changes before an answer
        want, size = whole(penalty, V, step), np.abs(V).max() or 1.0
        columns = np.stack([prox.column(t) for t in range(K)], axis=1)
        worst = max(worst, np.abs(columns - want).max() / size, np.abs(prox.matrix() - want).max() / size)
    np.testing.assert_array_equal(prox.V, V)
    return worst


HISTORIES = {
    "alike": lambda i, rng: 1.0,
    "wild": lambda i, rng: 10 ** rng.uniform(-8, 8),
    "falling": lambda i, rng: 10 ** (-i / 4),
    "rising": lambda i, rng: 10 ** (i / 4),
    "zeros": lambda i, rng: float(rng.random() < 0.3),
}


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_column_is_that_of_the_whole_map(shape, history):
    d = SHAPES[shape]
    for penalty in penalties(d):
        # Singular values are exact to where a Gram matrix ends, 1e-9 of V; maps that iterate, to where they stop.
        rest = penalty.split()[1]
        slack = 1e-7 if isinstance(rest, Fusion | CrossLearning) else 1e-9 if isinstance(rest, Trace | Clustered) else 1e-13
        n = 10 if isinstance(rest, Fusion) else 30
        assert worst_error(penalty, d, 0.7, HISTORIES[history], n) < slack, penalty


def test_every_penalty_of_the_library_is_tried_or_splits():
    public = {kind for kind in vars(linear).values() if isinstance(kind, type) and issubclass(kind, Penalty)}
    concrete = {kind for kind in public if not kind.__abstractmethods__}
    assert concrete <= {type(penalty) for penalty in penalties(5)} | {Dirty, Robust, SparseLowRank}


@pytest.mark.parametrize("d", [6, 2])
def test_a_strength_of_zero_leaves_everything_as_it_is(d):
    for penalty in (L1(0.0), L21(0.0), Trace(0.0), Ridge(0.0), MeanRegularized(0.0), Graph(0.0, CHAIN), Fusion(0.0)):
        assert worst_error(penalty, d, 1.3, HISTORIES["wild"]) < 1e-15 * 10, penalty
    V = rng0.normal(size=(d, K))
    np.testing.assert_array_equal(column_prox(Trace(0.0), 1.0, V).matrix(), V)


@pytest.mark.parametrize("d", [8, 3])
@pytest.mark.parametrize("share", [1e-12, 1e-9, 1e-8, 3e-8, 1e-7, 1e-6, 1e-4])
def test_thresholds_beyond_what_a_gram_matrix_can_tell_are_kept(share, d):
    # A spectrum down to below the threshold: what is cut off there must not be rounding.
    rng = np.random.default_rng(0)
    U, Q = np.linalg.qr(rng.normal(size=(d, d)))[0], np.linalg.qr(rng.normal(size=(K, K)))[0]
    r = min(d, K)
    s = np.array([1.0, *np.geomspace(5 * share, 0.3 * share, r - 1)])
    V = (U[:, :r] * s) @ Q[:, :r].T
    prox = column_prox(Trace(share), 1.0, rng.normal(size=(d, K)))
    for t in range(K):
        prox.set(t, V[:, t])
    exact = (U[:, :r] * np.maximum(s - share, 0)) @ Q[:, :r].T
    # Below the accuracy of a Gram matrix a singular value decomposition steps in; at its edge some percent of are left.
    np.testing.assert_allclose(prox.matrix(), exact, atol=max(1e-14, 0.05 * share if share >= 1e-7 else 1e-14))
    np.testing.assert_allclose(np.stack([prox.column(t) for t in range(K)], axis=1), prox.matrix(), atol=1e-15)


def test_a_row_that_fades_bit_by_bit_is_not_lost_in_what_it_once_was():
    # Each step takes five digits off one row: no single one looks like a loss.
    V = np.ones((2, 3))
    prox = column_prox(L21(1e-9), 1.0, V)
    for size in (1e-3, 1e-5, 1e-7, 1e-8):
        for t in range(3):
            V[0, t] = size
            prox.set(t, V[:, t])
    np.testing.assert_allclose(prox.column(1), L21(1e-9).prox(V, 1.0)[:, 1], rtol=1e-12)


def test_zeros_stay_zeros():
    for penalty in penalties(5):
        if isinstance(penalty, L1):
            continue  # -0.0 is a zero as well, checked below
        prox = column_prox(penalty, 0.5, np.zeros((5, K)))
        assert not prox.matrix().any()
        assert not prox.column(2).any()
        prox.set(1, np.ones(5))
        prox.set(1, np.zeros(5))
        np.testing.assert_allclose(prox.matrix(), 0, atol=1e-15)
    assert not column_prox(L1(1.0), 0.5, np.zeros((5, K))).column(0).any()


def test_long_histories_do_not_drift():
    for penalty in (L21(0.5), MeanRegularized(0.5), Trace(0.5), Trace(1e-5), Trace(0.5) + Ridge(0.1)):
        for d in (9, 3):
            assert worst_error(penalty, d, 1.0, HISTORIES["alike"], n=500) < 1e-10


def test_it_is_firmly_non_expansive_from_answer_to_answer():
    rng = np.random.default_rng(0)
    for penalty in penalties(6):
        V = rng.normal(size=(6, K))
        prox = column_prox(penalty, 0.7, V)
        before, W = V.copy(), prox.matrix().copy()
        for _ in range(10):
            t = int(rng.integers(K))
            V[:, t] += rng.normal(size=6)
            prox.set(t, V[:, t])
            new = prox.matrix().copy()
            assert np.vdot(new - W, new - W) <= np.vdot(new - W, V - before) + 1e-8
            before, W = V.copy(), new


def test_what_it_is_given_and_gives_is_not_its_own():
    V = rng0.normal(size=(5, K))
    for penalty in penalties(5):
        prox = column_prox(penalty, 0.7, V)
        kept = prox.V.copy()
        column, given = prox.column(0), np.ones(5)
        column += 7
        prox.set(1, given)
        given += 3
        kept[:, 1] = 1
        np.testing.assert_array_equal(prox.V, kept)
        np.testing.assert_allclose(prox.column(0), whole(penalty, kept, 0.7)[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("penalty", "words"),
    [
        (Dirty(1.0, 0.6), "`penalty`=Dirty.*several parts.*one of its parts"),
        (Robust(1.0, 0.6) + Ridge(1.0), "`penalty`=Robust.*several parts"),
        (Trace(1.0) + MeanRegularized(1.0), "`penalty`=Mean.*no closed proximal map; take one of its terms"),
        (Ridge(1.0) + FeatureRelations(1.0, np.ones((1, 5))), "no closed proximal map"),
        (Graph(1.0, np.ones((3, 3))), r"`affinity` has shape \(3, 3\) for 4 tasks"),
        (L1(1.0, np.ones((2, 2))), r"`weights` has shape \(2, 2\); need \(5, 4\)"),
        (Clustered(9), "`n_clusters`=9 for 4 tasks"),
        (0.3, "`penalty`=0.3: need a penalty such as"),
        (None, "`penalty`=None: need a penalty such as"),
    ],
)
def test_penalties_without_a_map_of_their_own_are_refused_by_name(penalty, words):
    with pytest.raises(OptionError, match=words):
        column_prox(penalty, 1.0, np.zeros((5, K)))


@pytest.mark.parametrize("step", [0, -1.0, np.nan, np.inf])
def test_steps_that_are_none_are_refused(step):
    with pytest.raises(OptionError, match=r"`step`=.*need a positive number"):
        column_prox(L1(1.0), step, np.zeros((5, K)))


# certify


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize(
    "penalty", [Trace(0.05), L21(0.05), L1(0.05), Ridge(0.05), MeanRegularized(0.3), Trace(0.05) + Ridge(0.1)]
)
def test_a_certificate_bounds_the_distance_from_the_optimum_whoever_found_the_point(penalty, loss):
    problem = make_case(loss=loss, d=5, K=3).problem()
    best = minimize(problem, penalty, solver=Fista(), options=SolverOptions(tol=1e-11))
    assert certify(problem, penalty, best.W).relative <= 1e-10
    rng = np.random.default_rng(0)
    for size in (0.01, 1.0):
        found = certify(problem, penalty, best.W + size * rng.normal(size=best.W.shape))
        excess = found.objective - best.certificate.objective
        assert excess > 0
        if found.gap is None:
            assert found.distance > 0
        else:
            assert found.gap >= excess * (1 - 1e-9)


def test_a_certificate_agrees_with_the_estimator():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(30, 5)), rng.normal(size=(30, 3))
    model = MultiTaskRegressor(Trace(0.1), tol=1e-9).fit(X, Y)
    problem = smooth_problem(SharedRows(X, 3), Labels(Y, np.full(Y.shape, 1 / 30), [Squared()] * 3, fit_intercept=True))
    found = certify(problem, Trace(0.1), model.coef_.T)
    assert found.objective == pytest.approx(model.objective_, rel=1e-12)
    assert found.gap <= 1e-8 * problem.spread


def test_what_cannot_be_certified_is_refused():
    problem = make_case(d=5, K=3).problem()
    with pytest.raises(OptionError, match="splits W into parts; `minimize` certifies"):
        certify(problem, Dirty(1.0, 0.6), np.zeros((5, 3)))
    with pytest.raises(DataError, match=r"`W` has shape \(3, 5\); need \(5, 3\)"):
        certify(problem, Trace(1.0), np.zeros((3, 5)))
