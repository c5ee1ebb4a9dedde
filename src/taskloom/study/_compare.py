"""From units to verdicts: every recipe against the single-task baseline of its family, task by task.

Letters: K tasks, S seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from taskloom.study._unit import Unit
from taskloom.study._verdict import Interval, holm, paired_interval, verdict_word
from taskloom.tasks import Array, Recipe, Task

# Nets count in single precision: what two scores differ by below that is no gain.
ROUNDING = 1e-6


@dataclass(frozen=True)
class RecipeInfo:
    """What a report says of a recipe: see `Recipe` for the fields.

    `controls` has the labels of its controls in the study, by what they have in common with it.
    """

    label: str
    name: str
    family: str
    is_baseline: bool
    summary: str
    paper: str
    settings: dict[str, Any] = field(default_factory=dict)
    controls: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe, controls: Mapping[str, str] | None = None) -> RecipeInfo:
        """The information of a recipe."""
        known = (recipe.label, recipe.name, recipe.family, recipe.is_baseline, recipe.summary, recipe.paper)
        return cls(*known, recipe.settings(), dict(controls or {}))


@dataclass(frozen=True)
class Verdict:
    """One recipe on one task.

    Attributes:
        recipe: its label.
        task: its name.
        score: mean test score over seeds.
        baseline: label of the single-task baseline that it is held against; of several, the one that validation chose most
            often for this task.
        baseline_score: mean test score of the baseline.
        gain: mean paired difference; positive is better, whatever the metric's direction.
        low: lower end of the interval of the gain; None with fewer than three seeds.
        high: upper end.
        p_value: of no difference.
        p_corrected: for the number of tasks.
        word: `helped`, `hurt` or `undecided`.
    """

    recipe: str
    task: str
    score: float
    baseline: str
    baseline_score: float
    gain: float
    low: float | None
    high: float | None
    p_value: float
    p_corrected: float
    word: str


@dataclass(frozen=True)
class Summary:
    """One recipe over all tasks, and what it cost.

    Attributes:
        recipe: its label.
        baseline: label of its baseline; empty for a baseline.
        helped: number of tasks.
        hurt: number of tasks.
        undecided: number of tasks.
        gain: mean gain over tasks; None for a baseline, or where the tasks' metrics are not on one scale.
        low: lower end of its interval; None where unknown.
        high: upper end.
        failed: seeds on which it gave no model.
        seconds: median wall time of a fit, all candidates included.
        steps: median optimizer steps of the chosen model.
        total_steps: median optimizer steps of all candidates.
        peak_mb: median rise of memory while fitting.
        batches: median batches of the chosen model; None where there are none.
        trunk_flops: median floating-point operations of the chosen model's training in what tasks share; None: not counted.
    """

    recipe: str
    baseline: str
    helped: int
    hurt: int
    undecided: int
    gain: float | None
    low: float | None
    high: float | None
    failed: tuple[int, ...]
    seconds: float
    steps: int
    total_steps: int
    peak_mb: float
    batches: int | None = None
    trunk_flops: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Paired gains of one recipe: (S, K), 0 where they are rounding, and the baseline's scores they are held against."""

    scores: Array
    baseline_scores: Array
    gains: Array
    baselines: tuple[str, ...]
    test_ratio: Array


def compare(
    tasks: Sequence[Task], recipes: Sequence[RecipeInfo], units: Sequence[Unit], confidence: float
) -> tuple[list[Verdict], list[Summary]]:
    """Verdicts of all recipes that are no baselines, and summaries of all recipes."""
    by_recipe = {info.label: units_by_seed(units, info.label) for info in recipes}
    verdicts: list[Verdict] = []
    summaries = []
    for info in recipes:
        own = by_recipe[info.label]
        baselines = {b.label: by_recipe[b.label] for b in recipes if b.is_baseline and b.family == info.family}
        paired = None if info.is_baseline else pair(tasks, own, baselines)
        found = [] if paired is None else judge(info.label, tasks, paired, confidence, len(own))
        verdicts += found
        summaries.append(_summarise(info.label, tasks, paired, found, list(own.values()), confidence))
    return verdicts, summaries


def units_by_seed(units: Sequence[Unit], label: str) -> dict[int, Unit]:
    """The units of one recipe."""
    return {unit.seed: unit for unit in units if unit.recipe == label}


