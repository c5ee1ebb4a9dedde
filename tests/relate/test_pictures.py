"""Pictures of how tasks relate: what a reader sees in them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from taskloom.relate._affinity import Affinity
from taskloom.relate._pictures import alike_first, dendrogram, graph_picture, heat_map
from taskloom.relate._select import select
from taskloom.tasks import OptionError

NAMES = ["a1", "b1", "a2", "b2", "a3", "b3"]


def two_kinds(**fields):
    of = np.array([0, 1] * 3)
    return Affinity(np.equal.outer(of, of) + 0.01 * np.arange(36.0).reshape(6, 6), NAMES, **fields)


def kinds(names):
    return "".join(name[0] for name in names)


def test_tasks_that_are_alike_stand_beside_each_other():
    affinity = two_kinds()
    assert kinds(affinity.tasks[t] for t in alike_first(affinity)) in {"aaabbb", "bbbaaa"}
    trace = heat_map(affinity).data[0]
    assert kinds(trace.x) in {"aaabbb", "bbbaaa"}
    assert list(trace.x) == list(trace.y)
    assert kinds(dendrogram(affinity).layout.yaxis.ticktext) in {"aaabbb", "bbbaaa"}


def test_a_cell_is_the_receiver_from_the_source():
    affinity = two_kinds()
    trace = affinity.plot().data[0]
    for r, receiver in enumerate(trace.y):
        for s, source in enumerate(trace.x):
            expected = None if receiver == source else pytest.approx(affinity[receiver, source])
            assert trace.z[r][s] == expected


def test_own_gains_and_unknown_pairs_show_as_they_are():
    values = two_kinds().values.copy()
    values[0, 1] = np.nan
    trace = heat_map(Affinity(values, NAMES, has_own=True)).data[0]
    shown = {(r, s): trace.z[i][j] for i, r in enumerate(trace.y) for j, s in enumerate(trace.x)}
    assert shown["a1", "b1"] is None
    assert shown["a1", "a1"] == values[0, 0]


def test_colours_are_centred_on_the_zero():
    trace = heat_map(two_kinds(zero=0.25)).data[0]
    assert (trace.zmin + trace.zmax) / 2 == pytest.approx(0.25)
    assert heat_map(Affinity(np.zeros((2, 2)), ["a", "b"], zero=0.0)).data[0].zmax == 1.0


def test_better_has_the_same_colour_for_gains_and_distances():
    gains, distances = two_kinds(zero=0.0), two_kinds(zero=0.0, higher_is_better=False)
    assert heat_map(gains).data[0].reversescale != heat_map(distances).data[0].reversescale


def test_the_tree_has_a_joint_for_every_two_branches():
    figure = dendrogram(two_kinds())
    assert list(figure.data[0].x).count(None) == 5
    with pytest.raises(OptionError, match="a tree needs two"):
        dendrogram(Affinity(np.zeros((1, 1)), ["a"]))


@pytest.mark.parametrize("sign", [1, -1])
def test_branches_meet_at_the_mean_value_of_their_pairs(sign):
    # Nearly alike: the axis says so.
    values = np.array([[1.0, 0.99, 0.97], [0.99, 1.0, 0.98], [0.97, 0.98, 1.0]])
    affinity = Affinity(sign * values, ["a", "b", "c"], "nearness", higher_is_better=sign > 0)
    figure = dendrogram(affinity)
    met = {round(sign * x, 6) for x in figure.data[0].x if x is not None}
    assert {0.99, 0.975} < met
    left, right = (sign * end for end in figure.layout.xaxis.range)
    assert 1.0 > left > 0.99
    assert 0.96 < right <= 0.97
    # Where it is known what unrelated tasks have, the axis goes there, and the tasks look as alike as they are.
    known = dendrogram(replace(affinity, unrelated=0.0)).layout.xaxis.range
    assert -0.1 < sign * known[1] <= 0
    assert sign * known[0] > 1
    assert figure.layout.xaxis.title.text == "nearness"


@pytest.mark.parametrize("values", [np.ones((2, 2)), np.zeros((3, 3)), np.full((3, 3), np.nan), np.eye(2)])
def test_a_tree_of_pairs_that_are_all_alike_or_not_known_is_drawn(values):
    left, right = dendrogram(Affinity(values, list("abc")[: len(values)])).layout.xaxis.range
    assert np.isfinite([left, right]).all()
    assert left > right


def test_the_graph_tells_groups_by_colour_and_shape():
    affinity = two_kinds()
    groups = select(affinity, 2)
    figure = graph_picture(affinity, groups)
    nodes = [trace for trace in figure.data if trace.name]
    assert [tuple(trace.text) for trace in nodes] == [groups.served(0), groups.served(1)]
    assert len({trace.marker.color for trace in nodes}) == len({trace.marker.symbol for trace in nodes}) == 2
    plain = graph_picture(affinity)
    assert [tuple(trace.text) for trace in plain.data if trace.name] == [tuple(NAMES)]
    assert not plain.layout.showlegend


def test_the_graph_says_who_helps_elsewhere():
    A = np.array([[0, 5, 0.0], [5, 0, 0], [0, 9, 0]])
    groups = select(Affinity(A, ["a", "b", "c"]), 2)
    figure = graph_picture(Affinity(A, ["a", "b", "c"]), groups)
    said = {name: text for trace in figure.data if trace.name for name, text in zip(trace.text, trace.customdata, strict=True)}
    assert said == {"a": "", "b": "<br>helps in group 2", "c": ""}


def test_the_same_seed_gives_the_same_layout():
    first, again, other = (graph_picture(two_kinds(), seed=seed).data[-1].x for seed in (1, 1, 2))
    assert first == again != other


def test_groups_of_other_tasks_are_refused():
    with pytest.raises(OptionError, match="`groups` are of task 1"):
        graph_picture(two_kinds(), select(np.zeros((2, 2)), 1))


def test_pictures_are_readable_on_light_and_dark_pages():
    for figure in (heat_map(two_kinds()), dendrogram(two_kinds()), graph_picture(two_kinds())):
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0, 0, 0, 0)"
        for page in ("#ffffff", "#14181c"):
            assert contrast(figure.layout.font.color, page) > 3.9
        json.loads(figure.to_json())


def contrast(one, other):
    """Of WCAG 2."""

    def luminance(colour):
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_many_tasks_are_drawn_without_their_names():
    K = 70
    affinity = Affinity(np.random.default_rng(0).random((K, K)), [str(i) for i in range(K)])
    assert heat_map(affinity).layout.xaxis.showticklabels is False
    assert graph_picture(affinity).data[-1].mode == "markers"
    few = heat_map(Affinity(np.ones((2, 2)), ["a", "b"]))
    assert few.layout.xaxis.showticklabels
    assert [list(row) for row in few.data[0].z] == [[None, 1.0], [1.0, None]]
