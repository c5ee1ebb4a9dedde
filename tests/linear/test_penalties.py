"""Penalties by their definitions: proximal maps, distances, dual norms, conjugates, sums; each special one by a slow twin."""

import itertools

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.optimize import lsq_linear, minimize
from scipy.spatial.transform import Rotation

from taskloom.linear._distance_penalties import CrossLearning, Fusion
from taskloom.linear._penalty import Penalty, Sum
from taskloom.linear._smooth_penalties import FeatureRelations, Graph, MeanRegularized, PriorInformation, Ridge
from taskloom.linear._sparse_penalties import L1, L21, Fused
from taskloom.linear._spectral_penalties import Clustered, Trace, map_singular, singular_values, waterfill
from taskloom.linear._split_penalties import Dirty, L1Inf, OutlierTasks, Robust, SparseLowRank, project_l1_rows
from taskloom.linear._total_variation import prox_total_variation
from taskloom.tasks import OptionError

D, K = 5, 4
rng0 = np.random.default_rng(7)
CHAIN = np.diag(np.ones(K - 1), 1) + np.diag(np.ones(K - 1), -1)
WEIGHTS = rng0.uniform(0.2, 2, size=(D, K))
RELATIONS = rng0.normal(size=(2, D))

NORMS = [
    L1(0.7), L1(0.7, WEIGHTS), L21(0.7), L1(0.3) + L21(0.5), Fused(0.4, 0.3, 0.2), Fused(0.4, 0.3), Fused(0.4, 0.0, 0.2),
    Trace(0.7), L1Inf(0.7), OutlierTasks(0.7),
]  # fmt: skip
SMOOTH = [
    Ridge(0.7), Graph(0.7, CHAIN), Graph(0.7, CHAIN, ridge=0.5), MeanRegularized(0.7), FeatureRelations(0.7, RELATIONS),
]  # fmt: skip
OTHERS = [
    Fused(0.7), Clustered(1, 0.7, 0.3), Clustered(2, 0.7, 0.3), Clustered(K, 0.7, 0.3),
    CrossLearning(0.6), CrossLearning(0.6, "mean"), Fusion(0.3), Fusion(0.3, CHAIN),
]  # fmt: skip
SPLIT = [Dirty(1.0, 0.6), Robust(1.0, 0.8), SparseLowRank(1.0, 0.5)]
PLAIN = [*NORMS, *SMOOTH, *OTHERS]
SUMS = [
    L1(0.3) + Ridge(0.2), Graph(0.2, CHAIN) + L21(0.3), Trace(0.5) + MeanRegularized(0.4) + Ridge(0.1),
    Ridge(0.1) + Dirty(1.0, 0.6), PriorInformation(0.3, relations=RELATIONS, graph="mean"),
]  # fmt: skip


def by_name(penalties):
    return pytest.mark.parametrize("penalty", penalties, ids=lambda p: repr(p).split("array")[0][:60])


def shape_of(penalty):
    return (2, D, K) if penalty in SPLIT else (D, K)


