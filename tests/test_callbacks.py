"""Callbacks against closed forms, PyTorch's own schedulers and clipping, and one batch in place of many; each with interrupted fits."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers import raises
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coursekit.training.callback import (
    Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelTrainException, CancelValidateException, ParamScheduler
)
from coursekit.training.callbacks.checkpoint import Checkpoint
from coursekit.training.callbacks.ema import EMA
from coursekit.training.callbacks.gradient import GradientAccumulation, GradientClip
from coursekit.training.callbacks.loggers import CSVLogger
from coursekit.training.callbacks.mixup import CutMix, MixUp, rectangles
from coursekit.training.callbacks.stats import ActivationStats
from coursekit.training.callbacks.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback, TrackerCallback
from coursekit.core import seeded
from coursekit.data.loader import Batch
from coursekit.training.learner import Learner, synthetic_learner
from coursekit.training.loss_wrappers import as_loss
from coursekit.training.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, DiceLoss, FocalLoss, LabelSmoothingCrossEntropy, Loss
from coursekit.training.metrics import accuracy, error_rate, mae
from coursekit.training.optimizers import SGD, AdamW
from coursekit.training.schedules import SchedLin

quick = settings(deadline=None, max_examples=25)


def blobs(n: int = 50, seed: int = 0) -> torch.utils.data.TensorDataset:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.utils.data.TensorDataset(torch.randn(n, 4, generator=g) + torch.eye(4)[y], y)


def net(norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh(), nn.Linear(8, 3))


def small(path: Path | None = None, *, bs: int = 8, n: int = 50, norm: bool = False, **options: object) -> Learner:
    """A learner of three classes, without shuffling, on the CPU."""
    loaders = [torch.utils.data.DataLoader(blobs(n, seed), batch_size=bs) for seed in (0, 1)]
    options = dict(metrics=accuracy) | options
    learn = Learner(loaders, net(norm), nn.CrossEntropyLoss(), device="cpu", precision="fp32", seed=0, path=path, **options)  # type: ignore[arg-type]
    learn.progress = False
    return learn


def weights(learn: Learner) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in learn.model.state_dict().items()}


def close(a: dict[str, Tensor], b: dict[str, Tensor], tol: float = 0.0) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=tol, atol=tol) for k in a)


class Say(Callback):
    """Writes given numbers over the validation losses in the recorder."""

    order = 51

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def after_epoch(self, learn: Learner) -> None:
        learn.recorder.values[-1][1] = self.values[learn.state.epoch]


class Keep(Callback):
    """The weights after every step and every epoch."""

    order = 79

    def before_fit(self, learn: Learner) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.epochs: list[dict[str, Tensor]] = []

    def after_step(self, learn: Learner) -> None:
        self.steps.append(weights(learn))

    def after_epoch(self, learn: Learner) -> None:
        self.epochs.append(weights(learn))


class Break(Callback):
    """Raises at an event of an epoch, at the n-th time that it comes."""

    order = 85

    def __init__(self, event: str, error: type[BaseException] = KeyboardInterrupt, *, epoch: int = 1, nth: int = 1) -> None:
        self.epoch, self.left, self.error = epoch, nth, error
        setattr(self, event, self.count)

    def count(self, learn: Learner) -> None:
        if learn.state.epoch == self.epoch:
            self.left -= 1
            if self.left == 0:
                raise self.error


def broken(learn: Learner, n_epoch: int, cbs: list[Callback], **options: object) -> None:
    with contextlib.suppress(KeyboardInterrupt, FloatingPointError):
        learn.fit(n_epoch, cbs=cbs, **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- trackers

TRACKERS = [TrackerCallback, SaveModelCallback, EarlyStoppingCallback, ReduceLROnPlateau]


@pytest.mark.parametrize("cls", TRACKERS)
def test_a_number_that_is_not_recorded_stops_the_fit_before_it_begins(cls: type, tmp_path: Path) -> None:
    learn = small(tmp_path)
    before = weights(learn)
    with raises(ValueError, cls.__name__, "monitor", "'acuracy'", "'train_loss'", "'valid_loss'", "'accuracy'"):
        learn.fit(1, 0.1, cbs=cls("acuracy"))
    assert close(weights(learn), before) and learn.recorder.losses == []
    with raises(ValueError, cls.__name__, "<lambda>", "better"):
        small(tmp_path, metrics=lambda p, t: p.mean()).fit(1, cbs=cls("<lambda>"))
    learn.dls = (learn.dls.train, [])
    with raises(ValueError, "monitor='train_loss'"):
        learn.fit(1, cbs=cls())
    learn.fit(1, cbs=cls("train_loss"))


@pytest.mark.parametrize(("monitor", "best"), [("train_loss", min), ("valid_loss", min), ("accuracy", max), ("error_rate", min), ("mae", min)])
def test_which_way_is_better(monitor: str, best: Callable) -> None:
    tracker = TrackerCallback(monitor)
    learn = synthetic_learner(metrics=mae) if monitor == "mae" else small(metrics=[accuracy, error_rate])
    learn.fit_one_cycle(5, 0.3, cbs=tracker)
    values = [row[learn.recorder.metric_names.index(monitor)] for row in learn.recorder.values]
    assert tracker.best == best(values) and tracker.best_epoch == values.index(best(values))


numbers = st.one_of(st.sampled_from([1.0, 1.05, 2.0, math.nan]), st.floats(0, 3))


@given(st.lists(numbers, min_size=1, max_size=12), st.integers(1, 3), st.sampled_from([0.0, 0.1, 0.5]))
@quick
def test_early_stopping_by_hand(values: list[float], patience: int, min_delta: float) -> None:
    best, wait, epochs = math.inf, 0, 0
    for v in values:
        epochs += 1
        if best - v > min_delta:
            best, wait = v, 0
        else:
            wait += 1
        if wait == patience:
            break
    learn, stop = synthetic_learner(n_train=1, n_valid=1), EarlyStoppingCallback(patience=patience, min_delta=min_delta)
    for _ in range(2):  # the second fit starts anew
        learn.fit(len(values), cbs=[stop, Say(values)])
        assert (len(learn.recorder.values), stop.best) == (epochs, best)
        assert learn.recorder.interrupted == ""  # to stop was the plan


@given(st.lists(numbers, min_size=1, max_size=12), st.integers(1, 3), st.sampled_from([0.0, 0.1]), st.sampled_from([2.0, 10.0]), st.sampled_from([0.0, 0.05]))
@quick
def test_plateau_like_pytorch(values: list[float], patience: int, min_delta: float, factor: float, min_lr: float) -> None:
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=1 / factor, patience=patience - 1, threshold=min_delta, threshold_mode="abs",
                                                        min_lr=min_lr, eps=0)
    want = []
    for v in values:
        want.append(opt.param_groups[0]["lr"])
        theirs.step(v)
    learn = synthetic_learner(n_train=1, n_valid=1)
    plateau = ReduceLROnPlateau(patience=patience, min_delta=min_delta, factor=factor, min_lr=min_lr)
    for _ in range(2):
        learn.fit(len(values), 0.4, cbs=[plateau, Say(values)])
        assert learn.recorder.lrs == pytest.approx(want, rel=1e-9)


def test_plateau_lowers_every_group_and_refuses_a_schedule() -> None:
    learn = small(splitter=lambda m: [m[0], m[2]])
    learn.fit(3, slice(1e-3, 1e-1), cbs=[ReduceLROnPlateau(), Say([1.0, 1.0, 1.0])])
    assert sorted({tuple(sorted(set(lrs))) for lrs in learn.recorder.group_lrs}, reverse=True) == [
        pytest.approx((1e-3, 1e-1)), pytest.approx((1e-4, 1e-2))]
    for call in (learn.fit_one_cycle, partial(learn.fit, cbs=ParamScheduler(lr=SchedLin(0.1, 0.0)))):
        cbs = call.keywords.pop("cbs") if isinstance(call, partial) else None
        with raises(ValueError, "ReduceLROnPlateau", "schedule"):
            call(1, cbs=[ReduceLROnPlateau(), *([cbs] if cbs else [])])
    learn.fit(1, cbs=[ReduceLROnPlateau(), ParamScheduler(mom=SchedLin(0.9, 0.8))])  # only the momentum


def test_a_rate_that_is_below_the_smallest_is_not_raised() -> None:
    learn = synthetic_learner(n_train=1, n_valid=1)
    learn.fit(4, 0.01, cbs=[ReduceLROnPlateau(min_lr=0.1), Say([1.0] * 4)])
    assert learn.recorder.lrs == [0.01] * 4


def test_best_weights_come_back(tmp_path: Path) -> None:
    values = [3.0, 1.0, 2.0, 1.0, 4.0]
    learn, keep, save = small(tmp_path), Keep(), SaveModelCallback()
    learn.fit(5, 0.1, cbs=[keep, save, Say(values)])
    assert close(weights(learn), keep.epochs[1]) and not close(keep.epochs[1], keep.epochs[4])
    assert (save.best, save.best_epoch) == (1.0, 1)
    learn.fit(2, 0.1, cbs=[keep, save, Say([9.0, 8.0])])  # worse than before, but the best of this fit
    assert close(weights(learn), keep.epochs[1]) and save.best == 8.0


@pytest.mark.parametrize("stop", [
    Break("after_backward", epoch=2, nth=3), Break("before_validate", epoch=2), Break("after_pred", epoch=2, nth=9),
    Break("after_backward", CancelFitException, epoch=2, nth=3), Break("before_batch", FloatingPointError, epoch=2, nth=2),
    Break("after_epoch", epoch=2), EarlyStoppingCallback(patience=1)])  # fmt: skip
def test_best_weights_come_back_after_a_fit_that_was_cut_short(stop: Callback, tmp_path: Path) -> None:
    learn, keep = small(tmp_path), Keep()
    broken(learn, 5, [keep, SaveModelCallback(), Say([3.0, 1.0, 2.0, 1.0, 4.0]), stop], lr=0.1)
    assert 2 <= len(keep.epochs) <= 3 and close(weights(learn), keep.epochs[1])
    learn.fit(1, 0.1)
    assert math.isfinite(learn.validate()[0])


def test_nothing_is_loaded_where_nothing_was_saved(tmp_path: Path) -> None:
    learn, save, keep = small(tmp_path), SaveModelCallback(), Keep()
    learn.fit(1, 0.1, cbs=save)
    broken(learn, 2, [save, keep, Break("after_step", epoch=0, nth=4)], lr=0.1)  # the file holds the fit before
    assert close(weights(learn), keep.steps[-1])

    class Fails(Callback):
        order = -1

        def before_fit(self, learn: Learner) -> None:
            raise FloatingPointError

    broken(learn, 1, [save, Fails()])
    assert close(weights(learn), keep.steps[-1])
    learn.fit(2, 0.1, cbs=[save, keep, Say([math.nan, math.nan])])
    assert close(weights(learn), keep.epochs[-1]) and save.best_epoch == -1


def test_a_validation_that_was_cancelled_is_no_best(tmp_path: Path) -> None:
    learn, save, keep = small(tmp_path), SaveModelCallback("accuracy"), Keep()
    learn.fit(2, 0.1, cbs=[save, keep, Break("before_validate", CancelValidateException, epoch=1)])
    assert save.best_epoch == 0 and close(weights(learn), keep.epochs[0])


def test_an_epoch_without_a_number_counts_neither_way() -> None:
    learn, stop = small(), EarlyStoppingCallback(patience=2)

    class Worse(Callback):
        order = 51

        def after_epoch(self, learn: Learner) -> None:
            if len(learn.recorder.values[-1]) > 1:
                learn.recorder.values[-1][1] = float(learn.state.epoch)

    learn.fit(9, 0.1, cbs=[stop, Break("before_validate", CancelValidateException, epoch=1), Worse()])
    assert len(learn.recorder.values) == 4  # the best, none, worse, worse
    learn.fit(3, 0.1, cbs=[ReduceLROnPlateau(), Break("before_validate", CancelValidateException, epoch=1)])
    assert len(learn.recorder.values[1]) == 1 and learn.recorder.lrs == [0.1] * 21


def test_trial_runs_leave_a_tracker_as_it_was() -> None:
    learn = small(cbs=(tracker := TrackerCallback()))
    learn.fit(3, 0.1)
    before = dict(vars(tracker))
    learn.lr_find(num_it=10, show_plot=False)
    learn.profile(2)
    assert vars(tracker) == before and tracker.best_epoch >= 0


@pytest.mark.parametrize("cbs", [
    lambda folder: [SaveModelCallback(), SaveModelCallback("train_loss")],
    lambda folder: [SaveModelCallback(fname="run"), SaveModelCallback(fname="x/../run")],
    lambda folder: [SaveModelCallback(fname="each", every_epoch=True), SaveModelCallback(fname="each_1")],
    lambda folder: [CSVLogger(), CSVLogger(folder / "history.csv")]], ids=["two", "paths", "epochs", "logs"])  # fmt: skip
def test_two_that_write_the_same_file_are_refused(cbs: Callable[[Path], list[Callback]], tmp_path: Path) -> None:
    learn = small(tmp_path)
    before = weights(learn)
    made = cbs(tmp_path)
    with raises(ValueError, type(made[0]).__name__, "another name"):
        learn.fit(2, 0.1, cbs=made)
    assert close(weights(learn), before) and not list(tmp_path.rglob("*.*"))


def test_two_that_write_different_files_are_not(tmp_path: Path) -> None:
    best = [SaveModelCallback(), SaveModelCallback("accuracy", fname="other"), SaveModelCallback(fname="model", every_epoch=True), Checkpoint("model_2")]
    small(tmp_path).fit(2, 0.1, cbs=best)
    assert {p.stem for p in (tmp_path / "models").iterdir()} == {"model", "other", "model_0", "model_1"}  # the checkpoint is not among them


NAN, INF = math.nan, math.inf
BAD_ARGUMENTS: list[tuple[Callable, str, list]] = [
    (MixUp, "alpha", ["a", None, INF, NAN, 0, -1, True]), (CutMix, "alpha", ["a", None, INF]),
    (GradientClip, "max_norm", ["a", None, NAN, 0, True]), (GradientAccumulation, "n_acc", [1.5, 0, "a", True]),
    (ActivationStats, "limits", [3, None, (1,), (1, 0), ("a", "b"), (0, INF), (NAN, 1)]), (ActivationStats, "bins", [1.5, 0, "a"]),
    (ActivationStats, "every", [1.5, 0]),
    (EarlyStoppingCallback, "patience", [1.5, 0, INF]), (ReduceLROnPlateau, "patience", [1.5, "a"]),
    (SaveModelCallback, "fname", [3, "", None, ".", ".."]), (SaveModelCallback, "every_epoch", [2, 0, "yes"]),
    (CSVLogger, "fname", [None, ".", "", 3]), (CSVLogger, "append", ["x"]),
]  # fmt: skip


@pytest.mark.parametrize(("make", "name", "values"), BAD_ARGUMENTS, ids=[f"{m.__name__}-{n}" for m, n, _ in BAD_ARGUMENTS])
def test_bad_arguments_are_named(make: Callable, name: str, values: list) -> None:
    for value in values:
        with raises(ValueError, make.__name__, name, repr(value)):
            make(**{name: value})


def test_what_is_saved(tmp_path: Path) -> None:
    learn, keep = small(tmp_path), Keep()
    learn.fit(3, 0.1, cbs=[keep, SaveModelCallback(fname="all", every_epoch=True)])
    assert close(weights(learn), keep.epochs[2])
    for k in range(3):
        assert close(weights(learn.load(f"all_{k}")), keep.epochs[k])
    learn.fit(2, 0.1, cbs=SaveModelCallback(fname="with", with_opt=True))
    assert learn.opt.state and len(weights(learn.load("with"))) == 4
    learn.fit(2, 0.1, cbs=SaveModelCallback(fname="without"))
    assert not learn.opt.state  # its moments would belong to other weights
    assert (tmp_path / "models" / "with.safetensors").stat().st_size > (tmp_path / "models" / "without.safetensors").stat().st_size


def test_fine_tune_and_the_rate_finder(tmp_path: Path) -> None:
    save, keep = SaveModelCallback("accuracy"), Keep()
    learn = small(tmp_path, splitter=lambda m: [m[0], m[2]], cbs=[save, keep])
    learn.lr_find(num_it=10, show_plot=False)
    assert not (tmp_path / "models").exists()
    learn.fine_tune(3, 0.1)
    assert len(keep.epochs) == 3 and close(weights(learn), keep.epochs[save.best_epoch])


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("opt_func", [partial(SGD, mom=0.9), AdamW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(("bs", "n_acc", "joined"), [(8, 24, 24), (8, 20, 24), (8, 16, 16), (4, 50, 52), (5, 10, 10), (7, 7, 7), (8, 1, 8), (8, 1000, 50)])
def test_accumulation_is_one_large_batch(opt_func: Callable, bs: int, n_acc: int, joined: int) -> None:
    """50 samples: the last batch is short, and the last group, too."""
    one, many = small(bs=joined, opt_func=opt_func), small(bs=bs, opt_func=opt_func)
    keep, keep_one = Keep(), Keep()
    many.fit(3, 0.05, cbs=[GradientAccumulation(n_acc), keep])
    one.fit(3, 0.05, cbs=keep_one)
    assert len(keep.steps) == len(keep_one.steps) == 3 * math.ceil(50 / joined)
    for a, b in zip(keep.steps, keep_one.steps, strict=True):
        assert close(a, b, 1e-6)


def test_accumulated_gradients_are_clipped_whole() -> None:
    one, many = (small(bs=b, opt_func=partial(SGD, mom=0)) for b in (24, 8))
    many.fit(2, 0.5, cbs=[GradientClip(0.05), GradientAccumulation(24)])
    one.fit(2, 0.5, cbs=GradientClip(0.05))
    assert close(weights(one), weights(many), 1e-6)


def test_a_group_that_an_epoch_leaves_open_goes_on_in_the_next() -> None:
    at: list[int] = []

    class Note(Callback):
        def after_step(self, learn: Learner) -> None:
            at.append(learn.state.step)

    cbs = [GradientAccumulation(24), Note()]
    small(n=48).fit(2, 0.05, cbs=[*cbs, Break("before_batch", CancelEpochException, epoch=0, nth=6)])
    assert at == [2, 5, 8, 10]  # batches 0-2; 3, 4 and the next epoch's first; three more; the two that are left
    at.clear()
    small(n=48).fit(2, 0.05, cbs=[*cbs, Break("before_batch", CancelTrainException, epoch=0, nth=6)])
    assert at == [2, 5, 7, 10]  # batches 0-2; 3 and 4, at the end of the training part; 5-7; 8-10


@pytest.mark.parametrize("order", [5, 85])  # before and after the accumulation
def test_a_last_batch_that_is_cancelled_ends_its_group(order: int) -> None:
    class LeaveOut(Callback):
        def before_batch(self, learn: Learner) -> None:
            if learn.state.training and learn.state.step % 6 == 5:
                raise CancelBatchException

    leave_out, keep, keep_one = LeaveOut(), Keep(), Keep()
    leave_out.order = order  # type: ignore[misc]
    small(n=48, opt_func=partial(SGD, mom=0.9)).fit(2, 0.05, cbs=[GradientAccumulation(24), leave_out, keep, GradientClip(0.5)])
    one = small(bs=24, n=40, opt_func=partial(SGD, mom=0.9))  # on the five batches that are left in: 24 and 16 samples
    data = torch.utils.data.TensorDataset(*(t[:40] for t in blobs(48).tensors))
    one.dls = (torch.utils.data.DataLoader(data, batch_size=24), small(n=48).dls.valid)
    one.fit(2, 0.05, cbs=[keep_one, GradientClip(0.5)])
    assert len(keep.steps) == len(keep_one.steps) == 4
    assert all(close(a, b, 1e-6) for a, b in zip(keep.steps, keep_one.steps, strict=True))


def test_losses_that_are_no_plain_mean_are_the_mean_of_the_batches_by_items() -> None:
    """What the docstring says of class weights."""
    many, loss = small(opt_func=partial(SGD, mom=0)), CrossEntropyLossFlat([1.0, 20.0, 3.0])
    many.loss_func, model = loss, net()
    many.fit(1, 0.05, wd=0.0, cbs=GradientAccumulation(1000))
    x, y = blobs(50).tensors
    sum(loss(model(x[k:k + 8]), y[k:k + 8]) * len(x[k:k + 8]) / 50 for k in range(0, 50, 8)).backward()  # type: ignore[union-attr]
    assert close(weights(many), {k: (p - 0.05 * p.grad).detach() for k, p in model.named_parameters()}, 1e-6)


def test_the_record_has_the_losses_of_all_batches_unscaled() -> None:
    learn = small(opt_func=partial(SGD, mom=0))
    learn.fit(1, 1e-12, cbs=GradientAccumulation(24))
    plain = small()
    plain.fit(1, 1e-12)
    assert learn.recorder.losses == pytest.approx(plain.recorder.losses, rel=1e-5) and len(plain.recorder.losses) == 7


@pytest.mark.parametrize("max_norm", [0.01, 0.3, 100.0])
def test_clipping_like_pytorch_and_the_closed_form(max_norm: float) -> None:
    raw: list[Tensor] = []
    cut: list[Tensor] = []

    class Note(Callback):
        def __init__(self, order: int, into: list[Tensor]) -> None:
            self.order, self.into = order, into  # type: ignore[misc]

        def before_step(self, learn: Learner) -> None:
            self.into.append(torch.cat([p.grad.flatten() for p in learn.model.parameters()]).clone())

    learn = small()
    learn.fit(2, 0.05, cbs=[GradientClip(max_norm), Note(19, raw), Note(21, cut)])
    for before, after in zip(raw, cut, strict=True):
        p = nn.Parameter(torch.zeros_like(before))
        p.grad = before.clone()
        nn.utils.clip_grad_norm_([p], max_norm)
        assert torch.allclose(after, p.grad, atol=1e-7)
        assert torch.allclose(after, before * min(1, max_norm / before.norm().item()), rtol=1e-4, atol=1e-7)
    assert any(b.norm() > 0.01 for b in raw)


# ---------------------------------------------------------------- mean of the weights


def mean_of(steps: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    shares = torch.tensor([decay ** (len(steps) - 1 - i) for i in range(len(steps))], dtype=torch.float64)
    shares /= shares.sum()
    return {k: sum(s * w[k].double() for s, w in zip(shares, steps)).float() if steps[0][k].is_floating_point() else steps[-1][k]
            for k in steps[0]}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_ema_is_the_closed_form(decay: float) -> None:
    learn, keep, ema = small(norm=True), Keep(), EMA(decay)
    learn.fit_one_cycle(3, 0.1, cbs=[ema, keep])
    assert len(keep.steps) == 21 and close(weights(learn), mean_of(keep.steps, decay), 1e-6)
    for k in range(3):  # each epoch's row is that of the mean
        assert close(keep.epochs[k], mean_of(keep.steps[:7 * (k + 1)], decay), 1e-6)
    assert learn.validate() == pytest.approx(learn.recorder.values[-1][1:], rel=1e-5)
    learn.fit(1, 0.1, cbs=[ema, keep])  # anew
    assert close(weights(learn), mean_of(keep.steps, decay), 1e-6)


def test_ema_does_not_change_the_training() -> None:
    plain, other = small(norm=True), small(norm=True)
    plain.fit(3, 0.1)
    other.fit(3, 0.1, cbs=EMA(0.9))
    assert plain.recorder.losses == other.recorder.losses
    assert not close(weights(plain), weights(other), 1e-3)


@pytest.mark.parametrize("error", [KeyboardInterrupt, CancelFitException])
@pytest.mark.parametrize(("event", "nth"), [("after_backward", 3), ("before_validate", 1), ("after_pred", 7 + 3), ("after_validate", 1), ("after_epoch", 1),
                                            ("before_train", 1), ("before_epoch", 1)])  # fmt: skip
def test_ema_after_a_fit_that_was_cut_short(event: str, nth: int, error: type[BaseException]) -> None:
    learn, keep = small(norm=True), Keep()
    broken(learn, 3, [EMA(0.9), keep, Break(event, error, nth=nth)], lr=0.1)
    want = mean_of(keep.steps, 0.9)
    if event == "after_backward":  # norm layers have seen one more batch than there were steps
        want = {k: v for k, v in want.items() if "num_batches" not in k}
    assert 7 <= len(keep.steps) <= 14 and close({k: v for k, v in weights(learn).items() if k in want}, want, 1e-6)


def test_ema_is_what_is_saved(tmp_path: Path) -> None:
    learn, keep = small(tmp_path), Keep()
    learn.fit(4, 0.1, cbs=[EMA(0.9), SaveModelCallback(), keep, Say([4.0, 1.0, 2.0, 3.0])])
    assert close(weights(learn), mean_of(keep.steps[:14], 0.9), 1e-6)


def test_two_means_in_a_fit_are_refused() -> None:
    learn = small(cbs=EMA(0.9))
    before = weights(learn)
    with raises(ValueError, "EMA(0.9)", "EMA(0.99)", "one of them"):
        learn.fit(1, 0.1, cbs=EMA(0.99))
    assert close(weights(learn), before)
    learn.fit(1, 0.1)


def test_ema_counts_steps_and_not_batches() -> None:
    learn, keep, ema = small(), Keep(), EMA(0.9)
    learn.fit(2, 0.1, cbs=[ema, GradientAccumulation(16), keep])
    assert ema.k == len(keep.steps) == 8 and close(weights(learn), mean_of(keep.steps, 0.9), 1e-6)


# ---------------------------------------------------------------- mixing


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(2, 6))
@quick
def test_mixed_targets_are_soft_targets(seed: int, n: int, c: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, y, preds = torch.randn(n, 3, generator=g), torch.randint(c, (n,), generator=g), torch.randn(n, c, generator=g)
    learn = synthetic_learner(loss_func=CrossEntropyLossFlat())
    mix = MixUp(0.7)
    with seeded(seed % 1000):
        mixed = mix.mix(Batch((x,), (y,)))
    first, second, share = mixed.ys
    mix.before_train(learn)
    soft = share[:, None] * F.one_hot(first, c) + (1 - share[:, None]) * F.one_hot(second, c)
    assert learn.loss_func(preds, *mixed.ys).item() == pytest.approx(F.cross_entropy(preds, soft).item(), abs=1e-6, rel=1e-6)
    parts = [learn.loss_func(preds[k:k + 5], *(t[k:k + 5] for t in mixed.ys)).item() * len(preds[k:k + 5]) for k in range(0, n, 5)]
    assert sum(parts) / n == pytest.approx(F.cross_entropy(preds, soft).item(), abs=1e-6, rel=1e-5)  # a batch that is split
    mix.after_train(learn)
    assert isinstance(learn.loss_func, CrossEntropyLossFlat)
    wanted = torch.stack([share[i] * x[i] + (1 - share[i]) * x for i in range(n)])  # each item with every item: one of these it is, and of the right class
    gap = (wanted - mixed.x[:, None]).abs().amax(2)
    assert (gap.min(1).values < 1e-5).all()
    assert all((y[gap[i] < 1e-5] == second[i]).any() for i in range(n))


def test_mixing_labels_is_mixing_answers() -> None:
    """Binary cross entropy is linear in the target, so the mixed loss is the loss of the mixed labels."""
    g = torch.Generator().manual_seed(0)
    preds, first, second, share = torch.randn(6, 4, generator=g), *torch.randint(2, (2, 6, 4), generator=g).float(), torch.rand(6, generator=g)
    learn, mix = synthetic_learner(loss_func=BCEWithLogitsLossFlat()), MixUp()
    mix.before_train(learn)
    got = learn.loss_func(preds, first, second, share)
    assert got.item() == pytest.approx(BCEWithLogitsLossFlat()(preds, torch.lerp(second, first, share[:, None])).item(), abs=1e-6)


def mixed_loss(loss: Loss, preds: Tensor, *ys: Tensor) -> float:
    learn, mix = synthetic_learner(loss_func=loss), MixUp()
    mix.before_train(learn)
    return learn.loss_func(preds, *ys).item()


@given(st.integers(0, 2**31), st.integers(1, 9), st.lists(st.floats(0.1, 50), min_size=4, max_size=4), st.sampled_from([0.0, 0.2]), st.booleans())
@quick
def test_class_weights_are_mixed_with_the_targets(seed: int, n: int, weight: list[float], eps: float, ignore: bool) -> None:
    """Against each target on its own: what counts w once in the plain loss counts w times its share here."""
    g = torch.Generator().manual_seed(seed)
    preds, first, second, share = torch.randn(n, 4, generator=g), *torch.randint(4, (2, n), generator=g), torch.rand(n, generator=g)
    first[0] = second[0] = 0  # something counts
    loss = CrossEntropyLossFlat(weight, label_smoothing=eps, ignore_index=3 if ignore else -100)
    over = under = 0.0
    for targs, shares in ((first, share), (second, 1 - share)):
        for i, y in enumerate(targs.tolist()):
            w = 0.0 if ignore and y == 3 else weight[y] * shares[i].item()
            over += w and loss(preds[i:i + 1], targs[i:i + 1]).item() * w
            under += w
    assert mixed_loss(loss, preds, first, second, share) == pytest.approx(over / under, rel=1e-4)


MASKS = torch.randint(3, (2, 5, 4, 4), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("loss", [CrossEntropyLossFlat([1.0, 30.0, 2.0], 1), CrossEntropyLossFlat(None, 1, ignore_index=2), DiceLoss(),
                                  FocalLoss(weight=[1.0, 30.0, 2.0], axis=1, ignore_index=0), CrossEntropyLossFlat([9.0, 1.0, 2.0], 1, label_smoothing=0.3)],
                         ids=["weights", "ignored", "dice", "focal", "smooth"])  # fmt: skip
def test_with_the_whole_share_the_mixed_loss_is_the_plain_one(loss: Loss) -> None:
    preds = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    assert mixed_loss(loss, preds, *MASKS, torch.ones(5)) == pytest.approx(loss(preds, MASKS[0]).item(), rel=1e-5)
    assert mixed_loss(loss, preds, *MASKS, torch.zeros(5)) == pytest.approx(loss(preds, MASKS[1]).item(), rel=1e-5)


def test_losses_that_cannot_be_mixed_item_by_item_are_refused_at_the_first_batch() -> None:
    def root(preds: Tensor, targs: Tensor) -> Tensor:
        return F.cross_entropy(preds, targs).sqrt()

    for bad in (nn.CrossEntropyLoss(reduction="sum"), root, lambda p, t: F.cross_entropy(p, t, torch.tensor([1.0, 9.0, 2.0]))):
        learn = small()
        learn.loss_func = as_loss(bad)
        plain, before = learn.loss_func, weights(learn)
        with raises(ValueError, "MixUp", "loss_func"):
            learn.fit(1, 0.1, cbs=MixUp())
        assert learn.loss_func is plain and close(weights(learn), before)
    learn.loss_func = as_loss(lambda p, t: F.cross_entropy(p, t))
    learn.fit(1, 0.1, cbs=MixUp())  # any function that is a mean


def test_a_weighted_loss_keeps_its_scale_when_almost_nothing_is_mixed() -> None:
    plain, mixed = (small(n=48) for _ in range(2))
    for learn in (plain, mixed):
        learn.loss_func = CrossEntropyLossFlat([1.0, 40.0, 5.0])
    plain.fit(1, 1e-9)
    mixed.fit(1, 1e-9, cbs=MixUp(1e-3))  # shares of 0 or 1: the same items, some of them twice
    assert 0.5 < sum(mixed.recorder.losses) / sum(plain.recorder.losses) < 2


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 3.0])
def test_shares_are_beta(alpha: float) -> None:
    from scipy import stats

    batch = Batch((torch.zeros(4000, 1),), (torch.zeros(4000),))
    with seeded(1):
        share = MixUp(alpha).mix(batch).ys[2]
    assert stats.kstest(share.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert stats.kstest(share.numpy(), stats.beta(2 * alpha, alpha).cdf).pvalue < 1e-6  # the test can tell


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.3, 1.0, 4.0]))
@quick
def test_rectangles_have_the_area_that_is_said(seed: int, height: int, width: int, alpha: float) -> None:
    ones = torch.arange(9.0).view(9, 1, 1, 1).expand(9, 2, height, width)
    with seeded(seed % 10_000):
        mixed = CutMix(alpha).mix(Batch((ones,), (torch.arange(9),)))
    first, second, share = mixed.ys
    assert ((share >= 0) & (share <= 1)).all()
    for i in range(9):
        from_second = mixed.x[i, 0] != first[i]
        if first[i] != second[i]:
            assert from_second.float().mean().item() == pytest.approx(1 - share[i].item(), abs=1e-6)
            assert (mixed.x[i, 0][from_second] == second[i]).all()
            rows, cols = from_second.any(1).sum(), from_second.any(0).sum()
            assert rows * cols == from_second.sum()  # a rectangle
        assert torch.equal(mixed.x[i, 0], mixed.x[i, 1])


def test_rectangles_that_fit_have_the_area_that_was_drawn() -> None:
    share = torch.linspace(0, 1, 11).repeat(300)
    with seeded(0):
        inside = rectangles(share, 100, 60)
    area = inside.float().mean((1, 2))
    assert (area <= 1 - share + 0.02).all()
    whole = ~(inside[:, [0, -1]].any((1, 2)) | inside[:, :, [0, -1]].any((1, 2)))  # those that touch no edge
    assert whole.sum() > 500 and torch.allclose(area[whole], 1 - share[whole], atol=0.015)
    assert (area[share == 1] == 0).all()


@pytest.mark.parametrize("make", [MixUp, partial(MixUp, 2.0)])
@pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_backward", "before_validate", "after_epoch", "before_train"])
def test_the_loss_is_put_back(make: Callable, event: str) -> None:
    learn = small()
    plain = learn.loss_func
    broken(learn, 2, [make(), Break(event, nth=1)])
    assert learn.loss_func is plain
    assert len(learn.get_preds(with_loss=True).losses) == 50


def test_mixing_is_for_training_alone_and_the_same_for_the_same_seed() -> None:
    seen: list[tuple[bool, int]] = []

    class Look(Callback):
        def after_pred(self, learn: Learner) -> None:
            seen.append((learn.state.training, len(learn.state.batch.ys)))

    one, two, plain = small(), small(), small()
    one.fit(2, 0.1, cbs=[MixUp(), Look()])
    two.fit(2, 0.1, cbs=MixUp())
    plain.fit(2, 0.1)
    assert set(seen) == {(True, 3), (False, 1)}
    assert close(weights(one), weights(two)) and not close(weights(one), weights(plain), 1e-3)
    assert one.recorder.values[-1][1:] == pytest.approx(one.validate())


def test_mixing_teaches() -> None:
    learn = small(n=300)
    learn.fit_one_cycle(8, 0.05, cbs=MixUp(0.4))
    assert learn.validate()[1] > 0.5  # a third by guessing


# ---------------------------------------------------------------- logs


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_csv_has_the_recorders_numbers_after_every_epoch(tmp_path: Path) -> None:
    lengths: list[int] = []

    class Look(Callback):
        order = 99

        def after_epoch(self, learn: Learner) -> None:
            lengths.append(len(rows_of(tmp_path / "logs" / "h.csv")))

    learn = small(tmp_path, metrics=[accuracy, error_rate])
    broken(learn, 4, [CSVLogger("logs/h.csv"), Look(), Break("after_backward", epoch=3, nth=4)])
    assert lengths == [1, 2, 3]
    rows = rows_of(tmp_path / "logs" / "h.csv")
    assert list(rows[0]) == ["epoch", "train_loss", "valid_loss", "accuracy", "error_rate", "seconds"]
    assert [[float(v) for v in list(r.values())[1:5]] for r in rows] == learn.recorder.values
    assert [int(r["epoch"]) for r in rows] == [0, 1, 2]


def test_csv_of_several_fits(tmp_path: Path) -> None:
    log, file = CSVLogger(), tmp_path / "history.csv"
    learn = small(tmp_path, splitter=lambda m: [m[0], m[2]], cbs=log)
    learn.lr_find(num_it=10, show_plot=False)
    assert not file.exists()
    learn.fine_tune(2, 0.1)
    assert [r["epoch"] for r in rows_of(file)] == ["0", "0", "1"]
    learn.remove_cb(log)
    learn.fit(1, cbs=CSVLogger(append=True))
    assert len(rows_of(file)) == 4
    broken(learn, 1, [CSVLogger(), Break("before_train", epoch=0)])
    assert len(rows_of(file)) == 4  # nothing to write, so nothing is lost
    learn.fit(2, cbs=[CSVLogger(), Break("before_validate", CancelValidateException, epoch=0)])
    assert [r["valid_loss"] == "" for r in rows_of(file)] == [True, False]


def test_csv_of_a_resumed_fit_has_no_row_twice(tmp_path: Path) -> None:
    file, kept = tmp_path / "history.csv", {}
    learn, log = small(tmp_path), CSVLogger()

    class Store(Callback):
        order = 99

        def after_epoch(self, learn: Learner) -> None:
            if learn.state.epoch == 1:
                kept.update(log.kept())

    learn.fit(3, cbs=[log, Store()])
    assert len(rows_of(file)) == 3
    again = CSVLogger()

    class Restore(Callback):
        order = 99

        def before_fit(self, learn: Learner) -> None:
            again.restore(kept)

    learn.fit(1, cbs=[again, Restore()])  # in place of the third epoch
    assert [r["epoch"] for r in rows_of(file)] == ["0", "1", "0"]


def test_csv_whose_file_was_cut_or_removed_when_the_fit_goes_on(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    for left, epochs in ((None, ["1", "2"]), (0, ["1", "2"]), (-2, ["0", "1", "2"])):
        folder = tmp_path / str(left)
        folder.mkdir()
        file = folder / "history.csv"
        with contextlib.suppress(Killed):
            small(folder).fit(3, 0.05, cbs=[CSVLogger(), Checkpoint(every=100), DiesAt(10, Killed)])
        text = file.read_bytes()
        file.unlink()
        if left is not None:
            file.write_bytes(text[:left])  # -2: without the end of the last line
        small(folder).fit(3, 0.05, cbs=[CSVLogger(), Checkpoint(every=100)])
        assert b"\0" not in file.read_bytes()
        rows = rows_of(file)
        assert [r["epoch"] for r in rows] == epochs and all(None not in r and None not in r.values() for r in rows)


def test_csv_with_other_columns_and_a_folder_are_refused(tmp_path: Path) -> None:
    learn, file = small(tmp_path), tmp_path / "history.csv"
    learn.fit(1, cbs=CSVLogger())
    text = file.read_bytes()
    learn.metrics = small(metrics=[error_rate]).metrics
    with raises(ValueError, "CSVLogger", "history.csv", "accuracy", "error_rate"):
        learn.fit(1, cbs=CSVLogger(append=True))
    assert file.read_bytes() == text
    for name in (tmp_path, "history.csv/x.csv"):
        with raises(ValueError, "CSVLogger", tmp_path / name, "name of a file"):
            learn.fit(1, cbs=CSVLogger(name))
    learn.fit(1, cbs=CSVLogger())
    assert list(rows_of(file)[0])[3] == "error_rate"


# ---------------------------------------------------------------- all of them, resumed


def all_of_them() -> list[Callback]:
    return [EMA(0.9), GradientAccumulation(20), GradientClip(0.5), MixUp(), SaveModelCallback("train_loss"), ReduceLROnPlateau(patience=1, min_delta=9.0),
            CSVLogger(), ActivationStats(every=2)]  # fmt: skip


def outcome(learn: Learner, cbs: list[Callback]) -> tuple[dict[str, Tensor], list, dict[str, Tensor], Tensor]:
    rows = [list(r.values())[:-1] for r in rows_of(learn.path / "history.csv")]
    return weights(learn), rows, cbs[0].held, cbs[-1].record["2"]  # type: ignore[attr-defined]


def test_a_fit_that_was_broken_off_anywhere_goes_on_with_all_of_them(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def new(folder: str) -> Learner:
        (tmp_path / folder).mkdir(exist_ok=True)
        return small(tmp_path / folder, n=48, norm=True)

    whole, cbs = new("whole"), all_of_them()
    whole.fit(3, 0.05, cbs=cbs)
    want = outcome(whole, cbs)
    assert len(set(whole.recorder.lrs)) == 2
    ends: list[Callback] = [DiesAt(k, Killed) for k in (1, 2, 3, 5, 6, 7, 12, 14, 17)]
    ends += [Break("before_epoch", Killed, epoch=2), Break("after_pred", Killed, epoch=1, nth=8)]  # the mean is in the model
    for k, end in enumerate(ends):
        with contextlib.suppress(Killed):
            new(f"at{k}").fit(3, 0.05, cbs=[*all_of_them(), Checkpoint(every=1), end])
        learn, cbs = new(f"at{k}"), all_of_them()
        learn.fit(3, 0.05, cbs=[*cbs, Checkpoint(every=1)])
        got = outcome(learn, cbs)
        for a, b in zip(got, want, strict=True):
            assert (close(a, b) if isinstance(a, dict) else torch.equal(a, b) if isinstance(a, Tensor) else a == b), k  # type: ignore[arg-type]


class DiesAt(Callback):
    """Ends everything after a batch, when the checkpoint is written."""

    order = 20_000

    def __init__(self, k: int, error: type[BaseException]) -> None:
        self.k, self.error = k, error

    def after_batch(self, learn: Learner) -> None:
        if learn.state.training and learn.state.step == self.k:
            raise self.error


# ---------------------------------------------------------------- activations


def test_activations_like_numpy() -> None:
    seen: dict[str, list[np.ndarray]] = {"0": [], "1": []}
    learn = small()
    for name in seen:
        module = learn.model.get_submodule(name)
        module.register_forward_hook(lambda m, i, o, name=name: seen[name].append(o.detach().numpy().copy()) if m.training else None)
    stats = ActivationStats(["0", learn.model[1]], bins=20, limits=(-2, 2))
    learn.fit(2, 0.1, cbs=stats)
    for name, outputs in seen.items():
        rows = stats.record[name]
        assert rows.shape == (14, 23) and len(outputs) == 14
        for row, x in zip(rows.numpy(), outputs, strict=True):
            assert row[:3] == pytest.approx([x.mean(), x.std(), (np.abs(x) <= 0.05).mean()], abs=1e-5)
            assert row[3:].sum() == x.size
            assert np.abs(row[3:] - np.histogram(x.clip(-2, 2), 20, (-2, 2))[0]).sum() <= 2  # a number on an edge may go to either side


def test_activations_every_few_batches_and_without_traces() -> None:
    learn, stats = small(), ActivationStats(every=3)
    broken(learn, 2, [stats, Break("after_backward", nth=3)])
    assert list(stats.record) == ["1"] and len(stats.record["1"]) == 3  # batches 0, 3 and 6; 9 was not finished
    assert not any(m._forward_hooks for m in learn.model.modules())
    learn.fit(1, cbs=stats)
    assert len(stats.record["1"]) == 3  # anew
    kept = {name: rows.clone() for name, rows in stats.record.items()}
    learn.add_cb(stats)
    learn.lr_find(num_it=10, show_plot=False)
    learn.profile(2)
    assert list(stats.record) == list(kept) and all(torch.equal(stats.record[name], kept[name]) for name in kept)
    learn.remove_cb(stats)
    with raises(ValueError, "'3'", "Sequential"):
        learn.fit(1, cbs=ActivationStats("3"))


def test_dead_units_are_seen() -> None:
    model = nn.Sequential(nn.utils.skip_init(nn.Linear, 1, 10), nn.ReLU(), nn.utils.skip_init(nn.Linear, 10, 1))
    for p in model.parameters():
        nn.init.constant_(p, 1.0)
    with torch.no_grad():
        model[0].bias[:4] = -100.0  # four of ten never answer
        model[0].weight[4:] = 0.01
    stats = ActivationStats()
    synthetic_learner(model=model, lr=1e-6).fit(1, cbs=stats)
    assert stats.record["1"][:, 2].tolist() == pytest.approx([0.4] * 10)


def test_activation_plots() -> None:
    import matplotlib.pyplot as plt

    stats = ActivationStats(["0", "1"])
    for plot in (stats.plot_stats, stats.plot_histograms):
        with raises(ValueError, "fit"):
            plot()
    small().fit(2, cbs=stats)
    plt.close("all")
    stats.plot_stats()
    fig = plt.gcf()
    assert "2 layers" in fig.alt_text and [len(ax.lines) for ax in fig.axes] == [2, 2, 2]  # type: ignore[attr-defined]
    assert [line.get_ydata().tolist() for line in fig.axes[1].lines] == [stats.record[n][:, 1].tolist() for n in ("0", "1")]
    stats.plot_histograms()
    fig = plt.gcf()
    assert "2 layers" in fig.alt_text and [ax.images[0].get_array().shape for ax in fig.axes[:2]] == [(40, 14)] * 2  # type: ignore[attr-defined]
    plt.close("all")


# ---------------------------------------------------------------- label smoothing


@given(st.integers(0, 2**31), st.integers(1, 10), st.integers(2, 7), st.floats(0, 1))
@quick
def test_label_smoothing_is_its_closed_form(seed: int, n: int, c: int, eps: float) -> None:
    g = torch.Generator().manual_seed(seed)
    preds, targs = torch.randn(n, c, generator=g), torch.randint(c, (n,), generator=g)
    log_p = preds.double().log_softmax(1)
    want = (1 - eps) * -log_p[range(n), targs] - eps * log_p.mean(1)
    loss = LabelSmoothingCrossEntropy(eps)
    assert torch.allclose(loss.per_item(preds, targs).double(), want, atol=1e-5)
    assert loss(preds, targs).item() == pytest.approx(want.mean().item(), abs=1e-5)
    soft = (1 - eps) * F.one_hot(targs, c) + eps / c
    assert loss(preds, targs).item() == pytest.approx(F.cross_entropy(preds, soft).item(), abs=1e-5)
