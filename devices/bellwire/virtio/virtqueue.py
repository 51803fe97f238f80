"""A virtqueue as its device sees it: buffers come, are used, and go back."""

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
    """What must be remembered of one queue; it lies in the device's state.

    ``for chain in queue`` gives every buffer that is available, publishes those that were given back with
    :meth:`Chain.done`, and asks to be notified of the next. A device that has a use for single buffers says
    :meth:`take`, :meth:`flush`, :meth:`silence` and :meth:`listen` itself.

    Whatever is wrong with the ring or a descriptor in it sets DEVICE_NEEDS_RESET (§2.1.2) and is a GuestError.
    """

    _fields_ = _FIELDS

    desc: int
    driver: int
    device_area: int
    size: int
    vector: int
    next: int
    """The place of the next buffer."""
    used: int
    """The place for the next used one."""
    out: int
    """Taken and not given back: buffers where rings are split, descriptors where packed."""
    enabled: int
    next_wrap: int
    used_wrap: int

    index: int
    device: VirtioDevice

    @classmethod
    def at(cls, state: memoryview, index: int, device: VirtioDevice) -> Virtqueue:
        """Queue ``index`` of ``device``, in its place of ``state``."""
        queue = cls.from_buffer(state, index * ctypes.sizeof(cls))
        queue.index = index
        queue.device = device
        queue.forget()
        return queue

    def __str__(self) -> str:
        return f"queue {self.index}"

    def clear(self, size: int) -> None:
        """As after a reset; ``size`` is the largest that it can have."""
        ctypes.memset(ctypes.addressof(self), 0, ctypes.sizeof(self))
        self.size = size
        self.vector = NO_VECTOR
        self.forget()

    def forget(self) -> None:
        """Drop what can be made again, or belongs to a ring that is gone."""
        self._ring: SplitRing | PackedRing | None = None
        self._changes = -1
        self._finished: list[Chain] = []
        self._waits_for_turn = False

    def enable(self) -> None:
        """Start with empty rings (§4.1.4.3): the driver has said where they lie."""
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

    def __iter__(self) -> Iterator[Chain]:
        """Every buffer there is; after a ring's worth of them the rest of the device has its turn first."""
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
        """The next buffer, or None when there is none now. It must be given back with :meth:`Chain.done`."""
        try:
            ring = self._live()
            return None if ring is None else ring.take()
        except GuestError as error:
            raise self.device.broken(f"{self}: {error}") from error

    def back(self, chains: list[Chain]) -> None:
        """Make the buffers taken last available again, as if they had never been taken."""
        if (ring := self._live()) is not None:
            for chain in reversed(chains):
                chain.written = 0
                ring.back(chain)

    def finish(self, chain: Chain) -> None:
        """What :meth:`Chain.done` does."""
        self._finished.append(chain)

    def flush(self) -> None:
        """Let the driver see what was given back since the last time, and interrupt it if it wants that."""
        finished, self._finished = self._finished, []
        if finished and (ring := self._live()) is not None and ring.put(finished):
            self.device.interrupt(self.vector)

    def silence(self) -> None:
        """Ask for no notifications."""
        if (ring := self._live()) is not None:
            ring.silence()

    def listen(self) -> bool:
        """Ask to be notified of the next buffer; True if it is there already, and there will be no notification."""
        return (ring := self._live()) is not None and ring.listen()

    def _ask_for_turn(self) -> None:
        """Go on soon; however often a driver rings meanwhile, once is enough."""
        if not self._waits_for_turn:
            self._waits_for_turn = True
            self.device.after(0, self._take_turn)

    def _take_turn(self) -> None:
        self._waits_for_turn = False
        self.device.attend(self)

    def _live(self) -> SplitRing | PackedRing | None:
        """The ring in guest memory as it is mapped now, or None while the queue must be left alone (§3.1.1)."""
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
