"""vision.transforms: geometry against closed forms, points against pixels, draws against their probabilities."""

import dataclasses
import json
import math
import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coursekit.vision import augment as tf
from coursekit.vision import pixels
from coursekit.vision import resize as rs
from coursekit.vision.images import to_uint8_tensor
from coursekit.vision.augment import Augment, Normalize, ToFloat, aug_transforms, cifar_stats, fuse_tfms, imagenet_stats, mnist_stats
from coursekit.vision.resize import RandomResizedCrop, Resize

OFF = {"do_flip": False, "max_rotate": 0.0, "max_zoom": 1.0, "max_lighting": 0.0, "max_warp": 0.0}
ALWAYS = {"p_affine": 1.0, "p_lighting": 1.0}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth(n=4, h=32, w=32, seed=0):
    "Float pictures without fine detail, so that interpolation is nearly exact."
    x = torch.rand(n, 3, 6, 6, generator=rng(seed))
    return torch.nn.functional.interpolate(x, size=(h, w), mode="bilinear", align_corners=True)


def as_bytes(x):
    return (x * 255).round().to(torch.uint8)


def run(aug, *tensors, kinds=("image",), seed=0, train=True):
    out = aug.apply(list(tensors), list(kinds), rng=rng(seed), train=train)
    return out[0] if len(tensors) == 1 else out


def close_bytes(a, b, scale=1.0):
    "Equal but for bytes that are rounded after the interpolation, whose places are multiples of 1/32 pixel; lighting may double that."
    diff = (a - b).abs() / scale
    return bool(diff.max() < 4 / 255 and diff.mean() < 1 / 255)


def by_matrix(x, matrix):
    "Pictures moved by one matrix, through the code that augmentation uses."
    n = len(x)
    none = torch.zeros(n, dtype=torch.float64)
    draw = pixels._Draw(matrix.expand(n, 3, 3), torch.full((n,), 8), none, none + 1, tuple(x.shape[-2:]))
    return pixels._augment_images(x, draw, mode="bilinear", pad_mode="zeros", step=1.0)


# ---- geometry ----


def degrees(*v):
    return torch.tensor(v, dtype=torch.float64)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_equal_rot90(quarters):
    x = smooth()
    assert torch.allclose(by_matrix(x, pixels._rotation(degrees(90.0 * quarters))), torch.rot90(x, quarters, (2, 3)), atol=1e-4)


def test_rotation_is_rigid_on_a_picture_that_is_not_square():
    "Pixels that are a distance apart stay that distance apart."
    size, pts = (60, 120), torch.tensor([[[60.0, 30.0], [70.0, 30.0], [60.0, 40.0]]])
    m = pixels._aspect(pixels._rotation(degrees(30.0)), size)
    draw = pixels._Draw(m, torch.tensor([8]), degrees(0.0), degrees(1.0), size)
    p = pixels._augment_points(pts, draw, size)[0]
    assert torch.allclose((p[1] - p[0]).norm(), torch.tensor(10.0), atol=1e-4)
    assert torch.allclose((p[2] - p[0]).norm(), torch.tensor(10.0), atol=1e-4)
    assert abs((p[1] - p[0]) @ (p[2] - p[0])) < 1e-4
    assert torch.allclose(p[1] - p[0], 10 * torch.tensor([math.cos(math.pi / 6), -0.5]), atol=1e-3)  # anticlockwise


def test_two_half_turns_and_two_flips_are_nothing():
    x = smooth()
    half = pixels._rotation(degrees(180.0))
    assert torch.allclose(by_matrix(by_matrix(x, half), half), x, atol=1e-4)


def test_zoom_of_two_is_the_middle_enlarged():
    x = smooth(h=32, w=32)
    z = by_matrix(x, pixels._zoom(degrees(2.0), degrees(0.5), degrees(0.5)))
    want = torch.nn.functional.interpolate(x[..., 7:25, 7:25], scale_factor=2, mode="bilinear")[..., 2:-2, 2:-2]
    assert torch.allclose(z, want, atol=1e-4)


