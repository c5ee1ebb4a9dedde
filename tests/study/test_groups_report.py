"""The groups of a study as its report shows them."""

import numpy as np
import pytest

from taskloom.study._groups import found_groups, graph_chart, groups_sentence, tree_chart
from taskloom.study._unit import Unit

TASKS = ["a", "b", "c", "d"]
PAIRS = {"sets": [["a", "b"], ["c", "d"]], "serves": {"a": 0, "b": 0, "c": 1, "d": 1}, "relation": "likeness"}
TURNED = {"sets": [["c", "d"], ["a", "b"]], "serves": {"a": 1, "b": 1, "c": 0, "d": 0}, "relation": "likeness"}
HELPED = {"sets": [["a", "b", "c"], ["c", "d"]], "serves": {"a": 0, "b": 0, "c": 1, "d": 1}, "relation": "likeness"}
ONE = {"sets": [TASKS], "serves": dict.fromkeys(TASKS, 0), "relation": "likeness"}


def unit_of(seed, groups, recipe="grouped", value=0.5, **fields):
    relations = {"likeness": (np.full((4, 4), value) + np.kron(np.eye(2), np.full((2, 2), 0.4))).tolist()}
    rows = {"scores": [0.0] * 4, "validation_loss": [0.0] * 4, "train_rows": [1] * 4, "test_rows": [1] * 4}
    return Unit(recipe, seed, **rows, groups=groups, **({"relations": relations} | fields))


def test_the_groups_shown_are_those_that_most_seeds_agree_on():
    units = [unit_of(0, ONE), unit_of(1, PAIRS), unit_of(2, HELPED), unit_of(3, TURNED), unit_of(0, {}, "joint")]
    (found,) = found_groups(units, TASKS)
    assert (found.recipe, found.seed, found.n_same, found.n_seeds) == ("grouped", 1, 2, 4)
    assert found.groups.sets == (("a", "b"), ("c", "d"))
    assert groups_sentence(found) == (
        "`grouped`: 2 nets for 4 tasks. These are the groups of seed 1, found on 2 of 4 seeds; it agrees best with the others."
    )


def test_groups_are_the_same_in_any_order_but_not_when_they_serve_others():
    (found,) = found_groups([unit_of(0, PAIRS), unit_of(1, TURNED)], TASKS)
    assert groups_sentence(found) == "`grouped`: 2 nets for 4 tasks. All 2 seeds found the same groups."
    (found,) = found_groups([unit_of(0, PAIRS), unit_of(1, HELPED)], TASKS)
    assert found.n_same == 1
    (found,) = found_groups([unit_of(7, ONE)], TASKS)
    assert groups_sentence(found) == "`grouped`: 1 net for 4 tasks. These are the groups of the one seed."


def test_a_row_tells_who_is_served_and_who_only_helps():
    (found,) = found_groups([unit_of(0, HELPED)], TASKS)
    assert found.rows == [{"serves": ["a", "b"], "helped_by": ["c"]}, {"serves": ["c", "d"], "helped_by": []}]


def test_pictures_are_of_the_mean_over_the_seeds():
    (found,) = found_groups([unit_of(0, PAIRS, value=0.0), unit_of(1, PAIRS, value=0.2)], TASKS)
    assert found.affinity["a", "b"] == pytest.approx(0.5)
    assert found.affinity["a", "c"] == pytest.approx(0.1)
    nodes = [trace for trace in graph_chart(found).data if trace.name]
    assert [tuple(trace.text) for trace in nodes] == [("a", "b"), ("c", "d")]
    assert "".join(tree_chart(found).layout.yaxis.ticktext) in {"abcd", "cdab", "badc", "dcba", "bacd", "abdc", "cdba", "dcab"}


def test_without_a_relation_there_are_words_alone():
    (found,) = found_groups([unit_of(0, PAIRS, relations={}, notes=["A note."])], TASKS)
    assert tree_chart(found) is graph_chart(found) is None
    assert found.notes == ["A note."]


def test_each_recipe_has_groups_of_its_own():
    units = [unit_of(0, PAIRS), unit_of(0, ONE, "other"), unit_of(1, PAIRS)]
    assert [(found.recipe, found.n_seeds) for found in found_groups(units, TASKS)] == [("grouped", 2), ("other", 1)]
    assert found_groups([unit_of(0, {})], TASKS) == []
