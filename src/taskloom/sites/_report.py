"""The report on runs over sites: one small HTML file with the gap against time, and who waited for whom."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from taskloom.sites._charts import DASHES, MOST_ROWS, curves, gap_chart, slowest_first, wait_chart, window
from taskloom.sites._result import SitesResult
from taskloom.sites._timeline import compare_runs, describe_runs, timeline
from taskloom.tasks import OptionError, OutputError, check_folder, write_file

_TEMPLATE = resources.files("taskloom.sites") / "templates" / "report.html.j2"


def write_report(results: Mapping[str, SitesResult], path: str | Path, *, about: str = "") -> Path:
    """Write a report that compares runs on the same tasks.

    It is one HTML file of some tens of kilobytes, needs no network, and follows the reader's light or dark setting. It shows
    the relative gap against time on a logarithmic scale, or the residual where gaps are not known; for each run when each site
    was away and when it waited for the coordinator; and both as tables. Nothing of the rows or of the model is in it.

    The file is written under a temporary name and renamed: a kill leaves the old file or the new one.

    Args:
        results: of runs, by the names to show, such as {"local-prox": fit(...), "smtl-fista": fit(...)}.
        path: of the file; its folder is made.
        about: a sentence on the tasks.

    Returns:
        The path.

    Raises:
        OptionError: there are no results.
        OutputError: the file cannot be written.

    Examples:
        >>> import tempfile
        >>> from taskloom.linear import Trace
        >>> from taskloom.sites import fit
        >>> rng = np.random.default_rng(0)
        >>> pairs = [(X, X @ np.ones(3)) for X in rng.normal(size=(4, 20, 3))]
        >>> run = fit(pairs, Trace(0.1), transport="simulated", delays=1.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report({"local-prox": run}, folder + "/report.html").name
        'report.html'
    """
    if not results:
        raise OptionError("`results` is empty; give at least one run")
    path = check_report(path)
    write_file(path, render_report(results, about))
    return path


def check_report(path: str | Path) -> Path:
    """Make sure that a report can be written there, before the work that it reports on.

    Args:
        path: of the file; its folder is made.

    Raises:
        OutputError: it cannot.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"`path`='{path}' is a folder; name a file, such as '{path / 'report.html'}'")
    check_folder(path.parent)
    return path


def render_report(results: Mapping[str, SitesResult], about: str = "") -> str:
    """The report as HTML."""
    import jinja2

    # Names of tasks and sites come from outside: all is escaped but the charts, which escape what they show.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["sentence"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["number"] = lambda value, form: format(value, form) if np.isfinite(value) else "-"
    runs, shown, seconds = compare_runs(results), curves(results), window(results)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        runs=runs,
        headline=describe_runs(runs) or "; ".join(f"{name}: {result.message}" for name, result in results.items()),
        about=about,
        label=shown.label,
        chart=gap_chart(shown),
        kinds=[(name, number % len(DASHES), DASHES[number % len(DASHES)]) for number, name in enumerate(results)],
        seconds=seconds,
        sections=[_section(name, result, seconds) for name, result in results.items()],
    )


def _section(name: str, result: SitesResult, seconds: float) -> dict[str, Any]:
    rows = []
    for site in slowest_first(result):
        record, stale = result.sites[site], result.staleness[site]
        trips = timeline(result.trips, site)
        rows.append(
            {
                "site": site,
                "updates": record.updates,
                "waited": trips.waited,
                "trip": float(np.median(np.diff(trips.away))) if len(trips.away) else np.nan,
                "stale": float(np.median(stale)) if len(stale) else np.nan,
                "most_stale": record.most_stale,
                "lost": record.duplicates + record.refused,
            }
        )
    chart = wait_chart(result, seconds)
    hidden = max(0, len(rows) - MOST_ROWS)
    return {"name": name, "message": result.message, "notes": result.notes, "chart": chart, "rows": rows, "hidden": hidden}
