"""Table files and dataframes opened as one kind of frame (narwhals), with one clear sentence when they cannot be."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import polars as pl

from taskloom.tasks._errors import DataError

Frame = nw.DataFrame[Any]
MISSING_MARKS = ["NA", "N/A", "NaN", "nan", "NULL", "null", "None", "?"]
_PARQUET_MAGIC = b"PAR1"


def open_table(source: Any) -> Frame:
    """A frame out of a CSV or Parquet file, or out of any eager dataframe that narwhals knows.

    The separator of a text file (comma, semicolon or tab) is found from its header. Empty fields and the marks in
    `MISSING_MARKS` are missing values.

    Args:
        source: path of a file, or a dataframe (polars, pandas, pyarrow, ...).

    Raises:
        DataError: no such file, or one that is empty, truncated or not a table; two columns of one name.
    """
    if isinstance(source, str | os.PathLike):
        frame = _open_file(Path(source))
    else:
        try:
            frame = nw.from_native(source, eager_only=True)
        except TypeError as error:
            raise DataError(f"`source` is a {type(source).__name__}; give a path or a dataframe") from error
    if frame.shape[0] == 0 or frame.shape[1] == 0:
        raise DataError(f"`source`={_name(source)}: the table has no rows; give one with a header and rows")
    return frame


def _name(source: Any) -> str:
    return f"'{source}'" if isinstance(source, str | os.PathLike) else type(source).__name__


def _open_file(path: Path) -> Frame:
    if not path.is_file():
        raise DataError(f"`source`='{path}': no such file")
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if not head.strip():
        raise DataError(f"`source`='{path}': the file is empty")
    if head.startswith(_PARQUET_MAGIC) or path.suffix.lower() in {".parquet", ".pq"}:
        return nw.from_native(_read_parquet(path), eager_only=True)
    return nw.from_native(_read_text(path, head), eager_only=True)


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"`source`='{path}': not a whole Parquet file ({_first_line(error)}); write it again") from error


def _read_text(path: Path, head: bytes) -> pl.DataFrame:
    try:
        header = head.decode("utf-8-sig", errors="strict" if len(head) < 1 << 16 else "ignore").splitlines()[0]
    except UnicodeDecodeError:
        header = "\0"
    if "\0" in header or b"\0" in head:
        raise DataError(f"`source`='{path}': not a table; give a CSV file in UTF-8, a Parquet file or a dataframe")
    separator = max(",;\t", key=header.count)
    columns = next(csv.reader([header], delimiter=separator))
    if len(columns) < 2:
        raise DataError(f"`source`='{path}': the header has one column ({header[:60]!r}); a table of tasks needs two or more")
    repeated = next((name for name in columns if columns.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"`source`='{path}': two columns are named `{repeated}`; rename one")
    _check_last_line(path, separator, len(columns))
    try:
        return pl.read_csv(
            path, separator=separator, null_values=["", *MISSING_MARKS], infer_schema_length=None, try_parse_dates=True
        )
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise DataError(f"`source`='{path}': not a table ({_first_line(error)}); correct that line") from error


def _check_last_line(path: Path, separator: str, n_columns: int) -> None:
    """A file cut off in the middle of a row would otherwise be read with its last fields missing."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        lines = file.read().decode("utf-8", errors="ignore").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    if len(next(csv.reader([last], delimiter=separator))) == n_columns:
        return
    # A quoted field with a line break also looks short; only then is the whole file worth a slow, exact look.
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.reader(file, delimiter=separator), start=1):
            if row and len(row) != n_columns:
                raise DataError(
                    f"`source`='{path}': row {number} has {len(row)} fields, the header {n_columns}; "
                    "the file is truncated or that row is damaged"
                )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
