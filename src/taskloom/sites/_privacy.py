"""What leaves a site, and how to blur it: clipping, Gaussian noise, and what they guarantee.

**What leaves.** A site sends its name, the number of its message, and

1. when it joins, and joins again: the greatest curvature of each task's loss, one number a task;
2. each round trip: its new columns, d numbers a task;
3. when it parts: the intercept of each task, one number a task.

Nothing else about its rows is sent; when messages come, and how long they take, can be seen.

**What that reveals.** The coordinator knows p, v, step and relaxation that a column was worked out from, so that each update
tells it the gradient of the site's loss at a point that it also knows. The gradient of a squared loss is G w - c with
G = X' S X and c = X' S y: after d + 1 updates in general position both can be solved for, and with them every linear model of
the task. A gradient of any loss is a weighted sum of the site's rows: of a task of one row, a multiple of the row itself. Rows
that do not move are not rows that stay secret.

**What noise covers.** `GaussianRelease` covers the columns (2). It does not cover the curvature (1) and the intercepts (3),
which are exact functions of the rows: wrap the site's losses in `Withheld` to send neither.

Letters: d features, m tasks of a site, C bound of a clipped change, z noise multiplier, k releases.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
from scipy.special import ndtri

from taskloom.sites._site import LocalLoss
from taskloom.tasks import Array, OptionError

# Width of the grid on which privacy losses are summed, in parts of their size.
GRID = 1e-4
# Beyond this mean-to-noise ratio epsilon is in the thousands: a formula that is two percent above serves.
LARGEST_RATIO = 100.0


class GaussianRelease:
    """Columns as they leave a site: the change of each task is clipped to length C, and noise N(0, (z C)^2) is added.

    released = old + min(1, C / |new - old|) (new - old) + z C N(0, I), column by column; `old` was sent before, so only the
    change carries anything new. It is the Gaussian mechanism (Dwork & Roth 2014, appendix A) on clipped changes, as DP-SGD has
    it on clipped gradients (Abadi and others, CCS 2016); that it is applied to the columns of AMTL is our doing.

    `epsilon` says what k releases guarantee. To hide a whole task is dear: k = 30 releases at epsilon = 10, delta = 1e-5 take
    z = 5.5, noise of 5.5 C in each of d coordinates. With noise a run does not converge: it ends in a cloud around the optimum
    that grows with z C, so give it a number of rounds rather than a tolerance. A clip shorter than the changes slows the run
    down, a longer one makes more noise.

    Sums of floating-point numbers leave traces of their terms (Mironov, CCS 2012) that this class does nothing about.

    Args:
        clip: C, in units of the coefficients.
        noise_multiplier: z; 0 for clipping alone, which guarantees nothing.
        limit: most releases, together with those of `made`: after them a site sends its last columns unchanged, which tells
            nothing new. None for no limit.
        made: releases that were made before, by a site that has come up again.
        seed: of the noise, a whole number or some, for tests and simulations alone: whoever knows it subtracts the noise, and
            a site that comes up again with the same seed repeats it. None for the operating system's source of randomness.

    One object serves one site: several are made with `for_site`.

    Attributes:
        made: releases so far.

    Raises:
        OptionError: a number out of its range.

    Examples:
        >>> release = GaussianRelease(clip=1.0, noise_multiplier=0.0)
        >>> release(np.zeros((2, 1)), np.array([[3.0], [4.0]])).ravel().round(12)
        array([0.6, 0.8])
    """

    def __init__(
        self,
        clip: float,
        noise_multiplier: float,
        *,
        limit: int | None = None,
        made: int = 0,
        seed: int | tuple[int, ...] | None = None,
    ) -> None:
        if not 0 < clip < np.inf:
            raise OptionError(f"`clip`={clip!r}: need a positive number, in units of the coefficients")
        if not 0 <= noise_multiplier < np.inf:
            raise OptionError(f"`noise_multiplier`={noise_multiplier!r}: need 0 or a positive number")
        if limit is not None and limit < 0:
            raise OptionError(f"`limit`={limit!r}: need 0 or more releases, or None for no limit")
        if made < 0:
            raise OptionError(f"`made`={made!r}: need 0 or more releases")
        self.clip, self.noise_multiplier, self.limit, self.made = clip, noise_multiplier, limit, made
        self.seed = seed
        self._rng = None if seed is None else np.random.default_rng(seed)

    def for_site(self, name: str) -> GaussianRelease:
        """The same for one of several sites: it counts its own releases, and its noise is its own.

        Examples:
            >>> GaussianRelease(1.0, 1.0, seed=0).for_site("ward").made
            0
        """
        first = (self.seed,) if isinstance(self.seed, int) else self.seed
        seed = None if first is None else (*first, *name.encode())
        return GaussianRelease(self.clip, self.noise_multiplier, limit=self.limit, made=self.made, seed=seed)

    def __call__(self, old: Array, new: Array) -> Array:
        """(d, m) what is sent.

        Args:
            old: (d, m) columns that were sent before.
            new: (d, m) columns after the local step.
        """
        if self.limit is not None and self.made >= self.limit:
            return np.array(old)
        self.made += 1
        change = clipped(new - old, self.clip)
        if self.noise_multiplier > 0:
            change += self.noise_multiplier * self.clip * self._normal(change.shape)
        return old + change

    def _normal(self, shape: tuple[int, ...]) -> Array:
        if self._rng is not None:
            return self._rng.standard_normal(shape)
        words = np.frombuffer(os.urandom(8 * math.prod(shape)), dtype=np.uint64) >> np.uint64(11)
        return ndtri((words + 0.5) * 2.0**-53).reshape(shape)


def clipped(change: Array, clip: float) -> Array:
    """Columns (d, m) shortened to length `clip` where they are longer; a column that is not finite becomes zero.

    Examples:
        >>> clipped(np.array([[3.0, 0.1], [4.0, 0.0]]), 1.0).round(12)
        array([[0.6, 0.1],
               [0.8, 0. ]])
    """
    change = np.where(np.isfinite(change).all(axis=0), change, 0.0)
    # The greatest entry is taken out first: squares of large numbers overflow.
    top = np.maximum(np.abs(change).max(axis=0, initial=0.0), 1e-300)
    norms = top * np.linalg.norm(change / top, axis=0)
    return change * np.minimum(1.0, clip / np.maximum(norms, 1e-300))


class Withheld:
    """A task's loss whose curvature and intercept stay at the site.

    Instead of the curvature a site says `curvature`: a bound that holds for anybody's rows, such as the loss's greatest second
    derivative times the greatest length that a row may have, squared, for a mean loss. With none, the default, `local-prox`
    alone runs: its step needs no bound. The intercept is told as 0; the site has the true one from `loss.intercept`.

    Args:
        loss: of the task.
        curvature: what is said of it; must not depend on the rows.

    Raises:
        OptionError: `curvature` is not above 0.

    Examples:
        >>> from taskloom.linear import TaskProx
        >>> Withheld(TaskProx(np.eye(2), np.array([1.0, 0.0]))).curvature
        inf
    """

    def __init__(self, loss: LocalLoss, curvature: float = np.inf) -> None:
        if not curvature > 0:
            raise OptionError(f"`curvature`={curvature!r}: need a positive bound, or infinity for none")
        self.loss, self._curvature = loss, float(curvature)

    def __call__(self, v: Array, gamma: float, start: Array | None = None) -> Array:
        """(d,) the proximal map of the loss itself."""
        return self.loss(v, gamma, start)

    def gradient(self, w: Array) -> Array:
        """(d,) of the loss itself."""
        return self.loss.gradient(w)

    def intercept(self, w: Array) -> float:  # noqa: ARG002
        """0, whatever the loss."""
        return 0.0

    @property
    def curvature(self) -> float:
        """As given."""
        return self._curvature


def epsilon(releases: int, noise_multiplier: float, delta: float, *, tasks: int = 1) -> float:
    """Epsilon of the (epsilon, delta) differential privacy of all columns that a site sends.

    Neighbours: two runs are neighbours if all rows of one task are replaced by any others. Two changes of length at most C
    differ by at most 2 C, so that a release has noise z / 2 times its sensitivity; where the rows of several tasks of a site
    are replaced at once, 2 C sqrt(tasks). A single row is covered as part of its task, no better. A person with rows at
    several sites is covered at each, not by the number of one site: add those numbers up.

    The releases of one task are composed adaptively: each may depend on all before it. Other tasks' releases cost a task
    nothing: given what was sent, they depend on rows of their own alone (parallel composition), so that the epsilon of
    the run is the greatest among its tasks. What the coordinator makes of the columns, the model included, costs nothing more.

    The number is an upper bound from privacy loss distributions (Koskela and others 2020; Doroshenko and others, PETS 2022),
    rounded upwards on their grid; in the thousands, where it says that nothing is protected, the bound of Bun & Steinke
    (TCC 2016, proposition 1.3). It does not cover curvatures and intercepts: see `Withheld`. Messages that are sent again,
    as they were, cost nothing.

    Args:
        releases: k, the most that the site may make (`limit` of `GaussianRelease`). Not how many it happened to make: when a
            run ends may depend on what was sent. Messages that were lost or not taken also count.
        noise_multiplier: z of `GaussianRelease`.
        delta: above 0 and below 1.
        tasks: how many tasks' rows are replaced at once: m, to protect a site as a whole.

    Returns:
        Epsilon; 0 for no release, infinite for no noise.

    Raises:
        OptionError: a number out of its range, or dp-accounting is not installed.

    Examples:
        >>> epsilon(releases=0, noise_multiplier=1.0, delta=1e-5)
        0.0
    """
    if not isinstance(releases, int | np.integer) or releases < 0:
        raise OptionError(f"`releases`={releases!r}: need 0 or a positive whole number")
    if not 0 <= noise_multiplier < np.inf:
        raise OptionError(f"`noise_multiplier`={noise_multiplier!r}: need 0 or a positive number")
    if not 0 < delta < 1:
        raise OptionError(f"`delta`={delta!r}: need a number between 0 and 1, such as one over the square of the rows")
    if not isinstance(tasks, int | np.integer) or tasks < 1:
        raise OptionError(f"`tasks`={tasks!r}: need 1 or more tasks")
    if releases == 0:
        return 0.0
    if noise_multiplier == 0:
        return np.inf
    accounting, pld = _accounting()
    noise = noise_multiplier / (2 * math.sqrt(tasks))
    mu = math.sqrt(releases) / noise
    if mu > LARGEST_RATIO:
        return mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    # Losses of k releases have mean mu^2 / 2 and deviation mu: a grid in parts of these has the same size for any mu.
    accountant = pld.PLDAccountant(value_discretization_interval=GRID * (mu + mu**2 / 2))
    accountant.compose(accounting.GaussianDpEvent(noise), int(releases))
    return float(accountant.get_epsilon(delta))


def _accounting() -> tuple[Any, Any]:
    """The library and its part on privacy loss distributions."""
    try:
        import dp_accounting
        from dp_accounting import pld
    except ImportError as error:
        raise OptionError("`epsilon` needs dp-accounting; install taskloom[privacy]") from error
    return dp_accounting, pld
