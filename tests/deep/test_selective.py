"""Tasks grouped while they train: planted effects found, passes counted, heads still, bits kept."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from tests.contracts import ResumeContract, assert_same
from torch import nn

from taskloom.deep import (
    AdaTaskAdam,
    FitOptions,
    SelectiveGroups,
    SelectiveOptions,
    SharedBottom,
    fit,
)
from taskloom.deep._fit import new_net
from taskloom.deep._nets import MLP
from taskloom.tasks import DataError, OptionError, Task, UnknownNameError

CLUSTERS = [0, 0, 0, 1, 1, 1]
TRUTH = np.where(np.equal.outer(CLUSTERS, CLUSTERS), 0.006, -0.004) + 0.014 * np.eye(6)
OTHERS = ~np.eye(6, dtype=bool)


class PlantedLosses:
    """Losses that each update of a task changes by planted effects: the optimizer's step is where they act."""

    def __init__(self, effects, noise=0.0, **how):
        self.effects, self.losses = effects, np.ones(len(effects))
        self.rng, self.noise = np.random.default_rng(0), noise
        self.heads = torch.zeros(len(effects), requires_grad=True)
        self.trunk = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([self.trunk, self.heads], lr=0.0)
        optimizer.register_step_post_hook(self.moved)
        self.groups, self.forwards = SelectiveGroups(optimizer, tasks=len(effects), **how), 0

    def moved(self, *_):
        active = np.flatnonzero(self.heads.grad.numpy())
        self.losses *= 1 - self.effects[active].sum(axis=0) - self.noise * self.rng.normal(size=len(self.losses))

    def closure(self):
        self.forwards += 1
        return torch.tensor(self.losses) + self.heads + self.trunk

    def train(self, n_batches):
        for _ in range(n_batches):
            self.losses[:] = 1.0
            self.groups.step(self.closure)
        return self


def labels_of(groups, n_tasks):
    labels = np.full(n_tasks, -1)
    for g, members in enumerate(groups):
        labels[list(members)] = g
    return labels


def correlation(affinity):
    return np.corrcoef(affinity[OTHERS], TRUTH[OTHERS])[0, 1]


@pytest.mark.parametrize("preference", ["auto", "median", 0.0])
def test_planted_effects_are_recovered_and_so_are_their_groups(preference):
    options = SelectiveOptions(preference=preference)
    found = PlantedLosses(TRUTH, noise=0.001, beta=0.01, warmup=60, options=options).train(100).groups
    assert correlation(found.affinity) > 0.95
    assert adjusted_rand_score(CLUSTERS, labels_of(found.groups, 6)) == 1.0


def test_the_published_code_credits_the_wrong_group():
    options = SelectiveOptions(compat="official")
    found = PlantedLosses(TRUTH, beta=0.01, warmup=100, options=options).train(101).groups
    assert correlation(found.affinity) < -0.8
    found = PlantedLosses(TRUTH, beta=0.01, warmup=100, options=options).train(160).groups
    assert adjusted_rand_score(CLUSTERS, labels_of(found.groups, 6)) < 0.5


def test_all_help_is_one_group_and_all_hurt_is_none():
    for sign, expected in ((1, 1), (-1, 6)):
        effects = np.where(OTHERS, sign * 0.005, 0.02)
        for preference in ("auto", 0.0):
            options = SelectiveOptions(preference=preference)
            toy = PlantedLosses(effects, noise=0.0005, beta=0.01, warmup=60, options=options)
            assert len(toy.train(61).groups.groups) == expected


def test_a_single_group_is_left_when_effects_turn_and_entered_again():
    helping, hurting = np.where(OTHERS, 0.005, 0.02), np.where(OTHERS, -0.01, 0.02)
    options = SelectiveOptions(probe_every=2, preference=0.0)
    toy = PlantedLosses(helping, beta=0.2, warmup=20, regroup_every=10, options=options).train(40)
    counts = [len(toy.groups.groups)]
    for effects in (hurting, helping):
        toy.effects = effects
        toy.train(80)
        counts.append(len(toy.groups.groups))
    assert counts == [1, 6, 1]


