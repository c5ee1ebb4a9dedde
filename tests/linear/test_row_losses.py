"""Losses by their definitions: derivatives, conjugates, scales; and intercepts that really minimise."""

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from tests.linear.linear_problems import LOSSES, SHAPES, SLOPE, VALUE, make_case

from taskloom.linear._design import OwnRows, SharedRows
from taskloom.linear._intercepts import best_intercepts
from taskloom.linear._losses import (
    SCALES,
    Huber,
    Logistic,
    Loss,
    Poisson,
    Squared,
    SquaredHinge,
    get_loss,
    scale_factor,
)
from taskloom.linear._problem import Labels, RowsProblem
from taskloom.tasks import OptionError, UnknownNameError

LABELS = {"real": np.array([-2.0, 0.0, 0.7]), "sign": np.array([-1.0, 1.0]), "count": np.array([0.0, 1.0, 4.0])}
SCORES = np.linspace(-3.3, 3.1, 41) + 0.0137
OBJECTS = [*[get_loss(name) for name in LOSSES], Huber(0.3)]


def found_intercepts(problem, scores, start=None):
    """Intercepts for labels as they were given."""
    return best_intercepts(problem, scores, start) + problem.label_centers


def grid(loss):
    y, z = np.meshgrid(LABELS[loss.labels], SCORES)
    return y.ravel(), z.ravel()


@pytest.mark.parametrize("loss", OBJECTS, ids=repr)
def test_the_derivatives_are_those_of_the_value(loss):
    y, z = grid(loss)
    h = 1e-6
    np.testing.assert_allclose(loss.derivative(y, z), (loss.value(y, z + h) - loss.value(y, z - h)) / (2 * h), atol=1e-8)
    # Kinks of the derivative, where the second one is an element of an interval, are not on the grid.
    numeric = (loss.derivative(y, z + h) - loss.derivative(y, z - h)) / (2 * h)
    np.testing.assert_allclose(loss.second(y, z), numeric, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_values_are_the_textbook_formulas(name):
    loss = get_loss(name)
    y, z = grid(loss)
    np.testing.assert_allclose(loss.value(y, z), VALUE[name](y, z), atol=1e-14)
    np.testing.assert_allclose(loss.derivative(y, z), SLOPE[name](y, z), atol=1e-14)


@pytest.mark.parametrize("loss", OBJECTS, ids=repr)
def test_the_curvature_bounds_the_second_derivative_and_is_reached(loss):
    y, z = grid(loss)
    assert (loss.second(y, z) >= 0).all()
    if np.isinf(loss.curvature):
        assert loss.second(y, z + 50).max() > 1e20
    else:
        assert loss.second(y, z).max() <= loss.curvature
        assert max(loss.second(y, z).max(), loss.second(y, 0 * z).max()) > 0.99 * loss.curvature


@pytest.mark.parametrize("loss", OBJECTS, ids=repr)
def test_value_and_conjugate_satisfy_fenchel_young(loss):
    y, z = grid(loss)
    slope = loss.derivative(y, z)
    np.testing.assert_allclose(loss.value(y, z) + loss.conjugate(y, slope), z * slope, atol=1e-10)
    for u in np.random.default_rng(0).permuted(slope.reshape(len(SCORES), -1), axis=0)[:8]:
        labels = y.reshape(len(SCORES), -1)[0]
        for score in SCORES[::5]:
            at = np.full_like(labels, score)
            assert (loss.value(labels, at) + loss.conjugate(labels, u) >= u * score - 1e-12).all()


@pytest.mark.parametrize("loss", OBJECTS, ids=repr)
def test_the_conjugate_is_the_greatest_of_its_definition(loss):
    y, z = grid(loss)
    u = loss.derivative(y, z)
    dense = np.linspace(-6, 6, 24_001)
    for i in range(0, len(u), 7):
        brute = (u[i] * dense - loss.value(np.full_like(dense, y[i]), dense)).max()
        assert loss.conjugate(y[i : i + 1], u[i : i + 1])[0] == pytest.approx(brute, abs=1e-6)


def test_conjugates_are_infinite_outside_of_their_domain():
    one = np.ones(1)
    assert np.isinf(Logistic().conjugate(one, 0.01 * one))
    assert np.isinf(Logistic().conjugate(one, -1.01 * one))
    assert np.isinf(Huber(1.0).conjugate(one, 1.01 * one))
    assert np.isinf(Poisson().conjugate(one, -1.01 * one))
    assert np.isinf(SquaredHinge().conjugate(one, 0.01 * one))
    assert Poisson().conjugate(one, -one) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_scores_give_numbers(name):
    loss = get_loss(name)
    far = np.array([-700.0, 700.0])
    for label in LABELS[loss.labels]:
        y = np.full(2, label)
        for what in ("value", "derivative", "second"):
            assert np.isfinite(getattr(loss, what)(y, far)).all()
        assert not np.isnan(loss.value(y, 10 * far)).any()


@pytest.mark.parametrize("name", ["squared", "logistic", "squared_hinge"])
def test_unit_gives_every_loss_the_slope_minus_y_at_zero(name):
    loss = get_loss(name)
    y = LABELS[loss.labels]
    np.testing.assert_allclose(loss.unit * loss.derivative(y, 0 * y), -y, atol=1e-15)


def test_mixed_losses_have_one_gradient_at_zero_under_unit():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 4))
    Y = np.sign(rng.normal(size=(30, 3)))
    losses = [Squared(), Logistic(), SquaredHinge()]
    weight = np.stack([np.full(30, loss.unit / 30) for loss in losses], axis=1)
    problem = RowsProblem(SharedRows(X, 3), Labels(Y, weight, losses, fit_intercept=False))
    np.testing.assert_allclose(problem.origin.gradient, -X.T @ Y / 30, atol=1e-14)


