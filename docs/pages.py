"""Turn the notebooks into the pages that Sphinx and MyST-NB build: nothing is run, the stored outputs are shown.

`write_pages(folder)` writes lessons, worked answers and reference pages, the sidebar, the glossary and the table of fastai's names.
"""

from __future__ import annotations

import ast
import base64
import configparser
import copy
import hashlib
import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import architecture
import reference
import yaml
from glossary import FENCED, Glossary

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*\|[ \t]*([\w-]+)[ \t]*:?[ \t]*(.*)\n?", re.M)
PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
WIDGET = re.compile(r"^(<[\w.]+ object at 0x|\w+\(children=\()")
NO_WIDGET = """```{admonition} Something to use
:class: note
This cell shows buttons or sliders, which need a running notebook: download it, or open it with `make lab`.
```"""
MODEL_PAGE = "what_is_in_your_photo.html"
TRY_IT = f"""<div class="try-it" data-page="{MODEL_PAGE}">
<p><strong>Try it first.</strong> Drop one of your photos here, and a neural network names what it shows. It runs in your browser,
and your photo stays on your device.</p>
<p><button type="button">Load the network (MEGABYTES MB)</button></p>
</div>"""
COLAB = """# On Colab, this cell installs coursekit. Anywhere else it does nothing.
import importlib.util
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("LIB_PATH") is None:
    %pip install -q "LIB_NAME @ git+GIT_URL@BRANCH"
"""
METADATA = {"kernelspec": {"name": "python3", "display_name": "Python 3"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"}}  # fmt: skip
AREAS = {"": "Core", "data": "Data", "training": "Training", "training/callbacks": "Callbacks", "vision": "Vision", "tabular": "Tables", "text": "Text",
         "interpret": "Interpretation", "deploy": "Deployment", "samples": "Stand-in datasets", "widgets": "Widgets", "course": "Exercises and quizzes",
         "cli": "Command line"}  # fmt: skip


def settings() -> dict[str, str]:
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def directives(source: str) -> dict[str, str]:
    return dict(DIRECTIVE.findall(source))


def parsed(source: str) -> ast.AST:
    """A cell's syntax tree; an empty one if it isn't Python, because it shows what `?` does or an error."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module([], [])


def imported(cells: list[str]) -> dict[str, str]:
    """Name -> module of what some code imports from coursekit."""
    found: dict[str, str] = {}
    for node in (n for cell in cells for n in ast.walk(parsed(cell))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("coursekit"):
            for name in node.names:
                passed_on = handed_on(node.module or "")
                if name.name == "*":
                    found |= passed_on
                else:
                    found[name.asname or name.name] = passed_on.get(name.name, node.module or "")
    return found


@cache
def handed_on(module: str) -> dict[str, str]:
    """Name -> module of what `from module import *` gives: what a hub or a package imports, and what any other module defines."""
    files = [ROOT / f"{module.replace('.', '/')}{end}" for end in (".py", "/__init__.py")]
    file = next((f for f in files if f.exists()), None)
    if file is None:  # a name of fastai's that the package answers
        return {}
    text = file.read_text(encoding="utf-8")
    return imported([text]) if file.name in ("all.py", "__init__.py") else {n.name: module for n in reference.public(text)}


@dataclass
class Page:
    """A notebook and the page it becomes."""

    path: Path

    @cached_property
    def nb(self) -> dict[str, Any]:
        nb = json.loads(self.path.read_text(encoding="utf-8"))
        for cell in nb["cells"]:
            cell["source"] = "".join(cell["source"])
        return nb

    @property
    def code(self) -> list[str]:
        return [c["source"] for c in self.nb["cells"] if c["cell_type"] == "code"]

    @cached_property
    def module(self) -> str:
        """The module that the notebook exports, '' for lessons."""
        name = next((d["default_exp"] for d in map(directives, self.code) if "default_exp" in d), "")
        return f"coursekit.{name.strip()}" if name else ""

    @cached_property
    def docname(self) -> str:
        """Reference pages are named by their module, so that links to them outlive a new order of the notebooks."""
        if self.module:
            return "api/" + self.module.partition(".")[2].replace(".", "/")
        return self.path.relative_to(NBS).with_suffix("").as_posix()

    @property
    def area(self) -> str:
        return self.docname.partition("/")[2].rpartition("/")[0]

    @cached_property
    def title(self) -> str:
        return re.search(r"(?m)^# (.+)$", self.nb["cells"][0]["source"])[1]  # type: ignore[index]

    @cached_property
    def summary(self) -> str:
        """The first sentence after the title."""
        text = re.sub(r"(?m)^#.*$|^> ?", "", self.nb["cells"][0]["source"]).strip().partition("\n\n")[0]
        return re.split(r"(?<=[.!?])\s", " ".join(text.split()))[0]

    @cached_property
    def names(self) -> set[str]:
        """What the notebook exports."""
        return {n.name for c in self.code if "export" in directives(c) for n in reference.public(c)}


@dataclass
class Site:
    """All pages, and what they know about one another."""

    out: Path
    pages: list[Page]
    git: str = field(default_factory=lambda: f"{settings()['git_url'] % settings()}/blob/{settings()['branch']}")
    written: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.modules = {p.module: p for p in self.pages if p.module}
        self.by_path = {p.path: p for p in self.pages}
        self.lessons = [p for p in self.pages if p.docname.startswith("lessons/")]
        self.glossary = Glossary(self.lessons)
        self.visible = {p.docname: self.names_on(p) for p in self.pages}
        self.users: dict[tuple[str, str], list[Page]] = defaultdict(list)  # (module, name) -> lessons whose code has the name
        for p in self.lessons:
            for name in self.used(p):
                self.users[self.visible[p.docname][name], name].append(p)

    def names_on(self, page: Page) -> dict[str, str]:
        """Name -> module of every function and class that a page may mention: what it imports and what it exports."""
        names = imported(page.code) | dict.fromkeys(page.names, page.module)
        return {name: module for name, module in names.items() if module in self.modules and name in self.modules[module].names}

    def used(self, page: Page) -> list[str]:
        """The exported names that the code of a page mentions, other than to import them."""
        mentioned = {n.id for cell in page.code for n in ast.walk(parsed(cell)) if isinstance(n, ast.Name)}
        return [name for name in self.visible[page.docname] if name in mentioned]

    def write(self, name: str, text: str | bytes) -> None:
        """Write a file unless it is there already, so that Sphinx builds again only what has changed."""
        path, data = self.out / name, text.encode() if isinstance(text, str) else text
        self.written.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)

    # ---- Markdown cells

    def link(self, page: Page, target: str) -> str:
        """A link of a notebook as its page needs it: to another page, or to the file in the repository."""
        file, hash_, anchor = target.partition("#")
        path = Path(os.path.normpath(page.path.parent / file))
        if path in self.by_path:
            return f"/{self.by_path[path].docname}.ipynb{hash_}{anchor}"
        if path == NBS / "api":
            return "/api/index.md"
        if not path.exists():
            raise FileNotFoundError(f"{page.path.relative_to(ROOT)} links to {target}, which is missing")
        return f"{self.git}/{path.relative_to(ROOT).as_posix()}{hash_}{anchor}"

    def prose(self, page: Page, text: str, linked: set[str]) -> str:
        """Markdown with its links, and with the first mention of each exported name linked to its reference."""
        text = re.sub(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s]+)(?=\))", lambda m: self.link(page, m[1]), text)
        end, parts = 0, []
        for m in FENCED.finditer(text):
            parts += [self.link_names(page, text[end : m.start()], linked), m[0].replace("```mermaid", "```{mermaid}", 1)]
            end = m.end()
        return "".join([*parts, self.link_names(page, text[end:], linked)])

    def link_names(self, page: Page, text: str, linked: set[str]) -> str:
        """Markdown without code blocks, in which the first mention of each exported name leads to its reference."""
        visible = self.visible[page.docname]

        def linked_name(m: re.Match[str]) -> str:
            name, line = m[1].partition(".")[0], m.string[: m.start()].rpartition("\n")[2]
            if name not in visible or m[1] in linked or line.startswith("#") or line == "| ":
                return m[0]
            linked.add(m[1])
            return f"{{py:obj}}`{m[1]} <{visible[name]}.{m[1]}>`"

        return re.sub(r"(?<![`\[\w}])`([A-Za-z_]\w*(?:\.\w+)?)`(?![`\]])", linked_name, text)

    # ---- code cells

    def output(self, page: Page, output: dict[str, Any]) -> dict[str, Any]:
        """A figure as an image with its alternative text; a widget, which needs a kernel, as a note."""
        data = output.get("data", {})
        mime = next((m for m in PICTURES if m in data), None)
        if mime:
            raw = "".join(data[mime])
            content = raw.encode() if mime == "image/svg+xml" else base64.b64decode(raw)
            name = f"images/{hashlib.sha256(content).hexdigest()[:16]}.{PICTURES[mime]}"
            self.write(name, content)
            alt = output["metadata"][mime]["alt"].replace("\n", " ")
            return {**output, "data": {"text/markdown": f"```{{image}} /{name}\n:alt: {alt}\n```"}, "metadata": {}}
        if set(data) == {"text/plain"} and WIDGET.match("".join(data["text/plain"])):
            return {**output, "data": {"text/markdown": NO_WIDGET}, "metadata": {}}
        if output["output_type"] == "display_data" and set(data) == {"text/html", "text/plain"}:
            return {**output, "data": {"text/html": data["text/html"]}}
        return output

    def shown(self, page: Page, cell: dict[str, Any], linked: set[str]) -> list[dict[str, Any]]:
        """A code cell as cells of the page: none if it is hidden, a reference entry above the folded source if it exports something."""
        marks = directives(cell["source"])
        source = DIRECTIVE.sub("", cell["source"]).strip("\n")
        if "hide" in marks or "default_exp" in marks or not source.strip():
            return []
        meta: dict[str, Any] = {"tags": list(cell["metadata"].get("tags", []))}
        cell = {**cell, "source": source, "metadata": meta, "outputs": [self.output(page, o) for o in cell["outputs"]]}
        if "hide-output" in meta["tags"]:
            meta["mystnb"] = {"code_prompt_show": "Make your guess, then look", "code_prompt_hide": "Hide the output"}
        if "hide-input" in meta["tags"] and page.docname == "index":
            meta["tags"] = ["remove-input"]
        if "export" not in marks:
            return [cell]
        said, defined = reference.comments(source), reference.public(source)
        entries = [self.link_names(page, reference.entry(n, said, self.used_in(page, n.name)), linked | {n.name}) for n in defined]
        what = ", ".join(n.name for n in defined) or ("imports" if not re.search(r"(?m)^(def|class|\w+ ?[:=])", source) else "")
        names = what or ", ".join(dict.fromkeys(re.findall(r"(?m)^(?:def |class )?(\w+)(?= ?[(:=])", source)))
        meta["tags"], meta["mystnb"] = ["hide-input"], {"code_prompt_show": f"Source: {names}", "code_prompt_hide": f"Hide the source: {names}"}
        return [*({"cell_type": "markdown", "metadata": {}, "source": e} for e in entries), cell]

    def used_in(self, page: Page, name: str) -> str:
        lessons = self.users.get((page.module, name), [])
        links = ", ".join(f"[{lesson.title.partition(':')[0].removeprefix('Lesson ')}](/{lesson.docname}.ipynb)" for lesson in lessons)
        return f"**Used in** lesson{'s' if len(lessons) > 1 else ''} {links}" if links else ""

    def page(self, page: Page) -> None:
        """Write the page of a notebook, and the notebook for the reader to download."""
        cells: list[dict[str, Any]] = []
        linked, used = {page.title}, set[str]()
        for i, cell in enumerate(copy.deepcopy(page.nb["cells"])):
            if cell["cell_type"] == "code":
                cells += self.shown(page, cell, linked)
            elif cell["source"].strip():
                text = self.prose(page, self.glossary.marked.get((page.docname, i), cell["source"]), linked)
                if page in self.lessons and i:  # the first cell is the title and the box
                    text = self.glossary.link(page, text, used)
                cells.append({"cell_type": "markdown", "metadata": {}, "source": text})
        if page.docname != "index":
            top, title = cells[0], f"# {page.title}"
            links = self.top_links(page)
            module = f"```{{py:module}} {page.module}\n```\n\n" if page.module else ""
            top["source"] = top["source"].replace(title, f"{title}\n\n{module}{links}", 1)
        else:
            size = (self.out.parent / "model" / MODEL_PAGE).stat().st_size / 1e6
            cells.insert(2, {"cell_type": "markdown", "metadata": {}, "source": TRY_IT.replace("MEGABYTES", f"{size:.0f}")})
            cells.append({"cell_type": "markdown", "metadata": {}, "source": self.sidebar()})
        for cell in cells:
            cell.pop("id", None)
        nb = {"nbformat": 4, "nbformat_minor": 4, "cells": cells, "metadata": METADATA}
        self.write(f"{page.docname}.ipynb", json.dumps(nb, ensure_ascii=False, indent=1))
        self.write(f"extra/notebooks/{page.path.relative_to(NBS).as_posix()}", page.path.read_bytes())
        if page in self.lessons:
            self.write(f"extra/colab/{page.path.name}", for_colab(page.path))

    def top_links(self, page: Page) -> str:
        up = "../" * page.docname.count("/")
        file = page.path.relative_to(NBS).as_posix()
        links = [f'<a href="{up}notebooks/{file}" download>Download this notebook</a>']
        answers = NBS / "solutions" / page.path.name
        if page in self.lessons and answers in self.by_path:
            links.append(f'<a href="{up}{self.by_path[answers].docname}.html">Worked answers</a>')
        if page in self.lessons:
            links.append("Open in " + " ".join(f'<a class="badge" href="{address}">{place}</a>' for place, address in try_it(page.path.name).items()))
        links.append(f'<a href="{self.git}/nbs/{file}">Source</a>')
        return f'<p class="page-links">{" · ".join(links)}</p>'

    # ---- pages that are made

    def sidebar(self) -> str:
        def tree(caption: str, names: list[str]) -> str:
            return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```\n"])

        areas = [f"api/{name}/index" for name in self.areas if name]
        return "\n".join([tree("Lessons", [p.docname for p in self.lessons]),
                          tree("More", ["solutions/index", "glossary", "fastai", "architecture", "api/05_safety"]),
                          tree("Reference", ["api/index", *areas])])  # fmt: skip

    @cached_property
    def areas(self) -> dict[str, list[Page]]:
        """The modules of each area that has some, in the order of `AREAS`."""
        found = {name: [p for p in self.modules.values() if p.area == name] for name in AREAS}
        left = {p.area for p in self.modules.values()} - set(found)
        assert not left, f"pages.AREAS has no title for {sorted(left)}"
        return {name: pages for name, pages in found.items() if pages}

    def list_page(self, name: str, title: str, pages: list[Page], above: str = "") -> None:
        rows = [f"| [{p.title.removeprefix('coursekit.')}](/{p.docname}.ipynb) | {p.summary} |" for p in pages]
        tree = ["```{toctree}", ":hidden:", "", *(f"/{p.docname}" for p in pages), "```"]
        self.write(f"{name}.md", "\n".join([f"# {title}", "", above, "| | |", "|---|---|", *rows, "", *tree, ""]))

    def index_pages(self) -> None:
        """Worked answers, the areas of the reference, and an overview of them."""
        self.list_page("solutions/index", "Worked answers", [p for p in self.pages if p.docname.startswith("solutions/")])
        overview = []
        for name, pages in self.areas.items():
            if name:
                self.list_page(f"api/{name}/index", AREAS[name], pages)
                modules = ", ".join(f"[{p.docname.rpartition('/')[2]}](/{p.docname}.ipynb)" for p in pages)
                overview.append(f"| [{AREAS[name]}](/api/{name}/index.md) | {modules} |")
        self.list_page("api/index", "All modules", self.areas.get("", []), "\n".join(["| | |", "|---|---|", *overview, "", "## Core", ""]))

    def fastai(self) -> None:
        """The hints of `coursekit/hints.yaml`, in a table for each place where one can meet them."""
        page = yaml.safe_load((ROOT / "coursekit" / "hints.yaml").read_text(encoding="utf-8"))
        lines = [f"# {page['title']}", "", page["intro"]]
        for part in page["places"].values():
            lines += ["", f"## {part['title']}", "", "| in fastai | here | because |", "|---|---|---|"]
            for names, row in part["names"].items():
                cells = [", ".join(f"`{n}`" for n in names.split(", ")), " or ".join(f"`{code}`" for code in row["write"]), row["why"]]
                lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        self.write("fastai.md", "\n".join([*lines, ""]))

    def llms(self) -> None:
        """A short list of the pages for language models."""
        base = f"{settings()['doc_host'] % settings()}{settings()['doc_baseurl'] % settings()}"
        sections = {"Lessons": self.lessons, "Reference": list(self.modules.values())}
        lines = [f"# {settings()['title']}", "", f"> {settings()['description']}", ""]
        for title, pages in sections.items():
            lines += [f"## {title}", "", *(f"- [{p.title}]({base}/{p.docname}.html): {p.summary}" for p in pages), ""]
        self.write("extra/llms.txt", "\n".join(lines))


def try_it(lesson: str) -> dict[str, str]:
    """Where a lesson, by the name of its notebook, can be run without an installation: place -> address."""
    cfg = settings()
    where = cfg["git_url"] % cfg
    binder = f"{where.replace('github.com', 'mybinder.org/v2/gh')}/{cfg['branch']}?urlpath={quote(f'lab/tree/nbs/lessons/{lesson}', safe='')}"
    return {"Colab": f"{where.replace('github.com', 'colab.research.google.com/github')}/blob/colab/{lesson}",
            "Codespaces": where.replace("github.com", "codespaces.new"), "Binder": binder}  # fmt: skip


def for_colab(path: Path) -> str:
    """A lesson with one more cell at its top, which installs what it needs on Colab, and without outputs."""
    cfg, nb = settings(), json.loads(path.read_text(encoding="utf-8"))
    source = COLAB
    for mark, value in {"LIB_PATH": cfg["lib_path"], "LIB_NAME": cfg["lib_name"], "GIT_URL": cfg["git_url"] % cfg, "BRANCH": cfg["branch"]}.items():
        source = source.replace(mark, value)
    nb["cells"] = [{**c, "outputs": [], "execution_count": None} if c["cell_type"] == "code" else c for c in nb["cells"]]
    first: dict = {"cell_type": "code", "id": "install", "metadata": {}, "outputs": [], "execution_count": None, "source": source.rstrip()}
    return json.dumps({**nb, "cells": [first, *nb["cells"]]}, ensure_ascii=False, indent=1)


def site_pages() -> list[Page]:
    """The front page, lessons, worked answers and reference."""
    folders = ("lessons", "solutions", "api")
    return [Page(NBS / "index.ipynb"), *(Page(p) for folder in folders for p in sorted((NBS / folder).rglob("[0-9]*.ipynb")))]


def write_pages(out: Path) -> None:
    """Write everything that Sphinx reads, and delete what no notebook makes any more."""
    site = Site(out, site_pages())
    for page in site.pages:
        site.page(page)
    site.index_pages()
    site.write("glossary.md", site.glossary.page())
    site.fastai()
    site.write("architecture.md", architecture.page(ROOT, {m: p.docname for m, p in site.modules.items()}))
    site.llms()
    for path in sorted(out.rglob("*")):
        if path.is_file() and path not in site.written:
            path.unlink()
