"""The workflows are sound (actionlint), ask for few rights, and their steps are Makefile targets."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
import yaml
from helpers import ROOT
from test_readme import make_targets

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def flows() -> dict[str, dict]:
    found = {p.name: yaml.safe_load(p.read_text(encoding="utf-8")) for p in WORKFLOWS}
    assert {"ci.yml", "docs.yml", "gpu.yml", "release.yml"} <= set(found)
    return found


def test_actionlint() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "lint_workflows.py")], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip(" ".join(done.stdout.split()))
    assert done.returncode == 0, done.stdout + done.stderr


def test_least_rights_and_limits() -> None:
    for file, flow in flows().items():
        assert flow.get("permissions") == {"contents": "read"}, file
        assert "concurrency" in flow, file
        for name, job in flow["jobs"].items():
            assert job.get("timeout-minutes"), f"{file}: job {name} has no timeout-minutes"
            loose = [s["uses"] for s in job["steps"] if "uses" in s and not re.search(r"@v\d+$|@[0-9a-f]{40}$", s["uses"])]
            assert not loose, f"{file}: {loose} are not pinned"


def test_steps_are_targets() -> None:
    for file, flow in flows().items():
        steps = [s["run"].strip() for job in flow["jobs"].values() for s in job["steps"] if "run" in s]
        made = {s.removeprefix("make ") for s in steps if s.startswith("make ")}
        assert made and made <= make_targets(), f"{file}: no such targets: {sorted(made - make_targets())}"
        others = [s for s in steps if not s.startswith(("make ", "sudo rm -rf ", "python "))]
        assert not others, f"{file}: steps that are neither a Makefile target nor a call of Python: {others}"
        files = [word for s in steps if s.startswith("python ") for word in s.split() if word.endswith((".py", ".ipynb"))]
        assert all((ROOT / name).is_file() for name in files), f"{file}: a step names a file that is not there, one of {files}"


def test_other_systems_get_commands_that_every_shell_reads() -> None:
    job = flows()["ci.yml"]["jobs"]["elsewhere"]
    steps = [s["run"] for s in job["steps"] if "run" in s]
    assert {"macos-latest", "windows-latest"} == set(job["strategy"]["matrix"]["os"])
    assert steps and not [s for s in steps if re.search(r"[$`~*|;&<>\\'\"\n]", s)], steps


def test_dockerfile() -> None:
    """It copies what the wheel is built from, asks for the PyTorch that the package needs, and runs as nobody special; hadolint finds nothing."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    assert {"coursekit", "nbs/lessons", "nbs/solutions", "settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"} <= kept
    assert all((ROOT / name).exists() for name in kept)
    asked = re.search(r"(?m)^requirements = torch>=(\S+) torchvision>=(\S+)", (ROOT / "settings.ini").read_text(encoding="utf-8"))
    assert asked and f'"torch=={asked[1]}.*" "torchvision=={asked[2]}.*"' in text
    assert re.search(r"(?m)^USER [1-9]", text) and ":latest" not in text
    if hadolint := shutil.which("hadolint"):
        done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_binder() -> None:
    """The PyTorch that the package needs, for CPUs, and a Python that it runs on."""
    lines = (ROOT / ".binder" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    text = (ROOT / "settings.ini").read_text(encoding="utf-8")
    asked = re.search(r"(?m)^requirements = torch>=(\S+) torchvision>=(\S+)", text)
    assert asked and {f"torch=={asked[1]}.*", f"torchvision=={asked[2]}.*", "-e .[course]", "--index-url https://download.pytorch.org/whl/cpu"} <= set(lines)
    assert (ROOT / ".binder" / "runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-") in re.findall(
        r"3\.\d+", (ROOT / "setup.py").read_text(encoding="utf-8"))  # fmt: skip
