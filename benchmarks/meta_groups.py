"""Groups of tasks as task sets of meta-learning: an initialisation for each group against one for all.

That grouping by single rows serves gradient-based meta-learning as well is said by the paper (Thakur et al., TPAMI 2025); its
experiments are not known to us, and this one is ours. Tasks are few-shot: digit a against digit b, the 45 pairs of
scikit-learn's digits, which of the two is called 1 drawn at random for each. Half of the images are for meta-training, half for
judging. An initialisation is learned by first-order MAML (Finn, Abbeel & Levine 2017), three inner steps; judged is the
accuracy on query images after five inner steps on a few images of each digit. Groups come from an affinity measured on the
images for meta-training, by spectral clustering; random ones have the sizes of the samplewise ones. All
initialisations take the same number of steps; `one for all` sees as many episodes in a step as that of one group, `one for
all, more episodes` as many as those of all groups together.

Intervals are over splits of the same images, corrected for that (Nadeau & Bengio 2003).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
from numpy.random import Generator
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from _timing import publish
from taskloom.deep import MLP
from taskloom.relate import MeasureOptions, cluster, joint_run, samplewise, samplewise_cosine
from taskloom.study import paired_interval
from taskloom.tasks import Task, TaskData

PAIRS = np.array(list(combinations(range(10), 2)))
SHOTS, QUERIES, JUDGED_ON = (1, 5), 15, 20
GROUPS, SEEDS = 4, 10
# Inner steps and their rate, inner steps when judged; steps of MAML and episodes of each.
RATE, INNER, JUDGED, OUTER, EPISODES = 0.5, 3, 5, 200, 8
NET = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
BASE = "one for all, more episodes"
Weights = dict[str, Tensor]
# Support images and labels, query images and labels, of tasks of any shape.
Episodes = tuple[Tensor, Tensor, Tensor, Tensor]
Draw = Callable[[np.ndarray, Generator], Episodes]


def loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(functional_call(NET, weights, (x,))[:, 0], y)


def adapt(weights: Weights, x: Tensor, y: Tensor, steps: int) -> Weights:
    """Some steps down the loss of the support images; first order: slopes are taken for constants."""
    for _ in range(steps):
        slopes = grad(loss)(weights, x, y)
        weights = {name: weight - RATE * slopes[name].detach() for name, weight in weights.items()}
    return weights


def query_loss(weights: Weights, episodes: Episodes) -> Tensor:
    """Mean over episodes of the loss after adapting."""
    one = vmap(lambda x, y, new_x, new_y: loss(adapt(weights, x, y, INNER), new_x, new_y))
    return one(*episodes).mean()


def meta_train(sets: list[np.ndarray], draw: Draw, n_episodes: int, seed: int) -> Weights:
    """An initialisation for each of G sets of tasks, side by side, out of one start; weights are (G, ...)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    for layer in NET:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    weights = {
        name: weight.detach().repeat(len(sets), *[1] * weight.ndim).requires_grad_() for name, weight in NET.named_parameters()
    }
    optimizer = torch.optim.Adam(weights.values(), lr=3e-3)
    for _ in range(OUTER):
        episodes = draw(np.stack([rng.choice(tasks, n_episodes) for tasks in sets]), rng)
        optimizer.zero_grad()
        vmap(query_loss)(weights, episodes).sum().backward()
        optimizer.step()
    return {name: weight.detach() for name, weight in weights.items()}


def accuracy(weights: Weights, episodes: Episodes) -> np.ndarray:
    """(K,) of each task, out of the weights (K, ...) with which it starts, and its episodes (K, B, ...)."""

    def correct(start: Weights, x: Tensor, y: Tensor, new_x: Tensor, new_y: Tensor) -> Tensor:
        outputs = functional_call(NET, adapt(start, x, y, JUDGED), (new_x,))[:, 0]
        return ((outputs > 0) == (new_y > 0.5)).double().mean()

    of_task = vmap(correct, in_dims=(None, 0, 0, 0, 0))
    return vmap(of_task)(weights, *episodes).mean(dim=1).numpy()


