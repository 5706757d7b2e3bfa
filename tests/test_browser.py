"""A person's way: JupyterLab in a browser, run all, upload a picture, read what it says."""

from __future__ import annotations

from pathlib import Path

import notebooks as nbtool
import pytest
from browser import LabNotebook, lab_page, lab_server
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
