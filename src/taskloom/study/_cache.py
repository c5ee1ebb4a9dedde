"""Finished units on disk, found again by a hash of everything that their numbers depend on."""

from __future__ import annotations

import hashlib
import json
import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import taskloom
from taskloom.study._options import StudyOptions
from taskloom.study._unit import Unit
from taskloom.tasks import Recipe, check_folder, write_file

_NUMERIC_LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "lightning-fabric")


class UnitCache:
    """A folder of finished units.

    Args:
        folder: made if need be; None keeps nothing.
        data_digest: of the study's data.
        options: of the study.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None, data_digest: str, options: StudyOptions) -> None:
        self.folder = check_folder(folder) if folder is not None else None
        self.data_digest, self.options = data_digest, options

    def key(self, recipe: Recipe, seed: int) -> str:
        """A hash of data, recipe, seed, split, budget, this package's code and the versions of its numeric libraries."""
        parts = {
            "data": self.data_digest,
            "recipe": recipe.settings(),
            "seed": seed,
            "fractions": self.options.fractions,
            "budget": self.options.budget,
            "environment": environment(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def get(self, key: str, label: str) -> Unit | None:
        """The finished unit of that key, if it is there and whole, under the recipe's present label."""
        if self.folder is None:
            return None
        try:
            unit = Unit.from_json(json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        unit.recipe = label
        return unit

    def put(self, key: str, unit: Unit) -> None:
        """Keep a finished unit."""
        if self.folder is not None:
            write_file(self.folder / f"{key}.json", json.dumps(unit.to_json()))


@cache
def environment() -> dict[str, Any]:
    """What the numbers of a fit depend on beside its settings."""
    versions = {name: metadata.version(name) for name in _NUMERIC_LIBRARIES}
    return {
        "taskloom": taskloom.__version__,
        "code": _code_digest(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "accelerator": "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu",
        **versions,
    }


def _code_digest() -> str:
    """A hash of the source that scores depend on, so that a changed line never shows the numbers of the old one."""
    root = Path(taskloom.__file__).parent
    sources = [path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in {"cli", "study"}]
    digest = hashlib.sha256()
    for path in sorted([*sources, root / "study" / "_unit.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
