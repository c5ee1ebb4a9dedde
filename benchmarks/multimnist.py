"""MultiMNIST: two digits in one picture, the loss of the left one times 1, 10 and 100. What is left of the right one?

Pictures of 36 x 36 are composed here from the 10,000 test images of MNIST (`mnist-t10k`), one digit in the upper left corner
and one in the lower right, the brighter pixel counting. (Sabour et al. 2017 and Sener & Koltun 2018 do the like with all of
MNIST: their scores are not comparable.) A seed draws which 7000 digits train, which 1000 choose the learning rate, which 2000
test, what is paired with what, the first weights and the batches; all methods meet on the same draws. The net is a LeNet trunk
with a head for each digit.

Each method runs at its own learning rate for each scale: the one of three with the best mean accuracy of both digits on the
validation pictures. To keep this near 20 minutes on one core, the rate is chosen with the first seed alone, and training stops
after 4 epochs, before any method has converged. Intervals of the paired differences are the corrected resampled t intervals
(Nadeau & Bengio 2003) over 3 seeds, at 95 %: with two degrees of freedom they are wide, and only large differences are decided.
"""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from _timing import publish
from taskloom.deep import AdaTaskStep, ScalarizedStep, UpdateStep

try:
    from torchjd.aggregation import PCGrad
    from torchjd.scalarization import FAMO, UW, Sum
except ImportError:
    sys.exit("multimnist.py needs torchjd: install taskloom[torchjd]")

DATA = Path(os.environ.get("TASKLOOM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "mnist-t10k"
DIGITS = {"train": 7000, "validation": 1000, "test": 2000}
PICTURES = {"train": 16_000, "validation": 4000, "test": 4000}
SIDE, SHIFT = 28, 8
EPOCHS, BATCH = 4, 128
SEEDS = (0, 1, 2)
SCALES = (1.0, 10.0, 100.0)
RATES = (1e-3, 3e-3, 1e-2)


def adam(net: nn.Module, rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), lr=rate)


METHODS: dict[str, Callable[[nn.Module, float], UpdateStep]] = {
    "joint Adam": lambda net, rate: ScalarizedStep(adam(net, rate), None, lambda _: Sum()),
    "UW": lambda net, rate: ScalarizedStep(adam(net, rate), None, UW),
    "FAMO": lambda net, rate: ScalarizedStep(adam(net, rate), None, FAMO),
    "AdaTask-Adam": lambda net, rate: AdaTaskStep(adam(net, rate), None),
    "AdaTask-Adam + PCGrad": lambda net, rate: AdaTaskStep(adam(net, rate), None, aggregator=PCGrad()),
}


@dataclass
class Rows:
    """Pictures (n, 1, 36, 36), standardised, and their digits (n, 2): left, right."""

    pictures: Tensor
    digits: Tensor


class LeNet(nn.Module):
    """Two convolutions and a layer of 50 that the tasks share, and a head of two layers for each task."""

    def __init__(self) -> None:
        super().__init__()
        # Pooling first gives the same numbers as ReLU first, for less work.
        self.trunk = nn.Sequential(
            *(nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(20 * 6 * 6, 50), nn.ReLU()),
        )
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10)) for _ in range(2))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Logits (n, 10) of the left and of the right digit."""
        z = self.trunk(pictures)
        return [head(z) for head in self.heads]


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (10000, 28, 28) and labels (10000,)."""
    if not DATA.is_dir():
        sys.exit(f"multimnist.py needs MNIST's test images in {DATA}, which is absent; TASKLOOM_DATA says where data lies")
    images, labels = (
        np.frombuffer(gzip.decompress((DATA / name).read_bytes()), np.uint8, offset=offset)
        for name, offset in (("t10k-images-idx3-ubyte.gz", 16), ("t10k-labels-idx1-ubyte.gz", 8))
    )
    return images.reshape(-1, SIDE, SIDE), labels.astype(np.int64)


