"""The widgets without a browser: uploads as the front end delivers them, buttons pressed, files moved and brought back."""

from __future__ import annotations

import base64
import contextlib
import csv
import gc
import html
import io
import re
import shutil
import sys
import tempfile
import types
import weakref
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_inputs import HOSTILE, encoded, halves, make_bad_inputs, make_hostile_classes, mutated_images
from helpers import raises
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coursekit.deploy.hub import load_learner
from coursekit.training.learner import Learner, synthetic_learner
from coursekit.vision.data import ImageDataLoaders
from coursekit.vision.learner import vision_learner
from coursekit.vision.resize import Resize
from coursekit.widgets import ImageClassifierCleaner, edits, lr_explorer, read_edits, upload_and_predict
from coursekit.widgets.cleaner import LabelledFiles
from coursekit.widgets.dropzone import Collector
from coursekit.widgets.edits import BIN, FIELDS, Edit, EditLog, apply_edits, undo_edits
from coursekit.widgets.explorer import CURVATURES, descend
from coursekit.widgets.upload import UploadAndPredict

ALLOWED = {"div", "figure", "figcaption", "img", "table", "caption", "tbody", "tr", "th", "td", "span", "p", "b", "br", "style"}


def make_learner(folder: Path) -> Learner:
    """Random weights: what it says is of no matter here."""
    dls = ImageDataLoaders.from_folder(folder, valid_pct=0.34, seed=1, item_tfms=Resize(32), bs=4, num_workers=0, device="cpu")
    learn = vision_learner(dls, "coursenet", pretrained=False, seed=0)
    learn.progress = False
    return learn


