"""MSI and MSI-X vectors: an eventfd that the device writes, and KVM's irqfd that turns it into a message."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bellwire_vmm.machine.platform import Platform
from vfio_user.eventfds import SIZE, take


class Message(NamedTuple):
    """What a vector sends, and whether it may be sent."""

    address: int
    data: int
    opened: bool


class Vector:
    """One message interrupt. While it is closed (masked, disabled), its eventfd keeps the device's triggers."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self._gsi = platform.gsis.take()
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._open = False

    def set(self, address: int, data: int, opened: bool) -> None:
        """Set the message, and whether it may be sent. Opening the vector delivers the triggers kept so far.

        If KVM has no room for the route, the vector stays closed.
        """
        vm = self.platform.vm
        if not opened:
            if self._open:
                vm.irqfd_deassign(self.eventfd, self._gsi)
                self._open = False
            return
        if not self.platform.gsis.route(self._gsi, address, data):
            return
        if not self._open:
            # KVM looks at the eventfd once when it takes it over, and leaves its count: the vector would look pending
            # at the next mask. So the count so far is taken out, and sent, here.
            raised = take(self.eventfd, bytearray(SIZE))
            vm.irqfd(self.eventfd, self._gsi)
            self._open = True
            if raised:
                vm.signal_msi(address, data)

    def settle(self) -> None:
        """Wait until all that the device has triggered so far has reached the guest's local APIC.

        The device must not trigger meanwhile. KVM injects some interrupts later, by a work item; only the removal of
        an irqfd waits for that.
        """
        if self._open:
            self.platform.vm.irqfd_deassign(self.eventfd, self._gsi)
            self.platform.vm.irqfd(self.eventfd, self._gsi)

    def route(self, message: Message) -> None:
        """Tell KVM of the message, if it may be sent. Within `GsiTable.together` that happens later."""
        if message.opened:
            self.platform.gsis.route(self._gsi, message.address, message.data)

    @property
    def pending(self) -> bool:
        """Whether the device has triggered it since it was closed."""
        waiter = select.poll()
        waiter.register(self.eventfd, select.POLLIN)
        return not self._open and bool(waiter.poll(0))

    def close(self) -> None:
        """Release the eventfd and the GSI."""
        self.set(0, 0, False)
        self.platform.gsis.give_back(self._gsi)
        os.close(self.eventfd)


def set_all(vectors: Sequence[Vector], messages: Iterable[Message]) -> None:
    """Set all vectors of a device, with one change of KVM's routing.

    KVM knows the routes before it takes over any eventfd: it drops what comes to an eventfd without a route.
    """
    pairs = list(zip(vectors, messages, strict=True))
    if pairs:
        with pairs[0][0].platform.gsis.together():
            for vector, message in pairs:
                vector.route(message)
    for vector, message in pairs:
        vector.set(*message)
