"""A federation on loopback: a coordinator and its sites, each from its own start-up kit, with mutual TLS."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import numpy as np
import psutil
import yaml
from engine_jobs import problem_of

import taskloom
from taskloom.engines import Job, provision
from taskloom.linear import LinearPredictor, certify

ADMIN = "lead@trust.org"
SERVER = "localhost"
# Imported by every Python of a participant: keeps a copy of what leaves it.
HOOK = """
import os
from nvflare.fuel.f3.sfm.sfm_conn import SfmConnection

send = SfmConnection.send_frame

def keep(self, prefix, headers, payload):
    with open(f"{os.environ['TASKLOOM_TEST_FRAMES']}.{os.getpid()}", "ab") as file:
        file.write(repr(headers).encode() + bytes(payload or b""))
    send(self, prefix, headers, payload)

SfmConnection.send_frame = keep
"""


def coefficients(folder: Path) -> np.ndarray:
    """(d, K) of a saved model."""
    predictor = cast("LinearPredictor", taskloom.load_model(folder / "model").predictor)
    return np.hstack(predictor.coefficients)


def gap(job: Job) -> float:
    """How far above the optimum the saved model's objective can be at most, relative to it: a certificate of duality."""
    return certify(problem_of(job), job.make_penalty(), coefficients(job.out)).relative


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def write_project(folder: Path, sites: list[str], name: str = "trial") -> Path:
    """FLARE's project file of a coordinator, some sites and somebody who submits jobs."""
    participants = [{"name": SERVER, "type": "server", "org": "trust", "fed_learn_port": free_port()}]
    participants += [{"name": site, "type": "client", "org": f"{site}_clinic"} for site in sites]
    participants += [{"name": ADMIN, "type": "admin", "org": "trust", "role": "lead"}]
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump({"name": name, "participants": participants}), encoding="utf-8")
    return path


class Federation:
    """All participants of a project on this machine. To be left by `close`, after which none of its processes is there."""

    def __init__(self, folder: Path, tables: dict[str, dict[str, str]]) -> None:
        self.folder, self.sites = folder, list(tables)
        self.project = write_project(folder, self.sites)
        self.kits = {kit.name: kit.folder for kit in provision(self.project, folder / "kits")}
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
        # FLARE's own place for jobs is one for all servers of a machine.
        resources = self.kits[SERVER] / "local" / "resources.json.default"
        resources.write_text(resources.read_text().replace("/tmp/nvflare", str(folder / "store")))  # noqa: S108 - FLARE's
        for site, table in tables.items():
            (self.kits[site] / "local" / "taskloom_site.yml").write_text(
                yaml.safe_dump({"site": site} | table), encoding="utf-8"
            )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def admin(self) -> Path:
        """The kit that jobs are submitted with."""
        return self.kits[ADMIN]

    def start(self, *names: str) -> None:
        """Start participants; all if none is named."""
        for name in names or (SERVER, *self.sites):
            there = {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(self.folder / "hook"),
                "TASKLOOM_TEST_FRAMES": str(self.folder / f"{name}.frames"),
                "OMP_NUM_THREADS": "1",
            }
            with (self.folder / f"{name}.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    [str(self.kits[name] / "startup" / "sub_start.sh"), "--once"],
                    env=os.environ | there,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    def processes(self, name: str) -> list[psutil.Process]:
        """Of a participant, its own first, then that of the job, if there is one."""
        try:
            own = psutil.Process(self._processes[name].pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def job_process(self, name: str, patience: float = 60.0) -> psutil.Process:
        """That of the job at a participant, as soon as there is one."""
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if len(found := self.processes(name)) > 1:
                return found[1]
            time.sleep(0.1)
        raise TimeoutError(f"no job at {name}: {self.log(name)[-2000:]}")

    def kill(self, name: str) -> None:
        """A participant with all its processes, at once."""
        for process in self.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._processes.pop(name).wait()

    def log(self, name: str) -> str:
        """What a participant has said."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def frames(self, name: str) -> bytes:
        """All that a participant's processes have handed to its connections, before TLS, one after the other."""
        return b"".join(path.read_bytes() for path in sorted(self.folder.glob(f"{name}.frames.*")))

    def close(self) -> None:
        """End all processes."""
        for name in list(self._processes):
            self.kill(name)
