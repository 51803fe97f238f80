"""How the commands show things: tables and words on a terminal, JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bellwired.errors import CommandError

COLOURS = {"running": "green", "failed": "red", "waiting": "yellow", "starting": "yellow", "stopping": "yellow"}


def console() -> Console:
    """Standard output; no colours where it is no terminal or NO_COLOR is set."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def as_json(value: Any) -> None:
    """Machine-readable."""
    print(json.dumps(value, indent=2))


def errors(found: Iterable[CommandError]) -> None:
    """To standard error: a line for each, and its hint."""
    for error in found:
        print(f"bellwire: {error}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)


def table(*headings: str, right: frozenset[str] = frozenset()) -> Table:
    """An empty table; the columns in ``right`` are aligned there."""
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return made


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
