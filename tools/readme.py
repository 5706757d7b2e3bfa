#!/usr/bin/env python3
"""Make README.md from nbs/index.ipynb: its prose, code in fences, text outputs, and pictures as files.

    python tools/readme.py            # writes README.md and nbs/images/index_*.png
    python tools/readme.py --check    # exit status 1 where README.md is not what the notebook says

A cell tagged `hide` stays out of the README. Of one tagged `hide-input` only the output is shown, and of one tagged
`remove-stdout` everything but what it printed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from notebooks import ROOT, read

from coursekit.cli.notebooks import ANSI, DIRECTIVE, alt_text, has_tag

IMAGES = "nbs/images"
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->"
SUFFIX = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}


def fence(text: str, language: str) -> str:
    ticks = max([2, *(len(run) for run in re.findall(r"`{3,}", text))]) + 1
    return f"{'`' * ticks}{language}\n{text.rstrip()}\n{'`' * ticks}"


def picture(output: dict[str, Any], mime: str, images: dict[str, bytes]) -> str:
    data = "".join(output["data"][mime])
    raw = data.encode() if mime == "image/svg+xml" else base64.b64decode(data)
    name = f"{IMAGES}/index_{hashlib.sha1(raw).hexdigest()[:10]}.{SUFFIX[mime]}"
    images[name] = raw
    return f"![{alt_text(output, mime)}]({name})"


def output_markdown(output: dict[str, Any], images: dict[str, bytes]) -> str:
    if output["output_type"] == "stream":
        return fence(ANSI.sub("", "".join(output["text"])), "text") if output["name"] == "stdout" else ""
    data = output.get("data", {})
    for mime in SUFFIX:
        if mime in data:
            return picture(output, mime, images)
    for mime in ("text/markdown", "text/html"):
        if mime in data:
            return "".join(data[mime]).strip()
    return fence("".join(data["text/plain"]), "text") if "text/plain" in data else ""


def local_links(text: str) -> str:
    """Links of a notebook in nbs/ as seen from the folder above."""

    def seen_from_above(found: re.Match[str]) -> str:
        opening, target = found.groups()
        return opening + (target[3:] if target.startswith("../") else f"nbs/{target}")

    return re.sub(r"(\]\(|src=\")(?![a-z]+:|#|/)(?:\./)?([^)\"\s]+)", seen_from_above, text)


def render(nb: Any) -> tuple[str, dict[str, bytes]]:
    """The README's text, and the pictures that it shows by their path."""
    parts: list[str] = [NOTE]
    images: dict[str, bytes] = {}
    for cell in nb.cells:
        if has_tag(cell, "hide") or (cell.cell_type != "code" and not cell.source.strip()):
            continue
        if cell.cell_type == "markdown":
            parts.append(local_links(cell.source.strip()))
        elif cell.cell_type == "code":
            hidden = has_tag(cell, "hide-input") or re.search(r"^#\|\s*hide\s*$", cell.source, re.M)
            source = "\n".join(line for line in cell.source.splitlines() if not DIRECTIVE.match(line)).strip()
            if re.search(r"^#\|\s*hide\s*$", cell.source, re.M):
                continue
            if source and not hidden:
                parts.append(fence(source, "python"))
            shown = [o for o in cell.outputs if o["output_type"] != "stream" or not has_tag(cell, "remove-stdout")]
            parts += [text for text in (output_markdown(o, images) for o in shown) if text]
    return "\n\n".join(parts) + "\n", images


def stale(text: str, images: dict[str, bytes], root: Path = ROOT) -> list[str]:
    """The files that differ from what the notebook says."""
    readme = root / "README.md"
    old = [] if readme.exists() and readme.read_text(encoding="utf-8") == text else ["README.md"]
    old += [name for name, raw in images.items() if not (root / name).exists() or (root / name).read_bytes() != raw]
    left = {f"{IMAGES}/{p.name}" for p in (root / IMAGES).glob("index_*")} - set(images)
    return old + sorted(left)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say which files are out of date")
    args = parser.parse_args(argv)
    source = ROOT / "nbs" / "index.ipynb"
    if not source.exists():
        parser.error("nbs/index.ipynb is missing")
    text, images = render(read(source))
    old = stale(text, images)
    if args.check:
        for name in old:
            print(f"{name}: not what nbs/index.ipynb says; run `make readme`")
        return 1 if old else 0
    for name in old:
        (ROOT / name).unlink(missing_ok=True)
    for name, raw in images.items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_bytes(raw)
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    print(f"README.md: {len(text.splitlines())} lines, {len(images)} pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
