"""Tables read as tasks.

Letters: K tasks, n rows, d features.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskloom.tasks import _columns as columns
from taskloom.tasks._arrays import Array
from taskloom.tasks._data import TaskData
from taskloom.tasks._encode import check_finite
from taskloom.tasks._errors import DataError, OptionError, nearest_name, refused_tasks, unknown
from taskloom.tasks._features import Features
from taskloom.tasks._files import Frame, open_table
from taskloom.tasks._task import KINDS, Task


@dataclass(frozen=True)
class TableOptions:
    """How `read_table` reads.

    Attributes:
        kind: kind of the tasks, for all or by target name, where the inferred one is wrong.
        metric: metric of the tasks, for all or by target name.
        drop: columns that are not features, such as identifiers or targets of another question.
        skip_tasks: tasks to leave out, by name: constant ones, or ones with too few rows.
        impute: False refuses missing and infinite features where True imputes them.
    """

    kind: str | Mapping[str, str] | None = None
    metric: str | Mapping[str, str] | None = None
    drop: Sequence[str] = ()
    skip_tasks: Sequence[str] = ()
    impute: bool = True

    def to_json(self) -> dict[str, Any]:
        """All of them, JSON-able."""
        of_all = {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self).items()}
        return of_all | {"drop": list(self.drop), "skip_tasks": list(self.skip_tasks)}


def _name(source: Any) -> str | None:
    """The name of a table's file, without the folder, which may differ elsewhere; None for a dataframe."""
    return Path(source).name if isinstance(source, str | os.PathLike) else None


def read_table(
    source: Any,
    *,
    target: str | None = None,
    by: str | None = None,
    targets: Sequence[str] | None = None,
    options: TableOptions | None = None,
) -> TaskData:
    """Read a table as K tasks, in one of two shapes.

    `target=` with `by=`: the rows of each distinct value of column `by` are one task (own rows). `targets=`: each of these
    columns is one task (shared rows). All other columns are features: numbers, truth values and dates as numbers, everything
    else as categories. Imputing and encoding happen later, fitted on training rows only. Two distinct target values make a
    binary task, more make a regression task if they are numbers, else a multiclass task; `options.kind` overrides that.

    Args:
        source: a CSV or Parquet file, or a dataframe (polars, pandas, pyarrow, anything narwhals knows).
        target: the target column, with `by`.
        by: the column whose values name the tasks.
        targets: the target columns.
        options: kinds, metrics, columns and tasks to leave out, imputation.

    Raises:
        DataError: the file is not a table; a target is constant or all missing in a task; features are not finite where
            imputation is off; there are no features.
        OptionError: neither or both of `target` with `by` and `targets`.
        UnknownNameError: a column, kind, metric or task that does not exist; the nearest is named.

    Examples:
        >>> import polars as pl
        >>> table = pl.DataFrame({"site": ["a", "a", "b", "b"], "age": [1, 2, 3, 4], "score": [1.0, 2.5, 3.5, 4.0]})
        >>> read_table(table, target="score", by="site", options=TableOptions(kind="regression"))
        TaskData(2 regression tasks, own rows, 4 rows x 1 features)
    """
    options = options or TableOptions()
    _check_question(target, by, targets)
    frame = open_table(source)
    names = list(targets) if targets is not None else [str(target)]
    for column in [*names, *([by] if by else []), *options.drop]:
        if column not in frame.columns:
            raise unknown("column", column, frame.columns)
    for option in (options.kind, options.metric):
        for name in option if isinstance(option, Mapping) else ():
            if name not in names:
                raise unknown("target", name, names)
    features, notes = _features(frame, {*names, *options.drop, *([by] if by else [])})
    data = _own(frame, features, names[0], by, options) if by else _shared(frame, features, names, options)
    kept, more = _labelled(data)
    kept.check_labels()
    if not options.impute:
        check_finite(kept.features)
    question = {"table": _name(source), "target": target, "by": by, "targets": None if targets is None else names}
    return replace(kept, notes=(*notes, *more), impute=options.impute, question=question | options.to_json())


