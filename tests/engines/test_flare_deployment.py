"""A job in a federation on loopback with mutual TLS: its optimum, what leaves a site, who is let in, who is killed."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import psutil
import pytest
import yaml
from engine_jobs import make_pairs, school_pairs, write_job
from flare_federation import SERVER, Federation, coefficients, gap, write_project

from taskloom.engines import FlareOptions, Job, provision, submit
from taskloom.sites import decode
from taskloom.tasks import OptionError, TaskloomError

pytest.importorskip("nvflare")
pytestmark = pytest.mark.engine
takes_minutes = pytest.mark.skipif("TASKLOOM_ENGINES" not in os.environ, reason="takes minutes; run by `make test-engines`")


def tables_of(job):
    return {site: {key: value for key, value in table.to_dict().items() if key != "site"} for site, table in job.tables.items()}


class Done(NamedTuple):
    """A job that was carried out.

    Attributes:
        seen: command lines of all participants meanwhile.
        outsider: an administrator's kit of a project of the same name and port, by another authority.
    """

    federation: Federation
    job: Job
    code: int
    stdout: str
    stderr: str
    seen: set[str]
    outsider: Path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A job that was carried out: School where it is there, each site with a third of the schools."""
    if "TASKLOOM_ENGINES" not in os.environ:
        # On a machine that is busy with other things FLARE may give up on the processes of a job before they are up.
        pytest.skip("takes a minute; run by `make test-engines`")
    folder = tmp_path_factory.mktemp("federation")
    data = Path(os.environ.get("TASKLOOM_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    pairs = school_pairs(data) if data.is_dir() else make_pairs()
    job = write_job(folder / "job", pairs, name="schools", penalty={"trace": 0.5}, min_sites=2)
    federation = Federation(folder, tables_of(job))
    seen = set()
    try:
        federation.start()
        outsider = start_stranger(federation, folder / "elsewhere")
        submission = Submission(job, federation.admin)
        watch = threading.Thread(target=note_commands, args=(federation, submission.process, seen))
        watch.start()
        stdout = submission.process.communicate(timeout=200)[0]
        watch.join()
        federation.kill("stranger")
        yield Done(federation, job, submission.process.returncode, stdout, submission.said(), seen, outsider)
    finally:
        federation.close()


def start_stranger(federation, folder):
    """A site whose certificate comes from another authority, beside the federation's own; its administrator's kit."""
    plan = yaml.safe_load(federation.project.read_text())
    plan["participants"].append({"name": "stranger", "type": "client", "org": "elsewhere"})
    folder.mkdir()
    (folder / "same.yml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    kits = {kit.name: kit.folder for kit in provision(folder / "same.yml", folder / "kits")}
    federation.kits["stranger"] = kits["stranger"]
    federation.start("stranger")
    return kits[federation.admin.name]


def note_commands(federation, process, seen):
    """All command lines of all participants, as long as a process runs."""
    while process.poll() is None:
        for name in (SERVER, *federation.sites):
            for each in federation.processes(name):
                try:
                    seen.add(" ".join(each.cmdline()))
                except psutil.NoSuchProcess:
                    continue
        time.sleep(0.5)


def test_three_sites_and_a_coordinator_with_mutual_tls_find_the_optimum(done):
    job = done.job
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["status"], told["engine"], len(told["jobs"])) == ("converged", "flare", 1)
    assert gap(job) < 1e-6
    assert "submitted as" in done.stderr


def test_model_report_and_numbers_of_each_site_are_at_the_coordinator_and_at_the_submitter(done):
    federation, job = done.federation, done.job
    there = federation.kits[SERVER] / "taskloom" / job.name / "out"
    for folder in (there, job.out):
        assert {"model", "report.html", "result.json"} <= {path.name for path in folder.iterdir()}
    assert (there / "report.html").read_bytes() == (job.out / "report.html").read_bytes()
    for name, site in json.loads(done.stdout)["sites"].items():
        assert site["state"] == "done", name
        assert site["updates"] > 0
        assert site["bytes_in"] > 8 * job.n_features * len(job.sites[name]) * site["updates"]
    assert not (there.parent / "checkpoint" / "coordinator.safetensors").exists(), "a run that is over is no run to go on with"


def test_a_site_sends_the_agreed_numbers_and_nothing_of_its_table(done):
    federation, job = done.federation, done.job
    d = job.n_features
    for site, table in job.tables.items():
        sent = federation.frames(site)
        heads = list(re.finditer(rb'\{"kind":"Update".*?\}\} *\n', sent))
        assert heads
        for head in heads:
            said = json.loads(head[0])
            size = 8 * sum(int(np.prod(shape)) for shape in said["shapes"].values())
            message = decode(sent[head.start() : head.end() + size])
            m = len(job.sites[site])
            assert said.keys() == {"kind", "site", "sequence", "epoch", "version", "shapes"}
            assert said["shapes"].items() <= {"columns": [d, m], "curvature": [m], "intercepts": [m]}.items()
            assert message.site == site
        frame = pl.read_parquet(table.data)
        values = {float(v) for name in frame.columns if frame[name].dtype.is_float() for v in frame[name].to_list()}
        told = {float(v) for v in values if abs(v) > 1e-3 and len(repr(v)) > 8}
        assert told
        for value in told:
            assert struct.pack("<d", value) not in sent
            assert struct.pack(">d", value) not in sent
            assert repr(value).encode() not in sent
        assert str(table.data).encode() not in sent


def test_no_secret_is_on_a_command_line_or_in_a_log(done):
    federation = done.federation
    keys = [path.read_text() for kit in federation.kits.values() for path in (kit / "startup").glob("*.key")]
    secrets = [line for key in keys for line in key.splitlines() if not line.startswith("-----")]
    logs = [federation.log(name) for name in (SERVER, *federation.sites)]
    logs += [path.read_text(errors="replace") for kit in federation.kits.values() for path in kit.rglob("*log*.txt")]
    assert secrets
    assert done.seen
    for text in (*logs, *done.seen, done.stdout, done.stderr):
        assert not [line for line in secrets if line in text]


def test_a_site_without_a_certificate_of_the_project_is_refused(done):
    said = done.federation.log("stranger")
    assert "certificate verify failed" in said
    assert "Successfully registered" not in said
    assert "stranger" not in done.federation.log(SERVER)
    outsider = Submission(done.job, done.outsider, "--wait", "0.1")
    outsider.process.communicate(timeout=60)
    assert outsider.process.returncode == 1
    assert "no server of" in outsider.said()


def test_every_kit_takes_jobs_of_taskloom_and_keeps_its_logs(done):
    federation = done.federation
    for name in (SERVER, *federation.sites):
        policy = json.loads((federation.kits[name] / "local" / "resources.json.default").read_text())
        assert "taskloom.engines._flare_site.FlareSite" in policy["class_allow_list"]
        assert "*" not in policy["class_allow_list"]
        assert policy.get("allow_log_streaming", False) is False
    state = federation.kits[SERVER].parents[1] / "state"
    assert state.stat().st_mode & 0o077 == 0, "it holds all private keys"


def test_a_project_that_cannot_be_provisioned_is_refused_in_a_sentence(tmp_path):
    path = write_project(tmp_path, ["north"])
    path.write_text(path.read_text().replace("org: trust", "org: no-such+name"))
    with pytest.raises(OptionError, match=r"FLARE cannot provision it: .*no-such") as raised:
        provision(path, tmp_path / "kits")
    assert "Traceback" not in str(raised.value)
    path.write_text("name: trial\nparticipants: north\n")
    with pytest.raises(OptionError, match="`participants`"):
        provision(path, tmp_path / "kits")
    with pytest.raises(OptionError, match="no such file"):
        provision(tmp_path / "none.yml", tmp_path / "kits")


@pytest.mark.parametrize(
    ("there", "instead", "message"),
    [
        ("type: client", "type: clint", "no type of participant north named `clint`; did you mean `client`"),
        ("name: trial", "name: ../trial", r"`name`='../trial' in .*it becomes a folder"),
        ("name: trial", "name: ..", r"`name`='..' in .*it becomes a folder"),
        ("name: north", "name: ../north", r"`name`='../north' in .*it becomes a folder"),
    ],
)
def test_a_project_is_checked_before_any_kit_is_made(there, instead, message, tmp_path):
    path = write_project(tmp_path, ["north"])
    assert there in path.read_text()
    path.write_text(path.read_text().replace(there, instead))
    with pytest.raises(TaskloomError, match=message):
        provision(path, tmp_path / "kits" / "new")
    assert not (tmp_path / "kits").exists()


@pytest.mark.parametrize("lost", ["local", "startup/client.key"])
def test_a_kit_that_is_not_whole_is_named(lost, tmp_path):
    kits = {kit.kind: kit.folder for kit in provision(write_project(tmp_path, ["north"]), tmp_path / "kits")}
    gone = kits["admin"] / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(OptionError, match=r"`kit`='.*' is not whole .*give one of `provision`"):
        submit(write_job(tmp_path, make_pairs()), kits["admin"], FlareOptions(wait=0.1))


def test_a_folder_that_is_no_kit_is_refused_before_any_work(tmp_path):
    job = write_job(tmp_path, make_pairs())
    with pytest.raises(OptionError, match="no administrator's start-up kit"):
        submit(job, tmp_path)
    with pytest.raises(OptionError, match="`resubmissions`"):
        FlareOptions(resubmissions=-1)
    with pytest.raises(OptionError, match="`wait`"):
        FlareOptions(wait=0)


class Submission:
    """`taskloom sites submit` in a process of its own, while the test does harm."""

    def __init__(self, job, kit, *options):
        self.log = job.out.parent / "submission.log"
        path = job.out.parent / "submission.yml"
        path.write_text(yaml.safe_dump(job.to_dict()), encoding="utf-8")
        command = [sys.executable, "-m", "taskloom", "sites", "submit", str(path), "--kit", str(kit), "--json", *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)

    def said(self):
        return self.log.read_text(encoding="utf-8")

    def result(self, seconds=300):
        """What it printed."""
        try:
            return json.loads(self.process.communicate(timeout=seconds)[0])
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.wait()


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


@pytest.fixture
def slow_job(tmp_path):
    """Small steps: some thousand updates, so that there is time to do harm; its federation, and where it is saved."""

    def start(**settings):
        job = write_job(
            tmp_path / "job",
            make_pairs(),
            method="amtl",
            relaxation=0.02,
            **({"checkpoint_every": 20, "min_sites": 2} | settings),
        )
        federation = Federation(tmp_path, tables_of(job))
        started.append(federation)
        federation.start()
        saved = federation.kits[SERVER] / "taskloom" / job.name / "checkpoint" / "coordinator.safetensors"
        return job, federation, saved

    started = []
    yield start
    for federation in started:
        federation.close()


@takes_minutes
def test_a_site_and_the_coordinator_that_are_killed_come_back_and_the_optimum_is_found(slow_job):
    job, federation, saved = slow_job(give_up=15)
    submission = Submission(job, federation.admin)
    until(saved.exists)
    time.sleep(3)
    federation.job_process(SERVER).kill()
    until(lambda: submission.said().count("submitted as") == 2)
    before = saved.stat().st_mtime
    until(lambda: saved.stat().st_mtime > before)
    time.sleep(2)
    federation.kill("north")
    time.sleep(2)
    federation.start("north")
    result = submission.result()
    assert result["status"] == "converged"
    assert len(result["jobs"]) == 3
    assert gap(job) < 1e-6


@takes_minutes
def test_a_coordinator_that_is_killed_with_its_server_goes_on_when_it_is_started_again(slow_job):
    job, federation, saved = slow_job()
    submission = Submission(job, federation.admin)
    until(saved.exists)
    time.sleep(3)
    federation.kill(SERVER)
    time.sleep(3)
    federation.start(SERVER)
    result = submission.result()
    assert result["status"] == "converged"
    assert len(result["jobs"]) == 2
    assert gap(job) < 1e-6


@takes_minutes
def test_a_hung_site_is_reported_and_the_others_go_on(slow_job):
    job, federation, saved = slow_job(patience=3, give_up=8)
    submission = Submission(job, federation.admin)
    until(saved.exists)
    time.sleep(2)
    federation.job_process("west").send_signal(signal.SIGSTOP)
    until(lambda: "site west is lost: silent for" in federation.log(SERVER))
    result = submission.result()
    # The others went on without it, and it was taken in again by the next submission.
    assert "it is submitted again" in submission.said()
    assert result["status"] == "converged"
    assert len(result["jobs"]) == 2
    assert gap(job) < 1e-6


@takes_minutes
def test_a_job_with_too_few_sites_left_ends_with_a_model_and_says_so(slow_job):
    job, federation, saved = slow_job(min_sites=3, patience=3, give_up=8)
    submission = Submission(job, federation.admin, "--resubmissions", "0")
    until(saved.exists)
    time.sleep(2)
    for process in federation.processes("south"):
        process.send_signal(signal.SIGSTOP)
    result = submission.result()
    assert result["status"] == "too few sites"
    assert "2 of 3 sites are left, need 3; lost south: silent for" in result["message"]
    assert coefficients(job.out).shape == (job.n_features, 4), "the tasks of those who could say their intercepts"


@takes_minutes
def test_an_interrupt_of_the_submission_ends_the_job_at_the_server_and_it_is_resumed_to_the_optimum(slow_job):
    job, federation, saved = slow_job()
    submission = Submission(job, federation.admin)
    until(saved.exists)
    submission.process.send_signal(signal.SIGINT)
    assert submission.process.communicate(timeout=90)[0] == ""
    assert submission.process.returncode == 130
    again = f"taskloom sites submit {job.out.parent / 'submission.yml'} --resume --kit {federation.admin}"
    assert f"stopped; go on with `{again}`" in submission.said()
    until(lambda: all(len(federation.processes(name)) == 1 for name in (SERVER, *federation.sites)))
    assert saved.exists()
    result = Submission(job, federation.admin, "--resume").result()
    assert (result["status"], len(result["jobs"])) == ("converged", 1)
    assert gap(job) < 1e-6
