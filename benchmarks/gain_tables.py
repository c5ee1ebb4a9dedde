"""Predictors of group gains on published tables of gains (MTG-Net, Song et al. 2022), and what choices by them are worth.

Correlations are over the members of all groups of three or more: pooled over tasks, and the mean over tasks of that within one.
The linear surrogate is fitted on groups of two or more that are drawn at random; beside all groups it is scored on those it was
not fitted on. Totals: groups chosen exactly at b = 3 by the prediction, each task served by the group meant to, valued by the
measured gains (on the same runs that the surrogate was fitted on, for groups among them). Needs the data folder: TASKLOOM_DATA,
else ../shared/data.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from _timing import publish
from taskloom.relate._select import select
from taskloom.relate._surrogate import fit_surrogate
from taskloom.relate._values import GroupGains

BESIDE = Path(__file__).parents[1].parent / "shared" / "data"
FOLDER = Path(os.environ.get("TASKLOOM_DATA", BESIDE)) / "task-gain-tables" / "mtgnet"
DRAWS = 60
FILES = {
    "ETTm1": ("ETTm1_x.csv", "ETTm1_y.csv", {"HOA": "ETTm1_HOA.csv", "TAG+HOA": "ETTm1_TAG_HOA.csv"}),
    "Taskonomy": ("taskonomy_x.csv", "taskonomy.csv", {"HOA": "taskonomy_HOA.csv", "TAG+HOA": "taskonomy_TAGHOA.csv"}),
}


@dataclass(frozen=True)
class Table:
    """Members (G, K) and measured gains (G, K)."""

    members: np.ndarray
    gains: np.ndarray

    def pooled(self, predicted: np.ndarray, rows: np.ndarray) -> float:
        """Correlation over the members of some groups; NaN where it has none."""
        at = self.members & rows[:, None]
        return correlation(predicted[at], self.gains[at])

    def within(self, predicted: np.ndarray, rows: np.ndarray) -> float:
        """Mean over tasks of the correlation within one."""
        each = [self.members[:, i] & rows for i in range(self.members.shape[1])]
        return float(np.nanmean([correlation(predicted[at, i], self.gains[at, i]) for i, at in enumerate(each)]))

    def total(self, predicted: np.ndarray, budget: int = 3) -> float:
        """Measured gain of the groups that a prediction chooses."""
        groups = select(GroupGains(self.members, predicted), budget)
        rows = {tuple(np.flatnonzero(row)): g for g, row in enumerate(self.members)}
        place = {task: i for i, task in enumerate(groups.tasks)}
        chosen = [rows[tuple(place[name] for name in names)] for names in groups.sets]
        return float(sum(self.gains[chosen[groups.serves[task]], i] for task, i in place.items()))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    if len(one) < 3 or np.std(one) == 0 or np.std(other) == 0:
        return np.nan
    return float(np.corrcoef(one, other)[0, 1])


def read(name: str) -> np.ndarray:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return np.array([[float(cell) for cell in line.replace(",", " ").split()] for line in lines])


def surrogate_row(table: Table, n: int) -> dict[str, object]:
    sizes = table.members.sum(axis=1)
    several, scores = np.flatnonzero(sizes > 1), []
    for seed in range(DRAWS):
        trained = np.random.default_rng(seed).choice(several, n, replace=False)
        fitted = fit_surrogate(table.members[trained], table.gains[trained])
        predicted = fitted.predict(table.members)
        left = sizes >= 3
        left[trained] = False
        chooser = predicted.copy()
        chooser[sizes == 1] = np.where(table.members[sizes == 1], 0.0, np.nan)
        chooser[trained] = table.gains[trained]
        scores.append(
            (
                table.pooled(predicted, sizes >= 3),
                table.within(predicted, sizes >= 3),
                table.pooled(predicted, left),
                table.total(chooser),
            )
        )
    pooled, within, new, total = np.nanmean(scores, axis=0)
    error = float(np.nanstd([row[2] for row in scores]) / np.sqrt(DRAWS))
    return {
        "predictor": f"surrogate, {n} groups",
        "pooled r": pooled,
        "within tasks": within,
        "r on groups not trained": f"{new:.2f} +- {error:.2f}",
        "total at b = 3": total,
    }


def rows_of(name: str) -> list[dict[str, object]]:
    x, y, predictors = FILES[name]
    table = Table(read(x).astype(bool), read(y))
    large = table.members.sum(axis=1) >= 3
    everything = float(table.gains[table.members.all(axis=1)].sum())
    blank = {"pooled r": "", "within tasks": "", "r on groups not trained": ""}
    rows: list[dict[str, object]] = [
        {"predictor": "the measured gains", **blank, "total at b = 3": table.total(table.gains)},
        {"predictor": "all in one", **blank, "total at b = 3": everything},
    ]
    if name == "ETTm1":
        rows.append({"predictor": "gains on validation rows", **blank, "total at b = 3": table.total(read("ETTm1_val_y.csv"))})
    for label, file in predictors.items():
        predicted = read(file)
        rows.append(
            {
                "predictor": label,
                "pooled r": table.pooled(predicted, large),
                "within tasks": table.within(predicted, large),
                "r on groups not trained": "",
                "total at b = 3": table.total(predicted),
            }
        )
    several = int((table.members.sum(axis=1) > 1).sum())
    return rows + [surrogate_row(table, n) for n in (10, 20, 40) if n < several]


def main() -> None:
    if not FOLDER.is_dir():
        sys.exit(f"no folder {FOLDER}: set TASKLOOM_DATA")
    for name in FILES:
        publish(f"gain_tables_{name.lower()}", f"{name}, {DRAWS} draws of the groups that are trained", rows_of(name))


if __name__ == "__main__":
    main()
