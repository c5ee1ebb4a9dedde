"""What processes that train together must agree on: losses, and decisions that follow from them.

Letters: K tasks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def mean_losses(losses: Tensor, group: Any) -> Tensor:
    """Mean losses (K,) over the processes in which a task is present; NaN where it is in none.

    Args:
        losses: (K,) of this process, NaN for a task that is absent in it.
        group: of processes; None: this one alone.

    Examples:
        >>> mean_losses(torch.tensor([1.0, 2.0]), None)
        tensor([1., 2.])
    """
    return losses if group is None else mean_and_holders(losses, group)[0]


def mean_and_holders(losses: Tensor, group: Any) -> Tensor:
    """(2, K) what `mean_losses` gives, and the share of the processes of a group that have a task."""
    is_here = ~losses.isnan()
    # An infinite loss on one process is one for all.
    sums = torch.stack([torch.where(is_here, losses, 0.0), is_here.to(losses.dtype)])
    distributed.all_reduce(sums, group=group)
    means = torch.where(sums[1] > 0, sums[0] / sums[1], torch.nan)
    return torch.stack([means, sums[1] / distributed.get_world_size(group)])


def greatest(values: Tensor, group: Any) -> Tensor:
    """The greatest of each number over the processes."""
    if group is not None:
        distributed.all_reduce(values, op=distributed.ReduceOp.MAX, group=group)
    return values


def from_first(values: Tensor, group: Any) -> Tensor:
    """What the first process of the group has, on all of them.

    Examples:
        >>> from_first(torch.tensor([3]), None)
        tensor([3])
    """
    if group is not None:
        distributed.broadcast(values, src=distributed.get_global_rank(group, 0), group=group)
    return values
