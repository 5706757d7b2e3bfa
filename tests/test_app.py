"""`coursekit app`: a real photo through the file chooser, its prediction read; and everything that a stranger can try on the server."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser import FLAGS, free_port
from conftest import CI, missing
from helpers import real_photo
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit.cli.app import PageServer, is_own_host
from coursekit.data.download import DownloadError
from coursekit.deploy.page import fetch_runtime
from coursekit.vision.learner import pretrained

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PAGE = b"<h1>the page</h1>" + bytes(2**20)


@dataclass
class App:
    url: str
    process: subprocess.Popen
    log: Path


@contextmanager
def app_server(model: str, folder: Path, *, timeout: float = 300) -> Iterator[App]:
    """`coursekit app MODEL` as typed in `folder`; ended by Ctrl-C."""
    port, log = free_port(), folder / "app.log"
    (folder / "tmp").mkdir(exist_ok=True)
    env = {**{k: v for k, v in os.environ.items() if k != "MPLBACKEND"}, "TMPDIR": str(folder / "tmp")}
    with log.open("w") as out:
        command = [sys.executable, "-u", "-m", "coursekit", "app", model, "--port", str(port), "--no-browser"]
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        end = time.monotonic() + timeout
        while "serving at" not in log.read_text():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the app did not start:\n{log.read_text()}")
            time.sleep(0.2)
        yield App(f"http://localhost:{port}/", process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_photo_in_the_app(tmp_path: Path, chromium: str) -> None:
    """The page opens by the address that was printed, predicts, and asks the server for nothing more. Ctrl-C ends it and leaves no file."""
    pytest.importorskip("onnxscript")
    try:
        fetch_runtime()
    except DownloadError as e:
        missing(f"ONNX Runtime Web cannot be had: {e}", must=CI)
    from playwright.sync_api import sync_playwright

    photo, asked = real_photo(tmp_path), []
    pretrained("cifar10", sizes=(), device="cpu").export(tmp_path / "ten.ck")  # one look instead of eight: a small graph
    with app_server("ten.ck", tmp_path) as app, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 400, "height": 850})
        page.on("request", lambda r: asked.append(r.url))
        page.goto(app.url)
        page.locator("#file").set_input_files(photo)
        page.locator("#result").wait_for(timeout=60_000)
        assert str(page.locator("#answer").text_content()).split(",")[0] in CLASSES
        assert [url for url in asked if not url.startswith(("blob:", "data:"))] == [app.url]
        browser.close()
    said = app.log.read_text()
    assert app.process.returncode == 0 and "Traceback" not in said and said.rstrip().endswith("ended"), said
    assert not [p.name for p in (tmp_path / "tmp").iterdir() if p.name.startswith("coursekit-app-")]


# ------------------------------------------------------------------------------------------------------ as a stranger


@contextmanager
def page_server() -> Iterator[PageServer]:
    with PageServer("127.0.0.1", 0) as server:
        server.page = PAGE
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with page_server() as found:
        yield found


def ask(server: PageServer, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """What a browser that sends these headers gets."""
    visit = http.client.HTTPConnection(*server.server_address, timeout=20)
    with contextlib.closing(visit):
        visit.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        reply = visit.getresponse()
        return reply.status, reply.read(), dict(reply.getheaders())


def raw(server: PageServer, data: bytes) -> bytes:
    """The whole answer to these bytes."""
    with socket.create_connection(server.server_address, timeout=20) as s, contextlib.suppress(OSError):
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: s.recv(2**16), b""))
    return b""


def test_the_page_and_what_protects_it(server: PageServer) -> None:
    code, body, headers = ask(server, "/?utm=1", Sec_Fetch_Dest="document")
    assert (code, body) == (200, PAGE)
    assert headers["X-Frame-Options"] == "DENY" and headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Content-Type"].startswith("text/html")
    assert not any(name.startswith("Access-Control") for name in headers) and "Python" not in headers["Server"]


@pytest.mark.parametrize("dest", ["image", "iframe", "script", "empty", "websocket", "video", "object", "style", "worker"])
def test_pages_elsewhere_cannot_embed_or_fetch_it(server: PageServer, dest: str) -> None:
    """Image tags, frames, fetch() and WebSocket() of another site: a line, and not a byte of the page."""
    code, body, _ = ask(server, Sec_Fetch_Dest=dest, Sec_Fetch_Site="cross-site", Origin="https://evil.example")
    assert code == 403 and b"the page" not in body and len(body) < 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "localhost@evil.example", "", "[::1].evil.example",
                                  "127.0.0.1\tevil", "0x7f000001", "%6cocalhost"])
def test_rebound_names(server: PageServer, host: str) -> None:
    """Another site's name that leads to this machine."""
    assert ask(server, Host=host)[0] == 403


