import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import polars as pl
import pytest
from typer.testing import CliRunner

from taskloom.cli._app import app
from taskloom.study import demo_data, results_schema, save_csv
from taskloom.tasks import recipe_classes

SCRIPT = Path(sys.executable).with_name("taskloom")


@pytest.fixture
def table(tmp_path):
    return save_csv(demo_data(), tmp_path / "diabetes.csv")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def question(table):
    return [table, "--target", "progression", "--by", "age group"]


def test_recipes_are_listed_with_family_and_paper():
    listed = json.loads(run("recipes", "--json").stdout)
    assert {entry["name"] for entry in listed} >= {"ridge", "single", "joint"}
    assert all(entry["summary"] and entry["family"] for entry in listed)
    plain = run("recipes").stdout
    assert all(entry["name"] in plain for entry in listed)


def test_study_writes_report_and_results_and_prints_the_verdict(table, tmp_path):
    out = tmp_path / "out"
    done = run("study", *question(table), "--recipes", "ridge", "--seeds", 3, "--out", out)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "results.json"]
    assert "nothing to compare yet" in done.stdout
    assert str(out / "report.html") in done.stdout.replace("\n", "")
    machine = run("study", *question(table), "--recipes", "ridge", "--seeds", 3, "--out", out, "--json")
    assert json.loads(machine.stdout) == json.loads((out / "results.json").read_text())


def test_fit_and_predict_through_files(table, tmp_path):
    model, predictions = tmp_path / "model", tmp_path / "predictions.csv"
    done = run("fit", *question(table), "--recipe", "ridge", "--save", model)
    assert done.exit_code == 0, done.output
    assert "19 to 34" in done.stdout
    assert run("predict", model, table, "--out", predictions).exit_code == 0
    frame = pl.read_csv(predictions)
    assert frame.columns == ["age group", "prediction"]
    assert frame["age group"].to_list() == pl.read_csv(table, infer_schema_length=None)["age group"].to_list()
    assert run("predict", model, table).stdout == predictions.read_text()
    columns = json.loads(run("predict", model, table, "--json").stdout)
    assert columns["prediction"] == frame["prediction"].to_list()
    fitted = json.loads(run("fit", *question(table), "--recipe", "ridge", "--save", model, "--json").stdout)
    assert fitted["recipe"] == "ridge"


def test_shared_rows_kinds_and_columns_left_out(tmp_path):
    path = tmp_path / "t.csv"
    rows = [f"{i},{i % 7},{(i * 3) % 5},{i % 2},{i * 0.5 + i % 3},{i % 3}" for i in range(60)]
    path.write_text("id,a,b,sick,cost,stage\n" + "\n".join(rows) + "\n")
    done = run(
        "study", path, "--targets", "sick,cost", "--drop", "id,stage", "--recipes", "ridge", "--seeds", 3,
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert [(task["name"], task["kind"]) for task in value["tasks"]] == [("sick", "binary"), ("cost", "regression")]
    assert value["data"]["n_columns"] == 2
    asked = {"table": "t.csv", "target": None, "by": None, "targets": ["sick", "cost"], "kind": None, "metric": None}
    assert value["data"]["question"] == asked | {"drop": ["id", "stage"], "skip_tasks": [], "impute": True}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["data"]["question"] == value["data"]["question"]
    assert str(tmp_path) not in json.dumps(value)
    jsonschema.validate(value, results_schema())
    assert "&#34;skip_tasks&#34;" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "progresion", "--by", "age group"], "no column named `progresion`; did you mean `progression`?"),
        (["--target", "progression"], "`target` comes with `by`"),
        (["--targets", " , "], "`--targets` is empty"),
        (["--targets", "bmi,progression", "--recipes", "jiont"], "no recipe named `jiont`; did you mean `joint`?"),
        (["--targets", "bmi,bmi"], "two tasks are named `bmi`"),
        (["--targets", "bmi", "--metric", "acc"], "no metric named `acc`"),
        (["--targets", "bmi", "--metric", "auc"], "cannot score task `bmi`"),
        (["--targets", "bmi", "--seeds", "0"], "`seeds`=0"),
        (["--targets", "bmi", "--recipes", ""], "`--recipes` is empty"),
        (["--targets", "bmi", "--n-jobs", "0"], "`n_jobs`=0"),
        (["--targets", "bmi", "--budget", "0"], "`budget`=0"),
        (["--target", "progression", "--by", "bmi"], "target of task `18` is constant"),
        (["--target", "progression", "--by", "age group", "--skip-tasks", "19 to 35"], "did you mean `19 to 34`"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_exit_2(arguments, message, table, tmp_path):
    out = tmp_path / "out"
    done = run("study", table, *arguments, "--out", out)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not out.exists()


@pytest.mark.parametrize(
    ("cluster", "message"), [("loca", "is no address of a Ray; give `local`, `auto`"), ("127.0.0.1:1", "nobody listens there")]
)
def test_a_cluster_that_is_not_there_is_named_as_it_was_typed(cluster, message, table, tmp_path):
    pytest.importorskip("ray")
    done = run("study", *question(table), "--recipes", "ridge", "--cluster", cluster, "--out", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: `--cluster`='{cluster}'")
    assert message in done.stderr
    assert "address`=" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written_stops_before_any_work(table, tmp_path):
    (tmp_path / "file").write_text("")
    for command in (["study", *question(table), "--out"], ["fit", *question(table), "--save"], ["demo", "--out"]):
        done = run(*command, tmp_path / "file" / "out")
        assert (done.exit_code, done.stdout) == (2, "")
        assert "cannot be written" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "jiont"], "did you mean `joint`"),
        (["--seed", "-1"], "`seeds`=[-1]"),
        (["--budget", "0"], "`budget`=0"),
        (["--recipe", "ridge", "--budget", "-1"], "`budget`=-1"),
    ],
)
def test_a_fit_that_cannot_be_ends_with_one_sentence_and_leaves_nothing(arguments, message, table, tmp_path):
    done = run("fit", *question(table), "--save", tmp_path / "model", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert not (tmp_path / "model").exists()


def test_brackets_in_names_are_shown_as_they_are(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("[/b] A,[bold]B,x\n" + "\n".join(f"{i % 7},{i % 5 + i / 9},{i}" for i in range(60)) + "\n")
    question = ["--targets", "[/b] A,[bold]B", "--kind", "regression"]
    assert "[bold]B" in run("fit", path, *question, "--recipe", "ridge", "--save", tmp_path / "m").stdout
    assert "[/b] A" in run("study", path, *question, "--recipes", "ridge", "--out", tmp_path / "o", "--json").stdout


def test_damaged_files_end_with_exit_2(table, tmp_path):
    table.write_bytes(table.read_bytes()[:-9])
    for command in (
        ["study", *question(table)],
        ["fit", *question(table), "--save", tmp_path / "m"],
        ["predict", tmp_path, table],
    ):
        assert run(*command).exit_code == 2
    assert not (tmp_path / "m").exists()


def test_a_pipe_stays_silent_and_a_terminal_shows_a_bar(table, tmp_path):
    command = [
        str(SCRIPT),
        "study",
        *map(str, question(table)),
        "--recipes",
        "ridge",
        "--out",
        str(tmp_path / "out"),
        "--no-cache",
    ]
    piped = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert piped.stderr == ""
    json.loads(piped.stdout)
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:
            pass
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"5/5", shown)


def test_help_and_version_answer_without_the_heavy_libraries():
    code = (
        "import sys; from typer.testing import CliRunner; from taskloom.cli._app import app\n"
        "print(CliRunner().invoke(app, sys.argv[1:]).output)\n"
        "print('torch' in sys.modules, 'sklearn' in sys.modules)"
    )
    for option, expected in (("--help", "predict"), ("--version", "taskloom 0")):
        done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=True)
        assert expected in done.stdout
        assert done.stdout.strip().endswith("False False")


