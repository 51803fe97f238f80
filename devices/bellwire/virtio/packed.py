"""Packed virtqueues (§2.8): one ring of descriptors that driver and device both write."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from bellwire.errors import GuestError
from bellwire.model.dma import Dma
from bellwire.virtio.chain import (
    DESCRIPTOR,
    INDIRECT,
    LENGTH,
    MOST_BYTES,
    NEXT,
    ROW,
    WRITE,
    Chain,
    Descriptor,
    Row,
    Whole,
    Window,
)
from bellwire.virtio.fence import fence
from bellwire.virtio.inflight import FROM, LOGGED, Out
from bellwire.virtio.split import crossed

if TYPE_CHECKING:
    from bellwire.virtio.virtqueue import Virtqueue

DESCRIPTOR_SIZE = DESCRIPTOR.size
AVAILABLE, USED = 1 << 7, 1 << 15
"""The marks of a descriptor (§2.8.1). It is available if the first has the driver's wrap counter, and the other not."""
_MARKS = AVAILABLE | USED
OFFSET, FLAGS = 0, 1  # of an event suppression structure, in words (§2.8.14)
ENABLE, DISABLE, AT_DESCRIPTOR = 0, 1, 2
WRAP = 1 << 15
_ID, _FLAGS = 32, 48  # where these begin in the second half of a descriptor
_BUT_ID = ~(0xFFFF << _ID)


