"""DESIGN's layers and limits, read from the source: who imports whom, how long things are, what is never called."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers import PACKAGE, module_name, modules

# A module imports from its own layer or a lower one. The longest matching name decides.
LAYERS = {
    "core": 0, "show": 0,
    "schedule": 1, "losses": 1, "metrics": 1, "layers": 1, "optim": 1, "curves": 1,
    "data": 2, "samples": 2,
    # The exported file's format, the graphs and the progress bars are below the learner, whose short methods use them.
    "callback": 3, "faults": 3, "timing": 3, "progress": 3, "loop": 3, "export": 3, "address": 3, "portable": 3, "preds": 3, "learner": 3,
    "callbacks": 4, "hooks": 4, "interpret": 4, "embeddings": 4, "hub": 4, "landscape": 4, "trials": 4,
    "vision": 5, "text": 5, "tabular": 5, "collab": 5,
    "widgets": 6, "course": 6, "distributed": 6, "cli": 6, "commands": 6, "doctor": 6, "testing": 6, "v1": 6,
    "__main__": 6, "vision.all": 6, "text.all": 6, "tabular.all": 6, "collab.all": 6,
}  # fmt: skip
APPLICATIONS = ("vision", "text", "tabular", "collab")

# Lines that hold code: no docstring, comment, blank line or parameter list.
FUNCTION_LINES, CLASS_LINES, MODULE_LINES = 40, 100, 350
# Longer things, each with the reason why it is better in one piece: name -> (limit, reason).
LONGER: dict[str, tuple[int, str]] = {
    "learner": (400, "all of the learner's short public methods; splitting the class would need patches"),
    "learner.Learner": (300, "DESIGN 2: fit_one_cycle, fine_tune, lr_find and the rest are ordinary methods"),
    "callback.Recorder": (105, "what it keeps, and its three plots"),
    "loop.Loop": (225, "the training loop whole, in methods of 5 to 25 lines, as lesson 13 reads it"),
    "data.block.DataBlock": (130, "summary names the step that failed, so it walks through all of them"),
    "data.external": (520, "a third is the table of public archives with their published sizes and sums"),
    "widgets.cleaner.CleanerView": (110, "one page: its buttons, and what happens at each press"),
    "data.items": (380, "a dozen splitters and labellers, each a small dataclass"),
    "testing": (420, "one check for each kind of thing that the package is made of, found in one place"),
    "samples.animals": (520, "drawings: shapes, palettes and markings are written out as data"),
}

# Calls that reseed a global generator, and the places that may: they put the state back afterwards.
RESEEDING = {
    "torch.manual_seed", "torch.seed", "torch.random.manual_seed", "torch.random.seed", "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all", "torch.mps.manual_seed", "random.seed", "np.random.seed", "numpy.random.seed",
    "manual_seed",
}  # fmt: skip
MAY_RESEED = {"core.seeded": "restores the state it found", "core.RngState": "restores the state it found"}
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def layer_of(name: str) -> int | None:
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:n])) in LAYERS:
            return LAYERS[prefix]
    return None


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def annotations_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if not annotations_only(child):
            yield child
            yield from walk(child)


def imported(path: Path, known: set[str]) -> set[str]:
    """The modules of coursekit that a module imports, at the top or inside a function, without the leading name."""
    found: set[str] = set()
    package = ["coursekit", *path.relative_to(PACKAGE).parent.parts]
    for node in walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "coursekit"}
        elif isinstance(node, ast.ImportFrom):
            # nbdev writes the absolute imports of a notebook as relative ones: the dots are counted off here
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base.split(".")[0] == "coursekit":
                inner = {f"{base}.{a.name}" for a in node.names if f"{base}.{a.name}".partition(".")[2] in known}
                found |= inner or {base}
    return {name.partition(".")[2] for name in found} - {""}


PATHS = {module_name(p): p for p in modules() if module_name(p)}
CODE = {name: p for name, p in PATHS.items() if p.name != "__init__.py"}
IMPORTS = {name: imported(p, set(PATHS)) for name, p in PATHS.items()}
each_module = pytest.mark.parametrize("name", sorted(PATHS))


def test_there_are_modules() -> None:
    assert len(CODE) > 10, sorted(CODE)


@each_module
def test_module_has_a_layer(name: str) -> None:
    assert layer_of(name) is not None, f"coursekit.{name} is in no layer; say in which it belongs"


@each_module
def test_imports_go_downwards(name: str) -> None:
    mine = layer_of(name)
    for other in sorted(IMPORTS[name]):
        theirs = layer_of(other)
        assert mine is not None
        assert theirs is not None, f"coursekit.{name} imports coursekit.{other}, which is in no layer"
        assert theirs <= mine, f"coursekit.{name} (layer {mine}) imports coursekit.{other} (layer {theirs})"


@each_module
def test_applications_keep_apart(name: str) -> None:
    mine = name.split(".")[0]
    if mine in APPLICATIONS:
        others = {o for o in IMPORTS[name] if o.split(".")[0] in APPLICATIONS and o.split(".")[0] != mine}
        assert not others, f"coursekit.{name} imports another application: {sorted(others)}"


def test_no_cycles() -> None:
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, "modules import each other in a circle: " + " -> ".join([*above, name])
        if name not in done:
            for other in sorted(IMPORTS.get(name, ())):
                visit(other, (*above, name))
            done.add(name)

    for name in sorted(IMPORTS):
        visit(name, ())


@each_module
def test_stars_only_in_hubs(name: str) -> None:
    stars = [n.lineno for n in walk(parse(PATHS[name]))
             if isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)]
    assert not stars or name.endswith(".all"), f"coursekit.{name}: star import in line {stars}"


# ------------------------------------------------------------------------------------------------------- lengths


@cache
def code_lines(path: Path) -> frozenset[int]:
    """The numbers of the lines that hold code: no comment, docstring, blank line or list of parameters."""
    source = path.read_text(encoding="utf-8")
    lines: set[int] = set()
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skip:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines -= set(range(node.lineno + 1, node.body[0].lineno))
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) \
                and isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
            lines -= set(range(body[0].lineno, (body[0].end_lineno or body[0].lineno) + 1))
    return frozenset(lines)


def lengths(name: str) -> Iterator[tuple[str, int, int]]:
    """(qualified name, code lines, limit) of a module, its classes and functions."""
    lines, tree = code_lines(PATHS[name]), parse(PATHS[name])
    exports = next((n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"), None)
    listed = set(range(exports.lineno, (exports.end_lineno or 0) + 1)) if exports else set()
    yield name, len(lines - listed), MODULE_LINES

    def inside(node: ast.AST, qualified: str) -> Iterator[tuple[str, int, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                count = sum(child.lineno <= n <= (child.end_lineno or 0) for n in lines)
                limit = CLASS_LINES if isinstance(child, ast.ClassDef) else FUNCTION_LINES
                yield f"{qualified}.{child.name}", count, limit
                yield from inside(child, f"{qualified}.{child.name}")

    yield from inside(tree, name)


@pytest.mark.parametrize("name", sorted(CODE))
def test_lengths(name: str) -> None:
    too_long = []
    for qualified, count, limit in lengths(name):
        allowed, _ = LONGER.get(qualified, (limit, ""))
        if count > allowed:
            too_long.append(f"coursekit.{qualified}: {count} code lines, at most {allowed}")
    assert not too_long, "\n".join(too_long)


def test_granted_lengths_are_needed() -> None:
    counts = {q: (n, limit) for name in CODE for q, n, limit in lengths(name)}
    stale = [q for q in LONGER if q not in counts or counts[q][0] <= 0.9 * counts[q][1]]
    assert not stale, f"LONGER grants more than is needed to {stale}; take them out"
    assert all(reason for _, reason in LONGER.values())


# --------------------------------------------------------------------------------------------- what is never called


def calls(node: ast.AST, qualified: str) -> Iterator[tuple[str, str, ast.Call]]:
    """(where, what, call) of every call in a module."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        where = f"{qualified}.{child.name}" if named else qualified  # type: ignore[attr-defined]
        if isinstance(child, ast.Call):
            yield qualified, ast.unparse(child.func), child
        yield from calls(child, where)


@pytest.mark.parametrize("name", sorted(CODE))
def test_nothing_is_unpickled(name: str) -> None:
    tree = parse(CODE[name])
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
            [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        bad = [n for n in names if n.split(".")[0] in UNPICKLING]
        assert not bad, f"coursekit.{name}, line {node.lineno}: imports {bad}"  # type: ignore[attr-defined]
    for where, what, call in calls(tree, name):
        options = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if what in ("torch.load", "load_state_dict_from_url", "torch.hub.load_state_dict_from_url"):
            assert options.get("weights_only") == "True", f"coursekit.{where}: {what} without weights_only=True"
        if what in ("np.load", "numpy.load"):
            assert options.get("allow_pickle", "False") == "False", f"coursekit.{where}: {what} with allow_pickle"
        assert what not in ("eval", "exec"), f"coursekit.{where}: calls {what}"


@pytest.mark.parametrize("name", sorted(CODE))
def test_global_generators_are_left_alone(name: str) -> None:
    for where, what, call in calls(parse(CODE[name]), name):
        if what in RESEEDING:
            granted = any(where == place or where.startswith(f"{place}.") for place in MAY_RESEED)
            assert granted, f"coursekit.{where}, line {call.lineno}: {what} reseeds a global generator; use a local one"
