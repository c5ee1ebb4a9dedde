"""Task affinity from products of the tasks' gradients over a joint run: looking ahead to first order.

Letters: K tasks, i the source, j the receiver, L loss of a batch, g gradient by the shared weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from taskloom.relate._affinity import Affinity
from taskloom.relate._joint_run import Closure, GradientWatch, watched
from taskloom.relate._options import MeasureOptions, Model
from taskloom.tasks import TaskData


class GramWatch(GradientWatch):
    """<g_i, g_j> / L_j, averaged over looks: the limit of `LookaheadWatch` for small steps, without its passes forward.

    The division by the receiver's loss as in ETAP (arXiv 2602.18591), from its released code; that it is TAG to first order is
    a line of algebra.

    Args:
        every: steps from one look to the next.
        cosine: <g_i, g_j> / (|g_i| |g_j|) in its place.
    """

    def __init__(self, every: int = 10, *, cosine: bool = False) -> None:
        super().__init__(every)
        self.cosine = cosine
        self.name = "gram_cosine" if cosine else "gram"

    def observe(
        self,
        closure: Closure,  # noqa: ARG002
        losses: Tensor,
        gradients: Mapping[str, Tensor],
        weights: dict[str, Tensor],  # noqa: ARG002
    ) -> Tensor:
        """(k, k), row = receiver."""
        matrix = torch.cat([jac.flatten(1) for jac in gradients.values()], dim=1)
        products = matrix @ matrix.T
        if self.cosine:
            norms = products.diagonal().sqrt()
            return products / torch.outer(norms, norms)
        return products / losses[~losses.isnan()].unsqueeze(1)


def gram(model: Model, data: TaskData, options: MeasureOptions | None = None, *, cosine: bool = False) -> Affinity:
    """Products of the tasks' gradients by the shared weights, over the receiver's loss, in a joint run that is made here.

    See `GramWatch`; it looks every `options.every` steps, and a look costs a pass back for each task.

    Args:
        model: what makes nets, or a net of which a copy is trained on.
        data: encoded training rows.
        options: of the joint run.
        cosine: cosines in place of products over losses: symmetric.

    Raises:
        OptionError: a net that does not fit the tasks or shares no weights.
        DataError: fewer than two tasks, or features that are not finite.
        FitError: the joint run failed.

    Examples:
        >>> import numpy as np
        >>> from taskloom.deep import MLP
        >>> from taskloom.tasks import Task
        >>> X = np.random.default_rng(0).normal(size=(200, 4))
        >>> Y = np.stack([X[:, 0] > 0, X[:, 0] > 0.1, X[:, 1] > 0], axis=1)
        >>> data = TaskData.shared_rows(X, Y, [Task(name, "binary") for name in "abc"])
        >>> gram(MLP((8,)), data, MeasureOptions(steps=100), cosine=True).is_symmetric
        True
    """
    options = options or MeasureOptions()
    return watched(GramWatch(options.every, cosine=cosine), model, data, options)
