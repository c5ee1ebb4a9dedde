"""Real site processes that are stopped, as by a machine that hangs: they end no line, and are found all the same."""

import os
import re
import signal
import time
from functools import partial

import numpy as np
import polars as pl
import psutil
import pytest

from taskloom.engines import read_job
from taskloom.engines._rows import make_job_site
from taskloom.engines._session import open_session
from taskloom.linear import Trace
from taskloom.sites import OffsetDelays, ProcessesTransport, fit
from taskloom.tasks import FitError, OptionError

SITES = ("north", "south")


@pytest.fixture(autouse=True)
def _nothing_hangs_and_nothing_is_left():
    def too_long(*_):
        raise TimeoutError("the run hangs")

    before = set(psutil.Process().children())
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(100)
    yield
    signal.alarm(0)
    assert set(psutil.Process().children()) <= before


def job_of(folder, **settings):
    """One task a site, with a table of its own."""
    rng = np.random.default_rng(0)
    for name in SITES:
        X = rng.normal(size=(40, 3))
        pl.DataFrame(X, schema=["a", "b", "c"]).with_columns(y=X @ np.ones(3) + rng.normal(size=40)).write_csv(
            folder / f"{name}.csv"
        )
    sites = {name: {"tasks": [f"{name} task"], "data": f"{name}.csv", "target": "y"} for name in SITES}
    job = {"sites": sites, "features": ["a", "b", "c"], "penalty": {"trace": 0.1}, "tol": 0}
    return read_job(job | settings, folder)


class Hang:
    """A machine that hangs: site processes are stopped once all have joined, and then time passes.

    Args:
        job: that is run.
        victims: how many are stopped, in the order in which they were started.
        must_part: whether the others must have parted before time passes.
    """

    def __init__(self, job, victims, *, must_part):
        self.victims, self.must_part = victims, must_part
        self.stopped, self.passed, self.before = [], 0.0, set(psutil.Process().children())
        self.session = open_session(job, self.watch)
        sites = {name: partial(make_job_site, table, job) for name, table in job.tables.items()}
        ProcessesTransport(OffsetDelays(0.02), clock=lambda: time.perf_counter() + self.passed).run(self.session, sites)

    def watch(self, progress):
        states = list(progress.states.values())
        if not self.stopped and states == ["there"] * len(SITES):
            mine = sorted(set(psutil.Process().children()) - self.before, key=lambda child: child.create_time())
            self.stopped = [child.pid for child in mine[: self.victims]]
            for pid in self.stopped:
                os.kill(pid, signal.SIGSTOP)
        elif self.stopped and not self.passed and (states.count("done") == len(SITES) - self.victims or not self.must_part):
            self.passed = 1000.0


def test_a_site_that_hangs_while_the_others_part_ends_the_run_without_it(tmp_path):
    hang = Hang(job_of(tmp_path, give_up=10_000.0, max_updates=100), 1, must_part=True)
    (lost,) = hang.session.failed
    assert re.fullmatch(r"silent for 1\d\d\d s", hang.session.failed[lost])
    parted = [name for name, site in hang.session.coordinator.sites.items() if site.intercepts is not None]
    assert sorted([lost, *parted]) == list(SITES)
    assert hang.session.coordinator.version == 100


def test_sites_that_all_hang_end_the_run(tmp_path):
    hang = Hang(job_of(tmp_path, max_updates=10**9), 2, must_part=False)
    assert hang.session.status == "too few sites"
    assert "0 of 2 sites are left, need 1; lost north: silent for 1" in hang.session.message


class Impatience:
    """A `fit` whose site processes are stopped once all have joined; from then on seconds pass twenty times as fast.

    Args:
        victims: how many are stopped, in the order in which they were started.
        revive: whether they go on once they have been given up.
        settings: of `fit`.
    """

    def __init__(self, victims, *, revive=False, **settings):
        self.victims, self.revive, self.stopped, self.given_up = victims, revive, [], {}
        self.stopped_at, self.before = None, set(psutil.Process().children())
        rng = np.random.default_rng(0)
        self.pairs = {
            name: (X, X @ np.ones(3) + rng.normal(size=40)) for name, X in zip(SITES, rng.normal(size=(2, 40, 3)), strict=True)
        }
        carrier = ProcessesTransport(OffsetDelays(0.02), clock=self.clock)
        self.result = fit(self.pairs, Trace(0.1), transport=carrier, callback=self.watch, give_up=30.0, **settings)

    def clock(self):
        now = time.perf_counter()
        return now if self.stopped_at is None else now + 19 * (now - self.stopped_at)

    def watch(self, session):
        if not self.stopped and all(site.updates for site in session.coordinator.sites.values()):
            mine = sorted(set(psutil.Process().children()) - self.before, key=lambda child: child.pid)
            self.stopped = mine[: self.victims]
            for each in self.stopped:
                each.suspend()
            self.stopped_at = time.perf_counter()
        self.given_up |= session.failed
        if self.revive and self.given_up:
            for each in self.stopped:
                each.resume()


def test_a_fit_goes_on_without_a_site_that_hangs_and_says_so():
    hang = Impatience(1)
    assert not hang.result.converged
    assert "not converged: site north was lost" in hang.result.message
    (note,) = hang.result.notes
    assert re.fullmatch(r"site north: silent for \d+ s", note)
    assert np.isnan(hang.result.intercepts).tolist() == [True, False]


def test_a_site_that_was_given_up_is_heard_again():
    hang = Impatience(1, revive=True, tol=0.0, max_rounds=300)
    assert re.fullmatch(r"silent for \d+ s", hang.given_up["north"])
    assert hang.result.notes == []
    assert all(site.updates >= 300 for site in hang.result.sites.values())


def test_a_fit_ends_when_all_its_sites_hang():
    with pytest.raises(FitError, match=r"no site is left; site north failed: silent for \d+ s; site south failed: silent for"):
        Impatience(2, tol=0.0)


def test_a_fit_in_which_all_wait_for_all_ends_when_one_hangs():
    with pytest.raises(FitError, match=r"site north failed: silent for \d+ s; all others wait for it"):
        Impatience(1, method="smtl", tol=0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"give_up": 0}, "`give_up`=0: need a number above 0"),
        ({"give_up": "soon"}, "`give_up`='soon': need a number above 0"),
        ({"give_up": float("nan")}, "`give_up`=nan: need a number above 0"),
        ({"give_up": 9.0, "transport": "threads"}, "`give_up` is for sites that can hang by themselves"),
        ({"give_up": 9.0, "transport": "simulated"}, "use transport='processes'"),
    ],
)
def test_limits_that_cannot_be_are_refused(settings, message):
    with pytest.raises(OptionError, match=message):
        fit([(np.ones((3, 2)), np.ones(3))], Trace(0.1), **({"transport": "processes"} | settings))