def draws(n, shape=(D, K), seed=0):
    """Points of several sizes: with zeros, ties, equal columns and low rank among them."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        V = rng.normal(size=shape) * 10 ** rng.uniform(-1, 1)
        if i % 4 == 1:
            V = V * (rng.random(shape) < 0.5)
        if i % 4 == 2:
            V = np.round(V)
        if i % 4 == 3:
            V = V[..., :1] * np.ones(shape[-1])
        yield V


def prox_objective(penalty, V, step):
    return lambda W: 0.5 * float(((W - V) ** 2).sum()) + step * penalty.value(W)


# Definitions


@by_name([*PLAIN, *SPLIT])
def test_the_proximal_map_minimises_its_definition(penalty):
    rng = np.random.default_rng(1)
    for V in draws(4, shape_of(penalty)):
        for step in (0.3, 2.0):
            best = penalty.prox(V, step)
            q = prox_objective(penalty, V, step)
            rivals = [np.zeros_like(V), V, penalty.prox(V, 1.1 * step), penalty.prox(V, 0.9 * step)]
            rivals += [best + 10.0**-k * rng.normal(size=V.shape) for k in (0, 1, 2, 3, 4)]
            rivals += [best + 10.0**-k * (rng.random(V.shape) < 0.1) * rng.normal(size=V.shape) for k in (0, 1, 2, 3)]
            for W in rivals:
                # The definition is strongly convex: it rises at least this much.
                assert q(W) >= q(best) + 0.5 * ((W - best) ** 2).sum() - 1e-10 * (1 + (V**2).sum())


@by_name([*PLAIN, *SPLIT])
def test_the_proximal_map_is_firmly_nonexpansive(penalty):
    for U, V in itertools.pairwise(draws(9, shape_of(penalty), seed=2)):
        moved = penalty.prox(U, 0.8) - penalty.prox(V, 0.8)
        assert np.vdot(moved, U - V) >= np.vdot(moved, moved) - 1e-9 * (1 + np.vdot(U - V, U - V))


@by_name([*PLAIN, *SPLIT])
def test_the_distance_is_zero_at_proximal_points_and_nowhere_else(penalty):
    rng = np.random.default_rng(3)
    for V in draws(8, (D, K)):
        for step in (0.3, 2.0):
            start = np.stack([V, 0.5 * V]) if penalty in SPLIT else V
            if penalty in SPLIT:
                # Parts share one gradient: take -G inside of both subdifferentials at zero.
                G = V / (1.0001 * penalty.polar(V)) if V.any() else V
                assert penalty.distance(np.zeros((2, D, K)), G) == pytest.approx(0, abs=1e-9)
                assert penalty.distance(np.zeros((2, D, K)), 1.01 * G) > 1e-6 or not V.any()
                continue
            W = penalty.prox(start, step)
            G = (W - V) / step
            size = 1 + np.abs(V).max()
            assert penalty.distance(W, G) <= 3e-7 * size
            assert penalty.distance(W, G + 20 * size * rng.normal(size=V.shape)) > 1e-3


@by_name([*NORMS, *SMOOTH])
def test_the_distance_is_at_least_the_natural_residual(penalty):
    rng = np.random.default_rng(4)
    for V in draws(12):
        W, G = penalty.prox(V, 0.5), rng.normal(size=(D, K))
        assert penalty.distance(W, G) >= np.linalg.norm(W - penalty.prox(W - G, 1.0)) - 1e-9


@by_name([L1(0.7), L1(0.7, WEIGHTS), L21(0.7), Trace(0.7)])
def test_closed_distances_are_limits_of_the_residual(penalty):
    # |W - prox(W - s G, s)| / s goes to the distance to the subdifferential as s falls to 0.
    rng = np.random.default_rng(5)
    for V in draws(8):
        W, G = penalty.prox(V, 0.5), rng.normal(size=(D, K))
        s = 1e-6
        residual = np.linalg.norm(W - penalty.prox(W - s * G, s)) / s
        assert penalty.distance(W, G) == pytest.approx(residual, rel=1e-3)


@by_name(NORMS)
def test_the_polar_is_the_scale_from_which_on_the_proximal_map_is_zero(penalty):
    for U in draws(8):
        c = penalty.polar(U)
        assert c > 0
        assert np.abs(penalty.prox(U, c * (1 + 1e-8))).max() <= 1e-12 * np.abs(U).max()
        assert np.abs(penalty.prox(U, c * (1 - 1e-6))).max() > 0
        assert penalty.polar(3 * U) == pytest.approx(3 * c, rel=1e-8)
    assert penalty.polar(np.zeros((D, K))) == 0


@by_name(NORMS)
def test_the_polar_is_the_dual_norm(penalty):
    # <U, W> <= polar(U) Omega(W), and some W comes near.
    for U in draws(6):
        c = penalty.polar(U)
        for W in [*draws(6, seed=9), penalty.prox(U, 0.5 * c), penalty.prox(U, 0.999 * c)]:
            assert np.vdot(U, W) <= c * penalty.value(W) * (1 + 1e-8) + 1e-12
        W = penalty.prox(U, 0.999 * c)
        assert np.vdot(U, W) >= 0.99 * c * penalty.value(W)


@by_name(SPLIT)
def test_the_polar_of_parts_is_the_greatest_of_theirs(penalty):
    for U in draws(6):
        assert penalty.polar(U) == max(part.polar(U) for part in penalty.parts)
        zero = np.zeros((2, D, K))
        assert not penalty.prox(np.stack([U, U]), penalty.polar(U) * (1 + 1e-8)).any()
        assert penalty.prox(np.stack([U, U]), penalty.polar(U) * (1 - 1e-6)).any()
        assert penalty.value(zero) == 0


@by_name([Ridge(0.7), Graph(0.7, CHAIN, ridge=0.5), *[Clustered(k, 0.7, 0.3) for k in (1, 2, K)]])
def test_conjugates_satisfy_fenchel_young_and_are_reached(penalty):
    for U in draws(6):
        for W in draws(6, seed=9):
            assert penalty.value(W) + penalty.conjugate(U) >= np.vdot(U, W) - 1e-9
        # The maximiser, by proximal points: W = prox(W + U, 1) as a fixed point.
        W = np.zeros((D, K))
        for _ in range(400):
            W = penalty.prox(W + 20 * U, 20.0)
        assert penalty.value(W) + penalty.conjugate(U) == pytest.approx(np.vdot(U, W), rel=1e-6, abs=1e-9)


def test_there_is_no_conjugate_where_it_is_infinite():
    U = np.ones((D, K))
    for penalty in (Graph(0.7, CHAIN), MeanRegularized(0.7), Ridge(0.0), L1(1.0), FeatureRelations(0.7, RELATIONS)):
        assert penalty.conjugate(U) is None
    for penalty in (Ridge(1.0), Fused(1.0), Fusion(1.0), CrossLearning(1.0), Clustered()):
        assert penalty.polar(U) is None


@by_name([*SMOOTH, *[Clustered(k, 0.7, 0.3) for k in (1, 2)]])
def test_gradients_are_those_of_the_value(penalty):
    rng = np.random.default_rng(6)
    W, V = rng.normal(size=(2, D, K))
    h = 1e-5
    numeric = (penalty.value(W + h * V) - penalty.value(W - h * V)) / (2 * h)
    if isinstance(penalty, Clustered):
        # Its gradient is what makes W a proximal point.
        gradient = (
            penalty.strength
            * 2
            * penalty._eta
            * (1 + penalty._eta)
            * W
            @ np.linalg.inv(penalty._eta * np.eye(K) + penalty.task_matrix(W))
        )
        np.testing.assert_allclose(penalty.prox(W + gradient, 1.0), W, atol=1e-9)
    else:
        gradient = penalty.gradient(W)
        matrix = penalty.task_matrix(K)
        if matrix is not None:
            assert penalty.value(W) == pytest.approx(np.trace(W @ matrix @ W.T))
    assert np.vdot(gradient, V) == pytest.approx(numeric, abs=1e-7)


@by_name([*PLAIN, *SPLIT])
def test_values_are_convex(penalty):
    for U, V in itertools.pairwise(draws(8, shape_of(penalty), seed=3)):
        U, V = penalty.prox(U, 1.0), penalty.prox(V, 1.0)  # noqa: PLW2901
        middle = penalty.value(0.3 * U + 0.7 * V)
        assert middle <= (0.3 * penalty.value(U) + 0.7 * penalty.value(V)) * (1 + 1e-12) + 1e-12


@by_name([*PLAIN, *SPLIT, *SUMS])
def test_a_scaled_penalty_has_scaled_values_and_steps(penalty):
    twice = penalty.scaled(2.0)
    assert type(twice) is type(penalty)
    V = next(iter(draws(1, shape_of(penalty))))
    if isinstance(penalty, CrossLearning):
        assert twice.eps == penalty.eps / 2
        assert penalty.scaled(0).eps == np.inf
        return
    if isinstance(penalty, Sum):
        if not any(isinstance(term, Dirty) for term in penalty._terms):
            assert twice.value(V) == pytest.approx(2 * penalty.value(V))
        return
    assert twice.value(V) == pytest.approx(2 * penalty.value(V), rel=1e-12)
    np.testing.assert_allclose(twice.prox(V, 0.5), penalty.prox(V, 1.0), atol=1e-6)
    assert isinstance(penalty, Clustered) or penalty.scaled(0.0).value(V) == 0


@by_name([p for p in [*PLAIN, *SPLIT] if not isinstance(p, Clustered | CrossLearning)])
def test_without_strength_nothing_moves(penalty):
    nothing = penalty.scaled(0.0)
    V = next(iter(draws(1, shape_of(penalty))))
    assert nothing.value(V) == 0
    np.testing.assert_allclose(nothing.prox(V, 1.0), V, atol=1e-14)


@by_name([*PLAIN, *SPLIT])
@pytest.mark.parametrize("size", [(1, 3), (3, 1), (1, 1), (2, 6)])
def test_one_feature_or_one_task_is_served(penalty, size):
    d, k = size
    if d == 1 and penalty == CrossLearning(0.6, "mean"):
        pytest.skip("has a test of its own below")
    if isinstance(penalty, L1) and penalty.weights is not None:
        penalty = L1(0.7, np.ones(size))
    if isinstance(penalty, Graph):
        penalty = Graph(0.7, np.ones((k, k)), ridge=0.1)
    if isinstance(penalty, Fusion):
        penalty = Fusion(0.3)
    if isinstance(penalty, FeatureRelations):
        penalty = FeatureRelations(0.7, np.ones((1, d)))
    if isinstance(penalty, Clustered):
        penalty = Clustered(min(penalty.n_clusters, k))
    shape = (2, *size) if penalty in SPLIT else size
    penalty.check(d, k)
    for V in draws(4, shape):
        W = penalty.prox(V, 0.7)
        assert W.shape == shape
        q = prox_objective(penalty, V, 0.7)
        rng = np.random.default_rng(0)
        for rival in [0 * V, V, *[W + 10.0**-i * rng.normal(size=shape) for i in range(4)]]:
            assert q(rival) >= q(W) + 0.5 * ((rival - W) ** 2).sum() - 1e-10 * (1 + (V**2).sum())


@by_name(NORMS)
def test_lambda_max_is_the_critical_strength(penalty):
    G = next(iter(draws(1)))
    critical = penalty.lambda_max(G)
    if len(penalty.strengths) == 1:
        at = penalty.scaled(critical / getattr(penalty, penalty.strengths[0]))
        assert getattr(at, penalty.strengths[0]) == pytest.approx(critical)
    else:
        at = penalty.scaled(critical)
    zero = np.zeros((D, K))
    assert at.distance(zero, G) <= 1e-8
    assert at.scaled(0.99).distance(zero, G) > 1e-4


def test_smooth_and_ball_penalties_never_reach_zero():
    G = next(iter(draws(1)))
    for penalty in [*SMOOTH, *OTHERS]:
        assert penalty.lambda_max(G) == np.inf
    for penalty in [*SMOOTH, Clustered()]:
        assert penalty.lambda_max(0 * G) == 0
    assert Sum([Ridge(1.0), MeanRegularized(1.0)], None).lambda_max(G) == np.inf
    assert Sum([Ridge(1.0)], L1(0.5)).lambda_max(G) == pytest.approx(np.abs(G).max() / 0.5)
    assert L1(1.0, np.zeros((D, K))).lambda_max(G) == np.inf


@by_name([
    L1(0.0), L21(0.0), Trace(0.0),
    L1Inf(0.0), OutlierTasks(0.0),
])  # fmt: skip
def test_lambda_max_is_known_whatever_the_strength(penalty):
    G = next(iter(draws(1)))
    assert penalty.lambda_max(G) == type(penalty)(1.0).lambda_max(G)


# Sums


def test_sums_merge_where_the_proximal_map_is_exact():
    assert L1(1.0) + L1(2.0) == L1(3.0)
    assert L21(1.0) + L21(2.0) == L21(3.0)
    assert Trace(1.0) + Trace(2.0) == Trace(3.0)
    assert L1(1.0) + L21(2.0) == L21(2.0) + L1(1.0) == Fused(0.0, 1.0, 2.0)
    assert Fused(1.0) + L1(2.0) == L1(2.0) + Fused(1.0) == Fused(1.0, 2.0)
    assert L21(2.0) + Fused(1.0) == Fused(1.0, 0.0, 2.0)
    assert Fused(1.0, 2.0, 3.0) + Fused(1.0, 1.0, 1.0) == Fused(2.0, 3.0, 4.0)
    assert L1(1.0) + L21(1.0) + Fused(1.0) + L1(0.5) == Fused(1.0, 1.5, 1.0)


def test_sums_keep_smooth_terms_apart():
    total = L1(1.0) + Ridge(2.0) + L21(0.5) + MeanRegularized(1.0)
    assert isinstance(total, Sum)
    assert total.split() == ([Ridge(2.0), MeanRegularized(1.0)], Fused(0.0, 1.0, 0.5))
    assert total == Ridge(2.0) + MeanRegularized(1.0) + Fused(0.0, 1.0, 0.5)
    assert total != Ridge(2.0) + L1(1.0)
    assert repr(Ridge(2.0) + L1(1.0)) == "Ridge(strength=2.0) + L1(strength=1.0, weights=None)"
    W, G = draws(2)
    assert total.value(W) == pytest.approx(sum(p.value(W) for p in (L1(1.0), Ridge(2.0), L21(0.5), MeanRegularized(1.0))))
    gradient = Ridge(2.0).gradient(W) + MeanRegularized(1.0).gradient(W)
    assert total.distance(W, G) == pytest.approx(Fused(0.0, 1.0, 0.5).distance(W, G + gradient))
    smooth = Ridge(2.0) + MeanRegularized(1.0)
    assert smooth.distance(W, -gradient) == pytest.approx(0, abs=1e-12)
    assert smooth.polar(G) is None
    assert hash(Ridge(1.0) + MeanRegularized(1.0)) == hash(Ridge(1.0) + MeanRegularized(1.0))
    with pytest.raises(OptionError, match="no closed proximal map"):
        total.prox(W, 1.0)


@pytest.mark.parametrize(
    ("one", "two", "remedy"),
    [
        (Trace(1.0), L1(1.0), "SparseLowRank"),
        (L21(1.0), Trace(1.0), "Robust"),
        (Fusion(1.0), L1(1.0), "smooth penalty"),
        (CrossLearning(1.0), Trace(1.0), "smooth penalty"),
        (Dirty(), L1(1.0), "smooth penalty"),
        (Clustered(), L21(1.0), "smooth penalty"),
        (Sum([Ridge(1.0)], Trace(1.0)), L1(1.0), "SparseLowRank"),
        (L1Inf(1.0), L21(1.0), "smooth penalty"),
    ],
    ids=str,
)
def test_a_sum_without_exact_proximal_map_names_both_and_a_remedy(one, two, remedy):
    for first, second in ((one, two), (two, one)):
        with pytest.raises(OptionError) as caught:
            _ = first + second
        message = str(caught.value)
        assert message.startswith("`penalty`")
        assert remedy in message
        for penalty in (one, two):
            rest = penalty.split()[1]
            assert type(rest).__name__ in message


@pytest.mark.parametrize("other", [3.0, None, "l1", np.ones(2)], ids=str)
def test_only_penalties_are_added(other):
    with pytest.raises(OptionError, match=r"`penalty`: cannot add"):
        _ = L1(1.0) + other


def test_prior_information_is_a_composition():
    graph = PriorInformation(0.1, relations=RELATIONS, relation_strength=2.0, graph=CHAIN, graph_strength=3.0)
    assert graph == Sum([FeatureRelations(2.0, RELATIONS), Graph(3.0, CHAIN)], L21(0.1))
    assert PriorInformation(0.1) == L21(0.1)
    with pytest.raises(OptionError, match=r"`graph`='means'"):
        PriorInformation(graph="means")


# Bad input


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (L1, "strength"), (L21, "strength"), (Fused, "fusion"), (Fused, "sparsity"), (Fused, "group"), (Trace, "strength"),
        (Clustered, "strength"), (Clustered, "ridge"), (Ridge, "strength"), (MeanRegularized, "strength"), (Fusion, "strength"),
        (L1Inf, "strength"), (OutlierTasks, "strength"), (Dirty, "shared"), (Dirty, "own"), (Robust, "low_rank"),
        (Robust, "outlier"), (SparseLowRank, "low_rank"), (SparseLowRank, "sparse"),
    ],
)  # fmt: skip
def test_a_strength_that_is_no_number_from_zero_on_is_refused(kind, field):
    for bad in (-1, -0.1, np.inf, np.nan, "1", None, True, np.ones(2)):
        with pytest.raises(OptionError, match=rf"`{field}`=.*positive number"):
            kind(**{field: bad})


def test_strengths_of_numpy_and_whole_numbers_are_taken():
    assert L1(1).value(np.ones((1, 2))) == 2
    assert L21(np.float32(1.0)).value(np.ones((1, 1))) == 1
    assert Ridge(np.int64(2)).value(np.ones((1, 1))) == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Graph(1.0), r"`affinity` is None"),
        (lambda: Graph(1.0, np.ones((2, 3))), r"`affinity` has shape \(2, 3\)"),
        (lambda: Graph(1.0, np.ones(3)), r"`affinity` has shape \(3,\)"),
        (lambda: Graph(1.0, [[0, np.nan], [np.nan, 0]]), r"`affinity` holds a value that is not finite"),
        (lambda: Graph(1.0, [[0, 1], [0, 0]]), r"`affinity` is not symmetric; pass"),
        (lambda: Graph(1.0, [[0, -1], [-1, 0]]), r"`affinity` holds -1"),
        (lambda: Graph(1.0, CHAIN, ridge=-1), r"`ridge`=-1"),
        (lambda: Graph(-1.0, CHAIN), r"`strength`=-1"),
        (lambda: Graph(1.0, CHAIN).check(D, K + 1), r"`affinity` has shape \(4, 4\) for 5 tasks"),
        (lambda: FeatureRelations(1.0), r"`relations`"),
        (lambda: FeatureRelations(1.0, [1.0, 2.0]), r"`relations`"),
        (lambda: FeatureRelations(1.0, [[np.inf]]), r"`relations`"),
        (lambda: FeatureRelations(1.0, RELATIONS).check(D + 1, K), r"`relations` has shape \(2, 5\) for 6 features"),
        (lambda: L1(1.0, -WEIGHTS), r"`weights` of shape \(5, 4\)"),
        (lambda: L1(1.0, np.ones(3)), r"`weights` has shape \(3,\)"),
        (lambda: L1(1.0, np.full((2, 2), np.nan)), r"`weights` of shape \(2, 2\)"),
        (lambda: L1(1.0, WEIGHTS).check(D, K + 1), r"`weights` has shape \(5, 4\); need \(5, 5\)"),
        (lambda: Fusion(1.0, -CHAIN), r"`weights` of shape \(4, 4\)"),
        (lambda: Fusion(1.0, np.triu(CHAIN)), r"`weights` of shape \(4, 4\).*symmetric"),
        (lambda: Fusion(1.0, np.ones((2, 3))), r"`weights` of shape \(2, 3\)"),
        (lambda: Fusion(1.0, CHAIN).check(D, K + 1), r"`weights` has shape \(4, 4\) for 5 tasks"),
        (lambda: Clustered(0), r"`n_clusters`=0"),
        (lambda: Clustered(1.5), r"`n_clusters`=1.5"),
        (lambda: Clustered(5).check(D, K), r"`n_clusters`=5 for 4 tasks"),
        (lambda: Clustered(2, 0.0), r"`strength`=0.0: need a positive number"),
        (lambda: Clustered(2, 1.0, 0.0), r"`ridge`=0.0: need a positive number"),
        (lambda: CrossLearning(-1), r"`eps`=-1"),
        (lambda: CrossLearning(np.nan), r"`eps`=nan"),
        (lambda: CrossLearning("1"), r"`eps`='1'"),
        (lambda: CrossLearning(True), r"`eps`=True"),
        (lambda: CrossLearning(1.0, "median"), r"`center`='median'.*'free' or 'mean'"),
        (lambda: Sum([Ridge(1.0)], L1(1.0, WEIGHTS)).check(D + 1, K), r"`weights`"),
        (lambda: Sum([Graph(1.0, CHAIN)], L1(1.0)).check(D, K + 1), r"`affinity`"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(make, words):
    with pytest.raises(OptionError, match=words):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Graph(1.0, "chain"), "affinity"),
        (lambda: Graph(1.0, np.zeros((0, 0))), "affinity"),
        (lambda: FeatureRelations(1.0, "x"), "relations"),
        (lambda: L1(1.0, "x"), "weights"),
        (lambda: Fusion(1.0, [[0, 1], [1]]), "weights"),
    ],
)
def test_arrays_that_are_none_are_refused_by_name(make, name):
    with pytest.raises(OptionError, match=f"`{name}`"):
        make()


def test_equality_looks_at_arrays():
    assert L1(1.0, WEIGHTS) == L1(1.0, WEIGHTS.copy())
    assert L1(1.0, WEIGHTS) != L1(1.0)
    assert Graph(1.0, CHAIN) == Graph(1.0, CHAIN.copy())
    assert Graph(1.0, CHAIN) != Graph(1.0, 2 * CHAIN)
    assert Fusion(1.0, CHAIN) != Fusion(1.0)
    assert FeatureRelations(1.0, RELATIONS) == FeatureRelations(1.0, RELATIONS.copy())


# Slow twins


def slow_total_variation(v, lam):
    """By its dual: x = v - B'z with |z| <= lam, a least squares problem with bounds."""
    B = np.diff(np.eye(len(v)), axis=0)
    z = lsq_linear(B.T, v, bounds=(-lam, lam), method="bvls", tol=1e-15).x
    return v - B.T @ z