@pytest.mark.parametrize("x", [smooth(8), as_bytes(smooth(8)), as_bytes(smooth(8, 20, 36))], ids=["float", "bytes", "oblong"])
def test_a_flip_is_a_flip_and_nothing_to_do_is_nothing(x):
    before = x.clone()
    (xf,) = ToFloat().apply([x], ["image"])
    assert torch.equal(run(Augment(**OFF, **ALWAYS), x), xf)
    assert torch.equal(run(Augment(p_affine=0.0, p_lighting=0.0, do_flip=False), x), xf)
    y, flipped = run(Augment(**{**OFF, "do_flip": True}), x), 0
    for i in range(len(x)):
        flipped += torch.equal(y[i], xf[i].flip(-1))
        assert torch.equal(y[i], xf[i]) or torch.equal(y[i], xf[i].flip(-1))
    assert 0 < flipped < len(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("h", "w", "ways"), [(24, 24, 8), (24, 36, 4)])
def test_flip_vert_gives_all_the_symmetries(h, w, ways):
    x = smooth(1, h, w).expand(200, -1, -1, -1)
    y = run(Augment(**{**OFF, "do_flip": True}, flip_vert=True), x)
    found = {}
    for way in range(8 if h == w else 4):
        same = (y == pixels._flipped(x[0], way)).flatten(1).all(1)
        found[way] = int(same.sum())
    assert len(found) == ways and sum(found.values()) == 200
    assert all(200 / ways * 0.4 < n < 200 / ways * 1.8 for n in found.values())


def test_the_matrix_of_an_exact_flip_agrees_with_the_flip():
    "Points use the matrix and pixels the flip: both must say the same."
    for seed in range(20):
        aug, x = Augment(**{**OFF, "do_flip": True}, flip_vert=True), smooth(8, 24, 24, seed)
        draw = tf._drawn(aug, 8, (24, 24), (24, 24), rng(seed))
        forced = dataclasses.replace(draw, way=torch.full((8,), 8))
        exact, sampled = (pixels._augment_images(x, d, mode="bilinear", pad_mode="zeros", step=1.0) for d in (draw, forced))
        assert torch.allclose(exact, sampled, atol=1e-4)


def test_division_and_no_division_agree():
    m = pixels._matrix(3, {(0, 2): degrees(0.1, 0.2, 0.3)}).float()
    tilted = m.clone()
    tilted[2, 2, 0] = 1e-12
    assert torch.allclose(pixels._grid(m, (9, 7)), pixels._grid(tilted, (9, 7)), atol=1e-6)


# ---- points and masks go with the pixels ----

STRONG = [
    {"max_rotate": 180.0}, {"max_zoom": 2.0}, {"min_zoom": 0.5, "max_zoom": 0.8}, {"max_warp": 1.0}, {"flip_vert": True},
    {"size": 40}, {"size": (80, 50)}, {"size": 64, "min_scale": 0.4}, {"size": 150},
    {"max_rotate": 45.0, "max_zoom": 1.5, "max_warp": 0.6, "flip_vert": True, "size": (90, 70), "min_scale": 0.6},
]  # fmt: skip


@pytest.mark.parametrize("options", STRONG, ids=str)
@pytest.mark.parametrize("shape", [(96, 96), (72, 120)], ids=str)
def test_points_follow_the_pixels(options, shape):
    "A bright dot is drawn; after augmentation its centre of mass is where its point went."
    n, (h, w) = 48, shape
    g = torch.rand(n, 2, generator=rng(5)) * 0.5 + 0.25
    pts = g * torch.tensor([w, h])
    x, y = torch.arange(w) + 0.5, torch.arange(h)[:, None] + 0.5
    dist = (x - pts[:, 0, None, None]) ** 2 + (y - pts[:, 1, None, None]) ** 2
    imgs = torch.exp(-dist / 8)[:, None].expand(-1, 3, -1, -1)
    aug = Augment(**{**OFF, "do_flip": True, **options}, pad_mode="zeros", p_affine=1.0)
    out, moved = run(aug, imgs, pts[:, None], kinds=("image", "points"), seed=3)
    assert moved.shape == (n, 1, 2) and moved.dtype == pts.dtype
    oh, ow = out.shape[-2:]
    xs, ys, checked = torch.arange(ow) + 0.5, torch.arange(oh)[:, None] + 0.5, 0
    for img, (px, py) in zip(out[:, 0], moved[:, 0].tolist()):
        if not (0.2 * ow < px < 0.8 * ow and 0.2 * oh < py < 0.8 * oh):
            continue
        core = img * (img > 0.2)
        centre = ((core * xs).sum() / core.sum(), (core * ys).sum() / core.sum())
        assert math.hypot(centre[0] - px, centre[1] - py) < 0.8, (options, centre, (px, py))
        checked += 1
    assert checked > 8


