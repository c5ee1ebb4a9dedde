"""Tasks in planted groups: those of a group read the same few hidden features of a row, each with weights of its own."""

import numpy as np
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from taskloom.tasks import FeatureEncoder, Task, TaskData

HIDDEN = 4


def planted(n_groups=3, size=4, *, mixed=False, own=False, n_rows=1500, d=30, seed=0):
    """Binary tasks on shared rows, or each with `n_rows` of its own, and the group of each task.

    Positive weights make the labels of a group agree; with signs at random tasks need the same features all the same.
    """
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), size)
    directions = [rng.normal(size=(d, HIDDEN)) / np.sqrt(d) for _ in range(n_groups)]
    weights = rng.uniform(0.5, 1.5, size=(len(groups), HIDDEN))
    if mixed:
        weights *= rng.choice([-1, 1], size=weights.shape)
    tasks = [Task(f"g{g}t{t}", "binary") for t, g in enumerate(groups)]

    def labels(X, t):
        score = np.tanh(2 * X @ directions[groups[t]]) @ weights[t]
        return (score > np.median(score)).astype(float)

    if own:
        Xs = [rng.normal(size=(n_rows, d)) for _ in groups]
        data = TaskData.own_rows([(X, labels(X, t)) for t, X in enumerate(Xs)], tasks)
    else:
        X = rng.normal(size=(n_rows, d))
        data = TaskData.shared_rows(X, np.stack([labels(X, t) for t in range(len(groups))], axis=1), tasks)
    return FeatureEncoder.fit(data.features).encode(data), groups


def ari(affinity, groups, seed=0):
    """Agreement of spectral clusters of an affinity with the groups."""
    clusters = SpectralClustering(len(set(groups)), affinity="precomputed", random_state=seed, assign_labels="kmeans")
    return adjusted_rand_score(groups, clusters.fit_predict(affinity.similarity()))
