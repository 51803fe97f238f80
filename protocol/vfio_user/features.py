"""DEVICE_FEATURE: its message, and the data of the features MIGRATION and MIG_DEVICE_STATE."""

from __future__ import annotations

from typing import NamedTuple

from vfio_user.constants import DeviceState, FeatureFlags
from vfio_user.errors import ProtocolError
from vfio_user.fields import Fields

FEATURE = Fields("<II", "argsz flags")
MIGRATION = Fields("<Q", "flags")
STATE = Fields("<II", "device_state data_fd")
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


def unpack_state(data: bytes, what: str) -> DeviceState:
    """The state in the data of MIG_DEVICE_STATE; ``what`` names the message. A ProtocolError if there is no such state.

    ``data_fd`` is unused in this protocol: the data goes by message.
    """
    if len(data) < STATE.size:
        raise ProtocolError(f"{what}: {len(data)} bytes, expected {STATE.size}")
    number, _ = STATE.unpack_from(data)
    try:
        return DeviceState(number)
    except ValueError:
        raise ProtocolError(f"{what}: device_state {number}, expected 0 to {max(DeviceState)}") from None
