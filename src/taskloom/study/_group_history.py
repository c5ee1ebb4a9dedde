"""How groups of tasks changed while one net was trained, for the report.

Letters: K tasks, S seeds, T points of a history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from taskloom.relate import as_text
from taskloom.study._charts import COLOURS, dressed
from taskloom.study._groups import most_like_the_rest
from taskloom.study._unit import Unit
from taskloom.tasks import Array

MOST_PAIRS = len(COLOURS)


@dataclass(frozen=True)
class History:
    """The history of one recipe: that of the seed whose last groups are most like those of the others.

    Attributes:
        recipe: its label.
        seed: whose history it is.
        tasks: names of the K tasks.
        points: T of them, the oldest first; see `RecipeFit.group_history`.
        n_same: seeds with the very same groups at the end.
        n_groups: numbers of groups at the end, one a seed.
        n_before: seeds whose weights were kept from before groups were first made.
    """

    recipe: str
    seed: int
    tasks: list[str]
    points: list[dict[str, Any]]
    n_same: int
    n_groups: list[int]
    n_before: int = 0


def found_histories(units: Sequence[Unit], tasks: Sequence[str]) -> list[History]:
    """The history of every recipe that kept one, in the order of the units.

    Args:
        units: of all recipes and seeds.
        tasks: K names.
    """
    found = []
    for recipe in dict.fromkeys(unit.recipe for unit in units if unit.group_history):
        own = [unit for unit in units if unit.recipe == recipe and unit.group_history]
        last = np.array([unit.group_history[-1]["groups"] for unit in own])
        pairs = (last[:, :, None] == last[:, None, :]).astype(float)
        chosen = most_like_the_rest(pairs)
        n_same = int((pairs == pairs[chosen]).all(axis=(1, 2)).sum())
        n_groups = [len(set(labels.tolist())) for labels in last]
        n_before = sum(_is_kept_from_before(unit) for unit in own)
        found.append(History(recipe, own[chosen].seed, list(tasks), own[chosen].group_history, n_same, n_groups, n_before))
    return found


def _is_kept_from_before(unit: Unit) -> bool:
    """Whether no group of more than one task can have moved the weights that were kept."""
    first = next((point["batch"] for point in unit.group_history[1:-1]), np.inf)
    kept = unit.chosen.get("kept_after_batches")
    return kept is not None and len(unit.group_history[0]["groups"]) > 1 and kept <= first


def history_sentence(history: History) -> str:
    """How many groups there were at the end, and how far the seeds agree on them.

    Examples:
        >>> points = [{"batch": 0, "groups": [0, 1, 2]}, {"batch": 200, "groups": [0, 0, 1]}]
        >>> history_sentence(History("selective", 4, ["a", "b", "c"], points, 2, [2, 2, 1]))
        ... # doctest: +NORMALIZE_WHITESPACE
        '`selective`: 1 to 2 groups at the end, 1.7 on average over 3 seeds.
        Seed 4, which is drawn, ended with 2 (`a`, `b`; `c`); 2 of 3 seeds did.'
    """
    least, most, n_seeds = min(history.n_groups), max(history.n_groups), len(history.n_groups)
    mean = f", {np.mean(history.n_groups):.1f} on average over {n_seeds} seeds"
    span = (
        f"{least} group{'s' if least > 1 else ''} at the end" if least == most else f"{least} to {most} groups at the end{mean}"
    )
    labels = history.points[-1]["groups"]
    sets = [[task for task, label in zip(history.tasks, labels, strict=True) if label == g] for g in dict.fromkeys(labels)]
    names = "; ".join(", ".join(f"`{task}`" for task in members) for members in sets)
    text = f"`{history.recipe}`: {span}. "
    text += f"Seed {history.seed}, which is drawn, ended with {len(sets)} ({names}); {history.n_same} of {n_seeds} seeds did."
    if history.n_before:
        text += (
            f" On {history.n_before} of {n_seeds} seeds the weights that were kept, and so the scores, are from before groups"
        )
        text += (
            " were first made, when each task was updated alone: groups had no part in them, and a smaller `warmup` may help."
        )
    return text


def membership_chart(history: History) -> go.Figure:
    """Who was with whom: tasks of one colour were in one group from one point to the next."""
    batches = [point["batch"] for point in history.points]
    labels = np.array([point["groups"] for point in history.points])
    colours = _steady_colours(labels)
    order = np.lexsort(labels[::-1])
    names = [as_text(history.tasks[k]) for k in order]
    # A point's groups last until the next one; the last point is the end of them.
    edges = batches if len(batches) > 1 else [*batches, batches[0] + 1]
    cells = colours[: max(len(batches) - 1, 1), order].T
    n_colours = len(COLOURS)
    figure = go.Figure(
        go.Heatmap(
            z=(cells % n_colours).tolist(),
            customdata=cells.tolist(),
            x=edges,
            y=names,
            zmin=-0.5,
            zmax=n_colours - 0.5,
            colorscale=[[(i + side) / n_colours, colour] for i, colour in enumerate(COLOURS) for side in (0, 1)],
            showscale=False,
            ygap=1,
            hovertemplate="%{y}, from batch %{x}: group %{customdata}<extra></extra>",
        )
    )
    figure.update_layout(
        height=min(130 + 24 * len(names), 900),
        xaxis={"title": "batches"},
        yaxis={"type": "category", "autorange": "reversed"},
    )
    return dressed(figure)


def _steady_colours(labels: Array) -> Array:
    """(T, K) numbers of groups that stay the same for as long as most of a group's tasks stay together."""
    steady = np.empty_like(labels)
    steady[0] = labels[0]
    for t in range(1, len(labels)):
        before, now = steady[t - 1], labels[t]
        overlaps = [
            (int(((now == g) & (before == old)).sum()), int(old), int(g)) for g in np.unique(now) for old in np.unique(before)
        ]
        names: dict[int, int] = {}
        for size, old, g in sorted(overlaps, key=lambda one: (-one[0], one[1], one[2])):
            if size and g not in names and old not in names.values():
                names[g] = old
        free = (number for number in range(2 * labels.shape[1]) if number not in names.values())
        for g in np.unique(now):
            if int(g) not in names:
                names[int(g)] = next(free)
        steady[t] = [names[int(g)] for g in now]
    return steady


