"""Gradients joined at the features that tasks share: when that is the same as at the weights, and when it is refused."""

import numpy as np
import pytest
import torch
from tests.contracts import ResumeContract, assert_same
from torch import nn

from taskloom.deep import (
    MLP,
    AggregatedStep,
    FeaturewiseStep,
    FitOptions,
    MGDARecipe,
    NashMTLRecipe,
    PCGradRecipe,
    SharedBottom,
    SumStep,
    fit,
)
from taskloom.deep._fit import new_net
from taskloom.tasks import OptionError, Task

pytest.importorskip("torchjd", reason="the extra torchjd is not installed")


def mean(matrix):
    return matrix.mean(dim=0)


class Toy:
    """A net with an encoder, fresh rows for every step, labels that go missing."""

    def __init__(self, make, absent=(), dropout=0.0, rate=1e-2):
        torch.manual_seed(0)
        self.net = SharedBottom(3, [Task("a"), Task("b"), Task("c")], (6, 5), dropout).double()
        self.rows = torch.Generator().manual_seed(1)
        self.update = make(torch.optim.Adam(self.net.parameters(), lr=rate), None)
        self.update.meet(self.net)
        self.absent, self.n = absent, 0

    def losses(self, x):
        losses = (self.net(x) - x).square().mean(dim=0)
        gone = torch.tensor([(self.n, k) in self.absent for k in range(3)])
        return torch.where(gone, torch.nan, losses)

    def advance(self, n):
        for _ in range(n):
            x = torch.randn(8, 3, generator=self.rows).double()
            self.update.step(lambda x=x: self.losses(x))
            self.n += 1

    def state_dict(self):
        rows = {"rows": self.rows.get_state(), "torch": torch.get_rng_state(), "n": self.n}
        return {"net": self.net.state_dict(), "update": self.update.state_dict(), **rows}

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.update.load_state_dict(state["update"])
        self.rows.set_state(state["rows"])
        torch.set_rng_state(state["torch"])
        self.n = state["n"]


def step_of(kind, aggregator):
    return lambda optimizer, fabric: kind(optimizer, fabric, aggregator() if isinstance(aggregator, type) else aggregator)


class TestFeaturewisePCGradResumes(ResumeContract):
    def make(self):
        return Toy(PCGradRecipe(featurewise=True).update(), absent={(3, 1), (9, 0)}, dropout=0.2)

    def advance(self, thing, n):
        thing.advance(n)


class TestFeaturewiseNashMTLResumes(TestFeaturewisePCGradResumes):
    steps = 4

    def make(self):
        return Toy(NashMTLRecipe(featurewise=True, every=3).update(), absent={(1, 1), (6, 0)})


@pytest.mark.parametrize("rule", [mean, lambda matrix: torch.tensor([0.2, 0.3, 0.5][: len(matrix)]).double() @ matrix])
def test_a_linear_rule_gives_the_same_steps_at_features_and_at_weights(rule):
    ends = []
    for kind in (AggregatedStep, FeaturewiseStep):
        toy = Toy(step_of(kind, rule), absent={(4, 2)})
        toy.advance(10)
        ends.append(toy.net.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["PCGrad", "MGDA", "IMTLG", "AlignedMTL", "UPGrad"])
def test_any_rule_gives_the_same_step_where_the_trunk_is_linear_and_its_rows_orthonormal(name):
    # The gradient by the trunk's weights is then the one by its output, turned: lengths and angles are the same.
    aggregation = pytest.importorskip("torchjd.aggregation")
    if name == "UPGrad":
        pytest.importorskip("quadprog", reason="the extra torchjd-solvers is not installed")
    rows = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0][:4]
    labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    moved = []
    for kind in (AggregatedStep, FeaturewiseStep):
        torch.manual_seed(0)
        net = nn.Sequential()
        net.encoder, net.head = nn.Linear(5, 6, bias=False), nn.Linear(6, 3)
        net = net.double()
        step = kind(torch.optim.SGD(net.parameters(), lr=0.1), None, getattr(aggregation, name)())
        step.meet(net)
        torch.manual_seed(7)
        step.step(lambda net=net: (net(rows) - labels).square().mean(dim=0))
        moved.append(dict(net.state_dict()))
    for key, value in moved[0].items():
        torch.testing.assert_close(value, moved[1][key], rtol=1e-7, atol=1e-9)


