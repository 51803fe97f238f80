"""Device Self-test (§5.8, §8.11): the disks are read, in the background, here and there or from end to end."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from bellwire import Job
from bellwire.bundled.nvme.command import ALL_NAMESPACES, Byte, Command
from bellwire.bundled.nvme.namespace import Namespace
from bellwire.bundled.nvme.status import CommandError, Status

if TYPE_CHECKING:
    from bellwire.bundled.nvme.controller import Controller

MINUTES = 2
"""The nominal time of an extended self-test (EDSTT)."""
RESULTS = 20
RESULT = struct.Struct("<BBBxQIQBBxx")
SAMPLES = 16
"""Places of each namespace that a short self-test reads."""
PIECE = 1 << 20
"""The size of one read in bytes."""
DISK_SEGMENT = 2
NSID_VALID, LBA_VALID, TYPE_VALID, CODE_VALID = 1 << 0, 1 << 1, 1 << 2, 1 << 3


class Kind(IntEnum):
    """Self-test codes."""

    NONE = 0
    SHORT = 1
    EXTENDED = 2
    ABORT = 0xF


class Result(IntEnum):
    """The result of a self-test."""

    PASSED = 0
    ABORTED_BY_COMMAND = 1
    CONTROLLER_RESET = 2
    NAMESPACE_REMOVED = 3
    FORMATTED = 4
    SEGMENT_FAILED = 7
    SANITIZED = 9


class Piece(NamedTuple):
    """A range that one read covers."""

    space: Namespace
    offset: int
    length: int


class SelfTest:
    """One operation at a time. Results of the last ones are in the store."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._results = controller.store.record.self_tests
        self._kind = Kind.NONE
        self._nsid = 0
        self._spaces: Sequence[Namespace] = ()
        self._pieces: Iterator[Piece] = iter(())
        self._done = self._total = 0
        self._reading: Piece | None = None
        self._buffer = bytearray()

    def execute(self, command: Command) -> int:
        """Begin an operation, or abort the one under way."""
        try:
            kind = Kind(command.cdw10 & 0xF)
        except ValueError:
            kind = Kind.NONE
        if kind is Kind.NONE:
            raise CommandError(Status.INVALID_FIELD, Byte.CDW10)
        if kind is Kind.ABORT:
            self._abort(Result.ABORTED_BY_COMMAND)
            return 0
        namespaces = self._controller.namespaces
        if command.nsid in (0, ALL_NAMESPACES):
            spaces = namespaces.attached if command.nsid else []
        else:
            spaces = [namespaces.active(command.nsid)]
        if self._kind is not Kind.NONE:
            raise CommandError(Status.SELF_TEST_IN_PROGRESS)
        for space in spaces:
            space.check_free()
        self._kind, self._nsid, self._spaces = kind, command.nsid, spaces
        self._total = sum(SAMPLES if kind is Kind.SHORT else -(-space.disk.size // PIECE) for space in spaces)
        self._done = 0
        self._pieces = _samples(spaces) if kind is Kind.SHORT else _everything(spaces)
        self._reading = None
        self._buffer = bytearray(PIECE)
        self._next()
        return 0

    def interrupt(self, why: Result, spaces: Sequence[Namespace]) -> None:
        """End an operation on one of these namespaces, which are about to lose their data."""
        if any(space in self._spaces for space in spaces):
            self._abort(why)

    def controller_reset(self) -> None:
        """A short self-test ends with a reset, an extended one goes on (§8.11)."""
        if self._kind is Kind.SHORT:
            self._abort(Result.CONTROLLER_RESET)

    def resume(self) -> None:
        """Continue the operation: the threads have dropped their jobs."""
        if self._kind is not Kind.NONE:
            self._read(self._reading)

    def page(self, _: Command) -> bytes:
        """Device Self-test (§5.14.1.6): the operation under way, then the results, the newest first."""
        percent = min(100, self._done * 100 // self._total) if self._total else 0  # a disk may have grown meanwhile
        unused = RESULT.pack(0xF, 0, 0, 0, 0, 0, 0, 0)
        results = [*self._results[::-1], *[unused] * RESULTS][:RESULTS]
        return bytes((self._kind, percent, 0, 0)) + b"".join(results)

    def _next(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            self._end(Result.PASSED)
            return
        lost = piece.space.lost.first(piece.offset >> piece.space.shift, piece.length >> piece.space.shift)
        if lost is not None:
            self._failed(piece.space, lost)
        else:
            self._read(piece)

    def _read(self, piece: Piece | None) -> None:
        if piece is None:
            self._next()
            return
        self._reading = piece
        view = memoryview(self._buffer)[: piece.length]
        self._controller.engine.background(Job(piece.space.disk.read, [view], piece.offset), self._was_read)

    def _was_read(self, job: Job) -> None:
        piece, self._reading = self._reading, None
        if self._kind is Kind.NONE or piece is None:  # aborted meanwhile
            return
        self._done += 1
        if job.error is None or piece.offset + piece.length > piece.space.disk.size:  # it has shrunk meanwhile
            self._next()
        else:
            self._controller.device.warn("self-test: %s", job.error)
            self._failed(piece.space, piece.offset >> piece.space.shift)

    def _failed(self, space: Namespace, block: int) -> None:
        status = Status.UNRECOVERED_READ_ERROR
        valid = NSID_VALID | LBA_VALID | TYPE_VALID | CODE_VALID
        self._end(Result.SEGMENT_FAILED, DISK_SEGMENT, valid, space.nsid, block, status >> 8, status & 0xFF)

    def _abort(self, why: Result) -> None:
        if self._kind is not Kind.NONE:
            self._end(why)

    def _end(
        self, result: Result, segment: int = 0, valid: int = 0, nsid: int = 0, block: int = 0, kind: int = 0,
        code: int = 0,
    ) -> None:  # fmt: skip
        if not valid and self._nsid:
            valid, nsid = NSID_VALID, self._nsid
        entry = RESULT.pack(self._kind << 4 | result, segment, valid, 0, nsid, block, kind, code)
        self._results.append(entry)
        del self._results[:-RESULTS]
        self._kind, self._spaces, self._pieces = Kind.NONE, (), iter(())
        self._done = self._total = 0
        self._controller.save_soon()


def _samples(spaces: Sequence[Namespace]) -> Iterator[Piece]:
    """One block at each of SAMPLES places, from the first to the last."""
    for space in spaces:
        for number in range(SAMPLES if space.blocks else 0):
            block = (space.blocks - 1) * number // (SAMPLES - 1)
            yield Piece(space, block << space.shift, 1 << space.shift)


def _everything(spaces: Sequence[Namespace]) -> Iterator[Piece]:
    """All blocks, piece by piece."""
    for space in spaces:
        offset = 0
        while (left := (space.blocks << space.shift) - offset) > 0:
            yield Piece(space, offset, min(PIECE, left))
            offset += PIECE
