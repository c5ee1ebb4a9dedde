"""Recipes of one net for all tasks whose gradients are joined by an aggregator of torchjd.

Letters: K tasks, P shared parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from taskloom.deep._aggregators import GuardedAggregator, NashBargain, ScaledFairGrad
from taskloom.deep._featurewise_step import FeaturewiseStep
from taskloom.deep._fit import UpdateFactory
from taskloom.deep._recipes import JointRecipe
from taskloom.deep._task_gradients import AggregatedStep
from taskloom.deep._torchjd import from_torchjd
from taskloom.tasks import OptionError, RecipeFit, TaskData, check_whole, is_number, register_recipe


@dataclass(frozen=True)
class AggregatedRecipe(JointRecipe):
    """One net for all tasks; the tasks' gradients on the shared weights are joined by an aggregator of torchjd.

    Attributes:
        net: as for `SingleRecipe`.
        options: batch size, length, precision, device.
        title: name in a study, if not the recipe's.
        featurewise: join the gradients by the trunk's output in place of those by its weights, a surrogate that costs about
            one backward pass in all; see `FeaturewiseStep`. Tasks must share rows, and a net of one's own must have a module
            `encoder`.

    Raises:
        OptionError: torchjd, or a solver that the recipe needs, is not installed; dominance is to be measured.
    """

    featurewise: bool = False

    aggregator: ClassVar[str]
    by_default: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_dominance()
        self._make()

    def _make(self) -> Any:
        return from_torchjd(self.name, "aggregation", self.aggregator)

    def fresh_aggregator(self) -> GuardedAggregator:
        """A new aggregator, which remembers nothing yet: maps a matrix (k, P) to a direction (P,)."""
        return GuardedAggregator(self.name, self._make())

    def update(self) -> UpdateFactory:
        """A step with a fresh aggregator."""
        return partial(FeaturewiseStep if self.featurewise else AggregatedStep, aggregator=self.fresh_aggregator())

    def refuses(self, data: TaskData) -> str:
        """Tasks with own rows are refused where `featurewise` is asked for."""
        if not self.featurewise or data.is_shared:
            return ""
        return (
            f"`featurewise`=True of `{self.name}` needs tasks that share rows: gradients by the features of different rows "
            "never meet; leave `featurewise` out"
        )

    def fit(self, train: TaskData, validation: TaskData, *, seed: int, budget: int = 4) -> RecipeFit:
        """Train one net at each of `budget` learning rates and keep the best."""
        if reason := self.refuses(train):
            raise OptionError(reason)
        return super().fit(train, validation, seed=seed, budget=budget)


@register_recipe
@dataclass(frozen=True)
class PCGradRecipe(AggregatedRecipe):
    """Of two tasks whose gradients conflict, each is projected on the other's normal plane.

    Attributes are those of `AggregatedRecipe`.

    Examples:
        >>> PCGradRecipe().label
        'pcgrad'
    """

    name: ClassVar[str] = "pcgrad"
    summary: ClassVar[str] = "one net; gradients that conflict are projected on each other's normal plane"
    paper: ClassVar[str] = "Yu and others, Gradient Surgery, NeurIPS 2020"
    aggregator: ClassVar[str] = "PCGrad"


@register_recipe
@dataclass(frozen=True)
class MGDARecipe(AggregatedRecipe):
    """The shortest convex combination of the tasks' gradients: a direction in which no loss rises.

    Attributes are those of `AggregatedRecipe`.

    Examples:
        >>> MGDARecipe().label
        'mgda'
    """

    name: ClassVar[str] = "mgda"
    summary: ClassVar[str] = "one net; the shortest convex combination of the tasks' gradients"
    paper: ClassVar[str] = "Desideri 2012; Sener & Koltun, NeurIPS 2018"
    aggregator: ClassVar[str] = "MGDA"


@register_recipe
@dataclass(frozen=True)
class AlignedMTLRecipe(AggregatedRecipe):
    """The matrix of gradients made orthogonal, so that no direction dominates.

    Attributes are those of `AggregatedRecipe`.

    Examples:
        >>> AlignedMTLRecipe().label
        'aligned-mtl'
    """

    name: ClassVar[str] = "aligned-mtl"
    summary: ClassVar[str] = "one net; the tasks' gradients are made orthogonal and of one length before they are summed"
    paper: ClassVar[str] = "Senushkin and others, CVPR 2023"
    aggregator: ClassVar[str] = "AlignedMTL"


@register_recipe
@dataclass(frozen=True)
class IMTLGRecipe(AggregatedRecipe):
    """The combination whose projections on all tasks' gradients are equally long.

    Attributes are those of `AggregatedRecipe`.

    Examples:
        >>> IMTLGRecipe().label
        'imtl-g'
    """

    name: ClassVar[str] = "imtl-g"
    summary: ClassVar[str] = "one net; a combination of gradients with equal projections on all of them"
    paper: ClassVar[str] = "Liu and others, IMTL, ICLR 2021"
    aggregator: ClassVar[str] = "IMTLG"


@register_recipe
@dataclass(frozen=True)
class UPGradRecipe(AggregatedRecipe):
    """Each task's gradient is projected on the directions in which no loss rises, and the projections are averaged.

    A quadratic program for each task and step, solved by quadprog on the CPU: a part of a millisecond for a few tasks.
    Attributes are those of `AggregatedRecipe`.

    Examples:
        >>> UPGradRecipe().label
        'upgrad'
    """

    name: ClassVar[str] = "upgrad"
    summary: ClassVar[str] = "one net; gradients projected on directions in which no loss rises (K small QPs a step)"
    paper: ClassVar[str] = "Quinton & Rey, Jacobian Descent, 2024"
    aggregator: ClassVar[str] = "UPGrad"


@register_recipe
@dataclass(frozen=True)
class CAGradRecipe(AggregatedRecipe):
    """The direction near the mean gradient along which the worst-off task's loss falls fastest.

    A cone program a step, solved by Clarabel on the CPU: some milliseconds whatever the size of the net, where a step of a
    small net takes less than one.

    Attributes:
        c: radius of the ball around the mean gradient, in units of its length; 0 is the mean itself. The paper's experiments
            use 0.4 and 0.5.

    The other attributes are those of `AggregatedRecipe`.

    Raises:
        OptionError: a radius that is negative or not finite; cvxpy is not installed.

    Examples:
        >>> CAGradRecipe(c=0.5).label
        'cagrad'
    """

    c: float = 0.4

    name: ClassVar[str] = "cagrad"
    summary: ClassVar[str] = "one net; near the mean gradient, the best for the worst-off task (a cone program a step)"
    paper: ClassVar[str] = "Liu and others, CAGrad, NeurIPS 2021"
    aggregator: ClassVar[str] = "CAGrad"

    def __post_init__(self) -> None:
        if not (is_number(self.c) and math.isfinite(self.c) and self.c >= 0):
            raise OptionError(f"`c`={self.c!r}: give a finite number that is not negative")
        super().__post_init__()

    def _make(self) -> Any:
        return from_torchjd(self.name, "aggregation", self.aggregator, c=self.c)


@register_recipe
@dataclass(frozen=True)
class NashMTLRecipe(AggregatedRecipe):
    """The direction that the tasks agree on as in Nash's bargaining: the product of their gains is the greatest.

    Up to twenty convex programs a step, built by cvxpy and solved by ECOS on the CPU: tens of milliseconds whatever the size
    of the net, by far the most expensive recipe for small ones; `every` makes it cheaper. Deviation from the paper: tasks may
    be absent from a batch, and then take no part in its bargain.

    Attributes:
        max_norm: greatest length of the joined gradient; 0 for none.
        every: steps for which weights are kept before they are solved for anew.

    The other attributes are those of `AggregatedRecipe`.

    Raises:
        OptionError: a bound that is negative or not finite, a number of steps below 1; cvxpy or ECOS is not installed.

    Examples:
        >>> NashMTLRecipe(every=10).label
        'nash-mtl'
    """

    max_norm: float = 1.0
    every: int = 1

    name: ClassVar[str] = "nash-mtl"
    summary: ClassVar[str] = "one net; gradients joined as in Nash's bargaining (slow: up to 20 convex programs a step)"
    paper: ClassVar[str] = "Navon and others, Nash-MTL, ICML 2022"
    aggregator: ClassVar[str] = "NashMTL"

    def __post_init__(self) -> None:
        if not (is_number(self.max_norm) and math.isfinite(self.max_norm) and self.max_norm >= 0):
            raise OptionError(f"`max_norm`={self.max_norm!r}: give a finite number, 0 for no bound")
        check_whole("every", self.every)
        super().__post_init__()
        self._solver(1)

    def _solver(self, n_tasks: int) -> Any:
        return from_torchjd(self.name, "aggregation", self.aggregator, n_tasks=n_tasks, max_norm=0.0)

    def _make(self) -> Any:
        return NashBargain(self._solver, self.max_norm, self.every)


@register_recipe
@dataclass(frozen=True)
class FairGradRecipe(AggregatedRecipe):
    """The direction whose gains for the tasks are alpha-fair, as shares of bandwidth are.

    A nonlinear least-squares problem a step, solved by SciPy on the CPU: some milliseconds whatever the size of the net.

    Attributes:
        alpha: 0 is the mean of the gradients, 1 the bargain of `nash-mtl`, and the greater it is the more the task that gains
            least counts. The default is our choice, not the paper's.

    The other attributes are those of `AggregatedRecipe`.

    Raises:
        OptionError: an alpha that is negative or not finite.

    Examples:
        >>> FairGradRecipe(alpha=1.0).label
        'fairgrad'
    """

    alpha: float = 2.0

    name: ClassVar[str] = "fairgrad"
    summary: ClassVar[str] = "one net; a direction with alpha-fair gains for all tasks (a least-squares solve a step)"
    paper: ClassVar[str] = "Ban & Ji, FairGrad, ICML 2024"
    aggregator: ClassVar[str] = "FairGrad"

    def __post_init__(self) -> None:
        if not (is_number(self.alpha) and math.isfinite(self.alpha) and self.alpha >= 0):
            raise OptionError(f"`alpha`={self.alpha!r}: give a finite number that is not negative")
        super().__post_init__()

    def _make(self) -> Any:
        return ScaledFairGrad(from_torchjd(self.name, "aggregation", self.aggregator, alpha=self.alpha), self.alpha)


AGGREGATED = {
    recipe.name: recipe
    for recipe in (
        PCGradRecipe,
        MGDARecipe,
        AlignedMTLRecipe,
        IMTLGRecipe,
        UPGradRecipe,
        CAGradRecipe,
        NashMTLRecipe,
        FairGradRecipe,
    )
}
