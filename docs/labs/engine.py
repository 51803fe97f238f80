"""engine: the ring DMA engine of labs 4 and 5. It copies guest memory, one descriptor after the other."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

from bellwire import Bar, GuestError, MsiX, Option, PciDevice, Saved

DESCRIPTOR = struct.Struct("<QQII")
"""One entry of the ring: source, target, length in bytes, state."""
STATE = DESCRIPTOR.size - 4
MOST_ENTRIES = 4096


class State(IntEnum):
    """The last word of a descriptor: the driver writes POSTED, the engine writes COPIED."""

    POSTED = 0
    COPIED = 1


class Control(IntFlag):
    """What the driver tells the engine."""

    ENABLE = 0x1
    """Off, the engine forgets the ring and all that is in it."""


class Status(IntFlag):
    """What the engine does."""

    BUSY = 0x1
    """There are descriptors between head and tail."""
    HALTED = 0x2
    """An error has stopped the engine. Disable it, then enable it again."""


class Cause(IntFlag):
    """Why the engine has interrupted."""

    DONE = 0x1
    """Descriptors have been copied."""
    ERROR = 0x2
    """The engine has halted."""


class Error(IntEnum):
    """Why the engine has halted."""

    NONE = 0
    RING = 1
    """The ring has no valid size, or the tail lies outside it."""
    LENGTH = 2
    """A descriptor has no bytes, or more than the engine can copy."""
    ADDRESS = 3
    """The ring, a source or a target is not in memory."""
    INJECTED = 4
    """The driver has asked for it (inject)."""


class Inject(IntEnum):
    """What goes wrong with the next descriptor. Chips have such a register for the tests of their drivers."""

    NONE = 0
    ERROR = 1
    """The engine halts."""
    HANG = 2
    """The engine does nothing any more, and does not say so."""
    SILENCE = 3
    """The descriptor is copied, and the interrupt is lost."""


class Engine(PciDevice, vendor=0x1234, device=0x1AB4, class_code=0x088000, name="engine"):
    """A DMA engine with a ring of descriptors."""

    latency = Option(0.001, least=0, most=60, help="seconds before each burst")
    burst = Option(4, least=1, most=MOST_ENTRIES, help="descriptors that are copied before the engine interrupts")
    largest = Option(4096, least=1, most=1 << 20, help="bytes that one descriptor may copy")

    irq = MsiX(1)

    mmio = Bar(0, size=4096)
    control = mmio.reg(0x00, Control)
    status = mmio.reg(0x04, Status, access="ro")
    cause = mmio.reg(0x08, Cause, access="w1c")
    """A one acknowledges."""
    error = mmio.reg(0x0C, Error, access="ro")
    ring = mmio.reg(0x10, size=8)
    """Where the ring is."""
    entries = mmio.reg(0x18)
    """How many entries the ring has: a power of two."""
    head = mmio.reg(0x1C, access="ro")
    """The entry that the engine copies next."""
    inject = mmio.reg(0x20, Inject, writable=0x3)
    """Goes back to NONE when it has happened."""
    tail = mmio.doorbell(0x40, latest=True)
    """The entry that the driver fills next. The engine copies what is before it."""

    end = Saved(0)
    """The last value of the doorbell."""
    hung = Saved(False)
    generation = Saved(0)
    """A timer of an earlier generation does nothing."""

    def restored(self) -> None:
        """Go on with what was in the ring."""
        if Status.BUSY in self.status and not self.hung:
            self.go_on()

    @control.write
    def switch(self, control: int) -> None:
        """Forget the ring when the engine is switched off."""
        if Control.ENABLE not in Control(control):
            self.status = Status(0)
            self.cause = Cause(0)
            self.error = Error.NONE
            self.head = self.end = 0
            self.hung = False
            self.cancel()

    @tail.ring
    def kick(self, tail: int) -> None:
        """Copy up to the new tail, if the engine is on."""
        if Control.ENABLE not in self.control or Status.HALTED in self.status:
            return
        entries = self.entries
        if not 2 <= entries <= MOST_ENTRIES or entries & (entries - 1) or tail >= entries:
            self.halt(Error.RING)
            return
        self.end = tail
        if Status.BUSY not in self.status:
            self.go_on()

    def go_on(self) -> None:
        """Set the timer of the next burst, if there is anything to copy."""
        if self.head == self.end:
            self.status = Status(0)
            return
        self.status = Status.BUSY
        self.after(self.latency, self.work, self.generation)

    def work(self, generation: int) -> None:
        """Copy one burst, and interrupt once."""
        if generation != self.generation:
            return
        silent = False
        for _ in range(self.burst):
            if self.head == self.end:
                break
            fault, self.inject = Inject(self.inject), Inject.NONE
            if fault is Inject.HANG:
                self.hung = True
                return
            silent = silent or fault is Inject.SILENCE
            error = Error.INJECTED if fault is Inject.ERROR else self.copy(self.ring + self.head * DESCRIPTOR.size)
            if error is not Error.NONE:
                self.halt(error)
                return
            self.head = (self.head + 1) % self.entries
        if not silent:
            self.interrupt(Cause.DONE)
        self.go_on()

    def copy(self, place: int) -> Error:
        """Copy what the descriptor at ``place`` says, and mark it."""
        try:
            source, target, length, _ = DESCRIPTOR.unpack(self.dma.read(place, DESCRIPTOR.size))
            if not 1 <= length <= self.largest:
                return Error.LENGTH
            self.dma.write(target, self.dma.read(source, length))
            self.dma.write(place + STATE, State.COPIED.to_bytes(4, "little"))
        except GuestError as error:
            self.warn("%s", error)
            return Error.ADDRESS
        return Error.NONE

    def cancel(self) -> None:
        """Have the timer that is set do nothing."""
        self.generation = (self.generation + 1) & 0xFFFF_FFFF

    def halt(self, error: Error) -> None:
        """Stop at the descriptor that cannot be copied."""
        self.cancel()
        self.error = error
        self.status = Status.HALTED
        self.interrupt(Cause.ERROR)

    def interrupt(self, cause: Cause) -> None:
        """Say why, then interrupt. A guest that has no bus master gets none."""
        self.cause |= cause
        try:
            self.irq[0].trigger()
        except GuestError as error:
            self.warn("%s", error)
