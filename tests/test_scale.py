"""Gray images of 16 or 32 bits or floats: one scale per dataset, kept by the block and by the export, and never a guess about one image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import raises, says
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from coursekit.data.block import CategoryBlock, RegressionBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.items import GrandparentSplitter, IndexSplitter, get_image_files, parent_label
from coursekit.deploy.hub import load_learner
from coursekit.deploy.onnx import graph_notes
from coursekit.deploy.registry import from_spec
from coursekit.training.learner import Learner
from coursekit.vision import block as block_module
from coursekit.vision.block import ImageBlock, find_scale
from coursekit.vision.collect import resize_images
from coursekit.vision.data import ImageDataLoaders
from coursekit.vision.images import ImageError, check_images, load_image, verify_images
from coursekit.vision.pil import PILImage
from coursekit.vision.learner import vision_learner
from coursekit.vision.plan import plan_data
from coursekit.vision.resize import Resize
from coursekit.widgets.parts import thumbnail

KINDS = {"uint16": (np.uint16, "png"), "int32": (np.int32, "tif"), "float": (np.float32, "tif")}  # NumPy type, a file's ending


def deep(values: Any, dtype: Any = np.int32) -> Image.Image:
    return Image.fromarray(np.atleast_2d(np.asarray(values, dtype)))


def encoded(block: ImageBlock, value: Any) -> np.ndarray:
    """What the block makes of an image, as gray bytes."""
    out = block.encode(value)
    assert out.dtype == torch.uint8 and torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])
    return out[0].numpy()


def set_up(images: Sequence) -> ImageBlock:
    block = ImageBlock()
    block.setup(images)
    return block


# ---------------------------------------------------------------------------------------------- properties


def arrays(dtype: Any) -> st.SearchStrategy[list[np.ndarray]]:
    """A dataset: images of one NumPy type whose ranges differ."""
    if dtype == np.float32:
        values: st.SearchStrategy = st.floats(-2.0**20, 2.0**20, width=32)
    else:
        top = 65_535 if dtype == np.uint16 else 2**31 - 1
        values = st.integers(0 if dtype == np.uint16 else -(2**31), top) | st.integers(0, 300) | st.integers(0, min(top, 4095))
    rows = st.lists(values, min_size=4, max_size=4)
    return st.lists(rows.map(lambda row: np.array([row], dtype)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([np.uint16, np.int32, np.float32]).flatmap(arrays), st.data())
def test_equal_values_are_equal_grays_in_all_images_and_brighter_is_never_darker(images: list[np.ndarray], data: st.DataObject) -> None:
    """Over all images of a dataset together, the gray is one function of the value, and it never falls. Those looked at fit the scale."""
    seen = data.draw(st.integers(1, len(images)))
    block = set_up([Image.fromarray(a) for a in images[:seen]])
    raw = np.concatenate(images, 1)[0].astype(np.float64)
    gray = np.concatenate([encoded(block, Image.fromarray(a)) for a in images], 1)[0].astype(int)
    order = np.argsort(raw, kind="stable")
    raw, gray = raw[order], gray[order]
    assert (np.diff(gray) >= 0).all()
    assert (np.diff(gray)[np.diff(raw) == 0] == 0).all()
    low, high = block.scale
    known = np.concatenate(images[:seen], 1).astype(np.float64)
    slack = 0.03 * np.abs(known).max()  # a little below 0 is black, and floats may be a little above white
    assert low - slack <= known.min() and known.max() <= high + slack
    assert encoded(block, deep([low, high, (low + high) / 2], np.float32)).tolist() == [[0, 255, 128]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 65_535), st.integers(0, 65_535), st.floats(0, 1))
def test_a_scale_wastes_less_than_it_keeps(top: int, start: int, where: float) -> None:
    """However few of its values a device uses, and wherever they lie, at least 28 of the 256 grays tell them apart (all, if it has fewer)."""
    values = np.unique(np.linspace(min(start, top), top, 500).astype(np.uint16))
    gray = encoded(set_up([deep(values, np.uint16)]), deep(values, np.uint16))
    assert len(np.unique(gray)) >= min(28, len(values))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([("I;16", np.uint16, 65_535), ("I", np.int32, 255), ("F", np.float32, 1)]), st.data())
def test_an_image_by_itself_goes_by_its_kind_and_never_by_its_values(kind: tuple[str, Any, int], data: st.DataObject) -> None:
    mode, dtype, white = kind
    number = st.floats(0, 1, width=32) if dtype == np.float32 else st.integers(0, white)
    values = data.draw(st.lists(number, min_size=1, max_size=8))
    img = deep(values, dtype)
    assert img.mode == mode
    got = np.asarray(PILImage.create(img))[0, :, 0]
    want = np.floor(np.asarray(values, dtype).astype(np.float64) * (255 / white) + 0.5)
    assert got.tolist() == want.tolist()


def test_twelve_bits_keep_their_grays() -> None:
    values = np.arange(4096).reshape(64, 64)
    block = set_up([deep(values, np.uint16)])
    assert block.scale == (0, 4095) and len(np.unique(encoded(block, deep(values, np.uint16)))) == 256


@pytest.mark.parametrize(("one", "other", "dtype"), [(255, 256, np.int32), (1.0, 1.01, np.float32), (65_535, 65_536, np.int32)])
def test_one_bright_pixel_does_not_change_the_rest(one: float, other: float, dtype: Any) -> None:
    pair = [deep([one / 2, top], dtype) for top in (one, other)]
    block = set_up(pair)
    a, b = (encoded(block, img)[0] for img in pair)
    assert a[0] == b[0] and b[1] >= a[1] > a[0] > 0


def test_what_is_outside_is_clipped_and_nan_is_black() -> None:
    block = ImageBlock(scale=(-1, 3))
    assert encoded(block, deep([-np.inf, -9, -1, 1, 3, 7, np.inf, np.nan], np.float32)).tolist() == [[0, 0, 0, 128, 255, 255, 255, 0]]


# ---------------------------------------------------------------------------------------------- training


def three_shades(folder: Path, kind: str) -> Path:
    """Three classes that differ in brightness only. One pixel in every image is brighter: just so in training, a bit over that in validation."""
    dtype, ending = KINDS[kind]
    unit, rng = {"uint16": 4095 / 255, "int32": 1, "float": 1 / 255}[kind], np.random.default_rng(0)
    for side, peak in (("train", 250), ("valid", 260)):
        for k, shade in enumerate((40, 100, 160)):
            for i in range(12):
                a = (shade + rng.normal(0, 12, (16, 16))).clip(0, 240)
                a[rng.integers(16), rng.integers(16)] = min(peak, 255) if kind == "uint16" else peak
                (place := folder / side / f"class {k}").mkdir(parents=True, exist_ok=True)
                Image.fromarray((a * unit).astype(dtype)).save(place / f"{i}.{ending}")
    return folder


class Shade(nn.Sequential):
    "Sees how bright an image is on the whole."

    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3))


def held_out_error(folder: Path, block: ImageBlock) -> float:
    torch.manual_seed(0)
    plan = DataBlock(blocks=(block, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=GrandparentSplitter())
    learn = Learner(plan.dataloaders(folder, bs=12, seed=0, device="cpu", cache="memory", num_workers=0), Shade(), precision="fp32", seed=0)
    with learn.no_bar():
        learn.fit(60, 3e-2)
        preds, targets = learn.get_preds()
    return (preds.argmax(1) != targets).float().mean().item()


@pytest.mark.parametrize("kind", KINDS)
def test_classes_that_differ_in_brightness_are_told_apart(tmp_path: Path, kind: str) -> None:
    """Where the scale was guessed image by image, as models of earlier versions still do, two thirds of the held-out images were wrong."""
    folder = three_shades(tmp_path, kind)
    assert held_out_error(folder, ImageBlock()) == 0
    if kind != "uint16":  # there the guess was one scale, but kept few grays
        assert held_out_error(folder, ImageBlock(scale="guess")) == pytest.approx(2 / 3)


def test_the_scale_is_learned_from_the_training_images_only(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(8)]
    for i, file in enumerate(files):
        deep([[3, 4000 if i < 4 else 60_000]], np.uint16).save(file)
    make = DataBlock(blocks=(ImageBlock, RegressionBlock), get_y=lambda f: 0.0, splitter=IndexSplitter([4, 5, 6, 7])).datasets
    dsets = make(files)
    assert dsets.train.blocks[0].scale == (0, 4095) and dsets.valid[0][0].max() == 255
    assert dsets.train[0][0].max() == 249  # the copy of the block that encodes knows it, too
    given = DataBlock(blocks=(ImageBlock(scale=(0, 65_535)), RegressionBlock), get_y=lambda f: 0.0, splitter=IndexSplitter([4, 5, 6, 7]))
    assert given.datasets(files).train[0][0].max() == 16 and given.blocks[0].scale == (0, 65_535)


def test_eight_and_sixteen_bits_of_the_same_images_look_the_same(tmp_path: Path) -> None:
    """Ordinary files keep their bytes, and the deep ones are scaled, so that the two agree."""
    rng = np.random.default_rng(0)
    for factor in (257, 16):
        twins = []
        for i in range(12):
            a = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            twins += [tmp_path / f"{factor} {i}.png", tmp_path / f"{factor} {i} deep.png"]
            Image.fromarray(a).save(twins[-2])
            Image.fromarray(a.astype(np.uint16) * factor).save(twins[-1])
        block = set_up(twins)
        for plain, other in zip(twins[::2], twins[1::2]):
            assert np.array_equal(encoded(block, plain), np.asarray(Image.open(plain)))
            assert np.abs(encoded(block, other).astype(int) - encoded(block, plain)).max() <= 1


def test_floats_among_whole_numbers_are_a_doubt(tmp_path: Path) -> None:
    mixed = [deep([0, 200]), deep([0, 0.9], np.float32)]
    with raises(ValueError, "ImageBlock", "255", "1", "ImageBlock(scale=(black, white))"):
        set_up(mixed)
    assert find_scale([deep([0, 200]), deep([0.0, 250], np.float32)]) == (0, 255)  # the same units
    for k in range(24):
        (tmp_path / "ab"[k % 2]).mkdir(exist_ok=True)
        deep([0, 100 + k] if k % 4 < 2 else [0, k / 24], np.int32 if k % 4 < 2 else np.float32).save(tmp_path / "ab"[k % 2] / f"{k}.tif")
    plan = plan_data(tmp_path)
    assert "floats" in str(plan) and "whole numbers" in str(plan)
    with raises(ValueError, "DataPlan", "floats"):
        plan.dblock()


# ---------------------------------------------------------------------------------------------- what says it and what keeps it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12-bit images in 16-bit files."""
    root, rng = tmp_path_factory.mktemp("deep"), np.random.default_rng(0)
    for i in range(16):
        a = (2000 * (i % 2) + rng.integers(0, 2000, (24, 24))).astype(np.uint16)
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(a).save(root / "ab"[i % 2] / f"{i}.png")
    return root


