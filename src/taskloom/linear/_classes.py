"""Two classes a task, as signs.

Letters: K tasks, n rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets

from taskloom.linear._check import is_missing, read_tasks
from taskloom.tasks import Array, DataError


@dataclass(frozen=True)
class TaskClasses:
    """Classes of K tasks.

    Attributes:
        signs: labels as -1 (first class) and +1, in the shape of y; NaN where missing (shared rows).
        pairs: (K, 2) classes of each task, sorted.
        classes: all classes, sorted.
    """

    signs: Array
    pairs: Any
    classes: Any

    @classmethod
    def read(cls, y: Any, tasks: Any, n: int) -> TaskClasses:
        """Code the labels of n rows.

        Raises:
            DataError: a wrong shape, missing labels in 1-D y, or a task of another number of classes than two.

        Examples:
            >>> TaskClasses.read(["b", "a", "b"], None, 3).signs
            array([ 1., -1.,  1.])
        """
        if y is None:
            raise DataError("requires y to be passed, but the target y is None; give the labels of all rows")
        y = np.asarray(y)
        if y.ndim == 2 and y.shape[1] == 1:
            y = _as_column(y)
        if y.ndim not in (1, 2) or len(y) != n:
            raise DataError(f"`y` has shape {y.shape} for {n} rows of X; need ({n},), or ({n}, K) for shared rows")
        missing = is_missing(y)
        if y.ndim == 1 and missing.any():
            raise DataError(f"Input y contains NaN in row {int(np.flatnonzero(missing)[0])}; drop the row")
        if y.dtype.kind == "f" and np.isinf(y).any():
            raise DataError(f"Input y contains infinity in row {int(np.argwhere(np.isinf(y))[0][0])}; correct it")
        check_classification_targets(y[~missing])
        rows = read_tasks(tasks, y)
        K = len(rows.names)
        signs, pairs = np.full(y.shape, np.nan), []
        for t in range(K):
            place: Any = (rows.owner == t) if rows.owner is not None else (slice(None) if y.ndim == 1 else (slice(None), t))
            labels, absent = y[place], missing[place]
            found = np.unique(labels[~absent].tolist()) if y.dtype == object else np.unique(labels[~absent])
            _check_two(found, rows.names[t], K)
            signs[place] = np.where(absent, np.nan, np.where(labels == found[1], 1.0, -1.0))
            pairs.append(found)
        return cls(signs, np.array(pairs), np.unique(np.concatenate(pairs)))


def _as_column(y: Array) -> Array:
    from sklearn.utils.validation import column_or_1d

    return column_or_1d(y, warn=True)


def _check_two(found: Any, name: Any, K: int) -> None:
    if len(found) == 2:
        return
    where = f"task {name.item() if isinstance(name, np.generic) else name!r}" if K > 1 else "`y`"
    if len(found) < 2:
        value = f"{found[0]!s} in all rows" if len(found) else "no label"
        raise DataError(f"{where} has one class ({value}); a classifier needs two: leave the task out")
    remedy = "Only binary classification is supported: make one task of each class against the rest"
    raise DataError(f"{where} has {len(found)} classes; {remedy}")
