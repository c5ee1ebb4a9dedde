"""`taskloom sites`: what a user sees of it on a terminal, in a pipe, and when it is stopped."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from taskloom.cli._app import app
from taskloom.cli._jobs import tell_stopped

COMMAND = [sys.executable, "-m", "taskloom", "sites", "demo"]


def run(*arguments):
    return CliRunner().invoke(app, ["sites", "demo", *map(str, arguments)])


def test_the_demonstration_prints_a_table_and_writes_the_report(tmp_path):
    out = tmp_path / "new" / "report.html"
    done = run("--transport", "simulated", "--sites", 4, "--straggler", 3, "--out", out)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert "4 synthetic related tasks, one a site (seed 0), on a virtual clock" in done.stdout
    assert "site 4 is 3 times slower" in done.stdout
    assert "To a relative gap of 1e-06: local-prox" in done.stdout
    assert str(out) in done.stdout.replace("\n", "")
    html = out.read_text(encoding="utf-8")
    assert "site 4 is 3 times slower" in html
    assert [each.name for each in out.parent.iterdir()] == ["report.html"]


def test_the_same_as_json_for_machines(tmp_path):
    arguments = ["--transport", "simulated", "--sites", 2, "--method", "smtl,amtl", "--seconds", 0.1, "--json"]
    done = run(*arguments, "--out", tmp_path / "report.html")
    told = json.loads(done.stdout)
    assert told["options"]["sites"] == 2
    assert [each["name"] for each in told["runs"]] == ["smtl", "amtl"]
    assert all(each["slowest"] <= each["fastest"] for each in told["runs"])
    again = json.loads(run(*arguments, "--out", tmp_path / "other.html").stdout)
    assert again == told
    assert json.loads(run(*arguments, "--seed", 1, "--out", tmp_path / "other.html").stdout)["runs"] != told["runs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sites", 1], "`sites`=1: need 2 to 500"),
        (["--straggler", 0], "`straggler`=0.0: need a factor of 1 or more"),
        (["--method", "local-prx"], "did you mean `local-prox`"),
        (["--method", ""], "name at least one method"),
        (["--transport", "threds"], "did you mean `threads`"),
        (["--seconds", -1], "`seconds`=-1.0: need a positive number"),
        (["--delay", 0], "`delay`=0.0: need a positive number"),
        (["--seed", -2], "`seed`=-2"),
    ],
)
def test_bad_options_end_with_one_sentence_and_exit_2(arguments, message, tmp_path):
    done = run(*arguments, "--out", tmp_path / "new" / "report.html")
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_stops_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    for out, message in ((tmp_path / "file" / "report.html", "cannot be written"), (tmp_path, "is a folder")):
        done = run("--out", out)
        assert (done.exit_code, done.stdout) == (2, "")
        assert message in done.stderr


def test_a_terminal_shows_the_sites_while_they_learn(tmp_path):
    command = [*COMMAND, "--sites", "3", "--seconds", "0.2", "--out", str(tmp_path / "report.html")]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env=os.environ | {"TERM": "xterm"}) as process:
        os.close(theirs)
        shown = _read(ours)
    os.close(ours)
    assert process.returncode == 0
    assert all(part in shown for part in (b"local-prox", b"smtl-fista", b"staleness", b"last seen", b"site 3"))


def test_control_c_ends_it_at_once_and_leaves_no_report(tmp_path):
    out = tmp_path / "new" / "report.html"
    command = [*COMMAND, "--method", "smtl", "--seconds", "100", "--straggler", "50", "--out", str(out)]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env=os.environ | {"TERM": "xterm"}) as process:
        os.close(theirs)
        shown = b""
        while b"site 8" not in shown:
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        shown += _read(ours)
        process.wait(timeout=20)
    os.close(ours)
    assert time.monotonic() - began < 20
    assert process.returncode == 130
    assert b"Traceback" not in shown
    assert b"stopped; no report was written" in shown
    # The cursor is there again, and nothing else is.
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("chosen", "is_saved", "message"),
    [
        ({}, False, "stopped; nothing was saved"),
        ({"--engine": "threads", "--address": None}, True, "stopped; go on with `taskloom sites resume 'a job.yml'`"),
        (
            {"--engine": "ray", "--address": "head:6379", "--namespace": "taskloom", "--out": Path("else where")},
            True,
            "taskloom sites resume 'a job.yml' --engine ray --address head:6379 --out 'else where'`",
        ),
    ],
)
def test_who_stops_a_job_is_told_the_whole_command_that_goes_on(chosen, is_saved, message, capsys):
    with pytest.raises(typer.Exit) as ended:
        tell_stopped(["resume", "a job.yml"], chosen, is_saved=is_saved)
    assert ended.value.exit_code == 130
    assert message in capsys.readouterr().err


def test_help_answers_without_the_heavy_libraries():
    code = (
        "import sys; from typer.testing import CliRunner; from taskloom.cli._app import app\n"
        "print(CliRunner().invoke(app, ['sites', *sys.argv[1:]]).output)\n"
        "print('numpy' in sys.modules, 'sklearn' in sys.modules)"
    )
    for arguments, expected in (([], "demo"), (["demo", "--help"], "--straggler")):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert expected in done.stdout
        assert done.stdout.strip().endswith("False False")


def _read(terminal):
    """All that comes until the other end is closed."""
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:
        pass
    return shown
