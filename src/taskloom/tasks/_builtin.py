"""Small real data that scikit-learn carries, as tasks.

Letters: K tasks, n rows, d features.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from taskloom.tasks._data import TaskData
from taskloom.tasks._errors import unknown
from taskloom.tasks._features import Features
from taskloom.tasks._task import Task

AGE_LIMITS = (19, 35, 42, 49, 56, 63, 80)
DIGIT_PAIRS = ((0, 9), (1, 8), (2, 7), (3, 6), (4, 5))


def load_digits_tasks(shape: str = "pairs", *, metric: str = "") -> TaskData:
    """Handwritten digits (scikit-learn's 1,797 images of 8 x 8 pixels, d = 64) as binary tasks.

    Args:
        shape: `pairs`: five tasks with own rows, 0 or 9, 1 or 8, 2 or 7, 3 or 6, 4 or 5, as in the experiments of Baytas
            et al. (2016), which used MNIST; `one_vs_rest`: ten tasks on shared rows, one a digit.
        metric: of all tasks; empty picks `auc`.

    Raises:
        UnknownNameError: another `shape`.

    Examples:
        >>> load_digits_tasks()
        TaskData(5 binary tasks, own rows, 1797 rows x 64 features)
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    if shape == "one_vs_rest":
        tasks = tuple(Task(f"is {c}", "binary", ("no", "yes"), metric=metric) for c in range(10))
        return TaskData(tasks, Features(digits.data), (digits.target[:, None] == np.arange(10)).astype(np.float64))
    if shape != "pairs":
        raise unknown("shape of the digits tasks", shape, ("pairs", "one_vs_rest"))
    pair_of = {digit: t for t, pair in enumerate(DIGIT_PAIRS) for digit in pair}
    tasks = tuple(Task(f"{a} or {b}", "binary", (str(a), str(b)), metric=metric) for a, b in DIGIT_PAIRS)
    owner = np.array([pair_of[digit] for digit in digits.target])
    second = np.array([pair[1] for pair in DIGIT_PAIRS])
    return TaskData(tasks, Features(digits.data), (digits.target == second[owner]).astype(np.float64), owner, "pair")


def load_diabetes_tasks(shape: str = "outcomes") -> TaskData:
    """442 diabetes patients (Efron et al. 2004), regression.

    Args:
        shape: `outcomes`: seven outcomes of one patient on shared rows, the six blood serum measurements `s1` ... `s6` and the
            disease's `progression` after one year, from d = 4 features (age, sex, body mass index, blood pressure);
            `age_groups`: one outcome in six groups with own rows, `progression` in each age group from all d = 10 features.

    Raises:
        UnknownNameError: another `shape`.

    Examples:
        >>> load_diabetes_tasks("age_groups")
        TaskData(6 regression tasks, own rows, 442 rows x 10 features)
    """
    from sklearn import datasets

    table = datasets.load_diabetes(scaled=False)
    names = tuple(table.feature_names)
    if shape == "age_groups":
        group = np.digitize(table.data[:, names.index("age")], AGE_LIMITS) - 1
        tasks = tuple(Task(f"{low} to {high - 1}") for low, high in pairwise(AGE_LIMITS))
        return TaskData(tasks, Features(table.data, names), table.target, group, "age group")
    if shape != "outcomes":
        raise unknown("shape of the diabetes tasks", shape, ("outcomes", "age_groups"))
    inputs = ("age", "sex", "bmi", "bp")
    column = {name: table.data[:, j] for j, name in enumerate(names)}
    serum = tuple(name for name in names if name not in inputs)
    features = Features(np.column_stack([column[name] for name in inputs]), inputs)
    outcomes = np.column_stack([*(column[name] for name in serum), table.target])
    return TaskData(tuple(Task(name) for name in (*serum, "progression")), features, outcomes)
