"""Closed forms of gradients of single rows, against torch.func and the tasks' true losses."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from taskloom.deep import MLP, SharedBottom
from taskloom.relate._options import MeasureOptions
from taskloom.relate._probe import Probe, cosines, cross_products, l1_distances
from taskloom.relate._readings import ColumnReading, HeadReading, common_view, drawn_labels, joint_view, loss_gradients
from taskloom.relate._rows import HalvedMean, choose_own_rows, choose_rows, parts_of
from taskloom.relate._samplewise import cityblock, samplewise
from taskloom.tasks import OptionError, Task, TaskData

MIXED = [
    Task("amount"),
    Task("ill", "binary"),
    Task("grade", "multiclass", (0, 1, 2)),
    Task("cost"),
    Task("kind", "multiclass", range(4)),
]


def mixed_rows(n=24, d=5, seed=0):
    rng = np.random.default_rng(seed)
    Y = np.column_stack(
        [rng.normal(size=n), rng.integers(0, 2, n), rng.integers(0, 3, n), rng.normal(size=n), rng.integers(0, 4, n)]
    )
    Y = Y.astype(float)
    Y[rng.random(Y.shape) < 0.15] = np.nan
    Y[:2] = [[0, 0, 0, 0, 0], [1, 1, 2, 1, 3]]
    return TaskData.shared_rows(rng.normal(size=(n, d)), Y, MIXED)


def true_loss(task, z, y):
    if task.kind == "regression":
        return functional.mse_loss(z[0], y)
    if task.kind == "binary":
        return functional.binary_cross_entropy_with_logits(z[0], y)
    return functional.cross_entropy(z.unsqueeze(0), y.long().unsqueeze(0))


def slow_gradients(net, data, names, columns):
    """(n, K, P) by torch.func, one task and one row at a time in the losses that torch has; zero where a label is missing."""
    weights = {name: w.detach() for name, w in net.named_parameters()}
    rest = {**dict(net.named_buffers()), **{name: w for name, w in weights.items() if name not in names}}
    x, labels = torch.tensor(data.X), torch.tensor(data.y)
    found = []
    for t, task in enumerate(data.tasks):

        def loss(moved, row, y, t=t, task=task):
            return true_loss(task, functional_call(net, {**rest, **moved}, (row.unsqueeze(0),))[0, columns[t]], y)

        chosen = {name: weights[name] for name in names}
        per_row = vmap(grad(loss), in_dims=(None, 0, 0))(chosen, x, labels[:, t].nan_to_num())
        flat = torch.cat([per_row[name].flatten(1) for name in names], dim=1)
        found.append(flat * ~labels[:, t : t + 1].isnan())
    return torch.stack(found, dim=1)


def own_columns(tasks):
    ends = np.cumsum([task.n_outputs for task in tasks])
    return [slice(end - task.n_outputs, end) for end, task in zip(ends, tasks, strict=True)]


def loss_pull(view, data, rows=slice(None)):
    labels = torch.tensor(data.y[rows])
    return lambda out: view.reading.back(loss_gradients(view.reading.outputs(out), labels, data.tasks))


class Plain(nn.Module):
    """A net of the user's: an encoder with activations in place, one layer for all heads."""

    def __init__(self, d, outputs, middle=None):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(d, 7), nn.ReLU(inplace=True), *([middle] if middle else []), nn.Linear(7, 6, bias=False), nn.Tanh()
        )
        self.head = nn.Linear(6, outputs)

    def forward(self, x):
        return self.head(self.encoder(x))


class Images(nn.Module):
    """Convolutions and BatchNorm."""

    def __init__(self, outputs):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU()
        )
        self.head = nn.Linear(5, outputs)

    def forward(self, x):
        return self.head(self.encoder(x))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "make", [lambda: SharedBottom(5, MIXED, (8, 6)), lambda: Plain(5, 10)], ids=["shared bottom", "own net"]
)
def test_stand_ins_keep_distances_and_products_of_the_gradients_of_the_trunk(make):
    data, net = mixed_rows(), make().double().eval()
    view, x = joint_view(net, data), torch.tensor(data.X)
    names = [name for name, _ in net.named_parameters() if name.startswith("encoder")]
    slow = slow_gradients(net, data, names, own_columns(MIXED))
    assert view.probe.is_linear
    assert view.probe.size == sum(m.out_features for m in net.encoder.modules() if isinstance(m, nn.Linear))
    close(l1_distances(view.probe.stand_ins(x, loss_pull(view, data), norm=1)), torch.cdist(slow, slow, p=1))
    v = view.probe.stand_ins(x, loss_pull(view, data), norm=2)
    close(v @ v.mT, slow @ slow.mT)
    known = torch.tensor(~np.isnan(data.y))
    both = known.unsqueeze(1) & known.unsqueeze(2)
    assert torch.equal(~cosines(v).isnan(), both)
    unit = slow / slow.norm(dim=2, keepdim=True)
    close(cosines(v)[both], (unit @ unit.mT)[both])


