"""Faults in the middle of a fit, really caused: kill -9 at every batch, Ctrl-C at random moments, a loss that is not finite, too little memory."""

from __future__ import annotations

import json
import os
import signal
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import raises, run, says
from PIL import Image
from torch import nn

from coursekit.training.callback import CANCELS, EVENTS, Callback, CancelBatchException, ParamScheduler
from coursekit.training.callbacks.checkpoint import Checkpoint, pack_value, unpack_value
from coursekit.training.callbacks.gradient import GradientAccumulation
from coursekit.training.callbacks.mixup import MixUp
from coursekit.data.loader import Batch
from coursekit.core import state_folder
from coursekit.training.learner import Learner, synthetic_learner

HERE = Path(__file__).parent

# A fit of two epochs of six batches, with augmentation, mixup, dropout, batch norm and one cycle, in a process of its own that is forked anew
# for every break: `kill -9` right after batch k (and what callbacks did to it), then the same call in another process, to the end.
KILLED = """
import hashlib, json, os, signal, sys
from pathlib import Path
import torch
from torch import nn
from coursekit.vision.all import *
from coursekit.training.callbacks.checkpoint import Checkpoint
from coursekit.training.callbacks.ema import EMA
from coursekit.training.callbacks.gradient import GradientAccumulation
from coursekit.training.callbacks.mixup import MixUp
from coursekit.training.callbacks.mixup import MixUp

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

def moments(kind):  # every batch; with another callback, every third
    return range(1, 13, 3 if kind else 1)

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
    for k in moments(kind):
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
        for k in range(1, 13, 3 if kind else 1):
            other = json.loads((pictures / f"killed_{kind}_{k}.json").read_text())
            assert other["weights"] == whole["weights"], f"{kind}: killed after batch {k}, the final weights differ"
            assert other == whole, f"{kind}: killed after batch {k}, the history differs"
    assert not (pictures / "models").exists()  # nothing is written into the data
    shutil.rmtree(state_folder(pictures))


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
    file = Checkpoint("run").file_of(learner())
    data = file.read_bytes()
    for damaged in (data[:-1], data[: len(data) // 2], b"", data[:-4] + bytes([data[-4] ^ 1]) + data[-3:]):
        file.write_bytes(damaged)
        with raises(ValueError, "run.safetensors"):
            learner().fit(2, 0.1, cbs=Checkpoint("run"))
    learner().fit(2, 0.1, cbs=Checkpoint("run", resume=False))  # written over
    with raises(ValueError, "learning rates", 0.1, 0.2):
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
    learn.export(folder / "model.ck")
    ok = weights and whole.ok and label in "ab" and not learn.model.training
    said.append([how, learn.recorder.interrupted, learn.state.step, learn.state.n_steps, ok])
    assert len(learn.recorder.losses) == learn.state.step
with learn.no_bar(): learn.fit(1, 1e-4)
assert learn.recorder.interrupted == "" and len(learn.recorder.values) == 1
load_learner(folder / "model.ck").predict(item)
print("\\n" + json.dumps(said))
"""


@pytest.mark.parametrize(("seed", "workers", "times"), [(0, 0, 10), (1, 1, 4)])
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
            # "": after the last batch, when fit_one_cycle no longer answers Ctrl-C but has not returned yet
            assert how in ("returned", "after the fit", "") and (history, step) == ("", n_steps)
    assert sum(history == "KeyboardInterrupt" for _, history, *_ in said) >= times // 4  # the others came to a fit that was quicker than the first


