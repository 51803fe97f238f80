"""A device's INTx pin: a level that KVM drops when the guest acknowledges it, and asks about again."""

from __future__ import annotations

import os

from bellwire_vmm.machine.gsis import intx_gsi
from bellwire_vmm.machine.platform import Platform
from vfio_user import Client, IrqIndex


class IntxLine:
    """INT``pin`` of ``slot``, as KVM and the device share it: one eventfd raises it, another one re-arms it.

    At the guest's end of interrupt KVM lowers the line and writes the resample eventfd; the device, for which
    that is SET_IRQS with UNMASK, raises it again if it still wants attention. A software-virtualised KVM may
    do so as it delivers the interrupt, before the guest has seen it: then the line comes once more than it was
    raised, as shared lines do, and a driver asks its device.
    """

    def __init__(self, platform: Platform, client: Client, slot: int, pin: int) -> None:
        self.gsi = intx_gsi(slot, pin)
        self._platform = platform
        self._client = client
        self._fds: tuple[int, int] | None = None

    def connect(self) -> None:
        """Wire it up."""
        raised, resample = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
        self._fds = raised, resample
        self._platform.vm.irqfd(raised, self.gsi, resample)
        self._client.trigger_eventfds(IrqIndex.INTX, 0, [raised])
        self._client.unmask_eventfd(resample)

    def disconnect(self, *, tell: bool = True) -> None:
        """Take it away; without ``tell``, a device that is gone need not hear."""
        if self._fds is None:
            return
        raised, resample = self._fds
        self._fds = None
        try:
            if tell:
                self._client.disable(IrqIndex.INTX)
        finally:
            self._platform.vm.irqfd_deassign(raised, self.gsi)
            os.close(raised)
            os.close(resample)
