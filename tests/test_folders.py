"""Folders of other people: which of them are the classes, which are a split, and which files are images at all."""

from __future__ import annotations

import io
import itertools
import os
import struct
import time
import unicodedata
import zipfile
import zlib
from pathlib import Path

import pytest
from bad_inputs import encoded, halves
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from coursekit.cli.main import main
from coursekit.data.archive import ArchiveError, Limits, extract_each
from coursekit.data.items import get_image_files
from coursekit.vision.data import ImageDataLoaders
from coursekit.vision.folders import Layout, folder_layout
from coursekit.vision.images import ImageError, check_images, load_image
from coursekit.vision.names import Index
from coursekit.vision.plan import plan_data


def touch(root: Path, *names: str) -> Path:
    """Empty files: what folders mean is told from names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def paint(root: Path, *names: str) -> Path:
    """Small images, no two alike."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (i % 256, i // 256, len(name))).save(root / name, "PNG")
    return root


def many(pattern: str, n: int = 12) -> list[str]:
    return [pattern.format(i) for i in range(n)]


def read(layout: Layout) -> set[tuple[str, str, bool | None]]:
    return {(i.file.name, str(i.label), i.valid) for i in layout.items}


# ------------------------------------------------------------------------------------------------- classes and splits

CLASSES = ["cat", "dog", "0", "1", "2", "n01440764", "great dane", "Category_7", "Zürich", "mountain", "bullet"]
SPLITS = [("train", "valid"), ("train", "val"), ("Training", "Validation"), ("training_set", "test_set"), ("seg_train", "seg_test"), ("train", "test"),
          ("TrainImages", "ValImages"), ("train_data", "dev_data"), ("trn", "tst"), ("catsdogs-train", "catsdogs-val"), ("train2017", "val2017")]
OTHERS = [["s1", "s2"], ["anna", "bob"], ["split_1", "split_2"], ["a", "b", "c"], ["2019", "2020"]]  # what else folders are named after


def tree(classes: list[str], split: tuple[str, str] | None, place: str, other: list[str] | None, other_above: bool) -> dict[str, tuple[str, bool | None]]:
    """Paths of images, and the class and the side of each."""
    found = {}
    for n, (label, side, extra) in enumerate(itertools.product(classes, split or [""], other or [""])):
        inner = [extra, label] if other_above else [label, extra]
        sides = [side, side] if place == "wrapped" else [side]
        parts = [*inner, side] if place == "below" else [*sides, *inner]
        path = "/".join(filter(None, parts))
        found |= {f"{path}/p{n}-{k}.jpg": (label, side == split[1] if split else None) for k in range(2)}
    return found


trees = st.builds(tree, st.lists(st.sampled_from(CLASSES), min_size=2, max_size=4, unique=True), st.none() | st.sampled_from(SPLITS),
                  st.sampled_from(["above", "below", "wrapped"]), st.none(), st.booleans())
grids = st.tuples(st.lists(st.sampled_from(CLASSES), min_size=2, max_size=3, unique=True), st.none() | st.sampled_from(SPLITS),
                  st.sampled_from(["above", "below"]), st.sampled_from(OTHERS), st.booleans())


@settings(max_examples=60, deadline=None)
@given(names=trees, wrapped=st.sampled_from(["", "data/", "pets-main/photos/"]))
def test_classes_and_split_of_a_usual_tree_are_found(tmp_path_factory: pytest.TempPathFactory, names, wrapped: str) -> None:
    root = touch(tmp_path_factory.mktemp("tree"), *(wrapped + name for name in names))
    layout = folder_layout(root)
    assert read(layout) == {(name.rpartition("/")[2], *truth) for name, truth in names.items()}
    assert not layout.doubts and not layout.stray


@settings(max_examples=60, deadline=None)
@given(grid=grids)
def test_one_more_level_is_understood_or_doubted(tmp_path_factory: pytest.TempPathFactory, grid) -> None:
    names = tree(*grid)
    root = touch(tmp_path_factory.mktemp("grid"), *names)
    truth = {(name.rpartition("/")[2], *what) for name, what in names.items()}
    layout = folder_layout(root)
    assert read(layout) == truth or layout.doubts
    depth = 2 if grid[4] else 1
    assert layout.doubts and all(f"depth={d}" in layout.doubts[0][1] for d in (1, 2))
    asked = folder_layout(root, depth=depth)
    assert read(asked) == truth and not asked.doubts


