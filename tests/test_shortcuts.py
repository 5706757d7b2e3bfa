"""The keys that lesson 0 teaches are those of the JupyterLab that is installed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from conftest import CI, missing
from helpers import NBS
from notebooks import read

LESSON = NBS / "lessons" / "00_welcome.ipynb"
SCHEMAS = Path(sys.prefix) / "share" / "jupyter" / "lab" / "schemas" / "@jupyterlab"
# What the lesson says a key does -> the command of JupyterLab that does it.
COMMANDS = {
    "edit the selected cell": "notebook:enter-edit-mode",
    "back to command mode": "notebook:enter-command-mode",
    "run the cell, go to the next": "notebook:run-cell-and-select-next",
    "run the cell, stay": "notebook:run-cell",
    "new cell above": "notebook:insert-cell-above",
    "new cell below": "notebook:insert-cell-below",
    "delete the cell": "notebook:delete-cell",
    "bring it back": "notebook:undo-cell-action",
    "make it text": "notebook:change-cell-to-markdown",
    "complete the name": "completer:invoke-notebook",
    "show a function's arguments": "tooltip:launch-notebook",
    "turn lines into comments, and back": "codemirror:toggle-comment",
    "interrupt what is running": "kernelmenu:interrupt",
    "restart the kernel": "kernelmenu:restart",
    "save": "docmanager:save",
}


def taught() -> list[list[str]]:
    """The rows of the lesson's table: mode, keys on Linux and Windows, keys on macOS, what it does."""
    text = next(c.source for c in read(LESSON).cells if c.cell_type == "markdown" and "| mode |" in c.source)
    rows = [[cell.strip().strip("`") for cell in line.strip("| ").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [[*row[:3], row[3].partition(" (")[0]] for row in rows[2:]]


def installed() -> dict[str, list[dict]]:
    """command -> its shortcuts, from the settings that JupyterLab ships."""
    found: dict[str, list[dict]] = {}
    for schema in SCHEMAS.rglob("*.json"):
        for shortcut in json.loads(schema.read_text(encoding="utf-8")).get("jupyter.lab.shortcuts", []):
            found.setdefault(shortcut["command"], []).append(shortcut)
    if not found:
        missing(f"no settings of JupyterLab below {sys.prefix}", must=CI)
    return found


def works(row: list[str], have: list[dict]) -> bool:
    """Whether JupyterLab binds the keys of a row, on both kinds of machine, in the mode that it names."""
    mode, keys, mac_keys, _ = row
    for written, accel in ((keys, "Ctrl"), (mac_keys, "Cmd")):
        wanted = written.split() if re.fullmatch(r"(\w) \1", written) else [written]  # two presses, or one chord
        if not any([k.replace("Accel", accel) for k in s["keys"]] == wanted for s in have):
            return False
    others = {"command": "editMode", "edit": "commandMode"}.get(mode)
    return others is None or any(others not in s["selector"] for s in have)


def test_keys_do_what_the_lesson_says() -> None:
    rows, shortcuts = taught(), installed()
    assert [row[3] for row in rows] == list(COMMANDS) and len(COMMANDS) == 15
    wrong = [(row, shortcuts.get(COMMANDS[row[3]])) for row in rows if not works(row, shortcuts.get(COMMANDS[row[3]], []))]
    assert not wrong, "\n".join(f"{row} is not {have}" for row, have in wrong)
