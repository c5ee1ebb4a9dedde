import json

import numpy as np
import pytest
from scipy.io import loadmat
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.svm import LinearSVC

from taskloom.linear._mocha import Mocha
from taskloom.linear._mocha_run import MochaOptions, MochaState, is_done, read_result, run_round, start_mocha
from taskloom.linear._mocha_sites import make_sites, read_labels
from taskloom.linear._mocha_steps import (
    best_covariance,
    certify,
    deal_visits,
    exponentiated_covariance,
    safe_aggregation,
    work_at_site,
    work_at_sites,
)
from taskloom.tasks import DataError, OptionError, UnknownNameError


@pytest.fixture
def rows():
    """Five tasks of uneven size whose coefficients span two dimensions."""
    rng = np.random.default_rng(0)
    tasks = rng.permutation(np.repeat(np.arange(5), [30, 41, 22, 35, 50]))
    W = rng.normal(size=(5, 2)) @ rng.normal(size=(2, 6))
    X = rng.normal(size=(len(tasks), 6)) + 0.5
    return X, (X * W[tasks]).sum(1) + 2 + 0.5 * rng.normal(size=len(X)), tasks


@pytest.fixture
def signs(rows):
    X, y, tasks = rows
    return X, np.where(y > 2, "up", "down"), tasks


def graph(K=5, weight=1.0, ridge=0.5):
    """Laplacian of a chain of tasks, plus a multiple of the identity."""
    steps = np.diff(np.eye(K), axis=0)
    return weight * steps.T @ steps + ridge * np.eye(K)


def solve_graph_least_squares(X, y, tasks, Omega, strength):
    """Stationarity in all W and unpenalised b at once, as one linear system."""
    K, d = len(Omega), X.shape[1] + 1
    A, b = np.zeros((K * d, K * d)), np.zeros(K * d)
    for t in range(K):
        own, block = np.column_stack([X[tasks == t], np.ones((tasks == t).sum())]), slice(t * d, (t + 1) * d)
        A[block, block] = own.T @ own / len(own)
        b[block] = own.T @ y[tasks == t] / len(own)
    A += strength * np.kron(Omega, np.diag([1.0] * (d - 1) + [0.0]))
    solution = np.linalg.solve(A, b).reshape(K, d)
    return solution[:, :-1], solution[:, -1]


def centred(X, y, tasks):
    X, y = X.copy(), y.copy()
    for t in np.unique(tasks):
        X[tasks == t] -= X[tasks == t].mean(0)
        y[tasks == t] -= y[tasks == t].mean()
    return X, y


def prox_squared_trace_norm(V, c):
    """argmin_W ||W - V||^2 / 2 + (c / 2) ||W||_*^2: singular values s_i - c sum(new s), where positive."""
    U, s, Vt = np.linalg.svd(V, full_matrices=False)
    sums = np.cumsum(s) / (1 + c * np.arange(1, len(s) + 1))
    k = np.flatnonzero(s > c * sums).max() + 1
    return (U * np.maximum(s - c * sums[k - 1], 0)) @ Vt


def solve_squared_trace_norm(X, y, tasks, strength, steps=3000):
    """Accelerated proximal gradient on centred rows; the slow twin of a learnt covariance."""
    X, y = centred(X, y, tasks)
    parts = [(X[tasks == t], y[tasks == t]) for t in np.unique(tasks)]
    slope = max(np.linalg.norm(A, 2) ** 2 / len(A) for A, _ in parts)
    W = V = np.zeros((len(parts), X.shape[1]))
    momentum = 1.0
    for _ in range(steps):
        gradient = np.array([A.T @ (A @ v - b) / len(b) for (A, b), v in zip(parts, V, strict=True)])
        new = prox_squared_trace_norm(V - gradient / slope, strength / slope)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        V = new + (momentum - 1) / following * (new - W)
        W, momentum = new, following
    losses = [((A @ w - b) ** 2).mean() / 2 for (A, b), w in zip(parts, W, strict=True)]
    return W, sum(losses) + strength / 2 * np.linalg.norm(W, "nuc") ** 2


