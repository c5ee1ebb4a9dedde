import numpy as np
import pytest

from taskloom.deep import MLP, FitOptions, JointRecipe, SingleRecipe
from taskloom.linear import RidgeRecipe
from taskloom.study import StudyOptions, study
from taskloom.tasks import TaskData, load_diabetes_tasks

FAST = FitOptions(max_steps=60, validate_every=10, batch_size=16, accelerator="cpu")
FAST_RECIPES = (RidgeRecipe(), SingleRecipe(net=MLP((8,)), options=FAST), JointRecipe(net=MLP((8,)), options=FAST))


@pytest.fixture(scope="session")
def small_study(tmp_path_factory):
    cache = tmp_path_factory.mktemp("small")
    return study(load_diabetes_tasks("age_groups"), FAST_RECIPES, seeds=4, options=StudyOptions(budget=2, cache=cache))


@pytest.fixture
def related_tasks():
    """Four tasks of few rows with one and the same truth: learning together must help."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=12)
    parts = []
    for _ in range(4):
        X = rng.normal(size=(60, 12))
        parts.append((X, X @ w + 0.5 * rng.normal(size=60)))
    return TaskData.own_rows(parts)