@pytest.mark.parametrize("options", STRONG, ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_masks_follow_the_pixels_and_invent_no_label(options, dtype):
    levels = torch.tensor([0, 3, 7, 255])
    mask = levels[(smooth(16, 96, 96)[:, 0] * 4).long().clamp(0, 3)]
    img = (mask / 255)[:, None].expand(-1, 3, -1, -1)
    aug = Augment(**{**OFF, "do_flip": True, **options}, mode="nearest", p_affine=1.0)
    out, moved = run(aug, img, mask.to(dtype), kinds=("image", "mask"))
    assert moved.dtype == dtype and moved.shape == (16, *out.shape[-2:])
    assert set(moved.unique().tolist()) <= set(levels.tolist())
    same = (out[:, 0] * 255).round() == moved
    assert same.float().mean() > (0.85 if "size" in options else 0.99)  # a picture that shrinks is averaged at its edges
    kept = run(aug, mask.to(dtype)[:, None], kinds=("mask",))
    assert torch.equal(kept[:, 0], moved)


def test_validation_with_a_size_moves_all_parts_alike():
    img, mask = smooth(3, 60, 100), (smooth(3, 60, 100)[:, 0] > 0.5).long()
    pts = torch.tensor([[50.0, 30.0], [20.0, 0.0], [80.0, 60.0]])[None].expand(3, -1, -1)
    out = run(Augment(size=30), img, mask, pts, kinds=("image", "mask", "points"), train=False)
    assert out[0].shape == (3, 3, 30, 30) and out[1].shape == (3, 30, 30)
    assert torch.allclose(out[2][0], torch.tensor([[15.0, 15.0], [0.0, 0.0], [30.0, 30.0]]))
    assert torch.allclose(out[0], torch.nn.functional.avg_pool2d(img[..., 20:80], 2), atol=0.05)
    out8 = run(Augment(size=30), as_bytes(img), train=False)
    assert out8.dtype == torch.uint8 and (out8 / 255 - out[0]).abs().max() < 0.01


def test_shrinking_passes_over_no_pixel():
    "A fine chequerboard shrunk to a quarter is even grey, not a pattern."
    x = ((torch.arange(128) + torch.arange(128)[:, None]) % 2).float().expand(4, 3, -1, -1)
    for train in (True, False):
        y = run(Augment(**OFF, size=32), x, train=train)
        assert (y - 0.5).abs().max() < 0.02


# ---- colour ----


def test_lighting_keeps_black_white_and_order():
    x = torch.linspace(0, 1, 256).view(1, 1, 1, 256).expand(64, 3, 4, -1)
    y = run(Augment(**{**OFF, "max_lighting": 0.5}, p_lighting=1.0), as_bytes(x))
    assert (y[..., 0] < 0.01).all() and (y[..., -1] > 0.99).all()
    assert (y.diff(dim=-1) >= 0).all() and (y - x).abs().amax((1, 2, 3)).min() > 1e-3
    assert torch.equal(y[:, 0], y[:, 1])


def test_lighting_closed_form():
    aug = Augment(**{**OFF, "max_lighting": 0.2}, p_lighting=1.0)
    draw, x = tf._drawn(aug, 500, (8, 8), (8, 8), rng()), smooth(500, 8, 8)
    bright, contrast = draw.bright.view(-1, 1, 1, 1), draw.contrast.view(-1, 1, 1, 1)
    z = x.double().clamp(1e-6, 1 - 1e-6)
    want = 1 / (1 + ((1 - z) / z) ** contrast * (-bright).exp())
    assert torch.allclose(run(aug, x).double(), want, atol=1e-4)
    middle = torch.sigmoid(draw.bright)
    assert middle.min() > 0.4 and middle.min() < 0.405 and middle.max() < 0.6 and middle.max() > 0.595
    assert draw.contrast.min() > 0.8 and draw.contrast.max() < 1.25 and abs(draw.contrast.log().mean()) < 0.02


def test_bytes_and_floats_agree():
    x = as_bytes(smooth(8, 40, 56))
    a, b = run(Augment(**ALWAYS), x), run(Augment(**ALWAYS), x / 255)
    assert a.dtype == torch.float32 and close_bytes(a, b)
    half = run(Augment(), (x / 255).bfloat16())
    assert half.dtype == torch.bfloat16


# ---- draws ----


def test_probabilities_and_ranges():
    n, size = 20_000, (32, 32)
    for p in (0.0, 0.3, 0.75, 1.0):
        draw = tf._drawn(Augment(p_affine=p, p_lighting=p, do_flip=False), n, size, size, rng())
        assert abs((draw.bright != 0).double().mean() - p) < 0.02
        assert abs((draw.contrast != 1).double().mean() - p) < 0.02
        assert abs((draw.way == 8).double().mean() - (1 - (1 - p) ** 3)) < 0.02
    rotated = tf._drawn(Augment(**{**OFF, "max_rotate": 10.0}, p_affine=1.0), n, size, size, rng()).matrix
    angle = torch.rad2deg(torch.atan2(rotated[:, 1, 0], rotated[:, 0, 0]))
    assert angle.abs().max() <= 10 and angle.min() < -9.9 and angle.max() > 9.9 and abs(angle.mean()) < 0.2
    zoomed = tf._drawn(Augment(**{**OFF, "max_zoom": 1.1}, p_affine=1.0), n, size, size, rng()).matrix[:, 0, 0]
    assert 1 / zoomed.min() <= 1.1 + 1e-9 and 1 / zoomed.max() >= 1 - 1e-9 and abs((1 / zoomed).mean() - 1.05) < 0.002
    flips = tf._drawn(Augment(**{**OFF, "do_flip": True}), n, size, size, rng()).way
    assert abs((flips == 1).double().mean() - 0.5) < 0.02


def test_seeds_decide_everything_and_global_states_stay():
    x, aug = as_bytes(smooth(8)), Augment(**ALWAYS)
    legacy = lambda: np.random.get_state()[1].tolist()  # noqa: NPY002
    states = (torch.get_rng_state(), random.getstate(), legacy())
    a, b, c = run(aug, x, seed=1), run(aug, x, seed=1), run(aug, x, seed=2)
    img = torch.zeros(3, 40, 60, dtype=torch.uint8)
    for t in (Resize(20), RandomResizedCrop(20)):
        t.run([img], ["image"], rng=random.Random(0), train=True)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert states[2] == legacy()


def test_a_sample_does_not_depend_on_its_neighbours(monkeypatch):
    x = as_bytes(smooth(10, 48, 48))
    whole = run(Augment(**ALWAYS), x)
    assert torch.allclose(run(Augment(**ALWAYS), x[:6]), whole[:6], atol=1e-6)
    floats = run(Augment(**ALWAYS), x / 255)
    asked = []
    monkeypatch.setattr(pixels, "_pieces", lambda x, out: asked.append(len(x)) or 3)
    assert torch.allclose(run(Augment(**ALWAYS), x / 255), floats, atol=1e-6) and asked  # pictures of floats go in pieces


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_pictures():
    x = as_bytes(smooth(8, 64, 64))
    a, b = run(Augment(**ALWAYS), x), run(Augment(**ALWAYS), x.cuda())
    assert b.device.type == "cuda" and close_bytes(a, b.cpu())


# ---- the rest of the batch transforms ----


def test_normalize_closed_form_and_its_inverse():
    x = as_bytes(smooth(5))
    for stats in (imagenet_stats, cifar_stats, ((0.5,), (0.25,))):
        norm = Normalize.from_stats(*stats)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in stats)
        for given_x in (x, x / 255):
            (y,) = norm.apply([given_x], ["image"], rng=rng(), train=False)
            assert torch.allclose(y, (x / 255 - mean) / std, atol=1e-5)
            assert torch.allclose(norm.decode([y], ["image"])[0], x / 255, atol=1e-5)
    assert mnist_stats == ((0.1307,), (0.3081,))


