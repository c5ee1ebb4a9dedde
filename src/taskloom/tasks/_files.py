"""Table files and dataframes opened as one kind of frame (narwhals), with one clear sentence when they cannot be."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import polars as pl

from taskloom.tasks._errors import DataError

Frame = nw.DataFrame[Any]
MISSING_MARKS = ["NA", "N/A", "NaN", "nan", "NULL", "null", "None", "?"]
_PARQUET_MAGIC = b"PAR1"


def open_table(source: Any, as_text: Collection[str] = ()) -> Frame:
    """A frame out of a CSV or Parquet file, or out of any eager dataframe that narwhals knows.

    The separator of a text file (comma, semicolon or tab) is found from its header. Empty fields and the marks in
    `MISSING_MARKS` are missing values.

    Args:
        source: path of a file, or a dataframe (polars, pandas, pyarrow, ...).
        as_text: columns of a text file to take as they stand, whatever they look like.

    Raises:
        DataError: no such file, a folder or a stream, or a file that is empty, truncated or not a table; two columns of one
            name.
    """
    frame = _open_file(Path(source), as_text) if isinstance(source, str | os.PathLike) else _open_frame(source)
    if frame.shape[0] == 0 or frame.shape[1] == 0:
        raise DataError(f"`source`={_name(source)}: the table has no rows; give one with a header and rows")
    return frame


def _open_frame(source: Any) -> Frame:
    try:
        frame = nw.from_native(source, eager_only=True)
        names = list(frame.columns)
    except TypeError as error:
        raise DataError(f"`source` is a {type(source).__name__}; give a path or a dataframe") from error
    except nw.exceptions.NarwhalsError as error:
        raise DataError(f"`source`={type(source).__name__}: {_first_line(error)}") from error
    odd = next((name for name in names if not isinstance(name, str)), None)
    if odd is not None:
        raise DataError(f"`source`={type(source).__name__}: column name {odd!r} is no text; rename it")
    return frame


def _name(source: Any) -> str:
    return f"'{source}'" if isinstance(source, str | os.PathLike) else type(source).__name__


def check_file(path: Path) -> None:
    """Make sure that a table's file is there, before any work is done.

    Raises:
        DataError: it is not there, or is a folder or a stream.
    """
    if not path.is_file():
        is_stream = path.exists() or str(path) == "-"
        what = "a stream; only files are read: write it to one" if is_stream else "no such file"
        raise DataError(f"`source`='{path}': {'a folder, not a file' if path.is_dir() else what}")


def _open_file(path: Path, as_text: Collection[str]) -> Frame:
    check_file(path)
    try:
        with path.open("rb") as file:
            head = file.readline() + file.read(1 << 16)
    except OSError as error:
        raise DataError(f"`source`='{path}': cannot be read ({error.strerror})") from error
    if not head.strip():
        raise DataError(f"`source`='{path}': the file is empty")
    if head.startswith(_PARQUET_MAGIC) or path.suffix.lower() in {".parquet", ".pq"}:
        return nw.from_native(_read_parquet(path), eager_only=True)
    return nw.from_native(_read_text(path, head, as_text), eager_only=True)


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"`source`='{path}': not a whole Parquet file ({_first_line(error)}); write it again") from error


def _read_text(path: Path, head: bytes, as_text: Collection[str]) -> pl.DataFrame:
    try:
        header = next(line for line in head.splitlines() if line.strip()).decode("utf-8-sig")
    except UnicodeDecodeError:
        header = "\0"
    if "\0" in header or b"\0" in head:
        raise DataError(f"`source`='{path}': not a table; give a CSV file in UTF-8, a Parquet file or a dataframe")
    separator = max(",;\t", key=header.count)
    columns = [name.strip() for name in next(csv.reader([header], delimiter=separator))]
    if len(columns) < 2:
        raise DataError(f"`source`='{path}': the header has one column ({header[:60]!r}); a table of tasks needs two or more")
    repeated = next((name for name, count in Counter(columns).items() if count > 1), None)
    if repeated is not None:
        raise DataError(f"`source`='{path}': two columns are named `{repeated}`; rename one")
    _check_last_line(path, separator, len(columns))
    text = {name: pl.String for name in columns if name in as_text}
    marks = ["", *MISSING_MARKS]
    try:
        frame = pl.read_csv(
            path, separator=separator, null_values=marks, infer_schema_length=None, try_parse_dates=True, new_columns=columns,
            schema_overrides=text,
        )  # fmt: skip
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise DataError(f"`source`='{path}': not a table ({_first_line(error)}); correct that line") from error
    if frame.height and frame[:, -1].null_count():
        # A row that is too short is read with its last fields missing, so only where some are missing can there be one.
        _check_every_line(path, separator, len(columns))
    return frame


def _check_last_line(path: Path, separator: str, n_columns: int) -> None:
    """A file cut off in the middle of a row would otherwise be read with its last fields missing."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        lines = file.read().decode("utf-8", errors="ignore").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    if len(next(csv.reader([last], delimiter=separator))) == n_columns:
        return
    # A quoted field with a line break also looks short: only the exact look tells.
    _check_every_line(path, separator, n_columns)


def _check_every_line(path: Path, separator: str, n_columns: int) -> None:
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.reader(file, delimiter=separator), start=1):
            if row and len(row) != n_columns:
                raise DataError(
                    f"`source`='{path}': row {number} has {len(row)} fields, the header {n_columns}; "
                    "the file is truncated or that row is damaged"
                )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
