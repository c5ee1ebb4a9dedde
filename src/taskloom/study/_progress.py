"""Progress of long work: a bar on a terminal, silence in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

Show = Callable[[int, str], None]
Progress = bool | Callable[[int, int, str], None] | None


@contextmanager
def progress_bar(progress: Progress, total: int) -> Generator[Show]:
    """A function (done, what) to call as work gets done.

    Args:
        progress: True or False; a function (done, total, what) to call instead; None: a bar on a terminal.
        total: units of work.
    """
    if callable(progress):
        yield lambda done, what: progress(done, total, what)
        return
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield lambda _done, _what: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        job = bar.add_task("", total=total)
        yield lambda done, what: bar.update(job, completed=done, description=what)
