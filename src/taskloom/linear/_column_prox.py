"""The proximal map of a matrix whose columns change one at a time: what a coordinator of many sites answers with.

Letters: K tasks, d features, V (d, K) the point, W = prox(V), G Gram matrix of the smaller side of V, M (K, K) of a smooth
penalty tr(W M W').
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from taskloom.linear._penalty import Penalty
from taskloom.linear._smooth_penalties import MeanRegularized, Ridge
from taskloom.linear._sparse_penalties import L1, L21
from taskloom.linear._spectral_penalties import GRAM_ACCURACY, Trace
from taskloom.linear._split_penalties import Split
from taskloom.tasks import Array, OptionError

# Running sums are taken anew after so many changed columns for each task, before rounding adds up.
REFRESH = 16
# And where what they sum has fallen below this share of its peak: they keep the rounding of the peak.
FALLEN = 0.5


class ColumnProx(ABC):
    """argmin_W |W - V|_F^2 / 2 + step Omega(W), column by column, of a V that changes column by column.

    Args:
        penalty: Omega.
        step: above 0.
        V: (d, K), copied.

    Attributes:
        V: (d, K) the point; change it by `set` alone.
        step: of the proximal map.
    """

    def __init__(self, penalty: Penalty, step: float, V: Array) -> None:
        self.penalty, self.step = penalty, step
        self.V = np.array(V, dtype=np.float64, order="F")
        self._changes = 0
        self._norms = np.linalg.norm(self.V, axis=0)
        # What the column that is being set moves by; kept, since to ask for memory anew takes longer than to write to it.
        self._move = np.empty(len(self.V))
        self._peak = self._norms.max(initial=0.0)

    def set(self, t: int, column: Array) -> float:
        """Put `column` (d,) in the place of column t of V.

        Returns:
            How far the column has moved: |new - old|.
        """
        move = np.subtract(column, self.V[:, t], out=self._move)
        distance = math.sqrt(np.vdot(move, move))
        self._changed(t, self.V[:, t], column)
        self.V[:, t] = column
        self._changes += 1
        self._norms[t] = math.sqrt(np.vdot(column, column))
        size = self._norms.max()
        self._peak = max(self._peak, size)
        if self._changes >= REFRESH * self.V.shape[1] or size < FALLEN * self._peak:
            self._changes, self._peak = 0, size
            self._refresh()
        return distance

    @property
    def norm(self) -> float:
        """|V|_F, O(K)."""
        return math.sqrt(self._norms @ self._norms)

    @abstractmethod
    def column(self, t: int) -> Array:
        """(d,) column t of prox(V)."""

    def columns(self, tasks: Sequence[int]) -> Array:
        """(d, m) columns of prox(V)."""
        if len(tasks) == 1:
            return self.column(tasks[0])[:, None]
        return np.stack([self.column(t) for t in tasks], axis=1)

    def matrix(self) -> Array:
        """(d, K) prox(V)."""
        return self.penalty.prox(self.V, self.step)

    def _changed(self, t: int, old: Array, new: Array) -> None:  # noqa: ARG002
        """Take note that column t is about to change; `old` is where it lies in V."""
        return

    def _refresh(self) -> None:
        """Take running sums anew."""
        return


class _Whole(ColumnProx):
    """Any penalty: the whole map, once for all columns that are asked between two changes; iterative maps start warm."""

    def __init__(self, penalty: Penalty, step: float, V: Array) -> None:
        super().__init__(penalty, step, V)
        self._memory: dict[str, Array] = {}
        self._W: Array | None = None

    def _changed(self, t: int, old: Array, new: Array) -> None:  # noqa: ARG002
        self._W = None

    def matrix(self) -> Array:
        if self._W is None:
            self._W = self.penalty.prox_from(self.V, self.step, self._memory)
        return self._W

    def column(self, t: int) -> Array:
        return self.matrix()[:, t].copy()


class _Apart(ColumnProx):
    """Ridge and L1: columns that do not know of each other, O(d)."""

    def column(self, t: int) -> Array:
        penalty = self.penalty
        if isinstance(penalty, L1) and penalty.weights is not None:
            penalty = L1(penalty.strength, np.asarray(penalty.weights)[:, t : t + 1])
        return penalty.prox(self.V[:, t : t + 1], self.step)[:, 0]


class _Rows(ColumnProx):
    """L21 by running norms of the rows, O(d)."""

    penalty: L21

    def __init__(self, penalty: L21, step: float, V: Array) -> None:
        super().__init__(penalty, step, V)
        self._refresh()

    def _refresh(self) -> None:
        self._squares = np.einsum("dk,dk->d", self.V, self.V)
        self._peaks = self._squares.copy()

    def _changed(self, t: int, old: Array, new: Array) -> None:
        squares = self._squares - old**2 + new**2
        self._peaks = np.maximum(self._peaks, self._squares + new**2)
        # What is left of a row after most of it went, at once or bit by bit, is rounding: such rows are summed anew.
        lost = np.flatnonzero(squares < 1e-3 * self._peaks)
        if len(lost):
            rest = np.delete(self.V[lost], t, axis=1)
            squares[lost] = np.einsum("dk,dk->d", rest, rest) + new[lost] ** 2
            self._peaks[lost] = squares[lost]
        self._squares = squares

    def column(self, t: int) -> Array:
        norms = np.sqrt(self._squares)
        return self.V[:, t] * (np.maximum(norms - self.step * self.penalty.strength, 0) / np.maximum(norms, 1e-300))


class _Mean(ColumnProx):
    """Pull to the mean by a running sum, O(d)."""

    penalty: MeanRegularized

    def __init__(self, penalty: MeanRegularized, step: float, V: Array) -> None:
        super().__init__(penalty, step, V)
        self._refresh()

    def _refresh(self) -> None:
        self._sum = self.V.sum(axis=1)

    def _changed(self, t: int, old: Array, new: Array) -> None:  # noqa: ARG002
        self._sum += self._move

    def column(self, t: int) -> Array:
        own = 1 / (1 + 2 * self.step * self.penalty.strength)
        column = self._sum * ((1 - own) / self.V.shape[1])
        column += np.multiply(self.V[:, t], own, out=self._move)
        return column


class _Coupled(ColumnProx):
    """tr(W M W') by the inverse of I + 2 step M, O(dK)."""

    def __init__(self, penalty: Penalty, step: float, V: Array, matrix: Array) -> None:
        super().__init__(penalty, step, V)
        values, Q = np.linalg.eigh(matrix)
        self._inverse = (Q / (1 + 2 * step * np.maximum(values, 0))) @ Q.T

    def column(self, t: int) -> Array:
        return self.V @ self._inverse[:, t]

    def matrix(self) -> Array:
        return self.V @ self._inverse


class _Spectral(ColumnProx):
    """Trace norm by the Gram matrix of V's smaller side, of which a changed column touches one row and column.

    Columns that change before the next answer share one product and one decomposition. Thresholds below the accuracy of a
    Gram matrix go to the full decomposition.
    """

    penalty: Trace

    def __init__(self, penalty: Trace, step: float, V: Array) -> None:
        super().__init__(penalty, step, V)
        self._is_wide = self.V.shape[0] < self.V.shape[1]
        self._pending: dict[int, Array] = {}
        self._parts: tuple[Array, Array] | None = None
        self._refresh()

    def _refresh(self) -> None:
        self._gram = self.V @ self.V.T if self._is_wide else self.V.T @ self.V
        self._pending, self._parts = {}, None

    def _changed(self, t: int, old: Array, new: Array) -> None:  # noqa: ARG002
        self._pending.setdefault(t, old.copy())
        self._parts = None

    def _settle(self) -> None:
        """Bring the Gram matrix up to date."""
        tasks = list(self._pending)
        new = self.V[:, tasks]
        if self._is_wide:
            old = np.stack(list(self._pending.values()), axis=1)
            self._gram += new @ new.T - old @ old.T
        else:
            block = self.V.T @ new
            self._gram[:, tasks] = block
            self._gram[tasks, :] = block.T
        self._pending = {}

    def _decompose(self) -> tuple[Array, Array]:
        """Kept eigenvectors of the smaller side, and the factor of each."""
        if self._parts is None:
            if self._pending:
                self._settle()
            threshold = self.step * self.penalty.strength
            values, Q = np.linalg.eigh(self._gram)
            s = np.sqrt(np.maximum(values, 0))
            if 0 < threshold < GRAM_ACCURACY * s[-1]:
                U, s, Vt = np.linalg.svd(self.V, full_matrices=False)
                Q = U if self._is_wide else Vt.T
            factors = np.maximum(1 - threshold / np.maximum(s, 1e-300), 0)
            kept = np.flatnonzero(factors)
            self._parts = Q[:, kept], factors[kept]
        return self._parts

    def column(self, t: int) -> Array:
        if self.penalty.strength == 0:
            return self.V[:, t].copy()
        Q, factors = self._decompose()
        if self._is_wide:
            return Q @ (factors * (Q.T @ self.V[:, t]))
        return self.V @ (Q @ (factors * Q[t]))

    def matrix(self) -> Array:
        if self.penalty.strength == 0:
            return self.V.copy()
        Q, factors = self._decompose()
        return (Q * factors) @ (Q.T @ self.V) if self._is_wide else (self.V @ (Q * factors)) @ Q.T


class _Shrunk(ColumnProx):
    """Omega + strength |W|_F^2: the map of Omega, at a shorter step, of a shorter V."""

    def __init__(self, penalty: Penalty, step: float, V: Array, strength: float) -> None:
        super().__init__(penalty, step, V)
        self._factor = 1 / (1 + 2 * step * strength)
        self._inner = column_prox(penalty, step * self._factor, self._factor * self.V)

    def _changed(self, t: int, old: Array, new: Array) -> None:  # noqa: ARG002
        self._inner.set(t, self._factor * new)

    def column(self, t: int) -> Array:
        return self._inner.column(t)

    def matrix(self) -> Array:
        return self._inner.matrix()


def column_prox(penalty: Penalty, step: float, V: Array) -> ColumnProx:
    """The fastest exact proximal map of `penalty` for a V (d, K) that changes column by column.

    An answer takes O(d) for L1, L21, ridge and pull to the mean, O(dK) for graphs, one decomposition on the smaller side for
    the trace norm, and a full map for all others.

    Args:
        penalty: with a proximal map: one term, smooth terms in tasks alone, or a term and a `Ridge`.
        step: above 0.
        V: (d, K).

    Raises:
        OptionError: the penalty has no such map, or does not fit V.

    Examples:
        >>> prox = column_prox(Trace(1.0), 1.0, np.diag([3.0, 0.5]))
        >>> prox.set(1, np.array([0.0, 2.0]))
        1.5
        >>> prox.column(1).round(6)
        array([0., 1.])
    """
    V = np.asarray(V, dtype=np.float64)
    if not 0 < step < np.inf:
        raise OptionError(f"`step`={step!r}: need a positive number")
    if not isinstance(penalty, Penalty):
        raise OptionError(f"`penalty`={penalty!r}: need a penalty such as Trace(0.1) or L21(0.1)")
    penalty.check(*V.shape)
    if isinstance(penalty, Split):
        raise OptionError(
            f"`penalty`={penalty!r} gives W several parts, of which no column stands for itself; use one of its parts alone"
        )
    if isinstance(penalty, Ridge | L1):
        return _Apart(penalty, step, V)
    if isinstance(penalty, MeanRegularized):
        return _Mean(penalty, step, V)
    if isinstance(penalty, L21):
        return _Rows(penalty, step, V)
    if isinstance(penalty, Trace):
        return _Spectral(penalty, step, V)
    return _composed(penalty, step, V)


def _composed(penalty: Penalty, step: float, V: Array) -> ColumnProx:
    smooth, rest = penalty.split()
    matrices = [term.task_matrix(V.shape[1]) for term in smooth]
    coupled = [matrix for matrix in matrices if matrix is not None]
    if rest is None and len(coupled) == len(smooth):
        return _Coupled(penalty, step, V, np.sum(coupled, axis=0))
    if not smooth or (rest is None and len(smooth) == 1):
        return _Whole(penalty, step, V)
    if rest is not None and all(isinstance(term, Ridge) for term in smooth):
        return _Shrunk(rest, step, V, sum(term.strength for term in smooth if isinstance(term, Ridge)))
    raise OptionError(
        f"`penalty`={penalty!r}: the sum has no closed proximal map; take one of its terms, or one term and a `Ridge`"
    )
