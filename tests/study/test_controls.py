"""Recipes beside their controls in a study, and what it shows of groups that change while a net is trained."""

import json
import re
from dataclasses import dataclass, replace
from typing import ClassVar

import jsonschema
import numpy as np
import pytest

from taskloom.deep import MLP, FitOptions, JointRecipe, SelectiveRecipe
from taskloom.linear import LinearPredictor, RidgeRecipe
from taskloom.study import Study, StudyOptions, holm, paired_interval, results_schema, study
from taskloom.study import _study as study_module
from taskloom.study._controls import described, with_controls
from taskloom.study._group_history import (
    History,
    affinity_chart,
    drawn_pairs,
    found_histories,
    history_sentence,
    membership_chart,
)
from taskloom.study._unit import Unit, run_unit
from taskloom.tasks import FitError, Recipe, RecipeFit, TaskData, load_diabetes_tasks

# Errors in the target's own unit: a plain difference of predictions is then seen at once.
GROUPS = load_diabetes_tasks("age_groups")
GROUPS = replace(GROUPS, tasks=tuple(replace(task, metric="rmse") for task in GROUPS.tasks))


@dataclass(frozen=True)
class OffRecipe(Recipe):
    """Ridge whose predictions are off by so much: a recipe with a known verdict, and one of itself as a control."""

    off: float = 0.0
    control_off: float | None = None
    fails_on: tuple[int, ...] = ()
    title: str = ""
    name: ClassVar[str] = "off"
    summary: ClassVar[str] = "for tests"
    family: ClassVar[str] = "linear"

    def fit(self, train, validation, *, seed, budget=4):
        if seed in self.fails_on:
            raise FitError("it was told to fail")
        fit = RidgeRecipe().fit(train, validation, seed=seed, budget=budget)
        moved = [b + self.off * (1 + 0.01 * seed) for b in fit.predictor.intercepts]
        return RecipeFit(LinearPredictor(fit.predictor.coefficients, moved, train.tasks), {}, fit.validation_loss)

    def controls(self):
        return {} if self.control_off is None else {"at equal length": OffRecipe(self.control_off, fails_on=self.fails_on)}


OPTIONS = FitOptions(max_steps=30, patience=1000, batch_size=16, learning_rate=1e-2, accelerator="cpu")
SELECTIVE = SelectiveRecipe(MLP((6,)), OPTIONS, warmup=6, regroup_every=4, beta=0.1)