def hinge_problem(signs, **options):
    X, y, tasks = signs
    sites, _, _ = make_sites(X, read_labels(y, tasks, len(X), are_classes=True), "hinge", fit_intercept=True)
    return sites, MochaOptions(**options)


# A fixed Omega: the answer of others.


@pytest.mark.parametrize("strength", [0.03, 0.5])
def test_squared_loss_with_a_graph_equals_the_linear_system(rows, strength):
    X, y, tasks = rows
    model = Mocha(loss="squared", omega=graph(), strength=strength, tol=1e-14).fit(X, y, tasks=tasks)
    W, b = solve_graph_least_squares(X, y, tasks, graph(), strength)
    np.testing.assert_allclose(model.coef_, W, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, b, atol=1e-6)
    np.testing.assert_allclose(model.predict(X, tasks=tasks), (X * W[tasks]).sum(1) + b[tasks], atol=1e-5)
    np.testing.assert_allclose(model.task_covariance_ @ graph(), np.eye(5), atol=1e-10)


def test_hinge_loss_with_a_graph_equals_a_support_vector_machine_of_lifted_rows(signs):
    X, y, tasks = signs
    model = Mocha(omega=graph(), strength=0.2, tol=1e-8, rounds=20_000).fit(X, y, tasks=tasks)
    # tr(W' Omega W) is the squared norm of R W with Omega = R' R, so row x of task t has the features (R^-T)_t (x) x.
    lift = np.linalg.inv(np.linalg.cholesky(graph()).T)
    lifted = np.array([np.kron(lift[t], np.append(x, 1.0)) for x, t in zip(X, tasks, strict=True)])
    svm = LinearSVC(C=1.0, loss="hinge", fit_intercept=False, tol=1e-10, max_iter=2_000_000)
    svm.fit(lifted, y, sample_weight=1 / (0.2 * np.bincount(tasks)[tasks]))
    W = lift @ svm.coef_.reshape(5, 7)
    np.testing.assert_allclose(np.column_stack([model.coef_, model.intercept_]), W, atol=2e-3)
    assert (model.predict(X, tasks=tasks) == svm.predict(lifted)).mean() > 0.99


@pytest.mark.parametrize("loss", ["hinge", "squared"])
def test_the_gap_closes_and_bounds_what_is_left(rows, signs, loss):
    X, y, tasks = signs if loss == "hinge" else rows
    rough = Mocha(loss=loss, omega=graph(), strength=0.2, tol=1e-3, rounds=5000).fit(X, y, tasks=tasks)
    fine = Mocha(loss=loss, omega=graph(), strength=0.2, tol=1e-7, rounds=20_000).fit(X, y, tasks=tasks)
    assert fine.converged_
    assert fine.gap_trace_[-1] <= 1e-7 < fine.gap_trace_[0]
    assert 0 <= rough.objective_ - fine.objective_ <= rough.gap_trace_[-1] * rough.objective_
    assert fine.n_iter_ == len(fine.gap_trace_) > rough.n_iter_


def test_no_round_lowers_the_dual_and_dual_variables_stay_feasible(signs):
    sites, options = hinge_problem(signs, learning="fixed", strength=0.05, share=(1.5, 1.5))
    Sigma = best_covariance(np.random.default_rng(1).normal(size=(5, 3)), floor=1e-3)
    state, duals = start_mocha(sites, options, Sigma), [-np.inf]
    for _ in range(60):
        run_round(sites, options, state)
        duals.append(certify(sites, state.a, state.B, Sigma, 0.05, learns=False).dual)
        assert state.a.min() >= 0
        assert state.a.max() <= 1
    assert (np.diff(duals) > -1e-12).all()
    np.testing.assert_allclose(state.B, sites.pulls(state.a), atol=1e-12)
    np.testing.assert_allclose(state.W, Sigma @ state.B / 0.05, atol=1e-12)


