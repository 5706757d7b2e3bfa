"""Files that are no good, and pictures with something broken in them: shown as they are, or refused in one readable line."""

from __future__ import annotations

import json
import mmap
import sys
import tarfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_inputs import (BLUE, HOSTILE, RED, BadInput, make_bad_inputs, make_hostile_classes, mutate, mutated_images,
                        real_images)
from helpers import ROOT, run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from coursekit.training.learner import Learner
from coursekit.training.losses import CrossEntropyLossFlat
from coursekit.vision.data import ImageDataLoaders
from coursekit.vision.images import ImageError, check_images, load_image, verify_images
from coursekit.vision.plan import plan_data

windows = sys.platform == "win32"
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> list[BadInput]:
    return make_bad_inputs(tmp_path_factory.mktemp("bad"))


def one_line(message: str, path: Path) -> None:
    """A refusal that a person can read: one line without control characters that names the file."""
    assert message.isprintable() and len(message) < 500, message
    assert path.name in message, message
    assert "Traceback" not in message and "Error(" not in message


def shows(img: Image.Image, item: BadInput) -> None:
    left, right = (np.asarray(img, dtype=int)[10:-10, x] for x in (img.width // 8, -img.width // 8))
    if item.grey:
        assert left.max() < 60 and right.min() > 200
    else:
        assert np.abs(left - RED).max() < 25 and np.abs(right - BLUE).max() < 25, (left[0], right[0])


def test_the_list_is_complete(bad: list[BadInput]) -> None:
    words = " ".join(b.what for b in bad)
    for what in ("500 MB", "20,000 x 20,000", "truncated JPEG", "an SVG", "a PDF called JPEG", "CMYK", "16-bit", "palette", "animated GIF"):
        assert what in words
    assert windows or any(b.path.name.startswith(HOSTILE) for b in bad)
    assert {b.shown for b in bad} == {True, False}


def test_each_is_shown_or_refused(bad: list[BadInput], capfd: pytest.CaptureFixture[str]) -> None:
    for item in bad:
        if item.shown:
            shows(load_image(item.path), item)
        else:
            with pytest.raises(ImageError, match=item.says) as caught:
                load_image(item.path)
            one_line(str(caught.value), item.path)
    assert capfd.readouterr() == ("", "")


def test_uploads_of_the_same_bytes(bad: list[BadInput]) -> None:
    """What a widget hands over: a name and the bytes. The name is printed without control characters."""
    for item in bad:
        with open(item.path, "rb") as f:  # an empty file cannot be mapped
            content = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if item.path.stat().st_size else b"")
        upload = {"name": item.path.name, "content": content}
        if item.shown:
            shows(load_image(upload), item)
        else:
            with pytest.raises(ImageError, match=item.says) as caught:
                load_image(upload)
            one_line(str(caught.value), item.path)


def test_a_large_upload_is_refused_before_it_is_copied(bad: list[BadInput]) -> None:
    huge = next(b.path for b in bad if "500 MB" in b.what)
    with open(huge, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as content:
        tracemalloc.start()
        try:
            for source in ({"name": "huge.jpg", "content": content}, content):
                with pytest.raises(ImageError, match="MB, more than"):
                    load_image(source)
            assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
        finally:
            tracemalloc.stop()
            del source


def test_check_images_names_the_refused_ones_and_no_other(bad: list[BadInput], capfd: pytest.CaptureFixture[str]) -> None:
    found = dict(check_images([b.path for b in bad]))
    assert set(found) == {b.path for b in bad if not b.shown}
    assert verify_images([b.path for b in bad]) == [b.path for b in bad if not b.shown]
    assert all(why.isprintable() and len(why) < 200 for why in found.values())
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of good pictures, one of them with HTML for a name, and every bad input in both kinds of place."""
    if windows:
        pytest.skip("Windows cannot write such names")
    folder = make_hostile_classes(tmp_path_factory.mktemp("mixed"))
    make_bad_inputs(folder / "plain")
    return folder


def test_a_plan_leaves_the_bad_ones_out(mixed: Path, bad: list[BadInput], capfd: pytest.CaptureFixture[str]) -> None:
    plan = plan_data(mixed)
    refused = {b.path.name for b in bad if not b.shown}
    assert {f.name for f, _ in plan.bad} == refused
    assert plan.classes == [HOSTILE, "plain"]
    used = {i.file.name for i in plan.items}
    assert not used & refused and {b.path.name for b in bad if b.shown} - used <= {f.name for g in plan.copies for f in g}
    assert all(line.isprintable() for line in repr(plan).splitlines())
    dls = plan.dataloaders(size=24, bs=4, num_workers=0, device="cpu")
    for loader in (dls.train, dls.valid):
        assert sum(len(batch.xs[0]) for batch in loader) > 0
    assert len(dls.train.dataset) + len(dls.valid.dataset) == len(plan.items)
    assert capfd.readouterr() == ("", "")


class MeanColour(nn.Module):
    """Says the first class where there is more red than blue: a model that needs no training."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red, blue = x[:, 0].mean((1, 2)), x[:, 2].mean((1, 2))
        return torch.stack([red, blue], 1) * self.scale


@pytest.fixture(scope="module")
def learn(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    if windows:
        pytest.skip("Windows cannot write such names")
    plan = plan_data(make_hostile_classes(tmp_path_factory.mktemp("classes")))
    return Learner(plan.dataloaders(size=24, bs=4, num_workers=0, device="cpu"), MeanColour(), CrossEntropyLossFlat())


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "upload"])
def test_predict(learn: Learner, bad: list[BadInput], kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Shown ones get a prediction, and the others the line of load_image and nothing around it."""
    for item in bad:
        if kind in ("bytes", "upload") and item.path.stat().st_size > 10**7:
            continue
        data = item.path.read_bytes() if kind in ("bytes", "upload") else b""
        given = {"path": item.path, "text": str(item.path), "bytes": data, "upload": {"name": item.path.name, "content": data}}[kind]
        if item.shown:
            assert learn.predict(given).label in (HOSTILE, "plain")
        else:
            with pytest.raises(ImageError, match=item.says) as caught:
                learn.predict(given)
            one_line(str(caught.value), Path("The image") if kind == "bytes" else item.path)
    assert capfd.readouterr() == ("", "")


def test_predict_tells_the_classes_apart(learn: Learner) -> None:
    assert learn.predict(Image.new("RGB", (30, 30), RED)).label == HOSTILE
    assert learn.predict(Image.new("RGB", (30, 30), BLUE)).label == "plain"


def test_a_bad_picture_in_training_is_named(tmp_path: Path) -> None:
    folder = make_hostile_classes(tmp_path) if not windows else pytest.skip("Windows cannot write such names")
    plan = plan_data(folder)
    broken = plan.items[3].file
    broken.write_bytes(broken.read_bytes()[:60])  # after the plan was made
    dls = plan.dataloaders(size=24, bs=4, num_workers=0, device="cpu")
    with pytest.raises(ValueError) as caught:
        [list(loader) for loader in (dls.train, dls.train, dls.valid)]  # a training batch is full, so one pass may leave it out
    one_line(str(caught.value), broken)


def test_no_usable_picture_at_all(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"%PDF")
    plan = plan_data(tmp_path)
    assert "no labeled images are left" in repr(plan)
    with pytest.raises(ValueError, match="no labeled images are left"):
        plan.dataloaders()
    with pytest.raises(ValueError, match="no labeled images are left"):
        ImageDataLoaders.from_path(tmp_path)


# ------------------------------------------------------------------------------------------------- mutated pictures

LOAD_ALL = """
import json, sys, warnings
from pathlib import Path
from coursekit.vision.images import ImageError, load_image
warnings.simplefilter("error")
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        img, error = load_image(path), ""
        img.tobytes()
    except ImageError as e:
        error = str(e)
    print(json.dumps([path.name, error]), flush=True)
"""


def photos_of_the_mirror(n: int = 3) -> list[tuple[str, bytes]]:
    """A few real photos, where the archives are there."""
    archive = ROOT / ".." / "shared" / "data" / "oxford-iiit-pet.tgz"
    found: list[tuple[str, bytes]] = []
    if archive.is_file():
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(".jpg"):
                    found.append((Path(member.name).name, tar.extractfile(member).read()))  # type: ignore[union-attr]
                    if len(found) == n:
                        break
    return found


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutated")
    for name, data in mutated_images(115, seed=4, extra=photos_of_the_mirror()):
        (folder / name).write_bytes(data)
    return folder


def test_mutated_files_load_or_are_named(broken: Path) -> None:
    """In a process of its own: a crash, a hang or a word of a C library on the terminal would show."""
    files = sorted(broken.iterdir())
    done = run([sys.executable, "-c", LOAD_ALL, str(broken)], cwd=ROOT, timeout=300)
    assert done.stderr == ""
    said = dict(json.loads(line) for line in done.stdout.splitlines())
    assert sorted(said) == [f.name for f in files] and len(files) >= 100
    refused = {name: error for name, error in said.items() if error}
    assert 20 < len(refused) < len(files) - 5  # some of both, or the mutations are too weak or too strong
    for name, error in refused.items():
        one_line(error, Path(name))
    named = {f.name for f in verify_images(files)}
    assert named >= set(refused)


def test_the_mutator_changes_what_it_is_given() -> None:
    whole = dict(real_images())
    assert all(load_image(data).size == (96, 72) or name == "plain.jpg" for name, data in whole.items())
    same = [name for name, data in mutated_images(100, seed=1) if data == whole[name[4:]]]
    assert len(same) <= 5
    assert list(mutated_images(5, seed=2)) == list(mutated_images(5, seed=2)) != list(mutated_images(5, seed=3))


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(real_images()), st.sampled_from(real_images()))
def test_any_mutation_loads_or_raises_image_error(rng, original, other) -> None:
    data = mutate(original[1], rng, other=other[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert load_image({"name": "x.bin", "content": data}).mode == "RGB"
        except ImageError as e:
            one_line(str(e), Path("x.bin"))
