"""What counts as a number where somebody gives an option."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from taskloom.tasks._errors import OptionError


def is_number(value: Any) -> bool:
    """Whether a value is one number, of Python's or of numpy's; True and False are none.

    Examples:
        >>> is_number(2.5), is_number(np.int64(3)), is_number(True), is_number("3")
        (True, True, False, False)
    """
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def is_whole(value: Any, least: int | None = None) -> bool:
    """Whether a value is a whole number, and at least so much if that is asked for; True and False are none.

    Examples:
        >>> is_whole(3, 1), is_whole(np.int64(0), 1), is_whole(2.5), is_whole(True)
        (True, False, False, False)
    """
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_integer and (least is None or bool(value >= least))


def are_flags(array: np.ndarray) -> bool:
    """Whether an array holds true and false, or 1 and 0, and nothing else.

    Examples:
        >>> are_flags(np.array([1, 0])), are_flags(np.array([0.5])), are_flags(np.array(["a"]))
        (True, False, False)
    """
    return array.dtype.kind in "biuf" and bool(((array == 0) | (array == 1)).all())


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number of at least so much.

    Args:
        name: of the option.
        value: that was given.
        least: that it may be.

    Raises:
        OptionError: names the option, the value and what to give.

    Examples:
        >>> check_whole("steps", 2.5)
        Traceback (most recent call last):
        ...
        taskloom.tasks._errors.OptionError: `steps`=2.5: give a whole number of at least 1
    """
    if not is_whole(value, least):
        raise OptionError(f"`{name}`={value!r}: give a whole number of at least {least}")


def check_positive(name: str, value: Any, otherwise: str = "") -> None:
    """Refuse what is no positive finite number.

    Args:
        name: of the option.
        value: that was given.
        otherwise: what else may be given, in words.

    Raises:
        OptionError: names the option, the value and what to give.

    Examples:
        >>> check_positive("rate", 0.0, ", or None")
        Traceback (most recent call last):
        ...
        taskloom.tasks._errors.OptionError: `rate`=0.0: give a positive number, or None
    """
    if not is_number(value) or not 0 < value < math.inf:
        raise OptionError(f"`{name}`={value!r}: give a positive number{otherwise}")
