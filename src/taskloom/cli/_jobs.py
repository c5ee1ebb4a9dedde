"""`taskloom sites run` and `resume`: a job file on an engine of one's own machines."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taskloom.cli import _options as opt
from taskloom.cli._show import FIT_ERROR, INTERRUPTED, own_name, print_json, user_errors, wide_console

if TYPE_CHECKING:
    from taskloom.engines import Progress

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yml", help="The job: sites, tasks, model, limits.", show_default=False)]
Engine = Annotated[str, typer.Option("--engine", help="threads, processes or ray.")]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Of a running Ray: auto, HOST:PORT or ray://HOST:PORT.", show_default="one of its own"),
]
Namespace = Annotated[str, typer.Option("--namespace", help="Of the names of Ray's actors.")]
# Options that need not be said again.
USUAL = {"--engine": "threads", "--namespace": "taskloom", "--resubmissions": 5, "--wait": 60.0}
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder for model, report and result. Saves to resume from stay where the job has them.",
        show_default="as the job says",
    ),
]


def run(
    job: JobFile,
    engine: Engine = "threads",
    address: Address = None,
    namespace: Namespace = "taskloom",
    out: Out = None,
    json: opt.Json = False,
) -> None:
    """Learn over the sites of a job, whose tables are on machines of one's own."""
    _carry_out(job, engine, (address, namespace), out, as_json=json, resume=False)


def resume(
    job: JobFile,
    engine: Engine = "threads",
    address: Address = None,
    namespace: Namespace = "taskloom",
    out: Out = None,
    json: opt.Json = False,
) -> None:
    """Go on with a job that was stopped, from the coordinator's last save."""
    _carry_out(job, engine, (address, namespace), out, as_json=json, resume=True)


def _carry_out(
    file: Path, engine: str, cluster: tuple[str | None, str], out: Path | None, *, as_json: bool, resume: bool
) -> None:
    with user_errors():
        from taskloom.engines import RayOptions, read_job, run_job
        from taskloom.tasks import OptionError

        if cluster[0] is not None and engine != "ray":
            raise OptionError(f"`--address` is that of a Ray; engine {engine!r} has none, give `--engine ray`")
        job = read_job(file)
        job = job if out is None else dataclasses.replace(job, out=out.absolute())
        try:
            # Ray prints news of its machines: standard output is for the result.
            with redirect_stdout(sys.stderr), _progress(job.name) as watch:
                result = run_job(job, engine, resume=resume, watch=watch, ray=RayOptions(*cluster))
        except KeyboardInterrupt:
            chosen = {"--engine": engine, "--address": cluster[0], "--namespace": cluster[1], "--out": out}
            # The coordinator on Ray may be on another machine, and the checkpoint with it.
            is_saved = engine == "ray" or any(job.checkpoint.glob("*.safetensors"))
            tell_stopped(["resume", str(file)], chosen, is_saved=is_saved)
    tell(result.to_json(), job.out, as_json=as_json)


def tell_stopped(command: list[str], chosen: Mapping[str, object], *, is_saved: bool) -> NoReturn:
    """Say how to go on after an interrupt, and end.

    Args:
        command: of `taskloom sites`, with its arguments.
        chosen: options by name; the usual ones are left out.
        is_saved: whether there is anything to go on with.
    """
    given = [str(part) for name, value in chosen.items() if value not in (None, USUAL.get(name)) for part in (name, value)]
    remedy = f"go on with `{shlex.join([own_name(), 'sites', *command, *given])}`"
    typer.echo(f"stopped; {remedy if is_saved else 'nothing was saved'}", err=True)
    raise typer.Exit(INTERRUPTED)


def tell(values: dict[str, Any], out: Path, *, as_json: bool, **more: Any) -> None:
    """Say how a job ended; the exit code says it too.

    Args:
        values: as `result.json` has them.
        out: folder of the result.
        as_json: whether machines read it.
        more: for these.
    """
    if as_json:
        print_json(values | {"out": str(out)} | more)
    else:
        _print(values, out)
    if values["status"] not in ("converged", "limit reached"):
        raise typer.Exit(FIT_ERROR)


@contextmanager
def _progress(title: str) -> Generator[Callable[[Progress], None]]:
    """A line on standard error, on a terminal."""
    console = Console(stderr=True)
    with console.status(Text(title)) as status:
        yield lambda progress: status.update(Text(f"{title}: {progress}"))


def _print(values: dict[str, Any], out: Path) -> None:
    """How a job ended, what came of each site, and where its files are."""
    console = wide_console()
    table = Table(box=box.SIMPLE_HEAD)
    columns = ("site", "updates", "staleness", "bytes in", "bytes out", "last seen", "refused", "state")
    for name in columns:
        table.add_column(name, justify="left" if name in ("site", "state") else "right")
    for name, site in values["sites"].items():
        seen = "never" if site["seen_at"] is None else f"{site['seen_at']:.1f} s"
        stale = "-" if site["staleness"] is None else f"{site['staleness']:g}"
        counts = (str(site["updates"]), stale, str(site["bytes_in"]), str(site["bytes_out"]), seen, str(site["refused"]))
        table.add_row(Text(name), *counts, Text(site["state"]))
    console.print(table)
    for sentence in (values["message"], *values["notes"]):
        console.print(Text(sentence), soft_wrap=True)
    if values["modelled"]:
        console.print(Text.assemble("model:  ", (short(out / "model"), "bold")), soft_wrap=True)
    console.print(Text.assemble("report: ", (short(out / "report.html"), "bold")), soft_wrap=True)


def short(path: Path) -> str:
    """As it is typed from here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
