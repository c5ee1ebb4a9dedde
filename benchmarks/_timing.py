"""What the benchmarks share: pinned threads, interleaved medians, a table and a JSON file."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

# One thread, so that rivals meet on equal terms; limits also reach libraries that are loaded already, and kept for good.
ONE_THREAD = threadpool_limits(1)

RESULTS = Path(__file__).parent / "results"


def race(contestants: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, run in turn (A B A B ...) after one uncounted round.

    In turn, because a machine's speed drifts: ratios are taken within a round.
    """
    torch.set_num_threads(1)
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = perf_counter()
            run()
            seconds[name].append(perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], numerator: str, denominator: str) -> dict[str, float]:
    """Median, least and greatest ratio within rounds."""
    ratios = np.divide(seconds[numerator], seconds[denominator])
    return {"median": float(np.median(ratios)), "least": float(ratios.min()), "greatest": float(ratios.max())}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }


def publish(name: str, title: str, rows: list[dict[str, Any]]) -> None:
    """Print the rows as a Markdown table and write them to `results/NAME.json`."""
    headings = list(rows[0])
    print(f"\n{title}\n")
    print("| " + " | ".join(headings) + " |")
    print("|" + "---|" * len(headings))
    for row in rows:
        print("| " + " | ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()) + " |")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    sys.stdout.flush()


def trip_row(engine: str, size: str, sites: int, seconds: np.ndarray, rates: np.ndarray) -> dict[str, Any]:
    """Round trips beside those of a bare echo.

    Args:
        engine: its name.
        size: of the columns.
        sites: their number.
        seconds: (rounds, 2) round trips, of sites and of the echo.
        rates: (rounds, 2) updates a second.
    """
    ratios = seconds[:, 0] / seconds[:, 1]
    return {
        "engine": engine,
        "columns": size,
        "sites": sites,
        "updates/s": float(np.median(rates[:, 0])),
        "round trip, ms": 1e3 * float(np.median(seconds[:, 0])),
        "echo, ms": 1e3 * float(np.median(seconds[:, 1])),
        "ratio": float(np.median(ratios)),
        "least": float(ratios.min()),
        "greatest": float(ratios.max()),
    }
