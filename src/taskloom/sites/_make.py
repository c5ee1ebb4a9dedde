"""Coordinators and sites, made from the data of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from taskloom.linear import Penalty
from taskloom.sites._asynchronous import AsynchronousCoordinator
from taskloom.sites._coordinator import Coordinator, StopRule
from taskloom.sites._data import SiteData
from taskloom.sites._methods import Method, StepOptions
from taskloom.sites._privacy import GaussianRelease, Withheld
from taskloom.sites._site import Site, TaskRows
from taskloom.sites._synchronous import SynchronousCoordinator


def make_coordinator(data: SiteData, penalty: Penalty, method: Method, rule: StopRule, steps: StepOptions) -> Coordinator:
    """The coordinator that a method needs.

    Args:
        data: whose tasks and sites are known; the rows are not looked at.
        penalty: of the model.
        method: of the run.
        rule: when it is over.
        steps: their lengths.

    Raises:
        OptionError: the penalty has no proximal map of its own, or does not fit the data.
    """
    make = SynchronousCoordinator if method.is_synchronous else AsynchronousCoordinator
    return make(data.sites, data.design.n_features, rule, penalty, method, steps)


def make_site(
    name: str,
    rows: list[TaskRows],
    n_features: int,
    method: Method,
    release: GaussianRelease | None = None,
    *,
    withhold: bool = False,
) -> Site:
    """A site out of its rows.

    Args:
        name: of the site.
        rows: of each of its tasks.
        n_features: d.
        method: that the coordinator runs.
        release: what becomes of columns before they leave; the site has noise of its own.
        withhold: whether curvatures and intercepts stay at the site.

    Examples:
        >>> import numpy as np
        >>> from taskloom.linear import Squared
        >>> from taskloom.sites import get_method
        >>> rows = TaskRows(np.eye(2), np.array([1.0, 0.0]), np.ones(2), Squared())
        >>> make_site("ward", [rows], 2, get_method("local-prox")).join().curvature.round(6)
        array([1.])
    """
    losses = [each.local_loss() for each in rows]
    own = None if release is None else release.for_site(name)
    return Site(name, [Withheld(loss) for loss in losses] if withhold else losses, n_features, method.local, own)


def site_makers(
    data: SiteData, method: Method, release: GaussianRelease | None = None, *, withhold: bool = False
) -> dict[str, Callable[[], Site]]:
    """What makes each site from nothing but its rows, by the site's name; can be pickled."""
    d = data.design.n_features
    return {
        name: partial(make_site, name, [data.rows(t) for t in tasks], d, method, release, withhold=withhold)
        for name, tasks in data.sites.items()
    }
