"""The command `coursekit`, as typed."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from coursekit.cli import doctor, lessons, train
from coursekit.deploy.page import runtime_place
from coursekit.cli.main import main
from coursekit.cli.notebooks import output_text
from coursekit.deploy.hub import HubError
from coursekit.training.learner import Learner
from coursekit.vision.models import WeightsError

COMMAND = [sys.executable, "-m", "coursekit"]


def coursekit(*args: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    path = {k: v for k, v in os.environ.items() if k == "PYTHONPATH"}
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=120, cwd=cwd,
                          env={"PATH": "/usr/bin:/bin", "HOME": "/tmp", **path, **env})  # fmt: skip


def invoke(*args: str | Path, **more: str) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args], prog_name="coursekit", **more)


def assert_one_line(done: Result, *, code: int = 1, says: str) -> None:
    """A user's error: the exit code, one line on the error channel, no traceback."""
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output and "unexpected " not in done.stderr, done.stderr
    assert says in " ".join(done.stderr.split()), done.stderr
    lines = done.stderr.splitlines()
    if code == 1:
        assert len(lines) == 1 and lines[0].startswith("coursekit: "), done.stderr
    else:  # the usage comes before, and click wraps what is long
        assert lines[0].startswith("Usage: coursekit ") and any(line.startswith("Error: ") for line in lines), done.stderr


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, six pictures each, of different pixels."""
    for name, colour in (("night", 40), ("day", 200)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (40, 30 + i), (colour + i, colour, 90)).save(folder / f"{name}{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """What people upload that is no picture."""
    folder = tmp_path / "spoilt"
    folder.mkdir()
    whole = io.BytesIO()
    Image.effect_noise((200, 150), 90).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:2000])
    (folder / "drawing.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "paper.jpg").write_bytes(b"%PDF-1.7\n")
    (folder / "empty.jpg").touch()
    return folder


BAD = {"cut.jpg": "is cut off", "drawing.png": "is an SVG drawing", "paper.jpg": "is a PDF", "empty.jpg": "is empty"}


# ---------------------------------------------------------------------------------------------------------- itself


def commands(group=main, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found.append((*above, name))
        if hasattr(command, "commands"):
            found += commands(command, (*above, name))
    return found


def test_the_commands_that_are_promised() -> None:
    assert set(commands()) == {("doctor",), ("lab",), ("lessons",), ("lessons", "copy"), ("run",), ("data",), ("data", "list"), ("data", "get"),
                               ("data", "clear"), ("train",), ("predict",), ("app",), ("export",), ("clean",)}


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_each_command_explains_itself(command: tuple[str, ...]) -> None:
    done = invoke(*command, "--help")
    assert done.exit_code == 0 and "Usage:" in done.output
    assert f"coursekit {' '.join(command)}" in done.output.split("Example", 1)[1], "the help shows no example"
    assert invoke(*command, "-h").output == done.output


def test_help_version_and_a_typo() -> None:
    for args in (["--help"], ["-h"]):
        done = invoke(*args)
        assert done.exit_code == 0 and "coursekit train photos/" in done.output
    assert "coursekit, version 0" in invoke("--version").output
    typo = invoke("docter")
    assert typo.exit_code == 2 and "Traceback" not in typo.output


def test_help_does_not_wait_for_torch() -> None:
    """`coursekit --help`, and the help of each command, import none of the large packages."""
    code = ("import sys\nfrom click.testing import CliRunner\nfrom coursekit.cli.main import main\n"
            f"for c in {[list(c) for c in commands()]!r}: assert CliRunner().invoke(main, [*c, '--help']).exit_code == 0\n"
            "print([m for m in ('torch', 'numpy', 'torchvision', 'pandas', 'matplotlib', 'timm', 'ipywidgets', 'voila') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_bug_is_one_line_and_a_traceback_with_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise KeyError("nobody thought of this")

    monkeypatch.setattr(doctor, "report", broken)
    done = invoke("doctor")
    assert done.exit_code == 1 and done.stderr.startswith("coursekit: unexpected KeyError: 'nobody thought of this'") and "--debug" in done.stderr
    assert isinstance(invoke("--debug", "doctor").exception, KeyError)


@pytest.mark.parametrize(("error", "said"), [
    (ValueError("a\nb"), "coursekit: a b"),
    (FileNotFoundError(2, "No such file or directory", "x.ck"), "coursekit: x.ck: No such file or directory"),
    (FloatingPointError("the loss is nan"), "coursekit: the loss is nan"),
    (MemoryError(), "coursekit: MemoryError"),
    (ValueError("a\x1b[2Jb"), "coursekit: a?[2Jb"),
    (WeightsError("no weights"), "coursekit: no weights"),
    (HubError("no repository"), "coursekit: no repository"),
])  # fmt: skip
def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def broken() -> list[str]:
        raise error

    monkeypatch.setattr(doctor, "report", broken)
    done = invoke("doctor")
    assert done.exit_code == 1 and done.stderr == said + "\n"


def test_control_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "report", stopped)
    done = invoke("doctor")
    assert done.exit_code == 130 and done.stderr == "coursekit: stopped\n"


def test_head_closes_the_pipe() -> None:
    """`coursekit data list | head -1`: one line, and no complaint."""
    done = subprocess.run(f"{' '.join(COMMAND)} data list | head -1", shell=True, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout.startswith("name") and len(done.stdout.splitlines()) == 1
    assert not done.stderr, done.stderr


# ---------------------------------------------------------------------------------------------------------- doctor


def test_doctor_as_typed(tmp_path: Path) -> None:
    done = coursekit("doctor", COURSEKIT_HOME=str(tmp_path), COURSEKIT_MIRROR=str(tmp_path / "nowhere"))
    assert done.returncode == 0 and not done.stderr, done.stderr
    first = [line.split()[0] for line in done.stdout.splitlines()]
    assert first[:10] == ["versions", "system", "processor", "device", "precision", "disk", "network", "files", "pages", "settings"]
    assert "-> COURSEKIT_MIRROR=" in done.stdout
    assert len(done.stdout.splitlines()) < 20 and max(map(len, done.stdout.splitlines())) < 300


def test_doctor_says_how_pages_can_be_exported_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "network", lambda: False)
    said = invoke("doctor").output
    assert re.search(r"(?m)^pages .* is not here yet", said) and "npm pack onnxruntime-web@" in said and str(tmp_path / "runtime") in said
    runtime_place().parent.mkdir()
    runtime_place().write_bytes(b"here")
    said = invoke("doctor").output
    assert re.search(r"(?m)^pages .* is here", said) and "npm pack" not in said


def test_precision_is_explained_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "precision_dtype", lambda device: None)
    assert doctor.precision_policy().startswith("float32, because")
    monkeypatch.setattr(doctor, "precision_dtype", lambda device: "bf16")
    assert doctor.precision_policy().startswith("bfloat16 autocast in training")


@pytest.mark.parametrize("env", [{"COURSEKIT_DEVICE": "gpu"}, {"COURSEKIT_DEVICE": "cuda"}, {"COURSEKIT_MIRROR": "https://me:secret@host/x"}], ids=str)
def test_doctor_survives_what_it_is_to_diagnose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "network", lambda: False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    done = invoke("doctor")
    assert done.exit_code == 0 and "Traceback" not in done.output and "secret" not in done.output
    if env.get("COURSEKIT_DEVICE") == "gpu":
        assert "-> COURSEKIT_DEVICE: device='gpu'" in done.output and "unset COURSEKIT_DEVICE" in done.output


def test_a_device_that_is_not_here(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSEKIT_DEVICE", "cuda:99")
    monkeypatch.setattr(doctor, "network", lambda: False)
    said = invoke("doctor").output
    assert "-> COURSEKIT_DEVICE: device='cuda:99'" in said and "unset COURSEKIT_DEVICE" in said
    assert_one_line(invoke("predict", "cifar10", photos), says="unset COURSEKIT_DEVICE, or use 'cpu'")


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "coursekit", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("coursekit, version ")


def test_doctor_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("COURSEKIT_HOME", str(blocked / "home"))
    monkeypatch.setattr(doctor, "network", lambda: False)
    done = invoke("doctor")
    assert done.exit_code == 0 and "COURSEKIT_HOME cannot be used" in done.output


# --------------------------------------------------------------------------------------------------------- lessons


def test_lessons_are_listed() -> None:
    done = invoke("lessons")
    assert done.exit_code == 0
    files = [line.split()[-1] for line in done.output.splitlines()[1:-1]]
    assert files == sorted(p.name for p in (ROOT / "nbs" / "lessons").glob("*.ipynb")) and files


def test_progress_survives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own stands for another kernel. What is wrong, answered late, or run by a tool does not count, and a damaged file is said once."""
    from coursekit.course import check, quiz

    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path))
    letters = ["abcde"[i] for right in (True, False) for i, c in enumerate(quiz(1).questions[0].choices) if c[2] is right][:2]
    row = lambda: next(line for line in invoke("lessons").output.splitlines() if line.endswith("01_image_classification.ipynb"))
    run = lambda answer, letter: (check("validation pictures", answer), quiz(1).answer(1, letter))
    run(405, letters[0])
    assert not (tmp_path / "progress.json").exists() and " 0/" in row()
    monkeypatch.setenv("COURSEKIT_PROGRESS", "on")
    code = f"from coursekit.course import check, quiz; check('validation pictures', 400), quiz(1).answer(1, {letters[1]!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert " 0/" in row() and " 1/" not in row()
    run(405, letters[0])
    assert row().count(" 1/") == 1 and row().count(" 0/") == 1, "the second answer to a question counts"
    assert "progress.json" in invoke("lessons").output
    (tmp_path / "progress.json").write_text('{"exercises": 3')
    with pytest.warns(UserWarning, match=r"progress\.damaged\.json"):
        assert " 0/" in row()
    assert (tmp_path / "progress.damaged.json").exists()
    run(405, letters[0])
    assert row().count(" 1/") == 2


