"""Task distance from which weights of a trunk matter to each task: the diagonal of its Fisher information.

Letters: K tasks, n rows, H width of the trunk, C outputs of a task, F Fisher information of each unit.
"""

from __future__ import annotations

import warnings
from time import perf_counter

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor, nn

from taskloom.relate._affinity import Affinity, Cost
from taskloom.relate._joint_run import trained
from taskloom.relate._options import MeasureOptions, Model
from taskloom.relate._probe import Probe
from taskloom.relate._readings import HeadReading, tensor_of
from taskloom.relate._rows import choose_own_rows, correlation_of_pairs, parts_of, task_names
from taskloom.tasks import Array, OptionError, Rows, Task, TaskData

# Inverse strength of a head's ridge.
_INVERSE_STRENGTH = 1.0


def task2vec(model: Model, data: TaskData, options: MeasureOptions | None = None) -> Affinity:
    """Cosine distance of the tasks' Fisher information on one trunk, each with a head fitted to it alone.

    Task2Vec (Achille et al., ICCV 2019): the diagonal of the Fisher information, averaged over the weights of a unit, and the
    cosine distance of F_a / (F_a + F_b) and F_b / (F_a + F_b), the latter as in its released code. Ours: the trunk is that of
    a net trained on the tasks themselves and not on a large foreign data set; heads are logistic or ridge regressions; the
    information is exact for tasks of one output (with the residual variance as that of a regression), and from one label drawn
    for each row otherwise. It is blind to direction, of transfer and of labels.

    Args:
        model: a net with a trunk `encoder`, trained on all tasks, taken as it stands; or what makes nets, and the joint run is
            made here.
        data: encoded training rows.
        options: of the joint run; `n_rows`, `seed`, `at_once`.

    Returns:
        Symmetric, small is alike. `stability` is the correlation of the matrices of two halves of the rows, with the same
        heads.

    Raises:
        OptionError: a net without `encoder`, or whose `encoder` has no weights.
        DataError: fewer than two tasks, or features that are not finite.
        FitError: the joint run failed.

    Examples:
        >>> from taskloom.deep import MLP
        >>> from taskloom.tasks import Task
        >>> X = np.random.default_rng(0).normal(size=(200, 4))
        >>> Y = np.stack([X[:, 0] > 0, X[:, 0] < 0.1, X[:, 1] > 0], axis=1)
        >>> data = TaskData.shared_rows(X, Y, [Task(name, "binary") for name in "abc"])
        >>> affinity = task2vec(MLP((8,)), data, MeasureOptions(steps=200))
        >>> affinity["a", "b"] < affinity["a", "c"]
        True
    """
    options = options or MeasureOptions()
    net, cost = trained(model, data, options)
    start = perf_counter()
    encoder = getattr(net, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise OptionError(
            f"`model`: a {type(net).__name__} without a module `encoder`; name the trunk so, as `SharedBottom` does"
        )
    x = tensor_of(data, slice(0, 2), net)
    probe = Probe(encoder, [name for name, _ in encoder.named_parameters()], x)
    generator = torch.Generator().manual_seed(options.seed)
    pools, found = choose_own_rows(data, options.n_rows, options.seed), []
    for t, rows in enumerate(pools):
        with torch.no_grad():
            features = encoder(tensor_of(data, rows, net))
        if features.ndim != 2:
            raise OptionError(f"`model`: its `encoder` gives features of shape {tuple(features.shape)[1:]}; flatten them in it")
        labels = data.y[rows] if not data.is_shared else data.y[rows, t]
        head = _fit_head(features.double().numpy(), labels, data.tasks[t])
        if head is None:
            found.append(np.full((2, 1), np.nan))
            continue
        found.append(_information(probe, data, rows, head, (data.tasks[t], generator, options.at_once)))
    width = max(each.shape[1] for each in found)
    F = np.stack([each if each.shape[1] == width else np.full((2, width), np.nan) for each in found])
    halves = [distances(F[:, h]) for h in range(2)]
    n = sum(map(len, pools))
    return Affinity(
        distances(F.sum(axis=1)),
        task_names(data),
        "task2vec",
        higher_is_better=False,
        cost=cost + Cost(2 * n, n, perf_counter() - start),
        stability=correlation_of_pairs(*halves) if options.split_half else np.nan,
    )


def distances(F: Array) -> Array:
    """(K, K) cosine distances of F_a / (F_a + F_b) and F_b / (F_a + F_b), of information F (K, units).

    Examples:
        >>> distances(np.array([[1.0, 3.0], [1.0, 3.0], [3.0, 1.0]])).round(2)
        array([[0. , 0. , 0.4],
               [0. , 0. , 0.4],
               [0.4, 0.4, 0. ]])
    """
    found = np.zeros((len(F), len(F)))
    for a, row in enumerate(F):
        total = row + F
        with np.errstate(invalid="ignore", divide="ignore"):
            # What matters to neither has no say.
            one, other = (np.where(total > 0, part / total, np.where(np.isnan(total), np.nan, 0.0)) for part in (row, F))
            cosine = (one * other).sum(axis=1) / np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
        found[a] = 1 - cosine.clip(-1.0, 1.0)
    known = np.isfinite(np.diag(found))
    found[known, known] = 0.0
    return found


def _fit_head(features: Array, labels: Array, task: Task) -> tuple[HeadReading, float] | None:
    """A head on fixed features and the deviation of its residuals; None where the rows hold one class alone."""
    if task.kind == "regression":
        ridge = Ridge(alpha=1 / _INVERSE_STRENGTH).fit(features, labels)
        deviation = float(np.sqrt(np.mean((ridge.predict(features) - labels) ** 2)))
        weight, bias = np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_)
        return HeadReading.of([(_tensor(weight), _tensor(bias))]), max(deviation, 1e-6)
    codes = labels.astype(int)
    present = np.unique(codes)
    if len(present) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        logistic = LogisticRegression(C=_INVERSE_STRENGTH, max_iter=300).fit(features, codes)
    weight, bias = np.zeros((task.n_outputs, features.shape[1])), np.full(task.n_outputs, -30.0)
    coefficients, intercepts = logistic.coef_, logistic.intercept_
    if task.n_outputs > 1 and len(present) == 2:
        coefficients, intercepts = (
            np.concatenate([-coefficients, coefficients]) / 2,
            np.concatenate([-intercepts, intercepts]) / 2,
        )
    place = present if task.n_outputs > 1 else [0]
    weight[place], bias[place] = coefficients, intercepts
    return HeadReading.of([(_tensor(weight), _tensor(bias))]), 1.0


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _information(
    probe: Probe, data: TaskData, rows: Rows, head: tuple[HeadReading, float], how: tuple[Task, torch.Generator, int]
) -> Array:
    """(2, units) means over the rows of two halves."""
    task, generator, at_once = how
    reading, deviation = head
    reading = HeadReading(reading.weight.to(probe.dtype), reading.bias.to(probe.dtype))

    def pull(out: Tensor) -> Tensor:
        z = reading.outputs(out)
        if task.kind == "regression":
            cotangents = torch.full_like(z, 1 / deviation)
        elif task.kind == "binary":
            chance = z.sigmoid()
            cotangents = (chance * (1 - chance)).sqrt()
        else:
            chances = z[:, 0].softmax(dim=1)
            drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
            cotangents = (chances - nn.functional.one_hot(drawn, z.shape[2])).unsqueeze(1)
        return reading.back(cotangents)

    sums: list[Array] = []
    for half in range(2):
        own = rows[half::2]
        parts = parts_of(own, at_once, probe.size)
        found = sum(probe.mean_squares(torch.as_tensor(data.X[part], dtype=probe.dtype), pull)[0] for part in parts)
        sums.append(torch.as_tensor(found).double().numpy() / len(rows))
    return np.stack(sums)
