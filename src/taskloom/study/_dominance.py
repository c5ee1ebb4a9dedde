"""Which task moves which layer, for the report.

Letters: K tasks, B bins of equal width from 0 to 1, S seeds.

AU is an average of the squared updates of a weight that are due to a task, rAU its share among the tasks (Yang et al., AAAI
2023). What is called dominance, nine tenths of a step, is our line, and so is the pooling over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from taskloom.relate import as_text
from taskloom.study._charts import COLOURS, dressed
from taskloom.study._unit import Unit
from taskloom.tasks import Array

DOMINANT = 0.9
MOST_TASKS, MOST_LAYERS, PANELS = len(COLOURS), 24, 2


@dataclass(frozen=True)
class Shares:
    """The seeds' histograms of one recipe together.

    Attributes:
        recipe: its label.
        tasks: names of the K tasks.
        counts: (K, B) numbers of weights by their rAU, by layer, added up over the seeds.
        medians: (K,) medians of rAU by layer, mean over the seeds.
    """

    recipe: str
    tasks: list[str]
    counts: dict[str, Array]
    medians: dict[str, Array]


def pool(units: Sequence[Unit]) -> list[Shares]:
    """The shares of every recipe that measured them, in the order of the units."""
    found = []
    for recipe in dict.fromkeys(unit.recipe for unit in units if unit.dominance):
        own = [unit.dominance for unit in units if unit.recipe == recipe and unit.dominance]
        counts: dict[str, list[Array]] = {}
        medians: dict[str, list[Array]] = {}
        for layers in own:
            for layer, shares in layers.items():
                counts.setdefault(layer, []).append(np.array([share["counts"] for share in shares.values()]))
                medians.setdefault(layer, []).append(np.array([share["median"] for share in shares.values()]))
        tasks = list(next(iter(own[0].values())))
        summed = {layer: np.sum(each, axis=0) for layer, each in counts.items()}
        found.append(Shares(recipe, tasks, summed, {layer: np.mean(each, axis=0) for layer, each in medians.items()}))
    return found


def dominance_sentence(shares: Shares) -> str:
    """Who dominates which layers, in words.

    Examples:
        >>> medians = {"first": np.array([0.98, 0.02]), "second": np.array([0.7, 0.3])}
        >>> dominance_sentence(Shares("joint", ["size", "age"], {}, medians))  # doctest: +NORMALIZE_WHITESPACE
        '`joint`: `size` dominates 1 of 2 layers. At the median weight `size` has most of the squared updates of `first` (0.98),
        and `age` least (0.02, in `first`); even shares would be 0.50.'
    """
    layers, medians = list(shares.medians), np.array(list(shares.medians.values()))
    wins = {task: int((medians[:, k] > DOMINANT).sum()) for k, task in enumerate(shares.tasks)}
    winners = [f"`{task}` dominates {number} of {len(layers)} layers" for task, number in wins.items() if number]
    most, least = (np.unravel_index(pick(medians), medians.shape) for pick in (np.argmax, np.argmin))
    return (
        f"`{shares.recipe}`: {'; '.join(winners) or 'no task dominates a layer'}. At the median weight "
        f"`{shares.tasks[most[1]]}` has most of the squared updates of `{layers[most[0]]}` ({medians[most]:.2f}), and "
        f"`{shares.tasks[least[1]]}` least ({medians[least]:.2f}, in `{layers[least[0]]}`); even shares would be "
        f"{1 / len(shares.tasks):.2f}."
    )


def left_out_sentence(shares: Shares) -> str:
    """What the chart does not show; empty where it shows everything."""
    parts = []
    if len(shares.tasks) > MOST_TASKS:
        parts.append(f"the {MOST_TASKS} of {len(shares.tasks)} tasks with the largest and smallest shares")
    if len(shares.counts) > MOST_LAYERS:
        parts.append(f"{MOST_LAYERS} of {len(shares.counts)} layers")
    return f"Drawn: {' and '.join(parts)}." if parts else ""


def dominance_chart(shares: Shares) -> go.Figure:
    """A histogram of rAU for each layer, a colour a task; the dotted line is an even share."""
    layers = list(shares.counts)
    if len(layers) > MOST_LAYERS:
        layers = [layers[i] for i in np.linspace(0, len(layers) - 1, MOST_LAYERS).round().astype(int)]
    columns = min(PANELS, len(layers))
    rows = -(-len(layers) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        # A name from a net of the user's is text, not markup.
        subplot_titles=[as_text(layer) for layer in layers],
        vertical_spacing=min(0.35 / rows, 0.25),
        horizontal_spacing=0.1,
    )
    for place, layer in enumerate(layers):
        row, column = place // columns + 1, place % columns + 1
        for colour, k in zip(COLOURS, _drawn(shares), strict=False):
            figure.add_trace(_histogram(shares.counts[layer][k], shares.tasks[k], colour, place == 0), row=row, col=column)
        figure.update_xaxes(range=[0, 1], title_text="share of the task (rAU)" if row == rows else None, row=row, col=column)
        figure.update_yaxes(rangemode="tozero", tickformat=".0%", row=row, col=column)
    figure.add_vline(x=1 / len(shares.tasks), line={"color": "#444", "width": 1, "dash": "dot"}, row="all", col="all")
    figure.update_annotations(font_size=13)
    figure = dressed(figure)
    figure.update_layout(height=130 + 190 * rows, margin={"t": 70}, legend={"y": 1 + 40 / (30 + 190 * rows)})
    return figure


def _drawn(shares: Shares) -> list[int]:
    """Tasks in the chart: all, or those with the smallest and the largest shares."""
    if len(shares.tasks) <= MOST_TASKS:
        return list(range(len(shares.tasks)))
    ranked = np.argsort(np.mean(list(shares.medians.values()), axis=0), kind="stable")
    half = MOST_TASKS // 2
    return sorted([*ranked[:half].tolist(), *ranked[-half:].tolist()])


def _histogram(counts: Array, task: str, colour: str, is_first: bool) -> go.Scatter:
    edges = np.linspace(0, 1, len(counts) + 1)
    heights = counts / max(counts.sum(), 1)
    return go.Scatter(
        x=np.repeat(edges, 2)[1:-1].tolist(),
        y=np.repeat(heights, 2).tolist(),
        name=as_text(task),
        legendgroup=task,
        showlegend=is_first,
        mode="lines",
        line={"color": colour, "width": 1.8},
        fill="tozeroy",
        fillcolor=f"rgba({','.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))},0.15)",
        hovertemplate="share %{x:.2f}: %{y:.1%} of the weights<extra>%{fullData.name}</extra>",
    )
