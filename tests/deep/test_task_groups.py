"""Groups out of similarities: the sign, planted clusters, and what no rule should do."""

import numpy as np
import pytest

from taskloom.deep import group_tasks

RULES = ["auto", "median", 0.0]


def noisy(plain, seed, noise=0.05):
    n_tasks = len(plain)
    rng = np.random.default_rng(seed)
    draws = np.triu(noise * rng.normal(size=(n_tasks, n_tasks)), 1)
    found = plain + draws + draws.T
    np.fill_diagonal(found, 1.0)
    return found


def planted(n_tasks, n_clusters, inside, across):
    cluster = np.sort(np.arange(n_tasks) % n_clusters)
    return cluster, np.where(cluster[:, None] == cluster, inside, across)


@pytest.mark.parametrize("n_tasks", [2, 4, 6, 11])
@pytest.mark.parametrize("rule", ["auto", 0.0])
def test_tasks_that_all_help_are_together_and_tasks_that_all_hurt_are_apart(n_tasks, rule):
    for seed in range(10):
        assert group_tasks(noisy(np.full((n_tasks, n_tasks), 0.6), seed), rule).max() == 0
        assert group_tasks(noisy(np.full((n_tasks, n_tasks), -0.3), seed), rule).max() == n_tasks - 1


def test_the_median_does_not_mind_the_sign():
    for seed in range(5):
        helping = noisy(np.full((6, 6), 0.6), seed)
        hurting = helping - 0.9 * (1 - np.eye(6))
        np.testing.assert_array_equal(group_tasks(helping, "median"), group_tasks(hurting, "median"))


@pytest.mark.parametrize(("n_tasks", "n_clusters"), [(4, 2), (6, 2), (11, 2), (9, 3), (20, 4)])
def test_clusters_that_hurt_each_other_are_found(n_tasks, n_clusters):
    cluster, plain = planted(n_tasks, n_clusters, 0.4, -0.2)
    for seed in range(5):
        np.testing.assert_array_equal(group_tasks(noisy(plain, seed)), cluster)


@pytest.mark.parametrize("seed", range(5))
def test_clusters_that_help_each_other_less_are_found_by_auto_and_not_by_zero(seed):
    cluster, plain = planted(9, 3, 0.28, 0.2)
    similarity = noisy(plain, seed, noise=0.01)
    np.testing.assert_array_equal(group_tasks(similarity), cluster)
    assert group_tasks(similarity, 0.0).max() < 2


def test_noise_alone_is_no_structure():
    splits = [group_tasks(noisy(np.full((9, 9), 0.3), seed)).max() > 0 for seed in range(60)]
    assert np.mean(splits) < 0.05


def test_clusters_of_tasks_that_hurt_each_other_inside_come_apart():
    _, plain = planted(9, 3, -0.2, -0.8)
    assert group_tasks(noisy(plain, 0)).max() == 8


@pytest.mark.parametrize("rule", RULES)
def test_every_task_is_in_one_group_and_groups_are_numbered_by_their_first_tasks(rule):
    for seed in range(10):
        labels = group_tasks(noisy(np.zeros((8, 8)), seed), rule)
        firsts = [labels.tolist().index(g) for g in range(labels.max() + 1)]
        assert labels.shape == (8,)
        assert firsts == sorted(firsts)
        assert set(labels) == set(range(labels.max() + 1))


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_tasks_does_not_matter(rule):
    _, plain = planted(9, 3, 0.5, -0.1)
    similarity, order = noisy(plain, 0), np.random.default_rng(0).permutation(9)
    whole, turned = group_tasks(similarity, rule), group_tasks(similarity[np.ix_(order, order)], rule)
    same = whole[:, None] == whole
    np.testing.assert_array_equal(same[np.ix_(order, order)], turned[:, None] == turned)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_not_finite_gives_no_groups_and_ties_and_single_tasks_give_some(rule):
    assert group_tasks(np.full((3, 3), np.nan), rule) is None
    assert group_tasks(np.ones((1, 1)), rule).tolist() == [0]
    assert group_tasks(np.ones((5, 5)), rule) is not None
