"""Points: they stay with their pixels through every transform, and come back in pixels of the photo."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from helpers import raises
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import Tensor, nn

from coursekit.cli.predict import predict_files
from coursekit.data.batch import Batch
from coursekit.data.block import CategoryBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.items import IndexSplitter
from coursekit.data.loader import DataLoaders
from coursekit.deploy.hub import load_learner
from coursekit.deploy.page import page_spec
from coursekit.interpret.interpretation import Interpretation
from coursekit.training.learner import Learner
from coursekit.vision.augment import Augment, Normalize, aug_transforms, imagenet_stats
from coursekit.vision.block import ImageBlock
from coursekit.vision.learner import vision_learner
from coursekit.vision.models import VisionModel
from coursekit.vision.point_head import mean_place
from coursekit.vision.points import PointBlock, PointScaler, point_error, to_photo
from coursekit.vision.resize import RandomResizedCrop, Resize

OPTIONS = {"device": "cpu", "num_workers": 0, "seed": 0}


# ------------------------------------------------------------------------------------ a dot and its point stay together


def dotted(w: int, h: int, x: float, y: float, r: float) -> Tensor:
    """A black image (3, h, w) of bytes with a soft white dot around (x, y)."""
    across, down = torch.arange(w) + 0.5 - x, torch.arange(h)[:, None] + 0.5 - y
    return (255 * torch.exp(-(across**2 + down**2) / (2 * r * r))).byte().expand(3, -1, -1).clone()


def center(img: Tensor) -> tuple[float, float] | None:
    """The center of mass of what is bright in (H, W); None if the dot is cut off or gone."""
    h, w = img.shape
    core = torch.where(img > 0.3 * img.max(), img, 0).double()
    rim = torch.cat([core[0], core[-1], core[:, 0], core[:, -1]])
    if img.max() < 0.25 or rim.any():
        return None
    xs, ys = torch.arange(w) + 0.5, torch.arange(h)[:, None] + 0.5
    return ((core * xs).sum() / core.sum()).item(), ((core * ys).sum() / core.sum()).item()


ITEM_TFMS = st.builds(lambda hw, kind: RandomResizedCrop(hw, min_scale=0.4) if kind == "random" else Resize(hw, method=kind, pad_mode="zeros"),
                      st.tuples(st.integers(40, 110), st.integers(40, 110)), st.sampled_from(["crop", "pad", "squish", "random"]))
AUGMENTS = st.builds(
    lambda flip, rot, zoom, warp, size, part: Augment(flip_vert=flip, max_rotate=rot, min_zoom=0.8, max_zoom=zoom, max_warp=warp, size=size,
                                                      min_scale=part, max_lighting=0.0, p_affine=1.0, pad_mode="zeros"),
    st.booleans(), st.sampled_from([0.0, 10.0, 45.0, 180.0]), st.floats(0.8, 1.6), st.sampled_from([0.0, 0.2, 0.5]),
    st.one_of(st.none(), st.tuples(st.integers(48, 96), st.integers(48, 96))), st.sampled_from([1.0, 0.6]))
SIZES = st.tuples(st.integers(60, 240), st.integers(60, 240))


@settings(max_examples=80, deadline=None)
@given(SIZES, st.tuples(st.floats(0.15, 0.85), st.floats(0.15, 0.85)), ITEM_TFMS, AUGMENTS, st.booleans(), st.integers(0, 2**31))
def test_a_dot_and_its_point_stay_together(size, at, item_tfm, augment, train, seed) -> None:
    (w, h), kinds = size, ["image", "mask", "points"]
    x, y = at[0] * w, at[1] * h
    img = dotted(w, h, x, y, r=max(3.0, 0.03 * max(w, h)))
    parts = item_tfm.run([img, (img[0] > 100).byte(), torch.tensor([[x, y]])], kinds, rng=random.Random(seed), train=train)
    if center(parts[0][0].float() / 255) is None:  # cut off by the first step, so its center of mass is elsewhere
        return
    batch = [p[None] for p in parts]
    tfms = [augment, Normalize.from_stats(*imagenet_stats), PointScaler()]
    for t in tfms:
        batch = t.apply(batch, kinds, rng=torch.Generator().manual_seed(seed), train=train)
    assert ((batch[2] >= -1) & (batch[2] <= 1)).all() or train or not isinstance(item_tfm, Resize) or item_tfm.method == "crop" or augment.size
    for t in reversed(tfms):
        batch = t.decode(batch, kinds)
    shown, mask, (px, py) = batch[0][0, 0], batch[1][0], batch[2][0, 0].tolist()
    assert mask.shape == shown.shape and set(mask.unique().tolist()) <= {0, 1}
    if (found := center(shown)) is None:
        return
    size_now = 0.02 * max(shown.shape)
    assert abs(found[0] - px) < 0.75 + size_now and abs(found[1] - py) < 0.75 + size_now, (found, (px, py))
    in_mask = center(mask.float())
    if in_mask is not None:  # nearest neighbor: a pixel of the photo may have become several
        coarse = 1.5 + size_now + 0.5 * max(shown.shape) / min(w, h)
        assert abs(in_mask[0] - px) < coarse and abs(in_mask[1] - py) < coarse, (in_mask, (px, py))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4), ITEM_TFMS, AUGMENTS)
def test_predictions_come_back_in_pixels_of_the_photo(size, at, item_tfm, augment) -> None:
    (w, h), where = size, [(x * size[0], y * size[1]) for x, y in at]
    photos = [Image.new("RGB", (w, h), c) for c in ("red", "blue")]
    block = DataBlock(blocks=(ImageBlock, PointBlock), get_x=photos.__getitem__, get_y=lambda _: where, splitter=IndexSplitter([1]),
                      item_tfms=item_tfm, batch_tfms=[augment, Normalize.from_stats(*imagenet_stats)])
    dl = block.dataloaders([0, 1], bs=1, **OPTIONS).valid
    back = to_photo(dl.first_batch().y[0], dl, 0)
    assert torch.allclose(back, torch.tensor(where), atol=1e-3 * max(w, h)), (back, where)


# ------------------------------------------------------------------------------------------- a learner of points


class Sees(nn.Module):
    """Knows where the brightest part of an image is: right about every dot, if transforms move points as they move pixels."""

    def __init__(self, n: int = 1) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        light = x.mean(1)
        light = (light - (light.amin((1, 2), keepdim=True) + light.amax((1, 2), keepdim=True)) / 2).clamp(min=0)
        h, w = light.shape[1:]
        xs, ys = ((2 * torch.arange(n) + 1) / n - 1 for n in (w, h))
        total = light.sum((1, 2))
        return self.scale * torch.stack([(light.sum(1) * xs).sum(1) / total, (light.sum(2) * ys).sum(1) / total], 1)


@pytest.fixture
def dots(tmp_path: Path) -> Path:
    """Dark photos of several shapes, with a light dot at the place that the name says."""
    folder, rng = tmp_path / "dots", random.Random(0)
    folder.mkdir()
    for k in range(16):
        w, h = (150, 100) if k % 2 else (110, 130)
        x, y = rng.randint(35, w - 35), rng.randint(35, h - 35)
        img = Image.new("RGB", (w, h), "#101010")
        ImageDraw.Draw(img).ellipse((x - 6, y - 6, x + 5, y + 5), fill="white")  # so its center is (x, y), a corner of pixels
        img.save(folder / f"{x}_{y}_{k}.png")
    return folder


def place(file: Path) -> tuple[int, ...]:
    return tuple(map(int, Path(file).stem.split("_")[:2]))


def loaders(folder: Path, **options) -> DataLoaders:
    block = DataBlock(blocks=(ImageBlock, PointBlock), get_y=options.pop("get_y", place), splitter=IndexSplitter([0, 1, 2, 3]),
                      item_tfms=options.pop("item_tfms", Resize(64, method="pad", pad_mode="zeros")),
                      batch_tfms=options.pop("batch_tfms", aug_transforms(pad_mode="zeros", max_lighting=0)))
    return block.dataloaders(sorted(folder.iterdir()), **{"bs": 4} | OPTIONS | options)


@pytest.mark.parametrize("item_tfm", [Resize(64, method="pad", pad_mode="zeros"), Resize((48, 72), method="squish"), Resize(64)], ids=repr)
@pytest.mark.parametrize("size", [None, 48])
def test_a_perfect_model_is_right_with_and_without_tta(dots: Path, item_tfm, size) -> None:
    dls = loaders(dots, item_tfms=item_tfm, batch_tfms=aug_transforms(pad_mode="zeros", max_lighting=0, max_rotate=30, size=size))
    learn = Learner(dls, Sees(), metrics=point_error, precision="fp32")
    with learn.no_bar():
        assert learn.validate()[1] < 0.015
        plain, tta = learn.get_preds(), learn.tta(n=5)
    assert plain.preds.shape == (4, 2) and plain.targs.shape == (4, 1, 2)
    assert point_error(tta.preds, tta.targs) < 0.02
    assert point_error(tta.preds * torch.tensor([-1.0, 1.0]), tta.targs) > 0.05  # the test would notice a flip that was not taken back


def test_predict_answers_in_pixels_of_the_photo(dots: Path) -> None:
    learn = Learner(loaders(dots), Sees(), precision="fp32")
    for file in sorted(dots.iterdir()):
        for item in (file, file.read_bytes(), Image.open(file)):
            said = learn.predict(item)
            assert said.label.shape == (1, 2) and torch.allclose(said.label, torch.tensor([place(file)]).float(), atol=1.2), (file, said)
        assert said.probabilities.abs().max() <= 1
    with open(file, "rb") as stream:
        assert torch.allclose(learn.predict(stream).label, said.label)


def test_a_large_photo_is_not_read_smaller_for_points(tmp_path: Path) -> None:
    """In training and in prediction alike: how much smaller a JPEG gets is not exact."""
    folder = tmp_path / "large"
    folder.mkdir()
    for k in range(6):
        img = Image.new("RGB", (1003, 805), "#101010")
        ImageDraw.Draw(img).ellipse((860 - 40, 300 + 50 * k - 40, 860 + 39, 300 + 50 * k + 39), fill="white")
        img.save(folder / f"860_{300 + 50 * k}_{k}.jpg", quality=95)
    learn = Learner(loaders(folder), Sees(), precision="fp32")
    file = learn.dls.valid_ds.items[0]
    test = learn.dls.test_dl([file])
    assert torch.equal(test.first_batch().x, learn.dls.valid.first_batch().x[:1])
    assert torch.allclose(learn.predict(file).label, torch.tensor([place(file)]).float(), atol=6)  # a pixel of 64 is 16 of the photo


def test_results_are_shown_in_pixels_of_the_image(dots: Path) -> None:
    learn = Learner(loaders(dots), Sees(), precision="fp32")
    learn.show_results(max_n=4)
    titles = [ax.get_title() for ax in plt.gcf().axes[:4]]
    plt.close("all")
    for title, (_, actual) in zip(titles, learn.dls.decode(learn.dls.valid.first_batch())):
        x, y = actual[0].tolist()
        assert f"({x:.0f}, {y:.0f})\n" in title and float(title.split(", ")[-1].removesuffix(" px off")) < 1.5, title


def test_points_are_learned_saved_and_found_by_another_process(dots: Path, tmp_path: Path) -> None:
    learn = vision_learner(loaders(dots), "coursenet", metrics=point_error, seed=1, precision="fp32")
    assert learn.dls.n_out == 2 and "MSELossFlat" in repr(learn.loss_func)
    with learn.no_bar():
        learn.fit_one_cycle(2, 1e-2)
        before = learn.validate()
    file, photo = learn.export(tmp_path / "dot.ck"), sorted(dots.iterdir())[0]
    code = f"""from coursekit.deploy.hub import load_learner
