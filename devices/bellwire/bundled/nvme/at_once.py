"""Reads and writes of data in memory, a batch at a time: these are most of the commands of a busy guest.

:mod:`bellwire.bundled.nvme.io` could do the same, with all its checks and errors. This module is the fast path for
reads from the page cache, and for reads and writes of a namespace in memory. It leaves any other command to the slow
path, and also one whose data is not in memory, or that is wrong.
"""

from __future__ import annotations

import functools
import operator
import os
import struct
from typing import TYPE_CHECKING

from bellwire.bundled.nvme.command import COMMAND_SIZE, IoOpcode
from bellwire.bundled.nvme.guest_pages import SCATTERED
from bellwire.bundled.nvme.io import SECTOR_SHIFT, Io
from bellwire.bundled.nvme.namespaces import Namespaces
from bellwire.bundled.nvme.prp import ENTRY, PAGE, PAGE_SHIFT
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

    __slots__ = ("cids", "end", "ends", "fd", "flags", "lengths", "start", "views")

    def __init__(self, fd: int, flags: int, start: int) -> None:
        self.fd = fd
        self.start = self.end = start
        self.flags = flags
        self.views: list[memoryview] = []
        """Where the bytes of the reads go, in order."""
        self.cids: list[int] = []
        self.lengths: list[int] = []
        self.ends: list[int] = []
        """Where the command of each read ends in its batch."""

    def read(self, done: list[int], left: list[bytes], block: bytes) -> int:
        """Do all of them. Those whose bytes did not come at once are ``left``. Returns the number of their bytes."""
        try:
            got = os.preadv(self.fd, self.views, self.start, self.flags)
        except OSError:  # it would wait or fails: left to the slow path
            got = 0
        if got == self.end - self.start:
            done += self.cids
            return 0
        here = self.start
        for cid, length, at in zip(self.cids, self.lengths, self.ends, strict=True):
            here += length
            if here <= self.start + got:
                done.append(cid)
            else:
                left.append(block[at - COMMAND_SIZE : at])
                self.end -= length
        return here - self.end


class AtOnce:
    """Transfers between disks and guest memory, within the budget of ``io``: of pages in a row, or read from a file."""

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
                shift, blocks = namespace.shift, 0 if namespace.lost.starts else namespace.blocks
                fd, now, disk = namespace.disk.fd, namespace.disk.at_once, namespace.disk.view
                writable = len(disk) > 0 and not namespace.disk.readonly
            if wanted == nsid and (opcode == READ or (opcode == WRITE and writable)) and not flags & SCATTERED:
                count = (dword & 0xFFFF) + 1
                length = count << shift
                inside = PAGE - prp1 % PAGE
                if not prp1 & 3 and first + count <= blocks and moved + length <= budget:
                    if not start <= prp1 <= end - length:
                        start, end, memory = self._find(prp1)
                    where, offset, got = prp1 - start, first << shift, length
                    views, row = None, prp1 + length <= end
                    if length > inside and (length > inside + PAGE or prp2 != prp1 + inside):
                        pages = length - inside + PAGE - 1 >> PAGE_SHIFT
                        listed = self._list(prp2, pages)
                        row = row and listed == _row(prp1 + inside, pages)
                        if not row and listed and length >= LARGE and opcode == READ and now is not None and not disk:
                            views = self._scattered(prp1, inside, listed, length)
                    if row or views:
                        if opcode == WRITE:
                            disk[offset : offset + length] = memory[where : where + length]
                            written += length
                            writes += 1
                        elif disk:
                            memory[where : where + length] = disk[offset : offset + length]
                        elif now is None:
                            got = 0
                        elif length < LARGE and row:
                            try:
                                got = preadv(fd, [memory[where : where + length]], offset, now)
                            except OSError:  # it would wait or fails: left to the slow path
                                got = 0
                        else:
                            if stretch is None or stretch.end != offset or stretch.fd != fd:
                                moved -= stretch.read(done, left, block) if stretch else 0
                                stretch = Stretch(fd, now, offset)
                            stretch.views += views or (memory[where : where + length],)
                            stretch.lengths.append(length)
                            stretch.cids.append(cid)
                            stretch.ends.append(at)
                            stretch.end += length
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
            moved -= stretch.read(done, left, block)
        self._io.budget = budget - moved
        self._dma.touched(moved)
        self._counters.reads += len(done) - writes
        self._counters.sectors_read += moved - written >> SECTOR_SHIFT
        if writes:
            self._counters.writes += writes
            self._counters.sectors_written += written >> SECTOR_SHIFT
        return done, left, (len(block) - at) // COMMAND_SIZE

    def _list(self, address: int, count: int) -> bytes:
        """The PRP list of ``count`` pages at ``address``; empty if it is none, is wrong or has several pages itself."""
        size = count * ENTRY
        if count < 2 or address & 7 or address % PAGE + size > PAGE:
            return b""
        start, end, memory = self._window
        if start <= address <= end - size:
            return memory[address - start : address - start + size].tobytes()
        try:
            return self._dma.read(address, size)
        except GuestError:
            return b""

    def _scattered(self, prp1: int, inside: int, listed: bytes, length: int) -> list[memoryview] | None:
        """Views of the ``inside`` bytes at ``prp1`` and of the pages ``listed``; None if the window has not all."""
        start, end, memory = self._window
        pages = memoryview(listed).cast("Q").tolist()
        misaligned = functools.reduce(operator.or_, pages) % PAGE
        if misaligned or min(pages) < start or max(pages) > end - PAGE or prp1 > end - inside:
            return None
        views = [memory[prp1 - start : prp1 - start + inside]]
        views += [memory[page - start : page - start + PAGE] for page in pages]
        views[-1] = views[-1][: (length - inside - 1) % PAGE + 1]
        return views

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
