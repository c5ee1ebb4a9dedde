import sys

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr

from taskloom.linear import Labels, OwnRows, Squared, TaskProx, Trace, certify, smooth_problem
from taskloom.sites._asynchronous import AsynchronousCoordinator
from taskloom.sites._balance import proximal_point
from taskloom.sites._coordinator import StopRule
from taskloom.sites._methods import StepOptions, get_method
from taskloom.sites._privacy import LARGEST_RATIO, GaussianRelease, Withheld, clipped, epsilon
from taskloom.sites._session import Recorder, Session
from taskloom.sites._simulated import SimulatedTransport
from taskloom.sites._site import Site
from taskloom.tasks import FitError, OptionError

K, D, N = 4, 5, 40


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(1)
    W = rng.normal(size=(D, 2)) @ rng.normal(size=(2, K))
    Xs = [rng.normal(size=(N, D)) for _ in range(K)]
    return Xs, [X @ W[:, t] + 0.3 * rng.normal(size=N) for t, X in enumerate(Xs)]


def run(parts, releases=None, wrap=lambda loss: loss, *, name="local-prox", rounds=60, steps=None):
    penalty, method = Trace(3.0), get_method(name)
    losses = [wrap(TaskProx(X, y, "squared", np.ones(N), fit_intercept=False)) for X, y in zip(*parts, strict=True)]
    problem = smooth_problem(OwnRows(parts[0]), Labels(np.concatenate(parts[1]), np.ones(K * N), [Squared()] * K, None, False))
    rule = StopRule(0, 100_000, max_rounds=rounds)
    coordinator = AsynchronousCoordinator({f"s{t}": [t] for t in range(K)}, D, rule, penalty, method, steps or StepOptions())
    session = Session(coordinator, Recorder(K, lambda W: certify(problem, penalty, W)))
    releases = [None] * K if releases is None else releases
    make = {f"s{t}": lambda t=t: Site(f"s{t}", [losses[t]], D, method.local, releases[t]) for t in range(K)}
    SimulatedTransport(seed=0).run(session, make)
    session.close()
    return session


def gap(session):
    return session.recorder.looks[-1].certificate.relative


def cloud(session):
    return np.median([look.certificate.relative for look in session.recorder.looks[-20:]])


def closed_form(mu, delta):
    """Epsilon of a Gaussian mechanism with sensitivity mu and noise 1 (Balle & Wang, ICML 2018, theorem 8)."""
    excess = lambda e: np.exp(log_ndtr(mu / 2 - e / mu)) - np.exp(e + log_ndtr(-mu / 2 - e / mu)) - delta  # noqa: E731
    return brentq(excess, 0.0, mu**2 / 2 + 12 * mu + 1, xtol=1e-13) if excess(0.0) > 0 else 0.0


@pytest.mark.parametrize(
    ("releases", "noise", "tasks"), [(1, 1.0, 1), (1, 100.0, 1), (30, 8.0, 1), (100, 50.0, 4), (1000, 2.0, 1)]
)
@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_epsilon_is_a_tight_upper_bound_of_composed_gaussian_mechanisms(releases, noise, tasks, delta):
    # Independent changes of length 2 C in each of k releases and tasks are one of length 2 C sqrt(k tasks).
    exact = closed_form(2 * np.sqrt(releases * tasks) / noise, delta)
    bound = epsilon(releases, noise, delta, tasks=tasks)
    assert exact <= bound <= exact * (1 + 1e-5) + 1e-6


def test_epsilon_is_below_what_renyi_divergences_give():
    # Order a of one release: a (2 C)^2 / (2 z^2 C^2) = 2 a / z^2; to (epsilon, delta) by Mironov (CSF 2017), proposition 3.
    releases, noise, delta = 50, 6.0, 1e-6
    orders = 1 + np.geomspace(1e-2, 1e3, 20_000)
    assert epsilon(releases, noise, delta) <= np.min(releases * 2 * orders / noise**2 + np.log(1 / delta) / (orders - 1))


def test_more_releases_less_noise_less_delta_and_more_tasks_cost_more():
    for values in (
        [epsilon(k, 10.0, 1e-6) for k in (0, 1, 10, 100, 1000, 250_000, 300_000, 10**9)],
        [epsilon(20, z, 1e-6) for z in (1e6, 100.0, 10.0, 1.0, 0.2, 0.05, 1e-3, 0.0)],
        [epsilon(20, 10.0, delta) for delta in (0.5, 1e-3, 1e-6, 1e-12)],
        [epsilon(20, 10.0, 1e-6, tasks=m) for m in (1, 2, 10)],
    ):
        assert (np.diff(values[:-1]) >= 0).all()
        assert values[-1] > values[0] >= 0
    assert epsilon(5, 0.0, 1e-6) == np.inf


