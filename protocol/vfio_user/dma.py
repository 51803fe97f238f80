"""DMA_MAP, DMA_UNMAP, and the table of guest memory that a server keeps."""

from __future__ import annotations

import errno
import mmap
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

from vfio_user.constants import DEFAULT_MAX_DMA_MAPS, DEFAULT_PGSIZES, DmaFlags, UnmapFlags
from vfio_user.errors import DmaFault, ProtocolError, VfioUserError
from vfio_user.fields import Fields
from vfio_user.file_io import FileIo
from vfio_user.kept_files import KeptFile, KeptFiles
from vfio_user.ledger import Estate, Ledger
from vfio_user.map_ledger import MapLedger
from vfio_user.mapping import MOST_JOINED, MOST_MAPPINGS, Mapping, Pages, blank, join

MAP = Fields("<IIQQQ", "argsz flags offset address size")
UNMAP = Fields("<IIQQ", "argsz flags address size")
_TOP = 1 << 64
_PAGE = mmap.PAGESIZE
_UNMAP_ALL = int(UnmapFlags.ALL)
# Plain ints: an operator of IntFlag costs about 1 µs, and ~ clears unknown bits.
_READ, _WRITE, _ALL_FLAGS = int(DmaFlags.READ), int(DmaFlags.WRITE), 0xF
_BY_FILE_IO = int(DmaFlags.BY_FILE_IO)
_BY_FD = int(DmaFlags.BY_MMAP) | _BY_FILE_IO


class DmaMap(NamedTuple):
    """A DMA_MAP request: ``size`` bytes of guest memory at ``address``. If an fd came, they are at its ``offset``."""

    flags: int
    """Bits of :class:`~vfio_user.constants.DmaFlags`."""
    offset: int
    address: int
    size: int

    def pack(self) -> bytes:
        """The request's 32 bytes."""
        return MAP.pack(MAP.size, self.flags, self.offset, self.address, self.size)

    @classmethod
    def unpack(cls, payload: memoryview) -> DmaMap:
        """Decode a request. Raises ProtocolError, which names the field that is wrong."""
        if len(payload) < MAP.size:
            raise ProtocolError(f"DMA_MAP: {len(payload)} bytes, expected at least {MAP.size}")
        argsz, flags, offset, address, size = MAP.unpack_from(payload)
        if argsz < MAP.size:
            raise ProtocolError(f"DMA_MAP: argsz {argsz}, expected at least {MAP.size}")
        if flags & ~_ALL_FLAGS:
            raise ProtocolError(f"DMA_MAP: flags {flags:#x}, expected bits of {_ALL_FLAGS:#x}")
        return cls(flags, offset, address, size)


class DmaUnmap(NamedTuple):
    """A DMA_UNMAP request: every map that lies wholly in the ``size`` bytes at ``address``.

    ``size`` 0 stands for all maps, and goes on the wire as VFIO's flag for all: 2**64 does not fit into the field.
    """

    address: int
    size: int

    def pack(self) -> bytes:
        """The request's 24 bytes; the reply echoes them."""
        return UNMAP.pack(UNMAP.size, 0 if self.size else _UNMAP_ALL, self.address, self.size)

    @classmethod
    def unpack(cls, payload: memoryview) -> DmaUnmap:
        """Decode a request. Raises ProtocolError, which names the field that is wrong."""
        if len(payload) < UNMAP.size:
            raise ProtocolError(f"DMA_UNMAP: {len(payload)} bytes, expected at least {UNMAP.size}")
        argsz, flags, address, size = UNMAP.unpack_from(payload)
        if argsz < UNMAP.size:
            raise ProtocolError(f"DMA_UNMAP: argsz {argsz}, expected at least {UNMAP.size}")
        if flags & ~_UNMAP_ALL:
            raise ProtocolError(f"DMA_UNMAP: flags {flags:#x}, expected 0 or {_UNMAP_ALL:#x}", errno.ENOTSUP)
        if flags and (address or size):
            raise ProtocolError(f"DMA_UNMAP: all, and {address:#x}+{size:#x}, expected 0+0")
        if not flags and not size:
            raise ProtocolError("DMA_UNMAP: size 0, expected at least a page, or the flag for all")
        if address + size > _TOP:
            raise ProtocolError(f"DMA_UNMAP: address {address:#x}, size {size:#x} wrap around")
        return cls(address, size)

    @property
    def end(self) -> int:
        """The first address behind the range."""
        return self.address + self.size if self.size else _TOP


