"""Frames, and the addresses in them."""

from __future__ import annotations

from collections.abc import Callable

from virtio.card import Card

OURS = bytes.fromhex("525400123456")
THEIRS = bytes.fromhex("020000000001")
MANY = bytes.fromhex("01005e000001")
EVERYBODY = b"\xff" * 6
Make = Callable[..., Card]


def frame(to: bytes = OURS, size: int = 60, fill: int = 0) -> bytes:
    return (to + THEIRS + b"\x88\xb5").ljust(size, bytes([fill]))


def tagged(vlan: int) -> bytes:
    return (OURS + THEIRS + b"\x81\x00" + vlan.to_bytes(2, "big") + b"\x88\xb5").ljust(60, b"\0")
