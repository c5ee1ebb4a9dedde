"""The layers that dominance is measured on, and what is to be seen of them.

Letters: K tasks, C sampled coordinates of a layer (one parameter tensor).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from taskloom.deep._adatask_step import AdaTaskOptimizer
from taskloom.tasks import DataError, OptionError, unknown

if TYPE_CHECKING:
    import plotly.graph_objects as go

BINS = 20


@dataclass(frozen=True)
class DominanceRow:
    """How much of a layer's steps is due to a task.

    Attributes:
        layer: name of the parameter.
        task: name of the task.
        usage: mean AU over the sampled coordinates, in squared units of the parameter.
        low: lower quartile of rAU over the coordinates that moved; NaN if none did.
        median: of rAU; 1/K is balance, 0 or 1 dominance.
        high: upper quartile of rAU.
    """

    layer: str
    task: str
    usage: float
    low: float
    median: float
    high: float


@dataclass
class Layer:
    """What is kept of one parameter; every tensor but the coordinates (C,) is (K, C)."""

    weight: Tensor
    group: int
    coords: Tensor
    usage: Tensor
    parts: Tensor
    memory: Tensor
    moments: int = 0


class DominanceViews:
    """Tables, charts and scalars of AU and rAU.

    Attributes:
        tasks: names of the K tasks.
        samples: steps that were sampled.
        every: steps from one sample to the next.
        decay: of AU from one sample to the next.
    """

    tasks: list[str]
    samples: int
    every: int
    decay: float
    _layers: dict[str, Layer]
    _logged: int

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        return list(self._layers)

    def coordinates(self, layer: str) -> np.ndarray:
        """(C,) which coordinates of the flattened layer are sampled."""
        return self._layer(layer).coords.cpu().numpy()

    def parts(self, layer: str) -> np.ndarray:
        """(K, C) part of the last sampled step that is due to each task, in units of the parameter."""
        return self._seen(layer).parts.cpu().numpy()

    def usage(self, layer: str) -> np.ndarray:
        """(K, C) AU."""
        return self._seen(layer).usage.double().cpu().numpy() / (1 - self.decay**self.samples)

    def relative(self, layer: str) -> np.ndarray:
        """(K, C) rAU, which adds up to 1 over tasks; NaN at coordinates that no task moved.

        Args:
            layer: name of it.

        Raises:
            UnknownNameError: there is no such layer.
            DataError: no step was sampled yet.
        """
        usage = self.usage(layer)
        total = usage.sum(axis=0)
        return np.divide(usage, total, out=np.full_like(usage, math.nan), where=total > 0)

    def counts(self, layer: str, bins: int = BINS) -> np.ndarray:
        """(K, bins) sampled coordinates by rAU, in bins of equal width from 0 to 1; those that no task moved are left out.

        Args:
            layer: name of it.
            bins: their number.

        Raises:
            UnknownNameError: there is no such layer.
            DataError: no step was sampled yet.
        """
        return histogram(self.relative(layer), bins)

    def _layer(self, name: str) -> Layer:
        if name not in self._layers:
            raise unknown("layer", name, self.layers)
        return self._layers[name]

    def _seen(self, name: str) -> Layer:
        layer = self._layer(name)
        if not self.samples:
            raise DataError(f"no step was sampled yet: `observe` before every step, of which each {self.every}th is sampled")
        return layer

    def table(self) -> list[DominanceRow]:
        """A row for each layer and task.

        Raises:
            DataError: no step was sampled yet.
        """
        rows = []
        for name in self._layers:
            usage, relative = self.usage(name).mean(axis=1), self.relative(name)
            moved = relative[:, ~np.isnan(relative[0])]
            quartiles = np.quantile(moved, [0.25, 0.5, 0.75], axis=1) if moved.size else np.full((3, len(usage)), math.nan)
            rows += [
                DominanceRow(name, task, float(usage[k]), *map(float, quartiles[:, k])) for k, task in enumerate(self.tasks)
            ]
        return rows

    def figure(self) -> go.Figure:
        """A histogram of rAU for each layer, a colour a task; a peak at 0 or 1 is dominance.

        Raises:
            DataError: no step was sampled yet.
        """
        return histograms(self.tasks, {name: self.relative(name) for name in self._layers})

    def log(self, logger: Any, step: int) -> None:
        """Write medians of rAU and means of AU as scalars, once after each sample; until the next one nothing is written.

        Args:
            logger: a fabric, or any of its loggers.
            step: of the training.

        Raises:
            OptionError: it has neither `log_dict` nor `log_metrics`.
        """
        write = getattr(logger, "log_dict", None) or getattr(logger, "log_metrics", None)
        if write is None:
            raise OptionError(
                f"`logger`={logger!r} has neither `log_dict` nor `log_metrics`; give a fabric or one of its loggers"
            )
        if self.samples > self._logged:
            self._logged = self.samples
            rows = self.table()
            write(
                {f"dominance/{row.layer}/{row.task}": row.median for row in rows}
                | {f"usage/{row.layer}/{row.task}": row.usage for row in rows},
                step=step,
            )


def at(tensor: Tensor, layer: Layer) -> Tensor:
    return tensor.detach().take(layer.coords).to(layer.parts.dtype)


def choose_layers(optimizer: Optimizer, layers: Mapping[str, Tensor] | None) -> dict[str, tuple[int, Tensor]]:
    """Group and tensor of each layer by name."""
    owners: dict[Tensor, int] = {}
    names: dict[str, Tensor] = {}
    for g, group in enumerate(optimizer.param_groups):
        given = group.get("param_names")
        for i, weight in enumerate(group["params"]):
            owners[weight] = g
            if group.get("shared", True) and weight.numel():
                names[given[i] if given else str(len(names))] = weight
    found = dict(names if layers is None else layers)
    for name, weight in found.items():
        if weight not in owners:
            raise OptionError(f"`layers`: `{name}` is not among the parameters of the optimizer; leave it out")
        if isinstance(optimizer, AdaTaskOptimizer) and not optimizer.param_groups[owners[weight]]["shared"]:
            raise OptionError(f"`layers`: `{name}` is in a group that is not shared, which no two tasks move; leave it out")
        if hasattr(weight, "device_mesh") or not weight.numel():
            raise OptionError(f"`layers`: `{name}` is empty or sharded over processes; leave it out")
    if not found:
        raise OptionError("`layers`: the optimizer has no shared parameter that could be looked at")
    return {name: (owners[weight], weight) for name, weight in found.items()}


def shares_of(sizes: list[int], room: int) -> list[int]:
    """Equal shares of the room, but to none more than its size; what is over goes to the larger ones."""
    shares, left = [0] * len(sizes), room
    for done, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        shares[i] = min(sizes[i], left // (len(sizes) - done))
        left -= shares[i]
    return shares


def histogram(relative: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(K, bins) coordinates by rAU (K, C), in bins of equal width from 0 to 1; NaN is left out."""
    return np.stack([np.histogram(values[np.isfinite(values)], bins=bins, range=(0, 1))[0] for values in relative])