def test_a_single_group_costs_one_pass_but_for_probes():
    toy = PlantedLosses(np.where(OTHERS, 0.005, 0.02), beta=0.05, warmup=20, options=SelectiveOptions(probe_every=10))
    toy.train(20)
    before = toy.forwards
    toy.train(100)
    # Ten of a hundred batches are probes of six groups.
    assert toy.forwards - before == 90 + 10 * 6
    repeated = PlantedLosses(np.where(OTHERS, 0.005, 0.02), warmup=20, options=SelectiveOptions(single_group="repeat"))
    repeated.train(120)
    assert repeated.forwards == 20 * 6 + 100 * 2


def test_every_partition_has_each_task_once_and_a_batch_as_many_passes_as_groups():
    toy = PlantedLosses(TRUTH, noise=0.02, beta=0.05, warmup=30, regroup_every=1, options=SelectiveOptions(preference="median"))
    sizes = set()
    for _ in range(80):
        before, updates = toy.forwards, toy.groups.costs.updates
        toy.train(1)
        groups = toy.groups.groups
        assert sorted(k for group in groups for k in group) == list(range(6))
        if len(groups) > 1:
            assert toy.forwards - before == toy.groups.costs.updates - updates == len(groups)
        sizes.add(len(groups))
    assert toy.forwards == toy.groups.costs.forwards
    assert len(sizes) > 1


def test_the_last_update_of_a_batch_is_measured_if_asked_for():
    toy = PlantedLosses(TRUTH, warmup=1000, options=SelectiveOptions(measure_last=1.0)).train(10)
    assert toy.forwards == 10 * 7
    assert toy.groups._tracker is not None
    toy.groups._tracker.settle()
    assert (toy.groups._tracker.counts() == 10).all()
    some = PlantedLosses(TRUTH, warmup=1000, options=SelectiveOptions(measure_last=0.2)).train(200)
    assert 200 * 6 < some.forwards < 200 * 6 + 80


def test_the_order_of_groups_is_drawn_anew_in_every_batch():
    orders = set()
    toy = PlantedLosses(TRUTH, warmup=1000)
    for _ in range(20):
        orders.add(tuple(map(tuple, toy.groups._plan() if toy.groups.costs.batches else [[0]])))
        toy.train(1)
    assert len(orders) > 15


class Trained:
    """A net with a head per task on rows drawn for each batch."""

    def __init__(self, optimizer=torch.optim.Adam, net=None, tasks=("a", "b", "c"), absent=(), rate=1e-2, **how):
        torch.manual_seed(0)
        self.net = net or SharedBottom(4, [Task(name) for name in tasks], (8, 6), dropout=0.2)
        self.rows = torch.Generator().manual_seed(1)
        how = {"warmup": 3, "regroup_every": 2, "beta": 0.1, **how}
        self.optimizer = optimizer(self.net.parameters(), lr=rate)
        self.groups = SelectiveGroups(self.optimizer, tasks=list(tasks), **how)
        self.names, self.absent, self.n = list(tasks), absent, 0

    def losses(self, x):
        losses = (self.net(x) - x[:, : len(self.names)]).square().mean(dim=0)
        gone = torch.tensor([(self.n, k) in self.absent for k in range(len(losses))])
        return torch.where(gone, torch.nan, losses)

    def advance(self, n):
        for _ in range(n):
            x = torch.randn(16, 4, generator=self.rows)
            self.groups.step(lambda x=x: self.losses(x))
            self.n += 1

    def state_dict(self):
        rows = {"rows": self.rows.get_state(), "torch": torch.get_rng_state(), "n": self.n}
        return {"net": self.net.state_dict(), "groups": self.groups.state_dict(), **rows}

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.groups.load_state_dict(state["groups"])
        self.rows.set_state(state["rows"])
        torch.set_rng_state(state["torch"])
        self.n = state["n"]


def without_nan(state):
    if isinstance(state, dict):
        return {key: without_nan(value) for key, value in state.items()}
    if isinstance(state, list):
        return [without_nan(value) for value in state]
    return state.nan_to_num(-7.0) if isinstance(state, torch.Tensor) and state.is_floating_point() else state


class TestSelectiveGroupsResume(ResumeContract):
    def make(self):
        return Trained(absent={(2, 1), (9, 0), (9, 1), (9, 2)}, options=SelectiveOptions(measure_last=0.3, preference="median"))

    def advance(self, thing, n):
        thing.advance(n)

    def observe(self, thing):
        return without_nan(thing.state_dict())


