"""What selective task group updates cost: time per update against a bare joint step, and the share of measuring and grouping.

The joint step is the shortest loop there is: gradients to none, losses of all tasks, one backward pass of their sum, a step of
the optimizer. `SelectiveGroups` makes M of these in a batch; its time for a number of batches is divided by the updates it made
and by the time of a joint step, so that 1.05 says that a batch costs 1.05 x M joint steps. It runs with its defaults (groups
anew every 50 batches) on the tasks of Synth-9, after its warm-up; M is what it finds. Rounds are run in turn, on one thread,
and the joint loop makes as many steps in each as the selective updates did. Times are those of the processor, so that other
work on the machine counts less; the quickest quarters of the rounds of both are compared too. The share of measuring and
grouping is that of a clock around them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import cycle
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from _selective_settings import TrunkAndHeads, synth9
from _timing import publish
from taskloom.deep import SelectiveGroups, SharedBottom
from taskloom.tasks import Task

WARMUP, WARM = 30, 52


class ConvNet(nn.Module):
    """Two convolutions and a layer that tasks share, and a linear head for each task."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 8 * 8, 64), nn.ReLU()),
        )
        self.heads = nn.ModuleList(nn.Linear(64, 1) for _ in range(n_tasks))

    def forward(self, pictures: Tensor) -> Tensor:
        """Outputs (n, K)."""
        z = self.trunk(pictures)
        return torch.cat([head(z) for head in self.heads], dim=1)


class Clocked(SelectiveGroups):
    """`SelectiveGroups` with a clock around what measures and groups."""

    seconds = 0.0

    def _begin_batch(self) -> None:
        start = process_time()
        super()._begin_batch()
        self.seconds += process_time() - start

    def _saw(self, values: Any, present: list[int]) -> None:
        start = process_time()
        super()._saw(values, present)
        self.seconds += process_time() - start


def cases() -> dict[str, tuple[Callable[[], nn.Module], Tensor, int, int]]:
    """Nets with all rows, rows in a batch, and batches in a round."""
    setting = synth9(0)
    rng, names, X = torch.Generator().manual_seed(0), [Task(str(k)) for k in range(9)], setting.train[0]
    wide = torch.cat([X, torch.randn(len(X), 76, generator=rng)], dim=1)
    pictures = (X @ torch.randn(24, 3 * 32 * 32, generator=rng) / 5).reshape(-1, 3, 32, 32)

    def one_layer() -> nn.Module:
        return nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 9))

    return {
        "24-48-12, 9 heads, batch 64": (lambda: TrunkAndHeads(setting), X, 64, 10),
        "24-48-12, one layer for 9 heads, batch 64": (one_layer, X, 64, 10),
        "100-64-64, 9 heads, batch 64": (lambda: SharedBottom(100, names, (64, 64)), wide, 64, 10),
        "100-512-512, 9 heads, batch 256": (lambda: SharedBottom(100, names, (512, 512)), wide, 256, 5),
        "2 convolutions, 9 heads, batch 64 of 32 x 32": (lambda: ConvNet(9), pictures, 64, 5),
    }


def measure(name: str, make: Callable[[], nn.Module], X: Tensor, n_rows: int, batches: int, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    y = synth9(0).train[1]
    drawn = torch.Generator().manual_seed(0)
    parts = cycle([(X[rows], y[rows]) for rows in torch.randperm(len(X), generator=drawn).split(n_rows) if len(rows) == n_rows])
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(make())
    optimizers = [torch.optim.Adam(net.parameters(), lr=5e-3, fused=True) for net in nets]
    step, made = Clocked(optimizers[0], tasks=9, beta=0.01, warmup=WARMUP), 0

    def losses(net: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
        return (net(rows) - labels).square().mean(dim=0)

    def selective(batches: int) -> None:
        nonlocal made
        before = step.costs.updates
        for _ in range(batches):
            rows, labels = next(parts)
            step.step(lambda rows=rows, labels=labels: losses(nets[0], rows, labels))
        made = step.costs.updates - before

    def joint() -> None:
        rows, labels = next(parts)
        for _ in range(made):
            optimizers[1].zero_grad()
            losses(nets[1], rows, labels).sum().backward()
            optimizers[1].step()

    selective(WARM)
    found = []
    for _ in range(rounds):
        step.seconds, start = 0.0, process_time()
        selective(batches)
        middle = process_time()
        joint()
        found.append((middle - start, process_time() - middle, made, step.seconds))
    ours, plain, updates, watched = np.array(found).T
    ratios = ours / plain
    return {
        "net": name,
        "M": round(float(updates.sum()) / (rounds * batches), 2),
        "joint step, us": 1e6 * float(np.median(plain / updates)),
        "batch / (M x joint)": float(np.median(ratios)),
        "quartiles": " to ".join(f"{q:.3g}" for q in np.quantile(ratios, (0.25, 0.75))),
        "of the quickest quarters": float(np.quantile(ours / updates, 0.25) / np.quantile(plain / updates, 0.25)),
        "measuring and grouping, %": 100 * float(watched.sum() / ours.sum()),
    }


def main() -> None:
    """Run all nets, or those with the given part of a name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", default="")
    how = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(name, *case, how.rounds) for name, case in cases().items() if how.only in name]
    publish("selective_cost", "Selective group updates against as many joint steps", rows)


if __name__ == "__main__":
    main()
