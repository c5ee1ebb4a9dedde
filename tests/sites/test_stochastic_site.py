import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.special import expit

from taskloom.linear import Labels, OwnRows, TaskProx, Trace, certify, get_loss, smooth_problem
from taskloom.sites._asynchronous import AsynchronousCoordinator
from taskloom.sites._coordinator import StopRule
from taskloom.sites._delays import OffsetDelays
from taskloom.sites._methods import get_method
from taskloom.sites._session import Recorder, Session
from taskloom.sites._simulated import SimulatedTransport
from taskloom.sites._site import Site
from taskloom.sites._stochastic import StochasticOptions, StochasticProx
from taskloom.tasks import DataError, OptionError, UnknownNameError

LOSSES = ["squared", "logistic", "huber", "poisson", "squared_hinge"]
EXACTLY = StochasticOptions(accuracy=0.0)


def rows(loss, n=4000, d=8, seed=0, spread=1.0, shift=0.5):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.geomspace(1, spread, d) + shift
    z = X @ (rng.normal(size=d) / np.geomspace(1, spread, d)) / np.sqrt(d)
    kind = get_loss(loss).labels
    if kind == "sign":
        return X, np.where(rng.random(n) < expit(z + 0.3), 1.0, -1.0)
    return (X, rng.poisson(np.exp(np.clip(z, -5, 3))).astype(float)) if kind == "count" else (X, z + rng.normal(size=n) + 5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("gamma", [0.1, 30.0])
def test_the_map_is_that_of_exact_newton_steps(loss, fit_intercept, gamma):
    X, y = rows(loss)
    v = np.random.default_rng(1).normal(size=X.shape[1])
    exact = TaskProx(X, y, loss, fit_intercept=fit_intercept)
    w = StochasticProx(X, y, loss, fit_intercept=fit_intercept, options=EXACTLY)(v, gamma)
    assert np.linalg.norm(w - exact(v, gamma)) <= 1e-8 * (1 + np.linalg.norm(w) + np.linalg.norm(v))
    # A certificate of its own: the slope of a 1-strongly convex function bounds the distance.
    assert np.linalg.norm(gamma * exact.gradient(w) + w - v) <= 1e-9 * (1 + np.linalg.norm(w) + np.linalg.norm(v))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("accuracy", [0.5, 0.1, 1e-3])
def test_the_error_is_below_its_share_of_the_way(loss, accuracy):
    X, y = rows(loss)
    rng = np.random.default_rng(2)
    v, start = rng.normal(size=(2, X.shape[1]))
    w = StochasticProx(X, y, loss, options=StochasticOptions(accuracy=accuracy))(v, 2.0, start)
    assert np.linalg.norm(w - TaskProx(X, y, loss)(v, 2.0)) <= accuracy * np.linalg.norm(w - start) + 1e-9


def test_stochastic_steps_alone_get_there_without_the_exact_method(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the exact method took over")

    for loss in LOSSES:
        for gamma in (0.1, 10.0):
            X, y = rows(loss, n=6000, spread=0.1)
            prox = StochasticProx(X, y, loss, options=EXACTLY)
            best = TaskProx(X, y, loss)(np.ones(8), gamma)
            with monkeypatch.context() as patch:
                patch.setattr(TaskProx, "__call__", refuse)
                assert np.allclose(prox(np.ones(8), gamma), best, atol=1e-8)


def test_rows_in_order_of_their_labels_heavy_rows_and_weights_do_no_harm():
    X, y = rows("logistic", n=3000)
    order = np.argsort(y)
    X, y = X[order], y[order]
    X[::50] *= 30
    weight = np.random.default_rng(3).exponential(size=len(y)) * (np.arange(len(y)) % 7 > 0) / len(y)
    v = np.ones(X.shape[1])
    w = StochasticProx(X, y, "logistic", weight, options=EXACTLY)(v, 5.0)
    assert np.allclose(w, TaskProx(X, y, "logistic", weight)(v, 5.0), atol=1e-8)


@pytest.mark.parametrize("options", [StochasticOptions(1, accuracy=0.0), StochasticOptions(batch=1, passes=2, accuracy=0.0)])
def test_where_passes_run_out_the_exact_method_ends_the_call(options):
    X, y = rows("poisson", n=300)
    v = 3 * np.ones(X.shape[1])
    assert np.allclose(StochasticProx(X, y, "poisson", options=options)(v, 50.0), TaskProx(X, y, "poisson")(v, 50.0), atol=1e-8)


def test_few_rows_weightless_rows_and_sparse_ones_are_served():
    X, y = rows("logistic", n=5, d=8)
    v = np.ones(8)
    assert np.allclose(StochasticProx(X, y, options=EXACTLY)(v, 1.0), TaskProx(X, y, "logistic")(v, 1.0), atol=1e-8)
    assert np.allclose(StochasticProx(X, y, weight=np.zeros(5))(v, 1.0), v)
    X, y = rows("logistic", n=1500)
    X[np.abs(X) < 1] = 0
    dense, sparse = (StochasticProx(form, y, options=EXACTLY)(v, 1.0) for form in (X, csr_array(X)))
    assert np.allclose(dense, sparse, atol=1e-12)


def test_the_same_seed_gives_the_same_bits_and_a_call_does_not_depend_on_those_before():
    X, y = rows("logistic")
    v, far = np.ones(8), 9 * np.ones(8)
    one, two = StochasticProx(X, y, seed=4), StochasticProx(X, y, seed=4)
    two(far, 3.0)
    assert one(v, 1.0).tobytes() == two(v, 1.0).tobytes()
    assert one(v, 1.0).tobytes() != StochasticProx(X, y, seed=5)(v, 1.0).tobytes()


def test_all_else_is_as_with_the_exact_map():
    X, y = rows("logistic")
    w = np.random.default_rng(5).normal(size=8)
    one, two = StochasticProx(X, y), TaskProx(X, y, "logistic")
    assert np.allclose(one.gradient(w), two.gradient(w), atol=1e-12)
    assert one.intercept(w) == pytest.approx(two.intercept(w))
    assert one.curvature == pytest.approx(two.curvature)


def run(losses, X, y, gap):
    K, d = len(losses), X[0].shape[1]
    weight = np.concatenate([np.full(len(each), 1 / len(each)) for each in y])
    problem = smooth_problem(OwnRows(X), Labels(np.concatenate(y), weight, [get_loss("logistic")] * K))
    penalty = Trace(0.02)
    sites = {f"s{t}": [t] for t in range(K)}
    coordinator = AsynchronousCoordinator(sites, d, StopRule(0, 3000), penalty, get_method("local-prox"))
    session = Session(coordinator, Recorder(K, lambda W: certify(problem, penalty, W), gap))
    SimulatedTransport(OffsetDelays(1.0), seed=0).run(
        session, {name: lambda t=t[0], name=name: Site(name, [losses[t]], d) for name, t in sites.items()}
    )
    session.close()
    return session


def test_a_run_with_stochastic_sites_reaches_the_optimum_in_about_as_many_updates():
    sizes = (5000, 300, 400)
    X, y = zip(*[rows("logistic", n=n, seed=t) for t, n in enumerate(sizes)], strict=True)
    exact = [TaskProx(X[t], y[t], "logistic") for t in range(3)]
    one = [StochasticProx(X[0], y[0]), *exact[1:]]
    every = [StochasticProx(X[t], y[t], seed=t) for t in range(3)]
    plain = run(exact, X, y, 1e-8)
    for losses in (one, every):
        session = run(losses, X, y, 1e-8)
        assert session.coordinator.converged
        assert session.recorder.looks[-1].certificate.relative <= 1e-8
        assert session.coordinator.version <= 1.5 * plain.coordinator.version + 6


def test_bad_input_is_refused():
    X, y = rows("logistic", n=50)
    with pytest.raises(DataError, match="`y` has 49 labels, `X` 50 rows"):
        StochasticProx(X, y[1:])
    with pytest.raises(UnknownNameError, match="logistics"):
        StochasticProx(X, y, "logistics")
    with pytest.raises(OptionError, match="`gamma`=0"):
        StochasticProx(X, y)(np.ones(8), 0)
    for options, message in (
        ({"passes": 0}, "`passes`=0"),
        ({"batch": 0}, "`batch`=0"),
        ({"accuracy": 1.0}, "`accuracy`=1.0"),
        ({"accuracy": -0.1}, "`accuracy`=-0.1"),
    ):
        with pytest.raises(OptionError, match=message):
            StochasticOptions(**options)
