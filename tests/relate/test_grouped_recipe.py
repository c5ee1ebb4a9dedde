"""The recipe `grouped`: which groups it finds, how it trains them, and what is left of it in models, studies and reports."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from tests.conftest import encoded_parts
from tests.relate.planted_groups import planted
from torch import nn

from taskloom.deep import MLP, AdaTaskRecipe, FitOptions, JointRecipe, SharedBottom, SingleRecipe, SumStep
from taskloom.relate import GroupedRecipe, MeasureOptions, _recipe, cluster, labels, select
from taskloom.relate._measures import MEASURES
from taskloom.relate._recipe import of_tasks
from taskloom.study import Study, StudyOptions, fit_model, load_model, results_schema, study
from taskloom.tasks import FitError, OptionError, TableOptions, TaskData, UnknownNameError, load_diabetes_tasks, read_table

FAST = FitOptions(max_steps=40, validate_every=10, batch_size=32, learning_rate=5e-3, accelerator="cpu")
INNER = JointRecipe(net=MLP((8,)), options=FAST)
SHORT = MeasureOptions(steps=200, accelerator="cpu")
BY_LABELS = GroupedRecipe("labels", n_nets=2, inner=INNER)


def parts_of(data, share=0.75):
    n = int(share * data.n_rows)
    return data.take(np.arange(n)), data.take(np.arange(n, data.n_rows))


@pytest.fixture(scope="module")
def two_kinds():
    """Two groups of three binary tasks that read the same hidden features; training and validation rows."""
    data, _ = planted(2, 3, n_rows=600, d=10)
    return parts_of(data)


def chain(n=300):
    """Regression tasks of which the middle one is like both others, which have nothing in common; and one apart."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 5))
    Y = np.stack([X[:, 0], X[:, 0] + X[:, 1], X[:, 1], X[:, 2]], axis=1) + 0.05 * rng.normal(size=(n, 4))
    return parts_of(TaskData.shared_rows(X, Y, ["left", "middle", "right", "apart"]))


