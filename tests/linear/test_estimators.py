"""Estimators: agreement with independent libraries, scikit-learn's manners, what a user sees."""

import pickle

import numpy as np
import pytest
import sklearn
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, MultiTaskLasso, Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import taskloom.linear as tl
from taskloom.tasks import DataError, OptionError, UnknownNameError


@parametrize_with_checks(
    # A tight gap, for checks that compare two routes to one solution to rounding.
    [
        tl.MultiTaskRegressor(tl.Trace(0.1), tol=1e-14),
        tl.MultiTaskRegressor(tl.L21(0.01), tol=1e-12),
        tl.MultiTaskRegressor(tl.Ridge(0.1), tol=1e-14),
        tl.MultiTaskClassifier(tl.Trace(0.1), tol=1e-12),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def shared():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 15)) + 3
    W = np.zeros((15, 4))
    W[:4] = rng.normal(size=(4, 4))
    return X, X @ W + rng.normal(size=(60, 4)) - 5


@pytest.fixture(scope="module")
def own():
    rng = np.random.default_rng(1)
    sizes = [12, 40, 25, 7]
    tasks = np.repeat(["d", "a", "c", "b"], sizes)
    X = rng.normal(size=(sum(sizes), 6)) + 1
    W = {name: rng.normal(size=6) for name in "abcd"}
    y = np.array([x @ W[t] for x, t in zip(X, tasks, strict=True)]) + 0.3 * rng.normal(size=len(X)) + 2
    mixed = rng.permutation(len(X))
    return X[mixed], y[mixed], tasks[mixed]


@pytest.mark.parametrize("solver", ["auto", "fista", "anderson", "working_set", "coordinate_descent"])
@pytest.mark.parametrize("strength", [0.02, 0.3])
def test_joint_features_are_scikit_learns_and_skglms(shared, solver, strength):
    from skglm.estimators import MultiTaskLasso as SkglmLasso

    X, Y = shared
    ours = tl.MultiTaskRegressor(tl.L21(strength), tol=1e-13, solver=solver).fit(X, Y)
    theirs = MultiTaskLasso(alpha=strength, tol=1e-14, max_iter=100_000).fit(X, Y)
    third = SkglmLasso(alpha=strength, tol=1e-12).fit(X, Y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.coef_, third.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-6)
    assert ours.optimality_ <= 1e-13


@pytest.mark.parametrize("solver", ["auto", "fista", "working_set"])
def test_each_tasks_lasso_is_scikit_learns_on_own_rows(own, solver):
    X, y, tasks = own
    ours = tl.MultiTaskRegressor(tl.L1(0.05), tol=1e-13, solver=solver).fit(X, y, tasks=tasks)
    for t, name in enumerate(ours.tasks_):
        rows = tasks == name
        theirs = Lasso(alpha=0.05, tol=1e-14, max_iter=100_000).fit(X[rows], y[rows])
        np.testing.assert_allclose(ours.coef_[t], theirs.coef_, atol=1e-6)
        np.testing.assert_allclose(ours.intercept_[t], theirs.intercept_, atol=1e-6)


def test_ridge_and_elastic_net_are_scikit_learns(own):
    X, y, tasks = own
    ridge = tl.MultiTaskRegressor(tl.Ridge(0.5), scale="sum", tol=1e-14).fit(X, y, tasks=tasks)
    net = tl.MultiTaskRegressor(tl.L1(0.05) + tl.Ridge(0.1), tol=1e-13).fit(X, y, tasks=tasks)
    for t, name in enumerate(ridge.tasks_):
        rows = tasks == name
        theirs = Ridge(alpha=1.0).fit(X[rows], y[rows])
        np.testing.assert_allclose(ridge.coef_[t], theirs.coef_, atol=1e-6)
        # alpha * l1_ratio = 0.05 and alpha * (1 - l1_ratio) / 2 = 0.1
        elastic = ElasticNet(alpha=0.25, l1_ratio=0.2, tol=1e-14, max_iter=100_000).fit(X[rows], y[rows])
        np.testing.assert_allclose(net.coef_[t], elastic.coef_, atol=1e-6)


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_logistic_regression_is_scikit_learns(own, kind):
    X, y, tasks = own
    labels = np.where(y > np.median(y), "yes", "no")
    labels[[0, 1]] = ["yes", "no"]
    penalty = tl.Ridge(0.25) if kind == "l2" else tl.L1(0.5)
    ours = tl.MultiTaskClassifier(penalty, scale="sum", tol=1e-13).fit(X, labels, tasks=np.where(tasks > "b", "one", "two"))
    for t, name in enumerate(ours.tasks_):
        rows = np.where(tasks > "b", "one", "two") == name
        C = 1 / 0.5
        solver = {"l2": "lbfgs", "l1": "saga"}[kind]
        ratio = {"l2": 0.0, "l1": 1.0}[kind]
        theirs = LogisticRegression(C=C, l1_ratio=ratio, solver=solver, tol=1e-12, max_iter=200_000, random_state=0)
        theirs.fit(X[rows], labels[rows])
        np.testing.assert_allclose(ours.coef_[t], theirs.coef_[0], atol=1e-5 if kind == "l1" else 1e-6)
    np.testing.assert_array_equal(ours.classes_, ["no", "yes"])