def test_total_variation_is_the_solution_of_its_dual():
    for V in draws(16, (6, 7), seed=1):
        for lam in (1e-3, 0.3, 1.0, 50.0):
            X = prox_total_variation(V, lam)
            np.testing.assert_allclose(X, [slow_total_variation(v, lam) for v in V], atol=1e-9 * (1 + np.abs(V).max()))


def test_total_variation_has_a_dual_certificate_on_long_chains():
    rng = np.random.default_rng(0)
    V = rng.normal(size=(20, 200)).cumsum(axis=1)
    V[::3] = np.round(V[::3])
    for lam in (0.1, 2.0, 1e3):
        X = prox_total_variation(V, lam)
        z = np.cumsum(V - X, axis=1)
        np.testing.assert_allclose(z[:, -1], 0, atol=1e-9)
        z, jumps = -z[:, :-1], np.diff(X, axis=1)
        assert np.abs(z).max() <= lam + 1e-9
        up = np.abs(jumps) > 1e-9
        np.testing.assert_allclose(z[up], lam * np.sign(jumps[up]), atol=1e-9)
    np.testing.assert_allclose(X, np.broadcast_to(V.mean(1, keepdims=True), V.shape), atol=1e-9)


def test_fused_is_total_variation_then_entries_then_rows():
    # A direct minimisation of the sum by its dual norm parts: fusion and entries are bounded dual variables.
    for V in draws(12, (4, 5), seed=2):
        for fusion, sparsity in ((0.4, 0.3), (2.0, 0.1)):
            B = np.vstack([fusion * np.diff(np.eye(5), axis=0), sparsity * np.eye(5)])
            twin = [v - B.T @ lsq_linear(B.T, v, bounds=(-1, 1), method="bvls", tol=1e-15).x for v in V]
            np.testing.assert_allclose(Fused(fusion, sparsity).prox(V, 1.0), twin, atol=1e-8 * (1 + np.abs(V).max()))


