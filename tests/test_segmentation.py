"""Masks: read, checked, drawn, learned, predicted, exported; and one contract for learners over twelve families of architectures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import raises
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score
from test_zoo import whole_weights
from torch import nn

from coursekit.cli.main import main
from coursekit.data.block import CategoryBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.items import get_image_files
from coursekit.data.loader import DataLoaders
from coursekit.deploy.hub import load_learner
from coursekit.interpret.interpretation import Interpretation
from coursekit.interpret.segmentation import SegmentationInterpretation
from coursekit.training.count_metrics import DiceMulti, JaccardCoeffMulti, PixelAccuracy
from coursekit.training.learner import Learner
from coursekit.training.losses import CrossEntropyLossFlat, DiceLoss
from coursekit.vision.augment import aug_transforms
from coursekit.vision.block import ImageBlock
from coursekit.vision.learner import vision_learner
from coursekit.vision.masks import MaskBlock, read_mask
from coursekit.vision.models import body_of
from coursekit.vision.points import PointBlock
from coursekit.vision.models import vision_groups
from coursekit.vision.plan import plan_data
from coursekit.vision.resize import Resize
from coursekit.vision.segmentation import SegmentationDataLoaders, predict_mask, unet_learner
from coursekit.vision.unet import UNetModel, unet_groups

CODES = ["ground", "disk", "?"]
OPTIONS = {"device": "cpu", "num_workers": 0, "seed": 0}


def draw(folder: Path, n: int = 12, size: tuple[int, int] = (100, 90), *, end: str = "", edge: int = 2) -> Path:
    """Bright disks on a dark ground, as photos in `images` and as masks in `masks`; the edge of each disk is class `edge`."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    y, x = np.mgrid[: size[1], : size[0]]
    for i in range(n):
        away = np.hypot(x - rng.uniform(30, size[0] - 30), y - rng.uniform(30, size[1] - 30)) - rng.uniform(14, 24)
        mask = np.where(away < -1, 1, np.where(away < 1, edge, 0)).astype(np.uint8)
        pixels = rng.normal(70, 10, (*mask.shape, 3)) + (away < 0)[..., None] * (120, 100, -30)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"images/{i:02}.jpg", quality=95)
        Image.fromarray(mask).save(folder / f"masks/{i:02}{end}.png")
    return folder


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("disks") / "data")


def mask_file(file: Path) -> Path:
    return file.parent.parent / "masks" / f"{file.stem}.png"


def mask_loaders(path: Path, size: int | None = 80, bs: int = 4, **options) -> SegmentationDataLoaders:
    tfms = {} if size is None else {"item_tfms": Resize(size)}
    return SegmentationDataLoaders.from_label_func(path, get_image_files(path / "images"), mask_file, CODES, void="?", valid_pct=0.34, bs=bs,
                                                   **tfms, **OPTIONS, **options)


def class_loaders(path: Path, size: int) -> DataLoaders:
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_y=lambda f: "even" if int(f.stem) % 2 == 0 else "odd", item_tfms=Resize(size))
    return block.dataloaders(get_image_files(path / "images"), bs=4, **OPTIONS)


def point_loaders(path: Path, size: int) -> DataLoaders:
    block = DataBlock(blocks=(ImageBlock, PointBlock), get_y=lambda f: np.argwhere(read_mask(mask_file(f)) == 1).mean(0)[::-1].tolist(), item_tfms=Resize(size))
    return block.dataloaders(get_image_files(path / "images"), bs=4, **OPTIONS)


# ---- one contract for learners of images, over twelve families ----

FAMILIES = ["resnet18", "vgg11_bn", "squeezenet1_1", "densenet121", "googlenet", "mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_y_400mf", "swin_t",
            "coursenet", "timm/convnext_atto", "efficientnet_lite0"]  # fmt: skip


