"""Was a task helped or hurt? Paired differences over seeds, an interval, a verdict.

Letters: S seeds, K tasks, g_s the paired difference (gain) at seed s.

Every seed draws another split of the same rows, so the S differences share most of their training rows and are correlated. The
plain paired t-test takes them for independent and finds differences where there are none. Here the variance of the mean is
(1/S + n_test / n_train) s^2 in place of s^2 / S (Nadeau & Bengio 2003, the corrected resampled t-test). The correction is an
approximation, exact only under the paper's assumption that the correlation equals n_test / (n_test + n_train).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from taskloom.tasks import Array

LEAST_SEEDS = 3


@dataclass(frozen=True)
class Interval:
    """The mean of paired differences, and how sure it is.

    Attributes:
        mean: over seeds.
        low: lower end of the interval.
        high: upper end of the interval.
        p_value: of no difference, two-sided.
    """

    mean: float
    low: float
    high: float
    p_value: float


def paired_interval(differences: ArrayLike, test_ratio: float, confidence: float = 0.95) -> Interval:
    """The corrected resampled t-interval of paired differences.

    Args:
        differences: (S,) score minus baseline score, one a seed.
        test_ratio: test rows divided by training rows.
        confidence: of the interval.

    Returns:
        With fewer than three seeds, or with differences that are all the same and not zero, the ends are infinite and the
        p-value is 1: nothing can be said of chance. Equal differences are common where a score has few possible values
        (accuracy on a dozen rows), and taking them for certainty would find effects where there are none.

    Examples:
        >>> interval = paired_interval([0.10, 0.12, 0.11, 0.09, 0.13], test_ratio=1 / 3)
        >>> round(interval.low, 3), round(interval.high, 3)
        (0.078, 0.142)
    """
    gains = np.asarray(differences, dtype=np.float64)
    mean, count = float(gains.mean()), len(gains)
    if count >= LEAST_SEEDS and not gains.any():
        return Interval(0.0, 0.0, 0.0, 1.0)
    if count < LEAST_SEEDS or np.ptp(gains) <= 1e-12 * np.abs(gains).max():
        return Interval(mean, -np.inf, np.inf, 1.0)
    error = float(np.sqrt((1 / count + test_ratio) * gains.var(ddof=1)))
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * error
    return Interval(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, count - 1)))


def holm(p_values: ArrayLike) -> Array:
    """p-values corrected for their number (Holm 1979): rejecting those below a keeps the chance of any false one below a.

    Examples:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    result = np.empty_like(p)
    result[order] = np.minimum(corrected, 1.0)
    return result


def verdict_word(interval: Interval, corrected_p: float, confidence: float = 0.95) -> str:
    """`helped`, `hurt` or `undecided`.

    Examples:
        >>> verdict_word(Interval(0.1, 0.05, 0.15, 0.001), corrected_p=0.01)
        'helped'
    """
    if corrected_p >= 1 - confidence:
        return "undecided"
    return "helped" if interval.mean > 0 else "hurt"
