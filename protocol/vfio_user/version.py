"""VERSION: which protocol both sides speak, and what each can do."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

from vfio_user.constants import (
    DEFAULT_MAX_DMA_MAPS,
    DEFAULT_MAX_FDS,
    DEFAULT_MAX_TRANSFER,
    DEFAULT_PGSIZES,
)
from vfio_user.errors import ProtocolError

NUMBERS = struct.Struct("<HH")
MAJOR, MINOR = 0, 2
LARGEST_JSON = 4096
QEMU_REPLY = 214  # bytes of a whole VERSION reply, header and all: QEMU refuses a longer one
MECHANISMS = ("ioeventfd", "ioregionfd", "shadow")
MOST_FDS = 253  # the kernel's limit for one message


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one side can take. ``io_fds`` is None when it says nothing of it."""

    max_msg_fds: int = DEFAULT_MAX_FDS
    max_data_xfer_size: int = DEFAULT_MAX_TRANSFER
    max_dma_maps: int = DEFAULT_MAX_DMA_MAPS
    pgsizes: int = DEFAULT_PGSIZES
    write_multiple: bool = False
    twin_socket: bool = False
    io_fds: frozenset[str] | None = None
    unknown: frozenset[str] = field(default_factory=frozenset)

    def to_json(self, *names: str) -> dict[str, Any]:
        """The named capabilities as the wire has them."""
        values: dict[str, Any] = {}
        for name in names:
            value = getattr(self, name)
            if name == "io_fds":
                if value is not None:
                    values[name] = [word for word in MECHANISMS if word in value]
            elif name == "twin_socket":
                values[name] = {"supported": value}
            else:
                values[name] = value
        return values


def pack_version(major: int, minor: int, capabilities: dict[str, Any]) -> bytes:
    """A VERSION payload: numbers and NUL-terminated JSON."""
    text = json.dumps({"capabilities": capabilities}, separators=(",", ":"))
    return NUMBERS.pack(major, minor) + text.encode() + b"\0"


def unpack_version(payload: memoryview) -> tuple[int, int, Capabilities]:
    """Major, minor and capabilities; a ProtocolError names the field that is wrong."""
    if len(payload) < NUMBERS.size:
        raise ProtocolError(f"VERSION: {len(payload)} bytes, expected at least {NUMBERS.size}")
    major, minor = NUMBERS.unpack_from(payload)
    text = bytes(payload[NUMBERS.size :])
    if not text:
        return major, minor, Capabilities()
    if len(text) > LARGEST_JSON:
        raise ProtocolError(f"VERSION: {len(text)} bytes of JSON, at most {LARGEST_JSON}")
    if text[-1:] != b"\0":
        raise ProtocolError("VERSION: the JSON is not terminated by a NUL")
    try:
        document = json.loads(text[:-1].decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"VERSION: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ProtocolError("VERSION: the JSON is no object")
    return major, minor, _capabilities(document.get("capabilities", {}))


def _capabilities(given: Any) -> Capabilities:
    if not isinstance(given, dict):
        raise ProtocolError("VERSION: capabilities is no object")
    values: dict[str, Any] = {}
    for name, (least, most) in {
        "max_msg_fds": (0, 1 << 16),
        "max_data_xfer_size": (1, 1 << 40),
        "max_dma_maps": (0, 1 << 32),
        "pgsizes": (1, (1 << 64) - 1),
    }.items():
        if name in given:
            values[name] = _number(given[name], name, least, most)
    if "pgsizes" in values and values["pgsizes"] & 0xFFF:
        raise ProtocolError(f"VERSION: pgsizes {values['pgsizes']:#x}, expected pages of 4096 bytes or more")
    if "write_multiple" in given:
        values["write_multiple"] = _truth(given["write_multiple"], "write_multiple")
    if "twin_socket" in given:
        twin = given["twin_socket"]
        if not isinstance(twin, dict):
            raise ProtocolError("VERSION: twin_socket is no object")
        values["twin_socket"] = _truth(twin.get("supported", False), "twin_socket.supported")
    if "io_fds" in given:
        words = given["io_fds"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ProtocolError("VERSION: io_fds is no list of words")
        values["io_fds"] = frozenset(words) & frozenset(MECHANISMS)
    known = set(Capabilities.__slots__) | {"migration"}
    return Capabilities(**values, unknown=frozenset(map(str, given)) - known)


def _number(value: Any, name: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ProtocolError(f"VERSION: {name} is {value!r}, expected a number from {least} to {most}")
    return value


def _truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ProtocolError(f"VERSION: {name} is {value!r}, expected true or false")
    return value
