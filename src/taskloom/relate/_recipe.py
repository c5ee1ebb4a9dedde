"""The recipe that measures how the tasks relate, chooses groups of them, and trains one net for each group.

Letters: K tasks, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from torch import nn

from taskloom.deep import JointRecipe, NetPredictor
from taskloom.relate._affinity import Affinity
from taskloom.relate._cluster import cluster
from taskloom.relate._groups import Groups
from taskloom.relate._measures import SELECT, check_grouping, check_measure, grouping_for, measure, unfit
from taskloom.relate._options import MeasureOptions
from taskloom.relate._select import select
from taskloom.tasks import (
    Array,
    Curve,
    DataError,
    Family,
    FitError,
    OptionError,
    Recipe,
    RecipeFit,
    TaskData,
    check_whole,
    is_number,
    register_recipe,
)

_BASELINE = "labels"
# Features up to which a ridge is fitted to tasks with rows of their own, for the groups that labels alone would give.
_MOST_FEATURES = 2000


@register_recipe
@dataclass(frozen=True)
class GroupedRecipe(Recipe):
    """Tasks in groups that are chosen by how the tasks relate; a net for each group, trained jointly.

    On the training rows a measure tells how the tasks relate, at most `n_nets` groups are made by it, and every group is
    trained as `inner` trains all tasks. A task is predicted by the net of the group that serves it; in others it may help. A
    group of one is trained as `single` trains it. With one group, as where none stand out (see `cluster`), this is `inner`, to
    the bit.

    The plan, an affinity before groups under a budget of nets, is that of Standley et al. (ICML 2020), TAG (Fifty et al.,
    NeurIPS 2021) and Thakur et al. (TPAMI 2025); which measure and which net are ours to choose. The learning rate of a group's
    net, and when it stops, follow from the validation losses of all its members, those that only help included.

    Above a hundred tasks or so `select` runs into its time limit, and the choice may then hang on the machine.

    Attributes:
        measure: name of a measure that needs no more than a net and data: `samplewise_cosine`, `samplewise`, `lookahead` (TAG),
            `gram`, `gradtag`, `datamap`, `task2vec`, `divergence`, `labels`; or, at the price of many trainings, `pairwise`
            (HOA), `surrogate`.
        n_nets: groups at the most, each a net.
        method: how groups are made: `select`, which is for gains; a method of `cluster`, which is for likeness; `auto`:
            `select` where the measure has a `zero` or `alone` is given, else `spectral`. On planted groups `select` made tight
            pairs of a likeness and left the others in one heap.
        overlap: whether `select` may let a task help in groups that do not serve it.
        alone: what a task gains alone, in units of the measure: `select` leaves one alone that gains less from all others.
            None: the measure's `zero`. `lookahead` has one, and its groups may differ from TAG's, which leave no task alone;
            a very low number, such as -1e9, is TAG's rule.
        inner: trains each group: a recipe of one net with its net, its options and its update step.
        measuring: options of the measure; their seed is that of the fit.
        title: name in a study, if not `grouped`.

    Raises:
        OptionError: fewer than one net, an `alone` that is not finite, an `inner` that is no recipe of one net, or one with
            `dominance_every`, which nets of different tasks cannot share.
        UnknownNameError: no such measure or method.

    Examples:
        >>> from taskloom.deep import AdaTaskRecipe
        >>> GroupedRecipe("gram", n_nets=2, inner=AdaTaskRecipe()).label
        'grouped'
    """

    measure: str = "samplewise_cosine"
    n_nets: int = 3
    method: str = "auto"
    overlap: bool = True
    alone: float | None = None
    inner: JointRecipe = field(default_factory=JointRecipe)
    measuring: MeasureOptions = field(default_factory=MeasureOptions)
    title: str = ""

    name: ClassVar[str] = "grouped"
    summary: ClassVar[str] = "tasks in groups that are chosen by how they relate; one net for each group"
    paper: ClassVar[str] = "Standley and others, ICML 2020; Thakur and others, TPAMI 2025"
    family: ClassVar[Family] = "deep"
    # It trains several nets at every rate, and one more to measure by.
    by_default: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_measure(self.measure)
        check_grouping(self.method)
        check_whole("n_nets", self.n_nets)
        if self.alone is not None and not (is_number(self.alone) and np.isfinite(self.alone)):
            raise OptionError(f"`alone`={self.alone!r}: give a finite number in units of the measure, or None")
        if not isinstance(self.inner, JointRecipe):
            raise OptionError(f"`inner`={self.inner!r}: give a recipe of one net, such as `JointRecipe()` or `AdaTaskRecipe()`")
        if self.inner.dominance_every:
            raise OptionError("`inner` has `dominance_every`, but nets of different tasks share no shares; set it to 0")

    def baseline(self) -> Recipe:
        """Nets of the same make for each task alone."""
        return self.inner.baseline()

    def refuses(self, data: TaskData) -> str:
        """A single task, tasks that the recipe inside refuses, and those of which the measure cannot be taken."""
        if data.n_tasks < 2:
            return f"`{self.label}` groups tasks and there is one only; leave it out"
        if reason := unfit(self.measure, data):
            return f"`{self.label}`: {reason}"
        return self.inner.refuses(data)

    def fit(self, train: TaskData, validation: TaskData, *, seed: int, budget: int = 4) -> RecipeFit:
        """Measure and choose on training rows, then train each group at `budget` learning rates and keep its best.

        `total_steps` counts the trainings of the measure at their full length, costs of the chosen model do not. `relations`
        are the affinity (see `Affinity.relation`) and who learns together with whom.

        Raises:
            OptionError: tasks that cannot be served.
            FitError: the joint run failed, the measure knows no pair of tasks, or every rate of a group diverged.
        """
        if reason := self.refuses(train):
            raise OptionError(reason)
        options = replace(self.measuring, seed=seed)
        affinity = self._measured(self.measure, train, options)
        groups = self._groups(affinity, self.alone)
        fits = [self._trained(names, (train, validation), seed, budget) for names in groups.sets]
        homes = [fits[g] for g in groups.labels]
        places = [groups.sets[g].index(name) for name, g in zip(groups.tasks, groups.labels, strict=True)]
        numbers = [[groups.tasks.index(name) for name in names] for names in groups.sets]
        nets = [_net_of(fit) for fit in fits]
        shape, serves = train.X.shape[1:], groups.labels.tolist()
        shown = f"affinity by {self.measure}"
        measuring_steps = affinity.cost.trainings * options.steps
        return RecipeFit(
            predictor=NetPredictor(nets, train.tasks, self.inner.net, shape, numbers, serves),
            chosen={"group": [g + 1 for g in serves], **_chosen(homes, places)},
            validation_loss=np.array([fit.validation_loss[place] for fit, place in zip(homes, places, strict=True)]),
            steps=sum(fit.steps for fit in fits),
            total_steps=sum(fit.total_steps for fit in fits) + measuring_steps,
            curves=_joined([fit.curves[0] for fit in fits], serves),
            notes=self._notes(affinity, groups, train, options) + [note for fit in fits for note in fit.notes],
            relations={shown: affinity.relation(), "learned together": learned_together(groups)},
            groups={"sets": [list(names) for names in groups.sets], "serves": dict(groups.serves), "relation": shown},
            batches=sum(fit.batches or 0 for fit in fits),
            trunk_flops=None if None in (flops := [fit.trunk_flops for fit in fits]) else sum(filter(None, flops)),
        )

    def _measured(self, name: str, train: TaskData, options: MeasureOptions) -> Affinity:
        try:
            return measure(name, self.inner.net, train, options).filled()
        except DataError as error:
            raise FitError(f"`{self.label}` cannot group these tasks: {error}") from error

    def _groups(self, affinity: Affinity, alone: float | None) -> Groups:
        known = affinity if alone is None else replace(affinity, zero=alone)
        method = grouping_for(self.method, known)
        if method == SELECT or self.n_nets == 1:
            return select(known, self.n_nets, overlap=self.overlap)
        found, most = cluster(known, method=method), self.n_nets
        while len(found.sets) > self.n_nets:
            # Some methods do not reach every number; one group is always reached.
            with suppress(OptionError):
                found = cluster(known, most, method)
            most -= 1
        return found

    def _trained(self, names: Sequence[str], parts: tuple[TaskData, TaskData], seed: int, budget: int) -> RecipeFit:
        recipe = self.inner if len(names) > 1 else self.inner.baseline()
        train, validation = (of_tasks(part, names) for part in parts)
        return recipe.fit(train, validation, seed=seed, budget=budget)

    def _notes(self, affinity: Affinity, groups: Groups, train: TaskData, options: MeasureOptions) -> list[str]:
        cost, halves = affinity.cost, affinity.stability
        run = f"{cost.trainings:,} trainings of up to {options.steps:,} steps, " if cost.trainings else ""
        run = f"a joint run of {options.steps:,} steps, " if cost.trainings == 1 else run
        passes = f"{cost.units:,} passes of a row in all, a backward pass counting two" if cost.units else "no pass of a net"
        agree = "" if np.isnan(halves) else f"; two halves of what it looked at agree to a correlation of {halves:.2f}"
        notes = [
            f"Groups by `{affinity.measure}`: {in_words(groups)}.",
            f"Measuring took {run}{passes}{agree}.",
        ]
        notes += [f"`{affinity.measure}`: {note}." for note in affinity.notes]
        if self.measure == _BASELINE:
            return notes
        if not train.is_shared and np.prod(train.X.shape[1:]) > _MOST_FEATURES:
            return [*notes, f"Label correlation was left out: its ridge is for up to {_MOST_FEATURES:,} features."]
        try:
            beside = self._groups(self._measured(_BASELINE, train, replace(options, split_half=False)), None)
        except FitError:
            return [*notes, "Label correlation alone tells nothing here: no pair of tasks has one."]
        is_same = beside.sets == groups.sets and beside.serves == groups.serves
        alike = "the same groups" if is_same else in_words(beside)
        return [*notes, f"Label correlation alone would have chosen {alike}."]


def _net_of(fit: RecipeFit) -> nn.Module:
    if not isinstance(fit.predictor, NetPredictor) or len(fit.predictor.nets) != 1:
        raise OptionError("`inner` gives no single net for the tasks of a group; take a recipe of one net, such as `joint`")
    return fit.predictor.nets[0]


def of_tasks(data: TaskData, names: Sequence[str]) -> TaskData:
    """Some of the tasks, in the order of the names, on the rows that have a label of one of them.

    Examples:
        >>> data = TaskData.shared_rows(np.eye(3), [[1.0, np.nan], [2.0, 3.0], [3.0, 4.0]], ["a", "b"])
        >>> of_tasks(data, ["b"])
        TaskData(1 regression tasks, shared rows, 2 rows x 3 features)
    """
    numbers = [[task.name for task in data.tasks].index(name) for name in names]
    tasks = tuple(data.tasks[t] for t in numbers)
    if data.task_of_row is None:
        narrow = replace(data, tasks=tasks, y=data.y[:, numbers])
        rows = np.flatnonzero(~np.isnan(narrow.y).all(axis=1))
        return narrow if len(rows) == data.n_rows else narrow.take(rows)
    place = np.full(data.n_tasks, -1)
    place[numbers] = np.arange(len(numbers))
    owners = place[data.task_of_row]
    rows = np.flatnonzero(owners >= 0)
    return TaskData(tasks, data.features.take(rows), data.y[rows], owners[rows], data.by, data.notes, data.impute)


def learned_together(groups: Groups) -> Array:
    """(K, K) 1 where the column's task is in the group that serves the row's.

    Examples:
        >>> groups = Groups(("a", "b", "c"), (("a", "b"), ("b", "c")), {"a": 0, "b": 0, "c": 1}, {})
        >>> learned_together(groups).astype(int).tolist()
        [[1, 1, 0], [1, 1, 0], [0, 1, 1]]
    """
    return np.array([[float(other in groups.serving(name)) for other in groups.tasks] for name in groups.tasks])


def in_words(groups: Groups) -> str:
    """Groups in one line, as `a, b | c, helped by b`."""
    parts = []
    for place, names in enumerate(groups.sets):
        served = groups.served(place)
        helpers = ", ".join(name for name in names if name not in served)
        parts.append(", ".join(served) + (f", helped by {helpers}" if helpers else ""))
    return " | ".join(parts)


def _chosen(homes: Sequence[RecipeFit], places: Sequence[int]) -> dict[str, list[Any]]:
    """For each task what was chosen for its net; None where there is nothing of that name."""

    def of_task(fit: RecipeFit, name: str, place: int) -> Any:
        value = fit.chosen.get(name)
        return value[place] if isinstance(value, list) else value

    names = dict.fromkeys(name for fit in homes for name in fit.chosen)
    return {name: [of_task(fit, name, place) for fit, place in zip(homes, places, strict=True)] for name in names}


def _joined(curves: Sequence[Curve], serves: Sequence[int]) -> list[Curve]:
    """The mean over the tasks of the curves of their groups; one that has ended keeps its last value."""
    steps = max((curve.steps for curve in curves), key=len)
    values = np.array([np.interp(steps, curve.steps, curve.losses) for curve in curves])
    mean = values[list(serves)].mean(axis=0)
    return [Curve("mean of tasks", tuple(steps), tuple(map(float, mean)))]
