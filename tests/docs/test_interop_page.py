"""docs/interop.md is what the tests of tests/guest/interop have written, and hides nothing."""

from __future__ import annotations

import ast

from docs.documents import DOCS, ROOT, rows
from interop.page import HEAD, WIDEST, Row, render, title

TESTS = ROOT / "tests/guest/interop"


def ran(**what: bool | str) -> Row:
    row = Row("Firmware boots", str(what.pop("what", "a disk")), **what)  # type: ignore[arg-type] # as they are named
    row.against("QEMU 1.2.3")
    row.tell("1 MiB read, its CRC-32 is right")
    return row


def test_a_row_that_fails_or_does_not_run_is_loud() -> None:
    some = [ran(works=True), ran(what="a tape", works=False, why="no bytes"), ran(what="a drum", why="no drum here")]
    page = render(some, "Run today.")
    assert "Run today. Of 3 rows, 1 work." in page
    assert "**1 fail**: a tape." in page
    assert "**1 did not run**: a drum." in page
    assert "| a disk | works | 1 MiB read, its CRC-32 is right | 0.0 |" in page
    assert "| a tape | **FAILS** | no bytes; 1 MiB read, its CRC-32 is right | 0.0 |" in page
    assert "| a drum | **NOT RUN** | no drum here; 1 MiB read, its CRC-32 is right | 0.0 |" in page
    assert page.count("With QEMU 1.2.3.") == 1


def test_no_line_is_too_wide_whatever_a_row_says() -> None:
    page = render([ran(what="word " * 50, works=False, why="long " * 90)], "Run on a machine. " * 20)
    assert max(map(len, page.splitlines())) <= WIDEST


def told(page: str) -> list[str]:
    """The rows of the page: what they show. Cells that go on in the next lines are joined."""
    titles: list[str] = []
    for what, result, *_ in rows(page):
        if result:
            titles.append(what)
        elif what:
            titles[-1] += f" {what}"
    return titles


def test_every_test_has_a_row_in_the_page() -> None:
    page = (DOCS / "interop.md").read_text()
    titles = told(page)
    assert page.startswith(HEAD), "run make interop"
    for file in sorted(TESTS.glob("test_*.py")):
        tree = ast.parse(file.read_text())
        assert f"## {(ast.get_docstring(tree) or '').partition('.')[0]}\n" in page, f"{file.name}: run make interop"
        for test in tree.body:
            if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
                shown = title(test.name, ast.get_docstring(test))
                assert any(each.endswith(shown) for each in titles), f"{shown}: run make interop"
