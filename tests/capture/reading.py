"""Reads pcapng strictly: a block that is not as the specification has it is an AssertionError."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bellwire.capture.pcapng import BYTE_ORDER, ENHANCED_PACKET, INTERFACE_DESCRIPTION, SECTION_HEADER, UPPER_PDU


class Packet(NamedTuple):
    """A packet: what its tags say, and the bytes behind them."""

    interface: int
    time: int
    length: int
    dissector: str
    direction: int | None
    data: bytes


def blocks(content: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from("<II", content, at)
        assert size % 4 == 0
        assert size >= 12
        assert struct.unpack_from("<I", content, at + size - 4) == (size,)
        yield kind, content[at + 8 : at + size - 4]
        at += size
    assert at == len(content)


def packets(file: Path) -> list[Packet]:
    found, interfaces = [], 0
    for number, (kind, body) in enumerate(blocks(file.read_bytes())):
        if number == 0:
            assert (kind, struct.unpack_from("<IHHq", body)) == (SECTION_HEADER, (BYTE_ORDER, 1, 0, -1))
        elif kind == INTERFACE_DESCRIPTION:
            assert struct.unpack_from("<HH", body) == (UPPER_PDU, 0)
            interfaces += 1
        else:
            assert kind == ENHANCED_PACKET
            interface, high, low, kept, length = struct.unpack_from("<5I", body)
            assert interface < interfaces
            assert kept <= length
            assert len(body) == 20 + kept + -kept % 4
            found.append(_packet(interface, high << 32 | low, length, body[20 : 20 + kept]))
    return found


def _packet(interface: int, time: int, length: int, data: bytes) -> Packet:
    dissector, direction, at = "", None, 0
    while True:
        tag, size = struct.unpack_from(">HH", data, at)
        value = data[at + 4 : at + 4 + size]
        at += 4 + size
        if tag == 0:
            break
        if tag == 12:
            dissector = value.rstrip(b"\0").decode()
        elif tag == 35:
            (direction,) = struct.unpack(">I", value)
    return Packet(interface, time, length - at, dissector, direction, data[at:])
