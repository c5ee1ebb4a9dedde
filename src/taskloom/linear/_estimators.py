"""scikit-learn estimators of K linear tasks under a penalty.

Letters: K tasks, n rows, d features.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from scipy.special import expit
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from taskloom.linear._base import LinearTasks
from taskloom.linear._check import is_missing
from taskloom.linear._classes import TaskClasses
from taskloom.linear._fit import check_solver, solve, warn_unless_converged
from taskloom.linear._penalty import Penalty
from taskloom.linear._procedure import Procedure
from taskloom.linear._solver import Solution, SolverOptions
from taskloom.linear._spectral_penalties import Trace
from taskloom.linear._training import LossLike, Training, read_labels, read_training, read_weight
from taskloom.tasks import Array, DataError, OptionError, Rows


class PenalizedTasks(LinearTasks):
    """What regressor and classifier share: parameters, and the fit itself.

    Attributes:
        dual_gap_: duality gap of the fit, in the units of the objective; NaN where the penalty has no dual.
        optimality_: what was held against `tol`: the relative duality gap, or the relative distance to the subdifferential.
        objective_: losses plus penalty.
        n_iter_: iterations of the solver.
        converged_: whether `optimality_` reached `tol`.
        message_: why the solver stopped.
        parts_: (m, K, d) the parts of `coef_` under a penalty that splits it (`Dirty`, `Robust`, `SparseLowRank`).
        details_: what a model such as `SemisoftClusters` knows beside its coefficients.
    """

    default_loss: ClassVar[str]

    def __init__(  # noqa: PLR0913 (scikit-learn's estimators list their parameters one by one)
        self,
        penalty: Penalty | Procedure | None = None,
        *,
        loss: LossLike | None = None,
        scale: str = "mean",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 20_000,
        solver: str = "auto",
        unseen: str = "error",
    ) -> None:
        self.penalty = penalty
        self.loss = loss
        self.scale = scale
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.solver = solver
        self.unseen = unseen

    def _penalty(self) -> Penalty | Procedure:
        return Trace(0.1) if self.penalty is None else self.penalty

    def _options(self) -> SolverOptions:
        """The parameters that do not depend on data, checked."""
        check_solver(self.solver, self._penalty())
        if self.unseen not in ("error", "mean"):
            raise OptionError(f"`unseen`={self.unseen!r}: need 'error' or 'mean'")
        return SolverOptions(tol=self.tol, max_iter=self.max_iter)

    def _read(self, X: Any, y: Any, tasks: Any, sample_weight: Any, task_weight: Any) -> Training:
        loss = self.default_loss if self.loss is None else self.loss
        return read_training(X, y, tasks, loss, sample_weight, task_weight)

    def _solve(self, training: Training) -> Solution:
        design, labels = training.build(self.scale, fit_intercept=self.fit_intercept)
        solution = solve(design, labels, self._penalty(), self._options(), self.solver)
        self._keep(solution, training)
        return solution

    def _keep(self, solution: Solution, training: Training) -> None:
        self.coef_ = np.ascontiguousarray(solution.W.T)
        self.intercept_ = solution.intercepts
        self.tasks_ = training.rows.names
        self.shares_rows_ = training.rows.owner is None
        self.is_single_ = self.shares_rows_ and training.y.ndim == 1
        certificate = solution.certificate
        self.dual_gap_ = np.nan if certificate.gap is None else certificate.gap
        self.optimality_, self.objective_ = certificate.relative, certificate.objective
        self.n_iter_, self.converged_, self.message_ = solution.n_iter, solution.converged, solution.message
        self.parts_, self.details_ = solution.parts.transpose(0, 2, 1), solution.details
        self.losses_ = training.losses
        warn_unless_converged(self, solution)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags

    def _read_features(self, X: Any) -> Any:
        return validate_data(self, X, accept_sparse="csr", dtype=np.float64)


class MultiTaskRegressor(RegressorMixin, PenalizedTasks):
    """Linear models of K tasks, learned together under a penalty; each task may have its own rows.

    `tasks` passes through pipelines, `cross_val_score` and searches by metadata routing (`set_fit_request(tasks=True)` and
    `set_score_request(tasks=True)`), scored by the estimator's own `score`: scikit-learn hands no metadata to `predict` inside
    its scorers and `cross_val_predict`. A search tries `penalty=[Trace(0.1), Trace(1.0)]`; penalties are values without
    parameters of their own.

    min over W and b of sum_t s_t sum_i loss(y_ti, x_ti' w_t + b_t) + penalty(W), with intercepts b that are not penalised,
    solved until the duality gap says that it is (`tol`).

    Args:
        penalty: what couples the tasks: `Trace(0.1)` (default), `L21`, `Graph`, ... or a sum of them.
        loss: `squared` (default), `huber`, `poisson`; for mixed tasks a mapping from task label to loss, where `logistic` and
            `squared_hinge` take labels of -1 and +1. Tasks of several losses are put on one scale, see `Loss.unit`.
        scale: how a task's loss is scaled: `mean` over its rows; `sum`; `sklearn`: mean for real labels (`Lasso`,
            `MultiTaskLasso`), sum for the others (`LogisticRegression`); `malsar`: sum for real labels, mean for the others.
        fit_intercept: whether each task has an intercept.
        tol: relative duality gap to reach (or relative distance to the subdifferential where there is no dual).
        max_iter: iterations at most.
        solver: `auto`, `fista`, `anderson`, `working_set` or `coordinate_descent`.
        unseen: what `predict` does with a task that training had not: `error`, or `mean` of all tasks' models.

    Attributes:
        coef_: (K, d).
        intercept_: (K,).
        tasks_: (K,) labels of the tasks.
        dual_gap_: duality gap of the fit, in the units of the objective; NaN where the penalty has no dual.
        optimality_: what was held against `tol`: the relative duality gap, or the relative distance to the subdifferential.
        objective_: losses plus penalty.
        n_iter_: iterations of the solver.
        converged_: whether `optimality_` reached `tol`.
        message_: why the solver stopped, and what to do if it should not have.
        parts_: (m, K, d) the parts of `coef_` under a penalty that splits it (`Dirty`, `Robust`, `SparseLowRank`).
        details_: what a model such as `SemisoftClusters` knows beside its coefficients, by name.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> X, hospital = rng.normal(size=(60, 3)), np.repeat(["north", "south"], 30)
        >>> y = X @ [1.0, -1.0, 0.0] + 0.1 * rng.normal(size=60)
        >>> model = MultiTaskRegressor(Trace(0.01)).fit(X, y, tasks=hospital)
        >>> model.coef_.shape, model.converged_, bool(model.optimality_ <= 1e-6)
        ((2, 3), True, True)
        >>> model.predict(X[:1], tasks=["south"]).shape
        (1,)
    """

    default_loss: ClassVar[str] = "squared"

    def fit(self, X: Any, y: Any, *, tasks: Any = None, sample_weight: Any = None, task_weight: Any = None) -> Self:
        """Fit all tasks.

        Args:
            X: (n, d) dense or sparse; rows that are sorted by task are not copied.
            y: (n,) with `tasks`; (n, K) for shared rows, NaN = missing label; (n,) alone is one task.
            tasks: (n,) label of each row's task.
            sample_weight: (n,) weights of rows.
            task_weight: one positive number a task (mapping from label, or in the order of the sorted labels).

        Raises:
            DataError: values that are not finite, shapes that do not fit, a task without rows.
            OptionError: a parameter that is out of range or does not fit the others.
        """
        self._options()
        training = self._read(self._read_features(X), y, tasks, sample_weight, task_weight)
        self._solve(training)
        return self

    def predict(self, X: Any, *, tasks: Any = None) -> Array:
        """The mean response: scores for squared and Huber losses, exp(scores) for Poisson, probabilities for logistic.

        Args:
            X: (n, d).
            tasks: (n,) label of each row's task; None for shared rows.

        Returns:
            (n,) with `tasks` or for one task; (n, K) for shared rows.
        """
        scores = self._scores(X, tasks)
        if all(loss.name in ("squared", "huber", "squared_hinge") for loss in self.losses_):
            return scores
        if tasks is None:
            columns = scores[:, None] if scores.ndim == 1 else scores
            means = np.stack([_mean(loss.name, z) for loss, z in zip(self.losses_, columns.T, strict=True)], axis=1)
            return means[:, 0] if scores.ndim == 1 else means
        places = self._places(tasks, len(scores))
        if (places < 0).any() and len({loss.name for loss in self.losses_}) > 1:
            raise OptionError("`unseen`='mean': the tasks have different losses, so that an unseen task has none; use 'error'")
        names = [self.losses_[place].name for place in places]
        return np.array([_mean(name, z) for name, z in zip(names, scores, strict=True)])

    def score(self, X: Any, y: Any, *, tasks: Any = None, sample_weight: Any = None) -> float:  # ty: ignore[incompatible-method-override]
        """R squared over all rows; for shared rows the mean over the tasks that have two labels, each over its labelled rows.

        Args:
            X: (n, d).
            y: as in `fit`.
            tasks: as in `predict`.
            sample_weight: (n,) weights of rows.
        """
        predictions = self.predict(X, tasks=tasks)
        y = read_labels(y, len(predictions), missing=tasks is None)
        weight = None if sample_weight is None else read_weight(sample_weight, len(predictions))
        if predictions.ndim == 1:
            return float(r2_score(y, predictions, sample_weight=weight))
        if y.shape != predictions.shape:
            raise DataError(f"`y` has shape {y.shape}; the model predicts {predictions.shape}")
        present = ~np.isnan(y)
        scored = np.flatnonzero(present.sum(0) > 1)
        if not len(scored):
            raise DataError("`y`: no task has two labels, which R squared needs")
        parts = [(y[rows, t], predictions[rows, t], rows) for t in scored for rows in [present[:, t]]]
        scores = [r2_score(true, guess, sample_weight=None if weight is None else weight[rows]) for true, guess, rows in parts]
        return float(np.mean(scores))


def _mean(loss: str, z: Any) -> Any:
    return np.exp(z) if loss == "poisson" else expit(z) if loss == "logistic" else z


class MultiTaskClassifier(ClassifierMixin, PenalizedTasks):
    """Linear classifiers of K tasks of two classes each, learned together under a penalty.

    Parameters and fitted attributes are those of `MultiTaskRegressor`, with the losses `logistic` (default) and
    `squared_hinge`. Tasks may have different pairs of classes.

    Attributes:
        classes_: all classes, sorted.
        task_classes_: (K, 2) the two classes of each task, sorted.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> X, field = rng.normal(size=(80, 3)), np.repeat([1, 2], 40)
        >>> y = np.where(X[:, 0] + 0.3 * rng.normal(size=80) > 0, "mine", "clutter")
        >>> model = MultiTaskClassifier(Trace(0.01)).fit(X, y, tasks=field)
        >>> model.predict(X[:2], tasks=[1, 2]).tolist() == y[:2].tolist(), model.predict_proba(X, tasks=field).shape
        (True, (80, 2))
    """

    default_loss: ClassVar[str] = "logistic"

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X: Any, y: Any, *, tasks: Any = None, sample_weight: Any = None, task_weight: Any = None) -> Self:
        """Fit all tasks; see `MultiTaskRegressor.fit`. `y` holds any labels, two classes a task.

        Raises:
            DataError: also a task with one class, or more than two.
            OptionError: a parameter that is out of range or does not fit the others.
        """
        self._options()
        X = self._read_features(X)
        coding = TaskClasses.read(y, tasks, X.shape[0])
        training = self._read(X, coding.signs, tasks, sample_weight, task_weight)
        wrong = [loss.name for loss in training.losses if loss.labels != "sign"]
        if wrong:
            raise OptionError(f"`loss`={wrong[0]!r} is not for classes; use 'logistic' or 'squared_hinge', or a regressor")
        self.task_classes_, self.classes_ = coding.pairs, coding.classes
        self._solve(training)
        return self

    def decision_function(self, X: Any, *, tasks: Any = None) -> Array:
        """Scores, above 0 for the second class: (n,), or (n, K) for shared rows.

        Raises:
            OptionError: `unseen` is `mean`, a task is unseen, and the tasks have different classes.
        """
        scores = self._scores(X, tasks)
        if tasks is not None:
            self._check_pairs(self._places(tasks, len(scores)))
        return scores

    def predict(self, X: Any, *, tasks: Any = None) -> Array:
        """The class of each row: (n,), or (n, K) for shared rows."""
        scores = self.decision_function(X, tasks=tasks)
        if tasks is None:
            pairs = self.task_classes_
            return np.where(scores > 0, pairs[0, 1], pairs[0, 0]) if scores.ndim == 1 else _pick(pairs, scores)
        pairs = self.task_classes_[self._places(tasks, len(scores))]
        return np.where(scores > 0, pairs[:, 1], pairs[:, 0])

    def _check_pairs(self, places: Rows) -> None:
        if (places < 0).any() and (self.task_classes_ != self.task_classes_[0]).any():
            raise OptionError("`unseen`='mean': the tasks have different classes, so that an unseen task has none; use 'error'")

    def predict_proba(self, X: Any, *, tasks: Any = None) -> Array:
        """Probabilities of all classes in the order of `classes_`, (n, C); for shared rows of each task's second class, (n, K).

        Tasks may have different pairs of classes: those that are not a row's task's have probability 0.

        Raises:
            OptionError: the loss is not `logistic`.
        """
        check_is_fitted(self)
        if any(loss.name != "logistic" for loss in self.losses_):
            raise OptionError("`loss`: probabilities need loss='logistic'; use `decision_function`")
        p = expit(self.decision_function(X, tasks=tasks))
        if p.ndim == 2:
            return p
        places = np.zeros(len(p), dtype=int) if tasks is None else self._places(tasks, len(p))
        columns = np.searchsorted(self.classes_, self.task_classes_)[places]
        out, rows = np.zeros((len(p), len(self.classes_))), np.arange(len(p))
        out[rows, columns[:, 0]], out[rows, columns[:, 1]] = 1 - p, p
        return out

    def score(self, X: Any, y: Any, *, tasks: Any = None, sample_weight: Any = None) -> float:  # ty: ignore[incompatible-method-override]
        """Accuracy over all rows; for shared rows the mean over the tasks, each over its labelled rows."""
        right = self.predict(X, tasks=tasks)
        labels = np.asarray(y)
        labels = labels[:, 0] if labels.ndim == 2 and right.ndim == 1 else labels
        if labels.shape != right.shape:
            raise DataError(f"`y` has shape {labels.shape}; the model predicts {right.shape}")
        present = ~is_missing(labels)
        hits = (right == labels) & present
        weight = np.ones(len(right)) if sample_weight is None else read_weight(sample_weight, len(right))
        weight = weight if hits.ndim == 1 else weight[:, None] * present
        totals = np.atleast_1d(weight.sum(0))
        if not totals.any():
            raise DataError("`y`: no task has a label of positive weight to score")
        return float(np.mean(np.atleast_1d((hits * weight).sum(0))[totals > 0] / totals[totals > 0]))


def _pick(pairs: Array, scores: Array) -> Array:
    return np.where(scores > 0, pairs[:, 1], pairs[:, 0])
