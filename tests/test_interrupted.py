"""Interrupted work: at every moment of a call that trains, it is really interrupted or killed, and the same call made again ends bit-equal."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import raises, run
from torch import nn

import coursekit.core
from coursekit.core import state_folder
from coursekit.training.callback import EVENTS, Callback, ParamScheduler
from coursekit.training.callbacks.checkpoint import Checkpoint
from coursekit.training.callbacks.ema import EMA
from coursekit.training.callbacks.gradient import GradientAccumulation
from coursekit.training.learner import Learner, synthetic_learner
from coursekit.training.schedules import SchedLin

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
    learn.fine_tune(2, 1e-2, cbs=[EMA(0.5), GradientAccumulation(8), *cbs])


def cycle(learn: Learner, cbs: list) -> None:
    learn.fit_one_cycle(2, 1e-2, cbs=cbs)


def outcome(learn: Learner) -> list:
    return [*(t.tolist() for t in learn.model.state_dict().values()), learn.recorder.losses, learn.recorder.values, learn.recorder.lrs]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coursekit.core.os, "fsync", lambda number: None)


@pytest.mark.parametrize(("call", "order", "what"), [(tune, -1, press), (tune, 40_000, press), (cycle, 40_000, press),
                                                     (tune, 9_999, lambda: signal.raise_signal(signal.SIGINT))], ids=["first", "last", "cycle", "Ctrl-C"])
def test_interrupted_at_every_moment(tmp_path: Path, call: Callable, order: int, what: Callable) -> None:
    """In the same kernel with the same callback, there with a new one, and with a new learner, as in another kernel."""
    whole, count = learner(tmp_path), bomb(10**6, order, press)
    call(whole, [count])
    for k, moment in enumerate(count.seen):
        first, cp = learner(tmp_path), Checkpoint("run", every=2)
        file = cp.file_of(first)
        file.unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            call(first, [cp, bomb(k, order, what)])
        left = file.read_bytes() if file.exists() else None
        weights = {k: v.clone() for k, v in first.model.state_dict().items()}
        for again, callback in ((first, cp), (first, Checkpoint("run", every=2)), (learner(tmp_path), Checkpoint("run", every=2))):
            if again is first and callback is not cp and left is not None:
                first.model.load_state_dict(weights)
            file.unlink(missing_ok=True)
            if left is not None:
                file.write_bytes(left)
            elif again is first and callback is not cp:
                continue  # nothing was written, so nothing was trained, but the rerun before this one has
            call(again, [callback])
            assert outcome(again) == outcome(whole), f"moment {k} ({moment}), {'same' if callback is cp else 'new'} callback, {again is first}"
