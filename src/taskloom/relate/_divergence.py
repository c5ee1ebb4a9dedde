"""How far the rows of tasks lie from each other, without labels: divergences between domains.

Letters: K tasks, t a task, n rows of it, d features, X (n, d).

That statistical divergences of the tasks' texts tell which pairs are worth a training is shown by Pugantsov & McCreadie
(Findings of EACL 2023); which divergences they took has not been read. These are the standard ones, on features or on what a
trunk makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import nn

from taskloom.relate._affinity import Affinity, Cost
from taskloom.relate._options import MeasureOptions
from taskloom.relate._readings import tensor_of
from taskloom.relate._rows import check_data, choose_own_rows, correlation_of_pairs, task_names
from taskloom.tasks import Array, DataError, OptionError, Rows, TaskData, unknown

_RIDGE = 1e-3
_PROJECTIONS = 64
_LEVELS = 101


def divergence(
    model: nn.Module | None, data: TaskData, options: MeasureOptions | None = None, *, kind: str = "proxy_a"
) -> Affinity:
    """Distances between the rows of tasks, which have rows of their own.

    Kinds:
    - `proxy_a`: 2 (1 - 2 e), with the error e of a linear classifier that tells rows of the two tasks apart, on rows that it
      was not fitted to (Ben-David et al. 2007). The classifier is least squares with a small ridge; below 0 counts as 0.
    - `mmd`: squared maximum mean discrepancy, unbiased, with a Gaussian kernel as wide as the median distance of all rows
      (Gretton et al. 2012); below 0 counts as 0.
    - `wasserstein`: mean over random directions of the 2-Wasserstein distance of the projected rows (Rabin et al. 2011).
    - `energy`: 2 E|x - x'| - E|x - y| - E|x' - y'| (Székely & Rizzo 2013).

    Args:
        model: None compares features; a net compares what its `encoder` makes of them.
        data: encoded training rows.
        options: `n_rows`, `seed`, `split_half`.
        kind: see above.

    Returns:
        Symmetric, small is alike. `stability` is the correlation of the matrices of two halves of the rows.

    Raises:
        DataError: tasks that share rows, of which all distances are zero; fewer than two tasks or four rows of a task; features
            that are not finite.
        OptionError: a net without `encoder`.
        UnknownNameError: no such kind.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> parts = [(rng.normal(shift, size=(100, 3)), rng.normal(size=100)) for shift in (0, 0, 2)]
        >>> affinity = divergence(None, TaskData.own_rows(parts), kind="energy")
        >>> affinity["task0", "task1"] < affinity["task0", "task2"]
        True
    """
    options = options or MeasureOptions()
    start = perf_counter()
    if kind not in _KINDS:
        raise unknown("kind of divergence", kind, _KINDS)
    if data.is_shared:
        raise DataError("`divergence` compares the rows of tasks, and these share theirs: all distances are 0; take `labels`")
    check_data(data, least=4)
    pools = choose_own_rows(data, options.n_rows, options.seed)
    if model is None:
        parts = [data.X[rows].reshape(len(rows), -1).astype(np.float64) for rows in pools]
    else:
        parts = _features(model, data, pools)
    # Halves are taken of rows in random order.
    measure = _KINDS[kind]
    halves = [measure([part[h::2] for part in parts], options.seed) for h in range(2)] if options.split_half else []
    values = measure(parts, options.seed)
    n = 0 if model is None else sum(map(len, pools))
    return Affinity(
        values,
        task_names(data),
        f"divergence ({kind})",
        higher_is_better=False,
        cost=Cost(forwards=n, seconds=perf_counter() - start),
        stability=correlation_of_pairs(*halves) if halves else np.nan,
    )


def _features(model: nn.Module, data: TaskData, pools: list[Rows]) -> list[Array]:
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise OptionError(f"`model`: a {type(model).__name__} without a module `encoder`; give None to compare features")
    was_training = encoder.training
    encoder.eval()
    with torch.no_grad():
        found = [encoder(tensor_of(data, rows, model)).flatten(1).double().numpy() for rows in pools]
    encoder.train(was_training)
    return found


def proxy_a(parts: list[Array], seed: int = 0) -> Array:  # noqa: ARG001
    """(K, K) proxy A-distances of K arrays (n_t, d), out of two folds."""
    K, rows = len(parts), [np.concatenate([X, np.ones((len(X), 1))], axis=1) for X in parts]
    found = np.zeros((K, K))
    for fold in range(2):
        # Sums of each task serve all pairs.
        fits, tests = [X[fold::2] for X in rows], [X[1 - fold :: 2] for X in rows]
        grams, means = [X.T @ X / len(X) for X in fits], [X.mean(axis=0) for X in fits]
        for s in range(K):
            for t in range(s):
                gram = grams[s] + grams[t]
                ridge = _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
                w = np.linalg.solve(gram + ridge, means[s] - means[t])
                # A row at the very border is half wrong.
                error = np.mean([_share_below(tests[s] @ w), _share_below(-tests[t] @ w)])
                found[s, t] += (1 - 2 * error) / 2
    return 2 * np.maximum(found + found.T, 0.0)


def _share_below(score: Array) -> float:
    return float((score < 0).mean() + (score == 0).mean() / 2)


def mmd(parts: list[Array], seed: int = 0) -> Array:
    """(K, K) unbiased squared MMD of K arrays (n_t, d), Gaussian kernel with the median heuristic on rows of all."""
    rng, pooled = np.random.default_rng(seed), np.concatenate(parts)
    some = pooled[rng.permutation(len(pooled))[:500]]
    squares = cdist(some, some, "sqeuclidean")[np.triu_indices(len(some), 1)]
    width = float(np.median(squares)) or 1.0

    def mean(X: Array, Y: Array) -> float:
        kernel = np.exp(-cdist(X, Y, "sqeuclidean") / width)
        return float((kernel.sum() - len(X)) / (len(X) * (len(X) - 1)) if X is Y else kernel.mean())

    return np.maximum(_from_means(parts, mean), 0.0)


def energy(parts: list[Array], seed: int = 0) -> Array:  # noqa: ARG001
    """(K, K) energy distances of K arrays (n_t, d)."""

    def mean(X: Array, Y: Array) -> float:
        return -float(cdist(X, Y).mean())

    return np.maximum(_from_means(parts, mean), 0.0)


def _from_means(parts: list[Array], mean: Callable[[Array, Array], float]) -> Array:
    """m(s, s) + m(t, t) - 2 m(s, t)."""
    K = len(parts)
    found = np.zeros((K, K))
    for s in range(K):
        for t in range(s + 1):
            found[s, t] = found[t, s] = mean(parts[s], parts[t])
    own = np.diag(found)
    found = own[:, None] + own - 2 * found
    np.fill_diagonal(found, 0.0)
    return found


def wasserstein(parts: list[Array], seed: int = 0) -> Array:
    """(K, K) sliced 2-Wasserstein distances of K arrays (n_t, d): root mean square over directions and levels of quantiles."""
    directions = np.random.default_rng(seed).normal(size=(parts[0].shape[1], _PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    levels = (np.arange(_LEVELS) + 0.5) / _LEVELS
    quantiles = np.stack([np.quantile(X @ directions, levels, axis=0).ravel() for X in parts])
    return cdist(quantiles, quantiles) / np.sqrt(quantiles.shape[1])


_KINDS: dict[str, Callable[[list[Array], int], Array]] = {
    "proxy_a": proxy_a,
    "mmd": mmd,
    "wasserstein": wasserstein,
    "energy": energy,
}
