"""Small things that several tests need."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "coursekit"
NBS = ROOT / "nbs"
HAND_WRITTEN = ("__init__.py", "__main__.py", "all.py")  # names of modules that no notebook exports


def notebooks(*folders: str) -> list[Path]:
    """The notebooks in these folders of nbs/, sorted."""
    found = [p for folder in folders for p in sorted((NBS / folder).rglob("*.ipynb"))]
    return [p for p in found if not p.name.startswith((".", "_"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(NBS))


def repository_files() -> list[Path]:
    """What git tracks or would track, relative to the repository: the working tree without what is ignored."""
    listed = run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT).stdout
    return sorted({Path(p) for p in listed.split("\0") if p and (ROOT / p).is_file()})


def copy_repository(target: Path) -> Path:
    for path in repository_files():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)
    return target


def modules() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "_modidx.py"]


def module_name(path: Path) -> str:
    """coursekit/data/load.py -> data.load; a package's __init__ has the package's name; the top one is ''."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None,
        timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run to the end; a failure shows what the program printed."""
    full = {**os.environ, **(env or {})}
    done = subprocess.run(command, cwd=cwd, env=full, capture_output=True, text=True, timeout=timeout)
    shown = (done.stdout + done.stderr)[-4000:]
    said = " ".join(command).strip().replace("\n", "; ")[:200]
    assert done.returncode == 0, f"{said}: exit status {done.returncode}\n{shown}"
    return done


def tool(name: str) -> str:
    """A program of the environment that runs the tests."""
    return str(Path(sys.executable).parent / name)


def python_fences(markdown: str) -> list[str]:
    return re.findall(r"(?ms)^```python\n(.*?)^```", markdown)


def real_photo(folder: Path) -> Path:
    """A photo of the mirror where that is beside the repository, else a drawn pet."""
    import tarfile

    archive = (ROOT / ".." / "shared" / "data" / "oxford-iiit-pet.tgz").resolve()
    if archive.is_file():
        with tarfile.open(archive) as tar:
            member = next(m for m in tar if m.name.endswith("_1.jpg") or m.name.endswith("0.jpg"))
            file = tar.extractfile(member)
            assert file is not None
            path = folder / Path(member.name).name
            path.write_bytes(file.read())
            return path
    from coursekit.data.download import URLs, course_data
    from coursekit.data.items import get_image_files

    return get_image_files(course_data(URLs.PETS) / "images")[0]


def rough_photos(folder: Path, size: tuple[int, int]) -> Path:
    """Twelve pictures of random patches in `folder`, named a_0.png, b_1.png, a_2.png, ..."""
    import numpy as np
    from PIL import Image

    r = np.random.default_rng(1)
    for i in range(12):
        Image.fromarray(r.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size).save(folder / f"{'ab'[i % 2]}_{i}.png")
    return folder


def plain_repr(value: object) -> str:
    """repr without addresses in memory, for the ids of tests: every process has to call a test the same."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def says(error: object, *facts: object) -> None:
    """A message, or an error's, names every fact (an argument, its value, the fix) as a whole word, in whatever sentence."""
    text = str(error.value if isinstance(error, pytest.ExceptionInfo) else error)
    left_out = [str(f) for f in facts if not re.search(rf"(?<!\w){re.escape(str(f))}(?!\w)", text)]
    assert not left_out, f"the message leaves out {left_out}: {text}"


@contextlib.contextmanager
def raises(kind: type[BaseException], *facts: object) -> Iterator[None]:
    """`pytest.raises`, for an error that names these facts."""
    with pytest.raises(kind) as error:
        yield
    says(error, *facts)
