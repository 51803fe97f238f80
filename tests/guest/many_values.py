"""A device with more values than a reply to QEMU has descriptors."""

from __future__ import annotations

from bellwire import Bar, PciDevice


class ManyValues(PciDevice, vendor=0x1234, device=0xBE1F, class_code=0x088000):
    """Each value that rings sets a bit."""

    mmio = Bar(0, size=4096)
    seen = mmio.reg(0x00, size=8, access="ro")
    bell = mmio.doorbell(0x10, values=range(40))

    @bell.ring
    def rang(self, value: int) -> None:
        """Note the value."""
        self.seen |= 1 << value