def test_it_is_a_surrogate_elsewhere():
    torchjd = pytest.importorskip("torchjd.aggregation")
    ends = []
    for kind in (AggregatedStep, FeaturewiseStep):
        toy = Toy(step_of(kind, torchjd.MGDA))
        toy.advance(5)
        ends.append(toy.net.encoder[0].weight.detach())
    assert (ends[0] - ends[1]).abs().max() > 1e-3


def test_the_joined_direction_lowers_every_loss_as_a_function_of_the_features():
    toy = Toy(MGDARecipe(featurewise=True).update())
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(2)).double()
    z = toy.net.encoder(x)
    losses = (torch.nn.functional.linear(z, *toy.net._packed_heads(torch.cat)) - x).square().mean(dim=0)
    rows = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0].flatten() for loss in losses])
    assert (rows @ toy.update.aggregator(rows) > 0).all()


def test_heads_take_the_gradients_of_their_own_losses():
    toy, twin = Toy(step_of(FeaturewiseStep, mean)), Toy(step_of(AggregatedStep, mean))
    seen = []
    for each in (toy, twin):
        each.update.optimizer.register_step_pre_hook(
            lambda *_, each=each: seen.append([weight.grad.clone() for weight in each.net.heads.parameters()])
        )
        each.advance(1)
    for one, two in zip(*seen, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


def test_the_trunk_is_gone_through_once_whatever_the_number_of_tasks():
    toy, sizes = Toy(step_of(FeaturewiseStep, mean)), []

    def watch(_module, _inputs, output):
        output.register_hook(lambda grad: sizes.append(grad.numel()))

    toy.net.encoder[0].register_forward_hook(watch)
    toy.advance(2)
    # Numbers in the cotangents of its first layer of 6 units: of 8 rows, and not of 8 rows a task.
    assert sizes == [8 * 6] * 2


def test_nothing_is_left_on_the_net():
    toy = Toy(step_of(FeaturewiseStep, mean))
    toy.advance(2)
    assert not any(module._forward_hooks for module in toy.net.modules())


def test_a_batch_without_labels_moves_nothing():
    toy = Toy(step_of(FeaturewiseStep, mean), absent={(1, 0), (1, 1), (1, 2)})
    toy.advance(1)
    before = {key: value.clone() for key, value in toy.net.state_dict().items()}
    toy.advance(1)
    assert_same(before, dict(toy.net.state_dict()))


OPTIONS = FitOptions(max_steps=20, accelerator="cpu", learning_rate=1e-2, batch_size=32, patience=1000)


@pytest.mark.parametrize("make", [PCGradRecipe, MGDARecipe])
def test_recipes_serve_shared_rows_with_missing_labels(make, shared_parts):
    train, validation, test = shared_parts
    recipe = make(options=OPTIONS, featurewise=True)
    fits = [recipe.fit(train, validation, seed=0, budget=1) for _ in range(2)]
    np.testing.assert_array_equal(fits[0].validation_loss, fits[1].validation_loss)
    assert np.isfinite(fits[0].predictor.predict(test.X, range(train.n_tasks))).all()
    plain = make(options=OPTIONS).fit(train, validation, seed=0, budget=1)
    assert not np.array_equal(plain.validation_loss, fits[0].validation_loss)


def test_a_killed_fit_goes_on_to_the_bit(shared_parts, tmp_path):
    train, validation, _ = shared_parts

    def run(checkpoint, steps):
        net = new_net(MLP((8,), dropout=0.2), train.X.shape[1:], train.tasks, 0)
        options = FitOptions(max_steps=steps, patience=1000, accelerator="cpu", learning_rate=1e-2)
        update = PCGradRecipe(featurewise=True).update()
        return fit(net, train, validation, options=options, update=update, checkpoint=checkpoint).net.state_dict()

    whole = run(tmp_path / "whole.pt", 24)
    run(tmp_path / "parts.pt", 11)
    assert_same(dict(whole), dict(run(tmp_path / "parts.pt", 24)))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_train(precision, shared_parts):
    train, validation, _ = shared_parts
    options = FitOptions(max_steps=10, accelerator="cpu", learning_rate=1e-2, precision=precision)
    fitted = PCGradRecipe(options=options, featurewise=True).fit(train, validation, seed=0, budget=1)
    assert np.isfinite(fitted.validation_loss).all()


def test_tasks_with_own_rows_are_refused(own_parts):
    train, validation, _ = own_parts
    recipe = PCGradRecipe(featurewise=True)
    assert "leave `featurewise` out" in recipe.refuses(train)
    with pytest.raises(OptionError, match="`featurewise`=True of `pcgrad` needs tasks that share rows"):
        recipe.fit(train, validation, seed=0)
    assert not PCGradRecipe().refuses(train)


class Custom(nn.Module):
    """An encoder, something on the way, heads."""

    def __init__(self, way="plain"):
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.encoder, self.between, self.heads = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        z = self.encoder(x) if self.way != "never" else None
        if self.way == "twice":
            z = z + self.encoder(2 * x)
        if self.way == "never":
            z = nn.functional.linear(x, self.encoder.weight)
        if self.way == "between":
            z = self.between(z)
        past = self.encoder.weight.sum() if self.way == "past" else 0.0
        return self.heads(z) + past


@pytest.mark.parametrize(
    ("way", "match"),
    [
        ("twice", "`encoder` ran 2 times"),
        ("never", "`encoder` ran 0 times"),
        ("past", "lead past the output of `encoder`"),
        ("between", r"a weight of shape \(4, 4\) behind `encoder` is moved by several tasks"),
    ],
)
def test_a_net_that_the_trunk_does_not_serve_is_refused_before_anything_moves(way, match):
    net = Custom(way)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    step = FeaturewiseStep(torch.optim.Adam(net.parameters()), None, mean)
    step.meet(net)
    with pytest.raises(OptionError, match=match):
        step.step(lambda: net(torch.ones(5, 3)).square().mean(dim=0))
    assert_same(before, dict(net.state_dict()))


def test_a_trunk_that_does_not_learn_is_refused():
    net = Custom()
    for weight in net.encoder.parameters():
        weight.requires_grad_(False)
    step = FeaturewiseStep(torch.optim.Adam(net.heads.parameters()), None, mean)
    step.meet(net)
    with pytest.raises(OptionError, match="one tensor that hangs on parameters"):
        step.step(lambda: net(torch.ones(5, 3)).square().mean(dim=0))


def test_losses_of_different_rows_are_refused():
    net = Custom()
    step = FeaturewiseStep(torch.optim.Adam(net.parameters()), None, mean)
    step.meet(net)
    with pytest.raises(OptionError, match="no two tasks' gradients by features meet"):
        step.step(lambda: torch.stack([part.square().mean() for part in net(torch.ones(4, 3)).tensor_split(2)]))


def test_a_net_without_an_encoder_is_named(shared_parts):
    train, validation, _ = shared_parts

    def make(shape, tasks):
        return nn.Linear(shape[0], len(tasks))

    with pytest.raises(OptionError, match="a Linear without a module `encoder`: name the part"):
        PCGradRecipe(net=make, options=OPTIONS, featurewise=True).fit(train, validation, seed=0, budget=1)
    step = FeaturewiseStep(torch.optim.Adam(Custom().parameters()), None, mean)
    with pytest.raises(OptionError, match="`meet` was not called"):
        step.step(lambda: torch.ones(2))


def test_other_steps_do_not_mind_to_meet_the_net():
    net = Custom()
    step = SumStep(torch.optim.Adam(net.parameters()), None)
    step.meet(net)
    assert "encoder" not in vars(step)
