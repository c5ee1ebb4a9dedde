"""What a penalty is, and how penalties add up.

A penalty Omega(W) is four things: its value, its proximal map, the distance of minus the gradient to its subdifferential, and
the critical strength `lambda_max`. A solver needs no more; duality gaps come from two optional ones, `polar` and `conjugate`.

Letters: K tasks, d features, W (d, K) coefficients, G (d, K) gradient of the losses, V (d, K) any point, eta step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from taskloom.tasks import Array, OptionError, is_number


class Penalty(ABC):
    """Omega, convex unless its class says otherwise.

    Subclasses are frozen dataclasses whose numeric fields named in `strengths` scale the penalty.

    Attributes:
        strengths: the fields that `scaled` multiplies.
        paper: where it comes from.
    """

    strengths: ClassVar[tuple[str, ...]] = ("strength",)
    paper: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name in self.strengths:
            check_strength(name, getattr(self, name))

    @abstractmethod
    def value(self, W: Array) -> float:
        """Omega(W)."""

    @abstractmethod
    def prox(self, V: Array, step: float) -> Array:
        """argmin_W |W - V|_F^2 / 2 + step Omega(W)."""

    def prox_from(self, V: Array, step: float, memory: dict[str, Array]) -> Array:  # noqa: ARG002
        """The proximal map; one that iterates starts from what `memory` keeps of the last call."""
        return self.prox(V, step)

    def distance(self, W: Array, G: Array) -> float:
        """Frobenius distance of -G to the subdifferential of Omega at W: zero just where W minimises <G, .> + Omega.

        Where there is no closed form it is the norm of the proximal residual W - prox(W - G), which is at most the distance
        and zero at the same points.
        """
        return float(np.linalg.norm(W - self.prox(W - G, 1.0)))

    def polar(self, U: Array) -> float | None:  # noqa: ARG002
        """The least c >= 0 with U in c times the subdifferential at zero (a dual norm); None where Omega is not a norm."""
        return None

    def conjugate(self, U: Array) -> float | None:  # noqa: ARG002
        """sup_W <U, W> - Omega(W), where that is finite for every U; else None."""
        return None

    def lambda_max(self, G: Array) -> float:
        """The critical strength: from it on, W = 0 is the solution.

        Args:
            G: (d, K) gradient of the losses at W = 0.

        Returns:
            The strength itself for a penalty of one strength; for more, the factor that all of them are multiplied by.
            Infinite where no strength gives zero (smooth penalties).
        """
        factor = self.polar(-G)
        if factor is None:
            return np.inf
        return factor * getattr(self, self.strengths[0]) if len(self.strengths) == 1 else factor

    def factor_range(self, G: Array, lipschitz: Array) -> float:
        """The factor of all strengths from which on next to nothing is left to learn: where a path of strengths begins.

        Args:
            G: (d, K) gradient of the losses at W = 0.
            lipschitz: (K,) of the losses.
        """
        factor = self.polar(-G)
        if factor is not None and 0 < factor < np.inf:
            return factor
        # A smooth penalty ten times as curved as the losses leaves a tenth of the way to their minimum.
        strengths = [getattr(self, name) for name in self.strengths if getattr(self, name) > 0]
        curvature = float(np.max(lipschitz[np.isfinite(lipschitz)], initial=0.0)) or 1.0
        return 10 * curvature / min(strengths) if strengths else 1.0

    def scaled(self, factor: float) -> Self:
        """The same penalty with all strengths multiplied."""
        changes: dict[str, Any] = {name: factor * getattr(self, name) for name in self.strengths}
        return replace(self, **changes)  # ty: ignore[invalid-argument-type]

    def check(self, d: int, K: int) -> None:  # noqa: ARG002
        """Refuse a problem of d features and K tasks that the penalty does not fit, before any work is done."""
        return

    def split(self) -> tuple[list[Quadratic], Penalty | None]:
        """Smooth terms, and the rest that has a proximal map."""
        return [], self

    def merge(self, other: Penalty) -> Penalty | None:  # noqa: ARG002
        """One penalty with an exact proximal map for the sum with `other`, where there is one."""
        return None

    def __radd__(self, other: Any) -> Penalty:
        """So that `sum` of a list of penalties works: it begins with 0."""
        return self if isinstance(other, int) and other == 0 else add(other, self)

    def __rmul__(self, factor: float) -> Self:
        """`2 * Trace(0.1)` is `scaled`."""
        check_strength("factor", factor)
        return self.scaled(factor)

    def __add__(self, other: Penalty) -> Penalty:
        """The sum, where it has an exact proximal map or a smooth part.

        Raises:
            OptionError: the sum has neither.
        """
        return add(self, other)


@dataclass(frozen=True)
class NormPenalty(Penalty):
    """strength times a norm of W, whose dual norm gives all that a duality gap needs.

    Attributes:
        strength: 0 or more.
    """

    strength: float = 1.0

    @abstractmethod
    def dual_norm(self, U: Array) -> float:
        """Of the norm itself, without the strength."""

    def polar(self, U: Array) -> float:
        """The dual norm over the strength."""
        size = self.dual_norm(U)
        return size / self.strength if self.strength > 0 else (np.inf if size > 0 else 0.0)

    def lambda_max(self, G: Array) -> float:
        """The dual norm of the gradient."""
        return self.dual_norm(G)

    def merge(self, other: Penalty) -> Penalty | None:
        """Two of a kind are one."""
        return replace(self, strength=self.strength + other.strength) if isinstance(other, type(self)) else None


class Quadratic(Penalty):
    """A smooth penalty, |linear map of W|_F^2: it may also be added to the losses."""

    def split(self) -> tuple[list[Quadratic], Penalty | None]:
        """Itself, and no rest."""
        return [self], None

    @abstractmethod
    def gradient(self, W: Array) -> Array:
        """(d, K)."""

    def distance(self, W: Array, G: Array) -> float:
        """The norm of the whole gradient."""
        return float(np.linalg.norm(G + self.gradient(W)))

    def lambda_max(self, G: Array) -> float:
        """Infinite unless the gradient is zero: a smooth penalty only shrinks."""
        return np.inf if np.abs(G).max() > 0 else 0.0

    def task_matrix(self, K: int) -> Array | None:  # noqa: ARG002
        """M (K, K) with Omega(W) = tr(W M W'), where it has that form."""
        return None


def check_strength(name: str, value: Any, *, positive: bool = False) -> None:
    """Refuse a strength that is negative, infinite or not a number.

    Raises:
        OptionError: it is.
    """
    if not is_number(value) or not np.isfinite(value) or value < 0 or (positive and value == 0):
        least = "a positive number" if positive else "0 or a positive number"
        raise OptionError(f"`{name}`={value!r}: need {least}")


def as_matrix(name: str, value: Any) -> Array:
    """A 2-D array of floats.

    Raises:
        OptionError: it is none.
    """
    try:
        matrix = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise OptionError(f"`{name}`={value!r}: need a two-dimensional array of numbers") from error
    if matrix.ndim != 2 or not matrix.size:
        raise OptionError(f"`{name}` has shape {matrix.shape}: need a two-dimensional array of numbers")
    return matrix


class Sum(Penalty):
    """Smooth terms and at most one term with a proximal map.

    Attributes:
        smooth: quadratic terms.
        rest: the term with a proximal map, or None.
    """

    strengths: ClassVar[tuple[str, ...]] = ()

    def __init__(self, smooth: list[Quadratic], rest: Penalty | None) -> None:
        self.smooth, self.rest = smooth, rest

    def __repr__(self) -> str:
        return " + ".join(map(repr, self._terms))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sum) and self._terms == other._terms

    def __hash__(self) -> int:
        return hash(tuple(self._terms))

    @property
    def _terms(self) -> list[Penalty]:
        return [*self.smooth, *([] if self.rest is None else [self.rest])]

    def split(self) -> tuple[list[Quadratic], Penalty | None]:
        return self.smooth, self.rest

    def value(self, W: Array) -> float:
        return sum(term.value(W) for term in self._terms)

    def prox(self, V: Array, step: float) -> Array:  # noqa: ARG002
        """Not in closed form: solvers add the smooth terms to the losses.

        Raises:
            OptionError: always.
        """
        raise OptionError(f"`penalty`={self!r}: the sum has no closed proximal map at step {step}; take that of each term")

    def distance(self, W: Array, G: Array) -> float:
        """That of the rest, with the gradients of the smooth terms added to G."""
        total = G + sum((term.gradient(W) for term in self.smooth), np.zeros_like(G))
        return float(np.linalg.norm(total)) if self.rest is None else self.rest.distance(W, total)

    def polar(self, U: Array) -> float | None:
        """That of the rest: the gradients of the smooth terms are zero at zero."""
        return None if self.rest is None else self.rest.polar(U)

    def lambda_max(self, G: Array) -> float:
        """The factor for all terms at once."""
        factor = self.polar(-G)
        return np.inf if factor is None else factor

    def factor_range(self, G: Array, lipschitz: Array) -> float:
        """That of the rest; of the smooth terms where there is no rest."""
        terms = self.smooth if self.rest is None else [self.rest]
        return max(term.factor_range(G, lipschitz) for term in terms)

    def scaled(self, factor: float) -> Sum:
        """Every term scaled."""
        return Sum([term.scaled(factor) for term in self.smooth], None if self.rest is None else self.rest.scaled(factor))

    def check(self, d: int, K: int) -> None:
        for term in self._terms:
            term.check(d, K)


