"""The two ways into a Linux kernel: 64-bit mode with a zero page, and PVH with its start info.

The first: Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol", and zero-page.rst. The second: Xen,
docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bellwire_vmm.linux import memory_map
from bellwire_vmm.linux.bzimage import HEADER, BzImage
from bellwire_vmm.linux.elf import Vmlinux
from bellwire_vmm.machine.boot import CR0_LONG, CR4_LONG, EFER_LONG
from bellwire_vmm.machine.memory import GuestMemory
from bellwire_vmm.machine.paging import ROOT, write_page_tables, write_words
from bellwire_vmm.machine.segments import code, data, descriptor, task
from kvm_ioctls import Regs, Segment, Sregs

GDT, INFO, COMMAND_LINE, MODULES, MAP = 0x500, 0x1_0000, 0x2_0000, 0x1_2000, 0x1_3000
LONGEST_COMMAND_LINE = 0xFFFF
_CODE, _DATA, _TASK = 0x10, 0x18, 0x20
_PROTECTED = 0x11  # CR0: ET, PE


@dataclass(frozen=True, slots=True)
class Tables:
    """What a kernel is told: where the initial RAM disk is (empty for none), and the address of ACPI's root pointer."""

    initrd: range
    rsdp: int


def write_zero_page(memory: GuestMemory, kernel: BzImage, tables: Tables) -> None:
    """Write `struct boot_params`, and the page tables and GDT of the 64-bit entry."""
    page = bytearray(0x1000)
    page[HEADER : HEADER + len(kernel.header)] = kernel.header
    page[0x210] = 0xFF  # type_of_loader: none that is known
    page[0x211] |= 1  # loadflags: loaded high
    struct.pack_into("<Q", page, 0x70, tables.rsdp)
    struct.pack_into("<II", page, 0x218, tables.initrd.start, len(tables.initrd))
    struct.pack_into("<I", page, 0x228, COMMAND_LINE)
    stretches = memory_map.memory_map(memory.size)
    page[0x1E8] = len(stretches)
    packed = memory_map.pack(stretches)
    page[0x2D0 : 0x2D0 + len(packed)] = packed
    memory.write(INFO, page)
    write_page_tables(memory)
    _write_gdt(memory, code(_CODE), data(_DATA))


def write_start_info(memory: GuestMemory, tables: Tables) -> None:
    """Write `struct hvm_start_info`, its list of modules and its memory map, and a GDT."""
    stretches = memory_map.memory_map(memory.size)
    modules = 1 if tables.initrd else 0
    memory.write(MODULES, struct.pack("<QQQQ", tables.initrd.start, len(tables.initrd), 0, 0))
    memory.write(MAP, memory_map.pack(stretches, pad=4))
    words = (0x336E_C578, 1, 0, modules, MODULES, COMMAND_LINE, tables.rsdp, MAP, len(stretches), 0)
    memory.write(INFO, struct.pack("<IIIIQQQQII", *words))
    _write_gdt(memory, code(_CODE, bits=32), data(_DATA), _pvh_task())


def enter_64(sregs: Sregs, kernel: BzImage) -> Regs:
    """Set ``sregs`` to long mode, and return the general registers, with rsi at the zero page."""
    _flat(sregs, code(_CODE))
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = CR0_LONG, ROOT, CR4_LONG, EFER_LONG
    regs = Regs()
    regs.rip, regs.rsi, regs.rflags = kernel.entry, INFO, 2
    return regs


def enter_pvh(sregs: Sregs, kernel: Vmlinux) -> Regs:
    """Set ``sregs`` to protected mode without paging, and return the general registers, with ebx at the start info."""
    _flat(sregs, code(_CODE, bits=32))
    sregs.tr = _pvh_task()
    sregs.cr0, sregs.cr4, sregs.efer = _PROTECTED, 0, 0
    regs = Regs()
    regs.rip, regs.rbx, regs.rflags = kernel.entry, INFO, 2
    return regs


def _flat(sregs: Sregs, execute: Segment) -> None:
    sregs.cs = execute
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, data(_DATA))
    sregs.gdt.base, sregs.gdt.limit = GDT, _TASK + 7
    sregs.idt.base, sregs.idt.limit = 0, 0


def _write_gdt(memory: GuestMemory, *segments: Segment) -> None:
    write_words(memory, GDT, [0, 0, *map(descriptor, segments)])


def _pvh_task() -> Segment:
    return task(_TASK, 0, 0x67)
