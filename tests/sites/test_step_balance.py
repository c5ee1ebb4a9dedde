"""The length of a proximal step: what the coordinator can see of a site, and where it settles."""

import numpy as np
import pytest
from tests.sites.sites_problems import Hand, make_pairs, simulate

from taskloom.linear import L21, MeanRegularized, Ridge, TaskProx, Trace
from taskloom.sites import StepOptions
from taskloom.sites._balance import LARGEST_CHANGE, LOOKS, TOLERATED, StepBalance, proximal_point


@pytest.mark.parametrize("loss", ["squared", "logistic", "huber"])
@pytest.mark.parametrize(("gamma", "eta"), [(0.1, 1.0), (3.0, 1.8), (50.0, 0.4)])
def test_the_coordinator_sees_the_proximal_point_and_the_gradient_of_a_site(loss, gamma, eta):
    rng = np.random.default_rng(0)
    X, y = make_pairs(loss="logistic" if loss == "logistic" else "squared")["s1"]
    prox = TaskProx(X, y, loss)
    v, p = rng.normal(size=(2, 5))
    z = prox(2 * p - v, gamma)
    new = v + eta * (z - p)
    seen, gradient = proximal_point(v[:, None], p[:, None], new[:, None], gamma, eta)
    np.testing.assert_allclose(seen[:, 0], z, atol=1e-12)
    np.testing.assert_allclose(gradient[:, 0], prox.gradient(z), atol=1e-9)


def walk(curvatures, gamma, rounds=200, seed=0):
    """Douglas-Rachford on two tasks of loss sum h_j w_j^2 / 2 - b'w that are held together, as the coordinator sees it.

    What the tasks have in common is free, and slow where gamma h is small; how they differ is not, and slow where it is great.
    """
    rng = np.random.default_rng(seed)
    h, d = np.asarray(curvatures, float)[:, None], len(curvatures)
    b = rng.normal(size=(d, 2)) * h
    penalty, balance, V = MeanRegularized(1e3 * h.max()), StepBalance(d, 2), np.zeros((d, 2))
    path = [gamma]
    for r in range(rounds):
        p = penalty.prox(V, gamma)
        z = (2 * p - V + gamma * b) / (1 + gamma * h)
        new = V + (z - p)
        balance.see([0, 1], *proximal_point(V, p, new, gamma, 1.0))
        V = new
        step = balance.look(r + 1, gamma)
        if step is not None:
            p = penalty.prox(V, gamma)
            V = p + step / gamma * (V - p)
            gamma = step
        path.append(gamma)
    return path


