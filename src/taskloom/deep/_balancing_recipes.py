"""Recipes of one net for all tasks whose update keeps any task from drowning the others."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from taskloom.deep._fit import UpdateFactory
from taskloom.deep._recipes import JointRecipe
from taskloom.deep._scalarized_step import ScalarizedStep
from taskloom.deep._task_gradients import AdaTaskStep, AggregatedStep
from taskloom.tasks import OptionError, register_recipe


@register_recipe
@dataclass(frozen=True)
class AdaTaskRecipe(JointRecipe):
    """One net for all tasks, trained by AdaTask-Adam: each task has its own adaptive learning rate on the shared weights.

    The learning rate with the least mean validation loss is chosen. Weights of the losses would do nothing here: see
    `AdaTaskAdam`.

    Attributes:
        net: as for `SingleRecipe`.
        options: batch size, length, precision, device.
        title: name in a study, if not `adatask`.
        reduction: `sum` of the tasks' directions, as in the paper, their `mean`, or `rsqrt`.

    Examples:
        >>> AdaTaskRecipe(reduction="mean").label
        'adatask'
    """

    reduction: Literal["sum", "mean", "rsqrt"] = "sum"

    name: ClassVar[str] = "adatask"
    summary: ClassVar[str] = "one net, with an adaptive learning rate for each task on the shared weights (AdaTask-Adam)"
    paper: ClassVar[str] = "Yang and others, AdaTask, AAAI 2023"

    def __post_init__(self) -> None:
        if self.reduction not in ("sum", "mean", "rsqrt"):
            raise OptionError(f"`reduction`={self.reduction!r}: need 'sum', 'mean' or 'rsqrt'")

    def update(self) -> UpdateFactory:
        """AdaTask's step."""
        return partial(AdaTaskStep, reduction=self.reduction)


@dataclass(frozen=True)
class AggregatedRecipe(JointRecipe):
    """One net for all tasks; the tasks' gradients on the shared weights are joined by an aggregator of torchjd.

    Attributes:
        net: as for `SingleRecipe`.
        options: batch size, length, precision, device.
        title: name in a study, if not the recipe's.

    Raises:
        OptionError: torchjd is not installed.
    """

    aggregator: ClassVar[str]
    by_default: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._make()

    def _make(self) -> Any:
        return getattr(_torchjd(self.name, "aggregation"), self.aggregator)()

    def update(self) -> UpdateFactory:
        """A step with a fresh aggregator."""
        return partial(AggregatedStep, aggregator=self._make())


@register_recipe
@dataclass(frozen=True)
class PCGradRecipe(AggregatedRecipe):
    """Of two tasks whose gradients conflict, each is projected on the other's normal plane.

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

    Examples:
        >>> IMTLGRecipe().label
        'imtl-g'
    """

    name: ClassVar[str] = "imtl-g"
    summary: ClassVar[str] = "one net; a combination of gradients with equal projections on all of them"
    paper: ClassVar[str] = "Liu and others, IMTL, ICLR 2021"
    aggregator: ClassVar[str] = "IMTLG"


@dataclass(frozen=True)
class ScalarizedRecipe(JointRecipe):
    """One net for all tasks; the losses are weighed by a scalarizer of torchjd before one backward pass.

    Attributes:
        net: as for `SingleRecipe`.
        options: batch size, length, precision, device.
        title: name in a study, if not the recipe's.

    Raises:
        OptionError: torchjd is not installed.
    """

    scalarizer: ClassVar[str]
    by_default: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._make(1)

    def _make(self, n_tasks: int) -> Any:
        return getattr(_torchjd(self.name, "scalarization"), self.scalarizer)(n_tasks)

    def update(self) -> UpdateFactory:
        """A step with a fresh scalarizer."""
        return partial(ScalarizedStep, make=self._make)


@register_recipe
@dataclass(frozen=True)
class UWRecipe(ScalarizedRecipe):
    """Each loss is divided by a learned variance of its task: uncertainty weighting.

    Examples:
        >>> UWRecipe().label
        'uw'
    """

    name: ClassVar[str] = "uw"
    summary: ClassVar[str] = "one net; each loss divided by a learned variance of its task (uncertainty weighting)"
    paper: ClassVar[str] = "Kendall, Gal & Cipolla, CVPR 2018"
    scalarizer: ClassVar[str] = "UW"


@register_recipe
@dataclass(frozen=True)
class FAMORecipe(ScalarizedRecipe):
    """Weights of the losses that let all of them fall at one rate, learned from the losses alone.

    Examples:
        >>> FAMORecipe().label
        'famo'
    """

    name: ClassVar[str] = "famo"
    summary: ClassVar[str] = "one net; learned weights that let all losses fall at one rate (a second forward pass a step)"
    paper: ClassVar[str] = "Liu and others, FAMO, NeurIPS 2023"
    scalarizer: ClassVar[str] = "FAMO"


def _torchjd(recipe: str, part: str) -> Any:
    try:
        importlib.import_module("torchjd")
        return importlib.import_module(f"torchjd.{part}")
    except ImportError as error:
        raise OptionError(f"recipe `{recipe}` needs torchjd; install taskloom[torchjd]") from error
