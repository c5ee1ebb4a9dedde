"""Solvers: `init / step / terminate / postprocess` on an explicit state, and the loop that runs them.

All memory of a solver is in its state, arrays and numbers, so that a fit can be stopped, saved and taken up again to the bit.

Letters: K tasks, d features, P variable (see `Objective`), Y extrapolated variable, Z image of W, L inverse step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from taskloom.linear._objective import Certificate, Objective
from taskloom.linear._penalty import Penalty
from taskloom.linear._problem import Problem
from taskloom.tasks import Array, OptionError, is_number, is_whole


@dataclass(frozen=True)
class SolverOptions:
    """When a solver stops.

    Attributes:
        tol: relative duality gap, or relative distance to the subdifferential where there is no dual, above 0.
        max_iter: iterations at most.
        check_every: iterations between two looks at the certificate, which costs about one iteration.

    Raises:
        OptionError: a value out of range.
    """

    tol: float = 1e-6
    max_iter: int = 20_000
    check_every: int = 10

    def __post_init__(self) -> None:
        if not is_number(self.tol) or not 0 < self.tol < np.inf:
            raise OptionError(f"`tol`={self.tol!r}: need a positive number, for example 1e-6")
        for name in ("max_iter", "check_every"):
            value = getattr(self, name)
            if not is_whole(value, 1):
                raise OptionError(f"`{name}`={value!r}: need a whole number, 1 or more")


@dataclass
class SolverState:
    """Everything a solver remembers.

    Attributes:
        P: the variable, and `Z` the image of its W.
        P_before: the variable one step ago, and `Z_before` its image.
        level: (K,) intercepts of the last point, see `Point`; empty where there is none yet.
        momentum: t of the accelerated gradient.
        L: inverse of the step.
        n_iter: steps so far.
        memory: what the penalty's proximal map keeps from call to call, and a solver's own arrays.
        trace: (iteration, objective, relative certificate) of each look.
        stuck: whether the last step changed nothing.
    """

    P: Array
    Z: Array
    P_before: Array
    Z_before: Array
    level: Array = field(default_factory=lambda: np.zeros(0))
    momentum: float = 1.0
    L: float = 0.0
    n_iter: int = 0
    memory: dict[str, Array] = field(default_factory=dict)
    trace: list[tuple[int, float, float]] = field(default_factory=list)
    stuck: bool = False

    @property
    def first_guess(self) -> Array | None:
        """The level, where there is one."""
        return self.level if len(self.level) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain arrays and numbers by name, for `numpy.savez` or `pickle`."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("memory", "trace")}
        return {**plain, "trace": np.array(self.trace).reshape(-1, 3), **{f"memory.{k}": v for k, v in self.memory.items()}}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> SolverState:
        """The state whose `to_dict` this is, also after `numpy.load`."""
        memory = {name.removeprefix("memory."): value for name, value in plain.items() if name.startswith("memory.")}
        trace = [(int(i), float(objective), float(relative)) for i, objective, relative in plain["trace"]]
        rest = {name: plain[name] for name in cls.__dataclass_fields__ if name not in ("memory", "trace")}
        numbers = {name: kind(rest[name]) for name, kind in _NUMBERS.items()}
        return cls(**{**rest, **numbers}, memory=memory, trace=trace)


_NUMBERS: dict[str, type] = {"momentum": float, "L": float, "n_iter": int, "stuck": bool}


@dataclass(frozen=True)
class Solution:
    """The outcome of `minimize`.

    Attributes:
        W: (d, K) coefficients.
        intercepts: (K,).
        parts: (m, d, K) parts of W where the penalty splits it, else (1, d, K).
        certificate: objective, gap and distance at W.
        n_iter: iterations.
        converged: whether the certificate reached `tol`.
        message: why it stopped, and what to do if it should not have.
        state: from which `minimize` can go on.
        details: what a model knows beside W, by name; empty for plain penalties.
    """

    W: Array
    intercepts: Array
    parts: Array
    certificate: Certificate
    n_iter: int
    converged: bool
    message: str
    state: SolverState | None
    details: dict[str, Any] = field(default_factory=dict)


class Solver(ABC):
    """An algorithm: four pure methods on an objective and a state.

    Attributes:
        name: what `solver=` knows it by.
        looks_every_step: whether a step is so large that the certificate is looked at after each.
        looks_first: whether it is looked at before the first step; not where a step costs less than a look.
    """

    name: ClassVar[str]
    looks_every_step: ClassVar[bool] = False
    looks_first: ClassVar[bool] = True

    def unsupported(self, objective: Objective) -> str:  # noqa: ARG002
        """Why it cannot serve this objective, as a clause; empty if it can."""
        return ""

    def init(self, objective: Objective, W: Array | None = None) -> SolverState:
        """The state before the first step, at W or at zero."""
        problem = objective.problem
        P = objective.start(W)
        if not np.isfinite(objective.rest.value(P)):
            # A start outside of a constraint is moved to the nearest point inside.
            P = objective.prox(P, 1.0, {})
        Z = problem.image(objective.combine(P))
        at = problem.point(objective.combine(P), Z)
        G = objective.gradient(at, objective.combine(P))
        # The curvature along a short way down the gradient is a first guess: an exponential far away would say nothing of here.
        short = 1e-3 / max(float(np.abs(problem.image(G)).max(initial=0.0)), 1e-300)
        D = short * G
        L = objective.curvature(objective.start(D), problem.image(D), at) * objective.n_parts
        return SolverState(P, Z, P, Z, at.intercepts, L=L if np.isfinite(L) and L > 0 else 1.0)

    @abstractmethod
    def step(self, objective: Objective, state: SolverState, options: SolverOptions) -> SolverState:
        """One iteration."""

    def terminate(self, objective: Objective, state: SolverState) -> Certificate:
        """The certificate at the state's point."""
        W = objective.combine(state.P)
        at = objective.problem.point(W, state.Z, state.first_guess)
        return objective.certificate(state.P, state.Z, at)

    def postprocess(self, objective: Objective, state: SolverState) -> tuple[Array, Array, Array]:
        """W, intercepts and parts of the final state."""
        W = objective.combine(state.P)
        intercepts = objective.problem.intercepts(W, state.Z, state.first_guess)
        return W, intercepts, state.P if objective.is_split else state.P[None]


