"""Fitting one net on all tasks, or one net for each task side by side.

Letters: K tasks, G learning rates tried side by side, M = G K nets, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from taskloom.deep._batches import RowDealer, TaskTensors, check_part
from taskloom.deep._loop import Feed, FitLoop, make_fabric, prepare
from taskloom.deep._losses import TaskLosses
from taskloom.deep._nets import NetFactory, OwnRowsNet, SharedRowsNet, check_factory, check_outputs
from taskloom.deep._options import FitOptions, check_options
from taskloom.deep._stacked import StackedNets
from taskloom.deep._update import SumStep, UpdateStep, check_update
from taskloom.tasks import Array, Curve, FitError, OptionError, Task, TaskData, check_positive, check_whole

DEFAULT_RATE = 1e-3
UpdateFactory = Callable[[Optimizer, Any], UpdateStep]


@dataclass
class NetFit:
    """A trained net.

    Attributes:
        net: on the CPU, with its best weights, in evaluation mode.
        validation_loss: (K,) at its best.
        steps: optimizer steps done.
        curve: mean validation loss over steps.
        failed: it diverged without ever getting better than its initial weights.
    """

    net: nn.Module
    validation_loss: Array
    steps: int
    curve: Curve
    failed: bool = False


def fit(
    net: nn.Module,
    train: TaskData,
    validation: TaskData,
    *,
    options: FitOptions | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    update: UpdateFactory = SumStep,
) -> NetFit:
    """Train one net on all tasks.

    Missing labels add nothing to a task's loss; with own rows every step takes `batch_size` rows of each task, small tasks
    going round more often. The loss is the sum of the tasks' mean losses; early stopping follows the mean of their validation
    losses, and the weights with the least are kept.

    Args:
        net: maps rows (n, ...) to outputs (n, D), one column for each regression or binary task, one a class for each
            multiclass task. It is trained in place.
        train: encoded training rows: finite numbers, standardised regression targets.
        validation: encoded validation rows.
        options: learning rate (1e-3 if not given), batch size, length, precision, device.
        seed: of the batches and of dropout; the net's initial weights are the caller's.
        checkpoint: file that the state is saved to; if it exists, training goes on from it, to the bit.
        update: makes the update step from the optimizer and the fabric.

    Raises:
        OptionError: a net that does not fit rows or tasks, that has nothing to train or that the update step cannot serve;
            options, a seed or an update that are none.
        DataError: features that are not finite, or validation rows of other tasks or of another shape.
        ModelFileError: a checkpoint that is damaged or belongs to another net.

    Examples:
        >>> from taskloom.tasks import load_diabetes_tasks, FeatureEncoder, TargetScaler
        >>> data = load_diabetes_tasks()
        >>> data = TargetScaler.fit(data).encode(FeatureEncoder.fit(data.features).encode(data))
        >>> from taskloom.deep import SharedBottom
        >>> result = fit(SharedBottom(4, data.tasks), data, data, options=FitOptions(max_steps=50, accelerator="cpu"))
        >>> result.steps, result.validation_loss.shape
        (50, (7,))
    """
    options = FitOptions() if options is None else options
    _check_call(options, seed, train, validation)
    check_update(update)
    check_outputs(net, train.X.shape[1:], train.tasks)
    if not any(weight.requires_grad for weight in net.parameters()):
        raise OptionError(f"`net`={type(net).__name__} has no parameter that requires a gradient: there is nothing to train")
    fabric = make_fabric(options)
    tensors = TaskTensors(train, dtype_of(options), fabric.device), TaskTensors(validation, dtype_of(options), fabric.device)
    wrapper = SharedRowsNet(net, train.tasks) if train.is_shared else OwnRowsNet(net, train.tasks)
    wrapper = wrapper.to(dtype_of(options))
    rate = options.learning_rate or DEFAULT_RATE
    module, optimizer = prepare(
        fabric, wrapper, adam(fabric, [{"params": list(wrapper.parameters()), "lr": rate}]), options.precision
    )
    with session(seed, dtype_of(options)):
        feed, origin = _joint_feed(*tensors, options, seed), _origin(train, validation, options, seed) if checkpoint else ""
        step = update(optimizer, fabric)
        if not isinstance(step, UpdateStep):
            raise OptionError(f"`update`={update!r} made a {type(step).__name__}; let it give back an `UpdateStep`")
        step.meet(net)
        loop = FitLoop(module, step, feed, options, origin)
        loop.run(Path(checkpoint) if checkpoint is not None else None)
    wrapper.load_state_dict(loop.best)
    net.to("cpu").eval()
    losses = loop.best_losses.double().cpu().numpy()
    return NetFit(net, losses, int(loop.unit_steps[0]), _mean_curve(loop), bool(loop.has_failed()[0]))


def _check_call(options: Any, seed: Any, train: TaskData, validation: TaskData) -> None:
    check_options(options)
    check_whole("seed", seed, 0)
    check_part("validation", validation, train)


@dataclass
class SingleFits:
    """One net for each task.

    Attributes:
        nets: K nets on the CPU, in evaluation mode.
        rates: K chosen learning rates.
        validation_loss: (K,).
        steps: optimizer steps of the chosen nets, summed over them.
        total_steps: of all nets of all learning rates.
        curve: mean validation loss of the chosen nets.
    """

    nets: list[nn.Module]
    rates: list[float]
    validation_loss: Array
    steps: int
    total_steps: int
    curve: Curve


def fit_singles(
    make_net: NetFactory,
    train: TaskData,
    validation: TaskData,
    *,
    rates: Sequence[float],
    options: FitOptions | None = None,
    seed: int = 0,
    batched: bool = True,
) -> SingleFits:
    """Train a net of its own for every task at every learning rate, all of them side by side, and keep each task's best.

    The nets do not touch each other: each has its own rows, its own early stopping and its own best weights, as if it had been
    trained alone. Tasks whose nets differ in shape (classes) are trained in groups of equal ones.

    Args:
        make_net: maps the shape of a row and a list of one task to a net.
        train: encoded training rows.
        validation: encoded validation rows.
        rates: learning rates tried.
        options: batch size, length, precision, device; its learning rate is not used.
        seed: of initial weights and batches.
        batched: False trains them one after the other: the slow twin.

    Raises:
        OptionError: no learning rate or one that is not positive; options, a seed or a factory that are none.
        DataError: validation rows of other tasks or of another shape.
        FitError: every learning rate diverged for a task.
    """
    options = FitOptions() if options is None else options
    _check_call(options, seed, train, validation)
    check_factory(make_net)
    if not len(rates):
        raise OptionError("`rates` is empty: give at least one learning rate")
    for rate in rates:
        check_positive("rates", rate)
    widths: dict[int, list[int]] = {}
    for t, task in enumerate(train.tasks):
        widths.setdefault(task.n_outputs, []).append(t)
    groups = list(widths.values()) if batched else [[t] for t in range(train.n_tasks)]
    rate_groups = [list(rates)] if batched else [[rate] for rate in rates]
    trained: dict[tuple[int, float], _Trained] = {}
    for chosen in groups:
        for group_rates in rate_groups:
            trained |= _fit_group(make_net, (train, validation), chosen, group_rates, (options, seed))
    best = [min((trained[t, rate] for rate in rates), key=lambda one: one.loss) for t in range(train.n_tasks)]
    lost = next((train.tasks[t].name for t, one in enumerate(best) if not np.isfinite(one.loss)), None)
    if lost is not None:
        raise FitError(f"every learning rate of {list(rates)} diverged on task `{lost}`; try smaller ones")
    return SingleFits(
        nets=[one.net for one in best],
        rates=[one.rate for one in best],
        validation_loss=np.array([one.loss for one in best]),
        steps=sum(one.steps for one in best),
        total_steps=sum(one.steps for one in trained.values()),
        curve=_joined_curve([one.curve for one in best]),
    )


@dataclass
class _Trained:
    net: nn.Module
    rate: float
    loss: float
    steps: int
    curve: list[tuple[int, float]]


def _fit_group(
    make_net: NetFactory,
    parts: tuple[TaskData, TaskData],
    chosen: Sequence[int],
    rates: Sequence[float],
    how: tuple[FitOptions, int],
) -> dict[tuple[int, float], _Trained]:
    """Nets of one shape for the chosen tasks at all rates, trained as one stack; slot m serves task m % K at rate m // K."""
    nets, stacked, loop = _stacked_loop(make_net, parts, chosen, rates, how)
    with session(how[1], dtype_of(how[0])):
        loop.run()
    weights = {name: value.cpu() for name, value in loop.best.items()}
    has_failed, results = loop.has_failed(), {}
    for m, net in enumerate(nets):
        g, k = divmod(m, len(chosen))
        net.load_state_dict(stacked.net_state(weights, m))
        curve = [(step, float(criteria[m])) for step, criteria in loop.curve]
        loss = float("inf") if has_failed[m] else float(loop.best_losses[m])
        results[chosen[k], rates[g]] = _Trained(net.eval(), rates[g], loss, int(loop.unit_steps[m]), curve)
    return results


