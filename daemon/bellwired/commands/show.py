"""The output of the commands: tables and text on a terminal, JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bellwired.errors import CommandError

COLOURS = {"running": "green", "failed": "red", "waiting": "yellow", "starting": "yellow", "stopping": "yellow"}
LEVELS = {"warning": "yellow", "error": "red", "critical": "red"}
GAP = 2  # columns of a terminal between two of a table


class Column(NamedTuple):
    """A column of a table. On a narrow terminal, columns with the highest ``rank`` are left out first."""

    heading: str
    rank: int = 0
    right: bool = False


def console() -> Console:
    """Standard output. Without colours if it is no terminal, or if NO_COLOR is set."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def as_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2))


def errors(found: Iterable[Exception], *, in_json: bool = False) -> None:
    """Print errors to standard error: one line each, with the hint. For programs, one JSON object a line."""
    for error in found:
        hint = error.hint if isinstance(error, CommandError) else ""
        if in_json:
            print(json.dumps({"error": str(error), "hint": hint}), file=sys.stderr)
            continue
        print(f"bellwire: {error}", file=sys.stderr)
        if hint:
            print(f"  {hint}", file=sys.stderr)


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
    return f"[{colour}]{word}[/{colour}]" if colour else word


def text(value: object) -> str:
    """Any value as text, with markup escaped."""
    return escape(str(value))


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
    """A point in time, as local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def box(parts: Sequence[dict[str, str]]) -> str:
    """The parts of a box in a line."""
    here = [part["name"] for part in parts if part["state"] == "here"]
    missing = [part["name"] for part in parts if part["state"] == "missing"]
    text = ", ".join(here)
    return f"{text}; missing: {', '.join(missing)}" if missing else text
