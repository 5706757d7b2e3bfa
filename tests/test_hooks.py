"""Recorded layers and heat maps: closed forms, every family of networks, nothing left behind, and the drawn proof that a map finds what differs."""

from __future__ import annotations

import gc
import weakref
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import models

from coursekit.core import seeded
from coursekit.data.block import CategoryBlock, MultiCategoryBlock, RegressionBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.items import IndexSplitter
from coursekit.data.loader import DataLoaders
from coursekit.interpret.heatmaps import HeatMap, cam, grad_cam, heat_maps
from coursekit.training.hooks import find_layers, hook_outputs, last_maps
from coursekit.deploy.hub import load_learner
from coursekit.training.learner import Learner
from coursekit.samples.pets import draw_pet
from coursekit.vision.data import ImageBlock
from coursekit.vision.learner import vision_learner
from coursekit.vision.models import Views, create_body, fetch_weights, load_body_weights
from coursekit.vision.augment import Normalize, imagenet_stats
from coursekit.vision.resize import Resize


def noise(seed: int, side: int = 70) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize((side, side))


PICTURES = [noise(i) for i in range(6)]


def loaders(size: int = 64, target=CategoryBlock, label=lambda i: "ab"[i % 2], **options) -> DataLoaders:
    plan = DataBlock(blocks=(ImageBlock, target), get_x=lambda i: PICTURES[i], get_y=label, splitter=IndexSplitter([4, 5]),
                     item_tfms=Resize(size), **options)  # fmt: skip
    return plan.dataloaders(range(6), bs=2, seed=0, device="cpu")


def quiet(dls: DataLoaders, net: nn.Module, **options) -> Learner:
    learn = Learner(dls, net, **options)
    learn.progress = False
    return learn


def pooled_net(n_out: int = 2) -> nn.Sequential:
    """Two convolutions, mean pooling, one linear layer: the nets for which the class activation map was invented."""
    with seeded(3):
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_out),
        )  # fmt: skip


def state_of(net: nn.Module) -> list:
    """All that a heat map could leave behind."""
    return [
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in net.modules()],
        [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in net.parameters()],
        [t.tolist() for t in net.state_dict().values()],
    ]


def test_cam_is_the_closed_form_of_zhou_where_pooling_and_a_linear_layer_follow() -> None:
    net = pooled_net()
    learn = quiet(loaders(batch_tfms=Normalize.from_stats(*imagenet_stats)), net)
    batch = next(iter(learn.dls.test_dl([PICTURES[0]])))
    with torch.no_grad():
        maps = net.eval()[:5](batch.x)[0]
        score = net(batch.x)[0]
    for k, name in enumerate("ab"):
        closed = torch.einsum("c,chw->hw", net[7].weight[k], maps).detach()
        got = cam(learn, PICTURES[0], target=name)
        assert torch.allclose(got.raw * maps[0].numel(), closed, atol=1e-5)
        assert torch.allclose(grad_cam(learn, PICTURES[0], target=k).raw, got.raw, atol=1e-6)  # one gradient all over each map: the same
        assert torch.allclose(got.raw.sum(), score[k] - net[7].bias[k], atol=1e-4)  # and the map adds up to the score
        big = F.interpolate(closed.clamp(min=0)[None, None], size=(64, 64), mode="bilinear")[0, 0]
        assert torch.allclose(got.map, big / big.max(), atol=1e-5)
    assert (got.label, got.target, got.layer) == ("b", 1, "4")


