"""The rounds of MOCHA: options, an explicit state, and four functions that start, move and read it.

A run that is stopped after any round, saved by `MochaState.parts` and resumed equals one that never stopped, to the bit.

Letters: K tasks (one site each), n_t rows of site t, N rows in all, d features, W (K, d) coefficients, B (K, d) pulls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from taskloom.linear._mocha_sites import Sites
from taskloom.linear._mocha_steps import (
    Certificate,
    best_covariance,
    certify,
    deal_visits,
    exponentiated_covariance,
    safe_aggregation,
    work_at_sites,
)
from taskloom.tasks import Array, OptionError, Rows

Learning = Literal["learn", "paper", "fixed"]
# The paper's step is taken when at most this share of the gap is left to the W-step.
INNER_SHARE = 0.5
FIRST_STRIDE, LONGEST_STRIDE, GROW, CUT = 0.5, 2.0, 1.1, 0.7


@dataclass(frozen=True)
class MochaOptions:
    """How the rounds go.

    Attributes:
        strength: lambda > 0.
        learning: how Sigma is found: `learn`, `paper` or `fixed`.
        rounds: most rounds in all, those of a state that is continued among them.
        share: least and greatest share of its rows that a site visits in a round; above 1 it passes over them again.
        drop_probability: chance of each site to send nothing in a round, in [0, 1).
        tol: relative gap to stop at.
        seed: of all that is random.

    Raises:
        OptionError: a value outside of these.
    """

    strength: float = 0.1
    learning: Learning = "learn"
    rounds: int = 2000
    share: tuple[float, float] = (0.5, 0.5)
    drop_probability: float = 0.0
    tol: float = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("strength", "tol"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value < np.inf:
                raise OptionError(f"`{name}`={value!r}: give a finite number above 0")
        if not _is_whole(self.rounds) or self.rounds < 1:
            raise OptionError(f"`rounds`={self.rounds!r}: give a whole number, 1 or more")
        if not _is_whole(self.seed) or self.seed < 0:
            raise OptionError(f"`seed`={self.seed!r}: give a whole number, 0 or more")
        if not _is_number(self.drop_probability) or not 0 <= self.drop_probability < 1:
            raise OptionError(f"`drop_probability`={self.drop_probability!r}: need 0 <= p < 1; at 1 no site ever works")
        if not all(_is_number(s) for s in self.share) or not 0 < self.share[0] <= self.share[1] < np.inf:
            raise OptionError(f"`local_fraction`={self.share!r}: give a share above 0, or a pair (low, high), low <= high")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(eq=False)
class MochaState:
    """All that a run has between two rounds.

    Attributes:
        a: (N,) dual variables, site after site: what the sites know.
        W: (K, d) coefficients, Sigma B / lambda.
        B: (K, d) pulls, the sum of what the sites sent.
        Sigma: (K, K) covariance of the tasks.
        round: rounds done.
        lag: share of the last round's gap that was left to the W-step.
        bounds: between which the optimum at this Sigma lies, as far as the last round knows.
        low_before: the lower bound at the former Sigma.
        least: the least upper bound at any Sigma since the stride was last cut.
        stride: greatest change of log Sigma in its next step.
        gaps: relative gap after each round.
        generator: what the next round draws from.
    """

    a: Array
    W: Array
    B: Array
    Sigma: Array
    round: int = 0
    lag: float = 1.0
    bounds: tuple[float, float] = (-np.inf, np.inf)
    low_before: float = -np.inf
    least: float = np.inf
    stride: float = FIRST_STRIDE
    gaps: list[float] = field(default_factory=list)
    generator: np.random.Generator = field(default_factory=np.random.default_rng)

    def parts(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays and JSON-able settings, out of which `from_parts` makes a state equal to the bit."""
        arrays = {name: getattr(self, name).copy() for name in ("a", "W", "B", "Sigma")}
        progress = np.array([self.lag, *self.bounds, self.low_before, self.least, self.stride])
        settings = {"round": self.round, "generator": self.generator.bit_generator.state}
        return {**arrays, "gaps": np.array(self.gaps), "progress": progress}, settings

    @classmethod
    def from_parts(cls, arrays: dict[str, Array], settings: dict[str, Any]) -> Self:
        """The state of which these are the `parts`."""
        bits = np.random.PCG64()
        bits.state = settings["generator"]
        lag, low, high, *rest = arrays["progress"].tolist()
        a, W, B, Sigma = (arrays[name].copy() for name in ("a", "W", "B", "Sigma"))
        state = cls(a, W, B, Sigma, settings["round"], lag, (low, high), *rest)
        state.gaps, state.generator = arrays["gaps"].tolist(), np.random.Generator(bits)
        return state


