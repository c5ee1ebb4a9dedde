"""`taskloom sites provision`, `submit` and `simulate`: a job across organisations, on NVIDIA FLARE."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taskloom.cli import _options as opt
from taskloom.cli._show import FIT_ERROR, INTERRUPTED, own_name, print_json, user_errors

if TYPE_CHECKING:
    from taskloom.engines import FlareResult

ProjectFile = Annotated[
    Path, typer.Argument(metavar="PROJECT.yml", help="FLARE's project: who takes part.", show_default=False)
]
KitsFolder = Annotated[Path, typer.Option("--out", help="Folder for the start-up kits.")]
JobFile = Annotated[Path, typer.Argument(metavar="JOB.yml", help="The job: sites, tasks, model, limits.", show_default=False)]
Kit = Annotated[Path, typer.Option("--kit", help="Start-up kit of an administrator.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that was saved.")]
Resubmissions = Annotated[int, typer.Option("--resubmissions", help="How often to submit the job again when it breaks.")]
Wait = Annotated[float, typer.Option("--wait", help="Seconds to wait for the server, and for sites that are away.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for model, report and result.", show_default="as the job says")]


def provision(project: ProjectFile, out: KitsFolder = Path("kits"), json: opt.Json = False) -> None:
    """Make the start-up kits of a federation: certificates, scripts and policies."""
    with user_errors():
        from taskloom.engines import provision as make_kits

        kits = make_kits(project, out)
    if json:
        print_json([{"name": kit.name, "kind": kit.kind, "folder": str(kit.folder)} for kit in kits])
        return
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("participant", "is", "start-up kit"):
        table.add_column(name, overflow="fold")
    for kit in kits:
        table.add_row(Text(kit.name), Text(_ROLES.get(kit.kind, kit.kind)), Text(_shown(kit.folder)))
    console = Console()
    console.print(table)
    console.print("Each kit holds a private key: hand it to its participant alone.")


_ROLES = {"server": "coordinator", "client": "site", "admin": "administrator"}


def submit(
    job: JobFile,
    kit: Kit,
    resume: Resume = False,
    resubmissions: Resubmissions = 5,
    wait: Wait = 60.0,
    out: Out = None,
    json: opt.Json = False,
) -> None:
    """Carry a job out in a federation that is running, and fetch its result."""
    with user_errors():
        from taskloom.engines import FlareOptions, read_job
        from taskloom.engines import submit as carry_out

        read = read_job(job)
        read = read if out is None else dataclasses.replace(read, out=out.absolute())
        try:
            with _progress(read.name) as watch:
                result = carry_out(read, kit, FlareOptions(resume, resubmissions, wait, watch))
        except KeyboardInterrupt:
            typer.echo(f"stopped; go on with `{own_name()} sites submit {job} --kit {kit} --resume`", err=True)
            raise typer.Exit(INTERRUPTED) from None
    _tell(result, as_json=json)


def simulate(job: JobFile, resume: Resume = False, out: Out = None, json: opt.Json = False) -> None:
    """Carry a job out in FLARE's simulator, on this machine; the job names the table of every site."""
    with user_errors():
        from taskloom.engines import read_job
        from taskloom.engines import simulate as carry_out

        read = read_job(job)
        read = read if out is None else dataclasses.replace(read, out=out.absolute())
        try:
            result = carry_out(read, resume=resume)
        except KeyboardInterrupt:
            typer.echo(f"stopped; go on with `{own_name()} sites simulate --resume {job}`", err=True)
            raise typer.Exit(INTERRUPTED) from None
    _tell(result, as_json=json)


def add_to(app: typer.Typer) -> None:
    """Give a group of commands those of this module."""
    for command in (provision, submit, simulate):
        app.command()(command)


@contextmanager
def _progress(title: str) -> Generator[Callable[[str], None]]:
    """A line on standard error for each thing that happens, and one that waits on a terminal."""
    console = Console(stderr=True)
    with console.status(Text(title)):
        yield lambda said: console.print(Text(f"{title}: {said}"), soft_wrap=True)


def _tell(result: FlareResult, *, as_json: bool) -> None:
    if as_json:
        print_json(result.values | {"out": str(result.out), "jobs": list(result.jobs)})
    else:
        _print(result)
    if result.status not in ("converged", "limit reached"):
        raise typer.Exit(FIT_ERROR)


def _print(result: FlareResult) -> None:
    """How a job ended, what came of each site, and where its files are."""
    console, table = Console(), Table(box=box.SIMPLE_HEAD)
    for name in ("site", "updates", "staleness", "bytes in", "bytes out", "refused", "state"):
        table.add_column(name, justify="left" if name in ("site", "state") else "right")
    for name, site in result.values["sites"].items():
        stale = "-" if site["staleness"] is None else f"{site['staleness']:g}"
        counts = (str(site["updates"]), stale, str(site["bytes_in"]), str(site["bytes_out"]), str(site["refused"]))
        table.add_row(Text(name), *counts, Text(site["state"]))
    console.print(table)
    console.print(Text(result.message), soft_wrap=True)
    for name in ("model", "report.html"):
        if (result.out / name).exists():
            console.print(Text.assemble(f"{name.removesuffix('.html')}: ", (_shown(result.out / name), "bold")), soft_wrap=True)


def _shown(path: Path) -> str:
    """A path as short as it can be said here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
