"""Jobs across organisations, on NVIDIA FLARE: submitted to a federation, or carried out by FLARE's simulator on one machine.

FLARE gives certificates, mutual TLS, start-up kits and the processes at every participant; what a job computes, and how it goes
on after a failure, is the same as on any other engine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from taskloom.engines._flare_kits import ALLOW_LIST, CLASSES, RESOURCES, check_flare
from taskloom.engines._job import Job
from taskloom.engines._result import RESULT_FILE, drop_model
from taskloom.engines._session import check_start
from taskloom.tasks import FitError, OptionError, check_folder, write_file

if TYPE_CHECKING:
    from taskloom.engines._flare_session import AdminSession

# Of FLARE: a process of the job was killed, or the server.
BROKEN = ("EXECUTION_EXCEPTION", "ABNORMAL")
# Seconds for the simulator's workers to find that it is gone.
LAST_BREATH = 20.0
# Of taskloom: there may be more to be had once all sites are back.
LACKING = ("sites lost", "too few sites", "stopped")


@dataclass(frozen=True)
class FlareOptions:
    """How a job is submitted.

    Attributes:
        resume: whether to go on with a run that the coordinator has saved; else there must be none.
        resubmissions: how often the job may be submitted again when it has broken, or sites that were lost are back.
        wait: seconds to wait for the server, and for sites that are not connected.
        watch: told in a sentence what happens.

    Raises:
        OptionError: a number outside of what it may be.

    Examples:
        >>> FlareOptions(resume=True).resubmissions
        5
    """

    resume: bool = False
    resubmissions: int = 5
    wait: float = 60.0
    watch: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.resubmissions < 0:
            raise OptionError(f"`resubmissions`={self.resubmissions!r}: need a number of 0 or more")
        if not self.wait > 0:
            raise OptionError(f"`wait`={self.wait!r}: need a positive number of seconds")

    def say(self, sentence: str) -> None:
        """Tell whoever watches."""
        if self.watch is not None:
            self.watch(sentence)


@dataclass(frozen=True)
class FlareResult:
    """How a job ended on FLARE, and where its result is.

    Attributes:
        status: as of `JobResult`.
        message: the same in a sentence.
        out: folder with `model/`, `report.html` and `result.json`.
        jobs: FLARE's numbers of the job, one a submission; none of the simulator.
        values: what `result.json` holds.

    Examples:
        >>> FlareResult("converged", "converged: the residual is 1e-7", Path("out")).converged
        True
    """

    status: str
    message: str
    out: Path
    jobs: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def converged(self) -> bool:
        """Whether the tolerance was reached with all sites."""
        return self.status == "converged"


def submit(job: Job, kit: str | Path, options: FlareOptions = FlareOptions()) -> FlareResult:
    """Carry a job out in a federation, and bring its result home.

    The coordinator keeps its checkpoint in its own start-up kit. When the job breaks, since its process at the coordinator or
    at a site is killed, FLARE ends it: it is submitted again and goes on from there. FLARE takes no site into a job that is
    running: one that was lost is taken in again by the next submission.

    Args:
        job: to carry out; the folder `out` is the one on this machine.
        kit: an administrator's start-up kit.
        options: of the submission.

    Raises:
        OptionError: FLARE is not installed, the kit is none or is refused, or there is a saved run, or none, against `resume`.
        FitError: no server, too few sites, or the job broke too often.
        OutputError: a folder cannot be written.
    """
    check_flare()
    from taskloom.engines._flare_session import AdminSession

    check_folder(job.out)
    session, numbers = AdminSession(Path(kit).resolve(), options.wait), []
    try:
        with tempfile.TemporaryDirectory() as temporary:
            while True:
                start = "either" if numbers else "resume" if options.resume else "new"
                folder = Path(temporary) / str(len(numbers))
                status = _carry_out(job, session, start, folder, options, numbers)
                found = session.download(numbers[-1], folder)
                if len(numbers) > options.resubmissions or not _is_worth_another(job, session, status, found):
                    return _bring_home(job, found, status, tuple(numbers))
                options.say(f"the job ended early ({status}); it is submitted again")
    finally:
        session.close()


def _carry_out(job: Job, session: AdminSession, start: str, folder: Path, options: FlareOptions, numbers: list[str]) -> str:
    """One submission, and how FLARE says that it ended."""
    from taskloom.engines._flare_session import export_job

    there = session.await_sites(list(job.sites))
    lacking = [name for name in job.sites if name not in there]
    if len(there) < job.min_sites:
        raise FitError(
            f"{len(there)} of the job's sites are connected, need {job.min_sites}; start {', '.join(lacking)}, or wait longer"
        )
    if lacking:
        options.say(f"without {', '.join(lacking)}: not connected")
    numbers.append(session.submit(export_job(job, folder, start)))
    options.say(f"submitted as {numbers[-1]}")
    try:
        return session.await_end(numbers[-1])
    except KeyboardInterrupt:
        session.abort(numbers[-1])
        raise


def _is_worth_another(job: Job, session: AdminSession, status: str, found: Path | None) -> bool:
    """Whether the job would come further if it was submitted again."""
    from taskloom.engines._flare_server import FAILURE

    if found is not None and (found / FAILURE).exists():
        return False
    values = _values(found)
    if not values:
        return status in BROKEN
    if values["status"] not in LACKING or status == "ABORTED":
        return False
    if any(site["is_lasting"] for site in values["sites"].values()):
        return False
    gone = {name for name, site in values["sites"].items() if site["is_lost"]}
    return gone <= session.await_sites(list(job.sites))


def _values(found: Path | None) -> dict[str, Any]:
    path = None if found is None else found / RESULT_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else {}


def _bring_home(job: Job, found: Path | None, status: str, numbers: tuple[str, ...]) -> FlareResult:
    from taskloom.engines._flare_server import FAILURE

    if found is not None and (found / FAILURE).exists():
        raise FitError(f"the coordinator could not begin: {(found / FAILURE).read_text(encoding='utf-8')}")
    values = _values(found)
    if found is None or not values:
        raise FitError(f"FLARE ended the job as {status}, without a result; see the logs of {', '.join(numbers) or 'the run'}")
    drop_model(job.out)
    shutil.copytree(found, job.out, dirs_exist_ok=True)
    return FlareResult(values["status"], values["message"], job.out, numbers, values)


def simulate(job: Job, *, resume: bool = False) -> FlareResult:
    """Carry a job out in FLARE's simulator: the same code and processes as in a federation, on this machine, without TLS.

    Args:
        job: to carry out; it names the table of every site.
        resume: whether to go on with a run that was saved; else there must be none.

    Raises:
        OptionError: FLARE is not installed, a site has no table, or there is a saved run, or none, against `resume`.
        FitError: there is no result; what FLARE said last is in the message.
        OutputError: a folder cannot be written.
    """
    check_flare()
    from taskloom.engines._flare_server import FOLDER, FOLDERS_VARIABLE
    from taskloom.engines._flare_session import export_job
    from taskloom.engines._flare_site import SITE_FILE_VARIABLE

    lacking = [site for site in job.sites if site not in job.tables]
    if lacking:
        raise OptionError(f"`sites.{lacking[0]}.data` is missing: the simulator runs all sites here; name the table of each")
    with tempfile.TemporaryDirectory() as temporary:
        folder, workspace = Path(temporary), Path(temporary) / "workspace"
        # FLARE refuses names that are none, before they become files.
        app = export_job(job, folder, "resume" if resume else "new")
        check_start(job, resume=resume)
        for site, table in job.tables.items():
            write_file(folder / "sites" / f"{site}.yml", json.dumps(table.to_dict()))
        write_file(folder / "folders.json", json.dumps({"checkpoint": str(job.checkpoint), "out": str(job.out)}))
        write_file(workspace / RESOURCES, json.dumps({"format_version": 2, ALLOW_LIST: list(CLASSES)}))
        # All sites share this machine.
        environment = (
            {"OMP_NUM_THREADS": "1"}
            | os.environ
            | {
                SITE_FILE_VARIABLE: str(folder / "sites"),
                FOLDERS_VARIABLE: str(folder / "folders.json"),
                # What it leaves behind when it is killed goes with the rest.
                "TMPDIR": temporary,
            }
        )
        said = _run_simulator(app, workspace, list(job.sites), environment)
        found = workspace / "server" / "simulate_job" / FOLDER
        if not found.exists():
            raise FitError(f"FLARE's simulator left no result; it said at last: {said[-1500:]}")
        return _bring_home(job, found, "finished", ())


def _run_simulator(app: Path, workspace: Path, sites: list[str], environment: dict[str, str]) -> str:
    """What the simulator says; it and its processes are gone afterwards."""
    number = str(len(sites))
    command = [sys.executable, "-m", "nvflare.cli", "simulator", str(app), "-w", str(workspace), "-c", ",".join(sites)]
    process = subprocess.Popen(
        [*command, "-n", number, "-t", number],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    with _terminable():
        try:
            return _said(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                # Its workers are no members of its group: they end when they find it gone, and the pipe with them.
                with suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=LAST_BREATH)


def _said(process: subprocess.Popen[str]) -> str:
    # One long wait would not hear of an interrupt where a library has asked for interrupted calls to be begun again.
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=1.0)[0]


@contextmanager
def _terminable() -> Generator[None]:
    """Within this block SIGTERM is an exception: what was started is ended before this process."""
    is_free = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if is_free:
        signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        if is_free:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)
