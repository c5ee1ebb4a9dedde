"""What sharing is worth on School and Landmine: linear recipes beside single-task models, 10 splits, paired differences.

School: the 10 standard splits (75 / 25), explained variance over all test rows, 1 - SSE / SST, in percent. One row repeats a
published kind of setting (trace norm, half the sum of squares, strength 1000, standardised features, a penalised column of
ones); its strength was not chosen on validation rows, so it checks the solver and is no score. All other rows choose their
strength by cross-validation within the training rows. Landmine: a study of 10 seeds, area under the ROC curve.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from scipy.io import loadmat

from _timing import publish

warnings.filterwarnings("ignore")

import taskloom.linear as tl  # noqa: E402
from taskloom.study import StudyOptions, study  # noqa: E402
from taskloom.tasks import Task, TaskData  # noqa: E402

DATA = Path(os.environ.get("TASKLOOM_DATA", Path(__file__).parents[2] / "shared" / "data"))
PATH = tl.PathOptions(n_strengths=15, ratio=1e-4, folds=5, score="pooled")


def explained(y: np.ndarray, predicted: np.ndarray) -> float:
    return 100 * (1 - ((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def school() -> None:
    cells = loadmat(DATA / "school" / "school_b.mat")
    X, y = cells["x"].T.astype(float), cells["y"].ravel().astype(float)
    starts = cells["task_indexes"].ravel().astype(int) - 1
    owner = np.searchsorted(starts, np.arange(len(y)), side="right") - 1
    scores: dict[str, list[float]] = {}
    for i in range(1, 11):
        split = loadmat(DATA / "school" / f"school_{i}_indexes.mat")
        train, test = (split[name].ravel().astype(int) - 1 for name in ("tr", "tst"))
        mean, spread = X[train].mean(0), X[train].std(0)
        Z = (X - mean) / np.where(spread > 0, spread, 1)
        Z[:, -1] = 1.0
        order = train[np.argsort(owner[train], kind="stable")]
        models: dict[str, Any] = {
            "trace norm, strength 1000": tl.MultiTaskRegressor(tl.Trace(1000.0), scale="sum", fit_intercept=False, tol=1e-8),
            "ridge, each school alone": tl.MultiTaskRegressorCV(tl.Ridge(1.0), path=PATH),
            "ridge, all schools pooled": None,
            "lowrank": tl.MultiTaskRegressorCV(tl.Trace(1.0), path=PATH),
            "sparse": tl.MultiTaskRegressorCV(tl.L21(1.0), path=PATH),
            "graph (pull to the mean)": tl.MultiTaskRegressorCV(tl.MeanRegularized(1.0) + tl.Ridge(0.05), path=PATH),
            "clustered": tl.MultiTaskRegressorCV(tl.Clustered(3, 1.0, 0.1), path=PATH),
            "robust": tl.MultiTaskRegressorCV(tl.Robust(1.0, 0.5), path=PATH),
        }
        for name, model in models.items():
            if model is None:
                pooled = tl.MultiTaskRegressorCV(tl.Ridge(1.0), path=PATH).fit(Z[order], y[order])
                predicted = pooled.predict(Z[test])
            else:
                predicted = model.fit(Z[order], y[order], tasks=owner[order]).predict(Z[test], tasks=owner[test])
            scores.setdefault(name, []).append(explained(y[test], predicted))
        print(f"split {i}", {name: round(found[-1], 1) for name, found in scores.items()}, file=sys.stderr)
    base = np.array(scores["ridge, each school alone"])
    publish(
        "linear_school_scores",
        "School: explained variance in percent, 10 splits",
        [_row(n, s, base) for n, s in scores.items()],
    )


def _row(name: str, scores: list[float], base: np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation and the paired difference, with the corrected resampled t interval (Nadeau & Bengio 2003)."""
    found, n = np.array(scores), len(scores)
    gain = found - base
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((1 / n + 1 / 3) * gain.var(ddof=1))
    return {
        "model": name,
        "mean": float(found.mean()),
        "sd": float(found.std(ddof=1)),
        "gain over alone": float(gain.mean()),
        "95 % interval": f"[{gain.mean() - half:+.2f}, {gain.mean() + half:+.2f}]",
    }


def landmine() -> None:
    cells = loadmat(DATA / "landmine" / "LandmineData.mat")
    parts = [
        (x.astype(float), y.ravel().astype(float))
        for x, y in zip(cells["feature"].ravel(), cells["label"].ravel(), strict=True)
    ]
    tasks = [Task(f"field {t + 1}", "binary", classes=("clutter", "mine"), metric="auc") for t in range(len(parts))]
    data = TaskData.own_rows(parts, tasks, by="field")
    found = study(
        data, ["ridge", "lowrank", "sparse", "graph", "clustered", "robust"], seeds=10, options=StudyOptions(cache=False)
    )
    rows = []
    for summary in found.outcome.summaries if hasattr(found, "outcome") else found.summaries:
        scores = [unit.scores for unit in found.units if unit.recipe == summary.recipe]
        rows.append(
            {
                "recipe": summary.recipe,
                "mean AUC": float(np.mean(scores)),
                "sd over seeds": float(np.mean(scores, axis=1).std(ddof=1)),
            }
        )
    publish("linear_landmine_scores", "Landmine: mean area under the ROC curve, 29 fields, 10 seeds", rows)
    print("\n".join(found.words()))


def main() -> None:
    """Both, or those named on the command line."""
    jobs = {"school": school, "landmine": landmine}
    if not DATA.is_dir():
        print(f"no data folder ({DATA}): nothing to score", file=sys.stderr)
        return
    for name in sys.argv[1:] or jobs:
        jobs[name]()


if __name__ == "__main__":
    main()
