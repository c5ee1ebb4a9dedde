"""When do selective task group updates pay? Against as many steps without a choice of groups, each at its own learning rate.

Synth-9 (nine regressions in three clusters of hidden features) and Digits-10 (five questions about each of two digits), with
small nets: `_selective_settings.py`. 1,000 batches of 64 rows, Adam, a rate that falls polynomially (power 0.9), four rates,
groups anew every 5 batches, beta 0.01. What is held against `selective`:

- `joint`: the same batches, one step down the sum of all losses on each.
- `joint x M`: as many steps on each batch as `selective` made there with the same seed and rate, at equal steps and
  passes through the trunk. `joint, fresh batches`: three (two for Digits-10) times the batches, one step each.
- `random groups`: as many groups in each batch, the warm-up included. `planted groups`: the clusters of the data.
  `mixed groups`: as many groups, each with tasks of every cluster. Both after the same warm-up. `each task alone`: K steps.
- `selective` with its groups by the median preference and by preference 0, with affinity to first order, and as published.

`Synth-9, own rows`: 16 rows of its own for each task in a batch, 800 batches; steps of groups cost no more passes than a joint
one. `SGD`: without momentum, at larger rates. `no trunk momentum`: beta1 = 0 in the shared layers.

Each training that is finished goes into `results/selective_runs.jsonl`; started again, the script goes on from there.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from _selective_report import report
from _selective_runs import GUIDE, SINGLE, STILL, Experiment, read_runs, run_unit
from _timing import RESULTS

# `selective` comes first: others make as many steps.
METHODS = (
    SINGLE,
    GUIDE,
    "joint",
    "joint x M",
    "random groups",
    "planted groups",
    "mixed groups",
)
# With half as many seeds, so that all of it takes less than half an hour on two cores.
MORE_METHODS = (
    "joint, fresh batches",
    "each task alone",
    "selective, median",
    "selective, preference 0",
    "selective, first order",
    "selective, as published",
)
STILL_METHODS = tuple(name + STILL for name in (GUIDE, "joint", "joint x M", "random groups"))
GROUPS = (GUIDE, "joint", "random groups", "planted groups", "mixed groups")
EXPERIMENTS = (
    Experiment("Synth-9", "Synth-9", METHODS),
    Experiment("Digits-10", "Digits-10", METHODS),
    Experiment("Synth-9, no trunk momentum", "Synth-9", STILL_METHODS),
    Experiment("Digits-10, no trunk momentum", "Digits-10", STILL_METHODS),
    Experiment("Synth-9, own rows", "Synth-9", GROUPS, batches=800, rows=16, own_rows=True),
    Experiment(
        "Synth-9, SGD", "Synth-9", (*GROUPS, "joint x M", "selective, as published"), (0.025, 0.05, 0.1, 0.2), optimizer="SGD"
    ),
)
FULL = {"Synth-9", "Digits-10"}
LEFT_OUT = "Half as many seeds for own rows, SGD, no trunk momentum, and for " + ", ".join(MORE_METHODS) + "."


def in_order(experiments: list[Experiment], n_seeds: int, n_side: int) -> list[tuple[Experiment, int]]:
    """What matters most first, so that a run that is stopped early has something of everything."""
    full = [one for one in experiments if one.name in FULL]
    more = [replace(one, methods=MORE_METHODS) for one in full]
    side = [one for one in experiments if one.name not in FULL]
    first, last = range(min(3, n_side)), range(3, n_side)
    stages = [(full, first), (side[2:], first), (more, first), (full, range(3, n_seeds))]
    stages += [(side[2:], last), (more, last), (side[:2], range(n_side))]
    return [(one, seed) for several, seeds in stages for seed in seeds for one in several]


def show(path: Path, experiments: list[Experiment], name: str) -> None:
    """Tables of what is in the file."""
    runs = read_runs(path)
    report(runs, experiments, METHODS + MORE_METHODS, name)
    hours = sum(run["seconds"] for run in runs.values()) / 3600
    print(f"\n{len(runs)} trainings, {60 * hours:.0f} minutes of one core. {LEFT_OUT}")


def main() -> None:
    """Run what is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--side-seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="150 batches at two rates, to see whether it runs")
    parser.add_argument("--show", action="store_true", help="tables of what is in the file, without training")
    how = parser.parse_args()
    name = "selective_quick" if how.quick else "selective"
    experiments = [replace(one, batches=150, rates=one.rates[1:3]) if how.quick else one for one in EXPERIMENTS]
    RESULTS.mkdir(exist_ok=True)
    path = str(RESULTS / f"{name}_runs.jsonl")
    units = [(one, rate, seed, path) for one, seed in in_order(experiments, how.seeds, how.side_seeds) for rate in one.rates]
    if how.show:
        show(Path(path), experiments, name)
        return
    start = perf_counter()
    with ProcessPoolExecutor(how.workers) as pool:
        for n, future in enumerate(as_completed([pool.submit(run_unit, unit) for unit in units])):
            print(f"{n + 1} of {len(units)}: {future.result()} runs, {perf_counter() - start:.0f} s", flush=True)
    show(Path(path), experiments, name)


if __name__ == "__main__":
    main()
