"""Online multi-task learning: K linear models that learn from a stream, and learn which tasks to listen to.

Letters: K tasks, n rows, d features.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, Self, get_args

import numpy as np
from scipy import sparse
from sklearn.base import clone
from sklearn.metrics import r2_score
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import validate_data

from taskloom.linear._base import LinearTasks
from taskloom.linear._check import read_tasks
from taskloom.linear._online_steps import Loss, Mode, Places, Rule, State, deal_rounds, grow_state, run_round, start_state
from taskloom.tasks import Array, DataError, FitError, OptionError


class OnlineMultiTask(LinearTasks):
    """Online learning of K related tasks with learned relations (OSMTL).

    The rows come in rounds of one example of each task. In a round every model is charged its loss on every task's example,
    l_kj (hinge: max(0, 1 - y_j <x_j, w_k>)); then, with C the learning rate and lambda the temperature,

    - relations: p_kj is multiplied by exp(-C (1 - alpha) l_kj / lambda) for j != k and the row divided by its sum
      (`incremental`); or is proportional to that factor alone (`exact`, without memory); or stays 1 / (K - 1) (`fixed`);
    - weights: w_k += C sum_j eta_kj g_kj x_j, where g_kj is minus the derivative of l_kj by the score (hinge: y_j where
      l_kj > 0) and eta_k = alpha e_k + (1 - alpha) p_k.

    So alpha = 1 is K learners apart, and a smaller alpha lets a task learn from examples of tasks that its model serves well.

    Source: Murugesan, Liu, Carbonell and Yang, Adaptive smoothed online multi-task learning, NIPS 2016. What we read of it is
    its abstract and the start of its introduction, and the published code of the authors' next paper (NIPS 2017), which
    names both relation updates and scales rows as here. The constants in the formulas above are our inference: the incremental
    update is the minimiser of C (1 - alpha) sum_j p_kj l_kj + lambda KL(p_k | former p_k) over the simplex. Ours as well:

    - The losses `logistic` and `squared` (half the squared error), through the same formulas.
    - Rounds that lack some tasks. An absent task gives no example: nothing is charged to it and no step is taken towards it,
      and the relations to it keep their value exactly, while those to the present tasks are renormalised among themselves
      (specialists that sleep; Freund, Schapire, Singer and Warmuth, STOC 1997). Its own model still learns from the examples
      of the others, so that a round of one example costs O(K d). Relations are learnt from rounds of two tasks or more only.
    - New tasks. One that first appears later starts with zero weights and uniform relations; each older row of relations gets
      it with the row's mean share, 1 / (K - 1), and is divided by its sum.
    - A single task has nobody to share with and learns as if alpha were 1.

    Args:
        loss: `hinge` or `logistic` for two classes, `squared` for numbers.
        alpha: share of a task's own examples in its steps, in [0, 1].
        learning_rate: C > 0. Normalised rows with squared loss need less than 2.
        temperature: lambda > 0; the smaller, the faster relations follow losses.
        mode: `incremental`, `exact` or `fixed`.
        fit_intercept: learn with each row extended by a constant 1.
        normalize: divide each (extended) row by its norm before it is learnt from; with squared loss its target as well
            (normalised least mean squares). Losses are those of the divided rows. `coef_` and `intercept_` apply to rows as
            they are given: classes are the same for both, and a linear relation stays linear.

    Attributes:
        coef_: (K, d) coefficients.
        intercept_: (K,) intercepts.
        tasks_: (K,) labels of the tasks, sorted.
        classes_: (2,) classes, sorted; not for squared loss.
        relation_: (K, K) shares p, row k of task k: non-negative, sum 1, zero diagonal ((1, 1) zero for a single task).
        log_relation_: (K, K) their logarithms, out of which the next round starts.
        losses_: (K,) cumulative loss of each task's own examples, each before it was learnt from.
        mistakes_: (K,) cumulative number of wrongly predicted classes among them; not for squared loss.
        counts_: (K,) number of own examples so far.
        shares_rows_: whether all tasks share the rows of X.
        is_single_: whether y was 1-D without task labels.

    Nothing is random. The fitted attributes are the whole state: an estimator that is pickled and continued equals one that
    never stopped, to the bit.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> rule = rng.normal(size=(2, 5))[[0, 1, 0, 1]]  # tasks 0 and 2 follow one rule, 1 and 3 another
        >>> X, tasks = rng.normal(size=(400, 5)), np.tile(np.arange(4), 100)
        >>> y = np.where((X * rule[tasks]).sum(1) > 0, "yes", "no")
        >>> model = OnlineMultiTask()
        >>> for start in range(0, 400, 40):
        ...     model = model.partial_fit(X[start : start + 40], y[start : start + 40], tasks=tasks[start : start + 40])
        >>> model.relation_.round(2) + 0.0
        array([[0., 0., 1., 0.],
               [0., 0., 0., 1.],
               [1., 0., 0., 0.],
               [0., 1., 0., 0.]])
        >>> model.score(X, y, tasks=tasks) > 0.9
        True
    """

    def __init__(
        self,
        loss: Loss = "hinge",
        *,
        alpha: float = 0.5,
        learning_rate: float = 1.0,
        temperature: float = 1.0,
        mode: Mode = "incremental",
        fit_intercept: bool = True,
        normalize: bool = True,
    ) -> None:
        self.loss = loss
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.temperature = temperature
        self.mode = mode
        self.fit_intercept = fit_intercept
        self.normalize = normalize

    def fit(self, X: Any, y: Any, *, tasks: Any = None, classes: Any = None) -> Self:
        """One pass over the rows from scratch; `partial_fit` on a new estimator.

        Args:
            X: (n, d) rows, dense or sparse.
            y: (n,) classes or numbers; (n, K) for shared rows.
            tasks: (n,) label of each row's task; None for shared rows.
            classes: the two classes; by default those in y.

        Returns:
            self.

        Raises:
            OptionError: a setting out of its range.
            DataError: y, tasks or classes that cannot be used.
            FitError: weights that overflow.
        """
        fresh = clone(self).partial_fit(X, y, tasks=tasks, classes=classes)
        for name in _fitted(self):
            delattr(self, name)
        vars(self).update(_fitted(fresh))
        return self

    def partial_fit(self, X: Any, y: Any, *, tasks: Any = None, all_tasks: Any = None, classes: Any = None) -> Self:
        """Learn from the next rows of the stream; after an error the estimator is as it was.

        The i-th row of each task in this call is in this call's i-th round. A call for each round and one call for all of
        them give the same bits.

        Args:
            X: (n, d) rows, dense or sparse.
            y: (n,) classes or numbers; (n, K) for shared rows, where NaN says that the task has no example in that round.
            tasks: (n,) label of each row's task; None for shared rows, or a 1-D y of a single task.
            all_tasks: labels of tasks to be known from now on, with or without rows in this call.
            classes: the two classes; needed in the first call unless y has both, and not allowed to change.

        Returns:
            self.

        Raises:
            OptionError: a setting out of its range, or a loss of another kind than before.
            DataError: y, tasks, all_tasks or classes that cannot be used, or do not agree with former calls.
            FitError: weights that overflow, as `squared` makes them when the learning rate is too large for the rows.
        """
        rule = self._rule()
        first = not hasattr(self, "coef_")
        y = _read_targets(y)
        if (np.shape(X) or (1,))[0] != len(y):
            raise DataError(f"`y` has {len(y)} rows and `X` has shape {np.shape(X)}; give one target a row")
        names, owner = self._read_tasks(tasks, all_tasks, y)
        known = self._read_classes(classes, y) if rule.loss != "squared" else None
        examples = _read_examples(y, owner, known)
        # The first call writes into another estimator what it reads of X, for weights may still overflow.
        reader = clone(self) if first else self
        X = validate_data(reader, X, accept_sparse="csr", dtype=np.float64, reset=first)
        state = start_state(len(names), X.shape[1] + 1) if first else self._state(names)
        design, norms = _design(X, fit_intercept=self.fit_intercept, normalize=self.normalize)
        _run(state, rule, design, examples.scaled(norms) if rule.loss == "squared" else examples)
        vars(self).update(_fitted(reader))
        self._keep(state, names, known)
        self.shares_rows_, self.is_single_ = owner is None, owner is None and y.ndim == 1
        return self

    def predict(self, X: Any, *, tasks: Any = None) -> Array:
        """Class or number of each row by its task's model, (n,); of every task, (n, K), for shared rows without `tasks`.

        Args:
            X: (n, d) rows.
            tasks: (n,) labels of tasks; may be None if the tasks share rows.

        Raises:
            DataError: tasks that are missing or were never seen.
        """
        scores = self._scores(X, tasks)
        return self.classes_[(scores > 0).astype(int)] if hasattr(self, "classes_") else scores

    @available_if(lambda self: self.loss != "squared")
    def decision_function(self, X: Any, *, tasks: Any = None) -> Array:
        """<x, coef> + intercept of each row's task, positive for `classes_[1]`; of the same shape as what `predict` gives."""
        return self._scores(X, tasks)

    def score(self, X: Any, y: Any, *, tasks: Any = None) -> float:
        """Mean over the tasks in y of the accuracy, or of R^2 for squared loss; missing labels are left out.

        Raises:
            DataError: y of another shape than the predictions, or a task without labels (two for R^2).
        """
        predicted, y = self.predict(X, tasks=tasks), np.asarray(y)
        if y.shape != predicted.shape:
            raise DataError(f"`y` has shape {y.shape} and the predictions {predicted.shape}; give one target a prediction")
        places = np.unique(np.asarray(tasks), return_inverse=True)[1] if tasks is not None else None
        # Columns of shared rows are tasks as well.
        places = np.broadcast_to(np.arange(y[0].size), y.shape) if places is None else places
        labelled = ~_is_missing(y)
        scores = []
        for place in np.unique(places):
            rows = labelled & (places == place)
            least = 1 if hasattr(self, "classes_") else 2
            if rows.sum() < least:
                raise DataError(f"`y`: one of the tasks has {rows.sum()} labels; a score needs {least}, so leave the task out")
            one = (predicted[rows] == y[rows]).mean() if least == 1 else r2_score(y[rows], predicted[rows])
            scores.append(float(one))
        return float(np.mean(scores))

    def _rule(self) -> Rule:
        for name, options in (("loss", get_args(Loss)), ("mode", get_args(Mode))):
            if getattr(self, name) not in options:
                raise OptionError(f"`{name}` is {getattr(self, name)!r}; use one of {', '.join(map(repr, options))}")
        for name in ("alpha", "learning_rate", "temperature"):
            value = getattr(self, name)
            inside = isinstance(value, Real) and (0 <= value <= 1 if name == "alpha" else 0 < value < np.inf)
            if not inside or isinstance(value, bool):
                raise OptionError(f"`{name}` is {value!r}; give a number {'in [0, 1]' if name == 'alpha' else 'above 0'}")
        if hasattr(self, "coef_") and hasattr(self, "classes_") == (self.loss == "squared"):
            raise OptionError(f"`loss` is {self.loss!r}, another kind than in former calls; use a new estimator, or `fit`")
        return Rule(self.loss, float(self.alpha), float(self.learning_rate), float(self.temperature), self.mode)

    def _read_tasks(self, tasks: Any, all_tasks: Any, y: Array) -> tuple[Array, Places | None]:
        """Labels of all tasks so far, and the place among them of each row's task; None for shared rows."""
        rows = read_tasks(tasks, y)
        if hasattr(self, "coef_") and (rows.owner is None) != self.shares_rows_:
            remedy = "leave `tasks` out" if self.shares_rows_ else "give `tasks`"
            raise DataError(f"`tasks` is {'missing' if tasks is None else 'given'}, unlike in former calls; {remedy}")
        if rows.owner is None:
            if all_tasks is not None:
                raise DataError("`all_tasks` is given without `tasks`; the columns of `y` are the tasks, so leave it out")
            if hasattr(self, "coef_") and len(rows.names) != len(self.tasks_):
                raise DataError(f"`y` has {len(rows.names)} columns; give one for each of the {len(self.tasks_)} tasks")
            return rows.names, None
        names = rows.names
        if all_tasks is not None:
            try:
                names = _join(names, read_tasks(all_tasks, np.empty(len(all_tasks))).names)
            except DataError as error:
                raise DataError(str(error).replace("`tasks", "`all_tasks")) from None
        if hasattr(self, "coef_"):
            names = _join(self.tasks_, names)
        return names, np.searchsorted(names, rows.names)[rows.owner]

    def _read_classes(self, classes: Any, y: Array) -> Array:
        former = getattr(self, "classes_", None)
        labels = y[~_is_missing(y)]
        found = former if former is not None and classes is None else np.unique(labels if classes is None else classes)
        if former is not None and not np.array_equal(found, former):
            raise DataError(f"`classes` is {found.tolist()} and was {former.tolist()}; leave it out or give the same")
        if len(found) != 2:
            where = "`y` has the classes" if classes is None else "`classes` is"
            raise DataError(f"{where} {found.tolist()[:5]}; there must be two: give both as `classes` in the first call")
        strange = labels[~np.isin(labels, found)]
        if len(strange):
            raise DataError(f"`y` holds {strange[0].item()!r}, which is none of the classes {found.tolist()}; correct it")
        return found

    def _state(self, names: Array) -> State:
        state = State(
            np.hstack([self.coef_, self.intercept_[:, None]]),
            self.log_relation_,
            self.losses_.copy(),
            self.mistakes_.copy() if hasattr(self, "mistakes_") else np.zeros(len(self.tasks_), dtype=np.int64),
            self.counts_.copy(),
        )
        return state if len(names) == len(self.tasks_) else grow_state(state, np.searchsorted(names, self.tasks_), len(names))

    def _keep(self, state: State, names: Array, known: Array | None) -> None:
        self.coef_, self.intercept_ = state.weights[:, :-1].copy(), state.weights[:, -1].copy()
        self.log_relation_, self.relation_ = state.log_relation, np.exp(state.log_relation)
        self.losses_, self.counts_, self.tasks_ = state.losses, state.counts, names
        if known is not None:
            self.classes_, self.mistakes_ = known, state.mistakes