def test_the_order_of_tasks_does_not_matter(rows):
    X, y, tasks = rows
    places = np.array([3, 0, 4, 1, 2])
    Omega = np.empty((5, 5))
    Omega[np.ix_(places, places)] = graph()
    options = {"loss": "squared", "strength": 0.1, "tol": 1e-13}
    one = Mocha(omega=graph(), **options).fit(X, y, tasks=tasks)
    two = Mocha(omega=Omega, **options).fit(X, y, tasks=places[tasks])
    np.testing.assert_allclose(two.coef_[places], one.coef_, atol=1e-6)
    learnt, permuted = (Mocha(**options | {"tol": 1e-9}).fit(X, y, tasks=names) for names in (tasks, places[tasks]))
    np.testing.assert_allclose(permuted.coef_[places], learnt.coef_, atol=1e-3)


# Sites that do unequal work, or none.


@pytest.mark.parametrize("loss", ["hinge", "squared"])
def test_sites_that_drop_out_half_of_the_time_change_the_rounds_but_not_the_answer(rows, signs, loss):
    X, y, tasks = signs if loss == "hinge" else rows
    options = {"loss": loss, "omega": graph(), "strength": 0.3, "rounds": 20_000}
    always = Mocha(**options).fit(X, y, tasks=tasks)
    dropping = Mocha(**options, drop_probability=0.5).fit(X, y, tasks=tasks)
    uneven = Mocha(**options, local_fraction=(0.1, 1.0)).fit(X, y, tasks=tasks)
    assert dropping.gap_trace_[-1] < 1e-6
    assert dropping.n_iter_ > always.n_iter_
    assert dropping.objective_ == pytest.approx(always.objective_, rel=1e-6)
    assert uneven.objective_ == pytest.approx(always.objective_, rel=1e-6)


def test_more_local_work_takes_fewer_rounds(rows):
    X, y, tasks = rows
    fits = [Mocha(loss="squared", omega=graph(), local_fraction=share).fit(X, y, tasks=tasks) for share in (0.1, 1, 3)]
    assert fits[0].n_iter_ > fits[1].n_iter_ > fits[2].n_iter_


def test_a_round_without_any_site_changes_nothing_but_the_count(signs):
    sites, options = hinge_problem(signs, drop_probability=1 - 1e-12)
    state = start_mocha(sites, options)
    run_round(sites, options, state)
    assert state.round == 1
    assert not state.a.any()
    assert not state.W.any()


@pytest.mark.parametrize("loss", ["hinge", "squared"])
def test_all_sites_at_once_equal_each_site_alone(rows, signs, loss):
    X, y, tasks = signs if loss == "hinge" else rows
    X = X.copy()
    X[7] = 0
    labels = read_labels(y, tasks, len(X), are_classes=loss == "hinge")
    sites, _, _ = make_sites(X, labels, loss, fit_intercept=False)
    rng = np.random.default_rng(2)
    a, v, c = rng.random(len(y)), rng.normal(size=(5, 6)), rng.random(5)
    keys, counts = rng.random(len(y)), np.array([0, 41, 3, 20, 49])
    new_a, new_v = work_at_sites(sites, deal_visits(sites, counts, keys), a, v, c)
    assert (new_a != a).sum() <= counts.sum()
    for t, start in enumerate(sites.starts[:-1]):
        visits = start + np.argsort(keys[start : sites.starts[t + 1]])[: counts[t]]
        own = sites.sign[visits, None] * sites.X[sites.rows[visits]]
        alone_a, alone_v = work_at_site(own, sites.target[visits], a[visits], v[t], c[t], loss)
        np.testing.assert_allclose(new_a[visits], alone_a, atol=1e-12)
        np.testing.assert_allclose(new_v[t], alone_v, atol=1e-12)


