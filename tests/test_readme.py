"""README.md is what nbs/index.ipynb says, and its two commands are the code path of continuous integration."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from pathlib import Path

import readme
from helpers import NBS, ROOT, python_fences, run
from notebooks import read

README = ROOT / "README.md"
COMMANDS = ["make lesson", "make test"]


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"(?m)^([a-z][\w-]*):", text))


def test_readme_is_in_sync() -> None:
    text, images = readme.render(read(NBS / "index.ipynb"))
    old = readme.stale(text, images)
    assert not old, f"{old} are not what nbs/index.ipynb says; run `make readme`"


def test_commands_are_targets() -> None:
    named = set(re.findall(r"(?m)^(?:\$ )?make ([\w-]+)", README.read_text(encoding="utf-8")))
    assert named >= {"lesson", "test"}, f"README names only {sorted(named)}"
    assert named <= make_targets(), f"no such targets: {sorted(named - make_targets())}"


def test_ci_runs_the_readme_commands() -> None:  # but for lesson 1 alone, which the tests run as well
    lines = [x.strip() for x in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()]
    assert [x for x in lines if x.startswith("make ")] == COMMANDS[1:]


HELP = """
import contextlib, io, json, runpy, sys
said = {}
for program in sys.argv[1:]:
    sys.argv = [program, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_path(program, run_name="__main__")
    said[program] = out.getvalue()
print(json.dumps(said))
"""


def test_benchmarks_start() -> None:
    """The commands behind the tables: each finds what it imports, and explains itself."""
    programs = sorted(str(p) for p in (ROOT / "benchmarks").glob("*.py") if "__main__" in p.read_text(encoding="utf-8"))
    env = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]))}
    said = json.loads(run([sys.executable, "-c", HELP, *programs], cwd=ROOT, env=env).stdout.splitlines()[-1])
    assert len(said) > 10 and not [program for program, text in said.items() if "options:" not in text or Path(program).name not in text]


def test_readme_has_a_picture_and_a_program() -> None:
    text = README.read_text(encoding="utf-8")
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)\s]+)\)", text)
    assert pictures, "README shows no picture"
    for alt, target in pictures:
        assert alt.strip()
        if not re.match(r"[a-z]+:", target):
            assert (ROOT / target).is_file(), f"README shows {target}, which is missing"
    programs = python_fences(text)
    assert programs, "README has no Python program"
    lines = [x for x in programs[0].splitlines() if x.strip() and not x.strip().startswith("#")]
    assert len(lines) <= 15, f"the first program of README has {len(lines)} lines"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)", README.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:|#", target):
            assert (ROOT / target.partition("#")[0]).exists(), f"README links to {target}, which is missing"


def test_contributing_adds_a_callback() -> None:
    """Its worked example runs."""
    fences = re.findall(r"(?ms)^ *```python\n(.*?)^ *```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(fences) == 2
    assert "TimeLimit: seconds=0; pass" in run([sys.executable, "-c", "\n".join(map(textwrap.dedent, fences))], cwd=ROOT).stdout
