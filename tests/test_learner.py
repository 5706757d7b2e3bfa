"""The learner: the cycles' numbers batch by batch, freezing, exports in a fresh process, equal runs, faults."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import raises, run
from PIL import Image
from torch import nn

from coursekit.training.callback import Callback, CancelBatchException, CancelEpochException, CancelFitException
from coursekit.deploy.hub import load_learner
from coursekit.training.learner import Learner, synthetic_learner
from coursekit.training.metrics import accuracy, error_rate
from coursekit.training.optimizers import get_hyper
from coursekit.vision.all import (ImageDataLoaders, Resize, aug_transforms, get_image_files, resnet18, vision_learner)
from coursekit.vision.models import vision_groups


def cosine(start: float, end: float, pct: float) -> float:
    return start + (1 - math.cos(math.pi * pct)) / 2 * (end - start)


def two_cosines(pct: float, peak: float, start: float, middle: float, end: float) -> float:
    return cosine(start, middle, pct / peak) if pct < peak else cosine(middle, end, (pct - peak) / (1 - peak))


def blobs(n: int = 96, seed: int = 0) -> torch.utils.data.TensorDataset:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.utils.data.TensorDataset(torch.randn(n, 4, generator=g) + 2 * torch.eye(4)[y], y)


def three_groups() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 8), nn.Linear(8, 3))


def small_learner(cbs: tuple = (), **options: object) -> Learner:
    loaders = [torch.utils.data.DataLoader(blobs(seed=s), batch_size=8) for s in (0, 1)]
    learn = Learner(loaders, three_groups(), nn.CrossEntropyLoss(), splitter=list, metrics=accuracy, cbs=cbs, device="cpu",
                    precision="fp32", seed=0, **options)  # type: ignore[arg-type]
    learn.progress = False
    return learn


class Watch(Callback):
    """Rates and momenta of all groups at every batch, as the optimiser has them when it steps."""

    order = 100

    def __init__(self) -> None:
        self.seen: list[list[dict[str, float]]] = []

    def before_step(self, learn: Learner) -> None:
        self.seen.append(get_hyper(learn.opt))


def test_one_cycle_every_batch_and_group() -> None:
    watch = Watch()
    learn = small_learner(cbs=(watch,))
    learn.fit_one_cycle(3, slice(1e-4, 1e-2))
    n = 3 * len(learn.dls.train)
    assert len(watch.seen) == n == 36
    for k, groups in enumerate(watch.seen):
        for group, top in zip(groups, (1e-4, 1e-3, 1e-2), strict=True):
            assert group["lr"] == pytest.approx(two_cosines(k / n, 0.25, top / 25, top, top / 1e5), rel=1e-9)
            assert group["mom"] == pytest.approx(two_cosines(k / n, 0.25, 0.95, 0.85, 0.95), rel=1e-9)


def test_fine_tune_every_batch_and_group() -> None:
    watch = Watch()
    learn = small_learner(cbs=(watch,))
    learn.fine_tune(2)
    n = len(learn.dls.train)
    first, second = watch.seen[:n], watch.seen[n:]
    assert len(second) == 2 * n
    for k, groups in enumerate(first):
        for group, top in zip(groups, (2e-4, 2e-4, 2e-3), strict=True):
            assert group["lr"] == pytest.approx(two_cosines(k / n, 0.99, top / 25, top, top / 1e5), rel=1e-9)
    for k, groups in enumerate(second):
        for group, top in zip(groups, (1e-5, 1e-4, 1e-3), strict=True):
            assert group["lr"] == pytest.approx(two_cosines(k / (2 * n), 0.3, top / 5, top, top / 1e5), rel=1e-9)
            assert group["mom"] == pytest.approx(two_cosines(k / (2 * n), 0.3, 0.95, 0.85, 0.95), rel=1e-9)


@pytest.mark.parametrize("train_bn", [False, True])
def test_frozen_layers_do_not_move_and_norms_do_if_asked(train_bn: bool) -> None:
    learn = small_learner(train_bn=train_bn)
    learn.freeze()
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.fit(1, 1e-2)
    moved = {k for k, v in learn.model.state_dict().items() if not torch.equal(v, before[k])}
    norm = {"0.1.weight", "0.1.bias", "0.1.running_mean", "0.1.running_var", "0.1.num_batches_tracked"}
    assert {"0.0.weight", "0.0.bias", "1.weight", "1.bias"}.isdisjoint(moved)
    assert {"2.weight", "2.bias"} <= moved and (norm <= moved if train_bn else norm.isdisjoint(moved))


def test_frozen_parts_run_in_eval_mode_and_the_rest_does_not() -> None:
    learn, seen = small_learner(), []

    class Look(Callback):
        def before_batch(self, learn): seen.append([learn.model[0][1].training, learn.model[2].training, learn.state.training])

    learn.freeze()
    learn.fit(1, cbs=Look())
    assert {tuple(s) for s in seen} == {(False, True, True), (False, False, False)}
    learn.unfreeze()
    seen.clear()
    learn.fit(1, cbs=Look())
    assert {tuple(s) for s in seen} == {(True, True, True), (False, False, False)}


def test_freezing_resets_the_optimiser() -> None:
    learn = small_learner()
    learn.fit(1, 1e-2)
    assert learn.opt.state
    learn.unfreeze()
    assert learn.opt is None


def test_weight_decay_spares_norms_and_biases() -> None:
    learn = small_learner(wd=0.3)
    learn.create_opt()
    decays = {id(p): g["weight_decay"] for g in learn.opt.param_groups for p in g["params"]}
    for name, p in learn.model.named_parameters():
        assert decays[id(p)] == (0.3 if p.ndim > 1 else 0.0), name
    group = learn.opt.param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.95, 0.99), 1e-5)


@pytest.mark.parametrize("n", [10, 50])
def test_lr_find_is_not_ended_by_uneven_first_batches(n: int) -> None:
    """A first batch that is by chance a thousand times easier than the others is no sign of a rate too high."""
    learn = synthetic_learner()
    plain, seen = learn.loss_func, []

    def uneven(preds: torch.Tensor, targs: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        return plain(preds, targs) * (1e-3 if len(seen) == 1 else 1.0)

    learn.loss_func = uneven
    learn.lr_find(end_lr=1e-3, num_it=n, show_plot=False)
    assert len(learn.recorder.lrs) == n


def test_lr_find_leaves_no_trace() -> None:
    learn, other = small_learner(), small_learner()
    learn.lr_find(num_it=20, show_plot=False)
    learn.fit_one_cycle(1, 1e-2)
    other.fit_one_cycle(1, 1e-2)
    for a, b in zip(learn.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_fit_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    learn = small_learner()
    learn.model.append(nn.Dropout(0.5))
    learn.fit(1, 1e-3)
    assert torch.equal(torch.get_rng_state(), before)


def test_cancelling_and_the_order_of_events() -> None:
    events: list[str] = []

    class Log(Callback):
        def before_batch(self, learn: Learner) -> None:
            if learn.state.training and learn.state.epoch == 0 and learn.state.step == 1:
                raise CancelBatchException
            if learn.state.training and learn.state.epoch == 1:
                raise CancelEpochException

        def after_cancel_batch(self, learn: Learner) -> None: events.append("cancel batch")
        def after_cancel_epoch(self, learn: Learner) -> None: events.append("cancel epoch")
        def after_epoch(self, learn: Learner) -> None: events.append("epoch")

        def before_epoch(self, learn: Learner) -> None:
            if learn.state.epoch == 2:
                raise CancelFitException

        def after_fit(self, learn: Learner) -> None: events.append("fit")

    small_learner(cbs=(Log(),)).fit(5, 1e-3)
    assert events == ["cancel batch", "epoch", "cancel epoch", "epoch", "fit"]


def test_loss_that_is_not_finite_stops_before_the_step() -> None:
    class Spoil(Callback):
        def after_pred(self, learn: Learner) -> None:
            if learn.state.training and learn.state.step == 6:
                learn.state.preds = learn.state.preds * float("nan")

    class Keep(Callback):
        def after_step(self, learn: Learner) -> None:
            self.weights = {k: v.clone() for k, v in learn.model.named_parameters()}

    keep = Keep()
    learn = small_learner(cbs=(Spoil(), keep))
    with raises(FloatingPointError, "nan", "batch 7 of 12", "lr_find"):
        learn.fit(1, 1e-3)
    for k, v in learn.model.named_parameters():
        assert torch.equal(v, keep.weights[k])
    assert len(learn.recorder.losses) == 6
    assert learn.recorder.interrupted == "FloatingPointError"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures of two kinds, told apart by where the bright half is."""
    folder = tmp_path_factory.mktemp("pictures")
    g = torch.Generator().manual_seed(0)
    for i in range(60):
        x = torch.randint(0, 120, (3, 40, 50), generator=g)
        x[:, :, (25 if i % 2 else 0):(50 if i % 2 else 25)] += 120
        Image.fromarray(x.byte().permute(1, 2, 0).numpy()).save(folder / f"{'right' if i % 2 else 'left'}_{i}.png")
    return folder


