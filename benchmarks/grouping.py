"""Which measures find planted groups of tasks, and what they cost beside the joint run that they look at.

Binary tasks in groups of equal size; those of a group read the same few hidden features of a row, each with weights of its
own. With positive weights their labels agree; with signs at random tasks need the same features all the same. The more
features, the harder: with four and with six of them. Clusters are spectral, and held against the groups by the adjusted Rand
index (1: the groups, 0: chance). All measures of one seed look at the same joint run; its learning rate and the numbers of
hidden features were chosen on other seeds.
"""

from __future__ import annotations

import resource
import warnings
from collections.abc import Callable
from itertools import product
from time import perf_counter
from typing import Any

import numpy as np
import torch
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from _timing import publish, race, ratio
from taskloom.deep import MLP, SharedBottom
from taskloom.relate._affinity import Affinity
from taskloom.relate._datamap import DatamapWatch
from taskloom.relate._gradtag import gradtag
from taskloom.relate._gram import GramWatch
from taskloom.relate._joint_run import Watch, joint_run
from taskloom.relate._labels import labels
from taskloom.relate._lookahead import LookaheadWatch
from taskloom.relate._options import AffinityWarning, MeasureOptions
from taskloom.relate._probe import l1_distances
from taskloom.relate._readings import joint_view, loss_gradients
from taskloom.relate._rows import parts_of
from taskloom.relate._samplewise import samplewise
from taskloom.relate._samplewise_cosine import samplewise_cosine
from taskloom.relate._task2vec import task2vec
from taskloom.tasks import FeatureEncoder, Task, TaskData

SEEDS = range(6)
# Groups, tasks of each, hidden features of each.
SHAPES = ((3, 4, 4), (3, 4, 6), (6, 5, 4))
Shape = tuple[int, int, int]
D, ROWS, OWN_ROWS = 30, 1500, 300
NET = MLP((32, 32))
STEPS = 800
LENGTHS = (200, 400, 800, 1600, 3200)


def planted(shape: Shape, *, mixed: bool, own: bool, seed: int) -> tuple[TaskData, np.ndarray]:
    """Tasks on shared rows, or each with rows of its own, and the group of each."""
    rng = np.random.default_rng(seed)
    n_groups, size, hidden = shape
    groups = np.repeat(np.arange(n_groups), size)
    directions = rng.normal(size=(n_groups, D, hidden)) / np.sqrt(D)
    weights = rng.uniform(0.5, 1.5, size=(len(groups), hidden))
    if mixed:
        weights *= rng.choice([-1, 1], size=weights.shape)
    tasks = [Task(f"g{g}t{t}", "binary") for t, g in enumerate(groups)]

    def of_task(X: np.ndarray, t: int) -> np.ndarray:
        score = np.tanh(2 * X @ directions[groups[t]]) @ weights[t]
        return (score > np.median(score)).astype(float)

    if own:
        rows = [rng.normal(size=(OWN_ROWS, D)) for _ in groups]
        data = TaskData.own_rows([(X, of_task(X, t)) for t, X in enumerate(rows)], tasks)
    else:
        X = rng.normal(size=(ROWS, D))
        data = TaskData.shared_rows(X, np.stack([of_task(X, t) for t in range(len(groups))], axis=1), tasks)
    return FeatureEncoder.fit(data.features).encode(data), groups


def ari(affinity: Affinity, groups: np.ndarray) -> float:
    clusters = SpectralClustering(int(groups.max()) + 1, affinity="precomputed", random_state=0)
    return float(adjusted_rand_score(groups, clusters.fit_predict(affinity.similarity())))


