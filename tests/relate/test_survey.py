"""A survey: planted groups are found, labels stand beside, and doubts are said."""

import json
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import adjusted_rand_score
from tests.relate.planted_groups import planted
from torch import nn

from taskloom.deep import MLP
from taskloom.relate import Affinity, Groups, MeasureOptions, SurveyOptions, cluster, labels, select, survey, write_survey
from taskloom.relate._measures import MEASURES, measure
from taskloom.relate._survey_report import headline
from taskloom.tasks import (
    DataError,
    FeatureEncoder,
    OptionError,
    OutputError,
    TableOptions,
    Task,
    TaskData,
    UnknownNameError,
    load_diabetes_tasks,
    read_table,
)

SMALL = {"net": MLP((32, 32)), "repeats": 1, "measuring": MeasureOptions(steps=300)}


@pytest.fixture(scope="module")
def diabetes():
    return load_diabetes_tasks()


@pytest.fixture(scope="module")
def found(diabetes):
    return survey(diabetes, SurveyOptions(net=MLP((8,)), repeats=2, measuring=MeasureOptions(steps=60)))


def test_gains_are_selected_and_likeness_is_clustered_and_progress_is_told():
    data, told = load_diabetes_tasks(), []
    quick = SurveyOptions("gram", repeats=2, net=MLP((4,)), measuring=MeasureOptions(steps=20, accelerator="cpu"))
    found = survey(data, quick, lambda *what: told.append(what))
    assert found.affinity.zero is not None
    assert found.groups.sets == survey(data, replace(quick, method="select")).groups.sets
    assert told == [(0, 2, "measuring gram, seed 0"), (1, 2, "measuring gram, seed 1")]
    likeness = SurveyOptions("labels")
    assert survey(data, likeness).groups.sets == survey(data, replace(likeness, method="spectral")).groups.sets


@pytest.mark.parametrize("method", ["spectral", "louvain"])
def test_planted_groups_are_found_though_labels_do_not_show_them(method):
    data, groups = planted(3, 4, mixed=True, n_rows=800)
    outcome = survey(data, SurveyOptions(method=method, n_groups=3, **SMALL))
    assert adjusted_rand_score(groups, outcome.groups.labels) > adjusted_rand_score(groups, outcome.label_groups.labels)
    assert adjusted_rand_score(groups, outcome.groups.labels) >= 0.7
    assert outcome.groups.method == method
    assert outcome.group_agreement < 0.9
    assert any("gives other groups" in sentence for sentence in outcome.words())


def alike(noise=1.0, K=8):
    """Tasks of one and the same truth: whatever groups they make are chance."""
    rng = np.random.default_rng(0)
    X, w = rng.normal(size=(400, 10)), rng.normal(size=10)
    return TaskData.shared_rows(X, np.stack([X @ w + noise * rng.normal(size=400) for _ in range(K)], axis=1))


@pytest.mark.parametrize("measure", ["labels", "samplewise_cosine"])
def test_tasks_that_are_all_alike_are_one_group_and_that_is_said(measure, tmp_path):
    outcome = survey(alike(), SurveyOptions(measure, **SMALL))
    assert len(outcome.groups.sets) == 1
    assert outcome.groups_stand_out is False
    least, most = outcome.affinity.off_diagonal.min(), outcome.affinity.off_diagonal.max()
    said = f"`{measure}` of the pairs goes from {least:.3g} to {most:.3g}: no groups stand out."
    assert said in outcome.words()
    page = write_survey(outcome, tmp_path).read_text(encoding="utf-8")
    assert f"<code>{measure}</code> sees no groups among 8 tasks: all of them are in one" in page
    told = json.loads(json.dumps(outcome.to_json()))
    assert told["groups_stand_out"] is False
    assert said in told["words"]


def test_groups_of_tasks_that_are_all_alike_are_made_where_they_are_asked_for_and_doubted():
    outcome = survey(alike(), SurveyOptions("labels", n_groups=3))
    assert len(outcome.groups.sets) == 3
    assert any("these groups do not stand out, they are no more alike inside than chance has it" in s for s in outcome.words())
    assert headline(survey(alike(), SurveyOptions("labels", n_groups=1))) == "`labels` keeps all 8 tasks in one group"