class Fista(Solver):
    """Accelerated proximal gradient with adaptive restart and a step that adapts both ways.

    Beck & Teboulle (SIAM J. Imaging Sci. 2009); restart by the gradient test of O'Donoghue & Candes (Found. Comput. Math.
    2015); the inverse step falls by 1 percent each iteration and rises to the curvature met along a step that was too long.
    The test of the step uses that curvature itself, not a difference of objectives, and so does not fail near the optimum.
    """

    name: ClassVar[str] = "fista"
    relax: ClassVar[float] = 0.99

    def step(self, objective: Objective, state: SolverState, options: SolverOptions) -> SolverState:  # noqa: ARG002
        t = 0.5 * (1 + np.sqrt(1 + 4 * state.momentum**2))
        beta = (state.momentum - 1) / t
        Y = state.P + beta * (state.P - state.P_before) if beta else state.P
        ZY = state.Z + beta * (state.Z - state.Z_before) if beta else state.Z
        P, Z, L, level, memory = proximal_step(objective, Y, ZY, replace(state, L=state.L * self.relax))
        if float(np.vdot(Y - P, P - state.P)) > 0:
            t = 1.0
        stuck = bool((P == state.P).all()) and state.momentum == 1.0
        return SolverState(P, Z, state.P, state.Z, level, t, L, state.n_iter + 1, memory, state.trace, stuck)


