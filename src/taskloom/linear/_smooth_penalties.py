"""Smooth penalties: ridge, graphs of tasks, pull to the mean, relations between features.

Letters: K tasks, d features, W (d, K) coefficients, M (K, K) with Omega = tr(W M W'), L Laplacian of a graph of tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from taskloom.linear._penalty import Penalty, Quadratic, Sum, as_matrix, check_strength
from taskloom.linear._sparse_penalties import L21
from taskloom.tasks import Array, OptionError


class TaskQuadratic(Quadratic):
    """tr(W M W') with M symmetric and positive semi-definite: it couples tasks and leaves features apart."""

    def prox(self, V: Array, step: float) -> Array:
        """V (I + 2 step M)^-1, by the eigenvectors of M."""
        values, Q = self._eigen(V.shape[1])
        return (V @ Q / (1 + 2 * step * values)) @ Q.T

    def value(self, W: Array) -> float:
        return float(np.vdot(W, W @ self._matrix(W.shape[1])))

    def gradient(self, W: Array) -> Array:
        return 2 * W @ self._matrix(W.shape[1])

    def conjugate(self, U: Array) -> float | None:
        """tr(U M^-1 U') / 4 where M is positive definite; else None."""
        values, Q = self._eigen(U.shape[1])
        if values[0] <= 1e-12 * max(values[-1], 1e-300):
            return None
        return 0.25 * float(((U @ Q) ** 2 / values).sum())

    def _matrix(self, K: int) -> Array:
        matrix = self.task_matrix(K)
        return np.zeros((K, K)) if matrix is None else matrix

    def _eigen(self, K: int) -> tuple[Array, Array]:
        values, Q = np.linalg.eigh(self._matrix(K))
        return np.maximum(values, 0), Q


@dataclass(frozen=True)
class Ridge(TaskQuadratic):
    """strength |W|_F^2: each task shrunk by itself (Hoerl & Kennard 1970).

    Attributes:
        strength: 0 or more; scikit-learn's `Ridge(alpha)` on sums of squares is strength = alpha / 2 with `scale="sum"`.

    Examples:
        >>> Ridge(0.5).prox(np.ones((1, 2)), 1.0)
        array([[0.5, 0.5]])
    """

    strength: float = 1.0
    paper: ClassVar[str] = "Hoerl & Kennard 1970"

    def value(self, W: Array) -> float:
        return self.strength * float(np.vdot(W, W))

    def prox(self, V: Array, step: float) -> Array:
        return V / (1 + 2 * step * self.strength)

    def gradient(self, W: Array) -> Array:
        return 2 * self.strength * W

    def conjugate(self, U: Array) -> float | None:
        """|U|_F^2 / (4 strength) where the strength is above 0."""
        return float(np.vdot(U, U)) / (4 * self.strength) if self.strength > 0 else None

    def task_matrix(self, K: int) -> Array:
        return self.strength * np.eye(K)


@dataclass(frozen=True, eq=False, repr=False)
class Graph(TaskQuadratic):
    """strength tr(W (L + ridge I) W') = strength (sum over edges A_st |w_s - w_t|^2 + ridge |W|_F^2).

    Tasks that a graph joins get similar coefficients (Sheldon 2008, "Graphical multi-task learning"; Evgeniou, Micchelli &
    Pontil, JMLR 2005). Predictions equal those of a kernel machine with the task kernel (L + ridge I)^-1. We have not read
    Sheldon's paper itself: the form is that of its kernel framework, and of MALSAR's `SRMTL`.

    Attributes:
        strength: 0 or more.
        affinity: (K, K) symmetric, not negative; the diagonal plays no part. Row and column t belong to task t in the order
            of `tasks_` (sorted labels).
        ridge: 0 or more; above 0 the solution is unique and its duality gap is known.

    Examples:
        >>> chain = np.diag([1.0, 1.0], 1) + np.diag([1.0, 1.0], -1)
        >>> Graph(1.0, chain).value(np.array([[0.0, 1.0, 3.0]]))
        5.0
    """

    strength: float = 1.0
    affinity: Any = None
    ridge: float = 0.0
    paper: ClassVar[str] = "Evgeniou, Micchelli & Pontil 2005"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength("ridge", self.ridge)
        if self.affinity is None:
            raise OptionError("`affinity` is None; a graph of K tasks is a square (K, K) array")
        A = as_matrix("affinity", self.affinity)
        if A.shape[0] != A.shape[1]:
            raise OptionError(f"`affinity` has shape {A.shape}; a graph of K tasks is a square (K, K) array")
        if not np.isfinite(A).all():
            raise OptionError("`affinity` holds a value that is not finite; use 0 for tasks that are not joined")
        if np.abs(A - A.T).max() > 1e-10 * max(1.0, np.abs(A).max()):
            raise OptionError("`affinity` is not symmetric; pass (affinity + affinity.T) / 2")
        off = A - np.diag(np.diag(A))
        if off.min(initial=0.0) < 0:
            raise OptionError(
                f"`affinity` holds {off.min():.3g}; a graph's weights are 0 or more: pass numpy.maximum(affinity, 0)"
            )

    def __repr__(self) -> str:
        shape = "x".join(map(str, np.shape(self.affinity)))
        return f"Graph(strength={self.strength}, affinity=<{shape}>, ridge={self.ridge})"

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Graph) and (self.strength, self.ridge) == (other.strength, other.ridge)
        return same and np.array_equal(self.affinity, other.affinity)

    __hash__ = None

    @cached_property
    def _unit_eigen(self) -> tuple[Array, Array]:
        values, Q = np.linalg.eigh(self._unit_matrix)
        return np.maximum(values, 0), Q

    @cached_property
    def _unit_matrix(self) -> Array:
        A = np.asarray(self.affinity, dtype=np.float64)
        A = A - np.diag(np.diag(A))
        return np.diag(A.sum(0)) - A + self.ridge * np.eye(len(A))

    def _eigen(self, K: int) -> tuple[Array, Array]:  # noqa: ARG002
        values, Q = self._unit_eigen
        return self.strength * values, Q

    def task_matrix(self, K: int) -> Array:  # noqa: ARG002
        return self.strength * self._unit_matrix

    def check(self, d: int, K: int) -> None:  # noqa: ARG002
        """Refuse a graph of another number of tasks."""
        if len(self._unit_matrix) != K:
            raise OptionError(f"`affinity` has shape {np.shape(self.affinity)} for {K} tasks; need ({K}, {K})")