learn = load_learner({str(file)!r}, device="cpu")
print(learn.predict({str(photo)!r}).label.tolist()[0])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    want = learn.predict(photo).label[0].tolist()
    assert eval(done.stdout.splitlines()[-1]) == pytest.approx(want, abs=0.01)
    loaded = load_learner(file, device="cpu")
    again = loaded.validate(loaded.dls.test_dl([(f, place(f)) for f in learn.dls.valid_ds.items], with_labels=True))
    assert again[0] == pytest.approx(before[0], rel=1e-4)
    assert torch.allclose(loaded.predict(io.BytesIO(photo.read_bytes())).label, torch.tensor([want]), atol=0.01)


def test_points_get_a_head_that_keeps_places(dots: Path) -> None:
    """A few steps find the dots, which the pooled head doesn't; points and a class together get the pooled head."""
    off = {}
    for head in (None, False):
        learn = vision_learner(loaders(dots), "coursenet", metrics=point_error, seed=1, precision="fp32", point_head=head)
        with learn.no_bar():
            learn.fine_tune(5, 1e-2, lr_mult=5)
            off[head] = learn.validate()[1]
    assert off[None] < 0.05 < 0.2 < off[False], off
    block = DataBlock(blocks=(ImageBlock, PointBlock, CategoryBlock), n_inp=1, get_y=[place, lambda f: int(f.stem.split('_')[2]) % 2], item_tfms=Resize(64))
    both = block.dataloaders(sorted(dots.iterdir()), bs=4, **OPTIONS)
    assert isinstance(vision_learner(both, "coursenet", n_out=3).model.spec, VisionModel)
    with raises(ValueError, "vision_learner", "3 outputs", "point_head=False"):
        vision_learner(both, "coursenet", n_out=3, point_head=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_a_place_is_the_mean_of_the_cells(h: int, w: int, seed: int) -> None:
    shares = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(seed)).double()
    shares /= shares.sum((2, 3), keepdim=True)
    wanted = [sum(shares[..., y, x] * ((2 * k + 1) / n - 1) for y in range(h) for x in range(w) for k, n in [(x, w) if axis == 0 else (y, h)]) for axis in (0, 1)]
    found = mean_place(shares)
    assert torch.allclose(found, torch.stack(wanted, -1), atol=1e-6) and found.abs().max() <= 1
    assert torch.allclose(mean_place(shares.flip(3)), found * torch.tensor([-1.0, 1.0]), atol=1e-6)


