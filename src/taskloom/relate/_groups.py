"""Which tasks learn together: the groups that were chosen, and the group that serves each task.

Letters: K tasks.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from taskloom.relate._affinity import plain
from taskloom.tasks import DataError, Rows, unknown, write_file

FORMAT, VERSION = "taskloom groups", 1


@dataclass(frozen=True)
class Groups:
    """Sets of tasks that are trained together, and which of them serves each task.

    A set may hold a task that another set serves: then it only helps there.

    Attributes:
        tasks: K names.
        sets: tuples of names, in the order of `tasks`.
        serves: for each task the place in `sets` of the group that serves it.
        values: for each task its gain in that group, larger is better; NaN where it is not known.
        method: that chose them.
        bound: no choice among the groups that were considered has a greater value; NaN where nothing bounds it.
        exact: whether every group that may be formed was considered.
        costs: of each set; none where they are not known.
        seconds: of the clock.

    Raises:
        DataError: a set with a name that is no task, or a task that no set serves, or one that does not hold it.

    Examples:
        >>> groups = Groups(("a", "b", "c"), (("a", "b"), ("b", "c")), {"a": 0, "b": 0, "c": 1}, {"a": 0.5, "b": 0.2, "c": 0.1})
        >>> groups
        2 groups of 3 tasks, value 0.8
          1  a, b
          2  c, helped by b
        >>> groups.serving("c"), groups.labels.tolist()
        (('b', 'c'), [0, 0, 1])
    """

    tasks: tuple[str, ...]
    sets: tuple[tuple[str, ...], ...]
    serves: dict[str, int]
    values: dict[str, float]
    method: str = "given"
    bound: float = math.nan
    exact: bool = False
    costs: tuple[float, ...] = ()
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in (name for each in self.sets for name in each):
            if name not in self.tasks:
                raise DataError(f"`sets` holds {name!r}, which is none of the {len(self.tasks)} tasks; name tasks only")
        for task in self.tasks:
            place = self.serves.get(task, -1)
            if not 0 <= place < len(self.sets) or task not in self.sets[place]:
                raise DataError(f"`serves` gives {task!r} no set that holds it; every task needs one")

    @property
    def value(self) -> float:
        """Sum of the gains of all tasks."""
        return math.fsum(self.values[task] for task in self.tasks)

    @property
    def cost(self) -> float:
        """Of all sets together; NaN where it is not known."""
        return math.fsum(self.costs) if self.costs else math.nan

    @property
    def gap(self) -> float:
        """By how much the bound exceeds the value, as a share of the value's size; NaN where there is no bound."""
        if math.isnan(self.bound) or math.isnan(self.value):
            return math.nan
        return max(self.bound - self.value, 0.0) / max(abs(self.value), 1e-12)

    @property
    def labels(self) -> Rows:
        """(K,) place of the set that serves each task, in the order of the tasks."""
        return np.array([self.serves[task] for task in self.tasks])

    def serving(self, task: str) -> tuple[str, ...]:
        """The set that serves a task.

        Raises:
            UnknownNameError: there is no such task.
        """
        if task not in self.serves:
            raise unknown("task", task, self.tasks)
        return self.sets[self.serves[task]]

    def served(self, place: int) -> tuple[str, ...]:
        """The tasks that a set serves; its other members only help."""
        return tuple(task for task in self.sets[place] if self.serves[task] == place)

    def __repr__(self) -> str:
        """A line for every set."""
        n = len(self.sets)
        head = f"{n} group{'s' * (n != 1)} of {len(self.tasks)} tasks"
        head += "" if self.method == "given" else f" by {self.method}"
        head += "" if math.isnan(self.value) else f", value {self.value:.4g}"
        if not math.isnan(self.gap):
            scope = "" if self.exact else " of the candidates"
            head += f", the best{scope}" if self.gap < 1e-6 else f", at most {self.gap:.2%} below the best{scope}"
        lines = [head]
        for place, names in enumerate(self.sets):
            served = self.served(place)
            helpers = ", ".join(name for name in names if name not in served)
            lines.append(f"  {place + 1}  {', '.join(served) or 'none'}" + (f", helped by {helpers}" if helpers else ""))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; NaN becomes None."""
        return {
            "tasks": list(self.tasks),
            "sets": [list(each) for each in self.sets],
            "serves": dict(self.serves),
            "values": {task: _known(value) for task, value in self.values.items()},
            "method": self.method,
            "exact": self.exact,
            "costs": list(self.costs),
            "bound": _known(self.bound),
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """Out of what `to_dict` gave."""
        given = {task: saved["values"][task] for task in saved["tasks"]}
        values = {task: math.nan if value is None else float(value) for task, value in given.items()}
        return cls(
            tuple(saved["tasks"]),
            tuple(tuple(each) for each in saved["sets"]),
            {task: int(place) for task, place in saved["serves"].items()},
            values,
            saved["method"],
            math.nan if saved["bound"] is None else float(saved["bound"]),
            bool(saved["exact"]),
            tuple(map(float, saved["costs"])),
            float(saved["seconds"]),
        )

    def save(self, path: str | Path) -> None:
        """Write them to a JSON file.

        Raises:
            OutputError: it cannot be written.
        """
        content = {"format": FORMAT, "version": VERSION, **self.to_dict()}
        write_file(Path(path), json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=plain) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: there is no such file, or it is none of these.
        """
        try:
            saved = json.loads(Path(path).read_text(encoding="utf-8"))
            is_ours = (saved["format"], saved["version"]) == (FORMAT, VERSION)
            groups = cls.from_dict(saved) if is_ours else None
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"`path`='{path}' holds no saved groups ({error}); give a file that `Groups.save` wrote") from error
        if groups is None:
            raise DataError(f"`path`='{path}' holds no groups of version {VERSION}; choose them anew with this taskloom")
        return groups


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
