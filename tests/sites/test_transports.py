"""Real threads, processes and sockets: all methods reach the optimum, whatever dies on the way, and nothing is left behind."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import cached_property, partial
from multiprocessing.connection import Client
from pathlib import Path

import numpy as np
import psutil
import pytest

from taskloom.linear import L21, Fista, Labels, OwnRows, Squared, Trace, certify, minimize, smooth_problem
from taskloom.sites._asynchronous import AsynchronousCoordinator
from taskloom.sites._coordinator import StopRule
from taskloom.sites._delays import OffsetDelays
from taskloom.sites._lines import GOODBYE, HURRY, Server
from taskloom.sites._messages import Update, decode, encode
from taskloom.sites._methods import get_method
from taskloom.sites._processes import ProcessesTransport
from taskloom.sites._session import Recorder, Session
from taskloom.sites._simulated import SimulatedTransport
from taskloom.sites._site import Site, TaskRows
from taskloom.sites._site_process import serve_site
from taskloom.sites._synchronous import SynchronousCoordinator
from taskloom.sites._threads import ThreadsTransport
from taskloom.tasks import DataError, FitError, OptionError

D, N = 6, 30
KEY = b"a key for tests"
ALL = [("local-prox", Trace), ("local-prox", L21), ("amtl", Trace), ("smtl-fista", L21)]


class World:
    """Three sites, one of them with two tasks, and the problem that nobody holds as a whole."""

    def __init__(self, method="local-prox", penalty=Trace, tol=1e-9, max_updates=1_000_000):
        rng = np.random.default_rng(0)
        truth = rng.normal(size=(D, 2)) @ rng.normal(size=(2, 4))
        Xs = [rng.normal(size=(N, D)) for _ in range(4)]
        ys = [X @ truth[:, t] + t + 0.3 * rng.normal(size=N) for t, X in enumerate(Xs)]
        weight = np.full(N, 1 / N)
        self.problem = smooth_problem(OwnRows(Xs), Labels(np.concatenate(ys), np.tile(weight, 4), [Squared()] * 4))
        self.penalty = penalty(0.1)
        self.method = get_method(method)
        tasks = {"north": [0, 1], "east": [2], "south": [3]}
        losses = [TaskRows(X, y, weight, Squared()).local_loss() for X, y in zip(Xs, ys, strict=True)]
        self.make = {name: partial(Site, name, [losses[t] for t in own], D, self.method.local) for name, own in tasks.items()}
        kind = SynchronousCoordinator if self.method.is_synchronous else AsynchronousCoordinator
        self.coordinator = kind(tasks, D, StopRule(tol, max_updates), self.penalty, self.method)
        self.session = self.watched_by(None)

    def watched_by(self, callback):
        self.session = Session(self.coordinator, Recorder(10**9), callback=callback)
        return self.session

    @cached_property
    def best(self):
        return certify(self.problem, self.penalty, minimize(self.problem, self.penalty, solver=Fista()).W).objective

    def check_optimum(self, W=None):
        at = certify(self.problem, self.penalty, self.coordinator.finish() if W is None else W)
        assert at.relative < 1e-6
        assert at.objective == pytest.approx(self.best, rel=1e-5)


@pytest.fixture(autouse=True)
def _nothing_hangs_and_nothing_is_left(monkeypatch):
    def too_long(*_):
        raise TimeoutError("the transport hangs")

    before, children = set(threading.enumerate()), set(psutil.Process().children())
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(30)
    with tempfile.TemporaryDirectory(prefix="tl") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield
        assert not list(Path(folder).iterdir())
    signal.alarm(0)
    assert set(threading.enumerate()) <= before
    # Other tests may have left children of their own, such as joblib's.
    assert set(psutil.Process().children()) <= children


@contextmanager
def elsewhere(address, sites, **options):
    """Sites that were started by hand: over real sockets, in threads only so that they are quick to start."""
    errors = {}

    def serve(name, make):
        try:
            serve_site(address, KEY, make(), **options)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            errors[name] = error

    threads = [threading.Thread(target=serve, args=each) for each in sites.items()]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        for thread in threads:
            thread.join()


@pytest.fixture
def address():
    """Short: paths of Unix sockets are."""
    with tempfile.TemporaryDirectory(prefix="tl", dir="/tmp") as folder:
        yield f"{folder}/coordinator"
        assert not list(Path(folder).glob("coordinator"))


def _killed_once(victims, updates):
    """A callback that kills a child that this process gets from now on, once that has made some updates."""
    before = set(psutil.Process().children())

    def callback(session):
        if session.coordinator.sites["north"].updates >= updates and not victims:
            victims.append(next(child.pid for child in psutil.Process().children() if child not in before))
            os.kill(victims[0], signal.SIGKILL)

    return callback


@pytest.mark.parametrize(("method", "penalty"), ALL)
def test_threads_reach_the_optimum_of_the_simulation_and_of_the_solver(method, penalty):
    world, twin = World(method, penalty), World(method, penalty)
    ThreadsTransport().run(world.session, world.make)
    SimulatedTransport().run(twin.session, twin.make)
    assert world.coordinator.converged
    world.check_optimum()
    np.testing.assert_allclose(world.coordinator.finish(), twin.coordinator.finish(), atol=1e-5)
    intercepts = np.concatenate([site.intercepts for site in world.coordinator.sites.values()])
    W = world.coordinator.finish()
    np.testing.assert_allclose(intercepts, world.problem.intercepts(W, world.problem.image(W)), atol=1e-9)


@pytest.mark.parametrize(("method", "penalty"), ALL)
def test_sites_on_sockets_reach_the_optimum(method, penalty, address):
    world = World(method, penalty)
    with elsewhere(address, world.make) as errors:
        ProcessesTransport(address=address, authkey=KEY).run(world.session, {})
    assert not errors
    assert world.coordinator.converged
    world.check_optimum()


def test_lines_work_on_the_loopback_too():
    world = World()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    with elsewhere(address, world.make) as errors:
        ProcessesTransport(address=address, authkey=KEY).run(world.session, {})
    assert not errors
    world.check_optimum()


def test_a_site_process_that_is_killed_is_started_again_and_the_optimum_is_the_same(address):
    world, victims = World(tol=1e-8), []
    session = world.watched_by(_killed_once(victims, updates=5))
    sites = {name: make for name, make in world.make.items() if name != "north"}
    with elsewhere(address, sites, delays=OffsetDelays(0.02)) as errors:
        ProcessesTransport(OffsetDelays(0.02), address=address, authkey=KEY).run(session, {"north": world.make["north"]})
    assert len(victims) == 1
    assert not errors
    assert not session.failed
    assert world.coordinator.converged
    world.check_optimum()


class RoughSession(Session):
    """A network at the coordinator's door that loses, repeats and holds back a fifth of what comes, and loses answers."""

    rng, held = np.random.default_rng(0), []

    def handle(self, messages, now):
        come = [message for message in messages if message.sequence == 0 or self.rng.random() > 0.2]
        come += [message for message in come if self.rng.random() < 0.2]
        late = [message for message in come if message.sequence > 0 and self.rng.random() < 0.2]
        kept = [message for message in come if not any(message is each for each in late)]
        kept, self.held = kept + self.held, late
        answers = super().handle(kept, now)
        return answers if self.is_over else [answer for answer in answers if self.rng.random() > 0.2]


