"""One job: which sites learn which tasks together, how, and when it is over. The same file serves every engine.

Letters: K tasks, d features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property, reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from taskloom.engines._site_file import SITE_KEYS, SiteFile, table_of
from taskloom.engines._values import check_keys, finite, flag, folder_name, number, plain, repeated, whole, word, words
from taskloom.engines._yaml import read_yaml
from taskloom.linear import (
    L1,
    L21,
    Clustered,
    Fused,
    Fusion,
    Graph,
    L1Inf,
    Loss,
    MeanRegularized,
    OutlierTasks,
    Penalty,
    Ridge,
    Trace,
    column_prox,
    get_loss,
    scale_factor,
)
from taskloom.sites import AsynchronousCoordinator, Coordinator, StepOptions, StopRule, SynchronousCoordinator, get_method
from taskloom.tasks import OptionError, canonical, unknown

# Those whose model predicts what a table's column holds: values, or one of two classes.
LOSSES = ("squared", "huber", "logistic", "squared_hinge")
# Seconds: longer than this no system call can wait.
LONGEST_WAIT = 1e6
PENALTIES: dict[str, type[Penalty]] = {
    "clustered": Clustered,
    "fused": Fused,
    "fusion": Fusion,
    "graph": Graph,
    "l1": L1,
    "l1inf": L1Inf,
    "l21": L21,
    "mean": MeanRegularized,
    "outlier_tasks": OutlierTasks,
    "ridge": Ridge,
    "trace": Trace,
}


@dataclass(frozen=True)
class Feature:
    """A column that the model learns from, as (value - center) / scale: fixed numbers, the same at every site.

    Attributes:
        name: of the column.
        center: taken off.
        scale: divided by.
    """

    name: str
    center: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Job:
    """What sites learn together. `read_job` makes it, from a file or a mapping, and checks it.

    Attributes:
        sites: names of the tasks that each site holds; no two hold the same.
        features: d columns.
        penalty: of the model: strengths by name, such as {"trace": 0.1}; several add up. For more than a strength give the
            fields of the class: {"fused": {"fusion": 1, "sparsity": 0.1}}.
        name: of the job.
        loss: of all tasks: `squared`, `huber`, `logistic` or `squared_hinge`.
        classes: the two labels of a classification, as they stand in the tables; the second is what is predicted.
        scale: what a task's sum of losses is divided by: `mean` (its rows), `sum` (nothing), `sklearn`, `malsar`.
        fit_intercept: whether each task has an intercept that no penalty touches.
        method: of `taskloom.sites.METHODS`.
        step: of the local step, in place of the method's own.
        relaxation: greatest one, in place of the method's own.
        tol: the run ends when the residual relative to the norm of V is below it; 0 for never.
        max_updates: of all sites together.
        max_rounds: of each site; None for no limit.
        min_sites: the run ends when fewer are left.
        max_norm: greatest norm of a site's columns that is believed, in units of the coefficients.
        patience: seconds without a word after which a site is shown as silent; at most 1e6.
        give_up: seconds without a word after which a site counts as lost, until it is heard of again.
        checkpoint: folder that the coordinator is saved to.
        checkpoint_every: updates between two saves.
        out: folder of the model, the report and the result.
        target: column of the labels, where a site's table does not say otherwise.
        by: column whose values name the tasks, where a site's table does not say otherwise.
        tables: of the sites whose rows are on this machine.

    Examples:
        >>> sites = {"north": ["a", "b"], "south": ["c"]}
        >>> job = read_job({"sites": sites, "features": ["x1", "x2"], "penalty": {"trace": 0.1}})
        >>> job.tasks, job.columns["south"], job.make_penalty()
        (['a', 'b', 'c'], [2], Trace(strength=0.1))
    """

    sites: Mapping[str, tuple[str, ...]]
    features: tuple[Feature, ...]
    penalty: Mapping[str, Any]
    name: str = "job"
    loss: str = "squared"
    classes: tuple[Any, Any] = (0, 1)
    scale: str = "mean"
    fit_intercept: bool = True
    method: str = "local-prox"
    step: float | None = None
    relaxation: float | None = None
    tol: float = 1e-6
    max_updates: int = 100_000
    max_rounds: int | None = None
    min_sites: int = 1
    max_norm: float = 1e12
    patience: float = 20.0
    give_up: float = 600.0
    checkpoint: Path = Path("checkpoint")
    checkpoint_every: int = 1000
    out: Path = Path("out")
    target: str | None = None
    by: str | None = None
    tables: Mapping[str, SiteFile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("tol", "step", "relaxation", "max_norm", "patience", "give_up"):
            value = getattr(self, key)
            if value is not None:
                number(key, value, zero=key == "tol", most=LONGEST_WAIT if key == "patience" else np.inf)
        for key in ("max_updates", "max_rounds", "min_sites", "checkpoint_every"):
            value = getattr(self, key)
            if value is not None:
                whole(key, value)
        if self.relaxation is not None and self.relaxation >= 2:
            raise OptionError(f"`relaxation`={self.relaxation!r}: need a number above 0 and below 2")
        flag("fit_intercept", self.fit_intercept)
        self._check_model()
        if self.min_sites > len(self.sites):
            raise OptionError(f"`min_sites`={self.min_sites}: there are only {len(self.sites)} sites; ask for fewer")
        for site, table in self.tables.items():
            table.check(self.sites[site], self.target, self.by)
        twice = repeated(self.tasks)
        if twice is not None:
            holders = ", ".join(site for site, held in self.sites.items() if twice in held)
            raise OptionError(f"`sites`: task {twice!r} is held by {holders}; a task is one site's")

    def _check_model(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("loss", str(self.loss), LOSSES)
        scale_factor(self.scale, self.row_loss, np.ones(1))
        get_method(self.method)
        if len({canonical(str(each)) for each in self.classes}) != 2:
            raise OptionError(f"`classes`={self.classes!r}: need two labels that differ, such as [0, 1]")
        column_prox(self.make_penalty(), 1.0, np.zeros((self.n_features, len(self.tasks))))

    @property
    def n_features(self) -> int:
        """The number of columns, d."""
        return len(self.features)

    @property
    def tasks(self) -> list[str]:
        """K names, in the order of the model's columns."""
        return [task for held in self.sites.values() for task in held]

    @cached_property
    def columns(self) -> dict[str, list[int]]:
        """Columns of the tasks of each site."""
        ends = np.cumsum([len(held) for held in self.sites.values()])
        return {
            site: list(range(end - len(held), end)) for (site, held), end in zip(self.sites.items(), ends.tolist(), strict=True)
        }

    @property
    def row_loss(self) -> Loss:
        """Of a row."""
        return get_loss(self.loss)

    @property
    def steps(self) -> StepOptions:
        """Lengths of steps."""
        return StepOptions(self.step, self.relaxation)

    def make_penalty(self) -> Penalty:
        """As one object."""
        return reduce(add, [_penalty(name, value) for name, value in self.penalty.items()])

    @property
    def problem(self) -> dict[str, Any]:
        """What a saved run is only worth something with, as JSON has it: the coordinator knows but the number of columns."""
        columns = [[each.name, each.center, each.scale] for each in self.features]
        known = {"features": columns, "loss": self.loss, "scale": self.scale, "fit_intercept": self.fit_intercept}
        return known if self.row_loss.labels == "real" else known | {"classes": list(self.classes)}

    def make_coordinator(self) -> Coordinator:
        """A new one, which knows no rows."""
        method = get_method(self.method)
        make = SynchronousCoordinator if method.is_synchronous else AsynchronousCoordinator
        rule = StopRule(self.tol, self.max_updates, self.max_rounds)
        coordinator = make(self.columns, self.n_features, rule, self.make_penalty(), method, self.steps)
        coordinator.max_norm = self.max_norm
        return coordinator

    def to_dict(self, *, tables: bool = False) -> dict[str, Any]:
        """Plain values, which `read_job` reads and JSON can have.

        Args:
            tables: whether to say where the sites' rows are; what travels to sites must not.
        """
        values = {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("sites", "features", "tables")
        }
        values |= {"checkpoint": str(self.checkpoint), "out": str(self.out), "classes": list(self.classes)}
        values["penalty"] = dict(self.penalty)
        values["features"] = [vars(each) if each != Feature(each.name) else each.name for each in self.features]
        values["sites"] = {
            site: {"tasks": list(held)} | (_without_site(self.tables[site]) if tables and site in self.tables else {})
            for site, held in self.sites.items()
        }
        return {key: value for key, value in values.items() if value is not None}


