"""The recipe of one net for all tasks that AdaTask trains.

Letters: K tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from taskloom.deep._aggregated_recipes import AGGREGATED
from taskloom.deep._fit import UpdateFactory
from taskloom.deep._recipes import JointRecipe
from taskloom.deep._task_gradients import AdaTaskStep
from taskloom.tasks import OptionError, register_recipe, unknown


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
        aggregator: name of a recipe such as `pcgrad`, whose aggregator (with its default settings) joins the tasks' normalised
            directions in place of a reduction. That the two go together is the paper's; that the aggregator comes after the
            normalisation is our inference: before it, what it does to lengths would be divided out again.

    Raises:
        OptionError: an unknown reduction or aggregator, or both; torchjd, or a solver that the aggregator needs, is not
            installed; dominance is to be measured below an aggregator.

    Examples:
        >>> AdaTaskRecipe(reduction="mean").label
        'adatask'
    """

    reduction: Literal["sum", "mean", "rsqrt"] = "sum"
    aggregator: str | None = None

    name: ClassVar[str] = "adatask"
    summary: ClassVar[str] = "one net, with an adaptive learning rate for each task on the shared weights (AdaTask-Adam)"
    paper: ClassVar[str] = "Yang and others, AdaTask, AAAI 2023"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction not in ("sum", "mean", "rsqrt"):
            raise OptionError(f"`reduction`={self.reduction!r}: need 'sum', 'mean' or 'rsqrt'")
        if self.aggregator is None:
            return
        if self.aggregator not in AGGREGATED:
            raise unknown("aggregator", self.aggregator, AGGREGATED)
        if self.reduction != "sum":
            raise OptionError(f"`reduction`={self.reduction!r} with an `aggregator`, which takes its place: leave one out")
        self._refuse_dominance()
        AGGREGATED[self.aggregator]()

    def update(self) -> UpdateFactory:
        """AdaTask's step, with a fresh aggregator where one is asked for."""
        if self.aggregator is None:
            return partial(AdaTaskStep, reduction=self.reduction)
        return partial(AdaTaskStep, aggregator=AGGREGATED[self.aggregator]().fresh_aggregator())
