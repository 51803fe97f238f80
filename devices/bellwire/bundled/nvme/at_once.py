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
from collections import defaultdict
from typing import TYPE_CHECKING

from bellwire.bundled.nvme.command import COMMAND_SIZE, IoOpcode
from bellwire.bundled.nvme.guest_pages import LARGEST, SCATTERED
from bellwire.bundled.nvme.io import SECTOR_SHIFT, Io
from bellwire.bundled.nvme.namespaces import Namespaces
from bellwire.bundled.nvme.prp import ENTRY, PAGE, PAGE_SHIFT
from bellwire.errors import GuestError
from vfio_user import SharedMap

if TYPE_CHECKING:
    from bellwire.bundled.nvme.logs import Counters
    from bellwire.model.dma import Dma

Views = list[memoryview]

READ, WRITE = int(IoOpcode.READ), int(IoOpcode.WRITE)
NOWHERE = SharedMap(1, 0, memoryview(b""))
ENOUGH = 512 << 10
"""Bytes after which the host is told of completions. It handles these while the worker copies the next data."""
LARGE = 32 << 10
"""A read of so many bytes waits for the commands behind it: one system call does reads that follow one another."""
MOST_BUFFERS = 1024
"""The limit of buffers of one size that are remembered."""
TRANSFER = struct.Struct("<HHI16xQQQI12x")
"""The fields of a read or a write (§6.9, §6.15): opcode and flags, id, namespace, PRP1, PRP2, first block, dword 12."""
Kind = tuple[int, int, int, bool, int, int, memoryview, bool, dict[int, Views]]
"""What is known of all commands that have opcode, flags, namespace and dword 12 in common. It consists of:

* the bytes of each, and the highest first block; -1 if such commands are left to the slow path;
* by how many bits to shift a block number, to get the block's place on the disk;
* whether each is a system call of its own, and descriptor and flags for it;
* the content of a disk in memory, else nothing, and whether the commands write;
* buffers by PRP1: guest memory of such commands, within one page, whose checks are done.
"""
NO_BUFFERS: dict[int, Views] = {}
OTHER: Kind = (0, -1, 0, False, -1, 0, memoryview(b""), False, NO_BUFFERS)


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
        self.views: Views = []
        """Where the bytes of the reads go, in order."""
        self.cids: list[int] = []
        self.lengths: list[int] = []
        self.ends: list[int] = []
        """Where the command of each read ends in its batch."""

    def add(self, views: Views, length: int, cid: int, end: int) -> None:
        """Add the read with id ``cid``, of ``length`` bytes into ``views``. Its command ends at ``end``."""
        self.views += views
        self.lengths.append(length)
        self.cids.append(cid)
        self.ends.append(end)
        self.end += length

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


def _read(disk: memoryview, offset: int, views: Views) -> None:
    """Copy from ``offset`` of a disk in memory to ``views``."""
    for view in views:
        view[:] = disk[offset : offset + len(view)]
        offset += len(view)


def _write(disk: memoryview, offset: int, views: Views) -> None:
    """Copy from ``views`` to ``offset`` of a disk in memory."""
    for view in views:
        disk[offset : offset + len(view)] = view
        offset += len(view)


