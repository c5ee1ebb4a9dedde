"""`run_job` on this machine, what it leaves behind, and `taskloom sites run` and `resume`."""

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
import yaml
from engine_jobs import (
    SITES,
    assert_interrupt_is_resumed,
    landmine_pairs,
    make_pairs,
    relative_gap,
    saved_updates,
    school_pairs,
    write_job,
)
from typer.testing import CliRunner

import taskloom
from taskloom.cli._app import app
from taskloom.engines import Desk, RayOptions, make_job_site, read_job, run_job
from taskloom.sites import encode
from taskloom.tasks import DataError, OptionError, OutputError, UnknownNameError

HERE = ("threads", "processes")


def write_file(job, folder, name="job", **changes):
    """The job as a file."""
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(job.to_dict(tables=True) | changes), encoding="utf-8")
    return path


def command(*arguments):
    return CliRunner().invoke(app, ["sites", *map(str, arguments)])


@pytest.mark.parametrize(("engine", "loss"), [("threads", "squared"), ("threads", "logistic"), ("processes", "squared")])
def test_every_engine_has_the_optimum_of_the_solver(engine, loss, tmp_path):
    job = write_job(tmp_path, make_pairs(loss=loss), loss=loss)
    result = run_job(job, engine)
    assert (result.engine, result.status) == (engine, "converged")
    assert relative_gap(job, result.run.W) < 1e-6
    assert all(site.state == "done" and site.updates > 0 and site.bytes_in > 0 for site in result.sites.values())


@pytest.mark.parametrize("engine", HERE)
def test_school_over_three_sites(engine, real_data, tmp_path):
    job = write_job(tmp_path, school_pairs(real_data), tol=1e-6)
    result = run_job(job, engine)
    assert result.converged
    assert relative_gap(job, result.run.W) < 1e-6


@pytest.mark.parametrize("engine", HERE)
def test_landmine_over_three_sites(engine, real_data, tmp_path):
    job = write_job(tmp_path, landmine_pairs(real_data), loss="logistic", penalty={"trace": 0.01}, tol=1e-5)
    result = run_job(job, engine)
    assert result.converged
    assert relative_gap(job, result.run.W) < 1e-6


def test_the_model_predicts_a_table_as_any_saved_model_does(tmp_path):
    features = [{"name": "x0", "center": 0.3, "scale": 2.0}, *(f"x{j}" for j in range(1, 5))]
    job = write_job(tmp_path, make_pairs(), features=features)
    result = run_job(job)
    table = pl.read_parquet(tmp_path / "south.parquet")
    model = taskloom.load_model(job.out / "model")
    told = model.predict(table)
    for task in job.sites["south"]:
        X = table.filter(pl.col("of") == task).drop("y", "of").to_numpy()
        mine = result.predict(X, task)
        theirs = [value for value, of in zip(told["prediction"], told["of"], strict=True) if of == task]
        np.testing.assert_allclose(mine, theirs)
        shifted = X.copy()
        shifted[:, 0] = (shifted[:, 0] - 0.3) / 2
        np.testing.assert_allclose(mine, result.run.predict(shifted, task))
    with pytest.raises(UnknownNameError, match="no task named `task 9`"):
        result.predict(X, "task 9")
    with pytest.raises(DataError, match="has 2 features; the model has 5"):
        result.predict(X[:, :2], 0)


def test_a_classifier_predicts_the_labels_of_its_tables(tmp_path):
    pairs = [(X, np.where(y > 0, "ill", "well")) for X, y in make_pairs(loss="logistic")]
    job = write_job(tmp_path, pairs, loss="logistic", classes=["well", "ill"])
    result = run_job(job)
    table = pl.read_parquet(tmp_path / "west.parquet")
    told = taskloom.load_model(job.out / "model").predict(table)
    of = np.array(told["of"])
    for task in job.sites["west"]:
        X = table.filter(pl.col("of") == task).drop("y", "of").to_numpy()
        scores = result.predict(X, task)
        assert (np.where(scores > 0, "ill", "well") == np.array(told["prediction"])[of == task]).all()
        np.testing.assert_allclose(np.array(told["p(ill)"])[of == task], 1 / (1 + np.exp(-scores)))


def test_the_files_say_what_came_of_every_site(tmp_path):
    job = write_job(tmp_path, make_pairs())
    result = run_job(job)
    told = json.loads((job.out / "result.json").read_text(encoding="utf-8"))
    assert told == result.to_json()
    assert (told["status"], told["engine"], told["modelled"]) == ("converged", "threads", job.tasks)
    assert set(told["sites"]) == set(SITES)
    assert told["sites"]["west"]["updates"] == result.sites["west"].updates
    html = (job.out / "report.html").read_text(encoding="utf-8")
    assert "residual, relative to the norm of V" in html
    for site in SITES:
        assert f"{site}: {result.sites[site].updates} updates, {result.sites[site].bytes_in:,} bytes in" in html


