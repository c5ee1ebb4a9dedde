import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from taskloom.linear import L1, L21, Graph, Labels, OwnRows, Ridge, Squared, Trace, certify, smooth_problem
from taskloom.sites._asynchronous import AsynchronousCoordinator
from taskloom.sites._checkpoint import EPOCHS_OF_A_LIFE, load_coordinator, revive_coordinator, save_coordinator
from taskloom.sites._coordinator import StopRule
from taskloom.sites._delays import Faults, OffsetDelays
from taskloom.sites._methods import METHODS, StepOptions, get_method
from taskloom.sites._session import Recorder, Session
from taskloom.sites._simulated import SimulatedTransport
from taskloom.sites._site import Site, TaskRows
from taskloom.sites._synchronous import SynchronousCoordinator
from taskloom.tasks import DataError, OutputError

K, D, N = 4, 6, 30


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(0)
    W = rng.normal(size=(D, 2)) @ rng.normal(size=(2, K))
    Xs = [rng.normal(size=(N, D)) for _ in range(K)]
    return Xs, [X @ W[:, t] + rng.normal(size=N) for t, X in enumerate(Xs)]


def make_coordinator(name, penalty=None, rule=None, sites=None, steps=None):
    method = get_method(name)
    kind = SynchronousCoordinator if method.is_synchronous else AsynchronousCoordinator
    sites = {f"s{t}": [t] for t in range(K)} if sites is None else sites
    penalty = Trace(20.0) if penalty is None else penalty
    return kind(sites, D, rule or StopRule(0, 100_000), penalty, method, steps or StepOptions())


def make_sites(parts, name):
    rows = [TaskRows(X, y, np.ones(N), Squared(), fit_intercept=False) for X, y in zip(*parts, strict=True)]
    local = get_method(name).local
    return {f"s{t}": partial(Site, f"s{t}", [row.local_loss()], D, local) for t, row in enumerate(rows)}


def judge(parts, penalty):
    problem = smooth_problem(OwnRows(parts[0]), Labels(np.concatenate(parts[1]), np.ones(K * N), [Squared()] * K, None, False))
    return lambda W: certify(problem, penalty, W)


def run(parts, name, coordinator, gap=1e-9, **session):
    held = Session(coordinator, Recorder(K, judge(parts, coordinator.penalty), gap), **session)
    SimulatedTransport(OffsetDelays(1.0), seed=3).run(held, make_sites(parts, name))
    held.close()
    return held


def assert_same(one, two):
    assert type(one) is type(two) or (isinstance(one, float) and isinstance(two, float))
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    elif isinstance(one, float):
        assert float(one).hex() == float(two).hex()
    elif isinstance(one, np.ndarray):
        assert one.tobytes() == two.tobytes()
    else:
        assert repr(one) == repr(two)


def by_hand(parts, name, coordinator, rounds, sites=None, now=0.0):
    """Rounds in turn, without a transport, so that two coordinators can be told the same to the bit."""
    sites = {n: make() for n, make in make_sites(parts, name).items()} if sites is None else sites
    for _ in range(rounds):
        for site in sites.values():
            coordinator.receive(site.pending, now)
            now += 1.0
            for answer in coordinator.answers(now):
                sites[answer.site].take(answer)
    return sites


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_state_comes_back_to_the_bit(parts, name, tmp_path):
    coordinator = make_coordinator(name)
    by_hand(parts, name, coordinator, 5)
    save_coordinator(coordinator, tmp_path / "state")
    again = make_coordinator(name)
    load_coordinator(again, tmp_path / "state")
    assert_same(again.state_dict(), coordinator.state_dict())
    assert again.finish().tobytes() == coordinator.finish().tobytes()


@pytest.mark.parametrize(
    "penalty", [Trace(20.0), L21(5.0), L1(2.0), Ridge(1.0), Graph(1.0, np.ones((K, K))), L1(2.0) + Ridge(1.0)]
)
@pytest.mark.parametrize("name", ["local-prox", "smtl-fista"])
def test_a_run_that_was_saved_and_one_that_was_loaded_go_on_alike_to_the_bit(parts, name, penalty, tmp_path):
    one, two = make_coordinator(name, penalty), make_coordinator(name, penalty)
    sites = by_hand(parts, name, one, 6)
    save_coordinator(one, tmp_path / "state")
    load_coordinator(two, tmp_path / "state")
    for record, theirs in zip(one.sites.values(), two.sites.values(), strict=True):
        theirs.asked_at = record.asked_at
    for _ in range(6):
        for site in sites.values():
            two.receive(site.pending, 99.0)
            one.receive(site.pending, 99.0)
            answers = one.answers(99.0)
            for answer, same in zip(answers, two.answers(99.0), strict=True):
                assert answer.columns.tobytes() == same.columns.tobytes()
                sites[answer.site].take(answer)
    assert_same(one.state_dict(), two.state_dict())


