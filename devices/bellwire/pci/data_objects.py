"""DOE: a mailbox in config space for objects of any kind (§7.9.24). A guest sends one, and reads the answer (§6.30).

An object has two dwords of header: the vendor and the type of its protocol, and its length in dwords, header included.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from bellwire.declare.capability import ExtendedCapability
from bellwire.declare.hooks import mark
from vfio_user import IrqIndex

if TYPE_CHECKING:
    from bellwire.declare.layout import Layout
    from bellwire.device import PciDevice
    from bellwire.model.core import Core

Hook = TypeVar("Hook", bound=Callable[[Any, int, int, bytes], "bytes | None"])

HEADER = 8
DWORD = 4
LARGEST = 1 << 20
"""Bytes of the largest object: 2^18 dwords (§6.30.1)."""
DISCOVERY = 0x0001, 0x00
"""Vendor and type of the protocol that every mailbox has: it lists the others (§6.30.1.1)."""
_ABORT, _INTERRUPT_ENABLE, _GO = 1 << 0, 1 << 1, 1 << 31
_BUSY, _INTERRUPT, _ERROR, _READY = 1 << 0, 1 << 1, 1 << 2, 1 << 31
_LENGTH = (1 << 18) - 1
_INTERRUPTS, _VECTOR = 1 << 0, 1
_HEADER = struct.Struct("<HBBI")
_SENT, _ANSWER, _READ = range(3)  # dwords sent, dwords of the answer, dwords of it that the guest has taken


class DataObject(NamedTuple):
    """An object that a guest has sent: the vendor and type of its protocol, and what follows the header."""

    vendor: int
    kind: int
    data: bytes


class Doe(ExtendedCapability):
    """``mailbox = Doe((0x1234, 0x01))``: a mailbox that serves these protocols, each a vendor and a type.

    The hook that is tied by ``@mailbox.request`` answers objects. The SDK answers discovery. ``vector`` is the MSI-X
    vector, or else the MSI message, that the mailbox interrupts by; without one it does not interrupt. ``largest`` is
    the most bytes of an object that the mailbox takes or gives, header included. A function may have several
    mailboxes. On an instance it is a :class:`Mailbox`.
    """

    number = 0x2E
    several = True
    title = "data object exchange (DOE)"

    def __init__(self, *protocols: tuple[int, int], vector: int | None = None, largest: int = 4096) -> None:
        super().__init__(0x18)
        self.protocols = (DISCOVERY, *protocols)
        self.vector = vector
        self.largest = largest
        able = 0 if vector is None else _INTERRUPTS | vector << _VECTOR
        self.able = self.own("capability", 0x04, reset=able & 0xFFFF_FFFF)
        enable = 0 if vector is None else _INTERRUPT_ENABLE
        self.control = self.own("control", 0x08, access="rw", writable=enable)
        self.status = self.own("status", 0x0C, access="w1c", writable=_INTERRUPT)
        self.outbox = self.own("write_mailbox", 0x10, access="wo")
        self.inbox = self.own("read_mailbox", 0x14, access="rw")
        self.handled = [("write", self.control), ("write", self.outbox), ("read", self.inbox), ("write", self.inbox)]
        self.counts = self.own_bytes("counts", 3 * DWORD)
        self.sent = self.own_bytes("object", max(largest, HEADER))
        self.answer = self.own_bytes("answer", max(largest, HEADER))

    def check(self, where: str) -> None:
        """Refuse protocols, sizes and vectors that the capability or an object cannot express."""
        for each in self.protocols:
            vendor, kind = each
            if not (0 <= vendor <= 0xFFFF and 0 <= kind <= 0xFF):
                self.refuse(where, f"a protocol is a vendor of 16 bits and a type of 8 bits, not {each}")
        if len(set(self.protocols)) < len(self.protocols):
            self.refuse(where, "it names a protocol twice (discovery is always there)")
        if len(self.protocols) > 0x100:
            self.refuse(where, f"discovery can list 256 protocols, itself included, not {len(self.protocols)}")
        if not HEADER <= self.largest <= LARGEST or self.largest % DWORD:
            self.refuse(where, f"largest is a multiple of 4 from {HEADER} to {LARGEST} bytes, not {self.largest}")

    def check_among(self, where: str, layout: Layout) -> None:
        """Refuse a vector that the device does not have, and protocols that no hook answers."""
        super().check_among(where, layout)
        declared = layout.msix or layout.msi
        count = 0 if declared is None else declared.count
        if self.vector is not None and not 0 <= self.vector < count:
            self.refuse(where, f"it interrupts by vector {self.vector}, and the device has {count}")
        if len(self.protocols) > 1 and ("request", self) not in layout.hooks:
            self.refuse(where, f"nothing answers its objects: write @{self.name}.request above the method that does")

    def request(self, hook: Hook) -> Hook:
        """Run ``hook(self, vendor, kind, data)`` for an object of one of the protocols, and send what it returns.

        ``data`` is what follows the header. The hook returns the data of the answer, which has the same protocol.
        With None the mailbox stays busy until :meth:`Mailbox.answer`. If the hook raises, DOE Error is set.
        """
        return mark(hook, "request", self)

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Doe: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> Mailbox: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Doe | Mailbox:
        return self if device is None else device.core.part(self)

    def part(self, core: Core) -> Mailbox:
        """The mailbox of an instance."""
        return Mailbox(core, self)


class Mailbox:
    """A mailbox of one device. It has room for one object and for one answer."""

    def __init__(self, core: Core, declared: Doe) -> None:
        self._core = core
        self._declared = declared
        self._content = core.state.registers[declared]
        saved = core.state.saved
        self._counts = saved[declared.counts].cast("I")
        self._sent = saved[declared.sent][: declared.largest]
        self._answer = saved[declared.answer][: declared.largest]
        core.tie("write", declared.control, self._controlled)
        core.tie("write", declared.outbox, self._append)
        core.tie("read", declared.inbox, self._look)
        core.tie("write", declared.inbox, self._take)

    @property
    def busy(self) -> bool:
        """Whether an object waits for its answer."""
        return bool(self._status & _BUSY)

    @property
    def pending(self) -> DataObject | None:
        """The object that waits for its answer; None if none does. ``restored()`` may start its work again."""
        return self._object() if self.busy else None

    def answer(self, data: bytes) -> bool:
        """Answer the object that waits. ``data`` is filled up to whole dwords with zeros.

        False if none waits: the guest has given it up, or the device was reset. A ValueError if the answer is larger
        than the mailbox's ``largest``.
        """
        waiting = self.pending
        if waiting is None:
            return False
        self._status &= ~_BUSY
        self._ready(waiting, data)
        return True

    def _controlled(self, value: int) -> None:
        """The guest has written DOE Control: abort, or go (§6.30.2). Both bits read as zero."""
        if value & _ABORT:
            self._clear()
            self._status &= ~(_BUSY | _ERROR | _READY)
        elif value & _GO:
            if self._status & (_BUSY | _READY):
                self._fail()
            elif not self._status & _ERROR:
                self._go()

    def _append(self, value: int) -> None:
        """The guest has written the next dword of an object."""
        if self._status & _ERROR:
            return
        at = self._counts[_SENT] * DWORD
        if self._status & (_BUSY | _READY) or at + DWORD > len(self._sent):
            self._fail()
            return
        self._sent[at : at + DWORD] = value.to_bytes(DWORD, "little")
        self._counts[_SENT] += 1

    def _look(self) -> int:
        """The dword of the answer that is next; 0 if there is none."""
        if not self._status & _READY or self._status & _ERROR:
            return 0
        at = self._counts[_READ] * DWORD
        return int.from_bytes(self._answer[at : at + DWORD], "little")

    def _take(self, _: int) -> None:
        """The guest has written the read mailbox: it has taken a dword."""
        if self._status & _ERROR:
            return
        if not self._status & _READY:
            self._fail()
            return
        taken = self._counts[_READ] + 1
        if taken < self._counts[_ANSWER]:
            self._counts[_READ] = taken
        else:
            self._clear()
            self._status &= ~_READY

    def _go(self) -> None:
        """The object is complete. One of another length than it says, or of an unknown protocol, is discarded."""
        received = self._object()
        words = self._counts[_SENT]
        says = int.from_bytes(self._sent[DWORD:HEADER], "little") & _LENGTH
        if received is None or (says or _LENGTH + 1) != words:
            self._clear()
            return
        if (received.vendor, received.kind) not in self._declared.protocols:
            self._clear()
            return
        if (received.vendor, received.kind) == DISCOVERY:
            self._discover(received)
            return
        hook = self._core.hook(("request", self._declared))
        assert hook is not None  # check_among() has seen to that
        self._status |= _BUSY
        failed = True
        try:
            data = self._core.call(hook, *received)
            failed = False
        finally:
            if failed:
                self._status &= ~_BUSY
                self._fail()
        if data is not None:
            self.answer(data)

    def _discover(self, received: DataObject) -> None:
        """Answer with the protocol of the index that is asked for, and the next index; 0 at the end (§6.30.1.1)."""
        protocols = self._declared.protocols
        if len(received.data) != DWORD:
            self._clear()
            return
        index = received.data[0]
        vendor, kind = protocols[index] if index < len(protocols) else (0xFFFF, 0xFF)
        following = index + 1 if index + 1 < len(protocols) else 0
        self._ready(received, struct.pack("<HBB", vendor, kind, following))

    def _ready(self, received: DataObject, data: bytes) -> None:
        padded = data.ljust(-(-len(data) // DWORD) * DWORD, b"\0")
        size = HEADER + len(padded)
        if size > len(self._answer):
            self._fail()
            raise ValueError(f"{self._declared}: an answer of {size} bytes, at most {len(self._answer)}")
        self._answer[:HEADER] = _HEADER.pack(received.vendor, received.kind, 0, size // DWORD & _LENGTH)
        self._answer[HEADER:size] = padded
        self._counts[_ANSWER], self._counts[_READ] = size // DWORD, 0
        self._status |= _READY
        self._interrupt()

    def _object(self) -> DataObject | None:
        size = self._counts[_SENT] * DWORD
        if not HEADER <= size <= len(self._sent):
            return None
        vendor, kind, _, _ = _HEADER.unpack_from(self._sent)
        return DataObject(vendor, kind, bytes(self._sent[HEADER:size]))

    def _fail(self) -> None:
        self._status |= _ERROR
        self._interrupt()

    def _clear(self) -> None:
        for count in (_SENT, _ANSWER, _READ):
            self._counts[count] = 0

    def _interrupt(self) -> None:
        """Set DOE Interrupt Status, and interrupt when it becomes one (§6.30.3)."""
        core, vector = self._core, self._declared.vector
        if vector is None or not self._declared.control.load(self._content) & _INTERRUPT_ENABLE:
            return
        before, self._status = self._status, self._status | _INTERRUPT
        if not before & _INTERRUPT and core.config.bus_master:
            core.signals.trigger(IrqIndex.MSIX if core.layout.msix else IrqIndex.MSI, vector)

    @property
    def _status(self) -> int:
        return self._declared.status.load(self._content)

    @_status.setter
    def _status(self, value: int) -> None:
        self._declared.status.store(self._content, value)
