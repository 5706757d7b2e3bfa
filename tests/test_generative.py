"""Images from images and from noise: spoiling, PSNR and SSIM, the feature loss, and a GAN that is interrupted, killed, resumed and exported."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import raises
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from coursekit.data.datablock import DataBlock
from coursekit.data.items import IndexSplitter
from coursekit.deploy.hub import load_learner
from coursekit.training.callback import Callback
from coursekit.training.callbacks.checkpoint import Checkpoint
from coursekit.training.callbacks.ema import EMA
from coursekit.vision.block import ImageBlock
from coursekit.vision.gan import GAN, GAN_LOSSES, GANLearner, GANModel, NoiseBlock, SampleGrids, gan_learner, samples, tiled
from coursekit.vision.generative import Crappify, FeatureLoss, ImageUNetModel, SubPixel, enhance, generator_learner, psnr, ssim
from coursekit.vision.images import to_uint8_tensor
from coursekit.vision.models import coursenet, fetch_weights, load_body_weights, norm_stats, create_body
from coursekit.vision.resize import Resize


def photo(seed: int = 0, side: int = 32) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def bytes_of(seed: int, side: int = 32) -> torch.Tensor:
    return to_uint8_tensor(photo(seed, side))


# ---------------------------------------------------------------------------------------------------- how close it is


@given(st.floats(0.001, 0.5), st.integers(1, 4))
def test_psnr_of_a_constant_error(error: float, n: int) -> None:
    a = torch.full((n, 3, 8, 8), 0.4)
    torch.testing.assert_close(psnr(a + error, a), -20 * torch.tensor(error).log10(), rtol=1e-3, atol=1e-3)


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_ssim_of_flat_images(a: float, b: float) -> None:
    found = ssim(torch.full((1, 3, 9, 9), a), torch.full((1, 3, 9, 9), b))
    torch.testing.assert_close(found, torch.tensor((2 * a * b + 1e-4) / (a * a + b * b + 1e-4)), rtol=1e-3, atol=1e-3)


def test_ssim_of_an_image_and_its_negative() -> None:
    x = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    m, v = x.mean().item(), x.var().item()
    expected = (2 * m * (1 - m) + 1e-4) * (-2 * v + 9e-4) / ((m * m + (1 - m) ** 2 + 1e-4) * (2 * v + 9e-4))
    torch.testing.assert_close(ssim(1 - x, x), torch.tensor(expected), rtol=1e-3, atol=1e-4)
    assert psnr.higher_is_better and ssim.higher_is_better  # so that callbacks can compare


# ---------------------------------------------------------------------------------------------------- worse on purpose


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(1, 8), st.one_of(st.none(), st.tuples(st.integers(5, 40), st.integers(40, 95))), st.floats(0, 0.2))
def test_spoiling_keeps_size_and_target_and_repeats_itself(seed: int, factor: int, quality: tuple[int, int] | None, noise: float) -> None:
    tfm, x, kinds = Crappify(factor, quality, noise), bytes_of(seed), ["image", "image"]
    kept = x.clone()
    one, two = (tfm.apply([x, x], kinds, rng=random.Random(k), train=False) for k in (1, 2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], kept) and torch.equal(x, kept)
    assert one[0].shape == x.shape and one[0].dtype == torch.uint8
    first, second = (tfm.apply([x, x], kinds, rng=random.Random(k), train=True)[0] for k in (5, 5))
    assert torch.equal(first, second)


def test_spoiling_by_the_number_of_pixels_alone() -> None:
    x = bytes_of(0)
    small = Crappify(4, None, 0.0).apply([x, x], ["image", "image"], rng=random.Random(0), train=True)[0]
    means = F.avg_pool2d(x.float(), 4).round().byte()
    expected = Image.fromarray(means.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BICUBIC)
    assert (small.int() - to_uint8_tensor(expected).int()).abs().max() <= 2
    assert torch.equal(Crappify(1, None, 0.0).apply([x, x], ["image", "image"], rng=random.Random(0), train=True)[0], x)


def test_noise_has_its_standard_deviation_and_differs_in_training() -> None:
    x = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    noisy, other = (Crappify(1, None, 0.1).apply([x, x], ["image", "image"], rng=random.Random(k), train=True)[0] for k in (0, 1))
    assert abs((noisy.float() / 255).std() - 0.1) < 0.005 and not torch.equal(noisy, other)


def test_without_a_target_nothing_is_spoiled() -> None:
    x = bytes_of(0)
    for values, kinds in (([x], ["image"]), ([x, torch.tensor(1)], ["image", "category"]), ([torch.zeros(3), x], ["noise", "image"])):
        assert all(a is b for a, b in zip(Crappify().apply(values, kinds, rng=random.Random(0), train=True), values))


@pytest.mark.parametrize(("options", "facts"), [
    ({"factor": 0}, ["factor", 0]), ({"noise": 2.0}, ["noise", 2.0]), ({"quality": (80, 30)}, ["quality", "lower one first"]),
    ({"quality": 50}, ["quality", 50]), ({"quality": (0, 50)}, ["quality", "from 1 to 95"])])  # fmt: skip
def test_wrong_options_of_crappify(options: dict, facts: list) -> None:
    with raises(ValueError, "Crappify", *facts):
        Crappify(**options)


# ---------------------------------------------------------------------------------------------------- the feature loss


def test_the_feature_loss_by_hand() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 3, 64, 64, generator=rng)
    net = coursenet()
    body = create_body("coursenet")
    load_body_weights(body, "coursenet", fetch_weights("coursenet"))
    net.load_state_dict(dict(zip(list(net.state_dict())[:-2], body.state_dict().values(), strict=True)), strict=False)
    net.eval().requires_grad_(False)
    seen: dict[str, list] = {"half": [], "quarter": []}
    net.stem[2].register_forward_hook(lambda m, i, out: seen["half"].append(out.clone()))
    net.layer1.register_forward_hook(lambda m, i, out: seen["quarter"].append(out.clone()))
    mean, std = torch.tensor(norm_stats("coursenet"))[:, :, None, None]
    for image in (a, b):
        net((image - mean) / std)
    parts = [((p - t) ** 2).flatten(1).mean(1) / (t**2).flatten(1).mean(1) for p, t in seen.values()]
    expected = (0.5 * (a - b).abs().flatten(1).mean(1) + 2 * parts[0] + 3 * parts[1]).mean()
    torch.testing.assert_close(FeatureLoss("coursenet", (2, 3), pixel=0.5)(a, b), expected, rtol=1e-3, atol=1e-4)


def test_the_feature_loss_has_a_gradient_for_the_image_and_none_for_its_network() -> None:
    loss, x = FeatureLoss(pixel=0), torch.rand(2, 3, 64, 64, requires_grad=True)
    loss(x, torch.rand(2, 3, 64, 64)).backward()
    assert x.grad.abs().sum() > 0 and not any(p.requires_grad or p.grad is not None for p in loss._frozen[0].parameters())
    assert not list(loss.parameters()) and not loss.state_dict()


def test_wrong_options_of_the_feature_loss() -> None:
    with raises(ValueError, "FeatureLoss", "weights", "-1"):
        FeatureLoss(weights=(1, -1))
    with raises(ValueError, "FeatureLoss", 7, "coursenet"):
        FeatureLoss("coursenet", [1] * 7)(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))


# ---------------------------------------------------------------------------------------------------- the U-Net


def test_sub_pixels_start_as_larger_pixels() -> None:
    up, x = SubPixel(4, 2), torch.randn(1, 4, 5, 6)
    assert torch.equal(up(x), F.interpolate(up(x)[..., ::2, ::2], scale_factor=2))


@pytest.mark.parametrize("size", [(64, 64), (45, 70), (33, 31)])
def test_the_untrained_network_returns_its_input(size: tuple[int, int]) -> None:
    model, x = ImageUNetModel("coursenet", (8, 8, 8), 4).build().eval(), torch.rand(2, 3, *size)
    assert torch.equal(model(x), x)


def pairs(tmp_path: Path, **options) -> object:
    for i in range(12):
        photo(i).save(tmp_path / f"{i:02}.png")
    files = sorted(tmp_path.glob("*.png"))
    block = DataBlock(blocks=(ImageBlock, ImageBlock), splitter=IndexSplitter([9, 10, 11]), item_tfms=[Resize(32), Crappify(4, None, 0.1)])
    return block.dataloaders(files, tmp_path, bs=3, seed=0, device="cpu", **options)


def test_a_super_resolver_from_data_to_file(tmp_path: Path) -> None:
    dls = pairs(tmp_path)
    first, again = ([b.xs[0] for b in dls.valid] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))  # the validation set is spoiled in the same way each time
    learn = generator_learner(dls, "coursenet", pretrained=False, widths=(8, 8, 8), detail=8, loss_func=FeatureLoss("coursenet", (0.1,)), metrics=psnr, seed=0)
    learn.progress = False
    learn.fit_one_cycle(8, 5e-3)
    losses = learn.recorder.losses
    assert sum(losses[-6:]) < sum(losses[:6])
    loaded = load_learner(learn.export(tmp_path / "sharp.ck"), device="cpu")
    item = dls.valid_ds.items[0]
    image, pixels, _ = loaded.predict(item)
    assert image.size == (32, 32) and torch.allclose(pixels, learn.predict(item)[1], atol=1e-5)
    assert loaded.loss_func.options() == learn.loss_func.options()
    assert enhance(loaded, photo(3, 45)).size == (45, 45) and enhance(learn, photo(3), (70, 33)).size == (70, 33)
    learn.show_results(max_n=2)
    dls.show_batch(max_n=2)


def test_data_without_an_image_as_target_are_refused(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    photo(1).save(tmp_path / "b.png")
    dls = DataBlock(blocks=(ImageBlock, NoiseBlock(3)), splitter=IndexSplitter([1]), item_tfms=Resize(32)).dataloaders(sorted(tmp_path.glob("*.png")), bs=1)
    with raises(ValueError, "generator_learner", "noise", "blocks=(ImageBlock, ImageBlock)"):
        generator_learner(dls, "coursenet", pretrained=False)


# ---------------------------------------------------------------------------------------------------- the GAN

MODEL = GANModel(6, 16, (8, 8, 8), (8, 8, 8))


def noise_and_images(path: Path, n: int = 15, bs: int = 4):
    block = DataBlock(blocks=(NoiseBlock(6), ImageBlock), get_y=lambda i: photo(i, 16), splitter=IndexSplitter([12, 13, 14]))
    return block.dataloaders(list(range(n)), path, bs=bs, seed=3, device="cpu")


def player(path: Path, **options) -> GANLearner:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MODEL.build()
    learn = GANLearner(noise_and_images(path), model, **{"lr": (1e-3, 2e-3), "seed": 5, "precision": "fp32"} | options)
    learn.progress = False
    return learn


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("loss", ["bce", "hinge", "wgan"])
def test_the_learner_equals_two_optimizers_by_hand(tmp_path: Path, loss: str) -> None:
    learn, other = player(tmp_path, loss=loss, penalty=0), player(tmp_path)
    learn.fit(3)
    gan = other.model.train()
    steps = {part: torch.optim.AdamW(part.parameters(), lr, betas=(0.0, 0.99), eps=1e-5, weight_decay=0, fused=True)
             for part, lr in ((gan.generator, 1e-3), (gan.critic, 2e-3))}
    of_critic, of_generator = GAN_LOSSES[loss]
    history: list[list[float]] = [[], []]
    torch.manual_seed(5)
    for batch in (b for _ in range(3) for b in other.dls.train):
        fake = gan.generator(torch.randn_like(batch.xs[0]))
        scores = gan.judge(torch.cat([batch.ys[0], fake.detach()]))
        critic = of_critic(*scores.tensor_split(2))
        critic.backward()
        steps[gan.critic].step()
        gan.critic.requires_grad_(False)
        generator = of_generator(gan.judge(fake))
        generator.backward()
        steps[gan.generator].step()
        gan.critic.requires_grad_(True)
        gan.zero_grad()
        for kept, value in zip(history, (critic, generator)):
            kept.append(value.item())
    assert np.allclose([learn.history.critic, learn.history.generator], history, rtol=1e-5)
    for (name, a), b in zip(learn.model.state_dict().items(), gan.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_one_network_moves_at_a_time(tmp_path: Path) -> None:
    learn = player(tmp_path, n_critic=3)
    start = {k: v.clone() for k, v in learn.model.named_parameters()}
    seen = []

    class Watch(Callback):
        def after_step(self, learn) -> None:
            moved = {k.split(".")[0] for k, v in learn.model.named_parameters() if not torch.equal(v, start[k])}
            seen.append(moved)

    learn.fit(1, cbs=Watch())
    assert seen == [{"critic"}, {"critic"}, {"critic", "generator"}]
    assert len(learn.history.critic) == 3 and len(learn.history.generator) == 1
    assert all(p.requires_grad for p in learn.model.parameters())


def test_a_frozen_generator_and_a_trial_run(tmp_path: Path) -> None:
    learn = player(tmp_path)
    for p in learn.model.generator.parameters():
        p.requires_grad_(False)
    first = next(learn.model.critic.parameters())
    learn.fit(1)
    assert learn.history.critic and not learn.history.generator and first.requires_grad
    other = player(tmp_path / "2")
    other.lr_find(num_it=10, show_plot=False)
    assert not other.history.critic and not other.history.generator


def test_noise_is_new_in_training_and_its_own_in_validation(tmp_path: Path) -> None:
    learn = player(tmp_path)
    learn.fit(1)
    assert learn.validate() == learn.validate()
    assert torch.equal(learn.get_preds().preds, samples(learn, 3, seed=12))
    assert not torch.equal(samples(learn, 1, seed=0), samples(learn, 1, seed=1))


class StopAt(Callback):
    "Does something after some batch."
    order = 20_000

    def __init__(self, step: int, what) -> None:
        self.step, self.what = step, what

    def after_batch(self, learn) -> None:
        if learn.state.training and learn.state.step == self.step:
            self.what()


def test_ctrl_c_leaves_a_generator_that_samples_and_exports(tmp_path: Path) -> None:
    learn = player(tmp_path, cbs=EMA(0.9))
    with pytest.raises(KeyboardInterrupt, match="after batch 4 of 30"):
        learn.fit(10, cbs=StopAt(4, lambda: signal.raise_signal(signal.SIGINT)))
    assert len(learn.history.critic) == len(learn.history.generator) == 4
    assert all(p.requires_grad and p.grad is None for p in learn.model.parameters()) and not learn.model.training
    made = samples(learn, 5)
    assert made.shape == (5, 3, 16, 16) and made.isfinite().all() and made.min() >= 0 and made.max() <= 1
    loaded = load_learner(learn.export(tmp_path / "gan.ck"), device="cpu")
    assert torch.allclose(samples(loaded, 5), made, atol=1e-6)
    assert loaded.predict(2)[0].size == (16, 16)
    learn.fit(1)  # and it can be trained further


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_generative import *
path = Path({path!r})
player(path, cbs=EMA(0.9)).fit_one_cycle(4, cbs=[Checkpoint(every=2), SampleGrids(n=4), StopAt(8, lambda: os.kill(os.getpid(), signal.SIGKILL))])
"""


