"""What groups of tasks are worth when they are really trained: a joint net for each group and seed, held against single nets.

Letters: K tasks, G groups, S seeds.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from torch import nn

from taskloom.deep import GroupFitOptions, GroupFits, NetFactory, fit_groups
from taskloom.relate._affinity import Cost
from taskloom.relate._arrays import Members, check_members
from taskloom.relate._groups import Groups
from taskloom.relate._options import Model
from taskloom.relate._rows import check_data, task_names
from taskloom.relate._values import GroupGains
from taskloom.tasks import Array, DataError, OptionError, TaskData, unknown

Sets = Sequence[Sequence[str]] | Groups | Members


@dataclass(frozen=True, eq=False)
class GroupScores:
    """Losses of groups that were trained, with the single-task nets that they are held against.

    Attributes:
        tasks: K names.
        members: (G, K), true where a task is in a group; among them the K groups of one.
        losses: (G, S, K) validation loss of each member; NaN outside of the group.
        seeds: S numbers.
        test_losses: (G, S, K) of the same weights on test rows; None where none were given.
        cost: of all trainings.
    """

    tasks: tuple[str, ...]
    members: Members
    losses: Array
    seeds: tuple[int, ...] = (0,)
    test_losses: Array | None = None
    cost: Cost = field(default_factory=Cost)

    @property
    def gains_by_seed(self) -> Array:
        """(G, S, K): 1 - loss in the group / loss of the task's single net of that seed; 0 in groups of one."""
        return relative_gains(self.losses, self.losses[self._singles()])

    @property
    def gains(self) -> Array:
        """(G, K) gains, mean over the seeds; NaN outside of the group."""
        return self.gains_by_seed.mean(axis=1)

    def table(self, costs: Array | None = None) -> GroupGains:
        """The gains as `select` takes them."""
        return GroupGains(self.members, self.gains, self.tasks, costs)

    def reliability(self, *, within_tasks: bool = False) -> float:
        """Split-half reliability of the gains of groups of two or more: see `reliability`. NaN of one seed.

        Args:
            within_tasks: of what is left when each task's mean over its groups is taken off, so that no correlation comes
                from tasks that gain everywhere.
        """
        gains = self.gains_by_seed[self.members.sum(axis=1) > 1]
        if within_tasks and len(gains):
            known = ~np.isnan(gains)
            means = np.where(known, gains, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
            gains = gains - means
        return reliability(gains.swapaxes(0, 1).reshape(len(self.seeds), -1))

    def losses_of(self, groups: Groups, *, test: bool = False) -> Array:
        """(S, K) loss of each task in the group that serves it.

        Args:
            groups: of which every set was trained.
            test: on test rows.

        Raises:
            DataError: a set that was not trained, or no test rows.
        """
        losses = self.test_losses if test else self.losses
        if losses is None:
            raise DataError("`test`=True, but these groups were not judged on test rows; give `train_groups` some")
        rows = self._rows(as_members(groups, self.tasks))
        return np.stack([losses[rows[groups.serves[task]], :, t] for t, task in enumerate(self.tasks)], axis=1)

    def _singles(self) -> list[int]:
        return self._rows(np.eye(len(self.tasks), dtype=bool))

    def _rows(self, members: Members) -> list[int]:
        """Where groups stand among those that were trained."""
        place = {row.tobytes(): g for g, row in enumerate(self.members)}
        lost = next((row for row in members if row.tobytes() not in place), None)
        if lost is not None:
            names = ", ".join(self.tasks[t] for t in np.flatnonzero(lost))
            raise DataError(f"`groups` holds {names}, which was not trained; give it to `train_groups`")
        return [place[row.tobytes()] for row in members]


def relative_gains(losses: Array, singles: Array) -> Array:
    """(G, S, K) of 1 - loss / loss of the single net, from losses (G, S, K) and those of groups of one, (K, S, K).

    Examples:
        >>> losses = np.array([[[1.0, np.nan]], [[np.nan, 2.0]], [[0.5, 3.0]]])
        >>> relative_gains(losses, losses[:2])[2]
        array([[ 0.5, -0.5]])
    """
    alone = np.diagonal(singles, axis1=0, axis2=2)
    return 1 - losses / np.maximum(alone, np.finfo(np.float64).tiny)


def reliability(gains: Array, *, whole: bool = False) -> float:
    """How well the means of two halves of the seeds correlate, averaged over the ways to halve them.

    No prediction of the gains can be expected to correlate better with their mean than the root of what `whole` gives.

    Args:
        gains: (S, n) of n values with each of S seeds; a value that is NaN with any seed is left out.
        whole: of the mean of all seeds, in place of half of them: 2 r / (1 + r) (Spearman 1910, Brown 1910).

    Returns:
        NaN of fewer than two seeds or three values, or where a half is constant. Of more than 8 seeds 35 halvings are
        tried; of an odd number one seed sits out in each.

    Examples:
        >>> true, noise = np.arange(50.0), np.random.default_rng(0).normal(size=(4, 50))
        >>> reliability(true + noise) > 0.99, abs(reliability(noise)) < 0.3
        (True, True)
    """
    gains = np.asarray(gains, dtype=np.float64)
    gains = gains[:, ~np.isnan(gains).any(axis=0)]
    S, n = gains.shape
    if S < 2 or n < 3:
        return float("nan")
    rng, found = np.random.default_rng(0), []
    orders = [np.arange(2)] if S == 2 else [rng.permutation(S) for _ in range(35)]
    for order in orders:
        one, other = (gains[order[h * (S // 2) : (h + 1) * (S // 2)]].mean(axis=0) for h in range(2))
        if np.ptp(one) == 0 or np.ptp(other) == 0:
            return float("nan")
        found.append(np.corrcoef(one, other)[0, 1])
    r = float(np.mean(found))
    return 2 * r / (1 + r) if whole else r


def train_groups(
    net: Model,
    train: TaskData,
    validation: TaskData,
    groups: Sets,
    *,
    options: GroupFitOptions | None = None,
    test: TaskData | None = None,
    known: GroupScores | None = None,
) -> GroupScores:
    """Train a joint net for every group and seed, and a single net for every task, all of them side by side.

    See `taskloom.deep.fit_groups`. Nets of one seed start from the same weights and see the same rows, the single nets too:
    gains are differences of pairs.

    Args:
        net: what makes nets; of a net that is given, copies are the start of all.
        train: encoded training rows.
        validation: encoded validation rows.
        groups: names of tasks, a group each; or `Groups`; or (G, K), true where a task is in a group. Each is trained once,
            and groups of one are added.
        options: seeds, learning rates, batch size, length.
        test: rows on which the nets are judged as well.
        known: what was trained before, with the same data, net and options; that is taken over and not trained again.

    Returns:
        What was known and what is new.

    Raises:
        DataError: fewer than two tasks, features that are not finite, a task without labels, or a group that is empty.
        OptionError: a net that does not fit the tasks; what is known is of other tasks or seeds, or only one has test losses.
        UnknownNameError: a group holds a name that is no task.
        FitError: every learning rate diverged for a group.

    Examples:
        >>> from taskloom.deep import MLP
        >>> from taskloom.tasks import FeatureEncoder, TargetScaler, load_diabetes_tasks
        >>> data = load_diabetes_tasks()
        >>> data = TargetScaler.fit(data).encode(FeatureEncoder.fit(data.features).encode(data))
        >>> names = [task.name for task in data.tasks]
        >>> how = GroupFitOptions(max_steps=20, seeds=(0, 1))
        >>> scores = train_groups(MLP((8,)), data, data, [names[:2], names[:3]], options=how)
        >>> scores.losses.shape, scores.gains[-2:].shape
        ((9, 2, 7), (2, 7))
    """
    options = options or GroupFitOptions()
    check_data(train)
    check_data(validation, least=1)
    tasks, K = tuple(task_names(train)), train.n_tasks
    wanted = np.concatenate([np.eye(K, dtype=bool), as_members(groups, tasks)])
    if known is not None:
        if known.tasks != tasks or known.seeds != options.seeds or (test is not None and known.test_losses is None):
            raise OptionError(
                "`known` is of other tasks or seeds, or lacks test losses; train all groups with the same options"
            )
        wanted = np.concatenate([known.members, wanted])
    wanted = _once(wanted)[0 if known is None else len(known.members) :]
    if known is not None and not len(wanted):
        return known
    if known is not None and known.test_losses is not None and test is None:
        raise OptionError("`test`=None, but what is `known` was judged on test rows; give the same ones for the new groups")
    start = perf_counter()
    fits = fit_groups(_maker(net), train, validation, wanted, options=options, test=test)
    cost = _cost(fits, train, validation, options, perf_counter() - start)
    if known is None:
        return GroupScores(tasks, wanted, fits.validation_loss, options.seeds, fits.test_loss, cost)
    tested = None
    if known.test_losses is not None and fits.test_loss is not None:
        tested = np.concatenate([known.test_losses, fits.test_loss])
    members, losses = np.concatenate([known.members, wanted]), np.concatenate([known.losses, fits.validation_loss])
    return GroupScores(tasks, members, losses, options.seeds, tested, known.cost + cost)


def as_members(groups: Sets, tasks: Sequence[str]) -> Members:
    """(G, K) of groups that are given by names, or as that already.

    Raises:
        DataError: an empty group, a name in the place of a group, or an array that says not who is in which.
        UnknownNameError: a name that is no task.

    Examples:
        >>> as_members([("a", "c"), ("b",)], ["a", "b", "c"]).astype(int).tolist()
        [[1, 0, 1], [0, 1, 0]]
    """
    K = len(tasks)
    if isinstance(groups, np.ndarray):
        members = check_members("groups", groups, K)
    else:
        name = next((names for names in (groups if not isinstance(groups, Groups) else ()) if isinstance(names, str)), None)
        if name is not None:
            raise DataError(f"`groups` holds the name {name!r} where a group is needed; give each group as a tuple of names")
        sets = groups.sets if isinstance(groups, Groups) else [tuple(names) for names in groups]
        for name in (name for names in sets for name in names):
            if name not in tasks:
                raise unknown("task", name, tasks)
        members = np.array([[task in names for task in tasks] for names in sets], dtype=bool).reshape(len(sets), K)
    if not members.any(axis=1).all():
        raise DataError(f"group {int(np.argmin(members.any(axis=1)))} of `groups` is empty; leave it out")
    return members


def _once(members: Members) -> Members:
    """Each row where it stands first."""
    _, first = np.unique(members, axis=0, return_index=True)
    return members[np.sort(first)]


def _maker(net: Model) -> NetFactory:
    if isinstance(net, nn.Module):
        return lambda _shape, _tasks: copy.deepcopy(net)
    if not callable(net):
        raise OptionError(f"`net`={net!r}: give a net, or what makes one, such as `MLP()`")
    return net


def _cost(fits: GroupFits, train: TaskData, validation: TaskData, options: GroupFitOptions, seconds: float) -> Cost:
    """Of the trainings, with the rows that were looked at for early stopping."""
    sizes = fits.members.sum(axis=1)
    rows = int((fits.total_steps * options.batch_size * (1 if train.is_shared else sizes)).sum())
    looked = np.array([validation.n_rows if train.is_shared else len(validation.rows(t)) for t in range(train.n_tasks)])
    each = fits.members @ looked if not train.is_shared else np.full(len(sizes), validation.n_rows)
    nets = len(options.seeds) * len(options.tried)
    looks = fits.total_steps // options.validate_every + nets
    return Cost(rows + int((looks * each).sum()), rows, seconds, trainings=nets * len(sizes))
