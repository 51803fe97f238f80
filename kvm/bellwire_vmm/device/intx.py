"""A device's INTx pin: a level that KVM lowers when the guest acknowledges it; KVM then asks the device again."""

from __future__ import annotations

import os

from bellwire_vmm.machine.gsis import intx_gsi
from bellwire_vmm.machine.platform import Platform
from vfio_user import Client, IrqIndex


class IntxLine:
    """INT``pin`` of ``slot``, shared by KVM and the device: one eventfd raises it, another one re-arms it.

    At the guest's end of interrupt, KVM lowers the line and writes the resample eventfd. The device has that eventfd
    from DEVICE_SET_IRQS with UNMASK, and raises the line again if it still asserts it. A software-virtualised KVM may
    write the resample eventfd when it delivers the interrupt, before the guest has seen it. Then the guest gets one
    interrupt more than there were causes, as on a shared line; its driver asks the device.
    """

    def __init__(self, platform: Platform, client: Client, slot: int, pin: int) -> None:
        self.gsi = intx_gsi(slot, pin)
        self._platform = platform
        self._client = client
        self._fds: tuple[int, int] | None = None

    def connect(self) -> None:
        """Connect the line: register the eventfds with KVM and hand them to the device."""
        raised, resample = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
        self._fds = raised, resample
        self._platform.vm.irqfd(raised, self.gsi, resample)
        self._client.trigger_eventfds(IrqIndex.INTX, 0, [raised])
        self._client.unmask_eventfd(resample)

    def ask_again(self) -> None:
        """Have the device raise the line again if it asserts it, as after the guest's end of interrupt."""
        if self._fds is not None:
            os.eventfd_write(self._fds[1], 1)

    def disconnect(self, *, tell: bool = True) -> None:
        """Disconnect the line. Without ``tell`` no message is sent, for a device that is gone."""
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
