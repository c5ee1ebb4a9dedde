"""Online multi-task learning: its two steps, the estimator as a stream sees it, and what sharing buys."""

import pickle

import numpy as np
import pytest
from scipy import sparse, stats
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score

from taskloom.linear._online import OnlineMultiTask
from taskloom.linear._online_steps import losses_and_pulls, start_state, step_relation
from taskloom.tasks import DataError, FitError, OptionError

STATE = ("coef_", "intercept_", "log_relation_", "relation_", "losses_", "mistakes_", "counts_", "tasks_", "classes_")


def two_clusters(seed, K=10, rounds=60, d=20, noise=0.05):
    """Rows in rounds: tasks of even number follow one rule, of odd number another, each with a twist of its own."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(2, d))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rules = centres[np.arange(K) % 2] + 0.3 * rng.normal(size=(K, d)) / np.sqrt(d)
    X = rng.normal(size=(rounds, K, d))
    y = np.where(np.einsum("tkd,kd->tk", X, rules) > 0, 1, -1) * np.where(rng.random((rounds, K)) < noise, -1, 1)
    return X.reshape(-1, d), y.ravel(), np.tile(np.arange(K), rounds)


def numbers(seed, K=4, rounds=25, d=5):
    rng = np.random.default_rng(seed)
    X, tasks = rng.normal(size=(rounds * K, d)), np.tile(np.arange(K), rounds)
    rules = rng.normal(size=(2, d))[np.arange(K) % 2]
    return X, (X * rules[tasks]).sum(1) + 0.7 + 0.1 * rng.normal(size=len(X)), tasks


def by_rounds(model, X, y, tasks, size):
    for start in range(0, len(y), size):
        part = slice(start, start + size)
        model.partial_fit(X[part], y[part], tasks=tasks[part], **({} if start else {"classes": [-1, 1]}))
    return model


def same_bits(one, two):
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in STATE if hasattr(one, name))


def slow_twin(X, y, tasks, model):
    """The rounds of the docstring by loops over pairs of tasks; rows in rounds of all tasks, in order."""
    K = len(np.unique(tasks))
    C, alpha, rate = model.learning_rate, model.alpha, model.learning_rate * (1 - model.alpha) / model.temperature
    W, p = np.zeros((K, X.shape[1] + 1)), np.where(np.eye(K) > 0, 0.0, 1 / (K - 1))
    for start in range(0, len(y), K):
        steps, former = np.zeros_like(W), p.copy()
        rows = [np.append(X[start + j], 1.0) for j in range(K)]
        norms = [np.linalg.norm(row) if model.normalize else 1.0 for row in rows]
        loss, pull = np.zeros((K, K)), np.zeros((K, K))
        for k in range(K):
            for j in range(K):
                x, target = rows[j] / norms[j], y[start + j]
                if model.loss == "hinge":
                    loss[k, j] = max(0, 1 - target * (x @ W[k]))
                    pull[k, j] = target if loss[k, j] > 0 else 0
                elif model.loss == "logistic":
                    loss[k, j] = np.log(1 + np.exp(-target * (x @ W[k])))
                    pull[k, j] = target / (1 + np.exp(target * (x @ W[k])))
                else:
                    pull[k, j] = target / norms[j] - x @ W[k]
                    loss[k, j] = pull[k, j] ** 2 / 2
        for k in range(K):
            others = [j for j in range(K) if j != k]
            if model.mode != "fixed":
                weight = [(former[k, j] if model.mode == "incremental" else 1) * np.exp(-rate * loss[k, j]) for j in others]
                p[k, others] = np.array(weight) / sum(weight)
            for j in range(K):
                eta = alpha if j == k else (1 - alpha) * p[k, j]
                steps[k] += C * eta * pull[k, j] * rows[j] / norms[j]
        W += steps
    return W, p


class TestSteps:
    @pytest.mark.parametrize("loss", ["hinge", "logistic", "squared"])
    def test_pulls_are_minus_the_derivative(self, loss):
        rng = np.random.default_rng(0)
        scores, y = rng.normal(size=(4, 6)), np.where(rng.random(6) < 0.5, -1.0, 1.0)
        step = 1e-6
        ahead, behind = losses_and_pulls(loss, scores + step, y)[0], losses_and_pulls(loss, scores - step, y)[0]
        np.testing.assert_allclose(losses_and_pulls(loss, scores, y)[1], (behind - ahead) / (2 * step), atol=1e-8)

    def test_hinge_loss_by_hand(self):
        losses, pulls = losses_and_pulls("hinge", np.array([[0.5, -2.0, 3.0, 1.0]]), np.array([1.0, 1.0, 1.0, 1.0]))
        assert losses.tolist() == [[0.5, 3.0, 0.0, 0.0]]
        assert pulls.tolist() == [[1.0, 1.0, 0.0, 0.0]]

    def test_a_huge_margin_overflows_nothing(self):
        losses, pulls = losses_and_pulls("logistic", np.array([[-1e4, 1e4]]), np.array([1.0, 1.0]))
        np.testing.assert_array_equal(losses, [[1e4, 0.0]])
        np.testing.assert_array_equal(pulls, [[1.0, 0.0]])

    @pytest.mark.parametrize("memoryless", [False, True])
    @pytest.mark.parametrize("present", [[0, 1, 2, 3, 4], [0, 2, 3], [1, 4]])
    def test_the_relation_step_solves_its_proximal_problem(self, memoryless, present):
        rng = np.random.default_rng(1)
        K, rate, present = 5, 0.8, np.array(present)
        former = rng.dirichlet(np.ones(K - 1), size=K)
        log_relation = np.full((K, K), -np.inf)
        log_relation[~np.eye(K, dtype=bool)] = np.log(former.ravel())
        losses = rng.exponential(size=(K, len(present)))
        stepped = np.exp(step_relation(log_relation, losses, present, rate, memoryless=memoryless))
        for k in range(K):
            others = present != k
            old, loss = np.exp(log_relation[k, present[others]]), losses[k, others]
            prior = np.full(others.sum(), old.sum() / others.sum()) if memoryless else old
            answer = minimize(
                lambda q, loss=loss, prior=prior: rate * q @ loss + np.sum(q * np.log(q / prior)),
                prior,
                jac=lambda q, loss=loss, prior=prior: rate * loss + np.log(q / prior) + 1,
                bounds=[(1e-12, 1)] * len(old),
                constraints={"type": "eq", "fun": lambda q, old=old: q.sum() - old.sum(), "jac": np.ones_like},
                method="SLSQP",
                options={"ftol": 1e-14},
            )
            np.testing.assert_allclose(stepped[k, present[others]], answer.x, atol=2e-6)

    def test_relations_to_absent_tasks_keep_their_value(self):
        rng = np.random.default_rng(2)
        start = start_state(6, 1).log_relation
        present = np.array([1, 3, 4])
        stepped = step_relation(start, rng.exponential(size=(6, 3)), present, 1.0, memoryless=False)
        np.testing.assert_array_equal(stepped[:, [0, 2, 5]], start[:, [0, 2, 5]])
        np.testing.assert_allclose(np.exp(stepped).sum(1), 1)
        assert not np.allclose(stepped[:, present], start[:, present])

    def test_a_share_that_underflows_is_not_lost(self):
        log_relation = start_state(3, 1).log_relation
        bad, good = np.array([[0.0, 0.0, 1e4]] * 3), np.array([[0.0, 2e4, 0.0]] * 3)
        low = step_relation(log_relation, bad, np.arange(3), 1.0, memoryless=False)
        assert np.exp(low[0, 2]) == 0
        back = step_relation(low, good, np.arange(3), 1.0, memoryless=False)
        np.testing.assert_allclose(np.exp(back[0]), [0, 0, 1])


class TestAgainstTheSlowTwin:
    @pytest.mark.parametrize("loss", ["hinge", "logistic", "squared"])
    @pytest.mark.parametrize("mode", ["incremental", "exact", "fixed"])
    def test_a_round_equals_loops_over_pairs(self, loss, mode):
        X, y, tasks = numbers(3) if loss == "squared" else two_clusters(3, K=4, rounds=25, d=5)
        model = OnlineMultiTask(loss, alpha=0.3, learning_rate=0.8, temperature=0.5, mode=mode).fit(X, y, tasks=tasks)
        W, p = slow_twin(X, y, tasks, model)
        np.testing.assert_allclose(np.column_stack([model.coef_, model.intercept_]), W, atol=1e-10)
        np.testing.assert_allclose(model.relation_, p, atol=1e-10)

    def test_rows_that_are_not_normalised_too(self):
        X, y, tasks = two_clusters(4, K=4, rounds=25, d=5)
        model = OnlineMultiTask(normalize=False).fit(X, y, tasks=tasks)
        W, p = slow_twin(X, y, tasks, model)
        np.testing.assert_allclose(np.column_stack([model.coef_, model.intercept_]), W, atol=1e-9)
        np.testing.assert_allclose(model.relation_, p, atol=1e-9)

    @pytest.mark.parametrize("mode", ["incremental", "exact", "fixed"])
    def test_alpha_one_is_independent_learners_to_the_bit(self, mode):
        X, y, tasks = two_clusters(5)
        model = OnlineMultiTask(alpha=1, learning_rate=0.7, mode=mode).fit(X, y, tasks=tasks)
        Z = np.hstack([X, np.ones((len(X), 1))])
        Z /= np.linalg.norm(Z, axis=1)[:, None]
        for k in range(10):
            w, mistakes, loss = np.zeros(21), 0, 0.0
            for x, sign in zip(Z[tasks == k], y[tasks == k], strict=True):
                margin = sign * (w @ x)
                mistakes += (w @ x > 0) != (sign > 0)
                loss += max(0.0, 1 - margin)
                if margin < 1:
                    w = w + 0.7 * sign * x
            np.testing.assert_array_equal(np.append(model.coef_[k], model.intercept_[k]), w)
            assert model.mistakes_[k] == mistakes
            assert model.losses_[k] == pytest.approx(loss, rel=1e-12)

    @pytest.mark.parametrize("loss", ["hinge", "squared"])
    def test_one_task_learns_as_an_independent_learner(self, loss):
        X, y, tasks = numbers(6) if loss == "squared" else two_clusters(6, K=4)
        rows = tasks == 0
        alone = OnlineMultiTask(loss, alpha=0.2).fit(X[rows], y[rows])
        together = OnlineMultiTask(loss, alpha=1).fit(X, y, tasks=tasks)
        np.testing.assert_allclose(alone.coef_[0], together.coef_[0], rtol=1e-12)
        np.testing.assert_array_equal(alone.relation_, [[0.0]])
        assert alone.predict(X[:3]).shape == (3,)


class TestStream:
    @pytest.mark.parametrize("mode", ["incremental", "exact", "fixed"])
    def test_relations_stay_on_the_simplex(self, mode):
        X, y, tasks = two_clusters(7, rounds=30)
        model = OnlineMultiTask(mode=mode, temperature=0.05, learning_rate=3.0)
        for start in range(0, 300, 10):
            # Every other round lacks some of the tasks.
            rows = np.arange(start, start + (10 if start % 20 else 7))
            model.partial_fit(X[rows], y[rows], tasks=tasks[rows], all_tasks=range(10), classes=[-1, 1])
            assert (model.relation_ >= 0).all()
            np.testing.assert_allclose(model.relation_.sum(1), 1, rtol=1e-12)
            np.testing.assert_array_equal(np.diag(model.relation_), 0)

    @pytest.mark.parametrize("size", [10, 40])
    def test_round_by_round_equals_one_call(self, size):
        X, y, tasks = two_clusters(8)
        assert same_bits(by_rounds(OnlineMultiTask(), X, y, tasks, size), OnlineMultiTask().fit(X, y, tasks=tasks))

    def test_one_task_a_call_row_by_row_equals_its_batch(self):
        X, y, tasks = two_clusters(9, K=3)
        start = OnlineMultiTask().fit(X[:30], y[:30], tasks=tasks[:30])
        one, many = pickle.loads(pickle.dumps(start)), pickle.loads(pickle.dumps(start))  # noqa: S301 (own bytes)
        rows = np.flatnonzero(tasks == 1)[10:]
        many.partial_fit(X[rows], y[rows], tasks=tasks[rows])
        for row in rows:
            one.partial_fit(X[[row]], y[[row]], tasks=[1])
        assert same_bits(one, many)

    def test_rows_are_dealt_in_order_of_arrival(self):
        X, y, tasks = two_clusters(10)
        # Task after task in one call, each task's rows in the same order as before.
        order = np.argsort(tasks, kind="stable")
        dealt = OnlineMultiTask().fit(X[order], y[order], tasks=tasks[order])
        assert same_bits(dealt, OnlineMultiTask().fit(X, y, tasks=tasks))

    def test_pickled_and_continued_equals_no_stop(self):
        X, y, tasks = two_clusters(11)
        whole = by_rounds(OnlineMultiTask(), X, y, tasks, 100)
        first = by_rounds(OnlineMultiTask(), X[:300], y[:300], tasks[:300], 100)
        second = pickle.loads(pickle.dumps(first))  # noqa: S301 (own bytes)
        for start in range(300, 600, 100):
            part = slice(start, start + 100)
            second.partial_fit(X[part], y[part], tasks=tasks[part])
        assert same_bits(second, whole)
        assert same_bits(first, by_rounds(OnlineMultiTask(), X[:300], y[:300], tasks[:300], 300))

    def test_the_order_of_the_tasks_does_not_matter(self):
        X, y, tasks = two_clusters(12)
        names = np.array(list("jihgfbcdea"))
        place = np.argsort(np.argsort(names))
        model, renamed = OnlineMultiTask().fit(X, y, tasks=tasks), OnlineMultiTask().fit(X, y, tasks=names[tasks])
        assert renamed.tasks_.tolist() == sorted(names)
        np.testing.assert_allclose(renamed.coef_[place], model.coef_, atol=1e-12)
        np.testing.assert_allclose(renamed.relation_[np.ix_(place, place)], model.relation_, atol=1e-12)
        np.testing.assert_array_equal(renamed.mistakes_[place], model.mistakes_)
        np.testing.assert_array_equal(renamed.predict(X, tasks=names[tasks]), model.predict(X, tasks=tasks))

    def test_an_absent_task_is_charged_nothing_but_hears_the_others(self):
        X, y, tasks = two_clusters(13, K=3, rounds=10)
        model = OnlineMultiTask().fit(X, y, tasks=tasks)
        before = pickle.loads(pickle.dumps(model))  # noqa: S301 (own bytes)
        model.partial_fit(-X[:2], y[:2], tasks=[0, 1])
        assert model.counts_.tolist() == [11, 11, 10]
        assert model.losses_[2] == before.losses_[2]
        np.testing.assert_array_equal(model.relation_[[0, 1], 2], before.relation_[[0, 1], 2])
        assert not np.array_equal(model.coef_[2], before.coef_[2])
        apart = OnlineMultiTask(alpha=1).fit(X, y, tasks=tasks)
        coef = apart.coef_.copy()
        np.testing.assert_array_equal(apart.partial_fit(-X[:2], y[:2], tasks=[0, 1]).coef_[2], coef[2])

    def test_new_tasks_join_with_the_mean_share(self):
        X, y, tasks = two_clusters(14, K=6)
        old = np.isin(tasks, [1, 2, 4])
        model = OnlineMultiTask(mode="incremental").fit(X[old], y[old], tasks=tasks[old])
        before = model.relation_
        row = np.flatnonzero(tasks == 1)[:1]
        model.partial_fit(X[row], y[row], tasks=tasks[row], all_tasks=[0, 5])
        assert model.tasks_.tolist() == [0, 1, 2, 4, 5]
        known = np.ix_([1, 2, 3], [1, 2, 3])
        np.testing.assert_allclose(model.relation_[known], before * 2 / 4)
        np.testing.assert_allclose(model.relation_[[1, 2, 3]][:, [0, 4]], 1 / 4)
        np.testing.assert_allclose(model.relation_[0], [0, *[1 / 4] * 4])
        np.testing.assert_allclose(model.relation_.sum(1), 1)
        assert model.counts_.tolist() == [0, 61, 60, 60, 0]

    def test_tasks_named_beforehand_are_there_from_the_start(self):
        X, y, tasks = two_clusters(15, K=3)
        model = OnlineMultiTask().partial_fit(X[:2], y[:2], tasks=tasks[:2], all_tasks=[0, 1, 2], classes=[-1, 1])
        assert model.tasks_.tolist() == [0, 1, 2]
        late = (
            OnlineMultiTask().partial_fit(X[:2], y[:2], tasks=tasks[:2], classes=[-1, 1]).partial_fit(X[2:3], y[2:3], tasks=[2])
        )
        assert late.tasks_.tolist() == [0, 1, 2]

    def test_a_single_task_gets_company(self):
        X, y, tasks = two_clusters(16, K=2)
        model = OnlineMultiTask().fit(X[tasks == 0], y[tasks == 0], tasks=tasks[tasks == 0])
        model.partial_fit(X, y, tasks=tasks)
        np.testing.assert_array_equal(model.relation_, [[0, 1], [1, 0]])


class TestWhatAUserSees:
    def test_classes_may_be_text(self):
        X, y, tasks = two_clusters(17)
        text = np.where(y > 0, "mine", "clutter")
        model = OnlineMultiTask().fit(X, text.astype(object), tasks=tasks)
        assert model.classes_.tolist() == ["clutter", "mine"]
        signs = model.decision_function(X, tasks=tasks) > 0
        np.testing.assert_array_equal(model.predict(X, tasks=tasks), np.where(signs, "mine", "clutter"))
        means = [(model.predict(X[tasks == k], tasks=tasks[tasks == k]) == text[tasks == k]).mean() for k in range(10)]
        assert model.score(X, text, tasks=tasks) == pytest.approx(np.mean(means))

    def test_squared_loss_learns_numbers(self):
        X, y, tasks = numbers(18, rounds=200)
        model = OnlineMultiTask("squared", learning_rate=0.5).fit(X, y, tasks=tasks)
        r2 = [r2_score(y[tasks == k], model.predict(X[tasks == k], tasks=tasks[tasks == k])) for k in range(4)]
        assert model.score(X, y, tasks=tasks) == pytest.approx(np.mean(r2))
        assert np.mean(r2) > 0.97
        assert not hasattr(model, "mistakes_")
        assert not hasattr(model, "decision_function")
        assert model.relation_[0, 2] > 0.99

    def test_mistakes_count_what_predict_would_have_said(self):
        X, y, tasks = two_clusters(19, K=4)
        model, wrong = OnlineMultiTask().partial_fit(X[:4], y[:4], tasks=tasks[:4], classes=[-1, 1]), np.zeros(4)
        first = model.mistakes_.copy()
        np.testing.assert_array_equal(first, y[:4] > 0)
        for start in range(4, 240, 4):
            part = slice(start, start + 4)
            wrong += model.predict(X[part], tasks=tasks[part]) != y[part]
            model.partial_fit(X[part], y[part], tasks=tasks[part])
        np.testing.assert_array_equal(model.mistakes_, first + wrong)

    def test_shared_rows_equal_the_same_rows_given_to_each_task(self):
        rng = np.random.default_rng(20)
        X, Y = rng.normal(size=(40, 5)), rng.normal(size=(40, 3))
        shared = OnlineMultiTask("squared").fit(X, Y)
        own = OnlineMultiTask("squared").fit(np.repeat(X, 3, axis=0), Y.ravel(), tasks=np.tile([0, 1, 2], 40))
        assert same_bits(shared, own)
        assert shared.predict(X).shape == (40, 3)
        each = [r2_score(Y[:, k], shared.predict(X)[:, k]) for k in range(3)]
        assert shared.score(X, Y) == pytest.approx(np.mean(each))

    def test_a_missing_label_is_an_absent_task(self):
        rng = np.random.default_rng(21)
        X, Y = rng.normal(size=(20, 5)), np.where(rng.normal(size=(20, 3)) > 0, 1.0, 0.0)
        Y[3, 1] = Y[7, :] = np.nan
        shared = OnlineMultiTask().fit(X, Y)
        own = OnlineMultiTask()
        for x, labels in zip(X, Y, strict=True):
            there = np.flatnonzero(~np.isnan(labels))
            if len(there):
                rows = np.tile(x, (len(there), 1))
                own.partial_fit(rows, labels[there], tasks=there, all_tasks=[0, 1, 2], classes=[0.0, 1.0])
        assert same_bits(shared, own)
        assert shared.counts_.tolist() == [19, 18, 19]
        assert 0 <= shared.score(X, Y) <= 1

    @pytest.mark.parametrize("normalize", [True, False])
    def test_sparse_rows_learn_the_same(self, normalize):
        X, y, tasks = two_clusters(22)
        X[np.abs(X) < 1] = 0
        dense = OnlineMultiTask(normalize=normalize).fit(X, y, tasks=tasks)
        thin = OnlineMultiTask(normalize=normalize).fit(sparse.csr_matrix(X), y, tasks=tasks)
        np.testing.assert_allclose(thin.coef_, dense.coef_, atol=1e-12)
        np.testing.assert_array_equal(thin.predict(sparse.csr_matrix(X), tasks=tasks), dense.predict(X, tasks=tasks))

    def test_normalised_steps_do_not_depend_on_the_scale_of_a_row(self):
        X, y, tasks = two_clusters(23)
        scale = np.exp(np.random.default_rng(0).normal(size=len(X)))
        model = OnlineMultiTask(fit_intercept=False).fit(X, y, tasks=tasks)
        scaled = OnlineMultiTask(fit_intercept=False).fit(X * scale[:, None], y, tasks=tasks)
        np.testing.assert_allclose(scaled.coef_, model.coef_, atol=1e-10)
        np.testing.assert_array_equal(model.intercept_, 0)

    def test_a_row_of_zeros_is_no_trouble(self):
        model = OnlineMultiTask(fit_intercept=False).fit(np.zeros((4, 2)), [0, 1, 0, 1], tasks=[0, 0, 1, 1])
        np.testing.assert_array_equal(model.coef_, 0)

    def test_fit_forgets_what_came_before(self):
        X, y, tasks = two_clusters(24)
        model = OnlineMultiTask().fit(X[:100], y[:100], tasks=tasks[:100])
        assert same_bits(model.fit(X, y, tasks=tasks), clone(model).fit(X, y, tasks=tasks))
        X, y, tasks = numbers(24)
        assert not hasattr(model.set_params(loss="squared").fit(X, y, tasks=tasks), "classes_")

    def test_a_model_that_is_not_fitted_says_so(self):
        with pytest.raises(NotFittedError):
            OnlineMultiTask().predict(np.zeros((1, 2)), tasks=[0])


@pytest.fixture(scope="module")
def errors():
    """Online error over 30 streams of each way to share, and the relations that were learnt."""
    ways = {
        "apart": {"alpha": 1.0},
        "uniform": {"mode": "fixed"},
        "exact": {"mode": "exact"},
        "incremental": {},
    }
    errors, mass = {name: [] for name in ways}, []
    for seed in range(30):
        X, y, tasks = two_clusters(seed)
        for name, way in ways.items():
            model = OnlineMultiTask(fit_intercept=False, **way).fit(X, y, tasks=tasks)
            errors[name].append(model.mistakes_.sum() / len(y))
        same = np.equal.outer(np.arange(10) % 2, np.arange(10) % 2)
        mass.append((model.relation_ * same).sum(1).mean())
    return {name: np.array(values) for name, values in errors.items()} | {"mass": np.array(mass)}


class TestWhatSharingBuys:
    @pytest.mark.parametrize("rival", ["apart", "uniform", "exact"])
    def test_incremental_errs_less_on_two_clusters(self, errors, rival):
        gain = errors[rival] - errors["incremental"]
        low, _ = stats.t.interval(0.95, len(gain) - 1, gain.mean(), stats.sem(gain))
        assert low > 0

    def test_the_relations_find_the_clusters(self, errors):
        assert errors["mass"].mean() > 0.9

    def test_the_average_loss_falls_towards_that_of_a_separator(self):
        rng = np.random.default_rng(25)
        rule = rng.normal(size=8)
        rule /= np.linalg.norm(rule)
        X = rng.normal(size=(100_000, 8))
        X = X[np.abs(X @ rule) > 0.3 * np.linalg.norm(X, axis=1)][:8000]
        # A multiple of the rule has no loss at all, so that the loss is the regret.
        y, tasks = np.sign(X @ rule), np.tile(np.arange(4), 2000)
        model, regret, seen = OnlineMultiTask(fit_intercept=False), [], 0
        for rounds in (125, 500, 2000):
            model.partial_fit(X[seen : 4 * rounds], y[seen : 4 * rounds], tasks=tasks[seen : 4 * rounds])
            seen = 4 * rounds
            regret.append(model.losses_.sum() / seen)
        # A regret that grows as the root of the rounds halves on average from one look to the next.
        assert regret[1] < regret[0] / 2
        assert regret[2] < regret[1] / 2


class TestErrors:
    X, y, tasks = np.eye(4), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"loss": "huber"}, "`loss` is 'huber'; use one of 'hinge', 'logistic', 'squared'"),
            ({"mode": "inc"}, "`mode` is 'inc'; use one of 'incremental', 'exact', 'fixed'"),
            ({"alpha": 1.5}, r"`alpha` is 1.5; give a number in \[0, 1\]"),
            ({"alpha": "half"}, "`alpha` is 'half'"),
            ({"alpha": True}, "`alpha` is True"),
            ({"learning_rate": 0}, "`learning_rate` is 0; give a number above 0"),
            ({"learning_rate": np.inf}, "`learning_rate` is inf"),
            ({"temperature": -1.0}, "`temperature` is -1.0; give a number above 0"),
            ({"temperature": np.nan}, "`temperature` is nan"),
        ],
    )
    def test_settings_out_of_range(self, settings, message):
        model = OnlineMultiTask(**settings)
        with pytest.raises(OptionError, match=message):
            model.partial_fit(self.X, self.y, tasks=self.tasks)
        assert not hasattr(model, "n_features_in_")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"y": [0, 1, 0]}, r"`y` has 3 rows and `X` has shape \(4, 4\)"),
            ({"y": np.zeros((2, 2, 2))}, r"`y` has shape \(2, 2, 2\)"),
            ({"y": []}, r"`y` has shape \(0,\)"),
            ({"y": [0, 0, 0, 0]}, r"`y` has the classes \[0\]; there must be two: give both as `classes`"),
            ({"y": [0, 1, 2, 0]}, r"`y` has the classes \[0, 1, 2\]"),
            ({"classes": [0, 1, 2]}, r"`classes` is \[0, 1, 2\]; there must be two"),
            ({"classes": [1, 2]}, r"`y` holds 0, which is none of the classes \[1, 2\]"),
            ({"y": [0.0, 1.0, np.nan, 1.0]}, r"`y\[2\]` is nan; drop the row"),
            ({"y": np.array(["a", "b", "a", None], dtype=object)}, r"`y\[3\]` is missing; drop the row"),
            ({"tasks": [0, 1]}, r"`tasks` has shape \(2,\) for 4 rows"),
            ({"tasks": [0, 1, None, 1]}, r"`tasks\[2\]` is missing"),
            ({"all_tasks": [0, None]}, r"`all_tasks\[1\]` is missing"),
            ({"all_tasks": ["a"]}, r"`all_tasks` mixes text and numbers \(0, 'a'\)"),
            ({"tasks": None, "all_tasks": [0]}, "`all_tasks` is given without `tasks`"),
            ({"y": np.eye(4)}, r"`tasks` is given and `y` has shape \(4, 4\)"),
        ],
    )
    def test_data_that_cannot_be_used(self, arguments, message):
        model = OnlineMultiTask()
        with pytest.raises(DataError, match=message):
            model.partial_fit(self.X, **({"y": self.y, "tasks": self.tasks} | arguments))
        assert not hasattr(model, "n_features_in_")

    @pytest.mark.parametrize(
        ("y", "message"),
        [
            (["a", "b", "a", "b"], "`y` has the type <U1; squared loss needs numbers"),
            ([0.0, np.inf, 1.0, 2.0], r"`y\[1\]` is inf"),
            ([0.0, 1.0, np.nan, 2.0], r"`y\[2\]` is nan"),
        ],
    )
    def test_targets_that_are_no_numbers(self, y, message):
        with pytest.raises(DataError, match=message):
            OnlineMultiTask("squared").fit(self.X, y, tasks=self.tasks)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"classes": [1, 2]}, r"`classes` is \[1, 2\] and was \[0, 1\]"),
            ({"y": [0, 1, 2, 0]}, r"`y` holds 2, which is none of the classes \[0, 1\]"),
            ({"tasks": None}, "`tasks` is missing, unlike in former calls; give `tasks`"),
            ({"tasks": list("abab")}, "`tasks` mixes text and numbers"),
            ({"X": np.zeros((4, 3))}, "3 features"),
            ({"X": np.full((4, 4), np.nan)}, "NaN"),
        ],
    )
    def test_calls_that_do_not_agree_leave_the_model_as_it_was(self, arguments, message):
        model = OnlineMultiTask().fit(self.X, self.y, tasks=self.tasks)
        before = pickle.dumps(model)
        with pytest.raises(ValueError, match=message):
            model.partial_fit(**({"X": self.X, "y": self.y, "tasks": self.tasks} | arguments))
        assert pickle.dumps(model) == before

    def test_shared_rows_stay_shared(self):
        model = OnlineMultiTask().fit(self.X, np.eye(4)[:, :2])
        with pytest.raises(DataError, match="`tasks` is given, unlike in former calls; leave `tasks` out"):
            model.partial_fit(self.X, self.y, tasks=self.tasks)
        with pytest.raises(DataError, match="`y` has 3 columns; give one for each of the 2 tasks"):
            model.partial_fit(self.X, np.eye(4)[:, :3])

    def test_the_kind_of_loss_cannot_change(self):
        model = OnlineMultiTask().fit(self.X, self.y, tasks=self.tasks).set_params(loss="squared")
        with pytest.raises(OptionError, match="`loss` is 'squared', another kind than in former calls"):
            model.partial_fit(self.X, self.y, tasks=self.tasks)
        model.fit(self.X, self.y, tasks=self.tasks).set_params(loss="hinge")
        with pytest.raises(OptionError, match="`loss` is 'hinge', another kind"):
            model.partial_fit(self.X, self.y, tasks=self.tasks)

    def test_weights_that_overflow(self):
        X, y, tasks = numbers(0, rounds=400)
        model = OnlineMultiTask("squared", learning_rate=50.0, normalize=False)
        with pytest.raises(FitError, match="the weights overflow at `learning_rate` 50; lower it"):
            model.fit(X, y, tasks=tasks)
        with pytest.raises(FitError, match="set `normalize=True`"):
            model.partial_fit(X, y, tasks=tasks)
        assert not hasattr(model, "n_features_in_")

    def test_tasks_that_are_missing_or_unknown_in_predict(self):
        model = OnlineMultiTask().fit(self.X, self.y, tasks=self.tasks)
        with pytest.raises(DataError, match="`tasks` is missing"):
            model.predict(self.X)
        with pytest.raises(DataError, match="`tasks`: 7 was not seen in training"):
            model.decision_function(self.X, tasks=[0, 1, 7, 0])

    def test_scores_of_labels_that_do_not_fit(self):
        model = OnlineMultiTask().fit(self.X, self.y, tasks=self.tasks)
        with pytest.raises(DataError, match=r"`y` has shape \(3,\) and the predictions \(4,\)"):
            model.score(self.X, [0, 1, 0], tasks=self.tasks)
        numbers_model = OnlineMultiTask("squared").fit(self.X, [0.0, 1.0, 2.0, 3.0], tasks=self.tasks)
        with pytest.raises(DataError, match="one of the tasks has 1 labels; a score needs 2"):
            numbers_model.score(self.X[:3], [0.0, 1.0, 2.0], tasks=[0, 0, 1])
