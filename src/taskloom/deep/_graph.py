"""Walks and passes through the graph that a forward pass leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from taskloom.tasks import DataError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")


def walk(loss: Tensor, features: Sequence[Tensor]) -> tuple[list[Tensor], set[Any]]:
    """Leaves that a loss leads to without passing through features, and the nodes on the way.

    Examples:
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


def gradients_of(loss: Tensor, weights: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of a loss, whose graph is kept; None for a weight that it does not reach, or that is frozen.

    Examples:
        >>> moved, frozen = torch.ones(1, requires_grad=True), torch.ones(1)
        >>> gradients_of((3 * moved * frozen).sum(), [moved, frozen])
        [tensor([3.]), None]
    """
    trained = [weight for weight in weights if weight.requires_grad]
    found = iter(torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True) if trained else ())
    return [next(found) if weight.requires_grad else None for weight in weights]


def are_finite(gradients: Iterable[Tensor | None]) -> bool:
    """Whether no number in them is infinite or NaN, in one look at all of them.

    Examples:
        >>> are_finite([torch.ones(2), None]), are_finite([torch.tensor([torch.inf])])
        (True, False)
    """
    return _all_are(torch.isfinite, gradients)


def has_nan(gradients: Iterable[Tensor | None]) -> bool:
    """Whether a number in them is NaN, in one look at all of them.

    Examples:
        >>> has_nan([torch.tensor([torch.inf]), None]), has_nan([torch.tensor([0.0, torch.nan])])
        (False, True)
    """
    return not _all_are(lambda norm: ~norm.isnan(), gradients)


def _all_are(sound: Callable[[Tensor], Tensor], gradients: Iterable[Tensor | None]) -> bool:
    values = [grad.coalesce().values() if grad.is_sparse else grad for grad in gradients if grad is not None]
    values = [each for each in values if each.numel()]
    if not values:
        return True
    # The greatest number, not the root of squares: finite numbers are to have a finite one.
    flags = [sound(norm) for norm in torch._foreach_norm(values, torch.inf)]
    return bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all())


def poisoned_error(tasks: str) -> DataError:
    """What to say where a loss of NaN makes the gradients of other tasks NaN.

    Examples:
        >>> print(poisoned_error("`b`"))
        `losses`: that of `b`, NaN for an absent task, makes the gradients of others NaN or infinite, and nothing was moved: ...
    """
    return DataError(
        f"`losses`: that of {tasks}, NaN for an absent task, makes the gradients of others NaN or infinite, and nothing was "
        "moved: zero times NaN is NaN where losses are computed together; give None for it, compute each loss by itself, or "
        "fill missing labels in with `torch.where` before the loss is computed"
    )
