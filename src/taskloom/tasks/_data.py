"""The data of K tasks in two shapes behind one interface.

Letters: K tasks, t one task, n rows, d features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from taskloom.tasks._arrays import Array, Rows
from taskloom.tasks._errors import DataError, refused_tasks
from taskloom.tasks._features import Features
from taskloom.tasks._task import Task, check_task_names


@dataclass(frozen=True)
class TaskData:
    """The rows and labels of K tasks.

    Build it with `TaskData.shared_rows`, `TaskData.own_rows` or `read_table`.

    Attributes:
        tasks: the K tasks.
        features: of all n rows.
        y: labels; (n, K) with NaN for a missing label when the tasks share rows, (n,) when each row belongs to one
            task. Classes are coded 0, 1, ... in the order of `Task.classes`.
        task_of_row: (n,) index of the task that owns each row; None when the tasks share rows.
        by: what the task labels are called in a table ("hospital"); empty when the tasks share rows.
        notes: what was done to the table while reading it, in sentences.
        impute: False where missing features were refused; a model fitted to these data refuses them too.
        question: what was asked of the table that they were read from, JSON-able; empty where there was none.
    """

    tasks: tuple[Task, ...]
    features: Features
    y: Array
    task_of_row: Rows | None = None
    by: str = ""
    notes: tuple[str, ...] = ()
    impute: bool = True
    question: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_task_names(self.tasks)
        n, expected = len(self.features), ((len(self.features), len(self.tasks)) if self.is_shared else (len(self.features),))
        if self.y.shape != expected:
            raise DataError(f"`y` has shape {self.y.shape}; {n} rows and {len(self.tasks)} tasks need {expected}")
        if self.task_of_row is not None and self.task_of_row.shape != (n,):
            raise DataError(f"`task_of_row` has shape {self.task_of_row.shape}; {n} rows need ({n},)")

    @classmethod
    def shared_rows(cls, X: ArrayLike, Y: ArrayLike, tasks: Sequence[Task | str] | None = None) -> TaskData:
        """Tasks that share one X.

        Args:
            X: (n, d) numbers, NaN = missing; or (n, ...), for example images (n, channels, height, width). The d columns are
                named `x0`, `x1`, ...
            Y: (n, K) labels, NaN = missing; class codes for classification tasks.
            tasks: K tasks, or names of regression tasks; default `task0`, `task1`, ...

        Raises:
            DataError: wrong shapes, texts, or a task whose labels are constant, all missing or not valid class codes.

        Examples:
            >>> import numpy as np
            >>> TaskData.shared_rows(np.eye(3), [[1.0, 2.0], [3.0, np.nan], [5.0, 0.0]], tasks=["a", "b"])
            TaskData(2 regression tasks, shared rows, 3 rows x 3 features)
        """
        labels = _as_labels("Y", Y)
        if labels.ndim != 2:
            raise DataError(f"`Y` has shape {labels.shape}; shared rows need (n, K), one column a task")
        data = cls(_as_tasks(tasks, labels.shape[1]), Features(_as_floats("X", X)), labels)
        data.check_labels()
        return data

    @classmethod
    def own_rows(
        cls,
        parts: Sequence[tuple[ArrayLike, ArrayLike]] | Mapping[str, tuple[ArrayLike, ArrayLike]],
        tasks: Sequence[Task | str] | None = None,
        by: str = "task",
    ) -> TaskData:
        """Tasks that each bring their own rows.

        Args:
            parts: K pairs (X_t of shape (n_t, d), y_t of shape (n_t,)), or such pairs by the names of the tasks.
            tasks: K tasks, or names of regression tasks, in the order of the parts.
            by: what a task label is called.

        Raises:
            DataError: as for `shared_rows`, or parts that are no pairs, are named otherwise than the tasks or have different
                numbers of features.

        Examples:
            >>> import numpy as np
            >>> TaskData.own_rows([(np.eye(2), [0.0, 1.0]), (np.ones((3, 2)), [1.0, 2.0, 3.0])])
            TaskData(2 regression tasks, own rows, 5 rows x 2 features)
        """
        if isinstance(parts, Mapping):
            names, parts = [str(name) for name in parts], list(parts.values())
            if tasks is None:
                tasks = names
            elif [task.name if isinstance(task, Task) else task for task in tasks] != names:
                raise DataError(f"`tasks`={tasks!r} and `parts`, which has {names}, differ; give the same names in one order")
        for t, part in enumerate(parts):
            if not isinstance(part, tuple | list) or len(part) != 2:
                raise DataError(f"`parts[{t}]` is a {type(part).__name__}; give a pair (X, y) for each task")
        arrays = [(_as_floats(f"parts[{t}]", X), _as_labels(f"parts[{t}]", y)) for t, (X, y) in enumerate(parts)]
        if len({X.shape[1:] for X, _ in arrays}) != 1:
            raise DataError(f"`parts`: the X_t have feature shapes {[X.shape[1:] for X, _ in arrays]}; they must agree")
        for t, (X, y) in enumerate(arrays):
            if y.shape != (len(X),):
                raise DataError(f"`parts[{t}]`: y has shape {y.shape}, X has {len(X)} rows; y must be ({len(X)},)")
        owner = np.repeat(np.arange(len(arrays)), [len(X) for X, _ in arrays])
        features = Features(np.concatenate([X for X, _ in arrays]))
        data = cls(_as_tasks(tasks, len(arrays)), features, np.concatenate([y for _, y in arrays]), owner, by)
        data.check_labels()
        return data

    @property
    def is_shared(self) -> bool:
        """Whether all tasks share one X."""
        return self.task_of_row is None

    @property
    def n_tasks(self) -> int:
        """K."""
        return len(self.tasks)

    @property
    def n_rows(self) -> int:
        """Rows in all."""
        return len(self.features)

    @property
    def X(self) -> Array:  # noqa: N802
        """Features as one array of numbers, (n, d) or (n, ...).

        Raises:
            DataError: there are categorical columns; `FeatureEncoder` turns them into numbers.
        """
        if self.features.categorical_names:
            raise DataError("`X`: there are categorical columns; encode them first with `FeatureEncoder`")
        return self.features.numeric

    @cached_property
    def _rows_of_task(self) -> list[Rows]:
        if self.task_of_row is None:
            return [np.flatnonzero(~np.isnan(self.y[:, t])) for t in range(self.n_tasks)]
        order = np.argsort(self.task_of_row, kind="stable")
        ends = np.cumsum(np.bincount(self.task_of_row, minlength=self.n_tasks))
        return [rows[~np.isnan(self.y[rows])] for rows in np.split(order, ends[:-1])]

    def rows(self, t: int) -> Rows:
        """Indices of the rows where task t has a label, ascending."""
        return self._rows_of_task[t]

    def labels(self, t: int) -> Array:
        """Labels of task t at `rows(t)`."""
        return self.y[self.rows(t)] if self.task_of_row is not None else self.y[self.rows(t), t]

    def take(self, rows: Rows) -> TaskData:
        """The same tasks on some of the rows."""
        owner = None if self.task_of_row is None else self.task_of_row[rows]
        return replace(self, features=self.features.take(rows), y=self.y[rows], task_of_row=owner)

    def digest(self) -> str:
        """A hash of features, labels and tasks: equal for equal data, in any process."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(repr((self.tasks, self.y.shape)).encode())
        self.features.update_hash(digest)
        digest.update(np.ascontiguousarray(self.y).tobytes())
        digest.update(b"" if self.task_of_row is None else np.ascontiguousarray(self.task_of_row, dtype=np.int64).tobytes())
        return digest.hexdigest()

    def check_labels(self) -> None:
        """Refuse tasks that cannot be learned.

        Raises:
            DataError: targets that are constant, all missing, infinite, or no class codes; names all of the tasks.
        """
        found = ((task, _fault(task, self.labels(t))) for t, task in enumerate(self.tasks))
        faults = {task.name: f"target of task `{task.name}` {fault}" for task, fault in found if fault}
        if faults:
            raise refused_tasks(faults)

    def __repr__(self) -> str:
        kinds = "/".join(dict.fromkeys(task.kind for task in self.tasks))
        shape = "shared rows" if self.is_shared else "own rows"
        return f"TaskData({self.n_tasks} {kinds} tasks, {shape}, {self.n_rows} rows x {self.features.n_columns} features)"