@settings(max_examples=50, deadline=None)
@given(classes=st.lists(st.sampled_from(CLASSES), min_size=2, max_size=3, unique=True), place=st.sampled_from(["above", "below"]),
       sides=st.sampled_from([("north", "south"), ("split_1", "split_2"), ("A", "B"), ("test", "train")]), given_train=st.booleans())
def test_sides_that_a_person_names(tmp_path_factory: pytest.TempPathFactory, classes, place: str, sides, given_train: bool) -> None:
    names = tree(classes, sides, place, None, False)
    root = touch(tmp_path_factory.mktemp("named"), *names)
    layout = folder_layout(root, train=sides[0] if given_train else None, valid=sides[1])
    assert read(layout) == {(name.rpartition("/")[2], *truth) for name, truth in names.items()}


def test_folders_that_recur_are_doubted(tmp_path: Path) -> None:
    paint(tmp_path, *(f"data/{c}/split_{i}/{n}.png" for c in "01" for i in (1, 2) for n in range(6)))
    plan = plan_data(tmp_path)
    assert plan.classes == ["0", "1"]
    (doubt,) = [n for n in plan.notes if n.level == "warning" and "could be the classes" in n.text]
    assert all(words in str(doubt) for words in ("0, 1 (depth 1, used here)", "split_1, split_2 (depth 2)", "depth=1 or depth=2", "--depth", "valid="))
    assert "split_1, split_2 are in several folders" in doubt.text
    assert plan_data(tmp_path, depth=2).classes == ["split_1", "split_2"]
    plan = plan_data(tmp_path, valid="split_2")
    assert plan.classes == ["0", "1"] and {i.file.parent.name for i in plan.items if i.valid} == {"split_2"}
    assert not [n for n in plan.notes if n.level == "warning" and "could be" in n.text] and "split_1 and split_2" in plan.layout.split


def test_scenes_with_a_repeated_folder_and_a_third_part(tmp_path: Path) -> None:
    paint(tmp_path, *(f"seg_{s}/seg_{s}/{c}/{s}{c}{i}.png" for s in ("train", "test") for c in ("forest", "sea", "street") for i in range(12)),
          *many("seg_pred/seg_pred/{}.png"))
    plan = plan_data(tmp_path)
    assert plan.classes == ["forest", "sea", "street"] and plan.layout.split == "folders seg_train and seg_test"
    assert {i.file.relative_to(tmp_path).parts[0] for i in plan.items if i.valid} == {"seg_test"} and len(plan.items) == 72
    assert {f.relative_to(tmp_path).parts[0] for f in plan.layout.stray} == {"seg_pred"} and len(plan.layout.stray) == 12
    assert "12 images without a label, left alone: seg_pred" in repr(plan)
    assert not [n for n in plan.notes if n.level == "warning"]


def test_a_given_split_is_kept(tmp_path: Path) -> None:
    paint(tmp_path, *(f"dataset/{s}/{c}/{c}.{i}.png" for s, n in (("training_set", 40), ("test_set", 10)) for c in ("cats", "dogs") for i in range(n)))
    plan = plan_data(tmp_path)
    assert (plan.counts(False), plan.counts(True)) == ({"cats": 40, "dogs": 40}, {"cats": 10, "dogs": 10})
    assert "folders training_set and test_set" in repr(plan)


def test_people_inside_of_classes(tmp_path: Path) -> None:
    names = [f"{s}/{c}/{p}/{i}.jpg" for s, people in (("train", ("ann", "bob")), ("valid", ("cid", "dan"))) for c in ("happy", "sad")
             for p in people for i in range(3)]
    layout = folder_layout(touch(tmp_path, *names))
    assert {i.label for i in layout.items} == {"happy", "sad"} and not layout.doubts  # nobody is on both sides, the classes are
    same = folder_layout(touch(tmp_path / "again", *(n.replace("cid", "ann").replace("dan", "bob") for n in names)))
    assert same.doubts


