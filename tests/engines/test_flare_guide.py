"""The guide to a federation: every command of the page, in its order, in an empty folder."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import psutil
import pytest
from flare_federation import free_port

pytest.importorskip("nvflare")
pytestmark = pytest.mark.engine
PAGE = Path(__file__).parents[2] / "docs" / "engines.md"


def stop(folder):
    """End what the page has left running here: processes of this folder alone."""
    for process in psutil.process_iter(["cmdline"]):
        if str(folder) in " ".join(process.info["cmdline"] or []):
            process.kill()


@pytest.mark.skipif("TASKLOOM_ENGINES" not in os.environ, reason="takes minutes; run by `make test-engines`")
def test_the_commands_of_the_guide_lead_from_nothing_to_a_model_of_three_organisations(tmp_path):
    section = PAGE.read_text(encoding="utf-8").partition("## Between organisations: NVIDIA FLARE")[2]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    port = f"fed_learn_port: {free_port()}"
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    try:
        for block in blocks:
            script = block.replace("fed_learn_port: 8002", port)
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=200,
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
            if "sites submit" in block:
                assert "converged" in done.stdout
        assert len(pl.read_csv(tmp_path / "predicted.csv")) == 120
        until = time.monotonic() + 60
        while time.monotonic() < until and any(tmp_path.rglob("daemon_pid.fl")):
            time.sleep(0.5)
        assert not any(tmp_path.rglob("daemon_pid.fl")), "the scripts of the page have stopped everything"
    finally:
        stop(tmp_path)
