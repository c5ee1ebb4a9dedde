"""Data that rounding, zero weights or missing parts make hard: what is said of them must be true."""

import numpy as np
import pytest

import taskloom.linear as tl
from taskloom.tasks import DataError, OptionError

# A solver that rounding stops says so; what is asserted here is that it never claims what is not.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    X, g = rng.normal(size=(150, 5)), rng.integers(0, 3, 150)
    y = (X * rng.normal(size=(3, 5))[g]).sum(1) + 0.1 * rng.normal(size=150)
    return X, y, g


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("level", [1e3, 1.7e9])
def test_labels_far_from_zero_are_learned_like_others(rows, loss, level):
    X, y, g = rows
    for penalty in (tl.Ridge(0.01), tl.L21(0.05), tl.Trace(0.05)):
        near = tl.MultiTaskRegressor(penalty, loss=loss, tol=1e-8).fit(X, y, tasks=g)
        far = tl.MultiTaskRegressor(penalty, loss=loss, tol=1e-8).fit(X, y + level, tasks=g)
        np.testing.assert_allclose(far.coef_, near.coef_, atol=max(1e-4, 1e-6 * level * 2e-10))
        np.testing.assert_allclose(far.intercept_ - level, near.intercept_, atol=1e-3)
        shared = tl.MultiTaskRegressor(penalty, loss=loss).fit(X, np.column_stack([y, y]) + level)
        assert shared.converged_
        assert shared.coef_.any()


@pytest.mark.parametrize("loss", ["logistic", "huber", "squared_hinge"])
@pytest.mark.parametrize("mean", [1e3, 1e5, 1e7])
def test_features_far_from_zero_have_true_certificates(rows, loss, mean):
    X, y, g = rows
    labels = y if loss == "huber" else np.sign(y)
    near = tl.MultiTaskRegressor(tl.L21(1e-3), loss=loss, tol=1e-8).fit(X, labels, tasks=g)
    far = tl.MultiTaskRegressor(tl.L21(1e-3), loss=loss, tol=1e-6, max_iter=3000).fit(X + mean, labels, tasks=g)
    # Rounding of X itself is mean * 1e-16: the optimum may move by about that, the claim may not exceed it.
    assert far.objective_ <= near.objective_ * (1 + 1e-5) or not far.converged_
    if far.converged_:
        np.testing.assert_allclose(far.objective_, near.objective_, rtol=1e-5)


def test_features_without_a_penalty_are_never_screened_away():
    rng = np.random.default_rng(3)
    X, g = rng.normal(size=(160, 250)), np.repeat(np.arange(4), 40)
    y = np.sign(X[:, 0] + X[:, 7] + 0.5 * rng.normal(size=160))
    weights = np.ones((250, 4))
    weights[7] = 0
    penalty = tl.L1(0.05, weights)
    fast = tl.MultiTaskRegressor(penalty, loss="logistic", solver="working_set", tol=1e-6).fit(X, y, tasks=g)
    plain = tl.MultiTaskRegressor(penalty, loss="logistic", solver="fista", tol=1e-6).fit(X, y, tasks=g)
    assert fast.coef_[:, 7].all()
    np.testing.assert_allclose(fast.objective_, plain.objective_, rtol=1e-4)


def test_working_sets_reach_the_optimum_of_many_random_problems():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        K, d = rng.integers(1, 5), rng.integers(60, 150)
        sizes = rng.integers(8, 40, size=K)
        g = np.repeat(np.arange(K), sizes)
        X = rng.normal(size=(len(g), d)) * rng.choice([0.1, 1, 10], size=d) + rng.choice([0, 5], size=d)
        y = X[:, :3].sum(1) + rng.normal(size=len(g))
        penalty = [tl.L1(1.0), tl.L21(1.0), tl.Fused(0.3, 1.0, 0.5), tl.L21(1.0) + tl.Ridge(0.1)][seed % 4]
        problem = tl.MultiTaskRegressorCV(penalty, path=tl.PathOptions(n_strengths=2, folds=2, ratio=0.05), tol=1e-4)
        penalty = penalty.scaled(problem.fit(X, y, tasks=g).factors_[0] * rng.choice([0.5, 0.1, 0.03]))
        fast = tl.MultiTaskRegressor(penalty, solver="working_set", tol=1e-8).fit(X, y, tasks=g)
        plain = tl.MultiTaskRegressor(penalty, solver="fista", tol=1e-8, max_iter=100_000).fit(X, y, tasks=g)
        assert fast.converged_, (seed, fast.message_)
        np.testing.assert_allclose(fast.objective_, plain.objective_, rtol=1e-6)


def test_constant_features_and_constant_labels_leave_a_path_finite(rows):
    X, y, g = rows
    path = tl.PathOptions(n_strengths=3, folds=2)
    for data, labels in ((np.ones_like(X), y), (X, np.full(150, 3.0))):
        model = tl.MultiTaskRegressorCV(tl.Trace(0.01), path=path).fit(data, labels, tasks=g)
        np.testing.assert_allclose(model.coef_, 0, atol=1e-6)
        assert model.penalty_.strength > 1e-6


