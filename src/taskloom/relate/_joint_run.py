"""One joint run, and what looks on while it lasts.

Letters: K tasks, B rows of a step, T steps, P shared parameters.

A measure that follows a training is a `Watch`. Several of them may look on at the same run, which then is paid once. A look
goes through the very losses of the step it precedes, with other weights in their place for the while of one forward pass: the
net, its buffers (such as the statistics of BatchNorm) and the generator of random numbers are afterwards what they were, to
the bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from taskloom.deep import SumStep, UpdateStep, fit, is_shared, task_gradients
from taskloom.relate._affinity import Affinity, Cost
from taskloom.relate._options import MeasureOptions, Model
from taskloom.relate._put_back import put_back
from taskloom.relate._readings import new_net
from taskloom.relate._rows import HalvedMean, check_data
from taskloom.tasks import Array, FitError, OptionError, TaskData, check_whole

Closure = Callable[[], Tensor]


class Watch(ABC):
    """What looks on at a joint run.

    Args:
        every: steps from one look to the next.

    Attributes:
        cost: of its looks, without the run's.
    """

    def __init__(self, every: int = 10) -> None:
        check_whole("every", every)
        self.every, self.cost = every, Cost()
        self.net: nn.Module = nn.Identity()

    def meet(self, net: nn.Module, data: TaskData, options: MeasureOptions) -> None:
        """What it will look at, before the first step."""
        self.net, self.data, self.options, self.cost = net, data, options, Cost()

    @abstractmethod
    def look(self, closure: Closure) -> None:
        """Look, before a step.

        Args:
            closure: the losses (K,) of the step's batch, NaN for a task without labels in it.
        """

    @abstractmethod
    def affinity(self) -> Affinity:
        """What was seen so far."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that it has seen, as tensors."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""


