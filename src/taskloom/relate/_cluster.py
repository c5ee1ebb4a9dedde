"""Groups of tasks that are alike, by clustering an affinity: no budget, and no gain is predicted.

Letters: K tasks, S (K, K) similarities from 0 to 1, b groups.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from time import perf_counter

import networkx as nx
import numpy as np
from sklearn.cluster import AffinityPropagation, KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import spectral_embedding
from sklearn.mixture import GaussianMixture

from taskloom.relate._affinity import Affinity, as_affinity
from taskloom.relate._arrays import Members
from taskloom.relate._groups import Groups
from taskloom.tasks import Array, DataError, OptionError, Rows, check_whole, is_number, is_whole, unknown

METHODS = ("spectral", "gmm", "louvain", "affinity_propagation")
# Tried when the number of groups is not given.
_MOST_GROUPS = 20
# Resolutions between which that is sought at which Louvain's method gives the number of groups asked for.
_RESOLUTIONS, _HALVINGS = (0.02, 50.0), 16


def cluster(
    affinity: Affinity | Array,
    n_groups: int | None = None,
    method: str = "spectral",
    seed: int = 0,
    posterior: float | None = None,
) -> Groups:
    """Cluster tasks by `Affinity.similarity`, which is symmetric.

    * `spectral`: normalised cut (Shi & Malik 2000): k-means on scikit-learn's spectral embedding; the number of groups of
      greatest modularity.
    * `gmm`: a Gaussian mixture with spherical components on the graph's leading eigenvectors, each times its eigenvalue; the
      number of groups by BIC. Summaries of the samplewise paper (Thakur et al. 2025) name a graph attention network before the
      mixture; we know it from them alone, and leave it out: K nodes are too few to train one.
    * `louvain`: networkx; its own number of groups at resolution 1, else the resolution is searched.
    * `affinity_propagation`: scikit-learn (Frey & Dueck 2007); its own number of groups from the median similarity, else the
      preference is searched.

    All but affinity propagation take what a similarity exceeds the least one by: the weight that all pairs share says nothing
    of who belongs to whom. It does say whether there are groups at all: where the measure knows the value of unrelated tasks
    and `n_groups` is not given, all tasks are one group unless the modularity of what was found is above 0, counted from that
    value. This rule is ours.

    Args:
        affinity: or a plain (K, K) array of gains.
        n_groups: 1 to K; chosen when not given.
        method: one of the four.
        seed: of what is random in them.
        posterior: for `gmm`: a task also helps in every group that holds it with at least this probability, so that groups
            overlap; it is served by the likeliest.

    Returns:
        Groups whose values are the mean gains from the other members (NaN for a task alone whose own gain is not known).

    Raises:
        DataError: the affinity is infinite, or knows no pair.
        OptionError: a number of groups, a seed or a posterior out of range, or a number of groups that the method does not
            reach.
        UnknownNameError: no such method.

    Examples:
        >>> A = np.kron(np.eye(2), np.ones((3, 3))) + 0.1
        >>> cluster(A)
        2 groups of 6 tasks by spectral, value 6.6
          1  task 1, task 2, task 3
          2  task 4, task 5, task 6
    """
    start = perf_counter()
    affinity = as_affinity(affinity)
    K = affinity.n_tasks
    _check(affinity, n_groups, method, seed, posterior)
    similarity = affinity.similarity()
    off = similarity[~np.eye(K, dtype=bool)]
    if K == 1 or n_groups == 1:
        belongs = np.ones((K, 1))
    elif n_groups == K:
        belongs = np.eye(K)
    elif np.ptp(off) == 0:
        belongs = _one_hot(np.arange(K) * (n_groups or 1) // K)
    else:
        belongs = _METHODS[method](similarity, n_groups, seed)
        if n_groups is None and stands_out(affinity, belongs.argmax(axis=1)) is False:
            belongs = np.ones((K, 1))
    labels = belongs.argmax(axis=1)
    if n_groups is not None and len(np.unique(labels)) < n_groups:
        raise _not_reached(n_groups, method)
    members = _one_hot(labels).astype(bool)
    if posterior is not None:
        used = np.unique(labels)
        members |= belongs[:, used] >= posterior
    return _as_groups(affinity, members, np.unique(labels, return_inverse=True)[1], method, perf_counter() - start)


def _check(affinity: Affinity, n_groups: int | None, method: str, seed: int, posterior: float | None) -> None:
    K = affinity.n_tasks
    if method not in METHODS:
        raise unknown("clustering method", method, METHODS)
    if n_groups is not None and not (is_whole(n_groups, 1) and n_groups <= K):
        raise OptionError(f"`n_groups`={n_groups!r}; need a whole number from 1 to {K}, the number of tasks, or None")
    check_whole("seed", seed, least=0)
    if posterior is not None and not (method == "gmm" and is_number(posterior) and 0 < posterior <= 1):
        raise OptionError(f"`posterior`={posterior!r} with `method`={method!r}; need a number in (0, 1], and the method 'gmm'")
    if K > 1 and np.isnan(affinity.off_diagonal).all():
        raise DataError("`affinity` knows no pair of tasks, all are NaN; measure some")


def modularity(similarity: Array, labels: Rows) -> float:
    """Newman's modularity of a partition of a weighted graph without loops, of what weights exceed the least one by.

    Examples:
        >>> modularity(np.kron(np.eye(2), np.ones((2, 2))), np.array([0, 0, 1, 1]))
        0.5
    """
    return _newman(_weights(similarity), labels)


def stands_out(affinity: Affinity, labels: Rows) -> bool | None:
    """Whether tasks of a group are more alike than chance has it; None where the measure knows no value of unrelated tasks.

    That is, whether their modularity (Newman 2004), counted from the value of unrelated tasks, is above 0, that of one group.
    Tasks that are all nearly alike have no such groups. Groups of m tasks, with a likeness of a inside and b between, stand out
    where b / a is below (m - 1) / m: small groups must be further apart than large ones.

    Args:
        affinity: of K tasks.
        labels: (K,) the group of each.

    Examples:
        >>> two, labels = 0.1 * np.kron(np.eye(2), np.ones((4, 4))), np.repeat([0, 1], 4)
        >>> [stands_out(Affinity(base + two, list("abcdefgh"), unrelated=0.0), labels) for base in (0.1, 0.8)]
        [True, False]
    """
    if affinity.unrelated is None:
        return None
    return _newman(affinity.excess(affinity.unrelated), labels) > 1e-9


def _newman(weights: Array, labels: Rows) -> float:
    degree, total = weights.sum(axis=1), weights.sum()
    same = np.equal.outer(labels, labels)
    return float(((weights - np.outer(degree, degree) / total) * same).sum() / total) if total else 0.0


def _weights(similarity: Array) -> Array:
    off = ~np.eye(len(similarity), dtype=bool)
    return np.where(off, similarity - similarity[off].min(), 0.0)


def _one_hot(labels: Rows) -> Array:
    return np.equal.outer(labels, np.unique(labels)).astype(float)


def _embedded(similarity: Array, b: int, seed: int) -> Array:
    """(K, b) points; scikit-learn warns of graphs that fall apart, which is what clusters are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        return spectral_embedding(_weights(similarity) + 1e-9, n_components=b, random_state=seed, drop_first=False)