BROKEN_OFF = """
import os, socket, sys
from multiprocessing import resource_sharer
from coursekit.data.loader import ignore_interrupts

if sys.argv[1] == "worker":
    ignore_interrupts(0)
lost, fetched = [resource_sharer.DupFd(os.open(os.devnull, os.O_RDONLY)) for _ in range(2)]
address, _ = lost._id
with socket.socket(socket.AF_UNIX) as ours:  # as a process that is interrupted while it fetches a batch
    ours.connect(address)
os.close(fetched.detach())  # the thread serves one after the other: now it is done with the first
sys.excepthook(ValueError, ValueError("a real mistake"), None)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows hands over batches in another way")
@pytest.mark.parametrize("who", ["worker", "other"])
def test_a_worker_does_not_report_a_batch_that_nobody_fetches(tmp_path: Path, who: str) -> None:
    script = tmp_path / "broken_off.py"
    script.write_text(BROKEN_OFF)
    said = run([sys.executable, str(script), who]).stderr
    assert "a real mistake" in said and ("Traceback" in said) == (who == "other")  # else the case would show nothing


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
    with raises(KeyboardInterrupt, "batch 1 of 2"):
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
    says(e, "nan", f"batch {at} of 12", f"{learn.opt.param_groups[0]['lr']:.2g}")
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


def test_too_little_memory_names_a_batch_size_to_try() -> None:
    learn = synthetic_learner(model=Narrow(8, nn.Linear(1, 1)), bs=16)
    with raises(torch.OutOfMemoryError, "batch 1", 16, "bs=8", "GradientAccumulation(16)", "CUDA out of memory"):
        learn.fit(1)
    assert learn.recorder.interrupted == "OutOfMemoryError"
    assert not learn.model.training and learn.running == []


def test_one_item_that_does_not_fit_is_an_error() -> None:
    learn = synthetic_learner(model=Narrow(0, nn.Linear(1, 1)), bs=1)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        learn.fit(1)


def test_smaller_batches_and_accumulation_are_what_the_large_ones_were() -> None:
    def train(bs: int, cbs: list[Callback]) -> list[torch.Tensor]:
        learn = synthetic_learner(model=zero_line().double(), bs=8)
        data = [(x.double(), y.double()) for x, y in learn.dls.train.loader]
        data = [tuple(torch.cat(ts) for ts in zip(*data[k:k + bs // 8])) for k in range(0, len(data), bs // 8)]
        learn.dls = (data, data)
        learn.fit(2, 0.05, cbs=cbs)
        return tensors_of(learn)

    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(train(16, []), train(8, [GradientAccumulation(16)])))


def zero_line() -> nn.Linear:
    line = nn.utils.skip_init(nn.Linear, 1, 1)
    nn.init.zeros_(line.weight)
    nn.init.zeros_(line.bias)
    return line


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
    says(done.stdout, "batch 3 of 12", "2 ''")


# ---------------------------------------------------------------------------------- callbacks that do more than they should


def vision_like(seed: int = 0) -> Learner:
    """A net of the package's own, whose weights are laid out channels last, on random pictures; with dropout and batch norm."""
    from coursekit.vision.models import VisionModel

    g = torch.Generator().manual_seed(seed)
    data = [(torch.randn(4, 3, 32, 32, generator=g), torch.arange(4) % 2) for _ in range(4)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VisionModel("coursenet", 2, lin_ftrs=[8]).build()
    learn = Learner((data, data[:2]), model, nn.CrossEntropyLoss(), device="cpu", precision="fp32", seed=1)
    learn.progress = False
    return learn


class StopAt(Callback):
    order = 20_000

    def __init__(self, step: int, error: type[BaseException] = RuntimeError):
        self.at, self.error = step, error

    def after_batch(self, learn: Learner) -> None:
        if learn.state.training and learn.state.step == self.at:
            raise self.error


def test_nets_laid_out_channels_last_go_on_exactly(tmp_path: Path) -> None:
    for k, cbs in ((4, []), (3, [GradientAccumulation(8)])):
        straight, broken, again = vision_like(), vision_like(), vision_like()
        straight.fit(2, 1e-2, cbs=list(cbs))
        broken.path = again.path = tmp_path
        with pytest.raises(RuntimeError):
            broken.fit(2, 1e-2, cbs=[Checkpoint(str(k), every=1), StopAt(k), *cbs])
        again.fit(2, 1e-2, cbs=[Checkpoint(str(k), every=1), *cbs])
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(straight), tensors_of(again))), (k, cbs)
    first, second = vision_like(), vision_like()
    first.path = second.path = tmp_path
    first.fit(1, 1e-2)
    first.save("half")
    second.load("half")
    second.rng.states = dict(first.rng.states)
    first.fit(1, 1e-2)
    second.fit(1, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(first), tensors_of(second)))


class Curious(Callback):
    """Looks at everything in the middle of everything."""

    def look(self, learn: Learner) -> None:
        learn.validate()
        learn.get_preds()
        learn.summary()

    after_batch = after_train = after_validate = after_epoch = look


def test_looking_aside_in_a_fit_changes_nothing() -> None:
    plain, watched = vision_like(), vision_like()
    plain.fit_one_cycle(2, 1e-2, cbs=MixUp())
    watched.fit_one_cycle(2, 1e-2, cbs=[MixUp(), Curious()])
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(plain), tensors_of(watched)))
    assert plain.recorder.values == watched.recorder.values and plain.recorder.losses == watched.recorder.losses