def _stacked_loop(
    make_net: NetFactory,
    parts: tuple[TaskData, TaskData],
    chosen: Sequence[int],
    rates: Sequence[float],
    how: tuple[FitOptions, int],
) -> tuple[list[nn.Module], StackedNets, FitLoop]:
    """The nets of `_fit_group`, their stack, and the loop that trains it."""
    options, seed = how
    train, validation = (_only(part, chosen) for part in parts)
    shape, fabric = train.X.shape[1:], make_fabric(options)
    # Each net's weights follow from the seed and its own task alone, however many are trained beside it.
    nets = [new_net(make_net, shape, [train.tasks[k]], seed, t) for _ in rates for k, t in enumerate(chosen)]
    check_outputs(nets[0], shape, [train.tasks[0]])
    stacked = StackedNets(nets, n_groups=len(rates)).to(dtype_of(options))
    groups = [{"params": group, "lr": rate} for group, rate in zip(stacked.parameter_groups(), rates, strict=True)]
    module, optimizer = prepare(fabric, stacked, adam(fabric, groups), options.precision)
    tensors = [TaskTensors(part, dtype_of(options), fabric.device) for part in (train, validation)]
    dealer = RowDealer([parts[0].rows(t) for t in chosen], options.batch_size, seed, keys=chosen)
    everyone = torch.arange(len(nets))
    feed = Feed(
        train=lambda step, active: tensors[0].own(dealer.rows(step), everyone if active is None else active),
        validation=lambda active: tensors[1].all_own(everyone if active is None else active),
        losses=TaskLosses([*train.tasks] * len(rates), complete=True),
        look=TaskLosses([*train.tasks] * len(rates)),
        judge=lambda losses: losses,
    )
    with session(seed, dtype_of(options)):
        return nets, stacked, FitLoop(module, SumStep(optimizer, fabric), feed, options)


