"""The shape of the package, measured in its source: no import cycle, and small enough to be read (DESIGN sections 1 and 2).

`python tests/test_structure.py` prints every cycle and whatever is too long.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache

from helpers import HAND_WRITTEN, module_name, modules

PACKAGE_LINES, MODULE_LINES = 32_150, 450  # 17,500 after the rebuild; since then scales, roles of folders, the page, what lessons compute with, tables, ratings, masks, points, drawn streets and scenes, texts, generators, receptive fields, hints for names of fastai, the names of the book, gray images
CLASS_LINES = {"training.loop.Loop": 150, "training.learner.Learner": 350}
FUNCTION_LINES, LONGER_FUNCTIONS = 40, 10  # this many functions may be longer
CELL_LINES, LONGER_CELLS = 60, 10  # and this many export cells
CELL_NAMES = 3  # public functions and classes of one export cell, small exceptions not counted
MORE_NAMES: dict[str, str] = {}  # "module #cell" -> why the names of this cell belong together

# Learner.export picks its writer by the file's ending from one table of names; the writers are in deploy.
DECLARED = [("training.learner", "deploy.")]
MODULE_TEXT = re.compile(r"coursekit((?:\.\w+)+)(?::\w+)?")  # "coursekit.deploy.onnx" or "coursekit.deploy.onnx:write_onnx"
PATHS = {module_name(p): p for p in modules()}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(PATHS[name].read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------- import cycles


def import_statements(name: str) -> Iterator[str]:
    """What a module imports: at the top, inside a function, or for type checkers only."""
    package = name if PATHS[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            # nbdev writes the absolute imports of a notebook as relative ones: the dots are counted off here
            above = ["coursekit", *filter(None, package.split("."))]
            base = ".".join([*above[: len(above) - node.level + 1], *([node.module] if node.module else [])]) if node.level else node.module
            yield from (f"{base}.{a.name}" if f"{base}.{a.name}".partition(".")[2] in PATHS else base for a in node.names)


def named_modules(name: str) -> Iterator[str]:
    """What a module may import by a text: `import_module("coursekit.x")`, or a table's "coursekit.x:function"."""
    texts = [n.value for n in ast.walk(tree(name)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    found = {m[1][1:] for text in texts if (m := MODULE_TEXT.fullmatch(text))}
    found -= {n for n in found if any(name == module and n.startswith(above) for module, above in DECLARED)}
    yield from found
    if re.search(r"import_module\((?![\"'])", PATHS[name].read_text(encoding="utf-8")):  # made up at run time: any module of a package it names
        yield from (n for n in PATHS if n.rpartition(".")[0] in found)


@cache
def import_graph() -> dict[str, set[str]]:
    imports = {name: {n.partition(".")[2] for n in import_statements(name) if n.split(".")[0] == "coursekit"} for name in PATHS}
    return {name: ({*imports[name], *named_modules(name)} & set(PATHS)) - {name} for name in PATHS}


def shortest_cycle(graph: dict[str, set[str]], start: str) -> list[str]:
    """The shortest way along imports from a module back to itself, or nothing."""
    ways, seen = [[start]], {start}
    for way in ways:
        for other in sorted(graph[way[-1]]):
            if other == start:
                return [*way, start]
            if other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return []


def cycles() -> list[str]:
    graph = import_graph()
    found = {frozenset(way): way for name in sorted(graph) if (way := shortest_cycle(graph, name))}
    return [" -> ".join(name or "coursekit" for name in way) for way in sorted(found.values(), key=len)]


def test_no_import_cycle() -> None:
    found = cycles()
    assert not found, "modules that need each other:\n" + "\n".join(found)


def test_the_graph_sees_every_kind_of_import() -> None:
    graph = import_graph()
    assert len(graph) > 60 and sum(map(len, graph.values())) > 300
    assert "training.learner" in graph["vision.all"]  # absolute
    assert "core" in graph["training.learner"]  # relative, as nbdev writes it
    assert "samples.pets" in graph["data.download"]  # named in a table
    assert "vision.learner" in graph[""]  # inside a function
    assert shortest_cycle({"a": {"b", "c"}, "b": {"c"}, "c": {"a"}}, "a") == ["a", "c", "a"]


def test_only_hubs_are_for_stars() -> None:
    stars = [f"{name}, line {n.lineno}" for name in PATHS for n in ast.walk(tree(name))
             if isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names) and not name.endswith(".all")]
    assert not stars, f"star imports outside the hubs: {stars}"
    users = [f"{name} imports {hub}" for name, others in import_graph().items() for hub in others if hub.endswith(".all") and not name.endswith(".all")]
    assert not users, f"the hubs are for notebooks: {users}"


# ---------------------------------------------------------------------------------------------------------- sizes


def module_lengths() -> dict[str, int]:
    return {name or "coursekit": len(path.read_text(encoding="utf-8").splitlines()) for name, path in PATHS.items()}


def lengths(kind: type | tuple[type, ...]) -> dict[str, int]:
    """Lines of every function or class, from its first line to its last: comments, docstring and parameters included."""
    found: dict[str, int] = {}

    def inside(node: ast.AST, qualified: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                if isinstance(child, kind):
                    found[f"{qualified}.{child.name}"] = (child.end_lineno or 0) - child.lineno + 1
                inside(child, f"{qualified}.{child.name}")
            else:
                inside(child, qualified)

    for name in PATHS:
        inside(tree(name), name)
    return found


def functions() -> dict[str, int]:
    return lengths((ast.FunctionDef, ast.AsyncFunctionDef))


def cells() -> Iterator[tuple[str, str]]:
    """("module #cell", source) of every export cell, as nbdev wrote it into the module."""
    for name, path in PATHS.items():
        if path.name not in HAND_WRITTEN:
            parts = re.split(r"(?m)^# %% \S+ (#\S+)\n", path.read_text(encoding="utf-8"))
            yield from ((f"{name} {cell}", source.strip("\n")) for cell, source in zip(parts[1::2], parts[2::2]) if cell != "#0")


def public_names(source: str) -> list[str]:
    """What a cell defines for others; exceptions of a few lines belong to whatever raises them."""
    named = [n for n in ast.parse(source).body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and not n.name.startswith("_")]
    small = [n for n in named if isinstance(n, ast.ClassDef) and len(n.body) <= 2
             and any(ast.unparse(b).endswith(("Error", "Exception")) for b in n.bases)]
    return [n.name for n in named if n not in small]


def longer(lengths: dict[str, int], limit: int) -> list[str]:
    return [f"{n:5} {name}" for name, n in sorted(lengths.items(), key=lambda pair: -pair[1]) if n > limit]


def listed(what: str, found: list[str]) -> str:
    return "\n".join([what, *found])


def test_lines_of_the_package() -> None:
    total = sum(module_lengths().values())
    assert total <= PACKAGE_LINES, f"coursekit has {total:,} lines, at most {PACKAGE_LINES:,}"


def test_lines_of_modules() -> None:
    found = longer(module_lengths(), MODULE_LINES)
    assert not found, listed(f"modules of more than {MODULE_LINES} lines:", found)


def test_lines_of_loop_and_learner() -> None:
    lines = lengths(ast.ClassDef)
    found = [f"{name} has {lines[name]} lines, at most {limit}" for name, limit in CLASS_LINES.items() if lines[name] > limit]
    assert not found, "\n".join(found)


def test_lines_of_functions() -> None:
    found = longer(functions(), FUNCTION_LINES)
    assert len(found) <= LONGER_FUNCTIONS, listed(f"{len(found)} functions of more than {FUNCTION_LINES} lines, at most {LONGER_FUNCTIONS}:", found)


def test_lines_of_export_cells() -> None:
    found = longer({cell: len(source.splitlines()) for cell, source in cells()}, CELL_LINES)
    assert len(found) <= LONGER_CELLS, listed(f"{len(found)} export cells of more than {CELL_LINES} lines, at most {LONGER_CELLS}:", found)


def test_one_subject_per_export_cell() -> None:
    names = {cell: public_names(source) for cell, source in cells()}
    found = [f"{cell}: {', '.join(n)}" for cell, n in names.items() if len(n) > CELL_NAMES and cell not in MORE_NAMES]
    assert not found, listed(f"export cells with more than {CELL_NAMES} public functions and classes:", found)
    stale = [cell for cell in MORE_NAMES if len(names.get(cell, ())) <= CELL_NAMES]
    assert not stale, f"take these out of MORE_NAMES: {stale}"


# -------------------------------------------------------------------------------------------------------- safety


def test_files_are_read_without_pickle() -> None:
    """ruff bans the modules that unpickle; these calls need an argument to be safe."""
    found = []
    for name in PATHS:
        for call in [n for n in ast.walk(tree(name)) if isinstance(n, ast.Call)]:
            what = ast.unparse(call.func)
            options = {k.arg: ast.unparse(k.value) for k in call.keywords}
            if what in ("torch.load", "load_state_dict_from_url", "torch.hub.load_state_dict_from_url") and options.get("weights_only") != "True":
                found.append(f"coursekit.{name}, line {call.lineno}: {what} without weights_only=True")
            if what in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False":
                found.append(f"coursekit.{name}, line {call.lineno}: {what} with allow_pickle")
    assert not found, "\n".join(found)


def main() -> int:
    """Print what fails; the exit status is the number of tests that do."""
    imports = sum(map(len, import_graph().values()))
    print(f"{sum(module_lengths().values()):,} lines in {len(PATHS)} modules, {imports} imports between them")
    failed = 0
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            try:
                test()
            except AssertionError as error:
                failed += 1
                print(f"\n{name}: {error}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