def pair(tasks: Sequence[Task], own: dict[int, Unit], baselines: dict[str, dict[int, Unit]]) -> Comparison | None:
    """Scores of a recipe beside those of its baseline on the seeds where both have a model."""
    labels = list(baselines)
    seeds = [seed for seed, unit in own.items() if not unit.error and any(not baselines[b][seed].error for b in labels)]
    if not seeds:
        return None
    scores = np.array([own[seed].scores for seed in seeds])
    reference, chosen = np.empty_like(scores), np.empty(scores.shape, dtype=np.int64)
    for i, seed in enumerate(seeds):
        alive = [b for b in labels if not baselines[b][seed].error]
        losses = np.array([baselines[b][seed].validation_loss for b in alive])
        # Among several baselines the validation rows choose; choosing by test score would favour the baseline.
        picks = losses.argmin(axis=0)
        candidates = np.array([baselines[b][seed].scores for b in alive])
        reference[i] = candidates[picks, np.arange(len(tasks))]
        chosen[i] = [labels.index(alive[pick]) for pick in picks]
    signs = np.array([1.0 if task.scorer.higher_is_better else -1.0 for task in tasks])
    floor = np.array([ROUNDING if task.scorer.unit_free else 0.0 for task in tasks])
    differences = np.where(np.isclose(scores, reference, rtol=ROUNDING, atol=floor), 0.0, signs * (scores - reference))
    test_ratio = np.mean([np.divide(own[seed].test_rows, own[seed].train_rows) for seed in seeds], axis=0)
    most = tuple(labels[int(np.bincount(chosen[:, t]).argmax())] for t in range(len(tasks)))
    return Comparison(scores, reference, differences, most, test_ratio)


def judge(label: str, tasks: Sequence[Task], paired: Comparison, confidence: float, n_seeds: int) -> list[Verdict]:
    """A verdict for each task; undecided where one of the two has no model on one of the seeds."""
    is_partial = len(paired.gains) < n_seeds
    intervals = [paired_interval(paired.gains[:, t], paired.test_ratio[t], confidence) for t in range(len(tasks))]
    corrected = holm([interval.p_value for interval in intervals])
    verdicts = []
    for t, (task, interval) in enumerate(zip(tasks, intervals, strict=True)):
        # What is left after failed fits would flatter whoever failed.
        word = "undecided" if is_partial else verdict_word(interval, corrected[t], confidence)
        low, high = _ends(interval)
        mean_score, mean_reference = float(paired.scores[:, t].mean()), float(paired.baseline_scores[:, t].mean())
        verdicts.append(
            Verdict(
                label, task.name, mean_score, paired.baselines[t], mean_reference, interval.mean,
                low, high, interval.p_value, float(corrected[t]), word,
            )
        )  # fmt: skip
    return verdicts


def overall(
    tasks: Sequence[Task], paired: Comparison | None, confidence: float
) -> tuple[float | None, float | None, float | None]:
    """The mean gain over tasks and its interval; None where the tasks' metrics are not on one scale."""
    if paired is None or len({task.metric for task in tasks}) > 1 or not tasks[0].scorer.unit_free:
        return None, None, None
    interval = paired_interval(paired.gains.mean(axis=1), float(paired.test_ratio.mean()), confidence)
    return interval.mean, *_ends(interval)


def _summarise(
    label: str, tasks: Sequence[Task], paired: Comparison | None, verdicts: Sequence[Verdict], units: Sequence[Unit],
    confidence: float,
) -> Summary:  # fmt: skip
    words = [verdict.word for verdict in verdicts]
    gain, low, high = overall(tasks, paired, confidence)
    finished = [unit for unit in units if not unit.error] or list(units)
    batches, flops = _median([unit.batches for unit in finished]), _median([unit.trunk_flops for unit in finished])
    return Summary(
        recipe=label,
        baseline="" if paired is None else Counter(paired.baselines).most_common(1)[0][0],
        helped=words.count("helped"),
        hurt=words.count("hurt"),
        undecided=words.count("undecided"),
        gain=gain,
        low=low,
        high=high,
        failed=tuple(unit.seed for unit in units if unit.error),
        seconds=float(np.median([unit.seconds for unit in finished])),
        steps=int(np.median([unit.steps for unit in finished])),
        total_steps=int(np.median([unit.total_steps for unit in finished])),
        peak_mb=float(np.median([unit.peak_mb for unit in finished])),
        batches=None if batches is None else int(batches),
        trunk_flops=flops,
    )


def _median(values: Sequence[float | None]) -> float | None:
    """None where one is unknown."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known and len(known) == len(values) else None


def _ends(interval: Interval) -> tuple[float | None, float | None]:
    return (interval.low, interval.high) if np.isfinite(interval.low) else (None, None)
