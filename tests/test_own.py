"""vision.collect, vision.folders and vision.plan: fetching, shrinking and understanding other people's pictures."""

from __future__ import annotations

import csv
import http.server
import os
import re
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import HOSTILE, encoded, halves, photo
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coursekit.data.archive import ArchiveError
from coursekit.data.items import get_image_files
from coursekit.vision import collect
from coursekit.vision.collect import _all_urls, download_images, resize_images
from coursekit.vision.data import ImageDataLoaders
from coursekit.vision.images import check_images
from coursekit.vision.folders import Labelled, folder_layout
from coursekit.vision.names import Index
from coursekit.vision.plan import _with_split, plan_data, same_files

GOOD, OTHER = encoded(photo(), "JPEG"), encoded(photo(seed=1), "PNG")


# ---------------------------------------------------------------------------------------------------- a server


class Server(http.server.BaseHTTPRequestHandler):
    """Each path is another kind of trouble."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, body: bytes, *, status: int = 200, kind: str = "image/jpeg", length: int | None = -1, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        self.wfile.write(body)

    def drip(self, parts) -> None:
        """One byte at a time until the client has had enough."""
        try:
            for part in parts:
                self.wfile.write(part)
                self.wfile.flush()
                if self.server.stop.wait(0.05):  # type: ignore[attr-defined]
                    return
        except OSError:
            return

    def do_GET(self) -> None:
        s = self.server
        with s.lock:  # type: ignore[attr-defined]
            s.asked.append(self.path)  # type: ignore[attr-defined]
        self.close_connection = True
        name = self.path.partition("?")[0].lstrip("/")
        getattr(self, f"get_{name.partition('.')[0].replace('-', '_')}", self.get_good)()

    def get_good(self) -> None:
        self.answer(GOOD)

    def get_other(self) -> None:
        self.answer(OTHER)

    def get_page(self) -> None:
        self.answer(b"<!doctype html><title>not found</title>")

    def get_missing(self) -> None:
        self.answer(b"", status=404)

    def get_broken(self) -> None:
        self.answer(b"", status=500)

    def get_told(self) -> None:
        self.answer(b"\xff\xd8\xff", length=10**11)

    def get_endless(self) -> None:
        self.answer(b"", length=None)
        try:
            while not self.server.stop.is_set():  # type: ignore[attr-defined]
                self.wfile.write(bytes(1 << 16))
        except OSError:
            pass

    def get_short(self) -> None:  # fewer bytes than told
        self.answer(GOOD[:-100], length=len(GOOD))

    def get_lying(self) -> None:  # more bytes than told: the rest is not read
        self.answer(GOOD, length=len(GOOD) // 2)

    def get_slow(self) -> None:
        self.answer(GOOD[:1], length=len(GOOD))
        self.drip(bytes([b]) for b in GOOD[1:])

    def get_slowhead(self) -> None:
        self.drip([b"HTTP/1.1 200 OK\r\nX-Wait: ", *[b"a"] * 1000])

    def get_silent(self) -> None:
        self.server.stop.wait(20)  # type: ignore[attr-defined]

    def get_loop(self) -> None:
        self.answer(b"", status=302, Location="/loop")

    def get_chain(self) -> None:
        self.answer(b"", status=302, Location=f"{self.path}x")

    def get_moved(self) -> None:
        self.answer(b"", status=301, Location="/good.jpg")

    def get_away(self) -> None:
        self.answer(b"", status=302, Location="http://example.org/cat.jpg")

    def get_inside(self) -> None:
        self.answer(b"", status=302, Location=f"http://127.0.0.1:{self.server.server_address[1]}/good.jpg")

    def get_file(self) -> None:
        self.answer(b"", status=302, Location="file:///etc/passwd")

    def get_nonsense(self) -> None:
        self.wfile.write(b"this is no HTTP at all\r\n\r\n")


@pytest.fixture(scope="module")
def server():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    made.asked, made.stop, made.lock, made.daemon_threads = [], threading.Event(), threading.Lock(), True  # type: ignore[attr-defined]
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.stop.set()  # type: ignore[attr-defined]
    made.shutdown()
    made.server_close()


@pytest.fixture
def at(server) -> str:
    server.asked.clear()
    return f"http://127.0.0.1:{server.server_port}/"


TROUBLE = {
    "page.jpg": "is a web page",
    "missing.jpg": "the server answered 404",
    "broken.jpg": "the server answered 500",
    "told.jpg": "connection broke.*received 3 bytes, expected 100000000000",
    "endless.jpg": r"more than the 0\.\d MB allowed",
    "short.jpg": "connection broke.*received",
    "lying.jpg": "is cut off",
    "slow.jpg": "took longer than 4 seconds",
    "silent.jpg": "timed out|took longer",
    "loop.jpg": "redirects more than five times",
    "chain.jpg": "redirects more than five times",
    "away.jpg": "leads to http://example.org/cat.jpg, which is not https",
    "file.jpg": "which is not https",
    "nonsense.jpg": "does not speak HTTP",
}


def test_every_trouble_is_one_line_and_the_rest_arrives(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_LARGEST", 100_000)
    urls = [f"{at}good.jpg", *(f"{at}{name}" for name in TROUBLE), f"{at}other.jpg", f"{at}moved.jpg", f"{at}bild-ü%20 ñ.jpg?größe=1"]
    wrong = ["http://example.org/a.jpg", "ftp://example.org/a.jpg", "cat.jpg", "", "https://", "https://[::1", "file:///etc/passwd",
             "data:image/png;base64,AAAA", "https://exa mple.org/\x00", f"http://127.0.0.1:{1}/refused.jpg"]
    report = download_images(tmp_path, [*urls, *wrong], timeout=4, private=True)  # a busy machine is slow to redirect
    assert [r.url for r in report.rows] == [*urls, *wrong]
    state = {r.url: r.status for r in report.rows}
    assert state[f"{at}good.jpg"] == state[f"{at}other.jpg"] == "saved"
    assert state[f"{at}moved.jpg"] == state[urls[-1]] == "duplicate"
    for name, reason in TROUBLE.items():
        assert state[at + name] == "failed"
        assert re.search(reason, report.failed[at + name]), (name, report.failed[at + name])
    for url in wrong:
        assert state[url] == "failed" and report.failed[url] and report.failed[url].isprintable()
    assert "not https" in report.failed["http://example.org/a.jpg"]
    assert "not a web address" in report.failed["cat.jpg"]
    saved = get_image_files(tmp_path)
    assert sorted(saved) == sorted(report.files) and sorted(f.read_bytes() for f in saved) == sorted([GOOD, OTHER])
    assert {f.suffix for f in saved} == {".jpg", ".png"}  # other.jpg is a PNG
    assert {p.name for p in tmp_path.iterdir()} == {f.name for f in saved}


def test_a_second_call_keeps_what_is_there(at: str, server, tmp_path: Path) -> None:
    urls = [f"{at}good.jpg", f"{at}other.png", f"{at}again.jpg", f"{at}missing.jpg"]
    assert [r.status for r in download_images(tmp_path, urls, private=True).rows] == ["saved", "saved", "duplicate", "failed"]
    files = tree(tmp_path)
    assert [r.status for r in download_images(tmp_path, urls, private=True).rows] == ["there already", "there already", "duplicate", "failed"]
    assert tree(tmp_path) == files


def test_a_broken_connection_is_tried_again(at: str, server, tmp_path: Path) -> None:
    download_images(tmp_path, [f"{at}short.jpg", f"{at}missing.jpg"], private=True)
    assert Counter(server.asked) == {"/short.jpg": 2, "/missing.jpg": 1}


def test_no_progress_bar_in_a_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = [f"ftp://example.org/{i}" for i in range(300)]
    assert len(download_images(tmp_path / "web", names).failed) == 300
    (tmp_path / "src").mkdir()
    for i in range(210):
        (tmp_path / "src" / f"{i}.png").write_bytes(b"")
    assert len(resize_images(tmp_path / "src", tmp_path / "dest")) == len(check_images(get_image_files(tmp_path / "src"))) == 210
    assert capfd.readouterr() == ("", "")


def test_names_come_from_the_bytes_alone(at: str, tmp_path: Path) -> None:
    report = download_images(tmp_path / "in", [f"{at}..%2f..%2fup.jpg", f"{at}../../up2.php?x=/etc/a.exe", f"{at}con.jpg%00.exe"], private=True)
    assert [r.status for r in report.rows] == ["saved", "duplicate", "duplicate"]
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert len(report.files) == 1 and report.files[0].stem.isalnum()


def test_lists_of_addresses(at: str, server, tmp_path: Path) -> None:
    text, table, tabs = tmp_path / "urls.txt", tmp_path / "u.csv", tmp_path / "u.tsv"
    text.write_text(f"\ufeff# cats\n{at}good.jpg\n\n  {at}good.jpg \n{at}a,b.jpg\n", encoding="utf-8")
    assert _all_urls(text) == [f"{at}good.jpg", f"{at}a,b.jpg"]
    with open(table, "w", newline="") as f:
        csv.writer(f).writerows([["id", "where", "note"], ["1", f"{at}good.jpg", "a, b"], ["2", f"{at}other.jpg", ""], ["3", "", "-"]])
    tabs.write_text(f"{at}good.jpg\tcat\n{at}other.jpg\tdog\n")
    assert _all_urls(table) == _all_urls(tabs) == [f"{at}good.jpg", f"{at}other.jpg"]
    report = download_images(tmp_path / "out", str(table), max_pics=1, private=True)
    assert len(report.rows) == 1
    for wrong in ([], tmp_path / "none.txt", "https://example.org/a.jpg"):
        with pytest.raises((ValueError, FileNotFoundError), match="address|none.txt"):
            download_images(tmp_path / "x", wrong)
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="timeout must be"):
        download_images(tmp_path, [at], timeout=0)


def test_the_report_is_safe_to_show(tmp_path: Path) -> None:
    report = download_images(tmp_path, [f"{HOSTILE}", "https://example.org\x1b[31m/"])
    assert "\x1b" not in repr(report) and len(report.failed) == 2


# ------------------------------------------------------------------------------------------------------ resize_images


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def large(tmp_path: Path) -> Path:
    src = tmp_path / "src"
    for name, size, mode in (("a/wide.jpg", (400, 200), "RGB"), ("a/b/tall.png", (100, 300), "RGB"), ("tiny.gif", (20, 10), "RGB"),
                             ("cmyk.jpg", (300, 300), "CMYK"), ("x.webp", (257, 129), "RGB"), ("y.BMP", (99, 99), "RGB")):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        halves(size).convert(mode).save(src / name)
    return src


def test_resize_keeps_the_tree_and_the_shape(large: Path, tmp_path: Path) -> None:
    before, dest = tree(large), tmp_path / "small"
    assert resize_images(large, dest, max_size=64) == [] and tree(large) == before
    assert set(tree(dest)) == set(before)
    for name in before:
        with Image.open(large / name) as old, Image.open(dest / name) as new:
            scale = min(1, 64 / max(old.size))
            assert all(abs(n - o * scale) <= 1 for n, o in zip(new.size, old.size))
            assert new.format == old.format and not new.getexif()
            left = np.asarray(new.convert("RGB"), dtype=int)[new.height // 2, new.width // 8]
            assert left[0] > 150 and left[2] < 90


def test_resize_keeps_names_without_an_ending(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for name, fmt in (("a.jif", "JPEG"), ("scan", "JPEG"), ("page.2", "PNG")):
        halves((200, 100)).save(tmp_path / "src" / name, fmt)
    assert resize_images(tmp_path / "src", tmp_path / "dest", max_size=64) == []
    for name, fmt in (("a.jif", "JPEG"), ("scan", "JPEG"), ("page.2", "PNG")):
        with Image.open(tmp_path / "dest" / name) as img:
            assert (img.format, img.size) == (fmt, (64, 32))


def test_resize_turns_by_exif_and_drops_it(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    halves((400, 200)).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "src" / "a.jpg", exif=exif)
    resize_images(tmp_path / "src", tmp_path / "dest", max_size=100)
    with Image.open(tmp_path / "dest" / "a.jpg") as img:
        assert img.size == (100, 50) and not img.getexif()
        assert img.getpixel((10, 25))[0] > 150 and img.getpixel((90, 25))[2] > 150


def test_resize_reports_the_bad_ones(large: Path, tmp_path: Path) -> None:
    (large / "cut.jpg").write_bytes(encoded(photo(), "JPEG")[:700])
    (large / "a" / "drawing.svg").write_bytes(b"<svg/>")
    bad = resize_images(large, tmp_path / "small", max_size=64)
    assert {f.name: why.split(" (")[0] for f, why in bad} == {
        "cut.jpg": "is cut off", "drawing.svg": "has the ending .svg, which images cannot be saved with"}
    assert len(tree(tmp_path / "small")) == 6


def test_resize_never_writes_to_the_source(large: Path, tmp_path: Path) -> None:
    before = tree(large)
    for dest in (large / "small", tmp_path):
        with pytest.raises(ValueError, match="overlap"):
            resize_images(large, dest, max_size=8)
    (tmp_path / "dest").mkdir()
    try:
        (tmp_path / "link").symlink_to(large)
        (tmp_path / "dest" / "a").symlink_to(large / "a")
        os.link(large / "tiny.gif", tmp_path / "dest" / "tiny.gif")
    except OSError:
        pytest.skip("this system has no links")
    with pytest.raises(ValueError, match="overlap"):
        resize_images(large, tmp_path / "link", max_size=8)
    bad = resize_images(large, tmp_path / "dest", max_size=8)
    assert tree(large) == before
    assert {f.name for f, _ in bad} == {"wide.jpg", "tall.png"} and all("link" in why for _, why in bad)


def test_resize_in_place_replaces_larger_images_only(large: Path) -> None:
    before = tree(large)
    assert resize_images(large, dest=large, max_size=99) == []
    for name, data in tree(large).items():
        with Image.open(large / name) as img:
            assert max(img.size) <= 99 and (data == before[name]) == (name in ("tiny.gif", "y.BMP"))
    (large / "cut.jpg").write_bytes(before["a/wide.jpg"][:700])
    assert [f.name for f, _ in resize_images(large, large, max_size=99)] == ["cut.jpg"] and len((large / "cut.jpg").read_bytes()) == 700


def test_resize_refuses_a_size_of_zero(large: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_size must be"):
        resize_images(large, tmp_path / "x", max_size=0)
    assert not (tmp_path / "x").exists()


# ------------------------------------------------------------------------------------------------------ plan_data


def write(root: Path, *names: str) -> Path:
    """Small pictures, no two alike, whatever else is not called one."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".jpg", ".png")):
            img = Image.new("RGB", (12, 10), tuple(hash_of(name)))
            img.save(root / name, "PNG")
        else:
            (root / name).write_text("text")
    return root


