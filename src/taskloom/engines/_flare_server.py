"""The coordinator of a job, as NVIDIA FLARE runs it: built by FLARE in the job's own process. Needs the extra `flare`."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.collab import collab

from taskloom.engines._desk import REJECT, Desk
from taskloom.engines._job import Job, read_job
from taskloom.engines._session import check_start, forget, has_checkpoint
from taskloom.sites import Update, decode, one_line
from taskloom.tasks import DataError, OptionError, TaskloomError

log = logging.getLogger(__name__)

# Folder of what a job leaves behind: in the coordinator's kit, and in the job's own folder, which its submitter may download.
FOLDER = "taskloom"
# Written instead of a result when the coordinator could not begin.
FAILURE = "failure.txt"
# File with the folders of a job that the simulator carries out; only who starts the simulator can name it.
FOLDERS_VARIABLE = "TASKLOOM_JOB_FOLDERS"
# What is said of one whose process was killed.
GONE = "its process is gone"
# Seconds between two looks after the sites, and between two lines in the log.
TICK, REPORT_EVERY = 0.5, 10.0


class FlareCoordinator(FLComponent):
    """Serves the sites of a job. FLARE makes it; sites call `ask`.

    It keeps its checkpoint and the result in the folder `taskloom/NAME` of the coordinator's start-up kit, wherever the job
    file had them, and goes on from the checkpoint that is there. A copy of the result goes with the job.

    Args:
        job: as JSON, without anything about tables and folders.
        start: `new`, `resume` (from the checkpoint), or `either`, as there is one or not.
    """

    def __init__(self, job: str, start: str = "either") -> None:
        super().__init__()
        self.job, self.start = job, start
        self._desk: Desk | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """FLARE has found out that the job's process at a site is gone."""
        if event_type == EventType.CLIENT_DISCONNECTED and self._desk is not None:
            self._desk.fail(str(fl_ctx.get_prop(FLContextKey.DISCONNECTED_CLIENT_NAME)), GONE)

    @collab.init
    def open(self) -> None:
        """Come up, from the checkpoint if there is one."""
        logging.getLogger("nvflare.collab").setLevel(logging.WARNING)
        try:
            self._desk = self._make_desk(self._read_job())
        except TaskloomError as error:
            # Trying again would end the same way: whoever has submitted the job is told why.
            (_job_folder() / FAILURE).write_text(str(error), encoding="utf-8")
            raise

    @collab.publish
    def ask(self, raw: bytes) -> bytes:
        """A site's message in, its answer out; only the site itself may speak for it.

        Args:
            raw: an encoded `Update`.
        """
        caller = collab.caller
        try:
            message = decode(raw)
            speaker = message.site if isinstance(message, Update) else ""
        except DataError as error:
            log.warning("refused a message of site %s: %s", caller, one_line(str(error)))
            return REJECT + b"it was no message"
        if speaker != caller:
            log.warning("refused a message of site %s: it came in the name of %r", caller, speaker[:50])
            return REJECT + b"a site speaks for itself alone"
        return self._get_desk().ask(raw)

    @collab.publish
    def leave(self, error: str) -> None:
        """A site ends with an error, and says of which kind.

        Args:
            error: its type.
        """
        desk, kind = self._get_desk(), error if error.isidentifier() else "an error"
        # One that was lost before ends since it is not wanted any more.
        if collab.caller not in desk.session.failed:
            desk.fail(collab.caller, f"it ended with {kind}; its own log says why", lasting=True)

    @collab.main
    def coordinate(self) -> None:
        """From the first message to the result."""
        desk, said_at = self._get_desk(), time.monotonic()
        # No result is asked for: FLARE would wait for that of a site that is gone, and never end the job.
        collab.clients(expect_result=False).take_part()
        while not desk.is_done and not collab.is_aborted:
            desk.look()
            time.sleep(TICK)
            if time.monotonic() - said_at > REPORT_EVERY:
                said_at = time.monotonic()
                log.info("job %s: %s", desk.job.name, desk.progress())
        if not desk.is_done:
            desk.stop("FLARE has ended the job")
        result = desk.collect("flare")
        shutil.copytree(result.save(), _job_folder(), dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoint"))
        if result.converged:
            forget(desk.job)

    def _get_desk(self) -> Desk:
        # No property: FLARE asks for every attribute before anything is open.
        if self._desk is None:
            raise DataError("the coordinator has not come up; see its log")
        return self._desk

    def _make_desk(self, job: Job) -> Desk:
        check_start(job, resume=self.start == "resume" or (self.start == "either" and has_checkpoint(job)))
        return Desk(job)

    def _read_job(self) -> Job:
        job = read_job(json.loads(self.job))
        folders = os.environ.get(FOLDERS_VARIABLE)
        if folders:
            named = json.loads(Path(folders).read_text(encoding="utf-8"))
            return dataclasses.replace(job, checkpoint=Path(named["checkpoint"]), out=Path(named["out"]))
        if Path(job.name).name != job.name or job.name == "..":
            raise OptionError(f"`name`={job.name!r}: it becomes a folder at the coordinator; leave out what is none")
        folder = Path(collab.workspace.get_root_dir()) / FOLDER / job.name
        return dataclasses.replace(job, checkpoint=folder / "checkpoint", out=folder / "out")


def _job_folder() -> Path:
    """Of what is downloaded with the job."""
    folder = Path(collab.workspace.get_run_dir(collab.fl_ctx.get_job_id())) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder
