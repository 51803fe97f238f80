"""A guest of a few bytes in real mode: just enough machine to make a vCPU do one thing.

Memory is at address 0, the code at CODE with CS = 0. The other segments have bases of their own, which real
mode keeps until a guest reloads them: DS points at MMIO, where there is no memory, ES at address 0, FS at the
local APIC and GS at the IOAPIC.
"""

from __future__ import annotations

import ctypes
import mmap
from types import TracebackType
from typing import Self

from kvm_ioctls import Exit, Kvm, MmioWrite, Regs, Vcpu, Vm

CODE = 0x1000
MEMORY = 0x10000
MMIO = 0xD000_0000
LAPIC = 0xFEE0_0000
IOAPIC = 0xFEC0_0000

HLT = b"\xf4"
STI = b"\xfb"
IRET = b"\xcf"
SPIN = b"\xeb\xfe"  # jmp to itself
HALT_FOR_EVER = b"\xf4\xeb\xfd"  # hlt; jmp back to it
UD2 = b"\x0f\x0b"
RDMSR = b"\x0f\x32"
WRMSR = b"\x0f\x30"

_FS, _GS = b"\x64", b"\x65"


def eax(value: int) -> bytes:
    """mov eax, value"""
    return b"\x66\xb8" + value.to_bytes(4, "little")


def ecx(value: int) -> bytes:
    """mov ecx, value"""
    return b"\x66\xb9" + value.to_bytes(4, "little")


def _store_eax(offset: int, size: int, segment: bytes = b"") -> bytes:
    opcode = {1: b"\xa2", 2: b"\xa3", 4: b"\x66\xa3"}[size]
    return segment + opcode + offset.to_bytes(2, "little")


def store(offset: int, value: int, size: int = 4) -> bytes:
    """Write `value` at MMIO + offset."""
    return eax(value) + _store_eax(offset, size)


def load(offset: int, size: int = 4) -> bytes:
    """Read MMIO + offset to AL, AX or EAX."""
    opcode = {1: b"\xa0", 2: b"\xa1", 4: b"\x66\xa1"}[size]
    return opcode + offset.to_bytes(2, "little")


def out(port: int, value: int, size: int = 1) -> bytes:
    """Write `value` to an I/O port below 0x100."""
    opcode = {1: b"\xe6", 2: b"\xe7", 4: b"\x66\xe7"}[size]
    return eax(value) + opcode + bytes([port])


def in_(port: int, size: int = 1) -> bytes:
    """Read an I/O port below 0x100 to AL, AX or EAX."""
    return {1: b"\xe4", 2: b"\xe5", 4: b"\x66\xe5"}[size] + bytes([port])


def end_of_interrupt() -> bytes:
    """Tell the local APIC."""
    return eax(0) + _store_eax(0xB0, 4, _FS)


def ioapic_route(pin: int, vector: int, level: bool = False) -> bytes:
    """Let a pin of the IOAPIC raise `vector` on CPU 0."""
    low = vector | level << 15
    registers = ((0x10 + 2 * pin + 1, 0), (0x10 + 2 * pin, low))
    return b"".join(
        eax(index) + _store_eax(0x00, 4, _GS) + eax(value) + _store_eax(0x10, 4, _GS) for index, value in registers
    )


class Guest:
    """A VM with one vCPU and 64 KiB of memory, about to run `code`."""

    def __init__(self, kvm: Kvm, code: bytes, *, irqchip: bool = False, split_irqchip: bool = False):
        self.memory = mmap.mmap(-1, MEMORY)
        self._pin = ctypes.c_char.from_buffer(self.memory)
        self.vm: Vm = kvm.create_vm()
        self.vm.set_user_memory_region(0, 0, MEMORY, ctypes.addressof(self._pin))
        if split_irqchip:
            self.vm.enable_cap(121, 24)
        if irqchip:
            self.vm.create_irqchip()
        self.vcpu: Vcpu = self.vm.create_vcpu(0)
        self.vcpu.set_cpuid2(kvm.supported_cpuid())
        if irqchip or split_irqchip:
            self.enable_lapic()
        self.start(code)

    def start(self, code: bytes) -> None:
        """Begin anew with `code`, at CODE."""
        self.memory[CODE : CODE + len(code)] = code
        sregs = self.vcpu.get_sregs()
        bases = {"cs": 0, "ds": MMIO, "es": 0, "ss": 0, "fs": LAPIC, "gs": IOAPIC}
        for name, base in bases.items():
            segment = getattr(sregs, name)
            segment.base, segment.selector = base, 0
        self.vcpu.set_sregs(sregs)
        self.vcpu.set_regs(Regs(rip=CODE, rflags=2, rsp=0x8000))

    def on_vector(self, vector: int, code: bytes, at: int = 0x3000) -> None:
        """Install an interrupt handler."""
        self.memory[at : at + len(code)] = code
        self.memory[4 * vector : 4 * vector + 4] = at.to_bytes(4, "little")

    def enable_lapic(self) -> None:
        """Switch the local APIC on, and its LINT0 off, so that no PIC gets through."""
        lapic = self.vcpu.get_lapic()
        lapic.write(0xF0, 0x1FF)
        lapic.write(0x350, 0x10000)
        self.vcpu.set_lapic(lapic)

    def run(self) -> Exit:
        return self.vcpu.run()

    def mmio_writes(self) -> list[MmioWrite]:
        """Run to the next exit that is no MMIO write, and return those that came before."""
        writes = []
        while isinstance(found := self.run(), MmioWrite):
            writes.append(found)
        return writes

    def close(self) -> None:
        self.vcpu.close()
        self.vm.close()
        del self._pin
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
