"""A state that comes from elsewhere: the files of another process, or a snapshot. Nothing in it is trusted."""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple, Self

from bellwire.errors import StateError
from bellwire.model.description import IN_STATE, MOST_BYTES, MOST_STATE, Description, Item, parse
from bellwire.model.extents import Extent, unpack

MAGIC = 0x5357_4C42  # "BLWS" when read as text
FORMAT = 1
"""Raised when an older Bellwire could not read the state. Every format since 1 is read."""
HEADER = struct.Struct("<IIQQQII")  # magic, format, busy, flags, where the description is, its size, its CRC-32


class StateFiles(NamedTuple):
    """The descriptors of a device's memory files: the state file, and the areas' file of each BAR that has areas."""

    state: int
    areas: Mapping[int, int]


class Header(NamedTuple):
    """The header of a state file, and of a snapshot."""

    magic: int
    format: int
    hooks: int
    """Hooks that were running; more than 0 means that the state is torn."""
    flags: int
    at: int
    size: int
    checksum: int

    @classmethod
    def of(cls, at: int, said: bytes) -> Header:
        """The header of a new file, whose description ``said`` is ``at``."""
        return cls(MAGIC, FORMAT, 0, 0, at, len(said), zlib.crc32(said))

    @classmethod
    def parse(cls, content: memoryview) -> Header:
        """Read the start of a file or of a snapshot. A StateError says why it is none of ours."""
        if len(content) < HEADER.size:
            raise StateError(f"{len(content)} bytes are no state: it has at least {HEADER.size}")
        header = cls._make(HEADER.unpack_from(content))
        if header.magic != MAGIC:
            raise StateError("this is not the state of a Bellwire device")
        if header.format != FORMAT:
            raise StateError(f"the state has format {header.format}, and this Bellwire reads format {FORMAT}")
        if not HEADER.size <= header.at <= MOST_STATE or header.size > MOST_BYTES:
            raise StateError(f"the state's description has {header.size} bytes at {header.at:#x}, which cannot be")
        return header

    @property
    def busy(self) -> bool:
        """Whether the state is torn."""
        return self.hooks != 0

    def refuse_torn(self, what: str) -> None:
        """Raise a StateError if the state is torn."""
        if self.busy:
            raise StateError(f"{what} is torn: it was taken while a hook ran")

    def split(self, snapshot: bytes) -> tuple[bytes, memoryview]:
        """The description and the records of a snapshot."""
        end = HEADER.size + self.size
        if len(snapshot) < end:
            raise StateError(f"snapshot of {len(snapshot)} bytes, cut short in its description of {self.size}")
        said = snapshot[HEADER.size : end]
        self.check(said)
        return said, memoryview(snapshot)[end:]

    def check(self, said: bytes) -> None:
        """Refuse a damaged description."""
        if zlib.crc32(said) != self.checksum:
            raise StateError("the state is damaged: its description has another checksum than its header says")


class Source:
    """A state file and area files to read. They are mapped until :meth:`close`; whoever gave them keeps them."""

    def __init__(
        self, header: Header, said: bytes, files: StateFiles, stack: ExitStack, *, write: bool = False
    ) -> None:
        self.header = header
        self.said = said
        self.files = files
        self.description: Description = parse(said, HEADER.size)
        self._stack = stack
        self._views: dict[int, memoryview] = {}
        for bar, size in _sizes(self.description).items():
            fd = files.state if bar == IN_STATE else files.areas.get(bar, -1)
            if fd < 0:
                raise StateError(f"the file of BAR {bar}'s areas is missing")
            self._views[bar] = _mapped(fd, size, stack, write=write)

    @classmethod
    def of_files(cls, files: StateFiles) -> Source:
        """The state that another process has left in ``files``. A StateError if that cannot be."""
        size = os.fstat(files.state).st_size
        with ExitStack() as stack:
            whole = _mapped(files.state, size, stack) if size else memoryview(b"")
            header = Header.parse(whole)
            if header.at + header.size > size:
                raise StateError(f"the state file has {size} bytes, too few for its description")
            said = bytes(whole[header.at : header.at + header.size])
            header.check(said)
            source = cls(header, said, files, stack)
            if source.description.size != header.at:
                raise StateError("the state does not describe itself: its size is not where the description begins")
            source._stack = stack.pop_all()
        return source

    @classmethod
    def of_snapshot(cls, header: Header, said: bytes, records: memoryview) -> Source:
        """The state in a snapshot, unpacked into files of its own."""
        with ExitStack() as stack:
            made: dict[int, int] = {}
            for bar, size in _sizes(parse(said, HEADER.size)).items():
                made[bar] = os.memfd_create("bellwire-restored", os.MFD_CLOEXEC)
                stack.callback(os.close, made[bar])
                try:
                    os.ftruncate(made[bar], size)
                except OSError as error:
                    raise StateError(f"the state needs {size} bytes: {error}") from error
            source = cls(header, said, StateFiles(made.pop(IN_STATE), made), stack, write=True)
            body = source.extent(HEADER.size, source.description.size)
            unpack([body, *map(source.place, source.description.areas())], records)
            source._stack = stack.pop_all()
        return source

    def place(self, item: Item) -> Extent:
        """Where the bytes of ``item`` lie."""
        return self.extent(item.at, item.at + item.size, item.bar)

    def extent(self, start: int, stop: int, bar: int = IN_STATE) -> Extent:
        """The bytes ``[start, stop)`` of the state file, or of the areas of ``bar``."""
        fd = self.files.state if bar == IN_STATE else self.files.areas[bar]
        return Extent(fd, self._views[bar], start, stop)

    def close(self) -> None:
        """Unmap the files."""
        for view in self._views.values():
            view.release()
        self._views.clear()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sizes(description: Description) -> dict[int, int]:
    """The bytes that each file has at least: the state file, and the areas' file of each BAR."""
    sizes = {IN_STATE: description.size}
    for item in description.areas():
        sizes[item.bar] = max(sizes.get(item.bar, 1), item.at + item.size)
    return sizes


def _mapped(fd: int, size: int, stack: ExitStack, *, write: bool = False) -> memoryview:
    """The first ``size`` bytes of a file: a StateError if it has fewer, since an access there would be fatal."""
    has = os.fstat(fd).st_size
    if has < size:
        raise StateError(f"a file of {has} bytes where the state has {size}")
    try:
        mapping = mmap.mmap(fd, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if write else 0))
    except OSError as error:
        raise StateError(f"a file of {size} bytes cannot be mapped: {error}") from error
    stack.callback(mapping.close)
    view = memoryview(mapping)
    stack.callback(view.release)
    return view
