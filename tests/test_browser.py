"""A person's way: JupyterLab in a browser, run all, upload a picture, read what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import notebooks as nbtool
import pytest
from browser import LabNotebook, lab_page, lab_server
from helpers import notebooks, run
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

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


# What the lesson's upload cells need: a model that was trained, called `learn`. A small one is enough here.
SMALL_MODEL = """
from coursekit.vision.all import *
path = course_data(URLs.PETS) / "images"
files = get_image_files(path)[::12]
dls = ImageDataLoaders.from_name_re(path, files, r"(.+)_\\d+.jpg$", valid_pct=0.2, seed=42, item_tfms=Resize(64), bs=32)
learn = vision_learner(dls, resnet18, pretrained=False, metrics=error_rate)
learn.fit_one_cycle(1)
"""


def upload_cells() -> list[str]:
    """The cells tagged `upload` of the first lesson that has any."""
    for path in notebooks("lessons"):
        found = [c.source for c in nbtool.read(path).cells if c.cell_type == "code" and nbtool.has_tag(c, "upload")]
        if found:
            return found
    return []


def write_notebook(path: Path, *sources: str) -> Path:
    nb = new_notebook(cells=[new_markdown_cell("# Upload"), *(new_code_cell(s.strip()) for s in sources)])
    nb.metadata["kernelspec"] = dict(nbtool.KERNELSPEC)
    nbtool.write(nb, path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 48), (200, 120, 40)).save(path)
    return path


def test_upload_widget(tmp_path: Path, chromium: str, photo: Path) -> None:
    write_notebook(tmp_path / "upload.ipynb", UPLOADER, "print('the last cell')")
    (tmp_path / "note.png").write_text("no picture at all")
    with lab_server(tmp_path) as lab, lab_page(chromium, lab, "upload.ipynb") as page:
        nb = LabNotebook(page)
        nb.run_all(timeout=120)
        assert "the last cell" in nb.shown()
        nb.upload(photo)
        nb.wait_shown("photo.png: 64 x 48")
        nb.upload(tmp_path / "note.png")
        nb.wait_shown("note.png is no picture")
        nb.restart_and_run_all(timeout=120)
        nb.wait_shown("nothing yet")


def test_a_failing_cell_is_reported(tmp_path: Path, chromium: str) -> None:
    write_notebook(tmp_path / "bad.ipynb", "import math", "math.sqrt(-1)")
    with lab_server(tmp_path) as lab, lab_page(chromium, lab, "bad.ipynb") as page:
        nb = LabNotebook(page)
        with pytest.raises(AssertionError, match="ValueError"):
            nb.run_all(timeout=60)


def test_lesson_upload(tmp_path: Path, chromium: str) -> None:
    """Lesson 1's upload cells in a browser: the prediction names a class, and what is no picture is said so."""
    cells = upload_cells()
    assert cells, "no lesson has a cell tagged `upload`"
    listing = "from coursekit.vision.all import *; print(get_image_files(course_data(URLs.PETS))[0])"
    picture = Path(run([sys.executable, "-c", listing]).stdout.splitlines()[-1])
    breed = picture.stem.rpartition("_")[0]
    (tmp_path / "note.jpg").write_text("no picture at all")
    write_notebook(tmp_path / "lesson.ipynb", SMALL_MODEL, *cells, "print('classes:', *learn.dls.vocab)")
    with lab_server(tmp_path) as lab, lab_page(chromium, lab, "lesson.ipynb") as page:
        nb = LabNotebook(page)
        nb.run_all(timeout=300)
        listed = next(x for x in nb.shown().splitlines() if x.startswith("classes:")).split()[1:]
        assert breed in listed
        before = nb.shown()
        nb.upload(picture)
        said = nb.wait_new_text(before, timeout=60)
        assert any(name in said for name in listed), f"no class is named in what the upload shows:\n{said}"
        before = nb.shown()
        nb.upload(tmp_path / "note.jpg")
        said = nb.wait_new_text(before, timeout=60)
        assert "note.jpg" in said or "image" in said.lower() or "picture" in said.lower(), said
        nb.screenshot(tmp_path / "lesson.png")
