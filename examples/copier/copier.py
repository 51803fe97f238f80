"""A device that copies guest memory: the example of the README."""

from __future__ import annotations

from enum import IntFlag

from bellwire import Bar, MsiX, PciDevice


class Status(IntFlag):
    """What the guest reads in the status register."""

    DONE = 1


class Copier(PciDevice, vendor=0x1234, device=0x11F0, class_code=0x088000):
    """Copies guest memory from one place to another and raises an interrupt."""

    irq = MsiX(1)
    mmio = Bar(0, size=4096)
    status = mmio.reg(0x04, Status, access="w1c")
    src = mmio.reg(0x10, size=8)
    dst = mmio.reg(0x18, size=8)
    count = mmio.reg(0x20)
    go = mmio.doorbell(0x28)

    @go.ring
    def copy(self) -> None:
        """Copy, at most 64 KiB."""
        self.dma.write(self.dst, self.dma.read(self.src, min(self.count, 64 << 10)))
        self.status |= Status.DONE
        self.irq[0].trigger()
