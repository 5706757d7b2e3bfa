"""data.cache: equal samples from every kind of cache, and files that are cut, stale, foreign, half-written or built twice."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coursekit.data.block import Block, CategoryBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.transforms import ItemTransform
from coursekit.data.cache import Cache, DiskSamples, _from_bytes, _to_bytes, cache_files, read_header, trim_cache
from coursekit.data.items import RandomSplitter, get_image_files, parent_label
from coursekit.vision.data import ImageBlock, ImageDataLoaders
from coursekit.vision.augment import aug_transforms
from coursekit.vision.resize import RandomResizedCrop, Resize


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty-four JPEGs of different shapes in two folders, and an empty COURSEKIT_HOME."""
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path / "home"))
    r = np.random.default_rng(0)
    for i in range(24):
        folder = tmp_path / "photos" / ("even", "odd")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        rough = r.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(rough).resize((40 + 3 * i, 90 - 2 * i), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
    return tmp_path / "photos"


def loaders(photos: Path, cache: str | None, *, size: int = 32, tfm=None, workers: int | None = None) -> ImageDataLoaders:
    return ImageDataLoaders.from_folder(photos, valid_pct=0.25, seed=3, bs=6, item_tfms=tfm or Resize(size), batch_tfms=aug_transforms(),
                                        device="cpu", cache=cache, num_workers=workers)  # fmt: skip


def epochs(dls: ImageDataLoaders, n: int = 2) -> list[torch.Tensor]:
    return [b.x for _ in range(n) for b in dls.train] + [b.x for b in dls.valid]


def file_of(home: Path) -> list[Path]:
    return sorted((home / "cache").glob("*.samples"))


def key_of(path: Path) -> str:
    return read_header(path)[0]["key"]


@pytest.mark.parametrize("tfm", [Resize(32), Resize(32, method="pad"), Resize((24, 40), method="squish"), RandomResizedCrop(32, min_scale=0.4)],
                         ids=repr)  # fmt: skip
@pytest.mark.parametrize(("cache", "workers"), [("memory", None), ("memory", 2), ("disk", 0), ("disk", 1), ("device", None)])
def test_every_cache_gives_the_same_batches(photos: Path, tfm, cache: str, workers: int | None) -> None:
    want = epochs(loaders(photos, None, tfm=tfm, workers=0))
    got = epochs(loaders(photos, cache, tfm=tfm, workers=workers))
    assert len(want) == len(got) and all(torch.equal(a, b) for a, b in zip(want, got))


def test_pictures_are_decoded_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    from coursekit.vision import block

    real = block.load_image
    monkeypatch.setattr(block, "load_image", lambda *a, **k: calls.append(a) or real(*a, **k))
    dls = loaders(photos, "memory")
    calls.clear()
    epochs(dls, 3)
    assert len(calls) == 24
    again = loaders(photos, "disk")
    calls.clear()
    epochs(again, 3)
    assert len(calls) == 24
    new = loaders(photos, "disk")
    calls.clear()
    epochs(new, 3)
    assert calls == []  # from the file of the run before


def test_validation_and_prediction_share_what_they_may(photos: Path) -> None:
    dls = loaders(photos, "memory")
    epochs(dls)
    assert dls.train.dataset.with_train(False).cache is dls.train.dataset.cache
    assert dls.test_dl(get_image_files(photos)[:2]).dataset.cache is None


@pytest.mark.parametrize("damage", ["cut in the data", "cut in the tail", "empty", "zeros at the end", "text", "longer", "header byte"])
def test_a_damaged_file_is_made_again(photos: Path, damage: str) -> None:
    home = Path(os.environ["COURSEKIT_HOME"])
    want = epochs(loaders(photos, "disk"))
    for file in file_of(home):
        data = file.read_bytes()
        file.write_bytes({"cut in the data": data[:len(data) // 3], "cut in the tail": data[:-7], "empty": b"",
                          "zeros at the end": data[:-30] + bytes(30), "text": b"<html>not found</html>" * 30, "longer": data + b"x",
                          "header byte": data[:-200] + bytes([data[-200] ^ 1]) + data[-199:]}[damage])  # fmt: skip
        with pytest.raises(ValueError, match="is not whole"):
            key_of(file)
    got = epochs(loaders(photos, "disk"))
    assert all(torch.equal(a, b) for a, b in zip(want, got))
    assert len(file_of(home)) == 2 and all(map(key_of, file_of(home)))


def test_a_changed_byte_in_a_picture_is_noticed(photos: Path) -> None:
    epochs(loaders(photos, "disk"))
    for file in file_of(Path(os.environ["COURSEKIT_HOME"])):
        with file.open("r+b") as f:
            f.seek(40)
            byte = f.read(1)
            f.seek(40)
            f.write(bytes([byte[0] ^ 255]))
    with pytest.raises(ValueError, match=r"cache: sample 0 of .* is damaged; delete the file"):
        epochs(loaders(photos, "disk"))


def test_a_changed_picture_or_another_transform_is_noticed(photos: Path) -> None:
    home = Path(os.environ["COURSEKIT_HOME"])
    first = epochs(loaders(photos, "disk"))
    n = len(file_of(home))
    for file in get_image_files(photos):
        Image.new("RGB", (50, 50), (200, 30, 30)).save(file)
        os.utime(file, ns=(1, 1))  # whatever the clock does, the time is another one
    second = epochs(loaders(photos, "disk"))
    assert not torch.equal(first[0], second[0]) and len(file_of(home)) == 2 * n
    third = epochs(loaders(photos, "disk", size=24))
    assert third[0].shape[-1] == 24 and len(file_of(home)) == 3 * n
    assert all(torch.equal(a, b) for a, b in zip(third, epochs(loaders(photos, None, size=24, workers=0))))


PROGRAM = """
import sys, time
from pathlib import Path
import coursekit.data.block as block
from coursekit.data.items import *
from coursekit.vision.all import *
if len(sys.argv) > 2:
    real = block.Dataset.prepared
    block.Dataset.prepared = lambda self, i: (time.sleep(float(sys.argv[2])), real(self, i))[1]
dls = ImageDataLoaders.from_folder(sys.argv[1], valid_pct=0.25, seed=3, bs=6, item_tfms=Resize(32), device="cpu", cache="disk")
print("ready", flush=True)
print(sum(float(b.x.sum()) for b in dls.train), flush=True)
"""


def start(photos: Path, *args: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(photos), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


def test_two_processes_end_with_one_good_file(photos: Path) -> None:
    processes = [start(photos, "0.05") for _ in range(2)]
    said = [p.communicate(timeout=120) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], said
    assert said[0][0] == said[1][0]
    files = file_of(Path(os.environ["COURSEKIT_HOME"]))
    assert len(files) == 1 and not list(files[0].parent.glob(".*.samples.*"))
    assert len(DiskSamples(files[0], key_of(files[0]))) == 18


def test_a_kill_in_the_middle_leaves_nothing_that_loads(photos: Path) -> None:
    home = Path(os.environ["COURSEKIT_HOME"])
    victim = start(photos, "0.3")
    assert victim.stdout.readline() == "ready\n"
    deadline = time.time() + 60
    while not list((home / "cache").glob(".*.samples.*")) and time.time() < deadline:
        time.sleep(0.02)
    time.sleep(0.4)
    victim.send_signal(signal.SIGKILL)
    victim.wait(30)
    assert list((home / "cache").glob(".*.samples.*")) and file_of(home) == []  # half a file, under a name nobody looks for
    out, err = start(photos).communicate(timeout=120)
    assert out.startswith("ready\n") and len(file_of(home)) == 1, err
    assert not list((home / "cache").glob(".*.samples.*"))  # and the next one cleared it away


def test_items_that_are_no_files_need_memory(photos: Path) -> None:
    block = DataBlock(blocks=(ImageBlock, CategoryBlock(vocab=["a", "b"])), splitter=RandomSplitter(0.5, seed=0), get_x=np.asarray,
                      get_y=lambda a: "ab"[int(a[0, 0, 0]) % 2], item_tfms=Resize(16))  # fmt: skip
    items = [np.full((20, 20, 3), i, np.uint8) for i in range(8)]
    with pytest.raises(ValueError, match="cache='disk': .* is no file"):
        next(iter(block.dataloaders(items, bs=2, cache="disk").train))
    assert next(iter(block.dataloaders(items, bs=2, cache="memory").train)).x.shape == (2, 3, 16, 16)


def test_options_that_do_not_fit(photos: Path) -> None:
    with pytest.raises(ValueError, match="cache='ram' is unknown; use 'memory', 'disk', 'device' or None"):
        loaders(photos, "ram")
    with pytest.raises(ValueError, match="num_workers=2 out"):
        loaders(photos, "device", workers=2)
    assert loaders(photos, "memory").train.num_workers == 0


def test_a_cache_that_does_not_fit_is_refused_in_one_line(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coursekit.data.cache.free_memory", lambda device: 10_000)
    with pytest.raises(ValueError, match=r"cache='memory': the prepared pictures would take .* GB are free; use"):
        next(iter(loaders(photos, "memory").train))


def test_caches_can_be_sent_to_other_processes(photos: Path) -> None:
    """Spawned workers get the data set by pickle (a pickle of our own, within one machine; files are never unpickled)."""
    for kind in ("memory", "disk"):
        dls = loaders(photos, kind)
        epochs(dls, 1)
        again = pickle.loads(pickle.dumps(dls.train.dataset))
        assert torch.equal(again[3, 5][0], dls.train.dataset[3, 5][0])
    assert isinstance(again.cache.samples, DiskSamples)


def test_spawned_workers(photos: Path) -> None:
    program = PROGRAM.replace("import sys, time", "import sys, time, torch").replace(
        'print("ready"', 'torch.multiprocessing.set_start_method("spawn")\nprint("ready"').replace(
        'cache="disk"', 'cache=None, num_workers=2')  # fmt: skip
    file = photos.parent / "program.py"
    file.write_text(f"if __name__ == '__main__':\n{''.join('    ' + line + chr(10) for line in program.splitlines())}")
    done = subprocess.run([sys.executable, str(file), str(photos)], capture_output=True, text=True, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    want = sum(float(b.x.sum()) for b in ImageDataLoaders.from_folder(photos, valid_pct=0.25, seed=3, bs=6, item_tfms=Resize(32),
                                                                      device="cpu", num_workers=0).train)  # fmt: skip
    assert float(done.stdout.split()[-1]) == pytest.approx(want, rel=1e-6)


def test_with_size_keeps_everything_else(photos: Path) -> None:
    dls = loaders(photos, "memory")
    large = dls.with_size(48)
    assert large.one_batch().x.shape == (6, 3, 48, 48) and next(iter(large.valid)).x.shape[-1] == 48
    assert dls.one_batch().x.shape[-1] == 32 and large.vocab == dls.vocab and large.train.dataset.items == dls.train.dataset.items
    assert large.train.dataset.cache is not dls.train.dataset.cache and large.with_size((20, 30), bs=3).one_batch().x.shape == (3, 3, 20, 30)
    pre = ImageDataLoaders.from_folder(photos, valid_pct=0.25, seed=3, bs=6, item_tfms=Resize(48), batch_tfms=aug_transforms(size=24), device="cpu")
    assert pre.with_size(32).one_batch().x.shape[-1] == 32 and pre.with_size(32).train.dataset.item_tfms[0].size == 64
    wide = ImageDataLoaders.from_folder(photos, valid_pct=0.25, seed=3, item_tfms=Resize((48, 64)), batch_tfms=aug_transforms(size=(24, 32)))
    assert wide.with_size((12, 16)).train.dataset.item_tfms[0].size == (24, 32)
    none = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label).dataloaders(photos, bs=1)
    with pytest.raises(ValueError, match=r"with_size: no transform here sets a size; use item_tfms=Resize"):
        none.with_size(32)


def test_with_size_goes_on_with_the_draws(photos: Path) -> None:
    """The next epoch has another order than those before: as the same loader's would be, not the first one's again."""
    pictures = lambda dl: [tuple(x.float().mean((1, 2)).tolist()) for b in dl for x in b.x]
    plain = lambda: loaders(photos, None, workers=0).new(batch_tfms=[])
    dls, same = plain(), plain()
    seen = [pictures(dls.train) for _ in range(3)]
    assert seen == [pictures(same.train) for _ in range(3)]
    assert len({tuple(s) for s in seen}) == 3
    large = dls.with_size(32)
    fourth = pictures(large.train)
    assert fourth == pictures(same.train) and fourth not in seen


def test_new_keeps_a_batch_size_that_was_chosen(photos: Path) -> None:
    dls = ImageDataLoaders.from_folder(photos, valid_pct=0.5, seed=3, bs=3, val_bs=7, item_tfms=Resize(24), device="cpu")
    assert (dls.with_size(16).valid.bs, dls.with_size(16, bs=2).valid.bs, dls.new(bs=2).train.bs) == (7, 7, 2)
    dls = ImageDataLoaders.from_folder(photos, valid_pct=0.5, seed=3, bs=3, item_tfms=Resize(24), device="cpu")
    assert (dls.valid.bs, dls.new(bs=2).valid.bs) == (6, 4)
    with pytest.raises(ValueError, match="bs=0 is no batch size"):
        dls.new(bs=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=3), st.sampled_from([torch.uint8, torch.float32, torch.int64]), st.integers(0, 9))
def test_bytes_and_back(shape: list[int], dtype: torch.dtype, before: int) -> None:
    part = (torch.rand(shape) * 200).to(dtype)
    flat, row = _to_bytes(part)
    buffer = torch.cat([torch.zeros(8 * before, dtype=torch.uint8), flat])
    assert torch.equal(_from_bytes(buffer, [8 * before, *row]), part)


def test_old_files_go_first(photos: Path) -> None:
    for size in (16, 20, 24):
        epochs(loaders(photos, "disk", size=size))
    files = [f for f, *_ in cache_files()]
    assert len(files) == 6 and trim_cache(0) == []  # all of them used a moment ago
    for k, f in enumerate(files):
        os.utime(f, (k + 1, k + 1))
    stray = files[0].with_name(f".{files[0].name}.abc")
    stray.write_bytes(b"half")
    os.utime(stray, (1, 1))
    kept = sum(f.stat().st_size for f in files[3:])
    assert trim_cache(kept) == files[:3] and [f for f, *_ in cache_files()] == files[3:] and not stray.exists()


def test_a_file_that_another_process_opens_is_not_deleted(photos: Path) -> None:
    epochs(loaders(photos, "disk"))
    files = [f for f, *_ in cache_files()]
    with FileLock(f"{files[0]}.lock"):
        assert trim_cache(0, unused=-1) == files[1:]
    assert trim_cache(0, unused=-1) == files[:1]


def test_other_code_is_another_cache(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs(loaders(photos, "disk"))
    before = [f for f, *_ in cache_files()]
    epochs(loaders(photos, "disk"))
    assert [f for f, *_ in cache_files()] == before
    monkeypatch.setattr("coursekit.data.cache.code_hash", lambda: "another commit")
    epochs(loaders(photos, "disk"))
    assert len(cache_files()) == 2 * len(before)


@pytest.mark.parametrize("cache", ["memory", "disk", "device"])
def test_one_sample_of_a_cache_holds_no_more_than_itself(photos: Path, cache: str) -> None:
    dls = loaders(photos, cache)
    epochs(dls)
    picture = dls.valid_ds[0][0]
    assert picture.untyped_storage().nbytes() == picture.numel() == 3 * 32 * 32
    picture.zero_()
    assert dls.valid_ds[0][0].any()


def test_a_home_folder_is_meant_by_its_sign(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photos.parent))
    monkeypatch.setenv("USERPROFILE", str(photos.parent))
    options = {"item_tfms": Resize(32), "bs": 6, "device": "cpu", "cache": "disk"}
    assert len(ImageDataLoaders.from_folder("~/photos", valid_pct=0.25, **options).one_batch().x) == 6
    table = pd.DataFrame({"file": [f"even/{i}.jpg" for i in range(0, 24, 2)], "label": [i % 4 for i in range(0, 24, 2)]})
    dls = ImageDataLoaders.from_df(table, "~/photos", **options)
    assert len(dls.one_batch().x) == 6 and len(epochs(dls, 1)) > 1


class Inverted(ImageBlock):
    """A block of the user's own."""

    def encode_small(self, value, size):
        return 255 - super().encode_small(value, size)


class Shout(ItemTransform):
    """A transform that changes what no cache keeps."""

    def prepare(self, values, kinds):
        return [v + 1 if k == "category" else v for v, k in zip(values, kinds)]


def test_what_cannot_be_told_apart_later_is_not_kept_on_disk(photos: Path) -> None:
    split = RandomSplitter(0.25, seed=0)
    block = DataBlock(blocks=(Inverted, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=split, item_tfms=Resize(16))
    with pytest.raises(ValueError, match="cache='disk': Inverted is your own class"):
        next(iter(block.dataloaders(photos, bs=2, cache="disk").train))
    plain = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=split, item_tfms=Resize(16))
    a, b = (x.dataloaders(photos, bs=2, cache="memory", seed=1).valid for x in (block, plain))
    assert torch.allclose(next(iter(a)).x, 1 - next(iter(b)).x, atol=0.01)
    loud = plain.new(item_tfms=Shout())
    with pytest.raises(ValueError, match="changes a part of kind 'category', and only image, mask, points are cached"):
        next(iter(loud.dataloaders(photos, bs=1, cache="memory").train))


class Forgetful(ItemTransform):
    """A transform whose change the first item does not show."""

    def prepare(self, values, kinds):
        return [0 if k == "category" else v for v, k in zip(values, kinds)]


def test_every_item_is_asked_whether_its_label_is_changed(photos: Path) -> None:
    for seed in range(4):  # other first items
        plan = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(0.25, seed=seed), item_tfms=Forgetful())
        with pytest.raises(ValueError, match="changes a part of kind 'category'"):
            next(iter(plan.dataloaders(photos, bs=1, cache="memory").train))


class Places(Block):
    """Points in pixels, as a later lesson has them."""

    kind = "points"

    def encode(self, value):
        return torch.tensor(value)


def test_points_are_cached_with_their_picture(photos: Path) -> None:
    def get_y(file): return [[float(len(file.name)), 30.0]]

    block = DataBlock(blocks=(ImageBlock, Places), get_items=get_image_files, get_y=get_y, splitter=RandomSplitter(0.3, seed=0), item_tfms=Resize(16))
    want, got = (block.dataloaders(photos, bs=4, seed=2, cache=kind, device="cpu") for kind in (None, "memory"))
    for a, b in zip([*want.train, *want.valid], [*got.train, *got.valid]):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def test_a_sample_may_be_changed_without_harm(photos: Path) -> None:
    ds = loaders(photos, "memory", tfm=Resize(16, method="squish")).train.dataset
    ds.fill_cache()
    before = ds[0][0].clone()
    ds[0][0].zero_()
    assert torch.equal(ds[0][0], before) and torch.equal(ds[-1][0], ds[len(ds) - 1][0]) and torch.equal(ds[np.int64(2)][0], ds[2][0])


def test_a_table_can_be_predicted(photos: Path) -> None:
    import pandas as pd

    files = get_image_files(photos)
    table = pd.DataFrame({"file": [str(f.relative_to(photos)) for f in files], "label": [f.parent.name for f in files]})
    dls = ImageDataLoaders.from_df(table, photos, valid_pct=0.25, seed=1, bs=64, item_tfms=Resize(16))
    assert next(iter(dls.test_dl(table))).x.shape == (24, 3, 16, 16)


@pytest.mark.parametrize("delimiter", [None, ",", ";"])
def test_a_csv_file_is_the_same_as_its_table(photos: Path, delimiter: str | None) -> None:
    files = get_image_files(photos)
    table = pd.DataFrame({"file": [str(f.relative_to(photos)) for f in files], "label": [f.parent.name for f in files]})
    table.to_csv(photos / "all.csv", index=False, sep=delimiter or ",")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pandas says so where it has to guess
        dls = ImageDataLoaders.from_csv(photos, "all.csv", delimiter=delimiter, valid_pct=0.25, seed=1, bs=6, item_tfms=Resize(16), num_workers=0)
    same = ImageDataLoaders.from_df(table, photos, valid_pct=0.25, seed=1, bs=6, item_tfms=Resize(16), num_workers=0)
    assert dls.vocab == ["even", "odd"] and torch.equal(next(iter(dls.valid)).x, next(iter(same.valid)).x)


def test_a_dark_photo_is_no_mask() -> None:
    dark = Image.fromarray(np.tile(np.arange(40, dtype=np.uint8), (30, 1)))
    ImageBlock().inspect(dark)
    with pytest.raises(ValueError, match=r"holds only the numbers 0, 2, 4, .*, 38: it looks like a mask"):
        ImageBlock().inspect(dark.point(lambda v: v // 2 * 2).resize((40, 30)))


def test_an_error_in_a_picture_leaves_no_file(photos: Path) -> None:
    get_image_files(photos)[5].write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(ValueError, match="jpg"):
        epochs(loaders(photos, "disk"))
    assert not list((Path(os.environ["COURSEKIT_HOME"]) / "cache").glob(".*.samples.*"))
    assert repr(Cache("memory")) == "Cache(memory: empty)"