class TestOfficialResumes(TestSelectiveGroupsResume):
    def make(self):
        return Trained(options=SelectiveOptions(compat="official"))


class TestFirstOrderResumes(TestSelectiveGroupsResume):
    def make(self):
        return Trained(absent={(2, 1), (9, 0)}, options=SelectiveOptions(affinity="first_order", measure_every=1))


class TestOneLayerForAllHeadsResumes(TestSelectiveGroupsResume):
    def make(self):
        torch.manual_seed(0)
        return Trained(torch.optim.AdamW, net=nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))


def heads_of(net):
    if isinstance(net, SharedBottom):
        return [torch.cat([head.weight.flatten(), head.bias]) for head in net.heads]
    return [torch.cat([weight, bias[None]]) for weight, bias in zip(net[-1].weight, net[-1].bias, strict=True)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda weights, lr: torch.optim.Adam(weights, lr, weight_decay=0.1),
        lambda weights, lr: torch.optim.AdamW(weights, lr, weight_decay=0.1, amsgrad=True),
        lambda weights, lr: torch.optim.SGD(weights, lr, momentum=0.9, weight_decay=0.1),
    ],
)
def test_heads_outside_of_the_group_do_not_move_by_a_bit(optimizer, packed):
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)) if packed else None
    toy = Trained(optimizer, net=net, warmup=10**6)
    toy.advance(5)
    # Between two forward passes one head has moved, and no other.
    seen = []
    closure = toy.losses
    toy.losses = lambda x: (seen.append([head.detach().clone() for head in heads_of(toy.net)]), closure(x))[1]
    toy.advance(4)
    for one, two in pairwise(seen):
        assert sum(not torch.equal(a, b) for a, b in zip(one, two, strict=True)) == 1


def test_the_published_code_moves_heads_by_their_momentum():
    toy = Trained(warmup=10**6, options=SelectiveOptions(compat="official"))
    toy.advance(5)
    before, seen = [head.detach().clone() for head in heads_of(toy.net)], []
    toy.optimizer.register_step_post_hook(lambda *_: seen.append([head.detach().clone() for head in heads_of(toy.net)]))
    toy.advance(1)
    assert all(not torch.equal(one, two) for one, two in zip(before, seen[0], strict=True))


def test_an_absent_tasks_head_stays_where_it_is_under_weight_decay():
    toy = Trained(lambda w, lr: torch.optim.AdamW(w, lr, weight_decay=0.5), absent={(n, 2) for n in range(30)})
    before = heads_of(toy.net)[2].clone()
    toy.advance(12)
    assert torch.equal(before, heads_of(toy.net)[2])
    assert not np.isfinite(toy.groups.affinity[2]).any()


def test_heads_of_adatask_stay_too_and_absent_tasks_moments_with_them():
    def make(weights, lr):
        weights = list(weights)
        return AdaTaskAdam([{"params": weights[:4]}, {"params": weights[4:], "shared": False}], ["a", "b", "c"], lr)

    toy = Trained(make, warmup=10**6, absent={(n, 2) for n in range(30)})
    seen = []
    toy.optimizer.register_step_post_hook(lambda *_: seen.append([head.detach().clone() for head in heads_of(toy.net)]))
    toy.advance(6)
    for one, two in pairwise(seen):
        assert sum(not torch.equal(a, b) for a, b in zip(one, two, strict=True)) == 1
    state = toy.optimizer.state[toy.net.encoder[0].weight]
    assert {float(state["step_a"]), float(state["step_b"])} == {6.0}
    assert "step_c" not in state


@pytest.mark.parametrize("common", [True, False])
def test_all_passes_of_a_batch_drop_the_same_units_if_asked_for(common):
    torch.manual_seed(0)
    net, seen = nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.5), nn.Linear(30, 3)), []
    net[1].register_forward_hook(lambda _m, inputs, output: seen.append((output == 0) & (inputs[0] != 0)))
    groups = SelectiveGroups(torch.optim.Adam(net.parameters()), tasks=3, options=SelectiveOptions(common_randomness=common))
    states = []
    for _ in range(2):
        groups.step(lambda: net(torch.ones(5, 4)).square().mean(dim=0))
        states.append(torch.get_rng_state())
    assert torch.equal(seen[0], seen[1]) is torch.equal(seen[1], seen[2]) is common
    assert not torch.equal(seen[2], seen[3])
    if common:
        # The generator has gone on by one pass a batch.
        torch.manual_seed(0)
        twin = nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.5), nn.Linear(30, 3))
        for state in states:
            twin(torch.ones(5, 4))
            assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("shown", [True, False])
