"""Recipes of linear models that learn together."""

import numpy as np
import pytest

from taskloom.linear import (
    ClusteredRecipe,
    GraphRecipe,
    LowRankRecipe,
    MultiTaskRegressor,
    RidgeRecipe,
    RobustRecipe,
    SparseRecipe,
    Trace,
)
from taskloom.linear._recipes import task_design
from taskloom.study import StudyOptions, study
from taskloom.tasks import OptionError, Task, TaskData, load_diabetes_tasks

RECIPES = [LowRankRecipe, SparseRecipe, GraphRecipe, ClusteredRecipe, RobustRecipe]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("parts", ["shared_parts", "own_parts", "digit_parts"])
def test_every_shape_of_data_is_served(recipe, parts, request):
    train, validation, test = request.getfixturevalue(parts)
    fit = recipe().fit(train, validation, seed=0, budget=3)
    assert fit.validation_loss.shape == (train.n_tasks,)
    assert np.isfinite(fit.validation_loss).all()
    assert not fit.notes
    for t in range(train.n_tasks):
        assert np.isfinite(fit.predictor.predict(test.X[test.rows(t)], [t])[0]).all()
    (relation,) = fit.relations.values()
    np.testing.assert_allclose(relation, relation.T)
    assert np.abs(relation).max() <= 1 + 1e-9


def test_a_recipe_is_its_estimator(own_parts):
    train, validation, _ = own_parts
    fit = LowRankRecipe().fit(train, validation, seed=0, budget=4)
    strength = float(fit.chosen["penalty"].removeprefix("Trace(strength=").removesuffix(")"))
    model = MultiTaskRegressor(Trace(strength), tol=1e-10).fit(train.X, train.y, tasks=train.task_of_row)
    columns = np.hstack(fit.predictor.coefficients)
    np.testing.assert_allclose(columns.T, model.coef_, atol=1e-3 * np.abs(model.coef_).max())


def test_one_strength_serves_tasks_of_both_kinds():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 6))
    score = X @ rng.normal(size=(6, 1)) @ np.ones((1, 2)) + 0.5 * rng.normal(size=(300, 2))
    Y = np.column_stack([score[:, 0], score[:, 1] > 0])
    data = TaskData.shared_rows(X, Y, [Task("amount"), Task("ill", "binary", classes=("no", "yes"))])
    design, labels = task_design(data)
    from taskloom.linear._problem import RowsProblem

    G = RowsProblem(design, labels).origin.gradient
    y = np.column_stack([Y[:, 0] - Y[:, 0].mean(), 2 * (Y[:, 1] - Y[:, 1].mean())])
    np.testing.assert_allclose(G[:, 0], -X.T @ y[:, 0] / 300, atol=1e-10)
    # At the best intercept the log loss has derivative p - 1/2 (1 + y), twice which is what `unit` makes of it.
    np.testing.assert_allclose(G[:, 1], -X.T @ y[:, 1] / 300, atol=1e-10)
    fit = LowRankRecipe().fit(data, data, seed=0)
    assert (fit.predictor.predict(X, [1])[0] > 0.5).mean() == pytest.approx(Y[:, 1].mean(), abs=0.1)


def test_sharing_helps_when_tasks_share_a_subspace():
    rng = np.random.default_rng(1)
    W = rng.normal(size=(40, 2)) @ rng.choice([-1.0, 1.0], size=(2, 12))
    parts = []
    for t in range(12):
        X = rng.normal(size=(80, 40))
        parts.append((X, X @ W[:, t] + 3 * rng.normal(size=80)))
    found = study(TaskData.own_rows(parts), ["ridge", "lowrank"], seeds=4, options=StudyOptions(cache=False))
    (summary,) = [s for s in found.summaries if s.recipe == "lowrank"]
    assert summary.low > 0


def test_the_report_draws_how_tasks_relate(tmp_path):
    found = study(load_diabetes_tasks("age_groups"), ["ridge", "graph"], seeds=2, options=StudyOptions(cache=False))
    units = [unit for unit in found.units if unit.recipe == "graph"]
    matrix = np.array(units[0].relations["cosine of coefficients"])
    assert matrix.shape == (6, 6)
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-3)
    found.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "How the tasks relate" in page
    assert "cosine of coefficients" in page
    assert not [unit for unit in found.units if unit.recipe == "ridge" and unit.relations]


def test_a_graph_of_the_wrong_size_ends_the_study_before_it_starts(own_parts):
    train, validation, _ = own_parts
    with pytest.raises(OptionError, match=r"`affinity` has shape \(2, 2\) for 6 tasks"):
        GraphRecipe(affinity=np.ones((2, 2))).fit(train, validation, seed=0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_bad_settings_are_named(recipe):
    with pytest.raises(OptionError, match="need 0 < weakest <= strongest"):
        recipe(weakest=1.0, strongest=0.1)


def test_classes_beyond_two_are_refused():
    rng = np.random.default_rng(0)
    data = TaskData.shared_rows(
        rng.normal(size=(30, 2)),
        np.column_stack([np.arange(30) % 3, np.arange(30.0)]),
        [Task("a", "multiclass", classes=tuple("xyz")), "b"],
    )
    with pytest.raises(OptionError, match="`a` has more classes; make one task of each class against the rest"):
        LowRankRecipe().fit(data, data, seed=0)
    assert RidgeRecipe().fit(data, data, seed=0).validation_loss.shape == (2,)
