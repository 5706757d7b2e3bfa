"""What `make lint` finds: names that do not exist, imports that nobody uses, syntax newer than Python 3.10."""

from __future__ import annotations

from helpers import ROOT, run, tool


def test_ruff() -> None:
    run([tool("ruff"), "check", "--no-cache", "--output-format=concise", "."], cwd=ROOT)


def test_mypy() -> None:
    run([tool("mypy"), "--no-error-summary", "--hide-error-context"], cwd=ROOT)
