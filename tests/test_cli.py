"""The command `coursekit`, as typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner
from helpers import ROOT

from coursekit import cli


def coursekit(*args: str, **env: str) -> subprocess.CompletedProcess:
    script = Path(sys.executable).with_name("coursekit")
    return subprocess.run([str(script), *args], capture_output=True, text=True, timeout=120, env={"PATH": "/usr/bin:/bin", "HOME": "/tmp", **env}, cwd=ROOT)


def test_doctor_as_typed(tmp_path: Path) -> None:
    done = coursekit("doctor", COURSEKIT_HOME=str(tmp_path), COURSEKIT_MIRROR=str(tmp_path / "nowhere"))
    assert done.returncode == 0 and not done.stderr, done.stderr
    first = [line.split()[0] for line in done.stdout.splitlines()]
    assert first[:10] == ["versions", "system", "processor", "device", "precision", "memory", "disk", "network", "files", "settings"]
    assert "COURSEKIT_MIRROR" in done.stdout and "is no folder; unset or correct it" in done.stdout
    assert len(done.stdout.splitlines()) < 20 and max(map(len, done.stdout.splitlines())) < 300


def test_help_version_and_a_typo() -> None:
    run = CliRunner().invoke
    for args in (["--help"], ["-h"], ["doctor", "--help"]):
        done = run(cli.main, args)
        assert done.exit_code == 0 and "Usage:" in done.output
    assert "coursekit, version 0" in run(cli.main, ["--version"]).output
    typo = run(cli.main, ["docter"])
    assert typo.exit_code == 2 and "Traceback" not in typo.output


def test_precision_is_explained_as_it_is(monkeypatch) -> None:
    monkeypatch.setattr(cli, "precision_dtype", lambda device: None)
    assert cli.precision_policy().startswith("float32 (this processor does not multiply bfloat16)")
    monkeypatch.setattr(cli, "precision_dtype", lambda device: "bf16")
    assert cli.precision_policy().startswith("bfloat16 autocast in training, float32 in validation")


def test_import_of_the_command_is_light() -> None:
    """`coursekit --help` need not wait for torch's neighbours."""
    code = "import sys, coursekit.cli; print([m for m in ('torchvision', 'pandas', 'matplotlib', 'timm', 'ipywidgets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_doctor_survives_what_it_is_to_diagnose(tmp_path: Path) -> None:
    for env in ({"COURSEKIT_DEVICE": "gpu"}, {"COURSEKIT_DEVICE": "cuda"}, {"COURSEKIT_MIRROR": "https://me:secret@host/x"}):
        done = coursekit("doctor", COURSEKIT_HOME=str(tmp_path), **env)
        assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr and "secret" not in done.stdout
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = coursekit("doctor", COURSEKIT_HOME=str(blocked / "home"))
    assert done.returncode == 0 and "COURSEKIT_HOME cannot be used" in done.stdout
