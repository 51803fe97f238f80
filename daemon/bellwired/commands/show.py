"""The output of the commands: tables and text on a terminal, JSON for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from bellwired import terminal

COLOURS = {"running": "green", "failed": "red", "waiting": "yellow", "starting": "yellow", "stopping": "yellow"}
LEVELS = {"warning": "yellow", "error": "red", "critical": "red"}
GAP = 2  # columns of a terminal between two of a table


class Column(NamedTuple):
    """A column of a table. On a narrow terminal, columns with the highest ``rank`` are left out first."""

    heading: str
    rank: int = 0
    right: bool = False


class Plain(Console):
    """A console whose text controls no terminal, whatever it contains; only its own styles do."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As in :mod:`rich`, with control characters shown as escapes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(terminal.lines(segment.text), segment.style)


def console(*, to_stderr: bool = False) -> Plain:
    """Standard output or error. Without colours if it is no terminal, or if NO_COLOR is set."""
    stream = sys.stderr if to_stderr else sys.stdout
    return Plain(file=terminal.raw(stream), highlight=False, emoji=False, soft_wrap=not stream.isatty())


def as_json(value: Any) -> None:
    """Print a value as JSON."""
    print(terminal.json_text(value, indent=2))


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Table:
    """Print ``rows`` of markup, with as many ``columns`` as fit on the terminal."""
    shown = list(range(len(columns)))
    while sys.stdout.isatty() and _width(columns, rows, shown) > console().width:
        last = max(shown, key=lambda at: columns[at].rank)
        if not columns[last].rank:
            break  # too long cells are folded
        shown.remove(last)
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for at in shown:
        justify = "right" if columns[at].right else "left"
        made.add_column(columns[at].heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        made.add_row(*(row[at] for at in shown))
    return made


def _width(columns: Sequence[Column], rows: Sequence[Sequence[str]], shown: Sequence[int]) -> int:
    cells = ([columns[at].heading, *(row[at] for row in rows)] for at in shown)
    return sum(max(Text.from_markup(cell).cell_len for cell in column) + GAP for column in cells)


def state(word: str) -> str:
    """The markup of a device's state, with its colour."""
    colour = COLOURS.get(word)
    return f"[{colour}]{word}[/{colour}]" if colour else text(word)


def text(value: object) -> str:
    """Any value as text in one line, with markup escaped."""
    return escape(terminal.line(value))


def paragraph(value: object) -> str:
    """Any value as text that may have several lines, with markup escaped. Lines after the first are indented."""
    return escape(terminal.paragraph(value))


def size(count: int) -> str:
    """A number of bytes in a suitable unit; - for none."""
    if not count:
        return "-"
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("unreachable")


def ago(when: float, now: float | None = None) -> str:
    """The time since then, in its two largest units."""
    seconds = max(0, int((time.time() if now is None else now) - when))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            whole, rest = divmod(seconds, length)
            smaller = {"d": ("h", 3600), "h": ("min", 60), "min": ("s", 1)}[unit]
            return f"{whole} {unit} {rest // smaller[1]} {smaller[0]}"
    return f"{seconds} s"


def clock(when: float) -> str:
    """A point in time, as local time; as a number, if there is no such time."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    except (OverflowError, ValueError, OSError):
        return f"{when:g}"


def box(parts: Sequence[dict[str, str]]) -> str:
    """The parts of a box in a line."""
    here = [part["name"] for part in parts if part["state"] == "here"]
    missing = [part["name"] for part in parts if part["state"] == "missing"]
    text = ", ".join(here)
    return f"{text}; missing: {', '.join(missing)}" if missing else text


def lives(device: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of ``bellwire status`` about the workers of a device that have ended."""
    facts = []
    if device["restarts"]:
        facts.append(("Restarts", str(device["restarts"])))
    over = device["hand_overs"]
    if over["count"]:
        last = f"the last after a pause of {over['pause_ms']:.0f} ms, because {over['reason']}"
        facts.append(("Hand-overs", text(f"{over['count']}, {last}")))
    return facts
