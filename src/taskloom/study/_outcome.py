"""The outcome of a study: its units, the verdicts that follow, and their JSON.

Letters: K tasks, S seeds.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from taskloom.study._cache import environment
from taskloom.study._compare import RecipeInfo, Summary, Verdict, compare
from taskloom.study._controls import Contrast, contrast
from taskloom.study._options import StudyOptions
from taskloom.study._unit import Unit
from taskloom.study._words import (
    contrast_sentence,
    overall_sentence,
    picked_sentence,
    recipe_sentence,
    recommended,
    seeds_sentence,
)
from taskloom.tasks import DataError, Task

RESULTS_FORMAT = "taskloom-study"
RESULTS_VERSION = 1


@dataclass
class Outcome:
    """What a study found: units, and what follows from them.

    Attributes:
        tasks: the K tasks.
        data: what the data are, JSON-able.
        recipes: what was trained.
        seeds: S seeds.
        options: how.
        units: one for each recipe and seed.
        environment: versions that the numbers depend on.
    """

    tasks: tuple[Task, ...]
    data: dict[str, Any]
    recipes: list[RecipeInfo]
    seeds: list[int]
    options: StudyOptions
    units: list[Unit]
    environment: dict[str, Any] = field(default_factory=environment)

    @cached_property
    def _compared(self) -> tuple[list[Verdict], list[Summary]]:
        return compare(self.tasks, self.recipes, self.units, self.options.confidence)

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each task and each recipe that is no baseline."""
        return self._compared[0]

    @property
    def summaries(self) -> list[Summary]:
        """One for each recipe."""
        return self._compared[1]

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """One for each recipe and each of its controls in the study."""
        return contrast(self.tasks, self.recipes, self.units, self.options.confidence)

    def verdicts_of(self, recipe: str) -> list[Verdict]:
        """The verdicts of one recipe, by its label, in the order of the tasks."""
        return [verdict for verdict in self.verdicts if verdict.recipe == recipe]

    @property
    def recommended(self) -> str:
        """The label of a recipe to keep a model of: it helped and is shown to hurt none; else the first baseline.

        Only recipes with the settings of their name are considered.
        """
        plain = {info.label for info in self.recipes if info.label == info.name}
        best = recommended([summary for summary in self.summaries if summary.recipe in plain])
        return next(info.label for info in self.recipes if info.is_baseline) if best is None else best.recipe

    def words(self) -> list[str]:
        """The outcome in sentences: one overall, one for each recipe that is no baseline, and one for each control of one.

        Where the first names one of several recipes, the second says what that is worth.
        """
        summaries = {summary.recipe: summary for summary in self.summaries}
        errors = {unit.recipe: unit.error for unit in self.units if unit.error}
        baselines = {info.label for info in self.recipes if info.is_baseline}
        headline = overall_sentence(self.summaries, self.verdicts, len(self.seeds))
        sentences = [
            headline,
            picked_sentence(headline, self.summaries),
            *(
                recipe_sentence(summary, self.verdicts_of(summary.recipe), errors.get(summary.recipe, ""))
                for summary in self.summaries
                if summary.recipe not in baselines or summary.failed
            ),
            *(contrast_sentence(each, summaries[each.recipe], summaries[each.control]) for each in self.contrasts),
            seeds_sentence(self.summaries, len(self.seeds)),
        ]
        return [sentence for sentence in sentences if sentence]

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-able, as `results.schema.json` describes it."""
        options = {"fractions": list(self.options.fractions), "budget": self.options.budget}
        return {
            "format": RESULTS_FORMAT,
            "version": RESULTS_VERSION,
            "words": self.words(),
            "data": self.data,
            "tasks": [dataclasses.asdict(task) for task in self.tasks],
            "recipes": [dataclasses.asdict(info) for info in self.recipes],
            "seeds": self.seeds,
            "options": options | {"confidence": self.options.confidence},
            "environment": self.environment,
            "summaries": [dataclasses.asdict(summary) for summary in self.summaries],
            "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
            "contrasts": [dataclasses.asdict(each) for each in self.contrasts],
            "units": [unit.to_json() for unit in self.units],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The study whose `to_json` this is.

        Raises:
            DataError: it is something else, or of another version.
        """
        if value.get("format") != RESULTS_FORMAT or value.get("version") != RESULTS_VERSION:
            found = (value.get("format"), value.get("version"))
            raise DataError(f"format and version are {found}; results of a study have {(RESULTS_FORMAT, RESULTS_VERSION)}")
        tasks = tuple(Task.from_json(task) for task in value["tasks"])
        how = value["options"]
        options = StudyOptions(tuple(how["fractions"]), how["budget"], how["confidence"])
        recipes = [RecipeInfo(**info) for info in value["recipes"]]
        units = [Unit.from_json(unit) for unit in value["units"]]
        return cls(tasks, value["data"], recipes, value["seeds"], options, units, value["environment"])

    def __repr__(self) -> str:
        return "\n".join(
            [f"Study of {len(self.tasks)} tasks, {len(self.recipes)} recipes, {len(self.seeds)} seeds", *self.words()]
        )
