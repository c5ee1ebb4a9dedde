"""Data, optima and clocks that the benchmarks of `taskloom.sites` share.

Letters: K tasks, n rows of a task, d features, F losses plus penalty, L greatest curvature of a task's loss.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import scipy.io

from taskloom.linear import (
    Fista,
    Labels,
    Loss,
    OwnRows,
    Problem,
    SolverOptions,
    Trace,
    certify,
    get_loss,
    minimize,
    scale_factor,
    smooth_problem,
)
from taskloom.sites import Session, SimulatedTransport, Site, SitesResult, fit

DATA = Path(os.environ.get("TASKLOOM_DATA", Path(__file__).parents[2] / "shared" / "data"))
Pairs = list[tuple[np.ndarray, np.ndarray]]
# No look at the model but the first and the last: looks cost time, and these scripts look for themselves.
NEVER = 10**9


@dataclass
class Work:
    """A problem with a trace norm, and its optimum.

    Attributes:
        name: for the tables.
        pairs: (X, y) of each task.
        strength: of the penalty; None for a tenth of the least one at which the model is empty.
        loss: of all tasks.
        scale: what a task's sum of losses is divided by.
        fit_intercept: whether each task has one.
    """

    name: str
    pairs: Pairs
    strength: float | None = None
    loss: str = "squared"
    scale: str = "sum"
    fit_intercept: bool = False

    @cached_property
    def problem(self) -> Problem:
        """The losses of all tasks."""
        loss: Loss = get_loss(self.loss)
        weight = [np.full(len(y), scale_factor(self.scale, loss, np.array(float(len(y))))) for _, y in self.pairs]
        labels = Labels(
            np.concatenate([y for _, y in self.pairs]),
            np.concatenate(weight),
            [loss] * len(self.pairs),
            fit_intercept=self.fit_intercept,
        )
        return smooth_problem(OwnRows([X for X, _ in self.pairs]), labels)

    @cached_property
    def penalty(self) -> Trace:
        """At its strength."""
        return Trace(0.1 * Trace().lambda_max(self.problem.origin.gradient) if self.strength is None else self.strength)

    @cached_property
    def curvature(self) -> float:
        """L."""
        return float(self.problem.lipschitz().max())

    @cached_property
    def optimum(self) -> float:
        """F*, from `taskloom.linear` at a relative gap of 1e-12."""
        solution = minimize(self.problem, self.penalty, solver=Fista(), options=SolverOptions(tol=1e-12, max_iter=50_000))
        return certify(self.problem, self.penalty, solution.W).objective

    @cached_property
    def start(self) -> float:
        """F at zero."""
        return self.objective(np.zeros((self.problem.n_features, self.problem.n_tasks)))

    def objective(self, W: np.ndarray) -> float:
        """F."""
        Z = self.problem.image(W)
        return self.problem.value(self.problem.point(W, Z), W, Z) + self.penalty.value(W)

    def gap(self, W: np.ndarray) -> float:
        """How far W is from the optimum, relative to how far zero is."""
        return (self.objective(W) - self.optimum) / (self.start - self.optimum)

    def fit(self, method: str, **settings: Any) -> SitesResult:
        """One run, without looks and without an end of its own unless asked for."""
        settings = {"transport": "simulated", "tol": 0.0, "look_every": NEVER} | settings
        return fit(
            self.pairs,
            self.penalty,
            loss=self.loss,
            scale=self.scale,
            fit_intercept=self.fit_intercept,
            method=method,
            **settings,
        )


@dataclass
class Watch:
    """A callback that notes when each level of the gap is first reached, and ends the run at the last.

    Attributes:
        work: the problem.
        levels: gaps, from large to small.
        every: updates between two looks.
        times: of the clock, by level.
        gap: at the last look.
        step: of the coordinator, then.
        rounds: updates of a site on average, then.
    """

    work: Work
    levels: tuple[float, ...]
    every: int
    times: dict[float, float] = field(default_factory=dict)
    gap: float = 1.0
    step: float = np.nan
    rounds: float = 0.0
    _next: int = 0

    def __call__(self, session: Session) -> None:
        """Look, if it is time."""
        coordinator: Any = session.coordinator
        if coordinator.version < self._next or coordinator.is_over:
            return
        self._next = coordinator.version + self.every
        self.gap, self.step = self.work.gap(coordinator.finish()), coordinator.step
        self.rounds = coordinator.version / len(coordinator.sites)
        for level in self.levels:
            if self.gap <= level:
                self.times.setdefault(level, session.now)
        if self.gap <= self.levels[-1]:
            coordinator.stop()


class Stopwatch(SimulatedTransport):
    """No delays at all: everything in one thread, one message after another, and the seconds that it took."""

    def run(self, session: Session, make_sites: Mapping[str, Callable[[], Site]]) -> None:
        """Until every site has parted."""
        start = perf_counter()
        super().run(session, make_sites)
        self.seconds = perf_counter() - start


def synthetic(tasks: int, seed: int = 0, rows: int = 100, features: int = 50, rank: int = 3) -> Pairs:
    """Normal X, W of low rank, noise 1."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(features, rank)) @ rng.normal(size=(rank, tasks))
    blocks = [rng.normal(size=(rows, features)) for _ in range(tasks)]
    return [(X, X @ W[:, t] + rng.normal(size=rows)) for t, X in enumerate(blocks)]


