"""An NVMe driver with as little work per command as possible, so that the device dominates the figures.

It sets shadow doorbells up, as Linux does. Tails and heads lie in memory. The driver rings only when the device has
asked for that in memory.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence

from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bench.initiator import BUFFERS, DATA, LOOKS, Plugged
from nvme.driver import PAGE, Driver, prps

SIZE = 256  # of the queues
BLOCK = 4096
_BLOCK_NUMBER = struct.Struct("<Q")
_NUMBER_AT, _ENTRY = 40, 64  # bytes: of the block number in a command, of a command
_STATUS, _WORDS = 7, 8  # of a completion, in words of 16 bits


class ShadowDoorbell:
    """One doorbell in memory, word ``at`` of two pages: what we say, and past which value we are to ring (§7.13)."""

    def __init__(self, values: memoryview, events: memoryview, at: int, ring: Callable[[int], None]) -> None:
        self._values = values
        self._events = events
        self._at = at
        self._ring = ring
        self._fence = threading.Lock()

    def tell(self, value: int) -> None:
        """Store ``value``, and ring if the device has asked for it."""
        at = self._at
        before = self._values[at]
        self._values[at] = value
        with self._fence:  # the next load must not come before that store
            pass
        if (value - self._events[at] - 1) & 0xFFFF < (value - before) & 0xFFFF:
            self._ring(value)


class NvmeDisk:
    """One queue pair; every command moves ``length`` bytes. Its buffers lie one after the other from DATA on."""

    def __init__(self, device: Plugged, length: int, *, write: bool) -> None:
        driver = Driver(device)
        driver.disable()  # another load may have been before
        driver.enable()
        queues = driver.create_queues(1, SIZE, vector=1)
        self._memory = device.memory
        self._sq = queues.sq
        self._statuses = device.memory[queues.cq : queues.cq + SIZE * 16].cast("H")
        self._wait = device.step
        self._tail = self._head = 0
        self._phase = 1
        self._tail_bell, self._head_bell = self._shadow_doorbells(driver, device)
        for slot in range(SIZE):
            start = DATA + slot % BUFFERS * length
            prp1, prp2 = prps(driver, range(start, start + length, 4096))
            opcode = IoOpcode.WRITE if write else IoOpcode.READ
            queues.tail = slot
            queues.put(opcode, nsid=1, prp1=prp1, prp2=prp2, dwords=(0, 0, length // BLOCK - 1), cid=slot)

    @staticmethod
    def _shadow_doorbells(driver: Driver, device: Plugged) -> tuple[ShadowDoorbell, ShadowDoorbell]:
        """Of the I/O queue pair: its submission queue's, its completion queue's."""
        values, events = driver.allocate(PAGE), driver.allocate(PAGE)
        done = driver.admin.do(AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=values, prp2=events)
        if done.status:
            raise OSError(f"no shadow doorbells: status {done.status:#x}")
        told, wanted = (device.memory[page : page + PAGE].cast("I") for page in (values, events))
        tail, head = (ShadowDoorbell(told, wanted, 2 + at, device.bell(0x1008 + 4 * at, 4)) for at in (0, 1))
        return tail, head

    def run(self, offsets: Sequence[int], depth: int) -> None:
        """As in :class:`bench.initiator.Disk`."""
        memory, statuses, sq = self._memory, self._statuses, self._sq
        pack, tell_tail, tell_head = _BLOCK_NUMBER.pack_into, self._tail_bell.tell, self._head_bell.tell
        tail, head, phase = self._tail, self._head, self._phase
        waiting = iter(offsets)
        left, free = len(offsets), depth
        while left:
            before = tail
            for _, offset in zip(range(free), waiting, strict=False):
                pack(memory, sq + tail * _ENTRY + _NUMBER_AT, offset // BLOCK)
                tail = (tail + 1) % SIZE
            if tail != before:
                tell_tail(tail)
            free = looks = 0
            enough = min(left, max(1, depth // 2))
            while free < enough:
                while (status := statuses[head * _WORDS + _STATUS]) & 1 == phase:
                    if status > 1:
                        raise OSError(f"a command failed with status {status >> 1:#x}")
                    free += 1
                    head += 1
                    if head == SIZE:
                        head, phase = 0, phase ^ 1
                looks += 1
                if free < enough and looks > LOOKS:
                    self._wait()
            tell_head(head)
            left -= free
        self._tail, self._head, self._phase = tail, head, phase