@dataclass(frozen=True)
class _Examples:
    """m examples: (m,) rows of X, targets and tasks, and which of the m form each round."""

    row: Places
    y: Array
    task: Places
    rounds: list[Places]

    def scaled(self, norms: Array) -> _Examples:
        return _Examples(self.row, self.y / norms[self.row], self.task, self.rounds)


def _read_targets(y: Any) -> Array:
    y = np.asarray(y)
    if y.ndim not in (1, 2) or y.size == 0:
        raise DataError(f"`y` has shape {y.shape}; give (n,) targets, or (n, K) for shared rows, and at least one")
    if y.dtype != object:
        return y
    missing = np.array([value is None or (isinstance(value, float) and np.isnan(value)) for value in y.ravel()]).reshape(
        y.shape
    )
    if missing.any():
        place = np.argwhere(missing)[0].tolist()
        raise DataError(f"`y{place}` is missing; drop the row, or for shared rows give NaN in an array of floats")
    return np.array(y.tolist())


def _read_examples(y: Array, owner: Places | None, known: Array | None) -> _Examples:
    missing = _is_missing(y)
    if known is not None:
        targets = np.where(y == known[1], 1.0, -1.0)
    else:
        try:
            targets = y.astype(np.float64)
        except (TypeError, ValueError):
            raise DataError(f"`y` has the type {y.dtype}; squared loss needs numbers, two classes need `hinge`") from None
    infinite = ~np.isfinite(targets) & ~missing
    if (missing if y.ndim == 1 else infinite).any() or infinite.any():
        place = np.argwhere(infinite | missing)[0].tolist()
        raise DataError(f"`y{place}` is {y[tuple(place)]}; drop the row or give a finite number")
    if owner is not None or y.ndim == 1:
        task = np.zeros(len(y), dtype=np.int64) if owner is None else owner
        return _Examples(np.arange(len(y)), targets, task, deal_rounds(task))
    row, task = np.nonzero(~missing)
    rounds = np.split(np.arange(len(row)), np.flatnonzero(np.diff(row)) + 1)
    return _Examples(row, targets[row, task], task, rounds if len(row) else [])


