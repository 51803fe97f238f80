"""DEVICE_GET_REGION_IO_FDS: sub-regions that a server hands over as file descriptors.

An entry has 40 bytes in the ratified text, and 48 in libvfio-user's headers. A receiver computes the distance between
entries from argsz and count, so it reads both. In the draft of January 2021 an ioregionfd's entry has 32 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vfio_user.constants import HEADER_SIZE, IoEventFdFlags, IoFdType, IoRegionFdFlags, Mechanism
from vfio_user.errors import ProtocolError
from vfio_user.fields import Fields

INFO = Fields("<IIII", "argsz flags index count")
COMMON = Fields("<QQIII", "offset size fd_index type flags")
TAIL = struct.Struct("<IQ")  # ratified: padding, then datamatch or user_data
TAIL_48 = struct.Struct("<IQQ")  # libvfio-user: shadow_mem_fd_index, shadow_offset, datamatch
TAIL_32 = struct.Struct("<I")  # draft of 2021: region_id
ENTRY, ENTRY_48, ENTRY_32 = 40, 48, 32
MOST_ENTRIES = 4096

# Plain ints: ~ of an IntFlag clears unknown bits.
DATAMATCH, PIO, CCW = (int(flag) for flag in IoEventFdFlags)
REGION_PIO, POSTED_WRITES = (int(flag) for flag in IoRegionFdFlags)


class Entries(NamedTuple):
    """How a dialect lays out the array of entries."""

    head: int
    """Bytes that argsz counts before the array."""
    region_id: int
    """Bytes of ``user_data``, or ``region_id``, in an ioregionfd's entry."""
    strides: frozenset[int]
    """The distances between entries that a client takes."""


RATIFIED_ENTRIES = Entries(INFO.size, 8, frozenset((ENTRY, ENTRY_48)))
DRAFT_ENTRIES = Entries(HEADER_SIZE + INFO.size, 4, frozenset((ENTRY_32, ENTRY)))
"""Its text counts from the header on: entry i is at i * ((argsz - 32) / count). An array with entries of both kinds
would have no one stride, so the server fills those of 32 bytes up to 40."""


@dataclass(frozen=True, slots=True)
class IoEventFd:
    """KVM adds 1 to ``fd`` on a write at ``offset``. ``size`` 0 means any size, ``datamatch`` None any value."""

    offset: int
    size: int
    fd: int
    datamatch: int | None = None
    pio: bool = False
    ccw: bool = False


@dataclass(frozen=True, slots=True)
class IoRegionFd:
    """KVM sends a command with ``user_data`` down ``fd`` for each access. ``size`` 0 needs posted writes."""

    offset: int
    size: int
    fd: int
    user_data: int
    pio: bool = False
    posted_writes: bool = False


@dataclass(frozen=True, slots=True)
class ShadowIoEventFd:
    """An ioeventfd that also stores the value at ``shadow_offset`` of ``shadow_fd`` (libvfio-user only)."""

    offset: int
    size: int
    fd: int
    shadow_fd: int
    shadow_offset: int
    datamatch: int | None = None
    pio: bool = False


SubRegion = IoEventFd | IoRegionFd | ShadowIoEventFd


def mechanism(sub: SubRegion) -> Mechanism:
    """The mechanism of a sub-region, as the ``io_fds`` capability names it."""
    match sub:
        case IoEventFd():
            return Mechanism.IOEVENTFD
        case IoRegionFd():
            return Mechanism.IOREGIONFD
        case ShadowIoEventFd():
            return Mechanism.SHADOW


def descriptors(sub: SubRegion) -> set[int]:
    """The fds of a sub-region."""
    return {sub.fd, sub.shadow_fd} if isinstance(sub, ShadowIoEventFd) else {sub.fd}


def pack_sub_regions(
    subs: Sequence[SubRegion], entry_size: int = ENTRY, entries: Entries = RATIFIED_ENTRIES
) -> tuple[bytes, list[int]]:
    """The array of entries, and the fds to send with it. Each fd is sent once; entries share it by index."""
    draft = entries.region_id == TAIL_32.size
    if draft:
        entry_size = ENTRY_32 if all(isinstance(sub, IoRegionFd) for sub in subs) else ENTRY
    fds: list[int] = []

    def index(fd: int) -> int:
        if fd not in fds:
            fds.append(fd)
        return fds.index(fd)

    return b"".join(_pack(sub, entry_size, index, draft=draft) for sub in subs), fds


def _pack(sub: SubRegion, entry_size: int, index: Callable[[int], int], *, draft: bool) -> bytes:
    shadow, shadow_offset = 0, 0
    match sub:
        case IoEventFd():
            flags = (DATAMATCH if sub.datamatch is not None else 0) | (PIO if sub.pio else 0) | (CCW if sub.ccw else 0)
            kind, last = IoFdType.IOEVENTFD, sub.datamatch or 0
        case IoRegionFd():
            flags = (REGION_PIO if sub.pio else 0) | (POSTED_WRITES if sub.posted_writes else 0)
            kind, last = IoFdType.IOREGIONFD, sub.user_data
        case ShadowIoEventFd():
            flags = (DATAMATCH if sub.datamatch is not None else 0) | (PIO if sub.pio else 0)
            kind, last = IoFdType.SHADOW, sub.datamatch or 0
            if entry_size != ENTRY_48:
                raise ProtocolError(f"a shadow ioeventfd needs entries of {ENTRY_48} bytes, not {entry_size}")
            shadow, shadow_offset = index(sub.shadow_fd), sub.shadow_offset
    common = COMMON.pack(sub.offset, sub.size, index(sub.fd), kind, flags)
    if entry_size == ENTRY_48 and kind != IoFdType.IOREGIONFD:
        return common + TAIL_48.pack(shadow, shadow_offset, last)
    if draft and kind == IoFdType.IOREGIONFD:
        if last >> 32:
            raise ProtocolError(f"region_id {last:#x}, expected at most 32 bits in this dialect")
        return (common + TAIL_32.pack(last)).ljust(entry_size, b"\0")
    return (common + TAIL.pack(0, last)).ljust(entry_size, b"\0")


