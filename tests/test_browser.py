"""A person's way: JupyterLab in a browser, run all, upload a picture, read what it says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import nbformat
import notebooks as nbtool
import numpy as np
import pytest
from bad_inputs import HOSTILE, make_hostile_classes
from browser import Lab, LabNotebook, chromium_of, lab_page, lab_server
from helpers import NBS, real_photo
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from coursekit.vision.data import ImageDataLoaders
from coursekit.vision.learner import pretrained
from coursekit.vision.resize import Resize

LESSON_1 = NBS / "lessons" / "01_image_classification.ipynb"

UPLOADER = """
import io
import ipywidgets as widgets
from IPython.display import display
from PIL import Image

upload, result = widgets.FileUpload(accept="image/*"), widgets.Label("nothing yet")

def looked_at(change):
    for file in upload.value:
        try:
            picture = Image.open(io.BytesIO(bytes(file["content"])))
            result.value = f"{file['name']}: {picture.width} x {picture.height}"
        except Exception as error:
            result.value = f"{file['name']} is no picture ({type(error).__name__})"

upload.observe(looked_at, names="value")
display(widgets.VBox([upload, result]))
"""


def write_notebook(path: Path, *sources: str) -> Path:
    nb = new_notebook(cells=[new_markdown_cell("# Upload"), *(new_code_cell(s.strip()) for s in sources)])
    nb.metadata["kernelspec"] = dict(nbtool.KERNELSPEC)
    nbtool.write(nb, path)
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One JupyterLab for all; each test has a folder of its own in it."""
    with lab_server(tmp_path_factory.mktemp("lab")) as found:
        yield found


@pytest.fixture(scope="module")
def context(chromium: str) -> Iterator[Any]:
    with chromium_of(chromium) as found:
        yield found


@pytest.fixture
def desk(lab: Lab, request: pytest.FixtureRequest) -> Path:
    """Where the notebook of a test and its files lie."""
    (path := lab.folder / request.node.name).mkdir()
    return path


def opened(context: Any, lab: Lab, notebook: Path) -> AbstractContextManager[Any]:
    return lab_page(context, lab, notebook.relative_to(lab.folder).as_posix())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 48), (200, 120, 40)).save(path)
    return path


def test_upload_widget(context: Any, lab: Lab, desk: Path, tmp_path: Path, photo: Path) -> None:
    """Run, uploaded to, restarted; and a cell that fails is reported."""
    last = "import math, pathlib\nprint('the last cell')\nif pathlib.Path('fail').exists(): math.sqrt(-1)"
    notebook = write_notebook(desk / "upload.ipynb", UPLOADER, last)
    (tmp_path / "note.png").write_text("no picture at all")
    with opened(context, lab, notebook) as page:
        nb = LabNotebook(page)
        nb.run_all(timeout=120)
        assert "the last cell" in nb.shown()
        nb.upload(photo)
        nb.wait_shown("photo.png: 64 x 48")
        nb.upload(tmp_path / "note.png")
        nb.wait_shown("note.png is no picture")
        (desk / "fail").touch()
        with pytest.raises(AssertionError, match="ValueError"):
            nb.restart_and_run_all(timeout=120)
        nb.wait_shown("nothing yet")


def test_the_beginning_of_lesson_1_in_the_lab(context: Any, lab: Lab, desk: Path, tmp_path: Path) -> None:
    """The first cells of lesson 1, which a few of its images are enough for, and its two widgets, as a reader runs them; then a photo through the file chooser."""
    code = [c.source for c in nbtool.read(LESSON_1).cells if c.cell_type == "code"]
    assert "cat_learn.fine_tune(1)" in code[1] and any("upload_and_predict(namer)" in source for source in code)
    few = code[1].replace("get_image_files(path)", "get_image_files(path)[::16]")
    assert few != code[1]
    lesson = write_notebook(desk / LESSON_1.name, code[0], few, code[2], "upload_and_predict(cat_learn)", "namer = pretrained('imagenet')\nupload_and_predict(namer)")
    photo = real_photo(tmp_path)
    (tmp_path / "note.jpg").write_text("no picture at all")
    with opened(context, lab, lesson) as page:
        nb = LabNotebook(page)
        nb.run_all(timeout=600)
        made = nbformat.from_dict({**nbtool.read(lesson), "cells": nb.cells()})
        home = os.environ["COURSEKIT_HOME"]  # of this run: it is named, as a reader's own would be
        odd = [x for x in nbtool.check_outputs(made) if "a widget view" not in x and not home.startswith(x.rpartition(": ")[2])]  # widgets are what this is about
        assert not odd, "\n".join(odd)
        for index, names in enumerate((["cat", "dog"], pretrained("imagenet").dls.vocab)):
            before = page.locator(".ck-result").count()
            nb.choose(photo, tmp_path / "note.jpg", index=index)
            page.wait_for_function(f"document.querySelectorAll('.ck-result').length === {before + 1}")
            result = page.locator(".ck-result").nth(index)
            said = result.inner_text()
            assert photo.name in said and any(name in said.replace(photo.name, "") for name in names), said
            assert result.locator("img").first.evaluate("img => img.complete && img.naturalWidth > 50")
            page.wait_for_function(f"document.querySelectorAll('.ck-bad').length === {index + 1}")
        assert nb.shown().count("note.jpg is plain text") == 2
        nb.screenshot(tmp_path / "lesson.png")


