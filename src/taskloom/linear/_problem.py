"""The smooth half of the objective: the losses of K tasks, with unpenalised intercepts minimised out.

f(W) = sum_t sum_i s_ti phi_t(y_ti, x_ti' w_t + o_ti + b_t), minimised over the intercepts b. Partial minimisation keeps f
convex and smooth, its gradient is that of the inner function at the best b, and the residuals of each task then sum to
zero, which is just what a feasible point of the dual problem needs.

Features and real labels are centred, task by task, without being copied: means far from zero cost no digits.

A solver sees the image of W, a linear map of it that is cheap to combine: scores Z for losses on rows, and G_t w_t for squared
losses whose Gram matrices G_t = X_t' S_t X_t are kept, where a step costs nothing that grows with n.

Letters: K tasks, N rows in all, d features, W (d, K) coefficients, Z image of W, s row weights, o offsets, b intercepts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, svds

from taskloom.linear._check import is_sparse
from taskloom.linear._design import Design
from taskloom.linear._intercepts import best_intercepts
from taskloom.linear._losses import Loss
from taskloom.tasks import Array, Rows

# Up to this side a dense decomposition is faster than an iterative one.
DENSE_SIDE = 300
# A sparse matrix of at most this many entries may be written out.
DENSE_SIZE = 1_000_000


# Below this part of the largest that it could be, an entry of a gradient is rounding.
GRADIENT_NOISE = 1e-13


def label_noise(energy: float) -> float:
    """Half the sum of squares that rounding leaves of constant labels of this sum of squares when their mean is taken out.

    Examples:
        >>> bool(label_noise(2.0) < 1e-28)
        True
    """
    return 0.5 * (16 * np.finfo(float).eps) ** 2 * energy


@dataclass(frozen=True)
class Labels:
    """What the losses need beside the scores.

    Attributes:
        y: labels, in the shape of the design's scores; anything finite where `weight` is 0.
        weight: s, with the scale of each task's loss in it; 0 for a missing label.
        losses: (K,) the loss of each task.
        offset: o, added to every score; None for none.
        fit_intercept: whether each task has an unpenalised intercept.
    """

    y: Array
    weight: Array
    losses: Sequence[Loss]
    offset: Array | None = None
    fit_intercept: bool = True


@dataclass
class Point:
    """f at one W: what a solver needs there.

    Attributes:
        gradient: (d, K).
        intercepts: (K,) b that minimises f at W, for centred features and labels: it moves little from point to point, and so
            is the first guess for the next one. Zeros without intercepts, and where Gram matrices do without them.
        slope: d phi / dz of each row; None where Gram matrices stand for the rows.
    """

    gradient: Array
    intercepts: Array
    slope: Array | None = None


class Problem(ABC):
    """f, behind the interface that solvers use."""

    n_tasks: int
    n_features: int

    @abstractmethod
    def image(self, W: Array) -> Array:
        """The linear image of W that every method below takes beside W."""

    @abstractmethod
    def image_of(self, features: Rows, W: Array) -> Array:
        """The image of coefficients that are W (p, K) at p features and zero at all others."""

    def image_by_support(self, W: Array) -> Array:
        """The image of W by the features that it uses: for sparse W cheaper than `image`."""
        support = np.flatnonzero(W.any(axis=1))
        return self.image_of(support, W[support])

    @abstractmethod
    def point(self, W: Array, Z: Array, start: Array | None = None) -> Point:
        """Gradient and intercepts at W; `start` is the intercepts of a point nearby."""

    @abstractmethod
    def intercepts(self, W: Array, Z: Array, start: Array | None = None) -> Array:
        """(K,) those that minimise f at W, for features and labels as they were given."""

    @abstractmethod
    def value(self, at: Point, W: Array, Z: Array) -> float:
        """f(W)."""

    @abstractmethod
    def bregman(self, D: Array, dZ: Array, at: Point) -> float:
        """An upper bound of f(W + D) - f(W) - <gradient, D> that is free of cancellation; `at` is the point at W."""

    @abstractmethod
    def dual_value(self, at: Point, W: Array, Z: Array, c: float) -> float:
        """-f*(c times the residuals at W), less the part of the penalty: the dual objective for 0 <= c <= 1."""

    @abstractmethod
    def lipschitz(self) -> Array:
        """(K,) Lipschitz constant of each task's gradient; infinite for Poisson."""

    @abstractmethod
    def restrict(self, features: Rows) -> Problem:
        """The same problem with the coefficients of all other features fixed at zero."""

    @cached_property
    def feature_norms(self) -> Array:
        """(d, K) of sqrt(curvature) times the weighted norm of each feature, for safe screening."""
        return self._feature_norms()

    @abstractmethod
    def _feature_norms(self) -> Array: ...

    @property
    @abstractmethod
    def feature_sizes(self) -> Array:
        """(d, K) weighted norms of the features as they were given, centres included: what rounding is measured by."""

    @cached_property
    def origin(self) -> Point:
        """The point at W = 0."""
        W = np.zeros((self.n_features, self.n_tasks))
        at = self.point(W, self._origin_image)
        # What is left of constant features, or of constant labels, is rounding, and no reason for a strength.
        noise = GRADIENT_NOISE * self.feature_sizes * np.sqrt(2 * self.spread)
        return replace(at, gradient=np.where(np.abs(at.gradient) <= noise, 0.0, at.gradient))

    @cached_property
    def spread(self) -> float:
        """f(0) less the least that its losses could be, above 0: what gaps are relative to."""
        value, noise = self._spread
        return max(value, noise, 1e-300)

    @cached_property
    @abstractmethod
    def _spread(self) -> tuple[float, float]:
        """That, and what of it rounding alone would show."""

    @cached_property
    def is_flat(self) -> bool:
        """Whether the labels of every task are constant but for rounding, so that W = 0 explains all there is."""
        value, noise = self._spread
        return value <= noise

    @cached_property
    def _origin_image(self) -> Array:
        empty = np.arange(0)
        return self.image_of(empty, np.zeros((0, self.n_tasks)))


