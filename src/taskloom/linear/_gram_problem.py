"""Squared losses by their Gram matrices: a step costs nothing that grows with the rows.

Letters: K tasks, N rows in all, d features, W (d, K) coefficients, Z image of W, G Gram matrices, s row weights.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from taskloom.linear._check import is_sparse
from taskloom.linear._design import Design, OwnRows, SharedRows
from taskloom.linear._problem import Labels, Point, Problem, RowsProblem, label_noise
from taskloom.tasks import Array, Rows


class GramProblem(Problem):
    """Squared losses by their Gram matrices: f = sum_t w_t' G_t w_t / 2 - c_t' w_t + e_t / 2.

    Args:
        G: (K, d, d), or (d, d) where all tasks share it; centred if there are intercepts.
        C: (d, K) X_t' S_t y_t, likewise.
        energy: (K,) y_t' S_t y_t, likewise.
        means: (K, d) weighted means of the features, and (K,) of the labels; None without intercepts.
        totals: (K,) sums of the row weights.
    """

    def __init__(self, G: Array, C: Array, energy: Array, means: tuple[Array, Array] | None, totals: Array) -> None:
        self.G, self.C, self.energy, self.means, self.totals = G, C, energy, means, totals
        self.n_features, self.n_tasks = C.shape
        self._energy = float(energy.sum())

    def image(self, W: Array) -> Array:
        if self.G.ndim == 2:
            return self.G @ W
        return np.matmul(self.G, np.ascontiguousarray(W.T)[:, :, None])[:, :, 0].T

    def image_of(self, features: Rows, W: Array) -> Array:
        if self.G.ndim == 2:
            return self.G[:, features] @ W
        return np.matmul(self.G[:, :, features], np.ascontiguousarray(W.T)[:, :, None])[:, :, 0].T

    def value(self, at: Point, W: Array, Z: Array) -> float:  # noqa: ARG002
        return max(0.5 * float(np.vdot(W, Z)) - float(np.vdot(self.C, W)) + 0.5 * self._energy, 0.0)

    def intercepts(self, W: Array, Z: Array, start: Array | None = None) -> Array:  # noqa: ARG002
        return np.zeros(self.n_tasks) if self.means is None else self.means[1] - np.einsum("kd,dk->k", self.means[0], W)

    def point(self, W: Array, Z: Array, start: Array | None = None) -> Point:  # noqa: ARG002
        # A gradient does not need the intercepts: they have been minimised out of the matrices.
        return Point(Z - self.C, np.zeros(self.n_tasks))

    @cached_property
    def _spread(self) -> tuple[float, float]:
        given = self.energy if self.means is None else self.energy + self.totals * self.means[1] ** 2
        return 0.5 * self._energy, label_noise(float(given.sum()))

    @property
    def feature_sizes(self) -> Array:
        diagonal = np.diagonal(self.G, axis1=-2, axis2=-1).T.reshape(self.n_features, -1)
        return np.sqrt(diagonal if self.means is None else diagonal + self.totals * self.means[0].T ** 2)

    def bregman(self, D: Array, dZ: Array, at: Point) -> float:  # noqa: ARG002
        return 0.5 * float(np.vdot(D, dZ))

    def dual_value(self, at: Point, W: Array, Z: Array, c: float) -> float:  # noqa: ARG002
        cross = float(np.vdot(self.C, W))
        squares = float(np.vdot(W, Z)) - 2 * cross + self._energy
        return c * (self._energy - cross) - 0.5 * c**2 * max(squares, 0.0)

    def lipschitz(self) -> Array:
        return np.broadcast_to(np.linalg.eigvalsh(self.G)[..., -1], (self.n_tasks,)).clip(0)

    def restrict(self, features: Rows) -> GramProblem:
        G = np.ascontiguousarray(self.G[..., features[:, None], features])
        means = None if self.means is None else (self.means[0][:, features], self.means[1])
        return GramProblem(G, self.C[features], self.energy, means, self.totals)

    def _feature_norms(self) -> Array:
        diagonal = np.diagonal(self.G, axis1=-2, axis2=-1).T
        return np.sqrt(np.broadcast_to(diagonal.reshape(self.n_features, -1), (self.n_features, self.n_tasks)).clip(0))


def smooth_problem(design: Design, labels: Labels, *, gram: bool | None = None) -> Problem:
    """The problem in its fastest form.

    Args:
        design: the features.
        labels: the rest.
        gram: whether squared losses keep Gram matrices; None: where they take at most twice the memory of X and so pay off.

    Examples:
        >>> from taskloom.linear._losses import Squared
        >>> labels = Labels(np.zeros((5, 2)), np.ones((5, 2)), [Squared()] * 2)
        >>> type(smooth_problem(SharedRows(np.ones((5, 3)), 2), labels)).__name__
        'GramProblem'
    """
    squared = all(loss.name == "squared" for loss in labels.losses)
    if gram is None:
        d, one = design.n_features, _is_one_gram(design, labels)
        matrices = 1 if one else design.n_tasks
        rows = design.shape[0] if isinstance(design, OwnRows) or one else design.shape[0] * design.n_tasks
        gram = squared and matrices * d <= 2 * rows
    return _gram_problem(design, labels) if gram and squared else RowsProblem(design, labels)


def _is_one_gram(design: Design, labels: Labels) -> bool:
    """Whether all tasks have the same X and the same row weights."""
    if isinstance(design, OwnRows) or design.n_tasks == 1:
        return design.n_tasks == 1
    return bool((labels.weight == labels.weight[:, :1]).all())


def _gram_problem(design: Design, labels: Labels) -> GramProblem:
    K, d = design.n_tasks, design.n_features
    y = labels.y if labels.offset is None else labels.y - labels.offset
    one = isinstance(design, SharedRows) and _is_one_gram(design, labels)
    G, C, energy, totals = np.empty((1 if one else K, d, d)), np.empty((d, K)), np.empty(K), np.empty(K)
    x_means, y_means = np.zeros((K, d)), np.zeros(K)
    groups = [np.arange(K)] if one else [np.array([t]) for t in range(K)]
    for g, tasks in enumerate(groups):
        index = design.index(tasks)
        Y, s = y[index].reshape(-1, len(tasks)), labels.weight[index].reshape(-1, len(tasks))[:, 0]
        moments = _moments(design.block(int(tasks[0])), Y, s, center=labels.fit_intercept)
        G[g], C[:, tasks], energy[tasks], x_means[tasks], y_means[tasks] = moments
        totals[tasks] = s.sum()
    means = (x_means, y_means) if labels.fit_intercept else None
    return GramProblem(G[0] if len(G) == 1 else G, C, energy, means, totals)


def _moments(X: Any, Y: Array, s: Array, *, center: bool) -> tuple[Array, Array, Array, Array, Array]:
    """Second moments of one X and the labels of its tasks, in dense centred blocks of rows: X is never copied whole."""
    d, total = X.shape[1], s.sum()
    keep = center and total > 0
    x_mean = np.asarray(X.T @ s).ravel() / total if keep else np.zeros(d)
    y_mean = (s @ Y) / total if keep else np.zeros(Y.shape[1])
    Yc = Y - y_mean
    energy = s @ Yc**2
    G, C = np.zeros((d, d)), np.zeros((d, Y.shape[1]))
    rows = max(1, 4_000_000 // d)
    for start in range(0, X.shape[0], rows):
        part = slice(start, start + rows)
        rows_of_part = X[part].toarray() if is_sparse(X) else X[part]
        block = (rows_of_part - x_mean) * np.sqrt(s[part])[:, None]
        G += block.T @ block
        C += block.T @ (Yc[part] * np.sqrt(s[part])[:, None])
    return G, C, energy, x_mean, y_mean
