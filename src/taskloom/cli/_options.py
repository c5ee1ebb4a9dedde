"""Options that several commands share."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer

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
NoCache = Annotated[bool, typer.Option("--no-cache", help="Train everything afresh and keep nothing.")]
Jobs = Annotated[int, typer.Option("--n-jobs", help="Fits at once; -1 for all cores.")]


def split_names(text: str | None) -> list[str]:
    """Names out of an option like `A,B,"C,D"`.

    Examples:
        >>> split_names('a, b,"c,d"')
        ['a', 'b', 'c,d']
    """
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True)) if name.strip()] if text else []
