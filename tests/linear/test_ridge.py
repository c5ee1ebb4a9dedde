import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from tests.conftest import encoded_parts

from taskloom.linear import LinearPredictor, RidgeRecipe
from taskloom.tasks import OptionError, Task, read_table, recipe_classes


def test_regression_satisfies_the_normal_equations(own_parts):
    train, validation, _ = own_parts
    fit = RidgeRecipe(weakest=0.1, strongest=0.1).fit(train, validation, seed=0, budget=1)
    for t in range(train.n_tasks):
        X, y = train.X[train.rows(t)], train.labels(t)
        w = fit.predictor.coefficients[t][:, 0]
        residual = y - X @ w - fit.predictor.intercepts[t]
        # Stationarity of ||y - Xw - b||^2 + n alpha ||w||^2 in w and in b.
        np.testing.assert_allclose(X.T @ residual, 0.1 * len(y) * w, atol=1e-8)
        np.testing.assert_allclose(residual.sum(), 0, atol=1e-8)


def test_classification_satisfies_its_stationarity(digit_parts):
    train, validation, _ = digit_parts
    fit = RidgeRecipe(weakest=0.1, strongest=0.1).fit(train, validation, seed=0, budget=1)
    for t in range(train.n_tasks):
        X, y = train.X[train.rows(t)], train.labels(t)
        residual = y - fit.predictor.predict(X, [t])[0]
        w = fit.predictor.coefficients[t][:, 0]
        assert np.abs(X.T @ residual - 0.1 * len(y) * w).max() < 1e-2 * np.abs(X.T @ y).max()
        assert abs(residual.sum()) < 1e-2 * len(y)


def test_equals_scikit_learn_on_one_task(own_parts):
    train, validation, test = own_parts
    fit = RidgeRecipe().fit(train, validation, seed=0, budget=3)
    X, y = train.X[train.rows(2)], train.labels(2)
    theirs = Ridge(alpha=fit.chosen["alpha"][2] * len(y)).fit(X, y).predict(test.X)
    np.testing.assert_allclose(fit.predictor.predict(test.X, [2])[0], theirs, atol=1e-10)


def test_the_strength_with_the_least_validation_loss_is_chosen(own_parts):
    train, validation, _ = own_parts
    best = RidgeRecipe().fit(train, validation, seed=0, budget=5)
    for alpha in (1e-4, 0.01, 1.0, 10.0):
        other = RidgeRecipe(weakest=alpha, strongest=alpha).fit(train, validation, seed=0, budget=1)
        grid_alpha = alpha in {round(a, 6) for a in best.chosen["alpha"]} or alpha in {1e-4, 10.0}
        assert not grid_alpha or (best.validation_loss <= other.validation_loss + 1e-12).all()


def test_limit_cases(own_parts):
    train, validation, _ = own_parts
    heavy = RidgeRecipe(weakest=1e12, strongest=1e12).fit(train, validation, seed=0, budget=1)
    for t in range(train.n_tasks):
        np.testing.assert_allclose(heavy.predictor.predict(train.X, [t])[0], train.labels(t).mean(), atol=1e-6)


def test_multiclass_and_missing_labels(mixed_data):
    from taskloom.tasks import TableOptions

    data = read_table(
        mixed_data,
        targets=["amount", "ill", "grade", "stage"],
        options=TableOptions(kind={"grade": "multiclass", "stage": "multiclass"}),
    )
    train, validation, test = encoded_parts(data)
    fit = RidgeRecipe().fit(train, validation, seed=0)
    predictions = fit.predictor.predict(test.X, range(4))
    assert [p.shape for p in predictions] == [(len(test.X),), (len(test.X),), (len(test.X), 3), (len(test.X), 4)]
    for values in predictions[2:]:
        np.testing.assert_allclose(values.sum(axis=1), 1)
    X, y = train.X[train.rows(3)], train.labels(3)
    theirs = LogisticRegression(C=1 / (fit.chosen["alpha"][3] * len(y)), max_iter=2000).fit(X, y)
    np.testing.assert_allclose(predictions[3], theirs.predict_proba(test.X), atol=1e-10)
    arrays, settings = fit.predictor.state()
    again = LinearPredictor.from_state(arrays, settings, data.tasks)
    for one, two in zip(predictions, again.predict(test.X, range(4)), strict=True):
        assert np.array_equal(one, two)


def test_bad_strengths_are_refused():
    for arguments in ({"weakest": 0.0}, {"weakest": 2.0, "strongest": 1.0}, {"strongest": float("nan")}):
        with pytest.raises(OptionError, match="0 < weakest <= strongest"):
            RidgeRecipe(**arguments)
    assert recipe_classes()["ridge"] is RidgeRecipe
    assert Task("a").name == "a"