def test_a_graph_and_a_page_predict_points(dots: Path, tmp_path: Path) -> None:
    learn = vision_learner(loaders(dots, batch_tfms=[]), "coursenet", seed=1, precision="fp32")
    assert learn.export(tmp_path / "dot.onnx").stat().st_size > 1e5  # the export compares the predictions of both
    assert page_spec(learn)["kind"] == "points"


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(("value", "facts"), [
    ((500.0, 20.0), ["(500, 20)", "outside", "150 x 100"]),
    ((10.0, -3.0), ["(10, -3)", "outside"]),
    ((20.0, 140.0), ["(20, 140)", "x and y exchanged"]),
    ((float("nan"), 3.0), ["nan", "not finite", "drop"]),
    ((float("inf"), 3.0), ["inf", "not finite"]),
    ((1.0, 2.0, 3.0), ["3 numbers", "(x, y)"]),
    ([(1.0, 2.0), (3.0, 4.0)], ["2 points", "should have 1"]),
    ("left", ["'left'", "(x, y)"]),
    (None, ["None"]),
])  # fmt: skip
def test_bad_points_are_refused_with_their_file(dots: Path, value, facts) -> None:
    bad = sorted(dots.iterdir())[-1]
    wide = bad.with_name("75_50_99.png")
    Image.new("RGB", (150, 100)).save(wide)

    def get_y(file: Path) -> object:
        return value if file.name == wide.name else place(file)

    with raises(ValueError, wide.name, *facts):
        dls = loaders(dots, get_y=get_y, bs=1)
        list(dls.train), list(dls.valid)


