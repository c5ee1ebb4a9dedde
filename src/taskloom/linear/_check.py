"""Rows of K tasks as an estimator is given them: checked once, before any work is done.

Letters: K tasks, n rows, d features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from taskloom.tasks import Array, DataError, Rows

# Kinds of numpy's types that compare by value: 1 and 1.0 are one label.
_NUMBERS = "biuf"


@dataclass(frozen=True)
class TaskRows:
    """Which task each row belongs to.

    Attributes:
        names: (K,) labels of the tasks, sorted; 0 ... K - 1 where no labels were given.
        owner: (n,) index into `names` of each row; None where the tasks share all rows.
    """

    names: Any
    owner: Rows | None


def read_tasks(tasks: Any, y: Array) -> TaskRows:
    """The tasks of n rows, from a column of labels (own rows) or from the columns of y (shared rows; 1-D y is one task).

    Args:
        tasks: (n,) labels (numbers or strings), or None.
        y: (n,) or (n, K) targets.

    Raises:
        DataError: labels that are missing or of another length, or labels beside a 2-D y.

    Examples:
        >>> read_tasks(["b", "a", "b"], np.zeros(3)).owner
        array([1, 0, 1])
        >>> read_tasks(None, np.zeros((3, 2))).names
        array([0, 1])
    """
    if tasks is None:
        return TaskRows(np.arange(1 if y.ndim == 1 else y.shape[1]), None)
    if y.ndim != 1:
        raise DataError(f"`tasks` is given and `y` has shape {y.shape}; own rows need a 1-D `y`, shared rows no `tasks`")
    labels = _labels(tasks, len(y))
    names, owner = np.unique(labels, return_inverse=True)
    return TaskRows(names, owner)


def find_tasks(tasks: Any, names: Array, n: int) -> Rows:
    """Index into `names` of n labels; -1 where a label is not among them.

    Examples:
        >>> find_tasks(["b", "c"], np.array(["a", "b"]), 2)
        array([ 1, -1])
    """
    labels = _labels(tasks, n)
    if (labels.dtype.kind in _NUMBERS) != (names.dtype.kind in _NUMBERS):
        # A number is no text: "1" and 1 are two labels.
        return np.full(n, -1)
    places = np.clip(np.searchsorted(names, labels), 0, len(names) - 1)
    return np.where(names[places] == labels, places, -1)


def _labels(tasks: Any, n: int) -> Array:
    labels = np.asarray(tasks)
    if labels.dtype == object:
        _refuse_missing(is_missing(labels).ravel())
        texts = {isinstance(label, str) for label in labels.ravel()}
        if len(texts) > 1:
            raise DataError("`tasks` mixes text and numbers; make all labels text, or all numbers")
        labels = labels.astype(str) if texts == {True} else np.array(labels.tolist())
    if labels.shape != (n,):
        raise DataError(f"`tasks` has shape {labels.shape} for {n} rows; give one label a row, ({n},)")
    if labels.dtype.kind == "f":
        _refuse_missing(np.isnan(labels))
    return labels


def is_missing(labels: Any) -> Any:
    """Which labels are NaN or None."""
    labels = np.asarray(labels)
    if labels.dtype.kind == "f":
        return np.isnan(labels)
    if labels.dtype.kind == "O":
        absent = [label is None or _is_nan(label) for label in labels.ravel()]
        return np.array(absent, bool).reshape(labels.shape)
    return np.zeros(labels.shape, bool)


def _is_nan(label: Any) -> bool:
    """Whether a label is NaN, or what pandas has for a missing text or time."""
    return (isinstance(label, float) and np.isnan(label)) or type(label).__name__ in ("NAType", "NaTType")


def _refuse_missing(missing: Array) -> None:
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        raise DataError(f"`tasks[{row}]` is missing; drop the row or give it a task")


def row_blocks(X: Any, owner: Rows, n_tasks: int) -> tuple[list[Any], Rows]:
    """X_t of each task and the order of rows that puts the tasks one after the other.

    Rows that are already sorted by task are not copied: the blocks are views.

    Examples:
        >>> blocks, order = row_blocks(np.eye(3), np.array([1, 0, 1]), 2)
        >>> [block.shape for block in blocks], order
        ([(1, 3), (2, 3)], array([1, 0, 2]))
    """
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner, minlength=n_tasks))
    is_sorted = bool((np.diff(owner) >= 0).all())
    ordered = X if is_sorted else X[order]
    return [ordered[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)], order


def is_sparse(X: Any) -> bool:
    """Whether X is a scipy sparse matrix or array."""
    return bool(sparse.issparse(X))
