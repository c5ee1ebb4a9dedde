"""Penalties that set coefficients, or whole features, to zero; and fusion along an order of tasks.

Letters: K tasks, d features, W (d, K) coefficients, V (d, K) any point, G (d, K) gradient, U (d, K) dual point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from taskloom.linear._penalty import NormPenalty, Penalty, as_matrix
from taskloom.linear._total_variation import prox_total_variation
from taskloom.tasks import Array, OptionError


def soft(V: Array, threshold: Any) -> Array:
    """Entries moved towards zero by `threshold`."""
    return np.sign(V) * np.maximum(np.abs(V) - threshold, 0)


def shrink_rows(V: Array, threshold: float) -> Array:
    """Rows shortened by `threshold`."""
    norms = np.sqrt(np.einsum("ij,ij->i", V, V))
    return V * (np.maximum(norms - threshold, 0) / np.maximum(norms, 1e-300))[:, None]


def _largest(ratios: Array) -> float:
    return float(ratios.max(initial=0.0))


@dataclass(frozen=True, eq=False)
class L1(Penalty):
    """strength sum |w_jt|: each task its own few features (the lasso, Tibshirani 1996).

    Attributes:
        strength: 0 or more.
        weights: (d, K) factors of the single entries, 0 or more; None for ones.

    Examples:
        >>> L1(1.0).prox(np.array([[3.0, -0.5]]), 1.0)
        array([[ 2., -0.]])
    """

    strength: float = 1.0
    weights: Any = None
    paper: ClassVar[str] = "Tibshirani 1996"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None:
            weights = as_matrix("weights", self.weights)
            if not np.isfinite(weights).all() or weights.min(initial=0) < 0:
                raise OptionError(
                    f"`weights` of shape {weights.shape}: need a finite (d, K) array of numbers that are 0 or more"
                )

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, L1) and self.strength == other.strength and (self.weights is None) == (other.weights is None)
        return same and (self.weights is None or np.array_equal(self.weights, other.weights))

    __hash__ = None

    @property
    def _threshold(self) -> Any:
        return self.strength if self.weights is None else self.strength * np.asarray(self.weights)

    def value(self, W: Array) -> float:
        return float((self._threshold * np.abs(W)).sum())

    def prox(self, V: Array, step: float) -> Array:
        return soft(V, step * self._threshold)

    def distance(self, W: Array, G: Array) -> float:
        """In closed form."""
        bound = np.broadcast_to(self._threshold, W.shape)
        gaps = np.where(W != 0, np.abs(G + bound * np.sign(W)), np.maximum(np.abs(G) - bound, 0))
        return float(np.linalg.norm(gaps))

    def polar(self, U: Array) -> float:
        """The greatest |u_jt|, over the strength."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return _largest(np.where(U == 0, 0, np.abs(U) / self._threshold))

    def lambda_max(self, G: Array) -> float:
        """The greatest |g_jt| over its weight."""
        return L1(1.0, self.weights).polar(-G)

    def check(self, d: int, K: int) -> None:
        """Refuse weights of another shape."""
        if self.weights is not None and np.shape(self.weights) != (d, K):
            raise OptionError(f"`weights` has shape {np.shape(self.weights)}; need {(d, K)}, features x tasks")

    def merge(self, other: Penalty) -> Penalty | None:
        """L1 + L1 and L1 + L21 have exact proximal maps."""
        if isinstance(other, L1):
            if self.weights is None and other.weights is None:
                return L1(self.strength + other.strength)
            return L1(1.0, self._threshold + other._threshold)
        if self.weights is None and isinstance(other, L21):
            return Fused(fusion=0.0, sparsity=self.strength, group=other.strength)
        return None


