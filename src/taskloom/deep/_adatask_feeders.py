"""Three ways to hand the gradients of each task to an AdaTask optimizer.

Letters: K tasks, P shared parameters.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor

from taskloom.deep._adatask_parallel import ScaledView, average, group_of
from taskloom.deep._adatask_state import Slots, TaskOptimizer
from taskloom.deep._graph import walk
from taskloom.tasks import DataError, OptionError, is_number

# Gradients that streaming keeps until it updates moments: one call for many small parameters, 4 MB at the most.
CHUNK = 1 << 20


class FedOptimizer(TaskOptimizer):
    """The feeders, and what may be done with gradients before they are used."""

    def backward(
        self,
        losses: Sequence[Tensor | None] | Mapping[str, Tensor | None],
        features: Tensor | Sequence[Tensor] | None = None,
        *,
        retain_graph: bool = False,
    ) -> None:
        """Go back from each loss on its own: per-task gradients of shared parameters are kept, others are added to `.grad`.

        Called again before `step`, it adds to what is there (gradient accumulation). One pass a task: parts of the graph that
        only one loss hangs on are walked once in all.

        Args:
            losses: a scalar a task, in the order of the tasks or by name; None, or a name left out: the task is absent. Not
                a stacked tensor: through that, each loss would walk the heads of all tasks, and an infinite derivative of
                one would make the gradients of all others NaN. A loss of NaN, such as a mean over no rows, beside one that
                is a number counts as absent, as in `fit` and `DominanceMeter`. An infinite one is refused by `step`, before
                anything is moved, and so is one of NaN that was computed together with the others and makes their gradients
                NaN (looked at when a task is first absent in this way); with a `GradScaler`, which may have made it so, the
                step is skipped instead.
            features: tensors that all ways from losses to shared parameters lead through. With them the heads are gone
                through first and their part of the graph is freed.
            retain_graph: keep the graph for another pass after the last one.

        Raises:
            DataError: losses that are no scalars, hang on nothing, are all NaN, or lead past `features` to a shared
                parameter; features of which one hangs on another; a sparse gradient.
            UnknownNameError: a loss of an unknown task.
        """
        named = self._present(self._named(losses))
        if features is not None:
            self._backward_through(named, [features] if isinstance(features, Tensor) else list(features), retain_graph)
            return
        for name, loss in named.items():
            with self.task(name, stream=False):
                loss.backward(retain_graph=retain_graph or name != next(reversed(named)))

    def _named(self, losses: Sequence[Tensor | None] | Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        if isinstance(losses, Tensor):
            raise DataError(
                f"`losses` is one tensor of shape {tuple(losses.shape)}: give a list or dict of scalars, as they were computed"
            )
        if not isinstance(losses, Mapping):
            if not isinstance(losses, Sequence):
                raise DataError(f"`losses`={losses!r}: give a list or dict of scalar tensors, one for each task")
            if len(losses) != len(self.tasks):
                raise DataError(f"`losses` has {len(losses)} for {len(self.tasks)} tasks: give None for a task that is absent")
            losses = dict(zip(self.tasks, losses, strict=True))
        named = {self._name(name): loss for name, loss in losses.items() if loss is not None}
        for name, loss in named.items():
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                shape = tuple(loss.shape) if isinstance(loss, Tensor) else loss
                raise DataError(f"`losses`: that of task `{name}` is {shape}, it must be a scalar tensor; take its mean or sum")
        return named

    def _present(self, named: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses that are no NaN; the tasks of those that are infinite are noted."""
        if not named:
            return named
        kind = reduce(torch.promote_types, (loss.dtype for loss in named.values()))
        device = next(iter(named.values())).device
        # One look at all of them together: each look waits for the device.
        values = torch.stack([loss.detach().reshape(()).to(device, kind) for loss in named.values()]).tolist()
        if all(math.isnan(value) for value in values):
            raise DataError(
                f"`losses` of {', '.join(f'`{name}`' for name in named)} are all NaN: the net has diverged, or the batch has "
                "no labels; give None for a task that is absent"
            )
        present = {name: loss for (name, loss), value in zip(named.items(), values, strict=True) if not math.isnan(value)}
        fixed = next((name for name, loss in present.items() if not loss.requires_grad), None)
        if fixed is not None:
            raise DataError(f"`losses`: that of task `{fixed}` hangs on no parameter; give None where a task is absent")
        self._infinite.update(name for name, value in zip(named, values, strict=True) if math.isinf(value))
        self._absent.update(named.keys() - present.keys())
        return present

    def _backward_through(self, named: dict[str, Tensor], features: list[Tensor], retain_graph: bool) -> None:
        if any(not isinstance(z, Tensor) or z.grad_fn is None for z in features):
            raise DataError("`features` holds what is no tensor or not computed from parameters; give what the trunk puts out")
        for z in features if len(features) > 1 else ():
            # Derivatives of one feature would hold those of the other as well, and the trunk between them be walked twice.
            if walk(z, [])[1] & {other.grad_fn for other in features if other.grad_fn is not z.grad_fn}:
                raise DataError(
                    "`features` hang on one another; give only those that the heads begin at, or leave `features` out"
                )
        ways = {name: walk(loss, features) for name, loss in named.items()}
        shared = {id(weight) for weight in self._shared}
        for name, (leaves, _) in ways.items():
            past = next((leaf for leaf in leaves if id(leaf) in shared), None)
            if past is not None:
                raise DataError(
                    f"`features`: the loss of task `{name}` leads past them to a shared parameter of shape "
                    f"{tuple(past.shape)}; leave `features` out"
                )
        parts: dict[str, list[Tensor | None]] = {}
        ahead = [nodes for _, nodes in ways.values()]
        for k, (name, loss) in enumerate(named.items()):
            leaves, nodes = ways[name]
            is_needed = retain_graph or any(not nodes.isdisjoint(later) for later in ahead[k + 1 :])
            grads = torch.autograd.grad(loss, [*features, *leaves], retain_graph=is_needed, allow_unused=True)
            parts[name] = list(grads[: len(features)])
            for leaf, grad in zip(leaves, grads[len(features) :], strict=True):
                leaf.grad = grad if leaf.grad is None or grad is None else leaf.grad + grad
        reached = [name for name in named if any(part is not None for part in parts[name])]
        for name in reached:
            pairs = [(z, part) for z, part in zip(features, parts.pop(name), strict=True) if part is not None]
            with self.task(name, stream=False):
                torch.autograd.backward(
                    [z for z, _ in pairs],
                    [part for _, part in pairs],
                    retain_graph=retain_graph or name != reached[-1],
                )

    @contextmanager
    def task(self, name: str | int, *, stream: bool = True) -> Generator[None]:
        """What goes back inside belongs to one task: `with optimizer.task("a"): loss.backward(retain_graph=True)`.

        Streamed, a gradient is put into the task's moments as soon as it is there and then dropped: the K gradients never exist
        together. That leaves nothing to clip, to unscale or to add to, and one backward pass a task and step.

        Args:
            name: of the task, or its number.
            stream: False keeps the gradients until `step`.

        Raises:
            UnknownNameError: there is no such task.
            OptionError: another task is open, the task was streamed already in this step, or processes are to be averaged.
            DataError: a shared parameter already has a `.grad`.
        """
        name = self._name(name)
        if self._collector is not None:
            raise OptionError(f"`task`={name!r} opened inside `{self._collector.name}`: leave that one first")
        self._check_mode(name, stream)
        self._hook_parameters()
        collector = _Stream(self, name) if stream else _Store(self, name)
        self._collector = collector
        try:
            yield
            collector.finish()
        finally:
            self._collector = None

    def _check_mode(self, name: str, stream: bool) -> None:
        if self._unscaled is not None or self._is_synchronized:
            raise OptionError(
                f"`task`={name!r} after gradients were unscaled, clipped or averaged: `step` or `zero_grad` first"
            )
        if name in self._streamed:
            raise OptionError(
                f"`task`={name!r} was streamed already in this step; to add up gradients, use `stream=False` or `backward`; "
                "if that pass failed, `zero_grad` before the next one"
            )
        if not stream:
            return
        if name in self._waiting:
            raise OptionError(f"`task`={name!r} has gradients waiting, and would be seen twice in one step; use `stream=False`")
        if group_of(self.settings.data_parallel) is not None:
            raise OptionError(
                "`stream`=True: moments would be moved before processes have averaged; use `stream=False` or `backward`"
            )

    def _hook_parameters(self) -> None:
        for i, weight in enumerate(self._shared):
            if weight.grad is not None:
                raise summed_error(weight)
            if weight.requires_grad and id(weight) not in self._hooked:
                self._hooked.add(id(weight))
                weight.register_post_accumulate_grad_hook(_hook(weakref.ref(self), i))

    def take_jac(self, tasks: Sequence[str | int] | None = None) -> None:
        """Take over the `.jac` fields that torchjd's `backward` and `mtl_backward` leave on shared parameters.

        `step` does so by itself where every row is that of a task, in their order.

        Args:
            tasks: that the rows belong to; all, if not given.

        Raises:
            DataError: a field has another number of rows or another shape.
        """
        names = self.tasks if tasks is None else [self._name(task) for task in tasks]
        found = [(i, weight, jac) for i, weight in enumerate(self._shared) if (jac := getattr(weight, "jac", None)) is not None]
        for _, weight, jac in found:
            if jac.shape != (len(names), *weight.shape):
                raise DataError(
                    f"`.jac` of shape {tuple(jac.shape)} on a parameter of shape {tuple(weight.shape)}: {len(names)} rows, one "
                    f"a task ({', '.join(names)}), are needed; say with `take_jac` which tasks they belong to"
                )
        for name in names if found else ():
            self._check_mode(name, stream=False)
        for i, weight, jac in found:
            for name, row in zip(names, jac, strict=True):
                # Kernels go through memory, not through coordinates: both must lie alike.
                grad = row if row.stride() == weight.stride() else torch.empty_like(weight).copy_(row)
                _add(self._waiting.setdefault(name, [None] * len(self._shared)), i, grad)
            del weight.jac

    def has_fed(self) -> bool:
        """Whether a task's gradients wait for a step."""
        return bool(self._waiting or self._streamed)

    @torch.no_grad()
    def clip_task_gradients(self, max_norm: float) -> dict[str, float]:
        """Shorten the gradient of each task, over all shared parameters, to a norm of `max_norm` at the most.

        Args:
            max_norm: greatest Euclidean norm.

        Returns:
            The norm of each task that is present, before.

        Raises:
            OptionError: a norm that is not positive, or a task was streamed.
        """
        if not is_number(max_norm) or not max_norm > 0:
            raise OptionError(f"`max_norm`={max_norm}: give a positive number")
        self._refuse_streamed("clipped")
        self.take_jac()
        self.synchronize()
        norms = {}
        for name, slots in self._waiting.items():
            grads = [grad for grad in slots if grad is not None]
            norm = torch.linalg.vector_norm(torch.stack([one.float() for one in torch._foreach_norm(grads)]))
            norms[name] = float(norm)
            torch._foreach_mul_(grads, min(1.0, max_norm / (norms[name] + 1e-6)))
        return norms

    @torch.no_grad()
    def unscale_(self, scaler: torch.amp.GradScaler) -> None:
        """Divide what a `GradScaler` scaled, in place of `scaler.unscale_(optimizer)`, which does not see per-task gradients.

        It belongs between the feeder and `scaler.step(optimizer)`. If any gradient of any task is not finite, the step is
        skipped for all of them, and no moment moves.

        Args:
            scaler: that the losses were scaled with.

        Raises:
            OptionError: a task was streamed, so that scaled gradients are in its moments.
        """
        self._refuse_streamed("unscaled")
        self.take_jac()
        # Gradients of finite weights may still be infinite in one process alone: all of them must see it.
        self.synchronize()
        if not scaler.is_enabled():
            return
        # Kept until the next one: the scaler knows it by its address.
        self._unscaled = self._view = ScaledView(
            [grad for slots in self._waiting.values() for grad in slots if grad is not None]
        )
        if self._unscaled.has_gradients():
            scaler.unscale_(cast("Any", self._unscaled))
            scaler.step(cast("Any", self._unscaled))
        if any(weight.grad is not None for group in self.param_groups if not group["shared"] for weight in group["params"]):
            scaler.unscale_(self)

    def _refuse_streamed(self, what: str) -> None:
        if self._streamed:
            raise OptionError(
                f"`{next(iter(self._streamed))}` was streamed: its gradients are in the moments and can no longer be {what}; "
                "use `backward` or `task(..., stream=False)`"
            )

    @torch.no_grad()
    def synchronize(self) -> None:
        """Average waiting gradients, and those of heads, over processes; `step` does so where it was not done."""
        group = group_of(self.settings.data_parallel)
        if group is None or self._is_synchronized:
            return
        heads = [weight for part in self.param_groups if not part["shared"] for weight in part["params"]]
        self._waiting = average(self._waiting, self.tasks, self._shared, group)
        averaged = average({"": [weight.grad for weight in heads]}, [""], heads, group, by_parameter=True) if heads else {}
        for weight, grad in zip(heads, averaged.get("", [None] * len(heads)), strict=True):
            weight.grad = grad
        self._is_synchronized = True


