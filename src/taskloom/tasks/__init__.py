"""What a task is: kinds, data, splits, metrics, reading tables, and the protocol that every recipe keeps.

A `Task` has a name, a kind (`regression`, `binary`, `multiclass`), a loss and a metric. `TaskData` holds the rows and labels of
K tasks in one of two shapes behind one interface: *shared rows* (one X, a K-column Y, NaN = missing label) or *own rows* (each
task its own X_t, y_t). `read_table` makes it from a CSV or Parquet file or any dataframe; `load_digits_tasks` and
`load_diabetes_tasks` make it from data that scikit-learn carries.

`split_rows` splits it, stratified per task; `FeatureEncoder` and `TargetScaler`, fitted on training rows only, turn it into the
numbers that a `Recipe` learns from. A recipe is registered by name with `register_recipe`, and what it leaves behind is a
`Predictor`.

Letters, here and everywhere: K tasks, t or k one task, n rows, d features.
"""

from taskloom.tasks._arrays import Array, Rows
from taskloom.tasks._builtin import load_diabetes_tasks, load_digits_tasks
from taskloom.tasks._columns import canonical
from taskloom.tasks._data import TaskData
from taskloom.tasks._encode import FeatureEncoder, TargetScaler, check_finite
from taskloom.tasks._errors import (
    DataError,
    ModelFileError,
    OptionError,
    OutputError,
    TaskloomError,
    UnknownNameError,
    nearest_name,
    unknown,
)
from taskloom.tasks._features import Features
from taskloom.tasks._files import check_file
from taskloom.tasks._metrics import Metric, get_metric, metric_names
from taskloom.tasks._model_files import read_model_files, write_model_files
from taskloom.tasks._numbers import are_flags, check_positive, check_whole, is_number, is_whole
from taskloom.tasks._recipe import (
    Curve,
    Family,
    FitError,
    Predictor,
    Recipe,
    RecipeFit,
    get_predictor,
    get_recipe,
    recipe_classes,
    register_predictor,
    register_recipe,
)
from taskloom.tasks._split import Split, split_rows
from taskloom.tasks._table import TableOptions, read_rows, read_table
from taskloom.tasks._task import Task
from taskloom.tasks._write import check_folder, write_file

__all__ = [
    "Array",
    "Curve",
    "DataError",
    "Family",
    "FeatureEncoder",
    "Features",
    "FitError",
    "Metric",
    "ModelFileError",
    "OptionError",
    "OutputError",
    "Predictor",
    "Recipe",
    "RecipeFit",
    "Rows",
    "Split",
    "TableOptions",
    "TargetScaler",
    "Task",
    "TaskData",
    "TaskloomError",
    "UnknownNameError",
    "are_flags",
    "canonical",
    "check_file",
    "check_finite",
    "check_folder",
    "check_positive",
    "check_whole",
    "get_metric",
    "get_predictor",
    "get_recipe",
    "is_number",
    "is_whole",
    "load_diabetes_tasks",
    "load_digits_tasks",
    "metric_names",
    "nearest_name",
    "read_model_files",
    "read_rows",
    "read_table",
    "recipe_classes",
    "register_predictor",
    "register_recipe",
    "split_rows",
    "unknown",
    "write_file",
    "write_model_files",
]
