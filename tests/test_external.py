"""Downloads, mirrors and archives with the faults really caused, against a server on this machine."""

import gzip
import hashlib
import http.server
import io
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import coursekit.data.archive as archive_module
from coursekit.data import download as external
from coursekit.data.archive import ArchiveError, Limits, extract_archive
from coursekit.data.download import Check, DownloadError, MirrorError, URLs, course_data, download_url, fetch_file, untar_data
from coursekit.data.items import get_image_files

DATA = random.Random(0).randbytes(3_000_000)
SHA = hashlib.sha256(DATA).hexdigest()


# ---- a server that does what the test tells it to


class Faulty(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; `server.plan` is a list of faults, one for each request, then all goes well."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        s = self.server
        name = self.path.lstrip("/")
        s.log.append((name, self.headers.get("Range"), self.headers.get("If-Range")))
        fault = s.plan.pop(0) if s.plan else {}
        self.close_connection = True
        if fault.get("hang"):
            s.release.wait(10)
            return
        data = s.files.get(name)
        status = fault.get("status") or (200 if data is not None else 404)
        if status != 200:
            self.send_response(status)
            for k, v in fault.get("headers", {}).items():
                self.send_header(k, v)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_data(data, fault)

    def send_data(self, data, fault):
        s, start = self.server, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and s.ranges and self.headers.get("If-Range") in (None, s.etag):
            start = int(asked[1])
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if s.etag:
            self.send_header("ETag", s.etag)
        body = data[start:]
        if not fault.get("no_length"):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        end = fault.get("cut", len(body))
        for at in range(0, end, 1 << 16):
            self.wfile.write(body[at : min(at + (1 << 16), end)])
            if s.drip:
                self.wfile.flush()
                time.sleep(s.drip)
        if fault.get("stall"):
            self.wfile.flush()
            s.release.wait(10)


@pytest.fixture
def server():
    s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    s.handle_error = lambda *args: None  # a client that is killed is part of the test
    s.files, s.plan, s.log, s.ranges, s.etag, s.drip = {"data.bin": DATA}, [], [], True, '"one"', 0.0
    s.release = threading.Event()
    threading.Thread(target=s.serve_forever, args=(0.02,), daemon=True).start()
    s.site = f"http://127.0.0.1:{s.server_port}"
    s.url = f"{s.site}/data.bin"
    yield s
    s.release.set()
    s.shutdown()
    s.server_close()


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COURSEKIT_MIRROR", raising=False)
    monkeypatch.delenv("COURSEKIT_DATA", raising=False)


def leftovers(folder: Path) -> list[str]:
    """What lies in a folder besides locks and the COURSEKIT_HOME of the test."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock" and p.name != "home")


def get(server, dest, check=Check(), **kw):
    return download_url(server.url, dest, check, **{"pause": 0.01, **kw})


# ---- transfers


def test_arrives_whole(server, tmp_path):
    assert get(server, tmp_path / "a", Check(size=len(DATA), sha256=SHA)).read_bytes() == DATA
    assert leftovers(tmp_path) == ["a"]
    get(server, tmp_path / "a", Check(sha256=SHA))
    assert len(server.log) == 1  # it is there, so nothing is asked


def test_resumes_after_truncated_bodies(server, tmp_path):
    server.plan = [{"cut": 1_000_000}, {"cut": 500_000}]
    assert get(server, tmp_path / "a").read_bytes() == DATA
    starts = [0 if r is None else int(r[6:-1]) for _, r, _ in server.log]
    assert starts == [0, 1_000_000, 1_500_000]
    assert [mark for *_, mark in server.log] == [None, '"one"', '"one"']


def test_what_arrived_is_kept_for_the_next_run(server, tmp_path):
    server.plan = [{"cut": 2_000_000}]
    with pytest.raises(DownloadError, match="received 2000000 bytes, expected 3000000") as e:
        get(server, tmp_path / "a", retries=0)
    for way in (server.url, "run it again", "COURSEKIT_MIRROR", "COURSEKIT_DATA=sample"):
        assert way in str(e.value)
    assert not (tmp_path / "a").exists()
    assert get(server, tmp_path / "a").read_bytes() == DATA
    assert server.log[-1][1] == "bytes=2000000-"
    assert leftovers(tmp_path) == ["a"]


def test_complete_part_needs_no_bytes(server, tmp_path):
    """Killed between the last byte and the rename: nothing is asked, the hash decides."""
    server.plan = [{"cut": 10}]
    with pytest.raises(DownloadError):
        get(server, tmp_path / "a", retries=0)
    next(p for p in tmp_path.iterdir() if p.suffix == ".part").write_bytes(DATA)
    assert get(server, tmp_path / "a", Check(sha256=SHA)).read_bytes() == DATA and len(server.log) == 1


def test_changed_file_is_not_glued_together(server, tmp_path):
    server.plan = [{"cut": 2_000_000}]
    with pytest.raises(DownloadError):
        get(server, tmp_path / "a", retries=0)
    server.files["data.bin"], server.etag = DATA[::-1], '"two"'
    assert get(server, tmp_path / "a").read_bytes() == DATA[::-1]


def test_damaged_part_is_given_up(server, tmp_path):
    """The rest fits no hash, so the part was at fault: from the start, once."""
    server.plan = [{"cut": 2_000_000}]
    with pytest.raises(DownloadError):
        get(server, tmp_path / "a", retries=0)
    part = next(p for p in tmp_path.iterdir() if p.suffix == ".part")
    part.write_bytes(b"x" * 2_000_000)
    assert get(server, tmp_path / "a", Check(sha256=SHA)).read_bytes() == DATA


def test_server_without_range(server, tmp_path):
    server.ranges, server.plan = False, [{"cut": 2_000_000}]
    assert get(server, tmp_path / "a").read_bytes() == DATA
    assert len(server.log) == 2


def test_no_mark_and_no_hash_means_from_the_start(server, tmp_path):
    server.etag, server.plan = "", [{"cut": 2_000_000}]
    assert get(server, tmp_path / "a").read_bytes() == DATA
    assert [r for _, r, _ in server.log] == [None, None]


def test_truncated_without_a_stated_length(server, tmp_path):
    server.plan = [{"cut": 2_000_000, "no_length": True}]
    with pytest.raises(DownloadError, match="2,000,000 bytes instead of 3,000,000"):
        get(server, tmp_path / "a", Check(size=len(DATA)), retries=0)


@pytest.mark.parametrize("check", [Check(sha256="0" * 64), Check(md5="0" * 32), Check(sha256_prefix="00000000")])
def test_wrong_hash(server, tmp_path, check):
    with pytest.raises(DownloadError, match="not the expected one.*instead of 000"):
        get(server, tmp_path / "a", check)
    assert leftovers(tmp_path) == [] and len(server.log) == 1


def test_wrong_first_megabyte_stops_early(server, tmp_path, monkeypatch):
    seen = []
    update = external.Digest.update
    monkeypatch.setattr(external.Digest, "update", lambda self, data: (seen.append(len(data)), update(self, data))[1])
    with pytest.raises(DownloadError, match="md5 of the first megabyte"):
        get(server, tmp_path / "a", Check(head_md5="0" * 32))
    assert 1 << 20 <= sum(seen) < 1_500_000
    head = hashlib.md5(DATA[: 1 << 20]).hexdigest()
    assert get(server, tmp_path / "a", Check(head_md5=head, size=len(DATA))).exists()


def test_too_long(server, tmp_path):
    with pytest.raises(DownloadError, match="3,000,000 bytes instead of 2,999,999"):
        get(server, tmp_path / "a", Check(size=len(DATA) - 1))
    server.plan = [{"no_length": True}]
    with pytest.raises(DownloadError, match="instead of 100"):
        get(server, tmp_path / "a", Check(size=100))


def test_404_is_final_and_503_is_not(server, tmp_path):
    with pytest.raises(DownloadError, match="404"):
        download_url(f"{server.site}/missing.tgz", tmp_path / "a", pause=0.01)
    assert len(server.log) == 1
    server.plan = [{"status": 503}, {"status": 429}]
    assert get(server, tmp_path / "a").read_bytes() == DATA


def test_timeout_before_and_within(server, tmp_path):
    server.plan = [{"hang": True}, {"cut": 2_000_000, "stall": True}]
    t = time.monotonic()
    assert get(server, tmp_path / "a", timeout=0.3).read_bytes() == DATA
    assert time.monotonic() - t < 8
    server.plan = [{"hang": True}] * 3
    with pytest.raises(DownloadError, match="timed out"):
        get(server, tmp_path / "b", timeout=0.2, retries=2)


def test_nobody_listens(tmp_path):
    with pytest.raises(DownloadError, match="no connection"):
        download_url("http://127.0.0.1:9/x.bin", tmp_path / "a", retries=1, pause=0.01)


@pytest.mark.parametrize("to", ["http://example.com/x", "file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirect_to_an_unsafe_place(server, tmp_path, to):
    server.plan = [{"status": 302, "headers": {"Location": to}}]
    with pytest.raises(DownloadError, match="not https"):
        get(server, tmp_path / "a")


def test_redirect_within(server, tmp_path):
    server.plan = [{"status": 302, "headers": {"Location": "/data.bin"}}]
    assert download_url(f"{server.site}/old.bin", tmp_path / "a").read_bytes() == DATA


@pytest.mark.parametrize(
    "url", ["http://example.com/a.tgz", "file:///etc/passwd", "ftp://x/a", "a.tgz", "http://127.0.0.1.evil.com/a"]
)
def test_only_https(tmp_path, url):
    with pytest.raises(ValueError, match="not an https address"):
        download_url(url, tmp_path / "a")


def test_full_disk_is_not_called_a_network_fault(server, tmp_path, monkeypatch):
    def no_space(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(external.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left") as e:
        get(server, tmp_path / "a")
    assert not isinstance(e.value, DownloadError) and len(server.log) == 1


# ---- processes


FETCH = "import sys; from coursekit.data.download import fetch_file; print(fetch_file(sys.argv[1], 'models'))"


def child(code: str, *args: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_fetch_one_file_once(server, tmp_path):
    server.drip = 0.04  # about 2 s for the whole file, so that they meet
    both = [child(FETCH, server.url) for _ in range(2)]
    outs = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [0, 0], outs
    assert [Path(o.splitlines()[-1]).read_bytes() == DATA for o, _ in outs] == [True, True]
    assert len(server.log) == 1


def test_kill_9_in_the_middle_of_a_download(server, tmp_path):
    server.drip = 0.1
    p = child(FETCH, server.url)
    folder = tmp_path / "home" / "models"
    deadline = time.monotonic() + 60
    while sum(f.stat().st_size for f in folder.glob(".*.part")) < 500_000:
        assert time.monotonic() < deadline and p.poll() is None, p.communicate()
        time.sleep(0.02)
    os.kill(p.pid, signal.SIGKILL)
    p.communicate()
    assert not (folder / "data.bin").exists()
    server.drip = 0.0
    assert fetch_file(server.url, "models").read_bytes() == DATA
    assert int(server.log[-1][1][6:-1]) >= 500_000
    assert leftovers(folder) == ["data.bin", "data.bin.json"]


KILL_WHILE_UNPACKING = """
import os, signal, sys
import coursekit.data.archive as archive
from coursekit.data.download import untar_data
check = archive.Limits.check
def deadly(self, entries, *rest):
    if entries == 30: os.kill(os.getpid(), signal.SIGKILL)
    check(self, entries, *rest)
archive.Limits.check = deadly
untar_data(sys.argv[1])
"""


def test_kill_9_in_the_middle_of_unpacking(server, tmp_path):
    server.files["many.tgz"] = tar_of({f"many/{i}.txt": b"x" for i in range(50)})
    p = child(KILL_WHILE_UNPACKING, f"{server.site}/many.tgz")
    p.communicate(timeout=300)
    assert p.returncode == -signal.SIGKILL
    data = tmp_path / "home" / "data"
    assert not (data / "many").exists() and any(n.endswith(".tmp") for n in leftovers(data))
    path = untar_data(f"{server.site}/many.tgz")
    assert path == data / "many" and len(list(path.iterdir())) == 50
    assert leftovers(data) == [".many.json", "many"]
    assert len(server.log) == 1  # the archive had arrived


def test_two_processes_unpack_one_archive(server, tmp_path):
    server.files["many.tgz"] = tar_of({f"many/{i}.txt": b"x" for i in range(300)})
    code = "import os, sys, coursekit.data.download as e; print(len(os.listdir(e.untar_data(sys.argv[1]))))"
    both = [child(code, f"{server.site}/many.tgz") for _ in range(2)]
    outs = [p.communicate(timeout=300) for p in both]
    assert [o.splitlines()[-1:] for o, _ in outs] == [["300"], ["300"]], outs
    assert len(server.log) == 1


# ---- archives


def tar_of(files: dict[str, bytes], **special) -> bytes:
    """A .tgz; `special` maps a name to a TarInfo type."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as t:
        for name, data in files.items():
            m = tarfile.TarInfo(name)
            m.size = len(data)
            t.addfile(m, io.BytesIO(data))
        for name, kind in special.items():
            m = tarfile.TarInfo(name)
            m.type, m.linkname = kind, "/etc/passwd"
            t.addfile(m)
    return out.getvalue()


def zip_of(files: dict[str, bytes], modes: dict[str, int] | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items():
            m = zipfile.ZipInfo(name)
            m.compress_type = zipfile.ZIP_DEFLATED
            m.external_attr = (modes or {}).get(name, 0) << 16
            z.writestr(m, data)
    return out.getvalue()


GOOD = {"pets/images/a.jpg": b"one", "pets/images/b.jpg": b"two" * 1000, "pets/list.txt": b""}


@pytest.mark.parametrize("name", ["a.tgz", "a.tar", "a.tar.bz2", "a.tar.xz", "a.zip"])
@pytest.mark.parametrize("strip_top", [False, True])
def test_every_format(tmp_path, name, strip_top):
    data = zip_of(GOOD) if name.endswith("zip") else gzip.decompress(tar_of(GOOD))
    if name != "a.zip":
        import bz2
        import lzma

        data = {"a.tgz": gzip.compress, "a.tar": bytes, "a.tar.bz2": bz2.compress, "a.tar.xz": lzma.compress}[name](
            data
        )
    (tmp_path / name).write_bytes(data)
    dest = extract_archive(tmp_path / name, tmp_path / "out", strip_top=strip_top)
    root = dest if strip_top else dest / "pets"
    assert {f"pets/{p.relative_to(root).as_posix()}": p.read_bytes() for p in root.rglob("*") if p.is_file()} == GOOD


NAMES = ["/etc/cron.d/x", "../x", "pets/../../x", "pets\\..\\x", "C:/x", "C:\\x", "pets/a\nb", "n" * 300]
COLLIDING = [
    {"pets/a.jpg": b"1", "pets/A.JPG": b"2"},
    {"Pets/a.jpg": b"1", "pets/b.jpg": b"2"},
    {"pets/caf\u00e9": b"1", "pets/cafe\u0301": b"2"},
    {"pets": b"1", "pets/a.jpg": b"2"},
    {"pets/a.jpg": b"1", "./pets//a.jpg": b"2"},
]


def refused(tmp_path: Path, data: bytes, match: str, **kw) -> None:
    (tmp_path / "evil.bin").write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArchiveError, match=match) as e:
        extract_archive(tmp_path / "evil.bin", tmp_path / "out", **kw)
    assert "evil.bin" in str(e.value)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is left, inside or outside


@pytest.mark.parametrize("pack", [tar_of, zip_of])
@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out(tmp_path, pack, name):
    refused(tmp_path, pack({"pets/ok.jpg": b"1", name: b"2"}), "entry")


OWN = ["pets/.coursekit_bin/edits.csv", ".coursekit_bin/cat/a.jpg", "pets/.COURSEKIT_bin/edits.csv", "edits.csv", "pets/Edits.csv",
       "pets/cleaner_edits.csv", "pets/models/checkpoint.safetensors", "models/stage-1.safetensors"]  # fmt: skip


@pytest.mark.parametrize("pack", [tar_of, zip_of])
@pytest.mark.parametrize("name", OWN)
def test_files_that_the_program_writes_itself(tmp_path, pack, name):
    """The cleaner would carry out an edit log from an archive, and a fit would resume a checkpoint from one."""
    refused(tmp_path, pack({"pets/ok.jpg": b"1", name: b"2"}), f"entry '{name}' .*coursekit writes itself.*remove or rename it")


@pytest.mark.parametrize("pack", [tar_of, zip_of])
@pytest.mark.parametrize("files", COLLIDING)
def test_names_that_collide(tmp_path, pack, files):
    refused(tmp_path, pack(files), "same file|twice")


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE", "GNUTYPE_SPARSE"])
def test_links_and_devices_in_a_tar(tmp_path, kind):
    refused(tmp_path, tar_of(GOOD, **{"pets/x": getattr(tarfile, kind)}), "not a file or folder|damaged")


def test_links_in_a_zip(tmp_path):
    refused(tmp_path, zip_of({"pets/x": b"/etc/passwd"}, {"pets/x": 0o120777}), "not a file or folder")


def test_bombs(tmp_path):
    zeros = bytes(80 << 20)
    for pack in (tar_of, zip_of):
        refused(tmp_path, pack({"zeros": zeros}), "250 times its size")
        refused(
            tmp_path, pack({"a": bytes(600), "b": bytes(600)}), "more than 1,000 bytes", limits=Limits(max_bytes=1000)
        )
        many = {f"{i}": b"" for i in range(20)}
        refused(tmp_path, pack(many), "more than 10 entries", limits=Limits(max_entries=10))


def test_bomb_in_a_header(tmp_path):
    """A 50 MB comment in 50 kB: it must not be read into memory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT) as t:
        m = tarfile.TarInfo("a")
        m.pax_headers = {"comment": "x" * 50_000_000}
        t.addfile(m)
    refused(tmp_path, out.getvalue(), "header")


def test_zip_that_lies_about_sizes(tmp_path):
    data = bytearray(zip_of({"a": b"x" * 1000}))
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (10).to_bytes(4, "little")  # 10 bytes, it says
    refused(tmp_path, bytes(data), "damaged")


@pytest.mark.parametrize("pack", [tar_of, zip_of])
@pytest.mark.parametrize("keep", [0, 1, 30, 0.5, -1])
def test_truncated_archives(tmp_path, pack, keep):
    data = pack({"pets/a": random.Random(1).randbytes(100_000)})
    refused(tmp_path, data[: int(len(data) * keep) if isinstance(keep, float) else keep], "damaged")


def test_damaged_list_of_entries(tmp_path):
    raw = bytearray(gzip.decompress(tar_of({"a": b"1", "b": b"2"})))
    raw[1024:1124] = b"\xff" * 100  # the second header
    refused(tmp_path, gzip.compress(bytes(raw)), "damaged")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["tar", "tgz", "zip"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_random_damage_never_escapes(tmp_path_factory, kind, flips):
    """Whatever is flipped: either it unpacks inside the folder, or ArchiveError and nothing is left."""
    data = bytearray(
        {"tar": lambda: gzip.decompress(tar_of(GOOD)), "tgz": lambda: tar_of(GOOD), "zip": lambda: zip_of(GOOD)}[kind]()
    )
    for where, value in flips:
        data[int(where * (len(data) - 1))] = value
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "a").write_bytes(data)
    try:
        extract_archive(folder / "a", folder / "out")
    except ArchiveError:
        assert leftovers(folder) == ["a"]
    else:
        assert leftovers(folder) == ["a", "out"]


def test_full_disk_is_not_called_damage(tmp_path, monkeypatch):
    (tmp_path / "a.tgz").write_bytes(tar_of(GOOD))

    def no_space(*args, **kw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive_module.os, "makedirs", no_space)
    with pytest.raises(OSError, match="No space left"):
        extract_archive(tmp_path / "a.tgz", tmp_path / "out")
    assert leftovers(tmp_path) == ["a.tgz"]


# ---- untar_data


def test_untar_data_from_the_network(server, tmp_path, capsys):
    url = f"{server.site}/pets.tgz"
    server.files["pets.tgz"] = tar_of(GOOD)
    path = untar_data(url)
    assert path == tmp_path / "home" / "data" / "pets" and (path / "images" / "a.jpg").read_bytes() == b"one"
    assert "no hash is published" in capsys.readouterr().out
    assert untar_data(url) == path and len(server.log) == 1
    server.files["pets.tgz"] = tar_of({"pets/other": b"1"})
    with pytest.raises(DownloadError, match="recorded in .*pets.tgz.json"):
        untar_data(url, force_download=True)
    assert (path / "images" / "a.jpg").exists()  # what was there is still there
    (tmp_path / "home" / "archive" / "pets.tgz.json").unlink()
    untar_data(url, force_download=True)
    assert leftovers(path) == ["other"] and leftovers(path.parent) == [".pets.json", "pets"]


def test_damaged_archive_in_the_cache_is_fetched_again(server, tmp_path, capsys):
    url = f"{server.site}/pets.tgz"
    server.files["pets.tgz"] = tar_of(GOOD)
    untar_data(url, base=tmp_path / "base")
    (tmp_path / "base" / "archive" / "pets.tgz").write_bytes(b"damaged")
    os.rename(tmp_path / "base" / "data", tmp_path / "base" / "old")
    assert untar_data(url, base=tmp_path / "base").is_dir()
    assert "downloading it again" in capsys.readouterr().out and len(server.log) == 2


def test_published_check_is_applied(server, tmp_path, monkeypatch):
    url = f"{server.site}/pets.tgz"
    server.files["pets.tgz"] = tar_of(GOOD)
    monkeypatch.setattr(external, "published_check", lambda u: Check(size=1, head_md5="0" * 32))
    with pytest.raises(DownloadError, match="instead of 1"):
        untar_data(url)


def test_folder_of_somebody_else_is_not_touched(server, tmp_path):
    url = f"{server.site}/pets.tgz"
    server.files["pets.tgz"] = tar_of(GOOD)
    mine = tmp_path / "home" / "data" / "pets"
    mine.mkdir(parents=True)
    (mine / "half").write_text("")
    with pytest.raises(FileExistsError, match="was not made by untar_data"):
        untar_data(url)
    assert (untar_data(url, force_download=True) / "list.txt").exists() and not (mine / "half").exists()


def test_several_top_folders_stay_together(server, tmp_path):
    server.files["two.zip"] = zip_of({"train/a": b"1", "valid/b": b"2"})
    assert leftovers(untar_data(f"{server.site}/two.zip")) == ["train", "valid"]


# ---- mirrors


@pytest.fixture
def small_mirror(tmp_path, monkeypatch):
    """A mirror with one archive and one model file; call it to write SHA256SUMS."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "oxford-iiit-pet.tgz").write_bytes(
        tar_of({k.replace("pets", "oxford-iiit-pet"): v for k, v in GOOD.items()})
    )
    (folder / "net.pth").write_bytes(b"weights")
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}" for p in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("COURSEKIT_MIRROR", str(folder))
    return folder


