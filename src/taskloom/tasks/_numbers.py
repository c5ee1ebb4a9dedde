"""What counts as a number where somebody gives an option."""

from __future__ import annotations

from typing import Any

import numpy as np


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