def test_products_between_different_rows_have_a_closed_form():
    data, net = mixed_rows(), SharedBottom(5, MIXED, (8, 6)).double().eval()
    view, x = joint_view(net, data), torch.tensor(data.X)
    slow = slow_gradients(
        net, data, [name for name, _ in net.named_parameters() if name.startswith("encoder")], own_columns(MIXED)
    )
    parts = [view.probe.parts(x, lambda out, t=t: loss_pull(view, data)(out)[t : t + 1]) for t in (1, 2)]
    close(cross_products(*parts), slow[:, 1] @ slow[:, 2].T)


def test_a_common_head_counts_as_a_layer_like_the_others():
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(20, 5)), np.column_stack([rng.normal(size=20), rng.integers(0, 2, (20, 2))])
    data = TaskData.shared_rows(X, Y, [Task("a"), Task("b", "binary"), Task("c", "binary")])
    view = common_view(MLP((8, 6)), data, seed=0)
    view.probe.body.double()
    names = [name for name, _ in view.probe.body.named_parameters()]
    slow = slow_gradients(view.probe.body, data, names, [slice(0, 1)] * 3)
    assert view.probe.names == names
    close(l1_distances(view.probe.stand_ins(torch.tensor(X), loss_pull(view, data), norm=1)), torch.cdist(slow, slow, p=1))


@pytest.mark.parametrize("normalise", [False, True])
def test_the_distance_of_optima_after_one_step_is_one_pass_back_whatever_the_number_of_tasks(normalise):
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(40, 5)), np.column_stack([rng.normal(size=40), rng.integers(0, 2, (40, 3))])
    Y[rng.random(Y.shape) < 0.2] = np.nan
    data = TaskData.shared_rows(X, Y, [Task("a"), *(Task(name, "binary") for name in "bcd")])
    net = SharedBottom(5, [Task("one")], (8, 6)).double()
    affinity = samplewise(net, data, normalise=normalise)
    names = [name for name, _ in net.named_parameters()]
    start = torch.cat([w.detach().flatten() for w in net.parameters()])
    slow = slow_gradients(net, data, names, [slice(0, 1)] * 4)
    known = ~np.isnan(Y)
    if normalise:
        slow = slow / (slow.abs().sum(dim=2).sum(dim=0) / torch.tensor(known.sum(axis=0))).unsqueeze(1)
    optima = start - slow
    for s, t in ((0, 1), (1, 2), (3, 0)):
        both = known[:, s] & known[:, t]
        expected = (optima[both, s] - optima[both, t]).abs().sum(dim=1).mean()
        assert affinity.values[s, t] == pytest.approx(float(expected), rel=1e-8)
    assert (affinity.cost.forwards, affinity.cost.backwards) == (40, 40)


def test_tasks_of_different_widths_are_compared_on_the_trunk_with_heads_cut_from_one():
    data = mixed_rows()
    net = SharedBottom(5, [Task("one", "multiclass", range(4))], (8, 6)).double()
    affinity = samplewise(net, data, MeasureOptions(at_once=1), normalise=False)
    names = [name for name, _ in net.named_parameters() if name.startswith("encoder")]
    slow = slow_gradients(net, data, names, [slice(0, task.n_outputs) for task in MIXED])
    known = ~np.isnan(data.y)
    both = known[:, 2] & known[:, 4]
    assert affinity["grade", "kind"] == pytest.approx(float((slow[both, 2] - slow[both, 4]).abs().sum(dim=1).mean()), rel=1e-8)
    assert affinity.agreement(samplewise(net, data, normalise=False)) == pytest.approx(1)
    assert any("trunk" in note for note in affinity.notes)


def test_other_layers_get_their_gradients_row_by_row_with_batchnorm_frozen():
    rng = np.random.default_rng(0)
    tasks = [Task("a"), Task("b", "multiclass", (0, 1, 2))]
    data = TaskData.shared_rows(
        rng.normal(size=(12, 1, 3, 3)), np.column_stack([rng.normal(size=12), np.arange(12) % 3]), tasks
    )
    net = Images(4).double()
    net(torch.tensor(data.X))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    view = joint_view(net, data)
    names = [name for name, _ in net.named_parameters() if name.startswith("encoder")]
    slow = slow_gradients(net.eval(), data, names, own_columns(tasks))
    assert not view.probe.is_linear
    close(view.probe.stand_ins(torch.tensor(data.X), loss_pull(view, data), norm=1), slow)
    squares = view.probe.mean_squares(torch.tensor(data.X), loss_pull(view, data))
    assert squares.shape == (2, 3 + 5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(self.layer(x).tanh())


def test_a_layer_used_twice_or_along_a_sequence_has_no_closed_form():
    twice, along = Twice().double(), nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Linear(1, 1), nn.Flatten()).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    for net in (twice, along):
        probe = Probe(net, [name for name, _ in net.named_parameters()], x)
        v = probe.stand_ins(x, lambda out: out.unsqueeze(0), norm=2)
        expected = vmap(
            grad(lambda w, row, net=net: functional_call(net, w, (row.unsqueeze(0),)).square().sum() / 2), (None, 0)
        )(dict(net.named_parameters()), x)
        close(v[:, 0], torch.cat([expected[name].flatten(1) for name, _ in net.named_parameters()], dim=1).detach())
        assert not probe.is_linear


