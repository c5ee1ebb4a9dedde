"""Clusters of tasks: planted ones are found again, and numbers of groups are chosen."""

import math

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from taskloom.relate._affinity import Affinity
from taskloom.relate._cluster import METHODS, cluster, modularity, stands_out
from taskloom.tasks import DataError, OptionError, UnknownNameError


def planted(n, m, noise, seed, **fields):
    of = np.repeat(np.arange(n), m)
    K = n * m
    shuffle = np.random.default_rng(seed).permutation(K)
    of = of[shuffle]
    values = np.equal.outer(of, of) * 0.6 + noise * np.random.default_rng(seed + 100).normal(size=(K, K))
    return of, Affinity(values, [f"t{i}" for i in range(K)], **fields)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "m"), [(3, 4), (6, 5), (2, 3)])
def test_planted_groups_are_found_with_and_without_their_number(n, m, method, given):
    for seed in range(2):
        of, affinity = planted(n, m, 0.05, seed)
        groups = cluster(affinity, n if given else None, method)
        assert adjusted_rand_score(of, groups.labels) == 1.0
        assert groups.method == method
        for task in affinity.tasks:
            assert groups.values[task] == pytest.approx(0.6, abs=0.2)


@pytest.mark.parametrize("method", METHODS)
def test_distances_are_clustered_as_well(method):
    of, affinity = planted(3, 4, 0.05, 0)
    distances = Affinity(1 - affinity.values, affinity.tasks, higher_is_better=False)
    assert adjusted_rand_score(of, cluster(distances, 3, method).labels) == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_the_order_and_the_scale_of_tasks_do_not_matter(method):
    of, affinity = planted(3, 4, 0.1, 1)
    order = np.random.default_rng(5).permutation(12)
    moved = Affinity(7 * affinity.values[np.ix_(order, order)] - 3, [affinity.tasks[i] for i in order])
    assert adjusted_rand_score(of[order], cluster(moved, 3, method).labels) == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_groups(method):
    _, affinity = planted(4, 5, 0.5, 2)
    assert cluster(affinity, None, method, seed=3).labels.tolist() == cluster(affinity, None, method, seed=3).labels.tolist()


def test_posteriors_let_groups_overlap():
    values = np.kron(np.eye(2), np.ones((4, 4)))
    values[3, 4:] = values[4:, 3] = 0.95
    affinity = Affinity(values + 0.02 * np.random.default_rng(0).normal(size=(8, 8)), list("abcdefgh"))
    apart, shared = (cluster(affinity, 2, "gmm", posterior=each) for each in (1.0, 1e-12))
    assert sum(map(len, apart.sets)) == 8
    assert sum(map(len, shared.sets)) > 8
    assert apart.serves == shared.serves
    for task in affinity.tasks:
        assert task in shared.serving(task)


def test_modularity_is_that_of_networkx():
    import networkx as nx

    weights = np.random.default_rng(0).random((8, 8))
    weights = weights + weights.T
    np.fill_diagonal(weights, 0)
    least = weights[~np.eye(8, dtype=bool)].min()
    graph = nx.from_numpy_array(np.where(np.eye(8), 0, weights - least))
    labels = np.array([0, 0, 1, 1, 2, 2, 0, 1])
    expected = nx.community.modularity(graph, [set(np.flatnonzero(labels == g).tolist()) for g in range(3)])
    assert modularity(weights, labels) == pytest.approx(expected)


@pytest.mark.parametrize("method", METHODS)
def test_every_number_from_one_group_to_all_alone_is_taken(method):
    _, affinity = planted(3, 4, 0.05, 0, has_own=True)
    assert len(cluster(affinity, 1, method).sets) == 1
    alone = cluster(affinity, 12, method)
    assert len(alone.sets) == 12
    assert alone.values["t0"] == affinity["t0", "t0"]


def test_the_value_of_a_task_alone_is_known_where_the_scale_has_a_zero():
    values = np.zeros((2, 2))
    assert math.isnan(cluster(values, 2).value)
    assert cluster(Affinity(values, ["a", "b"], higher_is_better=False, zero=2.0), 2).values == {"a": -2.0, "b": -2.0}