def hash_of(name: str) -> list[int]:
    return [sum(map(ord, name)) % 256, len(name), int.from_bytes(name.encode(), "big") % 251]


def many(pattern: str, n: int = 12) -> list[str]:
    return [pattern.format(i) for i in range(n)]


def labels(plan) -> dict[str, object]:
    return {i.file.name: i.label for i in plan.items}


LAYOUTS = {
    "folders": [*many("cat/{}.png"), *many("dog/{}.png")],
    "wrapped": [*many("pets-main/cat/{}.png"), *many("pets-main/dog/{}.png"), "__MACOSX/pets-main/cat/1.png"],
    "images": [*many("images/cat/{}.png"), *many("images/dog/{}.png"), "README.md"],
    "sides": [*many("train/cat/{}.png"), *many("train/dog/{}.png"), *many("valid/cat/v{}.png", 3), *many("valid/dog/v{}.png", 3)],
    "test only": [*many("Training/cat/{}.png"), *many("Training/dog/{}.png"), *many("test/cat/t{}.png", 2), *many("test/dog/t{}.png", 2)],
    "names": [*many("cat_{}.png"), *many("dog_{}.png")],
    "dots": [*many("train/cat.{}.png"), *many("train/dog.{}.png"), *many("test1/{}.png")],
    "sides, names": [*many("train/cat_{}.png"), *many("train/dog_{}.png"), *many("val/cat_{}.png", 2), *many("val/dog_{}.png", 2)],
    "behind": [*many("{}-cat.png"), *many("{}-dog.png")],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path: Path, name: str) -> None:
    plan = plan_data(write(tmp_path, *LAYOUTS[name]))
    assert plan.classes == ["cat", "dog"], plan
    n_valid = sum(plan.counts(True).values())
    sides = name.startswith(("sides", "test"))
    assert sum(plan.counts(False).values()) == (24 if sides else 20) and bool(plan.layout.split) == sides
    assert n_valid == {"sides": 6}.get(name, 4)
    assert all(i.label in i.file.relative_to(tmp_path).as_posix() for i in plan.items)
    assert not [n for n in plan.notes if n.level == "problem"]
    dls = plan.dataloaders(size=8, bs=4, num_workers=0, device="cpu")
    assert (len(dls.train.dataset), len(dls.valid.dataset)) == (sum(plan.counts(False).values()), n_valid)


