"""Why a vCPU came back: one class per reason (api.rst 5, `struct kvm_run`), decoded from the shared page.

The classes are slotted but not frozen: freezing would triple the cost of making one, on the hottest path.
An exit that wants an answer (a read, a port read, an MSR) has `reply`; give it before the next `run()`.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

# Offsets in `struct kvm_run`. The union holds what each reason adds.
_REASON, _UNION = 8, 32
_MMIO_DATA = _UNION + 8

_U32 = struct.Struct("=I")
_MMIO = struct.Struct("=Q8sIB")
_IO = struct.Struct("=BBHIQ")
_DEBUG = struct.Struct("=I4xQQQ")
_FAIL_ENTRY = struct.Struct("=QI")
_WORDS = struct.Struct("=II16Q")
_INSTRUCTION = struct.Struct("=16xB15s")
_MSR_ERROR = struct.Struct("=B")
_MSR = struct.Struct("=8xIIQ")
_MEMORY_FAULT = struct.Struct("=QQQ")

_EMULATION = 1
_HAS_INSTRUCTION = 1


class ExitReason(IntEnum):
    """KVM_EXIT_*: those that have a class here."""

    IO = 2
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    IOAPIC_EOI = 26
    X86_RDMSR = 29
    X86_WRMSR = 30
    MEMORY_FAULT = 39


@dataclass(slots=True)
class MmioRead:
    """The guest reads `size` bytes (1-8) at guest-physical `addr`, where there is no memory."""

    addr: int
    size: int
    _page: mmap.mmap = field(repr=False, compare=False)

    def reply(self, data: bytes) -> None:
        """Give the guest its `size` bytes, in memory order."""
        _fill(self._page, _MMIO_DATA, self.size, data)


@dataclass(slots=True)
class MmioWrite:
    """The guest wrote `data` (1-8 bytes, memory order) at guest-physical `addr`, where there is no memory."""

    addr: int
    data: bytes


@dataclass(slots=True)
class IoIn:
    """The guest reads I/O `port`, `count` times `size` (1, 2 or 4) bytes: `rep ins` counts more than once."""

    port: int
    size: int
    count: int
    _page: mmap.mmap = field(repr=False, compare=False)
    _offset: int = field(repr=False, compare=False)

    def reply(self, data: bytes) -> None:
        """Give the guest its `size * count` bytes, in memory order."""
        _fill(self._page, self._offset, self.size * self.count, data)


@dataclass(slots=True)
class IoOut:
    """The guest wrote I/O `port`, `count` times `size` (1, 2 or 4) bytes, all of them in `data`."""

    port: int
    size: int
    count: int
    data: bytes


@dataclass(slots=True)
class Hlt:
    """The guest halted. With an in-kernel irqchip KVM waits by itself and this is never seen."""


@dataclass(slots=True)
class Shutdown:
    """A triple fault, or the like of it: the guest cannot go on."""


@dataclass(slots=True)
class Interrupted:
    """A signal or `Vcpu.kick` ended the run; nothing happened to the guest, and the next `run()` goes on.

    It may come without a kick (any signal to the thread will do), and several kicks may be answered by one.
    """


@dataclass(slots=True)
class IrqWindowOpen:
    """`Vcpu.request_interrupt_window` was set, and the guest would now take an interrupt."""


@dataclass(slots=True)
class InternalError:
    """KVM gave up; most often (`suberror` 1) it met an instruction that it cannot emulate.

    `data` is what the kernel adds, `instruction` the bytes at RIP that it could not emulate, empty where it
    does not say.
    """

    suberror: int
    data: tuple[int, ...]
    instruction: bytes


@dataclass(slots=True)
class FailEntry:
    """The hardware refused to enter the guest for `reason`, on host CPU `cpu`."""

    reason: int
    cpu: int


@dataclass(slots=True)
class SystemEvent:
    """The guest asked for something to be done to the machine: 1 shut down, 2 reset, 3 it crashed, ..."""

    type: int
    data: tuple[int, ...]


@dataclass(slots=True)
class Debug:
    """A breakpoint or a single step that `Vcpu.set_guest_debug` asked for."""

    exception: int
    pc: int
    dr6: int
    dr7: int


@dataclass(slots=True)
class MsrRead:
    """The guest reads MSR `index`; seen only with KVM_CAP_X86_USER_SPACE_MSR."""

    index: int
    reason: int
    _page: mmap.mmap = field(repr=False, compare=False)

    def reply(self, value: int) -> None:
        """Give the guest the MSR's value."""
        _MSR_ERROR.pack_into(self._page, _UNION, 0)
        self._page[_UNION + 16 : _UNION + 24] = value.to_bytes(8, "little")

    def fail(self) -> None:
        """Give the guest a #GP instead."""
        _MSR_ERROR.pack_into(self._page, _UNION, 1)


