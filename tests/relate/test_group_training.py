"""Groups trained for real, side by side: each equals its own fit, gains are against single nets, measures out of them."""

import itertools
from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch
from tests.conftest import encoded_parts
from tests.relate.planted_groups import planted
from torch import nn

from taskloom.deep import MLP, FitOptions, GroupFitOptions, fit, fit_groups, new_net
from taskloom.relate import (
    Affinity,
    GroupScores,
    MeasureOptions,
    fit_surrogate,
    pairwise,
    reliability,
    select,
    surrogate,
    train_groups,
)
from taskloom.relate._trained import random_groups
from taskloom.tasks import DataError, FitError, OptionError, Task, TaskData, UnknownNameError, read_table

HOW = GroupFitOptions(max_steps=60, seeds=(0, 3), learning_rate=3e-3, accelerator="cpu", patience=3)
NET = MLP((8,))
# Prefixes of the tasks: a fit of them alone deals each task the rows that it gets here.
PREFIXES = [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)]


def members_of(sets, n_tasks):
    return np.array([[t in each for t in range(n_tasks)] for each in sets])


def only(data, chosen):
    """Some of the tasks, on all rows where rows are shared, and on their own rows else."""
    tasks = tuple(data.tasks[t] for t in chosen)
    if data.is_shared:
        return TaskData(tasks, data.features, data.y[:, list(chosen)])
    kept = data.take(np.flatnonzero(np.isin(data.task_of_row, chosen)))
    return TaskData(tasks, kept.features, kept.y, np.searchsorted(chosen, kept.task_of_row))


def alone(data, validation, chosen, seed, options):
    """A net with the heads of the group alone, which starts where theirs do, through `fit`."""
    shape = data.X.shape[1:]
    start, net = new_net(NET, shape, data.tasks, seed), NET(shape, [data.tasks[t] for t in chosen])
    net.encoder.load_state_dict(start.encoder.state_dict())
    for place, t in enumerate(chosen):
        net.heads[place].load_state_dict(start.heads[t].state_dict())
    known = {name: value for name, value in vars(options).items() if name in FitOptions.__dataclass_fields__}
    return fit(net, only(data, chosen), only(validation, chosen), options=FitOptions(**known), seed=seed)


@pytest.fixture
def mixed_parts(mixed_data):
    return encoded_parts(read_table(mixed_data, targets=["amount", "ill", "grade", "stage"]))


@pytest.mark.parametrize("name", ["shared_parts", "own_parts", "digit_parts", "mixed_parts"])
def test_each_net_is_the_one_that_is_trained_alone(name, request):
    train, validation, _ = request.getfixturevalue(name)
    sets = PREFIXES if not train.is_shared else [*PREFIXES, (1, 3), (0, 2, 3)]
    found = fit_groups(NET, train, validation, members_of(sets, train.n_tasks), options=HOW)
    for g, chosen in enumerate(sets):
        for s, seed in enumerate(HOW.seeds):
            twin = alone(train, validation, chosen, seed, HOW)
            assert found.validation_loss[g, s, list(chosen)] == pytest.approx(twin.validation_loss, rel=1e-5, abs=1e-6)
    assert np.array_equal(np.isfinite(found.validation_loss).all(axis=1), found.members)


class Conv(nn.Module):
    """A net of another kind, which goes through `vmap`."""

    def __init__(self, d, outputs):
        super().__init__()
        self.first, self.head = nn.Conv1d(1, 3, 3), nn.Linear(3 * (d - 2), outputs)

    def forward(self, x):
        return self.head(torch.tanh(self.first(x.unsqueeze(1))).flatten(1))


