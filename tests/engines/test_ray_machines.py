"""A job on Ray over several machines, each with a network, processes and files of its own: where sites run, what is lost."""

import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from engine_jobs import SITES, make_pairs, relative_gap, write_job
from ray_machines import OWN, PORT, Machines, why_no_machines
from safetensors import safe_open

import taskloom

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif("TASKLOOM_ENGINES" not in os.environ, reason="takes minutes; run by `make test-engines`"),
]

# The machine of whoever starts a job, with Ray's head; it has a site of its own as well.
HEAD = "west"
# One without Ray's processes, and the port at which the head serves such.
OUTSIDE, CLIENT_PORT = "office", 10001


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """One for each site, with Ray on it, and one outside of the cluster."""
    reason = why_no_machines()
    if reason:
        pytest.skip(reason)
    each = Machines(tmp_path_factory.mktemp("machines"), [HEAD, *(name for name in SITES if name != HEAD), OUTSIDE])
    try:
        for name in each.addresses:
            if name != OUTSIDE:
                start_ray(each, name)
        yield each
    finally:
        each.close()


def start_ray(machines, name):
    machines.start_ray(name, {f"site:{name}": 1}, head=HEAD)


class Run:
    """A job whose tables are each on its site's machine alone, all at the same path, and the command that carries it out.

    Args:
        machines: that it runs on.
        name: of the job.
        at: machine of the command.
        settings: of the job.
    """

    def __init__(self, machines, name, at=HEAD, **settings):
        self.machines, self.name, self.at = machines, name, at
        self.job = write_job(machines.folder / "all", make_pairs(), **settings)
        for site in SITES:
            shutil.move(machines.folder / "all" / f"{site}.parquet", machines.folder / site / "rows.parquet")
        self.begin("run", **settings)

    @property
    def here(self):
        """What the machine of the command sees as its own."""
        return self.machines.folder / self.at

    def begin(self, how, **settings):
        """`taskloom sites run`, or `resume`."""
        told = self.job.to_dict() | {"name": self.name, "out": self.name, "checkpoint": f"{self.name}/saved"} | settings
        for site in told["sites"].values():
            site["data"] = f"{OWN}/rows.parquet"
        (self.here / f"{self.name}.yml").write_text(yaml.safe_dump(told), encoding="utf-8")
        head = self.machines.addresses[HEAD]
        where = f"ray://{head}:{CLIENT_PORT}" if self.at == OUTSIDE else f"{head}:{PORT}"
        command = [sys.executable, "-m", "taskloom", "sites", how, f"{OWN}/{self.name}.yml", "--engine", "ray", "--json"]
        self.process = self.machines.popen(
            self.at, *command, "--address", where, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def await_sites(self):
        """Until each is at work, on its own machine; all read their rows at the same path, where others have other tasks'."""
        until = time.monotonic() + 90
        while self.saved() < 100 or not all(sites_on(self.machines, name) == ["ray::RaySite.serve"] for name in SITES):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < until, {name: sites_on(self.machines, name) for name in SITES}
            time.sleep(0.1)

    def saved(self):
        """Updates of the last save, at the coordinator."""
        try:
            with safe_open(
                self.machines.folder / HEAD / self.name / "saved" / "coordinator.safetensors", framework="np"
            ) as file:
                return json.loads(file.metadata()["state"])["version"]
        except (OSError, ValueError):
            return 0

    def result(self):
        """What it printed: nothing but JSON, whatever Ray has to say."""
        try:
            stdout, stderr = self.process.communicate(timeout=150)
        except subprocess.TimeoutExpired:
            for each in psutil.Process(self.process.pid).children():
                each.kill()
            raise
        assert stdout.startswith("{"), (stdout[:2000], stderr)
        return json.loads(stdout)

    def gap(self):
        """How far the saved model is above the optimum."""
        for site in SITES:
            shutil.copy(self.machines.folder / site / "rows.parquet", self.machines.folder / "all" / f"{site}.parquet")
        model = taskloom.load_model(self.here / self.name / "model")
        return relative_gap(self.job, model.predictor.state()[0]["coefficients"])


def sites_on(machines, name):
    """Site actors that are at work on a machine."""
    names = []
    for each in machines.processes(name):
        try:
            names += [line for line in each.cmdline()[:1] if line.startswith("ray::RaySite")]
        except psutil.Error:
            continue
    return names


# Small steps: enough updates for harm to be done meanwhile.
SLOW = {"method": "amtl", "relaxation": 0.005, "checkpoint_every": 20, "patience": 2}


def test_each_site_learns_on_its_own_machine_and_the_optimum_is_found(machines):
    run = Run(machines, "whole", **SLOW)
    run.await_sites()
    result = run.result()
    assert run.process.returncode == 0
    assert (result["status"], {site["state"] for site in result["sites"].values()}) == ("converged", {"done"})
    assert run.gap() < 1e-6
    assert [sites_on(machines, name) for name in SITES] == [[], [], []]


def test_a_command_outside_of_the_cluster_has_the_result_and_the_head_the_saves(machines):
    run = Run(machines, "outside", at=OUTSIDE, **SLOW | {"relaxation": 0.05})
    run.await_sites()
    result = run.result()
    assert run.process.returncode == 0
    assert (result["status"], result["out"]) == ("converged", f"{OWN}/outside")
    assert run.gap() < 1e-6
    assert not (run.here / "outside" / "saved").exists()


@pytest.mark.parametrize(
    ("least", "status", "said"),
    [
        (2, "sites lost", "site north was lost, and the model is that of its last columns"),
        (3, "too few sites", "2 of 3 sites are left, need 3; lost north: silent for "),
    ],
    ids=["settled", "too-few"],
)
def test_a_machine_that_is_lost_is_named_and_once_it_is_back_the_job_is_resumed_to_the_optimum(least, status, said, machines):
    run = Run(machines, f"least{least}", **SLOW, give_up=30, min_sites=least, tol=1e-6)
    run.await_sites()
    machines.kill("north")
    result = run.result()
    assert run.process.returncode == 1
    assert (result["status"], said in result["message"]) == (status, True), result["message"]
    assert [name for name, site in result["sites"].items() if site["is_lost"]] == ["north"]
    assert result["sites"]["south"]["state"] == result["sites"]["west"]["state"] == "done"
    machines.start("north")
    start_ray(machines, "north")
    run.begin("resume", method="amtl", tol=1e-9)
    assert run.result()["status"] == "converged"
    assert run.gap() < 1e-6


def test_a_machine_that_comes_back_takes_its_site_up_again_in_the_same_run(machines):
    run = Run(machines, "back", **SLOW, min_sites=3)
    run.await_sites()
    machines.kill("north")
    machines.start("north")
    start_ray(machines, "north")
    result = run.result()
    assert run.process.returncode == 0
    assert result["status"] == "converged"
    assert run.gap() < 1e-6


def test_a_ray_that_is_killed_on_a_machine_leaves_its_site_at_work_and_may_be_started_again(machines):
    run = Run(machines, "raylet", **SLOW, min_sites=3)
    run.await_sites()
    (raylet,) = (each for each in machines.processes("south") if each.name() == "raylet")
    raylet.kill()
    start_ray(machines, "south")
    result = run.result()
    assert run.process.returncode == 0
    assert result["status"] == "converged"
    assert run.gap() < 1e-6
