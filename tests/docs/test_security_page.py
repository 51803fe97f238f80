"""Each promise of docs/security.md names tests that exist."""

from __future__ import annotations

import ast
import re

import pytest

from docs.documents import DOCS, ROOT, prose

PAGE = DOCS / "security.md"
NAMED = sorted(set(re.findall(r"`(test_\w+\.py)::(\w+)`", prose(PAGE))))


@pytest.mark.parametrize(("file", "test"), NAMED, ids=[f"{file}::{test}" for file, test in NAMED])
def test_the_test_that_holds_a_promise_exists(file: str, test: str) -> None:
    found = [path for path in (ROOT / "tests").rglob(file) if test in functions(path.read_text())]
    assert found, f"docs/security.md names {file}::{test}"


def functions(text: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}


def test_each_promise_names_a_test() -> None:
    section = re.split(r"^### Links$", prose(PAGE), flags=re.MULTILINE)[1]
    promises = re.findall(r"^\* (.*?)(?=^\* |^#|^$)", section, re.MULTILINE | re.DOTALL)
    rules = [promise for promise in promises if not promise.rstrip().endswith((".", "`"))]
    assert not rules, rules
    assert len(NAMED) >= 10
