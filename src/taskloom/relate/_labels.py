"""How well labels agree: the baseline that every other measure should beat.

Letters: K tasks, n rows, C indicator columns of a task.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from taskloom.relate._affinity import Affinity, Cost
from taskloom.relate._options import MeasureOptions, Model
from taskloom.relate._rows import check_data, choose_own_rows, correlation_of_pairs, task_names
from taskloom.tasks import Array, OptionError, TaskData

# Strength of the ridge, as a share of the mean variance of the features.
_RIDGE = 1e-2


def labels(
    model: Model | None,  # noqa: ARG001 (measures have one signature)
    data: TaskData,
    options: MeasureOptions | None = None,
    *,
    signed: bool = False,
    fill: bool = False,
) -> Affinity:
    """Correlation of the labels of two tasks on the rows that both have, without any model.

    |Pearson's r| of two tasks with one output, the correlation ratio of one with a multiclass task, Cramér's V of two of
    these: all three are canonical correlations of indicators.

    Where each task has rows of its own no row has two labels: everything is NaN, and a note says so. With `fill` a ridge
    regression is fitted to each task, and the correlations are those of the tasks' predictions on the rows of all; a note says
    so.

    Args:
        model: not used.
        data: training rows; all of them are used where they are shared.
        options: `split_half`, and `n_rows` and `seed` for `fill`.
        signed: Pearson's r with its sign; pairs with a multiclass task have none and stay positive.
        fill: see above.

    Raises:
        DataError: fewer than two tasks, or a task with fewer than two labels.
        OptionError: `fill` of tasks that share rows.

    Examples:
        >>> from taskloom.tasks import Task
        >>> data = TaskData.shared_rows(np.eye(4), [[0, 1], [1, 0], [0, 1], [1, 1]], [Task("a", "binary"), Task("b", "binary")])
        >>> round(labels(None, data, signed=True)["a", "b"], 3)
        -0.577
    """
    options = options or MeasureOptions()
    start = perf_counter()
    check_data(data)
    if fill and data.is_shared:
        raise OptionError("`fill`=True is for tasks with rows of their own; these share rows, set it to False")
    notes, halves = [], []
    if data.is_shared:
        columns = [_indicators(data.y[:, t], task.n_outputs) for t, task in enumerate(data.tasks)]
    elif fill:
        columns = _predicted(data, options)
        notes.append("correlation of ridge predictions, for no row has the labels of two tasks")
    else:
        nothing = np.full((data.n_tasks,) * 2, np.nan)
        notes.append("no row has the labels of two tasks: nothing is known (`fill=True` correlates predictions)")
        return Affinity(nothing, task_names(data), "labels", cost=Cost(seconds=perf_counter() - start), notes=notes)
    values = _correlations(columns, signed=signed)
    if options.split_half:
        order = np.random.default_rng(options.seed).permutation(len(columns[0]))
        halves = [_correlations([column[order[h::2]] for column in columns], signed=signed) for h in range(2)]
    stability = correlation_of_pairs(*halves) if halves else np.nan
    cost = Cost(seconds=perf_counter() - start)
    return Affinity(values, task_names(data), "labels", cost=cost, stability=stability, notes=notes, unrelated=0.0)


def _indicators(y: Array, n_outputs: int) -> Array:
    """(n, 1) numbers, or (n, C) indicators of classes; NaN rows where the label is missing."""
    if n_outputs == 1:
        return y[:, None]
    found = (y[:, None] == np.arange(n_outputs)).astype(float)
    found[np.isnan(y)] = np.nan
    return found


def _correlations(columns: list[Array], *, signed: bool) -> Array:
    """(K, K) canonical correlations."""
    K = len(columns)
    values = np.eye(K)
    if all(column.shape[1] == 1 for column in columns):
        found = pearson(np.concatenate(columns, axis=1))
        return found if signed else np.abs(found)
    for s in range(K):
        for t in range(s):
            values[s, t] = values[t, s] = association(columns[s], columns[t], signed=signed)
    return values


def pearson(Y: Array) -> Array:
    """(K, K) correlations of the columns of Y (n, K), each over the rows that both have; NaN where one is constant there.

    Examples:
        >>> pearson(np.array([[1.0, 2.0], [2.0, 4.0], [3.0, np.nan], [0.0, 0.0]]))[0, 1].round(6)
        np.float64(1.0)
    """
    known = np.isfinite(Y)
    # Centred first, for digits' sake.
    means = np.where(known, Y, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    filled, w = np.where(known, Y - means, 0.0), known.astype(float)
    n = np.maximum(w.T @ w, 1.0)
    sums, squares = filled.T @ w, (filled**2).T @ w
    covariance = filled.T @ filled / n - sums * sums.T / n**2
    variance = np.maximum(squares / n - (sums / n) ** 2, 0.0)
    product = np.sqrt(variance * variance.T)
    floor = 1e-12 * np.sqrt(np.outer(np.diag(squares), np.diag(squares)) / np.outer(np.diag(n), np.diag(n)))
    found = np.divide(covariance, product, out=np.full(product.shape, np.nan), where=product > floor)
    np.fill_diagonal(found, 1.0)
    return found.clip(-1.0, 1.0)


def association(A: Array, B: Array, *, signed: bool = False) -> float:
    """Root mean square of the canonical correlations of columns A (n, C) and B (n, C') over the rows that both have.

    Cramér's V of two sets of indicators, the correlation ratio of one with numbers, |r| of two columns of numbers.

    Examples:
        >>> round(association(np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [-1.0], [-2.0]]), signed=True), 6)
        -1.0
    """
    both = np.isfinite(A).all(axis=1) & np.isfinite(B).all(axis=1)
    if both.sum() < 2:
        return float("nan")
    bases = []
    for columns in (A[both], B[both]):
        left, sizes, _ = np.linalg.svd(columns - columns.mean(axis=0), full_matrices=False)
        bases.append(left[:, sizes > 1e-9 * max(float(sizes[0]), 1e-300) * len(columns)])
    ranks = [basis.shape[1] for basis in bases]
    if not min(ranks):
        return float("nan")
    found = float(np.sqrt(np.square(bases[0].T @ bases[1]).sum() / min(ranks)).clip(0.0, 1.0))
    if signed and A.shape[1] == B.shape[1] == 1:
        return float(np.copysign(found, np.sum((A[both] - A[both].mean()) * (B[both] - B[both].mean())))) + 0.0
    return found


def _predicted(data: TaskData, options: MeasureOptions) -> list[Array]:
    """Each task's ridge predictions (n, C) on rows of all tasks."""
    X = data.X.reshape(data.n_rows, -1).astype(np.float64)
    pools = choose_own_rows(data, options.n_rows, options.seed)
    pooled, out = X[np.concatenate(pools)], []
    for task, rows in zip(data.tasks, pools, strict=True):
        centre = X[rows].mean(axis=0)
        own, targets = X[rows] - centre, _indicators(data.y[rows], task.n_outputs)
        covariance = own.T @ own / len(rows)
        strength = _RIDGE * np.trace(covariance) / len(covariance) + 1e-12
        slope = np.linalg.solve(
            covariance + strength * np.eye(len(covariance)), own.T @ (targets - targets.mean(axis=0)) / len(rows)
        )
        out.append((pooled - centre) @ slope)
    return out