def test_questions_have_different_texts() -> None:
    """Progress is kept by them."""
    from coursekit.course.exercises import content_files
    from coursekit.course.quiz import quiz

    asked = [q.ask for n in content_files("quiz") for q in quiz(n).questions]
    assert len(asked) == len(set(asked))


def test_clicks_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page sends is kept; what it cannot have sent is left alone."""
    from coursekit.course.progress import read_progress
    from coursekit.course.quiz import quiz, quiz_watcher

    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path))
    monkeypatch.setenv("COURSEKIT_PROGRESS", "on")
    asked, watcher = quiz(1), quiz_watcher(quiz(1))
    for content in ({"question": 1, "right": True}, {"question": 1, "right": False}, {"question": 0, "right": 1}, {"question": 99}, {"question": "x"}, {}):
        watcher.receive(watcher, content, [])
    assert read_progress()["quiz"] == {asked.questions[1].ask: True, asked.questions[0].ask: False}


def test_a_changed_lesson_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an update: what the reader has not touched is new, what was changed is as it was, and a clean copy can be had beside it."""
    old, new = ({"03_a.ipynb": f"a{v}", "04_b.ipynb": f"b{v}", "05_gone.ipynb": "c1"} for v in (1, 2))
    source, mine = tmp_path / "lessons", tmp_path / "mine"
    source.mkdir()
    monkeypatch.setattr(lessons, "lessons_folder", lambda: source)
    for files in (old, new):
        for name, text in files.items():
            (source / name).write_text(text)
        copied = lessons.copy_lessons(mine)
        if files is old:
            (mine / "03_a.ipynb").write_text("mine")
            (mine / "05_gone.ipynb").unlink()
    assert {p.name: p.read_text() for p in mine.glob("*.ipynb")} == {"03_a.ipynb": "mine", "04_b.ipynb": "b2", "05_gone.ipynb": "c1"}
    assert [p.name for p in copied] == ["04_b.ipynb", "05_gone.ipynb"]
    assert invoke("lessons", "copy", tmp_path / "clean").exit_code == 0
    assert (tmp_path / "clean" / "03_a.ipynb").read_text() == "a2" and (mine / "03_a.ipynb").read_text() == "mine"


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    import nbformat

    cells = [new_markdown_cell("# 3: Sums"), new_code_cell("x = 6 * 7"), new_code_cell("print('error_rate', x / 100)", metadata={"tags": ["results"]}),
             new_code_cell("open('made', 'w').close()")]  # fmt: skip
    nbformat.write(new_notebook(cells=cells), tmp_path / "03_sums.ipynb")
    return tmp_path / "03_sums.ipynb"