def test_parts_without_classes_are_doubted(tmp_path: Path) -> None:
    (doubt,) = folder_layout(touch(tmp_path / "a", *many("split_1/IMG_{}.jpg"), *many("split_2/IMG_{}.jpg"))).doubts
    assert "split_1, split_2" in doubt[0] and "pat=" in doubt[1]
    layout = folder_layout(touch(tmp_path / "b", *many("fold1/cat_{}.jpg"), *many("fold2/dog_{}.jpg"), *many("fold1/dog_{}.jpg")))
    assert {i.label for i in layout.items} == {"cat", "dog"} and "file names are taken" in layout.doubts[0][0]


def test_a_shallow_folder_does_not_set_the_level_in_silence(tmp_path: Path) -> None:
    names = [f"{a}/{b}/{i}.jpg" for a, some in (("pets", ("cat", "dog")), ("wild", ("lion", "wolf"))) for b in some for i in range(9)]
    layout = folder_layout(touch(tmp_path, *names, "docs/figure.jpg"))
    assert layout.doubts and "cat, dog, lion, wolf (depth 2)" in layout.doubts[0][0]


def test_sides_without_a_common_class_are_said(tmp_path: Path) -> None:
    layout = folder_layout(touch(tmp_path, *many("train/cat/{}.jpg"), *many("train/dog/{}.jpg"), *many("valid/Katze/{}.jpg"), *many("valid/Hund/{}.jpg")))
    assert {i.label for i in layout.items} == {"cat", "dog"} and not layout.split
    assert any("valid has none of the classes of train" in text for text, _ in layout.doubts)


def test_names_that_are_no_split(tmp_path: Path) -> None:
    layout = folder_layout(touch(tmp_path, *many("bullet_train/{}.jpg"), *many("steam_train/{}.jpg"), *many("crash_test/{}.jpg")))
    assert {i.label for i in layout.items} == {"bullet_train", "steam_train", "crash_test"} and not layout.split and not layout.doubts


@pytest.mark.parametrize(("options", "says"), [
    ({"valid": "vaild"}, r"valid='vaild'.*'valid'|valid='vaild'.*train/cat"),
    ({"train": "train/cat", "valid": "train/cat"}, "cannot be both"),
    ({"depth": 9}, r"depth=9 is deeper.*depth 1: cat, dog"),
    ({"depth": 0}, "depth must be .* got 0"), ({"depth": 1.5}, r"depth must be .* got 1\.5"), ({"depth": True}, "depth must be .* got True"),
    ({"depth": 1, "pat": "(a)"}, r"pat=.*depth="),
    ({"train": "train/cat"}, "neither folders nor file names tell apart"),
])  # fmt: skip
def test_wrong_folders_and_depths_say_what_was_found(tmp_path: Path, options: dict, says: str) -> None:
    root = touch(tmp_path, *many("train/cat/{}.jpg"), *many("train/dog/{}.jpg"), *many("val/cat/{}.jpg"), *many("val/dog/{}.jpg"))
    with pytest.raises(ValueError, match=says) as caught:
        folder_layout(root, **options)
    assert str(caught.value).startswith("plan_data: ") and str(caught.value).isprintable()


def test_a_depth_with_one_class_is_refused(tmp_path: Path) -> None:
    root = touch(tmp_path, *many("a/pets/cat/{}.jpg"), *many("b/pets/dog/{}.jpg"))
    with pytest.raises(ValueError, match=r"depth=2 has only 'pets'.*depth 1: a, b; depth 2: pets; depth 3: cat, dog"):
        folder_layout(root, depth=2)


def test_several_folders_a_side(tmp_path: Path) -> None:
    root = paint(tmp_path, *(f"{y}/{c}/{i}.png" for y in (2019, 2020, 2021, 2022) for c in ("cat", "dog") for i in range(10)))
    plan = plan_data(root, train=["2019", root / "2020"], valid="2021")
    assert (plan.counts(False), plan.counts(True)) == ({"cat": 20, "dog": 20}, {"cat": 10, "dog": 10}) and len(plan.layout.stray) == 20
    alone = plan_data(root, train="2022")
    assert sum(alone.counts(True).values()) == 4 and {i.file.parent.parent.name for i in alone.items} == {"2022"} and not alone.layout.split


