"""What groups would be worth that were not trained: a linear model of the gains of those that were.

Letters: K tasks, G groups, i a receiver, S a group, w (K, K) what a source adds to a receiver, b (K,) level of a receiver.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taskloom.relate._affinity import Affinity
from taskloom.relate._arrays import Members, check_members
from taskloom.relate._values import MOST_LISTED, GroupGains, all_groups
from taskloom.tasks import Array, DataError, OptionError

# Strengths tried, in units of one observation.
STRENGTHS = np.geomspace(0.1, 100, 13)


@dataclass(frozen=True, eq=False)
class Surrogate:
    """Gains as linear functions of who is in the group: b_i + sum of w_ij over the other members j.

    Attributes:
        levels: (K,) b.
        effects: (K, K) w, row = receiver, column = source; the diagonal is 0.
        strength: of the ridge penalty on w.
        lone: (K,) mean measured gain of each task alone; NaN where that was not measured.

    Examples:
        >>> fitted = fit_surrogate(np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]]), np.array([[2, 1, 0], [0, 0, 1], [0, 1, 0.0]]))
        >>> fitted.predict(np.array([[1, 1, 1]])).shape
        (1, 3)
    """

    levels: Array
    effects: Array
    strength: float
    lone: Array

    def predict(self, memberships: Members | Array) -> Array:
        """(G, K) gains of groups (G, K); NaN outside of a group. A task alone has the gain measured, else its level.

        Raises:
            DataError: groups of another number of tasks.
        """
        members = check_members("memberships", memberships, len(self.levels)).astype(np.float64)
        gains = self.levels + members @ self.effects.T
        gains = np.where((members.sum(axis=1) == 1)[:, None] & ~np.isnan(self.lone), self.lone, gains)
        return np.where(members, gains, np.nan)

    def table(self, memberships: Members | Array | None = None, tasks: list[str] | None = None) -> GroupGains:
        """Predicted gains as `select` takes them, of all groups when none are given.

        Raises:
            OptionError: all groups of more than 18 tasks.
        """
        K = len(self.levels)
        if memberships is None and K > MOST_LISTED:
            raise OptionError(f"`memberships` of all groups of {K} tasks; give those to predict above {MOST_LISTED}")
        members = all_groups(K) if memberships is None else check_members("memberships", memberships, K)
        return GroupGains(members, self.predict(members), tasks)

    def affinity(self, tasks: list[str]) -> Affinity:
        """What each pair is predicted to be worth, level included: row = receiver, over the gain alone where that was measured.

        `select` takes the mean over the other members of a group, which of effects alone would leave out the level: what any
        company is worth. Its `zero` is learning alone; None where the gain alone of some task was not measured.
        """
        is_known = not np.isnan(self.lone).any()
        values = self.levels[:, None] + self.effects - (self.lone[:, None] if is_known else 0.0)
        np.fill_diagonal(values, 0.0)
        return Affinity(values, tasks, "surrogate", zero=0.0 if is_known else None)


def fit_surrogate(memberships: Members | Array, gains: Array, strength: float | None = None) -> Surrogate:
    """Ridge regression of each receiver's gain on who else is in the group (Li, Nguyen & Zhang 2023, TMLR).

    The paper fits random source sets for one target. Here every trained group tells of all its members at once. Ours as well:
    the ridge, for which few groups suffice; its strength, the same for all receivers, by leaving one group out; a level
    shrunk towards the mean of all receivers by one observation; and groups of one, which tell nothing of sources, stay apart.

    Args:
        memberships: (G, K), true where a task was in a group.
        gains: (G, K), larger is better; NaN where not measured, ignored outside of the group.
        strength: of the penalty; chosen when not given.

    Raises:
        DataError: shapes that do not fit, infinite gains, or no gain in a group of two or more.
        OptionError: a strength that is not positive.
    """
    members, y = check_members("memberships", memberships).astype(np.float64), np.array(gains, dtype=np.float64)
    if y.shape != members.shape:
        raise DataError(f"`gains` has shape {y.shape}; need {members.shape}, that of `memberships`")
    y[members == 0] = np.nan
    if np.isinf(y).any():
        raise DataError("`gains` holds infinity; use NaN where nothing was measured")
    if strength is not None and not 0 < strength < np.inf:
        raise OptionError(f"`strength`={strength!r}; need a positive number, or None to choose it")
    several = members.sum(axis=1) > 1
    alone, (members, y) = y[~several], (members[several], y[several])
    if np.isnan(y).all():
        raise DataError("`gains` has none in a group of two or more; train some")
    counts = (~np.isnan(alone)).sum(axis=0)
    lone = np.where(counts > 0, np.nansum(alone, axis=0) / np.maximum(counts, 1), np.nan)
    tried = [float(strength)] if strength is not None else STRENGTHS.tolist()
    fits = [_fit(members, y, each) for each in tried]
    errors = [error for *_, error in fits]
    levels, effects, _ = fits[int(np.argmin(errors))]
    return Surrogate(levels, effects, tried[int(np.argmin(errors))], lone)


def _fit(members: Array, y: Array, strength: float) -> tuple[Array, Array, float]:
    """Levels, effects and the squared error of leaving each observation out.

    The mean of all receivers stays fixed meanwhile.
    """
    K = members.shape[1]
    mean = float(np.nanmean(y))
    levels, effects, error = np.full(K, mean), np.zeros((K, K)), 0.0
    for i in range(K):
        rows = ~np.isnan(y[:, i])
        if not rows.any():
            continue
        others = np.arange(K) != i
        # Sources are coded around one half, so that the level is that of a group of middling size.
        design = np.column_stack([np.ones(rows.sum()), members[rows][:, others] - 0.5])
        penalty = np.diag(np.append(1.0, np.full(K - 1, strength)))
        solve = np.linalg.solve(design.T @ design + penalty, design.T)
        weights = solve @ (y[rows, i] - mean)
        left_out = (y[rows, i] - mean - design @ weights) / (1 - np.einsum("nd,dn->n", design, solve))
        error += float(left_out @ left_out)
        levels[i] = mean + weights[0] - 0.5 * weights[1:].sum()
        effects[i, others] = weights[1:]
    return levels, effects, error
