"""data.tables and whatever reads tables: `plan_data`, `ImageDataLoaders.from_csv` and `from_df`; and targets that could mean two things."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from coursekit.cli.main import main
from coursekit.data.block import CategoryBlock, MultiCategoryBlock, RegressionBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.items import ColReader, ColSplitter
from coursekit.vision.block import ImageBlock
from coursekit.vision.data import ImageDataLoaders
from coursekit.vision.plan import plan_data
from coursekit.vision.resize import Resize

NAMES = ["0.png", "1.png", "007.png", "20.png", "b c/ü.png", "x, y.png", "a;b.png", "NA.png"]
OPTIONS = {"item_tfms": Resize(8), "bs": 2, "num_workers": 0, "device": "cpu", "seed": 1}


def draw(root: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), (i, 3 * i % 256, 90)).save(root / name)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images with names of every kind, and 24 with plain ones."""
    return draw(tmp_path_factory.mktemp("photos"), [*NAMES, *(f"p{i}.png" for i in range(24))])


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    return draw(tmp_path, [f"p{i}.png" for i in range(24)])


class AnyClass(CategoryBlock):
    """Takes whatever split comes along: here only files and labels are compared."""

    def setup(self, values):
        self.vocab = ["a", "b"]

    def encode(self, value):
        return torch.tensor(0)


class AnyClasses(MultiCategoryBlock):
    def setup(self, values):
        self.vocab = ["a", "b"]

    def encode(self, value):
        return torch.zeros(2)


def pairs(found: object) -> dict[Path, object]:
    """File -> label, of a plan or of loaders."""
    if isinstance(found, ImageDataLoaders):
        rows = [(Path(ds.value(i, 0)), ds.value(i, 1)) for ds in (found.train_ds, found.valid_ds) for i in range(len(ds))]
    else:
        rows = [(i.file, i.label) for i in found.items]
    return {file.resolve(): label if isinstance(label, (str, int, float)) else tuple(label) for file, label in rows}


# ------------------------------------------------------------------------------------------------------- one reader


words = st.one_of(st.sampled_from(["NA", "None", "null", "nan", "007", "20", "1.0", "", " ", " cat ", "a;b;", "a|b", 'a "b" c', '"', "x, y", "TRUE", "dog"]),
                  st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff"), max_size=6))
ways = st.sampled_from([str, lambda n: "./" + n, lambda n: n.replace("/", "\\"), lambda n: f" {n} ", None])  # None: the absolute path


@st.composite
def tables(draw):
    """Rows of (file, how it is written, label, note), and how the table is saved."""
    rows = [("0.png", str, "cat", "x"), ("1.png", str, "dog", "y")]  # two that are always usable, so that both sides have an item
    rows += draw(st.lists(st.one_of(st.tuples(st.sampled_from(NAMES[2:]), ways, words, words), st.tuples(st.just(""), st.just(str), words, words)), max_size=6))
    return rows, {"order": draw(st.permutations(range(3))), "head": draw(st.booleans()), "mark": draw(st.sampled_from(",;\t|")),
                  "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])), "end": draw(st.sampled_from(["\n", "\r\n", "\r"])),
                  "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"])), "delim": draw(st.sampled_from(["", ";", "|", ",", " "]))}


def saved(root: Path, rows: list, how: dict) -> bytes:
    """A table as a spreadsheet writes it."""
    text = io.StringIO(newline="")
    write = csv.writer(text, delimiter=how["mark"], quoting=how["quoting"], lineterminator=how["end"])
    cells = [(str(root / name) if way is None and name else (way or str)(name), label, note) for name, way, label, note in rows]
    write.writerows([row[i] for i in how["order"]] for row in [("file", "label", "note")] * how["head"] + cells)
    return text.getvalue().encode(how["encoding"], errors="surrogateescape")


