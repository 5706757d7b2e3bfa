"""Archives that ask for too much, and data that would steer the program, each really made."""

from __future__ import annotations

import binascii
import bz2
import contextlib
import gzip
import io
import lzma
import os
import random
import resource
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_faults_downloads import as_nobody, closed_folder, files_below, full_at_a_megabyte  # noqa: F401

from coursekit.core import DiskError
from coursekit.data import archive as archive_module
from coursekit.data.archive import ArchiveError, Limits, extract_archive, extract_each
from coursekit.data.tables import as_number, read_table
from coursekit.vision.collect import download_images
from coursekit.vision.data import ImageDataLoaders
from coursekit.vision.images import _LARGE, MAX_PIXELS, ImageError, load_image
from coursekit.vision.names import Index, by_names
from coursekit.vision.plan import plan_data

MEGABYTE = bytes(1 << 20)
PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "tar": bytes}


def tar_of(*entries: tuple[str, bytes | None]) -> bytes:
    """A plain tar file of files, and folders (None)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as t:
        for name, data in entries:
            m = tarfile.TarInfo(name)
            m.type, m.size = (tarfile.DIRTYPE, 0) if data is None else (tarfile.REGTYPE, len(data))
            t.addfile(m, io.BytesIO(data or b""))
    return out.getvalue()


def header(kind: bytes, size: int) -> bytes:
    m = tarfile.TarInfo("x")
    m.type, m.size = kind, size
    return m.tobuf(tarfile.GNU_FORMAT)


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """512 MB more than the process has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 29), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(folder: Path, data: bytes, match: str, limits: Limits = Limits()) -> None:
    """The archive is refused with one line that names it, nothing stays, and little memory was used."""
    folder.mkdir(exist_ok=True)
    (folder / "evil.bin").write_bytes(data)
    with little_memory(), pytest.raises(ArchiveError, match=match) as e:
        extract_archive(folder / "evil.bin", folder / "out", limits=limits)
    assert "evil.bin" in str(e.value)
    assert [p.name for p in folder.iterdir()] == ["evil.bin"]


# ------------------------------------------------------------------------------------------------------------- bombs


@pytest.mark.parametrize("pack", [*PACK, "zip"])
def test_folders_within_folders(tmp_path: Path, pack: str) -> None:
    """60,000 of them fit into 300 bytes, and each takes longer to make than the one before."""
    for depth, match in [(60_000 if pack != "zip" else 30_000, "name of more than 1,000"), (400, "more than 32 folders"), (33, "more than 32 folders")]:
        if pack == "zip":
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w") as z:
                z.writestr("a/" * depth, b"")
            data = out.getvalue()
        else:
            data = PACK[pack](tar_of(("a/" * depth, None)))
        refused(tmp_path / str(depth), data, match)
    data = PACK.get(pack, bytes)(tar_of(("a/" * 31 + "x", b"1")))
    (tmp_path / "good").write_bytes(data)
    assert extract_archive(tmp_path / "good", tmp_path / "out").joinpath(*"a" * 31, "x").read_bytes() == b"1"


@pytest.mark.parametrize("pack", ["gz", "bz2", "xz"])
def test_what_stands_behind_the_end_is_counted(tmp_path: Path, pack: str) -> None:
    """Gigabytes of zeros in a few kilobytes, after the last entry or within one."""
    end = PACK[pack](MEGABYTE) * 600
    refused(tmp_path / "behind", PACK[pack](tar_of(("a", b"1"))) + end, "250 times its size")
    refused(tmp_path / "within", PACK[pack](header(tarfile.REGTYPE, 3 << 30)) + end, "250 times its size")
    refused(tmp_path / "skipped", PACK[pack](header(b"Z", 3 << 30)) + end, "special|250 times its size")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_absurd_headers(tmp_path: Path, kind: bytes) -> None:
    zeros = gzip.compress(MEGABYTE)
    for size, match in [(20 << 30, "longer than 2 MB"), (3 << 20, "longer than 2 MB"), (-1, "damaged"), (-(1 << 40), "damaged|longer than 2 MB")]:
        refused(tmp_path / str(size), gzip.compress(header(kind, size)) + zeros * 5, match)
    chain = gzip.compress(header(kind, 2 << 20)) + zeros * 2
    refused(tmp_path / "chain", chain * 400, "250 times its size|damaged")


