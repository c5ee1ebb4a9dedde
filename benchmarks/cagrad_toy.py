"""The toy of CAGrad: where AdaTask is worse than joint Adam, and what it has for that.

Two losses of two numbers with a kinked slope above and a bowl below (Liu et al. 2021). The points at which no loss can fall
without the other rising have x2 = -8.355 and -7 <= x1 <= 7; the mean of the losses is least in their middle, x1 = 0, at -15.09.
Five starts: three of CAGrad's, two that Nash-MTL adds, as we know them. 100,000 steps in double precision; starts, factors and
rates lie side by side in one run, since both optimizers move every number on its own. About 3 minutes.

What to read off: AdaTask is worse than Adam wherever Adam gets down. It ends at -10.2 to -11.1, near one end of these points
and not quite on them, whatever the rate. The reason, which is ours: there the two gradients are opposite in each number,
AdaTask divides each by its own size, so they cancel, and nothing draws towards the middle. What it has for that: Adam follows
the scale of a loss, and with the first one times 0.1 it goes to another point (-11.81), while AdaTask ends where it ended
before. That is exact only if `eps` is as good as none: the usual 1e-8 moves a path by some 1e-6, which the kink that the paths
from (-8.5, 7.5) and (9, 9) slide along magnifies, so that their ends differ by up to 0.1. And at the rate of 1e-3, with the
losses as they are, Adam does not get off that kink, and AdaTask does.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from _timing import publish
from taskloom.deep import AdaTaskAdam

STARTS = ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
FACTORS = (1.0, 0.1)
STEPS = 100_000
# Learning rate and eps; the second eps is as good as none.
SETTINGS: dict[Any, tuple[tuple[float, float], ...]] = {
    torch.optim.Adam: ((1e-3, 1e-8), (1e-2, 1e-8)),
    AdaTaskAdam: ((1e-3, 1e-8), (1e-2, 1e-8), (1e-3, 1e-30), (1e-2, 1e-30)),
}


def toy(x: Tensor) -> tuple[Tensor, Tensor]:
    """Both losses (...) at points (..., 2)."""
    x1, x2 = x.unbind(-1)
    t = torch.tanh(x2)
    slopes = [part.abs().clamp(min=5e-6).log() + 6 for part in (0.5 * (-x1 - 7) + t, 0.5 * (-x1 + 3) - t + 2)]
    bowls = [((side - x1).square() + 0.1 * (x2 + 8).square()) / 10 - 20 for side in (7, -7)]
    above = torch.tanh(x2 / 2)
    first, second = (slope * above.clamp(min=0) - bowl * above.clamp(max=0) for slope, bowl in zip(slopes, bowls, strict=True))
    return first, second


def descend(kind: Any, settings: tuple[tuple[float, float], ...]) -> Tensor:
    """Where every setting, factor and start ends: (settings, factors, starts, 2)."""
    starts = torch.tensor(STARTS, dtype=torch.float64).repeat(len(FACTORS), 1, 1)
    factors = torch.tensor(FACTORS, dtype=torch.float64).unsqueeze(1)
    points: list[Tensor] = [torch.nn.Parameter(starts.clone()) for _ in settings]
    groups = [{"params": [x], "lr": lr, "eps": eps} for x, (lr, eps) in zip(points, settings, strict=True)]
    optimizer = kind(groups, 2) if kind is AdaTaskAdam else kind(groups)
    for _ in range(STEPS):
        first, second = toy(torch.stack(points))
        losses = [(factors * first).sum(), second.sum()]
        optimizer.zero_grad()
        if kind is AdaTaskAdam:
            optimizer.backward(losses)
        else:
            torch.stack(losses).sum().backward()
        optimizer.step()
    return torch.stack([x.detach() for x in points])


def main() -> None:
    """Both optimizers from all starts."""
    torch.set_num_threads(1)
    rows = []
    for kind, settings in SETTINGS.items():
        start = perf_counter()
        ends = descend(kind, settings)
        print(f"{kind.__name__}: {perf_counter() - start:.0f} s", file=sys.stderr)
        # With the first loss as it is, whatever it was multiplied by on the way.
        means = torch.stack(toy(ends)).mean(dim=0)
        for (lr, eps), settled, points in zip(settings, means, ends, strict=True):
            for factor, values, places in zip(FACTORS, settled, points, strict=True):
                row: dict[str, Any] = {"optimizer": kind.__name__, "rate": lr, "eps": eps, "first loss times": factor}
                for origin, value, (x1, x2) in zip(STARTS, values.tolist(), places.tolist(), strict=True):
                    row["from {:g}, {:g}".format(*origin)] = f"{value:.2f} ({x1:.2f}, {x2:.2f})"
                rows.append(row)
    publish("cagrad_toy", f"The toy of CAGrad: mean loss (and point) after {STEPS} steps", rows)


if __name__ == "__main__":
    main()
