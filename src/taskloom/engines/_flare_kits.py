"""Start-up kits for NVIDIA FLARE: certificates, scripts and policies of every participant, by FLARE's own provisioning."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from taskloom.engines._yaml import read_yaml
from taskloom.tasks import OptionError, check_folder, unknown, write_file

# FLARE's own way to make kits, for a project that names no other.
BUILDERS: tuple[dict[str, Any], ...] = (
    {"path": "nvflare.lighter.impl.workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
    {"path": "nvflare.lighter.impl.static_file.StaticFileBuilder", "args": {"config_folder": "config"}},
    {"path": "nvflare.lighter.impl.cert.CertBuilder", "args": {}},
    {"path": "nvflare.lighter.impl.signature.SignatureBuilder", "args": {}},
)
# What FLARE may build out of a job of taskloom, beside its own list: with it no job has to bring code.
CLASSES = (
    "nvflare.collab.runtime.controller.CollabController",
    "nvflare.collab.runtime.executor.CollabExecutor",
    "taskloom.engines._flare_server.FlareCoordinator",
    "taskloom.engines._flare_site.FlareSite",
)
KINDS = ("server", "client", "admin", "relay")
RESOURCES = Path("local") / "resources.json.default"
ALLOW_LIST, LOG_STREAMING = "class_allow_list", "allow_log_streaming"


@dataclass(frozen=True)
class StartupKit:
    """A folder that belongs to one participant, and is handed to nobody else: it holds a private key.

    Attributes:
        name: of the participant.
        kind: `server`, `client` (a site) or `admin` (who submits jobs).
        folder: of the kit.

    Examples:
        >>> StartupKit("north", "client", Path("kits/clinics/prod_00/north")).folder.name
        'north'
    """

    name: str
    kind: str
    folder: Path


def check_flare() -> None:
    """Make sure that NVIDIA FLARE is installed.

    Raises:
        OptionError: it is not.
    """
    if find_spec("nvflare") is None:
        raise OptionError("NVIDIA FLARE is not installed; install it with `pip install 'taskloom[flare]'`")


def provision(project: str | Path, out: str | Path) -> list[StartupKit]:
    """Make the start-up kits of a federation: `nvflare provision`, and three things that federations of taskloom need.

    Every kit accepts jobs of taskloom without accepting code that comes with a job; no site sends its logs to the coordinator,
    unless its entry in the project says `allow_log_streaming: true`; and FLARE's own record, which holds all private keys, can
    be read by its owner alone. A project that is provisioned again keeps its root certificate; its kits go into a new folder.

    Args:
        project: FLARE's project file: `name` and `participants`; `api_version` and `builders` are filled in.
        out: folder that the kits go into.

    Returns:
        The kits, in the project's order.

    Raises:
        OptionError: FLARE is not installed, or the project cannot be provisioned.
        OutputError: the folder cannot be written.
    """
    check_flare()
    path, out = Path(project), Path(out).resolve()
    plan = {"api_version": 3, "builders": [dict(each) for each in BUILDERS]} | read_yaml(path)
    participants = _participants(path, plan)
    check_folder(out)
    folder = out / str(plan["name"])
    before = set(folder.glob("prod_*"))
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "project.yml"
        file.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "nvflare.cli", "provision", "-p", str(file), "-w", str(out), "--force"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    made = sorted(set(folder.glob("prod_*")) - before)
    if done.returncode or not made:
        lines = f"{done.stdout}\n{done.stderr}".strip().replace(str(file), str(path)).splitlines()
        # The last line of a traceback says what is wrong.
        said = " ".join(lines[-1:] if any(line.startswith("Traceback") for line in lines) else lines)
        raise OptionError(f"`project`='{path}': FLARE cannot provision it: {said[:500]}")
    (folder / "state").chmod(0o700)
    kits = [StartupKit(each["name"], each["type"], made[-1] / each["name"]) for each in participants]
    for kit, each in zip(kits, participants, strict=True):
        if kit.kind in ("server", "client"):
            _set_policy(kit.folder / RESOURCES, streams_logs=each.get(LOG_STREAMING) is True)
    return kits


def _participants(path: Path, plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = plan.get("participants")
    if not isinstance(listed, list) or not all(
        isinstance(each, Mapping) and {"name", "type"} <= each.keys() for each in listed
    ):
        raise OptionError(f"`participants` in '{path}': need a list with a `name` and a `type` each; see FLARE's project file")
    for each in listed:
        if each["type"] not in KINDS:
            raise unknown(f"type of participant {each['name']}", str(each["type"]), KINDS)
    for name in (plan.get("name"), *(each["name"] for each in listed)):
        if not isinstance(name, str) or Path(name).name != name or name == "..":
            raise OptionError(f"`name`={name!r} in '{path}': it becomes a folder; give a name that can be one")
    return listed


def _set_policy(path: Path, *, streams_logs: bool) -> None:
    """Let FLARE build the two ends of taskloom's jobs; a site's logs go to the coordinator only where it was asked for."""
    resources = json.loads(path.read_text(encoding="utf-8"))
    resources[ALLOW_LIST] = [*resources[ALLOW_LIST], *(name for name in CLASSES if name not in resources[ALLOW_LIST])]
    # FLARE takes a `false` in the entry of a participant for nothing said.
    if LOG_STREAMING in resources:
        resources[LOG_STREAMING] = streams_logs
    write_file(path, json.dumps(resources, indent=2) + "\n")
