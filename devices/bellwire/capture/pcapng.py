"""pcapng: the blocks of a capture file that Wireshark reads (draft-ietf-opsawg-pcapng).

All numbers of a file have the byte order of its section header; here that is little-endian. The packets are of
LINKTYPE_WIRESHARK_UPPER_PDU: each begins with the name of the dissector that is to take it apart, so that Wireshark
needs no setting (wsutil/exported_pdu_tlvs.h in Wireshark's source).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

UPPER_PDU = 252
SECTION_HEADER, INTERFACE_DESCRIPTION, ENHANCED_PACKET = 0x0A0D0D0A, 1, 6
BYTE_ORDER = 0x1A2B3C4D
COMMENT, IF_NAME, IF_DESCRIPTION, IF_TSRESOL = 1, 2, 3, 9
SHB_USERAPPL = 4
NANOSECONDS = bytes([9])
"""The resolution of time stamps: 10 ** -9 s."""
DISSECTOR_NAME, DIRECTION = 12, 35
SENT, RECEIVED = 0, 1
"""The directions of a packet, as its capturer sees it (Wireshark's P2P_DIR_SENT and P2P_DIR_RECV)."""
_BLOCK = struct.Struct("<II")
_PACKET = struct.Struct("<IIIIIII")
_LENGTH = struct.Struct("<I")


def block(kind: int, body: bytes) -> bytes:
    """A block: its body is padded to 32 bits, and its length stands before and behind it."""
    size = 12 + len(body) + -len(body) % 4
    return b"".join((_BLOCK.pack(kind, size), body, bytes(-len(body) % 4), _LENGTH.pack(size)))


def options(found: Iterable[tuple[int, bytes]]) -> bytes:
    """Options of a block, each with its code, and their end."""
    parts = [struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4) for code, value in found]
    return b"".join((*parts, bytes(4)))


def section_header(application: str, comment: str) -> bytes:
    """The first block of a file: version 1.0, of unknown length."""
    body = struct.pack("<IHHq", BYTE_ORDER, 1, 0, -1)
    return block(SECTION_HEADER, body + options([(SHB_USERAPPL, application.encode()), (COMMENT, comment.encode())]))


def interface_description(name: str, description: str, snap: int) -> bytes:
    """The next interface of a file. ``snap`` is the most bytes that are kept of a packet."""
    found = [(IF_NAME, name.encode()), (IF_DESCRIPTION, description.encode()), (IF_TSRESOL, NANOSECONDS)]
    return block(INTERFACE_DESCRIPTION, struct.pack("<HHI", UPPER_PDU, 0, snap) + options(found))


def tags(dissector: str, direction: int | None = None) -> bytes:
    """What stands before the bytes of a packet: who takes it apart and, for a message, which way it went."""
    name = dissector.encode()
    found = struct.pack(">HH", DISSECTOR_NAME, len(name) + -len(name) % 4) + name + bytes(-len(name) % 4)
    if direction is not None:
        found += struct.pack(">HHI", DIRECTION, 4, direction)
    return found + bytes(4)


def packet(
    interface: int, nanoseconds: int, tagged: bytes, pieces: Sequence[bytes | bytearray | memoryview], snap: int
) -> bytes:
    """A packet of ``interface``: ``tagged`` whole, and at most ``snap`` bytes of the pieces behind it.

    ``nanoseconds`` count from 1970 (time.time_ns()).
    """
    whole = sum(map(len, pieces))
    kept = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if whole > snap:
        kept = kept[:snap]
    length = len(tagged) + len(kept)
    size = 32 + length + -length % 4
    high, low = nanoseconds >> 32, nanoseconds & 0xFFFFFFFF
    head = _PACKET.pack(ENHANCED_PACKET, size, interface, high, low, length, len(tagged) + whole)
    return b"".join((head, tagged, kept, bytes(-length % 4), _LENGTH.pack(size)))
