"""The measures by name, all that need no more than data and a net; and how groups are made of what each gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from taskloom.relate._affinity import Affinity
from taskloom.relate._cluster import METHODS
from taskloom.relate._datamap import datamap
from taskloom.relate._divergence import divergence
from taskloom.relate._gradtag import gradtag
from taskloom.relate._gram import gram
from taskloom.relate._labels import labels
from taskloom.relate._lookahead import lookahead
from taskloom.relate._options import AffinityWarning, MeasureOptions, Model
from taskloom.relate._samplewise import samplewise
from taskloom.relate._samplewise_cosine import samplewise_cosine
from taskloom.relate._task2vec import task2vec
from taskloom.relate._trained import pairwise, surrogate
from taskloom.tasks import TaskData, unknown

MEASURES: dict[str, Callable[[Model, TaskData, MeasureOptions], Affinity]] = {
    "datamap": datamap,
    "divergence": lambda _, data, options: divergence(None, data, options),
    "gradtag": gradtag,
    "gram": gram,
    "labels": lambda _, data, options: labels(None, data, options, fill=not data.is_shared),
    "lookahead": lookahead,
    "pairwise": pairwise,
    "samplewise": samplewise,
    "samplewise_cosine": samplewise_cosine,
    "surrogate": surrogate,
    "task2vec": task2vec,
}
# Another seed gives them the same numbers, but for which rows are looked at.
WITHOUT_NET = ("divergence", "labels")
AUTO, SELECT = "auto", "select"


def check_measure(name: str) -> None:
    """Refuse a name that is none.

    Raises:
        UnknownNameError: names the nearest.
    """
    if name not in MEASURES:
        raise unknown("measure", name, MEASURES)


def measure(name: str, model: Model, data: TaskData, options: MeasureOptions) -> Affinity:
    """An affinity by the name of its measure; what it does otherwise than its name says is in its `notes` alone.

    Args:
        name: of the measure.
        model: what makes nets, or a net; measures without one take no notice of it.
        data: encoded training rows.
        options: of the measure.

    Raises:
        UnknownNameError: there is no such measure.
        DataError: data of which the measure cannot be taken.
        FitError: the joint run failed.
    """
    check_measure(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AffinityWarning)
        return MEASURES[name](model, data, options)


def unfit(name: str, data: TaskData) -> str:
    """Why a measure cannot be taken of such tasks, whatever their values; nothing where it can."""
    if name == "divergence" and data.is_shared:
        return "`measure`='divergence' compares rows, and these tasks share theirs; take 'labels'"
    if name == "datamap" and not data.is_shared:
        return "`measure`='datamap' compares tasks row by row, and each of these has rows of its own; take 'divergence'"
    if name == "gradtag" and data.n_tasks < 3:
        return "`measure`='gradtag' compares the company of a task and takes three tasks; take 'labels'"
    return ""


def check_grouping(method: str) -> None:
    """Refuse a method of making groups that is none.

    Raises:
        UnknownNameError: names the nearest.
    """
    known = (AUTO, SELECT, *METHODS)
    if method not in known:
        raise unknown("method of grouping", method, known)


def grouping_for(method: str, affinity: Affinity) -> str:
    """What `auto` stands for: `select` for gains, which have a zero; spectral clusters for a likeness.

    On planted groups `select` made tight pairs of a likeness, and left in one heap the tasks that have nothing in common.
    """
    if method != AUTO:
        return method
    return "spectral" if affinity.zero is None else SELECT
