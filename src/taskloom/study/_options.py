"""How a study is run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from taskloom.tasks import OptionError, is_number, is_whole


@dataclass(frozen=True)
class StudyOptions:
    """Options of a study.

    Attributes:
        fractions: of training, validation and test rows in every split.
        budget: candidates (learning rates, strengths) that every recipe may try on validation rows.
        confidence: of the intervals, and one minus the error rate of the verdicts.
        controls: train the controls of recipes that ask for some, as `selective` does, beside them; False adds none, and a
            recipe is compared with those of its controls that were named.
        cache: folder of finished fits; True picks `TASKLOOM_CACHE`, else the user's cache folder; False keeps nothing.

    Raises:
        OptionError: a value outside of what it may be.
    """

    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    budget: int = 3
    confidence: float = 0.95
    cache: bool | str | Path = True
    controls: bool = True

    def __post_init__(self) -> None:
        if not is_whole(self.budget, 1):
            raise OptionError(f"`budget`={self.budget!r}: every recipe needs a whole number of candidates, at least 1")
        if not is_number(self.confidence) or not 0.5 <= self.confidence < 1:
            raise OptionError(f"`confidence`={self.confidence!r}: give a number from 0.5 to below 1")
        if len(self.fractions) != 3 or min(self.fractions) <= 0:
            raise OptionError(f"`fractions`={self.fractions!r}: a study needs training, validation and test rows")

    def cache_folder(self) -> Path | None:
        """Where finished fits are kept; None for nowhere."""
        if self.cache is False:
            return None
        if self.cache is True:
            return Path(os.environ.get("TASKLOOM_CACHE") or platformdirs.user_cache_path("taskloom"))
        return Path(self.cache)


def seed_list(seeds: int | Sequence[int]) -> list[int]:
    """The seeds themselves: a number S stands for 0 ... S - 1.

    Raises:
        OptionError: no seed, a negative one, one given twice, or what is no whole number.

    Examples:
        >>> seed_list(3), seed_list([7, 9])
        ([0, 1, 2], [7, 9])
    """
    given = list(seeds) if isinstance(seeds, Iterable) else range(seeds) if is_whole(seeds) else []
    if not given or not all(is_whole(seed, 0) for seed in given) or len(set(given)) < len(given):
        raise OptionError(
            f"`seeds`={seeds!r}: give a whole number of at least 1, or different seeds, whole numbers of at least 0"
        )
    return [int(seed) for seed in given]
