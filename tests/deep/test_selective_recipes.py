"""Recipes of selective updates and their controls, and what a training costs."""

import json
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from tests.conftest import encoded_parts
from torch import nn

from taskloom.deep import (
    MLP,
    AdaTaskRecipe,
    FitOptions,
    JointRecipe,
    JointXMRecipe,
    RandomGroupsRecipe,
    SelectiveGroups,
    SelectiveOptions,
    SelectiveRecipe,
    SingleRecipe,
    SumStep,
    UpdateStep,
    fit,
    new_net,
)
from taskloom.deep._flops import trunk_flops
from taskloom.deep._selective_recipes import EFFECT, CountedStep, group_history
from taskloom.tasks import OptionError, Task, TaskData

# Every batch is looked at, so that a curve tells how many updates each of them took.
FAST = FitOptions(max_steps=40, validate_every=1, patience=1000, batch_size=16, accelerator="cpu", learning_rate=3e-3)
HOW = {"net": MLP((8,)), "options": FAST, "warmup": 10, "regroup_every": 10, "beta": 0.05}
RATE = 3e-3


def shared_parts(missing=0.0, n_tasks=5):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(160, 6))
    truth = rng.normal(size=(6, 2))[:, [0, 0, 0, 1, 1][:n_tasks]]
    Y = np.tanh(X @ truth) + 0.3 * rng.normal(size=(160, n_tasks))
    Y[rng.random(Y.shape) < missing] = np.nan
    return encoded_parts(TaskData.shared_rows(X, Y))[:2]


@pytest.fixture(params=["shared", "shared with gaps", "own"])
def parts(request, own_parts):
    return own_parts[:2] if request.param == "own" else shared_parts(missing=0.2 if "gaps" in request.param else 0.0)


def steps_by_look(candidate):
    return list(candidate.found["curves"][0].steps)


@pytest.mark.parametrize("kind", [JointXMRecipe, RandomGroupsRecipe])
def test_a_control_makes_on_every_batch_the_steps_of_its_selective_run(kind, parts):
    selective = SelectiveRecipe(**HOW)
    updates = selective.selective_run(*parts, seed=2, rate=RATE)[1].updates
    assert len(set(updates)) > 1, "a run in which groups never change shows nothing"
    control = kind(**HOW).try_rate(*parts, seed=2, rate=RATE)
    assert steps_by_look(control) == [0, *np.cumsum(updates).tolist()]
    assert control.steps == sum(updates) == selective.try_rate(*parts, seed=2, rate=RATE).steps
    assert f"{sum(updates):,} in all" in control.found["notes"][0]


def test_a_control_trains_for_as_many_batches_as_a_run_that_validation_ended():
    parts = shared_parts()
    how = HOW | {"options": replace(FAST, patience=3, max_steps=400, learning_rate=0.05)}
    fitted = SelectiveRecipe(**how).fit(*parts, seed=0, budget=1)
    assert fitted.batches < 400
    for kind in (JointXMRecipe, RandomGroupsRecipe):
        control = kind(**how).fit(*parts, seed=0, budget=1)
        assert (control.batches, control.steps) == (fitted.batches, fitted.steps)


def test_selective_is_selective_groups_in_the_fit_loop(parts):
    recipe = SelectiveRecipe(**HOW)
    fitted = recipe.fit(*parts, seed=4)
    net = new_net(recipe.net, parts[0].X.shape[1:], parts[0].tasks, 4)
    step = partial(SelectiveGroups, seed=4, warmup=10, regroup_every=10, beta=0.05)
    found = fit(net, *parts, options=FAST, seed=4, update=step)
    assert np.array_equal(fitted.validation_loss, found.validation_loss)
    again = recipe.fit(*parts, seed=4)
    assert np.array_equal(again.validation_loss, fitted.validation_loss)
    assert again.group_history == fitted.group_history
    assert not np.array_equal(recipe.fit(*parts, seed=5).validation_loss, fitted.validation_loss)


