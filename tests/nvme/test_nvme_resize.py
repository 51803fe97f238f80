"""nvme's namespaces resized while the guest runs: what the host is told, and what it may do."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from bellwire import OptionError
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.status import Status
from bellwire.storage import StorageError
from bellwire.testing import Guest
from nvme.driver import PAGE, Driver, TestMachine, transfer
from nvme.test_nvme_namespaces import attach, create

MIB = 1 << 20
NOTICES = 1 << 8
CHANGED = 0x0004_0002
"""Namespace Attribute Changed, as a completion has it."""


def device(driver: Driver) -> Nvme:
    assert isinstance(driver.machine, TestMachine)
    found = driver.machine.guest.device
    assert isinstance(found, Nvme)
    return found


def blocks(driver: Driver, nsid: int = 1) -> int:
    return int(struct.unpack_from("<Q", driver.identify(0x00, nsid))[0])


def listen(driver: Driver) -> int:
    """Ask for notices; the request's id."""
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(0x0B, NOTICES))
    cid = driver.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST)
    driver.admin.ring()
    return cid


def test_a_larger_image_is_told_of_and_can_be_written_to_its_end(on_image: Driver, image: Path) -> None:
    request = listen(on_image)
    queues = on_image.create_queues()
    page = on_image.allocate(PAGE)
    assert transfer(queues, IoOpcode.WRITE, page, 2048, 1).code == Status.LBA_OUT_OF_RANGE
    device(on_image).change("size", "2M")
    assert on_image.admin.wait(request)[0].result == CHANGED
    assert struct.unpack_from("<2I", on_image.log(4)) == (1, 0)
    assert struct.unpack_from("<2I", on_image.log(4)) == (0, 0)
    assert blocks(on_image) == 4096
    assert transfer(queues, IoOpcode.WRITE, page, 4095, 1).status == 0
    assert image.stat().st_size == 2 * MIB


def test_the_host_hears_of_the_next_change_once_it_has_read_which_it_was(on_image: Driver) -> None:
    first, second = listen(on_image), listen(on_image)
    device(on_image).change("size", "2M")
    device(on_image).change("size", "3M")
    assert on_image.admin.wait(first)[0].result == CHANGED
    assert on_image.admin.reap() == []
    on_image.log(4)
    device(on_image).change("size", "4M")
    assert on_image.admin.wait(second)[0].result == CHANGED


def test_a_host_that_wants_no_notices_gets_none_and_the_list_all_the_same(on_image: Driver) -> None:
    on_image.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST)
    on_image.admin.ring()
    device(on_image).change("size", "2M")
    assert on_image.admin.reap() == []
    assert struct.unpack_from("<2I", on_image.log(4)) == (1, 0)


def test_a_smaller_size_takes_a_word_of_its_own_that_counts_once(on_image: Driver, image: Path) -> None:
    request = listen(on_image)
    with pytest.raises(StorageError, match="shrink=yes"):
        device(on_image).change("size", "512K")
    assert (blocks(on_image), image.stat().st_size) == (2048, MIB)
    device(on_image).change("shrink", "yes")
    device(on_image).change("size", "512K")
    assert (blocks(on_image), image.stat().st_size) == (1024, MIB // 2)
    assert on_image.admin.wait(request)[0].result == CHANGED
    assert transfer(on_image.create_queues(), IoOpcode.READ, on_image.allocate(PAGE), 1024, 1).code == (
        Status.LBA_OUT_OF_RANGE
    )
    with pytest.raises(StorageError, match="shrink=yes"):
        device(on_image).change("size", "256K")


def test_writes_under_way_do_not_make_a_shrunken_image_longer_again(on_image: Driver, image: Path) -> None:
    queues = on_image.create_queues()
    page = on_image.allocate(PAGE)
    cids = [queues.put(IoOpcode.WRITE, nsid=1, prp1=page, dwords=(2040, 0, 7)) for _ in range(8)]
    queues.ring()
    device(on_image).change("shrink", "yes")
    device(on_image).change("size", "512K")
    assert {done.status for done in queues.wait(*cids)} == {0}
    assert image.stat().st_size == MIB // 2


def test_a_size_of_0_takes_what_somebody_else_has_given_the_image(on_image: Driver, image: Path) -> None:
    request = listen(on_image)
    os.truncate(image, 3 * MIB)
    device(on_image).change("size", 0)
    assert blocks(on_image) == 6144
    assert on_image.admin.wait(request)[0].result == CHANGED


def test_the_same_size_is_no_change(on_image: Driver) -> None:
    listen(on_image)
    device(on_image).change("size", "1M")
    assert struct.unpack_from("<2I", on_image.log(4)) == (0, 0)
    assert on_image.admin.reap() == []


@pytest.mark.parametrize("size", [1000, -512, 1 << 63])
def test_a_size_that_cannot_be_changes_nothing(on_image: Driver, image: Path, size: int) -> None:
    with pytest.raises((StorageError, OptionError)):
        device(on_image).change("size", size)
    assert (blocks(on_image), image.stat().st_size) == (2048, MIB)


def test_all_namespaces_are_resized_or_none(driver: Driver) -> None:
    listen(driver)
    driver.admin.do(AdminOpcode.FORMAT_NVM, nsid=2, dwords=(1,))
    with pytest.raises(StorageError, match="blocks of 4096"):
        device(driver).change("size", (8 << 20) + 512)
    assert (blocks(driver, 1), blocks(driver, 2)) == (16384, 2048)
    device(driver).change("size", "16M")
    assert (blocks(driver, 1), blocks(driver, 2)) == (32768, 4096)
    assert struct.unpack_from("<3I", driver.log(4)) == (1, 2, 0)


def test_namespaces_that_the_host_has_made_keep_their_size() -> None:
    with Guest(Nvme, memory=16 * MIB, size=MIB, capacity=MIB) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        create(driver, 8)
        attach(driver, 2)
        guest.device.change("size", "2M")
        assert (blocks(driver, 1), blocks(driver, 2)) == (4096, 8)


def test_a_device_without_a_driver_is_resized_too(image: Path) -> None:
    with Guest(Nvme, memory=16 * MIB, image=str(image)) as guest:
        guest.device.change("size", "2M")
        driver = Driver(TestMachine(guest))
        driver.enable()
        assert blocks(driver) == 4096


def test_blocks_that_are_cut_off_are_not_lost_when_the_disk_grows_again(on_image: Driver) -> None:
    queues = on_image.create_queues()
    assert isinstance(on_image.machine, TestMachine)
    device = on_image.machine.guest.device
    for block in (1023, 1024, 2047):
        assert queues.do(IoOpcode.WRITE_UNCORRECTABLE, nsid=1, dwords=(block,)).status == 0
    space = device.controller.namespaces[1]
    device.controller.resize(512 << 10, shrink=True)
    assert (space.blocks, space.lost.ranges) == (1024, [(1023, 1)])
    device.controller.resize(1 << 20, shrink=False)
    assert space.lost.ranges == [(1023, 1)]
