"""Small problems of linear multi-task learning, with every formula written out once more in plain numpy.

Letters: K tasks, n rows of a task, d features, W (d, K) coefficients, s row weights, o offsets, b intercepts.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from taskloom.linear._design import OwnRows, SharedRows
from taskloom.linear._gram_problem import smooth_problem
from taskloom.linear._losses import get_loss
from taskloom.linear._problem import Labels

WIDTH = 1.35
VALUE = {
    "squared": lambda y, z: (y - z) ** 2 / 2,
    "logistic": lambda y, z: np.logaddexp(0, -y * z),
    "huber": lambda y, z: np.where(np.abs(y - z) < WIDTH, (y - z) ** 2 / 2, WIDTH * np.abs(y - z) - WIDTH**2 / 2),
    "poisson": lambda y, z: np.exp(z) - y * z,
    "squared_hinge": lambda y, z: np.maximum(0, 1 - y * z) ** 2 / 2,
}
SLOPE = {
    "squared": lambda y, z: z - y,
    "logistic": lambda y, z: -y * expit(-y * z),
    "huber": lambda y, z: np.clip(z - y, -WIDTH, WIDTH),
    "poisson": lambda y, z: np.exp(z) - y,
    "squared_hinge": lambda y, z: -y * np.maximum(0, 1 - y * z),
}
LOSSES = list(VALUE)
SHAPES = ["own", "shared", "missing"]


def draw_labels(loss, z, rng):
    """Labels of a loss's kind that depend on scores z."""
    if loss in ("logistic", "squared_hinge"):
        return np.where(rng.random(z.shape) < expit(2 * z), 1.0, -1.0)
    if loss == "poisson":
        return rng.poisson(np.exp(np.clip(z, -3, 3))).astype(float)
    return z + 0.5 + 0.7 * rng.standard_t(3, size=z.shape)


@dataclass
class Case:
    """A design and labels as the library takes them, and the same as one (X, y, s, o, loss) a task."""

    design: object
    labels: Labels
    tasks: list

    @property
    def K(self):  # noqa: N802
        return len(self.tasks)

    @property
    def d(self):
        return self.tasks[0][0].shape[1]

    def problem(self, **options):
        return smooth_problem(self.design, self.labels, **options)

    def value(self, W, b):
        """Losses at coefficients and intercepts."""
        return sum(float(s @ VALUE[loss](y, X @ W[:, t] + o + b[t])) for t, (X, y, s, o, loss) in enumerate(self.tasks))

    def gradient(self, W, b):
        """(d, K) gradient in W and (K,) in b."""
        slopes = [s * SLOPE[loss](y, X @ W[:, t] + o + b[t]) for t, (X, y, s, o, loss) in enumerate(self.tasks)]
        G = np.stack([task[0].T @ u for task, u in zip(self.tasks, slopes, strict=True)], axis=1)
        return G, np.array([u.sum() for u in slopes])


def make_case(
    shape="own",
    loss="squared",
    *,
    seed=0,
    d=5,
    K=3,
    n=24,
    weighted=False,
    offset=False,
    intercept=True,
    mean=0.0,
    convert=np.asarray,
):
    """A case; `loss` is a name for all tasks or one name a task, `convert` makes X what the library is given."""
    rng = np.random.default_rng(seed)
    names = [loss] * K if isinstance(loss, str) else list(loss)
    W = rng.normal(size=(d, K)) * (rng.random((d, 1)) < 0.6) + 0.3 * rng.normal(size=(d, K))
    own = shape == "own"
    sizes = [n + 7 * t * (-1) ** t for t in range(K)] if own else [n] * K
    noise = [rng.normal(size=(size, d)) for size in sizes]
    centred = noise if own else [noise[0]] * K
    Xs = [x + mean for x in centred]
    ys = [draw_labels(name, x @ w, rng) for name, x, w in zip(names, centred, W.T, strict=True)]
    weights = [rng.uniform(0.5, 2, size=size) if weighted else np.ones(size) for size in sizes]
    if shape == "missing":
        kept = [rng.random(size) < 0.7 for size in sizes]
        weights = [s * keep for s, keep in zip(weights, kept, strict=True)]
    weights = [s / s.sum() for s in weights]
    offsets = [0.3 * rng.normal(size=size) if offset else np.zeros(size) for size in sizes]
    join = np.concatenate if own else (lambda parts: np.stack(parts, axis=1))
    design = OwnRows([convert(X) for X in Xs]) if own else SharedRows(convert(Xs[0]), K)
    losses = [get_loss(name) for name in names]
    y = [np.where(s > 0, y, 0.0) for y, s in zip(ys, weights, strict=True)]
    labels = Labels(join(y), join(weights), losses, join(offsets) if offset else None, fit_intercept=intercept)
    tasks = [
        (X[s > 0], y[s > 0], s[s > 0], o[s > 0], name) for X, y, s, o, name in zip(Xs, ys, weights, offsets, names, strict=True)
    ]
    return Case(design, labels, tasks)
