"""Studies on published data sets, skipped where they are absent."""

import numpy as np
import polars as pl
import pytest
from scipy.io import arff
from tests.study.conftest import FAST_RECIPES

from taskloom.study import StudyOptions, study
from taskloom.tasks import TableOptions, read_table


@pytest.fixture(scope="session")
def water_quality(real_data, tmp_path_factory):
    """wq.arff as a CSV file, and its 14 targets: the abundance of 14 plants and animals in a river."""
    rows, meta = arff.loadarff(real_data / "mulan" / "multi-target" / "wq.arff")
    frame = pl.DataFrame({name: np.asarray(rows[name], dtype=float) for name in meta.names()})
    path = tmp_path_factory.mktemp("wq") / "wq.csv"
    frame.write_csv(path)
    return path, [name for name in meta.names() if name.isdigit()]


def test_many_outcomes_of_one_sample(water_quality, tmp_path):
    path, targets = water_quality
    data = read_table(path, targets=targets, options=TableOptions(kind="regression"))
    assert (data.n_tasks, data.n_rows, data.features.n_columns) == (14, 1060, 16)
    result = study(data, FAST_RECIPES, seeds=3, options=StudyOptions(budget=2, cache=tmp_path))
    assert len(result.verdicts) == 14
    # Species are hard to foretell, but not at random: above the mean on average, for every recipe.
    for info in result.recipes:
        assert np.mean([unit.scores for unit in result.units if unit.recipe == info.label]) > 0


def test_one_outcome_of_many_patients(real_data, tmp_path):
    path = real_data / "parkinsons" / "parkinsons_updrs.data"
    data = read_table(path, target="total_UPDRS", by="subject#", options=TableOptions(drop=["motor_UPDRS"]))
    result = study(data, FAST_RECIPES, seeds=3, options=StudyOptions(budget=2, cache=tmp_path))
    assert len(result.verdicts) == 42
    # A patient's score moves nearly along a line in time: any recipe foretells a good part of it.
    for info in result.recipes:
        assert np.mean([unit.scores for unit in result.units if unit.recipe == info.label]) > 0.3, info.label
    assert result.report(tmp_path / "report.html").stat().st_size > 1e6
