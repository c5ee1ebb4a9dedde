"""What the measures have in common: how many rows they look at, how long a joint run lasts, how much is held at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from taskloom.deep import FitOptions
from taskloom.tasks import OptionError, Task, check_positive, check_whole, is_number

# A net that stands as it is, or a maker of nets: maps the shape of a row and tasks to one.
Model = nn.Module | Callable[[tuple[int, ...], Sequence[Task]], nn.Module]


def check_grow(grow: float | None) -> None:
    """Refuse a stability to reach that is no correlation above 0.

    Raises:
        OptionError: names it.
    """
    if grow is not None and not (is_number(grow) and 0 < grow <= 1):
        raise OptionError(f"`grow`={grow!r}: give a correlation above 0 and at most 1, or None")


class AffinityWarning(UserWarning):
    """A measure did something else than its name says, because the data do not allow that."""


@dataclass(frozen=True)
class MeasureOptions:
    """Options of every measure; each takes no notice of what it has no use for.

    Attributes:
        n_rows: rows looked at, at the most; where each task has rows of its own, rows of each. Rare classes have a part in
            them.
        steps: optimizer steps of the joint run.
        batch_size: rows of a step; where each task has rows of its own, rows of each.
        learning_rate: of Adam in the joint run. It is rather high: what tasks do not share comes apart sooner.
        every: steps from one look at a joint run to the next.
        seed: of initial weights, batches, chosen rows and everything else that is random.
        split_half: measure the stability too: the correlation of what two halves of the rows (or of the looks) say.
        at_once: numbers held in memory at a time, about; a measure goes through its rows in parts for it.
        accelerator: of the joint run, what lightning-fabric calls so: `auto`, `cpu`, `cuda`, ...

    Raises:
        OptionError: a value outside of what it may be.

    Examples:
        >>> MeasureOptions(steps=200).n_rows
        512
    """

    n_rows: int = 512
    steps: int = 800
    batch_size: int = 64
    learning_rate: float = 1e-2
    every: int = 10
    seed: int = 0
    split_half: bool = True
    at_once: int = 1 << 24
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("n_rows", 2), ("steps", 1), ("batch_size", 1), ("every", 1), ("at_once", 1), ("seed", 0)):
            check_whole(name, getattr(self, name), least)
        check_positive("learning_rate", self.learning_rate)

    def fit_options(self) -> FitOptions:
        """Of the joint run: all its steps, with a look at the losses at its end alone."""
        return FitOptions(
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            max_steps=self.steps,
            validate_every=self.steps,
            accelerator=self.accelerator,
        )