def test_agrees_with_from_folder(tmp_path: Path) -> None:
    """The same classes and the same pictures as the constructor for that layout."""
    root = write(tmp_path, *LAYOUTS["sides"])
    known = ImageDataLoaders.from_folder(root, bs=4, num_workers=0, device="cpu")
    dls = ImageDataLoaders.from_path(root, size=8, bs=4, num_workers=0, device="cpu")
    assert dls.vocab == known.vocab
    for side in ("train", "valid"):
        theirs, ours = (getattr(d, side).dataset for d in (known, dls))
        assert sorted((str(f), f.parent.name) for f in theirs.items) == sorted((str(f), label) for f, label in ours.items)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar"])
def test_archives(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "in", *LAYOUTS["folders"])
    archive = tmp_path / f"My pets!.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as z:
            for p in get_image_files(root):
                z.write(p, f"top/{p.relative_to(root)}")
    else:
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as t:
            t.add(root, "top")
    plan = plan_data(archive)
    assert plan.classes == ["cat", "dog"] and len(plan.items) == 24
    home = Path(os.environ["COURSEKIT_HOME"]) / "own"
    assert plan.layout.root.is_relative_to(home) and plan.layout.root.parent.name.startswith("My_pets_-")
    stamp = plan.layout.root.stat().st_ino
    assert plan_data(archive).layout.root.stat().st_ino == stamp  # unpacked once
    dls = ImageDataLoaders.from_path(archive, size=8, bs=4, num_workers=0, device="cpu")
    assert dls.vocab == ["cat", "dog"] and "a folder for each class" in capsys.readouterr().out