@pytest.mark.parametrize("text", [b"1" * (2 << 20), b"2 " * (1 << 20), b"9" * 99 + b" a=b\n", b"11 a=bcdefg", b"99 path=a\n", b"9 =a\n"], ids=range(6))
def test_extended_headers_that_take_hours(tmp_path: Path, text: bytes) -> None:
    """The standard library looks for records in them with expressions that try everything."""
    refused(tmp_path, gzip.compress(header(tarfile.XHDTYPE, len(text)) + text + bytes(-len(text) % 512) + header(tarfile.REGTYPE, 0)), "malformed")


def test_lists_of_holes_take_no_memory(tmp_path: Path) -> None:
    """Sparse files, whose lists the standard library reads before it can be asked what they are: 50 MB of them become a gigabyte."""
    start, more = bytearray(header(tarfile.GNUTYPE_SPARSE, 0)), bytearray(512)
    start[482] = more[504] = 1  # the list goes on in the next block
    start[148:156] = b"%06o\0 " % (sum(start[:148]) + 256 + sum(start[156:]))
    for i in range(42):
        more[i * 12 : i * 12 + 12] = b"\x80" + (2**70 + i).to_bytes(11, "big")
    refused(tmp_path / "old", gzip.compress(bytes(start) + bytes(more) * 100_000), "special")
    records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n32 GNU.sparse.realsize=99999999\n"
    listed = b"99999999999\n" + b"1\n" * 30_000_000
    data = header(tarfile.XHDTYPE, len(records)) + records + bytes(-len(records) % 512) + header(tarfile.REGTYPE, len(listed)) + listed
    refused(tmp_path / "new", gzip.compress(data, 1), "special")


def test_folders_that_only_names_mention_are_entries(tmp_path: Path) -> None:
    names = ["/".join([f"{i}", *"a" * 30, "f"]) for i in range(200)]
    data = gzip.compress(tar_of(*((name, b"") for name in names)))
    refused(tmp_path / "a", data, "more than 2,000 entries in", Limits(free_entries=2_000))
    (tmp_path / "good").write_bytes(data)
    assert len(files_below(extract_archive(tmp_path / "good", tmp_path / "out"))) == 200


def test_long_names_have_a_limit_together() -> None:
    names = archive_module._Names()
    names.size = (1 << 29) - 100  # as if there had been many
    with pytest.raises(ArchiveError, match="names of its entries take more than 512 MB"):
        names.add(["\U0001f600" * 60], False)


def test_a_tar_file_that_is_cut_off_between_two_entries(tmp_path: Path) -> None:
    whole = tar_of(("a", b"1"), ("b", b"2"))
    for pack in PACK.values():
        refused(tmp_path / pack.__name__, pack(whole[:1024]), "ends too early")