def test_only_pictures_are_normalised_and_made_float():
    x, label = as_bytes(smooth(2)), torch.tensor([1, 2])
    for t in (Normalize.from_stats(*imagenet_stats), ToFloat(), Augment()):
        out = t.apply([x, label], ["image", "category"], rng=rng(), train=True)
        assert out[1] is label and out[0] is not x
        assert t.decode([x], ["mask"])[0] is x
    assert run(Augment(), label, kinds=("category",)) is label


@pytest.mark.parametrize("train", [True, False])
def test_fused_equals_one_after_the_other(train):
    x, norm = as_bytes(smooth(8, 40, 40)), Normalize.from_stats(*imagenet_stats)
    for tfms in ([Augment(), norm], [Augment(size=24), ToFloat(), norm]):
        a, b = [x], [x]
        for t in tfms:
            a = t.apply(a, ["image"], rng=rng(), train=train)
        fused = fuse_tfms(tfms)
        assert len(fused) == 1
        b = fused[0].apply(b, ["image"], rng=rng(), train=train)
        assert torch.allclose(a[0], b[0], atol=2e-4)
        assert torch.allclose(fused[0].decode(b, ["image"])[0], norm.decode(a, ["image"])[0], atol=2e-4)
    (b,) = fuse_tfms([Augment(), norm])[0].apply([x / 255], ["image"], rng=rng(), train=train)
    (a,) = fuse_tfms([Augment(), norm])[0].apply([x], ["image"], rng=rng(), train=train)
    assert close_bytes(a, b, 1 / 0.224)
    for kept in ([norm], [norm, Augment()], [ToFloat(), norm], [Augment(pad_mode="zeros"), norm], []):
        assert fuse_tfms(kept) == tuple(kept)


