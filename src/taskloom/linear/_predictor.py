"""A linear model of K tasks as a saved and loaded predictor.

Letters: K tasks, n rows, d features, C classes of one task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from scipy.special import expit, softmax

from taskloom.tasks import Array, Predictor, Task, register_predictor


@register_predictor
class LinearPredictor(Predictor):
    """Linear scores of each task, turned into values or probabilities.

    Args:
        coefficients: K arrays (d, C_t), with C_t = 1 for regression and binary tasks.
        intercepts: K arrays (C_t,).
        tasks: the K tasks.
    """

    format: ClassVar[str] = "linear"

    def __init__(self, coefficients: Sequence[Array], intercepts: Sequence[Array], tasks: Sequence[Task]) -> None:
        self.coefficients = list(coefficients)
        self.intercepts = list(intercepts)
        self.kinds = [task.kind for task in tasks]

    def predict(self, X: Array, tasks: Sequence[int]) -> list[Array]:
        """Values for regression, probabilities for classification: see `Predictor.predict`."""
        return [_link(X @ self.coefficients[t] + self.intercepts[t], self.kinds[t]) for t in tasks]

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """All tasks' columns side by side, so that a file holds two arrays however many tasks there are."""
        arrays = {"coefficients": np.hstack(self.coefficients), "intercepts": np.concatenate(self.intercepts)}
        return arrays, {"widths": [len(intercept) for intercept in self.intercepts]}

    @classmethod
    def from_state(cls, arrays: dict[str, Array], settings: dict[str, Any], tasks: Sequence[Task]) -> Self:
        """The predictor whose `state` this is."""
        ends = np.cumsum(settings["widths"])[:-1]
        # Contiguous in the layout of training, so that the product runs the same BLAS path and gives the same bits.
        blocks = [np.asfortranarray(block) for block in np.split(arrays["coefficients"], ends, axis=1)]
        return cls(blocks, np.split(arrays["intercepts"], ends), tasks)


def _link(scores: Array, kind: str) -> Array:
    if kind == "multiclass":
        return np.asarray(softmax(scores, axis=1))
    return scores[:, 0] if kind == "regression" else np.asarray(expit(scores[:, 0]))
