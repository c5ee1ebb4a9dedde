"""One unit of `grouping_end_to_end.py`: a set of tasks with a seed, all ways to group them, all groups trained.

Letters: K tasks, G groups, b nets that a budget buys.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from _grouping_data import load
from taskloom.deep import MLP, GroupFitOptions
from taskloom.relate import (
    Affinity,
    AffinityWarning,
    Groups,
    GroupScores,
    MeasureOptions,
    joint_run,
    labels,
    samplewise,
    samplewise_cosine,
    select,
    train_groups,
)
from taskloom.relate._gram import GramWatch
from taskloom.relate._lookahead import LookaheadWatch
from taskloom.relate._trained import pair_values
from taskloom.relate._verify import VerifyOptions, refine
from taskloom.tasks import TaskData

BUDGETS = (2, 3, 4)
# The first is that whose seconds are told.
VERIFIED_ORDER = (3, 2, 4)
MANY = 12
PARTS = ("validation", "test")
MEASURES = ("HOA", "TAG", "samplewise", "samplewise_cosine", "gram", "labels")
ALL_IN_ONE, RANDOM, VERIFIED = "all-in-one", "random", "verified"
METHODS = (ALL_IN_ONE, RANDOM, *MEASURES, VERIFIED)
# What `refine` starts from.
PRIOR = "samplewise_cosine"


@dataclass(frozen=True)
class Settings:
    """What every unit has in common; those of another file of runs are not mixed with these.

    Attributes:
        hidden: widths of the layers.
        steps: of each training at the most.
        rates: tried for every net, single ones included.
        batch: rows of a step where rows are shared.
        own_batch: rows of each task in a step where it has rows of its own; of many tasks half as many.
        look_every: steps between two looks at the validation loss.
        patience: looks without improvement.
        measuring_steps: of the joint run that measures look at.
        draws: random groupings for each seed and budget.
        verified: groups that `refine` may train for a budget.
    """

    hidden: tuple[int, ...] = (32, 32)
    steps: int = 1000
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    batch: int = 64
    own_batch: int = 32
    look_every: int = 20
    patience: int = 8
    measuring_steps: int = 800
    draws: int = 2
    verified: int = 12

    def batch_of(self, train: TaskData) -> int:
        """Rows of a step."""
        return self.batch if train.is_shared else self.own_batch // (2 if train.n_tasks > MANY else 1)

    def options(self, train: TaskData, seed: int) -> GroupFitOptions:
        """Of all trainings."""
        return GroupFitOptions(
            max_steps=self.steps,
            batch_size=self.batch_of(train),
            validate_every=self.look_every,
            patience=self.patience,
            seeds=(seed,),
            rates=self.rates,
            accelerator="cpu",
        )

    def measuring(self, train: TaskData, seed: int) -> MeasureOptions:
        """Of all measures."""
        steps, batch = self.measuring_steps, self.batch_of(train)
        return MeasureOptions(steps=steps, batch_size=batch, seed=seed, split_half=False, accelerator="cpu")


def timed(run: Any) -> tuple[Any, float]:
    """What a call gives, and its seconds of the processor: the clock's depend on who else is at work."""
    start = process_time()
    return run(), process_time() - start


def measured(net: MLP, train: TaskData, how: MeasureOptions) -> tuple[dict[str, Affinity], dict[str, float]]:
    """Affinities by all measures that train no pairs, and the seconds each would take on its own."""
    watches = {"TAG": LookaheadWatch(how.every), "gram": GramWatch(how.every)}
    clock = perf_counter()
    run, cpu = timed(lambda: joint_run(net, train, how, list(watches.values())))
    rate = cpu / (perf_counter() - clock)
    joint = run.cost.seconds * rate
    found, seconds = {}, {}
    for name, watch in watches.items():
        found[name], seconds[name] = watch.affinity(), joint + watch.cost.seconds * rate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AffinityWarning)
        found["samplewise"], seconds["samplewise"] = timed(lambda: samplewise(net, train, how))
        found["samplewise_cosine"], spent = timed(lambda: samplewise_cosine(run.net, train, how))
        seconds["samplewise_cosine"] = joint + spent
        found["labels"], seconds["labels"] = timed(lambda: labels(None, train, how, fill=not train.is_shared))
    return found, seconds


def pair_members(K: int) -> np.ndarray:
    """(K (K - 1) / 2, K) all pairs."""
    first, second = np.triu_indices(K, 1)
    members = np.zeros((len(first), K), dtype=bool)
    members[np.arange(len(first)), first] = members[np.arange(len(first)), second] = True
    return members


def pair_gains(scores: GroupScores, *, test: bool = False) -> np.ndarray:
    """(K, K) gain of the row's task from the column's, 0 on the diagonal; of one seed."""
    return pair_values(replace(scores, losses=scores.test_losses) if test else scores)


def random_groups(tasks: tuple[str, ...], budget: int, rng: np.random.Generator) -> Groups:
    """Each task in one of b groups by chance, none of them empty."""
    K = len(tasks)
    of = np.concatenate([np.arange(budget), rng.integers(0, budget, K - budget)])[rng.permutation(K)]
    sets = tuple(tuple(task for task, g in zip(tasks, of, strict=True) if g == place) for place in range(budget))
    return Groups(tasks, sets, dict(zip(tasks, of.tolist(), strict=True)), dict.fromkeys(tasks, float("nan")))