def is_utf8(data: bytes) -> bool:
    try:
        return bool(data.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def meant(root: Path, rows: list, delim: str) -> dict[Path, object]:
    """What the table says: rows without a name or a label don't count, images with two different labels neither."""
    found = defaultdict(list)
    for name, _, label, _ in rows:
        several = tuple(dict.fromkeys(p.strip() for p in label.split(delim) if p.strip())) if delim else label.strip()
        if name and several != "":
            found[(root / name).resolve()].append(several)
    same = {file: {frozenset(v) if delim else v for v in labels} for file, labels in found.items()}
    return {file: labels[-1] for file, labels in found.items() if len(same[file]) == 1}


@settings(max_examples=100, deadline=None)
@given(tables())
def test_every_road_reads_what_a_spreadsheet_saved(photos: Path, table: tuple[list, dict]) -> None:
    """The same (file, label) pairs from `plan_data` and from `from_csv`, and they are those that were written."""
    rows, how = table
    try:
        data = saved(photos, rows, how)
    except UnicodeEncodeError:
        assume(False)
    assume(how["encoding"] != "cp1252" or data.isascii() or not is_utf8(data))  # some bytes mean something in both
    source = photos / "table.csv"
    source.write_bytes(data)
    at = how["order"].index
    columns = {"fn_col": "file", "label_col": "label"} if how["head"] else {"fn_col": at(0), "label_col": at(1)}
    block = AnyClasses() if how["delim"] else AnyClass()
    with contextlib.redirect_stdout(io.StringIO()):
        dls = ImageDataLoaders.from_csv(photos, "table.csv", label_delim=how["delim"], y_block=block, valid_pct=0.5, **columns, **OPTIONS)
    plan = plan_data(source, label_delim=how["delim"], valid_pct=0.5, **columns)
    source.unlink()
    got = [{file: frozenset(label) if how["delim"] else label for file, label in p.items()} for p in (pairs(dls), pairs(plan), meant(photos, rows, how["delim"]))]
    assert got[0] == got[1] == got[2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_encodings_and_marks(kinds: Path, encoding: str, mark: str) -> None:
    rows = [f"p{i}.png{mark}{'Kätzchen' if i % 2 else 'Welpe, alt'}" for i in range(24)]
    if mark == ",":
        rows = [r.replace("Welpe, alt", '"Welpe, alt"') for r in rows]
    (kinds / "t.csv").write_bytes("\n".join([f"Datei{mark}Art", *rows]).encode(encoding))
    want = {(kinds / f"p{i}.png").resolve(): "Kätzchen" if i % 2 else "Welpe, alt" for i in range(24)}
    assert pairs(ImageDataLoaders.from_csv(kinds, "t.csv", **OPTIONS)) == want
    assert pairs(plan_data(kinds / "t.csv")) == pairs(plan_data(kinds)) == want


@pytest.mark.parametrize(("text", "blank"), [("p{i}.png {c}\n", False), ("  my p{i}.png   {c}\n", True), ("p{i}.png|{c}\n", False), ('"my p{i}.png" {c}\n', True)])
def test_text_lists(tmp_path: Path, text: str, blank: bool) -> None:
    """A path and a label per line, in a file of its own and in the folder of the images."""
    names = [f"{'my ' * blank}p{i}.png" for i in range(24)]
    draw(tmp_path, names)
    (tmp_path / "list.txt").write_text("# made by hand\n" * blank + "".join(text.format(i=i, c=i % 3) for i in range(24)))
    want = {(tmp_path / n).resolve(): str(i % 3) for i, n in enumerate(names)}
    assert pairs(plan_data(tmp_path / "list.txt")) == pairs(plan_data(tmp_path)) == want
    assert pairs(ImageDataLoaders.from_csv(tmp_path, "list.txt", **OPTIONS)) == want


def test_a_list_that_numbers_the_images_labels_none(tmp_path: Path) -> None:
    draw(tmp_path, [f"{c}/{c}_{i}.png" for c in ("cat", "dog") for i in range(6)])
    (tmp_path / "images.txt").write_text("".join(f"{k} {f.relative_to(tmp_path).as_posix()}\n" for k, f in enumerate(sorted(tmp_path.rglob("*.png")))))
    assert plan_data(tmp_path).classes == ["cat", "dog"]


def test_a_data_frame_is_read_as_it_is(photos: Path) -> None:
    """Zeros and whole numbers of names and labels stay, blanks go, and only what is missing is missing."""
    table = pd.DataFrame({"file": [20.0, 0, 1, None, "007 "], "label": ["NA", " None ", "007", "cat", None]})
    dls = ImageDataLoaders.from_df(table, photos, suff=".png", valid_pct=0.4, y_block=AnyClass(), **OPTIONS)
    assert pairs(dls) == {photos / "20.png": "NA", photos / "0.png": "None", photos / "1.png": "007"}
    numbers = pd.DataFrame({"file": [20.0, 0.0, 1.0], "label": [3.0, 4.0, 3.0]})  # pandas makes one kind of all cells of such a row
    assert pairs(ImageDataLoaders.from_df(numbers, photos, suff=".png", valid_pct=0.4, y_block=AnyClass(), **OPTIONS)) == {
        photos / "20.png": 3, photos / "0.png": 4, photos / "1.png": 3}


def test_what_is_left_out_is_said(photos: Path, capsys: pytest.CaptureFixture) -> None:
    table = pd.DataFrame({"file": ["0.png", "1.png", "20.png", "./20.png", "NA.png", ""], "label": ["cat", "dog", "cat", "dog", "", "cat"]})
    dls = ImageDataLoaders.from_df(table, photos, valid_pct=0.5, y_block=AnyClass(), **OPTIONS)
    said = capsys.readouterr().out
    assert len(dls.train_ds) + len(dls.valid_ds) == 2
    for words in ("1 row without a label", "1 row without a file name", "1 image with different labels, such as 20.png"):
        assert words in said
    twice = pd.DataFrame({"file": ["0.png", "1.png"] * 2, "score": [0.5, 1.5, 0.25, 2.5]})  # two measurements contradict nothing
    assert len(ImageDataLoaders.from_df(twice, photos, valid_pct=0.5, **OPTIONS).train_ds) == 2


def test_absolute_paths_and_backslashes(photos: Path, tmp_path: Path) -> None:
    draw(tmp_path, ["else/where.png"])
    table = pd.DataFrame({"file": [str(tmp_path / "else/where.png"), "b c\\ü.png", tmp_path / "else" / ".." / "else" / "where.png"], "label": ["a", "b", "a"]})
    files = pairs(ImageDataLoaders.from_df(table, photos, valid_pct=0.4, y_block=AnyClass(), **OPTIONS))
    assert set(files) == {(tmp_path / "else/where.png").resolve(), (photos / "b c/ü.png").resolve()}
    (photos / "t.csv").write_text(f"file,label\n{tmp_path / 'else/where.png'},a\n0.png,a\n1.png,b\n")
    plan = plan_data(photos / "t.csv")  # a table is data: its names do not lead out of the folder
    (photos / "t.csv").unlink()
    assert set(pairs(plan)) == {photos / "0.png", photos / "1.png"} and len(plan.layout.missing) == 1


def test_a_label_cell_that_looks_like_a_list(kinds: Path, capsys: pytest.CaptureFixture) -> None:
    table = pd.DataFrame({"file": [f"p{i}.png" for i in range(24)], "tags": ["cat|dog", "dog"] * 12})
    ImageDataLoaders.from_df(table, kinds, **OPTIONS)
    assert "label_delim='|'" in capsys.readouterr().out
    assert ImageDataLoaders.from_df(table, kinds, label_delim="|", **OPTIONS).vocab == ["cat", "dog"]


def test_rows_with_more_cells_than_names(kinds: Path) -> None:
    """Somebody forgot the quotes: pandas would take the first column for names of rows."""
    (kinds / "t.csv").write_text("file,labels\n" + "".join(f"p{i}.png,cat,dog\n" for i in range(24)))
    for read in (lambda: plan_data(kinds / "t.csv"), lambda: ImageDataLoaders.from_csv(kinds, "t.csv", **OPTIONS)):
        with pytest.raises(ValueError, match=r"3 cells.*2 column names.*quotes"):
            read()


# ------------------------------------------------------------------------------------------------------------ sides


@pytest.mark.parametrize(("valid", "train"), [("valid", "train"), ("Val", "Train"), ("True", "False"), ("1", "0"), ("1.0", ""), ("WAHR", "FALSCH"), ("test", "train")])
def test_a_column_says_what_validates(kinds: Path, valid: str, train: str) -> None:
    rows = "".join(f"p{i}.png,{'cat' if i % 2 else 'dog'},{valid if i < 6 else train}\n" for i in range(24))
    (kinds / "t.csv").write_text("file,label,part\n" + rows)
    dls = ImageDataLoaders.from_csv(kinds, "t.csv", valid_col="part", **OPTIONS)
    plan = plan_data(kinds / "t.csv", valid_col="part")
    want = {kinds / f"p{i}.png" for i in range(6)}
    assert {Path(dls.valid_ds.value(i, 0)) for i in range(len(dls.valid_ds))} == {i.file for i in plan.items if i.valid} == want
    assert len(dls.train_ds) == 18


def test_a_column_that_says_something_else(kinds: Path) -> None:
    """The error names the value, and its advice makes those rows the validation set."""
    table = pd.DataFrame({"file": [f"p{i}.png" for i in range(24)], "label": ["cat", "dog"] * 12, "fold": ["rest"] * 18 + ["holdout"] * 6})
    table.to_csv(kinds / "t.csv", index=False)
    for read in (lambda: ImageDataLoaders.from_df(table, kinds, valid_col="fold", **OPTIONS), lambda: plan_data(kinds / "t.csv", valid_col="fold"),
                 lambda: ColSplitter("fold")(table)):
        with pytest.raises(ValueError, match=r"'fold' has 'holdout'.*df\['fold'\] == 'holdout'"):
            read()
    train, valid = ColSplitter("is_valid")(table.assign(is_valid=table["fold"] == "holdout"))
    assert (len(train), valid) == (18, list(range(18, 24)))
    with pytest.raises(ValueError, match="'fold' is empty in row 2"):
        ColSplitter("fold")(table.assign(fold=["train", "valid", None, *["train"] * 21]))


# ---------------------------------------------------------------------------------------------------------- options


def test_columns_can_be_named(kinds: Path) -> None:
    rows = "".join(f"{i},p{i}.png,{'old' if i % 3 else 'new'},{'cat;' if i % 2 else 'dog;cat'},{int(i < 4)}\n" for i in range(24))
    (kinds / "t.csv").write_text("no,file,label,tags,held\n" + rows)
    for source in (kinds / "t.csv", kinds):
        plan = plan_data(source, fn_col="file", label_col="tags", label_delim=";", valid_col="held")
        assert plan.classes == ["cat", "dog"] and plan.layout.multi and sum(i.valid for i in plan.items) == 4
    assert plan_data(kinds / "t.csv", label_col=3, label_delim="").classes == ["cat;", "dog;cat"]
    assert ImageDataLoaders.from_path(kinds / "t.csv", label_col="tags", label_delim=";", size=8, bs=2, num_workers=0).vocab == ["cat", "dog"]
    for options in ({"label_col": "tgas"}, {"fn_col": "tgas"}, {"valid_col": "tgas"}, {"label_col": ["label", "tgas"]}):
        with pytest.raises(ValueError, match=r"plan_data: column 'tgas' does not exist; the columns are \['no', 'file'.*did you mean 'tags'"):
            plan_data(kinds / "t.csv", **options)
    with pytest.raises(ValueError, match="'tgas'.*did you mean 'tags'"):
        ImageDataLoaders.from_csv(kinds, "t.csv", fn_col="file", label_col="tgas", **OPTIONS)
    with pytest.raises(ValueError, match="does not list any image"):
        plan_data(kinds / "t.csv", fn_col="label")
    (kinds / "t.csv").unlink()
    for options, words in (({"label_col": "tags"}, "label_col='tags' is for a table.*0 tables"), ({"label_col": "tags", "pat": "(p)"}, "pat=.*label_col")):
        with pytest.raises(ValueError, match=words):
            plan_data(kinds, **options)


def test_columns_on_the_command_line(kinds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kinds)
    Path("t.csv").write_text("file,cat,dog,tags,part\n" + "".join(f"p{i}.png,{i % 2},{int(i < 20)},a b,{'val' if i < 5 else 'train'}\n" for i in range(24)))

    def said(*options: str) -> str:
        return " ".join(CliRunner().invoke(main, ["train", "t.csv", "--dry-run", *options]).output.split())

    assert "2: dog 20, cat 12" in said("--label-col", "cat", "--label-col", "dog")
    assert "2: a 24, b 24" in said("--label-col", "3", "--label-delim", " ", "--fn-col", "file") and "5 for validation" in said("--label-col", "dog", "--valid-col", "part")
    assert "only one class, a b" in said("--label-col", "tags", "--label-delim", "")
    assert "column 'tag' does not exist" in said("--label-col", "tag") and "did you mean 'tags'" in said("--label-col", "tag")


# ---------------------------------------------------------------------------------------------------------- targets


def one_hot(kinds: Path, kind: type = int) -> pd.DataFrame:
    rows = [[f"p{i}.png", kind(i % 2), kind(i % 3 == 0)] for i in range(24)]
    return pd.DataFrame(rows, columns=["file", "cat", "dog"])


@pytest.mark.parametrize("kind", [int, float, bool, str])
def test_columns_of_zeros_and_ones_are_classes(kinds: Path, kind: type) -> None:
    table = one_hot(kinds, (lambda v: str(int(v))) if kind is str else kind)
    table.to_csv(kinds / "t.csv", index=False)
    want = {kinds / f"p{i}.png": {c for c, there in (("cat", i % 2), ("dog", i % 3 == 0)) if there} for i in range(24)}
    for dls in (ImageDataLoaders.from_df(table, kinds, label_col=["cat", "dog"], **OPTIONS), ImageDataLoaders.from_csv(kinds, "t.csv", label_col=[1, 2], **OPTIONS)):
        block = dls.targets[0]
        assert dls.vocab == ["cat", "dog"] and isinstance(block, MultiCategoryBlock) and block.encoded
        assert {f: set(block.decode(block.encode(label))) for f, label in pairs(dls).items()} == want
    for plan in (plan_data(kinds / "t.csv"), plan_data(kinds / "t.csv", label_col=["cat", "dog"])):
        assert {f: set(label) for f, label in pairs(plan).items()} == want and plan.layout.multi
        assert plan.dataloaders(size=8, bs=2, num_workers=0).vocab == ["cat", "dog"]


def test_lists_of_zeros_and_ones_need_names(kinds: Path) -> None:
    files, rows = [kinds / f"p{i}.png" for i in range(24)], [[i % 2, int(i < 9), 0] for i in range(24)]
    for targets in (rows, np.array(rows), [tuple(map(float, r)) for r in rows]):
        with pytest.raises(ValueError, match=r"zeros and ones.*3 classes.*MultiCategoryBlock\(encoded=True, vocab="):
            ImageDataLoaders.from_lists(kinds, files, targets, **OPTIONS)
    block = MultiCategoryBlock(encoded=True, vocab=["a", "b", "c"])
    dls = ImageDataLoaders.from_lists(kinds, files, rows, y_block=block, **OPTIONS)
    assert dls.vocab == ["a", "b", "c"] and dls.one_batch().y.shape == (2, 3)
    for target in (MultiCategoryBlock, MultiCategoryBlock(["a", "b", "c"])):
        with pytest.raises(ValueError, match=r"rows of zeros and ones, such as \[0, 1, 0\].*encoded=True.*3 class names"):
            DataBlock(blocks=(ImageBlock, target), get_y=lambda f: [0, 1, 0], item_tfms=Resize(8)).datasets(files)
    with pytest.raises(ValueError, match=r"\[0, 1\] is not a target with a 0 or a 1 for each of the 3 classes"):
        DataBlock(blocks=(ImageBlock, block), get_y=lambda f: [0, 1], item_tfms=Resize(8)).datasets(files)


def test_an_empty_cell_among_zeros_and_ones(kinds: Path) -> None:
    table = one_hot(kinds, float)
    table.loc[3, "dog"] = None
    table.to_csv(kinds / "t.csv", index=False)
    for read in (lambda: ImageDataLoaders.from_df(table, kinds, label_col=["cat", "dog"], **OPTIONS),
                 lambda: ImageDataLoaders.from_csv(kinds, "t.csv", label_col=["cat", "dog"], **OPTIONS)):
        with pytest.raises(ValueError, match=r"0 or a 1 for each of the 2 classes \['cat', 'dog'\].*p3.png"):
            read()
    with pytest.raises(ValueError, match="'dog' is empty.*0 or 1"):
        plan_data(kinds / "t.csv", label_col=["cat", "dog"])


def test_several_columns_of_labels(kinds: Path) -> None:
    table = pd.DataFrame({"file": [f"p{i}.png" for i in range(24)], "first": ["cat", "dog"] * 12, "second": [" dog", None] * 12})
    table.to_csv(kinds / "t.csv", index=False)
    options = {"label_col": ["first", "second"]}
    assert plan_data(kinds / "t.csv", **options).classes == ["cat", "dog"]
    assert [ImageDataLoaders.from_df(table, kinds, **options, **OPTIONS).vocab, ImageDataLoaders.from_csv(kinds, "t.csv", **options, **OPTIONS).vocab] == [["cat", "dog"]] * 2


def test_whole_grades_are_classes(kinds: Path, capsys: pytest.CaptureFixture) -> None:
    """One missing cell makes pandas write 1.0; that is no reason to predict a number."""
    table = pd.DataFrame({"file": [f"p{i}.png" for i in range(24)], "grade": [None, *[1, 2, 3] * 7, 1, 2]})
    assert table.grade.dtype == float
    dls = ImageDataLoaders.from_df(table, kinds, **OPTIONS)
    said = capsys.readouterr().out
    assert isinstance(dls.targets[0], CategoryBlock) and dls.vocab == [1, 2, 3]
    assert "1 row without a label" in said and "taken as classes; y_block=RegressionBlock" in said
    lists = ImageDataLoaders.from_lists(kinds, [kinds / f for f in table.file[1:]], table.grade.tolist()[1:], **OPTIONS)
    assert isinstance(lists.targets[0], CategoryBlock) and "RegressionBlock" in capsys.readouterr().out
    assert isinstance(ImageDataLoaders.from_df(table, kinds, y_block=RegressionBlock, **OPTIONS).targets[0], RegressionBlock)
    table.to_csv(kinds / "t.csv", index=False)
    assert ImageDataLoaders.from_csv(kinds, "t.csv", **OPTIONS).vocab == plan_data(kinds / "t.csv").classes == ["1.0", "2.0", "3.0"]
    with pytest.raises(ValueError, match="y_block=RegressionBlock.*y_block=CategoryBlock"):
        ImageDataLoaders.from_df(table.assign(grade=[float(i) for i in range(24)]), kinds, **OPTIONS)


def test_numbers_with_fractions_are_numbers(kinds: Path, capsys: pytest.CaptureFixture) -> None:
    table = pd.DataFrame({"file": [f"p{i}.png" for i in range(24)], "x": [i / 4 for i in range(24)], "y": [float(i) for i in range(24)]})
    table.to_csv(kinds / "t.csv", index=False)
    for label_col in ("x", ["x", "y"]):
        dls = [ImageDataLoaders.from_df(table, kinds, label_col=label_col, **OPTIONS), ImageDataLoaders.from_csv(kinds, "t.csv", label_col=label_col, **OPTIONS)]
        assert capsys.readouterr().out.count("RegressionBlock") == 2
        a, b = (torch.stack([d.train_ds[i][1] for i in range(len(d.train_ds))]) for d in dls)
        assert torch.equal(a, b) and a.dtype == torch.float32 and isinstance(dls[0].targets[0], RegressionBlock)
    assert any("predicts numbers" in str(n) for n in plan_data(kinds / "t.csv", label_col="x").notes)
    with pytest.raises(ValueError, match="2 whole numbers each.*y_block=RegressionBlock.*y_block=MultiCategoryBlock"):
        ImageDataLoaders.from_lists(kinds, [kinds / f for f in table.file], [[i, i + 30] for i in range(24)], **OPTIONS)


def test_an_encoded_target_is_exported(kinds: Path, tmp_path: Path) -> None:
    from coursekit.deploy.hub import load_learner
    from coursekit.vision.learner import vision_learner

    dls = ImageDataLoaders.from_df(one_hot(kinds), kinds, label_col=["cat", "dog"], **OPTIONS | {"bs": 10})
    learn = vision_learner(dls, "coursenet")  # two images of one color each would be equal after every layer: gradients overflow
    with learn.no_bar():
        learn.fit(1)
    learn.export(tmp_path / "m.ck")
    again = load_learner(tmp_path / "m.ck")
    assert again.dls.vocab == ["cat", "dog"] and again.dls.targets[0].encoded
    (*_, a), (*_, b) = (each.predict(kinds / "p1.png") for each in (again, learn))
    assert torch.allclose(a, b)


def test_a_reader_takes_rows_of_every_kind() -> None:
    row = {"file": " a\\b ", "tags": "x,, y ,x", "n": 7.0}
    for r in (row, pd.Series(row), pd.DataFrame([row]).iloc[0]):
        assert ColReader("file", pref=Path("d"), suff=".png")(r) == "d/a/b.png" and ColReader("tags", label_delim=",")(r) == ["x", "y"]
        assert ColReader(["n", "file"])(r) == [7, "a\\b"] and os.fspath(ColReader(2, pref="no_")(r)) == "no_7"