def test_an_empty_batch_passes():
    x = torch.empty(0, 3, 8, 8, dtype=torch.uint8)
    for t in (Augment(), ToFloat(), Normalize.from_stats(*imagenet_stats)):
        assert run(t, x).shape == (0, 3, 8, 8)


ALL = [Resize(224), Resize((120, 160), method="pad", pad_mode="zeros"), RandomResizedCrop(64, min_scale=0.3), ToFloat(), Augment(),
       Augment(size=(90, 60), min_scale=0.5), Normalize.from_stats(*imagenet_stats), *aug_transforms(0.5)]  # fmt: skip


@pytest.mark.parametrize("t", ALL, ids=repr)
def test_transforms_survive_json(t):
    again = type(t)(**json.loads(json.dumps(dataclasses.asdict(t))))
    assert again == t and hash(again) == hash(t) and eval(repr(t), vars(tf) | vars(rs)) == t


def test_names_and_defaults():
    (aug,) = aug_transforms()
    assert aug == Augment() and repr(aug) == "Augment()"
    got = [getattr(aug, f) for f in ("do_flip", "max_rotate", "max_zoom", "max_warp", "max_lighting", "pad_mode")]
    assert got == [True, 10.0, 1.1, 0.2, 0.2, "reflection"]
    none = aug_transforms(0.0, do_flip=False, max_zoom=1.0)[0]
    assert torch.equal(run(none, smooth()), smooth())


