"""data.cache: equal samples from every kind of cache, and what a cache must not do."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from coursekit.data.block import Block, CategoryBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.transforms import ItemTransform
from coursekit.data.cache import Cache, pack
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


TFMS = [Resize(32), Resize(32, method="pad"), Resize((24, 40), method="squish"), RandomResizedCrop(32, min_scale=0.4)]


@pytest.mark.parametrize(("tfm", "cache", "workers"), [*((tfm, cache, None) for tfm in TFMS for cache in ("memory", "device")), (TFMS[3], "memory", 2)], ids=repr)
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


def test_validation_and_prediction_share_what_they_may(photos: Path) -> None:
    dls = loaders(photos, "memory")
    epochs(dls)
    assert dls.train.dataset.with_train(False).cache is dls.train.dataset.cache
    assert dls.test_dl(get_image_files(photos)[:2]).dataset.cache is None


PROGRAM = """
import sys
import torch
from coursekit.vision.all import *
if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")
    dls = ImageDataLoaders.from_folder(sys.argv[1], valid_pct=0.25, seed=3, bs=6, item_tfms=Resize(32), device="cpu", num_workers=1)
    print(sum(float(b.x.sum()) for b in dls.train))
"""


def test_options_that_do_not_fit(photos: Path) -> None:
    with pytest.raises(ValueError, match="cache='ram' is unknown; use 'memory', 'device' or None"):
        loaders(photos, "ram")
    with pytest.raises(ValueError, match="leave out num_workers=2"):
        loaders(photos, "device", workers=2)
    assert loaders(photos, "memory").train.num_workers == 0


def test_a_cache_that_does_not_fit_is_refused_in_one_line(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coursekit.data.cache._free_memory", lambda device: 10_000)
    with pytest.raises(ValueError, match=r"cache='memory': .* would take .* GB are free"):
        next(iter(loaders(photos, "memory").train))


def test_caches_can_be_sent_to_other_processes(photos: Path) -> None:
    """Spawned workers get the data set by pickle (a pickle of our own, within one machine; files are never unpickled)."""
    dls = loaders(photos, "memory")
    epochs(dls, 1)
    again = pickle.loads(pickle.dumps(dls.train.dataset))
    assert again.is_cached and torch.equal(again[3, 5][0], dls.train.dataset[3, 5][0])


def test_spawned_workers(photos: Path) -> None:
    file = photos.parent / "program.py"
    file.write_text(PROGRAM)
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
    with pytest.raises(ValueError, match=r"with_size: no transform .* sets a size; use item_tfms=Resize"):
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
    with pytest.raises(ValueError, match="bs must be .* got 0"):
        dls.new(bs=0)


@pytest.mark.parametrize("cache", ["memory", "device"])
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
    options = {"item_tfms": Resize(32), "bs": 6, "device": "cpu", "cache": "memory"}
    assert len(ImageDataLoaders.from_folder("~/photos", valid_pct=0.25, **options).one_batch().x) == 6
    table = pd.DataFrame({"file": [f"even/{i}.jpg" for i in range(0, 24, 2)], "label": [i % 4 for i in range(0, 24, 2)]})
    dls = ImageDataLoaders.from_df(table, "~/photos", **options)
    assert len(dls.one_batch().x) == 6 and len(epochs(dls, 1)) > 1


class Inverted(ImageBlock):
    """A block of the user's own."""

    def encode(self, value):
        return 255 - super().encode(value)


class Shout(ItemTransform):
    """A transform that changes what no cache keeps."""

    def prepare(self, values, kinds):
        return [v + 1 if k == "category" else v for v, k in zip(values, kinds)]


def test_blocks_of_your_own_are_cached_and_what_is_not_cached_may_not_change(photos: Path) -> None:
    split = RandomSplitter(0.25, seed=0)
    block = DataBlock(blocks=(Inverted, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=split, item_tfms=Resize(16))
    plain = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=split, item_tfms=Resize(16))
    a, b = (x.dataloaders(photos, bs=2, cache="memory", seed=1).valid for x in (block, plain))
    assert torch.allclose(next(iter(a)).x, 1 - next(iter(b)).x, atol=0.01)
    loud = plain.new(item_tfms=Shout())
    with pytest.raises(ValueError, match="changes a part of kind 'category', which a cache does not keep"):
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
    cached = True

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


def test_an_unreadable_image_leaves_the_cache_empty(photos: Path) -> None:
    get_image_files(photos)[5].write_bytes(b"\xff\xd8\xff broken")
    dls = loaders(photos, "memory")
    with pytest.raises(ValueError, match="jpg"):
        epochs(dls)
    assert not dls.train_ds.is_cached or not dls.valid_ds.is_cached
    assert repr(Cache("memory")) == "Cache(memory: empty)"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.bool])
def test_buffers_keep_shapes_and_layouts(dtype: torch.dtype) -> None:
    parts = [(torch.rand(shape) * 200).to(dtype).permute(order) for shape, order in [((3, 0), (1, 0)), ((2, 3, 4), (2, 0, 1)), ((), ()), ((5,), (0,))]]
    parts.append(torch.rand(6, 6).to(dtype)[::2, 1:4])  # with gaps in memory
    buffers, rows = pack([[p] for p in parts])
    for p, row in zip(parts, rows):
        (start, shape, stride), = row
        assert torch.equal(buffers[0].as_strided(shape, stride, start), p)