class Segment(NamedTuple):
    """A range of guest memory inside one map. ``view`` is None if the memory is reached by message or file I/O only."""

    address: int
    size: int
    view: memoryview | None


class SharedMap(NamedTuple):
    """A whole map that is shared: ``view`` shows the addresses from ``start`` up to ``end``, without ``end``."""

    start: int
    end: int
    view: memoryview


class SharedFile(NamedTuple):
    """``size`` bytes of guest memory at ``address``, which lie at ``offset`` of the file ``fd``.

    In this process they are mapped at ``mapped_at``. ``fd`` is the table's, and valid until the next unmap.
    """

    address: int
    size: int
    fd: int
    offset: int
    mapped_at: int


class MappedRange:
    """One map: an entry of :class:`DmaTable`. ``end`` is the first address behind it."""

    __slots__ = ("end", "file", "file_io", "mapping", "offset", "readable", "size", "start", "view", "writable")

    def __init__(
        self, request: DmaMap, mapping: Mapping | None, file: KeptFile | None = None, file_io: FileIo | None = None
    ) -> None:
        self.start = request.address
        self.size = request.size
        self.end = request.address + request.size
        self.readable = bool(request.flags & _READ)
        self.writable = bool(request.flags & _WRITE)
        self.mapping = mapping
        self.file = file
        self.file_io = file_io
        self.offset = request.offset
        self.view = mapping.view() if mapping else None


class MapLog(Protocol):
    """What hears of memory that comes and goes: a log of writes."""

    def mapped(self, mapped: MappedRange) -> None:
        """A map has come."""

    def unmapped(self, mapped: MappedRange) -> None:
        """A map is about to go."""

    def joined(self, start: int, pages: Pages) -> None:
        """The pages from the client's address ``start`` on were mapped a second time."""

    def parted(self, start: int, pages: Pages) -> None:
        """Such pages are about to go."""


