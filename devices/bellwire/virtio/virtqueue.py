"""A virtqueue, from the side of the device: take buffers, use them, and return them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bellwire.errors import GuestError
from bellwire.virtio.chain import Chain
from bellwire.virtio.packed import PackedRing
from bellwire.virtio.split import SplitRing
from bellwire.virtio.status import Feature

if TYPE_CHECKING:
    from bellwire.virtio.device import VirtioDevice

NO_VECTOR = 0xFFFF
_FIELDS = (
    [(name, ctypes.c_uint64) for name in ("desc", "driver", "device_area")]
    + [(name, ctypes.c_uint16) for name in ("size", "vector", "next", "used", "out")]
    + [(name, ctypes.c_uint8) for name in ("enabled", "next_wrap", "used_wrap")]
)


class Virtqueue(ctypes.LittleEndianStructure):
    """One queue. Its fields lie in the device's state, so a snapshot has them.

    ``for chain in queue`` gives all available buffers, publishes those that device code has returned by
    :meth:`Chain.done`, and asks the driver to notify the device of the next one. A device that handles single buffers
    calls :meth:`take`, :meth:`flush`, :meth:`silence` and :meth:`listen` itself.

    An error in the ring or in a descriptor sets DEVICE_NEEDS_RESET (§2.1.2), and raises a GuestError.
    """

    _fields_ = _FIELDS

    desc: int
    driver: int
    device_area: int
    size: int
    vector: int
    next: int
    """The position of the next available buffer."""
    used: int
    """The position for the next used buffer."""
    out: int
    """What the device has taken and not returned: buffers of a split ring, descriptors of a packed one."""
    enabled: int
    next_wrap: int
    used_wrap: int

    index: int
    device: VirtioDevice

    @classmethod
    def at(cls, state: memoryview, index: int, device: VirtioDevice) -> Virtqueue:
        """Queue ``index`` of ``device``. Its fields lie in ``state``."""
        queue = cls.from_buffer(state, index * ctypes.sizeof(cls))
        queue.index = index
        queue.device = device
        queue.forget()
        return queue

    def __str__(self) -> str:
        return f"queue {self.index}"

    def clear(self, size: int) -> None:
        """Reset the queue. ``size`` is its largest size."""
        ctypes.memset(ctypes.addressof(self), 0, ctypes.sizeof(self))
        self.size = size
        self.vector = NO_VECTOR
        self.forget()

    def forget(self) -> None:
        """Drop what is not in the state: views of the ring, and chains of a ring that is gone."""
        self._ring: SplitRing | PackedRing | None = None
        self._changes = -1
        self._finished: list[Chain] = []
        self._waits_for_turn = False

    def enable(self) -> None:
        """Start with empty rings, at the addresses that the driver has set (§4.1.4.3)."""
        packed = Feature.RING_PACKED in self.device.negotiated
        largest = self.device.largest_queue
        if not 1 <= self.size <= largest or (not packed and self.size & self.size - 1):
            raise self.device.broken(f"{self}: a size of {self.size}, at most {largest} and a power of two expected")
        if self.desc % 16 or self.driver % (4 if packed else 2) or self.device_area % 4:
            raise self.device.broken(
                f"{self}: misaligned ring: {self.desc:#x}, {self.driver:#x}, {self.device_area:#x}"
            )
        self.enabled = self.next_wrap = self.used_wrap = 1
        self.next = self.used = self.out = 0
        self.forget()

    @property
    def is_possible(self) -> bool:
        """Whether a restored state can be that of a queue."""
        device, size = self.device, self.size
        vector = self.vector == NO_VECTOR or self.vector < len(device.irq)
        if not (self.enabled <= 1 and self.next_wrap <= 1 and self.used_wrap <= 1 and vector):
            return False
        if not self.enabled:
            return True
        packed = device.accepted >> Feature.RING_PACKED & 1
        inside = max(self.next, self.used) < size if packed else not size & size - 1
        return 1 <= size <= device.largest_queue and inside and self.out <= size

    def __iter__(self) -> Iterator[Chain]:
        """All available buffers. After as many as the ring has slots, the queue waits for its next turn."""
        try:
            if (ring := self._live()) is not None:
                ring.silence()
            for _ in range(self.size):
                chain = self.take()
                while chain is None:
                    if not self.listen():
                        return
                    chain = self.take()
                yield chain
            self._ask_for_turn()
        finally:
            self.flush()

    def take(self) -> Chain | None:
        """Take the next buffer, or None if there is none. Return it by :meth:`Chain.done`."""
        try:
            ring = self._live()
            return None if ring is None else ring.take()
        except GuestError as error:
            raise self.device.broken(f"{self}: {error}") from error

    def back(self, chains: list[Chain]) -> None:
        """Make the buffers that were taken last available again, as if they had not been taken."""
        if (ring := self._live()) is not None:
            for chain in reversed(chains):
                chain.written = 0
                ring.back(chain)

    def finish(self, chain: Chain) -> None:
        """Return a chain; called by :meth:`Chain.done`."""
        self._finished.append(chain)

    def flush(self) -> None:
        """Publish the buffers that were returned since the last call, and interrupt the driver if it wants that."""
        finished, self._finished = self._finished, []
        if finished and (ring := self._live()) is not None and ring.put(finished):
            self.device.interrupt(self.vector)

    def silence(self) -> None:
        """Ask the driver for no notifications."""
        if (ring := self._live()) is not None:
            ring.silence()

    def listen(self) -> bool:
        """Ask the driver for a notification of the next buffer. True if one is there already, without notification."""
        return (ring := self._live()) is not None and ring.listen()

    def _ask_for_turn(self) -> None:
        """Schedule one more turn for this queue, unless one is scheduled already."""
        if not self._waits_for_turn:
            self._waits_for_turn = True
            self.device.after(0, self._take_turn)

    def _take_turn(self) -> None:
        self._waits_for_turn = False
        self.device.attend(self)

    def _live(self) -> SplitRing | PackedRing | None:
        """The ring as guest memory is mapped now, or None while the device must not use the queue (§3.1.1)."""
        device = self.device
        if not (self.enabled and device.running):
            return None
        changes = device.dma.changes
        if self._changes != changes:
            self._ring = None
            if device.connected and device.bus_master:
                kind = PackedRing if Feature.RING_PACKED in device.negotiated else SplitRing
                self._ring = kind(self, device.dma, event_idx=Feature.EVENT_IDX in device.negotiated)
            self._changes = changes
        return self._ring
