"""Reads and writes of data in memory, a batch at a time: these are most of the commands of a busy guest.

:mod:`bellwire.bundled.nvme.io` could do the same, with all its checks and errors. This module is the fast path for
reads from the page cache, and for reads and writes of a namespace in memory. It leaves any other command to the slow
path, and also one whose data is not in memory, or that is wrong.
"""

from __future__ import annotations

import functools
import os
import struct
from typing import TYPE_CHECKING

from bellwire.bundled.nvme.command import COMMAND_SIZE, IoOpcode
from bellwire.bundled.nvme.guest_pages import SCATTERED
from bellwire.bundled.nvme.io import SECTOR_SHIFT, Io
from bellwire.bundled.nvme.namespaces import Namespaces
from bellwire.bundled.nvme.prp import ENTRY, PAGE
from bellwire.errors import GuestError
from vfio_user import SharedMap

if TYPE_CHECKING:
    from bellwire.bundled.nvme.logs import Counters
    from bellwire.model.dma import Dma


READ, WRITE = int(IoOpcode.READ), int(IoOpcode.WRITE)
NOWHERE = SharedMap(1, 0, memoryview(b""))
ENOUGH = 512 << 10
"""Bytes after which the host is told of completions. It handles these while the worker copies the next data."""
LARGE = 32 << 10
"""A read of so many bytes waits for the commands behind it: one system call does reads that follow one another."""
TRANSFER = struct.Struct("<BBHI16xQQQI12x")
"""The fields of a read or a write (§6.9, §6.15): opcode, flags, id, namespace, PRP1, PRP2, first block, dword 12."""


@functools.lru_cache(4096)
def _row(page: int, count: int) -> bytes:
    """The PRP list of ``count`` consecutive pages. Guests use buffers again, and comparing a list is quick."""
    return struct.pack(f"<{count}Q", *range(page, page + count * PAGE, PAGE))


class Stretch:
    """Large reads that follow one another on the disk behind ``fd``, from ``start`` to ``end``."""

    __slots__ = ("_commands", "_flags", "_views", "end", "fd", "start")

    def __init__(self, fd: int, flags: int, start: int) -> None:
        self.fd = fd
        self.start = self.end = start
        self._flags = flags
        self._views: list[memoryview] = []
        self._commands: list[tuple[int, bytes]] = []

    def add(self, cid: int, command: bytes, view: memoryview) -> None:
        """Add a read of the bytes at the end."""
        self._commands.append((cid, command))
        self._views.append(view)
        self.end += len(view)

    def read(self, done: list[int], left: list[bytes]) -> int:
        """Do all of them. Those whose bytes did not come at once are ``left``. Returns the number of their bytes."""
        try:
            got = os.preadv(self.fd, self._views, self.start, self._flags)
        except OSError:  # it would wait or fails: left to the slow path
            got = 0
        here = self.start
        for (cid, command), view in zip(self._commands, self._views, strict=True):
            here += len(view)
            if here <= self.start + got:
                done.append(cid)
            else:
                left.append(command)
                self.end -= len(view)
        return here - self.end


class AtOnce:
    """Transfers between disks and consecutive pages of guest memory, within the budget of ``io``."""

    def __init__(self, dma: Dma, namespaces: Namespaces, io: Io, counters: Counters) -> None:
        self._dma = dma
        self._namespaces = namespaces
        self._io = io
        self._counters = counters
        self._window, self._changes = NOWHERE, -1

    def transfer(self, block: bytes) -> tuple[list[int], list[bytes], int]:
        """Do the plain reads and writes in ``block``, up to ENOUGH bytes.

        Returns the ids of the commands that are done, the other commands, and the number of commands that were left
        since ENOUGH bytes were moved.
        """
        done: list[int] = []
        left: list[bytes] = []
        spaces, preadv = self._namespaces.open, os.preadv
        nsid, shift, blocks, fd = 0, 0, 0, -1
        now: int | None = None
        (start, end, memory), disk = self._window, memoryview(b"")
        if self._changes != self._dma.changes:
            end = start
        budget, moved, written = self._io.budget, 0, 0
        writable, writes, at = False, 0, 0
        stretch: Stretch | None = None
        for opcode, flags, cid, wanted, prp1, prp2, first, dword in TRANSFER.iter_unpack(block):
            at += COMMAND_SIZE
            if wanted != nsid and wanted in spaces:
                nsid, namespace = wanted, spaces[wanted]
                shift, blocks = namespace.shift, 0 if namespace.lost else namespace.blocks
                fd, now, disk = namespace.disk.fd, namespace.disk.at_once, namespace.disk.view
                writable = len(disk) > 0 and not namespace.disk.readonly
            if wanted == nsid and (opcode == READ or (opcode == WRITE and writable)) and not flags & SCATTERED:
                count = (dword & 0xFFFF) + 1
                length = count << shift
                inside = PAGE - prp1 % PAGE
                if not prp1 & 3 and first + count <= blocks and moved + length <= budget:
                    if not start <= prp1 <= end - length:
                        start, end, memory = self._find(prp1)
                    if prp1 + length <= end and (
                        length <= inside
                        or (length <= inside + PAGE and prp2 == prp1 + inside)
                        or self._in_a_row(prp2, prp1 + inside, -(-(length - inside) // PAGE))
                    ):
                        where, offset, got = prp1 - start, first << shift, length
                        if opcode == WRITE:
                            disk[offset : offset + length] = memory[where : where + length]
                            written += length
                            writes += 1
                        elif disk:
                            memory[where : where + length] = disk[offset : offset + length]
                        elif now is None:
                            got = 0
                        elif length < LARGE:
                            try:
                                got = preadv(fd, [memory[where : where + length]], offset, now)
                            except OSError:  # it would wait or fails: left to the slow path
                                got = 0
                        else:
                            if stretch is None or stretch.end != offset or stretch.fd != fd:
                                moved -= stretch.read(done, left) if stretch else 0
                                stretch = Stretch(fd, now, offset)
                            stretch.add(cid, block[at - COMMAND_SIZE : at], memory[where : where + length])
                            moved += length
                            if moved < ENOUGH:
                                continue
                            break
                        if got == length:
                            done.append(cid)
                            moved += length
                            if moved < ENOUGH:
                                continue
                            break
            left.append(block[at - COMMAND_SIZE : at])
        if stretch:
            moved -= stretch.read(done, left)
        self._io.budget = budget - moved
        self._dma.touched(moved)
        self._counters.reads += len(done) - writes
        self._counters.sectors_read += moved - written >> SECTOR_SHIFT
        if writes:
            self._counters.writes += writes
            self._counters.sectors_written += written >> SECTOR_SHIFT
        return done, left, (len(block) - at) // COMMAND_SIZE

    def _in_a_row(self, address: int, page: int, count: int) -> bool:
        """Whether the PRP list at ``address`` has ``count`` consecutive pages, from ``page`` on."""
        size = count * ENTRY
        if count < 2 or address & 7 or address % PAGE + size > PAGE:
            return False
        start, end, memory = self._window
        if start <= address <= end - size:
            return memory[address - start : address - start + size].tobytes() == _row(page, count)
        try:
            return self._dma.read(address, size) == _row(page, count)
        except GuestError:
            return False

    def _find(self, address: int) -> SharedMap:
        """The map of guest memory around ``address``, if it can be read and written; else one without any byte."""
        self._window, self._changes = NOWHERE, self._dma.changes
        try:
            shared = self._dma.shared_map(address, write=True)
            if shared is not None and self._dma.shared_map(address) is not None:
                self._window = shared
        except GuestError:
            pass  # the slow path says why
        return self._window
