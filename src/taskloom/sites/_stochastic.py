"""The proximal map of a task of very many rows, by stochastic steps.

Letters: n rows, d features, w (d,) coefficients, b intercept, v (d,) any point, s row weights, gamma step, F the objective of
the map, H its curvature on part of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from taskloom.linear import Loss, TaskProx
from taskloom.tasks import Array, DataError, OptionError

# Rows that the curvature is taken from, per coefficient, and at least.
METRIC_ROWS, FEWEST_METRIC_ROWS = 10, 1000
# An epoch that leaves more than this of the slope has the curvature taken anew.
SLOW = 0.25
# Beyond this, relative to v and w, the slope is rounding.
EXACT = 1e-10
# Epochs that went wrong, one after the other, before the exact method takes over.
MOST_FAILURES = 4


@dataclass(frozen=True)
class StochasticOptions:
    """How stochastic steps are taken.

    Attributes:
        passes: most epochs of a call, each of two looks at every row, before the exact method takes over.
        batch: rows of a step; None for 256, or twice the features if these are more.
        accuracy: error that a call may leave, in units of how far its result is from its first guess.

    Raises:
        OptionError: a number out of its range.

    Examples:
        >>> StochasticOptions().accuracy
        0.1
    """

    passes: int = 30
    batch: int | None = None
    accuracy: float = 0.1

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise OptionError(f"`passes`={self.passes!r}: need 1 or more epochs")
        if self.batch is not None and self.batch < 1:
            raise OptionError(f"`batch`={self.batch!r}: need 1 or more rows, or None for the default")
        if not 0 <= self.accuracy < 1:
            raise OptionError(f"`accuracy`={self.accuracy!r}: need a number from 0 (exact) to below 1")


@dataclass
class _State:
    """F at one w.

    Attributes:
        w: (d,).
        b: best intercept there, for centred features and labels.
        value: F.
        pull: (d,) gamma times the gradient of the loss.
        slope: (d,) gradient of F.
        rows: (n,) derivative of each row's loss.
    """

    w: Array
    b: float
    value: float
    pull: Array
    slope: Array
    rows: Array

    @property
    def size(self) -> float:
        """Norm of the slope: no less than the distance from w to the result, for F is 1-strongly convex."""
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.linalg.norm(self.slope))


class StochasticProx:
    """argmin_w of F(w) = gamma sum_i s_i loss(y_i, x_i' w + b) + |w - v|^2 / 2, with b minimised out, by SVRG.

    Stochastic variance reduced gradients (Johnson & Zhang, NIPS 2013): an epoch begins with the whole gradient at a point, then
    walks over batches of rows, each correcting it by how the batch's gradient has changed. Beyond the paper:

    - steps are taken in the metric of F's curvature on a part of the rows, and shorten as 1 / (2 + step): with the curvature
      known so that both sides agree to a factor, such an epoch leaves about sqrt(d / n) of the error (streaming SVRG; Frostig,
      Ge, Kakade & Sidford, COLT 2015, have that order for steps of a like kind; ours without replacement is an inference);
    - batches are drawn without replacement, from rows that have been shuffled once; so X is held a second time;
    - the intercept is a coordinate of the walk, and exact at the end of each epoch;
    - an epoch that leaves a higher value and a longer slope is taken back: the next one has shorter steps and the curvature of
      four times the rows. After four of them, or `passes` epochs, exact Newton steps (`TaskProx`) finish the call: what a
      call promises does not depend on luck.

    A call ends when |grad F(w)| <= accuracy |w - start|. As F is 1-strongly convex, that bounds the error by the same number:
    relative to the change since the last call, so that errors die out as the run settles, and the run converges to where the
    exact map would lead it. The rule is in the spirit of relative-error conditions for splitting methods (Solodov & Svaiter
    1999; Eckstein & Yao 2018 for ADMM), but none of these covers asynchronous steps: tests look at the gap that is reached.

    The walk of a call is drawn from the seed alone, so that the same call gives the same bits.

    Args:
        X: (n, d) the task's rows.
        y: (n,) labels, as the loss takes them.
        loss: a loss or its name.
        weight: s, (n,); default 1 / n each, the mean loss.
        fit_intercept: whether there is an intercept.
        options: how steps are taken.
        seed: of shuffling and walks.

    Raises:
        DataError: X and y have not the same number of rows.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(4000, 3))
        >>> y = np.where(X[:, 0] > 0, 1.0, -1.0)
        >>> fast, exact = StochasticProx(X, y, "logistic"), TaskProx(X, y, "logistic")
        >>> bool(np.linalg.norm(fast(np.ones(3), 1.0) - exact(np.ones(3), 1.0)) < 0.1)
        True
    """

    def __init__(
        self,
        X: Any,
        y: Array,
        loss: str | Loss = "logistic",
        weight: Array | None = None,
        *,
        fit_intercept: bool = True,
        options: StochasticOptions = StochasticOptions(),
        seed: int = 0,
    ) -> None:
        n = X.shape[0]
        if len(y) != n:
            raise DataError(f"`y` has {len(y)} labels, `X` {n} rows; give one label a row")
        self.options, self.seed = options, seed
        order = np.random.default_rng(seed).permutation(n)
        s = np.full(n, 1 / n) if weight is None else np.asarray(weight, dtype=np.float64)[order]
        self.exact = TaskProx(X[order], np.asarray(y, dtype=np.float64)[order], loss, s, fit_intercept=fit_intercept)
        self.X, self.weight, self.loss = self.exact.X, s, self.exact.loss
        self.fit_intercept = fit_intercept and s.sum() > 0
        self.centers = s @ self.X / s.sum() if self.fit_intercept else np.zeros(self.X.shape[1])
        batch = max(256, 2 * self.X.shape[1]) if options.batch is None else options.batch
        self._starts = np.arange(0, n, batch)
        self._batch = batch

    def __call__(self, v: Array, gamma: float, start: Array | None = None) -> Array:
        """The proximal map at v, to the accuracy of the options.

        Args:
            v: (d,).
            gamma: above 0.
            start: (d,) a first guess; default v.

        Raises:
            OptionError: gamma is not a positive number.
        """
        if not 0 < gamma < np.inf:
            raise OptionError(f"`gamma`={gamma!r}: need a positive number")
        guess = v if start is None else start
        rng = np.random.default_rng(self.seed)
        at, failures, rows = self._state(guess, v, gamma), 0, self._metric_rows
        metric: Array | None = None
        for _ in range(self.options.passes):
            if self._is_good(at, v, guess):
                return at.w
            if metric is None:
                metric = self._metric(at, gamma, rows)
            new = self._state(self._walk(at, metric, (v, gamma), rng, 4.0**failures), v, gamma)
            if np.isfinite(new.size) and (new.size < at.size or new.value < at.value):
                metric = None if new.size > SLOW * at.size else metric
                at, failures = new, 0
                continue
            failures, rows, metric = failures + 1, 4 * rows, None
            if failures == MOST_FAILURES:
                break
        return at.w if self._is_good(at, v, guess) else self.exact(v, gamma, at.w)

    def gradient(self, w: Array) -> Array:
        """(d,) of the task's loss at w, over all rows."""
        return self.exact.gradient(w)

    def intercept(self, w: Array) -> float:
        """The one that minimises the loss at w."""
        return self.exact.intercept(w)

    @property
    def curvature(self) -> float:
        """The greatest curvature of the task's loss; infinite for Poisson."""
        return self.exact.curvature

    @property
    def _metric_rows(self) -> int:
        return max(METRIC_ROWS * (self.X.shape[1] + 1), FEWEST_METRIC_ROWS)

    def _is_good(self, at: _State, v: Array, guess: Array) -> bool:
        moved = float(np.linalg.norm(at.w - guess))
        size = 1 + float(np.linalg.norm(v)) + float(np.linalg.norm(at.w))
        return at.size <= max(self.options.accuracy * moved, EXACT * size)

    def _state(self, w: Array, v: Array, gamma: float) -> _State:
        """All rows are looked at."""
        rows, W = self.exact.rows, w[:, None]
        with np.errstate(over="ignore", invalid="ignore"):
            Z = rows.image(W)
            at = rows.point(W, Z)
            value = gamma * rows.value(at, W, Z) + 0.5 * float((w - v) @ (w - v))
            slope = np.zeros(len(self.X)) if at.slope is None else at.slope
            pull = gamma * at.gradient[:, 0]
        return _State(w, float(at.intercepts[0]), value, pull, pull + w - v, slope)

    def _metric(self, at: _State, gamma: float, rows: int) -> Array:
        """Inverse of F's curvature in w and b, out of the first rows."""
        X, s, y = self.X[:rows] - self.centers, self.weight[:rows], self.exact.rows.y[:rows]
        share = s.sum() / max(self.weight.sum(), 1e-300)
        D = gamma * s * self.loss.second(y, X @ at.w + at.b) / max(share, 1e-300)
        if not self.fit_intercept:
            return np.linalg.inv(np.eye(len(at.w)) + (X * D[:, None]).T @ X)
        X = np.column_stack([X, np.ones(len(X))])
        H = (X * D[:, None]).T @ X
        H.flat[:: len(H) + 1] += 1.0
        # The intercept has no term of its own, but a loss may be flat on all of these rows.
        H[-1, -1] += 1e-3 * gamma * self.weight.sum() * min(self.loss.curvature, 1.0) - 1.0
        return np.linalg.inv(H)

    def _walk(self, at: _State, metric: Array, point: tuple[Array, float], rng: np.random.Generator, caution: float) -> Array:
        """(d,) where an epoch leads."""
        (v, gamma), w, b = point, at.w.copy(), at.b
        n_batches, d = len(self._starts), len(w)
        direction = np.zeros(d + int(self.fit_intercept))
        with np.errstate(over="ignore", invalid="ignore"):
            for i, begin in enumerate(self._starts[rng.permutation(n_batches)]):
                part = slice(begin, begin + self._batch)
                X = self.X[part]
                z = X @ w + (b - self.centers @ w)
                change = self.loss.derivative(self.exact.rows.y[part], z) - at.rows[part]
                change *= self.weight[part] * (gamma * n_batches)
                total = change.sum()
                direction[:d] = change @ X - total * self.centers + at.pull + w - v
                if self.fit_intercept:
                    direction[d] = total
                step = metric @ direction / (i + 2 * caution)
                w -= step[:d]
                if self.fit_intercept:
                    b -= step[d]
        return w
