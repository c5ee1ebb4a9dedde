"""Update steps that update groups of tasks one after the other within a batch.

Letters: K tasks, M groups of them, F cost of a forward pass of the net for all tasks' rows of a batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from taskloom.deep._adatask_parallel import group_of
from taskloom.deep._adatask_step import AdaTaskOptimizer
from taskloom.deep._common_randomness import CommonRandomness
from taskloom.deep._frozen_heads import TaskHeads, remembered
from taskloom.deep._graph import go_back, has_nan
from taskloom.deep._group_parallel import from_first, greatest, mean_and_holders
from taskloom.deep._group_passes import (
    GroupPasses,
    StepCosts,
    Tasks,
    check_closure,
    check_fabric,
    check_parts,
    check_scaler,
    check_state,
    named_tasks,
)
from taskloom.deep._losses import Losses, has_graph, losses_by_task
from taskloom.deep._update import UpdateStep
from taskloom.tasks import Array, DataError, OptionError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Batches in which it is looked again whether heads were found rightly.
_LOOKS = 20
_LOOK_EVERY = 50
_DRAWS = 64


@dataclass
class _Batch:
    """What is known of the batch at hand."""

    # The losses as the closure gave them, with their graph; fresh while nothing has moved since.
    losses: Tensor | list[Tensor | None] = field(default_factory=list)
    values: Array = field(default_factory=lambda: np.empty(0))
    is_fresh: bool = False
    # Tasks without a loss in the last pass, and those of them that were to have one, or lack it in one process.
    missing: frozenset[int] = frozenset()
    lacking: frozenset[int] = frozenset()
    # Those of a pass for all tasks, who are absent from the whole batch; None before there was one.
    absent: frozenset[int] | None = None
    first: Tensor | None = None


class GroupStep(UpdateStep):
    """Groups of tasks updated one after the other on the same batch; what the groups are is up to the subclass.

    A group's pass: the losses of all tasks with the weights as they are now, one backward pass of the sum of the group's, a
    step of the optimizer. So there are M forward passes in a batch, M being the number of groups with a task that is present.
    An AdaTask optimizer is handed the group's losses apart.

    Args:
        optimizer: of all weights.
        fabric: that the net was set up with; None for none.
        tasks: their number or their names; None: as many as the first losses.
        passes: see `GroupPasses`.

    Attributes:
        costs: what it has cost so far; see `StepCosts`.

    Raises:
        OptionError: tasks that do not fit the optimizer's, an optimizer whose step must be given a closure (LBFGS), a scaler
            beside a fabric, or an AdaTask optimizer in a fabric that scales losses.
    """

    def __init__(self, optimizer: Optimizer, fabric: Fabric | None, tasks: Tasks, passes: GroupPasses) -> None:
        check_parts(optimizer, passes)
        self.optimizer, self.fabric, self.passes = optimizer, fabric, passes
        self._inner = cast("Optimizer", getattr(optimizer, "optimizer", optimizer))
        self._names, self.n_tasks = named_tasks(tasks)
        self._scaler = passes.scaler or getattr(getattr(getattr(fabric, "strategy", None), "precision", None), "scaler", None)
        check_scaler(fabric, passes.scaler, self._scaler, self._inner)
        check_fabric(fabric)
        self.own_rows = passes.own_rows
        self._ones: dict[tuple[tuple[int, ...], torch.dtype], Tensor] = {}
        self.group = group_of(passes.data_parallel)
        self._parameters = self._all_parameters()
        self._trained = [weight.requires_grad for weight in self._parameters]
        self.randomness = CommonRandomness(self._parameters, enabled=passes.common_randomness)
        self.heads: TaskHeads | None = None
        self.costs = StepCosts()
        self._draws: tuple[int, Array] | None = None
        self._seed: int | None = None
        if self.n_tasks is not None:
            self._check_tasks(self.n_tasks)

    def meet(self, net: nn.Module) -> None:
        """Find the modules of the net that keep running statistics; without it they are found in the first pass."""
        self.randomness.meet(net)

    def step(self, closure: Callable[..., Losses]) -> Tensor:
        """Update the groups of this batch one after the other.

        Args:
            closure: runs a forward pass of the batch with the weights as they are and gives the losses of the K tasks: a
                vector (K,) with NaN for a task that is absent, or a mapping from names (or numbers) to scalars, None or left
                out for one that is absent. It is called once for each group; with `own_rows` it is called with a list of task
                numbers, or None for all. It must not draw the batch.

        Returns:
            The losses (K,) before the first update, detached.

        Raises:
            DataError: losses that do not fit the tasks; or the NaN of a task that is absent makes gradients of others NaN: zero
                times NaN is NaN, so that it must not be computed from NaN or by 0 / 0, but put in by `torch.where`.
        """
        if self.own_rows and self.costs.batches == 0:
            check_closure(closure)
        self.randomness.begin()
        self._follow_parameters()
        batch = _Batch()
        if self.n_tasks is None:
            self._forward(closure, batch, None)
            self._check_tasks(len(batch.losses))
            self.n_tasks = len(batch.losses)
        self._begin_batch()
        for members in self._plan():
            self._update(closure, batch, members)
        self._end_batch(closure, batch)
        self.costs.batches += 1
        first = batch.first
        return torch.full((self.n_tasks,), torch.nan) if first is None else first

    @abstractmethod
    def _plan(self) -> list[list[int]]:
        """The groups of the next batch in the order of their updates."""

    def _wants_all(self) -> bool:
        """Whether the losses of all tasks are wanted of every pass, where each has rows of its own."""
        return False

    def _begin_batch(self) -> None:
        """Before a batch, when the number of tasks is known."""

    def _saw(self, values: Array, present: list[int]) -> None:
        """Losses (K,) with the weights as they are now, the same on all processes, before these tasks are updated."""

    def _before_update(self, losses: Tensor | list[Tensor | None], values: Array) -> None:
        """Losses with their graph, before tasks are updated by them."""

    def _updated(self, members: list[int]) -> None:
        """The tasks that the weights were just moved by."""

    def _end_batch(self, closure: Callable[..., Losses], batch: _Batch) -> None:
        """After the last group."""

    def _update(self, closure: Callable[..., Losses], batch: _Batch, members: list[int]) -> None:
        if batch.absent is not None and batch.absent.issuperset(members):
            return
        if not batch.is_fresh:
            self._forward(closure, batch, None if not self.own_rows or self._wants_all() else members)
        present = [k for k in members if k not in batch.missing] if batch.missing else members
        self._saw(batch.values, present)
        if not present:
            # With losses of all tasks at hand the next group needs no pass: nothing has moved.
            batch.is_fresh = batch.absent is not None
            return
        self._find_heads(batch)
        self._before_update(batch.losses, batch.values)
        if self._move(batch, present):
            self._updated(present)
        batch.is_fresh = False

    def _forward(self, closure: Callable[..., Losses], batch: _Batch, members: list[int] | None) -> None:
        def run() -> Losses:
            return closure(members) if self.own_rows else closure()

        # Passes of different rows have nothing to be compared by, and each row's statistics count.
        found = self.randomness.run(run) if members is None else run()
        names = self._names or (None if self.n_tasks is None else range(self.n_tasks))
        batch.losses, vector = losses_by_task(found, names)
        holders = None
        if self.group is None:
            batch.values = vector.cpu().numpy().astype(np.float64)
        else:
            both = mean_and_holders(vector, self.group)
            vector, (batch.values, holders) = both[0], both.cpu().numpy().astype(np.float64)
        # The product is NaN if one of the losses is, and the quickest way to see it.
        has_nan = isnan(batch.values.dot(batch.values))
        batch.missing = frozenset(np.isnan(batch.values).nonzero()[0].tolist()) if has_nan else frozenset()
        batch.lacking = batch.missing if holders is None else frozenset((holders < 1).nonzero()[0].tolist())
        if members is None:
            self.randomness.saw(len(batch.values), batch.lacking)
        else:
            batch.lacking &= frozenset(members)
        if batch.first is None:
            batch.first = vector
        elif members is not None:
            batch.first = torch.where(batch.first.isnan(), vector, batch.first)
        batch.is_fresh = True
        if members is None:
            batch.absent = batch.missing
        self.costs.forwards += 1 if members is None else len(members) / len(batch.losses)

    def _all_parameters(self) -> list[Tensor]:
        return [weight for each in self._inner.param_groups for weight in each["params"]]

    def _follow_parameters(self) -> None:
        """Users freeze and thaw layers, and give an optimizer more of them, while they train."""
        parameters = self._all_parameters()
        trained = [weight.requires_grad for weight in parameters]
        if trained != self._trained:
            self._parameters, self._trained = parameters, trained
            if self.heads is not None:
                self.heads.follow(parameters)

    def _find_heads(self, batch: _Batch) -> None:
        if not self.passes.freeze_heads or self.n_tasks is None:
            return
        if self.heads is None:
            self.heads = TaskHeads(self._parameters, self.n_tasks, self.group)
        if len(self.heads.seen) == self.n_tasks:
            return
        unseen = self.heads.unseen([k for k in range(self.n_tasks) if k not in batch.missing])
        if unseen:
            heads, losses = self.heads, [torch.tensor(torch.nan) if loss is None else loss for loss in batch.losses]
            go_back(self.fabric, lambda: heads.look(losses, unseen))

    def _move(self, batch: _Batch, present: list[int]) -> bool:
        """One step of the optimizer down the losses of the tasks; False if a scaler has skipped it."""
        inner, scaler, losses = self._inner, self._scaler, batch.losses
        if self.group is None and not has_graph(losses, present):
            raise DataError(
                f"`closure`: the losses of {self._said(present)} hang on no parameter that is trained: leave tasks without "
                "labels out, run the net with gradients, and give the optimizer weights that are not frozen"
            )
        if isinstance(inner, AdaTaskOptimizer):
            self.optimizer.zero_grad()
            names = self._names or inner.tasks
            here = {names[k]: loss for k in present if (loss := losses[k]) is not None}
            if batch.lacking:
                # A process may lack what another has.
                here = {name: loss for name, loss in here.items() if not bool(loss.detach().isnan())}
            scaled = here if scaler is None else {name: scaler.scale(loss) for name, loss in here.items()}
            go_back(self.fabric, lambda: inner.backward(scaled))
        else:
            self.optimizer.zero_grad(set_to_none=self.passes.freeze_heads)
            self._go_back(losses, present)
        if batch.lacking:
            self._check_gradients(batch, present)
        self.costs.backwards += len(present) / len(losses) if self.own_rows else 1
        self.costs.updates += 1
        if self.heads is None:
            return self._step_optimizer()
        if self.costs.batches < _LOOKS or self.costs.batches % _LOOK_EVERY == 0:
            self.heads.look_again(present)
        self.heads.take_gradients(present)
        return self.heads.guarded(inner, present, self._step_optimizer)

    def _go_back(self, losses: Tensor | list[Tensor | None], present: list[int]) -> None:
        """Back from the losses of the tasks; a process whose batch lacks them takes part with zeros."""
        if isinstance(losses, Tensor):
            total, shares = losses, self._shares(losses, present)
        else:
            parts = [loss.reshape(()) for k in present if (loss := losses[k]) is not None]
            if self.group is not None:
                parts = [torch.where(part.isnan(), 0.0, part) for part in parts]
            if not parts:
                return
            total, shares = torch.stack(parts).sum(), None
        if self.passes.scaler is not None:
            self.passes.scaler.scale(total).backward(shares)
        elif self.fabric is not None:
            self.fabric.backward(total, shares)
        else:
            total.backward(shares)

    def _check_gradients(self, batch: _Batch, present: list[int]) -> None:
        """See that the NaN of a task that is absent has not come into gradients of the others: zero times NaN is NaN."""
        # Losses that are not finite have gradients like that, and with half precision a scaler sees to it.
        if self._scaler is not None or not np.isfinite(batch.values[present]).all():
            return
        inner = self._inner
        grads = [weight.grad for weight in self._parameters]
        if isinstance(inner, AdaTaskOptimizer):
            grads += [grad for slots in inner._waiting.values() for grad in slots]
        found = torch.tensor(float(has_nan(grads)), device=self._parameters[0].device)
        if not bool(greatest(found, self.group)):
            return
        # What was seen of heads in such gradients is not so.
        self.heads = None
        self.optimizer.zero_grad()
        raise DataError(
            f"`closure`: the loss of {self._said(sorted(batch.lacking))} is NaN, as it has no labels in this batch, and made "
            "gradients of other tasks NaN (0 x NaN); nothing was moved by them. Compute it from finite numbers (`labels."
            "nan_to_num()`, `mask.sum(0).clamp(min=1)`) and put NaN in by `torch.where`, or leave the task out of a mapping"
        )

    def _said(self, members: Sequence[int]) -> str:
        names: Sequence[Any] = self._names or range(self.n_tasks or 0)
        return ", ".join(f"`{names[k]}`" for k in members)

    def _shares(self, losses: Tensor, present: list[int]) -> Tensor:
        """(K,) 1 for the tasks, else 0: the gradient of their sum by the losses, which saves to make the sum."""

        def ones() -> Tensor:
            shares = torch.zeros(len(losses), dtype=losses.dtype, device=losses.device)
            shares[present] = 1
            return shares

        shares = remembered(self._ones, (tuple(present), losses.dtype), ones)
        return shares if self.group is None else shares * ~losses.detach().isnan()

    def _step_optimizer(self) -> bool:
        if self._scaler is None:
            self.optimizer.step()
            return True
        before = self._scaler.get_scale()
        if self.passes.scaler is None:
            self.optimizer.step()
        else:
            if isinstance(self._inner, AdaTaskOptimizer):
                self._inner.unscale_(self._scaler)
            self._scaler.step(self.optimizer)
            self._scaler.update()
        # A scaler that has skipped a step, and no other, lowers its scale.
        return self._scaler.get_scale() >= before

    def _drawn(self, batch: int | None = None) -> Array:
        """(2 K,) uniform numbers that follow from the seed and the number of the batch, that at hand by default."""
        n_tasks = self.n_tasks or 1
        block, place = divmod(self.costs.batches if batch is None else batch, _DRAWS)
        if self._draws is None or self._draws[0] != block:
            self._draws = (block, np.random.default_rng([self._agreed_seed(), block]).random((_DRAWS, 2 * n_tasks)))
        return self._draws[1][place]

    def _agreed_seed(self) -> int:
        """That of the first process, whatever the others were given."""
        if self._seed is None:
            device = self._parameters[0].device if self._parameters else torch.device("cpu")
            self._seed = int(from_first(torch.tensor(int(self.passes.seed), device=device), self.group))
        return self._seed

    def _shuffled(self, groups: Sequence[list[int]]) -> list[list[int]]:
        """The groups in the random order of this batch."""
        return [groups[g] for g in self._drawn()[: len(groups)].argsort().tolist()]

    def _named_sets(self, groups: Sequence[Sequence[int]]) -> list[set[Any]]:
        names: Sequence[Any] = self._names or range(self.n_tasks or 0)
        return [{names[k] for k in members} for members in groups]

    def _check_tasks(self, n_tasks: int) -> None:
        inner = self._inner
        if not isinstance(inner, AdaTaskOptimizer):
            return
        if len(inner.tasks) != n_tasks or (self._names is not None and set(self._names) != set(inner.tasks)):
            said = n_tasks if self._names is None else f"{n_tasks} ({', '.join(self._names)})"
            raise OptionError(f"`tasks`: {said} of them, but the optimizer knows {len(inner.tasks)} ({', '.join(inner.tasks)})")

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, who owns which weights, the costs; with an own scaler its state too."""
        return {
            "step": type(self).__name__,
            "names": None if self._names is None else list(self._names),
            "optimizer": self.optimizer.state_dict(),
            "n_tasks": self.n_tasks,
            "heads": None if self.heads is None else self.heads.state_dict(),
            "costs": vars(self.costs).copy(),
            "seed": self._seed,
            "scaler": None if self.passes.scaler is None else self.passes.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of a step that was made with the same arguments.

        Raises:
            DataError: it is that of another kind of step, or of other tasks; nothing has changed then.
        """
        check_state(state, type(self).__name__, self._names, self.n_tasks)
        self.optimizer.load_state_dict(state["optimizer"])
        self.n_tasks, self._seed, self._draws = state["n_tasks"], state["seed"], None
        self.costs, self.heads = StepCosts(**state["costs"]), None
        if state["heads"] is not None and self.n_tasks is not None:
            self.heads = TaskHeads(self._parameters, self.n_tasks, self.group)
            self.heads.load_state_dict(state["heads"])
        if state["scaler"] is not None and self.passes.scaler is not None:
            self.passes.scaler.load_state_dict(state["scaler"])
