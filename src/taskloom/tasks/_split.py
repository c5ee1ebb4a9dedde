"""Seeded splits into training, validation and test rows, stratified per task.

Letters: K tasks, n rows, P parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskloom.tasks._arrays import Array, Rows
from taskloom.tasks._data import TaskData
from taskloom.tasks._errors import OptionError, refused_tasks
from taskloom.tasks._task import Task

PART_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Row indices of the three parts, ascending, disjoint."""

    train: Rows
    validation: Rows
    test: Rows


def split_rows(data: TaskData, seed: int, fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)) -> Split:
    """Split rows so that every task, and every class of it, is spread over the parts in the given proportions.

    Own rows: each task's rows (each class's rows within a task) are dealt out separately. Shared rows: one row serves many
    tasks at once, so rows are dealt out by iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011, algorithm 1)
    over the classes and the missing labels of all tasks.

    Args:
        data: to be split.
        seed: same seed, same split.
        fractions: of training, validation and test rows; they sum to 1, and the last may be 0.

    Raises:
        OptionError: fractions that do not sum to 1 or are negative.
        DataError: tasks with too few rows for a part; names all of them, and how many rows the first one needs.

    Examples:
        >>> import numpy as np
        >>> data = TaskData.shared_rows(np.eye(10), np.arange(10.0)[:, None])
        >>> split = split_rows(data, seed=0)
        >>> len(split.train), len(split.validation), len(split.test)
        (6, 2, 2)
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or (shares < 0).any() or abs(shares.sum() - 1) > 1e-9 or (shares[:2] == 0).any():
        raise OptionError(
            f"`fractions`={fractions!r}: give three shares (train, validation, test) that sum to 1; only test may be 0"
        )
    rng = np.random.default_rng(seed)
    _check_enough(data, shares)
    part = _deal_own(data, shares, rng) if data.task_of_row is not None else _deal_shared(data, shares, rng)
    split = Split(*(np.flatnonzero(part == p) for p in range(3)))
    _check_parts(data, split, shares)
    return split


def _strata(data: TaskData) -> list[tuple[Rows, int]]:
    """Rows of each class of each classification task and of each regression task as a whole, with the least a part needs."""
    strata = []
    for t, task in enumerate(data.tasks):
        rows, labels = data.rows(t), data.labels(t)
        groups = [rows[labels == c] for c in range(len(task.classes))] if task.classes else [rows]
        strata += [(group, _least_rows(task.kind)) for group in groups if len(group)]
    return strata


def _counts(n: int, shares: Array, least: int) -> NDArray[np.int64]:
    """Split n into whole parts: each part with a share gets at least `least` if n allows, remainders go by size."""
    counts = np.floor(n * shares + 1e-9).astype(np.int64)
    counts[shares > 0] = np.maximum(counts[shares > 0], least)
    while counts.sum() > n:
        counts[counts.argmax()] -= 1
    remainder = n * shares - counts
    for _ in range(n - counts.sum()):
        p = int(remainder.argmax())
        counts[p] += 1
        remainder[p] -= 1
    return counts


def _deal_own(data: TaskData, shares: Array, rng: np.random.Generator) -> NDArray[np.int64]:
    part = np.full(data.n_rows, -1)
    for rows, least in _strata(data):
        part[rng.permutation(rows)] = np.repeat(np.arange(3), _counts(len(rows), shares, least))
    return part


def _deal_shared(data: TaskData, shares: Array, rng: np.random.Generator) -> NDArray[np.int64]:
    part = np.full(data.n_rows, -1)
    strata = [(rows, least) for rows, least in _strata(data) if len(rows) < data.n_rows]
    if strata:
        _iterative_stratification(part, strata, shares, rng)
    rest = np.flatnonzero((part < 0) & ~np.isnan(data.y).all(axis=1))
    part[rng.permutation(rest)] = np.repeat(np.arange(3), _counts(len(rest), shares, least=2))
    return part


def _iterative_stratification(
    part: NDArray[np.int64], strata: list[tuple[Rows, int]], shares: Array, rng: np.random.Generator
) -> None:
    """Fill `part` for every row of the strata: rarest stratum first, each row to the part that lacks it most."""
    member = np.zeros((len(part), len(strata)), dtype=bool)
    for s, (rows, _) in enumerate(strata):
        member[rows, s] = True
    wanted = np.stack([_counts(len(rows), shares, least) for rows, least in strata]).astype(np.float64)
    wanted_rows = member.any(axis=1).sum() * shares
    left = member.sum(axis=0)
    tie = rng.permutation(len(part))
    while left.any():
        s = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())
        rows = np.flatnonzero(member[:, s] & (part < 0))
        for row in rows[np.argsort(tie[rows])]:
            most = wanted[s] >= wanted[s].max() - 1e-9
            p = int(np.where(most, wanted_rows, -np.inf).argmax())
            part[row] = p
            wanted[member[row], p] -= 1
            wanted_rows[p] -= 1
            left -= member[row]


def _least_rows(kind: str) -> int:
    # Two values are needed before a regression score such as R2 is defined; one row of each class for a classifier's.
    return 2 if kind == "regression" else 1


def _check_enough(data: TaskData, shares: Array) -> None:
    parts = int((shares > 0).sum())
    found = ((task, _lack(task, data.labels(t), parts)) for t, task in enumerate(data.tasks))
    faults = {task.name: lack for task, lack in found if lack}
    if faults:
        raise refused_tasks(faults)


def _lack(task: Task, labels: Array, parts: int) -> str:
    """Why a task cannot be split into so many parts; empty if it can."""
    need = parts * _least_rows(task.kind)
    needs = f"labelled rows; a split into {parts} parts needs {need}"
    if len(labels) < need:
        return f"task `{task.name}` has {len(labels)} {needs}"
    for code, value in enumerate(task.classes):
        count = int((labels == code).sum())
        # A site may never have seen a class that others have; a binary task without one is constant.
        if 0 < count < need:
            return f"class {value!r} of task `{task.name}` has {count} {needs}"
    return ""


def _check_parts(data: TaskData, split: Split, shares: Array) -> None:
    faults: dict[str, str] = {}
    for name, rows, share in zip(PART_NAMES, (split.train, split.validation, split.test), shares, strict=True):
        if not share:
            continue
        part = data.take(rows)
        for t, task in enumerate(data.tasks):
            labels = part.labels(t)
            seen = np.unique(data.labels(t)) if task.classes else []
            counts = [int((labels == c).sum()) for c in seen] if task.classes else [len(labels)]
            if min(counts) < _least_rows(task.kind):
                fault = f"task `{task.name}` has too few labelled rows for the {name} part (share {share:g}: raise it)"
                faults.setdefault(task.name, fault)
    if faults:
        raise refused_tasks(faults)