def run_unit(name: str, seed: int, settings: Settings) -> dict[str, Any]:
    """Everything measured and trained for a set of tasks with one seed."""
    train, validation, test = load(name, seed)
    net, tasks, K = MLP(settings.hidden), tuple(task.name for task in train.tasks), train.n_tasks
    options = settings.options(train, seed)
    affinities, seconds = measured(net, train, settings.measuring(train, seed))
    scores, seconds["HOA"] = timed(lambda: train_groups(net, train, validation, pair_members(K), options=options, test=test))
    affinities["HOA"] = Affinity(pair_gains(scores), tasks, "HOA", zero=0.0)
    chosen, selecting = chosen_groups(affinities, np.random.default_rng(seed), settings.draws)
    sets = list(dict.fromkeys(each for found in chosen.values() for groups in found for each in groups.sets))
    scores = train_groups(net, train, validation, sets, options=options, test=test, known=scores)
    gains = {part: {key: gain_of(scores, found, test=part == "test") for key, found in chosen.items()} for part in PARTS}
    verified, spent = verified_groups(
        lambda members, known: train_groups(net, train, validation, members, options=options, test=test, known=known),
        affinities[PRIOR],
        settings.verified,
    )
    seconds[VERIFIED], selecting[VERIFIED] = seconds[PRIOR], spent
    for budget, (groups, judged) in verified.items():
        chosen[f"{VERIFIED}, {budget}"] = [groups]
        for part in PARTS:
            gains[part][f"{VERIFIED}, {budget}"] = gain_of(judged, [groups], test=part == "test")
    return {
        "set": name,
        "seed": seed,
        "settings": asdict(settings),
        "affinities": {measure: affinity.gains.tolist() for measure, affinity in affinities.items()},
        "pair gains": {part: pair_gains(scores, test=part == "test").tolist() for part in PARTS},
        "seconds": {method: seconds[method] + selecting[method] for method in seconds},
        "groups": {key: [[*map(list, each.sets)] for each in found] for key, found in chosen.items()},
        "gains": gains,
        "single loss": float(np.mean(single_losses(scores, test=True))),
        "nets": len(scores.members),
    }


def chosen_groups(
    affinities: dict[str, Affinity], rng: np.random.Generator, draws: int
) -> tuple[dict[str, list[Groups]], dict[str, float]]:
    """Groups by method and budget, and the mean seconds of a choice."""
    tasks = tuple(affinities["HOA"].tasks)
    together = Groups(tasks, (tasks,), dict.fromkeys(tasks, 0), dict.fromkeys(tasks, float("nan")))
    chosen, selecting = {}, dict.fromkeys(MEASURES, 0.0)
    for budget in BUDGETS:
        chosen[f"{ALL_IN_ONE}, {budget}"] = [together]
        chosen[f"{RANDOM}, {budget}"] = [random_groups(tasks, budget, rng) for _ in range(draws)]
        for measure in MEASURES:
            groups, spent = timed(lambda m=measure, b=budget: select(affinities[m].filled(), b))
            chosen[f"{measure}, {budget}"] = [groups]
            selecting[measure] += spent / len(BUDGETS)
    return chosen, selecting


def verified_groups(
    train: Callable[[np.ndarray, GroupScores | None], GroupScores], prior: Affinity, most: int
) -> tuple[dict[int, tuple[Groups, GroupScores]], float]:
    """Groups that `refine` ends with for each budget, with the scores they were judged by; and its seconds at the first budget.

    What was trained for one budget is not trained again for the next.
    """
    out: dict[int, tuple[Groups, GroupScores]] = {}
    known: list[GroupScores] = []

    def measure(members: np.ndarray) -> np.ndarray:
        scores = train(members, known.pop() if known else None)
        known.append(scores)
        place = {row.tobytes(): g for g, row in enumerate(scores.members)}
        return scores.gains[[place[row.tobytes()] for row in members]]

    options, seconds = VerifyOptions(most=most, per_round=max(most // 2, 4)), []
    for budget in VERIFIED_ORDER:
        found, spent = timed(lambda b=budget: refine(measure, prior.filled(), b, options=options))
        seconds.append(spent)
        out[budget] = found.groups, known[0]
    return out, seconds[0]


def single_losses(scores: GroupScores, *, test: bool) -> np.ndarray:
    """(K,) losses of single nets."""
    tasks = scores.tasks
    alone = Groups(
        tasks, tuple((task,) for task in tasks), {task: t for t, task in enumerate(tasks)}, dict.fromkeys(tasks, 0.0)
    )
    return scores.losses_of(alone, test=test)[0]


def gain_of(scores: GroupScores, found: list[Groups], *, test: bool) -> float:
    """Mean over tasks, and over groupings, of 1 - loss / loss of the single net."""
    losses = np.array([scores.losses_of(groups, test=test)[0] for groups in found])
    return float(np.mean(1 - losses / single_losses(scores, test=test)))


def read_runs(path: Path, settings: Settings) -> dict[tuple[str, int], dict[str, Any]]:
    """What is in the file with these settings, by set and seed; a line that was cut off by a kill is left out."""
    found, own = {}, json.loads(json.dumps(asdict(settings)))
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            run = json.loads(line)
        except json.JSONDecodeError:
            continue
        if run["settings"] == own:
            found[run["set"], run["seed"]] = run
    return found
