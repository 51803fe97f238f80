"""The messages of vhost-user: a header of 12 bytes, a payload, and descriptors ("Message Specification")."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import NamedTuple

from bellwire.vhost.errors import BackendLost

HEADER = struct.Struct("<III")  # request, flags, size of the payload
VERSION = 0x1
VERSION_MASK = 0x3
REPLY = 0x4
NEED_REPLY = 0x8
LARGEST_PAYLOAD = 4096
"""Bytes of a payload that is accepted: no reply that is asked for here has more."""
LARGEST_CONFIG = 256
"""VHOST_USER_MAX_CONFIG_SIZE: the most bytes of a device's configuration in one message."""
MOST_REGIONS = 8
"""Regions of one SET_MEM_TABLE: each needs a descriptor beside the message."""
NO_FD = 1 << 8
"""In SET_VRING_KICK, _CALL and _ERR: no descriptor comes with the message."""

U64 = struct.Struct("<Q")
_STATE = struct.Struct("<II")
_ADDRESS = struct.Struct("<IIQQQQ")
_REGION = struct.Struct("<QQQQ")
_TABLE = struct.Struct("<II")
_CONFIG = struct.Struct("<III")
_INFLIGHT = struct.Struct("<QQHH")


class Request(IntEnum):
    """Requests of the front end ("Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38


class BackendRequest(IntEnum):
    """Requests of the back end, on a channel of their own ("Back-end message types")."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3


class ProtocolFeature(IntFlag):
    """What both ends know of the protocol ("Protocol features")."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15


def header(request: int, size: int, *, need_reply: bool = False, reply: bool = False) -> bytes:
    """The header of a message with ``size`` bytes of payload."""
    return HEADER.pack(request, VERSION | (NEED_REPLY if need_reply else 0) | (REPLY if reply else 0), size)


class Header(NamedTuple):
    """The header of a message that has arrived."""

    request: int
    flags: int
    size: int

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """Decode 12 bytes. Raises BackendLost if the version is wrong, or the payload too large."""
        if len(data) != HEADER.size:
            raise BackendLost(f"a header of {len(data)} bytes, expected {HEADER.size}")
        found = cls(*HEADER.unpack(data))
        if found.flags & VERSION_MASK != VERSION:
            raise BackendLost(f"{found.name}: version {found.flags & VERSION_MASK}, expected {VERSION}")
        if found.size > LARGEST_PAYLOAD:
            raise BackendLost(f"{found.name}: a payload of {found.size} bytes, at most {LARGEST_PAYLOAD} expected")
        return found

    @property
    def name(self) -> str:
        """The request, for messages."""
        return named(self.request)


def named(request: int) -> str:
    """The name of a front end's request, or its number."""
    return Request(request).name if request in set(Request) else f"request {request}"


def u64(payload: bytes, what: str) -> int:
    """The one number of 64 bits in a payload. Raises BackendLost for another length."""
    _expect(payload, U64.size, what)
    return int(U64.unpack(payload)[0])


class VringState(NamedTuple):
    """A number that belongs to a ring: its size, its base, or whether it is enabled."""

    ring: int
    number: int

    def pack(self) -> bytes:
        """The 8 bytes of the payload."""
        return _STATE.pack(*self)

    @classmethod
    def unpack(cls, payload: bytes, what: str) -> VringState:
        """Decode a payload. Raises BackendLost for another length."""
        _expect(payload, _STATE.size, what)
        return cls(*_STATE.unpack(payload))


class VringAddress(NamedTuple):
    """Where the parts of a ring lie, in user addresses of the memory table."""

    ring: int
    desc: int
    used: int
    avail: int

    def pack(self) -> bytes:
        """The 40 bytes of the payload: no flags, no log."""
        return _ADDRESS.pack(self.ring, 0, self.desc, self.used, self.avail, 0)


class MemoryRegion(NamedTuple):
    """``size`` bytes of guest memory at ``guest``, which lie at ``offset`` of a file.

    ``user`` is an address by which SET_VRING_ADDR names the same bytes.
    """

    guest: int
    size: int
    user: int
    offset: int

    def pack(self) -> bytes:
        """Its 32 bytes."""
        return _REGION.pack(*self)

    def pack_single(self) -> bytes:
        """The payload of ADD_MEM_REG and REM_MEM_REG: padding, then the region."""
        return U64.pack(0) + self.pack()


def pack_table(regions: Sequence[MemoryRegion]) -> bytes:
    """The payload of SET_MEM_TABLE, for at most MOST_REGIONS regions."""
    assert len(regions) <= MOST_REGIONS
    return _TABLE.pack(len(regions), 0) + b"".join(region.pack() for region in regions)


def pack_config(offset: int, data: bytes) -> bytes:
    """The payload of GET_CONFIG and SET_CONFIG."""
    return _CONFIG.pack(offset, len(data), 0) + data


def unpack_config(payload: bytes, size: int) -> bytes | None:
    """The first ``size`` bytes of the configuration. None if the back end has no answer: it says so by an empty one.

    Raises BackendLost for any other length.
    """
    if len(payload) in (0, _CONFIG.size):
        return None
    _expect(payload, _CONFIG.size + size, "GET_CONFIG")
    offset, found, _ = _CONFIG.unpack_from(payload)
    if (offset, found) != (0, size):
        raise BackendLost(f"GET_CONFIG: {found} bytes at {offset}, expected {size} at 0")
    return payload[_CONFIG.size :]


class Inflight(NamedTuple):
    """Memory in which a back end writes down what is in flight ("Inflight I/O tracking"): a part of a file."""

    size: int
    offset: int
    queues: int
    slots: int

    def pack(self) -> bytes:
        """The 20 bytes of the payload."""
        return _INFLIGHT.pack(*self)

    @classmethod
    def unpack(cls, payload: bytes) -> Inflight:
        """Decode the reply to GET_INFLIGHT_FD. Raises BackendLost for another length."""
        _expect(payload, _INFLIGHT.size, "GET_INFLIGHT_FD")
        return cls(*_INFLIGHT.unpack(payload))


def _expect(payload: bytes, size: int, what: str) -> None:
    if len(payload) != size:
        raise BackendLost(f"{what}: a payload of {len(payload)} bytes, expected {size}")
