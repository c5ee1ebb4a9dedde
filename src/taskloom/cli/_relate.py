"""The command `taskloom relate`: which tasks of a table should learn together."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taskloom.cli import _options as opt
from taskloom.cli._show import output_folder, own_name, print_json, stopped_with, user_errors

if TYPE_CHECKING:
    from taskloom.relate import Survey


def relate(
    file: opt.TableFile,
    target: opt.Target = None,
    by: opt.By = None,
    targets: opt.Targets = None,
    measure: Annotated[str, typer.Option("--measure", help="How affinity is measured.")] = "samplewise_cosine",
    groups: Annotated[
        int | None, typer.Option("--groups", help="How many groups; chosen when not given.", show_default=False)
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="spectral, gmm, louvain, affinity_propagation, select; auto: by the measure.")
    ] = "auto",
    overlap: Annotated[
        bool, typer.Option("--overlap/--no-overlap", help="With select: let a task also help in other groups.")
    ] = True,
    repeats: Annotated[int, typer.Option("--repeats", help="Seeds that the affinity is averaged over.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="The first of them.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder for relate.html, the affinity and the groups.")] = Path("relate"),
    kind: opt.Kind = None,
    metric: opt.MetricName = None,
    drop: opt.Drop = None,
    skip_tasks: opt.SkipTasks = None,
    impute: opt.Impute = True,
    json: opt.Json = False,
) -> None:
    """Measure which tasks of a table are alike, and choose the groups that should learn together."""
    with user_errors(), stopped_with("nothing was written"):
        data = opt.read_tasks(file, target, by, targets, opt.table_options(kind, metric, drop, skip_tasks, impute))
        from taskloom.relate import MeasureOptions, SurveyOptions, survey, write_survey

        options = SurveyOptions(measure, method, groups, overlap, repeats, measuring=MeasureOptions(seed=seed))
        with output_folder(out):
            with _spinner() as show:
                found = survey(data, options, show)
            page = write_survey(found, out)
    if json:
        print_json(found.to_json())
        return
    _print(found, page)
    question = {"--target": target, "--by": by, "--targets": targets, "--kind": kind, "--metric": metric, "--drop": drop}
    asked = opt.asked(file, question | {"--skip-tasks": skip_tasks}, impute=impute)
    if len(found.groups.sets) == 1:
        recipes, what = "joint", "one net of all tasks beats each task alone"
    else:
        recipes = "grouped,joint"
        what = "groups beat each task alone and all in one net, when chosen on training rows and judged on others"
    typer.echo(f"\nnext, whether {what}:")
    typer.echo(f"  {shlex.quote(own_name())} study {asked} --recipes {recipes} --seeds 10")


@contextmanager
def _spinner() -> Generator[Callable[[int, int, str], None] | None]:
    """What is done now, on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    with Console(stderr=True).status("reading") as status:
        yield lambda done, total, what: status.update(Text(f"{what} ({done + 1} of {total})"))


def _print(found: Survey, page: Path) -> None:
    console = Console()
    console.print(Text(found.about), soft_wrap=True)
    _print_groups(console, f"\nGroups by {found.affinity.measure}", found.rows())
    if not found.is_baseline and found.label_groups is not None:
        _print_groups(console, "Groups by the correlation of labels alone", found.rows(by_labels=True))
    for sentence in found.words():
        console.print(Text(sentence.replace("`", "")), soft_wrap=True)
    console.print(Text.assemble("\npictures: ", (str(page), "bold")), soft_wrap=True)


def _print_groups(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("group", "serves", "helped by"):
        table.add_column(name, justify="right" if name == "group" else "left")
    for row in rows:
        table.add_row(str(row["group"]), *(Text(", ".join(row[key]) or "-") for key in ("serves", "helped_by")))
    # A title of the table itself would be broken to the table's width.
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(table)
