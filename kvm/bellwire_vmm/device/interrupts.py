"""How a device interrupts: by its INTx pin, by MSI or by MSI-X, as the guest has chosen."""

from __future__ import annotations

import os
from collections.abc import Iterable

from bellwire_vmm.device.capabilities import Msi, MsixCapability
from bellwire_vmm.device.intx import IntxLine
from bellwire_vmm.device.msix import MsixTable
from bellwire_vmm.device.vectors import Vector
from bellwire_vmm.machine.platform import Platform
from vfio_user import Client, IrqIndex

_ENABLE, _FUNCTION_MASK = 0x8000, 0x4000


class Interrupts:
    """Follows the guest's writes to a device's interrupt capabilities. One kind is connected at a time: first INTx."""

    def __init__(self, platform: Platform, client: Client, slot: int, pin: int, msix: MsixCapability | None) -> None:
        self._platform = platform
        self._client = client
        counts = {index: client.irq_info(index).count for index in (IrqIndex.INTX, IrqIndex.MSI, IrqIndex.MSIX)}
        self.pin = IntxLine(platform, client, slot, pin) if pin and counts[IrqIndex.INTX] else None
        self.msi_count = counts[IrqIndex.MSI]
        usable = msix is not None and counts[IrqIndex.MSIX] >= msix.vectors
        self.table = MsixTable(msix) if msix is not None and usable else None
        self._vectors: list[Vector] = []
        self._mode: IrqIndex | None = None
        self._switch(IrqIndex.INTX)

    def msi_changed(self, msi: Msi) -> None:
        """The guest has written to the MSI capability, which now reads ``msi``."""
        if not msi.enabled:
            if self._mode is IrqIndex.MSI:
                self._switch(IrqIndex.INTX)
            return
        count = min(msi.count, self.msi_count)
        if self._mode is not IrqIndex.MSI or len(self._vectors) != count:
            self._switch(IrqIndex.MSI, count)
        for number, vector in enumerate(self._vectors):
            data = msi.data & ~(msi.count - 1) | number
            vector.set(msi.address, data, not msi.mask >> number & 1)

    def msix_changed(self, control: int) -> None:
        """The guest has written Message Control of MSI-X, which now reads ``control``."""
        if self.table is None:
            return
        self.table.function_mask = bool(control & _FUNCTION_MASK)
        if not control & _ENABLE:
            if self._mode is IrqIndex.MSIX:
                self._switch(IrqIndex.INTX)
        elif self._mode is not IrqIndex.MSIX:
            self._switch(IrqIndex.MSIX, self.table.layout.vectors)
            self.table.connect(self._vectors)
        else:
            self.table.apply()

    def reset(self) -> None:
        """Return to the INTx pin, and mask the whole MSI-X table."""
        self._switch(IrqIndex.INTX)
        if self.table is not None:
            self.table.reset()

    @property
    def pending(self) -> list[int]:
        """The numbers of the vectors that the device has triggered, and that the guest has masked."""
        return [number for number, vector in enumerate(self._vectors) if vector.pending]

    def settle(self) -> None:
        """Wait until all that the device has sent has reached the guest's interrupt controllers."""
        for vector in self._vectors:
            vector.settle()

    def pend(self, numbers: Iterable[int]) -> None:
        """Trigger vectors, as the device did before its machine moved."""
        for number in numbers:
            os.eventfd_write(self._vectors[number].eventfd, 1)

    def ask_again(self) -> None:
        """Have the device raise its pin again if it asserts it: the level does not move with the machine."""
        if self._mode is IrqIndex.INTX and self.pin is not None:
            self.pin.ask_again()

    @property
    def connected(self) -> int:
        """How many vectors are connected."""
        return len(self._vectors)

    def close(self, *, tell: bool) -> None:
        """Disconnect everything. ``tell``: send the device the change too, for a device that still answers."""
        self._disconnect(tell=tell)

    def _switch(self, mode: IrqIndex, count: int = 0) -> None:
        self._disconnect(tell=True)
        if mode is IrqIndex.INTX:
            if self.pin is not None:
                self.pin.connect()
        else:
            self._vectors = [Vector(self._platform) for _ in range(count)]
            self._client.trigger_eventfds(mode, 0, [vector.eventfd for vector in self._vectors])
        self._mode = mode

    def _disconnect(self, *, tell: bool) -> None:
        mode, self._mode = self._mode, None
        if self.pin is not None:
            self.pin.disconnect(tell=tell)
        if self.table is not None:
            self.table.connect([])
        vectors, self._vectors = self._vectors, []
        try:
            if vectors and mode is not None and tell:
                self._client.disable(mode)
        finally:
            for vector in vectors:
                vector.close()
