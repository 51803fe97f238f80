"""NVM commands (§6). Each is done at once, or becomes a job for a thread."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence
from typing import Any

from bellwire import Job
from bellwire.bundled.nvme.command import Byte, Command, IoOpcode
from bellwire.bundled.nvme.features import Features
from bellwire.bundled.nvme.guest_pages import GuestPages, check_flags
from bellwire.bundled.nvme.logs import Counters
from bellwire.bundled.nvme.namespace import Namespace
from bellwire.bundled.nvme.namespaces import Namespaces
from bellwire.bundled.nvme.optional import OptionalCommands, healing
from bellwire.bundled.nvme.prp import Extent
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.storage import Disk
from bellwire.storage.aio import Transfer

SECTOR_SHIFT = 9
AT_ONCE = 2 << 20
"""Bytes copied from the page cache before the worker looks at the next doorbell. Threads do the rest."""
FORCE_UNIT_ACCESS = 1 << 30  # in dword 12
DEALLOCATE = 1 << 25  # in dword 12 of Write Zeroes
ATTRIBUTE_DEALLOCATE = 1 << 2  # in dword 11 of Dataset Management
RANGE = struct.Struct("<IIQ")
READING = (IoOpcode.READ, IoOpcode.COMPARE, IoOpcode.VERIFY)

Answer = Job | None
"""None: the command has succeeded. A job: its tag is what remains to be done when it has ended."""
Ending = Callable[[], None]


class Io:
    """Executes I/O commands. They raise a CommandError, or an OSError of the disk: :func:`blame` gives its status."""

    def __init__(
        self,
        pages: GuestPages,
        namespaces: Namespaces,
        features: Features,
        counters: Counters,
        save: Callable[[], None],
    ) -> None:
        self._pages = pages
        self._namespaces = namespaces
        self._features = features
        self._counters = counters
        self._save = save
        self._commands: dict[int, Callable[[Command], Answer]] = {
            IoOpcode.FLUSH: self._flush,
            IoOpcode.WRITE: self._write,
            IoOpcode.READ: self._read,
            IoOpcode.WRITE_ZEROES: self._write_zeroes,
            IoOpcode.DATASET_MANAGEMENT: self._dataset_management,
            **OptionalCommands(pages, namespaces, features, save).commands,
        }
        self.budget = AT_ONCE
        """The bytes that may still be copied on the device's own thread in this turn."""

    def execute(self, command: Command) -> Answer:
        """Execute the command, or return a job for it."""
        handler = self._commands.get(command.opcode)
        if handler is None:
            raise CommandError(Status.INVALID_OPCODE, Byte.OPCODE)
        return handler(command)

    def _read(self, command: Command) -> Answer:
        """Read (§6.9): at once from the page cache, or by a thread that waits for the disk."""
        _, _, _, nsid, _, _, _, _, low, high, count, *_ = command
        namespace = self._namespaces[nsid]
        count = (count & 0xFFFF) + 1
        offset, length = namespace.span(low | high << 32, count)
        if namespace.lost:
            namespace.check_readable(low | high << 32, count)
        places = self._pages.extents(command, length)
        views: Sequence[Any] | None = self._pages.views(places, write=True)
        self._counters.reads += 1
        self._counters.sectors_read += length >> SECTOR_SHIFT
        disk = namespace.disk
        if views is None:
            return self._read_aside(disk, offset, length, places)
        if length <= self.budget and disk.try_read(views, offset, length):
            self.budget -= length
            return None
        return Transfer(disk, views, offset, write=False)

    def _read_aside(self, disk: Disk, offset: int, length: int, places: list[Extent]) -> Job:
        """Read into memory of this process, for a client that shares none: it gets a copy."""
        aside = bytearray(length)
        return Job(disk.read, [aside], offset, tag=lambda: self._pages.scatter(places, aside))

    def _write(self, command: Command) -> Answer:
        """Write (§6.15). It is durable if the host asks for that, or has turned the write cache off."""
        namespace = self._namespaces[command.nsid]
        offset, length = namespace.span(command.cdw10 | command.cdw11 << 32, (command.cdw12 & 0xFFFF) + 1)
        namespace.check_writable()
        places = self._pages.extents(command, length)
        views: Sequence[Any] = self._pages.views(places, write=False) or [memoryview(self._pages.gather(places))]
        self._counters.writes += 1
        self._counters.sectors_written += length >> SECTOR_SHIFT
        disk = namespace.disk
        durable = bool(command.cdw12 & FORCE_UNIT_ACCESS) or not self._features.write_cache
        if namespace.lost:
            return healing(namespace, offset, length, self._save, _write_durably, disk, views, offset)
        if disk.instant and length <= self.budget:
            self.budget -= length
            disk.write(views, offset)
            return None
        return Job(_write_durably, disk, views, offset) if durable else Transfer(disk, views, offset, write=True)

    def _flush(self, command: Command) -> Answer:
        """Flush (§6.8) one namespace, or all."""
        check_flags(command)
        spaces = self._namespaces.addressed(command.nsid)
        if all(space.disk.instant for space in spaces):
            return None
        return Job(flush_all, spaces)

    def _write_zeroes(self, command: Command) -> Answer:
        """Write Zeroes (§6.17). With Deallocate, the space of the blocks may be freed."""
        check_flags(command)
        namespace = self._namespaces[command.nsid]
        offset, length = namespace.span(command.cdw10 | command.cdw11 << 32, (command.cdw12 & 0xFFFF) + 1)
        namespace.check_writable()
        durable = bool(command.cdw12 & FORCE_UNIT_ACCESS) or not self._features.write_cache
        work = (namespace.disk, offset, length, bool(command.cdw12 & DEALLOCATE), durable)
        if namespace.lost:
            return healing(namespace, offset, length, self._save, _zero, *work)
        return Job(_zero, *work)

    def _dataset_management(self, command: Command) -> Answer:
        """Dataset Management (§6.7): deallocated blocks free space of the image. Other hints have no effect."""
        namespace = self._namespaces[command.nsid]
        count = (command.cdw10 & 0xFF) + 1
        ranges = self._pages.gather(self._pages.extents(command, count * RANGE.size))
        if not command.cdw11 & ATTRIBUTE_DEALLOCATE:
            return None
        namespace.check_writable()
        spans = [namespace.span(start, blocks) for _, blocks, start in RANGE.iter_unpack(ranges)]
        return Job(_discard, namespace.disk, spans)


def blame(error: Exception, opcode: int) -> CommandError:
    """The CommandError that the host gets for an error of the disk."""
    if isinstance(error, CommandError):
        return error
    if not isinstance(error, OSError):
        return CommandError(Status.INTERNAL_ERROR)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CommandError(Status.CAPACITY_EXCEEDED)
    return CommandError(Status.UNRECOVERED_READ_ERROR if opcode in READING else Status.WRITE_FAULT)


def flush_all(namespaces: Sequence[Namespace]) -> None:
    """Put everything that was written to these namespaces onto their media."""
    for namespace in namespaces:
        namespace.disk.flush()


def _write_durably(disk: Disk, views: Sequence[memoryview], offset: int) -> None:
    disk.write(views, offset, durable=True)


def _zero(disk: Disk, offset: int, length: int, release: bool, durable: bool) -> None:
    disk.zero(offset, length, release=release)
    if durable:
        disk.flush()


def _discard(disk: Disk, spans: Sequence[tuple[int, int]]) -> None:
    for offset, length in spans:
        if length:
            disk.discard(offset, length)