def test_processes_reach_the_optimum_over_a_line_that_loses_repeats_and_holds_back(address):
    world = World(tol=1e-8)
    session = RoughSession(world.coordinator, Recorder(10**9))
    sites = {name: make for name, make in world.make.items() if name != "north"}
    with elsewhere(address, sites, patience=0.05) as errors:
        transport = ProcessesTransport(address=address, authkey=KEY, patience=0.05)
        transport.run(session, {"north": world.make["north"]})
    assert not errors
    assert not session.failed
    assert sum(site.duplicates for site in world.coordinator.sites.values()) > 0
    assert world.coordinator.converged
    world.check_optimum()


def test_a_site_process_that_dies_too_often_is_named(address):
    world, victims = World("smtl"), []
    session = world.watched_by(_killed_once(victims, updates=0))
    sites = {name: make for name, make in world.make.items() if name != "north"}
    transport = ProcessesTransport(address=address, authkey=KEY, restarts=0)
    # The sites from elsewhere look for a coordinator that may come back; here it does not.
    with elsewhere(address, sites, give_up=0.2) as errors, pytest.raises(FitError, match=r"site north failed: .* status -9"):
        transport.run(session, {"north": world.make["north"]})
    assert {type(error) for error in errors.values()} == {FitError}


def test_a_site_process_that_cannot_make_its_site_is_named_and_the_others_go_on(address, capfd):
    world = World(max_updates=500)
    sites = {name: make for name, make in world.make.items() if name != "east"}
    probe = "import threadpoolctl; raise RuntimeError({each['num_threads'] for each in threadpoolctl.threadpool_info()})"
    with elsewhere(address, sites, delays=OffsetDelays(0.01)) as errors:
        ProcessesTransport(address=address, authkey=KEY).run(world.session, {"east": partial(exec, probe)})
    assert not errors
    # One BLAS thread is all it has.
    assert world.session.failed == {"east": "RuntimeError: {1}"}
    assert capfd.readouterr().err == ""
    assert world.coordinator.sites["north"].intercepts is not None


