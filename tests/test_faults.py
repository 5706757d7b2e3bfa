"""Faults in the middle of a fit, really caused: kill -9 at every batch, Ctrl-C at random moments, a loss that is not finite, too little memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import run
from PIL import Image
from torch import nn

from coursekit.callback import Callback
from coursekit.callbacks.checkpoint import Checkpoint, pack_value, unpack_value
from coursekit.callbacks.gradient import GradientAccumulation
from coursekit.data.load import Batch
from coursekit.learner import Learner
from coursekit.testing import synthetic_learner

HERE = Path(__file__).parent

# A fit of two epochs of six batches, with augmentation, mixup, dropout, batch norm and one cycle, in a process of its own that is forked anew
# for every break: `kill -9` right after batch k (and what callbacks did to it), then the same call in another process, to the end.
KILLED = """
import hashlib, json, os, signal, sys
from pathlib import Path
import torch
from torch import nn
from coursekit.vision.all import *
from coursekit.callbacks.checkpoint import Checkpoint
from coursekit.callbacks.ema import EMA
from coursekit.callbacks.gradient import GradientAccumulation
from coursekit.callbacks.mixup import MixUp

torch.set_num_threads(1)
folder, every, cache = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] or None

def learner():
    dls = ImageDataLoaders.from_name_re(folder, sorted(folder.glob("*.png")), r"^([a-z]+)_", valid_pct=0.25, seed=5, bs=4, num_workers=0,
                                        item_tfms=RandomResizedCrop(16, min_scale=0.5), batch_tfms=aug_transforms(), device="cpu", cache=cache)
    with seeded(0):
        net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(2),
                            nn.Flatten(), nn.Linear(24, 2))
    learn = Learner(dls, net, path=folder, precision="fp32", metrics=error_rate, seed=7)
    learn.progress = False
    return learn

class Kill(Callback):
    order = 20_000  # after the checkpoint
    def __init__(self, k): self.k = k
    def after_batch(self, learn):
        if learn.state.training and learn.state.step == self.k: os.kill(os.getpid(), signal.SIGKILL)

def fit(name, cbs, kind):
    learn = learner()
    made = {"": [], "ema": [EMA(0.9)], "accumulate": [GradientAccumulation(8)]}[kind]
    learn.fit_one_cycle(2, 1e-2, cbs=[MixUp(), Checkpoint(name, every=every), *made, *cbs])
    parts = [v.numpy().tobytes() for v in learn.model.state_dict().values()]
    r = learn.recorder
    return {"weights": hashlib.sha256(b"".join(parts)).hexdigest(), "losses": r.losses, "lrs": r.lrs, "moms": r.moms, "values": r.values}

