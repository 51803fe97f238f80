"""The file that holds a saved machine.

A page with the header comes first, then the pages of RAM that are not all zeros (aligned to pages, in the order of
their addresses), then four blocks: where each run of pages belongs, the CRC-32 of each 256 KiB of the pages, the
machine's description as JSON, and its state (`sections`). Numbers are little-endian. The header has a checksum of
itself, and one of the blocks. The length of the file must be exact.
"""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

from bellwire_vmm.errors import StateError
from bellwire_vmm.machine.memory import PAGE, GuestMemory
from bellwire_vmm.saved import sections
from bellwire_vmm.saved.machine import Shape, from_json, to_json

MAGIC = b"\x93BWVMM\r\n"
FORMAT = 2
MOST_DESCRIBED = 1 << 20
"""Bytes of JSON."""

_HEADER = struct.Struct("<8sIIQQQQQI")  # magic, format, page size, RAM; lengths of the four blocks; their CRC-32
_CHECK = _SUM = struct.Struct("<I")  # a CRC-32: of the header before it, or of a part of the RAM
_RUN = struct.Struct("<QQ")  # address and length
_CHUNK = 256 << 10
_ZEROS = bytes(_CHUNK)
_MOST_MAPPED = 16384  # runs; Linux lets a process have 65530 mappings
_THREADS = min(4, len(os.sched_getaffinity(0)))


class Written(NamedTuple):
    """What a file has cost: bytes of RAM in it, and bytes of the rest."""

    memory: int
    rest: int


def used(memory: GuestMemory) -> Iterator[range]:
    """The runs of pages that are not all zeros, in the order of their addresses."""
    start = end = 0
    for address in _pages_in_use(memory):
        if address != end:
            if end > start:
                yield range(start, end)
            start = address
        end = address + PAGE
    if end > start:
        yield range(start, end)


def write(fd: int, memory: GuestMemory, shape: Shape, state: Mapping[str, bytes]) -> Written:
    """Write a machine to an empty file. Raises OSError if there is no room, and StateError for a state too large."""
    packed, described = sections.pack(state), to_json(shape)
    if len(described) > MOST_DESCRIBED:
        raise StateError(f"the machine's description has {len(described)} bytes, at most {MOST_DESCRIBED} are allowed")
    os.ftruncate(fd, PAGE)  # the header comes last
    at, runs = PAGE, bytearray()
    for run in used(memory):
        runs += _RUN.pack(run.start, len(run))
        for address in range(run.start, run.stop, _CHUNK):
            at = _write(fd, memory.read(address, min(_CHUNK, run.stop - address)), at)
    total = at - PAGE
    blocks = bytes(runs), _checksums(fd, total), described, packed
    for block in blocks:
        at = _write(fd, block, at)
    header = _HEADER.pack(MAGIC, FORMAT, PAGE, memory.size, *map(len, blocks), _checksum(*blocks))
    _write(fd, header + _CHECK.pack(zlib.crc32(header)), 0)
    return Written(total, at - total)