def _no_rows():
    raise FileNotFoundError("ward.parquet")


def _failing_at(make, turn, error):
    site, turns = make(), []

    def fail(old, new):
        turns.append(new)
        if len(turns) >= turn:
            raise error
        return new

    site.release = fail
    return site


def test_a_failing_thread_is_named_and_the_others_go_on_until_they_have_settled():
    world = World()
    make = world.make | {"east": partial(_failing_at, world.make["east"], 3, DataError("row 7 is strange"))}
    ThreadsTransport().run(world.session, make)
    assert world.session.failed == {"east": "DataError: row 7 is strange"}
    assert world.coordinator.sites["east"].updates == 2
    assert world.coordinator.is_over
    assert not world.coordinator.converged
    assert "site east was lost" in world.coordinator.verdict()
    assert world.coordinator.residual < 1e-9
    assert world.coordinator.sites["south"].intercepts is not None


def test_what_slow_sites_say_of_an_old_model_does_not_end_a_run():
    """They are at rest while a fast one is away; it comes, moves, and is at rest again before they hear of it."""
    world = World("amtl", tol=1e-8)
    sites = {name: make() for name, make in world.make.items()}
    said = {name: site.pending for name, site in sites.items()}

    def speak(names):
        for answer in world.session.handle([said[name] for name in names], 0.0):
            said[answer.site] = sites[answer.site].take(answer)

    speak(sites)
    for _ in range(300):
        speak(["east", "south"])
    for _ in range(300):
        speak(["north"])
    assert world.coordinator.residual < 1e-8
    speak(["east", "south"])
    assert not world.coordinator.is_over
    while not world.coordinator.is_over:
        speak(sites)
    world.check_optimum()


@pytest.mark.parametrize("turn", [1, 4])
def test_where_all_wait_for_a_site_that_failed_the_run_says_so(turn):
    world = World("smtl")
    make = world.make | {"east": partial(_failing_at, world.make["east"], turn, DataError("row 7 is strange"))}
    with pytest.raises(FitError, match=r"site east failed: DataError: row 7 is strange; all others wait"):
        ThreadsTransport().run(world.session, make)


def test_a_failing_site_from_elsewhere_is_named(address):
    world = World("smtl")
    make = world.make | {"east": partial(_failing_at, world.make["east"], 4, OSError("disk on fire"))}
    with (
        elsewhere(address, make, give_up=0.2) as errors,
        pytest.raises(FitError, match=r"site east failed: .*disk on fire; all others wait"),
    ):
        ProcessesTransport(address=address, authkey=KEY).run(world.session, {})
    assert "disk on fire" in str(errors["east"])


def test_a_run_without_any_site_left_says_so():
    world = World()
    with pytest.raises(FitError, match="no site is left; site north failed: FileNotFoundError: ward"):
        ThreadsTransport().run(world.session, dict.fromkeys(world.make, _no_rows))


def test_a_site_that_sends_nothing_but_nan_is_given_up():
    world = World(max_updates=200)

    def spoilt():
        site = world.make["east"]()
        site.release = lambda old, new: new * np.nan
        return site

    ThreadsTransport().run(world.session, world.make | {"east": spoilt})
    assert "refused 10 times in a row" in world.session.failed["east"]


