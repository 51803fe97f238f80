"""An NVMe driver: no more work for a command than there must be, so that what is measured is the device."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from bellwire.nvme.command import IoOpcode
from bench.initiator import BUFFERS, DATA, LOOKS, Plugged
from nvme.driver import Driver, prps

SIZE = 256  # of the queues
BLOCK = 4096
_BLOCK_NUMBER = struct.Struct("<Q")
_NUMBER_AT, _ENTRY = 40, 64  # bytes: of the block number in a command, of a command
_STATUS, _WORDS = 7, 8  # of a completion, in words of 16 bits


class NvmeDisk:
    """One queue pair; every command moves ``length`` bytes. Its buffers lie one after the other from DATA on."""

    def __init__(self, device: Plugged, length: int, *, write: bool) -> None:
        driver = Driver(device)
        driver.enable()
        queues = driver.create_queues(1, SIZE, vector=1)
        self._memory = device.memory
        self._sq = queues.sq
        self._statuses = device.memory[queues.cq : queues.cq + SIZE * 16].cast("H")
        self._wait = device.step
        self._tail = self._head = self._untold = 0
        self._phase = 1
        self._ring_tail = device.bell(0x1008, 4)
        self._ring_head = device.bell(0x100C, 4)
        for slot in range(SIZE):
            start = DATA + slot % BUFFERS * length
            prp1, prp2 = prps(driver, range(start, start + length, 4096))
            opcode = IoOpcode.WRITE if write else IoOpcode.READ
            queues.tail = slot
            queues.put(opcode, nsid=1, prp1=prp1, prp2=prp2, dwords=(0, 0, length // BLOCK - 1), cid=slot)

    def run(self, offsets: Sequence[int], depth: int) -> None:
        """As :class:`bench.initiator.Disk` has it."""
        memory, statuses, sq = self._memory, self._statuses, self._sq
        pack, ring_tail, ring_head = _BLOCK_NUMBER.pack_into, self._ring_tail, self._ring_head
        tail, head, phase, untold = self._tail, self._head, self._phase, self._untold
        waiting = iter(offsets)
        left, free = len(offsets), depth
        while left:
            before = tail
            for _, offset in zip(range(free), waiting, strict=False):
                pack(memory, sq + tail * _ENTRY + _NUMBER_AT, offset // BLOCK)
                tail = (tail + 1) % SIZE
            if tail != before:
                ring_tail(tail)
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
            untold += free
            if untold > SIZE // 2:  # long before the queue is full
                ring_head(head)
                untold = 0
            left -= free
        self._tail, self._head, self._phase, self._untold = tail, head, phase, untold