def test_hostile_archives_are_refused_whole(tmp_path: Path) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("cat/1.png", encoded(halves(), "PNG"))
        z.writestr("../../evil.png", encoded(halves(), "PNG"))
    with pytest.raises(ArchiveError, match="plan_data: .*leads out of the folder"):
        plan_data(archive)
    assert not list(tmp_path.rglob("evil.png")) and not list(Path(os.environ["COURSEKIT_HOME"]).rglob("evil.png"))
    archive.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ArchiveError) as caught:
        plan_data(archive)
    assert str(caught.value).isprintable()


TABLES = {
    "plain": ("name,label\n", "{f},{c}\n", ","),
    "no header": ("", "{f},{c}\n", ","),
    "semicolon": ("Datei;Art\n", "{f};{c}\n", ";"),
    "stems": ("id,breed\n", "{s},{c}\n", ","),
    "other columns": ("no,comment,image,species\n", '{i},"a, b",{f},{c}\n', ","),
    "old paths": ("image,label\n", "C:\\\\data\\\\pics\\\\{f},{c}\n", ","),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path: Path, name: str) -> None:
    head, row, _ = TABLES[name]
    root = write(tmp_path, *many("pics/p{}.png", 24))
    rows = [row.format(f=f"p{i}.png", s=f"p{i}", c="cat" if i % 3 else "dog", i=i) for i in range(24)]
    (root / "list.csv").write_text("\ufeff" + head + "".join(rows), encoding="utf-8")
    for source in (root / "list.csv", root):
        plan = plan_data(source)
        assert labels(plan) == {f"p{i}.png": "cat" if i % 3 else "dog" for i in range(24)}, plan
    assert plan_data(root / "list.csv", images=root / "pics").classes == ["cat", "dog"]


