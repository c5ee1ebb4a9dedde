"""Update steps: how the losses of K tasks move the weights once.

Letters: K tasks (or nets side by side).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from taskloom.tasks import OptionError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def check_update(update: Any) -> None:
    """Refuse what cannot make an update step.

    Args:
        update: what is to make one of an optimizer and the fabric.

    Raises:
        OptionError: a name, a step that is made already, another class, or a function of other arguments.
    """
    remedy = "give what makes an update step of an optimizer and the fabric, such as `SumStep` or a function of the two"
    if isinstance(update, UpdateStep):
        raise OptionError(f"`update` is a {type(update).__name__} that is made already; {remedy}")
    if not callable(update) or (isinstance(update, type) and not issubclass(update, UpdateStep)):
        raise OptionError(f"`update`={update!r} makes no update step; {remedy}")
    try:
        inspect.signature(update).bind(None, None)
    except ValueError:
        # What is not written in Python may not tell its arguments.
        return
    except TypeError as error:
        raise OptionError(
            f"`update`={update!r} cannot be called with an optimizer and the fabric ({error}); {remedy}"
        ) from error


class UpdateStep(ABC):
    """One change of the weights.

    A subclass keeps all it remembers in `state_dict`, so that a resumed fit goes on to the bit.

    Attributes:
        all_present: set by the loop where no label is missing, so that no task can be absent from a batch.
        own_rows: set by the loop where each task has rows of its own. A closure may then be called with a list of task numbers:
            only these tasks' rows go through the net, and the losses of the others are NaN.
        masks_absent: set by the loop, whose losses are such that one without labels leaves the gradients of the others finite.
    """

    all_present: bool = False
    masks_absent: bool = False
    own_rows: bool = False

    def meet(self, net: nn.Module) -> None:  # noqa: B027
        """What `fit` shows the net to, before the first step; a step that works on a part of the net finds it here.

        Args:
            net: the caller's, on its device.
        """

    def trunk_passes(self, n_tasks: int) -> tuple[float, float] | None:  # noqa: ARG002
        """Forward and backward passes through the trunk in a step, with all K tasks in the batch; None: unknown."""
        return None

    @abstractmethod
    def step(self, closure: Callable[..., Tensor]) -> Tensor:
        """Move the weights once.

        Args:
            closure: called without arguments, a forward pass that gives the losses (K,) of the batch, NaN for a task
                without labels in it.

        Returns:
            The losses (K,) before the step, detached.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on beside the weights."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""


class SumStep(UpdateStep):
    """The plain sum of the losses, one backward pass, one optimizer step.

    Args:
        optimizer: of all weights, as `Fabric.setup` gives it.
        fabric: whose precision scales the backward pass; None for none.
    """

    def __init__(self, optimizer: Optimizer, fabric: Fabric | None) -> None:
        self.optimizer, self.fabric = optimizer, fabric

    def trunk_passes(self, n_tasks: int) -> tuple[float, float]:  # noqa: ARG002
        """One of each."""
        return 1.0, 1.0

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step down the summed losses of the tasks that are present."""
        self.optimizer.zero_grad()
        losses = closure()
        total = losses.sum() if self.all_present else losses.nansum()
        total.backward() if self.fabric is None else self.fabric.backward(total)
        self.optimizer.step()
        return losses.detach()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
