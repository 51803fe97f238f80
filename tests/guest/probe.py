"""A device for the tests: it does DMA at every time there is, and shares a page with the guest."""

from __future__ import annotations

import zlib

from bellwire import Bar, MsiX, PciDevice

PAGE = 4096


class Probe(PciDevice, vendor=0x1234, device=0xCAFE, class_code=0x088000):
    """Fetches 4 bytes from ``address`` into ``result``, or stores ``result`` there; or sums up many bytes."""

    irq = MsiX(2)

    mmio = Bar(0, size=PAGE)
    address = mmio.reg(0x00, size=8)
    result = mmio.reg(0x08)
    fetch_by_write = mmio.reg(0x10, access="wo")
    fetch_by_timer = mmio.reg(0x14, access="wo")
    fetch_by_read = mmio.reg(0x18)
    fetch_by_bell = mmio.doorbell(0x1C)
    store_by_bell = mmio.doorbell(0x20)
    length = mmio.reg(0x24)
    sum_by_bell = mmio.doorbell(0x28)

    ports = Bar(1, size=16, io=True)
    fetch_by_port = ports.reg(0x0, access="wo")

    def fetch(self) -> None:
        """Guest memory into the register."""
        self.result = int.from_bytes(self.dma.read(self.address, 4), "little")

    @fetch_by_write.write
    def written(self, _: int) -> None:
        """In a write, which is posted where the BAR is memory."""
        self.fetch()

    @fetch_by_port.write
    def port_written(self, _: int) -> None:
        """In a write that the guest waits for."""
        self.fetch()

    @fetch_by_timer.write
    def timer_wanted(self, _: int) -> None:
        """When nobody waits."""
        self.after(0.01, self.fetch)

    @fetch_by_read.read
    def was_read(self) -> int:
        """In a read."""
        self.fetch()
        return self.result

    @fetch_by_bell.ring
    def rung_to_fetch(self) -> None:
        """In a ring."""
        self.fetch()

    @store_by_bell.ring
    def rung_to_store(self) -> None:
        """The other way."""
        self.dma.write(self.address, self.result.to_bytes(4, "little"))

    @sum_by_bell.ring
    def rung_to_sum(self) -> None:
        """A checksum of ``length`` bytes, which are fetched at once."""
        self.result = zlib.crc32(self.dma.read(self.address, self.length))


class Shared(Probe, device=0xCAF0):
    """The same, and a second BAR whose second page the guest maps."""

    window = Bar(2, size=4 * PAGE)
    page = window.area(PAGE, PAGE)
    look = window.reg(0x00, access="ro")

    @look.read
    def looked_at(self) -> int:
        """The first word of the page, as the device sees it."""
        return int.from_bytes(self.page[:4], "little")
