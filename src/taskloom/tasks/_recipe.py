"""The protocol that every way to train keeps, and the registry of recipes by name.

Letters: K tasks, n rows, C classes of one task.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, TypeVar

from taskloom.tasks._arrays import Array
from taskloom.tasks._data import TaskData
from taskloom.tasks._errors import UnknownNameError, unknown
from taskloom.tasks._identity import identify, identify_code
from taskloom.tasks._task import Task

Family = Literal["linear", "deep", "sites"]


class Predictor(ABC):
    """What a recipe leaves behind: a model of K tasks on encoded features and standardised targets.

    A subclass sets `format`, the name that a saved model finds it by, and passes it to `register_predictor`.
    """

    format: ClassVar[str]

    @abstractmethod
    def predict(self, X: Array, tasks: Sequence[int]) -> list[Array]:
        """Predictions of the asked tasks for all rows of X.

        Args:
            X: (n, d) encoded features.
            tasks: indices of tasks.

        Returns:
            For each asked task: values (n,) for regression, probabilities of the second class (n,) for binary,
            probabilities (n, C) for multiclass.
        """

    @abstractmethod
    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Named arrays and JSON-able settings from which `from_state` makes an equal predictor."""

    @classmethod
    @abstractmethod
    def from_state(cls, arrays: dict[str, Array], settings: dict[str, Any], tasks: Sequence[Task]) -> Self:
        """The predictor whose `state` this is."""


@dataclass(frozen=True)
class Curve:
    """A validation loss over optimizer steps.

    Attributes:
        name: whose it is, for example a task.
        steps: optimizer steps done at each point.
        losses: validation loss at each point.
    """

    name: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass
class RecipeFit:
    """The outcome of one fit.

    Attributes:
        predictor: the chosen model.
        chosen: what was chosen on validation, JSON-able: `{"learning_rate": 0.003}`; a list has one entry a task.
        validation_loss: (K,) of the chosen model.
        steps: optimizer steps of the chosen model (of all K nets together where each task has its own); 0 for a solver
            without steps.
        total_steps: optimizer steps of all candidates.
        curves: validation loss while training, of the chosen model.
        notes: anything the reader of a report must know, in sentences.
        relations: (K, K) pictures of how the tasks relate, by a name such as `cosine of coefficients`; numbers in [-1, 1],
            row = receiver, column = source. A report draws their means over the seeds.
        dominance: for layers of shared weights and tasks, by their names, how much of each step was due to the task:
            `{"counts": [...], "median": 0.4}` with numbers of weights by their share of it, in bins of equal width from 0 to 1,
            and the median share. A report draws the sums over the seeds.
        groups: which tasks were trained together, JSON-able: `{"sets": [["a", "b"], ["b", "c"]], "serves": {"a": 0, ...}}` with
            the place of the set that serves each task, and in `"relation"` the name of the one of `relations` that they were
            made of. A report draws that as a tree and a graph.
        batches: batches that the chosen model was trained on; None for a solver without batches.
        trunk_flops: floating-point operations of the chosen model's training in the part that tasks share, forward and
            backward, a multiply-add being two; None where nobody has counted them.
        group_history: groups of one net's tasks that changed while it was trained, JSON-able, the oldest first: `{"batch": 100,
            "groups": [0, 0, 1], "affinity": [[...], ...]}` with the number of each task's group after so many batches, and
            where it is kept (K, K) how the column's task affected the row's, None: unknown. A report draws it over the
            batches.
    """

    predictor: Predictor
    chosen: dict[str, Any]
    validation_loss: Array
    steps: int = 0
    total_steps: int = 0
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    relations: dict[str, Array] = field(default_factory=dict)
    dominance: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    batches: int | None = None
    trunk_flops: float | None = None
    group_history: list[dict[str, Any]] = field(default_factory=list)


