"""Files that are whole or absent: written to a temporary name, then renamed."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from taskloom.tasks._errors import OutputError


def write_file(path: Path, content: str | bytes, *, sync: bool = False) -> None:
    """Write a file in one go; a kill at any moment leaves the old file or the new one.

    Args:
        path: of the file; its folder is made if need be.
        content: text (UTF-8) or bytes.
        sync: whether to wait until it is on the disk, so that not even a power cut takes it away.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OutputError(f"'{path}' cannot be written ({error.strerror or error}); choose another place") from error
    if sync:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # The new name is on the disk when the folder is; not every system opens folders.
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


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
