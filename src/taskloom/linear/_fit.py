"""Which solver takes which problem, and warm-started paths.

Letters: K tasks, n rows, d features, W (d, K) coefficients.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from taskloom.linear._anderson import Anderson
from taskloom.linear._coordinate_descent import CoordinateDescent
from taskloom.linear._design import Design, SharedRows
from taskloom.linear._gram_problem import smooth_problem
from taskloom.linear._objective import Objective
from taskloom.linear._penalty import Penalty
from taskloom.linear._problem import Labels, Problem, RowsProblem
from taskloom.linear._procedure import Procedure
from taskloom.linear._solver import Fista, Solution, Solver, SolverOptions, minimize
from taskloom.linear._working_set import WorkingSet
from taskloom.tasks import OptionError, unknown

SOLVERS: dict[str, type[Solver]] = {s.name: s for s in (Fista, Anderson, WorkingSet, CoordinateDescent)}
# Below this many multiplications a sweep, what counts is the overhead of an iteration; measured.
SMALL_WORK = 8_000_000
# Up to here Gram matrices are so small that sets of features gain nothing; measured.
FEW_FEATURES = 200


def check_solver(name: str, penalty: Penalty | Procedure) -> None:
    """Refuse an unknown solver, and any for a model that brings its own.

    Raises:
        UnknownNameError: no solver has that name.
        OptionError: the model is a `Procedure`.
    """
    if name != "auto" and name not in SOLVERS:
        raise unknown("solver", name, ["auto", *SOLVERS])
    if not isinstance(penalty, Penalty | Procedure):
        raise OptionError(f"`penalty`={penalty!r}: need a penalty such as Trace(0.1) or L21(0.1)")
    if name != "auto" and isinstance(penalty, Procedure):
        raise OptionError(f"`solver`={name!r}: {type(penalty).__name__} brings its own; use solver='auto'")


def prepare(design: Design, labels: Labels, penalty: Penalty, solver: str = "auto") -> tuple[Problem, Solver]:
    """The problem in the form that its solver likes best, and the solver.

    `auto` is coordinate descent for small shared problems that it serves, working sets where features outnumber what a Gram
    matrix can hold cheaply and the penalty sets features to zero, and accelerated proximal gradient for all else.
    """
    if solver in ("working_set", "coordinate_descent"):
        return RowsProblem(design, labels), SOLVERS[solver]()
    if solver != "auto":
        return smooth_problem(design, labels), SOLVERS[solver]()
    rows = RowsProblem(design, labels)
    objective = Objective(rows, penalty)
    if int(np.prod(design.shape)) * design.n_features <= SMALL_WORK and not CoordinateDescent().unsupported(objective):
        return rows, CoordinateDescent()
    mean_rows = design.shape[0] / (1 if isinstance(design, SharedRows) else design.n_tasks)
    wide = design.n_features > FEW_FEATURES or (design.n_features > 50 and mean_rows < 2 * design.n_features)
    if wide and not WorkingSet().unsupported(objective):
        return rows, WorkingSet()
    return smooth_problem(design, labels), Fista()


def solve(
    design: Design, labels: Labels, penalty: Penalty | Procedure, options: SolverOptions, solver: str = "auto"
) -> Solution:
    """Fit once, from zero."""
    check_solver(solver, penalty)
    penalty.check(design.n_features, design.n_tasks)
    if isinstance(penalty, Procedure):
        return penalty.solve(design, labels, options)
    problem, chosen = prepare(design, labels, penalty, solver)
    return minimize(problem, penalty, solver=chosen, options=options)


def solve_path(
    design: Design,
    labels: Labels,
    penalties: Sequence[Penalty | Procedure],
    options: SolverOptions,
    solver: str = "auto",
) -> list[Solution]:
    """Fit a sequence of penalties, strongest first, each from the solution before."""
    solutions: list[Solution] = []
    problem: Problem | None = None
    for penalty in penalties:
        if isinstance(penalty, Procedure):
            solutions.append(penalty.solve(design, labels, options))
            continue
        if problem is None:
            problem, chosen = prepare(design, labels, penalty, solver)
        start = solutions[-1].W if solutions else None
        solutions.append(minimize(problem, penalty, solver=chosen, options=options, start=start))
    return solutions


def path_factors(problem: Problem, penalty: Penalty | Procedure, n: int, ratio: float) -> list[float]:
    """Factors of a penalty, falling, evenly spaced in their logarithm: from the one at which nothing is left to learn.

    Args:
        problem: the losses.
        penalty: what the factors multiply.
        n: how many.
        ratio: the last over the first.
    """
    lipschitz = problem.lipschitz()
    # What rounding leaves of constant features is no curvature.
    noise = 1e-12 * (problem.feature_sizes**2).sum(0)
    top = penalty.factor_range(problem.origin.gradient, np.where(lipschitz <= noise, 0.0, lipschitz))
    return [float(factor) for factor in np.geomspace(top, top * ratio, n)] if n > 1 else [float(top * np.sqrt(ratio))]


def warn_unless_converged(estimator: object, solution: Solution) -> None:
    """Tell the user what stopped the solver, if it was not the certificate."""
    if not solution.converged:
        warnings.warn(f"{type(estimator).__name__}: {solution.message}", ConvergenceWarning, stacklevel=5)