def test_options_of_folders_are_not_for_tables(tmp_path: Path) -> None:
    paint(tmp_path, *many("p{}.png"))
    (tmp_path / "t.csv").write_text("file,label\n" + "".join(f"p{i}.png,{'ab'[i % 2]}\n" for i in range(12)))
    for options in ({"train": "a"}, {"valid": "b"}, {"depth": 1}):
        with pytest.raises(ValueError, match=rf"plan_data: {next(iter(options))}=.*the source is a table"):
            plan_data(tmp_path / "t.csv", **options)


def test_the_command_line_takes_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "data", *(f"{c}/split_{i}/{n}.png" for c in "01" for i in (1, 2) for n in range(12)))

    def train(*args: str) -> str:
        done = CliRunner().invoke(main, ["train", "data", "--dry-run", *args])
        assert done.exit_code == ("9" in args), done.output
        return done.output

    assert "warning: folders on more than one level could be the classes" in train()
    assert "split_1 24, split_2 24" in train("--depth", "2")
    assert "24 for training, 24 for validation" in train("--train", "split_1", "--valid", "split_2")
    assert "24 for training, 12 for validation" in train("--train", "0/split_1", "--train", "data/1/split_1", "--valid", "0/split_2")
    assert "depth=9 is deeper than any folder with images" in train("--depth", "9")


def test_from_path_takes_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint(tmp_path, *(f"{c}/split_{i}/{n}.png" for c in "01" for i in (1, 2) for n in range(12)))
    dls = ImageDataLoaders.from_path(tmp_path, size=8, bs=4, train="split_1", valid="split_2", num_workers=0, device="cpu")
    assert dls.vocab == ["0", "1"] and len(dls.valid_ds) == 24 and "split_1 and split_2" in capsys.readouterr().out
    assert ImageDataLoaders.from_path(tmp_path, size=8, bs=4, depth=2, num_workers=0, device="cpu").vocab == ["split_1", "split_2"]


def test_from_folder_says_which_folders_there_are(tmp_path: Path) -> None:
    paint(tmp_path, *many("train/cat/{}.png"), *many("train/dog/{}.png"), *many("val/cat/v{}.png"), *many("val/dog/v{}.png"))
    with pytest.raises(ValueError, match=r"from_folder: valid='valid'.*\['train', 'val'\].*valid='val'"):
        ImageDataLoaders.from_folder(tmp_path)
    assert len(ImageDataLoaders.from_folder(tmp_path, valid="val", bs=4, num_workers=0, device="cpu").valid_ds) == 24


words = st.sampled_from(["train", "valid", "test", "val_set", "seg_train", "seg_test", "a", "b", "1", "2", "split_1", "images", "pred"])


@settings(max_examples=80, deadline=None)
@given(paths=st.sets(st.lists(words, max_size=4).map(tuple), min_size=1, max_size=8), n=st.integers(1, 3), depth=st.none() | st.integers(1, 4),
       train=st.none() | words, valid=st.none() | words)
def test_no_image_gets_lost_in_any_tree(tmp_path_factory: pytest.TempPathFactory, paths, n: int, depth, train, valid) -> None:
    """Each is labeled, kept for a test or left alone, once; or one readable error says why there is no layout."""
    names = ["/".join([*path, f"{'cat' if i % 2 else 'dog'}_{k}.jpg"]) for i, path in enumerate(sorted(paths)) for k in range(n)]
    root = touch(tmp_path_factory.mktemp("any"), *names)
    layout, said = None, "plan_data: "
    try:
        layout = folder_layout(root, depth=depth, train=train, valid=valid)
    except ValueError as error:
        said = str(error)
    assert said.startswith("plan_data: ") and said.isprintable()
    if layout is None:
        return
    told = [*(i.file for i in layout.items), *layout.stray, *layout.tests]
    assert sorted(told) == sorted(root / name for name in names)
    assert bool(layout.split) == any(i.valid is not None for i in layout.items)


