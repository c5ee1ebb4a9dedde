"""Single trainings of `selective.py`: what each method is, how it is trained, and the file of what has been run.

Letters: K tasks, M groups of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from _selective_settings import SETTINGS, QuickLosses, Setting, SingleNets, TrunkAndHeads
from taskloom.deep import (
    FixedGroups,
    GroupPasses,
    RandomGroups,
    RepeatedStep,
    SelectiveGroups,
    SelectiveOptions,
    Singletons,
)

WARMUP, BETA, REGROUP_EVERY, POWER = 101, 0.01, 5, 0.9
SINGLE, GUIDE = "single tasks", "selective"
STILL = ", beta1 0"


@dataclass(frozen=True)
class Experiment:
    """What is trained with which methods: the setting, shared rows or `own_rows`, the optimizer, rates, batches."""

    name: str
    setting: str
    methods: tuple[str, ...]
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    batches: int = 1000
    rows: int = 64
    own_rows: bool = False
    optimizer: str = "Adam"


@lru_cache(maxsize=2)
def setting_of(name: str, seed: int) -> Setting:
    """The data, made once for all methods."""
    return SETTINGS[name](seed)


def options_of(method: str, *, own_rows: bool, seed: int) -> SelectiveOptions:
    """Of a selective method, by its name."""
    kinds: dict[str, dict[str, Any]] = {
        GUIDE: {},
        "selective, median": {"preference": "median"},
        "selective, preference 0": {"preference": 0.0},
        "selective, first order": {"affinity": "first_order", "measure_every": REGROUP_EVERY},
        "selective, as published": {"compat": "official"},
    }
    return SelectiveOptions(**kinds[method], own_rows=own_rows, seed=seed)


def make_step(method: str, optimizer: torch.optim.Optimizer, setting: Setting, plan: Sequence[int], passes: GroupPasses) -> Any:
    """The update step of a method; `plan` are the numbers of updates that `selective` made in each batch."""
    K = setting.n_tasks
    makers: dict[str, Callable[[], Any]] = {
        "joint": lambda: RepeatedStep(optimizer, tasks=K, times=1, passes=passes),
        "joint, fresh batches": lambda: RepeatedStep(optimizer, tasks=K, times=1, passes=passes),
        "joint x M": lambda: RepeatedStep(optimizer, tasks=K, times=plan, passes=passes),
        "random groups": lambda: RandomGroups(optimizer, tasks=K, n_groups=plan, warmup=0, passes=passes),
        "planted groups": lambda: FixedGroups(optimizer, tasks=K, groups=setting.planted, warmup=WARMUP, passes=passes),
        "mixed groups": lambda: FixedGroups(optimizer, tasks=K, groups=setting.mixed, warmup=WARMUP, passes=passes),
        "each task alone": lambda: Singletons(optimizer, tasks=K, passes=passes),
    }
    if method in makers:
        return makers[method]()
    options = options_of(method, own_rows=passes.own_rows, seed=passes.seed)
    # The published code makes its first groups a batch later.
    warmup = WARMUP - 1 if options.compat else WARMUP
    return SelectiveGroups(optimizer, tasks=K, beta=BETA, warmup=warmup, regroup_every=REGROUP_EVERY, options=options)


def make_optimizer(net: Any, rate: float, kind: str, *, is_still: bool) -> torch.optim.Optimizer:
    """Adam or plain SGD; `is_still`: no momentum in the trunk."""
    trunk, heads = list(net.trunk.parameters()), list(net.heads)
    if kind == "SGD":
        return torch.optim.SGD([*trunk, *heads], lr=rate)
    # Fused, for small nets three times as fast on a CPU.
    groups = [{"params": trunk, "betas": (0.0, 0.999)}, {"params": heads}] if is_still else [*trunk, *heads]
    return torch.optim.Adam(groups, lr=rate, fused=True)


def draw_batches(n: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers of rows (batches, ...) out of as many shuffles of all rows as it takes."""
    wanted = int(np.prod(shape))
    shuffled = [torch.randperm(n, generator=generator)[: n - n % shape[-1]] for _ in range(wanted // (n - n % shape[-1]) + 1)]
    return torch.cat(shuffled)[:wanted].reshape(shape)


def train(experiment: Experiment, method: str, rate: float, seed: int, plan: Sequence[int]) -> dict[str, Any]:
    """One training: scores on test rows, costs, and what became of the groups."""
    setting = setting_of(experiment.setting, seed)
    base = method.removesuffix(STILL)
    torch.manual_seed(seed)
    net, start = TrunkAndHeads(setting), process_time()
    optimizer = make_optimizer(net, rate, experiment.optimizer, is_still=method.endswith(STILL))
    passes = GroupPasses(seed=seed, own_rows=experiment.own_rows)
    step = make_step(base, optimizer, setting, plan, passes)
    n_batches = experiment.batches * (len(setting.planted) if base == "joint, fresh batches" else 1)
    shape = (n_batches, setting.n_tasks, experiment.rows) if experiment.own_rows else (n_batches, experiment.rows)
    chosen = draw_batches(len(setting.train[0]), shape, torch.Generator().manual_seed(seed))
    made = []
    for b in range(n_batches):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - b / n_batches) ** POWER
        before = step.costs.updates
        step.step((own_losses if experiment.own_rows else shared_losses)(setting, net, chosen[b]))
        made.append(step.costs.updates - before)
    found = {"scores": setting.scores(net), "updates": step.costs.updates, "passes": step.costs.trunk_passes()}
    found |= {"seconds": process_time() - start, "plan": [[n, len(list(run))] for n, run in groupby(made)]}
    return found | (what_was_found(step, setting) if isinstance(step, SelectiveGroups) else {})


def shared_losses(setting: Setting, net: TrunkAndHeads, chosen: Tensor) -> Callable[[], Tensor]:
    """The closure of a batch in which each row has all labels."""
    rows, labels = setting.train[0][chosen], setting.train[1][chosen]
    weights = net.weights()
    return lambda: QuickLosses.apply(rows, labels, setting.is_binary, *weights)


def own_losses(setting: Setting, net: TrunkAndHeads, chosen: Tensor) -> Callable[[list[int] | None], Tensor]:
    """The closure of a batch (K, rows) in which each task has rows of its own."""
    K = setting.n_tasks
    rows, labels = setting.train[0][chosen], setting.train[1][chosen]

    def losses(members: list[int] | None) -> Tensor:
        tasks = torch.arange(K) if members is None else torch.tensor(members)
        outputs = net(rows[tasks].flatten(0, 1)).reshape(len(tasks), -1, K)
        at = tasks[:, None, None].expand(-1, outputs.shape[1], 1)
        mine = setting.losses(outputs.gather(2, at), labels[tasks].gather(2, at)).mean(dim=(1, 2))
        return mine if members is None else torch.full((K,), torch.nan).index_put((tasks,), mine)

    return losses


def train_singles(experiment: Experiment, rate: float, seed: int) -> dict[str, Any]:
    """A net for each task, on the same batches of rows with all labels."""
    setting = setting_of(experiment.setting, seed)
    torch.manual_seed(seed)
    net, start = SingleNets(setting), process_time()
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, fused=True)
    chosen = draw_batches(len(setting.train[0]), (experiment.batches, experiment.rows), torch.Generator().manual_seed(seed))
    for b in range(experiment.batches):
        optimizer.param_groups[0]["lr"] = rate * (1 - b / experiment.batches) ** POWER
        optimizer.zero_grad()
        rows, labels = setting.train[0][chosen[b]], setting.train[1][chosen[b]]
        setting.losses(net(rows), labels).mean(dim=0).sum().backward()
        optimizer.step()
    return {"scores": setting.scores(net), "updates": experiment.batches, "seconds": process_time() - start}