def test_grad_cam_is_that_of_the_paper_where_more_layers_follow() -> None:
    with seeded(1):
        net = nn.Sequential(nn.Conv2d(3, 5, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 15 * 15, 9), nn.Tanh(), nn.Linear(9, 2)).eval()
    learn = quiet(loaders(), net)
    x = next(iter(learn.dls.test_dl([PICTURES[1]]))).x
    maps = net[:2](x)
    maps.retain_grad()
    net[2:](maps)[0, 1].backward()
    by_hand = (maps.grad.mean((2, 3), keepdim=True) * maps).sum(1)[0]
    assert torch.allclose(grad_cam(learn, PICTURES[1], target="b").raw, by_hand, atol=1e-6)
    assert torch.allclose(cam(learn, PICTURES[1], target="b").raw, (maps.grad * maps).sum(1)[0], atol=1e-6)
    assert torch.allclose(grad_cam(learn, PICTURES[1], target="b", layer=net[0]).raw,
                          grad_cam(learn, PICTURES[1], target="b", layer="0").raw)  # fmt: skip


def test_a_heat_map_leaves_model_and_gradients_as_they_were() -> None:
    net = pooled_net()
    learn = quiet(loaders(), net)
    for p in net[:3].parameters():
        p.requires_grad_(False)
    net.train()
    net[3].eval()
    net(torch.rand(2, 3, 64, 64)).sum().backward()
    before = state_of(net)
    grad_cam(learn, PICTURES[0])
    for wrong in (dict(layer="7"), dict(target="c"), dict(layer="nowhere")):
        with pytest.raises(ValueError):
            grad_cam(learn, PICTURES[0], **wrong)
    assert state_of(net) == before
    net[1].register_forward_hook(lambda m, i, o: 1 / 0)  # an error in the middle of the model
    before = state_of(net)
    with pytest.raises(ZeroDivisionError):
        grad_cam(learn, PICTURES[0])
    assert state_of(net) == before


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_frozen_nets_and_any_gradient_mode(context, frozen: bool) -> None:
    learn = quiet(loaders(), pooled_net())
    expected = grad_cam(learn, PICTURES[0], target="a").raw
    learn.model.requires_grad_(not frozen)
    with context():
        assert torch.allclose(grad_cam(learn, PICTURES[0], target="a").raw, expected)
        for index in (np.int64(0), torch.tensor(0)):
            assert torch.allclose(grad_cam(learn, PICTURES[0], target=index).raw, expected)
    assert all(p.requires_grad is not frozen and p.grad is None for p in learn.model.parameters())


def test_the_map_is_made_of_the_picture_that_predict_sees_also_after_an_export(tmp_path: Path) -> None:
    with seeded(0):
        learn = vision_learner(loaders(), "coursenet", seed=0)
    learn.progress = False
    item = noise(9, side=200)
    heat = grad_cam(learn, item)
    assert heat.label == learn.predict(item).label  # the default target is the prediction
    assert heat.map.shape == (64, 64) and heat.image.size == (64, 64) and heat.map.min() >= 0 and heat.map.max() == 1
    seen = Resize(64).run([torch.tensor(np.asarray(item)).permute(2, 0, 1)], ["image"], rng=None, train=False)[0]
    assert np.abs(np.asarray(heat.image).astype(int) - seen.permute(1, 2, 0).numpy()).max() <= 1  # not normalised any more
    loaded = load_learner(learn.export(tmp_path / "m.ck"), device="cpu")
    loaded.progress = False
    assert torch.allclose(grad_cam(loaded, item).raw, heat.raw, atol=1e-4)
    assert repr(heat).startswith(f"HeatMap('{heat.label}', 64 x 64 from 4 x 4 of layer ")


