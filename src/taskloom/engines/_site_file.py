"""What a site says of its own table, in a file that never leaves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from taskloom.engines._values import check_keys, word, words
from taskloom.engines._yaml import read_yaml
from taskloom.tasks import OptionError, unknown


@dataclass(frozen=True)
class SiteFile:
    """Where a site's rows are, and which columns are what.

    Attributes:
        site: its name in the job.
        data: CSV or Parquet file; a relative path counts from the folder of the file that names it.
        target: column of the labels; None for that of the job.
        by: column whose values name the tasks; None for that of the job. A site of one task needs none.
        targets: column of the labels of each task, where all tasks share the rows; then there is no `target` and no `by`.
        columns: that a job may choose, as features, or as `target` and `by` where this file does not say them; None for any.

    Examples:
        >>> read_site_file({"site": "north", "data": "north.csv", "target": "score", "by": "school"}).by
        'school'
    """

    site: str
    data: Path
    target: str | None = None
    by: str | None = None
    targets: Mapping[str, str] | None = None
    columns: tuple[str, ...] | None = None

    def check(self, tasks: Sequence[str], target: str | None, by: str | None) -> None:
        """Whether it is said which rows and labels are those of each task; the table is not looked at.

        Args:
            tasks: of the site.
            target: that of the job.
            by: that of the job.

        Raises:
            OptionError: it is not.
            UnknownNameError: `targets` names a task that the site has not; the nearest is named.
        """
        if self.targets is None:
            if self.target is None and target is None:
                raise OptionError(
                    f"site {self.site!r}: which column holds the labels? Give `target`, or `targets` of each task"
                )
            if self.by is None and by is None and len(tasks) > 1:
                raise OptionError(
                    f"site {self.site!r} has {len(tasks)} tasks: which column names them? Give `by`, or `targets`"
                )
            return
        for task in self.targets:
            if task not in tasks:
                raise unknown(f"task of site {self.site}", task, tasks)
        lacking = next((task for task in tasks if task not in self.targets), None)
        if lacking is not None:
            raise OptionError(f"`targets` of site {self.site!r} has no column for task {lacking!r}; name one")

    def to_dict(self) -> dict[str, Any]:
        """As `read_site_file` reads it; what is not given is left out."""
        values: dict[str, Any] = {"data": str(self.data), "target": self.target, "by": self.by}
        values["targets"] = None if self.targets is None else dict(self.targets)
        values["columns"] = None if self.columns is None else list(self.columns)
        return {"site": self.site} | {key: value for key, value in values.items() if value is not None}


SITE_KEYS = tuple(field.name for field in fields(SiteFile))


def read_site_file(source: str | Path | Mapping[str, Any], folder: str | Path | None = None) -> SiteFile:
    """What SITE.yml says, checked; whether the table is there is not.

    Args:
        source: path of the file, or what it holds.
        folder: that relative paths count from; default the file's own, or the one that the program runs in.

    Raises:
        OptionError: a value that cannot be.
        UnknownNameError: a key that there is not.
    """
    if not isinstance(source, Mapping):
        folder, source = Path(source).parent if folder is None else folder, read_yaml(Path(source))
    check_keys(source, SITE_KEYS, "a site's file")
    given = {key: value for key, value in source.items() if value is not None}
    for key in ("site", "data"):
        if key not in given:
            raise OptionError(f"`{key}` is missing; a site's file names its `site` and its `data`")
    return table_of(word("site", given.pop("site")), given, Path(folder or "."))


def table_of(site: str, given: Mapping[str, Any], folder: Path) -> SiteFile:
    """The table of a site from its keys, but for the site's name."""
    where = f"sites.{site}"
    if not isinstance(given.get("data"), str | Path) or not str(given["data"]) or "\0" in str(given["data"]):
        raise OptionError(f"`{where}.data`={given.get('data')!r}: need the path of a CSV or Parquet file")
    named = {key: word(f"{where}.{key}", given[key]) for key in ("target", "by") if given.get(key) is not None}
    targets = _targets(f"{where}.targets", given.get("targets"))
    if targets is not None and named:
        raise OptionError(f"`{where}`: `targets` comes without `target` and `by`; give either")
    columns = None if given.get("columns") is None else words(f"{where}.columns", given["columns"])
    return SiteFile(site, (folder / given["data"]).resolve(), targets=targets, columns=columns, **named)


def _targets(key: str, value: Any) -> dict[str, str] | None:
    """Columns by task; a list names columns that are called like their tasks."""
    if value is None:
        return None
    if isinstance(value, Mapping) and value:
        return {word(key, task): word(f"{key}.{task}", column) for task, column in value.items()}
    return {name: name for name in words(key, value)}
