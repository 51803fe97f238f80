"""Records: what a trace keeps of an event, in the words of the device's author."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from msgspec import Struct

KINDS = {
    "read": "a guest's read of a BAR or the ROM",
    "write": "a guest's write of a BAR",
    "config": "a guest's read or write of config space",
    "ring": "a doorbell, by any mechanism",
    "dma": "the device's read or write of guest memory, or a view of it",
    "irq": "an interrupt, or a change of the INTx line",
    "hook": "a method of the device: a hook, or a callback of a timer, a descriptor or a thread",
    "reset": "a reset of the device",
    "map": "guest memory that the client maps or unmaps",
    "client": "a client that comes or goes",
    "lost": "events that a rate limit has left out",
}
"""The kinds of records, and what each is of."""
VERBS = {
    "config": ("read", "write"),
    "dma": ("read", "write", "view"),
    "ring": ("message", "ioeventfd", "shadow", "ioregionfd"),
    "irq": ("sent", "pending", "lost", "high", "low"),
    "map": ("in", "out"),
    "client": ("comes", "goes"),
}
"""What records of a kind tell besides, in one word."""
GROUPS = {"mmio": ("read", "write")}
"""Words for several kinds."""
LONGEST = 60  # characters of a name, a meaning or a detail; longer ones are cut


class Record(Struct, array_like=True, omit_defaults=True):
    """One event.

    ``space`` is the attribute of the BAR (``mmio``), ``config`` or ``ROM``. ``where`` is the place as a datasheet has
    it (``BAR0+0x14``), or a guest address. ``size`` is in bytes. ``took`` is in seconds, for hooks.
    """

    time: float
    kind: str
    name: str = ""
    verb: str = ""
    space: str = ""
    where: str = ""
    size: int = 0
    value: int | None = None
    meaning: str = ""
    detail: str = ""
    took: float = 0.0

    def pieces(self) -> Iterator[tuple[str, str]]:
        """The record as text: pieces of one line, each with the part that it is."""
        yield "time", datetime.fromtimestamp(self.time).strftime("%H:%M:%S.%f ")
        yield "kind", f"{self.kind:<7}"
        behind = {"ring": f" by {self.verb}", "irq": f" {self.verb}"}.get(self.kind)
        if self.verb and behind is None:
            yield "verb", f" {self.verb}"
        if self.name:
            yield "name", f" {self.name}"
        if self.value is not None:
            yield "value", f" = {self.value:#0{2 + 2 * min(self.size or 4, 8)}x}"
        if self.meaning:
            yield "meaning", self.meaning if self.kind == "hook" else f" {self.meaning}"
        if behind is not None:
            yield "verb", behind
        if self.detail:
            yield "detail", f" {self.detail}"
        if self.took:
            yield "detail", f" {1e3 * self.took:.3f} ms"
        if self.where:
            yield "where", f"  {self.where}"

    def line(self) -> str:
        """The record as one line of text."""
        return "".join(text for _, text in self.pieces()).rstrip()

    def untimed(self) -> str:
        """The line without its time, for a log that has times itself."""
        return "".join(text for part, text in self.pieces() if part != "time").rstrip()


def short(text: str) -> str:
    """Text of bounded length: names come from the author, but a guest may make long lists of them."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
