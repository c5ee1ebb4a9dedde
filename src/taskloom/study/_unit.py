"""One unit of a study: one recipe on one split, trained and scored.

Letters: K tasks.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import psutil
import torch
from threadpoolctl import threadpool_limits

from taskloom.study._options import StudyOptions
from taskloom.tasks import Curve, FeatureEncoder, FitError, Recipe, TargetScaler, TaskData, split_rows

Clock = Callable[[], float]
# A picture of more tasks cannot be read, and its numbers would be most of a results file.
MOST_RELATED = 150


@dataclass
class Unit:
    """What one recipe reached on one split.

    Attributes:
        recipe: the recipe's label.
        seed: of split and fit.
        scores: K test scores, in each task's own metric; empty where the fit failed.
        validation_loss: K validation losses of the chosen model.
        train_rows: K numbers of labelled training rows.
        test_rows: K numbers of labelled test rows.
        chosen: what was chosen on validation.
        steps: optimizer steps of the chosen model.
        total_steps: optimizer steps of all candidates.
        seconds: wall time of the fit, all candidates included.
        peak_mb: rise of the process's memory while fitting, in MiB.
        curves: validation losses while training.
        notes: of the fit.
        relations: (K, K) numbers in [-1, 1] by name, to three decimals; none for more than `MOST_RELATED` tasks.
        dominance: by layer and task, how much of the steps of the shared weights was due to the task (see `RecipeFit`); empty
            where it was not measured, and for more than `MOST_RELATED` tasks.
        groups: which tasks were trained together (see `RecipeFit`); empty where the recipe makes no groups.
        error: why the fit failed; empty where it did not.
        batches: of the chosen model; None where there are none.
        trunk_flops: floating-point operations of the chosen model's training in what tasks share; None: not counted.
        group_history: groups that changed while training (see `RecipeFit`); empty for more than `MOST_RELATED` tasks.
    """

    recipe: str
    seed: int
    scores: list[float]
    validation_loss: list[float]
    train_rows: list[int]
    test_rows: list[int]
    chosen: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    total_steps: int = 0
    seconds: float = 0.0
    peak_mb: float = 0.0
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    relations: dict[str, list[list[float]]] = field(default_factory=dict)
    dominance: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    batches: int | None = None
    trunk_flops: float | None = None
    group_history: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """JSON-able, NaN-free; `from_json` takes it back."""
        return asdict(self) | {"curves": [asdict(curve) for curve in self.curves]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Unit:
        """The unit whose `to_json` this is."""
        unit = cls(**value)
        unit.curves = [Curve(c["name"], tuple(c["steps"]), tuple(c["losses"])) for c in value["curves"]]
        return unit


def run_unit(data: TaskData, recipe: Recipe, seed: int, options: StudyOptions, clock: Clock = time.perf_counter) -> Unit:
    """Split, encode, fit and score.

    Numbers follow from data, recipe, seed and options alone: one thread is used, however many units run at once.

    Raises:
        DataError: a task with too few rows for the split.
    """
    split = split_rows(data, seed, options.fractions)
    parts = [data.take(rows) for rows in (split.train, split.validation, split.test)]
    encoder, scaler = FeatureEncoder.fit(parts[0].features), TargetScaler.fit(parts[0])
    train, validation, test = (encoder.encode(part) for part in parts)
    unit = Unit(
        recipe=recipe.label,
        seed=seed,
        scores=[],
        validation_loss=[],
        train_rows=[len(train.rows(t)) for t in range(data.n_tasks)],
        test_rows=[len(test.rows(t)) for t in range(data.n_tasks)],
    )
    if recipe.family == "deep":
        # What the first fit of a process would import is no cost of the recipe's.
        importlib.import_module("lightning_fabric")
    with one_thread(), _peak_memory() as peak:
        start = clock()
        try:
            fitted = recipe.fit(scaler.encode(train), scaler.encode(validation), seed=seed, budget=options.budget)
        except FitError as error:
            unit.error = str(error)
            return unit
        unit.seconds = clock() - start
    unit.peak_mb = peak()
    with one_thread():
        unit.scores = score_tasks(test, fitted.predictor.predict, scaler)
    if not np.isfinite(unit.scores).all():
        unit.scores, unit.error = [], "the model's predictions gave a score that is not finite"
    unit.validation_loss = [float(loss) for loss in fitted.validation_loss]
    unit.chosen, unit.steps, unit.total_steps = fitted.chosen, fitted.steps, fitted.total_steps
    unit.batches, unit.trunk_flops = fitted.batches, fitted.trunk_flops
    unit.curves = [_finite_part(curve) for curve in fitted.curves]
    unit.notes, unit.groups = fitted.notes, fitted.groups
    if data.n_tasks <= MOST_RELATED:
        unit.relations = {
            name: np.round(np.asarray(matrix, np.float64), 3).tolist() for name, matrix in fitted.relations.items()
        }
        unit.dominance, unit.group_history = fitted.dominance, fitted.group_history
    return unit


def score_tasks(data: TaskData, predict: Callable[..., list[Any]], scaler: TargetScaler) -> list[float]:
    """The score of every task on its labelled rows, in its own unit.

    Args:
        data: encoded, with targets in their own unit.
        predict: of a `Predictor`.
        scaler: that the predictor's targets were standardised with.
    """
    if data.is_shared:
        everything = predict(data.X, range(data.n_tasks))
        predictions = [everything[t][data.rows(t)] for t in range(data.n_tasks)]
    else:
        predictions = [predict(data.X[data.rows(t)], [t])[0] for t in range(data.n_tasks)]
    scores = []
    for t, task in enumerate(data.tasks):
        values = scaler.invert(predictions[t], t) if task.kind == "regression" else predictions[t]
        scores.append(task.scorer.score(data.labels(t), values) if np.isfinite(values).all() else float("nan"))
    return scores


@contextmanager
def one_thread() -> Generator[None]:
    """One thread for BLAS and torch inside: sums come out in one order, and units side by side do not crowd each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _peak_memory(every: float = 0.02) -> Generator[Callable[[], float]]:
    """Watch this process's memory from a thread; the function it gives tells the highest rise in MiB."""
    process = psutil.Process()
    before = highest = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(every):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: round((highest - before) / 2**20, 1)
    finally:
        highest = max(highest, process.memory_info().rss)
        done.set()
        watcher.join()


def _finite_part(curve: Curve) -> Curve:
    """JSON has no NaN: a curve ends where it stops being finite."""
    bad = np.flatnonzero(~np.isfinite(curve.losses))
    stop = int(bad[0]) if len(bad) else len(curve.losses)
    return Curve(curve.name, curve.steps[:stop], tuple(float(f"{loss:.6g}") for loss in curve.losses[:stop]))