# Points have the body of classes, so two families are enough for them.
@pytest.mark.parametrize(("arch", "kind"), [*((arch, kind) for arch in FAMILIES for kind in ("masks", "classes")), ("swin_t", "points"), ("coursenet", "points")])
def test_learners_keep_one_contract_over_every_family(disks: Path, tmp_path: Path, arch: str, kind: str) -> None:
    whole_weights(arch, tmp_path / "w.safetensors")
    masks = kind == "masks"
    dls = {"classes": class_loaders, "masks": mask_loaders, "points": point_loaders}[kind](disks, 64)
    make, groups = (unet_learner, unet_groups) if masks else (vision_learner, vision_groups)
    learn = make(dls, arch, weights=tmp_path / "w.safetensors", seed=0)
    learn.progress = False
    twin = make(dls, arch, weights=tmp_path / "w.safetensors", seed=0)
    assert all(torch.equal(a, b) for a, b in zip(learn.model.state_dict().values(), twin.model.state_dict().values()))
    body = body_of(learn.model)
    parts = [list(g.parameters()) if isinstance(g, nn.Module) else list(g) for g in groups(learn.model)]
    assert len(parts) == 3 and all(parts)
    assert sorted(id(p) for g in parts for p in g) == sorted(id(p) for p in learn.model.parameters())
    assert {id(p) for p in learn.model.parameters() if p.requires_grad} == {id(p) for p in parts[2]}
    kept = {k: v.clone() for k, v in body.state_dict().items()}
    learn.fit_one_cycle(1, 1e-3)
    assert all(torch.equal(v, kept[k]) for k, v in body.state_dict().items())  # frozen, statistics of the norms too
    learn.unfreeze()
    learn.fit_one_cycle(1, slice(1e-4, 1e-3))
    changed = [not torch.equal(v, kept[k]) for k, v in body.named_parameters()]
    assert sum(changed) > 0.85 * len(changed)  # timm's bodies have layers behind the features that a U-Net takes
    file = dls.valid_ds.items[0]
    said = learn.predict(file)
    assert list(said.probabilities.shape) == ([3, 64, 64] if masks else [2])
    assert torch.allclose(said.probabilities.sum(0), torch.ones(()), atol=1e-5) or (kind == "points" and said.probabilities.abs().max() < 1)
    again = load_learner(learn.export(tmp_path / "m.ck"), device="cpu")
    assert torch.allclose(again.predict(file).probabilities, said.probabilities, atol=1e-5)
    assert np.array_equal(np.asarray(again.predict(file).label), np.asarray(said.label))
    with raises(ValueError, make.__name__, "weights", "pretrained=False"):
        make(dls, arch, weights=tmp_path / "w.safetensors", pretrained=False)


@pytest.mark.parametrize("make", [unet_learner, vision_learner])
def test_errors_begin_with_the_function_that_was_called(disks: Path, tmp_path: Path, make) -> None:
    dls, name = mask_loaders(disks, 64), make.__name__
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    for facts, options in ((["resnet81"], {"arch": "resnet81", "pretrained": False}), (["none.pth", "does not exist"], {"weights": "none.pth"}),
                           (["bad.pth", "cannot be read"], {"weights": tmp_path / "bad.pth"}), (["maxvit_t", "another"], {"arch": "maxvit_t", "pretrained": False})):
        with pytest.raises((ValueError, OSError), match=f"^{name}: ") as e:
            make(dls, **{"arch": "coursenet"} | options)
        assert all(fact in str(e.value) for fact in facts), e.value


@settings(deadline=None, max_examples=8)
@given(h=st.integers(33, 90), w=st.integers(33, 90))
def test_a_unet_takes_any_size(h: int, w: int) -> None:
    model = UNetModel("coursenet", 3, widths=(4, 4, 4, 4, 4)).build().eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, h, w)).shape == (1, 3, h, w)


def test_options_reach_the_network(disks: Path, tmp_path: Path) -> None:
    dls = mask_loaders(disks, 64)
    model = unet_learner(dls, "efficientnet_lite0", pretrained=False, widths=(8, 8), y_range=(0, 2), n_out=1, loss_func=nn.MSELoss(), normalize=False).model
    assert model.spec == UNetModel("efficientnet_lite0", 1, (8, 8), (0, 2), False)
    out = model.eval()(torch.rand(1, 3, 64, 64))
    assert out.shape == (1, 1, 64, 64) and out.min() > 0 and out.max() < 2
    assert unet_learner(dls, "efficientnet_lite0", seed=0).model.spec.fixed_stats and len(unet_learner(dls, "coursenet").dls.batch_tfms) == 2
    with raises(ValueError, "unet_learner", "category", "ImageBlock"):
        unet_learner(DataBlock(blocks=(CategoryBlock, CategoryBlock)).dataloaders(list("abababab"), bs=2, **OPTIONS), "coursenet")