def test_batch_normalisation_counts_a_batch_once(shown):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    groups = SelectiveGroups(torch.optim.SGD(net.parameters(), lr=0.0), tasks=3)
    if shown:
        groups.meet(net)
    twin = nn.BatchNorm1d(6)
    for _ in range(3):
        x = torch.randn(8, 4)
        groups.step(lambda x=x: net(x).square().mean(dim=0))
        twin(net[0](x))
    assert int(net[1].num_batches_tracked) == 3
    torch.testing.assert_close(net[1].running_mean, twin.running_mean)
    assert net[1].track_running_stats


def test_a_step_that_a_scaler_skips_is_credited_to_nobody():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    options = SelectiveOptions(scaler=scaler)
    groups = SelectiveGroups(torch.optim.Adam(net.parameters(), lr=1e-3), tasks=2, warmup=100, options=options)
    x, bad = torch.randn(8, 4), False

    def closure():
        losses = net(x).square().mean(dim=0)
        if bad:
            losses.register_hook(lambda grad: grad * torch.inf)
        return losses

    for bad in (False, True, True, False):  # noqa: B007
        groups.step(closure)
    assert groups._tracker is not None
    groups._tracker.settle()
    # Two of four batches had their first update made, and each update has one row of effects.
    assert groups._tracker.counts().sum() == 2 * 2
    assert scaler.get_scale() == 2.0**4


def test_losses_by_name_are_those_by_place():
    ends = []
    for named in (False, True):
        toy = Trained(absent={(4, 1)})
        if named:
            plain = toy.losses
            toy.losses = lambda x, plain=plain, toy=toy: {
                name: None if loss.isnan() else loss for name, loss in zip(toy.names, plain(x), strict=True)
            }
        toy.advance(8)
        ends.append(without_nan(toy.state_dict()))
    for key, value in ends[0]["net"].items():
        torch.testing.assert_close(value, ends[1]["net"][key])
    torch.testing.assert_close(ends[0]["groups"]["tracker"]["effects"]["sums"], ends[1]["groups"]["tracker"]["effects"]["sums"])


def test_first_order_tells_members_of_one_group_apart():
    torch.manual_seed(0)
    trunk, heads = nn.Linear(6, 4, bias=False), nn.Parameter(torch.tensor([[1.0] * 4, [1.0] * 4, [1.0] * 4]))
    optimizer = torch.optim.SGD([*trunk.parameters(), heads], lr=1e-3)
    options = SelectiveOptions(affinity="first_order", measure_every=1, preference=-100.0)
    groups = SelectiveGroups(optimizer, tasks=3, warmup=1, regroup_every=1, beta=0.2, options=options)
    aim = torch.tensor([20.0, 20.0, -20.0])
    x = torch.randn(64, 6)
    way = x.sum(dim=1, keepdim=True)
    for _ in range(6):
        before = groups.costs.forwards
        groups.step(lambda: (trunk(x) @ heads.T - way * aim).square().mean(dim=0))
    found = groups.affinity
    assert found[0, 1] > 0 > max(found[0, 2], found[1, 2])
    assert groups.groups == [{0, 1, 2}]
    assert groups.costs.forwards - before == 1


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_first_order_effects_are_scaled_as_the_optimizer_scales(optimizer):
    toy = Trained(optimizer, rate=1e-3, warmup=10**6, options=SelectiveOptions(affinity="first_order", measure_every=1))
    toy.advance(4)
    found = toy.groups.affinity
    assert np.isfinite(found).all()
    assert (np.diag(found) > 0).all()


