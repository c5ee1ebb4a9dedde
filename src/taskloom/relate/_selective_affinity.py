"""The affinity that selective task groups keep while they train, with the direction and the signs of this room.

Letters: K tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taskloom.deep import SelectiveGroups
from taskloom.relate._affinity import Affinity
from taskloom.tasks import DataError


def tracked(groups: SelectiveGroups, tasks: Sequence[str] | None = None) -> Affinity:
    """What `SelectiveGroups` saw of its own updates: how much each task's updates lowered the loss of each, relative to it.

    Jeong & Yoon (ICLR 2025) measure it on the way, so that it costs no pass of its own but for probes of a single group and
    what `measure_last` asks for. There rows are sources and columns targets; here, as everywhere in this room, rows receive. A
    pair that was never seen is NaN, whatever the step itself holds for it (0 with `compat="official"`); `Affinity.filled` gives
    `select` something to go by. Means are decayed, so what was seen lately counts most; tasks in one group cannot be told apart
    by it.

    Args:
        groups: that has trained.
        tasks: K names, where the step was given none, as in a `fit`; `task 1`, ... by default.

    Returns:
        Not symmetric; 0 is no effect. The diagonal, what a task's updates did to its own loss, plays no part: it is no gain of
        learning alone. Notes say how often pairs were seen, and how many never; `groups.observations.T` are the counts.

    Raises:
        DataError: it has seen no batch yet, or but one task; names that are not K.

    Examples:
        >>> import torch
        >>> net, x = torch.nn.Linear(3, 2), torch.eye(3)
        >>> groups = SelectiveGroups(torch.optim.SGD(net.parameters(), lr=0.1), tasks=["sun", "rain"])
        >>> for _ in range(3):
        ...     losses = groups.step(lambda: (net(x) - 1.0).square().mean(dim=0))
        >>> tracked(groups)["sun", "rain"]
        0.0
    """
    K = groups.n_tasks or 0
    counts = groups.observations.T
    if K < 2 or not counts.size:
        raise DataError(f"`groups` has seen {counts.shape[0]} tasks; run some batches of two tasks or more first")
    values = np.where(counts > 0, groups.affinity.T, np.nan)
    names = tasks or [f"task {name + 1}" if isinstance(name, int) else str(name) for name in groups.names]
    off = counts[~np.eye(K, dtype=bool)]
    notes = [f"each pair was seen {off.min():,} to {off.max():,} times in {groups.costs.batches:,} batches"]
    if not off.all():
        notes.append(f"{(off == 0).sum()} of {off.size} pairs were never seen and are NaN")
    return Affinity(values, names, "selective", zero=0.0, notes=notes)
