"""What a core dump of a process has of a guest's memory: nothing (MADV_DONTDUMP, madvise(2))."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwire_vmm.machine.memory import GuestMemory
from vfio_user.mapping import Mapping, join


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4 * mmap.PAGESIZE)
    yield fd
    os.close(fd)


def dumped(address: int) -> bool:
    """Whether a core dump would have the page at ``address``: it would unless VmFlags say ``dd`` (proc(5))."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            begin, _, end = first.partition("-")
            here = int(begin, 16) <= address < int(end, 16)
        elif here and first == "VmFlags:":
            return "dd" not in rest.split()
    raise AssertionError(f"nothing is mapped at {address:#x}")


def test_a_dump_has_nothing_of_a_clients_memory(memory: int) -> None:
    mapping = Mapping(memory, 0, 2 * mmap.PAGESIZE, write=True)
    assert not dumped(mapping.address)


def test_a_dump_has_nothing_of_pages_that_were_joined(memory: int) -> None:
    mapping = Mapping(memory, 0, 4 * mmap.PAGESIZE, write=True)
    pieces = [(mapping.address + at * mmap.PAGESIZE, mmap.PAGESIZE) for at in (2, 0)]
    pages = join(pieces)
    address = ctypes.addressof(pages)
    assert not dumped(address)
    assert not dumped(address + mmap.PAGESIZE)


def test_a_dump_of_the_vmm_has_nothing_of_the_guests_ram() -> None:
    memory = GuestMemory(1 << 20)
    try:
        assert not dumped(memory.host_address)
    finally:
        memory.close()
