"""What `make lint` finds, each linter run once: names, types, and imports that do not go downwards."""

from __future__ import annotations

from helpers import ROOT, run, tool


def test_ruff() -> None:
    run([tool("ruff"), "check", "--no-cache", "--output-format=concise", "."], cwd=ROOT)


def test_mypy() -> None:
    run([tool("mypy"), "--no-error-summary", "--hide-error-context"], cwd=ROOT)


def test_layers() -> None:
    run([tool("lint-imports"), "--no-cache"], cwd=ROOT)
