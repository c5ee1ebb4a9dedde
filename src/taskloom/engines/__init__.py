"""Sites on real machines: one job file, carried out on this machine, on Ray, or by NVIDIA FLARE across organisations.

A `Job` says which sites learn which tasks together, how, and when it is over; a `SiteFile` says where a site's rows are, and
stays there. The coordinator and the sites are those of `taskloom.sites`; what carries their messages is an engine:

    job = read_job("job.yml")
    result = run_job(job, engine="processes")

Rows never leave their site. The run is saved as it goes, and goes on where it stopped.
"""

from taskloom.engines._desk import GOODBYE, LATER, REJECT, Desk, take_part
from taskloom.engines._flare import FlareOptions, FlareResult, simulate, submit
from taskloom.engines._flare_kits import StartupKit, provision
from taskloom.engines._job import Feature, Job, read_job
from taskloom.engines._ray import RayOptions, ray_backend
from taskloom.engines._result import JobResult, SiteReport
from taskloom.engines._rows import load_rows, make_job_site
from taskloom.engines._run import ENGINES, run_job
from taskloom.engines._session import Progress
from taskloom.engines._site_file import SiteFile, read_site_file

__all__ = [
    "ENGINES",
    "GOODBYE",
    "LATER",
    "REJECT",
    "Desk",
    "Feature",
    "FlareOptions",
    "FlareResult",
    "Job",
    "JobResult",
    "Progress",
    "RayOptions",
    "SiteFile",
    "SiteReport",
    "StartupKit",
    "load_rows",
    "make_job_site",
    "provision",
    "ray_backend",
    "read_job",
    "read_site_file",
    "run_job",
    "simulate",
    "submit",
    "take_part",
]
