"""Aggregation at the features that tasks share, in place of the weights that they share.

Letters: k tasks in a batch, n rows, h width of the trunk's output Z, P parameters of the trunk.

By the chain rule the gradient of loss k on the trunk's weights is J' dL_k/dZ, with the Jacobian J of Z by the weights that all
tasks have in common. An aggregator that sees the k gradients by Z, matrices of n x h numbers, makes one cotangent out of them,
and that goes back through the trunk once, instead of k of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from taskloom.deep._aggregators import Aggregator, aggregate
from taskloom.deep._graph import go_back, walk
from taskloom.deep._shared_weights import is_shared
from taskloom.deep._task_gradients import AggregatedStep, task_gradients
from taskloom.tasks import OptionError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_REMEDY = "name the part that all tasks go through first `encoder`, as `SharedBottom` does, or leave `featurewise` out"


class FeaturewiseStep(AggregatedStep):
    """The gradients of the tasks by the output of the shared trunk joined by an aggregator, then one pass through the trunk.

    It costs about one backward pass whatever the number of tasks; heads take their own gradients. It is a surrogate: lengths
    and angles between gradients by the features are not those between gradients by the weights, so that an aggregator finds
    other conflicts, and what it promises (such as that no loss rises) it promises for the features alone. Both are the same
    for aggregators that are linear, such as the mean, and where the trunk's Jacobian keeps angles. Sener & Koltun (NeurIPS
    2018) replace the gradients of MGDA in this way, and call it an upper bound; for other aggregators it is our inference.

    The trunk is the net's module `encoder`. Every way from a loss to its weights must lead through its output, and no weight
    behind it may be moved by several tasks. Tasks must share rows: with own rows their gradients by features never meet.

    Args:
        optimizer: steps with the joined gradient.
        fabric: see `TaskGradientStep`.
        aggregator: maps a matrix (k, n h) to one cotangent (n h,); see `AggregatedStep`.

    Raises:
        OptionError: a net without such a trunk, or tasks that do not share rows; before anything is moved.

    Examples:
        >>> from taskloom.deep import SharedBottom
        >>> from taskloom.tasks import Task
        >>> net = SharedBottom(4, [Task("a"), Task("b")])
        >>> step = FeaturewiseStep(torch.optim.Adam(net.parameters()), None, lambda matrix: matrix.mean(dim=0))
        >>> step.meet(net)
        >>> step.step(lambda: net(torch.ones(3, 4)).square().mean(dim=0)).shape
        torch.Size([2])
    """

    def __init__(self, optimizer: Optimizer, fabric: Fabric | None, aggregator: Aggregator) -> None:
        super().__init__(optimizer, fabric, aggregator)
        self.encoder: nn.Module | None = None
        self._is_checked = False

    def meet(self, net: nn.Module) -> None:
        """Find the trunk.

        Raises:
            OptionError: the net has no module `encoder`.
        """
        encoder = getattr(net, "encoder", None)
        if not isinstance(encoder, nn.Module):
            raise OptionError(f"`featurewise`=True with a {type(net).__name__} without a module `encoder`: {_REMEDY}")
        self.encoder = encoder

    def trunk_passes(self, n_tasks: int) -> tuple[float, float]:  # noqa: ARG002
        """One of each: gradients of tasks apart end at the trunk's output."""
        return 1.0, 1.0

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step; tasks without labels in the batch take no part."""
        losses, features = self._forward(closure)
        chosen, present = self._chosen(losses)
        if present:
            go_back(self.fabric, lambda: self._fill(chosen, features, present, len(losses)))
            self.optimizer.step()
            self.optimizer.zero_grad()
        return losses.detach()

    def _fill(self, chosen: Tensor, features: Tensor, present: list[int], n_tasks: int) -> None:
        """Put the joined gradient into the trunk's `.grad`, and those of the tasks into those of the heads."""
        rows = task_gradients(chosen, [features], retain_graph=True)[0]
        self._check_absent([rows], present, n_tasks)
        if self.shared is None:
            self._find_shared(chosen, features)
        if not self._is_checked:
            self._check_tasks(chosen, rows)
        marked = [pair for pair in zip(self.parameters, self.shared or [], strict=True) if pair[0].requires_grad]
        matrix = rows.flatten(1)
        # Products of numbers of 16 bits over many rows would be of little worth.
        matrix = matrix.float() if matrix.dtype in {torch.float16, torch.bfloat16} else matrix
        joined = aggregate(self.aggregator, matrix, present).view_as(features).to(features.dtype)
        _set_gradients([weight for weight, is_common in marked if not is_common], chosen.sum(), None, retain_graph=True)
        _set_gradients([weight for weight, is_common in marked if is_common], features, joined)

    def _forward(self, closure: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """The losses of a batch, and what the trunk put out on the way."""
        if self.encoder is None:
            raise OptionError("`meet` was not called: show the step its net before the first step, as `fit` does")
        seen: list[Tensor] = []
        # Not kept between steps: a hook would stay on the net that the caller gets back.
        handle = self.encoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            losses = closure()
        finally:
            handle.remove()
        if len(seen) != 1 or not isinstance(seen[0], Tensor) or seen[0].grad_fn is None:
            what = f"ran {len(seen)} times" if len(seen) != 1 else "did not put out one tensor that hangs on parameters"
            raise OptionError(f"`featurewise`=True, but the net's `encoder` {what} in a forward pass: {_REMEDY}")
        return losses, seen[0]

    def _find_shared(self, chosen: Tensor, features: Tensor) -> None:
        """Which weights are the trunk's."""
        trunk = {id(leaf) for leaf in walk(features, [])[0]}
        if any(id(leaf) in trunk for leaf in walk(chosen.sum(), [features])[0]):
            raise OptionError(f"`featurewise`=True, but losses lead past the output of `encoder` to its weights: {_REMEDY}")
        self.shared = [id(weight) in trunk for weight in self.parameters]

    def _check_tasks(self, chosen: Tensor, rows: Tensor) -> None:
        """Refuse what the cotangents of features do not serve, at the first batch in which two tasks' gradients show it.

        Behind heads whose weights begin at zero the first ones are zero.
        """
        if len(rows) < 2 or int((rows != 0).flatten(1).any(dim=1).sum()) < 2:
            return
        if not is_shared(rows):
            raise OptionError(
                "`featurewise`=True needs tasks that share rows: where each row is of one task, no two tasks' gradients by "
                "features meet, and there is nothing to balance; leave `featurewise` out"
            )
        marked = zip(self.parameters, self.shared or [], strict=True)
        behind = [weight for weight, is_common in marked if not is_common and weight.requires_grad]
        found = task_gradients(chosen, behind, retain_graph=True) if behind else []
        common = next((weight for weight, jac in zip(behind, found, strict=True) if is_shared(jac)), None)
        if common is not None:
            raise OptionError(
                f"`featurewise`=True, but a weight of shape {tuple(common.shape)} behind `encoder` is moved by several "
                f"tasks: {_REMEDY}"
            )
        self._is_checked = True


def _set_gradients(weights: list[Tensor], source: Tensor, cotangent: Tensor | None, *, retain_graph: bool = False) -> None:
    """The gradients of a source by weights as their `.grad`; zeros where it does not hang on them."""
    if not weights:
        return
    found = torch.autograd.grad(source, weights, cotangent, retain_graph=retain_graph, materialize_grads=True)
    for weight, grad in zip(weights, found, strict=True):
        weight.grad = grad
