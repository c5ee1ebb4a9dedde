"""From a site's table to its rows: read where they are, and kept there.

Letters: n rows, d features.
"""

from __future__ import annotations

import numpy as np

from taskloom.engines._job import Job
from taskloom.engines._site_file import SiteFile
from taskloom.sites import LossOptions, Site, TaskRows, get_method, make_site, read_sites
from taskloom.tasks import Array, DataError, OptionError, canonical, nearest_name, read_rows, unknown

Pairs = dict[str, tuple[Array, Array]]


def load_rows(site_file: SiteFile, job: Job) -> list[TaskRows]:
    """The rows of a site's tasks, out of its table alone.

    Features are the columns that the job names, in its order, as numbers; each is centred and divided as the job says. Rows
    without a label are left out, a missing feature is refused. Tables of all sites must mean the same by the same column.

    Args:
        site_file: where the table is, and which columns are what.
        job: that the site takes part in.

    Returns:
        The rows of each of its tasks, in the order of `job.sites`.

    Raises:
        UnknownNameError: a site, a task or a column that there is not; the nearest is named.
        OptionError: the file does not say which rows or labels are those of a task, or does not give the job a column.
        DataError: the table cannot be read, a feature is no number or missing, a label is none that the loss takes.
    """
    if site_file.site not in job.sites:
        raise unknown("site of the job", site_file.site, job.sites)
    site_file.check(job.sites[site_file.site], job.target, job.by)
    _check_columns(site_file, job)
    pairs = _shared(site_file, job) if site_file.targets is not None else _own(site_file, job)
    data = read_sites(pairs, LossOptions(job.loss, job.scale, job.fit_intercept))
    return [data.rows(t) for t in range(len(data.tasks))]


def make_job_site(site_file: SiteFile, job: Job) -> Site:
    """A site of a job, made from its table.

    Args:
        site_file: where the table is, and which columns are what.
        job: that the site takes part in.

    Raises:
        TaskloomError: as `load_rows`.
    """
    return make_site(site_file.site, load_rows(site_file, job), job.n_features, get_method(job.method))


def _check_columns(site_file: SiteFile, job: Job) -> None:
    """What the job chooses must be what the site gives."""
    chosen = [each.name for each in job.features]
    if site_file.targets is None:
        chosen += [name for own, name in ((site_file.target, job.target), (site_file.by, job.by)) if own is None and name]
    refused = [name for name in chosen if site_file.columns is not None and name not in site_file.columns]
    if refused:
        raise OptionError(
            f"site {site_file.site!r} does not give column `{refused[0]}` to jobs; leave it out, or name it in the `columns` "
            "of the site"
        )


def _shared(site_file: SiteFile, job: Job) -> Pairs:
    """All tasks of the site on the same rows, each with a column of labels."""
    columns = site_file.targets or {}
    tasks = job.sites[site_file.site]
    X, labels, _ = _read(site_file, job, [columns[task] for task in tasks], "")
    return {task: _known(site_file, job, task, (X, labels[:, t])) for t, task in enumerate(tasks)}


def _own(site_file: SiteFile, job: Job) -> Pairs:
    """Each task of the site on rows of its own."""
    target, by, tasks = site_file.target or job.target or "", site_file.by or job.by, job.sites[site_file.site]
    X, labels, owners = _read(site_file, job, [target], by or "")
    if by is None:
        return {tasks[0]: _known(site_file, job, tasks[0], (X, labels[:, 0]))}
    pairs = {}
    for task in tasks:
        keep = owners == task
        if not keep.any():
            raise DataError(
                f"'{site_file.data}' has no row of task {task!r} in column `{by}`; {nearest_name(task, np.unique(owners))}"
            )
        pairs[task] = _known(site_file, job, task, (X[keep], labels[keep, 0]))
    return pairs


def _read(site_file: SiteFile, job: Job, targets: list[str], by: str) -> tuple[Array, Array, Array]:
    """Features (n, d), labels (n, m), NaN where there is none, and whose rows they are (n,)."""
    names, path = [each.name for each in job.features], site_file.data
    used = {*targets, by} & {*names}
    if used:
        raise OptionError(
            f"`features`: column `{used.pop()}` is the label or the task of site {site_file.site!r}; leave it out"
        )
    if job.row_loss.labels == "real":
        features, owners = read_rows(path, [*names, *targets], [], by)
        labels = features.numeric[:, len(names) :]
    else:
        features, owners = read_rows(path, names, targets, by)
        labels = np.stack([_signs(column, name, job) for column, name in zip(features.categorical.T, targets, strict=True)], 1)
    X = features.numeric[:, : len(names)]
    center, scale = (np.array([getattr(each, key) for each in job.features]) for key in ("center", "scale"))
    known = set(job.tasks)
    whose = [owner if owner in known else canonical(str(owner)) for owner in (owners if owners is not None else [])]
    return (X - center) / scale, labels, np.array(whose, dtype=object)


def _signs(values: Array, column: str, job: Job) -> Array:
    """Labels (n,) of -1 and +1 from texts; NaN where there is none."""
    sign = {canonical(str(each)): value for each, value in zip(job.classes, (-1.0, 1.0), strict=True)}
    texts = [None if value is None else canonical(value) for value in values]
    strange = next((text for text in texts if text is not None and text not in sign), None)
    if strange is not None:
        raise DataError(f"column `{column}` holds {strange!r}, none of the job's `classes` {list(job.classes)}; correct either")
    return np.array([np.nan if text is None else sign[text] for text in texts])


def _known(site_file: SiteFile, job: Job, task: str, rows: tuple[Array, Array]) -> tuple[Array, Array]:
    """The rows that have a label, all features of which must be known."""
    X, y = rows
    keep = ~np.isnan(y)
    if not keep.any():
        raise DataError(f"'{site_file.data}': task {task!r} has no label at all; correct it or leave the task out")
    X, y = X[keep], y[keep]
    bad = ~np.isfinite(X)
    if bad.any():
        name = job.features[int(np.argmax(bad.any(axis=0)))].name
        raise DataError(
            f"'{site_file.data}': feature `{name}` is missing or infinite in {bad.any(axis=1).sum()} of {len(X)} rows of task "
            f"{task!r}; fill or drop them"
        )
    return X, y