def test_a_killed_fit_goes_on_as_if_nothing_had_happened(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed, whole, grids = player(tmp_path, cbs=EMA(0.9)), player(tmp_path / "other", cbs=EMA(0.9)), SampleGrids(n=4)
    resumed.fit_one_cycle(4, cbs=[Checkpoint(every=2), grids])
    assert "resuming after batch 8 of 12" in capsys.readouterr().out
    whole.fit_one_cycle(4)
    assert same_weights(resumed.model, whole.model)
    assert resumed.history.critic == whole.history.critic and resumed.history.generator == whole.history.generator
    assert [f.stem for f in grids.files(resumed)] == [f"epoch_{i:04}" for i in (1, 2, 3, 4)]  # those from before the crash are still there


def test_a_loss_of_the_generator_that_is_not_finite_stops_the_fit(tmp_path: Path) -> None:
    learn = player(tmp_path)

    class Spoil(Callback):
        def before_step(self, learn) -> None:
            with torch.no_grad():
                learn.model.critic[-2].bias.fill_(-torch.inf)

    with raises(FloatingPointError, "batch 1"):
        learn.fit(1, cbs=Spoil())
    assert all(p.requires_grad for p in learn.model.parameters())


def test_a_gan_of_ones_own_networks(tmp_path: Path) -> None:
    generator = nn.Sequential(nn.Linear(6, 768), nn.Sigmoid(), nn.Unflatten(1, (3, 16, 16)))
    learn = GANLearner(noise_and_images(tmp_path), GAN(generator, nn.Sequential(nn.Flatten(), nn.Linear(768, 1), nn.Flatten(0))), loss="wgan", seed=0)
    learn.progress = False
    learn.fit(1)
    assert learn.penalty == 10 and samples(learn, 2).shape == (2, 3, 16, 16)


def test_grids_and_their_tiles(tmp_path: Path) -> None:
    images = torch.rand(5, 3, 4, 6)
    grid = to_uint8_tensor(tiled(images, 3)).float() / 255
    assert grid.shape == (3, 8, 18) and grid[:, 4:, 12:].min() == 1  # the place that is left over is white
    assert (grid[:, 4:, 6:12] - images[4]).abs().max() < 0.01
    learn, grids = player(tmp_path), SampleGrids("mine", n=4, every=2)
    learn.fit(4, cbs=grids)
    learn.fit(2, cbs=grids)  # a new fit begins a new series
    assert [f.name for f in grids.files(learn)] == ["epoch_0002.png"]


def test_wrong_gan_data_and_options(tmp_path: Path) -> None:
    dls = noise_and_images(tmp_path)
    for options, facts in (({"loss": "lsgan"}, ["loss", "lsgan"]), ({"n_critic": 0}, ["n_critic", 0]), ({"penalty": -1.0}, ["penalty", -1])):
        with raises(ValueError, "GANLearner", *facts):
            GANLearner(dls, MODEL.build(), **options)
    with raises(ValueError, "gan_learner", "image", "NoiseBlock"):
        gan_learner(pairs(tmp_path))
    with raises(ValueError, "samples", "NoiseBlock", "ImageBlock"):
        samples(generator_learner(pairs(tmp_path), "coursenet", pretrained=False), 2)
    with raises(ValueError, "NoiseBlock", "(3,)", 6):
        NoiseBlock(6).encode(torch.zeros(3))
    with raises(ValueError, "GANModel", "size", 20):
        GANModel(size=20)
