"""What `make test-oldest` runs first: every module imports, and the versions are really the oldest that settings.ini allows."""

from __future__ import annotations

import configparser
import importlib
import os
import pkgutil
import re
from importlib.metadata import version

import pytest
from helpers import ROOT

import coursekit


def lower_bounds() -> dict[str, str]:
    """Package -> the oldest version that the package or one of its extras for users takes."""
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    wanted = " ".join(parser["DEFAULT"][f"{part}requirements"] for part in ("", "course_", "onnx_")).split()
    found = dict(re.fullmatch(r"([\w.-]+)[>=]=([\d.]+)", w).groups() for w in wanted)  # type: ignore[union-attr]
    assert len(found) == len(wanted) > 20
    return found


def test_every_module_imports() -> None:
    names = [m.name for m in pkgutil.walk_packages(coursekit.__path__, "coursekit.") if not m.name.endswith("__main__")]
    assert len(names) > 100
    for name in names:
        importlib.import_module(name)


@pytest.mark.skipif(not os.environ.get("COURSEKIT_OLDEST"), reason="these are not the oldest versions; `make test-oldest` has them")
def test_these_are_the_oldest_versions() -> None:
    """As far as the index has them: 8.1 stands for 8.1.0."""
    newer = {name: (version(name), least) for name, least in lower_bounds().items() if not version(name).startswith(least)}
    assert not newer, f"(installed, asked for): {newer}"