# ---- learning, and what comes after ----


@pytest.fixture(scope="module")
def learner(disks: Path) -> Learner:
    learn = unet_learner(mask_loaders(disks, None, batch_tfms=aug_transforms()), "coursenet", metrics=[PixelAccuracy(ignore_index=2), DiceMulti(ignore_index=2)], seed=0)
    learn.progress = False
    learn.fine_tune(10, 1e-2, lr_mult=5)
    return learn


def test_disks_are_learned(learner: Learner) -> None:
    _, accuracy, dice = learner.validate()
    assert accuracy > 0.97 and dice > 0.93
    decoded = learner.get_preds(with_decoded=True).decoded
    assert not (decoded == 2).any()  # nothing pulls a pixel to Void


def test_void_counts_nowhere(learner: Learner) -> None:
    """Loss and metrics against scikit-learn and PyTorch over the pixels that count."""
    preds, targs, decoded, losses = learner.get_preds(with_loss=True, with_decoded=True)
    counted = targs != 2
    actual, said = targs[counted].numpy(), decoded[counted].numpy()
    log = preds.clamp(min=1e-12).log()
    whole = -log.gather(1, targs.clamp(max=2)[:, None])[:, 0]
    assert losses.numpy() == pytest.approx([whole[i][counted[i]].mean().item() for i in range(len(targs))], abs=1e-4)
    scores = torch.nn.functional.one_hot(decoded.long(), 3).movedim(-1, 1).float()
    for metric, expected in ((PixelAccuracy(ignore_index=2), (actual == said).mean()),
                             (DiceMulti(ignore_index=2), f1_score(actual, said, average="macro")),
                             (JaccardCoeffMulti(ignore_index=2), jaccard_score(actual, said, average="macro"))):
        for part in (slice(0, 1), slice(1, None)):
            metric.update(scores[part], targs[part])
        assert metric.compute() == pytest.approx(expected, abs=1e-9)
    assert metric.per_class()[:2].numpy() == pytest.approx(jaccard_score(actual, said, average=None)) and math.isnan(metric.per_class()[2])
    interp = SegmentationInterpretation.from_learner(learner)
    table = interp.report().to_df().set_index("class")
    assert table.loc["mean over classes", "jaccard"] == pytest.approx(metric.compute())
    assert torch.allclose(interp.losses, losses, atol=1e-5) and torch.equal(interp.decoded, decoded.byte()) and not interp.preds.numel()
    plain = Interpretation.from_learner(learner)
    assert torch.equal(plain.top_losses(2)[1], interp.top_losses(2)[1])
    for i in (plain, interp):
        i.plot_top_losses(2)
    plt.close("all")


def test_a_plain_function_of_preds_and_masks_is_a_metric(learner: Learner) -> None:
    def acc_camvid(preds, targs):
        mask = targs != 2
        return (preds.argmax(1)[mask] == targs[mask]).float().mean()

    learn = Learner(learner.dls, learner.model, metrics=acc_camvid)
    learn.progress = False
    assert learn.validate()[1] == pytest.approx(learner.validate()[1], abs=0.01)


def test_weights_of_classes_and_other_losses_reach_the_training(disks: Path, learner: Learner) -> None:
    for loss in (CrossEntropyLossFlat(axis=1, weight=[1.0, 5.0, 1.0], ignore_index=2), DiceLoss(ignore_index=2), nn.CrossEntropyLoss(ignore_index=2)):
        learn = Learner(learner.dls, learner.model, loss)
        learn.progress = False
        x, y = next(iter(learn.dls.valid))
        with torch.no_grad():
            preds = learn.model.eval()(x)
        assert learn.validate()[0] == pytest.approx(loss(preds, y).item(), rel=1e-3) and len(learn.dls.valid_ds) == len(y)


def test_tta_moves_masks_back(learner: Learner) -> None:
    plain, tta = learner.get_preds(), learner.tta(n=4)
    assert tta.preds.shape == plain.preds.shape and ((tta.preds.argmax(1) == plain.preds.argmax(1)).float().mean() > 0.98)


