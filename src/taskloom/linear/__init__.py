"""Regularized multi-task linear models, exact and fast: losses, penalties, solvers with a certificate, estimators.

Each task may have its own rows, or all share them. A fit is a loss, a penalty and a solver:

    model = MultiTaskRegressor(penalty=Trace(0.1)).fit(X, y, tasks=hospital)

Penalties add up with `+` where the sum has an exact proximal map or a smooth part. Every fit says how far from the optimum it
can be at most: `dual_gap_`, or the distance to the subdifferential where a penalty has no dual.

Below the estimators, `minimize` solves a `smooth_problem` of a design and its labels with an explicit `SolverState`, which can
be saved and taken up again to the bit.
"""

from taskloom.linear._anderson import Anderson
from taskloom.linear._column_prox import ColumnProx, column_prox
from taskloom.linear._coordinate_descent import CoordinateDescent
from taskloom.linear._cross_validation import MultiTaskClassifierCV, MultiTaskRegressorCV, PathOptions
from taskloom.linear._design import Design, OwnRows, SharedRows
from taskloom.linear._distance_penalties import CrossLearning, Fusion
from taskloom.linear._estimators import MultiTaskClassifier, MultiTaskRegressor
from taskloom.linear._feature_collaborative import FeatureCollaborative
from taskloom.linear._gram_problem import smooth_problem
from taskloom.linear._losses import Huber, Logistic, Loss, Poisson, Squared, SquaredHinge, get_loss, scale_factor
from taskloom.linear._mocha import Mocha
from taskloom.linear._multi_level import MultiLevel
from taskloom.linear._objective import Certificate, certify
from taskloom.linear._online import OnlineMultiTask
from taskloom.linear._penalty import Penalty, Quadratic
from taskloom.linear._predictor import LinearPredictor
from taskloom.linear._problem import Labels, Problem
from taskloom.linear._procedure import Procedure
from taskloom.linear._recipes import ClusteredRecipe, GraphRecipe, LowRankRecipe, PenalizedRecipe, RobustRecipe, SparseRecipe
from taskloom.linear._ridge import RidgeRecipe
from taskloom.linear._semisoft import SemisoftClusters
from taskloom.linear._smooth_penalties import FeatureRelations, Graph, MeanRegularized, PriorInformation, Ridge
from taskloom.linear._solver import Fista, Solution, Solver, SolverOptions, SolverState, minimize
from taskloom.linear._sparse_penalties import L1, L21, Fused
from taskloom.linear._spectral_penalties import Clustered, Trace
from taskloom.linear._split_penalties import Dirty, L1Inf, OutlierTasks, Robust, SparseLowRank, Split
from taskloom.linear._task_prox import TaskProx
from taskloom.linear._working_set import WorkingSet

__all__ = [
    "L1",
    "L21",
    "Anderson",
    "Certificate",
    "Clustered",
    "ClusteredRecipe",
    "ColumnProx",
    "CoordinateDescent",
    "CrossLearning",
    "Design",
    "Dirty",
    "FeatureCollaborative",
    "FeatureRelations",
    "Fista",
    "Fused",
    "Fusion",
    "Graph",
    "GraphRecipe",
    "Huber",
    "L1Inf",
    "Labels",
    "LinearPredictor",
    "Logistic",
    "Loss",
    "LowRankRecipe",
    "MeanRegularized",
    "Mocha",
    "MultiLevel",
    "MultiTaskClassifier",
    "MultiTaskClassifierCV",
    "MultiTaskRegressor",
    "MultiTaskRegressorCV",
    "OnlineMultiTask",
    "OutlierTasks",
    "OwnRows",
    "PathOptions",
    "PenalizedRecipe",
    "Penalty",
    "Poisson",
    "PriorInformation",
    "Problem",
    "Procedure",
    "Quadratic",
    "Ridge",
    "RidgeRecipe",
    "Robust",
    "RobustRecipe",
    "SemisoftClusters",
    "SharedRows",
    "Solution",
    "Solver",
    "SolverOptions",
    "SolverState",
    "SparseLowRank",
    "SparseRecipe",
    "Split",
    "Squared",
    "SquaredHinge",
    "TaskProx",
    "Trace",
    "WorkingSet",
    "certify",
    "column_prox",
    "get_loss",
    "minimize",
    "scale_factor",
    "smooth_problem",
]
