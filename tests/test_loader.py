"""data.loader: any dataset, whole batches, batch samplers, nested batches, several targets, and one protocol for all loaders."""

from __future__ import annotations

import math
from collections import namedtuple

import pytest
import torch
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Subset, TensorDataset

from coursekit.data.batch import Batch, as_batch, tensors_in
from coursekit.data.block import CategoryBlock, RegressionBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.items import RandomSplitter
from coursekit.data.loader import DataLoader, DataLoaders, PlainLoader, ordered
from coursekit.data.transforms import BatchTransform


def loader(dataset, **options) -> DataLoader:
    return DataLoader(dataset, **{"device": "cpu", "num_workers": 0, **options})


class Rows:
    """A table of categories, numbers and a label, sliced a batch at a time: one input of two tensors, one target."""

    def __init__(self, n: int = 50, form=lambda cats, nums, y: ((cats, nums), y)):
        self.columns, self.form, self.asked = (torch.arange(n)[:, None].repeat(1, 8), torch.randn(n, 6), torch.arange(n)), form, []

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitems__(self, indices: torch.Tensor):
        self.asked.append(indices)
        return self.form(*(c[indices] for c in self.columns))


class Texts:
    """Texts of different lengths; item i holds only the number i."""

    def __init__(self, lengths: list[int]):
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.full((self.lengths[i],), i), i % 2


class ByLength:
    """Batches of texts of similar length, in another order in each epoch."""

    batch_size = 3

    def __init__(self, lengths: list[int]):
        self.lengths, self.epochs = lengths, []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self):
        longest_first = sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i])
        batches = [longest_first[k:k + self.batch_size] for k in range(0, len(longest_first), self.batch_size)]
        return iter(batches[::-1] if self.epochs[-1] % 2 else batches)


def pad(samples: list[tuple[torch.Tensor, int]]):
    texts, labels = zip(*samples)
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-1)
    return {"ids": ids, "mask": ids >= 0}, torch.tensor(labels)


def test_a_range_is_a_dataset() -> None:
    assert [b.x.tolist() for b in loader(range(15), bs=5)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    shuffled = loader(range(15), bs=4, shuffle=True, drop_last=True)
    first, second = ([i for b in shuffled for i in b.x.tolist()] for _ in range(2))
    assert len(first) == 12 and first != second and len({*first}) == 12


def test_torch_datasets_of_every_kind() -> None:
    data = TensorDataset(torch.arange(10.0), torch.arange(10))
    for dataset in (data, Subset(data, range(10)), [(float(i), i) for i in range(10)]):
        batches = list(loader(dataset, bs=4))
        assert [b.y.tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and batches[0].x.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="without a length"):
        loader(iter([1]))


def test_whole_batches_of_categories_and_numbers() -> None:
    data = Rows()
    batches = list(loader(data, bs=16, shuffle=True, seed=3))
    cats, nums = batches[0].x
    assert (cats.shape, cats.dtype, nums.shape, nums.dtype) == ((16, 8), torch.int64, (16, 6), torch.float32)
    assert torch.equal(cats[:, 0], batches[0].y) and batches[0].size == 16 and batches[-1].size == 2
    assert sorted(i for b in batches for i in b.y.tolist()) == list(range(50)) and all(i.dtype == torch.int64 for i in data.asked)
    assert loader(data, num_workers=None).num_workers == 0  # slicing is faster than sending


@pytest.mark.parametrize("form", [lambda c, n, y: Batch((c, n), (y,)), lambda c, n, y: (c, n, y), lambda c, n, y: list(zip(c, n, y))],
                         ids=["batch", "tuple", "samples"])  # fmt: skip
@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_whole_batch_may_be(form, workers: int) -> None:
    batches = list(loader(Rows(form=form), bs=16, num_workers=workers))
    assert [len(b.xs) for b in batches] == [2] * 4 and [b.y.tolist() for b in batches[:1]] == [list(range(16))]
    assert batches[0].xs[0].shape == (16, 8)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sampler_by_length_with_padding(workers: int) -> None:
    lengths = [3, 9, 2, 8, 4, 7, 5]
    sampler = ByLength(lengths)
    dl = loader(Texts(lengths), batch_sampler=sampler, collate=pad, num_workers=workers)
    first, second = list(dl), list(dl)
    assert len(dl) == 3 and dl.bs is None and sampler.epochs == [0, 1]
    assert [tuple(b.x["ids"].shape) for b in first] == [(3, 9), (3, 5), (1, 2)] and [b.size for b in second] == [1, 3, 3]
    assert all((b.x["mask"].sum(1) == torch.tensor([lengths[i] for i in b.x["ids"][:, 0]])).all() for b in first)
    rows = [i for b in dl.in_order() for i in b.x["ids"][:, 0].tolist()]
    assert rows == list(range(7)) and (again := dl.in_order()) is not dl and again.in_order() is again


def test_a_batch_sampler_replaces_the_other_options() -> None:
    for options in ({"bs": 4}, {"shuffle": True}, {"drop_last": True}):
        with pytest.raises(ValueError, match="batch_sampler .*leave out"):
            loader(range(4), batch_sampler=[[0, 1], [2]], **options)
    dl = loader(range(4), batch_sampler=[torch.tensor([3, 1]), [0]])
    assert [b.x.tolist() for b in dl] == [[3, 1], [0]] and [b.x.tolist() for b in dl.starting_at(1)] == [[0]]
    assert dl.new(seed=3).batch_sampler is dl.batch_sampler and dl.new(bs=2).batch_sampler is None
    with pytest.raises(TypeError, match="shufle"):
        dl.new(shufle=True)


class Seeded:
    """Samples that depend on the seed of their draw."""

    seeded = True

    def __len__(self) -> int:
        return 20

    def __getitem__(self, key: tuple[int, int]):
        return torch.rand(3, generator=torch.Generator().manual_seed(key[1])), key[0]


class Add(BatchTransform):
    """A random batch transform."""

    def apply(self, tensors, kinds, *, rng, train):
        return [t + torch.rand((), generator=rng) if t.is_floating_point() and train else t for t in tensors]


@pytest.mark.parametrize("sampler", [None, [[5, 1], [0, 19, 3], [7]]], ids=["shuffled", "batch_sampler"])
def test_bit_equal_for_any_number_of_workers(sampler) -> None:
    options = {"batch_sampler": sampler} if sampler else {"bs": 3, "shuffle": True}
    before = torch.get_rng_state()
    runs = [[b.x for dl in [loader(Seeded(), num_workers=w, batch_tfms=[Add()], seed=4, **options)] for _ in range(2) for b in dl] for w in (0, 1, 2)]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run)) and torch.equal(before, torch.get_rng_state())
    half = len(runs[0]) // 2
    assert not torch.equal(runs[0][0], runs[0][half])  # the next epoch draws anew
    dl = loader(Seeded(), batch_tfms=[Add()], seed=4, **options)
    assert all(torch.equal(b.x, x) for b, x in zip(dl.starting_at(2), runs[0][2:half]))


