"""Working sets and gap-safe screening for penalties that set features to zero.

Only a few features are in a sparse solution. Each iteration solves the problem on a small set of them, then looks at all
others: the gap of the full problem says when to stop, and which features can never be in the solution.

Letters: K tasks, d features, W (d, K) coefficients, G (d, K) gradient, Z image of W, p features in the working set.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from taskloom.linear._coordinate_descent import CoordinateDescent
from taskloom.linear._gram_problem import smooth_problem
from taskloom.linear._objective import Certificate, Objective
from taskloom.linear._penalty import Penalty, Sum
from taskloom.linear._problem import Point, RowsProblem
from taskloom.linear._smooth_penalties import TaskQuadratic
from taskloom.linear._solver import Fista, Solver, SolverOptions, SolverState, minimize
from taskloom.linear._sparse_penalties import L1, L21, Fused
from taskloom.tasks import Array, Rows

Mask = NDArray[np.bool_]

FIRST_SIZE = 20


class WorkingSet(Solver):
    """A solver for a few features, on growing sets of them: compiled coordinate descent where that serves, else `Fista`.

    Features enter by the size of their gradient, the set at least doubles with the support (as in Massias, Gramfort & Salmon,
    ICML 2018, `celer`). Screening is the gap-safe sphere rule (Ndiaye, Fercoq, Gramfort & Salmon, JMLR 2017): it drops features
    for good, and is skipped beside smooth penalties, where the sphere is another one.
    """

    name: ClassVar[str] = "working_set"
    looks_every_step: ClassVar[bool] = True

    def unsupported(self, objective: Objective) -> str:
        """It serves `L1`, `L21` and `Fused`, alone or with penalties that treat all features alike."""
        if not _is_sparse(objective.rest):
            return f"needs L1, L21 or Fused (with `sparsity` or `group`) in the penalty, not {objective.penalty!r}"
        if not all(isinstance(term, TaskQuadratic) for term in objective.smooth):
            return "does not support relations between features"
        return ""

    def init(self, objective: Objective, W: Array | None = None) -> SolverState:
        problem = objective.problem
        P = objective.start(W)
        Z = problem.image_by_support(P)
        at = problem.point(P, Z)
        memory = {**_kept(at), "alive": np.ones(problem.n_features, bool)}
        return SolverState(P, Z, P, Z, at.intercepts, memory=memory)

    def terminate(self, objective: Objective, state: SolverState) -> Certificate:
        return objective.certificate(state.P, state.Z, _point(state))

    def step(self, objective: Objective, state: SolverState, options: SolverOptions) -> SolverState:
        problem, memory = objective.problem, dict(state.memory)
        # The loop has just looked at this point.
        relative = state.trace[-1][2]
        memory["alive"] = np.where(_never(objective, state, relative), False, memory["alive"])
        chosen = _choose(objective, state, memory["alive"])
        # A solution of the part that is much better than the whole would be wasted, save at the end.
        tol = max(0.1 * min(relative, 1.0), 0.3 * options.tol)
        part, penalty = problem.restrict(chosen), _restricted(objective.penalty, chosen)
        solver = self._solver_of(Objective(part, penalty))
        if isinstance(solver, Fista) and isinstance(part, RowsProblem):
            part = smooth_problem(part.design, part.labels)
        inner_options = SolverOptions(tol=tol, max_iter=options.max_iter, check_every=options.check_every)
        inner = minimize(part, penalty, solver=solver, options=inner_options, start=state.P[chosen])
        P = np.zeros_like(state.P)
        P[chosen] = inner.W
        Z = problem.image_by_support(P)
        at = problem.point(P, Z, state.first_guess)
        memory |= _kept(at)
        stuck = bool((P == state.P).all())
        n_iter = state.n_iter + max(inner.n_iter, 1)
        return SolverState(P, Z, state.P, state.Z, at.intercepts, n_iter=n_iter, memory=memory, trace=state.trace, stuck=stuck)

    @staticmethod
    def _solver_of(objective: Objective) -> Solver:
        """Compiled coordinate descent where it serves, else our own."""
        compiled = CoordinateDescent()
        return Fista() if compiled.unsupported(objective) else compiled


def _kept(at: Point) -> dict[str, Array]:
    """A point as arrays: the gradient at all features is what an iteration costs, so that it is taken once."""
    kept = {"gradient": at.gradient, "intercepts": at.intercepts}
    return kept if at.slope is None else {**kept, "slope": at.slope}


def _point(state: SolverState) -> Point:
    return Point(state.memory["gradient"], state.memory["intercepts"], state.memory.get("slope"))


def _is_sparse(penalty: Penalty) -> bool:
    if isinstance(penalty, Fused):
        return penalty.sparsity + penalty.group > 0
    return isinstance(penalty, L1 | L21) and penalty.strength > 0


def _restricted(penalty: Penalty, features: Rows) -> Penalty:
    if isinstance(penalty, Sum):
        return Sum(penalty.smooth, None if penalty.rest is None else _restricted(penalty.rest, features))
    if isinstance(penalty, L1) and penalty.weights is not None:
        return L1(penalty.strength, np.asarray(penalty.weights)[features])
    return penalty


def _reach(penalty: Penalty, G: Array) -> Array:
    """(d,) how near each feature is to entering: 1 is the border."""
    if isinstance(penalty, L1):
        bound = np.broadcast_to(penalty.strength * (1.0 if penalty.weights is None else np.asarray(penalty.weights)), G.shape)
        ratios = np.divide(np.abs(G), bound, where=bound > 0, out=np.where(G != 0, np.inf, 0.0))
        return ratios.max(axis=1)
    if isinstance(penalty, L21):
        return np.linalg.norm(G, axis=1) / penalty.strength
    return np.linalg.norm(penalty.prox(-G, 1.0), axis=1)


def _choose(objective: Objective, state: SolverState, alive: Mask) -> Rows:
    support = state.P.any(axis=1)
    reach = np.where(alive, _reach(objective.rest, objective.gradient(_point(state), state.P)), -1.0)
    reach[support] = np.inf
    n_support = int(support.sum())
    # As many as violate the optimality conditions, but no leap: far from the solution nearly all of them may.
    size = max(FIRST_SIZE, 2 * n_support, min(4 * n_support, int((reach > 1).sum())))
    size = min(size, int(np.logical_or(alive, support).sum()))
    top = np.argpartition(-reach, size - 1)[:size]
    return np.sort(top[reach[top] >= 0])


def _never(objective: Objective, state: SolverState, relative: float) -> Mask:
    """(d,) whether the gap proves that a feature is zero in every solution."""
    d = objective.problem.n_features
    if objective.smooth or not isinstance(objective.rest, L1 | L21):
        return np.zeros(d, bool)
    G = state.memory["gradient"]
    polar = objective.rest.polar(-G)
    if polar is None or not np.isfinite(polar):
        # No dual, so that what the solver goes by is no gap.
        return np.zeros(d, bool)
    norms = objective.problem.feature_norms
    radius = np.sqrt(2 * relative * objective.problem.spread)
    shrunk = _reach(objective.rest, G / max(polar, 1.0))
    if isinstance(objective.rest, L21):
        return shrunk + radius * norms.max(axis=1) / objective.rest.strength < 1
    bound = _reach(objective.rest, radius * norms)
    return shrunk + bound < 1