def test_shared_and_own_rows_are_one_model(shared):
    X, Y = shared
    together = tl.MultiTaskRegressor(tl.Trace(0.1), tol=1e-12).fit(X, Y)
    n, K = Y.shape
    apart = tl.MultiTaskRegressor(tl.Trace(0.1), tol=1e-12)
    apart.fit(np.tile(X, (K, 1)), Y.T.ravel(), tasks=np.repeat(np.arange(K), n))
    np.testing.assert_allclose(together.coef_, apart.coef_, atol=1e-7)
    np.testing.assert_allclose(together.predict(X)[:, 2], apart.predict(X, tasks=np.full(n, 2)), atol=1e-6)
    assert together.predict(X).shape == (n, K)


def test_missing_labels_are_rows_that_the_task_does_not_have(shared):
    X, Y = shared
    Y = Y.copy()
    Y[:20, 1] = np.nan
    Y[50:, 3] = np.nan
    model = tl.MultiTaskRegressor(tl.L21(0.1), tol=1e-12).fit(X, Y)
    rows, columns = np.nonzero(~np.isnan(Y))
    same = tl.MultiTaskRegressor(tl.L21(0.1), tol=1e-12).fit(X[rows], Y[rows, columns], tasks=columns)
    np.testing.assert_allclose(model.coef_, same.coef_, atol=1e-6)


def test_weights_are_repetitions_and_zero_weight_leaves_a_row_out(own):
    X, y, tasks = own
    weight = np.random.default_rng(0).integers(0, 3, size=len(y))
    weight[[np.flatnonzero(tasks == name)[0] for name in "abcd"]] = 2
    model = tl.MultiTaskRegressor(tl.Trace(0.1), tol=1e-13).fit(X, y, tasks=tasks, sample_weight=weight)
    rows = np.repeat(np.arange(len(y)), weight)
    same = tl.MultiTaskRegressor(tl.Trace(0.1), tol=1e-13).fit(X[rows], y[rows], tasks=tasks[rows])
    np.testing.assert_allclose(model.coef_, same.coef_, atol=1e-5)


def test_a_tasks_weight_multiplies_its_loss(own):
    X, y, tasks = own
    heavy = tl.MultiTaskRegressor(tl.Trace(0.1), tol=1e-12).fit(X, y, tasks=tasks, task_weight={"a": 5, "b": 1, "c": 1, "d": 1})
    plain = tl.MultiTaskRegressor(tl.Trace(0.1), tol=1e-12).fit(X, y, tasks=tasks)
    rows = tasks == "a"

    def loss(model):
        return ((model.predict(X[rows], tasks=tasks[rows]) - y[rows]) ** 2).mean()

    assert loss(heavy) < loss(plain)
    by_order = tl.MultiTaskRegressor(tl.Trace(0.1), tol=1e-12).fit(X, y, tasks=tasks, task_weight=[5, 1, 1, 1])
    np.testing.assert_array_equal(by_order.coef_, heavy.coef_)


