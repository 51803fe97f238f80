"""Reading the documents: their code, tables, links and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
CI = sorted((ROOT / "examples/ci").glob("*.yml"))
LABS = DOCS / "labs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md")), *sorted(LABS.rglob("*.md"))]
IDS = [str(page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT)) for page in PAGES]

_GENERATED = re.compile(
    r"^<!-- (?:figures|faults).*?^<!-- end -->$"  # bench/document.py, tools/faults_page.py
    r"|^\| option \| type \| default \| allowed \| what \|\n(?:\|[^\n]*\n)*",  # tools/option_tables.py
    re.MULTILINE | re.DOTALL,
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block; ``line`` is where its first line stands in the page."""

    language: str
    text: str
    line: int


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start(2)) + 1)
        for found in _FENCE.finditer(text)
        if language is None or found[1] == language
    ]


def commands(page: Path, program: str) -> list[str]:
    """The command lines of ``program`` in a page's shell blocks, continued lines joined."""
    lines = "\n".join(block.text for block in blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.split()[:1] == [program]]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def written_by_hand(page: Path) -> list[str]:
    """The lines of a page, tables and blocks included, without the tables that a program writes into it."""
    return _GENERATED.sub("", page.read_text()).splitlines()


def links(page: Path) -> list[str]:
    """Where a page links to, web addresses left out."""
    return [link for link in _LINK.findall(prose(page)) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """What a link into a page can name: its headings, as they are spelt in addresses."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in _HEADING.findall(prose(page))}


def section(page: Path, title: str) -> str:
    """The text under a heading, down to the next one of its level or above."""
    text = page.read_text()
    for found in _HEADING.finditer(text):
        if found[2] == title:
            end = re.compile(rf"^#{{1,{len(found[1])}}} ", re.MULTILINE).search(text, found.end())
            return text[found.end() : end.start() if end else None]
    raise AssertionError(f"{page.name} has no heading {title!r}")


def rows(text: str) -> Iterator[list[str]]:
    """The cells of each table row in ``text``, heads left out, code marks taken off."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|--") and "---|" not in line:
            yield [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]


def ci_lines(file: Path) -> list[str]:
    """The command lines of a CI's file that set up and run the tests."""
    return re.findall(r"^\s*- (?:run: )?((?:pip|pytest) .*)$", file.read_text(), re.MULTILINE)
