"""``delay``: a slow device, or a slow bus."""

from __future__ import annotations

from bellwire.filters import DmaWrite, Duration, Filter, Interrupt, Read, Ring, Write

LONGEST = 3600.0


class Delay(Filter):
    """Lets events take their time: a guest waits for a read, and what comes behind a write or a ring waits for it."""

    delays = True

    read = Duration(0, most=LONGEST, help="of a read of a BAR")
    write = Duration(0, most=LONGEST, help="of a write to a BAR")
    config = Duration(0, most=LONGEST, help="of an access to config space")
    ring = Duration(0, most=LONGEST, help="of a ring of a doorbell")
    interrupt = Duration(0, most=LONGEST, help="of an interrupt")
    dma_write = Duration(0, most=LONGEST, help="of what the device writes to guest memory")

    def before_read(self, read: Read) -> None:
        """A guest reads."""
        read.delay(self.read)

    def before_write(self, write: Write) -> None:
        """A guest writes."""
        write.delay(self.write)

    def before_config_read(self, read: Read) -> None:
        """A guest reads config space."""
        read.delay(self.config)

    def before_config_write(self, write: Write) -> None:
        """A guest writes config space."""
        write.delay(self.config)

    def before_ring(self, ring: Ring) -> None:
        """A guest rings."""
        ring.delay(self.ring)

    def before_interrupt(self, interrupt: Interrupt) -> None:
        """The device interrupts."""
        interrupt.delay(self.interrupt)

    def before_dma_write(self, write: DmaWrite) -> None:
        """The device writes guest memory."""
        write.delay(self.dma_write)

    def wants(self, method: str) -> bool:
        """Only the methods with a delay: the others, DMA above all, cost time for nothing."""
        kind = method.removeprefix("before_")
        seconds: float = self.arguments.get("config" if kind.startswith("config") else kind, 0.0)
        return seconds > 0
