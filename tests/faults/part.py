"""A device for tests of faults: a register with bits, one that counts, a doorbell of each kind, vectors and DMA."""

from __future__ import annotations

from enum import IntFlag
from typing import Any

from bellwire import Bar, GuestError, IntX, MsiX, PciDevice, Saved
from bellwire.filters import Filter
from bellwire.testing import Guest


class State(IntFlag):
    DONE = 1
    FAILED = 2


class Part(PciDevice, vendor=0x1234, device=0x5679, class_code=0xFF0000):
    """Each ring copies ``count`` bytes from ``source`` to ``target``, and triggers vector 1."""

    irq = MsiX(4)
    line = IntX()
    mmio = Bar(0, size=4096)
    status = mmio.reg(0x00, State)
    count = mmio.reg(0x04, reset=8)
    source = mmio.reg(0x08, size=8, reset=0x1000)
    target = mmio.reg(0x10, size=8, reset=0x2000)
    written = mmio.reg(0x18, access="wo")
    copy = mmio.doorbell(0x20)
    value = mmio.doorbell(0x24, value=True)
    writes = Saved(0)
    rings = Saved(0)
    last = Saved(0)

    @written.write
    def count_write(self, value: int) -> None:
        self.writes += 1
        self.last = value

    @copy.ring
    def do_copy(self) -> None:
        self.rings += 1
        if self.count > 4096:
            raise GuestError(f"a count of {self.count}, at most 4096 expected")
        self.dma.write(self.target, self.dma.read(self.source, self.count))
        self.status |= State.DONE
        self.irq[1].trigger()

    @value.ring
    def take_value(self, value: int) -> None:
        self.rings += 1
        self.last = value


def guest(*faults: Filter, **options: Any) -> Guest[Part]:
    return Guest(Part, filters=faults, **options)