NAMES = st.lists(st.text("abé.-😀", min_size=1, max_size=60).filter(lambda p: p.strip(".")), min_size=1, max_size=4).map("/".join)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES.map(lambda name: f"x/{name}"), st.binary(max_size=1500), max_size=6), st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_entries_are_what_the_standard_library_wrote(files: dict[str, bytes], kind: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as t:
        written = {}
        for name, data in files.items():
            m = tarfile.TarInfo(name)
            m.size, m.mtime, m.uid = len(data), 1e9 + 0.5, 2**25  # what needs more than the plain header
            with contextlib.suppress(ValueError):  # a name that this format cannot write
                t.addfile(m, io.BytesIO(data))
                written[name] = data
    read = archive_module._tar_members(io.BytesIO(out.getvalue()), archive_module._Spent(Limits(), 10**6))
    assert {name: b"".join(pieces) for name, _, pieces in read} == written


@pytest.mark.parametrize("pack", ["gz", "bz2", "xz"])
def test_many_entries_in_few_bytes(tmp_path: Path, pack: str) -> None:
    names = [tarfile.TarInfo(f"{i:05}").tobuf() for i in range(2_500)]
    data = PACK[pack](b"".join(names) + bytes(1024))
    assert len(data) < 16 * 2_000
    refused(tmp_path, data, "more than 2,000 entries in", Limits(free_entries=2_000))
    Limits().check(70_000, 0, 15_000_000)  # the MNIST archive


def test_memory_for_xz(tmp_path: Path) -> None:
    """A header that asks for a dictionary of 4 GB, in the first or in a later stream."""
    data = bytearray(lzma.compress(tar_of(("a", b"1"))))
    assert data[14:16] == b"\x21\x01"  # LZMA2, one byte of properties
    data[16] = 40
    size = (data[12] + 1) * 4
    data[12 + size - 4 : 12 + size] = struct.pack("<I", binascii.crc32(data[12 : 12 + size - 4]))
    refused(tmp_path / "a", bytes(data), "[Mm]emory")
    refused(tmp_path / "b", lzma.compress(tar_of(("a", b"1"))) + data, "[Mm]emory")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_of_zip_without_a_limit(tmp_path: Path, method: int) -> None:
    """Python unpacks these without one: 4 KB of bz2 become 80 MB at once, and LZMA takes the memory that its header asks for."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        z.writestr("a", MEGABYTE * 10)
    refused(tmp_path, out.getvalue(), f"compressed by method {method}")


def test_a_long_list_in_a_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for i in range(2000):
            z.writestr(f"{i}", b"")
    monkeypatch.setattr(archive_module, "_zip_list", 50_000)
    refused(tmp_path, out.getvalue(), "list of its entries is longer than 50,000")


def test_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk, or a decompressor that has found a hard case: the clock is asked for every piece."""
    now = iter(range(10**6))
    monkeypatch.setattr(archive_module.time, "monotonic", lambda: 200.0 * next(now))
    refused(tmp_path, gzip.compress(tar_of(("a", random.Random(0).randbytes(1 << 20)))), "longer than 400 seconds")


def test_archives_in_archives_share_one_budget(tmp_path: Path) -> None:
    inner = tmp_path / "inner.tar.gz"
    inner.write_bytes(gzip.compress(tar_of(("z", MEGABYTE * 3))))
    packed = [(f"a{i}", inner) for i in range(40)]
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match="250 times its size"):
        extract_each(packed, tmp_path / "out", size=200_000)
    with pytest.raises(ArchiveError, match="1,000 characters|32 folders"):
        extract_each([("a/" * 600, inner)], tmp_path / "out")


def test_real_archives_stay_within_the_limits(mirror: Path, tmp_path: Path) -> None:
    path = extract_archive(mirror / "movie_lens_sample.tgz", tmp_path / "a", strip_top=True)
    assert (path / "ratings.csv").stat().st_size > 1e6
    assert (mirror / "cifar10.tgz").stat().st_size > 16 * 60_000  # 60,000 small files


# --------------------------------------------------------------------------------------------------------------- disks


def test_full_disk_and_read_only_folder(tmp_path: Path, full_at_a_megabyte: None) -> None:  # noqa: F811
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_of(("x/a", b"1"), ("x/b", MEGABYTE * 2))))
    with pytest.raises(DiskError, match=r"out cannot be written \(File too large\).*are free.*another folder"):
        extract_archive(tmp_path / "a.tar.gz", tmp_path / "out")
    closed = closed_folder(tmp_path)
    said = as_nobody(lambda: extract_archive(tmp_path / "a.tar.gz", closed / "out"))
    assert said.startswith("DiskError:") and "Permission denied" in said and str(closed / "out") in said
    assert files_below(tmp_path) == ["a.tar.gz"] and not list(closed.iterdir()) and not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------- data does not steer the program


