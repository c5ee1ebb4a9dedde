"""Gradients of K tasks that are averaged over processes, or unscaled after a backward pass in half precision.

Letters: K tasks, n parameters, P numbers in them, W processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

Slots = list[Tensor | None]


def group_of(data_parallel: Any) -> Any:
    """The process group that gradients are averaged over, or None.

    Examples:
        >>> group_of(None) is None
        True
    """
    if data_parallel is False or not (distributed.is_available() and distributed.is_initialized()):
        return None
    group = distributed.group.WORLD if data_parallel is None or data_parallel is True else data_parallel
    return group if distributed.get_world_size(group) > 1 else None


def average(
    waiting: dict[str, Slots], tasks: Sequence[str], params: Sequence[Tensor], group: Any, *, by_parameter: bool = False
) -> dict[str, Slots]:
    """Mean gradients over the processes that have a task in their batch; one flat bucket a task and number type.

    A process whose batch lacks a task does not dilute its gradient: mean losses over labelled rows come out as on the joined
    batch where the processes that have the task have as many rows of it. A task that no process has stays absent.

    Args:
        waiting: gradients by task, a place for each parameter.
        tasks: in an order that all processes agree on.
        params: that the places belong to.
        group: of processes.
        by_parameter: the mean of a parameter's gradient is over the processes that have one, whatever task it is of.

    Returns:
        The same on every process.
    """
    if not params:
        return waiting
    empty: Slots = [None] * len(params)
    mine = [[grad is not None for grad in waiting.get(task, empty)] for task in tasks]
    flags = torch.tensor([[any(row), *row] for row in mine], dtype=torch.float32, device=params[0].device)
    distributed.all_reduce(flags, group=group)
    found: dict[str, Slots] = {}
    for task, (n_holders, *counts) in zip(tasks, flags.tolist(), strict=True):
        if n_holders:
            divisors = counts if by_parameter else [n_holders if count else 0.0 for count in counts]
            found[task] = _average_task(waiting.get(task, empty), params, divisors, group)
    return found


def _average_task(slots: Slots, params: Sequence[Tensor], divisors: Sequence[float], group: Any) -> Slots:
    averaged: Slots = [None] * len(params)
    kinds: dict[Any, list[int]] = {}
    for i in (i for i, divisor in enumerate(divisors) if divisor):
        kinds.setdefault((params[i].device, params[i].dtype), []).append(i)
    for places in kinds.values():
        parts = [params[i].new_zeros(params[i].numel()) if (grad := slots[i]) is None else grad.reshape(-1) for i in places]
        bucket = torch.cat(parts)
        distributed.all_reduce(bucket, group=group)
        for i, part in zip(places, bucket.split([len(part) for part in parts]), strict=True):
            grad = part.div_(divisors[i]).view(params[i].shape)
            averaged[i] = grad if grad.stride() == params[i].stride() else torch.empty_like(params[i]).copy_(grad)
    return averaged


class ScaledView:
    """Per-task gradients in the shape of an optimizer, which is all that a `GradScaler` can look at.

    Attributes:
        is_clean: no gradient is infinite or NaN.

    Args:
        grads: of all tasks.
    """

    def __init__(self, grads: Sequence[Tensor]) -> None:
        # A scaler looks at parameters' `.grad`: each gradient becomes that of a second name of itself.
        carriers = [grad.detach() for grad in grads]
        for carrier, grad in zip(carriers, grads, strict=True):
            carrier.grad = grad
        self.param_groups = [{"params": carriers}]
        self.is_clean = not grads

    def has_gradients(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self.param_groups[0]["params"])

    def step(self) -> None:
        """Called by the scaler if, and only if, all gradients are finite."""
        self.is_clean = True
