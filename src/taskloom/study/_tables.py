"""A study as tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from taskloom.study._outcome import Outcome

_STYLE = {"helped": "bold green", "hurt": "bold red", "undecided": "dim"}


def verdict_table(study: Outcome) -> Table:
    """One row for each task and recipe."""
    metrics = dict.fromkeys(task.metric for task in study.tasks)
    table = Table(
        title=f"Verdict per task (metric: {', '.join(metrics)})", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    # Names are folded in a narrow terminal, so that numbers can be read.
    table.add_column("recipe", overflow="fold")
    table.add_column("task", overflow="fold")
    for name in ("baseline", "score", "gain", f"{100 * study.options.confidence:g} % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    last = ""
    for verdict in study.verdicts:
        if last and verdict.recipe != last:
            table.add_section()
        table.add_row(
            # As text, so that a bracket in a name is a bracket and no style.
            Text(verdict.recipe if verdict.recipe != last else ""),
            Text(verdict.task),
            f"{verdict.baseline_score:.4f}",
            f"{verdict.score:.4f}",
            f"{verdict.gain:+z.4f}",
            format_interval(verdict.low, verdict.high),
            Text(verdict.word, style=_STYLE[verdict.word]),
        )
        last = verdict.recipe
    return table


def summary_table(study: Outcome) -> Table:
    """One row for each recipe: verdicts counted, and what it cost."""
    table = Table(title="Recipes", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("recipe", overflow="fold")
    table.add_column("against", overflow="fold")
    for name in ("helped/hurt/undecided", "mean gain", "interval", "sec"):
        table.add_column(name, justify="right", no_wrap=True)
    for summary in study.summaries:
        table.add_row(
            Text(summary.recipe),
            summary.baseline or ("failed" if summary.failed else "-"),
            f"{summary.helped}/{summary.hurt}/{summary.undecided}" if summary.baseline else "",
            "" if summary.gain is None else f"{summary.gain:+z.4f}",
            format_interval(summary.low, summary.high) if summary.gain is not None else "",
            f"{summary.seconds:.2f}",
        )
    return table


def format_interval(low: float | None, high: float | None) -> str:
    """An interval, or a dash where too few seeds gave none."""
    return "-" if low is None or high is None else f"[{low:+z.3f}, {high:+z.3f}]"
