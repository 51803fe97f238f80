"""``log``: the guest's accesses and the interrupts as lines of the device's log, at a limited rate."""

from __future__ import annotations

from bellwire.filters import Argument, Filter, Interrupt, Read, Ring, Write

_SECOND = 1.0


class Log(Filter):
    """Logs accesses to BARs, rings and interrupts, at most ``rate`` lines a second; ``trace`` does it in full."""

    rate = Argument(50, least=1, most=10000, help="the most lines a second")

    def start(self) -> None:
        """Nothing was logged yet."""
        self._since = self.now
        self._lines = 0
        self.left_out = 0
        """Lines that were too many."""

    def after_read(self, read: Read) -> None:
        """A guest has read."""
        place = read.place
        self._tell("read %s (%s): %#x %s", place.name, place.label, read.value, place.meaning(read.value))

    def before_write(self, write: Write) -> None:
        """A guest writes."""
        place = write.place
        self._tell("write %s (%s): %#x %s", place.name, place.label, write.value, place.meaning(write.value))

    def before_ring(self, ring: Ring) -> None:
        """A guest rings."""
        value = "" if ring.value is None else f" with {ring.value:#x}"
        self._tell("ring %s%s, %d times by %s", ring.name, value, ring.count, ring.mechanism)

    def after_interrupt(self, interrupt: Interrupt) -> None:
        """The device interrupts."""
        self._tell("%s %d: %s", interrupt.kind.name, interrupt.vector, interrupt.outcome)

    def _tell(self, message: str, *arguments: object) -> None:
        if self.now - self._since >= _SECOND:
            if self.left_out:
                self.device.log.info("%d lines were left out", self.left_out)
            self._since, self._lines, self.left_out = self.now, 0, 0
        if self._lines >= self.rate:
            self.left_out += 1
            return
        self._lines += 1
        self.device.log.info(message, *arguments)
