"""Stagewise levels of task groups: what they sum to, which groups they find, and why the joint problem is not solved."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize as scipy_minimize
from tests.linear.linear_problems import SHAPES, make_case

from taskloom.linear._design import SharedRows
from taskloom.linear._distance_penalties import Fusion
from taskloom.linear._gram_problem import smooth_problem
from taskloom.linear._losses import Squared
from taskloom.linear._multi_level import MultiLevel, level_groups
from taskloom.linear._problem import Labels, RowsProblem
from taskloom.linear._solver import Fista, SolverOptions, minimize
from taskloom.tasks import OptionError

TIGHT = SolverOptions()


def pairs_sum(W):
    return sum(np.linalg.norm(W[:, s] - W[:, t]) for t in range(W.shape[1]) for s in range(t))


def nested_tasks(seed=0, n=60, d=6):
    """Tasks 0-3 and 4-7 in two far groups; in each of them two near pairs."""
    rng = np.random.default_rng(seed)
    coarse = np.repeat(5 * rng.normal(size=(d, 2)), 4, axis=1)
    W = coarse + np.repeat(0.4 * rng.normal(size=(d, 4)), 2, axis=1)
    X = rng.normal(size=(n, d))
    return SharedRows(X, 8), Labels(X @ W + 0.1 * rng.normal(size=(n, 8)), np.full((n, 8), 1 / n), [Squared()] * 8), W


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", ["squared", ["squared", "logistic", "huber"]], ids=["squared", "mixed"])
def test_each_level_is_optimal_for_what_the_levels_before_left(shape, loss):
    case = make_case(shape, loss, weighted=True, offset=True)
    solution = MultiLevel(0.05, n_levels=3, decay=2.0).solve(case.design, case.labels, TIGHT)
    levels = solution.details["levels"].transpose(0, 2, 1)
    assert solution.converged
    done = np.zeros((case.d, case.K))
    scale = np.linalg.norm(case.problem().origin.gradient)
    for h, W in enumerate(levels):
        done = done + W
        problem = RowsProblem(case.design, case.labels)
        b = problem.intercepts(done, problem.image(done))
        G, slopes = case.gradient(done, b)
        assert np.abs(slopes).max() < 1e-9
        # Pairs of tasks pull on each other alone: what is left to learn sums to zero over tasks.
        assert np.abs(G.sum(1)).max() < 2e-6 * scale
        assert Fusion(0.05 / 2.0**h).distance(W, G) < 2e-6 * scale
    np.testing.assert_allclose(done, solution.W, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_intercepts_are_the_best_for_the_sum_of_all_levels(shape):
    case = make_case(shape, "logistic", weighted=True, offset=True)
    solution = MultiLevel(0.05).solve(case.design, case.labels, TIGHT)
    best = scipy_minimize(lambda b: case.value(solution.W, b), np.zeros(case.K), tol=1e-12).x
    np.testing.assert_allclose(solution.intercepts, best, atol=1e-4)


def test_one_level_is_the_fusion_penalty():
    case = make_case("own")
    one = MultiLevel(0.1, n_levels=1).solve(case.design, case.labels, TIGHT)
    fusion = minimize(case.problem(), Fusion(0.1), solver=Fista(), options=TIGHT)
    np.testing.assert_array_equal(one.W, fusion.W)
    assert one.certificate == fusion.certificate


def test_without_strength_the_first_level_takes_everything():
    case = make_case("own")
    solution = MultiLevel(0.0).solve(case.design, case.labels, TIGHT)
    levels = solution.details["levels"]
    assert solution.converged
    free = [np.linalg.lstsq(X - s @ X, y - s @ y, rcond=None)[0] for X, y, s, _, _ in case.tasks]
    np.testing.assert_allclose(levels[0], free, atol=1e-4)
    np.testing.assert_allclose(levels[1], 0, atol=1e-4)


def test_the_joint_problem_collapses_to_one_level_with_the_least_strength():
    """Accelerated proximal gradient on both levels at once, from a random start in the level that must end empty."""
    design, labels, W_true = nested_tasks()
    problem = smooth_problem(design, labels)
    strong, weak = 0.06, 0.05
    rng = np.random.default_rng(1)
    one, two = rng.normal(size=W_true.shape), np.zeros(W_true.shape)
    before, t = (one, two), 1.0
    step = 0.5 / problem.lipschitz().max()
    for _ in range(600):
        t_next = (1 + np.sqrt(1 + 4 * t * t)) / 2
        momentum = (t - 1) / t_next
        y1, y2 = one + momentum * (one - before[0]), two + momentum * (two - before[1])
        total = y1 + y2
        G = problem.point(total, problem.image(total)).gradient
        before = one, two
        one, two = Fusion(strong).prox(y1 - step * G, step), Fusion(weak).prox(y2 - step * G, step)
        restart = np.vdot(y1 - one, one - before[0]) + np.vdot(y2 - two, two - before[1]) > 0
        t = 1.0 if restart else t_next
    both = one + two
    losses = problem.value(problem.point(both, problem.image(both)), both, problem.image(both))
    joint = losses + strong * pairs_sum(one) + weak * pairs_sum(two)
    single = minimize(problem, Fusion(weak), solver=Fista(), options=TIGHT)
    assert joint == pytest.approx(single.certificate.objective, rel=1e-7)
    np.testing.assert_allclose(both, single.W, atol=1e-4)
    assert pairs_sum(one) < 1e-5 < pairs_sum(two)
    # The stages do not collapse: their first level keeps groups of its own.
    stages = MultiLevel(strong, decay=strong / weak).solve(design, labels, TIGHT)
    assert pairs_sum(stages.parts[0]) > 0.1
    assert np.linalg.norm(stages.W - single.W) > 1e-2


def test_levels_find_nested_groups_from_coarse_to_fine():
    design, labels, W = nested_tasks()
    solution = MultiLevel(0.5, n_levels=2, decay=10.0).solve(design, labels, TIGHT)
    assert solution.converged
    coarse, fine = solution.details["groups"]
    assert coarse == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert fine == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert np.linalg.norm(solution.W - W) < 0.2 * np.linalg.norm(W)


def test_a_level_with_nothing_left_is_one_group():
    rounding = 1e-9 * np.random.default_rng(0).normal(size=(4, 3))
    assert level_groups(np.stack([np.eye(4)[:, :3], rounding])) == [[[0], [1], [2]], [[0, 1, 2]]]


def test_the_order_of_the_tasks_changes_nothing_but_rounding():
    design, labels, _ = nested_tasks()
    order = np.random.default_rng(3).permutation(8)
    moved = Labels(labels.y[:, order], labels.weight, labels.losses)
    model = MultiLevel(0.5, decay=10.0)
    one = model.solve(design, labels, TIGHT)
    two = model.solve(design, moved, TIGHT)
    np.testing.assert_allclose(two.W, one.W[:, order], atol=1e-4)
    sets = [{frozenset(int(order[t]) for t in group) for group in level} for level in two.details["groups"]]
    assert sets == [{frozenset(group) for group in level} for level in one.details["groups"]]


def test_parts_levels_and_sum_agree():
    case = make_case("shared")
    solution = MultiLevel(0.1, n_levels=3).solve(case.design, case.labels, SolverOptions())
    assert solution.details["levels"].shape == (3, case.K, case.d)
    np.testing.assert_array_equal(solution.parts.sum(0), solution.W)
    np.testing.assert_array_equal(solution.details["levels"], solution.parts.transpose(0, 2, 1))
    assert solution.state is None
    assert solution.message.startswith("converged: ")
    assert solution.message.endswith("each of 3 levels")


def test_the_level_that_did_not_converge_is_named():
    case = make_case("own", "logistic")
    solution = MultiLevel(0.01).solve(case.design, case.labels, SolverOptions(tol=1e-14, max_iter=2))
    assert not solution.converged
    assert solution.message.startswith("level 1 of 2: not converged")


def test_scaling_multiplies_the_strength_alone():
    assert MultiLevel(0.5, n_levels=3, decay=2.0).scaled(3.0) == MultiLevel(1.5, n_levels=3, decay=2.0)


def test_paths_begin_where_all_levels_fuse():
    case = make_case("own", K=4)
    problem = case.problem()
    model = MultiLevel(0.7, decay=3.0)
    factor = model.factor_range(problem.origin.gradient, problem.lipschitz())
    groups = model.scaled(4 * factor).solve(case.design, case.labels, TIGHT).details["groups"]
    assert groups == [[[0, 1, 2, 3]]] * 2


@pytest.mark.parametrize("shape", ["own", "shared"])
def test_sparse_features_give_the_same_models_as_dense_ones(shape):
    dense, thin = (make_case(shape, d=6, K=4, convert=convert) for convert in (np.asarray, sparse.csr_array))
    one, two = (MultiLevel(0.1).solve(case.design, case.labels, TIGHT) for case in (dense, thin))
    np.testing.assert_allclose(two.W, one.W, atol=1e-4)
    np.testing.assert_allclose(two.intercepts, one.intercepts, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"strength": -1.0}, "strength"),
        ({"strength": "much"}, "strength"),
        ({"n_levels": 0}, "n_levels"),
        ({"n_levels": 1.5}, "n_levels"),
        ({"n_levels": True}, "n_levels"),
        ({"decay": 0.9}, "decay"),
        ({"decay": np.inf}, "decay"),
    ],
)
def test_bad_options_are_named(options, name):
    with pytest.raises(OptionError, match=f"`{name}`="):
        MultiLevel(**options)
