"""The type of arrays that say who is in a group, and what is refused as such.

Letters: K tasks, G groups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taskloom.tasks import DataError, are_flags

# (G, K), or (K,) of one group.
Members = NDArray[np.bool_]


def check_members(name: str, given: ArrayLike, n_tasks: int | None = None) -> Members:
    """(G, K) of groups that are given as true and false, or as 1 and 0; numbers of rows or tasks are none.

    Args:
        name: of the parameter.
        given: groups.
        n_tasks: K that is needed; None: any.

    Raises:
        DataError: another shape, or values that say something else.
    """
    members = np.asarray(given)
    if members.ndim != 2 or not members.size or members.shape[1] != (n_tasks or members.shape[1]):
        raise DataError(f"`{name}` has shape {members.shape}; need (G, {n_tasks or 'K'}), true where a task is in a group")
    if not are_flags(members):
        raise DataError(f"`{name}` holds other values than true and false (or 1 and 0); need one for each group and task")
    return members.astype(bool)
