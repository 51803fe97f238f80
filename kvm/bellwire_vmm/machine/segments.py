"""Segment registers of flat memory, and the descriptors that would load as them (Intel SDM vol. 3, 3.4)."""

from __future__ import annotations

from kvm_ioctls import Segment

_WHOLE = 0xFFFF_FFFF
_READ_WRITE, _EXECUTE_READ, _BUSY_TASK = 3, 11, 11


def code(selector: int, *, ring: int = 0, bits: int = 64) -> Segment:
    """A code segment over all memory, for ``bits``-bit code."""
    long = int(bits == 64)
    return Segment(
        limit=_WHOLE, selector=selector, type=_EXECUTE_READ, present=1, dpl=ring, s=1, l=long, db=1 - long, g=1
    )


def data(selector: int, *, ring: int = 0) -> Segment:
    """A data segment over all memory, writable."""
    return Segment(limit=_WHOLE, selector=selector, type=_READ_WRITE, present=1, dpl=ring, db=1, s=1, g=1)


def task(selector: int, base: int, limit: int) -> Segment:
    """A task state segment at ``base``."""
    return Segment(base=base, limit=limit, selector=selector, type=_BUSY_TASK, present=1)


def descriptor(segment: Segment) -> int:
    """The GDT descriptor of ``segment``; for a system segment, its lower half."""
    limit = segment.limit >> 12 if segment.g else segment.limit
    access = segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
    flags = segment.l << 1 | segment.db << 2 | segment.g << 3
    base = segment.base
    return (
        limit & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | access << 40
        | (limit >> 16 & 0xF) << 48
        | flags << 52
        | (base >> 24 & 0xFF) << 56
    )
