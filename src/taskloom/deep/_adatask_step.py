"""The step of an AdaTask optimizer: what was fed moves the parameters.

Letters: K tasks, P shared parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from taskloom.deep._adatask_feeders import FedOptimizer, sparse_error, summed_error
from taskloom.deep._adatask_kernels import Group, Lane, Rate
from taskloom.deep._adatask_state import HALVES
from taskloom.deep._aggregators import aggregate
from taskloom.deep._graph import are_finite, poisoned_error
from taskloom.tasks import DataError, OptionError


class AdaTaskOptimizer(FedOptimizer):
    """What all AdaTask optimizers do.

    Every step: feed the gradients of each task by `backward`, `task` or torchjd's `.jac` fields, then `step`. A task that was
    not fed is skipped, its moments and its clock stay as they are; a gradient of zeros is an observation like any other.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the parameters once, by what was fed since the last step, and forget it.

        Args:
            closure: zeroes gradients, computes losses, feeds them, and returns what `step` is to return.

        Returns:
            What the closure returned.

        Raises:
            DataError: a shared parameter has a `.grad`, which was summed over tasks; or a loss was infinite, or that of an
                absent task has made the gradients of others NaN, and no scaler takes the step; or a gradient is sparse.
            OptionError: a scaler takes the step, but gradients were not unscaled by `unscale_`; a task is open; or a group is
                no longer marked as `shared` as it was.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._check_fed()
            may_step = self._may_step()
            if self._unscaled is None:
                self._check_numbers()
            if may_step:
                self.synchronize()
                self._step_heads()
                self._step_shared()
            self._forget()
        return loss

    def _check_numbers(self) -> None:
        """Refuse gradients that `backward` could see come to nothing; without a look at them where every loss was finite."""
        if self._infinite:
            raise DataError(
                f"`losses`: that of task `{min(self._infinite)}` is infinite, and nothing was moved; lower the learning "
                "rate or clip what the loss is made of, and `zero_grad` before going on"
            )
        if self._absent <= self._harmless:
            return
        heads = [weight.grad for group in self.param_groups if not group["shared"] for weight in group["params"]]
        if not are_finite(grad for slots in (*self._waiting.values(), heads) for grad in slots):
            raise poisoned_error(", ".join(f"`{name}`" for name in sorted(self._absent)))
        self._harmless |= self._absent

    def _check_fed(self) -> None:
        self._refuse_open("step")
        changed = [g for g, group in enumerate(self.param_groups) if group["shared"] is not self._marks[g]]
        if changed:
            raise OptionError(
                f"`shared` of group {changed[0]} was changed after it was added, and nothing was moved: its moments are of "
                "another kind; make a new optimizer"
            )
        for weight in self._shared:
            if weight.grad is not None:
                raise summed_error(weight)
        for weight in (weight for group in self.param_groups if not group["shared"] for weight in group["params"]):
            if weight.grad is not None and weight.grad.is_sparse:
                raise sparse_error(weight)
        self.take_jac()

    def _may_step(self) -> bool:
        """Whether no scaler has found an infinite gradient."""
        found = getattr(self, "found_inf", None)
        if found is None:
            return self._unscaled is None or self._unscaled.is_clean
        if self._unscaled is None and (self._waiting or self._streamed):
            self._refuse_streamed("unscaled")
            raise OptionError("a GradScaler does not see per-task gradients: call `unscale_(scaler)` before `scaler.step`")
        is_clean = (self._unscaled is None or self._unscaled.is_clean) and not float(found)
        scale = getattr(self, "grad_scale", None)
        if is_clean and scale is not None:
            heads = [weight.grad for group in self.param_groups if not group["shared"] for weight in group["params"]]
            grads = [grad for grad in heads if grad is not None]
            if grads:
                torch._foreach_div_(grads, float(scale))
        return is_clean

    def _step_heads(self) -> None:
        """The stock update of parameters that are not shared."""
        for g, group in enumerate(self.param_groups):
            if group["shared"]:
                continue
            grads = [weight.grad for weight in group["params"]]
            for lane in self._lanes(g, None, [i for i, grad in enumerate(grads) if grad is not None]):
                chosen = [grad for i in lane.places if (grad := grads[i]) is not None]
                rate = Rate(float(group["lr"]), float(group["weight_decay"]), self._kernel_on(lane.params[0]))
                self._stock_kernel(lane, lane.params, chosen, group, rate)

    def _stock_kernel(self, lane: Lane, targets: list[Tensor], grads: list[Tensor], group: Group, how: Rate) -> None:
        self.kernel(lane, targets, grads, group, how)

    def _step_shared(self) -> None:
        for g, (first, end) in enumerate(self._spans):
            places: dict[str, list[int]] = {}
            for name in self.tasks:
                slots = self._waiting.get(name)
                there = [] if slots is None else [i for i in range(end - first) if slots[first + i] is not None]
                if there:
                    places[name] = there
            if places and self._can_write_directly(g):
                self._step_directly(g, places)
            else:
                for name, there in places.items():
                    self._observe(name, g, there, self._grads(name, first, there))
        if self._directions:
            self._move()

    def _grads(self, name: str, first: int, places: Sequence[int]) -> list[Tensor]:
        slots = self._waiting[name]
        return [grad for i in places if (grad := slots[first + i]) is not None]

    def _can_write_directly(self, g: int) -> bool:
        """Whether the K normalised directions may go into the parameters one after the other, without a place of their own."""
        group, (first, end) = self.param_groups[g], self._spans[g]
        is_apart = (
            self.has_own_momentum
            or self.settings.aggregator is not None
            or any(any(one is not None for one in slots[first:end]) for slots in self._directions.values())
        )
        # A decay that is part of the gradient must come from the parameters as they were before any task moved them.
        is_moving = bool(group["weight_decay"]) and not self.decouples_decay and len(self.tasks) > 1
        return not is_apart and not is_moving and all(weight.dtype not in HALVES for weight in group["params"])

    def _step_directly(self, g: int, places: dict[str, list[int]]) -> None:
        group, first = self.param_groups[g], self._spans[g][0]
        factor, rate, decay = self.settings.factor(len(self.tasks)), float(group["lr"]), float(group["weight_decay"])
        weights = dict(zip(self.tasks, self._weights, strict=True))
        opening = next(iter(places))
        is_even = all(there == places[opening] for there in places.values())
        first_rate = rate * factor * weights[opening]
        # The first task's kernel lets the parameters decay for all. As a part of the gradient, decay is here with K = 1.
        first_decay = decay
        if decay and self.decouples_decay and first_rate != rate:
            first_decay = decay * rate / first_rate if first_rate else 0.0
        if self.decouples_decay and not is_even:
            first_decay = 0.0
        if decay and not first_decay:
            reached = sorted({i for there in places.values() for i in there})
            torch._foreach_mul_([group["params"][i] for i in reached], 1 - rate * decay)
        for name, there in places.items():
            for lane in self._lanes(g, name, there):
                slots = self._waiting[name]
                grads = [grad for i in lane.places if (grad := slots[first + i]) is not None]
                how = Rate(
                    rate * factor * weights[name], first_decay if name == opening else 0.0, self._kernel_on(lane.params[0])
                )
                self.kernel(lane, lane.params, grads, group, how)

    def _move(self) -> None:
        """Go down the joined directions."""
        joined = self._joined()
        factor = 1.0 if self.settings.aggregator is not None else self.settings.factor(len(self.tasks))
        for group, (first, end) in zip(self.param_groups, self._spans, strict=True):
            pairs = [
                (weight, direction)
                for weight, direction in zip(group["params"], joined[first:end], strict=False)
                if direction is not None
            ]
            if not pairs:
                continue
            weights, directions = [weight for weight, _ in pairs], [direction for _, direction in pairs]
            rate = float(group["lr"])
            if group["weight_decay"] and self.decouples_decay:
                torch._foreach_mul_(weights, 1 - rate * float(group["weight_decay"]))
            self._settle(group, weights, directions)
            torch._foreach_mul_(directions, -rate * factor)
            if any(weight.dtype in HALVES for weight in weights):
                directions = [one.to(weight.dtype) for one, weight in zip(directions, weights, strict=True)]
            torch._foreach_add_(weights, directions)

    def _settle(self, group: Group, weights: list[Tensor], directions: list[Tensor]) -> None:
        """What happens to the joined directions of some parameters before they are gone down."""

    def _joined(self) -> list[Tensor | None]:
        aggregator = self.settings.aggregator
        if aggregator is None:
            return next(iter(self._directions.values()))
        names = [name for name in self.tasks if name in self._directions]
        rows = [self._directions[name] for name in names]
        used = [i for i in range(len(self._shared)) if any(row[i] is not None for row in rows)]
        kind = torch.float64 if any(self._shared[i].dtype == torch.float64 for i in used) else torch.float32
        matrix = torch.stack([torch.cat([_flat(row[i], self._shared[i], kind) for i in used]) for row in rows])
        vector = aggregate(aggregator, matrix, names)
        if not isinstance(vector, Tensor) or vector.shape != matrix.shape[1:]:
            shape = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
            raise OptionError(
                f"`aggregator` made {shape} of a matrix {tuple(matrix.shape)}: it must give a vector of its columns"
            )
        joined: list[Tensor | None] = [None] * len(self._shared)
        for i, part in zip(used, vector.detach().split([self._shared[i].numel() for i in used]), strict=True):
            joined[i] = part.view(self._shared[i].shape).to(kind, copy=True)
        return joined


def _flat(direction: Tensor | None, weight: Tensor, kind: torch.dtype) -> Tensor:
    return weight.new_zeros(weight.numel(), dtype=kind) if direction is None else direction.reshape(-1).to(kind)
