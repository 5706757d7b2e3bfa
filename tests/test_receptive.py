"""Receptive fields against the closed form and known networks, strongest patches against a search by hand, and lesson 10's blocks against torchvision's."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision import models
from torchvision.models.densenet import _DenseBlock, _DenseLayer, _Transition
from torchvision.models.resnet import BasicBlock
from torchvision.models.resnet import Bottleneck as Bottleneck50

from helpers import ROOT
from coursekit.core import seeded
from coursekit.data.block import CategoryBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.items import IndexSplitter
from coursekit.interpret.receptive import receptive_field, show_patches, strongest_patches
from coursekit.training.learner import Learner
from coursekit.vision.block import ImageBlock
from coursekit.vision.models import coursenet
from coursekit.vision.resize import Resize

# ---------------------------------------------------------------- receptive fields


def closed_form(layers):
    field, step = 1, 1
    for kernel, stride in layers:
        field, step = field + (kernel - 1) * step, step * stride
    return field


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 1, 2]), st.sampled_from(["conv", "max", "mean"])), min_size=1, max_size=5))
def test_a_chain_of_layers_sees_what_the_closed_form_says(layers):
    kinds = {"conv": lambda k, s: nn.Conv2d(2, 2, k, s, k // 2), "max": lambda k, s: nn.MaxPool2d(k, s, k // 2), "mean": lambda k, s: nn.AvgPool2d(k, s, k // 2)}
    net = nn.Sequential(*[part for k, s, kind in layers for part in (kinds[kind](k, s), nn.BatchNorm2d(2), nn.ReLU())])
    field = closed_form([(k, s) for k, s, _ in layers])
    found = receptive_field(net, str(len(net) - 1), (2, 160, 160))
    assert found.size == (field, field)


@pytest.mark.parametrize(("arch", "layer", "size"), [(models.resnet18, "layer1", 43), (models.densenet121, "features.denseblock1", 59), (coursenet, "layer2", 79)])  # fmt: skip
def test_known_networks(arch, layer, size):
    with seeded(0):
        net = arch()
    x = torch.rand(2, 3, 112, 112)
    before, mode = copy.deepcopy(net.state_dict()), net.training
    found = receptive_field(net, layer, x)
    assert found.size == (size, size) and net.training is mode and all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    x0, y0, x1, y1 = found.box
    assert found.strength.max() == 1
    found.strength[y0:y1, x0:x1] = 0
    assert found.strength.max() == 0  # nothing outside of the field
    assert all(p.grad is None for p in net.parameters()) and not any(m._forward_hooks for m in net.modules())


def test_the_middle_counts_more_than_the_edge():
    with seeded(0):
        net, x = nn.Sequential(*[part for _ in range(6) for part in (nn.Conv2d(3, 3, 3, 1, 1), nn.ReLU())]), torch.randn(32, 3, 40, 40)
    found = receptive_field(net, "10", x)
    assert found.size == (13, 13) and found.center_share() > 0.4  # a quarter of the area


def test_a_layer_behind_global_pooling_sees_everything_and_a_corner_is_cut_off():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.weigh = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return x * torch.sigmoid(self.weigh(x.mean((2, 3), keepdim=True)))

    assert receptive_field(nn.Sequential(Gate()), "0", (3, 20, 30)).box == (0, 0, 30, 20)
    assert receptive_field(nn.Sequential(nn.Conv2d(3, 1, 5, 1, 2)), "0", (3, 20, 30), place=(0, 29)).box == (27, 0, 30, 3)


def test_errors_name_layer_place_and_shape():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten())
    for args, facts in (((net, "conv", (3, 8, 8)), ["'conv'", "not part of"]), ((net, "1", (3, 8, 8)), ["'1'", "[1, 64]", "(N, C, H, W)"]),
                        ((net, "0", (8, 8)), ["(8, 8)", "(C, H, W)"])):
        with pytest.raises(ValueError) as e:
            receptive_field(*args)
        assert all(fact in str(e.value) for fact in facts), e.value
    with pytest.raises(ValueError, match=r"place=\(4, 0\).*4 rows"):
        receptive_field(net, "0", (3, 8, 8), place=(4, 0))
    with pytest.raises(ValueError, match="pass images"):
        receptive_field(net, "0", (3, 8, 8)).center_share()


# ---------------------------------------------------------------- strongest patches


def noise_learner(n=20):
    rng = np.random.default_rng(0)
    items = [Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)) for _ in range(n)]
    dls = DataBlock(blocks=(ImageBlock, CategoryBlock(["a", "b"])), get_x=lambda p: p, get_y=lambda p: "a", splitter=IndexSplitter(range(n)),
                    item_tfms=Resize(24)).dataloaders(items + items[:2], bs=8, device="cpu")  # fmt: skip
    with seeded(1):
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
    return Learner(dls, net), items


def test_strongest_patches_are_those_of_a_search_by_hand():
    learn, items = noise_learner()
    found = strongest_patches(learn, "2", [3, 0], n=6)
    assert learn.model.training  # as it was
    x = torch.stack([torch.tensor(np.array(i)).permute(2, 0, 1) / 255 for i in items])
    with torch.no_grad():
        maps = learn.model[:3].eval()(x)
    for p in found:
        best, at = maps[:, p.channel].flatten(1).max(1)
        order = best.argsort(descending=True)[:6]
        assert p.rows == order.tolist() and len(set(p.rows)) == 6
        assert torch.allclose(torch.tensor(p.values), best[order], atol=1e-5)
        for image, box, row in zip(p.images, p.boxes, p.rows):
            y, x_ = divmod(int(at[row]), 12)
            assert box == (max(2 * x_ - 2, 0), max(2 * y - 2, 0), min(2 * x_ + 3, 24), min(2 * y + 3, 24))
            assert np.abs(np.asarray(image).astype(int) - np.asarray(items[row].crop(box))).max() <= 1
    show_patches(found)


def test_patches_of_few_images_and_errors():
    learn, _ = noise_learner(n=3)
    assert len(strongest_patches(learn, learn.model[0], [1], n=9)[0].images) == 3
    with pytest.raises(ValueError, match=r"channels=\[5\].*0 to 4"):
        strongest_patches(learn, "2", [5])
    with pytest.raises(ValueError, match="'4'"):
        strongest_patches(learn, "4", [0])


# ---------------------------------------------------------------- the blocks of lesson 10


@pytest.fixture(scope="module")
def lesson():
    """What the cells of the lesson define that hold its networks; they are run from the notebook, so this tests what people read."""
    cells = json.loads((ROOT / "nbs" / "lessons" / "10_convnets.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {"torch": torch, "nn": nn, "F": F, "num_params": lambda m: sum(p.numel() for p in m.parameters())}
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and any(d in source for d in ("class ResBlock", "class DenseLayer", "class Bottleneck", "def large_stem", "def transition")):
            exec(source, names)
    return names


def same(mine: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    """The same weights and statistics in, the same outputs, gradients and running statistics out, in both modes."""
    for p in theirs.parameters():
        nn.init.normal_(p, 0.1, 0.2)
    state = theirs.state_dict()
    mine.load_state_dict(dict(zip(mine.state_dict(), state.values(), strict=True)))
    for mode in (True, False):
        outs = []
        for net in (mine.train(mode), theirs.train(mode)):
            xs = x.clone().requires_grad_()
            out = net(xs)
            outs.append((out, *torch.autograd.grad(out.square().mean(), [xs, *net.parameters()])))
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(*outs, strict=True))
    assert all(torch.allclose(a.float(), b.float(), atol=1e-5) for a, b in zip(mine.state_dict().values(), theirs.state_dict().values()))


@pytest.mark.parametrize(("n_in", "n_out", "stride"), [(8, 8, 1), (8, 16, 2), (8, 8, 2), (8, 12, 1)])
def test_resnet_block_is_torchvisions(lesson, n_in, n_out, stride):
    with seeded(0):
        down = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)) if stride > 1 or n_in != n_out else None
        same(lesson["ResBlock"](n_in, n_out, stride), BasicBlock(n_in, n_out, stride, down), torch.randn(3, n_in, 10, 12))


def test_bottleneck_is_torchvisions(lesson):
    with seeded(0):
        same(lesson["Bottleneck"](32, 8), Bottleneck50(32, 8), torch.randn(3, 32, 9, 9))


@pytest.mark.parametrize(("n_in", "growth", "wide", "layers"), [(8, 4, 4, 1), (6, 5, 2, 3)])
def test_dense_block_is_torchvisions(lesson, n_in, growth, wide, layers):
    with seeded(0):
        mine = nn.Sequential(*[lesson["DenseLayer"](n_in + growth * k, growth, wide) for k in range(layers)])
        same(mine, _DenseBlock(layers, n_in, wide, growth, 0.0), torch.randn(3, n_in, 10, 12))
        x = torch.randn(2, n_in, 6, 6)
        layer = _DenseLayer(n_in, growth, wide, 0.0).eval()
        assert torch.equal(mine[0].eval()(x)[:, :n_in], x) and layer(x).shape[1] == growth
        same(nn.Sequential(*lesson["transition"](n_in)), _Transition(n_in, n_in // 2), torch.randn(3, n_in, 8, 8))


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_whole_networks_are_torchvisions(lesson, name):
    with seeded(0):
        mine = {"resnet18": lambda: lesson["resnet"]([64, 64, 64, 128, 128, 256, 256, 512, 512], 10), "densenet121": lambda: lesson["densenet"]((6, 12, 24, 16), 32, 64, 10)}[name]()
        theirs, x = models.get_model(name, num_classes=10), torch.randn(2, 3, 64, 64)
    mine.load_state_dict(dict(zip(mine.state_dict(), theirs.state_dict().values(), strict=True)))
    with torch.no_grad():
        assert torch.allclose(mine.eval()(x), theirs.eval()(x), rtol=1e-3, atol=1e-5)
