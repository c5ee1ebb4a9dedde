"""Penalties on the singular values of W: low rank, and clusters of tasks.

Singular values come from the Gram matrix of W's smaller side, which is several times faster than a singular value
decomposition and as exact for all values above about 1e-8 of the greatest; below that a full decomposition steps in.

Letters: K tasks, d features, W (d, K) coefficients, V (d, K) any point, U (d, K) dual point, s singular values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from taskloom.linear._penalty import NormPenalty, Penalty, check_strength
from taskloom.tasks import Array, OptionError, is_whole

# Eigenvalues of a Gram matrix are exact to about 1e-16 of the greatest: singular values to 1e-8 of theirs.
GRAM_ACCURACY = 1e-7


def map_singular(V: Array, ratio: Callable[[Array], Array], least: float = 0.0) -> Array:
    """V with each singular value s multiplied by `ratio(s)`.

    Args:
        V: (d, K).
        ratio: from singular values, ascending, to factors; a factor of 0 drops the value.
        least: the smallest singular value that `ratio` must see right; below the accuracy of the Gram matrix the full
            decomposition is taken.

    Examples:
        >>> map_singular(np.diag([3.0, 1.0]), lambda s: np.maximum(1 - 2 / s, 0)).round(6)
        array([[1., 0.],
               [0., 0.]])
    """
    wide = V.shape[0] < V.shape[1]
    A = V.T if wide else V
    values, Q = np.linalg.eigh(A.T @ A)
    s = np.sqrt(np.maximum(values, 0))
    if s[-1] == 0:
        return np.zeros_like(V)
    if least < GRAM_ACCURACY * s[-1]:
        _, s, right = np.linalg.svd(A, full_matrices=False)
        Q, s = right[::-1].T, s[::-1]
    factors = ratio(s)
    kept = np.flatnonzero(factors)
    Qk = Q[:, kept]
    out = (A @ (Qk * factors[kept])) @ Qk.T
    return out.T if wide else out


def singular_values(V: Array) -> Array:
    """Ascending singular values, exact to rounding of the greatest.

    The norms of V times the eigenvectors of its Gram matrix do not lose what the eigenvalues lose.
    """
    A = V.T if V.shape[0] < V.shape[1] else V
    _, Q = np.linalg.eigh(A.T @ A)
    return np.linalg.norm(A @ Q, axis=0)


def spectral_norm(V: Array) -> float:
    """The greatest singular value."""
    A = V.T if V.shape[0] < V.shape[1] else V
    return float(np.sqrt(max(np.linalg.eigvalsh(A.T @ A)[-1], 0.0)))


@dataclass(frozen=True)
class Trace(NormPenalty):
    """strength (sum of singular values of W): all tasks' models lie near one small subspace (the nuclear or trace norm).

    Argyriou, Evgeniou & Pontil (Machine Learning 2008); Ji & Ye (ICML 2009) for the proximal map.

    Attributes:
        strength: 0 or more.

    Examples:
        >>> Trace(1.0).prox(np.diag([3.0, 0.5]), 1.0).round(6)
        array([[2., 0.],
               [0., 0.]])
    """

    strength: float = 1.0
    paper: ClassVar[str] = "Argyriou, Evgeniou & Pontil 2008"

    def value(self, W: Array) -> float:
        return self.strength * float(singular_values(W).sum())

    def prox(self, V: Array, step: float) -> Array:
        threshold = step * self.strength
        if threshold == 0:
            return V.copy()
        return map_singular(V, lambda s: np.maximum(1 - threshold / np.maximum(s, 1e-300), 0), least=threshold)

    def distance(self, W: Array, G: Array) -> float:
        """In closed form: on the space of W minus the gradient is strength U V', off it a matrix of norm <= strength."""
        U, s, Vt = np.linalg.svd(W, full_matrices=False)
        rank = int((s > 1e-10 * max(s[0], 1e-300)).sum()) if s[0] > 0 else 0
        U, Vt = U[:, :rank], Vt[:rank]
        off = G - U @ (U.T @ G)
        off = off - (off @ Vt.T) @ Vt
        on = G - off + self.strength * U @ Vt
        beyond = np.maximum(np.linalg.svd(off, compute_uv=False) - self.strength, 0)
        return float(np.sqrt(np.vdot(on, on) + (beyond**2).sum()))

    def dual_norm(self, U: Array) -> float:
        """The spectral norm."""
        return spectral_norm(U)


