"""Interrupted work: at every moment of a call that trains, it is really interrupted or killed, and the same call made again ends bit-equal."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import raises
from safetensors.torch import save
from torch import nn

import coursekit.core
from coursekit.training.callback import EVENTS, Callback, ParamScheduler
from coursekit.training.callbacks.checkpoint import Checkpoint
from coursekit.training.callbacks.ema import EMA
from coursekit.training.callbacks.gradient import GradientAccumulation
from coursekit.training.learner import Learner, synthetic_learner
from coursekit.training.schedules import SchedLin
from coursekit.training.weights import read_tensors, write_tensors

Bomb: Any = type("Bomb", (Callback,), {event: lambda self, learn, event=event: self.tick(event) for event in EVENTS} | {
    "__doc__": "Does something at a moment of a call that trains, counted over all events of all its fits."})


def bomb(at: int, order: int, what: Callable[[], Any]) -> Any:
    made = Bomb()
    made.order, made.seen = order, []

    def tick(event: str) -> None:
        made.seen.append(event)
        if len(made.seen) == at + 1:
            what()

    made.tick = tick
    return made


def press() -> None:
    raise KeyboardInterrupt


def learner(folder: Path) -> Learner:
    """Three batches per epoch; their order, dropout and batch norm depend on every batch before."""
    g = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(12, 3, generator=g), torch.arange(12) % 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
    dls = [torch.utils.data.DataLoader(data, bs, shuffle=bs == 4) for bs in (4, 8)]
    learn = Learner(dls, net, nn.CrossEntropyLoss(), splitter=lambda m: [m[:2], m[2:]], path=folder, device="cpu", seed=3)
    learn.progress = False
    return learn


def tune(learn: Learner, cbs: list) -> None:
    learn.fine_tune(1, 1e-2, cbs=[EMA(0.5), GradientAccumulation(8), *cbs])


def cycle(learn: Learner, cbs: list) -> None:
    learn.fit_one_cycle(2, 1e-2, cbs=cbs)


def outcome(learn: Learner) -> list:
    return [*(t.tolist() for t in learn.model.state_dict().values()), learn.recorder.losses, learn.recorder.values, learn.recorder.lrs]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coursekit.core.os, "fsync", lambda number: None)


KINDS = [(tune, -1, press), (tune, 40_000, press), (cycle, 40_000, press), (tune, 9_999, lambda: signal.raise_signal(signal.SIGINT))]


@pytest.mark.parametrize(("call", "order", "what"), KINDS, ids=["first", "last", "cycle", "Ctrl-C"])
def test_interrupted_at_every_moment(tmp_path: Path, call: Callable, order: int, what: Callable) -> None:
    """In turns: in the same kernel with the same callback, there with a new one, and with a new learner, as in another kernel."""
    whole, count = learner(tmp_path), bomb(10**6, order, press)
    call(whole, [count])
    wanted = outcome(whole)
    for k, moment in enumerate(count.seen):
        first, cp = learner(tmp_path), Checkpoint("run", every=2)
        cp.file_of(first).unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            call(first, [cp, bomb(k, order, what)])
        ways = [(first, cp), (first, Checkpoint("run", every=2)), (learner(tmp_path), Checkpoint("run", every=2))]
        again, callback = ways[k % 3]
        call(again, [callback])
        assert outcome(again) == wanted, f"moment {k} ({moment}), way {k % 3}"


class Half:
    """A file that is written half, and then something happens."""

    def __init__(self, file: Any, what: Callable):
        self.file, self.what = file, what

    def write(self, data: bytes) -> None:
        self.file.write(data[:len(data) // 2])
        self.file.flush()
        self.what()
        self.file.write(data[len(data) // 2:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Half:
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()


def breaking(monkeypatch: pytest.MonkeyPatch, at: int, what: Callable) -> list[int]:
    """Something happens at a moment of writing files: when one is half written, when it is whole, and when it has got its name."""
    seen, replace = [0], os.replace

    def tick() -> None:
        seen[0] += 1
        if seen[0] == at + 1:
            what()

    def replaced(*names: Any) -> None:
        tick()
        replace(*names)
        tick()

    monkeypatch.setattr(coursekit.core, "open", lambda *a: Half(open(*a), tick), raising=False)  # noqa: SIM115
    monkeypatch.setattr(coursekit.core.os, "replace", replaced)
    return seen


def killed(work: Callable, *args: Any) -> None:
    """Work in a process of its own, which must end by SIGKILL."""
    pid = os.fork()
    if not pid:
        try:
            work(*args)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills copies of this process")
@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_broken_off_while_the_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    whole = learner(tmp_path)
    with monkeypatch.context() as patch:
        seen = breaking(patch, -1, press)
        tune(whole, [Checkpoint("run", every=2)])
    assert seen[0] >= 3 * 6
    for k in range(seen[0]):
        first, cp = learner(tmp_path), Checkpoint("run", every=2)
        cp.file_of(first).unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            breaking(patch, k, kill if how == "killed" else press)
            if how == "killed":
                killed(tune, first, [cp])
            else:
                with pytest.raises(KeyboardInterrupt):
                    tune(first, [cp])
        again = learner(tmp_path) if how == "killed" else first
        tune(again, [cp])
        assert outcome(again) == outcome(whole), k
        assert list(cp.file_of(first).parent.iterdir()) == [cp.file_of(first)]  # nothing half-written stays


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills copies of this process")
def test_killed_at_every_moment(tmp_path: Path) -> None:
    whole, count = learner(tmp_path), bomb(10**6, 40_000, kill)
    tune(whole, [count])
    for k, moment in enumerate(count.seen):
        cp = Checkpoint("run", every=2)
        cp.file_of(whole).unlink(missing_ok=True)
        killed(tune, learner(tmp_path), [cp, bomb(k, 40_000, kill)])
        again = learner(tmp_path)
        tune(again, [cp])
        assert outcome(again) == outcome(whole), f"moment {k} ({moment})"


# ------------------------------------------------------------------------------------------------- which fit is the same fit


def test_after_a_call_that_returned_the_same_callback_trains_on(tmp_path: Path) -> None:
    whole, learn, cp = learner(tmp_path), learner(tmp_path), Checkpoint("run", every=2)
    for _ in range(2):
        whole.fit(1, 1e-2)
        learn.fit(1, 1e-2, cbs=cp)
    assert outcome(learn) == outcome(whole)
    after = learner(tmp_path)
    after.fit(1, 1e-2, cbs=Checkpoint("run"))  # of a new callback, this is the first fit, which the file no longer holds
    assert after.recorder.losses == []


@pytest.mark.parametrize("at", [1, 14, 60, 80, 119, 120])
def test_a_script_of_several_calls_resumes_at_the_right_one(tmp_path: Path, at: int) -> None:
    def script(learn: Learner, cp: Checkpoint, *cbs: Any) -> None:
        tune(learn, [cp, *cbs])
        cycle(learn, [cp, *cbs])

    whole, count, broken = learner(tmp_path), bomb(10**6, 40_000, press), learner(tmp_path)
    script(whole, Checkpoint("whole"), count)
    assert len(count.seen) > 120
    cp = Checkpoint("run", every=2)
    with pytest.raises(KeyboardInterrupt):
        script(broken, cp, bomb(at, 40_000, press))
    again = learner(tmp_path)
    script(again, Checkpoint("run", every=2))
    assert outcome(again) == outcome(whole)


def test_another_call_is_refused_in_its_first_phase(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tune(learner(tmp_path), [Checkpoint("run"), bomb(60, 0, press)])
    other = learner(tmp_path)
    before = [t.clone() for t in other.model.state_dict().values()]
    with raises(ValueError, "fine_tune", "epochs=1", "epochs=2", "resume=False"):
        other.fine_tune(2, 1e-2, cbs=[EMA(0.5), GradientAccumulation(8), Checkpoint("run")])
    assert all(torch.equal(a, b) for a, b in zip(before, other.model.state_dict().values()))
    other.model[0].weight.requires_grad_(False)
    cycle(other, [Checkpoint("two")])
    other.unfreeze()
    with raises(ValueError, "trained parameters"):
        cycle(other, [Checkpoint("two")])


def test_schedules_of_ones_own_are_part_of_a_fit(tmp_path: Path) -> None:
    learner(tmp_path).fit(1, cbs=[Checkpoint("run"), ParamScheduler(lr=SchedLin(0.1, 0.2))])
    with raises(ValueError, "learning rates"):
        learner(tmp_path).fit(1, cbs=[Checkpoint("run"), ParamScheduler(lr=SchedLin(0.1, 0.3))])


def test_other_files_are_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helpers import rough_photos

    from coursekit.vision.all import CategoryBlock, DataBlock, ImageBlock, IndexSplitter, Resize

    def photos(names: list[Path]) -> Learner:
        block = DataBlock(blocks=(ImageBlock(), CategoryBlock()), get_y=lambda f: f.name[0], splitter=IndexSplitter([0, 1]), item_tfms=Resize(8))
        torch.manual_seed(0)
        learn = Learner(block.dataloaders(names, bs=4, seed=0, num_workers=0, device="cpu"), nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), path=tmp_path)
        learn.progress = False
        return learn

    files = sorted(rough_photos(tmp_path, (9, 9)).glob("*.png"))
    photos(files).fit(1, cbs=Checkpoint("run"))
    with raises(ValueError, "items", "resume=False"):
        photos([*files[:-2], *files[:-3:-1]]).fit(1, cbs=Checkpoint("run"))


@pytest.mark.parametrize("change", [{"fits": 3}, {"fits": [3]}, {"fits": None}, {"groups": 3}, {"groups": [[1]]}, {"callbacks": [{"list": 3}]}, {"callbacks": [{"dict": [["x", 1]]}]},
                                    {"passes": "ab"}, {"passes": None}, {"meaning": {"inputs": [3], "targets": "x"}}, {"version": 2}])
def test_a_forged_checkpoint_is_one_readable_error(tmp_path: Path, change: dict) -> None:
    learner(tmp_path).fit(1, cbs=Checkpoint("run"))
    file = Checkpoint("run").file_of(learner(tmp_path))
    tensors, header = read_tensors(file)
    write_tensors(file, tensors, header | change)
    if "version" in change:
        text = json.dumps(header | change)
        file.write_bytes(save(tensors, {"coursekit": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
    error = None
    try:
        learner(tmp_path).fit(1, cbs=Checkpoint("run"))
    except ValueError as e:
        error = str(e)
    if error is not None:
        assert "run.safetensors" in error and "\n" not in error
    else:
        assert change in ({"passes": "ab"}, {"meaning": {"inputs": [3], "targets": "x"}})  # nothing here looks at these


def test_what_an_interrupted_fit_remembered_of_its_texts_is_forgotten() -> None:
    from coursekit.text.callbacks import ModelResetter

    cb = ModelResetter()
    cb.memory = [[torch.zeros(1)]]  # as a fit leaves it that is interrupted in the middle of an epoch
    memories: list = []
    synthetic_learner(n_train=2).fit(1, cbs=[cb, bomb(0, 1, lambda: memories.append(cb.memory))])
    assert memories == [None]
