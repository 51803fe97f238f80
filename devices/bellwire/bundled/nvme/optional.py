"""Optional NVM commands: Compare (§6.6), Verify (§6.14), Write Uncorrectable (§6.16) and Copy (TP 4065)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from bellwire import Job
from bellwire.bundled.nvme.command import Byte, Command, IoOpcode
from bellwire.bundled.nvme.features import Features
from bellwire.bundled.nvme.guest_pages import GuestPages, check_flags
from bellwire.bundled.nvme.namespace import COPY_RANGES, LARGEST_COPY, Namespace
from bellwire.bundled.nvme.namespaces import Namespaces
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.bundled.nvme.task import Task
from bellwire.storage import Disk

PIECE = 1 << 20
"""Bytes of one read by Verify, which can cover more than one transfer."""
FORCE_UNIT_ACCESS = 1 << 30  # in dword 12
PROTECTION = 0xF << 26  # in dword 12: checks and insertion of protection information, which is not supported
SOURCE = struct.Struct("<8xQH14x")
"""A Copy's source range of format 0: 32 bytes."""


class OptionalCommands:
    """Executes optional commands. ``save`` writes lost blocks to the store, and may raise an OSError."""

    def __init__(self, pages: GuestPages, namespaces: Namespaces, features: Features, save: Callable[[], None]) -> None:
        self._pages = pages
        self._namespaces = namespaces
        self._features = features
        self._save = save
        self.commands: dict[int, Callable[[Command], Job | None]] = {
            IoOpcode.WRITE_UNCORRECTABLE: self._write_uncorrectable,
            IoOpcode.COMPARE: self._compare,
            IoOpcode.VERIFY: self._verify,
            IoOpcode.COPY: self._copy,
        }

    def _addressed(self, command: Command) -> tuple[Namespace, int, int]:
        """The namespace, the first block and the count of blocks that most commands name in the same way."""
        check_flags(command)
        namespace = self._namespaces[command.nsid]
        start, count = command.cdw10 | command.cdw11 << 32, (command.cdw12 & 0xFFFF) + 1
        namespace.span(start, count)
        return namespace, start, count

    def _write_uncorrectable(self, command: Command) -> None:
        """Write Uncorrectable: the blocks cannot be read until they are written. A store in a folder remembers that."""
        namespace, start, count = self._addressed(command)
        namespace.check_writable()
        if not namespace.lost.add(start, count):
            raise CommandError(Status.WRITE_FAULT, Byte.CDW10)
        self._save()

    def _compare(self, command: Command) -> Job:
        """Compare: the data of the host must equal the stored data."""
        namespace, start, count = self._addressed(command)
        namespace.check_readable(start, count)
        offset, length = namespace.span(start, count)
        places = self._pages.extents(command, length)
        views: Sequence[memoryview] = self._pages.views(places, write=False) or [memoryview(self._pages.gather(places))]
        return Job(_compare, namespace.disk, offset, length, views)

    def _verify(self, command: Command) -> Job:
        """Verify: read the blocks, without a transfer."""
        namespace, start, count = self._addressed(command)
        namespace.check_readable(start, count)
        offset, length = namespace.span(start, count)
        return Job(_verify, namespace.disk, offset, length)

    def _copy(self, command: Command) -> Job:
        """Copy: write the blocks of several ranges, one after the other, to one place of the same namespace.

        A destination that overlaps a source is refused: after a restore the command may be executed twice.
        """
        check_flags(command)
        namespace = self._namespaces[command.nsid]
        if command.cdw12 >> 8 & 0xF or command.cdw12 & PROTECTION:
            raise CommandError(Status.INVALID_FIELD, Byte.CDW12)
        ranges = (command.cdw12 & 0xFF) + 1
        if ranges > COPY_RANGES:
            raise CommandError(Status.COMMAND_SIZE_LIMIT_EXCEEDED, Byte.CDW12)
        listed = self._pages.gather(self._pages.extents(command, ranges * SOURCE.size))
        sources = [(start, count + 1) for start, count in SOURCE.iter_unpack(listed)]
        total = sum(count for _, count in sources)
        if total << namespace.shift > LARGEST_COPY:
            raise CommandError(Status.COMMAND_SIZE_LIMIT_EXCEEDED, Byte.CDW12)
        target = command.cdw10 | command.cdw11 << 32
        offset, length = namespace.span(target, total)
        namespace.check_writable()
        for start, count in sources:
            namespace.span(start, count)
            namespace.check_readable(start, count)
            if start < target + total and target < start + count:
                raise CommandError(Status.INVALID_FIELD, Byte.CDW10)
        durable = bool(command.cdw12 & FORCE_UNIT_ACCESS) or not self._features.write_cache
        spans = [namespace.span(start, count) for start, count in sources]
        work = (namespace.disk, spans, offset, length, durable)
        if namespace.lost:
            return healing(namespace, offset, length, self._save, _copy, *work)
        return Job(_copy, *work)


def healing(
    namespace: Namespace, offset: int, length: int, save: Callable[[], None], work: Callable[..., None], *what: object
) -> Task:
    """``work`` writes ``length`` bytes at ``offset``: when it has, their blocks can be read again."""

    def ended(error: Exception | None) -> int:
        start, count = offset >> namespace.shift, length >> namespace.shift
        if error is None and namespace.lost.first(start, count) is not None:
            namespace.lost.remove(start, count)
            save()
        return 0

    return Task(work, *what, ended=ended)


def _compare(disk: Disk, offset: int, length: int, views: Sequence[memoryview]) -> None:
    stored = memoryview(bytearray(length))
    disk.read([stored], offset)
    at = 0
    for view in views:
        if stored[at : at + len(view)] != view:
            raise CommandError(Status.COMPARE_FAILURE)
        at += len(view)


def _verify(disk: Disk, offset: int, length: int) -> None:
    aside = memoryview(bytearray(min(length, PIECE)))
    for at in range(offset, offset + length, PIECE):
        disk.read([aside[: offset + length - at]], at)


def _copy(disk: Disk, spans: Sequence[tuple[int, int]], offset: int, length: int, durable: bool) -> None:
    aside = memoryview(bytearray(length))
    at = 0
    for start, size in spans:
        disk.read([aside[at : at + size]], start)
        at += size
    disk.write([aside], offset, durable=durable)