def test_mirror_folder(small_mirror, tmp_path, monkeypatch, capsys):
    path = untar_data(URLs.PETS)
    assert path.name == "oxford-iiit-pet" and (path / "images" / "a.jpg").exists()
    assert not (tmp_path / "home" / "archive").exists()  # read where it lies
    assert fetch_file("https://example.invalid/net.pth", "models") == small_mirror / "net.pth"
    capsys.readouterr()
    monkeypatch.delenv("COURSEKIT_MIRROR")
    assert untar_data(URLs.PETS) == path and "came from a mirror" in capsys.readouterr().out


def test_mirror_as_a_url(small_mirror, server, tmp_path, monkeypatch):
    server.files |= {f"data/{p.name}": p.read_bytes() for p in small_mirror.iterdir()}
    monkeypatch.setenv("COURSEKIT_MIRROR", f"{server.site}/data/")
    assert (untar_data(URLs.PETS) / "images" / "b.jpg").exists()
    assert fetch_file("https://example.invalid/net.pth", "models").read_bytes() == b"weights"
    server.files["data/oxford-iiit-pet.tgz"] += b"x"
    with pytest.raises(DownloadError, match="not the expected one"):
        untar_data(URLs.PETS, base=tmp_path / "elsewhere")
    del server.files["data/SHA256SUMS"]
    with pytest.raises(MirrorError, match="SHA256SUMS cannot be read.*404"):
        untar_data(URLs.PETS, base=tmp_path / "elsewhere")


