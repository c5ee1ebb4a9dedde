"""Online multi-task learning against learners apart, uniform sharing and relations without memory: error and regret.

Two streams: ten tasks in two hidden clusters, and landmine fields where the data are there (`TASKLOOM_DATA`, else
`../shared/data` beside the project). Regret is the hinge loss so far less that of each task's best linear model in hindsight,
found by linear programming over the whole stream. All ways see the same rows in the same order, so differences are paired over
seeds.

Letters: K tasks, T rounds, d features.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter
from typing import Any

from _timing import RESULTS, publish  # isort: skip (pins the threads before numpy is loaded)

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy import sparse, stats
from scipy.io import loadmat
from scipy.optimize import linprog
from sklearn.metrics import roc_auc_score

from taskloom.linear._online import OnlineMultiTask

SEEDS = 30
WAYS: dict[str, dict[str, Any]] = {
    "incremental": {},
    "exact": {"mode": "exact"},
    "uniform": {"mode": "fixed"},
    "apart": {"alpha": 1.0},
}
LANDMINE_TASKS = [*range(10), *range(15, 24)]
Stream = tuple[np.ndarray, np.ndarray]


def two_clusters(seed: int, K: int = 10, T: int = 60, d: int = 20) -> Stream:
    """Rows (T, K, d) and labels (T, K): even tasks near one rule, odd tasks near another, 5 % of labels turned."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(2, d))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rules = centres[np.arange(K) % 2] + 0.3 * rng.normal(size=(K, d)) / np.sqrt(d)
    X = rng.normal(size=(T, K, d))
    y = np.where(np.einsum("tkd,kd->tk", X, rules) > 0, 1.0, -1.0) * np.where(rng.random((T, K)) < 0.05, -1, 1)
    return X / np.linalg.norm(X, axis=2, keepdims=True), y


def landmine_fields() -> list[Stream] | None:
    """Features and labels of 19 fields; None where the file is missing."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("TASKLOOM_DATA", beside)) / "landmine" / "LandmineData.mat"
    if not path.exists():
        return None
    file = loadmat(path)
    fields = zip(file["feature"][0], file["label"][0], strict=True)
    read = [(X.astype(float), np.where(y.ravel() > 0, 1.0, -1.0)) for X, y in fields]
    return [read[task] for task in LANDMINE_TASKS]


def deal_landmine(fields: list[Stream], seed: int, T: int = 160) -> tuple[Stream, list[Stream]]:
    """160 rows of each field as a stream, and the rest; rows extended by 1 and normalised."""
    rng = np.random.default_rng(seed)
    taken, rest = [], []
    for X, y in fields:
        rows = np.hstack([X, np.ones((len(X), 1))])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        order = rng.permutation(len(y))
        taken.append((rows[order[:T]], y[order[:T]]))
        rest.append((rows[order[T:]], y[order[T:]]))
    return (np.stack([X for X, _ in taken], axis=1), np.stack([y for _, y in taken], axis=1)), rest


def hindsight(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Hinge losses (T,) of the linear model with the least sum of them: min 1's, s >= 1 - y <x, w>, s >= 0."""
    T, d = X.shape
    limits = sparse.hstack([sparse.csr_matrix(-y[:, None] * X), -sparse.eye(T)], format="csr")
    answer = linprog(
        np.r_[np.zeros(d), np.ones(T)],
        A_ub=limits,
        b_ub=-np.ones(T),
        bounds=[(None, None)] * d + [(0, None)] * T,
        method="highs",
    )
    return np.maximum(1 - y * (X @ answer.x[:d]), 0)


def run_stream(stream: Stream, way: dict[str, Any]) -> tuple[OnlineMultiTask, np.ndarray, np.ndarray]:
    """Fitted model, and mean loss of the tasks and share of mistakes in each round, (T,)."""
    X, y = stream
    K = X.shape[1]
    model = OnlineMultiTask(fit_intercept=False, **way)
    losses, mistakes = [], []
    for rows, labels in zip(X, y, strict=True):
        model.partial_fit(rows, labels, tasks=np.arange(K), classes=[-1, 1])
        losses.append(model.losses_.mean())
        mistakes.append(model.mistakes_.mean())
    return model, np.diff(losses, prepend=0), np.diff(mistakes, prepend=0)