@dataclass(frozen=True)
class Clustered(Penalty):
    """Clusters of tasks without knowing which (CMTL): the convex relaxation of k-means on the columns of W.

    strength eta (1 + eta) min_M tr(W (eta I + M)^-1 W') over M with eigenvalues in [0, 1] and tr M = n_clusters, where
    eta = ridge / strength (Jacob, Bach & Vert, NIPS 2008; Zhou, Chen & Ye, NIPS 2011). Zhou and others take gradient steps in
    (W, M); we minimise M out: what is left is the square of a spectral box norm (McDonald, Pontil & Stamos, JMLR 2016), whose
    value, proximal map and conjugate are exact.

    Attributes:
        n_clusters: 1 or more.
        strength: pull of each task to its cluster's mean, above 0.
        ridge: pull of all to zero, above 0.

    Examples:
        >>> Clustered(n_clusters=1, strength=1.0, ridge=1.0).value(np.array([[1.0, 1.0]])).__round__(6)
        2.0
    """

    n_clusters: int = 2
    strength: float = 1.0
    ridge: float = 1.0
    strengths: ClassVar[tuple[str, ...]] = ("strength", "ridge")
    paper: ClassVar[str] = "Zhou, Chen & Ye 2011"

    def __post_init__(self) -> None:
        for name in self.strengths:
            check_strength(name, getattr(self, name), positive=True)
        if not is_whole(self.n_clusters, 1):
            raise OptionError(f"`n_clusters`={self.n_clusters!r}: need a whole number, 1 or more")

    def check(self, d: int, K: int) -> None:  # noqa: ARG002
        """Refuse more clusters than tasks."""
        if self.n_clusters > K:
            raise OptionError(f"`n_clusters`={self.n_clusters} for {K} tasks; need at most {K}")

    @property
    def _eta(self) -> float:
        return self.ridge / self.strength

    @property
    def _factor(self) -> float:
        return self.strength * self._eta * (1 + self._eta)

    def _theta(self, s: Array, offset: float) -> Array:
        """clip(mu s - offset, eta, 1 + eta) with mu such that the sum above eta is `n_clusters`."""
        eta = self._eta
        return waterfill(s, offset, (eta, 1 + eta), self.n_clusters + eta * len(s))

    def value(self, W: Array) -> float:
        s = singular_values(W)
        return self._factor * float((s**2 / self._theta(s, 0.0)).sum())

    def prox(self, V: Array, step: float) -> Array:
        gamma = step * self._factor

        def ratio(s: Array) -> Array:
            theta = self._theta(s, 2 * gamma)
            return theta / (theta + 2 * gamma)

        # Nothing is thresholded: values that the Gram matrix cannot tell from zero are scaled like zero.
        return map_singular(V, ratio, least=np.inf)

    def conjugate(self, U: Array) -> float:
        """(eta |U|^2 + the greatest `n_clusters` squared singular values) / (4 strength eta (1 + eta))."""
        squares = singular_values(U) ** 2
        return float(self._eta * squares.sum() + squares[-self.n_clusters :].sum()) / (4 * self._factor)

    def lambda_max(self, G: Array) -> float:
        """Infinite: like a ridge, it shrinks and never sets to zero."""
        return np.inf if np.abs(G).max() > 0 else 0.0

    def task_matrix(self, W: Array) -> Array:
        """M (K, K) at W: near 1 within a cluster, scaled by its size, and 0 across (rank `n_clusters` when tasks cluster)."""
        _, s, Vt = np.linalg.svd(W, full_matrices=False)
        theta = self._theta(s[::-1], 0.0)[::-1]
        return (Vt.T * (theta - self._eta)) @ Vt


def waterfill(s: Array, offset: float, bounds: tuple[float, float], total: float) -> Array:
    """clip(mu s - offset, low, high) of the mu at which it sums to `total`; all at `high` where even that is less.

    The sum is piecewise linear and increasing in mu, so that mu is exact: found between two of its breakpoints.

    Args:
        s: (r,) 0 or more.
        offset: what each loses.
        bounds: low and high.
        total: of all r.

    Examples:
        >>> waterfill(np.array([0.0, 1.0, 3.0]), 0.0, (0.0, 1.0), 1.0)
        array([0.  , 0.25, 0.75])
    """
    low, high = bounds
    positive = s[s > 0]
    if low * (len(s) - len(positive)) + high * len(positive) <= total or not len(positive):
        return np.where(s > 0, high, low) if len(positive) else np.full_like(s, low)
    breaks = np.sort(np.concatenate([(low + offset) / positive, (high + offset) / positive]))
    sums = np.clip(np.multiply.outer(breaks, s) - offset, low, high).sum(1)
    i = int(np.searchsorted(sums, total))
    if i == 0:
        mu = breaks[0]
    else:
        rise = sums[i] - sums[i - 1]
        mu = breaks[i - 1] + (breaks[i] - breaks[i - 1]) * ((total - sums[i - 1]) / rise if rise > 0 else 0.0)
    return np.clip(mu * s - offset, low, high)