def shared_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 5))
    Y = np.tanh(X @ rng.normal(size=(5, 2)))[:, [0, 0, 1, 1]] + 0.5 * rng.normal(size=(150, 4))
    return TaskData.shared_rows(X, Y, ["<a>", "b & c", "d", "e"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("controls")


@pytest.fixture(scope="module")
def selective(cache):
    return study(shared_rows(), [SELECTIVE], seeds=3, options=StudyOptions(budget=1, cache=cache))


def test_the_controls_of_a_recipe_are_trained_beside_it(selective):
    assert [info.label for info in selective.recipes] == ["single", "selective", "joint", "joint-xM", "random-groups"]
    assert selective.recipes[1].controls == {
        "at equal batches": "joint",
        "at equal steps": "joint-xM",
        "at equal steps, groups at random": "random-groups",
    }
    assert [(each.recipe, each.control) for each in selective.contrasts] == [
        ("selective", "joint"),
        ("selective", "joint-xM"),
        ("selective", "random-groups"),
    ]


def test_in_a_study_too_controls_make_the_steps_of_the_selective_run(selective):
    steps = {(unit.recipe, unit.seed): (unit.steps, unit.total_steps, unit.batches) for unit in selective.units}
    for seed in selective.seeds:
        assert steps["joint-xM", seed] == steps["random-groups", seed] == steps["selective", seed]
        assert steps["joint", seed] == (30, 30, 30)
        assert steps["selective", seed][0] > 30


def test_intervals_against_controls_are_those_of_the_paired_scores(selective):
    scores = {(unit.recipe, unit.seed): np.array(unit.scores) for unit in selective.units}
    ratios = {unit.seed: np.divide(unit.test_rows, unit.train_rows) for unit in selective.units}
    ratio = np.mean([ratios[seed] for seed in selective.seeds], axis=0)
    for each in selective.contrasts:
        gains = np.array([scores[each.recipe, seed] - scores[each.control, seed] for seed in selective.seeds])
        intervals = [paired_interval(gains[:, t], ratio[t]) for t in range(4)]
        for verdict, interval, corrected in zip(each.verdicts, intervals, holm([i.p_value for i in intervals]), strict=True):
            assert (verdict.recipe, verdict.baseline) == (each.recipe, each.control)
            assert (verdict.gain, verdict.low, verdict.high) == pytest.approx((interval.mean, interval.low, interval.high))
            assert verdict.p_corrected == pytest.approx(corrected)
        mean = paired_interval(gains.mean(axis=1), ratio.mean())
        assert (each.gain, each.low, each.high) == pytest.approx((mean.mean, mean.low, mean.high))


def test_a_recipe_better_or_worse_than_its_control_is_said_to_be_so():
    recipes = [OffRecipe(0.0, control_off=3.0, title="exact"), OffRecipe(3.0, control_off=0.0, title="far off")]
    result = study(GROUPS, recipes, seeds=8, options=StudyOptions(cache=False))
    assert [info.label for info in result.recipes] == ["ridge", "exact", "far off", "off", "off for far off"]
    better, worse = result.contrasts
    assert (better.count("helped"), worse.count("hurt")) == (6, 6)
    words = result.words()
    assert "`exact` against `off` at equal length (all candidates: 0 steps against 0): better on all 6, worse on none." in words
    assert any("`far off` against `off for far off` at equal length" in s and "worse on all 6" in s for s in words)
    # Errors in the targets' unit have no mean over tasks.
    assert (better.gain, better.low) == (None, None)


def test_a_control_that_is_named_already_is_known_by_its_settings():
    joint, other = JointRecipe(SELECTIVE.net, OPTIONS, "my joint"), JointRecipe(MLP((3,)), OPTIONS)
    named = with_controls([other, SELECTIVE, joint])
    assert [recipe.label for recipe in named] == ["joint", "selective", "my joint", "joint-xM", "random-groups"]
    assert described(named)[1].controls["at equal batches"] == "my joint"
    taken = with_controls([other, SELECTIVE])
    assert [recipe.label for recipe in taken] == ["joint", "selective", "joint for selective", "joint-xM", "random-groups"]
    assert described(taken)[1].controls["at equal batches"] == "joint for selective"
    assert with_controls(taken) == taken


def test_controls_can_be_left_out_and_those_that_are_named_are_compared_all_the_same(monkeypatch):
    trained = []
    monkeypatch.setattr(study_module, "run_unit", lambda *args: trained.append(args[1].label) or run_unit(*args))
    options = StudyOptions(cache=False, controls=False)
    alone = study(GROUPS, [OffRecipe(1.0, control_off=2.0, title="own")], seeds=1, options=options)
    assert trained == ["ridge", "own"]
    assert alone.contrasts == []
    both = study(GROUPS, [OffRecipe(1.0, control_off=2.0, title="own"), OffRecipe(2.0)], seeds=1, options=options)
    assert [(each.recipe, each.control) for each in both.contrasts] == [("own", "off")]


def test_without_a_model_of_both_nothing_is_decided():
    half = study(GROUPS, [OffRecipe(0.0, 3.0, (1,), "own")], seeds=5, options=StudyOptions(cache=False))
    assert {verdict.word for verdict in half.contrasts[0].verdicts} == {"undecided"}
    assert any("gave no model on some seed, so nothing is decided" in sentence for sentence in half.words())
    none = study(GROUPS, [OffRecipe(0.0, 3.0, (0, 1), "own")], seeds=2, options=StudyOptions(cache=False))
    assert none.contrasts[0].verdicts == ()
    assert "`own` against `off` at equal length: no seed has a model of both." in none.words()
    jsonschema.validate(json.loads(json.dumps(none.to_json(), allow_nan=False)), results_schema())


def test_a_study_that_was_stopped_goes_on_and_gives_what_an_uninterrupted_one_does(selective, tmp_path):
    class Stopped(BaseException):
        pass

    def stop_in_the_middle(done, total, what):
        if done == 8:
            raise Stopped

    options = StudyOptions(budget=1, cache=tmp_path)
    with pytest.raises(Stopped):
        study(shared_rows(), [SELECTIVE], seeds=3, options=options, progress=stop_in_the_middle)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(kept) == 8
    again = study(shared_rows(), [SELECTIVE], seeds=3, options=options)
    assert all((tmp_path / name).stat().st_mtime_ns == when for name, when in kept.items())

    def numbers(result):
        value = result.to_json()
        for entry in [*value["units"], *value["summaries"]]:
            del entry["seconds"], entry["peak_mb"]
        return json.loads(json.dumps(value))

    assert numbers(again) == numbers(selective)


def test_results_keep_their_schema_and_older_ones_still_load(selective, tmp_path):
    value = json.loads(selective.save_results(tmp_path / "results.json").read_text())
    jsonschema.validate(value, results_schema())
    again = Study.from_json(value)
    assert json.loads(json.dumps(again.to_json())) == value
    assert again.contrasts == selective.contrasts
    for entry in value["units"]:
        del entry["batches"], entry["trunk_flops"], entry["group_history"]
    for entry in value["recipes"]:
        del entry["controls"]
    for entry in value["summaries"]:
        del entry["batches"], entry["trunk_flops"]
    del value["contrasts"]
    jsonschema.validate(value, results_schema())
    older = Study.from_json(value)
    assert older.contrasts == []
    assert older.summaries[0].trunk_flops is None
    assert "Against its controls" not in older.report(tmp_path / "older.html").read_text()


def _section(html, title):
    return html.split(f"<h2>{title}</h2>", 1)[1].split("</section>", 1)[0]


def test_the_report_holds_the_recipe_against_its_controls_with_their_costs(selective, tmp_path):
    html = selective.report(tmp_path / "report.html").read_text()
    section = _section(html, "Against its controls")
    for number, each in enumerate(selective.contrasts):
        assert f"<code>{each.control}</code></td><td>{each.question}</td>" in section
        assert f"{each.gain:+.4f}" in section
        assert f'id="contrast-{number}"' in section
        assert all(f"{verdict.gain:+.4f}" in section for verdict in each.verdicts)
    assert "over the control (right of 0 is better)" in section
    for title in ("Against its controls", "Scores", "Cost"):
        part = _section(html, title)
        for summary in selective.summaries:
            if title != "Against its controls" or summary.recipe != "single":
                assert f'">{summary.steps:,}</td>' in part
                assert re.search(rf'">{re.escape(f"{summary.trunk_flops:.3g}")}|">{summary.trunk_flops:,.0f}</td>', part)


def test_the_report_shows_groups_over_the_training(selective, tmp_path):
    html = selective.report(tmp_path / "report.html").read_text()
    section = _section(html, "Groups while training")
    assert 'id="history-membership-0"' in section
    assert 'id="history-affinity-0"' in section
    assert "&lt;a&gt;" in section
    assert "<a>" not in section
    assert "units of the receiver&#39;s own progress" in _section(html, "How the tasks relate")
    assert (
        "Groups while training"
        not in study(GROUPS, [RidgeRecipe()], seeds=1, options=StudyOptions(cache=False))
        .report(tmp_path / "none.html")
        .read_text()
    )


BLANK = {"scores": [], "validation_loss": [], "train_rows": [], "test_rows": []}


def test_the_seed_that_is_most_like_the_others_is_drawn():
    ends = [[0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 1, 2], [0, 0, 1, 1]]
    units = [Unit("selective", 10 + s, **BLANK, group_history=[{"batch": 5, "groups": g}]) for s, g in enumerate(ends)]
    (history,) = found_histories([*units, Unit("joint", 0, **BLANK)], ["a", "b", "c", "d"])
    assert (history.seed, history.n_same, history.n_groups) == (11, 2, [4, 2, 3, 2])
    assert "2 to 4 groups at the end, 2.8 on average over 4 seeds" in history_sentence(history)
    assert "ended with 2 (`a`, `b`; `c`, `d`); 2 of 4 seeds did" in history_sentence(history)


def test_a_group_keeps_its_colour_while_most_of_its_tasks_stay():
    groups = [[0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]
    history = History("selective", 0, list("abcd"), [{"batch": 10 * i, "groups": g} for i, g in enumerate(groups)], 1, [2])
    figure = membership_chart(history)
    cells = np.array(figure.data[0].customdata)
    names = list(figure.data[0].y)
    by_task = {name: cells[i].tolist() for i, name in enumerate(names)}
    assert [len(set(cells[:, t])) for t in range(3)] == [4, 2, 2]
    assert by_task["c"][1] == by_task["c"][2] == by_task["d"][2] == by_task["b"][2]
    assert by_task["a"][0] == by_task["a"][1] == by_task["a"][2]
    assert list(figure.data[0].x) == [0, 10, 20, 30]
    assert affinity_chart(history) is None
    once = membership_chart(replace(history, points=history.points[1:2]))
    assert np.array(once.data[0].z).shape == (4, 1)


def test_weights_that_were_kept_from_before_there_were_groups_are_counted():
    ended = [{"batch": b, "groups": [0, 1, 2]} for b in (0, 40)]
    grouped = [*ended, {"batch": 90, "groups": [0, 1, 1]}]
    cases = [(ended, {"kept_after_batches": 30}), (grouped, {"kept_after_batches": 40}), (grouped, {"kept_after_batches": 41})]
    units = [Unit("selective", s, **BLANK, group_history=h, chosen=c) for s, (h, c) in enumerate([*cases, (ended, {})])]
    (history,) = found_histories(units, list("abc"))
    assert history.n_before == 2
    assert "On 2 of 4 seeds the weights that were kept" in history_sentence(history)
    assert "weights that were kept" not in history_sentence(replace(history, n_before=0))
    alone = [{"batch": b, "groups": [0]} for b in (0, 40)]
    assert found_histories([Unit("selective", 0, **BLANK, group_history=alone, chosen=cases[0][1])], ["a"])[0].n_before == 0


def test_more_groups_than_colours_are_owned_up_to(selective, tmp_path):
    told = "some share one, and a cell that is pointed at"
    assert told not in selective.report(tmp_path / "few.html").read_text()
    rng = np.random.default_rng(0)
    nine = TaskData.shared_rows(rng.normal(size=(80, 3)), rng.normal(size=(80, 9)))
    result = study(nine, [SELECTIVE], seeds=1, options=StudyOptions(budget=1, cache=False, controls=False))
    assert told in result.report(tmp_path / "many.html").read_text()


def test_of_many_pairs_the_greatest_and_the_least_are_drawn():
    affinity = np.arange(36.0).reshape(6, 6)
    affinity[5, 4] = np.nan
    pairs = drawn_pairs(affinity)
    assert pairs[:4] == [(5, 3), (5, 2), (5, 1), (5, 0)]
    assert pairs[-4:] == [(0, 4), (0, 3), (0, 2), (0, 1)]
    points = [{"batch": b, "groups": [0, 1], "affinity": [[0.1, None], [b / 100, 0.2]]} for b in (10, 20)]
    figure = affinity_chart(History("selective", 0, ["<x>", "y"], points, 1, [2]))
    assert [trace.name for trace in figure.data] == ["&lt;x> on y"]
    assert list(figure.data[0].y) == [0.1, 0.2]


def test_the_history_of_too_many_tasks_is_not_kept(monkeypatch):
    few = run_unit(shared_rows(), SELECTIVE, 0, StudyOptions(budget=1, cache=False))
    assert len(few.group_history) > 3
    monkeypatch.setattr("taskloom.study._unit.MOST_RELATED", 3)
    many = run_unit(shared_rows(), SELECTIVE, 0, StudyOptions(budget=1, cache=False))
    assert (many.group_history, many.relations) == ([], {})
    assert (many.scores, many.trunk_flops) == (few.scores, few.trunk_flops)
