#!/usr/bin/env python3
"""Install coursekit for development into the environment of the Python that runs this: `python tools/install.py`.
With `--oldest`, what coursekit and its extras need comes in the oldest versions that settings.ini allows; only uv can do that.

uv does it several times as fast as pip, so pip installs uv first. uv gets what pip's own configuration says (indexes,
folders of wheels, constraints, certificates); if it cannot be installed or fails, pip does the work. At the end, the scripts
of web pages are downloaded, so that `make docs`, `make slides` and an export as a page need no network later.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHAT = ["-e", ".[dev]"]
# Without the strategy, the oldest version would be that of the first index that has the package at all; pip, too, looks into all of them.
OLDEST = ["--resolution", "lowest-direct", "--index-strategy", "unsafe-best-match",
          "-e", ".[course,onnx]", "pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100"]  # fmt: skip
FETCH = [sys.executable, "docs/build.py", "--fetch"]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
# An option of pip -> the same for uv. uv separates several folders of wheels by commas, everything else by spaces.
SAME = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS", "constraint": "UV_CONSTRAINT",
        "cert": "SSL_CERT_FILE", "timeout": "UV_HTTP_TIMEOUT", "default-timeout": "UV_HTTP_TIMEOUT"}  # fmt: skip


def as_uv(config: str) -> dict[str, str]:
    """What `pip config list` printed, as the environment variables of uv."""
    found = {}
    for line in config.splitlines():
        name, _, value = line.partition("=")
        variable = SAME.get(name.rpartition(".")[2])
        if variable and value:
            words = str(ast.literal_eval(value)).split()
            found[variable] = ("," if variable == "UV_FIND_LINKS" else " ").join(words)  # the later line counts, as in pip
    return found


def succeeds(command: list[str], **env: str) -> bool:
    return subprocess.run(command, cwd=ROOT, env={**env, **os.environ}).returncode == 0


def with_uv(what: list[str]) -> bool:
    uv = Path(sys.executable).with_name("uv.exe" if os.name == "nt" else "uv")
    if not uv.exists() and not succeeds([*PIP, "install", "-qqq", "uv"]):
        return False
    config = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True).stdout
    return succeeds([str(uv), "pip", "install", "-q", "--python", sys.executable, *what], **as_uv(config))


def fetch_scripts() -> None:
    """What web pages need beside the package; without it, everything else works."""
    if not succeeds(FETCH):
        print("The scripts for web pages could not be downloaded; the message above says why. Lessons and tests work without them. "
              "`make docs`, `make slides` and learn.export(\"page.html\") will try again and need a network then.", flush=True)


def main() -> int:
    if "--oldest" in sys.argv[1:]:
        return 0 if with_uv(OLDEST) else 1
    if not with_uv(WHAT):
        print("uv could not do it; installing with pip", flush=True)
        if not succeeds([*PIP, "install", "-qq", *WHAT]):
            return 1
    fetch_scripts()
    return 0


if __name__ == "__main__":
    sys.exit(main())