def read_rows(
    source: Any, numeric: Sequence[str], categorical: Sequence[str], by: str = ""
) -> tuple[Features, NDArray[np.object_] | None]:
    """Read the features of rows to be predicted, in the columns that a model was trained on.

    Args:
        source: as for `read_table`.
        numeric: names of the numeric columns.
        categorical: names of the categorical columns.
        by: the column that names each row's task, if the tasks have own rows.

    Returns:
        The features, and the task label of each row (None for shared rows).

    Raises:
        UnknownNameError: a column that is not there; the nearest one is named.
        DataError: a numeric column that holds something else, or a row without a task label.
    """
    # What looks like a number in these few rows may have been text in the table that was trained on.
    frame = open_table(source, as_text=[*categorical, *([by] if by else [])])
    for column in [*numeric, *categorical, *([by] if by else [])]:
        if column not in frame.columns:
            raise unknown("column", column, frame.columns)
    owners = columns.strings(frame[by]) if by else None
    if owners is not None and any(owner is None for owner in owners):
        raise DataError(f"column `{by}` is missing in row {list(owners).index(None)}; every row needs its task")
    return _stack(frame, list(numeric), list(categorical)), owners


def _check_question(target: str | None, by: str | None, targets: Sequence[str] | None) -> None:
    if isinstance(targets, str):
        raise OptionError(f"`targets`={targets!r} is one string; give a list of column names")
    if targets is not None and (target is not None or by is not None):
        raise OptionError("`targets` comes alone: give it, or `target` with `by`")
    if targets is None and (target is None or by is None):
        raise OptionError("`target` comes with `by` (the column whose values name the tasks); several columns go in `targets`")
    if targets is not None and not targets:
        raise OptionError("`targets` is empty; name at least one column")
    if target is not None and target == by:
        raise OptionError(f"`target` and `by` are both `{by}`; they are two columns")


def _features(frame: Frame, taken: set[str]) -> tuple[Features, list[str]]:
    left = [name for name in frame.columns if name not in taken]
    numeric = [name for name in left if columns.is_numeric(frame[name])]
    known, categorical, notes = set(numeric), [], []
    for name in left:
        if name in known:
            continue
        values = columns.strings(frame[name])
        if columns.share_of_numbers(values) > 0.9:
            notes.append(f"column `{name}` was read as text because some of its values are not numbers: is that meant?")
        distinct = len(set(values) - {None})
        if distinct > 0.5 * len(values) and distinct > columns.MAX_CLASSES:
            notes.append(
                f"column `{name}` was left out: {distinct} different texts in {len(values)} rows say nothing of new rows"
            )
        else:
            categorical.append(name)
    idle = [name for name in [*numeric, *categorical] if _says_nothing(frame, name, name in known)]
    notes += [f"column `{name}` has the same value or none in every row: it says nothing" for name in idle]
    if not numeric and not categorical:
        raise DataError(f"no feature columns are left beside {sorted(taken)}; the table needs at least one")
    return _stack(frame, numeric, categorical), notes


def _says_nothing(frame: Frame, name: str, is_numeric: bool) -> bool:
    if not is_numeric:
        return len(set(columns.strings(frame[name])) - {None}) < 2
    values = columns.numbers(frame[name])
    return len(np.unique(values[~np.isnan(values)])) < 2


def _stack(frame: Frame, numeric: list[str], categorical: list[str]) -> Features:
    n = frame.shape[0]
    values = np.empty((n, len(numeric)))
    for j, name in enumerate(numeric):
        values[:, j] = columns.numbers(frame[name])
    texts = np.empty((n, len(categorical)), dtype=object)
    for j, name in enumerate(categorical):
        texts[:, j] = columns.strings(frame[name])
    return Features(values, tuple(numeric), texts, tuple(categorical))


