"""What every test shares: a cache folder for the run, the mirror of real archives, a browser."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from helpers import ROOT

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background; the programs that tests stop by Ctrl-C would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")
ON_GITHUB = os.environ.get("GITHUB_ACTIONS") == "true"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# One cache for the whole run, so that stand-ins are generated once; COURSEKIT_TEST_HOME keeps it for the next run.
# With several workers (pytest -n) the first process makes it, and the workers find its name in their environment.
KEPT_HOME = os.environ.get("COURSEKIT_TEST_HOME")
RUN_HOME = Path(KEPT_HOME).expanduser().resolve() if KEPT_HOME else Path(tempfile.mkdtemp(prefix="coursekit-test-"))
os.environ["COURSEKIT_TEST_HOME"] = str(RUN_HOME)
RUN_HOME.mkdir(parents=True, exist_ok=True)
os.environ["COURSEKIT_HOME"] = str(RUN_HOME)
os.environ["MPLBACKEND"] = "Agg"
os.environ["COURSEKIT_PROGRESS"] = "off"  # tests that answer exercises are nobody's progress
os.environ.pop("COURSEKIT_DATA", None)
os.environ.pop("COURSEKIT_MIRROR", None)
os.environ.pop("COURSEKIT_DEVICE", None)


# The files that take longest, longest first; of the notebooks, each counts by itself.
LONG = ("test_notebooks", "test_docs", "test_forged", "test_faults", "test_page", "test_browser", "test_exercises", "test_real", "test_wheel", "test_lint", "test_app")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long tests first, in the share of each process: xdist cuts the list into equal shares, and a process that is done takes from the end of another's."""
    n = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long: dict[tuple[int, str], list[pytest.Item]] = {}
    short = []
    for item in items:
        if (file := item.path.stem) in LONG:
            long.setdefault((LONG.index(file), item.name if file == "test_notebooks" else ""), []).append(item)
        else:
            short.append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(n)]
    for i, key in enumerate(sorted(long)):
        shares[i % n] += long[key]
    for i, share in enumerate(shares):
        room = max(0, len(items) // n - len(share)) if i < n - 1 else len(short)
        share += short[:room]
        del short[:room]
    items[:] = [item for share in shares for item in share]


def pytest_unconfigure(config: pytest.Config) -> None:
    if not KEPT_HOME:
        shutil.rmtree(RUN_HOME, ignore_errors=True)


def missing(what: str, *, must: bool) -> None:
    """Skip with the reason; where `must` (continuous integration), fail instead."""
    (pytest.fail if must else pytest.skip)(what)


@pytest.fixture(scope="session")
def home() -> Path:
    """The COURSEKIT_HOME of this run, which notebooks and child processes share."""
    return RUN_HOME


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder with the real archives, ../shared/data. GitHub's runners have none, so it may be missing there."""
    folder = (ROOT / ".." / "shared" / "data").resolve()
    if not (folder / "SHA256SUMS").is_file():
        missing("the mirror of real archives, ../shared/data, is not beside the repository", must=CI and not ON_GITHUB)
    return folder


def find_browser() -> str | None:
    return os.environ.get("CHROMIUM") or next((p for p in map(shutil.which, BROWSERS) if p), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where a Chromium is; CHROMIUM overrides."""
    found = find_browser()
    if not found:
        missing(f"no browser: none of {', '.join(BROWSERS)} on PATH (Debian: apt-get install chromium)", must=CI)
    return str(found)