def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as e:
            print(repr(e), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def finish(name, kind):
    (folder / f"{name}.json").write_text(json.dumps(fit(name, [], kind)))

for kind in sys.argv[4].split(","):
    name = f"whole_{kind}"
    assert child(lambda: finish(name, kind)) == 0
    for k in range(1, 13):
        again = f"killed_{kind}_{k}"
        assert child(lambda: fit(again, [Kill(k)], kind)) == signal.SIGKILL
        assert child(lambda: finish(again, kind)) == 0
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    g = torch.Generator().manual_seed(0)
    for i in range(32):
        x = torch.randint(0, 256, (24, 24, 3), generator=g, dtype=torch.uint8)
        Image.fromarray(x.numpy()).save(folder / f"{'ab'[i % 2]}_{i}.png")
    return folder


@pytest.mark.parametrize(("every", "cache", "kinds"), [(1, "", ",ema"), (5, "memory", "accumulate")])
def test_kill_at_every_batch_and_go_on(pictures: Path, every: int, cache: str, kinds: str, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    for old in pictures.glob("*.json"):
        old.unlink()
    run([sys.executable, str(script), str(pictures), str(every), cache, kinds], env={"OMP_NUM_THREADS": "1"})
    for kind in kinds.split(","):
        whole = json.loads((pictures / f"whole_{kind}.json").read_text())
        assert len(whole["losses"]) == 12 and len(whole["values"]) == 2
        others = [json.loads((pictures / f"killed_{kind}_{k}.json").read_text()) for k in range(1, 13)]
        for k, other in enumerate(others, start=1):
            assert other["weights"] == whole["weights"], f"{kind}: killed after batch {k}, the final weights differ"
            assert other == whole, f"{kind}: killed after batch {k}, the history differs"
    for file in (pictures / "models").glob("*"):
        file.unlink()
    assert not list((pictures / "models").iterdir())


def tensors_of(learn: Learner) -> list[torch.Tensor]:
    return [t.detach().clone() for t in learn.model.state_dict().values()]


def test_fine_tune_goes_on_in_its_second_fit(tmp_path: Path) -> None:
    """Two fits under one callback: the first is not run again, the second goes on; a plain torch loader shuffles as it would have."""
    g = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(40, 3, generator=g), torch.arange(40) % 2)

    def learner() -> Learner:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
        dls = [torch.utils.data.DataLoader(data, 8, shuffle=s) for s in (True, False)]
        learn = Learner(dls, net, nn.CrossEntropyLoss(), splitter=lambda m: [m[:2], m[2:]], path=tmp_path, device="cpu", seed=3)
        learn.progress = False
        return learn

    class Break(Callback):
        order = 20_000

        def __init__(self, fit: int, step: int):
            self.at, self.fit = (fit, step), -1

        def before_fit(self, learn: Learner) -> None:
            self.fit += 1

        def after_batch(self, learn: Learner) -> None:
            if learn.state.training and (self.fit, learn.state.step) == self.at:
                raise RuntimeError("broken")

    whole = learner()
    whole.fine_tune(2, 1e-2)
    for at in [(0, 2), (0, 5), (1, 1), (1, 5), (1, 7), (1, 10)]:
        name = f"tune_{at[0]}_{at[1]}"
        with pytest.raises(RuntimeError, match="broken"):
            learner().fine_tune(2, 1e-2, cbs=[Checkpoint(name, every=3), Break(*at)])
        again = learner()
        again.fine_tune(2, 1e-2, cbs=[Checkpoint(name, every=3)])
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(again), tensors_of(whole))), at


def test_a_checkpoint_is_whole_or_refused(tmp_path: Path) -> None:
    def learner() -> Learner:
        learn = synthetic_learner()
        learn.path = tmp_path
        return learn

    learner().fit(2, 0.1, cbs=Checkpoint("run", every=1))
    file = tmp_path / "models" / "run.safetensors"
    data = file.read_bytes()
    for damaged in (data[:-1], data[: len(data) // 2], b"", data[:-4] + bytes([data[-4] ^ 1]) + data[-3:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"run\.safetensors"):
            learner().fit(2, 0.1, cbs=Checkpoint("run"))
    learner().fit(2, 0.1, cbs=Checkpoint("run", resume=False))  # written over
    with pytest.raises(ValueError, match="rates"):
        learner().fit(2, 0.2, cbs=Checkpoint("run"))


def test_values_come_back() -> None:
    nest = {"a": [1, 2.5, None, True, "text"], "b": (torch.arange(3), {"c": torch.zeros(2, 2)}), "d": float("inf")}
    tensors: dict[str, torch.Tensor] = {}
    back = unpack_value(json.loads(json.dumps(pack_value(nest, "cb", tensors))), tensors)
    assert back["a"] == nest["a"] and back["d"] == nest["d"] and isinstance(back["b"], tuple)
    assert torch.equal(back["b"][0], nest["b"][0]) and torch.equal(back["b"][1]["c"], nest["b"][1]["c"])


# ------------------------------------------------------------------------------------------------------------- Ctrl-C

INTERRUPTED = """
import json, os, random, signal, sys, threading, time
from pathlib import Path
import torch
from coursekit.vision.all import *
from coursekit.vision.models import VisionModel

torch.set_num_threads(1)
folder, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
dls = ImageDataLoaders.from_name_re(folder, sorted(folder.glob("*.png")), r"^([a-z]+)_", valid_pct=0.25, seed=5, bs=4, num_workers=int(sys.argv[3]),
                                    item_tfms=Resize(32), batch_tfms=aug_transforms(), device="cpu")
learn = Learner(dls, VisionModel("coursenet", 2, lin_ftrs=[8]).build(), path=folder, precision="fp32", metrics=error_rate, seed=7)
item, said = sorted(folder.glob("*.png"))[0], []
learn.progress = True
start = time.perf_counter()
learn.fit_one_cycle(2)
span = time.perf_counter() - start

class Whole(Callback):
    "The optimiser's step is never cut in two: all parameters have had the same number of steps."
    def after_fit(self, learn):
        steps = {int(s["step"]) for s in learn.opt.state.values()}
        self.ok = len(steps) == 1 and steps.pop() - self.before == learn.state.step
    def before_fit(self, learn):
        self.before = max((int(s["step"]) for s in learn.opt.state.values()), default=0)

for k in range(int(sys.argv[4])):
    whole = Whole()
    timer = threading.Timer(rng.uniform(0.0, span), os.kill, (os.getpid(), signal.SIGINT))
    began = False
    try:
        timer.start()
        learn.fit_one_cycle(2, cbs=whole)
        how = "returned"
    except KeyboardInterrupt as e:
        how = str(e)
    timer.cancel()
    try:
        timer.join()
    except KeyboardInterrupt:
        how = "after the fit"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    weights = all(bool(p.isfinite().all()) for p in learn.model.state_dict().values())
    label = learn.predict(item).label
    ok = weights and whole.ok and label in "ab" and not learn.model.training
    said.append([how, learn.recorder.interrupted, learn.state.step, learn.state.n_steps, ok])
    assert len(learn.recorder.losses) == learn.state.step
with learn.no_bar(): learn.fit(1, 1e-4)
assert learn.recorder.interrupted == "" and len(learn.recorder.values) == 1
load_learner(learn.export(folder / "model.ck")).predict(item)
print("\\n" + json.dumps(said))
"""


@pytest.mark.parametrize(("seed", "workers", "times"), [(0, 0, 40), (1, 1, 10)])
def test_ctrl_c_at_random_moments(pictures: Path, tmp_path: Path, seed: int, workers: int, times: int) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    done = run([sys.executable, str(script), str(pictures), str(seed), str(workers), str(times)], env={"OMP_NUM_THREADS": "1"})
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said) == times and "Traceback" not in done.stderr
    for how, history, step, n_steps, ok in said:
        assert ok
        if how.startswith("interrupted after batch"):
            assert history == "KeyboardInterrupt" and f"batch {step} of {n_steps}" in how
        else:
            assert (how, history, step) in (("returned", "", n_steps), ("after the fit", "", n_steps))
    assert sum(history == "KeyboardInterrupt" for _, history, *_ in said) > times // 2


def test_a_process_that_hangs_in_its_data_is_interrupted_at_once() -> None:
    class Slow:
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield torch.zeros(2, 1), torch.zeros(2, 1)
            time.sleep(60)

        def __len__(self) -> int:
            return 2

    learn = synthetic_learner()
    learn.dls = (Slow(), Slow())
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt, match="interrupted after batch 1 of 2"):
        learn.fit(1)
    assert time.perf_counter() - start < 30
    assert learn.recorder.interrupted == "KeyboardInterrupt"


