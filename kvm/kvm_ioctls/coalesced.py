"""Coalesced writes: a guest's stores that KVM keeps in a ring, so that one exit serves many.

KVM has one such ring for each VM: a page in every vCPU's mapping. `struct kvm_coalesced_mmio_ring` begins with two
indices. The kernel puts a write at `last`, and this class takes writes from `first` on. Equal indices mean an empty
ring (api.rst 4.116). One entry stays free. While the ring is full, a write exits as if it were in no zone. Linux
before 6.12 sometimes takes a half-full ring for full, because it computes the difference of the indices modulo 2**32
first.
"""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Callable
from typing import NamedTuple

from .errors import KvmError

PAGE = mmap.PAGESIZE
_HEAD = struct.Struct("=II")
_ENTRY = struct.Struct("=QII8s")  # struct kvm_coalesced_mmio: phys_addr, len, pio, data
_FIRST, _LAST = 0, 1
_MOST = (PAGE - _HEAD.size) // _ENTRY.size


class CoalescedWrite(NamedTuple):
    """The guest wrote `data` (1-8 bytes, memory order) at `phys_addr`, which is an I/O port if `pio`."""

    phys_addr: int
    data: bytes
    pio: bool


class CoalescedRing:
    """The ring in `page`, one page long. Any thread may check whether it is empty; one at a time may drain it."""

    ROOM = _MOST - 1
    """The most writes that the ring holds."""
    EARLY = _MOST // 2
    """With this many writes Linux before 6.12 may take it for full, if the oldest is in the first half."""

    def __init__(self, page: memoryview):
        if len(page) != PAGE:
            raise ValueError(f"the ring of coalesced writes has {len(page)} bytes, expected a page of {PAGE}")
        self._page = page
        self._indices = page.cast("I")

    @property
    def empty(self) -> bool:
        """Whether no write waits. Cheap enough for a check after every exit."""
        indices = self._indices
        return indices[_FIRST] == indices[_LAST]

    def drain(self, take: Callable[[list[CoalescedWrite]], None]) -> int:
        """Give `take` all waiting writes, oldest first, and return their number.

        Their places become free when `take` returns. Until then the ring is not `empty`, so no other thread can
        mistake writes under way for delivered writes. Raises `KvmError` for a malformed ring; its writes are lost.
        """
        first, last = self._indices[_FIRST], self._indices[_LAST]
        if first >= _MOST or last >= _MOST:
            raise _broken(f"first {first} and last {last}, expected less than {_MOST}")
        if first == last:
            return 0
        try:
            writes = [_write(*fields) for fields in _ENTRY.iter_unpack(self._between(first, last))]
            take(writes)
        finally:
            self._indices[_FIRST] = last
        return len(writes)

    def close(self) -> None:
        """Release the page."""
        self._indices.release()
        self._page.release()

    def _between(self, first: int, last: int) -> bytes:
        start, stop = (_HEAD.size + index * _ENTRY.size for index in (first, last))
        if first < last:
            return bytes(self._page[start:stop])
        end = _HEAD.size + _MOST * _ENTRY.size
        return bytes(self._page[start:end]) + bytes(self._page[_HEAD.size : stop])


def _write(phys_addr: int, length: int, pio: int, data: bytes) -> CoalescedWrite:
    if not 1 <= length <= len(data):
        raise _broken(f"an entry for {phys_addr:#x} has len {length}, expected 1 to {len(data)}")
    if pio > 1:
        raise _broken(f"an entry for {phys_addr:#x} has pio {pio}, expected 0 or 1")
    return CoalescedWrite(phys_addr, data[:length], pio == 1)


def _broken(reason: str) -> KvmError:
    return KvmError(errno.EPROTO, f"the ring of coalesced writes: {reason}")
