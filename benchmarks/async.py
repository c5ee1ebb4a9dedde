"""Methods over sites against each other: time to a gap, what was tried to beat the best, and how much a coordinator bears.

1. Time on the virtual clock, in mean delays (a trip takes 0.73 + Exp(0.27)), until (F - F*) / (F(0) - F*) is below 1e-2, 1e-4
   and 1e-6: synthetic tasks (n = 100, d = 50, W of rank 3, noise 1, strength a tenth of the critical one) and School (139
   tasks, standardised features, strength 1000 on half the sum of squares), with equal sites and with one that is 5 times
   slower. Targets are for `local-prox` against `smtl-fista`, the baseline that gains most from waiting.
2. Arms that might beat `local-prox`.
3. Updates a second of a coordinator (take a column, answer with one) against one that decomposes V at every arrival.

Letters: K tasks, d features, F losses plus penalty, F* its least value, V (d, K) auxiliary matrix, L greatest curvature of a
task's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from _sites_arms import AndersonCoordinator, Arm, DroppingCoordinator, Inertial, Predicting
from _sites_data import Watch, Work, school, synthetic
from _timing import publish, race, ratio
from taskloom.linear import Trace
from taskloom.sites import METHODS, AsynchronousCoordinator, OffsetDelays, StepOptions, StopRule, Update, get_method

LEVELS = (1e-2, 1e-4, 1e-6)
SEEDS = (0, 1, 2)
SLOW = 5.0


@dataclass
class Setting:
    """Where methods meet.

    Attributes:
        name: for the tables.
        work: the problem, by seed.
        slow: factors by site.
        rounds: updates a site after which a method is given up, by method.
        targets: smtl-fista over local-prox, by level.
    """

    name: str
    work: list[Work]
    slow: dict[str, float] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    targets: dict[float, float] = field(default_factory=dict)

    def watch(self, method: str, seed: int, arm: Callable[..., Arm] = Arm, **settings: Any) -> Watch:
        """One run."""
        work = self.work[seed]
        K = len(work.pairs)
        watch = Watch(work, LEVELS, K if METHODS[method].is_synchronous else max(K // 5, 1))
        transport = arm(OffsetDelays(slow=self.slow), seed)
        work.fit(method, transport=transport, callback=watch, max_updates=self.rounds.get(method, 1000) * K, **settings)
        return watch

    def row(self, watches: list[Watch]) -> dict[str, Any]:
        """Median times, and where the runs stood at their end."""
        times = {f"to {level:g}": median([watch.times.get(level, np.inf) for watch in watches]) for level in LEVELS}
        return times | {"rounds": float(np.median([watch.rounds for watch in watches])), "gap": max(w.gap for w in watches)}


def median(times: list[float]) -> float:
    return float(np.median(times))


def settings() -> list[Setting]:
    """All of them; School where its file is."""
    works = {K: [Work("", synthetic(K, seed)) for seed in SEEDS] for K in (5, 15, 50)}
    found = [Setting(f"synthetic, K = {K}", works[K]) for K in works]
    found[2].rounds = {"amtl-paper": 500}
    found[1].targets = {1e-6: 1.7}
    found.insert(2, Setting("synthetic, K = 15, one site slow", works[15], {"task 1": SLOW}, targets={1e-6: 1.7}))
    pairs = school()
    if pairs is None:
        print("School: its file is not here, left out")
        return found
    work = [Work("", pairs, strength=1000.0)] * len(SEEDS)
    rounds = {"smtl": 400, "amtl": 400, "amtl-paper": 100}
    found.append(Setting("School", work, {}, rounds, {1e-4: 4.0}))
    found.append(Setting("School, one site slow", work, {"task 1": SLOW}, rounds, {1e-4: 8.0}))
    return found


def against_each_other(found: list[Setting]) -> None:
    rows, ratios = [], []
    for setting in found:
        times = {}
        for method in METHODS:
            times[method] = setting.row([setting.watch(method, seed) for seed in SEEDS])
            rows.append({"setting": setting.name, "method": method} | times[method])
        for level in LEVELS:
            key = f"to {level:g}"
            ratios.append(
                {
                    "setting": setting.name,
                    "to": level,
                    "smtl-fista / local-prox": times["smtl-fista"][key] / times["local-prox"][key],
                    "target": setting.targets.get(level, ""),
                    "smtl-fista / amtl": times["smtl-fista"][key] / times["amtl"][key]
                    if np.isfinite(times["amtl"][key])
                    else "",
                }
            )
    publish("async", f"Mean delays until the gap is reached, median of {len(SEEDS)} seeds; inf: not in that many rounds", rows)
    publish("async_ratios", "How many times sooner", ratios)


def arms(L: float, good: int) -> dict[str, tuple[Callable[..., Arm], dict[str, Any]]]:
    """What was tried, for a problem with that L and on which a fixed step of good / L does well."""
    found: dict[str, tuple[Callable[..., Arm], dict[str, Any]]] = {"as it is (relaxation 1.8, balanced step)": (Arm, {})}
    for eta in (1.0, 1.5):
        found[f"relaxation {eta}"] = (Arm, {"relaxation": eta})
    found["columns at an old step dropped"] = (partial(Arm, coordinator=DroppingCoordinator), {})
    for factor in (1, 4, 30, 100, 300):
        found[f"step {factor} / L"] = (Arm, {"step": factor / L})
    others = {
        "two local steps": partial(Arm, site=Predicting),
        "inertia 0.3": partial(Arm, site=Inertial, beta=0.3),
        "Anderson, memory 5, every round": partial(Arm, coordinator=AndersonCoordinator, period=1),
        "Anderson, memory 5, every third round": partial(Arm, coordinator=AndersonCoordinator, period=3),
    }
    for (name, arm), eta in product(others.items(), (1.0, 1.8)):
        found[f"{name}, step {good} / L, relaxation {eta}"] = (arm, {"step": good / L, "relaxation": eta})
    return found


def tried(found: list[Setting]) -> None:
    rows = []
    for setting in found:
        if "K = 15" not in setting.name and "School" not in setting.name:
            continue
        seeds = SEEDS[:1] if "School" in setting.name else SEEDS
        setting.rounds["local-prox"] = 150
        for name, (arm, options) in arms(setting.work[0].curvature, 100 if seeds == SEEDS[:1] else 4).items():
            watches = [setting.watch("local-prox", seed, arm, **options) for seed in seeds]
            steps = float(np.median([watch.step * watch.work.curvature for watch in watches]))
            rows.append({"setting": setting.name, "arm": name} | setting.row(watches) | {"step x L": steps})
    publish(
        "async_arms",
        f"Arms of local-prox: mean delays until the gap is reached, median of {len(SEEDS)} seeds, 1 on School",
        rows,
    )


@dataclass
class Load:
    """Columns that keep coming to a coordinator.

    Attributes:
        d: features.
        K: tasks.
        batch: messages that wait when it looks.
    """

    d: int
    K: int
    batch: int = 1
    count: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        rank = min(self.d, self.K)
        U, Q = (np.linalg.qr(rng.normal(size=(size, rank)))[0] for size in (self.d, self.K))
        self.V = (U * 0.8 ** np.arange(rank)) @ Q.T
        size = np.linalg.norm(self.V) / np.sqrt(self.V.size)
        self.noise = 0.01 * size * rng.normal(size=(self.d, 16))
        # About ten singular values are above it.
        self.penalty = Trace(0.8**10)
        names = [f"site {t}" for t in range(self.K)]
        rule = StopRule(0, 10**9)
        self.coordinator = AsynchronousCoordinator(
            {name: [t] for t, name in enumerate(names)},
            self.d,
            rule,
            self.penalty,
            get_method("local-prox"),
            StepOptions(step=1.0),
        )
        self.names = names
        for name in names:
            self.coordinator.receive(Update(name, 0, curvature=np.ones(1)), 0.0)
        self.epoch = self.coordinator.answers(0.0)[0].epoch
        self.sequence = dict.fromkeys(names, 0)
        for t in range(self.K):
            self._send(t)
        self.coordinator.answers(0.0)

    def column(self, t: int) -> np.ndarray:
        """The next one of site t."""
        return self.V[:, t] + self.noise[:, self.count % 16]

    def _send(self, t: int) -> None:
        name = self.names[t]
        self.sequence[name] += 1
        answered = self.coordinator.sites[name].answered
        message = Update(name, self.sequence[name], self.epoch, columns=self.column(t)[:, None], version=answered)
        self.coordinator.receive(message, 0.0)

    def ours(self) -> None:
        """Take a batch of columns in, and answer all of them."""
        for _ in range(self.batch):
            self.count += 1
            self._send(self.count % self.K)
        self.coordinator.answers(0.0)

    def full(self) -> None:
        """The same number of columns, with a decomposition of V at each."""
        for _ in range(self.batch):
            self.count += 1
            t = self.count % self.K
            self.V[:, t] = self.column(t) - self.noise[:, self.count % 16]
            U, s, Qt = np.linalg.svd(self.V, full_matrices=False)
            _ = (U * np.maximum(s - self.penalty.strength, 0)) @ Qt[:, t]


def throughput() -> None:
    rows = []
    for d, K, batch in ((28, 139, 1), (617, 139, 1), (10_000, 139, 1), (28, 139, 8), (617, 139, 8), (10_000, 139, 8)):
        load = Load(d, K, batch)
        seconds = race({"ours": load.ours, "full": load.full}, rounds=100 if d < 1000 else 9)
        gains = ratio(seconds, "full", "ours")
        rows.append(
            {
                "d x K": f"{d:,} x {K}",
                "arrivals at a time": batch,
                "updates a second": batch / float(np.median(seconds["ours"])),
                "full decomposition": batch / float(np.median(seconds["full"])),
                "ours / full": gains["median"],
                "least": gains["least"],
                "target": 10 if (d, batch) == (10_000, 1) else "",
            }
        )
    publish("async_throughput", "Updates a second of one coordinator on one thread, trace norm", rows)


def main() -> None:
    """All of it."""
    found = settings()
    throughput()
    against_each_other(found)
    tried(found)


if __name__ == "__main__":
    main()
