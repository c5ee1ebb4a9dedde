"""How long, how fast and where a net is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taskloom.tasks import OptionError, check_positive, check_whole, unknown

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true")


@dataclass(frozen=True)
class FitOptions:
    """Options of a fit.

    Attributes:
        learning_rate: of Adam; None lets a recipe choose it on validation from `learning_rates`.
        learning_rates: least and greatest learning rate that a recipe tries.
        batch_size: rows of each task in one step. Shared rows: rows in one step, each with all its labels.
        max_steps: optimizer steps at the most.
        validate_every: steps between two looks at the validation loss.
        patience: looks without improvement after which training stops; the best weights seen are kept.
        precision: what lightning-fabric calls `precision`.
        accelerator: what lightning-fabric calls `accelerator`: `auto`, `cpu`, `cuda`, ...
        checkpoint_every: steps between two checkpoints, where a checkpoint is asked for.

    Raises:
        OptionError: a value outside of what it may be.

    Examples:
        >>> FitOptions(max_steps=500).patience
        20
    """

    learning_rate: float | None = None
    learning_rates: tuple[float, float] = (3e-4, 1e-2)
    batch_size: int = 64
    max_steps: int = 2000
    validate_every: int = 10
    patience: int = 20
    precision: str = "32-true"
    accelerator: str = "auto"
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_steps", "validate_every", "patience", "checkpoint_every"):
            check_whole(name, getattr(self, name))
        if not isinstance(self.learning_rates, Sequence) or len(self.learning_rates) != 2:
            raise OptionError(f"`learning_rates`={self.learning_rates!r}: give two numbers, the least and the greatest")
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)
        for rate in self.learning_rates:
            check_positive("learning_rates", rate)
        if self.learning_rates[0] > self.learning_rates[1]:
            raise OptionError(f"`learning_rates`={self.learning_rates}: give the least first")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)

    def candidate_rates(self, budget: int) -> list[float]:
        """The learning rates that a recipe with this budget tries, evenly spaced in their logarithm.

        Args:
            budget: how many, where none is fixed.

        Raises:
            OptionError: less than one.

        Examples:
            >>> FitOptions(learning_rates=(1e-3, 1e-2)).candidate_rates(2)
            [0.001, 0.01]
        """
        check_whole("budget", budget)
        if self.learning_rate is not None:
            return [self.learning_rate]
        least, greatest = self.learning_rates
        if budget == 1:
            return [math.sqrt(least * greatest)]
        ratio = greatest / least
        return [float(f"{least * ratio ** (i / (budget - 1)):.6g}") for i in range(budget)]


def check_options(options: Any) -> None:
    """Refuse what are no options of a fit.

    Raises:
        OptionError: of another type.
    """
    if not isinstance(options, FitOptions):
        raise OptionError(f"`options`={options!r}: give `FitOptions(...)`")
