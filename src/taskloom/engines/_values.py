"""Checks of what stands in a file: each names the key, the value found and the remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taskloom.tasks import OptionError, is_number, is_whole, unknown


def check_keys(given: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    """Refuse keys that mean nothing.

    Raises:
        UnknownNameError: a key that there is not; the nearest is named.
    """
    known = list(known)
    for key in given:
        if key not in known:
            raise unknown(f"key of {where}", str(key), known)


def whole(key: str, value: Any, least: int = 1) -> int:
    """A whole number.

    Examples:
        >>> whole("max_updates", 10)
        10
    """
    if not is_whole(value, least):
        raise OptionError(f"`{key}`={value!r}: need a whole number of at least {least}")
    return int(value)


def number(key: str, value: Any, *, zero: bool = False, most: float = np.inf) -> float:
    """A finite number above 0, or with `zero` of 0 or more, and of no more than `most`."""
    if not is_number(value) or not 0 <= value < np.inf or (value == 0 and not zero) or value > most:
        bound = "" if most == np.inf else f" and of at most {most:g}"
        raise OptionError(f"`{key}`={value!r}: need a number {'of 0 or more' if zero else 'above 0'}{bound}")
    return float(value)


def finite(key: str, value: Any) -> float:
    """Any finite number."""
    if not is_number(value) or not np.isfinite(value):
        raise OptionError(f"`{key}`={value!r}: need a number")
    return float(value)


def flag(key: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise OptionError(f"`{key}`={value!r}: need true or false")
    return value


def word(key: str, value: Any) -> str:
    """A text that is not empty; numbers are names as well."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise OptionError(f"`{key}`={value!r}: need a name")
    return str(value)


def plain(value: Any) -> Any:
    """As JSON has it: lists for arrays, numbers of Python for those of NumPy.

    Examples:
        >>> plain({"graph": {"affinity": np.eye(2)}, "max_updates": np.int64(5)})
        {'graph': {'affinity': [[1.0, 0.0], [0.0, 1.0]]}, 'max_updates': 5}
    """
    if isinstance(value, Mapping):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def folder_name(key: str, value: Any) -> str | Path:
    """The path of a folder."""
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise OptionError(f"`{key}`={value!r}: need the path of a folder")
    return value


def repeated(names: Iterable[str]) -> str | None:
    """The first name that comes twice."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def words(key: str, value: Any) -> tuple[str, ...]:
    """Names that differ from each other."""
    if isinstance(value, str) or not isinstance(value, list | tuple) or not value:
        raise OptionError(f"`{key}`={value!r}: need a list of names, such as [a, b]")
    names = tuple(word(key, each) for each in value)
    twice = repeated(names)
    if twice is not None:
        raise OptionError(f"`{key}` names {twice!r} twice; name it once")
    return names
