"""Recipes that learn linear models together: one penalty each, its strength chosen on validation rows.

Letters: K tasks, d features, W (d, K) coefficients, G (d, K) gradient of the losses at W = 0.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from taskloom.linear._check import TaskRows
from taskloom.linear._design import Design
from taskloom.linear._fit import solve_path
from taskloom.linear._gram_problem import smooth_problem
from taskloom.linear._losses import Logistic, Loss, Squared
from taskloom.linear._penalty import Penalty
from taskloom.linear._predictor import LinearPredictor
from taskloom.linear._problem import Labels, Problem
from taskloom.linear._ridge import strengths, validation_loss
from taskloom.linear._smooth_penalties import Graph, MeanRegularized, Ridge
from taskloom.linear._solver import Solution, SolverOptions
from taskloom.linear._sparse_penalties import L21
from taskloom.linear._spectral_penalties import Clustered, Trace
from taskloom.linear._split_penalties import Robust
from taskloom.linear._training import Training
from taskloom.tasks import Array, Family, FitError, OptionError, Recipe, RecipeFit, TaskData, register_recipe


@dataclass(frozen=True)
class PenalizedRecipe(Recipe):
    """A linear model of all tasks under one penalty.

    The strengths tried are a warm-started path of `budget` factors of one penalty, from `strongest` to `weakest` times the
    critical one, at which nothing is learned; the one with the least mean validation loss wins. Regression tasks have half the
    squared error, binary tasks the log loss, each over its rows; with both kinds the log loss counts twice (`Loss.unit`).

    Attributes:
        strongest: first factor, below 1.
        weakest: last factor.
        title: name in a study, if not the recipe's.
    """

    strongest: float = 0.3
    weakest: float = 1e-4
    title: str = ""
    family: ClassVar[Family] = "linear"

    def __post_init__(self) -> None:
        if not 0 < self.weakest <= self.strongest < np.inf:
            raise OptionError(f"`weakest`={self.weakest}, `strongest`={self.strongest}: need 0 < weakest <= strongest")

    def refuses(self, data: TaskData) -> str:
        """Rows that are no vectors, and tasks of more than two classes."""
        shape = data.features.numeric.shape[1:]
        if len(shape) != 1:
            return f"recipe `{self.label}` takes rows of shape (d,), not {shape}; leave it out"
        many = [task.name for task in data.tasks if task.kind == "multiclass"]
        remedy = "make one task of each class against the rest, or leave it out"
        return (
            f"recipe `{self.label}` takes regression and binary tasks, and `{many[0]}` has more classes; {remedy}"
            if many
            else ""
        )

    @abstractmethod
    def critical(self, problem: Problem) -> Penalty:
        """The penalty at the strength from which on nothing, or next to nothing, is learned."""

    def fit(self, train: TaskData, validation: TaskData, *, seed: int, budget: int = 4) -> RecipeFit:  # noqa: ARG002
        """Fit the path; nothing here is random, so `seed` changes nothing."""
        if reason := self.refuses(train):
            raise OptionError(reason)
        design, labels = task_design(train)
        problem = smooth_problem(design, labels)
        critical = self.critical(problem)
        critical.check(design.n_features, design.n_tasks)
        factors = strengths(self.weakest, self.strongest, budget)[::-1]
        path = self.solve(design, labels, [critical.scaled(factor) for factor in factors])
        losses = np.array([_losses(validation, _predictor(solution, train)) for solution in path])
        if not np.isfinite(losses).all(axis=1).any():
            raise FitError("every strength gave a validation loss that is not finite")
        best = int(np.nanargmin(losses.mean(axis=1)))
        chosen = path[best]
        notes = [] if chosen.converged else [f"`{self.label}`: {chosen.message}"]
        return RecipeFit(
            _predictor(chosen, train),
            {"factor": factors[best], "penalty": repr(critical.scaled(factors[best]))},
            losses[best],
            notes=notes,
            relations={"cosine of coefficients": cosines(chosen.W)},
        )

    def solve(self, design: Design, labels: Labels, penalties: list[Penalty]) -> list[Solution]:
        """The optimum under each of some penalties, strongest first."""
        return solve_path(design, labels, penalties, _OPTIONS)


_OPTIONS = SolverOptions(tol=1e-5, max_iter=5000)


def task_design(data: TaskData) -> tuple[Design, Labels]:
    """Encoded rows as a linear problem: half squared errors and log losses, each over its rows."""
    losses: list[Loss] = [Squared() if task.kind == "regression" else Logistic() for task in data.tasks]
    signs = np.array([loss.labels == "sign" for loss in losses])
    names, weight = np.arange(data.n_tasks), np.ones(data.n_tasks)
    if data.task_of_row is None:
        y = np.where(signs, 2 * data.y - 1, data.y)
        return Training(data.X, y, TaskRows(names, None), losses, None, weight).build("mean", fit_intercept=True)
    labelled = ~np.isnan(data.y)
    X = data.X if labelled.all() else data.X[labelled]
    y, owner = data.y[labelled], data.task_of_row[labelled]
    y = np.where(signs[owner], 2 * y - 1, y)
    return Training(X, y, TaskRows(names, owner), losses, None, weight).build("mean", fit_intercept=True)


def cosines(W: Array) -> Array:
    """Cosine of each pair of tasks' coefficients, (K, K); 0 with a task whose coefficients are all zero.

    Examples:
        >>> cosines(np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))
        array([[1., 1., 0.],
               [1., 1., 0.],
               [0., 0., 0.]])
    """
    norms = np.linalg.norm(W, axis=0)
    unit = W / np.where(norms > 0, norms, 1)
    return unit.T @ unit


def _predictor(solution: Solution, data: TaskData) -> LinearPredictor:
    columns = [solution.W[:, t : t + 1].copy() for t in range(data.n_tasks)]
    return LinearPredictor(columns, [solution.intercepts[t : t + 1] for t in range(data.n_tasks)], data.tasks)


def _losses(data: TaskData, predictor: LinearPredictor) -> Array:
    return np.array(
        [
            validation_loss(data.labels(t), predictor.predict(data.X[data.rows(t)], [t])[0], task.kind)
            for t, task in enumerate(data.tasks)
        ]
    )


def _gradient_scale(problem: Problem) -> float:
    """How curved the losses are: what smooth penalties are measured by."""
    return float(problem.lipschitz().max())


@register_recipe
@dataclass(frozen=True)
class LowRankRecipe(PenalizedRecipe):
    """All tasks' models near one small subspace: trace norm. Settings: see `PenalizedRecipe`.

    Examples:
        >>> from taskloom.tasks import load_diabetes_tasks
        >>> data = load_diabetes_tasks()
        >>> LowRankRecipe().fit(data, data, seed=0, budget=2).validation_loss.shape
        (7,)
    """

    name: ClassVar[str] = "lowrank"
    summary: ClassVar[str] = "linear models near one small subspace that all tasks share (trace norm)"
    paper: ClassVar[str] = "Argyriou, Evgeniou & Pontil 2008"

    def critical(self, problem: Problem) -> Penalty:
        """`Trace` at its `lambda_max`."""
        return Trace(Trace().lambda_max(problem.origin.gradient) or 1.0)


@register_recipe
@dataclass(frozen=True)
class SparseRecipe(PenalizedRecipe):
    """All tasks choose the same features: row groups. Settings: see `PenalizedRecipe`.

    Examples:
        >>> SparseRecipe(strongest=0.5).strongest
        0.5
    """

    name: ClassVar[str] = "sparse"
    summary: ClassVar[str] = "linear models that choose the same few features for all tasks (l2,1 norm)"
    paper: ClassVar[str] = "Obozinski, Taskar & Jordan 2010"

    def critical(self, problem: Problem) -> Penalty:
        """`L21` at its `lambda_max`."""
        return L21(L21().lambda_max(problem.origin.gradient) or 1.0)


@register_recipe
@dataclass(frozen=True)
class GraphRecipe(PenalizedRecipe):
    """Tasks that a graph joins get similar models; without a graph all are pulled to their mean.

    Attributes:
        affinity: (K, K), see `Graph`; None for the mean.
        ridge: shrinkage of all models to zero, as a part of the pull.
        strongest: first factor of the curvature of the losses.
        weakest: last factor.
        title: name in a study, if not `graph`.

    Examples:
        >>> GraphRecipe().label
        'graph'
    """

    strongest: float = 10.0
    affinity: Any = None
    ridge: float = 0.05
    name: ClassVar[str] = "graph"
    summary: ClassVar[str] = "linear models pulled to those of related tasks, or to the mean of all (graph Laplacian)"
    paper: ClassVar[str] = "Evgeniou, Micchelli & Pontil 2005"

    def critical(self, problem: Problem) -> Penalty:
        """A pull as strong as the losses are curved, and a ridge."""
        scale = _gradient_scale(problem)
        pull = MeanRegularized(scale) if self.affinity is None else Graph(scale, self.affinity)
        return pull + Ridge(self.ridge * scale)


@register_recipe
@dataclass(frozen=True)
class ClusteredRecipe(PenalizedRecipe):
    """Tasks in clusters that are found while learning.

    Attributes:
        n_clusters: 1 or more; more than half of the tasks are cut down to that.
        ridge: shrinkage of all models to zero, as a part of the pull to a cluster's mean.
        strongest: first factor of the curvature of the losses.
        weakest: last factor.
        title: name in a study, if not `clustered`.

    Examples:
        >>> ClusteredRecipe(n_clusters=2).n_clusters
        2
    """

    strongest: float = 10.0
    n_clusters: int = 3
    ridge: float = 0.1
    name: ClassVar[str] = "clustered"
    summary: ClassVar[str] = "linear models in clusters of similar tasks, found while learning (CMTL)"
    paper: ClassVar[str] = "Zhou, Chen & Ye 2011"

    def critical(self, problem: Problem) -> Penalty:
        """A pull as strong as the losses are curved, and a ridge."""
        scale = _gradient_scale(problem)
        return Clustered(max(1, min(self.n_clusters, problem.n_tasks // 2)), scale, self.ridge * scale)


@register_recipe
@dataclass(frozen=True)
class RobustRecipe(PenalizedRecipe):
    """A shared subspace, and tasks that stay out of it. Settings: see `PenalizedRecipe`.

    Examples:
        >>> RobustRecipe().label
        'robust'
    """

    name: ClassVar[str] = "robust"
    summary: ClassVar[str] = "linear models near one shared subspace, save for outlying tasks (trace norm + columns)"
    paper: ClassVar[str] = "Chen, Zhou & Ye 2011"

    def critical(self, problem: Problem) -> Penalty:
        """Both parts at the strengths at which each alone would learn nothing."""
        G = problem.origin.gradient
        return Robust(Trace().lambda_max(G) or 1.0, float(np.linalg.norm(G, axis=0).max()) or 1.0)
