"""Options that several commands share, and the table that they name."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from taskloom.tasks import TableOptions, TaskData


def whole(value: str | int) -> int:
    """A whole number out of an option.

    Raises:
        typer.BadParameter: it is something else.
    """
    try:
        return int(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is no whole number") from None


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
Budget = Annotated[
    int,
    typer.Option("--budget", help="Candidates that every recipe may try on validation rows.", parser=whole, metavar="INTEGER"),
]
Json = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON, for machines.")]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", help="Run the fits on Ray: local, auto, HOST:PORT or ray://HOST:PORT.", show_default=False),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Train everything afresh and keep nothing.")]
Jobs = Annotated[int, typer.Option("--n-jobs", help="Fits at once; -1 for all cores.", parser=whole, metavar="INTEGER")]
Seeds = Annotated[
    int,
    typer.Option("--seeds", help="Splits to repeat everything on; 3 or more for a verdict.", parser=whole, metavar="INTEGER"),
]


def split_names(text: str | None) -> list[str]:
    """Names out of an option like `A,B,"C,D"`.

    Examples:
        >>> split_names('a, b,"c,d"')
        ['a', 'b', 'c,d']
    """
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True)) if name.strip()] if text else []


def named(option: str, text: str | None) -> list[str] | None:
    """The names of an option that may be left away, but not be empty.

    Raises:
        OptionError: it is given without a name, as a shell variable that is not set gives it.

    Examples:
        >>> named("--recipes", None), named("--recipes", "ridge")
        (None, ['ridge'])
    """
    from taskloom.tasks import OptionError

    names = split_names(text)
    if text is not None and not names:
        raise OptionError(f"`{option}` is empty; name at least one, or leave the option away")
    return names or None


def table_options(kind: str | None, metric: str | None, drop: str | None, skip_tasks: str | None, impute: bool) -> TableOptions:
    """How to read the table."""
    from taskloom.tasks import TableOptions

    return TableOptions(kind, metric, split_names(drop), split_names(skip_tasks), impute)


def read_tasks(file: Path, target: str | None, by: str | None, targets: str | None, options: TableOptions) -> TaskData:
    """The table as tasks.

    Raises:
        OptionError: `--targets` without a name, and what `read_table` refuses.
    """
    from taskloom.tasks import read_table

    return read_table(file, target=target, by=by, targets=named("--targets", targets), options=options)


def asked(
    file: Path,
    question: Mapping[str, str | None],
    *,
    impute: bool = True,
) -> str:
    """A table and the options that it was read with, as they are typed.

    Examples:
        >>> asked(Path("t.csv"), {"--target": "cost", "--by": "age group", "--kind": None})
        "t.csv --target cost --by 'age group'"
    """
    given = [part for name, value in question.items() if value is not None for part in (name, value)]
    return shlex.join([str(file), *given, *([] if impute else ["--no-impute"])])


@contextmanager
def cluster_of(address: str | None) -> Generator[None]:
    """Where joblib runs its work: on Ray, where an address is given."""
    if address is None:
        yield
        return
    from taskloom.engines import ray_backend

    with ray_backend(None if address == "local" else address, called="--cluster"):
        yield
