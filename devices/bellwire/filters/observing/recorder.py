"""Makes records of a device's events, in the words of its author."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bellwire.declare.doorbell import IoRegion
from bellwire.declare.layout import Layout
from bellwire.errors import GuestError
from bellwire.filters import Client, DmaRange, DmaRead, DmaView, DmaWrite, Hook, Interrupt, Read, Reset, Ring, Write
from bellwire.filters.events import Event
from bellwire.filters.observing.record import Record, short
from vfio_user import IrqIndex, RegionIndex

BYTES = 16
"""The first bytes of a DMA that a record has."""
_SPACES = {int(RegionIndex.ROM): "ROM", int(RegionIndex.CONFIG): "config"}


class Recorder:
    """Makes the records of one device."""

    def __init__(self, layout: Layout) -> None:
        self._spaces = _SPACES | {index: plan.bar.name for index, plan in layout.bars.items()}
        self._layout = layout

    def names(self) -> Iterator[str]:
        """Every name that a record may have: BARs, what lies in them with and without the BAR, and hooks."""
        yield from self._spaces.values()
        for index, plan in self._layout.bars.items():
            for item in plan.placed:
                name = getattr(item, "name", "")
                yield from (name, f"{self._spaces[index]}.{name}")
        for each in self._layout.extended:
            yield from (register.name for register in each.placed)
        yield from self._layout.hooks.values()

    def access(self, event: Read | Write, kind: str, verb: str) -> Record:
        """A guest's read or write."""
        place = event.place
        failed = _failed(event)
        value = None if failed else event.value
        return Record(
            time.time(),
            kind,
            short(place.name),
            verb,
            self._spaces.get(place.region, ""),
            place.label,
            place.count,
            value if place.count <= 8 else None,
            "" if value is None else short(place.meaning(value)),
            failed or ("" if event.mechanism == "message" else event.mechanism),
        )

    def ring(self, event: Ring) -> Record:
        """Rings of a doorbell."""
        bell = event.bell
        size = bell.bell if isinstance(bell, IoRegion) else bell.size
        times = "" if event.count == 1 else f" {event.count} times"
        return Record(
            time.time(),
            "ring",
            event.name,
            event.mechanism,
            bell.bar.name,
            f"BAR{bell.bar.index}+{bell.offset + event.offset:#x}",
            size or 4,
            event.value,
            "",
            _failed(event) or times.strip(),
        )

    def dma(self, event: DmaRead | DmaWrite, verb: str) -> Record:
        """A DMA, with its first bytes."""
        failed = event.why or _failed(event)
        data = b"" if failed else event.data
        more = " ..." if len(data) > BYTES else ""
        detail = failed or f"{len(data)} bytes: {data[:BYTES].hex(' ', -4)}{more}"
        return Record(time.time(), "dma", verb=verb, where=f"{event.address:#x}", size=event.size, detail=short(detail))

    def view(self, event: DmaView) -> Record:
        """A view of guest memory."""
        detail = f"{event.size} bytes to {'read and write' if event.writable else 'read'} in place"
        return Record(time.time(), "dma", verb="view", where=f"{event.address:#x}", size=event.size, detail=detail)

    def interrupt(self, event: Interrupt) -> Record:
        """An interrupt, with what became of it."""
        if event.kind is IrqIndex.INTX:
            return Record(time.time(), "irq", "INTx", "high" if event.level else "low", detail=_failed(event))
        again = "pending until now" if event.resent else ""
        name = f"{'MSI-X' if event.kind is IrqIndex.MSIX else 'MSI'} {event.vector}"
        return Record(time.time(), "irq", name, event.outcome, detail=_failed(event) or again)

    def hook(self, event: Hook) -> Record:
        """A method of the device, when it has run."""
        given = ", ".join(f"{each:#x}" if isinstance(each, int) else repr(each) for each in event.arguments[:4])
        return Record(
            time.time(), "hook", event.name, meaning=short(f"({given})"), detail=_failed(event), took=event.seconds
        )

    def reset(self, event: Reset) -> Record:
        """A reset."""
        return Record(time.time(), "reset", detail=_failed(event))

    def map(self, event: DmaRange) -> Record:
        """Guest memory that comes or goes."""
        verb = "in" if event.mapped else "out"
        detail = "" if not event.mapped else "writable" if event.writable else "read-only"
        what = f"{event.size} bytes" if event.size else "all"
        return Record(
            time.time(),
            "map",
            verb=verb,
            where=f"{event.address:#x}",
            size=event.size,
            detail=f"{what} {detail}".strip(),
        )

    def client(self, event: Client) -> Record:
        """A client that comes or goes."""
        return Record(time.time(), "client", verb="comes" if event.connected else "goes")


def _failed(event: Event) -> str:
    """Why the model refused the event, or that a filter dropped it."""
    if event.error is None:
        return ""
    word = "" if isinstance(event.error, GuestError) else f"{type(event.error).__name__}: "
    return short(f"! {word}{event.error}")