def test_groups_that_stand_out_are_said_with_the_range_of_the_pairs(diabetes):
    outcome = survey(diabetes, SurveyOptions("labels"))
    A, together = outcome.affinity.values, np.equal.outer(outcome.groups.labels, outcome.groups.labels)
    off = ~np.eye(7, dtype=bool)
    expected = f"goes from {A[off].min():.3g} to {A[off].max():.3g}; inside groups it is {A[off & together].mean():.3g}"
    assert any(f"{expected} in the mean, between them {A[~together].mean():.3g}." in sentence for sentence in outcome.words())
    assert outcome.groups_stand_out is True
    unknown = replace(outcome, affinity=replace(outcome.affinity, unrelated=None))
    assert unknown.to_json()["groups_stand_out"] is None


def test_where_labels_say_the_same_it_is_said():
    data, groups = planted(3, 4, n_rows=600)
    outcome = survey(data, SurveyOptions("samplewise", n_groups=3, **SMALL))
    assert adjusted_rand_score(groups, outcome.groups.labels) == outcome.group_agreement == 1
    assert outcome.rank_correlation > 0
    assert any("gives the same groups" in sentence for sentence in outcome.words())


def test_the_groups_are_those_of_the_mean_affinity_of_the_seeds(diabetes, found):
    assert found.groups.sets == cluster(found.affinity).sets
    encoder = FeatureEncoder.fit(diabetes.features)
    scaled = (diabetes.y - diabetes.y.mean(axis=0)) / diabetes.y.std(axis=0)
    encoded = replace(encoder.encode(diabetes), y=scaled)
    runs = [measure("samplewise_cosine", MLP((8,)), encoded, MeasureOptions(steps=60, seed=seed)) for seed in (0, 1)]
    np.testing.assert_allclose(found.affinity.values, np.mean([run.values for run in runs], axis=0), atol=1e-6)
    assert found.repeatability == pytest.approx(runs[0].agreement(runs[1]), abs=1e-6)
    assert found.affinity.cost.trainings == 2
    np.testing.assert_allclose(found.labels.values, labels(None, diabetes).values, atol=1e-12)


def test_select_chooses_the_best_groups_with_and_without_overlap(diabetes):
    for overlap in (True, False):
        outcome = survey(diabetes, SurveyOptions("labels", "select", 3, overlap))
        assert outcome.groups.sets == select(outcome.affinity, 3, overlap=overlap).sets
        helps = [row["helped_by"] for row in outcome.rows()]
        assert any(helps) == overlap
    free = survey(diabetes, SurveyOptions("labels", "select"))
    assert len(free.groups.sets) <= len(cluster(free.affinity).sets)


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_serves_the_tables_that_it_can_and_refuses_the_others(name, diabetes, own_parts):
    options = SurveyOptions(name, net=MLP((8,)), repeats=1, measuring=MeasureOptions(steps=40, every=5, n_rows=100))
    for data in (diabetes, own_parts[0]):
        if (name, data.is_shared) in {("divergence", True), ("datamap", False)}:
            with pytest.raises(DataError, match="take `"):
                survey(data, options)
        else:
            outcome = survey(data, options)
            assert sorted(task for g in range(len(outcome.groups.sets)) for task in outcome.groups.served(g)) == sorted(
                task.name for task in data.tasks
            )
            assert outcome.is_baseline == (name == "labels")
            json.dumps(outcome.to_json(), allow_nan=False)


def test_own_rows_say_what_stands_in_for_the_measure(own_parts):
    outcome = survey(own_parts[0], SurveyOptions("samplewise", net=MLP((8,)), repeats=1))
    words = " ".join(outcome.words())
    assert "tasks have rows of their own: cosine of centred mean gradients" in words
    assert "correlation of ridge predictions" in words


