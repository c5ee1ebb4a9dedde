"""Steps that selective updates are held against: the same machinery with other groups."""

from functools import partial

import numpy as np
import pytest
import torch
from tests.contracts import ResumeContract

from taskloom.deep import (
    MLP,
    CycledGroups,
    FitOptions,
    FixedGroups,
    GroupPasses,
    RandomGroups,
    RepeatedStep,
    Singletons,
    StepCosts,
    SumStep,
    fit,
)
from taskloom.deep._fit import new_net
from taskloom.tasks import OptionError, UnknownNameError


class Toy:
    """Five tasks with a weight each and one that they share; what each pass saw and moved is noted."""

    def __init__(self, make, rate=0.01):
        torch.manual_seed(0)
        self.trunk = torch.randn(3, requires_grad=True)
        self.heads = [torch.randn(3, requires_grad=True) for _ in range(5)]
        self.optimizer = torch.optim.Adam([self.trunk, *self.heads], lr=rate)
        self.step = make(self.optimizer)
        self.moved, self.forwards = [], 0
        self.optimizer.register_step_pre_hook(lambda *_: self.moved[-1].append(self.active()))

    def active(self):
        return {k for k, head in enumerate(self.heads) if head.grad is not None}

    def losses(self):
        self.forwards += 1
        return torch.stack([(self.trunk + head - k).square().mean() for k, head in enumerate(self.heads)])

    def advance(self, n):
        for _ in range(n):
            self.moved.append([])
            self.step.step(self.losses)
        return self

    def weights(self):
        return [self.trunk.detach().clone(), *(head.detach().clone() for head in self.heads)]

    def state_dict(self):
        return {"weights": self.weights(), "step": self.step.state_dict()}

    def load_state_dict(self, state):
        with torch.no_grad():
            for weight, value in zip([self.trunk, *self.heads], state["weights"], strict=True):
                weight.copy_(value)
        self.step.load_state_dict(state["step"])


MAKES = {
    "repeated": partial(RepeatedStep, times=3),
    "random": partial(RandomGroups, n_groups=2, warmup=3),
    "singletons": Singletons,
    "fixed": partial(FixedGroups, groups=[[0, 3], [1, 2, 4]]),
    "cycled": partial(CycledGroups, groups=[[0, 3], [1, 2, 4]], warmup=2),
}


class TestRepeatedResumes(ResumeContract):
    which = "repeated"

    def make(self):
        return Toy(MAKES[self.which])

    def advance(self, thing, n):
        thing.advance(n)


class TestRandomResumes(TestRepeatedResumes):
    which = "random"


class TestSingletonsResume(TestRepeatedResumes):
    which = "singletons"


class TestFixedResumes(TestRepeatedResumes):
    which = "fixed"


class TestCycledResumes(TestRepeatedResumes):
    which = "cycled"