def test_run_prints_results(notebook: Path, tmp_path: Path) -> None:
    before = notebook.read_bytes()
    done = invoke("run", notebook, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "[1/3] x = 6 * 7" in done.output and "\n  error_rate 0.42\ndone in " in done.output
    assert notebook.read_bytes() == before and (tmp_path / "out" / "made").exists()
    executed = json.loads((tmp_path / "out" / notebook.name).read_text())
    assert output_text(executed["cells"][2]["outputs"][0]) == "error_rate 0.42\n"


def test_run_fails_shortly(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat

    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path / "home"))
    nb = nbformat.read(notebook, as_version=4)
    nb.cells[2].source = "import math\nmath.sqrt(-1)"
    nbformat.write(nb, notebook)
    done = invoke("run", notebook)
    assert done.exit_code == 1
    assert "code cell 2 of 3" in done.stderr and "math.sqrt(-1)" in done.stderr and "ValueError: " in done.stderr
    assert "Traceback" not in done.output and len(done.stderr.splitlines()) < 10, done.stderr
    (kept,) = (tmp_path / "home" / "runs").glob("03_sums-*/03_sums.ipynb")
    assert "Traceback" in kept.read_text(), "the whole traceback is not in the executed copy"


def test_what_is_no_lesson(tmp_path: Path) -> None:
    assert_one_line(invoke("run", "99"), says="'99'; the lessons are ")
    assert_one_line(invoke("run", "01_image_clasification"), says="did you mean '01_image_classification'?")
    (tmp_path / "bad.ipynb").write_text("no notebook")
    assert_one_line(invoke("run", tmp_path / "bad.ipynb", "--out", tmp_path / "out"), says="bad.ipynb")
    (tmp_path / "bad.ipynb").write_text('{"metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    assert_one_line(invoke("run", tmp_path / "bad.ipynb", "--out", tmp_path / "out"), says="bad.ipynb")
    assert_one_line(invoke("run", ""), says="notebook ''")
    assert_one_line(invoke("run", "1", "--timeout", "1.5"), code=2, says="'1.5' is not a valid integer")


def test_ctrl_c_while_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    """To the whole group, as a terminal sends it: no traceback, and what was run is kept."""
    import nbformat

    nb = nbformat.read(notebook, as_version=4)
    nb.cells[2].source = "import time\ntime.sleep(100)"
    nbformat.write(nb, notebook)
    run = subprocess.Popen([*COMMAND, "run", str(notebook), "--out", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True, start_new_session=True)
    assert run.stdout is not None
    said = ""
    while "[2/3]" not in said:
        more = run.stdout.read(1)
        assert more, said
        said += more
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130 and err.endswith("coursekit: stopped\n") and "Traceback" not in err, (run.returncode, out, err)  # old kernels warn first
    assert "executed copy: " in out
    kept = nbformat.read(tmp_path / "out" / notebook.name, as_version=4)
    assert next(c.execution_count for c in kept.cells if c.cell_type == "code") == 1 and kept.metadata["coursekit"]["failed"]


def test_the_list_survives_what_lies_in_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notebook: Path) -> None:
    from coursekit.cli.lessons import list_lessons, run_folder

    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path / "home"))
    first = list_lessons()[0]
    file = run_folder(first.path) / first.path.name
    file.parent.mkdir(parents=True)
    for text in ("no notebook", "[]", '{"cells": []}', '{"cells": [], "metadata": {"coursekit": 3}}', '{"cells": [], "metadata": {}}'):
        file.write_text(text)
        assert first.last_run == "not known" and invoke("lessons").exit_code == 0
    other = tmp_path / first.path.name  # somebody's notebook that is called like the lesson
    notebook.rename(other)
    assert run_folder(other) != run_folder(first.path)


