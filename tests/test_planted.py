"""Files and links that somebody else has put where they are read or written: in a dataset, in coursekit's folder, in the working directory."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import raises
from PIL import Image
from test_faults_downloads import BODY, as_nobody, serve  # noqa: F401

from coursekit.cli import lessons, masks
from coursekit.course.progress import read_progress, record
from coursekit.data.block import _add_title
from coursekit.data.download import _mirror_sums
from coursekit.data.items import get_files
from coursekit.data.tables import read_table
from coursekit.data.transfer import MirrorError, download_url
from coursekit.display import Table, as_label, encode_figure, new_axes
from coursekit.samples.sprites import draw_many
from coursekit.training.callbacks.loggers import CSVLogger
from coursekit.training.learner import serving_learner, synthetic_learner
from coursekit.vision import mask_folders
from coursekit.vision.block import ImageBlock
from coursekit.vision.collect import resize_images
from coursekit.vision.folders import table_layout
from coursekit.vision.masks import MaskBlock
from coursekit.vision.names import Index
from coursekit.vision.plan import plan_data
from coursekit.vision.unet import UNetModel

MINE = "mine, and precious"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file that nothing here may change."""
    file = tmp_path / "mine" / "diary.txt"
    file.parent.mkdir()
    file.write_text(MINE)
    return file


# ------------------------------------------------------------------------------------------------ the working directory


