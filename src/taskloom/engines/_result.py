"""What a job leaves behind: a model that predicts, a report on its sites, and files of both.

Letters: K tasks, d features, n rows, W (d, K) coefficients.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskloom.engines._job import Job
from taskloom.engines._session import JobSession
from taskloom.linear import LinearPredictor
from taskloom.sites import SitesResult, collect_result, write_report
from taskloom.tasks import Array, FeatureEncoder, TargetScaler, Task, check_folder, write_file, write_model_files

REPORT_FILE, RESULT_FILE, MODEL_FOLDER = "report.html", "result.json", "model"


@dataclass(frozen=True)
class SiteReport:
    """What came of one site.

    Attributes:
        state: at the end: `done`, `not yet there`, `there`, `silent`, or `lost: ` and why.
        updates: columns taken.
        staleness: median delay of its updates, in updates of others; NaN where there were none.
        most_stale: greatest.
        bytes_in: that it sent, of messages alone.
        bytes_out: that it was sent.
        seen_at: seconds from the coordinator's start to its last message; NaN if there was none.
        refused: messages that were not taken.
        duplicates: messages that had come before.
        is_lost: whether it was lost at the end.
        is_lasting: whether it would be lost in the same way if the job went on.
    """

    state: str
    updates: int
    staleness: float
    most_stale: int
    bytes_in: int
    bytes_out: int
    seen_at: float
    refused: int
    duplicates: int
    is_lost: bool = False
    is_lasting: bool = False


@dataclass
class JobResult:
    """The model of a job, and how it came about.

    Attributes:
        job: that was run.
        engine: that it was run on.
        status: `converged`, `limit reached`, `sites lost`, `too few sites`, `stopped` or `failed`.
        message: the same in a sentence.
        run: coefficients, intercepts, round trips.
        sites: what came of each.
    """

    job: Job
    engine: str
    status: str
    message: str
    run: SitesResult
    sites: dict[str, SiteReport]

    @property
    def converged(self) -> bool:
        """Whether the tolerance was reached with all sites."""
        return self.status == "converged"

    @property
    def modelled(self) -> list[str]:
        """Tasks that can be predicted: the intercept of the others stayed at a site that was gone at the end."""
        return [task for task, intercept in zip(self.run.tasks, self.run.intercepts, strict=True) if not np.isnan(intercept)]

    def predict(self, X: Any, task: str | int) -> Array:
        """(n,) scores of one task; of two classes, the second is predicted where they are above 0.

        Args:
            X: (n, d) features as they stand in the tables.
            task: its name, or number from 0 on.

        Raises:
            UnknownNameError: there is no such task.
            DataError: X has another number of features, or the task's intercept is not known.
        """
        center, scale = (np.array([getattr(each, key) for each in self.job.features]) for key in ("center", "scale"))
        X = np.asarray(X, dtype=np.float64)
        return self.run.predict((X - center) / scale if X.shape[-1] == len(center) else X, task)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `result.json` has them."""
        return {
            "job": self.job.to_dict(),
            "engine": self.engine,
            "status": self.status,
            "message": self.message,
            "converged": self.converged,
            "seconds": self.run.seconds,
            "updates": self.run.updates,
            "tasks": self.run.tasks,
            "modelled": self.modelled,
            "notes": self.run.notes,
            "sites": {name: {key: _plain(value) for key, value in vars(site).items()} for name, site in self.sites.items()},
        }

    def save(self, folder: str | Path | None = None) -> Path:
        """Write `report.html`, `result.json`, and `model/`, which `taskloom.load_model` and `taskloom predict` read.

        Args:
            folder: that they go to; default the job's `out`.

        Raises:
            OutputError: it cannot be written.
        """
        target = check_folder(self.job.out if folder is None else Path(folder))
        write_report({self.job.method: self.run}, target / REPORT_FILE, about=self._about())
        if self.modelled:
            self._save_model(target / MODEL_FOLDER)
        else:
            drop_model(target)
        write_file(target / RESULT_FILE, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        return target

    def _about(self) -> str:
        """What happened, site by site, in a paragraph."""
        each = [
            f"{name}: {site.updates} updates, {site.bytes_in:,} bytes in and {site.bytes_out:,} out, {site.refused} refused, "
            f"{'never seen' if np.isnan(site.seen_at) else f'last seen after {site.seen_at:.1f} s'}, {site.state}"
            for name, site in self.sites.items()
        ]
        return f"Job {self.job.name} on {self.engine}: {self.message}. {'. '.join(each)}."

    def _by(self) -> str:
        """Column that names the task of a row, if all tables that are known and name one agree on it; else none."""
        each = {table.by or self.job.by for table in self.job.tables.values()} - {None} or {self.job.by}
        return (each.pop() or "") if len(each) == 1 else ""

    def _save_model(self, folder: Path) -> None:
        """In the form of `taskloom.study.Model`: a table of the same columns can be predicted with it."""
        job, columns = self.job, [self.run.tasks.index(task) for task in self.modelled]
        is_real = job.row_loss.labels == "real"
        tasks = [Task(name) if is_real else Task(name, "binary", job.classes) for name in self.modelled]
        blocks = [self.run.W[:, [t]] for t in columns]
        predictor = LinearPredictor(blocks, [self.run.intercepts[[t]] for t in columns], tasks)
        center, scale = (np.array([getattr(each, key) for each in job.features]) for key in ("center", "scale"))
        about = {
            "recipe": f"job {job.name}",
            "settings": {"status": self.status, "message": self.message},
            "by": self._by(),
            "numeric_names": [each.name for each in job.features],
            "categorical_names": [],
            "impute": False,
            "validation_scores": {},
        }
        unscaled = TargetScaler(np.zeros(len(tasks)), np.ones(len(tasks)))
        write_model_files(folder, tasks, predictor, FeatureEncoder(center, scale), unscaled, about)


def drop_model(folder: Path) -> None:
    """Delete the model of an earlier run: it would be taken for that of a run that has none."""
    for name in ("model.json", "weights.safetensors"):
        (folder / MODEL_FOLDER / name).unlink(missing_ok=True)
    if (folder / MODEL_FOLDER).is_dir() and not any((folder / MODEL_FOLDER).iterdir()):
        (folder / MODEL_FOLDER).rmdir()


def collect(session: JobSession, engine: str) -> JobResult:
    """What a run leaves behind; the session is closed by it.

    Args:
        session: of the run.
        engine: that it was run on.
    """
    session.close()
    job, run = session.job, collect_result(session, session.job.tasks, session.job.method)
    states, staleness = session.progress().states, run.staleness
    sites = {
        name: SiteReport(
            state=states[name],
            updates=record.updates,
            staleness=float(np.median(staleness[name])) if len(staleness[name]) else np.nan,
            most_stale=record.most_stale,
            bytes_in=session.bytes_in[name],
            bytes_out=session.bytes_out[name],
            seen_at=record.seen_at,
            refused=record.refused,
            duplicates=record.duplicates,
            is_lost=name in session.failed,
            is_lasting=name in session.failed and name in session.lasting,
        )
        for name, record in run.sites.items()
    }
    run.message = session.message
    return JobResult(job, engine, session.status, session.message, run, sites)


def _plain(value: Any) -> Any:
    """JSON has no number that is not finite."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
