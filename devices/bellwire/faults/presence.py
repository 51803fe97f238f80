"""Faults of the whole device: it is gone, its link is down, it hangs, or it does not come out of a reset."""

from __future__ import annotations

import functools
from collections.abc import Callable

from bellwire.declare.doorbell import Doorbell
from bellwire.declare.register import Register
from bellwire.faults.fault import Fault, LastingFault
from bellwire.filters import DmaRead, DmaWrite, Duration, Interrupt, Read, Reset, Ring, Write
from bellwire.filters.place import Place
from bellwire.model.core import Core
from bellwire.model.host import Timer
from vfio_user import IrqIndex

MOST_HELD = 4096
"""Writes and rings that a hung device does when it goes on; later ones are lost."""


class ConfigOnes(LastingFault, name="config-ones"):
    """Config space reads as all ones, and takes no write: a device that does not answer requests for configuration."""

    driver = "Checks the vendor ID, or another register that cannot be all ones, before it believes config space."

    def before_config_read(self, read: Read) -> None:
        """Answer in place of the device."""
        if self.holds():
            read.answer(read.place.mask)

    def before_config_write(self, write: Write) -> None:
        """Drop the write."""
        if self.holds():
            write.drop()


class _Away(ConfigOnes, name="away"):
    """A device that cannot be reached."""

    def before_read(self, read: Read) -> None:
        """Answer in place of the device."""
        if self.holds():
            read.answer(read.place.mask)

    def before_write(self, write: Write) -> None:
        """Drop the write."""
        if self.holds():
            write.drop()

    def before_ring(self, ring: Ring) -> None:
        """Drop the ring."""
        if self.holds():
            ring.drop()

    def before_dma_read(self, read: DmaRead) -> None:
        """Let it fail: device code still runs, and reaches nothing."""
        if self.active:
            read.fail(f"fault {self.name}")

    def before_dma_write(self, write: DmaWrite) -> None:
        """Let it fail."""
        if self.active:
            write.fail(f"fault {self.name}")

    def before_interrupt(self, interrupt: Interrupt) -> None:
        """Drop it."""
        if self.active:
            interrupt.drop()

    def before_reset(self, reset: Reset) -> None:
        """Drop it: it does not reach the device."""
        if self.active:
            reset.drop()


class Gone(_Away, name="gone"):
    """The device is pulled out: reads give all ones, all else is lost. It comes back as after power-on."""

    driver = (
        "Sees all ones in a register that cannot have them, ends its waits at once, fails what is open, and lets "
        "itself be removed. It sets the device up anew when it is back."
    )

    def end(self) -> None:
        """The device is back, and has just been powered on."""
        self.device.core.power_on()
        self.device.core.reset()


class LinkDown(_Away, name="link-down"):
    """The link is down: reads give all ones, all else is lost. When it is up again, it has reset the device."""

    driver = "Does what it does for a device that is gone; the device has lost its settings when the link is back."

    def end(self) -> None:
        """The link is up: the device has been reset (PCIe 5.0 §6.6.1)."""
        self.device.core.reset()


class Hung(LastingFault, name="hung"):
    """The device hangs: registers read as they were, and nothing that is written or rung has an effect until the end.

    What was written and rung meanwhile is done then, in its order, and interrupts that were held back are sent.
    """

    driver = "Gives each request a time limit. At its end it tries an abort, then a reset, then fails what is open."

    def start(self) -> None:
        """Nothing is held back yet."""
        self._noticed = False
        self._held: list[Callable[[], None]] = []
        self._vectors: dict[tuple[IrqIndex, int], None] = {}
        super().start()

    def end(self) -> None:
        """Do what was held back."""
        held, self._held = self._held, []
        vectors, self._vectors = list(self._vectors), {}
        for each in held:
            self.catch_up(each)
        for kind, vector in vectors:
            self.catch_up(functools.partial(self.device.core.signals.trigger, kind, vector))

    def before_read(self, read: Read) -> None:
        """Answer with what the registers hold: no hook runs."""
        if self.holds():
            self._noticed = True
            read.answer(self._stored(read.place))

    def before_write(self, write: Write) -> None:
        """Hold the write back."""
        if self.holds():
            place, data = write.place, write.value.to_bytes(write.place.count, "little")
            self._hold(lambda: self.device.core.writer(place.region, place.offset, place.count)(memoryview(data)))
            write.drop()

    def before_ring(self, ring: Ring) -> None:
        """Hold the ring back."""
        if self.holds():
            self._hold(lambda: _rung(self.device.core, ring))
            ring.drop()

    def before_interrupt(self, interrupt: Interrupt) -> None:
        """Hold it back."""
        if self.active and interrupt.level is None:
            self._vectors[interrupt.kind, interrupt.vector] = None
            interrupt.drop()

    def before_reset(self, reset: Reset) -> None:
        """A reset of the whole device ends the hang, once the guest has used the device that hangs."""
        if self.active and self._noticed:
            self._noticed = False
            self._held.clear()
            self._vectors.clear()
            self._end()

    def _hold(self, again: Callable[[], None]) -> None:
        self._noticed = True
        if len(self._held) < MOST_HELD:
            self._held.append(again)

    def _stored(self, place: Place) -> int:
        value = 0
        for _, item in place.items:
            if isinstance(item, Register):
                file = self.device.core.state.registers[item.bar.index]
                value = place.changed(item, value, item.load(file))
        return value


def _rung(core: Core, ring: Ring) -> None:
    """Ring a doorbell as the guest has rung it."""
    bell, value = ring.bell, ring.value
    if isinstance(bell, Doorbell):
        if bell.with_value:
            core.ring_value(bell, value or 0, ring.count)
        else:
            core.ring(bell, ring.count)
    elif value is None:
        core.ring_in_row((bell, ring.offset), ring.count)
    else:
        core.ioregion_write(bell, ring.offset, bell.bell, value)


class SlowReset(Fault, name="slow-reset"):
    """A reset of the device takes long: until it is over, reads give all ones, and all else is lost."""

    driver = "Waits for the device with a limit, as PCI tells: it reads config space until that is not all ones."

    by = Duration(1.0, most=86400.0, help="how long")

    busy = False
    _timer: Timer | None = None

    def after_reset(self, reset: Reset) -> None:
        """The reset begins to take its time."""
        if self.device.connected and self.strikes("a reset takes long"):
            self.busy = True
            self._begun()

    def _begun(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.after(self.by, self._over)

    def _over(self) -> None:
        self.busy = False

    def before_read(self, read: Read) -> None:
        """Answer in place of the device."""
        if self.busy:
            read.answer(read.place.mask)

    def before_config_read(self, read: Read) -> None:
        """Answer in place of the device."""
        self.before_read(read)

    def before_write(self, write: Write) -> None:
        """Drop the write."""
        if self.busy:
            write.drop()

    def before_config_write(self, write: Write) -> None:
        """Drop the write."""
        self.before_write(write)

    def before_ring(self, ring: Ring) -> None:
        """Drop the ring."""
        if self.busy:
            ring.drop()


class EndlessReset(SlowReset, name="endless-reset"):
    """A reset of the device never ends: from then on reads give all ones, and all else is lost."""

    driver = "Gives up when its limit has passed, says so, and leaves the device alone."

    def _begun(self) -> None:
        """No timer ends it."""
