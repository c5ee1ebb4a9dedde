"""One recipe fitted to a table, to predict with: saved as safetensors and JSON, no pickle.

Letters: K tasks, n rows, C classes of one task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from taskloom.deep import NetFactory, NetPredictor
from taskloom.study._options import StudyOptions, seed_list
from taskloom.study._unit import one_thread, score_tasks
from taskloom.tasks import (
    Array,
    DataError,
    FeatureEncoder,
    Features,
    ModelFileError,
    Predictor,
    Recipe,
    TargetScaler,
    Task,
    TaskData,
    canonical,
    check_finite,
    get_predictor,
    get_recipe,
    is_whole,
    read_model_files,
    read_rows,
    split_rows,
    unknown,
    write_model_files,
)


@dataclass
class Model:
    """A fitted recipe with everything it needs to predict from a raw table.

    Attributes:
        recipe: label of the recipe.
        settings: of the recipe, and what was chosen on validation.
        tasks: the K tasks.
        by: the column that names each row's task; empty for shared rows.
        numeric_names: numeric columns.
        categorical_names: categorical columns.
        impute: False where missing features are refused.
        encoder: of the features.
        scaler: of the targets.
        predictor: the trained core.
        validation_scores: K scores on validation rows, by task name. These rows chose the candidate and ended the training, so
            the scores flatter: a study gives honest ones.
    """

    recipe: str
    settings: dict[str, Any]
    tasks: tuple[Task, ...]
    by: str
    numeric_names: tuple[str, ...]
    categorical_names: tuple[str, ...]
    impute: bool
    encoder: FeatureEncoder
    scaler: TargetScaler
    predictor: Predictor
    validation_scores: dict[str, float]

    def predict_features(self, features: Features | ArrayLike, tasks: Sequence[int | str] | None = None) -> list[Array]:
        """Predictions of the asked tasks for all rows.

        Args:
            features: with the columns that the model was trained on, in their order; as an array (n, d) or (n, ...) where all
                of them are numbers.
            tasks: numbers or names of tasks; None is all of them.

        Returns:
            For each task: values in its own unit (n,) for regression, probabilities of the second class (n,) for binary,
            probabilities (n, C) for multiclass.

        Raises:
            UnknownNameError: no such task.
            DataError: other features than the model was trained on.

        Examples:
            >>> from taskloom.tasks import load_diabetes_tasks
            >>> data = load_diabetes_tasks()
            >>> [values.shape for values in fit_model(data, "ridge").predict_features(data.X[:5], ["s1", "s2"])]
            [(5,), (5,)]
        """
        places = self._places(range(len(self.tasks)) if tasks is None else tasks)
        features = self._checked(features)
        if not self.impute:
            check_finite(features)
        # On one thread sums come out in one order: the same bits in any process, however many cores it has.
        with one_thread():
            predictions = self.predictor.predict(self.encoder.transform(features), places)
        return [
            self.scaler.invert(values, t) if self.tasks[t].kind == "regression" else values
            for t, values in zip(places, predictions, strict=True)
        ]

    def _places(self, tasks: Sequence[int | str]) -> list[int]:
        """Numbers of tasks that were asked for by number or name."""
        names = {task.name: t for t, task in enumerate(self.tasks)}
        places = []
        for asked in tasks:
            place = names.get(asked) if isinstance(asked, str) else int(asked) if is_whole(asked, 0) else None
            if place is None or place >= len(names):
                raise unknown(f"trained task, by name or by number (0 ... {len(names) - 1}),", str(asked), names)
            places.append(place)
        return places

    def _checked(self, features: Features | ArrayLike) -> Features:
        """Features with the columns of training."""
        if not isinstance(features, Features):
            if self.categorical_names:
                known = ", ".join(f"`{name}`" for name in self.categorical_names)
                raise DataError(f"`features`: an array cannot hold the texts of {known}; give a dataframe to `predict`")
            try:
                features = Features(np.asarray(features, dtype=np.float64))
            except (TypeError, ValueError) as error:
                raise DataError(f"`features` is no array of numbers ({error}); a dataframe goes to `predict`") from error
        expected = self.numeric_names + self.categorical_names
        if len(features.names) != len(expected):
            shape = f"the {len(expected)} columns {', '.join(expected)}" if expected else "rows that are arrays, (n, ...)"
            raise DataError(f"`features` has {len(features.names)} named columns; the model was trained on {shape}")
        return features

    def predict(self, source: Any) -> dict[str, list[Any]]:
        """Predict the rows of a table, as columns of a new one.

        Args:
            source: a file or dataframe with the columns that the model was trained on; those of an array are named `x0`, `x1`,
                ... An array goes to `predict_features`.

        Returns:
            For shared rows: a column for each task (the value, or the most probable class), and `p(...)` columns with the
            probabilities of classification tasks. For own rows: the same for each row's own task: the `by` column,
            `prediction` and `p(...)`.

        Raises:
            UnknownNameError: a column is missing, or a row belongs to a task that was not trained.
            DataError: the source is not a table.
        """
        if isinstance(source, np.ndarray):
            raise DataError("`source` is an array; give it to `predict_features`, or give a path or a dataframe")
        features, owners = read_rows(source, self.numeric_names, self.categorical_names, self.by)
        if owners is None:
            columns: dict[str, list[Any]] = {}
            for t, values in enumerate(self.predict_features(features, range(len(self.tasks)))):
                columns |= _named(values, self.tasks[t], self.tasks[t].name, f"{self.tasks[t].name}: ")
            return columns
        return self._predict_own(features, [str(owner) for owner in owners])

    def _predict_own(self, features: Features, owners: list[str]) -> dict[str, list[Any]]:
        index = {task.name: t for t, task in enumerate(self.tasks)}
        # The same task may be written otherwise in this table: 7 for 007.
        owners = [owner if owner in index else canonical(owner) for owner in owners]
        stranger = next((owner for owner in owners if owner not in index), None)
        if stranger is not None:
            raise unknown(f"trained task (column `{self.by}`)", stranger, index)
        columns: dict[str, list[Any]] = {self.by: owners}
        owner_of_row = np.array([index[owner] for owner in owners])
        for t in np.unique(owner_of_row):
            rows = np.flatnonzero(owner_of_row == t)
            values = self.predict_features(features.take(rows), [int(t)])[0]
            for name, column in _named(values, self.tasks[t], "prediction", "").items():
                whole = columns.setdefault(name, [None] * len(owners))
                for row, value in zip(rows, column, strict=True):
                    whole[row] = value
        return columns

    def save(self, folder: str | Path) -> Path:
        """Write `model.json` and `weights.safetensors` into a folder.

        Raises:
            OutputError: the folder cannot be written.
        """
        about = {
            "recipe": self.recipe,
            "settings": self.settings,
            "by": self.by,
            "numeric_names": self.numeric_names,
            "categorical_names": self.categorical_names,
            "impute": self.impute,
            "validation_scores": self.validation_scores,
        }
        return write_model_files(folder, self.tasks, self.predictor, self.encoder, self.scaler, about)


def fit_model(data: TaskData, recipe: str | Recipe = "joint", *, seed: int = 0, budget: int = 3) -> Model:
    """Fit one recipe to four fifths of the rows; the rest chooses the candidate and ends the training.

    Args:
        data: the tasks.
        recipe: name or object.
        seed: of split and fit.
        budget: candidates tried.

    Raises:
        UnknownNameError: no such recipe.
        OptionError: a negative seed, or a budget below 1.
        DataError: a task with too few rows.
        FitError: every candidate diverged.

    Examples:
        >>> from taskloom.tasks import load_diabetes_tasks
        >>> model = fit_model(load_diabetes_tasks(), "ridge")
        >>> sorted(model.validation_scores)[:2]
        ['progression', 's1']
    """
    chosen = get_recipe(recipe)
    seed_list([seed])
    StudyOptions(budget=budget)
    data.check_labels()
    split = split_rows(data, seed, (0.8, 0.2, 0.0))
    train, validation = data.take(split.train), data.take(split.validation)
    encoder, scaler = FeatureEncoder.fit(train.features), TargetScaler.fit(train)
    train, validation = encoder.encode(train), encoder.encode(validation)
    with one_thread():
        fitted = chosen.fit(scaler.encode(train), scaler.encode(validation), seed=seed, budget=budget)
        scores = score_tasks(validation, fitted.predictor.predict, scaler)
    return Model(
        recipe=chosen.label,
        settings={**chosen.settings(), "seed": seed, "chosen": fitted.chosen},
        tasks=data.tasks,
        by=data.by,
        numeric_names=data.features.numeric_names,
        categorical_names=data.features.categorical_names,
        impute=data.impute,
        encoder=encoder,
        scaler=scaler,
        predictor=fitted.predictor,
        validation_scores={task.name: score for task, score in zip(data.tasks, scores, strict=True)},
    )


def load_model(folder: str | Path, *, net: NetFactory | None = None) -> Model:
    """The model that `Model.save` wrote.

    Args:
        folder: that it was saved to.
        net: the factory of its nets, where they were made by one of your own.

    Raises:
        ModelFileError: no model there, a damaged one, one of another version, or one whose nets the factory does not make.
    """
    settings, arrays = read_model_files(Path(folder))
    try:
        tasks = tuple(Task.from_json(task) for task in settings["tasks"])
        core = settings["predictor"]
        own = _under(arrays, "predictor/")
        load = get_predictor(core["format"]).from_state
        predictor = load(own, core, tasks) if net is None else _with_factory(own, core, tasks, net)
        return Model(
            recipe=settings["recipe"],
            settings=settings["settings"],
            tasks=tasks,
            by=settings["by"],
            numeric_names=tuple(settings["numeric_names"]),
            categorical_names=tuple(settings["categorical_names"]),
            impute=settings["impute"],
            encoder=FeatureEncoder.from_state(_under(arrays, "encoder/"), settings["encoder"]),
            scaler=TargetScaler(arrays["scaler/mean"], arrays["scaler/scale"]),
            predictor=predictor,
            validation_scores=settings["validation_scores"],
        )
    except (KeyError, TypeError, RuntimeError) as error:
        raise ModelFileError(f"model in '{folder}': damaged ({type(error).__name__}: {error}); save it again") from error


def _with_factory(arrays: dict[str, Array], core: dict[str, Any], tasks: tuple[Task, ...], net: NetFactory) -> NetPredictor:
    """Nets of the user's own; weights that their factory has no place for, or that it lacks, tell that it is another one."""
    if core["format"] != NetPredictor.format:
        raise ModelFileError(f"`net`={net!r}: the model holds no net (its format is `{core['format']}`); leave `net` out")
    try:
        predictor = NetPredictor.from_factory(arrays, core, tasks, net)
        left = sorted(arrays.keys() - predictor.state()[0].keys())
        reason = f"no place for `{left[0]}`" if left else ""
    except KeyError as error:
        reason = f"no saved {error}"
    except RuntimeError as error:
        reason = " ".join(str(error).split())
    if reason:
        raise ModelFileError(f"`net`={net!r} makes other nets than the saved ones ({reason}); give the factory of the training")
    return predictor


def _under(arrays: dict[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _named(values: Array, task: Task, name: str, prefix: str) -> dict[str, list[Any]]:
    """Predictions of one task as table columns."""
    if task.kind == "regression":
        return {name: values.tolist()}
    if not np.isfinite(values).all():
        raise DataError(f"task `{task.name}`: the model's probabilities are not finite; fit it again")
    both = np.column_stack([1 - values, values]) if values.ndim == 1 else values
    columns = {name: [task.classes[code] for code in both.argmax(axis=1)]}
    return columns | {f"{prefix}p({value})": both[:, code].tolist() for code, value in enumerate(task.classes)}
