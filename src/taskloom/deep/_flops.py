"""What a pass through a net costs in floating-point operations.

Counted are matrix products, convolutions and attention, as torch's counter knows them, with two operations for a multiply-add;
activations, normalisation and the optimizer are left out. The trunk is what leads up to the output of the net's module
`encoder`, where it has one, and else the whole net, whose heads are then counted with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def trunk_flops(net: nn.Module, shape: tuple[int, ...]) -> tuple[float, float] | None:
    """Operations of one forward and one backward pass of the trunk, for one row.

    Gradients are those of the weights that are trained, and what leads back to them; a first layer's input has none.

    Args:
        net: on any device; it is left as it was.
        shape: of a row.

    Returns:
        None where torch cannot count the net.

    Examples:
        >>> from taskloom.deep import SharedBottom
        >>> from taskloom.tasks import Task
        >>> trunk_flops(SharedBottom(10, [Task("a"), Task("b")], hidden=(20, 30)), (10,))
        (1600.0, 2800.0)
    """
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    template = next(net.parameters(), torch.zeros(()))
    x = torch.zeros(_ROWS, *shape, dtype=template.dtype, device=template.device)
    was_training = net.training
    net.eval()
    counter = FlopCounterMode(display=False)
    reached: list[tuple[float, Any]] = []
    encoder = getattr(net, "encoder", None)
    handle = None
    if isinstance(encoder, nn.Module):
        handle = encoder.register_forward_hook(lambda *given: reached.append((counter.get_total_flops(), given[-1])))
    try:
        with torch.random.fork_rng(devices=[]), counter:
            output = net(x)
            total = counter.get_total_flops()
            forward = reached[-1][0] if reached else total
            ends = [end for each in ([found for _, found in reached] or [output]) for end in _tensors(each)]
            if ends and weights:
                torch.autograd.grad(ends, weights, [torch.ones_like(end) for end in ends], allow_unused=True)
            backward = counter.get_total_flops() - total
    except RuntimeError:
        # A compiled net, or an operation that the counter cannot see through: a figure less, and no reason to lose a model.
        return None
    finally:
        net.train(was_training)
        if handle is not None:
            handle.remove()
    return forward / _ROWS, backward / _ROWS


_ROWS = 2


def _tensors(output: Any) -> list[Tensor]:
    """Tensors with a graph behind them in what a module gave."""
    if isinstance(output, Tensor):
        return [output] if output.requires_grad else []
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else []
    return [tensor for part in parts for tensor in _tensors(part)]