def same(one, two, X, tasks):
    pairs = zip(one.predict(X, tasks), two.predict(X, tasks), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("measure", ["samplewise_cosine", "lookahead", "samplewise", "labels"])
def test_planted_groups_are_found_and_each_task_is_served_by_its_own(two_kinds, measure):
    train, validation = two_kinds
    recipe = GroupedRecipe(measure, n_nets=2, inner=INNER, measuring=SHORT)
    fit = recipe.fit(train, validation, seed=0, budget=1)
    names = [task.name for task in train.tasks]
    assert sorted(fit.groups["sets"]) == [names[:3], names[3:]]
    assert [fit.groups["serves"][name] for name in names] == [0, 0, 0, 1, 1, 1]
    assert fit.chosen["group"] == [1, 1, 1, 2, 2, 2]
    np.testing.assert_array_equal(fit.relations["learned together"], np.kron(np.eye(2), np.ones((3, 3))))
    relation = fit.relations[fit.groups["relation"]]
    assert np.abs(relation).max() <= 1
    assert relation[0, 1] > relation[0, 4]
    assert f"Groups by `{measure}`: {', '.join(names[:3])} | {', '.join(names[3:])}." in fit.notes[0]
    said = any("Label correlation alone would have chosen the same groups." in note for note in fit.notes)
    assert said == (measure != "labels")


def test_the_nets_are_those_of_the_recipe_inside_on_each_group_alone(two_kinds):
    train, validation = two_kinds
    fit = BY_LABELS.fit(train, validation, seed=1, budget=1)
    losses = []
    for g, names in enumerate(fit.groups["sets"]):
        alone = INNER.fit(of_tasks(train, names), of_tasks(validation, names), seed=1, budget=1)
        tasks = [t for t, task in enumerate(train.tasks) if fit.groups["serves"][task.name] == g]
        for t in tasks:
            place = names.index(train.tasks[t].name)
            expected = alone.predictor.predict(validation.X, [place])[0]
            assert np.array_equal(fit.predictor.predict(validation.X, [t])[0], expected)
            losses.append((t, alone.validation_loss[place]))
    np.testing.assert_array_equal(fit.validation_loss, [loss for _, loss in sorted(losses)])


def test_one_net_is_the_recipe_inside_to_the_bit(two_kinds):
    train, validation = two_kinds
    fit = replace(BY_LABELS, n_nets=1).fit(train, validation, seed=2, budget=1)
    joint = INNER.fit(train, validation, seed=2, budget=1)
    assert same(fit.predictor, joint.predictor, validation.X, range(6))
    np.testing.assert_array_equal(fit.validation_loss, joint.validation_loss)
    for name in ("steps", "total_steps", "curves", "batches", "trunk_flops"):
        assert getattr(fit, name) == getattr(joint, name), name


def test_groups_follow_from_training_rows_alone(two_kinds):
    train, validation = two_kinds
    one = BY_LABELS.fit(train, validation, seed=0, budget=1)
    other = BY_LABELS.fit(train, replace(validation, y=validation.y[::-1]), seed=0, budget=1)
    expected = select(labels(None, train), 2)
    for fit in (one, other):
        assert fit.groups["sets"] == [list(names) for names in expected.sets]
        assert fit.groups["serves"] == expected.serves


def test_a_likeness_is_clustered_and_gains_are_selected(two_kinds):
    train, validation = two_kinds
    likeness = labels(None, train)
    most = len(cluster(likeness).sets)
    for recipe, expected in (
        (BY_LABELS, cluster(likeness, min(most, 2))),
        (replace(BY_LABELS, n_nets=9), cluster(likeness)),
        (replace(BY_LABELS, method="select"), select(likeness, 2)),
        (replace(BY_LABELS, alone=0.3), select(replace(likeness, zero=0.3), 2)),
    ):
        fit = recipe.fit(train, validation, seed=0, budget=1)
        assert fit.groups["sets"] == [list(names) for names in expected.sets]


@pytest.mark.parametrize("method", ["louvain", "affinity_propagation"])
def test_where_a_method_cannot_give_so_many_groups_it_gives_fewer(method):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    Y = np.repeat(X, 2, axis=1) + 0.01 * rng.normal(size=(200, 6))
    data = TaskData.shared_rows(X, Y, list("abcdef"))
    with pytest.raises(OptionError, match="not reached"):
        cluster(labels(None, data), 2, "affinity_propagation")
    fit = GroupedRecipe("labels", n_nets=2, method=method, inner=INNER).fit(data, data, seed=0, budget=1)
    assert len(fit.groups["sets"]) <= 2


def test_what_many_trainings_cost_is_told_as_such(two_kinds):
    train, validation = two_kinds
    quick = MeasureOptions(n_rows=60, steps=30, accelerator="cpu")
    fit = GroupedRecipe("pairwise", n_nets=2, inner=INNER, measuring=quick).fit(train, validation, seed=0, budget=1)
    assert any(note.startswith("Measuring took 42 trainings of up to 30 steps, ") for note in fit.notes)


def test_a_task_may_help_where_another_group_serves_it():
    train, validation = chain()
    fit = GroupedRecipe("labels", n_nets=3, inner=INNER, alone=0.3).fit(train, validation, seed=0, budget=1)
    home = fit.groups["serves"]
    assert len({home["left"], home["right"], home["apart"]}) == 3
    assert [name for names in fit.groups["sets"] for name in names].count("middle") == 2
    assert "helped by middle" in fit.notes[0]
    apart = replace(BY_LABELS, n_nets=3, alone=0.3, overlap=False).fit(train, validation, seed=0, budget=1)
    assert sorted(name for names in apart.groups["sets"] for name in names) == ["apart", "left", "middle", "right"]


def test_a_task_that_is_left_alone_is_trained_as_single_trains_it():
    train, validation = chain()
    fit = GroupedRecipe("labels", n_nets=3, inner=INNER, alone=0.3).fit(train, validation, seed=4, budget=1)
    assert ["apart"] in fit.groups["sets"]
    single = SingleRecipe(INNER.net, INNER.options)
    alone = single.fit(of_tasks(train, ["apart"]), of_tasks(validation, ["apart"]), seed=4, budget=1)
    assert np.array_equal(fit.predictor.predict(validation.X, [3])[0], alone.predictor.predict(validation.X, [0])[0])
    # Without a gain of its own no task is left alone.
    assert all(len(names) > 1 for names in BY_LABELS.fit(train, validation, seed=4, budget=1).groups["sets"])


def test_each_net_has_a_rate_of_its_own(two_kinds):
    train, validation = two_kinds
    inner = replace(INNER, options=replace(FAST, learning_rate=None, learning_rates=(1e-4, 1e-2)))
    fit = replace(BY_LABELS, inner=inner).fit(train, validation, seed=0, budget=2)
    rates = fit.chosen["learning_rate"]
    assert len(rates) == 6
    assert set(rates) <= {1e-4, 1e-2}
    assert fit.total_steps == 2 * fit.steps == 2 * 2 * 40


class CountedStep(SumStep):
    """The plain sum; notes the tasks whose losses it saw."""

    seen: tuple[int, ...] = ()

    def step(self, closure):
        losses = super().step(closure)
        CountedStep.seen += (len(losses),)
        return losses


@dataclass(frozen=True)
class CountedRecipe(JointRecipe):
    name = "counted"

    def update(self):
        return CountedStep


def test_the_update_step_inside_is_the_one_that_trains(two_kinds):
    train, validation = two_kinds
    CountedStep.seen = ()
    counted = replace(BY_LABELS, inner=CountedRecipe(INNER.net, FAST)).fit(train, validation, seed=0, budget=1)
    assert CountedStep.seen == (3,) * 80
    plain = BY_LABELS.fit(train, validation, seed=0, budget=1)
    assert same(counted.predictor, plain.predictor, validation.X, range(6))
    adatask = AdaTaskRecipe(INNER.net, FAST)
    apart = replace(BY_LABELS, inner=adatask).fit(train, validation, seed=0, budget=1)
    assert not same(apart.predictor, plain.predictor, validation.X, range(6))
    names = apart.groups["sets"][1]
    expected = adatask.fit(of_tasks(train, names), of_tasks(validation, names), seed=0, budget=1)
    assert np.array_equal(apart.predictor.predict(validation.X, [3])[0], expected.predictor.predict(validation.X, [0])[0])


def test_same_seed_same_bits_and_notes(two_kinds):
    train, validation = two_kinds
    recipe = GroupedRecipe(n_nets=2, inner=INNER, measuring=SHORT)
    one, two = (recipe.fit(train, validation, seed=3, budget=1) for _ in range(2))
    assert same(one.predictor, two.predictor, validation.X, range(6))
    assert (one.notes, one.groups, one.chosen) == (two.notes, two.groups, two.chosen)
    assert any("a joint run of 200 steps" in note and "correlation of" in note for note in one.notes)
    assert one.total_steps == one.steps + 200


@dataclass(frozen=True)
class TwoLayers:
    """A factory of one's own."""

    def __call__(self, shape, tasks):
        return nn.Sequential(SharedBottom(shape[0], tasks, (8,)))


def test_a_saved_and_loaded_model_predicts_the_same(tmp_path, mixed_data):
    kinds = TableOptions(kind={"grade": "multiclass", "stage": "multiclass"})
    data = read_table(mixed_data, targets=["amount", "ill", "grade", "stage"], options=kinds)
    model = fit_model(data, BY_LABELS, budget=1)
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert model.predict(mixed_data) == again.predict(mixed_data)
    assert again.settings["chosen"]["group"] == model.settings["chosen"]["group"]
    own = fit_model(data, replace(BY_LABELS, inner=replace(INNER, net=TwoLayers())), budget=1)
    own.save(tmp_path / "own")
    assert own.predict(mixed_data) == load_model(tmp_path / "own", net=TwoLayers()).predict(mixed_data)


def test_tasks_are_asked_for_in_any_order(two_kinds):
    train, validation = two_kinds
    predictor = BY_LABELS.fit(train, validation, seed=0, budget=1).predictor
    everything = predictor.predict(validation.X, range(6))
    for chosen in ([5, 0, 2], [3], [1, 1]):
        for t, values in zip(chosen, predictor.predict(validation.X, chosen), strict=True):
            assert np.array_equal(values, everything[t])


def test_tasks_with_rows_of_their_own_are_grouped_by_predicted_labels(own_parts):
    train, validation, _ = own_parts
    fit = BY_LABELS.fit(train, validation, seed=0, budget=1)
    assert len(fit.groups["sets"]) <= 2
    assert any("correlation of ridge predictions" in note for note in fit.notes)
    for t in range(train.n_tasks):
        predicted = fit.predictor.predict(validation.X[validation.rows(t)], [t])[0]
        assert ((predicted - validation.labels(t)) ** 2).mean() == pytest.approx(fit.validation_loss[t], rel=1e-5)


def test_wide_rows_of_their_own_leave_labels_out(own_parts, monkeypatch):
    monkeypatch.setattr(_recipe, "_MOST_FEATURES", 9)
    train, validation, _ = own_parts
    fit = GroupedRecipe("divergence", n_nets=2, inner=INNER).fit(train, validation, seed=0, budget=1)
    assert fit.notes[-1] == "Label correlation was left out: its ridge is for up to 9 features."


def test_missing_labels_are_no_obstacle_and_unknown_pairs_are_told(two_kinds):
    train, validation = two_kinds
    y = train.y.copy()
    # The first two tasks have no row in common, nor has any row a label of the third that has one of the first.
    y[::2, 0], y[1::2, 1] = np.nan, np.nan
    fit = BY_LABELS.fit(replace(train, y=y), validation, seed=0, budget=1)
    assert any("2 of 30 pairs are not known and count as the least gain" in note for note in fit.notes)
    assert np.isfinite(fit.validation_loss).all()


@pytest.mark.parametrize("measure", sorted(set(MEASURES) - {"divergence"}))
def test_every_measure_gives_groups_on_shared_rows(measure, two_kinds):
    train, validation = two_kinds
    quick = MeasureOptions(n_rows=60, steps=30, accelerator="cpu", split_half=False)
    fit = GroupedRecipe(measure, n_nets=3, inner=INNER, measuring=quick).fit(train, validation, seed=0, budget=1)
    assert 1 <= len(fit.groups["sets"]) <= 3
    assert set(fit.groups["serves"]) == {task.name for task in train.tasks}


@pytest.mark.parametrize("measure", ["divergence", "samplewise"])
def test_measures_for_rows_of_their_own(measure, own_parts):
    train, validation, _ = own_parts
    fit = GroupedRecipe(measure, n_nets=2, inner=INNER, measuring=SHORT).fit(train, validation, seed=0, budget=1)
    assert any("Label correlation alone would have chosen" in note for note in fit.notes)


def test_some_tasks_keep_their_rows_and_labels(own_parts, shared_parts):
    for data in (own_parts[0], shared_parts[0]):
        names = [data.tasks[t].name for t in (4, 1)]
        part = of_tasks(data, names)
        assert [task.name for task in part.tasks] == names
        for place, t in enumerate((4, 1)):
            np.testing.assert_array_equal(part.labels(place), data.labels(t))
            np.testing.assert_array_equal(part.X[part.rows(place)], data.X[data.rows(t)])
    whole = of_tasks(shared_parts[0], [task.name for task in shared_parts[0].tasks])
    assert whole.digest() == shared_parts[0].digest()


def test_settings_that_cannot_be_are_refused():
    for wrong, message in (
        ({"n_nets": 0}, "`n_nets`=0: give a whole number of at least 1"),
        ({"n_nets": 2.0}, "`n_nets`=2.0"),
        ({"n_nets": True}, "`n_nets`=True"),
        ({"alone": np.nan}, "`alone`=nan: give a finite number"),
        ({"alone": "0"}, "`alone`='0': give a finite number"),
        ({"alone": True}, "`alone`=True: give a finite number"),
        ({"inner": SingleRecipe()}, "`inner`=.*give a recipe of one net"),
        ({"inner": JointRecipe(dominance_every=5)}, "`inner` has `dominance_every`"),
    ):
        with pytest.raises(OptionError, match=message):
            GroupedRecipe(**wrong)
    with pytest.raises(UnknownNameError, match="did you mean `labels`"):
        GroupedRecipe("label")
    with pytest.raises(UnknownNameError, match="did you mean `spectral`"):
        GroupedRecipe(method="spektral")


@dataclass(frozen=True)
class OddRecipe(JointRecipe):
    """A recipe of one net that leaves none."""

    name = "odd"

    def fit(self, train, validation, *, seed, budget=4):
        return SingleRecipe(self.net, self.options).fit(train, validation, seed=seed, budget=budget)


def test_tasks_that_cannot_be_grouped_are_refused(two_kinds):
    train, validation = two_kinds
    one = of_tasks(train, [train.tasks[0].name])
    with pytest.raises(OptionError, match="groups tasks and there is one only"):
        BY_LABELS.fit(one, one, seed=0)
    own = TaskData.own_rows([(train.X[:50], train.y[:50, t]) for t in range(3)], train.tasks[:3])
    pair = of_tasks(train, [task.name for task in train.tasks[:2]])
    for name, data, words in (
        ("divergence", train, "`grouped`: `measure`='divergence' compares rows"),
        ("datamap", own, "`grouped`: `measure`='datamap' compares tasks row by row"),
        ("gradtag", pair, "`grouped`: `measure`='gradtag' .* takes three tasks"),
    ):
        with pytest.raises(OptionError, match=words):
            GroupedRecipe(name, inner=INNER).fit(data, data, seed=0)
    with pytest.raises(OptionError, match="`inner` gives no single net"):
        replace(BY_LABELS, inner=OddRecipe(INNER.net, FAST)).fit(train, validation, seed=0, budget=1)
    y = np.full((40, 2), np.nan)
    y[:20, 0], y[20:, 1] = np.arange(20), np.arange(20)
    apart = TaskData.shared_rows(np.random.default_rng(0).normal(size=(40, 3)), y)
    with pytest.raises(FitError, match="`grouped` cannot group these tasks: `labels` knows no pair"):
        BY_LABELS.fit(apart, apart, seed=0)
    fit = GroupedRecipe("gram", n_nets=2, inner=INNER, measuring=SHORT).fit(apart, apart, seed=0, budget=1)
    assert "Label correlation alone tells nothing here: no pair of tasks has one." in fit.notes


def test_settings_tell_two_recipes_apart():
    settings = [replace(BY_LABELS, **how).settings() for how in ({}, {"n_nets": 3}, {"inner": AdaTaskRecipe()}, {"title": "x"})]
    assert settings[0] == settings[3]
    assert len({json.dumps(each, sort_keys=True) for each in settings}) == 3
    assert replace(BY_LABELS, inner=replace(INNER, net=MLP((5,)))).baseline() == SingleRecipe(MLP((5,)), FAST)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    cache = tmp_path_factory.mktemp("grouped")
    return study(load_diabetes_tasks(), [BY_LABELS], seeds=3, options=StudyOptions(budget=1, cache=cache)), cache


def test_a_study_holds_it_against_nets_of_its_own_make(studied, tmp_path):
    result, _ = studied
    assert [info.label for info in result.recipes] == ["single", "grouped"]
    value = json.loads(result.save_results(tmp_path / "results.json").read_text())
    jsonschema.validate(value, results_schema())
    groups = [unit["groups"] for unit in value["units"] if unit["recipe"] == "grouped"]
    assert all(set(each) == {"sets", "serves", "relation"} for each in groups)
    assert [unit.groups for unit in Study.from_json(value).units] == [unit.groups for unit in result.units]
    for unit in value["units"]:
        del unit["groups"]
    jsonschema.validate(value, results_schema())
    assert all(unit.groups == {} for unit in Study.from_json(value).units)


def test_the_report_has_the_groups_and_their_pictures(studied, tmp_path):
    result, _ = studied
    html = result.report(tmp_path / "report.html").read_text()
    section = html.split("<h2>Which tasks learn together</h2>", 1)[1].split("</section>", 1)[0]
    assert 'id="groups-graph-0"' in section
    assert 'id="groups-tree-0"' in section
    assert "<code>grouped</code>: 2 nets for 7 tasks." in section
    assert all(task.name in section for task in result.tasks)
    assert "Groups by <code>labels</code>" in section
    relations = html.split("<h2>How the tasks relate</h2>", 1)[1].split("</section>", 1)[0]
    assert "affinity by labels, <code>grouped</code>" in relations
    assert "learned together, <code>grouped</code>" in relations


def test_finished_fits_come_back_with_their_groups(studied):
    result, cache = studied
    stamps = {path: path.stat().st_mtime_ns for path in cache.glob("*.json")}
    again = study(load_diabetes_tasks(), [BY_LABELS], seeds=3, options=StudyOptions(budget=1, cache=cache))
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.json")} == stamps
    assert [unit.groups for unit in again.units] == [unit.groups for unit in result.units]


SCRIPT = """
import os, signal, sys
from tests.relate.test_grouped_recipe import run
run(sys.argv[1], lambda done, total, what: os.kill(os.getpid(), signal.SIGKILL) if done == 3 else None)
"""


def run(cache, progress=None):
    recipe = GroupedRecipe(n_nets=2, inner=INNER, measuring=MeasureOptions(steps=40, accelerator="cpu"))
    data, options = load_diabetes_tasks("age_groups"), StudyOptions(budget=1, cache=cache)
    return study(data, [recipe], seeds=3, options=options, progress=progress)


def without_costs(result):
    value = json.loads(json.dumps(result.to_json()))
    for entry in [*value["units"], *value["summaries"]]:
        del entry["seconds"], entry["peak_mb"]
    return value


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_study_that_is_killed_goes_on_where_it_stopped(tmp_path):
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "killed")], cwd=Path(__file__).parents[2], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.json")}
    assert len(left) == 3
    assert without_costs(run(tmp_path / "killed")) == without_costs(run(tmp_path / "fresh"))
    assert all(path.stat().st_mtime_ns == when for path, when in left.items())


def test_encoded_parts_of_a_table_are_served():
    train, validation, test = encoded_parts(load_diabetes_tasks())
    fit = GroupedRecipe(n_nets=3, inner=INNER, measuring=SHORT).fit(train, validation, seed=0, budget=1)
    predictions = fit.predictor.predict(test.X, range(7))
    assert all(np.isfinite(values).all() and len(values) == test.n_rows for values in predictions)
