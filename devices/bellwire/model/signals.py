"""The interrupts of a device at run time: vectors, mask and pending bits, and the INTx level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bellwire.declare.interrupts import ENTRY
from bellwire.errors import GuestError
from bellwire.model.state import TABLE_WORD
from vfio_user import IrqIndex

if TYPE_CHECKING:
    from bellwire.model.core import Core

CONTROL = 12  # offset of Vector Control in a table entry
MASKED = 1
_MSIX = IrqIndex.MSIX


class Vector:
    """One MSI or MSI-X vector of one device."""

    __slots__ = ("_signals", "index", "number")

    def __init__(self, signals: Signals, index: IrqIndex, number: int) -> None:
        self._signals = signals
        self.index = index
        self.number = number

    @property
    def fd(self) -> int | None:
        """The eventfd that interrupts the guest, for somebody else to signal. It belongs to the client's set-up.

        None while a signal must not reach the guest: bus mastering or this kind of interrupt is off, the vector is
        masked, or the client has set no eventfd. ``wires_changed`` tells when to ask again.
        """
        return self._signals.fd(self.index, self.number)

    def trigger(self) -> None:
        """Interrupt the guest. A masked MSI-X vector stays pending, and is sent when the guest unmasks it.

        A GuestError if the guest has bus mastering off.
        """
        self._signals.trigger(self.index, self.number)


class Vectors:
    """All vectors of MSI or MSI-X: ``self.irq[n]``, ``len(self.irq)``, ``self.irq.enabled``."""

    def __init__(self, signals: Signals, index: IrqIndex, count: int) -> None:
        self._signals = signals
        self._index = index
        self._vectors = tuple(Vector(signals, index, number) for number in range(count))

    def __getitem__(self, number: int) -> Vector:
        return self._vectors[number]

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def enabled(self) -> bool:
        """Whether the guest has turned this kind on in config space."""
        config = self._signals.config
        return config.msix_enabled if self._index is _MSIX else config.msi_enabled


class Line:
    """The INTx line of one device. It is level-triggered: it keeps its level until device code changes it."""

    __slots__ = ("_signals",)

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    @property
    def asserted(self) -> bool:
        """Whether the device asserts the line, even if the guest has disabled INTx in the command register."""
        return self._signals.asserted

    def high(self) -> None:
        """Assert the line: the guest is interrupted until :meth:`low`."""
        self._signals.drive(True)

    def low(self) -> None:
        """Deassert the line, most often when the guest acknowledges the interrupt."""
        self._signals.drive(False)


class Signals:
    """All interrupts of one device.

    A client masks MSI-X vectors in one of two ways. QEMU and the bundled VMM hold the table themselves, and mask a
    vector by taking its eventfd away. Other clients forward the guest's accesses to the table here, and its mask bits
    count. The table here starts with all vectors masked, so its mask bits are ignored until the guest first writes it.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self.config = core.config
        declared = core.layout.msix
        self._table = core.state.msix
        self._pending = core.state.pba
        self._words = core.state.words
        self._count = declared.count if declared else 0
        self.msix = Vectors(self, IrqIndex.MSIX, self._count)
        msi = core.layout.msi
        messages = msi.count if msi else 0
        self.msi = Vectors(self, IrqIndex.MSI, messages)
        tally = core.tally
        self._sent, self._sent_msi = tally.vectors("MSI-X", self._count), tally.vectors("MSI", messages)
        self._raised = tally.vectors("INTx", 1)
        self.line = Line(self)

    @property
    def asserted(self) -> bool:
        """The INTx level that the device drives."""
        return self.config.interrupt_status

    def trigger(self, index: IrqIndex, vector: int) -> None:
        """Send a message-signalled interrupt, or leave it pending. A GuestError if bus mastering is off."""
        core, config = self._core, self.config
        if not config.bus_master:
            raise GuestError(f"{index.name} vector {vector} dropped: the guest has bus mastering off")
        if index is _MSIX:
            self._sent[vector] += 1
            masked = config.msix_function_masked or (self._words[TABLE_WORD] and self._masked(vector))
            if masked or (host := core.host) is None or not host.signal(index, vector):
                self._pending[vector >> 3] |= 1 << (vector & 7)
        else:
            self._sent_msi[vector] += 1
            if core.host is not None:
                core.host.signal(index, vector)

    def fd(self, index: IrqIndex, vector: int) -> int | None:
        """The eventfd of a vector; None while a signal must not reach the guest."""
        config, host = self.config, self._core.host
        on = config.msix_enabled and not self._masked(vector) if index is _MSIX else config.msi_enabled
        return host.interrupt_fd(index, vector) if on and config.bus_master and host is not None else None

    def drive(self, asserted: bool) -> None:
        """Set the INTx level and tell the client what it should see."""
        if asserted and not self.config.interrupt_status:
            self._raised[0] += 1
        self.config.interrupt_status = asserted
        self.relevel()

    def relevel(self) -> None:
        """Tell the client the INTx level again. It is low while MSI or MSI-X is on, or the guest has disabled INTx."""
        config = self.config
        if self._core.host is not None:
            self._core.host.level(config.interrupt_status and config.intx_enabled)

    def resend(self) -> None:
        """Send the pending vectors that are not masked. Called whenever a mask may have been cleared."""
        for vector in self._pending_vectors():
            if self.config.bus_master and not self._masked(vector):
                self._clear(vector)
                self.trigger(IrqIndex.MSIX, vector)

    def taken(self) -> None:
        """The client has changed its eventfds. Vectors that it has taken by this are not pending any more."""
        for vector in self._pending_vectors():
            host = self._core.host
            if host is not None and not self._masked(vector) and not host.undelivered(IrqIndex.MSIX, vector):
                self._clear(vector)

    def read_table(self, offset: int, size: int) -> bytes:
        """A guest's read of the MSI-X table."""
        return bytes(self._table[offset : offset + size])

    def write_table(self, offset: int, data: memoryview) -> None:
        """A guest's write to the MSI-X table. Only writes of whole dwords take effect (PCI 3.0 §6.8.2)."""
        if offset % 4 or len(data) % 4:
            return
        self._table[offset : offset + len(data)] = data
        self._core.state.table_used = True
        self.resend()
        self._core.news.wires()

    def read_pending(self, offset: int, size: int) -> bytes:
        """A guest's read of the MSI-X pending bits."""
        return bytes(self._pending[offset : offset + size])

    def is_pending(self, vector: int) -> bool:
        """Whether an MSI-X vector was triggered, and could not be sent yet."""
        return bool(self._pending[vector >> 3] >> (vector & 7) & 1)

    def _masked(self, vector: int) -> bool:
        core = self._core
        if self.config.msix_function_masked:
            return True
        return core.state.table_used and bool(self._table[ENTRY * vector + CONTROL] & MASKED)

    def _pending_vectors(self) -> list[int]:
        if not any(self._pending):
            return []
        return [vector for vector in range(self._count) if self.is_pending(vector)]

    def _clear(self, vector: int) -> None:
        self._pending[vector >> 3] &= ~(1 << (vector & 7)) & 0xFF