def school() -> Pairs | None:
    """139 schools, features standardised over all rows (the constant one becomes 0); None where the file is not."""
    path = DATA / "school" / "school.mat"
    if not path.exists():
        return None
    cells = scipy.io.loadmat(path)
    blocks = [np.asarray(X, dtype=np.float64) for X in cells["X"].ravel()]
    blocks = _standardised(blocks, np.concatenate(blocks))
    return [(X, np.asarray(y, dtype=np.float64).ravel()) for X, y in zip(blocks, cells["Y"].ravel(), strict=True)]


def mtfl() -> Pairs | None:
    """Gender, smile and glasses of 10,000 faces, pose (left against right) of 2,224, from ten coordinates of landmarks."""
    path = DATA / "mtfl" / "training.txt"
    if not path.exists():
        return None
    table = np.array(
        [line.split()[-14:] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()], dtype=float
    )
    X = _standardised([table[:, :10]], table[:, :10])[0]
    turned = np.isin(table[:, 13], (2, 4))
    pairs = [(X, np.where(table[:, column] == 1, 1.0, -1.0)) for column in (10, 11, 12)]
    return [*pairs, (X[turned], np.where(table[turned, 13] == 2, 1.0, -1.0))]


def digit_pairs() -> Pairs | None:
    """0 or 9, 1 or 8, 2 or 7, 3 or 6, 4 or 5 among the 10,000 test images of MNIST, on 100 principal components."""
    folder = DATA / "mnist-t10k"
    images, labels = folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz"
    if not (images.exists() and labels.exists()):
        return None
    X = np.frombuffer(gzip.decompress(images.read_bytes()), dtype=np.uint8, offset=16).reshape(-1, 784) / 255.0
    digit = np.frombuffer(gzip.decompress(labels.read_bytes()), dtype=np.uint8, offset=8)
    X = X - X.mean(axis=0)
    X = X @ np.linalg.eigh(X.T @ X)[1][:, -100:]
    X = X / X.std(axis=0).max()
    rows = [np.isin(digit, (low, 9 - low)) for low in range(5)]
    return [(X[keep], np.where(digit[keep] == low, 1.0, -1.0)) for low, keep in enumerate(rows)]


def _standardised(blocks: list[np.ndarray], everything: np.ndarray) -> list[np.ndarray]:
    mean, deviation = everything.mean(axis=0), everything.std(axis=0)
    return [(X - mean) / np.where(deviation > 0, deviation, 1.0) for X in blocks]
