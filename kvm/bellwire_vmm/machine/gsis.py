"""Global system interrupts: pins 0-23 of the IOAPIC, then one for each MSI that is routed."""

from __future__ import annotations

from kvm_ioctls import Irqchip, IrqchipRoute, MsiRoute, Route, Vm

IOAPIC_PINS = 24
FIRST_INTX = 16
"""INTA-D of the slots are wired to GSIs 16-19, in rotation."""


def intx_gsi(slot: int, pin: int) -> int:
    """The GSI of INT``pin`` (1 = INTA) of a slot."""
    return FIRST_INTX + (slot + pin - 1) % 4


class GsiTable:
    """KVM's interrupt routing, without the PICs: they would interrupt a guest that does not mask them."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._messages: dict[int, MsiRoute] = {}
        self._commit()

    def take(self) -> int:
        """Take a free GSI. It has no route yet."""
        gsi = next(
            gsi for gsi in range(IOAPIC_PINS, IOAPIC_PINS + len(self._messages) + 1) if gsi not in self._messages
        )
        self._messages[gsi] = MsiRoute(gsi, 0, 0)
        return gsi

    def give_back(self, gsi: int) -> None:
        """Free what `take` returned."""
        del self._messages[gsi]

    def route(self, gsi: int, address: int, data: int) -> None:
        """Route ``gsi`` to the MSI that writes ``data`` to ``address``."""
        route = MsiRoute(gsi, address, data)
        if self._messages[gsi] != route:
            self._messages[gsi] = route
            self._commit()

    def _commit(self) -> None:
        pins = (IrqchipRoute(gsi, Irqchip.IOAPIC, gsi) for gsi in range(IOAPIC_PINS))
        routed = (route for route in self._messages.values() if route.address)
        routes: list[Route] = [*pins, *routed]
        self._vm.set_gsi_routing(routes)
