"""Global system interrupts: pins 0-23 of the IOAPIC, then one for each MSI that is routed."""

from __future__ import annotations

import contextlib
import heapq
import logging
from collections.abc import Iterator

from kvm_ioctls import Capability, Irqchip, IrqchipRoute, MsiRoute, Route, Vm

_log = logging.getLogger(__name__)

IOAPIC_PINS = 24
FIRST_INTX = 16
"""INTA-D of the slots are wired to GSIs 16-19, in rotation."""


def intx_gsi(slot: int, pin: int) -> int:
    """The GSI of INT``pin`` (1 = INTA) of a slot."""
    return FIRST_INTX + (slot + pin - 1) % 4


class GsiTable:
    """KVM's interrupt routing, without the PICs: they would interrupt a guest that does not mask them.

    KVM takes a limited number of routes, 4096 on x86. A message beyond that is refused.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._most = vm.check_extension(Capability.IRQ_ROUTING) - IOAPIC_PINS
        self._free: list[int] = []
        self._taken = 0
        self._messages: dict[int, MsiRoute] = {}
        self._later = self._changed = self._full = False
        self._commit()

    def take(self) -> int:
        """Take a free GSI. It has no route yet."""
        if self._free:
            return heapq.heappop(self._free)
        self._taken += 1
        return IOAPIC_PINS + self._taken - 1

    def give_back(self, gsi: int) -> None:
        """Free what `take` returned."""
        self._messages.pop(gsi, None)
        heapq.heappush(self._free, gsi)

    def route(self, gsi: int, address: int, data: int) -> bool:
        """Route ``gsi`` to the MSI that writes ``data`` to ``address``. False if KVM has no room for another route."""
        route = MsiRoute(gsi, address, data)
        if gsi not in self._messages and len(self._messages) >= self._most:
            if not self._full:
                _log.warning("KVM takes %d routes of messages: further interrupts are never sent", self._most)
            self._full = True
            return False
        if self._messages.get(gsi) != route:
            self._messages[gsi] = route
            self._commit()
        return True

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A context in which KVM gets all changes at once, at its end: a change of a long table takes milliseconds."""
        self._later = True
        try:
            yield
        finally:
            self._later = False
            if self._changed:
                self._commit()

    def _commit(self) -> None:
        self._changed = self._later
        if self._later:
            return
        pins = (IrqchipRoute(gsi, Irqchip.IOAPIC, gsi) for gsi in range(IOAPIC_PINS))
        routes: list[Route] = [*pins, *self._messages.values()]
        self._vm.set_gsi_routing(routes)
