"""What several tasks share is found however late a gradient shows it, and the steps that hang on it go on from there."""

import math
from functools import partial

import pytest
import torch
from tests.contracts import ResumeContract
from tests.deep.test_task_gradients import PlainSum, Toy
from torch import nn

from taskloom.deep import (
    AdaTaskAdam,
    AdaTaskStep,
    AggregatedStep,
    FeaturewiseStep,
    FitOptions,
    SharedBottom,
    SumStep,
    fit,
)
from taskloom.deep._dominance_step import MeteredStep
from taskloom.deep._shared_weights import CLOSE_LOOKS, SharedWeights
from taskloom.tasks import DataError, OptionError, Task

TASKS = [Task("a"), Task("b")]


def longest(matrix):
    """An aggregator that is not linear: the longest row."""
    return matrix[matrix.norm(dim=1).argmax()]


def joined(optimizer, fabric):
    return AggregatedStep(optimizer, fabric, longest)


class ZeroToy(Toy):
    """A net whose heads begin at zero, so that nothing reaches the trunk in the first batch."""

    def __init__(self, make, absent=()):
        super().__init__(make, absent)
        nn.init.zeros_(self.net[2].weight)


class Branch(nn.Module):
    """A shared branch whose scale begins at zero, as in ReZero."""

    def __init__(self):
        super().__init__()
        self.trunk, self.branch, self.heads = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        z = self.trunk(x).tanh()
        return self.heads(z + self.scale * self.branch(z).tanh())


class BranchToy(Toy):
    def __init__(self, make, absent=()):
        super().__init__(lambda optimizer, fabric: None, absent)
        torch.manual_seed(0)
        self.net = Branch()
        self.update = make(torch.optim.Adam(self.net.parameters(), lr=1e-2), None)


@pytest.mark.parametrize("make", [AdaTaskStep, joined])
@pytest.mark.parametrize(
    ("toy", "first", "then"),
    [
        (Toy, [True, True, False, False], [True, True, False, False]),
        (ZeroToy, [False] * 4, [True, True, False, False]),
        (BranchToy, [True, True, True, False, False, False, False], [True] * 5 + [False] * 2),
    ],
)
def test_what_zeros_hide_at_first_is_found_in_the_next_batch(toy, first, then, make):
    training = toy(make)
    training.advance(1)
    by_name = dict(zip([id(weight) for weight in training.update.parameters], training.update.shared, strict=True))
    if toy is BranchToy:
        net = training.net
        order = [net.trunk.weight, net.trunk.bias, net.scale, net.branch.weight, net.branch.bias, *net.heads.parameters()]
    else:
        order = list(training.net.parameters())
    assert [by_name[id(weight)] for weight in order] == first
    training.advance(1)
    by_name = dict(zip([id(weight) for weight in training.update.parameters], training.update.shared, strict=True))
    assert [by_name[id(weight)] for weight in order] == then


@pytest.mark.parametrize("make", [AdaTaskStep, joined])
def test_heads_that_begin_at_zero_do_not_make_a_step_the_plain_sum(make):
    ours, plain = ZeroToy(make), ZeroToy(PlainSum)
    for toy in (ours, plain):
        toy.advance(40)
    apart = max(float((a - b).detach().abs().max()) for a, b in zip(ours.net.parameters(), plain.net.parameters(), strict=True))
    assert apart > 0.01


def test_fit_with_heads_that_begin_at_zero_is_not_joint(shared_parts):
    train, validation, _ = shared_parts
    ends = []
    for update in (SumStep, AdaTaskStep, joined):
        torch.manual_seed(0)
        net = SharedBottom(train.X.shape[1], train.tasks, hidden=(8,))
        for head in net.heads:
            nn.init.zeros_(head.weight)
        options = FitOptions(max_steps=30, accelerator="cpu", learning_rate=1e-2)
        fit(net, train, validation, options=options, update=update)
        ends.append(nn.utils.parameters_to_vector(net.parameters()).detach())
    assert float((ends[1] - ends[0]).abs().max()) > 0.01
    assert float((ends[2] - ends[0]).abs().max()) > 0.01