def test_sparse_rows_are_dense_rows(own, shared):
    X, y, tasks = own
    for data, target, labels in ((X, y, tasks), (*shared, None)):
        thin = np.where(np.abs(data) > 1.2, data, 0)
        for penalty in (tl.Trace(0.1), tl.L21(0.1)):
            dense = tl.MultiTaskRegressor(penalty, tol=1e-11).fit(thin, target, tasks=labels)
            other = tl.MultiTaskRegressor(penalty, tol=1e-11).fit(sparse.csr_matrix(thin), target, tasks=labels)
            np.testing.assert_allclose(dense.coef_, other.coef_, atol=1e-6)
            np.testing.assert_allclose(
                dense.predict(thin, tasks=labels), other.predict(sparse.csr_array(thin), tasks=labels), atol=1e-5
            )


def test_mixed_kinds_share_one_scale(own):
    X, y, tasks = own
    y = np.where(tasks == "a", np.where(y > np.median(y[tasks == "a"]), 1.0, -1.0), y)
    losses = {"a": "logistic", "b": "squared", "c": "huber", "d": "squared"}
    model = tl.MultiTaskRegressor(tl.L21(0.1), loss=losses, tol=1e-10).fit(X, y, tasks=tasks)
    assert model.converged_
    predictions = model.predict(X, tasks=tasks)
    assert ((predictions[tasks == "a"] > 0) & (predictions[tasks == "a"] < 1)).all()
    # On one scale the gradients at zero are X'(y - mean) / n for both kinds, so that one critical strength serves both.
    G = np.stack([X[tasks == t].T @ (y[tasks == t] - y[tasks == t].mean()) / (tasks == t).sum() for t in "abd"])
    critical = np.linalg.norm(G, axis=0).max()
    assert not tl.MultiTaskRegressor(tl.L21(2 * critical), loss=losses).fit(X, y, tasks=tasks).coef_.any()


def test_counts_are_predicted_by_their_mean(own):
    X, _, tasks = own
    rng = np.random.default_rng(0)
    y = rng.poisson(np.exp(0.3 * X[:, 0]))
    model = tl.MultiTaskRegressor(tl.MeanRegularized(1.0) + tl.Ridge(0.01), loss="poisson", tol=1e-9).fit(X, y, tasks=tasks)
    # Free intercepts make each task's mean prediction its mean count.
    for name in "abcd":
        rows = tasks == name
        np.testing.assert_allclose(model.predict(X[rows], tasks=tasks[rows]).mean(), y[rows].mean(), rtol=1e-6)


def test_classes_differ_from_task_to_task():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 3))
    tasks = np.repeat([1, 2, 3], 30)
    pairs = {1: (0, 1), 2: (4, 9), 3: (3, 8)}
    y = np.array([pairs[t][int(x[0] > 0)] for x, t in zip(X, tasks, strict=True)])
    model = tl.MultiTaskClassifier(tl.Trace(0.01)).fit(X, y, tasks=tasks)
    assert model.score(X, y, tasks=tasks) > 0.95
    assert set(model.predict(X, tasks=tasks)) == {0, 1, 3, 4, 8, 9}
    np.testing.assert_array_equal(model.task_classes_, [[0, 1], [4, 9], [3, 8]])
    p = model.predict_proba(X, tasks=tasks)
    np.testing.assert_allclose(p.sum(1), 1)
    with pytest.raises(OptionError, match=r"different classes"):
        tl.MultiTaskClassifier(tl.Trace(0.01), unseen="mean").fit(X, y, tasks=tasks).predict(X[:1], tasks=[7])


def test_shared_rows_with_classes_missing_for_some():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    Y = (X + 0.3 * rng.normal(size=(80, 3)) > 0).astype(float)
    Y[rng.random(Y.shape) < 0.2] = np.nan
    model = tl.MultiTaskClassifier(tl.Trace(0.01)).fit(X, Y)
    assert model.predict(X).shape == model.predict_proba(X).shape == (80, 3)
    assert model.score(X, Y) > 0.8


def test_tasks_pass_through_pipelines_and_cross_validation(own):
    X, y, tasks = own
    with sklearn.config_context(enable_metadata_routing=True):
        model = tl.MultiTaskRegressor(tl.Trace(0.01)).set_fit_request(tasks=True).set_score_request(tasks=True)
        model.set_predict_request(tasks=True)
        pipeline = make_pipeline(StandardScaler(), model)
        scores = cross_val_score(pipeline, X, y, params={"tasks": tasks}, cv=KFold(3, shuffle=True, random_state=0))
        assert scores.shape == (3,)
        assert scores.mean() > 0.5
        search = GridSearchCV(model, {"penalty": [tl.Trace(0.01), tl.Trace(100.0)]}, cv=3).fit(X, y, tasks=tasks)
        assert search.best_params_ == {"penalty": tl.Trace(0.01)}


