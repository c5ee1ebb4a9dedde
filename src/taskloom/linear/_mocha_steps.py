"""The mathematics of MOCHA: local work of sites, the server's update, covariances of tasks, certificates.

With Sigma the covariance of the tasks and Omega its inverse, the W-step minimises the primal

    P(W) = sum_t (1 / n_t) sum_i loss(m_ti) + (lambda / 2) sum(Omega * (W W')),    m_ti = s_ti x_ti' w_t,

by its dual, at W = Sigma B / lambda with rows B_t = (1 / n_t) sum_i a_ti s_ti x_ti of B:

    D(a) = sum_t (1 / n_t) sum_i gain(a_ti) - (lambda / 2) sum(Omega * (W W')).

For the hinge loss s is the label, -1 or +1, and `a` lies in [0, 1] (the paper's alpha times the label). For half the squared
error s is 1. The penalty is sum(Sigma * (B B')) / (2 lambda), so that Omega itself is never needed.

Letters: K tasks (one site each), n_t rows of site t, N rows in all, d features, W (K, d) coefficients, B (K, d) pulls,
a (N,) dual variables, v_t what site t takes for its coefficients while it works, c_t curvature of its steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from taskloom.linear._mocha_sites import Sites
from taskloom.tasks import Array, Rows

PAPER_FLOOR = 1e-7
# A row of zeros has no curvature, and is divided by it.
LEAST_CURVATURE = 1e-300


@dataclass(frozen=True)
class DualLoss:
    """A loss of the margin m, and its steps of one dual coordinate a.

    Attributes:
        value: loss of (m, target).
        gain: what `a` adds to the dual, of (a, target): minus the loss's conjugate at -a.
        move: the best new a of (a, target, m, curvature), where the margin grows by curvature per unit of `a`.
    """

    value: Callable[[Array, Array], Array]
    gain: Callable[[Array, Array], Array]
    move: Callable[[Array, Array, Array, Array], Array]


def _move_hinge(a: Array, target: Array, m: Array, curvature: Array) -> Array:
    return np.minimum(np.maximum(a + (target - m) / curvature, 0.0), 1.0)


def _move_squared(a: Array, target: Array, m: Array, curvature: Array) -> Array:
    return a + (target - m - a) / (1.0 + curvature)


DUAL_LOSSES = {
    "hinge": DualLoss(lambda m, target: np.maximum(target - m, 0.0), lambda a, target: a * target, _move_hinge),
    "squared": DualLoss(lambda m, target: 0.5 * (target - m) ** 2, lambda a, target: a * (target - 0.5 * a), _move_squared),
}


class Visits(NamedTuple):
    """One pass over rows, dealt into ticks at which every site that still has a row to visit visits one.

    Attributes:
        pairs: which pair is visited, tick after tick.
        ends: where the ticks start, and the number of visits.
        sites: (K,) sites with the most rows to visit first: tick h has the first `ends[h + 1] - ends[h]` of them.
    """

    pairs: Rows
    ends: Rows
    sites: Rows


def deal_visits(sites: Sites, counts: Rows, keys: Array) -> Visits:
    """Deal the first `counts[t]` rows of each site, in the order of their keys, into ticks.

    Args:
        sites: the sites.
        counts: (K,) rows to visit, at most n_t; 0 for a site that does nothing.
        keys: (N,) random numbers in [0, 1).
    """
    shuffled = np.argsort(sites.owner + keys)
    tick = np.arange(len(keys)) - sites.starts[sites.owner]
    order = np.argsort(-counts, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    kept = np.flatnonzero(tick < counts[sites.owner])
    kept = kept[np.lexsort((place[sites.owner[kept]], tick[kept]))]
    return Visits(shuffled[kept], np.append(0, np.cumsum(np.bincount(tick[kept]))), order)


def work_at_sites(sites: Sites, visits: Visits, a: Array, v: Array, c: Array) -> tuple[Array, Array]:
    """One pass of all sites at once: none sees what another does, so a tick is one step of each.

    Args:
        sites: the sites.
        visits: which rows, in which order.
        a: (N,) dual variables.
        v: (K, d) what each site takes for its coefficients.
        c: (K,) rho_t Sigma_tt / (lambda n_t).

    Returns:
        The new `a` and `v`. They equal those of `work_at_site`, site by site, to rounding.
    """
    pairs, ends, order = visits
    move = DUAL_LOSSES[sites.loss].move
    rows = sites.sign[pairs, None] * sites.X[sites.rows[pairs]]
    target, step = sites.target[pairs], c[order]
    curvature = np.maximum(c[sites.owner[pairs]] * sites.squares[pairs], LEAST_CURVATURE)
    moved, ordered = a[pairs], v[order]
    for start, end in pairwise(ends.tolist()):
        row, at, old = rows[start:end], ordered[: end - start], moved[start:end].copy()
        new = move(old, target[start:end], np.vecdot(row, at), curvature[start:end])
        at += (step[: end - start] * (new - old))[:, None] * row
        moved[start:end] = new
    a, v = a.copy(), np.empty_like(v)
    a[pairs], v[order] = moved, ordered
    return a, v


def work_at_site(rows: Array, target: Array, a: Array, v: Array, c: float, loss: str) -> tuple[Array, Array]:
    """One pass of one site over its rows, in their order: what a site of a real federation runs.

    A step maximises D in one dual variable, with the curvature rho_t times as great as it would be if the site were alone:
    hinge (SDCA), a := clip(a + (1 - x' v) / (c ||x||^2), 0, 1); squared, a := a + (y - x' v - a) / (1 + c ||x||^2). Each is
    followed by v := v + c (change of a) x.

    Args:
        rows: (n, d) rows times s.
        target: (n,) 1 for hinge, the numbers to predict for squared.
        a: (n,) dual variables.
        v: (d,) the coefficients that the server sent, w_t.
        c: rho_t Sigma_tt / (lambda n_t).
        loss: `hinge` or `squared`.

    Returns:
        The new `a` and `v`. To the server goes `rows.T @ (new - old a) / n_t`, d numbers.

    Examples:
        >>> work_at_site(np.array([[1.0, 0.0], [0.0, 2.0]]), np.ones(2), np.zeros(2), np.zeros(2), 0.5, "hinge")[0]
        array([1. , 0.5])
    """
    a, v = a.copy(), v.copy()
    for i, row in enumerate(rows):
        curvature = np.maximum(c * (row @ row), LEAST_CURVATURE)
        new = DUAL_LOSSES[loss].move(a[i], target[i], row @ v, curvature)
        v += c * (new - a[i]) * row
        a[i] = new
    return a, v


def safe_aggregation(Sigma: Array) -> float:
    """The least rho with rho diag(Sigma) - Sigma positive semidefinite: then the sum of what sites find never overshoots.

    It is the greatest eigenvalue of the correlations in Sigma, which lies between 1 and K and never above the paper's
    max_t sum_s |Sigma_ts| / Sigma_tt.

    Examples:
        >>> safe_aggregation(np.eye(3)), safe_aggregation(np.array([[4.0, 2.0], [2.0, 1.0]]))
        (1.0, 2.0)
    """
    scale = np.sqrt(np.diag(Sigma))
    return float(np.linalg.eigvalsh(Sigma / np.outer(scale, scale))[-1])


class Certificate(NamedTuple):
    """How far a point may be from the optimum.

    Attributes:
        primal: the objective at W.
        dual: a bound that no W can be below.
        low: D, which the optimum over W at the present Sigma is not below.
        high: P at the present Sigma, which it is not above.
    """

    primal: float
    dual: float
    low: float
    high: float

    @property
    def relative(self) -> float:
        """(primal - dual) / primal; the primal is never negative."""
        return (self.primal - self.dual) / max(self.primal, np.finfo(float).tiny)

    @property
    def lag(self) -> float:
        """Inner / (primal - dual); 1 where Sigma is fixed."""
        return (self.high - self.low) / max(self.primal - self.dual, np.finfo(float).tiny)


def certify(sites: Sites, a: Array, B: Array, Sigma: Array, strength: float, *, learns: bool) -> Certificate:
    """Primal and dual at dual variables `a`, with their pulls B and W = Sigma B / strength.

    Where Sigma is learnt the objective is the loss + (lambda / 2) ||W||_*^2, and its dual has the greatest value that
    sum(Sigma * (B B')) takes at any Sigma of trace 1, the square of B's spectral norm: a certificate of W and Sigma together.
    """
    loss = DUAL_LOSSES[sites.loss]
    W = Sigma @ B / strength
    lost, gained = sites.total(loss.value(sites.margins(W), sites.target)), sites.total(loss.gain(a, sites.target))
    penalty = 0.5 * float((W * B).sum())
    low, high = gained - penalty, lost + penalty
    if not learns:
        return Certificate(high, low, low, high)
    together = 0.5 * strength * float(np.linalg.svd(W, compute_uv=False).sum()) ** 2
    return Certificate(lost + together, gained - float(np.linalg.norm(B, 2)) ** 2 / (2 * strength), low, high)


def best_covariance(W: Array, floor: float = PAPER_FLOOR) -> Array:
    """The paper's Omega step: Sigma = S / tr S with S = (W W')^(1/2), eigenvalues not below `floor`.

    Of all Sigma of trace 1 it has the least tr(W' Sigma^-1 W), which is ||W||_*^2.

    Args:
        W: (K, d) coefficients.
        floor: least eigenvalue.

    Examples:
        >>> best_covariance(np.diag([3.0, 1.0])).round(6)
        array([[0.75, 0.  ],
               [0.  , 0.25]])
    """
    values, vectors = np.linalg.eigh(W @ W.T)
    return _covariance(np.sqrt(np.maximum(values, 0.0)), vectors, floor)


def exponentiated_covariance(Sigma: Array, B: Array, stride: float, floor: float) -> Array:
    """Sigma after a matrix exponentiated gradient step: log Sigma + stride B B' / ||B||^2, brought back to trace 1.

    B B' is the direction in which the optimum over W falls, times 2 lambda.

    Args:
        Sigma: (K, K) of trace 1.
        B: (K, d) pulls.
        stride: greatest change of log Sigma.
        floor: least eigenvalue.

    Examples:
        >>> exponentiated_covariance(np.eye(2) / 2, np.diag([1.0, 0.0]), np.log(3), 1e-9).round(6)
        array([[0.75, 0.  ],
               [0.  , 0.25]])
    """
    pull = B @ B.T
    top = np.linalg.eigvalsh(pull)[-1]
    if top <= 0:
        return Sigma
    values, vectors = np.linalg.eigh(Sigma)
    logarithm = (vectors * np.log(np.maximum(values, floor))) @ vectors.T + stride * pull / top
    values, vectors = np.linalg.eigh(logarithm)
    return _covariance(np.exp(values - values[-1]), vectors, floor)


def _covariance(values: Array, vectors: Array, floor: float) -> Array:
    """Sigma of trace 1 with these eigenvectors; eigenvalues proportional to `values` but not below `floor`."""
    total = values.sum()
    shares = np.maximum(values / total if total > 0 else 1 / len(values), floor)
    Sigma = (vectors * (shares / shares.sum())) @ vectors.T
    return 0.5 * (Sigma + Sigma.T)
