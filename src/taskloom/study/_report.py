"""The report: one HTML file with the verdict in words, the charts, the costs and the exact settings."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from taskloom.study._charts import COLOURS, curve_chart, gain_chart, relation_chart, to_html
from taskloom.study._dominance import dominance_chart, dominance_sentence, left_out_sentence, pool
from taskloom.study._group_history import affinity_chart, found_histories, history_sentence, membership_chart
from taskloom.study._groups import found_groups, graph_chart, groups_sentence, tree_chart
from taskloom.study._outcome import Outcome

_TEMPLATES = resources.files("taskloom.study") / "templates"


def results_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of `results.json`.

    Examples:
        >>> results_schema()["title"]
        'Results of a taskloom study'
    """
    return json.loads((_TEMPLATES / "results.schema.json").read_text(encoding="utf-8"))


def render_report(study: Outcome) -> str:
    """The report as HTML that needs no other file and no network."""
    # Text from tables (task names, column names) is escaped; only what plotly wrote is taken as it is.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["signed"] = lambda value: f"{value:+z.4f}"
    environment.filters["marked"] = _code_marks
    environment.filters["amount"] = lambda value: "-" if value is None else f"{value:,.0f}" if value < 1e6 else f"{value:.3g}"
    template = environment.from_string((_TEMPLATES / "report.html.j2").read_text(encoding="utf-8"))
    words = study.words()
    sections = [
        {
            "label": summary.recipe,
            "summary": summary,
            "info": next(info for info in study.recipes if info.label == summary.recipe),
            "verdicts": study.verdicts_of(summary.recipe),
            "chart": Markup(to_html(gain_chart(study, study.verdicts_of(summary.recipe)), f"gain-{number}")),  # noqa: S704
        }
        for number, summary in enumerate(study.summaries)
        if study.verdicts_of(summary.recipe)
    ]
    pictured = dict.fromkeys((unit.recipe, name) for unit in study.units for name in unit.relations)
    relations = [
        {"label": label, "name": name, "chart": Markup(to_html(relation_chart(study, label, name), f"relation-{number}"))}  # noqa: S704
        for number, (label, name) in enumerate(pictured)
    ]
    dominance = [
        {
            "sentence": dominance_sentence(shares),
            "left_out": left_out_sentence(shares),
            "label": shares.recipe,
            "chart": Markup(to_html(dominance_chart(shares), f"dominance-{number}")),  # noqa: S704
        }
        for number, shares in enumerate(pool(study.units))
    ]
    curves = curve_chart(study)
    return template.render(
        study=study,
        headline=words[0],
        sentences=words[1:],
        sections=sections,
        scores=_score_rows(study),
        relations=relations,
        dominance=dominance,
        groups=_group_sections(study),
        contrasts=_contrast_sections(study),
        histories=_history_sections(study),
        costs={summary.recipe: summary for summary in study.summaries},
        curves=Markup(to_html(curves, "curves")) if curves.data else "",  # noqa: S704
        plotly_js=Markup(get_plotlyjs()),  # noqa: S704
        settings=json.dumps(
            {"question": study.data.get("question", {}), "options": _options(study), "environment": study.environment}, indent=2
        ),
    )


def _group_sections(study: Outcome) -> list[dict[str, Any]]:
    """The groups of every recipe that made some, with their pictures."""
    sections = []
    for number, found in enumerate(found_groups(study.units, [task.name for task in study.tasks])):
        figures = {"tree": tree_chart(found), "graph": graph_chart(found)}
        charts = {
            kind: Markup(to_html(figure, f"groups-{kind}-{number}"))  # noqa: S704
            for kind, figure in figures.items()
            if figure is not None
        }
        sections.append({"found": found, "sentence": groups_sentence(found), "charts": charts})
    return sections


def _contrast_sections(study: Outcome) -> list[dict[str, Any]]:
    """Every recipe that has controls, with a comparison for each of them."""
    sections: dict[str, list[dict[str, Any]]] = {}
    for number, each in enumerate(study.contrasts):
        # The name of a recipe is the user's, and plotly would take it for markup.
        chart = to_html(gain_chart(study, each.verdicts, "the control"), f"contrast-{number}") if each.verdicts else ""
        sections.setdefault(each.recipe, []).append({"contrast": each, "chart": Markup(chart)})  # noqa: S704
    return [{"label": label, "parts": parts} for label, parts in sections.items()]


def _history_sections(study: Outcome) -> list[dict[str, Any]]:
    """The groups of every recipe that changed them while it trained."""
    sections = []
    for number, history in enumerate(found_histories(study.units, [task.name for task in study.tasks])):
        figures = {"membership": membership_chart(history), "affinity": affinity_chart(history)}
        charts = {
            kind: Markup(to_html(figure, f"history-{kind}-{number}"))  # noqa: S704
            for kind, figure in figures.items()
            if figure is not None
        }
        found = {"label": history.recipe, "sentence": history_sentence(history), "charts": charts}
        # Each task is a group of its own at the start.
        sections.append(found | {"colours": len(COLOURS) if len(history.tasks) > len(COLOURS) else None})
    return sections


def _options(study: Outcome) -> dict[str, Any]:
    # Results of an earlier version name neither the columns nor the question.
    return {"seeds": study.seeds} | study.to_json()["options"] | {"columns": ", ".join(study.data.get("columns", []))}


def _score_rows(study: Outcome) -> list[dict[str, Any]]:
    """Mean test score of every recipe on every task; the best is marked."""
    scores = {
        info.label: [unit.scores for unit in study.units if unit.recipe == info.label and unit.scores] for info in study.recipes
    }
    rows = []
    for t, task in enumerate(study.tasks):
        means = {label: sum(each[t] for each in found) / len(found) for label, found in scores.items() if found}
        pick = max if task.scorer.higher_is_better else min
        best = pick(means.values()) if means else None
        cells = [(means.get(info.label), info.label in means and means[info.label] == best) for info in study.recipes]
        rows.append(
            {"task": task.name, "kind": task.kind, "metric": task.metric, "labels": study.data["labels"][t], "cells": cells}
        )
    return rows


def _code_marks(text: str) -> Markup:
    """Backticked names as code, everything else escaped."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))
