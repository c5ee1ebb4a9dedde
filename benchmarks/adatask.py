"""AdaTask optimizers: time and memory of a step against a twin written as the published code works, and against the floor.

The floor of a step is K backward passes through the trunk in place of one: (1 + 2K)/3 of a joint step. Time is of one thread,
memory the greatest resident set of a process of its own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from _timing import publish, race, ratio
from taskloom.deep._adatask import AdaTaskAdam, AdaTaskLite

TASK_COUNTS = (2, 4, 8)
WIDTH, DEPTH, BATCH = 1024, 4, 256


class SlowTwin:
    """Adam with moments for each task as the published code does it: the formulas, one pass too many, a loop over everything.

    Losses are stacked, so that each pass walks all heads; each task's gradients are cloned; one more pass gives the heads
    theirs; then every parameter and task is updated on its own.
    """

    def __init__(self, shared: list[Tensor], heads: list[Tensor], K: int, lr: float = 1e-3) -> None:
        self.shared, self.heads, self.K, self.lr, self.t = shared, heads, K, lr, 0
        names = [f"{moment}_{k}" for k in range(K) for moment in ("exp_avg", "exp_avg_sq")]
        self.state = {weight: {name: torch.zeros_like(weight) for name in names} for weight in shared}
        self.head_moments = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in heads]

    def backward_and_step(self, losses: Tensor) -> None:
        """K + 1 passes, then `step`."""
        grads: list[list[Tensor]] = []
        for k in range(self.K):
            for weight in self.shared:
                if weight.grad is not None:
                    weight.grad.zero_()
            losses[k].backward(retain_graph=True)
            grads.append([weight.grad.clone() for weight in self.shared])
        for weight in self.heads:
            weight.grad = None
        losses.sum().backward()
        self.step(grads)

    @torch.no_grad()
    def step(self, grads: list[list[Tensor]]) -> None:
        """Loops over parameters and tasks."""
        self.t += 1
        for i, weight in enumerate(self.shared):
            for k in range(self.K):
                state = self.state[weight]
                self._update(weight, grads[k][i], state[f"exp_avg_{k}"], state[f"exp_avg_sq_{k}"])
        for weight, moments in zip(self.heads, self.head_moments, strict=True):
            self._update(weight, weight.grad, *moments)

    def _update(self, weight: Tensor, grad: Tensor, m: Tensor, v: Tensor) -> None:
        m.mul_(0.9).add_(grad, alpha=0.1)
        v.mul_(0.999).addcmul_(grad, grad, value=0.001)
        bottom = (v.sqrt() / (1 - 0.999**self.t) ** 0.5).add_(1e-8)
        weight.addcdiv_(m, bottom, value=-self.lr / (1 - 0.9**self.t))


class Net(nn.Module):
    """The MLP of the published cost counts: four layers of 1,024, and a linear head a task."""

    def __init__(self, K: int, width: int = WIDTH) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Linear(256 if i == 0 else width, width), nn.ReLU()) for i in range(DEPTH)]
        self.trunk, self.heads = nn.Sequential(*layers), nn.ModuleList(nn.Linear(width, 1) for _ in range(K))

    def losses(self, x: Tensor) -> list[Tensor]:
        """K scalars."""
        z = self.trunk(x)
        return [head(z).square().mean() for head in self.heads]


def make_step(how: str, K: int, width: int = WIDTH) -> Callable[[], None]:
    """One training step of the MLP."""
    torch.manual_seed(0)
    net, x = Net(K, width), torch.randn(BATCH, 256)
    shared, heads = list(net.trunk.parameters()), list(net.heads.parameters())
    groups = [{"params": shared}, {"params": heads, "shared": False}]
    if how == "joint":
        adam = torch.optim.Adam(net.parameters(), fused=True)

        def step() -> None:
            adam.zero_grad()
            sum(net.losses(x)).backward()
            adam.step()

    elif how == "published":
        twin = SlowTwin(shared, heads, K)

        def step() -> None:
            twin.backward_and_step(torch.stack(net.losses(x)))

    else:
        ours = AdaTaskLite if how == "lite" else AdaTaskAdam
        optimizer = ours(groups, K)

        def step() -> None:
            optimizer.zero_grad()
            losses = net.losses(x)
            if how in {"streamed", "lite"}:
                for k, loss in enumerate(losses):
                    with optimizer.task(k):
                        loss.backward(retain_graph=k < K - 1)
            else:
                optimizer.backward(losses)
            optimizer.step()

    return step


def whole_steps() -> None:
    """Time of a whole step."""
    rows = []
    for K in TASK_COUNTS:
        names = ("joint", "backward", "streamed", "lite", "published")
        seconds = race({name: partial(_repeat, make_step(name, K), 2) for name in names}, rounds=7)
        floor = (1 + 2 * K) / 3
        rows.append(
            {
                "K": K,
                "joint, ms": 500 * float(np.median(seconds["joint"])),
                "floor": floor,
                **{f"{name} / joint": ratio(seconds, name, "joint")["median"] for name in names[1:]},
                "backward / floor": ratio(seconds, "backward", "joint")["median"] / floor,
                "published / backward": ratio(seconds, "published", "backward")["median"],
            }
        )
    publish("adatask_step", f"A whole step, MLP {DEPTH} x {WIDTH}, batch {BATCH}, one thread", rows)


def _repeat(step: Callable[[], None], n: int) -> None:
    for _ in range(n):
        step()


SIZES = {"4.2 M in 8": [524_288] * 8, "0.25 M in 120": [2083] * 120}


def optimizer_steps() -> None:
    """Time of the optimizer's step alone, gradients given; each row in a process of its own.

    Whether the twin's temporaries are fresh pages or used ones hangs on what the process has allocated and freed before.
    """
    rows = [json.loads(_child("alone", title, str(K))) for title in SIZES for K in TASK_COUNTS]
    publish("adatask_optimizer", "The optimizer's step alone, one thread", rows)


def optimizer_step(title: str, K: int) -> None:
    """Print one row."""
    torch.manual_seed(0)
    sizes, n = SIZES[title], 2 if "8" in title else 10
    grads = [[torch.randn(size) for size in sizes] for _ in range(K)]
    weights, twins, joint = ([nn.Parameter(torch.randn(size)) for size in sizes] for _ in range(3))
    contestants = {
        "ours": partial(_repeat, _our_step(AdaTaskAdam(weights, K), grads), n),
        "published": partial(_repeat, partial(SlowTwin(twins, [], K).step, grads), n),
        "joint": partial(_repeat, _joint_step(joint, grads[0]), n),
    }
    seconds = race(contestants, rounds=9)
    found = ratio(seconds, "published", "ours")
    row = {
        "parameters": title,
        "K": K,
        **{f"{name}, ms": 1e3 * float(np.median(seconds[name])) / n for name in contestants},
        "times faster than published": found["median"],
        "least": found["least"],
        "greatest": found["greatest"],
    }
    print(json.dumps(row))


def _child(*arguments: str) -> str:
    # A fixed threshold, so that freed memory goes back to the system and the resident set is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"} if arguments[0] == "peak" else None
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def _our_step(optimizer: AdaTaskAdam, grads: list[list[Tensor]]) -> Callable[[], None]:
    def step() -> None:
        # What `backward` leaves, without the time of a backward pass.
        optimizer._waiting = {name: list(of_task) for name, of_task in zip(optimizer.tasks, grads, strict=True)}
        optimizer.step()

    return step


def _joint_step(weights: list[Tensor], grads: list[Tensor]) -> Callable[[], None]:
    adam = torch.optim.Adam(weights, fused=True)
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad
    return adam.step


def peak_memory(how: str, K: int, width: int) -> None:
    """Print the greatest resident set after three steps, and the shared parameters, in MB."""
    torch.set_num_threads(1)
    _repeat(make_step("joint", 2, 8), 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = make_step(how, K, width)
    _repeat(step, 3)
    print(before / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def memory() -> None:
    """Peak memory of whole steps."""
    width, rows = 2048, []
    P = 4 * (256 * width + width + (DEPTH - 1) * (width * width + width)) / 2**20
    for K in TASK_COUNTS:
        used = {}
        for how in ("joint", "backward", "streamed", "lite", "published"):
            before, after = map(float, _child("peak", how, str(K), str(width)).split())
            used[how] = after - before
        rows.append(
            {
                "K": K,
                "P, MB": P,
                **{f"{how}, MB": value for how, value in used.items()},
                "(streamed - joint) / 2KP": (used["streamed"] - used["joint"]) / (2 * K * P),
                "(published - joint) / 2KP": (used["published"] - used["joint"]) / (2 * K * P),
            }
        )
    publish("adatask_memory", f"Peak memory of three steps beyond that of the imports, MLP {DEPTH} x {width}", rows)


def main() -> None:
    """Run all."""
    if sys.argv[1:2] == ["peak"]:
        peak_memory(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    if sys.argv[1:2] == ["alone"]:
        optimizer_step(sys.argv[2], int(sys.argv[3]))
        return
    parts = {"steps": whole_steps, "optimizer": optimizer_steps, "memory": memory}
    chosen = sys.argv[1:] or list(parts)
    for name, part in parts.items():
        if name in chosen:
            part()


if __name__ == "__main__":
    main()
