"""Recipes of one net whose tasks are updated group by group within a batch: selective updates and their controls.

Letters: K tasks, M updates in a batch.

With M groups selective updates move the weights M times a batch where `joint` moves them once. Whether the groups have anything
to do with what comes of it is seen beside `joint-xM`, which makes the same M steps down the sum of all losses, and
`random-groups`, which makes them for groups drawn at random. M changes while a selective run goes on, so a control learns it
batch by batch from the run that it is the control of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from taskloom.deep._fit import NetFit, UpdateFactory, fit, new_net
from taskloom.deep._group_controls import RandomGroups, RepeatedStep
from taskloom.deep._group_passes import GroupPasses
from taskloom.deep._group_step import GroupStep
from taskloom.deep._proximal_affinity import in_own_progress
from taskloom.deep._recipes import Candidate, JointRecipe
from taskloom.deep._selective import SelectiveGroups, SelectiveOptions
from taskloom.deep._update import UpdateStep
from taskloom.tasks import Array, Curve, OptionError, TaskData, is_whole, register_recipe

EFFECT = "effect of an update, in units of the receiver's own progress"
# What a report is given of a training: points of it, and numbers in all of their affinities.
_POINTS, _NUMBERS = 60, 6000


class CountedStep(UpdateStep):
    """A step of groups that notes how many updates each batch took; it moves the weights as the step that it wraps does.

    Args:
        inner: the step.

    Attributes:
        updates: of each batch.
    """

    def __init__(self, inner: GroupStep) -> None:
        self.inner: Any = inner
        self.updates: list[int] = []

    def meet(self, net: torch.nn.Module) -> None:
        """As the inner step does."""
        self.inner.meet(net)

    def step(self, closure: Callable[..., Tensor]) -> Tensor:
        """The groups of a batch."""
        self.inner.all_present, self.inner.own_rows = self.all_present, self.own_rows
        before = self.inner.costs.updates
        losses = self.inner.step(closure)
        self.updates.append(self.inner.costs.updates - before)
        return losses

    def state_dict(self) -> dict[str, Any]:
        """The inner step's, and the updates."""
        return {"inner": self.inner.state_dict(), "updates": list(self.updates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.inner.load_state_dict(state["inner"])
        self.updates = list(state["updates"])


@dataclass(frozen=True)
class GroupUpdateRecipe(JointRecipe):
    """What selective updates and their controls have in common.

    Attributes:
        net: as for `SingleRecipe`.
        options: batch size, length, precision, device; `max_steps` and `validate_every` are batches here.
        title: name in a study, if not the recipe's.
        beta: decay of the means of effects; see `Selection`, as for the next two.
        warmup: batches at the start in which each task is a group of its own. The released code has 100 of 40,000; small nets
            are at their best after a few hundred batches, so that here it is 30.
        regroup_every: batches from one grouping to the next.
        groups: how affinity is measured and groups are made; its `seed` is that of the fit.

    Raises:
        OptionError: a value outside of what it may be; `dominance_every`, as no step of a group is of all tasks.
    """

    beta: float = 1e-3
    warmup: int = 30
    regroup_every: int = 50
    groups: SelectiveOptions = field(default_factory=SelectiveOptions)

    by_default: ClassVar[bool] = False
    paper: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dominance_every:
            raise OptionError(
                f"`dominance_every`={self.dominance_every} of `{self.name}`: an update of a group is due to its tasks alone, "
                "and there is nothing to share out; leave it at 0"
            )
        if not isinstance(self.groups, SelectiveOptions):
            raise OptionError(f"`groups` is a {type(self.groups).__name__}: give SelectiveOptions(...)")
        if self.groups.scaler is not None:
            raise OptionError("`groups` with a `scaler`: a fit has its own; leave it out and choose `precision`='16-mixed'")
        # The step itself knows what it refuses.
        self._selective(0)(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), None)

    def selective_run(self, train: TaskData, validation: TaskData, seed: int, rate: float) -> tuple[NetFit, CountedStep]:
        """Train one net by selective updates: the net, and the step that trained it with the updates that each batch took."""
        return self._run((train, validation), (seed, rate), self._selective(seed))

    def _selective(self, seed: int) -> Callable[[Optimizer, Any], SelectiveGroups]:
        how = {"beta": self.beta, "warmup": self.warmup, "regroup_every": self.regroup_every}
        return partial(SelectiveGroups, **how, options=replace(self.groups, seed=seed))

    def _passes(self, seed: int) -> GroupPasses:
        """As selective updates go through the net."""
        is_plain = self.groups.compat is None
        randomness, freeze = self.groups.common_randomness and is_plain, self.groups.freeze_heads and is_plain
        return GroupPasses(seed, common_randomness=randomness, freeze_heads=freeze)

    def _run(
        self,
        parts: tuple[TaskData, TaskData],
        how: tuple[int, float],
        update: Callable[[Optimizer, Any], GroupStep],
        n_batches: int | None = None,
    ) -> tuple[NetFit, CountedStep]:
        """Train one net with a seed and a learning rate, for so many batches, or until validation ends it."""
        made: list[CountedStep] = []

        def counted(optimizer: Optimizer, fabric: Any) -> UpdateStep:
            made.append(CountedStep(update(optimizer, fabric)))
            return made[-1]

        options = replace(self.options, learning_rate=how[1])
        if n_batches is not None:
            options = replace(options, max_steps=n_batches, patience=n_batches)
        net = new_net(self.net, parts[0].X.shape[1:], parts[0].tasks, how[0])
        return fit(net, *parts, options=options, seed=how[0], update=counted), made[0]

    def _control(
        self,
        parts: tuple[TaskData, TaskData],
        how: tuple[int, float],
        fixed: int | None,
        step_of: Callable[[list[int], int], Callable[[Optimizer, Any], GroupStep]],
    ) -> Candidate:
        """Train a net by the step of a control, with as many updates as a selective run makes if no number is fixed.

        It goes on for as many batches as that run did, so that both make the same steps; with a fixed number validation ends
        it, as any other training.
        """
        if fixed is not None:
            return _candidate(*self._run(parts, how, step_of([fixed], how[0])))
        learned = self.selective_run(*parts, *how)[1].updates
        # A batch in which all tasks are absent takes no update, whatever it is asked for.
        step = step_of([max(1, one) for one in learned], how[0])
        found = _candidate(*self._run(parts, how, step, len(learned)))
        note = (
            f"The updates of each batch, {sum(learned):,} in all, are those of a selective run of the same seed and learning "
            "rate. Such runs were trained to know them: their time is in the seconds, their steps are not in the steps."
        )
        found.found["notes"] = [note]
        return found


@register_recipe
@dataclass(frozen=True)
class SelectiveRecipe(GroupUpdateRecipe):
    """One net for all tasks, which are grouped while they train and updated group by group: see `SelectiveGroups`.

    A batch takes as many steps as there are groups, so that it costs as much as M of `joint`. Its controls are `joint`, which
    sees the same batches, one step on each, until its own validation loss ends it, and `joint-xM` and `random-groups`, which
    make the same number of steps on each of them and go on for as many batches.

    The attributes are those of `GroupUpdateRecipe`.

    Examples:
        >>> list(SelectiveRecipe(groups=SelectiveOptions(preference=0.0)).controls())
        ['at equal batches', 'at equal steps', 'at equal steps, groups at random']
    """

    name: ClassVar[str] = "selective"
    summary: ClassVar[str] = "one net; tasks are grouped while they train and updated group by group within each batch"
    paper: ClassVar[str] = "Jeong & Yoon, Selective Task Group Updates, ICLR 2025"

    def update(self) -> UpdateFactory:
        """Selective groups, with a seed of 0."""
        return self._selective(0)

    def try_rate(self, train: TaskData, validation: TaskData, seed: int, rate: float) -> Candidate:
        """Train one net at one learning rate."""
        found, counted = self.selective_run(train, validation, seed, rate)
        candidate, step = _candidate(found, counted), counted.inner
        if np.isfinite(step.affinity).any():
            # Row = receiver, as in all pictures of a report; further off than a task is to itself says no more than that.
            candidate.found["relations"] = {EFFECT: in_own_progress(step.affinity).T.clip(-1.0, 1.0)}
        candidate.found["group_history"] = group_history(step)
        kept = int(found.curve.steps[int(np.nan_to_num(found.curve.losses, nan=np.inf).argmin())])
        candidate.found["chosen"]["kept_after_batches"] = kept
        if len(train.tasks) > 1 and (not step.history or kept <= step.history[0][0]):
            why = f"The weights that were kept are those after {kept} batches, before groups were first made"
            remedy = f"a smaller `warmup` than {self.warmup} makes groups earlier"
            candidate.found["notes"] = [f"{why}: each task was updated alone there; {remedy}."]
        return candidate

    def controls(self) -> dict[str, JointRecipe]:
        """At equal batches `joint`; at equal steps `joint-xM`, and `random-groups`."""
        same = (self.net, self.options, "", self.beta, self.warmup, self.regroup_every, self.groups)
        return {
            "at equal batches": JointRecipe(self.net, self.options),
            "at equal steps": JointXMRecipe(*same),
            "at equal steps, groups at random": RandomGroupsRecipe(*same),
        }


@register_recipe
@dataclass(frozen=True)
class JointXMRecipe(GroupUpdateRecipe):
    """`joint` with as many steps on each batch as selective updates make there: their control at equal steps.

    How many these are it learns from a selective run of the same seed and learning rate, which it trains first and for as many
    batches; so it costs about twice as much as `selective`. With a fixed number there is no such run.

    Attributes:
        times: steps on each batch; None: those of a selective run.

    The other attributes are those of `GroupUpdateRecipe`, which set up the selective run.

    Raises:
        OptionError: `times` below 1.

    Examples:
        >>> JointXMRecipe(times=3).label
        'joint-xM'
    """

    times: int | None = None

    name: ClassVar[str] = "joint-xM"
    summary: ClassVar[str] = "joint, with as many steps on each batch as selective makes (it trains such a run to know)"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number("times", self.times)

    def update(self) -> UpdateFactory:
        """The step with the fixed number, with a seed of 0.

        Raises:
            OptionError: none is fixed, and only a fit can learn it.
        """
        if self.times is None:
            raise OptionError("`times`=None is learned by `fit`; give a number for an update step")
        return self._step([self.times], 0)

    def try_rate(self, train: TaskData, validation: TaskData, seed: int, rate: float) -> Candidate:
        """Train one net at one learning rate."""
        return self._control((train, validation), (seed, rate), self.times, self._step)

    def _step(self, numbers: list[int], seed: int) -> Callable[[Optimizer, Any], GroupStep]:
        return partial(RepeatedStep, times=numbers, passes=self._passes(seed))


@register_recipe
@dataclass(frozen=True)
class RandomGroupsRecipe(GroupUpdateRecipe):
    """Groups drawn at random for each batch, as many as selective updates make there: what is their choice of groups worth?

    How many these are it learns as `JointXMRecipe` does. Where tasks are absent from a batch, a random group may have no task
    that is there, and then makes no step.

    Attributes:
        n_groups: in each batch after the warm-up; None: as many as a selective run makes updates.

    The other attributes are those of `GroupUpdateRecipe`, which set up the selective run; `warmup` is that of this recipe too.

    Raises:
        OptionError: `n_groups` below 1.

    Examples:
        >>> RandomGroupsRecipe(n_groups=3).label
        'random-groups'
    """

    n_groups: int | None = None

    name: ClassVar[str] = "random-groups"
    summary: ClassVar[str] = "one net; random groups, as many in each batch as selective has (it trains such a run to know)"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number("n_groups", self.n_groups)

    def update(self) -> UpdateFactory:
        """The step with the fixed number, with a seed of 0.

        Raises:
            OptionError: none is fixed, and only a fit can learn it.
        """
        if self.n_groups is None:
            raise OptionError("`n_groups`=None is learned by `fit`; give a number for an update step")
        return self._step([self.n_groups], 0)

    def try_rate(self, train: TaskData, validation: TaskData, seed: int, rate: float) -> Candidate:
        """Train one net at one learning rate."""
        return self._control((train, validation), (seed, rate), self.n_groups, self._step)

    def _step(self, numbers: list[int], seed: int) -> Callable[[Optimizer, Any], GroupStep]:
        return partial(RandomGroups, n_groups=numbers, warmup=self.warmup, passes=self._passes(seed))


def _check_number(name: str, number: int | None) -> None:
    if number is not None and not is_whole(number, 1):
        raise OptionError(f"`{name}`={number!r}: give a whole number of at least 1, or None for those of a selective run")


def _candidate(found: NetFit, counted: CountedStep) -> Candidate:
    """What is known of a training by groups; its curve is over optimizer steps, of which a batch takes several."""
    costs, updates = counted.inner.costs, counted.updates
    done = np.concatenate([[0], np.cumsum(updates)])
    curve = Curve(found.curve.name, tuple(int(done[batch]) for batch in found.curve.steps), found.curve.losses)
    chosen = {"updates_per_batch": round(sum(updates) / len(updates), 3)}
    passes = (costs.forwards, costs.backwards)
    return Candidate(found, sum(updates), passes, {"curves": [curve], "chosen": chosen})


def group_history(step: SelectiveGroups) -> list[dict[str, Any]]:
    """Groups and affinity while a step trained, thinned: what `RecipeFit` has under this name.

    The first point is the start, with each task alone, the second one the first grouping, the last one the end.

    Examples:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> step = SelectiveGroups(torch.optim.SGD([weight], lr=0.1), warmup=2, regroup_every=2)
        >>> losses = [step.step(lambda: weight.square()) for _ in range(3)]
        >>> [(point["batch"], point["groups"]) for point in group_history(step)]
        [(0, [0, 1]), (2, [0, 0]), (3, [0, 0])]
    """
    n_tasks = step.n_tasks or 0
    points = [(0, [[k] for k in range(n_tasks)], np.full((n_tasks, n_tasks), np.nan))]
    points += [*step.history, (step.costs.batches, [sorted(group) for group in step.groups], step.affinity)]
    points = [points[0], *(points[1 + i] for i in _spread(len(points) - 1, _POINTS - 1))]
    # The start has no affinity yet, and that of the end is always kept.
    kept = {len(points) - 1 - i for i in _spread(len(points) - 1, max(1, _NUMBERS // max(n_tasks, 1) ** 2))}
    return [
        {"batch": int(batch), "groups": _labels(groups, n_tasks)} | ({"affinity": _plain(affinity)} if i in kept else {})
        for i, (batch, groups, affinity) in enumerate(points)
    ]


def _spread(number: int, most: int) -> list[int]:
    """Of so many places at most so many, the first and the last among them."""
    return sorted({int(place) for place in np.linspace(0, number - 1, min(number, most)).round()})


def _labels(groups: list[list[int]], n_tasks: int) -> list[int]:
    return [next(g for g, group in enumerate(groups) if k in group) for k in range(n_tasks)]


def _plain(affinity: Array) -> list[list[float | None]]:
    """Row = receiver, four digits, JSON-able."""
    return [[float(f"{value:.4g}") if np.isfinite(value) else None for value in row] for row in affinity.T]
