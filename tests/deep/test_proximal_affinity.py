"""Effects of tasks on each other out of losses before and after updates: against the plain recursion, one entry at a time."""

import numpy as np
import pytest

from taskloom.deep._proximal_affinity import (
    AffinityTracker,
    DecayedMean,
    first_order_effects,
    pair_effects,
    relative_gains,
    similarity,
)


def effect_by_the_rules(share, group, i, k):
    """Effect of i on k of one update, in the words of the rules."""
    if i not in group or np.isnan(share[k]):
        return np.nan
    if k == i or k not in group or (share[i] >= 0) == (share[k] >= 0):
        return share[k]
    return -max(share[i], share[k])


def test_pairs_follow_the_rules_one_by_one():
    rng = np.random.default_rng(0)
    gains = rng.normal(size=(40, 5))
    members = rng.random((40, 5)) < 0.5
    found = pair_effects(gains, members)
    for t in range(40):
        group = set(np.flatnonzero(members[t]).tolist())
        share = gains[t] / max(1, len(group))
        expected = [[effect_by_the_rules(share, group, i, k) for k in range(5)] for i in range(5)]
        np.testing.assert_allclose(found[t], expected)


def test_the_published_rule_leaves_out_a_task_that_hurt_itself():
    gains, members = np.array([[-0.2, 0.4]]), np.array([[True, False]])
    assert np.isnan(pair_effects(gains, members, official=True)[0, 0, 0])
    assert pair_effects(gains, members)[0, 0, 0] == -0.2


@pytest.mark.parametrize("cuts", [(), (7,), (1, 2, 30)])
def test_decayed_means_are_those_of_the_recursion_however_they_are_taken_in(cuts):
    rng = np.random.default_rng(1)
    values = np.where(rng.random((50, 3, 3)) < 0.4, np.nan, rng.normal(size=(50, 3, 3)))
    mean = DecayedMean((3, 3), beta=0.1)
    for part in np.split(values, cuts):
        mean.add(part)
    plain, weight = np.zeros((3, 3)), np.zeros((3, 3))
    for value in values:
        seen = ~np.isnan(value)
        plain = np.where(seen, 0.9 * plain + 0.1 * np.nan_to_num(value), plain)
        weight = np.where(seen, 0.9 * weight + 0.1, weight)
    np.testing.assert_allclose(mean.value(), plain / weight, rtol=1e-12)
    np.testing.assert_array_equal(mean.counts, (~np.isnan(values)).sum(axis=0))


def test_a_constant_effect_is_found_at_once_with_the_start_corrected_and_slowly_without():
    for official in (False, True):
        mean = DecayedMean((1,), beta=0.01, official=official)
        mean.add(np.full((3, 1), 0.5))
        assert bool(mean.value()[0] < 0.02) is official
        assert official or mean.value()[0] == pytest.approx(0.5)


def test_losses_that_say_nothing_leave_the_map_as_it_is():
    tracker = AffinityTracker(2, beta=0.1)
    members = np.array([True, False])
    tracker.observe(members, np.array([1.0, 2.0]), np.array([0.9, 1.0]))
    tracker.settle()
    before = tracker.affinity()
    for losses in ([np.nan, np.nan], [np.inf, -np.inf], [0.0, 0.0]):
        tracker.observe(members, np.array(losses), np.array([0.5, 0.5]))
        tracker.observe(members, np.array([0.0, 0.0]), np.array(losses))
    np.testing.assert_array_equal(tracker.affinity(), before)
    tracker.settle()
    np.testing.assert_array_equal(tracker.affinity(), before)


def test_a_target_that_is_absent_has_no_effect_and_the_others_do():
    tracker = AffinityTracker(3, beta=0.1)
    tracker.observe(np.array([True, True, False]), np.array([1.0, np.nan, 1.0]), np.array([0.9, np.nan, 0.8]))
    found = tracker.affinity()
    np.testing.assert_allclose(found[0], [0.1, np.nan, 0.2])
    # A task without labels has moved nothing.
    assert np.isnan(found[1:]).all()


def test_losses_below_zero_are_measured_in_units_of_their_size():
    tracker = AffinityTracker(2, beta=0.1)
    for _ in range(20):
        tracker.observe(np.array([True, False]), np.array([-4.0, 1.0]), np.array([-5.0, 1.1]))
    assert tracker.affinity()[0] == pytest.approx([0.25, -0.1])


def test_a_loss_that_goes_through_zero_does_not_swallow_the_map():
    tracker = AffinityTracker(1, beta=0.1)
    for before in (1.0, 1e-9, -1.0, 1e-9, -1e-12):
        tracker.observe(np.array([True]), np.array([before]), np.array([before - 0.1]))
    assert tracker.affinity()[0, 0] == pytest.approx(0.1 / np.average([1, 0, 1, 0, 0], weights=0.9 ** np.arange(4, -1, -1)))


def test_the_published_arithmetic_never_tracks_losses_at_zero_or_below():
    found = relative_gains(np.array([[-1.0, 0.0, 2.0]]), np.array([[-2.0, 1.0, 1.0]]), np.ones(3), official=True)
    np.testing.assert_array_equal(found, [[np.nan, np.nan, 0.5]])


def test_gains_are_bounded():
    assert relative_gains(np.array([[1e-9]]), np.array([[1.0]]))[0, 0] == -1


def test_a_task_that_stands_still_does_not_look_as_if_all_others_moved_it():
    affinity = np.array([[0.2, 0.01, 0.0], [0.01, 0.2, 0.0], [0.001, 0.001, 1e-12]])
    found = similarity(affinity)
    assert np.abs(found).max() == 1
    np.testing.assert_array_equal(found, found.T)
    assert np.abs(similarity(np.full((2, 2), np.nan)) - np.eye(2)).max() == 0
    assert np.isnan(similarity(np.zeros((2, 2)), official=True)).all()


def test_first_order_effects_are_what_a_small_step_does():
    rng = np.random.default_rng(2)
    target, w = rng.normal(size=(3, 6)), rng.normal(size=6)

    def losses(w):
        return ((w - target) ** 2).sum(axis=1)

    gradients = 2 * (w - target)
    steps = 1e-6 * gradients
    expected = [(losses(w) - losses(w - step)) / losses(w) for step in steps]
    np.testing.assert_allclose(first_order_effects(steps, gradients, losses(w)), expected, rtol=1e-4)


def test_reading_the_map_changes_nothing():
    rng = np.random.default_rng(3)
    one, two = AffinityTracker(3, beta=0.1), AffinityTracker(3, beta=0.1)
    for _ in range(30):
        members, before, after = rng.random(3) < 0.5, rng.random(3) - 0.2, rng.random(3)
        for tracker in (one, two):
            tracker.observe(members, before, after)
        assert two.affinity().shape == (3, 3)
    for tracker in (one, two):
        tracker.settle()
    np.testing.assert_array_equal(one.affinity(), two.affinity())
    np.testing.assert_array_equal(one.counts(), two.counts())