@pytest.mark.parametrize("name", ["shared_parts", "own_parts"])
def test_nets_of_any_kind_can_be_trained_in_company(name, request):
    train, validation, _ = request.getfixturevalue(name)
    members, how = members_of([(0, 1), (2, 4), (3,)], train.n_tasks), replace(HOW, max_steps=20)

    def net(shape, tasks):
        return Conv(shape[0], len(tasks))

    together = fit_groups(net, train, validation, members, options=how)
    apart = [fit_groups(net, train, validation, row[None], options=how).validation_loss for row in members]
    assert together.validation_loss == pytest.approx(np.concatenate(apart), rel=1e-5, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", ["shared_parts", "own_parts"])
def test_stacks_made_small_for_memory_change_nothing(name, request):
    train, validation, test = request.getfixturevalue(name)
    members = members_of([(0, 1), (1, 2), (2, 3), (4,), (5,)], train.n_tasks)
    whole = fit_groups(NET, train, validation, members, options=HOW, test=test)
    parts = fit_groups(NET, train, validation, members, options=replace(HOW, at_once=1), test=test)
    assert parts.validation_loss == pytest.approx(whole.validation_loss, rel=1e-5, abs=1e-6, nan_ok=True)
    assert parts.test_loss == pytest.approx(whole.test_loss, rel=1e-5, abs=1e-6, nan_ok=True)
    assert np.array_equal(parts.total_steps, whole.total_steps)


def test_losses_on_test_rows_are_those_of_the_best_weights(shared_parts):
    train, validation, _ = shared_parts
    members = members_of([(0, 1), (1, 2, 3)], train.n_tasks)
    found = fit_groups(NET, train, validation, members, options=replace(HOW, rates=(1e-3, 3e-2)), test=validation)
    assert found.test_loss == pytest.approx(found.validation_loss, rel=1e-6, nan_ok=True)


def test_the_learning_rate_of_each_group_and_seed_is_the_best_one(shared_parts):
    train, validation, _ = shared_parts
    members, rates = members_of([(0, 1), (2,)], train.n_tasks), (1e-4, 3e-3, 3e-2)
    both = fit_groups(NET, train, validation, members, options=replace(HOW, rates=rates))
    each = [fit_groups(NET, train, validation, members, options=replace(HOW, rates=(rate,))) for rate in rates]
    means = np.stack([np.nanmean(one.validation_loss, axis=2) for one in each])
    assert np.nanmean(both.validation_loss, axis=2) == pytest.approx(means.min(axis=0), rel=1e-5)
    assert np.array_equal(both.rates, np.array(rates)[means.argmin(axis=0)])
    assert np.array_equal(both.total_steps, sum(one.total_steps for one in each))


def test_double_precision_is_kept(shared_parts):
    train, validation, _ = shared_parts
    found = fit_groups(NET, train, validation, members_of([(0, 1)], 7), options=replace(HOW, precision="64-true"))
    again = fit_groups(NET, train, validation, members_of([(0, 1), (2, 3)], 7), options=replace(HOW, precision="64-true"))
    assert again.validation_loss[0] == pytest.approx(found.validation_loss[0], rel=1e-12, nan_ok=True)


def test_gains_are_held_against_single_nets_of_the_same_seed(shared_parts):
    train, validation, test = shared_parts
    names = [task.name for task in train.tasks]
    scores = train_groups(NET, train, validation, [names[:3], names[:3], [names[5]]], options=HOW, test=test)
    assert len(scores.members) == 8, "singles are added, nothing is trained twice"
    single = scores.losses[0, 1, 0]
    assert scores.gains_by_seed[7, 1, 0] == pytest.approx(1 - scores.losses[7, 1, 0] / single)
    assert (scores.gains_by_seed[:7][np.isfinite(scores.losses[:7])] == 0).all()
    assert np.array_equal(np.isfinite(scores.gains), scores.members)
    assert scores.cost.trainings == 16
    table = scores.table()
    chosen = select(table, budget=7)
    assert chosen.value >= 0
    losses = scores.losses_of(chosen, test=True)
    for t, name in enumerate(names):
        row = np.flatnonzero((scores.members == [other in chosen.serving(name) for other in names]).all(axis=1))[0]
        assert np.array_equal(losses[:, t], scores.test_losses[row, :, t])


def test_what_is_known_is_not_trained_again(own_parts):
    train, validation, _ = own_parts
    names = [task.name for task in train.tasks]
    first = train_groups(NET, train, validation, [names[:2]], options=HOW)
    both = train_groups(NET, train, validation, [names[:2], names[2:4]], options=HOW, known=first)
    whole = train_groups(NET, train, validation, [names[:2], names[2:4]], options=HOW)
    assert both.cost.trainings == first.cost.trainings + 2
    assert np.array_equal(both.members, whole.members)
    assert both.losses == pytest.approx(whole.losses, rel=1e-5, nan_ok=True)
    assert train_groups(NET, train, validation, [names[:2]], options=HOW, known=first) is first


def test_same_seeds_give_the_same_numbers(shared_parts):
    train, validation, _ = shared_parts
    members = members_of([(0, 1), (2, 3)], 7)
    one, other = (fit_groups(MLP((8,), 0.2), train, validation, members, options=HOW) for _ in range(2))
    assert np.array_equal(one.validation_loss, other.validation_loss, equal_nan=True)
    assert not np.array_equal(one.validation_loss[:, 0], one.validation_loss[:, 1], equal_nan=True)


def test_a_net_that_is_given_is_the_start_of_all_and_stays_as_it_is(shared_parts):
    train, validation, _ = shared_parts
    net = new_net(NET, train.X.shape[1:], train.tasks, 0)
    before = [weight.clone() for weight in net.parameters()]
    one = train_groups(net, train, validation, [], options=replace(HOW, seeds=(0,)))
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))
    assert np.array_equal(one.losses, train_groups(NET, train, validation, [], options=replace(HOW, seeds=(0,))).losses, True)


