"""The wheel, installed where nothing but its own requirements is to be seen, runs the program of the README."""

from __future__ import annotations

import json
import sys
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from helpers import PACKAGE, ROOT, copy_repository, module_name, modules, notebooks, python_fences, run
from packaging.requirements import Requirement

NOT_THERE = ("nbdev", "fastcore", "execnb", "jupyterlab", "notebook", "ipykernel", "nbclient", "pytest", "sklearn",
             "playwright", "hypothesis", "mypy")


def closure(names: list[str]) -> dict[str, Distribution]:
    """The installed distributions that these requirements bring, by name, extras left out."""
    found: dict[str, Distribution] = {}
    todo = [Requirement(n) for n in names]
    while todo:
        need = todo.pop()
        name = need.name.lower().replace("_", "-").replace(".", "-")
        wanted = need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *need.extras))
        if not wanted or (name in found and not need.extras):
            continue
        try:
            found[name] = distribution(need.name)
        except PackageNotFoundError:
            continue
        for line in found[name].requires or []:
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in ("", *need.extras)):
                inner.marker = None
                todo.append(inner)
    return found


def link_packages(dists: dict[str, Distribution], folder: Path) -> None:
    """A folder in which exactly these distributions are seen, each top entry a link to the installed one."""
    folder.mkdir()
    for dist in dists.values():
        for file in dist.files or []:
            top = file.parts[0]
            if top in ("..", "__pycache__") or top.endswith(".pth") or (folder / top).exists():
                continue
            (folder / top).symlink_to(Path(str(dist.locate_file(top))).resolve())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("wheel")
    source = copy_repository(base / "source")
    run([sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "--wheel-dir",
         str(base / "dist"), str(source)])
    (made,) = (base / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """The Python of an empty environment into which pip has installed the wheel, no network used."""
    base = wheel.parent.parent
    requirements = [Requirement(r) for r in metadata(wheel).get_all("Requires-Dist") or []]
    runtime = [str(r) for r in requirements if r.marker is None]
    link_packages(closure(runtime), base / "site")
    run([sys.executable, "-m", "venv", "--without-pip", str(base / "env")])
    python = base / "env" / "bin" / "python"
    (site,) = (base / "env" / "lib").glob("python*/site-packages")
    (site / "requirements.pth").write_text(f"{base / 'site'}\n")
    # With --no-index every requirement has to be met by what is there: pip fails where one is missing or too old.
    run([sys.executable, "-m", "pip", "--python", str(python), "install", "-qq", "--no-index", "--no-compile", str(wheel)], cwd=base)
    return python


def metadata(wheel: Path):  # type: ignore[no-untyped-def]
    from email.parser import Parser

    with zipfile.ZipFile(wheel) as z:
        (name,) = (n for n in z.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(z.read(name).decode())


def test_wheel_holds_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as z:
        held = set(z.namelist())
        size = sum(i.file_size for i in z.infolist())
    wanted = {str(p.relative_to(ROOT)) for p in PACKAGE.rglob("*")
              if p.is_file() and p.suffix in (".py", ".json", ".safetensors", ".yaml", ".js", ".css", ".html")}
    assert wanted <= held, sorted(wanted - held)
    others = {n for n in held if not n.startswith("coursekit/") and ".dist-info/" not in n}
    assert not others, f"the wheel holds more than the package: {sorted(others)}"
    assert size < 20_000_000


def test_wheel_holds_the_lessons(wheel: Path) -> None:
    """Without outputs, and small: `coursekit lab` copies them where there is no checkout."""
    with zipfile.ZipFile(wheel) as z:
        held = {n: z.getinfo(n).file_size for n in z.namelist() if n.startswith("coursekit/lesson_files/")}
        notebook = json.loads(z.read("coursekit/lesson_files/01_image_classification.ipynb"))
    wanted = {f"coursekit/lesson_files/{p.name}" for p in notebooks("lessons")} | {
        f"coursekit/lesson_files/solutions/{p.name}" for p in notebooks("solutions")}
    assert set(held) == wanted
    assert sum(held.values()) < 3_000_000
    assert not any(c.get("outputs") for c in notebook["cells"]) and any(c["cell_type"] == "code" for c in notebook["cells"])


def test_lessons_of_the_wheel(python: Path, tmp_path: Path) -> None:
    """Installed, away from any checkout: the lessons are listed and copied."""
    env = {"PYTHONPATH": "", "COURSEKIT_HOME": str(tmp_path / "home")}
    listed = run([str(python.with_name("coursekit")), "lessons"], cwd=tmp_path, env=env).stdout
    assert "01_image_classification.ipynb" in listed and "lesson_files" in listed
    copy = "from coursekit.cli.lessons import Path, copy_lessons; print(len(copy_lessons(Path('course'))))"
    assert int(run([str(python), "-c", copy], cwd=tmp_path, env=env).stdout) == len(notebooks("lessons", "solutions"))
    assert (tmp_path / "course" / "01_image_classification.ipynb").is_file()


def test_wheel_says_what_it_is(wheel: Path) -> None:
    about = metadata(wheel)
    assert about["Name"] == "coursekit"
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Requires-Python"] == ">=3.10"
    assert set(about.get_all("Provides-Extra")) == {"course", "dev", "docs", "onnx"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert readme in about.get_payload().replace("\r\n", "\n")


def test_nothing_else_is_there(python: Path) -> None:
    probe = f"import importlib.util as u; print([m for m in {NOT_THERE!r} if u.find_spec(m)])"
    assert run([str(python), "-c", probe]).stdout.strip() == "[]"


def test_every_module_imports(python: Path) -> None:
    names = [f"coursekit.{module_name(p)}".rstrip(".") for p in modules()]
    probe = f"import importlib, coursekit\nfor n in {names!r}: importlib.import_module(n)\nprint(coursekit.__file__)"
    where = run([str(python), "-c", probe], cwd=python.parent).stdout.strip()
    assert Path(where).is_relative_to(python.parent.parent), f"imported from {where}"


def test_readme_program_runs(python: Path, tmp_path: Path) -> None:
    """On a few of its images: nbs/index.ipynb has all of them."""
    programs = python_fences((ROOT / "README.md").read_text(encoding="utf-8"))
    assert programs, "README has no Python program"
    script = tmp_path / "ten_lines.py"
    few = programs[0].replace("get_image_files(path)", "get_image_files(path)[::16]")
    assert few != programs[0]
    script.write_text(few, encoding="utf-8")
    done = run([str(python), str(script)], cwd=tmp_path, env={"PYTHONPATH": ""}, timeout=600)
    print(done.stdout[-1500:])