class WatchedStep(UpdateStep):
    """An update step with watches beside it: `fit(..., update=lambda o, f: WatchedStep(SumStep(o, f), watches))`.

    Args:
        inner: what moves the weights.
        watches: that look, each at its pace; they have met the net.
    """

    def __init__(self, inner: UpdateStep, watches: Sequence[Watch]) -> None:
        self.inner, self.watches, self.count = inner, list(watches), 0

    def meet(self, net: nn.Module) -> None:
        """Show the net to the step inside."""
        self.inner.meet(net)

    def step(self, closure: Closure) -> Tensor:
        """Look, and then step as ever."""
        self.inner.all_present = self.all_present
        for watch in self.watches:
            if self.count % watch.every == 0:
                watch.look(closure)
        self.count += 1
        return self.inner.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Of the step inside, and of the watches."""
        return {"inner": self.inner.state_dict(), "count": self.count, "watches": [w.state_dict() for w in self.watches]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.inner.load_state_dict(state["inner"])
        self.count = int(state["count"])
        for watch, own in zip(self.watches, state["watches"], strict=True):
            watch.load_state_dict(own)


class _Losses(nn.Module):
    """A closure as a module, so that weights of the net in it can be exchanged for one call."""

    def __init__(self, net: nn.Module, closure: Closure) -> None:
        super().__init__()
        self.net, self.closure = net, closure

    def forward(self) -> Tensor:
        return self.closure()


class GradientWatch(Watch):
    """A watch that needs each task's gradient by the shared weights: those of `encoder`, else those that several tasks move.

    Args:
        every: steps from one look to the next.

    Attributes:
        name: of the measure.
        notes: on what its values are.
    """

    name: str
    notes: tuple[str, ...] = ()

    def __init__(self, every: int = 10) -> None:
        super().__init__(every)
        self.shared: set[str] = set()
        self.mean = HalvedMean(1)

    def meet(self, net: nn.Module, data: TaskData, options: MeasureOptions) -> None:
        """Start with nothing seen."""
        super().meet(net, data, options)
        self.shared, self.mean = set(), HalvedMean(data.n_tasks)
        self.tasks = [task.name for task in data.tasks]

    def look(self, closure: Closure) -> None:
        """See what `observe` makes of losses and gradients."""
        start = perf_counter()
        weights = {name: weight.detach() for name, weight in self.net.named_parameters()}
        moving = [name for name, weight in self.net.named_parameters() if weight.requires_grad]
        names = [name for name in moving if name.startswith("encoder.")] or moving
        for name in names:
            weights[name] = weights[name].clone().requires_grad_()
        losses = self.losses(closure, weights)
        present = torch.nonzero(~losses.detach().isnan()).squeeze(1)
        k = len(present)
        if k > 1:
            found = task_gradients(losses[present], [weights[name] for name in names])
            # A rare task is in few batches: what it shares is learnt from look to look.
            self.shared |= {name for name, jac in zip(names, found, strict=True) if is_shared(jac)}
            if not self.shared and k == len(losses):
                raise OptionError("`model` has no weights that several tasks use; give a net whose tasks share a trunk")
            gradients = {name: jac for name, jac in zip(names, found, strict=True) if name in self.shared}
            if gradients:
                with torch.no_grad():
                    plain = {name: weight.detach() for name, weight in weights.items()}
                    values = self.observe(closure, losses.detach(), gradients, plain)
                full = np.full((self.data.n_tasks,) * 2, np.nan)
                place = present.cpu().numpy()
                full[np.ix_(place, place)] = values.double().cpu().numpy()
                self.mean.add(full[None])
        rows = self.options.batch_size * (1 if self.data.is_shared else self.data.n_tasks)
        self.cost += Cost(rows * self.passes(k), rows * k, perf_counter() - start)

    def losses(self, closure: Closure, weights: Mapping[str, Tensor]) -> Tensor:
        """Losses (K,) of the batch with other weights; the net, its buffers and the generator stay as they are."""
        buffers = {f"net.{name}": buffer.clone() for name, buffer in self.net.named_buffers()}
        # The same masks of dropout each time: it starts where the generator stands, which is put back there.
        with torch.random.fork_rng(), put_back(self.net):
            given = {**{f"net.{name}": weight for name, weight in weights.items()}, **buffers}
            return functional_call(_Losses(self.net, closure), given, ())

    def passes(self, k: int) -> int:  # noqa: ARG002
        """Forward passes of a look at k tasks."""
        return 1

    @abstractmethod
    def observe(self, closure: Closure, losses: Tensor, gradients: Mapping[str, Tensor], weights: dict[str, Tensor]) -> Tensor:
        """Values (k, k) of the k tasks that are present, row = receiver.

        Args:
            closure: for `losses`.
            losses: (K,), NaN for absent tasks.
            gradients: (k, *shape) by each shared weight.
            weights: all of the net's.
        """

    def affinity(self) -> Affinity:
        """The mean over looks; its stability is that of every other look."""
        stability, notes = self.mean.stability(), list(self.notes)
        return Affinity(self.mean.value(), self.tasks, self.name, zero=0.0, cost=self.cost, stability=stability, notes=notes)

    def state_dict(self) -> dict[str, Any]:
        """What was seen."""
        sums, counts = torch.from_numpy(self.mean.sums.copy()), torch.from_numpy(self.mean.counts.copy())
        return {"sums": sums, "counts": counts, "seen": self.mean.seen, "shared": sorted(self.shared)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.mean.sums, self.mean.counts = (state[name].cpu().numpy().copy() for name in ("sums", "counts"))
        self.mean.seen, self.shared = int(state["seen"]), set(state["shared"])


@dataclass
class JointRun:
    """A net trained on all tasks.

    Attributes:
        net: on the CPU, in evaluation mode.
        losses: (K,) mean losses of its training rows at the end.
        cost: of the run, without what its watches took.
    """

    net: nn.Module
    losses: Array
    cost: Cost


def joint_run(model: Model, data: TaskData, options: MeasureOptions | None = None, watches: Sequence[Watch] = ()) -> JointRun:
    """Train one net on all tasks for `steps` steps of Adam on the sum of their losses.

    Args:
        model: what makes the net; of a net that is given a copy is trained on.
        data: encoded training rows.
        options: `steps`, `batch_size`, `learning_rate`, `seed`.
        watches: that look on.

    Raises:
        DataError: fewer than two tasks, or features that are not finite.
        OptionError: a net that does not fit the tasks.
        FitError: the mean loss has not become smaller.

    Examples:
        >>> from taskloom.deep import MLP
        >>> from taskloom.tasks import FeatureEncoder, TargetScaler, load_diabetes_tasks
        >>> data = load_diabetes_tasks()
        >>> data = TargetScaler.fit(data).encode(FeatureEncoder.fit(data.features).encode(data))
        >>> joint_run(MLP((8,)), data, MeasureOptions(steps=20)).cost.trainings
        1
    """
    options = options or MeasureOptions()
    check_data(data)
    start = perf_counter()
    net = new_net(model, data, data.tasks, options.seed)
    for watch in watches:
        watch.meet(net, data, options)
    before = sum(watch.cost.seconds for watch in watches)
    result = fit(
        net,
        data,
        data,
        options=options.fit_options(),
        seed=options.seed,
        update=lambda optimizer, fabric: WatchedStep(SumStep(optimizer, fabric), watches),
    )
    first, last = result.curve.losses[0], result.curve.losses[-1]
    if result.failed or not last < first:
        raise FitError(
            f"the joint run took the mean loss from {first:.4g} to {last:.4g} in {options.steps} steps; lower `learning_rate` "
            f"({options.learning_rate}) or raise `steps`"
        )
    rows = options.steps * options.batch_size * (1 if data.is_shared else data.n_tasks)
    spent = sum(watch.cost.seconds for watch in watches) - before
    cost = Cost(rows + 2 * data.n_rows, rows, perf_counter() - start - spent, trainings=1)
    return JointRun(result.net, result.validation_loss, cost)


def watched(watch: Watch, model: Model, data: TaskData, options: MeasureOptions | None) -> Affinity:
    """What a watch saw of a joint run of its own."""
    options = options or MeasureOptions()
    run = joint_run(model, data, options, [watch])
    return with_run(watch.affinity(), run.cost, options)


def with_run(affinity: Affinity, cost: Cost, options: MeasureOptions) -> Affinity:
    """An affinity with the cost of the run it took, and without a stability that was not asked for."""
    fields: dict[str, Any] = {**vars(affinity), "cost": affinity.cost + cost}
    if not options.split_half:
        fields["stability"] = np.nan
    return Affinity(**fields)


def trained(model: Model, data: TaskData, options: MeasureOptions) -> tuple[nn.Module, Cost]:
    """A net that is given as it stands (a copy of it, in evaluation mode); else one that is made and trained on all tasks."""
    check_data(data)
    if isinstance(model, nn.Module):
        return new_net(model, data, data.tasks, options.seed).to("cpu").eval(), Cost()
    run = joint_run(model, data, options)
    return run.net, run.cost