def test_a_handler_of_the_programs_own_is_left_alone() -> None:
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *args: pressed.append(1))
    try:
        class Press(Callback):
            def after_step(self, learn: Learner) -> None:
                if learn.state.step == 2:
                    os.kill(os.getpid(), signal.SIGINT)

        learn = synthetic_learner(n_train=4)
        learn.fit(1, cbs=Press())
        assert pressed == [1] and learn.state.step == 4
    finally:
        signal.signal(signal.SIGINT, before)


def test_fits_in_another_thread_work() -> None:
    learn = synthetic_learner()
    thread = threading.Thread(target=learn.fit, args=(1,))
    thread.start()
    thread.join()
    assert len(learn.recorder.values) == 1


# ------------------------------------------------------------------------------------------------- a loss that is not finite


class SpoilInputs(Callback):
    """A batch whose first input is nan, so that a batch norm takes it into its running mean."""

    def __init__(self, at: int):
        self.at = at

    def before_batch(self, learn: Learner) -> None:
        s = learn.state
        if s.training and s.step == self.at - 1:
            x = s.batch.x.clone()
            x[0] = float("nan")
            s.batch = Batch((x,), s.batch.ys)


class KeepState(Callback):
    def before_fit(self, learn: Learner) -> None:
        self.states: list[list[torch.Tensor]] = [tensors_of(learn)]

    def after_batch(self, learn: Learner) -> None:
        if learn.state.training:
            self.states.append(tensors_of(learn))