def measured(data: TaskData, options: MeasureOptions) -> tuple[dict[str, tuple[Affinity, float]], float]:
    """Each measure with its own seconds, and those of the joint run."""
    watches: dict[str, Watch] = {"lookahead": LookaheadWatch(), "gram": GramWatch(), "gram, cosine": GramWatch(cosine=True)}
    if data.is_shared:
        watches["datamap"] = DatamapWatch()
    run = joint_run(NET, data, options, list(watches.values()))
    found = {
        "labels": labels(None, data, options, fill=not data.is_shared),
        "samplewise": samplewise(NET, data, options),
        "samplewise, signs left out": samplewise(NET, data, options, sign_invariant=True),
        "samplewise_cosine": samplewise_cosine(run.net, data, options),
        "samplewise_cosine, signed": samplewise_cosine(run.net, data, options, signed=True),
        **{name: watch.affinity() for name, watch in watches.items()},
        "task2vec": task2vec(run.net, data, options),
    }
    # Its many regressions are slow where there are many tasks.
    if data.n_tasks <= 12:
        found["gradtag"] = gradtag(run.net, data, options)
    return {name: (affinity, affinity.cost.seconds) for name, affinity in found.items()}, run.cost.seconds


def groups_found() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of scores, and rows of costs of the suites with shared rows."""
    scores: dict[tuple[str, Shape], dict[str, list[float]]] = {}
    costs: dict[Shape, list[dict[str, float]]] = {shape: [] for shape in SHAPES}
    for shape, own, mixed, seed in product(SHAPES, (False, True), (False, True), SEEDS):
        data, groups = planted(shape, mixed=mixed, own=own, seed=seed)
        found, seconds = measured(data, MeasureOptions(steps=STEPS, seed=seed))
        kind = f"{'own' if own else 'shared'}, {'mixed' if mixed else 'positive'}"
        for name, (affinity, _) in found.items():
            scores.setdefault((name, shape), {}).setdefault(kind, []).append(ari(affinity, groups))
        if not own:
            costs[shape].append({"joint run": seconds, **{name: spent for name, (_, spent) in found.items()}})
    kinds = list(next(iter(scores.values())))
    table = [
        {"tasks": f"{m} x {k}, {h} features", "measure": name}
        | {kind: float(np.mean(found.get(kind, [np.nan]))) for kind in kinds}
        for (name, (m, k, h)), found in sorted(scores.items(), key=lambda item: item[0][1])
    ]
    return table, [_cost_row(shape, runs) for shape, runs in costs.items()]


def longer_runs() -> list[dict[str, Any]]:
    """Mixed signs on shared rows, after joint runs of growing length."""
    rows = []
    for shape, steps in product(SHAPES, LENGTHS):
        found: dict[str, list[float]] = {"samplewise_cosine": [], "lookahead": []}
        for seed in SEEDS:
            data, groups = planted(shape, mixed=True, own=False, seed=seed)
            options, watch = MeasureOptions(steps=steps, seed=seed), LookaheadWatch()
            run = joint_run(NET, data, options, [watch])
            found["samplewise_cosine"].append(ari(samplewise_cosine(run.net, data, options), groups))
            found["lookahead"].append(ari(watch.affinity(), groups))
        shown = {name: float(np.mean(scores)) for name, scores in found.items()}
        rows.append({"tasks": f"{shape[0]} x {shape[1]}, {shape[2]} features", "steps": steps} | shown)
    return rows


def _cost_row(shape: Shape, runs: list[dict[str, float]]) -> dict[str, Any]:
    def share(one: str, other: str) -> float:
        return float(np.median([run[one] / run[other] for run in runs]))

    return {
        "tasks": f"{shape[0]} x {shape[1]}, {shape[2]} features",
        "joint run, s": float(np.median([run["joint run"] for run in runs])),
        "lookahead, s": float(np.median([run["lookahead"] for run in runs])),
        "samplewise_cosine, s": float(np.median([run["samplewise_cosine"] for run in runs])),
        "samplewise, s": float(np.median([run["samplewise"] for run in runs])),
        "lookahead / samplewise_cosine (wanted 50)": share("lookahead", "samplewise_cosine"),
        "joint run / samplewise (wanted 100)": share("joint run", "samplewise"),
        "lookahead / gram": share("lookahead", "gram"),
    }


def closed_form(K: int = 14, n: int = 512) -> list[dict[str, Any]]:
    """Distances of the gradients of rows: the closed form against vmap(jacrev)."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 103)).astype(np.float32)
    Y = (X @ rng.normal(size=(103, K)) > 0).astype(float)
    data = TaskData.shared_rows(X, Y, [Task(f"t{k}", "binary") for k in range(K)])
    torch.manual_seed(0)
    net = SharedBottom(103, data.tasks, (256, 256))
    x, y = torch.tensor(X), torch.tensor(Y, dtype=torch.float32)
    view, rows, kept = joint_view(net, data), np.arange(n), {}
    trunk = {name: weight.detach() for name, weight in net.named_parameters() if name.startswith("encoder")}
    rest = {name: weight.detach() for name, weight in net.named_parameters() if name not in trunk}

    def losses(moved: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        z = functional_call(net, {**rest, **moved}, (row.unsqueeze(0),))[0]
        return torch.nn.functional.softplus(z) - label * z

    def slow() -> None:
        total = torch.zeros(K, K)
        for part in parts_of(rows, 1 << 26, K * sum(weight.numel() for weight in trunk.values())):
            jac = vmap(jacrev(losses), in_dims=(None, 0, 0))(trunk, x[part], y[part])
            total += l1_distances(torch.cat([g.flatten(2) for g in jac.values()], dim=2)).sum(dim=0)
        kept["slow"] = total / n

    def fast() -> None:
        total = torch.zeros(K, K)
        for part in parts_of(rows, 1 << 24, K * (view.probe.size + K)):
            pull: Callable[[Tensor], Tensor] = lambda out, part=part: view.reading.back(  # noqa: E731
                loss_gradients(view.reading.outputs(out), y[part], data.tasks)
            )
            total += l1_distances(view.probe.stand_ins(x[part], pull, norm=1)).sum(dim=0)
        kept["fast"] = total / n

    seconds = race({"closed form": fast, "vmap(jacrev)": slow}, rounds=3)
    off = ~torch.eye(K, dtype=torch.bool)
    return [
        {
            "K": K,
            "n": n,
            "P": sum(weight.numel() for weight in trunk.values()),
            "closed form, s": float(np.median(seconds["closed form"])),
            "vmap(jacrev), s": float(np.median(seconds["vmap(jacrev)"])),
            "ratio (wanted 50)": ratio(seconds, "vmap(jacrev)", "closed form")["median"],
            "greatest relative difference": float(((kept["fast"] - kept["slow"]).abs() / kept["slow"])[off].max()),
        }
    ]


def scale(K: int = 500, n: int = 512) -> list[dict[str, Any]]:
    """Hundreds of tasks; wanted: 60 s and 4 GB."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 100))
    Y = (X @ rng.normal(size=(100, K)) > 0).astype(float)
    data = TaskData.shared_rows(X, Y, [Task(f"t{k}", "binary") for k in range(K)])
    options, rows = MeasureOptions(n_rows=n), []
    net = SharedBottom(100, data.tasks, (256, 256))
    for name, run in {
        "samplewise": lambda: samplewise(MLP((256, 256)), data, options),
        "samplewise_cosine, without the joint run": lambda: samplewise_cosine(net, data, options),
    }.items():
        start = perf_counter()
        run()
        # The greatest of the process so far, libraries included.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append({"K": K, "n": n, "measure": name, "seconds": perf_counter() - start, "peak memory, GB": peak})
    return rows


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", AffinityWarning)
    publish("grouping_scale", "Hundreds of tasks, MLP 256-256", scale())
    scores, costs = groups_found()
    publish("grouping", f"Adjusted Rand index, mean of {len(SEEDS)} seeds, joint run of {STEPS} steps", scores)
    publish("grouping_costs", "Seconds beside those of the joint run, medians", costs)
    publish("grouping_lengths", f"Mixed signs after joint runs of growing length, mean of {len(SEEDS)} seeds", longer_runs())
    publish("grouping_closed_form", "Distances of the gradients of rows, MLP 103-256-256", closed_form())


if __name__ == "__main__":
    main()
