"""The other measures: looks at a joint run, regressions on projected gradients, labels, divergences, Fisher information."""

import copy
import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import energy_distance, wasserstein_distance
from tests.relate.planted_groups import ari, planted
from torch import nn
from torch.nn import functional

from taskloom.deep import MLP, SharedBottom, SumStep
from taskloom.relate._datamap import DatamapWatch, datamap
from taskloom.relate._divergence import divergence, energy, mmd, proxy_a, wasserstein
from taskloom.relate._gradtag import LinearTask, gradtag, linear_outputs, random_sets, solve
from taskloom.relate._gram import GramWatch, gram
from taskloom.relate._joint_run import WatchedStep, joint_run
from taskloom.relate._labels import association, labels, pearson
from taskloom.relate._lookahead import LookaheadWatch, lookahead
from taskloom.relate._options import MeasureOptions
from taskloom.relate._probe import Probe
from taskloom.relate._readings import joint_view
from taskloom.relate._task2vec import distances, task2vec
from taskloom.tasks import DataError, FitError, OptionError, Task, TaskData, UnknownNameError

NET = MLP((16,))
OPTIONS = MeasureOptions(steps=100, learning_rate=3e-3)
BINARY = [Task(name, "binary") for name in "abcd"]
ON_NETS = [lookahead, gram, partial(gram, cosine=True), gradtag, datamap, task2vec]
ALL = [*ON_NETS, labels]


def names_of(measures):
    return [getattr(measure, "__name__", "gram of cosines") for measure in measures]


@pytest.fixture(scope="module")
def small():
    """Two binary tasks that agree, one turned around, one apart; some labels missing."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 6))
    Y = np.column_stack([X[:, 0] > 0, X[:, 0] + 0.3 * X[:, 1] > 0, X[:, 0] < 0.1, X[:, 2] > 0]).astype(float)
    Y[rng.random(Y.shape) < 0.1] = np.nan
    return TaskData.shared_rows(X, Y, BINARY)


@pytest.fixture(scope="module")
def kinds():
    """A regression, a binary and two multiclass tasks."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(240, 5))
    Y = np.column_stack([X[:, 0], X[:, 0] > 0, np.digitize(X[:, 0], [-0.5, 0.5]), np.digitize(X[:, 1], [-1, 0, 1])])
    tasks = [
        Task("amount"),
        Task("ill", "binary"),
        Task("grade", "multiclass", (0, 1, 2)),
        Task("stage", "multiclass", range(4)),
    ]
    return TaskData.shared_rows(X, Y, tasks)


class Normed(nn.Module):
    """BatchNorm and dropout in the trunk."""

    def __init__(self, d, outputs):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(d, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, outputs)

    def forward(self, x):
        return self.head(self.encoder(x))


def closure_of(net, data):
    x, y = torch.tensor(data.X, dtype=torch.float32), torch.tensor(data.y, dtype=torch.float32)

    def closure():
        each = functional.binary_cross_entropy_with_logits(net(x), y.nan_to_num(), reduction="none")
        return torch.where(y.isnan(), 0.0, each).sum(dim=0) / (~y.isnan()).sum(dim=0)

    return closure


@pytest.mark.parametrize("watch", [LookaheadWatch(), GramWatch()], ids=["lookahead", "gram"])
def test_a_look_leaves_net_buffers_gradients_and_generator_as_they_were_to_the_bit(watch, small):
    net = Normed(6, 4).train()
    closure = closure_of(net, small)
    closure()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    watch.meet(net, small, OPTIONS)
    watch.look(closure)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert all(weight.grad is None for weight in net.parameters())
    assert np.isfinite(watch.affinity().values).all()


def test_looking_ahead_is_what_a_step_by_hand_does(small):
    net = SharedBottom(6, BINARY, (8,))
    closure, eta = closure_of(net, small), 0.3
    watch = LookaheadWatch(step=eta)
    watch.meet(net, small, OPTIONS)
    watch.look(closure)
    before = closure().detach()
    for i in range(4):
        moved = copy.deepcopy(net)
        grads = torch.autograd.grad(closure_of(moved, small)()[i], list(moved.encoder.parameters()))
        with torch.no_grad():
            for weight, g in zip(moved.encoder.parameters(), grads, strict=True):
                weight.sub_(eta * g)
        after = closure_of(moved, small)().detach()
        assert np.allclose(watch.affinity().values[:, i], (1 - after / before) / eta, atol=1e-4)