@pytest.mark.parametrize(("column", "values"), [("is_valid", ("True", "False")), ("split", ("valid", "train")), ("set", ("TEST", "train")),
                                                ("is_valid", ("1", "0"))])
def test_a_table_says_what_validates(tmp_path: Path, column: str, values: tuple[str, str]) -> None:
    root = write(tmp_path, *many("p{}.png", 24))
    rows = [f"p{i}.png,{'cat' if i % 2 else 'dog'},{values[i >= 6]}" for i in range(24)]
    (root / "t.csv").write_text(f"file,label,{column}\n" + "\n".join(rows))
    plan = plan_data(root)
    assert {i.file.name for i in plan.items if i.valid} == {f"p{i}.png" for i in range(6)}


def test_several_labels_a_picture(tmp_path: Path) -> None:
    root = write(tmp_path, *many("p{}.png", 20))
    (root / "t.csv").write_text("file,tags\n" + "".join(f"p{i}.png,{'cat dog' if i % 2 else 'dog'}\n" for i in range(19)) + "p19.png,\n")
    plan = plan_data(root)
    assert plan.layout.multi and plan.classes == ["cat", "dog"]
    assert labels(plan)["p1.png"] == ("cat", "dog") and labels(plan)["p19.png"] == ()
    x, y = plan.dataloaders(size=8, bs=4, num_workers=0, device="cpu").one_batch()
    assert y.shape[1] == 2 and set(y.unique().tolist()) <= {0.0, 1.0}


