"""The summary that ``bellwire run`` prints at its end: accesses, rings, interrupts, DMA and errors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.table import Table

from bellwire import PciDevice
from bellwire.capture.capture import Capture
from bellwire.capture.files import STOPPED
from bellwire.capture.timeline import Timeline
from bellwire.filters import Filter
from bellwire.model.tally import Tally
from bellwire.recording import Record
from bellwired import filtering, terminal
from bellwired.commands import show
from bellwired.commands.show import Column

MOST_VECTORS = 16
OWN_RESETS = 2  # before the first client and after the last


def print_summary(name: str, device: PciDevice, seconds: float) -> None:
    """Print it to standard error, because the device may use standard output. Without any client, print nothing."""
    tally = device.core.tally
    if not tally.clients:
        return
    out = show.console(to_stderr=True)
    out.print(f"\n{show.text(name)} has served {_count(tally.clients, 'client')} in {show.ago(0.0, seconds)}.")
    out.print(_accesses(device, tally))
    for label, text in _lines(device, tally):
        out.print(f"{label:>11}: {text}")


def print_written(what: str, path: Path, written: Record | Capture | Timeline) -> None:
    """Print how much a recording or capture has, and why it has no more, to standard error."""
    why = written.files.ended
    early = "" if why in ("", STOPPED) else f"ended early ({why}), with "
    print(terminal.line(f"{what} in {path}: {early}{written.amount()}"), file=sys.stderr)


def print_reports(filters: Iterable[Filter]) -> None:
    """Print what the filters have found, to standard error: counts, and lines that can be pasted as they are."""
    out = show.console(to_stderr=True)
    for each in filters:
        found = filtering.report(each)
        if not any(found.values()):
            continue
        out.print(f"\nThe filter {show.text(each)} has found:")
        for what, value in found.items():
            counted = f"{value:>9,} {what}" if isinstance(value, int) else f"{what}: {value}"
            for line in value if isinstance(value, list) else [counted]:
                out.print(f"    {show.text(line)}")


def _accesses(device: PciDevice, tally: Tally) -> Table:
    """Counts by register, in the order of the declarations; then accesses outside registers."""
    ways = [way for way, rings in tally.rings.items() if any(count for (count,) in rings.values())]
    numbers = ("read", "written", *(f"rung by {way}" for way in ways))
    reads, writes = tally.accesses[False], tally.accesses[True]
    declared = [item.name for plan in device.layout.bars.values() for item in plan.placed]
    rung = {name for rings in tally.rings.values() for name, (count,) in rings.items() if count}
    rows = []
    for name in sorted({*reads, *writes, *rung}, key=lambda name: (_place(name, declared), name)):
        counts = [reads[name], writes[name], *(tally.rings[way].get(name, [0])[0] for way in ways)]
        rows.append((show.text(name), *(f"{count:,}" if count else "" for count in counts)))
    return show.table([Column("what"), *(Column(heading, right=True) for heading in numbers)], rows)


def _lines(device: PciDevice, tally: Tally) -> Iterator[tuple[str, str]]:
    for kind, counts in tally.interrupts.items():
        if any(counts):
            yield kind, _vectors(counts) if len(counts) > 1 else f"{counts[0]:,}"
    moved = device.dma.counts
    if any(moved.values()):
        words = {"dma_read": "read", "dma_written": "written", "dma_in_place": "touched in place"}
        yield "DMA", ", ".join(f"{show.size(moved[key])} {word}" for key, word in words.items() if moved.get(key))
    if tally.resets > OWN_RESETS:
        yield "Resets", f"{tally.resets - OWN_RESETS:,}"
    yield "Errors", f"{tally.guest_errors:,} of the guest, {tally.failures:,} in the device's code"


def _vectors(counts: list[int]) -> str:
    """The largest counts, if there are too many for one line."""
    busiest = sorted((vector for vector, count in enumerate(counts) if count), key=lambda vector: -counts[vector])
    shown = ", ".join(f"{vector}: {counts[vector]:,}" for vector in sorted(busiest[:MOST_VECTORS]))
    rest = sum(counts[vector] for vector in busiest[MOST_VECTORS:])
    return f"{shown}; {rest:,} by {len(busiest) - MOST_VECTORS} others" if rest else shown


def _place(name: str, declared: list[str]) -> int:
    first = name.partition("/")[0].partition("+")[0]
    return declared.index(first) if first in declared else len(declared)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
