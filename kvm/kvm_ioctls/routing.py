"""Where a GSI leads: to pins of the interrupt controllers, or to an MSI (api.rst 4.52)."""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from .errors import InvalidArgumentError

_ENTRY_IRQCHIP = struct.Struct("=II8xII24x")
_ENTRY_MSI = struct.Struct("=II8xIII20x")
_TYPE_IRQCHIP, _TYPE_MSI = 1, 2


class Irqchip(IntEnum):
    """The x86 interrupt controllers that KVM_CREATE_IRQCHIP makes."""

    PIC_MASTER = 0
    PIC_SLAVE = 1
    IOAPIC = 2


class IrqchipRoute(NamedTuple):
    """`gsi` drives `pin` of `irqchip`. A GSI may have one route to each controller."""

    gsi: int
    irqchip: int
    pin: int

    def pack(self) -> bytes:
        """Return `struct kvm_irq_routing_entry`."""
        return _ENTRY_IRQCHIP.pack(self.gsi, _TYPE_IRQCHIP, self.irqchip, self.pin)


class MsiRoute(NamedTuple):
    """`gsi` sends `data` to `address`, as a PCI device with MSI would."""

    gsi: int
    address: int
    data: int

    def pack(self) -> bytes:
        """Return `struct kvm_irq_routing_entry`."""
        low, high = self.address & 0xFFFF_FFFF, self.address >> 32
        return _ENTRY_MSI.pack(self.gsi, _TYPE_MSI, low, high, self.data)


Route = IrqchipRoute | MsiRoute


def default_routes() -> list[Route]:
    """Return the routes that KVM_CREATE_IRQCHIP installs, for a table that adds to them.

    GSIs 0-15 lead to the two PICs and to the IOAPIC, 16-23 to the IOAPIC alone.
    """
    pics = (IrqchipRoute(gsi, Irqchip.PIC_SLAVE if gsi > 7 else Irqchip.PIC_MASTER, gsi % 8) for gsi in range(16))
    return [*pics, *(IrqchipRoute(gsi, Irqchip.IOAPIC, gsi) for gsi in range(24))]


def pack_routes(routes: Sequence[Route]) -> bytes:
    """Return `struct kvm_irq_routing` with its entries."""
    return b"".join((struct.pack("=II", len(routes), 0), *map(_packed, routes)))


@functools.lru_cache(8192)  # a table is replaced as a whole, most often for one route
def _packed(route: Route) -> bytes:
    try:
        return route.pack()
    except struct.error as error:
        raise InvalidArgumentError(str(error), "KVM_SET_GSI_ROUTING", route._asdict()) from None
