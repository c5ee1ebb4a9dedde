"""One column of a frame turned into numbers, strings or labels.

Letters: n rows, C classes.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
from numpy.typing import NDArray

from taskloom.tasks._arrays import Array
from taskloom.tasks._errors import DataError

Series = nw.Series[Any]
MAX_CLASSES = 200
_SECONDS_A_DAY = 86_400.0


def is_numeric(column: Series) -> bool:
    """Whether a column holds numbers, truth values, dates or durations (read as days)."""
    return column.dtype.is_numeric() or column.dtype == nw.Boolean or column.dtype in (nw.Date, nw.Datetime, nw.Duration)


def numbers(column: Series) -> Array:
    """A column as (n,) floats with NaN for missing; dates become days since 1970, durations days.

    Raises:
        DataError: it holds something that is not a number.
    """
    if column.dtype in (nw.Date, nw.Datetime):
        column = (column.cast(nw.Datetime("us")) if column.dtype == nw.Date else column).dt.timestamp("us").cast(nw.Float64) / (
            1e6 * _SECONDS_A_DAY
        )
    elif column.dtype == nw.Duration:
        column = column.dt.total_microseconds().cast(nw.Float64) / (1e6 * _SECONDS_A_DAY)
    elif not is_numeric(column):
        column = _parsed(column)
    return column.cast(nw.Float64).fill_null(float("nan")).to_numpy().astype(np.float64)


def strings(column: Series) -> NDArray[np.object_]:
    """A column as (n,) strings with None for missing."""
    return np.array([None if value is None else str(value) for value in labels(column)], dtype=object)


def plain(value: Any) -> Any:
    """A value as a plain bool, int, float or string; whole floats become ints, so that 1 and 1.0 are one label."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, bool | int | float) else str(value)


def labels(column: Series) -> list[Any]:
    """A column as n plain values with None for missing."""
    # Each dataframe has its own mark for missing: the column is asked, not the values.
    missing = column.is_null().to_list()
    values = zip(column.to_list(), missing, strict=True)
    return [None if is_null or (isinstance(value, float) and np.isnan(value)) else plain(value) for value, is_null in values]


def share_of_numbers(values: NDArray[np.object_]) -> float:
    """The share of texts (n,) that can be read as numbers, missing ones left out.

    Examples:
        >>> share_of_numbers(np.array(["1", "2.5", "-", ""], dtype=object))
        0.5
    """
    present = [value for value in values if value is not None]
    return sum(_is_number(value) for value in present) / len(present) if present else 0.0


def canonical(text: str) -> str:
    """The name that a value has as a task label, however it was written: `7` for `007` and `7.0`, `True` for `true`.

    Examples:
        >>> canonical("007"), canonical("true"), canonical("north")
        ('7', 'True', 'north')
    """
    if text.lower() in {"true", "false"}:
        return text.lower().capitalize()
    return str(plain(float(text))) if _is_number(text) else text


def infer_kind(values: list[Any]) -> str:
    """The kind of task that labels suggest.

    Two distinct values make a binary task; more make a regression task if they are numbers, else a multiclass task.

    Examples:
        >>> infer_kind([0, 1, None]), infer_kind([1.5, 2.5, 3.5]), infer_kind(["a", "b", "c"])
        ('binary', 'regression', 'multiclass')
    """
    distinct = {value for value in values if value is not None}
    if len(distinct) == 2:
        return "binary"
    is_number = all(isinstance(value, int | float) for value in distinct)
    return "regression" if is_number else "multiclass"


def classes_of(values: list[Any], name: str) -> tuple[Any, ...]:
    """The distinct labels in order: numbers by size, then strings.

    Raises:
        DataError: so many that they cannot be class labels.
    """
    distinct = {value for value in values if value is not None}
    if len(distinct) > MAX_CLASSES:
        raise DataError(f"target `{name}` has {len(distinct)} distinct values; at most {MAX_CLASSES} can be class labels")
    return tuple(sorted(distinct, key=lambda value: (isinstance(value, str), value)))


def codes(values: list[Any], classes: tuple[Any, ...]) -> Array:
    """Class codes (n,) with NaN for missing."""
    code = {value: float(c) for c, value in enumerate(classes)}
    return np.array([np.nan if value is None else code[value] for value in values])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _parsed(column: Series) -> Series:
    try:
        return column.cast(nw.String).cast(nw.Float64)
    # Each dataframe library behind narwhals raises its own class here.
    except Exception as error:
        raise DataError(f"column `{column.name}` holds values that are not numbers") from error
