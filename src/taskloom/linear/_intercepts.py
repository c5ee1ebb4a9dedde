"""Intercepts that minimise the losses of K tasks at given scores: safeguarded Newton steps, all tasks at once.

Letters: K tasks, b (K,) intercepts, g slope of f in b, h its curvature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from taskloom.tasks import Array

if TYPE_CHECKING:
    from taskloom.linear._problem import RowsProblem

MAX_STEPS = 100
EXACT = 1e-13


def best_intercepts(problem: RowsProblem, scores: Array, start: Array | None = None) -> Array:
    """B that minimises sum_i s_i phi(y_i, scores_i + b) of each task, to rounding.

    A Newton step that leaves the bracket between slopes of both signs is replaced by bisection, so that losses with flat parts
    and losses without bounded curvature are served alike.

    Args:
        problem: the losses.
        scores: in the shape of the design.
        start: (K,) first guess.
    """
    design, s = problem.design, problem.labels.weight
    b = np.zeros(problem.n_tasks) if start is None else start.copy()
    low, high = np.full_like(b, -np.inf), np.full_like(b, np.inf)
    for _ in range(MAX_STEPS):
        z = scores + design.spread(b)
        weighted = s * problem.each("derivative", z)
        g = design.sum_rows(weighted)
        h = design.sum_rows(s * problem.each("second", z))
        open_tasks = np.abs(g) > EXACT * design.sum_rows(np.abs(weighted))
        if not open_tasks.any():
            return b
        low, high = np.where(g < 0, np.maximum(low, b), low), np.where(g > 0, np.minimum(high, b), high)
        step = -g / np.maximum(h, 1e-3 * design.sum_rows(s) + 1e-300)
        proposal = b + step
        both = np.isfinite(low) & np.isfinite(high)
        outside = both & ((proposal <= low) | (proposal >= high))
        middle = np.where(both, 0.5 * (np.where(both, low, 0) + np.where(both, high, 0)), 0)
        new = np.where(open_tasks, np.where(outside, middle, proposal), b)
        if (new == b).all():
            return b
        b = new
    return b
