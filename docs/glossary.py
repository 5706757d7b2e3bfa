"""The terms that lessons print in bold where they explain them: a page of them, and a link to it from the first use in each lesson."""

from __future__ import annotations

import re
from typing import Any

# Bold for another reason, or another form of a term that's there.
NO_TERMS = {"steps", "constant", "running", "mixed", "two models", "slope", "plateau", "beside", "enlarges", "mixes", "copies", "progress", "metrics", "weight"}
# Written in several ways: the form in the text -> the term.
SAME = {"batch norm": "Batch normalization", "weight": "weights", "normalize": "normalizes", "normalized": "normalizes", "freezes": "freeze", "frozen": "freeze",
        "PCA": "Principal component analysis"}  # fmt: skip
# Words that mean something else as well, so that only a reader can tell; they are in the glossary, and nothing leads there by itself.
AMBIGUOUS = {"body", "head", "skip", "dead", "event", "hash", "leak", "macro", "precision", "cells", "residual", "pad", "crop", "squish", "penalty", "kernel",
             "features", "hook", "mask", "notebook", "training", "model"}  # fmt: skip
FENCED = re.compile(r"(?ms)^(`{3,}).*?^\1`*[ \t]*$")
# Where no link can be: blocks of code, headings, tables, targets, roles, code, mathematics, links, HTML, addresses, titles of papers.
KEPT = (r"(?:^(`{3,})(?s:.*?)^\1`*[ \t]*$|^(?:#|\|)[^\n]*|^\([\w-]+\)=$|\{[\w:]+\}`[^`]*`|`[^`]*`|\$[^$\n]+\$"
        r"|!?\[[^\]]*\]\([^)]*\)|<[^>\n]+>|https?://\S+"
        r"|(?<!\*)\*[^*\n]{24,}\*(?!\*)|label of the axis)")  # fmt: skip


def sentence_about(term: str, paragraph: str) -> str:
    """The sentence with a bold term; with the one before it if that says what "this" is."""
    lines = [re.sub(r"^\s*(?:[-*]|\d+\.) +", "", line) for line in re.split(r"\n(?=\s*(?:[-*]|\d+\.) )", paragraph)]
    line = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(next(x for x in lines if f"**{term}**" in x).split()))
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z`*])", line)
    at = next(i for i, s in enumerate(sentences) if f"**{term}**" in s)
    before = re.match(r"(That|This|These|It|They|Those|Such|The mean)\b", sentences[at])
    return " ".join(sentences[max(at - 1, 0) if before else at : at + 1])


def forms(term: str) -> str:
    """A pattern of a term with a small or capital letter at its start, in singular and plural."""
    if term[1:] != term[1:].lower() or not term.isascii():  # a name: as it is
        return re.escape(term)
    stem = re.sub(r"(?<=[^s])s$", "", re.sub(r"(?<=ch)es$", "", term)) if not term.endswith(("bias", "loss", "normalizes")) else term
    start = f"[{term[0].lower()}{term[0].upper()}]" if term[0].isalpha() else re.escape(term[0])
    return start + re.escape(stem[1:]).replace(r"\ ", r"\s") + "(?:e?s)?"


class Glossary:
    """The terms of all lessons. A page is whatever has `docname`, `title` and `nb`."""

    def __init__(self, lessons: list[Any]) -> None:
        self.terms: dict[str, tuple[Any, str, str]] = {}  # term -> (lesson, anchor, sentence)
        sources = [(p, i, c["source"]) for p in lessons for i, c in enumerate(p.nb["cells"]) if c["cell_type"] == "markdown"]
        self.prose = re.sub(r"`[^`\n]+`", "", FENCED.sub("", "\n".join(text for *_, text in sources)))
        self.marked = {(p.docname, i): self.collect(p, text) for p, i, text in sources}  # the cells with targets for the terms they explain
        linked = sorted({*self.terms, *SAME} - AMBIGUOUS, key=len, reverse=True)
        by_name = {term.lower(): term for term in self.terms}
        missing = sorted(term for term in SAME.values() if term.lower() not in by_name)
        if missing:
            raise ValueError(f"glossary: no lesson explains {missing[0]!r} in bold any more, but SAME leads to it; change SAME.")
        self.names = {f"t{i}": by_name[SAME.get(term, term).lower()] for i, term in enumerate(linked)}
        found = "|".join(f"(?P<t{i}>{forms(term)})" for i, term in enumerate(linked))
        self.pattern = re.compile(rf"(?m){KEPT}|(?<![\w-])(?:{found})(?![\w-]|\.\w)")

    def collect(self, page: Any, text: str) -> str:
        """Put a target before each paragraph that defines a term in bold, and remember the sentence."""
        paragraphs = re.split(r"\n\n+", text)
        for i, paragraph in enumerate(paragraphs):
            if paragraph.startswith(("|", "```", "#", "    ")):
                continue
            for term in re.findall(r"(?<![\w*])\*\*([A-Za-z][\w² -]+?)\*\*(?![\w*])", paragraph):
                key = term.lower() if term[1:] == term[1:].lower() and re.search(rf"\b{term.lower()}\b", self.prose) else term
                if key in self.terms or key in {*NO_TERMS, *SAME} or len(key.split()) > 3 or key.lower().startswith(("a ", "an ")) or f"**{term}**:" in paragraph:
                    continue
                anchor = f"first-{re.sub(r'[^a-z0-9]+', '-', key.lower().replace('²', '2')).strip('-')}"
                self.terms[key] = (page, anchor, sentence_about(term, paragraph))
                paragraphs[i] = f"({anchor})=\n{'' if paragraphs[i].startswith('(') else chr(10)}{paragraphs[i]}"
        return "\n\n".join(paragraphs)

    def link(self, page: Any, text: str, seen: set[str]) -> str:
        """Markdown of a lesson in which the first use of each term leads to the glossary; `seen` are those that had their first use."""

        def linked(m: re.Match[str]) -> str:
            term = self.names.get(m.lastgroup or "", "")
            if not term or term in seen:
                return m[0]
            seen.add(term)
            explained = self.terms[term][0] is page and m.string[m.start() - 2 : m.start()] == "**"
            return m[0] if explained else f"{{term}}`{' '.join(m[0].split())} <{term}>`"

        return self.pattern.sub(linked, text)

    def page(self) -> str:
        """The glossary in Markdown."""
        lines = ["# Glossary", "", "What each term means, in the words of the lesson that explains it.", "", "``````{glossary}"]
        for term, (page, anchor, sentence) in sorted(self.terms.items(), key=lambda pair: pair[0].lower()):
            where = page.title.partition(":")[0].replace(" ", "\u00a0")
            lines += [term, f"  {sentence} [{where}](#{anchor})", ""]
        return "\n".join([*lines, "``````", ""])
