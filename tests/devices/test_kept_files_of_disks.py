"""What a device's successor finds of its disks, as its options are then."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from bellwire import PciDevice
from bellwire.storage import KeptDisks, StorageError


class Device:
    """Keeps descriptors as a manager does."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[int, Mapping[str, Any]]] = {}

    def keep_file(self, name: str, fd: int, note: Mapping[str, Any], *, lasting: bool) -> None:
        assert lasting
        self.drop_file(name)
        self.kept[name] = os.dup(fd), note

    def drop_file(self, name: str) -> None:
        if name in self.kept:
            os.close(self.kept.pop(name)[0])

    def kept_file(self, name: str) -> tuple[int, Mapping[str, Any]] | None:
        fd, note = self.kept.get(name, (-1, {}))
        return None if fd < 0 else (os.dup(fd), note)


@pytest.fixture
def device() -> Iterator[Device]:
    made = Device()
    yield made
    for name in list(made.kept):
        made.drop_file(name)


def disks(device: Device) -> KeptDisks:
    return KeptDisks(cast("PciDevice", device))


def test_an_image_is_opened_anew_if_that_is_another_way(tmp_path: Path, device: Device) -> None:
    image = tmp_path / "disk.img"
    with closing(disks(device).image("disk", image, size=4096)) as before:
        assert not before.inherited
    with closing(disks(device).image("disk", image, size=4096)) as same:
        assert same.inherited
    with closing(disks(device).image("disk", image, readonly=True)) as other:
        assert (other.inherited, other.readonly, other.size) == (False, True, 4096)


def test_another_image_is_not_made_under_a_guest(tmp_path: Path, device: Device) -> None:
    disks(device).image("disk", tmp_path / "disk.img", size=4096).close()
    with pytest.raises(StorageError, match="No such file"):
        disks(device).image("disk", tmp_path / "other.img", size=4096)


def test_memory_has_its_size_and_identity_unless_it_is_new(device: Device) -> None:
    first = disks(device)
    with closing(first.memory("disk", 4096, identity="one")) as before:
        before.resize(8192)
    later = disks(device)
    with closing(later.memory("disk", 4096, identity="other")) as same:
        assert (same.size, later.identity("disk")) == (8192, "one")
    with closing(later.memory("disk", 512, identity="other", new=True)) as new:
        assert (new.size, later.identity("disk")) == (512, "other")


def test_memory_takes_the_place_of_an_image_and_the_other_way(tmp_path: Path, device: Device) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    disks(device).image("disk", image).close()
    with closing(disks(device).memory("disk", 512)) as memory:
        assert (memory.inherited, memory.size) == (False, 512)
    with closing(disks(device).image("disk", image)) as again:
        assert (again.inherited, again.size) == (False, 4096)
