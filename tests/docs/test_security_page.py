"""Each promise of docs/security.md names a test that exists."""

from __future__ import annotations

import functools
import re

import pytest

from docs.documents import DOCS, ROOT, prose, section

PAGE = DOCS / "security.md"
NAMED = sorted(set(re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", prose(PAGE))))


@functools.cache
def every_test() -> set[tuple[str, str]]:
    """Every test: the name of its file, and its own."""
    defined = re.compile(r"^\s*(?:async )?def (test_\w+)", re.MULTILINE)
    files = (ROOT / "tests").rglob("test_*.py")
    return {(path.name, name) for path in files for name in defined.findall(path.read_text())}


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_test_that_holds_a_promise_exists(file: str, name: str) -> None:
    assert any(found == name and file in ("", place) for place, found in every_test())


def test_each_promise_about_files_sockets_and_code_names_its_test() -> None:
    bullets = re.compile(r"^\* (.*?)(?=^\* |^#|\n\n|\Z)", re.MULTILINE | re.DOTALL)
    promises = bullets.findall(section(PAGE, "Files, sockets and code"))
    assert promises
    assert not [promise for promise in promises if "::test_" not in promise]