@pytest.mark.parametrize("first", [1e-4, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("curvature", [0.01, 1.0, 300.0])
def test_one_curvature_is_found_from_anywhere(curvature, first):
    gamma = walk([curvature] * 3, first / curvature)[-1]
    assert 1 / TOLERATED / 1.01 <= gamma * curvature <= TOLERATED * 1.01


@pytest.mark.parametrize("first", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("curvatures", [[1.0, 100.0], [0.1, 1.0, 10.0], [1.0, 3.0, 30.0, 100.0]])
def test_of_several_curvatures_it_leaves_none_outside(curvatures, first):
    # A secant is no longer than along the least curvature and no shorter than along the greatest.
    for seed in range(10):
        gamma = walk(curvatures, first / np.sqrt(min(curvatures) * max(curvatures)), seed=seed)[-1]
        assert 1 / max(curvatures) / TOLERATED <= gamma <= TOLERATED / min(curvatures)


@pytest.mark.parametrize("scales", [[1, 1, 1, 1, 1], [1, 2, 4, 8, 16]])
def test_on_rows_it_settles_near_the_geometric_mean_of_the_curvatures(scales):
    for seed in range(4):
        pairs, steps = {name: (X * scales, y) for name, (X, y) in make_pairs(seed).items()}, []
        simulate(pairs, Trace(0.3), callback=lambda session, steps=steps: steps.append(session.coordinator.step))
        curvatures = np.concatenate([np.linalg.eigvalsh(np.cov(X.T, bias=True)) for X, _ in pairs.values()])
        ratio = steps[-1] * np.exp(np.log(curvatures).mean())
        assert 1 / 30 <= ratio <= 30


def test_a_look_changes_the_step_by_a_bounded_factor_and_looks_end():
    path = np.array(walk([1.0, 1.0], 1e-12, rounds=3000))
    changes = path[1:] / path[:-1]
    assert changes.max() <= LARGEST_CHANGE * (1 + 1e-12)
    assert np.count_nonzero(changes != 1) <= LOOKS
    assert (path[1000:] == path[1000]).all()


def test_a_step_that_is_near_enough_is_kept():
    assert set(walk([1.0, 1.0], 1.5)) == {1.5}


def test_nothing_is_changed_before_there_is_something_to_see():
    balance = StepBalance(2, 3)
    assert balance.look(100.0, 1.0) is None
    balance.see([0], np.ones((2, 1)), np.ones((2, 1)))
    assert balance.look(100.0, 1.0) is None  # a first sight is no change
    balance.see([0], np.ones((2, 1)), np.ones((2, 1)))
    assert balance.look(100.0, 1.0) is None  # nor is standing still
    balance.see([0], np.full((2, 1), 5.0), np.full((2, 1), 1.1))
    assert balance.look(100.0, 1.0) == pytest.approx(LARGEST_CHANGE)
    balance.see([0], np.full((2, 1), 9.0), np.full((2, 1), 2.1))
    assert balance.look(1.0, 1.0) is None  # too early for the next look


def test_its_state_comes_back_to_the_bit():
    rng = np.random.default_rng(0)
    one, two = StepBalance(3, 2), StepBalance(3, 2)
    for t in (0, 1, 0):
        one.see([t], rng.normal(size=(3, 1)), rng.normal(size=(3, 1)))
    two.load_state_dict(one.state_dict())
    for _ in range(3):
        z, g = rng.normal(size=(2, 3, 2))
        for each in (one, two):
            each.see([0, 1], z, g)
        assert one.look(50.0, 1e-3) == two.look(50.0, 1e-3)


def test_a_change_of_step_keeps_the_model_and_the_subgradient():
    hand = Hand("local-prox", Trace(0.1))
    hand.rounds(4)
    coordinator = hand.coordinator
    W, U = coordinator.finish(), (coordinator.V - coordinator.finish()) / coordinator.step
    epoch, step = coordinator.epoch, coordinator.step
    coordinator._set_step(7 * step)
    np.testing.assert_allclose(coordinator.finish(), W, atol=1e-12)
    np.testing.assert_allclose((coordinator.V - coordinator.finish()) / coordinator.step, U, atol=1e-12)
    assert (coordinator.epoch, coordinator.step) == (epoch + 1, 7 * step)


@pytest.mark.parametrize("method", ["local-prox", "amtl", "smtl"])
def test_a_step_that_is_given_is_kept(method):
    hand = Hand(method, L21(0.05), steps=StepOptions(step=0.3))
    hand.rounds(40)
    assert {answer.step for answer in hand.answered} == {0.3}


def test_units_of_the_features_do_not_matter_to_the_number_of_trips():
    # The same problem in other units: curvatures are a million times as great, and so must the step be.
    updates = []
    for size in (1e-3, 1.0, 1e3):
        pairs = {name: (size * X, y) for name, (X, y) in make_pairs().items()}
        updates.append(simulate(pairs, Ridge(0.05 * size**2)).updates)
    assert max(updates) <= 2 * min(updates)


def test_a_balanced_step_needs_no_more_trips_than_twice_the_best_fixed_one():
    pairs = {name: (X * [1, 2, 4, 8, 16], y) for name, (X, y) in make_pairs().items()}
    fixed = [simulate(pairs, Trace(0.3), step=float(step), max_updates=600).updates for step in np.geomspace(0.01, 1, 4)]
    found = simulate(pairs, Trace(0.3))
    assert found.converged
    assert found.updates <= 2 * min(fixed)
