"""The files of a survey: a page with its pictures, the affinity, and the groups."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from taskloom.relate._pictures import dendrogram, graph_picture, heat_map
from taskloom.relate._survey import Survey
from taskloom.tasks import write_file

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from markupsafe import Markup

PAGE, AFFINITY, GROUPS = "relate.html", "affinity.safetensors", "groups.json"
_TEMPLATE = resources.files("taskloom.relate") / "templates" / "survey.html.j2"


def write_survey(found: Survey, folder: str | Path) -> Path:
    """Write `relate.html`, one page that needs no other file and no network, and what later work can load.

    `Affinity.load` reads `affinity.safetensors`, and `Groups.load` reads `groups.json`.

    Args:
        found: the survey.
        folder: is made if need be.

    Returns:
        The path of the page.

    Raises:
        OutputError: a file cannot be written.
    """
    folder = Path(folder)
    write_file(folder / PAGE, render_survey(found))
    found.affinity.save(folder / AFFINITY)
    found.groups.save(folder / GROUPS)
    return folder / PAGE


def render_survey(found: Survey) -> str:
    """The page as HTML."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    # Names of tasks come from tables: all is escaped but what plotly wrote.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["marked"] = _code_marks
    better = "more" if found.affinity.higher_is_better else "less"
    end = "covers no more than occurs" if found.affinity.unrelated is None else "ends where tasks have nothing in common"
    tree = f"Two branches meet at the mean value of their pairs: further right is less alike. The axis {end}."
    pictures = [
        ("Affinity", f"Row: the task that receives, column: the task that gives; {better} is more alike.", "affinity"),
        ("Tree", tree, "tree"),
        ("Graph", "Each task is joined to the three most like it; colour and shape tell the group that serves it.", "graph"),
    ]
    charts = {"affinity": heat_map(found.affinity), "tree": dendrogram(found.affinity)}
    charts["graph"] = graph_picture(found.affinity, found.groups)
    if not found.is_baseline:
        pictures.append(("Correlation of labels", "For comparison: no model has part in it.", "labels"))
        charts["labels"] = heat_map(found.labels)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        survey=found,
        headline=headline(found),
        pictures=[{"title": title, "words": words, "chart": _html(charts[name], name)} for title, words, name in pictures],
        plotly_js=Markup(get_plotlyjs()),  # noqa: S704
    )


def headline(found: Survey) -> str:
    """The groups in a clause."""
    n, K = len(found.groups.sets), found.affinity.n_tasks
    if n == 1 and found.n_asked is None:
        return f"`{found.affinity.measure}` sees no groups among {K} tasks: all of them are in one"
    if n == 1:
        return f"`{found.affinity.measure}` keeps all {K} tasks in one group"
    return f"`{found.affinity.measure}` puts {K} tasks into {n} groups"


def _html(figure: go.Figure, name: str) -> Markup:
    import plotly.io as pio
    from markupsafe import Markup

    config = {"displayModeBar": False, "responsive": True}
    return Markup(pio.to_html(figure, full_html=False, include_plotlyjs=False, config=config, div_id=name))  # noqa: S704


def _code_marks(text: str) -> Markup:
    """Backticked names as code, everything else escaped."""
    from markupsafe import Markup

    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))