class PackedRing:
    """The ring and the two event suppression structures of one queue, as views of guest memory."""

    slot = DESCRIPTOR_SIZE
    """Bytes of a slot in the journal: a descriptor."""

    window_kind: ClassVar[type[Window]] = Window
    is_copied: ClassVar[bool] = False
    """Whether the views are of a copy, so that :meth:`publish` is needed."""

    def __init__(self, queue: Virtqueue, dma: Dma, *, event_idx: bool) -> None:
        size = queue.size
        self._queue = queue
        self._journal = queue.journal
        self.window = self.window_kind(queue, dma)
        self._size = size
        self._event_idx = event_idx
        self._ring, driver, device = self.parts(queue, dma)
        self._words = self._ring.cast("H")
        self._halves = self._ring.cast("Q")  # of descriptors: the address; length, id and flags
        self._driver, self._device = driver.cast("H"), device.cast("H")

    def parts(self, queue: Virtqueue, dma: Dma) -> tuple[memoryview, memoryview, memoryview]:
        """Views of the ring, and of the driver's and the device's event suppression structures."""
        return (
            dma.whole(queue.desc, 16 * queue.size, write=True),
            dma.whole(queue.driver, 4),
            dma.whole(queue.device_area, 4, write=True),
        )

    def take(self, most: int) -> list[Chain]:
        """Take the next buffers, at most ``most``. The list is empty if there is none.

        It ends before a buffer that is wrong. If that is the first, a GuestError is raised.
        """
        queue, size, words = self._queue, self._size, self._words
        at, wrap, out = queue.next, queue.next_wrap, queue.out
        chains: list[Chain] = []
        while len(chains) < most and words[8 * at + 7] & _MARKS == (AVAILABLE if wrap else USED):
            try:
                number, span, parts = self._walk(at)
                if out + span > size:
                    raise GuestError(f"more than {size} descriptors in our hands")
                chains.append(self.window.chain(number, span, parts))
            except GuestError:
                if not chains:
                    raise
                break
            out += span
            at += span
            if at >= size:
                at, wrap = at - size, wrap ^ 1
        queue.next, queue.next_wrap, queue.out = at, wrap, out
        return chains

    def rows(self, most: int, head: int, tail: int) -> list[Row]:
        """The next buffers, at most ``most``, up to one that is no row with ``head`` bytes to read at the start, and
        ``tail`` bytes to write at the end. None is taken: :meth:`take` finds out what is wrong with one.
        """
        queue, size, ring, halves = self._queue, self._size, self._ring, self._halves
        at, wrap, left = queue.next, queue.next_wrap, size - queue.out
        (start, end, memory), unpack = self.window.read, ROW.unpack_from
        found: list[Row] = []
        while len(found) < most:
            half, marks = halves[2 * at + 1], AVAILABLE if wrap else USED
            flags, span = half >> _FLAGS, 1
            if flags == INDIRECT | marks and half & LENGTH == ROW.size:
                place, marks = halves[2 * at], 0
                if not start <= place <= end - ROW.size:
                    start, end, memory = self.window.reach(place, ROW.size, write=False)
                    if not end:
                        break
                one, of_one, two, of_two, three, of_three = unpack(memory, place - start)
                number = half >> _ID & 0xFFFF
                # Every descriptor of a table counts, whether or not it has NEXT (§2.8.7).
                of_one, of_two = of_one | NEXT << _FLAGS, of_two | NEXT << _FLAGS
            elif flags == NEXT | marks and at <= size - 3:
                one, of_one, two, of_two, three, of_three = unpack(ring, DESCRIPTOR_SIZE * at)
                number, span = of_three >> _ID & 0xFFFF, 3
            else:
                break
            left -= span
            of_data = of_two >> _FLAGS ^ marks
            if (
                of_one & _BUT_ID != head | (NEXT | marks) << _FLAGS
                or of_three & _BUT_ID != tail | (WRITE | marks) << _FLAGS
                or (of_data != NEXT and of_data != NEXT | WRITE)
                or left < 0
            ):
                break
            found.append((number, span, one, two, of_two & LENGTH, of_data != NEXT, three))
            at += span
            if at >= size:
                at, wrap = at - size, wrap ^ 1
        return found

    def take_rows(self, rows: Sequence[Row]) -> None:
        """Take these rows, which are the next buffers."""
        queue, total = self._queue, sum([row[1] for row in rows])
        queue.next, queue.next_wrap = self._step(queue.next, queue.next_wrap, total)
        queue.out += total

    def put_rows(self, rows: Sequence[Row], written: Sequence[int]) -> int:
        """:meth:`put` for rows, with so many bytes in each."""
        return self._put([row[0] for row in rows], written, [row[1] for row in rows])

    def whole(self, most: int, *, write: bool) -> Whole | None:
        """As :meth:`SplitRing.whole`. It ends where the ring does."""
        queue, size, halves = self._queue, self._size, self._halves
        at = queue.next
        wanted = (AVAILABLE if queue.next_wrap else USED) | (WRITE if write else 0)
        low, high, memory = self.window.write if write else self.window.read
        ids: list[int] = []
        starts: list[int] = []
        sizes: list[int] = []
        for place in range(2 * at, 2 * min(at + min(most, size - queue.out), size), 2):
            half = halves[place + 1]  # before the address, which is valid only if the flags say so
            if half >> _FLAGS != wanted:
                break
            address, length = halves[place], half & LENGTH
            if address < low or address + length > high or not 0 < length <= MOST_BYTES:
                break
            ids.append(half >> _ID & 0xFFFF)
            starts.append(address - low)
            sizes.append(length)
        return Whole(ids, memory, starts, sizes) if ids else None

    def put_whole(self, ids: Sequence[int], written: Sequence[int]) -> int:
        """As :meth:`SplitRing.put_whole`."""
        queue, count = self._queue, len(ids)
        queue.next, queue.next_wrap = self._step(queue.next, queue.next_wrap, count)
        queue.out += count
        return self._put(ids, written, [1] * count)

    def back(self, chains: Sequence[Chain]) -> None:
        """Make the buffers that were taken last available again."""
        queue = self._queue
        total = sum(chain.span for chain in chains)
        queue.next, queue.next_wrap = self._step(queue.next, queue.next_wrap, -total)
        queue.out -= total
        queue.journal.shrink(queue.out)

    def put(self, chains: Sequence[Chain]) -> int:
        """Publish used buffers, all at once. Returns what :meth:`wanted` is asked with: the slots that they took.

        Of each descriptor, length, id and flags are written together. The first one is written last: until then the
        driver sees none of the buffers (§2.8.21.2).
        """
        return self._put(
            [chain.id for chain in chains], [chain.written for chain in chains], [chain.span for chain in chains]
        )

    def _put(self, ids: Sequence[int], written: Sequence[int], spans: Sequence[int]) -> int:
        queue, size, halves, journal = self._queue, self._size, self._halves, self._journal
        at, wrap = queue.used, queue.used_wrap
        total = sum(spans)
        left = queue.out - total
        if left:
            journal.prepare(self, self.taken_to, queue.out, ids)
        elif len(ids) > 1:  # else the one descriptor that is written over is the buffer's own
            start, stop = DESCRIPTOR_SIZE * (queue.next - queue.out), DESCRIPTOR_SIZE * queue.next
            if start < 0 or journal.logged:
                journal.note(self, self.taken_to, queue.out)
            else:  # the same, in fewer steps
                journal.first_takes[: stop - start] = self._ring[start:stop]
                journal.words[0] |= queue.out << LOGGED
        first = 2 * at + 1
        if total == len(ids) and at + total < size:  # the same as the loop, in fewer steps
            marks = AVAILABLE | USED if wrap else 0
            plain, filled = marks << _FLAGS, (marks | WRITE) << _FLAGS
            used = [
                length | number << _ID | (filled if length else plain)
                for number, length in zip(ids, written, strict=True)
            ]
            at += total
            halves[first + 2 : 2 * at : 2] = array("Q", used[1:])
            head = used[0]
        else:
            head = -1
            for number, length, span in zip(ids, written, spans, strict=True):
                flags = (AVAILABLE | USED if wrap else 0) | (WRITE if length else 0)
                half = length | number << _ID | flags << _FLAGS
                if head >= 0:
                    halves[2 * at + 1] = half
                else:
                    head = half
                at += span
                if at >= size:
                    at, wrap = at - size, wrap ^ 1
        halves[first] = head
        if self.is_copied:
            self.publish(spans)
        queue.used, queue.used_wrap = at, wrap
        queue.out = left
        if left:
            journal.commit(len(ids), left)
        elif journal.logged:
            journal.settle(at | WRAP if wrap else at)
        else:
            journal.words[0] = (at | WRAP if wrap else at) << FROM
        return total

    def publish(self, spans: Sequence[int]) -> None:
        """Write what :meth:`put` has changed to guest memory, if the views are of a copy."""

    def wanted(self, total: int) -> bool:
        """Whether the driver wants an interrupt, now that ``total`` slots were used since it was told last."""
        flags = self._driver[FLAGS] & 3
        if flags != AT_DESCRIPTOR or not self._event_idx:
            return flags != DISABLE
        event = self._driver[OFFSET]
        place = event & ~WRAP
        at = self._queue.used
        if event >> 15 != self._queue.used_wrap:
            place -= self._size
        return crossed(place, at - min(total, self._size), at)  # an event of the next round is none of this one

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
        return self.available()

    def available(self) -> bool:
        """Whether the driver has made the next buffer available."""
        queue = self._queue
        return self._words[8 * queue.next + 7] & _MARKS == (AVAILABLE if queue.next_wrap else USED)

    # -- bellwire.virtio.inflight.Ring

    @property
    def taken_to(self) -> int:
        """The position of the next buffer to take."""
        queue = self._queue
        return queue.next | (WRAP if queue.next_wrap else 0)

    def log(self, place: memoryview, count: int, end: int) -> None:
        """Copy the ``count`` descriptors before position ``end`` to ``place``."""
        stop, ring = DESCRIPTOR_SIZE * (end & ~WRAP), self._ring
        start = stop - DESCRIPTOR_SIZE * count
        if start >= 0:
            place[:] = ring[start:stop]
        else:
            place[:-start] = ring[start:]
            place[-start:] = ring[:stop]

    def parse(self, slots: bytes | bytearray) -> list[Out]:
        """The buffers that these descriptors make up. A GuestError if the last one goes on."""
        found, start = [], 0
        for end, (_, _, number, flags) in enumerate(DESCRIPTOR.iter_unpack(slots), 1):
            if not flags & NEXT:
                found.append(Out(number, end - start, bytes(slots[DESCRIPTOR_SIZE * start : DESCRIPTOR_SIZE * end])))
                start = end
        if DESCRIPTOR_SIZE * start < len(slots):
            raise GuestError("a chain of the journal has no end")
        return found

    def move(self, position: int, count: int) -> int:
        """The position ``count`` slots on, or back: a log holds more than one pass of the ring."""
        size = self._size
        passed, at = divmod((position & ~WRAP) + count, size)
        return at | (position >> 15 ^ passed & 1) << 15

    def has_returned(self, position: int) -> bool:
        """Whether a buffer has been published at ``position``, whose descriptor the driver had made available.

        The driver may have taken the buffer back, and have made the place available again: USED stays as it is then.
        """
        return bool(self._words[8 * (position & ~WRAP) + 7] & USED) is bool(position & WRAP)

    def unlogged(self, start: int, out: int) -> tuple[int, int]:
        """What was out still is, if it has not been returned together. A GuestError if no ring has such a ``start``."""
        if start & ~WRAP >= self._size:
            raise GuestError(f"position {start & ~WRAP} in a ring of {self._size}")
        if self.has_returned(start):
            return 0, self.taken_to
        return out, self.move(start, out)

    def resume(self, end: int, left: Sequence[Out]) -> None:
        """Go on with ``left`` in the device's hands, and with the buffer at ``end``. A GuestError if it cannot."""
        queue = self._queue
        out = sum(each.span for each in left)
        if out > self._size:
            raise GuestError(f"{out} descriptors out of a ring of {self._size}")
        queue.next, queue.next_wrap = end & ~WRAP, end >> 15
        queue.used, queue.used_wrap = self._step(queue.next, queue.next_wrap, -out)
        queue.out = out

    def again(self, out: Out) -> Chain:
        """The chain of a buffer that is out. A GuestError if it is wrong."""
        found: list[Descriptor] = []
        for address, length, _, flags in DESCRIPTOR.iter_unpack(out.slots):
            if flags & INDIRECT:
                found += self._indirect(address, length)
            else:
                found.append((address, length, flags, 0))
        chain = self.window.chain(out.id, out.span, found)
        chain.again = out
        return chain

    def _step(self, at: int, wrap: int, count: int) -> tuple[int, int]:
        """The position and wrap counter ``count`` slots on, or back if negative (§2.8.1)."""
        at += count
        if at >= self._size:
            return at - self._size, wrap ^ 1
        if at < 0:
            return at + self._size, wrap ^ 1
        return at, wrap

    def _walk(self, at: int) -> tuple[int, int, list[Descriptor]]:
        """Follow the chain that begins in slot ``at``. Returns its id, the slots that it takes, and its descriptors."""
        ring, size, unpack = self._ring, self._size, DESCRIPTOR.unpack_from
        found: list[Descriptor] = []
        for span in range(1, size + 1):
            address, length, number, flags = unpack(ring, DESCRIPTOR_SIZE * at)
            at += 1
            if at == size:
                at = 0
            if not flags & INDIRECT:
                found.append((address, length, flags, 0))
            elif flags & NEXT:
                raise GuestError("an indirect table that goes on")
            else:
                found += self._indirect(address, length)
            if not flags & NEXT:
                return number, span, found
        raise GuestError(f"a chain of more than {size} descriptors")

    def _indirect(self, address: int, length: int) -> list[Descriptor]:
        """Every descriptor of an indirect table, in order. Of their flags only WRITE counts (§2.8.7)."""
        found = []
        for place, size, _, flags in DESCRIPTOR.iter_unpack(self.window.table(address, length)):
            if flags & INDIRECT:
                raise GuestError("an indirect table within another")
            found.append((place, size, flags, 0))
        return found