def test_a_fixed_number_needs_no_selective_run():
    parts = shared_parts()
    one = JointXMRecipe(**HOW, times=1).fit(*parts, seed=0)
    joint = JointRecipe(HOW["net"], FAST).fit(*parts, seed=0)
    np.testing.assert_allclose(one.validation_loss, joint.validation_loss, rtol=1e-4)
    assert (one.steps, one.notes) == (joint.steps, [])
    thrice = JointXMRecipe(**HOW, times=3).fit(*parts, seed=0)
    assert (thrice.steps, thrice.batches) == (120, 40)
    random = RandomGroupsRecipe(**HOW, n_groups=2).fit(*parts, seed=0)
    assert random.steps == 10 * 5 + 30 * 2
    weights = torch.ones(5, requires_grad=True)
    for recipe, updates in ((JointXMRecipe(times=3), 3), (RandomGroupsRecipe(n_groups=2, warmup=0), 2), (SelectiveRecipe(), 5)):
        step = recipe.update()(torch.optim.SGD([weights], lr=0.1), None)
        step.step(weights.square)
        assert step.costs.updates == updates
    assert random.chosen == {"learning_rate": RATE, "updates_per_batch": round(110 / 40, 3)}


def test_the_learning_rate_is_chosen_and_steps_of_all_candidates_are_counted():
    parts = shared_parts()
    recipe = SelectiveRecipe(**HOW | {"options": replace(FAST, learning_rate=None, learning_rates=(1e-5, 1e-2))})
    fitted = recipe.fit(*parts, seed=0, budget=2)
    tried = [recipe.try_rate(*parts, 0, rate) for rate in (1e-5, 1e-2)]
    assert fitted.chosen["learning_rate"] == 1e-2
    assert fitted.total_steps == sum(one.steps for one in tried)
    assert fitted.steps == tried[1].steps
    assert fitted.group_history == tried[1].found["group_history"] != tried[0].found["group_history"]


def test_controls_are_of_the_same_net_and_settings():
    groups = SelectiveOptions(preference=0.0, common_randomness=False)
    recipe = SelectiveRecipe(**HOW, groups=groups, title="mine")
    controls = recipe.controls()
    assert list(controls) == ["at equal batches", "at equal steps", "at equal steps, groups at random"]
    assert [control.label for control in controls.values()] == ["joint", "joint-xM", "random-groups"]
    assert controls["at equal batches"] == JointRecipe(HOW["net"], FAST)
    for control in list(controls.values())[1:]:
        assert (control.net, control.options, control.beta, control.warmup) == (HOW["net"], FAST, 0.05, 10)
        assert control.groups == groups
        assert control.controls() == {}
    assert not any(kind.by_default for kind in (SelectiveRecipe, JointXMRecipe, RandomGroupsRecipe))


def test_controls_go_through_the_net_as_the_published_code_does_where_that_is_asked_for():
    plain, published = (RandomGroupsRecipe(**HOW, groups=SelectiveOptions(compat=compat)) for compat in (None, "official"))
    assert (plain._passes(3).common_randomness, plain._passes(3).freeze_heads, plain._passes(3).seed) == (True, True, 3)
    assert (published._passes(3).common_randomness, published._passes(3).freeze_heads) == (False, False)


def test_counting_changes_nothing_and_survives_a_stop():
    def make():
        torch.manual_seed(0)
        weight = torch.randn(3, requires_grad=True)
        return weight, CountedStep(SelectiveGroups(torch.optim.SGD([weight], lr=0.1), warmup=3, regroup_every=3))

    def advance(weight, step, n):
        for _ in range(n):
            step.step(lambda: torch.square(weight - torch.arange(3)))

    (weight, whole), (other, first) = make(), make()
    advance(weight, whole, 12)
    advance(other, first, 6)
    again, second = make()
    with torch.no_grad():
        again.copy_(other)
    second.load_state_dict(first.state_dict())
    advance(again, second, 6)
    assert second.updates == whole.updates
    assert sum(whole.updates) == whole.inner.costs.updates
    assert torch.equal(again, weight)


