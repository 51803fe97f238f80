"""Guests of a few instructions, written by the tests that run them: 64-bit code for `Machine.load`.

A program's results lie one after the other, eight bytes each, where the micro guests leave theirs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.guests.layout import RESULTS
from bellwire_vmm.vmm import Machine, RunResult

LAPIC, IOAPIC = 0xFEE0_0000, 0xFEC0_0000
VECTOR, VECTORS = 0x40, 8
COUNTS = 0x3_0000
"""Where interrupts are counted: eight bytes for each of the VECTORS from VECTOR on."""

_HANDLERS, _HANDLER_SIZE = 0x3_1000, 64
_TABLE, _TABLE_POINTER = 0x1_8000, 0x1_9000

_STORES = {1: b"\x88\x02", 2: b"\x66\x89\x02", 4: b"\x89\x02", 8: b"\x48\x89\x02"}
_LOADS = {1: b"\x8a\x02", 2: b"\x66\x8b\x02", 4: b"\x8b\x02", 8: b"\x48\x8b\x02"}
_OUTS = {1: b"\xee", 2: b"\x66\xef", 4: b"\xef"}
_INS = {1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}
_CLEAR_RAX, _STI, _HLT, _CLI, _PAUSE = b"\x31\xc0", b"\xfb", b"\xf4", b"\xfa", b"\xf3\x90"


def _rax(value: int) -> bytes:
    return b"\x48\xb8" + struct.pack("<Q", value)


def _rdx(value: int) -> bytes:
    return b"\x48\xba" + struct.pack("<Q", value)


class Program:
    """Grows by one step a call. Interrupts are off but in `wait` and `breathe`."""

    def __init__(self) -> None:
        self.code = b""
        self.results = 0

    def store(self, address: int, value: int, size: int = 4, times: int = 1) -> Self:
        """Write memory, ``times`` times over."""
        return self._add(_rdx(address) + _rax(value) + _repeated(_STORES[size], times))

    def load(self, address: int, size: int = 4) -> Self:
        """Read memory; the next result."""
        return self._result(_rdx(address) + _CLEAR_RAX + _LOADS[size])

    def out(self, port: int, value: int, size: int = 4, times: int = 1) -> Self:
        """Write an I/O port."""
        return self._add(_rdx(port) + _rax(value) + _repeated(_OUTS[size], times))

    def in_(self, port: int, size: int = 4) -> Self:
        """Read an I/O port; the next result."""
        return self._result(_rdx(port) + _CLEAR_RAX + _INS[size])

    def config(self, slot: int, offset: int, value: int, size: int = 4) -> Self:
        """Write config space."""
        return self.out(0xCF8, 1 << 31 | slot << 11 | offset & ~3).out(0xCFC + (offset & 3), value, size)

    def read_config(self, slot: int, offset: int, size: int = 4) -> Self:
        """Read config space; the next result."""
        return self.out(0xCF8, 1 << 31 | slot << 11 | offset & ~3).in_(0xCFC + (offset & 3), size)

    def mark(self, value: int) -> Self:
        """Have the VMM note its counts."""
        return self.out(0xF5, value)

    def interrupts(self) -> Self:
        """Take interrupts, from now on: the local APIC on, the table set."""
        return self.store(LAPIC + 0xF0, 0x1FF)._add(_rdx(_TABLE_POINTER) + b"\x0f\x01\x1a")

    def route(self, gsi: int, vector: int = VECTOR) -> Self:
        """A pin of the IOAPIC, level-triggered, to a vector."""
        for register, value in ((0x10 + 2 * gsi + 1, 0), (0x10 + 2 * gsi, 1 << 15 | vector)):
            self.store(IOAPIC, register).store(IOAPIC + 0x10, value)
        return self

    def wait(self, vector: int = VECTOR, times: int = 1) -> Self:
        """Halt until a vector's interrupts have come so often since the start."""
        at_least = bytes((0x48, 0x83, 0x3A, times))  # cmp qword [rdx], times
        return self._add(_rdx(COUNTS + 8 * (vector - VECTOR)) + at_least + b"\x73\x05\xfb\xf4\xfa\xeb\xf5")

    def breathe(self) -> Self:
        """Let interrupts in that are pending already."""
        return self._add(_STI + _PAUSE * 4 + _CLI)

    def count(self, vector: int = VECTOR) -> Self:
        """How often a vector's interrupt has come; the next result."""
        return self.breathe().load(COUNTS + 8 * (vector - VECTOR), 8)

    def leave(self, code: int = 0) -> Self:
        """End the run."""
        return self.out(0xF4, code)

    def spin(self) -> Self:
        """Stay here for ever."""
        return self._add(b"\xeb\xfe")

    def raw(self, code: bytes) -> Self:
        """Instructions of your own."""
        return self._add(code)

    def _add(self, code: bytes) -> Self:
        self.code += code
        return self

    def _result(self, code: bytes) -> Self:
        self._add(code + _rdx(RESULTS + 8 * self.results) + _STORES[8])
        self.results += 1
        return self


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended, and what it read."""

    run: RunResult
    values: tuple[int, ...]

    def exits(self, begin: int, end: int) -> tuple[int, int]:
        """Between two marks: the returns of KVM_RUN, and the exits for memory as the kernel counted them.

        Its count for ports would say nothing: a software-virtualised KVM leaves out those of ring 0.
        """
        first, last = (next(mark for mark in self.run.marks if mark.value == value) for value in (begin, end))
        return last.runs - first.runs - 1, last.mmio_exits - first.mmio_exits


def execute(machine: Machine, program: Program, folder: Path, timeout: float = 20.0) -> Outcome:
    """Load a program, run it until it leaves (which is added where it does not), and fetch its results."""
    image = folder / "program.bin"
    image.write_bytes(program.code + Program().leave().code)
    machine.load(image)
    _install_handlers(machine)
    run = machine.run(timeout)
    return Outcome(run, struct.unpack(f"<{program.results}Q", machine.memory.read(RESULTS, 8 * program.results)))


def bar(device: ProxyDevice, index: int) -> int:
    """Where a BAR has been put."""
    low = int.from_bytes(device.config_read(0x10 + 4 * index, 4), "little")
    if low & 1:
        return low & ~3
    high = int.from_bytes(device.config_read(0x14 + 4 * index, 4), "little") if low & 6 == 4 else 0
    return high << 32 | low & ~15


def _repeated(store: bytes, times: int) -> bytes:
    if times == 1:
        return store
    loop = store + b"\xff\xc9"  # dec ecx
    return b"\xb9" + struct.pack("<I", times) + loop + bytes((0x75, 256 - len(loop) - 2))


def _install_handlers(machine: Machine) -> None:
    for number in range(VECTORS):
        at = _HANDLERS + number * _HANDLER_SIZE
        count = _rdx(COUNTS + 8 * number) + b"\x48\xff\x02"
        end = _rdx(LAPIC + 0xB0) + _CLEAR_RAX + _STORES[4]
        machine.memory.write(at, b"\x50\x52" + count + end + b"\x5a\x58\x48\xcf")
        gate = struct.pack("<HHBBHII", at & 0xFFFF, 8, 0, 0x8E, at >> 16, 0, 0)
        machine.memory.write(_TABLE + 16 * (VECTOR + number), gate)
    machine.memory.write(_TABLE_POINTER, struct.pack("<HQ", 16 * (VECTOR + VECTORS) - 1, _TABLE))