def test_products_of_gradients_are_what_small_steps_ahead_tend_to(small):
    watches = [LookaheadWatch(step=1e-2), GramWatch()]
    joint_run(NET, small, OPTIONS, watches)
    ahead, first_order = (watch.affinity() for watch in watches)
    assert ahead.agreement(first_order) > 0.99
    assert np.allclose(ahead.values, first_order.values, rtol=0.1, atol=0.02)
    assert ahead.cost.forwards == 5 * first_order.cost.forwards
    assert not first_order.is_symmetric
    assert ahead["a", "b"] > ahead["a", "d"]


def test_a_receiver_with_a_loss_twice_as_large_gets_the_same_from_products(small):
    net = SharedBottom(6, BINARY, (8,))
    one, two = GramWatch(), GramWatch()
    for watch, scale in ((one, torch.ones(4)), (two, torch.tensor([2.0, 1, 1, 1]))):
        watch.meet(net, small, OPTIONS)
        watch.look(lambda scale=scale: closure_of(net, small)() * scale)
    assert np.allclose(two.affinity().values[0, 1:], one.affinity().values[0, 1:], rtol=1e-4)
    assert np.allclose(two.affinity().values[1:, 0], 2 * one.affinity().values[1:, 0], rtol=1e-4)


def test_watches_at_one_run_see_what_each_sees_at_its_own_and_leave_the_training_alone(small):
    watches = [LookaheadWatch(), GramWatch(), DatamapWatch()]
    run = joint_run(NET, small, OPTIONS, watches)
    for watch, measure in zip(watches, (lookahead, gram, datamap), strict=True):
        assert np.array_equal(watch.affinity().values, measure(NET, small, OPTIONS).values)
    alone = joint_run(NET, small, OPTIONS)
    assert all(torch.equal(value, run.net.state_dict()[name]) for name, value in alone.net.state_dict().items())
    assert (run.cost.forwards, run.cost.trainings) == (100 * 64 + 2 * 300, 1)
    assert lookahead(NET, small, OPTIONS).cost.trainings == 1