@pytest.mark.parametrize("method", METHODS)
def test_tasks_that_are_all_alike_make_one_group_or_as_many_as_asked(method):
    assert len(cluster(np.ones((6, 6)), None, method).sets) == 1
    assert sorted(map(len, cluster(np.ones((6, 6)), 3, method).sets)) == [2, 2, 2]
    assert cluster(np.ones((1, 1)), None, method).sets == (("task 1",),)
    assert len(cluster(np.array([[0, 1.0], [0.5, 0]]), None, method).sets) in {1, 2}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sign", [1, -1])
def test_tasks_that_are_nearly_alike_make_one_group_unless_groups_are_asked_for(method, sign):
    for seed in range(3):
        noise = 0.015 * np.random.default_rng(seed).random((8, 8))
        affinity = Affinity(sign * (0.97 + noise + noise.T), list("abcdefgh"), higher_is_better=sign > 0, unrelated=0.0)
        assert len(cluster(affinity, None, method).sets) == 1
        two = cluster(affinity, 2, "spectral")
        assert len(two.sets) == 2
        assert stands_out(affinity, two.labels) is False


@pytest.mark.parametrize("method", METHODS)
def test_planted_groups_stand_out_of_a_likeness_that_all_tasks_share(method):
    of, affinity = planted(3, 4, 0.02, 0, unrelated=-0.5)
    groups = cluster(affinity, None, method)
    assert adjusted_rand_score(of, groups.labels) == 1.0
    assert stands_out(affinity, groups.labels) is True
    # Without a value of unrelated tasks nothing can be said, and counted from far below they are all alike.
    assert stands_out(planted(3, 4, 0.02, 0)[1], of) is None
    assert stands_out(planted(3, 4, 0.02, 0, unrelated=-5.0)[1], of) is False


def test_groups_stand_out_by_the_modularity_of_networkx():
    import networkx as nx

    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = rng.random((7, 7)) + 2 * rng.random()
        labels = rng.integers(0, 3, 7)
        weights = (values + values.T) / 2
        np.fill_diagonal(weights, 0)
        score = nx.community.modularity(nx.from_numpy_array(weights), [set(np.flatnonzero(labels == g)) for g in range(3)])
        assert stands_out(Affinity(values, list("abcdefg"), unrelated=0.0), labels) == (score > 0)


def test_a_pair_known_in_one_direction_is_enough():
    of, affinity = planted(2, 4, 0.05, 0)
    values = affinity.values.copy()
    values[np.triu_indices(8, 1)] = np.nan
    groups = cluster(Affinity(values, affinity.tasks), 2)
    assert adjusted_rand_score(of, groups.labels) == 1.0


def test_what_cannot_be_clustered_is_refused_by_name():
    A = np.zeros((3, 3))
    for n_groups in (0, 4, 1.5, True, 2.0, "abc", np.nan):
        with pytest.raises(OptionError, match="`n_groups`="):
            cluster(A, n_groups)
    with pytest.raises(UnknownNameError, match="did you mean `louvain`"):
        cluster(A, method="louvian")
    for seed in (-1, 1.5):
        with pytest.raises(OptionError, match=f"`seed`={seed}"):
            cluster(A, seed=seed)
    for method, posterior in (("gmm", 0.0), ("gmm", 2.0), ("spectral", 0.3), ("gmm", "x")):
        with pytest.raises(OptionError, match="`posterior`="):
            cluster(A, method=method, posterior=posterior)
    with pytest.raises(DataError, match="knows no pair"):
        cluster(np.full((3, 3), np.nan))
    with pytest.raises(DataError, match="need \\(K, K\\)"):
        cluster(np.zeros((2, 3)))


def test_a_number_that_a_method_does_not_reach_is_said():
    # Six pairs that are worlds apart: no resolution makes five groups.
    pairs = np.kron(np.eye(2), np.ones((3, 3)))
    for method in ("louvain", "affinity_propagation"):
        with pytest.raises(OptionError, match=f"is not reached by {method}"):
            cluster(pairs, 5, method)
    with pytest.raises(OptionError, match="is not reached by gmm"):
        cluster(pairs, 3, "gmm")