def _spectral(similarity: Array, n_groups: int | None, seed: int) -> Array:
    def cut(b: int) -> Rows:
        return KMeans(b, n_init=10, random_state=seed).fit_predict(_rows_of_length_one(_embedded(similarity, b, seed)))

    if n_groups is not None:
        return _one_hot(cut(n_groups))
    cuts = [np.zeros(len(similarity), dtype=int), *(cut(b) for b in _tried(similarity))]
    return _one_hot(max(cuts, key=lambda labels: round(modularity(similarity, labels), 9)))


def _rows_of_length_one(points: Array) -> Array:
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)


def _tried(similarity: Array) -> range:
    return range(2, min(_MOST_GROUPS, len(similarity) - 1) + 1)


def _gmm(similarity: Array, n_groups: int | None, seed: int) -> Array:
    K = len(similarity)
    # One space for all numbers of groups, so that their BIC can be compared; axes count by their eigenvalues, so that those
    # beyond the groups, which are noise, hardly matter.
    most = n_groups or min(_MOST_GROUPS, K - 1)
    weights = _weights(similarity) + 1e-9
    scale = 1 / np.sqrt(weights.sum(axis=1))
    strengths, axes = np.linalg.eigh(weights * np.outer(scale, scale))
    points = (axes * np.maximum(strengths, 0.0))[:, ::-1][:, :most]
    points = points / max(float(points.std()), 1e-12)
    fits = []
    for b in [n_groups] if n_groups else range(1, most + 1):
        mixture = GaussianMixture(b, covariance_type="spherical", reg_covar=1e-2, n_init=5, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fits.append(mixture.fit(points))
    return min(fits, key=lambda fit: fit.bic(points)).predict_proba(points)


def _louvain(similarity: Array, n_groups: int | None, seed: int) -> Array:
    graph = nx.from_numpy_array(_weights(similarity))

    def communities(resolution: float) -> Array:
        sets = nx.community.louvain_communities(graph, resolution=float(resolution), seed=seed)
        return np.array([[task in each for each in sets] for task in range(len(similarity))], dtype=float)

    if n_groups is None:
        return communities(1.0)
    # The number of groups grows with the resolution, though not strictly.
    low, high = _RESOLUTIONS
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        found = communities(middle)
        if found.shape[1] == n_groups:
            return found
        low, high = (middle, high) if found.shape[1] < n_groups else (low, middle)
    raise _not_reached(n_groups, "louvain")


def _affinity_propagation(similarity: Array, n_groups: int | None, seed: int) -> Array:
    def exemplars(preference: float | None) -> Array | None:
        model = AffinityPropagation(
            damping=0.9, max_iter=2000, preference=preference, affinity="precomputed", random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            labels = model.fit_predict(similarity)
        return None if (labels < 0).any() else _one_hot(labels)

    if n_groups is None:
        found = exemplars(None)
        return np.ones((len(similarity), 1)) if found is None else found
    span = float(similarity.max() - similarity.min())
    tried = [exemplars(float(np.median(similarity)) + span * shift) for shift in np.linspace(-len(similarity) / 2, 1, 40)]
    fit = [each for each in tried if each is not None and each.shape[1] == n_groups]
    if not fit:
        raise _not_reached(n_groups, "affinity_propagation")
    return max(fit, key=lambda each: round(modularity(similarity, each.argmax(axis=1)), 9))


def _not_reached(n_groups: int, method: str) -> OptionError:
    return OptionError(f"`n_groups`={n_groups} is not reached by {method} on this affinity; use 'spectral' or another number")


_METHODS: dict[str, Callable[[Array, int | None, int], Array]] = {
    "spectral": _spectral,
    "gmm": _gmm,
    "louvain": _louvain,
    "affinity_propagation": _affinity_propagation,
}


def _as_groups(affinity: Affinity, members: Members, labels: Rows, method: str, seconds: float) -> Groups:
    """Groups in the order of their first task, with the mean known gain of every task in its own."""
    tasks, K = tuple(affinity.tasks), affinity.n_tasks
    order = sorted(range(members.shape[1]), key=lambda g: int(np.flatnonzero(labels == g)[0]))
    place = {g: new for new, g in enumerate(order)}
    values = {}
    for i, task in enumerate(tasks):
        others = members[:, labels[i]] & (np.arange(K) != i)
        known = affinity.gains[i, others]
        known = known[~np.isnan(known)]
        if len(known):
            values[task] = float(known.mean())
        elif affinity.has_own and not others.any():
            values[task] = float(affinity.gains[i, i])
        elif affinity.zero is not None and not others.any():
            values[task] = float(affinity.zero if affinity.higher_is_better else -affinity.zero)
        else:
            values[task] = math.nan
    sets = tuple(tuple(tasks[i] for i in np.flatnonzero(members[:, g])) for g in order)
    serves = {task: place[int(label)] for task, label in zip(tasks, labels, strict=True)}
    return Groups(tasks, sets, serves, values, method, seconds=seconds)
