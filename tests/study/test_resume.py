"""A study that is killed and started again gives what an uninterrupted one gives."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import sys
from taskloom.deep import MLP, FitOptions, JointRecipe, SingleRecipe
from taskloom.study import StudyOptions, study
from taskloom.tasks import load_diabetes_tasks

options = FitOptions(max_steps=150, accelerator="cpu")
recipes = [SingleRecipe(net=MLP((8,)), options=options), JointRecipe(net=MLP((8,)), options=options)]
result = study(
    load_diabetes_tasks("age_groups"), recipes, seeds=4, options=StudyOptions(budget=2, cache=sys.argv[1]),
    progress=lambda done, total, what: print(done, flush=True),
)
result.save_results(sys.argv[2])
"""


def _without_costs(path):
    value = json.loads(path.read_text())
    for entry in [*value["units"], *value["summaries"]]:
        del entry["seconds"], entry["peak_mb"]
    return value


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_and_started_again_equals_uninterrupted(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(cache, out):
        return [sys.executable, str(script), str(tmp_path / cache), str(tmp_path / out)]

    killed = subprocess.Popen(command("killed", "never.json"), env=environment, stdout=subprocess.PIPE, text=True)
    with killed:
        for line in killed.stdout:
            if int(line) == 3:
                # In the middle of the fourth fit.
                time.sleep(0.05)
                killed.send_signal(signal.SIGKILL)
                break
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "never.json").exists()
    left = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.json")}
    assert 3 <= len(left) < 8
    for cache, out in (("killed", "resumed.json"), ("fresh", "whole.json")):
        subprocess.run(command(cache, out), env=environment, check=True, stdout=subprocess.PIPE)
    assert _without_costs(tmp_path / "resumed.json") == _without_costs(tmp_path / "whole.json")
    # What was finished before the kill was not trained again.
    assert all((tmp_path / "killed" / name).stat().st_mtime_ns == when for name, when in left.items())
