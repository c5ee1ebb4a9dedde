"""`fit` over sites: the optimum of `taskloom.linear` whatever the method, the same numbers from the same seed, bad input."""

import numpy as np
import pytest
from scipy import sparse
from tests.sites.sites_problems import K, make_pairs, make_shared, simulate, solve

from taskloom.linear import (
    L1,
    L21,
    Clustered,
    Dirty,
    Fusion,
    Graph,
    Huber,
    MeanRegularized,
    MultiTaskClassifier,
    MultiTaskRegressor,
    Ridge,
    Trace,
)
from taskloom.sites import METHODS, Faults, GaussianRelease, OffsetDelays, fit
from taskloom.tasks import DataError, FitError, OptionError, Task, TaskData, UnknownNameError

RING = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]], dtype=float)
PENALTIES = [
    Trace(0.1), L21(0.05), L1(0.05), Graph(0.1, RING), Graph(0.1, RING, ridge=0.2), Ridge(0.1), MeanRegularized(0.1),
    Clustered(2, 0.05, 0.05), Trace(0.1) + Ridge(0.05), Fusion(0.03),
]  # fmt: skip
QUICK = [name for name in METHODS if name != "amtl-paper"]
DATA = {
    "own": lambda loss: make_pairs(loss=loss),
    "missing": lambda loss: make_shared(loss=loss),
}

CASES = [
    *[(penalty, "own", "squared") for penalty in PENALTIES],
    *[(penalty, "missing", "squared") for penalty in PENALTIES[:4]],
    *[(2 * penalty, "own", "logistic") for penalty in PENALTIES[:5]],
    (Trace(0.2), "missing", "logistic"),
    (L21(0.1) + Ridge(0.05), "missing", "logistic"),
]


def assert_optimal(result, problem, best, slack=1e-8):
    """No more than the slack above the optimum, in units of what there is to explain."""
    assert result.converged, result.message
    assert result.objective - best.certificate.objective <= slack * problem.spread
    np.testing.assert_allclose(result.W, best.W, atol=2e-3)
    np.testing.assert_allclose(result.intercepts, best.intercepts, atol=1e-3)


# Exactness


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case))[:60])
def test_every_method_reaches_the_optimum_of_the_central_solver(case):
    penalty, shape, loss = case
    data = DATA[shape](loss)
    problem, best = solve(data, penalty, loss)
    assert best.converged
    for method in QUICK:
        result = simulate(data, penalty, loss=loss, method=method, look_every=2 * K)
        assert_optimal(result, problem, best)
        assert result.gap <= 1e-8


@pytest.mark.parametrize("penalty", [Trace(0.1), L21(0.05), L1(0.05), Graph(0.1, RING)])
def test_the_relaxation_of_the_paper_reaches_it_too(penalty):
    data = make_pairs()
    problem, best = solve(data, penalty)
    assert_optimal(simulate(data, penalty, method="amtl-paper", look_every=40), problem, best)


@pytest.mark.parametrize("is_dynamic", [False, True])
def test_the_dynamic_step_changes_the_way_and_not_the_end(is_dynamic):
    data = make_pairs()
    problem, best = solve(data, Trace(0.1))
    result = simulate(data, Trace(0.1), method="amtl-paper", is_dynamic=is_dynamic, delays=20.0, look_every=40)
    assert_optimal(result, problem, best)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("scale", ["mean", "sum", "sklearn", "malsar"])
def test_scales_and_intercepts_are_those_of_the_estimators(scale, fit_intercept):
    for loss, Estimator in (("squared", MultiTaskRegressor), ("logistic", MultiTaskClassifier)):
        pairs = make_pairs(loss=loss)
        X, y = np.concatenate([X for X, _ in pairs.values()]), np.concatenate([y for _, y in pairs.values()])
        owner = np.repeat(list(pairs), [len(y) for _, y in pairs.values()])
        penalty = L21(0.05 if scale == "mean" else 1.5)
        model = Estimator(penalty, scale=scale, fit_intercept=fit_intercept, tol=1e-12, max_iter=50_000).fit(X, y, tasks=owner)
        result = simulate(pairs, penalty, loss=loss, scale=scale, fit_intercept=fit_intercept, gap=1e-10)
        np.testing.assert_allclose(result.W.T, model.coef_, atol=1e-5)
        np.testing.assert_allclose(result.intercepts, model.intercept_, atol=1e-5)
        assert result.objective == pytest.approx(model.objective_, rel=1e-10)
        assert result.tasks == list(model.tasks_)


