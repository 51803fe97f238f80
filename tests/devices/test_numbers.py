"""The numbers that a guest, a driver or the kernel knows: of PCI, of bundled devices, of system calls, and limits."""

from __future__ import annotations

from enum import IntEnum, IntFlag

import pytest

from bellwire import device, linux, pieces
from bellwire.bundled import bell, edu
from bellwire.bundled.serial import fifo, registers
from bellwire.declare import bar, block, doorbell, interrupts, layout, option, register, saved, vendor
from bellwire.model import capabilities, core, description, dma, limited, seen, signals, source, space, state
from bellwire.serve import busy_poll, loop, noted, served, worker
from bellwire.storage import aio, disk
from bellwire.stream import backends, stream

FLAGS: dict[type[IntEnum | IntFlag], list[int]] = {
    edu.Status: [0x01, 0x80],
    edu.DmaCommand: [1, 2, 4],
    registers.Enabled: [1, 2, 4, 8],
    registers.Cause: [0x06, 0x04, 0x0C, 0x02, 0x00, 0x01],
    registers.Fcr: [1, 2, 4],
    registers.Lcr: [0x40, 0x80],
    registers.Mcr: [1, 2, 4, 8, 0x10],
    registers.Lsr: [0x01, 0x02, 0x10, 0x20, 0x40, 0x12],
    registers.Msr: [0x04, 0x0F, 0x10, 0x20, 0x40, 0x80, 0xF0],
}


@pytest.mark.parametrize("kind", FLAGS)
def test_bits_have_the_places_that_drivers_know(kind: type[IntEnum | IntFlag]) -> None:
    assert [int(member) for member in kind.__members__.values()] == FLAGS[kind]


def test_what_drivers_know_of_bundled_devices() -> None:
    assert (edu.DMA_START, edu.DMA_SIZE, edu.DMA_DELAY, edu.ZERO_FROM) == (0x40000, 4096, 0.1, 34)
    assert (edu.IRQ_FACTORIAL, edu.IRQ_DMA) == (0x001, 0x100)
    assert (bell.MATCH, bell.SCRATCH) == (0x42, 256)
    assert (fifo.DEPTH, registers.TRIGGERS) == (16, (1, 4, 8, 14))
    assert {int(one): int(other) for one, other in registers.LOOPED.items()} == {1: 0x20, 2: 0x10, 4: 0x40, 8: 0x80}


def test_config_space_has_its_fields_where_pci_has_them() -> None:
    pci = capabilities
    assert (pci.CONVENTIONAL_SIZE, pci.EXPRESS_SIZE) == (256, 4096)
    assert (pci.COMMAND, pci.STATUS, pci.BAR0, pci.SUBSYSTEM) == (0x04, 0x06, 0x10, 0x2C)
    assert (pci.CAPABILITY_POINTER, pci.INTERRUPT_LINE, pci.INTERRUPT_PIN) == (0x34, 0x3C, 0x3D)
    assert (pci.IO_ENABLE, pci.MEMORY_ENABLE, pci.BUS_MASTER, pci.INTX_DISABLE) == (1, 2, 4, 0x400)
    assert (pci.STATUS_INTERRUPT, pci.STATUS_CAPABILITIES) == (8, 16)
    assert (pci.POWER_MANAGEMENT, pci.MSI, pci.VENDOR, pci.EXPRESS, pci.MSIX) == (1, 5, 9, 0x10, 0x11)
    assert (pci.FUNCTION_LEVEL_RESET, pci.NO_SOFT_RESET) == (0x8000, 8)
    assert (interrupts.ENTRY, interrupts.PBA_WORD, signals.CONTROL, signals.MASKED) == (16, 8, 12, 1)
    assert set(device._NO_VENDOR) == {0xFFFF, 0x0001}


def test_declarations_have_the_bounds_of_pci() -> None:
    assert (bar.BARS, bar.SMALLEST_MEMORY, bar.SMALLEST_IO, bar.LARGEST_IO, bar.PAGE) == (6, 16, 4, 256, 4096)
    assert (interrupts.MSIX_MOST, interrupts.MSI_MOST) == (2048, 32)
    assert (vendor.HEADER, vendor.LARGEST, layout.VENDOR_ROOM, layout.PAGE) == (3, 252, 96, 4096)
    assert (register.LARGEST, register.MOST_VALUES, block.MOST_ROWS, saved.CELL) == (8, 4096, 4096, 16)
    assert (doorbell.SIZES, space.WIDEST) == ((1, 2, 4, 8), 8)
    assert {key: 1 << shift for key, shift in option._SUFFIXES.items()} == {
        "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4,
    }  # fmt: skip
    assert option._LARGE == 1 << 20


def test_flags_of_system_calls_are_the_kernels() -> None:
    """linux/falloc.h, linux/sched.h, linux/mount.h, linux/fcntl.h and linux/limits.h."""
    assert (linux.KEEP_SIZE, linux.PUNCH_HOLE, linux.ZERO_RANGE) == (0x01, 0x02, 0x10)
    assert (linux.CLONE_NEWNS, linux.MS_SLAVE, linux.MS_REC) == (0x0002_0000, 0x8_0000, 0x4000)
    assert (state._SEALS, state._ADD_SEALS) == (0x7, 1033)
    assert pieces.MOST_PIECES == 1024
    assert disk.LARGEST == 0x7FFF_FFFF_FFFF_FFFF


def test_a_state_begins_with_its_header() -> None:
    assert (source.MAGIC, source.FORMAT, source.HEADER.size, state.TABLE_USED) == (0x5357_4C42, 1, 40, 0)
    assert (description.MOST_BYTES, description.MOST_STATE, seen.MOST_TOLD) == (16 << 20, 448 << 30, 8)


def test_what_a_guest_or_a_client_may_cause_is_bounded() -> None:
    assert (limited.BURST, limited.MOST, limited.INTERVAL, limited.KEYS) == (5, 100, 10.0, 256)
    assert (core.SLOW_HOOK, dma.LARGEST_COPY) == (0.010, 64 << 20)
    assert (loop.THREADS, loop.FEW_TIMERS, loop.LONGEST_WAIT) == (4, 256, 3600.0)
    assert (served.DRAIN, noted.MOST_COMMANDS, aio.MOST) == (8192, 4096, 256)
    assert (busy_poll.FIRST, busy_poll.MOST, worker.SWITCH_INTERVAL) == (20e-6, 1e-3, 1e-5)
    assert stream.LARGEST == 1 << 16
    assert "pty:LINK" in backends.BACKENDS