def test_a_local_step_is_the_best_of_its_coordinate(rows):
    x, v, c = np.array([[1.0, -2.0]]), np.array([0.3, 0.1]), 0.7
    grid = np.linspace(-3, 3, 60_001)
    for loss, target, gain in (
        ("squared", 1.5, grid * (1.5 - grid / 2)),
        ("hinge", 1.0, np.where(abs(grid - 0.5) <= 0.5, grid, -99)),
    ):
        a = 0.4
        # The site's model of the dual, times n_t: gain - (change) x'v - c ||x||^2 (change)^2 / 2.
        model = gain - (grid - a) * (x[0] @ v) - c * 5 * (grid - a) ** 2 / 2
        new, _ = work_at_site(x, np.array([target]), np.array([a]), v, c, loss)
        assert new[0] == pytest.approx(grid[np.argmax(model)], abs=1e-4)


def test_the_safety_factor_is_safe_tight_and_at_most_the_papers():
    rng = np.random.default_rng(3)
    for K in (1, 2, 6):
        root = rng.normal(size=(K, K + 1))
        Sigma = root @ root.T
        rho, diagonal = safe_aggregation(Sigma), np.diag(np.diag(Sigma))
        assert np.linalg.eigvalsh(rho * diagonal - Sigma)[0] == pytest.approx(0, abs=1e-10)
        assert 1 - 1e-12 <= rho <= (np.abs(Sigma).sum(1) / np.diag(Sigma)).max() + 1e-12


# A learnt Omega.


def test_the_papers_step_is_the_best_covariance_and_gives_the_squared_trace_norm():
    rng = np.random.default_rng(4)
    W = rng.normal(size=(4, 7))
    Sigma = best_covariance(W)
    assert np.trace(Sigma) == pytest.approx(1)
    best = np.trace(W.T @ np.linalg.solve(Sigma, W))
    assert best == pytest.approx(np.linalg.norm(W, "nuc") ** 2, rel=1e-6)
    for _ in range(200):
        noise = rng.normal(size=(4, 4)) * rng.choice([0.01, 0.1])
        other = (np.eye(4) + noise) @ Sigma @ (np.eye(4) + noise).T
        assert np.trace(W.T @ np.linalg.solve(other / np.trace(other), W)) >= best * (1 - 1e-9)


def test_the_exponentiated_step_leads_down_and_rests_where_the_pull_is_even():
    rng = np.random.default_rng(5)
    root, B = rng.normal(size=(4, 5)), rng.normal(size=(4, 7))
    Sigma = root @ root.T / np.trace(root @ root.T)
    new = exponentiated_covariance(Sigma, B, 0.01, 1e-12)
    assert np.trace(new) == pytest.approx(1)
    assert np.trace(new @ B @ B.T) > np.trace(Sigma @ B @ B.T)
    even = np.linalg.qr(rng.normal(size=(7, 4)))[0].T
    np.testing.assert_allclose(exponentiated_covariance(Sigma, even, 1.0, 1e-12), Sigma, atol=1e-12)
    np.testing.assert_array_equal(exponentiated_covariance(Sigma, np.zeros((4, 7)), 1.0, 1e-12), Sigma)


@pytest.mark.parametrize("strength", [0.02, 0.3])
def test_a_learnt_covariance_solves_the_squared_trace_norm_problem(rows, strength):
    X, y, tasks = rows
    model = Mocha(loss="squared", strength=strength).fit(X, y, tasks=tasks)
    W, objective = solve_squared_trace_norm(X, y, tasks, strength)
    assert model.converged_
    assert model.objective_ == pytest.approx(objective, rel=1e-5)
    assert objective >= model.objective_ * (1 - model.gap_trace_[-1])
    np.testing.assert_allclose(model.coef_, W, atol=5e-3)
    # At the optimum the covariance is the best one of the coefficients.
    np.testing.assert_allclose(model.task_covariance_, best_covariance(W), atol=5e-3)


