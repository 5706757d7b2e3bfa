#!/usr/bin/env python3
"""Run, clean and check notebooks.

    python tools/notebooks.py run nbs/lessons/01_intro.ipynb --out _run     # the source stays as it is
    python tools/notebooks.py run nbs/api/training --inplace                # outputs are written back, cleaned
    python tools/notebooks.py clean nbs/lessons/*.ipynb
    python tools/notebooks.py check nbs

Every notebook gets a kernel of its own and prints one line a code cell while it runs. Cells tagged `results` hold
a lesson's final numbers; they are printed again at the end. A cell that is meant to fail is tagged `raises-exception`.
Cells that start with `#| eval: false`, `#| notest` or `#| slow` are left as they are (`--slow` runs the last kind).
The running itself is `coursekit.cli.notebooks`, as in `coursekit run`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from coursekit.cli.notebooks import (
    DIRECTIVE,
    NotebookFailed,
    alt_text,
    execute_notebook,
    first_line,
    has_tag,
    output_text,
    results,
    shorten,
)

ROOT = Path(__file__).resolve().parent.parent
KERNELSPEC = {"display_name": "python3", "language": "python", "name": "python3"}
CELL_METADATA = ("tags", "slideshow")
WIDGET = "application/vnd.jupyter.widget-view+json"
PROGRESS = re.compile(r"\d+%\|.*\|\s*\d+|\d+(?:\.\d+)?\s?(?:it|s|B|img)/(?:s|it)\b|\?it/s")
ADDRESS = re.compile(r"(?<= at )0x[0-9a-fA-F]{6,}|(?<=object at )0x[0-9a-fA-F]+")
KERNEL_FILE = re.compile(r"(?:/[\w.+-]+)*/ipykernel_\d+/\d+\.py")
MACHINE_PATH = re.compile(r"(?<![\w.~:/-])/(?:root|home/\w+|Users/\w+|work|tmp|private|var/folders)/[\w.-]+")
MAX_LESSON_CELLS, MAX_LESSON_BYTES = 100, 1_000_000


# ---------------------------------------------------------------------------------------------------- cleaning


def machine_paths(extra: Iterable[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """Folders of this machine and what to write instead, longest first."""
    home = os.environ.get("COURSEKIT_HOME")
    pairs = [(str(ROOT), "."), (str(Path.home()), "~"), (tempfile.gettempdir(), "tmp"), *extra]
    if home:
        pairs.append((str(Path(home).expanduser().resolve()), "~/.coursekit"))
        pairs.append((home, "~/.coursekit"))
    return sorted({p for p in pairs if len(p[0]) > 1}, key=lambda p: -len(p[0]))


def clean_text(text: str, paths: list[tuple[str, str]]) -> str:
    text = KERNEL_FILE.sub("<cell>", text)
    for folder, name in paths:
        text = re.sub(r"(?<![\w.~-])" + re.escape(folder) + r"(?![\w.-])", name, text)
    return ADDRESS.sub("0x…", text)


def settle(text: str) -> str:
    """What a terminal shows in the end: a carriage return overwrites its line."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        parts = [p for p in line.split("\r") if p]
        lines.append(parts[-1] if parts else "")
    return "\n".join(lines)


def clean_stream(text: str, name: str) -> str:
    text = settle(text)
    if name == "stderr":
        kept = [line for line in text.split("\n") if not PROGRESS.search(line)]
        text = "\n".join(kept) if "".join(kept).strip() else ""
    return text