def test_tables_with_faults(tmp_path: Path) -> None:
    root = write(tmp_path, *many("a/p{}.png", 24), "b/p1.png", "a/extra.png")
    rows = [f"a/p{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(20)]
    rows += ["gone.png,cat", "../../../etc/passwd,cat", "p1.png,dog", "a/p2.png,cat", "a/p3.png,cat", "a/p20.png,"]
    (root / "t.csv").write_text("file,label\n" + "\n".join(rows))
    plan = plan_data(root)
    assert plan.layout.missing == ["gone.png", "../../../etc/passwd", "p1.png"]  # the last one is in two folders
    assert [f.name for f in plan.layout.clashes] == ["p2.png"] and "p2.png" not in labels(plan)
    assert {f.name for f in plan.layout.stray} >= {"extra.png"} and len(plan.items) == 19
    text = " ".join(map(str, plan.notes))
    for words in ("3 rows of the table without an image file", "different classes, left out: a/p2.png", "1 row of the table without a label"):
        assert words in text, text
    (root / "urls.csv").write_text("url,label\nhttps://example.org/1.jpg,cat\n")
    with pytest.raises(ValueError, match="download_images"):
        plan_data(root / "urls.csv")


def test_a_missing_picture_does_not_get_another_ones_label(tmp_path: Path) -> None:
    root = write(tmp_path, *many("dog/{}.png"), *many("cow/c{}.png"))  # no folder cat
    rows = [f"{folder}/{i}.png,cat" for i in range(12) for folder in ("cat", "C:/old/cat")] + [f"cow/c{i}.png,cow" for i in range(12)]
    (root / "t.csv").write_text("file,label\n" + "\n".join(rows))
    plan = plan_data(root / "t.csv")
    assert set(labels(plan).values()) == {"cow"} and len(plan.layout.missing) == 24
    assert {f.parent.name for f in plan.layout.stray} == {"dog"}


def test_a_path_that_is_all_there_has_one_meaning(tmp_path: Path) -> None:
    root = write(tmp_path, *many("p{}.png", 24), *many("thumbs/p{}.png", 24), *many("thumbs/deep/p{}.png", 24))
    (root / "t.csv").write_text("file,label\n" + "".join(f"p{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(24)))
    plan = plan_data(root)
    assert {i.file for i in plan.items} == {root / f"p{i}.png" for i in range(24)} and not plan.layout.missing
    assert len(plan.layout.stray) == 48


@settings(max_examples=80, deadline=None)
@given(paths=st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(tuple), min_size=1, max_size=8),
       cell=st.lists(st.sampled_from("abc"), min_size=1, max_size=4), elsewhere=st.booleans())
def test_a_cell_means_a_file_whose_folders_agree(paths: set[tuple[str, ...]], cell: list[str], elsewhere: bool) -> None:
    """Of a file's path and a cell, the shorter one is the end of the longer; what is named exactly is found."""
    root = Path("/nowhere/root")
    files = [root.joinpath(*p).with_suffix(".png") for p in sorted(paths)]
    found = Index(root, files).find(("D:/" if elsewhere else "") + "/".join(cell) + ".png")
    if not elsewhere and tuple(cell) in paths:
        assert found == root.joinpath(*cell).with_suffix(".png")
    elif found is not None:
        path = list(found.relative_to(root).with_suffix("").parts)
        n = min(len(path), len(cell))
        assert path[-n:] == cell[-n:] and (n == len(path) or not elsewhere)
        assert elsewhere or n > 1 or len(cell) == 1


def test_one_comma_is_no_list(tmp_path: Path) -> None:
    root = write(tmp_path, *many("p{}.png", 24))

    def table(*values: str) -> None:
        rows = [*values, *["cat", "dog"] * 12][:24]
        (root / "t.csv").write_text("file,label\n" + "".join(f'p{i}.png,"{v}"\n' for i, v in enumerate(rows)))

    table("dog, old")
    plan = plan_data(root)
    assert plan.classes == ["cat", "dog", "dog, old"] and not plan.layout.multi
    doubt = [str(n) for n in plan.notes if "comma" in n.text]
    assert len(doubt) == 1 and "label_delim=','" in doubt[0]
    table("Retriever, golden", "Retriever, flat-coated", "Dane, great")
    assert not plan_data(root).layout.multi
    table("cat,dog", "dog, cat")
    assert plan_data(root).layout.multi and plan_data(root).classes == ["cat", "dog"]


@settings(max_examples=40, deadline=None)
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda t: t.encode("utf-8", "replace"))))
def test_any_bytes_as_a_table(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """One readable error, whatever a table holds."""
    root = tmp_path_factory.getbasetemp() / "any"
    if not root.exists():
        write(root, "one-picture.png", "another-picture.png")
    (root / "t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=r"^plan_data: ") as caught:
        plan_data(root / "t.csv")
    assert "\n" not in str(caught.value)


def test_sources_that_say_nothing(tmp_path: Path) -> None:
    flat = write(tmp_path / "flat", *many("IMG_{}.jpg"))
    layouts = "a folder for each class .*train and valid.*file name.*CSV file"
    for root, why in ((flat, "all in one folder"), (write(tmp_path / "one", *many("cat/{}.png")), "all in one folder"),
                      (write(tmp_path / "none", "a.txt"), "no images")):
        with pytest.raises(ValueError, match=why) as caught:
            plan_data(root)
        assert re.search(layouts, str(caught.value)) and str(caught.value).isprintable()
    (tmp_path / "empty.csv").write_text("")
    wrong = [(tmp_path / "nowhere", "nowhere does not exist"), ("https://example.org/x.zip", "web address"), (flat / "IMG_1.jpg", "is one file"),
             (tmp_path / "empty.csv", "is empty")]
    for source, why in wrong:
        with pytest.raises((ValueError, TypeError, FileNotFoundError), match=why) as caught:
            plan_data(source)
        assert str(caught.value).startswith("plan_data: ") and "\n" not in str(caught.value)
    for options in ({"pat": "("}, {"pat": "cat"}, {"valid_pct": 1.5}, {"images": flat}):
        with pytest.raises(ValueError, match=next(iter(options))):
            plan_data(flat, **options)


def test_a_pattern_is_for_file_names(tmp_path: Path) -> None:
    listed = write(tmp_path, *LAYOUTS["names"])
    (listed / "t.csv").write_text("file,kind\n" + "".join(f"{n},{'old' if i % 2 else 'new'}\n" for i, n in enumerate(LAYOUTS["names"])))
    with pytest.raises(ValueError, match=r"plan_data: pat=.*the source is a table"):
        plan_data(listed / "t.csv", pat=r"(\w+)_\d")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    names = [n for c in ("bus", "car", "train") for n in many(c + "/{}.png")]
    for root in (write(tmp_path / "a", *names), write(tmp_path / "b" / "images", *names).parent):
        plan = plan_data(root)
        assert plan.classes == ["bus", "car", "train"] and not plan.layout.split
        assert all(i.label == i.file.parent.name for i in plan.items) and len(plan.items) == 36
    alone = plan_data(write(tmp_path / "c", *many("train/cat/{}.png"), *many("train/dog/{}.png"), "notes/a.txt"))
    assert alone.classes == ["cat", "dog"]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_test_set_beside_train_and_valid(tmp_path: Path, labelled: bool) -> None:
    tests = ["test/cat/t1.png", "test/dog/t2.png", "test/dog/t3.png"] if labelled else ["test/t1.png", "test/t2.png", "test/t3.png"]
    plan = plan_data(write(tmp_path, *LAYOUTS["sides"], *tests))
    assert len(plan.items) == 30 and not plan.others
    kept = sorted(tmp_path / name for name in tests)
    assert (sorted(plan.layout.tests), plan.layout.stray) == ((kept, []) if labelled else ([], kept))
    assert ("3 images for a test, left alone" if labelled else "3 images without a label, left alone") in repr(plan)


def test_rows_for_a_test_are_no_other_files(tmp_path: Path) -> None:
    root = write(tmp_path, *many("p{}.png", 24))
    sides = ["train"] * 12 + ["valid"] * 6 + ["test"] * 6
    (root / "t.csv").write_text("file,label,split\n" + "".join(f"p{i}.png,{'cat' if i % 2 else 'dog'},{s}\n" for i, s in enumerate(sides)))
    plan = plan_data(root)
    assert {f.name for f in plan.layout.tests} == {f"p{i}.png" for i in range(18, 24)} and not plan.others
    assert "6 images for a test, left alone" in repr(plan)


def test_a_class_that_is_only_validated(tmp_path: Path) -> None:
    plan = plan_data(write(tmp_path, *LAYOUTS["sides"], *many("valid/cow/v{}.png", 2)))
    notes = [str(n) for n in plan.notes if "only in validation: cow" in n.text]
    assert len(notes) == 1 and "move some images to the other side" in notes[0]
    dls = plan.dataloaders(size=8, bs=4, num_workers=0, device="cpu")
    assert dls.vocab == ["cat", "cow", "dog"] and 1 not in {int(y) for _, y in dls.train.dataset}


def test_a_pattern_of_ones_own(tmp_path: Path) -> None:
    root = write(tmp_path, *many("x-red-{}.png"), *many("x-blue-{}.png"), "other.png")
    plan = plan_data(root, pat=r"x-(\w+)-\d")
    assert plan.classes == ["blue", "red"] and [f.name for f in plan.layout.stray] == ["other.png"]


def test_faults_of_a_folder_are_all_named(tmp_path: Path) -> None:
    names = [*many("train/cat/{}.png", 30), *many("train/dog/{}.png", 3), *many("train/Cats/c{}.png", 11), *many("valid/cat/v{}.png", 4),
             *many("valid/cow/v{}.png", 2), "train/cat/notes.txt", "loose.png"]
    root = write(tmp_path, *names)
    (root / "train/cat/bad.png").write_bytes(OTHER[:300])
    copy, leak, clash = root / "train/cat/copy.png", root / "valid/cat/leak.png", root / "train/Cats/clash.png"
    copy.write_bytes((root / "train/cat/0.png").read_bytes())
    leak.write_bytes((root / "train/cat/1.png").read_bytes())
    clash.write_bytes((root / "train/dog/2.png").read_bytes())
    before = tree(root)
    plan = plan_data(root)
    assert tree(root) == before
    used = {i.file for i in plan.items}
    assert len(used & {copy, root / "train/cat/0.png"}) == 1
    assert leak in used and root / "train/cat/1.png" not in used
    assert not used & {clash, root / "train/dog/2.png", root / "train/cat/bad.png"}
    text = repr(plan)
    for words in ("1 file cannot be read, left out: train/cat/bad.png is ", "different classes, left out: ", "only in training: Cats, dog",
                  "only in validation: cow", "'Cats', 'cat'", "fewer than 10 images to learn from: dog (2)", "unequal classes: 29 of cat, 2 of dog",
                  "in training and in validation", "1 image without a label, left alone: loose.png",
                  "1 other file: train/cat/notes.txt", "folders train and valid, in each a folder for each class"):
        assert words in text, f"{words!r} is not in\n{text}"


def test_clean_data_has_no_warnings(tmp_path: Path) -> None:
    assert plan_data(write(tmp_path, *many("cat/{}.png", 15), *many("dog/{}.png", 15))).notes == []


def test_one_class_is_a_plan_and_no_loaders(tmp_path: Path) -> None:
    plan = plan_data(write(tmp_path, *many("train/cat/{}.png"), *many("train/dog/{}.png", 1), *many("valid/cat/v{}.png", 3)))
    assert plan.classes == ["cat", "dog"]
    (tmp_path / "train/dog/0.png").write_bytes(b"")
    plan = plan_data(tmp_path)
    assert "there is only one class, cat" in repr(plan)
    with pytest.raises(ValueError, match="only one class"):
        plan.dataloaders()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot write such names")
def test_names_of_strangers(tmp_path: Path) -> None:
    root = write(tmp_path, *many(f"{HOSTILE}/{{}}.png"), *many("a\x1b[31m\nb/{}.png"), *many("$x_{{1}}^$/{}.png"))
    plan = plan_data(root)
    assert len(plan.classes) == 3
    assert "\x1b" not in repr(plan)
    dls = plan.dataloaders(size=16, bs=4, num_workers=0, device="cpu")
    dls.show_batch(max_n=4)
    with pytest.raises(ValueError) as caught:
        plan_data(root / HOSTILE)
    assert str(caught.value).isprintable()


@settings(max_examples=80, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), pct=st.floats(0, 0.9), seed=st.integers(0, 99))
def test_the_split_is_fair_to_each_class(sizes: list[int], pct: float, seed: int) -> None:
    items = [Labelled(Path(f"{c}-{i}.png"), f"c{c}") for c, n in enumerate(sizes) for i in range(n)]
    split = _with_split(items, pct, seed)
    assert split == _with_split(items, pct, seed) and [i.file for i in split] == [i.file for i in items]
    for c, n in enumerate(sizes):
        k = sum(bool(i.valid) for i in split if i.label == f"c{c}")
        assert 0 <= k < n and (abs(k - pct * n) <= 1 or k == n - 1 or pct == 0)
        assert k >= 1 or n == 1 or pct == 0


def test_other_classes_do_not_change_a_class_split() -> None:
    cats = [Labelled(Path(f"{i}.png"), "cat") for i in range(20)]
    dogs = [Labelled(Path(f"d{i}.png"), "dog") for i in range(9)]
    assert _with_split(cats, 0.2, 3) == _with_split(dogs + cats, 0.2, 3)[9:]
    assert _with_split(cats, 0.2, 3) != _with_split(cats, 0.2, 4)


def test_same_files_agrees_with_a_comparison_of_all_pairs(tmp_path: Path) -> None:
    contents = [b"a", b"b", b"aa", b"a", b"", b"", b"b", b"a", b"c"]
    files = [tmp_path / str(i) for i in range(len(contents))]
    for f, data in zip(files, contents):
        f.write_bytes(data)
    pairs = {(a.name, b.name) for g in same_files(files) for a in g for b in g if a < b}
    assert pairs == {(str(i), str(j)) for i in range(9) for j in range(i + 1, 9) if contents[i] == contents[j]}


def test_folder_layout_reads_names_only(tmp_path: Path) -> None:
    for name in LAYOUTS["folders"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert len(folder_layout(tmp_path).items) == 24


def test_public_names() -> None:
    names: dict[str, object] = {}
    exec("from coursekit.vision.all import *", names)
    assert {"plan_data", "download_images", "resize_images", "verify_images"} <= names.keys()
