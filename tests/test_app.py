"""`coursekit app` in a browser: a real picture through the file chooser, its prediction read, and what a visitor cannot reach."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from browser import FLAGS, free_port
from helpers import real_photo

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


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
    env = {**{k: v for k, v in os.environ.items() if k != "MPLBACKEND"}, "TMPDIR": str(folder / "tmp"), "JUPYTER_RUNTIME_DIR": str(folder / "run")}
    with log.open("w") as out:
        command = [sys.executable, "-m", "coursekit", "app", model, "--port", str(port), "--no-browser", "--max-visitors", "1"]
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        end = time.monotonic() + timeout
        while "serving at" not in log.read_text():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the app did not start:\n{log.read_text()}")
            time.sleep(0.2)
        yield App(f"http://127.0.0.1:{port}", process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def visitor(chromium: str, url: str, *, width: int = 1280, height: int = 900) -> Iterator[Any]:
    """A Playwright page that shows the app, its widget ready."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(300_000)
        try:
            page.goto(url, wait_until="domcontentloaded")
            page.get_by_text("Choose images").wait_for()
            yield page
        finally:
            browser.close()


def upload(page: Any, *files: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Choose images").click()
    chooser.value.set_files([str(f) for f in files])


def test_upload_to_the_app(tmp_path: Path, chromium: str) -> None:
    """Done when 1: upload a real picture through the file chooser, read the prediction and see the picture."""
    photo = real_photo(tmp_path)
    (tmp_path / "note.jpg").write_bytes(b"%PDF-1.7 not a picture")
    (tmp_path / "big.jpg").write_bytes(photo.read_bytes() + os.urandom(12 * 2**20))  # more than tornado's own limit for a message
    with app_server("cifar10", tmp_path) as app:
        with visitor(chromium, app.url) as page:
            assert page.title() == "What is in this image?"
            code, body = fetch(app.url)
            assert code == 503 and "(1 at a time)" in body, (code, body[:400])
            upload(page, photo)
            figure = page.locator("figure").first
            figure.wait_for()
            said = figure.inner_text()
            assert photo.name in said and any(name in said for name in CLASSES), said
            shown = figure.locator("img").first
            assert shown.get_attribute("alt") and shown.evaluate("img => img.complete && img.naturalWidth > 50")
            upload(page, tmp_path / "note.jpg", tmp_path / "big.jpg")
            page.locator("figure", has_text="big.jpg").wait_for()
            text = page.locator("body").inner_text()
            assert "is a PDF, not an image" in text and "Traceback" not in text
            source = page.content()
            assert "app_page" not in source and "load_model" not in source, "the page shows its source"
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
            page.screenshot(path=str(tmp_path / "app-1280.png"), full_page=True)
            page.set_viewport_size({"width": 400, "height": 850})
            page.wait_for_timeout(500)
            page.screenshot(path=str(tmp_path / "app-400.png"), full_page=True)
        for path in ("/voila/files/app.ipynb", "/voila/files/", "/voila/files/../app.ipynb", "/voila/api/contents/", "/api/contents/", "/api/kernels",
                     "/voila/tree"):
            code, body = fetch(app.url + path)
            assert code in (403, 404), f"{path} answers {code}: {body[:200]}"
    assert app.process.returncode == 0, app.log.read_text()
    said = app.log.read_text()
    assert "Traceback" not in said and said.rstrip().endswith("ended"), said
    left = [p.name for p in (tmp_path / "tmp").iterdir() if p.name.startswith("coursekit-app-")]
    assert not left, left


def fetch(url: str) -> tuple[int, str]:
    try:
        with OPENER.open(url, timeout=120) as reply:
            return int(reply.status), reply.read().decode(errors="replace")
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode(errors="replace")