def test_mirror_with_wrong_sums(small_mirror):
    (small_mirror / "net.pth").write_bytes(b"WEIGHTS")
    with pytest.raises(MirrorError, match="net.pth is damaged.*in SHA256SUMS"):
        fetch_file("https://example.invalid/net.pth", "models")
    (small_mirror / "net.pth").unlink()
    with pytest.raises(MirrorError, match="the file is not there"):
        fetch_file("https://example.invalid/net.pth", "models")


@pytest.mark.parametrize(
    "text, match", [("hello", "not a sha256 and a file name"), (None, "cannot be read"), ("", "not in its SHA256SUMS")]
)
def test_mirror_without_proper_sums(small_mirror, text, match):
    (small_mirror / "SHA256SUMS").unlink()
    if text is not None:
        (small_mirror / "SHA256SUMS").write_text(text)
    with pytest.raises(MirrorError, match=match):
        untar_data(URLs.PETS)


def test_a_mirror_cannot_change_a_known_hash(small_mirror):
    """SHA256SUMS says the file is right, and whoever asks for it knows better."""
    with pytest.raises(MirrorError, match=f"net.pth .*{SHA[:16]}"):
        fetch_file("https://example.invalid/net.pth", "models", sha256=SHA)
    good = hashlib.sha256(b"weights").hexdigest()
    assert fetch_file("https://example.invalid/net.pth", "models", sha256=good.upper()) == small_mirror / "net.pth"


