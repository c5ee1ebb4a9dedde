"""The commands of `taskloom sites`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from taskloom.cli import _flare, _jobs
from taskloom.cli import _options as opt
from taskloom.cli._show import INTERRUPTED, output_folder, print_json, user_errors, wide_console

if TYPE_CHECKING:
    from taskloom.sites import DemoOptions, RunSummary

app = typer.Typer(help="Learn over sites that keep their rows and do not wait for each other.", no_args_is_help=True)
app.command()(_jobs.run)
app.command()(_jobs.resume)
_flare.add_to(app)


@app.callback()
def _group() -> None:
    """Learn over sites that keep their rows and do not wait for each other."""


@app.command()
def demo(
    sites: Annotated[int, typer.Option("--sites", help="How many sites; each has one task.")] = 8,
    straggler: Annotated[float, typer.Option("--straggler", help="How many times slower the last site is.")] = 5.0,
    method: Annotated[str, typer.Option("--method", help="Methods A,B,C to compare.")] = "local-prox,smtl-fista",
    transport: Annotated[str, typer.Option("--transport", help="threads, processes or simulated.")] = "threads",
    seconds: Annotated[float, typer.Option("--seconds", help="After which a run is ended.")] = 6.0,
    delay: Annotated[float, typer.Option("--delay", help="Mean seconds of a round trip of the other sites.")] = 0.01,
    out: Annotated[Path, typer.Option("--out", help="HTML file for the report.")] = Path("sites.html"),
    seed: Annotated[int, typer.Option("--seed", help="Of the data and the delays.")] = 0,
    json: opt.Json = False,
) -> None:
    """Learn related tasks over sites of which one is slow, with and without waiting for it."""
    with user_errors():
        from taskloom.sites import DemoOptions, check_report, compare_runs, live_view, run_demo, write_report

        options = DemoOptions(sites, straggler, tuple(opt.split_names(method)), transport, seconds, delay, seed=seed)
        with output_folder(out.parent):
            check_report(out)
            try:
                results = run_demo(options, live_view)
            except KeyboardInterrupt:
                typer.echo("stopped; no report was written", err=True)
                raise typer.Exit(INTERRUPTED) from None
            runs = compare_runs(results)
            write_report(results, out, about=_about(options))
    if json:
        print_json({"options": vars(options), "runs": [_plain(run) for run in runs]})
    else:
        _print_runs(runs, options, out)


def _about(options: DemoOptions) -> str:
    clock = "on a virtual clock" if options.transport == "simulated" else f"over {options.transport}"
    slow = f"{options.slow} is {options.straggler:g} times slower" if options.straggler > 1 else "none is slower"
    return (
        f"{options.sites} synthetic related tasks, one a site (seed {options.seed}), {clock}; a round trip takes "
        f"{1000 * options.delay:g} ms on average, and {slow}."
    )


def _plain(run: RunSummary) -> dict[str, object]:
    """Numbers that JSON can have."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in vars(run).items()}


def _print_runs(runs: list[RunSummary], options: DemoOptions, out: Path) -> None:
    from taskloom.sites import describe_runs

    console = wide_console()
    console.print(Text(_about(options)), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("method", "seconds", "updates, slowest site", "fastest", "waiting or in vain", "relative gap"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for run in runs:
        numbers = (f"{run.seconds:.2f}", str(run.slowest), str(run.fastest), f"{100 * run.waited:.0f} %", f"{run.gap:.1e}")
        table.add_row(Text(run.name), *numbers)
    console.print(table)
    if sentence := describe_runs(runs):
        console.print(Text(sentence), soft_wrap=True)
    console.print(Text.assemble("report: ", (str(out), "bold")), soft_wrap=True)
