"""Pokes: what a person does to a device by hand, in place of its guest or of the device itself."""

from __future__ import annotations

from collections.abc import Iterator

from bellwire import PciDevice
from bellwire.declare.access import Access
from bellwire.declare.doorbell import Doorbell
from bellwire.declare.register import Register
from bellwired.errors import CommandError
from vfio_user import IrqIndex, RegionIndex

Named = Register[int] | Doorbell


class Pokes:
    """Writes registers, rings doorbells and raises interrupts of one device, on the device's own thread.

    A GuestError is raised as for a guest, and a CommandError for what the device has not.
    """

    def __init__(self, device: PciDevice) -> None:
        self._core = device.core

    def poke(self, target: str, value: str, by: str) -> None:
        """Give the register ``target`` a value, or ring the doorbell of that name.

        ``value`` is a number, or names of the register's flags joined by ``|``; empty for a doorbell that needs none.
        ``by``: ``device`` stores it, and no hook runs; ``guest`` does what a guest's write does. A doorbell can only be
        rung by a guest.
        """
        region, offset, item = self._find(target)
        if isinstance(item, Register):
            if not value:
                raise CommandError(f"{target} is a register, and a value is missing")
            number = _number(item, value)
            if by == "device":
                if item.access is Access.CONSTANT:
                    raise CommandError(f"{target} is constant: it keeps its reset value")
                item.store(self._core.state.registers[item.bar.index], number)
                return
        else:
            accepted = item.accepted
            number = _number(item, value) if value else accepted.start if accepted is not None else 0
            if accepted is not None and number not in accepted:
                told = f"{accepted.start:#x}" if len(accepted) == 1 else f"{accepted.start:#x} to {accepted[-1]:#x}"
                raise CommandError(f"{target} is not rung by {number:#x}, only by {told}")
        write = self._core.writer(region, offset, item.size)  # by way of the filters, if there are any
        write(memoryview(number.to_bytes(item.size, "little")))

    def interrupt(self, vector: str) -> None:
        """Trigger a vector of MSI-X, or of MSI if the guest uses that; without any, pulse the INTx line."""
        signals, number = self._core.signals, int(vector)
        for vectors, index in ((signals.msix, IrqIndex.MSIX), (signals.msi, IrqIndex.MSI)):
            if vectors.enabled:
                if not 0 <= number < len(vectors):
                    raise CommandError(f"{index.name} vector {number}: the device has 0 to {len(vectors) - 1}")
                signals.trigger(index, number)
                return
        if self._core.layout.intx is None:
            raise CommandError("the guest has turned neither MSI-X nor MSI on, and the device has no INTx line")
        if number:
            raise CommandError(f"vector {number}: the guest uses INTx, which is vector 0")
        was = signals.asserted
        signals.drive(True)
        signals.drive(was)

    def _find(self, target: str) -> tuple[int, int, Named]:
        """The region and offset of a register or doorbell. A CommandError if the device has none of that name."""
        for region, offset, item in self._placed():
            if item.name == target:
                return region, offset, item
        raise CommandError(f"it has no register or doorbell {target!r}")

    def _placed(self) -> Iterator[tuple[int, int, Named]]:
        layout = self._core.layout
        for index, plan in layout.bars.items():
            for item in plan.placed:
                if isinstance(item, Register | Doorbell):
                    yield index, item.offset, item
        for each in layout.extended:
            for register in each.placed:
                yield RegionIndex.CONFIG, each.at + register.offset, register


def _number(item: Named, text: str) -> int:
    """A value as a person writes it. A CommandError if it is none, or does not fit."""
    kind = item.kind if isinstance(item, Register) else None
    try:
        value = int(text, 0)
    except ValueError:
        if kind is None:
            raise CommandError(f"{item.name}: expected a number, got {text!r}") from None
        value = 0
        for word in text.split("|"):
            member = kind.__members__.get(word.strip())
            if member is None:
                known = ", ".join(kind.__members__)
                raise CommandError(f"{item.name}: {word.strip()!r} is neither a number nor one of {known}") from None
            value |= int(member)
    if not 0 <= value < 1 << 8 * item.size:
        raise CommandError(f"{item.name}: {value:#x} does not fit in its {item.size} bytes")
    return value