def affinity_chart(history: History) -> go.Figure | None:
    """Effects of updates over the batches, of the pairs with the greatest and the least at the end; None: none were kept."""
    points = [point for point in history.points if "affinity" in point]
    values = np.array([[[np.nan if v is None else v for v in row] for row in point["affinity"]] for point in points])
    pairs = drawn_pairs(values[-1]) if len(points) > 1 else []
    if not pairs:
        return None
    figure = go.Figure()
    for colour, (receiver, source) in zip(COLOURS, pairs, strict=False):
        figure.add_trace(
            go.Scatter(
                x=[point["batch"] for point in points],
                y=[None if np.isnan(v) else float(v) for v in values[:, receiver, source]],
                name=as_text(f"{history.tasks[source]} on {history.tasks[receiver]}"),
                mode="lines+markers",
                line={"color": colour, "width": 1.8},
                marker={"size": 4},
            )
        )
    figure.add_hline(y=0, line={"color": "#444", "width": 1})
    figure.update_layout(
        height=380,
        xaxis_title="batches",
        yaxis={"title": "how much an update lowers the loss", "tickformat": ".2~%"},
    )
    return dressed(figure)


def drawn_pairs(affinity: Array) -> list[tuple[int, int]]:
    """Pairs (receiver, source) with the greatest and the least effects, from the greatest on.

    Examples:
        >>> drawn_pairs(np.array([[0.5, -0.1], [0.2, 0.4]]))
        [(1, 0), (0, 1)]
    """
    n_tasks = len(affinity)
    known = [(r, s) for r in range(n_tasks) for s in range(n_tasks) if r != s and np.isfinite(affinity[r, s])]
    ranked = sorted(known, key=lambda pair: -affinity[pair])
    return ranked if len(ranked) <= MOST_PAIRS else ranked[: MOST_PAIRS // 2] + ranked[-MOST_PAIRS // 2 :]
