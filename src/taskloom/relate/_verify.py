"""The verify step: groups that were chosen are trained, and chosen again in the light of what they came to.

Letters: K tasks, G groups, x prior gains, y measured gains, a slope of y over x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from taskloom.deep import GroupFitOptions
from taskloom.relate._affinity import Affinity, as_affinity
from taskloom.relate._arrays import Members
from taskloom.relate._group_training import GroupScores, as_members, train_groups
from taskloom.relate._groups import Groups
from taskloom.relate._options import Model
from taskloom.relate._pool import candidate_pool
from taskloom.relate._rows import task_names
from taskloom.relate._select import CostOf, check_question, costs_of, select
from taskloom.relate._surrogate import fit_surrogate
from taskloom.relate._values import GroupGains, all_groups, mean_gains, pair_gains
from taskloom.tasks import Array, DataError, OptionError, TaskData, check_positive, check_whole

# Maps groups (G, K) to their gains (G, K); those outside of a group play no part.
Measurement = Callable[[Members], Array]
# All groups of so many tasks are considered, a second of search a round; of more, a pool of them.
MOST_ALL = 12


@dataclass(frozen=True)
class VerifyOptions:
    """Options of `verify` and `refine`.

    Attributes:
        most: groups trained at the most, beside the tasks alone and all tasks together, which always are.
        per_round: groups trained in a round: those of the choice in hand, and its rivals. The first trains its whole choice.
        patience: rounds in a row at which the choice must hold nothing new, for it to stand.
        overlap: whether a task may also help in groups that do not serve it.
        time_limit: seconds for a choice among many candidates: see `select`.
        training: of the nets; gains are means over its seeds.

    Raises:
        OptionError: a number below 1, or no time.

    Examples:
        >>> VerifyOptions(most=20).per_round
        8
    """

    most: int = 40
    per_round: int = 8
    patience: int = 1
    overlap: bool = True
    time_limit: float = 60.0
    training: GroupFitOptions = field(default_factory=lambda: GroupFitOptions(seeds=(0, 1, 2)))

    def __post_init__(self) -> None:
        for name in ("most", "per_round", "patience"):
            check_whole(name, getattr(self, name))
        check_positive("time_limit", self.time_limit)


@dataclass(frozen=True, eq=False)
class VerifyRound:
    """What happened in a round.

    Attributes:
        choice: the best groups by what was held at its start: measured gains, and predicted ones of other groups.
        trained: the groups that were trained in it.
        error: root mean square of the difference between their measured and predicted gains; NaN in the first round, for the
            prior has units of its own.
        value: measured value of the best choice at its end.
    """

    choice: Groups
    trained: tuple[tuple[str, ...], ...]
    error: float
    value: float


@dataclass(frozen=True, eq=False)
class Verification:
    """Groups chosen by their measured gains, and how it came to that.

    Attributes:
        groups: the best choice among all groups that were trained; its values are measured.
        table: measured gains.
        predicted: what was held of all candidates at the end: measured gains where there are any.
        rounds: one after another.
        stable: whether the choice among all candidates held nothing but trained groups at the end; else the budget ran out.
        scores: losses of the nets; None where something else was measured.
    """

    groups: Groups
    table: GroupGains
    predicted: GroupGains
    rounds: tuple[VerifyRound, ...]
    stable: bool
    scores: GroupScores | None = None

    def __repr__(self) -> str:
        """The groups, and a line of how they were found."""
        n, singles = int((self.table.members.sum(axis=1) > 1).sum()), self.table.n_tasks
        end = "the choice is stable" if self.stable else "stopped before the choice was stable"
        return f"{self.groups!r}\nmeasured {n} groups and {singles} single tasks in {len(self.rounds)} rounds; {end}"


def verify(
    net: Model,
    train: TaskData,
    validation: TaskData,
    prior: Affinity | GroupGains | Array,
    budget: float,
    *,
    costs: CostOf | None = None,
    options: VerifyOptions | None = None,
) -> Verification:
    """Train the chosen groups and their rivals, learn from what they came to, choose again, until the choice stands.

    See `refine` for how. Gains are those of `train_groups`: 1 - loss in the group / loss alone, on the validation rows, mean
    over the seeds. The best of many measured gains looks a little better than it is; judge the choice on other rows.

    Args:
        net: what makes nets, or a net of which copies are the start of all.
        train: encoded training rows.
        validation: encoded validation rows.
        prior: an affinity, a plain (K, K) array with row = receiver, or a table of predicted gains.
        budget: for all chosen groups together: see `select`.
        costs: of a group, by the names of its tasks; 1 when not given, or what a table says.
        options: how many groups may be trained, and how.

    Raises:
        DataError: a prior of other tasks or with unknown gains, or data that `train_groups` refuses.
        OptionError: as for `select` and `train_groups`, or fewer groups may be trained than the first choice has.
        FitError: a net diverged.

    Examples:
        >>> from taskloom.deep import MLP
        >>> X = np.random.default_rng(0).normal(size=(200, 4))
        >>> Y = np.stack([X[:, 0], -X[:, 0], X[:, 1], X[:, 1]], axis=1)
        >>> data = TaskData.shared_rows(X, Y, ["a", "b", "c", "d"])
        >>> how = VerifyOptions(most=5, per_round=3, training=GroupFitOptions(max_steps=30))
        >>> found = verify(MLP((8,)), data, data, np.abs(np.corrcoef(Y.T)), budget=2, options=how)
        >>> together = found.table.gains[found.table.members.all(axis=1)].sum()
        >>> bool(found.groups.value >= together)
        True
    """
    options, tasks = options or VerifyOptions(), task_names(train)
    if not isinstance(prior, Affinity | GroupGains):
        prior = as_affinity(prior, tasks)
    if list(prior.tasks or ()) != tasks:
        raise DataError(f"`prior` is of the tasks {', '.join(prior.tasks or ())}; need {', '.join(tasks)}")
    seen: list[GroupScores] = []

    def measure(members: Members) -> Array:
        known = seen.pop() if seen else None
        scores = train_groups(net, train, validation, members, options=options.training, known=known)
        seen.append(scores)
        place = {row.tobytes(): g for g, row in enumerate(scores.members)}
        return scores.gains[[place[row.tobytes()] for row in members]]

    found = refine(measure, prior, budget, costs=costs, options=options)
    return Verification(found.groups, found.table, found.predicted, found.rounds, found.stable, seen[0])


def refine(
    measure: Measurement,
    prior: Affinity | GroupGains | Array,
    budget: float,
    *,
    costs: CostOf | None = None,
    options: VerifyOptions | None = None,
) -> Verification:
    """Choose groups by a prior, measure them and their rivals, and choose again, until the choice stands.

    A verify step is ours; what it is made of is known. The first round chooses by the prior alone. Afterwards the gain of task
    i in a group that was not measured is a x + (b_i + sum of w_ij over the other members): x is what the prior says, a >= 0 the
    slope of the measured gains over x within tasks, the rest a `fit_surrogate` of what that leaves over. With few measured
    groups the ridge keeps the second term small and the prior decides, with many the measurements do (ETAP, arXiv 2602.18591,
    corrects a prior by a regression of the residuals as well). A group that was measured has its measured gains. Rivals are the
    best choices without the groups of the choice, without those of that choice too, and so on.

    The tasks alone and all of them together are always measured. No choice among measured groups is better than the one that is
    returned, and with patience and a budget for all candidates it is the best of them. Candidates are the groups of a table;
    all groups of at most 12 tasks; of more tasks a pool, which grows with what is learnt.

    Args:
        measure: maps groups (G, K) to gains (G, K), larger is better; NaN where a group cannot serve a member.
        prior: an affinity, a plain array, or a table of predicted gains, whose groups then are the candidates.
        budget: for all chosen groups together.
        costs: of a group, by the names of its tasks; 1 when not given, or what a table says. What a table with other costs
            than 1 has no cost for, such as the tasks alone, is measured but not chosen.
        options: all but `training`.

    Raises:
        DataError: a prior with unknown gains, or measured gains that are infinite or of another shape.
        OptionError: as for `select`, or fewer groups may be measured than the first choice has.

    Examples:
        >>> truth = np.array([[0, 3, -1], [3, 0, -1], [-1, -1, 0]])
        >>> found = refine(lambda members: members @ truth.T, prior=np.ones((3, 3)), budget=2)
        >>> found
        2 groups of 3 tasks by dp, value 6, the best
          1  task 1, task 2
          2  task 3
        measured 4 groups and 3 single tasks in 1 rounds; the choice is stable
    """
    options = options or VerifyOptions()
    check_question(budget, "auto", options.time_limit)
    if costs is not None and not callable(costs):
        raise OptionError(f"`costs` is no function: {costs!r}; give one of a group's task names")
    search = _Search(measure, prior if isinstance(prior, GroupGains) else as_affinity(prior), budget, costs, options)
    left, calm = options.most, 0
    table = search.held()
    while True:
        choice = search.choose(table)
        new = [row for row in as_members(choice, search.tasks) if not search.is_measured(row)]
        if not search.rounds and len(new) > left:
            raise OptionError(f"`most`={left}: the first choice alone has {len(new)} groups to train; allow more")
        calm = calm + 1 if search.rounds and not new else 0
        if search.rounds and (calm >= options.patience or not left):
            break
        # Of the first choice nothing is left out, so that what is measured always holds one that the budget buys.
        most = options.per_round if search.rounds else max(options.per_round, len(new))
        wanted = search.wanted(table, choice, new, min(most, left))
        if not len(wanted) and search.rounds:
            break
        left -= len(wanted)
        table = search.round(table, choice, wanted)
    return Verification(search.best, search.measured(), table, tuple(search.rounds), calm > 0)


class _Search:
    """Candidates, what is measured of them and what is predicted.

    Args:
        measure: see `refine`, as are the others.
        prior: with the names of the tasks.
        budget: of a choice.
        costs: of groups.
        options: of the search.
    """

    def __init__(
        self, measure: Measurement, prior: Affinity | GroupGains, budget: float, costs: CostOf | None, options: VerifyOptions
    ) -> None:
        self.measure, self.prior, self.budget, self.costs, self.options = measure, prior, budget, costs, options
        self.tasks, K = list(prior.tasks or ()), prior.n_tasks
        self.always = np.unique(np.concatenate([np.eye(K, dtype=bool), np.ones((1, K), dtype=bool)]), axis=0)
        self.always_keys = {row.tobytes() for row in self.always}
        self.rounds: list[VerifyRound] = []
        self.found: dict[bytes, Array] = {}
        self.price: dict[bytes, float] = {}
        self.unpriced = 1.0
        self.candidates, self.x = np.zeros((0, K), dtype=bool), np.zeros((0, K))
        if isinstance(prior, GroupGains):
            given = np.asarray(prior.costs)
            self.price = {row.tobytes(): float(cost) for row, cost in zip(prior.members, given, strict=True)}
            self.unpriced = 1.0 if (given == 1).all() else 2 * float(budget)
            self._take(prior.members, prior.gains)
            self._take(self.always, np.full((K + 1, K), np.nan))
        else:
            self.gains, self.alone = pair_gains(prior)
            self._take_valued(all_groups(K) if K <= MOST_ALL else candidate_pool(self.gains, self.alone, prior.similarity()))
            self._take_valued(self.always)

    def _take_valued(self, members: Members) -> None:
        values = mean_gains(self.gains, self.alone, members)
        self._take(members, np.where(np.isfinite(values), values, np.nan))

    def _take(self, members: Members, x: Array) -> None:
        """Further candidates, with what the prior says of them; those that are there already stay as they are."""
        rows = np.concatenate([self.candidates, members])
        _, first = np.unique(rows, axis=0, return_index=True)
        first.sort()
        self.candidates, self.x = rows[first], np.concatenate([self.x, x])[first]

    def is_measured(self, row: Members) -> bool:
        """Whether a group (K,) was, or is in any case."""
        return row.tobytes() in self.found or row.tobytes() in self.always_keys

    def held(self) -> GroupGains:
        """What is held of all candidates: the prior at first; then measured gains, and predicted ones where there are none."""
        if not self.found:
            return self._table(self.candidates, self.x)
        x, y, measured = self._known()
        slope = slope_within(x, y)
        # Where the prior knows nothing, a group has to be measured before it can serve.
        fitted = fit_surrogate(measured, y - slope * np.nan_to_num(x))
        if not isinstance(self.prior, GroupGains) and len(self.tasks) > MOST_ALL:
            pairs = Affinity(slope * self.gains + fitted.effects, self.tasks)
            self._take_valued(candidate_pool(pairs.values, self.alone, pairs.similarity()))
        predicted = slope * self.x + fitted.predict(self.candidates)
        for g, row in enumerate(self.candidates):
            predicted[g] = self.found.get(row.tobytes(), predicted[g])
        return self._table(self.candidates, predicted)

    def _known(self) -> tuple[Array, Array, Members]:
        """Prior and measured gains (G, K) of the groups of two or more that were measured, and these groups."""
        rows = [g for g, row in enumerate(self.candidates) if row.tobytes() in self.found and row.sum() > 1]
        members = self.candidates[rows]
        return self.x[rows], np.stack([self.found[row.tobytes()] for row in members]), members

    def measured(self) -> GroupGains:
        """What was measured."""
        rows = np.array([row for row in self.candidates if row.tobytes() in self.found])
        return self._table(rows, np.stack([self.found[row.tobytes()] for row in rows]))

    @property
    def best(self) -> Groups:
        """The best choice among measured groups."""
        return self.choose(self.measured())

    def choose(self, table: GroupGains) -> Groups:
        """The best choice out of a table."""
        return select(table, self.budget, overlap=self.options.overlap, time_limit=self.options.time_limit)

    def wanted(self, table: GroupGains, choice: Groups, new: list[Members], n: int) -> Members:
        """At most n groups to measure next: the new ones of the choice, those of the best choices without them, others."""
        picked, banned = {row.tobytes(): row for row in new[:n]}, set[bytes]()
        while len(picked) < n:
            rows = as_members(choice, self.tasks)
            further = {row.tobytes() for row in rows} - self.always_keys - banned
            picked |= {row.tobytes(): row for row in rows if row.tobytes() in further and not self.is_measured(row)}
            banned |= further
            if not further:
                break
            stays = np.array([row.tobytes() not in banned for row in self.candidates])
            try:
                choice = self.choose(self._table(self.candidates[stays], table.gains[stays]))
            except (OptionError, DataError):
                # What is left serves not all tasks, or not within the budget.
                break
        hope = np.nansum(np.where(self.candidates, table.gains, 0.0), axis=1)
        for g in np.argsort(-hope, kind="stable"):
            row = self.candidates[g]
            if len(picked) >= n:
                break
            if not self.is_measured(row):
                picked[row.tobytes()] = row
        return np.array([*picked.values()][:n], dtype=bool).reshape(-1, len(self.tasks))

    def round(self, table: GroupGains, choice: Groups, wanted: Members) -> GroupGains:
        """Measure, write the round down, and hold what follows from it."""
        asked = wanted if self.rounds else np.concatenate([self.always, wanted])
        gains = np.asarray(self.measure(asked), dtype=np.float64)
        if gains.shape != asked.shape or np.isinf(gains[asked]).any():
            raise DataError(
                f"`measure` gave gains of shape {gains.shape} for {asked.shape} groups; need as many, none infinite"
            )
        gains = np.where(asked, gains, np.nan)
        self.found |= {row.tobytes(): values for row, values in zip(asked, gains, strict=True)}
        error = np.nan
        if self.rounds:
            places = {row.tobytes(): g for g, row in enumerate(self.candidates)}
            missed = gains - table.gains[[places[row.tobytes()] for row in asked]]
            error = float(np.sqrt(np.mean(missed[np.isfinite(missed)] ** 2)))
        names = tuple(tuple(self.tasks[t] for t in np.flatnonzero(row)) for row in wanted)
        self.rounds.append(VerifyRound(choice, names, error, self.best.value))
        return self.held()

    def _table(self, members: Members, gains: Array) -> GroupGains:
        prices = np.array([self.price.get(row.tobytes(), self.unpriced) for row in members])
        if self.costs is not None:
            prices = costs_of(self.costs, members, self.tasks)
        return GroupGains(members, gains, self.tasks, prices)


def slope_within(x: Array, y: Array) -> float:
    """Least-squares slope of y over x (G, K) within columns; 0 where it is negative or nothing is known; NaN is left out.

    Examples:
        >>> slope_within(np.array([[0.0, 5.0], [1.0, 6.0]]), np.array([[7.0, 0.0], [9.0, 2.0]]))
        2.0
    """
    known = np.isfinite(x) & np.isfinite(y)
    counts = np.maximum(known.sum(axis=0), 1)
    centred = [np.where(known, v - np.where(known, v, 0.0).sum(axis=0) / counts, 0.0) for v in (x, y)]
    square = float((centred[0] ** 2).sum())
    return max(float((centred[0] * centred[1]).sum()) / square, 0.0) if square > 0 else 0.0
