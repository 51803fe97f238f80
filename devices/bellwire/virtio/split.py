"""Split virtqueues (§2.7): a descriptor table, an available ring and a used ring."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from bellwire.errors import GuestError
from bellwire.model.dma import Dma
from bellwire.virtio.chain import DESCRIPTOR, INDIRECT, NEXT, Chain, indirect_table, table_size
from bellwire.virtio.fence import fence

if TYPE_CHECKING:
    from bellwire.virtio.virtqueue import Virtqueue

ELEMENT = struct.Struct("<II")  # id, length
FLAGS, INDEX, RING = 0, 1, 2  # of either ring, in words of 16 bits
NO_INTERRUPT = NO_NOTIFY = 1


class SplitRing:
    """The three parts of one split queue, as views of guest memory."""

    def __init__(self, queue: Virtqueue, dma: Dma, *, event_idx: bool) -> None:
        size = queue.size
        self._queue = queue
        self._dma = dma
        self._size = size
        self._event_idx = event_idx
        self._table = dma.whole(queue.desc, 16 * size)
        self._avail = dma.whole(queue.driver, 6 + 2 * size).cast("H")
        self._used = dma.whole(queue.device_area, 6 + 8 * size, write=True)
        self._used_words = self._used.cast("H")
        self._used_event = RING + size  # in the available ring: when the driver wants an interrupt (§2.7.7)
        self._avail_event = RING + 4 * size  # in the used ring: when the device wants a notification (§2.7.10)

    def take(self) -> Chain | None:
        """Take the next buffer, or None if there is none."""
        queue = self._queue
        position = queue.next
        waiting = self._avail[INDEX] - position & 0xFFFF
        if not waiting:
            return None
        if waiting > self._size:
            raise GuestError(f"{waiting} buffers available in a ring of {self._size}")
        if queue.out >= self._size:
            raise GuestError(f"more than {self._size} buffers in our hands")
        chain = Chain(queue)
        chain.id = self._avail[RING + position % self._size]
        self._walk(chain)
        queue.next = position + 1 & 0xFFFF
        queue.out += 1
        return chain

    def back(self, chain: Chain) -> None:
        """Make the buffer that was taken last available again."""
        self._queue.next = self._queue.next - 1 & 0xFFFF
        self._queue.out -= 1

    def put(self, chains: list[Chain]) -> bool:
        """Publish used buffers, all at once. True if the driver wants an interrupt."""
        queue = self._queue
        before = used = queue.used
        for chain in chains:
            ELEMENT.pack_into(self._used, 4 + ELEMENT.size * (used % self._size), chain.id, chain.written)
            used = used + 1 & 0xFFFF
        self._used_words[INDEX] = queue.used = used
        queue.out -= len(chains)
        fence()
        if self._event_idx:
            return crossed(self._avail[self._used_event], before, used)
        return not self._avail[FLAGS] & NO_INTERRUPT

    def silence(self) -> None:
        """Ask the driver for no notifications. With EVENT_IDX it is enough to leave avail_event as it is."""
        if not self._event_idx:
            self._used_words[FLAGS] = NO_NOTIFY

    def listen(self) -> bool:
        """Ask the driver for a notification of the next buffer. True if one is there already, without notification."""
        if self._event_idx:
            self._used_words[self._avail_event] = self._queue.next
        else:
            self._used_words[FLAGS] = 0
        fence()
        return self._avail[INDEX] != self._queue.next

    def _walk(self, chain: Chain) -> None:
        """Follow a chain: descriptors of the queue, and perhaps an indirect table at the end (§2.7.5.3.2)."""
        table: memoryview | bytes = self._table
        count, at = self._size, chain.id
        left = count
        while True:
            if at >= count:
                raise GuestError(f"descriptor {at} of {count}")
            if not left:
                raise GuestError(f"a chain of more than {count} descriptors")
            left -= 1
            address, length, flags, following = DESCRIPTOR.unpack_from(table, DESCRIPTOR.size * at)
            if flags & INDIRECT:
                if table is not self._table or flags & NEXT:
                    raise GuestError("an indirect table within another, or one that goes on")
                left = count = table_size(length)
                table, at = indirect_table(self._dma, address, length), 0
                continue
            chain.add(self._dma, address, length, flags)
            if not flags & NEXT:
                return
            at = following


def crossed(event: int, before: int, now: int) -> bool:
    """Whether going from ``before`` to ``now`` passes ``event``, all modulo 2^16 (§2.7.10)."""
    return (now - event - 1 & 0xFFFF) < (now - before & 0xFFFF)
