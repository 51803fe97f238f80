"""Reads and writes whose data is one piece, a batch at a time: these are most of the requests of a busy guest.

:class:`VirtioBlk` could do the same, with all its checks and errors. This module is the fast path. It does reads from
the page cache, and reads and writes of a disk in memory, at once. Writes to the page cache are gathered for a thread.
It ends before any other request, and also before one whose data is not in memory, or that is wrong.
"""

from __future__ import annotations

import os
from time import perf_counter_ns
from typing import TYPE_CHECKING

from bellwire import Job
from bellwire.bundled.virtio_blk.request import HEADER, HEADER_SIZE, SECTOR, Result, Type
from bellwire.storage import Disk
from bellwire.virtio import Virtqueue
from bellwire.virtio.chain import Row
from bellwire.virtio.virtqueue import Ring

if TYPE_CHECKING:
    from bellwire.bundled.virtio_blk.device import VirtioBlk

MOST = 16
"""Requests after which the driver sees the results: it handles these while the next ones are done."""
AT_ONCE = 1 << 20
"""Bytes moved in memory before the worker looks at the next doorbell. A larger request is left to a thread."""
ENOUGH = 512 << 10
"""Bytes after which the driver is told of completions."""
STATUS_SIZE = 1
IN, OUT, DONE = int(Type.IN), int(Type.OUT), int(Result.OK)


class Writes(Job):
    """Writes to the page cache, which one thread does one after the other: each takes about as long as a wake-up.

    For each there is a row, a piece of guest memory with its place on the disk, and the byte for the result.
    """

    __slots__ = ("begun", "errors", "pieces", "queue", "results", "rows")

    def __init__(self, disk: Disk, queue: Virtqueue, begun: int) -> None:
        super().__init__(self.write, disk)
        self.queue = queue
        self.begun = begun
        self.rows: list[Row] = []
        self.pieces: list[tuple[memoryview, int]] = []
        self.results: list[tuple[memoryview, int]] = []
        self.errors: dict[int, OSError] = {}

    def write(self, disk: Disk) -> None:
        """Do all of them, on a thread. What a write raises is kept in ``errors``, under its number."""
        for number, (piece, offset) in enumerate(self.pieces):
            try:
                if os.pwritev(disk.fd, [piece], offset) != len(piece):
                    disk.write([piece], offset)
            except OSError as error:
                self.errors[number] = error

    @property
    def size(self) -> int:
        """The number of bytes of data."""
        return sum([len(piece) for piece, _ in self.pieces])

    def end(self, device: VirtioBlk) -> None:
        """Write the results, and return the buffers."""
        for number, (memory, at) in enumerate(self.results):
            error = self.error or self.errors.get(number)
            memory[at] = DONE if error is None else device.blame(error)
        count = len(self.rows)
        self.queue.put_rows(self.rows, [STATUS_SIZE] * count, self.size + count * (HEADER_SIZE + STATUS_SIZE))


def at_once(device: VirtioBlk, queue: Virtqueue, ring: Ring, most: int) -> int:
    """Do the next requests of ``queue``, at most ``most``, within the budget of ``device``. Returns how many are taken.

    Nothing of a request is touched before all of its addresses are found. Writes to an image are left in
    ``device.writes``, for a thread.
    """
    disk = device.disk
    size, fd, flags, memory = disk.size, disk.fd, disk.at_once, disk.view
    in_memory = len(memory) > 0
    rows, window = ring.rows(min(most, MOST), HEADER_SIZE, STATUS_SIZE), ring.window
    if not rows:
        return 0
    begun = perf_counter_ns()
    budget, told = device.budget, device.told
    left = budget
    writable = not disk.readonly
    (read_start, read_end, read), (write_start, write_end, write) = window.read, window.write
    unpack, preadv = HEADER.unpack_from, os.preadv
    done: list[Row] = []
    used: list[int] = []
    later: Writes | None = None
    bytes_written = 0
    for row in rows:
        _, _, head, data, length, reads, tail = row
        if not read_start <= head <= read_end - HEADER_SIZE:
            read_start, read_end, read = window.reach(head, HEADER_SIZE, write=False)
        if not write_start <= tail < write_end:
            write_start, write_end, write = window.reach(tail, STATUS_SIZE, write=True)
        if not (read_end and write_end):
            break
        kind, _, sector = unpack(read, head - read_start)
        offset, status, place = sector * SECTOR, write, tail - write_start
        if length % SECTOR or not 0 < length <= AT_ONCE or offset + length > size:
            break
        if kind == IN and reads:
            if not write_start <= data <= write_end - length:
                write_start, write_end, write = window.reach(data, length, write=True)
                if not write_end:
                    break
            at = data - write_start
            if in_memory:
                write[at : at + length] = memory[offset : offset + length]
            elif flags is None:
                break
            else:
                try:
                    if preadv(fd, [write[at : at + length]], offset, flags) != length:
                        break
                except OSError:  # it would wait or fails: the slow path does it again
                    break
            used.append(length + STATUS_SIZE)
        elif kind == OUT and writable and not reads:
            if not read_start <= data <= read_end - length:
                read_start, read_end, read = window.reach(data, length, write=False)
                if not read_end:
                    break
            at = data - read_start
            if not in_memory:
                if later is None:
                    if device.durable:
                        break
                    later = Writes(disk, queue, begun)
                later.rows.append(row)
                later.pieces.append((read[at : at + length], offset))
                later.results.append((status, place))
                continue
            memory[offset : offset + length] = read[at : at + length]
            used.append(STATUS_SIZE)
            bytes_written += length
        else:
            break
        status[place] = DONE
        done.append(row)
        left -= length
        if left <= told:
            break
    count, total, moved = len(done), budget - left, device.moved
    taken = count
    if later is not None:
        taken += len(later.rows)
        moved[2] += len(later.rows)
        moved[4] += later.size
        device.writes.append(later)
    if taken:
        ring.take_rows(rows[:taken])
    if count:
        queue.put_rows(done, used, total + count * (HEADER_SIZE + STATUS_SIZE))
        device.budget = left
        writes = used.count(STATUS_SIZE) if bytes_written else 0
        moved[0] += count - writes
        moved[1] += total - bytes_written
        moved[2] += writes
        moved[3] += bytes_written
        device.meter.took(perf_counter_ns() - begun, count)
        if left <= told:
            device.told -= ENOUGH
            queue.flush()
    return taken