def summed_error(weight: Tensor) -> DataError:
    """What to say of a shared parameter with a `.grad`."""
    return DataError(
        f"a shared parameter of shape {tuple(weight.shape)} has a `.grad`, a sum over tasks that no task can be told from; "
        "feed each loss with `backward(losses)` or inside `task(name)`, or give the parameter's group `'shared': False`"
    )


def sparse_error(weight: Tensor) -> DataError:
    """What to say of a parameter with a sparse gradient."""
    return DataError(f"a parameter of shape {tuple(weight.shape)} has a sparse gradient; make it dense (`sparse=False`)")


def _add(slots: Slots, i: int, grad: Tensor) -> None:
    there = slots[i]
    slots[i] = grad if there is None else there.add_(grad)


def _taken(weight: Tensor) -> Tensor | None:
    grad, weight.grad = weight.grad, None
    if grad is not None and grad.is_sparse:
        raise sparse_error(weight)
    return grad


class _Store:
    """Keeps a task's gradients until the step."""

    def __init__(self, optimizer: FedOptimizer, name: str) -> None:
        self.name = name
        self.slots: Slots = optimizer._waiting.setdefault(name, [None] * len(optimizer._shared))

    def take(self, i: int, weight: Tensor) -> None:
        grad = _taken(weight)
        if grad is not None:
            with torch.no_grad():
                _add(self.slots, i, grad)

    def finish(self) -> None:
        """Nothing is left to do."""


