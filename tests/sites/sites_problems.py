"""Small problems over sites, their optimum by a solver that knows nothing of sites, and a coordinator led by hand.

Letters: K tasks, n rows of a task, d features, W (d, K) coefficients.
"""

from functools import partial

import numpy as np

from taskloom.linear import Fista, SolverOptions, Squared, minimize
from taskloom.sites import (
    LossOptions,
    StepOptions,
    StopRule,
    TaskRows,
    fit,
    get_method,
    make_coordinator,
    make_site,
    read_sites,
    site_makers,
)
from taskloom.tasks import Task, TaskData

K, D, N = 4, 5, 40


def make_pairs(seed=0, K=K, d=D, n=N, loss="squared", noise=1.0):
    """Tasks of uneven size with own rows, near a common subspace."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(d, 2)) @ rng.normal(size=(2, K))
    Xs = [rng.normal(size=(n + 6 * t, d)) for t in range(K)]
    scores = [X @ W[:, t] + 0.5 + noise * rng.normal(size=len(X)) for t, X in enumerate(Xs)]
    ys = [np.where(z > 0, 1.0, -1.0) if loss == "logistic" else z for z in scores]
    return {f"s{t}": (X, y) for t, (X, y) in enumerate(zip(Xs, ys, strict=True))}


def make_shared(seed=0, K=K, d=D, n=2 * N, loss="squared"):
    """The same with shared rows, a fifth of the labels missing."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    Y = X @ (rng.normal(size=(d, 2)) @ rng.normal(size=(2, K))) + 0.5 + rng.normal(size=(n, K))
    Y = np.where(Y > 0, 1.0, 0.0) if loss == "logistic" else Y
    Y[rng.random(Y.shape) < 0.2] = np.nan
    tasks = [Task(f"s{t}", "binary", ("no", "yes")) if loss == "logistic" else f"s{t}" for t in range(K)]
    return TaskData.shared_rows(X, Y, tasks)


def solve(data, penalty, loss="auto", scale="mean", fit_intercept=True, tol=1e-12):
    """The problem, and its solution by `minimize`."""
    problem = read_sites(data, LossOptions(loss, scale, fit_intercept)).problem
    return problem, minimize(problem, penalty, solver=Fista(), options=SolverOptions(tol=tol, max_iter=100_000))


def simulate(data, penalty, **settings):
    """`fit` on the simulated transport; to a gap of 1e-8 unless told otherwise."""
    defaults = {"transport": "simulated", "delays": 1.0, "gap": 1e-8, "tol": 0.0, "max_updates": 100_000}
    return fit(data, penalty, **(defaults | settings))


class Hand:
    """A coordinator and its sites in one room: every message is passed by hand, and kept.

    Args:
        method: its name.
        penalty: of the model.
        sites: tasks of each site; default one each.
        rule: when it is over; default never.
        steps: lengths of steps.
        seed: of the data.
    """

    def __init__(self, method, penalty, *, sites=None, rule=None, steps=None, seed=0):
        names = None if sites is None else {site: [f"s{t}" for t in tasks] for site, tasks in sites.items()}
        self.data = read_sites(make_pairs(seed), LossOptions(), names)
        self.method, self.penalty = get_method(method), penalty
        self.coordinator = make_coordinator(self.data, penalty, self.method, rule or StopRule(0.0), steps or StepOptions())
        self.makers = site_makers(self.data, self.method)
        self.sites = {name: make() for name, make in self.makers.items()}
        self.sent, self.answered, self.now = [], [], 0.0

    def send(self, name):
        """What a site has to say goes to the coordinator, which does not answer yet."""
        self.now += 1.0
        self.sent.append(self.sites[name].pending)
        self.coordinator.receive(self.sent[-1], self.now)

    def answer(self):
        """All answers that can be given go to their sites."""
        answers = self.coordinator.answers(self.now)
        for each in answers:
            self.sites[each.site].take(each)
        self.answered += answers
        return answers

    def trip(self, name):
        """One site's message there and back."""
        self.send(name)
        return self.answer()

    def rounds(self, n):
        """All sites in turn, n times; the first time they join."""
        for _ in range(n):
            for name in self.sites:
                self.trip(name)


def rows_of(X, y, fit_intercept=False):
    """A task's rows with weights of one."""
    return TaskRows(X, y, np.ones(len(y)), Squared(), fit_intercept)


def maker_of(name, rows, method="local-prox"):
    """What makes a site of one task."""
    return partial(make_site, name, [rows], rows.X.shape[1], get_method(method))