def test_names_find_losses_and_a_wrong_one_is_corrected():
    assert get_loss("huber") == Huber()
    assert get_loss(Huber(2.0)) == Huber(2.0)
    assert all(isinstance(get_loss(name), Loss) for name in LOSSES)
    with pytest.raises(UnknownNameError, match="logistic"):
        get_loss("logistik")


@pytest.mark.parametrize("width", [0, -1.0, np.inf, np.nan])
def test_a_width_that_is_not_positive_is_refused(width):
    with pytest.raises(OptionError, match=r"`width`=.*positive"):
        Huber(width)


def test_scales_divide_by_rows_where_their_libraries_do():
    n = np.array([4.0, 10.0])
    real, sign = Squared(), Logistic()
    divided = {
        (scale, loss.name): bool((scale_factor(scale, loss, n) == 1 / n).all()) for scale in SCALES for loss in (real, sign)
    }
    assert divided == {
        ("mean", "squared"): True, ("mean", "logistic"): True, ("sum", "squared"): False, ("sum", "logistic"): False,
        ("sklearn", "squared"): True, ("sklearn", "logistic"): False,
        ("malsar", "squared"): False, ("malsar", "logistic"): True,
    }  # fmt: skip
    np.testing.assert_array_equal(scale_factor("sum", real, n), [1, 1])
    with pytest.raises(UnknownNameError, match="mean"):
        scale_factor("men", real, n)


# Intercepts


