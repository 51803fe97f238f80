"""How the commands show things: tables and words on a terminal, JSON for programs."""

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
    """A column of a table. Those of the highest ``rank`` are the first to go where the terminal is narrow."""

    heading: str
    rank: int = 0
    right: bool = False


def console() -> Console:
    """Standard output; no colours where it is no terminal or NO_COLOR is set."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def as_json(value: Any) -> None:
    """Machine-readable."""
    print(json.dumps(value, indent=2))


def errors(found: Iterable[Exception], *, in_json: bool = False) -> None:
    """To standard error: a line for each, and its hint; or for programs, an object a line with both."""
    for error in found:
        hint = error.hint if isinstance(error, CommandError) else ""
        if in_json:
            print(json.dumps({"error": str(error), "hint": hint}), file=sys.stderr)
            continue
        print(f"bellwire: {error}", file=sys.stderr)
        if hint:
            print(f"  {hint}", file=sys.stderr)


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Table:
    """``rows`` of markup, with as many of the ``columns`` as the terminal has room for."""
    shown = list(range(len(columns)))
    while sys.stdout.isatty() and _width(columns, rows, shown) > console().width:
        last = max(shown, key=lambda at: columns[at].rank)
        if not columns[last].rank:
            break  # the rest must do: what is too long is folded
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
    """A device's state in its colour."""
    colour = COLOURS.get(word)
    return f"[{colour}]{word}[/{colour}]" if colour else word


def text(value: object) -> str:
    """Anything, safe from being taken for markup."""
    return escape(str(value))


def size(count: int) -> str:
    """Bytes in a unit that reads well; - for none."""
    if not count:
        return "-"
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("unreachable")


def ago(when: float, now: float | None = None) -> str:
    """How long it is since then, in the two units that matter."""
    seconds = max(0, int((time.time() if now is None else now) - when))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            whole, rest = divmod(seconds, length)
            smaller = {"d": ("h", 3600), "h": ("min", 60), "min": ("s", 1)}[unit]
            return f"{whole} {unit} {rest // smaller[1]} {smaller[0]}"
    return f"{seconds} s"


def clock(when: float) -> str:
    """A point in time, local."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
