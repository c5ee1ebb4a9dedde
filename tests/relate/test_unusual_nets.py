"""Nets of the user's own making: shared weights, layers with a rule of their own, subclasses, layers under two names."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from taskloom.deep import GroupFitOptions, SharedBottom, fit_groups, task_gradients
from taskloom.deep._stacked import StackedNets
from taskloom.relate import MeasureOptions, gradtag, joint_run, lookahead, samplewise_cosine
from taskloom.relate._gram import GramWatch, gram
from taskloom.relate._lookahead import LookaheadWatch
from taskloom.relate._probe import Probe, l1_distances
from taskloom.relate._readings import joint_view
from taskloom.tasks import TaskData

OPTIONS = MeasureOptions(steps=60, learning_rate=3e-3)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 5))
    Y = np.column_stack([X[:, 0], X[:, 0] + 0.3 * X[:, 1], X[:, 2]])
    return TaskData.shared_rows(X, Y, ["a", "b", "c"])


def tied_layers():
    net = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    net[2].weight = net[0].weight
    return net


def tied_layers_without_second_bias():
    net = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5, bias=False), nn.Tanh(), nn.Linear(5, 3))
    net[2].weight = net[0].weight
    return net


class TiedAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(5, 4), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(functional.linear(torch.tanh(self.a(x)), self.a.weight.t()))


class Doubled(nn.Linear):
    def forward(self, x):
        return functional.linear(x, 2 * self.weight, self.bias)


def own_rule():
    return nn.Sequential(Doubled(5, 6), nn.Tanh(), nn.Linear(6, 3))


def one_layer_under_two_names():
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 3))


ODD = [tied_layers, tied_layers_without_second_bias, TiedAutoencoder, own_rule, one_layer_under_two_names]


@pytest.mark.parametrize("make", ODD)
def test_distances_are_those_of_autograd_where_a_layer_is_not_what_it_seems(make):
    torch.manual_seed(0)
    net, x = make().double(), torch.randn(8, 5, dtype=torch.float64)
    names = [name for name, _ in net.named_parameters()]
    probe = Probe(net, names, x)
    assert not probe.is_linear
    rows = [
        torch.cat([jac.flatten(1) for jac in task_gradients(net(row.unsqueeze(0))[0], [*net.parameters()])], 1) for row in x
    ]
    found = l1_distances(probe.stand_ins(x, lambda out: torch.eye(3).unsqueeze(1).expand(3, len(out), 3).to(out), norm=1))
    torch.testing.assert_close(found, torch.stack([torch.cdist(row, row, p=1) for row in rows]))
    held = [weight for module in net.modules() for weight in module._parameters.values() if weight is not None]
    assert all(isinstance(weight, nn.Parameter) for weight in held)


def test_a_plain_net_keeps_its_closed_form():
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)).requires_grad_(False)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        rows = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert Probe(net.to(dtype), [name for name, _ in net.named_parameters()], rows).is_linear


class Gated(SharedBottom):
    def forward(self, x):
        h = self.encoder(x)
        h = torch.tanh(h) * torch.sigmoid(h.flip(1))
        return torch.cat([head(h) for head in self.heads], dim=1)


def test_a_subclass_of_the_house_net_is_read_by_its_own_forward(data):
    torch.manual_seed(0)
    net = Gated(5, data.tasks, (8, 6)).double()
    view, x = joint_view(net, data), torch.tensor(data.X[:10])
    trunk = [weight for name, weight in net.named_parameters() if name.startswith("encoder.")]
    rows = [torch.cat([jac.flatten(1) for jac in task_gradients(net(row.unsqueeze(0))[0], trunk)], 1) for row in x]
    cosines = torch.stack([functional.cosine_similarity(row[:, None], row[None], dim=2).abs() for row in rows]).mean(dim=0)
    narrow = data.take(np.arange(10))
    np.testing.assert_allclose(samplewise_cosine(net, narrow).values, cosines.detach().numpy(), atol=1e-6)
    assert view.probe.is_linear


@pytest.mark.parametrize("watch", [LookaheadWatch(every=3), GramWatch(every=3)], ids=["lookahead", "gram"])
@pytest.mark.parametrize("make", ODD)
def test_looks_leave_the_training_of_such_nets_alone_to_the_bit(make, watch, data):
    torch.manual_seed(0)
    net = make()
    plain, seen = joint_run(net, data, OPTIONS), joint_run(net, data, OPTIONS, [watch])
    np.testing.assert_array_equal(plain.losses, seen.losses)
    for one, other in zip(plain.net.parameters(), seen.net.parameters(), strict=True):
        assert torch.equal(one, other)


class TwoTrunks(nn.Module):
    """Tasks a and b share the one trunk, b and c the other."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.heads = nn.Linear(5, 4), nn.Linear(5, 4), nn.ModuleList(nn.Linear(4, 1) for _ in range(4))

    def forward(self, x):
        h, z = torch.tanh(self.one(x)), torch.tanh(self.two(x))
        return torch.cat([self.heads[0](h), self.heads[1](h) + self.heads[2](z), self.heads[3](z)], dim=1)


