"""Interrupts: DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS, and the table of eventfds that a server signals."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import eventfd_write

from vfio_user.constants import IrqFlags, IrqIndex, SetIrqsFlags
from vfio_user.errors import ProtocolError
from vfio_user.eventfds import SIZE, is_eventfd, signal, take
from vfio_user.fields import Fields
from vfio_user.ledger import Estate, Kept, Ledger

# Plain ints: an operator of IntFlag costs about 1 µs, and ~ clears unknown bits.
_NONE, _BOOL, _EVENTFD = int(SetIrqsFlags.DATA_NONE), int(SetIrqsFlags.DATA_BOOL), int(SetIrqsFlags.DATA_EVENTFD)
_MASK, _UNMASK, _TRIGGER = int(SetIrqsFlags.MASK), int(SetIrqsFlags.UNMASK), int(SetIrqsFlags.TRIGGER)
_KINDS, _ACTIONS = int(SetIrqsFlags.data_kinds()), int(SetIrqsFlags.actions())
_INTX = int(IrqIndex.INTX)
_OF_GUESTS = frozenset((_INTX, int(IrqIndex.MSI), int(IrqIndex.MSIX)))

INFO = Fields("<IIII", "argsz flags index count")
SET = Fields("<IIIII", "argsz flags index start count")


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """What DEVICE_GET_IRQ_INFO answers about one kind of interrupt: ``count`` interrupts, with ``flags``."""

    index: int
    count: int
    flags: IrqFlags

    def pack(self) -> bytes:
        """The reply's 16 bytes."""
        return INFO.pack(INFO.size, self.flags, self.index, self.count)

    @classmethod
    def unpack(cls, payload: memoryview) -> IrqInfo:
        """Decode a reply. Raises ProtocolError if it is too short."""
        if len(payload) < INFO.size:
            raise ProtocolError(f"DEVICE_GET_IRQ_INFO reply: {len(payload)} bytes, expected {INFO.size}")
        _, flags, index, count = INFO.unpack_from(payload)
        return cls(index, count, IrqFlags(flags))


@dataclass(slots=True)
class SetIrqs:
    """A DEVICE_SET_IRQS request for interrupts ``[start, start + count)``. ``data`` has the bytes of DATA_BOOL."""

    flags: int
    """Bits of :class:`~vfio_user.constants.SetIrqsFlags`."""
    index: int
    start: int
    count: int
    data: bytes = b""

    def pack(self) -> bytes:
        """The request's payload."""
        return SET.pack(SET.size + len(self.data), self.flags, self.index, self.start, self.count) + self.data

    @classmethod
    def unpack(cls, payload: memoryview) -> SetIrqs:
        """The request in ``payload``. Raises ProtocolError if flags or lengths are wrong."""
        if len(payload) < SET.size:
            raise ProtocolError(f"DEVICE_SET_IRQS: {len(payload)} bytes, expected at least {SET.size}")
        argsz, flags, index, start, count = SET.unpack_from(payload)
        if not SET.size <= argsz <= len(payload):
            raise ProtocolError(f"DEVICE_SET_IRQS: argsz {argsz}, but {len(payload)} bytes came")
        kinds, actions = flags & _KINDS, flags & _ACTIONS
        if flags & ~(_KINDS | _ACTIONS) or kinds.bit_count() != 1 or actions.bit_count() != 1:
            raise ProtocolError(f"DEVICE_SET_IRQS: flags {flags:#x}, expected one kind of data and one action")
        data = payload[SET.size :]
        if kinds == _BOOL and len(data) < count:
            raise ProtocolError(f"DEVICE_SET_IRQS: {len(data)} bytes of data for count {count}")
        return cls(flags, index, start, count, bytes(data[:count]) if kinds == _BOOL else b"")


class _Irq:
    """One interrupt: the client's eventfd, if it has one, whether it is masked, and whether a trigger is pending."""

    __slots__ = ("at", "fd", "masked", "pending")

    def __init__(self, at: int) -> None:
        self.at = at
        self.fd: int | None = None
        self.masked = False
        self.pending = False


