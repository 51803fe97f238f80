"""Split virtqueues (§2.7): a descriptor table, an available ring and a used ring."""

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
from bellwire.virtio.inflight import Out

if TYPE_CHECKING:
    from bellwire.virtio.virtqueue import Virtqueue

DESCRIPTOR_SIZE = DESCRIPTOR.size
ELEMENT_SIZE = 8
NOTHING = (0, 0, NEXT, 0)
"""A descriptor outside the table: the walk refuses it."""
FLAGS, INDEX, RING = 0, 1, 2  # of either ring, in words of 16 bits
NO_INTERRUPT = NO_NOTIFY = 1
_FLAGS, _NEXT = 32, 48  # where these begin in the second half of a descriptor
_BEFORE_NEXT = (1 << _NEXT) - 1
_TABLE_OF_ROW = ROW.size | INDIRECT << _FLAGS


class SplitRing:
    """The three parts of one split queue, as views of guest memory."""

    slot = 2
    """Bytes of a slot in the journal: the head of a chain."""

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
        self._table, avail, self._used = self.parts(queue, dma)
        self._halves = self._table.cast("Q")  # of descriptors: the address; length, flags and next
        self._avail = avail.cast("H")
        self._used_words = self._used.cast("H")
        self._elements = self._used[4 : 4 + ELEMENT_SIZE * size].cast("I")  # pairs of id and length (§2.7.8)
        self._used_event = RING + size  # in the available ring: when the driver wants an interrupt (§2.7.7)
        self._avail_event = RING + 4 * size  # in the used ring: when the device wants a notification (§2.7.10)

    def parts(self, queue: Virtqueue, dma: Dma) -> tuple[memoryview, memoryview, memoryview]:
        """Views of the descriptor table, the available ring and the used ring."""
        size = queue.size
        return (
            dma.whole(queue.desc, 16 * size),
            dma.whole(queue.driver, 6 + 2 * size),
            dma.whole(queue.device_area, 6 + 8 * size, write=True),
        )

    def take(self, most: int) -> list[Chain]:
        """Take the next buffers, at most ``most``. The list is empty if there is none.

        It ends before a buffer that is wrong. If that is the first, a GuestError is raised.
        """
        queue, size, avail = self._queue, self._size, self._avail
        first = queue.next
        waiting = avail[INDEX] - first & 0xFFFF
        if not waiting:
            return []
        if waiting > size:
            raise GuestError(f"{waiting} buffers available in a ring of {size}")
        free = size - queue.out
        if free <= 0:
            raise GuestError(f"more than {size} buffers in our hands")
        chains: list[Chain] = []
        window, table, unpack = self.window, self._table, DESCRIPTOR.unpack_from
        for position in range(first, first + min(waiting, most, free)):
            head = avail[RING + position % size]
            try:
                only = unpack(table, DESCRIPTOR_SIZE * head) if head < size else NOTHING
                parts = self._walk(head) if only[2] & (NEXT | INDIRECT) else (only,)
                chains.append(window.chain(head, 1, parts))
            except GuestError:
                if not chains:
                    raise
                break
        queue.next = first + len(chains) & 0xFFFF
        queue.out += len(chains)
        return chains

    def rows(self, most: int, head: int, tail: int) -> list[Row]:
        """The next buffers, at most ``most``, up to one that is no row with ``head`` bytes to read at the start, and
        ``tail`` bytes to write at the end. None is taken: :meth:`take` finds out what is wrong with one.
        """
        queue, size, avail, table, halves = self._queue, self._size, self._avail, self._table, self._halves
        first = queue.next
        waiting = avail[INDEX] - first & 0xFFFF
        if waiting > size:
            return []
        (start, end, memory), unpack, last = self.window.read, ROW.unpack_from, size - 3
        head |= NEXT << _FLAGS
        tail |= WRITE << _FLAGS
        found: list[Row] = []
        for position in range(first, first + min(waiting, most, size - queue.out)):
            number = at = avail[RING + position % size]
            if at <= last:
                one, of_one, two, of_two, three, of_three = unpack(table, DESCRIPTOR_SIZE * at)
            elif at < size:
                one, of_one = halves[2 * at], halves[2 * at + 1]
                two = of_two = three = of_three = 0
            else:
                break
            if of_one & _BEFORE_NEXT == _TABLE_OF_ROW:
                if not start <= one <= end - ROW.size:
                    start, end, memory = self.window.reach(one, ROW.size, write=False)
                    if not end:
                        break
                one, of_one, two, of_two, three, of_three = unpack(memory, one - start)
                at = 0
            of_data = (of_two >> _FLAGS) - (at + 2 << 16)
            if (
                of_one != head | at + 1 << _NEXT
                or of_three & _BEFORE_NEXT != tail
                or (of_data != NEXT and of_data != NEXT | WRITE)
            ):
                break
            found.append((number, 1, one, two, of_two & LENGTH, of_data != NEXT, three))
        return found

    def take_rows(self, rows: Sequence[Row]) -> None:
        """Take these rows, which are the next buffers."""
        queue = self._queue
        queue.next = queue.next + len(rows) & 0xFFFF
        queue.out += len(rows)

    def put_rows(self, rows: Sequence[Row], written: Sequence[int]) -> int:
        """:meth:`put` for rows, with so many bytes in each."""
        return self._put([row[0] for row in rows], written)

    def whole(self, most: int, *, write: bool) -> Whole | None:
        """The next buffers, at most ``most``, as long as each is one piece in the map that the last ones were in.

        None if the next buffer is no such one, or if there is none: :meth:`take` finds out. None of them is taken.
        """
        queue, size, avail, table, unpack = self._queue, self._size, self._avail, self._table, DESCRIPTOR.unpack_from
        first = queue.next
        waiting = avail[INDEX] - first & 0xFFFF
        if not waiting or waiting > size:
            return None
        start = first % size
        heads = avail[RING + start : RING + min(start + min(waiting, most, size - queue.out), size)].tolist()
        wanted = WRITE if write else 0
        low, high, memory = self.window.write if write else self.window.read
        starts: list[int] = []
        sizes: list[int] = []
        for head in heads:
            if head >= size:
                break
            address, length, flags, _ = unpack(table, DESCRIPTOR_SIZE * head)
            if flags != wanted or address < low or address + length > high or not 0 < length <= MOST_BYTES:
                break
            starts.append(address - low)
            sizes.append(length)
        return Whole(heads, memory, starts, sizes) if starts else None

    def put_whole(self, ids: Sequence[int], written: Sequence[int]) -> int:
        """Take the buffers with these ids, which are the next, and :meth:`put` them, with so many bytes in each."""
        queue, count = self._queue, len(ids)
        queue.next = queue.next + count & 0xFFFF
        queue.out += count
        return self._put(ids, written)

    def back(self, chains: Sequence[Chain]) -> None:
        """Make the buffers that were taken last available again."""
        queue = self._queue
        queue.next = queue.next - len(chains) & 0xFFFF
        queue.out -= len(chains)
        queue.journal.shrink(queue.out)

    def put(self, chains: Sequence[Chain]) -> int:
        """Publish used buffers, all at once. Returns what :meth:`wanted` is asked with: the number of them."""
        return self._put([chain.id for chain in chains], [chain.written for chain in chains])

    def _put(self, ids: Sequence[int], written: Sequence[int]) -> int:
        queue, size, elements, journal = self._queue, self._size, self._elements, self._journal
        before, count = queue.used, len(ids)
        left = queue.out - count
        if left:
            journal.prepare(self, queue.next, queue.out, ids)
        start = before % size
        if count == 1:
            elements[2 * start], elements[2 * start + 1] = ids[0], written[0]
        else:
            pairs = array("I", bytes(ELEMENT_SIZE * count))
            pairs[::2], pairs[1::2] = array("I", ids), array("I", written)
            straight = 2 * min(count, size - start)
            elements[2 * start : 2 * start + straight] = pairs[:straight]
            elements[: 2 * count - straight] = pairs[straight:]
        self._used_words[INDEX] = queue.used = before + count & 0xFFFF
        if self.is_copied:
            self.publish(before, count)
        queue.out = left
        if left:
            journal.commit(count, left)
        elif journal.logged:
            journal.settle(0)
        return count

    def publish(self, before: int, count: int) -> None:
        """Write what :meth:`put` has changed to guest memory, if the views are of a copy."""

    def wanted(self, count: int) -> bool:
        """Whether the driver wants an interrupt, now that ``count`` buffers were put since it was told last."""
        if self._event_idx:
            used = self._queue.used
            return crossed(self._avail[self._used_event], used - count, used)
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
        return self.available()

    def available(self) -> bool:
        """Whether the driver has made the next buffer available."""
        return self._avail[INDEX] != self._queue.next

    # -- bellwire.virtio.inflight.Ring

    @property
    def taken_to(self) -> int:
        """The position of the next buffer to take."""
        return self._queue.next

    def log(self, place: memoryview, count: int, end: int) -> None:
        """Copy the heads of the ``count`` buffers that were taken before position ``end`` to ``place``."""
        size, avail, heads = self._size, self._avail, place.cast("H")
        start = (end - count) % size
        straight = min(count, size - start)
        heads[:straight] = avail[RING + start : RING + start + straight]
        if straight < count:
            heads[straight:] = avail[RING : RING + count - straight]

    def parse(self, slots: bytes | bytearray) -> list[Out]:
        """The buffers that begin with these heads."""
        return [Out(head, 1, head.to_bytes(2, "little")) for head in array("H", slots)]

    def move(self, position: int, count: int) -> int:
        """The position ``count`` buffers on, or back."""
        return position + count & 0xFFFF

    def has_returned(self, position: int) -> bool:
        """Whether a buffer has been published at ``position``."""
        return self._used_words[INDEX] != position

    def unlogged(self, start: int, out: int) -> tuple[int, int]:
        """What was taken since the last return is out. A GuestError if that is more than the ring has."""
        end = self._queue.next
        count = end - self._used_words[INDEX] & 0xFFFF
        if count > self._size:
            raise GuestError(f"a used index of {self._used_words[INDEX]}, at most {end} expected")
        return count, end

    def resume(self, end: int, left: Sequence[Out]) -> None:
        """Go on with ``left`` in the device's hands, and with the buffer at ``end``. A GuestError if it cannot."""
        queue = self._queue
        used = end - len(left) & 0xFFFF
        if self._used_words[INDEX] != used or len(left) > self._size:
            raise GuestError(f"a used index of {self._used_words[INDEX]}, {used} expected")
        queue.next, queue.used, queue.out = end, used, len(left)

    def again(self, out: Out) -> Chain:
        """The chain of a buffer that is out. A GuestError if it is wrong."""
        chain = self.window.chain(out.id, 1, self._walk(out.id))
        chain.again = out
        return chain

    def _walk(self, at: int) -> list[Descriptor]:
        """Follow a chain: descriptors of the queue, and perhaps an indirect table at the end (§2.7.5.3.2)."""
        table: memoryview | bytes = self._table
        count = left = self._size
        unpack = DESCRIPTOR.unpack_from
        found: list[Descriptor] = []
        while True:
            if at >= count:
                raise GuestError(f"descriptor {at} of {count}")
            if not left:
                raise GuestError(f"a chain of more than {count} descriptors")
            left -= 1
            descriptor = unpack(table, DESCRIPTOR_SIZE * at)
            address, length, flags, at = descriptor
            if flags & INDIRECT:
                if table is not self._table or flags & NEXT:
                    raise GuestError("an indirect table within another, or one that goes on")
                table, at = self.window.table(address, length), 0
                left = count = length // DESCRIPTOR_SIZE
                continue
            found.append(descriptor)
            if not flags & NEXT:
                return found


def crossed(event: int, before: int, now: int) -> bool:
    """Whether going from ``before`` to ``now`` passes ``event``, all modulo 2^16 (§2.7.10)."""
    return (now - event - 1 & 0xFFFF) < (now - before & 0xFFFF)
