"""A first look at which tasks of a table should learn together: a measure, its groups, and how far both can be believed.

Beside any measure stands the correlation of labels, which costs next to nothing.

Letters: K tasks, A (K, K) affinity, R repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score
from torch import nn

from taskloom.deep import MLP, NetFactory
from taskloom.relate._affinity import Affinity, Cost
from taskloom.relate._cluster import cluster, stands_out
from taskloom.relate._groups import Groups
from taskloom.relate._measures import AUTO, SELECT, WITHOUT_NET, check_grouping, check_measure, grouping_for, measure
from taskloom.relate._options import MeasureOptions
from taskloom.relate._select import select
from taskloom.tasks import FeatureEncoder, OptionError, TargetScaler, TaskData, check_whole

# Seconds of `select` where it is not exact at once; it is called twice.
_TIME_LIMIT = 30.0
# Correlations below it are called low.
_LOW = 0.7
_FORMAT, _VERSION = "taskloom-survey", 1


@dataclass(frozen=True)
class SurveyOptions:
    """What a survey measures, and how it makes groups.

    Attributes:
        measure: name of a measure that needs no more than data and a net.
        method: of `cluster`, or `select`, which chooses the groups with the greatest mean affinity inside. That is the right
            question where the affinity is a gain, and a poor one where it is a likeness: tight pairs then leave a rest of tasks
            that have nothing in common. `auto`: `select` where the measure has a `zero`, else `spectral`.
        n_groups: number of groups, or with `select` how many at the most. None: what the method chooses; with `select` as many
            as spectral clusters of greatest modularity are.
        overlap: whether `select` may let a task help in a group that does not serve it; clusters never overlap here.
        repeats: seeds that the affinity is averaged over; their agreement tells what of it is chance of the training.
        net: what makes nets.
        measuring: options of the measure.

    Raises:
        UnknownNameError: no such measure or method.
        OptionError: numbers below 1, or a net in the place of what makes nets: each repeat needs one of its own.

    Examples:
        >>> SurveyOptions(measure="gram").repeats
        3
    """

    measure: str = "samplewise_cosine"
    method: str = AUTO
    n_groups: int | None = None
    overlap: bool = True
    repeats: int = 3
    net: NetFactory = field(default_factory=MLP)
    measuring: MeasureOptions = field(default_factory=MeasureOptions)

    def __post_init__(self) -> None:
        check_measure(self.measure)
        check_grouping(self.method)
        for name, value in {"n_groups": self.n_groups, "repeats": self.repeats}.items():
            if value is not None or name == "repeats":
                check_whole(name, value)
        if isinstance(self.net, nn.Module) or not callable(self.net):
            raise OptionError(f"`net`={self.net!r}: give what makes nets, such as `MLP()`; each repeat trains one of its own")


@dataclass(frozen=True)
class Survey:
    """How the tasks of a table relate by a measure and by their labels, and the groups that follow from each.

    Attributes:
        affinity: mean over the repeats; its cost is that of all of them, its stability the mean of theirs.
        groups: that follow from it.
        labels: correlation of labels, or of ridge predictions where no row has the labels of two tasks.
        label_groups: as many groups, that follow from the labels; None where nothing is known of any pair.
        repeatability: mean correlation of the affinities of two seeds; NaN where there was one, or too few tasks.
        repeats: R.
        about: the data in words.
        n_asked: groups that were asked for; None where their number was chosen.
    """

    affinity: Affinity
    groups: Groups
    labels: Affinity
    label_groups: Groups | None
    repeatability: float
    repeats: int
    about: str
    n_asked: int | None = None

    @property
    def groups_stand_out(self) -> bool | None:
        """Whether tasks served together are more alike than chance has it, as `cluster` sees it; None: not known."""
        return stands_out(self.affinity, self.groups.labels)

    @property
    def group_agreement(self) -> float:
        """Adjusted Rand index of who is served together by the measure and by the labels: 1 alike, 0 chance; NaN without."""
        if self.label_groups is None:
            return math.nan
        return float(adjusted_rand_score(self.groups.labels, self.label_groups.labels))

    @property
    def rank_correlation(self) -> float:
        """Spearman's correlation of measure and labels over the pairs that both know; NaN for fewer than three."""
        off = ~np.eye(self.affinity.n_tasks, dtype=bool)
        one, other = self.affinity.gains[off], self.labels.gains[off]
        both = np.isfinite(one) & np.isfinite(other)
        if both.sum() < 3 or np.ptp(one[both]) == 0 or np.ptp(other[both]) == 0:
            return math.nan
        return float(spearmanr(one[both], other[both]).statistic)

    @property
    def is_baseline(self) -> bool:
        """Whether the measure is the correlation of labels itself."""
        return self.affinity.measure == "labels"

    def rows(self, *, by_labels: bool = False) -> list[dict[str, Any]]:
        """For each group its number, the tasks that it serves, and those that only help in it.

        Args:
            by_labels: of the groups by labels; none where nothing is known of them.
        """
        groups = self.label_groups if by_labels else self.groups
        if groups is None:
            return []
        rows = []
        for place, names in enumerate(groups.sets):
            served = groups.served(place)
            helpers = [name for name in names if name not in served]
            rows.append({"group": place + 1, "serves": list(served), "helped_by": helpers})
        return rows

    def words(self) -> list[str]:
        """The outcome in sentences, the doubts included."""
        words = [*_belief(self), _spread(self)]
        if not self.is_baseline:
            words.append(_beside_labels(self))
        missing = int(np.isnan(self.affinity.off_diagonal).sum())
        if missing:
            words.append(f"{missing} of {self.affinity.off_diagonal.size} pairs are not known and count as the least alike.")
        words += [f"{self.affinity.measure}: {note}." for note in self.affinity.notes]
        words += [f"labels: {note}." for note in self.labels.notes if not self.is_baseline]
        words.append(_cost(self))
        words.append("An affinity is a guess: only training tells whether a group helps its tasks.")
        return words

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold; NaN becomes None."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "data": self.about,
            "tasks": list(self.affinity.tasks),
            "words": self.words(),
            "measure": _affinity_json(self.affinity) | {"repeats": self.repeats, "repeatability": _known(self.repeatability)},
            "groups": self.groups.to_dict(),
            "labels": _affinity_json(self.labels),
            "label_groups": None if self.label_groups is None else self.label_groups.to_dict(),
            "groups_stand_out": self.groups_stand_out,
            "group_agreement": _known(self.group_agreement),
            "rank_correlation": _known(self.rank_correlation),
        }


