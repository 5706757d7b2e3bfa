"""Texts: what tokenizers keep, streams and batches that leave out nothing, tokens on disk, bad input."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import raises, says
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coursekit.core import coursekit_home, seeded
from coursekit.data.block import CategoryBlock, MultiCategoryBlock, RegressionBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.items import ColReader, RandomSplitter, parent_label
from coursekit.interpret.interpretation import ClassificationInterpretation
from coursekit.text import corpus as corpus_module
from coursekit.text.block import TextBlock
from coursekit.text.corpus import cached_texts, read_document, tokenize_texts
from coursekit.text.data import TextDataLoaders, get_text_files
from coursekit.text.padding import LengthSampler
from coursekit.text.stream import LMDataLoader
from coursekit.text.tokens import SPECIALS, CharTokenizer, SubwordTokenizer, Tokenizer, WordTokenizer, clean_html
from coursekit.text.vocab import Numericalize, make_vocab
from coursekit.training.learner import Learner

SCRAPS = ["very", "Very", "VERY", "vErY", "sooo", "it's", "O'Neil", "xxbos", "xxunk", "3.5", "1,000", "...", "!!", "\n", "(", ")", " ", "oo", "O", "'s", "_", "<br />",
          "&amp;", "ſ", "İ", "ẞ", "ǅ", "\u0301", "\u200d", "👍🏽", "🇩🇪", "हिन्दी", "العربية", "שלום", "中文", "\u2028", "\t", "²", "٣", "”"]
TEXTS = st.one_of(st.text(max_size=60), st.text(alphabet="abAB oO.,'’!_-(<>&;3\n\u0301\u200d👍🏽İßsS", max_size=60),
                  st.lists(st.sampled_from(SCRAPS), max_size=12).map(" ".join), st.lists(st.sampled_from(SCRAPS), max_size=12).map("".join))


# ------------------------------------------------------------------------------------------------- tokenizers


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_words_written_as_a_text_are_the_same_words(text: str) -> None:
    for tokenizer in (WordTokenizer(), Tokenizer()):
        tokens = tokenizer(text)
        assert tokenizer(tokenizer.join(tokens)) == tokens
        assert all(t and (t in ("\n", "\n\n") or not any(c.isspace() for c in t)) for t in tokens)


@settings(max_examples=80, deadline=None)
@given(TEXTS)
def test_words_keep_every_character_but_blanks_and_mixed_case(text: str) -> None:
    kept = Counter(c for c in WordTokenizer().join(WordTokenizer()(text)).casefold() if not c.isspace())
    assert kept == Counter(c for c in text.casefold() if not c.isspace())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="abcdefgh", min_size=1, max_size=6).filter(lambda w: not re.search(r"(.)\1\1", w)), min_size=1, max_size=12), st.data())
def test_plain_sentences_are_kept_exactly(words: list[str], data: st.DataObject) -> None:
    words = [getattr(w, data.draw(st.sampled_from(["lower", "capitalize", "upper"])))() for w in words]
    text = " ".join(words) + data.draw(st.sampled_from([".", "!", "?", ""]))
    assert WordTokenizer().join(WordTokenizer()(text)) == text


PIECES = SubwordTokenizer(400)
PIECES.setup(["The cat and the hat. xxbos xxpad", "Über den Dächern, 3.50 €", "العربية हिन्दी 👍"] * 20)


@settings(max_examples=80, deadline=None)
@given(TEXTS)
def test_characters_and_pieces_keep_everything(text: str) -> None:
    for tok in (CharTokenizer(), PIECES):
        assert tok.join(tok(text)) == text
        whole = Tokenizer(tok, html=False)
        assert whole.join(whole(text)) == text
        assert not set(tok(text)) & set(SPECIALS), "a word in a text was taken for a special token"
    assert set(PIECES(text)) <= set(PIECES.vocab)


@pytest.mark.parametrize("text, tokens", [
    ("I LIKED It", "xxmaj i xxup liked xxmaj it"), ("iPhone", "iphone"), ("sooo!!!!", "s xxrep 3 o xxrep 4 !"), ("ha ha ha ha", "xxwrep 4 ha"),
    ("Ha Ha Ha", "xxwrep 3 xxmaj ha"), ("It's 3.5, isn't it?", "xxmaj it 's 3.5 , isn 't it ?"), ("1000 1,000 2nd", "1000 1,000 2nd"), ("O'Neil", "xxmaj o ' xxmaj neil"),
    ("snake_case _x_", "snake_case _ x_"), ("naïve cafe\u0301", "naïve cafe\u0301"), ("שָׁלוֹם עולם", "שָׁלוֹם עולם"), ("👩‍👩‍👧 🇩🇪🇫🇷 1️⃣", "👩‍👩‍👧 🇩🇪 🇫🇷 1 ️⃣"), ("xxbos XXPAD", "xx bos xxup xx xxup pad")])  # fmt: skip
def test_words(text: str, tokens: str) -> None:
    assert WordTokenizer()(text) == tokens.split(" ")


def test_html() -> None:
    assert clean_html("One.<br /><br />Two <i>three</i> &quot;4&quot; <BR>5 < 6") == 'One.\n\nTwo three "4" \n5 < 6'
    assert Tokenizer()("a<br />b")[1:] == ["a", "\n", "b"] and Tokenizer(html=False)("a<br />b")[2] == "<"
    assert clean_html("<b" * 100_000).startswith("<b")  # in linear time


def test_a_number_that_python_does_not_read() -> None:
    assert clean_html("a &#" + "1" * 5_000 + "; b &#65; &#" + "9" * 10 + ";") == "a \ufffd b A \ufffd"


def test_repeated_words_have_a_limit() -> None:
    assert len(WordTokenizer().join(["xxwrep", "9999", "a" * 10**6] * 3)) < 7e6
    assert WordTokenizer().join(["xxrep", "9999", "!"]) == "!" * 9999


def test_columns_are_marked() -> None:
    assert Tokenizer()(["Title", "Text"]) == ["xxbos", "xxfld", "1", "xxmaj", "title", "xxfld", "2", "xxmaj", "text"]


def test_vocabulary() -> None:
    assert make_vocab(Counter(the=5, cat=3, ant=3, emu=1), min_freq=2, max_vocab=11) == [*SPECIALS, "the", "ant"]
    num = Numericalize(min_freq=1).setup([["xxbos", "the", "cat"]])
    assert num.decode(num(["the", "dog"])) == ["the", "xxunk"] and num(["the"]).dtype == torch.int64
    for bad, fact in ((["neg", "pos"], "'neg'"), ("abc", "abc"), ([*SPECIALS, "a", "a"], "'a'"), (SPECIALS[::-1], "xxmaj")):
        with raises(ValueError, "Numericalize", fact):
            Numericalize(bad)


# -------------------------------------------------------------------------------------------------------- streams


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any), st.integers(1, 9), st.integers(1, 12), st.booleans(), st.integers(0, 3))
def test_a_stream_has_every_token_once_in_order(sizes: list[int], bs: int, seq_len: int, shuffle: bool, epoch: int) -> None:
    numbers = iter(range(100, 100_000))
    texts = [[next(numbers) for _ in range(n)] for n in sizes]
    dl = LMDataLoader(texts, bs=bs, seq_len=seq_len, shuffle=shuffle, seed=3, device="cpu")
    for _ in range(epoch):
        list(dl)
    batches = list(dl)
    assert len(batches) == len(dl) and all(b.x.shape == b.y.shape and b.x.shape[1] == seq_len for b in batches[:-1]) and batches[-1].x.shape[1] <= seq_len
    assert len({len(b.x) for b in batches}) == 1
    x, y = (torch.cat([getattr(b, side) for b in batches], 1) for side in "xy")  # row i continues row i
    n = sum(sizes)
    if x.numel() == n - 1:  # a single row: the last token is a target only, as nothing follows it
        x, y = torch.cat([x, y[:, -1:]], 1), torch.cat([y, torch.tensor([[-100]])], 1)
    stream = x.flatten()[:n].tolist()
    assert sorted(stream) == sorted(t for text in texts for t in text)  # every token once
    assert x.flatten()[n:].eq(1).all()
    assert y.flatten()[: n - 1].tolist() == stream[1:] and y.flatten()[n - 1:].eq(-100).all()
    order = [text for text in texts if text]  # whole texts behind each other
    if shuffle:
        order.sort(key=lambda text: stream.index(text[0]))
    assert stream == [t for text in order for t in text]


def test_texts_come_in_another_order_in_each_training_epoch_only() -> None:
    texts = [[k] * 3 for k in range(50)]
    train, valid = (LMDataLoader(texts, bs=1, seq_len=150, shuffle=s, seed=1, device="cpu") for s in (True, False))
    a, b = (next(iter(train)).x.tolist() for _ in range(2))
    assert a != b and set(a[0]) == set(b[0]) == set(range(50))
    assert next(iter(valid)).x.tolist() == next(iter(valid)).x.tolist() == [[k for k in range(50) for _ in range(3)][:-1]]
    again = LMDataLoader(texts, bs=1, seq_len=150, shuffle=True, seed=1, device="cpu")
    assert next(iter(again)).x.tolist() == a
    assert [x.x.tolist() for x in again.starting_at(0)] == [b]


def test_a_stream_can_begin_in_the_middle() -> None:
    dl = LMDataLoader([list(range(100))], bs=4, seq_len=5, device="cpu")
    assert [b.x.tolist() for b in dl.starting_at(3)] == [b.x.tolist() for b in dl][3:]


# -------------------------------------------------------------------------------------------------------- batches


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=200), st.integers(1, 16), st.booleans(), st.booleans(), st.integers(0, 3))
def test_batches_by_length_have_every_text_once(lengths: list[int], bs: int, shuffle: bool, drop_last: bool, epoch: int) -> None:
    sampler = LengthSampler(np.array(lengths), bs=bs, shuffle=shuffle, drop_last=drop_last, seed=5)
    sampler.set_epoch(epoch)
    batches = [b.tolist() for b in sampler]
    rows = [i for b in batches for i in b]
    assert len(batches) == len(sampler) and len(set(rows)) == len(rows) and all(len(b) <= bs for b in batches)
    assert len(rows) == (len(lengths) // bs * bs if drop_last else len(lengths))
    if not shuffle:
        assert [lengths[i] for i in rows] == sorted(lengths, reverse=True)[:len(rows)]


def reviews(n: int = 200, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 2, n)
    words = (["awful", "bad", "boring", "the", "a", "film"], ["great", "good", "fine", "the", "a", "film"])
    return pd.DataFrame({"text": [f"number {i} " + " ".join(rng.choice(words[k], rng.integers(1, 60))) for i, k in enumerate(kinds)], "label": np.where(kinds, "pos", "neg")})


class Bag(nn.Module):
    "The mean of the tokens' vectors, and a linear layer."

    def __init__(self, n_tokens: int, n_out: int):
        super().__init__()
        self.table, self.head = nn.Embedding(n_tokens, 8), nn.Linear(8, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        here = (x != 1)[..., None]
        return self.head((self.table(x) * here).sum(1) / here.sum(1).clamp(min=1))


@pytest.fixture(scope="module")
def learn() -> Learner:
    dls = TextDataLoaders.from_df(reviews(), bs=8, seed=0, device="cpu")
    with seeded(0):
        learner = Learner(dls, Bag(len(dls.text_vocab), 2), lr=1e-2, seed=0)
    learner.progress = False
    learner.fit_one_cycle(2)
    return learner


def test_a_batch_is_what_its_texts_say(learn: Learner) -> None:
    ds, block = learn.dls.train_ds, learn.dls.train.blocks[0]
    seen: Counter = Counter()
    for rows in learn.dls.train.keys:
        x, y = ds.__getitems__(rows)
        for i, row, target in zip(rows.tolist(), x, y):
            seen[i] += 1
            ids = block.encode(ds.items[i])
            assert row[:len(ids)].tolist() == ids.tolist() and row[len(ids):].eq(1).all() and (len(ids) == 0 or ids[0] == 2)
            assert int(target) == ("bad" in ds.items[i] or "awful" in ds.items[i] or "boring" in ds.items[i]) ^ 1 or not {"great", "good", "fine"} & set(ds.items[i].split())
    assert set(seen.values()) == {1}
    sizes = [b.x.shape[1] for b in learn.dls.valid]
    assert sizes == sorted(sizes, reverse=True)
    padding = sum((b.x == 1).sum().item() for b in learn.dls.train) / sum(b.x.numel() for b in learn.dls.train)
    assert padding < 0.1


def test_row_i_is_item_i(learn: Learner) -> None:
    """Batches are sorted by length; predictions are not, whoever asks for them."""
    valid = learn.dls.valid_ds
    preds, targs = learn.get_preds()  # those kept from the last validation
    alone = torch.stack([learn.predict(text).probabilities for text in valid.items])
    torch.testing.assert_close(preds, alone)
    labels = dict(zip(reviews().text, reviews().label))
    assert [learn.dls.vocab[i] for i in targs.tolist()] == [labels[text] for text in valid.items]
    texts = list(learn.dls.train_ds.items)
    for found in (learn.get_preds(ds_idx=0), learn.get_preds(learn.dls.test_dl(texts)), learn.get_preds(learn.dls.test_dl(pd.DataFrame({"text": texts}))),
                  learn.get_preds(learn.dls.test_dl(texts, bs=3))):
        torch.testing.assert_close(found.preds[7], learn.predict(texts[7]).probabilities)
    found = learn.get_preds(learn.dls.test_dl(reviews()[:30], with_labels=True), with_loss=True, with_decoded=True)
    assert [learn.dls.vocab[i] for i in found.targs.tolist()] == reviews().label[:30].tolist()
    torch.testing.assert_close(found.losses, -found.preds.gather(1, found.targs[:, None])[:, 0].log(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(learn.tta(n=1).preds, preds)
    interp = ClassificationInterpretation.from_learner(learn)
    torch.testing.assert_close(interp.preds, preds)
    worst = int(interp.top_losses(1)[1])
    assert interp.item(worst) == valid.items[worst]
    from coursekit.interpret.embeddings import embeddings
    torch.testing.assert_close(embeddings(learn)[5], learn.model.table(valid[5][0]).mean(0).detach())


def test_shown_texts_can_be_read(learn: Learner, capsys: pytest.CaptureFixture) -> None:
    learn.dls.show_batch(max_n=2)
    learn.show_results(max_n=2)
    lm = TextDataLoaders.from_df(reviews(), is_lm=True, seq_len=9, bs=4, seed=0, device="cpu")
    lm.show_batch(max_n=2, train=False)
    shown = capsys.readouterr().out
    assert "xx" not in shown.replace("xxunk", "") and all(word in shown for word in ("text", "target", "predicted", "next tokens", "film", "neg"))
    assert "160 texts" in repr(learn.dls.train_ds) and "TextDataset" in repr(learn.dls.train_ds) and "StreamDataset" in repr(lm.train_ds)


# ------------------------------------------------------------------------------------------------- how data are made


def folder_of_reviews(root: Path, *, sides: tuple = ("train", "valid"), n: int = 20) -> Path:
    for side in sides:
        for label in ("neg", "pos"):
            (root / side / label).mkdir(parents=True)
            for k in range(n):
                (root / side / label / f"{k}.txt").write_text(f"This {side} review number {k} is {label}.<br />Good bye.", encoding="utf-8")
    return root


def test_the_ways_to_make_them_agree(tmp_path: Path) -> None:
    root = folder_of_reviews(tmp_path / "data", sides=("train", "test"))
    (root / "unsup").mkdir()
    (root / "unsup" / "0.txt").write_text("Nobody knows what this one is")
    lm = TextDataLoaders.from_folder(root, is_lm=True, valid_pct=0.1, seed=0, bs=4, seq_len=7, device="cpu")
    assert len(lm.train_ds.items) + len(lm.valid_ds.items) == 81 and lm.vocab == lm.text_vocab and lm.c == len(lm.vocab)
    dls = TextDataLoaders.from_folder(root, valid="test", text_vocab=lm.vocab, bs=4, seed=0, device="cpu")
    assert dls.vocab == ["neg", "pos"] and dls.text_vocab == lm.vocab and (len(dls.train_ds), len(dls.valid_ds)) == (40, 40)
    assert [parent_label(f) for f in dls.valid_ds.items] == [dls.vocab[i] for i in dls.valid_ds.ys[0].tolist()]

    expected = list(dls.train)
    files = get_text_files(root, folders=["train", "test"])
    df = pd.DataFrame({"review": [f.read_text() for f in files], "kind": map(parent_label, files), "split": [f.parent.parent.name for f in files]})
    options = dict(text_vocab=lm.vocab, bs=4, seed=0, device="cpu")
    (tmp_path / "t.csv").write_text(df.to_csv(index=False), encoding="utf-8")
    block = DataBlock(blocks=(TextBlock.from_folder(root, vocab=lm.vocab), CategoryBlock), get_items=lambda p: get_text_files(p, folders=["train", "test"]), get_y=parent_label,
                      splitter=lambda items: ([i for i, f in enumerate(items) if "/train/" in f.as_posix()], [i for i, f in enumerate(items) if "/test/" in f.as_posix()]))
    for other in (TextDataLoaders.from_df(df, valid_col="split", label_col="kind", **options), block.dataloaders(root, bs=4, seed=0, device="cpu"),
                  TextDataLoaders.from_csv(tmp_path / "t.csv", text_col="review", label_col=1, valid_col=2, **options)):
        assert isinstance(other, TextDataLoaders)
        for a, b in zip(expected, list(other.train), strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def test_other_targets_and_several_columns() -> None:
    df = reviews(40).assign(title="The title", tags=["a;b", "b"] * 20, stars=np.arange(40) / 10)
    several = TextDataLoaders.from_df(df, text_col=["title", "text"], label_col="tags", label_delim=";", bs=4, seed=0, device="cpu")
    assert isinstance(several.targets[0], MultiCategoryBlock) and several.vocab == ["a", "b"]
    assert several.train.blocks[0].decode(several.train_ds[0][0]).startswith("1 The title 2 ")
    test = several.test_dl(df[:3])
    assert len(next(iter(test)).x) == 3
    numbers = TextDataLoaders.from_df(df, label_col="stars", y_block=RegressionBlock, bs=4, seed=0, device="cpu")
    assert numbers.one_batch().y.dtype == torch.float32


def test_pieces_and_characters_in_loaders() -> None:
    for tok, html in ((CharTokenizer(), True), (SubwordTokenizer(300), True), (CharTokenizer, True)):
        lm = TextDataLoaders.from_df(reviews(), is_lm=True, tok=tok, bs=4, seq_len=20, seed=0, device="cpu")
        assert lm.vocab[:9] == SPECIALS and lm.train.blocks[0].tokenizer.html is html
        text = reviews().text[3]
        assert lm.train.blocks[0].decode(lm.train.blocks[0].encode(text)) == text
    with raises(ValueError, "SubwordTokenizer", "vocab_sz", 100):
        SubwordTokenizer(100)


# --------------------------------------------------------------------------------------------------- tokens on disk


@pytest.fixture
def fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def small_is_large(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of ten kilobytes are kept on disk, as otherwise those of a megabyte are."""
    real = corpus_module.text_marks
    monkeypatch.setattr(corpus_module, "text_marks", lambda sources: (real(sources)[0], 100 * real(sources)[1]))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    "How many texts were cut each time."
    calls: list[int] = []
    real = corpus_module.tokenize_texts
    monkeypatch.setattr(corpus_module, "tokenize_texts", lambda sources, tokenizer, **o: calls.append(len(sources)) or real(sources, tokenizer, **o))
    return calls


