"""Metrics: how the predictions of one task are scored, and which direction is better.

Letters: n rows, C classes of one task.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskloom.tasks._arrays import Array
from taskloom.tasks._errors import unknown


@dataclass(frozen=True)
class Metric:
    """A score of one task's predictions.

    Attributes:
        name: the name it is asked for by.
        higher_is_better: the direction.
        kinds: kinds of task that it can score.
        function: maps labels (n,) and predictions to a number. Predictions are values (n,) for `regression`,
            probabilities of the second class (n,) for `binary`, probabilities (n, C) for `multiclass`.
        unit_free: whether scores of different tasks are on one scale, so that their mean says something.

    Examples:
        >>> import numpy as np
        >>> get_metric("rmse").score(np.array([0.0, 2.0]), np.array([0.0, 0.0]))
        1.4142135623730951
    """

    name: str
    higher_is_better: bool
    kinds: tuple[str, ...]
    function: Callable[[Array, Array], float]
    unit_free: bool = True

    def score(self, labels: Array, predictions: Array) -> float:
        """The metric of predictions against labels, in the metric's own direction."""
        return float(self.function(labels, predictions))

    def gain(self, score: float, baseline: float) -> float:
        """How much better `score` is than `baseline`: positive is better, whatever the direction."""
        return score - baseline if self.higher_is_better else baseline - score


def _of_sklearn(name: str, prepare: Callable[[Array], NDArray[Any]] = np.asarray) -> Callable[[Array, Array], float]:
    """A metric of scikit-learn, which takes a second to import: only what scores waits for it."""

    def function(labels: Array, predictions: Array) -> float:
        return getattr(importlib.import_module("sklearn.metrics"), name)(labels, prepare(predictions))

    return function


def _hard(predictions: Array) -> NDArray[np.int64]:
    return (predictions > 0.5).astype(np.int64) if predictions.ndim == 1 else predictions.argmax(axis=1)


def _log_loss(labels: Array, predictions: Array) -> float:
    # Clipped like scikit-learn does for its own classifiers: a certain mistake costs a finite amount.
    tiny = float(np.finfo(np.float32).eps)
    if predictions.ndim == 1:
        predictions = np.column_stack([1 - predictions, predictions])
    chosen = predictions[np.arange(len(labels)), labels.astype(np.int64)]
    return float(-np.log(np.clip(chosen, tiny, 1.0)).mean())


_CLASSIFIED = ("binary", "multiclass")
_METRICS = {
    metric.name: metric
    for metric in (
        Metric("r2", True, ("regression",), _of_sklearn("r2_score")),
        Metric("explained_variance", True, ("regression",), _of_sklearn("explained_variance_score")),
        Metric("rmse", False, ("regression",), _of_sklearn("root_mean_squared_error"), unit_free=False),
        Metric("mae", False, ("regression",), _of_sklearn("mean_absolute_error"), unit_free=False),
        Metric("auc", True, ("binary",), _of_sklearn("roc_auc_score")),
        Metric("average_precision", True, ("binary",), _of_sklearn("average_precision_score")),
        Metric("accuracy", True, _CLASSIFIED, _of_sklearn("accuracy_score", _hard)),
        Metric("balanced_accuracy", True, _CLASSIFIED, _of_sklearn("balanced_accuracy_score", _hard)),
        Metric("log_loss", False, _CLASSIFIED, _log_loss),
    )
}
DEFAULT_METRIC = {"regression": "r2", "binary": "auc", "multiclass": "accuracy"}


def get_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        UnknownNameError: no metric has that name; the nearest one is named.
    """
    if name not in _METRICS:
        raise unknown("metric", name, _METRICS)
    return _METRICS[name]


def metric_names() -> tuple[str, ...]:
    """The names of all metrics."""
    return tuple(_METRICS)