@pytest.mark.parametrize("method", QUICK)
@pytest.mark.parametrize("sites", [{"a": ["s0", "s1"], "b": ["s2"], "c": ["s3"]}, {"a": ["s3", "s0"], "b": ["s2", "s1"]}])
def test_a_site_may_hold_several_tasks_in_any_order(sites, method):
    data = make_pairs()
    problem, best = solve(data, Trace(0.1))
    result = simulate(data, Trace(0.1), sites=sites, method=method)
    assert_optimal(result, problem, best)
    assert list(result.sites) == list(sites)
    assert result.tasks == ["s0", "s1", "s2", "s3"]


def test_one_site_with_all_tasks_and_one_task_alone():
    data = make_pairs()
    problem, best = solve(data, Trace(0.1))
    assert_optimal(simulate(data, Trace(0.1), sites={"all": list(data)}), problem, best)
    alone = {"s0": data["s0"]}
    problem, best = solve(alone, Trace(0.1))
    assert_optimal(simulate(alone, Trace(0.1)), problem, best)


def test_tasks_of_both_kinds_are_put_on_one_scale():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    Y = np.column_stack([X @ [1, 2, 0, 0], (X @ [2, 1, 0, 0] + rng.normal(size=60) > 0), X @ [1, 1, 1, 0]])
    data = TaskData.shared_rows(X, Y, ["a", Task("b", "binary", ("no", "yes")), "c"])
    problem, best = solve(data, Trace(0.05))
    assert_optimal(simulate(data, Trace(0.05)), problem, best)
    model = MultiTaskRegressor(Trace(0.05), loss=["squared", "logistic", "squared"], tol=1e-11)
    signs = Y.copy()
    signs[:, 1] = 2 * Y[:, 1] - 1
    np.testing.assert_allclose(best.W.T, model.fit(X, signs).coef_, atol=1e-5)


@pytest.mark.parametrize("loss", ["huber", Huber(0.7), "squared_hinge", "poisson"])
def test_other_losses(loss):
    pairs = make_pairs(loss="logistic" if loss == "squared_hinge" else "squared")
    if loss == "poisson":
        pairs = {
            name: (X, np.random.default_rng(0).poisson(np.exp(0.3 * X[:, 0])).astype(float)) for name, (X, _) in pairs.items()
        }
    problem, best = solve(pairs, L21(0.05), loss)
    for method in ("local-prox",) if loss == "poisson" else ("local-prox", "amtl", "smtl-fista"):
        assert_optimal(simulate(pairs, L21(0.05), loss=loss, method=method), problem, best)


def test_sparse_rows_are_rows():
    pairs = make_pairs()
    dense = simulate(pairs, Trace(0.1))
    thin = simulate({name: (sparse.csr_array(X), y) for name, (X, y) in pairs.items()}, Trace(0.1))
    np.testing.assert_allclose(thin.W, dense.W, atol=1e-6)


def test_more_features_than_rows_and_more_tasks_than_features():
    for shape in ({"K": 3, "d": 30, "n": 8}, {"K": 12, "d": 3, "n": 15}):
        data = make_pairs(**shape)
        problem, best = solve(data, Trace(0.2))
        result = simulate(data, Trace(0.2), look_every=20)
        assert result.converged
        assert result.objective - best.certificate.objective <= 1e-8 * problem.spread


def test_beyond_the_critical_strength_the_model_is_zero():
    data = make_pairs()
    problem, _ = solve(data, Trace(0.1))
    top = Trace().lambda_max(problem.origin.gradient)
    for method in QUICK:
        assert not simulate(data, Trace(1.01 * top), method=method).W.any()
        assert simulate(data, Trace(0.95 * top), method=method).W.any()


def test_the_published_example_has_its_optimum(real_data):
    folder = real_data / "amtl_random"
    if not folder.is_dir():
        pytest.skip(f"no data: {folder}")
    pairs = [(np.loadtxt(folder / f"A{t}.csv", skiprows=1), np.loadtxt(folder / f"b{t}.csv", skiprows=1)) for t in (1, 2, 3, 4)]
    for method in QUICK:
        result = simulate(pairs, Trace(0.3), scale="sum", fit_intercept=False, method=method)
        assert result.converged
        assert result.objective == pytest.approx(281.3002, abs=5e-5)