def long_files(root: Path, times: int = 20) -> list[Path]:
    root.mkdir()
    for k in range(30):
        (root / f"{k:02}.txt").write_text(f"Text {k} begins here. " + f"And {k} goes on for long... " * times)
    return get_text_files(root)


def entries() -> list[Path]:
    return sorted(p for p in (coursekit_home() / "cache" / "tokens").glob("*"))


def test_texts_are_cut_once(tmp_path: Path, small_is_large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    files, calls = long_files(tmp_path / "data"), counted(monkeypatch)
    before = sorted((tmp_path / "data").rglob("*"))
    first, docs = cached_texts(files, Tokenizer())
    again, some = cached_texts(files[5:], Tokenizer())  # texts of a set that was cut
    assert calls == [30] and isinstance(again.ids, np.memmap) and again.ids.dtype == np.int32
    plain = tokenize_texts(files, Tokenizer())
    assert all(first.tokens(docs[i]) == plain.tokens(i) for i in (0, 7, 29)) and all(again.tokens(some[i - 5]) == plain.tokens(i) for i in (5, 7, 29))
    assert sorted((tmp_path / "data").rglob("*")) == before, "the dataset was changed"
    assert (entries()[0] / "ids.npy").stat().st_size == 4 * len(plain.ids) + 128

    cached_texts(files, Tokenizer(html=False))
    cached_texts(files, Tokenizer(CharTokenizer()))
    assert calls == [30, 30, 30] and len(entries()) == 3, "another tokenizer"
    files[3].write_text("Text 3 is another one. " + "It goes on. " * 40)
    changed, docs = cached_texts(files, Tokenizer())
    assert calls[3:] == [30] and "another" in changed.tokens(docs[3])
    texts = [f.read_text() for f in files]
    for _ in range(2):
        cached_texts(texts, Tokenizer())
    assert calls[4:] == [30]
    cached_texts(texts[:2], Tokenizer())
    assert calls[5:] == [2], "a few texts are not worth a look at the disk"


@pytest.mark.parametrize("name", ["ids.npy", "starts.npy", "marks.npy", "pieces.json", "meta.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_damaged_tokens_are_not_believed(tmp_path: Path, small_is_large: None, monkeypatch: pytest.MonkeyPatch, name: str, damage: str) -> None:
    files, calls = long_files(tmp_path / "data"), counted(monkeypatch)
    right = cached_texts(files, Tokenizer())[0]
    expected = [right.tokens(i) for i in range(30)]
    del right
    file = entries()[0] / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()
    if damage != "gone":
        file.write_bytes({"flip": bytes(data), "cut": bytes(data[:len(data) // 2]), "empty": b""}[damage])
    found, docs = cached_texts(files, Tokenizer())
    assert [found.tokens(i) for i in docs] == expected and calls == [30, 30]
    cached_texts(files, Tokenizer())
    assert calls == [30, 30], "the damaged ones were replaced"


@pytest.mark.parametrize("name, data", [("meta.json", b"[" * 100_000), ("marks.npy", b"PK\x03\x04 not an array"), ("starts.npy", None), ("pieces.json", b"[]")],
                         ids=["deep", "zip", "other lengths", "no pieces"])
def test_tokens_on_disk_of_a_stranger(tmp_path: Path, small_is_large: None, name: str, data: bytes | None) -> None:
    files = long_files(tmp_path / "data")
    right = cached_texts(files, Tokenizer())[0]
    expected = [right.tokens(i) for i in range(30)]
    del right
    file = entries()[0] / name
    file.unlink()
    if data is None:
        np.save(file, np.zeros(3, np.int64))
    else:
        file.write_bytes(data)
    if name != "meta.json":  # the hashes lie beside the files, so they are no protection
        hashes = json.loads((file.parent / "meta.json").read_text())
        (file.parent / "meta.json").write_text(json.dumps({**hashes, name: corpus_module._sha256(file)}))
    found, docs = cached_texts(files, Tokenizer())
    assert [found.tokens(i) for i in docs] == expected


def test_texts_to_predict_are_not_kept_on_disk(learn: Learner, fresh_home: Path) -> None:
    learn.predict("one word after another " * 60_000)
    assert not fresh_home.exists() or not entries()


def test_a_sub_word_model_that_setup_never_makes() -> None:
    tok = SubwordTokenizer(300)
    tok.setup(["some texts to learn from, and some more of them"] * 3)
    assert SubwordTokenizer(300, tok.model)("some") == tok("some")
    strange = {**json.loads(tok.model), "normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}}
    for model in (json.dumps(strange), "[]", "{}"):
        with raises(ValueError, "SubwordTokenizer", "setup"):
            SubwordTokenizer(300, model)


def test_a_tokenizer_of_ones_own_has_the_same_name_in_every_session() -> None:
    class Lines:
        pass

    assert repr(Tokenizer(Lines())) == repr(Tokenizer(Lines()))


def test_a_stream_of_one_row_ends_before_it_has_nothing_to_predict() -> None:
    dls = TextDataLoaders.from_df(pd.DataFrame({"text": ["a b c d e f g"] * 40}), text_col="text", is_lm=True, bs=1, val_bs=1, seq_len=7, valid_pct=0.2, seed=0)
    for dl in (dls.train, dls.valid):
        assert all((b.ys[0] >= 0).any() for b in dl)


def test_a_home_that_cannot_be_written_costs_only_time(tmp_path: Path, fresh_home: Path) -> None:
    files = long_files(tmp_path / "data", 1500)  # a megabyte
    fresh_home.mkdir()
    (fresh_home / "cache").write_text("a file, where a folder should be")
    with pytest.warns(UserWarning, match="cannot be kept"):
        found, _ = cached_texts(files, Tokenizer())
    assert len(found) == 30


def test_a_tokenizer_of_a_user_is_not_cached(tmp_path: Path, small_is_large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lines(CharTokenizer):
        pass

    files, calls = long_files(tmp_path / "data"), counted(monkeypatch)
    for _ in range(2):
        cached_texts(files, Tokenizer(Lines()))
    assert calls == [30, 30] and not entries()


def test_only_the_newest_sets_are_kept(small_is_large: None) -> None:
    for k in range(11):
        cached_texts([f"{k} " + "so it goes " * 1000], Tokenizer())
    assert len(entries()) == 8


def test_several_processes_make_the_same_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"Text {k}: " + f"word{k % 7} and Another{k % 5}!!! " * 20 for k in range(120)]
    real = corpus_module._chunks
    monkeypatch.setattr(corpus_module, "_chunks", lambda sources, size: real(sources, size // 100))
    one, two = (tokenize_texts(texts, Tokenizer(), workers=w) for w in (1, 2))
    assert one.pieces == two.pieces and np.array_equal(one.ids, two.ids) and np.array_equal(one.starts, two.starts)


# --------------------------------------------------------------------------------------------------------- bad input


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    root = folder_of_reviews(tmp_path)
    bad = root / "train" / "neg" / "3.txt"
    bad.write_bytes(b"A good start, then caf\xe9")
    with raises(ValueError, "3.txt", "UTF-8", "byte 22", "0xE9"):
        TextDataLoaders.from_folder(root)
    with raises(ValueError, "3.txt", "byte 22"):
        DataBlock(blocks=(TextBlock, CategoryBlock), get_items=get_text_files, get_y=parent_label).dataloaders(root)
    bad.write_bytes("\ufeffA byte order mark".encode())
    assert read_document(bad) == "A byte order mark"
    (root / "t.csv").write_bytes("text,label\ncaf\xe9,1\n".encode("latin-1"))
    with raises(ValueError, "t.csv", "byte 14"):
        TextDataLoaders.from_csv(root / "t.csv")


def test_empty_texts_are_texts() -> None:
    df = reviews(40)
    df.loc[::3, "text"] = ""
    dls = TextDataLoaders.from_df(df, bs=4, seed=0, device="cpu")
    assert all(b.x[:, 0].eq(2).all() for b in dls.train)
    lm = TextDataLoaders.from_df(df, is_lm=True, bs=4, seed=0, device="cpu")
    assert sum(b.x.numel() for b in lm.train) >= len(lm.train_ds)
    assert dls.train.blocks[0].encode("").tolist() == [2]
    nothing = pd.DataFrame({"text": ["", " "] * 10, "label": ["a", "b"] * 10})
    assert TextDataLoaders.from_df(nothing, bs=4, seed=0, device="cpu").one_batch().x.tolist() == [[2]] * 4


def test_a_column_with_gaps() -> None:
    df = reviews(40)
    df.loc[[5, 9], "text"] = None
    with pytest.warns(UserWarning, match="gaps") as said:
        dls = TextDataLoaders.from_df(df, bs=4, seed=0, device="cpu")
    assert len(said) == 1 and len(dls.train_ds) + len(dls.valid_ds) == 40
    says(said[0].message, "'text'", "2 gaps", "row 5", "dropna")
    df["text"] = np.nan
    with raises(ValueError, "'text'", "gaps"):
        TextDataLoaders.from_df(df)
    with raises(ValueError, "row 0", "'label'", "0.0", "astype(str)"):
        TextDataLoaders.from_df(pd.DataFrame({"label": np.arange(9.0), "y": ["a", "b", "c"] * 3}))
    missing = reviews(40)
    missing.loc[2, "label"] = None
    with raises(ValueError, "missing"):
        TextDataLoaders.from_df(missing)


def test_one_very_long_text() -> None:
    sentence = "The quick brown fox isn't here, but 3.5 DOGS are!\n"
    long = sentence * (5_000_000 // len(sentence))
    df = pd.concat([reviews(40), pd.DataFrame({"text": [long, long, "x" * 5_000_000, " " * 5_000_000, "(" * 5_000_000], "label": ["neg", "pos"] * 2 + ["neg"]})])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        dls = TextDataLoaders.from_df(df, bs=4, seed=1, device="cpu")
    assert 1 <= len(said) <= 2
    for w in said:
        says(w.message, "max_len=20,000")
    widths = [b.x.shape[1] for dl in (dls.train, dls.valid) for b in dl]
    assert max(widths) == 20_000 and sum(w > 100 for w in widths) <= 3
    lm = TextDataLoaders.from_df(df, is_lm=True, bs=16, seq_len=50, seed=1, device="cpu")
    assert len(lm.train_ds) + len(lm.valid_ds) > 2_600_000
    pieces = Tokenizer(PIECES)("x" * 500_000)
    assert Tokenizer(PIECES).join(pieces) == "x" * 500_000


def test_a_vocabulary_of_another_model(learn: Learner) -> None:
    with raises(ValueError, "TextBlock", "'neg'", "dls_lm.vocab"):
        TextDataLoaders.from_df(reviews(), text_vocab=["neg", "pos"])
    other = TextDataLoaders.from_df(reviews(50, seed=8).assign(text=lambda d: d.text + " unheard of"), bs=8, seed=0, device="cpu")
    with raises(ValueError, "inputs", "vocab", len(other.text_vocab), len(learn.dls.text_vocab), "new learner"):
        learn.dls = other
    chars = TextDataLoaders.from_df(reviews(), tok=CharTokenizer(), bs=8, seed=0, device="cpu")
    with raises(ValueError, "inputs", "tokenizer"):
        learn.dls = chars


def test_folders_and_columns_that_are_not_there(tmp_path: Path) -> None:
    root = folder_of_reviews(tmp_path)
    with raises(FileNotFoundError, "'test'", "valid"):
        TextDataLoaders.from_folder(root, valid="test")
    (tmp_path / "empty").mkdir()
    with raises(ValueError, ".txt", "empty"):
        TextDataLoaders.from_folder(tmp_path / "empty", valid_pct=0.2)
    with raises(ValueError, "'txt'", "'text'"):
        TextDataLoaders.from_df(reviews(), text_col="txt")
    with raises(ValueError, "validation"):
        TextDataLoaders.from_df(reviews(3), valid_pct=0.1)
    with raises(TypeError, "seq_length", "seq_len"):
        TextDataLoaders.from_df(reviews(), seq_length=5)
    with raises(ValueError, "seq_len", 0):
        TextDataLoaders.from_df(reviews(), seq_len=0)


def test_what_a_file_holds_is_enough(learn: Learner) -> None:
    """Tokenizer and vocabulary travel as JSON, and the learner from them predicts the same."""
    from coursekit.deploy.registry import from_spec, to_spec
    from coursekit.training.learner import serving_learner
    blocks = from_spec(json.loads(json.dumps(to_spec(learn.dls.train.blocks))))
    served = serving_learner(learn.model, blocks, 1, device="cpu")
    served.progress = False
    texts = ["good film", "", "awful awful AWFUL unheard of"]
    for text in texts:
        torch.testing.assert_close(served.predict(text).probabilities, learn.predict(text).probabilities)
    found = served.get_preds(served.dls.test_dl([(t, "pos") for t in texts], with_labels=True))
    assert found.targs.tolist() == [1, 1, 1]
    pieces = Tokenizer(PIECES)
    assert from_spec(json.loads(json.dumps(to_spec(pieces))))("the cat") == pieces("the cat")


def test_a_split_depends_on_its_seed_alone() -> None:
    a, b = (TextDataLoaders.from_df(reviews(), bs=4, seed=7, device="cpu") for _ in range(2))
    assert list(a.valid_ds.items) == list(b.valid_ds.items) == [reviews().text[i] for i in RandomSplitter(0.2, seed=7)(range(200))[1]]
    for x, y in zip(a.train, b.train):
        assert torch.equal(x.x, y.x)
    assert ColReader("text")(reviews().iloc[3]) == reviews().text[3]


# ----------------------------------------------------------------------------------------------------- command line


def test_train_and_predict_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from coursekit.cli.main import main

    def run(*args: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, list(args))
        return done.exit_code, done.output

    monkeypatch.chdir(tmp_path)
    reviews().rename(columns={"text": "review"}).to_csv("reviews.csv", index=False)
    how = ("train", "reviews.csv", "--text", "review", "--target", "label")
    code, said = run(*how, "--dry-run")
    assert code == 0 and "200 rows" in said and not Path("model.ck").exists()
    code, said = run(*how, "--epochs", "2")
    assert code == 0 and "160 training texts, 40 for validation" in said and "wrote model.ck" in said, said
    Path("new.txt").write_text("a good film")
    code, said = run("predict", "model.ck", "reviews.csv", "new.txt", "--json")
    rows = [json.loads(line) for line in said.splitlines()]
    assert code == 0 and len(rows) == 201 and {r["prediction"] for r in rows} <= {"neg", "pos"} and rows[-1]["file"] == "new.txt" and len(rows[0]["top"]) == 2
    for args, facts in (((*how[:4], "--overwrite"), ("--target",)), ((*how, "--size", "64", "--overwrite"), ("--size",)), (("train", "reviews.csv", "--text", "reviw", "--target", "label", "--overwrite"), ("reviw", "'review'"))):
        code, said = run(*args)
        assert code and all(f in said for f in facts), said
    Path("other.csv").write_text("text,label\na,b\n")
    code, said = run("predict", "model.ck", "other.csv")
    assert code == 1 and "'review' does not exist" in said
