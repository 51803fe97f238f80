"""A virtqueue, from the side of the device: take buffers, use them, and return them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from bellwire.errors import GuestError
from bellwire.virtio.chain import Chain, Row, Whole
from bellwire.virtio.copied import CopiedPackedRing, CopiedSplitRing
from bellwire.virtio.fence import fence
from bellwire.virtio.handover import Handover, Take
from bellwire.virtio.inflight import Inflight, Out
from bellwire.virtio.packed import PackedRing
from bellwire.virtio.split import SplitRing
from bellwire.virtio.status import Feature

if TYPE_CHECKING:
    from bellwire.virtio.device import VirtioDevice

NO_VECTOR = 0xFFFF
FIRST = 1 << 15
"""The first position of a packed ring: slot 0, with the wrap counter set."""
BATCH = 64
"""The most buffers that are taken at once."""
_FIELDS = (
    [(name, ctypes.c_uint64) for name in ("desc", "driver", "device_area")]
    + [(name, ctypes.c_uint16) for name in ("size", "vector", "next", "used", "out")]
    + [(name, ctypes.c_uint8) for name in ("enabled", "next_wrap", "used_wrap")]
)


Ring = SplitRing | PackedRing
AtOnce = Callable[["Virtqueue", Ring, int], int]
"""Does buffers at once, at most so many, and returns how many it has taken."""


class Virtqueue(ctypes.LittleEndianStructure):
    """One queue. Its fields lie in the device's state, so a snapshot has them.

    ``for chain in queue`` gives all available buffers, publishes those that device code has returned by
    :meth:`Chain.done`, and asks the driver to notify the device of the next one. :meth:`batches` does the same with
    lists of buffers, which costs less. A device that takes buffers when it has data for them calls :meth:`take`,
    :meth:`flush`, :meth:`silence` and :meth:`listen` itself.

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
    journal: Inflight
    handover: Handover | None
    """The other hands that the queue is in, if it is."""
    generation: int
    """Counts how often the queue has been forgotten: chains of an earlier one are not its own."""

    @classmethod
    def at(cls, state: memoryview, index: int, device: VirtioDevice, journal: Inflight) -> Virtqueue:
        """Queue ``index`` of ``device``. Its fields lie in ``state``."""
        queue = cls.from_buffer(state, index * ctypes.sizeof(cls))
        queue.index = index
        queue.device = device
        queue.journal = journal
        queue.handover = None
        queue.generation = 0
        queue.forget()
        return queue

    def __str__(self) -> str:
        return f"queue {self.index}"

    def clear(self, size: int) -> None:
        """Reset the queue. ``size`` is its largest size."""
        ctypes.memset(ctypes.addressof(self), 0, ctypes.sizeof(self))
        self.size = size
        self.vector = NO_VECTOR
        self.journal.forget()
        self.forget()

    def forget(self) -> None:
        """Drop what is not in the state: views of the ring, chains of a ring that is gone, other hands."""
        self.take_back()
        self.generation += 1
        self._ring: Ring | None = None
        self._changes = -1
        self._finished: list[Chain] = []
        self._untold = 0
        self._waits_for_turn = False
        self._resumes = False
        self._again: list[Out] = []
        self._has_resumed = False
        self._copied = False
        self._was_mapped = False
        self.missed = False
        """Whether something was to be done while the ring was not mapped, although it had been mapped before."""

    def resume(self) -> None:
        """The state has been restored: :meth:`take` gives what was out in it, before anything new."""
        self.forget()
        self._resumes = self._was_mapped = bool(self.enabled)

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
        self.forget()
        self.next_wrap = self.used_wrap = 1
        self.next = self.used = self.out = 0
        self.journal.forget()
        self.journal.settle(FIRST if packed else 0)
        self.enabled = 1

    @property
    def is_possible(self) -> bool:
        """Whether a restored state can be that of a queue."""
        device, size = self.device, self.size
        vector = self.vector == NO_VECTOR or self.vector < len(device.irq)
        if not (self.enabled <= 1 and self.next_wrap <= 1 and self.used_wrap <= 1 and vector):
            return False
        if not self.enabled:
            return True
        if not self.journal.is_possible:
            return False
        packed = device.accepted >> Feature.RING_PACKED & 1
        inside = max(self.next, self.used) < size if packed else not size & size - 1
        return 1 <= size <= device.largest_queue and inside and self.out <= size

    def batches(self, at_once: AtOnce | None = None) -> Iterator[list[Chain]]:
        """All available buffers, in lists. After as many as the ring has slots, the queue waits for its next turn.

        At the end, the buffers that device code has returned are published. A buffer that has been taken, and that
        device code neither keeps nor returns, is put back by :meth:`back`.

        ``at_once(queue, ring, most)``, if given, may do the next buffers: it takes some of the ring's ``rows``, and
        returns them by :meth:`put_rows`, now or later, or it does those of :meth:`whole` by :meth:`put_whole`. It
        returns how many it has taken. The list is empty after that. It is not called while a fault looks at buffers.
        """
        try:
            if (ring := self._live()) is not None:
                ring.silence()
            left, most = self.size, BATCH
            while left:
                if at_once and ring and self._has_rows(ring) and (done := at_once(self, ring, min(left, BATCH))):
                    left -= done
                    most = 1  # of others: the next but one may be done at once again
                    yield []
                    ring = self._live()
                    if ring is not None and not ring.available():
                        self.flush()  # before it looks again: the driver may answer meanwhile
                        if not ring.available() and not ring.listen():
                            return
                elif chains := self.take(min(left, most)):
                    left -= len(chains)
                    yield chains
                    ring = self._live()
                elif not self.listen():
                    return
            self.ask_for_turn()
        finally:
            self.flush()

    def __iter__(self) -> Iterator[Chain]:
        """All available buffers, one by one. Those that a loop does not get to stay available."""
        for chains in self.batches():
            left = iter(chains)
            try:
                yield from left
            finally:
                self.back([*left])

    def take(self, most: int = 1) -> list[Chain]:
        """Take the next buffers, at most ``most``; an empty list if there is none. Return them by :meth:`finish`."""
        try:
            ring = self._live()
            if ring is None:
                return []
            if self._again:
                return self._take_again(ring, most)
            chains = ring.take(most)
        except GuestError as error:
            self.flush()
            raise self.device.broken(f"{self}: {error}") from error
        return chains

    def put_rows(self, rows: Sequence[Row], written: Sequence[int], size: int) -> None:
        """Publish these rows, at least one, with so many bytes ``written`` in each. :meth:`flush` tells the driver.

        ``size`` is the number of bytes that the device has used in them. If the ring is not mapped now, :meth:`flush`
        publishes them when it is.
        """
        ring = self._live()
        if ring is not None:
            if self._finished:
                self._publish(ring)
            self._untold += ring.put_rows(rows, written)
            self.device.dma.touched(size)
        elif self._usable:
            self.finish([Chain.of_row(self, row, count) for row, count in zip(rows, written, strict=True)])
            self.device.dma.touched(size - sum(written))

    def whole(self, most: int, *, write: bool) -> Whole | None:
        """The next buffers, at most ``most``, that are one piece each, to write or to read: for :meth:`put_whole`.

        None if :meth:`take` is to be asked: there is no buffer, or the next one is unusual or wrong, or a fault looks.
        """
        try:
            ring = self._live()
        except GuestError as error:
            raise self.device.broken(f"{self}: {error}") from error
        return ring.whole(most, write=write) if ring and self._has_rows(ring) else None

    def put_whole(self, whole: Whole, written: Sequence[int], size: int) -> None:
        """Publish the first ``len(written)`` of these buffers, as :meth:`put_rows` does. The others stay available."""
        if written and (ring := self._live()) is not None:
            if self._finished:
                self._publish(ring)
            self._untold += ring.put_whole(whole.ids[: len(written)], written)
            self.device.dma.touched(size)

    def back(self, chains: Sequence[Chain]) -> None:
        """Make the buffers that were taken last available again, as if they had not been taken."""
        if (ring := self._live()) is not None:
            for chain in chains:
                chain.written = 0
            if self._has_resumed:
                again = [chain.again for chain in chains if hasattr(chain, "again")]
                chains = [chain for chain in chains if not hasattr(chain, "again")]
                self._again[:0] = again
            if chains:
                ring.back(chains)

    def finish(self, chains: Iterable[Chain]) -> None:
        """Return chains to the driver, each with :attr:`Chain.written` bytes in it. :meth:`flush` publishes them."""
        self._finished += chains

    def flush(self) -> None:
        """Publish the buffers that were returned since the last call, and interrupt the driver if it wants that.

        If the ring is not mapped now, they wait until it is: a client may unmap memory and map it again.
        """
        if self._finished or self._untold:
            ring = self._live()
            if ring is None and self._usable:
                return
            if ring is not None:
                if self._finished:
                    self._publish(ring)
                fence()
                if ring.wanted(self._untold):
                    self.device.interrupt(self.vector)
            self._finished = []
            self._untold = 0

    def _publish(self, ring: Ring) -> None:
        finished, self._finished = self._finished, []
        self._untold += ring.put(finished)
        self.device.dma.touched(sum([chain.size + chain.written for chain in finished]))

    def silence(self) -> None:
        """Ask the driver for no notifications."""
        if (ring := self._live()) is not None:
            ring.silence()

    def listen(self) -> bool:
        """Ask the driver for a notification of the next buffer. True if one is there already, without notification."""
        return (ring := self._live()) is not None and ring.listen()

    def hand_over(self, kick: Take, call: Take) -> None:
        """Give the queue to another process, or to the kernel: :meth:`VirtioDevice.notified` hears of it no more.

        ``kick(fd)`` takes the eventfd that the driver's notifications arrive in, ``call(fd)`` the one whose signals
        interrupt the driver. Each is called at once, and again whenever the descriptor has changed: ``call`` while the
        vector is masked and when it is not, both for a new client. The descriptors stay the SDK's. A reset takes the
        queue back, and so does :meth:`take_back`; :meth:`VirtioDevice.stopped` tells of a reset. If one of the first
        two calls raises, the queue stays the device's.
        """
        self.take_back()
        self.handover = Handover(self, kick, call)

    def take_back(self) -> None:
        """Undo :meth:`hand_over`. Stop the other side first. ``next`` and ``used`` must say where it has stopped."""
        handover, self.handover = self.handover, None
        if handover is not None:
            handover.close()

    def ask_for_turn(self) -> None:
        """Schedule one more turn for this queue, unless one is scheduled already."""
        if not self._waits_for_turn:
            self._waits_for_turn = True
            self.device.after(0, self._take_turn)

    def _take_again(self, ring: Ring, most: int) -> list[Chain]:
        """The next buffers that were out when the state was restored. A GuestError if the first one is wrong."""
        chains = []
        for out in self._again[:most]:
            try:
                chains.append(ring.again(out))
            except GuestError:
                if not chains:
                    raise
                break
        del self._again[: len(chains)]
        return chains

    def copied_until_empty(self) -> None:
        """Look for the ring again, when all its copied buffers are returned and no filter looks at DMA any more."""
        if not self.out and not self.device.dma.copied:
            self._changes = -1

    def _has_rows(self, ring: Ring) -> bool:
        """Whether buffers may be done as rows: the ring is no copy, nothing is to be done again, and no fault looks."""
        return not (ring.is_copied or self._again or "finish" in self.__dict__)

    def _copies(self) -> bool:
        """Whether the ring must be a copy: filters look at DMA, or the device still has buffers that are copies."""
        self._copied = self.device.dma.copied or (self._copied and self.out > 0)
        return self._copied

    def _take_turn(self) -> None:
        self._waits_for_turn = False
        self.device.attend(self)

    @property
    def _usable(self) -> bool:
        """Whether the device may use the queue (§3.1.1), once it finds the ring."""
        return bool(self.enabled) and self.device.running and self.handover is None

    def find(self) -> bool:
        """Whether the ring is mapped now, and may be used."""
        return self._live() is not None

    def _live(self) -> Ring | None:
        """The ring as guest memory is mapped now, or None while the device must not use the queue, or cannot.

        A client may unmap memory and map it again. So a ring that has been mapped before is waited for. A GuestError
        for one that never was.
        """
        device = self.device
        if not (self.enabled and device.running) or self.handover is not None:
            return None
        changes = device.dma.changes
        if self._changes != changes:
            self._ring = None
            if device.connected and device.bus_master:
                packed = Feature.RING_PACKED in device.negotiated
                kind = (PackedRing, SplitRing, CopiedPackedRing, CopiedSplitRing)[2 * self._copies() + (not packed)]
                try:
                    self._ring = ring = kind(self, device.dma, event_idx=Feature.EVENT_IDX in device.negotiated)
                except GuestError as error:
                    if not self._was_mapped:
                        raise
                    device.warn("%s waits for its memory: %s", self, error)
                    self.missed, self._changes = True, changes
                    return None
                self._was_mapped = True
                if self._resumes:
                    self._again, end = self.journal.recover(ring, self.out)
                    ring.resume(end, self._again)
                    self._resumes, self._has_resumed = False, True
            self._changes = changes
        return self._ring
