"""MIG_DATA_READ and MIG_DATA_WRITE: their messages. Device state is opaque to a client."""

from __future__ import annotations

from typing import NamedTuple

from vfio_user.errors import ProtocolError
from vfio_user.fields import Fields

DATA = Fields("<II", "argsz size")


class MigrationRead(NamedTuple):
    """A MIG_DATA_READ request: at most ``size`` bytes of device state."""

    size: int

    def pack(self) -> bytes:
        """The request's 8 bytes."""
        return DATA.pack(DATA.size + self.size, self.size)

    @classmethod
    def unpack(cls, payload: memoryview) -> MigrationRead:
        """Decode a request. Raises ProtocolError, which names the field that is wrong."""
        if len(payload) < DATA.size:
            raise ProtocolError(f"MIG_DATA_READ: {len(payload)} bytes, expected at least {DATA.size}")
        argsz, size = DATA.unpack_from(payload)
        if argsz < DATA.size + size:
            raise ProtocolError(f"MIG_DATA_READ: argsz {argsz} leaves no room for size {size}")
        return cls(size)


class MigrationData(NamedTuple):
    """A MIG_DATA_WRITE request, or the reply to MIG_DATA_READ: device state, opaque to the client."""

    data: bytes

    def pack(self) -> bytes:
        """The payload: 8 bytes, then the data."""
        return DATA.pack(DATA.size + len(self.data), len(self.data)) + self.data

    @classmethod
    def unpack(cls, payload: memoryview) -> MigrationData:
        """The device state in a request or a reply. Padding behind the data is allowed."""
        if len(payload) < DATA.size:
            raise ProtocolError(f"MIG_DATA_WRITE: {len(payload)} bytes, expected at least {DATA.size}")
        _, size = DATA.unpack_from(payload)
        if size > len(payload) - DATA.size:
            raise ProtocolError(f"MIG_DATA_WRITE: size {size}, but {len(payload) - DATA.size} bytes came")
        return cls(bytes(payload[DATA.size : DATA.size + size]))