@pytest.mark.parametrize("workers", [0, 1])
def test_one_batch_in_a_fit_leaves_the_pass_alone(pictures: Path, workers: int) -> None:
    from coursekit.vision.all import ImageDataLoaders, Resize

    class Peek(Callback):
        def after_batch(self, learn: Learner) -> None:
            if learn.state.training and learn.state.step in (1, 3):
                learn.dls.one_batch()

    def losses(cbs: list[Callback]) -> list[float]:
        dls = ImageDataLoaders.from_name_re(pictures, sorted(pictures.glob("*.png")), r"^([a-z]+)_", valid_pct=0.25, seed=5, bs=4,
                                            num_workers=workers, item_tfms=Resize(8), device="cpu")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
        learn = Learner(dls, net, seed=0)
        learn.progress = False
        learn.fit(1, cbs=cbs)
        return learn.recorder.losses

    assert losses([Peek()]) == losses([]) and len(losses([])) == 6


def test_a_fit_in_a_fit_is_refused() -> None:
    class Nested(Callback):
        def after_epoch(self, learn: Learner) -> None:
            learn.fit(1)

    learn = synthetic_learner()
    with raises(RuntimeError, "fit"):
        learn.fit(2, cbs=Nested())
    learn.fit(1)
    assert learn.recorder.interrupted == "" and learn.running == []


def test_a_callback_given_twice_runs_once() -> None:
    class Count(Callback):
        n = 0

        def after_step(self, learn: Learner) -> None:
            self.n += 1

    count = Count()
    learn = synthetic_learner(cbs=count)
    learn.fit(1, cbs=[count, count])
    assert count.n == 10


def test_one_loader_for_both_parts_and_a_generator_of_its_own(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(24, 1, generator=g), torch.randn(24, 1, generator=g))

    def learner() -> Learner:
        loader = torch.utils.data.DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(9))
        learn = synthetic_learner()
        learn.dls, learn.path = (loader, loader), tmp_path
        return learn

    whole = learner()
    whole.fit(3, 0.05)
    for k in (1, 6, 8, 12):
        with pytest.raises(RuntimeError):
            learner().fit(3, 0.05, cbs=[Checkpoint(str(k), every=1), StopAt(k)])
        again = learner()
        again.fit(3, 0.05, cbs=Checkpoint(str(k), every=1))
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(whole), tensors_of(again))), k


# ----------------------------------------------------------------------------------------------- checkpoints and interrupts


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    class BadGradient(Callback):
        def before_step(self, learn: Learner) -> None:
            if learn.state.step == 4:
                learn.model.weight.grad.fill_(float("nan"))

    learn = synthetic_learner()
    learn.path = tmp_path
    with raises(FloatingPointError, "batch 5 of 10", "weights"):
        learn.fit(1, cbs=[BadGradient(), Checkpoint("run", every=1)])
    again = synthetic_learner()
    again.path = tmp_path
    again.fit(1, cbs=Checkpoint("run", every=1))
    assert all(t.isfinite().all() for t in tensors_of(again))
    with raises(FloatingPointError, "nan", "batch 6 of 10"):
        synthetic_learner().fit(1, cbs=BadGradient())


def test_the_same_checkpoint_goes_on_after_ctrl_c_and_says_what_it_passes_over(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole, learn = synthetic_learner(), synthetic_learner()
    learn.path = tmp_path
    whole.fit_one_cycle(3)
    check = Checkpoint("run", every=1)
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(3, cbs=[check, StopAt(17, KeyboardInterrupt)])
    learn.fit_one_cycle(3, cbs=check)
    says(capsys.readouterr().out, "batch 17 of 30")
    assert torch.equal(learn.model.weight, whole.model.weight)
    learn.fit_one_cycle(1, cbs=check)
    other = synthetic_learner()
    other.path = tmp_path
    other.fit_one_cycle(3, cbs=Checkpoint("run"))
    says(capsys.readouterr().out, "run.safetensors")


def test_ctrl_c_again_while_it_is_cleaned_up() -> None:
    class Press(Callback):
        def after_step(self, learn: Learner) -> None:
            if learn.state.step == 3:
                os.kill(os.getpid(), signal.SIGINT)

        def after_fit(self, learn: Learner) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    class Late(Callback):
        order, tidied = 500, False

        def after_fit(self, learn: Learner) -> None:
            self.tidied = True

    learn, late = synthetic_learner(), Late()
    with raises(KeyboardInterrupt, "batch 4 of 10"):
        learn.fit(1, cbs=[Press(), late])
    assert late.tidied and learn.recorder.interrupted == "KeyboardInterrupt" and learn.running == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    learn.fit(1)


def test_fine_tune_checks_first_and_keeps_its_callbacks() -> None:
    seen = []

    class Fits(Callback):
        def before_fit(self, learn: Learner) -> None:
            seen.append(id(self))

    learn = synthetic_learner()
    learn.fine_tune(1, 0.1, cbs=[Fits])
    assert len(seen) == 2 and len(set(seen)) == 1
    before = tensors_of(learn)
    for bad in ({"epochs": 0}, {"epochs": 2.5}, {"epochs": 1, "lr_mult": 0}, {"epochs": 1, "base_lr": slice(1e-3)}, {"epochs": 1, "freeze_epochs": 0}):
        with raises(ValueError, "fine_tune", list(bad)[-1]):
            learn.fine_tune(**bad)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(learn)))