class SavedFile:
    """A saved machine in a file that the caller has opened, and closes. All of it but the RAM is read and checked here.

    ``shape`` is the machine's, and ``state`` its sections. Raises StateError, saying what is wrong with the file.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        header = os.pread(fd, _HEADER.size + _CHECK.size, 0)
        if header[: len(MAGIC)] != MAGIC:
            raise StateError("this is no saved machine: it does not begin as one")
        if len(header) < _HEADER.size + _CHECK.size:
            raise StateError("the file ends in its header")
        _, number, page, self.memory, *lengths, checksum = _HEADER.unpack_from(header)
        if number != FORMAT:
            raise StateError(f"the file has format {number}, and this program knows {FORMAT}: another version wrote it")
        if _CHECK.unpack_from(header, _HEADER.size)[0] != zlib.crc32(header[: _HEADER.size]):
            raise StateError("the header is damaged: its checksum is wrong")
        if page != PAGE:
            raise StateError(f"the file has pages of {page} bytes, and this machine of {PAGE}")
        limits = {
            "list of pages": self.memory // PAGE * _RUN.size,
            "list of checksums": -(-self.memory // _CHUNK) * _SUM.size,
            "description": MOST_DESCRIBED,
            "state": sections.LARGEST,
        }
        for (name, limit), length in zip(limits.items(), lengths, strict=True):
            if length > limit:
                raise StateError(f"the {name} has {length} bytes, at most {limit} are expected")
        size, end = os.fstat(fd).st_size, PAGE + sum(lengths)
        if size < end:
            raise StateError(f"the file has {size} bytes, and at least {end} were written: it is cut short")
        start = size - sum(lengths)
        blocks = runs, self._sums, described, packed = self._blocks(start, lengths)
        if _checksum(*blocks) != checksum:
            raise StateError("the file is damaged or cut short: its checksum is wrong")
        self._runs = _checked(runs, self.memory, start - PAGE)
        self._starts = list(accumulate(map(len, self._runs), initial=0))  # where each lies among the pages
        if len(self._sums) != -(-self.used // _CHUNK) * _SUM.size:
            raise StateError(f"the list of checksums has {len(self._sums)} bytes, which is wrong for so many pages")
        self.shape: dict[str, Any] = from_json(described)
        self.state = sections.unpack(packed)
        if self.shape["memory"] != self.memory:
            raise StateError(f"the header tells of {self.memory} bytes of RAM, the description of another number")

    @property
    def used(self) -> int:
        """The bytes of RAM in the file."""
        return sum(map(len, self._runs))

    def load(self, memory: GuestMemory) -> None:
        """Give the RAM to the memory of a new machine, which has ``memory`` bytes.

        It is mapped copy-on-write, or copied if a device maps that memory too: that device must see what the guest
        writes. Raises StateError if the RAM is damaged.
        """
        if memory.shared or len(self._runs) > _MOST_MAPPED:
            found = _checksums(self._fd, self.used, partial(self._copy, memory))
        else:
            for run, start in zip(self._runs, self._starts, strict=False):  # the last start is the end
                memory.lay(run.start, self._fd, PAGE + start, len(run))
            found = _checksums(self._fd, self.used)
        if found != self._sums:
            pairs = zip(_SUM.iter_unpack(found), _SUM.iter_unpack(self._sums), strict=True)
            part = next(number for number, (one, other) in enumerate(pairs) if one != other)
            raise StateError(f"the RAM is damaged: a checksum is wrong, that of the bytes from {part * _CHUNK:#x} on")

    def _copy(self, memory: GuestMemory, at: int, data: bytes) -> None:
        """Copy what the file has from byte ``at`` of its RAM on to where it belongs."""
        rest, number = memoryview(data), bisect_right(self._starts, at) - 1
        while rest:
            run, start = self._runs[number], self._starts[number]
            address = run.start + at - start
            part = rest[: run.stop - address]
            memory.fill(address, part)
            at, rest, number = at + len(part), rest[len(part) :], number + 1

    def _blocks(self, start: int, lengths: list[int]) -> list[bytes]:
        blocks = []
        for length in lengths:
            blocks.append(_read(self._fd, start, length))
            start += length
        return blocks


def _pages_in_use(memory: GuestMemory) -> Iterator[int]:
    for stretch in memory.stretches():
        for start in range(stretch.start, stretch.stop, _CHUNK):
            chunk = memory.read(start, min(_CHUNK, stretch.stop - start))
            if chunk == _ZEROS:
                continue
            zeros = _ZEROS[:PAGE]
            for offset in range(0, len(chunk), PAGE):
                if chunk[offset : offset + PAGE] != zeros:
                    yield start + offset


def _checked(packed: bytes, memory: int, stored: int) -> list[range]:
    """The runs of pages in a list, which is checked against the size of RAM and the bytes that are ``stored``."""
    if len(packed) % _RUN.size:
        raise StateError(f"the list of pages has {len(packed)} bytes, expected a multiple of {_RUN.size}")
    runs, last = [], 0
    for address, length in _RUN.iter_unpack(packed):
        if address % PAGE or length % PAGE or not length or address < last or address + length > memory:
            raise StateError(f"the list of pages is wrong: {length:#x} bytes at {address:#x}")
        last = address + length
        runs.append(range(address, last))
    if sum(map(len, runs)) != stored:
        raise StateError(f"the file has {stored} bytes of RAM, and {sum(map(len, runs))} were written: it is cut short")
    return runs


def _checksums(fd: int, stored: int, use: Callable[[int, bytes], None] = lambda at, data: None) -> bytes:
    """The CRC-32 of each part of the RAM in a file, which has ``stored`` bytes. Several threads compute them.

    They also call ``use`` with the place and the bytes of each part.
    """

    def one(at: int) -> bytes:
        data = _read(fd, PAGE + at, min(_CHUNK, stored - at))
        use(at, data)
        return _SUM.pack(zlib.crc32(data))

    with ThreadPoolExecutor(_THREADS) as pool:
        return b"".join(pool.map(one, range(0, stored, _CHUNK)))


def _checksum(*blocks: bytes | bytearray) -> int:
    checksum = 0
    for block in blocks:
        checksum = zlib.crc32(block, checksum)
    return checksum


def _write(fd: int, data: bytes | bytearray, at: int) -> int:
    """Write all of ``data``. Returns where it ends."""
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, at)
        at, rest = at + done, rest[done:]
    return at


def _read(fd: int, at: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.pread(fd, min(length, 1 << 24), at)
        if not part:
            raise StateError("the file ends too early: somebody has cut it short meanwhile")
        parts.append(part)
        at, length = at + len(part), length - len(part)
    return b"".join(parts)
