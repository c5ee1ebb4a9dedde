"""What a task is: a name, a kind, a loss and a metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from taskloom.tasks._errors import DataError, OptionError, unknown
from taskloom.tasks._metrics import DEFAULT_METRIC, Metric, get_metric

KINDS = ("regression", "binary", "multiclass")
LOSSES = {"regression": ("squared",), "binary": ("logistic",), "multiclass": ("cross_entropy",)}


@dataclass(frozen=True)
class Task:
    """One prediction task.

    Attributes:
        name: unique among the tasks of one data set.
        kind: `regression`, `binary` or `multiclass`.
        classes: the label values of a classification task in the order of their codes 0, 1, ...; empty for regression.
        loss: what is minimised; empty picks the kind's first: `squared`, `logistic` or `cross_entropy`.
        metric: what is reported; empty picks `r2`, `auc` or `accuracy`.

    Raises:
        OptionError: an unknown kind, or a number of classes that the kind cannot have.
        UnknownNameError: an unknown loss or metric.

    Examples:
        >>> task = Task("readmitted", "binary", classes=("no", "yes"))
        >>> task.loss, task.metric, task.n_outputs
        ('logistic', 'auc', 1)
    """

    name: str
    kind: str = "regression"
    classes: tuple[Any, ...] = ()
    loss: str = ""
    metric: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(value.item() if hasattr(value, "item") else value for value in self.classes))
        if self.kind not in KINDS:
            raise unknown("kind of task", self.kind, KINDS)
        self._check_classes()
        object.__setattr__(self, "loss", self.loss or LOSSES[self.kind][0])
        object.__setattr__(self, "metric", self.metric or DEFAULT_METRIC[self.kind])
        if self.loss not in LOSSES[self.kind]:
            raise unknown(f"loss for a {self.kind} task", self.loss, LOSSES[self.kind])
        if self.kind not in get_metric(self.metric).kinds:
            raise OptionError(
                f"`metric`={self.metric!r} cannot score task `{self.name}` of kind {self.kind}; "
                f"use one for that kind, for example {DEFAULT_METRIC[self.kind]!r}"
            )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Task:
        """The task whose fields these are, as `dataclasses.asdict` gives them and JSON brings them back."""
        return cls(value["name"], value["kind"], tuple(value["classes"]), value["loss"], value["metric"])

    def _check_classes(self) -> None:
        default = {"regression": (), "binary": (0, 1)}.get(self.kind)
        if not self.classes and default is not None:
            object.__setattr__(self, "classes", default)
        n_classes = len(self.classes)
        valid = {"regression": n_classes == 0, "binary": n_classes == 2, "multiclass": n_classes > 2}
        if not valid[self.kind]:
            raise OptionError(
                f"`classes`={self.classes!r} of task `{self.name}`: a {self.kind} task needs "
                f"{ {'regression': 'none', 'binary': 'two', 'multiclass': 'three or more'}[self.kind] }"
            )

    @property
    def n_outputs(self) -> int:
        """Numbers a model gives for one row: C for `multiclass`, else 1."""
        return len(self.classes) if self.kind == "multiclass" else 1

    @property
    def scorer(self) -> Metric:
        """The metric itself."""
        return get_metric(self.metric)


def check_task_names(tasks: Iterable[Task]) -> None:
    """Refuse two tasks of one name.

    Raises:
        DataError: names the repeated one.
    """
    repeated = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if repeated:
        raise DataError(f"`tasks`: two tasks are named `{repeated[0]}`; give each task its own name")