def test_a_wrong_table_or_model_is_refused_before_the_heavy_libraries_are_imported(table, tmp_path):
    code = (
        "import sys; from typer.testing import CliRunner; from taskloom.cli._app import app\n"
        "done = CliRunner().invoke(app, sys.argv[1:])\n"
        "print(done.exit_code, *sorted({'torch', 'sklearn', 'scipy', 'taskloom.study'} & set(sys.modules)), done.stderr)"
    )
    model = tmp_path / "model"
    assert run("fit", *question(table), "--recipe", "ridge", "--save", model).exit_code == 0
    missing = [tmp_path / "missing.csv", *question(table)[1:]]
    misspelt = [table, "--target", "progresion", "--by", "age group"]
    for arguments, message in [
        (["study", *missing], "no such file"),
        (["study", *missing, "--cluster", "auto"], "no such file"),
        (["study", *misspelt], "did you mean `progression`?"),
        (["fit", *missing, "--save", tmp_path / "m"], "no such file"),
        (["fit", *misspelt, "--save", tmp_path / "m"], "did you mean `progression`?"),
        (["relate", *missing], "no such file"),
        (["relate", *misspelt], "did you mean `progression`?"),
        (["predict", tmp_path / "nowhere", table], "no model in"),
        (["predict", model, tmp_path / "missing.csv"], "no such file"),
    ]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stdout.startswith("2 error: "), done.stdout
        assert message in done.stdout


def test_python_dash_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "taskloom", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("taskloom ")


@pytest.mark.parametrize("option", ["--seeds", "--n-jobs", "--budget"])
def test_a_number_that_is_none_is_said(option, table):
    done = run("study", *question(table), option, "abc")
    assert done.exit_code == 2
    assert "'abc' is no whole number" in done.stderr


def test_names_stay_whole_in_a_pipe(tmp_path):
    names = [f"a rather long name of hospital number {i}" for i in range(2)]
    path = tmp_path / "t.csv"
    path.write_text("x,id," + ",".join(names) + "\n" + "".join(f"{i},r,{i % 7}.5,{i % 5}.5\n" for i in range(60)))
    asked = [path, "--targets", ",".join(names), "--kind", "regression"]
    done = run("study", *asked, "--recipes", "lowrank", "--seeds", 3, "--out", tmp_path / "o")
    assert all(name in done.stdout for name in names)
    # What was done to the columns is said, and so is what to do next.
    assert "note: column id has the same value or none in every row" in done.stdout
    assert "--recipe ridge --save" in done.stdout.splitlines()[-1]
    fitted = run("fit", *asked, "--recipe", "ridge", "--save", tmp_path / "m")
    assert fitted.stdout.splitlines()[-1].endswith(f"predict {tmp_path / 'm'} {path}")
    listed = run("recipes").stdout
    assert all(recipe.summary in listed for recipe in recipe_classes().values())


@pytest.mark.parametrize(("more", "message"), [([], "finished fits are kept"), (["--no-cache"], "nothing was kept")])
def test_an_interrupted_study_says_what_is_kept(more, message, table, tmp_path):
    command = [str(SCRIPT), "study", *map(str, question(table)), "--recipes", "joint", "--seeds", "200", *more]
    command += ["--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        # The folder is made when the options are read and the work begins.
        while not (tmp_path / "out").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"stopped; {message}" in stderr
