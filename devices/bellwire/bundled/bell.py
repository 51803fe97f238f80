"""bell: one doorbell of every kind, a counter for each, and an interrupt on demand.

The demo, the benchmarks and the tests of the VMM use it. docs/devices.md has the offsets.
"""

from __future__ import annotations

from bellwire import Bar, MsiX, PciDevice, Saved, SavedBytes

MATCH = 0x42
FEW = range(8)
SCRATCH = 256


class Bell(PciDevice, vendor=0x1234, device=0xBE11, class_code=0x088000):
    """Counts how it is rung, by every way there is, and checks that values come intact and in order."""

    irq = MsiX(8)

    control = Bar(0, size=4096)
    ident = control.reg(0x00, access="constant", reset=0xBE11_0001)
    irq_on_ring = control.reg(0x04)
    irq_now = control.reg(0x08, access="wo")
    reset_counters = control.reg(0x0C, access="wo")
    plain = control.reg(0x10)
    wildcard_count = control.reg(0x40, size=8, access="ro")
    datamatch_count = control.reg(0x48, size=8, access="ro")
    value_count = control.reg(0x50, size=8, access="ro")
    pio_count = control.reg(0x58, size=8, access="ro")
    acked_count = control.reg(0x60, size=8, access="ro")
    plain_count = control.reg(0x68, size=8, access="ro")
    pio_plain_count = control.reg(0x70, size=8, access="ro")
    read_count = control.reg(0x78, size=8, access="ro")
    value_errors = control.reg(0x80, size=8, access="ro")
    acked_errors = control.reg(0x88, size=8, access="ro")
    plain_errors = control.reg(0x90, size=8, access="ro")
    pio_plain_errors = control.reg(0x98, size=8, access="ro")
    few_count = control.reg(0xD0, size=8, access="ro")
    few_seen = control.reg(0xD8, access="ro")
    latest_value = control.reg(0xDC, access="ro")
    latest_count = control.reg(0xE0, size=8, access="ro")
    latest_errors = control.reg(0xE8, size=8, access="ro")

    bells = Bar(1, size=4096)
    wildcard = bells.doorbell(0x000)
    datamatch = bells.doorbell(0x010, match=MATCH)
    value = bells.doorbell(0x020, value=True)
    few = bells.doorbell(0x030, values=FEW)
    latest = bells.doorbell(0x040, latest=True)
    region = bells.ioregion(0x100, SCRATCH)

    ports = Bar(2, size=16, io=True)
    pio = ports.doorbell(0x0)
    pio_plain = ports.reg(0x4)

    # The counts of the doorbells when the guest last cleared the counters: the counts themselves only grow.
    wildcard_base = Saved(0)
    datamatch_base = Saved(0)
    pio_base = Saved(0)
    few_base = Saved(0)
    latest_base = Saved(0)
    scratch = SavedBytes(SCRATCH)

    def recovered(self, torn: bool) -> None:
        """Go on after a process has died: count from the doorbells again, and interrupt for what may not have been."""
        self.wildcard_count = self.wildcard.rung - self.wildcard_base
        self.datamatch_count = self.datamatch.rung - self.datamatch_base
        self.pio_count = self.pio.rung - self.pio_base
        self.few_count = self.few.rung - self.few_base
        self.latest_count = self.latest.rung - self.latest_base
        self.arrived()

    @irq_now.write
    def interrupt_now(self, number: int) -> None:
        """Trigger vector ``number``. A number out of range has no effect."""
        if number < len(self.irq):
            self.irq[number].trigger()

    @reset_counters.write
    def clear_counters(self, _: int) -> None:
        """Set all counters to zero, for any value written."""
        self.wildcard_base = self.wildcard.rung
        self.datamatch_base = self.datamatch.rung
        self.pio_base = self.pio.rung
        self.few_base = self.few.rung
        self.latest_base = self.latest.rung
        self.wildcard_count = self.datamatch_count = self.pio_count = self.few_count = self.few_seen = 0
        self.latest_count = self.latest_errors = self.latest_value = 0
        self.value_count = self.acked_count = self.plain_count = self.pio_plain_count = self.read_count = 0
        self.value_errors = self.acked_errors = self.plain_errors = self.pio_plain_errors = 0

    @wildcard.ring
    def wildcard_rang(self) -> None:
        """Count rings of the doorbell that any write rings."""
        self.wildcard_count = self.wildcard.rung - self.wildcard_base
        self.arrived()

    @datamatch.ring
    def datamatch_rang(self) -> None:
        """Count rings of the doorbell that only a write of MATCH rings."""
        self.datamatch_count = self.datamatch.rung - self.datamatch_base
        self.arrived()

    @pio.ring
    def pio_rang(self) -> None:
        """Count rings of the doorbell at an I/O port."""
        self.pio_count = self.pio.rung - self.pio_base
        self.arrived()

    @value.ring
    def value_rang(self, value: int) -> None:
        """Count a ring with a value. The values should be 1, 2, 3, ...: any other is an error."""
        self.value_count += 1
        self.value_errors += value != self.value_count & 0xFFFF_FFFF
        self.arrived()

    @few.ring
    def few_rang(self, value: int) -> None:
        """Count rings of the doorbell that a few values ring. Each value seen sets a bit."""
        self.few_count = self.few.rung - self.few_base
        self.few_seen |= 1 << value
        self.arrived()

    @latest.ring
    def latest_rang(self, value: int) -> None:
        """Count rings of the doorbell whose last value counts. The values should be 1, 2, 3, ..., with gaps at most.

        So the value is at least the number of rings that have come, and it never goes back.
        """
        self.latest_count = self.latest.rung - self.latest_base
        self.latest_errors += value < self.latest_value or value < self.latest_count & 0xFFFF_FFFF
        self.latest_value = value
        self.arrived()

    @region.write
    def region_written(self, offset: int, size: int, value: int) -> None:
        """Store the value. Writes to offset 0 are counted, and their values should be 1, 2, 3, ..."""
        self.scratch[offset : offset + size] = value.to_bytes(size, "little")
        if offset == 0:
            self.acked_count += 1
            self.acked_errors += value != self.acked_count & 0xFFFF_FFFF
            self.arrived()

    @region.read
    def region_was_read(self, offset: int, size: int) -> int:
        """Give the value that was written there."""
        self.read_count += 1
        return int.from_bytes(self.scratch[offset : offset + size], "little")

    @plain.write
    def plain_written(self, value: int) -> None:
        """Count a write to an ordinary register, which arrives as a message."""
        self.plain_count += 1
        self.plain_errors += value != self.plain_count & 0xFFFF_FFFF
        self.arrived()

    @pio_plain.write
    def pio_plain_written(self, value: int) -> None:
        """Count a write to an ordinary I/O port. The guest waits for the reply."""
        self.pio_plain_count += 1
        self.pio_plain_errors += value != self.pio_plain_count & 0xFFFF_FFFF
        self.arrived()

    def arrived(self) -> None:
        """Interrupt, if the guest has asked for one for each ring."""
        if 0 < self.irq_on_ring <= len(self.irq):
            self.irq[self.irq_on_ring - 1].trigger()
