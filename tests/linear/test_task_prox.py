"""The proximal map of one task's loss: by its definition, by its stationarity, on every route."""

import numpy as np
import pytest
from scipy.optimize import minimize

from taskloom.linear import Huber, TaskProx
from taskloom.linear._losses import get_loss
from taskloom.tasks import OptionError

LOSSES = ["squared", "logistic", "huber", "poisson", "squared_hinge"]


def make_task(loss, n=20, d=4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) + 1
    score = X @ rng.normal(size=d) + rng.normal(size=n)
    kind = get_loss(loss).labels
    y = {
        "real": score,
        "sign": np.where(score > np.median(score), 1.0, -1.0),
        "count": rng.poisson(np.exp(0.3 * score.clip(-3, 3))),
    }
    return X, np.asarray(y[kind], float), rng.normal(size=d), rng.uniform(0.5, 2, size=n) / n


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_it_minimises_its_definition(loss, intercept):
    X, y, v, s = make_task(loss)
    prox = TaskProx(X, y, loss, s, fit_intercept=intercept)
    for gamma in (0.1, 3.0, 100.0):
        w = prox(v, gamma)

        def objective(p, gamma=gamma):
            return gamma * (s * get_loss(loss).value(y, X @ p[:4] + intercept * p[4])).sum() + 0.5 * ((p[:4] - v) ** 2).sum()

        b = prox.intercept(w)
        best = minimize(objective, np.append(w, b) + 0.1, method="BFGS", options={"gtol": 1e-10}).fun
        assert objective(np.append(w, b)) <= best + 1e-9
        # Stationarity: w - v + gamma gradient = 0.
        np.testing.assert_allclose(w - v + gamma * prox.gradient(w), 0, atol=1e-8 * (1 + gamma))


@pytest.mark.parametrize("n", [3, 40])
def test_few_rows_and_many_rows_take_different_routes_to_one_point(n):
    X, y, v, s = make_task("squared", n=n, d=12)
    w = TaskProx(X, y, "squared", s)(v, 2.0)
    C = X - s @ X / s.sum()
    exact = np.linalg.solve(np.eye(12) + 2 * (C * s[:, None]).T @ C, v + 2 * (C * s[:, None]).T @ (y - s @ y / s.sum()))
    np.testing.assert_allclose(w, exact, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_firmly_non_expansive(loss):
    X, y, v, s = make_task(loss)
    prox = TaskProx(X, y, loss, s)
    u = v + np.random.default_rng(5).normal(size=4)
    p, q = prox(v, 5.0), prox(u, 5.0)
    assert (p - q) @ (p - q) <= (p - q) @ (v - u) + 1e-9


def test_a_good_start_gives_the_same_point():
    X, y, v, s = make_task("logistic")
    prox = TaskProx(X, y, "logistic", s)
    np.testing.assert_allclose(prox(v, 5.0, start=prox(v + 0.1, 5.0)), prox(v, 5.0), atol=1e-9)


def test_limits():
    X, y, v, s = make_task("squared")
    prox = TaskProx(X, y, Huber(1e6), s)
    np.testing.assert_allclose(prox(v, 1e-12), v, atol=1e-9)
    least = np.linalg.lstsq(np.sqrt(s)[:, None] * np.column_stack([X, np.ones(20)]), np.sqrt(s) * y)[0][:4]
    np.testing.assert_allclose(TaskProx(X, y, "squared", s)(v, 1e12), least, atol=1e-6)


@pytest.mark.parametrize("gamma", [0, -1.0, np.nan, np.inf])
def test_steps_that_are_none_are_refused(gamma):
    X, y, v, s = make_task("squared")
    with pytest.raises(OptionError, match="`gamma`="):
        TaskProx(X, y, "squared", s)(v, gamma)
