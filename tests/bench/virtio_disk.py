"""A virtio-blk driver, for the same purpose as the NVMe one (virtio 1.2 §2.7, §5.2)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from bellwire.virtio import Feature, Status
from bellwire.virtio.block import HEADER, SECTOR, Blk, Type
from bellwire.virtio.fence import fence
from bench.initiator import BUFFERS, DATA, LOOKS, Plugged, capability

SIZE = 256  # descriptors
SLOTS = SIZE // 3  # requests: a header, data, a byte for the result
_DESCRIPTOR = struct.Struct("<QIHH")
_NEXT, _WRITE = 1, 2
_SECTOR_NUMBER = struct.Struct("<Q")
_VENDOR, _COMMON, _NOTIFY = 0x09, 1, 2


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
        self._bell = _start(device, (table, avail, used))

    def run(self, offsets: Sequence[int], depth: int) -> None:
        """As :class:`bench.initiator.Disk` has it."""
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


def _start(device: Plugged, parts: Sequence[int]) -> Callable[[int], None]:
    """Bring the device up with its first queue (§3.1.1); returns what notifies it."""
    places = {}
    config = device.client.read(7, 0, 256)
    for at in capability(device.client, _VENDOR):
        places[config[at + 3]] = at, int.from_bytes(config[at + 8 : at + 12], "little")
    common, (notify_at, notify) = places[_COMMON][1], places[_NOTIFY]
    status = Status.ACKNOWLEDGE | Status.DRIVER
    device.write(common + 0x14, 0, 1)
    device.write(common + 0x14, status, 1)
    features = 1 << Feature.VERSION_1 | 1 << Feature.ACCESS_PLATFORM | 1 << Blk.FLUSH
    for select in range(2):
        device.write(common + 0x08, select, 4)
        device.write(common + 0x0C, features >> 32 * select & 0xFFFF_FFFF, 4)
    status |= Status.FEATURES_OK
    device.write(common + 0x14, status, 1)
    if device.read(common + 0x14, 1) != status:
        raise OSError("the device refuses the features")
    device.write(common + 0x16, 0, 2)
    device.write(common + 0x18, SIZE, 2)
    device.write(common + 0x1A, 1, 2)
    for offset, address in zip((0x20, 0x28, 0x30), parts, strict=True):
        device.write(common + offset, address, 8)
    device.write(common + 0x1C, 1, 2)
    multiplier = int.from_bytes(config[notify_at + 16 : notify_at + 20], "little")
    bell = notify + multiplier * device.read(common + 0x1E, 2)
    device.write(common + 0x14, status | Status.DRIVER_OK, 1)
    return device.bell(bell, 2)