def overlay(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pictures (n, 36, 36) out of two images (n, 28, 28) each."""
    canvas = np.zeros((2, len(left), SIDE + SHIFT, SIDE + SHIFT), np.uint8)
    canvas[0, :, :SIDE, :SIDE], canvas[1, :, SHIFT:, SHIFT:] = left, right
    return canvas.max(axis=0)


def make_rows(seed: int) -> dict[str, Rows]:
    """Training, validation and test pictures, no two parts of which share a digit's image."""
    images, labels = read_digits()
    rng = np.random.default_rng(seed)
    parts = np.split(rng.permutation(len(images)), np.cumsum(list(DIGITS.values()))[:-1])
    composed = {}
    for (name, n), part in zip(PICTURES.items(), parts, strict=True):
        pairs = rng.choice(part, (n, 2))
        composed[name] = (overlay(images[pairs[:, 0]], images[pairs[:, 1]]), labels[pairs])
    mean, spread = composed["train"][0].mean(), composed["train"][0].std()
    return {
        name: Rows(torch.tensor((pictures - mean) / spread, dtype=torch.float32).unsqueeze(1), torch.tensor(digits))
        for name, (pictures, digits) in composed.items()
    }


def run(method: str, scale: float, rate: float, seed: int, rows: dict[str, Rows]) -> dict[str, np.ndarray]:
    """Train once; the accuracies (2,) on validation and test pictures in percent."""
    torch.manual_seed(seed)
    # Twice as fast on a CPU as the default order of memory.
    net = LeNet().to(memory_format=torch.channels_last)
    step = METHODS[method](net, rate)
    step.all_present = True
    factors, train = (scale, 1.0), rows["train"]
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(train.pictures)).split(BATCH):
            pictures, digits = train.pictures[batch], train.digits[batch].T

            def losses(pictures: Tensor = pictures, digits: Tensor = digits) -> Tensor:
                entropies = map(nn.functional.cross_entropy, net(pictures), digits)
                return torch.stack([factor * entropy for factor, entropy in zip(factors, entropies, strict=True)])

            step.step(losses)
    return {name: accuracies(net, rows[name]) for name in ("validation", "test")}


@torch.no_grad()
def accuracies(net: nn.Module, rows: Rows) -> np.ndarray:
    """Percent of left and of right digits told right."""
    told = torch.cat([torch.stack([out.argmax(1) for out in net(part)], dim=1) for part in rows.pictures.split(500)])
    return 100 * (told == rows.digits).double().mean(dim=0).numpy()


def difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Mean paired difference over seeds (S,), with its corrected resampled t interval."""
    found, n = ours - theirs, len(ours)
    ratio = DIGITS["test"] / (DIGITS["train"] + DIGITS["validation"])
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((1 / n + ratio) * found.var(ddof=1))
    return f"{found.mean():+.1f} [{found.mean() - half:+.1f}, {found.mean() + half:+.1f}]"


def main() -> None:
    """All methods at all scales, each at its best rate."""
    torch.set_num_threads(1)
    draws = {seed: make_rows(seed) for seed in SEEDS}
    scores, tuning = [], []
    for scale in SCALES:
        joint = np.empty(0)
        for method in METHODS:
            start = perf_counter()
            tried = {rate: run(method, scale, rate, SEEDS[0], draws[SEEDS[0]]) for rate in RATES}
            rate = max(RATES, key=lambda rate: tried[rate]["validation"].mean())
            runs = [tried[rate], *(run(method, scale, rate, seed, draws[seed]) for seed in SEEDS[1:])]
            test = np.array([each["test"] for each in runs]).T
            joint = joint if len(joint) else test
            means = [round(float(each.mean()), 1) for each in test]
            row: dict[str, Any] = {"left loss times": int(scale), "method": method}
            gains = [
                difference(ours, theirs) if method != "joint Adam" else "" for ours, theirs in zip(test, joint, strict=True)
            ]
            scores.append(
                row
                | {"rate": rate, "left": means[0], "right": means[1]}
                | {"left over joint": gains[0], "right over joint": gains[1]}
            )
            tuning.append(row | {f"rate {each:g}": "{:.1f} / {:.1f}".format(*tried[each]["validation"]) for each in RATES})
            print(scores[-1], tuning[-1], round(perf_counter() - start), "s", file=sys.stderr)
    publish("multimnist", f"MultiMNIST: accuracy in percent on test pictures, mean of {len(SEEDS)} seeds", scores)
    publish("multimnist_rates", "Validation accuracy, left / right, of the first seed at each rate", tuning)


if __name__ == "__main__":
    main()
