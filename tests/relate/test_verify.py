"""The verify step: with planted gains it ends at the optimum, and never below the best that it measured."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from tests.relate.planted_groups import planted

from taskloom.deep import MLP, GroupFitOptions
from taskloom.relate import Affinity, GroupGains, VerifyOptions, group_gains, refine, select, train_groups, verify
from taskloom.relate._verify import slope_within
from taskloom.tasks import DataError, OptionError

ALL = VerifyOptions(most=1000, per_round=5, patience=1000)
QUICK = VerifyOptions(most=6, per_round=3, training=GroupFitOptions(max_steps=20, seeds=(0, 1), learning_rate=1e-2))


def every_group(K):
    return (np.arange(1, 1 << K)[:, None] >> np.arange(K) & 1).astype(bool)


def table_of(K, rng):
    """Gains of all groups, at random: no model of them is right."""
    members = every_group(K)
    gains = np.where(members, rng.normal(size=members.shape), np.nan)
    gains[members.sum(axis=1) == 1] = np.where(members[members.sum(axis=1) == 1], 0.0, np.nan)
    return GroupGains(members, gains)


def measurement(table, asked=None):
    """What looks gains up, and notes what it was asked for."""
    place = {row.tobytes(): g for g, row in enumerate(table.members)}

    def measure(members):
        if asked is not None:
            asked.extend(members)
        return np.stack([table.gains[place[row.tobytes()]] for row in members])

    return measure


def linear_table(K, rng):
    """Gains that are sums over the other members, as the surrogate has them."""
    members, effects = every_group(K), rng.normal(size=(K, K))
    np.fill_diagonal(effects, 0.0)
    gains = np.where(members.sum(axis=1)[:, None] > 1, rng.normal(size=K) + members @ effects.T, 0.0)
    return GroupGains(members, np.where(members, gains, np.nan)), effects


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_with_a_budget_for_all_groups_the_choice_is_the_best_of_all(seed, overlap):
    rng = np.random.default_rng(seed)
    K = 4 + seed % 2
    truth = table_of(K, rng)
    found = refine(measurement(truth), rng.normal(size=(K, K)), 2, options=replace(ALL, overlap=overlap))
    assert found.groups.value == pytest.approx(select(truth, 2, overlap=overlap, solver="milp").value)
    assert found.stable
    assert found.table.n_groups == truth.n_groups


@pytest.mark.parametrize("most", [2, 5, 12])
@pytest.mark.parametrize("seed", range(4))
def test_no_measured_choice_is_better_than_the_one_returned(seed, most):
    rng, asked = np.random.default_rng(seed), []
    truth = table_of(6, rng)
    options = VerifyOptions(most=most, per_round=3)
    found = refine(measurement(truth, asked), rng.normal(size=(6, 6)), 2, options=options)
    seen = np.array(asked)
    assert len(np.unique(seen, axis=0)) == len(seen), "nothing is measured twice"
    assert len(seen) <= 7 + most
    measured = GroupGains(seen, measurement(truth)(seen))
    assert found.groups.value == pytest.approx(select(measured, 2, solver="milp").value)
    assert [one.value for one in found.rounds] == sorted(one.value for one in found.rounds)
    assert found.rounds[-1].value == pytest.approx(found.groups.value)


def test_single_tasks_and_all_together_are_always_measured():
    rng, asked = np.random.default_rng(0), []
    truth = table_of(5, rng)
    found = refine(measurement(truth, asked), rng.normal(size=(5, 5)), 2, options=VerifyOptions(most=2, per_round=1))
    sizes = np.array(asked).sum(axis=1)
    assert (sizes == 1).sum() == 5
    assert (sizes == 5).sum() == 1
    assert found.groups.value >= truth.gains[truth.members.all(axis=1)].sum()


def test_measured_groups_count_with_their_measured_gains():
    rng = np.random.default_rng(1)
    truth = table_of(5, rng)
    found = refine(measurement(truth), rng.normal(size=(5, 5)), 2, options=VerifyOptions(most=6, per_round=3))
    held = {row.tobytes(): gains for row, gains in zip(found.predicted.members, found.predicted.gains, strict=True)}
    assert np.array_equal(found.table.gains, measurement(truth)(found.table.members), equal_nan=True)
    for row, gains in zip(found.table.members, found.table.gains, strict=True):
        assert np.array_equal(held[row.tobytes()], gains, equal_nan=True)
    if found.stable:
        assert select(found.predicted, 2).value == pytest.approx(found.groups.value)


def test_a_right_prior_is_confirmed_at_once():
    rng = np.random.default_rng(0)
    prior = Affinity(rng.normal(size=(6, 6)), list("abcdef"), zero=0.0)
    truth = group_gains(prior)
    found = refine(measurement(GroupGains(truth.members, 3 * truth.gains, truth.tasks)), prior, 3)
    assert found.groups.value == pytest.approx(3 * select(prior, 3).value)
    assert len(found.rounds) <= 2
    assert found.stable


def test_a_misleading_prior_is_overruled_by_what_is_measured():
    truths = [linear_table(8, np.random.default_rng(seed)) for seed in range(6)]
    shares = []
    for truth, effects in truths:
        best, told = select(truth, 3).value, select(np.where(np.eye(8), 0, -effects), 3)
        found = refine(measurement(truth), -effects, 3, options=VerifyOptions(most=60, per_round=6, patience=3))
        trained = {row.tobytes(): gains for row, gains in zip(truth.members, truth.gains, strict=True)}
        first = sum(
            trained[np.array([task in told.serving(name) for task in told.tasks]).tobytes()][t]
            for t, name in enumerate(told.tasks)
        )
        shares.append((found.groups.value / best, first / best))
    shares = np.array(shares)
    assert shares[:, 0].min() > 0.9
    assert shares[:, 0].mean() > shares[:, 1].mean() + 0.5


def test_errors_of_prediction_shrink_when_gains_are_linear():
    truth, _ = linear_table(7, np.random.default_rng(3))
    options = VerifyOptions(most=60, per_round=10, patience=100)
    found = refine(measurement(truth), np.random.default_rng(0).normal(size=(7, 7)), 3, options=options)
    errors = [one.error for one in found.rounds]
    assert np.isnan(errors[0])
    assert errors[-1] < 0.3 * errors[1]


def test_many_tasks_are_searched_through_a_pool():
    K, groups = 15, np.repeat(np.arange(3), 5)
    same = groups[:, None] == groups
    effects = np.where(same, 1.0, -1.0) - np.eye(K)

    def measure(members):
        sizes = members.sum(axis=1, keepdims=True)
        return np.where(members, (members @ effects.T) / np.maximum(sizes - 1, 1), np.nan)

    prior = Affinity(effects + np.random.default_rng(0).normal(size=(K, K)), [f"t{t}" for t in range(K)], zero=0.0)
    found = refine(measure, prior, 3, options=VerifyOptions(most=30, time_limit=10))
    assert found.groups.value == pytest.approx(K, rel=0.02)


def test_a_table_of_predictions_serves_as_a_prior_and_its_groups_are_the_candidates():
    rng = np.random.default_rng(2)
    truth = table_of(5, rng)
    listed = rng.choice(31, size=12, replace=False)
    prior = GroupGains(
        np.concatenate([truth.members[listed], np.eye(5, dtype=bool)]),
        np.concatenate([truth.gains[listed] + 0.1, np.where(np.eye(5), 0.0, np.nan)]),
        costs=np.concatenate([np.full(12, 2.0), np.ones(5)]),
    )
    if prior.members[:12].sum(axis=1).min() == 1:
        keep = np.concatenate([prior.members[:12].sum(axis=1) > 1, np.ones(5, dtype=bool)])
        prior = GroupGains(prior.members[keep], prior.gains[keep], costs=np.asarray(prior.costs)[keep])
    found = refine(measurement(truth), prior, 4, options=ALL)
    known = {row.tobytes() for row in prior.members} | {np.ones(5, dtype=bool).tobytes()}
    assert {row.tobytes() for row in found.table.members} == known
    assert found.groups.cost <= 4
    assert found.groups.value == pytest.approx(select(found.table, 4, solver="milp").value)


def test_costs_are_kept_to():
    rng = np.random.default_rng(4)
    truth = table_of(5, rng)
    options = replace(ALL, per_round=31)
    found = refine(measurement(truth), rng.normal(size=(5, 5)), 6.0, costs=lambda names: 1 + 0.5 * len(names), options=options)
    best = select(truth, 6.0, costs=lambda names: 1 + 0.5 * len(names))
    assert found.groups.cost <= 6
    assert found.groups.value == pytest.approx(best.value)


def test_the_first_choice_is_measured_whole_however_few_groups_a_round_may_hold():
    prior = Affinity(np.kron(np.eye(3), np.ones((2, 2))), list("abcdef"))
    found = refine(
        lambda members: members.astype(float),
        prior,
        3,
        costs=lambda names: {1: 0.9, 2: 1.0}.get(len(names), 50.0),
        options=VerifyOptions(per_round=1),
    )
    assert found.groups.sets == (("a", "b"), ("c", "d"), ("e", "f"))
    assert len(found.rounds[0].trained) == 3


def test_a_group_that_a_table_has_no_price_for_is_measured_and_not_bought():
    members = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=bool)
    prior = GroupGains(members, np.ones((2, 4)), list("abcd"), np.array([10.0, 10.0]))
    sizes = partial(np.sum, axis=1, keepdims=True)
    found = refine(lambda asked: sizes(asked) * np.ones((1, 4)), prior, 20)
    assert found.groups.sets == (("a", "b"), ("c", "d"))
    assert found.table.n_groups == 7
    cheap = refine(lambda asked: sizes(asked) * np.ones((1, 4)), prior, 20, costs=lambda names: 10.0)
    assert cheap.groups.sets == (("a", "b", "c", "d"),)


def test_two_tasks_have_nothing_but_what_is_always_measured():
    found = refine(lambda members: np.where(members.all(axis=1)[:, None], 0.5, 0.0) * members, np.ones((2, 2)), 2)
    assert found.groups.sets == (("task 1", "task 2"),)
    assert len(found.rounds) == 1
    assert found.stable


def test_groups_that_cannot_serve_are_left_out():
    rng = np.random.default_rng(5)
    truth = table_of(4, rng)
    gains = truth.gains.copy()
    gains[truth.members.sum(axis=1) == 2] = np.nan
    found = refine(measurement(GroupGains(truth.members, gains)), rng.normal(size=(4, 4)), 2, options=ALL)
    assert all(len(names) != 2 for names in found.groups.sets)


def test_the_slope_is_that_within_tasks_and_never_negative():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    y = 2 * x + [100, -100, 0]
    assert slope_within(x, y) == pytest.approx(2)
    assert slope_within(x, -y) == 0
    x[0], y[1] = np.nan, np.nan
    assert slope_within(x, y) == pytest.approx(2)
    assert slope_within(np.full((2, 2), np.nan), np.ones((2, 2))) == 0


@pytest.fixture(scope="module")
def tasks():
    data, groups = planted(2, 3, mixed=True, n_rows=400, d=8)
    order = np.random.default_rng(0).permutation(data.n_rows)
    return data.take(np.sort(order[:250])), data.take(np.sort(order[250:])), groups


def test_nets_are_trained_for_it_and_their_losses_are_there(tasks):
    train, validation, groups = tasks
    prior = Affinity((groups[:, None] == groups).astype(float), [task.name for task in train.tasks], zero=0.0)
    run = partial(verify, MLP((16,)), train, validation, prior, 2, options=QUICK)
    found = run()
    assert np.array_equal(found.scores.gains[found.scores.members.sum(axis=1) == 1].ravel()[::7], np.zeros(6))
    table = {row.tobytes(): gains for row, gains in zip(found.scores.members, found.scores.gains, strict=True)}
    for row, gains in zip(found.table.members, found.table.gains, strict=True):
        assert np.array_equal(table[row.tobytes()], gains, equal_nan=True)
    losses = found.scores.losses_of(found.groups)
    assert losses.shape == (2, 6)
    assert np.isfinite(losses).all()
    alone = train_groups(MLP((16,)), train, validation, found.groups, options=QUICK.training)
    assert alone.losses_of(found.groups) == pytest.approx(losses, rel=1e-5)
    again = run()
    assert again.groups.sets == found.groups.sets
    assert again.groups.value == found.groups.value
    assert str(found).endswith(("is stable", "was stable"))


def test_bad_input_is_refused_before_anything_is_measured(tasks):
    train, validation, _ = tasks

    def never(members):
        pytest.fail("nothing may be measured")

    ones, names = np.ones((3, 3)), [task.name for task in train.tasks]
    unknown_pair = np.ones((3, 3))
    unknown_pair[0, 1] = np.nan
    refused = [
        (lambda: VerifyOptions(most=0), OptionError, "`most`=0"),
        (lambda: VerifyOptions(per_round=0), OptionError, "`per_round`=0"),
        (lambda: VerifyOptions(patience=0), OptionError, "`patience`=0"),
        (lambda: VerifyOptions(most=1.5), OptionError, "`most`=1.5"),
        (lambda: VerifyOptions(time_limit=-1), OptionError, "`time_limit`=-1"),
        (lambda: refine(never, np.ones((2, 3)), 2), DataError, "row = receiver"),
        (lambda: refine(never, unknown_pair, 2), DataError, "NaN"),
        (lambda: refine(never, ones, 0), OptionError, "`budget`=0"),
        (lambda: refine(never, ones, 0.5), OptionError, "`budget`=0.5"),
        (lambda: refine(never, ones, 2, costs=lambda names: 0.0), OptionError, "`costs` gives 0"),
        (lambda: refine(never, ones, 1, costs=lambda names: 5.0), OptionError, "`budget`=1"),
        (lambda: refine(never, ones, 2, costs=[1.0, 2.0, 3.0]), OptionError, "`costs` is no function"),
        (lambda: verify(MLP((4,)), train, validation, ones, 2), DataError, "3 tasks|shape|6"),
        (lambda: verify(MLP((4,)), train, validation, Affinity(np.ones((6, 6)), names[::-1]), 2), DataError, "`prior`"),
        (lambda: verify("mlp", train, validation, np.ones((6, 6)), 2, options=QUICK), OptionError, "`net`='mlp'"),
    ]
    for attempt, error, words in refused:
        with pytest.raises(error, match=words):
            attempt()


def test_a_budget_of_trainings_below_the_first_choice_is_refused_before_anything_is_measured():
    effects = np.kron(np.eye(3), np.ones((2, 2))) * 2 - 1
    prior = Affinity(effects, list("abcdef"), zero=0.0)
    with pytest.raises(OptionError, match="the first choice alone has 3 groups"):
        refine(lambda members: pytest.fail("nothing may be measured"), prior, 3, options=VerifyOptions(most=2))


@pytest.mark.parametrize("gains", [lambda members: members[:, :2], lambda members: members * np.inf])
def test_measurements_that_do_not_fit_are_refused(gains):
    with pytest.raises(DataError, match="`measure` gave gains"), np.errstate(invalid="ignore"):
        refine(gains, np.ones((3, 3)), 2)