def test_summary_and_plan_say_the_scale(folder: Path, capsys: pytest.CaptureFixture) -> None:
    plan = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label)
    plan.summary(folder)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "black" in line]
    says(line, "input image", "0", "4,095")
    (line,) = [line for line in str(plan_data(folder)).splitlines() if "black" in line]
    says(line, "0", "4,095")
    DataBlock(blocks=(ImageBlock, RegressionBlock), get_y=lambda a: 0.0).summary([np.zeros((9, 9, 3), np.uint8)] * 5)
    assert "black" not in capsys.readouterr().out


def test_an_export_keeps_the_scale(folder: Path, tmp_path: Path) -> None:
    dls = ImageDataLoaders.from_folder(folder, valid_pct=0.25, seed=0, bs=4, item_tfms=Resize(24), device="cpu")
    learn = vision_learner(dls, "coursenet", pretrained=False, seed=0, lin_ftrs=())
    loaded = load_learner(learn.export(tmp_path / "m.ck"), device="cpu")
    assert loaded.dls.valid_ds.blocks[0].scale == dls.valid_ds.blocks[0].scale == (0, 4095)
    again = load_learner(loaded.export(tmp_path / "again.ck"), device="cpu")
    for file in get_image_files(folder)[:4]:
        img = Image.open(file)
        a = np.asarray(img)
        items = (file, file.read_bytes(), img, a, a.astype(np.float32), torch.tensor(a.astype(np.int32)))
        answers = [one.predict(item).probabilities for one in (learn, loaded, again) for item in items]
        assert all(torch.allclose(p, answers[0], atol=1e-6) for p in answers)
    says(graph_notes(learn, (1, 3, 24, 24))["preparation"], "0", "4,095", "Resize")  # for whoever runs the ONNX graph