def clean_outputs(outputs: list[dict[str, Any]], paths: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Outputs as they should be committed: no progress bars, no widget views, no place of this machine."""
    kept: list[dict[str, Any]] = []
    for output in outputs:
        kind = output["output_type"]
        if kind == "stream":
            if kept and kept[-1]["output_type"] == "stream" and kept[-1]["name"] == output["name"]:
                kept[-1]["text"] += "".join(output["text"])
            else:
                kept.append({**output, "text": "".join(output["text"])})
        elif kind == "error":
            kept.append({**output, "traceback": [clean_text(t, paths) for t in output["traceback"]],
                         "evalue": clean_text(output["evalue"], paths)})
        else:
            kept.extend(clean_rich(output, paths))
    for output in kept:
        if output["output_type"] == "stream":
            output["text"] = clean_text(clean_stream(output["text"], output["name"]), paths)
    return [o for o in kept if o["output_type"] != "stream" or o["text"].strip()]


def clean_rich(output: dict[str, Any], paths: list[tuple[str, str]]) -> list[dict[str, Any]]:
    data = dict(output.get("data", {}))
    is_widget = data.pop(WIDGET, None) is not None
    plain = "".join(data.get("text/plain", ""))
    if is_widget and (PROGRESS.search(plain) or not plain or plain in ("Output()", "VBox()", "HBox()")):
        return []
    for mime, value in data.items():
        if mime.startswith("text/"):
            data[mime] = clean_text("".join(value), paths)
        elif mime.startswith("image/") and mime != "image/svg+xml":
            data[mime] = "".join(value).rstrip()
    if not data:
        return []
    kept = {**output, "data": data}
    if "execution_count" in kept:
        kept["execution_count"] = None
    return [kept]


def stable_id(source: str, taken: set[str]) -> str:
    n, cell_id = 1, hashlib.sha1(source.encode()).hexdigest()[:8]
    while cell_id in taken:
        n += 1
        cell_id = hashlib.sha1(f"{source}{n}".encode()).hexdigest()[:8]
    return cell_id


def clean_notebook(nb: Any, *, paths: Iterable[tuple[str, str]] = ()) -> Any:
    """Clean a notebook in place: metadata, counts, ids and outputs. Returns it."""
    import nbformat

    places = machine_paths(paths)
    nb.metadata = nbformat.from_dict({"kernelspec": dict(KERNELSPEC)})
    nb.nbformat, nb.nbformat_minor = 4, 5
    taken: set[str] = set()
    for cell in nb.cells:
        cell.metadata = nbformat.from_dict({k: cell.metadata[k] for k in CELL_METADATA if cell.metadata.get(k)})
        if not cell.get("id") or cell.id in taken:
            cell["id"] = stable_id(cell.source, taken)
        taken.add(cell.id)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [nbformat.from_dict(o) for o in clean_outputs(cell.outputs, places)]
    return nb


def read(path: Path | str) -> Any:
    import nbformat

    return nbformat.read(str(path), as_version=4)


def write(nb: Any, path: Path | str) -> None:
    """Write as nbdev does (indent 1, sorted keys, UTF-8), through a temporary file in the same folder."""
    import json

    import nbformat

    nbformat.validate(nb)
    plain = nbformat.versions[4].writes(nb, split_lines=True)
    text = json.dumps(json.loads(plain), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


# ----------------------------------------------------------------------------------------------------- running


def relative(path: Path | str) -> str:
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def cpu_seconds() -> float:
    """What kernels that have ended took of the processor, in seconds. A busy machine changes it far less than the clock's."""
    return sum(os.times()[2:4])


def run_notebook(
    path: Path | str,
    *,
    out: Path | str | None = None,
    inplace: bool = False,
    timeout: float = 900,
    slow: bool = False,
    cwd: Path | str | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[Any, float]:
    """Execute one notebook in a fresh kernel; returns it cleaned, and the seconds that it took.

    The executed copy goes to the folder `out`, which is also where the notebook's own files land; with `inplace` it
    replaces the source, and the kernel runs beside it. `timeout` is in seconds per cell. Raises NotebookFailed.
    """
    path, nb = Path(path).resolve(), read(path)
    target = path if inplace else (Path(out).resolve() / path.name if out else None)
    where = Path(cwd) if cwd else (target.parent if target else path.parent)
    where.mkdir(parents=True, exist_ok=True)
    try:
        seconds = execute_notebook(nb, name=relative(path), cwd=where, timeout=timeout, slow=slow, say=say)
    except NotebookFailed as error:
        message = str(error)
        if target is not None and not inplace:
            write(clean_notebook(nb), target)
            message += f"\nexecuted so far: {relative(target)}"
        raise NotebookFailed(message) from None
    clean_notebook(nb, paths=[(str(where.resolve()), ".")])
    if target is not None:
        write(nb, target)
    return nb, seconds


# ---------------------------------------------------------------------------------------------------- checking


def check_notebook(path: Path | str, kind: str = "api") -> list[str]:
    """What is wrong with a committed notebook, one sentence each; `kind` is api, lesson, solution or index."""
    import nbformat

    path, nb = Path(path), read(path)
    problems = [*check_outputs(nb), *check_headings(nb), *check_metadata(nb)]
    try:
        nbformat.validate(nb)
    except nbformat.ValidationError as error:
        problems.append(f"is not a valid notebook: {str(error).splitlines()[0]}")
    if kind == "lesson":
        problems += check_lesson(path, nb)
    if kind in ("lesson", "solution"):
        exports = [c.id for c in nb.cells if c.cell_type == "code"
                   and {name for name, _ in DIRECTIVE.findall(c.source)} & {"export", "exports", "exporti", "default_exp"}]
        problems += [f"cells {exports} export; only nbs/api makes modules"] if exports else []
    if kind in ("lesson", "index") and not any(c.get("outputs") for c in nb.cells):
        problems.append("is committed without outputs; run `make notebooks`")
    return problems


def check_lesson(path: Path, nb: Any) -> list[str]:
    problems = []
    if len(nb.cells) > MAX_LESSON_CELLS:
        problems.append(f"has {len(nb.cells)} cells; at most {MAX_LESSON_CELLS}")
    if path.stat().st_size >= MAX_LESSON_BYTES:
        problems.append(f"is {path.stat().st_size:,} bytes; under {MAX_LESSON_BYTES:,}")
    if path.parent == ROOT / "nbs" / "lessons" and not (ROOT / "nbs" / "solutions" / path.name).is_file():
        problems.append(f"nbs/solutions/{path.name} is missing")
    return problems + [f"cell {c.id}: tagged `results` but shows nothing" for c in nb.cells if has_tag(c, "results") and not c.get("outputs")]


def check_metadata(nb: Any) -> list[str]:
    """Ids of their own, and nothing that changes each time a notebook is run."""
    problems = []
    ids = [c.get("id") for c in nb.cells]
    if len(set(ids)) != len(ids):
        problems.append("has cells that share an id")
    extra = sorted({key for c in nb.cells for key in c.metadata if key not in CELL_METADATA})
    if extra:
        problems.append(f"has the cell metadata {', '.join(extra)}; run `python tools/notebooks.py clean` on it")
    if any(c.get("execution_count") is not None for c in nb.cells):
        problems.append("has execution counts; run `python tools/notebooks.py clean` on it")
    return problems


def check_outputs(nb: Any) -> list[str]:
    problems = []
    for cell in nb.cells:
        who = f"cell {cell.get('id')} ({shorten(first_line(cell.source), 40)!r})"
        text = [cell.source]
        if cell.cell_type == "markdown" and re.search(r"!\[\s*\]\(", cell.source):
            problems.append(f"{who}: a picture without alternative text")
        for output in cell.get("outputs", []):
            if output["output_type"] == "error" and not has_tag(cell, "raises-exception"):
                problems.append(f"{who}: shows {output['ename']} but is not tagged raises-exception")
            problems += [f"{who}: {p}" for p in check_figure(output)]
            text.append(output_text(output))
            text.append("".join(output.get("data", {}).get("text/html", "")))
            text += output.get("traceback", [])
        found = sorted(set(MACHINE_PATH.findall(re.sub(r"data:image/[^\"')]+", "", "\n".join(text)))))
        problems += [f"{who}: names a place of one machine: {place}" for place in found]
    return problems


def check_figure(output: dict[str, Any]) -> list[str]:
    data = output.get("data", {})
    problems = ["a figure without alternative text" for m in data if m.startswith("image/") and not alt_text(output, m)]
    for tag in re.findall(r"<img\b[^>]*>", "".join(data.get("text/html", ""))):
        if not re.search(r"\balt\s*=\s*(\"[^\"]+\"|'[^']+')", tag):
            problems.append("an <img> without alternative text")
    if WIDGET in data:
        problems.append("a widget view, which nobody else can show; run `python tools/notebooks.py clean`")
    return problems


def check_headings(nb: Any) -> list[str]:
    """One top heading, first; no level skipped on the way down."""
    levels: list[tuple[int, str]] = []
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"(?ms)^(```|~~~).*?^\1", "", cell.source)
            levels += [(len(m.group(1)), m.group(2)) for m in re.finditer(r"(?m)^(#{1,6})\s+(.+)$", prose)]
    if not levels or levels[0][0] != 1:
        return ["does not begin with a heading of level 1"]
    problems = [f"has a second heading of level 1: {text!r}" for level, text in levels[1:] if level == 1]
    for (above, _), (level, text) in itertools.pairwise(levels):
        if level > above + 1:
            problems.append(f"skips from heading level {above} to {level} at {text!r}")
    return problems


def find(folder: Path) -> list[Path]:
    """The notebooks in a folder and the folders in it, without those that an editor keeps for itself."""
    return [p for p in sorted(folder.rglob("*.ipynb")) if not any(part.startswith((".", "_")) for part in p.relative_to(folder).parts)]


def kind_of(path: Path) -> str:
    if path.stem == "index":
        return "index"
    return {"lessons": "lesson", "solutions": "solution"}.get(path.parent.name, "api")


# ------------------------------------------------------------------------------------------------ command line


def say_now(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def command_run(args: argparse.Namespace) -> int:
    failed = []
    for path in args.notebooks:
        say_now(f"{relative(path)}\n")
        out, cpu = Path(args.out) / args.inside.get(path, "") if args.out else None, cpu_seconds()
        try:
            nb, seconds = run_notebook(path, out=out, inplace=args.inplace, timeout=args.timeout,
                                       slow=args.slow, say=say_now)
        except NotebookFailed as error:
            failed.append(relative(path))
            say_now(f"\n{error}\n")
            if not args.keep_going:
                return 1
            continue
        for line in results(nb):
            say_now(f"  {line}\n")
        target = path if args.inplace else (out / path.name if out else None)
        say_now(f"done in {seconds:.0f} s, {cpu_seconds() - cpu:.0f} s of CPU" + (f"; executed notebook: {relative(target)}" if target else "") + "\n")
    if failed:
        say_now(f"{len(failed)} of {len(args.notebooks)} notebooks failed: {', '.join(failed)}\n")
    return 1 if failed else 0


def command_clean(args: argparse.Namespace) -> int:
    for path in args.notebooks:
        before = path.read_bytes()
        write(clean_notebook(read(path)), path)
        if path.read_bytes() != before:
            say_now(f"cleaned {relative(path)}\n")
    return 0


def command_check(args: argparse.Namespace) -> int:
    count = 0
    for path in args.notebooks:
        for problem in check_notebook(path, args.kind or kind_of(path)):
            count += 1
            say_now(f"{relative(path)}: {problem}\n")
    say_now(f"{len(args.notebooks)} notebooks, {count} problems\n")
    return 1 if count else 0


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(dest="command", required=True)
    run = sub.add_parser("run", help="execute notebooks, one kernel each, with a live line a cell")
    where = run.add_mutually_exclusive_group()
    where.add_argument("--inplace", action="store_true", help="write cleaned outputs back into the notebook")
    where.add_argument("--out", metavar="DIR", help="write the executed copy here; its files land here too")
    run.add_argument("--timeout", type=float, default=900, metavar="S", help="seconds a cell may take (default 900)")
    run.add_argument("--slow", action="store_true", help="run cells marked `#| slow` too")
    run.add_argument("--keep-going", action="store_true", help="go on with the next notebook after a failure")
    run.set_defaults(act=command_run)
    clean = sub.add_parser("clean", help="drop counts, metadata, progress bars and places of this machine")
    clean.set_defaults(act=command_clean)
    check = sub.add_parser("check", help="say what is wrong with committed notebooks")
    check.add_argument("--kind", choices=("api", "lesson", "solution", "index"), help="default: from the folder's name")
    check.set_defaults(act=command_check)
    for command in (run, clean, check):
        command.add_argument("notebooks", nargs="+", type=Path, help="notebooks, or folders with notebooks at any depth")
    args = parser.parse_args(argv)
    # `run nbs/api --out _run` keeps the folders: nbs/api/data/07_loader.ipynb goes to _run/api/data
    args.inside = {path: path.parent.relative_to(named.parent) for named in args.notebooks if named.is_dir() for path in find(named)}
    args.notebooks = [path for named in args.notebooks for path in (find(named) if named.is_dir() else [named])]
    missing = [str(p) for p in args.notebooks if not p.is_file()]
    if missing:
        parser.error(f"no such notebook: {', '.join(missing)}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    return int(args.act(args))


if __name__ == "__main__":
    sys.exit(main())
