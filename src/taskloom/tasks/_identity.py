"""JSON-able pictures of settings, exact enough that two settings with one picture give the same numbers.

A cached result is found by such a picture. Functions and classes of the user's are told apart by name, by the file they stand
in, and by the values they hold.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import uuid
from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PurePath
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

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
    if isinstance(value, functools.partial) or inspect.ismethod(value):
        parts = [value.__func__, value.__self__] if inspect.ismethod(value) else [value.func, value.args, value.keywords]
        return {"bound": identify(parts, inside)}
    if isinstance(value, FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        holds = identify([held, value.__defaults__, value.__kwdefaults__, _globals_of(value)], inside)
        return {
            "function": identify_code(value),
            "line": value.__code__.co_firstlineno,
            "holds": holds,
            "code": _bytecode(value),
        }
    if hasattr(value, "state_dict") or hasattr(value, "detach") or isinstance(value, np.ndarray):
        return _identify_numbers(value, inside)
    if hasattr(value, "__dict__"):
        fields = {name: identify(item, inside) for name, item in sorted(vars(value).items())}
        return {"type": identify_code(type(value)), **fields}
    # Of anything else nothing is known: a picture that is never found again keeps a wrong result from being shown.
    is_plain = isinstance(value, bytes | complex | range | Enum | PurePath)
    return repr(value) if is_plain else f"({type(value).__qualname__}, not identified, {uuid.uuid4().hex})"


def _identify_numbers(value: Any, inside: tuple[int, ...]) -> Any:
    """Arrays by their bytes; modules by class and weights. Tensors are met without importing torch."""
    if hasattr(value, "state_dict"):
        return {"type": identify_code(type(value)), "text": repr(value), "state": identify(value.state_dict(), inside)}
    array = value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
    content = np.ascontiguousarray(array).tobytes() if array.dtype != object else repr(array.tolist()).encode()
    return f"{array.dtype}{array.shape}#{hashlib.sha256(content).hexdigest()[:12]}"


def _globals_of(function: FunctionType) -> dict[str, Any]:
    """Values around a function that it names: constants and settings, and functions of its own module."""
    found = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    return {
        name: value
        for name, value in sorted(found.items())
        if not isinstance(value, ModuleType | type) and getattr(value, "__module__", function.__module__) == function.__module__
    }


def _names(code: CodeType) -> set[str]:
    return set(code.co_names).union(*(_names(const) for const in code.co_consts if isinstance(const, CodeType)))


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
