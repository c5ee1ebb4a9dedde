"""The charts of a report.

Letters: K tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from scipy.cluster.hierarchy import leaves_list, linkage

from taskloom.relate import as_text
from taskloom.study._compare import Verdict
from taskloom.study._outcome import Outcome

# Okabe & Ito's palette: told apart by colour-blind readers; the marks differ in shape as well.
VERDICT_COLOURS = {"helped": "#009E73", "hurt": "#D55E00", "undecided": "#767676"}
_MARKS = {"helped": "triangle-up", "hurt": "triangle-down", "undecided": "circle-open"}
# Tasks from which on there can be one far from all others, and how much further than these the axis goes.
_FEWEST, _FURTHEST = 4, 3.0
COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#D55E00", "#000000", "#F0E442")
_CONFIG = {"displayModeBar": False, "responsive": True}


def gain_chart(study: Outcome, verdicts: Sequence[Verdict], over: str = "the single-task baseline") -> go.Figure:
    """Gain of every task over what it is held against, with the interval; tasks from most helped to most hurt.

    A few gains that are far from all others would make the rest a line: they are arrows at the edge, with the gain in figures.
    """
    ordered = sorted(verdicts, key=lambda verdict: verdict.gain)
    limits, window = _readable_range(ordered)
    beyond = [verdict for verdict in ordered if not window[0] <= verdict.gain <= window[1]]
    figure = go.Figure()
    for word, colour in VERDICT_COLOURS.items():
        within = [verdict for verdict in ordered if verdict.word == word and verdict not in beyond]
        if within:
            interval = {
                "type": "data",
                "array": [0 if v.high is None else v.high - v.gain for v in within],
                "arrayminus": [0 if v.low is None else v.gain - v.low for v in within],
                "color": colour,
            }
            mark = {"color": colour, "symbol": _MARKS[word], "size": 10}
            places = [verdict.gain for verdict in within]
            figure.add_trace(_gains(within, places, mode="markers", name=word, marker=mark, error_x=interval))
        for edge, direction, gap in ((window[0], "left", "right"), (window[1], "right", "left")):
            cut = [v for v in beyond if v.word == word and (v.gain > 0) == (direction == "right")]
            if cut:
                # The arrow's tip is at its place, and the figures stand behind its body.
                space = "\u00a0" * 4
                arrow = {"color": colour, "symbol": f"arrow-{direction}", "size": 14}
                text = [f"{space}{verdict.gain:+.4g}{space}" for verdict in cut]
                look = {"mode": "markers+text", "text": text, "textposition": f"middle {gap}"}
                figure.add_trace(_gains(cut, [edge] * len(cut), name=f"{word}, beyond this window", marker=arrow, **look))
    figure.add_vline(x=0, line={"color": "#444", "width": 1})
    metrics = ", ".join(dict.fromkeys(task.metric for task in study.tasks))
    ends = [(v.low, v.high) for v in ordered if v not in beyond and v.low is not None and v.high is not None]
    n_reaching = sum(low < limits[0] or high > limits[1] for low, high in ends)
    title = f"gain in {metrics} over {over} (right of 0 is better)"
    title += f"<br>gains beyond this window, as arrows at its edge: {len(beyond)}" if beyond else ""
    title += f"<br>intervals that reach beyond this window: {n_reaching}" if n_reaching else ""
    figure.update_layout(
        height=120 + 26 * len(ordered),
        xaxis={"title": title, "range": limits if beyond or n_reaching else None},
        yaxis={
            "title": as_text(study.data["by"]),
            "categoryorder": "array",
            "categoryarray": [as_text(verdict.task) for verdict in ordered],
            "type": "category",
        },
    )
    return dressed(figure)


def _gains(verdicts: Sequence[Verdict], places: Sequence[float], **style: Any) -> go.Scatter:
    """Marks at these places, with the scores and the gain to hover over."""
    return go.Scatter(
        x=list(places),
        y=[as_text(verdict.task) for verdict in verdicts],
        customdata=[[v.baseline_score, v.score, v.p_corrected, v.gain] for v in verdicts],
        hovertemplate="%{y}: %{customdata[0]:.4f} -> %{customdata[1]:.4f}<br>gain %{customdata[3]:+.4f}"
        "<br>corrected p %{customdata[2]:.3g}<extra></extra>",
        **style,
    )


def _readable_range(verdicts: Sequence[Verdict]) -> tuple[list[float], list[float]]:
    """The range of the axis, and the window of the gains in it, a margin less: not set by a few tasks far from all others.

    It goes no further than `_FURTHEST` times what all tasks but a tenth of them, or but one, reach.
    """
    reaches = sorted(max(abs(end) for end in (v.low, v.gain, v.high) if end is not None) for v in verdicts)
    typical = reaches[-1 - max(1, len(reaches) // 10)] if len(reaches) >= _FEWEST else 0.0
    limit = _FURTHEST * typical or reaches[-1]
    ends = [end for verdict in verdicts for end in (verdict.low, verdict.gain, verdict.high) if end is not None]
    low, high = max(min(ends), -limit), min(max(ends), limit)
    low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.05 * (high - low)
    return [low - margin, high + margin], [low, high]


def curve_chart(study: Outcome, log_scale: bool = False) -> go.Figure:
    """Validation loss over optimizer steps: one line a seed, one colour a recipe."""
    figure = go.Figure()
    labels = [info.label for info in study.recipes if any(unit.curves for unit in study.units if unit.recipe == info.label)]
    for place, label in enumerate(labels):
        units = [unit for unit in study.units if unit.recipe == label and unit.curves]
        for i, unit in enumerate(units):
            figure.add_trace(
                go.Scatter(
                    x=list(unit.curves[0].steps),
                    y=list(unit.curves[0].losses),
                    name=as_text(label),
                    legendgroup=label,
                    showlegend=i == 0,
                    mode="lines",
                    line={"color": COLOURS[place % len(COLOURS)], "width": 1.5},
                    opacity=0.7,
                    hovertemplate=f"%{{fullData.name}}, seed {unit.seed}<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
                )
            )
    figure.update_layout(
        height=380,
        xaxis_title="optimizer steps of one net",
        yaxis={"title": "validation loss, mean of tasks", "type": "log" if log_scale else "linear"},
    )
    return dressed(figure)


def relation_chart(study: Outcome, recipe: str, name: str) -> go.Figure:
    """One relation between tasks, mean over the seeds: row = receiver, column = source, tasks that are alike side by side."""
    matrices = [unit.relations[name] for unit in study.units if unit.recipe == recipe and name in unit.relations]
    mean = np.mean(np.array(matrices, dtype=np.float64), axis=0)
    order = _alike_first(mean)
    names = [as_text(study.tasks[t].name) for t in order]
    figure = go.Figure(
        go.Heatmap(
            z=mean[np.ix_(order, order)].tolist(),
            x=names,
            y=names,
            zmin=-1,
            zmax=1,
            colorscale="RdBu",
            reversescale=True,
            hovertemplate="%{y}, %{x}: %{z:.2f}<extra></extra>",
        )
    )
    side = min(160 + 26 * len(names), 900)
    figure.update_layout(
        height=side, xaxis={"type": "category"}, yaxis={"type": "category", "autorange": "reversed"}, showlegend=False
    )
    return dressed(figure)


def _alike_first(relation: np.ndarray) -> list[int]:
    """Tasks in the order of the leaves of their dendrogram (average linkage)."""
    if len(relation) < 3:
        return list(range(len(relation)))
    distance = np.clip(1 - (relation + relation.T) / 2, 0, None)
    condensed = distance[np.triu_indices(len(distance), 1)]
    return leaves_list(linkage(condensed, "average")).tolist()


def to_html(figure: go.Figure, name: str) -> str:
    """A chart as a piece of HTML that needs plotly.js beside it."""
    return pio.to_html(figure, full_html=False, include_plotlyjs=False, config=_CONFIG, div_id=name)


def dressed(figure: go.Figure) -> go.Figure:
    """A chart in the style of the report."""
    font: dict[str, Any] = {"family": "system-ui, sans-serif", "size": 13}
    figure.update_layout(
        template="plotly_white",
        font=font,
        margin={"l": 10, "r": 20, "t": 30, "b": 50},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    figure.update_yaxes(automargin=True)
    return figure
