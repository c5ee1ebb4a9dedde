"""Options that several commands share, and the table that they name."""

from __future__ import annotations

import csv
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from taskloom.tasks import TableOptions, TaskData

TableFile = Annotated[Path, typer.Argument(metavar="FILE", help="CSV or Parquet file.", show_default=False)]
Target = Annotated[str | None, typer.Option("--target", help="Target column; comes with --by.", show_default=False)]
By = Annotated[str | None, typer.Option("--by", help="Column whose values name the tasks: own rows.", show_default=False)]
Targets = Annotated[
    str | None, typer.Option("--targets", help="Target columns A,B,C, a task each: shared rows.", show_default=False)
]
Kind = Annotated[
    str | None, typer.Option("--kind", help="regression, binary or multiclass, where the guess is wrong.", show_default=False)
]
MetricName = Annotated[
    str | None, typer.Option("--metric", help="Metric of all tasks: r2, rmse, auc, accuracy, ...", show_default=False)
]
Drop = Annotated[str | None, typer.Option("--drop", help="Columns A,B,C that are no features.", show_default=False)]
SkipTasks = Annotated[str | None, typer.Option("--skip-tasks", help="Tasks A,B,C to leave out.", show_default=False)]
Impute = Annotated[bool, typer.Option("--impute/--no-impute", help="Fill missing features, or refuse them.")]
Budget = Annotated[int, typer.Option("--budget", help="Candidates that every recipe may try on validation rows.")]
Json = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON, for machines.")]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", help="Run the fits on Ray: local, auto, HOST:PORT or ray://HOST:PORT.", show_default=False),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Train everything afresh and keep nothing.")]
Jobs = Annotated[int, typer.Option("--n-jobs", help="Fits at once; -1 for all cores.")]


def split_names(text: str | None) -> list[str]:
    """Names out of an option like `A,B,"C,D"`.

    Examples:
        >>> split_names('a, b,"c,d"')
        ['a', 'b', 'c,d']
    """
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True)) if name.strip()] if text else []


def table_options(kind: str | None, metric: str | None, drop: str | None, skip_tasks: str | None, impute: bool) -> TableOptions:
    """How to read the table."""
    from taskloom.tasks import TableOptions

    return TableOptions(kind, metric, split_names(drop), split_names(skip_tasks), impute)


def read_tasks(file: Path, target: str | None, by: str | None, targets: str | None, options: TableOptions) -> TaskData:
    """The table as tasks.

    Raises:
        OptionError: `--targets` without a name, and what `read_table` refuses.
    """
    from taskloom.tasks import OptionError, read_table

    names = split_names(targets)
    if targets is not None and not names:
        raise OptionError("`--targets` is empty; name at least one column")
    return read_table(file, target=target, by=by, targets=names or None, options=options)


@contextmanager
def cluster_of(address: str | None) -> Generator[None]:
    """Where joblib runs its work: on Ray, where an address is given."""
    if address is None:
        yield
        return
    from taskloom.engines import ray_backend

    with ray_backend(None if address == "local" else address):
        yield