def test_a_late_site_joins_and_the_optimum_is_the_same():
    world = World()

    def late():
        time.sleep(0.2)
        return world.make["east"]()

    ThreadsTransport(OffsetDelays(0.002)).run(world.session, world.make | {"east": late})
    first = next(trip for trip in world.session.recorder.trips if trip.site == "east")
    assert first.version > 10
    world.check_optimum()


def test_messages_that_are_repeated_out_of_impatience_change_nothing():
    world = World("smtl-fista")
    ThreadsTransport(OffsetDelays(0.001, slow={"east": 15}), patience=0.004).run(world.session, world.make)
    sites = world.coordinator.sites.values()
    assert sum(site.duplicates for site in sites) > 0
    assert len({site.updates for site in sites}) == 1
    world.check_optimum()


class _CountsJoins(Session):
    joins = 0

    def handle(self, messages, now):
        self.joins += sum(message.sequence == 0 for message in messages)
        return super().handle(messages, now)


def test_a_site_that_calls_again_while_it_waits_changes_nothing(address):
    world = World("smtl-fista", tol=1e-8)
    world.session = _CountsJoins(world.coordinator, Recorder(10**9))
    delays = OffsetDelays(0.001, slow={"east": 40})
    with elsewhere(address, world.make, delays=delays, patience=0.01) as errors:
        ProcessesTransport(address=address, authkey=KEY).run(world.session, {})
    assert not errors
    assert world.session.joins > len(world.make)
    assert len({site.updates for site in world.coordinator.sites.values()}) == 1
    world.check_optimum()


def _stutter(address, make, trouble):
    """A site that says everything twice, and nonsense now and then."""
    site = make()
    line = Client(address, authkey=KEY)
    line.send_bytes(encode(site.pending))
    while (frame := line.recv_bytes()) != GOODBYE:
        if frame != HURRY and site.take(decode(frame)) is not None:
            line.send_bytes(encode(site.pending))
            line.send_bytes(encode(site.pending))
            if site.sequence == 5:
                with Client(address, authkey=KEY) as another:
                    another.send_bytes(b"nonsense")
                with socket.socket(socket.AF_UNIX) as stranger:
                    stranger.connect(address)
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                trouble.append(site.sequence)
    line.close()


def test_messages_that_come_twice_and_strangers_change_nothing(address):
    world, trouble = World(), []
    with Server(address, KEY) as server:
        assert Path(server.address).exists()
    stutterer = threading.Thread(target=_stutter, args=(address, world.make["north"], trouble))
    rest = {name: make for name, make in world.make.items() if name != "north"}
    began = threading.Timer(0.2, stutterer.start)
    began.start()
    with elsewhere(address, rest) as errors:
        ProcessesTransport(address=address, authkey=KEY).run(world.session, {})
    began.join()
    stutterer.join()
    assert trouble
    assert not errors
    assert world.coordinator.sites["north"].duplicates > 0
    world.check_optimum()


def test_a_stop_does_not_wait_for_sleeping_threads():
    world = World()
    session = world.watched_by(lambda session: session.coordinator.version >= 20 and session.coordinator.stop())
    ThreadsTransport(OffsetDelays(0.001, slow={"east": 60_000})).run(session, world.make)
    assert session.everyone_parted
    assert world.coordinator.sites["east"].updates == 0


@pytest.mark.parametrize("transport", ["threads", "sockets"])
def test_a_run_can_be_stopped_from_another_thread_while_everybody_sleeps(transport, address):
    world, delays = World(), OffsetDelays(60.0)
    timer = threading.Timer(0.3, world.coordinator.stop)
    timer.start()
    if transport == "threads":
        ThreadsTransport(delays).run(world.session, world.make)
    else:
        with elsewhere(address, world.make, delays=delays) as errors:
            ProcessesTransport(address=address, authkey=KEY).run(world.session, {})
        assert not errors
    timer.join()
    assert world.session.everyone_parted
    assert world.coordinator.version == 0


@pytest.mark.parametrize("transport", ["threads", "sockets"])
def test_a_callback_is_called_while_nothing_comes_and_can_end_the_run(transport, address):
    world, delays = World(), OffsetDelays(60.0)
    session = world.watched_by(lambda session: session.now > 0.3 and session.coordinator.stop())
    if transport == "threads":
        ThreadsTransport(delays).run(session, world.make)
    else:
        with elsewhere(address, world.make, delays=delays) as errors:
            ProcessesTransport(address=address, authkey=KEY).run(session, {})
        assert not errors
    assert session.everyone_parted
    assert world.coordinator.version == 0


