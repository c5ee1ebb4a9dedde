"""Jobs and studies on Ray: the same optimum and the same numbers, and what happens when its actors are killed."""

import json
import logging
import os
import signal
import threading

import numpy as np
import pytest
import yaml
from engine_jobs import SITES, landmine_pairs, make_pairs, relative_gap, school_pairs, write_job
from typer.testing import CliRunner

import taskloom
from taskloom.cli._app import app
from taskloom.engines import RayOptions, ray_backend, run_job
from taskloom.tasks import OptionError, load_diabetes_tasks

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.engine

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


@pytest.mark.parametrize("data", ["synthetic", "school", "landmine"])
def test_ray_has_the_optimum_of_the_solver(data, request, tmp_path):
    if data == "synthetic":
        job = write_job(tmp_path, make_pairs(), method="smtl-fista")
    elif data == "school":
        job = write_job(tmp_path, school_pairs(request.getfixturevalue("real_data")), tol=1e-6)
    else:
        pairs = landmine_pairs(request.getfixturevalue("real_data"))
        job = write_job(tmp_path, pairs, loss="logistic", penalty={"trace": 0.01}, tol=1e-5)
    result = run_job(job, "ray", ray=HERE)
    assert (result.engine, result.status) == ("ray", "converged")
    assert relative_gap(job, result.run.W) < 1e-6
    assert (job.out / "report.html").exists()
    assert list(job.checkpoint.iterdir()) == []
    assert all(site.updates > 0 and site.bytes_in > 0 and site.state == "done" for site in result.sites.values())
    with pytest.raises(ValueError, match="Failed to look up actor"):
        actor_of(job, "coordinator")


def test_a_site_and_the_coordinator_are_killed_and_the_job_ends_at_the_optimum(tmp_path):
    # Each site has to take 400 rounds: nobody can end before those who were killed are back.
    job = write_job(tmp_path, make_pairs(), tol=0, max_rounds=400, checkpoint_every=20)
    killed, seen = [], []

    def watch(progress):
        seen.append(progress.updates)
        if not killed and progress.updates > 30:
            killed.append("site")
            ray.kill(actor_of(job, "site/south"), no_restart=False)
        elif killed == ["site"] and len(seen) > seen_at_kill(seen) + 4:
            killed.append("coordinator")
            ray.kill(actor_of(job, "coordinator"), no_restart=False)

    result = run_job(job, "ray", ray=HERE, watch=watch)
    assert killed == ["site", "coordinator"]
    assert result.status == "limit reached"
    assert all(site.updates >= 400 and site.state == "done" for site in result.sites.values())
    assert relative_gap(job, result.run.W) < 1e-6
    # The coordinator came up from its save, and not from nothing.
    assert result.run.updates > max(seen) >= 30


def seen_at_kill(seen):
    """How many looks there had been when the site was killed."""
    return next(number for number, updates in enumerate(seen) if updates > 30)


def test_a_site_that_hangs_is_reported_and_the_others_go_on(tmp_path):
    job = write_job(tmp_path, make_pairs(), tol=0, max_rounds=2000, patience=1, give_up=600)
    states, hung, updates = [], [], []

    def watch(progress):
        states.append(progress.states["west"])
        updates.append(progress.updates)
        if not hung and progress.updates > 30:
            hung.append(pid_of(job, "west"))
            os.kill(hung[0], signal.SIGSTOP)
        elif hung and states[-1] == "silent" and not woken.is_set() and updates[-1] > updates[-2]:
            woken.set()
            os.kill(hung[0], signal.SIGCONT)

    woken = threading.Event()
    result = run_job(job, "ray", ray=HERE, watch=watch)
    assert woken.is_set()
    assert all(site.state == "done" for site in result.sites.values())
    assert relative_gap(job, result.run.W) < 1e-6


def pid_of(job, site):
    """Of the process of a site's actor."""
    from ray.util.state import list_actors

    return next(each.pid for each in list_actors() if each.name == f"{job.name}/site/{site}" and each.state == "ALIVE")


def test_a_site_that_cannot_be_made_is_named_at_the_driver(tmp_path):
    job = write_job(tmp_path, make_pairs(), min_sites=3)
    (tmp_path / "south.parquet").unlink()
    result = run_job(job, "ray", ray=HERE)
    assert result.status == "too few sites"
    assert "no such file" in result.sites["south"].state
    with pytest.raises(OptionError, match="holds a run that is not over"):
        run_job(job, "ray", ray=HERE)


def test_the_command_runs_a_job_on_a_cluster_by_its_address(tmp_path):
    job = write_job(tmp_path, make_pairs())
    path = tmp_path / "job.yml"
    path.write_text(yaml.safe_dump(job.to_dict(tables=True)), encoding="utf-8")
    done = CliRunner().invoke(
        app, ["sites", "run", str(path), "--engine", "ray", "--address", "auto", "--namespace", NAMESPACE, "--json"]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["engine"], told["status"], set(told["sites"])) == ("ray", "converged", set(SITES))


def test_a_study_on_ray_has_the_same_numbers(tmp_path):
    options = taskloom.StudyOptions(cache=False)
    data = load_diabetes_tasks("age_groups")
    here = taskloom.study(data, ["ridge", "lowrank"], seeds=2, options=options)
    with ray_backend():
        there = taskloom.study(data, ["ridge", "lowrank"], seeds=2, options=options)
    for mine, theirs in zip(here.summaries, there.summaries, strict=True):
        np.testing.assert_array_equal(mine.scores, theirs.scores)
