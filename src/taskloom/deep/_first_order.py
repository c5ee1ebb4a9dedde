"""Effects between tasks to first order, by their gradients at the last layer that they share.

Letters: K tasks, P numbers of that layer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from taskloom.deep._frozen_heads import TaskHeads
from taskloom.deep._proximal_affinity import first_order_effects, task_steps
from taskloom.tasks import Array


class LastShared:
    """The layer that tasks share and that is nearest to their losses.

    Args:
        weight: of the layer.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    @classmethod
    def find(cls, losses: Tensor | Sequence[Tensor | None], heads: TaskHeads) -> LastShared | None:
        """Walk back from a loss, breadth first, to the first shared matrix, or else to the first shared parameter."""
        shared = {id(weight) for weight, owner in zip(heads.parameters, heads.owners, strict=True) if owner == -2}
        start = next((loss for loss in losses if loss is not None and loss.grad_fn is not None), None)
        ahead, met, fallback = deque([None if start is None else start.grad_fn]), set(), None
        while ahead:
            node: Any = ahead.popleft()
            if node is None or node in met:
                continue
            met.add(node)
            weight = getattr(node, "variable", None)
            if weight is not None and id(weight) in shared:
                if weight.dim() > 1:
                    return cls(weight)
                fallback = weight if fallback is None else fallback
            ahead.extend(following for following, _ in node.next_functions)
        return None if fallback is None else cls(fallback)

    def effects(
        self, losses: Tensor | Sequence[Tensor | None], values: Array, optimizer: Any, names: Sequence[str] | None
    ) -> Array:
        """(K, K) effects, see `first_order_effects`; the graph is kept.

        Args:
            losses: of the K tasks, with their graph.
            values: the same (K,), NaN for absent tasks.
            optimizer: whose learning rate and second moments scale the gradients.
            names: K, that an optimizer of tasks knows them by; None for another optimizer.
        """
        gradients = [
            None if loss is None or not (abs(value) < float("inf")) or not loss.requires_grad else self._gradient(loss)
            for loss, value in zip(losses, values, strict=True)
        ]
        if all(grad is None for grad in gradients):
            return values[:, None] * values[None, :] * float("nan")
        suffixes = [None] * len(gradients) if names is None else names
        steps, matrix = task_steps(gradients, [self._scale(optimizer, name) for name in suffixes])
        return first_order_effects(steps, matrix, values)

    def _gradient(self, loss: Tensor) -> Tensor | None:
        return torch.autograd.grad(loss, self.weight, retain_graph=True, allow_unused=True)[0]

    def _scale(self, optimizer: Any, task: str | None) -> Tensor | float:
        """What a gradient is multiplied by on its way into the weight; the learning rate alone before the first step."""
        group = next(each for each in optimizer.param_groups if any(self.weight is weight for weight in each["params"]))
        rate, state = float(group["lr"]), optimizer.state.get(self.weight, {})
        suffix = "" if task is None else f"_{task}"
        moment = next((state[name + suffix] for name in ("exp_avg_sq", "square_avg", "sum") if name + suffix in state), None)
        if moment is None:
            return rate
        if f"exp_avg_sq{suffix}" in state and "betas" in group:
            moment = moment / (1 - group["betas"][1] ** float(state[f"step{suffix}"]))
        return rate / (moment.sqrt() + group["eps"])
