"""Jobs in FLARE's simulator: the optimum, what goes wrong at a site, and what is refused before anything starts."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import yaml
from engine_jobs import landmine_pairs, make_pairs, write_job
from flare_federation import gap
from typer.testing import CliRunner

from taskloom.cli._app import app
from taskloom.engines import REJECT, Desk, _flare_kits, simulate, submit
from taskloom.sites import Update, decode, encode
from taskloom.tasks import OptionError

pytest.importorskip("nvflare")
pytestmark = pytest.mark.engine
takes_minutes = pytest.mark.skipif("TASKLOOM_ENGINES" not in os.environ, reason="takes minutes; run by `make test-engines`")


def write(job, path):
    path.write_text(yaml.safe_dump(job.to_dict(tables=True)), encoding="utf-8")
    return path


@takes_minutes
def test_the_simulator_finds_the_optimum_of_logistic_losses_from_the_command_line(tmp_path):
    data = Path(os.environ.get("TASKLOOM_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    pairs = landmine_pairs(data) if data.is_dir() else make_pairs(loss="logistic")
    job = write_job(tmp_path / "job", pairs, loss="logistic", penalty={"trace": 0.01})
    command = [sys.executable, "-m", "taskloom", "sites", "simulate", str(write(job, tmp_path / "job.yml"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "converged" in done.stdout
    assert all(site in done.stdout for site in job.sites)
    assert gap(job) < 1e-6
    told = json.loads((job.out / "result.json").read_text())
    assert {site["state"] for site in told["sites"].values()} == {"done"}
    assert not (job.checkpoint / "coordinator.safetensors").exists()


@takes_minutes
@pytest.mark.parametrize("method", ["smtl", "smtl-fista"])
def test_the_simulator_finds_the_optimum_by_methods_in_which_all_wait_for_all(method, tmp_path):
    job = write_job(tmp_path / "job", make_pairs(), method=method)
    result = simulate(job)
    assert (result.status, {site["state"] for site in result.values["sites"].values()}) == ("converged", {"done"})
    assert len({site["updates"] for site in result.values["sites"].values()}) == 1, "each has taken part in every round"
    assert gap(job) < 1e-6


@takes_minutes
def test_a_site_that_cannot_read_its_table_is_reported_and_the_run_that_was_saved_goes_on_when_it_can(tmp_path):
    job = write_job(tmp_path / "job", make_pairs(), min_sites=2)
    table = job.tables["south"].data
    kept = table.read_bytes()
    table.write_bytes(b"no table: 4711")
    lacking = simulate(job)
    assert lacking.status == "sites lost"
    assert lacking.values["sites"]["south"]["state"].startswith("lost: it ended with")
    assert "4711" not in json.dumps(lacking.values)
    table.write_bytes(kept)
    with pytest.raises(OptionError, match="holds a run that is not over"):
        simulate(job)
    again = simulate(job, resume=True)
    assert again.converged
    assert gap(job) < 1e-6


@takes_minutes
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_simulation_that_is_interrupted_leaves_nothing_but_its_checkpoint(how, code, tmp_path):
    job = write_job(tmp_path / "job", make_pairs(), tol=0, max_updates=10**8, checkpoint_every=10)
    command = [sys.executable, "-m", "taskloom", "sites", "simulate", str(write(job, tmp_path / "job.yml"))]
    # A short path: the simulator keeps sockets in it.
    with tempfile.TemporaryDirectory() as temporary:
        environment = os.environ | {"TMPDIR": temporary}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
            while not (job.checkpoint / "coordinator.safetensors").exists():
                assert process.poll() is None
                time.sleep(0.1)
            started = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(how)
            told = process.communicate(timeout=60)[1]
        assert list(Path(temporary).iterdir()) == []
    assert process.returncode == code
    assert how == signal.SIGTERM or f"sites simulate {tmp_path / 'job.yml'} --resume" in told
    assert len(started) >= 2
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in started)


def test_a_site_speaks_for_itself_alone_and_what_cannot_be_is_refused_with_its_name_in_the_log(tmp_path, caplog):
    from nvflare.collab.api.context import set_call_context

    from taskloom.engines._flare_server import FlareCoordinator

    job = write_job(tmp_path, make_pairs())
    coordinator = FlareCoordinator("")
    coordinator._desk = Desk(job)
    set_call_context(SimpleNamespace(caller="north"))
    try:
        assert coordinator.ask(encode(Update("south", 0))).startswith(REJECT)
        assert coordinator.ask(b"anything").startswith(REJECT)
        joined = decode(coordinator.ask(encode(Update("north", 0, curvature=np.ones(2)))))
        columns = np.zeros((job.n_features, 2))
        for number, (strange, said) in enumerate(
            ((columns[:3], "has shape"), (columns * np.nan, "not finite"), (columns + 1e20, "have the norm")), start=1
        ):
            update = Update("north", number, joined.epoch, columns=strange, version=joined.version)
            assert said in decode(coordinator.ask(encode(update))).refusal
            assert any("site north" in line and said in line for line in caplog.messages)
    finally:
        set_call_context(None)
    assert any("site north: it came in the name of 'south'" in line for line in caplog.messages)


def test_names_that_flare_cannot_have_are_refused(tmp_path):
    job = write_job(tmp_path, make_pairs())
    with pytest.raises(OptionError, match="`name`='a job'"):
        simulate(dataclasses.replace(job, name="a job"))
    evil, table = "../../out of here/evil", job.tables["north"]
    named = dataclasses.replace(job, sites={evil: job.sites["north"]}, tables={evil: table})
    with pytest.raises(OptionError, match="or the name of a site: FLARE does not take it"):
        simulate(named)
    assert not job.out.exists()


def test_what_participants_are_told_of_a_job_names_no_folder(tmp_path):
    from taskloom.engines._flare_session import export_job

    job = write_job(tmp_path / "here", make_pairs())
    folder = export_job(job, tmp_path / "exported", "new")
    told = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file())
    assert "task 0" in told
    assert str(tmp_path) not in told


@pytest.mark.parametrize("name", ["..", "a/b"])
def test_a_job_whose_name_is_no_folder_is_refused_by_the_coordinator(name):
    from taskloom.engines._flare_server import FlareCoordinator

    job = {"name": name, "sites": {"north": ["a"]}, "features": ["x"], "penalty": {"trace": 0.1}}
    with pytest.raises(OptionError, match="it becomes a folder at the coordinator"):
        FlareCoordinator(json.dumps(job))._read_job()
    with pytest.raises(TypeError, match="is_local"):
        FlareCoordinator(json.dumps(job), is_local=True)


def test_every_site_needs_a_table_here(tmp_path):
    job = write_job(tmp_path, make_pairs())
    with pytest.raises(OptionError, match=r"`sites\.west\.data` is missing"):
        simulate(dataclasses.replace(job, tables={name: job.tables[name] for name in ("north", "south")}))
    with pytest.raises(OptionError, match="holds no run to go on with"):
        simulate(job, resume=True)


def test_without_flare_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(_flare_kits, "find_spec", lambda name: None)
    job = write_job(tmp_path, make_pairs())
    for attempt in (lambda: simulate(job), lambda: submit(job, tmp_path), lambda: _flare_kits.provision("a.yml", tmp_path)):
        with pytest.raises(OptionError, match=r"pip install 'taskloom\[flare\]'"):
            attempt()


def test_bad_input_ends_a_command_with_a_sentence_and_code_2(tmp_path):
    job = str(write(write_job(tmp_path / "job", make_pairs()), tmp_path / "job.yml"))
    runner = CliRunner()
    for arguments, said in (
        (["provision", str(tmp_path / "none.yml"), "--out", str(tmp_path)], "no such file"),
        (["submit", job, "--kit", str(tmp_path)], "no administrator's start-up kit"),
        (["submit", job, "--kit", str(tmp_path), "--wait", "-1"], "`wait`=-1.0"),
        (["simulate", job, "--resume"], "holds no run to go on with"),
    ):
        done = runner.invoke(app, ["sites", *arguments])
        assert done.exit_code == 2
        assert said in done.stderr
