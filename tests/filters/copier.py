"""A device with one register, doorbell and ioregion of each kind, and filters for it."""

from __future__ import annotations

from enum import IntFlag

from bellwire import Bar, MsiX, PciDevice
from bellwire.filters import Client, DmaRead, DmaWrite, Duration, Filter, Hook, Interrupt, Read, Reset, Ring, Write


class Status(IntFlag):
    READY = 1
    BUSY = 0x80


class Copier(PciDevice, vendor=0x1234, device=0x11F0, class_code=0x088000):
    """Copies 16 bytes of guest memory, from ``source`` on, 32 bytes on."""

    irq = MsiX(2)
    mmio = Bar(0, size=4096)
    status = mmio.reg(0x00, Status, reset=Status.READY)
    source = mmio.reg(0x08, size=8, access="rw")
    low = mmio.reg(0x10, access="rw")
    high = mmio.reg(0x14, access="rw")
    go = mmio.doorbell(0x20)
    tail = mmio.doorbell(0x24, value=True)
    row = mmio.ioregion(0x100, size=0x40)
    odd = mmio.ioregion(0x200, size=0x10, bell=4)

    def reset(self) -> None:
        self.seen = 0

    @go.ring
    def start(self) -> None:
        self.seen += 1
        self.dma.write(self.source + 32, self.dma.read(self.source, 16))
        self.irq[0].trigger()

    @tail.ring
    def moved(self, value: int) -> None:
        self.seen = value

    @row.read
    def read_row(self, offset: int, size: int) -> int:
        return offset

    @row.write
    def write_row(self, offset: int, size: int, value: int) -> None:
        self.seen = value

    @odd.write
    def ring_odd(self, offset: int, size: int, value: int) -> None:
        self.seen = offset << 16 | value


class All(Filter):
    """Writes down every event, and does nothing to it."""

    def start(self) -> None:
        self.seen: list[str] = []

    def before_read(self, read: Read) -> None:
        self.seen.append(f"read {read.place.name}")

    def after_read(self, read: Read) -> None:
        self.seen.append(f"{read.place.name} is {read.value:#x}")

    def before_write(self, write: Write) -> None:
        self.seen.append(f"write {write.place.name} {write.value:#x}")

    def before_ring(self, ring: Ring) -> None:
        self.seen.append(f"ring {ring.name} {ring.value} {ring.count} {ring.mechanism}")

    def after_ring(self, ring: Ring) -> None:
        self.seen.append(f"rung {ring.name}")

    def after_dma_read(self, read: DmaRead) -> None:
        self.seen.append(f"dma read {read.address:#x} {read.data.hex()}")

    def after_dma_write(self, write: DmaWrite) -> None:
        self.seen.append(f"dma write {write.address:#x} {write.data.hex()}")

    def after_interrupt(self, interrupt: Interrupt) -> None:
        self.seen.append(f"{interrupt.kind.name} {interrupt.vector} {interrupt.outcome}")

    def before_hook(self, hook: Hook) -> None:
        self.seen.append(f"hook {hook.name} at {hook.depth}")

    def after_reset(self, reset: Reset) -> None:
        self.seen.append("reset")

    def client(self, client: Client) -> None:
        self.seen.append(f"client {client.connected}")


class Slow(Filter):
    """Delays."""

    delays = True
    read = Duration(0, help="of a read")
    write = Duration(0, help="of a write")
    interrupt = Duration(0, help="of an interrupt")

    def before_read(self, read: Read) -> None:
        read.delay(self.read)

    def before_write(self, write: Write) -> None:
        write.delay(self.write)

    def before_interrupt(self, interrupt: Interrupt) -> None:
        interrupt.delay(self.interrupt)
