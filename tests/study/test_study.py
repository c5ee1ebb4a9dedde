import json
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import joblib
import jsonschema
import numpy as np
import pytest
from joblib.parallel import ThreadingBackend
from tests.study.conftest import FAST, FAST_RECIPES
from torch import nn

from taskloom.deep import MLP, JointRecipe
from taskloom.linear import LinearPredictor, RidgeRecipe
from taskloom.study import Study, StudyOptions, Summary, Verdict, results_schema, study
from taskloom.study import _study as study_module
from taskloom.study._unit import run_unit
from taskloom.tasks import (
    DataError,
    FeatureEncoder,
    FitError,
    OptionError,
    Recipe,
    RecipeFit,
    TargetScaler,
    Task,
    TaskData,
    UnknownNameError,
    load_diabetes_tasks,
    split_rows,
)

GROUPS = load_diabetes_tasks("age_groups")
# R2 of a dozen test rows has heavy tails: where a verdict must come out, errors are in the target's own unit.
GROUPS_RMSE = replace(GROUPS, tasks=tuple(replace(task, metric="rmse") for task in GROUPS.tasks))


@dataclass(frozen=True)
class ShiftedRecipe(Recipe):
    """Ridge whose predictions are moved for some tasks: a recipe with a known verdict."""

    hurt: tuple[int, ...] = ()
    fails_on: tuple[int, ...] = ()
    title: str = ""
    name: ClassVar[str] = "shifted"
    summary: ClassVar[str] = "for tests"
    family: ClassVar[str] = "linear"

    def fit(self, train, validation, *, seed, budget=4):
        if seed in self.fails_on:
            raise FitError("it was told to fail")
        fit = RidgeRecipe().fit(train, validation, seed=seed, budget=budget)
        old = fit.predictor
        shifts = [3.0 + 0.01 * seed if t in self.hurt else 0.0 for t in range(train.n_tasks)]
        moved = [b + shift for b, shift in zip(old.intercepts, shifts, strict=True)]
        return RecipeFit(LinearPredictor(old.coefficients, moved, train.tasks), {}, fit.validation_loss)


def _scores(result):
    return {(unit.recipe, unit.seed): unit.scores for unit in result.units}


def test_who_is_hurt_is_said_and_the_rest_left_undecided():
    result = study(GROUPS_RMSE, [ShiftedRecipe(hurt=(1, 4))], seeds=10, options=StudyOptions(cache=False))
    words = {verdict.task: verdict.word for verdict in result.verdicts}
    assert [task for task, word in words.items() if word == "hurt"] == ["35 to 41", "56 to 62"]
    assert set(words.values()) == {"hurt", "undecided"}
    assert "`shifted` hurt 2 of 6 tasks" in result.words()[0]
    # A recipe equal to its baseline gains exactly nothing.
    assert all(verdict.gain == 0 for verdict in result.verdicts if verdict.word == "undecided")


def test_a_headline_that_names_one_of_several_recipes_says_that_it_was_picked():
    options = StudyOptions(budget=1, cache=False)
    several = study(
        GROUPS_RMSE, [ShiftedRecipe(hurt=(1, 4)), ShiftedRecipe(hurt=(1,), title="other")], seeds=6, options=options
    )
    assert "`shifted` hurt 2 of 6 tasks" in several.words()[0]
    picked = "That is the most striking of 2 recipes, picked by these very scores: nothing is corrected for their number."
    assert several.words()[1] == picked
    alone = study(GROUPS_RMSE, [ShiftedRecipe(hurt=(1, 4))], seeds=6, options=options)
    nobody = study(GROUPS_RMSE, [ShiftedRecipe(), ShiftedRecipe(title="other")], seeds=6, options=options)
    assert "No recipe is shown" in nobody.words()[0]
    assert not any(picked[:30] in sentence for result in (alone, nobody) for sentence in result.words())


def test_learning_together_helps_where_it_must(related_tasks):
    result = study(related_tasks, FAST_RECIPES[1:], seeds=10, options=StudyOptions(budget=2, cache=False))
    summary = result.summaries[1]
    assert (summary.recipe, summary.baseline) == ("joint", "single")
    assert summary.low > 0
    assert summary.hurt == 0


