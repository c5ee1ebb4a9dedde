"""NVIDIA FLARE for sites: round trips beside a bare echo in the same federation, time to a gap on School, and memory.

As `engines.py` for the other engines: a coordinator and its sites are start-up kits of one project on the loopback, with mutual
TLS; both applications run in the same job and the same processes, in turn. School also in FLARE's simulator.

Letters: d numbers of a message.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from _flare_pings import CLASSES, PingCoordinator, PingSite
from _sites_data import school
from _timing import publish, trip_row
from engines import SIZES, Memory, school_job
from taskloom.engines import FlareResult, Job, load_rows, simulate, submit
from taskloom.engines._flare_kits import ALLOW_LIST, RESOURCES
from taskloom.engines._flare_session import AdminSession
from taskloom.linear import Fista, Labels, OwnRows, SolverOptions, certify, minimize, smooth_problem
from taskloom.study import load_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "engines"))
from flare_federation import SERVER, Federation

TRIPS, ROUNDS = {"1 kB": 150, "1 MB": 30}, 8


def federation(folder: Path, tables: dict[str, dict[str, str]]) -> Federation:
    """One that also accepts what this benchmark has FLARE build."""
    made = Federation(folder, tables)
    for name in (SERVER, *made.sites):
        path = made.kits[name] / RESOURCES
        policy = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(policy | {ALLOW_LIST: [*policy[ALLOW_LIST], *CLASSES]}), encoding="utf-8")
    return made


def export(names: list[str], d: int, trips: int, times: Path, folder: Path) -> Path:
    """The job of both applications."""
    from nvflare.collab import CollabRecipe

    class Bare(CollabRecipe):
        """Without code."""

        @staticmethod
        def _user_source_entries(objs: list[object]) -> list[tuple[str, str | None]]:  # noqa: ARG004
            return []

    recipe = Bare(f"ping{d}", PingCoordinator(names, d, trips, ROUNDS, str(times)), PingSite(), min_clients=len(names))
    recipe.set_per_site_config({name: {} for name in names})
    recipe._job.set_app_packages(["taskloom", "_flare_pings"])
    recipe.export(str(folder))
    return folder / f"ping{d}"


def trips(admin: AdminSession, names: list[str], folder: Path) -> list[dict[str, Any]]:
    """A row for each size, with these sites."""
    rows = []
    for size, d in SIZES.items():
        times = folder / f"times-{len(names)}-{d}"
        status = admin.await_end(admin.submit(export(names, d, TRIPS[size], times, folder / f"job-{len(names)}-{d}")))
        if status != "COMPLETED":
            raise RuntimeError(f"the benchmark's job ended as {status}")
        seconds, rates = np.empty((ROUNDS, 2)), np.empty((ROUNDS, 2))
        for turn in range(ROUNDS):
            for at, kind in enumerate((1, 0)):
                each = [np.load(times / f"{kind}-{turn}" / f"{name}.npy")[: TRIPS[size]] for name in names]
                seconds[turn, at] = np.median(np.concatenate(each))
                rates[turn, at] = sum(1 / one.mean() for one in each)
        rows.append(trip_row("FLARE, mutual TLS", size, len(names), seconds, rates))
        print(rows[-1], file=sys.stderr)
    return rows


def gap(job: Job, W: np.ndarray) -> float:
    """How far above the optimum the model is, relative to it."""
    rows = [each for site in job.sites for each in load_rows(job.tables[site], job)]
    y, weight = (np.concatenate([getattr(each, name) for each in rows]) for name in ("y", "weight"))
    problem = smooth_problem(OwnRows([each.X for each in rows]), Labels(y, weight, [each.loss for each in rows]))
    best = minimize(problem, job.make_penalty(), solver=Fista(), options=SolverOptions(tol=1e-10, max_iter=50_000))
    optimum, found = (certify(problem, job.make_penalty(), each).objective for each in (best.W, W))
    return (found - optimum) / optimum


def to_a_gap(engine: str, job: Job, carry_out: Callable[[], FlareResult]) -> dict[str, Any]:
    """School, from the command to the files, and the memory of all processes beside this one."""
    memory = Memory()
    memory.start()
    began = perf_counter()
    result = carry_out()
    seconds = perf_counter() - began
    memory.enough.set()
    memory.join()
    W = np.hstack(load_model(result.out / "model").predictor.coefficients)
    return {
        "engine": engine,
        "seconds": seconds,
        "coordinator's seconds": result.values["seconds"],
        "updates": result.values["updates"],
        "relative gap": gap(job, W),
        "processes beside this one": memory.processes,
        "MB of all": memory.together,
        "MB of the greatest": memory.most,
    }


def main() -> None:
    """Everything, in one federation."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    pairs = school()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rng = np.random.default_rng(0)
        job = school_job(folder, pairs or [(rng.normal(size=(40, 5)), rng.normal(size=40)) for _ in range(6)])
        tables = {site: {key: v for key, v in each.to_dict().items() if key != "site"} for site, each in job.tables.items()}
        made = federation(folder, tables)
        try:
            made.start()
            admin, names = AdminSession(made.admin, 60.0), list(tables)
            admin.await_sites(names)
            school_rows = [to_a_gap("FLARE, mutual TLS", job, lambda: submit(job, made.admin))]
            rows = [row for sites in (names[:1], names) for row in trips(admin, sites, folder)]
            admin.close()
        finally:
            made.close()
        school_rows.append(to_a_gap("FLARE's simulator", job, lambda: simulate(job)))
    publish("engines_flare_trips", f"Round trips, medians of {ROUNDS} rounds in turn with a bare echo", rows)
    publish("engines_flare_school", "School over three sites, from the command to the files", school_rows)


if __name__ == "__main__":
    main()
