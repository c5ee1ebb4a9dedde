"""Data and nets of `selective.py`: tasks of which it is known which belong together.

Letters: K tasks, n rows, d features.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

# What a digit is asked: is it odd, at least 5, round, prime, a multiple of 3?
QUESTIONS = ({1, 3, 5, 7, 9}, {5, 6, 7, 8, 9}, {0, 4, 6, 8, 9}, {2, 3, 5, 7}, {0, 3, 6, 9})


@dataclass
class Setting:
    """Rows (n, d) with all K labels, for training and for the test, and the clusters that the tasks were made in."""

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    hidden: tuple[int, int]
    clusters: list[int]
    is_binary: bool = False

    @property
    def n_tasks(self) -> int:
        """K."""
        return len(self.clusters)

    @property
    def planted(self) -> list[list[int]]:
        """The tasks of each cluster."""
        return [[k for k, c in enumerate(self.clusters) if c == cluster] for cluster in sorted(set(self.clusters))]

    @property
    def mixed(self) -> list[list[int]]:
        """As many groups, each with tasks of every cluster."""
        n_groups = len(self.planted)
        return [list(range(g, self.n_tasks, n_groups)) for g in range(n_groups)]

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Losses of each row and task."""
        if self.is_binary:
            return nn.functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
        return (outputs - labels).square()

    @torch.no_grad()
    def scores(self, net: nn.Module) -> list[float]:
        """(K,) on test rows: accuracy, or the negative mean squared error; of a net that has diverged, that of the mean."""
        outputs, labels = net(self.test[0]), self.test[1]
        if self.is_binary:
            return ((outputs > 0) == (labels > 0.5)).double().mean(dim=0).tolist()
        errors = (outputs - labels).square().double().mean(dim=0)
        return (-torch.where(errors.isfinite(), errors, labels.double().var(dim=0))).tolist()


def synth9(seed: int) -> Setting:
    """Nine regressions in three clusters, each cluster with six hidden features of its own; noise in training rows alone."""
    rng = np.random.default_rng(seed)
    X, columns = rng.normal(size=(5500, 24)), []
    for _ in range(3):
        features, readout = np.tanh(X @ rng.normal(scale=np.sqrt(4 / 24), size=(24, 6))), rng.normal(size=6)
        columns += [features @ (readout + 0.4 * rng.normal(size=6)) for _ in range(3)]
    y = np.stack(columns, axis=1)
    y /= y[:1500].std(axis=0)
    y[:1500] += 0.5 * rng.normal(size=(1500, 9))
    rows, labels = torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    parts = [(rows[part], labels[part]) for part in (slice(1500), slice(1500, None))]
    return Setting("Synth-9", parts[0], parts[1], (48, 12), [0, 0, 0, 1, 1, 1, 2, 2, 2])


def digits10(seed: int) -> Setting:
    """Two digits on one canvas of 10 x 12, five questions about each; no image is both in training and in test pairs."""
    rng = np.random.default_rng(seed)
    images, digits = load_digits(return_X_y=True)
    images, order = images.reshape(-1, 8, 8) / 16, rng.permutation(len(images))
    parts = []
    for members, n in ((order[:1200], 3000), (order[1200:], 4000)):
        first, second = rng.choice(members, (2, n))
        canvas = np.zeros((2, n, 10, 12))
        canvas[0, :, :8, :8], canvas[1, :, 2:, 4:] = images[first], images[second]
        X = canvas.max(axis=0).reshape(n, -1) + 0.1 * rng.normal(size=(n, 120))
        y = [np.isin(digits[side], list(yes)) for side in (first, second) for yes in QUESTIONS]
        parts.append((torch.tensor(X, dtype=torch.float32), torch.tensor(np.stack(y, axis=1), dtype=torch.float32)))
    return Setting("Digits-10", parts[0], parts[1], (64, 16), [0] * 5 + [1] * 5, is_binary=True)


SETTINGS = {"Synth-9": synth9, "Digits-10": digits10}


class TrunkAndHeads(nn.Module):
    """Two layers that all tasks share, and for each task a linear head, a parameter of its own (hidden + 1,)."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        wide, narrow = setting.hidden
        d = setting.train[0].shape[1]
        self.trunk = nn.Sequential(nn.Linear(d, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU())
        bound = narrow**-0.5
        self.heads = nn.ParameterList(torch.empty(narrow + 1).uniform_(-bound, bound) for _ in setting.clusters)

    def forward(self, rows: Tensor) -> Tensor:
        """Outputs (n, K)."""
        heads = torch.stack(list(self.heads))
        return nn.functional.linear(self.trunk(rows), heads[:, :-1], heads[:, -1])

    def weights(self) -> list[Tensor]:
        """As `QuickLosses` takes them."""
        first, last = self.trunk[0], self.trunk[2]
        return [*last.parameters(), *first.parameters(), *self.heads]


class QuickLosses(torch.autograd.Function):
    """Losses (K,) of `TrunkAndHeads` on rows with all labels, gone back through by hand, which is quicker for small nets."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, labels: Tensor, is_binary: bool, *weights: Tensor) -> Tensor:
        """Mean losses; the weights are the last shared layer, its bias, the first one, its bias, and the heads."""
        last, last_bias, first, first_bias, *each = weights
        heads = torch.stack(each)
        low = torch.addmm(first_bias, rows, first.T).relu_()
        high = torch.addmm(last_bias, low, last.T).relu_()
        outputs = torch.addmm(heads[:, -1], high, heads[:, :-1].T)
        if is_binary:
            losses = nn.functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none").mean(dim=0)
            slopes = (outputs.sigmoid_() - labels).div_(len(rows))
        else:
            slopes = outputs.sub_(labels)
            losses = slopes.square().mean(dim=0)
            slopes.mul_(2 / len(rows))
        ctx.save_for_backward(rows, low, high, slopes, heads, last)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in the order of the arguments."""
        rows, low, high, slopes, heads, last = ctx.saved_tensors
        error = slopes * grads[0]
        of_heads = torch.empty_like(heads)
        of_heads[:, :-1], of_heads[:, -1] = error.T @ high, error.sum(dim=0)
        above = torch.ops.aten.threshold_backward(error @ heads[:, :-1], high, 0)
        below = torch.ops.aten.threshold_backward(above @ last, low, 0)
        trunk = (above.T @ low, above.sum(dim=0), below.T @ rows, below.sum(dim=0))
        return (None, None, None, *trunk, *of_heads.unbind())


class SingleNets(nn.Module):
    """K such nets with one task each, side by side."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        sizes = (setting.train[0].shape[1], *setting.hidden, 1)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise(sizes):
            bound = before**-0.5
            self.weights.append(torch.empty(setting.n_tasks, before, after).uniform_(-bound, bound))
            self.biases.append(torch.empty(setting.n_tasks, 1, after).uniform_(-bound, bound))

    def forward(self, rows: Tensor) -> Tensor:
        """Outputs (n, K)."""
        z = rows.expand(len(self.weights[0]), *rows.shape)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            z = torch.baddbmm(bias, z if layer == 0 else z.relu(), weight)
        return z[:, :, 0].T