def test_a_trunk_that_one_task_moved_alone_keeps_its_moments_when_the_second_comes():
    toy, hand = Toy(AdaTaskStep, absent={(n, 1) for n in range(4)}), Toy(SumStep)
    groups = [{"params": hand.net[0].parameters()}, {"params": hand.net[2].parameters(), "shared": False}]
    optimizer = AdaTaskAdam(groups, 2, lr=1e-2)
    for n in range(8):
        toy.advance(1)
        assert toy.update.shared[:2] == [n >= 4] * 2
        losses = hand.losses(torch.randn(6, 3, generator=hand.rows))
        optimizer.backward([losses[0], losses[1] if n >= 4 else None])
        optimizer.step()
        optimizer.zero_grad()
    for one, two in zip(toy.net.parameters(), hand.net.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
    assert [float(toy.update.adatask.state[toy.net[0].weight][f"step_{k}"]) for k in range(2)] == [8, 4]


class TestLateTrunkResumes(ResumeContract):
    def make(self):
        return ZeroToy(AdaTaskStep, absent={(n, 1) for n in range(3)})

    def advance(self, thing, n):
        thing.advance(n)


class TestLateTrunkOfAnAggregatorResumes(TestLateTrunkResumes):
    def make(self):
        return ZeroToy(joined, absent={(n, 1) for n in range(3)})


def test_looks_become_rare_and_begin_anew_with_a_new_task_or_a_thawed_parameter():
    weights = [torch.ones(2, requires_grad=True), torch.ones(2)]
    finder = SharedWeights(weights)
    looks = [n for n in range(1, 70) if finder.is_due([0])]
    assert looks == [*range(1, CLOSE_LOOKS + 1), 16, 32, 64]
    assert finder.is_due([0, 1])
    assert [finder.is_due([1]) for _ in range(CLOSE_LOOKS)] == [True] * (CLOSE_LOOKS - 1) + [False]
    weights[1].requires_grad_(True)
    assert finder.is_due([0])


def test_one_task_in_all_shares_what_it_moves():
    weight, idle = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    finder = SharedWeights([weight, idle])
    finder.look([[torch.ones(2), None]], [0], 1)
    assert finder.shared == [True, False]


def test_frozen_parameters_stay_and_may_be_thawed():
    toy = Toy(joined)
    toy.net[0].bias.requires_grad_(False)
    before = toy.net[0].bias.clone()
    toy.advance(3)
    assert torch.equal(toy.net[0].bias, before)
    assert toy.update.shared == [True, False, False, False]
    toy.net[0].bias.requires_grad_(True)
    toy.advance(1)
    assert not torch.equal(toy.net[0].bias, before)
    assert toy.update.shared == [True, True, False, False]


@pytest.mark.parametrize("make", [AdaTaskStep, joined])
def test_the_learning_rate_of_the_moment_is_taken(make):
    toy = Toy(make)
    schedule = torch.optim.lr_scheduler.StepLR(toy.update.optimizer, 1, gamma=0.0)
    toy.advance(2)
    schedule.step()
    before = [weight.clone() for weight in toy.net.parameters()]
    toy.advance(2)
    for old, new in zip(before, toy.net.parameters(), strict=True):
        assert torch.equal(old, new)


def test_each_group_of_the_outer_optimizer_has_its_own_rate_in_adatask():
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    groups = [{"params": net[0].parameters(), "lr": 0.0}, {"params": net[1].parameters()}]
    step, before = AdaTaskStep(torch.optim.Adam(groups, lr=1e-2), None), net[0].weight.clone()
    step.step(lambda: net(torch.ones(4, 3)).square().mean(dim=0))
    assert torch.equal(net[0].weight, before)
    assert step.shared == [True, True, False, False]


class Featurewise:
    def __init__(self, is_masked=False):
        torch.manual_seed(0)
        self.net = SharedBottom(3, TASKS, hidden=(4,))
        self.step = FeaturewiseStep(torch.optim.Adam(self.net.parameters(), lr=1e-2), None, longest)
        self.step.meet(self.net)

    def advance(self, losses_of=lambda outputs, x: (outputs - x[:, :2]).square().mean(dim=0)):
        x = torch.randn(6, 3)
        return self.step.step(lambda: losses_of(self.net(x), x))


def test_featurewise_takes_heads_that_begin_at_zero_and_looks_at_the_features_later():
    training = Featurewise()
    for head in training.net.heads:
        nn.init.zeros_(head.weight)
    training.advance()
    training.advance()
    with torch.no_grad():
        for head in training.net.heads:
            head.weight.zero_()
    apart = Featurewise()
    for head in apart.net.heads:
        nn.init.zeros_(head.weight)

    def own_rows(outputs, x):
        return torch.stack([(outputs[:3, 0] - x[:3, 0]).square().mean(), (outputs[3:, 1] - x[3:, 1]).square().mean()])

    apart.advance(own_rows)
    with pytest.raises(OptionError, match="needs tasks that share rows"):
        apart.advance(own_rows)


def test_the_meter_waits_for_a_branch_that_a_zero_hides():
    for make in (PlainSum, AdaTaskStep):
        toy = BranchToy(make)
        names = dict(toy.net.named_parameters())
        toy.update = MeteredStep(toy.update, toy.update.optimizer, names, every=1)
        toy.advance(4)
        assert list(toy.update.meter.layers) == [name for name in names if not name.startswith("heads")]


STEPS = {
    "adatask": lambda: Toy(AdaTaskStep),
    "aggregated": lambda: Toy(joined),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_loss_that_is_nan_for_an_absent_task_and_poisons_the_others_is_refused_before_anything_moves(name):
    toy = STEPS[name]()
    toy.advance(2)
    before = [weight.clone() for weight in toy.net.parameters()]
    x = torch.randn(6, 3)
    labels = x[:, :2].clone()
    labels[:, 1] = math.nan
    with pytest.raises(DataError, match=r"that of `1`, NaN for an absent task.*torch.where"):
        toy.update.step(lambda: (toy.net(x) - labels).square().mean(dim=0))
    for old, new in zip(before, toy.net.parameters(), strict=True):
        assert torch.equal(old, new)
    toy.absent = {(2, 1)}
    toy.advance(1)
    assert all(weight.isfinite().all() for weight in toy.net.parameters())


def test_featurewise_refuses_poisoned_gradients_too():
    training = Featurewise()

    def poisoned(outputs, x):
        return (outputs - torch.cat([x[:, :1], x[:, :1] * math.nan], dim=1)).square().mean(dim=0)

    with pytest.raises(DataError, match="that of `1`, NaN"):
        training.advance(poisoned)
    training.advance()


def test_the_sum_needs_no_fabric():
    nets = []
    for make in (PlainSum, SumStep):
        toy = Toy(make, absent={(1, 0)})
        toy.advance(3)
        nets.append(nn.utils.parameters_to_vector(toy.net.parameters()).detach())
    assert torch.equal(*nets)


def test_the_variances_of_uncertainty_weighting_learn_at_the_rate_of_the_moment():
    scalarization = pytest.importorskip("torchjd.scalarization", reason="the extra torchjd is not installed")
    from taskloom.deep import ScalarizedStep

    toy = Toy(partial(ScalarizedStep, make=scalarization.UW))
    toy.advance(1)
    for group in toy.update.optimizer.param_groups:
        group["lr"] = 0.0
    before = [weight.clone() for weight in toy.update.scalarizer.parameters()]
    toy.advance(2)
    assert before
    assert all(torch.equal(old, new) for old, new in zip(before, toy.update.scalarizer.parameters(), strict=True))
