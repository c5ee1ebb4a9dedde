"""Recipes beside their controls: is a gain due to the recipe's own idea, or to what else it does?

Letters: K tasks, S seeds.

A control has in common with its recipe what might explain a gain as well, such as the number of steps. The two are compared as
a recipe and its baseline are: paired differences on the same splits, with the same interval and the same correction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from taskloom.study._compare import RecipeInfo, Verdict, judge, overall, pair, units_by_seed
from taskloom.study._unit import Unit
from taskloom.tasks import Recipe, Task


@dataclass(frozen=True)
class Contrast:
    """One recipe against one of its controls.

    Attributes:
        recipe: its label.
        control: label of the control.
        question: what the two have in common, as `at equal steps`.
        verdicts: one for each task, with the control for a baseline: `helped` where the recipe is better than it, `hurt` where
            it is worse. Empty where on no seed both have a model.
        gain: mean difference over tasks; None where the tasks' metrics are not on one scale.
        low: lower end of its interval; None where unknown.
        high: upper end.
    """

    recipe: str
    control: str
    question: str
    verdicts: tuple[Verdict, ...]
    gain: float | None
    low: float | None
    high: float | None

    def count(self, word: str) -> int:
        """Number of tasks with that verdict."""
        return sum(verdict.word == word for verdict in self.verdicts)


def with_controls(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes, followed by those of their controls that are not among them.

    A control is known by its settings, whatever its title. One whose label is taken is named after its recipe too.
    """
    everything = list(recipes)
    for recipe in recipes:
        for control in recipe.controls().values():
            if _known_as(control, everything) is None:
                is_taken = any(other.label == control.label for other in everything)
                title = f"{control.label} for {recipe.label}"
                everything.append(replace(cast("Any", control), title=title) if is_taken else control)
    return everything


def described(recipes: Sequence[Recipe]) -> list[RecipeInfo]:
    """What a report says of the recipes, and which of them are controls of which."""
    infos = []
    for recipe in recipes:
        labels = {question: _known_as(control, recipes) for question, control in recipe.controls().items()}
        infos.append(RecipeInfo.of(recipe, {question: label for question, label in labels.items() if label is not None}))
    return infos


def _known_as(recipe: Recipe, recipes: Sequence[Recipe]) -> str | None:
    """The label of the recipe with these settings; None: there is none."""
    settings = json.dumps(recipe.settings(), sort_keys=True)
    return next((other.label for other in recipes if json.dumps(other.settings(), sort_keys=True) == settings), None)


def contrast(tasks: Sequence[Task], recipes: Sequence[RecipeInfo], units: Sequence[Unit], confidence: float) -> list[Contrast]:
    """Every recipe against each of its controls, in the order of the recipes."""
    found = []
    for info in recipes:
        own = units_by_seed(units, info.label)
        for question, control in info.controls.items():
            paired = pair(tasks, own, {control: units_by_seed(units, control)})
            verdicts = () if paired is None else tuple(judge(info.label, tasks, paired, confidence, len(own)))
            found.append(Contrast(info.label, control, question, verdicts, *overall(tasks, paired, confidence)))
    return found
