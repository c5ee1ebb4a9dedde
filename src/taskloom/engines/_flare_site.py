"""A site of a job, as NVIDIA FLARE runs it: built by FLARE in the job's own process at the site. Needs the extra `flare`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nvflare.collab import CollabCallError, collab
from nvflare.collab.api.exceptions import RunAborted

from taskloom.engines._desk import take_part
from taskloom.engines._job import read_job
from taskloom.engines._rows import make_job_site
from taskloom.engines._site_file import SiteFile, read_site_file
from taskloom.tasks import FitError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

# What a site says of its table stands here, in the folder of its start-up kit, or where the variable says: a file, or a folder
# with NAME.yml in it.
SITE_FILE = "local/taskloom_site.yml"
SITE_FILE_VARIABLE = "TASKLOOM_SITE_FILE"
# Seconds of one call: longer than the coordinator ever holds an answer.
CALL = 60.0
# Seconds between two calls of a coordinator that does not answer.
PAUSE = 0.5


class FlareSite:
    """Takes part in a job with the rows that the site's own file names. FLARE makes it; only its messages leave the site.

    What goes wrong at the site is written into the site's own log, as a warning; the coordinator is told the kind of error and
    no more, since a message may quote the table.

    Args:
        job: as JSON, without anything about tables and folders.
    """

    def __init__(self, job: str) -> None:
        self.job = job

    @collab.publish
    def take_part(self) -> None:
        """Until the coordinator has said goodbye."""
        # FLARE writes two lines about every call: many thousands a run.
        logging.getLogger("nvflare.collab").setLevel(logging.WARNING)
        name = collab.site_name
        try:
            job = read_job(json.loads(self.job))
            take_part(make_job_site(_own_file(name), job), _line(job.give_up))
        except RunAborted:
            log.info("site %s: the job was ended", name)
        except Exception as error:  # noqa: BLE001 - FLARE would send its text, and where it came from, to the coordinator
            log.warning("site %s takes part no more: %s: %s", name, type(error).__name__, error)
            with contextlib.suppress(CollabCallError, RunAborted):
                collab.server(timeout=CALL).leave(type(error).__name__)


def _own_file(name: str) -> SiteFile:
    """What this site says of its table."""
    path = Path(os.environ.get(SITE_FILE_VARIABLE) or Path(collab.workspace.get_root_dir()) / SITE_FILE)
    site_file = read_site_file(path / f"{name}.yml" if path.is_dir() else path)
    if site_file.site != name:
        raise OptionError(f"`site`={site_file.site!r} in '{path}': FLARE knows this site as {name!r}; call it that")
    return site_file


def _line(give_up: float) -> Callable[[bytes], bytes | None]:
    """How this site asks the coordinator, which may be away for `give_up` seconds."""
    server, heard_at = collab.server, time.monotonic()

    def ask(raw: bytes) -> bytes | None:
        nonlocal heard_at
        try:
            answer = server(timeout=CALL).ask(raw)
        except CollabCallError as error:
            if time.monotonic() - heard_at > give_up:
                raise FitError(f"no answer of the coordinator for {give_up:g} s; start it, or raise `give_up`") from error
            log.warning("no answer of the coordinator: %s", error)
            time.sleep(PAUSE)
            return None
        heard_at = time.monotonic()
        return answer

    return ask
