"""taskloom learns many related prediction tasks together, wherever their data live, and proves that none got worse.

The front door: read data with `read_table`, compare recipes with `study`, keep a model with `fit_model`. The rooms behind it
are `taskloom.tasks` (what a task is), `taskloom.linear` (linear models), `taskloom.deep` (nets), `taskloom.sites` (rows that
stay where they are), `taskloom.relate` (which tasks are alike), `taskloom.engines` (machines of one's own) and
`taskloom.study` (comparison, report, saved models).

Examples:
    >>> import taskloom as tl
    >>> data = tl.load_digits_tasks()
    >>> data.n_tasks, data.tasks[0].name
    (5, '0 or 9')
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskloom import deep, engines, linear, relate, sites, tasks
    from taskloom.study import Model, Study, StudyOptions, fit_model, load_model, study
    from taskloom.tasks import (
        Recipe,
        TableOptions,
        Task,
        TaskData,
        TaskloomError,
        load_diabetes_tasks,
        load_digits_tasks,
        read_table,
        recipe_classes,
        register_recipe,
    )

__version__ = "0.1.0"

__all__ = [
    "Model",
    "Recipe",
    "Study",
    "StudyOptions",
    "TableOptions",
    "Task",
    "TaskData",
    "TaskloomError",
    "deep",
    "engines",
    "fit_model",
    "linear",
    "load_diabetes_tasks",
    "load_digits_tasks",
    "load_model",
    "read_table",
    "recipe_classes",
    "register_recipe",
    "relate",
    "sites",
    "study",
    "tasks",
]

_ROOMS = {"deep", "engines", "linear", "relate", "sites", "study", "tasks"}
_OF_STUDY = {"Model", "Study", "StudyOptions", "fit_model", "load_model"}


def __getattr__(name: str) -> Any:
    # Importing torch and scikit-learn takes seconds: nobody waits for what is not used.
    if name in _ROOMS:
        return importlib.import_module(f"taskloom.{name}")
    if name == "recipe_classes":
        # The rooms register their recipes when they are imported, and the study imports them all.
        importlib.import_module("taskloom.study")
    if name in __all__:
        return getattr(importlib.import_module("taskloom.study" if name in _OF_STUDY else "taskloom.tasks"), name)
    raise AttributeError(f"module 'taskloom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
