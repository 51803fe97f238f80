"""REGION_READ and REGION_WRITE: checked once, then known by their bytes.

A driver reads and writes the same few registers over and over, and but for its id and its data such a message is the
same each time. What its checks have said once they would say again, since regions never change: so an access that has
passed them is kept, under the bytes that they looked at.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vfio_user.backend import Backend
from vfio_user.channel import HEADER, PREFIX_SIZE, Answer, Message
from vfio_user.constants import HEADER_SIZE, PCI_REGIONS, Command, MessageFlags, RegionFlags
from vfio_user.errors import ProtocolError
from vfio_user.transfer import REGION_ACCESS

MOST_KNOWN = 1024
_ID = 2  # bytes before those that are the same
_REPLY, _NO_REPLY = int(MessageFlags.REPLY), int(MessageFlags.NO_REPLY)


class Access(NamedTuple):
    """A read or a write that may be done: it has either a ``reader`` or a ``writer``."""

    command: Command
    size: int
    """Bytes of the whole message."""
    reply: bytes
    """What stands between the id and the data of the reply; empty where there is to be none."""
    answers: int
    """Bytes of data in the reply."""
    reader: Callable[[], bytes | memoryview] | None
    writer: Callable[[memoryview], None] | None


class Accesses:
    """The regions of ``backend``, and the accesses to them that are known."""

    def __init__(self, backend: Backend, largest: int) -> None:
        self.regions = [backend.region(index) for index in range(PCI_REGIONS)]
        self.known: dict[bytes, Access] = {}
        """By what stands between a message's id and its data."""
        self.plain: dict[bytes, Answer] = {}
        """The reads among them that only look at memory."""
        self._backend = backend
        self._largest = largest
        self._sizes = [region.info.size for region in self.regions]
        self._readable = [RegionFlags.READ in region.info.flags for region in self.regions]
        self._writable = [RegionFlags.WRITE in region.info.flags for region in self.regions]

    def read(self, message: Message) -> Access:
        """What a REGION_READ asks for; a ProtocolError where it may not."""
        payload = message.payload
        if len(payload) != REGION_ACCESS.size:
            raise ProtocolError(f"REGION_READ: {len(payload)} bytes, expected {REGION_ACCESS.size}")
        offset, region, count = REGION_ACCESS.unpack(payload)
        self._check(region, offset, count, self._readable, "REGION_READ")
        reader = self._backend.reader(region, offset, count)
        access = self._know(message, Command.REGION_READ, count, reader.read, None)
        if reader.plain and access.reply:
            self.plain[_key(message)] = access.reply, reader.read
        return access

    def write(self, message: Message) -> Access:
        """What a REGION_WRITE asks for; a ProtocolError where it may not."""
        payload = message.payload
        if len(payload) < REGION_ACCESS.size:
            raise ProtocolError(f"REGION_WRITE: {len(payload)} bytes, expected at least {REGION_ACCESS.size}")
        offset, region, count = REGION_ACCESS.unpack_from(payload)
        if len(payload) != REGION_ACCESS.size + count:
            came = len(payload) - REGION_ACCESS.size
            raise ProtocolError(f"REGION_WRITE: count {count}, but {came} bytes of data came")
        self.check_write(region, offset, count, "REGION_WRITE")
        writer = functools.partial(self._backend.region_write, region, offset)
        return self._know(message, Command.REGION_WRITE, 0, None, writer)

    def check_write(self, region: int, offset: int, count: int, name: str) -> None:
        """A ProtocolError where a client may not write that."""
        self._check(region, offset, count, self._writable, name)

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

    def _know(
        self,
        message: Message,
        command: Command,
        count: int,
        reader: Callable[[], bytes | memoryview] | None,
        writer: Callable[[memoryview], None] | None,
    ) -> Access:
        """Keep the access that ``message`` asks for; ``count`` bytes will answer it."""
        reply = b""
        if not message.flags & _NO_REPLY:
            head = message.payload[: REGION_ACCESS.size]
            reply = HEADER.pack(0, command, PREFIX_SIZE + count, _REPLY, 0)[_ID:] + head
        access = Access(command, HEADER_SIZE + len(message.payload), reply, count, reader, writer)
        if len(self.known) >= MOST_KNOWN:
            self.known.clear()
            self.plain.clear()
        self.known[_key(message)] = access
        return access


def _key(message: Message) -> bytes:
    """What is the same whenever such a message comes."""
    _, command, flags, error, payload, _ = message
    head = HEADER.pack(0, command, HEADER_SIZE + len(payload), flags, error)
    return head[_ID:] + payload[: REGION_ACCESS.size]
