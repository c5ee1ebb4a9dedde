"""One run at a time on a checkpoint: a second one would write over the first one's saves."""

from __future__ import annotations

import logging
import os
import sys
import weakref
from pathlib import Path

from taskloom.tasks import OptionError, check_folder

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)


class FolderLock:
    """Holds a folder until it is released, or this process ends, however it does.

    A folder on a file system that knows no locks, and any folder on Windows, is not held: the log says so.

    Args:
        folder: to be held; it is made if need be.

    Raises:
        OptionError: somebody else holds it.
        OutputError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        check_folder(folder)
        if sys.platform == "win32":
            return
        number = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, number)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise OptionError(
                f"`checkpoint`='{folder}': its run is being carried out; wait for its end, or give the job another `name`"
            ) from error
        except OSError as error:
            log.warning("'%s' cannot be locked (%s): see to it that nobody else carries out the same job", folder, error)

    def release(self) -> None:
        """Let others have it; a second call does nothing."""
        if sys.platform != "win32":
            self._close()
