"""Tables of `selective.py` out of the file of its trainings.

Letters: K tasks, M groups of them, S seeds.

The score of a training is its mean gain over single tasks in percent: of each task's accuracy, or of its squared error on test
rows, against a net of its own at the best rate for that seed. A method is scored at every rate, and at its own best, the
one with the greatest mean over all seeds: on test rows, so a little too good, for all methods alike. Differences are paired by
seed, with the t interval at 95 %; nothing corrects for how many there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from _selective_runs import GUIDE, SINGLE, STILL, Experiment
from _timing import publish

Runs = dict[tuple[str, str, float, int], dict[str, Any]]
PUBLISHED = "selective, as published"
PAIRS = (
    (GUIDE, "joint"),
    (GUIDE, "joint x M"),
    (GUIDE, "joint, fresh batches"),
    (GUIDE, "random groups"),
    (GUIDE, "planted groups"),
    (GUIDE, "mixed groups"),
    (GUIDE, "each task alone"),
    (GUIDE, "selective, median"),
    (GUIDE, "selective, preference 0"),
    (GUIDE, "selective, first order"),
    (GUIDE, PUBLISHED),
    ("joint x M", "joint"),
    ("random groups", "joint"),
    ("planted groups", "random groups"),
    ("mixed groups", "planted groups"),
)


def gains(runs: Runs, experiment: Experiment, method: str) -> tuple[list[int], np.ndarray]:
    """Seeds with all rates done, and gains over single tasks (S, rates) in percent."""
    seeds, rows = [], []
    for seed in sorted({key[3] for key in runs}):
        singles = [run["scores"] for key, run in runs.items() if key[0] == experiment.setting and key[1::2] == (SINGLE, seed)]
        found = [runs.get((experiment.name, method, rate, seed)) for rate in experiment.rates]
        if singles and all(found):
            single = np.array(max(singles, key=np.mean))
            rows.append([100 * ((np.array(run["scores"]) - single) / np.abs(single)).mean() for run in found if run])
            seeds.append(seed)
    return seeds, np.array(rows).reshape(len(seeds), len(experiment.rates))


def at_best(table: np.ndarray) -> tuple[np.ndarray, int]:
    """(S,) gains at the rate with the greatest mean, and the number of that rate."""
    best = int(table.mean(axis=0).argmax())
    return table[:, best], best


def plus_minus(values: np.ndarray) -> str:
    """Mean and standard error."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return f"{values.mean():+.1f} ± {error:.1f}"


def interval(differences: np.ndarray) -> str:
    """Mean difference, its t interval at 95 %, and how many seeds are above zero."""
    n, won = len(differences), int((differences > 0).sum())
    half = stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / n**0.5 if n > 1 else np.nan
    mean = differences.mean()
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}] ({won}/{n})"


def score_rows(runs: Runs, experiment: Experiment, methods: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row for each method: gains at all rates and at the best, updates and trunk passes a batch."""
    rows = []
    for method in methods:
        seeds, table = gains(runs, experiment, method)
        if method == SINGLE or not seeds:
            continue
        best, chosen = at_best(table)
        own = [runs[experiment.name, method, experiment.rates[chosen], seed] for seed in seeds]
        rows.append(
            {"experiment": experiment.name, "method": method, "seeds": len(seeds)}
            | {f"rate {j + 1}": plus_minus(table[:, j]) for j in range(len(experiment.rates))}
            | {"best rate": plus_minus(best), "which": f"{experiment.rates[chosen]:g}"}
            | {"updates": round(np.mean([run["updates"] for run in own]))}
            | {"trunk passes": round(np.mean([run["passes"] for run in own]))}
        )
    return rows


def difference_rows(runs: Runs, experiment: Experiment) -> list[dict[str, Any]]:
    """One row for each pair of methods."""
    suffix = STILL if experiment.methods[0].endswith(STILL) else ""
    rows = []
    for one, two in PAIRS:
        tables = [dict(zip(*gains(runs, experiment, name + suffix), strict=True)) for name in (one, two)]
        seeds = sorted(set(tables[0]) & set(tables[1]))
        if not seeds:
            continue
        ours, theirs = (np.array([table[seed] for seed in seeds]) for table in tables)
        apart = ours - theirs
        rows.append(
            {"experiment": experiment.name, "difference": f"{one} - {two}"}
            | {f"rate {j + 1}": interval(apart[:, j]) for j in range(len(experiment.rates))}
            | {"best rate": interval(at_best(ours)[0] - at_best(theirs)[0])}
        )
    return rows


def group_rows(runs: Runs, experiment: Experiment) -> list[dict[str, Any]]:
    """One row for each selective method and rate: what became of groups and map."""
    rows = []
    names = sorted({key[1] for key, run in runs.items() if key[0] == experiment.name and run.get("ari_mean") is not None})
    for method in names:
        for rate in experiment.rates:
            found = [run for key, run in runs.items() if key[:3] == (experiment.name, method, rate)]
            found = [run for run in found if run.get("ari_mean") is not None and run["map_last"] == run["map_last"]]
            if not found:
                continue
            mean = {name: np.mean([run[name] for run in found]) for name in (*_INDICES, "groups")}
            row = {"experiment": experiment.name, "method": method, "rate": f"{rate:g}", "seeds": len(found)}
            rows.append(
                row | {title: f"{mean[name]:.2f}" for name, title in _INDICES.items()} | {"groups": f"{mean['groups']:.1f}"}
            )
    return rows


_INDICES = {
    "ari_first": "Rand index, first groups",
    "ari_mean": "mean of the training",
    "ari_last": "last groups",
    "map_first": "map, first groups",
    "map_last": "map, end",
}


def report(runs: Runs, experiments: list[Experiment], all_methods: tuple[str, ...], name: str) -> None:
    """Print and write all tables."""
    scores, differences, groups = [], [], []
    for experiment in experiments:
        methods = all_methods if experiment.methods[0] == SINGLE else experiment.methods
        scores += score_rows(runs, experiment, methods)
        differences += difference_rows(runs, experiment)
        groups += group_rows(runs, experiment)
    rates = "; ".join(f"{one.name}: {', '.join(f'{rate:g}' for rate in one.rates)}" for one in experiments)
    if scores:
        publish(f"{name}_scores", f"Gain over single tasks in percent, mean ± standard error. Rates 1 to 4: {rates}", scores)
    if differences:
        publish(f"{name}_differences", "Paired differences of these gains, 95 % interval, seeds above zero", differences)
    if groups:
        publish(f"{name}_groups", "Agreement with planted clusters (adjusted Rand index; correlation of the map)", groups)
