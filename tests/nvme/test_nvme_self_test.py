"""nvme's self-tests: what they read and find, what ends them, and their log."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from bellwire.bundled.nvme.command import AdminOpcode, Command, IoOpcode
from bellwire.bundled.nvme.status import Status
from bellwire.storage import Disk, MemoryDisk
from bellwire.storage.disk import Buffers
from nvme.driver import Driver, Queues, TestMachine

SELF_TEST = AdminOpcode.DEVICE_SELF_TEST
EVERY = 0xFFFF_FFFF
ANY = Command.unpack(bytes(64))  # the page does not depend on it


def results(driver: Driver) -> list[tuple[int, ...]]:
    """Code and result, segment, what is valid, namespace, block, status; the newest first."""
    log = driver.log(6, 564)
    found = [struct.unpack_from("<BBB9xIQBB", log, 4 + 28 * number) for number in range(20)]
    return [entry for entry in found if entry[0] != 0xF]


def finish_test(driver: Driver) -> None:
    for _ in range(10_000):
        if not driver.log(6, 564)[0]:
            return
        driver.machine.step()
    raise AssertionError("the self-test does not end")


@pytest.mark.parametrize("kind", [1, 2], ids=["short", "extended"])
@pytest.mark.parametrize("nsid", [0, 1, EVERY])
def test_a_self_test_of_a_good_disk_passes(on_image: Driver, kind: int, nsid: int) -> None:
    assert on_image.admin.do(SELF_TEST, nsid=nsid, dwords=(kind,)).status == 0
    finish_test(on_image)
    assert results(on_image) == [(kind << 4, 0, bool(nsid), nsid, 0, 0, 0)]


def test_an_extended_self_test_finds_a_part_of_the_disk_that_cannot_be_read(
    on_image: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Disk, "read", fail)
    assert on_image.admin.do(SELF_TEST, nsid=1, dwords=(2,)).status == 0
    finish_test(on_image)
    assert results(on_image) == [(0x27, 2, 0xF, 1, 0, 2, 0x81)]


def test_an_extended_self_test_finds_an_uncorrectable_block(on_image: Driver) -> None:
    on_image.create_queues().do(IoOpcode.WRITE_UNCORRECTABLE, nsid=1, dwords=(1234,))
    on_image.admin.do(SELF_TEST, nsid=EVERY, dwords=(2,))
    finish_test(on_image)
    assert results(on_image) == [(0x27, 2, 0xF, 1, 1234, 2, 0x81)]


@pytest.mark.parametrize("block", [0, 2047])
def test_a_short_self_test_reads_the_first_block_and_the_last(on_image: Driver, block: int) -> None:
    on_image.create_queues().do(IoOpcode.WRITE_UNCORRECTABLE, nsid=1, dwords=(block,))
    on_image.admin.do(SELF_TEST, nsid=1, dwords=(1,))
    finish_test(on_image)
    assert results(on_image) == [(0x17, 2, 0xF, 1, block, 2, 0x81)]


@pytest.mark.unsaved("lists what is read, and after a restore a read that was under way is done again")
def test_an_extended_self_test_reads_every_byte_and_says_how_far_it_is(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(driver.machine, TestMachine)
    self_test = driver.machine.guest.device.controller.self_test
    seen: list[tuple[int, int, int]] = []
    monkeypatch.setattr(
        MemoryDisk, "read", lambda _, buffers, offset: seen.append((offset, len(buffers[0]), self_test.page(ANY)[1]))
    )
    driver.admin.do(SELF_TEST, nsid=2, dwords=(2,))
    finish_test(driver)
    assert seen == [(number << 20, 1 << 20, number * 100 // 8) for number in range(8)]
    assert driver.log(6, 564)[:2] == bytes(2)


@pytest.mark.unsaved("lists what is read, and after a restore a read that was under way is done again")
def test_a_self_test_of_a_disk_that_grows_meanwhile_is_never_more_than_done(
    on_image: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(on_image.machine, TestMachine)
    device = on_image.machine.guest.device
    seen: list[int] = []
    monkeypatch.setattr(Disk, "read", lambda *_: seen.append(device.controller.self_test.page(ANY)[1]))
    on_image.admin.do(SELF_TEST, nsid=1, dwords=(2,))
    device.change("size", "4M")
    finish_test(on_image)
    assert seen == [0, 100, 100, 100]
    assert results(on_image) == [(0x20, 0, 1, 1, 0, 0, 0)]


@pytest.mark.same_device("has emptied the image, with which no device starts")
def test_a_short_self_test_of_a_disk_that_somebody_has_emptied_ends(on_image: Driver, image: Path) -> None:
    assert isinstance(on_image.machine, TestMachine)
    os.truncate(image, 0)
    on_image.machine.guest.device.change("size", "0")
    on_image.admin.do(SELF_TEST, nsid=1, dwords=(1,))
    finish_test(on_image)
    assert results(on_image) == [(0x10, 0, 1, 1, 0, 0, 0)]


def test_one_self_test_at_a_time_which_can_be_aborted(on_image: Driver) -> None:
    first = on_image.admin.put(SELF_TEST, nsid=1, dwords=(2,))
    second = on_image.admin.put(SELF_TEST, nsid=1, dwords=(1,))
    abort = on_image.admin.put(SELF_TEST, dwords=(0xF,))
    again = on_image.admin.put(SELF_TEST, nsid=1, dwords=(1,))
    on_image.admin.ring()
    codes = [done.code for done in on_image.admin.wait(first, second, abort, again)]
    assert codes == [0, Status.SELF_TEST_IN_PROGRESS, 0, 0]
    finish_test(on_image)
    assert [entry[0] for entry in results(on_image)] == [0x10, 0x21]


@pytest.mark.parametrize(
    ("nsid", "dword10", "status"),
    [(1, 0, Status.INVALID_FIELD), (1, 3, Status.INVALID_FIELD), (2, 1, Status.INVALID_FIELD),
     (99, 1, Status.INVALID_NAMESPACE)],
)  # fmt: skip
def test_a_self_test_that_there_is_not_is_refused(on_image: Driver, nsid: int, dword10: int, status: Status) -> None:
    assert on_image.admin.do(SELF_TEST, nsid=nsid, dwords=(dword10,)).code == status
    assert results(on_image) == []


@pytest.mark.unsaved("a deletion of a namespace that is under way in a snapshot fails, and is not repeated")
@pytest.mark.parametrize(
    ("opcode", "nsid", "dword10", "result"),
    [(AdminOpcode.FORMAT_NVM, 1, 0, 4), (AdminOpcode.SANITIZE, 0, 2, 9), (AdminOpcode.NAMESPACE_MANAGEMENT, 1, 1, 3)],
)
def test_what_erases_ends_a_self_test(on_image: Driver, opcode: int, nsid: int, dword10: int, result: int) -> None:
    on_image.admin.put(SELF_TEST, nsid=1, dwords=(2,))
    cid = on_image.admin.put(opcode, nsid=nsid, dwords=(dword10,))
    on_image.admin.ring()
    assert on_image.admin.wait(cid)[0].status == 0
    for _ in range(100):
        on_image.machine.step()
    assert [entry[0] for entry in results(on_image)] == [0x20 | result]


@pytest.mark.unsaved("lists what is read, and after a restore a read that was under way is done again")
def test_a_format_of_another_namespace_does_not_wait_for_the_end_of_a_self_test(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    read, empty = MemoryDisk.read, MemoryDisk.empty

    def noted_read(disk: MemoryDisk, buffers: Buffers, offset: int) -> None:
        done.append("read")
        read(disk, buffers, offset)

    def noted_empty(disk: MemoryDisk) -> None:
        done.append("format")
        empty(disk)

    monkeypatch.setattr(MemoryDisk, "read", noted_read)
    monkeypatch.setattr(MemoryDisk, "empty", noted_empty)
    driver.admin.put(SELF_TEST, nsid=1, dwords=(2,))
    cid = driver.admin.put(AdminOpcode.FORMAT_NVM, nsid=2, dwords=(1,))
    driver.admin.ring()
    assert driver.admin.wait(cid)[0].status == 0
    finish_test(driver)
    assert done == ["read", "format", *["read"] * 7]  # 8 MiB, in pieces of one


@pytest.mark.parametrize("kind", [1, 2], ids=["short", "extended"])
@pytest.mark.parametrize("how", ["controller reset", "device reset", "snapshot"])
def test_an_extended_self_test_outlives_a_reset_and_a_short_one_does_not(on_image: Driver, kind: int, how: str) -> None:
    assert isinstance(on_image.machine, TestMachine)
    core = on_image.machine.guest.device.core
    on_image.admin.do(SELF_TEST, nsid=1, dwords=(kind,))
    if how == "snapshot":
        core.restore(core.snapshot())
    elif how == "device reset":
        core.reset()
        on_image.machine.guest.enable()
    else:
        on_image.disable()
    if how != "snapshot":
        on_image.admin = Queues(on_image, 0, 32)
        on_image.enable()
    finish_test(on_image)
    ended_by_reset = kind == 1 and how != "snapshot"
    assert [entry[0] for entry in results(on_image)] == [kind << 4 | 2 * ended_by_reset]


def test_the_last_twenty_results_are_kept(driver: Driver) -> None:
    for number in range(25):
        driver.admin.do(SELF_TEST, nsid=1 + number % 2, dwords=(1,))
        finish_test(driver)
    assert [entry[3] for entry in results(driver)] == [1, 2] * 10
