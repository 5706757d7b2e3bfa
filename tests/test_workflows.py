"""The workflows are sound (actionlint), ask for few rights, and their steps are Makefile targets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from test_readme import make_targets

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EACH = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)


def test_there_are_workflows() -> None:
    assert {"ci.yml", "gpu.yml"} <= {p.name for p in WORKFLOWS}


def test_actionlint() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "lint_workflows.py")], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip(" ".join(done.stdout.split()))
    assert done.returncode == 0, done.stdout + done.stderr


@EACH
def test_least_rights_and_limits(path: Path) -> None:
    flow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert flow.get("permissions") == {"contents": "read"}
    assert "concurrency" in flow
    for name, job in flow["jobs"].items():
        assert job.get("timeout-minutes"), f"{path.name}: job {name} may run for ever"
        for step in job["steps"]:
            uses = step.get("uses", "")
            assert not uses or re.search(r"@v\d+$|@[0-9a-f]{40}$", uses), f"{path.name}: {uses} is not pinned"


@EACH
def test_steps_are_targets(path: Path) -> None:
    flow = yaml.safe_load(path.read_text(encoding="utf-8"))
    steps = [s["run"].strip() for job in flow["jobs"].values() for s in job["steps"] if "run" in s]
    made = [s.removeprefix("make ") for s in steps if s.startswith("make ")]
    assert made
    assert set(made) <= make_targets(), sorted(set(made) - make_targets())
    others = [s for s in steps if not s.startswith(("make ", "sudo rm -rf "))]
    assert not others, f"{path.name}: steps that are no Makefile target: {others}"