# ------------------------------------------------------------------------------------------------- which files are images


def test_images_with_rare_endings_and_without(tmp_path: Path) -> None:
    jpeg, png = encoded(halves(), "JPEG"), encoded(halves(), "PNG")
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i, name in enumerate(["a.jfif", "b.jpe", "c.JIF", "d", "scan.2", "e.jpg"]):
            (tmp_path / label / name).write_bytes((png if name == "d" else jpeg) + label.encode() + bytes([i]))
    for name, data in {"README": b"BM is not an image, it is a text", "cat/LICENSE": b"II*", "dog/notes.txt": jpeg, "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "cat" / "pipe")  # opening it would wait forever
    plan = plan_data(tmp_path)
    assert sum(plan.counts(False).values()) + sum(plan.counts(True).values()) == 12 and not plan.bad
    assert {f.name for f in plan.others} == {"README", "LICENSE", "notes.txt", "empty"} | ({"pipe"} if hasattr(os, "mkfifo") else set())


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_every_format_is_known_by_its_first_bytes(tmp_path: Path, fmt: str) -> None:
    try:
        (tmp_path / "picture").write_bytes(encoded(halves(), fmt))
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {fmt}")
    assert get_image_files(tmp_path) == [tmp_path / "picture"]


def test_links_that_lead_nowhere_are_reported(tmp_path: Path) -> None:
    paint(tmp_path, *many("cat/{}.png"), *many("dog/d{}.png"))
    for link in ("cat/gone.png", "dog/lost", "cow"):
        try:
            (tmp_path / link).symlink_to(tmp_path / "moved away" / link)
        except OSError:
            pytest.skip("this system has no links")
    plan = plan_data(tmp_path)
    assert {f.name for f, why in plan.bad if "a link to a file" in why and "not exist" in why} == {"gone.png", "lost", "cow"} and not plan.others
    assert "3 files cannot be read" in repr(plan) and len(plan.items) == 24
    with pytest.raises(ImageError, match="gone.png is a link to a file that does not exist"):
        load_image(tmp_path / "cat" / "gone.png")


def png_with(texts: list[tuple[str, int, bool, bool]], icc: int = 0) -> bytes:
    """A PNG with texts of so many bytes, packed or not, before or after the pixels."""
    info = PngImagePlugin.PngInfo()
    for i, (kind, size, packed, after) in enumerate(texts):
        text = "x" * size
        if kind == "iTXt":
            body = f"k{i}".encode() + (b"\0\1\0\0\0" + zlib.compress(text.encode(), 1) if packed else b"\0\0\0\0\0" + text.encode())
        else:
            kind = "zTXt" if packed else "tEXt"
            body = f"k{i}".encode() + (b"\0\0" + zlib.compress(text.encode(), 1) if packed else b"\0" + text.encode())
        info.add(kind.encode(), body, after)
    out = io.BytesIO()
    halves().save(out, "PNG", pnginfo=info, **({"icc_profile": bytes(icc)} if icc else {}))
    return out.getvalue()


sizes = st.sampled_from([0, 10, 2**19 - 1, 2**19, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.tuples(st.sampled_from(["iTXt", "tEXt"]), sizes, st.booleans(), st.booleans()), max_size=5), icc=sizes)
def test_texts_and_profiles_are_no_damage(texts, icc: int) -> None:
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    assert load_image(png_with(texts, icc)).tobytes() == halves().tobytes()
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_long_texts_cost_little_and_hide_no_damage(tmp_path: Path) -> None:
    bomb = png_with([("iTXt", 2**20, True, i % 2 == 0) for i in range(400)])
    start = time.perf_counter()
    assert load_image(bomb).size == halves().size
    assert time.perf_counter() - start < 5
    at = bomb.index(b"IDAT") + 20
    (tmp_path / "spoilt.png").write_bytes(bomb[:at] + bytes(60) + bomb[at + 60 :])
    (tmp_path / "cut.png").write_bytes(png_with([("iTXt", 3 * 2**20, True, False)])[:-60])
    assert {f.name: why.split(" (")[0] for f, why in check_images(sorted(tmp_path.iterdir()))} == {"spoilt.png": "is damaged", "cut.png": "is cut off"}


def test_a_text_that_says_which_way_is_up_stays() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("a long one", "x" * 3_000_000, zip=True)
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    img = halves((40, 20))
    data = encoded(img.transpose(Image.Transpose.ROTATE_90), "PNG", pnginfo=info)
    assert load_image(data).tobytes() == img.tobytes()


def tiff(bands: int, bits: int, kind: int, *, compression: int = 1) -> bytes:
    """A little-endian TIFF of 4 x 4 pixels; kind 1 is unsigned, 3 is float."""
    data = bytes(16 * bands * bits // 8)
    rgb = bands == 3
    tags = [(256, 3, [4]), (257, 3, [4]), (258, 3, [bits] * bands), (259, 3, [compression]), (262, 3, [2 if rgb else 1]), (273, 4, [8]),
            (277, 3, [bands]), (278, 3, [4]), (279, 4, [len(data)]), (339, 3, [kind] * bands)]
    out, entries, at = b"II*\0" + struct.pack("<I", 8 + len(data)) + data, b"", 8 + len(data) + 2 + 12 * len(tags) + 4
    more = b""
    for tag, size, values in tags:
        packed = struct.pack("<" + ("H" if size == 3 else "I") * len(values), *values)
        where = packed.ljust(4, b"\0")
        if len(packed) > 4:
            where, more = struct.pack("<I", at + len(more)), more + packed
        entries += struct.pack("<HHI", tag, size, len(values)) + where
    return out + struct.pack("<H", len(tags)) + entries + bytes(4) + more


@pytest.mark.parametrize("options", [(5, 8, 1), (13, 8, 1), (3, 32, 3), (2, 32, 3), (1, 16, 3), (1, 64, 3), (4, 16, 1)])
def test_a_tiff_that_nobody_reads_is_unsupported(tmp_path: Path, options: tuple[int, int, int]) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(*options))
    ((_, why),) = check_images([tmp_path / "a.tif"])
    assert "unsupported" in why and "damaged" not in why and why.isprintable()
    with pytest.raises(ImageError, match="unsupported.*save it as PNG or JPEG"):
        load_image(tmp_path / "a.tif")


def test_other_kinds_of_tiff(tmp_path: Path) -> None:
    assert load_image(tiff(3, 8, 1)).size == (4, 4)
    for code in (34887, 50002, 34712):
        with pytest.raises(ImageError, match=f"unsupported kind .{code}"):
            load_image(tiff(3, 8, 1, compression=code))
    with pytest.raises(ImageError, match="damaged|cut off"):
        load_image(tiff(3, 8, 1)[:60])


def test_a_plan_calls_them_what_they_are(tmp_path: Path) -> None:
    paint(tmp_path, *many("cat/{}.png"), *many("dog/d{}.png"))
    (tmp_path / "cat" / "satellite.tif").write_bytes(tiff(5, 8, 1))
    text = repr(plan_data(tmp_path))
    assert "cat/satellite.tif is an image of an unsupported kind" in text and "damaged" not in text


# ------------------------------------------------------------------------------------------------- names in tables

spelled = st.text(st.sampled_from("aAbBéÉüß ñ"), min_size=1, max_size=4).map(str.strip).filter(bool)


def respelled(name: str, upper: bool, form: str) -> str:
    return unicodedata.normalize(form, name.upper() if upper else name)


@settings(max_examples=100, deadline=None)
@given(names=st.lists(spelled, min_size=1, max_size=6), forms=st.lists(st.sampled_from(["NFC", "NFD"]), min_size=6, max_size=6),
       upper=st.booleans(), form=st.sampled_from(["NFC", "NFD"]))
def test_a_name_in_another_case_or_form_is_found(names: list[str], forms: list[str], upper: bool, form: str) -> None:
    """Exactly that name first; else the only one that differs in nothing but case and form; else none, and a doubt."""
    root = Path("/nowhere/root")
    on_disk = list(dict.fromkeys(f"{unicodedata.normalize(f, n)}.JPG" for n, f in zip(names, forms)))
    index = Index(root, [root / n for n in on_disk])

    def key(name: str) -> str:
        return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())

    for name in on_disk:
        assert index.find(name) == root / name
        cell = respelled(name[:-4], upper, form) + ".jpg"
        same = [n for n in on_disk if key(n) == key(cell)]
        want = root / cell if cell in on_disk else root / same[0] if len(same) == 1 else None
        assert index.find(cell) == want
        assert bool(index.doubts([cell])) == (want is None)


