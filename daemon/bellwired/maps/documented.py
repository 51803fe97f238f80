"""The descriptions of declarations: the string that stands right below one, as documentation tools read it."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from pathlib import Path
from typing import Any


def description(declared: Any) -> str:
    """The string below the declaration, in one line; empty if there is none."""
    if declared.place is None:
        return ""
    file, line = declared.place
    return _below(file, _stamp(file)).get(line, "")


def of_class(kind: type[Any]) -> str:
    """The first paragraph of a class's own docstring, in one line; one that Python adds does not count."""
    own = inspect.cleandoc(vars(kind).get("__doc__") or "")
    return "" if own.startswith("An enumeration") else one_line(own.partition("\n\n")[0])


def of_members(kind: type[Any]) -> dict[str, str]:
    """The descriptions of what a class assigns (an enumeration's members, a block's registers), by name."""
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    return _members(file, _stamp(file)).get(kind.__name__, {}) if file else {}


def one_line(text: str) -> str:
    """A text with its white space folded."""
    return " ".join(inspect.cleandoc(text).split())


def _stamp(file: str) -> int:
    """When a file was changed: what is known of an older one is not used."""
    try:
        return Path(file).stat().st_mtime_ns
    except OSError:
        return 0


def _tree(file: str) -> ast.Module | None:
    try:
        return ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):  # a class that was made at a prompt, or by exec
        return None


@functools.lru_cache
def _below(file: str, _: int) -> dict[int, str]:
    """For each line of an assignment that has a string below it: the string."""
    found: dict[int, str] = {}
    for node in _classes(file):
        for statement, text in _documented(node):
            found |= dict.fromkeys(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1), text)
    return found


@functools.lru_cache
def _members(file: str, _: int) -> dict[str, dict[str, str]]:
    """The documented assignments of each class, by their first name."""
    return {
        node.name: {
            target.id: text
            for statement, text in _documented(node)
            if isinstance(statement, ast.Assign) and isinstance(target := statement.targets[0], ast.Name)
        }
        for node in _classes(file)
    }


def _classes(file: str) -> list[ast.ClassDef]:
    tree = _tree(file)
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)] if tree is not None else []


def _documented(node: ast.ClassDef) -> list[tuple[ast.stmt, str]]:
    pairs = zip(node.body, node.body[1:], strict=False)
    return [
        (statement, one_line(below.value.value))
        for statement, below in pairs
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    ]