@pytest.fixture(scope="module")
def learn(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    return make_learner(make_hostile_classes(tmp_path_factory.mktemp("classes")))


def send(up: UploadAndPredict, *files: tuple[str, bytes]) -> None:
    """What a browser does when these files are chosen."""
    if type(up.uploader).__name__ == "FileUpload":
        up.uploader.set_state({"value": [{"name": name, "type": "image/jpeg", "size": len(data), "content": memoryview(data),
                                          "last_modified": 0} for name, data in files]})
        return
    for k, (name, data) in enumerate(files):
        if len(data) > up.uploader.max_bytes:
            up.uploader._handle_custom_msg({"kind": "refused", "id": str(k), "name": name, "size": len(data)}, [])
            continue
        step = max(1, len(data) // 3)
        for at in range(0, max(1, len(data)), step):
            message = {"kind": "piece", "id": str(k), "name": name, "size": len(data), "at": at}
            up.uploader._handle_custom_msg(message, [memoryview(data[at : at + step])])


def page(widget) -> str:
    """All HTML that a widget shows."""
    own = getattr(widget, "value", "")
    return (own if isinstance(own, str) else "") + "".join(page(c) for c in getattr(widget, "children", ()))


def check_html(text: str) -> None:
    """Only tags that the widgets write, and no attribute that runs anything."""
    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag in ALLOWED, tag
            for name, value in attrs:
                assert not name.startswith("on") and name != "srcdoc", (tag, name)
                assert name not in ("src", "href") or str(value).startswith("data:image/jpeg;base64,"), (tag, value)

    parser = Parser()
    parser.feed(text)
    parser.close()


def pictures(text: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'src="data:image/jpeg;base64,([^"]*)"', text)]


both_ways = pytest.mark.parametrize("uploader", ["drop", "plain"])


# ------------------------------------------------------------------------------------------------------ uploads


@both_ways
def test_every_bad_input_is_shown_or_refused_in_one_line(learn: Learner, tmp_path: Path, uploader: str) -> None:
    up = upload_and_predict(learn, uploader=uploader)
    inputs = make_bad_inputs(tmp_path)
    send(up, *((b.path.name, b.path.read_bytes()) for b in inputs))
    for b in inputs:
        name = "".join(c if c.isprintable() else "?" for c in b.path.name)
        lines = [line for line in up.refused if name in line]
        found = [s for s in up.seen if s.name == name]
        assert (len(found), len(lines)) == ((1, 0) if b.shown else (0, 1)), b
        if b.shown:
            (img,) = pictures(found[0].html(learn.dls.vocab, 5))
            left, right = (np.asarray(img.convert("RGB"))[img.height // 2, x].astype(int) for x in (3, img.width - 4))
            assert right[0] > left[0] if b.grey else left[0] > left[2] and right[2] > right[0], b
        else:
            assert "\n" not in lines[0] and len(lines[0]) < 500 and re.search(b.says, lines[0]), lines
    text = page(up.widget)
    assert "Traceback" not in text and len(pictures(text)) == sum(b.shown for b in inputs) > 0
    check_html(text)


def test_mutated_files(learn: Learner) -> None:
    up, files = upload_and_predict(learn, uploader="plain"), list(mutated_images(100))
    assert len({name for name, _ in files}) == 100
    send(up, *files, ("good.png", encoded(halves(), "PNG")))
    for name, _ in files:
        assert sum(s.name == name for s in up.seen) + sum(name in line for line in up.refused) == 1, name
    assert len(up.refused) > 20 and up.seen[0].name == "good.png"
    assert "Traceback" not in page(up.widget) and not any("cannot be predicted" in line for line in up.refused)


@both_ways
def test_prediction_is_that_of_the_file(learn: Learner, tmp_path: Path, uploader: str) -> None:
    img, exif = halves((300, 200)).convert("RGB"), Image.Exif()
    exif[0x0112] = 6
    img.save(tmp_path / "phone.jpg", exif=exif)
    up = upload_and_predict(learn, uploader=uploader)
    for _ in range(2):  # the same file twice
        send(up, ("phone.jpg", (tmp_path / "phone.jpg").read_bytes()))
    assert len(up.seen) == 2
    expected = learn.predict(tmp_path / "phone.jpg")
    assert torch.equal(up.seen[0].prediction.probabilities, expected.probabilities)
    assert pictures(page(up.widget))[0].size == (200, 300)
    assert page(up.widget).count("<tr>") == 2 * len(learn.dls.vocab)


@both_ways
def test_names_are_escaped(learn: Learner, uploader: str) -> None:
    up, name = upload_and_predict(learn, uploader=uploader), HOSTILE + '"\n.png'
    send(up, (name, encoded(halves(), "PNG")), (name, b"<svg onload=alert(1)>"))
    assert len(up.seen) == len(up.refused) == 1
    text = page(up.widget)
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") >= 4 and HOSTILE not in text  # file, class, alternative text, refusal
    check_html(text)


@both_ways
def test_too_large(learn: Learner, uploader: str) -> None:
    up = upload_and_predict(learn, uploader=uploader, max_bytes=2000)
    send(up, ("film.mp4", bytes(3000)), ("good.png", encoded(halves(), "PNG")))
    assert len(up.seen) == 1
    assert len(up.refused) == 1 and up.refused[0].startswith("film.mp4 has") and "more than" in up.refused[0]


def test_a_fault_of_the_model_is_a_line(learn: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    up, calls, predict = upload_and_predict(learn, uploader="plain"), [], learn.predict

    def moody(item):
        calls.append(item)
        if len(calls) == 1:
            raise RuntimeError("mat1 and mat2\nshapes cannot be multiplied")
        return predict(item)

    monkeypatch.setattr(learn, "predict", moody)
    send(up, ("a.png", encoded(halves(), "PNG")), ("b.png", encoded(halves(), "PNG")))
    assert [s.name for s in up.seen] == ["b.png"]
    assert up.refused[0].startswith("a.png cannot be predicted (RuntimeError: mat1 and mat2") and "Looking" not in up.status.value


@both_ways
@pytest.mark.parametrize("colab", [False, True])
def test_uploads_are_spoken_of(learn: Learner, monkeypatch: pytest.MonkeyPatch, uploader: str, colab: bool) -> None:
    """In a region that stays, or, where only the widgets of ipywidgets are shown, in one of those."""
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    up = upload_and_predict(learn, uploader=uploader)
    assert (type(up.voice).__base__.__name__ == "HTML") == colab and up.voice in up.widget.children
    send(up, ("a.png", encoded(halves(), "PNG")), ("note.jpg", b"no picture"))
    (role, said), (bad_role, bad) = up.voice.said
    assert (role, bad_role) == ("status", "alert") and bad == up.refused[0]
    best = up.seen[0].prediction
    assert said == f"a.png: {best.label} {best.probabilities.max():.1%}"
    check_html(page(up.widget))


@both_ways
def test_names_that_turn_the_writing_round(learn: Learner, uploader: str) -> None:
    up = upload_and_predict(learn, uploader=uploader, max_bytes=5000)
    send(up, ("photo\u202egpj.exe", bytes(6000)), ("a\x1b[2Jb\x9b.jpg", bytes(6000)), ("c\u202e.jpg", b"no picture"))
    assert len(up.refused) == 3 and all(line.isprintable() for line in up.refused)
    assert not set(page(up.widget) + repr(up.voice.said)) & set("\u202e\x1b\x9b")


def test_heat_map(learn: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def grad_cam(learn, item, *, target=None, layer=None):
        asked.append(item.size)
        return types.SimpleNamespace(map=torch.eye(4), image=item)

    monkeypatch.setitem(sys.modules, "coursekit.interpret.heatmaps", types.SimpleNamespace(grad_cam=grad_cam))
    up = upload_and_predict(learn, uploader="plain")
    send(up, ("a.png", encoded(halves(), "PNG")), ("note.jpg", b"no picture"))
    plain = up.results.children[1].value
    assert not asked and not up.toggle.disabled
    up.toggle.value = True
    shown = up.results.children[1].value
    assert asked == [(64, 48)] and shown != plain and "with a heat map" in shown
    send(up, ("b.png", encoded(halves(), "PNG")))
    assert len(asked) == 2
    up.toggle.value = False
    assert up.results.children[2].value == plain
    monkeypatch.setitem(sys.modules, "coursekit.interpret.heatmaps", None)  # an import of it fails
    up.toggle.value = True
    text = page(up.widget)
    assert text.count("There is no heat map") == 2 and len(pictures(text)) == 2 and "Traceback" not in text


def test_clear(learn: Learner) -> None:
    up = upload_and_predict(learn, heatmap=False)
    assert up.toggle not in up.widget.children[2].children and up.clear_button.disabled
    send(up, ("a.png", encoded(halves(), "PNG")), ("note.jpg", b"no picture"))
    up.clear_button.click()
    assert (up.seen, up.refused, page(up.results), up.clear_button.disabled) == ([], [], "", True)


def test_what_upload_and_predict_refuses(learn: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="images"):
        upload_and_predict(synthetic_learner())
    with pytest.raises(TypeError, match="topp"):
        upload_and_predict(learn, topp=3)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert type(upload_and_predict(learn).uploader).__name__ == "FileUpload"


@given(st.binary(max_size=60), st.integers(1, 70), st.lists(st.tuples(st.sampled_from(["piece", "refused", "x", None]), st.integers(-1, 70),
                                                                      st.integers(-1, 70), st.binary(max_size=70)), max_size=8))
@settings(max_examples=60, deadline=None)
def test_collector(data: bytes, step: int, noise: list) -> None:
    """A file arrives whole whatever came before it; nothing over the limit ever does, and each message is answered."""
    files: list[tuple[str, bytes]] = []
    refused: list[str] = []
    c = Collector(lambda name, data: files.append((name, data)), lambda name, why: refused.append(why), max_bytes=64)
    for kind, size, at, piece in noise:
        n = len(files) + len(refused)
        more = c.receive({"kind": kind, "id": "noise", "name": None, "size": size, "at": at}, [piece])
        assert more == (len(files) + len(refused) == n)
    for at in range(0, max(1, len(data)), step):
        more = c.receive({"kind": "piece", "id": "f", "name": "f", "size": len(data), "at": at}, [data[at : at + step]])
        assert more == (at + step < len(data))
    assert files[-1] == ("f", data)
    assert all(len(d) <= 64 for _, d in files) and not c.data


# -------------------------------------------------------------------------------------------------------- edits


def tree(root: Path) -> dict[str, str]:
    return {p.relative_to(root).as_posix(): p.read_text() for p in sorted(root.rglob("*.jpg"))}


def make_tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{root.name} {name}")
    return root


class PowerCut(Exception):
    pass


@given(files=st.lists(st.tuples(st.sampled_from(["train", "valid"]), st.sampled_from("abc"), st.sampled_from("123")), unique=True,
                      min_size=1, max_size=8),
       to=st.lists(st.sampled_from(["a", "b", "c", None]), min_size=8, max_size=8), cut=st.integers(0, 10), move=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_crash_at_any_moment_loses_nothing(files: list, to: list, cut: int, move: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        root, left = make_tree(Path(name), *(f"{part}/{label}/{stem}.jpg" for part, label, stem in files)), [cut]
        before = tree(root)
        todo = [Edit(root / part / label / f"{stem}.jpg", label, new) for (part, label, stem), new in zip(files, to) if new != label]

        def wired(func):
            def call(*args):
                if left[0] == 0:
                    raise PowerCut
                left[0] -= 1
                return func(*args)
            return call

        with pytest.MonkeyPatch.context() as wires:
            wires.setattr(edits, "move_file", wired(edits.move_file))
            wires.setattr(EditLog, "write", wired(EditLog.write))
            with contextlib.suppress(PowerCut):
                apply_edits(todo, root, move=move)
        assert sorted(tree(root).values()) == sorted(before.values())
        assert not [o.problem for o in apply_edits(todo, root, move=move) if o.problem]  # the same once more: nothing happens twice
        where = {text: path for path, text in tree(root).items()}
        assert sorted(where) == sorted(before.values())
        for e in todo if move else []:
            inside = f"{BIN}/{e.label}/" if e.to is None else f"{e.file.parent.parent.relative_to(root).as_posix()}/{e.to}/"
            assert where[before[e.file.relative_to(root).as_posix()]].startswith(inside)
        assert move or (tree(root) == before and read_edits(root) == {e.file: e.to for e in todo})
        rounds = 0
        while undo_edits(root):
            rounds += 1
        assert rounds <= 2 and tree(root) == before and read_edits(root) == {}


def test_the_log_can_be_read_by_others(tmp_path: Path) -> None:
    import pandas as pd

    name = 'a, "b"\r\n=1+1.jpg'
    apply_edits([Edit(make_tree(tmp_path, f"cat/{name}") / "cat" / name, "cat", None)], tmp_path)
    table = pd.read_csv(EditLog(tmp_path).file, keep_default_na=False)
    assert table[["file", "from", "to", "action"]].values.tolist() == [[f"cat/{name}", "cat", "", "delete"]]
    assert list(read_edits(tmp_path)) == [tmp_path / "cat" / name]


def test_a_file_that_cannot_be_moved_is_reported(tmp_path: Path) -> None:
    make_tree(tmp_path, "cat/a.jpg", "cat/b.jpg")
    (tmp_path / "dog").write_text("a file where the folder should be")
    outcomes = apply_edits([Edit(tmp_path / "cat" / "a.jpg", "cat", "dog"), Edit(tmp_path / "cat" / "b.jpg", "cat", None)], tmp_path)
    assert outcomes[0].problem and not outcomes[1].problem
    assert sorted(tree(tmp_path)) == [f"{BIN}/cat/b.jpg", "cat/a.jpg"] and list(read_edits(tmp_path)) == [tmp_path / "cat" / "b.jpg"]


@pytest.mark.parametrize("what", ["waited", "clock put back"])
def test_the_round_that_ran_last_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Another notebook's round runs while this one waits for the lock; or the clock goes back between two rounds."""
    file, lock = make_tree(tmp_path, "1.jpg") / "1.jpg", EditLog.lock

    def busy(book):
        monkeypatch.setattr(EditLog, "lock", lock)
        apply_edits([Edit(file, "cat", "dog")], tmp_path, move=False)
        return lock(book)

    class Clock(edits.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) - timedelta(hours=1)

    if what == "waited":
        monkeypatch.setattr(EditLog, "lock", busy)
    else:
        apply_edits([Edit(file, "cat", "dog")], tmp_path, move=False)
        monkeypatch.setattr(edits, "datetime", Clock)
    apply_edits([Edit(file, "cat", "bird")], tmp_path, move=False)
    assert read_edits(tmp_path) == {file: "bird"}
    undo_edits(tmp_path)
    assert read_edits(tmp_path) == {file: "dog"}


# A dataset is often a download: nothing that lies in it, and no name that a file gives, may move a file out of it or into it.


def forge(log: Path, *rows: tuple[str, str]) -> None:
    """A log with these files and targets, as `EditLog` would write it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(FIELDS)
        writer.writerows(["2020", file, "cat", "dog", "change", target] for file, target in rows)


def every_file(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".lock"}


def test_a_log_inside_the_data_is_ignored(tmp_path: Path) -> None:
    """Such a log, as earlier versions kept it, moved run.sh out of the data as soon as somebody applied anything."""
    root = make_tree(tmp_path / "data", "cat/1.jpg", "run.sh")
    forge(root / BIN / "edits.csv", ("run.sh", "../startup/run.sh"), ("startup/x", "cat/1.jpg"))
    old = "time,root,file,from,to,action,target,state\r\n2020,..,run.sh,cat,dog,change,../startup/run.sh,planned\r\n"
    (root / "edits.csv").write_text(old)
    before = every_file(tmp_path)
    assert apply_edits([], root) == [] and undo_edits(root) == [] and read_edits(root) == {}
    assert every_file(tmp_path) == before
    apply_edits([Edit(root / "cat" / "1.jpg", "cat", None)], root)
    assert (root / "run.sh").exists() and not EditLog(root).file.is_relative_to(root)


OUTSIDE = ["../secret.txt", "cat/../../secret.txt", "{tmp}/secret.txt", "link/secret.txt", "link/new/secret.txt", "..", "link/.."]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("field", ["file", "target"])
def test_a_forged_log_moves_nothing(tmp_path: Path, name: str, field: str) -> None:
    """Of the rows of one round the first is harmless: it is not carried out either."""
    root = make_tree(tmp_path / "data", "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "outside").mkdir()
    for secret in (tmp_path / "secret.txt", tmp_path / "outside" / "secret.txt"):
        secret.write_text("secret")
    (root / "link").symlink_to(tmp_path / "outside")
    name = name.format(tmp=tmp_path)
    forge(EditLog(root).file, ("cat/2.jpg", "dog/2.jpg"), (name, "dog/3.jpg") if field == "file" else ("cat/3.jpg", name))
    before = every_file(tmp_path)
    for act in (lambda: undo_edits(root), lambda: read_edits(root), lambda: apply_edits([Edit(root / "cat" / "1.jpg", "cat", None)], root)):
        with pytest.raises(ValueError, match=re.escape(root.name)):
            act()
    assert every_file(tmp_path) == before
    EditLog(root).file.unlink()


def test_edits_that_lead_out_stop_the_whole_round(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "data", "cat/1.jpg", "loose.jpg")
    (tmp_path / "outside" / "dog").mkdir(parents=True)
    (tmp_path / "outside" / "4.jpg").write_text("x")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / BIN).symlink_to(tmp_path / "outside")
    good = Edit(root / "cat" / "1.jpg", "cat", "dog")
    before = every_file(tmp_path)
    for bad in (Edit(root / "link" / "4.jpg", "link", None),  # lies outside
                Edit(root / "loose.jpg", "cat", "dog"),  # its class folder would be beside the dataset
                Edit(root / "cat" / "1.jpg", "cat", None)):  # the bin is a link that came with the data
        with pytest.raises(ValueError, match="data"):
            apply_edits([good, bad], root)
        assert every_file(tmp_path) == before and read_edits(root) == {}


def test_a_file_that_is_a_link_is_moved_as_one(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "data", "cat/1.jpg")
    (tmp_path / "real.jpg").write_text("real")
    (root / "cat" / "link.jpg").symlink_to(tmp_path / "real.jpg")
    (outcome,) = apply_edits([Edit(root / "cat" / "link.jpg", "cat", "dog")], root)
    assert outcome.target == root / "dog" / "link.jpg" and outcome.target.is_symlink() and (tmp_path / "real.jpg").read_text() == "real"
    undo_edits(root)
    assert (root / "cat" / "link.jpg").is_symlink()


# ------------------------------------------------------------------------------------------------------ cleaner


@pytest.fixture
def cleaner(tmp_path: Path) -> ImageClassifierCleaner:
    return ImageClassifierCleaner(make_learner(make_hostile_classes(tmp_path / "data")), max_n=3)


def look_at(cleaner: ImageClassifierCleaner, part: int, label: int) -> list[int]:
    """Choose set and class as a person does; the positions shown."""
    view = cleaner._view
    view.part.index, view.label.index = part, label
    assert "ck-bad" not in view.said.value, view.said.value
    return view.shown


def test_cleaner_shows_the_hardest_of_a_class(cleaner: ImageClassifierCleaner) -> None:
    cleaner.widget  # noqa: B018
    learn = cleaner.files.learn
    preds, targs, losses = learn.get_preds(ds_idx=0, with_loss=True)
    for label in (1, 2):
        mine = [i for i in range(len(targs)) if targs[i] == label - 1]
        expected = sorted(mine, key=lambda i: -float(losses[i]))[:3]
        assert torch.allclose(losses[look_at(cleaner, 0, label)], losses[expected])
    every = len(cleaner.fns) - cleaner.files.n_train
    assert len(look_at(cleaner, 1, 0)) == min(3, every) and f"of {every}" in cleaner._view.range.value
    view, seen = cleaner._view, set(cleaner._view.shown)
    while not view.on.disabled:
        view.on.click()
        assert not seen & set(view.shown)
        seen |= set(view.shown)
    assert len(seen) == every
    check_html(page(cleaner.widget))
    assert "&lt;img src=x" in page(cleaner.widget) and HOSTILE not in page(cleaner.widget)


def test_choices_are_kept_undone_and_counted(cleaner: ImageClassifierCleaner) -> None:
    cleaner.widget  # noqa: B018
    view, deleted, changed = cleaner._view, [], []
    other = {1: 3, 2: 2}  # class -> place in the list of the class that it is not
    for part in (0, 1):
        for label in (1, 2):
            shown = look_at(cleaner, part, label)
            view.cards[0].pick.index = 1
            deleted.append(shown[0])
            if len(shown) > 1:
                view.cards[1].pick.index = other[label]
                changed.append((shown[1], cleaner.vocab[other[label] - 2]))
    assert cleaner.delete() == sorted(deleted) and cleaner.change() == sorted(changed)
    assert f"{len(deleted) + len(changed)} edits pending" in view.status.value
    for part in (0, 1):
        for label in (1, 2):
            shown = look_at(cleaner, part, label)
            assert [c.pick.index for c in view.cards[: len(shown)]] == [1, other[label], 0][: len(shown)]
    before = tree_of(cleaner)
    steps = len(cleaner.choices.steps)
    for n in range(steps):
        assert len(cleaner.choices.pending) == steps - n
        view.undo.click()
    assert view.undo.disabled and view.ask.disabled and not cleaner.delete() and not cleaner.change()
    assert tree_of(cleaner) == before and "No edits pending" in view.status.value


def tree_of(cleaner: ImageClassifierCleaner) -> list[str]:
    return sorted(p.relative_to(cleaner.path).as_posix() for p in cleaner.path.rglob("*.*") if p.is_file() and p.suffix not in (".csv", ".lock"))


def test_choosing_the_own_class_is_keeping(cleaner: ImageClassifierCleaner) -> None:
    cleaner.widget  # noqa: B018
    look_at(cleaner, 0, 1)
    cleaner._view.cards[0].pick.index = 2
    assert not cleaner.choices.pending and cleaner._view.cards[0].pick.index == 0


def test_apply_asks_moves_and_can_be_taken_back(cleaner: ImageClassifierCleaner) -> None:
    cleaner.widget  # noqa: B018
    view, before = cleaner._view, tree_of(cleaner)
    a, b = look_at(cleaner, 0, 2)[:2]
    view.cards[0].pick.index, view.cards[1].pick.index = 1, 2
    view.ask.click()
    assert view.confirm.layout.display == "flex" and "1 file to the bin and give 1 file another class" in view.question.value
    view.no.click()
    assert view.confirm.layout.display == "none" and tree_of(cleaner) == before
    view.ask.click()
    view.yes.click()
    assert "2 edits applied" in view.said.value and not cleaner.choices.pending
    assert cleaner.fns[a].parent == cleaner.path / BIN / "plain" and cleaner.fns[a].exists()
    assert cleaner.fns[b].parent.name == HOSTILE and cleaner.fns[b].exists() and cleaner.files.labels[b] == HOSTILE
    assert a not in look_at(cleaner, 0, 2) and b not in view.shown
    assert tree_of(cleaner) != before
    cleaner.choose(b, "delete")
    cleaner.apply()
    for _ in range(2):
        view.restore.click()
    assert tree_of(cleaner) == before and view.restore.disabled and cleaner.files.labels[b] == "plain"
    assert a in cleaner.files.hardest(0, "plain") and b in cleaner.files.hardest(0, "plain")


def test_a_new_session_takes_back_what_an_old_one_applied(cleaner: ImageClassifierCleaner) -> None:
    before = tree_of(cleaner)
    cleaner.choose(0, "delete")
    cleaner.choose(3, "delete")
    assert not [o for o in cleaner.apply() if o.problem]
    fresh = ImageClassifierCleaner(make_learner(cleaner.path))
    assert len(fresh.fns) == len(before) - 2  # the bin is no class
    assert len(fresh.undo_applied()) == 2 and tree_of(fresh) == before


def test_loops_written_for_fastai(cleaner: ImageClassifierCleaner) -> None:
    n, path = len(tree_of(cleaner)), cleaner.path
    gone, moved = cleaner.fns[0], cleaner.fns[1]
    cleaner.choose(0, "delete")
    to = next(v for v in cleaner.vocab if v != moved.parent.name)
    moved = moved.rename(moved.with_name("unlike.png"))
    cleaner.files.fns[1] = moved
    cleaner.choose(1, to)
    for idx in cleaner.delete():
        cleaner.fns[idx].unlink()
    for idx, cat in cleaner.change():
        shutil.move(str(cleaner.fns[idx]), path / cat)
    assert len(tree_of(cleaner)) == n - 1 and not gone.exists() and (path / to / "unlike.png").exists()


def test_a_file_that_has_gone_stays_pending(cleaner: ImageClassifierCleaner) -> None:
    cleaner.widget  # noqa: B018
    i = look_at(cleaner, 0, 1)[0]
    cleaner.fns[i].unlink()
    cleaner.choose(i, "delete")
    cleaner._view.ask.click()
    cleaner._view.yes.click()
    assert "no longer there" in cleaner._view.said.value and cleaner.delete() == [i]


def test_apply_before_a_set_was_scored(cleaner: ImageClassifierCleaner) -> None:
    expected = ImageClassifierCleaner(cleaner.files.learn)
    expected.files.hardest(0)
    cleaner.choose(0, "delete")
    cleaner.apply()
    cleaner.fns[1].unlink()  # and somebody else took this one away
    cleaner.widget  # noqa: B018
    look_at(cleaner, 0, 0)
    assert sorted(cleaner.files.hardest(0)) == list(range(2, cleaner.files.n_train))
    for i in range(2, cleaner.files.n_train):
        (said, *numbers), (want, *wanted) = cleaner.files.about[i], expected.files.about[i]
        assert said == want and numbers == pytest.approx(wanted, rel=1e-4)


def test_a_choice_lands_on_the_picture_it_was_made_for(cleaner: ImageClassifierCleaner) -> None:
    """Next is pressed and, before the browser has drawn the new page, a list of the old one is changed."""
    cleaner.widget  # noqa: B018
    view, first = cleaner._view, list(look_at(cleaner, 0, 0))
    cards = list(view.cards)
    view.on.click()
    assert not set(view.shown) & set(first)
    cards[0].pick.set_state({"index": 1})  # as the browser's message does
    assert cleaner.delete() == [first[0]] and [c.pick.index for c in view.cards] == [0] * len(view.cards)
    view.back.click()
    assert view.shown == first and [c.pick.index for c in view.cards] == [1, 0, 0]
    view.label.index = 1
    view.label.index = 2
    assert cards[0].pick.comm is None or cards[0] in [*view.old, *view.cards]  # cards do not pile up
    assert len(view.old) <= cleaner.max_n
    cleaner.apply()
    cards[0].pick.set_state({"index": 0})
    cards[0].pick.set_state({"index": 2})  # its picture is in the bin
    assert not cleaner.choices.pending


def test_nobody_chooses_while_losses_are_computed(cleaner: ImageClassifierCleaner, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaner.widget  # noqa: B018
    view, score, during = cleaner._view, cleaner.files.score, []
    monkeypatch.setattr(cleaner.files, "score", lambda part: (during.append(len(view.grid.children)), score(part))[1])
    look_at(cleaner, 0, 0)
    assert during[0] == 0 and len(view.grid.children) == 3


def test_taking_back_leaves_other_choices(cleaner: ImageClassifierCleaner) -> None:
    home = cleaner.files.labels[0]
    other = next(v for v in cleaner.vocab if v != home)
    for choice, left in (("delete", [0]), (home, [])):
        cleaner.choose(0, other)
        cleaner.apply()
        cleaner.choose(0, choice)
        cleaner.undo_applied()
        assert cleaner.files.labels[0] == home and cleaner.delete() == left and not cleaner.change()
        cleaner.choose(0, "keep")


def test_the_cleaner_speaks(cleaner: ImageClassifierCleaner) -> None:
    cleaner.widget  # noqa: B018
    said = cleaner._view.voice.said
    look_at(cleaner, 0, 1)
    cleaner._view.cards[0].pick.index = 1
    cleaner.fns[cleaner.delete()[0]].unlink()
    cleaner._view.ask.click()
    cleaner._view.yes.click()
    said = cleaner._view.voice.said
    for line in ("Computing the losses ...", "1 edit pending: 1 to delete.", "Move 1 file to the bin?", "0 edits applied."):
        assert ("status", line) in said
    assert said[-1][0] == "alert" and "no longer there" in said[-1][1] and "role=" not in page(cleaner.widget)


def test_labels_that_are_no_folders_give_a_log_only(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for k in range(5):
            Image.new("RGB", (40, 40), "red").save(tmp_path / f"{label}_{k}.png")
    files = sorted(tmp_path.glob("*.png"))
    dls = ImageDataLoaders.from_name_re(tmp_path, files, r"(.+)_\d", valid_pct=0.4, seed=1, item_tfms=Resize(32), bs=4, num_workers=0,
                                        device="cpu")
    learn = vision_learner(dls, "coursenet", pretrained=False, seed=0)
    learn.progress = False
    cleaner = ImageClassifierCleaner(learn)
    cleaner.widget  # noqa: B018
    i, j = 0, next(k for k, v in enumerate(cleaner.files.labels) if v == "cat" and k)
    cleaner.choose(i, "delete")
    cleaner.choose(j, "dog")
    cleaner._view.ask.click()
    assert "only the log" in cleaner._view.question.value
    cleaner._view.yes.click()
    assert sorted(tmp_path.glob("*.png")) == files
    assert read_edits(tmp_path) == {cleaner.fns[i]: None, cleaner.fns[j]: "dog"}
    assert i not in cleaner.files.hardest(0) and cleaner.files.labels[j] == "dog"
    cleaner.undo_applied()
    assert read_edits(tmp_path) == {} and cleaner.files.labels[j] == "cat" and i in cleaner.files.hardest(0)


def test_what_the_cleaner_refuses(learn: Learner, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no data"):
        ImageClassifierCleaner(load_learner(learn.export(tmp_path / "m.ck"), device="cpu"))
    with pytest.raises(ValueError, match="ImageDataLoaders or a DataBlock"):
        LabelledFiles(synthetic_learner())
    with pytest.raises(ValueError, match="99"):
        ImageClassifierCleaner(learn).choose(99, "delete")


# ----------------------------------------------------------------------------------------------------- explorer


@given(st.floats(0, 0.98), st.floats(0.05, 1.9))
@settings(max_examples=50, deadline=None)
def test_limit_is_that_of_the_iteration_matrix(momentum: float, share: float) -> None:
    """A linear iteration converges just where the spectral radius of its matrix is below one; the path does the same."""
    if abs(share - 1) < 1e-3:
        return
    lr = share * 2 * (1 + momentum) / max(CURVATURES)
    radius = max(np.abs(np.linalg.eigvals([[1 - lr * c, -lr * momentum], [c, momentum]])).max() for c in CURVATURES)
    assert (radius < 1) == (share < 1)
    path = descend(lr, momentum, 1000)
    assert share < 1 or np.abs(path[-1]).max() > np.abs(path[0]).max()


def test_explorer_draws_at_every_place_of_its_sliders() -> None:
    ex = lr_explorer(steps=1000)
    for lr, m in ((1e-4, 0.0), (0.02, 0.5), (0.16, 0.5), (1.0, 0.98)):
        ex.slider.value, ex.momentum.value = lr, m
        (shown,) = ex.out.outputs
        text = shown["metadata"]["image/png"]["alt"]
        assert text in html.unescape(ex.text.value) and not re.search("nan|inf", text) and ex.voice.said[-1] == ("status", text)
        assert ("so the path diverges" in text) == (ex.lr > 0.1 * (1 + m))
        assert Image.open(io.BytesIO(base64.b64decode(shown["data"]["image/png"]))).width > 700
    data, metadata = ex._repr_mimebundle_()  # the picture is what a page without a kernel shows
    assert "application/vnd.jupyter.widget-view+json" in data and data["image/png"] == shown["data"]["image/png"] and metadata["image/png"]["alt"]
    check_html(page(ex.widget))


@pytest.mark.parametrize(("name", "value"), [("steps", 2.5), ("steps", True), ("steps", 0), ("lr", 5.0), ("momentum", 1.0)])
def test_what_the_explorer_refuses(name: str, value: float) -> None:
    with raises(ValueError, name, value):
        lr_explorer(**{name: value})


def test_explorer_of_a_learner() -> None:
    learn = synthetic_learner()
    for wrong in (learn, "model.ck"):
        with pytest.raises(ValueError, match="lr_find"):
            lr_explorer(wrong)
    learn.lr_find(show_plot=False)
    ex = lr_explorer(learn, lr=0.01)
    k = int(np.abs(np.log(np.array(learn.recorder.lrs) / 0.1)).argmin())
    said = float(re.search(r"ten times \(0\.1\): (\d+\.?\d*)", ex.text.value)[1])
    assert said == pytest.approx(learn.recorder.smooth_losses[k], rel=0.05) and ex.momentum.layout.display == "none"
    ex.slider.value = learn.recorder.lrs[-1]
    assert "not tried" in ex.text.value and len(ex.out.outputs) == 1


# ----------------------------------------------------------------------------------------------- what stays behind


def test_closed_widgets_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cleaners, uploads, explorers and progress bars, each used: no widget lives on, and neither does the model."""
    import ipywidgets

    from coursekit import display

    live = ipywidgets.widgets.widget._instances
    learn = make_learner(make_hostile_classes(tmp_path))
    learn.lr_find(num_it=10)
    before, photo = len(live), encoded(halves(), "PNG")
    monkeypatch.setattr(display, "in_notebook", lambda: True)
    for _ in range(3):
        cleaner, up, explorer = ImageClassifierCleaner(learn, max_n=2), upload_and_predict(learn), lr_explorer(learn)
        shown = [w._repr_mimebundle_() for w in (cleaner, up, explorer)]
        assert all(shown)
        send(up, ("a.png", photo), ("b.png", b"%PDF"))
        up.clear()
        for first in (2, 4, 0):
            cleaner._view.show_page(first)
        cleaner.choose(cleaner._view.shown[0], "delete")
        assert len(list(display.progress_bar(range(3)))) == 3
        for widget in (cleaner, up, explorer, cleaner):  # the second time, there is nothing to close
            widget.close()
        assert len(live) == before, [type(w).__name__ for w in list(live.values())[before:]]
    assert len(cleaner.delete()) == 1  # what was chosen stays
    assert cleaner.widget.children
    cleaner.close()
    gone = weakref.ref(learn)
    del learn, cleaner, up, explorer, widget
    gc.collect()
    assert gone() is None