def test_a_table_written_on_another_system(tmp_path: Path) -> None:
    paint(tmp_path, *many("IMG_{}.JPG"), *many("cafe\u0301 {}.jpg"), "Twin.png", "twin.PNG")
    if len(get_image_files(tmp_path)) < 26:
        pytest.skip("this file system ignores case")
    rows = [*many("img_{}.jpg,cat"), *many("caf\u00e9 {}.JPG,dog"), "TWIN.png,dog", "Twin.png,cat"]
    (tmp_path / "t.csv").write_text("file,label\n" + "\n".join(rows), encoding="utf-8")
    plan = plan_data(tmp_path)
    assert {i.file.name: i.label for i in plan.items} == {**dict.fromkeys(many("IMG_{}.JPG"), "cat"), **dict.fromkeys(many("cafe\u0301 {}.jpg"), "dog"),
                                                         "Twin.png": "cat"}
    assert plan.layout.missing == ["TWIN.png"]
    assert "1 name in the table fits more than one image: TWIN.png" in repr(plan)


# ------------------------------------------------------------------------------------------------- archives


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as z:
        for name, data in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name  # as it is: ZipInfo would tidy it
            z.writestr(info, data)
    return path


def pictures(prefix: str, n: int = 12, seed: int = 0) -> dict[str, bytes]:
    return {f"{prefix}{i}.png": encoded(Image.new("RGB", (9, 9), (i, len(prefix), seed)), "PNG") for i in range(n)}