def difference(ours: np.ndarray, theirs: np.ndarray, digits: int) -> str:
    """Mean and 95 % interval of paired differences over seeds; empty for a way against itself."""
    if ours is theirs:
        return ""
    pairs = theirs - ours
    low, high = stats.t.interval(0.95, len(pairs) - 1, pairs.mean(), stats.sem(pairs))
    return f"{pairs.mean():+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def compare(name: str, streams: list[Stream], extra: Any) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Table rows of every way, and its mean regret curve (T,).

    Args:
        name: of the data.
        streams: one for each seed.
        extra: of a seed's model, another figure: its name and its value.
    """
    best = [np.mean([hindsight(X[:, k], y[:, k]) for k in range(X.shape[1])], axis=0) for X, y in streams]
    errors, regrets, curves, figures, seconds = {}, {}, {}, {}, {}
    for way, settings in WAYS.items():
        start = perf_counter()
        runs = [run_stream(stream, settings) for stream in streams]
        seconds[way] = perf_counter() - start
        errors[way] = np.array([wrong.mean() for _, _, wrong in runs])
        regret = np.array([np.cumsum(losses - least) for (_, losses, _), least in zip(runs, best, strict=True)])
        regrets[way], curves[way] = regret[:, -1], regret.mean(0)
        figures[way] = [extra(seed, model) for seed, (model, _, _) in enumerate(runs)]
    rows = [
        {
            "data": name,
            "way": way,
            "online error": float(errors[way].mean()),
            "more than incremental": difference(errors["incremental"], errors[way], 4),
            "regret a task": float(regrets[way].mean()),
            "more than incremental ": difference(regrets["incremental"], regrets[way], 2),
            figures[way][0][0]: float(np.mean([value for _, value in figures[way]])),
            "us a round": 1e6 * seconds[way] / (len(streams) * len(streams[0][0])),
        }
        for way in WAYS
    ]
    return rows, curves


def cluster_mass(_: int, model: OnlineMultiTask) -> tuple[str, float]:
    """Share of the relations that falls on tasks of the own cluster."""
    parity = np.arange(len(model.tasks_)) % 2
    return "mass on own cluster", float((model.relation_ * (parity[:, None] == parity)).sum(1).mean())


def draw(curves: dict[str, dict[str, np.ndarray]]) -> Path:
    """Regret against rounds, one panel for each data set, as an HTML file."""
    figure = make_subplots(cols=len(curves), subplot_titles=list(curves))
    colours = dict(zip(WAYS, ("#1b6ca8", "#2a9d8f", "#e9a23b", "#8d8d8d"), strict=True))
    for column, ways in enumerate(curves.values(), 1):
        for way, regret in ways.items():
            line = {"color": colours[way], "width": 3 if way == "incremental" else 2}
            rounds = np.arange(1, len(regret) + 1)
            trace = go.Scatter(x=rounds, y=regret, name=way, legendgroup=way, showlegend=column == 1, line=line)
            figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(title_text="round")
    figure.update_yaxes(title_text="mean regret of a task (hinge loss)", col=1)
    figure.update_layout(template="plotly_white", title=f"Regret against each task's best linear model, mean of {SEEDS} seeds")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "online.html"
    figure.write_html(path, include_plotlyjs=True)
    return path


def main() -> None:
    """Both streams, one table, one chart."""
    curves = {}
    rows, curves["two clusters"] = compare("two clusters", [two_clusters(seed) for seed in range(SEEDS)], cluster_mass)
    publish("online_clusters", f"Ten tasks in two clusters, 60 rounds, 5 % label noise, {SEEDS} seeds", rows)
    fields = landmine_fields()
    if fields is None:
        print("\nNo landmine data: set TASKLOOM_DATA")
    else:
        dealt = [deal_landmine(fields, seed) for seed in range(SEEDS)]

        def rest_auc(seed: int, model: OnlineMultiTask) -> tuple[str, float]:
            return "AUC on the rest", float(
                np.mean([roc_auc_score(y, X @ w) for (X, y), w in zip(dealt[seed][1], model.coef_, strict=True)])
            )

        rows, curves["landmine"] = compare("landmine", [stream for stream, _ in dealt], rest_auc)
        mines = np.mean([(y > 0).mean() for (_, y), _ in dealt])
        title = f"Landmine, {len(LANDMINE_TASKS)} fields, 160 rounds, {SEEDS} shuffles; always `no mine` errs {mines:.4f}"
        publish("online_landmine", title, rows)
    print(f"\nRegret curves: {draw(curves)}")


if __name__ == "__main__":
    main()