class _Stream:
    """Puts a task's gradients into its moments, some at a time."""

    def __init__(self, optimizer: FedOptimizer, name: str) -> None:
        self.name, self.optimizer = name, optimizer
        self.seen: set[int] = set()
        self.pending: dict[int, Tensor] = {}
        self.size = 0
        self.starts = [(g, *span) for g, span in enumerate(optimizer._spans) if span[0] < span[1]]
        optimizer._streamed[name] = self.seen

    def take(self, i: int, weight: Tensor) -> None:
        grad = _taken(weight)
        if grad is None:
            return
        if i in self.seen:
            raise OptionError(
                f"`task`={self.name!r}: a second gradient of one parameter; to add up gradients, use `stream=False`"
            )
        self.seen.add(i)
        self.pending[i] = grad
        self.size += grad.numel()
        if self.size >= CHUNK:
            self.finish()

    @torch.no_grad()
    def finish(self) -> None:
        for g, first, end in self.starts:
            places = sorted(i - first for i in self.pending if first <= i < end)
            if places:
                self.optimizer._observe(self.name, g, places, [self.pending[first + i] for i in places])
        self.pending, self.size = {}, 0


def _hook(optimizer: weakref.ref[FedOptimizer], i: int) -> Callable[[Tensor], None]:
    def collect(weight: Tensor) -> None:
        owner = optimizer()
        if owner is not None and owner._collector is not None:
            owner._collector.take(i, weight)

    return collect
