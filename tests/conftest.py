"""Fixtures that several tests share."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from taskloom.tasks import FeatureEncoder, TargetScaler, TaskData, load_diabetes_tasks, load_digits_tasks, split_rows


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache, and each starts from the same generator on one thread."""
    monkeypatch.setenv("TASKLOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data():
    """The folder of real data sets; what needs it is skipped where it is absent."""
    beside = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("TASKLOOM_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no data folder: set TASKLOOM_DATA (looked at {folder})")
    return folder


def encoded_parts(data: TaskData, seed: int = 0) -> tuple[TaskData, TaskData, TaskData]:
    """Training, validation and test rows as recipes see them."""
    split = split_rows(data, seed)
    parts = [data.take(rows) for rows in (split.train, split.validation, split.test)]
    encoder, scaler = FeatureEncoder.fit(parts[0].features), TargetScaler.fit(parts[0])
    train, validation, test = (scaler.encode(encoder.encode(part)) for part in parts)
    return train, validation, test


@pytest.fixture
def shared_parts():
    """Seven regression tasks on shared rows, a fifth of the labels missing."""
    data = load_diabetes_tasks()
    y = data.y.copy()
    y[np.random.default_rng(0).random(y.shape) < 0.2] = np.nan
    return encoded_parts(TaskData(data.tasks, data.features, y))


@pytest.fixture
def own_parts():
    """Six regression tasks of uneven size with own rows."""
    return encoded_parts(load_diabetes_tasks("age_groups"))


@pytest.fixture
def digit_parts():
    """Five binary tasks with own rows."""
    return encoded_parts(load_digits_tasks())


@pytest.fixture
def mixed_data():
    """A regression, a binary and two multiclass tasks of different widths on shared rows, with missing labels."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(240, 5))
    score = X @ rng.normal(size=(5, 4)) + 0.3 * rng.normal(size=(240, 4))
    three, four = np.digitize(score[:, 2], [-0.5, 0.5]), np.digitize(score[:, 3], [-1, 0, 1])
    y = np.column_stack([score[:, 0], score[:, 1] > 0, three, four]).astype(float)
    y[rng.random(y.shape) < 0.1] = np.nan
    frame = pl.DataFrame({f"x{i}": X[:, i] for i in range(5)})
    columns = {"amount": y[:, 0], "ill": y[:, 1], "grade": y[:, 2], "stage": y[:, 3]}
    labels = {name: pl.Series([None if np.isnan(v) else v for v in column]) for name, column in columns.items()}
    return frame.with_columns(**labels)