class Recipe(ABC):
    """A named way to train K tasks.

    Subclasses are frozen dataclasses: their fields are the settings, and the settings are part of what a cached result
    is found by. `CONTRIBUTING.md` shows how to write one.

    Attributes:
        name: what `--recipes` and `study(recipes=)` know it by.
        summary: one line on what it does.
        paper: where it comes from.
        family: recipes are compared with the single-task baseline of their own family.
        is_baseline: whether it trains each task alone.
        revision: raised when the same settings give other numbers than before.
        by_default: whether a study that names no recipes trains it; not where it needs an extra.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    family: ClassVar[Family]
    is_baseline: ClassVar[bool] = False
    revision: ClassVar[int] = 1
    by_default: ClassVar[bool] = True

    def refuses(self, data: TaskData) -> str:  # noqa: ARG002
        """Why these tasks cannot be served, as a sentence with a remedy; empty if they can."""
        return ""

    @abstractmethod
    def fit(self, train: TaskData, validation: TaskData, *, seed: int, budget: int = 4) -> RecipeFit:
        """Train, choosing among `budget` candidates on validation rows.

        Args:
            train: encoded training rows: `X` is (n, d) finite numbers, regression targets are standardised.
            validation: encoded validation rows.
            seed: everything random follows from it.
            budget: candidates (learning rates, strengths) that may be tried; the same for all recipes of a study.

        Raises:
            OptionError: these tasks cannot be served, whatever the seed; said before any work is done, it ends a study.
            FitError: this fit gave no model, for example because every candidate diverged; a study goes on without it.
        """

    @property
    def label(self) -> str:
        """The name under which a study reports it; a field `title`, where a recipe has one, comes first."""
        return getattr(self, "title", "") or self.name

    def settings(self) -> dict[str, Any]:
        """Name, revision and every field, JSON-able and exact enough to tell two recipes apart."""
        fields = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        plain = {f.name: identify(getattr(self, f.name)) for f in fields if f.name != "title"}
        return {"recipe": identify_code(type(self)), "revision": self.revision, **plain}

    def baseline(self) -> Recipe | None:
        """The single-task baseline that a study adds where it has none of this recipe's family; None: the family's default.

        A recipe with a net of its own overrides it, so that it is not held against another architecture.
        """
        return None

    def controls(self) -> Mapping[str, Recipe]:
        """Recipes that tell what this one's own idea is worth, by what they have in common with it, as `at equal steps`.

        A recipe that costs more than a plain one, or differs from it in several ways, gains by each of these ways alone. A
        study trains the controls beside it and compares the two on the same splits.
        """
        return {}


class FitError(RuntimeError):
    """A fit that could not give a model: it says why and what to change."""


R = TypeVar("R", bound=Recipe)
P = TypeVar("P", bound=Predictor)
_RECIPES: dict[str, type[Recipe]] = {}
_PREDICTORS: dict[str, type[Predictor]] = {}


def register_recipe(recipe: type[R]) -> type[R]:
    """Make a recipe known by its name; use it as a class decorator.

    Raises:
        UnknownNameError: another class has that name.
    """
    if _RECIPES.get(recipe.name, recipe).__qualname__ != recipe.__qualname__:
        raise UnknownNameError(
            f"`name`={recipe.name!r}: a recipe of that name exists ({_RECIPES[recipe.name]!r}); choose another"
        )
    _RECIPES[recipe.name] = recipe
    return recipe


def register_predictor(predictor: type[P]) -> type[P]:
    """Make a predictor known by its format, so that saved models load; use it as a class decorator."""
    _PREDICTORS[predictor.format] = predictor
    return predictor


def get_recipe(recipe: str | Recipe) -> Recipe:
    """The recipe of that name with its default settings; a recipe object is given back.

    Raises:
        UnknownNameError: no recipe has that name; the nearest one is named.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in _RECIPES:
        raise unknown("recipe", recipe, _RECIPES)
    return _RECIPES[recipe]()


def recipe_classes() -> dict[str, type[Recipe]]:
    """All registered recipes by name."""
    return dict(_RECIPES)


def get_predictor(format_name: str) -> type[Predictor]:
    """The predictor class that wrote a saved model.

    Raises:
        UnknownNameError: none has that format.
    """
    if format_name not in _PREDICTORS:
        raise unknown("model format", format_name, _PREDICTORS)
    return _PREDICTORS[format_name]
