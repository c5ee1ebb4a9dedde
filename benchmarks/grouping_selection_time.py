"""How long it takes to choose groups of nine tasks, trainings included, and how well the groups that were planted are found.

Nine binary tasks in three groups, as in `grouping.py`. Every training, of all tasks, of one and of two, takes 800 steps and has
no end of its own, but for the short joint runs; every measure ends with an exact choice at a budget of 3 nets. TAG looks ahead
every 10 steps of the joint run. HOA trains 9 single nets and 36 pairs: one after another, or side by side; or side by side and
stopped early, for better gains. Seconds are of the processor, one thread: the clock's depend on who else is at work. Rivals run
in turn with each seed, and ratios are taken within it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from time import process_time
from typing import Any

import numpy as np
import torch

from _grouping_runs import pair_members
from _timing import publish
from grouping import NET, STEPS, ari, planted
from taskloom.deep import FitOptions, GroupFitOptions, fit
from taskloom.relate import (
    Affinity,
    MeasureOptions,
    gram,
    labels,
    lookahead,
    samplewise,
    samplewise_cosine,
    select,
    train_groups,
)
from taskloom.relate._recipe import of_tasks
from taskloom.relate._trained import pair_values
from taskloom.tasks import TaskData, split_rows

SHAPE, BUDGET, SEEDS = (3, 3, 4), 3, range(100, 106)
# Nets one after another take half a minute: with the first seeds alone.
SLOW_SEEDS = SEEDS[:3]
HOW = MeasureOptions(steps=STEPS, split_half=False, accelerator="cpu")
TAG, HOA, HOA_STOPPED, HOA_LOOP = "TAG", "HOA, side by side", "HOA, side by side, stopped early", "HOA, one after another"
Parts = tuple[TaskData, TaskData]
Measure = Callable[[Parts, MeasureOptions], Affinity]


def parts_of(seed: int, *, mixed: bool) -> tuple[Parts, np.ndarray]:
    """Three quarters of the rows for training, a quarter on which pairs are judged; and the group of each task."""
    data, groups = planted(SHAPE, mixed=mixed, own=False, seed=seed)
    split = split_rows(data, seed, (0.75, 0.25, 0.0))
    return (data.take(split.train), data.take(split.validation)), groups


def hoa(parts: Parts, how: MeasureOptions, *, stops: bool = False) -> Affinity:
    """Gains of pairs that are trained side by side; `stops`: looked at every 20 steps, stopped after 8 looks without gain."""
    options = GroupFitOptions(
        learning_rate=how.learning_rate,
        batch_size=how.batch_size,
        max_steps=how.steps,
        validate_every=20 if stops else how.steps,
        patience=8,
        seeds=(how.seed,),
        accelerator="cpu",
    )
    scores = train_groups(NET, *parts, pair_members(parts[0].n_tasks), options=options)
    return Affinity(pair_values(scores), scores.tasks, HOA, zero=0.0)


def hoa_loop(parts: Parts, how: MeasureOptions) -> Affinity:
    """The same one net at a time."""
    options = FitOptions(
        learning_rate=how.learning_rate,
        batch_size=how.batch_size,
        max_steps=how.steps,
        validate_every=how.steps,
        accelerator="cpu",
    )
    names, K = [task.name for task in parts[0].tasks], parts[0].n_tasks

    def losses(members: list[str]) -> np.ndarray:
        train, validation = (of_tasks(part, members) for part in parts)
        torch.manual_seed(how.seed)
        net = NET(train.X.shape[1:], train.tasks)
        return fit(net, train, validation, options=options, seed=how.seed).validation_loss

    alone, gains = np.array([losses([name])[0] for name in names]), np.zeros((K, K))
    for i, j in zip(*np.triu_indices(K, 1), strict=True):
        gains[i, j], gains[j, i] = 1 - losses([names[i], names[j]]) / alone[[i, j]]
    return Affinity(gains, names, HOA_LOOP, zero=0.0)


def short(steps: int) -> Measure:
    """`samplewise_cosine` after a joint run of so many steps."""
    return lambda parts, how: samplewise_cosine(NET, parts[0], replace(how, steps=steps))


MEASURES: dict[str, Measure] = {
    "labels": lambda parts, how: labels(None, parts[0], how),
    "samplewise": lambda parts, how: samplewise(NET, parts[0], how),
    "samplewise_cosine, 50 steps": short(50),
    "samplewise_cosine, 100 steps": short(100),
    "samplewise_cosine, 200 steps": short(200),
    "samplewise_cosine, 400 steps": short(400),
    "samplewise_cosine, 800 steps": short(STEPS),
    "gram": lambda parts, how: gram(NET, parts[0], how),
    TAG: lambda parts, how: lookahead(NET, parts[0], how),
    HOA: hoa,
    HOA_STOPPED: lambda parts, how: hoa(parts, how, stops=True),
    HOA_LOOP: hoa_loop,
}


def main() -> None:
    """Seconds and what was found, of positive and of mixed signs."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in MEASURES}
    found: dict[str, dict[bool, list[float]]] = {name: {False: [], True: []} for name in MEASURES}
    warnings.filterwarnings("ignore", message="Graph is not fully connected")
    for measure in list(MEASURES.values())[:-1]:
        measure(parts_of(99, mixed=False)[0], replace(HOW, steps=40))
    for seed in SEEDS:
        for mixed in (False, True):
            parts, groups = parts_of(seed, mixed=mixed)
            for name, measure in MEASURES.items():
                if name == HOA_LOOP and (mixed or seed not in SLOW_SEEDS):
                    continue
                start = process_time()
                affinity = measure(parts, replace(HOW, seed=seed))
                select(affinity, BUDGET)
                if not mixed:
                    seconds[name].append(process_time() - start)
                found[name][mixed].append(ari(affinity, groups))
    publish("grouping_selection_time", "Seconds of choosing groups of 9 tasks", [row(n, seconds, found[n]) for n in MEASURES])


def row(name: str, seconds: dict[str, list[float]], found: dict[bool, list[float]]) -> dict[str, Any]:
    """Of a measure: medians of seconds, of ratios, and mean adjusted Rand indices."""

    def faster(other: str) -> float:
        return float(np.median([a / b for a, b in zip(seconds[other], seconds[name], strict=False)]))

    return {
        "measure": name,
        "seconds": float(np.median(seconds[name])),
        "TAG / this (wanted 5)": faster(TAG),
        "HOA, side by side / this (wanted 20)": faster(HOA),
        "HOA, stopped early / this": faster(HOA_STOPPED),
        "HOA, one after another / this": faster(HOA_LOOP),
        "adjusted Rand index, positive": float(np.mean(found[False])),
        "mixed": float(np.mean(found[True])) if found[True] else "",
    }


if __name__ == "__main__":
    main()
