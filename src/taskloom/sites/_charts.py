"""The charts of a report on runs over sites, as SVG that takes its colours from the page.

SVG by hand and not a chart library: the page stays a few kilobytes, follows the reader's light or dark setting, and prints.

Letters: d features, K tasks, m points or spans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from taskloom.sites._result import SitesResult
from taskloom.sites._timeline import SMALLEST, Timeline, timeline, under_way
from taskloom.tasks import Array

WIDTH = 860.0
# Points of a line, spans of a timeline and its rows: more cannot be told apart.
MOST_POINTS, MOST_SPANS, MOST_ROWS = 600, 6000, 40
# Round trips of the slowest site that a timeline shows.
ROUNDS = 8
# Kinds of line, so that colours are not all that tells them apart.
DASHES = ("", "7 4", "2 3", "10 3 2 3", "4 2")


@dataclass(frozen=True)
class Scale:
    """From values to places on the page.

    Attributes:
        low: least value.
        high: greatest value.
        start: place of `low`.
        end: place of `high`.
        is_log: whether equal ratios are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, values: Array) -> Array:
        """Places of values."""
        low, high = (math.log10(edge) if self.is_log else edge for edge in (self.low, self.high))
        at = np.log10(values) if self.is_log else np.asarray(values, dtype=np.float64)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values, at most nine.

        Examples:
            >>> Scale(0.0, 4.2, 0, 1).ticks()
            [0.0, 1.0, 2.0, 3.0, 4.0]
            >>> Scale(1e-4, 1.0, 0, 1, is_log=True).ticks()
            [0.0001, 0.001, 0.01, 0.1, 1.0]
        """
        if self.is_log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [float(f"1e{k}") for k in range(first, last + 1, 1 + (last - first) // 9)]
        least = (self.high - self.low) / 8
        decade = 10.0 ** math.floor(math.log10(least))
        step = next(m * decade for m in (1, 2, 5, 10) if m * decade >= least * (1 - 1e-9))
        first, last = math.ceil(self.low / step), math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


@dataclass(frozen=True)
class Curves:
    """What a chart against time shows.

    Attributes:
        label: of the values.
        lines: (m,) seconds from when each run was under way, and (m,) values above 0.
    """

    label: str
    lines: dict[str, tuple[Array, Array]]


def curves(results: Mapping[str, SitesResult]) -> Curves:
    """Relative gaps against time; where a run has none, the residual that the coordinator saw."""
    if all(np.isfinite(result.history["gap"]).any() for result in results.values()):
        label, lines = "relative gap", {n: (r.history["time"], r.history["gap"]) for n, r in results.items()}
    else:
        label = "residual, relative to the norm of V"
        lines = {
            name: (np.array([trip.arrived_at for trip in result.trips]), np.array([trip.residual for trip in result.trips]))
            for name, result in results.items()
        }
    return Curves(label, {name: _thinned(time - under_way(results[name]), value) for name, (time, value) in lines.items()})


def _thinned(time: Array, value: Array) -> tuple[Array, Array]:
    """Known points, few enough; what has reached zero is shown at the smallest value that can be told from it."""
    known = (time >= 0) & np.isfinite(value)
    time, value = time[known], np.maximum(value[known], SMALLEST)
    keep = np.unique(np.linspace(0, len(time) - 1, min(len(time), MOST_POINTS)).round().astype(int)) if len(time) else []
    return time[keep], value[keep]


def gap_chart(shown: Curves) -> Markup:
    """Lines on a logarithmic scale against time."""
    times, values = (np.concatenate([line[i] for line in shown.lines.values()] or [np.zeros(0)]) for i in (0, 1))
    if not len(values):
        return Markup("")
    x = Scale(0.0, max(float(times.max()), 1e-9), 70, WIDTH - 10)
    low, high = (float(f"1e{edge}") for edge in (math.floor(np.log10(values.min())), math.ceil(np.log10(values.max()))))
    y = Scale(low, high if high > low else 10 * low, 300, 12, is_log=True)
    parts = [_axes(x, y, 300), *(_y_tick(value, place) for value, place in zip(y.ticks(), y(np.array(y.ticks())), strict=True))]
    for number, (name, (time, value)) in enumerate(shown.lines.items()):
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x(time), y(value), strict=True))
        kind = number % len(DASHES)
        parts.append(
            Markup('<polyline class="line c{}" stroke-dasharray="{}" points="{}"><title>{}</title></polyline>').format(
                kind, DASHES[kind], points, name
            )
        )
    ends = ", ".join(f"{n}: {v[-1]:.1e} after {t[-1]:.2f} s" for n, (t, v) in shown.lines.items() if len(v))
    return _svg(parts, 345, f"{shown.label} against time, logarithmic. At the end, {ends}.")


def window(results: Mapping[str, SitesResult]) -> float:
    """How much of each run a timeline shows: some round trips of the slowest site in the slowest run."""
    lengths = [0.0]
    for result in results.values():
        begin = under_way(result)
        shown = [trip for trip in result.trips if trip.arrived_at > begin][:MOST_SPANS]
        arrivals = [[trip.arrived_at for trip in shown if trip.site == site] for site in result.sites]
        lengths.append(max((each[min(len(each), ROUNDS) - 1] - begin for each in arrivals if each), default=0.0))
    return max(lengths)


def wait_chart(result: SitesResult, seconds: float) -> Markup:
    """A row for each site: thick where it was away, thin where it waited.

    Args:
        result: of a run.
        seconds: to show, from when it was under way.
    """
    sites = slowest_first(result)[:MOST_ROWS]
    if not sites or seconds <= 0:
        return Markup("")
    left = 16 + 7.5 * min(max(len(site) for site in sites), 22)
    begin = under_way(result)
    x = Scale(0.0, seconds, left, WIDTH - 58)
    bottom = 24.0 * len(sites) + 6
    parts = [_axes(x, None, bottom)]
    rows = {site: timeline(result.trips, site) for site in sites}
    for number, (site, row) in enumerate(rows.items()):
        shown = Timeline(row.away - begin, row.waits - begin)
        parts.append(_row(site, shown, 24.0 * number + 18, x))
    said = "; ".join(f"{site} waited or was away in vain {100 * row.waited:.0f} % of its time" for site, row in rows.items())
    return _svg(parts, bottom + 45, f"Who waited, over the first {seconds:.3g} seconds. In the whole run: {said}.")


def slowest_first(result: SitesResult) -> list[str]:
    """Sites from the fewest updates to the most."""
    return sorted(result.sites, key=lambda site: result.sites[site].updates)


def _row(site: str, row: Timeline, middle: float, x: Scale) -> Markup:
    short = site if len(site) <= 22 else site[:21] + "…"
    percent = f"{100 * row.waited:.0f} %"
    return Markup(
        '<text class="end" x="{:.1f}" y="{:.1f}">{}<title>{}</title></text>'
        '<path class="wait" d="{}"/><path class="away" d="{}"/><text x="{}" y="{:.1f}">{}</text>'
    ).format(
        x.start - 8, middle + 4, short, site, _bars(row.waits, x, middle, 5), _bars(row.away, x, middle, 15), WIDTH - 52,
        middle + 4, percent,
    )  # fmt: skip


def _bars(spans: Array, x: Scale, middle: float, height: float) -> str:
    """Boxes of one height as one path; a hair is left between neighbours."""
    shown = np.clip(spans[(spans[:, 0] < x.high) & (spans[:, 1] > x.low)], x.low, x.high)
    starts, ends = x(shown[:, 0]), x(shown[:, 1])
    top = middle - height / 2
    return "".join(
        f"M{a:.1f} {top:.1f}h{max(b - a - 0.4, 0.2):.1f}v{height:g}H{a:.1f}z" for a, b in zip(starts, ends, strict=True)
    )


def _axes(x: Scale, y: Scale | None, bottom: float) -> Markup:
    mark = Markup('<path class="grid" d="M{0:.1f} {1:.1f}V{2:.1f}"/><text class="mid" x="{0:.1f}" y="{3:.1f}">{4:g}</text>')
    top = 8 if y is None else y.end
    lines = Markup("").join(
        mark.format(place, top, bottom, bottom + 18, tick)
        for tick, place in zip(x.ticks(), x(np.array(x.ticks())), strict=True)
    )
    middle = (x.start + x.end) / 2
    return lines + Markup(
        '<text class="mid soft" x="{:.1f}" y="{:.1f}">seconds since half of the sites had joined</text>'
    ).format(middle, bottom + 38)


def _y_tick(value: float, place: float) -> Markup:
    return Markup('<path class="grid" d="M70 {0:.1f}H{1}"/><text class="end" x="62" y="{2:.1f}">{3}</text>').format(
        place, WIDTH - 10, place + 4, f"{value:.0e}" if value < 0.01 or value >= 1000 else f"{value:g}"
    )


def _svg(parts: Sequence[Markup], height: float, said: str) -> Markup:
    """A drawing, with what it shows in words for readers who do not see it."""
    return Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, said, Markup("").join(parts)
    )