def test_mixed_kinds_categories_and_missing_labels_are_served(mixed_data):
    table = mixed_data.with_columns(ward=pl.Series(["A", "B", None, "C"] * 60))
    kinds = TableOptions(kind={"grade": "multiclass", "stage": "multiclass"})
    data = read_table(table, targets=["amount", "ill", "grade", "stage"], options=kinds)
    outcome = survey(data, SurveyOptions(net=MLP((8,)), repeats=1, measuring=MeasureOptions(steps=60)))
    assert outcome.affinity.n_tasks == 4
    assert "4 regression/binary/multiclass tasks, shared rows, 240 rows x 6 columns" in outcome.about


def test_low_agreement_is_said_in_plain_words(found):
    two = replace(found, groups=cluster(found.affinity, 2))
    doubtful = replace(two, repeatability=0.3, affinity=found.affinity.with_stability(0.2))
    words = " ".join(doubtful.words())
    assert "agrees with itself to a correlation of 0.30, which is low: much of these groups is chance" in words
    assert "agree to a correlation of 0.20, which is low: had it looked at others, the groups might be others." in words
    one = " ".join(replace(doubtful, groups=cluster(found.affinity, 1)).words())
    assert "correlation of 0.30, which is low: how its pairs differ is chance for the most part." in one
    assert "correlation of 0.20, which is low: had it looked at others, its pairs might differ otherwise." in one
    assert "these groups" not in one
    sure = " ".join(replace(found, repeatability=0.9, affinity=found.affinity.with_stability(0.95)).words())
    assert "low" not in sure
    unknown = " ".join(replace(found, affinity=found.affinity.with_stability(np.nan)).words())
    assert "is not known" in unknown


def test_pure_noise_does_not_agree_with_itself():
    rng = np.random.default_rng(0)
    Y = (rng.normal(size=(200, 8)) > 0).astype(float)
    data = TaskData.shared_rows(rng.normal(size=(200, 5)), Y, [Task(f"t{t}", "binary") for t in range(8)])
    outcome = survey(data, SurveyOptions(net=MLP((8,)), measuring=MeasureOptions(steps=100)))
    assert outcome.repeatability < 0.7
    assert "how its pairs differ is chance" in outcome.words()[0]
    assert len(outcome.groups.sets) == 1


@pytest.mark.parametrize("method", ["spectral", "select"])
def test_pairs_that_are_not_known_count_as_the_least(method):
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 200))
    Y = np.stack([one, one, other, other], axis=1) + 0.1 * rng.normal(size=(200, 4))
    Y[:100, 2] = np.nan
    Y[100:, 0] = np.nan
    outcome = survey(TaskData.shared_rows(rng.normal(size=(200, 3)), Y, list("abcd")), SurveyOptions("labels", method, 2))
    assert np.isnan(outcome.affinity["a", "c"])
    assert outcome.groups.sets == (("a", "b"), ("c", "d"))
    assert "2 of 12 pairs are not known and count as the least alike." in outcome.words()


def test_two_tasks_have_one_pair_and_no_rank_correlation(diabetes):
    data = TaskData(diabetes.tasks[:2], diabetes.features, diabetes.y[:, :2])
    outcome = survey(data, SurveyOptions(net=MLP((8,)), repeats=2, measuring=MeasureOptions(steps=40)))
    assert [set(each) for each in outcome.groups.sets] == [{"s1", "s2"}]
    assert np.isnan(outcome.rank_correlation)
    assert outcome.group_agreement == 1
    assert "The labels are no comparison here: with 1 group of 2 tasks no measure could give others." in outcome.words()


def test_nothing_known_of_labels_is_said():
    # Two tasks meet on rows of one class only: their labels are constant there.
    rng = np.random.default_rng(0)
    digit = np.repeat([0, 1, 2], 60)
    Y = np.full((180, 3), np.nan)
    for t, (one, other) in enumerate([(0, 1), (1, 2), (0, 2)]):
        Y[digit == one, t], Y[digit == other, t] = 0, 1
    data = TaskData.shared_rows(rng.normal(size=(180, 4)), Y, [Task(name, "binary") for name in "abc"])
    outcome = survey(data, SurveyOptions(net=MLP((8,)), repeats=1, measuring=MeasureOptions(steps=60)))
    assert outcome.label_groups is None
    assert outcome.rows(by_labels=True) == []
    assert outcome.to_json()["label_groups"] is None
    assert any("labels alone tell nothing" in sentence for sentence in outcome.words())


