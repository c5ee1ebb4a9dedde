"""Models that are not one convex problem: they bring their own way of solving, out of convex problems.

Estimators take them where they take a penalty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NoReturn, Self

from taskloom.linear._design import Design
from taskloom.linear._problem import Labels
from taskloom.linear._solver import Solution, SolverOptions
from taskloom.tasks import Array, OptionError


class Procedure(ABC):
    """A model of K tasks that is solved by its own `solve`.

    Attributes:
        paper: where it comes from.
    """

    paper: ClassVar[str] = ""

    def check(self, d: int, K: int) -> None:  # noqa: ARG002
        """Refuse a problem of d features and K tasks that it does not fit, before any work is done."""
        return

    def __add__(self, other: object) -> NoReturn:
        """Procedures do not add up.

        Raises:
            OptionError: always.
        """
        raise OptionError(f"`penalty`: {self!r} brings its own way of solving, to which {other!r} cannot be added")

    @abstractmethod
    def solve(self, design: Design, labels: Labels, options: SolverOptions) -> Solution:
        """Fit the tasks; `Solution.details` holds what the model knows beside W."""

    def factor_range(self, G: Array, lipschitz: Array) -> float:  # noqa: ARG002
        """The factor of all strengths at which a path begins: see `Penalty.factor_range`; 10 where nothing better is known."""
        return 10.0

    @abstractmethod
    def scaled(self, factor: float) -> Self:
        """The same model with all strengths multiplied, for cross-validation."""
