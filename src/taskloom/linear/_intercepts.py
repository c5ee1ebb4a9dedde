"""Intercepts that minimise the losses of K tasks at given scores, all tasks at once.

Letters: K tasks, b (K,) intercepts, g slope of f in b, h its curvature, s row weights, z scores.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from taskloom.linear._design import Design
from taskloom.tasks import Array

MAX_STEPS = 200
EXACT = 1e-13
# exp of more than this overflows; a Poisson intercept is found before any such number is formed.
LARGEST_EXPONENT = 700.0


class Rows(Protocol):
    """What is needed of a problem: labels `y`, their weights and losses, and the design that they lie in."""

    design: Design
    labels: Any
    y: Array

    def each(self, what: str, argument: Array) -> Array:
        """One of the losses' functions of every row."""
        ...

    def means(self, R: Array) -> Array:
        """Weighted mean over each task's rows."""
        ...


def best_intercepts(problem: Rows, scores: Array, start: Array | None = None) -> Array:
    """B that minimises sum_i s_i phi(y_i, scores_i + b) of each task, to rounding.

    The slope g is increasing in b. Newton steps are taken while they at least halve it; else the bracket between slopes of both
    signs is bisected, and while there is no bracket steps are at most a stride, which doubles. So losses with flat parts,
    losses without bounded curvature and intercepts far from zero are served alike.

    Args:
        problem: the losses.
        scores: in the shape of the design.
        start: (K,) first guess; default minus the mean score.
    """
    poisson = np.array([loss.name == "poisson" for loss in problem.labels.losses])
    if poisson.all():
        return _log_means(problem, scores)
    b = -problem.means(scores) if start is None else start.copy()
    if poisson.any():
        b = np.where(poisson, _log_means(problem, scores), b)
    low, high = np.full_like(b, -np.inf), np.full_like(b, np.inf)
    stride, before = np.ones_like(b), np.full_like(b, np.inf)
    for _ in range(MAX_STEPS):
        g, h, size = _slopes(problem, scores, b)
        active = (np.abs(g) > EXACT * size) & ~poisson
        low, high = np.where(g < 0, np.maximum(low, b), low), np.where(g > 0, np.minimum(high, b), high)
        new = np.where(active, _next(b, (g, h), (low, high), stride, np.abs(g) <= 0.5 * before), b)
        if (new == b).all():
            return b
        stride, before, b = np.where(np.isfinite(low) & np.isfinite(high), stride, 2 * stride), np.abs(g), new
    return b


def _slopes(problem: Rows, scores: Array, b: Array) -> tuple[Array, Array, Array]:
    """Slope and curvature of each task in its intercept, and the sum of the rows' absolute slopes."""
    design, s = problem.design, problem.labels.weight
    z = scores + design.spread(b)
    weighted = s * problem.each("derivative", z)
    g = design.sum_rows(weighted)
    # Beyond what floats hold, an exponential is a slope upwards.
    g = np.where(np.isfinite(g), g, np.finfo(float).max)
    return g, design.sum_rows(s * problem.each("second", z)), design.sum_rows(np.abs(weighted))


def _next(b: Array, slopes: tuple[Array, Array], bracket: tuple[Array, Array], stride: Array, newton_works: Any) -> Array:
    (g, h), (low, high) = slopes, bracket
    both = np.isfinite(low) & np.isfinite(high)
    # A curvature that is nearly nothing would send the step out of all bounds.
    step = np.divide(-g, h, where=h > 1e-300, out=np.zeros_like(g))
    newton = b + step
    middle = 0.5 * (np.where(both, low, 0.0) + np.where(both, high, 0.0))
    inside = both & (newton > low) & (newton < high) & newton_works & (h > 0)
    outward = b - np.sign(g) * np.where(h > 1e-300, np.minimum(stride, np.abs(step)), stride)
    return np.where(both, np.where(inside, newton, middle), outward)


def _log_means(problem: Rows, scores: Array) -> Array:
    """Log of (weighted counts over weighted exp(scores)): the closed form for Poisson; -700 for a task without counts."""
    design, s = problem.design, problem.labels.weight
    top = design.largest(scores)
    total = design.sum_rows(s * np.exp(np.maximum(scores - design.spread(top), -LARGEST_EXPONENT)))
    counts = design.sum_rows(s * problem.y)
    usable = (counts > 0) & (total > 0)
    logs = np.log(np.where(usable, counts, 1.0)) - np.log(np.where(usable, total, 1.0))
    return np.where(usable, logs, -LARGEST_EXPONENT) - top
