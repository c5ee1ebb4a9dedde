"""A watch on dominance while a recipe trains: the meter behind the update steps of the fit loop.

Letters: K tasks.

The steps that can be taken apart are those down a sum of losses, weighted or not, by one optimizer (`SumStep`,
`ScalarizedStep`), and AdaTask's. A step out of gradients that an aggregator has joined has no parts that are due to one task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from taskloom.deep._dominance import DominanceMeter
from taskloom.deep._dominance_parts import rule_of
from taskloom.deep._fit import UpdateFactory
from taskloom.deep._graph import go_back
from taskloom.deep._scalarized_step import ScalarizedStep
from taskloom.deep._task_gradients import AdaTaskStep
from taskloom.deep._update import SumStep, UpdateStep
from taskloom.tasks import OptionError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class MeteredStep(UpdateStep):
    """An update step whose dominance is measured; it moves the weights as the step that it wraps does, to the bit.

    Which parameters are shared is read off the first batch of two tasks or more: heads, each number of which one task alone
    moves, are not. Weights of the losses are seen where they act, in the backward pass. A scaler of half precision (CUDA,
    `16-mixed`) makes AU of weighted losses larger, and rAU not. Where AdaTask's step makes its optimizer at the first batch,
    the meter is there from the second one on; as AdaTask-Adam's state tells all, nothing is lost.

    Args:
        inner: the step.
        optimizer: of all weights, that the inner step was made with.
        weights: the net's parameters by name.
        every: steps from one sample to the next.
        fabric: that the net was set up with; None for none.

    Attributes:
        meter: None until the shared parameters are known, and for good where there are none.

    Raises:
        OptionError: `every` below 1, or a step or optimizer that cannot be taken apart.
    """

    def __init__(
        self,
        inner: UpdateStep,
        optimizer: Optimizer,
        weights: Mapping[str, Tensor],
        every: int,
        fabric: Fabric | None = None,
    ) -> None:
        check_every(every)
        self.fabric = fabric
        self.inner, self.optimizer, self.every = inner, getattr(optimizer, "optimizer", optimizer), every
        if not isinstance(inner, SumStep | ScalarizedStep | AdaTaskStep) or _has_aggregator(inner):
            raise OptionError(
                f"`dominance_every`={every}: a step out of joined gradients ({type(inner).__name__}) has no parts that are due "
                "to one task; leave it at 0"
            )
        rule_of(self.optimizer)
        trained = {weight for group in self.optimizer.param_groups for weight in group["params"]}
        self.weights = {name: weight for name, weight in weights.items() if weight in trained}
        self.meter: DominanceMeter | None = None
        self._has_looked = False

    def meet(self, net: nn.Module) -> None:
        """As the inner step does."""
        self.inner.meet(net)

    def trunk_passes(self, n_tasks: int) -> tuple[float, float] | None:
        """Those of the inner step: samples are the meter's own."""
        return self.inner.trunk_passes(n_tasks)

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step of the inner kind."""
        self.inner.all_present, self._has_looked = self.all_present, False
        losses = self.inner.step(partial(self._watched, closure))
        if self.meter is None and isinstance(self.inner, AdaTaskStep):
            self._start(self._shared_of_adatask(self.inner), len(losses))
        return losses

    def _watched(self, closure: Callable[[], Tensor]) -> Tensor:
        losses = closure()
        # Some steps look at the losses once more after it.
        if not self._has_looked and losses.requires_grad:
            self._has_looked = True
            go_back(self.fabric, partial(self._observe, losses))
        return losses

    def _observe(self, losses: Tensor) -> None:
        if self.meter is None and not isinstance(self.inner, AdaTaskStep):
            self._start(shared_names(losses, self.weights), len(losses))
        if self.meter is None:
            return
        is_due = self.meter.is_due
        self.meter.observe(list(losses.unbind()) if is_due else [None] * len(losses))
        if is_due and isinstance(self.inner, ScalarizedStep):
            losses.register_hook(self.meter.weigh)

    def _start(self, names: Sequence[str], n_tasks: int) -> None:
        optimizer = self.inner.adatask if isinstance(self.inner, AdaTaskStep) else self.optimizer
        if names and n_tasks > 1 and optimizer is not None:
            layers = {name: self.weights[name] for name in names}
            # A layer that no coordinate is left for cannot be looked at.
            room = max(2**16, len(layers))
            self.meter = DominanceMeter(optimizer, n_tasks, layers=layers, every=self.every, max_coords=room)

    def _shared_of_adatask(self, step: AdaTaskStep) -> list[str]:
        groups = [] if step.adatask is None else step.adatask.param_groups
        shared = {weight for group in groups if group["shared"] for weight in group["params"]}
        return [name for name, weight in self.weights.items() if weight in shared and weight.numel()]

    def found(self, tasks: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
        """Histogram and median of rAU by layer and task, JSON-able; empty where nothing was sampled.

        Args:
            tasks: names of the K tasks.

        Returns:
            For each layer that moved and each task `counts`, sampled coordinates in bins of equal width from 0 to 1, and
            `median`.
        """
        if self.meter is None or not self.meter.samples:
            return {}
        medians = {(row.layer, row.task): row.median for row in self.meter.table()}
        return {
            layer: {
                task: {"counts": counts.tolist(), "median": round(medians[layer, number], 4)}
                for task, number, counts in zip(tasks, self.meter.tasks, self.meter.counts(layer), strict=True)
            }
            for layer in self.meter.layers
            if np.isfinite(medians[layer, self.meter.tasks[0]])
        }

    def state_dict(self) -> dict[str, Any]:
        """The inner step's state and the meter's."""
        meter = None if self.meter is None else {"n_tasks": len(self.meter.tasks), "state": self.meter.state_dict()}
        return {"inner": self.inner.state_dict(), "meter": meter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.inner.load_state_dict(state["inner"])
        if self.meter is not None:
            self.meter.close()
            self.meter = None
        if state["meter"] is not None:
            self._start(list(state["meter"]["state"]["layers"]), state["meter"]["n_tasks"])
        if state["meter"] is not None and self.meter is not None:
            self.meter.load_state_dict(state["meter"]["state"])


class DominanceWatch:
    """What a recipe keeps of the meter of one fit.

    Args:
        tasks: names of the K tasks.
        every: steps from one sample to the next; 0 measures nothing.

    Raises:
        OptionError: `every` below 0.
    """

    def __init__(self, tasks: Sequence[str], every: int) -> None:
        if every:
            check_every(every)
        self.tasks, self.every = list(tasks), every
        self._step: MeteredStep | None = None

    def over(self, update: UpdateFactory, net: nn.Module) -> UpdateFactory:
        """A factory of the same steps, with the meter around them."""
        if not self.every:
            return update

        def metered(optimizer: Optimizer, fabric: Any) -> UpdateStep:
            self._step = MeteredStep(update(optimizer, fabric), optimizer, dict(net.named_parameters()), self.every, fabric)
            return self._step

        return metered

    def found(self) -> dict[str, dict[str, dict[str, Any]]]:
        """See `MeteredStep.found`."""
        return {} if self._step is None else self._step.found(self.tasks)


def check_every(every: int) -> None:
    """Refuse what is no number of steps.

    Raises:
        OptionError: below 1.
    """
    if every < 1:
        raise OptionError(f"`dominance_every`={every}: give a number of steps of at least 1, or 0 to measure nothing")


def shared_names(losses: Tensor, weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters of which some number is moved by two tasks or more.

    Args:
        losses: (K,) with their graph; NaN for a task that is absent.
        weights: parameters by name.

    Examples:
        >>> both, own = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> shared_names(torch.stack([both.sum() + own[0], both[0] + own[1]]), {"both": both, "own": own})
        ['both']
    """
    movers = {name: torch.zeros_like(weight, dtype=torch.int32) for name, weight in weights.items()}
    for loss, is_absent in zip(losses.unbind(), losses.detach().isnan().tolist(), strict=True):
        if is_absent:
            continue
        grads = torch.autograd.grad(loss, list(weights.values()), retain_graph=True, allow_unused=True)
        for name, grad in zip(movers, grads, strict=True):
            if grad is not None:
                movers[name] += (grad.to_dense() if grad.is_sparse else grad) != 0
    return [name for name, count in movers.items() if count.numel() and int(count.max()) > 1]


def _has_aggregator(step: UpdateStep) -> bool:
    return isinstance(step, AdaTaskStep) and step.joining.get("aggregator") is not None