def test_lab_finds_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """`!coursekit` in a notebook is found where the environment is not active."""
    monkeypatch.setenv("PATH", "/nowhere")
    program = "import os, shutil; assert shutil.which('coursekit'), os.environ['PATH']"
    if os.name == "posix":
        began: list[dict[str, str]] = []
        monkeypatch.setattr(lessons.os, "execve", lambda path, command, env: began.append(env))
        with pytest.raises(SystemExit) as e:  # the process was not replaced, so the other way follows
            lessons.replace_process([sys.executable, "-c", program])
        assert began[0]["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    else:
        with pytest.raises(SystemExit) as e:
            lessons.replace_process([sys.executable, "-c", program])
    assert e.value.code == 0


def test_lab_is_started_at_the_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(lessons, "replace_process", started.append)
    (tmp_path / "course").mkdir()
    (tmp_path / "course" / "01_image_classification.ipynb").write_text("mine")
    done = invoke("lab", tmp_path / "course", "--no-browser", "--port", "8899")
    assert done.exit_code == 0, done.output
    (command,) = started
    assert "--no-browser" in command and "--port=8899" in command and f"--ServerApp.root_dir={tmp_path / 'course'}" in command
    assert Path(command[-1]).parent == tmp_path / "course"
    assert (tmp_path / "course" / "01_image_classification.ipynb").read_text() == "mine", "a file of the reader's was written over"
    started.clear()
    monkeypatch.chdir(ROOT)
    assert invoke("lab").exit_code == 0 and Path(started[0][-1]).is_relative_to(ROOT / "nbs" / "lessons")


# ------------------------------------------------------------------------------------------------------------ data


def test_data_is_listed_made_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coursekit.samples import pets

    def few(folder: Path) -> None:
        (folder / "images").mkdir()
        (folder / "images" / "a.txt").write_text("drawn")

    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path))
    monkeypatch.setattr(pets, "make_paper_pets", few)
    made = invoke("data", "get", "pets")
    assert made.exit_code == 0, made.output
    folder = Path(made.stdout.splitlines()[-1])
    assert folder.is_relative_to(tmp_path) and (folder / "images" / "a.txt").is_file()
    (line,) = (x for x in invoke("data", "list").output.splitlines() if x.startswith("PETS "))
    assert "oxford-iiit-pet, 812 MB to download" in line and "Paper Pets" in line and line.endswith("stand-in 0.0 MB")
    asked = invoke("data", "clear", "PETS", input="n\n")
    assert asked.exit_code == 1 and folder.is_dir()
    silent = invoke("data", "clear", "PETS", input="")  # nobody there to answer
    assert silent.exit_code == 1 and folder.is_dir()
    assert invoke("data", "clear", "PETS", "--yes").exit_code == 0 and not folder.exists()
    assert "nothing to remove" in invoke("data", "clear").output


