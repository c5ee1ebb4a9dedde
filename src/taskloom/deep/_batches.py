"""Rows of many tasks dealt out in steps, by a rule that depends on the seed and the step alone.

Letters: K tasks, n rows, R pools of rows (one a task, or one for all), B rows of each pool in a step, S steps of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskloom.tasks import DataError, TaskData

_BLOCK = 64
_CHUNK = 4096
_ROWS_AT_ONCE = 1 << 16


def check_part(name: str, part: TaskData, train: TaskData) -> None:
    """Refuse rows that nets of the training rows cannot be judged on.

    Raises:
        DataError: they are of other tasks, in another order, shared where those are not, or of another shape.
    """
    own, needed = (", ".join(task.name for task in each.tasks) for each in (part, train))
    if own != needed:
        raise DataError(f"`{name}` is of the tasks {own}; need {needed}, in this order")
    if part.is_shared != train.is_shared:
        kinds = ["shared rows" if each.is_shared else "own rows" for each in (part, train)]
        raise DataError(f"`{name}` has {kinds[0]} and `train` {kinds[1]}; split both from the same data")
    if part.X.shape[1:] != train.X.shape[1:]:
        raise DataError(f"`{name}` has rows of shape {part.X.shape[1:]}, `train` of {train.X.shape[1:]}; encode both alike")


class RowDealer:
    """Deals B rows of each of R pools to each step: every pool is shuffled, dealt out whole, and shuffled again.

    Small pools go round more often than large ones, so uneven tasks are served evenly. The rows of a step follow from the seed
    and the step number alone: a resumed fit needs no saved state, and every recipe of a study sees the same rows.

    Args:
        pools: R arrays of row numbers, none empty.
        batch_size: B.
        seed: of the shuffles.
        keys: R numbers that tell the pools' shuffles apart, so that a pool is dealt alike in any company; default 0 ... R - 1.

    Examples:
        >>> dealer = RowDealer([np.arange(4)], batch_size=2, seed=0)
        >>> sorted(torch.cat([dealer.rows(0), dealer.rows(1)], dim=1).ravel().tolist())
        [0, 1, 2, 3]
    """

    def __init__(self, pools: Sequence[NDArray[np.int64]], batch_size: int, seed: int, keys: Sequence[int] = ()) -> None:
        self.pools = [np.asarray(pool) for pool in pools]
        self.keys = list(keys) or list(range(len(pools)))
        self.batch_size, self.seed = batch_size, seed
        self._last: dict[int, tuple[int, NDArray[np.int64]]] = {}
        self._block: tuple[int, tuple[Tensor, ...]] | None = None

    def rows(self, step: int) -> Tensor:
        """Row numbers (R, B) of a step."""
        block, place = divmod(step, _BLOCK)
        if self._block is None or self._block[0] != block:
            dealt = np.stack([self._deal(r, block) for r in range(len(self.pools))], axis=1)
            self._block = (block, torch.from_numpy(dealt).unbind(0))
        return self._block[1][place]

    def _deal(self, r: int, block: int) -> NDArray[np.int64]:
        """Rows (S, B) of pool r: a stretch of an endless row of shuffles, cut from chunks that are made when needed."""
        pool, length = self.pools[r], _BLOCK * self.batch_size
        rounds = -(-_CHUNK // len(pool))
        per_chunk = rounds * len(pool)
        first, last = block * length // per_chunk, ((block + 1) * length - 1) // per_chunk
        chunks = []
        for chunk in range(first, last + 1):
            # A large pool's shuffle serves many blocks: the last one made is kept.
            if self._last.get(r, (-1,))[0] != chunk:
                rng = np.random.default_rng([self.seed, self.keys[r], chunk])
                self._last[r] = (chunk, rng.permuted(np.tile(pool, (rounds, 1)), axis=1).ravel())
            chunks.append(self._last[r][1])
        start = block * length - first * per_chunk
        return np.concatenate(chunks)[start : start + length].reshape(_BLOCK, self.batch_size)


class TaskTensors:
    """The rows and labels of K tasks on one device.

    Args:
        data: encoded: finite numbers only.
        dtype: of features and labels.
        device: where they go.

    Raises:
        DataError: features that are not finite.
    """

    def __init__(self, data: TaskData, dtype: torch.dtype, device: torch.device) -> None:
        if not np.isfinite(data.X).all():
            raise DataError("`X` holds missing or infinite values; encode it first with `FeatureEncoder`")
        self.data = data
        self.x = torch.as_tensor(data.X, dtype=dtype).to(device)
        self.y = torch.as_tensor(data.y, dtype=dtype).to(device)
        # Labels of one task lie side by side, for nets that each look at other rows.
        self._by_task = self.y.T.contiguous() if data.is_shared else self.y

    def shared(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, ...) and labels (K, B) of the rows (1, B)."""
        rows = rows[0].to(self.x.device)
        return self.x[rows], self.y[rows].T

    def own(self, rows: Tensor, nets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (M, B, ...) and labels (M, B) for nets of which net m learns task m mod K from rows (K, B) of its own.

        Args:
            rows: row numbers of each task.
            nets: (M,) numbers of the nets; None: one for each task.
        """
        tasks = torch.arange(len(rows)) if nets is None else nets % self.data.n_tasks
        place = (rows if nets is None else rows[tasks]).to(self.x.device)
        if self.data.is_shared:
            tasks = tasks.to(self.x.device)
            labels = self._by_task[tasks.unsqueeze(1), place]
        else:
            labels = self.y[place]
        return self.x[place], labels

    def is_complete(self) -> bool:
        """Whether no label is missing."""
        return not bool(self.y.isnan().any())

    def pools(self) -> list[NDArray[np.int64]]:
        """The labelled rows of each task."""
        return [self.data.rows(t) for t in range(self.data.n_tasks)]

    def all_shared(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All rows, some at a time, as `shared` gives them."""
        for start in range(0, len(self.x), _ROWS_AT_ONCE):
            yield self.x[start : start + _ROWS_AT_ONCE], self.y[start : start + _ROWS_AT_ONCE].T

    def all_own(self, nets: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """All labelled rows of every net's task, some at a time, as `own` gives them; padding has no label."""
        pools = self.pools()
        longest = max(len(pool) for pool in pools)
        padded: NDArray[Any] = np.stack([np.pad(pool, (0, longest - len(pool)), constant_values=-1) for pool in pools])
        rows = torch.from_numpy(padded)
        n_nets = len(rows) if nets is None else len(nets)
        width = max(1, _ROWS_AT_ONCE // n_nets)
        for start in range(0, longest, width):
            part = rows[:, start : start + width]
            x, labels = self.own(part.clamp(min=0), nets)
            is_padding = (part if nets is None else part[nets % len(part)]) < 0
            yield x, labels.masked_fill(is_padding.to(labels.device), torch.nan)
