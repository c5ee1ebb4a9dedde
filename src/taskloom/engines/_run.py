"""One job on one engine, from its start to its files."""

from __future__ import annotations

from functools import partial

from taskloom.engines._job import Job
from taskloom.engines._ray import RayOptions, run_on_ray
from taskloom.engines._result import JobResult, collect
from taskloom.engines._rows import make_job_site
from taskloom.engines._session import Watch, check_start, forget, open_session
from taskloom.sites import ProcessesTransport, ThreadsTransport
from taskloom.tasks import FitError, OptionError, unknown

ENGINES = ("threads", "processes", "ray")


def run_job(
    job: Job,
    engine: str = "threads",
    *,
    resume: bool = False,
    watch: Watch | None = None,
    ray: RayOptions | None = None,
) -> JobResult:
    """Run a job whose sites read their tables where the engine puts them, and write what comes of it into its folder.

    The run is saved as it goes. When it has converged, what was saved is deleted; else `resume` goes on from it, with limits
    that may be others. An interrupt leaves it to be resumed. A run that cannot be
    saved any more ends as `failed`, with the model that it has.

    Args:
        job: that names each site's table.
        engine: `threads` of this process, `processes` of this machine, or `ray`.
        resume: whether to go on with a run that ended before.
        watch: called with a `Progress` a few times a second as the run goes.
        ray: where the cluster is, for `ray`.

    Raises:
        OptionError: a site without a table; a run that would be lost, or none to go on with, or that is being carried out;
            Ray is not installed.
        UnknownNameError: an unknown engine.
        OutputError: a folder that cannot be written.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from taskloom.engines import read_job
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.csv").write_text("x,y 0,0.5 1,1.5 2,2.5".replace(" ", chr(10)))
        ...     sites = {"a": {"tasks": ["height"], "data": "a.csv", "target": "y"}}
        ...     job = read_job({"sites": sites, "features": ["x"], "penalty": {"ridge": 0}}, folder)
        ...     result = run_job(job)
        >>> result.status, result.predict([[3.0]], "height").round(3)
        ('converged', array([3.5]))
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    lacking = [site for site in job.sites if site not in job.tables]
    if lacking:
        raise OptionError(f"`sites.{lacking[0]}` names no table (`data`); on engine {engine!r} every site needs one")
    if engine == "ray":
        return run_on_ray(job, ray or RayOptions(), resume=resume, watch=watch)
    check_start(job, resume=resume)
    result = _run_here(job, engine, watch)
    result.save()
    if result.converged:
        forget(job)
    return result


def _run_here(job: Job, engine: str, watch: Watch | None) -> JobResult:
    session = open_session(job, watch)
    transport = (ThreadsTransport if engine == "threads" else ProcessesTransport)(patience=job.patience)
    try:
        transport.run(session, {site: partial(make_job_site, table, job) for site, table in job.tables.items()})
    except FitError as error:
        session.end("failed", str(error))
    except KeyboardInterrupt:
        session.close()
        raise
    except BaseException:
        session.release()
        raise
    return collect(session, engine)
