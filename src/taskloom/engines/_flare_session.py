"""What talks to NVIDIA FLARE at the side of whoever submits a job. Needs the extra `flare`; imported where it is used."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import ConfigVarName
from nvflare.collab import CollabRecipe
from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    InternalError,
    InvalidJobDefinition,
    JobNotDone,
    JobNotFound,
    JobNotRunning,
    NoConnection,
    SessionClosed,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from taskloom.engines._flare_server import FOLDER, FlareCoordinator
from taskloom.engines._flare_site import FlareSite
from taskloom.engines._job import Job
from taskloom.tasks import FitError, OptionError

ADMIN_FILE = Path("startup") / "fed_admin.json"
# What FLARE raises when it does not do what it was asked for.
REFUSALS = (InternalError, InvalidJobDefinition, JobNotDone, JobNotFound, JobNotRunning, RuntimeError)
# How FLARE calls a job that is over.
FINISHED = "FINISHED"
# Seconds between two questions, and those within which a site has spoken to the coordinator that is there.
POLL, FRESH = 1.0, 30.0
# How it calls one that somebody should be running; and, here, one that nobody has been running for so many seconds.
UNDERWAY, ABNORMAL, MISSING = ("DISPATCHED", "RUNNING"), "ABNORMAL", 20.0
# Seconds that a site has to come up when a job begins, and that FLARE doubts that its process is gone.
SYNC, GRACE = 30, 5.0


class JobRecipe(CollabRecipe):
    """A job of taskloom as FLARE has it: two classes by name, with the job file as their argument, and no code.

    Args:
        job: that is carried out.
        start: see `FlareCoordinator`.
    """

    def __init__(self, job: Job, start: str) -> None:
        # The folders are those of whoever submits the job, and nobody else's business.
        text = json.dumps({key: value for key, value in job.to_dict().items() if key not in ("checkpoint", "out")})
        # A call that waits for other sites keeps its thread.
        threads = max(100, 2 * len(job.sites))
        super().__init__(
            job.name,
            FlareCoordinator(text, start),
            FlareSite(text),
            min_clients=job.min_sites,
            sync_task_timeout=SYNC,
            max_call_threads_for_server=threads,
        )
        self.set_per_site_config({site: {} for site in job.sites})
        self._job.set_app_packages(["taskloom"])
        self.add_server_config({ConfigVarName.DEAD_CLIENT_GRACE_PERIOD: GRACE})

    @staticmethod
    def _user_source_entries(objs: list[object]) -> list[tuple[str, str | None]]:  # noqa: ARG004 - FLARE's name
        """Every participant has taskloom installed: a job that brings no code is accepted where code is not."""
        return []


def export_job(job: Job, folder: Path, start: str) -> Path:
    """Write a job in FLARE's form, and say where.

    Args:
        job: that is carried out.
        folder: that the job's own folder goes into.
        start: see `FlareCoordinator`.

    Raises:
        OptionError: FLARE cannot call a job, or a site, like that.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            JobRecipe(job, start).export(str(folder))
    except ValueError as error:
        raise OptionError(
            f"`name`={job.name!r}, or the name of a site: FLARE does not take it ({error}); call it otherwise"
        ) from error
    return folder / job.name


