"""The demonstration: real data that scikit-learn carries, and the table that a user's own would look like."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from taskloom.tasks import TaskData, load_diabetes_tasks, write_file

DEMO_RECIPES = ("ridge", "single", "joint")
DEMO_TARGET = "progression"


def demo_data() -> TaskData:
    """Disease progression of 442 diabetes patients: one outcome, six age groups, each a task with own rows.

    Examples:
        >>> demo_data()
        TaskData(6 regression tasks, own rows, 442 rows x 10 features)
    """
    return load_diabetes_tasks("age_groups")


def save_csv(data: TaskData, path: str | Path, target: str = DEMO_TARGET) -> Path:
    """Write own-row tasks of numbers as a CSV file that `read_table` reads back.

    Args:
        data: own rows, regression.
        path: of the file.
        target: name of the target column.

    Raises:
        OutputError: it cannot be written.
    """
    owners = data.task_of_row if data.task_of_row is not None else np.zeros(data.n_rows, dtype=np.int64)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([data.by, *data.features.names, target])
    for owner, row, label in zip(owners, data.X, data.y, strict=True):
        writer.writerow([data.tasks[owner].name, *(f"{value:.10g}" for value in row), f"{label:.10g}"])
    write_file(Path(path), text.getvalue())
    return Path(path)