def picture_learner(pictures: Path, workers: int | None = 0, cache: str | None = None) -> Learner:
    dls = ImageDataLoaders.from_name_func(pictures, get_image_files(pictures), lambda n: n.split("_")[0], seed=5, bs=12,
                                          item_tfms=Resize(32), batch_tfms=aug_transforms(do_flip=False), num_workers=workers,
                                          device="cpu", cache=cache)
    learn = vision_learner(dls, resnet18, metrics=error_rate, pretrained=False, seed=5)
    learn.progress = False
    return learn


@pytest.fixture(scope="module")
def plain_weights(pictures: Path) -> dict[str, torch.Tensor]:
    learn = picture_learner(pictures, 0)
    learn.fit_one_cycle(2, 1e-3)
    return learn.model.state_dict()


@pytest.mark.parametrize(("workers", "cache"), [(2, None), (0, "memory"), (2, "memory"), (0, "device"), (None, "memory")])  # fmt: skip
def test_any_number_of_workers_and_any_cache_give_equal_weights(pictures: Path, plain_weights: dict, workers: int | None, cache: str | None) -> None:
    learn = picture_learner(pictures, workers, cache)
    learn.fit_one_cycle(2, 1e-3)
    for name, value in learn.model.state_dict().items():
        assert torch.equal(value, plain_weights[name]), name
    assert learn.dls.train.dataset.is_cached == learn.dls.valid.dataset.is_cached == (cache is not None)