def histograms(tasks: Sequence[str], relative: dict[str, np.ndarray], bins: int = BINS) -> go.Figure:
    """A histogram of rAU for each layer, a colour a task, with bins of equal width from 0 to 1.

    Args:
        tasks: names of the K tasks.
        relative: rAU (K, C) by layer, NaN where nothing moved.
        bins: their number.

    Returns:
        A figure that holds counts alone, so that its size does not hang on C.
    """
    # Whoever only measures needs no charts.
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=len(relative), cols=1, subplot_titles=list(relative), shared_xaxes=True)
    centres = (np.arange(bins) + 0.5) / bins
    for i, values in enumerate(relative.values()):
        for k, (task, counts) in enumerate(zip(tasks, histogram(values, bins), strict=True)):
            bars = go.Bar(
                x=centres,
                y=counts / max(counts.sum(), 1),
                name=task,
                legendgroup=task,
                showlegend=i == 0,
                opacity=0.6,
                marker_color=qualitative.Plotly[k % len(qualitative.Plotly)],
            )
            figure.add_trace(bars, row=i + 1, col=1)
    figure.update_layout(
        template="plotly_white", barmode="overlay", bargap=0, height=120 + 180 * len(relative), legend_title_text="task"
    )
    figure.update_xaxes(range=[0, 1])
    figure.update_xaxes(title_text="share of a step's squared size (rAU)", row=len(relative), col=1)
    figure.update_yaxes(title_text="share of coordinates")
    return figure
