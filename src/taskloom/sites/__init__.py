"""Asynchronous multi-task learning over sites: rows stay where they are, a coordinator holds the model, nobody waits.

A site holds the rows of one or more tasks. It sends one vector of d numbers a task, gets one back, and goes on; the coordinator
keeps the auxiliary matrix V (d, K) and answers with columns of the proximal map of the penalty:

    result = fit(data, Trace(0.1), method="local-prox", transport="threads")

Methods differ in the site's step and in who waits for whom, transports in what carries the messages. Losses and penalties are
those of `taskloom.linear`, and so is the optimum.
"""

from taskloom.sites._asynchronous import AsynchronousCoordinator
from taskloom.sites._checkpoint import load_coordinator, revive_coordinator, save_coordinator
from taskloom.sites._coordinator import Coordinator, SiteRecord, StopRule
from taskloom.sites._data import LossOptions, SiteData, read_sites
from taskloom.sites._delays import Delays, Faults, OffsetDelays
from taskloom.sites._demo import DemoOptions, demo_tasks, run_demo
from taskloom.sites._fit import Transport, collect_result, fit
from taskloom.sites._live import live_view
from taskloom.sites._make import make_coordinator, make_site, site_makers
from taskloom.sites._messages import Answer, Update, decode, encode, one_line
from taskloom.sites._methods import METHODS, Method, StepOptions, get_method
from taskloom.sites._privacy import GaussianRelease, Withheld, epsilon
from taskloom.sites._processes import ProcessesTransport
from taskloom.sites._reception import Reception
from taskloom.sites._recipe import SitesRecipe
from taskloom.sites._report import check_report, write_report
from taskloom.sites._result import SitesResult
from taskloom.sites._session import Look, Recorder, Session, Trip
from taskloom.sites._settings import RunSettings
from taskloom.sites._simulated import SimulatedTransport
from taskloom.sites._site import LocalLoss, Site, TaskRows
from taskloom.sites._site_process import serve_site
from taskloom.sites._stochastic import StochasticOptions, StochasticProx
from taskloom.sites._synchronous import SynchronousCoordinator
from taskloom.sites._threads import ThreadsTransport
from taskloom.sites._timeline import RunSummary, compare_runs, describe_runs

__all__ = [
    "METHODS",
    "Answer",
    "AsynchronousCoordinator",
    "Coordinator",
    "Delays",
    "DemoOptions",
    "Faults",
    "GaussianRelease",
    "LocalLoss",
    "Look",
    "LossOptions",
    "Method",
    "OffsetDelays",
    "ProcessesTransport",
    "Reception",
    "Recorder",
    "RunSettings",
    "RunSummary",
    "Session",
    "SimulatedTransport",
    "Site",
    "SiteData",
    "SiteRecord",
    "SitesRecipe",
    "SitesResult",
    "StepOptions",
    "StochasticOptions",
    "StochasticProx",
    "StopRule",
    "SynchronousCoordinator",
    "TaskRows",
    "ThreadsTransport",
    "Transport",
    "Trip",
    "Update",
    "Withheld",
    "check_report",
    "collect_result",
    "compare_runs",
    "decode",
    "demo_tasks",
    "describe_runs",
    "encode",
    "epsilon",
    "fit",
    "get_method",
    "live_view",
    "load_coordinator",
    "make_coordinator",
    "make_site",
    "one_line",
    "read_sites",
    "revive_coordinator",
    "run_demo",
    "save_coordinator",
    "serve_site",
    "site_makers",
    "write_report",
]
