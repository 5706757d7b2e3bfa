"""What weights mean travels with them, files land where they can be written, threads predict while others train, and small mistakes are told."""

from __future__ import annotations

import copy
import json
import os
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import raises
from PIL import Image
from torch import nn

from coursekit.core import check_writable
from coursekit.data.block import Block, CategoryBlock, MultiCategoryBlock, RegressionBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.items import IndexSplitter, get_image_files
from coursekit.data.loader import DataLoader, DataLoaders
from coursekit.deploy.hub import load_learner
from coursekit.training.callback import Callback
from coursekit.training.callbacks.checkpoint import Checkpoint
from coursekit.training.callbacks.loggers import CSVLogger
from coursekit.training.callbacks.stats import ActivationStats
from coursekit.training.callbacks.tracker import SaveModelCallback
from coursekit.training.learner import Learner, synthetic_learner
from coursekit.training.metrics import accuracy
from coursekit.training.weights import read_tensors, write_tensors
from coursekit.vision.all import ImageBlock, Normalize, Resize, imagenet_stats, vision_learner


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four images of two kinds: cat_0.png, dog_1.png, ..."""
    folder = tmp_path_factory.mktemp("photos")
    r = np.random.default_rng(0)
    for i in range(24):
        image = r.integers(0, 120, (20, 20, 3), dtype=np.uint8)
        image[:, :, i % 2] += 100
        Image.fromarray(image).save(folder / f"{('cat', 'dog')[i % 2]}_{i}.png")
    return folder


def kind(file: Path) -> str:
    return file.name.split("_")[0]


def loaders(photos: Path, vocab: list | None = None, *, label=kind, block: Block | None = None, **options) -> DataLoaders:
    data = DataBlock(blocks=(ImageBlock, block or CategoryBlock(vocab=vocab)), get_items=lambda f: sorted(get_image_files(f)), get_y=label,
                     splitter=IndexSplitter(range(0, 24, 3)), item_tfms=Resize(16), batch_tfms=options.pop("batch_tfms", None))
    return data.dataloaders(photos, path=options.pop("path", photos), seed=0, bs=options.pop("bs", 4), num_workers=options.pop("num_workers", 0), device="cpu")


def net(n_out: int = 2) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_out))


def learner(photos: Path, dls: DataLoaders | None = None, **options) -> Learner:
    dls = dls or loaders(photos)
    learn = Learner(dls, net(dls.n_out), metrics=accuracy, precision="fp32", seed=0, **options)
    learn.progress = False
    return learn


# ------------------------------------------------------------------------------------------------------ what weights mean


def test_other_data_must_have_the_same_classes_in_the_same_order(photos: Path) -> None:
    learn = learner(photos)
    with raises(ValueError, "Learner.dls", "['cat', 'dog']", "['dog', 'cat']", "vocab=['cat', 'dog']"):
        learn.dls = loaders(photos, ["dog", "cat"])
    with raises(ValueError, "Learner.dls", "['cat', 'dog']", "['cat', 'fox']", "new learner"):
        learn.dls = loaders(photos, label=lambda f: kind(f).replace("dog", "fox"))
    with raises(ValueError, "Learner.dls", "category", "multicategory"):
        learn.dls = loaders(photos, label=lambda f: [kind(f)], block=MultiCategoryBlock())
    assert learn.dls.vocab == ["cat", "dog"]
    learn.dls = loaders(photos, bs=8)  # the same classes
    learn.dls = loaders(photos, ["cat", "dog"])
    batch = [(torch.zeros(2, 3, 16, 16), torch.tensor([0, 1]))]
    learn.dls = (batch, batch)  # plain loaders do not say what they hold, but the weights still know
    with raises(ValueError, "['dog', 'cat']"):
        learn.dls = loaders(photos, ["dog", "cat"])


def test_a_loaded_learner_knows_its_classes(photos: Path, tmp_path: Path) -> None:
    learn = vision_learner(loaders(photos), "coursenet", pretrained=False, lin_ftrs=(), seed=0)
    again = load_learner(learn.export(tmp_path / "m.ck"), device="cpu")
    with raises(ValueError, "vocab=['cat', 'dog']"):
        again.dls = loaders(photos, ["dog", "cat"])
    again.dls = loaders(photos)


def test_other_data_must_be_normalized_alike(photos: Path) -> None:
    learn = vision_learner(loaders(photos), "coursenet", pretrained=False, lin_ftrs=(), seed=0)
    learn.dls = loaders(photos, batch_tfms=Normalize.from_stats(*imagenet_stats))  # the same
    with raises(ValueError, "Learner.dls", "0.485", "0.5"):
        learn.dls = loaders(photos, batch_tfms=Normalize.from_stats([0.5] * 3, [0.5] * 3))


class Depth(Block):
    """A block whose numbers have a unit."""
    meaning = ("unit",)

    def __init__(self, unit: str) -> None:
        self.unit, self.n_out, self.loss = unit, 1, "mse"  # type: ignore[misc]

    def encode(self, value: float) -> torch.Tensor:
        return torch.tensor([float(value)])


def test_units_are_compared(photos: Path, tmp_path: Path) -> None:
    meters, feet = (learner(photos, loaders(photos, label=lambda f: len(f.name), block=Depth(u)), path=tmp_path) for u in ("m", "ft"))
    meters.metrics = feet.metrics = ()
    meters.save("depth")
    with raises(ValueError, "depth.safetensors", "unit", "m", "ft"):
        feet.load("depth")


def test_the_scale_of_deep_images_is_compared(photos: Path) -> None:
    def made(scale: tuple[int, int]) -> DataLoaders:
        data = DataBlock(blocks=(ImageBlock(scale=scale), CategoryBlock), get_items=lambda f: sorted(get_image_files(f)), get_y=kind,
                         splitter=IndexSplitter(range(0, 24, 3)), item_tfms=Resize(16))
        return data.dataloaders(photos, seed=0, bs=4, device="cpu")

    learn = learner(photos, made((0, 4095)))
    learn.dls = made((0, 4095))
    with raises(ValueError, "Learner.dls", "scale", "4095", "65535"):
        learn.dls = made((0, 65535))


def test_saved_weights_know_their_classes(photos: Path, tmp_path: Path) -> None:
    learn, other = learner(photos, path=tmp_path), learner(photos, loaders(photos, ["dog", "cat"]), path=tmp_path)
    file = learn.save("pets")
    before = copy.deepcopy(other.model.state_dict())
    with raises(ValueError, "Learner.load", "pets.safetensors", "vocab=['cat', 'dog']"):
        other.load("pets")
    assert all(torch.equal(a, b) for a, b in zip(before.values(), other.model.state_dict().values()))
    learn.load("pets")
    tensors, header = read_tensors(file)
    assert header["meaning"]["targets"] == [{"kind": "category", "vocab": ["cat", "dog"]}] and json.dumps(header)
    write_tensors(file, tensors, {"format": "weights"})  # as an earlier version wrote it
    other.load("pets")


def test_checkpoints_know_their_classes(photos: Path, tmp_path: Path) -> None:
    class Crash(Callback):
        order = 20_000

        def after_batch(self, learn: Learner) -> None:
            if learn.state.training and learn.state.step == 3:
                raise RuntimeError

    learn, other = learner(photos, path=tmp_path), learner(photos, loaders(photos, ["dog", "cat"]), path=tmp_path)
    with pytest.raises(RuntimeError):
        learn.fit(2, 0.1, cbs=[Checkpoint("run", every=1), Crash()])
    with raises(ValueError, "Checkpoint", "run.safetensors", "vocab=['cat', 'dog']"):
        other.fit(2, 0.1, cbs=Checkpoint("run"))
    file = Checkpoint("run").file_of(learn)
    tensors, header = read_tensors(file)
    write_tensors(file, tensors, {k: v for k, v in header.items() if k != "meaning"})  # of an earlier version
    other.fit(2, 0.1, cbs=Checkpoint("run"))


# ------------------------------------------------------------------------------------------------------ where files land


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """A folder in which nothing can be written, not even by root."""
    if Path("/proc").is_dir():
        return Path("/proc")
    if os.geteuid() == 0:
        pytest.skip("root can write everywhere")
    tmp_path.chmod(0o555)
    return tmp_path


class Steps(Callback):
    def __init__(self) -> None:
        self.n = 0

    def after_step(self, learn: Learner) -> None:
        self.n += 1


@pytest.mark.parametrize("make", [SaveModelCallback, CSVLogger, lambda: SaveModelCallback(every_epoch=True), lambda: Checkpoint("/proc/run")])
def test_a_folder_that_is_read_only_is_found_before_the_fit(nowhere: Path, make) -> None:
    steps, cb = Steps(), make()
    learn = synthetic_learner()
    learn.path = nowhere
    if isinstance(cb, Checkpoint) and nowhere != Path("/proc"):
        pytest.skip("needs /proc")
    with raises(OSError, type(cb).__name__, nowhere, "learn.path"):
        learn.fit(2, cbs=[cb, steps])
    assert steps.n == 0 and learn.running == []
    learn.path = Path.cwd()
    learn.fit(1)
    learn.path = nowhere
    learn.lr_find(num_it=10, show_plot=False)  # writes nothing, so it may run


def test_a_home_that_is_read_only_is_named(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSEKIT_HOME", str(nowhere))
    with raises(OSError, "COURSEKIT_HOME", nowhere):
        synthetic_learner().fit(1, cbs=Checkpoint("run"))


def test_saving_says_what_to_do(nowhere: Path, photos: Path) -> None:
    learn = synthetic_learner()
    learn.path = nowhere
    with raises(OSError, "Learner.save", nowhere, "learn.path"):
        learn.save("model")
    learn = vision_learner(loaders(photos), "coursenet", pretrained=False, lin_ftrs=(), seed=0)
    with raises(OSError, "Learner.export", nowhere):
        learn.export(nowhere / "m.ck")


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "c.txt", "save", "fix it")
    (tmp_path / "full").write_text("x")
    check_writable(tmp_path / "full", "save", "fix it")
    assert [p.name for p in tmp_path.iterdir()] == ["full"] and (tmp_path / "full").read_text() == "x"
    with raises(ValueError, "folder", "name of a file"):
        check_writable(tmp_path, "save", "fix it")
    with raises(ValueError, "full", "name of a file"):
        check_writable(tmp_path / "full" / "deep" / "c.txt", "save", "fix it")


def test_an_export_lands_in_the_working_directory(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    here, own, before = tmp_path / "here", tmp_path / "own", set(photos.rglob("*"))
    here.mkdir()
    monkeypatch.chdir(here)
    learn = vision_learner(loaders(photos), "coursenet", pretrained=False, lin_ftrs=(), seed=0)
    assert learn.export("pets.ck") == here / "pets.ck" and "pets.ck" in capsys.readouterr().out
    again = load_learner("pets.ck", device="cpu")
    assert again.export("again.ck") == here / "again.ck"
    learn.dls = loaders(photos, path=tmp_path)
    assert learn.export() == here / "export.ck" and set(photos.rglob("*")) == before
    learn.path = own
    assert learn.export("mine.ck") == own / "mine.ck" and (own / "mine.ck").is_file()
    assert vision_learner(loaders(photos), "coursenet", pretrained=False, lin_ftrs=(), path=own).export("given.ck") == own / "given.ck"


def test_the_best_weights_say_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    class Worse(Callback):
        order = 51

        def after_epoch(self, learn: Learner) -> None:
            learn.recorder.values[-1][1] = float(learn.state.epoch)

    learn = synthetic_learner()
    learn.path, learn.progress = tmp_path, True
    learn.fit(2, cbs=[SaveModelCallback(), Worse()])
    assert str(tmp_path / "models" / "model.safetensors") in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------------ threads


class Serial(Callback):
    """What the model says of each file after every batch of the fit, asked one after the other."""
    order = 30_000

    def __init__(self, files: list[Path]) -> None:
        self.files: list[Path] = files
        self.said: dict[Path, list[torch.Tensor]] = {f: [] for f in files}

    def ask(self, learn: Learner) -> None:
        for f in self.files:
            self.said[f].append(learn.predict(f).probabilities)

    def before_fit(self, learn: Learner) -> None:
        self.ask(learn)

    def after_batch(self, learn: Learner) -> None:
        if learn.state.training:
            self.ask(learn)


def test_a_thousand_predictions_of_eight_threads_during_and_after_a_fit(photos: Path, capsys: pytest.CaptureFixture) -> None:
    """Each is what one call after the other gives with the weights after some whole batch, later ones never with older weights; the fit ends
    with the weights that it ends with when nobody asks."""
    files, epochs = sorted(photos.glob("*.png"))[:4], 6
    alone, learn, serial = learner(photos), learner(photos), Serial(files)
    alone.fit_one_cycle(epochs, 0.1)
    answers: list[list[tuple[Path, torch.Tensor, bool]]] = [[] for _ in range(8)]
    done, errors = threading.Event(), []

    def ask(k: int) -> None:
        try:
            for i in range(125):
                over = done.is_set()
                file = files[(i + k) % len(files)]
                if i == 100:
                    done.wait(60)  # the last ones come after the fit
                    over = True
                answers[k].append((file, learn.predict(file).probabilities, over))
                time.sleep(0.001 * (k % 3))
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=ask, args=(k,), daemon=True) for k in range(8)]
    stats = ActivationStats()

    class Start(Callback):
        order = 30_001

        def before_fit(self, learn: Learner) -> None:
            for thread in threads:
                thread.start()

    try:
        learn.fit_one_cycle(epochs, 0.1, cbs=[serial, Start(), stats])
    finally:
        done.set()
    for thread in threads:
        thread.join(60)
    assert not errors and sum(map(len, answers)) == 1000
    assert all(torch.equal(a, b) for a, b in zip(alone.model.state_dict().values(), learn.model.state_dict().values()))
    assert learn.recorder.losses == alone.recorder.losses and learn.recorder.values == alone.recorder.values
    assert all(len(rows) == len(learn.recorder.losses) for rows in stats.record.values())

    final = {f: learn.predict(f).probabilities for f in files}
    during = set()
    for rows in answers:
        oldest = 0
        for file, said, over in rows:
            if over:
                assert torch.equal(said, final[file])
                continue
            fits = [k for k in range(oldest, len(serial.said[file])) if torch.equal(said, serial.said[file][k])]
            assert fits, "a prediction that no weights between two batches would have given"
            oldest = fits[0]
            during.add(oldest)
    assert len(during) > 3  # they really came in between
    capsys.readouterr()
    learn.progress = True
    learn.fit(1, 1e-3)
    assert "valid_loss" in capsys.readouterr().out


def ask_again(learn: Learner, n_epoch: int, ask: Callable[[], Any]) -> tuple[int, list[BaseException]]:
    """Fit while another thread calls `ask` over and over: how often it did, and the errors that it met."""
    stop, errors, n = threading.Event(), [], 0

    def work() -> None:
        nonlocal n
        while not stop.is_set():
            try:
                ask()
            except Exception as e:
                errors.append(e)
            n += 1
            time.sleep(0.002)

    thread = threading.Thread(target=work, daemon=True)

    class Start(Callback):
        def before_fit(self, learn: Learner) -> None:
            thread.start()

    try:
        learn.fit(n_epoch, 0.05, cbs=Start())
    finally:
        stop.set()
    thread.join(60)
    return n, errors


@pytest.mark.parametrize("call", ["get_preds", "validate", "tta", "show_results", "summary"])
def test_a_fit_is_unharmed_by_what_another_thread_asks(photos: Path, call: str) -> None:
    alone, learn = learner(photos), learner(photos)
    alone.fit(4, 0.05)
    n, errors = ask_again(learn, 4, getattr(learn, call))
    plt.close("all")
    assert n > 1 and not errors
    assert all(torch.equal(a, b) for a, b in zip(alone.model.state_dict().values(), learn.model.state_dict().values()))
    assert learn.recorder.values == alone.recorder.values and not learn.model.training


def test_a_second_fit_is_refused_or_comes_after_the_first(photos: Path) -> None:
    learn = learner(photos)
    n, errors = ask_again(learn, 4, lambda: learn.fit(1, 1e-3))
    assert errors and all(isinstance(e, RuntimeError) for e in errors) and learn.recorder.interrupted == ""


def test_silence_ends_with_the_block_that_asked_for_it(photos: Path, capsys: pytest.CaptureFixture) -> None:
    learn = learner(photos)
    learn.progress = True
    wait = [threading.Event(), threading.Event()]

    def quiet(mine: int) -> None:  # the first leaves before the second does
        with learn.no_bar():
            wait[mine].wait(10)

    threads = [threading.Thread(target=quiet, args=(k,)) for k in range(2)]
    for t in threads:
        t.start()
    assert learn.progress  # only those threads are quiet
    for w, t in zip(wait, threads):
        w.set()
        t.join()
    assert learn.progress
    with learn.no_bar(), learn.no_bar():
        assert not learn.progress
    learn.fit(1, 1e-3)
    assert "valid_loss" in capsys.readouterr().out


def test_predictions_wait_for_lr_find_to_put_the_weights_back(photos: Path) -> None:
    learn, files = learner(photos), sorted(photos.glob("*.png"))
    before, said = learn.predict(files[0]).probabilities, []
    thread = threading.Thread(target=lambda: said.append(learn.predict(files[0]).probabilities))

    class Start(Callback):
        def after_step(self, learn: Learner) -> None:
            if learn.state.step == 5:
                thread.start()

    learn.add_cb(Start())
    learn.lr_find(num_it=30, show_plot=False)
    thread.join(10)
    assert torch.equal(said[0], before)


def test_a_learner_in_training_mode_serves_many_threads(photos: Path) -> None:
    """Nobody has trained it yet, so its layers are in training mode, as PyTorch makes them."""
    learn, files = learner(photos), sorted(photos.glob("*.png"))
    serial = {f: learn.predict(f).probabilities for f in files}
    assert learn.model.training
    wrong = []

    def ask(k: int) -> None:
        for f in files[k::2] * 10:
            if not torch.equal(learn.predict(f).probabilities, serial[f]):
                wrong.append(f)

    threads = [threading.Thread(target=ask, args=(k % 2,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and learn.model.training


def test_worker_processes_serve_one_pass_at_a_time(photos: Path) -> None:
    learn = learner(photos, loaders(photos, num_workers=1))
    wanted, found = learn.get_preds().preds, []
    threads = [threading.Thread(target=lambda: found.append(learn.get_preds().preds)) for _ in range(4)]

    class Ask(Callback):
        def after_batch(self, learn: Learner) -> None:
            if not learn.state.training and learn.state.epoch == 0:
                found.append(learn.get_preds().preds[:0])

    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.allclose(f, wanted, atol=1e-6) for f in found) and len(found) == 4
    plain = learner(photos)
    plain.fit(2, 0.05)
    learn.fit(2, 0.05, cbs=Ask())
    assert learn.recorder.values == plain.recorder.values


def test_a_learner_can_still_be_copied(photos: Path) -> None:
    learn = learner(photos)
    twin = copy.deepcopy(learn)
    twin.fit(1, 0.1)
    assert twin.turns is not learn.turns and not torch.equal(twin.model[0].weight, learn.model[0].weight)


# ----------------------------------------------------------------------------------------------------------- small mistakes


def test_a_prediction_is_a_sequence(photos: Path) -> None:
    found = learner(photos).predict(sorted(photos.glob("*.png"))[0])
    label, index, probabilities = found
    assert found[0] == label and found[1] is index and found[-1] is probabilities and found[:2] == (label, index) and len(found) == 3


@pytest.mark.parametrize("kind_of", [list, tuple, set])
def test_several_items_are_sent_to_get_preds(photos: Path, kind_of: type) -> None:
    with raises(ValueError, "Learner.predict", kind_of.__name__, 2, "get_preds", "test_dl"):
        learner(photos).predict(kind_of(sorted(photos.glob("*.png"))[:2]))


@pytest.mark.parametrize("bs", [1, 5])
def test_a_batch_of_one_is_told(bs: int) -> None:
    data = torch.utils.data.TensorDataset(torch.randn(16, 3), torch.arange(16) % 2)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    learn = Learner([torch.utils.data.DataLoader(data, bs)] * 2, model, nn.CrossEntropyLoss(), device="cpu")
    learn.progress = False
    with raises(ValueError, "batch norm", f"batch {16 if bs == 1 else 4}" if bs == 5 else "batch 1", "bs=2", "drop_last=True"):
        learn.fit(1)


def test_a_loaded_learner_shows_what_it_is_given(photos: Path, tmp_path: Path) -> None:
    learn = vision_learner(loaders(photos), "coursenet", pretrained=False, lin_ftrs=(), seed=0)
    again, files = load_learner(learn.export(tmp_path / "m.ck"), device="cpu"), sorted(photos.glob("*.png"))[:3]
    again.progress = False
    for name in ("show_results", "get_preds"):
        with raises(ValueError, f"Learner.{name}", "test_dl(items)", "learn.dls"):
            getattr(again, name)()
    again.show_results(again.dls.test_dl(files))
    titles = [ax.get_title() for ax in plt.gcf().axes[:3]]
    assert titles == [again.predict(f).label for f in files]
    again.show_results(again.dls.test_dl([(f, kind(f)) for f in files], with_labels=True))
    assert [ax.get_title().split("\n")[0] for ax in plt.gcf().axes[:3]] == [kind(f) for f in files]
    plt.close("all")


def test_a_loaded_learner_takes_labels_with_the_items(photos: Path, tmp_path: Path) -> None:
    learn = vision_learner(loaders(photos), "coursenet", pretrained=False, lin_ftrs=(), seed=0, metrics=accuracy)
    again, files = load_learner(learn.export(tmp_path / "m.ck"), device="cpu"), sorted(photos.glob("*.png"))
    with raises(ValueError, "test_dl", "with_labels=True", files[0], "[(file, label), ...]"):
        again.dls.test_dl(files, with_labels=True)
    dl = again.dls.test_dl([(f, kind(f)) for f in files], with_labels=True)
    again.progress = learn.progress = False
    assert dl.first_batch().y.tolist() == [again.dls.vocab.index(kind(f)) for f in files]
    ours = learn.get_preds(learn.dls.test_dl(files, with_labels=True), with_loss=True)
    theirs = again.get_preds(dl, with_loss=True)
    assert torch.allclose(ours.losses, theirs.losses, atol=1e-5) and torch.equal(ours.targs, theirs.targs)
    assert again.predict(files[0]).label == again.predict(str(files[0])).label


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes that start empty, as on macOS and Windows."""
    monkeypatch.setattr(torch.multiprocessing, "get_start_method", lambda allow_none=False: "spawn")