def raw(archive: Path) -> bytes:
    return archive.read_bytes()


def test_zips_with_backslashes(tmp_path: Path) -> None:
    plan = plan_data(zip_of(tmp_path / "old.zip", {"photos\\": b"", **pictures("photos\\cat\\"), **pictures("photos\\dogs\\")}))
    assert plan.classes == ["cat", "dogs"] and len(plan.items) == 24


@pytest.mark.parametrize("name", ["..\\x.png", "a\\..\\..\\x.png", "C:\\x.png", "\\x.png", "\\\\server\\share\\x.png", "models\\a.safetensors",
                                  "cat\\edits.csv", ".coursekit_bin\\a.png"])
def test_backslashes_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    archive = zip_of(tmp_path / "evil.zip", {**pictures("cat\\"), name: b"1"})
    with pytest.raises(ArchiveError, match="plan_data: .*entry.*(leads out|absolute|coursekit writes itself)"):
        plan_data(archive)
    assert not list(tmp_path.rglob("x.png"))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inner", ["", "cat photos/"])
def test_a_zip_for_each_class(tmp_path: Path, packed: bool, inner: str) -> None:
    folder = tmp_path / "zips"
    for c in ("cat", "dogs"):
        zip_of(folder / f"{c}.zip", pictures(inner + "p", seed=len(c)))
    before = sorted(tmp_path.rglob("*"))
    source = zip_of(tmp_path / "all.zip", {f"all/{f.name}": raw(f) for f in folder.iterdir()}) if packed else folder
    plan = plan_data(source)
    assert plan.classes == ["cat", "dogs"] and len(plan.items) == 24 and not plan.layout.doubts
    assert plan.layout.root.is_relative_to(Path(os.environ["COURSEKIT_HOME"]) / "own") and sorted(tmp_path.rglob("*")) == sorted(before + [source] * packed)
    stamp = plan.layout.root.stat().st_ino
    assert plan_data(source).layout.root.stat().st_ino == stamp  # unpacked once


