"""Task distance from how easily single rows are learned: maps of confidence over a joint run.

Letters: K tasks, n rows, T looks, p confidence.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskloom.relate._affinity import Affinity, Cost
from taskloom.relate._joint_run import Closure, Watch, watched
from taskloom.relate._options import MeasureOptions, Model
from taskloom.relate._readings import ColumnReading
from taskloom.relate._rows import choose_rows, correlation_of_pairs, task_names
from taskloom.tasks import Array, DataError, TaskData


class DatamapWatch(Watch):
    """Mean and deviation, over looks, of the confidence in the true class of each row: a map of 2 n numbers for each task.

    As in STG-MTL (Sherif et al. 2023, arXiv 2307.03374), which clusters the maps. The confidence in a class is its
    probability. Of a regression, which that paper does not serve, it is exp(-e^2 / 2) for an error e in standard deviations of
    the target: ours. So is the distance: the root mean square of what is between two maps on the rows that both tasks have
    labels of.

    Args:
        every: steps from one look to the next.
    """

    def meet(self, net: nn.Module, data: TaskData, options: MeasureOptions) -> None:
        """Choose the rows.

        Raises:
            DataError: each task has rows of its own.
        """
        super().meet(net, data, options)
        if not data.is_shared:
            raise DataError("`datamap` compares tasks row by row, and here each has rows of its own; take `divergence`")
        self.rows = choose_rows(data, options.n_rows, options.seed)
        self.x, self.labels = torch.as_tensor(data.X[self.rows]), torch.from_numpy(data.y[self.rows])
        self.reading = ColumnReading(data.tasks)
        self.looks, self.sums = 0, np.zeros((2, *self.labels.shape))

    def look(self, closure: Closure) -> None:  # noqa: ARG002
        """Note the confidence of all chosen rows."""
        start = perf_counter()
        was_training, weight = self.net.training, next(self.net.parameters())
        self.net.eval()
        with torch.no_grad():
            out = self.net(self.x.to(weight.device, weight.dtype)).double().cpu()
        self.net.train(was_training)
        found = self.confidence(self.reading.outputs(out)).numpy()
        self.looks += 1
        self.sums += np.stack([found, found**2])
        self.cost += Cost(len(self.rows), 0, perf_counter() - start)

    def confidence(self, outputs: Tensor) -> Tensor:
        """(n, K), NaN where a label is missing, of outputs (n, K, C)."""
        found = torch.empty_like(self.labels)
        for t, task in enumerate(self.data.tasks):
            y, z = self.labels[:, t], outputs[:, t]
            if task.kind == "regression":
                found[:, t] = torch.exp(-(z[:, 0] - y).square() / 2)
            elif task.kind == "binary":
                found[:, t] = torch.sigmoid((2 * y - 1) * z[:, 0])
            else:
                chances = z.softmax(dim=1).gather(1, y.nan_to_num().long().unsqueeze(1))[:, 0]
                found[:, t] = torch.where(y.isnan(), torch.nan, chances)
        return found

    def maps(self) -> Array:
        """(2, n, K) mean and deviation of the confidence."""
        mean = self.sums[0] / max(self.looks, 1)
        return np.stack([mean, np.sqrt(np.maximum(self.sums[1] / max(self.looks, 1) - mean**2, 0.0))])

    def affinity(self) -> Affinity:
        """Distances of the maps; the stability is that of two halves of the rows."""
        maps = self.maps()
        values, one, other = (_distances(maps[:, part]) for part in (slice(None), slice(0, None, 2), slice(1, None, 2)))
        names, stability = task_names(self.data), correlation_of_pairs(one, other)
        is_plain = all(task.classes for task in self.data.tasks)
        notes = [] if is_plain else ["confidence of a regression: exp(-e^2 / 2)"]
        return Affinity(values, names, "datamap", higher_is_better=False, cost=self.cost, stability=stability, notes=notes)

    def state_dict(self) -> dict[str, Any]:
        """What was seen."""
        return {"looks": self.looks, "sums": torch.from_numpy(self.sums.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.looks, self.sums = int(state["looks"]), state["sums"].cpu().numpy().copy()


def _distances(maps: Array) -> Array:
    K = maps.shape[2]
    found = np.zeros((K, K))
    for t in range(K):
        squares = np.square(maps - maps[:, :, t : t + 1]).sum(axis=0)
        counts = np.isfinite(squares).sum(axis=0)
        found[t] = np.sqrt(np.divide(np.nansum(squares, axis=0), counts, out=np.full(K, np.nan), where=counts > 0))
    return found


def datamap(model: Model, data: TaskData, options: MeasureOptions | None = None) -> Affinity:
    """Distance of tasks by which rows are easy, hard or changeable for them in a joint run that is made here.

    See `DatamapWatch`; it looks every `options.every` steps at `options.n_rows` rows.

    Args:
        model: what makes nets, or a net of which a copy is trained on.
        data: encoded training rows, shared by the tasks.
        options: of the joint run.

    Returns:
        Symmetric, small is alike.

    Raises:
        DataError: tasks with rows of their own, fewer than two tasks, or features that are not finite.
        OptionError: a net that does not fit the tasks.
        FitError: the joint run failed.

    Examples:
        >>> from taskloom.deep import MLP
        >>> from taskloom.tasks import Task
        >>> X = np.random.default_rng(0).normal(size=(200, 4))
        >>> Y = np.stack([X[:, 0] > 0, X[:, 0] < 0.1, X[:, 1] > 0], axis=1)
        >>> data = TaskData.shared_rows(X, Y, [Task(name, "binary") for name in "abc"])
        >>> affinity = datamap(MLP((8,)), data, MeasureOptions(steps=300, learning_rate=1e-2))
        >>> affinity["a", "b"] < affinity["a", "c"]
        True
    """
    options = options or MeasureOptions()
    return watched(DatamapWatch(options.every), model, data, options)
