"""The best groups of few tasks, exactly: a subset dynamic programme.

h(T) is the most that one group can be worth to the tasks T that it serves, and the answer is the best partition of all tasks
into at most b blocks by h. Sets are bit masks.

Letters: K tasks, A (K, K) gains, S a group, T the tasks that it serves, b groups, h (2^K,) best worth of each T.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from taskloom.relate._arrays import Members
from taskloom.tasks import Array, Rows

# Masks of so many bits are paired by a table of 3^9 rows, which stays in the fastest cache.
_LEAF = 9
# Rows worked on at once.
_CHUNK = 1 << 15


def best_supersets(gains: Array, alone: Array, served: Members) -> tuple[Array, Members]:
    """For tasks that are to be served together, the best group that holds them, when gains are means over the other members.

    The group's worth is (gains within T + those of T from the other members) / (size - 1), so that for each size the best
    others are those of which T has most: a sort in place of a search of all supersets.

    Args:
        gains: (K, K), diagonal 0, row = receiver.
        alone: (K,) worth of groups of one.
        served: (M, K), not empty.

    Returns:
        (M,) worth and (M, K) the group.
    """
    M, K = served.shape
    worth, groups = np.empty(M), np.empty((M, K), dtype=bool)
    for start in range(0, M, _CHUNK):
        rows = slice(start, start + _CHUNK)
        worth[rows], groups[rows] = _best_supersets(gains, alone, served[rows])
    return worth, groups


def _best_supersets(gains: Array, alone: Array, T: Members) -> tuple[Array, Members]:
    n = T.sum(axis=1)
    given = T.astype(np.float64) @ gains
    within = np.where(T, given, 0.0).sum(axis=1)
    # Members of T sort last and are never added.
    order = np.argsort(np.where(T, np.inf, -given), axis=1, kind="stable")
    added = np.take_along_axis(np.where(T, -np.inf, given), order, axis=1)
    totals = np.cumsum(np.column_stack([within, added]), axis=1)
    totals /= np.maximum(n[:, None] - 1 + np.arange(totals.shape[1]), 1)
    single = n == 1
    totals[single, 0] = alone[T[single].argmax(axis=1)]
    extra = totals.argmax(axis=1)
    groups = T.copy()
    np.put_along_axis(groups, order, np.take_along_axis(T, order, axis=1) | (np.arange(T.shape[1]) < extra[:, None]), axis=1)
    return totals[np.arange(len(T)), extra], groups


def worth_of_table(values: Array, overlap: bool) -> Array:
    """(2^K,) h of every T out of a table of all groups.

    Args:
        values: (2^K, K), -inf where a group cannot serve a task, or is not there.
        overlap: whether a group may hold tasks that it does not serve.
    """
    size, K = values.shape
    if not overlap:
        masked = np.where(np.arange(size)[:, None] >> np.arange(K) & 1, values, 0.0)
        return masked.sum(axis=1)
    h = np.full(size, -np.inf)
    low = min(K, _LEAF)
    served, helped, _, _ = _splits(low)
    # Ordered by T, so that the best S of each T is a run.
    order = np.argsort(served, kind="stable")
    served, group = served[order], (served | helped)[order]
    starts = np.searchsorted(served, np.arange(1 << low))
    bits = [np.flatnonzero(served >> i & 1) for i in range(low)]
    for top in range(size >> low):
        rows = values[top << low : (top + 1) << low]
        within = np.zeros(len(group))
        for i, places in enumerate(bits):
            within[places] += rows[group[places], i]
        subset = top
        while True:
            base = sum((rows[:, low + i] for i in range(K - low) if subset >> i & 1), np.zeros(1 << low))
            best = np.maximum.reduceat(base[group] + within, starts)
            part = h[subset << low : (subset + 1) << low]
            np.maximum(part, best, out=part)
            if not subset:
                break
            subset = (subset - 1) & top
    return h


def best_partition(h: Array, b: int) -> list[int]:
    """Masks of at most b blocks that cover all tasks once and have the greatest sum of h; none where that is -inf.

    The blocks of a set are those of two of its parts, so that b blocks take about log2(b) rounds of 3^K / 2 steps each.

    Args:
        h: (2^K,); that of the empty set is taken as 0.
        b: at least 1.
    """
    h = h.copy()
    h[0] = 0.0
    layers = {1: h}
    everything = len(h) - 1
    blocks = _blocks(layers, everything, min(b, max(everything.bit_length(), 1)))
    return [] if np.isinf(h[blocks]).any() else blocks


def _blocks(layers: dict[int, Array], tasks: int, b: int) -> list[int]:
    """The best blocks of a set of tasks, found again from the layers' values."""
    if not tasks:
        return []
    if b == 1:
        return [tasks]
    first, second = _halves(b)
    own = subsets(tasks)
    own = own[own >= 1 << (tasks.bit_length() - 1)]
    worth = _layer(layers, first)[own] + _layer(layers, second)[tasks ^ own]
    chosen = int(own[worth.argmax()])
    return _blocks(layers, chosen, first) + _blocks(layers, tasks ^ chosen, second)


def _halves(b: int) -> tuple[int, int]:
    """Two counts of blocks that make b: the greatest power of two below it and the rest, so that few layers are needed."""
    first = 1 << ((b - 1).bit_length() - 1)
    return first, b - first


def _layer(layers: dict[int, Array], b: int) -> Array:
    """(2^K,) worth of the best partition of every set into at most b blocks."""
    if b not in layers:
        first, second = _halves(b)
        layers[b] = _join(_layer(layers, first), _layer(layers, second))
    return layers[b]


def _join(f: Array, g: Array) -> Array:
    """Of every U the greatest f(T) + g(U without T); T holds the highest bit of U, for either part may be called T."""
    out = np.empty_like(f)
    out[0] = f[0] + g[0]
    for k in range(len(f).bit_length() - 1):
        out[1 << k : 2 << k] = _convolve(f[1 << k : 2 << k], g[: 1 << k])
    return out


def _convolve(f: Array, g: Array) -> Array:
    """Of every U the greatest f(T) + g(U without T) over all T in U: 3^k steps."""
    half = len(f) // 2
    if len(f) <= 1 << _LEAF:
        first, second, _, starts = _splits(len(f).bit_length() - 1)
        return np.maximum.reduceat(f.take(first) + g.take(second), starts)
    with_top = np.maximum(_convolve(f[half:], g[:half]), _convolve(f[:half], g[half:]))
    return np.concatenate([_convolve(f[:half], g[:half]), with_top])


@cache
def _splits(k: int) -> tuple[Rows, Rows, Rows, Rows]:
    """All 3^k pairs of masks that do not meet, ordered by their union; the unions, and where the run of each begins."""
    first, second = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for i in range(k):
        first, second = np.concatenate([first, first | 1 << i, first]), np.concatenate([second, second, second | 1 << i])
    order = np.argsort(first | second, kind="stable")
    first, second = first[order], second[order]
    return first, second, first | second, np.searchsorted(first | second, np.arange(1 << k))


def subsets(mask: int) -> Rows:
    """All subsets of a mask."""
    out = np.zeros(1, dtype=np.int64)
    for i in range(mask.bit_length()):
        if mask >> i & 1:
            out = np.concatenate([out, out | 1 << i])
    return out


def masks(members: Members) -> Rows:
    """(M,) bit masks of (M, K) members."""
    return members @ (1 << np.arange(members.shape[1], dtype=np.int64))
