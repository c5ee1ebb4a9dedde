"""Joint nets of many groups trained side by side (`fit_groups`) against `fit` for one group after the other.

The rival trains nets with the heads of the group alone, as one would by hand, and does the same steps and looks; tests check
that both come to the same losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np
import torch

from _timing import publish, race, ratio
from taskloom.deep import MLP, FitOptions, GroupFitOptions, fit, fit_groups, new_net
from taskloom.tasks import TaskData

# Tasks, whether each has rows of its own, hidden layers.
SETTINGS = [(9, False, (32, 32)), (9, False, (64, 64)), (9, True, (32, 32)), (15, False, (32, 32))]
STEPS, LOOK_EVERY, SEEDS = 100, 10, (0, 1)


def make_data(K: int, own: bool, n: int) -> TaskData:
    """K regression tasks of 20 features."""
    rng = np.random.default_rng(0)
    if own:
        return TaskData.own_rows([(rng.normal(size=(n // 4, 20)), rng.normal(size=n // 4)) for _ in range(K)])
    return TaskData.shared_rows(rng.normal(size=(n, 20)), rng.normal(size=(n, K)))


def only(data: TaskData, chosen: Sequence[int]) -> TaskData:
    """Some of the tasks."""
    tasks = tuple(data.tasks[t] for t in chosen)
    if data.task_of_row is None:
        return TaskData(tasks, data.features, data.y[:, list(chosen)])
    kept = data.take(np.flatnonzero(np.isin(data.task_of_row, chosen)))
    return TaskData(
        tasks, kept.features, kept.y, np.searchsorted(chosen, kept.task_of_row if kept.task_of_row is not None else [])
    )


def one_by_one(hidden: tuple[int, ...], parts: Sequence[tuple[TaskData, TaskData]], options: FitOptions) -> None:
    """A fit for each group and seed."""
    for train, validation in parts:
        for seed in SEEDS:
            net = new_net(MLP(hidden), train.X.shape[1:], train.tasks, seed)
            fit(net, train, validation, options=options, seed=seed)


def main() -> None:
    """Run all settings: all pairs of tasks and all tasks alone."""
    torch.set_num_threads(1)
    rows = []
    for K, own, hidden in SETTINGS:
        train, validation = make_data(K, own, 1000), make_data(K, own, 300)
        groups = [*((t,) for t in range(K)), *combinations(range(K), 2)]
        members = np.array([[t in group for t in range(K)] for group in groups])
        how = {"max_steps": STEPS, "validate_every": LOOK_EVERY, "patience": 10_000, "accelerator": "cpu"}
        parts = [(only(train, group), only(validation, group)) for group in groups]
        seconds = race(
            {
                "side by side": partial(
                    fit_groups, MLP(hidden), train, validation, members, options=GroupFitOptions(**how, seeds=SEEDS)
                ),
                "one by one": partial(one_by_one, hidden, parts, FitOptions(**how)),
            },
            rounds=3,
        )
        found, nets = ratio(seconds, "one by one", "side by side"), len(groups) * len(SEEDS)
        median = float(np.median(seconds["side by side"]))
        rows.append(
            {
                "nets": nets,
                "tasks": K,
                "rows": "own" if own else "shared",
                "hidden": "-".join(map(str, hidden)),
                "ms a net and 100 steps, side by side": 1e3 * median / nets * 100 / STEPS,
                "one by one / side by side": found["median"],
                "least": found["least"],
            }
        )
    publish("group_training", "Joint nets of all pairs and single tasks, side by side (batch 64, one thread)", rows)


if __name__ == "__main__":
    main()
