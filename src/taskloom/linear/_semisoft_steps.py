"""Steps of semisoft clustering of tasks on plain arrays: memberships out of cross-task errors, alignment, folds.

Letters: K tasks, C clusters, n rows, d features, E (K, K) errors, a row a model and a column a task that it is tried on,
V (K, C) memberships with rows that sum to 1, B (d, K) coefficients, U (d, C) coefficients of the clusters.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from taskloom.tasks import Array, Rows

NEIGHBOURS = 5
RESTARTS = 50


def semisoft(E: Array, n_clusters: int, pure_fraction: float = 0.5, seed: int = 0) -> tuple[Array, Rows]:
    """Memberships of the rows of E, of which some belong to one cluster alone (SOUP: Zhu, Devlin & Roeder, PNAS 2019).

    Rows that lie on a vertex of the simplex which all rows span are found by `purity`, k-means tells their C groups apart in
    the space of the leading left singular vectors, and a linear map that sends them to the unit vectors sends all other rows
    to their memberships.

    Args:
        E: (K, p), not negative.
        n_clusters: C, at most K.
        pure_fraction: share of rows that count as pure, 0 to 1; at least two a cluster do (at least
            10 in the authors' package, which with few tasks is all of them).
        seed: of k-means.

    Returns:
        V (K, C), clusters in falling order of their size, and the sorted indices of the pure rows.

    Examples:
        >>> V, pure = semisoft(np.array([[4.0, 0.0], [4.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 1.0]]), 2)
        >>> V.round(2)
        array([[1. , 0. ],
               [1. , 0. ],
               [0. , 1. ],
               [0.5, 0.5],
               [0. , 1. ]])
        >>> pure
        array([0, 1, 2, 4])
    """
    shares = E / np.maximum(E.sum(1, keepdims=True), 1e-300)
    K = len(shares)
    count = min(K, max(2 * n_clusters, round(pure_fraction * K)))
    pure = np.sort(np.argsort(-purity(shares, max(1, min(NEIGHBOURS, K // n_clusters))), kind="stable")[:count])
    left, _, _ = np.linalg.svd(shares, full_matrices=False)
    G = left[:, :n_clusters]
    groups = k_means(G[pure], n_clusters, seed)
    Q = np.linalg.lstsq(G[pure], np.eye(n_clusters)[groups], rcond=None)[0]
    V = to_simplex(G @ Q)
    return V[:, np.argsort(-V.sum(0), kind="stable")], pure


def purity(shares: Array, n_neighbours: int) -> Array:
    """How near each row is to a vertex of what all rows span, (K,), at most 1.

    A row at a vertex has the same inner product with all others at that vertex, and it is its greatest one; a mixture has its
    greatest with a vertex, where few rows are.

    Examples:
        >>> purity(np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]]), 2)
        array([1. , 1. , 0.5])
    """
    A = shares @ shares.T
    nearest = np.argsort(-A, axis=1, kind="stable")[:, :n_neighbours]
    return (np.take_along_axis(A, nearest, axis=1) / np.maximum(A.max(1)[nearest], 1e-300)).mean(1)


def k_means(points: Array, n_clusters: int, seed: int) -> Rows:
    """Group of each row: the best of `RESTARTS` starts; fewer groups where fewer rows differ."""
    with warnings.catch_warnings():
        # Copies of one task leave fewer distinct points than groups: an empty group is then right.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(n_clusters, n_init=RESTARTS, random_state=seed).fit_predict(points)


def to_simplex(raw: Array) -> Array:
    """Negative entries to zero and rows to the sum 1; a row without a positive entry to its greatest.

    Examples:
        >>> to_simplex(np.array([[3.0, 1.0], [2.0, -1.0], [-2.0, -1.0]]))
        array([[0.75, 0.25],
               [1.  , 0.  ],
               [0.  , 1.  ]])
    """
    V = np.maximum(raw, 0)
    empty = V.sum(1) <= 1e-12
    V[empty] = np.eye(raw.shape[1])[raw[empty].argmax(1)]
    return V / V.sum(1, keepdims=True)


def project_to_simplex(Y: Array) -> Array:
    """The nearest point of the probability simplex to each column (Duchi, Shalev-Shwartz, Singer & Chandra, ICML 2008).

    Examples:
        >>> project_to_simplex(np.array([[2.0, 0.5], [0.0, 0.5]]))
        array([[1. , 0.5],
               [0. , 0.5]])
    """
    falling = -np.sort(-Y, axis=0)
    excess = np.cumsum(falling, axis=0) - 1
    count = np.arange(1, len(Y) + 1)[:, None]
    last = (falling * count > excess).sum(0) - 1
    return np.maximum(Y - np.take_along_axis(excess / count, last[None], axis=0), 0)


def align(V: Array, before: Array) -> Array:
    """V with its columns in the order that agrees best with `before` (Hungarian assignment).

    Examples:
        >>> align(np.array([[0.1, 0.9], [0.8, 0.2]]), np.eye(2))
        array([[0.9, 0.1],
               [0.2, 0.8]])
    """
    _, columns = linear_sum_assignment(-(before.T @ V))
    return V[:, columns]


def fit_centers(B: Array, V: Array) -> Array:
    """U (d, C) with the least squared distance of U V' to B.

    Examples:
        >>> fit_centers(np.array([[2.0, 4.0, 3.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])).round(6)
        array([[2., 4.]])
    """
    return np.linalg.lstsq(V, B.T, rcond=None)[0].T


def deal_folds(groups: Rows, n_folds: int, seed: int) -> Rows:
    """Fold of each row of a task, (n,), each group spread evenly; the same for equal groups, whatever the other tasks are.

    Args:
        groups: (n,) class of each row; -1 for a row without a label.
        n_folds: how many.
        seed: of the order.

    Returns:
        folds from 0; -1 for rows that always train: those without a label, and the only row of a group.

    Examples:
        >>> folds = deal_folds(np.array([0, 0, 0, 0, 1, 1, 2, -1]), 3, seed=0)
        >>> np.bincount(folds[:6]), folds[6:]
        (array([2, 2, 2]), array([-1, -1]))
    """
    rng, folds, dealt = np.random.default_rng(seed), np.full(len(groups), -1), 0
    for group in np.unique(groups[groups >= 0]):
        rows = np.flatnonzero(groups == group)
        if len(rows) > 1:
            folds[rng.permutation(rows)] = (np.arange(len(rows)) + dealt) % n_folds
            dealt += len(rows)
    return folds