def test_what_cannot_be_sent_to_an_empty_process_is_named(photos: Path, spawned: None) -> None:
    with raises(ValueError, "num_workers=1", "get_y", "<lambda>", "num_workers=0"):
        loaders(photos, label=lambda f: kind(f), num_workers=1)
    loaders(photos, label=lambda f: kind(f))  # in this process nothing is sent

    def local(batch: list) -> torch.Tensor:
        return torch.tensor(batch)

    with raises(ValueError, "num_workers=2", "collate", "local"):
        DataLoader([1, 2, 3], collate=local, num_workers=2)

    class Squares(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.transform = lambda x: x * x

        def __len__(self) -> int:
            return 3

    with raises(ValueError, "transform", "<lambda>"):
        DataLoader(Squares(), num_workers=1)
    DataLoader([1, 2, 3], num_workers=1)
    loaders(photos, label=kind, num_workers=1)


def test_a_function_of_a_notebook_is_not_sent(photos: Path, spawned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = types.ModuleType("__main__")
    exec("def label_of(f): return f.name.split('_')[0]", vars(notebook))
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    with raises(ValueError, "get_y", "label_of", "num_workers=0", ".py"):
        loaders(photos, label=notebook.label_of, num_workers=1)
    notebook.__file__ = "script.py"  # a script is imported by the new process
    loaders(photos, label=notebook.label_of, num_workers=1)


def test_numbers_in_a_list_are_one_item() -> None:
    class Row(Block):
        def encode(self, value: list) -> torch.Tensor:
            return torch.tensor(value)

    data = DataBlock(blocks=(Row, RegressionBlock), get_y=sum)
    learn = Learner(data.dataloaders([[float(k), 1.0] for k in range(10)], bs=4, device="cpu"), nn.Linear(2, 1))
    assert isinstance(learn.predict([1.0, 2.0]).label, float)
