from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator

import pytest

from kvm_ioctls import Hlt, MemoryFlags, MmioRead, MmioWrite
from realmode import HLT, MMIO, Guest, load, store

pytestmark = pytest.mark.kvm

Boot = Callable[..., Guest]


@pytest.fixture
def page() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, 4096) as page:
        yield page


def address_of(page: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(page))


def test_a_memory_slot_ends_the_exits(boot: Boot, page: mmap.mmap) -> None:
    guest = boot(store(0x10, 0x55) + HLT)
    guest.vm.set_user_memory_region(1, MMIO, 4096, address_of(page))
    assert guest.run() == Hlt()
    assert page[0x10:0x14] == b"\x55\0\0\0"


def test_a_deleted_slot_exits_again(boot: Boot, page: mmap.mmap) -> None:
    guest = boot(store(0x10, 0x55) + HLT)
    guest.vm.set_user_memory_region(1, MMIO, 4096, address_of(page))
    guest.vm.delete_memory_region(1)
    assert guest.run() == MmioWrite(MMIO + 0x10, b"\x55\0\0\0")


def test_a_slot_can_be_moved(boot: Boot, page: mmap.mmap) -> None:
    guest = boot(load(0x10) + store(0x10, 0x66) + HLT)
    guest.vm.set_user_memory_region(1, MMIO + 0x1000, 4096, address_of(page))
    assert isinstance(guest.run(), MmioRead)
    guest.vm.set_user_memory_region(1, MMIO, 4096, address_of(page))
    assert guest.run() == Hlt()
    assert page[0x10] == 0x66


def test_a_read_only_slot_reads_and_exits_on_writes(boot: Boot, page: mmap.mmap) -> None:
    page[0x10:0x14] = b"bell"
    guest = boot(load(0x10) + store(0x14, 1) + HLT)
    guest.vm.set_user_memory_region(1, MMIO, 4096, address_of(page), MemoryFlags.READONLY)
    assert guest.run() == MmioWrite(MMIO + 0x14, b"\1\0\0\0")
    assert guest.run() == Hlt()
    assert page[0x14] == 0