class MochaResult(NamedTuple):
    """What a run comes to.

    Attributes:
        coefficients: (K, d).
        covariance: (K, K) Sigma.
        certificate: its primal is the objective at the coefficients.
        message: empty where the gap is below `tol`; else what to do.
    """

    coefficients: Array
    covariance: Array
    certificate: Certificate
    message: str


def start_mocha(sites: Sites, options: MochaOptions, Sigma: Array | None = None) -> MochaState:
    """The state before the first round: nothing learnt, Sigma = I / K if none is given."""
    K, d = len(sites.sizes), sites.X.shape[1]
    Sigma = np.eye(K) / K if Sigma is None else Sigma
    zeros = np.zeros(len(sites.rows)), np.zeros((K, d)), np.zeros((K, d))
    return MochaState(*zeros, Sigma, generator=np.random.Generator(np.random.PCG64(options.seed)))


def run_round(sites: Sites, options: MochaOptions, state: MochaState) -> None:
    """Move the state on by one round: relate the tasks if it is time to, work at the sites, update at the server.

    It is changed by assignment alone: the arrays that it had stay as they are.
    """
    learns = options.learning != "fixed"
    if learns and state.round:
        _relate(options, state)
    a, v = state.a, state.W
    c = safe_aggregation(state.Sigma) * np.diag(state.Sigma) / (options.strength * sites.sizes)
    for counts in _draw_counts(sites, options, state.generator):
        a, v = work_at_sites(sites, deal_visits(sites, counts, state.generator.random(len(a))), a, v, c)
    state.B = state.B + sites.pulls(a - state.a)
    state.a, state.W, state.round = a, state.Sigma @ state.B / options.strength, state.round + 1
    certificate = certify(sites, state.a, state.B, state.Sigma, options.strength, learns=learns)
    state.lag, state.bounds = certificate.lag, (certificate.low, certificate.high)
    state.gaps = [*state.gaps, certificate.relative]


def _relate(options: MochaOptions, state: MochaState) -> None:
    if options.learning == "learn":
        low, high = state.bounds
        if low > state.least:
            state.stride, state.least = state.stride * CUT, high
        elif high < state.low_before:
            state.stride = min(state.stride * GROW, LONGEST_STRIDE)
        state.low_before, state.least = low, min(state.least, high)
        floor = 1e-3 * options.tol / len(state.Sigma)
        state.Sigma = exponentiated_covariance(state.Sigma, state.B, state.stride, floor)
    elif state.lag <= INNER_SHARE:
        state.Sigma = best_covariance(state.W)
    state.W = state.Sigma @ state.B / options.strength


def _draw_counts(sites: Sites, options: MochaOptions, generator: np.random.Generator) -> list[Rows]:
    """(K,) visits of each site, for each pass over the rows."""
    K, (low, high) = len(sites.sizes), options.share
    shares = low + (high - low) * generator.random(K)
    # A share of 0.07 of 100 rows is 7 of them, not 8.
    visits = np.ceil(shares * sites.sizes - 1e-9).astype(np.int64)
    visits[generator.random(K) < options.drop_probability] = 0
    passes = int(np.ceil(visits / sites.sizes).max())
    return [np.clip(visits - p * sites.sizes, 0, sites.sizes) for p in range(passes)]


def is_done(options: MochaOptions, state: MochaState) -> bool:
    """Whether the gap is below `tol`, or the rounds are used up."""
    return state.round >= options.rounds or (bool(state.gaps) and state.gaps[-1] <= options.tol)


def read_result(sites: Sites, options: MochaOptions, state: MochaState) -> MochaResult:
    """What the state amounts to; it may be asked for after any round."""
    learns = options.learning != "fixed"
    certificate = certify(sites, state.a, state.B, state.Sigma, options.strength, learns=learns)
    message = ""
    if certificate.relative > options.tol:
        stalls = ", or omega='learn', for the paper's step can stall" if options.learning == "paper" else ""
        message = (
            f"relative gap {certificate.relative:.1e} after {state.round} rounds, above `tol`={options.tol:g}: "
            f"give more `rounds`, a greater `local_fraction` or `strength`, features of one scale{stalls}"
        )
    return MochaResult(state.W, state.Sigma, certificate, message)
