"""How K tasks relate: a matrix with a direction, a sign convention, and what it cost.

Letters: K tasks, A (K, K) affinity, row = receiver, column = source.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from taskloom.tasks import Array, DataError, is_number, unknown, write_file

if TYPE_CHECKING:
    import plotly.graph_objects as go

FORMAT, VERSION = "taskloom affinity", 1


@dataclass(frozen=True)
class Cost:
    """What a measure took, in passes over one row of one net: a forward pass is 1, a backward pass 2 units of work.

    Attributes:
        forwards: rows passed forward.
        backwards: rows passed backward, for each loss.
        seconds: of the clock.
        trainings: nets trained to their end.

    Examples:
        >>> (Cost(forwards=10) + Cost(backwards=5, seconds=1.0)).units
        20
    """

    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    trainings: int = 0

    @property
    def units(self) -> int:
        """Forward passes that it amounts to."""
        return self.forwards + 2 * self.backwards

    def __add__(self, other: Cost) -> Cost:
        """Of both."""
        return Cost(
            self.forwards + other.forwards,
            self.backwards + other.backwards,
            self.seconds + other.seconds,
            self.trainings + other.trainings,
        )


@dataclass(frozen=True, eq=False)
class Affinity:
    """How much task j (column, the source) helps task i (row, the receiver), as a measure sees it.

    Attributes:
        values: (K, K), NaN where nothing is known; the diagonal plays no part unless `has_own`. A copy that cannot be written.
        tasks: K names.
        measure: that gave it.
        higher_is_better: False for distances.
        has_own: whether the diagonal is a task's gain on its own.
        zero: the value at which learning together neither helps nor hurts; None where only the order means something.
        unrelated: the value of two tasks that have nothing in common, such as 0 of a cosine; None where the measure knows none.
        cost: of the measure.
        stability: correlation of the off-diagonal values measured on two halves of the data; NaN where that was not done.
        notes: what its reader should know.

    Raises:
        DataError: values that are no (K, K) matrix of the K tasks, infinite, names that are not unique, or a `zero` or an
            `unrelated` that is no finite number.

    Examples:
        >>> affinity = Affinity(np.array([[0.0, 0.4], [0.2, 0.0]]), ["sun", "rain"], "labels")
        >>> affinity["sun", "rain"], affinity.is_symmetric
        (0.4, False)
    """

    values: Array
    tasks: Sequence[str]
    measure: str = "own"
    higher_is_better: bool = True
    has_own: bool = False
    zero: float | None = None
    cost: Cost = field(default_factory=Cost)
    stability: float = np.nan
    notes: Sequence[str] = ()
    unrelated: float | None = None

    def __post_init__(self) -> None:
        # A copy that nobody writes to: what was checked stays so.
        values = np.array(self.values, dtype=np.float64)
        values.setflags(write=False)
        tasks, K = [str(name) for name in self.tasks], len(self.tasks)
        if values.shape != (K, K) or not K:
            raise DataError(f"`values` has shape {values.shape} for {K} tasks; need (K, K), row = receiver, column = source")
        if np.isinf(values).any():
            i, j = np.argwhere(np.isinf(values))[0]
            raise DataError(f"`values` of {tasks[i]!r} from {tasks[j]!r} is infinite; use NaN where nothing is known")
        twice = next((name for name in tasks if tasks.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"`tasks` names {twice!r} twice; give each task a name of its own")
        for name, level in {"zero": self.zero, "unrelated": self.unrelated}.items():
            if level is not None and not (is_number(level) and math.isfinite(level)):
                raise DataError(f"`{name}`={level!r}; need a finite number in units of the values, or None")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "tasks", tasks)

    def __getitem__(self, pair: tuple[str, str]) -> float:
        """Of a receiver and a source, by name."""
        for name in pair:
            if name not in self.tasks:
                raise unknown("task", name, self.tasks)
        return float(self.values[self.tasks.index(pair[0]), self.tasks.index(pair[1])])

    @property
    def n_tasks(self) -> int:
        """K."""
        return len(self.tasks)

    @property
    def is_symmetric(self) -> bool:
        """Whether direction makes no difference."""
        off = ~np.eye(self.n_tasks, dtype=bool)
        return bool(np.allclose(self.values[off], self.values.T[off], equal_nan=True))

    @property
    def gains(self) -> Array:
        """(K, K), larger is better, whatever the measure's own sign."""
        return self.values if self.higher_is_better else -self.values

    @property
    def off_diagonal(self) -> Array:
        """(K (K - 1),) values of pairs of two tasks, row by row."""
        return self.values[~np.eye(self.n_tasks, dtype=bool)]

    @property
    def both_ways(self) -> Array:
        """(K, K) symmetric: the mean of both directions, the one that is known, or NaN."""
        filled = np.where(np.isnan(self.values), self.values.T, self.values)
        return (filled + filled.T) / 2

    def excess(self, level: float) -> Array:
        """(K, K) symmetric: by how much tasks are more alike than at this value, 0 where less, unknown and on the diagonal.

        Args:
            level: in units of the values.

        Examples:
            >>> Affinity(np.array([[0.0, 0.4], [0.2, 0.0]]), ["sun", "rain"]).excess(0.1).round(2).tolist()
            [[0.0, 0.2], [0.2, 0.0]]
        """
        above = self.both_ways - level if self.higher_is_better else level - self.both_ways
        out = np.maximum(np.nan_to_num(above), 0.0)
        np.fill_diagonal(out, 0.0)
        return out

    def similarity(self) -> Array:
        """(K, K) symmetric, from 0 to 1, 1 on the diagonal: weights of a graph, or what a clusterer takes.

        Distances a become exp(-a / median); other values are averaged over both directions and scaled so that the least is 0
        and the greatest 1, pairs that are not known count as the least. Constant values give 1 everywhere.
        """
        both, off = self.both_ways, ~np.eye(self.n_tasks, dtype=bool)
        known = both[off & ~np.isnan(both)]
        out = np.ones_like(both)
        if not len(known) or known.max() == known.min():
            return out
        if not self.higher_is_better and known.min() >= 0 and np.median(known) > 0:
            out[off] = np.exp(-both[off] / np.median(known))
        else:
            gains = both if self.higher_is_better else -both
            low, high = np.nanmin(gains[off]), np.nanmax(gains[off])
            out[off] = (gains[off] - low) / (high - low)
        return np.nan_to_num(out, nan=0.0)

    def filled(self) -> Affinity:
        """The same where pairs that are not known count as the least gain that is, and a note says how many those are.

        `similarity` does so too; `select` refuses what is not known.

        Raises:
            DataError: no pair is known.

        Examples:
            >>> Affinity(np.array([[0.0, np.nan], [0.2, 0.0]]), ["sun", "rain"]).filled()["sun", "rain"]
            0.2
        """
        missing = np.isnan(self.values) & ~np.eye(self.n_tasks, dtype=bool)
        if not missing.any():
            return self
        if missing.sum() == self.n_tasks * (self.n_tasks - 1):
            raise DataError(f"`{self.measure}` knows no pair of the {self.n_tasks} tasks, all are NaN; take another measure")
        worst = (np.nanmin if self.higher_is_better else np.nanmax)(self.off_diagonal)
        note = f"{missing.sum()} of {self.n_tasks * (self.n_tasks - 1)} pairs are not known and count as the least gain"
        return replace(self, values=np.where(missing, worst, self.values), notes=[*self.notes, note])

    def relation(self) -> Array:
        """(K, K) gains from -1 to 1 with their direction, 1 on the diagonal: what a heat map beside others can show.

        Gains are divided by the greatest of them, up or down from `zero`, which becomes 0; where only their order means
        something, the least becomes -1 and the greatest 1. Constant gains are 0, pairs that are not known are the least.

        Examples:
            >>> Affinity(np.array([[0.0, 0.4], [-0.2, 0.0]]), ["sun", "rain"], zero=0.0).relation()
            array([[ 1. ,  1. ],
                   [-0.5,  1. ]])
        """
        off = ~np.eye(self.n_tasks, dtype=bool)
        known = self.gains[off & ~np.isnan(self.gains)]
        out = np.eye(self.n_tasks)
        if not len(known):
            return out
        if self.zero is not None:
            middle = self.zero if self.higher_is_better else -self.zero
            reach = float(np.abs(known - middle).max())
        else:
            middle, reach = (known.max() + known.min()) / 2, float(np.ptp(known)) / 2
        if reach > 0:
            out[off] = (np.nan_to_num(self.gains[off], nan=float(known.min())) - middle) / reach
        return out.clip(-1.0, 1.0)

    def weights(self, tasks: Sequence[str] | None = None) -> Array:
        """(K, K) symmetric weights from 0 to 1, 0 on the diagonal: the graph that `taskloom.linear.Graph` takes.

        A graph pulls together and never pushes apart. So where the measure has a `zero`, tasks that hurt each other, in the
        mean of both directions, are not joined, as are those that nothing is known of; other gains are divided by the greatest.
        Where only the order means something the weights are those of `similarity`.

        Args:
            tasks: all names in the order that is wanted, such as `tasks_` of a fitted model; None: the affinity's own.

        Raises:
            DataError: other names than the affinity's.

        Examples:
            >>> A = np.array([[0.0, 0.4, -0.2], [0.2, 0.0, 0.1], [0.0, 0.2, 0.0]])
            >>> Affinity(A, ["sun", "rain", "wind"], zero=0.0).weights().round(2)
            array([[0. , 1. , 0. ],
                   [1. , 0. , 0.5],
                   [0. , 0.5, 0. ]])
        """
        names = list(self.tasks) if tasks is None else [str(name) for name in tasks]
        if sorted(names) != sorted(self.tasks):
            raise DataError(f"`tasks` are {', '.join(names)}; need {', '.join(self.tasks)} in any order")
        out = self.similarity() if self.zero is None else self.excess(self.zero)
        np.fill_diagonal(out, 0.0)
        order = [list(self.tasks).index(name) for name in names]
        return out[np.ix_(order, order)] / (out.max() or 1.0)

    def agreement(self, other: Affinity) -> float:
        """Correlation of the gains of the pairs that both know; NaN where one is constant.

        Raises:
            DataError: it is of other tasks.
        """
        if list(other.tasks) != list(self.tasks):
            raise DataError(f"`other` is of tasks {', '.join(other.tasks)}; need {', '.join(self.tasks)}")
        off = ~np.eye(self.n_tasks, dtype=bool) & ~np.isnan(self.values) & ~np.isnan(other.values)
        mine, theirs = self.gains[off], other.gains[off]
        if len(mine) < 2 or mine.std() == 0 or theirs.std() == 0:
            return np.nan
        return float(np.corrcoef(mine, theirs)[0, 1])

    def with_stability(self, stability: float) -> Affinity:
        """The same with its stability known."""
        return replace(self, stability=stability)

    def save(self, path: str | Path) -> None:
        """Write it to one safetensors file, with the rest as JSON in its head.

        Raises:
            OutputError: the file cannot be written.
        """
        head = {
            "tasks": list(self.tasks),
            "measure": self.measure,
            "higher_is_better": self.higher_is_better,
            "has_own": self.has_own,
            "zero": self.zero,
            "unrelated": self.unrelated,
            "cost": vars(self.cost),
            "stability": None if np.isnan(self.stability) else self.stability,
            "notes": list(self.notes),
        }
        metadata = {"format": FORMAT, "version": str(VERSION), "head": json.dumps(head, default=plain)}
        write_file(Path(path), save_arrays({"values": np.ascontiguousarray(self.values)}, metadata))

    @classmethod
    def load(cls, path: str | Path) -> Affinity:
        """Read what `save` wrote.

        Raises:
            DataError: there is no such file, or it is none of these.
        """
        try:
            with safe_open(Path(path), framework="numpy") as file:
                metadata, values = file.metadata() or {}, file.get_tensor("values")
            head: dict[str, Any] = json.loads(metadata["head"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise DataError(
                f"`path`='{path}' is no saved affinity ({error}); give a file that `Affinity.save` wrote"
            ) from error
        if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
            raise DataError(f"`path`='{path}' is no affinity of version {VERSION}; measure it anew with this taskloom")
        try:
            head["cost"], stability = Cost(**head["cost"]), head.pop("stability")
            return cls(values, stability=np.nan if stability is None else stability, **head)
        except (KeyError, TypeError) as error:
            raise DataError(f"`path`='{path}' is a damaged affinity ({error}); measure it anew") from error

    def plot(self) -> go.Figure:
        """A heat map, tasks that are alike beside each other."""
        from taskloom.relate._pictures import heat_map

        return heat_map(self)


def plain(value: Any) -> Any:
    """A number of numpy's as one of Python's, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is nothing that JSON can hold")


def as_affinity(given: Affinity | Array, tasks: Sequence[str] | None = None) -> Affinity:
    """An affinity out of a plain (K, K) array of gains, row = receiver; one that is given is taken as it is.

    Raises:
        DataError: the array is not square, or holds infinity.
    """
    if isinstance(given, Affinity):
        return given
    values = np.asarray(given, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise DataError(f"`affinity` has shape {values.shape}; need (K, K), row = receiver, column = source")
    return Affinity(values, [f"task {t + 1}" for t in range(len(values))] if tasks is None else tasks)
