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
from taskloom.sites import OffsetDelays, ProcessesTransport

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