def test_squares_are_means_over_the_inputs_of_a_unit():
    data, net = mixed_rows(), Plain(5, 10).double().eval()
    view = joint_view(net, data)
    slow = slow_gradients(net, data, ["encoder.0.weight", "encoder.2.weight"], own_columns(MIXED)).square().sum(dim=0)
    expected = torch.cat([slow[:, :35].unflatten(1, (7, 5)).mean(dim=2), slow[:, 35:].unflatten(1, (6, 7)).mean(dim=2)], dim=1)
    close(view.probe.mean_squares(torch.tensor(data.X), loss_pull(view, data)), expected)


def test_weights_that_several_tasks_use_are_found_where_no_part_is_called_encoder():
    data = mixed_rows()
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 10)).double()
    assert joint_view(net, data).probe.names == ["0.weight", "0.bias"]


def test_columns_and_heads_read_alike_and_send_gradients_back_alike():
    net = SharedBottom(5, MIXED, (6,))
    heads, columns = HeadReading.of([(h.weight, h.bias) for h in net.heads]), ColumnReading(MIXED)
    x = torch.randn(3, 5)
    features, out = net.encoder(x).detach(), net(x).detach()
    assert torch.allclose(heads.outputs(features), columns.outputs(out), atol=1e-6)
    cotangents = loss_gradients(columns.outputs(out), torch.ones(3, 5), MIXED)
    packed = torch.cat([h.weight for h in net.heads])
    assert torch.allclose(heads.back(cotangents), columns.back(cotangents) @ packed, atol=1e-6)


def test_drawn_labels_follow_the_net_and_leave_known_ones_alone():
    outputs = torch.tensor([0.0, 2.0, -torch.inf]).expand(4000, 1, 3)
    labels = torch.full((4000, 1), torch.nan)
    labels[0] = 0
    drawn = drawn_labels(outputs, labels, [Task("k", "multiclass", (0, 1, 2))], torch.Generator().manual_seed(0))
    assert drawn[0] == 0
    assert drawn.mean() == pytest.approx(float(torch.tensor(2.0).sigmoid()), abs=0.02)
    assert set(drawn.ravel().tolist()) == {0.0, 1.0}


def test_cityblock_leaves_out_what_one_of_two_lacks():
    U = np.random.default_rng(0).normal(size=(30, 4))
    U[np.random.default_rng(1).random(U.shape) < 0.3] = np.nan
    U[:, 3] = np.where(np.isnan(U[:, 2]), 1.0, np.nan)
    found = cityblock(U)
    assert np.allclose(found[:3, :3], [[np.nanmean(np.abs(U[:, s] - U[:, t])) for t in range(3)] for s in range(3)])
    assert np.isnan(found[2, 3])


def test_rare_classes_have_a_part_in_chosen_rows():
    Y = np.zeros((5000, 3))
    Y[[3, 4000], 0], Y[::2, 1] = 1, 1
    Y[100:, 2] = np.nan
    Y[:100, 2] = np.arange(100)
    data = TaskData.shared_rows(np.zeros((5000, 1)), Y, [Task("a", "binary"), Task("b", "binary"), Task("c")])
    rows = choose_rows(data, 64, seed=1)
    assert len(set(rows)) == 64
    assert {3, 4000} <= set(rows)
    assert (rows < 100).sum() >= 6
    assert np.array_equal(rows, choose_rows(data, 64, seed=1))
    assert sorted(choose_rows(data, 5000, seed=1)) == list(range(5000))
    own = TaskData.own_rows([(np.zeros((900, 1)), Y[:900, 0])] * 2, [Task("a", "binary"), Task("b", "binary")])
    assert all(own.y[rows].sum() == 1 and len(set(rows)) == 50 for rows in choose_own_rows(own, 50, seed=0))


def test_halves_are_every_other_matrix_however_they_come_in_parts():
    values = np.random.default_rng(0).normal(size=(11, 3, 3))
    whole, parts = HalvedMean(3), HalvedMean(3)
    whole.add(values)
    for part in np.split(values, [3, 4, 9]):
        parts.add(part)
    assert np.allclose(whole.sums, parts.sums)
    assert np.allclose(whole.sums[0], values[::2].sum(axis=0))
    assert np.allclose(whole.value(), values.mean(axis=0))
    assert np.concatenate(parts_of(np.arange(9), 12, 3)).tolist() == list(range(9))


def test_a_module_without_weights_in_common_is_refused():
    with pytest.raises(OptionError, match="`model` has no weights that several tasks use"):
        Probe(nn.ReLU(), [], torch.ones(2, 3))
    with pytest.raises(OptionError, match="`model` has no weights"):
        joint_view(SharedBottom(5, MIXED, ()), mixed_rows())
    with pytest.raises(OptionError, match=r"`model` maps 8 rows to \(8, 3\); it must give \(8, 10\)"):
        joint_view(nn.Linear(5, 3).double(), mixed_rows())
