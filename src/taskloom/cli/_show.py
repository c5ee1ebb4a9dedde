"""What the commands print: tables for people, JSON for machines, one sentence for mistakes."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from taskloom.study import Model, Study
    from taskloom.tasks import Recipe

WIDEST = 10_000
# The last one as shells count: 128 and the number of the signal.
USER_ERROR, FIT_ERROR, INTERRUPTED = 2, 1, 130


@contextmanager
def user_errors() -> Generator[None]:
    """Bad input ends a command with one sentence on standard error and exit code 2; a failed fit with exit code 1."""
    from taskloom.tasks import FitError, TaskloomError

    try:
        yield
    except (TaskloomError, FitError) as error:
        Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), str(error)))
        raise typer.Exit(USER_ERROR if isinstance(error, TaskloomError) else FIT_ERROR) from error


@contextmanager
def stopped_with(sentence: str) -> Generator[None]:
    """Ctrl-C ends a command with one sentence on standard error, as to what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped; {sentence}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def wide_console() -> Console:
    """Standard output without a limit of width: names stay whole, and a terminal breaks long lines itself."""
    return Console(width=WIDEST)


@contextmanager
def output_folder(folder: Path) -> Generator[None]:
    """A folder that can be written, checked before any work; if the work fails, a folder made here is not left behind."""
    from taskloom.tasks import check_folder

    is_new = not folder.exists()
    check_folder(folder)
    try:
        yield
    except BaseException:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
        raise


def own_name() -> str:
    """What to type to call this command line again: its name, or its path where the shell would not find it."""
    called = Path(sys.argv[0])
    found = shutil.which("taskloom")
    if called.name != "taskloom" or (found is not None and Path(found).resolve() == called.resolve()):
        return "taskloom"
    return str(called)


def print_json(value: Any) -> None:
    """JSON on standard output."""
    typer.echo(json.dumps(value, indent=1, allow_nan=False))


def print_study(study: Study, folder: Path) -> None:
    """The verdict table, the outcome in words, and where the report is."""
    console = wide_console()
    console.print(study.table())
    if study.is_detailed:
        console.print(study.table(per_task=False))
    for note in study.data["notes"]:
        console.print(Text(f"note: {note.replace('`', '')}"), soft_wrap=True)
    for sentence in study.words():
        console.print(Text(sentence.replace("`", "")), soft_wrap=True)
    console.print(Text.assemble("\nreport: ", (str(folder / "report.html"), "bold")), soft_wrap=True)


def print_recipes(recipes: dict[str, type[Recipe]]) -> None:
    """One line for each recipe."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("recipe", "family", "what it does", "paper"):
        table.add_column(name, no_wrap=name == "recipe")
    for name, recipe in recipes.items():
        table.add_row(name, recipe.family + (" (baseline)" if recipe.is_baseline else ""), recipe.summary, recipe.paper)
    (Console() if sys.stdout.isatty() else wide_console()).print(table)


def print_model(model: Model, folder: Path) -> None:
    """Validation scores of a fitted model, and where it is."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("task", "metric", "score"):
        table.add_column(name, justify="right" if name == "score" else "left")
    for task in model.tasks:
        table.add_row(Text(task.name), task.metric, f"{model.validation_scores[task.name]:.4f}")
    console = wide_console()
    # A title of the table itself would be broken to the table's width.
    console.print(Text(f"{model.recipe}: scores on the rows held back", style="italic"))
    console.print(table)
    console.print(Text.assemble("model: ", (str(folder), "bold")), soft_wrap=True)


def write_columns(columns: dict[str, list[Any]], path: Path | None, as_json: bool) -> None:
    """Columns as CSV or JSON into a file, or onto standard output."""
    if as_json:
        content = json.dumps(columns, indent=1, allow_nan=False) + "\n"
    else:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        content = text.getvalue()
    if path is None:
        sys.stdout.write(content)
    else:
        from taskloom.tasks import write_file

        write_file(path, content)
