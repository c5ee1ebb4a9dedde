"""Candidate groups of many tasks: too many sets to list, so those that a good choice is likely to use.

Letters: K tasks, A (K, K) gains, S (K, K) similarities.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from sklearn.cluster import KMeans
from sklearn.manifold import spectral_embedding

from taskloom.relate._arrays import Members
from taskloom.tasks import Array

# Sets that follow a task's own order of partners, of all tasks together; the rest of the pool has about 4 K.
_PREFIXES = 3000
_MOST_CUTS = 11


def candidate_pool(gains: Array, alone: Array, similarity: Array, seed: int = 0) -> Members:
    """(G, K) candidate groups: the nodes of three linkage trees, spectral cuts into 2 to 11 parts, each task with its best few
    partners, all tasks, all but one, and groups of one where they can serve.
    """
    K = len(gains)
    sets = [np.ones((1, K), dtype=bool), ~np.eye(K, dtype=bool), np.eye(K, dtype=bool)[np.isfinite(alone)], _prefixes(gains)]
    if K > 2:
        distance = (1 - similarity)[np.triu_indices(K, 1)]
        sets += [tree_nodes(linkage(distance, method)) for method in ("single", "average", "complete")]
        sets.append(_spectral_cuts(similarity, seed))
    pool = np.concatenate(sets)
    pool = pool[(pool.sum(axis=1) > 1) | np.isfinite(np.where(pool, alone, -np.inf).max(axis=1))]
    return np.unique(pool, axis=0)


def tree_nodes(tree: Array) -> Members:
    """(K - 1, K) tasks under each inner node."""
    K = len(tree) + 1
    under = np.zeros((2 * K - 1, K), dtype=bool)
    under[:K] = np.eye(K, dtype=bool)
    for node, (left, right) in enumerate(tree[:, :2].astype(int)):
        under[K + node] = under[left] | under[right]
    return under[K:]


def _prefixes(gains: Array) -> Members:
    """Each task with its best partner, its best two, ..."""
    K = len(gains)
    order = np.argsort(-np.where(np.eye(K, dtype=bool), np.inf, gains), axis=1, kind="stable")
    longest = min(K, max(_PREFIXES // K, 2) + 1)
    sets = np.zeros((longest - 1, K, K), dtype=bool)
    for size in range(2, longest + 1):
        np.put_along_axis(sets[size - 2], order[:, :size], True, axis=1)
    return sets.reshape(-1, K)


def _spectral_cuts(similarity: Array, seed: int) -> Members:
    """The parts of k-means on the spectral embedding, for 2 to 11 parts."""
    K = len(similarity)
    most = min(_MOST_CUTS, K - 1)
    weights = np.maximum(similarity, 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points = spectral_embedding(weights, n_components=most, random_state=seed, drop_first=False)
        cuts = [KMeans(k, n_init=3, random_state=seed).fit_predict(points[:, :k]) for k in range(2, most + 1)]
    return np.concatenate([labels == np.unique(labels)[:, None] for labels in cuts])


def even_cuts(similarity: Array, alone: Array) -> Members:
    """(G, K) the parts of partitions into 1 to K groups of nearly equal size, tasks that are alike beside each other.

    Where costs depend on the size of a group, some of them may be all that a budget can buy.

    Examples:
        >>> even_cuts(np.eye(4), np.full(4, -np.inf)).sum(axis=1).tolist()
        [2, 2, 4]
    """
    K = len(similarity)
    order = np.arange(K) if K < 3 else leaves_list(linkage((1 - similarity)[np.triu_indices(K, 1)], "average"))
    parts = [part for b in range(1, K + 1) for part in np.array_split(order, b)]
    sets = np.array([np.isin(np.arange(K), part) for part in parts if len(part) > 1 or np.isfinite(alone[part[0]])])
    return np.unique(sets, axis=0)


def improved(worth: Callable[[Members], tuple[Array, Members]], serving: Members, rounds: int = 100) -> Members:
    """Better groups near a choice: one task at a time goes to another group, each group then takes its best helpers.

    Args:
        worth: of tasks (M, K) served together, (M,), with the group that serves them, (M, K).
        serving: (b, K), true where a group serves a task; a group that serves none may be filled.
        rounds: moves at most.

    Returns:
        (M, K) the groups of every state passed through.
    """
    T = serving.copy()
    (b, K), each = T.shape, np.arange(T.shape[1])
    total, groups = _finite(worth, T)
    seen = [groups]
    for _ in range(rounds):
        home = T.argmax(axis=0)
        without = T[home].copy()
        without[each, each] = False
        left, _ = _finite(worth, without)
        joined = _finite(worth, (T[:, None] | np.eye(K, dtype=bool)).reshape(-1, K))[0].reshape(b, K)
        change = joined - total[:, None] + left - total[home]
        change[home, each] = -np.inf
        to, task = np.unravel_index(change.argmax(), change.shape)
        if not change[to, task] > 1e-12 * np.abs(total).max():
            break
        T[home[task], task], T[to, task] = False, True
        total, groups = _finite(worth, T)
        seen.append(groups)
    found = np.concatenate(seen)
    return found[found.any(axis=1)]


def _finite(worth: Callable[[Members], tuple[Array, Members]], served: Members) -> tuple[Array, Members]:
    """Worth and groups; nothing where nothing is served, a great loss for a group that may not be: moves can be compared."""
    some = served.any(axis=1)
    total, groups = np.zeros(len(served)), np.zeros(served.shape, dtype=bool)
    if some.any():
        total[some], groups[some] = worth(served[some])
    return np.maximum(total, -1e30), groups


def starting_points(similarity: Array, b: int, seed: int = 0) -> list[Members]:
    """Partitions (b, K) to improve: all in one, cuts of the trees, random ones; fewer of many tasks, which take longer."""
    K = len(similarity)
    if K < 3 or b < 2:
        return []
    distance = (1 - similarity)[np.triu_indices(K, 1)]
    labels = [np.zeros(K, dtype=int)]
    labels += [fcluster(linkage(distance, method), b, "maxclust") - 1 for method in ("average", "complete")]
    rng = np.random.default_rng(seed)
    labels += [rng.integers(0, b, K) for _ in range(int(np.clip(300 // K - 1, 0, 12)))]
    return [np.arange(b)[:, None] == each for each in labels]
