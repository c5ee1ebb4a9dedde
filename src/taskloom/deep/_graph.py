"""Walks and passes through the graph that a forward pass leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from torch import Tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")


def walk(loss: Tensor, features: Sequence[Tensor]) -> tuple[list[Tensor], set[Any]]:
    """Leaves that a loss leads to without passing through features, and the nodes on the way.

    Examples:
        >>> import torch
        >>> trunk, head = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> feature = 2 * trunk
        >>> [leaf is head for leaf in walk((feature * head).sum(), [feature])[0]]
        [True]
    """
    stops = {z.grad_fn for z in features}
    leaves: dict[int, Tensor] = {}
    nodes, ahead = set(), [loss.grad_fn]
    while ahead:
        node: Any = ahead.pop()
        if node is None or node in stops or node in nodes:
            continue
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        else:
            nodes.add(node)
            ahead.extend(following for following, _ in node.next_functions)
    return list(leaves.values()), nodes


class _Passing:
    """Backward passes in the shape of a loss that a fabric goes back from."""

    def __init__(self, passes: Callable[[], Any]) -> None:
        self.passes, self.result = passes, cast("Any", None)

    def backward(self, *_args: Any, **_options: Any) -> None:
        self.result = self.passes()


def go_back(fabric: Fabric | None, passes: Callable[[], T]) -> T:
    """Run backward passes; with mixed precision a fabric refuses those that do not go through its own `backward`."""
    if fabric is None:
        return passes()
    passing = _Passing(passes)
    fabric.backward(cast("Any", passing))
    return passing.result