def test_a_run_that_stopped_is_resumed_and_never_lost_by_accident(tmp_path):
    job = write_job(tmp_path, make_pairs(), max_updates=20)
    with pytest.raises(OptionError, match="holds no run to go on with"):
        run_job(job, resume=True)
    first = run_job(job)
    assert (first.status, first.converged) == ("limit reached", False)
    with pytest.raises(OptionError, match="holds a run that is not over"):
        run_job(job)
    further = write_job(tmp_path, make_pairs())
    second = run_job(further, "processes", resume=True)
    assert second.converged
    assert second.run.updates > 20
    assert second.sites["north"].bytes_in > first.sites["north"].bytes_in
    assert relative_gap(job, second.run.W) < 1e-6
    assert list(job.checkpoint.iterdir()) == []
    assert run_job(further).converged


def test_a_checkpoint_of_another_job_is_refused(tmp_path):
    run_job(write_job(tmp_path, make_pairs(), max_updates=20))
    with pytest.raises(DataError, match="was saved with penalty"):
        run_job(write_job(tmp_path, make_pairs(), penalty={"trace": 0.2}), resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": ["x1", "x0", "x2", "x3", "x4"]}, r"was saved with features \[\['x0'.*this run has \[\['x1'"),
        ({"features": [{"name": "x0", "scale": 2.0}, "x1", "x2", "x3", "x4"]}, r"this run has \[\['x0', 0.0, 2.0\]"),
        ({"loss": "huber"}, "was saved with loss squared, this run has huber"),
        ({"scale": "sum"}, "was saved with scale mean, this run has sum"),
        ({"fit_intercept": False}, "was saved with fit_intercept True, this run has False"),
    ],
)
def test_a_checkpoint_of_another_problem_is_refused(change, message, tmp_path):
    pairs = make_pairs()
    Desk(write_job(tmp_path, pairs)).collect("here")
    with pytest.raises(DataError, match=message):
        run_job(write_job(tmp_path, pairs, **change), resume=True)


def test_a_checkpoint_of_other_classes_is_refused(tmp_path):
    pairs = make_pairs(loss="logistic")
    Desk(write_job(tmp_path, pairs, loss="logistic")).collect("here")
    with pytest.raises(DataError, match=r"was saved with classes \[0, 1\], this run has \[1, 0\]"):
        run_job(write_job(tmp_path, pairs, loss="logistic", classes=[1, 0]), resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_job_that_is_being_carried_out_is_neither_begun_nor_resumed_by_another(resume, tmp_path):
    job = write_job(tmp_path, make_pairs())
    desk = Desk(job)
    if resume:
        desk.ask(encode(make_job_site(job.tables["north"], job).join()))
    with pytest.raises(OptionError, match="its run is being carried out; wait for its end"):
        run_job(job, resume=resume)
    desk.close()
    assert run_job(job, resume=resume).converged


def test_a_run_that_cannot_be_saved_any_more_ends_with_its_model(tmp_path):
    job = write_job(tmp_path, make_pairs(), tol=0, checkpoint_every=20, checkpoint=str(tmp_path / "saved"))

    def watch(progress):
        if progress.updates and job.checkpoint.is_dir():
            shutil.rmtree(job.checkpoint)
            job.checkpoint.write_text("no folder", encoding="utf-8")

    result = run_job(job, watch=watch)
    assert (result.status, result.modelled) == ("failed", job.tasks)
    assert "it cannot be saved any more" in result.message
    assert (job.out / "model" / "model.json").exists()


def test_a_result_without_a_model_does_not_keep_that_of_an_earlier_run(tmp_path):
    job = write_job(tmp_path, make_pairs())
    assert (run_job(job).save() / "model" / "model.json").exists()
    for site in SITES:
        (tmp_path / f"{site}.parquet").unlink()
    result = run_job(job)
    assert result.modelled == []
    assert not (job.out / "model").exists()


@pytest.mark.parametrize(("own", "common", "expected"), [("of", None, "of"), (None, "of", "of"), ("of", "x0", "of")])
def test_the_model_knows_the_column_of_tasks_that_all_tables_agree_on(own, common, expected, tmp_path):
    job = write_job(tmp_path, make_pairs(), features=["x1", "x2"])
    tables = {name: dataclasses.replace(each, by=own) for name, each in job.tables.items()}
    job = dataclasses.replace(job, by=common, tables=tables)
    run_job(job)
    assert taskloom.load_model(job.out / "model").by == expected


def test_a_site_that_cannot_be_made_is_named_and_the_others_go_on(tmp_path, caplog):
    job = write_job(tmp_path, make_pairs())
    (tmp_path / "west.parquet").unlink()
    result = run_job(job)
    assert result.status == "sites lost"
    assert "no such file" in result.sites["west"].state
    assert "site west is lost" in caplog.text
    assert result.modelled == job.tasks[:4]
    model = taskloom.load_model(job.out / "model")
    assert [task.name for task in model.tasks] == job.tasks[:4]


def test_a_job_without_any_site_that_works_fails(tmp_path):
    job = write_job(tmp_path, make_pairs())
    for site in SITES:
        (tmp_path / f"{site}.parquet").write_text("x0;y", encoding="utf-8")
    result = run_job(job)
    assert (result.status, result.modelled) == ("too few sites", [])


def test_bad_requests_end_before_anything_starts(tmp_path):
    job = write_job(tmp_path, make_pairs())
    with pytest.raises(UnknownNameError, match="no engine named `treads`; did you mean `threads`"):
        run_job(job, "treads")
    with pytest.raises(OptionError, match=r"`sites\.north` names no table"):
        run_job(read_job(job.to_dict()))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot be written"):
        run_job(read_job(job.to_dict(tables=True) | {"out": str(tmp_path / "file" / "out")}))
    assert not job.out.exists()


def test_ray_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    job = write_job(tmp_path, make_pairs())
    with pytest.raises(OptionError, match=r"engine `ray` needs Ray; install taskloom\[ray\]"):
        run_job(job, "ray", ray=RayOptions())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "nobody listens there"),
        ("ray://127.0.0.1:1", "nobody listens there"),
        ("127.0.0.1:99999", "nobody listens there"),
        ("loca", "is no address of a Ray; give `local`, `auto`"),
        ("head:", "is no address of a Ray"),
    ],
)
def test_an_address_where_no_ray_is_is_refused_at_once(address, message, tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(OptionError, match=f"`address`='{address}'.*{message}"):
        run_job(write_job(tmp_path, make_pairs()), "ray", ray=RayOptions(address))


def test_the_command_runs_a_job_file(tmp_path):
    path = write_file(write_job(tmp_path, make_pairs()), tmp_path)
    done = command("run", path, "--engine", "threads", "--out", tmp_path / "elsewhere")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "converged: the residual is" in done.stdout
    assert all(site in done.stdout for site in SITES)
    assert sorted(each.name for each in (tmp_path / "elsewhere").iterdir()) == ["model", "report.html", "result.json"]
    told = json.loads(command("run", path, "--json").stdout)
    assert (told["status"], told["out"]) == ("converged", str(tmp_path / "job-result"))


def test_the_command_ends_with_one_sentence_and_a_code(tmp_path):
    job = write_job(tmp_path, make_pairs())
    for arguments, message in (
        (["run", tmp_path / "none.yml"], "no such file"),
        (["run", write_file(job, tmp_path, "other", methd="amtl")], "did you mean `method`"),
        (["run", write_file(job, tmp_path), "--engine", "rey"], "did you mean `ray`"),
        (["run", write_file(job, tmp_path), "--address", "auto"], "give `--engine ray`"),
        (["resume", write_file(job, tmp_path)], "holds no run to go on with"),
    ):
        done = command(*arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    (tmp_path / "west.parquet").unlink()
    done = command("run", write_file(job, tmp_path, min_sites=3))
    assert done.exit_code == 1
    assert "too few sites: 2 of 3 sites are left, need 3" in done.stdout.replace("\n", " ")


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_coordinator_that_is_killed_is_resumed_from_its_checkpoint(how, code, tmp_path):
    job = write_job(tmp_path, make_pairs(), tol=0, checkpoint_every=10)
    path, elsewhere = write_file(job, tmp_path, "a job"), str(tmp_path / "else where")
    start = [sys.executable, "-m", "taskloom", "sites", "run", str(path), "--out", elsewhere]
    with subprocess.Popen(start, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True) as process:
        while saved_updates(job) < 50:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(how)
        told = process.communicate()[1]
        assert process.returncode == code
    again = shlex.join(["sites", "resume", str(path), "--out", elsewhere])
    assert how == signal.SIGKILL or f"stopped; go on with `taskloom {again}`" in told
    saved = saved_updates(job)
    done = command("resume", write_file(job, tmp_path, tol=1e-9), "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["converged"]
    assert told["updates"] > saved >= 50
    model = taskloom.load_model(job.out / "model")
    W = model.predictor.state()[0]["coefficients"]
    assert relative_gap(job, W) < 1e-6


def test_an_interrupt_ends_the_processes_of_all_sites_and_says_how_to_go_on(tmp_path):
    assert_interrupt_is_resumed(tmp_path, "processes")