def test_weights_that_a_rare_task_shares_are_found_when_it_comes(data):
    Y = data.y.copy()
    Y[np.arange(len(Y)) % 40 > 0, 2] = np.nan
    rare = TaskData.shared_rows(data.X, Y, ["a", "b", "c"])
    for seed in range(3):
        options = MeasureOptions(steps=60, batch_size=8, every=1, seed=seed, learning_rate=3e-3)
        affinity = gram(lambda _shape, _tasks: TwoTrunks(), rare, options)
        assert affinity.values[2, 2] > 0
        assert affinity["b", "c"] != 0
        assert affinity["a", "c"] == 0


def test_a_watch_that_is_used_again_starts_with_nothing_seen(data):
    watch = GramWatch()
    seen = []
    for make in (one_layer_under_two_names, TwoTrunks):
        torch.manual_seed(0)
        joint_run(make(), data, OPTIONS, [watch])
        seen.append(watch.cost.units)
        fresh = GramWatch()
        torch.manual_seed(0)
        joint_run(make(), data, OPTIONS, [fresh])
        np.testing.assert_array_equal(watch.affinity().values, fresh.affinity().values)
    assert seen[0] == seen[1]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.GRU(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.encoder(x.unsqueeze(2))[0][:, -1])


def partly_frozen():
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    net[0].requires_grad_(False)
    return net


class Mixed(Recurrent):
    """BatchNorm before a layer that cannot be batched."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        return super().forward(self.norm(x))


@pytest.mark.parametrize("make", [Recurrent, Mixed, partly_frozen, *ODD])
def test_groups_of_such_nets_are_trained_as_each_alone(make, data):
    def of_seed(_shape, _tasks):
        return make()

    how = GroupFitOptions(max_steps=12, learning_rate=1e-2)
    members = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]], dtype=bool)
    together = fit_groups(of_seed, data, data, members, options=how).validation_loss[:, 0]
    apart = [fit_groups(of_seed, data, data, row[None], options=how).validation_loss[0, 0] for row in members]
    np.testing.assert_allclose(together, apart, rtol=1e-4)


def test_a_tied_weight_stays_tied_in_a_stack(data):
    x = torch.randn(2, 4, 5)
    for make in (tied_layers, one_layer_under_two_names):
        nets = [make(), make()]
        expected = torch.stack([net(rows) for net, rows in zip(nets, x, strict=True)])
        torch.testing.assert_close(StackedNets(nets)(x), expected)


@pytest.mark.parametrize("measure", [samplewise_cosine, gradtag, lookahead, gram])
@pytest.mark.parametrize("make", [Recurrent, partly_frozen])
def test_recurrent_and_partly_frozen_nets_are_measured(make, measure, data):
    affinity = measure(lambda _shape, _tasks: make(), data, MeasureOptions(steps=20, n_rows=20, learning_rate=3e-3))
    assert np.isfinite(affinity.values).all()


def test_gradients_row_by_row_are_those_of_autograd():
    torch.manual_seed(0)
    net, x = Recurrent().double(), torch.randn(4, 5, dtype=torch.float64)
    probe = Probe(net, [name for name, _ in net.named_parameters()], x)
    found = probe.gradients(x, lambda out: torch.eye(3).unsqueeze(1).expand(3, len(out), 3).to(out))
    rows = [
        torch.cat([jac.flatten(1) for jac in task_gradients(net(row.unsqueeze(0))[0], [*net.parameters()])], 1) for row in x
    ]
    torch.testing.assert_close(found, torch.stack(rows))
