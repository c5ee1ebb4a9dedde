"""Which tasks were trained together, for the report: the groups in words, and a tree and a graph of what they were made of.

Letters: K tasks, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from taskloom.relate import Affinity, Groups, dendrogram, graph_picture
from taskloom.study._unit import Unit
from taskloom.tasks import Array


@dataclass(frozen=True)
class FoundGroups:
    """The groups of one recipe: those of the seed whose groups are most like those of the others.

    Attributes:
        recipe: its label.
        seed: whose groups they are.
        groups: its groups.
        n_same: seeds with the very same ones.
        n_seeds: S.
        affinity: what they were made of, mean over the seeds, from -1 to 1; None where there is none to show.
        notes: of the fit of that seed.
    """

    recipe: str
    seed: int
    groups: Groups
    n_same: int
    n_seeds: int
    affinity: Affinity | None
    notes: list[str]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """For each group the tasks that it serves, and those that only help in it."""
        served = [self.groups.served(place) for place in range(len(self.groups.sets))]
        return [
            {"serves": list(own), "helped_by": [name for name in names if name not in own]}
            for names, own in zip(self.groups.sets, served, strict=True)
        ]


def found_groups(units: Sequence[Unit], tasks: Sequence[str]) -> list[FoundGroups]:
    """The groups of every recipe that made some, in the order of the units.

    Args:
        units: of all recipes and seeds.
        tasks: K names.
    """
    found = []
    for recipe in dict.fromkeys(unit.recipe for unit in units if unit.groups):
        own = [unit for unit in units if unit.recipe == recipe and unit.groups]
        everyone = [_groups(unit, tasks) for unit in own]
        pairs = np.array([[[b in each.serving(a) for b in tasks] for a in tasks] for each in everyone], dtype=float)
        chosen = most_like_the_rest(pairs)
        kinds = [_kind(each) for each in everyone]
        relation = own[chosen].groups.get("relation", "")
        values = [unit.relations[relation] for unit in own if relation in unit.relations]
        affinity = Affinity(np.mean(values, axis=0), tasks, relation) if values and len(tasks) > 1 else None
        n_same = kinds.count(kinds[chosen])
        found.append(
            FoundGroups(recipe, own[chosen].seed, everyone[chosen], n_same, len(own), affinity, list(own[chosen].notes))
        )
    return found


def most_like_the_rest(pairs: Array) -> int:
    """The seed whose groups are most like those of the others.

    Args:
        pairs: (S, K, K), 1 where two tasks are together.
    """
    return int(np.abs(pairs - pairs.mean(axis=0)).sum(axis=(1, 2)).argmin())


def groups_sentence(found: FoundGroups) -> str:
    """How many groups, and how far the seeds agree on them.

    Examples:
        >>> groups = Groups(("a", "b"), (("a", "b"),), {"a": 0, "b": 0}, {})
        >>> groups_sentence(FoundGroups("grouped", 3, groups, 2, 5, None, []))
        '`grouped`: 1 net for 2 tasks. These are the groups of seed 3, found on 2 of 5 seeds; it agrees best with the others.'
    """
    n = len(found.groups.sets)
    head = f"`{found.recipe}`: {n} net{'s' * (n > 1)} for {len(found.groups.tasks)} tasks."
    if found.n_seeds == 1:
        return f"{head} These are the groups of the one seed."
    if found.n_same == found.n_seeds:
        return f"{head} All {found.n_seeds} seeds found the same groups."
    where = f"found on {found.n_same} of {found.n_seeds} seeds; it agrees best with the others."
    return f"{head} These are the groups of seed {found.seed}, {where}"


def tree_chart(found: FoundGroups) -> go.Figure | None:
    """Which tasks are alike: the tree of what the groups were made of."""
    return None if found.affinity is None else dendrogram(found.affinity)


def graph_chart(found: FoundGroups) -> go.Figure | None:
    """The tasks joined to those most like them; colour and shape tell the group that serves a task."""
    return None if found.affinity is None else graph_picture(found.affinity, found.groups)


def _groups(unit: Unit, tasks: Sequence[str]) -> Groups:
    serves = {task: int(unit.groups["serves"][task]) for task in tasks}
    return Groups(tuple(tasks), tuple(tuple(names) for names in unit.groups["sets"]), serves, {})


def _kind(groups: Groups) -> frozenset[tuple[frozenset[str], frozenset[str]]]:
    """The same for the same groups in any order."""
    return frozenset((frozenset(names), frozenset(groups.served(place))) for place, names in enumerate(groups.sets))
