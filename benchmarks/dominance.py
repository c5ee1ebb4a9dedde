"""A task with small labels beside one with large ones: who moves the shared layers, and what it costs the weak one.

The toy of GradNorm (Chen et al. 2018): y_k = sigma_k tanh((B + E_k) x), two tasks with sigma 1 and 10, one trunk. Widths,
row counts and noise are ours. Each optimizer runs at the learning rate that is best on rows of its own, by the mean of both
tasks' errors; `weak if tuned for it` is the weak task's error at the rate that is best for it alone. Errors are divided by
the variance of the labels, and are those of the test rows after the last step. The meter looks at every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from _timing import publish
from taskloom.deep._adatask import AdaTaskAdam, AdaTaskRMSprop
from taskloom.deep._dominance import DominanceMeter

DIN, DOUT, WIDTH, DEPTH, BATCH, STEPS = 64, 20, 100, 4, 128, 1500
SEEDS = (0, 1, 2)
SIGMAS = (1.0, 10.0)
TASKS = ["weak", "strong"]
# Three rates for each, the best of them in the middle.
OPTIMIZERS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "joint Adam": (torch.optim.Adam, (3e-3, 5e-3, 1e-2)),
    "AdaTask-Adam": (AdaTaskAdam, (1e-3, 3e-3, 5e-3)),
    "joint RMSprop": (torch.optim.RMSprop, (1e-4, 3e-4, 1e-3)),
    "AdaTask-RMSprop": (AdaTaskRMSprop, (1e-4, 3e-4, 1e-3)),
}


@dataclass
class Run:
    """What came of one run: errors (2,) on validation and test rows, and each layer's median rAU of the weak."""

    validation: np.ndarray
    test: np.ndarray
    shares: dict[str, float]


def make_rows(seed: int) -> dict[str, tuple[Tensor, list[Tensor]]]:
    """Features and labels of each task, of training, validation and test rows."""
    rng = np.random.default_rng(seed)
    scale = 1 / (4 * np.sqrt(DIN))
    common = 10 * scale * rng.standard_normal((DOUT, DIN))
    own = [3.5 * scale * rng.standard_normal((DOUT, DIN)) for _ in SIGMAS]
    rows = {}
    for name, n in {"train": 1600, "validation": 400, "test": 400}.items():
        x = rng.standard_normal((n, DIN))
        labels = [sigma * np.tanh(x @ (common + each).T) for sigma, each in zip(SIGMAS, own, strict=True)]
        rows[name] = (torch.tensor(x, dtype=torch.float32), [torch.tensor(y, dtype=torch.float32) for y in labels])
    return rows


def run(kind: Any, lr: float, seed: int, every: int = 0) -> Run:
    """Train once, with a meter that samples every so many steps (0: none)."""
    rows = make_rows(seed)
    torch.manual_seed(seed)
    trunk = nn.Sequential(*(layer for i in range(DEPTH) for layer in (nn.Linear(WIDTH if i else DIN, WIDTH), nn.ReLU())))
    heads = nn.ModuleList(nn.Linear(WIDTH, DOUT) for _ in SIGMAS)
    groups = [{"params": list(trunk.parameters())}, {"params": list(heads.parameters()), "shared": False}]
    optimizer = kind(groups, tasks=TASKS, lr=lr) if kind.__name__.startswith("AdaTask") else kind(groups, lr=lr)
    weights = {f"layer {i + 1}": layer.weight for i, layer in enumerate(trunk[::2])}
    meter = DominanceMeter(optimizer, TASKS, layers=weights, every=every, seed=seed) if every else None
    x, labels = rows["train"]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        batch = torch.randint(len(x), (BATCH,), generator=generator)
        z = trunk(x[batch])
        losses = [nn.functional.mse_loss(head(z), y[batch]) for head, y in zip(heads, labels, strict=True)]
        if meter is not None:
            meter.observe(losses)
        optimizer.zero_grad()
        if hasattr(optimizer, "backward"):
            optimizer.backward(losses)
        else:
            sum(losses).backward()
        optimizer.step()
    shares = {} if meter is None else {row.layer: row.median for row in meter.table() if row.task == "weak"}
    return Run(errors(trunk, heads, rows["validation"]), errors(trunk, heads, rows["test"]), shares)


@torch.no_grad()
def errors(trunk: nn.Module, heads: nn.ModuleList, rows: tuple[Tensor, list[Tensor]]) -> np.ndarray:
    """Mean squared error of each task over the variance of its labels."""
    x, labels = rows
    z = trunk(x)
    return np.array([float((head(z) - y).square().mean() / y.var()) for head, y in zip(heads, labels, strict=True)])


def main() -> None:
    """All optimizers, each at its best rate."""
    torch.set_num_threads(1)
    rows = []
    for name, (kind, rates) in OPTIMIZERS.items():
        tried = {lr: [run(kind, lr, seed) for seed in SEEDS] for lr in rates}
        lr = min(tried, key=lambda lr: np.mean([each.validation for each in tried[lr]]))
        runs = [run(kind, lr, seed, every=1) for seed in SEEDS]
        own = min(tried, key=lambda lr: np.mean([each.validation[0] for each in tried[lr]]))
        weak, strong = np.mean([each.test for each in runs], axis=0).tolist()
        rows.append(
            {
                "optimizer": name,
                "rate": lr,
                "test error, weak": weak,
                "strong": strong,
                "weak if tuned for it": float(np.mean([each.test[0] for each in tried[own]])),
                **{
                    f"rAU of weak, {layer}": float(np.median([each.shares[layer] for each in runs])) for layer in runs[0].shares
                },
                "least": min(min(each.shares.values()) for each in runs),
                "greatest": max(max(each.shares.values()) for each in runs),
            }
        )
    publish("dominance", f"The toy of GradNorm, labels 1 : 10, mean of {len(SEEDS)} seeds", rows)


if __name__ == "__main__":
    main()
