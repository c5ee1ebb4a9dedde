"""Linear models of many tasks against their rivals, at the same duality gap, on one thread.

1. Trace norm on the School data (139 tasks with their own rows) against plain FISTA with a full singular value decomposition a
   step: the textbook solver, written here as the slow twin.
2. Joint features on shared rows against scikit-learn's and skglm's MultiTaskLasso.
3. The proximal map of the trace norm against a full singular value decomposition.
4. Seconds and memory as tasks, features and rows grow.

Every contestant's gap is computed here, in one place, from its coefficients.
"""

from __future__ import annotations

import os
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from _timing import publish, race, ratio

warnings.filterwarnings("ignore")

from sklearn.linear_model import MultiTaskLasso  # noqa: E402

from taskloom.linear import L21, MultiTaskRegressor, Trace  # noqa: E402

DATA = Path(os.environ.get("TASKLOOM_DATA", Path(__file__).parents[2] / "shared" / "data"))
GAP = 1e-6
SCHOOL_STRENGTH = 1000.0
# rows, features, tasks, strength over the critical one
SHARED = [
    (100, 50, 5, 0.1),
    (100, 50, 5, 0.01),
    (300, 1000, 20, 0.1),
    (300, 1000, 20, 0.03),
    (2000, 200, 50, 0.05),
    (5000, 1000, 20, 0.03),
    (500, 4000, 50, 0.05),
    (200, 10_000, 10, 0.1),
    (200, 10_000, 10, 0.02),
]


def trace_gap(blocks: list[tuple[np.ndarray, np.ndarray]], W: np.ndarray, strength: float) -> float:
    """Duality gap over half the sum of squares, for centred rows."""
    residuals = [y - X @ W[:, t] for t, (X, y) in enumerate(blocks)]
    pull = np.stack([X.T @ r for (X, _), r in zip(blocks, residuals, strict=True)], axis=1)
    c = min(1.0, strength / np.linalg.norm(pull, 2))
    squares, cross = sum(r @ r for r in residuals), sum(r @ y for (_, y), r in zip(blocks, residuals, strict=True))
    primal = 0.5 * squares + strength * np.linalg.norm(W, "nuc")
    return (primal - c * cross + 0.5 * c**2 * squares) / (0.5 * sum(y @ y for _, y in blocks))


def plain_fista(blocks: list[tuple[np.ndarray, np.ndarray]], strength: float) -> np.ndarray:
    """Fixed step, no restart, a full decomposition and a pass over all rows in every step; a look at the gap every 10."""
    d, K = blocks[0][0].shape[1], len(blocks)
    L = max(np.linalg.norm(X, 2) ** 2 for X, _ in blocks)
    W = Y = np.zeros((d, K))
    t = 1.0
    for i in range(100_000):
        G = np.stack([X.T @ (X @ Y[:, k] - y) for k, (X, y) in enumerate(blocks)], axis=1)
        U, s, Vt = np.linalg.svd(Y - G / L, full_matrices=False)
        new = (U * np.maximum(s - strength / L, 0)) @ Vt
        t_next = 0.5 * (1 + np.sqrt(1 + 4 * t * t))
        Y, W, t = new + (t - 1) / t_next * (new - W), new, t_next
        if i % 10 == 9 and trace_gap(blocks, W, strength) <= GAP:
            break
    return W


