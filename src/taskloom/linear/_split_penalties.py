"""Penalties that write W as a sum of parts, each with a penalty of its own.

Such a penalty is the infimal convolution of its parts' penalties. Solvers work on the parts P, an (m, d, K) array with
W = sum of P: there value, proximal map and distance are those of the parts side by side.

Letters: K tasks, d features, m parts, P (m, d, K) parts, G (d, K) gradient of the losses in W, U (d, K) dual point.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from taskloom.linear._penalty import NormPenalty, Penalty
from taskloom.linear._sparse_penalties import L1
from taskloom.linear._spectral_penalties import Trace
from taskloom.tasks import Array


def project_l1_rows(V: Array, radius: float) -> Array:
    """Each row's nearest point of the l1 ball (Duchi and others 2008), by sorting.

    Examples:
        >>> project_l1_rows(np.array([[3.0, 1.0]]), 2.0)
        array([[2., 0.]])
    """
    size = np.abs(V)
    ordered = -np.sort(-size, axis=1)
    excess = np.cumsum(ordered, axis=1) - radius
    places = np.arange(1, V.shape[1] + 1)
    last = np.maximum((ordered * places > excess).sum(1), 1)
    threshold = np.maximum(excess[np.arange(len(V)), last - 1] / last, 0)
    return np.sign(V) * np.maximum(size - threshold[:, None], 0)


@dataclass(frozen=True)
class L1Inf(NormPenalty):
    """strength sum_j max_t |w_jt|: features chosen by all tasks together, with coefficients free up to the greatest one.

    Turlach, Venables & Wright (Technometrics 2005).

    Attributes:
        strength: 0 or more.

    Examples:
        >>> L1Inf(1.0).prox(np.array([[3.0, 1.0]]), 1.0)
        array([[2., 1.]])
    """

    strength: float = 1.0
    paper: ClassVar[str] = "Turlach, Venables & Wright 2005"

    def value(self, W: Array) -> float:
        return self.strength * float(np.abs(W).max(axis=1).sum())

    def prox(self, V: Array, step: float) -> Array:
        return V - project_l1_rows(V, step * self.strength)

    def dual_norm(self, U: Array) -> float:
        """The greatest l1 norm of a row."""
        return float(np.abs(U).sum(1).max(initial=0))


@dataclass(frozen=True)
class OutlierTasks(NormPenalty):
    """strength sum_t |w_t|_2: whole tasks at zero; on a part of W, tasks that do not fit the rest.

    Attributes:
        strength: 0 or more.

    Examples:
        >>> OutlierTasks(1.0).prox(np.array([[3.0, 0.3], [4.0, 0.4]]), 1.0)
        array([[2.4, 0. ],
               [3.2, 0. ]])
    """

    strength: float = 1.0
    paper: ClassVar[str] = "Chen, Zhou & Ye 2011"

    def value(self, W: Array) -> float:
        return self.strength * float(np.linalg.norm(W, axis=0).sum())

    def prox(self, V: Array, step: float) -> Array:
        norms = np.linalg.norm(V, axis=0)
        return V * (np.maximum(norms - step * self.strength, 0) / np.maximum(norms, 1e-300))

    def dual_norm(self, U: Array) -> float:
        """The length of the longest column."""
        return float(np.linalg.norm(U, axis=0).max(initial=0))


class Split(Penalty):
    """W = sum of parts; `value`, `prox` and `distance` take the parts, (m, d, K).

    The smooth terms of a sum with a split penalty are of W, which a solver knows; `Sum.value` of parts is not defined.
    """

    @property
    @abstractmethod
    def parts(self) -> tuple[Penalty, ...]:
        """The penalty of each part."""

    def value(self, W: Array) -> float:
        """Sum over the parts, (m, d, K)."""
        return sum(part.value(P) for part, P in zip(self.parts, W, strict=True))

    def prox(self, V: Array, step: float) -> Array:
        """Each part's own, (m, d, K)."""
        return np.stack([part.prox(P, step) for part, P in zip(self.parts, V, strict=True)])

    def distance(self, W: Array, G: Array) -> float:
        """Of the parts (m, d, K) together; G is (d, K), the gradient in W, which is that in every part."""
        return float(np.sqrt(sum(part.distance(P, G) ** 2 for part, P in zip(self.parts, W, strict=True))))

    def polar(self, U: Array) -> float:
        """The greatest of the parts': U must be feasible for each."""
        return max(part.polar(U) or 0.0 for part in self.parts)


@dataclass(frozen=True)
class Dirty(Split):
    """shared sum_j max_t |p_jt| + own sum |q_jt|, W = P + Q: features shared by all tasks, and features of single tasks.

    Jalali, Ravikumar, Sanghavi & Ruan (NIPS 2010, "A dirty model for multi-task learning").

    Attributes:
        shared: strength of the joint part.
        own: strength of the single tasks' part; between shared / K and shared both parts can be in use.

    Examples:
        >>> Dirty(1.0, 0.6).polar(np.array([[0.5, 0.5]]))
        1.0
    """

    shared: float = 1.0
    own: float = 1.0
    strengths: ClassVar[tuple[str, ...]] = ("shared", "own")
    paper: ClassVar[str] = "Jalali, Ravikumar, Sanghavi & Ruan 2010"

    @property
    def parts(self) -> tuple[Penalty, ...]:
        return L1Inf(self.shared), L1(self.own)


@dataclass(frozen=True)
class Robust(Split):
    """low_rank (trace norm of L) + outlier sum_t |s_t|_2, W = L + S: a shared subspace, and tasks that stay out of it.

    Chen, Zhou & Ye (KDD 2011, "Integrating low-rank and group-sparse structures for robust multi-task learning").

    Attributes:
        low_rank: strength of the shared subspace.
        outlier: strength of the outlying tasks' part.

    Examples:
        >>> Robust(1.0, 2.0).polar(np.array([[3.0]]))
        3.0
    """

    low_rank: float = 1.0
    outlier: float = 1.0
    strengths: ClassVar[tuple[str, ...]] = ("low_rank", "outlier")
    paper: ClassVar[str] = "Chen, Zhou & Ye 2011"

    @property
    def parts(self) -> tuple[Penalty, ...]:
        return Trace(self.low_rank), OutlierTasks(self.outlier)


@dataclass(frozen=True)
class SparseLowRank(Split):
    """low_rank (trace norm of L) + sparse sum |s_jt|, W = L + S: a shared subspace and single coefficients beside it.

    Chen, Liu & Ye (KDD 2010, "Learning incoherent sparse and low-rank patterns from multiple tasks"). The paper bounds the
    trace norm; we penalise it, which has the same solutions for matching strengths.

    Attributes:
        low_rank: strength of the shared subspace.
        sparse: strength of the single coefficients.

    Examples:
        >>> SparseLowRank(1.0, 2.0).polar(np.array([[3.0]]))
        3.0
    """

    low_rank: float = 1.0
    sparse: float = 1.0
    strengths: ClassVar[tuple[str, ...]] = ("low_rank", "sparse")
    paper: ClassVar[str] = "Chen, Liu & Ye 2010"

    @property
    def parts(self) -> tuple[Penalty, ...]:
        return Trace(self.low_rank), L1(self.sparse)