def new_net(make_net: NetFactory, shape: tuple[int, ...], tasks: Sequence[Task], *seed: int) -> nn.Module:
    """A net whose initial weights follow from the seed alone; torch's generator is left as it was.

    Args:
        make_net: maps the shape of a row and tasks to a net.
        shape: of a row.
        tasks: of the net.
        seed: one whole number or more.

    Examples:
        >>> from taskloom.deep import MLP
        >>> one, again = (new_net(MLP((4,)), (3,), [Task("a")], 7).heads[0].bias for _ in range(2))
        >>> torch.equal(one, again)
        True
    """
    with session(int(np.random.SeedSequence(seed).generate_state(1)[0]), torch.float32):
        return make_net(shape, tasks)


def _only(data: TaskData, chosen: Sequence[int]) -> TaskData:
    """The chosen tasks on all rows: row numbers stay those of `data`."""
    tasks = tuple(data.tasks[t] for t in chosen)
    if data.task_of_row is None:
        return TaskData(tasks, data.features, data.y[:, list(chosen)])
    place = np.full(data.n_tasks, len(chosen))
    place[list(chosen)] = np.arange(len(chosen))
    return TaskData(tasks, data.features, data.y, place[data.task_of_row], data.by)


def _joint_feed(train: TaskTensors, validation: TaskTensors, options: FitOptions, seed: int) -> Feed:
    tasks = train.data.tasks

    def judge(losses: Tensor) -> Tensor:
        return losses.mean(dim=0, keepdim=True)

    if train.data.is_shared:
        dealer = RowDealer([np.arange(train.data.n_rows)], options.batch_size, seed)
        losses, look = (TaskLosses(tasks, complete=part.is_complete()) for part in (train, validation))
        return Feed(lambda step, _: train.shared(dealer.rows(step)), lambda _: validation.all_shared(), losses, look, judge)
    dealer = RowDealer(train.pools(), options.batch_size, seed)
    # Only labelled rows are dealt to a task that owns its rows.
    losses, look = TaskLosses(tasks, complete=True), TaskLosses(tasks)
    return Feed(
        lambda step, _: train.own(dealer.rows(step)), lambda _: validation.all_own(), losses, look, judge, own_rows=True
    )


def _origin(train: TaskData, validation: TaskData, options: FitOptions, seed: int) -> str:
    """What a resumed fit must have been started with; it may only run longer and save more or less often."""
    how = replace(options, max_steps=1, checkpoint_every=1)
    return f"{train.digest()} {validation.digest()} {seed} {how}"


def adam(fabric: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """Adam over groups of parameters, of which those that are not trained are left out."""
    groups = [{**group, "params": [weight for weight in group["params"] if weight.requires_grad]} for group in groups]
    return torch.optim.Adam(groups, fused=fabric.device.type in {"cpu", "cuda"})


def dtype_of(options: FitOptions) -> torch.dtype:
    """In which weights are held."""
    return torch.float64 if options.precision == "64-true" else torch.float32


@contextmanager
def session(seed: int, dtype: torch.dtype) -> Generator[None]:
    """Torch's generator and default type set inside, and as they were before outside."""
    before = torch.get_default_dtype()
    # Fabric gives outputs in the default type: with 64-bit weights they would come back rounded to 32 bits.
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(before)


def _mean_curve(loop: FitLoop) -> Curve:
    return Curve("mean of tasks", tuple(step for step, _ in loop.curve), tuple(float(value.mean()) for _, value in loop.curve))


def _joined_curve(curves: list[list[tuple[int, float]]]) -> Curve:
    """The mean of curves that end at different steps; one that has ended keeps its last value."""
    longest = max(curves, key=len)
    values = np.array([[value for _, value in curve] + [curve[-1][1]] * (len(longest) - len(curve)) for curve in curves])
    return Curve("mean of tasks", tuple(step for step, _ in longest), tuple(float(v) for v in values.mean(axis=0)))