def test_baselines_of_the_family_are_added_and_scores_are_paired():
    result = study(GROUPS, [ShiftedRecipe(hurt=(0,))], seeds=3, options=StudyOptions(cache=False))
    assert [info.label for info in result.recipes] == ["ridge", "shifted"]
    scores = _scores(result)
    for t, verdict in enumerate(result.verdicts):
        gains = [scores["shifted", seed][t] - scores["ridge", seed][t] for seed in result.seeds]
        assert verdict.gain == pytest.approx(np.mean(gains))
        assert verdict.score - verdict.baseline_score == pytest.approx(verdict.gain)


def test_of_two_baselines_validation_chooses_not_the_test_score():
    weak, strong = RidgeRecipe(1e5, 1e5, title="weak"), RidgeRecipe(title="strong")
    result = study(GROUPS, [weak, strong, ShiftedRecipe()], seeds=3, options=StudyOptions(cache=False))
    units = {(unit.recipe, unit.seed): unit for unit in result.units}
    for t, verdict in enumerate(result.verdicts):
        chosen = []
        for seed in result.seeds:
            both = [units["weak", seed], units["strong", seed]]
            chosen.append(min(both, key=lambda unit: unit.validation_loss[t]).scores[t])
        assert verdict.baseline_score == pytest.approx(np.mean(chosen))


def test_a_task_in_doubt_is_not_passed_over():
    """Helped one, and another whose own interval lies below zero but does not survive the correction: both are said."""
    from taskloom.study._words import overall_sentence, recipe_sentence

    verdicts = [
        Verdict("joint", "a", 0.9, "single", 0.8, 0.1, 0.05, 0.15, 0.001, 0.01, "helped"),
        Verdict("joint", "b", 0.5, "single", 0.8, -0.3, -0.5, -0.1, 0.02, 0.08, "undecided"),
    ]
    summary = Summary("joint", "single", 1, 0, 1, -0.1, -0.3, 0.1, (), 1.0, 10, 30, 5.0)
    assert "none is shown to be hurt, but 1 in doubt" in overall_sentence([summary], verdicts, 10)
    assert "below 0 before correction: b." in recipe_sentence(summary, verdicts)


def test_a_recipe_with_its_own_net_is_held_against_the_same_net(tmp_path):
    small, large = (JointRecipe(net=MLP((width,)), options=FAST, title=f"joint {width}") for width in (4, 8))
    result = study(GROUPS, [small, large], seeds=1, options=StudyOptions(cache=False, budget=1))
    assert [info.label for info in result.recipes] == ["single 1", "single 2", "joint 4", "joint 8"]
    assert [info.settings["net"]["hidden"] for info in result.recipes] == [[4], [8], [4], [8]]
    image = TaskData.shared_rows(GROUPS.X.reshape(442, 1, 10), np.column_stack([GROUPS.y, GROUPS.y**2]))

    def make(shape, tasks):
        return nn.Sequential(nn.Flatten(), nn.Linear(10, len(tasks)))

    pictures = study(image, [JointRecipe(net=make, options=FAST)], seeds=1, options=StudyOptions(cache=False, budget=1))
    assert [info.label for info in pictures.recipes] == ["single", "joint"]


def test_a_failed_fit_is_reported_and_decides_nothing():
    result = study(GROUPS, [ShiftedRecipe(hurt=(0, 1, 2), fails_on=(1,))], seeds=5, options=StudyOptions(cache=False))
    assert result.summaries[1].failed == (1,)
    assert {verdict.word for verdict in result.verdicts} == {"undecided"}
    assert "It gave no model on seed 1 (it was told to fail)" in result.words()[1]
    every = study(GROUPS, [ShiftedRecipe(fails_on=(0, 1, 2))], seeds=3, options=StudyOptions(cache=False))
    assert every.verdicts == []
    assert "gave no model on seed 0, 1, 2 (it was told to fail)" in every.words()[1]
    assert every.table().row_count == 2


def test_numbers_do_not_depend_on_how_many_run_at_once_or_on_what_else_is_trained(small_study):
    options = StudyOptions(budget=2, cache=False)
    parallel = study(GROUPS, FAST_RECIPES[1:], seeds=[3, 1], n_jobs=2, options=options)
    known = _scores(small_study)
    for key, scores in _scores(parallel).items():
        assert scores == known[key]


