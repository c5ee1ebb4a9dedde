"""What an AdaTask optimizer is told beside learning rates: its tasks, their weights, how their directions are joined.

Letters: K tasks, P shared parameters.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

import numpy as np
from torch import Tensor

from taskloom.deep._aggregators import Aggregator
from taskloom.tasks import OptionError, is_number, is_whole, unknown

REDUCTIONS = ("sum", "mean", "rsqrt")
KERNELS = ("auto", "fused", "foreach", "loop")
Weights = Sequence[float] | Mapping[str, float]


class LossWeightsWarning(UserWarning):
    """Loss weights were given to an AdaTask optimizer, where they do nothing.

    Examples:
        >>> import warnings
        >>> import torch
        >>> from taskloom.deep import AdaTaskAdam
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     optimizer = AdaTaskAdam([torch.nn.Parameter(torch.ones(2))], ["a", "b"], loss_weights={"a": 10.0})
        >>> caught[0].category is LossWeightsWarning, "task_weights" in str(caught[0].message)
        (True, True)
    """


class Joining(TypedDict, total=False):
    """Keyword arguments that every AdaTask optimizer takes beside those of its torch twin.

    Attributes:
        reduction: `sum` of the K normalised directions (the paper), their `mean`, or the sum over the root of K (`rsqrt`).
            K counts all tasks, absent ones too: what one task moves does not hang on which others are in the batch.
        task_weights: factors of the normalised directions, in the order of the tasks or by name (1 where a name is missing).
        loss_weights: weights of the losses, as other methods take them. They would do nothing for shared parameters, and are
            not applied: a `LossWeightsWarning` says why.
        aggregator: maps the normalised directions, a matrix with a row for each task in the step and P columns, to one
            direction (P,), in place of `reduction`. The aggregators of torchjd are such callables. What one that is a module
            remembers is a part of the optimizer's state.
        kernel: `fused`, `foreach`, or `loop` over parameters, as torch's own optimizers have them; `auto` takes the fastest.
        data_parallel: process group over which gradients are averaged, True or None for all processes (None: only if
            torch.distributed runs), False for none.
    """

    reduction: Literal["sum", "mean", "rsqrt"]
    task_weights: Weights | None
    loss_weights: Any
    aggregator: Aggregator | None
    kernel: Literal["auto", "fused", "foreach", "loop"]
    data_parallel: Any


@dataclass(frozen=True)
class Settings:
    """The same as `Joining`, checked.

    Raises:
        OptionError: a value outside of what it may be.
        UnknownNameError: an unknown reduction or kernel.
    """

    reduction: str = "sum"
    task_weights: Weights | None = None
    loss_weights: Any = None
    aggregator: Aggregator | None = None
    kernel: str = "auto"
    data_parallel: Any = None

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise unknown("reduction", self.reduction, REDUCTIONS)
        if self.kernel not in KERNELS:
            raise unknown("kernel", self.kernel, KERNELS)
        if self.aggregator is not None and not callable(self.aggregator):
            raise OptionError(f"`aggregator`={self.aggregator!r}: give a callable that maps a (K, P) matrix to a vector (P,)")
        if self.aggregator is not None and self.reduction != "sum":
            raise OptionError(
                f"`reduction`={self.reduction!r} with an `aggregator`: the aggregator joins the directions; leave one out"
            )
        if self.loss_weights is not None:
            warnings.warn(
                f"`loss_weights`={self.loss_weights!r} would do nothing for shared parameters and are not applied: each task's "
                "gradient is divided by its own size, and a factor in front of the loss is divided out with it; give "
                "`task_weights`, which act after that",
                LossWeightsWarning,
                stacklevel=5,
            )

    def factor(self, n_tasks: int) -> float:
        """What the sum of K normalised directions is multiplied by.

        Examples:
            >>> Settings(reduction="rsqrt").factor(4)
            0.5
        """
        return {"sum": 1.0, "mean": 1 / n_tasks, "rsqrt": 1 / math.sqrt(n_tasks)}[self.reduction]


def settings_of(joining: Joining) -> Settings:
    """Settings out of keyword arguments.

    Raises:
        UnknownNameError: there is no such argument, such as one of the torch twin that has no meaning here.
        OptionError: see `Settings`.

    Examples:
        >>> settings_of({"reduction": "mean"}).reduction
        'mean'
    """
    known = [option.name for option in fields(Settings)]
    strange = next((name for name in joining if name not in known), None)
    if strange is not None:
        raise unknown("option", strange, known)
    return Settings(**joining)


def task_names(tasks: int | Sequence[str]) -> list[str]:
    """Names of the tasks; a number K stands for `0`, `1`, ..., `K-1`.

    Raises:
        OptionError: no task, a name twice, or a name that is no text.

    Examples:
        >>> task_names(2)
        ['0', '1']
    """
    if not is_whole(tasks, 1) and (isinstance(tasks, str) or not isinstance(tasks, Iterable)):
        raise OptionError(f"`tasks`={tasks!r}: give a number of at least 1 or a list of names")
    names = list(tasks) if isinstance(tasks, Iterable) else [str(k) for k in range(tasks)]
    strange = [name for name in names if not isinstance(name, str) or not name]
    if strange or not names:
        raise OptionError(f"`tasks`={names!r}: give at least one name, each a text that is not empty")
    if len(set(names)) < len(names):
        raise OptionError(f"`tasks`={names!r}: a name occurs twice; give each task its own")
    twin = next((name for name in names if f"sq_{name}" in names), None)
    if twin is not None:
        raise OptionError(
            f"`tasks`={names!r}: `sq_{twin}` beside `{twin}` makes `exp_avg_sq_{twin}` mean two things; rename one"
        )
    return names


def weights_of(weights: Weights | None, names: Sequence[str]) -> list[float]:
    """One weight for each task.

    Raises:
        OptionError: as many weights as tasks are needed, finite and not negative.
        UnknownNameError: a weight of an unknown task.

    Examples:
        >>> weights_of({"b": 0.5}, ["a", "b"])
        [1.0, 0.5]
    """
    if weights is None:
        return [1.0] * len(names)
    if isinstance(weights, Mapping):
        strange = next((name for name in weights if name not in names), None)
        if strange is not None:
            raise unknown("task", str(strange), names)
        given = [weights.get(name, 1.0) for name in names]
    else:
        given = list(weights) if isinstance(weights, Iterable) else []
    if len(given) != len(names):
        raise OptionError(f"`task_weights`={weights!r}: give one for each of the {len(names)} tasks")
    if not all(_is_at_least_zero(weight) for weight in given):
        raise OptionError(f"`task_weights`={weights!r}: give finite numbers that are not negative")
    return [float(weight) for weight in given]


def _is_at_least_zero(value: Any) -> bool:
    """Whether a value is one finite number of at least 0, in whatever form: a learning rate may be a tensor."""
    is_one = is_number(value) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0)
    return is_one and math.isfinite(value) and float(value) >= 0


def check_group(group: dict[str, Any]) -> None:
    """Refuse values of a parameter group that no update can be made of.

    Raises:
        OptionError: of the first such value.
    """
    for name in ("lr", "eps", "weight_decay", "lr_decay"):
        value = group.get(name, 0.0)
        if not _is_at_least_zero(value):
            raise OptionError(f"`{name}`={value!r}: give a finite number that is not negative")
    betas = group.get("betas", (0.0, 0.0))
    if not (isinstance(betas, Sequence) and len(betas) == 2 and all(_is_at_least_zero(beta) and beta < 1 for beta in betas)):
        raise OptionError(f"`betas`={betas!r}: give two numbers from 0 to below 1")
    alpha = group.get("alpha", 0.0)
    if not (_is_at_least_zero(alpha) and alpha < 1):
        raise OptionError(f"`alpha`={alpha!r}: give a number from 0 to below 1")
    if not isinstance(group["shared"], bool):
        raise OptionError(f"`shared`={group['shared']!r}: give True for parameters that tasks share, False for the others")
    for weight in group["params"]:
        _check_parameter(weight)


def _check_parameter(weight: Tensor) -> None:
    shape = tuple(weight.shape)
    if not weight.is_floating_point():
        raise OptionError(f"`params` has one of shape {shape} and type {weight.dtype}: only real floating types can be trained")
    if hasattr(weight, "device_mesh") or hasattr(weight, "_fsdp_flattened"):
        raise OptionError(
            f"`params` has one of shape {shape} that is sharded over processes (FSDP): a per-task gradient never exists in "
            "whole there; replicate the module (DistributedDataParallel) instead"
        )
