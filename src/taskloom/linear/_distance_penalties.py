"""Penalties on the distances between tasks: a ball around a common centre, and fusion of pairs.

Letters: K tasks, d features, V (d, K) any point, W (d, K) its image, g (d,) centre, Z (d, E) dual vectors of E pairs of tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from taskloom.linear._penalty import Penalty, as_matrix
from taskloom.tasks import Array, OptionError, Rows, is_number

NEWTON_STEPS = 100
PROX_STEPS = 5000
PROX_RESIDUAL = 1e-14


def reduced(V: Array) -> tuple[Array | None, Array]:
    """Q and Q' V with Q orthonormal, where that is smaller: distances between columns are the same."""
    if V.shape[0] <= V.shape[1]:
        return None, V
    Q, R = np.linalg.qr(V)
    return Q, R


def shorten(lengths: Array, radius: Any) -> Array:
    """Factors that bring lengths down to at most `radius`."""
    outside = lengths > radius
    return np.divide(radius, lengths, where=outside, out=np.ones_like(lengths))


@dataclass(frozen=True)
class CrossLearning(Penalty):
    """Every task's model within `eps` of a common centre: |w_t - g| <= eps.

    Cervino, Bazerque, Calvo-Fullana & Ribeiro (EUSIPCO 2021, arXiv 2010.12993): eps = 0 is one pooled model, eps = infinity
    independent ones. The paper projects by dual ascent; we take Newton steps in the centre alone, to rounding.

    Attributes:
        eps: radius in the units of the coefficients, 0 or more.
        center: `free`, as in the paper: any g will do; `mean`: g is the mean of the w_t.

    Examples:
        >>> CrossLearning(0.5).prox(np.array([[0.0, 3.0]]), 1.0)
        array([[1., 2.]])
    """

    eps: float = 1.0
    center: Literal["free", "mean"] = "free"
    strengths: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = "Cervino, Bazerque, Calvo-Fullana & Ribeiro 2021"

    def __post_init__(self) -> None:
        if not is_number(self.eps) or not self.eps >= 0:
            raise OptionError(f"`eps`={self.eps!r}: need a radius of 0 or more")
        if self.center not in ("free", "mean"):
            raise OptionError(f"`center`={self.center!r}: need 'free' or 'mean'")

    def value(self, W: Array) -> float:
        """0 inside of the ball, infinite outside (to 1e-9 of the radius and of the coefficients)."""
        slack = 1e-9 * (self.eps + float(np.abs(W).max(initial=0))) + 1e-300
        return 0.0 if np.linalg.norm(W - self.prox(W, 1.0)) <= slack * np.sqrt(W.size) else np.inf

    def prox(self, V: Array, step: float) -> Array:  # noqa: ARG002
        """The projection, whatever the step."""
        if np.isinf(self.eps):
            return V.copy()
        mean = V.mean(1, keepdims=True)
        if self.eps == 0:
            return np.repeat(mean, V.shape[1], axis=1)
        if float(np.linalg.norm(V - mean, axis=0).max()) <= self.eps:
            return V.copy()
        Q, E = reduced(V - mean)
        inside = _project_to_center(E, self.eps) if self.center == "free" else _project_to_mean(E, self.eps)
        return mean + (inside if Q is None else Q @ inside)

    def factor_range(self, G: Array, lipschitz: Array) -> float:
        """The factor at which the radius is a thousandth of how far one gradient step takes the tasks apart."""
        curvature = float(np.max(lipschitz[np.isfinite(lipschitz)], initial=0.0)) or 1.0
        apart = float(np.linalg.norm(G - G.mean(1, keepdims=True), axis=0).max()) / curvature
        return self.eps / (1e-3 * apart) if 0 < self.eps < np.inf and apart > 0 else 1.0

    def scaled(self, factor: float) -> CrossLearning:
        """The radius divided: twice the strength is half the radius."""
        return CrossLearning(np.inf if factor == 0 else self.eps / factor, self.center)


def _project_to_center(V: Array, eps: float) -> Array:
    """Columns moved to within eps of the best centre: min over g of sum_t (|v_t - g| - eps)_+^2 / 2."""

    def model(g: Array) -> tuple[float, Array, Array]:
        away = V - g[:, None]
        r = np.linalg.norm(away, axis=0)
        out = r > eps
        u, excess = away[:, out] / r[out], r[out] - eps
        hessian = (eps / r[out] * u) @ u.T + float((excess / r[out]).sum()) * np.eye(len(g))
        return 0.5 * float((excess**2).sum()), -u @ excess, hessian

    g = _newton(np.zeros(len(V)), model)
    away = V - g[:, None]
    r = np.linalg.norm(away, axis=0)
    return g[:, None] + away * shorten(r, eps)


