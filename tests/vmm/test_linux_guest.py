"""What Linux finds in memory when it starts."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise

import pytest

from bellwire_vmm.errors import GuestImageError
from bellwire_vmm.linux import Linux, read_kernel
from bellwire_vmm.linux.memory_map import Kind, memory_map
from bellwire_vmm.machine.memory import GuestMemory
from vmm.kernels import LOAD, bzimage, vmlinux

MIB = 1 << 20
SIZE = 4 * MIB
ZERO_PAGE, COMMAND_LINE = 0x1_0000, 0x2_0000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(SIZE)
    yield memory
    memory.close()


def word(memory: GuestMemory, address: int, size: int = 4) -> int:
    return int.from_bytes(memory.read(address, size), "little")


def test_the_kernel_lies_where_it_asks_to_and_its_ram_disk_high(memory: GuestMemory) -> None:
    Linux(read_kernel(bzimage(b"\x90\xf4", load=2 * MIB)), initrd=b"disk").place(memory, 1)
    assert memory.read(2 * MIB + 0x200, 2) == b"\x90\xf4"
    start, size = word(memory, ZERO_PAGE + 0x218), word(memory, ZERO_PAGE + 0x21C)
    assert memory.read(start, size) == b"disk"
    assert start == SIZE - 4096


def test_the_zero_page_says_what_a_boot_loader_must_say(memory: GuestMemory) -> None:
    Linux(read_kernel(bzimage()), "quiet panic=-1").place(memory, 1)
    assert memory.read(ZERO_PAGE + 0x202, 4) == b"HdrS"
    assert word(memory, ZERO_PAGE + 0x210, 1) == 0xFF
    assert word(memory, ZERO_PAGE + 0x211, 1) & 1
    assert word(memory, ZERO_PAGE + 0x1EF, 1) == 0  # the sentinel: nobody has scribbled here
    assert memory.read(word(memory, ZERO_PAGE + 0x228), 15) == b"quiet panic=-1\0"
    assert word(memory, ZERO_PAGE + 0x21C) == 0
    assert memory.read(word(memory, ZERO_PAGE + 0x70, 8), 8) == b"RSD PTR "
    entries = word(memory, ZERO_PAGE + 0x1E8, 1)
    packed = memory.read(ZERO_PAGE + 0x2D0, 20 * entries)
    assert [tuple(entry) for entry in struct.iter_unpack("<QQI", packed)] == [tuple(e) for e in memory_map(SIZE)]


def test_the_memory_map_covers_ram_once_and_keeps_the_tables_out_of_it() -> None:
    stretches = memory_map(SIZE)
    assert all(one.address + one.size <= other.address for one, other in pairwise(stretches))
    assert stretches[-1] == (MIB, SIZE - MIB, Kind.RAM)
    (tables,) = (each for each in stretches if each.address <= 0xE_0000 < each.address + each.size)
    assert tables.kind is Kind.RESERVED


def test_pvh_finds_its_start_info_with_map_module_and_command_line(memory: GuestMemory) -> None:
    Linux(read_kernel(vmlinux(b"\x90\xf4")), "quiet", b"disk").place(memory, 1)
    fields = struct.unpack("<IIIIQQQQII", memory.read(ZERO_PAGE, 56))
    magic, version, _, modules, list_at, line, rsdp, map_at, entries, _ = fields
    assert (magic, version, modules) == (0x336E_C578, 1, 1)
    start, size, _, _ = struct.unpack("<4Q", memory.read(list_at, 32))
    assert memory.read(start, size) == b"disk"
    assert memory.read(line, 6) == b"quiet\0"
    assert memory.read(rsdp, 8) == b"RSD PTR "
    found = [entry[:3] for entry in struct.iter_unpack("<QQII", memory.read(map_at, 24 * entries))]
    assert found == [tuple(each) for each in memory_map(SIZE)]
    assert memory.read(LOAD, 2) == b"\x90\xf4"


@pytest.mark.parametrize(
    ("guest", "why"),
    [
        (Linux(read_kernel(bzimage()), "x" * 2048), "2048 bytes: expected at most 2047"),
        (Linux(read_kernel(bzimage()), "a\0b"), "and no NUL"),
        (Linux(read_kernel(bzimage(load=8 * MIB))), "need 9 MiB to begin with: the guest has 4"),
        (Linux(read_kernel(bzimage()), initrd=bytes(3 * MIB)), "need 5 MiB"),
        (Linux(read_kernel(vmlinux(size=8 * MIB))), "need 10 MiB"),
    ],
)
def test_what_does_not_fit_is_refused(memory: GuestMemory, guest: Linux, why: str) -> None:
    with pytest.raises(GuestImageError, match=why):
        guest.place(memory, 1)