def test_any_registered_joblib_backend_serves(small_study):
    started = []

    class CountingBackend(ThreadingBackend):
        def configure(self, n_jobs=1, **options):
            started.append(n_jobs)
            return super().configure(n_jobs, **options)

    joblib.register_parallel_backend("counting", CountingBackend)
    options = StudyOptions(budget=2, cache=False)
    with joblib.parallel_config("counting", n_jobs=3):
        threaded = study(GROUPS, FAST_RECIPES[1:], seeds=3, options=options)
    assert started == [3]
    known = _scores(small_study)
    for key, scores in _scores(threaded).items():
        assert scores == known[key]


def test_a_backend_that_cannot_stream_serves_too(tmp_path):
    class AllAtOnce(ThreadingBackend):
        supports_return_generator = False

    joblib.register_parallel_backend("all-at-once", AllAtOnce)
    with joblib.parallel_config("all-at-once", n_jobs=2):
        result = study(GROUPS, ["ridge"], seeds=3, options=StudyOptions(cache=tmp_path))
    assert len(result.units) == len(list(tmp_path.glob("*.json"))) == 3


def test_workers_keep_what_the_next_study_finds(tmp_path):
    """A recipe from the started script has another name in a worker process; it must be found again all the same."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom dataclasses import dataclass\nfrom taskloom.deep import MLP, FitOptions, SingleRecipe\n"
        "from taskloom.study import StudyOptions, study\nfrom taskloom.tasks import load_diabetes_tasks\n\n\n"
        "@dataclass(frozen=True)\nclass Net:\n    width: int = 4\n\n"
        "    def __call__(self, shape, tasks):\n        return MLP((self.width,))(shape, tasks)\n\n\n"
        "if __name__ == '__main__':\n    options = FitOptions(max_steps=20, accelerator='cpu')\n"
        "    recipe = SingleRecipe(net=Net(), options=options)\n"
        "    study(load_diabetes_tasks('age_groups'), [recipe], seeds=2, n_jobs=2,\n"
        "          options=StudyOptions(budget=1, cache=sys.argv[1]), progress=lambda *told: print(told))\n"
    )
    runs = [
        subprocess.run([sys.executable, script, tmp_path / "cache"], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert "2 of 2 fits were done before" not in runs[0]
    assert "2 of 2 fits were done before" in runs[1]


def test_a_site_without_one_of_the_classes_takes_part():
    rng = np.random.default_rng(0)
    parts = []
    for classes in ((0, 1, 2), (0, 2), (1, 2)):
        y = rng.choice(classes, size=60).astype(float)
        parts.append((rng.normal(size=(60, 3)) + y[:, None], y))
    data = TaskData.own_rows(parts, [Task(f"site {k}", "multiclass", ("u", "v", "w")) for k in range(3)])
    recipes = ["ridge", JointRecipe(net=MLP((8,)), options=FAST)]
    result = study(data, recipes, seeds=3, options=StudyOptions(cache=False, budget=2))
    assert all(np.mean(unit.scores) > 0.5 for unit in result.units if unit.recipe == "ridge")
    assert not any(unit.error for unit in result.units)


def test_a_study_with_one_more_recipe_trains_only_that_one(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(study_module, "run_unit", lambda *args: trained.append(args[1].label) or run_unit(*args))
    options = StudyOptions(cache=tmp_path)
    study(GROUPS, ["ridge"], seeds=3, options=options)
    assert trained == ["ridge"] * 3
    trained.clear()
    study(GROUPS, ["ridge", ShiftedRecipe()], seeds=3, options=options)
    assert trained == ["shifted"] * 3
    trained.clear()
    study(GROUPS, ["ridge"], seeds=4, options=options)
    assert trained == ["ridge"]
    others = (
        (GROUPS, RidgeRecipe(strongest=5.0), options),
        (GROUPS.take(np.arange(400)), RidgeRecipe(), options),
        (GROUPS, RidgeRecipe(), StudyOptions(cache=tmp_path, budget=2)),
        (GROUPS, RidgeRecipe(), StudyOptions(cache=tmp_path, fractions=(0.5, 0.25, 0.25))),
    )
    for data, recipe, how in others:
        trained.clear()
        study(data, [recipe], seeds=1, options=how)
        assert trained == ["ridge"], (recipe, how)


def test_a_damaged_cache_file_is_trained_again(tmp_path):
    options = StudyOptions(cache=tmp_path)
    before = study(GROUPS, ["ridge"], seeds=2, options=options)
    for file in tmp_path.iterdir():
        file.write_text(file.read_text()[:100])
    assert _scores(study(GROUPS, ["ridge"], seeds=2, options=options)) == _scores(before)


def test_scores_are_those_of_the_models(small_study):
    unit = next(unit for unit in small_study.units if unit.recipe == "ridge" and unit.seed == 2)
    split = split_rows(GROUPS, 2)
    train, validation, test = (GROUPS.take(rows) for rows in (split.train, split.validation, split.test))
    encoder, scaler = FeatureEncoder.fit(train.features), TargetScaler.fit(train)
    fit = RidgeRecipe().fit(*(scaler.encode(encoder.encode(part)) for part in (train, validation)), seed=2, budget=2)
    for t, task in enumerate(GROUPS.tasks):
        predicted = scaler.invert(fit.predictor.predict(encoder.transform(test.features)[test.rows(t)], [t])[0], t)
        assert task.scorer.score(test.labels(t), predicted) == unit.scores[t]


def test_results_keep_their_schema_and_come_back(small_study, tmp_path):
    path = small_study.save_results(tmp_path / "results.json")
    value = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(results_schema())
    jsonschema.validate(value, results_schema())
    again = Study.from_json(value)
    assert json.loads(json.dumps(again.to_json())) == value
    assert again.verdicts == small_study.verdicts
    few = study(GROUPS, [ShiftedRecipe()], seeds=2, options=StudyOptions(cache=False))
    jsonschema.validate(json.loads(json.dumps(few.to_json(), allow_nan=False)), results_schema())
    assert few.verdicts[0].low is None
    assert "2 seeds cannot tell helped from lucky" in few.words()[0]
    with pytest.raises(DataError, match="format and version"):
        Study.from_json({"format": "something", "version": 1})


def test_metrics_on_different_scales_have_no_mean():
    result = study(GROUPS_RMSE, [ShiftedRecipe(hurt=(0,))], seeds=3, options=StudyOptions(cache=False))
    assert result.summaries[1].gain is None
    assert result.verdicts[0].gain < 0 < result.verdicts[0].score - result.verdicts[0].baseline_score


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"recipes": ["rigde"]}, UnknownNameError, "no recipe named `rigde`; did you mean `ridge`"),
        ({"recipes": []}, OptionError, "`recipes` is empty"),
        ({"recipes": ["ridge", "ridge"]}, OptionError, "two are labelled `ridge`"),
        ({"data": "table.csv"}, DataError, "`data` is a str; make a TaskData of it with `read_table`"),
        ({"seeds": 0}, OptionError, "`seeds`=0"),
        ({"seeds": [1, 1]}, OptionError, "different seeds"),
        ({"seeds": [-1]}, OptionError, "at least 0"),
        ({"seeds": "3"}, OptionError, "`seeds`='3'"),
        ({"seeds": 2.9}, OptionError, "`seeds`=2.9"),
        ({"seeds": True}, OptionError, "`seeds`=True"),
        ({"seeds": ["1"]}, OptionError, "whole numbers"),
        ({"n_jobs": 1.5}, OptionError, "`n_jobs`=1.5"),
        ({"options": {"budget": 1}}, OptionError, "give a `StudyOptions`"),
        ({"options": lambda: StudyOptions(budget=2.5)}, OptionError, "`budget`=2.5"),
        ({"options": lambda: StudyOptions(budget="2")}, OptionError, "`budget`='2'"),
        ({"options": lambda: StudyOptions(confidence="high")}, OptionError, "`confidence`='high'"),
        ({"options": lambda: StudyOptions(budget=0)}, OptionError, "`budget`=0"),
        ({"options": lambda: StudyOptions(confidence=95)}, OptionError, "`confidence`=95"),
        ({"options": lambda: StudyOptions(fractions=(0.8, 0.2, 0.0))}, OptionError, "needs training, validation and test"),
    ],
)
def test_bad_options_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        study(
            **{
                key: value() if callable(value) else value
                for key, value in ({"data": GROUPS, "recipes": ["ridge"]} | arguments).items()
            }
        )


def test_nothing_is_trained_when_a_split_is_impossible(tmp_path):
    tiny = GROUPS.take(np.concatenate([*(GROUPS.rows(t) for t in range(5)), GROUPS.rows(5)[:2]]))
    with pytest.raises(DataError, match="a split into 3 parts needs 6"):
        study(tiny, ["ridge"], seeds=2, options=StudyOptions(cache=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_progress_tells_every_unit(tmp_path):
    seen = []
    study(GROUPS, ["ridge"], seeds=3, options=StudyOptions(cache=tmp_path), progress=lambda *told: seen.append(told))
    assert [told[:2] for told in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    study(GROUPS, ["ridge"], seeds=3, options=StudyOptions(cache=tmp_path), progress=lambda *told: seen.append(told))
    assert seen[-1] == (3, 3, "3 of 3 fits were done before")


def test_a_study_without_names_trains_what_needs_no_extra_and_serves_the_tasks(monkeypatch):
    import sys

    import numpy as np

    from taskloom.study import StudyOptions, study
    from taskloom.study._study import with_baselines
    from taskloom.tasks import Task, TaskData

    monkeypatch.setitem(sys.modules, "torchjd", None)
    rng = np.random.default_rng(0)
    data = TaskData.shared_rows(
        rng.normal(size=(60, 2)), (np.arange(60) % 3)[:, None], [Task("a", "multiclass", classes=tuple("xyz"))]
    )
    seen = []
    monkeypatch.setattr(
        "taskloom.study._study.with_baselines", lambda recipes: seen.extend(recipes) or with_baselines(recipes[:1])
    )
    study(data, seeds=1, options=StudyOptions(cache=False, budget=1))
    names = {recipe.name for recipe in seen}
    assert {"ridge", "single", "joint", "adatask"} <= names
    assert not names & {"pcgrad", "uw", "lowrank"}


def test_rounding_is_no_gain_and_a_loss_near_zero_has_no_sign():
    from taskloom.study._compare import RecipeInfo, compare
    from taskloom.study._unit import Unit
    from taskloom.study._words import recipe_sentence

    tasks = (Task("a", metric="r2"), Task("b", metric="rmse"))
    recipes = [RecipeInfo(name, name, "linear", name == "one", "", "") for name in ("one", "other")]
    units = [Unit("one", seed, [0.3, 3e-6], [1.0, 1.0], [6, 6], [2, 2]) for seed in range(3)]
    units += [Unit("other", seed, [0.3 + 1e-9, 2e-6], [1.0, 1.0], [6, 6], [2, 2]) for seed in range(3)]
    verdicts, summaries = compare(tasks, recipes, units, 0.95)
    # A metric with a unit may have small numbers that differ by much.
    assert [verdict.gain for verdict in verdicts] == [0.0, pytest.approx(1e-6)]
    assert "better on 1 of 2" in recipe_sentence(summaries[1], verdicts)
    tiny = Summary("joint", "single", 0, 0, 1, -1e-6, -1e-5, 1e-6, (), 1.0, 10, 30, 5.0)
    assert "Mean gain +0.0000 [+0.0000, +0.0000]" in recipe_sentence(tiny, verdicts)


def test_one_task_has_nothing_to_learn_together():
    data = TaskData.shared_rows(GROUPS.X, GROUPS.y[:, None])
    words = study(data, ["ridge", ShiftedRecipe()], seeds=3, options=StudyOptions(cache=False)).words()
    assert words[0].startswith("One task: there is nothing to learn together")
    assert not any("Try 10 or more" in sentence for sentence in words)


def test_the_recipe_to_keep_helped_and_hurt_none_else_it_is_the_baseline():
    from taskloom.study._words import recommended

    def summary(name, helped, hurt, low=None):
        return Summary(name, "single", helped, hurt, 1, 0.1, low, 0.2, (), 1.0, 10, 30, 5.0)

    many, harmful, average = summary("many", 2, 0), summary("harmful", 3, 1), summary("average", 0, 0, 0.05)
    assert recommended([many, harmful, average]) is many
    assert recommended([harmful, average]) is average
    assert recommended([harmful, summary("doubtful", 0, 0, -0.1)]) is None
    nobody = study(GROUPS, [ShiftedRecipe(hurt=(0, 1))], seeds=3, options=StudyOptions(cache=False))
    assert nobody.recommended == "ridge"


def test_the_front_door_knows_all_recipes_and_rooms():
    code = "import taskloom as tl; print(sorted(tl.recipe_classes())); print(tl.engines.__name__)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name in told for name in ("'joint'", "'ridge'", "'grouped'", "taskloom.engines"))
