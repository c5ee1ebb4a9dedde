"""Task affinity from groups that are really trained: all pairs, or random groups and a linear model of their gains.

Letters: K tasks, S seeds, n groups.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import replace
from itertools import combinations, cycle

import numpy as np

from taskloom.deep import GroupFitOptions
from taskloom.relate._affinity import Affinity
from taskloom.relate._arrays import Members
from taskloom.relate._group_training import GroupScores, train_groups
from taskloom.relate._options import MeasureOptions, Model
from taskloom.relate._rows import check_data, correlation_of_pairs
from taskloom.relate._surrogate import fit_surrogate
from taskloom.tasks import Array, TaskData, check_whole, split_rows

# Of the rows that a measure is given, for training and for judging.
_SHARES = (0.75, 0.25, 0.0)


def pairwise(
    model: Model,
    data: TaskData,
    options: MeasureOptions | None = None,
    *,
    validation: TaskData | None = None,
    n_seeds: int = 2,
) -> Affinity:
    """What each task gains in a joint net with each other task, over a net of its own: all pairs are trained, side by side.

    Higher-order approximation (HOA; Standley et al., ICML 2020): what a larger group is worth to a task is the mean over its
    other members of what the pairs are worth, and that is what `select` makes of this. The paper averages losses, here they are
    parts of the loss of the task's single net, so that tasks of different scales count alike. Ours as well: all nets of one
    seed start from the same weights and see the same rows.

    Args:
        model: what makes nets, or a net of which copies are the start of all.
        data: encoded training rows.
        options: of the trainings: `steps` at the most, `batch_size`, `learning_rate`, `seed`, `at_once`.
        validation: encoded rows on which nets are judged and stopped; when not given, a quarter of `data`.
        n_seeds: S, how often each net is trained.

    Returns:
        1 - loss in the pair / loss alone, mean over the seeds; 0 is no effect. `stability` is the split-half reliability over
        the seeds, NaN of one seed. The K (K + 1) / 2 nets of a seed are in the cost.

    Raises:
        DataError: fewer than two tasks, features that are not finite, or too few labels to judge a task.
        OptionError: a net that does not fit the tasks, or fewer than one seed.
        FitError: a net diverged.

    Examples:
        >>> from taskloom.deep import MLP
        >>> X = np.random.default_rng(0).normal(size=(200, 4))
        >>> data = TaskData.shared_rows(X, np.stack([X[:, 0], -X[:, 0], X[:, 1]], axis=1), ["a", "b", "c"])
        >>> affinity = pairwise(MLP((8,)), data, MeasureOptions(steps=30), n_seeds=1)
        >>> affinity.cost.trainings, affinity.zero
        (6, 0.0)
    """
    how = options or MeasureOptions()
    parts = _parts(data, validation, how, n_seeds)
    pairs = np.zeros((data.n_tasks * (data.n_tasks - 1) // 2, data.n_tasks), dtype=bool)
    for row, pair in zip(pairs, combinations(range(data.n_tasks), 2), strict=True):
        row[list(pair)] = True
    scores = train_groups(model, *parts, pairs, options=_training(how, n_seeds))
    stability = scores.reliability() if how.split_half else np.nan
    values = pair_values(scores)
    return Affinity(values, scores.tasks, "pairwise", zero=0.0, cost=scores.cost, stability=stability)


def pair_values(scores: GroupScores) -> Array:
    """(K, K) gains of pairs, row = receiver; NaN where a pair was not trained, 0 on the diagonal.

    Examples:
        >>> members = np.array([[1, 0], [0, 1], [1, 1]], dtype=bool)
        >>> losses = np.array([[[1.0, np.nan]], [[np.nan, 1.0]], [[0.5, 2.0]]])
        >>> pair_values(GroupScores(("a", "b"), members, losses)).tolist()
        [[0.0, 0.5], [-1.0, 0.0]]
    """
    K = len(scores.tasks)
    values = np.full((K, K), np.nan)
    np.fill_diagonal(values, 0.0)
    for row, gains in zip(scores.members, scores.gains, strict=True):
        if row.sum() == 2:
            i, j = np.flatnonzero(row)
            values[i, j], values[j, i] = gains[i], gains[j]
    return values


def surrogate(
    model: Model,
    data: TaskData,
    options: MeasureOptions | None = None,
    *,
    validation: TaskData | None = None,
    n_groups: int | None = None,
    n_seeds: int = 1,
) -> Affinity:
    """What each task gains with each other one, by a linear model of the gains of random groups that are trained.

    Li, Nguyen & Zhang (TMLR 2023, arXiv 2303.14582): a number of subsets linear in K, a regression of the outcome on who was
    there, and the coefficients as affinity. There subsets of sources are trained with one target; here a random group tells of
    all its members at once, and gains are held against single nets (see `pairwise`). The affinity is what the model says of
    the pair, the coefficient and the receiver's level, so that 0 is learning alone and not company in the mean. To predict
    groups rather than pairs, take `train_groups`, `fit_surrogate` and `Surrogate.table`; `verify` does so and trains what is
    chosen.

    Args:
        model: what makes nets, or a net of which copies are the start of all.
        data: encoded training rows.
        options: as for `pairwise`.
        validation: encoded rows on which nets are judged and stopped; when not given, a quarter of `data`.
        n_groups: n, random groups that are trained; 4 K when not given. Their sizes go from 2 to half of the tasks.
        n_seeds: S, how often each net is trained.

    Returns:
        Gains of pairs by a ridge regression, row = receiver; 0 is no effect. `stability` is the correlation of what two halves
        of the groups predict.

    Raises:
        DataError: as for `pairwise`.
        OptionError: as for `pairwise`, or fewer than two groups.
        FitError: a net diverged.

    Examples:
        >>> from taskloom.deep import MLP
        >>> X = np.random.default_rng(0).normal(size=(200, 4))
        >>> data = TaskData.shared_rows(X, np.stack([X[:, 0], -X[:, 0], X[:, 1]], axis=1), ["a", "b", "c"])
        >>> surrogate(MLP((8,)), data, MeasureOptions(steps=30), n_groups=9).cost.trainings
        6
    """
    how = options or MeasureOptions()
    parts = _parts(data, validation, how, n_seeds)
    K = data.n_tasks
    n = 4 * K if n_groups is None else n_groups
    check_whole("n_groups", n, least=2)
    scores = train_groups(model, *parts, random_groups(K, n, how.seed), options=_training(how, n_seeds))
    fitted, tasks = fit_surrogate(scores.members, scores.gains), list(scores.tasks)
    several = scores.members.sum(axis=1) > 1
    members, gains = scores.members[several], scores.gains[several]
    stability = np.nan
    if how.split_half and len(members) > 3:
        halves = [fit_surrogate(members[h::2], gains[h::2], fitted.strength).affinity(tasks).values for h in range(2)]
        stability = correlation_of_pairs(*halves)
    notes = [f"predicted from {len(members)} trained groups"]
    return replace(fitted.affinity(tasks), cost=scores.cost, stability=stability, notes=notes)


def random_groups(K: int, n: int, seed: int) -> Members:
    """(n', K) n different random groups of two tasks to half of them, sizes in turn, tasks about equally often.

    A size that is used up is passed over; all groups where there are no more than n.

    Examples:
        >>> random_groups(8, 6, seed=0).sum(axis=1).tolist()
        [2, 3, 4, 2, 3, 4]
    """
    rng, counts, found = np.random.default_rng(seed), np.zeros(K), dict[bytes, Members]()
    left = {size: math.comb(K, size) for size in range(2, max(2, K // 2) + 1)}
    for size in cycle([*left]):
        if len(found) == n or not any(left.values()):
            break
        if left[size]:
            group = _new_group(size, counts, rng, found)
            found[group.tobytes()] = group
            counts += group
            left[size] -= 1
    return np.array([*found.values()])


def _new_group(size: int, counts: Array, rng: np.random.Generator, found: Container[bytes]) -> Members:
    """A group (K,) that was not found so far, of tasks that had few turns."""
    K = len(counts)
    for _ in range(20):
        group = np.zeros(K, dtype=bool)
        # A random part keeps tasks that had their turns together from staying together.
        group[np.argsort(counts + 2 * rng.random(K))[:size]] = True
        if group.tobytes() not in found:
            return group
    # So many misses: few are left of this size.
    each = np.array([[t in chosen for t in range(K)] for chosen in combinations(range(K), size)])
    rest = np.array([row for row in each if row.tobytes() not in found])
    return rest[(rest @ counts).argmin()]


def _parts(data: TaskData, validation: TaskData | None, options: MeasureOptions, n_seeds: int) -> tuple[TaskData, TaskData]:
    """Rows to train on and rows to judge on."""
    check_whole("n_seeds", n_seeds)
    check_data(data)
    if validation is not None:
        return data, validation
    split = split_rows(data, options.seed, _SHARES)
    return data.take(split.train), data.take(split.validation)


def _training(options: MeasureOptions, n_seeds: int) -> GroupFitOptions:
    return GroupFitOptions(
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        max_steps=options.steps,
        accelerator=options.accelerator,
        seeds=tuple(range(options.seed, options.seed + n_seeds)),
        at_once=options.at_once,
    )