Point = namedtuple("Point", "x y")


def test_nested_batches() -> None:
    x = torch.arange(6.0).view(3, 2)
    batch = as_batch(({"a": x, "b": [x, "name"]}, Point(x, None), (x, x)))
    assert (batch.size, len(batch.xs), len(batch.ys), len(tensors_in(batch.xs))) == (3, 2, 1, 3)
    moved = batch.to("meta")
    assert moved.x["a"].is_meta and moved.x["b"][1] == "name" and moved.xs[1].x.is_meta and isinstance(moved.xs[1], Point)
    assert repr(batch) == ("Batch(x: {a: float32[3, 2], b: [float32[3, 2], name]}, Point(x=float32[3, 2], y=None); "
                           "y: (float32[3, 2], float32[3, 2]); cpu)")  # fmt: skip
    for bad in ({"a": x}, (x, "label"), [], 3, (x, ())):
        with pytest.raises(ValueError, match="cannot be used"):
            as_batch(bad)


def test_one_protocol_for_all_loaders() -> None:
    data = TensorDataset(torch.arange(10.0), torch.arange(10))
    ours, plain = loader(data, bs=4), PlainLoader(TorchLoader(data, batch_size=4), device="cpu")
    for dl in (ours, plain):
        assert (len(dl), dl.dataset, dl.bs, dl.device, dl.batch_tfms) == (3, data, 4, torch.device("cpu"), ())
        assert (dl.blocks, dl.targets, dl.kinds, dl.n_inp, dl.epoch) == ([], [], [], 1, -1)
        assert dl.first_batch().y.tolist() == [0, 1, 2, 3] and dl.epoch == 0 and dl.in_order() is dl is ordered(dl)
        assert [b.y.tolist() for b in dl.starting_at(1)] == [[4, 5, 6, 7], [8, 9]]
    for do in (lambda: plain.new(bs=2), lambda: plain.samples([0], [0])):
        with pytest.raises(ValueError, match="plain loader"):
            do()
    assert isinstance(ordered([(torch.zeros(2), torch.zeros(2))]), PlainLoader)


def test_options_of_both_loaders() -> None:
    dls = DataLoaders.from_dsets(range(9), range(4), bs=2, device="cpu", num_workers=0)
    assert (dls.train.bs, dls.valid.bs, dls.train.shuffle, len(dls.train), len(dls.valid)) == (2, 4, True, 4, 1)
    assert (dls.new(bs=3).train.bs, dls.new(bs=1).valid.bs, DataLoaders.from_dsets(range(99), range(4)).bs) == (3, 2, 64)
    plan = DataBlock(blocks=(RegressionBlock, RegressionBlock), splitter=RandomSplitter(seed=0))
    for make in (lambda **o: DataLoaders.from_dsets(range(9), range(4), **o), lambda **o: plan.dataloaders([1.0, 2.0, 3.0, 4.0, 5.0], **o)):
        with pytest.raises(TypeError, match="val_sb.*did you mean 'val_bs'"):
            make(val_sb=3)


def test_two_targets_are_decoded_and_shown() -> None:
    plan = DataBlock(blocks=(RegressionBlock, CategoryBlock, RegressionBlock), n_inp=1, splitter=RandomSplitter(0.5, seed=0),
                     get_x=float, get_y=[lambda i: "odd" if i % 2 else "even", lambda i: [i / 2, i / 4]])  # fmt: skip
    dls = plan.dataloaders(list(range(12)), bs=4, device="cpu", num_workers=0)
    assert (dls.n_out, dls.vocab, [b.kind for b in dls.targets]) == (4, ["even", "odd"], ["category", "regression"])
    batch = next(iter(dls.valid))
    assert [t.shape for t in batch.ys] == [(6,), (6, 2)] and len(dls.decode(batch, max_n=2)) == 2
    for x, name, pair in dls.decode(batch):
        assert name == ("odd" if x % 2 else "even") and pair.tolist() == [x / 2, x / 4]
    assert len(dls.test_dl([3, 4]).first_batch().ys) == 0 and len(dls.test_dl([3, 4], with_labels=True).first_batch().ys) == 2
    dls.show_batch(max_n=2)