def test_a_learnt_covariance_of_hinge_loss_has_a_certificate_made_of_the_rows_alone(signs):
    X, y, tasks = signs
    model = Mocha(strength=0.5, rounds=20_000).fit(X, y, tasks=tasks)
    sign, rows = np.where(y == "up", 1.0, -1.0), np.column_stack([X, np.ones(len(X))])
    W = np.column_stack([model.coef_, model.intercept_])
    losses = np.maximum(0, 1 - sign * model.decision_function(X, tasks=tasks))
    order = np.argsort(tasks, kind="stable")
    a = np.empty(len(y))
    a[order] = model.state_.a
    B = np.array([(a * sign)[tasks == t] @ rows[tasks == t] / (tasks == t).sum() for t in range(5)])
    primal = sum(losses[tasks == t].mean() for t in range(5)) + 0.25 * np.linalg.norm(W, "nuc") ** 2
    dual = sum(a[tasks == t].mean() for t in range(5)) - np.linalg.norm(B, 2) ** 2
    assert model.objective_ == pytest.approx(primal, rel=1e-12)
    assert 0 <= primal - dual <= 1e-6 * primal * 1.01
    assert model.gap_trace_[-1] == pytest.approx((primal - dual) / primal, abs=1e-12)


def test_the_papers_own_step_falls_at_first_and_then_stalls_above_the_optimum(rows):
    X, y, tasks = rows
    with pytest.warns(ConvergenceWarning, match="omega='learn'"):
        paper = Mocha(loss="squared", omega="paper", strength=0.1).fit(X, y, tasks=tasks)
    learnt = Mocha(loss="squared", strength=0.1).fit(X, y, tasks=tasks)
    apart = Mocha(loss="squared", omega=5 * np.eye(5), strength=0.1).fit(X, y, tasks=tasks)
    at_start = apart.objective_
    assert learnt.objective_ * (1 + 1e-5) < paper.objective_ < at_start
    assert not paper.converged_


def test_related_tasks_are_seen_to_be_related():
    rng = np.random.default_rng(6)
    X, tasks = rng.normal(size=(400, 5)), np.repeat(["a", "b", "c", "d"], 100)
    W = np.array([[1, 2, 0, 0, 0], [1, 2, 0, 0, 0], [-1, -2, 0, 0, 0], [0, 0, 2, -1, 0]])[np.repeat(np.arange(4), 100)]
    y = (X * W).sum(1) + 0.1 * rng.normal(size=400)
    Sigma = Mocha(loss="squared", strength=0.02).fit(X, y, tasks=tasks).task_covariance_
    scale = np.sqrt(np.diag(Sigma))
    correlation = Sigma / np.outer(scale, scale)
    assert correlation[0, 1] > 0.9
    assert correlation[0, 2] < -0.9
    assert abs(correlation[0, 3]) < 0.3
    assert np.trace(Sigma) == pytest.approx(1)


# State.


@pytest.mark.parametrize("learning", ["learn", "paper", "fixed"])
def test_a_run_that_is_saved_and_resumed_equals_one_without_a_stop_to_the_bit(signs, learning, tmp_path):
    sites, options = hinge_problem(signs, learning=learning, share=(0.2, 1.3), drop_probability=0.3, seed=9)
    whole, first = start_mocha(sites, options), start_mocha(sites, options)
    for _ in range(80):
        run_round(sites, options, whole)
    for _ in range(40):
        run_round(sites, options, first)
    arrays, settings = first.parts()
    np.savez(tmp_path / "state.npz", **arrays)
    (tmp_path / "state.json").write_text(json.dumps(settings))
    with np.load(tmp_path / "state.npz") as file:
        second = MochaState.from_parts(dict(file), json.loads((tmp_path / "state.json").read_text()))
    for _ in range(40):
        run_round(sites, options, second)
    (one, one_settings), (two, two_settings) = whole.parts(), second.parts()
    assert one_settings == two_settings
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert read_result(sites, options, whole).message == read_result(sites, options, second).message
    assert not is_done(options, first)