def load_school() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, scores and school of each row, sorted by school; features standardised."""
    from scipy.io import loadmat

    cells = loadmat(DATA / "school" / "school.mat")
    X = np.concatenate([x.astype(float) for x in cells["X"].ravel()])
    y = np.concatenate([v.ravel().astype(float) for v in cells["Y"].ravel()])
    owner = np.repeat(np.arange(139), [len(x) for x in cells["X"].ravel()])
    spread = X.std(0)
    return (X - X.mean(0)) / np.where(spread > 0, spread, 1), y, owner


def school() -> None:
    if not DATA.is_dir():
        print(f"\nno data folder ({DATA}): School is left out", file=sys.stderr)
        return
    X, y, owner = load_school()
    blocks = [(X[owner == t], y[owner == t]) for t in range(139)]
    blocks = [(A - A.mean(0), b - b.mean()) for A, b in blocks]
    A, b = np.concatenate([A for A, _ in blocks]), np.concatenate([b for _, b in blocks])
    rows = []
    for strength in (SCHOOL_STRENGTH, 0.1 * SCHOOL_STRENGTH):
        model = MultiTaskRegressor(Trace(strength), scale="sum", tol=GAP, fit_intercept=False)
        fit = partial(model.fit, A, b, tasks=owner)
        seconds = race({"taskloom": fit, "plain FISTA": partial(plain_fista, blocks, strength)}, rounds=3)
        quotient = ratio(seconds, "plain FISTA", "taskloom")
        rows.append(
            {
                "strength": strength,
                "taskloom s": float(np.median(seconds["taskloom"])),
                "plain FISTA s": float(np.median(seconds["plain FISTA"])),
                "plain / taskloom": quotient["median"],
                "least": quotient["least"],
                "gap, taskloom": trace_gap(blocks, model.coef_.T, strength),
                "gap, plain": trace_gap(blocks, plain_fista(blocks, strength), strength),
            }
        )
    publish("linear_school", "Trace norm on School, 139 tasks with own rows, to a relative gap of 1e-6", rows)


def shared_data(n: int, d: int, K: int, part: float) -> tuple[np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng(0)
    X, W = rng.normal(size=(n, d)), np.zeros((d, K))
    chosen = rng.choice(d, min(d // 3, 20), replace=False)
    W[chosen] = rng.normal(size=(len(chosen), K))
    Y = X @ W + rng.normal(size=(n, K))
    strength = part * np.linalg.norm((X - X.mean(0)).T @ (Y - Y.mean(0)), axis=1).max() / n
    return X, Y, float(strength)


def shared_gap(X: np.ndarray, Y: np.ndarray, W: np.ndarray, strength: float) -> float:
    """Duality gap over half the mean of squares, intercepts minimised out."""
    X, Y = X - X.mean(0), Y - Y.mean(0)
    R = Y - X @ W
    pull = np.linalg.norm(X.T @ R, axis=1).max() / len(X)
    c = min(1.0, strength / pull)
    primal = 0.5 * (R**2).sum() / len(X) + strength * np.linalg.norm(W, axis=1).sum()
    dual = (c * (R * Y).sum() - 0.5 * c**2 * (R**2).sum()) / len(X)
    return float((primal - dual) / (0.5 * (Y**2).sum() / len(X)))


def tuned(make: Callable[[float], Any], X: np.ndarray, Y: np.ndarray, strength: float) -> Any:
    """The estimator at the loosest tolerance with which it reaches the gap: nobody pays for more than is asked."""
    tol = 10 * GAP
    while True:
        model = make(tol).fit(X, Y)
        if shared_gap(X, Y, model.coef_.T, strength) <= GAP or tol < 1e-14:
            return make(tol)
        tol /= 2


def shared() -> None:
    from skglm.estimators import MultiTaskLasso as SkglmLasso

    rows = []
    for n, d, K, part in SHARED:
        X, Y, strength = shared_data(n, d, K, part)
        # Each gets the order of memory that it likes best.
        F = np.asfortranarray(X)
        makers = {
            "taskloom": lambda tol, s=strength: MultiTaskRegressor(L21(s), tol=tol),
            "scikit-learn": lambda tol, s=strength: MultiTaskLasso(alpha=s, tol=tol, max_iter=100_000),
            "skglm": lambda tol, s=strength: SkglmLasso(alpha=s, tol=tol, max_iter=1000),
        }
        models = {name: tuned(make, F, Y, strength) for name, make in makers.items()}
        seconds = race({name: partial(model.fit, F, Y) for name, model in models.items()}, rounds=5)
        learn, glm = ratio(seconds, "scikit-learn", "taskloom"), ratio(seconds, "skglm", "taskloom")
        rows.append(
            {
                "n": n,
                "d": d,
                "K": K,
                "strength / critical": part,
                "features used": int((np.abs(models["taskloom"].coef_).sum(0) > 0).sum()),
                "taskloom ms": 1e3 * float(np.median(seconds["taskloom"])),
                "scikit-learn / taskloom": learn["median"],
                "least": learn["least"],
                "skglm / taskloom": glm["median"],
                "worst gap": max(shared_gap(X, Y, model.coef_.T, strength) for model in models.values()),
            }
        )
    publish("linear_shared", "Joint features on shared rows, to a relative gap of 1e-6 (above 1: taskloom is faster)", rows)


def prox() -> None:
    rows = []
    for d, K in ((28, 139), (617, 139), (1000, 200), (10_000, 50), (10_000, 139)):
        rng = np.random.default_rng(0)
        V = rng.normal(size=(d, 10)) @ rng.normal(size=(10, K)) + 0.1 * rng.normal(size=(d, K))
        penalty, threshold = Trace(1.0), float(np.linalg.norm(V, 2) / 20)

        def full(V: np.ndarray = V, threshold: float = threshold) -> np.ndarray:
            U, s, Vt = np.linalg.svd(V, full_matrices=False)
            return (U * np.maximum(s - threshold, 0)) @ Vt

        seconds = race({"taskloom": partial(penalty.prox, V, threshold), "full": full}, rounds=5)
        quotient = ratio(seconds, "full", "taskloom")
        error = np.linalg.norm(penalty.prox(V, threshold) - full()) / np.linalg.norm(full())
        milliseconds = 1e3 * float(np.median(seconds["taskloom"]))
        rows.append(
            {"d": d, "K": K, "taskloom ms": milliseconds, "full / taskloom": quotient["median"], "least": quotient["least"]}
            | {"relative error": float(error)}
        )
    publish("linear_prox", "Proximal map of the trace norm against a full singular value decomposition", rows)


def own_rows(n: int, d: int, K: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    W = rng.normal(size=(d, 3)) @ rng.normal(size=(3, K)) * (rng.random((d, 1)) < min(1.0, 20 / d))
    X, owner = rng.normal(size=(n * K, d)), np.repeat(np.arange(K), n)
    return X, np.einsum("ij,ji->i", X, W[:, owner]) + rng.normal(size=n * K), owner


def scaling() -> None:
    rows = []
    settings = [("K", 50, 50, K) for K in (20, 200, 2000)]
    settings += [("d", 20, d, 20) for d in (100, 1000, 10_000)] + [("n", n, 50, 20) for n in (100, 1000, 10_000)]
    for grows, n, d, K in settings:
        X, y, owner = own_rows(n, d, K)
        for name, penalty in (("Trace", Trace), ("L21", L21)):
            top = MultiTaskRegressor(penalty(1e9), max_iter=1, tol=1e9).fit(X, y, tasks=owner)
            strength = 0.1 * penalty().lambda_max(_gradient(top, X, y, owner))
            start = perf_counter()
            model = MultiTaskRegressor(penalty(strength), tol=GAP).fit(X, y, tasks=owner)
            seconds = perf_counter() - start
            tracemalloc.start()
            MultiTaskRegressor(penalty(strength), tol=GAP).fit(X, y, tasks=owner)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            rows.append(
                {"grows": grows, "n per task": n, "d": d, "K": K, "penalty": name, "seconds": seconds}
                | {"iterations": model.n_iter_, "relative gap": model.optimality_, "peak memory / X": peak / X.nbytes}
            )
    publish("linear_scaling", "Own rows: seconds and memory beside X as the problem grows (gap 1e-6)", rows)


def _gradient(model: MultiTaskRegressor, X: np.ndarray, y: np.ndarray, owner: np.ndarray) -> np.ndarray:
    parts = [X[owner == t].T @ (model.intercept_[t] - y[owner == t]) / (owner == t).sum() for t in range(len(model.tasks_))]
    return np.stack(parts, axis=1)


def main() -> None:
    """All of them, or those named on the command line."""
    jobs = {"school": school, "shared": shared, "prox": prox, "scaling": scaling}
    for name in sys.argv[1:] or jobs:
        jobs[name]()


if __name__ == "__main__":
    main()