def brute_intercept(name, y, s, z):
    """The least of a convex function of one number, by scipy."""
    slope = lambda b: float(s @ SLOPE[name](y, z + b))  # noqa: E731
    low, high = -1.0, 1.0
    while slope(low) > 0:
        low *= 2
    while slope(high) < 0:
        high *= 2
    return brentq(slope, low, high, xtol=1e-13, rtol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_intercepts_minimise_the_losses(name, shape, spread):
    case = make_case(shape, name, n=20, weighted=True, seed=4)
    if name == "poisson":
        spread = min(spread, 5.0)
    W = spread * np.random.default_rng(1).normal(size=(case.d, case.K))
    problem = case.problem(gram=False)
    Z = problem.image(W)
    for start in (None, np.array([3.0, -3.0, 0.0])):
        b = problem.intercepts(W, Z, start)
        _, slopes = case.gradient(W, b)
        sizes = np.array(
            [float(s @ np.abs(SLOPE[loss](y, X @ w + i))) for (X, y, s, _, loss), w, i in zip(case.tasks, W.T, b, strict=True)]
        )
        assert (np.abs(slopes) <= 1e-10 * sizes + 1e-13).all()
        for t, (X, y, s, _, _) in enumerate(case.tasks):
            z = X @ W[:, t]
            assert s @ VALUE[name](y, z + b[t]) <= s @ VALUE[name](y, z + brute_intercept(name, y, s, z)) + 1e-10


@pytest.mark.parametrize(
    "name",
    [
        "squared",
        "logistic",
        "huber",
        "squared_hinge",
    ],
)
def test_intercepts_stand_scores_of_a_thousand(name):
    rng = np.random.default_rng(0)
    y = np.sign(rng.normal(size=30))
    for z in (1e3 * rng.normal(size=30), 1e3 + rng.normal(size=30), -1e3 + rng.normal(size=30)):
        problem = RowsProblem(OwnRows([np.ones((30, 1))]), Labels(y, np.full(30, 1 / 30), [get_loss(name)]))
        b = found_intercepts(problem, z)[0]
        best = brute_intercept(name, y, np.full(30, 1 / 30), z)
        mean = lambda c, z=z: VALUE[name](y, z + c).mean()  # noqa: E731
        assert mean(b) <= mean(best) * (1 + 1e-9) + 1e-12


def test_intercepts_on_a_flat_part_of_the_loss_stay_there():
    # Every margin is above 1, so that the squared hinge is zero and any nearby intercept is as good.
    y, z = np.array([1.0, -1.0]), np.array([3.0, -3.0])
    problem = RowsProblem(OwnRows([np.ones((2, 1))]), Labels(y, np.ones(2), [SquaredHinge()]))
    b = found_intercepts(problem, z, np.array([0.5]))
    assert b == 0.5
    # A huber loss whose errors are all beyond its width is linear: the best is an interval between the labels.
    y = np.array([-100.0, 100.0])
    problem = RowsProblem(OwnRows([np.ones((2, 1))]), Labels(y, np.ones(2), [Huber(1.0)]))
    b = found_intercepts(problem, np.zeros(2), np.array([20.0]))
    assert Huber(1.0).value(y, np.repeat(b, 2)).sum() == pytest.approx(199.0)


def test_a_task_without_labels_or_of_one_class_leaves_the_others_alone():
    rng = np.random.default_rng(0)
    Y = np.sign(rng.normal(size=(20, 3)))
    Y[:, 1] = 1
    weight = np.ones((20, 3))
    weight[:, 2] = 0
    problem = RowsProblem(SharedRows(np.ones((20, 1)), 3), Labels(Y, weight, [Logistic()] * 3))
    b = found_intercepts(problem, np.zeros((20, 3)))
    ones = (Y[:, 0] > 0).mean()
    assert b[0] == pytest.approx(np.log(ones / (1 - ones)), abs=1e-12)
    assert b[1] > 5
    assert b[2] == 0


@pytest.mark.parametrize("level", [2e5, -3e6])
def test_huber_intercepts_reach_labels_far_from_zero(level):
    y = level + np.random.default_rng(0).normal(size=25)
    problem = RowsProblem(OwnRows([np.ones((25, 1))]), Labels(y, np.full(25, 1 / 25), [Huber()]))
    best = minimize_scalar(lambda b: VALUE["huber"](y, b).sum(), bounds=(y.min(), y.max()), method="bounded").fun
    assert VALUE["huber"](y, found_intercepts(problem, np.zeros(25))[0]).sum() <= best + 1e-6


@pytest.mark.parametrize(
    "mean",
    [
        20,
        300,
        1000,
        10**6,
    ],
)
def test_poisson_intercepts_reach_great_counts(mean):
    y = np.random.default_rng(0).poisson(mean, size=25).astype(float)
    problem = RowsProblem(OwnRows([np.ones((25, 1))]), Labels(y, np.full(25, 1 / 25), [Poisson()]))
    np.testing.assert_allclose(found_intercepts(problem, np.zeros(25)), np.log(y.mean()), rtol=1e-10)


@pytest.mark.parametrize("level", [-1000.0, 1000.0])
def test_poisson_intercepts_stand_scores_of_a_thousand(level):
    y = np.random.default_rng(0).poisson(3, size=25).astype(float)
    problem = RowsProblem(OwnRows([np.ones((25, 1))]), Labels(y, np.full(25, 1 / 25), [Poisson()]))
    np.testing.assert_allclose(found_intercepts(problem, np.full(25, level)), np.log(y.mean()) - level, rtol=1e-10)