FAMILIES = {
    "resnet18": ("layer4", "fc"), "densenet121": ("features", None), "vgg11_bn": ("features", None), "efficientnet_b0": ("features", None),
    "convnext_tiny": ("features", None), "mobilenet_v3_small": ("features", None), "squeezenet1_1": ("classifier", None),
    "regnet_y_400mf": ("trunk_output", "fc"), "shufflenet_v2_x0_5": ("conv5", "fc"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_networks_of_every_family(name: str) -> None:
    part, linear = FAMILIES[name]
    with seeded(0):
        net = models.get_model(name, weights=None, num_classes=2).eval()
    learn = quiet(loaders(128), net)
    heat = cam(learn, PICTURES[0], target="b")
    assert heat.layer.split(".")[0] == part and min(heat.raw.shape) > 1
    assert heat.map.shape == (128, 128) and torch.isfinite(heat.raw).all() and heat.raw.abs().max() > 0
    if linear:  # mean pooling and a linear layer follow: the closed form again, computed from another side
        x = next(iter(learn.dls.test_dl([PICTURES[0]]))).x
        head = getattr(net, linear)
        with torch.no_grad():
            assert torch.allclose(heat.raw.sum(), (net(x)[0] - head.bias)[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", ["coursenet", "densenet121", "vgg11_bn", "mobilenet_v2"])
def test_learners_of_body_and_head_look_at_the_end_of_the_body(arch: str) -> None:
    learn = vision_learner(loaders(128), arch, pretrained=False, seed=0)
    learn.progress = False
    heat = grad_cam(learn, PICTURES[0])
    assert heat.layer.startswith("0")
    with torch.no_grad():
        shape = learn.model.eval()[0](torch.zeros(1, 3, 128, 128)).shape[2:]
    assert heat.raw.shape == ((8, 8) if arch == "vgg11_bn" else shape)  # VGG's body ends with a pooling layer, which is passed over


def test_nets_and_outputs_that_have_no_heat_map_say_so() -> None:
    flat = quiet(loaders(16), nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)))
    with pytest.raises(ValueError, match="need a convolutional net"):
        grad_cam(flat, PICTURES[0])
    pixels = quiet(loaders(16), nn.Conv2d(3, 2, 1))
    with pytest.raises(ValueError, match="one number"):
        grad_cam(pixels, PICTURES[0], layer="")
    aside = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(2 * 14 * 14, 2))
    aside[2].register_forward_hook(lambda m, i, o: torch.ones_like(o))
    with pytest.raises(ValueError, match="does not depend on layer '0'"):
        grad_cam(quiet(loaders(16), aside), PICTURES[0], layer="0")
    plain = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(4, 3, 8, 8), torch.zeros(4).long()), batch_size=2)
    unnamed = quiet(DataLoaders(plain, plain, device="cpu"), pooled_net(), loss_func=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="plain loaders"):
        grad_cam(unnamed, PICTURES[0])
    assert heat_maps(unnamed, next(iter(unnamed.dls.valid)))[1].image is None  # a batch of tensors has maps all the same


def test_regression_and_several_labels() -> None:
    numbers = quiet(loaders(target=RegressionBlock, label=lambda i: [i / 6, 1 - i / 6, 0.5]), pooled_net(3))
    x = next(iter(numbers.dls.test_dl([PICTURES[0]]))).x
    with torch.no_grad():
        out = numbers.model.eval()(x)[0]
    assert grad_cam(numbers, PICTURES[0]).target == int(out.argmax())
    heat = cam(numbers, PICTURES[0], target=1)
    assert heat.label == 1 and torch.allclose(heat.raw.sum(), out[1] - numbers.model[7].bias[1], atol=1e-4)
    with pytest.raises(ValueError, match="index from 0 to 2"):
        grad_cam(numbers, PICTURES[0], target="x")
    labels = quiet(loaders(target=MultiCategoryBlock, label=lambda i: ["a", "b"][: i % 3]), pooled_net(2))
    assert grad_cam(labels, PICTURES[0], target="b").target == 1
    with pytest.raises(ValueError, match="did you mean 'a'|of the vocab"):
        grad_cam(labels, PICTURES[0], target="aa")


def test_a_batch_gives_the_maps_of_its_items() -> None:
    learn = quiet(loaders(), pooled_net())
    batch = next(iter(learn.dls.test_dl(PICTURES[:3])))
    maps = heat_maps(learn, batch, targets=["a", "b", "a"], elementwise=True)
    for heat, item, target in zip(maps, PICTURES, "aba"):
        assert torch.allclose(heat.raw, cam(learn, item, target=target).raw, atol=1e-6)