# What a run leaves behind


def test_the_tolerance_is_kept_and_said():
    data = make_pairs()
    _, best = solve(data, Trace(0.1))
    loose, tight = (simulate(data, Trace(0.1), gap=None, tol=tol) for tol in (1e-3, 1e-9))
    assert loose.converged
    assert loose.updates < tight.updates
    assert "converged: the residual is" in tight.message
    assert "(tol 1e-09)" in tight.message
    np.testing.assert_allclose(tight.W, best.W, atol=1e-7)


def test_limits_end_a_run_and_the_message_says_so():
    data = make_pairs()
    result = simulate(data, Trace(0.1), method="amtl", gap=None, max_updates=np.int64(13))
    assert (result.converged, result.updates) == (False, 13)
    assert "not converged after 13 updates: the residual is" in result.message
    result = simulate(data, Trace(0.1), method="amtl", gap=None, max_rounds=7)
    assert min(site.updates for site in result.sites.values()) == 7
    assert np.isfinite(result.intercepts).all()


def test_a_tolerance_of_zero_is_never_met():
    # Beyond the critical strength gradient steps stand still to the bit.
    result = simulate(make_pairs(), Trace(1e3), method="smtl", gap=None, tol=0.0, max_updates=400)
    assert not result.converged
    assert result.updates == 400


def test_a_callback_sees_the_session_and_can_end_it():
    seen = []

    def stop_at_ten(session):
        seen.append(session.coordinator.version)
        if session.coordinator.version >= 10:
            session.coordinator.stop()

    result = simulate(make_pairs(), Trace(0.1), callback=stop_at_ten)
    assert result.updates == 10
    assert seen == sorted(seen)
    assert not result.converged


def test_histories_are_whole_and_in_order():
    result = simulate(make_pairs(), Trace(0.1), delays=OffsetDelays(1.0, slow={"s1": 4.0}))
    history = result.history
    assert (np.diff(history["time"]) >= 0).all()
    assert (np.diff(history["updates"]) >= 0).all()
    assert history["gap"][-1] <= 1e-8 < history["gap"][0]
    assert history["objective"][-1] == result.objective
    assert len(result.trips) == result.updates
    for name, site in result.sites.items():
        assert len(result.staleness[name]) == site.updates
        assert result.staleness[name].max() == site.most_stale
    assert result.sites["s1"].updates < min(site.updates for name, site in result.sites.items() if name != "s1") / 2
    assert result.seconds >= history["time"][-1]


def test_a_long_history_is_thinned_and_keeps_its_end():
    result = simulate(make_pairs(), Trace(0.1), method="amtl-paper", look_every=1, gap=1e-6)
    assert len(result.looks) <= 401
    assert result.converged
    assert result.looks[-1].version == result.updates
    assert result.gap <= 1e-6


def test_predictions_are_scores_with_intercepts():
    pairs = make_pairs()
    result = simulate(pairs, Trace(0.01))
    X, y = pairs["s2"]
    np.testing.assert_allclose(result.predict(X, "s2"), X @ result.W[:, 2] + result.intercepts[2])
    np.testing.assert_array_equal(result.predict(X, 2), result.predict(X, "s2"))
    assert np.corrcoef(result.predict(X, "s2"), y)[0, 1] > 0.5
    with pytest.raises(UnknownNameError, match="no task named `s7`"):
        result.predict(X, "s7")
    with pytest.raises(DataError, match="`X` has 2 features; the model has 5"):
        result.predict(X[:, :2], 0)


# Determinism


def assert_same_run(one, two):
    np.testing.assert_array_equal(one.W, two.W)
    np.testing.assert_array_equal(one.intercepts, two.intercepts)
    assert one.trips == two.trips or repr(one.trips) == repr(two.trips)
    for name in one.history:
        np.testing.assert_array_equal(one.history[name], two.history[name])


@pytest.mark.parametrize("method", QUICK)
def test_the_same_seed_gives_the_same_numbers_to_the_bit(method):
    faults = Faults(loss=0.1, duplication=0.1, reordering=0.1, patience=5.0)
    for each in (Faults(), faults):
        runs = [simulate(make_pairs(), Trace(0.1), method=method, seed=5, faults=each) for _ in range(2)]
        assert_same_run(*runs)