def _lookup(option: str | Mapping[str, str] | None, name: str) -> str | None:
    return option if isinstance(option, str) or option is None else option.get(name)


def _task_maker(values: list[Any], name: str, options: TableOptions) -> Task:
    """The task that a target column is, and the checks on its kind."""
    kind = _lookup(options.kind, name) or columns.infer_kind(values)
    if kind not in KINDS:
        raise unknown("kind of task", kind, KINDS)
    metric = _lookup(options.metric, name) or ""
    distinct = {value for value in values if value is not None}
    if kind == "regression":
        text = next((value for value in distinct if isinstance(value, str)), None)
        if text is not None:
            raise DataError(f"target `{name}` holds {text!r}; a regression target needs numbers")
        return Task(name, kind, metric=metric)
    return Task(name, kind, columns.classes_of(values, name), metric=metric)


def _check_varied(raw: Mapping[str, list[Any]]) -> None:
    found = {name: {value for value in values if value is not None} for name, values in raw.items()}
    what = {
        name: f"constant ({next(iter(distinct))!r} in every row)" if distinct else "missing in every row"
        for name, distinct in found.items()
        if len(distinct) < 2
    }
    if what:
        raise refused_tasks({name: f"target `{name}` is {fault}" for name, fault in what.items()})


def _coded(values: list[Any], task: Task) -> Array:
    if task.classes:
        return columns.codes(values, task.classes)
    return np.array([np.nan if value is None else float(value) for value in values])


def _shared(frame: Frame, features: Features, names: list[str], options: TableOptions) -> TaskData:
    _check_skips(options.skip_tasks, names)
    kept = [name for name in names if name not in options.skip_tasks]
    raw = {name: columns.labels(frame[name]) for name in kept}
    _check_varied(raw)
    tasks = tuple(_task_maker(raw[name], name, options) for name in kept)
    y = np.column_stack([_coded(raw[task.name], task) for task in tasks])
    return TaskData(tasks, features, y)


def _own(frame: Frame, features: Features, target: str, by: str, options: TableOptions) -> TaskData:
    values, owners = columns.labels(frame[target]), columns.labels(frame[by])
    if len(set(values) - {None}) < 2:
        raise DataError(f"target `{target}` has the same value or none in every row; name another column")
    model = _task_maker(values, target, options)
    found = sorted({owner for owner in owners if owner is not None}, key=lambda value: (isinstance(value, str), value))
    _check_skips(options.skip_tasks, [str(owner) for owner in found])
    kept = [owner for owner in found if str(owner) not in options.skip_tasks]
    tasks = tuple(Task(str(owner), model.kind, model.classes, metric=model.metric) for owner in kept)
    index = {owner: t for t, owner in enumerate(kept)}
    task_of_row = np.array([index.get(owner, -1) for owner in owners])
    rows = np.flatnonzero(task_of_row >= 0)
    data = TaskData(tasks, features.take(rows), _coded(values, model)[rows], task_of_row[rows], by)
    missing = sum(owner is None for owner in owners)
    notes = (f"{missing} rows without a value of `{by}` were left out",) if missing else ()
    return replace(data, notes=notes)


def _check_skips(skipped: Sequence[str], names: list[str]) -> None:
    for name in skipped:
        if name not in names:
            raise OptionError(f"`skip_tasks`: no task named `{name}`; {nearest_name(name, names)}")
    if len(set(skipped)) >= len(set(names)):
        raise OptionError("`skip_tasks` leaves no task; name fewer")


def _labelled(data: TaskData) -> tuple[TaskData, list[str]]:
    """Rows with at least one label; a constant or empty task is found before its rows are gone."""
    has_label = ~np.isnan(data.y) if data.y.ndim == 1 else ~np.isnan(data.y).all(axis=1)
    if has_label.all():
        return data, list(data.notes)
    data.check_labels()
    note = f"{int((~has_label).sum())} rows without any label were left out"
    return data.take(np.flatnonzero(has_label)), [*data.notes, note]