def test_l1_ball_projection_is_the_nearest_point():
    for V in draws(12, (6, 5), seed=3):
        W = project_l1_rows(V, 1.3)
        assert (np.abs(W).sum(1) <= 1.3 + 1e-12).all()
        for corner in [*(1.3 * np.eye(5)), *(-1.3 * np.eye(5)), np.zeros(5)]:
            # Obtuse angle with every corner of the ball, so with every point of it.
            assert (((V - W) * (corner - W)).sum(1) <= 1e-10 * (1 + (V**2).sum(1))).all()
    np.testing.assert_array_equal(project_l1_rows(V, 0.0), 0 * V)


def slow_cross(V, eps, center):
    """By SLSQP over columns and centre."""
    d, k = V.shape
    split = lambda x: (x[: d * k].reshape(d, k), x[d * k :] if center == "free" else x[: d * k].reshape(d, k).mean(1))  # noqa: E731

    def inside(x):
        W, g = split(x)
        return eps**2 - ((W - g[:, None]) ** 2).sum(0)

    def slopes(x):
        W, g = split(x)
        out = np.zeros((k, len(x)))
        for t in range(k):
            wide = np.zeros((d, k))
            wide[:, t] = -2 * (W[:, t] - g)
            rest = 2 * (W[:, t] - g)
            if center == "free":
                out[t, d * k :] = rest
            else:
                wide += rest[:, None] / k
            out[t, : d * k] = wide.ravel()
        return out

    extra = d if center == "free" else 0
    pad = np.zeros(extra)
    mean = V.mean(1, keepdims=True)
    start = np.concatenate([(mean + 0.5 * (V - mean)).ravel(), mean.ravel()[:extra]])
    result = minimize(
        lambda x: 0.5 * ((split(x)[0] - V) ** 2).sum(),
        start,
        jac=lambda x: np.concatenate([(split(x)[0] - V).ravel(), pad]),
        constraints={"type": "ineq", "fun": inside, "jac": slopes},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return split(result.x)[0], inside(result.x).min()


@pytest.mark.parametrize("center", ["free", "mean"])
def test_cross_learning_is_the_projection_that_slsqp_finds(center):
    rng = np.random.default_rng(0)
    agreed = 0
    for _ in range(40):
        d, k = int(rng.integers(2 if center == "mean" else 1, 5)), int(rng.integers(2, 6))
        V = rng.normal(size=(d, k)) * 10 ** rng.uniform(-0.5, 0.5)
        eps = rng.uniform(0.1, 1.2)
        ours = CrossLearning(eps, center).prox(V, 1.0)
        theirs, slack = slow_cross(V, eps, center)
        ours_far, theirs_far = (0.5 * ((W - V) ** 2).sum() for W in (ours, theirs))
        if slack > -1e-9:
            # Wherever SLSQP ends inside of the ball it is no nearer.
            assert ours_far <= theirs_far + 1e-7
            agreed += np.abs(ours - theirs).max() <= 1e-6
        assert CrossLearning(eps, center).value(ours) == 0
    assert agreed >= 38


def test_cross_learning_of_one_feature_around_the_mean():
    # Three tasks on a line: the outer ones are moved in, the mean stays.
    V = np.array([[-3.0, 1.0, 2.0]])
    W = CrossLearning(0.6, "mean").prox(V, 1.0)
    theirs, _ = slow_cross(V, 0.6, "mean")
    np.testing.assert_allclose(W, theirs, atol=1e-7)
    for V in draws(20, (1, 4)):
        W = CrossLearning(0.6, "mean").prox(V, 1.0)
        assert W.mean() == pytest.approx(V.mean())
        assert np.abs(W - W.mean()).max() <= 0.6 * (1 + 1e-9)


@pytest.mark.parametrize("center", ["free", "mean"])
def test_cross_learning_satisfies_its_optimality_conditions(center):
    # v_t - w_t = lambda_t (w_t - g) with lambda_t >= 0, zero inside; the forces cancel for a free centre.
    for V in draws(60, (6, 5), seed=4):
        eps = 0.7 * np.linalg.norm(V - V.mean(1, keepdims=True), axis=0).mean() + 0.01
        W = CrossLearning(eps, center).prox(V, 1.0)
        np.testing.assert_allclose(W, CrossLearning(eps, center).prox(W, 1.0), atol=1e-9 * (1 + np.abs(V).max()))
        pull = V - W
        size = 1 + np.abs(V).max()
        if center == "mean":
            away = W - W.mean(1, keepdims=True)
            np.testing.assert_allclose(W.mean(1), V.mean(1), atol=1e-10 * size)
            pull = pull - pull.mean(1, keepdims=True)
            assert np.linalg.norm(away, axis=0).max() <= eps + 1e-9 * size
        else:
            np.testing.assert_allclose(pull.sum(1), 0, atol=1e-9 * size)


@pytest.mark.parametrize("center", ["free", "mean"])
def test_cross_learning_has_its_limits(center):
    for V in draws(8):
        mean = V.mean(1, keepdims=True) * np.ones(K)
        np.testing.assert_allclose(CrossLearning(0.0, center).prox(V, 1.0), mean, atol=1e-12)
        np.testing.assert_array_equal(CrossLearning(np.inf, center).prox(V, 1.0), V)
        np.testing.assert_allclose(CrossLearning(1e-9, center).prox(V, 1.0), mean, atol=1e-8)
        np.testing.assert_allclose(CrossLearning(1e3, center).prox(V, 1.0), V, atol=1e-12)
    # Two tasks: moved along the line that joins them.
    W = CrossLearning(1.0, center).prox(np.array([[0.0, 3.0], [0.0, 4.0]]), 1.0)
    np.testing.assert_allclose(W, [[0.9, 2.1], [1.2, 2.8]], atol=1e-10)


@pytest.mark.parametrize("eps", [1e9, 1e200])
@pytest.mark.parametrize("center", ["free", "mean"])
def test_a_huge_radius_leaves_equal_tasks_alone(eps, center):
    for V in (np.zeros((D, K)), np.ones((D, K))):
        np.testing.assert_array_equal(CrossLearning(eps, center).prox(V, 1.0), V)


def fusion_gap(penalty, V, step, memory):
    """Primal less dual value of the proximal problem, at the dual vectors that the map leaves in its memory."""
    W = penalty.prox_from(V, step, memory)
    Z = memory["pairs"]
    one, two, a = penalty.pairs(V.shape[1])
    assert (np.linalg.norm(Z, axis=0) <= step * penalty.strength * a * (1 + 1e-12)).all()
    moved = V.copy()
    for z, s, t in zip(Z.T, one, two, strict=True):
        moved[:, s] -= z
        moved[:, t] += z
    np.testing.assert_allclose(W, moved, atol=1e-12 * (1 + np.abs(V).max()))
    apart = sum(w * np.linalg.norm(W[:, s] - W[:, t]) for s, t, w in zip(one, two, a, strict=True))
    primal = 0.5 * ((W - V) ** 2).sum() + step * penalty.strength * apart
    return primal - 0.5 * ((V**2).sum() - (W**2).sum())


@pytest.mark.parametrize("weights", [None, CHAIN, rng0.random((K, 1)) * np.ones((1, K))], ids=["all", "chain", "uneven"])
def test_fusion_closes_its_duality_gap_and_keeps_the_mean(weights):
    if weights is not None:
        weights = weights + weights.T
    for V in draws(12, seed=5):
        for step in (0.05, 0.5, 5.0):
            penalty = Fusion(0.4, weights)
            memory = {}
            assert abs(fusion_gap(penalty, V, step, memory)) <= 1e-12 * (1 + (V**2).sum())
            # From memory it gets the same answer.
            assert abs(fusion_gap(penalty, V, step, memory)) <= 1e-12 * (1 + (V**2).sum())
            W = penalty.prox(V, step)
            np.testing.assert_allclose(W.mean(1), V.mean(1), atol=1e-12 * (1 + np.abs(V).max()))


def test_fusion_of_two_tasks_has_a_closed_form():
    for V in draws(20, (D, 2), seed=6):
        step = 0.4
        difference = V[:, 0] - V[:, 1]
        share = min(step / max(np.linalg.norm(difference), 1e-300), 0.5)
        expected = np.stack([V[:, 0] - share * difference, V[:, 1] + share * difference], axis=1)
        np.testing.assert_allclose(Fusion(1.0).prox(V, step), expected, atol=1e-6 * (1 + np.abs(V).max()))


def test_fusion_equals_a_generic_solver_of_its_dual():
    rng = np.random.default_rng(0)
    for _ in range(6):
        V = rng.normal(size=(2, 3))
        one, two, _ = Fusion(0.3).pairs(3)

        def dual(z, V=V, one=one, two=two):
            Z = z.reshape(2, 3)
            W = V.copy()
            np.subtract.at(W.T, one, Z.T)
            np.add.at(W.T, two, Z.T)
            return 0.5 * (W**2).sum(), (-(W[:, one] - W[:, two])).ravel()

        result = minimize(
            dual, np.zeros(6), jac=True, method="SLSQP", options={"ftol": 1e-15, "maxiter": 500},
            constraints={"type": "ineq", "fun": lambda z: 0.3**2 - (z.reshape(2, 3) ** 2).sum(0)},
        )  # fmt: skip
        primal = prox_objective(Fusion(0.3), V, 1.0)(Fusion(0.3).prox(V, 1.0))
        assert primal == pytest.approx(0.5 * (V**2).sum() - result.fun, abs=1e-8)


def test_fusion_fuses_tasks_to_the_bit_of_its_tolerance():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(D, 2)) * 5
    V = centers[:, [0, 0, 1, 1]] + 0.05 * rng.normal(size=(D, 4))
    W = Fusion(0.1).prox(V, 1.0)
    assert Fusion().groups(W) == [[0, 1], [2, 3]]
    assert Fusion().groups(Fusion(50.0).prox(V, 1.0)) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_fusion_is_exact_whatever_the_tasks_have_in_common(mean):
    # A common vector moves with the solution and must not cost its digits.
    V = next(iter(draws(1, (D, 2))))
    difference = V[:, 0] - V[:, 1]
    share = 0.2 / np.linalg.norm(difference)
    expected = np.stack([V[:, 0] - share * difference, V[:, 1] + share * difference], axis=1)
    np.testing.assert_allclose(Fusion(1.0).prox(V + mean, 0.2) - mean, expected, atol=1e-6)


