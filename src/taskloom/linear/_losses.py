"""Losses of one row: value, derivatives, convex conjugate. Everything else about a loss follows from these.

Letters: y label, z score, u slope (an argument of the conjugate).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from scipy.special import expit, xlogy

from taskloom.tasks import Array, OptionError, unknown

LabelKind = Literal["real", "sign", "count"]


class Loss(ABC):
    """phi(y, z), convex and differentiable in the score z.

    Attributes:
        name: what `loss=` knows it by.
        labels: `real` numbers, `sign` (-1 or +1) or `count` (0, 1, 2, ...).
        curvature: the greatest second derivative in z; infinite where there is none.
        unit: factor that puts losses of different kinds on one scale (`balance`): with it the derivative at z = 0 is -y,
            as in MTLComb (Cao, Schwarz & others 2024, arXiv 2405.09886), so that one strength serves mixed tasks.
    """

    name: ClassVar[str]
    labels: ClassVar[LabelKind] = "real"
    curvature: ClassVar[float] = 1.0
    unit: ClassVar[float] = 1.0

    @abstractmethod
    def value(self, y: Array, z: Array) -> Array:
        """phi(y, z) of each row."""

    @abstractmethod
    def derivative(self, y: Array, z: Array) -> Array:
        """D phi / dz of each row."""

    @abstractmethod
    def second(self, y: Array, z: Array) -> Array:
        """d2 phi / dz2 of each row (an element of the generalised one at a kink of the derivative)."""

    @abstractmethod
    def conjugate(self, y: Array, u: Array) -> Array:
        """phi*(y, u) = sup_z u z - phi(y, z) of each row; infinite outside of its domain."""


@dataclass(frozen=True)
class Squared(Loss):
    """Half the squared error, (y - z)^2 / 2.

    Examples:
        >>> Squared().value(np.array([1.0]), np.array([3.0]))
        array([2.])
    """

    name: ClassVar[str] = "squared"

    def value(self, y: Array, z: Array) -> Array:
        return 0.5 * (z - y) ** 2

    def derivative(self, y: Array, z: Array) -> Array:
        return z - y

    def second(self, y: Array, z: Array) -> Array:  # noqa: ARG002
        return np.ones_like(z)

    def conjugate(self, y: Array, u: Array) -> Array:
        return 0.5 * u**2 + u * y


@dataclass(frozen=True)
class Logistic(Loss):
    """Log loss of a label of -1 or +1, log(1 + exp(-y z)).

    Examples:
        >>> Logistic().value(np.array([1.0]), np.array([0.0])).round(4)
        array([0.6931])
    """

    name: ClassVar[str] = "logistic"
    labels: ClassVar[LabelKind] = "sign"
    curvature: ClassVar[float] = 0.25
    unit: ClassVar[float] = 2.0

    def value(self, y: Array, z: Array) -> Array:
        return np.logaddexp(0.0, -y * z)

    def derivative(self, y: Array, z: Array) -> Array:
        return -y * expit(-y * z)

    def second(self, y: Array, z: Array) -> Array:  # noqa: ARG002
        p = expit(z)
        return p * (1 - p)

    def conjugate(self, y: Array, u: Array) -> Array:
        p = -y * u
        inside = np.clip(p, 0.0, 1.0)
        value = xlogy(inside, inside) + xlogy(1 - inside, 1 - inside)
        return np.where(np.abs(p - inside) > 1e-12, np.inf, value)


@dataclass(frozen=True)
class Huber(Loss):
    """Half the squared error up to `width`, linear beyond: outliers in y pull with a bounded force (Huber 1964).

    Attributes:
        width: error at which it turns linear, in the units of y.

    Examples:
        >>> Huber(width=1.0).value(np.array([0.0, 0.0]), np.array([0.5, 3.0]))
        array([0.125, 2.5  ])
    """

    width: float = 1.35
    name: ClassVar[str] = "huber"

    def __post_init__(self) -> None:
        if not isinstance(self.width, int | float | np.number) or not 0 < self.width < np.inf:
            raise OptionError(f"`width`={self.width!r}: need a positive number, in the units of y")

    def value(self, y: Array, z: Array) -> Array:
        error = np.abs(z - y)
        return np.where(error <= self.width, 0.5 * error**2, self.width * (error - 0.5 * self.width))

    def derivative(self, y: Array, z: Array) -> Array:
        return np.clip(z - y, -self.width, self.width)

    def second(self, y: Array, z: Array) -> Array:
        return (np.abs(z - y) <= self.width).astype(z.dtype)

    def conjugate(self, y: Array, u: Array) -> Array:
        return np.where(np.abs(u) > self.width * (1 + 1e-12), np.inf, 0.5 * u**2 + u * y)


@dataclass(frozen=True)
class Poisson(Loss):
    """Negative log-likelihood of a count with mean exp(z), less its constant: exp(z) - y z.

    Its second derivative has no bound, so that solvers find their step by trial.

    Examples:
        >>> Poisson().value(np.array([2.0]), np.array([0.0]))
        array([1.])
    """

    name: ClassVar[str] = "poisson"
    labels: ClassVar[LabelKind] = "count"
    curvature: ClassVar[float] = np.inf

    def value(self, y: Array, z: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.exp(z) - y * z

    def derivative(self, y: Array, z: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.exp(z) - y

    def second(self, y: Array, z: Array) -> Array:  # noqa: ARG002
        with np.errstate(over="ignore"):
            return np.exp(z)

    def conjugate(self, y: Array, u: Array) -> Array:
        mean = u + y
        inside = np.maximum(mean, 0.0)
        return np.where(mean < -1e-12, np.inf, xlogy(inside, inside) - inside)


@dataclass(frozen=True)
class SquaredHinge(Loss):
    """Half the squared hinge of a label of -1 or +1, max(0, 1 - y z)^2 / 2: a support vector machine's smooth loss.

    Examples:
        >>> SquaredHinge().value(np.array([1.0, 1.0]), np.array([0.0, 2.0]))
        array([0.5, 0. ])
    """

    name: ClassVar[str] = "squared_hinge"
    labels: ClassVar[LabelKind] = "sign"

    def value(self, y: Array, z: Array) -> Array:
        return 0.5 * np.maximum(0.0, 1 - y * z) ** 2

    def derivative(self, y: Array, z: Array) -> Array:
        return -y * np.maximum(0.0, 1 - y * z)

    def second(self, y: Array, z: Array) -> Array:
        return (y * z < 1).astype(z.dtype)

    def conjugate(self, y: Array, u: Array) -> Array:
        slack = -y * u
        return np.where(slack < -1e-12, np.inf, 0.5 * slack**2 - slack)


_LOSSES: dict[str, type[Loss]] = {loss.name: loss for loss in (Squared, Logistic, Huber, Poisson, SquaredHinge)}


def get_loss(loss: str | Loss) -> Loss:
    """The loss of that name with its default settings; a loss object is given back.

    Raises:
        UnknownNameError: no loss has that name; the nearest one is named.

    Examples:
        >>> get_loss("squared")
        Squared()
    """
    if isinstance(loss, Loss):
        return loss
    if loss not in _LOSSES:
        raise unknown("loss", loss, _LOSSES)
    return _LOSSES[loss]()


SCALES = ("mean", "sum", "sklearn", "malsar")


def scale_factor(scale: str, loss: Loss, weight_sum: Array) -> Array:
    """What the summed loss of each task is multiplied by.

    Args:
        scale: `mean`: 1 / n_t; `sum`: 1; `sklearn`: 1 / n_t for real labels (`Lasso`, `MultiTaskLasso`, `ElasticNet`) and 1
            for the others (`LogisticRegression` with C = 1); `malsar`: 1 for real labels, 1 / n_t for the others, as the
            MALSAR toolbox has its `Least_*` and `Logistic_*` functions.
        loss: the loss of the task.
        weight_sum: n_t, or the sum of the task's sample weights; any shape.

    Raises:
        UnknownNameError: an unknown scale.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, dict.fromkeys(SCALES))
    divided = scale == "mean" or (scale == "sklearn" and loss.labels == "real") or (scale == "malsar" and loss.labels != "real")
    return 1 / weight_sum if divided else np.ones_like(weight_sum)
