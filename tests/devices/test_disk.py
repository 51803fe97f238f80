"""Disks as they are opened: in memory, and on an image."""

from __future__ import annotations

import mmap
import os
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire.storage import Disk, MemoryDisk, StorageError


def test_a_disk_of_memory_never_waits_and_has_no_descriptor() -> None:
    with closing(MemoryDisk(1024)) as disk:
        assert (disk.size, disk.at_once, disk.instant, disk.readonly, disk.direct) == (1024, None, True, False, False)
        assert (disk.fd, len(disk.view)) == (-1, 1024)
        with pytest.raises(StorageError, match="whole number of blocks of 512"):
            disk.resize(1000)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_a_disk_of_memory_takes_memory_only_for_what_is_written() -> None:
    with closing(MemoryDisk(64 << 20)) as disk:
        before = resident()
        buffer = bytearray(1 << 20)
        disk.write([buffer] * 32, 0)
        assert resident() - before > 30 << 20
        disk.zero(512, 32 << 20)
        assert resident() - before < 8 << 20


def test_a_disk_of_memory_that_gets_smaller_and_larger_again_has_zeros_there() -> None:
    with closing(MemoryDisk(3 * mmap.PAGESIZE)) as disk:
        disk.write([bytearray(b"x" * disk.size)], 0)
        disk.resize(512, shrink=True)
        disk.resize(0)
        assert (disk.size, len(disk.view)) == (512, 512)
        disk.resize(3 * mmap.PAGESIZE)
        assert bytes(disk.view) == b"x" * 512 + bytes(3 * mmap.PAGESIZE - 512)


def test_a_disk_of_more_memory_than_there_are_addresses_is_refused() -> None:
    with pytest.raises(StorageError, match="a disk of 4611686018427387904 bytes cannot be made of memory"):
        MemoryDisk(1 << 62)
    with closing(MemoryDisk(512)) as disk:
        with pytest.raises(StorageError, match="cannot be made of memory"):
            disk.resize(1 << 62)
        disk.write([bytearray(b"x")], 511)
        assert bytes(disk.view[510:]) == b"\0x"


@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "zero", "discard"]), st.integers(0, 5 * 4096), st.integers(0, 3 * 4096)),
        max_size=12,
    )
)
def test_a_disk_of_memory_has_what_was_written_and_zeros(steps: list[tuple[str, int, int]]) -> None:
    size = 6 * 4096
    expected = bytearray(size)
    with closing(MemoryDisk(size)) as disk:
        for number, (what, offset, length) in enumerate(steps, 1):
            length = min(length, size - offset)
            data = bytes([number]) * length if what == "write" else bytes(length)
            expected[offset : offset + length] = data
            if what == "write":
                disk.write([memoryview(data)[: length // 3], memoryview(data)[length // 3 :]], offset)
            else:
                getattr(disk, what)(offset, length)
        parts = [bytearray(100), bytearray(size - 100)]
        disk.read(parts, 0)
        assert b"".join(parts) == expected


def test_an_image_is_made_for_its_owner_and_read_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with closing(Disk.open(path, size=1024)) as disk:
        assert (disk.size, disk.at_once, disk.instant, disk.readonly) == (1024, os.RWF_NOWAIT, False, False)
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(StorageError, match="another device uses it"):
            Disk.open(path)


def test_a_read_only_image_is_shared_and_never_made(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with pytest.raises(StorageError, match="No such file"):
        Disk.open(path, readonly=True, size=512)
    path.write_bytes(bytes(512))
    with closing(Disk.open(path, readonly=True)) as one, closing(Disk.open(path, readonly=True)) as other:
        assert one.readonly
        assert other.size == 512
        with pytest.raises(StorageError, match="another device uses it"):
            Disk.open(path)


def test_a_disk_gets_smaller_only_if_that_is_meant(tmp_path: Path) -> None:
    with closing(Disk.open(tmp_path / "disk.img", size=2048)) as disk:
        with pytest.raises(StorageError, match="size=1024 would cut the disk from 2048 bytes"):
            disk.resize(1024)
        disk.resize(2048)
        disk.resize(1024, shrink=True)
        assert (disk.size, os.fstat(disk.fd).st_size) == (1024, 1024)
        os.ftruncate(disk.fd, 4096)
        disk.resize(0)
        assert disk.size == 4096


def test_a_disk_that_is_closed_twice_closes_nothing_else(tmp_path: Path) -> None:
    disk = Disk.open(tmp_path / "disk.img", size=512)
    disk.close()
    assert disk.fd == -1
    disk.close()