def _project_to_mean(V: Array, eps: float) -> Array:
    """Columns of mean zero moved to within eps of zero, keeping their mean: by the multiplier of that mean."""

    def model(nu: Array) -> tuple[float, Array, Array]:
        away = V - nu[:, None]
        r = np.linalg.norm(away, axis=0)
        out = r > eps
        u, pull = away[:, out] / np.maximum(r[out], 1e-300), eps / r[out]
        value = 0.5 * float((r[~out] ** 2).sum()) + float((eps * r[out] - 0.5 * eps**2).sum())
        hessian = (float((~out).sum()) + float(pull.sum())) * np.eye(len(nu)) - (pull * u) @ u.T
        return value, -(away * shorten(r, eps)).sum(1), hessian

    nu = _newton(np.zeros(len(V)), model)
    away = V - nu[:, None]
    inside = away * shorten(np.linalg.norm(away, axis=0), eps)
    return inside - inside.mean(1, keepdims=True)


def _newton(x: Array, model: Callable[[Array], tuple[float, Array, Array]]) -> Array:
    """Damped Newton steps on a convex function with a continuous gradient, to rounding."""
    value, gradient, hessian = model(x)
    scale = np.linalg.norm(gradient)
    for _ in range(NEWTON_STEPS):
        size = np.linalg.norm(gradient)
        if size <= 1e-14 * scale:
            return x
        # A trace of ridge keeps flat directions solvable without moving the others.
        ridge = 1e-12 * np.trace(hessian) / len(x)
        if not ridge > 0:
            # Flat in every direction: all that is known is which way is down.
            ridge = size / (1.0 + float(np.linalg.norm(x)))
        step = -np.linalg.solve(hessian + ridge * np.eye(len(x)), gradient)
        damping = 1.0
        while damping > 1e-10:
            new = model(x + damping * step)
            if new[0] < value + 1e-4 * damping * float(gradient @ step) or np.linalg.norm(new[1]) < 0.5 * size:
                break
            damping /= 2
            if damping * np.linalg.norm(step) <= 1e-16 * np.linalg.norm(x):
                return x
        else:
            return x
        x, (value, gradient, hessian) = x + damping * step, new
    return x