def test_reliability_is_that_of_the_parallel_test_model():
    rng = np.random.default_rng(0)
    true, S = rng.normal(size=4000), 6
    gains = true + 2 * rng.normal(size=(S, 4000))
    half, whole = 1 / (1 + 4 / (S // 2)), 1 / (1 + 4 / S)
    assert reliability(gains) == pytest.approx(half, abs=0.02)
    assert reliability(gains, whole=True) == pytest.approx(whole, abs=0.02)
    assert reliability(true + 2 * rng.normal(size=(2, 4000))) == pytest.approx(1 / 5, abs=0.04)


def test_reliability_is_unknown_where_nothing_can_be_halved_or_varies():
    assert np.isnan(reliability(np.ones((1, 9))))
    assert np.isnan(reliability(np.arange(4.0).reshape(2, 2)))
    assert np.isnan(reliability(np.ones((4, 9))))
    gains = np.random.default_rng(0).normal(size=(4, 9))
    gains[0, 3] = np.nan
    assert reliability(gains) == reliability(np.delete(gains, 3, axis=1))


def test_reliability_within_tasks_takes_off_what_tasks_gain_everywhere():
    rng = np.random.default_rng(0)
    members = np.concatenate([np.eye(4, dtype=bool), rng.random((60, 4)) < 0.6])
    members = members[(members.sum(axis=1) > 1) | (np.arange(64) < 4)]
    level = np.array([0.0, -1.0, 1.0, 3.0])
    losses = np.where(members[:, None], np.exp(-level - rng.normal(size=(len(members), 6, 4))), np.nan)
    losses[:4] = np.where(np.eye(4, dtype=bool)[:, None], 1.0, np.nan)
    scores = GroupScores(tuple("abcd"), members, losses, tuple(range(6)))
    assert scores.reliability() > 0.3
    assert abs(scores.reliability(within_tasks=True)) < 0.2


def four(n_rows=120, own=False):
    """Four regression tasks, a part of their labels missing where they share rows."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, 12))
    Y = X[:, :4] + rng.normal(size=(n_rows, 4))
    if own:
        return TaskData.own_rows([(X[t::4], Y[t::4, t]) for t in range(4)], list("abcd"))
    Y[rng.random(Y.shape) < 0.3] = np.nan
    return TaskData.shared_rows(X, Y, list("abcd"))


@pytest.mark.parametrize("own", [False, True])
def test_pairwise_gains_are_those_of_the_pairs_that_were_trained(own):
    data, judged = four(own=own), four(400, own=own)
    options = MeasureOptions(steps=30, learning_rate=3e-3)
    affinity = pairwise(NET, data, options, validation=judged)
    how = GroupFitOptions(max_steps=30, learning_rate=3e-3, seeds=(0, 1))
    scores = train_groups(NET, data, judged, list(itertools.combinations("abcd", 2)), options=how)
    for row, gains in zip(scores.members, scores.gains, strict=True):
        if row.sum() == 2:
            i, j = np.flatnonzero(row)
            assert (affinity.values[i, j], affinity.values[j, i]) == (gains[i], gains[j])
    assert affinity.stability == pytest.approx(scores.reliability())
    assert affinity.cost.trainings == 2 * 10
    assert affinity.zero == 0
    assert not affinity.is_symmetric


def test_pairwise_gains_are_higher_within_planted_groups_than_between_them():
    data, groups = planted(2, 2, n_rows=1400)
    judged, few = data.take(np.arange(1000)), data.take(np.arange(1000, 1400))
    affinity = pairwise(MLP((16,)), few, MeasureOptions(steps=300), validation=judged, n_seeds=4)
    same = groups[:, None] == groups
    within, between = affinity.values[same & ~np.eye(4, dtype=bool)], affinity.values[~same]
    assert within.mean() > between.mean() + 0.01


@pytest.mark.parametrize("measure", [pairwise, surrogate])
def test_measures_that_train_split_rows_of_their_own_when_none_are_given(measure):
    affinity = measure(NET, four(own=True), MeasureOptions(steps=5, split_half=False), n_seeds=1)
    again = measure(NET, four(own=True), MeasureOptions(steps=5, split_half=False), n_seeds=1)
    assert np.array_equal(affinity.values, again.values)
    assert np.isfinite(affinity.values).all()
    assert np.isnan(affinity.stability)


def test_the_surrogate_measure_is_the_regression_on_the_groups_that_were_trained():
    data, judged = four(), four(400)
    affinity = surrogate(NET, data, MeasureOptions(steps=20), validation=judged, n_groups=9)
    groups = random_groups(4, 9, 0)
    how = GroupFitOptions(max_steps=20, learning_rate=MeasureOptions().learning_rate)
    scores = train_groups(NET, data, judged, groups, options=how)
    fitted = fit_surrogate(scores.members, scores.gains)
    off = ~np.eye(4, dtype=bool)
    assert affinity.values[off] == pytest.approx((fitted.levels[:, None] + fitted.effects)[off])
    assert affinity.zero == 0
    assert affinity.cost.trainings == len(scores.members)
    assert -1 <= affinity.stability <= 1


@pytest.mark.parametrize("K", [2, 3, 7, 12])
def test_random_groups_are_different_and_of_two_tasks_to_half_of_them(K):
    groups = random_groups(K, 4 * K, 1)
    sizes = groups.sum(axis=1)
    assert len(np.unique(groups, axis=0)) == len(groups)
    assert len(groups) == min(4 * K, sum(comb(K, size) for size in range(2, max(2, K // 2) + 1)))
    assert len(random_groups(8, 150, 0)) == 150
    assert (sizes.min(), sizes.max()) == (2, max(2, K // 2))
    assert groups.any(axis=0).all()


def test_measures_that_train_refuse_what_they_cannot_train():
    data = small()
    refused = [
        (lambda: pairwise(NET, small(1)), DataError, "two or more"),
        (lambda: pairwise(NET, data, n_seeds=0), OptionError, "`n_seeds`=0"),
        (lambda: surrogate(NET, data, n_seeds=0), OptionError, "`n_seeds`=0"),
        (lambda: surrogate(NET, data, n_groups=1), OptionError, "`n_groups`=1"),
        (lambda: pairwise(NET, data, n_seeds=1.5), OptionError, "`n_seeds`=1.5"),
        (lambda: surrogate(NET, data, n_groups=2.5), OptionError, "`n_groups`=2.5"),
        (lambda: surrogate("mlp", data), OptionError, "`net`='mlp'"),
    ]
    for attempt, error, words in refused:
        with pytest.raises(error, match=words):
            attempt()


def small(n_tasks=3, y=None):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(40, n_tasks)) if y is None else y
    return TaskData.shared_rows(rng.normal(size=(40, 3)), y, [Task(name) for name in "abcdef"[:n_tasks]])


def test_bad_input_is_refused_before_anything_is_trained():
    data = small()
    two = replace(HOW, max_steps=2)
    scores, tested = (train_groups(NET, data, data, [], options=two, test=test) for test in (None, data))
    unlabelled = np.random.default_rng(0).normal(size=(40, 3))
    unlabelled[:, 1] = np.nan
    broken = data.X.copy()
    broken[0, 0] = np.nan
    blank = TaskData(data.tasks, data.features, unlabelled)
    renamed = replace(data, tasks=data.tasks[::-1])
    narrow = TaskData.shared_rows(data.X[:, :2], data.y, data.tasks)
    owned = TaskData.own_rows([(data.X, data.y[:, t]) for t in range(3)], data.tasks)
    refused = [
        (lambda: train_groups(NET, data, data, [("a", "bb")]), UnknownNameError, "`task`='bb'|bb"),
        (lambda: train_groups(NET, data, data, [()]), DataError, "group 0 of `groups` is empty"),
        (lambda: train_groups(NET, data, data, np.ones((1, 4), dtype=bool)), DataError, r"need \(G, 3\)"),
        (lambda: train_groups(NET, small(1), small(1), []), DataError, "two or more"),
        (lambda: train_groups("mlp", data, data, []), OptionError, "`net`='mlp'"),
        (lambda: train_groups(lambda _s, _t: nn.Linear(3, 2), data, data, []), OptionError, "it must give"),
        (lambda: train_groups(NET, data, blank, []), DataError, "`b` has 0 labels"),
        (lambda: train_groups(NET, TaskData.shared_rows(broken, data.y), data, []), DataError, "encode it first"),
        (lambda: train_groups(NET, data, data, [], known=scores), OptionError, "`known` is of other tasks or seeds"),
        (lambda: train_groups(NET, data, data, [], options=HOW, known=scores, test=data), OptionError, "lacks test losses"),
        (lambda: scores.losses_of(select(Affinity(np.ones((3, 3)), "abc"), 1)), DataError, "a, b, c, which was not trained"),
        (lambda: fit_groups(NET, data, data, np.zeros((1, 3), dtype=bool)), OptionError, "`members` has shape"),
        (lambda: fit_groups(NET, data, data, np.ones((0, 3), dtype=bool)), OptionError, "`members` has shape"),
        (lambda: fit_groups(NET, data, data, np.array([[0, 1, 2]])), OptionError, "holds other values than true and false"),
        (lambda: train_groups(NET, data, data, ["ab", "c"]), DataError, "holds the name 'ab' where a group is needed"),
        (lambda: train_groups(NET, data, data, [("a", "b")], options=two, known=tested), OptionError, "`test`=None"),
        (lambda: train_groups(NET, data, renamed, []), DataError, "`validation` is of the tasks c, b, a; need a, b, c"),
        (lambda: train_groups(NET, data, small(2), []), DataError, "`validation` is of the tasks a, b; need a, b, c"),
        (lambda: train_groups(NET, data, data, [], test=renamed), DataError, "`test` is of the tasks c, b, a"),
        (lambda: train_groups(NET, data, narrow, []), DataError, r"`validation` has rows of shape \(2,\)"),
        (lambda: train_groups(NET, data, owned, []), DataError, "`validation` has own rows and `train` shared rows"),
        (lambda: fit_groups(NET, data, blank, np.eye(3) > 0), DataError, "`validation` has no label of the task `b`"),
        (lambda: GroupFitOptions(seeds=()), OptionError, "`seeds`"),
        (lambda: GroupFitOptions(seeds=3), OptionError, "`seeds`=3"),
        (lambda: GroupFitOptions(seeds=(0.5,)), OptionError, "`seeds`"),
        (lambda: GroupFitOptions(rates=1e-3), OptionError, "`rates`=0.001"),
        (lambda: GroupFitOptions(seeds=(1, 1)), OptionError, "`seeds`"),
        (lambda: GroupFitOptions(rates=(0.0,)), OptionError, "`rates`"),
        (lambda: GroupFitOptions(at_once=0), OptionError, "`at_once`"),
        (lambda: GroupFitOptions(batch_size=0), OptionError, "`batch_size`"),
    ]
    for attempt, error, words in refused:
        with pytest.raises(error, match=words):
            attempt()


def test_test_losses_that_were_not_asked_for_are_missed_with_a_message():
    data = small()
    scores = train_groups(NET, data, data, [("a", "b", "c")], options=replace(HOW, max_steps=2))
    with pytest.raises(DataError, match="give `train_groups` some"):
        scores.losses_of(select(scores.table(), 3), test=True)


def test_a_group_that_diverges_at_every_rate_is_named():
    data = small(y=1e25 * np.random.default_rng(0).normal(size=(40, 3)))
    with pytest.raises(FitError, match="diverged on the group"):
        fit_groups(NET, data, data, np.ones((1, 3), dtype=bool), options=replace(HOW, rates=(1e30,)))