def test_an_unseen_task_has_no_response_where_losses_differ(rows):
    X, y, g = rows
    labels = np.where(g == 1, np.sign(y), np.round(np.abs(y)))
    losses = {0: "squared", 1: "logistic", 2: "poisson"}
    model = tl.MultiTaskRegressor(tl.Trace(0.1), loss=losses, unseen="mean").fit(X, labels, tasks=g)
    with pytest.raises(OptionError, match="different losses"):
        model.predict(X[:2], tasks=[9, 0])
    assert model.predict(X[:2], tasks=[1, 0]).shape == (2,)


def test_probabilities_stand_under_their_classes():
    rng = np.random.default_rng(0)
    X, g = rng.normal(size=(80, 2)), np.repeat([0, 1], 40)
    y = np.where(X[:, 0] > 0, np.where(g == 0, "b", "c"), np.where(g == 0, "a", "b"))
    model = tl.MultiTaskClassifier(tl.Ridge(0.01)).fit(X, y, tasks=g)
    p = model.predict_proba(X, tasks=g)
    assert p.shape == (80, 3)
    assert not p[:40, 2].any()
    assert not p[40:, 0].any()
    np.testing.assert_array_equal(model.classes_[p.argmax(1)], model.predict(X, tasks=g))


class TestTaskLabels:
    def test_numbers_compare_by_value(self, rows):
        X, y, g = rows
        model = tl.MultiTaskRegressor(tl.Trace(0.1)).fit(X, y, tasks=g)
        np.testing.assert_array_equal(model.predict(X, tasks=g.astype(float)), model.predict(X, tasks=g))

    def test_text_and_numbers_do_not_mix(self, rows):
        X, y, g = rows
        mixed = np.array(["a", 1, 2], dtype=object)[g]
        with pytest.raises(DataError, match="`tasks` mixes text and numbers"):
            tl.MultiTaskRegressor().fit(X, y, tasks=mixed)

    def test_pandas_labels_and_their_missing_values(self, rows):
        import pandas as pd

        X, y, g = rows
        labels = pd.Series(np.array(["x", "y", "z"])[g], dtype="string")
        model = tl.MultiTaskRegressor(tl.Trace(0.1), unseen="mean").fit(X, y, tasks=labels)
        assert model.tasks_.tolist() == ["x", "y", "z"]
        for dtype in ("category", object):
            np.testing.assert_array_equal(model.predict(X, tasks=labels.astype(dtype)), model.predict(X, tasks=labels))
        labels[3] = pd.NA
        with pytest.raises(DataError, match=r"`tasks\[3\]` is missing"):
            model.predict(X, tasks=labels)


class TestScores:
    def test_tasks_without_labels_are_left_out(self, rows):
        X, y, _ = rows
        Y = np.column_stack([y, y])
        model = tl.MultiTaskRegressor(tl.Ridge(0.01)).fit(X, Y)
        half = Y.copy()
        half[:, 1] = np.nan
        assert model.score(X, half) == pytest.approx(model.score(X, Y))
        with pytest.raises(DataError, match="no task has two labels"):
            model.score(X, np.full_like(Y, np.nan))
        classes = tl.MultiTaskClassifier(tl.Ridge(0.01)).fit(X, np.sign(Y))
        half[:, 0] = np.sign(half[:, 0])
        assert classes.score(X, half) == pytest.approx(classes.score(X, np.sign(Y)))

    def test_weights_and_labels_of_another_length_are_refused(self, rows):
        X, y, _ = rows
        labels = np.sign(y)
        for model in (tl.MultiTaskRegressor(tl.Ridge(0.01)).fit(X, y), tl.MultiTaskClassifier(tl.Ridge(0.01)).fit(X, labels)):
            with pytest.raises(DataError, match="`sample_weight` has shape"):
                model.score(X, np.sign(y), sample_weight=np.ones(3))
            with pytest.raises(DataError, match="`y` has shape"):
                model.score(X, np.sign(y)[:3])


class TestFolds:
    def test_nothing_to_hold_out_is_said(self, rows):
        X, y, _ = rows
        with pytest.raises(DataError, match="no task has two rows"):
            tl.MultiTaskRegressorCV(tl.L21(0.1)).fit(X[:3], y[:3], tasks=[0, 1, 2])

    def test_a_fold_that_takes_all_weight_or_all_counts_is_named(self, rows):
        X, y, g = rows
        weight = np.where(g == 0, 0.0, 1.0)
        weight[np.flatnonzero(g == 0)[0]] = 1.0
        with pytest.raises(DataError, match="task 0 has no row of positive weight to train on without fold"):
            tl.MultiTaskRegressorCV(tl.L21(0.1)).fit(X, y, tasks=g, sample_weight=weight)
        counts = np.where(g == 0, 0.0, 2.0)
        counts[np.flatnonzero(g == 0)[0]] = 1.0
        with pytest.raises(DataError, match="task 0 has counts of 0 alone"):
            tl.MultiTaskRegressorCV(tl.L21(0.1), loss="poisson").fit(X, counts, tasks=g)

    def test_one_task_of_rare_classes_is_stratified(self):
        rng = np.random.default_rng(0)
        X = rng.normal(size=(60, 2))
        y = np.r_[np.ones(5), np.zeros(55)]
        path = tl.PathOptions(n_strengths=2, folds=5)
        assert tl.MultiTaskClassifierCV(tl.Ridge(1.0), path=path).fit(X, y).fold_scores_.shape == (5, 2)