def slow_clustered(W, k, strength, ridge):
    """Brute force over M = Q diag(p) Q' with 0 <= p <= 1 and sum p = k, for K = 3 tasks: value and proximal point at step 1."""
    eta = ridge / strength
    factor = strength * eta * (1 + eta)

    def matrix(x):
        Q = Rotation.from_rotvec(x[3:]).as_matrix()
        return Q @ np.diag(x[:3] + eta) @ Q.T

    def value(x):
        return factor * np.trace(W @ np.linalg.inv(matrix(x)) @ W.T)

    def joint(x):
        P = np.linalg.inv(np.eye(3) + 2 * factor * np.linalg.inv(matrix(x)))
        X = W @ P
        return 0.5 * ((X - W) ** 2).sum() + factor * np.trace(X @ np.linalg.inv(matrix(x)) @ X.T)

    rng = np.random.default_rng(0)
    _, _, Vt = np.linalg.svd(W)
    Vt *= np.sign(np.linalg.det(Vt))
    best = []
    for f in (value, joint):
        runs = []
        for turn in (Rotation.from_matrix(Vt.T).as_rotvec(), rng.normal(size=3)):
            start = np.concatenate([np.full(3, k / 3), turn + 0.1])
            runs.append(
                minimize(
                    f, start, bounds=[(0, 1)] * 3 + [(None, None)] * 3, method="SLSQP", options={"ftol": 1e-14, "maxiter": 300},
                    constraints={"type": "eq", "fun": lambda x: x[:3].sum() - k},
                )
            )  # fmt: skip
        best.append(min(runs, key=lambda run: run.fun))
    M = matrix(best[1].x)
    return best[0].fun, best[1].fun, W @ np.linalg.inv(np.eye(3) + 2 * factor * np.linalg.inv(M))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_clustered_is_the_minimum_over_all_task_matrices(k):
    rng = np.random.default_rng(k)
    for _ in range(4):
        W = rng.normal(size=(4, 3)) * rng.uniform(0.3, 2)
        strength, ridge = rng.uniform(0.2, 2, size=2)
        value, joint, X = slow_clustered(W, k, strength, ridge)
        penalty = Clustered(k, strength, ridge)
        assert penalty.value(W) == pytest.approx(value, rel=1e-6)
        ours = penalty.prox(W, 1.0)
        assert prox_objective(penalty, W, 1.0)(ours) == pytest.approx(joint, rel=1e-6)
        np.testing.assert_allclose(ours, X, atol=1e-3)


