"""Disks as they are opened: in memory, and on an image."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from bellwire.storage import Disk, StorageError


def test_a_disk_of_memory_never_waits_and_needs_no_flags() -> None:
    with closing(Disk.memory(1024)) as disk:
        assert (disk.size, disk.at_once, disk.instant, disk.readonly, disk.direct) == (1024, 0, True, False, False)
        with pytest.raises(StorageError, match="whole number of blocks of 512"):
            disk.resize(1000)


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