def test_clearing_stays_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path / "home"))
    outside = tmp_path / "mine"
    outside.mkdir()
    (outside / "photo.jpg").write_text("keep me")
    for part in ("samples", "data", "models", "runs", "own/photos-0123456789ab", "cache", "data/thesis"):
        (tmp_path / "home" / part).mkdir(parents=True)
    (tmp_path / "home" / "data" / ".camvid.json").write_text("{}")
    (tmp_path / "home" / "data" / "camvid").symlink_to(outside)
    (tmp_path / "home" / "models" / "w.pth").write_text("weights")
    (tmp_path / "home" / "own" / "photos-0123456789ab" / "a.png").write_bytes(bytes(200_000))
    (tmp_path / "home" / "cache" / "0f.samples").write_bytes(bytes(300_000))
    assert "unpacked 0.2 MB" in invoke("data", "list").output
    done = invoke("data", "clear", "--yes")
    assert done.exit_code == 0, done.output
    assert (outside / "photo.jpg").exists() and (tmp_path / "home" / "models" / "w.pth").exists() and not (tmp_path / "home" / "data" / "camvid").exists()
    assert not any((tmp_path / "home" / "own").iterdir()) and not any((tmp_path / "home" / "cache").iterdir())
    assert (tmp_path / "home" / "data" / "thesis").is_dir()  # COURSEKIT_HOME was somebody's folder before


def test_data_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path))
    assert_one_line(invoke("data", "get", "PET"), says="did you mean 'PETS'")
    assert_one_line(invoke("data", "get", "CAMVID_TINY"), says="coursekit data get CAMVID_TINY --real")
    monkeypatch.setenv("COURSEKIT_MIRROR", str(tmp_path / "nowhere"))
    assert_one_line(invoke("data", "get", "PETS", "--real"), says="COURSEKIT_MIRROR")
    assert "COURSEKIT_DATA=full" in invoke("data", "--help").output


# ----------------------------------------------------------------------------------------------------------- train