def test_hooks_are_removed_after_an_error_and_gradients_come_on_request() -> None:
    net = pooled_net()
    kept: list = []

    def failing() -> None:
        with hook_outputs(net, ["0", "2", net[5]]) as seen:
            kept.extend(seen)
            net(torch.rand(1, 3, 16, 16))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    seen = kept
    assert seen[1].output.shape == (1, 8, 4, 4) and seen[1].grad is None and seen[1].tensor is None
    assert not any(m._forward_hooks for m in net.modules())
    with hook_outputs(net, "2", grads=True) as (one,):
        net.eval()(torch.rand(1, 3, 16, 16))[0, 0].backward()
    assert one.grad.shape == one.output.shape and one.grad.abs().max() > 0
    with pytest.raises(ValueError, match="did you mean"):
        find_layers(models.resnet18(), "layer5")
    assert last_maps(nn.Linear(2, 2), torch.zeros(1, 2)) is None


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_lives_on_after_gradients_were_recorded(frozen: bool) -> None:
    """The gradients' hook must not hold the tensor that it is on: such a circle goes through PyTorch's own graph, where Python never frees it."""
    net, x = pooled_net().requires_grad_(not frozen), torch.rand(1, 3, 16, 16)
    with hook_outputs(net, "4", grads=True) as (seen,):
        net(x)
        first = seen.tensor
        out = net(x)
    assert first is not None and seen.tensor is not None
    first.sum().backward()
    assert seen.grad is None  # that was an earlier run
    out.sum().backward()
    assert seen.grad is not None and torch.equal(seen.grad, torch.autograd.grad(net[5:](seen.tensor).sum(), seen.tensor)[0])
    alive = [weakref.ref(o) for o in (seen, seen.tensor, first, *net.modules(), *net.parameters())]
    del net, seen, first, out
    gc.collect()
    assert [ref() for ref in alive] == [None] * len(alive)


def test_a_picture_that_nothing_speaks_for_gives_a_map_of_zeros() -> None:
    net = pooled_net()
    net[7].weight.data[0] = -1.0  # the maps after a ReLU are not negative: every pixel speaks against class a
    heat = cam(quiet(loaders(), net), PICTURES[0], target="a")
    assert heat.map.max() == 0 and torch.isfinite(heat.map).all() and "no evidence" in repr(heat)


def test_show_draws_the_map_over_the_picture() -> None:
    import matplotlib.pyplot as plt

    map_ = torch.zeros(9, 12)
    map_[7, 1] = 1
    heat = HeatMap(map_, noise(0).resize((12, 9)), "<b>", 0, map_, "4")
    fig, ax = plt.subplots()
    heat.show(ax)
    assert [i.get_array().shape for i in ax.images] == [(9, 12, 3), (9, 12)]
    plt.close(fig)
    heat.show()
    assert "bottom left" in plt.gcf().alt_text
    plt.close("all")


def test_the_map_of_a_network_with_views_belongs_to_the_picture_and_not_to_its_mirror_image() -> None:
    """The net counts light, which is on the left."""
    net = Views([32, 96], True, nn.Sequential(nn.Conv2d(3, 1, 1, bias=False)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2, bias=False))
    for p in net.parameters():
        nn.init.ones_(p)
    learn = quiet(loaders(), net)
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:, :20] = 255
    for heat in (grad_cam(learn, Image.fromarray(pixels), target="a"), cam(learn, Image.fromarray(pixels), target="a")):
        assert heat.raw.shape == (96, 96) and heat.map[:, :20].mean() > 0.9 and heat.map[:, -20:].mean() < 0.1
    with hook_outputs(net, net[0], grads=True) as (seen,):
        net.eval()(torch.rand(1, 3, 40, 40)).sum().backward()
    assert seen.output.shape == seen.grad.shape == (1, 1, 96, 96)  # both of the last look


# ---- the proof on drawn pictures


TWINS = {"Birman": "Ragdoll", "Ragdoll": "Birman"}  # they differ in one trait only


