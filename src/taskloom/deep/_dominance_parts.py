"""The parts of a step that are due to each task.

Letters: K tasks, C sampled coordinates of a layer, g gradient, m and v first and second moment, u a normalised direction.

Each rule gives what the learning rate is multiplied by, of the step that the optimizer has just made: its second moments and
clocks are read as it used them. Where its momentum is one for all tasks, `memory` is the share of each in it, kept by the
meter and moved at sampled steps only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from taskloom.deep._adatask import AdaTaskAdagrad, AdaTaskAdam, AdaTaskLite, AdaTaskRMSprop
from taskloom.deep._adatask_step import AdaTaskOptimizer
from taskloom.tasks import OptionError


@dataclass(frozen=True)
class Look:
    """What is known of a layer right after a step.

    Attributes:
        g: (K, C) gradients, zeros for a task that is absent.
        memory: (K, C) shares in the momentum before the step.
        moments: gradients that the memory has seen, this one included.
        group: the optimizer's options.
        state: the optimizer's state of the parameter.
        coords: (C,) which coordinates.
        tasks: names of the K tasks.
        moved: (K,) which tasks an AdaTask optimizer has just moved; None for others.
    """

    g: Tensor
    memory: Tensor
    moments: int
    group: dict[str, Any]
    state: dict[str, Any]
    coords: Tensor
    tasks: Sequence[str]
    moved: Sequence[bool] | None = None

    def at(self, key: str) -> Tensor:
        """(C,) of a moment."""
        return self.state[key].take(self.coords).to(self.g.dtype)

    def of_tasks(self, part: Callable[[int, str], Tensor]) -> Tensor:
        """(K, C) of what `part` makes of each task that moved, zeros for the others."""
        moved = [True] * len(self.tasks) if self.moved is None else self.moved
        nothing = torch.zeros_like(self.g[0])
        return torch.stack([part(k, name) if moved[k] else nothing for k, name in enumerate(self.tasks)])


Parts = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rule:
    """How to take an optimizer's step apart.

    Attributes:
        parts: maps a look to directions (K, C), descent positive, and the memory after the step.
        needs_gradients: False if the state tells it all.
        has_task_clocks: whether the state tells which tasks have moved.
        shares_decay: whether weight decay is shared out over tasks, as a part of their gradients.
    """

    parts: Callable[[Look], Parts]
    needs_gradients: bool = True
    has_task_clocks: bool = False
    shares_decay: bool = False


def rule_of(optimizer: Any) -> Rule:
    """The rule of an optimizer.

    Raises:
        OptionError: it is of a kind whose steps cannot be taken apart.
    """
    if not isinstance(optimizer, Optimizer):
        raise OptionError(f"`optimizer` is a {type(optimizer).__name__}: give a torch optimizer")
    if isinstance(optimizer, AdaTaskOptimizer) and optimizer.settings.aggregator is not None:
        raise OptionError(
            "`optimizer` has an `aggregator`: what it makes of K directions has no parts that are due to one task"
        )
    rule = next((rule for kind, rule in RULES if isinstance(optimizer, kind)), None)
    if rule is None:
        raise OptionError(
            f"`optimizer`={type(optimizer).__name__}: parts are known of Adam, AdamW, RMSprop, Adagrad, SGD and the AdaTask "
            "optimizers"
        )
    return rule


def adam_parts(look: Look) -> Parts:
    """Adam and AdamW: mhat_k / (sqrt(vhat) + eps)."""
    (beta1, beta2), t = look.group["betas"], float(look.state["step"])
    memory = torch.lerp(look.memory, look.g, 1 - beta1)
    v = look.at("max_exp_avg_sq" if look.group.get("amsgrad") else "exp_avg_sq")
    return memory / (1 - beta1**look.moments) / _adam_bottom(v, beta2, t, look.group["eps"]), memory


def _adam_bottom(v: Tensor, beta2: float, t: float, eps: float) -> Tensor:
    return (v / (1 - beta2**t)).sqrt() + eps


def rmsprop_parts(look: Look) -> Parts:
    """RMSprop: g_k / (sqrt(v) + eps), averaged by the momentum if there is one."""
    v = look.at("square_avg")
    if look.group["centered"]:
        v = v - look.at("grad_avg").square()
    u = look.g / (v.sqrt() + look.group["eps"])
    if not look.group["momentum"]:
        return u, look.memory
    memory = look.group["momentum"] * look.memory + u
    return memory, memory


def adagrad_parts(look: Look) -> Parts:
    """AdaGrad: g_k / (sqrt(G) + eps), the rate worn off by age."""
    return look.g / (look.at("sum").sqrt() + look.group["eps"]) / _wear(look, "step"), look.memory


def _wear(look: Look, clock: str) -> float:
    return 1 + (float(look.state[clock]) - 1) * look.group["lr_decay"]


def sgd_parts(look: Look) -> Parts:
    """SGD: g_k, or a momentum of them; the first gradient enters it undamped."""
    mu = look.group["momentum"]
    if not mu:
        return look.g, look.memory
    share = 1.0 if look.moments == 1 else 1 - look.group["dampening"]
    memory = mu * look.memory + share * look.g
    return (look.g + mu * memory if look.group["nesterov"] else memory), memory


def adatask_adam_parts(look: Look) -> Parts:
    """AdaTask on Adam and AdamW: mhat_k / (sqrt(vhat_k) + eps), all of it in the state."""
    beta1, beta2 = look.group["betas"]

    def part(_: int, name: str) -> Tensor:
        t = float(look.state[f"step_{name}"])
        bottom = _adam_bottom(look.at(f"exp_avg_sq_{name}"), beta2, t, look.group["eps"])
        return look.at(f"exp_avg_{name}") / (1 - beta1**t) / bottom

    return look.of_tasks(part), look.memory


def adatask_rmsprop_parts(look: Look) -> Parts:
    """AdaTask on RMSprop: g_k / (sqrt(v_k) + eps)."""
    eps = look.group["eps"]
    return look.of_tasks(lambda k, name: look.g[k] / (look.at(f"square_avg_{name}").sqrt() + eps)), look.memory


def adatask_adagrad_parts(look: Look) -> Parts:
    """AdaTask on AdaGrad: g_k / (sqrt(G_k) + eps)."""
    eps = look.group["eps"]
    made = look.of_tasks(lambda k, name: look.g[k] / (look.at(f"sum_{name}").sqrt() + eps) / _wear(look, f"step_{name}"))
    return made, look.memory


def adatask_lite_parts(look: Look) -> Parts:
    """AdaTaskLite: shares in its one momentum of g_k / (sqrt(vhat_k) + eps), with v_k put together from rows and columns."""
    beta1, beta2 = look.group["betas"]

    def part(k: int, name: str) -> Tensor:
        v = _factored(look, name) / (1 - beta2 ** float(look.state[f"step_{name}"]))
        return look.g[k] / (v.sqrt() + look.group["eps"])

    memory = torch.lerp(look.memory, look.of_tasks(part), 1 - beta1)
    return memory / (1 - beta1**look.moments), memory


def _factored(look: Look, name: str) -> Tensor:
    if f"row_{name}" not in look.state:
        return look.at(f"exp_avg_sq_{name}")
    row, col = look.state[f"row_{name}"], look.state[f"col_{name}"]
    r, c = look.coords // len(col), look.coords % len(col)
    return row[r] / row.mean().clamp_min(torch.finfo(row.dtype).tiny) * col[c]


RULES: tuple[tuple[type[Optimizer], Rule], ...] = (
    (AdaTaskAdam, Rule(adatask_adam_parts, needs_gradients=False, has_task_clocks=True)),
    (AdaTaskRMSprop, Rule(adatask_rmsprop_parts, has_task_clocks=True, shares_decay=True)),
    (AdaTaskAdagrad, Rule(adatask_adagrad_parts, has_task_clocks=True, shares_decay=True)),
    (AdaTaskLite, Rule(adatask_lite_parts, has_task_clocks=True)),
    (Adam, Rule(adam_parts)),
    (AdamW, Rule(adam_parts)),
    (RMSprop, Rule(rmsprop_parts)),
    (Adagrad, Rule(adagrad_parts)),
    (SGD, Rule(sgd_parts)),
)
