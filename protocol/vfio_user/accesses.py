"""REGION_READ and REGION_WRITE: each distinct access is checked once, and then known by its bytes.

A driver reads and writes the same few registers over and over. Such messages differ in their id and data only. While
regions stay as they are, the checks of the other bytes always give the same result. An access that has passed them is
kept in a table, keyed by these bytes. The table also counts the accesses, and reports the counts to the backend now
and then.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vfio_user.backend import Backend, Writer
from vfio_user.channel import HEADER, PREFIX_SIZE
from vfio_user.constants import HEADER_SIZE, PCI_REGIONS, Command, MessageFlags, RegionFlags
from vfio_user.errors import ProtocolError, VfioUserError
from vfio_user.message import Message
from vfio_user.regions import Region
from vfio_user.transfer import REGION_ACCESS

MOST_KNOWN = 1024
_ID = 2  # bytes before those that are the same
_REPLY, _NO_REPLY = int(MessageFlags.REPLY), int(MessageFlags.NO_REPLY)


@dataclass(slots=True, eq=False)
class CheckedAccess:
    """A read or a write that has passed its checks. It is a write if it has a ``writer``, else a read."""

    command: Command
    region: int
    offset: int
    count: int
    size: int
    """Bytes of the whole message."""
    reply: bytes
    """The bytes between the id and the data of the reply; empty if the command wants no reply (No_reply)."""
    reader: Callable[[], bytes | memoryview]
    writer: Writer | None
    plain: bool = False
    """Whether it is a read that only looks at memory."""
    times: int = 0
    """How many of these accesses were done since the last :meth:`CheckedAccesses.settle`."""


class CheckedAccesses:
    """The regions of ``backend``, and the accesses to them that have passed their checks.

    ``largest`` is the most bytes that one access may move. Each table keeps at most :data:`MOST_KNOWN` accesses.
    """

    def __init__(self, backend: Backend, largest: int) -> None:
        self.regions: list[Region] = []
        self.known: dict[bytes, CheckedAccess] = {}
        """Keyed by the bytes between a message's id and its data."""
        self._among_many: dict[tuple[int, int, int], CheckedAccess] = {}  # writes that came in a REGION_WRITE_MULTI
        self._backend = backend
        self._largest = largest
        self.look()

    def look(self) -> None:
        """Ask the backend for its regions, and forget the accesses that were checked against those from before."""
        self.settle()
        for table in (self.known, self._among_many):
            table.clear()
        self.regions[:] = [self._backend.region(index) for index in range(PCI_REGIONS)]
        self._sizes = [region.info.size for region in self.regions]
        self._readable = [RegionFlags.READ in region.info.flags for region in self.regions]
        self._writable = [RegionFlags.WRITE in region.info.flags for region in self.regions]

    def checked(self, message: Message) -> CheckedAccess:
        """Check a REGION_READ or REGION_WRITE, and keep the result. Raises ProtocolError if it is not allowed."""
        return self.read(message) if message.command == Command.REGION_READ else self.write(message)

    def read(self, message: Message) -> CheckedAccess:
        """Check a REGION_READ, and keep the result. Raises ProtocolError (EINVAL; EPERM without the READ right)."""
        payload = message.payload
        if len(payload) < REGION_ACCESS.size:
            raise ProtocolError(f"REGION_READ: {len(payload)} bytes, expected at least {REGION_ACCESS.size}")
        offset, region, count = REGION_ACCESS.unpack_from(payload)
        self._check(region, offset, count, self._readable, "REGION_READ")
        reader = self._backend.reader(region, offset, count)
        reply = b"" if message.flags & _NO_REPLY else _head(message, count)
        size = HEADER_SIZE + len(payload)
        plain = reader.plain and bool(reply) and size == PREFIX_SIZE
        access = CheckedAccess(Command.REGION_READ, region, offset, count, size, reply, reader.read, None, plain)
        self._know(message, access)
        return access

    def write(self, message: Message) -> CheckedAccess:
        """Check a REGION_WRITE, and keep the result. Raises ProtocolError (EINVAL; EPERM without the WRITE right)."""
        payload = message.payload
        if len(payload) < REGION_ACCESS.size:
            raise ProtocolError(f"REGION_WRITE: {len(payload)} bytes, expected at least {REGION_ACCESS.size}")
        offset, region, count = REGION_ACCESS.unpack_from(payload)
        if len(payload) != REGION_ACCESS.size + count:
            came = len(payload) - REGION_ACCESS.size
            raise ProtocolError(f"REGION_WRITE: count {count}, but {came} bytes of data came")
        reply = b"" if message.flags & _NO_REPLY else _head(message, 0)
        access = self._write(Command.REGION_WRITE, region, offset, count, HEADER_SIZE + len(payload), reply)
        self._know(message, access)
        return access

    def write_among_many(self, region: int, offset: int, count: int) -> CheckedAccess:
        """Check one write of a REGION_WRITE_MULTI, and keep the result. Raises ProtocolError as :meth:`write` does."""
        access = self._among_many.get((region, offset, count))
        if access is None:
            access = self._write(Command.REGION_WRITE_MULTI, region, offset, count, 0, b"")
            self._among_many[region, offset, count] = access
        return access

    def many_come(self) -> None:
        """Make room before the writes of a REGION_WRITE_MULTI are checked: a full table is emptied."""
        if len(self._among_many) >= MOST_KNOWN:
            self.settle()
            self._among_many.clear()

    def settle(self) -> None:
        """Report to the backend the accesses that were done since the last report."""
        for access in (*self.known.values(), *self._among_many.values()):
            if access.times:
                times, access.times = access.times, 0
                write = access.writer is not None
                self._backend.accessed(access.region, access.offset, access.count, write=write, times=times)

    def _write(self, command: Command, region: int, offset: int, count: int, size: int, reply: bytes) -> CheckedAccess:
        self._check(region, offset, count, self._writable, command.name)
        writer = self._backend.writer(region, offset, count)
        return CheckedAccess(command, region, offset, count, size, reply, bytes, writer)

    def _check(self, region: int, offset: int, count: int, allowed: Sequence[bool], name: str) -> None:
        if region >= PCI_REGIONS:
            raise ProtocolError(f"{name}: region {region}, expected 0 to {PCI_REGIONS - 1}")
        if count > self._largest:
            raise ProtocolError(f"{name}: count {count}, max_data_xfer_size is {self._largest}")
        size = self._sizes[region]
        if offset >= size or count > size - offset:
            raise ProtocolError(
                f"{name}: {offset:#x}+{count:#x} lies outside region {region}, which has {size:#x} bytes"
            )
        if not allowed[region]:
            verb = "READ" if allowed is self._readable else "WRITE"
            raise ProtocolError(f"{name}: region {region} has no right to {verb}", errno.EPERM)

    def _know(self, message: Message, access: CheckedAccess) -> None:
        """Keep the access that ``message`` asks for."""
        if len(self.known) >= MOST_KNOWN:
            self.settle()
            self.known.clear()
        self.known[_key(message)] = access


def refusal(message: Message, error: VfioUserError) -> CheckedAccess:
    """An access that raises ``error`` when it is done, for a message that failed its checks. It is not kept."""

    def refuse() -> bytes:
        raise error

    reply = b"" if message.flags & _NO_REPLY else _head(message, 0)
    return CheckedAccess(Command(message.command), 0, 0, 0, 0, reply, refuse, None)


def short(given: int, asked: int) -> VfioUserError:
    """The error of a device that gave fewer bytes than were read."""
    return VfioUserError(f"REGION_READ: the device gave {given} bytes for {asked}", errno.EIO)


def _head(message: Message, count: int) -> bytes:
    """The bytes between the id and the data of a reply with ``count`` bytes of data."""
    head = message.payload[: REGION_ACCESS.size]
    return HEADER.pack(0, message.command, PREFIX_SIZE + count, _REPLY, 0)[_ID:] + head


def _key(message: Message) -> bytes:
    """The bytes that are the same in every message for this access: all between its id and its data."""
    _, command, flags, error, payload, _ = message
    head = HEADER.pack(0, command, HEADER_SIZE + len(payload), flags, error)
    return head[_ID:] + payload[: REGION_ACCESS.size]