def test_an_unseen_task_is_an_error_or_the_mean_model(own):
    X, y, tasks = own
    model = tl.MultiTaskRegressor(tl.Trace(0.1)).fit(X, y, tasks=tasks)
    with pytest.raises(DataError, match=r"'z' was not seen in training .4 tasks were.; .*unseen='mean'"):
        model.predict(X[:2], tasks=["a", "z"])
    mean = tl.MultiTaskRegressor(tl.Trace(0.1), unseen="mean").fit(X, y, tasks=tasks)
    expected = X[:1] @ mean.coef_.mean(0) + mean.intercept_.mean()
    np.testing.assert_allclose(mean.predict(X[:1], tasks=["z"]), expected)
    with pytest.raises(DataError, match=r"`tasks` is missing"):
        model.predict(X)


def test_a_model_that_did_not_converge_says_so_and_what_to_do(own):
    X, y, tasks = own
    with pytest.warns(ConvergenceWarning, match=r"relative duality gap .*raise `max_iter`"):
        model = tl.MultiTaskRegressor(tl.Trace(1e-3), max_iter=3).fit(X, y, tasks=tasks)
    assert not model.converged_
    assert model.optimality_ > 1e-6


def test_edge_shapes_are_served():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 40)), rng.normal(size=30)
    X[:, 3] = 7.0
    tasks = np.repeat([0, 1, 2], [1, 4, 25])
    for penalty in (tl.Trace(0.1), tl.L21(0.1), tl.Dirty(0.2, 0.1), tl.MeanRegularized(1.0) + tl.Ridge(0.1)):
        model = tl.MultiTaskRegressor(penalty).fit(X, y, tasks=tasks)
        assert model.converged_
        np.testing.assert_allclose(model.coef_[:, 3], 0, atol=1e-9)
        single = tl.MultiTaskRegressor(penalty).fit(X, y)
        assert single.coef_.shape == (1, 40)
        assert single.predict(X).shape == (30,)


def test_pickled_models_predict_the_same(own):
    X, y, tasks = own
    model = tl.MultiTaskRegressor(tl.Graph(0.1, np.ones((4, 4)))).fit(X, y, tasks=tasks)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    np.testing.assert_array_equal(model.predict(X, tasks=tasks), again.predict(X, tasks=tasks))