def test_the_same_seed_gives_the_same_survey(diabetes, found):
    again = survey(diabetes, SurveyOptions(net=MLP((8,)), repeats=2, measuring=MeasureOptions(steps=60)))
    assert again.affinity.values.tolist() == found.affinity.values.tolist()
    assert again.groups.sets == found.groups.sets
    other = survey(diabetes, SurveyOptions(net=MLP((8,)), repeats=2, measuring=MeasureOptions(steps=60, seed=7)))
    assert other.affinity.values.tolist() != found.affinity.values.tolist()


def test_the_files_load_again_and_the_page_needs_no_network(found, tmp_path):
    page = write_survey(found, tmp_path / "out")
    assert sorted(path.name for path in page.parent.iterdir()) == ["affinity.safetensors", "groups.json", "relate.html"]
    assert Affinity.load(page.parent / "affinity.safetensors").values.tolist() == found.affinity.values.tolist()
    assert Groups.load(page.parent / "groups.json").sets == found.groups.sets
    html = page.read_text(encoding="utf-8")
    outside = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//|\.?/)""", outside)
    assert all(f'id="{name}"' in html for name in ("affinity", "tree", "graph", "labels"))
    assert all(task in html for task in found.affinity.tasks)


def test_names_of_tasks_are_escaped_on_the_page(diabetes, tmp_path):
    wicked = "<script>alert('x')</script>"
    data = replace(diabetes, tasks=(replace(diabetes.tasks[0], name=wicked), *diabetes.tasks[1:]))
    assert wicked not in write_survey(survey(data, SurveyOptions("labels", n_groups=2)), tmp_path).read_text(encoding="utf-8")


def test_a_survey_by_labels_has_nothing_beside_it(diabetes, tmp_path):
    outcome = survey(diabetes, SurveyOptions("labels", n_groups=2))
    assert outcome.repeats == 1
    assert np.isnan(outcome.repeatability)
    assert not any("labels alone" in sentence for sentence in outcome.words())
    assert 'id="labels"' not in write_survey(outcome, tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"measure": "sampelwise_cosine"}, UnknownNameError, "did you mean `samplewise_cosine`"),
        ({"method": "spectrl"}, UnknownNameError, "did you mean `spectral`"),
        ({"n_groups": 0}, OptionError, "`n_groups`=0"),
        ({"repeats": 0}, OptionError, "`repeats`=0"),
        ({"n_groups": 2.5}, OptionError, "`n_groups`=2.5"),
        ({"n_groups": True}, OptionError, "`n_groups`=True"),
        ({"repeats": "3"}, OptionError, "`repeats`='3'"),
        ({"net": nn.Linear(4, 2)}, OptionError, "`net`=Linear.*: give what makes nets"),
        ({"net": "mlp"}, OptionError, "`net`='mlp'"),
    ],
)
def test_bad_options_are_refused_by_name(fields, error, message):
    with pytest.raises(error, match=message):
        SurveyOptions(**fields)


def test_what_cannot_be_surveyed_is_refused_before_any_training(diabetes, found, tmp_path):
    def refuse(shape, tasks):
        pytest.fail("a net was made")

    with pytest.raises(OptionError, match="`n_groups`=8 for 7 tasks: give at most 7"):
        survey(diabetes, SurveyOptions(n_groups=8, net=refuse))
    one = TaskData(diabetes.tasks[:1], diabetes.features, diabetes.y[:, :1])
    with pytest.raises(DataError, match="takes two or more"):
        survey(one, SurveyOptions(net=refuse))
    with pytest.raises(UnknownNameError, match="no measure named `tag`"):
        measure("tag", refuse, diabetes, MeasureOptions())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_survey(found, tmp_path / "file")
