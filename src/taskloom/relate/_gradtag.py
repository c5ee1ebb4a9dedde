"""Task affinity from many small regressions on projected gradients, each in the place of a training.

Letters: K tasks, n rows of a task, S a set of tasks, f output (or margin) of a row, phi (d,) its projected gradient, w (d,) a
move of the shared weights in the space of the projection.

Around a net that was trained on all tasks its outputs are taken as linear in the shared weights: f(x; w) = f(x) + <phi(x), w>.
To train a set of tasks jointly is then a ridge regression, or a logistic one, on d features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from taskloom.relate._affinity import Affinity, Cost
from taskloom.relate._joint_run import trained
from taskloom.relate._options import MeasureOptions, Model
from taskloom.relate._readings import View, batch_of, joint_view
from taskloom.relate._rows import check_data, choose_own_rows, choose_rows, correlation_of_pairs, parts_of, task_names
from taskloom.tasks import Array, DataError, OptionError, Rows, Task, TaskData, check_positive, check_whole, is_whole

_STEPS = 30


@dataclass(frozen=True)
class LinearTask:
    """One task around a trained net.

    Attributes:
        phi: (n, d) projected gradients of what is linear: the output, or the margin of the true class.
        offset: (n,) residual of a regression, or margins.
        is_margin: whether the loss is log(1 + exp(-margin)); else it is squared.
    """

    phi: Array
    offset: Array
    is_margin: bool

    def take(self, half: int) -> LinearTask:
        """Every other row."""
        return replace(self, phi=self.phi[half::2], offset=self.offset[half::2])

    def loss(self, w: Array) -> float:
        """Mean loss after a move."""
        f = self.offset + (self.phi @ w if self.is_margin else -self.phi @ w)
        return float(np.logaddexp(0, -f).mean() if self.is_margin else (f**2).mean())

    def descent(self, w: Array) -> Array:
        """(d,) minus the gradient of the mean loss."""
        if self.is_margin:
            return self.phi.T @ (1 / (1 + np.exp(np.minimum(self.offset + self.phi @ w, 500)))) / len(self.phi)
        return 2 * self.phi.T @ (self.offset - self.phi @ w) / len(self.phi)

    def curvature(self) -> Array:
        """(d, d) no less than the second derivative of the mean loss, wherever it is taken."""
        return (0.25 if self.is_margin else 2.0) * self.phi.T @ self.phi / len(self.phi)


def solve(tasks: Sequence[LinearTask], curvatures: Sequence[Array], ridge: float) -> Array:
    """The move w (d,) with the least sum of the tasks' mean losses + strength |w|^2 / 2.

    Steps with a bound of the curvature (Böhning & Lindsay 1988): each lowers the objective, and one matrix serves them all.

    Args:
        tasks: of a set.
        curvatures: of each.
        ridge: strength, as a share of the mean of the curvature's diagonal.
    """
    bound = np.sum(curvatures, axis=0)
    strength = ridge * float(np.trace(bound)) / len(bound) + 1e-12
    factor = cho_factor(bound + strength * np.eye(len(bound)))
    w = np.zeros(len(bound))
    for _ in range(_STEPS if any(task.is_margin for task in tasks) else 1):
        move = cho_solve(factor, np.sum([task.descent(w) for task in tasks], axis=0) - strength * w)
        w = w + move
        if np.abs(move).max() <= 1e-4 * np.abs(w).max():
            break
    return w


def gradtag(
    model: Model,
    data: TaskData,
    options: MeasureOptions | None = None,
    *,
    d: int = 200,
    n_sets: int | None = None,
    set_size: int | None = None,
    ridge: float = 3.0,
) -> Affinity:
    """What company does to a task in random sets, each fitted as a regression on projected gradients of a joint net.

    Grad-TAG (Li, Sharma & Zhang, KDD 2024, arXiv 2409.06091): projections with random signs, a regularised logistic
    regression for each set, averages over the sets that hold a pair. Ours: for a linear layer each projection is an outer
    product of two vectors of signs, which keeps inner products in the mean, with a larger error and at a small part of the
    cost. A class is told from the others by the margin of the true one, log p / (1 - p), so that all kinds of classification
    are one logistic regression. Tasks count alike. Half of the rows are for fitting and half for judging, and the other way
    round. What a set does to task i is 1 - L_i(set) / L_i({i}), and the affinity is the mean of that over the sets that hold
    both tasks, less the mean over all sets that hold i: tasks differ in how well any company suits them, and that would
    drown out what is between two of them. So only the order of values means something: none of them is learning alone.

    It asks what is still to be gained from company around the net: where a long joint run has left nothing to gain, it has
    little to tell.

    Args:
        model: a net trained on all tasks, taken as it stands; or what makes nets, and the joint run is made here.
        data: encoded training rows.
        options: of the joint run; `n_rows`, `seed`, `at_once`.
        d: numbers of a projection.
        n_sets: random sets; None: as many as it takes for a pair to meet in ten of them.
        set_size: tasks of a set, fewer than all; None: half of them, between 2 and 10.
        ridge: strength of the regression, as a share of the mean diagonal of its curvature. The weaker, the further a set may
            move from the joint net, where linearity is no longer to be trusted.

    Returns:
        Row = receiver; 0 is what the receiver has of company in the mean, which is no `zero`. `stability` is the correlation
        of both ways of halving the rows.

    Raises:
        OptionError: a number outside of what it may be, or a net that does not fit the tasks or shares no weights.
        DataError: fewer than three tasks, of which all sets are the same, or features that are not finite.
        FitError: the joint run failed.

    Examples:
        >>> from taskloom.deep import MLP
        >>> from taskloom.tasks import Task
        >>> X = np.random.default_rng(0).normal(size=(200, 4))
        >>> Y = np.stack([X[:, 0] > 0, X[:, 0] > 0.1, X[:, 1] > 0], axis=1)
        >>> data = TaskData.shared_rows(X, Y, [Task(name, "binary") for name in "abc"])
        >>> gradtag(MLP((8,)), data, MeasureOptions(steps=100), d=50).n_tasks
        3
    """
    options = options or MeasureOptions()
    check_data(data)
    n_sets, size = _plan(data.n_tasks, n_sets, set_size)
    check_whole("d", d)
    check_positive("ridge", ridge)
    net, cost = trained(model, data, options)
    start = perf_counter()
    view = joint_view(net, data)
    tasks, passes = _linear_tasks(view, data, options, d)
    sets = random_sets(data.n_tasks, size, n_sets, options.seed)
    halves = [_gains([task.take(h) for task in tasks], [task.take(1 - h) for task in tasks], sets, ridge) for h in range(2)]
    stability = correlation_of_pairs(*halves) if options.split_half else np.nan
    cost += replace(passes, seconds=perf_counter() - start)
    notes = [f"{len(sets)} sets of {size} tasks, {d} projections"]
    values = np.mean(halves, axis=0)
    return Affinity(values, task_names(data), "gradtag", cost=cost, stability=stability, notes=notes)


def _plan(K: int, n_sets: int | None, set_size: int | None) -> tuple[int, int]:
    """How many sets of how many tasks."""
    if K < 3:
        raise DataError(f"`data` has {K} tasks; `gradtag` compares the company of a task and takes three, take another measure")
    size = set_size if set_size is not None else min(max(K // 2, 2), 10)
    if not is_whole(size, 2) or size >= K:
        raise OptionError(
            f"`set_size`={size!r}: give a whole number from 2 to {K - 1}; sets of all {K} tasks tell nothing apart"
        )
    if n_sets is not None:
        check_whole("n_sets", n_sets)
    return n_sets or math.ceil(10 * K * (K - 1) / (size * (size - 1))), size


def random_sets(K: int, size: int, n_sets: int, seed: int) -> list[Rows]:
    """Random sets of tasks: all tasks are dealt out before any has another turn, so that each is in about as many.

    Examples:
        >>> sorted(np.concatenate(random_sets(4, 2, 2, seed=0)).tolist())
        [0, 1, 2, 3]
    """
    rng = np.random.default_rng(seed)
    sets: list[Rows] = []
    while len(sets) < n_sets:
        order = rng.permutation(K)
        whole = [order[i : i + size] for i in range(0, K, size)]
        others = np.setdiff1d(order, whole[-1])
        whole[-1] = np.concatenate([whole[-1], rng.permutation(others)[: size - len(whole[-1])]])
        sets += whole
    return sets[:n_sets]


def _gains(fit: list[LinearTask], judge: list[LinearTask], sets: list[Rows], ridge: float) -> Array:
    K = len(fit)
    curvatures = [task.curvature() for task in fit]
    alone = [judge[t].loss(solve([fit[t]], [curvatures[t]], ridge)) for t in range(K)]
    sums, counts = np.zeros((K, K)), np.zeros((K, K))
    for chosen in sets:
        w = solve([fit[t] for t in chosen], [curvatures[t] for t in chosen], ridge)
        for i in chosen:
            sums[i, chosen] += 1 - judge[i].loss(w) / max(alone[i], 1e-12)
            counts[i, chosen] += 1
    means = np.divide(sums, counts, out=np.full((K, K), np.nan), where=counts > 0)
    return means - np.diag(means)[:, None]


def _linear_tasks(view: View, data: TaskData, options: MeasureOptions, d: int) -> tuple[list[LinearTask], Cost]:
    """Each task on the rows where it has labels."""
    K = data.n_tasks
    if data.is_shared:
        rows = choose_rows(data, options.n_rows, options.seed)
        jobs = [(rows, list(range(K)))]
    else:
        jobs = [(rows, [t]) for t, rows in enumerate(choose_own_rows(data, options.n_rows, options.seed))]
    project = _projection(view, d, options.seed)
    phis: list[list[Array]] = [[] for _ in range(K)]
    offsets: list[list[Array]] = [[] for _ in range(K)]
    for rows, tasks in jobs:
        for part in parts_of(rows, options.at_once, len(tasks) * (view.probe.size + d)):
            x, labels = batch_of(view, data, part)
            kept: list[Tensor] = []

            def pull(out: Tensor, labels: Tensor = labels, kept: list[Tensor] = kept, tasks: list[int] = tasks) -> Tensor:
                f, cotangents = linear_outputs(view.reading.outputs(out), labels, data.tasks)
                kept.append(f)
                return view.reading.back(cotangents)[tasks]

            phi = project(x, pull)
            for place, t in enumerate(tasks):
                known = ~labels[:, t].isnan()
                phis[t].append(phi[place][known].double().numpy())
                offsets[t].append(kept[0][known, t].double().numpy())
    pairs = zip(phis, offsets, data.tasks, strict=True)
    found = [LinearTask(np.concatenate(phi), np.concatenate(f), bool(task.classes)) for phi, f, task in pairs]
    n = sum(len(rows) for rows, _ in jobs)
    return found, Cost(n, sum(len(rows) * len(tasks) for rows, tasks in jobs))


def linear_outputs(outputs: Tensor, labels: Tensor, tasks: Sequence[Task]) -> tuple[Tensor, Tensor]:
    """What is taken as linear: residuals and margins (B, K) at labels (B, K), and gradients (B, K, C) by outputs (B, K, C).

    Of a residual it is the gradient of the output, its negative.

    Examples:
        >>> f, gradient = linear_outputs(torch.tensor([[[2.0]]]), torch.tensor([[0.0]]), [Task("a", "binary")])
        >>> f.item(), gradient.item()
        (-2.0, -1.0)
    """
    y = labels.nan_to_num()
    f, gradients = torch.zeros_like(labels), torch.zeros_like(outputs)
    for t, task in enumerate(tasks):
        z = outputs[:, t, : task.n_outputs]
        if task.kind == "regression":
            f[:, t], gradients[:, t, 0] = y[:, t] - z[:, 0], 1.0
        elif task.kind == "binary":
            sign = 2 * y[:, t] - 1
            f[:, t], gradients[:, t, 0] = sign * z[:, 0], sign
        else:
            truth = torch.nn.functional.one_hot(y[:, t].long(), task.n_outputs).bool()
            others = z.masked_fill(truth, -torch.inf)
            f[:, t] = z[truth] - others.logsumexp(dim=1)
            gradients[:, t, : task.n_outputs] = truth.to(z.dtype) - others.softmax(dim=1)
    return f, gradients


def _projection(view: View, d: int, seed: int) -> Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]:
    """Maps rows to projected gradients (M, B, d): signs over the square root of d."""
    probe, generator = view.probe, torch.Generator().manual_seed(seed)

    def signs(*shape: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=generator).to(probe.dtype) * 2 - 1

    if probe.is_linear:
        factors = [
            (signs(layer.in_features + 1, d), signs(layer.out_features, d) / math.sqrt(d)) for layer in probe.layers.values()
        ]

        def project(x: Tensor, pull: Callable[[Tensor], Tensor]) -> Tensor:
            total = torch.zeros(())
            for part, (left, right) in zip(probe.parts(x, pull), factors, strict=True):
                inputs = part.h @ left[:-1] * part.has_weight + left[-1] * part.has_bias
                total = total + (part.delta @ right) * inputs
            return total

        return project
    matrix = signs(probe.size, d) / math.sqrt(d)
    return lambda x, pull: (probe.gradients(x, pull) @ matrix).movedim(0, 1)