def test_a_prediction_is_a_mask_that_other_programs_read(learner: Learner, tmp_path: Path) -> None:
    file = learner.dls.valid_ds.items[0]
    mask, numbers, probabilities = learner.predict(file)
    assert torch.equal(probabilities.argmax(0), numbers)
    mask.save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), numbers.numpy())
    learner.show_results(max_n=2)
    assert all("% right" in ax.get_title() and ax.get_legend() for ax in plt.gcf().axes[:2])
    learner.dls.show_batch(max_n=2)
    assert "disk" in [t.get_text() for t in plt.gcf().axes[0].get_legend().get_texts()]
    plt.close("all")


# ---- masks of whole photos ----


class Perfect(nn.Module):
    "Sees a pixel's class in its color: dark, light, nothing."

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.5 - x[:, :1], x[:, :1] - 0.5, torch.full_like(x[:, :1], -9)], 1) * 50


@pytest.mark.parametrize("tfms", [{}, {"item_tfms": Resize(60)}, {"item_tfms": Resize(60, "squish")}, {"item_tfms": Resize(80), "batch_tfms": aug_transforms(size=60)},
                                  {"batch_tfms": aug_transforms(size=(60, 100))}])
@pytest.mark.parametrize("size", [(140, 100), (100, 140), (97, 131)])
def test_a_mask_fits_its_photo_pixel_for_pixel(tmp_path: Path, tfms: dict, size: tuple[int, int]) -> None:
    """Whatever the transforms cut off, the mask covers the whole photo, in its size."""
    draw(tmp_path / "d", 5, size)
    block = DataBlock(blocks=(ImageBlock, MaskBlock(CODES, "?")), get_y=mask_file, **tfms)
    learn = Learner(block.dataloaders(get_image_files(tmp_path / "d/images"), bs=1, **OPTIONS), Perfect(), precision="fp32")
    file = learn.dls.train_ds.items[0]
    made, real = np.asarray(predict_mask(learn, file)), read_mask(mask_file(file))
    assert made.shape == size[::-1]
    assert (made == real)[real != 2].mean() > 0.97
    assert np.array_equal(made, np.asarray(predict_mask(learn, Image.open(file))))


def test_only_masks_are_predicted_pixel_for_pixel(disks: Path) -> None:
    with raises(ValueError, "predict_mask", "category", "learn.predict"):
        predict_mask(vision_learner(class_loaders(disks, 64), "coursenet"), get_image_files(disks)[0])


# ---- bad input: one exception with the fix ----


def first_batch(root: Path, label_func, codes=CODES, **options):
    return SegmentationDataLoaders.from_label_func(root, get_image_files(root / "images"), label_func, codes, valid_pct=0.34, bs=2, **options, **OPTIONS).one_batch()


def test_a_mask_of_another_size_names_both_files_and_sizes(tmp_path: Path) -> None:
    draw(tmp_path / "d", 4)
    for file in get_image_files(tmp_path / "d/masks"):
        Image.open(file).resize((50, 45), Image.Resampling.NEAREST).save(file)
    for options in ({}, {"item_tfms": Resize(32)}, {"item_tfms": Resize(32), "cache": "memory"}):
        with raises(ValueError, "50 x 45", "100 x 90", "01.jpg", "01.png", "get_y"):
            first_batch(tmp_path / "d", mask_file, **options)


def test_a_painted_mask_says_which_colors_it_has(tmp_path: Path) -> None:
    draw(tmp_path / "d", 4)
    colors = np.array([[0, 0, 0], [128, 64, 128], [255, 255, 255]], np.uint8)
    for file in get_image_files(tmp_path / "d/masks"):
        Image.fromarray(colors[read_mask(file)]).save(file)
    with raises(ValueError, "3 colors", "(128, 64, 128)", "01.png", "number of its class"):
        first_batch(tmp_path / "d", mask_file)
    with raises(ValueError, "photo", "get_y"):
        first_batch(tmp_path / "d", lambda f: f)


def test_class_numbers_without_a_name_are_listed_with_the_file(tmp_path: Path) -> None:
    draw(tmp_path / "d", 4, edge=30)
    with raises(ValueError, "01.png", "[30]", "3 names", "codes"):
        first_batch(tmp_path / "d", mask_file)
    assert set(first_batch(tmp_path / "d", mask_file, ["ground", "disk"], void=30).ys[0].unique().tolist()) == {0, 1, 30}