def test_history_is_kept_and_thinned_out():
    toy = PlantedLosses(np.full((2, 2), -0.01), warmup=5, regroup_every=1, options=SelectiveOptions(preference=0.0)).train(420)
    history = toy.groups.history
    assert 100 <= len(history) <= 200
    assert set(np.diff([batch for batch, *_ in history])) == {4}
    assert history[0][0] == 5
    assert all(sorted(k for members in groups for k in members) == [0, 1] for _, groups, _ in history)
    assert history[-1][2].shape == (2, 2)


def synth9(seed):
    """Nine tasks in three planted clusters of features (24 inputs, noisy rows)."""
    rng = np.random.default_rng(seed)
    X, columns = rng.normal(size=(1500, 24)), []
    for _ in range(3):
        features, readout = np.tanh(X @ rng.normal(scale=np.sqrt(4 / 24), size=(24, 6))), rng.normal(size=6)
        columns += [features @ (readout + 0.4 * rng.normal(size=6)) for _ in range(3)]
    y = np.stack(columns, axis=1)
    y = y / y.std(axis=0) + 0.5 * rng.normal(size=y.shape)
    return torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


@pytest.mark.parametrize("seed", range(3))
def test_planted_clusters_of_a_real_training_are_recovered(seed):
    x, y = synth9(seed)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 9))
    groups = SelectiveGroups(torch.optim.Adam(net.parameters(), lr=0.01), tasks=9, beta=0.01, warmup=100, seed=seed)
    rows = torch.Generator().manual_seed(seed)
    for _ in range(101):
        chosen = torch.randint(len(x), (64,), generator=rows)
        groups.step(lambda chosen=chosen: (net(x[chosen]) - y[chosen]).square().mean(dim=0))
    assert adjusted_rand_score([0, 0, 0, 1, 1, 1, 2, 2, 2], labels_of(groups.groups, 9)) >= 0.95


OPTIONS = FitOptions(max_steps=24, accelerator="cpu", learning_rate=1e-2, batch_size=16, patience=1000)


def update(optimizer, fabric):
    return SelectiveGroups(optimizer, fabric, warmup=6, regroup_every=4, options=SelectiveOptions(measure_every=3))


@pytest.mark.parametrize("parts", ["shared_parts", "own_parts", "digit_parts"])
def test_a_killed_fit_goes_on_to_the_bit(parts, tmp_path, request):
    train, validation, _ = request.getfixturevalue(parts)

    def run(checkpoint, steps):
        net = new_net(MLP((8,), dropout=0.2), train.X.shape[1:], train.tasks, 0)
        options = FitOptions(max_steps=steps, patience=1000, accelerator="cpu", learning_rate=1e-2)
        return fit(net, train, validation, options=options, update=update, checkpoint=checkpoint).net.state_dict()

    whole = run(tmp_path / "whole.pt", 24)
    run(tmp_path / "parts.pt", 11)
    assert_same(dict(whole), dict(run(tmp_path / "parts.pt", 24)))


@pytest.mark.parametrize("custom", [False, True])
def test_own_rows_cost_one_pass_a_batch_but_for_those_that_are_measured(own_parts, custom):
    train, validation, _ = own_parts
    made, rows = [], []

    def watched(optimizer, fabric):
        options = SelectiveOptions(measure_every=8)
        made.append(SelectiveGroups(optimizer, fabric, warmup=1000, options=options))
        return made[0]

    net = new_net(MLP((8,)), train.X.shape[1:], train.tasks, 0)
    if custom:
        net = nn.Sequential(nn.Linear(train.X.shape[1], 8), nn.ReLU(), nn.Linear(8, train.n_tasks))
    first = net[0] if custom else net.encoder[0]

    def count(_module, inputs, _output):
        rows.append(inputs[0].reshape(-1, train.X.shape[1]).shape[0] if first.training else 0)

    handle = first.register_forward_hook(count)
    fit(net, train, validation, options=OPTIONS, update=watched)
    handle.remove()
    n_tasks = train.n_tasks
    # Of 24 batches 3 are measured, with a pass of all rows for each task; the first pass of all tells how many tasks there are.
    assert made[0].costs.forwards == pytest.approx(21 + 3 * n_tasks)
    assert sum(rows) == (21 + 3 * n_tasks) * n_tasks * 16
    assert made[0].costs.backwards == pytest.approx(24)
    assert made[0].costs.updates == 24 * n_tasks


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("affinity", ["proximal", "first_order"])
def test_other_precisions_train(precision, affinity, shared_parts):
    train, validation, _ = shared_parts
    made = []

    def watched(optimizer, fabric):
        options = SelectiveOptions(affinity=affinity)
        made.append(SelectiveGroups(optimizer, fabric, warmup=4, regroup_every=2, options=options))
        return made[0]

    options = FitOptions(max_steps=10, accelerator="cpu", learning_rate=1e-2, precision=precision)
    net = new_net(MLP((8,)), train.X.shape[1:], train.tasks, 0)
    assert np.isfinite(fit(net, train, validation, options=options, update=watched).validation_loss).all()
    assert np.isfinite(made[0].affinity).any()


