"""JupyterLab in a headless Chromium, for tests that do what a person does.

    with lab_server(folder) as lab, lab_page(context, lab, "notebook.ipynb") as page:
        nb = LabNotebook(page)
        nb.run_all()
        nb.upload("cat.png")
        assert "cat" in nb.shown()
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-dev-shm-usage", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]  # a camera that needs none
# Every cell is drawn, in view or not; no news, no update checks.
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
        "fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
}
PANEL = "window.jupyterapp.shell.currentWidget"


@dataclass(frozen=True)
class Lab:
    url: str
    token: str
    folder: Path

    def address(self, notebook: str) -> str:
        return f"{self.url}/lab/tree/{notebook}?token={self.token}&reset"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def answers(lab: Lab) -> bool:
    request = urllib.request.Request(f"{lab.url}/api/status", headers={"Authorization": f"token {lab.token}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@contextmanager
def lab_server(folder: Path, *, timeout: float = 90) -> Iterator[Lab]:
    """A JupyterLab server on `folder`, listening on this machine only; ended with its kernels at the end."""
    private = folder / ".lab"
    for name, values in SETTINGS.items():
        (private / "settings" / name).parent.mkdir(parents=True, exist_ok=True)
        (private / "settings" / name).write_text(json.dumps(values))
    lab = Lab(f"http://127.0.0.1:{(port := free_port())}", secrets.token_hex(16), folder)
    env = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "PYTEST_CURRENT_TEST")}
    env.update(JUPYTERLAB_SETTINGS_DIR=str(private / "settings"), JUPYTERLAB_WORKSPACES_DIR=str(private / "workspaces"),
               JUPYTER_RUNTIME_DIR=str(private / "runtime"), JUPYTER_CONFIG_DIR=str(private / "config"))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
               "--ServerApp.port_retries=0", f"--IdentityProvider.token={lab.token}", f"--ServerApp.root_dir={folder}",
               "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=", "--ServerApp.allow_root=True",
               "--ServerApp.terminals_enabled=False"]
    log = private / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, cwd=folder,
                                  start_new_session=True)
    try:
        end = time.monotonic() + timeout
        while not answers(lab):
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield lab
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@contextmanager
def chromium_of(path: str) -> Iterator[Any]:
    """A Chromium without a window; its pages share what they have loaded."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser.new_context(viewport={"width": 1200, "height": 1400})
        browser.close()


@contextmanager
def lab_page(context: Any, lab: Lab, notebook: str, *, timeout: float = 90) -> Iterator[Any]:
    """A Playwright page with the notebook open and its kernel ready; the kernel ends with it."""
    page = context.new_page()
    page.set_default_timeout(timeout * 1000)
    try:
        page.goto(lab.address(notebook), wait_until="domcontentloaded")
        page.wait_for_function("window.jupyterapp !== undefined")
        page.evaluate("async () => { await window.jupyterapp.restored }")
        page.wait_for_function(f"{PANEL}?.context?.isReady === true")
        page.wait_for_function(f"{PANEL}.context.sessionContext.session?.kernel?.status === 'idle'")
        yield page
        page.evaluate(f"async () => {{ await {PANEL}.context.sessionContext.shutdown() }}")
    finally:
        page.close()


