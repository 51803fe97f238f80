"""Physical Region Pages: the addresses of a command's data in guest memory (§4.3)."""

from __future__ import annotations

import struct
from collections.abc import Callable

from bellwire.bundled.nvme.command import Byte
from bellwire.bundled.nvme.status import CommandError, Status

PAGE_SHIFT = 12
PAGE = 1 << PAGE_SHIFT
ENTRY = 8

Extent = tuple[int, int]
"""The address and the size in bytes of a range of guest memory."""


def extents(prp1: int, prp2: int, length: int, read: Callable[[int, int], bytes]) -> list[Extent]:
    """The stretches that ``length`` bytes lie in, in order, neighbours joined.

    PRP1 may start within a page; PRP2 is the second page, or where there are more, the list of them. ``read(address,
    size)`` fetches guest memory. ``length`` bounds the walk: a list page is read once, and only as far as it counts.
    """
    if prp1 & 3:
        raise CommandError(Status.INVALID_PRP_OFFSET, Byte.PRP1)
    first = PAGE - prp1 % PAGE
    if length <= first:
        return [(prp1, length)]
    rest = length - first
    if rest <= PAGE:
        if prp2 % PAGE:
            raise CommandError(Status.INVALID_PRP_OFFSET, Byte.PRP2)
        return [(prp1, length)] if prp2 == prp1 + first else [(prp1, first), (prp2, rest)]
    return _joined(prp1, first, _listed(prp2, -(-rest // PAGE), read), rest)


def _listed(address: int, count: int, read: Callable[[int, int], bytes]) -> list[int]:
    """``count`` pages from the list at ``address``; the last entry of a full list page leads to the next one."""
    pages: list[int] = []
    if address & 7:
        raise CommandError(Status.INVALID_PRP_OFFSET, Byte.PRP2)
    while True:
        room = (PAGE - address % PAGE) // ENTRY
        left = count - len(pages)
        size = min(room, left)
        entries = struct.unpack(f"<{size}Q", read(address, size * ENTRY))
        if left <= room:
            pages += entries
            break
        pages += entries[:-1]
        address = entries[-1]
        if address % PAGE:
            raise CommandError(Status.INVALID_PRP_OFFSET, Byte.PRP2)
    return pages


def _joined(prp1: int, first: int, pages: list[int], rest: int) -> list[Extent]:
    if pages == list(range(prp1 + first, prp1 + first + len(pages) * PAGE, PAGE)):
        return [(prp1, first + rest)]
    found: list[Extent] = []
    start, size = prp1, first
    for page in pages:
        if page % PAGE:
            raise CommandError(Status.INVALID_PRP_OFFSET, Byte.PRP2)
        portion = min(PAGE, rest)
        rest -= portion
        if page == start + size:
            size += portion
        else:
            found.append((start, size))
            start, size = page, portion
    found.append((start, size))
    return found