def adam():
    return torch.optim.Adam([torch.zeros(2, requires_grad=True)])


@pytest.mark.parametrize(
    ("how", "kind", "match"),
    [
        ({"beta": 0.0}, OptionError, "`beta`=0.0"),
        ({"beta": 1.5}, OptionError, "`beta`=1.5"),
        ({"warmup": -1}, OptionError, "`warmup`=-1"),
        ({"warmup": float("nan")}, OptionError, "`warmup`=nan: give a whole number"),
        ({"regroup_every": 0}, OptionError, "`regroup_every`=0"),
        ({"regroup_every": 2.5}, OptionError, "`regroup_every`=2.5"),
        ({"seed": -1}, OptionError, "`seed`=-1"),
        ({"tasks": 0}, OptionError, "`tasks`=0"),
        ({"tasks": ["a", "a"]}, OptionError, "none twice"),
    ],
)
def test_arguments_outside_of_what_they_may_be_are_refused(how, kind, match):
    with pytest.raises(kind, match=match):
        SelectiveGroups(adam(), **how)


@pytest.mark.parametrize(
    ("how", "kind", "match"),
    [
        ({"affinity": "cosine"}, UnknownNameError, "affinity"),
        ({"preference": "mean"}, UnknownNameError, "preference"),
        ({"preference": float("nan")}, OptionError, "`preference`=nan"),
        ({"single_group": "ignore"}, UnknownNameError, "single_group"),
        ({"compat": "paper"}, UnknownNameError, "compat"),
        ({"measure_every": 0}, OptionError, "`measure_every`=0"),
        ({"measure_every": 2.5}, OptionError, "`measure_every`=2.5"),
        ({"probe_every": 0}, OptionError, "`probe_every`=0"),
        ({"probe_every": float("nan")}, OptionError, "`probe_every`=nan"),
        ({"measure_last": 2.0}, OptionError, "`measure_last`=2.0"),
        ({"affinity": "first_order", "compat": "official"}, OptionError, "the published code has none"),
        ({"affinity": "first_order", "freeze_heads": False}, OptionError, "has to know the heads"),
    ],
)
def test_options_outside_of_what_they_may_be_are_refused(how, kind, match):
    with pytest.raises(kind, match=match):
        SelectiveOptions(**how)


def test_losses_that_do_not_fit_the_tasks_are_refused():
    weight = torch.zeros(2, requires_grad=True)
    groups = SelectiveGroups(torch.optim.Adam([weight]), tasks=["a", "b"])
    with pytest.raises(DataError, match="losses of shape"):
        groups.step(lambda: weight.repeat(2))
    with pytest.raises(UnknownNameError, match="`c`"):
        groups.step(lambda: {"a": weight[0], "c": weight[1]})


def test_what_does_not_go_with_an_adatask_optimizer_is_refused():
    def ours():
        return AdaTaskAdam([torch.zeros(2, requires_grad=True)], ["a", "b"])

    with pytest.raises(OptionError, match="3 of them, but the optimizer knows 2"):
        SelectiveGroups(ours(), tasks=3)
    with pytest.raises(OptionError, match="`compat`='official' with an AdaTask optimizer"):
        SelectiveGroups(ours(), options=SelectiveOptions(compat="official"))


def test_before_the_first_batch_there_is_nothing_to_see():
    groups = SelectiveGroups(adam())
    assert groups.groups == []
    assert groups.affinity.shape == (0, 0)
    named = SelectiveGroups(adam(), tasks=["a", "b"])
    assert named.step(dict).isnan().tolist() == [True, True]
