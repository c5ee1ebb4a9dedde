"""The study: recipes on the same splits and seeds, compared per task with single-task baselines.

Letters: K tasks, S seeds.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import joblib
from rich.table import Table

from taskloom.study._cache import UnitCache
from taskloom.study._controls import described, with_controls
from taskloom.study._options import StudyOptions, seed_list
from taskloom.study._outcome import Outcome
from taskloom.study._progress import progress_bar
from taskloom.study._report import render_report
from taskloom.study._tables import summary_table, verdict_table
from taskloom.study._unit import Unit, run_unit
from taskloom.tasks import (
    DataError,
    OptionError,
    Recipe,
    TaskData,
    get_recipe,
    is_whole,
    recipe_classes,
    split_rows,
    write_file,
)

MOST_ROWS = 60
_ONE_FIT_A_PROCESS = threading.Lock()


class Job(NamedTuple):
    """A unit to be run, and the key that it is kept by."""

    recipe: Recipe
    seed: int
    key: str


class Study(Outcome):
    """The outcome of a study, with its table, its report and its results file.

    The attributes are those of `Outcome`: `tasks`, `data`, `recipes`, `seeds`, `options`, `units`, `environment`, and what
    follows from them: `verdicts`, `summaries`, `contrasts`, `words()`.
    """

    @property
    def is_detailed(self) -> bool:
        """Whether `table()` has a row for each task and recipe: where that is readable."""
        return 0 < len(self.verdicts) <= MOST_ROWS

    def table(self, *, per_task: bool | None = None) -> Table:
        """The outcome as a table for the terminal; print it with `rich`.

        Args:
            per_task: a row for each task and recipe, or one for each recipe; by default as `is_detailed` says.
        """
        detailed = self.is_detailed if per_task is None else per_task and bool(self.verdicts)
        return verdict_table(self) if detailed else summary_table(self)

    def save_results(self, path: str | Path) -> Path:
        """Write `results.json`.

        Raises:
            OutputError: it cannot be written.
        """
        write_file(Path(path), json.dumps(self.to_json(), indent=1, allow_nan=False))
        return Path(path)

    def report(self, path: str | Path) -> Path:
        """Write the report: one HTML file that needs nothing else.

        Raises:
            OutputError: it cannot be written.
        """
        write_file(Path(path), render_report(self))
        return Path(path)


def study(
    data: TaskData,
    recipes: str | Recipe | Sequence[str | Recipe] | None = None,
    *,
    seeds: int | Sequence[int] = 5,
    n_jobs: int | None = None,
    options: StudyOptions | None = None,
    progress: bool | Callable[[int, int, str], None] | None = None,
) -> Study:
    """Train every recipe on the same splits and say, task by task, who was helped and who was hurt.

    For every seed the rows are split afresh (stratified per task), features and targets are encoded by the training rows, and
    every recipe is fitted with the same budget of candidates chosen on validation rows. A recipe's gain on a task is its test
    score minus that of the single-task baseline of its family (the best on validation, if there are several) on the same split.
    The interval is the corrected resampled t-interval (Nadeau & Bengio 2003); verdicts are corrected for the number of tasks
    (Holm 1979). Finished fits are kept on disk: a study that was interrupted goes on where it stopped, and a study with one
    more recipe trains only that one.

    Args:
        data: the tasks.
        recipes: names or recipe objects; default: all registered that need no extra and serve
            these tasks. The baselines of their families are added, and the controls that recipes ask for.
        seeds: a number S (0 ... S - 1) or the seeds themselves; at least 3 for a verdict.
        n_jobs: fits at once, as joblib counts them (-1: all cores; None: one, or what `joblib.parallel_config` says). Any
            registered joblib backend serves, and the numbers are the same for every one.
        options: split, budget, confidence, cache.
        progress: True or False for a bar on standard error, a function (done, total, what), or None: a bar on a terminal.

    Raises:
        OptionError, UnknownNameError: options that cannot be.
        DataError: a task with too few rows for the split.
        OutputError: the cache folder cannot be written.

    Examples:
        >>> from taskloom.tasks import load_diabetes_tasks
        >>> result = study(load_diabetes_tasks(), ["ridge"], seeds=3, options=StudyOptions(cache=False))
        >>> [summary.recipe for summary in result.summaries]
        ['ridge']
    """
    options, seeds = StudyOptions() if options is None else options, seed_list(seeds)
    if not isinstance(options, StudyOptions):
        raise OptionError(f"`options`={options!r}: give a `StudyOptions`, as in `StudyOptions(budget=3)`")
    if n_jobs is not None and (not is_whole(n_jobs) or n_jobs == 0):
        raise OptionError(f"`n_jobs`={n_jobs!r}: give the number of fits at once, or -1 for all cores")
    named = [recipes] if isinstance(recipes, str | Recipe) else recipes
    if named is None:
        ready = [make() for make in recipe_classes().values() if make.by_default]
        named = [recipe for recipe in ready if not recipe.refuses(data)]
    chosen = [get_recipe(recipe) for recipe in named]
    chosen = with_baselines(with_controls(chosen) if options.controls else chosen)
    _check_data(data)
    # A split that is impossible is found before anything is trained.
    for seed in seeds:
        split_rows(data, seed, options.fractions)
    cache = UnitCache(options.cache_folder(), data.digest(), options)
    # Keys are made here and passed on: a worker process may see a recipe's source under another name.
    wanted = [Job(recipe, seed, cache.key(recipe, seed)) for seed in seeds for recipe in chosen]
    units = {(job.recipe.label, job.seed): unit for job in wanted if (unit := cache.get(job.key, job.recipe.label)) is not None}
    missing = [job for job in wanted if (job.recipe.label, job.seed) not in units]
    with progress_bar(progress, len(wanted)) as show:
        show(len(units), f"{len(units)} of {len(wanted)} fits were done before" if units else "training")
        for unit in _run_all(data, missing, options, cache, n_jobs):
            units[unit.recipe, unit.seed] = unit
            show(len(units), f"{unit.recipe}, seed {unit.seed}")
    ordered = [units[job.recipe.label, job.seed] for job in wanted]
    return Study(data.tasks, describe(data), described(chosen), seeds, options, ordered)


def _check_data(data: Any) -> None:
    if not isinstance(data, TaskData):
        raise DataError(f"`data` is a {type(data).__name__}; make a TaskData of it with `read_table` or `TaskData.shared_rows`")
    data.check_labels()


def with_baselines(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes, preceded by the default baselines of families that have none among them.

    Raises:
        OptionError: none, or two of one label.
    """
    if not recipes:
        raise OptionError("`recipes` is empty; name at least one")
    covered = {recipe.family for recipe in recipes if recipe.is_baseline}
    everything = [*_missing_baselines([recipe for recipe in recipes if recipe.family not in covered]), *recipes]
    for recipe in everything:
        if not any(other.is_baseline and other.family == recipe.family for other in everything):
            raise OptionError(f"recipe `{recipe.label}` of family `{recipe.family}` has no single-task baseline; add one")
    labels = [recipe.label for recipe in everything]
    repeated = next((label for label in labels if labels.count(label) > 1), None)
    if repeated is not None:
        raise OptionError(f"`recipes`: two are labelled `{repeated}`; give one a `title` of its own")
    return sorted(everything, key=lambda recipe: not recipe.is_baseline)


