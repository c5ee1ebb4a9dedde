"""The exact proximal map of the total variation of many chains at once.

Letters: d chains, K places on a chain, v (d, K) the point, lam the strength.
"""

from __future__ import annotations

import numpy as np

from taskloom.tasks import Array, Rows


def prox_total_variation(V: Array, lam: float) -> Array:
    """argmin_x |x - v|^2 / 2 + lam sum_k |x_{k+1} - x_k| of every row of V.

    Dynamic programming (Johnson, JCGS 2013): the derivative of the best cost of the first k places is increasing and piecewise
    linear in x_k; passing it on clips it to [-lam, lam]. Its knots are kept in a double-ended queue for each row, and all rows
    move in step. Exact after K steps.

    Args:
        V: (d, K).
        lam: 0 or more.

    Examples:
        >>> prox_total_variation(np.array([[0.0, 0.0, 4.0]]), 1.0)
        array([[0.5, 0.5, 3. ]])
    """
    d, K = V.shape
    if lam <= 0 or K == 1:
        return V.copy()
    queue = _Knots(d, K)
    low, high = np.empty((K - 1, d)), np.empty((K - 1, d))
    for k in range(K - 1):
        # Derivative of (x - v_k)^2 / 2 added: slope 1, value -v_k at 0, on top of what was clipped at -lam and lam.
        offset = 0.0 if k == 0 else lam
        low[k] = queue.cut_left(np.ones(d), -V[:, k] - offset, -lam)
        high[k] = queue.cut_right(np.ones(d), -V[:, k] + offset, lam)
    x = np.empty_like(V)
    x[:, -1] = queue.cut_left(np.ones(d), -V[:, -1] - lam, 0.0)
    for k in range(K - 2, -1, -1):
        x[:, k] = np.clip(x[:, k + 1], low[k], high[k])
    return x


class _Knots:
    """Where the derivative bends, each row its own: at `place` its slope rises by `slope` and its value at zero by `value`.

    Left of all knots the derivative is the line that `cut_left` is given, right of all knots that of `cut_right`.
    """

    def __init__(self, d: int, K: int) -> None:
        self.rows: Rows = np.arange(d)
        self.place, self.slope, self.value = (np.zeros((d, 2 * K + 2)) for _ in range(3))
        self.left, self.right = np.full(d, K + 1), np.full(d, K)

    def cut_left(self, slope: Array, value: Array, level: float) -> Array:
        """Where the derivative crosses `level`; left of there it becomes flat at `level`."""
        slope, value = slope.copy(), value.copy()
        active = self.left <= self.right
        while active.any():
            rows, i = self.rows[active], self.left[active]
            below = slope[rows] * self.place[rows, i] + value[rows] <= level
            rows, i = rows[below], i[below]
            slope[rows] += self.slope[rows, i]
            value[rows] += self.value[rows, i]
            self.left[rows] += 1
            active[:] = False
            active[rows] = self.left[rows] <= self.right[rows]
        crossing = (level - value) / slope
        self.left -= 1
        self._set(self.left, crossing, slope, value - level)
        return crossing

    def cut_right(self, slope: Array, value: Array, level: float) -> Array:
        """Where the derivative crosses `level`; right of there it becomes flat at `level`."""
        slope, value = slope.copy(), value.copy()
        active = self.left <= self.right
        while active.any():
            rows, i = self.rows[active], self.right[active]
            above = slope[rows] * self.place[rows, i] + value[rows] >= level
            rows, i = rows[above], i[above]
            slope[rows] -= self.slope[rows, i]
            value[rows] -= self.value[rows, i]
            self.right[rows] -= 1
            active[:] = False
            active[rows] = self.left[rows] <= self.right[rows]
        crossing = (level - value) / slope
        self.right += 1
        self._set(self.right, crossing, -slope, level - value)
        return crossing

    def _set(self, i: Rows, place: Array, slope: Array, value: Array) -> None:
        self.place[self.rows, i], self.slope[self.rows, i], self.value[self.rows, i] = place, slope, value