def _without_site(table: SiteFile) -> dict[str, Any]:
    return {key: value for key, value in table.to_dict().items() if key != "site"}


JOB_KEYS = tuple(each.name for each in fields(Job) if each.name != "tables")


def read_job(source: str | Path | Mapping[str, Any], folder: str | Path | None = None) -> Job:
    """A job, all of it checked but for the tables themselves.

    Args:
        source: path of JOB.yml, or what it holds.
        folder: that relative paths count from; default the file's own, or the one that the program runs in.

    Raises:
        OptionError: a value that cannot be, with its key and the remedy.
        UnknownNameError: a key, loss, scale, method or penalty that there is not; the nearest is named.
    """
    stem = "job"
    if not isinstance(source, Mapping):
        path = Path(source)
        folder, stem, source = path.parent if folder is None else folder, path.stem, read_yaml(path)
    root = Path(folder or ".").resolve()
    check_keys(source, JOB_KEYS, "a job")
    given = {key: plain(value) for key, value in source.items() if value is not None}
    for key in ("sites", "features", "penalty"):
        if key not in given:
            raise OptionError(f"`{key}` is missing; a job names its `sites`, its `features` and its `penalty`")
    given["sites"], given["tables"] = _sites(given["sites"], root)
    given["features"] = _features(given["features"])
    if not isinstance(given["penalty"], Mapping) or not given["penalty"]:
        raise OptionError(f"`penalty`={given['penalty']!r}: need a strength by name, such as {{trace: 0.1}}")
    for key in ("name", "loss", "scale", "method", "target", "by"):
        if key in given:
            given[key] = word(key, given[key])
    given.setdefault("name", stem)
    given["classes"] = _classes(given.get("classes", (0, 1)))
    given["out"] = root / folder_name("out", given.get("out", f"{given['name']}-result"))
    given["checkpoint"] = root / folder_name("checkpoint", given.get("checkpoint", given["out"] / "checkpoint"))
    return Job(**given)