def test_codes_and_void_are_checked() -> None:
    with raises(ValueError, "void='Void'", "'void'"):
        MaskBlock(["road", "void"], void="Void")
    with raises(ValueError, "codes", "each once"):
        MaskBlock(["road", "road"])
    with raises(ValueError, "codes", "setup"):
        MaskBlock().encode(np.zeros((2, 2)))


# ---- folders and the command line ----


def test_a_plan_understands_images_and_masks(tmp_path: Path) -> None:
    draw(tmp_path / "d", 10, end="_P", edge=255)
    Image.new("RGB", (20, 20)).save(tmp_path / "d/images/alone.jpg")
    plan = plan_data(tmp_path / "d")
    assert plan.layout.target == MaskBlock(["0", "1"], 255) and len(plan.items) == 10 and [f.name for f in plan.layout.stray] == ["alone.jpg"]
    assert "masks/*_P.png" in str(plan) and "8 for training, 2 for validation" in str(plan)
    dls = plan.dataloaders(size=32, bs=4, num_workers=0, device="cpu")
    assert [list(t.shape) for t in dls.one_batch()] == [[4, 3, 32, 32], [4, 32, 32]]


def test_sides_and_lists_split_masks(tmp_path: Path) -> None:
    draw(tmp_path / "a/train", 4)
    draw(tmp_path / "a/valid", 3)
    assert [i.valid for i in plan_data(tmp_path / "a").items] == [False] * 4 + [True] * 3
    draw(tmp_path / "b", 4)
    (tmp_path / "b/valid.txt").write_text("01.jpg\n")
    (tmp_path / "b/codes.txt").write_text("ground\ndisk\nVoid\n")
    plan = plan_data(tmp_path / "b")
    assert [i.file.name for i in plan.items if i.valid] == ["01.jpg"] and plan.layout.target == MaskBlock(["ground", "disk", "Void"], "Void")


def test_classes_with_the_same_file_names_are_not_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "digits" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / f"photos/{name}/{i}.png")
            Image.fromarray(rng.integers(0, 2, (20, 20), np.uint8) * 255).save(tmp_path / f"digits/{name}/{i}.png")
    for kind in ("photos", "digits"):
        assert plan_data(tmp_path / kind).classes == ["cats", "dogs"]


def test_the_command_line_trains_on_masks_and_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "streets", 16)
    (tmp_path / "streets/codes.txt").write_text("ground\ndisk\nVoid\n")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["train", "streets", "--arch", "coursenet", "--epochs", "1", "--size", "64", "--out", "m.ck"])
    assert done.exit_code == 0 and "a class for each pixel" in done.output and "PixelAccuracy" in done.output, done.output
    done = CliRunner().invoke(main, ["predict", "m.ck", "streets/images", "--json", "--out", "made"])
    lines = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    assert done.exit_code == 0 and len(lines) == 16 and set(lines[0]["classes"]) <= {"ground", "disk", "Void"}
    with Image.open(lines[0]["mask"]) as mask, Image.open(lines[0]["overlay"]) as overlay:
        assert mask.size == overlay.size == (100, 90) and set(np.unique(np.asarray(mask))) <= {0, 1, 2}
    (tmp_path / "bad.jpg").write_text("no image")
    done = CliRunner().invoke(main, ["predict", "m.ck", "bad.jpg", "streets/images/00.jpg"])
    assert done.exit_code == 1 and "bad.jpg" in done.output and (tmp_path / "predicted_masks/00.png").is_file() and "overlay" in done.output


def test_a_graph_for_other_programs_predicts_the_same(learner: Learner, tmp_path: Path) -> None:
    assert learner.export(tmp_path / "disks.onnx").stat().st_size > 1e6  # the export compares the predictions of both


def test_a_loss_of_ones_own_can_be_exported(learner: Learner, tmp_path: Path) -> None:
    learn = Learner(learner.dls, learner.model, lambda preds, targs: nn.functional.cross_entropy(preds, targs, ignore_index=2))
    again = load_learner(learn.export(tmp_path / "m.ck"), device="cpu")
    file = learn.dls.valid_ds.items[0]
    assert np.array_equal(np.asarray(again.predict(file).label), np.asarray(learner.predict(file).label))
