"""The strength by cross-validation: folds stratified per task, warm-started paths, the same result for any number of jobs.

Letters: K tasks, n rows, F folds, S strengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from taskloom.linear._estimators import MultiTaskClassifier, MultiTaskRegressor, PenalizedTasks
from taskloom.linear._fit import path_factors, solve_path
from taskloom.linear._gram_problem import smooth_problem
from taskloom.linear._penalty import Penalty
from taskloom.linear._procedure import Procedure
from taskloom.linear._solver import Solution
from taskloom.linear._training import Training, task_labels
from taskloom.tasks import Array, DataError, FitError, OptionError, Rows


@dataclass(frozen=True)
class PathOptions:
    """Which strengths are tried, and how they are judged.

    Attributes:
        n_strengths: S, how many.
        ratio: the least over the greatest; the greatest is the least that leaves nothing to learn (`lambda_max`), where
            there is one.
        factors: the factors themselves, in place of the two above: each multiplies every strength of the penalty.
        folds: F, 2 or more.
        score: `task`: the mean over tasks of each task's mean loss; `pooled`: the mean over all rows.
        seed: of the folds.

    Raises:
        OptionError: a value out of range.
    """

    n_strengths: int = 20
    ratio: float = 1e-3
    factors: tuple[float, ...] | None = None
    folds: int = 5
    score: Literal["task", "pooled"] = "task"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.n_strengths, int | np.integer) or self.n_strengths < 1:
            raise OptionError(f"`n_strengths`={self.n_strengths!r}: need a whole number, 1 or more")
        if not isinstance(self.ratio, int | float | np.number) or not 0 < self.ratio < 1:
            raise OptionError(f"`ratio`={self.ratio!r}: need a number between 0 and 1")
        if not isinstance(self.folds, int | np.integer) or self.folds < 2:
            raise OptionError(f"`folds`={self.folds!r}: need a whole number, 2 or more")
        if self.score not in ("task", "pooled"):
            raise OptionError(f"`score`={self.score!r}: need 'task' or 'pooled'")
        if not isinstance(self.seed, int | np.integer) or self.seed < 0:
            raise OptionError(f"`seed`={self.seed!r}: need a whole number, 0 or more")
        if self.factors is not None:
            given = list(self.factors) if np.iterable(self.factors) else []
            if not given or not all(isinstance(f, int | float | np.number) and np.isfinite(f) and f > 0 for f in given):
                raise OptionError(f"`factors`={self.factors!r}: need a tuple of positive numbers")


def deal_folds(training: Training, folds: int, seed: int) -> Rows:
    """The fold of each row; -1 for a row that always trains.

    Own rows are dealt task by task, and class by class for labels of -1 and +1, so that every fold has its share of each; the
    only row of a task (or of a class of it) always trains. Shared rows are dealt as they are: a row has labels of all tasks.
    """
    rng = np.random.default_rng(seed)
    n = len(training.y)
    if training.rows.owner is None and training.y.ndim == 2:
        if folds > n:
            raise DataError(f"`folds`={folds} for {n} rows; use at most {n}")
        return rng.permutation(np.arange(n) % folds)
    fold = np.full(n, -1)
    owner = np.zeros(n, dtype=int) if training.rows.owner is None else training.rows.owner
    offset = 0
    for t in range(training.n_tasks):
        rows = np.flatnonzero(owner == t)
        groups = [rows]
        if training.losses[t].labels == "sign":
            groups = [rows[training.y[rows] == label] for label in (-1, 1)]
        for group in groups:
            if len(group) > 1:
                fold[rng.permutation(group)] = (np.arange(len(group)) + offset) % folds
                # The next group goes on where this one ended, so that small tasks do not all fill the first folds.
                offset += len(group)
    if (fold < 0).all():
        raise DataError("no task has two rows, of which one could be held out; set the strength by hand")
    return fold


class _CrossValidated(PenalizedTasks):
    """What `MultiTaskRegressorCV` and `MultiTaskClassifierCV` add to their parents."""

    def __init__(  # noqa: PLR0913 (scikit-learn's estimators list their parameters one by one)
        self,
        penalty: Penalty | Procedure | None = None,
        *,
        loss: Any = None,
        scale: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 20_000,
        solver: str = "auto",
        unseen: str = "error",
        path: PathOptions | None = None,
        n_jobs: int | None = None,
    ) -> None:
        super().__init__(
            penalty,
            loss=loss,
            scale=scale,
            fit_intercept=fit_intercept,
            tol=tol,
            max_iter=max_iter,
            solver=solver,
            unseen=unseen,
        )
        self.path = path
        self.n_jobs = n_jobs

    def _solve(self, training: Training) -> Solution:
        options: Any = self.path or PathOptions()
        if not isinstance(options, PathOptions):
            raise OptionError(f"`path`={self.path!r}: need PathOptions(...)")
        penalty: Any = self._penalty()
        fold = deal_folds(training, options.folds, options.seed)
        design, labels = training.build(self.scale, fit_intercept=self.fit_intercept)
        penalty.check(design.n_features, design.n_tasks)
        factors = sorted(options.factors, reverse=True) if options.factors else None
        if factors is None:
            factors = path_factors(smooth_problem(design, labels), penalty, options.n_strengths, options.ratio)
        penalties = [penalty.scaled(factor) for factor in factors]
        for f in range(options.folds):
            _check_fold(training, fold, f)
        settings: Any = (self.scale, self.fit_intercept, self._options(), self.solver)
        jobs = [delayed(_fold_losses)(training, fold == f, penalties, settings) for f in range(options.folds)]
        losses = np.stack(Parallel(n_jobs=self.n_jobs)(jobs))
        self._choose(losses, factors, options)
        best = int(np.argmin(self.score_path_))
        self.penalty_ = penalties[best]
        solution = solve_path(design, labels, penalties[: best + 1], self._options(), self.solver)[-1]
        self._keep(solution, training)
        return solution

    def _choose(self, losses: Array, factors: list[float], options: PathOptions) -> None:
        """Mean losses of each strength out of (F, S, 2, K) sums of losses and of weights."""
        sums, weights = losses[:, :, 0].sum(0), losses[:, :, 1].sum(0)
        if options.score == "pooled":
            self.score_path_ = sums.sum(1) / weights.sum(1)
        else:
            held = weights[0] > 0
            self.score_path_ = (sums[:, held] / weights[:, held]).mean(1)
        if not np.isfinite(self.score_path_).any():
            raise FitError("every strength gave a held-out loss that is not finite; standardise the features")
        self.score_path_ = np.where(np.isfinite(self.score_path_), self.score_path_, np.inf)
        per_fold = losses[:, :, 0].sum(2) / np.maximum(losses[:, :, 1].sum(2), 1e-300)
        self.factors_, self.fold_scores_ = np.array(factors), per_fold


def _check_fold(training: Training, fold: Rows, f: int) -> None:
    """Refuse a fold without which some task cannot be trained."""
    weight = np.ones(len(training.y)) if training.weight is None else training.weight
    train = training.take(np.flatnonzero((fold != f) & (weight > 0)))
    for t, loss in enumerate(train.losses):
        y = task_labels(train, t)
        what = "no row of positive weight" if not len(y) else ""
        if len(y) and loss.labels == "sign" and len(np.unique(y)) < 2:
            what = "one class"
        if len(y) and loss.labels == "count" and not (y > 0).any():
            what = "counts of 0 alone"
        if what:
            remedy = "use fewer `folds`, or leave the task out"
            raise DataError(f"task {train.rows.names[t]!s} has {what} to train on without fold {f}; {remedy}")


def _fold_losses(training: Training, is_held: Any, penalties: list[Any], settings: Any) -> Array:
    """(S, 2, K): summed loss and weight of each task on held-out rows, along a path fitted to the others."""
    scale, fit_intercept, options, solver = settings
    with threadpool_limits(1):
        # One thread whatever the number of jobs: sums in another order would be other numbers.
        design, labels = training.take(np.flatnonzero(~is_held)).build(scale, fit_intercept=fit_intercept)
        solutions = solve_path(design, labels, penalties, options, solver)
        held = training.take(np.flatnonzero(is_held))
        return np.stack([_held_losses(held, solution) for solution in solutions])


def _held_losses(held: Training, solution: Solution) -> Array:
    K = held.n_tasks
    out = np.zeros((2, K))
    weight = np.ones(len(held.y)) if held.weight is None else held.weight
    # Judged as the fit judges them: on one scale where kinds are mixed, and by the tasks' weights.
    factors = held.task_weight * held.units
    for t, loss in enumerate(held.losses):
        if held.rows.owner is not None:
            rows = np.flatnonzero(held.rows.owner == t)
            y = held.y[rows]
        else:
            column = held.y if held.y.ndim == 1 else held.y[:, t]
            rows = np.flatnonzero(~np.isnan(column))
            y = column[rows]
        if len(rows):
            z = np.asarray(held.X[rows] @ solution.W[:, t]) + solution.intercepts[t]
            out[:, t] = factors[t] * float((weight[rows] * loss.value(y, z)).sum()), float(weight[rows].sum())
    return out


class MultiTaskRegressorCV(_CrossValidated, MultiTaskRegressor):
    """`MultiTaskRegressor` whose strength is chosen by cross-validation along a warm-started path.

    Args:
        penalty: its strengths are multiplied by one factor, whose value is chosen.
        loss: as in `MultiTaskRegressor`, like `scale`, `fit_intercept`, `tol`, `max_iter`, `solver` and `unseen`.
        path: which factors are tried, and how they are judged.
        n_jobs: folds that are fitted at once; it changes no number.

    Attributes:
        penalty_: the chosen penalty.
        factors_: (S,) factors tried, falling.
        score_path_: (S,) mean held-out loss of each.
        fold_scores_: (F, S) of each fold, pooled over rows.

    Examples:
        >>> from taskloom.linear import L21
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(60, 8))
        >>> Y = X[:, :2] @ rng.normal(size=(2, 3)) + 0.3 * rng.normal(size=(60, 3))
        >>> model = MultiTaskRegressorCV(L21(1.0), path=PathOptions(n_strengths=10)).fit(X, Y)
        >>> bool(model.score_path_.min() < model.score_path_[0])
        True
    """


class MultiTaskClassifierCV(_CrossValidated, MultiTaskClassifier):
    """`MultiTaskClassifier` whose strength is chosen by cross-validation: see `MultiTaskRegressorCV`.

    Examples:
        >>> from taskloom.linear import L21
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(60, 4))
        >>> Y = (X[:, :2] + 0.5 * rng.normal(size=(60, 2)) > 0).astype(int)
        >>> MultiTaskClassifierCV(L21(1.0), path=PathOptions(n_strengths=5)).fit(X, Y).factors_.shape
        (5,)
    """
