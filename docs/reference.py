"""What an export cell defines, as reference pages show it: signature, docstring, and the comment behind each parameter.

Everything is read from the source. Nothing is imported, so the pages don't need PyTorch and take no time.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef
SPECIAL = re.compile(r"(`[^`]*`)|([\\*_<>$\[\]{}|#~^])")  # inline code stays; these mean something in Markdown


def plain(text: str) -> str:
    """Text in which only inline code is marked up, for Markdown."""
    return SPECIAL.sub(lambda m: m[1].replace("|", r"\|") if m[1] else "\\" + m[2], text)


def comments(source: str) -> dict[int, str]:
    """Line -> the comment on it."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}
    return {line: text for line, text in found.items() if not re.match(r"(noqa|type:|fmt:|pragma)", text)}


def parameters(node: Function) -> Iterator[tuple[str, ast.arg, ast.expr | None]]:
    """(name as written, argument, default) of each parameter, with the bare star."""
    a = node.args
    plain_args = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(plain_args) - len(a.defaults)) + a.defaults
    yield from ((arg.arg, arg, default) for arg, default in zip(plain_args, defaults))
    if a.vararg:
        yield f"*{a.vararg.arg}", a.vararg, None
    elif a.kwonlyargs:
        yield "*", ast.arg("*"), None
    yield from ((arg.arg, arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults))
    if a.kwarg:
        yield f"**{a.kwarg.arg}", a.kwarg, None


def code(node: ast.expr) -> str:
    """An annotation or a default, in one line."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)


def signature(node: Function, *, method: bool = False) -> str:
    """`(x: int = 3, *, y) -> str`, without `self`."""
    shown = []
    for i, (name, arg, default) in enumerate(parameters(node)):
        if not (method and i == 0):
            kind = f": {code(arg.annotation)}" if arg.annotation else ""
            equals = " = " if kind else "="
            shown.append(name + kind + ("" if default is None else equals + ast.unparse(default)))
    returns = f" -> {code(node.returns)}" if node.returns else ""
    return f"({', '.join(shown)}){returns}"


def field_signature(node: ast.ClassDef) -> str:
    """The signature of a dataclass or of a named tuple: its fields."""
    fields = [f"{code(n.target)}: {code(n.annotation)}" + (f" = {ast.unparse(n.value)}" if n.value else "") for n in fields_of(node)]
    return f"({', '.join(fields)})"


def fields_of(node: ast.ClassDef) -> list[ast.AnnAssign]:
    """The annotated attributes of a class that are not the same for all its objects, private ones left out."""
    found = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return [n for n in found if not n.target.id.startswith("_") and not ast.unparse(n.annotation).startswith("ClassVar")]  # type: ignore[union-attr]


def table(rows: list[tuple[str, str]], heading: str) -> str:
    """A table of names and what they mean; '' if nobody said what they mean."""
    lines = [f"| `{name}` | {plain(text)} |" for name, text in rows if text]
    return "\n".join([f"| {heading} | What it is |", "|---|---|", *lines, ""]) if lines else ""


def paragraphs(docstring: str) -> str:
    """A docstring in Markdown. What click must not wrap, marked by a backspace, becomes a block of code."""
    parts = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join("```text\n" + part.lstrip("\b\n") + "\n```" if part.startswith("\b") else plain(part) for part in parts)


def described(node: Function | ast.ClassDef, said: dict[int, str], *, method: bool = False) -> str:
    """Docstring, parameters and result of a function; docstring and fields of a class."""
    parts = [paragraphs(ast.get_docstring(node) or "")]
    if isinstance(node, ast.ClassDef):
        make = next((n for n in node.body if isinstance(n, Function) and n.name == "__init__"), None)
        parts.append(table([(code(n.target), said.get(n.end_lineno or 0, "")) for n in fields_of(node)], "Field"))
        return "\n\n".join([*filter(None, parts), *([described(make, said, method=True)] if make else [])])
    rows, lines = [], [arg.end_lineno if default is None else default.end_lineno for _, arg, default in parameters(node) if hasattr(arg, "lineno")]
    for i, (name, arg, default) in enumerate(parameters(node)):
        line = (default or arg).end_lineno if hasattr(arg, "lineno") else None
        if line and not (method and i == 0):
            rows.append((name, said.get(line, "") if lines.count(line) == 1 and line < node.body[0].lineno else ""))
    parts.append(table(rows, "Parameter"))
    last = node.returns.end_lineno if node.returns else None
    if last and said.get(last) and not any(text == said[last] for _, text in rows):
        parts.append(f"**Returns** {plain(said[last])}")
    return "\n\n".join(filter(None, parts))


def directive(kind: str, heading: str, body: str, fence: str) -> str:
    options = ":classmethod:\n" if kind == "classmethod" else ":staticmethod:\n" if kind == "staticmethod" else ""
    name = "method" if kind in ("classmethod", "staticmethod") else kind
    return f"{fence}{{py:{name}}} {heading}\n{options}\n{body}\n{fence}"


def decorators(node: Function) -> set[str]:
    return {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}


def members(node: ast.ClassDef, said: dict[int, str]) -> Iterator[str]:
    """The public methods and properties that have a docstring."""
    for n in node.body:
        if isinstance(n, Function) and not n.name.startswith("_") and ast.get_docstring(n):
            marks = decorators(n)
            if marks & {"property", "cached_property"}:
                kind = f"\n:type: {code(n.returns)}" if n.returns else ""
                yield f"``````{{py:property}} {n.name}{kind}\n\n{described(n, said, method=True)}\n``````"
            elif not marks & {"setter", "deleter"}:
                kind = next(iter(marks & {"classmethod", "staticmethod"}), "method")
                yield directive(kind, n.name + signature(n, method=kind != "staticmethod"), described(n, said, method=kind != "staticmethod"), "``````")


def entry(node: Function | ast.ClassDef, said: dict[int, str], also: str = "") -> str:
    """A function or class in Markdown, as a directive of Sphinx's Python domain; `also` comes at the end."""
    if not isinstance(node, ast.ClassDef):
        body = described(node, said)
        return directive("function", node.name + signature(node), "\n\n".join(filter(None, (body, also))), "````````")
    make = next((n for n in node.body if isinstance(n, Function) and n.name == "__init__"), None)
    data = any(ast.unparse(d).partition("(")[0] == "dataclass" for d in node.decorator_list) or any(ast.unparse(b) == "NamedTuple" for b in node.bases)
    shown = signature(make, method=True) if make else field_signature(node) if data else ""
    parts = [described(node, said), *members(node, said), also]
    return directive("class", node.name + shown, "\n\n".join(filter(None, parts)), "````````")


def public(source: str) -> list[Function | ast.ClassDef]:
    """The functions and classes of an export cell that others may use."""
    return [n for n in ast.parse(source).body if isinstance(n, (Function, ast.ClassDef)) and not n.name.startswith("_")]
