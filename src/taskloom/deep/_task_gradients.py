"""Gradients of each task apart, and update steps that use them.

Letters: K tasks, k of them in a batch, P shared parameters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from taskloom.deep._adatask import AdaTaskAdam
from taskloom.deep._adatask_settings import Joining
from taskloom.deep._aggregators import Aggregator, aggregate, memory_of, set_memory
from taskloom.deep._graph import are_finite, go_back, poisoned_error
from taskloom.deep._shared_weights import SharedWeights
from taskloom.deep._update import UpdateStep
from taskloom.tasks import OptionError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def task_gradients(losses: Tensor, parameters: Sequence[Tensor], *, retain_graph: bool = False) -> list[Tensor]:
    """The gradient of each of k losses, (k, *shape) for each parameter, in one backward pass of k rows side by side.

    Args:
        losses: (k,) out of one forward pass, all of them finite.
        parameters: that the losses may hang on; zeros for those that they do not.
        retain_graph: keep the graph for another pass.

    Examples:
        >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> task_gradients(torch.stack([weight.sum(), weight[0]]), [weight])[0]
        tensor([[1., 1.],
                [1., 0.]])
    """
    rows = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    found = torch.autograd.grad(losses, parameters, rows, is_grads_batched=True, allow_unused=True, retain_graph=retain_graph)
    return [
        weight.new_zeros(len(losses), *weight.shape) if jac is None else jac
        for weight, jac in zip(parameters, found, strict=True)
    ]


class TaskGradientStep(UpdateStep):
    """A step out of the gradients of each task apart.

    Which parameters are shared is read off the gradients, and looked at again as training goes on (see `SharedWeights`): heads,
    each number of which one task alone moves, are not.

    Args:
        optimizer: of all weights; what it does with the gradients is up to the subclass.
        fabric: that the net was set up with; None for none. These steps run in one process.

    Attributes:
        shared: which parameters are known to be shared; None before the first batch.

    Raises:
        OptionError: the fabric scales losses, as `16-mixed` does on CUDA.
    """

    def __init__(self, optimizer: Optimizer, fabric: Fabric | None) -> None:
        precision = getattr(getattr(fabric, "strategy", None), "precision", None)
        if getattr(precision, "scaler", None) is not None:
            raise OptionError(
                "`precision`='16-mixed' scales losses, which steps out of each task's gradients do not allow; take 'bf16-mixed'"
            )
        self.optimizer, self.fabric = optimizer, fabric
        self.parameters: list[Tensor] = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.shared: list[bool] | None = None
        self.finder = SharedWeights(self.parameters)
        # Tasks whose absence was seen to leave the gradients of the others finite.
        self._harmless: set[int] = set()

    def trunk_passes(self, n_tasks: int) -> tuple[float, float]:
        """One forward, and one backward for each task."""
        return 1.0, float(n_tasks)

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step; tasks without labels in the batch take no part, and frozen parameters stay as they are.

        Raises:
            DataError: the loss of an absent task makes the gradients of the others NaN; nothing was moved.
        """
        losses = closure()
        chosen, present = self._chosen(losses)
        if present:
            trained = [p for p, weight in enumerate(self.parameters) if weight.requires_grad]
            weights = [self.parameters[p] for p in trained]
            found = go_back(self.fabric, lambda: task_gradients(chosen, weights))
            self._check_absent(found, present, len(losses))
            gradients: list[Tensor | None] = [None] * len(self.parameters)
            for p, jac in zip(trained, found, strict=True):
                gradients[p] = jac
            if self.finder.is_due(present):
                rows = ([None if jac is None else jac[i] for jac in gradients] for i in range(len(present)))
                news = self.finder.look(rows, present, len(losses))
                if news or self.shared is None:
                    self._set_shared(list(self.finder.shared), len(losses), news)
            self._move(gradients, present)
        return losses.detach()

    def _chosen(self, losses: Tensor) -> tuple[Tensor, list[int]]:
        """The losses of the tasks that are present, and which these are."""
        present = list(range(len(losses)))
        if not self.all_present:
            present = torch.nonzero(~losses.detach().isnan()).squeeze(1).tolist()
        return losses if len(present) == len(losses) else losses[present], present

    def _check_absent(self, gradients: Sequence[Tensor], present: Sequence[int], n_tasks: int) -> None:
        """Refuse losses of which one that is absent poisons the others, looking once at the absence of each task."""
        absent = set(range(n_tasks)) - set(present)
        if self.masks_absent or absent <= self._harmless:
            return
        if not are_finite(gradients):
            raise poisoned_error(", ".join(f"`{k}`" for k in sorted(absent)))
        self._harmless |= absent

    def _set_shared(self, shared: list[bool], n_tasks: int, news: Mapping[int, Tensor]) -> None:  # noqa: ARG002
        """Keep what is shared.

        Args:
            shared: which parameters are.
            n_tasks: K.
            news: for each parameter that was not so far, which tasks (K, *shape) had moved it.
        """
        self.shared = shared

    @abstractmethod
    def _move(self, gradients: list[Tensor | None], present: list[int]) -> None:
        """Move all weights by the gradients of the tasks that are present, None for a parameter that is frozen."""

    def _split(self, gradients: list[Tensor | None]) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
        """Pairs (weight, gradients) of shared weights, and of the others."""
        marked = [
            (weight, jac, shared)
            for weight, jac, shared in zip(self.parameters, gradients, self.shared or [], strict=True)
            if jac is not None
        ]
        return [(w, g) for w, g, shared in marked if shared], [(w, g) for w, g, shared in marked if not shared]


