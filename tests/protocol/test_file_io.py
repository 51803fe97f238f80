"""DMA_MAP with the flag BY_FILE_IO: the server reads and writes the client's file, and does not map it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.backend import FakeDevice, Link, fd_count, served
from protocol.guest import BOTH, PAGE, TOP, add, mapping, maps, remove, unmapping
from vfio_user import Client, Command, DmaFault, DmaFlags, DmaTable

FILE_IO = BOTH | DmaFlags.BY_FILE_IO


def test_memory_of_a_process_which_cannot_be_mapped_is_read_and_written(device: FakeDevice) -> None:
    """/proc/PID/mem is what the flag was made for: libvfio-user pull request 842."""
    guest = memoryview(bytearray(2 * PAGE))
    start = 0x4_2000_0000
    with Path("/proc/self/mem").open("r+b", buffering=0) as file:
        address = ctypes.addressof(ctypes.c_char.from_buffer(guest))
        with served(device) as (server, sock), Client(sock) as client:
            client.dma_map(start, PAGE, file.fileno(), address, file_io=True)
            server.call(lambda: server.session.dma_write(start + 7, b"from the device")).result()
            assert bytes(guest[7:22]) == b"from the device"
            guest[100:104] = b"back"
            assert server.call(lambda: server.session.dma_read(start + 100, 4)).result() == b"back"


def test_such_a_map_has_no_view_and_is_not_by_message(table: DmaTable, memfd: Callable[[int], int]) -> None:
    fd = memfd(PAGE)
    add(table, 0, PAGE, fd, FILE_IO)
    assert f" {os.fstat(fd).st_ino} " not in maps()
    assert table.segments(8, 16, True)[0].view is None
    assert not table.by_message
    assert table.file_io(PAGE - 1) is not None
    assert table.file_io(PAGE) is None


def test_a_file_for_either_way_is_mapped(table: DmaTable, memfd: Callable[[int], int]) -> None:
    add(table, 0, PAGE, memfd(PAGE), FILE_IO | DmaFlags.BY_MMAP)
    assert table.segments(8, 16, True)[0].view is not None
    assert table.file_io(0) is None


def test_the_file_is_let_go_of_at_the_unmap(link: Link, memfd: Callable[[int], int]) -> None:
    fd = memfd(PAGE)
    fds = fd_count()
    link.ok(Command.DMA_MAP, mapping(0, PAGE, flags=FILE_IO), fds=[fd])
    assert fd_count() == fds + 1
    link.ok(Command.DMA_UNMAP, unmapping(0, PAGE))
    assert fd_count() == fds


def test_a_file_that_ends_early_or_may_not_be_used_is_a_fault(table: DmaTable, memfd: Callable[[int], int]) -> None:
    add(table, 0, 2 * PAGE, memfd(PAGE), FILE_IO)
    file = table.file_io(0)
    assert file is not None
    assert file.read(PAGE - 4, 4) == bytes(4)
    with pytest.raises(DmaFault, match="the client's file ends before it"):
        file.read(PAGE - 4, 5)
    read_only = os.open(f"/proc/self/fd/{memfd(PAGE)}", os.O_RDONLY)
    add(table, 4 * PAGE, PAGE, read_only, FILE_IO)
    os.close(read_only)
    file = table.file_io(4 * PAGE)
    assert file is not None
    with pytest.raises(DmaFault, match="Bad file descriptor") as refusal:
        file.write(4 * PAGE, b"x")
    assert refusal.value.errno == errno.EBADF
    remove(table, 0, TOP)


def test_what_is_no_regular_file_is_refused(link: Link) -> None:
    ends = os.pipe()
    for fd in ends:
        assert link.refused(Command.DMA_MAP, mapping(0, PAGE, flags=FILE_IO), fds=[fd]) == errno.EINVAL
        os.close(fd)
    assert len(link.session.dma) == 0