@pytest.mark.parametrize("scale", [[1], [2, 1], ["0", None], "bits", [0, float("inf")], 7, {"low": 0}])
def test_a_scale_in_a_file_is_checked(scale: Any) -> None:
    with raises(ValueError, "scale"):
        from_spec({"type": "image", "fields": {"scale": scale}})


def test_files_of_earlier_versions_predict_as_before() -> None:
    """They have no scale, and their models were trained on images whose units were guessed one by one."""
    block = from_spec({"class": "coursekit.vision.data:ImageBlock", "fields": {}})
    for values, dtype, want in (([0, 100, 255], np.int32, [0, 100, 255]), ([0, 256, 65_535], np.int32, [0, 1, 255]),
                                ([0, 0.5, 1], np.float32, [0, 128, 255]), ([0, 1, 200], np.float32, [0, 1, 200]),
                                ([0, 257, 4095], np.uint16, [0, 1, 16])):
        assert encoded(block, deep(values, dtype)).tolist() == [want]
    with raises(ImageError, "-5", "scale"):
        block.encode(deep([-5, 3]))
    assert encoded(block, np.uint8([[0, 7]])).tolist() == [[0, 7]] and encoded(block, np.array([[0, 1.0]])).tolist() == [[0, 255]]


def test_a_model_of_ordinary_images_takes_deep_ones_by_their_kind() -> None:
    block = set_up([Image.new("RGB", (4, 4))])
    assert block.scale is None
    assert encoded(block, deep([0, 257, 65_535], np.uint16)).tolist() == [[0, 1, 255]]
    for img, facts in ((deep([0, 4095]), ("4095", "32-bit", "255")), (deep([0, 200], np.float32), ("200", "floating-point", "1")),
                       (deep([-1, 1], np.float32), ("-1", "floating-point"))):
        with raises(ImageError, *facts, "scale=(black, white)"):
            block.encode(img)
        assert load_image(img, scale=(-1, 4095)).size == (2, 1)
    with raises(ValueError, "load_image", "scale=3"):
        load_image(deep([0, 1]), scale=3)