def _liar(make):
    site = make()
    site.hello = lambda: Update(site.name, 0, curvature=np.full(len(site.losses), -1.0))
    site.join()
    return site


@pytest.mark.parametrize("transport", ["threads", "sockets", "simulated"])
def test_a_site_that_joins_with_what_cannot_be_ends_alone(transport, address):
    world = World(max_updates=60)
    make = world.make | {"east": partial(_liar, world.make["east"])}
    if transport == "threads":
        ThreadsTransport().run(world.session, make)
    elif transport == "simulated":
        SimulatedTransport().run(world.session, make)
    else:
        with elsewhere(address, make) as errors:
            ProcessesTransport(address=address, authkey=KEY).run(world.session, {})
        assert list(errors) == ["east"]
        assert "the coordinator does not want this site: its first message was refused (`curvature`" in str(errors["east"])
    assert world.session.failed == {
        "east": "its first message was refused (`curvature` is -1.0e+00; that of a convex loss is 0 or more)"
    }
    assert world.coordinator.sites["east"].updates == 0
    assert all(world.coordinator.sites[name].intercepts is not None for name in ("north", "south"))


@pytest.mark.parametrize("transport", ["threads", "sockets", "simulated"])
def test_a_site_that_joins_with_what_cannot_be_does_not_keep_a_synchronous_run_waiting(transport, address):
    world = World("smtl")
    make = world.make | {"east": partial(_liar, world.make["east"])}
    refused = pytest.raises(FitError, match="site east failed: its first message was refused")
    if transport == "sockets":
        with elsewhere(address, make, give_up=0.2), refused:
            ProcessesTransport(address=address, authkey=KEY).run(world.session, {})
    else:
        with refused:
            (ThreadsTransport() if transport == "threads" else SimulatedTransport()).run(world.session, make)


def _tell_lies(address):
    frames = (b"!5", b"![1, 2, 3]", b"!" + b"[" * 60_000, b"{" * 60_000, b"x\n", b'!["east", "\\ud800\\nall is well"]')
    for frame in frames:
        with Client(address, authkey=KEY) as line:
            line.send_bytes(frame)


def test_frames_of_any_kind_end_no_run_and_the_last_word_of_a_site_is_one_line(address):
    world = World()
    caller = threading.Timer(0.2, _tell_lies, args=(address,))
    caller.start()
    with elsewhere(address, world.make, delays=OffsetDelays(0.05)) as errors:
        ProcessesTransport(address=address, authkey=KEY).run(world.session, {})
    caller.join()
    assert world.session.failed == {"east": r"\ud800\nall is well"}
    assert list(errors) == ["east"]
    assert str(errors["east"]).endswith(r"does not want this site: \ud800\nall is well")
    assert all(world.coordinator.sites[name].intercepts is not None for name in ("north", "south"))


def _interrupt(session):
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_leaves_no_thread():
    world = World()
    with pytest.raises(KeyboardInterrupt):
        ThreadsTransport(OffsetDelays(60.0)).run(world.watched_by(_interrupt), world.make)


def test_an_interrupt_leaves_no_process_and_no_socket(address):
    world = World()
    sites = {name: make for name, make in world.make.items() if name != "north"}
    with elsewhere(address, sites, give_up=0.2), pytest.raises(KeyboardInterrupt):
        ProcessesTransport(address=address, authkey=KEY).run(world.watched_by(_interrupt), {"north": world.make["north"]})


# No guard: what runs here must not run again in the site's process.
COORDINATOR = """
import os, pickle, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_transports import KEY, World
from taskloom.sites._delays import OffsetDelays
from taskloom.sites._processes import ProcessesTransport

world, state, done = World(tol=1e-8), Path({state!r}), Path({done!r})
if state.exists():
    world.coordinator.load_state_dict(pickle.loads(state.read_bytes()))

def save(session):
    new = state.with_suffix(".new")
    new.write_bytes(pickle.dumps(session.coordinator.state_dict()))
    new.replace(state)

begun = world.coordinator.version
transport = ProcessesTransport(OffsetDelays(0.01), address={address!r}, authkey=KEY)
transport.run(world.watched_by(save), {{"south": world.make["south"]}})
done.write_bytes(pickle.dumps((begun, world.coordinator.finish(), world.coordinator.verdict())))
"""