def test_mirror_without_the_file_falls_back_to_the_network(small_mirror, server):
    assert fetch_file(server.url, "models", sha256=SHA).read_bytes() == DATA


@pytest.mark.parametrize("root", ["/nowhere/at/all", "http://example.com/mirror", "file:///tmp"])
def test_mirror_that_is_none(monkeypatch, root):
    monkeypatch.setenv("COURSEKIT_MIRROR", root)
    with pytest.raises(MirrorError, match="COURSEKIT_MIRROR="):
        untar_data(URLs.PETS)


def test_a_password_in_the_address_of_a_mirror_is_not_printed(monkeypatch):
    monkeypatch.setenv("COURSEKIT_MIRROR", "https://me:secret@mirror.example/data")
    with pytest.raises(MirrorError, match="password") as error:
        fetch_file("https://x.example/a.bin", "models")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("kind", ["socks5h", "ftp"])
def test_a_proxy_that_does_not_speak_http(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: pytest.fail("somebody was looked up") if "x.example" not in args else [])
    monkeypatch.setenv("all_proxy", f"{kind}://me:secret@127.0.0.1:1")
    with pytest.raises(DownloadError, match=f"speaks {kind}.*https_proxy") as error:
        download_url("https://x.example/a.bin", tmp_path / "a.bin", retries=0)
    assert "secret" not in str(error.value)


