"""A site: the rows of one or more tasks, which never leave it, and the local step on them.

Letters: n rows, d features, m tasks of the site, v (d, m) its columns of V, p (d, m) those of prox(V), w (d,) coefficients,
gamma step, eta relaxation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from taskloom.linear import Loss, TaskProx
from taskloom.sites._messages import Answer, Update
from taskloom.sites._stochastic import StochasticProx
from taskloom.tasks import Array

# From here on stochastic steps were faster than Newton's on whatever was tried.
MANY_ROWS = 10_000

Release = Callable[[Array, Array], Array]


class LocalLoss(Protocol):
    """One task's loss on its own rows, as a site uses it."""

    def __call__(self, v: Array, gamma: float, start: Array | None = None) -> Array:
        """(d,) the proximal map of gamma times the loss at v."""
        ...

    def gradient(self, w: Array) -> Array:
        """(d,)."""
        ...

    def intercept(self, w: Array) -> float:
        """The best one at w."""
        ...

    @property
    def curvature(self) -> float:
        """The greatest curvature of the loss; infinite where it has no bound."""
        ...


@dataclass(frozen=True)
class TaskRows:
    """The rows of one task.

    Attributes:
        X: (n, d).
        y: (n,) labels as the loss takes them.
        weight: (n,) of each row, scale included.
        loss: of a row.
        fit_intercept: whether there is an intercept that no penalty touches.
    """

    X: Any
    y: Array
    weight: Array
    loss: Loss
    fit_intercept: bool = True

    def local_loss(self) -> LocalLoss:
        """The loss with what its steps keep; of many rows and no closed form, one that takes stochastic steps."""
        if self.loss.name != "squared" and len(self.y) >= MANY_ROWS and not hasattr(self.X, "toarray"):
            return StochasticProx(self.X, self.y, self.loss, self.weight, fit_intercept=self.fit_intercept)
        return TaskProx(self.X, self.y, self.loss, self.weight, fit_intercept=self.fit_intercept)


class Site:
    """A site's side of the conversation: a message in, a message out. It knows no network, no clock and no thread.

    Args:
        name: of the site.
        losses: of its m tasks.
        n_features: d.
        local: `prox` for v + eta (prox_{gamma loss}(2 p - v) - p), the Douglas-Rachford step; `gradient` for
            v + eta (p - gamma grad(p) - v), the backward-forward step of Baytas and others (AMTL, ICDM 2016, section III).
        release: what becomes of (old, new) columns before they leave, such as clipping and noise; None for nothing.

    Examples:
        >>> from taskloom.linear import Squared
        >>> rows = TaskRows(np.eye(2), np.array([1.0, 0.0]), np.ones(2), Squared(), fit_intercept=False)
        >>> site = Site("ward", [rows.local_loss()], 2)
        >>> site.join().sequence
        0
    """

    def __init__(
        self,
        name: str,
        losses: Sequence[LocalLoss],
        n_features: int,
        local: Literal["gradient", "prox"] = "prox",
        release: Release | None = None,
    ) -> None:
        self.name, self.losses, self.local, self.release = name, list(losses), local, release
        self.columns = np.zeros((n_features, len(self.losses)))
        self.sequence = -1
        self.is_over = False
        self._guesses: list[Array | None] = [None] * len(self.losses)
        self._last = self.join()

    @property
    def pending(self) -> Update:
        """The message that waits for an answer, to be sent again when none comes."""
        return self._last

    def hello(self) -> Update:
        """The first words on a new line: who this is."""
        # NaN is no bound, times features that do not vary.
        with np.errstate(invalid="ignore"):
            curvature = np.array([loss.curvature for loss in self.losses])
        curvature[np.isnan(curvature)] = np.inf
        return Update(self.name, 0, curvature=curvature)

    def join(self) -> Update:
        """What a site says that has just come up: the answer tells it where it stood."""
        self.sequence = -1
        self._last = self.hello()
        return self._last

    def take(self, answer: Answer) -> Update | None:
        """The next message, or None if the answer is out of date.

        A site that has parted goes on if it is told its columns anew: its coordinator had to begin again from an older save.

        Args:
            answer: of the coordinator.
        """
        is_late = answer.sequence < self.sequence if self.sequence >= 0 else answer.restart is None and not answer.stop
        if is_late or (self.is_over and (answer.stop or answer.restart is None)):
            return None
        self.is_over = answer.stop
        if answer.stop:
            intercepts = [loss.intercept(w) for loss, w in zip(self.losses, answer.columns.T, strict=True)]
            self._last = Update(self.name, answer.sequence + 1, answer.epoch, intercepts=np.array(intercepts))
            return self._last
        if answer.restart is not None:
            self.columns = np.array(answer.restart)
        moves = np.stack([self._move(t, answer) for t in range(len(self.losses))], axis=1)
        if self.release is not None:
            # Before the relaxation, which then shortens the noise as well.
            moves = self.release(self.columns, self.columns + moves) - self.columns
        new = self.columns + answer.relaxation * moves
        self.columns, self.sequence = new, max(self.sequence, answer.sequence) + 1
        self._last = Update(self.name, self.sequence, answer.epoch, columns=new, version=answer.version)
        return self._last

    def _move(self, t: int, answer: Answer) -> Array:
        """(d,) the way to the new column of one task."""
        loss, v, p = self.losses[t], self.columns[:, t], answer.columns[:, t]
        if self.local == "gradient":
            return p - answer.step * loss.gradient(p) - v
        moved = loss(2 * p - v, answer.step, self._guesses[t])
        self._guesses[t] = moved
        return moved - p
