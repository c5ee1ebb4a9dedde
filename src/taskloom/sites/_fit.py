"""Learn linear models of many tasks together over sites, in one call.

Letters: K tasks, d features, W (d, K) coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol, Unpack

import numpy as np

from taskloom.linear import Loss, Penalty, certify
from taskloom.sites._checkpoint import revive_coordinator, save_coordinator
from taskloom.sites._coordinator import Coordinator
from taskloom.sites._data import LossOptions, TaskPairs, read_sites
from taskloom.sites._delays import check_sites
from taskloom.sites._make import make_coordinator, site_makers
from taskloom.sites._methods import Method, get_method
from taskloom.sites._processes import ProcessesTransport
from taskloom.sites._result import SitesResult
from taskloom.sites._session import Observer, Recorder, Session
from taskloom.sites._settings import RunSettings, Settings
from taskloom.sites._simulated import SimulatedTransport
from taskloom.sites._site import Site
from taskloom.sites._threads import ThreadsTransport
from taskloom.tasks import OptionError, TaskData, unknown

TRANSPORTS = ("threads", "processes", "simulated")


class Transport(Protocol):
    """What carries the messages of a session."""

    def run(self, session: Session, make_sites: Mapping[str, Callable[[], Site]]) -> None:
        """Until every site has parted; `make_sites` makes each from nothing but its rows."""
        ...


def fit(
    data: TaskData | TaskPairs,
    penalty: Penalty,
    *,
    loss: str | Loss = "auto",
    scale: str = "mean",
    fit_intercept: bool = True,
    method: str | Method = "local-prox",
    transport: str | Transport = "threads",
    **settings: Unpack[RunSettings],
) -> SitesResult:
    """Minimise sum_t loss_t(w_t) + penalty(W) over sites that never send their rows.

    Every site sends d numbers for each of its tasks and gets as many back; the coordinator never waits for anybody, unless
    the method is a synchronous one. All methods have the same optimum, that of `taskloom.linear`.

    Args:
        data: encoded tasks, or (X_t, y_t) of each task, in order or by name; X dense or scipy sparse.
        penalty: with a proximal map of its own; not one that splits W into parts.
        loss: of all tasks, by name or as one; `auto`: squared for regression, logistic for two classes.
        scale: what a task's sum of losses is divided by: `mean` (its rows), `sum` (nothing), `sklearn`, `malsar`.
        fit_intercept: whether each task has an intercept that no penalty touches. It stays at the site until the end.
        method: `local-prox`, `amtl`, `amtl-paper`, `smtl` or `smtl-fista`: see `METHODS`.
        transport: `threads`, `processes`, `simulated` (a virtual clock), or one of your own.
        settings: how the run goes: see `RunSettings`.

    Raises:
        DataError: shapes, values or labels that do not fit.
        OptionError: a setting outside of what it may be, or a penalty that has no proximal map of its own.
        UnknownNameError: an unknown loss, scale, method, transport or setting.
        FitError: nothing came through, or a site failed that all others wait for.

    Examples:
        >>> from taskloom.linear import Trace
        >>> rng = np.random.default_rng(0)
        >>> wards = {f"ward {t}": rng.normal(size=(30, 5)) for t in range(3)}
        >>> pairs = {name: (X, X @ np.ones(5)) for name, X in wards.items()}
        >>> result = fit(pairs, Trace(0.01), transport="simulated", delays=1.0, gap=1e-8)
        >>> result.converged, result.W.shape
        (True, (5, 3))
    """
    run = _settings(settings)
    chosen = method if isinstance(method, Method) else get_method(method)
    sites = read_sites(data, LossOptions(loss, scale, fit_intercept), run.sites)
    check_sites(run.law, run.faults, sites.sites)
    carrier = _transport(transport, run)
    if run.give_up is not None and isinstance(carrier, ThreadsTransport | SimulatedTransport):
        raise OptionError("`give_up` is for sites that can hang by themselves, in processes; use transport='processes'")
    if run.withhold and chosen.local == "gradient" and run.step is None:
        raise OptionError("`withhold` keeps the curvatures that gradient steps need; use method='local-prox', or give `step`")
    if chosen.local == "gradient" and run.step is None and any(np.isinf(loss.curvature) for loss in sites.labels.losses):
        raise OptionError("`method`: gradient steps need a bounded curvature, which the loss has not; use `local-prox`")
    make = partial(make_coordinator, sites, penalty, chosen, run.rule, run.steps)
    coordinator, path = make(), None if run.checkpoint is None else Path(run.checkpoint)
    if path is not None and path.exists():
        revive_coordinator(coordinator, path)
    session = Session(
        coordinator,
        Recorder(run.look_every or len(sites.sites), partial(certify, sites.problem, penalty), run.gap),
        save=None if path is None else partial(save_coordinator, path=path),
        save_every=run.checkpoint_every,
        callback=run.callback if run.give_up is None else partial(_give_up, limit=run.give_up, callback=run.callback),
    )
    if isinstance(carrier, SimulatedTransport) and run.faults.coordinator_crashes:
        if path is None:
            raise OptionError("`faults`: a coordinator that crashes comes up from its file; give `checkpoint`")
        carrier.revive = partial(_revive, make=make, path=path)
    carrier.run(session, site_makers(sites, chosen, run.release, withhold=run.withhold))
    session.close()
    result = collect_result(session, sites.tasks, method if isinstance(method, str) else "own")
    return _without_intercepts(result) if run.withhold and fit_intercept else result


def _without_intercepts(result: SitesResult) -> SitesResult:
    result.intercepts[:] = np.nan
    result.notes.append("intercepts were withheld: each site has its own")
    return result


def _settings(given: RunSettings) -> Settings:
    strange = next((name for name in given if name not in RunSettings.__annotations__), None)
    if strange is not None:
        raise unknown("setting", strange, RunSettings.__annotations__)
    return Settings(**given)


def _give_up(session: Session, limit: float, callback: Observer | None) -> None:
    """Give up silent sites, then call back."""
    session.give_up(limit)
    if callback is not None:
        callback(session)


def _revive(session: Session, make: Callable[[], Coordinator], path: Path) -> None:
    coordinator = make()
    if path.exists():
        revive_coordinator(coordinator, path)
    session.replace(coordinator)


def _transport(given: str | Transport, run: Settings) -> Transport:
    if not isinstance(given, str) and hasattr(given, "run"):
        return given
    if given not in TRANSPORTS:
        raise unknown("transport", given, TRANSPORTS)
    if given == "simulated":
        return SimulatedTransport(run.law, run.faults, run.seed)
    if run.faults != type(run.faults)():
        raise OptionError(f"`faults` with transport {given!r}: only a simulated network can be told to fail; use `simulated`")
    if given == "threads":
        return ThreadsTransport(run.law, run.seed)
    # A site that is started again counts its releases anew: then a limit would be none.
    is_limited = run.release is not None and run.release.limit is not None
    return ProcessesTransport(run.law, run.seed, restarts=0) if is_limited else ProcessesTransport(run.law, run.seed)


def collect_result(session: Session, tasks: list[str], method: str) -> SitesResult:
    """What a session leaves behind once it is closed.

    Args:
        session: of the run.
        tasks: names of its columns.
        method: its name.
    """
    coordinator, recorder = session.coordinator, session.recorder
    intercepts = np.full(len(tasks), np.nan)
    for site in coordinator.sites.values():
        if site.intercepts is not None:
            intercepts[site.tasks] = site.intercepts
    message = coordinator.verdict()
    if coordinator.converged and recorder.gap is not None and recorder.looks:
        last = recorder.looks[-1].certificate
        if last is not None and last.relative <= recorder.gap:
            message = f"converged: relative gap {last.relative:.1e} (asked {recorder.gap:g})"
    return SitesResult(
        W=np.array(coordinator.finish()),
        intercepts=intercepts,
        tasks=tasks,
        converged=coordinator.converged,
        message=message,
        method=method,
        sites=coordinator.sites,
        trips=recorder.trips,
        looks=recorder.looks,
        seconds=session.now,
        notes=session.notes,
    )
