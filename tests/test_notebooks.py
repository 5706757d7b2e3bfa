"""Every notebook runs from top to bottom, and is committed as it should be.

Lessons get a kernel each. API notebooks get a namespace each, and a folder of them one process: importing PyTorch takes longer than most.
"""

from __future__ import annotations

import sys
from pathlib import Path

import notebooks as nbtool
import pytest
from helpers import NBS, ROOT, name_of, notebooks, run, tool

API = notebooks("api")
LESSONS = notebooks("lessons")
SOLUTIONS = notebooks("solutions")
INDEX = [NBS / "index.ipynb"]
CELL_TIMEOUT = 600  # seconds a cell


def of(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=name_of)


def test_there_are_notebooks() -> None:
    assert API, "nbs/api holds no notebook"
    assert LESSONS, "nbs/lessons holds no notebook"
    assert SOLUTIONS, "nbs/solutions holds no notebook"
    assert INDEX[0].is_file(), "nbs/index.ipynb is missing"


@of(sorted({path.parent for path in API}))
def test_api_notebooks_run(path: Path, tmp_path: Path) -> None:
    only_here = ["--skip_folder_re", "."]
    run([tool("nbdev_test"), "--path", str(path), *only_here, "--n_workers", "0", "--do_print"], cwd=ROOT, env={"TMPDIR": str(tmp_path)})


@of(LESSONS + SOLUTIONS + INDEX)
def test_lesson_runs(path: Path, tmp_path: Path) -> None:
    cpu = nbtool.cpu_seconds()
    nb, seconds = nbtool.run_notebook(path, out=tmp_path, timeout=CELL_TIMEOUT)
    for line in nbtool.results(nb):
        print(line)
    print(f"{name_of(path)}: {seconds:.0f} s, {nbtool.cpu_seconds() - cpu:.0f} s of CPU")
    assert not nbtool.check_outputs(nb), "\n".join(nbtool.check_outputs(nb))


def test_notebooks_are_committed_clean() -> None:
    run([sys.executable, "tools/notebooks.py", "check", "nbs"], cwd=ROOT)
