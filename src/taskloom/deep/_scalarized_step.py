"""Update steps that weigh the losses before one backward pass, by a scalarizer such as those of torchjd.

Letters: K tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from taskloom.deep._aggregators import memory_of, set_memory
from taskloom.deep._update import UpdateStep

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class ScalarizedStep(UpdateStep):
    """One loss out of K by a scalarizer, one backward pass, one optimizer step.

    A scalarizer with parameters of its own (uncertainty weighting) has them trained by an Adam with the net's learning rate.
    One with an `update` (FAMO) is shown the losses of the same batch after the step, which costs a second forward pass. One
    with a `step` (dynamic weight average) is told after every `window` steps that an epoch is over. A task that is absent from
    a batch counts with the last loss that it had, or 1 before its first, without a gradient.

    Args:
        optimizer: of all weights.
        fabric: whose precision scales the backward pass; None for none.
        make: makes the scalarizer for K tasks.
        window: steps in what a scalarizer takes for an epoch.
    """

    def __init__(self, optimizer: Optimizer, fabric: Fabric | None, make: Callable[[int], nn.Module], window: int = 50) -> None:
        self.optimizer, self.fabric, self.make, self.window = optimizer, fabric, make, window
        self.age = 0
        # A module with whatever else its kind has.
        self.scalarizer: Any = None
        self.own: Optimizer | None = None
        self.last: Tensor | None = None

    def trunk_passes(self, n_tasks: int) -> tuple[float, float]:
        """One of each, and a second forward one for a scalarizer that looks at the losses after the step."""
        return (2.0 if hasattr(self.scalarizer or self.make(n_tasks), "update") else 1.0), 1.0

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step down the scalarized losses."""
        self.optimizer.zero_grad()
        losses = closure()
        scalarizer = self._scalarizer(len(losses), losses.device)
        filled = self._filled(losses)
        total = scalarizer(filled)
        if self.own is not None:
            self.own.zero_grad()
        total.backward() if self.fabric is None else self.fabric.backward(total)
        self.optimizer.step()
        if self.own is not None:
            self.own.param_groups[0]["lr"] = self.optimizer.param_groups[0]["lr"]
            self.own.step()
        if hasattr(scalarizer, "update"):
            with torch.no_grad():
                after = closure()
            scalarizer.update(torch.where(after.isnan(), filled.detach(), after))
        self.last = filled.detach()
        self.age += 1
        if self.age % self.window == 0 and hasattr(scalarizer, "step"):
            scalarizer.step()
        return losses.detach()

    def _filled(self, losses: Tensor) -> Tensor:
        if self.all_present:
            return losses
        last = torch.ones_like(losses) if self.last is None else self.last
        return torch.where(losses.isnan(), last, losses)

    def _scalarizer(self, n_tasks: int, device: torch.device) -> Any:
        if self.scalarizer is None:
            self.scalarizer = self.make(n_tasks).to(device)
            parameters = [] if hasattr(self.scalarizer, "update") else list(self.scalarizer.parameters())
            rate = self.optimizer.param_groups[0]["lr"]
            self.own = torch.optim.Adam(parameters, lr=rate) if parameters else None
        return self.scalarizer

    def state_dict(self) -> dict[str, Any]:
        """The states of both optimizers and all that the scalarizer remembers."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), "last": self.last, "age": self.age}
        if self.scalarizer is None:
            return state
        inner = getattr(self.scalarizer, "_optimizer", None)
        return state | {
            "n_tasks": len(self.last) if self.last is not None else 0,
            "memory": memory_of(self.scalarizer),
            "parameters": {name: weight.detach().clone() for name, weight in self.scalarizer.named_parameters()},
            "own": None if self.own is None else self.own.state_dict(),
            "inner": None if inner is None else inner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.last, self.age = state["last"], state["age"]
        if "n_tasks" not in state or self.last is None:
            return
        scalarizer = self._scalarizer(state["n_tasks"], self.last.device)
        with torch.no_grad():
            for name, weight in scalarizer.named_parameters():
                weight.copy_(state["parameters"][name])
        if state["inner"] is not None:
            # FAMO makes its own optimizer when it is first updated, and has no way to load one.
            zero = torch.ones_like(self.last)
            scalarizer(zero)
            scalarizer.update(zero)
            with torch.no_grad():
                for name, weight in scalarizer.named_parameters():
                    weight.copy_(state["parameters"][name])
            scalarizer._optimizer.load_state_dict(state["inner"])
        set_memory(scalarizer, {name: _without(values) for name, values in state["memory"].items()})
        if self.own is not None and state["own"] is not None:
            self.own.load_state_dict(state["own"])


def _without(values: dict[str, Any]) -> dict[str, Any]:
    """A module's memory but for an optimizer that it had not made yet."""
    return {key: value for key, value in values.items() if key != "_optimizer"}
