"""Files that are whole or absent: written to a temporary name, then renamed."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from taskloom.tasks import OutputError


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file in one go; a kill at any moment leaves the old file or the new one.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OutputError(f"'{path}' cannot be written ({error.strerror or error}); choose another place") from error


def check_folder(folder: Path) -> Path:
    """Make a folder if need be, and make sure that it can be written, before any work is done.

    Raises:
        OutputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"folder '{folder}' cannot be written ({error.strerror or error}); choose another one") from error
    return folder
