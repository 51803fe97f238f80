"""How a micro guest starts: the tables it finds, and a vCPU in 64-bit long mode.

A guest is a flat image at ``IMAGE``, entered at its first byte in ring 0 with interrupts off; rdi is the
number of the vCPU and rsp a stack of its own. The addresses `paging.MAPPED` are mapped one to one, without any
protection. The GDT holds what a guest needs to go to ring 3 and take interrupts there (selectors below; a TSS for each
vCPU, loaded already, that opens all ports). It brings its own IDT.

Long mode: Intel SDM vol. 3, 7.7 (the 64-bit TSS), 9.8.5 (entering it).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

from bellwire_vmm.errors import GuestImageError
from bellwire_vmm.guests.layout import PARAMETERS, PARAMETERS_SIZE
from bellwire_vmm.machine.memory import GuestMemory
from bellwire_vmm.machine.paging import ROOT, write_page_tables, write_words
from bellwire_vmm.machine.segments import code, data, descriptor, task
from kvm_ioctls import MpState, Regs, Segment, Sregs, Vcpu

IMAGE = 0x10_0000
KERNEL_CODE, KERNEL_DATA, USER_DATA, USER_CODE, FIRST_TSS = 0x08, 0x10, 0x1B, 0x23, 0x28

_GDT = 0x4000
_TSS, _PERMITTED_PORTS, _PERMITTED_PORTS_END = 0x1_1000, 0x1_2000, 0x1_4000
_TSS_STRIDE = 128
_STACKS_END = 0x20_0000
STACK = 0x1_0000
"""Bytes of stack for each vCPU, the first one's ending at 2 MiB."""

#: The least memory that holds all of this, and an image of half a megabyte.
LEAST_MEMORY = _STACKS_END

CR0_LONG = 0x8000_0033  # PG, NE, ET, MP, PE
CR4_LONG = 0x20  # PAE
EFER_LONG = 0x500  # LME, LMA


class Guest(Protocol):
    """A guest: what is in memory when it starts, and the state in which its vCPUs start."""

    def place(self, memory: GuestMemory, vcpus: int) -> None:
        """Write the guest and its tables into zeroed memory. Raises GuestImageError if it does not fit."""

    def start(self, vcpu: Vcpu, number: int, vcpus: int) -> None:
        """Set vCPU ``number`` of ``vcpus`` to its first instruction. The vCPU is in its state after a reset."""


@dataclass(frozen=True, slots=True)
class MicroGuest:
    """A micro guest: a flat image, and the content of its parameter page."""

    image: bytes
    parameters: bytes = b""

    def place(self, memory: GuestMemory, vcpus: int) -> None:
        """Write the image, the parameters, the page tables, the GDT, and a TSS for each vCPU."""
        if IMAGE + len(self.image) > LEAST_MEMORY - STACK * vcpus:
            raise GuestImageError(f"the guest image has {len(self.image)} bytes: it would reach into the stacks")
        if len(self.parameters) > PARAMETERS_SIZE:
            raise GuestImageError(f"{len(self.parameters)} bytes of parameters: the page holds {PARAMETERS_SIZE}")
        memory.write(PARAMETERS, self.parameters)
        memory.write(IMAGE, self.image)
        write_page_tables(memory)
        flat = [code(KERNEL_CODE), data(KERNEL_DATA), data(USER_DATA, ring=3), code(USER_CODE, ring=3)]
        systems = [word for i in range(vcpus) for word in (descriptor(_task(i)), _task(i).base >> 32)]
        write_words(memory, _GDT, [0, *(descriptor(segment) for segment in flat), *systems])
        # All TSSs share one I/O permission bitmap: zeros, and a byte of ones that ends it (SDM vol. 1, I/O
        # protection).
        memory.write(_PERMITTED_PORTS_END, b"\xff")
        for i in range(vcpus):
            # Interrupts from ring 3 use the lower half of the vCPU's stack.
            at = _task(i).base
            memory.write(at, struct.pack("<4xQ90xH", _stack(i) - STACK // 2, _PERMITTED_PORTS - at))

    def start(self, vcpu: Vcpu, number: int, vcpus: int) -> None:
        """Set the vCPU to long mode, at the image's first byte. All vCPUs start there."""
        sregs = vcpu.get_sregs()
        _set_sregs(sregs, number, vcpus)
        vcpu.set_sregs(sregs)
        regs = Regs()
        regs.rip, regs.rsp, regs.rdi, regs.rflags = IMAGE, _stack(number), number, 2
        vcpu.set_regs(regs)
        vcpu.set_mp_state(MpState.RUNNABLE)


def _set_sregs(sregs: Sregs, number: int, vcpus: int) -> None:
    sregs.cs = code(KERNEL_CODE)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, data(KERNEL_DATA))
    sregs.tr = _task(number)
    sregs.gdt.base, sregs.gdt.limit = _GDT, 8 * (5 + 2 * vcpus) - 1
    sregs.idt.base, sregs.idt.limit = 0, 0
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = CR0_LONG, ROOT, CR4_LONG, EFER_LONG


def _stack(number: int) -> int:
    return _STACKS_END - number * STACK


def _task(number: int) -> Segment:
    base = _TSS + number * _TSS_STRIDE
    return task(FIRST_TSS + 16 * number, base, _PERMITTED_PORTS_END - base)