def test_a_fit_goes_on_from_a_state_to_the_bit_and_leaves_it_as_it_was(rows):
    X, y, tasks = rows
    options = {"loss": "squared", "strength": 0.05, "tol": 1e-12, "drop_probability": 0.2}
    with pytest.warns(ConvergenceWarning):
        whole = Mocha(**options, rounds=60).fit(X, y, tasks=tasks)
    with pytest.warns(ConvergenceWarning):
        first = Mocha(**options, rounds=25).fit(X, y, tasks=tasks)
    with pytest.warns(ConvergenceWarning):
        second = Mocha(**options, rounds=60).fit(X, y, tasks=tasks, state=first.state_)
    assert np.array_equal(whole.coef_, second.coef_)
    assert np.array_equal(whole.gap_trace_, second.gap_trace_)
    assert first.state_.round == 25
    assert second.n_iter_ == 60


def test_same_seed_same_numbers_and_another_seed_the_same_answer(signs):
    X, y, tasks = signs
    fits = [Mocha(strength=1.0, seed=seed, rounds=5000).fit(X, y, tasks=tasks) for seed in (3, 3, 4)]
    assert np.array_equal(fits[0].coef_, fits[1].coef_)
    assert np.array_equal(fits[0].gap_trace_, fits[1].gap_trace_)
    assert not np.array_equal(fits[0].gap_trace_, fits[2].gap_trace_)
    assert fits[0].objective_ == pytest.approx(fits[2].objective_, rel=2e-6)


def test_settings_are_only_stored_and_a_clone_has_them():
    model = Mocha(strength=-1, omega=graph(), local_fraction=(0.2, 0.4))
    assert clone(model).get_params()["local_fraction"] == (0.2, 0.4)


# What goes in and what comes out.


def test_shared_rows_equal_the_same_rows_of_each_task_with_missing_labels_left_out():
    rng = np.random.default_rng(7)
    X, Y = rng.normal(size=(40, 4)), rng.normal(size=(40, 3))
    for missing in (0, 0.3):
        Y[rng.random(Y.shape) < missing] = np.nan
        shared = Mocha(loss="squared", strength=0.2, tol=1e-9).fit(X, Y)
        row, task = np.nonzero(~np.isnan(Y))
        own = Mocha(loss="squared", strength=0.2, tol=1e-9).fit(X[row], Y[row, task], tasks=task)
        np.testing.assert_allclose(shared.coef_, own.coef_, atol=1e-4)
        np.testing.assert_allclose(shared.intercept_, own.intercept_, atol=1e-4)
        assert shared.predict(X).shape == (40, 3)
        np.testing.assert_allclose(shared.predict(X, tasks=np.full(40, 2)), shared.predict(X)[:, 2])


def test_classes_may_be_names_missing_or_absent_of_a_task():
    rng = np.random.default_rng(8)
    X = rng.normal(size=(60, 3))
    Y = np.where(X @ rng.normal(size=(3, 2)) > 0, "yes", "no").astype(object)
    Y[:5, 0] = None
    model = Mocha(strength=0.5).fit(X, Y)
    assert model.classes_.tolist() == ["no", "yes"]
    assert (model.predict(X)[5:] == Y[5:]).mean() > 0.85
    assert ((model.decision_function(X) > 0) == (model.predict(X) == "yes")).all()
    # The second task has one class alone.
    tasks = np.arange(60) % 2
    lone = Mocha(strength=0.5, rounds=20_000).fit(X, np.where((tasks == 1) | (X[:, 0] > 0), 1, 0), tasks=tasks)
    assert (lone.predict(X[tasks == 1], tasks=np.ones(30, int)) == 1).mean() > 0.8


def test_one_task_equals_a_support_vector_machine():
    rng = np.random.default_rng(9)
    X = rng.normal(size=(80, 3))
    y = np.where(X @ [1, -1, 0.5] + 0.5 * rng.normal(size=80) > 0.3, 1, 0)
    model = Mocha(strength=0.1, tol=1e-9, rounds=20_000, omega=[[1.0]]).fit(X, y)
    svm = LinearSVC(C=1 / (80 * 0.1), loss="hinge", tol=1e-10, max_iter=1_000_000).fit(X, y)
    np.testing.assert_allclose(model.coef_, svm.coef_, atol=1e-4)
    np.testing.assert_allclose(model.intercept_, svm.intercept_, atol=1e-4)
    assert model.predict(X).shape == (80,)