@dataclass(frozen=True, eq=False)
class Fusion(Penalty):
    """strength sum_{s<t} a_st |w_s - w_t|_2: tasks fuse into groups whose number need not be given.

    One level of MeTaG (Han & Zhang, AAAI 2015), and convex clustering of tasks. The paper smooths it; we solve the dual of its
    proximal map to rounding, an accelerated projection a pair. The mean of all tasks is never moved.

    Attributes:
        strength: 0 or more.
        weights: (K, K) symmetric, a_st, 0 for pairs that do not pull; None for ones. A prox costs O(d E) a step for E pairs:
            for more than about 200 tasks give the weights of a few neighbours each.

    Examples:
        >>> Fusion(1.0).prox(np.array([[0.0, 4.0]]), 1.0).round(6)
        array([[1., 3.]])
    """

    strength: float = 1.0
    weights: Any = None
    paper: ClassVar[str] = "Han & Zhang 2015"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is None:
            return
        A = as_matrix("weights", self.weights)
        if (
            A.ndim != 2
            or A.shape[0] != A.shape[1]
            or not np.isfinite(A).all()
            or A.min(initial=0) < 0
            or not np.allclose(A, A.T)
        ):
            raise OptionError(
                f"`weights` of shape {A.shape}: need a finite symmetric (K, K) array of numbers that are 0 or more"
            )

    def __eq__(self, other: object) -> bool:
        same = (
            isinstance(other, Fusion) and self.strength == other.strength and (self.weights is None) == (other.weights is None)
        )
        return same and (self.weights is None or np.array_equal(self.weights, other.weights))

    __hash__ = None

    def check(self, d: int, K: int) -> None:  # noqa: ARG002
        """Refuse weights of another number of tasks."""
        if self.weights is not None and np.shape(self.weights) != (K, K):
            raise OptionError(f"`weights` has shape {np.shape(self.weights)} for {K} tasks; need ({K}, {K})")

    def pairs(self, K: int) -> tuple[Rows, Rows, Array]:
        """Both ends and the weight of every pair that pulls."""
        one, two = np.triu_indices(K, 1)
        if self.weights is None:
            return one, two, np.ones(len(one))
        a = np.asarray(self.weights, dtype=np.float64)[one, two]
        return one[a > 0], two[a > 0], a[a > 0]

    def value(self, W: Array) -> float:
        one, two, a = self.pairs(W.shape[1])
        return self.strength * float((a * np.linalg.norm(W[:, one] - W[:, two], axis=0)).sum())

    def prox(self, V: Array, step: float) -> Array:
        return self.prox_from(V, step, {})

    def prox_from(self, V: Array, step: float, memory: dict[str, Array]) -> Array:
        """The proximal map, started from the dual vectors that `memory` keeps from the last call."""
        one, two, a = self.pairs(V.shape[1])
        radius = step * self.strength * a
        if not len(one) or not radius.max() > 0:
            return V.copy()
        # The mean never moves: without it, a common level costs no digits.
        mean = V.mean(axis=1, keepdims=True)
        W, memory["pairs"] = _fuse(V - mean, (one, two, radius), memory.get("pairs"))
        return mean + W

    def merge(self, other: Penalty) -> Penalty | None:
        """Fusion + Fusion of the same pairs is one."""
        if not isinstance(other, Fusion):
            return None
        same = self.weights is other.weights or (
            self.weights is not None and other.weights is not None and np.array_equal(self.weights, other.weights)
        )
        return Fusion(self.strength + other.strength, self.weights) if same else None

    def factor_range(self, G: Array, lipschitz: Array) -> float:  # noqa: ARG002
        """The factor at which all tasks fuse, if their gradients were those at zero: each pair's share is (g_s - g_t) / K."""
        K = G.shape[1]
        apart = 2 * float(np.linalg.norm(G - G.mean(1, keepdims=True), axis=0).max()) / K
        return apart / self.strength if self.strength > 0 and apart > 0 else 1.0

    def groups(self, W: Array, tol: float = 1e-6) -> list[list[int]]:
        """Tasks whose columns differ by at most `tol` of the greatest column norm: the groups that fused.

        Examples:
            >>> Fusion().groups(np.array([[1.0, 1.0, 2.0]]))
            [[0, 1], [2]]
        """
        from scipy.sparse.csgraph import connected_components

        scale = max(float(np.linalg.norm(W, axis=0).max()), 1e-300)
        apart = np.linalg.norm(W[:, :, None] - W[:, None, :], axis=0)
        _, labels = connected_components(apart <= tol * scale, directed=False)
        return [np.flatnonzero(labels == label).tolist() for label in range(labels.max() + 1)]


def _fuse(V: Array, pairs: tuple[Rows, Rows, Array], start: Array | None) -> tuple[Array, Array]:
    one, two, radius = pairs
    d, K = V.shape
    incidence = _incidence(one, two, K)
    degree = np.bincount(one, minlength=K) + np.bincount(two, minlength=K)
    # Greatest eigenvalue of the graph's Laplacian: K for the complete graph, at most twice the greatest degree for any.
    top = float(K) if len(one) == K * (K - 1) // 2 else min(float(K), 2.0 * degree.max())
    Z = np.zeros((d, len(one))) if start is None or start.shape != (d, len(one)) else _clip(start, radius)
    Z_before, t = Z, 1.0
    # A gap would stop at the square root of rounding; what a projection moves does not.
    tiny = PROX_RESIDUAL * float(np.linalg.norm(V))
    if len(one) == K * (K - 1) // 2 and float((np.linalg.norm(V[:, one] - V[:, two], axis=0) - K * radius).max()) <= 0:
        # Each pair's pull (v_s - v_t) / K is allowed, and together they fuse all tasks.
        return np.zeros_like(V), (V[:, one] - V[:, two]) / K
    for _ in range(PROX_STEPS):
        t_next = 0.5 * (1 + np.sqrt(1 + 4 * t * t))
        Y = Z + (t - 1) / t_next * (Z - Z_before)
        W = V - (incidence @ Y.T).T
        new = _clip(Y + (W[:, one] - W[:, two]) / top, radius)
        if float(np.vdot(Y - new, new - Z)) > 0:
            t_next = 1.0
        moved = float(np.linalg.norm(new - Y))
        Z_before, Z, t = Z, new, t_next
        if moved <= tiny:
            break
    return V - (incidence @ Z.T).T, Z


def _incidence(one: Rows, two: Rows, K: int) -> Any:
    from scipy.sparse import csr_array

    edges = np.arange(len(one))
    signs = np.concatenate([np.ones(len(one)), -np.ones(len(two))])
    return csr_array((signs, (np.concatenate([one, two]), np.concatenate([edges, edges]))), shape=(K, len(one)))


def _clip(Z: Array, radius: Array) -> Array:
    return Z * shorten(np.linalg.norm(Z, axis=0), radius)