# ---------------------------------------------------------------------------------------------- the rest of the package agrees


def test_no_ordinary_image_is_decoded_for_the_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a JPEG its first bytes are read, of an 8-bit TIFF its header; getters that make images are asked for a few."""
    files = [tmp_path / f"{i}.{e}" for i in range(20) for e in ("jpg", "png", "tif", "ppm")]
    for file in files:
        Image.new("RGB", (64, 48), "teal").save(file)
    loads, load, opened = [], Image.Image.load, []
    monkeypatch.setattr(block_module, "_open", lambda *a: opened.append(a))
    for cls in (Image.Image, *[type(Image.open(f)) for f in files[:4]]):
        monkeypatch.setattr(cls, "load", lambda self, *a: loads.append(self) or load(self, *a))
    assert find_scale(files) is None and find_scale([f.read_bytes() for f in files]) is None
    assert not loads and not opened
    asked: list[int] = []
    block = DataBlock(blocks=(ImageBlock, RegressionBlock), get_x=lambda i: asked.append(i) or np.zeros((4, 4, 3), np.uint8), get_y=lambda i: 0.0)
    monkeypatch.undo()
    block.datasets(list(range(1000)))
    assert len(asked) < 20


def test_looking_is_bounded_and_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, decoded = tmp_path / "a.png", []
    deep([0, 4095], np.uint16).save(file)
    real = block_module._extent
    monkeypatch.setattr(block_module, "_extent", lambda v: decoded.append(v) or real(v))

    asked = set()

    class Many(list):
        def __getitem__(self, i: Any) -> Any:
            asked.add(i)
            return super().__getitem__(i)

    assert find_scale(Many([file] * 100_000)) == (0, 4095)
    assert len(asked) <= 257 and max(asked) > 99_000 and len(decoded) <= 32


def test_checks_do_not_judge_units(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.tif" for i in range(4)]
    for file, values in zip(files, ([-1000, 3000], [0, 255.0], [0, 70_000], [np.nan, -np.inf])):
        deep(values, np.float32 if isinstance(values[1], float) else np.int32).save(file)
    assert check_images(files) == [] and verify_images(files) == []


def test_small_copies_of_a_folder_have_one_scale(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i, top in enumerate((200, 4000)):
        deep([[100, top]], np.uint16).save(tmp_path / "in" / f"{i}.png")
    assert resize_images(tmp_path / "in", tmp_path / "out") == []
    dark, bright = (np.asarray(Image.open(tmp_path / "out" / f"{i}.png"))[0, :, 0].tolist() for i in (0, 1))
    assert dark == [6, 12] and bright == [6, 249]


def test_thumbnails_and_caches_take_the_scale(tmp_path: Path) -> None:
    deep([0, 3000]).save(tmp_path / "a.tif")
    assert "scale=(black, white)" in thumbnail(tmp_path / "a.tif", "a", 50)
    assert "<img" in thumbnail(tmp_path / "a.tif", "a", 50, scale=(0, 4095))
    rng = np.random.default_rng(0)
    for i in range(8):
        deep(rng.integers(0, 3000, (16, 16))).save(tmp_path / f"{'ab'[i % 2]}{i}.tif")
    files = sorted(tmp_path.glob("*[0-9].tif"))
    batches = [list(ImageDataLoaders.from_name_func(tmp_path, files, lambda n: n[0], valid_pct=0.25, seed=0, bs=2, item_tfms=Resize(8), device="cpu",
                                                    cache=cache, num_workers=0).train) for cache in (None, "memory")]  # fmt: skip
    assert all(torch.equal(a.x, b.x) for a, b in zip(*batches)) and batches[0][0].x.max() > 0.4


def test_a_deep_image_can_be_uploaded(folder: Path) -> None:
    from coursekit.widgets.upload import upload_and_predict

    dls = DataBlock(blocks=(ImageBlock, CategoryBlock(["a", "b"])), get_y=lambda i: "ab"[i.size[0] % 2], splitter=IndexSplitter([0, 1])).dataloaders(
        [deep(np.full((8, 8), v)) for v in (100, 3000) * 4], bs=2, device="cpu")
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)))
    buffer = io.BytesIO()
    deep(np.full((8, 8), 3000)).save(buffer, "TIFF")
    page = upload_and_predict(learn, uploader="plain", heatmap=False)
    page.take("a.tif", buffer.getvalue())
    assert not page.refused and np.asarray(Image.open(io.BytesIO(page.seen[0].image))).mean() == pytest.approx(3000 / 4095 * 255, abs=2)
