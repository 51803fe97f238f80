"""Reads of data in the page cache, a batch at a time: these are most of the commands of a busy guest.

:mod:`bellwire.bundled.nvme.io` could do the same, with all its checks and errors. This module is the fast path for
plain reads only. It leaves a command to the slow path if it is no plain read, if its data is not in memory, or if it
is wrong.
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

if TYPE_CHECKING:
    from bellwire.bundled.nvme.logs import Counters
    from bellwire.model.dma import Dma


READ = int(IoOpcode.READ)
ENOUGH = 512 << 10
"""Bytes after which the host is told of completions. It handles these while the worker copies the next data."""
PLAIN_READ = struct.Struct("<BBHI16xQQQI12x")
"""The fields of a command that a read needs (§6.9): opcode, flags, id, namespace, PRP1, PRP2, first block, dword 12."""


@functools.cache
def _row(count: int) -> tuple[int, int]:
    """A PRP list of ``count`` consecutive pages, read as one number, is first * a + b. Returns (a, b)."""
    return sum(1 << 64 * at for at in range(count)), sum(at * PAGE << 64 * at for at in range(count))


class AtOnce:
    """Reads into consecutive pages of guest memory, within the budget of ``io``."""

    def __init__(self, dma: Dma, namespaces: Namespaces, io: Io, counters: Counters) -> None:
        self._dma = dma
        self._namespaces = namespaces
        self._io = io
        self._counters = counters

    def read(self, block: bytes) -> tuple[list[int], list[bytes], int]:
        """Do the plain reads in ``block``, up to ENOUGH bytes.

        Returns the ids of the commands that are done, the other commands, and the number of commands that were left
        since ENOUGH bytes were read.
        """
        done: list[int] = []
        left: list[bytes] = []
        spaces = self._namespaces.open
        preadv = os.preadv
        nsid = shift = blocks = fd = 0  # no namespace has the number 0
        now: int | None = None
        start, end, memory = 0, 0, memoryview(b"")
        budget, moved = self._io.budget, 0
        at = 0
        for opcode, flags, cid, wanted, prp1, prp2, first, count in PLAIN_READ.iter_unpack(block):
            at += COMMAND_SIZE
            if opcode == READ and not flags & SCATTERED and wanted in spaces:
                if wanted != nsid:
                    nsid = wanted
                    namespace = spaces[wanted]
                    shift, blocks = namespace.shift, namespace.blocks
                    fd, now = namespace.disk.fd, None if namespace.lost else namespace.disk.at_once
                count = (count & 0xFFFF) + 1
                length = count << shift
                inside = PAGE - prp1 % PAGE
                if not prp1 & 3 and first + count <= blocks and moved + length <= budget and now is not None:
                    if not start <= prp1 <= end - length:
                        start, end, memory = self._window(prp1)
                    if prp1 + length <= end and (
                        length <= inside
                        or (length <= inside + PAGE and prp2 == prp1 + inside)
                        or self._in_a_row(prp2, prp1 + inside, -(-(length - inside) // PAGE))
                    ):
                        where = prp1 - start
                        try:
                            got = preadv(fd, [memory[where : where + length]], first << shift, now)
                        except OSError:  # it would wait or fails: left to the slow path
                            got = 0
                        if got == length:
                            done.append(cid)
                            moved += length
                            if moved < ENOUGH:
                                continue
                            break
            left.append(block[at - COMMAND_SIZE : at])
        self._io.budget = budget - moved
        self._dma.touched(moved)
        self._counters.reads += len(done)
        self._counters.sectors_read += moved >> SECTOR_SHIFT
        return done, left, (len(block) - at) // COMMAND_SIZE

    def _in_a_row(self, address: int, page: int, count: int) -> bool:
        """Whether the PRP list at ``address`` has ``count`` consecutive pages, from ``page`` on."""
        size = count * ENTRY
        if count < 2 or address & 7 or address % PAGE + size > PAGE:
            return False
        try:
            pages = int.from_bytes(self._dma.read(address, size), "little")
        except GuestError:
            return False
        ones, steps = _row(count)
        return pages == page * ones + steps

    def _window(self, address: int) -> tuple[int, int, memoryview]:
        """The writable map of guest memory around ``address``: its start, its end, and a view of it."""
        try:
            shared = self._dma.shared_map(address, write=True)
        except GuestError:
            shared = None
        return (0, 0, memoryview(b"")) if shared is None else (shared.start, shared.end, shared.view)
