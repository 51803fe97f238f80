"""Faults of registers: what a read gives, and what becomes of a write or a ring."""

from __future__ import annotations

from typing import Any

from bellwire.declare.register import Register
from bellwire.errors import OptionError
from bellwire.faults.condition import find_bits, find_register
from bellwire.faults.fault import Fault
from bellwire.filters import Argument, Duration, Read, Ring, Write
from bellwire.filters.place import Place


class RegisterFault(Fault):
    """A fault of one register, or of all."""

    register = Argument("", help="the register, as mmio.status; default: all")
    chosen: tuple[Register[Any], ...]
    """The register, or none for all."""

    def start(self) -> None:
        """Find the register. An OptionError if there is none of this name."""
        name = self.register
        where = f"filter {self.name}: register={name}"
        self.chosen = (find_register(self.device.layout, name, where),) if name else ()
        super().start()

    def concerns(self, place: Place) -> bool:
        """Whether an access touches the register."""
        return not self.chosen or place.touches(self.chosen[0])


class AllOnes(RegisterFault, name="all-ones"):
    """A read gives all ones, as one does that no device answers."""

    driver = (
        "Takes all ones for what they are, where no register can have them: it checks whether the device is still "
        "there, and never uses them as an index, a length or a reason to go on waiting."
    )

    def before_read(self, read: Read) -> None:
        """Answer in place of the device."""
        if self.concerns(read.place) and self.strikes("the read of %s gives all ones", read.place.name):
            read.answer(read.place.mask)


class Stuck(RegisterFault, name="stuck"):
    """A register reads as one value, or some bits of it do, whatever the device stores."""

    driver = "Waits for a bit with a limit, says which register has not changed, and gives up or resets the device."

    bits = Argument("", help="the bits: a number, or their name in the register's kind; default: all of them")
    value = Argument(0, least=0, help="what the register reads as; only its chosen bits count")

    def start(self) -> None:
        """Find the bits. An OptionError if the register does not have them, or cannot hold the value."""
        super().start()
        if not self.chosen:
            raise OptionError(f"filter {self.name}: register= is missing: which register is stuck?")
        text, register = self.bits, self.chosen[0]
        everything = (1 << 8 * register.size) - 1
        if text[:1].isdigit():
            try:
                self._mask = int(text, 0)
            except ValueError:
                raise OptionError(f"filter {self.name}: bits={text}: expected a number or a name") from None
        else:
            self._mask = find_bits(register, text, f"filter {self.name}: bits={text}") if text else everything
        if not 0 < self._mask <= everything:
            raise OptionError(f"filter {self.name}: bits={text}: {register.name} has 0x1 to {everything:#x}")
        if self.value > everything:
            raise OptionError(f"filter {self.name}: value={self.value}: {register.name} has 0 to {everything:#x}")

    def after_read(self, read: Read) -> None:
        """Put the stuck bits in the place of those that the device has given."""
        register = self.chosen[0]
        if read.place.touches(register) and self.strikes("the read of %s is stuck", read.place.name):
            value = read.place.part(register, read.value) & ~self._mask | self.value & self._mask
            read.value = read.place.changed(register, read.value, value)


class LostWrite(RegisterFault, name="lost-write"):
    """A write to a register never arrives."""

    driver = "Reads back what must be set before it goes on, and does not wait without a limit for its effect."

    def before_write(self, write: Write) -> None:
        """Drop the write."""
        if self.concerns(write.place) and self.strikes("the write to %s is lost", write.place.name):
            write.drop()


class LateWrite(RegisterFault, name="late-write"):
    """A write to a register arrives late, and so does all that the guest does behind it."""

    delays = True

    driver = "Flushes posted writes by a read where it matters when they arrive."

    by = Duration(0.01, most=5.0, help="how late")

    def before_write(self, write: Write) -> None:
        """Hold the write back."""
        if self.concerns(write.place) and self.strikes("the write to %s is late", write.place.name):
            write.delay(self.by)


class DoubleWrite(RegisterFault, name="double-write"):
    """A write to a register arrives twice."""

    driver = "No driver can prevent it: the device must stay usable, at worst after a reset."

    def before_write(self, write: Write) -> None:
        """Let it happen once more."""
        if self.concerns(write.place) and self.strikes("the write to %s arrives twice", write.place.name):
            write.again()


class LostRing(Fault, name="lost-ring"):
    """A ring of a doorbell never arrives."""

    driver = "Notices by a timeout that nothing was done, looks at the queue, and rings again or resets the device."

    def before_ring(self, ring: Ring) -> None:
        """Drop the ring."""
        if self.strikes("the ring of %s is lost", ring.name):
            ring.drop()


class LateRing(Fault, name="late-ring"):
    """A ring of a doorbell arrives late, and so does all that the guest does behind it."""

    delays = True

    driver = "Does not take a slow start for a dead device: its timeouts are longer than that."

    by = Duration(0.01, most=5.0, help="how late")

    def before_ring(self, ring: Ring) -> None:
        """Hold the ring back."""
        if self.strikes("the ring of %s is late", ring.name):
            ring.delay(self.by)


class Slow(Fault, name="slow"):
    """Each access of the guest takes long: reads, writes and rings."""

    delays = True

    driver = "Sleeps between two looks at a register, and polls in no place where nothing else may run."

    by = Duration(0.002, most=5.0, help="how long an access takes")

    def before_read(self, read: Read) -> None:
        """Hold the read back."""
        if self.strikes("the read of %s is slow", read.place.name):
            read.delay(self.by)

    def before_write(self, write: Write) -> None:
        """Hold the write back."""
        if self.strikes("the write of %s is slow", write.place.name):
            write.delay(self.by)

    def before_ring(self, ring: Ring) -> None:
        """Hold the ring back."""
        if self.strikes("the ring of %s is slow", ring.name):
            ring.delay(self.by)
