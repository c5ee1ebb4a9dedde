"""Machines on one machine: each a network, process and mount namespace of its own, joined by a switch."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

# Where every machine has its own folder; the same path leads to other files on each.
OWN = "/mnt"
PORT = 6379
# Becomes the first process of a machine: when it ends, the kernel ends all others of it.
BOOT = f"""
set -e
ip link set lo up
mount --bind "$0" {OWN}
mkdir -p /tmp/ray
mount -t tmpfs none /tmp/ray
mount -t tmpfs none /dev/shm
touch {OWN}/.up
exec sleep infinity
"""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def why_no_machines() -> str:
    """Why machines cannot be made here; nothing if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and its administrator, to make network namespaces"
    name = f"taskloom-{os.getpid()}-trial"
    try:
        _ip("netns", "add", name)
        _ip("netns", "exec", name, "unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "none", OWN)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces cannot be made here ({getattr(error, 'stderr', '') or error})".replace("\n", " ")
    finally:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _ip("netns", "del", name)
    return ""


class Machines:
    """Some machines that see each other, and nothing else. To be left by `close`, after which nothing of them is there.

    Args:
        folder: that holds the folder of each, by its name.
        names: of the machines.
    """

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self._mark = f"taskloom-{os.getpid()}"
        # Ray asks for its token on some machines and not on others unless all are told the same.
        self.settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1"}
        self._spaces: list[str] = []
        self._commands: list[subprocess.Popen[str]] = []
        self._first: dict[str, subprocess.Popen[bytes]] = {}
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, start=1)}
        try:
            self._add_space("switch")
            _ip("-n", f"{self._mark}-switch", "link", "add", "lan", "type", "bridge")
            _ip("-n", f"{self._mark}-switch", "link", "set", "lan", "up")
            for number, name in enumerate(names):
                self._plug_in(number, name)
                self.start(name)
        except BaseException:
            self.close()
            raise

    def _add_space(self, name: str) -> None:
        _ip("netns", "add", f"{self._mark}-{name}")
        self._spaces.append(f"{self._mark}-{name}")

    def _plug_in(self, number: int, name: str) -> None:
        self._add_space(name)
        mine, switch, port = f"{self._mark}-{name}", f"{self._mark}-switch", f"port{number}"
        _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", mine)
        _ip("-n", switch, "link", "set", port, "master", "lan", "up")
        _ip("-n", mine, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")

    def start(self, name: str) -> None:
        """Turn a machine on; nothing runs on it yet."""
        _ip("-n", f"{self._mark}-{name}", "link", "set", "eth0", "up")
        own = self.folder / name
        own.mkdir(parents=True, exist_ok=True)
        (own / ".up").unlink(missing_ok=True)
        spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = ["ip", "netns", "exec", f"{self._mark}-{name}", *spaces, "sh", "-c", BOOT, str(own)]
        self._first[name] = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while not (own / ".up").exists():
            if self._first[name].poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"machine {name} does not come up")
            time.sleep(0.02)

    def kill(self, name: str) -> None:
        """Take a machine's power away: nobody is told that its lines are cut."""
        _ip("-n", f"{self._mark}-{name}", "link", "set", "eth0", "down")
        first = self._first.pop(name)
        for process in psutil.Process(first.pid).children():
            process.send_signal(signal.SIGKILL)
        first.wait()

    def popen(self, name: str, *command: str, **options) -> subprocess.Popen[str]:
        """A command on a machine."""
        (init,) = psutil.Process(self._first[name].pid).children()
        enter = ["nsenter", "--target", str(init.pid), "--mount", "--net", "--pid"]
        self._commands.append(subprocess.Popen([*enter, *command], text=True, env=os.environ | self.settings, **options))
        return self._commands[-1]

    def start_ray(self, name: str, resources: dict[str, float], *, head: str) -> None:
        """Ray on a machine, as its administrator would start it."""
        place = ["--head", "--port", str(PORT)] if name == head else ["--address", f"{self.addresses[head]}:{PORT}"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", *place, "--node-ip-address", self.addresses[name]]
        options = ["--num-cpus", "1", "--object-store-memory", "100000000", "--resources", json.dumps(resources)]
        dashboard = ["--include-dashboard", "false"] if name == head else []
        with (self.folder / f"{name}.ray.log").open("ab") as log:
            done = self.popen(name, *ray, *options, *dashboard, stdin=subprocess.DEVNULL, stdout=log, stderr=log).wait(120)
        if done != 0:
            raise RuntimeError((self.folder / f"{name}.ray.log").read_text(encoding="utf-8")[-2000:])

    def processes(self, name: str) -> list[psutil.Process]:
        """All that run on a machine."""
        if name not in self._first:
            return []
        (init,) = psutil.Process(self._first[name].pid).children()
        space, found = Path(f"/proc/{init.pid}/ns/pid").readlink(), []
        for each in psutil.process_iter():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{each.pid}/ns/pid").readlink() == space:
                    found.append(each)
        return found

    def close(self) -> None:
        """Turn all off, and take the network away."""
        for name in list(self._first):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.kill(name)
        for command in self._commands:
            if command.poll() is None:
                command.communicate()
        for space in reversed(self._spaces):
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)
        self._spaces.clear()
