"""A coordinator's state in one file, from which a run goes on after a crash.

Letters: K tasks, d features, V (d, K) auxiliary matrix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from taskloom.linear import Penalty, column_prox
from taskloom.sites._asynchronous import AsynchronousCoordinator
from taskloom.sites._coordinator import Coordinator
from taskloom.tasks import DataError, write_file

FORMAT = "taskloom-sites"
VERSION = 1
# More epochs than pass between two saves: no answer of a life before has one of the next life's epochs.
EPOCHS_OF_A_LIFE = 1_000_000
# Letters of a setting that a message shows: there may be thousands of features.
LONGEST = 200


def save_coordinator(coordinator: Coordinator, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
    """Write all that a run goes on from: the arrays as safetensors, the rest as JSON in the file's metadata.

    The file is written under a temporary name in the same folder, brought to the disk and renamed: a kill at any moment leaves
    the old file or the new one, whole. Sums that the proximal map keeps running are taken anew from V, as after loading: a
    run that is saved and goes on equals, to the bit, one that is loaded and goes on.

    Args:
        coordinator: of the run; `functools.partial(save_coordinator, path=...)` is what `Session(save=...)` takes.
        path: of the file; its folder is made.
        about: what else must be the same when the run goes on, as JSON has it: the coordinator knows neither rows nor losses.

    Raises:
        OutputError: it cannot be written.

    Examples:
        >>> import tempfile
        >>> from taskloom.linear import Trace
        >>> from taskloom.sites._coordinator import StopRule
        >>> from taskloom.sites._methods import get_method
        >>> def make():
        ...     return AsynchronousCoordinator({"ward": [0]}, 2, StopRule(), Trace(1.0), get_method("local-prox"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_coordinator(make(), folder + "/state.safetensors")
        ...     load_coordinator(make(), folder + "/state.safetensors")
    """
    if isinstance(coordinator, AsynchronousCoordinator):
        coordinator.prox = column_prox(coordinator.penalty, coordinator.step, coordinator.V)
    state = coordinator.state_dict()
    arrays = {name: np.ascontiguousarray(array, dtype=np.float64) for name, array in state.pop("arrays").items()}
    head = {"format": FORMAT, "version": VERSION, "run": _fingerprint(coordinator, about), "state": _plain(state)}
    metadata = {name: json.dumps(value, allow_nan=False) for name, value in head.items()}
    write_file(Path(path), save_arrays(arrays, metadata), sync=True)


def load_coordinator(coordinator: Coordinator, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
    """Put a coordinator into the state that was saved.

    Args:
        coordinator: a new one of the same sites, penalty and method; limits and tolerance may be others.
        path: of the file.
        about: see `save_coordinator`.

    Raises:
        DataError: there is no such file, it is damaged, of another version, or of another run.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"`path`='{path}': {'a folder, not a file' if path.is_dir() else 'no such file'}; begin a new run")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - no mapping
        head = {name: json.loads(value) for name, value in metadata.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"`path`='{path}': damaged ({error}); delete it and begin anew") from error
    if head.get("format") != FORMAT:
        raise DataError(f"`path`='{path}' is no saved coordinator; give a file that `save_coordinator` wrote")
    if head.get("version") != VERSION:
        raise DataError(
            f"`path`='{path}' is of version {head.get('version')}, this taskloom reads {VERSION}; "
            "go on with the taskloom that wrote it, or delete it and begin anew"
        )
    _compare(path, head["run"], _fingerprint(coordinator, about))
    coordinator.load_state_dict(_restored(head["state"]) | {"arrays": arrays})


def revive_coordinator(coordinator: Coordinator, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
    """Load a coordinator whose sites live on: after a crash, or to go on with a run that ended at a limit.

    Sites may still send what they worked out from answers that the saved state knows nothing of, perhaps at another step. So
    the epoch is raised beyond all of these, and the file written anew with it before anybody is answered: each site loses the
    trip that it was on, and is told its columns. A run that ended at a limit that is now further goes on.

    Args:
        coordinator: a new one of the same sites, penalty and method.
        path: of the file.
        about: see `save_coordinator`.

    Raises:
        DataError: as `load_coordinator`.
        OutputError: the file cannot be written.
    """
    load_coordinator(coordinator, path, about)
    coordinator.epoch += EPOCHS_OF_A_LIFE
    coordinator.recheck()
    save_coordinator(coordinator, path, about)


def _plain(value: Any) -> Any:
    """As JSON has it, with numbers that are not finite as {"$float": "nan"}."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return {"$float": repr(value)} if isinstance(value, float) and not np.isfinite(value) else value


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(each) for each in value]
    if not isinstance(value, dict):
        return value
    if list(value) == ["$float"] and isinstance(value["$float"], str):
        return float(value["$float"])
    return {key: _restored(each) for key, each in value.items()}


def _fingerprint(coordinator: Coordinator, about: Mapping[str, Any] | None) -> dict[str, Any]:
    """What must be the same for a state to make sense: as text to be read, the penalty also exactly."""
    method = asdict(coordinator.method)
    method.pop("summary")
    known = {
        "features": coordinator.n_features,
        "sites": {name: site.tasks for name, site in coordinator.sites.items()},
        "method": method,
        "penalty": repr(coordinator.penalty),
        "digest": _digest(coordinator.penalty),
    }
    return json.loads(json.dumps(_plain(known | dict(about or {}))))


def _digest(penalty: Penalty) -> str:
    """Of all settings: the text of a long array leaves most of it out."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Penalty) and not is_dataclass(value):
            smooth, rest = value.split()
            value = [*smooth, rest]
        if is_dataclass(value):
            digest.update(type(value).__name__.encode())
            for field in fields(value):
                digest.update(field.name.encode())
                add(getattr(value, field.name))
        elif isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(each, Penalty) for each in value):
            for each in value:
                add(each)
        elif isinstance(value, np.ndarray) or (hasattr(value, "__array__") and not np.isscalar(value)):
            array = np.ascontiguousarray(value)
            digest.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
        else:
            digest.update(repr(value).encode())

    add(penalty)
    return digest.hexdigest()


def _compare(path: Path, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    for name, wanted in mine.items():
        saved = theirs.get(name)
        if saved == wanted:
            continue
        if name == "digest":
            raise DataError(
                f"`path`='{path}' was saved with another `penalty`: its arrays differ; give that one, or begin anew"
            )
        raise DataError(
            f"`path`='{path}' was saved with {name} {_short(saved)}, this run has {_short(wanted)}; "
            "give the same, or begin anew"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