def test_a_quiz_in_the_lab_is_remembered(context: Any, lab: Lab, desk: Path, tmp_path: Path) -> None:
    """Clicks reach the kernel: the first choice of each question counts, and a restarted kernel knows it."""
    home = tmp_path / "home"
    setup = f"import os\nos.environ |= {{'COURSEKIT_HOME': {str(home)!r}, 'COURSEKIT_PROGRESS': 'on'}}"
    seen = "from coursekit.course.progress import read_progress\nprint('right:', sorted(read_progress()['quiz'].values()))"
    with opened(context, lab, write_notebook(desk / "quiz.ipynb", setup, seen, "from coursekit.course import quiz\nquiz(1)")) as page:
        nb = LabNotebook(page)
        nb.run_all(timeout=120)
        assert "right: []" in nb.shown()
        questions = page.locator(".ck-quiz ol > li")
        for index, kind in ((0, "ck-right"), (1, "ck-wrong"), (1, "ck-right")):
            questions.nth(index).locator(f"details.{kind} summary").first.click()
        for _ in range(100):
            if (home / "progress.json").exists() and (home / "progress.json").read_text(encoding="utf-8").count(": ") == 4:  # two parts, two questions
                break
            page.wait_for_timeout(100)
        nb.restart_and_run_all(timeout=120)
        nb.wait_shown("right: [False, True]")


# A network with random weights and class names that would run a script where they are not escaped.
TINY = """
from coursekit.vision.all import *
dls = ImageDataLoaders.from_folder("classes", valid_pct=0.34, seed=1, item_tfms=Resize(32), bs=4, num_workers=0)
learn = vision_learner(dls, "coursenet", pretrained=False, seed=0)
"""
HEAT = "heat = lambda learn, img: img.convert('L').convert('RGB')"


