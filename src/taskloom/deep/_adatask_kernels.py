"""One adaptive step down one gradient, on lists of tensors.

Letters: g gradient, m and v first and second moment, R x C a matrix's rows and columns.

Each kernel changes moments and clocks in place and adds to the targets what the rule moves them by. With `rate=-1` and
targets of zeros, the targets are left with the normalised direction, which the rule would go down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.rmsprop import rmsprop

Group = dict[str, Any]


@dataclass
class Lane:
    """Tensors of one device and type that move together.

    Attributes:
        places: of the parameters among those of their group.
        params: the parameters.
        moments: for each kind of moment, one a parameter.
        steps: a clock for each parameter; with a fused kernel, parameters of the same age share one.
        clocks: the distinct ones among `steps`.
    """

    places: tuple[int, ...]
    params: list[Tensor]
    moments: list[list[Tensor]]
    steps: list[Tensor]
    clocks: list[Tensor]


@dataclass(frozen=True)
class Rate:
    """How far a step goes.

    Attributes:
        rate: learning rate.
        weight_decay: of this step; decoupled if the rule decouples it.
        kernel: `fused`, `foreach` or `loop`.
    """

    rate: float
    weight_decay: float
    kernel: str


Kernel = Callable[[Lane, list[Tensor], list[Tensor], Group, Rate], None]


def adam_kernel(lane: Lane, targets: list[Tensor], grads: list[Tensor], group: Group, how: Rate) -> None:
    """Adam, weight decay as a part of the gradient (Kingma & Ba 2015)."""
    _adam(lane, targets, grads, (group, how), is_decoupled=False)


def adamw_kernel(lane: Lane, targets: list[Tensor], grads: list[Tensor], group: Group, how: Rate) -> None:
    """Adam, weight decay beside the gradient (Loshchilov & Hutter 2019)."""
    _adam(lane, targets, grads, (group, how), is_decoupled=True)


def _adam(lane: Lane, targets: list[Tensor], grads: list[Tensor], how: tuple[Group, Rate], *, is_decoupled: bool) -> None:
    group, rate = how
    beta1, beta2 = group["betas"]
    options: dict[str, Any] = {
        "amsgrad": False,
        "beta1": beta1,
        "beta2": beta2,
        "lr": rate.rate,
        "weight_decay": rate.weight_decay,
        "eps": group["eps"],
        "maximize": False,
    }
    m, v = lane.moments
    if rate.kernel == "fused":
        # Torch's wrapper would count every parameter's clock on its own, which costs as much as the update of a small layer.
        torch._foreach_add_(lane.clocks, 1)
        kernel: Any = torch._fused_adamw_ if is_decoupled else torch._fused_adam_
        kernel(targets, grads, m, v, [], lane.steps, **options, grad_scale=None, found_inf=None)
    else:
        whole = adamw if is_decoupled else adam
        whole(targets, grads, m, v, [], lane.steps, foreach=rate.kernel == "foreach", fused=False, **options)


def rmsprop_kernel(lane: Lane, targets: list[Tensor], grads: list[Tensor], group: Group, how: Rate) -> None:
    """RMSprop without momentum (Tieleman & Hinton 2012)."""
    rmsprop(
        targets,
        grads,
        lane.moments[0],
        [],
        [],
        lane.steps,
        foreach=how.kernel == "foreach",
        lr=how.rate,
        alpha=group["alpha"],
        eps=group["eps"],
        weight_decay=how.weight_decay,
        momentum=0.0,
        centered=False,
    )


def adagrad_kernel(lane: Lane, targets: list[Tensor], grads: list[Tensor], group: Group, how: Rate) -> None:
    """AdaGrad (Duchi, Hazan & Singer 2011)."""
    options: dict[str, Any] = {
        "lr": how.rate,
        "weight_decay": how.weight_decay,
        "lr_decay": group["lr_decay"],
        "eps": group["eps"],
        "maximize": False,
    }
    if how.kernel == "fused":
        torch._foreach_add_(lane.clocks, 1)
        kernel: Any = torch._fused_adagrad_
        kernel(targets, grads, lane.moments[0], lane.steps, **options, grad_scale=None, found_inf=None)
    else:
        adagrad(targets, grads, lane.moments[0], lane.steps, foreach=how.kernel == "foreach", fused=False, **options)


def factored_kernel(lane: Lane, targets: list[Tensor], grads: list[Tensor], group: Group, how: Rate) -> None:
    """Gradients over the root of a second moment, which of a matrix is kept as row and column means (Shazeer & Stern 2018)."""
    beta2, eps = group["betas"][1], group["eps"]
    torch._foreach_add_(lane.steps, 1)
    decay = math.log(beta2) if beta2 else -math.inf
    corrections = (-torch.expm1(torch.stack(lane.steps).double() * decay)).tolist()
    if len(lane.moments) == 1:
        torch._foreach_mul_(lane.moments[0], beta2)
        torch._foreach_addcmul_(lane.moments[0], grads, grads, value=1 - beta2)
        roots = list(torch._foreach_div(lane.moments[0], corrections))
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, eps)
        torch._foreach_addcdiv_(targets, grads, roots, value=-how.rate)
        return
    for target, g, row, col, correction in zip(targets, grads, *lane.moments, corrections, strict=True):
        squares = g.flatten(1).square()
        row.lerp_(squares.mean(dim=1), 1 - beta2)
        col.lerp_(squares.mean(dim=0), 1 - beta2)
        scale = (row / row.mean().clamp_min(torch.finfo(row.dtype).tiny) / correction).sqrt()
        root = torch.outer(scale, col.sqrt()).add_(eps)
        target.addcdiv_(g, root.view_as(g) if g.is_contiguous() else root.reshape(g.shape), value=-how.rate)
