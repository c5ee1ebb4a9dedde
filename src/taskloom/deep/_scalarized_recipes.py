"""Recipes of one net for all tasks whose losses are weighed by a scalarizer of torchjd.

Letters: K tasks, T a temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from taskloom.deep._fit import UpdateFactory
from taskloom.deep._recipes import JointRecipe
from taskloom.deep._scalarized_step import ScalarizedStep
from taskloom.deep._torchjd import from_torchjd
from taskloom.tasks import check_positive, check_whole, register_recipe


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
        super().__post_init__()
        self._make(1)

    def _make(self, n_tasks: int) -> Any:
        return from_torchjd(self.name, "scalarization", self.scalarizer, shape=n_tasks)

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


@register_recipe
@dataclass(frozen=True)
class DWARecipe(ScalarizedRecipe):
    """Dynamic weight average: a task whose loss falls slowly counts for more.

    The weights are K softmax(w / T), where w is each task's mean loss in the last window of steps over that in the one before;
    in the first two windows all are 1. Deviation from the paper, which compares epochs: a window is a number of steps, so that
    small and large data sets are weighed as often. It costs nothing, and looks at ratios of losses alone, which do not hang on
    their scale.

    Attributes:
        temperature: T; the greater, the more even the weights. The paper's 2.
        window: steps whose losses are averaged.

    The other attributes are those of `ScalarizedRecipe`.

    Raises:
        OptionError: a temperature that is not positive, or a window below 1; torchjd is not installed.

    Examples:
        >>> DWARecipe(window=100).label
        'dwa'
    """

    temperature: float = 2.0
    window: int = 50

    name: ClassVar[str] = "dwa"
    summary: ClassVar[str] = "one net; losses that fall slowly count for more (dynamic weight average)"
    paper: ClassVar[str] = "Liu, Johns & Davison, CVPR 2019"
    scalarizer: ClassVar[str] = "DWA"

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        check_whole("window", self.window)
        super().__post_init__()

    def _make(self, n_tasks: int) -> Any:  # noqa: ARG002
        return from_torchjd(self.name, "scalarization", self.scalarizer, temperature=self.temperature)

    def update(self) -> UpdateFactory:
        """A step with a fresh scalarizer that is told of the end of every window."""
        return partial(ScalarizedStep, make=self._make, window=self.window)
