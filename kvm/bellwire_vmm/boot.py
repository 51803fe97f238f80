"""How a guest starts: the tables it finds, and a vCPU in 64-bit long mode.

A guest is a flat image at ``IMAGE``, entered at its first byte in ring 0 with interrupts off; rdi is the
number of the vCPU and rsp a stack of its own. `MAPPED` addresses are mapped one to one, everything readable,
writable, executable and open to ring 3: these guests guard nothing. The GDT holds what a guest needs to go to
ring 3 and take interrupts there (selectors below; a TSS for each vCPU, loaded already, that opens all ports).
It brings its own IDT.

Long mode: Intel SDM vol. 3, 4.5 (paging), 3.4 and 3.5 (segments), 7.7 (the 64-bit TSS), 9.8.5 (entering it).
"""

from __future__ import annotations

import struct

from bellwire_vmm.memory import PAGE, GuestMemory
from kvm_ioctls import MpState, Regs, Segment, Sregs, Vcpu

IMAGE = 0x10_0000
ADDRESS_LIMIT = 1 << 40
"""The least guest-physical width of x86-64 hosts is 40 bits."""

HIGH_MEMORY = range(1 << 39, (1 << 39) + (4 << 30))
"""Where 64-bit BARs are put, and guests may move them."""

MAPPED = (range(4 << 30), HIGH_MEMORY)
"""What a guest can reach: in 2 MiB pages, for not every KVM offers pages of 1 GiB."""

KERNEL_CODE, KERNEL_DATA, USER_DATA, USER_CODE, FIRST_TSS = 0x08, 0x10, 0x1B, 0x23, 0x28

MAX_VCPUS = 8

_PML4, _DIRECTORIES, _GDT, _TABLES = 0x1000, (0x2000, 0x3000), 0x4000, (0x6000, 0xA000)
_TSS, _PERMITTED_PORTS, _PERMITTED_PORTS_END = 0x1_1000, 0x1_2000, 0x1_4000
_TSS_STRIDE = 128
_STACKS_END = 0x20_0000
STACK = 0x1_0000
"""Bytes of stack for each vCPU, the first one's ending at 2 MiB."""

#: The least memory that holds all of this, and an image of half a megabyte.
LEAST_MEMORY = _STACKS_END

_PRESENT, _WRITABLE, _USER, _LARGE = 1, 2, 4, 0x80
_LARGE_PAGE, _GIB = 2 << 20, 1 << 30

_CR0 = 0x8000_0033  # PG, NE, ET, MP, PE
_CR4 = 0x20  # PAE
_EFER = 0x500  # LME, LMA


def write_tables(memory: GuestMemory, vcpus: int) -> None:
    """Put the page tables, the GDT and a TSS for each vCPU where `start` says they are."""
    entries = _PRESENT | _WRITABLE | _USER
    for window, directory, first in zip(MAPPED, _DIRECTORIES, _TABLES, strict=True):
        tables = range(first, first + len(window) // _GIB * PAGE, PAGE)
        _write_words(memory, _PML4 + 8 * (window.start >> 39), [directory | entries])
        _write_words(memory, directory + 8 * (window.start // _GIB % 512), [table | entries for table in tables])
        pages = range(window.start, window.stop, _LARGE_PAGE)
        _write_words(memory, first, [page | entries | _LARGE for page in pages])

    flat = [_descriptor(_code(0)), _descriptor(_data(0)), _descriptor(_data(3)), _descriptor(_code(3))]
    systems = [word for i in range(vcpus) for word in (_descriptor(_task(i)), _task(i).base >> 32)]
    _write_words(memory, _GDT, [0, *flat, *systems])
    # All TSSs share one I/O permission bitmap: zeros, and a byte of ones that ends it (SDM vol. 1, I/O
    # protection).
    memory.write(_PERMITTED_PORTS_END, b"\xff")
    for i in range(vcpus):
        # Interrupts from ring 3 use the lower half of the vCPU's stack.
        task = _task(i).base
        memory.write(task, struct.pack("<4xQ90xH", _stack(i) - STACK // 2, _PERMITTED_PORTS - task))


def start(vcpu: Vcpu, number: int, vcpus: int) -> None:
    """Bring vCPU ``number`` of ``vcpus`` to the image's first instruction."""
    sregs = vcpu.get_sregs()
    _set_sregs(sregs, number, vcpus)
    vcpu.set_sregs(sregs)
    regs = Regs()
    regs.rip, regs.rsp, regs.rdi, regs.rflags = IMAGE, _stack(number), number, 2
    vcpu.set_regs(regs)
    vcpu.set_mp_state(MpState.RUNNABLE)


def _set_sregs(sregs: Sregs, number: int, vcpus: int) -> None:
    sregs.cs = _code(0)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, _data(0))
    sregs.tr = _task(number)
    sregs.gdt.base, sregs.gdt.limit = _GDT, 8 * (5 + 2 * vcpus) - 1
    sregs.idt.base, sregs.idt.limit = 0, 0
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = _CR0, _PML4, _CR4, _EFER


def _write_words(memory: GuestMemory, address: int, words: list[int]) -> None:
    memory.write(address, struct.pack(f"<{len(words)}Q", *words))


def _stack(number: int) -> int:
    return _STACKS_END - number * STACK


def _code(ring: int) -> Segment:
    selector = USER_CODE if ring else KERNEL_CODE
    return Segment(limit=0xFFFF_FFFF, selector=selector, type=11, present=1, dpl=ring, s=1, l=1, g=1)


def _data(ring: int) -> Segment:
    selector = USER_DATA if ring else KERNEL_DATA
    return Segment(limit=0xFFFF_FFFF, selector=selector, type=3, present=1, dpl=ring, db=1, s=1, g=1)


def _task(number: int) -> Segment:
    base, selector = _TSS + number * _TSS_STRIDE, FIRST_TSS + 16 * number
    return Segment(base=base, limit=_PERMITTED_PORTS_END - base, selector=selector, type=11, present=1)


def _descriptor(segment: Segment) -> int:
    """The descriptor that loads as ``segment`` (Intel SDM vol. 3, 3.4.5)."""
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
