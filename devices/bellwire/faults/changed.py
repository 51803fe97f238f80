"""Faults that change one thing that the device says: what `fuzz` does at random, and what its scenarios consist of."""

from __future__ import annotations

from typing import Any

from bellwire.declare.register import Register
from bellwire.errors import OptionError
from bellwire.faults.fault import Fault
from bellwire.faults.interrupts import repeat
from bellwire.faults.registers import RegisterFault
from bellwire.filters import Argument, DmaWrite, Interrupt, Read
from bellwire.filters.place import Place

_ALL = (1 << 64) - 1
LARGEST = 4096
"""Bytes: of a longer DMA, the first so many can be changed."""


class ChangedRead(RegisterFault, name="changed-read"):
    """A read of a register gives other bits than the register has."""

    driver = "Checks what it reads before it uses it as an index, a length or an address."

    xor = Argument(1, least=0, most=_ALL, help="the bits that are inverted")

    def after_read(self, read: Read) -> None:
        """Invert the bits."""
        if self.concerns(read.place) and self.strikes("the read of %s is changed by %#x", read.place.name, self.xor):
            read.value = changed(read.place, read.value, self.xor)


class ChangedDma(Fault, name="changed-dma"):
    """The device writes other bytes to guest memory than it should: in a completion, a ring or data."""

    driver = "Checks lengths, indices and ids in completions and rings, and refuses what it has not asked for."

    size = Argument(0, least=0, help="of DMA writes of this many bytes only; 0: of all")
    offset = Argument(0, least=0, most=LARGEST, help="the byte that is changed")
    xor = Argument(1, least=0, most=255, help="the bits that are inverted")

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if 0 < self.size <= self.offset:
            raise OptionError(
                f"filter {self.name}: size={self.size},offset={self.offset}: the byte lies behind the end"
            )

    def before_dma_write(self, write: DmaWrite) -> None:
        """Invert the bits."""
        if self.size in (0, write.size) and self.strikes("byte %d of a DMA write is changed", self.offset):
            write.data = altered(write.data, self.offset, self.xor)


def changed(place: Place, value: int, xor: int) -> int:
    """What a read of a place gives, with bits inverted."""
    return (value ^ xor) & place.mask


def altered(data: bytes, offset: int, xor: int) -> bytes:
    """The bytes with one of them changed, if there are so many."""
    if offset >= len(data):
        return data
    result = bytearray(data)
    result[offset] ^= xor
    return bytes(result)


class Fuzz(Fault, name="fuzz"):
    """Something that the device says is changed at random: reads, what it writes by DMA, and its interrupts."""

    delays = True

    driver = (
        "Stays alive: it may fail requests, reset the device or give it up, but it does not crash, read or write "
        "beyond its own memory, or wait for ever."
    )

    reads = Argument(True, help="change reads of registers")
    dma = Argument(True, help="change what the device writes by DMA; the device copies all memory then")
    irqs = Argument(True, help="lose, repeat and delay interrupts")

    def start(self) -> None:
        """Nothing has been changed yet."""
        self.changes: list[dict[str, Any]] = []
        """The changes so far, as the faults of a scenario."""
        self._counts: dict[tuple[str, object], int] = {}
        super().start()

    def after_read(self, read: Read) -> None:
        """Invert some bits."""
        names = [item.name for _, item in read.place.items if isinstance(item, Register)]
        numbers = [self._count("read", name) for name in names]
        if self.reads and len(names) == 1 and self.strikes("the read of %s is changed", names[0]):
            xor = self._bits(8 * read.place.count)
            read.value = changed(read.place, read.value, xor)
            self._note("changed-read", numbers[0], register=names[0], xor=xor)

    def before_dma_write(self, write: DmaWrite) -> None:
        """Invert bits of a byte."""
        number = self._count("dma", write.size)
        if self.dma and write.size and self.strikes("a DMA write of %d bytes is changed", write.size):
            offset, xor = self.random.randrange(min(write.size, LARGEST)), self._bits(8)
            write.data = altered(write.data, offset, xor)
            self._note("changed-dma", number, size=write.size, offset=offset, xor=xor)

    def before_interrupt(self, interrupt: Interrupt) -> None:
        """Lose it, repeat it, or hold it back."""
        if interrupt.level is False:
            return  # it ends an interrupt
        number = self._count("irq", interrupt.vector)
        if self.irqs and self.strikes("an interrupt is changed"):
            what = self.random.choice(("lost-irq", "double-irq", "late-irq"))
            if what == "lost-irq":
                interrupt.drop()
            elif what == "double-irq":
                repeat(self, interrupt)
            else:
                interrupt.delay(LATE)
            self._note(what, number, vector=interrupt.vector)

    def report(self) -> dict[str, Any]:
        """What was changed: how often, and where."""
        where: dict[str, int] = {}
        for change in self.changes:
            place = change.get("register", change.get("size", change.get("vector", "")))
            key = f"{change['fault']} {place}"
            where[key] = where.get(key, 0) + 1
        return super().report() | {"changed": where}

    def _count(self, kind: str, key: object) -> int:
        """The number of this event among those of its kind and place: what ``at`` of a fault counts."""
        number = self._counts.get((kind, key), 0) + 1
        self._counts[kind, key] = number
        return number

    def _bits(self, width: int) -> int:
        """Bits to invert: one of them, all of them, or some."""
        way = self.random.randrange(4)
        if way == 0:
            return (1 << width) - 1
        if way == 1:
            return self.random.randrange(1, 1 << width)
        return 1 << self.random.randrange(width)

    def _note(self, fault: str, number: int, **arguments: Any) -> None:
        if len(self.changes) < MOST_CHANGES:
            self.changes.append({"fault": fault, "at": number, **arguments})


LATE = 0.02  # seconds: as LateIrq has it
MOST_CHANGES = 10_000
"""Changes that are kept; later ones are made, and not written down."""