@pytest.mark.parametrize("at", [1, 7])
def test_nan_at_a_batch_stops_before_the_step(at: int) -> None:
    net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    keep = KeepState()
    learn = synthetic_learner(model=net, n_train=12)
    with pytest.raises(FloatingPointError) as e:
        learn.fit_one_cycle(1, slice(1e-3, 1e-2), cbs=[SpoilInputs(at), keep])
    text = str(e.value)
    assert f"nan at batch {at} of 12" in text and f"after batch {at - 1}" in text
    assert "ten times smaller" in text and f"(rates {learn.opt.param_groups[0]['lr']:.2g}" in text
    assert len(keep.states) == at
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(learn), keep.states[-1]))
    assert all(t.isfinite().all() for t in tensors_of(learn))
    assert learn.recorder.interrupted == "FloatingPointError" and len(learn.recorder.losses) == at - 1
    learn.fit(1, 1e-3)
    assert learn.recorder.interrupted == ""


# ------------------------------------------------------------------------------------------------------ too little memory


class Narrow(nn.Module):
    """A net for which the device has memory for so many items, as a GPU would say it."""

    def __init__(self, most: int, inner: nn.Module):
        super().__init__()
        self.most, self.inner, self.seen = most, inner, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(x)} GiB")
        self.seen.append(len(x))
        return self.inner(x)


@pytest.mark.parametrize(("most", "bs"), [(8, 16), (5, 16), (1, 16), (3, 7)])
def test_too_little_memory_halves_the_batch_and_keeps_the_effective_one(most: int, bs: int, capsys: pytest.CaptureFixture) -> None:
    def train(most: int) -> Learner:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Narrow(most, nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))).double()
        learn = synthetic_learner(model=net, bs=bs)
        for dl in (learn.dls.train, learn.dls.valid):
            dl.loader = [(x.double(), y.double()) for x, y in dl.loader]
        learn.fit_one_cycle(3, 0.05)
        return learn

    whole, parts = train(10**9), train(most)
    assert max(parts.model.seen) <= most
    for a, b in zip(tensors_of(whole), tensors_of(parts)):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)
    assert parts.recorder.losses == pytest.approx(whole.recorder.losses, abs=1e-5)
    assert parts.recorder.values[-1] == pytest.approx(whole.recorder.values[-1], abs=1e-5)
    said = capsys.readouterr().out
    assert said.count("Out of memory") == len([p for p in (1, 2, 4, 8) if -(-bs // p) > most]), said


def test_one_item_that_does_not_fit_is_an_error() -> None:
    learn = synthetic_learner(model=Narrow(0, nn.Linear(1, 1)))
    with pytest.raises(torch.OutOfMemoryError):
        learn.fit(1)
    assert learn.recorder.interrupted == "OutOfMemoryError"


def test_parts_and_accumulation_together() -> None:
    def train(most: int, cbs: list[Callback], bs: int) -> list[torch.Tensor]:
        learn = synthetic_learner(model=Narrow(most, nn.Linear(1, 1).double()), bs=8)
        with torch.no_grad():
            learn.model.inner.weight.zero_()
            learn.model.inner.bias.zero_()
        data = [(x.double(), y.double()) for x, y in learn.dls.train.loader]
        if bs > 8:
            data = [tuple(torch.cat(ts) for ts in zip(*data[k:k + bs // 8])) for k in range(0, len(data), bs // 8)]
        learn.dls = (data, data)
        learn._parts = 8 // most if most < 8 else 1  # found out in an earlier fit
        learn.fit(2, 0.05, cbs=cbs)
        return tensors_of(learn)

    whole = train(10**9, [], 16)
    for parts in (train(10**9, [GradientAccumulation(16)], 8), train(4, [GradientAccumulation(16)], 8)):
        assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(whole, parts))


def test_workers_outlive_ctrl_c(pictures: Path) -> None:
    """Ctrl-C in a terminal reaches the whole group of processes."""
    code = f"""
import os, signal, threading
from pathlib import Path
from coursekit.vision.all import *
folder = Path({str(pictures)!r})
dls = ImageDataLoaders.from_name_re(folder, sorted(folder.glob("*.png")), r"^([a-z]+)_", valid_pct=0.25, seed=5, bs=4, num_workers=1,
                                    item_tfms=Resize(16), device="cpu")
learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), metrics=error_rate, seed=0)
learn.progress = False
class Press(Callback):
    def after_step(self, learn):
        if learn.state.step == 2: os.killpg(0, signal.SIGINT)
try:
    learn.fit(2, cbs=Press())
except KeyboardInterrupt as e:
    print(e)
learn.fit(2)
print(len(learn.recorder.values), repr(learn.recorder.interrupted))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "interrupted after batch 3 of 12" in done.stdout and "2 ''" in done.stdout
