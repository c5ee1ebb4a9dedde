"""torchjd and the solvers that some of its parts need, as extras of taskloom."""

from __future__ import annotations

import importlib
from typing import Any

from taskloom.tasks import OptionError


def from_torchjd(recipe: str, part: str, name: str, **options: Any) -> Any:
    """An aggregator or scalarizer of torchjd.

    Args:
        recipe: that needs it, for messages.
        part: `aggregation` or `scalarization`.
        name: of its class.
        options: of its class.

    Raises:
        OptionError: torchjd, or a solver that this part of it needs, is not installed.
    """
    try:
        importlib.import_module("torchjd")
        module = importlib.import_module(f"torchjd.{part}")
    except ImportError as error:
        raise OptionError(f"recipe `{recipe}` needs torchjd; install taskloom[torchjd]") from error
    try:
        return getattr(module, name)(**options)
    except ImportError as error:
        raise OptionError(f"recipe `{recipe}` needs a solver beside torchjd; install taskloom[torchjd-solvers]") from error
