"""K small single-task nets trained side by side against a loop that trains one after the other.

The loop is `fit_singles(batched=False)`: the same code, the same rows, the same weights to 1e-5 (a test checks that), one net
at a time.
A second rival is a bare PyTorch loop that does the same steps and the same looks at the validation loss and nothing else.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from _timing import publish, race, ratio
from taskloom.deep import MLP, FitOptions, fit_singles
from taskloom.deep._batches import RowDealer
from taskloom.tasks import TaskData

SETTINGS = [(10, 16, (64, 64)), (10, 64, (64, 64)), (10, 64, (32,)), (40, 16, (32,)), (100, 16, (32,))]
STEPS, LOOK_EVERY = 100, 10
RATES = (1e-3,)


def make_data(K: int, d: int) -> tuple[TaskData, TaskData]:
    """K regression tasks of 300 training and 100 validation rows each."""
    rng = np.random.default_rng(0)
    sizes = (300, 100)
    return tuple(
        TaskData.own_rows([(rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=n)) for _ in range(K)]) for n in sizes
    )


def bare_loop(train: TaskData, validation: TaskData, hidden: tuple[int, ...], batch_size: int) -> None:
    """What a careful user would write for one net after the other."""
    for t in range(train.n_tasks):
        X, y = torch.as_tensor(train.X[train.rows(t)]), torch.as_tensor(train.labels(t), dtype=torch.float32)
        X_look, y_look = (
            torch.as_tensor(validation.X[validation.rows(t)]),
            torch.as_tensor(validation.labels(t), dtype=torch.float32),
        )
        net = MLP(hidden)(X.shape[1:], [train.tasks[t]])
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
        dealer = RowDealer([np.arange(len(X))], batch_size, seed=0)
        for step in range(STEPS):
            rows = dealer.rows(step)[0]
            optimizer.zero_grad()
            (net(X[rows])[:, 0] - y[rows]).square().mean().backward()
            optimizer.step()
            if (step + 1) % LOOK_EVERY == 0:
                with torch.no_grad():
                    float((net(X_look)[:, 0] - y_look).square().mean())


def main() -> None:
    """Run all settings."""
    rows = []
    for K, batch_size, hidden in SETTINGS:
        train, validation = make_data(K, 20)
        options = FitOptions(
            max_steps=STEPS, validate_every=LOOK_EVERY, patience=10_000, batch_size=batch_size, accelerator="cpu"
        )

        fit = partial(fit_singles, MLP(hidden), train, validation, rates=RATES, options=options)
        contestants = {
            "side by side": partial(fit, batched=True),
            "one by one": partial(fit, batched=False),
            "bare loop": partial(bare_loop, train, validation, hidden, batch_size),
        }
        seconds = race(contestants, rounds=5)
        own, bare = ratio(seconds, "one by one", "side by side"), ratio(seconds, "bare loop", "side by side")
        rows.append(
            {
                "K nets": K,
                "batch": batch_size,
                "hidden": "-".join(map(str, hidden)),
                "ms per step, side by side": 1e3 * float(np.median(seconds["side by side"])) / STEPS,
                "one by one / side by side": own["median"],
                "least": own["least"],
                "bare loop / side by side": bare["median"],
                "least ": bare["least"],
            }
        )
    publish("singles", "Single nets side by side (100 steps, a look at validation every 10, one thread)", rows)


if __name__ == "__main__":
    main()