def phone_photo(path: Path) -> Path:
    """Noise and light as a camera gives them, lying on its side with a note to turn it."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:1200, 0:1600] / 1600
    light = np.stack([x, y, (x + y) / 2], 2) * 200 + rng.normal(20, 8, (1200, 1600, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(light.clip(0, 255).astype(np.uint8)).save(path, exif=exif, quality=90)
    return path


def images(page: Any) -> list[tuple[int, int, str]]:
    """Natural size and alternative text of each picture that the widgets show."""
    script = "[...document.querySelectorAll('.ck-result img')].map(i => [i.complete && i.naturalWidth, i.naturalHeight, i.alt])"
    return [tuple(x) for x in page.evaluate(script)]


def test_upload_and_predict(context: Any, lab: Lab, desk: Path, tmp_path: Path) -> None:
    """Pictures chosen and dropped: seen upright, named, with bars and heat map; bad ones are lines; no name runs a script."""
    make_hostile_classes(desk / "classes")
    phone, hostile = phone_photo(tmp_path / "phone.jpg"), tmp_path / f"{HOSTILE}.png"
    Image.new("RGB", (40, 30), "red").save(hostile)
    (tmp_path / "note.jpg").write_text("no picture at all")
    widgets = "upload_and_predict(learn, heatmap=heat)", "upload_and_predict(learn, uploader='plain')"
    with opened(context, lab, write_notebook(desk / "upload.ipynb", TINY, HEAT, *widgets)) as page:
        ran: list[str] = []
        page.on("dialog", lambda d: (ran.append(d.message), d.dismiss()))
        nb = LabNotebook(page)
        nb.run_all(timeout=120)
        nb.choose(phone, tmp_path / "note.jpg", hostile)
        page.locator(".ck-result").nth(1).wait_for()
        said = nb.wait_shown("note.jpg is plain text")
        page.wait_for_function("[...document.querySelectorAll('.ck-result img')].every(i => i.complete)")
        assert [size for *size, _ in images(page)] == [[40, 30], [480, 640]]  # newest first, turned upright
        assert said.count(HOSTILE) >= 3 and said.count("%") == 4 and "plain" in said
        page.get_by_role("button", name="Heat map").first.click()
        page.wait_for_function("[...document.querySelectorAll('.ck-result img')].every(i => i.alt.endsWith('heat map'))")
        nb.drop("film.mp4", size=500 * 2**20)
        nb.wait_shown("film.mp4 has 524.3 MB, more than")
        nb.drop("dropped.svg", content="<svg onload='alert(1)'></svg>")
        nb.wait_shown("dropped.svg is an SVG drawing")
        spoken = [page.locator(f".ck-voice [role={role}]").first.inner_text() for role in ("status", "alert")]
        assert spoken[0].startswith("phone.jpg: ") and "note.jpg is plain text" in spoken[1] and "film.mp4 has" in spoken[1]
        page.locator(".ck-drop").first.dispatch_event("drop", {"dataTransfer": page.evaluate_handle("new DataTransfer()")})
        nb.wait_shown("Save the image to your disk first")
        page.evaluate("""() => {
            const media = navigator.mediaDevices, open = media.getUserMedia.bind(media);
            window.streams = 0;
            media.getUserMedia = what => { window.streams += 1; return open(what); };
        }""")
        page.get_by_role("button", name="Camera").dblclick()
        page.get_by_role("button", name="Take the photo").click()
        page.locator(".ck-result").nth(2).wait_for()
        assert nb.shown().count("camera 1.jpg") == 1 and images(page)[0][0] > 0 and page.evaluate("window.streams") == 1
        page.get_by_role("button", name="Clear").first.click()
        page.wait_for_function("document.querySelectorAll('.ck-result, .ck-bad').length === 0")
        nb.upload(phone, tmp_path / "note.jpg", hostile)  # ipywidgets' own button
        page.locator(".ck-result").nth(1).wait_for()
        nb.wait_shown("note.jpg is plain text")
        assert [size for *size, _ in images(page)] == [[40, 30], [480, 640]]
        assert not ran


def test_cleaner_and_explorer(context: Any, lab: Lab, desk: Path) -> None:
    """Choices stay when class and set are changed; nothing moves before Apply is confirmed; it can be taken back. And the explorer."""
    folder = make_hostile_classes(desk / "classes")
    notebook = write_notebook(desk / "clean.ipynb", TINY, "cleaner = ImageClassifierCleaner(learn, max_n=4)\ncleaner", "lr_explorer(lr=0.09)")

    def lying() -> list[str]:
        return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))

    before = lying()
    split = ImageDataLoaders.from_folder(folder, valid_pct=0.34, seed=1, item_tfms=Resize(32), bs=4, num_workers=0)  # as TINY does
    dls = [split.train, split.valid]
    with opened(context, lab, notebook) as page:
        ran: list[str] = []
        page.on("dialog", lambda d: (ran.append(d.message), d.dismiss()))
        nb = LabNotebook(page)
        nb.run_all(timeout=120)
        part, label = page.get_by_label("Set", exact=True), page.get_by_label("Class", exact=True)
        picks, cards = page.locator(".ck-pick select:visible"), page.locator(".ck-card:visible b")

        def look_at(which: str, name: str) -> None:
            n = sum(dls[which == "Validation"].dataset.value(i, 1) == name for i in range(len(dls[which == "Validation"].dataset)))
            part.select_option(which)
            label.select_option(name)
            page.wait_for_function("""([name, n, said]) => {
                const cards = [...document.querySelectorAll('.ck-card b')].map(b => b.textContent);
                const lines = [...document.querySelectorAll('.ck-note')].map(line => line.textContent);
                return cards.length === n && cards.every(text => text === name) && lines.includes(said);
            }""", arg=[name, min(n, 4), f"1 to {min(n, 4)} of {n}, highest loss first"])

        look_at("Training", HOSTILE)
        picks.nth(0).select_option("delete")
        nb.wait_shown("1 edit pending")
        look_at("Training", "plain")
        assert picks.nth(0).evaluate("s => s.selectedOptions[0].text.replaceAll('\\u00a0', ' ')") == "keep"
        picks.nth(1).select_option(f"to: {HOSTILE}")
        nb.wait_shown("2 edits pending: 1 to delete, 1 to change")
        look_at("Validation", "plain")
        picks.nth(0).select_option("delete")
        nb.wait_shown("3 edits pending")
        page.get_by_role("button", name="Undo", exact=True).click()
        nb.wait_shown("2 edits pending")
        look_at("Training", HOSTILE)
        assert picks.nth(0).evaluate("s => s.selectedOptions[0].text.replaceAll('\\u00a0', ' ')") == "delete"
        look_at("Training", "plain")
        assert picks.nth(1).evaluate("s => s.selectedOptions[0].text.replaceAll('\\u00a0', ' ')") == f"to: {HOSTILE}"
        assert cards.count() > 1 and lying() == before
        page.get_by_role("button", name="Apply ...").click()
        page.get_by_role("button", name="Yes, apply").click()
        nb.wait_shown("2 edits applied")
        after = lying()
        assert sum(x.startswith(f".coursekit_bin/{HOSTILE}/") for x in after) == 1 and len(after) == len(before)
        assert sum(x.startswith("plain/") for x in after) == 5 and not list(folder.rglob("*.csv"))
        page.get_by_role("button", name="Undo what was applied").click()
        nb.wait_shown("2 edits taken back")
        assert lying() == before and not ran

        assert "the path diverges" not in nb.shown() and page.locator(".jp-RenderedImage img").count() == 1
        page.locator(".noUi-handle").first.focus()
        for _ in range(4):  # the explorer of the last cell, by keyboard
            page.keyboard.press("ArrowRight")
        nb.wait_shown("the path diverges")