def test_another_seed_goes_another_way_to_the_same_optimum():
    data = make_pairs()
    problem, best = solve(data, Trace(0.1))
    runs = [simulate(data, Trace(0.1), seed=seed) for seed in range(5)]
    assert len({run.seconds for run in runs}) == 5
    for run in runs:
        assert_optimal(run, problem, best)


def test_without_delays_sites_come_in_turn():
    one, two = (simulate(make_pairs(), Trace(0.1), delays=None, seed=seed) for seed in (0, 1))
    assert_same_run(one, two)
    assert one.seconds == 0.0


# Bad input


class Untouchable:
    """A transport that must not be reached."""

    def run(self, session, make_sites):
        raise AssertionError("work was begun")


def pairs_of(**changes):
    pairs = make_pairs()
    pairs["s1"] = tuple(changes.get(key, part) for key, part in zip("Xy", pairs["s1"], strict=True))
    return pairs


BAD_DATA = {
    "nothing": ([], "`data` is empty; give"),
    "none": (None, "`data` is NoneType; need TaskData, or"),
    "a triple": ([(1, 2, 3)], "`data` of task 'task 1' is tuple; need a pair"),
    "text": (pairs_of(X=np.array([["a"]])), "`data` of task 's1' holds what is no number.*encode it"),
    "an image": (pairs_of(X=np.zeros((3, 2, 2))), r"X has shape \(3, 2, 2\).*need \(n, d\)"),
    "rows and labels": (pairs_of(y=np.zeros(3)), r"X has shape \(46, 5\), y \(3,\); need"),
    "no rows": (pairs_of(X=np.zeros((0, 5)), y=np.zeros(0)), r"X has shape \(0, 5\).*n and d at least 1"),
    "no features": ([(np.zeros((3, 0)), np.zeros(3))], r"X has shape \(3, 0\).*n and d at least 1"),
    "another width": (pairs_of(X=np.zeros((46, 3))), "task 's1' has 3 features, that of the first 5"),
    "missing feature": (pairs_of(X=np.full((46, 5), np.nan)), "task 's1': X holds a number that is not finite; fill or drop"),
    "missing label": (pairs_of(y=np.full(46, np.nan)), "task 's1': y holds a number that is not finite; drop the row"),
    "sparse labels": (pairs_of(y=sparse.eye_array(46).tocsr()), r"y \(46, 46\)"),
    "images": (TaskData.own_rows([(np.random.default_rng(0).normal(size=(4, 2, 2)), np.arange(4.0))]), "flatten it"),
    "many classes": (
        TaskData.own_rows([(np.eye(3), np.arange(3))], [Task("a", "multiclass", ("x", "y", "z"))]),
        "task 'a' has more than two classes; make one task of each",
    ),
    "missing shared feature": (
        TaskData.shared_rows([[np.nan], [1.0], [2.0]], [[1.0], [2.0], [3.0]]),
        "`data` of task 'task0': X holds a number that is not finite",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_refused_with_the_task_and_the_remedy(case):
    data, words = BAD_DATA[case]
    with pytest.raises(DataError, match=words):
        fit(data, Trace(0.1), transport=Untouchable())


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("logistic", "loss 'logistic' takes labels -1 and \\+1, both; found"),
        ("poisson", "takes counts of 0 or more, not all 0"),
    ],
)
def test_labels_that_a_loss_cannot_take_are_refused(loss, words):
    with pytest.raises(DataError, match=words):
        fit(make_pairs(), Trace(0.1), loss=loss, transport=Untouchable())
    ones = {"a": (np.eye(3), np.ones(3))}
    if loss == "logistic":
        with pytest.raises(DataError, match=r"both; found \[1.0\]"):
            fit(ones, Trace(0.1), loss=loss, transport=Untouchable())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "sqared"}, "no loss named `sqared`; did you mean `squared`"),
        ({"scale": "men"}, "no scale named `men`; did you mean `mean`"),
        ({"method": "amlt"}, "no method named `amlt`; did you mean `amtl`"),
        ({"method": 3}, "no method named `3`"),
        ({"transport": "thread"}, "no transport named `thread`; did you mean `threads`"),
        ({"transport": 3}, "no transport named `3`"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(settings, words):
    with pytest.raises(UnknownNameError, match=words):
        fit(make_pairs(), Trace(0.1), **({"transport": Untouchable()} | settings))


BAD_SETTINGS = [
    *[({name: value}, f"`{name}`=.*need a whole number of at least 1")
      for name in ("max_updates", "max_rounds", "checkpoint_every", "look_every") for value in (0, -3, 1.5, "a", True)],
    *[({"seed": value}, "`seed`=.*need a whole number of 0 or more") for value in (-1, 0.5, None, "a", True)],
    *[({name: value}, f"`{name}`=.*need a number 0 or more") for name in ("tol", "gap")
      for value in (-1, np.nan, np.inf, "a", True)],
    *[({name: value}, f"`{name}`=.*need a number above 0") for name in ("step", "unit")
      for value in (0, -1, np.nan, np.inf, "a")],
    *[({"relaxation": value}, "`relaxation`=.*above 0 and below 2") for value in (0, -1, 2, np.nan, "a")],
    *[({"delays": value}, "`delays`=.*need a") for value in (-1, np.nan, np.inf, "a", [1.0], True)],
    ({"callback": 3}, "`callback`=3: need something to call"),
    ({"faults": None}, "`faults`=None: need Faults"),
    ({"faults": Faults(coordinator_crashes=(1.0,)), "transport": "simulated"}, "`faults`: a coordinator.*give `checkpoint`"),
    ({"faults": Faults(loss=0.1), "transport": "threads"}, "`faults` with transport 'threads'.*use `simulated`"),
    ({"faults": Faults(crashes={"x": (1, 2)}), "transport": "simulated"}, "`crashes`: 'x' is none of the sites; known are s0"),
    ({"delays": OffsetDelays(slow={"x": 2}), "transport": "simulated"}, "`slow`: 'x' is none of the sites; known are s0"),
    ({"sites": [["s0"]]}, "`sites`=.*need the names of the tasks by site"),
    ({"sites": {"a": ["s0"]}}, "`sites`: no site holds task 's1'; name each task once"),
    ({"sites": {"a": ["s0", "s1", "s2", "s3"], "b": []}}, "`sites`: site 'b' holds no task; leave it out"),
    ({"sites": {"a": ["s0", "s1"], "b": ["s1", "s2", "s3"]}}, "`sites`: task 's1' is held by 'a' and by 'b'; name it once"),
    ({"sites": {"a": ["nope"]}}, "`sites`: site 'a' holds 'nope', which is no task; tasks are s0, s1, s2, s3"),
    ({"loss": ["squared"] * 4}, "`loss`=.*need the name of one loss"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "words"), BAD_SETTINGS, ids=lambda value: repr(value)[:60])
def test_bad_settings_are_refused_by_name_before_any_work(settings, words):
    with pytest.raises(OptionError, match=words):
        fit(make_pairs(), Trace(0.1), **({"transport": Untouchable()} | settings))


@pytest.mark.parametrize(
    ("penalty", "words"),
    [
        (0.3, "`penalty`=0.3: need a penalty"),
        (Dirty(1.0, 0.6), "`penalty`=Dirty.*several parts"),
        (Trace(0.1) + MeanRegularized(0.1), "no closed proximal map; take one of its terms"),
        (Graph(1.0, np.ones((2, 2))), r"`affinity` has shape \(2, 2\) for 4 tasks"),
    ],
)
@pytest.mark.parametrize("method", ["local-prox", "smtl"])
def test_penalties_that_sites_cannot_share_are_refused(penalty, words, method):
    with pytest.raises(OptionError, match=words):
        fit(make_pairs(), penalty, method=method, transport=Untouchable())


def test_gradient_steps_on_rows_out_of_all_bounds_name_the_sites():
    pairs = make_pairs() | {"s1": (make_pairs()["s1"][0] * 1e60, make_pairs()["s1"][1])}
    with pytest.raises(FitError, match=r"site s1 failed: its first message was refused \(`curvature` is .*check the units"):
        simulate(pairs, Trace(0.1), method="smtl")
    result = simulate(pairs, Trace(0.1), method="amtl", tol=1e-6, gap=None)
    assert "site s1 was lost" in result.message
    assert result.notes[0].startswith("site s1: its first message was refused")


@pytest.mark.parametrize(("loss", "method"), [*(("squared", method) for method in METHODS), ("poisson", "local-prox")])
def test_a_site_whose_features_do_not_vary_is_as_good_as_any(method, loss):
    rng = np.random.default_rng(0)
    pairs = {"varied": (rng.normal(size=(30, 3)), rng.poisson(2.0, size=30) + 1.0)}
    for name, value in (("zero", 0.0), ("constant", 0.1), ("tiny", 1e-160)):
        pairs[name] = (np.full((27, 3), value), rng.poisson(2.0, size=27) + 1.0)
    result = simulate(pairs, Ridge(0.1), loss=loss, method=method, gap=1e-6, max_updates=20_000)
    assert result.converged
    assert not result.notes


@pytest.mark.parametrize("method", ["amtl", "amtl-paper", "smtl", "smtl-fista"])
def test_gradient_steps_on_a_loss_without_bounded_curvature_are_refused(method):
    pairs = {"a": (np.eye(3), np.arange(3.0)), "b": (np.eye(3), np.arange(3.0))}
    with pytest.raises(OptionError, match=r"`method`: gradient steps need a bounded curvature.*use `local-prox`"):
        simulate(pairs, Trace(0.1), loss="poisson", method=method)


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (Faults, {"loss": 1.0}, "`loss`=1.0: need a share from 0 to below 1"),
        (Faults, {"duplication": -0.1}, "`duplication`=-0.1"),
        (Faults, {"reordering": np.nan}, "`reordering`=nan"),
        (Faults, {"loss": "a"}, "`loss`='a'"),
        (Faults, {"patience": 0}, "`patience`=0: need a positive time"),
        (Faults, {"crashes": {"a": (3, 2)}}, "`crashes`: site 'a' is down from 3 to 2; need 0 <= from < to"),
        (Faults, {"crashes": {"a": 3}}, r"`crashes`: site 'a' is down 3; need \(from, to\)"),
        (Faults, {"crashes": ["a"]}, "`crashes`=.*by site"),
        (Faults, {"coordinator_crashes": (-1.0,)}, "`coordinator_crashes`: -1.0 is no time"),
        (OffsetDelays, {"offset": -1}, "`offset`=-1: need a time of 0 or more"),
        (OffsetDelays, {"offset": "a"}, "`offset`='a'"),
        (OffsetDelays, {"jitter": 2}, "`jitter`=2: need a share from 0 to 1"),
        (OffsetDelays, {"slow": {"a": 0}}, "`slow`: the factor of 'a' is 0; need a positive number"),
        (OffsetDelays, {"slow": 3}, "`slow`=3: need factors by site"),
    ],
)
def test_networks_that_cannot_be_are_refused(make, settings, words):
    with pytest.raises(OptionError, match=words):
        make(**settings)


