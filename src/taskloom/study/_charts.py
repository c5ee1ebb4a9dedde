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
COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#D55E00", "#000000", "#F0E442")
_CONFIG = {"displayModeBar": False, "responsive": True}


def gain_chart(study: Outcome, verdicts: Sequence[Verdict], over: str = "the single-task baseline") -> go.Figure:
    """Gain of every task over what it is held against, with the interval; tasks from most helped to most hurt."""
    ordered = sorted(verdicts, key=lambda verdict: verdict.gain)
    figure = go.Figure()
    for word, colour in VERDICT_COLOURS.items():
        chosen = [verdict for verdict in ordered if verdict.word == word]
        if not chosen:
            continue
        figure.add_trace(
            go.Scatter(
                x=[verdict.gain for verdict in chosen],
                y=[as_text(verdict.task) for verdict in chosen],
                error_x={
                    "type": "data",
                    "array": [0 if v.high is None else v.high - v.gain for v in chosen],
                    "arrayminus": [0 if v.low is None else v.gain - v.low for v in chosen],
                    "color": colour,
                },
                mode="markers",
                name=word,
                marker={"color": colour, "symbol": _MARKS[word], "size": 10},
                customdata=[[v.baseline_score, v.score, v.p_corrected] for v in chosen],
                hovertemplate="%{y}: %{customdata[0]:.4f} -> %{customdata[1]:.4f}<br>gain %{x:+.4f}"
                "<br>corrected p %{customdata[2]:.3g}<extra></extra>",
            )
        )
    figure.add_vline(x=0, line={"color": "#444", "width": 1})
    metrics = ", ".join(dict.fromkeys(task.metric for task in study.tasks))
    limits, n_beyond = _readable_range(ordered)
    title = f"gain in {metrics} over {over} (right of 0 is better)"
    title += f"<br>intervals that reach beyond this window: {n_beyond}" if n_beyond else ""
    figure.update_layout(
        height=120 + 26 * len(ordered),
        xaxis={"title": title, "range": limits},
        yaxis={
            "title": as_text(study.data["by"]),
            "categoryorder": "array",
            "categoryarray": [as_text(verdict.task) for verdict in ordered],
            "type": "category",
        },
    )
    return dressed(figure)


def _readable_range(verdicts: Sequence[Verdict]) -> tuple[list[float] | None, int]:
    """A range that one task with a huge interval does not spoil for all others, and how many intervals it cuts."""
    ends = [end for verdict in verdicts for end in (verdict.low, verdict.high) if end is not None]
    if len(ends) < 12:
        return None, 0
    typical = float(np.percentile(np.abs(ends), 90))
    low, high = max(min(ends), -3 * typical), min(max(ends), 3 * typical)
    low, high = min(low, *(v.gain for v in verdicts), 0.0), max(high, *(v.gain for v in verdicts), 0.0)
    margin = 0.05 * (high - low)
    cut = sum(v.low is not None and v.high is not None and (v.low < low - margin or v.high > high + margin) for v in verdicts)
    return ([low - margin, high + margin], cut) if cut else (None, 0)


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