def _missing_baselines(recipes: Sequence[Recipe]) -> list[Recipe]:
    """For recipes of families without a baseline: the ones they ask for, else their families' defaults, each once."""
    found: dict[str, Recipe] = {}
    for recipe in recipes:
        default = [cls() for cls in recipe_classes().values() if cls.is_baseline and cls.family == recipe.family]
        asked = recipe.baseline()
        for baseline in default if asked is None else [asked]:
            found.setdefault(json.dumps(baseline.settings(), sort_keys=True), baseline)
    labels = [baseline.label for baseline in found.values()]
    return [
        replace(cast("Any", baseline), title=f"{baseline.label} {labels[: i + 1].count(baseline.label)}")
        if labels.count(baseline.label) > 1
        else baseline
        for i, baseline in enumerate(found.values())
    ]


def describe(data: TaskData) -> dict[str, Any]:
    """What a report says of the data."""
    return {
        "n_rows": data.n_rows,
        "n_columns": data.features.n_columns,
        "columns": list(data.features.names),
        "shape": "shared rows" if data.is_shared else "own rows",
        "by": data.by,
        "labels": [len(data.rows(t)) for t in range(data.n_tasks)],
        "notes": list(data.notes),
        "digest": data.digest(),
        "question": dict(data.question),
    }


def _run_all(
    data: TaskData, missing: Sequence[Job], options: StudyOptions, cache: UnitCache, n_jobs: int | None
) -> Iterator[Unit]:
    if joblib.effective_n_jobs(n_jobs) == 1:
        for job in missing:
            yield _run_and_keep(data, job, options, cache)
        return
    jobs = (joblib.delayed(_run_and_keep)(data, job, options, cache) for job in missing)
    pool = joblib.Parallel(n_jobs=n_jobs)
    # Backends that cannot hand over results as they come hand them over at the end; each is kept by its worker all the same.
    can_stream = getattr(pool._backend, "supports_return_generator", False)
    yield from joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")(jobs) if can_stream else pool(jobs)


def _run_and_keep(data: TaskData, job: Job, options: StudyOptions, cache: UnitCache) -> Unit:
    # Threads of one process would share torch's generator: there the fits take turns, and stay the same to the bit.
    with _ONE_FIT_A_PROCESS:
        unit = run_unit(data, job.recipe, job.seed, options)
    # Kept by the worker itself: a study killed at any moment loses only the fits under way.
    cache.put(job.key, unit)
    return unit