def what_was_found(step: SelectiveGroups, setting: Setting) -> dict[str, Any]:
    """Agreement of groups (adjusted Rand index) and of the map with the planted clusters."""
    same = np.equal.outer(setting.clusters, setting.clusters).astype(float)
    others = ~np.eye(setting.n_tasks, dtype=bool)

    def agreement(groups: list[list[int]]) -> float:
        labels = {k: g for g, members in enumerate(groups) for k in members}
        return float(adjusted_rand_score(setting.clusters, [labels[k] for k in range(setting.n_tasks)]))

    def likeness(affinity: np.ndarray) -> float:
        return float(np.corrcoef(np.nan_to_num(affinity)[others], same[others])[0, 1])

    indices = [agreement(groups) for _, groups, _ in step.history]
    return {
        "ari_first": indices[0] if indices else None,
        "ari_mean": float(np.mean(indices)) if indices else None,
        "ari_last": indices[-1] if indices else None,
        "map_first": likeness(step.history[0][2]) if indices else None,
        "map_last": likeness(step.affinity),
        "groups": float(np.mean([len(groups) for _, groups, _ in step.history])) if indices else None,
    }


def read_runs(path: Path) -> dict[tuple[str, str, float, int], dict[str, Any]]:
    """What is in the file, by experiment, method, rate and seed; a line that was cut off by a kill is left out."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            run = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[run["experiment"], run["method"], run["rate"], run["seed"]] = run
    return found


def run_unit(unit: tuple[Experiment, float, int, str]) -> int:
    """All methods of an experiment at one rate with one seed, but for those that are in the file; how many were run."""
    experiment, rate, seed, path = unit
    torch.set_num_threads(1)
    done, count = read_runs(Path(path)), 0
    for method in experiment.methods:
        if (experiment.name, method, rate, seed) in done:
            continue
        if method == SINGLE:
            found = train_singles(experiment, rate, seed)
        else:
            guide = done.get((experiment.name, GUIDE + STILL * method.endswith(STILL), rate, seed))
            plan = [max(n, 1) for n, times in guide["plan"] for _ in range(times)] if guide else [1]
            found = train(experiment, method, rate, seed, plan)
        run = {"experiment": experiment.name, "method": method, "rate": rate, "seed": seed, **found}
        done[experiment.name, method, rate, seed] = run
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")
        count += 1
    return count
