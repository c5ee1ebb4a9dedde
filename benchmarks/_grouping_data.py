"""Data of `grouping_end_to_end.py`: five sets of tasks, split anew with every seed.

Letters: K tasks, n rows, d features.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.io import arff, loadmat

from taskloom.tasks import FeatureEncoder, TargetScaler, Task, TaskData, split_rows

DATA = Path(os.environ.get("TASKLOOM_DATA", Path(__file__).parents[2] / "shared" / "data"))
Parts = tuple[TaskData, TaskData, TaskData]
# Training, validation and test rows of the two sets that have more than these nets need.
ROWS = (900, 300, 1000)
WINDOW, AHEAD = 24, 24
# Hours of the first 12 months, the 4 after them and the last 4 of the usual split of ETTh1.
MONTHS = (0, 8640, 11520, 14400)


@lru_cache(maxsize=1)
def _sarcos() -> np.ndarray:
    return loadmat(DATA / "sarcos" / "sarcos_inv_test.mat")["sarcos_inv_test"].astype(float)


def sarcos(seed: int) -> Parts:
    """Torques of seven joints by 21 positions, velocities and accelerations; of the test file, of which a part is drawn."""
    table = _sarcos()
    data = TaskData.shared_rows(table[:, :21], table[:, 21:], [f"joint {t + 1}" for t in range(7)])
    order, (a, b, c) = np.random.default_rng(seed).permutation(data.n_rows), ROWS
    return data.take(order[:a]), data.take(order[a : a + b]), data.take(order[a + b : a + b + c])


@lru_cache(maxsize=1)
def _emotions() -> TaskData:
    tables = [arff.loadarff(DATA / "mulan" / "multi-label" / f"emotions-{part}.arff")[0] for part in ("train", "test")]
    names = tables[0].dtype.names or ()
    table = np.array([[float(row[name]) for name in names] for rows in tables for row in rows])
    return TaskData.shared_rows(table[:, :-6], table[:, -6:], [Task(name, "binary") for name in names[-6:]])


@lru_cache(maxsize=1)
def _mhc() -> TaskData:
    with np.load(DATA / "mhc-chemical10" / "mhc_chemical10.npz") as found:
        names = sorted({key.split("_")[0] for key in found.files})
        pairs = [
            [np.concatenate([found[f"{name}_{kind}_{part}"] for part in ("train", "test")]).astype(float) for kind in "Xy"]
            for name in names
        ]
    return TaskData.own_rows([(X, y) for X, y in pairs], [Task(f"MHC {name}", "binary") for name in names], by="molecule")


@lru_cache(maxsize=1)
def _landmine() -> TaskData:
    cells = loadmat(DATA / "landmine" / "LandmineData.mat")
    pairs = list(zip(cells["feature"].ravel(), cells["label"].ravel(), strict=True))
    tasks = [Task(f"field {t + 1}", "binary") for t in range(len(pairs))]
    return TaskData.own_rows([(X.astype(float), y.ravel().astype(float)) for X, y in pairs], tasks, by="field")


def _split(load: Callable[[], TaskData]) -> Callable[[int], Parts]:
    """60 / 20 / 20 percent of all rows."""

    def parts(seed: int) -> Parts:
        data, split = load(), split_rows(load(), seed)
        return data.take(split.train), data.take(split.validation), data.take(split.test)

    return parts


@lru_cache(maxsize=1)
def _etth1() -> tuple[list[str], np.ndarray]:
    with (DATA / "ett" / "ETTh1.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    return lines[0][1:], np.array([[float(cell) for cell in line[1:]] for line in lines[1:]])


def etth1(seed: int) -> Parts:
    """Each of seven channels a day ahead by the last 24 hours of all; windows drawn within 12, 4 and 4 months.

    Both are less the channel's present value: levels drift over the months.
    """
    names, series = _etth1()
    rng, parts = np.random.default_rng(seed), []
    for n, start, end in zip(ROWS, MONTHS, MONTHS[1:], strict=False):
        now = rng.choice(np.arange(start + WINDOW - 1, end - AHEAD), n, replace=False)
        past = series[now[:, None] + np.arange(-WINDOW + 1, 1)]
        X = np.concatenate([(past - past[:, -1:])[:, :-1].reshape(n, -1), past[:, -1]], axis=1)
        parts.append(TaskData.shared_rows(X, series[now + AHEAD] - past[:, -1], names))
    return parts[0], parts[1], parts[2]


SETS: dict[str, Callable[[int], Parts]] = {
    "sarcos-7": sarcos,
    "emotions-6": _split(_emotions),
    "ETTh1-7": etth1,
    "MHC-10": _split(_mhc),
    "landmine-29": _split(_landmine),
}


def load(name: str, seed: int) -> Parts:
    """Training, validation and test rows, encoded by the training rows."""
    train, validation, test = SETS[name](seed)
    encoder, scaler = FeatureEncoder.fit(train.features), TargetScaler.fit(train)
    train, validation, test = (scaler.encode(encoder.encode(part)) for part in (train, validation, test))
    return train, validation, test
