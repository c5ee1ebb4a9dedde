"""`taskloom sites provision`, `submit` and `simulate`: a job across organisations, on NVIDIA FLARE."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taskloom.cli import _options as opt
from taskloom.cli._jobs import Out, short, tell, tell_stopped
from taskloom.cli._show import print_json, user_errors, wide_console

ProjectFile = Annotated[
    Path, typer.Argument(metavar="PROJECT.yml", help="FLARE's project: who takes part.", show_default=False)
]
KitsFolder = Annotated[Path, typer.Option("--out", help="Folder for the start-up kits.")]
JobFile = Annotated[Path, typer.Argument(metavar="JOB.yml", help="The job: sites, tasks, model, limits.", show_default=False)]
Kit = Annotated[Path, typer.Option("--kit", help="Start-up kit of an administrator.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that was saved.")]
Resubmissions = Annotated[int, typer.Option("--resubmissions", help="How often to submit the job again when it breaks.")]
Wait = Annotated[float, typer.Option("--wait", help="Seconds to wait for the server, and for sites that are away.")]


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
        table.add_column(name)
    for kit in kits:
        table.add_row(Text(kit.name), Text(_ROLES.get(kit.kind, kit.kind)), Text(short(kit.folder)))
    console = wide_console()
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
            chosen = {"--kit": kit, "--resubmissions": resubmissions, "--wait": wait, "--out": out}
            # Whether the coordinator has saved anything is not known here.
            tell_stopped(["submit", str(job), "--resume"], chosen, is_saved=True)
    tell(result.values, result.out, as_json=json, jobs=list(result.jobs))


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
            is_saved = any(read.checkpoint.glob("*.safetensors"))
            tell_stopped(["simulate", str(job), "--resume"], {"--out": out}, is_saved=is_saved)
    tell(result.values, result.out, as_json=json, jobs=list(result.jobs))


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