def survey(
    data: TaskData, options: SurveyOptions | None = None, progress: Callable[[int, int, str], None] | None = None
) -> Survey:
    """Measure how tasks relate, and group them.

    All rows are looked at. Scores of groups that were chosen so are to be taken on other rows.

    Args:
        data: as read; features are encoded and targets standardised here.
        options: measure, method, number of groups.
        progress: called as (measurements done, of how many, what comes now).

    Raises:
        OptionError: more groups than tasks, or a number of groups that the method does not reach.
        DataError: fewer than two tasks, data of which the measure cannot be taken, or an affinity that knows no pair.
        FitError: the joint run failed.

    Examples:
        >>> from taskloom.tasks import load_diabetes_tasks
        >>> found = survey(load_diabetes_tasks(), SurveyOptions("labels"))
        >>> found.groups
        2 groups of 7 tasks by spectral, value 4.135
          1  s1, s2
          2  s3, s4, s5, s6, progression
    """
    options = options or SurveyOptions()
    if options.n_groups is not None and options.n_groups > data.n_tasks:
        raise OptionError(f"`n_groups`={options.n_groups} for {data.n_tasks} tasks: give at most {data.n_tasks}")
    encoded = TargetScaler.fit(data).encode(FeatureEncoder.fit(data.features).encode(data))
    seed = options.measuring.seed
    seeds = [seed] if options.measure in WITHOUT_NET else range(seed, seed + options.repeats)
    found = []
    for each in seeds:
        if progress is not None:
            progress(len(found), len(seeds), f"measuring {options.measure}, seed {each}")
        found.append(measure(options.measure, options.net, encoded, replace(options.measuring, seed=each)))
    affinity = _mean(found)
    options = replace(options, method=grouping_for(options.method, affinity))
    groups = _grouped(affinity, options)
    labels = affinity if options.measure == "labels" else measure("labels", options.net, encoded, options.measuring)
    pairs = [one.agreement(other) for one, other in combinations(found, 2)]
    knows_pairs = bool(np.isfinite(labels.off_diagonal).any())
    method = SELECT if options.method == SELECT else "spectral"
    return Survey(
        affinity,
        groups,
        labels,
        _grouped(labels, replace(options, method=method, n_groups=len(groups.sets))) if knows_pairs else None,
        float(np.mean(pairs)) if pairs else math.nan,
        len(found),
        _about(data),
        options.n_groups,
    )


