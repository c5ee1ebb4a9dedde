"""The features of K tasks behind one interface: rows that all tasks share, or rows of each task's own.

Both map coefficients W to scores Z and back. Scores, labels and row weights have the shape of the design: (n, K) for shared
rows, (N,) for own rows, which lie one task after the other.

Letters: K tasks, n rows of a task, N rows in all, d features, W (d, K) coefficients, Z scores, R one number a score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from taskloom.linear._check import is_sparse
from taskloom.tasks import Array, Rows


class Design(ABC):
    """X_1 ... X_K, as they were given."""

    n_tasks: int
    n_features: int
    shape: tuple[int, ...]

    @abstractmethod
    def scores(self, W: Array) -> Array:
        """Z = X_t w_t for all t."""

    @abstractmethod
    def adjoint(self, R: Array) -> Array:
        """X_t' r_t for all t, (d, K)."""

    @abstractmethod
    def sum_rows(self, R: Array) -> Array:
        """Sum over each task's rows, (K,)."""

    @abstractmethod
    def largest(self, R: Array) -> Array:
        """The greatest of each task's rows, (K,); 0 for a task without rows."""

    @abstractmethod
    def spread(self, b: Array) -> Array:
        """One number a task, (K,), as an array that broadcasts against scores."""

    @abstractmethod
    def index(self, tasks: Rows) -> Any:
        """What picks the scores of some tasks out of all scores."""

    @abstractmethod
    def columns(self, features: Rows) -> Design:
        """The same rows with some of the features (copied)."""

    @abstractmethod
    def block(self, t: int) -> Any:
        """X_t."""

    @abstractmethod
    def square_adjoint(self, R: Array) -> Array:
        """(X_t * X_t)' r_t for all t, (d, K)."""


@dataclass
class SharedRows(Design):
    """One X (n, d), dense or scipy sparse, for K tasks.

    Examples:
        >>> design = SharedRows(np.eye(2), 3)
        >>> design.scores(np.ones((2, 3))).shape, design.sum_rows(np.ones((2, 3)))
        ((2, 3), array([2., 2., 2.]))
    """

    X: Any
    n_tasks: int

    def __post_init__(self) -> None:
        self.n_features = self.X.shape[1]
        self.shape = (self.X.shape[0], self.n_tasks)

    def scores(self, W: Array) -> Array:
        return self.X @ W

    def adjoint(self, R: Array) -> Array:
        return self.X.T @ R

    def sum_rows(self, R: Array) -> Array:
        return (R if R.shape == self.shape else np.broadcast_to(R, self.shape)).sum(0)

    def largest(self, R: Array) -> Array:
        return np.broadcast_to(R, self.shape).max(0)

    def spread(self, b: Array) -> Array:
        return b[None, :]

    def index(self, tasks: Rows) -> Any:
        return (slice(None), tasks)

    def columns(self, features: Rows) -> SharedRows:
        return SharedRows(self.X[:, features], self.n_tasks)

    def block(self, t: int) -> Any:  # noqa: ARG002
        return self.X

    def square_adjoint(self, R: Array) -> Array:
        return _square_adjoint(self.X, R)


@dataclass
class OwnRows(Design):
    """X_t (n_t, d) of each task, dense or scipy sparse.

    Examples:
        >>> design = OwnRows([np.eye(2), np.ones((1, 2))])
        >>> design.scores(np.ones((2, 2)))
        array([1., 1., 2.])
    """

    blocks: Sequence[Any]

    def __post_init__(self) -> None:
        self.n_tasks = len(self.blocks)
        self.n_features = self.blocks[0].shape[1]
        self.shape = (int(self.sizes.sum()),)

    @cached_property
    def sizes(self) -> Rows:
        """n_t of each task."""
        return np.array([block.shape[0] for block in self.blocks])

    @cached_property
    def _starts(self) -> Rows:
        return np.concatenate([[0], np.cumsum(self.sizes)])

    @cached_property
    def _owner(self) -> Rows:
        return np.repeat(np.arange(self.n_tasks), self.sizes)

    def scores(self, W: Array) -> Array:
        Z = np.empty(self.shape, W.dtype)
        by_task = np.ascontiguousarray(W.T)
        for block, w, start, end in zip(self.blocks, by_task, self._starts, self._starts[1:], strict=False):
            Z[start:end] = block @ w
        return Z

    def adjoint(self, R: Array) -> Array:
        out = np.empty((self.n_tasks, self.n_features), R.dtype)
        for t, (block, start, end) in enumerate(zip(self.blocks, self._starts, self._starts[1:], strict=False)):
            out[t] = block.T @ R[start:end]
        return out.T

    def sum_rows(self, R: Array) -> Array:
        # A task without rows would be given its neighbour's first one.
        sums, some = np.zeros(self.n_tasks), np.flatnonzero(self.sizes)
        sums[some] = np.add.reduceat(R, self._starts[some])
        return sums

    def largest(self, R: Array) -> Array:
        tops, some = np.zeros(self.n_tasks), np.flatnonzero(self.sizes)
        tops[some] = np.maximum.reduceat(R, self._starts[some])
        return tops

    def spread(self, b: Array) -> Array:
        return b[self._owner]

    def index(self, tasks: Rows) -> Any:
        return np.flatnonzero(np.isin(self._owner, tasks))

    def columns(self, features: Rows) -> OwnRows:
        return OwnRows([block[:, features] for block in self.blocks])

    def block(self, t: int) -> Any:
        return self.blocks[t]

    def square_adjoint(self, R: Array) -> Array:
        parts = [_square_adjoint(b, R[s:e]) for b, s, e in zip(self.blocks, self._starts, self._starts[1:], strict=False)]
        return np.stack(parts, axis=1)


def _square_adjoint(X: Any, R: Array) -> Array:
    """(X * X)' R, in blocks of rows so that X is never copied whole."""
    if is_sparse(X):
        return X.multiply(X).T @ R
    out = np.zeros((X.shape[1], *R.shape[1:]))
    rows = max(1, 1_000_000 // max(X.shape[1], 1))
    for start in range(0, X.shape[0], rows):
        block = X[start : start + rows]
        out += (block * block).T @ R[start : start + rows]
    return out