ERRORS = [
    (lambda: Augment(max_rotate=-1), "max_rotate must be a number from 0 to 180, got -1"),
    (lambda: Augment(max_zoom=0.5), "max_zoom must be a number from 1 to 10, got 0.5"),
    (lambda: Augment(max_lighting=1.0), "max_lighting must be"),
    (lambda: Augment(max_warp="a"), "max_warp must be"),
    (lambda: aug_transforms(p_lighting=1.5), "p_lighting must be a number from 0 to 1, got 1.5"),
    (lambda: aug_transforms(-1.0), "mult must be"),
    (lambda: aug_transforms(min_scale=0.0), "min_scale must be"),
    (lambda: aug_transforms(size=2.5), "size=2.5 is not a size"),
    (lambda: aug_transforms(mode="cubic"), "mode='cubic' is unknown; use 'bilinear', 'nearest' or 'bicubic'"),
    (lambda: Resize((1, 2, 3)), r"size=\(1, 2, 3\)"),
    (lambda: Resize(-4), "size=-4"),
    (lambda: Resize(True), "size=True"),
    (lambda: Resize(9, pad_mode="mirror"), "pad_mode='mirror' is unknown"),
    (lambda: RandomResizedCrop(9, val_xtra=1), "val_xtra must be"),
    (lambda: Normalize([0.5] * 3, [0.5]), "one of each per channel"),
    (lambda: Normalize([0.5], [-1.0]), "deviations over 0"),
    (lambda: Normalize.from_stats(*imagenet_stats).apply([torch.zeros(3, 8, 8)], ["image"]), r"have shape \(3, 8, 8\)"),
]


@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_options_out_of_range_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as e:
        make()
    assert "\n" not in str(e.value) and (";" in str(e.value) or "must be" in str(e.value))


# ---- item transforms ----


def ramp(w, h):
    "A picture whose red says x and whose green says y, both from 0 to 255 over the picture."
    x, y = np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h)
    return to_uint8_tensor(Image.fromarray((np.stack([x, y, 0 * x], 2) * 255).round().astype(np.uint8)))


sides = st.integers(1, 150)


@settings(max_examples=60, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from(["crop", "pad", "squish", "rrc"]), st.booleans(), st.integers(0, 99))
def test_item_transforms_give_the_size_for_any_picture(w, h, rows, cols, method, train, seed):
    t = RandomResizedCrop((rows, cols)) if method == "rrc" else Resize((rows, cols), method=method)
    mask = (torch.arange(h * w).view(h, w) % 5 * 50).byte()
    img, msk, pts, label = t.run([ramp(w, h), mask, torch.tensor([[w / 2, h / 2]]), "cat"],
                                   ["image", "mask", "points", "category"], rng=random.Random(seed), train=train)  # fmt: skip
    assert img.shape == (3, rows, cols) and msk.shape == (rows, cols) and label == "cat"
    assert set(msk.unique().tolist()) <= {0, 50, 100, 150, 200}
    assert pts.shape == (1, 2) and torch.isfinite(pts).all()
    if not train:
        assert (pts - torch.tensor([[cols / 2, rows / 2]])).abs().max() <= max(1.01, max(rows / h, cols / w))  # a pixel, old or new


@pytest.mark.parametrize("t", [Resize((60, 80)), Resize((90, 50), method="pad"), Resize((50, 50), method="squish"),
                               RandomResizedCrop((60, 60), min_scale=0.3), RandomResizedCrop((40, 90))], ids=repr)  # fmt: skip
@pytest.mark.parametrize("size", [(200, 120), (90, 170), (640, 480)], ids=str)
@pytest.mark.parametrize("train", [True, False])
def test_points_stay_on_their_colour(t, size, train):
    "The ramp's colour at a point says where the point was before."
    (w, h), r = size, random.Random(4)
    for _ in range(10):
        pts = torch.tensor([[r.uniform(0.1, 0.9) * w, r.uniform(0.1, 0.9) * h] for _ in range(30)])
        img, moved = t.run([ramp(w, h), pts], ["image", "points"], rng=r, train=train)
        for (x0, y0), (x, y) in zip(pts.tolist(), moved.tolist()):
            if 1 < x < img.shape[2] - 1 and 1 < y < img.shape[1] - 1:
                red, green, _ = img[:, int(y), int(x)].tolist()
                assert abs(red / 255 * w - x0) <= 0.02 * w and abs(green / 255 * h - y0) <= 0.02 * h