class RowsProblem(Problem):
    """Any losses, evaluated row by row.

    Args:
        design: the features.
        labels: the rest.
    """

    def __init__(self, design: Design, labels: Labels) -> None:
        self.design, self.labels = design, labels
        self.n_tasks, self.n_features = design.n_tasks, design.n_features
        groups: dict[Loss, list[int]] = {}
        for t, loss in enumerate(labels.losses):
            groups.setdefault(loss, []).append(t)
        whole = len(groups) == 1
        self._parts = [(loss, ... if whole else design.index(np.array(tasks))) for loss, tasks in groups.items()]
        self._is_squared = all(loss.name == "squared" for loss in groups)
        self.y = labels.y - design.spread(self.label_centers) if self.label_centers.any() else labels.y
        self._curvature = np.array([loss.curvature for loss in labels.losses])

    def image(self, W: Array) -> Array:
        return self._centered(self.design.scores(W), self._centers, W)

    @cached_property
    def _centers(self) -> Array:
        """(d, K) weighted means of the features; zeros without intercepts."""
        if not self.labels.fit_intercept:
            return np.zeros((self.n_features, self.n_tasks))
        return self._weighted_sums(self.design.adjoint) / self._totals

    def _weighted_sums(self, sums: Callable[[Array], Array]) -> Array:
        """(d, K) sums over rows, each by its weight; taken once where all tasks weigh shared rows alike."""
        s = self.labels.weight
        if s.ndim == 2 and s.shape[1] > 1 and (s == s[:, :1]).all():
            return np.repeat(sums(s[:, :1]), s.shape[1], axis=1)
        return sums(s)

    @cached_property
    def label_centers(self) -> Array:
        """(K,) weighted means of real labels; zeros for others, and without intercepts."""
        real = np.array([loss.labels == "real" for loss in self.labels.losses])
        if not self.labels.fit_intercept or not real.any():
            return np.zeros(self.n_tasks)
        return np.where(real, self.means(self.labels.y), 0.0)

    def _centered(self, scores: Array, centers: Array, W: Array) -> Array:
        if not self.labels.fit_intercept:
            return scores
        return scores - self.design.spread(np.einsum("dk,dk->k", centers, W))

    def _adjoint(self, R: Array) -> Array:
        """Of centred features; R sums to nearly zero, and the centres make nothing of what is left."""
        pulled = self.design.adjoint(R)
        return pulled - self._centers * self.design.sum_rows(R) if self.labels.fit_intercept else pulled

    def each(self, what: str, argument: Array) -> Array:
        """One of the losses' functions (`value`, `derivative`, `second`, `conjugate`) of every row."""
        if len(self._parts) == 1:
            return getattr(self._parts[0][0], what)(self.y, argument)
        out = np.empty(self.design.shape)
        for loss, index in self._parts:
            out[index] = getattr(loss, what)(self.y[index], argument[index])
        return out

    def image_of(self, features: Rows, W: Array) -> Array:
        if not len(features):
            return np.zeros(self.design.shape)
        return self._centered(self.design.columns(features).scores(W), self._centers[features], W)

    def value(self, at: Point, W: Array, Z: Array) -> float:  # noqa: ARG002
        scores = self._offset(Z) + self.design.spread(at.intercepts)
        return float((self.labels.weight * self.each("value", scores)).sum())

    def intercepts(self, W: Array, Z: Array, start: Array | None = None) -> Array:
        if not self.labels.fit_intercept:
            return np.zeros(self.n_tasks)
        return self._level(Z, start) + self.label_centers - np.einsum("dk,dk->k", self._centers, W)

    def _level(self, Z: Array, start: Array | None) -> Array:
        """Intercepts for centred features and labels."""
        if not self.labels.fit_intercept:
            return np.zeros(self.n_tasks)
        scores = self._offset(Z)
        return self.means(self.y - scores) if self._is_squared else best_intercepts(self, scores, start)

    def point(self, W: Array, Z: Array, start: Array | None = None) -> Point:  # noqa: ARG002
        b = self._level(Z, start)
        slope = self.each("derivative", self._offset(Z) + self.design.spread(b))
        return Point(self._adjoint(self.labels.weight * slope), b, slope)

    @cached_property
    def _spread(self) -> tuple[float, float]:
        s, y, zero = self.labels.weight, self.labels.y, np.zeros(self.design.shape)
        if self._is_squared and self.labels.offset is None:
            return 0.5 * float((s * self.y**2).sum()), label_noise(float((s * y**2).sum()))
        b = self._level(zero, None)
        at = Point(zero, b, self.each("derivative", self._offset(zero) + self.design.spread(b)))
        value = self.value(at, zero, zero)
        real = sum(float((s[index] * y[index] ** 2).sum()) for loss, index in self._parts if loss.labels == "real")
        return value - self.dual_value(at, zero, zero, 0.0), label_noise(real)

    @cached_property
    def _totals(self) -> Array:
        totals = self.design.sum_rows(self.labels.weight)
        return np.where(totals > 0, totals, 1.0)

    def means(self, R: Array) -> Array:
        """Weighted mean over each task's rows; 0 for a task without weight."""
        return self.design.sum_rows(self.labels.weight * R) / self._totals

    def _offset(self, Z: Array) -> Array:
        return Z if self.labels.offset is None else Z + self.labels.offset

    def bregman(self, D: Array, dZ: Array, at: Point) -> float:  # noqa: ARG002
        s = self.labels.weight
        if self.labels.fit_intercept:
            # Any shift of the intercept bounds the minimised function from above; the mean is the best for squared losses.
            dZ = dZ - self.design.spread(self.means(dZ))
        bound = 0.0
        for loss, index in self._parts:
            if np.isfinite(loss.curvature):
                bound += 0.5 * loss.curvature * float((s[index] * dZ[index] ** 2).sum())
            elif at.slope is not None:
                # Poisson: exp(z) = slope + y, and exp(z + dz) - exp(z) - exp(z) dz in a form that does not cancel.
                mean, step = at.slope[index] + self.y[index], dZ[index]
                with np.errstate(over="ignore", invalid="ignore"):
                    rise = np.where(np.abs(step) < 1e-5, 0.5 * step**2 * (1 + step / 3), np.expm1(step) - step)
                    bound += float(np.nan_to_num((s[index] * mean * rise).sum(), nan=np.inf))
        return bound

    def dual_value(self, at: Point, W: Array, Z: Array, c: float) -> float:  # noqa: ARG002
        if at.slope is None:
            return -np.inf
        u = c * at.slope
        conjugate = self.each("conjugate", u)
        if self.labels.offset is not None:
            conjugate = conjugate - u * self.labels.offset
        weighted = np.multiply(self.labels.weight, conjugate, where=self.labels.weight > 0, out=np.zeros(self.design.shape))
        return -float(weighted.sum())

    def lipschitz(self) -> Array:
        return np.array([self._curvature[t] * self._top_eigenvalue(t) for t in range(self.n_tasks)])

    def _top_eigenvalue(self, t: int) -> float:
        """Of X' S X of one task, centred if it has an intercept."""
        X, s = self.design.block(t), self.labels.weight[self.design.index(np.array([t]))].ravel()
        root = np.sqrt(s)
        mean = np.asarray(X.T @ s).ravel() / s.sum() if self.labels.fit_intercept and s.sum() > 0 else np.zeros(X.shape[1])
        if min(X.shape) <= DENSE_SIDE and (not is_sparse(X) or X.shape[0] * X.shape[1] <= DENSE_SIZE):
            A = ((X.toarray() if is_sparse(X) else X) - mean) * root[:, None]
            return float(np.linalg.norm(A @ A.T if A.shape[0] < A.shape[1] else A.T @ A, 2))
        maps: dict[str, Any] = {
            "matvec": lambda w: root * (X @ w.ravel() - mean @ w.ravel()),
            "rmatvec": lambda r: X.T @ (root * r.ravel()) - mean * (root @ r.ravel()),
        }
        forward = LinearOperator(shape=X.shape, dtype=np.float64, **maps)
        # A start that is no eigenvector of anything likely, and the same each time.
        start = np.random.default_rng(0).normal(size=min(X.shape))
        return float(svds(forward, k=1, v0=start, return_singular_vectors=False)[0]) ** 2

    def restrict(self, features: Rows) -> RowsProblem:
        part = RowsProblem(self.design.columns(features), self.labels)
        part.__dict__["_centers"] = self._centers[features]
        if "spread" in self.__dict__:
            # Without coefficients a part is the whole, and so has the same.
            part.__dict__["spread"] = self.spread
        return part

    @cached_property
    def _squares(self) -> Array:
        """(d, K) weighted sums of squares of the features as they were given."""
        return np.maximum(self._weighted_sums(self.design.square_adjoint), 0)

    @property
    def feature_sizes(self) -> Array:
        return np.sqrt(self._squares)

    def _feature_norms(self) -> Array:
        # A centred square is a difference: a trace of the whole makes it an upper bound whatever the rounding.
        squares = np.maximum(self._squares - self._totals * self._centers**2, 0) + 1e-12 * self._squares
        # A feature of zeros has no curvature, not even where a loss has no bound.
        return np.multiply(np.sqrt(squares), np.sqrt(self._curvature), where=squares > 0, out=np.zeros_like(squares))
