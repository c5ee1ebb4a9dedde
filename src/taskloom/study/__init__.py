"""Recipes compared honestly, and what comes of it: a verdict, a report, a model.

`study` trains every recipe on the same splits and seeds with the same budget and says, task by task, who was helped and who was
hurt by learning together, against the single-task baseline of the recipe's family. Its `Study` prints as a table, and writes
`report.html` (one file that needs nothing else) and `results.json` (described by `results_schema`). `fit_model` fits one recipe
to all rows; the `Model` is saved as safetensors and JSON and loaded with `load_model`.
"""

import sys
from types import ModuleType
from typing import Any

# The rooms below register their recipes when they are imported.
import taskloom.deep
import taskloom.linear
import taskloom.relate
import taskloom.sites  # noqa: F401
from taskloom.study._compare import RecipeInfo, Summary, Verdict
from taskloom.study._controls import Contrast
from taskloom.study._demo import DEMO_RECIPES, DEMO_TARGET, demo_data, save_csv
from taskloom.study._model import Model, fit_model, load_model
from taskloom.study._options import StudyOptions
from taskloom.study._report import results_schema
from taskloom.study._study import Study, study
from taskloom.study._unit import Unit
from taskloom.study._verdict import Interval, holm, paired_interval

__all__ = [
    "DEMO_RECIPES",
    "DEMO_TARGET",
    "Contrast",
    "Interval",
    "Model",
    "RecipeInfo",
    "Study",
    "StudyOptions",
    "Summary",
    "Unit",
    "Verdict",
    "demo_data",
    "fit_model",
    "holm",
    "load_model",
    "paired_interval",
    "results_schema",
    "save_csv",
    "study",
]


class _Room(ModuleType):
    """This room, which is called like the function that it is for: `taskloom.study(data)` is `taskloom.study.study(data)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Study:
        return study(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
