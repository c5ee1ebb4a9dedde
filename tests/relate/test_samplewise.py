"""The samplewise measures: planted groups, invariances, rows that are not shared, refusals."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.relate.planted_groups import ari, planted
from torch import nn

from taskloom.deep import MLP, SharedBottom
from taskloom.relate._joint_run import joint_run
from taskloom.relate._lookahead import LookaheadWatch
from taskloom.relate._options import AffinityWarning, MeasureOptions
from taskloom.relate._rows import correlation_of_pairs
from taskloom.relate._samplewise import samplewise
from taskloom.relate._samplewise_cosine import samplewise_cosine
from taskloom.tasks import DataError, OptionError, Task, TaskData

NET = MLP((32, 32))
OPTIONS = MeasureOptions()
QUICK = MeasureOptions(steps=200)


@pytest.fixture(scope="module")
def trained_runs():
    """Nets trained on three planted suites of mixed signs, with a look ahead every twenty steps."""
    runs = []
    for seed in range(3):
        data, groups = planted(mixed=True, seed=seed)
        watch = LookaheadWatch(every=20)
        runs.append((data, groups, joint_run(NET, data, replace(OPTIONS, seed=seed), [watch]).net, watch))
    return runs


@pytest.fixture(scope="module")
def small():
    """Two binary tasks that agree, one that does not, one regression; a fifth of the labels missing."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 6))
    Y = np.column_stack([X[:, 0] > 0, X[:, 0] + 0.3 * X[:, 1] > 0, X[:, 2] > 0, X[:, 0]]).astype(float)
    Y[rng.random(Y.shape) < 0.2] = np.nan
    return TaskData.shared_rows(X, Y, [Task("a", "binary"), Task("b", "binary"), Task("c", "binary"), Task("d")])


def permuted(data, order):
    return TaskData(tuple(data.tasks[t] for t in order), data.features, data.y[:, order])


def test_groups_with_labels_that_agree_are_found_at_the_start_without_training():
    for seed in range(3):
        data, groups = planted(seed=seed)
        affinity = samplewise(NET, data, MeasureOptions(seed=seed))
        assert ari(affinity, groups) >= 0.95
        assert affinity.stability > 0.8
        assert affinity.cost.trainings == 0


def test_groups_that_share_features_alone_are_found_after_a_joint_run_and_better_than_by_looking_ahead(trained_runs):
    found = [
        (ari(samplewise_cosine(net, data), groups), ari(watch.affinity(), groups)) for data, groups, net, watch in trained_runs
    ]
    cosine, lookahead = np.mean(found, axis=0)
    assert cosine >= 0.9
    assert cosine > lookahead
    literal = [ari(samplewise(NET, data), groups) for data, groups, *_ in trained_runs]
    assert np.mean(literal) < 0.5


def test_turning_labels_around_brings_back_some_of_what_the_plain_distance_cannot_see(trained_runs):
    plain, turned = np.mean(
        [[ari(samplewise(NET, d, sign_invariant=s), g) for s in (False, True)] for d, g, *_ in trained_runs], axis=0
    )
    assert turned > plain


def test_groups_of_tasks_with_rows_of_their_own_are_found_too():
    data, groups = planted(own=True, n_rows=300)
    with pytest.warns(AffinityWarning, match="the cosine of centred mean gradients"):
        start = samplewise(NET, data)
    assert start.higher_is_better
    assert ari(start, groups) >= 0.9
    affinity = samplewise_cosine(NET, data, QUICK)
    assert ari(affinity, groups) >= 0.9
    assert affinity.cost.trainings == 1


def test_on_own_rows_turned_labels_leave_the_absolute_cosine_of_mean_gradients_as_it_is():
    # At a start whose output is zero a turned label turns the gradient.
    data, _ = planted(own=True, n_rows=100)
    net = SharedBottom(30, [Task("one")], (8,))
    nn.init.zeros_(net.heads[0].weight)
    nn.init.zeros_(net.heads[0].bias)
    turned = TaskData(data.tasks, data.features, np.where(data.task_of_row == 0, 1 - data.y, data.y), data.task_of_row)
    with pytest.warns(AffinityWarning):
        one, other = (samplewise(net, each, sign_invariant=True) for each in (data, turned))
    assert one.values.min() >= 0
    # The centre moves with the turned task, by one part in K.
    assert correlation_of_pairs(one.values, other.values) > 0.5


@pytest.mark.parametrize("sign_invariant", [False, True])
def test_the_order_of_the_tasks_makes_no_difference(small, sign_invariant):
    order = [2, 0, 3, 1]
    net = SharedBottom(6, [Task("one")], (8,))
    one, other = (samplewise(net, d, sign_invariant=sign_invariant) for d in (small, permuted(small, order)))
    assert np.allclose(other.values, one.values[np.ix_(order, order)])
    assert other.tasks == ["c", "a", "d", "b"]