def test_predictions_agree_everywhere(pictures: Path, tmp_path: Path) -> None:
    learn = picture_learner(pictures)
    learn.fit_one_cycle(2, 1e-3)
    assert len(vision_groups(learn.model)) == 3
    preds, _ = learn.get_preds()
    items = learn.dls.valid_ds.items
    for i in range(4):
        result = learn.predict(items[i])
        assert torch.allclose(result.probabilities, preds[i], atol=1e-5)
        assert result.label == learn.dls.vocab[preds[i].argmax()]
        for form in (str(items[i]), items[i].read_bytes(), Image.open(items[i])):
            assert torch.allclose(learn.predict(form).probabilities, preds[i], atol=1e-5)
    error = sum(learn.predict(f).label != f.name.split("_")[0] for f in items) / len(items)
    assert error == pytest.approx(learn.validate()[1], abs=1e-6)

    file = learn.export(tmp_path / "model.ck")
    program = ("import sys, torch; from coursekit.deploy.hub import load_learner\n"
               "learn = load_learner(sys.argv[1], device='cpu')\n"
               "print(learn.dls.vocab, *learn.predict(sys.argv[2]).probabilities.tolist())\n"
               "assert 'pickle' not in str(learn.model.spec)")
    said = run([sys.executable, "-I", "-c", program, str(file), str(items[0])]).stdout.split("] ")
    assert said[0] == "['left', 'right'"
    assert torch.allclose(torch.tensor([float(v) for v in said[1].split()]), preds[0], atol=1e-5)


def test_an_export_holds_no_pickle(pictures: Path, tmp_path: Path) -> None:
    import pickletools
    import zipfile

    file = picture_learner(pictures).export(tmp_path / "model.ck")
    data = file.read_bytes()
    assert not zipfile.is_zipfile(file)
    size = int.from_bytes(data[:8], "little")
    assert data[8:9] == b"{" and data[8 + size - 1:8 + size].strip() in (b"}", b"")
    with pytest.raises(Exception):  # noqa: B017 - whatever pickletools says of it
        list(pickletools.genops(data))
    damaged = tmp_path / "damaged.ck"
    damaged.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with raises(ValueError, "changed"):
        load_learner(damaged)
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04N.")
    with raises(ValueError, "pickle"):
        load_learner(tmp_path / "model.pkl")


def test_an_interrupt_leaves_a_usable_learner() -> None:
    class Interrupt(Callback):
        def after_step(self, learn: Learner) -> None:
            if learn.state.step == 5:
                raise KeyboardInterrupt

    learn = small_learner(cbs=(Interrupt(),))
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, 1e-3)
    assert learn.recorder.interrupted == "KeyboardInterrupt"
    learn.remove_cb(Interrupt)
    assert learn.opt.param_groups[0]["betas"][0] == 0.95
    learn.fit(6, 1e-2)
    assert learn.validate()[1] > 0.6


def test_importing_the_learner_runs_in_a_bare_process() -> None:
    assert subprocess.run([sys.executable, "-I", "-c", "import coursekit.training.learner"]).returncode == 0


def test_a_giant_validation_is_not_kept_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    from coursekit.training.predictions import KeptPreds

    kept = KeptPreds()
    monkeypatch.setattr(KeptPreds, "max_numbers", 8)
    learn = synthetic_learner()
    learn.kept, kept.keep, kept.n = kept, True, 0
    for n, rows in ((6, 1), (3, 0), (1, 0)):  # numbers of a batch, and batches kept after it
        learn.state.preds, learn.state.batch, learn.state.training = torch.zeros(n, 1), learn.dls.train.first_batch(), False
        if kept.keep:
            kept.after_loss(learn)
        assert len(kept.rows) == rows
