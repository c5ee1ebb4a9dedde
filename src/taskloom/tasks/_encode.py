"""Features and targets turned into the numbers that models learn from, fitted on training rows only.

Letters: n rows, p numeric columns, q categorical columns, d encoded features, K tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskloom.tasks._arrays import Array
from taskloom.tasks._data import TaskData
from taskloom.tasks._errors import DataError
from taskloom.tasks._features import Features

MAX_CATEGORIES = 32
MISSING = "(missing)"
OTHER = "(other)"


@dataclass(frozen=True)
class FeatureEncoder:
    """Imputes, standardises and one-hot encodes.

    A numeric column has its missing entries (NaN or infinite) set to its training mean and is then centred and divided
    by its training deviation; images and other arrays of more than two dimensions use one mean and one deviation over all
    entries. A categorical column becomes one column for each of its `MAX_CATEGORIES` most frequent training values;
    a missing value is a category of its own, rarer and unseen values are `(other)`.

    Attributes:
        mean: (p,) or () training means.
        scale: (p,) or () training deviations, 1 for a constant column.
        categories: q tuples, the values that have a column of their own.

    Examples:
        >>> import numpy as np
        >>> train = Features(np.array([[1.0], [np.nan], [3.0]]))
        >>> FeatureEncoder.fit(train).transform(train).ravel().tolist()
        [-1.0, 0.0, 1.0]
    """

    mean: Array
    scale: Array
    categories: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def fit(cls, train: Features) -> FeatureEncoder:
        """Learn means, deviations and categories from training rows."""
        axes = 0 if train.numeric.ndim == 2 else None
        values = np.where(np.isfinite(train.numeric), train.numeric, np.nan).astype(np.float64, copy=False)
        count = np.maximum(np.isfinite(values).sum(axis=axes), 1)
        mean = np.nansum(values, axis=axes) / count
        scale = np.sqrt(np.nansum((values - mean) ** 2, axis=axes) / count)
        scale = _usable_scale(scale, np.abs(np.where(np.isnan(values), 0.0, values)).max(axis=axes, initial=0.0))
        categories = tuple(_frequent(column) for column in train.categorical.T)
        return cls(np.asarray(mean), np.asarray(scale), categories)

    def transform(self, features: Features) -> Array:
        """Encoded features (n, d), numeric ones first; every entry is finite."""
        numeric = features.numeric.astype(np.float64)
        numeric = np.where(np.isfinite(numeric), numeric, self.mean)
        numeric = (numeric - self.mean) / self.scale
        if not self.categories:
            return numeric
        columns = zip(features.categorical.T, self.categories, strict=True)
        return np.hstack([numeric, *(_one_hot(_fold(column, kept), kept) for column, kept in columns)])

    def encode(self, data: TaskData) -> TaskData:
        """The same data with encoded features."""
        return replace(data, features=Features(self.transform(data.features)))

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays and JSON-able settings from which `from_state` makes an equal encoder."""
        return {"mean": self.mean, "scale": self.scale}, {"categories": [list(kept) for kept in self.categories]}

    @classmethod
    def from_state(cls, arrays: dict[str, Array], settings: dict[str, Any]) -> FeatureEncoder:
        """The encoder whose `state` this is."""
        return cls(arrays["mean"], arrays["scale"], tuple(tuple(kept) for kept in settings["categories"]))


@dataclass(frozen=True)
class TargetScaler:
    """Standardises the targets of regression tasks, each by its own training labels; other tasks pass through.

    Attributes:
        mean: (K,) training means, 0 for classification tasks.
        scale: (K,) training deviations, 1 for classification tasks.
    """

    mean: Array
    scale: Array

    @classmethod
    def fit(cls, train: TaskData) -> TargetScaler:
        """Learn from training rows."""
        mean, scale = np.zeros(train.n_tasks), np.ones(train.n_tasks)
        for t, task in enumerate(train.tasks):
            if task.kind == "regression":
                labels = train.labels(t)
                mean[t], scale[t] = labels.mean(), _usable_scale(labels.std(), np.abs(labels).max())
        return cls(mean, scale)

    def encode(self, data: TaskData) -> TaskData:
        """The same data with standardised regression targets."""
        owner = slice(None) if data.task_of_row is None else data.task_of_row
        return replace(data, y=(data.y - self.mean[owner]) / self.scale[owner])

    def invert(self, predictions: Array, t: int) -> Array:
        """Predictions of task t back in its own unit."""
        return predictions * self.scale[t] + self.mean[t]


def check_finite(features: Features) -> None:
    """Refuse missing and infinite features, for when imputation is off.

    Raises:
        DataError: names the column, the first such row and the remedy.
    """
    bad = ~np.isfinite(features.numeric)
    if bad.any():
        row, *place = (int(i) for i in np.argwhere(bad)[0])
        column = features.numeric_names[place[0]] if features.numeric_names else f"entry {tuple(place)}"
        value = features.numeric[(row, *place)]
        raise DataError(f"feature `{column}` is {value} in row {row} and imputation is off; fill it or set `impute=True`")
    missing = np.argwhere(features.categorical == None)  # noqa: E711 (elementwise over an object array)
    if len(missing):
        row, column = missing[0]
        name = features.categorical_names[column]
        raise DataError(f"feature `{name}` is missing in row {row} and imputation is off; fill it or set `impute=True`")


def _usable_scale(scale: Any, magnitude: Any) -> Array:
    """Deviations to divide by: 1 for a constant, which rounding leaves with a tiny one that must not be blown up."""
    return np.where(scale <= 1e-12 * magnitude, 1.0, scale)


def _frequent(column: NDArray[np.object_]) -> tuple[str, ...]:
    values, counts = np.unique([MISSING if value is None else value for value in column], return_counts=True)
    by_count = sorted(zip(-counts, values, strict=True))[:MAX_CATEGORIES]
    return (*sorted(str(value) for _, value in by_count), OTHER)


def _one_hot(column: NDArray[np.object_], kept: tuple[str, ...]) -> Array:
    return (column[:, None] == np.array(kept, dtype=object)).astype(np.float64)


def _fold(column: NDArray[np.object_], kept: tuple[str, ...]) -> NDArray[np.object_]:
    known = set(kept)
    named = (MISSING if value is None else value for value in column)
    return np.array([value if value in known else OTHER for value in named], dtype=object)