class AdminSession:
    """What an administrator's start-up kit can ask of the coordinator's FLARE server; found again when that was away.

    Args:
        kit: folder of the start-up kit.
        wait: seconds to look for the server.

    Raises:
        OptionError: the folder is no such kit, or the server refuses it.
        FitError: no server was there.
    """

    def __init__(self, kit: Path, wait: float) -> None:
        self.kit, self.wait = kit, wait
        try:
            self._name = str(json.loads((kit / ADMIN_FILE).read_text(encoding="utf-8"))["admin"]["username"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OptionError(f"`kit`='{kit}' is no administrator's start-up kit ({error}); give one of `provision`") from error
        self._session: Session | None = None
        self._connect()

    def submit(self, folder: Path) -> str:
        """The number of the job that FLARE was given."""
        return str(self._do(lambda session: session.submit_job(str(folder))))

    def status(self, number: str) -> str:
        """How FLARE calls the state of a job."""
        return str(self._do(lambda session: session.get_job_status(number)))

    def abort(self, number: str) -> None:
        """End a job; its coordinator saves what it has."""
        self._abort(number)
        self.await_end(number)

    def download(self, number: str, folder: Path) -> Path | None:
        """What the coordinator has left of a job; None if nothing."""
        try:
            place = Path(self._do(lambda session: session.download_job_result(number, str(folder))))
        except FitError:
            return None
        found = [path for path in place.rglob(FOLDER) if path.is_dir()]
        return found[0] if found else None

    def connected(self) -> set[str]:
        """Names of the sites that have been heard of of late."""
        clients = self._do(lambda session: session.get_system_info()).client_info
        # By the server's clock, which need not be this one's.
        newest = max((each.last_connect_time for each in clients), default=0.0)
        return {each.name for each in clients if newest - each.last_connect_time < FRESH}

    def await_sites(self, names: list[str]) -> set[str]:
        """Those of some sites that are connected, as soon as all are, or when it has waited long enough."""
        until = time.monotonic() + self.wait
        while not set(names) <= (there := self.connected()) and time.monotonic() < until:
            time.sleep(POLL)
        return there & set(names)

    def await_end(self, number: str) -> str:
        """How FLARE calls the way a job has ended.

        It may wait for a site that hangs, or call a job running that it ran before it was started anew: such a one is ended.
        """
        seen_at, is_ended = time.monotonic(), False
        while not (status := self.status(number)).startswith(FINISHED):
            running = self._do(lambda session: session.get_system_info()).job_info
            if status not in UNDERWAY or any(job.job_id == number for job in running):
                seen_at = time.monotonic()
            elif time.monotonic() - seen_at > MISSING and is_ended:
                return ABNORMAL
            elif time.monotonic() - seen_at > MISSING:
                seen_at, is_ended = time.monotonic(), True
                self._abort(number)
            time.sleep(POLL)
        return ABNORMAL if is_ended else status.removeprefix(FINISHED + ":")

    def close(self) -> None:
        """Say goodbye to the server, if it is there."""
        session, self._session = self._session, None
        if session is not None:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
                session.close()

    def _abort(self, number: str) -> None:
        # FLARE refuses it for a job that it does not run.
        with contextlib.suppress(FitError):
            self._do(lambda session: session.abort_job(number))

    def _do(self, ask: Callable[[Session], Any]) -> Any:
        """What the server says; asked anew where the session was broken."""
        try:
            try:
                return self._ask(ask)
            except (ConnectionError, SessionClosed):
                self.close()
                return self._ask(ask)
        except AuthorizationError as error:
            raise OptionError(f"`kit`='{self.kit}': {self._name} may not do that ({error}); use another kit") from error
        except FitError:
            raise
        except REFUSALS as error:
            raise FitError(f"FLARE did not do it: {error}") from error

    def _ask(self, ask: Callable[[Session], Any]) -> Any:
        session = self._connect()
        # FLARE prints what it does.
        with contextlib.redirect_stdout(io.StringIO()):
            return ask(session)

    def _connect(self) -> Session:
        until = time.monotonic() + self.wait
        while self._session is None:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    self._session = new_secure_session(self._name, str(self.kit), timeout=5.0)
            except NoConnection as error:
                if time.monotonic() > until:
                    raise FitError(
                        f"no server of '{self.kit}' for {self.wait:g} s ({error}); start it, or wait longer"
                    ) from error
                time.sleep(POLL)
            except AuthenticationError as error:
                raise OptionError(f"`kit`='{self.kit}': the server refuses {self._name} ({error})") from error
            except (FileNotFoundError, PermissionError, RuntimeError) as error:
                raise OptionError(
                    f"`kit`='{self.kit}' is not whole ({error}); give one of `provision` as it was made"
                ) from error
        return self._session