class DmaTable:
    """The guest memory that a client has mapped: non-overlapping ranges in order of address, ``total`` bytes in all."""

    def __init__(
        self, max_maps: int = DEFAULT_MAX_DMA_MAPS, pgsizes: int = DEFAULT_PGSIZES, ledger: Ledger | None = None
    ) -> None:
        self._kept = None if ledger is None else MapLedger(ledger)
        self.total = 0
        self._files = 0  # ranges that have a file
        self._max = max_maps
        self._page = pgsizes & -pgsizes
        self._ranges: list[MappedRange] = []
        self._starts: list[int] = []
        self._last: MappedRange | None = None
        self._joined: WeakValueDictionary[tuple[int, int], Pages] = WeakValueDictionary()
        self.kept: KeptFiles | None = None
        """Keeps descriptors of the client's files, for a device that hands guest memory on; None for other devices."""
        self.log: MapLog | None = None
        """Hears of memory that comes and goes, while writes are logged."""

    def __len__(self) -> int:
        return len(self._ranges)

    def __iter__(self) -> Iterator[MappedRange]:
        return iter(self._ranges)

    def map(self, request: DmaMap, fd: int | None) -> None:
        """Add a map. The table takes ``fd`` over, and closes it in any case.

        Raises VfioUserError: EEXIST for an overlap, ENOSPC above the limit, EINVAL for an impossible size or alignment.
        """
        try:
            self._insert(request, fd)
            if self._kept is not None and not self._kept.deaf:
                self._kept.keep(request, fd)
        finally:
            if fd is not None:
                os.close(fd)

    def take_over(self, estate: Estate) -> None:
        """Map what the table of another process has kept in its ledger. This table has no maps yet."""
        if self._kept is not None:
            for request, fd in self._kept.inherited(estate):
                try:
                    self._insert(DmaMap(*request), fd)
                finally:
                    if fd is not None:
                        os.close(fd)

    def inside(self, request: DmaUnmap) -> slice:
        """The maps that ``request`` covers. Raises VfioUserError (EINVAL) if it would cut a map."""
        first, behind = bisect_left(self._starts, request.address), bisect_left(self._starts, request.end)
        before = self._ranges[first - 1] if first else None
        last = self._ranges[behind - 1] if behind > first else None
        for edge, boundary in ((before, request.address), (last, request.end)):
            if edge and edge.end > boundary:
                raise VfioUserError(
                    f"DMA_UNMAP: {request.address:#x}+{request.size:#x} cuts the map {edge.start:#x}+{edge.size:#x}"
                )
        return slice(first, behind)

    def unmap(self, ranges: slice) -> None:
        """Drop the maps that :meth:`inside` has found. Their files are released before this returns."""
        for (start, end), pages in self.joined() if self._joined else ():
            touched = self._touched(start, end)
            if touched.start < ranges.stop and ranges.start < touched.stop:
                del self._joined[start, end]
                if self.log is not None:
                    self.log.parted(start, pages)
                blank(pages)
        dropped = self._ranges[ranges]
        del self._starts[ranges], self._ranges[ranges]
        if self._kept is not None and not self._kept.deaf:
            self._kept.drop([mapped.start for mapped in dropped])
        for mapped in dropped:
            if self.log is not None:
                self.log.unmapped(mapped)
            self._release(mapped)

    def clear(self) -> None:
        """Drop all maps."""
        for pages in list(self._joined.values()):
            blank(pages)
        self._joined.clear()
        while self._ranges:
            self._release(self._ranges.pop())
        self._starts.clear()

    def segments(self, address: int, size: int, write: bool) -> tuple[Segment, ...]:
        """The segments that make up ``[address, address + size)``, in order. Raises DmaFault outside the maps."""
        last = self._last
        if last is None or not (last.start <= address and address + size <= last.end):
            last = self._find(address)
            if last is None:
                raise DmaFault(address, size, "the client has mapped nothing there")
            if address + size > last.end:
                return tuple(self._walk(address, size, write))
            self._last = last
        return (self._segment(last, address, size, write),)

    def shared_map(self, address: int, write: bool) -> SharedMap | None:
        """The map around ``address``, if it is shared and may be written (or read). Valid until the next unmap."""
        mapped = self._find(address)
        if mapped is None or mapped.view is None or not (mapped.writable if write else mapped.readable):
            return None
        return SharedMap(mapped.start, mapped.end, mapped.view if write else mapped.view.toreadonly())

    def whole(self, address: int, size: int, write: bool) -> memoryview | None:
        """One view of ``[address, address + size)``, which may lie in several maps. Valid until the next unmap.

        None if part of it is not shared, or if parts of huge pages had to be joined. Raises DmaFault outside the maps.
        """
        parts = self.segments(address, size, write)
        if len(parts) == 1 or any(part.view is None for part in parts):
            return parts[0].view if len(parts) == 1 else None
        start, end = address // _PAGE * _PAGE, -(-(address + size) // _PAGE) * _PAGE
        pages = self._joined.get((start, end))
        if pages is None:
            pieces = []
            for mapped in self._ranges[self._touched(start, end)]:
                if mapped.mapping is None or not mapped.mapping.joinable:
                    return None
                first, last = max(start, mapped.start), min(end, mapped.end)
                pieces.append((mapped.mapping.address + first - mapped.start, last - first))
            joined = len(pieces) + sum(len(self._ranges[self._touched(*span)]) for span in list(self._joined))
            if joined > MOST_JOINED:
                raise VfioUserError(f"{joined} pieces of memory joined, at most {MOST_JOINED} expected", errno.ENOSPC)
            self._joined[start, end] = pages = join(pieces)
            if self.log is not None:
                self.log.joined(start, pages)
        view = pages.view(address - start, size)
        return view if write else view.toreadonly()

    def joined(self) -> list[tuple[tuple[int, int], Pages]]:
        """The addresses that are mapped a second time, side by side, and where."""
        return list(self._joined.items())

    def files(self) -> list[SharedFile]:
        """The maps that may be read and written and whose files were kept, in order of address."""
        return [
            SharedFile(each.start, each.size, each.file.fd, each.offset, each.mapping.address)
            for each in self._ranges
            if each.file is not None and each.mapping is not None and each.readable and each.writable
        ]

    def file_io(self, address: int) -> FileIo | None:
        """The file by whose reads and writes the memory around ``address`` is reached; None for other memory."""
        mapped = self._find(address)
        return None if mapped is None else mapped.file_io

    @property
    def by_message(self) -> bool:
        """Whether there is writable memory, and all of it came without a file: DMA to it goes by message."""
        writable = [mapped for mapped in self._ranges if mapped.writable]
        return bool(writable) and not any(mapped.mapping or mapped.file_io for mapped in writable)

    def _insert(self, request: DmaMap, fd: int | None) -> None:
        size, address = request.size, request.address
        if size == 0 or address + size > _TOP or request.offset + size > _TOP >> 1:
            raise ProtocolError(
                f"DMA_MAP: address {address:#x}, size {size:#x}, offset {request.offset:#x} wrap around"
            )
        if address % self._page or size % self._page:
            raise ProtocolError(f"DMA_MAP: {address:#x}+{size:#x} is no multiple of the page size {self._page}")
        if not request.flags & (_READ | _WRITE):
            raise ProtocolError("DMA_MAP: flags allow neither reading nor writing")
        if fd is None and request.flags & _BY_FD:
            raise ProtocolError("DMA_MAP: flags ask for access through a file descriptor, and none came")
        slot = bisect_right(self._starts, address)
        before = self._ranges[slot - 1] if slot else None
        after = self._ranges[slot] if slot < len(self._ranges) else None
        if (before and before.end > address) or (after and address + size > after.start):
            raise VfioUserError(f"DMA_MAP: {address:#x}+{size:#x} overlaps a mapped range", errno.EEXIST)
        if len(self._ranges) >= self._max:
            raise VfioUserError(f"DMA_MAP: more than max_dma_maps ({self._max}) ranges", errno.ENOSPC)
        mapping = file_io = None
        if fd is not None and request.flags & _BY_FD == _BY_FILE_IO:
            file_io = FileIo(fd, address, request.offset)
        elif fd is not None:
            if self._files >= MOST_MAPPINGS:
                raise VfioUserError(f"DMA_MAP: more than {MOST_MAPPINGS} ranges with a file", errno.ENOSPC)
            mapping = Mapping(fd, request.offset, size, write=bool(request.flags & _WRITE))
            self._files += 1
        self.total += size
        file = None
        if self.kept is not None and fd is not None and mapping is not None and request.flags & _WRITE:
            file = self.kept.keep(fd)
        mapped = MappedRange(request, mapping, file, file_io)
        self._ranges.insert(slot, mapped)
        self._starts.insert(slot, address)
        if self.log is not None:
            self.log.mapped(mapped)

    def _release(self, mapped: MappedRange) -> None:
        if self._last is mapped:
            self._last = None
        self.total -= mapped.size
        mapped.view = None
        if mapped.mapping is not None:
            self._files -= 1
            mapped.mapping.detach()
        if mapped.file is not None:
            mapped.file.release()
        if mapped.file_io is not None:
            mapped.file_io.close()

    def _touched(self, start: int, end: int) -> slice:
        """Which ranges the addresses from ``start`` to ``end`` lie in; all of them are mapped."""
        return slice(bisect_right(self._starts, start) - 1, bisect_left(self._starts, end))

    def _find(self, address: int) -> MappedRange | None:
        slot = bisect_right(self._starts, address) - 1
        if slot < 0:
            return None
        mapped = self._ranges[slot]
        return mapped if address < mapped.end else None

    def _walk(self, address: int, size: int, write: bool) -> Iterator[Segment]:
        end = address + size
        while address < end:
            mapped = self._find(address)
            if mapped is None:
                raise DmaFault(address, end - address, "the client has mapped nothing there")
            stop = min(end, mapped.end)
            yield self._segment(mapped, address, stop - address, write)
            address = stop

    def _segment(self, mapped: MappedRange, address: int, size: int, write: bool) -> Segment:
        if not (mapped.writable if write else mapped.readable):
            verb = "writing" if write else "reading"
            raise DmaFault(address, size, f"the client has not mapped it for {verb}", errno.EPERM)
        view = mapped.view
        if view is not None:
            start = address - mapped.start
            view = view[start : start + size]
            if not write and not view.readonly:
                view = view.toreadonly()
        return Segment(address, size, view)
