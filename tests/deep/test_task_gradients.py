"""Gradients of each task apart, the steps made of them, and the recipes that use them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.contracts import ResumeContract
from torch import nn

from taskloom.deep import (
    MLP,
    AdaTaskAdam,
    AdaTaskRecipe,
    AdaTaskStep,
    AggregatedStep,
    FitOptions,
    JointRecipe,
    PCGradRecipe,
    ScalarizedStep,
    SumStep,
    fit,
)
from taskloom.deep._aggregated_recipes import AlignedMTLRecipe, IMTLGRecipe, MGDARecipe
from taskloom.deep._fit import new_net
from taskloom.deep._scalarized_recipes import FAMORecipe, UWRecipe
from taskloom.deep._shared_weights import is_shared
from taskloom.deep._task_gradients import task_gradients
from taskloom.tasks import OptionError

OPTIONS = FitOptions(max_steps=30, accelerator="cpu", learning_rate=1e-2)
BALANCING = [AdaTaskRecipe, PCGradRecipe, MGDARecipe, AlignedMTLRecipe, IMTLGRecipe, UWRecipe, FAMORecipe]


class Toy:
    """A trunk, two heads in one layer, and fresh rows for every step."""

    def __init__(self, make, absent=()):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        self.rows = torch.Generator().manual_seed(1)
        self.update = make(torch.optim.Adam(self.net.parameters(), lr=1e-2), None)
        self.absent, self.n = absent, 0

    def losses(self, x):
        losses = (self.net(x) - x[:, :2]).square().mean(dim=0)
        gone = torch.tensor([(self.n, k) in self.absent for k in range(2)])
        return torch.where(gone, torch.nan, losses)

    def advance(self, n):
        for _ in range(n):
            x = torch.randn(6, 3, generator=self.rows)
            self.update.step(lambda x=x: self.losses(x))
            self.n += 1

    def state_dict(self):
        rows = self.rows.get_state()
        return {
            "net": self.net.state_dict(),
            "update": self.update.state_dict(),
            "rows": rows,
            "torch": torch.get_rng_state(),
            "n": self.n,
        }

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.update.load_state_dict(state["update"])
        self.rows.set_state(state["rows"])
        torch.set_rng_state(state["torch"])
        self.n = state["n"]


def aggregated(name):
    aggregation = pytest.importorskip("torchjd.aggregation", reason="the extra torchjd is not installed")
    return lambda optimizer, fabric: AggregatedStep(optimizer, fabric, getattr(aggregation, name)())


class TestAdaTaskStepResumes(ResumeContract):
    def make(self):
        return Toy(AdaTaskStep, absent={(3, 1), (9, 0)})

    def advance(self, thing, n):
        thing.advance(n)


class TestPCGradResumes(TestAdaTaskStepResumes):
    def make(self):
        return Toy(aggregated("PCGrad"))


class TestGradVacResumes(TestAdaTaskStepResumes):
    # An aggregator with a memory of its own.
    def make(self):
        return Toy(aggregated("GradVac"))


def scalarized(name):
    scalarization = pytest.importorskip("torchjd.scalarization", reason="the extra torchjd is not installed")
    return lambda optimizer, fabric: ScalarizedStep(optimizer, fabric, getattr(scalarization, name))


class TestUWResumes(TestAdaTaskStepResumes):
    def make(self):
        return Toy(scalarized("UW"), absent={(3, 1), (9, 0)})


class TestFAMOResumes(TestAdaTaskStepResumes):
    # A scalarizer with an optimizer of its own inside.
    def make(self):
        return Toy(scalarized("FAMO"), absent={(0, 1), (9, 0)})


def test_gradients_side_by_side_are_those_one_by_one():
    toy = Toy(SumStep)
    losses = toy.losses(torch.randn(6, 3))
    weights = list(toy.net.parameters())
    alone = [torch.autograd.grad(losses[k], weights, retain_graph=True) for k in range(2)]
    together = task_gradients(losses, weights)
    for k in range(2):
        for jac, grad in zip(together, alone[k], strict=True):
            torch.testing.assert_close(jac[k], grad)


def test_heads_are_told_from_the_trunk():
    toy = Toy(SumStep)
    found = task_gradients(toy.losses(torch.randn(6, 3)), list(toy.net.parameters()))
    assert [is_shared(jac) for jac in found] == [True, True, False, False]


def test_adatasks_step_is_its_optimizer_fed_by_hand():
    toy, hand = Toy(AdaTaskStep), Toy(SumStep)
    groups = [{"params": hand.net[0].parameters()}, {"params": hand.net[2].parameters(), "shared": False}]
    optimizer = AdaTaskAdam(groups, 2, lr=1e-2)
    for _ in range(5):
        toy.advance(1)
        losses = hand.losses(torch.randn(6, 3, generator=hand.rows))
        optimizer.backward([losses[0], losses[1]])
        optimizer.step()
        optimizer.zero_grad()
    for one, two in zip(toy.net.parameters(), hand.net.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


def test_a_sum_of_gradients_is_the_plain_step():
    plain, summed = (
        Toy(PlainSum),
        Toy(lambda optimizer, fabric: AggregatedStep(optimizer, fabric, lambda matrix: matrix.sum(0))),
    )
    for toy in (plain, summed):
        toy.advance(10)
    for one, two in zip(plain.net.parameters(), summed.net.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


class PlainSum(SumStep):
    """The plain sum, without a fabric."""

    def step(self, closure):
        self.optimizer.zero_grad()
        losses = closure()
        losses.nansum().backward()
        self.optimizer.step()
        return losses.detach()


def test_a_batch_without_labels_moves_nothing():
    toy = Toy(AdaTaskStep, absent={(1, 0), (1, 1)})
    toy.advance(1)
    before = [weight.clone() for weight in toy.net.parameters()]
    toy.advance(1)
    for old, new in zip(before, toy.net.parameters(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("recipe", BALANCING)
@pytest.mark.parametrize("parts", ["shared_parts", "own_parts", "digit_parts"])
def test_recipes_serve_every_shape_of_data(recipe, parts, request):
    if recipe is not AdaTaskRecipe:
        pytest.importorskip("torchjd", reason="the extra torchjd is not installed")
    train, validation, test = request.getfixturevalue(parts)
    result = recipe(options=OPTIONS).fit(train, validation, seed=0, budget=1)
    assert np.isfinite(result.validation_loss).all()
    again = recipe(options=OPTIONS).fit(train, validation, seed=0, budget=1)
    np.testing.assert_array_equal(result.validation_loss, again.validation_loss)
    for t in range(train.n_tasks):
        assert np.isfinite(result.predictor.predict(test.X[test.rows(t)], [t])[0]).all()


@pytest.mark.parametrize("name", ["AdaTask", "PCGrad", "GradVac"])
def test_a_fit_that_was_killed_goes_on_to_the_bit(name, shared_parts, tmp_path):
    train, validation, _ = shared_parts
    make = AdaTaskStep if name == "AdaTask" else aggregated(name)

    class Killed(Exception):  # noqa: N818
        pass

    def killed_at_13(optimizer, fabric):
        step, n = make(optimizer, fabric), iter(range(13))
        inner = step.step

        def counted(closure):
            if next(n, None) is None:
                raise Killed
            return inner(closure)

        step.step = counted
        return step

    def run(checkpoint, update):
        net = new_net(MLP((8,), dropout=0.2), train.X.shape[1:], train.tasks, 0)
        options = FitOptions(max_steps=25, patience=1000, accelerator="cpu", learning_rate=1e-2, checkpoint_every=5)
        result = fit(net, train, validation, options=options, update=update, checkpoint=checkpoint)
        return result.net.state_dict()

    whole = run(tmp_path / "whole.pt", make)
    with pytest.raises(Killed):
        run(tmp_path / "parts.pt", killed_at_13)
    resumed = run(tmp_path / "parts.pt", make)
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key


def test_adatask_does_not_hear_the_scale_of_a_loss():
    def trained(make, factor):
        toy = Toy(make)
        plain = toy.losses
        toy.losses = lambda x: plain(x) * torch.tensor([1.0, factor])
        toy.advance(30)
        return torch.cat([weight.detach().flatten() for weight in toy.net.parameters()])

    start = torch.cat([weight.detach().flatten() for weight in Toy(SumStep).net.parameters()])
    moved = {make: (trained(make, 1.0) - trained(make, 100.0)).norm() for make in (AdaTaskStep, PlainSum)}
    assert moved[AdaTaskStep] < 1e-3 * (trained(AdaTaskStep, 1.0) - start).norm()
    assert moved[PlainSum] > 0.05 * (trained(PlainSum, 1.0) - start).norm()


@pytest.mark.parametrize("recipe", [AdaTaskRecipe, PCGradRecipe, UWRecipe])
def test_mixed_precision_trains_to_about_the_same(recipe, shared_parts):
    if recipe is not AdaTaskRecipe:
        pytest.importorskip("torchjd", reason="the extra torchjd is not installed")
    train, validation, _ = shared_parts
    losses = [
        recipe(options=replace(OPTIONS, precision=precision)).fit(train, validation, seed=0, budget=1).validation_loss.mean()
        for precision in ("bf16-mixed", "32-true")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


def test_scaled_losses_are_refused():
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu")
    fabric = Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))])
    with pytest.raises(OptionError, match="take 'bf16-mixed'"):
        AdaTaskStep(optimizer, fabric)


def test_bad_settings_are_named():
    with pytest.raises(OptionError, match="`reduction`='total'"):
        AdaTaskRecipe(reduction="total")


def test_without_torchjd_the_recipe_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(OptionError, match=r"needs torchjd; install taskloom\[torchjd\]"):
        PCGradRecipe()


def test_recipes_have_a_baseline_of_the_same_net():
    assert AdaTaskRecipe(net=MLP((8,))).baseline().net == MLP((8,))
    assert AdaTaskRecipe().settings() != JointRecipe().settings()
