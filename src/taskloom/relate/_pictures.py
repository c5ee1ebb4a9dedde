"""Pictures of how tasks relate: a heat map, a dendrogram and a graph.

Backgrounds are transparent and lines mid-grey, so that a page in light or dark colours can hold them.

Letters: K tasks.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
import plotly.graph_objects as go
from scipy.cluster.hierarchy import dendrogram as tree_lines
from scipy.cluster.hierarchy import leaves_list, linkage

from taskloom.relate._affinity import Affinity
from taskloom.relate._groups import Groups
from taskloom.tasks import Array, OptionError

INK = "#767676"
# Okabe & Ito's palette without black and yellow, which vanish on a dark or a light page; marks differ in shape as well.
COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#D55E00")
MARKS = ("circle", "square", "diamond", "triangle-up", "star", "hexagon", "cross")
# Edges drawn for each node, to the tasks most like it.
_NEAREST = 3
# Tasks beyond which names would overlap.
_NAMED = 60


def as_text(name: str) -> str:
    """A name as plotly shows it letter by letter, where it would take `<b>` for markup.

    Args:
        name: of a task, a layer or a column.

    Examples:
        >>> as_text("<b>R&D</b>")
        '&lt;b>R&amp;D&lt;/b>'
    """
    return name.replace("&", "&amp;").replace("<", "&lt;")


def heat_map(affinity: Affinity) -> go.Figure:
    """The matrix, row = receiver, column = source, tasks that are alike beside each other.

    Colours are centred on the measure's zero where it has one. A pair that is not known is blank, and so is the diagonal unless
    it is the tasks' own gain.

    Examples:
        >>> heat_map(Affinity(np.eye(3), ["a", "b", "c"])).data[0].type
        'heatmap'
    """
    order = alike_first(affinity)
    names = [as_text(affinity.tasks[t]) for t in order]
    values = affinity.values.copy()
    if not affinity.has_own:
        np.fill_diagonal(values, np.nan)
    known = values[~np.isnan(values)]
    scale: dict[str, object] = {"colorscale": "Cividis", "reversescale": not affinity.higher_is_better}
    if affinity.zero is not None and len(known):
        reach = float(np.abs(known - affinity.zero).max()) or 1.0
        scale = {"colorscale": "RdBu", "zmin": affinity.zero - reach, "zmax": affinity.zero + reach}
        scale["reversescale"] = not affinity.higher_is_better
    shown = values[np.ix_(order, order)]
    figure = go.Figure(
        go.Heatmap(
            z=[[None if np.isnan(value) else float(value) for value in row] for row in shown],
            x=names,
            y=names,
            hovertemplate="%{y} from %{x}: %{z:.4g}<extra></extra>",
            **scale,
        )
    )
    figure.update_layout(
        height=min(180 + 26 * len(names), 900),
        xaxis={"type": "category", "title": "source", "showticklabels": len(names) <= _NAMED, "showgrid": False},
        yaxis={
            "type": "category",
            "title": {"text": "receiver", "standoff": 12},
            "autorange": "reversed",
            "showticklabels": len(names) <= _NAMED,
            "showgrid": False,
        },
    )
    return _dressed(figure)


def dendrogram(affinity: Affinity) -> go.Figure:
    """The tree of tasks (average linkage): the further right two branches meet, the less alike they are.

    They meet at the mean value of their pairs, in units of the measure.

    Raises:
        OptionError: there is one task only.
    """
    if affinity.n_tasks < 2:
        raise OptionError("`affinity` is of one task; a tree needs two")
    tree, begin, end = _tree(affinity)
    lines = tree_lines(tree, orientation="right", labels=list(affinity.tasks), no_plot=True, color_threshold=0)
    sign = -1 if affinity.higher_is_better else 1
    figure = go.Figure()
    xs: list[float | None] = []
    ys: list[float | None] = []
    for across, up in zip(lines["dcoord"], lines["icoord"], strict=True):
        xs += [*(begin + sign * float(x) for x in across), None]
        ys += [*map(float, up), None]
    figure.add_trace(go.Scatter(x=xs, y=ys, mode="lines", line={"color": COLOURS[0], "width": 2}, hoverinfo="x"))
    # scipy puts leaf i at 10 i + 5.
    places = [10 * i + 5 for i in range(affinity.n_tasks)]
    figure.update_layout(
        height=min(140 + 24 * affinity.n_tasks, 1600),
        showlegend=False,
        xaxis={"title": as_text(affinity.measure), "range": [begin, end]},
        yaxis={"tickvals": places, "ticktext": [as_text(name) for name in lines["ivl"]], "showgrid": False, "zeroline": False},
    )
    return _dressed(figure)


def graph_picture(affinity: Affinity, groups: Groups | None = None, seed: int = 0) -> go.Figure:
    """Tasks as nodes, each joined to the three most like it; colour and shape tell the group that serves a task.

    Args:
        affinity: gives the edges; thicker is more alike.
        groups: of the same tasks; all nodes look the same without them.
        seed: of the layout.

    Raises:
        OptionError: the groups are of other tasks.
    """
    if groups is not None and set(groups.tasks) != set(affinity.tasks):
        raise OptionError(f"`groups` are of {', '.join(groups.tasks)}; need those of {', '.join(affinity.tasks)}")
    similarity = affinity.similarity()
    edges = _nearest_pairs(similarity)
    graph = nx.Graph()
    graph.add_nodes_from(range(affinity.n_tasks))
    graph.add_weighted_edges_from((i, j, float(similarity[i, j]) + 0.05) for i, j in edges)
    places = nx.spring_layout(graph, seed=seed, iterations=100)
    figure = go.Figure()
    for i, j in edges:
        (x0, y0), (x1, y1) = places[i], places[j]
        figure.add_trace(
            go.Scatter(
                x=[float(x0), float(x1)],
                y=[float(y0), float(y1)],
                mode="lines",
                line={"color": INK, "width": 0.5 + 4 * float(similarity[i, j])},
                opacity=0.5,
                hoverinfo="skip",
                showlegend=False,
            )
        )
    for place, served in enumerate([affinity.tasks] if groups is None else map(groups.served, range(len(groups.sets)))):
        figure.add_trace(_nodes(affinity, groups, place, tuple(served), places))
    figure.update_layout(
        height=520,
        showlegend=groups is not None,
        xaxis={"visible": False},
        yaxis={"visible": False, "scaleanchor": "x"},
    )
    return _dressed(figure)


def _nodes(
    affinity: Affinity, groups: Groups | None, place: int, served: tuple[str, ...], places: dict[int, Array]
) -> go.Scatter:
    """The tasks that one group serves."""
    points = [places[list(affinity.tasks).index(name)] for name in served]
    helps = ["" if groups is None else _helps(groups, name) for name in served]
    return go.Scatter(
        x=[float(x) for x, _ in points],
        y=[float(y) for _, y in points],
        mode="markers+text" if affinity.n_tasks <= _NAMED else "markers",
        text=[as_text(name) for name in served],
        textposition="top center",
        name=f"group {place + 1}",
        customdata=helps,
        marker={"color": COLOURS[place % len(COLOURS)], "symbol": MARKS[place % len(MARKS)], "size": 14},
        hovertemplate="%{text}%{customdata}<extra></extra>",
    )


def _helps(groups: Groups, name: str) -> str:
    """The groups that a task is in and that do not serve it."""
    others = [str(g + 1) for g, names in enumerate(groups.sets) if name in names and groups.serves[name] != g]
    return f"<br>helps in group {', '.join(others)}" if others else ""


def _nearest_pairs(similarity: Array) -> list[tuple[int, int]]:
    """Each task with the few most like it, each pair once."""
    away = np.where(np.eye(len(similarity), dtype=bool), -np.inf, similarity)
    nearest = np.argsort(-away, axis=1, kind="stable")[:, : min(_NEAREST, len(similarity) - 1)]
    return sorted({(min(i, int(j)), max(i, int(j))) for i, row in enumerate(nearest) for j in row})


def alike_first(affinity: Affinity) -> list[int]:
    """Tasks in the order of the leaves of their tree."""
    return list(range(affinity.n_tasks)) if affinity.n_tasks < 3 else leaves_list(_tree(affinity)[0]).tolist()


def _tree(affinity: Affinity) -> tuple[Array, float, float]:
    """The linkage of how far tasks are apart in units of the measure, and the values at which its axis begins and ends.

    Pairs that are not known count as the least alike. Leaves begin a little beyond the pair that is most alike; the axis ends
    at the value of unrelated tasks, where the measure knows it, so that tasks that are all nearly alike look it.
    """
    pairs = affinity.both_ways[np.triu_indices(affinity.n_tasks, 1)]
    sign = -1 if affinity.higher_is_better else 1
    apart = np.nan_to_num(sign * pairs, nan=float(np.nanmax(sign * pairs)) if np.isfinite(pairs).any() else 0.0)
    near, far = (
        float(apart.min()),
        max(float(apart.max()), -np.inf if affinity.unrelated is None else sign * affinity.unrelated),
    )
    begin = near - (0.05 * (far - near) or 0.05 * abs(near) or 1.0)
    return linkage(apart - begin, "average"), sign * begin, sign * (far + 0.03 * (far - begin))


def _dressed(figure: go.Figure) -> go.Figure:
    """Fit for light and dark pages."""
    lines = {"gridcolor": "rgba(118, 118, 118, 0.25)", "linecolor": INK, "zerolinecolor": INK}
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        margin={"l": 10, "r": 20, "t": 30, "b": 50},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    figure.update_xaxes(automargin=True, **lines)
    figure.update_yaxes(automargin=True, **lines)
    return figure