class AtOnce:
    """Transfers between disks and guest memory that lies in one map of the client, within the budget of ``io``."""

    def __init__(self, dma: Dma, namespaces: Namespaces, io: Io, counters: Counters) -> None:
        self._dma = dma
        self._namespaces = namespaces
        self._io = io
        self._counters = counters
        self._window, self._changes = NOWHERE, -1
        self._buffers: defaultdict[int, dict[int, Views]] = defaultdict(dict)
        """By length, the buffers that guests use again. It is quicker to look one up than to slice and check."""

    def transfer(self, block: bytes) -> tuple[list[int], list[bytes], int]:
        """Do the plain reads and writes in ``block``, up to ENOUGH bytes.

        Returns the ids of the commands that are done, the other commands, and the number of commands that were left
        since ENOUGH bytes were moved.
        """
        done: list[int] = []
        left: list[bytes] = []
        if self._changes != self._dma.changes:
            self._forget()
        preadv, at = os.preadv, 0
        before = room = self._io.budget
        enough = room - ENOUGH
        writes = written = 0
        head, nsid, tail = -1, 0, 0
        length, last, shift, small, fd, now, disk, write, buffers = OTHER
        stretch: Stretch | None = None
        for what, cid, space, prp1, prp2, first, dword in TRANSFER.iter_unpack(block):
            at += COMMAND_SIZE
            if what != head or space != nsid or dword != tail:
                head, nsid, tail = what, space, dword
                length, last, shift, small, fd, now, disk, write, buffers = self._kind(what, space, dword)
            if first <= last and length <= room and (views := buffers.get(prp1) or self._views(prp1, prp2, length)):
                offset = first << shift
                if small:
                    try:
                        got = preadv(fd, views, offset, now)
                    except OSError:  # it would wait or fails: left to the slow path
                        got = 0
                    if got != length:
                        left.append(block[at - COMMAND_SIZE : at])
                        continue
                    done.append(cid)
                elif not disk:
                    if stretch is None or stretch.end != offset or stretch.fd != fd:
                        room += stretch.read(done, left, block) if stretch else 0
                        stretch = Stretch(fd, now, offset)
                    stretch.add(views, length, cid, at)
                elif write:
                    _write(disk, offset, views)
                    written += length
                    writes += 1
                    done.append(cid)
                else:
                    if len(views) == 1:
                        views[0][:] = disk[offset : offset + length]
                    else:
                        _read(disk, offset, views)
                    done.append(cid)
                room -= length
                if room <= enough:
                    break
            else:
                left.append(block[at - COMMAND_SIZE : at])
        if stretch:
            room += stretch.read(done, left, block)
        moved = before - room
        self._io.budget = room
        self._dma.touched(moved)
        self._counters.reads += len(done) - writes
        self._counters.sectors_read += moved - written >> SECTOR_SHIFT
        if writes:
            self._counters.writes += writes
            self._counters.sectors_written += written >> SECTOR_SHIFT
        return done, left, (len(block) - at) // COMMAND_SIZE

    def _kind(self, head: int, nsid: int, tail: int) -> Kind:
        """The kind of commands with this opcode and these flags, this namespace and this dword 12."""
        space = self._namespaces.open.get(nsid)
        if space is None or space.lost.starts or head & SCATTERED << 8:
            return OTHER
        disk, opcode = space.disk, head & 0xFF
        memory, now = disk.view, disk.at_once
        if opcode == READ:
            if now is None and not memory:
                return OTHER
        elif opcode != WRITE or disk.readonly or not memory:
            return OTHER
        count = (tail & 0xFFFF) + 1
        length = count << space.shift
        if length > LARGEST:
            return OTHER
        buffers = self._buffers[length] if length <= PAGE else NO_BUFFERS
        small = length < LARGE and not memory
        return length, space.blocks - count, space.shift, small, disk.fd, now or 0, memory, opcode == WRITE, buffers

    def _forget(self) -> None:
        """Guest memory has changed."""
        self._window, self._changes = NOWHERE, self._dma.changes
        self._buffers.clear()

    def _views(self, prp1: int, prp2: int, length: int) -> Views | None:
        """Views of the ``length`` bytes that PRP1 and PRP2 lead to (§4.3); None if wrong, or not in one map."""
        start, end, memory = self._window
        if not start <= prp1 < end:
            start, end, memory = self._find(prp1)
        inside = PAGE - prp1 % PAGE
        where, rest = prp1 - start, length - inside
        row, pages = prp1 <= end - length, b""
        if prp1 & 3:
            return None
        if rest > PAGE:
            count = rest + PAGE - 1 >> PAGE_SHIFT
            pages = self._list(prp2, count)
            row = row and pages == _row(prp1 + inside, count)
        elif rest > 0 and prp2 != prp1 + inside:
            row, pages = False, prp2.to_bytes(ENTRY, "little")
        if not row:
            return self._scattered(where, inside, pages, rest) if pages and prp1 <= end - inside else None
        views = [memory[where : where + length]]
        if rest <= 0:
            buffers = self._buffers[length]
            if len(buffers) >= MOST_BUFFERS:
                buffers.clear()
            buffers[prp1] = views
        return views

    def _list(self, address: int, count: int) -> bytes:
        """The PRP list of ``count`` pages at ``address``; empty if it is wrong or has several pages itself."""
        size = count * ENTRY
        if address & 7 or address % PAGE + size > PAGE:
            return b""
        start, end, memory = self._window
        if start <= address <= end - size:
            return memory[address - start : address - start + size].tobytes()
        try:
            return self._dma.read(address, size)
        except GuestError:
            return b""

    def _scattered(self, where: int, inside: int, listed: bytes, rest: int) -> Views | None:
        """Views of the ``inside`` bytes at ``where`` in the window, and of ``rest`` bytes in the pages ``listed``."""
        start, end, memory = self._window
        pages = memoryview(listed).cast("Q").tolist()
        if functools.reduce(operator.or_, pages) % PAGE or min(pages) < start or max(pages) > end - PAGE:
            return None
        views = [memory[where : where + inside]]
        views += [memory[page - start : page - start + PAGE] for page in pages]
        views[-1] = views[-1][: (rest - 1) % PAGE + 1]
        return views

    def _find(self, address: int) -> SharedMap:
        """The map of guest memory around ``address``, if it can be read and written; else one without any byte."""
        self._window = NOWHERE
        try:
            shared = self._dma.shared_map(address, write=True)
            if shared is not None and self._dma.shared_map(address) is not None:
                self._window = shared
        except GuestError:
            pass  # the slow path says why
        return self._window
