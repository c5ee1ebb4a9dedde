"""The linear single-task baseline: ridge or logistic regression, one task at a time.

Letters: K tasks, t one task, n rows, d features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge

from taskloom.linear._predictor import LinearPredictor
from taskloom.tasks import Array, Family, OptionError, Recipe, RecipeFit, Task, TaskData, get_metric, register_recipe


@register_recipe
@dataclass(frozen=True)
class RidgeRecipe(Recipe):
    """Each task its own L2-regularised linear model, fitted by scikit-learn; the strength is chosen per task.

    The objective of task t is, for regression, ||y - Xw||^2 + n alpha ||w||^2 (`Ridge`), and for classification the summed
    log loss + n alpha ||w||^2 / 2 (`LogisticRegression` with C = 1 / (n alpha)); the intercept is not penalised. The strength
    alpha is tried on a geometric grid between `weakest` and `strongest`, and the one with the least validation loss wins.

    Attributes:
        weakest: least alpha tried.
        strongest: greatest alpha tried.
        title: name in a study, if not `ridge`.

    Raises:
        OptionError: a strength that is not positive, or a grid the wrong way round.

    Examples:
        >>> from taskloom.tasks import load_diabetes_tasks
        >>> data = load_diabetes_tasks()
        >>> RidgeRecipe().fit(data, data, seed=0, budget=3).validation_loss.shape
        (7,)
    """

    weakest: float = 1e-4
    strongest: float = 10.0
    title: str = ""

    name: ClassVar[str] = "ridge"
    summary: ClassVar[str] = "each task its own ridge (or logistic) regression: the linear baseline"
    paper: ClassVar[str] = "Hoerl & Kennard 1970"
    family: ClassVar[Family] = "linear"
    is_baseline: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.weakest <= self.strongest < np.inf:
            raise OptionError(f"`weakest`={self.weakest}, `strongest`={self.strongest}: need 0 < weakest <= strongest")

    def fit(self, train: TaskData, validation: TaskData, *, seed: int, budget: int = 4) -> RecipeFit:  # noqa: ARG002
        """Fit every task at every strength; nothing here is random, so `seed` changes nothing."""
        if train.X.ndim != 2:
            raise OptionError(f"recipe `{self.label}` takes rows of shape (d,), not {train.X.shape[1:]}; leave it out")
        grid = strengths(self.weakest, self.strongest, budget)
        best = [_fit_task(train, validation, t, grid) for t in range(train.n_tasks)]
        predictor = LinearPredictor([b.coefficients for b in best], [b.intercept for b in best], train.tasks)
        losses = np.array([b.loss for b in best])
        return RecipeFit(predictor, {"alpha": [b.alpha for b in best]}, losses)


def strengths(weakest: float, strongest: float, budget: int) -> list[float]:
    """`budget` strengths, evenly spaced in their logarithm; one alone is the geometric mean.

    Examples:
        >>> strengths(0.01, 1.0, 3)
        [0.01, 0.1, 1.0]
    """
    if budget == 1:
        return [float(np.sqrt(weakest * strongest))]
    return [round(float(alpha), 12) for alpha in np.geomspace(weakest, strongest, budget)]


@dataclass(frozen=True)
class _TaskFit:
    loss: float
    alpha: float
    coefficients: Array
    intercept: Array


def _fit_task(train: TaskData, validation: TaskData, t: int, grid: list[float]) -> _TaskFit:
    X, y = train.X[train.rows(t)], train.labels(t)
    X_validation, y_validation = validation.X[validation.rows(t)], validation.labels(t)
    fits = []
    for alpha in grid:
        coefficients, intercept = _solve(X, y, train.tasks[t], alpha)
        predictor = LinearPredictor([coefficients], [intercept], [train.tasks[t]])
        loss = validation_loss(y_validation, predictor.predict(X_validation, [0])[0], train.tasks[t].kind)
        fits.append(_TaskFit(loss, alpha, coefficients, intercept))
    return min(fits, key=lambda fit: fit.loss)


def _solve(X: Array, y: Array, task: Task, alpha: float) -> tuple[Array, Array]:
    if task.kind == "regression":
        ridge = Ridge(alpha=alpha * len(y)).fit(X, y)
        return ridge.coef_[:, None], np.atleast_1d(ridge.intercept_)
    logistic = LogisticRegression(C=1 / (alpha * len(y)), max_iter=2000).fit(X, y)
    if task.kind == "binary":
        return logistic.coef_.T, logistic.intercept_
    return _all_classes(logistic, len(task.classes))


def _all_classes(logistic: LogisticRegression, n_classes: int) -> tuple[Array, Array]:
    """Scores of all classes: those that the task has not seen get a score of -inf, that is a probability of 0."""
    coefficients, intercept = np.zeros((logistic.coef_.shape[1], n_classes)), np.full(n_classes, -np.inf)
    seen = logistic.classes_.astype(np.int64)
    if len(seen) == 2:
        # Of two classes scikit-learn gives the second's log-odds alone.
        coefficients[:, seen[1]], intercept[seen] = logistic.coef_[0], [0.0, logistic.intercept_[0]]
    else:
        coefficients[:, seen], intercept[seen] = logistic.coef_.T, logistic.intercept_
    return coefficients, intercept


def validation_loss(y: Array, predictions: Array, kind: str) -> float:
    """Mean squared error of values, mean log loss of probabilities."""
    if kind == "regression":
        return float(((y - predictions) ** 2).mean())
    return get_metric("log_loss").score(y, predictions)
