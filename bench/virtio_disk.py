"""A virtio-blk driver with as little work per request as possible (virtio 1.2 §2.7, §5.2)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from bellwire.bundled.virtio_blk.request import HEADER, SECTOR, Blk, Type
from bellwire.virtio.fence import fence
from bench.initiator import BUFFERS, DATA, LOOKS, Plugged
from bench.virtio_start import start

SIZE = 256  # descriptors
SLOTS = SIZE // 3  # requests: a header, data, a byte for the result
_DESCRIPTOR = struct.Struct("<QIHH")
_NEXT, _WRITE = 1, 2
_SECTOR_NUMBER = struct.Struct("<Q")


class VirtioDisk:
    """One queue; every request moves ``length`` bytes."""

    def __init__(self, device: Plugged, length: int, *, write: bool) -> None:
        self._memory = memory = device.memory
        table, avail, used = (device.allocate(size) for size in (16 * SIZE, 6 + 2 * SIZE, 6 + 8 * SIZE))
        self._headers = headers = device.allocate(HEADER.size * SLOTS)
        self._results = results = device.allocate(SLOTS)
        self._avail = memory[avail : avail + 4 + 2 * SIZE].cast("H")
        self._used = memory[used : used + 4 + 8 * SIZE].cast("H")
        self._free = list(range(SLOTS))
        self._wait = device.step
        self._available = self._seen = 0
        for slot in range(SLOTS):
            first, header = 3 * slot, headers + HEADER.size * slot
            HEADER.pack_into(memory, header, Type.OUT if write else Type.IN, 0, 0)
            data = DATA + slot % BUFFERS * length
            for number, descriptor in enumerate(
                (
                    (header, HEADER.size, _NEXT, first + 1),
                    (data, length, _NEXT | (0 if write else _WRITE), first + 2),
                    (results + slot, 1, _WRITE, 0),
                )
            ):
                _DESCRIPTOR.pack_into(memory, table + 16 * (first + number), *descriptor)
        self._bell = start(device, 0, (table, avail, used), SIZE, 1 << Blk.FLUSH)

    def run(self, offsets: Sequence[int], depth: int) -> None:
        """As in :class:`bench.initiator.Disk`."""
        memory, avail, used, free = self._memory, self._avail, self._used, self._free
        pack, headers, results, bell = _SECTOR_NUMBER.pack_into, self._headers, self._results, self._bell
        available, seen = self._available, self._seen
        waiting = iter(offsets)
        left, room = len(offsets), depth
        while left:
            before = available
            for _, offset in zip(range(room), waiting, strict=False):
                slot = free.pop()
                pack(memory, headers + HEADER.size * slot + 8, offset // SECTOR)
                avail[2 + available % SIZE] = 3 * slot
                available = available + 1 & 0xFFFF
            if available != before:
                avail[1] = available
                fence()
                if not used[0]:
                    bell(0)
            room = looks = 0
            enough = min(left, max(1, depth // 2))
            while room < enough:
                while seen != used[1]:
                    slot = used[2 + seen % SIZE * 4] // 3
                    if memory[results + slot]:
                        raise OSError(f"a request failed with result {memory[results + slot]}")
                    free.append(slot)
                    seen = seen + 1 & 0xFFFF
                    room += 1
                looks += 1
                if room < enough and looks > LOOKS:
                    self._wait()
            left -= room
        self._available, self._seen = available, seen