def test_mirrored_weights_must_fit_the_name_too(small_mirror):
    """A mirror is trusted for what it lists, but torchvision's names carry a hash of their own."""
    good = hashlib.sha256(b"weights").hexdigest()[:8]
    for name, ok in [(f"net-{good}.pth", True), ("net-00000000.pth", False)]:
        (small_mirror / name).write_bytes(b"weights")
        (small_mirror / "SHA256SUMS").write_text(f"{hashlib.sha256(b'weights').hexdigest()} *{name}\n")
        url = f"https://download.pytorch.org/models/{name}"
        if ok:
            assert fetch_file(url, "models") == small_mirror / name
        else:
            with pytest.raises(MirrorError, match="instead of 00000000"):
                fetch_file(url, "models")


# ---- the real archives


def test_real_archives(mirror, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSEKIT_MIRROR", str(mirror))
    monkeypatch.setenv("COURSEKIT_DATA", "full")
    for url, n in [(URLs.PETS, 370), (URLs.DOGS, 4000)]:
        t = time.perf_counter()
        path = course_data(url)
        with capsys.disabled():
            print(f"\n{path.name}: verified and unpacked in {time.perf_counter() - t:.1f} s")
        assert len(get_image_files(path)) == n
    assert not (tmp_path / "home" / "archive").exists()


def test_every_archive_of_the_mirror_has_an_address(mirror):
    addresses = {u.rsplit("/", 1)[-1].removeprefix("mirror:") for k, u in vars(URLs).items() if not k.startswith("_")}
    assert {p.name for p in mirror.glob("*.tgz")} <= addresses