def test_the_history_is_of_receivers_in_rows_and_small_enough_to_keep():
    fitted = SelectiveRecipe(**HOW).fit(*shared_parts(), seed=0)
    found, counted = SelectiveRecipe(**HOW).selective_run(*shared_parts(), 0, RATE)
    step = counted.inner
    history = fitted.group_history
    assert [point["batch"] for point in history] == [0, 10, 20, 30, found.steps]
    assert history[0] == {"batch": 0, "groups": [0, 1, 2, 3, 4]}
    last = history[-1]
    np.testing.assert_allclose(last["affinity"], step.affinity.T, rtol=1e-3)
    assert [{k for k in range(5) if last["groups"][k] == g} for g in range(max(last["groups"]) + 1)] == step.groups
    relation = fitted.relations[EFFECT]
    assert np.abs(relation).max() <= 1
    own = np.diag(step.affinity)
    inside = (own > np.median(own) / 5)[:, None] & (np.abs(step.affinity.T / own[:, None]) < 1)
    np.testing.assert_allclose(relation[inside], (step.affinity.T / own[:, None])[inside])


@pytest.mark.parametrize(("warmup", "rate"), [(10, RATE), (100, RATE), (39, 0.5)])
def test_weights_that_are_kept_from_before_there_were_groups_are_told(warmup, rate):
    how = HOW | {"warmup": warmup, "options": replace(FAST, learning_rate=rate)}
    fitted = SelectiveRecipe(**how).fit(*shared_parts(), seed=0)
    best = int(np.argmin(fitted.curves[0].losses))
    assert fitted.chosen["kept_after_batches"] == best
    told = f"The weights that were kept are those after {best} batches, before groups were first made"
    assert [note[: len(told)] for note in fitted.notes] == ([told] if best <= warmup else [])
    assert bool(fitted.notes) == (warmup > 10) or warmup == 39


def test_a_long_history_of_many_tasks_is_thinned_and_ends_with_the_end():
    weight = torch.ones(40, requires_grad=True)
    step = SelectiveGroups(torch.optim.SGD([weight], lr=1e-3), warmup=1, regroup_every=1, seed=0)
    for _ in range(90):
        step.step(lambda: torch.square(weight - torch.arange(40.0)))
    history = group_history(step)
    assert len(history) == 60
    assert [history[0]["batch"], history[1]["batch"], history[-1]["batch"]] == [0, 1, 90]
    kept = [point["batch"] for point in history if "affinity" in point]
    assert kept[-1] == 90
    assert len(kept) == 6000 // 40**2
    assert len(json.dumps(history, allow_nan=False)) < 100_000


def test_flops_are_those_counted_by_hand():
    tasks = [Task("a"), Task("b")]
    net = MLP((20, 30))((10,), tasks)
    # Two products forward; going back two for the second layer, and one for the first, whose input needs no gradient.
    assert trunk_flops(net, (10,)) == (2 * (200 + 600), 2 * (200 + 2 * 600))
    assert net.training
    net.encoder[0].requires_grad_(requires_grad=False)
    assert trunk_flops(net, (10,)) == (2 * (200 + 600), 2 * 600)
    whole = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 2))
    means = whole[1].running_mean.clone()
    assert trunk_flops(whole, (10,)) == (2 * 240, 2 * (200 + 2 * 40))
    assert torch.equal(whole[1].running_mean, means)
    convolution = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    assert trunk_flops(convolution, (1, 4, 4)) == (2 * (4 * 9 * 4 + 32), 2 * (4 * 9 * 4 + 2 * 32))


class _Untaught(SumStep):
    """A step that says nothing of its passes."""

    trunk_passes = UpdateStep.trunk_passes


