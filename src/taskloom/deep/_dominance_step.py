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
from taskloom.deep._graph import go_back, gradients_of
from taskloom.deep._scalarized_step import ScalarizedStep
from taskloom.deep._shared_weights import SharedWeights
from taskloom.deep._task_gradients import AdaTaskStep
from taskloom.deep._update import SumStep, UpdateStep
from taskloom.tasks import OptionError, is_whole

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class MeteredStep(UpdateStep):
    """An update step whose dominance is measured; it moves the weights as the step that it wraps does, to the bit.

    Which parameters are shared is read off the gradients (see `SharedWeights`), as soon as each of them was moved by some task
    and at the latest after ten batches: heads, each number of which one task alone moves, are not. Weights of the losses are
    seen where they act, in the backward pass. A scaler of half precision (CUDA, `16-mixed`) makes AU of weighted losses larger,
    and rAU not. Where AdaTask's step makes its optimizer at the first batch, the meter is there from the second one on; as
    AdaTask-Adam's state tells all, nothing is lost.

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
        self.finder = SharedWeights(list(self.weights.values()))
        self._has_looked = False

    def meet(self, net: nn.Module) -> None:
        """As the inner step does."""
        self.inner.meet(net)

    def trunk_passes(self, n_tasks: int) -> tuple[float, float] | None:
        """Those of the inner step: samples are the meter's own."""
        return self.inner.trunk_passes(n_tasks)

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step of the inner kind."""
        self.inner.all_present, self.inner.masks_absent, self._has_looked = self.all_present, self.masks_absent, False
        losses = self.inner.step(partial(self._watched, closure))
        if self.meter is None and isinstance(self.inner, AdaTaskStep) and self.inner.finder.is_settled(len(losses)):
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
            self._find_shared(losses)
        if self.meter is None:
            return
        is_due = self.meter.is_due
        self.meter.observe(list(losses.unbind()) if is_due else [None] * len(losses))
        if is_due and isinstance(self.inner, ScalarizedStep):
            losses.register_hook(self.meter.weigh)

    def _find_shared(self, losses: Tensor) -> None:
        """Look at a batch for the parameters that are shared, and start the meter once they are known."""
        present = torch.nonzero(~losses.detach().isnan()).squeeze(1).tolist()
        if not present or not self.finder.is_due(present):
            return
        rows = (gradients_of(losses[k], list(self.weights.values())) for k in present)
        self.finder.look(rows, present, len(losses))
        if self.finder.is_settled(len(losses)):
            self._start([name for name, shared in zip(self.weights, self.finder.shared, strict=True) if shared], len(losses))

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
        return {"inner": self.inner.state_dict(), "finder": self.finder.state_dict(), "meter": meter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.inner.load_state_dict(state["inner"])
        self.finder.load_state_dict(state["finder"])
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
    if not is_whole(every, 1):
        raise OptionError(f"`dominance_every`={every!r}: give a whole number of steps of at least 1, or 0 to measure nothing")


def _has_aggregator(step: UpdateStep) -> bool:
    return isinstance(step, AdaTaskStep) and step.joining.get("aggregator") is not None