def test_without_intercepts_there_are_none_and_rows_of_zeros_do_no_harm(rows, signs):
    for loss, (full, y, tasks) in (("squared", rows), ("hinge", signs)):
        X = full * (np.arange(len(full)) > 2)[:, None]
        model = Mocha(loss=loss, strength=1.0, fit_intercept=False, rounds=10_000).fit(X, y, tasks=tasks)
        assert not model.intercept_.any()
        assert np.isfinite(model.coef_).all()
    flat = Mocha(loss="squared").fit(rows[0], np.zeros(len(rows[0])), tasks=rows[2])
    assert flat.converged_
    assert not flat.coef_.any()


def test_rounds_that_do_not_suffice_are_said_with_a_remedy(rows):
    X, y, tasks = rows
    with pytest.warns(ConvergenceWarning, match="after 3 rounds, above `tol`=1e-06: give more `rounds`"):
        model = Mocha(loss="squared", rounds=3).fit(X, y, tasks=tasks)
    assert not model.converged_
    assert "local_fraction" in model.message_
    assert Mocha(loss="squared").fit(X, y, tasks=tasks).message_ == ""


def test_only_classes_have_a_decision_function():
    assert hasattr(Mocha(), "decision_function")
    assert not hasattr(Mocha(loss="squared"), "decision_function")
    assert is_classifier(Mocha())
    assert is_regressor(Mocha(loss="squared"))


def test_scores_are_accuracy_and_r_squared_of_the_labelled_rows(rows, signs):
    X, y, tasks = rows
    numbers = Mocha(loss="squared").fit(X, y, tasks=tasks)
    assert numbers.score(X, y, tasks=tasks) == pytest.approx(r2_score(y, numbers.predict(X, tasks=tasks)))
    names = Mocha(strength=1.0).fit(X, signs[1], tasks=tasks)
    assert names.score(X, signs[1], tasks=tasks) == (names.predict(X, tasks=tasks) == signs[1]).mean()
    Y = np.column_stack([y, -y])
    Y[:9, 1] = np.nan
    shared = Mocha(loss="squared").fit(X, Y)
    each = [r2_score(Y[9 * t :, t], shared.predict(X)[9 * t :, t]) for t in range(2)]
    assert shared.score(X, Y) == pytest.approx(np.mean(each))
    with pytest.raises(DataError, match="nothing to score"):
        shared.score(X[:9], Y[:9])
    with pytest.raises(DataError, match=r"`y` has shape \(3,\)"):
        shared.score(X, y[:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0}, "`strength`=0"),
        ({"strength": np.inf}, "`strength`=inf"),
        ({"strength": "much"}, "`strength`='much'"),
        ({"tol": 0.0}, "`tol`=0.0"),
        ({"rounds": 0}, "`rounds`=0"),
        ({"rounds": 2.5}, "`rounds`=2.5"),
        ({"seed": -1}, "`seed`=-1"),
        ({"drop_probability": 1.0}, "`drop_probability`=1.0"),
        ({"drop_probability": None}, "`drop_probability`=None"),
        ({"local_fraction": 0}, r"`local_fraction`=\(0, 0\)"),
        ({"local_fraction": (0.5, 0.2)}, r"`local_fraction`=\(0.5, 0.2\)"),
        ({"local_fraction": (0.5,)}, "pair"),
        ({"omega": "graph"}, "`omega`='graph'"),
        ({"omega": {}}, "`omega` is a dict"),
        ({"omega": np.eye(3)[:2]}, r"`omega` has shape \(2, 3\)"),
        ({"omega": np.full((5, 5), np.nan)}, "finite"),
        ({"omega": np.ones((5, 5))}, "positive definite"),
        ({"omega": np.eye(5) + 0.1 * np.eye(5, k=1)}, "symmetric"),
        ({"omega": np.eye(4)}, r"`omega` has shape \(4, 4\) for 5 tasks"),
    ],
)
def test_bad_settings_are_refused(rows, options, message):
    X, y, tasks = rows
    with pytest.raises(OptionError, match=message):
        Mocha(loss="squared", **options).fit(X, y, tasks=tasks)