def add(one: Penalty, two: Penalty) -> Penalty:
    """The sum of two penalties: see `Penalty.__add__`."""
    for penalty in (one, two):
        if not isinstance(penalty, Penalty):
            raise OptionError(
                f"`penalty`: cannot add {penalty!r}: only penalties add up; models with a way of solving of their own do not"
            )
    (smooth_one, rest_one), (smooth_two, rest_two) = one.split(), two.split()
    rest = rest_one if rest_two is None else rest_two if rest_one is None else _merged(rest_one, rest_two)
    smooth = [*smooth_one, *smooth_two]
    return rest if rest is not None and not smooth else Sum(smooth, rest)


def _merged(one: Penalty, two: Penalty) -> Penalty:
    for first, second in ((one, two), (two, one)):
        merged = first.merge(second)
        if merged is not None:
            return merged
    names = {type(one).__name__, type(two).__name__}
    remedy = _REMEDIES.get(frozenset(names), "keep one of them, or replace one by a smooth penalty (`Ridge`, `Graph`, ...)")
    raise OptionError(f"`penalty`: {type(one).__name__} + {type(two).__name__} has no exact proximal map; {remedy}")


_REMEDIES = {
    frozenset({"Trace", "L1"}): "use `SparseLowRank`, which gives each its own part of W",
    frozenset({"Trace", "L21"}): "use `Robust` (outlier tasks) or `SparseLowRank`, which give each its own part of W",
}
