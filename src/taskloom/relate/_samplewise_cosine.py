"""Task affinity from the gradients of single rows of a net that was trained on all tasks.

Letters: K tasks, n rows, B rows of a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from taskloom.relate._affinity import Affinity, Cost
from taskloom.relate._joint_run import trained
from taskloom.relate._options import MeasureOptions, Model, check_grow
from taskloom.relate._probe import cosines, cross_products
from taskloom.relate._readings import View, batch_of, drawn_labels, joint_view, loss_gradients
from taskloom.relate._rows import HalvedMean, choose_own_rows, choose_rows, parts_of, task_names
from taskloom.tasks import Rows, TaskData


def samplewise_cosine(
    model: Model,
    data: TaskData,
    options: MeasureOptions | None = None,
    *,
    signed: bool = False,
    grow: float | None = None,
) -> Affinity:
    """Mean absolute cosine of the gradients of two tasks at the same row, by the shared weights of a net trained on all tasks.

    The recommended measure, and ours: the idea of Thakur et al. (TPAMI 2025) at the end of a short joint run. One look at the
    net suffices, and a task is as near to its negation as to itself.

    Of tasks with one output the labels make no difference: a label only stretches or turns round the gradient of the output. So
    rows without a label, and rows of other tasks where each task has rows of its own, serve as well. Missing labels of
    multiclass tasks are drawn from what the net holds for likely.

    Args:
        model: a net trained on all tasks, taken as it stands; or what makes nets, and the joint run is made here.
        data: encoded training rows.
        options: of the joint run; `n_rows` in all, `seed`, `at_once`.
        signed: the mean cosine, in which labels count. Where each task has rows of its own, over all pairs of a row of the one
            and a row of the other.
        grow: look at twice as many rows until the stability is as high as this.

    Returns:
        Symmetric, 1 on the diagonal. `stability` is the correlation of the matrices of two halves of the rows.

    Raises:
        OptionError: a net that does not fit the tasks or shares no weights.
        DataError: fewer than two tasks, or features that are not finite.
        FitError: the joint run failed.

    Examples:
        >>> from taskloom.deep import MLP
        >>> from taskloom.tasks import Task
        >>> X = np.random.default_rng(0).normal(size=(200, 4))
        >>> Y = np.stack([X[:, 0] > 0, X[:, 0] < 0.1, X[:, 1] > 0], axis=1)
        >>> data = TaskData.shared_rows(X, Y, [Task(name, "binary") for name in "abc"])
        >>> affinity = samplewise_cosine(MLP((8,)), data, MeasureOptions(steps=200))
        >>> affinity["a", "b"] > affinity["a", "c"]
        True
    """
    how = options or MeasureOptions()
    check_grow(grow)
    net, cost = trained(model, data, how)
    start = perf_counter()
    view = joint_view(net, data)
    n_rows, most = how.n_rows, data.n_rows
    is_across = signed and not data.is_shared

    def measure(n_rows: int) -> tuple[HalvedMean, Cost]:
        wider = replace(how, n_rows=n_rows)
        return _signed_across(view, data, wider) if is_across else _cosines_at(view, data, wider, signed=signed)

    mean, passes = measure(n_rows)
    while grow is not None and n_rows < most and not mean.stability() >= grow:
        n_rows *= 2
        mean, more = measure(n_rows)
        passes += more
    values, stability = mean.value(), mean.stability() if how.split_half or grow is not None else np.nan
    np.fill_diagonal(values, 1.0)
    notes = [view.note] + (["cosines over pairs of rows of two tasks"] if is_across else [])
    cost += replace(passes, seconds=perf_counter() - start)
    return Affinity(values, task_names(data), "samplewise_cosine", cost=cost, stability=stability, notes=notes, unrelated=0.0)


def _cosines_at(view: View, data: TaskData, options: MeasureOptions, *, signed: bool) -> tuple[HalvedMean, Cost]:
    """Cosines at the same rows; of data with own rows, those of all tasks."""
    if data.is_shared:
        rows = choose_rows(data, options.n_rows, options.seed)
    else:
        rows = np.concatenate(choose_own_rows(data, max(options.n_rows // data.n_tasks, 2), options.seed))
        rows = np.random.default_rng(options.seed).permutation(rows)
    K, mean, generator = data.n_tasks, HalvedMean(data.n_tasks), torch.Generator().manual_seed(options.seed)
    for part in parts_of(rows, options.at_once, K * (3 * view.probe.size + K)):
        x, labels = batch_of(view, data, part)
        v = view.probe.stand_ins(x, _output_pull(view, data, labels, generator, signed=signed), norm=2)
        cosine = cosines(v)
        mean.add((cosine if signed else cosine.abs_()).numpy())
    return mean, Cost(len(rows), len(rows) * K)


def _output_pull(
    view: View, data: TaskData, labels: Tensor, generator: torch.Generator, *, signed: bool
) -> Callable[[Tensor], Tensor]:
    """Cotangents of the losses; without signs, of the outputs themselves for tasks that have one."""
    single = torch.tensor([task.n_outputs == 1 for task in data.tasks])

    def pull(out: Tensor) -> Tensor:
        z = view.reading.outputs(out)
        if signed:
            return view.reading.back(loss_gradients(z, labels, data.tasks))
        found = loss_gradients(z, drawn_labels(z, labels, data.tasks, generator), data.tasks)
        found[:, single] = 0.0
        found[:, single, 0] = 1.0
        return view.reading.back(found)

    return pull


def _signed_across(view: View, data: TaskData, options: MeasureOptions) -> tuple[HalvedMean, Cost]:
    """Cosines over all pairs of a row of one task and a row of the other."""
    K, mean = data.n_tasks, HalvedMean(data.n_tasks)
    pools = choose_own_rows(data, max(options.n_rows // K, 2), options.seed)
    if not view.probe.is_linear:
        return _signed_of_means(view, data, pools)
    seen = []
    for t, rows in enumerate(pools):
        x, labels = batch_of(view, data, rows)

        def pull(out: Tensor, t: int = t, labels: Tensor = labels) -> Tensor:
            return view.reading.back(loss_gradients(view.reading.outputs(out), labels, data.tasks))[t : t + 1]

        parts = view.probe.parts(x, pull)
        norms = sum(part.square() * part.delta[0].square().sum(dim=1) for part in parts)
        seen.append((parts, torch.as_tensor(norms).clamp(min=1e-30).rsqrt()))
    for s, (one, scale) in enumerate(seen):
        for t, (other, unit) in enumerate(seen):
            cosine = (cross_products(one, other) * scale.unsqueeze(1) * unit).double()
            for half in range(2):
                mean.sums[half, s, t] += float(cosine[half::2, half::2].sum())
                mean.counts[half, s, t] += cosine[half::2, half::2].numel()
    n = sum(map(len, pools))
    return mean, Cost(n, n)


def _signed_of_means(view: View, data: TaskData, pools: list[Rows]) -> tuple[HalvedMean, Cost]:
    """The same through means of unit gradients, where layers are not linear."""
    K, mean = data.n_tasks, HalvedMean(data.n_tasks)
    for half in range(2):
        means = []
        for t, rows in enumerate(pools):
            x, labels = batch_of(view, data, rows[half::2])

            def pull(out: Tensor, t: int = t, labels: Tensor = labels) -> Tensor:
                return view.reading.back(loss_gradients(view.reading.outputs(out), labels, data.tasks))[t : t + 1]

            g = view.probe.gradients(x, pull)[:, 0]
            means.append((g / g.norm(dim=1, keepdim=True).clamp(min=1e-30)).mean(dim=0))
        unit = torch.stack(means).double()
        mean.add_sums((unit @ unit.T).numpy(), np.ones((K, K)), half)
    n = sum(map(len, pools))
    return mean, Cost(n, n)
