"""From what `fit` is given to the problem that a solver takes: labels, weights and scales of K tasks, checked.

Letters: K tasks, n rows, d features, s row weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.validation import column_or_1d

from taskloom.linear._check import TaskRows, is_sparse, read_tasks, row_blocks
from taskloom.linear._design import Design, OwnRows, SharedRows
from taskloom.linear._losses import Loss, get_loss, scale_factor
from taskloom.linear._problem import Labels
from taskloom.tasks import Array, DataError, OptionError, Rows, nearest_name

LossLike = str | Loss | Mapping[Any, str | Loss] | Sequence[str | Loss]


@dataclass(frozen=True)
class Training:
    """Rows in the order of the design, with everything that makes `Labels` of them.

    Attributes:
        X: (n, d) as given.
        y: (n,) or (n, K) as given, missing labels NaN.
        rows: which task each row belongs to.
        losses: (K,).
        weight: (n,) sample weights, or None.
        task_weight: (K,).
    """

    X: Any
    y: Array
    rows: TaskRows
    losses: list[Loss]
    weight: Array | None
    task_weight: Array

    @property
    def n_tasks(self) -> int:
        """K."""
        return len(self.rows.names)

    @property
    def units(self) -> Array:
        """(K,) factors that put losses of several kinds on one scale, so that one strength serves all of them."""
        return np.array([loss.unit if len(set(self.losses)) > 1 else 1.0 for loss in self.losses])

    def take(self, chosen: Rows) -> Training:
        """The same tasks on some of the rows."""
        owner = None if self.rows.owner is None else self.rows.owner[chosen]
        weight = None if self.weight is None else self.weight[chosen]
        rows = TaskRows(self.rows.names, owner)
        return Training(self.X[chosen], self.y[chosen], rows, self.losses, weight, self.task_weight)

    def build(self, scale: str, *, fit_intercept: bool) -> tuple[Design, Labels]:
        """Design and labels, in one order."""
        y, weight = self._flat()
        if self.rows.owner is None:
            design: Design = SharedRows(self.X, self.n_tasks)
        else:
            blocks, order = row_blocks(self.X, self.rows.owner, self.n_tasks)
            design, y, weight = OwnRows(blocks), y[order], weight[order]
        totals = design.sum_rows(weight)
        self._check_totals(totals)
        factors = np.array([scale_factor(scale, loss, total) for loss, total in zip(self.losses, totals, strict=True)])
        weight = weight * design.spread(factors * self.units * self.task_weight)
        return design, Labels(y, weight, self.losses, fit_intercept=fit_intercept)

    def _flat(self) -> tuple[Array, Array]:
        """Labels with zeros for missing ones, and their weights with zeros there."""
        weight = np.ones(len(self.y)) if self.weight is None else self.weight
        if self.rows.owner is not None:
            return self.y, weight
        y = self.y.reshape(len(self.y), self.n_tasks)
        present = ~np.isnan(y)
        return np.where(present, y, 0.0), weight[:, None] * present

    def _check_totals(self, totals: Array) -> None:
        if (totals <= 0).any():
            name = self.rows.names[int(np.flatnonzero(totals <= 0)[0])]
            raise DataError(f"task {_shown(name)}: the weights of its labelled rows are zero in sum; leave it out")


def read_training(X: Any, y: Any, tasks: Any, loss: LossLike, sample_weight: Any = None, task_weight: Any = None) -> Training:
    """Check what `fit` was given; X has been checked already.

    Raises:
        DataError: labels, tasks or weights of a wrong shape, not finite, negative, or not what the loss takes.
        OptionError: losses or task weights that name no task.
    """
    y = read_labels(y, X.shape[0], missing=tasks is None)
    rows = read_tasks(tasks, y)
    losses = _per_task(loss, rows.names, "loss", get_loss)
    weight = None if sample_weight is None else read_weight(sample_weight, X.shape[0])
    default = np.ones(len(rows.names)) if task_weight is None else _per_task(task_weight, rows.names, "task_weight", _number)
    training = Training(X, y, rows, losses, weight, np.asarray(default, dtype=np.float64))
    if not (np.isfinite(training.task_weight).all() and (training.task_weight > 0).all()):
        raise OptionError(f"`task_weight`={task_weight!r}: need one positive number a task; leave a task out by its rows")
    _check_values(training)
    return training


def read_labels(y: Any, n: int, *, missing: bool) -> Array:
    """Y as floats, (n,) or (n, K); NaN is a missing label in 2-D y alone."""
    if y is None:
        raise DataError("requires y to be passed, but the target y is None; give the labels of all rows")
    if is_sparse(y):
        raise DataError("`y` is sparse; pass a dense array, y.toarray()")
    try:
        y = np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"`y` holds what is no number ({error}); code it as numbers, or use a classifier") from error
    if y.ndim not in (1, 2) or len(y) != n:
        raise DataError(f"`y` has shape {y.shape} for {n} rows of X; need ({n},), or ({n}, K) for shared rows")
    y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
    bad = ~np.isfinite(y) if y.ndim == 1 or not missing else np.isinf(y)
    if bad.any():
        remedy = "drop the row" if y.ndim == 1 else "correct it (NaN is a missing label)"
        raise DataError(f"Input y contains NaN or infinity in row {int(np.argwhere(bad)[0][0])}; {remedy}")
    return y


def read_weight(sample_weight: Any, n: int) -> Array:
    """Sample weights of n rows, checked.

    Raises:
        DataError: they are not n numbers of 0 or more.
    """
    try:
        weight = np.asarray(sample_weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError("`sample_weight` holds what is no number; need one number a row") from error
    if weight.ndim == 0:
        weight = np.full(n, float(weight))
    if weight.shape != (n,):
        raise DataError(f"`sample_weight` has shape {weight.shape} for {n} rows; need ({n},)")
    bad = ~(weight >= 0) | np.isinf(weight)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(f"`sample_weight` holds {weight[row]:g} in row {row}; need 0 or more, where 0 leaves a row out")
    return weight


def _per_task(given: Any, names: Array, parameter: str, read: Any) -> list[Any]:
    """One value a task out of one value for all, a mapping from labels, or a sequence in the order of the labels."""
    labels = names.tolist()
    if isinstance(given, Mapping):
        strays = [key for key in given if key not in labels]
        if strays:
            near = nearest_name(str(strays[0]), [str(label) for label in labels])
            raise OptionError(f"`{parameter}`: there is no task {_shown(strays[0])}; {near}")
        lacking = [label for label in labels if label not in given]
        if lacking:
            raise OptionError(f"`{parameter}` says nothing of task {_shown(lacking[0])}; give one value a task")
        return [read(given[label]) for label in labels]
    if isinstance(given, str | Loss | int | float):
        return [read(given)] * len(labels)
    if len(given) != len(labels):
        raise OptionError(f"`{parameter}` has {len(given)} entries for {len(labels)} tasks; give one a task, or one for all")
    return [read(value) for value in given]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float | np.number) else np.nan


def _check_values(training: Training) -> None:
    """Labels that their losses cannot take."""
    for t, loss in enumerate(training.losses):
        if loss.labels == "real":
            continue
        y = task_labels(training, t)
        name = _shown(training.rows.names[t])
        if loss.labels == "sign" and not np.isin(y, (-1, 1)).all():
            raise DataError(f"`y` of task {name}: loss {loss.name!r} takes labels -1 and +1; found {np.unique(y)[:5].tolist()}")
        if loss.labels == "sign" and len(np.unique(y)) < 2:
            raise DataError(f"task {name} has one class ({y[0]:g} in all rows); leave it out")
        if loss.labels == "count" and (y < 0).any():
            raise DataError(f"`y` of task {name}: loss {loss.name!r} takes counts of 0 or more; found {y.min():g}: correct it")
        if loss.labels == "count" and not (y > 0).any():
            raise DataError(f"`y` of task {name}: all counts are 0, so that there is no rate to learn; leave the task out")


def task_labels(training: Training, t: int) -> Array:
    """Labels of one task, without missing ones."""
    if training.rows.owner is not None:
        return training.y[training.rows.owner == t]
    y = training.y if training.y.ndim == 1 else training.y[:, t]
    return y[~np.isnan(y)]


def _shown(label: Any) -> str:
    return repr(label.item() if isinstance(label, np.generic) else label)