def test_repeated_is_a_plain_step_as_often():
    toy = Toy(MAKES["repeated"]).advance(4)
    plain = Toy(lambda optimizer: SumStep(optimizer, FakeFabric()))
    plain.advance(12)
    for one, two in zip(toy.weights(), plain.weights(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
    assert toy.forwards == toy.step.costs.updates == 12


class FakeFabric:
    """Goes back as a fabric on one device does."""

    def backward(self, loss):
        loss.backward()


def test_random_groups_cover_all_tasks_evenly_in_another_way_each_time():
    toy = Toy(MAKES["random"]).advance(40)
    assert all(sorted(map(len, batch)) == [1] * 5 for batch in toy.moved[:3])
    assert all(sorted(map(len, batch)) == [2, 3] for batch in toy.moved[3:])
    assert all(set().union(*batch) == set(range(5)) for batch in toy.moved)
    assert len({str(sorted(map(sorted, batch))) for batch in toy.moved[3:]}) > 8
    assert sorted(k for group in toy.step.groups for k in group) == list(range(5))


def test_the_number_of_random_groups_may_follow_that_of_another_step():
    toy = Toy(partial(RandomGroups, n_groups=[3, 1, 2], warmup=0)).advance(5)
    assert [len(batch) for batch in toy.moved] == [3, 1, 2, 2, 2]
    again = Toy(partial(RepeatedStep, times=[3, 1, 2])).advance(5)
    assert [len(batch) for batch in again.moved] == [3, 1, 2, 2, 2]


def test_singletons_take_turns_in_a_random_order():
    toy = Toy(MAKES["singletons"]).advance(10)
    assert all(sorted(k for group in batch for k in group) == list(range(5)) for batch in toy.moved)
    assert len({str(batch) for batch in toy.moved}) > 5


def test_fixed_groups_are_those_given():
    toy = Toy(partial(FixedGroups, groups=[["e"], ["a", "c", "b", "d"]], tasks=["a", "b", "c", "d", "e"])).advance(6)
    assert all(sorted(map(sorted, batch)) == [[0, 1, 2, 3], [4]] for batch in toy.moved)
    assert {str(batch) for batch in toy.moved} == {"[{4}, {0, 1, 2, 3}]", "[{0, 1, 2, 3}, {4}]"}
    assert toy.step.groups == [{"e"}, {"a", "b", "c", "d"}]


def test_cycled_groups_have_one_turn_in_every_round():
    toy = Toy(MAKES["cycled"]).advance(22)
    assert all(len(batch) == 5 for batch in toy.moved[:2])
    turns = toy.moved[2:]
    assert all(len(batch) == 1 for batch in turns)
    for round_ in range(10):
        assert sorted(map(sorted, (turns[2 * round_][0], turns[2 * round_ + 1][0]))) == [[0, 3], [1, 2, 4]]
    assert toy.step.costs == StepCosts(batches=22, updates=30, forwards=30.0, backwards=30.0)
    assert toy.step.costs.trunk_passes() == 90


def test_a_group_without_labels_is_passed_over_and_costs_nothing():
    toy = Toy(MAKES["fixed"])
    plain = toy.losses
    toy.losses = lambda: torch.where(torch.tensor([True, False, False, True, False]), torch.nan, plain())
    toy.advance(5)
    assert toy.moved == [[{1, 2, 4}]] * 5
    assert toy.forwards == 5


def test_a_batch_without_any_labels_moves_nothing():
    toy = Toy(MAKES["singletons"]).advance(2)
    before, plain = toy.weights(), toy.losses
    toy.losses = lambda: plain() * torch.nan
    toy.advance(1)
    assert all(torch.equal(one, two) for one, two in zip(before, toy.weights(), strict=True))


@pytest.mark.parametrize("which", MAKES)
def test_they_serve_a_fit(which, shared_parts):
    train, validation, _ = shared_parts
    named = {"fixed": [[0, 3], [1, 2, 4, 5, 6]], "cycled": [[0, 3], [1, 2, 4, 5, 6]]}
    make = MAKES[which]
    if which in named:
        make = partial(make, groups=named[which])
    options = FitOptions(max_steps=15, accelerator="cpu", learning_rate=1e-2)
    ends = [
        fit(new_net(MLP((8,)), train.X.shape[1:], train.tasks, 0), train, validation, options=options, update=make)
        for _ in range(2)
    ]
    assert np.isfinite(ends[0].validation_loss).all()
    np.testing.assert_array_equal(ends[0].validation_loss, ends[1].validation_loss)


@pytest.mark.parametrize(
    ("make", "kind", "match"),
    [
        (partial(RepeatedStep, times=0), OptionError, "`times`=0"),
        (partial(RepeatedStep, times=2.5), OptionError, "`times`=2.5: give a whole number"),
        (partial(RepeatedStep, times=[2, 2.5]), OptionError, "`times`"),
        (partial(RepeatedStep, times=True), OptionError, "`times`=True"),
        (partial(RandomGroups, warmup=float("nan")), OptionError, "`warmup`=nan"),
        (partial(RandomGroups, n_groups=[2, 0]), OptionError, "`n_groups`"),
        (partial(RandomGroups, n_groups=[]), OptionError, "`n_groups`"),
        (partial(RandomGroups, warmup=-1), OptionError, "`warmup`=-1"),
        (FixedGroups, OptionError, "`groups`"),
        (partial(FixedGroups, groups=[[0, 1], [1, 2]]), OptionError, "each of the 4 tasks"),
        (partial(FixedGroups, groups=[[0], [0]], tasks=2), OptionError, "`groups`"),
        (partial(FixedGroups, groups=[[0, 1], []], tasks=2), OptionError, "`groups`"),
        (partial(FixedGroups, groups=[["a", "x"]], tasks=["a", "b"]), UnknownNameError, "`x`"),
        (partial(Singletons, passes=GroupPasses(scaler=object()), fabric=object()), OptionError, "`scaler` beside"),
    ],
)
def test_what_makes_no_sense_is_refused(make, kind, match):
    with pytest.raises(kind, match=match):
        make(torch.optim.Adam([torch.zeros(2, requires_grad=True)]))
