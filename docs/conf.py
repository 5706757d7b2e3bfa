"""Sphinx's configuration. `make docs` runs `build.py`, which writes the pages that this reads and says where static files are."""

import hashlib
import re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from pages import settings
from sidebar import Sidebar

cfg = settings()
project, author, copyright, version = cfg["title"], cfg["author"], cfg["copyright"], cfg["version"]
html_title = project
extensions = ["myst_nb"]
exclude_patterns = ["extra"]
language = "en"

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]

add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_show_sourcelink = html_copy_source = False
html_show_sphinx = False
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"
html_math_renderer = "katex"


class Mermaid(Directive):
    """A diagram: `site.js` has Mermaid draw it; its description is in the diagram."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        text = nodes.Text("\n".join(self.content)).astext().replace("&", "&amp;").replace("<", "&lt;")
        return [nodes.raw("", f'<div class="mermaid">{text}</div>', format="html")]


def math(writer, node) -> None:
    """TeX between marks, for KaTeX."""
    tag, left, right = ("div", r"\[", r"\]") if isinstance(node, nodes.math_block) else ("span", r"\(", r"\)")
    writer.body.append(writer.starttag(node, tag, "", CLASS="math notranslate nohighlight") + left + writer.encode(node.astext()) + f"{right}</{tag}>")
    raise nodes.SkipNode


def readable(app, pagename, templatename, context, doctree) -> None:
    """What screen readers stumble over: captions of the sidebar that are headings of no level, and lists of parameters without terms."""
    if "furo_navigation_tree" in context:
        context["furo_navigation_tree"] = context["furo_navigation_tree"].replace('role="heading"', 'role="heading" aria-level="2"')

    def lines(signature: re.Match[str]) -> str:
        text = re.sub(r"<dd>", '<span class="sig-line">', re.sub(r"</?dl>", "", signature[0]))
        return text.replace("</dd>", "</span>")

    if "body" in context:
        body = re.sub(r'(?s)<dt class="sig .*?</dt>', lines, context["body"])
        context["body"] = re.sub(r"<h1>[\w.]+<", lambda m: re.sub(r"([._])", r"\1<wbr>", m[0]), body)  # a name of a module, on a phone


def setup(app) -> None:
    app.add_directive("mermaid", Mermaid)
    sidebar = Sidebar()
    app.connect("html-page-context", sidebar.before, priority=400)  # Furo's own has 500
    app.connect("html-page-context", sidebar.after, priority=800)
    app.connect("html-page-context", readable, priority=900)
    code = b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))
    app.add_config_value("adaptor", hashlib.sha256(code).hexdigest(), "env")  # other code: every page is read again
    app.add_html_math_renderer("katex", (math, None), (math, None))