def test_archives_of_a_competition(tmp_path: Path) -> None:
    """train.zip and test.zip beside a table."""
    zip_of(tmp_path / "train.zip", pictures("train/"))
    zip_of(tmp_path / "test.zip", pictures("test/t"))
    (tmp_path / "train.csv").write_text("file,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(12)))
    plan = plan_data(tmp_path)
    assert plan.classes == ["a", "b"] and len(plan.items) == 12 and len(plan.layout.stray) == 12


def test_archives_beside_images_are_other_files(tmp_path: Path) -> None:
    paint(tmp_path, *many("cat/{}.png"), *many("dog/d{}.png"))
    zip_of(tmp_path / "cow.zip", pictures("cow/"))
    plan = plan_data(tmp_path)
    assert plan.classes == ["cat", "dog"] and [f.name for f in plan.others] == ["cow.zip"]


def test_inner_archives_obey_the_same_rules(tmp_path: Path) -> None:
    def refused(files: dict[str, bytes], says: str) -> None:
        with pytest.raises(ArchiveError, match=says):
            plan_data(zip_of(tmp_path / f"outer{len(list(tmp_path.iterdir()))}.zip", files))

    cat = raw(zip_of(tmp_path / "cat.zip", pictures("")))
    refused({"cat.zip": cat, "dog.zip": raw(zip_of(tmp_path / "d.zip", {"../../up.png": b"1"}))}, "leads out")
    refused({"cat.zip": cat, "models.zip": raw(zip_of(tmp_path / "m.zip", {"checkpoint.safetensors": b"1"}))}, "coursekit writes itself")
    refused({"cat.zip": cat, "models.zip": raw(zip_of(tmp_path / "n.zip", {"x/stage.safetensors": b"1", "x/a.png": b"1"}))}, "coursekit writes itself")
    refused({"cat.zip": cat, "a/Cat.tar.zip": cat, "a/cat.TAR.zip": cat}, "same file")
    with zipfile.ZipFile(tmp_path / "zeros.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("zeros", bytes(60 << 20))  # alone it is small enough
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z:
        for i in range(3):
            z.write(tmp_path / "zeros.zip", f"{i}.zip")
    with pytest.raises(ArchiveError, match="times its size"):
        plan_data(tmp_path / "bomb.zip")
    assert not list(tmp_path.parent.rglob("up.png"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match="more than 20 entries"):
        extract_each([("a", tmp_path / "cat.zip"), ("b", tmp_path / "cat.zip")], tmp_path / "out", limits=Limits(max_entries=20))


def test_archives_that_are_not_unpacked_are_named(tmp_path: Path) -> None:
    deep = zip_of(tmp_path / "deep.zip", {"middle.zip": raw(zip_of(tmp_path / "m.zip", {"cat.zip": raw(zip_of(tmp_path / "c.zip", pictures("")))}))})
    with pytest.raises(ValueError, match=r"no images, but 1 archive, such as cat\.zip, which you need to unpack first"):
        plan_data(deep)
    (tmp_path / "rars").mkdir()
    (tmp_path / "rars" / "cat.rar").write_bytes(b"Rar!\x1a\x07\x00")
    with pytest.raises(ValueError, match=r"1 archive, such as cat\.rar"):
        plan_data(tmp_path / "rars")


# ------------------------------------------------------------------------------------------------- the same image everywhere


def test_placeholders_have_a_note_of_their_own(tmp_path: Path) -> None:
    paint(tmp_path, *many("cat/{}.png"), *many("dog/d{}.png"), *many("cow/c{}.png"))
    gone, twice = encoded(halves((50, 50)), "PNG"), encoded(halves((51, 50)), "PNG")
    for name in ("cat/x.png", "cat/y.png", "dog/x.png", "cow/x.png"):
        (tmp_path / name).write_bytes(gone)
    for name in ("cat/z.png", "dog/z.png"):
        (tmp_path / name).write_bytes(twice)
    plan = plan_data(tmp_path)
    (note,) = [n for n in plan.notes if "again and again" in n.text]
    assert note.level == "warning" and "3 copies" in note.text and "no longer available" in note.fix
    (other,) = [n for n in plan.notes if "the same image with different classes" in n.text]
    assert "z.png" in other.text and "x.png" not in other.text
    assert len(plan.items) == 36 and len(plan.clashes) == 2
