"""Which rows a measure looks at, and how well what two halves of them say agrees.

Letters: K tasks, n rows, A (K, K) affinity.
"""

from __future__ import annotations

import numpy as np

from taskloom.tasks import Array, DataError, Rows, TaskData


def check_data(data: TaskData, least: int = 2) -> None:
    """Refuse what no measure can be taken of.

    Raises:
        DataError: fewer than two tasks, a task with fewer labels than `least`, or features that are not finite numbers.
    """
    if data.n_tasks < 2:
        raise DataError(f"`data` has {data.n_tasks} task; how tasks relate takes two or more")
    few = next((t for t in range(data.n_tasks) if len(data.rows(t)) < least), None)
    if few is not None:
        raise DataError(
            f"`data`: task `{data.tasks[few].name}` has {len(data.rows(few))} labels, a measure needs {least}; leave it out"
        )
    if not np.isfinite(data.X).all():
        raise DataError("`data` holds missing or infinite features; encode it first with `FeatureEncoder`")


def choose_rows(data: TaskData, n_rows: int, seed: int) -> Rows:
    """At most n rows of data with shared rows, in random order; classes and tasks with few labels keep a part of them.

    Half of the rows at the most are set aside for rare labels, the rarest first: of each class of each task an equal number,
    at least one while there is room. The others are drawn from what is left.

    Examples:
        >>> Y = np.zeros((1000, 2))
        >>> Y[7, 0], Y[::2, 1] = 1, 1
        >>> from taskloom.tasks import Task
        >>> data = TaskData.shared_rows(np.zeros((1000, 1)), Y, [Task("rare", "binary"), Task("even", "binary")])
        >>> 7 in choose_rows(data, 20, seed=0)
        True
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(data.n_rows)
    if data.n_rows <= n_rows:
        return order
    groups = []
    for t, task in enumerate(data.tasks):
        labels = data.y[order, t]
        codes = range(len(task.classes)) if task.classes else ()
        groups += [order[labels == code] for code in codes] or [order[~np.isnan(labels)]]
    share = max(1, n_rows // (2 * len(groups)))
    taken = np.zeros(data.n_rows, dtype=bool)
    for group in sorted(groups, key=len):
        room = min(share - int(taken[group].sum()), n_rows // 2 - int(taken.sum()))
        taken[group[~taken[group]][: max(room, 0)]] = True
    others = order[~taken[order]][: n_rows - int(taken.sum())]
    return rng.permutation(np.concatenate([np.flatnonzero(taken), others]))


def choose_own_rows(data: TaskData, n_rows: int, seed: int) -> list[Rows]:
    """At most n labelled rows of each task, in random order, classes in turn so that rare ones keep a part of them."""
    chosen = []
    for t, task in enumerate(data.tasks):
        rng = np.random.default_rng([seed, t])
        rows = rng.permutation(data.rows(t))
        labels = data.y[rows] if not data.is_shared else data.y[rows, t]
        if task.classes and len(rows) > n_rows:
            share = max(1, n_rows // (2 * len(task.classes)))
            first = np.concatenate([np.flatnonzero(labels == code)[:share] for code in range(len(task.classes))])[:n_rows]
            rest = np.setdiff1d(np.arange(len(rows)), first)
            rows = rng.permutation(rows[np.concatenate([first, rng.permutation(rest)])[:n_rows]])
        chosen.append(rows[:n_rows])
    return chosen


def labels_of(data: TaskData, rows: Rows) -> Array:
    """Labels (n, K) of some rows, NaN where a task has none."""
    if data.task_of_row is None:
        return data.y[rows]
    labels = np.full((len(rows), data.n_tasks), np.nan)
    labels[np.arange(len(rows)), data.task_of_row[rows]] = data.y[rows]
    return labels


def parts_of(rows: Rows, at_once: int, per_row: int) -> list[Rows]:
    """Rows in parts of about `at_once` numbers, of even length so that every other row stays in the same half."""
    size = max(2, at_once // max(per_row, 1) // 2 * 2)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def task_names(data: TaskData) -> list[str]:
    """K names."""
    return [task.name for task in data.tasks]


def correlation_of_pairs(one: Array, other: Array) -> float:
    """Correlation of the off-diagonal values of two (K, K) matrices that both know; NaN where there are fewer than three.

    Examples:
        >>> A = np.arange(9.0).reshape(3, 3)
        >>> round(correlation_of_pairs(A, 2 * A), 6)
        1.0
    """
    off = ~np.eye(len(one), dtype=bool) & np.isfinite(one) & np.isfinite(other)
    mine, theirs = one[off], other[off]
    if len(mine) < 3 or np.ptp(mine) == 0 or np.ptp(theirs) == 0:
        return float("nan")
    return float(np.corrcoef(mine, theirs)[0, 1])


class HalvedMean:
    """The mean of (K, K) matrices, and the means of two halves of them.

    Args:
        n_tasks: K.

    Examples:
        >>> mean = HalvedMean(2)
        >>> mean.add(np.ones((3, 2, 2)))
        >>> mean.value()[0]
        array([1., 1.])
    """

    def __init__(self, n_tasks: int) -> None:
        self.sums = np.zeros((2, n_tasks, n_tasks))
        self.counts = np.zeros((2, n_tasks, n_tasks))
        self.seen = 0

    def add(self, values: Array) -> None:
        """Take in (B, K, K); every other one belongs to the same half. NaN is not counted."""
        for place in range(2):
            part, half = values[place::2], (self.seen + place) % 2
            self.add_sums(np.nansum(part, axis=0), np.isfinite(part).sum(axis=0), half)
        self.seen += len(values)

    def add_sums(self, sums: Array, counts: Array | float, half: int) -> None:
        """Take in sums (K, K) of values of one half, and how many values they are of."""
        self.sums[half] += sums
        self.counts[half] += counts

    def value(self) -> Array:
        """(K, K) mean of all, NaN where nothing was seen."""
        return ratio(self.sums.sum(axis=0), self.counts.sum(axis=0))

    def stability(self) -> float:
        """Correlation of the means of the two halves."""
        return correlation_of_pairs(ratio(self.sums[0], self.counts[0]), ratio(self.sums[1], self.counts[1]))


def ratio(sums: Array, counts: Array) -> Array:
    """Means out of sums and numbers of values; NaN where there are none."""
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