def test_train_and_predict(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model from a folder, the command that is offered next, and options before and after the arguments."""
    monkeypatch.chdir(tmp_path)
    done = invoke("train", "--size", "32", "photos", "--arch", "coursenet", "--epochs", "1", "--from-scratch", "--out", "m.ck", "--lr", "0.001")
    assert done.exit_code == 0, done.output
    said = done.output
    assert "day 6" in said and "coursenet from scratch: 1 epoch of one cycle, learning rate 0.001" in said and "error rate " in said
    following = said.splitlines()[-1].removeprefix("next: ").split()
    assert following[:3] == ["coursekit", "predict", "m.ck"] and Path(following[3]).is_relative_to("photos")
    told = invoke(*following[1:], "--top", "1")
    assert told.exit_code == 0 and told.output.startswith(following[3]) and ("day" in told.output.split()[1:] or "night" in told.output.split()[1:])
    again = invoke("train", "photos", "--out", "m.ck")
    assert_one_line(again, says="already exists; pass another name, or --overwrite")


def test_the_settings_reach_the_learner(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: dict[str, object] = {}

    def fine_tune(self: Learner, epochs: int, base_lr: float, **options: float) -> None:
        asked.update(epochs=epochs, base_lr=base_lr, size=self.dls.one_batch().x.shape[-1], bs=self.dls.bs,
                     cache=self.dls.train_ds.cache, n_valid=len(self.dls.valid_ds), **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "fine_tune", fine_tune)
    done = invoke("train", "photos", "--arch", "coursenet", "--size", "48", "--bs", "4", "--epochs", "7", "--cache", "none", "--valid-pct", "0.5")
    assert done.exit_code == 130 and not (tmp_path / "model.ck").exists()
    assert asked == {"epochs": 7, "base_lr": 8e-3, "lr_mult": 5, "size": 48, "bs": 4, "cache": None, "n_valid": 6}


def test_the_defaults_suit_photos(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: dict[str, object] = {}

    def fine_tune(self: Learner, epochs: int, base_lr: float, **options: float) -> None:
        asked.update(epochs=epochs, base_lr=base_lr, size=self.dls.one_batch().x.shape[-1], bs=self.dls.bs, arch=self.model.spec.arch, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "fine_tune", fine_tune)
    said = invoke("train", "photos").output
    assert asked == {"epochs": 60, "base_lr": 2e-3, "lr_mult": 100, "size": 128, "bs": asked["bs"], "arch": "efficientnet_lite0"}
    assert "efficientnet_lite0 from pretrained weights: 1 epoch for the new head, then 3 epochs, or more for a small set" in said


def test_ctrl_c_keeps_the_model(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = Learner.fit_one_cycle

    def stopped_in_the_second(self: Learner, epochs: int, *args: object, **options: object) -> None:
        whole(self, 1, *args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "fit_one_cycle", stopped_in_the_second)
    done = invoke("train", "photos", "--arch", "coursenet", "--size", "32", "--epochs", "9")
    assert done.exit_code == 130 and done.output.splitlines()[-2:] == ["stopped, wrote model.ck as trained so far", "coursekit: stopped"], done.output
    assert invoke("predict", "model.ck", "photos").exit_code == 0


def test_what_was_trained_is_written_before_anything_is_said_of_it(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(learn: Learner) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "result_lines", fails)
    assert invoke("train", "photos", "--arch", "coursenet", "--size", "32", "--epochs", "1", "--from-scratch").exit_code == 130
    assert invoke("predict", "model.ck", "photos").exit_code == 0


def test_weights_that_cannot_be_had(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("COURSEKIT_MIRROR", str(tmp_path))
    done = invoke("train", "photos", "--arch", "resnet18")
    assert_one_line(done, says="train from scratch with --from-scratch")
    assert "pretrained=" not in done.stderr and "vision_learner" not in done.stderr


def test_pictures_too_small_for_a_network(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("train", "photos", "--arch", "alexnet", "--size", "16", "--from-scratch")
    assert_one_line(done, says="alexnet cannot take")
    assert "--size 224" in done.stderr and "item_tfms" not in done.stderr


def test_names_that_steer_a_terminal_are_not_offered(photos: Path, tmp_path: Path) -> None:
    from coursekit.cli.train import next_line
    from coursekit.vision.plan import plan_data

    (photos / "day").rename(photos / "d\x1b[31may")
    (photos / "night").rename(photos / "n\x1b[31might")
    plan = plan_data(photos)
    assert next_line(plan, tmp_path / "m.ck") == ""
    (photos / "n\x1b[31might").rename(photos / "night")
    plan = plan_data(photos)
    assert "/night/night" in next_line(plan, tmp_path / "m.ck")
    for file in (photos / "night").iterdir():
        file.unlink()
    assert next_line(plan, tmp_path / "m.ck") == "", "a file is offered that is not there any more"


def test_a_dry_run_writes_nothing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("photos.zip", "w") as z:
        for file in photos.rglob("*.png"):
            z.write(file, file.relative_to(photos))
    Path("labels.csv").write_text("name,kind\n" + "".join(f"photos/{f.parent.name}/{f.name},{f.parent.name}\n" for f in sorted(photos.rglob("*.png"))))
    Path("model.ck").write_text("an older one")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path.parent / f"{tmp_path.name}-home"))
    for source in ("photos", "photos.zip", "labels.csv"):
        done = invoke("train", source, "--dry-run")
        assert done.exit_code == 0 and "day 6, night 6" in done.output, done.output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("args", "code", "says"), [
    (["--size", "7"], 2, "7 is not in the range"),
    (["--epochs", "0"], 2, "0 is not in the range"),
    (["--epochs", "many"], 2, "'many' is not a valid integer"),
    (["--lr", "-1"], 2, "-1.0 is not in the range"),
    (["--seed", "1" + 23 * "0"], 2, "is not in the range"),
    (["--arch", "resnet19"], 1, "did you mean 'resnet18'"),
    (["--cache", "ram"], 2, "'ram' is not one of"),
    (["--out", "nowhere/model.ck"], 1, "cannot write to the folder"),
    (["--out", "."], 1, "is a folder"),
    (["--out", "model.onnx"], 1, "does not end in .ck"),
    (["--epoch", "3"], 2, "--epochs"),
    (["--pat", "("], 1, "pat='('"),
])  # fmt: skip
def test_bad_options_of_train(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], code: int, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line(invoke("train", "photos", *args), code=code, says=says)
    assert not (tmp_path / "model.ck").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that even root cannot write to")
def test_a_folder_that_cannot_be_written(photos: Path) -> None:
    assert_one_line(invoke("train", photos, "--out", "/proc/m.ck"), says="/proc")


def test_nothing_to_learn_from(tmp_path: Path, spoilt: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "m.ck"
    assert_one_line(invoke("train", tmp_path / "nowhere", "--out", out), code=2, says="does not exist")
    assert_one_line(invoke("train", tmp_path / "empty", "--out", out), says="no images")
    assert_one_line(invoke("train", spoilt / "paper.jpg", "--out", out), says="paper.jpg")
    one = tmp_path / "one" / "only"
    one.mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(one / f"{i}.png")
    assert_one_line(invoke("train", tmp_path / "one", "--out", out), says="class")
    assert not out.exists()


# --------------------------------------------------------------------------------------------------------- predict


def test_bad_files_are_named_and_the_others_predicted(photos: Path, spoilt: Path, tmp_path: Path) -> None:
    done = invoke("predict", "cifar10", spoilt, photos / "day", tmp_path / "no.jpg", f"{photos}/**/night1.png", "--json", "--top", "2")
    assert done.exit_code == 1
    told = {Path(x["file"]).name: x for x in map(json.loads, done.stdout.splitlines())}
    assert {n for n, x in told.items() if "error" in x} == {*BAD, "no.jpg"}
    assert all(isinstance(x["prediction"], str) for x in told.values() if "error" not in x)
    good = [x for x in told.values() if "error" not in x]
    assert len(good) == 7 and all(len(x["top"]) == 2 and x["prediction"] == x["top"][0]["class"] for x in good)
    for name, why in {**BAD, "no.jpg": "does not exist"}.items():
        assert why in told[name]["error"]
        assert any(name in line and why in line for line in done.stderr.splitlines()), done.stderr
    assert "Traceback" not in done.output


def test_predictions_for_people(photos: Path) -> None:
    rows = list(map(json.loads, invoke("predict", "cifar10", photos, "--json").stdout.splitlines()))
    table = [line.split() for line in invoke("predict", "cifar10", photos).stdout.splitlines()]
    assert len(rows) == 12 and [line[:2] for line in table] == [[r["file"], r["prediction"]] for r in rows]


def test_names_that_steer_a_terminal(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a\x1b[31m\n.png")
    done = invoke("predict", "cifar10", tmp_path)
    assert done.exit_code == 0 and "\x1b" not in done.output and len(done.output.splitlines()) == 1


def test_folders_and_patterns_without_pictures(tmp_path: Path) -> None:
    done = invoke("predict", "cifar10", tmp_path, f"{tmp_path}/*.jpg")
    assert done.exit_code == 1 and "is a folder without images" in done.stderr and "does not match any file" in done.stderr
    told = list(map(json.loads, invoke("predict", "cifar10", tmp_path, f"{tmp_path}/*.jpg", "--json").stdout.splitlines()))
    assert told == [{"file": str(tmp_path), "error": "is a folder without images"}, {"file": f"{tmp_path}/*.jpg", "error": "does not match any file"}]
    assert invoke("predict", "cifar10").exit_code == 2


def test_a_folder_is_no_model(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder called cifar10 lies about; the model of that name is there all the same."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()
    assert invoke("predict", "cifar10", photos / "day" / "day0.png").exit_code == 0


@pytest.mark.parametrize("content", [b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x94.", b"PK\x03\x04" + bytes(40), b"hello", b""],
                         ids=["pickle", "zip", "text", "empty"])
def test_models_that_are_none(tmp_path: Path, photos: Path, content: bytes) -> None:
    (tmp_path / "model.ck").write_bytes(content)
    for args in (["predict", tmp_path / "model.ck", photos], ["app", tmp_path / "model.ck", "--no-browser", "--port", "0"]):
        assert_one_line(invoke(*args), says="model.ck")


def test_no_model(tmp_path: Path, photos: Path) -> None:
    assert_one_line(invoke("predict", "cifar11", photos), says="did you mean 'cifar10'?")
    assert_one_line(invoke("predict", tmp_path, photos), says="is a folder")


# ----------------------------------------------------------------------------------------------------- clean, app


def test_clean(photos: Path, spoilt: Path, tmp_path: Path) -> None:
    (photos / "night" / "copy.png").write_bytes((photos / "night" / "night2.png").read_bytes())
    for file in spoilt.iterdir():
        file.rename(photos / "day" / file.name)
    found = invoke("clean", photos)
    bad = [line.removeprefix("bad   day/").split(": ", 1) for line in found.output.splitlines() if line.startswith("bad ")]
    assert found.exit_code == 1 and {name: why.split(" (")[0].split(", not")[0] for name, why in bad} == BAD
    assert "same  night/copy.png = night/night2.png" in found.output and "moved" not in found.output
    assert_one_line(invoke("clean", photos, "--move-to", photos / "bin"), says="pass a folder outside it")
    moved = invoke("clean", photos, "--move-to", tmp_path / "bin", "--copies")
    assert moved.exit_code == 0, moved.output
    assert {str(p.relative_to(tmp_path / "bin")) for p in (tmp_path / "bin").rglob("*.*")} == {*(f"day/{n}" for n in BAD), "night/night2.png"}
    again = invoke("clean", photos)
    assert again.exit_code == 0 and "12 files: 0 bad, 0 spare copies" in again.output
    assert_one_line(invoke("clean", tmp_path / "nowhere"), code=2, says="does not exist")
    (tmp_path / "empty").mkdir()
    assert_one_line(invoke("clean", tmp_path / "empty"), says="contains no images")


def test_clean_and_links(photos: Path, tmp_path: Path) -> None:
    """A link is no copy, and a file that is reached through one lies elsewhere: neither is moved."""
    real, outside = photos / "day" / "day0.png", tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "mine.png").write_text("not a picture, and not in the folder")
    (photos / "alias.png").symlink_to(real)
    (photos / "linked").symlink_to(outside)
    (photos / "again").symlink_to(photos / "night")
    done = invoke("clean", photos, "--move-to", tmp_path / "bin", "--copies")
    assert done.exit_code == 0 and "12 files: 0 bad, 0 spare copies; 2 links left out; 0 moved" in done.output, done.output
    assert real.exists() and (outside / "mine.png").exists() and (photos / "alias.png").is_symlink()


def test_clean_tells_what_was_moved_before_an_error(photos: Path, spoilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coursekit.cli import clean

    move, moved = clean.move_file, []

    def full(old: Path, new: Path) -> None:
        if len(moved) == 2:
            raise OSError(28, "No space left on device", str(new))
        moved.append(old)
        move(old, new)

    monkeypatch.setattr(clean, "move_file", full)
    done = invoke("clean", spoilt, "--move-to", tmp_path / "bin")
    assert done.exit_code == 1 and [x.split()[1] for x in done.stdout.splitlines()] == [f.name for f in moved] and len(moved) == 2
    assert_one_line(done, says="No space left on device")
    assert_one_line(invoke("clean", photos, "--copies"), code=2, says="--move-to FOLDER")


def test_addresses() -> None:
    assert_one_line(invoke("app", "cifar10", "--ip", "192.0.2.1", "--port", "0", "--no-browser"), says="of 192.0.2.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_one_line(invoke("app", "cifar10", "--port", str(port), "--no-browser"), says=f"port {port} of 127.0.0.1")


def test_app_says_why_a_model_is_not_for_a_page(tmp_path: Path) -> None:
    """And what to do instead; nothing is served."""
    rows = [f"{i % 7},{i % 3},{'yes' if i % 7 > 3 else 'no'}" for i in range(80)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,y", *rows]))
    done = invoke("train", tmp_path / "t.csv", "--target", "y", "--epochs", "1", "--out", tmp_path / "t.ck")
    assert done.exit_code == 0, done.output
    assert_one_line(invoke("app", tmp_path / "t.ck", "--port", "0", "--no-browser"), says="a page reads images")
