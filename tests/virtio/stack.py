"""As much of a guest's network stack as answers a ping: ARP, ICMP echo, UDP."""

from __future__ import annotations

import struct

ARP, IPV4 = 0x0806, 0x0800
ICMP, UDP = 1, 17


def checksum(data: bytes) -> int:
    """Of the Internet (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ethernet(to: bytes, source: bytes, kind: int, payload: bytes) -> bytes:
    return (to + source + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def ipv4(source: bytes, to: bytes, protocol: int, payload: bytes) -> bytes:
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0, source, to)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def udp(source: bytes, to: bytes, port: int, payload: bytes, *, partial: bool = False) -> bytes:
    """A datagram; ``partial``: with the pseudo header's sum only, for somebody else to finish."""
    header = struct.pack("!HHHH", port, port, 8 + len(payload), 0)
    pseudo = source + to + struct.pack("!HH", UDP, 8 + len(payload))
    found = checksum(pseudo) ^ 0xFFFF if partial else checksum(pseudo + header + payload)
    return header[:6] + struct.pack("!H", found) + payload


class Stack:
    """A host with an address of each kind."""

    def __init__(self, mac: bytes, address: bytes) -> None:
        self.mac = mac
        self.address = address

    def answer(self, frame: bytes) -> bytes | None:
        """The reply to an ARP request or an echo request for us."""
        (kind,) = struct.unpack_from("!H", frame, 12)
        peer = frame[6:12]
        if kind == ARP and frame[38:42] == self.address and frame[20:22] == b"\0\1":
            body = frame[14:20] + b"\0\2" + self.mac + self.address + frame[22:32]
            return ethernet(peer, self.mac, ARP, body)
        if kind == IPV4 and frame[23] == ICMP and frame[34] == 8 and frame[30:34] == self.address:
            length = struct.unpack_from("!H", frame, 16)[0]
            echo = b"\0\0\0\0" + frame[38 : 14 + length]
            echo = echo[:2] + struct.pack("!H", checksum(echo)) + echo[4:]
            return ethernet(peer, self.mac, IPV4, ipv4(self.address, frame[26:30], ICMP, echo))
        return None
