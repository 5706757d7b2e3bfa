"""The tree of pages in the sidebar, made once for all pages. Furo makes it again for each, which would take a third of the build."""

from __future__ import annotations

import posixpath
import re
from typing import Any

ENTRY = re.compile(r'<li class="([^"]*)"><a class="([^"]*)" href="([^"]*)">(.*?)</a>(<input )?|</li>')


class Sidebar:
    """Two steps around Furo's own: `before` keeps it from making the tree, and `after` puts ours there."""

    def __init__(self) -> None:
        self.tree = ""  # with links that start at the site's root
        self.above: dict[str, set[str]] = {}  # page -> itself and the pages that it's filed under

    def before(self, app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
        if self.tree:
            context["toctree"] = lambda **options: ""

    def after(self, app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
        if "furo_navigation_tree" in context:
            if not self.tree:
                self.learn(context["furo_navigation_tree"], pagename)
            context["furo_navigation_tree"] = self.on(pagename)

    def learn(self, tree: str, pagename: str) -> None:
        """Take the tree of one page, the first."""

        def plain(m: re.Match[str]) -> str:
            return f' class="{" ".join(x for x in m[1].split() if not x.startswith("current"))}"'

        def from_root(m: re.Match[str]) -> str:
            return f'href="{f"{pagename}.html" if m[1] == "#" else posixpath.normpath(posixpath.join(posixpath.dirname(pagename), m[1]))}"'

        tree = re.sub(r' class="([^"]*)"', plain, tree.replace(' checked=""', "").replace(' class="current"', ""))
        self.tree, stack = re.sub(r'href="(#|[^"#]+)"', from_root, tree), []
        for m in ENTRY.finditer(self.tree):
            if m[3]:
                stack.append(m[3])
                self.above[m[3].removesuffix(".html")] = set(stack)
            else:
                stack.pop()

    def on(self, pagename: str) -> str:
        """The tree on a page, open where the page is."""
        start, current = "../" * pagename.count("/"), self.above.get(pagename, set())

        def entry(m: re.Match[str]) -> str:
            if not m[3]:
                return m[0]
            here, opened = m[3] == f"{pagename}.html", m[3] in current
            item, link = m[1] + " current" * opened + " current-page" * here, "current " * here + m[2]
            box = (m[5] or "") + 'checked="" ' * bool(opened and m[5])
            return f'<li class="{item}"><a class="{link}" href="{"#" if here else start + m[3]}">{m[4]}</a>{box}'

        return ENTRY.sub(entry, self.tree)
