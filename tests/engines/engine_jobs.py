"""Jobs over three sites with their tables on disk, and their optimum by a solver that knows nothing of sites or engines.

Letters: K tasks, n rows of a task, d features.
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import psutil
import yaml
from safetensors import safe_open
from scipy.io import loadmat

from taskloom.engines import load_rows, read_job, run_job
from taskloom.linear import Fista, Labels, OwnRows, SolverOptions, certify, minimize, smooth_problem

SITES = ("north", "south", "west")


def make_pairs(seed=0, K=6, d=5, n=40, loss="squared"):
    """Tasks of uneven size with own rows, near a common subspace."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(d, 2)) @ rng.normal(size=(2, K))
    Xs = [rng.normal(size=(n + 6 * t, d)) for t in range(K)]
    scores = [X @ W[:, t] + 0.5 + rng.normal(size=len(X)) for t, X in enumerate(Xs)]
    return [(X, (z > 0).astype(int) if loss == "logistic" else z) for X, z in zip(Xs, scores, strict=True)]


def school_pairs(folder):
    """139 schools, on features standardised over all of them; the constant one is left out."""
    cells = loadmat(folder / "school" / "school.mat")
    blocks = [np.asarray(X, dtype=float)[:, :27] for X in cells["X"].ravel()]
    every = np.concatenate(blocks)
    return [
        ((X - every.mean(0)) / every.std(0), y.ravel().astype(float)) for X, y in zip(blocks, cells["Y"].ravel(), strict=True)
    ]


def landmine_pairs(folder):
    """29 fields."""
    cells = loadmat(folder / "landmine" / "LandmineData.mat")
    features, labels = cells["feature"].ravel(), cells["label"].ravel()
    return [(np.asarray(X, dtype=float), y.ravel().astype(int)) for X, y in zip(features, labels, strict=True)]


def write_job(folder, pairs, **settings):
    """A job file over three sites, each with a third of the tasks in a table of its own."""
    names = [f"task {t}" for t in range(len(pairs))]
    sites, features = {}, [f"x{j}" for j in range(pairs[0][0].shape[1])]
    folder.mkdir(parents=True, exist_ok=True)
    for site, held in zip(SITES, np.array_split(np.arange(len(pairs)), len(SITES)), strict=True):
        parts = [
            pl.DataFrame(pairs[t][0], schema=features).with_columns(y=pl.Series(pairs[t][1]), of=pl.lit(names[t])) for t in held
        ]
        pl.concat(parts).write_parquet(folder / f"{site}.parquet")
        sites[site] = {"tasks": [names[t] for t in held], "data": f"{site}.parquet"}
    job = {"sites": sites, "features": features, "target": "y", "by": "of", "penalty": {"trace": 0.1}, "tol": 1e-9}
    return read_job(job | settings, folder)


def problem_of(job):
    """The losses of all tasks, out of all tables together."""
    rows = [each for site in job.sites for each in load_rows(job.tables[site], job)]
    labels = Labels(
        np.concatenate([each.y for each in rows]),
        np.concatenate([each.weight for each in rows]),
        [each.loss for each in rows],
        fit_intercept=job.fit_intercept,
    )
    return smooth_problem(OwnRows([each.X for each in rows]), labels)


def relative_gap(job, W):
    """How far the objective at W is above that of the solver's solution, relative to it."""
    problem, penalty = problem_of(job), job.make_penalty()
    solution = minimize(problem, penalty, solver=Fista(), options=SolverOptions(tol=1e-10, max_iter=100_000))
    best, found = (certify(problem, penalty, each).objective for each in (solution.W, W))
    return abs(found - best) / abs(best)


def saved_updates(job):
    """How far the last save is; 0 without one."""
    try:
        with safe_open(job.checkpoint / "coordinator.safetensors", framework="np") as file:
            return json.loads(file.metadata()["state"])["version"]
    except (OSError, ValueError):
        return 0


def interrupt(job, *options):
    """Carry a job out by `taskloom sites run` and interrupt it, as a terminal does: all of its group are.

    Returns:
        Its exit code, what it said on standard error, and the processes that it has left behind.
    """
    path = job.out.parent / "job.yml"
    path.write_text(yaml.safe_dump(job.to_dict(tables=True)), encoding="utf-8")
    start = [sys.executable, "-m", "taskloom", "sites", "run", str(path), *options]
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(start, stderr=subprocess.PIPE, env=settings, text=True, start_new_session=True) as process:
        while saved_updates(job) < 50:
            assert process.poll() is None
            time.sleep(0.05)
        started = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        told = process.communicate(timeout=60)[1]
    assert started, "somebody has taken part"
    left = psutil.wait_procs(started, timeout=10)[1]
    return process.returncode, told, [each for each in left if each.status() != psutil.STATUS_ZOMBIE]


def assert_interrupt_is_resumed(folder, engine):
    """An interrupted command leaves no process, says how to go on, and what it saved can be gone on with."""
    job = write_job(folder, make_pairs(), tol=0, checkpoint_every=10)
    code, told, left = interrupt(job, "--engine", engine)
    assert code == 130
    assert f"stopped; go on with `taskloom sites resume {folder / 'job.yml'} --engine {engine}`" in told
    assert left == []
    assert run_job(write_job(folder, make_pairs()), resume=True).converged