def test_the_scale_of_a_loss_makes_no_difference_when_gradients_are_normalised():
    # At a start whose output is zero, labels ten times as large are a loss a hundred times as large.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 4))
    Y = X @ rng.normal(size=(4, 3))
    net = SharedBottom(4, [Task("one")], (8,))
    nn.init.zeros_(net.heads[0].weight)
    nn.init.zeros_(net.heads[0].bias)
    one, other = (TaskData.shared_rows(X, Y * scale) for scale in ([1, 1, 1], [10, 1, 0.1]))
    assert np.allclose(samplewise(net, one).values, samplewise(net, other).values)
    assert not np.allclose(samplewise(net, one, normalise=False).values, samplewise(net, other, normalise=False).values)


def test_turned_labels_make_no_difference_when_signs_do_not_count(small):
    Y = small.y.copy()
    Y[:, 1], Y[:, 3] = 1 - Y[:, 1], -Y[:, 3]
    turned, net = TaskData(small.tasks, small.features, Y), SharedBottom(6, [Task("one")], (8,))
    one, other = (samplewise(net, data, sign_invariant=True).values for data in (small, turned))
    assert np.allclose(one, other)
    assert not np.allclose(samplewise(net, small).values, samplewise(net, turned).values)


def test_labels_make_no_difference_to_the_absolute_cosine_of_tasks_with_one_output(small):
    net = SharedBottom(6, small.tasks, (8,))
    other = TaskData(small.tasks, small.features, np.random.default_rng(5).permutation(small.y))
    options = MeasureOptions(n_rows=300)
    assert np.allclose(samplewise_cosine(net, small, options).values, samplewise_cosine(net, other, options).values)
    signed = [samplewise_cosine(net, data, options, signed=True).values for data in (small, other)]
    assert not np.allclose(*signed)


def test_the_signed_cosine_turns_with_labels_and_is_at_most_the_absolute_one(small):
    data = permuted(small, [0, 1, 2])
    net = SharedBottom(6, data.tasks, (8,))
    Y = data.y.copy()
    # Residuals keep their sizes where a turned label comes with a turned head.
    Y[:, 1] = 1 - Y[:, 1]
    one = samplewise_cosine(net, data, signed=True)
    with torch.no_grad():
        net.heads[1].weight.neg_(), net.heads[1].bias.neg_()
    other = samplewise_cosine(net, TaskData(data.tasks, data.features, Y), signed=True)
    assert np.allclose(one.values, other.values, atol=1e-6)
    single = samplewise_cosine(net, TaskData(data.tasks, data.features, np.nan_to_num(Y)), signed=True)
    assert (np.abs(single.values) <= samplewise_cosine(net, data).values + 1e-6).all()


def test_on_own_rows_the_signed_cosine_is_a_mean_over_pairs_of_rows_by_either_route():
    data, _ = planted(2, 2, own=True, n_rows=20, d=5)
    net = SharedBottom(5, data.tasks, (6,)).double()
    closed = samplewise_cosine(net, data, signed=True)
    # The same weights behind a layer that has no closed form.
    slow = nn.Sequential()
    slow.encoder = nn.Sequential(nn.Unflatten(1, (1, 5)), net.encoder, nn.Flatten())
    slow.heads = nn.Linear(6, 4).double()
    with torch.no_grad():
        slow.heads.weight.copy_(torch.cat([head.weight for head in net.heads]))
        slow.heads.bias.copy_(torch.cat([head.bias for head in net.heads]))
    opened = samplewise_cosine(slow, data, signed=True)
    assert np.allclose(closed.values, opened.values, atol=1e-3)
    assert any("pairs of rows" in note for note in closed.notes)


def test_a_net_that_is_given_stays_as_it_is_and_parts_make_no_difference(small):
    net = SharedBottom(6, small.tasks, (8,)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    whole, parts = samplewise_cosine(net, small), samplewise_cosine(net, small, MeasureOptions(at_once=200))
    assert np.allclose(whole.values, parts.values, atol=1e-6)
    assert whole.stability == pytest.approx(parts.stability, abs=1e-4)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_multiclass_tasks_take_part():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 5))
    grade = np.digitize(X[:, 0], [-0.5, 0.5]).astype(float)
    grade[::4] = np.nan
    Y = np.column_stack([X[:, 0] > 0, grade, X[:, 1] > 0])
    data = TaskData.shared_rows(X, Y, [Task("a", "binary"), Task("grade", "multiclass", (0, 1, 2)), Task("c", "binary")])
    start = samplewise(MLP((16,)), data)
    assert np.isfinite(start.values).all()
    cosine = samplewise_cosine(MLP((16,)), data, QUICK)
    assert cosine["a", "grade"] > cosine["a", "c"]
    assert np.array_equal(cosine.values, samplewise_cosine(MLP((16,)), data, QUICK).values)