def _fitted(estimator: LinearTasks) -> dict[str, Any]:
    return {name: value for name, value in vars(estimator).items() if name.endswith("_")}


def _is_missing(y: Array) -> np.ndarray:
    return np.isnan(y) if y.dtype.kind == "f" else np.zeros(y.shape, dtype=bool)


def _join(names: Array, others: Array) -> Array:
    text = [labels.dtype.kind in "US" for labels in (names, others)]
    if text[0] != text[1]:
        raise DataError(
            f"`tasks` mixes text and numbers ({names.tolist()[0]!r}, {others.tolist()[0]!r}); give labels of one type"
        )
    return np.unique(np.concatenate([names, others]))


def _design(X: Any, *, fit_intercept: bool, normalize: bool) -> tuple[Any, Array]:
    """Rows as they are learnt from, (n, d + 1) with a last column of 1 (0 without intercept), and their former norms."""
    last = np.full((X.shape[0], 1), float(fit_intercept))
    norms = np.ones(X.shape[0])
    if sparse.issparse(X):
        design = sparse.hstack([X, sparse.csr_matrix(last)], format="csr")
        if normalize:
            norms = np.sqrt(np.asarray(design.multiply(design).sum(axis=1)).ravel())
    else:
        design = np.hstack([X, last])
        if normalize:
            norms = np.linalg.norm(design, axis=1)
    norms[norms == 0] = 1.0
    return (sparse.diags(1 / norms) @ design).tocsr() if sparse.issparse(X) else design / norms[:, None], norms


def _run(state: State, rule: Rule, design: Any, examples: _Examples) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        for members in examples.rounds:
            rows = design[examples.row[members]]
            block = rows.toarray() if sparse.issparse(rows) else rows
            run_round(state, rule, block, examples.y[members], examples.task[members])
    if not np.isfinite(state.weights).all() or np.isnan(state.log_relation).any():
        raise FitError(f"the weights overflow at `learning_rate` {rule.learning_rate:g}; lower it, or set `normalize=True`")
