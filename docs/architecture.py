"""The page that shows how the package is built: the layers of pyproject.toml, and the imports that its modules really have."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import reference

Graph = dict[str, set[str]]


def layers(root: Path) -> list[list[str]]:
    """The packages of each layer, the lowest first."""
    found = re.search(r"(?ms)^layers = (\[.*?^\])", (root / "pyproject.toml").read_text(encoding="utf-8"))
    return [re.findall(r"\w+", layer) for layer in reversed(ast.literal_eval(found[1]))]  # type: ignore[index]


def imports(tree: ast.AST, module: str) -> set[str]:
    """The modules of coursekit that a module imports from, as their names begin."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            found.add(".".join([*above, *([node.module] if node.module else [])]))
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.startswith("coursekit.")}


def package(module: str) -> str:
    return module.split(".")[1]


def reduced(graph: Graph) -> list[tuple[str, str]]:
    """The edges that no longer way replaces, so that a diagram of them can be read."""
    def reached(start: str, without: str) -> set[str]:
        seen: set[str] = set()
        todo = [b for b in graph.get(start, ()) if b != without]
        while todo:
            if (name := todo.pop()) not in seen:
                seen.add(name)
                todo += graph.get(name, ())
        return seen

    return [(a, b) for a in sorted(graph) for b in sorted(graph[a]) if b not in reached(a, b)]


def page(root: Path, docnames: dict[str, str]) -> str:
    """The page in Markdown; `docnames` has the reference page of each module."""
    trees = {m: ast.parse((root / f"{m.replace('.', '/')}.py").read_text(encoding="utf-8")) for m in docnames}
    used = {m: imports(tree, m) for m, tree in trees.items()}
    graph: Graph = defaultdict(set)
    for module, others in used.items():
        graph[package(module)] |= {package(o) for o in others} - {package(module)}
    edges = [f"  {a} --> {b}" for a, b in reduced(graph)]
    lines = ["# Architecture", "", "This page is made from the package: its layers are those that the linter checks, its arrows are the imports there are.", "",
             "A module imports only from its own layer and from those below it.",
             "An arrow that follows from others is left out.", "", "```{mermaid}", "flowchart TD", "  accTitle: Imports between the packages", "  accDescr: The tables below name them all.", *edges, "```", "",
             "| Layer, the lowest first | Packages |", "|---|---|"]  # fmt: skip
    there = {package(m) for m in docnames}
    stack = [[name for name in layer if name in there] for layer in layers(root)]
    lines += [f"| {i} | {', '.join(f'[{name}](#{name})' for name in layer)} |" for i, layer in enumerate(stack, 1)]
    for name in (name for layer in stack for name in layer):
        lines += ["", f"## {name}", "", "| Module | What it does | Imports from |", "|---|---|---|"]
        for m in (m for m in docnames if package(m) == name):
            said = reference.plain((ast.get_docstring(trees[m]) or "").partition("\n")[0])
            below = ", ".join(sorted({package(o) for o in used[m]} - {name}))
            lines.append(f"| [{m.partition('.')[2]}](/{docnames[m]}.ipynb) | {said} | {below} |")
    return "\n".join([*lines, ""])
