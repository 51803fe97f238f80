"""Disks of devices that go on with their client in another process, or with other code: they are the same disks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from operating.instance import PATIENCE, QUICK, Instance, connect
from operating.test_takeover import takes_over
from vfio_user import RegionIndex

PLUGIN = """
from bellwire import Option, OptionError
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.virtio_blk import VirtioBlk


class Poked({base}, name="poked"):
    edition = 1
    written = Option("", help="what the disk begins with")
    look = Option(0, help="tell by an error so many bytes of the disk")

    @written.set
    def put(self, value: str) -> None:
        self.{disk}.write([bytearray(value.encode())], 0)

    @look.set
    def tell(self, size: int) -> None:
        found = bytearray(size)
        self.{disk}.read([found], 0)
        raise OptionError("%d: %s." % (self.edition, found.decode()))
"""
BLK = PLUGIN.format(base="VirtioBlk", disk="disk")
NVME = PLUGIN.format(base="Nvme", disk="controller.namespaces.disks[0]")


def look(instance: Instance, expected: str) -> None:
    """The edition of the device's code, and what its disk begins with."""
    with pytest.raises(Exception, match=expected):
        instance.call("Set", name="dev", option="look", value="4")


def edit(instance: Instance) -> None:
    file = instance.plugins / "poked.py"
    file.write_text(file.read_text().replace("edition = 1", "edition = 2"))
    assert instance.reload()["restarted"] == ["dev"]


def move(instance: Instance) -> None:
    instance.call("Move", name="dev")


def kill(instance: Instance) -> None:
    since = instance.now()
    os.kill(instance.pid("dev"), signal.SIGKILL)
    instance.said("a new worker has taken over", since)


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    made = Instance(tmp_path, QUICK)
    (made.plugins / "poked.py").write_text(BLK)
    return made


@pytest.mark.parametrize("plugin", [BLK, NVME], ids=["blk", "nvme"])
def test_a_disk_of_memory_outlives_edits_moves_and_crashes(instance: Instance, plugin: str) -> None:
    (instance.plugins / "poked.py").write_text(plugin)
    path = instance.configure("dev", 'device = "poked"')
    with instance, connect(path):
        instance.call("Set", name="dev", option="written", value="ABCD")
        edit(instance)
        look(instance, "2: ABCD")
        for go_on in (move, kill, move):
            go_on(instance)
            look(instance, "2: ABCD")
        assert "state is lost" not in instance.log


def test_a_disk_of_memory_moves_without_a_client_and_is_there_for_later_ones(instance: Instance) -> None:
    path = instance.configure("dev", 'device = "poked"')
    with instance:
        instance.call("Set", name="dev", option="written", value="ABCD")
        move(instance)
        look(instance, "1: ABCD")
        for _ in range(2):
            with connect(path):
                kill(instance)
                look(instance, "1: ABCD")


@pytest.mark.parametrize("go_on", [edit, move, kill])
def test_an_image_stays_the_same_file_whatever_becomes_of_its_path(
    instance: Instance, tmp_path: Path, go_on: Callable[[Instance], None]
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    path = instance.configure("dev", f'device = "poked"\noptions = {{ image = "{image}", size = "1M" }}')
    with instance, connect(path) as client:
        instance.call("Set", name="dev", option="written", value="ABCD")
        image.rename(tmp_path / "moved.img")
        go_on(instance)
        look(instance, "[12]: ABCD")
        assert not image.exists()
        assert client.read(RegionIndex.CONFIG, 0, 2) == b"\xf4\x1a"


@pytest.mark.slow
def test_a_disk_of_memory_outlives_the_daemon(instance: Instance) -> None:
    path = instance.configure("dev", 'device = "poked"')
    with instance, connect(path):
        instance.call("Set", name="dev", option="written", value="ABCD")
        other = takes_over(instance)
        other.start()
        try:
            other.said("ready:")
            assert instance.process.wait(PATIENCE) == 0
            look(other, "1: ABCD")
        finally:
            other.__exit__(None, None, None)


@pytest.mark.parametrize("go_on", [move, kill])
def test_no_file_is_made_where_an_image_was(
    instance: Instance, tmp_path: Path, go_on: Callable[[Instance], None]
) -> None:
    image = tmp_path / "disk.img"
    path = instance.configure("dev", f'device = "virtio-blk"\noptions = {{ image = "{image}", size = "1M" }}')
    with instance, connect(path) as client:
        image.unlink()
        go_on(instance)
        assert client.read(RegionIndex.CONFIG, 0, 2) == b"\xf4\x1a"
        assert not image.exists()
