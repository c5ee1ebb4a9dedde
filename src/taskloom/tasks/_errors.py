"""Errors a user can cause, and the search for the name that was probably meant."""

from __future__ import annotations

import csv
import difflib
import io
import shlex
from collections.abc import Iterable, Mapping


class TaskloomError(ValueError):
    """Base of every error that bad input causes; the message names the parameter, the value and the remedy."""


class DataError(TaskloomError):
    """The table, the arrays or the labels cannot be used as they are."""


class OptionError(TaskloomError):
    """An option has a value outside of what it may be."""


class UnknownNameError(TaskloomError):
    """A name (of a recipe, a column, a metric, a task) that does not exist."""


class ModelFileError(TaskloomError):
    """A saved model that is missing, damaged or of another format version."""


class OutputError(TaskloomError):
    """A folder or file that cannot be written."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Say which of the known names was probably meant, else list them.

    Args:
        name: what was asked for.
        known: the names that exist.

    Returns:
        A sentence to append to an error message.

    Examples:
        >>> nearest_name("rigde", ["ridge", "joint"])
        'did you mean `ridge`?'
        >>> nearest_name("zzz", ["ridge", "joint"])
        'known: `ridge`, `joint`.'
    """
    names = [str(option) for option in known]
    lowered = {option.lower(): option for option in names}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{lowered[close[0]]}`?"
    shown = ", ".join(f"`{option}`" for option in names[:12])
    return f"known: {shown}{', ...' if len(names) > 12 else '.'}"


def unknown(what: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for an unknown name, with the nearest known one.

    Examples:
        >>> str(unknown("recipe", "jiont", ["joint", "single"]))
        'no recipe named `jiont`; did you mean `joint`?'
    """
    return UnknownNameError(f"no {what} named `{name}`; {nearest_name(name, known)}")


def refused_tasks(faults: Mapping[str, str]) -> DataError:
    """The error for tasks that cannot be learned: what the first one lacks, and the option that leaves them all out.

    Args:
        faults: what is wrong with a task, by the task's name; at least one.

    Examples:
        >>> print(refused_tasks({"a": "task `a` is constant", "b, c": "task `b, c` is constant"}))
        ... # doctest: +NORMALIZE_WHITESPACE
        task `a` is constant, and 1 more task cannot be used; correct them or leave them out (`skip_tasks`, or
        `--skip-tasks 'a,"b, c"'` beside those left out already)
    """
    first, more = next(iter(faults.values())), len(faults) - 1
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(faults)
    rest = f", and {more} more task{'s' if more > 1 else ''} cannot be used" if more else ""
    what = "them" if more else "it"
    option = f"--skip-tasks {shlex.quote(line.getvalue())}"
    beside = " beside those left out already"
    return DataError(f"{first}{rest}; correct {what} or leave {what} out (`skip_tasks`, or `{option}`{beside})")