def test_the_task_matrix_of_clusters_is_feasible_and_best():
    for W in [*draws(6), *draws(3, (2, 4))]:
        penalty = Clustered(2, 0.7, 0.3)
        M = penalty.task_matrix(W)
        p = np.linalg.eigvalsh(M)
        assert p.min() >= -1e-10
        assert p.max() <= 1 + 1e-10
        eta = 0.3 / 0.7
        assert np.trace(M) <= 2 + 1e-10
        value = 0.7 * eta * (1 + eta) * np.trace(W @ np.linalg.inv(eta * np.eye(4) + M) @ W.T)
        assert value == pytest.approx(penalty.value(W), rel=1e-9)


def test_waterfill_meets_its_total_and_its_conditions():
    rng = np.random.default_rng(0)
    for _ in range(100):
        s = np.sort(np.abs(rng.normal(size=5))) * (rng.random(5) < 0.8)
        low, high, offset = rng.uniform(0, 0.5), rng.uniform(1, 2), rng.uniform(0, 1)
        positive = (s > 0).sum()
        total = low * 5 + rng.uniform(0, 1.2) * (high - low) * max(positive, 1)
        theta = waterfill(s, offset, (low, high), total)
        assert (theta >= low - 1e-12).all()
        assert (theta <= high + 1e-12).all()
        most = low * (5 - positive) + high * positive
        assert theta.sum() == pytest.approx(min(total, most), rel=1e-9)
        free = (theta > low + 1e-9) & (theta < high - 1e-9)
        if free.any() and total < most:
            ratios = (theta[free] + offset) / s[free]
            np.testing.assert_allclose(ratios, ratios[0], rtol=1e-8)


