"""Bad servers, hostile addresses and full disks, each really caused: one server on this machine, whose names are made up by patching the resolver."""

from __future__ import annotations

import hashlib
import io
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from coursekit.core import DiskError, atomic_file, remove_strays
from coursekit.data import transfer as transfer_module
from coursekit.data.archive import ArchiveError
from coursekit.data.download import Check, DownloadError, MirrorError, URLs, download_url, fetch_file, untar_data
from coursekit.vision.collect import download_images

SIZE = 4_000_000
BODY = hashlib.shake_256(b"body").digest(SIZE)
OTHER = hashlib.shake_256(b"other").digest(SIZE)
SHA = hashlib.sha256(BODY).hexdigest()
Answer = Callable[["Server", socket.socket, dict[str, str]], None]


class Server:
    """Takes connections one by one, reads a request and calls `answer`; counts what it sends, and stops for good after `most` requests."""

    def __init__(self, answer: Answer, tls: ssl.SSLContext | None = None, most: int = 60):
        self.answer, self.tls, self.most = answer, tls, most
        self.asked: list[dict[str, str]] = []
        self.sent, self.stop = 0, threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/data.bin"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while not self.stop.is_set():
            try:
                conn, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.one, args=(conn,), daemon=True).start()

    def one(self, conn: socket.socket) -> None:
        try:
            if self.tls:
                conn = self.tls.wrap_socket(conn, server_side=True)
            with conn:
                text = b""
                while b"\r\n\r\n" not in text:
                    if not (data := conn.recv(65536)):
                        return
                    text += data
                first, *lines = text.decode("latin-1").split("\r\n")
                self.asked.append({"": first.split()[1]} | {k.lower(): v for k, _, v in (line.partition(": ") for line in lines) if k})
                if len(self.asked) <= self.most:
                    self.answer(self, conn, self.asked[-1])
        except OSError:
            pass

    def send(self, conn: socket.socket, data: bytes) -> None:
        conn.sendall(data)
        self.sent += len(data)

    def whole(self, conn: socket.socket, body: bytes = BODY, *, cut: int | None = None, status: str = "200 OK", **headers: str) -> None:
        lines = {"Content-Length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}
        head = f"HTTP/1.1 {status}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items() if v != "-") + "\r\n"
        self.send(conn, head.encode() + body[:cut])

    def drip(self, conn: socket.socket, piece: bytes, pause: float = 0.02) -> None:
        while not self.stop.wait(pause):
            self.send(conn, piece)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def start(answer: Answer, **options: object) -> Server:
        made.append(Server(answer, **options))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for server in made:
        server.stop.set()
        server.socket.close()


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path / "home"))
    for name in ("COURSEKIT_MIRROR", "COURSEKIT_DATA", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def impatient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Budgets of this many seconds; on a slow machine they only end sooner."""
    init = transfer_module.Budget.__init__
    monkeypatch.setattr(transfer_module.Budget, "__init__", lambda self, _=0.0, **options: init(self, seconds, **options))


def get(server: Server, folder: Path, check: Check = Check(), **options: object) -> bytes:
    return download_url(server.url, folder / "data.bin", check, **{"pause": 0.001, **options}).read_bytes()  # type: ignore[arg-type]


def refused(match: str, server: Server, folder: Path, check: Check = Check(), **options: object) -> None:
    with pytest.raises(DownloadError, match=match) as e:
        get(server, folder, check, **options)
    assert str(e.value).isprintable() and server.url in str(e.value)  # one line, and it says which address
    assert not (folder / "data.bin").exists()


# ------------------------------------------------------------------------------------------------------- no endless loop


def test_a_wrong_hash_after_progress_ends(serve, tmp_path: Path) -> None:
    """Each transfer breaks off after progress, is continued as asked, and ends as the wrong file: one more try, then an error."""
    def answer(s: Server, conn: socket.socket, asked: dict[str, str]) -> None:
        if start := re.match(r"bytes=(\d+)-", asked.get("range", "")):
            at = int(start[1])
            s.whole(conn, OTHER[at:], status="206 Partial Content", ETag='"a"', Content_Range=f"bytes {at}-{SIZE - 1}/{SIZE}")
        else:
            s.whole(conn, OTHER, cut=SIZE // 2, ETag='"a"')

    server = serve(answer)
    refused("not the expected one", server, tmp_path, Check(sha256=SHA))
    assert len(server.asked) <= 4 and server.sent < 3 * SIZE


def test_progress_that_is_thrown_away_is_not_endless(serve, tmp_path: Path) -> None:
    """Half of the file, then an answer that forces a new start, for ever: bytes have a limit, and it is said."""
    def answer(s: Server, conn: socket.socket, asked: dict[str, str]) -> None:
        if "range" in asked:
            s.whole(conn, b"x", status="206 Partial Content", ETag='"b"', Content_Range="bytes 7-7/8")
        else:
            s.whole(conn, cut=SIZE // 2, ETag='"a"')

    server = serve(answer)
    refused(r"more than the 2\d\.\d MB allowed", server, tmp_path)
    assert server.sent < 2 * SIZE + (20 << 20)


HEAD = b"HTTP/1.1 200 OK\r\n"
DRIPS = {
    "body": (HEAD + b"\r\n", b"x"),
    "body with a length": (HEAD + b"Content-Length: 4000000\r\n\r\n", b"x"),
    "chunk sizes": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "headers": (HEAD + b"X: ", b"x"),
    "100-continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("kind", DRIPS)
def test_a_server_that_drips_is_given_up(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def answer(s: Server, conn: socket.socket, asked: dict[str, str]) -> None:
        s.send(conn, DRIPS[kind][0])
        s.drip(conn, DRIPS[kind][1])

    impatient(monkeypatch, 0.6)
    server = serve(answer)
    threading.Timer(20, server.stop.set).start()  # without the defense it would never end
    refused("took longer than", server, tmp_path, timeout=5)
    assert not server.stop.is_set()


@pytest.mark.parametrize("kind", ["100-continue", "headers"])
def test_headers_without_end_have_a_limit_of_bytes(serve, tmp_path: Path, kind: str) -> None:
    def answer(s: Server, conn: socket.socket, asked: dict[str, str]) -> None:
        s.send(conn, DRIPS[kind][0])
        while s.sent < 30_000_000 and not s.stop.is_set():
            s.send(conn, DRIPS[kind][1] * 1000)

    server = serve(answer)
    refused("more than the 1.0 MB allowed|does not speak HTTP", server, tmp_path, retries=0)
    assert server.sent < 20_000_000


def test_a_file_without_end_has_a_limit(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(s: Server, conn: socket.socket, asked: dict[str, str]) -> None:
        s.send(conn, HEAD + b"\r\n")
        while s.sent < 30_000_000 and not s.stop.is_set():
            s.send(conn, bytes(1 << 16))

    server = serve(answer)
    refused("more than the 1,000,000 bytes allowed", server, tmp_path, Check(max_bytes=1_000_000))
    monkeypatch.setenv("COURSEKIT_MIRROR", f"http://127.0.0.1:{server.port}")
    with pytest.raises(MirrorError, match=r"SHA256SUMS cannot be read.*more than the 4\.\d MB"):
        untar_data(URLs.PETS)


# ---------------------------------------------------------------------------------------------------- never two objects


@pytest.mark.parametrize("second", [
    {"ETag": '"b"', "Content_Range": f"bytes {SIZE // 2}-{SIZE - 1}/{SIZE}"},
    {"Content_Range": f"bytes {SIZE // 2}-{SIZE - 1}/{SIZE}"},
    {"ETag": '"a"', "Content_Range": f"bytes {SIZE // 2}-{SIZE - 1}/{SIZE + 1}"},
    {"ETag": '"a"', "Content_Range": f"bytes {SIZE // 2 + 1}-{SIZE}/{SIZE}"},
    {"ETag": '"a"'},
], ids=["etag", "no etag", "total", "start", "no range"])  # fmt: skip
def test_a_part_of_another_file_is_not_glued_on(serve, tmp_path: Path, second: dict[str, str]) -> None:
    """The server ignores If-Range and continues with another file; whoever has no hash would not notice."""
    def answer(s: Server, conn: socket.socket, asked: dict[str, str]) -> None:
        if len(s.asked) == 1:
            s.whole(conn, cut=SIZE // 2, ETag='"a"')
        elif "range" in asked:
            assert asked["if-range"] == '"a"'
            s.whole(conn, OTHER[SIZE // 2 :], status="206 Partial Content", **second)
        else:
            s.whole(conn, OTHER, ETag='"b"')

    assert get(serve(answer), tmp_path) == OTHER


def test_a_part_that_is_longer_than_it_says(serve, tmp_path: Path) -> None:
    def answer(s: Server, conn: socket.socket, asked: dict[str, str]) -> None:
        if "range" in asked:
            s.whole(conn, BODY[SIZE // 2 :] * 2, status="206 Partial Content", ETag='"a"', Content_Range=f"bytes {SIZE // 2}-{SIZE - 1}/{SIZE}")
        else:
            s.whole(conn, cut=SIZE // 2, ETag='"a"')

    refused("announced 4,000,000", serve(answer), tmp_path)


@pytest.mark.parametrize("mark", [{}, {"ETag": 'W/"a"'}, {"Last_Modified": "Mon, 30 Nov 2026 00:00:00 GMT"}, {"ETag": '"a"', "Content_Length": "-"}])
def test_without_a_strong_mark_and_a_size_nothing_is_resumed(serve, tmp_path: Path, mark: dict[str, str]) -> None:
    def answer(s: Server, conn: socket.socket, asked: dict[str, str]) -> None:
        assert "range" not in asked
        s.whole(conn, BODY if len(s.asked) == 1 else OTHER, cut=SIZE // 2 if len(s.asked) == 1 else None, **mark)

    server = serve(answer)
    if "Content_Length" in mark:  # the end of the connection is the end of the file: only a size can tell
        refused("2,000,000 bytes instead of 4,000,000", server, tmp_path, Check(size=SIZE))
    assert get(server, tmp_path, Check(size=SIZE)) == OTHER


LENGTHS = ["abc", "+4000000", "-1", "4_000_000", "4000000.0", "4000000, 4000001", "9" * 30, "9" * 5000, "\u0664", "0x10", ""]


@pytest.mark.parametrize("length", LENGTHS, ids=range(len(LENGTHS)))
def test_a_content_length_that_is_not_a_plain_number(serve, tmp_path: Path, length: str) -> None:
    server = serve(lambda s, conn, asked: s.whole(conn, Content_Length=length))
    refused("Content-Length|content-length|not a size|does not speak HTTP", server, tmp_path, retries=1)


def test_a_part_that_nobody_asked_for(serve, tmp_path: Path) -> None:
    server = serve(lambda s, conn, asked: s.whole(conn, BODY[5:], status="206 Partial Content", Content_Range=f"bytes 5-{SIZE - 1}/{SIZE}"))
    refused("answered 206 .*all of it was asked for", server, tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize("to", ["https://a:b:c/x", "https://[::1/x", "https:///x", "https://\xff.example/", f"https://{'a' * 70}.example/", "//", "\t", "mailto:a"])
def test_a_redirect_to_nonsense(serve, tmp_path: Path, to: str) -> None:
    server = serve(lambda s, conn, asked: s.whole(conn, b"", status="302 Found", Location=to))
    refused("not an address|which is not https|answered 302|no connection|five times", server, tmp_path, retries=0)


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><title>Log in</title>", b"\n <html lang='en'>please pay", b"<HTML>x", b"\xef\xbb\xbf<!doctype html>", b"<script>x"])
def test_a_web_page_with_status_200(serve, tmp_path: Path, page: bytes) -> None:
    server = serve(lambda s, conn, asked: s.whole(conn, page, Content_Type="text/html"))
    refused("a web page instead of the file", server, tmp_path)
    with pytest.raises(DownloadError, match="a web page instead of the file"):
        fetch_file(server.url, "models")


def test_a_page_that_is_taken_for_the_archive_is_not_kept(serve, tmp_path: Path) -> None:
    """The page of a hotel's network, which does not look like one: the next call gets the archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as t:
        t.addfile(tarfile.TarInfo("pets/a"))
    server = serve(lambda s, conn, asked: s.whole(conn, b"<p>please log in" if len(s.asked) == 1 else out.getvalue()))
    url = server.url.replace("data.bin", "pets.tgz")
    with pytest.raises(ArchiveError, match="not an archive"):
        untar_data(url)
    assert files_below(untar_data(url)) == ["a"]


# ------------------------------------------------------------------------------------------------- where an address leads


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for names that end with .example, and its key, in one file."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=test",
                    "-addext", "subjectAltName=DNS:public.example,DNS:other.example", "-keyout", folder / "key", "-out", folder / "cert"],
                   check=True, capture_output=True)
    (folder / "both.pem").write_bytes((folder / "cert").read_bytes() + (folder / "key").read_bytes())
    return folder / "both.pem"