def test_programs_in_the_working_directory_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "jupyterlab", "coursekit", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert draw_many(math.sqrt, [4] * 40, n_workers=2) == [2.0] * 40
    command = lessons.lab_command(tmp_path, "x.ipynb", port=None, browser=False)
    subprocess.run([*command[:3], "--version"], check=True, capture_output=True, timeout=120)
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_looks_like_a_checkout_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nbs" / "lessons").mkdir(parents=True)
    (tmp_path / "settings.ini").write_text("lib_name = coursekit")
    (tmp_path / "nbs" / "lessons" / "01_planted.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert not lessons.find_lesson("1").is_relative_to(tmp_path)


# ------------------------------------------------------------------------------------------------------------- datasets


def test_links_do_not_lead_out_to_folders_around(tmp_path: Path, mine: Path) -> None:
    data = tmp_path / "data" / "photos"
    (data / "cat").mkdir(parents=True)
    (data / "cat" / "1.png").touch()
    for name, to in {"up": "..", "far": "../../..", "all": "/", "self": "self"}.items():
        (data / "cat" / name).symlink_to(to)
    (data / "more").symlink_to(mine.parent)  # a folder beside: some keep their images on another disk
    assert [f.relative_to(data).as_posix() for f in get_files(data)] == ["cat/1.png", "cat/self", "more/diary.txt"]


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_a_folder_that_cannot_be_read_is_not_left_out_in_silence(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    (tmp_path / "emu").mkdir(mode=0o700)

    def work() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            get_files(tmp_path)
        raise ValueError(*(str(w.message) for w in caught))

    said = as_nobody(work)
    assert "emu" in said and "left out" in said


def test_a_log_is_not_written_through_a_link(tmp_path: Path, mine: Path) -> None:
    learn = synthetic_learner()
    learn.path = tmp_path
    (tmp_path / "history.csv").symlink_to(mine)
    with raises(ValueError, "history.csv", "link", "fname"):
        learn.fit(1, cbs=CSVLogger())
    assert mine.read_text() == MINE
    (tmp_path / "history.csv").unlink()
    os.mkfifo(tmp_path / "history.csv")
    with raises(ValueError, "history.csv", "pipe"):
        learn.fit(1, cbs=CSVLogger())


def test_images_behind_a_link_are_not_replaced(tmp_path: Path) -> None:
    data, mine = tmp_path / "data", tmp_path / "mine"
    for folder in (data, mine):
        folder.mkdir()
        Image.new("RGB", (80, 60)).save(folder / "a.png")
    (data / "linked").symlink_to(mine)
    (file, why), = resize_images(data, data, max_size=20)
    assert file == data / "linked" / "a.png" and "link" in why
    assert [Image.open(folder / "a.png").size for folder in (data, mine)] == [(20, 15), (80, 60)]


def test_classes_are_not_compared_in_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 classes whose images have the same names took half a minute, 1,000 would have taken an hour."""
    for k in range(20):
        (tmp_path / f"class {k}").mkdir()
        for i in range(3):
            Image.effect_noise((8, 8), 50 + k).convert("RGB").save(tmp_path / f"class {k}" / f"{i}.png")
    reads: list[Path] = []
    read = mask_folders.read_mask
    monkeypatch.setattr(mask_folders, "read_mask", lambda file: (reads.append(file), read(file))[1])
    assert len(plan_data(tmp_path).items) == 60 and len(reads) == len(set(reads))


def test_names_of_classes_that_are_no_text(tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"th\xe9"):  # as Windows wrote them, and an old unzip left them
        os.mkdir(os.path.join(os.fsencode(tmp_path), name))
        for i in range(3):
            Image.effect_noise((8, 8), 50).save(os.path.join(os.fsencode(tmp_path), name, b"%d.png" % i))
    plan = plan_data(tmp_path)
    assert plan.counts(False).total() == 4 and plan.counts(True).total() == 2 and "caf? 3" in repr(plan)


def test_names_of_classes_in_tables_and_figures() -> None:
    import matplotlib.pyplot as plt

    name = "\x1b]0;title\x07 caf\udce9 $x^{"
    assert str(Table([[name, 1]], ["class", "n"])).splitlines()[1] == "?]0;title? caf? $x^{  1"
    fig, ax = new_axes()
    _add_title(ax, name)
    ax.set_xticks([0], [as_label(name)])
    encode_figure(fig)  # matplotlib refuses what isn't Unicode, and formulas that don't end
    plt.close(fig)


def test_lists_and_names_that_fill_the_memory(tmp_path: Path) -> None:
    (tmp_path / "many.csv").write_text("\n" * 5_000_001)
    with raises(ValueError, "5,000,001", "5,000,000"):
        read_table(tmp_path / "many.csv")
    os.truncate(tmp_path / "many.csv", 200_000_000)
    with raises(ValueError, "200,000,000", "128 MB"):
        table_layout(tmp_path / "many.csv", tmp_path)
    deep = tmp_path.joinpath(*["x" * 28] * 30, "1.png")
    index = Index(tmp_path, [deep])
    assert sum(map(len, (*index.paths, *index.ends))) < 10_000  # 29,000 if it keeps every end
    assert all(index.find("/".join(deep.parts[-n:])) == deep for n in (1, 2, 9, 31))


def test_masks_replace_no_image(tmp_path: Path, mine: Path) -> None:
    learn = serving_learner(UNetModel("coursenet", 2).build(), [ImageBlock(), MaskBlock(["road", "sky"])], 1, batch_tfms=ImageBlock.batch_tfms, device="cpu")
    for name in ("a.png", "b.jpg", "b_overlay.jpg", "c.jpg"):
        Image.new("RGB", (40, 30), "gray").save(tmp_path / name)
    before = {f: f.read_bytes() for f in tmp_path.glob("*.*g")}
    (tmp_path / "c.png").symlink_to(mine)
    done = list(masks.write_masks(learn, sorted(before), tmp_path))
    assert ["error" in p for p in done] == [True, True, False, False] and "--out" in done[0]["error"]
    assert {f: f.read_bytes() for f in before} == before and mine.read_text() == MINE


# --------------------------------------------------------------------------------------------------- coursekit's folder


def test_a_download_is_not_written_through_a_link(serve, tmp_path: Path, mine: Path) -> None:  # noqa: F811
    server = serve(lambda s, conn, asked: s.whole(conn, ETag='"a"'))
    stem = f".data.bin.{hashlib.sha256(server.url.encode()).hexdigest()[:8]}."
    (tmp_path / f"{stem}0000.part").symlink_to(mine)
    (tmp_path / f"{stem}mark").symlink_to(mine)
    assert download_url(server.url, tmp_path / "data.bin").read_bytes() == BODY
    assert mine.read_text() == MINE and not (tmp_path / "data.bin").is_symlink()


def test_records_that_nest_deeply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path))
    monkeypatch.delenv("COURSEKIT_PROGRESS", raising=False)
    (tmp_path / "progress.json").write_text("[" * 100_000)
    with pytest.warns(UserWarning, match="cannot be read"):
        record("quiz", "q", True)
    assert read_progress()["quiz"] == {"q": True}


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.write_text(f"{'0' * 64}  a{' ' * 100_000}b\0\n{'0' * 64}")],
                         ids=["pipe", "endless", "blanks"])
def test_a_list_of_hashes_that_has_no_end(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "SHA256SUMS")
    with raises(MirrorError, "SHA256SUMS"):
        _mirror_sums(tmp_path)