@pytest.mark.parametrize(("host", "ip"), [("127.0.0.1:8866", "127.0.0.1"), ("localhost:8866", "127.0.0.1"), ("LOCALHOST", "::1"), ("[::1]:8866", "::1"),
                                          ("192.168.1.7:8866", "0.0.0.0"), (f"{socket.gethostname()}:1", "0.0.0.0"), ("desk.lan:8866", "desk.lan")])
def test_own_names(host: str, ip: str) -> None:
    assert is_own_host(host, ip)


@given(st.text(max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_host_is_judged_without_an_exception(host: str) -> None:
    assert is_own_host(host, "127.0.0.1") in (True, False)


@pytest.mark.parametrize("path", ["/voila/files/app.ipynb", "/api/kernels", "/api/contents/", "/../../etc/passwd", "/%2e%2e/etc/passwd", "//etc/passwd", "/.git/config", "/x" * 9000,
                                  "http://evil.example/", "/\x00", "*"])
def test_there_is_nothing_else(server: PageServer, path: str) -> None:
    answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1"))
    assert answer.startswith((b"HTTP/1.0 404", b"HTTP/1.0 400")) and b"Traceback" not in answer and len(answer) < 20_000


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE", "__init__"])
def test_no_other_method(server: PageServer, method: str) -> None:
    assert raw(server, f"{method} / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello".encode()).startswith(b"HTTP/1.0 501")


@pytest.mark.parametrize("data", [b"", b"\r\n" * 50, b"\x16\x03\x01\x02\x00\x01", os.urandom(4096), b"GET", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
                                  b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(5000)) + b"\r\n",
                                  b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 10**6 + b"\r\n\r\n",
                                  b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
                         ids=["nothing", "blank lines", "TLS", "noise", "half", "version", "no host", "many headers", "long header", "HTTP/2"])  # fmt: skip
def test_odd_requests(server: PageServer, data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """They get an error or nothing, never the page, and leave no trace in the terminal; the next visitor is served."""
    answer = raw(server, data)
    assert b"the page" not in answer and b"Traceback" not in answer and b".py" not in answer and len(answer) < 10_000
    assert ask(server)[0] == 200 and capfd.readouterr() == ("", "")


def test_more_connections_than_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads as are allowed, and nothing for the others. When the silent ones are gone, the next visitor is served."""
    monkeypatch.setattr(PageServer, "most", 8)
    with page_server() as server:
        before = threading.active_count()
        silent = [socket.create_connection(server.server_address, timeout=20) for _ in range(40)]
        assert raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
        assert threading.active_count() - before <= 16  # a timer each
        for s in silent:
            s.close()
        wait_until(lambda: server.room._value == 8)
        assert ask(server)[:2] == (200, PAGE)


def test_a_visitor_who_never_finishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps a connection open for its time, and no longer."""
    monkeypatch.setattr(PageServer, "seconds", 0.3)
    with page_server() as server, socket.create_connection(server.server_address, timeout=20) as s:
        s.send(b"GET / HT")
        with contextlib.suppress(OSError):
            assert s.recv(100) == b""


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_visitors_who_leave_in_the_middle(server: PageServer, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(30):
        with socket.create_connection(server.server_address, timeout=20) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            s.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            s.recv(100)
    wait_until(lambda: server.room._value == server.most)
    assert ask(server)[0] == 200 and capfd.readouterr() == ("", "")


def evil_page(url: str) -> str:
    """A page of another origin that tries what a browser lets it."""
    return f"""<img src="{url}"><img src="{url}?2"><iframe src="{url}" onload="loaded = true"></iframe><script src="{url}"></script><script>
        window.got = [];
        fetch("{url}").then(r => r.text()).then(t => got.push(t)).catch(e => got.push("refused"));
        fetch("{url}", {{mode: "no-cors"}}).then(r => r.text()).then(t => got.push(t || "empty")).catch(e => got.push("refused"));
        try {{ new WebSocket("{url.replace("http", "ws")}").onclose = () => got.push("closed"); }} catch (e) {{ got.push("closed"); }}
        </script>"""


def test_another_site_in_a_browser(server: PageServer, chromium: str, tmp_path: Path) -> None:
    """A page of another site in the same browser gets nothing, and moves none of the page's bytes."""
    from playwright.sync_api import sync_playwright

    url = f"http://127.0.0.1:{server.server_address[1]}/"
    sizes: list[int] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, headless=True, args=[*FLAGS, "--host-resolver-rules=MAP evil.example 127.0.0.1"])
        page: Any = browser.new_page()
        page.on("response", lambda r: sizes.append(int(r.headers.get("content-length", 0))) if r.url.startswith(url) else None)
        page.route("http://other.example/", lambda route: route.fulfill(body=evil_page(url), content_type="text/html"))
        page.goto("http://other.example/")
        page.wait_for_function("window.got.length >= 3", timeout=20_000)
        assert not [t for t in page.evaluate("got") if "the page" in t]
        assert max(sizes, default=0) < 200
        rebound = page.goto(url.replace("127.0.0.1", "evil.example"))
        assert rebound.status == 403 and "the page" not in page.content()
        browser.close()
