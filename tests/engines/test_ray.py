"""Jobs and studies on Ray: the same optimum and the same numbers, and what happens when its actors are killed."""

import json
import logging
import os

import numpy as np
import psutil
import pytest
import yaml
from engine_jobs import SITES, assert_interrupt_is_resumed, landmine_pairs, make_pairs, relative_gap, school_pairs, write_job
from typer.testing import CliRunner

import taskloom
from taskloom.cli._app import app
from taskloom.engines import RayOptions, ray_backend, run_job
from taskloom.tasks import OptionError, load_diabetes_tasks

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.engine
takes_long = pytest.mark.skipif("TASKLOOM_ENGINES" not in os.environ, reason="takes long; run by `make test-engines`")

NAMESPACE = "tests"
HERE = RayOptions(namespace=NAMESPACE)


@pytest.fixture(scope="module", autouse=True)
def _cluster():
    """A small Ray with a machine for each of two sites, as far as it knows."""
    ray.init(
        "local",
        num_cpus=2,
        resources={"site:north": 1, "site:west": 1},
        object_store_memory=100_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        namespace=NAMESPACE,
    )
    yield
    ray.shutdown()


def actor_of(job, name):
    return ray.get_actor(f"{job.name}/{name}", namespace=NAMESPACE)


@takes_long
@pytest.mark.parametrize("data", ["school", "landmine"])
def test_ray_has_the_optimum_of_the_solver(data, real_data, tmp_path):
    if data == "school":
        job = write_job(tmp_path, school_pairs(real_data), tol=1e-6)
    else:
        job = write_job(tmp_path, landmine_pairs(real_data), loss="logistic", penalty={"trace": 0.01}, tol=1e-5)
    result = run_job(job, "ray", ray=HERE)
    assert (result.engine, result.status) == ("ray", "converged")
    assert relative_gap(job, result.run.W) < 1e-6
    assert (job.out / "report.html").exists()
    assert list(job.checkpoint.iterdir()) == []
    assert all(site.updates > 0 and site.bytes_in > 0 and site.state == "done" for site in result.sites.values())
    with pytest.raises(ValueError, match="Failed to look up actor"):
        actor_of(job, "coordinator")


@takes_long
@pytest.mark.parametrize("method", ["smtl", "smtl-fista"])
def test_the_command_runs_a_job_in_which_all_wait_for_all_on_a_cluster_by_its_address(method, tmp_path):
    job = write_job(tmp_path, make_pairs(), method=method)
    path = tmp_path / "job.yml"
    path.write_text(yaml.safe_dump(job.to_dict(tables=True)), encoding="utf-8")
    options = ["--engine", "ray", "--address", "auto", "--namespace", NAMESPACE, "--json"]
    done = CliRunner().invoke(app, ["sites", "run", str(path), *options])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["engine"], told["status"], set(told["sites"])) == ("ray", "converged", set(SITES))
    W = taskloom.load_model(tmp_path / "job-result" / "model").predictor.state()[0]["coefficients"]
    assert relative_gap(job, W) < 1e-6


def test_a_site_and_the_coordinator_are_killed_and_the_job_ends_at_the_optimum(tmp_path):
    # Each site has to take more rounds than it can before both are killed: none can end before they are back.
    job = write_job(tmp_path, make_pairs(), tol=0, max_rounds=1000, checkpoint_every=20)
    seen, killed = [], {}

    def watch(progress):
        seen.append(progress.updates)
        if not killed and progress.updates > 30:
            killed["site"] = len(seen)
            ray.kill(actor_of(job, "site/south"), no_restart=False)
        elif len(killed) == 1:
            killed["coordinator"] = len(seen)
            ray.kill(actor_of(job, "coordinator"), no_restart=False)

    result = run_job(job, "ray", ray=HERE, watch=watch)
    assert set(killed) == {"site", "coordinator"}
    # The coordinator came up from its save, and not from nothing.
    before, after = seen[killed["coordinator"] - 1], seen[killed["coordinator"] :]
    assert min(after) > before - 40 > 0
    assert result.status == "limit reached"
    assert all(site.updates >= 1000 and site.state == "done" for site in result.sites.values())
    assert relative_gap(job, result.run.W) < 1e-6


@takes_long
def test_a_coordinator_that_is_killed_after_the_last_goodbye_hears_the_sites_again_and_converges(tmp_path):
    job, killed = write_job(tmp_path, make_pairs()), []

    def watch(progress):
        if not killed and set(progress.states.values()) == {"done"}:
            killed.append(progress.updates)
            ray.kill(actor_of(job, "coordinator"), no_restart=False)

    result = run_job(job, "ray", ray=HERE, watch=watch)
    assert killed
    assert (result.status, result.modelled) == ("converged", job.tasks)
    assert result.run.updates > killed[0]
    assert relative_gap(job, result.run.W) < 1e-6
    assert list(job.checkpoint.iterdir()) == []


@takes_long
def test_an_interrupt_ends_all_that_ray_has_started_and_says_how_to_go_on(tmp_path):
    assert_interrupt_is_resumed(tmp_path, "ray")


@takes_long
def test_a_site_that_hangs_is_reported_and_the_others_go_on(tmp_path):
    job = write_job(tmp_path, make_pairs(), tol=0, max_rounds=2000, patience=1, give_up=600)
    updates, hung, silent = [], [], []

    def watch(progress):
        updates.append(progress.updates)
        if not hung and "not yet there" not in progress.states.values():
            hung.extend(each for each in psutil.Process().children(recursive=True) if each.name().startswith("ray::RaySite"))
            hung[0].suspend()
        elif hung and not silent and updates[-1] > updates[-2]:
            silent.extend(site for site, state in progress.states.items() if state == "silent")
            if silent:
                hung[0].resume()

    result = run_job(job, "ray", ray=HERE, watch=watch)
    assert len(silent) == 1
    assert all(site.state == "done" for site in result.sites.values())
    assert relative_gap(job, result.run.W) < 1e-6


@takes_long
def test_a_site_that_cannot_be_made_is_named_at_the_driver(tmp_path):
    job = write_job(tmp_path, make_pairs(), min_sites=3)
    (tmp_path / "south.parquet").unlink()
    result = run_job(job, "ray", ray=HERE)
    assert result.status == "too few sites"
    assert "no such file" in result.sites["south"].state
    with pytest.raises(OptionError, match="holds a run that is not over"):
        run_job(job, "ray", ray=HERE)


def test_a_job_of_a_name_that_is_running_is_refused(tmp_path):
    class Nothing:
        pass

    job = write_job(tmp_path, make_pairs())
    taken = ray.remote(Nothing).options(name=f"{job.name}/coordinator", namespace=NAMESPACE, num_cpus=0).remote()
    ray.get(taken.__ray_ready__.remote())
    try:
        with pytest.raises(OptionError, match="`name`='job': a job of that name is running on this cluster"):
            run_job(job, "ray", ray=HERE)
    finally:
        ray.kill(taken)
    assert not (tmp_path / "job-result").exists()


@takes_long
def test_a_study_on_ray_has_the_same_numbers(tmp_path):
    options = taskloom.StudyOptions(cache=False)
    data = load_diabetes_tasks("age_groups")
    here = taskloom.study(data, ["ridge", "lowrank"], seeds=2, options=options)
    with ray_backend():
        there = taskloom.study(data, ["ridge", "lowrank"], seeds=2, options=options)
    mine, theirs = ({(unit.recipe, unit.seed): unit.scores for unit in study.units} for study in (here, there))
    assert mine.keys() == theirs.keys()
    for key, scores in mine.items():
        np.testing.assert_array_equal(scores, theirs[key])
