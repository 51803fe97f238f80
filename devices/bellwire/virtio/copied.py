"""Virtqueues while filters look at DMA: rings and buffers are copies, which :meth:`Dma.read` and ``write`` move.

The rings of :mod:`bellwire.virtio.split` and :mod:`bellwire.virtio.packed` work on views of guest memory. Here the
views are of a copy. It is read anew before buffers are taken, and what the device changes in it is written to guest
memory at once, in the order that the specification asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bellwire.errors import GuestError
from bellwire.model.dma import Dma
from bellwire.virtio.chain import MOST_BYTES, WRITE, Chain, Descriptor, Window
from bellwire.virtio.fence import fence
from bellwire.virtio.packed import DESCRIPTOR_SIZE, PackedRing
from bellwire.virtio.split import ELEMENT_SIZE, SplitRing

if TYPE_CHECKING:
    from bellwire.virtio.virtqueue import Virtqueue


MOST_COPIED = 256 << 20
"""The most bytes of buffers that one queue copies at a time. A guest could ask for far more than there is memory."""


class CopiedChain(Chain):
    """A buffer whose views are copies: ``places`` has the address of each view to write, and what was there before."""

    __slots__ = ("places",)

    places: list[tuple[int, memoryview, bytes]]

    def store(self, dma: Dma) -> None:
        """Write to guest memory what the device has written: its first ``written`` bytes, and all that has changed."""
        written = self.written
        for address, view, before in self.places:
            size = min(max(written, 0), len(view))
            written -= len(view)
            if view[size:] != before[size:]:  # as the status at the end of a disk's request that has failed
                size = len(view)
            if size:
                dma.write(address, view[:size])


class CopiedWindow(Window):
    """Makes chains of copies."""

    __slots__ = ("_held",)

    def __init__(self, queue: Virtqueue, dma: Dma) -> None:
        super().__init__(queue, dma)
        self._held = 0

    def chain(self, number: int, span: int, parts: Iterable[Descriptor]) -> CopiedChain:
        """As :meth:`Window.chain`. A GuestError too if the queue has copies of more than MOST_COPIED bytes."""
        descriptors = list(parts)
        total = sum(length for _, length, _, _ in descriptors)
        if self._held + total > MOST_COPIED or total > MOST_BYTES:
            raise GuestError(f"buffers of {self._held + total} bytes at a time, while filters look at DMA")
        plain = super().chain(number, span, descriptors)  # it checks them
        chain = CopiedChain(plain.queue, number, span, plain.readable, plain.writable, plain.size, plain.room)
        to_write = [(address, length) for address, length, flags, _ in descriptors if flags & WRITE and length]
        self._held += total
        chain.places = [
            (address, view, bytes(view)) for (address, _), view in zip(to_write, plain.writable, strict=True)
        ]
        return chain

    def release(self, chains: Iterable[Chain]) -> None:
        """These chains are returned, or put back."""
        for chain in chains:
            if isinstance(chain, CopiedChain):
                self._held -= chain.size + chain.room

    def _find(self, address: int, length: int, *, write: bool) -> list[memoryview]:
        """A copy of this memory. What was there before a write is no data that the device reads."""
        data = self._dma.peek(address, length) if write else self._dma.read(address, length)
        return [memoryview(bytearray(data)) if write else memoryview(data)]


class CopiedSplitRing(SplitRing):
    """A split queue on copies of its three parts."""

    window_kind = CopiedWindow
    is_copied = True
    window: CopiedWindow

    def __init__(self, queue: Virtqueue, dma: Dma, *, event_idx: bool) -> None:
        self._dma = dma
        super().__init__(queue, dma, event_idx=event_idx)

    def parts(self, queue: Virtqueue, dma: Dma) -> tuple[memoryview, memoryview, memoryview]:
        """Copies of table, available ring and used ring."""
        size = queue.size
        self._places = queue.desc, queue.driver, queue.device_area
        lengths = 16 * size, 6 + 2 * size, 6 + 8 * size
        table, avail, used = (
            memoryview(bytearray(dma.peek(address, length)))
            for address, length in zip(self._places, lengths, strict=True)
        )
        self._avail_bytes = avail
        return table, avail, used

    def take(self, most: int) -> list[Chain]:
        """As :meth:`SplitRing.take`."""
        self._look()
        if self._avail[1] != self._queue.next:
            self._table[:] = self._dma.read(self._places[0], len(self._table))
        return super().take(most)

    def back(self, chains: Sequence[Chain]) -> None:
        """As :meth:`SplitRing.back`."""
        super().back(chains)
        self.window.release(chains)

    def put(self, chains: Sequence[Chain]) -> int:
        """As :meth:`SplitRing.put`: first the buffers, then their elements, then the index."""
        store(chains, self._dma)
        self.window.release(chains)
        return super().put(chains)

    def wanted(self, count: int) -> bool:
        """As :meth:`SplitRing.wanted`."""
        self._look()
        self._queue.copied_until_empty()
        return super().wanted(count)

    def publish(self, before: int, count: int) -> None:
        """Write the elements, then the index, to guest memory."""
        for used in range(before, before + count):
            self._write(4 + used % self._size * ELEMENT_SIZE, ELEMENT_SIZE)
        self._write(2, 2)

    def silence(self) -> None:
        """As :meth:`SplitRing.silence`."""
        super().silence()
        if not self._event_idx:
            self._write(0, 2)

    def listen(self) -> bool:
        """As :meth:`SplitRing.listen`."""
        super().listen()
        if self._event_idx:
            self._write(2 * self._avail_event, 2)
        else:
            self._write(0, 2)
        fence()
        self._look()
        return self._avail[1] != self._queue.next

    def _look(self) -> None:
        self._avail_bytes[:] = self._dma.read(self._places[1], len(self._avail_bytes))

    def _write(self, at: int, size: int) -> None:
        self._dma.write(self._places[2] + at, self._used[at : at + size])


class CopiedPackedRing(PackedRing):
    """A packed queue on copies of its three parts."""

    window_kind = CopiedWindow
    is_copied = True
    window: CopiedWindow

    def __init__(self, queue: Virtqueue, dma: Dma, *, event_idx: bool) -> None:
        self._dma = dma
        super().__init__(queue, dma, event_idx=event_idx)

    def parts(self, queue: Virtqueue, dma: Dma) -> tuple[memoryview, memoryview, memoryview]:
        """Copies of the ring and of the two event suppression structures."""
        self._places = queue.desc, queue.driver, queue.device_area
        lengths = 16 * queue.size, 4, 4
        ring, driver, device = (
            memoryview(bytearray(dma.peek(address, length)))
            for address, length in zip(self._places, lengths, strict=True)
        )
        self._driver_bytes, self._device_bytes = driver, device
        return ring, driver, device

    def take(self, most: int) -> list[Chain]:
        """As :meth:`PackedRing.take`."""
        self._ring[:] = self._dma.read(self._places[0], len(self._ring))
        return super().take(most)

    def back(self, chains: Sequence[Chain]) -> None:
        """As :meth:`PackedRing.back`."""
        super().back(chains)
        self.window.release(chains)

    def put(self, chains: Sequence[Chain]) -> int:
        """As :meth:`PackedRing.put`: the flags of the first buffer are written last."""
        store(chains, self._dma)
        self.window.release(chains)
        return super().put(chains)

    def wanted(self, total: int) -> bool:
        """As :meth:`PackedRing.wanted`."""
        self._driver_bytes[:] = self._dma.read(self._places[1], 4)
        self._queue.copied_until_empty()
        return super().wanted(total)

    def publish(self, spans: Sequence[int]) -> None:
        """Write the descriptors to guest memory, the flags of the first one last."""
        at, wrap = self._queue.used, self._queue.used_wrap
        slots = []
        for span in spans:
            self._write(DESCRIPTOR_SIZE * at + 8, 6)
            slots.append(at)
            at, wrap = self._step(at, wrap, span)
        for slot in reversed(slots):
            self._write(DESCRIPTOR_SIZE * slot + 14, 2)

    def silence(self) -> None:
        """As :meth:`PackedRing.silence`."""
        super().silence()
        self._dma.write(self._places[2], self._device_bytes)

    def listen(self) -> bool:
        """As :meth:`PackedRing.listen`."""
        super().listen()
        self._dma.write(self._places[2], self._device_bytes)
        fence()
        slot = DESCRIPTOR_SIZE * self._queue.next
        self._ring[slot : slot + DESCRIPTOR_SIZE] = self._dma.read(self._places[0] + slot, DESCRIPTOR_SIZE)
        return self.available()

    def _write(self, at: int, size: int) -> None:
        self._dma.write(self._places[0] + at, self._ring[at : at + size])


def store(chains: Iterable[Chain], dma: Dma) -> None:
    """Write to guest memory what the device has written to copies. Other chains are in guest memory already."""
    for chain in chains:
        if isinstance(chain, CopiedChain):
            chain.store(dma)
