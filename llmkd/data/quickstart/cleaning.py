"""Cutting Python sources into code and docstrings, dropping what repeats, and cutting text into rows."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

MIN_REPEAT = 60  # characters of code below which a repeat is idiom (imports, `return self`), not a copy

_Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Parsed:
    """A source as lines (UTF-8 bytes, since `ast` counts columns in bytes), its tree and its docstrings."""

    lines: list[bytes]
    tree: ast.Module
    docstrings: list[str]


def normal(text: str) -> str:
    """Return the text with every run of whitespace made one space: what two repeats have in common."""
    return " ".join(text.split())


def paragraphs(text: str) -> list[str]:
    """Return the parts of a text between blank lines."""
    return [part.strip("\n") for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def parse(source: bytes) -> Parsed | None:
    """Parse a source and blank its docstrings out of `lines`; None if this Python cannot read it."""
    try:
        text = source.decode("utf-8").replace("\r\n", "\n").replace("\f", "")
        tree = ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return None
    parsed = Parsed([line.encode() for line in text.split("\n")], tree, [])
    # From the end, so that the positions of docstrings not yet cut stay true.
    found = [(scope, doc) for scope in _scopes(tree) if (doc := _docstring(scope)) is not None]
    for scope, doc in sorted(found, key=lambda pair: pair[1].lineno, reverse=True):
        parsed.docstrings.append(inspect.cleandoc(doc.value.value))  # type: ignore[attr-defined]
        _cut(parsed.lines, doc, alone=len(scope.body) == 1 and not isinstance(scope, ast.Module))
    parsed.docstrings.reverse()
    return parsed


def code(parsed: Parsed, seen: set[str]) -> str:
    """Return the code without its docstrings and without the definitions, statements and comments already in `seen`.

    Functions and classes at any depth and top-level statements of at least `MIN_REPEAT` characters are compared; what
    is kept is added to `seen`. The result parses, without trailing spaces and with at most one blank line in a row.
    """
    lines = list(parsed.lines)
    _drop_repeats(parsed.tree, lines, seen)
    text = "\n".join(line.decode().rstrip() for line in lines)
    text = re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"
    return _drop_comments(text, seen)


def drop_statements(text: str, known: set[str]) -> str:
    """Return the code without the top-level statements that share a line with a paragraph of `known`."""
    while text and (marked := _known_lines(text, known)):
        lines, kept, last = text.split("\n"), [], 0
        for statement in ast.parse(text).body:
            end = statement.end_lineno or last
            if not marked & set(range(last, end)):
                kept += lines[last:end]
            last = max(last, end)
        # Again, since what stood on both sides of a dropped statement may now be one paragraph.
        text = "\n".join(kept).strip("\n") + "\n" if kept else ""
    return text


def code_paragraphs(text: str) -> list[str]:
    """Return the normalised paragraphs of code that are long enough to be a copy rather than idiom."""
    return [part for part in map(normal, paragraphs(text)) if len(part) >= MIN_REPEAT]


def _scopes(node: ast.AST) -> Iterator[_Scope]:
    """Yield the module, classes and functions of a tree, going through statements only (much faster than `walk`)."""
    if isinstance(node, _Scope):
        yield node
    for field in ("body", "orelse", "handlers", "finalbody", "cases"):
        children = getattr(node, field, None)
        for child in children if isinstance(children, list) else ():
            yield from _scopes(child)


def _docstring(scope: _Scope) -> ast.Expr | None:
    first = scope.body[0] if scope.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return first
    return None


def _cut(lines: list[bytes], doc: ast.Expr, alone: bool) -> None:
    """Blank a docstring out of `lines`, leaving `pass` where a statement must stand."""
    start, end = doc.lineno - 1, (doc.end_lineno or doc.lineno) - 1
    before, after = lines[start][: doc.col_offset], lines[end][doc.end_col_offset :]
    owns_lines = not before.strip() and not after.strip()
    lines[start] = b"" if owns_lines and not alone else before + b"pass" + after
    for number in range(start + 1, end + 1):
        lines[number] = b""


def _known_lines(text: str, known: set[str]) -> set[int]:
    """Return the 0-based numbers of the lines whose paragraph stands in `known`."""
    marked: set[int] = set()
    start = 0
    lines = text.split("\n")
    for number in range(len(lines) + 1):
        if number < len(lines) and lines[number].strip():
            continue
        if normal("\n".join(lines[start:number])) in known:
            marked.update(range(start, number))
        start = number + 1
    return marked


def _drop_repeats(scope: ast.AST, lines: list[bytes], seen: set[str]) -> None:
    """Blank repeated definitions (any depth) and top-level statements out of `lines`, outermost first."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, _DEFINITIONS) and not isinstance(scope, ast.Module):
            if isinstance(child, ast.stmt):
                _drop_repeats(child, lines, seen)
            continue
        decorators = getattr(child, "decorator_list", [])
        start = min([child.lineno, *(d.lineno for d in decorators)]) - 1  # type: ignore[attr-defined]
        end = child.end_lineno  # type: ignore[attr-defined]
        key = normal(b"\n".join(lines[start:end]).decode())
        if len(key) >= MIN_REPEAT and key in seen and _owns_lines(child, lines, start):
            indent = lines[child.lineno - 1][: child.col_offset]  # type: ignore[attr-defined]
            # A nested definition may be all its block holds, so a statement stays in its place.
            lines[start:end] = [b"" if isinstance(scope, ast.Module) else indent + b"pass"] + [b""] * (end - start - 1)
            continue
        if len(key) >= MIN_REPEAT:
            seen.add(key)
        _drop_repeats(child, lines, seen)


def _owns_lines(node: ast.AST, lines: list[bytes], start: int) -> bool:
    """Whether nothing but the node stands on its first and last line."""
    before = lines[node.lineno - 1][: node.col_offset]  # type: ignore[attr-defined]
    after = lines[node.end_lineno - 1][node.end_col_offset :].strip()  # type: ignore[attr-defined]
    return not before.strip() and (not after or after.startswith(b"#"))


def _drop_comments(text: str, seen: set[str]) -> str:
    """Drop the paragraphs that are comments only (licence headers, dividers) and stood before."""
    kept = []
    for part in text.split("\n\n"):
        if all(line.lstrip().startswith("#") for line in part.strip().split("\n")):
            key = normal(part)
            if key in seen:
                continue
            seen.add(key)
        kept.append(part)
    return "\n\n".join(kept).strip("\n") + "\n"