def _mean(found: list[Affinity]) -> Affinity:
    """Over repeats; a pair counts where it is known."""
    values = np.stack([each.values for each in found])
    counts = np.isfinite(values).sum(axis=0)
    mean = np.divide(np.nansum(values, axis=0), counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    cost = sum((each.cost for each in found), Cost())
    return replace(found[0], values=mean, cost=cost, stability=float(np.mean([each.stability for each in found])))


def _grouped(affinity: Affinity, options: SurveyOptions) -> Groups:
    seed = options.measuring.seed
    if options.method != SELECT:
        return cluster(affinity, options.n_groups, options.method, seed)
    budget = options.n_groups or len(cluster(affinity, None, "spectral", seed).sets)
    return select(affinity.filled(), budget, overlap=options.overlap, time_limit=_TIME_LIMIT)


def _about(data: TaskData) -> str:
    kinds = "/".join(dict.fromkeys(task.kind for task in data.tasks))
    shape = "shared rows" if data.is_shared else "own rows"
    return f"{data.n_tasks} {kinds} tasks, {shape}, {data.n_rows:,} rows x {data.features.n_columns} columns"


def _belief(found: Survey) -> list[str]:
    """How far the affinity agrees with itself: over trainings, and over halves of what each of them looked at."""
    name, halves, seeds = f"`{found.affinity.measure}`", found.affinity.stability, found.repeatability
    words, is_grouped = [], len(found.groups.sets) > 1
    if not math.isnan(seeds):
        again = f"{name} measured with {found.repeats} seeds agrees with itself to a correlation of {seeds:.2f}"
        low = ", which is low: much of these groups is chance. Do not rely on them before they are verified by training."
        low = low if is_grouped else ", which is low: how its pairs differ is chance for the most part."
        words.append(again + (low if seeds < _LOW else "."))
    if math.isnan(halves):
        words.append(f"How well two halves of what {name} looked at agree is not known: too few pairs, or all alike.")
    else:
        within = f"Two halves of what {name} looked at agree to a correlation of {halves:.2f}"
        low = ", which is low: had it looked at others, the groups might be others. Verify them by training."
        low = low if is_grouped else ", which is low: had it looked at others, its pairs might differ otherwise."
        words.append(within + (low if halves < _LOW else "."))
    return words


def _spread(found: Survey) -> str:
    """How far the pairs differ at all, and whether groups stand out of that."""
    values, labels = found.affinity.values, found.groups.labels
    off, same = ~np.eye(len(labels), dtype=bool), np.equal.outer(labels, labels)
    least, most = np.nanmin(values[off]), np.nanmax(values[off])
    words = f"`{found.affinity.measure}` of the pairs goes from {least:.3g} to {most:.3g}"
    inside, between = (part[~np.isnan(part)] for part in (values[off & same], values[~same]))
    if len(inside) and len(between):
        words += f"; inside groups it is {inside.mean():.3g} in the mean, between them {between.mean():.3g}"
    if found.groups_stand_out is not False:
        return f"{words}."
    if len(found.groups.sets) > 1:
        return f"{words}: these groups do not stand out, they are no more alike inside than chance has it."
    return f"{words}: no groups stand out." if found.n_asked is None else f"{words}."


def _beside_labels(found: Survey) -> str:
    if found.label_groups is None:
        return "The labels alone tell nothing: no pair of tasks has a correlation that is known."
    rank = found.rank_correlation
    pairs = "" if math.isnan(rank) else f"; rank correlation of the pairs {rank:.2f}"
    n, K = len(found.groups.sets), found.affinity.n_tasks
    if n in (1, K):
        words = f"The labels are no comparison here: with {n} group{'s' * (n > 1)} of {K} tasks no measure could give others"
        return f"{words}{pairs}."
    if found.group_agreement == 1:
        return f"The correlation of labels alone, which costs next to nothing, gives the same groups{pairs}."
    return (
        "The correlation of labels alone, which costs next to nothing, gives other groups (adjusted Rand index "
        f"{found.group_agreement:.2f}: 1 is the same groups, 0 is chance){pairs}."
    )


def _cost(found: Survey) -> str:
    cost = found.affinity.cost
    trained = f"{cost.trainings} training{'s' * (cost.trainings != 1)}" if cost.trainings else "no training"
    return (
        f"`{found.affinity.measure}` took {trained}, {cost.forwards:,} rows forward and {cost.backwards:,} back, "
        f"{cost.seconds:.2f} s."
    )


def _affinity_json(affinity: Affinity) -> dict[str, Any]:
    return {
        "name": affinity.measure,
        "higher_is_better": affinity.higher_is_better,
        "values": [[_known(value) for value in row] for row in affinity.values.tolist()],
        "stability": _known(affinity.stability),
        "cost": vars(affinity.cost) | {"units": affinity.cost.units},
        "notes": list(affinity.notes),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
