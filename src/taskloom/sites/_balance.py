"""The length of a proximal step, found while running from what the coordinator sees anyway.

Letters: K tasks, d features, gamma step, eta relaxation, v (d, m) columns of V of a site with m tasks, p (d, m) those of
prox(V), z (d, m) its proximal points, g (d, m) the gradients of its losses there, L greatest curvature of a task's loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from taskloom.tasks import Array

# First step, in units of one over the mean of the sites' greatest curvatures.
FIRST_STEP = 4.0
# Rounds before the first look, factor from one look to the next, and how many there are: then the step stays.
FIRST_LOOK, GROWTH, LOOKS = 2.0, 2.0, 8
# A step within this factor of the balanced one is kept, since a change costs every site an update.
TOLERATED = 2.0
# By how much one look may change it.
LARGEST_CHANGE = 10.0


def gradient_point(v: Array, p: Array, new: Array, gamma: float, eta: float) -> Array:
    """The gradient of the loss at p, out of the columns before and after a gradient step.

    Examples:
        >>> float(gradient_point(np.zeros((1, 1)), np.ones((1, 1)), np.full((1, 1), -0.5), 1.0, 1.0)[0, 0])
        1.5
    """
    return (p - v - (new - v) / eta) / gamma


def proximal_point(v: Array, p: Array, new: Array, gamma: float, eta: float) -> tuple[Array, Array]:
    """Z = prox_{gamma loss}(2 p - v) and the gradient of the loss there, out of the columns before and after a step.

    Examples:
        >>> z, g = proximal_point(np.zeros((1, 1)), np.ones((1, 1)), np.full((1, 1), -0.5), 1.0, 1.0)
        >>> float(z[0, 0]), float(g[0, 0])
        (0.5, 1.5)
    """
    z = p + (new - v) / eta
    return z, (2 * p - v - z) / gamma


class StepBalance:
    """gamma = |change of z| / |change of g| over the last trips of all sites: a secant of all losses along the way taken.

    Where gamma is too short, what is left to learn lies along small curvatures, the ratio is long, and the other way round: so
    that gamma settles between one over the greatest curvature and one over the least, usually well inside. The rule is ours;
    it is near in spirit to the spectral steps of Xu, Figueiredo & Goldstein (AISTATS 2017) for ADMM. Looks at it become rare
    and end, so that the iteration is in the end one with a fixed step.

    Args:
        n_features: d.
        n_tasks: K.

    Attributes:
        z: (d, K) last proximal points, NaN before the first.
        g: (d, K) gradients there.
    """

    def __init__(self, n_features: int, n_tasks: int) -> None:
        self.z = np.full((n_features, n_tasks), np.nan)
        self.g = np.full((n_features, n_tasks), np.nan)
        # Squared lengths of the last change of z and g of each task: a fast site counts no more than a slow one.
        self.moved = np.full((2, n_tasks), np.nan)
        self.looks, self.next_look = 0, FIRST_LOOK

    def see(self, tasks: list[int], z: Array, g: Array) -> None:
        """Take note of new proximal points and gradients (d, m) of some tasks."""
        self.moved[:, tasks] = ((z - self.z[:, tasks]) ** 2).sum(axis=0), ((g - self.g[:, tasks]) ** 2).sum(axis=0)
        self.z[:, tasks], self.g[:, tasks] = z, g

    def look(self, rounds: float, gamma: float) -> float | None:
        """The step to change to at the end of a round, or None to keep it.

        Args:
            rounds: so far, of the median site.
            gamma: in use.
        """
        z, g = np.nansum(self.moved, axis=1)
        if self.looks >= LOOKS or rounds < self.next_look or not (z > 0 and g > 0):
            return None
        self.looks, self.next_look = self.looks + 1, GROWTH * self.next_look + 1
        change = np.sqrt(z / g) / gamma
        if 1 / TOLERATED <= change <= TOLERATED:
            return None
        return gamma * float(np.clip(change, 1 / LARGEST_CHANGE, LARGEST_CHANGE))

    def state_dict(self) -> dict[str, Any]:
        """Numbers, and both arrays under `arrays`."""
        arrays = {"z": self.z, "g": self.g, "moved": self.moved}
        return {"looks": self.looks, "next_look": self.next_look, "arrays": arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.looks, self.next_look = int(state["looks"]), float(state["next_look"])
        self.z, self.g, self.moved = (np.array(state["arrays"][name]) for name in ("z", "g", "moved"))
