"""Networks that lose, double and shuffle messages, and sites that come and go: every run ends at the same optimum."""

import numpy as np
import pytest
from tests.sites.sites_problems import K, make_pairs, simulate, solve

from taskloom.linear import L21, Trace
from taskloom.sites import Faults, OffsetDelays
from taskloom.tasks import DataError, FitError

METHODS = ["local-prox", "amtl", "smtl-fista"]
SEEDS = range(20)
NETWORK = {"loss": 0.2, "duplication": 0.2, "reordering": 0.2}


@pytest.fixture(scope="module")
def data():
    return make_pairs(n=60)


@pytest.fixture(scope="module")
def optimum(data):
    return solve(data, Trace(0.1))


def run(data, method, seed, faults, **settings):
    return simulate(data, Trace(0.1), method=method, seed=seed, faults=faults, look_every=2 * K, **settings)


def down_for_a_third(data, method, seed):
    """A site that is down in the middle third of what the run would take."""
    undisturbed = run(data, method, seed, Faults()).seconds
    return {f"s{seed % K}": (undisturbed / 3, 2 * undisturbed / 3)}


FAULTS = {
    "a site is down": lambda data, method, seed: Faults(crashes=down_for_a_third(data, method, seed), patience=5.0),
    "messages are lost": lambda data, method, seed: Faults(loss=0.2, patience=5.0),
    "messages come twice": lambda data, method, seed: Faults(duplication=0.2, patience=5.0),
    "messages overtake": lambda data, method, seed: Faults(reordering=0.2, patience=5.0),
    "all at once": lambda data, method, seed: Faults(**NETWORK, crashes=down_for_a_third(data, method, seed), patience=5.0),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_run_ends_at_the_same_optimum(data, optimum, fault, method):
    problem, best = optimum
    for seed in SEEDS:
        result = run(data, method, seed, FAULTS[fault](data, method, seed))
        assert result.converged, (seed, result.message)
        assert result.objective - best.certificate.objective <= 1e-8 * problem.spread
        np.testing.assert_allclose(result.W, best.W, atol=1e-3)
        # All sites are there at the end and say what only they know.
        np.testing.assert_allclose(result.intercepts, best.intercepts, atol=1e-3)
        assert result.notes == []


@pytest.mark.parametrize("method", METHODS)
def test_a_coordinator_that_is_killed_goes_on_from_its_file_to_the_same_optimum(data, optimum, method, tmp_path):
    problem, best = optimum
    for seed in SEEDS:
        faults = Faults(coordinator_crashes=tuple(np.random.default_rng(seed).uniform(3, 30, size=2)), patience=5.0)
        result = run(data, method, seed, faults, checkpoint=tmp_path / f"{method} {seed}", checkpoint_every=7)
        assert result.converged, (seed, result.message)
        assert result.objective - best.certificate.objective <= 1e-8 * problem.spread


@pytest.mark.parametrize("method", ["smtl", "smtl-fista"])
def test_a_synchronous_run_goes_the_same_way_to_the_bit_whatever_the_network_does(data, method):
    # Each round takes each site's gradient once: faults cost time, and nothing else.
    smooth = run(data, method, 0, Faults())
    for seed in range(5):
        rough = run(data, method, seed, Faults(**NETWORK, crashes={"s1": (5.0, 30.0)}, patience=5.0))
        np.testing.assert_array_equal(rough.W, smooth.W)
        np.testing.assert_array_equal(rough.history["objective"], smooth.history["objective"])
        assert rough.updates == smooth.updates
        assert rough.seconds > smooth.seconds
        assert sum(site.duplicates for site in rough.sites.values()) > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_bad_network_ends_the_run_by_its_residual_too(data, method):
    _, best = solve(data, Trace(0.1))
    for seed in range(5):
        result = run(data, method, seed, Faults(**NETWORK, patience=5.0), gap=None, tol=1e-8)
        assert result.converged
        np.testing.assert_allclose(result.W, best.W, atol=1e-5)


@pytest.mark.parametrize("method", [*METHODS, "smtl"])
@pytest.mark.parametrize("until", [1.0, 40.0])
def test_a_site_that_joins_late_is_learned_from(data, optimum, method, until):
    problem, best = optimum
    result = run(data, method, 0, Faults(crashes={"s2": (0.0, until)}, patience=5.0))
    assert result.converged
    assert result.objective - best.certificate.objective <= 1e-8 * problem.spread
    first = next(trip for trip in result.trips if trip.site == "s2")
    assert first.arrived_at >= until
    if method in ("local-prox", "amtl"):
        # The others did not wait.
        assert sum(trip.arrived_at < until for trip in result.trips) >= 2 * int(until)


@pytest.mark.parametrize("method", METHODS)
def test_a_site_that_comes_and_goes_all_the_time_costs_only_time(data, optimum, method):
    problem, best = optimum
    times = [("s0", 3.0, 9.0), ("s1", 6.0, 30.0), ("s2", 10.0, 11.0), ("s3", 2.0, 50.0)]
    result = run(data, method, 0, Faults(loss=0.1, crashes={name: (begin, end) for name, begin, end in times}, patience=3.0))
    assert result.converged
    assert result.objective - best.certificate.objective <= 1e-8 * problem.spread


@pytest.mark.parametrize("method", ["local-prox", "amtl", "amtl-paper"])
def test_a_site_that_is_gone_for_ever_is_named_and_the_others_go_on(data, method):
    faults = Faults(crashes={"s1": (6.0, np.inf)}, patience=5.0)
    result = run(data, method, 0, faults, gap=None, tol=1e-9, max_updates=400)
    assert not result.converged
    assert result.updates == 400
    assert "nothing came any more from site s1" in result.message
    assert result.notes == ["site s1: gone at the end, with the intercepts of its tasks"]
    assert np.isnan(result.intercepts).tolist() == [False, True, False, False]
    assert np.isfinite(result.W).all()
    assert np.isfinite(result.seconds)
    assert min(site.updates for name, site in result.sites.items() if name != "s1") > 100
    # Its coefficients are there, but a prediction without the intercept would be a wrong one.
    with pytest.raises(DataError, match="'s1' has no intercept here"):
        result.predict(data["s1"][0], "s1")


def test_a_site_that_never_came_is_named(data):
    result = run(data, "local-prox", 0, Faults(crashes={"s3": (0.0, np.inf)}), gap=None, max_updates=100)
    assert result.message == "not converged after 100 updates: never heard of site s3"
    assert len(result.notes) == 1
    assert np.isnan(result.intercepts[3])


@pytest.mark.parametrize("method", ["smtl", "smtl-fista"])
def test_a_synchronous_run_without_a_site_stands_still_and_says_so(data, method):
    with pytest.raises(FitError, match=r"no update came through in .* \(down: site s1\).*a method that waits for nobody"):
        run(data, method, 0, Faults(crashes={"s1": (6.0, np.inf)}))


def test_a_network_that_lets_nothing_through_is_said_to_be_one(data):
    with pytest.raises(FitError, match=r"no update came through.*lower `loss`"):
        run(data, "local-prox", 0, Faults(loss=0.999999))


def test_the_model_of_the_others_is_the_optimum_given_what_the_lost_site_last_said(data):
    # With a separable penalty nobody needs the lost site: the others' columns are optimal.
    _, best = solve(data, L21(1e-9))
    result = simulate(
        data, L21(1e-9), faults=Faults(crashes={"s1": (4.0, np.inf)}, patience=5.0), gap=None, tol=1e-12, max_updates=800
    )
    np.testing.assert_allclose(result.W[:, [0, 2, 3]], best.W[:, [0, 2, 3]], atol=1e-6)


def test_a_straggler_slows_down_nobody_but_itself(data, optimum):
    problem, best = optimum
    slow = OffsetDelays(1.0, slow={"s0": 5.0})
    result = run(data, "local-prox", 0, Faults(), delays=slow)
    assert result.objective - best.certificate.objective <= 1e-8 * problem.spread
    trips = {name: site.updates for name, site in result.sites.items()}
    assert trips["s0"] * 3 < min(count for name, count in trips.items() if name != "s0")
    assert result.sites["s1"].updates >= 0.8 * result.seconds


def test_every_message_is_counted_once(data):
    result = run(data, "local-prox", 3, Faults(**NETWORK, patience=5.0))
    assert result.updates == len(result.trips) == sum(site.updates for site in result.sites.values())
    versions = [trip.version for trip in result.trips]
    assert versions == list(range(1, len(versions) + 1))
    assert all(trip.arrived_at >= trip.asked_at for trip in result.trips)
    assert all(trip.staleness >= 0 for trip in result.trips)