PUBLIC, PUBLIC_TOO = "93.184.216.34", "93.184.216.35"


class Net:
    """The internet as this process sees it: names by a table, public addresses lead to the server on this machine, and others are written down."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch):
        self.names = {"public.example": [[PUBLIC]], "other.example": [[PUBLIC_TOO]]}
        self.reached: list[str] = []
        look, connect = socket.getaddrinfo, socket.create_connection

        def resolve(host, port, *args, **kw):  # type: ignore[no-untyped-def]
            rounds = self.names.get(host.decode() if isinstance(host, bytes) else host)
            if rounds is None:
                return look(host, port, *args, **kw)
            answers = rounds.pop(0) if len(rounds) > 1 else rounds[0]
            return [(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in answers]

        def reach(address, *args, **kw):  # type: ignore[no-untyped-def]
            host = resolve(address[0], address[1])[0][4][0] if address[0] in self.names else address[0]
            self.reached.append(host)
            if host in (PUBLIC, PUBLIC_TOO):
                return connect(("127.0.0.1", server.port), *args, **kw)
            return connect(address, *args, **kw)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(socket, "create_connection", reach)


@pytest.fixture
def net(serve, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Server, Net]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    def answer(s: Server, conn: socket.socket, asked: dict[str, str]) -> None:
        if asked[""].startswith("/to/"):
            s.whole(conn, b"", status="302 Found", Location=unquote(asked[""][4:]).replace("PORT", str(s.port)))
        else:
            s.whole(conn)

    server = serve(answer, tls=context)
    return server, Net(server, monkeypatch)


def test_https_and_a_redirect_to_another_public_name(net, tmp_path: Path) -> None:
    server, web = net
    assert download_url("https://public.example/to/https://other.example/data.bin", tmp_path / "a").read_bytes() == BODY
    assert web.reached == [PUBLIC, PUBLIC_TOO]
    with pytest.raises(DownloadError, match="leads to http://other.example/x, which is not https"):
        download_url("https://public.example/to/http://other.example/x", tmp_path / "b")
    web.names["wrong.example"] = [[PUBLIC]]
    with pytest.raises(DownloadError, match="no connection.*(?i:certificate)"):
        download_url("https://wrong.example/data.bin", tmp_path / "b", retries=0)


INSIDE = ["127.1", "0x7f000001", "2130706433", "0177.0.0.1", "localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]",
          "0.0.0.0", "10.0.0.7", "192.168.1.1", "169.254.169.254", "[fd00::1]", "[fe80::1]", "[fec0::1]", "[::7f00:1]", "[::ffff:0:7f00:1]", "100.64.0.1", "intern.example", "mixed.example", "six.example"]  # fmt: skip


@pytest.mark.parametrize("host", INSIDE)
def test_no_redirect_inwards_however_it_is_written(net, tmp_path: Path, host: str) -> None:
    server, web = net
    web.names |= {"intern.example": [["10.0.0.7"]], "mixed.example": [[PUBLIC, "192.168.0.9"]], "six.example": [["::ffff:10.1.1.1"]]}
    with pytest.raises(DownloadError, match="this machine or in a private network"):
        download_url(f"https://public.example/to/https://{host}:PORT/x", tmp_path / "a", retries=0, timeout=2)
    assert web.reached == [PUBLIC]  # nothing was sent there
    report = download_images(tmp_path / "images", [f"https://{host}:{server.port}/a.jpg", f"https://public.example/to/https://{host}:PORT/x"], timeout=2)
    assert len(report.failed) == 2 and all("private network" in why for why in report.failed.values())
    assert set(web.reached) == {PUBLIC}


def test_a_name_that_changes_its_address_meanwhile(net, tmp_path: Path) -> None:
    """DNS rebinding: public when it is checked, this machine when it is connected to. It is resolved once, and that address is used."""
    server, web = net
    web.names["public.example"] = [[PUBLIC], ["127.0.0.1"]]
    download_images(tmp_path / "images", ["https://public.example/a.jpg"], timeout=2)
    assert web.reached == [PUBLIC]
    web.names["public.example"] = [["127.0.0.1"]]
    report = download_images(tmp_path / "images", ["https://public.example/a.jpg"], timeout=2)
    assert "private network" in report.rows[0].reason and web.reached == [PUBLIC]


def test_a_list_may_lead_inwards_if_the_user_says_so(serve, tmp_path: Path) -> None:
    server = serve(lambda s, conn, asked: s.whole(conn, b"", status="302 Found", Location="http://127.0.0.1:1/x") if asked[""] == "/a" else s.whole(conn))
    url = f"http://127.0.0.1:{server.port}"
    assert "private network" in download_images(tmp_path, [f"{url}/b"]).rows[0].reason and not server.asked
    assert "no connection" in download_images(tmp_path, [f"{url}/a"], private=True).rows[0].reason  # from inside to inside is allowed
    assert "not" in download_images(tmp_path, [f"{url}/b"], private=True).rows[0].reason and server.asked[-1][""] == "/b"


def test_a_proxy_is_used_and_does_not_open_the_inside(net, serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, web = net

    def tunnel(s: Server, conn: socket.socket, asked: dict[str, str]) -> None:
        s.send(conn, b"HTTP/1.1 200 OK\r\n\r\n")
        with socket.socket() as other:
            other.connect(("127.0.0.1", server.port))
            threading.Thread(target=pump, args=(other, conn), daemon=True).start()
            pump(conn, other)

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    proxy = serve(tunnel)
    monkeypatch.setenv("https_proxy", f"http://me:secret@127.0.0.1:{proxy.port}")
    monkeypatch.setenv("no_proxy", "other.example")
    assert download_url("https://public.example/data.bin", tmp_path / "a").read_bytes() == BODY
    assert proxy.asked[0][""] == "public.example:443" and proxy.asked[0]["proxy-authorization"] == "Basic bWU6c2VjcmV0"
    assert download_url("https://other.example/data.bin", tmp_path / "b").read_bytes() == BODY and len(proxy.asked) == 1
    web.names["intern.example"] = [["10.0.0.7"]]
    with pytest.raises(DownloadError, match="private network"):
        download_url("https://public.example/to/https://intern.example/x", tmp_path / "c", retries=0)
    assert [a[""] for a in proxy.asked] == ["public.example:443"] * 2


# ------------------------------------------------------------------------------------------------------------- hashes


def test_what_is_known_of_the_first_megabyte_only_is_said(serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from coursekit.data.download import _cached, published_check

    server = serve(lambda s, conn, asked: s.whole(conn))
    head = Check(size=SIZE, head_md5=hashlib.md5(BODY[: 1 << 20]).hexdigest())
    _cached(server.url, tmp_path / "a", head)
    assert "only its size and the md5 of its first megabyte are published" in capsys.readouterr().out
    _cached(server.url, tmp_path / "b", Check(sha256=SHA))
    assert capsys.readouterr().out == ""
    assert all(published_check(u).md5 for u in (URLs.IMAGENETTE, URLs.IMAGENETTE_160, URLs.IMAGENETTE_320, URLs.ML_100k))
    later = bytearray(BODY)
    later[-1] ^= 1  # beyond what the published md5 covers
    server.answer = lambda s, conn, asked: s.whole(conn, bytes(later))
    with pytest.raises(DownloadError, match="sha256"):
        _cached(server.url, tmp_path / "a", head, refresh=True)


# --------------------------------------------------------------------------------------------------------------- disks


def small_disk(n: int) -> Iterator[None]:
    """Files of at most n bytes, as if the disk were full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture
def full_at_a_megabyte() -> Iterator[None]:
    yield from small_disk(1_000_000)


def files_below(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_full_disk(serve, tmp_path: Path, full_at_a_megabyte: None) -> None:
    server = serve(lambda s, conn, asked: s.whole(conn, ETag='"a"'))
    with pytest.raises(DiskError, match=r"data\.bin cannot be written .*needs 4,000,000 bytes.*are free.*COURSEKIT_HOME"):
        get(server, tmp_path / "a")
    with pytest.raises(DiskError, match=r"model\.ck cannot be written .*needs 2,000,000 bytes"), \
            atomic_file(tmp_path / "b" / "model.ck", size=2_000_000) as f:
        f.write(bytes(2_000_000))
    assert files_below(tmp_path) == [] and len(server.asked) == 1


def test_a_disk_without_room_is_noticed_before_the_download(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(lambda s, conn, asked: s.whole(conn, ETag='"a"'))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))  # type: ignore[attr-defined]
    with pytest.raises(DiskError, match="needs 4,000,000 bytes, and 1,000,000 bytes are free"):
        get(server, tmp_path / "a")
    assert files_below(tmp_path) == []


def closed_folder(tmp_path: Path) -> Path:
    """A folder that another user can reach and not write to."""
    closed = tmp_path / "closed"
    closed.mkdir()
    for folder in (closed, *closed.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    closed.chmod(0o555)
    return closed


def as_nobody(work: Callable[[], object]) -> str:
    """What an error says in a process without root's rights."""
    read, write = os.pipe()
    if not (pid := os.fork()):
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            work()
            text = "no error"
        except BaseException as e:
            text = f"{type(e).__name__}: {e}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as f:
        text = f.read().decode()
    os.waitpid(pid, 0)
    return text


def test_a_folder_that_is_read_only(serve, tmp_path: Path) -> None:
    import httpcore2  # noqa: F401  the other process may not be allowed to read it

    server = serve(lambda s, conn, asked: s.whole(conn))
    closed = closed_folder(tmp_path)

    def write() -> None:
        with atomic_file(closed / "sub" / "model.ck") as f:
            f.write(b"x")

    for work in (write, lambda: get(server, closed), lambda: get(server, closed / "sub")):
        said = as_nobody(work)
        assert said.startswith("DiskError:") and str(closed) in said and "Permission denied" in said and "COURSEKIT_HOME" in said
    assert files_below(tmp_path) == [] and not server.asked


def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    from coursekit.training.callbacks.checkpoint import Checkpoint
    from coursekit.training.learner import synthetic_learner

    learn = synthetic_learner()
    learn.path = tmp_path / "data"
    file = Checkpoint("run").file_of(learn)
    (tmp_path / "home").mkdir(exist_ok=True)
    for _ in range(3):
        if not (pid := os.fork()):
            with atomic_file(file) as f:
                f.write(b"half")
                f.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
    (file.parent / ".run.safetensors.mine").write_text("somebody's")
    assert len(list(file.parent.iterdir())) == 4
    learn.fit(1, 0.1, cbs=Checkpoint("run"))
    assert sorted(p.name for p in file.parent.iterdir()) == [".run.safetensors.mine", "run.safetensors"]
    remove_strays(tmp_path / "no" / "folder")