def _fault(task: Task, labels: Array) -> str:
    """Why a task cannot be learned from these labels; empty if it can."""
    if labels.size == 0:
        return "is missing in every row"
    if not np.isfinite(labels).all():
        return "holds an infinite value"
    if (labels == labels[0]).all():
        value = task.classes[int(labels[0])] if task.classes and labels[0] in range(len(task.classes)) else labels[0]
        return f"is constant ({value} in all {labels.size} rows)"
    last = len(task.classes) - 1
    wrong = labels[~np.isin(labels, np.arange(len(task.classes)))] if task.classes else labels[:0]
    return f"holds values that are not codes 0 ... {last} of its classes, such as {wrong[0]:g}" if wrong.size else ""


def _as_floats(name: str, X: ArrayLike) -> Array:
    try:
        array = np.asarray(X)
        return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"`{name}`: features that are no numbers ({error}); encode them, or give a table to `read_table`"
        ) from error


def _as_labels(name: str, y: ArrayLike) -> Array:
    try:
        return np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError) as error:
        remedy = "give a class by its code, its place 0, 1, ... in `classes`, or a table to `read_table`"
        raise DataError(f"`{name}`: labels that are no numbers ({error}); {remedy}") from error


def _as_tasks(tasks: Sequence[Task | str] | None, n_tasks: int) -> tuple[Task, ...]:
    if tasks is None:
        tasks = [f"task{t}" for t in range(n_tasks)]
    if isinstance(tasks, Mapping | str) or len(tasks) != n_tasks:
        raise DataError(f"`tasks`: {len(tasks)} given for {n_tasks} columns of labels; give one a column")
    return tuple(task if isinstance(task, Task) else Task(str(task)) for task in tasks)
