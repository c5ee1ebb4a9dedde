"""Engines for sites: round trips beside a bare echo on the same engine, time to a gap on School, and memory.

1. Updates a second and the median round trip of a site, for columns of 1 kB and 1 MB, beside an application on the same engine
   that sends as many bytes back as it gets and does nothing else; in turn, on Ray in the same actors, medians over rounds.
   Target: at most 1.2 times its round trip. The coordinator's penalty is the pull to the mean, so that next to nothing is
   worked out. Trips are timed at the sites, once all of them are there.
2. Seconds until the job of School over three sites is done with a relative gap of at most 1e-4, start included, and without it.
3. Memory of the processes while it runs.

Letters: d numbers of a message.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import polars as pl
import psutil

from _engine_pings import both_here, both_on_ray, echo_processes, echo_threads, ping_here
from _sites_data import Pairs, school
from _timing import publish, trip_row
from taskloom.engines import JobResult, load_rows, read_job, run_job
from taskloom.engines._job import Job
from taskloom.linear import Fista, Labels, OwnRows, SolverOptions, certify, minimize, smooth_problem
from taskloom.sites import ProcessesTransport, ThreadsTransport

SIZES = {"1 kB": 128, "1 MB": 131_072}
SITES = (1, 4)
ROUNDS = 5
# Trips of each site, by size: enough for a median.
TRIPS = {"threads": (1000, 30), "processes": (500, 30), "ray": (300, 60)}
# The loosest tolerance, of some, at which School's gap is below 1e-4.
TOLERANCE = 1e-3

# Taskloom's application and a bare one, in turn; the trips of each are left in a folder of its own.
Both = Callable[[list[str], int, int, tuple[str, str]], None]
APPS: dict[str, Both] = {
    "threads": partial(both_here, partial(ping_here, ThreadsTransport()), echo_threads),
    "processes": partial(both_here, partial(ping_here, ProcessesTransport()), echo_processes),
    "ray": both_on_ray,
}


@contextmanager
def ray_for(engine: str) -> Generator[None]:
    """A small Ray, where the engine is one."""
    if engine != "ray":
        yield
        return
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    there = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init("local", num_cpus=2, object_store_memory=200_000_000, runtime_env=there, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def timed(both: Both, sites: int, d: int, trips: int) -> list[tuple[float, float]]:
    """Of both applications the median round trip in seconds, and updates a second of all sites together."""
    names, found = [f"site{t}" for t in range(sites)], []
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as echo:
        both(names, d, trips, (ours, echo))
        for folder in (ours, echo):
            each = [np.load(Path(folder) / f"{name}.npy")[-trips:] for name in names]
            # The last ones, when all are there: the rate of each is the inverse of its mean trip.
            found.append((float(np.median(np.concatenate(each))), float(sum(1 / seconds.mean() for seconds in each))))
    return found


def trips(engine: str) -> list[dict[str, Any]]:
    """A row for each size and number of sites."""
    rows = []
    for (size, d), count in zip(SIZES.items(), TRIPS[engine], strict=True):
        for sites in SITES:
            found = [timed(APPS[engine], sites, d, count) for _ in range(ROUNDS)]
            seconds, rates = np.array(found).transpose(2, 0, 1)
            rows.append(trip_row(engine, size, sites, seconds, rates))
            print(rows[-1], file=sys.stderr)
    return rows


class Memory(threading.Thread):
    """The greatest memory of this process's children, each and together, in MB, until told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.enough, self.most, self.together, self.processes = threading.Event(), 0.0, 0.0, 0

    def run(self) -> None:
        """Look ten times a second."""
        while not self.enough.wait(0.1):
            sizes = []
            for child in psutil.Process().children(recursive=True):
                try:
                    sizes.append(child.memory_full_info().uss / 1e6)
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.most = max([self.most, *sizes])
            if sum(sizes) > self.together:
                self.together, self.processes = sum(sizes), len(sizes)


def school_job(folder: Path, pairs: Pairs) -> Job:
    """Three sites, each with a third of the schools in a table of its own."""
    features, sites = [f"x{j}" for j in range(pairs[0][0].shape[1])], {}
    for name, held in zip(("north", "south", "west"), np.array_split(np.arange(len(pairs)), 3), strict=True):
        parts = [
            pl.DataFrame(pairs[t][0], schema=features).with_columns(y=pl.Series(pairs[t][1]), school=pl.lit(str(t)))
            for t in held
        ]
        pl.concat(parts).write_parquet(folder / f"{name}.parquet")
        sites[name] = {"tasks": [str(t) for t in held], "data": f"{name}.parquet"}
    model = {"penalty": {"trace": 0.1}, "features": features, "target": "y", "by": "school", "tol": TOLERANCE}
    return read_job({"sites": sites} | model, folder)


def gap(job: Job, result: JobResult) -> float:
    """How far above the optimum the result is, relative to it."""
    rows = [each for site in job.sites for each in load_rows(job.tables[site], job)]
    y, weight = (np.concatenate([getattr(each, name) for each in rows]) for name in ("y", "weight"))
    problem = smooth_problem(OwnRows([each.X for each in rows]), Labels(y, weight, [each.loss for each in rows]))
    best = minimize(problem, job.make_penalty(), solver=Fista(), options=SolverOptions(tol=1e-10, max_iter=50_000))
    optimum, found = (certify(problem, job.make_penalty(), W).objective for W in (best.W, result.run.W))
    return (found - optimum) / optimum


def to_a_gap(engine: str, pairs: Pairs) -> dict[str, Any]:
    """School, from the command to the files."""
    with tempfile.TemporaryDirectory() as folder:
        job, memory = school_job(Path(folder), pairs), Memory()
        memory.start()
        began = perf_counter()
        result = run_job(job, engine)
        seconds = perf_counter() - began
        memory.enough.set()
        memory.join()
        first = min(trip.arrived_at for trip in result.run.trips)
        return {
            "engine": engine,
            "seconds": seconds,
            "from the first update on": result.run.seconds - first,
            "updates": result.run.updates,
            "relative gap": gap(job, result),
            "processes beside this one": memory.processes,
            "MB of all": memory.together,
            "MB of the greatest": memory.most,
        }


def main() -> None:
    """Everything, or the engines named on the command line."""
    engines = sys.argv[1:] or list(APPS)
    rows = []
    for engine in engines:
        with ray_for(engine):
            rows += trips(engine)
    publish("engines_trips", f"Round trips, medians of {ROUNDS} rounds in turn with a bare echo", rows)
    pairs = school()
    if pairs is not None:
        publish(
            "engines_school", "School over three sites, from the command to the files", [to_a_gap(e, pairs) for e in engines]
        )


if __name__ == "__main__":
    main()