def test_a_coordinator_that_is_killed_and_restarted_is_found_again(tmp_path, address):
    state, done, script = tmp_path / "state", tmp_path / "done", tmp_path / "coordinator.py"
    here = str(Path(__file__).parent)
    script.write_text(COORDINATOR.format(folder=here, state=str(state), done=str(done), address=address))
    world = World()
    sites = {name: make for name, make in world.make.items() if name != "south"}
    with elsewhere(address, sites, delays=OffsetDelays(0.01)) as errors:
        with subprocess.Popen([sys.executable, str(script)]) as first:
            while not (state.exists() and pickle.loads(state.read_bytes())["version"] >= 30):  # noqa: S301 - its own
                assert first.poll() is None
                time.sleep(0.02)
            orphans = psutil.Process(first.pid).children()
            first.kill()
        assert Path(address).exists()
        subprocess.run([sys.executable, str(script)], check=True)
    assert not errors
    assert psutil.wait_procs(orphans, timeout=10)[1] == []
    begun, W, verdict = pickle.loads(done.read_bytes())  # noqa: S301 - its own
    assert begun >= 30
    assert verdict.startswith("converged")
    world.check_optimum(W)


def test_what_cannot_be_sent_to_a_process_is_said_before_it_starts():
    world = World()
    with pytest.raises(OptionError, match=r"that of site 'north' cannot be sent to a process .*functools.partial"):
        ProcessesTransport().run(world.session, world.make | {"north": lambda: None})


def test_sites_that_are_not_those_of_the_run_are_refused(address):
    world = World()
    with pytest.raises(OptionError, match=r"'west' is none of this run's sites; known are north, east, south"):
        ThreadsTransport().run(world.session, world.make | {"west": _no_rows})
    for transport in (ThreadsTransport(), ProcessesTransport()):
        with pytest.raises(OptionError, match="`make_sites` has no site 'north'"):
            transport.run(world.session, {})


def test_a_wrong_key_and_a_wrong_name_are_told_to_the_site(address):
    world = World()
    stranger = World().make["east"]()
    stranger.name = "west"
    said = []

    def strangers():
        for site, key in ((stranger, KEY), (world.make["east"](), b"guessed")):
            try:
                serve_site(address, key, site)
            except (DataError, OptionError) as error:
                said.append(str(error))
        world.coordinator.stop()

    with elsewhere(address, world.make, delays=OffsetDelays(0.05)):
        caller = threading.Thread(target=strangers)
        caller.start()
        ProcessesTransport(address=address, authkey=KEY).run(world.session, {})
        caller.join()
    assert "it is called 'west', this run has north, east, south" in said[0]
    assert "`authkey` is not that of the coordinator" in said[1]
    assert not world.session.failed


def test_a_site_gives_up_when_there_is_no_coordinator(address):
    with pytest.raises(FitError, match=r"no coordinator at .* for 0.05 s"):
        serve_site(address, KEY, World().make["east"](), give_up=0.05)


def test_an_address_that_is_taken_is_refused_and_a_dead_one_is_taken_over(address):
    with Server(address, KEY), pytest.raises(OptionError, match="cannot listen there"):
        Server(address, KEY)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(address)
    with Server(address, KEY) as server:
        assert server.address == address


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ThreadsTransport(patience=0), "`patience`=0"),
        (lambda: ProcessesTransport(patience=-1.0), "`patience`=-1.0"),
        (lambda: ProcessesTransport(restarts=-1), "`restarts`=-1"),
        (lambda: ProcessesTransport(address="x"), "`address` and `authkey` go together"),
        (lambda: serve_site("x", KEY, World().make["east"](), patience=0), "`patience`=0"),
        (lambda: serve_site("x", KEY, World().make["east"](), give_up=0), "`give_up`=0"),
    ],
)
def test_options_out_of_range_are_refused(make, said):
    with pytest.raises(OptionError, match=said):
        make()