def test_parts_add_up(own):
    X, y, tasks = own
    model = tl.MultiTaskRegressor(tl.Robust(0.1, 0.1), tol=1e-8).fit(X, y, tasks=tasks)
    assert model.parts_.shape == (2, 4, 6)
    np.testing.assert_allclose(model.parts_.sum(0), model.coef_)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"penalty": 0.1}, OptionError, r"`penalty`=0.1: need a penalty such as"),
        ({"solver": "fsta"}, UnknownNameError, r"no solver named `fsta`; did you mean `fista`"),
        ({"solver": "working_set"}, OptionError, r"`solver`='working_set' needs L1, L21 or Fused"),
        ({"solver": "coordinate_descent"}, OptionError, r"`solver`='coordinate_descent' needs L21 or L1"),
        ({"loss": "squred"}, UnknownNameError, r"no loss named `squred`; did you mean `squared`"),
        ({"loss": {"a": "squared"}}, OptionError, r"`loss` says nothing of task 'b'"),
        ({"loss": {"a": "squared", "e": "huber"}}, OptionError, r"`loss`: there is no task 'e'"),
        ({"loss": ["squared"]}, OptionError, r"`loss` has 1 entries for 4 tasks"),
        ({"scale": "men"}, UnknownNameError, r"no scale named `men`; did you mean `mean`"),
        ({"tol": 0}, OptionError, r"`tol`=0: need a positive number"),
        ({"tol": np.nan}, OptionError, r"`tol`=nan"),
        ({"max_iter": 0}, OptionError, r"`max_iter`=0"),
        ({"unseen": "skip"}, OptionError, r"`unseen`='skip'"),
        ({"penalty": tl.Graph(1.0, np.ones((3, 3)))}, OptionError, r"`affinity` has shape \(3, 3\) for 4 tasks"),
        ({"penalty": tl.Clustered(5)}, OptionError, r"`n_clusters`=5 for 4 tasks"),
        ({"loss": "logistic"}, DataError, r"takes labels -1 and .1"),
        ({"loss": "poisson"}, DataError, r"takes counts of 0 or more"),
    ],
)
def test_bad_parameters_are_named(own, change, error, message):
    X, y, tasks = own
    with pytest.raises(error, match=message):
        tl.MultiTaskRegressor(**{"penalty": tl.Trace(0.1), **change}).fit(X, y, tasks=tasks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["a"]}, r"`tasks` has shape \(1,\) for 84 rows"),
        ({"tasks": [None] + ["a"] * 83}, r"`tasks\[0\]` is missing"),
        ({"y": np.ones((84, 2))}, "`tasks` is given and `y` has shape"),
        ({"y": np.r_[np.nan, np.ones(83)]}, "Input y contains NaN or infinity in row 0"),
        ({"y": np.ones(3)}, r"`y` has shape \(3,\) for 84 rows"),
        ({"sample_weight": -np.ones(84)}, "`sample_weight` holds -1 in row 0; need 0 or more"),
        ({"sample_weight": np.ones(3)}, r"`sample_weight` has shape \(3,\)"),
        ({"task_weight": {"a": 1, "b": 0, "c": 1, "d": 1}}, "need one positive number a task"),
    ],
)
def test_bad_data_are_named(own, change, message):
    X, y, tasks = own
    given = {"y": y, "tasks": tasks, **change}
    with pytest.raises(ValueError, match=message):
        tl.MultiTaskRegressor(tl.Trace(0.1)).fit(X, given.pop("y"), **given)


def test_classifiers_name_tasks_that_cannot_be_learned(own):
    X, y, tasks = own
    labels = (y > 0).astype(int)
    labels[tasks == "b"] = 1
    with pytest.raises(DataError, match=r"task 'b' has one class .1 in all rows."):
        tl.MultiTaskClassifier().fit(X, labels, tasks=tasks)
    with pytest.raises(DataError, match=r"task 'a' has 5 classes.*make one task of each class"):
        tl.MultiTaskClassifier().fit(X, np.arange(84) % 5, tasks=tasks)
    with pytest.raises(OptionError, match=r"not for classes"):
        tl.MultiTaskClassifier(loss="squared").fit(X, np.arange(84) % 2, tasks=tasks)
    model = tl.MultiTaskClassifier(loss="squared_hinge").fit(X, np.arange(84) % 2, tasks=tasks)
    with pytest.raises(OptionError, match=r"probabilities need"):
        model.predict_proba(X, tasks=tasks)


