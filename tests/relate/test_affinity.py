"""How K tasks relate: what an affinity keeps, says and refuses."""

import numpy as np
import pytest

from taskloom.relate._affinity import Affinity, Cost, as_affinity
from taskloom.tasks import DataError, UnknownNameError

NAMES = ["sun", "rain", "wind"]
VALUES = np.array([[9.0, 0.4, -0.2], [0.1, 9.0, 0.0], [0.3, 0.2, 9.0]])


def example(**fields):
    return Affinity(VALUES, NAMES, "tag", **fields)


def test_rows_receive_and_columns_give():
    assert example()["sun", "rain"] == 0.4
    assert example()["rain", "sun"] == 0.1
    with pytest.raises(UnknownNameError, match="did you mean `rain`"):
        _ = example()["sun", "rian"]


def test_costs_add_up():
    both = Cost(forwards=3, backwards=2, seconds=0.5) + Cost(forwards=1, trainings=2)
    assert both == Cost(4, 2, 0.5, 2)
    assert both.units == 8


def test_larger_gains_are_better_whatever_the_sign_of_the_measure():
    np.testing.assert_array_equal(example().gains, VALUES)
    np.testing.assert_array_equal(example(higher_is_better=False).gains, -VALUES)


def test_symmetry_is_of_pairs_alone():
    assert not example().is_symmetric
    even = VALUES + VALUES.T
    even[0, 0] = np.nan
    even[1, 2] = even[2, 1] = np.nan
    assert Affinity(even, NAMES).is_symmetric
    assert Affinity([[1.0]], ["a"]).is_symmetric


def test_pairs_are_listed_row_by_row():
    assert example().off_diagonal.tolist() == [0.4, -0.2, 0.1, 0.0, 0.3, 0.2]
    assert example().n_tasks == 3


def similar(affinity):
    """Similarities, after what all of them keep to."""
    out = affinity.similarity()
    np.testing.assert_array_equal(out, out.T)
    assert (np.diag(out) == 1).all()
    assert out.min() >= 0
    assert out.max() == 1
    return out


def test_gains_become_similarities_from_the_least_to_the_greatest_pair():
    out = similar(example())
    # Means of both directions: sun and rain 0.25, sun and wind 0.05, rain and wind 0.1.
    np.testing.assert_allclose(out[np.triu_indices(3, 1)], [1.0, 0.0, 0.25])


def test_distances_become_similarities_by_their_median():
    distances = np.array([[0, 1, 2.0], [1, 0, 4], [2, 4, 0]])
    out = similar(Affinity(distances, NAMES, higher_is_better=False))
    np.testing.assert_allclose(out[np.triu_indices(3, 1)], np.exp([-0.5, -1.0, -2.0]))


def test_losses_below_zero_are_scaled_like_gains():
    np.testing.assert_allclose(similar(Affinity(-VALUES, NAMES, higher_is_better=False)), similar(example()))


def test_constant_and_unknown_values_make_all_tasks_alike():
    assert (similar(Affinity(np.full((3, 3), 0.7), NAMES)) == 1).all()
    assert similar(Affinity([[np.nan]], ["a"])).tolist() == [[1.0]]


def test_a_pair_that_is_known_in_one_direction_counts_by_that():
    values = VALUES.copy()
    values[1, 0] = np.nan
    out = similar(Affinity(values, NAMES))
    assert out[0, 1] == 1


def test_pairs_that_are_not_known_count_as_the_least():
    values = VALUES.copy()
    values[0, 1] = values[1, 0] = np.nan
    assert similar(Affinity(values, NAMES))[0, 1] == 0
    distances = np.array([[0, np.nan, 2.0], [np.nan, 0, 4], [2, 4, 0]])
    assert similar(Affinity(distances, NAMES, higher_is_better=False))[0, 1] == 0


def test_what_is_not_known_is_filled_with_the_least_gain_and_said():
    values = VALUES.copy()
    values[0, 1] = values[2, 0] = np.nan
    for affinity, least in ((Affinity(values, NAMES), -0.2), (Affinity(values, NAMES, higher_is_better=False), 0.2)):
        full = affinity.filled()
        assert full["sun", "rain"] == full["wind", "sun"] == least
        assert full["rain", "sun"] == VALUES[1, 0]
        assert full.notes == ["2 of 6 pairs are not known and count as the least gain"]
    assert example().filled().notes == ()
    with pytest.raises(DataError, match="`mine` knows no pair of the 3 tasks"):
        Affinity(np.full((3, 3), np.nan), NAMES, "mine").filled()


@pytest.mark.parametrize("better", [True, False])
@pytest.mark.parametrize("zero", [None, 0.0, 0.05])
def test_relations_keep_order_direction_and_sign(zero, better):
    affinity = Affinity(
        VALUES if better else -VALUES, NAMES, higher_is_better=better, zero=None if zero is None else zero if better else -zero
    )
    out = affinity.relation()
    off = ~np.eye(3, dtype=bool)
    assert (np.diag(out) == 1).all()
    assert np.abs(out).max() <= 1
    np.testing.assert_array_equal(np.argsort(out[off]), np.argsort(affinity.gains[off]))
    if zero is None:
        assert (out[off].min(), out[off].max()) == (-1, pytest.approx(1))
    else:
        np.testing.assert_array_equal(np.sign(out[off].round(12)), np.sign((VALUES[off] - zero).round(12)))
        assert np.abs(out[off]).max() == pytest.approx(1)


