"""Packed virtqueues (§2.8): one ring of descriptors that driver and device both write."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from bellwire.errors import GuestError
from bellwire.model.dma import Dma
from bellwire.virtio.chain import DESCRIPTOR, INDIRECT, NEXT, WRITE, Chain, indirect_table, table_size
from bellwire.virtio.fence import fence
from bellwire.virtio.split import crossed

if TYPE_CHECKING:
    from bellwire.virtio.virtqueue import Virtqueue

USED_PART = struct.Struct("<IH")  # length and id, behind the address
AVAILABLE, USED = 1 << 7, 1 << 15
OFFSET, FLAGS = 0, 1  # of an event suppression structure, in words (§2.8.14)
ENABLE, DISABLE, AT_DESCRIPTOR = 0, 1, 2
WRAP = 1 << 15


class PackedRing:
    """The ring and the two event suppression structures of one queue, as views of guest memory."""

    def __init__(self, queue: Virtqueue, dma: Dma, *, event_idx: bool) -> None:
        size = queue.size
        self._queue = queue
        self._dma = dma
        self._size = size
        self._event_idx = event_idx
        self._ring = dma.whole(queue.desc, 16 * size, write=True)
        self._words = self._ring.cast("H")
        self._driver = dma.whole(queue.driver, 4).cast("H")
        self._device = dma.whole(queue.device_area, 4, write=True).cast("H")

    def take(self) -> Chain | None:
        """Take the next buffer, or None if there is none."""
        if not self._available():
            return None
        queue = self._queue
        at, wrap = queue.next, queue.next_wrap
        chain = Chain(queue)
        chain.span = 0
        for _ in range(self._size):
            chain.span += 1
            address, length, chain.id, flags = DESCRIPTOR.unpack_from(self._ring, DESCRIPTOR.size * at)
            at, wrap = self._step(at, wrap, 1)
            if flags & INDIRECT:
                if flags & NEXT:
                    raise GuestError("an indirect table that goes on")
                self._indirect(chain, address, length)
            else:
                chain.add(self._dma, address, length, flags)
            if not flags & NEXT:
                break
        else:
            raise GuestError(f"a chain of more than {self._size} descriptors")
        if queue.out + chain.span > self._size:
            raise GuestError(f"more than {self._size} descriptors in our hands")
        queue.next, queue.next_wrap = at, wrap
        queue.out += chain.span
        return chain

    def back(self, chain: Chain) -> None:
        """Make the buffer that was taken last available again."""
        queue = self._queue
        queue.next, queue.next_wrap = self._step(queue.next, queue.next_wrap, -chain.span)
        queue.out -= chain.span

    def put(self, chains: list[Chain]) -> bool:
        """Publish used buffers, all at once. True if the driver wants an interrupt.

        The flags of the first buffer are written last. Until then the driver sees none of the buffers (§2.8.21.2).
        """
        queue = self._queue
        at, wrap = queue.used, queue.used_wrap
        marks = []
        total = 0
        for chain in chains:
            USED_PART.pack_into(self._ring, DESCRIPTOR.size * at + 8, chain.written, chain.id)
            marks.append((8 * at + 7, (AVAILABLE | USED if wrap else 0) | (WRITE if chain.written else 0)))
            at, wrap = self._step(at, wrap, chain.span)
            total += chain.span
        for place, mark in reversed(marks):
            self._words[place] = mark
        queue.used, queue.used_wrap = at, wrap
        queue.out -= total
        fence()
        flags = self._driver[FLAGS] & 3
        if flags != AT_DESCRIPTOR or not self._event_idx:
            return flags != DISABLE
        event = self._driver[OFFSET]
        place = event & ~WRAP
        if event >> 15 != wrap:
            place -= self._size
        return crossed(place, at - total, at)

    def silence(self) -> None:
        """Ask the driver for no notifications."""
        self._device[FLAGS] = DISABLE

    def listen(self) -> bool:
        """Ask the driver for a notification of the next buffer. True if one is there already, without notification."""
        if self._event_idx:
            self._device[OFFSET] = self._queue.next | (WRAP if self._queue.next_wrap else 0)
            self._device[FLAGS] = AT_DESCRIPTOR
        else:
            self._device[FLAGS] = ENABLE
        fence()
        return self._available()

    def _available(self) -> bool:
        """Whether the driver has marked the next descriptor as available in this pass of the ring (§2.8.1)."""
        queue = self._queue
        flags = self._words[8 * queue.next + 7]
        return (flags & (AVAILABLE | USED)) == (AVAILABLE if queue.next_wrap else USED)

    def _step(self, at: int, wrap: int, count: int) -> tuple[int, int]:
        """The position and wrap counter ``count`` slots on, or back if negative (§2.8.1)."""
        at += count
        if at >= self._size:
            return at - self._size, wrap ^ 1
        if at < 0:
            return at + self._size, wrap ^ 1
        return at, wrap

    def _indirect(self, chain: Chain, address: int, length: int) -> None:
        """Add every descriptor of an indirect table, in order. Of their flags only WRITE counts (§2.8.7)."""
        count = table_size(length)
        table = indirect_table(self._dma, address, length)
        for at in range(count):
            place, size, _, flags = DESCRIPTOR.unpack_from(table, DESCRIPTOR.size * at)
            if flags & INDIRECT:
                raise GuestError("an indirect table within another")
            chain.add(self._dma, place, size, flags & WRITE)