def test_beyond_the_grid_the_bound_is_still_above_the_closed_form():
    mu = 1.5 * LARGEST_RATIO
    assert closed_form(mu, 1e-6) <= epsilon(1, 2 / mu, 1e-6) <= 1.05 * closed_form(mu, 1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 1.0, 1e-5), "`releases`=-1"),
        ((1.5, 1.0, 1e-5), "`releases`=1.5"),
        ((np.inf, 1.0, 1e-5), "`releases`=inf"),
        ((1, -1.0, 1e-5), "`noise_multiplier`=-1.0"),
        ((1, np.inf, 1e-5), "`noise_multiplier`=inf"),
        ((1, 1.0, 0.0), "`delta`=0.0"),
        ((1, 1.0, 1.0), "`delta`=1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(OptionError, match=message):
        epsilon(*arguments)


def test_tasks_and_release_options_out_of_range_are_refused():
    with pytest.raises(OptionError, match="`tasks`=0"):
        epsilon(1, 1.0, 1e-5, tasks=0)
    for options, message in (
        ({"clip": 0.0}, "`clip`=0.0"),
        ({"clip": np.inf}, "`clip`=inf"),
        ({"noise_multiplier": -1.0}, "`noise_multiplier`=-1.0"),
        ({"limit": -1}, "`limit`=-1"),
        ({"made": -1}, "`made`=-1"),
    ):
        with pytest.raises(OptionError, match=message):
            GaussianRelease(**({"clip": 1.0, "noise_multiplier": 1.0} | options))
    with pytest.raises(OptionError, match="`curvature`=0"):
        Withheld(TaskProx(np.eye(2), np.zeros(2)), 0)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(OptionError, match=r"install taskloom\[privacy\]"):
        epsilon(1, 1.0, 1e-5)


def test_no_two_clipped_changes_are_further_apart_than_twice_the_clip():
    rng = np.random.default_rng(0)
    changes = rng.normal(size=(D, 400)) * 10.0 ** rng.integers(-200, 300, size=400)
    short = clipped(changes, 0.7)
    norms = np.linalg.norm(short, axis=0)
    assert (norms <= 0.7 * (1 + 1e-12)).all()
    assert np.linalg.norm(short[:, :200] - short[:, 200:], axis=0).max() <= 1.4 * (1 + 1e-12)
    # Direction and short changes are as they were.
    assert np.allclose(clipped(0.1 * np.eye(D), 0.7), 0.1 * np.eye(D), atol=0)
    for change, kept in zip(changes.T, short.T, strict=True):
        one, two = change / np.abs(change).max(), kept / np.abs(kept).max()
        assert np.allclose(one, two)


def test_changes_that_are_not_finite_tell_nothing():
    change = np.ones((D, 3))
    change[0, 0], change[1, 1] = np.nan, np.inf
    assert np.array_equal(clipped(change, 100.0), np.outer(np.ones(D), [0.0, 0.0, 1.0]))


@pytest.mark.parametrize("seed", [5, None])
def test_noise_has_its_scale_whoever_draws_it(seed):
    release = GaussianRelease(2.0, 3.0, seed=seed)
    old = np.zeros((200, 200))
    noise = release(old, old)
    n = noise.size
    assert abs(noise.mean()) < 5 * 6.0 / np.sqrt(n)
    assert abs(noise.std() / 6.0 - 1) < 5 / np.sqrt(2 * n)
    assert abs((noise**4).mean() / 6.0**4 - 3) < 5 * np.sqrt(96 / n)
    assert abs(np.corrcoef(noise[:, :100].ravel(), noise[:, 100:].ravel())[0, 1]) < 5 / np.sqrt(n / 2)


def test_the_noise_comes_from_the_seed_or_else_is_never_the_same():
    zero = np.zeros((D, 2))
    draw = lambda seed: GaussianRelease(1.0, 1.0, seed=seed)(zero, zero)  # noqa: E731
    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
    assert not np.array_equal(draw(None), draw(None))


def test_a_release_is_the_old_columns_the_clipped_change_and_noise():
    rng = np.random.default_rng(2)
    old, new = rng.normal(size=(2, D, 3))
    noise = np.random.default_rng(9).standard_normal((D, 3))
    assert np.allclose(GaussianRelease(0.5, 1.2, seed=9)(old, new), old + clipped(new - old, 0.5) + 0.6 * noise, atol=1e-15)


def test_after_the_limit_nothing_new_is_told():
    release = GaussianRelease(1.0, 1.0, limit=3, made=1, seed=0)
    old = np.zeros((D, 1))
    sent = [release(old, new) for new in (old + 1, old + 2, old + 3)]
    assert sent[0].any()
    assert sent[1].any()
    assert not sent[2].any()
    assert release.made == 3


def test_off_or_wide_enough_it_changes_nothing(parts):
    plain, wide = run(parts), run(parts, [GaussianRelease(1e6, 0.0) for _ in range(K)])
    assert np.allclose(plain.coordinator.finish(), wide.coordinator.finish(), atol=1e-10)
    again = run(parts)
    assert again.coordinator.finish().tobytes() == plain.coordinator.finish().tobytes()


@pytest.mark.parametrize("name", ["local-prox", "amtl"])
def test_clipping_alone_still_ends_at_the_optimum(parts, name):
    session = run(parts, [GaussianRelease(0.3, 0.0) for _ in range(K)], name=name, rounds=400)
    assert gap(session) < 1e-8


def test_with_moderate_noise_a_run_ends_near_the_optimum_and_the_nearer_the_less_there_is(parts):
    gaps = []
    for z in (1.0, 0.1, 0.01):
        releases = GaussianRelease(0.1, z, seed=0)
        each = [[releases.for_site(f"{again} {t}") for t in range(K)] for again in range(3)]
        gaps.append(np.median([cloud(run(parts, one, rounds=60)) for one in each]))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[1] < 0.1
    assert gaps[2] < 0.01


def test_sites_of_one_release_have_noise_and_counts_of_their_own():
    zero = np.zeros((D, 1))
    for seed in (0, (0, 1), None):
        whole = GaussianRelease(1.0, 1.0, limit=2, made=1, seed=seed)
        one, two = whole.for_site("a"), whole.for_site("b")
        assert not np.array_equal(one(zero, zero), two(zero, zero))
        assert (whole.made, one.made, two.made) == (1, 2, 2)
    first, again = (GaussianRelease(1.0, 1.0, seed=3).for_site("a") for _ in range(2))
    assert np.array_equal(first(zero, zero), again(zero, zero))


def test_a_run_with_noise_is_the_same_for_the_same_seeds(parts):
    one, two = (run(parts, [GaussianRelease(0.3, 0.5, seed=t) for t in range(K)]) for _ in range(2))
    assert one.coordinator.finish().tobytes() == two.coordinator.finish().tobytes()


def test_without_noise_a_few_updates_of_a_squared_loss_give_its_matrices_away(parts):
    X, y = parts[0][0], parts[1][0]
    site = Site("a", [TaskProx(X, y, "squared", np.ones(N), fit_intercept=False)], D)
    coordinator = AsynchronousCoordinator({"a": [0]}, D, StopRule(), Trace(0.1), get_method("local-prox"), StepOptions(0.01))
    points, gradients, v = [], [], np.zeros((D, 1))
    coordinator.receive(site.join(), 0.0)
    rng = np.random.default_rng(0)
    for _ in range(D + 1):
        (answer,) = coordinator.answers(0.0)
        # A coordinator that is curious asks where it likes.
        curious = type(answer)(**(vars(answer) | {"columns": rng.normal(size=(D, 1)), "restart": v}))
        sent = site.take(curious)
        z, g = proximal_point(v, curious.columns, sent.columns, curious.step, curious.relaxation)
        points.append(z[:, 0])
        gradients.append(g[:, 0])
        coordinator.receive(sent, 0.0)
    solved = np.linalg.solve(np.column_stack([points, np.ones(D + 1)]), np.array(gradients))
    assert np.allclose(solved[:D], X.T @ X, rtol=1e-6)
    assert np.allclose(-solved[D], X.T @ y, rtol=1e-6)


def test_with_curvature_and_intercept_withheld_the_same_optimum_is_reached(parts):
    session = run(parts, wrap=Withheld, rounds=200)
    assert gap(session) < 1e-8
    assert np.isinf(session.coordinator.curvature).all()
    bound = max(np.linalg.norm(X, 2) ** 2 for X in parts[0])
    assert gap(run(parts, wrap=lambda loss: Withheld(loss, bound), name="amtl", rounds=400)) < 1e-8


def test_withheld_tells_a_bound_and_no_intercept_and_steps_as_before():
    rng = np.random.default_rng(3)
    loss = TaskProx(rng.normal(size=(20, D)), rng.normal(size=20) + 4)
    quiet, w = Withheld(loss, 7.0), rng.normal(size=D)
    assert quiet.curvature == 7.0
    assert quiet.intercept(w) == 0.0 != loss.intercept(w)
    assert np.array_equal(quiet.gradient(w), loss.gradient(w))
    assert np.array_equal(quiet(w, 0.5, w), loss(w, 0.5, w))
    with pytest.raises(FitError, match="bounded curvature"):
        run(([rng.normal(size=(N, D))] * K, [rng.normal(size=N)] * K), wrap=Withheld, name="amtl")