@dataclass(frozen=True)
class MeanRegularized(TaskQuadratic):
    """strength sum_t |w_t - mean of all w|^2 (Evgeniou & Pontil, KDD 2004).

    It is the complete graph: `Graph` with all weights 1 / K. Unlike the paper's, the mean itself is not penalised; add a
    `Ridge` for that.

    Attributes:
        strength: 0 or more.

    Examples:
        >>> MeanRegularized(1.0).value(np.array([[0.0, 2.0]]))
        2.0
    """

    strength: float = 1.0
    paper: ClassVar[str] = "Evgeniou & Pontil 2004"

    def value(self, W: Array) -> float:
        return self.strength * float(((W - W.mean(1, keepdims=True)) ** 2).sum())

    def gradient(self, W: Array) -> Array:
        return 2 * self.strength * (W - W.mean(1, keepdims=True))

    def prox(self, V: Array, step: float) -> Array:
        mean = V.mean(1, keepdims=True)
        return mean + (V - mean) / (1 + 2 * step * self.strength)

    def conjugate(self, U: Array) -> None:  # noqa: ARG002
        """None: what all tasks have in common costs nothing."""
        return

    def task_matrix(self, K: int) -> Array:
        return self.strength * (np.eye(K) - 1 / K)


@dataclass(frozen=True, eq=False)
class FeatureRelations(Quadratic):
    """strength |R W|_F^2: prior knowledge on features, one relation a row of R (Zhang & Liu, SDM 2023).

    The row (1, -2) says w_1 = 2 w_2 in every task. The paper's exact terms were not readable to us: this is the plain reading
    of its abstract.

    Attributes:
        strength: 0 or more.
        relations: (r, d).

    Examples:
        >>> FeatureRelations(1.0, [[1.0, -2.0]]).value(np.array([[2.0], [1.0]]))
        0.0
    """

    strength: float = 1.0
    relations: Any = None
    paper: ClassVar[str] = "Zhang & Liu 2023"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not np.isfinite(as_matrix("relations", self.relations)).all():
            raise OptionError("`relations`: need a finite (r, d) array, one relation between features a row")

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, FeatureRelations) and self.strength == other.strength
        return same and np.array_equal(self.relations, other.relations)

    __hash__ = None

    @cached_property
    def _eigen(self) -> tuple[Array, Array]:
        R = np.asarray(self.relations, dtype=np.float64)
        values, Q = np.linalg.eigh(R.T @ R)
        return np.maximum(values, 0), Q

    def value(self, W: Array) -> float:
        return self.strength * float(((np.asarray(self.relations) @ W) ** 2).sum())

    def gradient(self, W: Array) -> Array:
        R = np.asarray(self.relations, dtype=np.float64)
        return 2 * self.strength * (R.T @ (R @ W))

    def prox(self, V: Array, step: float) -> Array:
        values, Q = self._eigen
        return Q @ ((Q.T @ V) / (1 + 2 * step * self.strength * values)[:, None])

    def check(self, d: int, K: int) -> None:  # noqa: ARG002
        """Refuse relations of another number of features."""
        if np.shape(self.relations)[1] != d:
            raise OptionError(f"`relations` has shape {np.shape(self.relations)} for {d} features; need (r, {d})")


def PriorInformation(  # noqa: N802
    strength: float = 1.0,
    *,
    relations: Any = None,
    relation_strength: float = 1.0,
    graph: Any = None,
    graph_strength: float = 1.0,
) -> Penalty:
    """Tell the model what you know: few features matter, how features relate, which tasks are alike.

    strength |W|_{2,1} + relation_strength |R W|_F^2 + graph_strength tr(W L W'), a composition of `L21`, `FeatureRelations` and
    `Graph` (Zhang & Liu, SDM 2023, as far as its abstract says; its own solver is not known to us, ours is exact).

    Args:
        strength: of the joint choice of features.
        relations: (r, d) relations between features, see `FeatureRelations`; None for none.
        relation_strength: how firmly they hold.
        graph: (K, K) affinity of the tasks, see `Graph`; the string `"mean"` pulls all tasks to their mean; None for none.
        graph_strength: how firmly.

    Examples:
        >>> PriorInformation(0.1, graph="mean", graph_strength=2.0)
        MeanRegularized(strength=2.0) + L21(strength=0.1)
    """
    smooth: list[Quadratic] = []
    if relations is not None:
        smooth.append(FeatureRelations(relation_strength, relations))
    if isinstance(graph, str):
        if graph != "mean":
            raise OptionError(f"`graph`={graph!r}: need a (K, K) affinity, 'mean' or None")
        smooth.append(MeanRegularized(graph_strength))
    elif graph is not None:
        smooth.append(Graph(graph_strength, graph))
    return Sum(smooth, L21(strength)) if smooth else L21(strength)