class IrqTable:
    """The interrupts of one device, as one client has set them up. The table owns and closes its eventfds.

    ``watch`` and ``unwatch`` add a descriptor to the caller's event loop and remove it. The table uses them for the
    MASK and UNMASK eventfds of INTx, which the client writes. ``by_message`` signals a vector that has no eventfd, in
    a dialect that can; it returns whether that was possible. ``flags`` has a byte for each
    interrupt, in memory that outlives the process: bit 0 is masked, bit 1 is pending. Interrupts beyond its end are
    forgotten with the process.
    """

    def __init__(
        self,
        counts: Sequence[int],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        ledger: Ledger | None = None,
        by_message: Callable[[int], bool] | None = None,
        flags: memoryview | None = None,
    ) -> None:
        self._ledger = ledger or Ledger()
        self._by_message = by_message
        self._flags = memoryview(bytearray(sum(counts))) if flags is None else flags
        places = itertools.count()
        self._irqs = [[_Irq(next(places)) for _ in range(count)] for count in counts]
        self._watch = watch
        self._unwatch = unwatch
        self._line_fds: dict[int, int] = {}  # MASK and UNMASK of INTx: the client writes these
        self._counter = bytearray(SIZE)
        self._level = False
        self._raised = False  # INTx has been signalled and not been unmasked since

    def apply(self, request: SetIrqs, fds: list[int]) -> None:
        """Carry out DEVICE_SET_IRQS. Takes the fds that it keeps out of ``fds``; the caller closes the others.

        Raises ProtocolError if the request does not fit the device; ENOTSUP for an eventfd that masks MSI or MSI-X.
        """
        if request.index >= len(self._irqs):
            raise ProtocolError(f"DEVICE_SET_IRQS: index {request.index}, expected 0 to {len(self._irqs) - 1}")
        row = self._irqs[request.index]
        flags, start, count = request.flags, request.start, request.count
        if count == 0:
            self._disable(request, row)
            return
        if start >= len(row) or count > len(row) - start:
            raise ProtocolError(
                f"DEVICE_SET_IRQS: [{start}, {start + count}) of index {request.index}, which has {len(row)}"
            )
        if flags & _EVENTFD:
            self._set_eventfds(request, row, fds)
            return
        if fds:
            raise ProtocolError(f"DEVICE_SET_IRQS: {len(fds)} fds without DATA_EVENTFD")
        for number, irq in enumerate(row[start : start + count]):
            if flags & _BOOL and not request.data[number]:
                continue
            if flags & _TRIGGER:
                self._loop_back(request.index, irq)
            elif flags & _MASK:
                irq.masked = True
                self._note(irq)
            else:
                self._unmask(request.index, irq)

    def trigger(self, index: int, vector: int) -> bool:
        """Signal an interrupt. Returns False, and keeps it pending, if it is masked or has no eventfd."""
        irq = self._irqs[index][vector]
        if irq.masked or irq.fd is None:
            by_message = self._by_message if index in _OF_GUESTS and not irq.masked else None
            if by_message is not None and by_message(vector):
                return True
            irq.pending = True
            self._note(irq)
            return False
        try:  # signal(), without its call
            eventfd_write(irq.fd, 1)
        except BlockingIOError:
            return True
        return True

    def set_level(self, asserted: bool) -> None:
        """Drive the INTx line. It is signalled once, and again after each unmask while it is still asserted."""
        self._level = asserted
        if not asserted and _UNMASK not in self._line_fds:
            self._raised = False  # no UNMASK eventfd: the guest's EOI is not reported, so the next edge counts
        self._raise_line()

    def pending(self, index: int, vector: int) -> bool:
        """Whether a trigger of this interrupt is pending."""
        return self._irqs[index][vector].pending

    def fd(self, index: int, vector: int) -> int | None:
        """The eventfd of an interrupt, for others to signal; None if it is masked or has none. The table owns it."""
        irq = self._irqs[index][vector]
        return None if irq.masked else irq.fd

    def take_over(self, estate: Estate) -> None:
        """Use the eventfds that the table of another process has kept in its ledger. This table has none yet."""
        for key, note in estate.below("irq"):
            self._irqs[note["index"]][note["vector"]].fd = estate.take(key)[0]
        for row in self._irqs:
            for irq in row:
                flags = self._flags[irq.at] if irq.at < len(self._flags) else 0
                irq.masked, irq.pending = bool(flags & 1), bool(flags & 2)
                if row is not self._irqs[_INTX]:
                    self._deliver(irq)
        for key, note in estate.below("line"):
            self._watch_line(note["action"], estate.take(key)[0])

    def enabled(self, index: int) -> bool:
        """Whether any interrupt of this kind has an eventfd."""
        return any(irq.fd is not None for irq in self._irqs[index])

    def clear(self) -> None:
        """Forget the client's whole set-up, and close its eventfds."""
        for row in self._irqs:
            for irq in row:
                self._assign(irq, None)
                irq.masked = irq.pending = False
        self._drop_line_fds()

    def _disable(self, request: SetIrqs, row: list[_Irq]) -> None:
        if request.start or not request.flags & _NONE or not request.flags & _TRIGGER:
            raise ProtocolError("DEVICE_SET_IRQS: count 0 is for disabling: DATA_NONE, TRIGGER, start 0")
        self._ledger.drop(*(_key(request.index, vector) for vector, irq in enumerate(row) if irq.fd is not None))
        for irq in row:
            self._assign(irq, None)
            irq.masked = irq.pending = False
            self._note(irq)
        if request.index == _INTX:
            self._ledger.drop(*map(_line_key, self._line_fds))
            self._drop_line_fds()

    def _set_eventfds(self, request: SetIrqs, row: list[_Irq], fds: list[int]) -> None:
        if fds and len(fds) != request.count:
            raise ProtocolError(f"DEVICE_SET_IRQS: {len(fds)} fds for count {request.count}; expected all or none")
        for fd in fds:
            _check_eventfd(fd)
        if request.flags & _TRIGGER:
            self._tell(request, fds)
            taken: list[int | None] = list(fds) or [None] * request.count
            fds.clear()
            for irq, own in zip(row[request.start :], taken, strict=False):
                self._assign(irq, own)
                if request.index != _INTX:
                    self._deliver(irq)
            if request.index == _INTX:
                self._raised = False
                self._raise_line()
        elif request.index == _INTX:
            action = request.flags & _ACTIONS
            if fds:
                self._ledger.keep(Kept(_line_key(action), {"action": action}, (fds[0],)))
            else:
                self._ledger.drop(_line_key(action))
            self._set_line_fd(action, fds.pop(0) if fds else None)
        else:
            raise ProtocolError("DEVICE_SET_IRQS: an eventfd can mask or unmask INTx only", errno.ENOTSUP)

    def _tell(self, request: SetIrqs, fds: list[int]) -> None:
        """Tell the ledger, if there is one, of the eventfds that the client sets or takes away."""
        if type(self._ledger) is Ledger:
            return
        index, start = request.index, request.start
        if not fds:
            self._ledger.drop(*(_key(index, start + number) for number in range(request.count)))
            return
        vectors = enumerate(fds, start)
        self._ledger.keep(
            *(Kept(_key(index, vector), {"index": index, "vector": vector}, (fd,)) for vector, fd in vectors)
        )

    def _assign(self, irq: _Irq, fd: int | None) -> None:
        if irq.fd is not None:
            os.close(irq.fd)
        irq.fd = fd

    def _note(self, irq: _Irq) -> None:
        """Note for a successor whether the interrupt is masked, and whether it is pending."""
        if irq.at < len(self._flags):
            self._flags[irq.at] = irq.masked | irq.pending << 1

    def _deliver(self, irq: _Irq) -> None:
        if irq.fd is not None and irq.pending and not irq.masked:
            signal(irq.fd)
            irq.pending = False
            self._note(irq)

    def _loop_back(self, index: int, irq: _Irq) -> None:
        """Handle a TRIGGER by the client: signal the interrupt back to it."""
        if irq.fd is not None and not irq.masked:
            signal(irq.fd)
            self._raised |= index == _INTX
        else:
            irq.pending = True
            self._note(irq)

    def _unmask(self, index: int, irq: _Irq) -> None:
        irq.masked = False
        self._note(irq)
        if index == _INTX:
            self._raised = False
            self._raise_line()
        else:
            self._deliver(irq)

    def _raise_line(self) -> None:
        for line in self._irqs[_INTX][:1]:
            if (line.fd is None and self._by_message is None) or line.masked or self._raised:
                continue
            if self._level or line.pending:
                if line.fd is not None:
                    signal(line.fd)
                elif self._by_message is None or not self._by_message(0):
                    continue
                self._raised, line.pending = True, False
                self._note(line)

    def _set_line_fd(self, action: int, fd: int | None) -> None:
        old = self._line_fds.pop(action, None)
        if old is not None:
            self._unwatch(old)
            os.close(old)
        if fd is not None:
            self._watch_line(action, fd)

    def _watch_line(self, action: int, fd: int) -> None:
        self._line_fds[action] = fd
        self._watch(fd, lambda: self._line_rung(action))

    def _drop_line_fds(self) -> None:
        for action in tuple(self._line_fds):
            self._set_line_fd(action, None)
        self._raised = False

    def _line_rung(self, action: int) -> None:
        """Handle a write to the MASK or UNMASK eventfd of INTx. (The ratified text gives the opposite direction.)"""
        fd = self._line_fds.get(action)
        if fd is None:
            return  # the client has de-assigned it since the wake-up
        if not take(fd, self._counter):
            return
        line = self._irqs[_INTX][0]
        if action == _MASK:
            line.masked = True
            self._note(line)
        else:
            self._unmask(_INTX, line)


def _key(index: int, vector: int) -> str:
    """The ledger's key of an interrupt."""
    return f"irq {index} {vector}"


def _line_key(action: int) -> str:
    """The ledger's key of an eventfd that the client writes."""
    return f"line {action}"


def _check_eventfd(fd: int) -> None:
    """Make an irq fd non-blocking. Raises ProtocolError if it is no eventfd: a write to it might block or fail."""
    if not is_eventfd(fd):
        raise ProtocolError("DEVICE_SET_IRQS: an fd is not an eventfd")
    os.set_blocking(fd, False)