class AdaTaskStep(TaskGradientStep):
    """AdaTask-Adam on shared weights, Adam on heads (Yang et al., AAAI 2023; see `AdaTaskAdam`).

    Args:
        optimizer: gives the weights and, at every step, the learning rate of each of its groups.
        fabric: see `TaskGradientStep`.
        joining: see `Joining`. What an aggregator that is a module remembers is saved and loaded with the step's state.
    """

    def __init__(self, optimizer: Optimizer, fabric: Fabric | None, **joining: Unpack[Joining]) -> None:
        super().__init__(optimizer, fabric)
        self.joining = joining
        self.adatask: AdaTaskAdam | None = None

    def _set_shared(self, shared: list[bool], n_tasks: int, news: Mapping[int, Tensor]) -> None:
        self.shared = shared
        common = {id(weight) for weight, is_common in zip(self.parameters, shared, strict=True) if is_common}
        # For each group its shared weights and the others, be there any or not: numbers of groups stay what they are.
        groups: list[dict[str, Any]] = [
            {"params": [weight for weight in group["params"] if (id(weight) in common) == is_common], "shared": is_common}
            for group in self.optimizer.param_groups
            for is_common in (True, False)
        ]
        if self.adatask is None:
            self.adatask = AdaTaskAdam(groups, n_tasks, lr=self.optimizer.param_groups[0]["lr"], **self.joining)
        else:
            self.adatask._regroup([group["params"] for group in groups], {self.parameters[p]: news[p] for p in news})

    def _move(self, gradients: list[Tensor | None], present: list[int]) -> None:
        if self.adatask is None:
            return
        for g, group in enumerate(self.adatask.param_groups):
            group["lr"] = self.optimizer.param_groups[g // 2]["lr"]
        common, own = self._split(gradients)
        for weight, jac in common:
            weight.jac = jac  # ty: ignore[missing-attribute]
        for weight, jac in own:
            weight.grad = jac.sum(dim=0)
        self.adatask.take_jac(present)
        self.adatask.step()
        self.adatask.zero_grad()
        # Without a gradient it moves nothing, but its hooks are run, and schedulers see that there was a step.
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, and which weights are shared."""
        if self.adatask is None:
            return {}
        return {
            "shared": self.shared,
            "finder": self.finder.state_dict(),
            "n_tasks": len(self.adatask.tasks),
            "optimizer": self.adatask.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        if state:
            self.finder.load_state_dict(state["finder"])
            self.adatask = None
            self._set_shared(list(state["shared"]), int(state["n_tasks"]), {})
        if state and self.adatask is not None:
            self.adatask.load_state_dict(state["optimizer"])


class AggregatedStep(TaskGradientStep):
    """The gradients of the tasks on shared weights joined by an aggregator, such as those of torchjd; heads take their own.

    Args:
        optimizer: steps with the joined gradient.
        fabric: see `TaskGradientStep`.
        aggregator: maps a matrix (k, P), a row for each task that is present, to one gradient (P,). If it is
            a module, what it remembers is saved and loaded with the step's state.
    """

    def __init__(self, optimizer: Optimizer, fabric: Fabric | None, aggregator: Aggregator) -> None:
        super().__init__(optimizer, fabric)
        self.aggregator = aggregator

    def _move(self, gradients: list[Tensor | None], present: list[int]) -> None:
        common, own = self._split(gradients)
        if common:
            matrix = torch.cat([jac.reshape(len(present), weight.numel()) for weight, jac in common], dim=1)
            joined = aggregate(self.aggregator, matrix, present).split([weight.numel() for weight, _ in common])
            for (weight, _), part in zip(common, joined, strict=True):
                weight.grad = part.view_as(weight)
        for weight, jac in own:
            weight.grad = jac.sum(dim=0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The states of optimizer and aggregator, and which weights are shared."""
        inner = memory_of(self.aggregator) if isinstance(self.aggregator, torch.nn.Module) else {}
        return {
            "optimizer": self.optimizer.state_dict(),
            "shared": self.shared,
            "finder": self.finder.state_dict(),
            "aggregator": inner,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.shared = None if state["shared"] is None else list(state["shared"])
        self.finder.load_state_dict(state["finder"])
        if isinstance(self.aggregator, torch.nn.Module):
            set_memory(self.aggregator, state["aggregator"])
