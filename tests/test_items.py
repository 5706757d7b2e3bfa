"""Properties of splitters and category maps that hold for any data."""

import random
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coursekit.data.items import (
    CategoryMap,
    ColSplitter,
    FuncSplitter,
    GrandparentSplitter,
    IndexSplitter,
    RandomSplitter,
    RegexLabeller,
    get_files,
    get_image_files,
)

relaxed = settings(deadline=None)  # the first call imports scikit-learn or pandas
sizes = st.integers(0, 300)
shares = st.floats(0, 1, allow_nan=False)
seeds = st.one_of(st.none(), st.integers(0, 2**40))
masks = st.lists(st.booleans(), max_size=100)


@st.composite
def cases(draw):
    """A splitter that keeps every item, and the items."""
    n = draw(sizes)
    mask = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    valid = [i for i, m in enumerate(mask) if m]
    made = [
        RandomSplitter(draw(shares), draw(seeds)),
        FuncSplitter(lambda i: mask[i]),
        IndexSplitter(valid[::-1]),
    ]
    return draw(st.sampled_from(made)), list(range(n))


def global_states():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), (kind, keys.tolist(), *rest)


@relaxed
@given(cases())
def test_disjoint_and_covering(case):
    splitter, items = case
    train, valid = splitter(items)
    assert sorted(train + valid) == items
    assert all(type(i) is int for i in train + valid)


@relaxed
@given(cases())
def test_global_random_states_are_left_alone(case):
    before = global_states()
    case[0](case[1])
    assert global_states() == before


@relaxed
@given(sizes, shares, st.integers(0, 2**40))
def test_random_splitter_is_fastais(n, share, seed):
    """idx = randperm(n) from a generator with that seed; the first int(share * n) validate."""
    train, valid = RandomSplitter(share, seed)(range(n))
    idx = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    cut = int(share * n)
    assert (train, valid) == (idx[cut:], idx[:cut])
    assert RandomSplitter(share, seed)(range(n)) == (train, valid)


def test_random_splitter_is_what_the_global_generator_gives():
    with torch.random.fork_rng():
        torch.manual_seed(42)
        idx = torch.randperm(7390).tolist()
    assert RandomSplitter(seed=42)(range(7390)) == (idx[1478:], idx[:1478])


def test_no_seed_means_another_split():
    assert len({tuple(RandomSplitter()(range(50))[1]) for _ in range(5)}) == 5


@relaxed
@given(st.lists(st.sampled_from(["train", "valid", "test"]), max_size=50))
def test_grandparent(folders):
    assume("train" in folders and "valid" in folders)
    train, valid = GrandparentSplitter()([Path("data") / f / "cat" / "1.jpg" for f in folders])
    assert [folders[i] for i in train] == ["train"] * folders.count("train")
    assert [folders[i] for i in valid] == ["valid"] * folders.count("valid")


@relaxed
@given(masks)
def test_col_splitter_for_every_kind_of_row(mask):
    import pandas as pd

    df = pd.DataFrame({"x": range(len(mask)), "is_valid": mask}, index=range(5, 5 + len(mask)))
    want = FuncSplitter(lambda i: mask[i])(range(len(mask)))
    assert ColSplitter()(df) == want
    assert ColSplitter()(df.to_dict("records")) == want
    assert ColSplitter()([row for _, row in df.iterrows()]) == want


labels = st.one_of(
    st.lists(st.text(max_size=5), min_size=1), st.lists(st.integers(), min_size=1), st.lists(st.booleans(), min_size=1),
    st.lists(st.floats(allow_nan=False), min_size=1),
)  # fmt: skip


@relaxed
@given(labels, st.booleans())
def test_category_map_round_trip(values, sort):
    cats = CategoryMap(values, sort=sort)
    assert cats.vocab == (sorted(set(values)) if sort else list(dict.fromkeys(values)))
    assert [cats.vocab[cats.index(v)] for v in values] == values
    assert CategoryMap(cats.vocab, sort=False).vocab == cats.vocab


@relaxed
@given(st.lists(st.text(min_size=1), min_size=1), st.text())
def test_category_map_refuses_strangers(values, other):
    assume(other not in values)
    with pytest.raises(ValueError, match="is not one of"):
        CategoryMap(values).index(other)


names = st.text(string.ascii_letters + "_", min_size=1, max_size=20)


@relaxed
@given(names, st.integers(0, 10**6))
def test_regex_labeller(breed, number):
    label = RegexLabeller(r"/([^/]+)_\d+.jpg$")
    for item in (Path("images") / f"{breed}_{number}.jpg", f"images/{breed}_{number}.jpg"):
        assert label(item) == breed


def test_files_do_not_depend_on_the_order_of_the_disk(tmp_path, monkeypatch):
    import os

    for i in random.Random(0).sample(range(100), 100):
        (tmp_path / f"{i % 7}").mkdir(exist_ok=True)
        (tmp_path / f"{i % 7}" / f"{i}.png").touch()
    walk = os.walk

    def shuffled(*args, **kw):
        for folder, folders, files in walk(*args, **kw):
            random.Random(1).shuffle(files)
            yield folder, folders, files

    want = get_image_files(tmp_path)
    monkeypatch.setattr(os, "walk", shuffled)
    assert get_image_files(tmp_path) == want == sorted(want, key=lambda p: p.as_posix()) and len(want) == 100


def test_a_file_that_cannot_be_listed(tmp_path):
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "missing.jpg")  # the reader of the picture will name it
    assert [f.name for f in get_files(tmp_path)] == ["broken.jpg"]