def drawer(pools: np.ndarray, images: np.ndarray, firsts: np.ndarray, shots: int) -> Draw:
    """Draws episodes: pools (10, m) rows of each digit, firsts (K,) whether the first digit of a pair is called 1."""

    def draw(tasks: np.ndarray, rng: Generator) -> Episodes:
        order = rng.random((*tasks.shape, 2, pools.shape[1])).argsort(axis=-1)[..., : shots + QUERIES]
        rows = np.take_along_axis(pools[PAIRS[tasks]], order, axis=-1)
        is_one = np.stack([firsts[tasks], ~firsts[tasks]], axis=-1)
        labels = np.repeat(is_one[..., None], rows.shape[-1], axis=-1)
        parts = []
        for part in (slice(0, shots), slice(shots, None)):
            parts += [images[rows[..., part]].reshape(*tasks.shape, -1, 64), labels[..., part].reshape(*tasks.shape, -1)]
        x, y, new_x, new_y = (torch.as_tensor(part, dtype=torch.float32) for part in parts)
        return x, y, new_x, new_y

    return draw


def groups_of(images: np.ndarray, digits: np.ndarray, firsts: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The group (K,) of each task by each way; a row has labels of the nine tasks that its digit is part of."""
    is_one = np.where(digits[:, None] == PAIRS[:, 0], firsts, np.where(digits[:, None] == PAIRS[:, 1], ~firsts, np.nan))
    data = TaskData.shared_rows(images, is_one, [Task(f"{a} or {b}", "binary") for a, b in PAIRS])
    options, net = MeasureOptions(seed=seed), MLP((40, 40))
    trained = joint_run(net, data, options).net
    affinities = {
        "samplewise": samplewise(net, data, options),
        "samplewise_cosine": samplewise_cosine(trained, data, options),
        "samplewise_cosine, signed": samplewise_cosine(trained, data, options, signed=True),
    }
    found = {name: cluster(affinity, GROUPS, seed=seed).labels for name, affinity in affinities.items()}
    return found | {"random groups": np.random.default_rng(seed).permutation(found["samplewise"])}


def run(seed: int, shots: tuple[int, ...]) -> list[dict[str, float]]:
    """Mean accuracy over the tasks of each way, for each number of support images."""
    digits = load_digits()
    rng = np.random.default_rng(seed)
    firsts = rng.random(len(PAIRS)) < 0.5
    half = min(np.bincount(digits.target)) // 2
    rows = np.stack([rng.permutation(np.flatnonzero(digits.target == c))[: 2 * half] for c in range(10)])
    train, test = rows[:, :half], rows[:, half:]
    seen = digits.data[train.ravel()]
    images = (digits.data - seen.mean(axis=0)) / seen.std()
    everything = np.arange(len(PAIRS))
    found = groups_of(images[train.ravel()], digits.target[train.ravel()], firsts, seed)
    ways = {"one for all": np.zeros(len(PAIRS), dtype=int), **found}
    scores = []
    for n in shots:
        draw = drawer(train, images, firsts, n)
        judged = drawer(test, images, firsts, n)(np.repeat(everything[:, None], JUDGED_ON, axis=1), np.random.default_rng(seed))
        sets = [np.flatnonzero(labels == g) for labels in ways.values() for g in np.unique(labels)]
        weights, more = meta_train(sets, draw, EPISODES, seed), meta_train([everything], draw, GROUPS * EPISODES, seed)
        of_ways, first = {BASE: accuracy(of_tasks(more, np.zeros(len(PAIRS), dtype=int)), judged)}, 0
        for name, labels in ways.items():
            places, group = np.unique(labels, return_inverse=True)
            of_ways[name] = accuracy(of_tasks(weights, first + group), judged)
            first += len(places)
        scores.append({name: float(each.mean()) for name, each in of_ways.items()})
    return scores


def of_tasks(weights: Weights, place: np.ndarray) -> Weights:
    """The initialisation of each task."""
    return {name: weight[place] for name, weight in weights.items()}


def gain(runs: list[dict[str, float]], one: str, other: str) -> str:
    """Paired over seeds, in points."""
    if one == other:
        return ""
    found = paired_interval([100 * (each[one] - each[other]) for each in runs], test_ratio=1.0)
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def main() -> None:
    """All seeds."""
    torch.set_num_threads(1)
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS)
    runs = [run(seed, SHOTS) for seed in seeds]
    rows = []
    for place, shots in enumerate(SHOTS):
        own = [each[place] for each in runs]
        rows += [
            {
                "images of each digit": shots,
                "initialisation": name,
                "accuracy, percent": 100 * float(np.mean([each[name] for each in own])),
                f"against {BASE!r}": gain(own, name, BASE),
                "against 'random groups'": gain(own, name, "random groups"),
            }
            for name in own[0]
        ]
    publish("meta_groups", f"Few-shot pairs of digits, {len(PAIRS)} tasks, {GROUPS} groups, {len(runs)} seeds", rows)


if __name__ == "__main__":
    main()