def test_an_unknown_loss_is_refused_with_the_one_that_was_meant(rows):
    with pytest.raises(UnknownNameError, match="did you mean `squared`"):
        Mocha(loss="square").fit(rows[0], rows[1], tasks=rows[2])


def test_bad_data_are_refused(rows, signs):
    X, y, tasks = rows
    bad = np.where(np.arange(len(y)) == 4, np.nan, y)
    with pytest.raises(DataError, match=r"`y\[4\]` is missing"):
        Mocha(loss="squared").fit(X, bad, tasks=tasks)
    with pytest.raises(DataError, match="infinite"):
        Mocha(loss="squared").fit(X, np.where(np.isnan(bad), np.inf, y), tasks=tasks)
    with pytest.raises(DataError, match="needs numbers"):
        Mocha(loss="squared").fit(X, signs[1], tasks=tasks)
    with pytest.raises(DataError, match="classes"):
        Mocha().fit(X, y, tasks=tasks)
    with pytest.raises(DataError, match="has 1 classes"):
        Mocha().fit(X, np.ones(len(X)), tasks=tasks)
    with pytest.raises(DataError, match=r"`y` has shape \(3,\)"):
        Mocha(loss="squared").fit(X, y[:3], tasks=tasks)
    with pytest.raises(DataError, match="own rows need a 1-D `y`"):
        Mocha(loss="squared").fit(X, np.column_stack([y, y]), tasks=tasks)
    with pytest.raises(DataError, match="no label of task"):
        Mocha(loss="squared").fit(X, np.column_stack([y, np.full(len(y), np.nan)]))
    with pytest.raises(ValueError, match="NaN"):
        Mocha(loss="squared").fit(np.where(np.eye(*X.shape) > 0, np.nan, X), y, tasks=tasks)
    model = Mocha(loss="squared").fit(X, y, tasks=tasks)
    with pytest.raises(DataError, match="not seen in training"):
        model.predict(X[:1], tasks=[17])
    with pytest.raises(DataError, match="`tasks` is missing"):
        model.predict(X[:1])


def test_a_state_of_something_else_is_refused(rows):
    X, y, tasks = rows
    state = Mocha(loss="squared").fit(X, y, tasks=tasks).state_
    with pytest.raises(DataError, match="`state` is a dict"):
        Mocha(loss="squared").fit(X, y, tasks=tasks, state={})
    with pytest.raises(DataError, match="of other rows"):
        Mocha(loss="squared").fit(X[:90], y[:90], tasks=tasks[:90], state=state)
    with pytest.raises(DataError, match="`strength` and kind of `omega`"):
        Mocha(loss="squared", strength=0.2).fit(X, y, tasks=tasks, state=state)


# Real rows.


def test_landmine_fields_reach_their_certificate(real_data):
    fields = loadmat(real_data / "landmine" / "fmtl_small.mat")
    parts = list(zip(fields["X"][0], fields["Y"][0], strict=True))
    X, y = np.concatenate([x for x, _ in parts]), np.concatenate([y.ravel() for _, y in parts])
    tasks = np.repeat(np.arange(29), [len(x) for x, _ in parts])
    mines = Mocha(strength=1.0).fit(X, y, tasks=tasks)
    assert mines.converged_
    amounts = Mocha(loss="squared", strength=0.1).fit(X, y.astype(float), tasks=tasks)
    assert amounts.converged_
    _, objective = solve_squared_trace_norm(X, y.astype(float), tasks, 0.1, steps=500)
    assert amounts.objective_ == pytest.approx(objective, rel=1e-5)
