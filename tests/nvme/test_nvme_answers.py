"""What nvme's optional admin commands answer, refuse and record, where other tests have what they do."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.status import Status
from bellwire.storage import Disk, MemoryDisk
from bellwire.testing import Guest
from nvme.driver import MEMORY, PAGE, Driver, Fields, TestMachine, transfer
from nvme.test_nvme_erasing import finish_sanitize
from nvme.test_nvme_logs import events
from nvme.test_nvme_namespaces import attach, create, delete, listed
from nvme.test_nvme_self_test import finish_test, results

EVERY = 0xFFFF_FFFF


@pytest.fixture
def roomy() -> Iterator[Driver]:
    """One namespace of 7 blocks, and 64 KiB for others."""
    with Guest(Nvme, memory=MEMORY, size=7 << 9, serial="TEST0001", capacity=64 << 10) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        yield driver


def parameter(driver: Driver) -> int:
    """Where in the last command that failed the fault lay, as the error log has it."""
    return int.from_bytes(driver.log(1, 64)[14:16], "little")


@pytest.mark.parametrize(
    ("opcode", "fields"),
    [
        (AdminOpcode.FORMAT_NVM, {"nsid": 1, "dwords": (0,)}),
        (AdminOpcode.SANITIZE, {"dwords": (2,)}),
        (AdminOpcode.SANITIZE, {"dwords": (1,)}),
        (AdminOpcode.DEVICE_SELF_TEST, {"nsid": 1, "dwords": (1,)}),
        (AdminOpcode.DEVICE_SELF_TEST, {"nsid": 1, "dwords": (0xF,)}),
        (AdminOpcode.NAMESPACE_MANAGEMENT, {"nsid": 1, "dwords": (1,)}),
        (AdminOpcode.NAMESPACE_ATTACHMENT, {"nsid": 1, "prp1": 0x2000, "dwords": (1,)}),
        (AdminOpcode.SET_FEATURES, {"prp1": 0x3000, "dwords": (0x0E,)}),
        (AdminOpcode.GET_FEATURES, {"prp1": 0x3000, "dwords": (0x0E,)}),
    ],
)
def test_a_command_without_a_result_answers_zero(roomy: Driver, opcode: AdminOpcode, fields: Fields) -> None:
    roomy.memory[0x2000:0x2004] = bytes((1, 0, 1, 0))
    done = roomy.admin.do(opcode, **fields)
    assert (done.status, done.result) == (0, 0)


def test_an_abort_of_what_is_not_there_answers_one(driver: Driver) -> None:
    for waiting in (False, True):
        if waiting:
            driver.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST, cid=0x42)
        done = driver.admin.do(AdminOpcode.ABORT, dwords=(0x43 << 16,))
        assert (done.status, done.result) == (0, 1)


def test_a_namespace_with_less_than_a_block_of_the_new_size_is_not_formatted(roomy: Driver) -> None:
    assert roomy.admin.do(AdminOpcode.FORMAT_NVM, nsid=1, dwords=(1,)).code == Status.INVALID_FORMAT
    assert parameter(roomy) == 40
    assert create(roomy, 8).result == 2
    assert attach(roomy, 2).status == 0
    assert roomy.admin.do(AdminOpcode.FORMAT_NVM, nsid=2, dwords=(1,)).status == 0
    assert struct.unpack_from("<Q", roomy.identify(0x00, 2)) == (1,)


def test_a_format_of_all_leaves_those_out_that_are_not_attached(roomy: Driver) -> None:
    assert create(roomy, 8, form=1).result == 2
    assert roomy.admin.do(AdminOpcode.FORMAT_NVM, nsid=EVERY).status == 0
    assert roomy.identify(0x11, 2)[26] == 1


@pytest.mark.parametrize(
    ("byte", "status"), [(29, Status.INVALID_FORMAT), (30, Status.INVALID_FIELD)], ids=["protected", "shared"]
)
def test_a_namespace_is_neither_protected_nor_shared(roomy: Driver, byte: int, status: Status) -> None:
    page = roomy.allocate(PAGE)
    struct.pack_into("<QQ", roomy.memory, page, 8, 8)
    roomy.memory[page + byte] = 1
    assert roomy.admin.do(AdminOpcode.NAMESPACE_MANAGEMENT, prp1=page).code == status
    assert parameter(roomy) == 24
    assert listed(roomy, 0x10) == [1]


def test_the_last_block_of_the_capacity_can_be_had(roomy: Driver) -> None:
    assert create(roomy, 17, form=1).code == Status.NAMESPACE_INSUFFICIENT_CAPACITY
    assert create(roomy, 16, form=1).result == 2
    assert create(roomy, 1).code == Status.NAMESPACE_INSUFFICIENT_CAPACITY
    assert parameter(roomy) == 24


def test_the_list_of_namespaces_is_of_those_above_one(roomy: Driver) -> None:
    for nsid in (2, 3, 4):
        assert create(roomy, 1).result == nsid
    assert delete(roomy, 3).status == 0
    assert listed(roomy, 0x10, 1) == [2, 4]
    assert listed(roomy, 0x10, 4) == []
    assert create(roomy, 1).result == 3


def test_a_change_of_namespaces_is_recorded_with_its_format(roomy: Driver) -> None:
    create(roomy, 3, form=1)
    delete(roomy, 2)
    (deleted, gone), (made, new) = events(roomy)[:2]
    assert (deleted, made) == (6, 6)
    assert new == struct.pack("<I4xQQ8xBBBxIHHI", 0, 3, 3, 1, 0, 0, 0, 0, 0, 2)
    assert gone == struct.pack("<I4xQQ8xBBBxIHHI", 1, 3, 3, 1, 0, 0, 0, 0, 0, 2)


def test_a_sanitize_is_recorded_with_what_can_be_done_and_how_it_went(roomy: Driver) -> None:
    roomy.admin.do(AdminOpcode.SANITIZE, dwords=(2, 0xABCD))
    finish_sanitize(roomy)
    (ended, end), (started, start) = events(roomy)[:2]
    assert (started, ended) == (9, 10)
    assert start == struct.pack("<III", 0x6000_0002, 2, 0xABCD)
    assert end == struct.pack("<HHHxx", 0xFFFF, 1, 0)


def fail(*_: object, **__: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.same_device("holds a part of the controller")
def test_what_fails_is_recorded_so(on_image: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as failing:
        failing.setattr(Disk, "zero", fail)
        assert on_image.admin.do(AdminOpcode.FORMAT_NVM, nsid=1).code == Status.WRITE_FAULT
        on_image.admin.do(AdminOpcode.SANITIZE, dwords=(2,))
        finish_sanitize(on_image)
    on_image.admin.do(AdminOpcode.SANITIZE, dwords=(2,))
    finish_sanitize(on_image)
    kinds, data = zip(*events(on_image)[:6], strict=True)
    assert kinds == (10, 9, 10, 9, 8, 7)
    assert data[2] == struct.pack("<HHHxx", 0xFFFF, 3, 0)
    assert data[4] == struct.pack("<IBBHI", 1, 0, 1, 0, 0x8500)


def test_a_namespace_whose_deletion_fails_stays_and_takes_io(on_image: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as failing:
        failing.setattr(Disk, "zero", fail)
        assert delete(on_image, 1).code == Status.WRITE_FAULT
    assert listed(on_image, 0x02) == [1]
    assert transfer(on_image.create_queues(), IoOpcode.READ, on_image.allocate(PAGE), 0, 1).status == 0


def test_the_self_test_log_has_every_field(roomy: Driver) -> None:
    roomy.admin.do(AdminOpcode.DEVICE_SELF_TEST, nsid=EVERY, dwords=(2,))
    finish_test(roomy)
    roomy.create_queues().do(IoOpcode.WRITE_UNCORRECTABLE, nsid=1, dwords=(6,))
    roomy.admin.do(AdminOpcode.DEVICE_SELF_TEST, nsid=1, dwords=(1,))
    finish_test(roomy)
    failed = bytes((0x17, 2, 0xF, 0)) + bytes(8) + struct.pack("<IQBB", 1, 6, 2, 0x81) + bytes(2)
    passed = bytes((0x20, 0, 1, 0)) + bytes(8) + struct.pack("<I", EVERY) + bytes(12)
    assert roomy.log(6, 564) == bytes(4) + failed + passed + (b"\x0f" + bytes(27)) * 18


@pytest.mark.unsaved("lists what is read, and after a restore a read that was under way is done again")
def test_a_short_self_test_reads_sixteen_places_from_end_to_end(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(MemoryDisk, "read", lambda _, buffers, offset: seen.append((offset, len(buffers[0]))))
    driver.admin.do(AdminOpcode.DEVICE_SELF_TEST, nsid=1, dwords=(1,))
    finish_test(driver)
    assert seen == [(16383 * number // 15 * 512, 512) for number in range(16)]


def test_an_abort_without_a_self_test_leaves_no_result(driver: Driver) -> None:
    driver.admin.do(AdminOpcode.DEVICE_SELF_TEST, dwords=(0xF,))
    assert results(driver) == []


def test_a_format_of_another_namespace_ends_no_self_test(driver: Driver) -> None:
    driver.admin.put(AdminOpcode.DEVICE_SELF_TEST, nsid=1, dwords=(2,))
    cid = driver.admin.put(AdminOpcode.FORMAT_NVM, nsid=2)
    driver.admin.ring()
    driver.admin.wait(cid)
    finish_test(driver)
    assert [entry[0] for entry in results(driver)] == [0x20]
