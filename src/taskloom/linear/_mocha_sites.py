"""The rows that the sites of MOCHA hold: read from what a user gives, checked, and laid out for local work.

Letters: K tasks (one site each), n_t rows of site t, n rows, N pairs of a site and a row of it, d features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from taskloom.linear._check import is_missing, read_tasks
from taskloom.tasks import Array, DataError, Rows


@dataclass(frozen=True)
class Sites:
    """The rows that K sites hold; N pairs of a site and one of its rows, site after site.

    Attributes:
        X: (m, d) rows.
        rows: (N,) the row of X of each pair.
        starts: (K + 1,) where the pairs of each site start, and N.
        sign: (N,) s: the label, -1 or +1, for hinge; 1 for squared.
        target: (N,) what margins are compared with: 1 for hinge; the number to predict for squared.
        loss: `hinge` or `squared`.
    """

    X: Array
    rows: Rows
    starts: Rows
    sign: Array
    target: Array
    loss: str

    @cached_property
    def sizes(self) -> Rows:
        """(K,) n_t."""
        return np.diff(self.starts)

    @cached_property
    def owner(self) -> Rows:
        """(N,) the site of each pair."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @cached_property
    def squares(self) -> Array:
        """(N,) squared norms of the rows."""
        return np.vecdot(self.X, self.X)[self.rows]

    @cached_property
    def blocks(self) -> list[Array]:
        """X_t of each site: views where its rows lie one after the other."""
        return [self._block(start, end) for start, end in pairwise(self.starts)]

    def _block(self, start: int, end: int) -> Array:
        rows = self.rows[start:end]
        is_run = bool((np.diff(rows) == 1).all())
        return self.X[rows[0] : rows[-1] + 1] if is_run else self.X[rows]

    def margins(self, W: Array) -> Array:
        """(N,) m at W (K, d)."""
        return self.sign * np.concatenate([X @ w for X, w in zip(self.blocks, W, strict=True)])

    def pulls(self, a: Array) -> Array:
        """(K, d) B at a (N,): what the sites send."""
        parts = zip(self.blocks, np.split(self.sign * a, self.starts[1:-1]), self.sizes, strict=True)
        return np.array([part @ X / n for X, part, n in parts])

    def total(self, values: Array) -> float:
        """sum_t (1 / n_t) sum_i of values (N,)."""
        return float((np.add.reduceat(values, self.starts[:-1]) / self.sizes).sum())


@dataclass(frozen=True)
class TaskLabels:
    """What each site has a label for.

    Attributes:
        names: (K,) labels of the tasks, sorted.
        rows: (N,) row of each pair, site after site.
        starts: (K + 1,) where the pairs of each site start, and N.
        values: (N,) numbers to predict; for classes -1 and 1.
        classes: (2,) classes, sorted; None for numbers.
    """

    names: Array
    rows: Rows
    starts: Rows
    values: Array
    classes: Any


def read_labels(y: Any, tasks: Any, n: int, *, are_classes: bool) -> TaskLabels:
    """The labels of own rows (`tasks` given, or one task) or of shared rows (2-D `y`).

    Args:
        y: (n,) or (n, K); NaN or None is a missing label, for shared rows alone.
        tasks: (n,) labels of the tasks, or None.
        n: number of rows.
        are_classes: two classes, not numbers.

    Raises:
        DataError: labels that do not suit.

    Examples:
        >>> labels = read_labels(["no", "yes", "no"], [2, 1, 2], 3, are_classes=True)
        >>> labels.rows, labels.values, labels.starts
        (array([1, 0, 2]), array([ 1., -1., -1.]), array([0, 1, 3]))
    """
    y = np.asarray(y)
    if y.ndim not in (1, 2) or len(y) != n or y.size == 0:
        raise DataError(f"`y` has shape {y.shape} for {n} rows of `X`; give ({n},), or ({n}, K) where K tasks share the rows")
    found = read_tasks(tasks, y)
    missing = is_missing(y)
    if y.ndim == 1 and missing.any():
        raise DataError(f"`y[{int(np.flatnonzero(missing)[0])}]` is missing; drop the row")
    if found.owner is None:
        # Row by row of the transposed labels is site after site.
        columns = y.reshape(n, -1).T
        owner, rows = np.nonzero(~missing.reshape(n, -1).T)
        kept = columns[owner, rows]
    else:
        rows = np.argsort(found.owner, kind="stable")
        owner, kept = found.owner[rows], y[rows]
    sizes = np.bincount(owner, minlength=len(found.names))
    if (sizes == 0).any():
        empty = found.names[int(np.flatnonzero(sizes == 0)[0])]
        raise DataError(f"`y` has no label of task {empty!r}; leave its column out")
    values, classes = _read_classes(kept) if are_classes else (_read_numbers(kept), None)
    return TaskLabels(found.names, rows, np.append(0, np.cumsum(sizes)), values, classes)


def _read_classes(kept: Array) -> tuple[Array, Array]:
    kept = np.array(kept.tolist()) if kept.dtype == object else kept
    classes = np.unique(kept)
    if len(classes) != 2:
        some = ", ".join(str(name) for name in classes[:5])
        raise DataError(f"`y` has {len(classes)} classes ({some}); the hinge loss takes two, the same for all tasks")
    return np.where(kept == classes[1], 1.0, -1.0), classes


def _read_numbers(kept: Array) -> Array:
    try:
        values = kept.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"`y` has type {kept.dtype} where loss='squared' needs numbers; loss='hinge' takes classes") from error
    if not np.isfinite(values).all():
        raise DataError("`y` has infinite values; drop or correct them")
    return values


def make_sites(X: Array, labels: TaskLabels, loss: str, *, fit_intercept: bool) -> tuple[Sites, Array, Array]:
    """Sites, and the means of rows (K, d) and of targets (K,) that were taken off them.

    With an intercept and squared loss each site takes off its own means; with hinge loss rows get a last feature 1, and the
    means are zeros.
    """
    K, rows, starts = len(labels.names), labels.rows, labels.starts
    n, is_squared = len(X), loss == "squared"
    # Where all tasks have all rows, no row is kept twice.
    shares = len(rows) == K * n and K > 1
    own, rows = (X, rows) if shares else (X[rows], np.arange(len(rows)))
    centres, offsets = np.zeros((K, X.shape[1])), np.zeros(K)
    values = labels.values
    if fit_intercept and is_squared:
        sizes, owner = np.diff(starts), np.repeat(np.arange(K), np.diff(starts))
        centres = np.tile(X.mean(0), (K, 1)) if shares else np.add.reduceat(own, starts[:-1]) / sizes[:, None]
        offsets = np.add.reduceat(values, starts[:-1]) / sizes
        own = own - (centres[0] if shares else centres[owner])
        values = values - offsets[owner]
    elif fit_intercept:
        own = np.column_stack([own, np.ones(len(own))])
    sign, target = (np.ones_like(values), values) if is_squared else (values, np.ones_like(values))
    return Sites(own, rows, starts, sign, target, loss), centres, offsets