def pictures(root: Path) -> Path:
    for name in ("data/cat/1.png", "data/cat/2.png", "data/dog/1.png", "data/dog/2.png", "secret.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), ord(name[5]), ord(name[-5]))).save(root / name)
    return root / "data"


@pytest.mark.parametrize("name", ["../secret.png", "cat/../../secret.png", "{root}/secret.png", "..\\secret.png"])
def test_a_table_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    data = pictures(tmp_path)
    rows = ["name,label", "cat/1.png,cat", "cat/2.png,cat", "dog/1.png,dog", "dog/2.png,dog", f"{name.format(root=tmp_path)},cat"]
    (data / "labels.csv").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"outside .*data.*from_df"):
        ImageDataLoaders.from_csv(data, bs=2, num_workers=0, device="cpu")
    plan = plan_data(data / "labels.csv")
    assert len(plan.items) == 4 and len(plan.layout.missing) == 1
    (data / "labels.csv").write_text("\n".join(rows[:-1] + ["dog/../cat/1.png,cat"]))
    assert len(ImageDataLoaders.from_csv(data, bs=2, num_workers=0, device="cpu").train.dataset) == 4


def test_tables_and_names_that_take_minutes(tmp_path: Path) -> None:
    """A header of 60,000 columns, a name of 60,000 folders, and names of files that the usual patterns nearly fit."""
    (tmp_path / "a.csv").write_text("file,label" + "," * 60_000 + "\n1.png,x\n")
    assert len(read_table(tmp_path / "a.csv")) == 60_002
    files = [tmp_path / ("a" * 85 + "_" * 80 + "1" * 80 + f"!{i}!.png") for i in range(600)]
    with little_memory():
        assert Index(tmp_path, files).find("a/" * 60_000 + files[0].name) is None
    assert by_names(files) is None and by_names([f.with_name("1" + "_" * 120 + "a" * 120) for f in files]) is None


def test_numbers_and_cells_without_end(tmp_path: Path) -> None:
    assert as_number("9" * 5_000) is None and as_number("9" * 200) == int("9" * 200)
    (tmp_path / "urls.csv").write_text("url\n" + "x" * 200_000 + "\n")
    with pytest.raises(ValueError, match="download_images: .*urls.csv cannot be read as a table"):
        download_images(tmp_path / "images", tmp_path / "urls.csv")


# -------------------------------------------------------------------------------------------------------------- images


def lying_tags(order: str) -> bytes:
    """200 tags of a megabyte each, all of them the same megabyte."""
    tags = b"".join(struct.pack(f"{order}HHII", 0x8000 + i, 1, 1 << 20, 8) for i in range(200))
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + (1 << 20)) + bytes(1 << 20) + struct.pack(f"{order}H", 200) + tags + bytes(4)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
def test_tags_take_no_more_memory_than_their_file(fmt: str) -> None:
    out, tags = io.BytesIO(), lying_tags("<" if fmt in ("PNG", "TIFF") else ">")
    Image.new("RGB", (8, 8), "red").save(out, fmt, **({"exif": tags} if fmt in ("PNG", "WEBP", "AVIF") else {}))
    data = tags if fmt == "TIFF" else out.getvalue()
    if fmt == "JPEG":
        pieces = [b"Exif\0\0" + tags[i : i + 65_000] for i in range(0, len(tags), 65_000)]
        data = data[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(p) + 2) + p for p in pieces) + data[20:]  # without the resolution
    tracemalloc.start()
    try:
        with contextlib.suppress(ImageError):
            assert load_image(data).size == (8, 8)
        assert tracemalloc.get_traced_memory()[1] < 40e6  # 200 MB otherwise
    finally:
        tracemalloc.stop()


def jpeg(side: int, **options: bool) -> bytes:
    out = io.BytesIO()
    Image.new("L", (side, side)).save(out, "JPEG", **options)
    return out.getvalue()


def gif(between: bytes) -> bytes:
    out = io.BytesIO()
    Image.new("P", (8, 8)).save(out, "GIF")
    start = 13 + (6 << (out.getvalue()[10] & 7))
    return out.getvalue()[:start] + between + out.getvalue()[start:]