@cache
def twin_region(breed: str, number: int) -> np.ndarray:
    """The pixels that differ if the same animal is drawn with its near-twin's traits: where a picture says which of the two it is."""
    one, other = (np.asarray(draw_pet(breed, number, traits_of=t).image).astype(int) for t in (None, TWINS[breed]))
    return np.abs(one - other).max(2) >= 10


def test_a_picture_and_its_twin_differ_in_the_one_part_only() -> None:
    picture, region = draw_pet("Ragdoll", 2), twin_region("Ragdoll", 2)
    twin = draw_pet("Ragdoll", 2, traits_of="Birman")
    differs = (np.asarray(picture.image) != np.asarray(twin.image)).any(2)
    assert region.shape == picture.image.size[::-1] and not (region & ~differs).any()
    x0, y0, x1, y1 = picture.head
    ys, xs = differs.nonzero()
    assert x0 <= xs.min() and xs.max() <= x1 and y0 <= ys.min() and ys.max() <= y1 + 3  # a wedge down the face, so inside of the head
    assert {k for k, v in picture.attributes.items() if v != twin.attributes[k]} == {"breed", "coat"}


SIZE, LEARN, HELD = 96, 80, 30  # pixels; pictures of each breed to learn from, and held out


def wedge_learner() -> Learner:
    """Birman or Ragdoll? They differ in the white wedge down the face only. coursenet up to its third stage, whose maps are 12 x 12 here."""
    items = [(breed, n) for n in range(1, LEARN + HELD + 1) for breed in ("Birman", "Ragdoll")]
    held = [i for i, (_, n) in enumerate(items) if n > LEARN]
    plan = DataBlock(blocks=(ImageBlock, CategoryBlock), get_x=lambda item: draw_pet(*item).image, get_y=lambda item: item[0],
                     splitter=IndexSplitter(held), item_tfms=Resize(SIZE, method="squish"), batch_tfms=Normalize.from_stats(*imagenet_stats))  # fmt: skip
    dls = plan.dataloaders(items, bs=16, val_bs=2 * HELD, seed=0, device="cpu", cache="memory")
    body = create_body("coursenet")
    load_body_weights(body, "coursenet", fetch_weights("coursenet"))
    with seeded(0):
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
    net = nn.Sequential(nn.Sequential(*[*body[0], *body[1]][:3]), head)
    return quiet(dls, net, seed=0, splitter=lambda m: [m[0], m[1]], precision="fp32")


def share_inside(heat: Tensor, region: np.ndarray) -> tuple[float, float]:
    """The share of the map's mass that lies in the region, and the region's share of the area, which is what chance would give."""
    inside = F.interpolate(torch.tensor(region, dtype=torch.float32)[None, None], size=heat.shape, mode="area")[0, 0]
    return float((heat * inside).sum() / heat.sum().clamp(min=1e-9)), float(inside.mean())


def times_chance(learn: Learner) -> list[float]:
    """For each picture held out: how many times as much of the map's mass lies on the wedge as chance would put there."""
    items = learn.dls.valid.dataset.items
    maps = heat_maps(learn, next(iter(learn.dls.valid)), targets=[breed for breed, _ in items])
    shares = [share_inside(heat.map, twin_region(*item)) for heat, item in zip(maps, items)]
    print(f"{np.mean([m for m, _ in shares]):.1%} of the mass on {np.mean([c for _, c in shares]):.1%} of the area")
    return [mass / chance for mass, chance in shares]


def test_the_heat_map_lies_on_what_tells_two_breeds_apart() -> None:
    learn = wedge_learner()
    before = times_chance(learn)
    learn.fine_tune(16, 8e-3, lr_mult=10)
    preds = learn.get_preds(with_decoded=True)
    assert (preds.decoded == preds.targs).float().mean() > 0.85  # a net that has learnt nothing has nothing to show
    after = times_chance(learn)
    print(f"mass on the wedge, in times chance: {np.mean(before):.2f} before training, {np.mean(after):.2f} after")
    assert len(after) == 2 * HELD and np.mean(after) >= 3
    assert np.mean(before) < 2  # the map shows what was learnt, not where the face is