@dataclass(frozen=True)
class L21(NormPenalty):
    """strength sum_j |row j of W|_2: all tasks choose the same features (Obozinski, Taskar & Jordan 2010).

    scikit-learn's `MultiTaskLasso(alpha)` is this with shared rows, `scale="mean"` and strength = alpha.

    Attributes:
        strength: 0 or more.

    Examples:
        >>> L21(1.0).prox(np.array([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        array([[2.4, 3.2],
               [0. , 0. ]])
    """

    strength: float = 1.0
    paper: ClassVar[str] = "Obozinski, Taskar & Jordan 2010"

    def value(self, W: Array) -> float:
        return self.strength * float(np.linalg.norm(W, axis=1).sum())

    def prox(self, V: Array, step: float) -> Array:
        return shrink_rows(V, step * self.strength)

    def distance(self, W: Array, G: Array) -> float:
        """In closed form."""
        norms = np.linalg.norm(W, axis=1, keepdims=True)
        on = np.linalg.norm(G + self.strength * W / np.where(norms > 0, norms, 1), axis=1)
        off = np.maximum(np.linalg.norm(G, axis=1) - self.strength, 0)
        return float(np.linalg.norm(np.where(norms[:, 0] > 0, on, off)))

    def dual_norm(self, U: Array) -> float:
        """The length of the longest row."""
        return _largest(np.linalg.norm(U, axis=1))


@dataclass(frozen=True)
class Fused(Penalty):
    """sparsity sum |w_jt| + fusion sum_jt |w_j,t+1 - w_jt| + group sum_j |row j|_2: tasks in an order (cFSGL).

    Zhou, Liu, Narayan & Ye (KDD 2012, "Modeling disease progression via fused sparse group lasso"): task t is a time point, in
    the order of `tasks_`. The proximal map is exact: total variation, then entries, then rows. With `fusion=0` this is the
    sparse group lasso; `L1(a) + L21(b)` gives it.

    Attributes:
        fusion: pull between neighbouring tasks, 0 or more.
        sparsity: of single coefficients, 0 or more.
        group: of whole features, 0 or more.

    Examples:
        >>> Fused(fusion=1.0).prox(np.array([[0.0, 4.0]]), 1.0)
        array([[1., 3.]])
    """

    fusion: float = 1.0
    sparsity: float = 0.0
    group: float = 0.0
    strengths: ClassVar[tuple[str, ...]] = ("fusion", "sparsity", "group")
    paper: ClassVar[str] = "Zhou, Liu, Narayan & Ye 2012"

    def value(self, W: Array) -> float:
        entries, jumps = np.abs(W).sum(), np.abs(np.diff(W, axis=1)).sum()
        return float(self.sparsity * entries + self.fusion * jumps + self.group * np.linalg.norm(W, axis=1).sum())

    def prox(self, V: Array, step: float) -> Array:
        fused = prox_total_variation(V, step * self.fusion)
        return shrink_rows(soft(fused, step * self.sparsity), step * self.group)

    def polar(self, U: Array) -> float | None:
        """By bisection: c from which on the proximal map of c times the penalty sends U to zero, rounded up.

        None without `sparsity` and `group`, where constant rows cost nothing.
        """
        if self.sparsity + self.group == 0:
            return None
        norms = np.linalg.norm(U, axis=1)
        most, widest = _largest(np.abs(U)), _largest(norms)
        # Feasible for one part is feasible for the sum, and no entry can hide from all three parts.
        parts = [v / s for v, s in ((most, self.sparsity), (widest, self.group)) if s > 0]
        high, low = min(parts), 0.0
        while high - low > 1e-15 * high and low < (middle := 0.5 * (low + high)) < high:
            low, high = (low, middle) if not self.prox(U, middle).any() else (middle, high)
        return high

    def merge(self, other: Penalty) -> Penalty | None:
        """Fused + L1, + L21 and + Fused have exact proximal maps."""
        if isinstance(other, L1) and other.weights is None:
            return Fused(self.fusion, self.sparsity + other.strength, self.group)
        if isinstance(other, L21):
            return Fused(self.fusion, self.sparsity, self.group + other.strength)
        if isinstance(other, Fused):
            pairs = zip(self._strengths, other._strengths, strict=True)
            return Fused(*(a + b for a, b in pairs))
        return None

    @property
    def _strengths(self) -> tuple[float, float, float]:
        return self.fusion, self.sparsity, self.group
