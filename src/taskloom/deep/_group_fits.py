"""A joint net for each of many groups of tasks, at several seeds and learning rates, all of them trained side by side.

Letters: K tasks, G groups, S seeds, R learning rates, M nets of a stack, s tasks of a group, B rows of a step, n rows to look
at, D = sum of the tasks' outputs, C outputs of the widest task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taskloom.deep._batches import RowDealer, TaskTensors, check_part
from taskloom.deep._fit import DEFAULT_RATE, adam, dtype_of, new_net, session
from taskloom.deep._loop import Feed, FitLoop, make_fabric, mean_losses, prepare
from taskloom.deep._losses import OutputColumns, TaskLosses
from taskloom.deep._nets import NetFactory, check_outputs
from taskloom.deep._options import FitOptions
from taskloom.deep._stacked import StackedNets
from taskloom.deep._update import SumStep
from taskloom.tasks import Array, DataError, FitError, OptionError, Task, TaskData, are_flags

# Copies of a net's weights that training holds: weights, gradients, two moments, the best so far, and room to work.
_COPIES = 6


@dataclass(frozen=True)
class GroupFitOptions(FitOptions):
    """Options of `fit_groups`: those of `FitOptions`, and how often each group is trained.

    Attributes:
        max_steps: optimizer steps at the most.
        seeds: each group is trained once with each; of initial weights and batches.
        rates: learning rates tried; of each group and seed the net with the least mean validation loss is kept. When empty,
            `learning_rate` alone (1e-3 if that is not given either).
        at_once: numbers held in memory at a time, about; more nets than that are trained stack after stack.

    Raises:
        OptionError: a value outside of what it may be.

    Examples:
        >>> GroupFitOptions(seeds=(0, 1), rates=(1e-3, 3e-3)).tried
        (0.001, 0.003)
    """

    max_steps: int = 500
    seeds: tuple[int, ...] = (0,)
    rates: tuple[float, ...] = ()
    at_once: int = 1 << 24

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            object.__setattr__(self, "seeds", tuple(index(seed) for seed in self.seeds))
        except TypeError as error:
            raise OptionError(f"`seeds`={self.seeds!r}: give different whole numbers, such as (0, 1, 2)") from error
        try:
            object.__setattr__(self, "rates", tuple(float(rate) for rate in self.rates))
        except (TypeError, ValueError) as error:
            raise OptionError(f"`rates`={self.rates!r}: give positive numbers, such as (1e-3, 3e-3)") from error
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise OptionError(f"`seeds`={self.seeds}: give one or more different whole numbers of at least 0")
        if self.at_once < 1:
            raise OptionError(f"`at_once`={self.at_once}: give a whole number of at least 1")
        for rate in self.rates:
            if not 0 < rate < float("inf"):
                raise OptionError(f"`rates`={self.rates}: give positive numbers")

    @property
    def tried(self) -> tuple[float, ...]:
        """The learning rates that are tried."""
        return self.rates or (self.learning_rate or DEFAULT_RATE,)


@dataclass
class GroupFits:
    """What a joint net for each group, trained with each seed, came to.

    Attributes:
        members: (G, K), true where a task is in a group.
        validation_loss: (G, S, K) of each member at its net's best; NaN outside of the group.
        test_loss: (G, S, K) of the same weights on other rows; None where none were given.
        rates: (G, S) learning rates that were chosen.
        total_steps: (G,) optimizer steps of all nets of a group, those of rates that were not chosen included.
    """

    members: NDArray[np.bool_]
    validation_loss: Array
    test_loss: Array | None
    rates: Array
    total_steps: NDArray[np.int64]


def fit_groups(
    make_net: NetFactory,
    train: TaskData,
    validation: TaskData,
    members: NDArray[np.bool_],
    *,
    options: GroupFitOptions | None = None,
    test: TaskData | None = None,
) -> GroupFits:
    """Train a joint net for every group, seed and learning rate, all groups of one size side by side as one stack.

    Each net has outputs for all K tasks, of which those of its own group are trained: its loss is the sum of the mean losses of
    the members. It stops early by the mean of their validation losses. With one seed all groups start from the same weights
    and see the same rows in the same steps, so that what a group changes is not blurred by chance draws; training a group
    alone comes to the same to rounding, but for nets with dropout, which draw other masks in other company.

    Args:
        make_net: maps the shape of a row and the K tasks to a net.
        train: encoded training rows.
        validation: encoded validation rows, with labels of every task.
        members: (G, K), true where a task is in a group.
        options: seeds, learning rates, batch size, length, device.
        test: rows on which the best weights are judged as well.

    Raises:
        OptionError: groups that are empty or of another number of tasks, or a net whose outputs do not fit the tasks.
        DataError: features that are not finite, or validation or test rows of other tasks or another shape than the training
            rows; validation rows without a label of a task that is in a group.
        FitError: every learning rate diverged for a group.

    Examples:
        >>> from taskloom.deep import MLP
        >>> from taskloom.tasks import FeatureEncoder, TargetScaler, load_diabetes_tasks
        >>> data = load_diabetes_tasks()
        >>> data = TargetScaler.fit(data).encode(FeatureEncoder.fit(data.features).encode(data))
        >>> groups = np.eye(7, dtype=bool)[:3] | np.eye(7, dtype=bool)[3]
        >>> fits = fit_groups(MLP((8,)), data, data, groups, options=GroupFitOptions(max_steps=20, seeds=(0, 1)))
        >>> fits.validation_loss.shape, int(np.isfinite(fits.validation_loss).sum())
        ((3, 2, 7), 12)
    """
    options = options or GroupFitOptions()
    members = np.asarray(members)
    if members.ndim != 2 or members.shape[1] != train.n_tasks or not len(members) or not members.any(axis=1).all():
        raise OptionError(f"`members` has shape {members.shape}; need (G, {train.n_tasks}), with a task in every row")
    if not are_flags(members):
        raise OptionError("`members` holds other values than true and false; need one for each group and task")
    members = members.astype(bool)
    for name, part in {"validation": validation, "test": test}.items():
        if part is not None:
            check_part(name, part, train)
    lost = next((int(t) for t in np.flatnonzero(members.any(axis=0)) if not len(validation.rows(int(t)))), None)
    if lost is not None:
        task = validation.tasks[lost].name
        raise DataError(f"`validation` has no label of the task `{task}`; split anew, or leave the task out")
    nets = [new_net(make_net, train.X.shape[1:], train.tasks, seed) for seed in options.seeds]
    check_outputs(nets[0], train.X.shape[1:], train.tasks)
    shape = (len(members), len(options.seeds))
    nothing = np.full((*shape, train.n_tasks), np.nan)
    tested = None if test is None else nothing.copy()
    out = GroupFits(members, nothing, tested, np.zeros(shape), np.zeros(shape[0], np.int64))
    workshop = _Workshop(nets, (train, validation, test), options)
    sizes = members.sum(axis=1)
    for size in np.unique(sizes):
        jobs = [(int(g), s) for g in np.flatnonzero(sizes == size) for s in range(shape[1])]
        most = max(1, options.at_once // workshop.numbers_per_net(int(size)) // len(options.tried))
        for start in range(0, len(jobs), most):
            workshop.work(jobs[start : start + most], out)
    return out


class GroupLosses(TaskLosses):
    """Losses (M, s) of M nets side by side, each on s tasks of its own.

    Args:
        tasks: K tasks.
        members: (M, s) numbers of the tasks of each net.
        own_rows: whether each task has rows of its own.
        complete: a promise that no label is missing.
    """

    def __init__(self, tasks: Sequence[Task], members: Tensor, *, own_rows: bool, complete: bool) -> None:
        self.tasks, self.members, self.own_rows, self.complete = tasks, members, own_rows, complete
        self.flat = TaskLosses([tasks[t] for t in members.flatten().tolist()], complete)
        columns = OutputColumns(tasks)
        self.index, self.is_padding = (each.to(members.device)[members] for each in (columns.index, columns.is_padding))

    def take(self, chosen: Sequence[int]) -> GroupLosses:
        """Those of some of the nets."""
        return GroupLosses(self.tasks, self.members[list(chosen)], own_rows=self.own_rows, complete=self.complete)

    def sums(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed losses (M, s) and numbers of labels (M, s) for outputs of the nets and labels (M, s, B)."""
        sums, counts = self.flat.sums(self._laid_out(outputs), labels.flatten(0, 1))
        return sums.unflatten(0, labels.shape[:2]), counts.unflatten(0, labels.shape[:2])

    def means(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean losses (M, s); NaN, without gradient, where a task has no label among these rows."""
        return self.flat.means(self._laid_out(outputs), labels.flatten(0, 1)).unflatten(0, labels.shape[:2])

    def _laid_out(self, outputs: Tensor) -> Tensor:
        """Outputs (M, B, D) of shared rows, or (M, s B, D) of own rows, as (M s, B, C)."""
        M, s, C = self.index.shape
        if self.own_rows:
            by_task = outputs.unflatten(1, (s, -1))
            picked = by_task.gather(3, self.index.unsqueeze(2).expand(M, s, by_task.shape[2], C))
        else:
            wide = self.index.flatten(1).unsqueeze(1).expand(M, outputs.shape[1], s * C)
            picked = outputs.gather(2, wide).unflatten(2, (s, C)).movedim(2, 1)
        if C > 1:
            picked = picked.masked_fill(self.is_padding.unsqueeze(2), -torch.inf)
        return picked.flatten(0, 1)


class _GroupRows:
    """Rows and labels for M nets, each of which learns s tasks of its own.

    Args:
        tensors: rows and labels of all tasks.
        members: (M, s) numbers of the tasks of each net.
        at_once: rows of all nets in one part of a look.
    """

    def __init__(self, tensors: TaskTensors, members: Tensor, at_once: int = 1 << 16) -> None:
        self.tensors, self.members, self.at_once = tensors, members, at_once
        self.is_shared = tensors.data.is_shared
        self.by_task = tensors.y.T.contiguous() if self.is_shared else tensors.y

    def at(self, dealt: Tensor, places: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features (M, B, ...), or (M, s B, ...) of own rows, and labels (M, s, B).

        Args:
            dealt: row numbers (S, 1, B) of shared rows, or (S, K, B) of own rows.
            places: (M,) which of the S each net takes.
            active: numbers of the nets that still train; None: all.
        """
        members = self.members
        if active is not None:
            members, places = members[active], places[active]
        if self.is_shared:
            rows = dealt[places, 0]
            return self.tensors.x[rows], self.by_task[members.unsqueeze(2), rows.unsqueeze(1)]
        rows = dealt[places.unsqueeze(1), members]
        return self.tensors.x[rows].flatten(1, 2), self.tensors.y[rows]

    def all(self, active: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """All rows, some at a time, as `at` gives them; padding has no label."""
        members = self.members if active is None else self.members[active]
        M, s = members.shape
        if self.is_shared:
            n, width = len(self.tensors.x), max(1, self.at_once // M)
            for start in range(0, n, width):
                x = self.tensors.x[start : start + width]
                yield x.expand(M, *x.shape), self.by_task[members, start : start + width]
            return
        pools = self.tensors.pools()
        longest = max(len(pools[t]) for t in members.unique().tolist())
        padded = np.stack([np.pad(pool[:longest], (0, max(longest - len(pool), 0)), constant_values=-1) for pool in pools])
        rows, width = torch.from_numpy(padded).to(members.device)[members], max(1, self.at_once // (M * s))
        for start in range(0, longest, width):
            part = rows[:, :, start : start + width]
            place = part.clamp(min=0)
            yield self.tensors.x[place].flatten(1, 2), self.tensors.y[place].masked_fill(part < 0, torch.nan)


class _Workshop:
    """What all stacks have in common.

    Args:
        nets: S nets with their initial weights.
        parts: training, validation and, where asked for, test rows.
        options: of the fits.
    """

    def __init__(
        self, nets: Sequence[nn.Module], parts: tuple[TaskData, TaskData, TaskData | None], options: GroupFitOptions
    ) -> None:
        self.nets, self.options, self.tasks = nets, options, parts[0].tasks
        self.is_shared, self.row = parts[0].is_shared, parts[0].X.shape[1:]
        self.fabric, self.dtype = make_fabric(options), dtype_of(options)
        self.train, self.validation, *tested = (
            TaskTensors(part, self.dtype, self.fabric.device) for part in parts if part is not None
        )
        self.test = tested[0] if tested else None
        pools = [np.arange(parts[0].n_rows)] if self.is_shared else [parts[0].rows(t) for t in range(parts[0].n_tasks)]
        self.dealers = [RowDealer(pools, options.batch_size, seed) for seed in options.seeds]

    def numbers_per_net(self, size: int) -> int:
        """About how many numbers the training of one net holds."""
        rows = self.options.batch_size * (1 if self.is_shared else size)
        weights = sum(weight.numel() for weight in self.nets[0].parameters())
        return _COPIES * weights + 3 * rows * (int(np.prod(self.row)) + activations(self.nets[0], self.row))

    def work(self, jobs: Sequence[tuple[int, int]], out: GroupFits) -> None:
        """Train the nets of some (group, seed) at all learning rates as one stack, and write down what they came to."""
        rates, device = self.options.tried, self.fabric.device
        chosen = np.stack([np.flatnonzero(out.members[g]) for g, _ in jobs])
        members = torch.from_numpy(chosen).repeat(len(rates), 1).to(device)
        places = torch.tensor([s for _, s in jobs] * len(rates), device=device)
        loop, stacked, look = self._loop(members, places, rates)
        with session(self.options.seeds[0], self.dtype):
            loop.run()
            losses = loop.best_losses
            tested = None
            if self.test is not None:
                stacked.load_state_dict(loop.best)
                stacked.chosen = None
                tested = mean_losses(loop.module, look, _GroupRows(self.test, members).all())
        shape = (len(rates), len(jobs))
        criteria = (
            losses.mean(dim=1).cpu().masked_fill(loop.has_failed(), torch.inf).nan_to_num(torch.inf, torch.inf).view(shape)
        )
        best = criteria.argmin(dim=0)
        steps = loop.unit_steps.view(shape).sum(dim=0)
        for j, (g, s) in enumerate(jobs):
            if not bool(criteria[best[j], j].isfinite()):
                names = ", ".join(self.tasks[t].name for t in chosen[j])
                raise FitError(f"every learning rate of {list(rates)} diverged on the group {names}; try smaller ones")
            m = int(best[j]) * len(jobs) + j
            out.validation_loss[g, s, chosen[j]] = losses[m].double().cpu().numpy()
            if tested is not None and out.test_loss is not None:
                out.test_loss[g, s, chosen[j]] = tested[m].double().cpu().numpy()
            out.rates[g, s] = rates[int(best[j])]
            out.total_steps[g] += int(steps[j])

    def _loop(self, members: Tensor, places: Tensor, rates: Sequence[float]) -> tuple[FitLoop, StackedNets, GroupLosses]:
        """The loop over the stack, the stack, and the losses of its looks."""
        stacked = StackedNets([self.nets[s] for s in places.tolist()], n_groups=len(rates)).to(self.dtype)
        groups = [{"params": group, "lr": rate} for group, rate in zip(stacked.parameter_groups(), rates, strict=True)]
        module, optimizer = prepare(self.fabric, stacked, adam(self.fabric, groups), self.options.precision)
        rows, looked = _GroupRows(self.train, members), _GroupRows(self.validation, members)
        own = not self.is_shared

        def deal(step: int, active: Tensor | None) -> tuple[Tensor, Tensor]:
            dealt = torch.stack([dealer.rows(step) for dealer in self.dealers]).to(members.device)
            return rows.at(dealt, places, active)

        look = GroupLosses(self.tasks, members, own_rows=own, complete=False)
        feed = Feed(
            train=deal,
            validation=looked.all,
            # Only labelled rows are dealt to a task that owns its rows.
            losses=GroupLosses(self.tasks, members, own_rows=own, complete=own or self.train.is_complete()),
            look=look,
            judge=lambda losses: losses.mean(dim=1),
        )
        with session(self.options.seeds[0], self.dtype):
            return FitLoop(module, SumStep(optimizer, self.fabric), feed, self.options), stacked, look


def activations(net: nn.Module, row: Sequence[int]) -> int:
    """Numbers that the layers of a net give for one row, about: what its training holds for each.

    Examples:
        >>> activations(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (3,))
        8
    """
    counts: list[int] = []

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            counts.append(output.numel() // 2)

    handles = [module.register_forward_hook(note) for module in net.modules() if not any(module.children())]
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            parameter = next(net.parameters())
            net(torch.zeros(2, *row, dtype=parameter.dtype, device=parameter.device))
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    return sum(counts)