def test_a_state_before_the_first_message_keeps_its_infinities_and_missing_numbers(tmp_path):
    for name in METHODS:
        coordinator = make_coordinator(name)
        save_coordinator(coordinator, tmp_path / "state")
        again = make_coordinator(name)
        load_coordinator(again, tmp_path / "state")
        assert_same(again.state_dict(), coordinator.state_dict())


def test_the_file_is_safetensors_with_strict_json(parts, tmp_path):
    coordinator = make_coordinator("local-prox")
    save_coordinator(coordinator, tmp_path / "state")
    with safe_open(tmp_path / "state", framework="np") as file:
        assert file.get_tensor("V").shape == (D, K)
        for value in file.metadata().values():
            json.loads(value, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("name", ["local-prox", "amtl", "smtl-fista"])
def test_a_run_that_ended_at_a_limit_goes_on_to_the_optimum(parts, name, tmp_path):
    best = run(parts, name, make_coordinator(name)).recorder.looks[-1].certificate.objective
    short = make_coordinator(name, rule=StopRule(0, 5 * K))
    run(parts, name, short, save=partial(save_coordinator, path=tmp_path / "state"), save_every=2 * K)
    again = make_coordinator(name)
    revive_coordinator(again, tmp_path / "state")
    assert again.version == short.version
    assert not again.is_over
    ended = run(parts, name, again)
    assert again.converged
    assert ended.recorder.looks[-1].certificate.objective == pytest.approx(best, rel=1e-8)


def test_a_run_that_is_still_spent_stays_over(parts, tmp_path):
    for rule in (StopRule(0, 5 * K), StopRule(0, 100_000, max_rounds=3)):
        short = make_coordinator("local-prox", rule=rule)
        run(parts, "local-prox", short)
        save_coordinator(short, tmp_path / "state")
        again = make_coordinator("local-prox", rule=rule)
        revive_coordinator(again, tmp_path / "state")
        assert again.is_over


@pytest.mark.parametrize("name", ["local-prox", "amtl", "smtl-fista"])
def test_a_coordinator_that_dies_ends_at_the_same_optimum(parts, name, tmp_path):
    path = tmp_path / "state"
    best = run(parts, name, make_coordinator(name)).recorder.looks[-1].certificate.objective
    coordinator = make_coordinator(name)
    session = Session(
        coordinator,
        Recorder(K, judge(parts, coordinator.penalty), 1e-9),
        save=partial(save_coordinator, path=path),
        save_every=2 * K,
    )
    versions = []

    def revive(held):
        versions.append(held.coordinator.version)
        fresh = make_coordinator(name)
        revive_coordinator(fresh, path)
        assert versions[-1] - fresh.version < 2 * K
        held.coordinator, held._saved, held._looked = fresh, fresh.version, fresh.version

    faults = Faults(coordinator_crashes=(4.5, 7.3, 7.9), patience=5.0)
    SimulatedTransport(OffsetDelays(1.0), faults, seed=1, revive=revive).run(session, make_sites(parts, name))
    session.close()
    assert len(versions) == 3
    assert session.coordinator is not coordinator
    assert session.coordinator.epoch >= EPOCHS_OF_A_LIFE
    assert session.recorder.looks[-1].certificate.relative <= 1e-9
    assert session.recorder.looks[-1].certificate.objective == pytest.approx(best, rel=1e-8)


def test_each_life_has_epochs_of_its_own_though_none_was_saved_in_between(tmp_path):
    save_coordinator(make_coordinator("local-prox"), tmp_path / "state")
    epochs = []
    for _ in range(3):
        coordinator = make_coordinator("local-prox")
        revive_coordinator(coordinator, tmp_path / "state")
        epochs.append(coordinator.epoch)
    assert np.diff(epochs).tolist() == [EPOCHS_OF_A_LIFE] * 2


def test_columns_of_a_life_before_are_not_taken_but_answered(parts, tmp_path):
    one = make_coordinator("local-prox")
    sites = by_hand(parts, "local-prox", one, 3)
    save_coordinator(one, tmp_path / "state")
    by_hand(parts, "local-prox", one, 2, sites)
    two = make_coordinator("local-prox")
    revive_coordinator(two, tmp_path / "state")
    version = two.version
    two.receive(sites["s1"].pending, 50.0)
    (answer,) = two.answers(50.0)
    assert two.version == version
    assert np.array_equal(answer.restart, two.V[:, [1]])
    two.receive(sites["s1"].take(answer), 51.0)
    assert two.version == version + 1


KILLED = """
import sys, numpy as np
from taskloom.linear import Trace
from taskloom.sites._asynchronous import AsynchronousCoordinator
from taskloom.sites._checkpoint import save_coordinator
from taskloom.sites._coordinator import StopRule
from taskloom.sites._methods import get_method
c = AsynchronousCoordinator({"a": [0], "b": [1]}, 60_000, StopRule(), Trace(1.0), get_method("local-prox"))
k = 0
while True:
    k += 1
    c.prox.set(0, np.full(60_000, float(k)))
    c.prox.set(1, np.full(60_000, float(k)))
    c.version = k
    save_coordinator(c, sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal on this system")
def test_a_kill_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "state"
    for wait in (0.0, 0.013):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
        stamp = path.stat().st_mtime_ns if path.exists() else None
        while not path.exists() or path.stat().st_mtime_ns == stamp:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        process.wait()
        coordinator = AsynchronousCoordinator({"a": [0], "b": [1]}, 60_000, StopRule(), Trace(1.0), get_method("local-prox"))
        load_coordinator(coordinator, path)
        assert coordinator.version >= 1
        assert np.array_equal(coordinator.V, np.full((60_000, 2), coordinator.version))
    assert len(list(tmp_path.iterdir())) <= 2


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    save_coordinator(make_coordinator("local-prox"), tmp_path / "state")
    old = (tmp_path / "state").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    coordinator = make_coordinator("local-prox")
    coordinator.version = 9
    with pytest.raises(OutputError, match=r"state' cannot be written .No space left.*choose another place"):
        save_coordinator(coordinator, tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_a_place_that_is_a_folder_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        save_coordinator(make_coordinator("local-prox"), tmp_path)


def test_missing_damaged_and_foreign_files_are_refused(tmp_path):
    coordinator = make_coordinator("local-prox")
    with pytest.raises(DataError, match="no such file; begin a new run"):
        load_coordinator(coordinator, tmp_path / "none")
    with pytest.raises(DataError, match="a folder, not a file"):
        load_coordinator(coordinator, tmp_path)
    path = tmp_path / "state"
    save_coordinator(coordinator, path)
    whole = path.read_bytes()
    for damaged in (whole[:-8], whole[:40], b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged .*begin anew"):
            load_coordinator(coordinator, path)
    save_file({"V": np.zeros((D, K))}, path)
    with pytest.raises(DataError, match="no saved coordinator"):
        load_coordinator(coordinator, path)


def test_another_version_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("taskloom.sites._checkpoint.VERSION", 2)
        save_coordinator(make_coordinator("local-prox"), tmp_path / "state")
    with pytest.raises(DataError, match="is of version 2, this taskloom reads 1"):
        load_coordinator(make_coordinator("local-prox"), tmp_path / "state")


@pytest.mark.parametrize(
    ("saved", "loaded", "message"),
    [
        ({"name": "local-prox"}, {"name": "amtl"}, "saved with method"),
        ({"name": "smtl"}, {"name": "smtl-fista"}, "saved with method"),
        ({"penalty": Trace(1.0)}, {"penalty": Trace(2.0)}, "saved with penalty"),
        ({"penalty": Trace(1.0)}, {"penalty": L21(1.0)}, "saved with penalty"),
        ({}, {"sites": {"s0": [0, 1], "s1": [2, 3]}}, "saved with sites"),
    ],
)
def test_a_file_of_another_run_is_refused(saved, loaded, message, tmp_path):
    save_coordinator(make_coordinator(**({"name": "local-prox"} | saved)), tmp_path / "state")
    with pytest.raises(DataError, match=message):
        load_coordinator(make_coordinator(**({"name": "local-prox"} | loaded)), tmp_path / "state")


def test_penalties_that_only_differ_in_the_middle_of_a_long_array_are_told_apart(tmp_path):
    many = 60
    sites = {f"s{t}": [t] for t in range(many)}
    affinity = np.ones((many, many))
    changed = affinity.copy()
    changed[30, 31] = changed[31, 30] = 0.5
    assert repr(Graph(1.0, affinity)) == repr(Graph(1.0, changed))
    save_coordinator(make_coordinator("local-prox", Graph(1.0, affinity), sites=sites), tmp_path / "state")
    load_coordinator(make_coordinator("local-prox", Graph(1.0, affinity.copy()), sites=sites), tmp_path / "state")
    with pytest.raises(DataError, match="another `penalty`"):
        load_coordinator(make_coordinator("local-prox", Graph(1.0, changed), sites=sites), tmp_path / "state")
    save_coordinator(make_coordinator("local-prox", Graph(1.0, affinity) + Graph(1.0, changed), sites=sites), tmp_path / "sum")
    other = Graph(1.0, changed) + Graph(1.0, changed)
    with pytest.raises(DataError, match="another `penalty`"):
        load_coordinator(make_coordinator("local-prox", other, sites=sites), tmp_path / "sum")
