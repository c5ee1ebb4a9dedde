"""The commands. They read options, call the rooms below and show what comes back; no logic of their own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import taskloom
from taskloom.cli import _options as opt
from taskloom.cli import _relate, _sites
from taskloom.cli._show import (
    output_folder,
    own_name,
    print_json,
    print_model,
    print_recipes,
    print_study,
    stopped_with,
    user_errors,
    write_columns,
)

if TYPE_CHECKING:
    from taskloom.study import Study

# Commands import what they need when they run, and torch after the table is read: `--help`, a mistyped option and a wrong table
# answer at once.
app = typer.Typer(
    help="Learn many related prediction tasks together, and see whether any got worse.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(_sites.app, name="sites")
app.command("relate")(_relate.relate)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        typer.echo(f"taskloom {taskloom.__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the report, the results and the table.")] = Path("demo"),
    seeds: opt.Seeds = 10,
    n_jobs: opt.Jobs = -1,
    json: opt.Json = False,
    no_cache: opt.NoCache = False,
) -> None:
    """Run a study on real data that scikit-learn carries: disease progression in six age groups of 442 diabetes patients."""
    with user_errors(), stopped_with(_kept(no_cache)):
        from taskloom.study import DEMO_RECIPES, DEMO_TARGET, StudyOptions, demo_data, save_csv, study
        from taskloom.tasks import read_table

        with output_folder(out):
            table = save_csv(demo_data(), out / "diabetes.csv")
            # Read back, so that the suggested `study` of this table finds every fit in the cache.
            data = read_table(table, target=DEMO_TARGET, by=demo_data().by)
            result = study(data, DEMO_RECIPES, seeds=seeds, n_jobs=n_jobs, options=StudyOptions(cache=not no_cache))
            _deliver(result, out, json)
    if not json:
        typer.echo(f"table:  {table}")
        question = opt.asked(table, {"--target": DEMO_TARGET, "--by": data.by})
        typer.echo("\nnext, the same on a table of your own, a model to keep, and its predictions:")
        command = own_name()
        typer.echo(f"  {command} study {question} --recipes {','.join(DEMO_RECIPES)} --seeds {seeds}")
        typer.echo(f"  {command} fit {question} --recipe joint --save {out / 'model'}")
        typer.echo(f"  {command} predict {out / 'model'} {table}")


@app.command("study")
def study_command(
    file: opt.TableFile,
    target: opt.Target = None,
    by: opt.By = None,
    targets: opt.Targets = None,
    recipes: Annotated[str | None, typer.Option("--recipes", help="Recipes A,B,C; default: all.", show_default=False)] = None,
    seeds: opt.Seeds = 5,
    out: Annotated[Path, typer.Option("--out", help="Folder for report.html and results.json.")] = Path("study"),
    n_jobs: opt.Jobs = 1,
    kind: opt.Kind = None,
    metric: opt.MetricName = None,
    drop: opt.Drop = None,
    skip_tasks: opt.SkipTasks = None,
    impute: opt.Impute = True,
    budget: opt.Budget = 3,
    cluster: opt.Cluster = None,
    controls: Annotated[
        bool,
        typer.Option("--controls/--no-controls", help="Train the controls that recipes are held against beside baselines."),
    ] = True,
    json: opt.Json = False,
    no_cache: opt.NoCache = False,
) -> None:
    """Compare recipes on a table, task by task, with single-task baselines."""
    with user_errors(), stopped_with(_kept(no_cache)):
        names = opt.named("--recipes", recipes)
        data = opt.read_tasks(file, target, by, targets, opt.table_options(kind, metric, drop, skip_tasks, impute))
        from taskloom.study import StudyOptions, study

        options = StudyOptions(budget=budget, controls=controls, cache=not no_cache)
        with opt.cluster_of(cluster), output_folder(out):
            # As many fits as the cluster has cores, unless a number is asked for.
            jobs = None if cluster is not None and n_jobs == 1 else n_jobs
            result = study(data, names, seeds=seeds, n_jobs=jobs, options=options)
            _deliver(result, out, json)
    if not json:
        asked = {"--target": target, "--by": by, "--targets": targets, "--kind": kind, "--metric": metric, "--drop": drop}
        question = opt.asked(file, asked | {"--skip-tasks": skip_tasks}, impute=impute)
        typer.echo("\nnext, a model to keep:")
        typer.echo(f"  {own_name()} fit {question} --recipe {result.recommended} --save {shlex.quote(str(out / 'model'))}")


@app.command()
def fit(
    file: opt.TableFile,
    save: Annotated[Path, typer.Option("--save", help="Folder for the model.", show_default=False)],
    recipe: Annotated[str, typer.Option("--recipe", help="Recipe to fit: see `taskloom recipes`.")] = "joint",
    target: opt.Target = None,
    by: opt.By = None,
    targets: opt.Targets = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the split and the fit.", parser=opt.whole, metavar="INTEGER")] = 0,
    kind: opt.Kind = None,
    metric: opt.MetricName = None,
    drop: opt.Drop = None,
    skip_tasks: opt.SkipTasks = None,
    impute: opt.Impute = True,
    budget: opt.Budget = 3,
    json: opt.Json = False,
) -> None:
    """Fit one recipe to a table and save the model."""
    with user_errors(), stopped_with("no model was saved"):
        data = opt.read_tasks(file, target, by, targets, opt.table_options(kind, metric, drop, skip_tasks, impute))
        from taskloom.study import fit_model

        with output_folder(save):
            model = fit_model(data, recipe, seed=seed, budget=budget)
            model.save(save)
    if json:
        print_json({"model": str(save), "recipe": model.recipe, "validation_scores": model.validation_scores})
    else:
        print_model(model, save)
        typer.echo("\nnext, its predictions:")
        typer.echo(f"  {own_name()} predict {shlex.join([str(save), str(file)])}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a saved model.", show_default=False)],
    file: opt.TableFile,
    out: Annotated[Path | None, typer.Option("--out", help="CSV file to write.", show_default="standard output")] = None,
    json: opt.Json = False,
) -> None:
    """Predict the rows of a table with a saved model."""
    with user_errors():
        from taskloom.tasks import check_file, read_model_files

        # Read twice: here so that a wrong folder is refused before torch is imported.
        read_model_files(model)
        check_file(file)
        from taskloom.study import load_model

        columns = load_model(model).predict(file)
        write_columns(columns, out, json)


@app.command()
def recipes(json: opt.Json = False) -> None:
    """List the recipes, one line each, with the paper."""
    # The rooms register their recipes when they are imported, and the study imports them all.
    import taskloom.study

    found = taskloom.recipe_classes()
    if json:
        keys = ("name", "family", "is_baseline", "summary", "paper")
        print_json([{key: getattr(recipe, key) for key in keys} for recipe in found.values()])
    else:
        print_recipes(found)


def _kept(no_cache: bool) -> str:
    return "nothing was kept (`--no-cache`)" if no_cache else "finished fits are kept: run it again, and it goes on from there"


def _deliver(result: Study, out: Path, as_json: bool) -> None:
    """Write the two files of a study, and print it."""
    result.save_results(out / "results.json")
    result.report(out / "report.html")
    if as_json:
        print_json(result.to_json())
    else:
        print_study(result, out)
