"""Task affinity from the gradients of single rows at one common start.

Letters: K tasks, n rows, B rows of a part, P compared parameters, z the common output, r gradient of a task's loss by it.

Thakur et al. (TPAMI 2025, arXiv 2412.04413) compare tasks by the optima that single rows reach in one gradient step from one
start. Of the paper only the abstract and the beginning have been read; that the affinity of two tasks is the mean distance in
the 1-norm of their optima at the same row is told by summaries of it. With one start it cancels out, and the mean distance of
gradients is left. All else here is our reading.

With a common head of one output the losses of all tasks have gradients r_t(x) dz/dtheta, so that

    a(s, t) = mean over rows of |r_s - r_t| |dz/dtheta|_1:

one pass back whatever the number of tasks, and a disagreement of labels that is weighed by the size of a gradient. It can see
no more than how well labels agree.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from taskloom.relate._affinity import Affinity, Cost
from taskloom.relate._options import AffinityWarning, MeasureOptions, Model, check_grow
from taskloom.relate._probe import Probe, cosines, l1_distances
from taskloom.relate._readings import View, batch_of, common_view, loss_gradients
from taskloom.relate._rows import (
    HalvedMean,
    check_data,
    choose_own_rows,
    choose_rows,
    correlation_of_pairs,
    labels_of,
    parts_of,
    ratio,
    task_names,
)
from taskloom.tasks import Array, OptionError, Rows, TaskData, check_whole

_READING = "our reading of the paper, of which the formula is known from summaries alone"


def samplewise(
    model: Model,
    data: TaskData,
    options: MeasureOptions | None = None,
    *,
    normalise: bool = True,
    sign_invariant: bool = False,
    starts: int = 1,
    grow: float | None = None,
) -> Affinity:
    """Mean distance in the 1-norm of the gradients of two tasks at the same row, at one start that all tasks have in common.

    Thakur et al. (TPAMI 2025); see the module for what of it is known. A distance: small is alike. Nothing is trained. A task
    and its negation are as far from each other as can be, though they need the same features: see `sign_invariant`.

    Where each task has rows of its own no two tasks meet at a row. An `AffinityWarning` is then given, and the result is the
    cosine of the tasks' mean gradients at the common start, each less the mean over the tasks, where larger is more alike.

    Args:
        model: what makes nets, such as `MLP()`: its net for one task is the start of all. Or a net with one head that all use.
        data: encoded training rows.
        options: `n_rows`, `seed`, `at_once`.
        normalise: divide each task's gradients by their mean size, so that the scale of a loss does not matter; the paper is
            not known to do so, `False` is the plain formula.
        sign_invariant: the least distance over turning the labels of either task around. Ours.
        starts: nets, out of neighbouring seeds, that the matrix is averaged over.
        grow: take twice as many rows until the stability is as high as this.

    Returns:
        Symmetric. `stability` is the correlation of the matrices of two halves of the rows.

    Raises:
        OptionError: a net whose tasks have heads of their own; `sign_invariant` with multiclass tasks, whose labels have no
            opposite.
        DataError: fewer than two tasks, or features that are not finite.

    Examples:
        >>> from taskloom.deep import MLP
        >>> from taskloom.tasks import Task
        >>> X = np.random.default_rng(0).normal(size=(200, 4))
        >>> Y = np.stack([X[:, 0] > 0, X[:, 0] > 0.1, X[:, 1] > 0], axis=1)
        >>> data = TaskData.shared_rows(X, Y, [Task(name, "binary") for name in "abc"])
        >>> affinity = samplewise(MLP((8,)), data)
        >>> affinity["a", "b"] < affinity["a", "c"], affinity.higher_is_better
        (True, False)
    """
    how, start = options or MeasureOptions(), perf_counter()
    check_data(data)
    check_grow(grow)
    _check(data, starts, sign_invariant=sign_invariant)
    views = [common_view(model, data, how.seed + s) for s in range(starts)]
    if not data.is_shared:
        return _centred_mean_gradients(views, data, how, sign_invariant=sign_invariant)

    def measure(n_rows: int) -> Affinity:
        rows = choose_rows(data, n_rows, how.seed)
        found = [_literal(view, data, rows, how, normalise=normalise, flips=sign_invariant) for view in views]
        return _averaged(found, data, views[0].note)

    n_rows = how.n_rows
    affinity = measure(n_rows)
    while grow is not None and n_rows < data.n_rows and not affinity.stability >= grow:
        n_rows *= 2
        before, affinity = affinity, measure(n_rows)
        affinity = replace(affinity, cost=affinity.cost + before.cost)
    affinity = affinity if how.split_half or grow is not None else affinity.with_stability(np.nan)
    return replace(affinity, cost=replace(affinity.cost, seconds=perf_counter() - start))


def _check(data: TaskData, starts: int, *, sign_invariant: bool) -> None:
    check_whole("starts", starts)
    many = next((task.name for task in data.tasks if task.kind == "multiclass"), None)
    if sign_invariant and many is not None:
        raise OptionError(
            f"`sign_invariant`=True: the labels of the multiclass task `{many}` have no opposite; set it to False"
        )


def _averaged(found: list[tuple[tuple[Array, Array, Array], Cost]], data: TaskData, note: str) -> Affinity:
    """Over starts."""
    values, one, other = (np.mean([each[part] for each, _ in found], axis=0) for part in range(3))
    np.fill_diagonal(values, 0.0)
    return Affinity(
        values,
        task_names(data),
        "samplewise",
        higher_is_better=False,
        cost=sum((cost for _, cost in found), Cost()),
        stability=correlation_of_pairs(one, other),
        notes=[_READING, note],
    )


def _literal(
    view: View, data: TaskData, rows: Rows, options: MeasureOptions, *, normalise: bool, flips: bool
) -> tuple[tuple[Array, Array, Array], Cost]:
    """The matrix of all rows, and those of two halves."""
    if all(task.n_outputs == 1 for task in data.tasks):
        return _literal_of_one_output(view.probe, data, rows, options, normalise=normalise, flips=flips)
    K = data.n_tasks

    def stand_ins(part: Rows) -> Tensor:
        x, labels = batch_of(view, data, part)

        def pull(out: Tensor) -> Tensor:
            return view.reading.back(loss_gradients(view.reading.outputs(out), labels, data.tasks))

        v = view.probe.stand_ins(x, pull, norm=1)
        return torch.where(labels.isnan().unsqueeze(2), torch.nan, v)

    parts = parts_of(rows, options.at_once, K * (view.probe.size + K))
    unit = torch.ones(K, 1)
    if normalise:
        sizes = torch.cat([stand_ins(part).abs().sum(dim=2) for part in parts])
        unit = sizes.nanmean(dim=0).unsqueeze(1)
        unit = torch.where(unit > 0, unit, 1.0)
    mean = HalvedMean(K)
    for part in parts:
        mean.add(l1_distances(stand_ins(part) / unit).double().numpy())
    one, other = (ratio(mean.sums[h], mean.counts[h]) for h in range(2))
    n, times = len(rows), 1 + normalise
    return (mean.value(), one, other), Cost(n * times, n * K * times)


def _literal_of_one_output(
    probe: Probe, data: TaskData, rows: Rows, options: MeasureOptions, *, normalise: bool, flips: bool
) -> tuple[tuple[Array, Array, Array], Cost]:
    """|r_s - r_t| weighed by the size of the gradient of the common output: one pass back for all tasks."""
    outputs, sizes = [], []
    for part in parts_of(rows, options.at_once, probe.size):
        x = torch.as_tensor(data.X[part], dtype=probe.dtype)

        def pull(out: Tensor) -> Tensor:
            outputs.append(out)
            return torch.ones_like(out).unsqueeze(0)

        sizes.append(probe.stand_ins(x, pull, norm=1).abs().sum(dim=(1, 2)))
    z, size = torch.cat(outputs).double().numpy(), torch.cat(sizes).double().numpy()
    labels = data.y[rows]
    is_binary = np.array([task.kind == "binary" for task in data.tasks])
    U = _by_output(z, labels, is_binary) * size[:, None]
    if flips:
        U = np.concatenate([U, _by_output(z, np.where(is_binary, 1 - labels, -labels), is_binary) * size[:, None]], axis=1)
    if normalise:
        unit = np.nanmean(np.abs(U), axis=0)
        U = U / np.where(unit > 0, unit, 1.0)
    whole, one, other = (_least(cityblock(part), flips) for part in (U, U[0::2], U[1::2]))
    return (whole, one, other), Cost(len(rows), len(rows))


def _by_output(z: Array, labels: Array, is_binary: Array) -> Array:
    """R (n, K) of the common output z (n, 1)."""
    return np.where(is_binary, 1 / (1 + np.exp(-z)) - labels, 2 * (z - labels))


def _least(distances: Array, flips: bool) -> Array:
    K = len(distances) // 2
    return distances.reshape(2, K, 2, K).min(axis=(0, 2)) if flips else distances


def cityblock(U: Array) -> Array:
    """(K, K) mean of |u_s - u_t| over the rows of U (n, K) that both have; NaN where there are none.

    Examples:
        >>> cityblock(np.array([[0.0, 1.0], [0.0, np.nan]]))
        array([[0., 1.],
               [1., 0.]])
    """
    known = np.isfinite(U)
    if known.all():
        return cdist(U.T, U.T, "cityblock") / len(U)
    # Entries of s that t lacks count as |u_s - 0| in the sum, and are taken out of it.
    filled, weight = np.where(known, U, 0.0), known.astype(float)
    extra = np.abs(filled).T @ (1 - weight)
    both = weight.T @ weight
    sums = np.maximum(cdist(filled.T, filled.T, "cityblock") - extra - extra.T, 0.0)
    return np.divide(sums, both, out=np.full(both.shape, np.nan), where=both > 0)


def _centred_mean_gradients(views: list[View], data: TaskData, options: MeasureOptions, *, sign_invariant: bool) -> Affinity:
    warnings.warn(
        "`samplewise` pairs tasks at the same row, and here each task has rows of its own: the cosine of centred mean "
        "gradients at the common start is given in its place",
        AffinityWarning,
        stacklevel=3,
    )
    start, pools = perf_counter(), choose_own_rows(data, options.n_rows, options.seed)
    wholes, halves = [], []
    for view in views:
        found = [_mean_gradients(view, data, [rows[h::2] for rows in pools]) for h in range(2)]
        counts = np.array([[len(rows[h::2]) for rows in pools] for h in range(2)], dtype=float)
        joined = sum(g * torch.from_numpy(c).unsqueeze(1) for g, c in zip(found, counts, strict=True))
        wholes.append(_centred_cosine(torch.as_tensor(joined) / torch.from_numpy(counts.sum(axis=0)).unsqueeze(1)))
        halves.append([_centred_cosine(g) for g in found])
    values, (one, other) = np.mean(wholes, axis=0), np.mean(halves, axis=0)
    if sign_invariant:
        values, one, other = np.abs(values), np.abs(one), np.abs(other)
    n = sum(map(len, pools)) * len(views)
    return Affinity(
        values,
        task_names(data),
        "samplewise",
        cost=Cost(n, n, perf_counter() - start),
        stability=correlation_of_pairs(one, other) if options.split_half else np.nan,
        notes=["tasks have rows of their own: cosine of centred mean gradients at a common start", views[0].note],
        unrelated=0.0,
    )


def _mean_gradients(view: View, data: TaskData, pools: list[Rows]) -> Tensor:
    """(K, P) gradient of each task's mean loss on its rows."""
    probe, out = view.probe, []
    for t, rows in enumerate(pools):
        x, labels = torch.as_tensor(data.X[rows], dtype=probe.dtype), labels_of(data, rows)
        with torch.enable_grad():
            outputs = probe.body(x)
        own = torch.from_numpy(labels).to(outputs.dtype)
        cotangent = view.reading.back(loss_gradients(view.reading.outputs(outputs.detach()), own, data.tasks))[t] / len(rows)
        weights = dict(probe.body.named_parameters())
        found = torch.autograd.grad(outputs, [weights[name] for name in probe.names], cotangent, materialize_grads=True)
        out.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(out).double()


def _centred_cosine(gradients: Tensor) -> Array:
    return cosines((gradients - gradients.mean(dim=0)).unsqueeze(0))[0].numpy()
