"""A toy of every kind of learner that later lessons need: several targets, models that return several things, two optimizers, masks under TTA."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import raises
from torch import nn

from coursekit.data.block import Block, CategoryBlock, RegressionBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.items import RandomSplitter
from coursekit.data.loader import DataLoaders
from coursekit.deploy.hub import load_learner
from coursekit.training.layers import AdaptiveConcatPool2d
from coursekit.training.learner import Learner, synthetic_learner
from coursekit.training.losses import MultiTargetLoss
from coursekit.training.metrics import accuracy, for_target, mae
from coursekit.training.optimizers import AdamW, make_optimizer
from coursekit.vision.augment import aug_transforms
from coursekit.vision.data import ImageBlock
from coursekit.vision.learner import vision_learner
from coursekit.vision.resize import Resize

OPTIONS = {"device": "cpu", "num_workers": 0, "seed": 0}


def shade(item: tuple[int, int]) -> np.ndarray:
    "A picture of two numbers: how bright it is, and which of two colors it has."
    level, color = item
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[..., 2 * color] = 40 + 20 * level
    return picture


def two_targets(bs: int = 8) -> DataLoaders:
    "Pictures in; a class and a number out."
    block = DataBlock(blocks=(ImageBlock, CategoryBlock, RegressionBlock), n_inp=1, get_x=shade,
                      get_y=(lambda item: ["red", "blue"][item[1]], lambda item: item[0] / 10), item_tfms=Resize(16))
    return block.dataloaders([(level, color) for level in range(10) for color in range(2)] * 2, bs=bs, **OPTIONS)


def two_target_learner(**options) -> Learner:
    return vision_learner(two_targets(), "coursenet", lin_ftrs=[], ps=0.0, seed=1, precision="fp32", **options)


def test_a_class_and_a_number_train_together(tmp_path) -> None:
    learn = two_target_learner(metrics=[accuracy, for_target(1, mae)])
    assert isinstance(learn.loss_func, MultiTargetLoss) and learn.dls.n_out == 3
    with learn.no_bar():
        learn.fit_one_cycle(60, 1e-2)
    loss, right, _ = learn.validate()
    assert loss == pytest.approx(learn.recorder.values[-1][1])
    assert sum(learn.recorder.losses[-4:]) / 4 < 0.5  # constants reach no less than 0.77: log 2 for the class, 0.08 for the number
    found = learn.get_preds(with_decoded=True, with_loss=True)
    assert [tuple(p.shape) for p in found.preds] == [(8, 2), (8, 1)] and [len(t) for t in found.targs] == [8, 8]
    assert (found.decoded[0] == found.targs[0]).float().mean().item() == right and found.losses.shape == (8,)
    assert found.losses.mean().item() == pytest.approx(loss, rel=1e-5)
    again = learn.get_preds(learn.dls.test_dl(learn.dls.valid_ds.items))  # predicted anew, not kept
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found.preds, again.preds)) and again.targs is None

    item = learn.dls.valid_ds.items[0]
    (name, number), (index, _), (probabilities, _) = learn.predict(item)
    assert name == learn.dls.vocab[int(index)] and int(index) == int(found.decoded[0][0])
    assert torch.allclose(probabilities, found.preds[0][0], atol=1e-5) and number == pytest.approx(found.preds[1][0].item(), abs=1e-4)

    loaded = load_learner(learn.export(tmp_path / "both.ck"), device="cpu")
    other = loaded.predict(shade(item))
    assert other.label[0] == name and other.label[1] == pytest.approx(number, abs=1e-5)


def test_both_targets_are_shown() -> None:
    learn = two_target_learner()
    learn.dls.show_batch(max_n=2)
    assert all(text in plt.gcf().axes[0].get_title() for text in (".",))
    plt.close("all")
    learn.show_results(max_n=4)
    titles = [ax.get_title().split("\n") for ax in plt.gcf().axes[:4]]
    plt.close("all")
    assert all(len(lines) == 4 and {"red", "blue"} & set(lines[:1]) and float(lines[2]) >= 0 for lines in titles), titles


def test_targets_that_do_not_fit_the_outputs_are_refused() -> None:
    dls = two_targets()
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), precision="fp32")
    with learn.no_bar(), raises(ValueError, "MultiTargetLoss", 5, "[2, 1]"):
        learn.fit(1)


class TwoHeads(nn.Module):
    "Returns one tensor per target."

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(AdaptiveConcatPool2d(), nn.Flatten())
        self.heads = nn.ModuleList([nn.Linear(6, 2), nn.Linear(6, 1)])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(head(self.body(x)) for head in self.heads)


def test_a_model_may_return_one_tensor_per_target() -> None:
    learn = Learner(two_targets(), TwoHeads(), metrics=[accuracy, for_target(1, mae)], precision="fp32", seed=0)
    with learn.no_bar():
        learn.fit_one_cycle(20, 0.1)
    assert learn.validate()[1:] == pytest.approx([1.0, 0.0], abs=0.15)
    assert learn.predict((0, 0)).label[0] == "red"


class WithHidden(nn.Module):
    "Returns its prediction and something else."

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.line(x), x * 2


def test_of_a_tuple_the_first_is_the_prediction_and_a_loss_of_yours_gets_all() -> None:
    learn = synthetic_learner(model=WithHidden(), metrics=mae)
    learn.fit_one_cycle(10)
    assert learn.validate()[1] < 0.3
    assert learn.get_preds().preds.shape == (32, 1)
    seen: list[torch.Tensor] = []

    def loss(preds: tuple[torch.Tensor, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
        seen.append(preds[1])
        return F.mse_loss(preds[0], y)

    learn = synthetic_learner(model=WithHidden(), loss_func=loss, metrics=mae)
    learn.fit(1)
    assert len(seen) == 12 and learn.get_preds().preds.shape == (32, 1) and learn.validate()[1] < 2


class Duel(Learner):
    "Two optimizers, as a GAN has them: only `create_opt` and `step` differ."

    def create_opt(self, lrs=None, *, wd=None) -> None:
        first, second = self.groups
        if self.opt is None:
            self.opt = make_optimizer([first], AdamW, lrs[:1], wd=wd, moms=self.moms, model=self.model)
            self.second = torch.optim.SGD(second, lr=lrs[1])
        self.opt.param_groups[0]["lr"], self.second.param_groups[0]["lr"] = lrs

    def step(self) -> None:
        self.opt.step()
        if self.state.step % 2:  # the second moves every other batch
            self.second.step()
            self.second.zero_grad()


def test_a_subclass_steps_with_two_optimizers() -> None:
    line = synthetic_learner()
    net = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1))
    learn = Duel(line.dls, net, nn.MSELoss(), splitter=list, precision="fp32", seed=0)
    before = [p.detach().clone() for p in net.parameters()]
    with learn.no_bar():
        learn.fit(5, [1e-2, 1e-2])
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters()))
    assert learn.recorder.losses[-1] < learn.recorder.losses[0] / 4
    assert all(p.grad is None or not p.grad.any() for p in net[0].parameters())


class MaskBlock(Block):
    "Classes of pixels, as an array (H, W)."
    kind = "mask"
    eager = False
    n_out = 2
    loss = ("cross_entropy", {"axis": 1})

    def encode(self, value: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(value)

    def collate(self, values) -> torch.Tensor:
        return torch.stack(list(values)).long()


class Perfect(nn.Module):
    "Sees a pixel's class in its color."

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.5 - x[:, :1], x[:, :1] - 0.5], 1) * 50


@pytest.mark.parametrize("size", [None, 24])
def test_tta_brings_masks_back_before_it_averages_them(size: int | None) -> None:
    """A perfect model is right with TTA, too, but for the seam that interpolation blurs."""
    def item(k: int) -> tuple[np.ndarray, np.ndarray]:
        mask = np.zeros((32, 32), np.uint8)
        mask[4:14, 3:12 + k] = 1
        return np.repeat(mask[..., None] * 255, 3, 2), mask

    block = DataBlock(blocks=(ImageBlock, MaskBlock), get_x=lambda i: item(i)[0], get_y=lambda i: item(i)[1], splitter=RandomSplitter(seed=0),
                      batch_tfms=aug_transforms(size=size, max_lighting=0))
    dls = block.dataloaders(list(range(12)), bs=4, **OPTIONS)
    learn = Learner(dls, Perfect(), metrics=lambda p, y: accuracy(p, y, axis=1), precision="fp32")
    with learn.no_bar():
        plain, tta = learn.get_preds(), learn.tta(n=6)
    right = [(found.preds.argmax(1) == found.targs).float().mean().item() for found in (plain, tta)]
    assert right[0] > 0.97 and right[1] > 0.97, right
    wrong_way = (tta.preds.flip(-1).argmax(1) == tta.targs).float().mean().item()
    assert wrong_way < 0.95  # the test would notice a flip that was not taken back