def test_a_mistyped_setting_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match="no setting named `tolerance`"):
        fit(make_pairs(), Trace(0.1), transport="simulated", tolerance=1)


@pytest.mark.parametrize("transport", ["simulated", "threads", "processes"])
def test_delays_of_a_site_that_is_not_there_are_refused(transport):
    with pytest.raises(OptionError, match="'moon' is none of the sites"):
        fit(make_pairs(), Trace(0.1), transport=transport, delays=OffsetDelays(slow={"moon": 5}))


def test_a_run_taken_up_again_takes_nothing_for_settled(tmp_path):
    """A file of a coarser run, or of other rows of the same shape, is a start and no answer."""
    settings = {"transport": "simulated", "delays": 1.0, "checkpoint": tmp_path / "run"}
    first = fit(make_pairs(), Trace(0.1), tol=1e-2, **settings)
    assert first.converged
    finer = fit(make_pairs(), Trace(0.1), tol=1e-9, **settings)
    assert finer.converged
    assert finer.gap < 1e-8
    others = {name: (X, y[::-1].copy()) for name, (X, y) in make_pairs().items()}
    other = fit(others, Trace(0.1), tol=1e-9, **settings)
    assert other.converged
    assert other.gap < 1e-8


def test_withheld_intercepts_are_unknown_and_not_zero():
    result = fit(make_pairs(), Trace(0.1), transport="simulated", withhold=True)
    assert np.isnan(result.intercepts).all()
    with pytest.raises(DataError, match="has no intercept here"):
        result.predict(np.zeros((1, len(result.W))), 0)


def test_releases_that_are_spent_are_no_convergence():
    release = GaussianRelease(clip=1.0, noise_multiplier=0.5, limit=3, seed=0)
    result = fit(make_pairs(), Trace(0.1), transport="simulated", delays=1.0, release=release, max_rounds=30)
    assert not result.converged


def test_tasks_may_have_names_that_are_no_text():
    pairs = dict(enumerate(make_pairs().values(), start=2019))
    assert fit(pairs, Trace(0.1), transport="threads").tasks[0] == "2019"
