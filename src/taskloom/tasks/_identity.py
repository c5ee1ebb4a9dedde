"""JSON-able pictures of settings, exact enough that two settings with one picture give the same numbers.

A cached result is found by such a picture. Functions and classes of the user's are told apart by name, by the file they stand
in, and by the values they hold.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

_OWN_PACKAGE = "taskloom."


def identify(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """A JSON-able picture of a value.

    Args:
        value: plain values, containers, dataclasses, functions, classes, objects.
        inside: ids of the objects that it was found in, so that a circle ends.

    Examples:
        >>> identify({"hidden": (8, 8), "rate": 0.1})
        {'hidden': [8, 8], 'rate': 0.1}
        >>> def make(width):
        ...     return lambda shape: width * shape
        >>> identify(make(2)) == identify(make(3))
        False
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in inside:
        return "(itself)"
    inside = (*inside, id(value))
    if isinstance(value, Mapping):
        return {str(key): identify(item, inside) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [identify(item, inside) for item in value]
        return sorted(items, key=repr) if isinstance(value, set | frozenset) else items
    return _identify_object(value, inside)


def _identify_object(value: Any, inside: tuple[int, ...]) -> Any:
    if isinstance(value, type | ModuleType):
        return identify_code(value) if isinstance(value, type) else value.__name__
    if isinstance(value, functools.partial):
        return {"partial": identify([value.func, value.args, value.keywords], inside)}
    if isinstance(value, FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        holds = identify([held, value.__defaults__, value.__kwdefaults__], inside)
        return {
            "function": identify_code(value),
            "line": value.__code__.co_firstlineno,
            "holds": holds,
            "code": _bytecode(value),
        }
    if inspect.ismethod(value):
        return {"method": identify([value.__func__, value.__self__], inside)}
    if hasattr(value, "__dict__"):
        fields = {name: identify(item, inside) for name, item in sorted(vars(value).items())}
        return {"type": identify_code(type(value)), **fields}
    return repr(value)


def identify_code(thing: type | FunctionType) -> str:
    """A name, and for code outside of this package a hash of the file it stands in.

    Examples:
        >>> from taskloom.tasks import Task
        >>> identify_code(Task)
        'taskloom.tasks._task.Task'
    """
    name = f"{thing.__module__}.{thing.__qualname__}"
    if name.startswith(_OWN_PACKAGE):
        return name
    try:
        # The whole file, not the one function: what it calls beside it matters as much.
        content = Path(inspect.getsourcefile(thing) or "").read_bytes()
    except (OSError, TypeError):
        # Typed in at a prompt: there is no file.
        members = (
            [thing] if isinstance(thing, FunctionType) else [m for m in vars(thing).values() if isinstance(m, FunctionType)]
        )
        content = "".join(_bytecode(member) for member in members).encode()
    return f"{name}#{hashlib.sha256(content).hexdigest()[:12]}"


def _bytecode(function: FunctionType) -> str:
    return hashlib.sha256(_code_bytes(function.__code__)).hexdigest()[:12]


def _code_bytes(code: CodeType) -> bytes:
    inner = [_code_bytes(const) if isinstance(const, CodeType) else repr(const).encode() for const in code.co_consts]
    return b"|".join([code.co_code, *inner, repr((code.co_names, code.co_varnames)).encode()])