class TestCrossValidation:
    def test_jobs_change_no_number(self, own):
        X, y, tasks = own
        path = tl.PathOptions(n_strengths=6, folds=3)
        one, two = (tl.MultiTaskRegressorCV(tl.Trace(1.0), path=path, n_jobs=jobs).fit(X, y, tasks=tasks) for jobs in (1, 2))
        np.testing.assert_array_equal(one.fold_scores_, two.fold_scores_)
        np.testing.assert_array_equal(one.coef_, two.coef_)

    def test_a_path_is_as_good_as_fits_from_zero(self, own):
        X, y, tasks = own
        model = tl.MultiTaskRegressorCV(tl.Trace(1.0), path=tl.PathOptions(n_strengths=8), tol=1e-9).fit(X, y, tasks=tasks)
        alone = tl.MultiTaskRegressor(model.penalty_, tol=1e-9).fit(X, y, tasks=tasks)
        np.testing.assert_allclose(model.objective_, alone.objective_, rtol=1e-8)
        assert model.factors_[0] == pytest.approx(
            model.penalty_.scaled(1.0).strength / model.penalty_.strength * model.factors_[0]
        )

    def test_a_path_begins_where_nothing_is_learned(self, own):
        X, y, tasks = own
        for penalty in (
            tl.L21(3.0),
            tl.Trace(0.2),
            tl.Dirty(1.0, 0.7),
            tl.L1(1.0) + tl.L21(2.0),
            tl.Trace(1.0) + tl.Ridge(0.1),
        ):
            model = tl.MultiTaskRegressorCV(penalty, path=tl.PathOptions(n_strengths=3, folds=2)).fit(X, y, tasks=tasks)
            first = penalty.scaled(model.factors_[0])
            assert not tl.MultiTaskRegressor(first.scaled(1 + 1e-6)).fit(X, y, tasks=tasks).coef_.any()
            assert tl.MultiTaskRegressor(first.scaled(0.9), tol=1e-9).fit(X, y, tasks=tasks).coef_.any()

    def test_folds_hold_their_share_of_every_task_and_class(self):
        from taskloom.linear._cross_validation import deal_folds
        from taskloom.linear._training import read_training

        rng = np.random.default_rng(0)
        tasks = np.repeat(np.arange(4), [1, 6, 40, 53])
        y = np.where(rng.random(100) < 0.3, 1.0, -1.0)
        y[[1, 2]] = [1, -1]
        y[0] = 1
        real = read_training(np.zeros((100, 2)), rng.normal(size=100), tasks, "squared")
        fold = deal_folds(real, 5, seed=0)
        assert fold[0] == -1
        for t in (1, 2, 3):
            counts = np.bincount(fold[tasks == t], minlength=5)
            assert counts.max() - counts.min() <= 1
        classes = read_training(np.zeros((99, 2)), y[1:], tasks[1:], "logistic")
        fold = deal_folds(classes, 5, seed=0)
        for t in (2, 3):
            for label in (-1, 1):
                counts = np.bincount(fold[(tasks[1:] == t) & (y[1:] == label)], minlength=5)
                assert counts.max() - counts.min() <= 1
        np.testing.assert_array_equal(fold, deal_folds(classes, 5, seed=0))
        assert (fold != deal_folds(classes, 5, seed=1)).any()

    def test_pooled_and_per_task_scores_weigh_tasks_differently(self, own):
        X, y, tasks = own
        models = [
            tl.MultiTaskRegressorCV(tl.Trace(1.0), path=tl.PathOptions(n_strengths=5, score=score)).fit(X, y, tasks=tasks)
            for score in ("task", "pooled")
        ]
        assert (models[0].score_path_ != models[1].score_path_).any()

    def test_classifiers_choose_as_well(self):
        rng = np.random.default_rng(0)
        X = rng.normal(size=(120, 10))
        tasks = np.repeat(np.arange(3), 40)
        y = np.where(X[:, 0] + 0.5 * rng.normal(size=120) > 0, "b", "a")
        model = tl.MultiTaskClassifierCV(tl.L21(1.0), path=tl.PathOptions(n_strengths=8, folds=3)).fit(X, y, tasks=tasks)
        assert model.score(X, y, tasks=tasks) > 0.8
        assert 0 < int(np.argmin(model.score_path_)) < 8

    def test_smooth_penalties_have_a_path(self, own):
        X, y, tasks = own
        for penalty in (tl.Ridge(1.0), tl.MeanRegularized(1.0), tl.Clustered(2), tl.CrossLearning(1.0), tl.Fusion(1.0)):
            path = tl.PathOptions(n_strengths=4, folds=2)
            model = tl.MultiTaskRegressorCV(penalty, path=path, tol=1e-4).fit(X, y, tasks=tasks)
            assert np.isfinite(model.score_path_).all()
            assert len(set(model.score_path_)) == 4

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n_strengths": 0}, "`n_strengths`=0"),
            ({"ratio": 2.0}, "`ratio`=2.0"),
            ({"folds": 1}, "`folds`=1"),
            ({"score": "mean"}, "`score`='mean'"),
            ({"factors": (1.0, -1.0)}, "`factors`="),
        ],
    )
    def test_bad_options_are_named(self, options, message):
        with pytest.raises(OptionError, match=message):
            tl.PathOptions(**options)

    def test_a_fold_that_leaves_a_task_one_class_is_named(self):
        X = np.arange(12.0).reshape(-1, 1)
        Y = np.column_stack([np.arange(12) % 2, np.r_[1, np.zeros(11)]])
        with pytest.raises(DataError, match=r"task 1 has one class to train on without fold"):
            tl.MultiTaskClassifierCV(tl.Ridge(1.0), path=tl.PathOptions(folds=3)).fit(X, Y)