def unpack_sub_regions(
    payload: memoryview, fds: Sequence[int], region_size: int, entries: Entries = RATIFIED_ENTRIES
) -> list[SubRegion]:
    """The sub-regions of a whole reply (info struct and array), with each field checked against the region.

    The returned sub-regions refer to ``fds``, which the caller owns. Raises ProtocolError, naming entry and field.
    """
    name = "DEVICE_GET_REGION_IO_FDS reply"
    if len(payload) < INFO.size:
        raise ProtocolError(f"{name}: {len(payload)} bytes, expected at least {INFO.size}")
    argsz, flags, _, count = INFO.unpack_from(payload)
    if flags:
        raise ProtocolError(f"{name}: flags {flags:#x}, expected 0")
    if count == 0:
        return []
    if count > MOST_ENTRIES:
        raise ProtocolError(f"{name}: count {count}, at most {MOST_ENTRIES}")
    end = argsz - entries.head + INFO.size
    if end > len(payload):
        raise ProtocolError(f"{name}: argsz {argsz}, but only {len(payload)} bytes came")
    stride, rest = divmod(argsz - entries.head, count)
    if rest or stride not in entries.strides:
        known = " or ".join(map(str, sorted(entries.strides)))
        raise ProtocolError(f"{name}: argsz {argsz} over count {count} is no stride of {known} bytes")
    draft = entries.region_id == TAIL_32.size
    return [
        _unpack(payload[at : at + stride], fds, region_size, f"{name}: entry {number}", draft=draft)
        for number, at in enumerate(range(INFO.size, end, stride))
    ]


def _unpack(entry: memoryview, fds: Sequence[int], region_size: int, name: str, *, draft: bool) -> SubRegion:
    offset, size, fd_index, kind, flags = COMMON.unpack_from(entry)
    _check_span(offset, size, region_size, name)
    fd = _fd(fd_index, fds, name, "fd_index")
    if len(entry) == ENTRY_48 and kind != IoFdType.IOREGIONFD:
        tail = TAIL_48
    elif len(entry) == ENTRY_32 or (draft and kind == IoFdType.IOREGIONFD):
        tail = TAIL_32
    else:
        tail = TAIL
    *shadow, last = tail.unpack_from(entry, COMMON.size)
    if kind == IoFdType.IOREGIONFD:
        if flags & ~(REGION_PIO | POSTED_WRITES):
            raise ProtocolError(f"{name}: ioregionfd flags {flags:#x}, expected bits of 0x3")
        if size == 0 and not flags & POSTED_WRITES:
            raise ProtocolError(f"{name}: size 0 needs posted writes")
        return IoRegionFd(offset, size, fd, last, bool(flags & REGION_PIO), bool(flags & POSTED_WRITES))
    if kind == IoFdType.IOEVENTFD and tail is TAIL_32:
        raise ProtocolError(f"{name}: an ioeventfd needs an entry of {ENTRY} bytes, not {ENTRY_32}")
    if kind not in (IoFdType.IOEVENTFD, IoFdType.SHADOW):
        raise ProtocolError(f"{name}: type {kind}, expected 0 (ioeventfd), 1 (ioregionfd) or 2 (shadow)")
    if flags & ~(DATAMATCH | PIO | CCW):
        raise ProtocolError(f"{name}: ioeventfd flags {flags:#x}, expected bits of 0xb")
    if size not in (0, 1, 2, 4, 8) or (flags & DATAMATCH and size == 0):
        raise ProtocolError(f"{name}: ioeventfd size {size}, expected 1, 2, 4, 8, or 0 without datamatch")
    datamatch = last if flags & DATAMATCH else None
    if kind == IoFdType.SHADOW:
        if len(entry) != ENTRY_48:
            raise ProtocolError(f"{name}: a shadow ioeventfd needs an entry of {ENTRY_48} bytes")
        memory_index, shadow_offset = shadow
        memory = _fd(memory_index, fds, name, "shadow_mem_fd_index")
        return ShadowIoEventFd(offset, size, fd, memory, shadow_offset, datamatch, bool(flags & PIO))
    return IoEventFd(offset, size, fd, datamatch, bool(flags & PIO), bool(flags & CCW))


def _check_span(offset: int, size: int, region_size: int, name: str) -> None:
    if offset >= region_size or size > region_size - offset:
        raise ProtocolError(f"{name}: {offset:#x}+{size:#x} lies outside the region, which has {region_size:#x} bytes")


def _fd(index: int, fds: Sequence[int], name: str, field: str) -> int:
    if index >= len(fds):
        raise ProtocolError(f"{name}: {field} {index}, but {len(fds)} fds came")
    return fds[index]