@dataclass(frozen=True)
class UntaughtRecipe(JointRecipe):
    """For tests."""

    def update(self):
        return _Untaught


class _Shielded(nn.Linear):
    """A net that the counter of operations cannot see through."""

    def forward(self, x):
        if not self.training and torch.is_grad_enabled():
            raise NotImplementedError
        return super().forward(x)


def test_a_fit_tells_the_cost_of_its_trunk():
    parts = shared_parts()
    forward, backward = 2 * 6 * 8, 2 * 6 * 8
    rows = 40 * 16

    def cost(recipe):
        return recipe.fit(*parts, seed=0).trunk_flops

    assert cost(JointRecipe(HOW["net"], FAST)) == rows * (forward + backward)
    assert cost(AdaTaskRecipe(HOW["net"], FAST)) == rows * (forward + 5 * backward)
    assert cost(SingleRecipe(HOW["net"], FAST)) == 5 * rows * (forward + backward)
    assert cost(JointXMRecipe(**HOW, times=3)) == 3 * rows * (forward + backward)
    assert cost(UntaughtRecipe(HOW["net"], FAST)) is None
    assert cost(JointRecipe(lambda shape, tasks: _Shielded(shape[0], len(tasks)), FAST)) is None
    fitted = SelectiveRecipe(**HOW).fit(*parts, seed=0)
    assert fitted.trunk_flops == fitted.steps * 16 * (forward + backward)


def test_with_own_rows_groups_cost_no_more_than_their_rows(own_parts):
    train, validation, _ = own_parts
    unit = 2 * 2 * train.X.shape[1] * 8 * 16 * train.n_tasks * 40
    how = HOW | {"groups": SelectiveOptions(measure_every=10**6, probe_every=10**6)}
    joint = JointRecipe(HOW["net"], FAST).fit(train, validation, seed=0)
    fitted = SelectiveRecipe(**how).fit(train, validation, seed=0)
    assert joint.trunk_flops == unit
    # In the first batch, the only one that is measured, the rows of all six tasks go through the net six times.
    assert fitted.trunk_flops == pytest.approx(unit * (1 + 5 / 2 / 40))
    assert fitted.steps > 2 * joint.steps


def test_scalarizers_that_look_twice_cost_a_second_forward_pass():
    pytest.importorskip("torchjd")
    from taskloom.deep import FAMORecipe, MGDARecipe, UWRecipe

    parts = shared_parts()
    unit = 2 * 6 * 8 * 40 * 16
    found = [
        kind(HOW["net"], FAST).fit(*parts, seed=0).trunk_flops / unit
        for kind in (UWRecipe, FAMORecipe, MGDARecipe, partial(MGDARecipe, featurewise=True))
    ]
    assert found == [2, 3, 6, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelectiveRecipe(dominance_every=5), "`dominance_every`=5 of `selective`"),
        (lambda: SelectiveRecipe(beta=0.0), "`beta`=0.0"),
        (lambda: SelectiveRecipe(warmup=-1), "`warmup`=-1"),
        (lambda: RandomGroupsRecipe(regroup_every=0), "`regroup_every`=0"),
        (lambda: JointXMRecipe(times=0), "`times`=0"),
        (lambda: JointXMRecipe(times=2.5), "`times`=2.5: give a whole number"),
        (lambda: JointXMRecipe(times="3"), "`times`='3'"),
        (lambda: RandomGroupsRecipe(n_groups=0), "`n_groups`=0"),
        (lambda: RandomGroupsRecipe(n_groups=float("nan")), "`n_groups`=nan"),
        (lambda: SelectiveRecipe(warmup=None), "`warmup`=None"),
        (lambda: JointXMRecipe().update(), "`times`=None is learned by `fit`"),
        (lambda: RandomGroupsRecipe().update(), "`n_groups`=None is learned by `fit`"),
    ],
)
def test_bad_settings_are_refused_before_any_work(make, message):
    with pytest.raises(OptionError, match=message):
        make()
