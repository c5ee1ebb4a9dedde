import json
import re
from dataclasses import dataclass

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn

from taskloom.deep import AdaTaskRecipe, FitOptions, JointRecipe, SharedBottom
from taskloom.study import Study, StudyOptions, results_schema, study
from taskloom.study._dominance import Shares, dominance_chart, dominance_sentence, left_out_sentence, pool
from taskloom.study._unit import MOST_RELATED, Unit, run_unit
from taskloom.tasks import TaskData


class _Louder(nn.Module):
    """A net whose first output, and so all that its task asks of the trunk, is ten times as large."""

    def __init__(self, inner, n_tasks):
        super().__init__()
        self.inner = inner
        self.register_buffer("factors", torch.tensor([10.0] + [1.0] * (n_tasks - 1)))

    def forward(self, x):
        return self.factors * self.inner(x)


@dataclass(frozen=True)
class LoudNet:
    """Standardised labels leave no task louder than another: the net has to make it so."""

    def __call__(self, shape, tasks):
        return _Louder(SharedBottom(shape[0], tasks, (12, 8)), len(tasks))


OPTIONS = FitOptions(max_steps=120, patience=1000, batch_size=32, learning_rate=3e-3, accelerator="cpu")


def noisy_tasks(n_tasks=2):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 5))
    return TaskData.shared_rows(X, X @ rng.normal(size=(5, n_tasks)) + 2 * rng.normal(size=(200, n_tasks)), ["loud", "quiet"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("dominance")


def run(cache, every=2, seeds=2):
    recipes = [kind(LoudNet(), OPTIONS, dominance_every=every) for kind in (JointRecipe, AdaTaskRecipe)]
    return study(noisy_tasks(), recipes, seeds=seeds, options=StudyOptions(budget=1, cache=cache))


@pytest.fixture(scope="module")
def measured(cache):
    return run(cache)


LAYERS = ["inner.encoder.0.weight", "inner.encoder.0.bias", "inner.encoder.2.weight", "inner.encoder.2.bias"]


def test_the_loud_task_dominates_every_layer_under_joint_adam_and_none_under_adatask(measured):
    joint, apart = pool(measured.units)
    assert (joint.recipe, apart.recipe) == ("joint", "adatask")
    assert list(joint.medians) == list(apart.medians) == LAYERS
    assert all(median[0] > 0.9 for median in joint.medians.values())
    assert all(0.1 < median[0] < 0.9 for median in apart.medians.values())
    assert "`loud` dominates 4 of 4 layers" in dominance_sentence(joint)
    assert "no task dominates a layer" in dominance_sentence(apart)
    two_seeds = sum(sum(unit.dominance[LAYERS[0]]["loud"]["counts"]) for unit in measured.units if unit.recipe == "joint")
    assert joint.counts[LAYERS[0]][0].sum() == two_seeds == 2 * 60


def test_the_report_has_the_section_with_the_right_tasks_and_layers(measured, tmp_path):
    html = measured.report(tmp_path / "report.html").read_text()
    section = html.split("<h2>Which task moves which layer</h2>", 1)[1].split("</section>", 1)[0]
    assert "<code>joint</code>: <code>loud</code> dominates 4 of 4 layers" in section
    assert "<code>adatask</code>: no task dominates a layer" in section
    assert all(section.count(layer) >= 2 for layer in LAYERS)
    assert 'id="dominance-0"' in section
    assert 'id="dominance-1"' in section
    assert "heads" not in section
    assert re.search(r"rAU is its share", section)


def test_without_measuring_there_is_no_section_and_scores_are_the_same(measured, tmp_path):
    silent = run(tmp_path / "cache", every=0)
    assert all(unit.dominance == {} for unit in silent.units)
    assert "Which task moves which layer" not in silent.report(tmp_path / "report.html").read_text()
    assert [unit.scores for unit in silent.units] == [unit.scores for unit in measured.units]


def test_measuring_changes_nothing_of_the_baseline(measured):
    assert [info.label for info in measured.recipes] == ["single", "joint", "adatask"]


def test_finished_units_come_back_from_the_cache_with_their_shares(measured, cache):
    files = sorted(cache.glob("*.json"))
    stamps = [path.stat().st_mtime_ns for path in files]
    again = run(cache)
    assert [path.stat().st_mtime_ns for path in files] == stamps
    assert [unit.dominance for unit in again.units] == [unit.dominance for unit in measured.units]


def test_results_keep_their_schema_and_old_ones_without_shares_still_load(measured, tmp_path):
    value = json.loads(measured.save_results(tmp_path / "results.json").read_text())
    jsonschema.validate(value, results_schema())
    assert [unit.dominance for unit in Study.from_json(value).units] == [unit.dominance for unit in measured.units]
    for unit in value["units"]:
        del unit["dominance"]
    jsonschema.validate(value, results_schema())
    assert all(unit.dominance == {} for unit in Study.from_json(value).units)


def test_shares_of_too_many_tasks_are_not_kept():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    data = TaskData.shared_rows(X, rng.normal(size=(40, MOST_RELATED + 1)))
    recipe = JointRecipe(options=FitOptions(max_steps=2, learning_rate=1e-3, accelerator="cpu"), dominance_every=1)
    unit = run_unit(data, recipe, 0, StudyOptions(budget=1, cache=False))
    assert unit.scores
    assert unit.dominance == {}


def shares_of(n_tasks, n_layers):
    rng = np.random.default_rng(1)
    names = [f"layer {i}" for i in range(n_layers)]
    counts = {name: rng.integers(0, 9, size=(n_tasks, 20)) for name in names}
    medians = {name: np.arange(n_tasks) / n_tasks for name in names}
    return Shares("joint", [f"task <{k}>" for k in range(n_tasks)], counts, medians)


def test_each_layer_has_a_panel_and_each_histogram_sums_to_one():
    shares = shares_of(3, 5)
    figure = dominance_chart(shares)
    assert [note.text for note in figure.layout.annotations] == list(shares.counts)
    assert len(figure.data) == 15
    assert all(sum(trace.y[::2]) == pytest.approx(1.0) for trace in figure.data)
    assert figure.data[0].name == "task &lt;0>"
    assert left_out_sentence(shares) == ""


def test_of_many_tasks_and_layers_the_extremes_are_drawn_and_the_report_says_so():
    shares = shares_of(11, 60)
    figure = dominance_chart(shares)
    drawn = {trace.name for trace in figure.data}
    assert {"task &lt;0>", "task &lt;10>"} <= drawn
    assert len(drawn) == 8
    assert len(figure.layout.annotations) == 24
    assert left_out_sentence(shares) == "Drawn: the 8 of 11 tasks with the largest and smallest shares and 24 of 60 layers."


def test_a_layer_that_stood_still_in_one_seed_is_pooled_over_the_others():
    share = {"a": {"counts": [1, 0], "median": 0.2}, "b": {"counts": [0, 1], "median": 0.8}}
    blank = {"scores": [], "validation_loss": [], "train_rows": [], "test_rows": []}
    units = [Unit("joint", 0, **blank, dominance={"x": share}), Unit("joint", 1, **blank, dominance={"x": share, "y": share})]
    (found,) = pool([*units, Unit("single", 0, **blank)])
    assert found.counts["x"].tolist() == [[2, 0], [0, 2]]
    assert found.counts["y"].tolist() == [[1, 0], [0, 1]]
    assert found.medians["x"].tolist() == [0.2, 0.8]
