"""A deck of slides for each lesson, made with reveal.js: `python docs/slides.py` writes _slides/. Nothing is loaded from elsewhere.

The slides are the cells tagged as slides in the notebook (JupyterLab: the cell's properties, "Slide type"); other cells are for reading.
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
from pathlib import Path
from typing import Any

from build import fetch_scripts
from glossary import FENCED
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pages import NBS, PICTURES, ROOT, Page, Site, site_pages
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ANSI = re.compile(r"\x1b\[[0-9;]*m")
DECK = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<link rel="stylesheet" href="reveal/reset.css"><link rel="stylesheet" href="reveal/reveal.css">
<link rel="stylesheet" href="code.css"><link rel="stylesheet" href="slides.css"><script src="site.js" defer></script></head>
<body data-theme="light"><div class="reveal"><div class="slides">
{slides}
</div></div><script src="reveal/reveal.js"></script><script>
const fit = ({{ currentSlide }}) => {{ currentSlide.style.zoom = Math.min(1, 700 / currentSlide.scrollHeight); }};
Reveal.on("ready", fit); Reveal.on("slidechanged", fit); addEventListener("drawn", () => fit({{ currentSlide: Reveal.getCurrentSlide() }}));
Reveal.initialize({{ width: 1280, height: 720, margin: .04, center: false, hash: true, slideNumber: "c/t", transition: "none" }});
</script></body></html>
"""


def markdown() -> MarkdownIt:
    def fence(tokens: Any, i: int, options: Any, env: Any) -> str:
        if tokens[i].info.strip() == "mermaid":
            return f'<div class="mermaid">{html.escape(tokens[i].content)}</div>'
        return highlight(tokens[i].content, PythonLexer(), HtmlFormatter())

    md = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin, allow_space=False)
    md.renderer.rules["fence"] = fence  # type: ignore[attr-defined]
    for name, tag, marks in (("math_inline", "span", r"\(\)"), ("math_block", "div", r"\[\]")):
        md.renderer.rules[name] = (  # type: ignore[attr-defined]
            lambda tokens, i, options, env, tag=tag, marks=marks:
            f'<{tag} class="math">{marks[:2]}{html.escape(tokens[i].content)}{marks[2:]}</{tag}>')  # fmt: skip
    return md


def output_html(output: dict[str, Any]) -> str:
    """A figure with its description, a table, or at most twelve lines of text."""
    data = output.get("data", {})
    if mime := next((m for m in PICTURES if m in data), None):
        alt = html.escape(output["metadata"][mime]["alt"], quote=True)
        return f'<img alt="{alt}" src="data:{mime};base64,{"".join("".join(data[mime]).split())}">'
    if "text/html" in data:
        return "".join(data["text/html"])
    text = "".join(output.get("text", data.get("text/plain", ""))) or f"{output.get('ename')}: {output.get('evalue')}"
    lines = ANSI.sub("", text).rstrip().splitlines()
    return f"<pre class=output>{html.escape(chr(10).join(lines[:12] + ['…'] * (len(lines) > 12)))}</pre>"


def headings(cells: list[dict[str, Any]]) -> list[str]:
    """The heading above each cell; "" for one that begins with its own."""
    above, now = [], ""
    for cell in cells:
        text = FENCED.sub("", cell["source"]) if cell["cell_type"] == "markdown" else ""
        above.append("" if text.startswith("#") else now)
        now = ([now] + re.findall(r"(?m)^#+ (.+)$", text))[-1]
    return above


def slide(page: Page, cell: dict[str, Any], above: str, md: MarkdownIt, site: Site) -> str:
    """A cell; on a slide of its own, it needs the heading that stands above it in the notebook."""
    heading = f"<h2 class=above>{md.renderInline(above)}</h2>" if above else ""
    if cell["cell_type"] == "markdown":
        linked = re.sub(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s]+)(?=\))", lambda m: deck_link(site, page, m[1]), cell["source"])
        linked = re.sub(r"\n#+ [^\n]+\s*$", "", linked)  # a heading whose text is in the next cell
        return f"<section>{heading}{md.render(linked)}</section>"
    outputs = "".join(map(output_html, cell["outputs"]))
    return f"<section>{heading}{highlight(cell['source'], PythonLexer(), HtmlFormatter())}<div class=out>{outputs}</div></section>"


def deck_link(site: Site, page: Page, target: str) -> str:
    """A link to another lesson's deck, or to the file in the repository."""
    path = (page.path.parent / target.partition("#")[0]).resolve()
    return f"{path.stem}.html" if path.parent == NBS / "lessons" else f"{site.git}/{path.relative_to(ROOT).as_posix()}"


def deck(page: Page, site: Site) -> tuple[str, int]:
    """A lesson's deck, and how many slides it has; a lesson without tags gives its title and its headings' cells."""
    cells = list(zip(page.nb["cells"], headings(page.nb["cells"])))
    tagged = [pair for pair in cells if pair[0]["metadata"].get("slideshow", {}).get("slide_type") in ("slide", "subslide")]
    chosen = tagged or [(c, above) for i, (c, above) in enumerate(cells) if i == 0 or re.match("#+ ", c["source"]) and c["cell_type"] == "markdown"]
    md = markdown()
    return DECK.format(title=html.escape(page.title), slides="\n".join(slide(page, c, above, md, site) for c, above in chosen)), len(chosen)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "_slides", help="where the decks go")
    out = parser.parse_args(argv).out
    fetch_scripts(out, "katex", "mermaid", "reveal")
    site = Site(out, site_pages())
    for name in ("slides.css", "site.js"):
        shutil.copy(Path(__file__).parent / "static" / name, out / name)
    (out / "code.css").write_text(HtmlFormatter(style="a11y-high-contrast-light").get_style_defs(".highlight"), encoding="utf-8")
    rows = []
    for page in site.lessons:
        text, n = deck(page, site)
        (out / f"{page.path.stem}.html").write_text(text, encoding="utf-8")
        rows.append(f'<li><a href="{page.path.stem}.html">{html.escape(page.title)}</a> ({n} slides)</li>')
    (out / "index.html").write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Slides</title><h1>Slides</h1><ul>{"".join(rows)}</ul></html>',
                                    encoding="utf-8")  # fmt: skip
    print(f"{len(rows)} decks in {out.name}: open {out.name}/index.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
