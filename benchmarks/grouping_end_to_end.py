"""Groups of tasks from measuring to test rows: is any way of choosing them better than one net for all, or than chance?

Five sets of tasks, 10 seeds, each with a split, initial weights and batches of its own; budgets of 2, 3 and 4 nets. Gain: 1 -
test loss / test loss of the task's single net, mean over tasks. Groups are chosen on training rows (`HOA` and `verified` on
validation rows too); the learning rate of every net, single ones included, and when it stops, on validation rows. `random`:
each task in one of b groups by chance. `HOA`: gains of trained pairs, one seed. `verified`: `refine` from `samplewise_cosine`,
12 groups trained at the most. A seed that is finished stands in `results/grouping_end_to_end_runs.jsonl` and is not run again.
Needs the data folder: TASKLOOM_DATA, else ../shared/data. 10 seeds take about 50 minutes of one core, 30 of them for landmine.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from _grouping_data import DATA, SETS
from _grouping_runs import ALL_IN_ONE, BUDGETS, MEASURES, METHODS, RANDOM, Settings, read_runs, run_unit
from _timing import RESULTS, publish
from taskloom.relate import reliability
from taskloom.study import paired_interval

RUNS = RESULTS / "grouping_end_to_end_runs.jsonl"
SETTINGS = Settings()
# Of the three sets that are split whole; too much for the others, of which each seed draws a part.
TEST_RATIO = 1 / 3
Runs = list[dict[str, Any]]


def run_all(names: list[str], seeds: int) -> None:
    """All seeds of the small sets, and then those of the set with hundreds of pairs."""
    done = read_runs(RUNS, SETTINGS)
    large = [name for name in names if name.startswith("landmine")]
    order = [(name, seed) for seed in range(seeds) for name in names if name not in large]
    order += [(name, seed) for name in large for seed in range(seeds)]
    for name, seed in order:
        if (name, seed) in done:
            continue
        run = run_unit(name, seed, SETTINGS)
        RESULTS.mkdir(exist_ok=True)
        with RUNS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")
        print(f"{name}, seed {seed}: {run['nets']} groups", file=sys.stderr)


def gains_row(name: str, runs: Runs, budget: int) -> dict[str, Any]:
    """Mean gains over single nets in percent."""
    means = {method: float(np.mean(column(runs, method, budget))) for method in METHODS}
    return {"tasks": name, "nets": budget, "seeds": len(runs)} | {method: f"{mean:+.1f}" for method, mean in means.items()}


def column(runs: Runs, method: str, budget: int) -> np.ndarray:
    """(S,) gains on test rows in percent."""
    return 100 * np.array([run["gains"]["test"][f"{method}, {budget}"] for run in runs])


def difference_row(name: str, runs: Runs, budget: int, base: str) -> dict[str, Any]:
    """Paired differences to a method, with 95 % intervals."""
    row: dict[str, Any] = {"tasks": name, "nets": budget}
    for method in METHODS:
        if method == base:
            continue
        found = paired_interval(column(runs, method, budget) - column(runs, base, budget), TEST_RATIO)
        row[method] = f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"
    return row


def correlation(one: np.ndarray, other: np.ndarray, *, within: bool) -> float:
    """Of the off-diagonal of (K, K); within: less each receiver's mean."""
    off = ~np.eye(len(one), dtype=bool)
    left, right = (matrix[off].reshape(len(one), -1) for matrix in (one, other))
    if within:
        left, right = (matrix - matrix.mean(axis=1, keepdims=True) for matrix in (left, right))
    if np.std(left) == 0 or np.std(right) == 0:
        return np.nan
    return float(np.corrcoef(left.ravel(), right.ravel())[0, 1])


def correlation_rows(name: str, runs: Runs) -> list[dict[str, Any]]:
    """Affinity of one seed with the mean gains of pairs over the other seeds; and how reliable such gains are."""
    gains = np.array([run["pair gains"]["test"] for run in runs])
    S, K = gains.shape[:2]
    off, rows = ~np.eye(K, dtype=bool), []
    for within in (False, True):
        values = gains[:, off].reshape(S, K, K - 1)
        if within:
            values = values - values.mean(axis=2, keepdims=True)
        flat = values.reshape(S, -1)
        row: dict[str, Any] = {"tasks": name, "of": "within receivers" if within else "all pairs", "seeds": S}
        row["half of the seeds with the other"] = round(reliability(flat), 2)
        row["mean of all seeds, stepped up"] = round(reliability(flat, whole=True), 2)
        for measure in MEASURES:
            found = [
                correlation(np.array(run["affinities"][measure]), np.delete(gains, s, axis=0).mean(axis=0), within=within)
                for s, run in enumerate(runs)
            ]
            row[measure] = f"{np.mean(found):.2f}"
        rows.append(row)
    return rows


def seconds_row(name: str, runs: Runs) -> dict[str, Any]:
    """Median seconds of the processor for measuring and choosing."""
    names = [*MEASURES, "verified"]
    return {"tasks": name} | {method: float(np.median([run["seconds"][method] for run in runs])) for method in names}


def tables(names: list[str], seeds: int) -> None:
    """Of all that was run."""
    done = read_runs(RUNS, SETTINGS)
    runs = {name: [run for (each, seed), run in sorted(done.items()) if each == name and seed < seeds] for name in names}
    runs = {name: found for name, found in runs.items() if len(found) > 1}
    if not runs:
        sys.exit("no runs to tell of")
    cells = [(name, found, budget) for name, found in runs.items() for budget in BUDGETS]
    publish("grouping_end_to_end", "Gain over single nets on test rows, percent", [gains_row(*cell) for cell in cells])
    for label, base in (("random", RANDOM), ("all_in_one", ALL_IN_ONE), ("labels", "labels")):
        rows = [difference_row(*cell, base) for cell in cells]
        publish(f"grouping_end_to_end_to_{label}", f"Less the gain of {base}, percent, 95 % interval", rows)
    rows = [row for name, found in runs.items() for row in correlation_rows(name, found)]
    publish("grouping_end_to_end_correlation", "Correlation with the measured gains of pairs", rows)
    publish("grouping_end_to_end_seconds", "Seconds of choosing", [seconds_row(*each) for each in runs.items()])


def main() -> None:
    """Runs what is missing, and prints all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=list(SETS), help=f"some of {', '.join(SETS)}")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tables", action="store_true", help="of what has been run; run nothing")
    asked = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"no folder {DATA}: set TASKLOOM_DATA")
    torch.set_num_threads(1)
    print(asdict(SETTINGS), file=sys.stderr)
    if not asked.tables:
        run_all(asked.sets, asked.seeds)
    tables(asked.sets, asked.seeds)


if __name__ == "__main__":
    main()