def proximal_step(objective: Objective, Y: Array, ZY: Array, state: SolverState) -> tuple[Array, Array, float, Array, dict]:
    """A proximal gradient step from Y, as short as the curvature along it asks for.

    Returns:
        the new variable, its image, the inverse step taken, the level at Y, and the penalty's memory.
    """
    problem = objective.problem
    W = objective.combine(Y)
    at = problem.point(W, ZY, state.first_guess)
    G = objective.gradient(at, W)
    L, memory = state.L, dict(state.memory)
    while True:
        P = objective.prox(Y - G / L, 1 / L, memory)
        Z = problem.image(objective.combine(P))
        needed = objective.curvature(P - Y, Z - ZY, at)
        if needed <= L * (1 + 1e-9) or not np.isfinite(L):
            return P, Z, L, at.intercepts, memory
        # Far away an exponential may need a step that is far too short here: shorten by and by.
        L = min(max(1.02 * needed, 1.05 * L), 4 * L) if np.isfinite(needed) else 4 * L


def minimize(
    problem: Problem,
    penalty: Penalty,
    *,
    solver: Solver,
    options: SolverOptions | None = None,
    start: Array | None = None,
    state: SolverState | None = None,
) -> Solution:
    """Minimise losses plus penalty.

    Args:
        problem: the losses.
        penalty: the penalty.
        solver: the algorithm.
        options: when to stop.
        start: (d, K) where to begin; default zero.
        state: where an earlier call stopped; it goes on from there, `max_iter` more steps at most.

    Raises:
        OptionError: the penalty does not fit the problem, or the solver does not support it.
    """
    options = options or SolverOptions()
    objective = Objective(problem, penalty)
    reason = solver.unsupported(objective)
    if reason:
        raise OptionError(f"`solver`={solver.name!r} {reason}; use solver='auto'")
    # The caller's state stays as it is.
    state = solver.init(objective, _check_start(start, problem)) if state is None else replace(state, trace=list(state.trace))
    last = state.n_iter + options.max_iter
    if not solver.looks_first:
        state = solver.step(objective, state, options)
    certificate = _look(solver, objective, state)
    while certificate.relative > options.tol and state.n_iter < last and not state.stuck and np.isfinite(certificate.objective):
        for _ in range(1 if solver.looks_every_step else min(options.check_every, last - state.n_iter)):
            state = solver.step(objective, state, options)
            if state.stuck:
                break
        certificate = _look(solver, objective, state)
    W, intercepts, parts = solver.postprocess(objective, state)
    converged = bool(certificate.relative <= options.tol)
    message = _message(certificate, options, state)
    return Solution(W, intercepts, parts, certificate, state.n_iter, converged, message, state)


def _check_start(start: Array | None, problem: Problem) -> Array | None:
    if start is not None and start.shape != (problem.n_features, problem.n_tasks):
        raise OptionError(f"`start` has shape {start.shape}; need {(problem.n_features, problem.n_tasks)}, features x tasks")
    return start


def _look(solver: Solver, objective: Objective, state: SolverState) -> Certificate:
    certificate = solver.terminate(objective, state)
    if not state.trace or state.trace[-1][0] != state.n_iter:
        state.trace.append((state.n_iter, certificate.objective, certificate.relative))
    return certificate


def _message(certificate: Certificate, options: SolverOptions, state: SolverState) -> str:
    what = "duality gap" if certificate.gap is not None else "distance to the subdifferential"
    times = "1 iteration" if state.n_iter == 1 else f"{state.n_iter} iterations"
    reached = f"relative {what} {certificate.relative:.2g} after {times}"
    if certificate.relative <= options.tol:
        return f"converged: {reached}"
    if not np.isfinite(certificate.objective):
        return f"not converged: the objective is {certificate.objective}; standardise the features, or raise the strength"
    if state.stuck:
        return f"not converged: {reached}, and rounding allows no further step; raise `tol` (now {options.tol:g})"
    remedy = "raise `max_iter`, raise `tol`, standardise the features, or raise the strength"
    return f"not converged: {reached} (`tol`={options.tol:g}, `max_iter`={options.max_iter}); {remedy}"
