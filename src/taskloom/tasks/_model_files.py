"""The two files of a saved model: settings as JSON, arrays as safetensors, no pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from taskloom.tasks._arrays import Array
from taskloom.tasks._encode import FeatureEncoder, TargetScaler
from taskloom.tasks._errors import ModelFileError
from taskloom.tasks._recipe import Predictor
from taskloom.tasks._task import Task
from taskloom.tasks._write import check_folder, write_file

MODEL_FORMAT = "taskloom-model"
MODEL_VERSION = 1
SETTINGS_FILE, WEIGHTS_FILE = "model.json", "weights.safetensors"


def write_model_files(
    folder: str | Path,
    tasks: Sequence[Task],
    predictor: Predictor,
    encoder: FeatureEncoder,
    scaler: TargetScaler,
    about: Mapping[str, Any],
) -> Path:
    """Write `model.json` and `weights.safetensors` into a folder, as `taskloom.load_model` reads them.

    Args:
        folder: made if need be.
        tasks: the K tasks.
        predictor: of encoded features and standardised targets.
        encoder: of the features.
        scaler: of the targets.
        about: all other fields of a `taskloom.study.Model`, JSON-able.

    Raises:
        OutputError: the folder cannot be written.
    """
    target = check_folder(Path(folder))
    arrays, core = predictor.state()
    encoder_arrays, encoder_settings = encoder.state()
    everything = {f"predictor/{name}": array for name, array in arrays.items()}
    everything |= {f"encoder/{name}": array for name, array in encoder_arrays.items()}
    everything |= {"scaler/mean": scaler.mean, "scaler/scale": scaler.scale}
    weights = save_arrays({name: np.ascontiguousarray(array) for name, array in everything.items()})
    settings = {
        "format": MODEL_FORMAT,
        "version": MODEL_VERSION,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "tasks": [dataclasses.asdict(task) for task in tasks],
        **about,
        "encoder": encoder_settings,
        "predictor": {"format": predictor.format, **core},
    }
    # The settings name the weights by their hash: after a kill between the two files the model is refused, not wrong.
    write_file(target / WEIGHTS_FILE, weights)
    # And themselves by theirs: what is edited by hand is refused too.
    settings["settings_sha256"] = _settings_hash(settings)
    write_file(target / SETTINGS_FILE, json.dumps(settings, indent=1))
    return target


def read_model_files(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Settings and arrays that `write_model_files` wrote.

    Raises:
        ModelFileError: no model there, a damaged one, or one of another version.
    """
    try:
        text, weights = (folder / SETTINGS_FILE).read_bytes(), (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"no model in '{folder}' ({error.strerror}: {error.filename}); give the folder of `--save`"
        ) from error
    try:
        settings = json.loads(text)
        found = (settings.get("format"), settings.get("version"))
    except (ValueError, AttributeError) as error:
        raise ModelFileError(f"model in '{folder}': {SETTINGS_FILE} is damaged ({error}); save it again") from error
    if found != (MODEL_FORMAT, MODEL_VERSION):
        raise ModelFileError(
            f"model in '{folder}' has format and version {found}; this taskloom reads {(MODEL_FORMAT, MODEL_VERSION)}: "
            "fit it again, or use the taskloom that wrote it"
        )
    if settings.get("settings_sha256") != _settings_hash(settings):
        raise ModelFileError(f"model in '{folder}': {SETTINGS_FILE} is damaged; save it again")
    if hashlib.sha256(weights).hexdigest() != settings.get("weights_sha256"):
        raise ModelFileError(f"model in '{folder}': {WEIGHTS_FILE} is damaged or of another model; save it again")
    try:
        return settings, load_arrays(weights)
    except SafetensorError as error:
        raise ModelFileError(f"model in '{folder}': {WEIGHTS_FILE} is damaged ({error}); save it again") from error


def _settings_hash(settings: dict[str, Any]) -> str:
    rest = {name: value for name, value in settings.items() if name != "settings_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