def test_singular_values_are_exact_over_many_sizes():
    rng = np.random.default_rng(0)
    for d, k in ((9, 4), (4, 9), (5, 5)):
        Q, _ = np.linalg.qr(rng.normal(size=(d, min(d, k))))
        R, _ = np.linalg.qr(rng.normal(size=(k, min(d, k))))
        s = 10.0 ** -np.arange(min(d, k))[::-1] * 7
        V = Q * s @ R.T
        np.testing.assert_allclose(singular_values(V)[-min(d, k) :], s, rtol=1e-9)
        for threshold in (1.0, 1e-2, 1e-5, 1e-9):
            exact = Q * np.maximum(s - threshold, 0) @ R.T
            np.testing.assert_allclose(Trace(1.0).prox(V, threshold), exact, atol=1e-9)
        np.testing.assert_allclose(map_singular(V, lambda s: 2 + 0 * s), 2 * V, atol=1e-12)
    assert not map_singular(np.zeros((3, 2)), np.ones_like).any()


def test_every_penalty_says_where_it_comes_from():
    for penalty in [*PLAIN, *SPLIT]:
        assert isinstance(penalty, Penalty)
        assert penalty.paper
    # The orthogonal invariance of the spectral ones.
    Q = expm(np.array([[0, 1, 2], [-1, 0, 3], [-2, -3, 0.0]]))
    W = next(iter(draws(1, (3, 4))))
    for penalty in (
        Trace(0.5),
        Clustered(2),
        OutlierTasks(0.5),
        Fusion(0.2),
        CrossLearning(0.5),
        Ridge(1.0),
        MeanRegularized(1.0),
    ):
        np.testing.assert_allclose(penalty.prox(Q @ W, 0.5), Q @ penalty.prox(W, 0.5), atol=1e-6)
