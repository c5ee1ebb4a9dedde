"""Time per step of `taskloom.deep.fit` against a bare PyTorch loop: same net, same rows, same optimizer, same validation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from _timing import publish, race, ratio
from taskloom.deep import MLP, FitOptions, fit
from taskloom.tasks import TaskData

STEPS, LOOK_EVERY = 1000, 25
SETTINGS = [
    ("shared rows", 5, 20, 64, (64, 64)),
    ("shared rows", 10, 50, 128, (128, 128)),
    ("own rows", 5, 20, 64, (64, 64)),
    ("own rows", 40, 20, 32, (64, 64)),
]


def make_data(shape: str, K: int, d: int, n: int) -> TaskData:
    """Regression tasks of n rows (each, for own rows)."""
    rng = np.random.default_rng(0)
    if shape == "shared rows":
        return TaskData.shared_rows(rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(n, K)))
    return TaskData.own_rows([(rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=n)) for _ in range(K)])


def bare_shared(train: TaskData, validation: TaskData, hidden: tuple[int, ...], batch_size: int) -> None:
    """Shared rows, complete labels, the shortest loop that trains and watches the validation loss."""
    X, Y = torch.as_tensor(train.X), torch.as_tensor(train.y, dtype=torch.float32)
    X_look, Y_look = torch.as_tensor(validation.X), torch.as_tensor(validation.y, dtype=torch.float32)
    net = MLP(hidden)(X.shape[1:], train.tasks)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    order, place = torch.randperm(len(X)), 0
    for step in range(STEPS):
        if place + batch_size > len(X):
            order, place = torch.randperm(len(X)), 0
        rows = order[place : place + batch_size]
        place += batch_size
        optimizer.zero_grad()
        (net(X[rows]) - Y[rows]).square().mean(dim=0).sum().backward()
        optimizer.step()
        if (step + 1) % LOOK_EVERY == 0:
            with torch.no_grad():
                float((net(X_look) - Y_look).square().mean(dim=0).mean())


def bare_own(train: TaskData, validation: TaskData, hidden: tuple[int, ...], batch_size: int) -> None:
    """Own rows of even size: each task's batch through the net, its own head picked."""
    K, n = train.n_tasks, len(train.rows(0))
    X = torch.as_tensor(train.X).unflatten(0, (K, n))
    Y = torch.as_tensor(train.y, dtype=torch.float32).unflatten(0, (K, n))
    X_look = torch.as_tensor(validation.X).unflatten(0, (K, -1))
    Y_look = torch.as_tensor(validation.y, dtype=torch.float32).unflatten(0, (K, -1))
    net = MLP(hidden)(X.shape[2:], train.tasks)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    order, place = torch.randperm(n), 0

    def losses(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        own = net(x.flatten(0, 1)).unflatten(0, x.shape[:2]).diagonal(dim1=0, dim2=2).T
        return (own - y).square().mean(dim=1)

    for step in range(STEPS):
        if place + batch_size > n:
            order, place = torch.randperm(n), 0
        rows = order[place : place + batch_size]
        place += batch_size
        optimizer.zero_grad()
        losses(X[:, rows], Y[:, rows]).sum().backward()
        optimizer.step()
        if (step + 1) % LOOK_EVERY == 0:
            with torch.no_grad():
                float(losses(X_look, Y_look).mean())


def own(train: TaskData, validation: TaskData, hidden: tuple[int, ...], options: FitOptions) -> None:
    """The same through `taskloom.deep.fit`."""
    fit(MLP(hidden)(train.X.shape[1:], train.tasks), train, validation, options=options)


def main() -> None:
    """Run all settings."""
    rows = []
    for shape, K, d, batch_size, hidden in SETTINGS:
        train, validation = make_data(shape, K, d, 600), make_data(shape, K, d, 200)
        options = FitOptions(
            learning_rate=1e-3,
            max_steps=STEPS,
            validate_every=LOOK_EVERY,
            patience=10_000,
            batch_size=batch_size,
            accelerator="cpu",
        )
        bare = bare_shared if shape == "shared rows" else bare_own
        contestants = {
            "taskloom": partial(own, train, validation, hidden, options),
            # One step: what a fit costs before its loop. It is no cost of a step, and is taken off.
            "set-up": partial(own, train, validation, hidden, replace(options, max_steps=1)),
            "bare": partial(bare, train, validation, hidden, batch_size),
        }
        seconds = race(contestants, rounds=9)
        seconds["taskloom"] = [whole - once for whole, once in zip(seconds["taskloom"], seconds["set-up"], strict=True)]
        found = ratio(seconds, "taskloom", "bare")
        rows.append(
            {
                "data": shape,
                "K": K,
                "d": d,
                "batch": batch_size,
                "hidden": "-".join(map(str, hidden)),
                "taskloom, us per step": 1e6 * float(np.median(seconds["taskloom"])) / STEPS,
                "bare, us per step": 1e6 * float(np.median(seconds["bare"])) / STEPS,
                "set-up, ms": 1e3 * float(np.median(seconds["set-up"])),
                "ratio": found["median"],
                "least": found["least"],
                "greatest": found["greatest"],
            }
        )
    publish("fit_loop", "Fit loop against a bare PyTorch loop (1,000 steps, looks included, one thread)", rows)


if __name__ == "__main__":
    main()
