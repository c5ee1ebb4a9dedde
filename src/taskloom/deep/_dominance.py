"""Dominance: how much of each step of a shared parameter is due to which task.

Letters: K tasks, C sampled coordinates of a layer (one parameter tensor), g gradient, m and v first and second moment, du the
part of a step that is due to a task.

The measure is that of Yang et al. (AdaTask, AAAI 2023), an average of squared updates (not gradients) of each task k:

    AU_k = decay AU_k + (1 - decay) du_k^2,   rAU_k = AU_k / sum_j AU_j

A joint step is linear in the tasks' gradients once its denominator is given, so each has its own part: of Adam's that is
-lr mhat_k / (sqrt(vhat) + eps), with m_k an average of g_k alone and the common v. That derivation, and all of what follows,
is ours. The decay of the paper is not known to us; 0.99 a sample is our choice. AU is divided by 1 - decay^samples, so that it
is an average from the first sample on. What weight decay moves belongs to no task, except where an AdaTask optimizer shares
it out over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from taskloom.deep._adatask_settings import task_names
from taskloom.deep._adatask_step import AdaTaskOptimizer
from taskloom.deep._dominance_layers import DominanceViews, Layer, at, choose_layers, shares_of
from taskloom.deep._dominance_parts import Look, Rule, rule_of
from taskloom.deep._graph import gradients_of
from taskloom.tasks import DataError, OptionError, is_number, is_whole, unknown

Losses = Sequence[Tensor | None] | Mapping[str, Tensor | None]
Gradients = Sequence[Sequence[Tensor | None] | None] | Mapping[str, Sequence[Tensor | None] | None]


class DominanceMeter(DominanceViews):
    """AU and rAU of each task and layer, at sampled steps and coordinates, for any of the usual optimizers.

    `observe(losses)` before the backward passes of a step, then the step as ever: a hook on the optimizer does the rest, and
    nothing of the training changes. It knows torch's Adam, AdamW, RMSprop, Adagrad and SGD, and the AdaTask optimizers without
    an aggregator.

    A momentum is split between tasks by the meter's own averages of g_k, which see the sampled steps alone. With `every=1` from
    the first step on the parts add up to the applied step. With more it is an estimate: the averages have the mean and the
    variance of the true ones while gradients are stationary, but lag `every` times as far behind where they are not.
    AdaTask-Adam keeps averages of its own, which are read: nothing is estimated there.

    Losses must be those that the step goes down, weights included, or `weigh` is told the weights. Gradients that are clipped
    or scaled between have larger parts here, all tasks alike. Each process of several sees its own rows. Where gradients of
    several batches are accumulated for one step, all batches after its first are observed with `more=True`.

    Cost: at a sampled step K backward passes (none for AdaTaskAdam and AdaTaskAdamW), with one gradient of the layers in memory
    at a time; at other steps nothing. For C coordinates in all, 3 K C numbers are kept, and C integers.

    Args:
        optimizer: whose steps are looked at; fabric's wrapper of one will do.
        tasks: their number or names; those of an AdaTask optimizer if not given.
        layers: parameters to look at by name, as of `trunk.named_parameters()`. If not given, all in groups without
            `"shared": False`, named as the optimizer was given them or by number.
        every: steps from one sample to the next.
        max_coords: coordinates in all; layers get equal shares, of which small ones pass on what they cannot use.
        decay: of AU from one sample to the next.
        seed: of the choice of coordinates.

    Attributes:
        tasks: names of the K tasks.
        samples: steps that were sampled.
        dropped: sampled steps that were left out because a part was not finite.

    Raises:
        OptionError: an option out of its range, an unknown kind of optimizer, or layers that it does not train.

    Examples:
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = torch.optim.Adam([weight])
        >>> meter = DominanceMeter(optimizer, ["loud", "quiet"], layers={"weight": weight}, every=1)
        >>> for _ in range(5):
        ...     losses = [9 * weight.sum(), weight.sum()]
        ...     meter.observe(losses)
        ...     optimizer.zero_grad()
        ...     sum(losses).backward()
        ...     optimizer.step()
        >>> [(row.task, round(row.median, 3)) for row in meter.table()]
        [('loud', 0.988), ('quiet', 0.012)]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        tasks: int | Sequence[str] | None = None,
        *,
        layers: Mapping[str, Tensor] | None = None,
        every: int = 50,
        max_coords: int = 2**16,
        decay: float = 0.99,
        seed: int | np.random.Generator = 0,
    ) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)
        self.rule: Rule = rule_of(inner)
        self.optimizer: Any = inner
        self.tasks = self._names(tasks)
        if not is_whole(every, 1):
            raise OptionError(f"`every`={every!r}: give a whole number of steps of at least 1")
        if not is_number(decay) or not 0 <= decay < 1:
            raise OptionError(f"`decay`={decay!r}: give a number from 0 to below 1")
        if not isinstance(seed, np.random.Generator) and not is_whole(seed, 0):
            raise OptionError(f"`seed`={seed!r}: give a whole number of at least 0, or a generator of numpy")
        self.every, self.decay = every, decay
        self._layers = self._make_layers(choose_layers(inner, layers), max_coords, np.random.default_rng(seed))
        self.samples, self.dropped, self._calls, self._logged = 0, 0, 0, 0
        self._pending: list[Tensor] | None = None
        # Tasks observed in the coming step, and whether it has begun.
        self._observed: set[str] = set()
        self._is_open = False
        self._clocks: dict[tuple[str, str], float] = {}
        self._handle = inner.register_step_post_hook(self._finish)

    def _names(self, tasks: int | Sequence[str] | None) -> list[str]:
        own = list(self.optimizer.tasks) if isinstance(self.optimizer, AdaTaskOptimizer) else None
        if tasks is None and own is None:
            raise OptionError(
                f"`tasks` is missing: {type(self.optimizer).__name__} does not know of tasks; give their number or names"
            )
        names = own if tasks is None and own is not None else task_names(tasks if tasks is not None else 0)
        if own is not None and names != own:
            raise OptionError(f"`tasks`={names}: those of the optimizer are {own}; leave `tasks` out")
        return names

    def _make_layers(self, chosen: dict[str, tuple[int, Tensor]], room: int, rng: np.random.Generator) -> dict[str, Layer]:
        if not is_whole(room, len(chosen)):
            raise OptionError(f"`max_coords`={room!r}: give a whole number, at least one for each of the {len(chosen)} layers")
        sizes = shares_of([weight.numel() for _, weight in chosen.values()], room)
        layers = {}
        for (name, (g, weight)), size in zip(chosen.items(), sizes, strict=True):
            coords = torch.from_numpy(np.sort(rng.choice(weight.numel(), size, replace=False, shuffle=False)))
            dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
            blank = torch.zeros(len(self.tasks), size, dtype=dtype, device=weight.device)
            layers[name] = Layer(weight, g, coords.to(weight.device), blank, blank, blank)
        return layers

    @property
    def is_due(self) -> bool:
        """Whether the coming step will be sampled: at any other, what `observe` is given is not looked at."""
        return (self._calls + 1) % self.every == 0

    def observe(self, losses: Losses, *, more: bool = False) -> None:
        """Note the losses of the coming step, before their backward passes; `.grad` is left alone.

        Args:
            losses: K scalars in the order of the tasks, or by name; None or NaN for a task that is absent.
            more: these come on top of those observed before in the same step (gradient accumulation).

        Raises:
            DataError: no scalars, or none that hang on parameters.
            UnknownNameError: a loss of an unknown task.
            OptionError: an AdaTask optimizer had a task streamed before, or its tasks have changed.
        """
        named = self._named(losses, "losses")
        if self._starts(more=more):
            present = {name: self._checked(name, loss) for name, loss in named.items() if loss is not None}
            self._store({name: self._differentiate(loss) for name, loss in present.items() if loss is not None})

    def observe_gradients(self, gradients: Gradients, *, more: bool = False) -> None:
        """The same as `observe`, of gradients that are there already.

        Args:
            gradients: for each task in order, or by name, those of the layers in their order (None where a task does not
                reach), or None for a task that is absent.
            more: as for `observe`.

        Raises:
            DataError: not one for each layer and of its shape.
            UnknownNameError: gradients of an unknown task.
            OptionError: an AdaTask optimizer had a task streamed before, or its tasks have changed.
        """
        named = {name: grads for name, grads in self._named(gradients, "gradients").items() if grads is not None}
        for name, grads in named.items():
            shapes = [None if grad is None else tuple(grad.shape) for grad in grads]
            wanted = [tuple(layer.weight.shape) for layer in self._layers.values()]
            if len(shapes) != len(wanted) or any(a is not None and a != b for a, b in zip(shapes, wanted, strict=True)):
                raise DataError(f"`gradients` of task `{name}` have shapes {shapes}: those of the layers are {wanted}")
        if self._starts(more=more):
            self._store({name: self._take(grads) for name, grads in named.items()})

    @torch.no_grad()
    def weigh(self, weights: Tensor) -> None:
        """Multiply what was observed of the coming step: for losses that are weighed only after they were observed.

        A hook on the losses tells the weights, whatever computes them: `losses.register_hook(meter.weigh)` before the backward
        pass of their weighted sum. Where a step is not sampled nothing happens.

        Args:
            weights: (K,), the gradient of what the step goes down with respect to the losses.

        Raises:
            OptionError: below an AdaTask optimizer, where weights of the losses do nothing.
            DataError: not one for each task.

        Examples:
            >>> weight = torch.nn.Parameter(torch.ones(3))
            >>> optimizer = torch.optim.SGD([weight], lr=0.1)
            >>> meter = DominanceMeter(optimizer, ["loud", "quiet"], every=1)
            >>> losses = torch.stack([9 * weight.sum(), weight.sum()])
            >>> meter.observe(list(losses))
            >>> handle = losses.register_hook(meter.weigh)
            >>> (losses / losses.detach()).sum().backward()
            >>> optimizer.step()
            >>> [round(row.median, 3) for row in meter.table()]
            [0.5, 0.5]
        """
        if isinstance(self.optimizer, AdaTaskOptimizer):
            raise OptionError("`weights` of losses below AdaTask do nothing: leave `weigh` out, and see its `task_weights`")
        if tuple(weights.shape) != (len(self.tasks),):
            raise DataError(f"`weights` has shape {tuple(weights.shape)}: give one for each of {len(self.tasks)} tasks")
        if self._pending is not None:
            # A task that is absent has zeros here, whatever its weight.
            self._pending = [torch.where(g == 0, g, g * weights.to(g).unsqueeze(1)) for g in self._pending]

    def _named(self, given: Any, what: str) -> dict[str, Any]:
        if isinstance(given, Tensor):
            raise DataError(f"`{what}` is one tensor of shape {tuple(given.shape)}: give a list or dict, one for each task")
        if isinstance(given, Mapping):
            strange = next((name for name in given if name not in self.tasks), None)
            if strange is not None:
                raise unknown("task", str(strange), self.tasks)
            return dict(given)
        if len(given) != len(self.tasks):
            raise DataError(f"`{what}` has {len(given)} for {len(self.tasks)} tasks: give None for a task that is absent")
        return dict(zip(self.tasks, given, strict=True))

    def _checked(self, name: str, loss: Any) -> Tensor | None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else loss
            raise DataError(f"`losses`: that of task `{name}` is {shape}, it must be a scalar tensor; take its mean or sum")
        if bool(loss.isnan()):
            return None
        if not loss.requires_grad:
            raise DataError(f"`losses`: that of task `{name}` hangs on no parameter; give None where a task is absent")
        return loss

    def _starts(self, *, more: bool) -> bool:
        """Count a step, if this is not one more batch of the last one; whether it is sampled."""
        if more:
            if not self._is_open:
                raise OptionError("`more`=True at the first batch of a step: observe that one without it")
            return self._pending is not None
        if isinstance(self.optimizer, AdaTaskOptimizer):
            if self.optimizer.tasks != self.tasks:
                raise OptionError(f"`tasks` of the optimizer are now {self.optimizer.tasks}; make a new meter")
            if self.is_due and self.optimizer._streamed:
                raise OptionError("`observe` after a task was streamed: moments have moved already; observe before")
        is_due, self._pending, self._is_open = self.is_due, None, True
        self._observed = set()
        self._calls += 1
        return is_due

    def _differentiate(self, loss: Tensor) -> list[Tensor]:
        weights = [layer.weight for layer in self._layers.values()]
        return self._take(gradients_of(loss, weights) if self.rule.needs_gradients else [None] * len(weights))

    def _take(self, grads: Sequence[Tensor | None]) -> list[Tensor]:
        """(C,) of each layer."""
        taken = []
        for grad, layer in zip(grads, self._layers.values(), strict=True):
            dense = grad.to_dense() if grad is not None and grad.is_sparse else grad
            taken.append(layer.parts.new_zeros(len(layer.coords)) if dense is None else at(dense, layer))
        return taken

    @torch.no_grad()
    def _store(self, present: dict[str, list[Tensor]]) -> None:
        """Keep the gradients (K, C) of each layer, and the clocks of AdaTask's tasks, until the step."""
        pending, new = [], present.keys() - self._observed
        for i, layer in enumerate(self._layers.values()):
            absent = layer.parts.new_zeros(len(layer.coords))
            group = self.optimizer.param_groups[layer.group]
            share = float(group["weight_decay"]) / len(self.tasks) if self.rule.shares_decay else 0.0
            # Once a step, however many batches a task has in it.
            decay = share * at(layer.weight, layer) if share else absent
            rows = [present[name][i] + (decay if name in new else 0) if name in present else absent for name in self.tasks]
            pending.append(torch.stack(rows))
        if self._observed and self._pending is not None:
            pending = [one + more for one, more in zip(self._pending, pending, strict=True)]
        self._pending = pending
        self._observed |= new
        self._clocks = self._read_clocks()

    def _read_clocks(self) -> dict[tuple[str, str], float]:
        if not self.rule.has_task_clocks:
            return {}
        states = {name: self.optimizer.state.get(layer.weight, {}) for name, layer in self._layers.items()}
        return {(name, task): float(states[name].get(f"step_{task}", 0)) for name in states for task in self.tasks}

    @torch.no_grad()
    def _finish(self, *_: Any) -> None:
        """After a step, with the optimizer's state as it used it."""
        pending, self._pending, self._is_open = self._pending, None, False
        found = getattr(self.optimizer, "found_inf", None)
        if pending is None or (found is not None and float(found)):
            return
        clocks = self._read_clocks()
        pairs = zip(self._layers.items(), pending, strict=True)
        made = [self._parts_of(name, layer, g, clocks) for (name, layer), g in pairs]
        if not all(bool(parts.isfinite().all()) for parts, _, _ in made):
            self.dropped += 1
            return
        self.samples += 1
        for layer, (parts, memory, is_moved) in zip(self._layers.values(), made, strict=True):
            layer.parts, layer.memory = parts, memory
            layer.moments += is_moved
            layer.usage = torch.lerp(layer.usage, parts.square(), 1 - self.decay)

    def _parts_of(
        self, name: str, layer: Layer, g: Tensor, clocks: dict[tuple[str, str], float]
    ) -> tuple[Tensor, Tensor, bool]:
        """Parts and memory (K, C) after a step, and whether it moved the layer."""
        group, state = self.optimizer.param_groups[layer.group], self.optimizer.state.get(layer.weight, {})
        moved = [clocks[name, task] > self._clocks[name, task] for task in self.tasks] if clocks else None
        is_moved = any(moved) if moved is not None else layer.weight.grad is not None
        if not is_moved:
            return torch.zeros_like(g), layer.memory, False
        look = Look(g, layer.memory, layer.moments + 1, group, state, layer.coords, self.tasks, moved)
        direction, memory = self.rule.parts(look)
        rate = -float(group["lr"]) if not group.get("maximize", False) else float(group["lr"])
        if isinstance(self.optimizer, AdaTaskOptimizer):
            weights = direction.new_tensor(self.optimizer.task_weights).unsqueeze(1)
            direction = self.optimizer.settings.factor(len(self.tasks)) * weights * direction
        return rate * direction, memory, True

    def close(self) -> None:
        """Take the hook off the optimizer."""
        self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """All that coming samples depend on; to be taken between steps."""
        kept = ("coords", "usage", "parts", "memory", "moments")
        return {
            "tasks": list(self.tasks),
            "counts": [self.samples, self.dropped, self._calls, self._logged],
            "layers": {name: {key: getattr(layer, key) for key in kept} for name, layer in self._layers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, with its coordinates, to the bit.

        Args:
            state: of a meter of the same tasks and layers.

        Raises:
            DataError: it is of others.
        """
        if state["tasks"] != self.tasks or list(state["layers"]) != self.layers:
            raise DataError(
                f"`state` is of tasks {state['tasks']} and layers {list(state['layers'])}, "
                f"this meter of {self.tasks} and {self.layers}; make one like it"
            )
        for name, layer in self._layers.items():
            if int(state["layers"][name]["coords"].max()) >= layer.weight.numel():
                raise DataError(f"`state`: layer `{name}` had more coordinates than its {layer.weight.numel()} here")
        self.samples, self.dropped, self._calls, self._logged = state["counts"]
        self._pending, self._is_open = None, False
        for name, layer in self._layers.items():
            for key, value in state["layers"][name].items():
                setattr(layer, key, value.to(layer.weight.device) if isinstance(value, Tensor) else value)