def box_of(img):
    "The part of a ramp that a picture shows: left, top, right, bottom in 0..1, from its colours."
    a = img.permute(1, 2, 0).numpy().astype(float)[..., :2] / 255
    (dx, dy), (n, m) = (a[0, -1, 0] - a[0, 0, 0], a[-1, 0, 1] - a[0, 0, 1]), (a.shape[1] - 1, a.shape[0] - 1)
    x, y = dx / n / 2, dy / m / 2
    return (a[0, 0, 0] - x, a[0, 0, 1] - y, a[0, -1, 0] + x, a[-1, 0, 1] + y)


def test_resize_crops_at_random_in_training_and_centred_otherwise():
    img, lefts, r = ramp(300, 100), [], random.Random(0)
    for _ in range(300):
        (out,) = Resize(50).run([img], ["image"], rng=r, train=True)
        left, top, right, bottom = box_of(out)
        assert abs(right - left - 1 / 3) < 0.02 and top < 0.02 and bottom > 0.98  # all of the short side, in proportion
        lefts.append(left)
    assert min(lefts) < 0.02 and max(lefts) > 2 / 3 - 0.02 and abs(np.mean(lefts) - 1 / 3) < 0.04
    (out,) = Resize(50).run([img], ["image"], rng=r, train=False)
    assert np.allclose(box_of(out), (1 / 3, 0, 2 / 3, 1), atol=0.01)


def test_random_resized_crop_draws_areas_and_shapes():
    img, r, areas = ramp(200, 200), random.Random(0), []
    for _ in range(400):
        (out,) = RandomResizedCrop(64, min_scale=0.25).run([img], ["image"], rng=r, train=True)
        left, top, right, bottom = box_of(out)
        areas.append((right - left) * (bottom - top))
        assert 0.7 < (right - left) / (bottom - top) < 1.4
    assert 0.23 < min(areas) < 0.3 and 0.85 < max(areas) < 1.03
    (out,) = RandomResizedCrop(64, val_xtra=0.2).run([img], ["image"], rng=r, train=False)
    assert np.allclose(box_of(out), (0.1, 0.1, 0.9, 0.9), atol=0.01)


def test_pad_keeps_everything_and_its_proportion():
    out = Resize(100, method="pad", pad_mode="zeros").run([ramp(200, 100)], ["image"], rng=None, train=True)[0].permute(1, 2, 0)
    assert not out[:25].any() and not out[75:].any() and out[25:75].any(2).all()


def test_shrinking_a_picture_is_antialiased():
    a = ((np.arange(256) + np.arange(256)[:, None]) % 2 * 255).astype(np.uint8)
    img = to_uint8_tensor(Image.fromarray(np.stack([a] * 3, 2)))
    for t in (Resize(32), Resize(32, method="squish"), RandomResizedCrop(32, min_scale=0.9)):
        out = t.run([img], ["image"], rng=random.Random(0), train=True)[0].numpy().astype(int)
        assert np.abs(out - 127).max() < 8


def test_parts_that_disagree_or_are_no_picture():
    img = ramp(30, 20)
    with pytest.raises(ValueError, match=r"image has \(20, 30\) pixels .* its mask \(20, 20\)"):
        Resize(10).run([img, img[0, :20, :20]], ["image", "mask"], rng=random.Random(0), train=True)
    assert Resize(10).run([3.5, "x"], ["regression", "category"], rng=random.Random(0), train=True) == [3.5, "x"]
    before = img.clone()
    Resize(10).run([img], ["image"], rng=random.Random(0), train=True)
    assert torch.equal(img, before)


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(Augment(size=16, min_scale=0.5), as_bytes(smooth()), torch.rand(4, 2, 2), kinds=("image", "points"))
        Resize(10).run([ramp(30, 20)], ["image"], rng=random.Random(0), train=True)