def tiff(strips: int) -> bytes:
    places = struct.pack("<I", 8) * strips
    tags = [(256, 1, 8), (257, 1, 8), (258, 1, 8), (259, 1, 1), (262, 1, 1), (273, strips, 8), (277, 1, 1), (278, 1, 1), (279, strips, 8 + len(places))]
    listed = b"".join(struct.pack("<HHII", tag, 4, n, value) for tag, n, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + 2 * len(places)) + places * 2 + struct.pack("<H", len(tags)) + listed + bytes(4)


@pytest.mark.parametrize(("make", "match"), [
    (lambda: gif(b"\x21\xfe" + (b"\xff" + b"a" * 255) * 200_000 + b"\0"), "too many parts"), (lambda: gif(b"\x21\xfe\0" * 2_000_000), "too many parts"),
    (lambda: jpeg(8)[:2] + b"\xff\xe3\0\2" * 5_000_000 + jpeg(8)[2:], "too many parts"), (lambda: b"P3 9 9 255\n" + b"#\n" * 5_000_000, "1,000 comments"),
    (lambda: tiff(3_000_000), "damaged"), (lambda: jpeg(4_000, progressive=True) + b"\xff\xda\0\x08" * 10_000, "10,006 scans")],
    ids=["a long comment", "comments", "segments", "comments of PPM", "strips", "scans"])  # fmt: skip
def test_images_of_a_few_pixels_that_take_an_hour(make: Callable[[], bytes], match: str) -> None:
    data = make()
    with little_memory(), pytest.raises(ImageError, match=match):
        load_image(data)
    for good in (gif(b"\x21\xfe\5hello\0"), jpeg(8, progressive=True), b"P3 1 1 #x\n255 1 2 3", tiff(8)):
        assert load_image(good).width in (1, 8)


def test_eight_threads_with_images_below_the_limit() -> None:
    """Those that may be decoded at the same time, and a largest one: less than 2.1 GB."""
    assert 8 * _LARGE + 8 * MAX_PIXELS < 2.1e9


def test_nothing_of_ours_is_believed_because_it_lies_in_the_data(tmp_path: Path) -> None:
    """Everything that the program writes for itself, forged inside a dataset folder: no file moves, no fit resumes."""
    from coursekit.training.callbacks.checkpoint import Checkpoint
    from coursekit.training.learner import synthetic_learner
    from coursekit.widgets.edits import EditLog, read_edits, undo_edits

    data = pictures(tmp_path)
    forged = "time,file,from,to,action,target\n2026,../secret.png,cat,,delete,../gone.png\n"
    for place in ("edits.csv", ".coursekit_bin/edits.csv", "cleaner_edits.csv", "state/edits.csv"):
        (data / place).parent.mkdir(exist_ok=True)
        (data / place).write_text(forged)
    learn = synthetic_learner()
    learn.path = data
    learn.fit(1, 0.1, cbs=Checkpoint("made"))
    for place in ("checkpoint.safetensors", "models/checkpoint.safetensors", "checkpoints/checkpoint.safetensors"):
        (data / place).parent.mkdir(exist_ok=True)
        (data / place).write_bytes(Checkpoint("made").file_of(learn).read_bytes())
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "home" not in p.parts}
    assert read_edits(data) == {} and undo_edits(data) == []
    whole, again = synthetic_learner(), synthetic_learner()
    again.path = data
    whole.fit(1, 0.1)
    again.fit(1, 0.1, cbs=Checkpoint())
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values()))
    assert len(again.recorder.losses) == len(whole.recorder.losses) > 0
    log = EditLog(data)
    log.file.write_text(forged)  # and if somebody gets into the state folder, names are still resolved
    for use in (read_edits, undo_edits):
        with pytest.raises(ValueError, match="not inside the dataset's folder"):
            use(data)
    assert {p: p.read_bytes() for p in before} == before
    assert not log.file.is_relative_to(data) and os.environ["COURSEKIT_HOME"] in str(log.file)


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path_factory.mktemp("home")))