@pytest.mark.parametrize("cancel", [c.__name__ for c in CANCELS])
def test_every_cancel_at_every_event_leaves_a_learner_that_goes_on(cancel: str) -> None:
    exception = next(c for c in CANCELS if c.__name__ == cancel)
    ended = 0
    for event in EVENTS:
        if event.startswith("after_cancel"):
            continue
        for training in (True, False):
            cb = Callback()

            def hook(learn: Learner) -> None:
                if learn.state.training == training:  # noqa: B023
                    raise exception

            setattr(cb, event, hook)
            learn = synthetic_learner(n_train=3)
            try:
                learn.fit(2, cbs=cb)
                ended += 1
            except RuntimeError as e:
                says(e, cancel)
            assert learn.running == [] and not learn.model.training
            learn.fit(1)
            assert len(learn.recorder.values) == 1 and learn.recorder.interrupted == ""
    assert ended >= 2


def test_a_cancelled_batch_leaves_no_gradient() -> None:
    def train(event: str) -> list[torch.Tensor]:
        cb = Callback()

        def hook(learn: Learner) -> None:
            if learn.state.training and learn.state.step == 3:
                raise CancelBatchException

        setattr(cb, event, hook)
        learn = synthetic_learner()
        learn.fit(1, cbs=cb)
        return tensors_of(learn)

    for event in ("before_batch", "after_pred", "after_backward", "before_step"):
        assert all(torch.equal(a, b) for a, b in zip(train("after_loss"), train(event))), event


def test_a_cancelled_batch_keeps_what_was_accumulated_before_it() -> None:
    class Cancel(Callback):
        def after_pred(self, learn: Learner) -> None:
            if learn.state.training and learn.state.step == 1:
                raise CancelBatchException

    learn = synthetic_learner(n_train=3, bs=4, model=zero_line())
    batches = list(learn.dls.train.loader)
    learn.fit(1, 0.1, cbs=[GradientAccumulation(8), Cancel()])
    other = synthetic_learner(n_train=3, bs=4, model=zero_line())
    other.dls = ([batches[0], batches[2]], other.dls.valid)
    other.fit(1, 0.1, cbs=[GradientAccumulation(8)])
    assert all(torch.allclose(a, b) for a, b in zip(tensors_of(learn), tensors_of(other)))


def test_errors_say_what_to_do() -> None:
    learn = synthetic_learner()
    with raises(ValueError, "wd", "'a'"):
        learn.fit(1, wd="a")
    with raises(ValueError, "wd", -1):
        learn.fit(1, wd=-1)
    with raises(ValueError, "moms", (0.9, 0.8)):
        Learner(learn.dls, learn.model, nn.MSELoss(), moms=(0.9, 0.8))
    for options in ({"suggest_funcs": None}, {"suggest_funcs": [lambda a, b: 1, lambda a, b: 2]}, {"start_lr": 1.0, "end_lr": 1e-3}):
        with raises(ValueError, "lr_find"):
            learn.lr_find(show_plot=False, **options)
    for options in ({"lr": 0.1}, {"mom": 0.1}, {"lr": [0.1]}):
        with raises(ValueError, *options):
            learn.fit(1, cbs=ParamScheduler(**options))

    class Longer:
        def __len__(self) -> int:
            return 1

        def __iter__(self):  # type: ignore[no-untyped-def]
            yield from [(torch.zeros(2, 1), torch.zeros(2, 1))] * 3

    learn.dls = (Longer(), Longer())
    with raises(ValueError, 1, "batches"):
        learn.fit_one_cycle(1)
