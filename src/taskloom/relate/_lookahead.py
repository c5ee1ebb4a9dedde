"""Task affinity by looking ahead: how much a step down one task's loss lowers the losses of the others.

Letters: K tasks, i the source, j the receiver, L loss of a batch, g gradient by the shared weights theta, eta step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from taskloom.relate._affinity import Affinity
from taskloom.relate._joint_run import Closure, GradientWatch, watched
from taskloom.relate._options import MeasureOptions, Model
from taskloom.tasks import TaskData, check_positive


class LookaheadWatch(GradientWatch):
    """Z_ij = (1 - L_j(theta - eta g_i) / L_j(theta)) / eta on the batch of the step that follows, averaged over looks.

    TAG (Fifty et al., NeurIPS 2021, arXiv 2109.04617), with the affinity as the released code has it, divided by the step so
    that it does not hang on it. Heads are not moved. What differs from that code: nothing is edited in place, statistics of
    BatchNorm are not moved by looks, masks of dropout are the same before and after, and the step is a plain one, without
    momentum and weight decay, whatever the optimizer of the run is. The affinity has a `zero`, so that `select` leaves alone
    what nobody helps; TAG never does, and for its groups takes `dataclasses.replace(affinity, zero=None)`.

    Args:
        every: steps from one look to the next.
        step: eta; None: the learning rate of the run.

    Raises:
        OptionError: a step that is not positive.
    """

    name = "lookahead"
    notes = ("per unit of the step",)

    def __init__(self, every: int = 10, step: float | None = None) -> None:
        super().__init__(every)
        if step is not None:
            check_positive("step", step, ", or None for the learning rate of the run")
        self.eta = step

    def passes(self, k: int) -> int:
        """One to start with and one for each task."""
        return 1 + k

    def observe(self, closure: Closure, losses: Tensor, gradients: Mapping[str, Tensor], weights: dict[str, Tensor]) -> Tensor:
        """(k, k), row = receiver."""
        eta = self.eta or self.options.learning_rate
        k = len(next(iter(gradients.values())))
        present = ~losses.isnan()
        columns = []
        for i in range(k):
            moved = {name: weights[name] - eta * jac[i] for name, jac in gradients.items()}
            after = self.losses(closure, {**weights, **moved})
            columns.append((1 - after[present] / losses[present]) / eta)
        return torch.stack(columns, dim=1)


def lookahead(model: Model, data: TaskData, options: MeasureOptions | None = None, *, step: float | None = None) -> Affinity:
    """How much a step down the source's loss lowers the receiver's, relative to it, over a joint run that is made here.

    See `LookaheadWatch`; it looks every `options.every` steps. A look costs a pass forward and a pass back for each task.

    Args:
        model: what makes nets, or a net of which a copy is trained on.
        data: encoded training rows.
        options: of the joint run.
        step: eta; None: the learning rate of the run.

    Returns:
        Not symmetric; 0 is no effect. The diagonal, what a task's step does to its own loss, plays no part.

    Raises:
        OptionError: a net that does not fit the tasks or shares no weights, or a step that is not positive.
        DataError: fewer than two tasks, or features that are not finite.
        FitError: the joint run failed.

    Examples:
        >>> import numpy as np
        >>> from taskloom.deep import MLP
        >>> from taskloom.tasks import Task
        >>> X = np.random.default_rng(0).normal(size=(200, 4))
        >>> Y = np.stack([X[:, 0] > 0, X[:, 0] > 0.1, X[:, 1] > 0], axis=1)
        >>> data = TaskData.shared_rows(X, Y, [Task(name, "binary") for name in "abc"])
        >>> affinity = lookahead(MLP((8,)), data, MeasureOptions(steps=100))
        >>> affinity["a", "b"] > affinity["a", "c"]
        True
    """
    options = options or MeasureOptions()
    return watched(LookaheadWatch(options.every, step), model, data, options)
