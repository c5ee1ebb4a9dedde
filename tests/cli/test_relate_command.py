"""`taskloom relate`: what a user sees of it."""

import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from taskloom.cli._app import app
from taskloom.relate import Affinity, Groups
from taskloom.study import demo_data, save_csv

SERUM = "s1,s2,s3,s4,s5,s6,progression"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return save_csv(demo_data(), tmp_path_factory.mktemp("table") / "my diabetes.csv")


def run(*arguments):
    return CliRunner().invoke(app, ["relate", *map(str, arguments)])


def shared(table):
    return [table, "--targets", SERUM, "--drop", "age group"]


def test_shared_rows_print_groups_doubts_and_the_next_step_and_write_the_files(table, tmp_path):
    out = tmp_path / "new" / "out"
    done = run(*shared(table), "--repeats", 2, "--out", out)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    for part in (
        "7 regression tasks, shared rows, 442 rows x 4 columns",
        "Groups by samplewise_cosine",
        "Groups by the correlation of labels alone",
        "samplewise_cosine measured with 2 seeds agrees with itself to a correlation of",
        "Two halves of what samplewise_cosine looked at agree",
        "took 2 trainings",
        "only training tells",
        str(out / "relate.html"),
    ):
        assert part in done.stdout
    assert sorted(path.name for path in out.iterdir()) == ["affinity.safetensors", "groups.json", "relate.html"]
    command = shlex.split(done.stdout.splitlines()[-1])
    assert command[:4] == ["taskloom", "study", str(table), "--targets"]
    assert command[command.index("--recipes") + 1] == "grouped,joint"
    assert command[command.index("--drop") + 1] == "age group"


def test_own_rows_need_no_other_option(table, tmp_path):
    done = run(table, "--target", "progression", "--by", "age group", "--repeats", 1, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "6 regression tasks, own rows" in done.stdout
    assert "19 to 34" in done.stdout
    assert "correlation of ridge predictions" in done.stdout


def test_tasks_that_are_all_alike_are_said_to_have_no_groups(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    columns = [x, *(x + 0.1 * rng.normal(size=300) for _ in range(6))]
    path = tmp_path / "t.csv"
    np.savetxt(path, np.stack(columns, axis=1), delimiter=",", header="x,a,b,c,d,e,f", comments="")
    asked = [path, "--targets", "a,b,c,d,e,f", "--measure", "labels", "--out", tmp_path / "out"]
    done = run(*asked)
    assert done.exit_code == 0, done.output
    assert re.search(r"labels of the pairs goes from 0\.9\d+ to 0\.99\d*: no groups stand out\.", done.stdout)
    assert "next, whether one net of all tasks beats each task alone:" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("--recipes joint --seeds 10")
    assert "these groups do not stand out" in run(*asked, "--groups", 2).stdout


def test_the_same_as_json_for_machines(table, tmp_path):
    arguments = [*shared(table), "--measure", "labels", "--method", "select", "--groups", 3, "--out", tmp_path, "--json"]
    done = run(*arguments)
    told = json.loads(done.stdout)
    assert told["groups"]["sets"][:2] == [["s1", "s2"], ["s3", "s4"]]
    assert any(len(names) > 3 for names in told["groups"]["sets"])
    assert told["measure"]["values"] == Affinity.load(tmp_path / "affinity.safetensors").values.tolist()
    assert Groups.load(tmp_path / "groups.json").to_dict()["sets"] == told["groups"]["sets"]
    assert told["group_agreement"] == 1
    apart = json.loads(run(*arguments, "--no-overlap").stdout)["groups"]
    assert sorted(name for names in apart["sets"] for name in names) == sorted(SERUM.split(","))


def test_the_seed_decides_everything_that_is_random(table, tmp_path):
    def values(seed):
        arguments = ["--measure", "samplewise", "--repeats", 1, "--seed", seed, "--out", tmp_path, "--json"]
        return json.loads(run(*shared(table), *arguments).stdout)["measure"]["values"]

    assert values(0) == values(0) != values(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", "s1,s2", "--measure", "sampelwise_cosine"], "no measure named `sampelwise_cosine`; did you mean"),
        (["--targets", "s1,s2", "--method", "spectrl"], "did you mean `spectral`"),
        (["--targets", "s1,s2", "--groups", "3"], "`n_groups`=3 for 2 tasks: give at most 2"),
        (["--targets", "s1,s2", "--groups", "0"], "`n_groups`=0"),
        (["--targets", "s1,s2", "--repeats", "0"], "`repeats`=0"),
        (["--targets", "s1,s2", "--seed", "-1"], "`seed`=-1"),
        (["--targets", "s1"], "takes two or more"),
        (["--targets", "s1,s7"], "no column named `s7`"),
        (["--target", "progression"], "`target` comes with `by`"),
        (["--targets", " , "], "`--targets` is empty"),
        (["--targets", "s1,s2", "--measure", "divergence"], "these share theirs"),
        (["--target", "progression", "--by", "age group", "--measure", "datamap"], "take `divergence`"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_exit_2(arguments, message, table, tmp_path):
    out = tmp_path / "out"
    done = run(table, *arguments, "--out", out)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not out.exists()


def test_a_place_that_cannot_be_written_stops_before_any_work(table, tmp_path):
    (tmp_path / "file").write_text("")
    done = run(*shared(table), "--out", tmp_path / "file" / "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "cannot be written" in done.stderr


def test_brackets_in_names_are_shown_as_they_are(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("[/b] A,[bold]B,x\n" + "\n".join(f"{i % 7},{i % 5 + i / 9},{i}" for i in range(60)) + "\n")
    done = run(path, "--targets", "[/b] A,[bold]B", "--kind", "regression", "--measure", "labels", "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    assert "[/b] A, [bold]B" in done.stdout


def test_help_answers_without_the_heavy_libraries():
    code = (
        "import sys; from typer.testing import CliRunner; from taskloom.cli._app import app\n"
        "print(CliRunner().invoke(app, ['relate', '--help']).output)\n"
        "print('numpy' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--measure" in done.stdout
    assert done.stdout.strip().endswith("False False")