def test_relations_of_nothing_and_of_constants_are_zero():
    assert Affinity(np.full((2, 2), np.nan), ["a", "b"]).relation().tolist() == [[1, 0], [0, 1]]
    assert Affinity(np.full((2, 2), 0.7), ["a", "b"]).relation().tolist() == [[1, 0], [0, 1]]
    values = VALUES.copy()
    values[0, 1] = np.nan
    assert Affinity(values, NAMES).relation()[0, 1] == -1


def test_a_graph_joins_tasks_that_help_each_other_and_no_others():
    weights = example(zero=0.0).weights()
    np.testing.assert_array_equal(weights, weights.T)
    # Means of both directions: sun and rain 0.25, sun and wind 0.05, rain and wind 0.1.
    np.testing.assert_allclose(weights[np.triu_indices(3, 1)], [1.0, 0.2, 0.4])
    above = example(zero=0.08).weights()
    np.testing.assert_allclose(above[np.triu_indices(3, 1)], [1.0, 0.0, 0.02 / 0.17])
    np.testing.assert_allclose(Affinity(-VALUES, NAMES, higher_is_better=False, zero=0.0).weights(), weights)
    assert (np.diag(weights) == 0).all()
    assert (Affinity(-np.abs(VALUES), NAMES, zero=0.0).weights() == 0).all()


def test_excess_is_what_a_level_is_passed_by_in_the_mean_of_both_directions():
    values = VALUES.copy()
    values[0, 1] = np.nan
    for sign in (1, -1):
        found = Affinity(sign * values, NAMES, higher_is_better=sign > 0).excess(sign * 0.07)
        np.testing.assert_allclose(found[np.triu_indices(3, 1)], np.maximum([values[1, 0] - 0.07, 0.05 - 0.07, 0.1 - 0.07], 0))
        np.testing.assert_array_equal(found, found.T)
        assert (np.diag(found) == 0).all()


def test_without_a_zero_the_graph_is_the_similarity():
    for affinity in (example(), Affinity(np.abs(VALUES), NAMES, higher_is_better=False)):
        weights, similarity = affinity.weights(), affinity.similarity()
        np.fill_diagonal(similarity, 0.0)
        np.testing.assert_allclose(weights, similarity / similarity.max())


def test_a_graph_leaves_out_what_is_not_known_and_takes_one_direction_for_both():
    values = VALUES.copy()
    values[0, 1] = values[1, 2] = values[2, 1] = np.nan
    weights = Affinity(values, NAMES, zero=0.0).weights()
    np.testing.assert_allclose(weights[np.triu_indices(3, 1)], [1.0, 0.5, 0.0])


def test_a_graph_comes_in_the_order_of_the_tasks_asked_for():
    affinity = example(zero=0.0)
    order = ["wind", "sun", "rain"]
    weights = affinity.weights(order)
    for i, one in enumerate(order):
        for j, other in enumerate(order):
            assert weights[i, j] == affinity.weights()[NAMES.index(one), NAMES.index(other)]
    with pytest.raises(DataError, match="`tasks` are sun, rain; need sun, rain, wind in any order"):
        affinity.weights(["sun", "rain"])


def test_the_linear_graph_pulls_tasks_together_the_more_the_stronger_their_affinity():
    from taskloom.linear import Graph, MultiTaskRegressor

    rng = np.random.default_rng(0)
    X, truth = rng.normal(size=(60, 4)), rng.normal(size=(4, 3))
    Y = X @ truth + 0.1 * rng.normal(size=(60, 3))
    apart = []
    for strength in (0.0, 0.2, 1.0):
        # Sun and rain ever more alike; wind is hurt by both and is joined to none.
        values = np.array([[0, strength, -1], [strength, 0, -1], [1, -1, 0.0]])
        values[0, 2] = values[2, 0] = -1
        weights = Affinity(values, NAMES, zero=0.0).weights()
        model = MultiTaskRegressor(Graph(1.0, strength * weights)).fit(X, Y)
        assert model.converged_
        W = np.asarray(model.coef_)
        W = W if W.shape == (4, 3) else W.T
        apart.append([np.linalg.norm(W[:, 0] - W[:, 1]), np.linalg.norm(W[:, 2] - truth[:, 2])])
    close, alone = np.array(apart).T
    assert close[0] > 1.5 * close[1] > 1.5 * close[2]
    np.testing.assert_allclose(alone, alone[0], atol=1e-4)


def test_agreement_is_the_correlation_of_the_gains_of_common_pairs():
    assert example().agreement(Affinity(3 * VALUES - 1, NAMES)) == pytest.approx(1.0)
    assert example().agreement(Affinity(-VALUES, NAMES, higher_is_better=False)) == pytest.approx(1.0)
    assert example().agreement(example(higher_is_better=False)) == pytest.approx(-1.0)
    other = np.random.default_rng(0).normal(size=(3, 3))
    other[0, 1] = np.nan
    kept = [1, 2, 3, 4, 5]
    expected = np.corrcoef(example().off_diagonal[kept], Affinity(other, NAMES).off_diagonal[kept])[0, 1]
    assert example().agreement(Affinity(other, NAMES)) == pytest.approx(expected)