class LabNotebook:
    """The notebook that a page shows: run it, upload to it, read what it shows."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def command(self, name: str) -> None:
        self.page.evaluate("name => { window.jupyterapp.commands.execute(name) }", name)

    def run_all(self, *, timeout: float = 300) -> None:
        """Run every cell and wait; raises with the text of the first cell that failed."""
        self.command("notebook:run-all-cells")
        self.wait_done(timeout=timeout)

    def restart_and_run_all(self, *, timeout: float = 300) -> None:
        """As the menu does, the question whether to restart answered with a click."""
        # The numbers of the last run are taken away first: what has one afterwards was run by the new kernel.
        self.page.evaluate(f"[...{PANEL}.content.model.cells].forEach(cell => cell.type === 'code' && cell.clearExecution())")
        assert not any(c["execution_count"] for c in self.cells() if c["cell_type"] == "code")
        self.command("notebook:restart-run-all")
        self.page.locator(".jp-Dialog button.jp-mod-accept").click()
        self.wait_done(timeout=timeout)

    def wait_done(self, *, timeout: float = 300) -> None:
        """Until the kernel is idle and every code cell has a number; an error in a cell raises."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            cells = [c for c in self.cells() if c["cell_type"] == "code" and "".join(c["source"]).strip()]
            for cell in cells:
                tags = cell.get("metadata", {}).get("tags", [])
                bad = [o for o in cell["outputs"] if o["output_type"] == "error"]
                if bad and "raises-exception" not in tags:
                    raise AssertionError(f"{bad[0]['ename']}: {bad[0]['evalue']}\nin the cell\n{cell['source']}")
            if self.status() == "idle" and all(c["execution_count"] for c in cells):
                self.page.wait_for_timeout(300)
                return
            self.page.wait_for_timeout(250)
        raise TimeoutError(f"the notebook is not done after {timeout} s; kernel {self.status()}")

    def status(self) -> str:
        return str(self.page.evaluate(f"{PANEL}.context.sessionContext.session?.kernel?.status"))

    def cells(self) -> list[dict[str, Any]]:
        """The cells as JupyterLab holds them now, outputs included."""
        return list(self.page.evaluate(f"{PANEL}.content.model.toJSON().cells"))

    def upload(self, *files: Path | str, index: int = 0) -> None:
        """Click the index-th upload button of the page and choose these files in the dialogue."""
        button = self.page.locator("button.jupyter-widgets.widget-upload").nth(index)
        button.scroll_into_view_if_needed()
        with self.page.expect_file_chooser() as chooser:
            button.click()
        chooser.value.set_files([str(f) for f in files])

    def choose(self, *files: Path | str, index: int = 0) -> None:
        """Click the index-th drop zone's button and choose these files in the dialogue."""
        button = self.page.locator(".ck-drop").nth(index).get_by_text("Choose images")
        button.scroll_into_view_if_needed()
        with self.page.expect_file_chooser() as chooser:
            button.click()
        chooser.value.set_files([str(f) for f in files])

    def drop(self, name: str, *, content: str = "", size: int = 0, index: int = 0) -> None:
        """Drop a file on the index-th drop zone: this text, or `size` zeros that take no room on the disk."""
        make = """([name, text, size]) => {
            const data = new DataTransfer();
            const block = new Uint8Array(1 << 20);
            const parts = text ? [text] : Array(Math.ceil(size / block.length)).fill(block);
            data.items.add(new File(parts, name));
            return data;
        }"""
        data = self.page.evaluate_handle(make, [name, content, size])
        zone = self.page.locator(".ck-drop").nth(index)
        for event in ("dragenter", "dragover", "drop"):
            zone.dispatch_event(event, {"dataTransfer": data})

    def click(self, text: str) -> None:
        """Click the widget button that carries this text."""
        self.page.locator("button.jupyter-button", has_text=text).first.click()

    def wait_shown(self, text: str, *, timeout: float = 60) -> str:
        """Wait until some output shows this text; returns the outputs' text."""
        self.page.locator(".jp-OutputArea-output", has_text=text).first.wait_for(timeout=timeout * 1000)
        return self.shown()

    def shown(self) -> str:
        """The text that the outputs show on the page, widgets included; what is there for screen readers only is left out."""
        script = """outputs => {
            const hidden = outputs.flatMap(output => [...output.querySelectorAll('.ck-voice')]);
            hidden.forEach(voice => { voice.style.display = 'none'; });
            const text = outputs.map(output => output.innerText).join('\\n');
            hidden.forEach(voice => { voice.style.display = ''; });
            return text;
        }"""
        return str(self.page.locator(".jp-OutputArea-output").evaluate_all(script))

    def wait_new_text(self, before: str, *, timeout: float = 60) -> str:
        """Wait until the outputs show other text than `before` and rest for a second; the lines that are new."""
        end, last = time.monotonic() + timeout, before
        while time.monotonic() < end:
            self.page.wait_for_timeout(1000)
            now = self.shown()
            if now != before and now == last and self.status() == "idle":
                old = before.splitlines()
                return "\n".join(line for line in now.splitlines() if line.strip() and line not in old)
            last = now
        raise TimeoutError(f"the outputs show nothing new after {timeout} s:\n{before[-2000:]}")

    def screenshot(self, path: Path | str) -> None:
        self.page.screenshot(path=str(path))
