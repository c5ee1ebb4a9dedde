"""Choosing groups: seconds of each solver for 9 to 200 tasks, and how near the pool comes to the optimum.

Gains are 0.5 between tasks of one planted group, plus normal noise of 0.3. All groups are allowed. `dp` and `milp` must agree.
About three minutes.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from _timing import publish
from taskloom.relate._affinity import Affinity
from taskloom.relate._groups import Groups
from taskloom.relate._select import select

DRAWS = 3
EXACT = (9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
MILP = 16
LARGE = (20, 30, 60, 100, 200)


def planted(K: int, n: int, seed: int, noise: float = 0.3) -> Affinity:
    """K tasks in about n groups of uneven size."""
    rng = np.random.default_rng(seed)
    of = rng.integers(0, n, K)
    return Affinity(np.equal.outer(of, of) * 0.5 + noise * rng.normal(size=(K, K)), [f"task {t + 1}" for t in range(K)])


def timed(affinity: Affinity, budget: float, **options: object) -> tuple[Groups, float]:
    start = perf_counter()
    groups = select(affinity, budget, time_limit=60.0, **options)
    return groups, perf_counter() - start


def exact_rows() -> list[dict[str, object]]:
    rows = []
    for K in EXACT:
        row: dict[str, object] = {"K": K}
        for label, budget, overlap in (
            ("b = 3", 3, True),
            ("b = 4", 4, True),
            ("b = 6", 6, True),
            ("b = 4, disjoint", 4, False),
        ):
            spent: dict[str, list[float]] = {"dp": [], "milp": []}
            for seed in range(DRAWS):
                affinity = planted(K, 4, seed)
                best, seconds = timed(affinity, budget, overlap=overlap, solver="dp")
                spent["dp"].append(seconds)
                if K <= MILP and (budget == 4):
                    other, seconds = timed(affinity, budget, overlap=overlap, solver="milp")
                    spent["milp"].append(seconds)
                    assert other.gap > 1e-6 or abs(other.value - best.value) < 1e-6 * abs(best.value)
            row[f"dp s, {label}"] = float(np.median(spent["dp"]))
            if budget == 4:
                row[f"milp s, {label}"] = float(np.median(spent["milp"])) if spent["milp"] else ""
        rows.append(row)
    return rows


def large_rows() -> list[dict[str, object]]:
    rows = []
    for K in LARGE:
        for budget in (4, 8):
            runs = [timed(planted(K, max(4, K // 8), seed), budget) for seed in range(DRAWS)]
            rows.append(
                {
                    "K": K,
                    "b": budget,
                    "solver": runs[0][0].method,
                    "median s": float(np.median([seconds for _, seconds in runs])),
                    "most s": max(seconds for _, seconds in runs),
                    "greatest gap within the pool": max(groups.gap for groups, _ in runs),
                }
            )
    return rows


def pool_rows() -> list[dict[str, object]]:
    rows = []
    for noise in (0.1, 0.3, 1.0):
        for overlap in (True, False):
            ratios = []
            for seed in range(10):
                affinity = planted(12, 4, seed, noise)
                best = select(affinity, 4, overlap=overlap).value
                ratios.append(select(affinity, 4, overlap=overlap, solver="pool").value / best)
            mean, least = float(np.mean(ratios)), float(np.min(ratios))
            rows.append({"noise": noise, "overlap": overlap, "mean": f"{mean:.4f}", "least": f"{least:.4f}"})
    return rows


def main() -> None:
    publish("grouping_solvers_exact", f"All groups, median of {DRAWS} draws", exact_rows())
    publish("grouping_solvers_large", f"Many tasks, {DRAWS} draws", large_rows())
    publish("grouping_solvers_pool", "Pool over optimum, K = 12, b = 4, 10 draws", pool_rows())


if __name__ == "__main__":
    main()
