"""docs/interop.md: a row for each test of this folder, written from what the tests have done."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, zip_longest

WIDEST = 118  # characters of a line, as of every page
WHAT, SEEN = 44, 48  # characters of the columns that are wrapped
HEAD = """# Interoperability

This page shows Bellwire's devices with firmware, kernels and VMMs that others have written, and Bellwire's client
with such servers. `make interop` runs all of it and writes the page. Each row is one test in `tests/guest/interop/`.
A row that fails, or that cannot run, says so.

A row *works* if the other program found the device and drove it, and if the bytes that it moved had the checksum that
they should have. All guests run under QEMU's TCG, on a machine that may have other work. So the seconds tell how long
to wait, and are no measure of speed. Rows that share a boot show the seconds that the guest took for their part.

`LIBVFIO_USER=CHECKOUT make interop` includes libvfio-user's sample servers. Build them first, with meson and ninja.
"""


@dataclass
class Row:
    """What one test has found. ``works`` is None until it has run to its end."""

    section: str
    what: str
    works: bool | None = None
    why: str = ""
    """Why it fails, or is skipped."""
    seconds: float = 0.0
    took: float | None = None
    """Seconds of the guest's clock for this row, where several rows share a boot."""
    with_: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def against(self, *versions: str) -> None:
        """The programs, with their versions, that took part."""
        self.with_ += versions

    def name_variant(self, name: str) -> None:
        """Say what the row is run with: versions are known when it runs."""
        self.what = f"{name}: {self.what.partition(': ')[2]}"

    def tell(self, *facts: str) -> None:
        """What was seen: a figure, or a checksum that was right."""
        self.seen += facts

    @property
    def result(self) -> str:
        """In a word. What is not so is loud."""
        if self.works:
            return "works"
        return "**NOT RUN**" if self.works is None else "**FAILS**"

    def lines(self) -> list[str]:
        """Its lines of the table: the first one has all cells, and what is seen goes on below."""
        told = "; ".join(self.seen if self.works else [self.why or "the tests ended before it", *self.seen])
        seen = textwrap.wrap(told.replace("|", "/"), SEEN) or [""]
        what = textwrap.wrap(self.what, WHAT)
        rows = zip_longest(
            what, [self.result], seen, [f"{self.seconds if self.took is None else self.took:.1f}"], fillvalue=""
        )
        return ["| " + " | ".join(cells) + " |" for cells in rows]


def render(rows: Sequence[Row], ran: str) -> str:
    """The page. ``ran`` says when, and on what."""
    missing = [row for row in rows if row.works is None]
    failed = [row for row in rows if row.works is False]
    parts = [HEAD, "\n", *wrapped(f"{ran} Of {len(rows)} rows, {len(rows) - len(missing) - len(failed)} work.")]
    for heading, few in (("fail", failed), ("did not run", missing)):
        if few:
            parts += ["\n", *wrapped(f"**{len(few)} {heading}**: {'; '.join(row.what for row in few)}.")]
    for section, found in groupby(rows, key=lambda row: row.section):
        group = list(found)
        parts.append(f"\n## {section}\n\n")
        versions = dict.fromkeys(version for row in group for version in row.with_)
        if versions:
            parts += [*wrapped(f"With {', '.join(versions)}."), "\n"]
        parts.append("| what | result | what was seen | seconds |\n|---|---|---|---|\n")
        parts += [f"{line}\n" for row in group for line in row.lines()]
    return "".join(parts)


def wrapped(text: str) -> Iterable[str]:
    """A paragraph."""
    return [f"{line}\n" for line in textwrap.wrap(text, WIDEST, break_on_hyphens=False)]


def title(name: str, told: str | None) -> str:
    """What a test shows, for people: its docstring's first line, or its name, and what it is run with."""
    words, _, variant = name.partition("[")
    text = (told or words.removeprefix("test_").replace("_", " ")).strip().partition("\n")[0].removesuffix(".")
    return f"{variant.removesuffix(']')}: {text}" if variant else text