@dataclass(slots=True)
class MsrWrite:
    """The guest writes `value` to MSR `index`; seen only with KVM_CAP_X86_USER_SPACE_MSR."""

    index: int
    reason: int
    value: int
    _page: mmap.mmap = field(repr=False, compare=False)

    def fail(self) -> None:
        """Give the guest a #GP."""
        _MSR_ERROR.pack_into(self._page, _UNION, 1)


@dataclass(slots=True)
class MemoryFault:
    """An access to `size` bytes at guest-physical `gpa` that KVM could not resolve (`flags`: 8 = private)."""

    flags: int
    gpa: int
    size: int


@dataclass(slots=True)
class IoapicEoi:
    """The guest acknowledged `vector`; seen only with a split irqchip."""

    vector: int


@dataclass(slots=True)
class Unknown:
    """An exit that has no class here: `reason` is its KVM_EXIT_* number, `detail` what follows it."""

    reason: int
    detail: bytes


Exit = (
    MmioRead
    | MmioWrite
    | IoIn
    | IoOut
    | Hlt
    | Shutdown
    | Interrupted
    | IrqWindowOpen
    | InternalError
    | FailEntry
    | SystemEvent
    | Debug
    | MsrRead
    | MsrWrite
    | MemoryFault
    | IoapicEoi
    | Unknown
)


def decode(page: mmap.mmap) -> Exit:
    """Return what `struct kvm_run` in `page` says about the run that just ended."""
    reason = exit_reason(page)
    decoder = _DECODERS.get(reason)
    return decoder(page) if decoder else Unknown(reason, page[_UNION : _UNION + 64])


def exit_reason(page: mmap.mmap) -> int:
    """Return the KVM_EXIT_* number in `page`."""
    (reason,) = _U32.unpack_from(page, _REASON)
    return int(reason)


def _fill(page: mmap.mmap, offset: int, size: int, data: bytes) -> None:
    if len(data) != size:
        raise ValueError(f"the guest reads {size} bytes, but the reply has {len(data)}")
    page[offset : offset + size] = data


def _mmio(page: mmap.mmap) -> MmioRead | MmioWrite:
    addr, data, size, is_write = _MMIO.unpack_from(page, _UNION)
    return MmioWrite(addr, data[:size]) if is_write else MmioRead(addr, size, page)


def _io(page: mmap.mmap) -> IoIn | IoOut:
    is_out, size, port, count, offset = _IO.unpack_from(page, _UNION)
    if is_out:
        return IoOut(port, size, count, page[offset : offset + size * count])
    return IoIn(port, size, count, page, offset)


def _internal_error(page: mmap.mmap) -> InternalError:
    suberror, count, *data = _WORDS.unpack_from(page, _UNION)
    data = data[:count]
    instruction = b""
    if suberror == _EMULATION and data and data[0] & _HAS_INSTRUCTION:
        size, code = _INSTRUCTION.unpack_from(page, _UNION)
        instruction = code[:size]
    return InternalError(suberror, tuple(data), instruction)


def _system_event(page: mmap.mmap) -> SystemEvent:
    kind, count, *data = _WORDS.unpack_from(page, _UNION)
    return SystemEvent(kind, tuple(data[:count]))


def _msr_read(page: mmap.mmap) -> MsrRead:
    reason, index, _value = _MSR.unpack_from(page, _UNION)
    return MsrRead(index, reason, page)


def _msr_write(page: mmap.mmap) -> MsrWrite:
    reason, index, value = _MSR.unpack_from(page, _UNION)
    return MsrWrite(index, reason, value, page)


_DECODERS: dict[int, Callable[[mmap.mmap], Exit]] = {
    ExitReason.IO: _io,
    ExitReason.DEBUG: lambda page: Debug(*_DEBUG.unpack_from(page, _UNION)),
    ExitReason.HLT: lambda page: Hlt(),
    ExitReason.MMIO: _mmio,
    ExitReason.IRQ_WINDOW_OPEN: lambda page: IrqWindowOpen(),
    ExitReason.SHUTDOWN: lambda page: Shutdown(),
    ExitReason.FAIL_ENTRY: lambda page: FailEntry(*_FAIL_ENTRY.unpack_from(page, _UNION)),
    ExitReason.INTR: lambda page: Interrupted(),
    ExitReason.INTERNAL_ERROR: _internal_error,
    ExitReason.SYSTEM_EVENT: _system_event,
    ExitReason.IOAPIC_EOI: lambda page: IoapicEoi(page[_UNION]),
    ExitReason.X86_RDMSR: _msr_read,
    ExitReason.X86_WRMSR: _msr_write,
    ExitReason.MEMORY_FAULT: lambda page: MemoryFault(*_MEMORY_FAULT.unpack_from(page, _UNION)),
}