def test_agreement_is_unknown_where_nothing_varies_or_is_shared():
    assert np.isnan(example().agreement(Affinity(np.ones((3, 3)), NAMES)))
    assert np.isnan(example().agreement(Affinity(np.full((3, 3), np.nan), NAMES)))
    with pytest.raises(DataError, match="`other` is of tasks a, b, c; need sun, rain, wind"):
        example().agreement(Affinity(VALUES, list("abc")))


def test_stability_is_set_without_touching_the_rest():
    known = example(notes=["short run"]).with_stability(0.8)
    assert known.stability == 0.8
    assert known.notes == ["short run"]
    assert np.isnan(example().stability)


@pytest.mark.parametrize("stability", [np.nan, 0.75])
@pytest.mark.parametrize("zero", [None, 0.0])
def test_it_is_saved_and_read_back(tmp_path, zero, stability):
    values = VALUES.copy()
    values[0, 1] = np.nan
    cost = Cost(10, 5, 0.25, 1)
    affinity = Affinity(values, NAMES, "tag", False, True, zero, cost, stability, ["a note"], zero)
    affinity.save(tmp_path / "affinity")
    again = Affinity.load(tmp_path / "affinity")
    np.testing.assert_array_equal(again.values, values)
    np.testing.assert_equal(again.stability, stability)
    for name in ("tasks", "measure", "higher_is_better", "has_own", "zero", "unrelated", "cost", "notes"):
        assert getattr(again, name) == getattr(affinity, name), name


def test_files_that_are_no_affinity_are_refused(tmp_path):
    from safetensors.numpy import save

    with pytest.raises(DataError, match="is no saved affinity"):
        Affinity.load(tmp_path / "missing")
    (tmp_path / "text").write_text("no")
    with pytest.raises(DataError, match="is no saved affinity"):
        Affinity.load(tmp_path / "text")
    arrays = {"values": np.eye(2)}
    (tmp_path / "plain").write_bytes(save(arrays))
    with pytest.raises(DataError, match="is no saved affinity"):
        Affinity.load(tmp_path / "plain")
    (tmp_path / "later").write_bytes(save(arrays, {"format": "taskloom affinity", "version": "9", "head": "{}"}))
    with pytest.raises(DataError, match="is no affinity of version 1"):
        Affinity.load(tmp_path / "later")
    (tmp_path / "part").write_bytes(save(arrays, {"format": "taskloom affinity", "version": "1", "head": "{}"}))
    with pytest.raises(DataError, match="is a damaged affinity"):
        Affinity.load(tmp_path / "part")


def test_plain_arrays_are_gains():
    plain = as_affinity(VALUES)
    assert plain.tasks == ["task 1", "task 2", "task 3"]
    assert plain.higher_is_better
    assert as_affinity(VALUES, NAMES).tasks == NAMES
    assert as_affinity(plain) is plain


def test_what_is_no_matrix_of_tasks_is_refused():
    for values, tasks, message in (
        (np.zeros((2, 2)), NAMES, r"shape \(2, 2\) for 3 tasks; need \(K, K\)"),
        (np.zeros((0, 0)), [], "for 0 tasks"),
        (np.array([[0, np.inf], [0, 0]]), ["a", "b"], "'a' from 'b' is infinite"),
        (np.zeros((2, 2)), ["a", "a"], "names 'a' twice"),
    ):
        with pytest.raises(DataError, match=message):
            Affinity(values, tasks)
    for level in (np.inf, np.nan, "0"):
        for name in ("zero", "unrelated"):
            with pytest.raises(DataError, match=f"`{name}`="):
                Affinity(np.eye(2), ["a", "b"], **{name: level})
    for wrong in (np.zeros(3), np.zeros((2, 3))):
        with pytest.raises(DataError, match="`affinity` has shape"):
            as_affinity(wrong)


def test_what_was_checked_cannot_be_written_afterwards():
    values = np.array([[0.0, 1.0], [2.0, 0.0]])
    affinity = Affinity(values, ["a", "b"])
    values[0, 1] = np.inf
    assert affinity["a", "b"] == 1
    for given in (affinity.values, affinity.gains):
        with pytest.raises(ValueError, match="read-only"):
            given[0, 1] = 9


def test_numbers_of_numpy_are_saved(tmp_path):
    cost = Cost(np.int64(3), seconds=np.float32(0.5))
    affinity = Affinity(np.eye(2), ["a", "b"], has_own=np.True_, zero=np.float32(0.5), cost=cost)
    affinity.save(tmp_path / "a")
    again = Affinity.load(tmp_path / "a")
    assert (again.has_own, again.zero, again.cost) == (True, 0.5, Cost(3, seconds=0.5))


def test_plot_is_the_heat_map():
    assert example().plot().data[0].type == "heatmap"