@pytest.mark.parametrize("make", [LookaheadWatch, GramWatch, DatamapWatch])
def test_a_watched_step_goes_on_from_its_state_to_the_bit(make, small):
    def fresh():
        torch.manual_seed(0)
        net, watch = SharedBottom(6, BINARY, (8,)), make(2)
        watch.meet(net, small, OPTIONS)
        fabric = type("Fabric", (), {"backward": staticmethod(lambda loss: loss.backward())})
        return net, watch, WatchedStep(SumStep(torch.optim.Adam(net.parameters()), fabric), [watch])

    net, watch, step = fresh()
    for _ in range(6):
        step.step(closure_of(net, small))
    half, _, first = fresh()
    for _ in range(3):
        first.step(closure_of(half, small))
    rest, other, second = fresh()
    rest.load_state_dict(half.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(3):
        second.step(closure_of(rest, small))
    assert np.array_equal(watch.affinity().values, other.affinity().values)
    assert all(torch.equal(value, rest.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("measure", ALL, ids=names_of(ALL))
def test_the_same_seed_gives_the_same_numbers_and_all_kinds_of_tasks_are_served(measure, kinds):
    one, other = (measure(NET, kinds, replace(OPTIONS, steps=40)) for _ in range(2))
    off = ~np.eye(4, dtype=bool)
    assert np.array_equal(one.values, other.values, equal_nan=True)
    assert np.isfinite(one.values[off]).all()
    assert np.isfinite(one.stability)
    assert one.cost.seconds > 0
    assert one.cost.trainings == (0 if measure is labels else 1)
    plain = measure(NET, kinds, replace(OPTIONS, steps=40, split_half=False))
    assert np.isnan(plain.stability)
    assert np.array_equal(plain.values, one.values, equal_nan=True)


@pytest.mark.parametrize(
    "measure", [m for m in ON_NETS if m is not datamap], ids=names_of([m for m in ON_NETS if m is not datamap])
)
def test_tasks_with_rows_of_their_own_are_served(measure):
    data, _ = planted(2, 2, own=True, n_rows=120, d=6)
    affinity = measure(NET, data, replace(OPTIONS, steps=60))
    assert np.isfinite(affinity.off_diagonal).all()


def test_groups_of_labels_that_agree_are_found_by_looks_at_a_joint_run_and_leave_traces_in_fisher_information():
    data, groups = planted()
    watches = [LookaheadWatch(20), GramWatch(20), GramWatch(20, cosine=True), DatamapWatch(20)]
    run = joint_run(MLP((32, 32)), data, MeasureOptions(steps=300, learning_rate=3e-3), watches)
    assert [ari(watch.affinity(), groups) for watch in watches] == [1.0] * 4
    same, values = groups[:, None] == groups, task2vec(run.net, data).values
    assert values[same & ~np.eye(12, dtype=bool)].mean() < values[~same].mean()
    assert ari(labels(None, data), groups) == 1.0


def test_regressions_on_projected_gradients_tell_early_which_tasks_go_together():
    data, groups = planted()
    affinity = gradtag(MLP((32, 32)), data, MeasureOptions(steps=50, learning_rate=1e-3))
    same = groups[:, None] == groups
    off = ~np.eye(12, dtype=bool)
    assert affinity.values[same & off].mean() > 0 > affinity.values[~same].mean()
    assert np.allclose(np.diag(affinity.values), 0)
    assert not affinity.is_symmetric


def test_projections_keep_inner_products_in_the_mean(small):
    from taskloom.relate._gradtag import _projection

    view = joint_view(SharedBottom(6, BINARY, (8, 5)).double(), small)
    x = torch.tensor(small.X[:6])

    def pull(out):
        return view.reading.back(torch.ones(6, 4, 1, dtype=torch.float64))

    v = view.probe.stand_ins(x, pull, norm=2)
    exact = (v @ v.mT).movedim(0, -1)
    sketched = []
    for seed in range(30):
        phi = _projection(view, 400, seed)(x, pull)
        sketched.append(torch.einsum("mbd,nbd->mnb", phi, phi))
    size = exact.diagonal().max()
    assert ((torch.stack(sketched).mean(dim=0) - exact).abs() < 0.05 * size).all()


def test_the_margin_is_that_of_cross_entropy_and_linear_in_the_outputs_nearby():
    tasks = [Task("m", "multiclass", (0, 1, 2)), Task("b", "binary"), Task("r")]
    z = torch.tensor([[[0.3, -1.0, 0.5], [0.7, 0, 0], [0.2, 0, 0]]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[2.0, 0.0, 1.0]], dtype=torch.float64)
    f, gradient = linear_outputs(z, y, tasks)
    losses = functional.softplus(-f[0, :2])
    assert losses[0].item() == pytest.approx(functional.cross_entropy(z[:, 0], y[:, 0].long()).item())
    assert losses[1].item() == pytest.approx(functional.binary_cross_entropy_with_logits(z[0, 1, 0], y[0, 1]).item())
    assert f[0, 2].item() == pytest.approx(0.8)
    f[0, :2].sum().backward()
    assert torch.allclose(z.grad[0, :2], gradient[0, :2])
    assert gradient[0, 2, 0] == 1


@pytest.mark.parametrize("is_margin", [True, False])
def test_the_small_regression_is_solved(is_margin):
    rng = np.random.default_rng(0)
    tasks = [LinearTask(rng.normal(size=(50, 6)), rng.normal(size=50), is_margin) for _ in range(3)]
    curvatures = [task.curvature() for task in tasks]
    w = solve(tasks, curvatures, ridge=0.5)
    strength = 0.5 * np.trace(sum(curvatures)) / 6

    def objective(w):
        return sum(task.loss(w) for task in tasks) + strength * w @ w / 2

    around = [objective(w + 1e-2 * np.eye(6)[i] * sign) for i, sign in itertools.product(range(6), (-1, 1))]
    assert objective(w) < min(around)
    slope = np.array([(objective(w + 1e-5 * e) - objective(w - 1e-5 * e)) / 2e-5 for e in np.eye(6)])
    assert np.abs(slope).max() < 1e-3


def test_random_sets_deal_all_tasks_out_evenly():
    sets = random_sets(7, 3, 20, seed=0)
    assert [len(set(chosen)) for chosen in sets] == [3] * 20
    counts = np.bincount(np.concatenate(sets), minlength=7)
    assert counts.max() - counts.min() <= 7
    assert all(np.array_equal(a, b) for a, b in zip(sets, random_sets(7, 3, 20, seed=0), strict=True))


def test_label_correlations_are_those_of_the_rows_that_both_have(small):
    found = labels(None, small, signed=True)
    both = ~np.isnan(small.y[:, :2]).any(axis=1)
    assert found["a", "b"] == pytest.approx(np.corrcoef(small.y[both, 0], small.y[both, 1])[0, 1])
    assert found["a", "c"] < 0 < labels(None, small)["a", "c"]
    assert found.cost.units == 0


def test_a_half_without_a_label_is_no_reason_to_warn():
    Y = np.full((20, 3), np.nan)
    Y[:, 0], Y[:2, 1], Y[2:4, 2] = np.arange(20), (0, 1), (1, 0)
    data = TaskData.shared_rows(np.eye(20), Y, ["a", "b", "c"])
    for seed in range(10):
        assert labels(None, data, MeasureOptions(seed=seed))["a", "b"] == pytest.approx(1.0)


def test_associations_are_the_known_ones():
    rng = np.random.default_rng(0)
    a, b, x = rng.integers(0, 3, 400), rng.integers(0, 4, 400), rng.normal(size=400)
    b = np.where(rng.random(400) < 0.4, a, b)
    table = np.array([[((a == i) & (b == j)).sum() for j in range(4)] for i in range(3)], dtype=float)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / 400
    cramer = np.sqrt(((table - expected) ** 2 / expected).sum() / 400 / 2)
    A, B = (a[:, None] == np.arange(3)).astype(float), (b[:, None] == np.arange(4)).astype(float)
    assert association(A, B) == pytest.approx(cramer)
    y = x + a
    means = np.array([y[a == i].mean() for i in range(3)])
    assert association(A, y[:, None]) == pytest.approx(
        np.sqrt(((means[a] - y.mean()) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    )
    assert association(x[:, None], y[:, None], signed=True) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert np.isnan(association(np.full((3, 1), np.nan), np.ones((3, 1))))
    assert np.isnan(association(np.ones((3, 1)), np.arange(3.0)[:, None]))
    assert np.isnan(pearson(np.array([[1.0, np.nan], [2.0, 1.0], [np.nan, 2.0]]))[0, 1])


def test_on_own_rows_labels_say_nothing_but_for_predictions_that_fill_in():
    data, groups = planted(own=True, n_rows=300)
    nothing = labels(None, data)
    assert np.isnan(nothing.values).all()
    assert "nothing is known" in nothing.notes[0]
    filled = labels(None, data, fill=True)
    assert ari(filled, groups) >= 0.9
    assert "ridge predictions" in filled.notes[0]


def test_divergences_are_those_that_scipy_has_in_one_dimension_and_grow_with_a_shift():
    rng = np.random.default_rng(0)
    parts = [rng.normal(shift, size=(400, 1)) for shift in (0, 0.5, 1, 3)]
    assert np.sqrt(energy(parts)[0, 2]) == pytest.approx(energy_distance(parts[0][:, 0], parts[2][:, 0]))
    # A shift moves all quantiles alike, and then distances of order 1 and 2 agree.
    shifted = [parts[0], parts[0] + 1.5]
    assert wasserstein(shifted)[0, 1] == pytest.approx(wasserstein_distance(*(part[:, 0] for part in shifted)))
    for measure in (energy, wasserstein, mmd, proxy_a):
        found = measure(parts)
        assert np.allclose(found, found.T)
        assert np.allclose(np.diag(found), 0)
        assert (np.diff(found[0]) > 0).all()
        apart = measure([np.zeros((50, 2)) + rng.normal(size=(50, 2)), 100 + rng.normal(size=(50, 2))])[0, 1]
        assert apart > 1
    assert proxy_a([parts[0], parts[0] + 100])[0, 1] == pytest.approx(2.0)


def test_the_unbiased_discrepancy_of_equal_domains_is_zero_in_the_mean():
    found = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        X, Y = rng.normal(size=(2, 40, 3))
        both = np.concatenate([X, Y])
        squares = ((both[:, None] - both) ** 2).sum(axis=2)
        kernel = np.exp(-squares / np.median(squares[np.triu_indices(80, 1)]))
        k, off = kernel[:40, :40], ~np.eye(40, dtype=bool)
        by_hand = k[off].mean() + kernel[40:, 40:][off].mean() - 2 * kernel[:40, 40:].mean()
        assert mmd([X, Y])[0, 1] == pytest.approx(max(by_hand, 0), abs=1e-12)
        found.append(by_hand)
    assert abs(np.mean(found)) < 2 * np.std(found) / np.sqrt(30)


@pytest.mark.parametrize("kind", ["proxy_a", "mmd", "wasserstein", "energy"])
def test_divergences_find_domains_on_features_and_on_what_a_trunk_makes_of_them(kind):
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2], 3)
    centres = 2 * rng.normal(size=(3, 4))
    data = TaskData.own_rows([(rng.normal(size=(80, 4)) + centres[g], rng.normal(size=80)) for g in groups])
    affinity = divergence(None, data, kind=kind)
    assert ari(affinity, groups) == 1.0
    assert affinity.stability > 0.9
    assert affinity.measure == f"divergence ({kind})"
    net = SharedBottom(4, data.tasks, (16,))
    assert ari(divergence(net, data, kind=kind), groups) == 1.0


def test_confidence_is_the_probability_of_the_true_class(kinds):
    watch, net = DatamapWatch(), SharedBottom(5, kinds.tasks, (8,))
    watch.meet(net, kinds, MeasureOptions(n_rows=240))
    for _ in range(3):
        watch.look(lambda: None)
    out, y = net(torch.tensor(kinds.X[watch.rows], dtype=torch.float32)).detach(), kinds.y[watch.rows]
    z, chance, chances = out.numpy(), out[:, 1].sigmoid().numpy(), out[:, 2:5].softmax(dim=1).numpy()
    mean, deviation = watch.maps()
    assert np.allclose(mean[:, 0], np.exp(-((z[:, 0] - y[:, 0]) ** 2) / 2), atol=1e-6)
    assert np.allclose(mean[:, 1], np.where(y[:, 1] == 1, chance, 1 - chance), atol=1e-6)
    assert np.allclose(mean[:, 2], chances[np.arange(240), y[:, 2].astype(int)], atol=1e-6)
    assert np.allclose(deviation, 0, atol=1e-7)
    affinity = watch.affinity()
    assert affinity["amount", "ill"] == pytest.approx(np.sqrt(((mean[:, 0] - mean[:, 1]) ** 2).mean()))
    assert "exp(-e^2 / 2)" in affinity.notes[0]


def test_a_task_and_its_negation_have_the_same_fisher_information(small):
    Y = np.column_stack([small.y[:, 0], 1 - small.y[:, 0], small.y[:, 3]])
    data = TaskData(small.tasks[:3], small.features, Y)
    affinity = task2vec(NET, data, replace(OPTIONS, n_rows=300))
    assert affinity["a", "b"] < 0.05 * affinity["a", "c"]
    assert not affinity.higher_is_better
    assert distances(np.array([[1.0, 0.0], [0.0, 2.0]]))[0, 1] == pytest.approx(1)


def test_fisher_information_is_the_mean_square_of_gradients_of_the_log_likelihood(small):
    net = SharedBottom(6, BINARY, (8,)).double()
    x, head = torch.tensor(small.X[:20]), net.heads[0]
    probe = Probe(net.encoder, ["0.weight", "0.bias"], x)

    def pull(out):
        chance = head(out).sigmoid()
        return ((chance * (1 - chance)).sqrt() * head.weight).unsqueeze(0).detach()

    expected = torch.zeros(8, dtype=torch.float64)
    for row in x:
        logit = head(net.encoder(row))
        chance = logit.sigmoid().item()
        for y, weight in ((1.0, chance), (0.0, 1 - chance)):
            loss = functional.binary_cross_entropy_with_logits(logit, torch.tensor([y], dtype=torch.float64))
            expected += weight * torch.autograd.grad(loss, net.encoder[0].weight, retain_graph=True)[0].square().mean(dim=1)
    assert torch.allclose(probe.mean_squares(x, pull)[0], expected)


def test_a_net_that_is_given_is_not_trained_and_not_changed(small):
    net = SharedBottom(6, BINARY, (8,))
    before = copy.deepcopy(net.state_dict())
    for measure in ON_NETS:
        cost = measure(net, small, replace(OPTIONS, steps=20)).cost
        assert cost.trainings == (0 if measure in {gradtag, task2vec} else 1)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_bad_input_is_refused(small):
    own, _ = planted(2, 2, own=True, n_rows=20, d=4)
    for measure in ALL:
        with pytest.raises(DataError, match="`data` has 1 task; how tasks relate takes two or more"):
            measure(NET, TaskData(small.tasks[:1], small.features, small.y[:, :1]))
        with pytest.raises(DataError, match=r"task `b` has 1 labels, a measure needs 2"):
            measure(NET, _one_label())
    for measure in ON_NETS:
        with pytest.raises(OptionError, match="`model`=None: give a net, or what makes one"):
            measure(None, small)
    for measure in (lookahead, gram, gradtag):
        with pytest.raises(OptionError, match="`model` has no weights that several tasks use"):
            measure(MLP(()), small, replace(OPTIONS, steps=5))
    with pytest.raises(FitError, match=r"lower `learning_rate` \(1000.0\) or raise `steps`"):
        gram(NET, small, MeasureOptions(steps=3, learning_rate=1000.0))
    for step in (0, np.inf, "x"):
        with pytest.raises(OptionError, match=f"`step`={step!r}: give a positive number"):
            lookahead(NET, small, step=step)
    with pytest.raises(OptionError, match=r"`every`=0"):
        GramWatch(0)
    for options, message in (
        ({"set_size": 9}, "`set_size`=9"),
        ({"set_size": 4}, "`set_size`=4: .*sets of all 4 tasks tell nothing apart"),
        ({"set_size": 2.5}, "`set_size`=2.5"),
        ({"d": 0}, "`d`=0"),
        ({"d": 2.5}, "`d`=2.5"),
        ({"n_sets": 2.5}, "`n_sets`=2.5"),
        ({"n_sets": 0}, "`n_sets`=0"),
        ({"ridge": 0.0}, "`ridge`=0.0"),
    ):
        with pytest.raises(OptionError, match=message):
            gradtag(NET, small, **options)
    with pytest.raises(DataError, match="`data` has 2 tasks; `gradtag` compares the company of a task and takes three"):
        gradtag(NET, TaskData(small.tasks[:2], small.features, small.y[:, :2]))
    with pytest.raises(DataError, match="`datamap` compares tasks row by row"):
        datamap(NET, own)
    with pytest.raises(OptionError, match="`fill`=True is for tasks with rows of their own"):
        labels(None, small, fill=True)
    with pytest.raises(DataError, match="`divergence` compares the rows of tasks, and these share theirs"):
        divergence(None, small)
    with pytest.raises(UnknownNameError, match="no kind of divergence named `mdm`; did you mean `mmd`"):
        divergence(None, own, kind="mdm")
    with pytest.raises(OptionError, match="without a module `encoder`"):
        divergence(nn.Linear(4, 4), own)
    with pytest.raises(OptionError, match="without a module `encoder`"):
        task2vec(nn.Linear(6, 4), small)


def _one_label():
    Y = np.array([[0.0, 1.0], [1.0, np.nan], [0.0, np.nan]])
    data = TaskData.shared_rows(np.eye(3), np.nan_to_num(Y), [Task("a"), Task("b")])
    return TaskData(data.tasks, data.features, Y)
