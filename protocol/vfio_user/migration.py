"""DEVICE_FEATURE, MIG_DATA_READ and MIG_DATA_WRITE: packed and unpacked here; the session answers ENOTSUP."""

from __future__ import annotations

import errno
from typing import NamedTuple, NoReturn

from vfio_user.constants import FeatureFlags
from vfio_user.errors import ProtocolError, VfioUserError
from vfio_user.fields import Fields

FEATURE = Fields("<II", "argsz flags")
DATA = Fields("<II", "argsz size")
_NUMBER = 0xFFFF
_BOTH = FeatureFlags.GET | FeatureFlags.SET
_ACTIONS = int(_BOTH | FeatureFlags.PROBE)  # an int: ~ of an IntFlag clears unknown bits


class DeviceFeature(NamedTuple):
    """A DEVICE_FEATURE request or reply: a feature's number, what to do with it, and its data."""

    flags: FeatureFlags
    feature: int
    data: bytes = b""

    def pack(self, argsz: int = 0) -> bytes:
        """The payload. ``argsz`` is for requests whose reply may be longer than the request."""
        return FEATURE.pack(max(argsz, FEATURE.size + len(self.data)), self.flags | self.feature) + self.data

    @classmethod
    def unpack(cls, payload: memoryview) -> DeviceFeature:
        """Decode a request or a reply. Raises ProtocolError, which names the field that is wrong."""
        if len(payload) < FEATURE.size:
            raise ProtocolError(f"DEVICE_FEATURE: {len(payload)} bytes, expected at least {FEATURE.size}")
        argsz, flags = FEATURE.unpack_from(payload)
        actions = flags & ~_NUMBER
        if argsz < FEATURE.size:
            raise ProtocolError(f"DEVICE_FEATURE: argsz {argsz}, expected at least {FEATURE.size}")
        if actions & ~_ACTIONS or not actions:
            raise ProtocolError(f"DEVICE_FEATURE: flags {flags:#x}, expected GET, SET or PROBE")
        if actions == _BOTH:
            raise ProtocolError(f"DEVICE_FEATURE: flags {flags:#x}: GET and SET together are for PROBE only")
        return cls(FeatureFlags(actions), flags & _NUMBER, bytes(payload[FEATURE.size :]))


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


def unsupported(request: type[DeviceFeature | MigrationRead | MigrationData], payload: memoryview) -> NoReturn:
    """Decode a request. Raises a ProtocolError if it is malformed, else a VfioUserError (ENOTSUP)."""
    request.unpack(payload)
    raise VfioUserError(f"{request.__name__}: not supported yet", errno.ENOTSUP)