def _sites(given: Any, folder: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, SiteFile]]:
    """Tasks and tables by site."""
    if not isinstance(given, Mapping) or not given:
        raise OptionError(f"`sites`={given!r}: need the tasks of each site by its name, such as {{north: [a, b], south: [c]}}")
    tasks, tables = {}, {}
    for key, value in given.items():
        site = word("sites", key)
        if site in tasks:
            raise OptionError(f"`sites` names {site!r} twice; name it once")
        held = value
        if isinstance(value, Mapping):
            check_keys(value, ("tasks", *SITE_KEYS[1:]), f"site `{site}`")
            held = value.get("tasks")
            if any(value.get(each) is not None for each in SITE_KEYS[1:]):
                tables[site] = table_of(site, value, folder)
        tasks[site] = words(f"sites.{site}", held)
    return tasks, tables


def _features(given: Any) -> tuple[Feature, ...]:
    if not isinstance(given, list | tuple) or not given:
        raise OptionError(f"`features`={given!r}: need a list of columns, such as [age, weight]")
    known = [each.name for each in fields(Feature)]
    read = []
    for each in given:
        if not isinstance(each, Mapping):
            read.append(Feature(word("features", each)))
            continue
        check_keys(each, known, "a feature")
        name = word("features.name", each.get("name"))
        center, scale = (finite(f"features.{name}.{key}", each.get(key, usual)) for key, usual in (("center", 0), ("scale", 1)))
        read.append(Feature(name, center, number(f"features.{name}.scale", scale)))
    words("features", [each.name for each in read])
    return tuple(read)


def _classes(given: Any) -> tuple[Any, Any]:
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise OptionError(f"`classes`={given!r}: need two labels, such as [0, 1] or [healthy, ill]")
    for each in given:
        if not isinstance(each, bool):
            word("classes", each)
        if isinstance(each, float) and not np.isfinite(each):
            raise OptionError(f"`classes` holds {each!r}; rows without a label are left out as they are, name two labels")
    return given[0], given[1]


def _penalty(name: str, value: Any) -> Penalty:
    if name not in PENALTIES:
        raise unknown("penalty", str(name), PENALTIES)
    kind = PENALTIES[name]
    if not isinstance(value, Mapping):
        return _made(name, {kind.strengths[0]: number(f"penalty.{name}", value, zero=True)})
    known = [each.name for each in fields(kind)] if is_dataclass(kind) else []
    check_keys(value, known, f"penalty `{name}`")
    return _made(name, dict(value))


def _made(name: str, values: dict[str, Any]) -> Penalty:
    try:
        return PENALTIES[name](**{key: np.asarray(each) if isinstance(each, list) else each for key, each in values.items()})
    except OptionError:
        raise
    except (TypeError, ValueError) as error:
        raise OptionError(f"`penalty.{name}`: {error}; correct its fields") from error