def test_scaled_points_are_refused(dots: Path) -> None:
    with raises(ValueError, "pixels", "scaled"):
        loaders(dots, get_y=lambda f: (place(f)[0] / 150, place(f)[1] / 130))


def test_several_points_keep_their_order(dots: Path) -> None:
    dls = loaders(dots, get_y=lambda f: [place(f), (1, 2), (3, 4)], batch_tfms=[], item_tfms=Resize((100, 150), method="squish"))
    assert dls.n_out == 6
    _, points = dls.decode(dls.valid.first_batch())[0]
    w, h = Image.open(dls.valid_ds.items[0]).size
    assert torch.allclose(points, torch.tensor([place(dls.valid_ds.items[0]), (1, 2), (3, 4)]) * torch.tensor([150 / w, 100 / h]), atol=1e-3)


def test_the_report_of_points_counts_in_pixels(dots: Path) -> None:
    learn = Learner(loaders(dots, item_tfms=Resize((40, 60), method="squish"), batch_tfms=[]), Sees(), precision="fp32")
    interp = Interpretation.from_learner(learn)
    (row,) = interp.report().values
    far = [(a - p).norm().item() for (_, a), (_, p) in zip(*(learn.dls.decode(Batch(b.xs, (y,))) for b in learn.dls.valid for y in (b.y, learn.model(b.x).detach())))]
    assert row[1:] == pytest.approx([sum(far) / 4, sorted(far)[1], max(far), 4], abs=1e-4)
    interp.plot_top_losses(4)
    assert all("px off" in ax.get_title() for ax in plt.gcf().axes[:4])
    plt.close("all")


def test_the_command_line_answers_in_pixels_of_the_photo(dots: Path) -> None:
    learn, files = Learner(loaders(dots), Sees(), precision="fp32"), sorted(dots.iterdir())[:5]
    for file, said in zip(files, predict_files(learn, files, bs=3)):
        assert torch.allclose(torch.tensor(said.label), learn.predict(file).label, atol=1e-3) and said.top == []