def test_more_rows_are_taken_until_halves_agree():
    data, _ = planted(2, 3)
    few = MeasureOptions(n_rows=8)
    grown = samplewise(NET, data, few, grow=0.9)
    assert grown.stability >= 0.9 > samplewise(NET, data, few).stability
    assert grown.cost.forwards > 8
    net = SharedBottom(30, data.tasks, (8,))
    assert samplewise_cosine(net, data, MeasureOptions(n_rows=2), grow=0.95).stability >= 0.95
    assert np.isnan(samplewise(NET, data, MeasureOptions(split_half=False)).stability)


def test_several_starts_are_averaged_and_the_seed_decides(small):
    one, two = (samplewise(MLP((8,)), small, MeasureOptions(seed=seed)) for seed in (0, 1))
    both = samplewise(MLP((8,)), small, MeasureOptions(n_rows=300), starts=2)
    apart = [samplewise(MLP((8,)), small, MeasureOptions(n_rows=300, seed=seed)).values for seed in (0, 1)]
    assert np.allclose(both.values, np.mean(apart, axis=0))
    assert np.array_equal(one.values, samplewise(MLP((8,)), small).values)
    assert not np.array_equal(one.values, two.values)


def test_convolutions_with_batchnorm_are_served():
    def images(shape, tasks):
        encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU())
        return nn.Sequential(OrderedDict(encoder=encoder, head=nn.Linear(8, len(tasks))))

    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 1, 4, 4))
    Y = np.column_stack([X[:, 0, 0, 0] > 0, X[:, 0, 0, 0] > 0.2, X[:, 0, 3, 3] > 0])
    data = TaskData.shared_rows(X, Y, [Task(name, "binary") for name in "abc"])
    start = samplewise(images, data)
    assert start["a", "b"] < start["a", "c"]
    cosine = samplewise_cosine(images, data, replace(OPTIONS, steps=100))
    assert cosine["a", "b"] > cosine["a", "c"]


def test_bad_input_is_refused(small):
    heads = SharedBottom(6, small.tasks, (8,))
    with pytest.raises(OptionError, match=r"`model` gives 4 outputs, `samplewise` needs 1: .* say nothing of the tasks"):
        samplewise(heads, small)
    many = TaskData.shared_rows(np.eye(3), [[0, 1], [1, 0], [2, 0]], [Task("m", "multiclass", (0, 1, 2)), Task("b", "binary")])
    with pytest.raises(OptionError, match="labels of the multiclass task `m` have no opposite"):
        samplewise(NET, many, sign_invariant=True)
    with pytest.raises(OptionError, match="name the trunk `encoder`"):
        samplewise(nn.Linear(3, 3), many)
    for measure in (samplewise, samplewise_cosine):
        with pytest.raises(OptionError, match=r"`grow`=1.5: give a correlation"):
            measure(NET, small, grow=1.5)
        with pytest.raises(OptionError, match=r"`model`=3: give a net, or what makes one"):
            measure(3, small)
        with pytest.raises(DataError, match="`data` has 1 task"):
            measure(NET, permuted(small, [0]))
        with pytest.raises(DataError, match="encode it first with `FeatureEncoder`"):
            measure(NET, TaskData.shared_rows([[np.nan], [1.0], [2.0]], np.eye(3)))
    for how, message in (({"starts": 0}, "`starts`=0"), ({"starts": 1.5}, "`starts`=1.5"), ({"grow": "x"}, "`grow`='x'")):
        with pytest.raises(OptionError, match=message):
            samplewise(NET, small, **how)
    for name, value in {
        "n_rows": 1,
        "steps": 0,
        "batch_size": 0,
        "every": 0,
        "at_once": 0,
        "seed": -1,
        "learning_rate": 0.0,
    }.items():
        with pytest.raises(OptionError, match=f"`{name}`={value}"):
            MeasureOptions(**{name: value})
    with pytest.raises(OptionError, match="`learning_rate`=None"):
        MeasureOptions(learning_rate=None)


def test_pairs_that_a_half_does_not_know_have_no_part_in_the_stability():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4))
    Y = np.full((200, 5), np.nan)
    Y[:100, 0], Y[100:, 1], Y[:100, 2], Y[100:, 3] = X[:100, 0], X[100:, 1], X[:100, 3], X[100:, 2]
    Y[:, 4] = rng.integers(0, 3, 200)
    data = TaskData.shared_rows(X, Y, [*map(Task, "abcd"), Task("e", "multiclass", (0, 1, 2))])
    affinity = samplewise(MLP((8,)), data)
    off = ~np.eye(5, dtype=bool)
    unknown = [("a", "b"), ("a", "d"), ("b", "c"), ("c", "d")]
    assert all(np.isnan(affinity[pair]) for pair in unknown)
    assert np.isnan(affinity.values[off]).sum() == 2 * len(unknown)
    # With zeros for what is unknown the halves would agree to 0.9 and more whatever the rest says.
    assert affinity.stability < 0.9
