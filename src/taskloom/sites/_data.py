"""From what `fit` is given to the rows of each site, and to the whole problem for whoever holds all rows.

Letters: K tasks, n rows of a task, d features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from taskloom.linear import Design, Labels, Loss, OwnRows, Problem, SharedRows, get_loss, scale_factor, smooth_problem
from taskloom.sites._site import TaskRows
from taskloom.tasks import Array, DataError, OptionError, TaskData

TaskPairs = Sequence[tuple[Any, Any]] | Mapping[str, tuple[Any, Any]]


@dataclass
class SiteData:
    """The rows of K tasks, and which site holds which.

    Attributes:
        design: the features.
        labels: of all rows, with their weights and losses.
        tasks: K names.
        sites: columns of the tasks of each site, by its name.
    """

    design: Design
    labels: Labels
    tasks: list[str]
    sites: dict[str, list[int]]

    def rows(self, t: int) -> TaskRows:
        """What the site of task t holds of it; rows of weight 0 are left out."""
        index = self.design.index(np.array([t]))
        y, weight = self.labels.y[index].ravel(), self.labels.weight[index].ravel()
        X, keep = self.design.block(t), weight > 0
        if not keep.all():
            X, y, weight = X[keep], y[keep], weight[keep]
        return TaskRows(X, y, weight, self.labels.losses[t], self.labels.fit_intercept)

    @cached_property
    def problem(self) -> Problem:
        """The losses of all tasks, which nobody holds where the data cannot move."""
        return smooth_problem(self.design, self.labels)


@dataclass(frozen=True)
class LossOptions:
    """What is minimised beside the penalty.

    Attributes:
        loss: of all tasks, by name or as one; `auto`: squared for regression, logistic for two classes.
        scale: what the sum of losses of a task is divided by: see `taskloom.linear.MultiTaskRegressor`.
        fit_intercept: whether each task has an intercept that no penalty touches.
    """

    loss: str | Loss = "auto"
    scale: str = "mean"
    fit_intercept: bool = True


def read_sites(data: TaskData | TaskPairs, options: LossOptions, sites: Mapping[str, Sequence[str]] | None = None) -> SiteData:
    """The data of K tasks, checked.

    Args:
        data: of tasks that are encoded already, or (X_t, y_t) of each task, in order or by name.
        options: of the losses.
        sites: names of the tasks that each site holds; None for one site a task, of its name.

    Raises:
        DataError: shapes that do not fit, values that are not finite, or labels that the loss cannot take.
        OptionError: tasks that no site holds, or two.
        UnknownNameError: an unknown loss or scale.
    """
    if not isinstance(options.loss, str | Loss):
        raise OptionError(f"`loss`={options.loss!r}: need the name of one loss for all tasks, or the loss itself")
    names, blocks, ys, losses = _of_tasks(data, options) if isinstance(data, TaskData) else _of_pairs(data, options)
    units = np.array([loss.unit if len(set(losses)) > 1 else 1.0 for loss in losses])
    if isinstance(data, TaskData) and data.is_shared:
        present = ~np.isnan(np.stack(ys, axis=1))
        factors = [scale_factor(options.scale, loss, n) for loss, n in zip(losses, present.sum(0), strict=True)]
        design: Design = SharedRows(blocks[0], len(names))
        y, weight = np.where(present, np.stack(ys, axis=1), 0.0), present * (units * np.array(factors))
    else:
        design, y = OwnRows(blocks), np.concatenate(ys)
        weight = np.concatenate(
            [
                np.full(len(each), unit * scale_factor(options.scale, loss, np.array(float(len(each)))))
                for each, unit, loss in zip(ys, units, losses, strict=True)
            ]
        )
    labels = Labels(y, weight, losses, fit_intercept=options.fit_intercept)
    return SiteData(design, labels, names, _columns(names, sites))


def _columns(names: list[str], sites: Mapping[str, Sequence[str]] | None) -> dict[str, list[int]]:
    if sites is None:
        return {name: [t] for t, name in enumerate(names)}
    owner: dict[str, str] = {}
    for site, held in sites.items():
        for name in held:
            if name not in names:
                raise OptionError(f"`sites`: site {site!r} holds {name!r}, which is no task; tasks are {', '.join(names)}")
            if name in owner:
                raise OptionError(f"`sites`: task {name!r} is held by {owner[name]!r} and by {site!r}; name it once")
            owner[name] = site
        if not held:
            raise OptionError(f"`sites`: site {site!r} holds no task; leave it out")
    lost = [name for name in names if name not in owner]
    if lost:
        raise OptionError(f"`sites`: no site holds task {lost[0]!r}; name each task once")
    return {site: [names.index(name) for name in held] for site, held in sites.items()}


Read = tuple[list[str], list[Any], list[Array], list[Loss]]


def _of_tasks(data: TaskData, options: LossOptions) -> Read:
    many = [task.name for task in data.tasks if task.kind == "multiclass"]
    if many:
        raise DataError(f"task {many[0]!r} has more than two classes; make one task of each class against the rest")
    kinds = {"regression": "squared", "binary": "logistic"}
    losses = [get_loss(kinds[task.kind] if options.loss == "auto" else options.loss) for task in data.tasks]
    if data.X.ndim != 2:
        raise DataError(f"`data`: X has shape {data.X.shape}; a linear model needs (n, d): flatten it")
    blocks, ys = [], []
    for t, loss in enumerate(losses):
        y = data.y[:, t] if data.is_shared and data.y.ndim == 2 else data.labels(t)
        X = data.X if data.is_shared else data.X[data.rows(t)]
        _check_finite(data.tasks[t].name, X)
        blocks.append(X)
        ys.append(2 * y - 1 if loss.labels == "sign" and data.tasks[t].kind == "binary" else y)
        _check_labels(data.tasks[t].name, ys[-1][~np.isnan(ys[-1])], loss)
    return [task.name for task in data.tasks], blocks, ys, losses


def _of_pairs(data: TaskPairs, options: LossOptions) -> Read:
    if not isinstance(data, Iterable):
        raise DataError(f"`data` is {type(data).__name__}; need TaskData, or (X, y) of each task, in order or by name")
    named = (
        {str(name): pair for name, pair in data.items()}
        if isinstance(data, Mapping)
        else {f"task {t + 1}": pair for t, pair in enumerate(data)}
    )
    if not named:
        raise DataError("`data` is empty; give (X, y) of at least one task")
    loss = get_loss("squared" if options.loss == "auto" else options.loss)
    blocks, ys, width = [], [], None
    for name, pair in named.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(f"`data` of task {name!r} is {type(pair).__name__}; need a pair (X, y)")
        X, y = (_as_numbers(name, part) for part in pair)
        if X.ndim != 2 or y.shape != (X.shape[0],) or not len(y) or not X.shape[1]:
            raise DataError(
                f"`data` of task {name!r}: X has shape {X.shape}, y {y.shape}; need (n, d) and (n,), n and d at least 1"
            )
        width = X.shape[1] if width is None else width
        if X.shape[1] != width:
            raise DataError(f"`data` of task {name!r} has {X.shape[1]} features, that of the first {width}; need the same")
        _check_finite(name, X)
        _check_labels(name, y, loss)
        blocks.append(X)
        ys.append(y)
    return list(named), blocks, ys, [loss] * len(named)


def _as_numbers(name: str, part: Any) -> Any:
    if hasattr(part, "toarray"):
        return part
    try:
        return np.asarray(part, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"`data` of task {name!r} holds what is no number ({error}); encode it") from error


def _check_finite(name: str, X: Any) -> None:
    if not np.isfinite(X.data if hasattr(X, "toarray") else X).all():
        raise DataError(f"`data` of task {name!r}: X holds a number that is not finite; fill or drop missing values")


def _check_labels(name: str, y: Array, loss: Loss) -> None:
    if not np.isfinite(y).all():
        raise DataError(f"`data` of task {name!r}: y holds a number that is not finite; drop the row")
    if loss.labels == "sign" and not (np.isin(y, (-1, 1)).all() and len(np.unique(y)) == 2):
        raise DataError(
            f"`data` of task {name!r}: loss {loss.name!r} takes labels -1 and +1, both; found {np.unique(y)[:5].tolist()}"
        )
    if loss.labels == "count" and not ((y >= 0).all() and (y > 0).any()):
        raise DataError(
            f"`data` of task {name!r}: loss {loss.name!r} takes counts of 0 or more, not all 0; correct or leave out"
        )
