"""nvme's Format and Sanitize: what they erase, what is refused meanwhile, and what the logs say."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, Command, IoOpcode
from bellwire.bundled.nvme.status import Status
from bellwire.storage import Disk
from bellwire.testing import Guest
from nvme.driver import MEMORY, PAGE, Driver, Queues, TestMachine, transfer

FORMAT, SANITIZE = AdminOpcode.FORMAT_NVM, AdminOpcode.SANITIZE
READ, WRITE = IoOpcode.READ, IoOpcode.WRITE
BLOCK_ERASE, EXIT = 2, 1
EVERY = 0xFFFF_FFFF
ANY = Command.unpack(bytes(64))  # the page does not depend on it


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Driver]:
    """Two namespaces on images of 64 KiB, full of ones."""
    paths = [tmp_path / "one.img", tmp_path / "two.img"]
    for path in paths:
        path.write_bytes(b"1" * (64 << 10))
    with Guest(Nvme, memory=MEMORY, image=",".join(map(str, paths))) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        yield driver


@pytest.mark.parametrize("erase", [0, 1 << 9], ids=["plain", "user-data-erase"])
def test_a_format_empties_the_image_and_changes_the_blocks(on_image: Driver, image: Path, erase: int) -> None:
    queues = on_image.create_queues()
    assert on_image.admin.do(FORMAT, nsid=1, dwords=(1 | erase,)).status == 0
    assert image.read_bytes() == bytes(1 << 20)
    assert image.stat().st_blocks == 0
    structure = on_image.identify(0x00, 1)
    assert struct.unpack_from("<QQQ", structure) == (256, 256, 256)
    assert structure[26] == 1
    page = on_image.allocate(PAGE)
    on_image.memory[page : page + PAGE] = b"bell" * 1024
    assert transfer(queues, WRITE, page, 255, 1, shift=12).status == 0
    assert image.read_bytes()[255 * PAGE :] == b"bell" * 1024
    assert transfer(queues, READ, page, 256, 1, shift=12).code == Status.LBA_OUT_OF_RANGE


@pytest.mark.parametrize(
    ("dword10", "nsid", "status"),
    [
        (2, 1, Status.INVALID_FORMAT),
        (15, 1, Status.INVALID_FORMAT),
        (1 << 4, 1, Status.INVALID_FORMAT),  # metadata in line
        (1 << 5, 1, Status.INVALID_FORMAT),  # protection information
        (2 << 9, 1, Status.INVALID_FIELD),  # cryptographic erase
        (7 << 9, 1, Status.INVALID_FIELD),
        (0, 0, Status.INVALID_NAMESPACE),
        (0, 2, Status.INVALID_FIELD),
        (0, 33, Status.INVALID_NAMESPACE),
    ],
)
def test_a_format_that_there_is_not_erases_nothing(
    on_image: Driver, image: Path, dword10: int, nsid: int, status: Status
) -> None:
    before = image.read_bytes()
    assert on_image.admin.do(FORMAT, nsid=nsid, dwords=(dword10,)).code == status
    assert image.read_bytes() == before


def test_a_format_is_of_one_namespace_or_of_all(two: Driver, tmp_path: Path) -> None:
    assert two.admin.do(FORMAT, nsid=2).status == 0
    assert (tmp_path / "one.img").read_bytes() == b"1" * (64 << 10)
    assert (tmp_path / "two.img").read_bytes() == bytes(64 << 10)
    assert two.admin.do(FORMAT, nsid=EVERY, dwords=(1,)).status == 0
    assert (tmp_path / "one.img").read_bytes() == bytes(64 << 10)
    assert [two.identify(0x00, nsid)[26] for nsid in (1, 2)] == [1, 1]


@pytest.mark.unsaved("commands of different queues that a restore repeats have no order")
def test_a_format_begins_when_writes_under_way_have_ended(on_image: Driver, image: Path) -> None:
    queues = on_image.create_queues()
    page = on_image.allocate(PAGE)
    on_image.memory[page : page + PAGE] = b"bell" * 1024
    write = queues.put(WRITE, nsid=1, prp1=page, dwords=(0, 0, 7))
    queues.ring()
    form = on_image.admin.put(FORMAT, nsid=1)
    on_image.admin.ring()
    late = queues.put(READ, nsid=1, prp1=page, dwords=(0, 0, 7))
    queues.ring()
    assert [done.code for done in queues.wait(write, late)] == [0, Status.FORMAT_IN_PROGRESS]
    assert on_image.admin.do(FORMAT, nsid=1).code in (0, Status.FORMAT_IN_PROGRESS)
    assert on_image.admin.wait(form)[0].status == 0
    assert image.read_bytes() == bytes(1 << 20)
    assert transfer(queues, READ, page, 0, 8).status == 0


@pytest.mark.unsaved("a snapshot does not have a format whose command a reset has ended")
def test_a_controller_reset_does_not_stop_a_format(on_image: Driver, image: Path) -> None:
    on_image.admin.put(FORMAT, nsid=1, dwords=(1,))
    on_image.admin.ring()
    on_image.disable()
    on_image.admin = Queues(on_image, 0, 32)
    on_image.enable()
    assert on_image.identify(0x00, 1)[26] == 1
    assert image.read_bytes() == bytes(1 << 20)


def test_a_format_under_way_is_done_by_whoever_takes_the_state_over(on_image: Driver, image: Path) -> None:
    assert isinstance(on_image.machine, TestMachine)
    cid = on_image.admin.put(FORMAT, nsid=1, dwords=(1,))
    on_image.admin.ring()
    core = on_image.machine.guest.device.core
    core.restore(core.snapshot())
    assert on_image.admin.wait(cid)[0].status == 0
    assert on_image.identify(0x00, 1)[26] == 1


def test_a_format_that_fails_leaves_the_blocks_as_they_were(on_image: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as failing:
        failing.setattr(Disk, "zero", fail)
        assert on_image.admin.do(FORMAT, nsid=1, dwords=(1,)).code == Status.WRITE_FAULT
    assert on_image.identify(0x00, 1)[26] == 0
    assert transfer(on_image.create_queues(), READ, on_image.allocate(PAGE), 0, 8).status == 0


def test_a_read_only_namespace_is_neither_formatted_nor_sanitized(image: Path) -> None:
    image.chmod(0o400)
    with Guest(Nvme, memory=MEMORY, image=str(image), readonly=True) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        assert driver.admin.do(FORMAT, nsid=1).code == Status.WRITE_PROTECTED
        assert driver.admin.do(SANITIZE, dwords=(BLOCK_ERASE,)).code == Status.WRITE_PROTECTED


def sanitize_log(driver: Driver) -> tuple[int, int, int]:
    progress, status, action = struct.unpack_from("<HHI", driver.log(0x81))
    return progress, status, action


def finish_sanitize(driver: Driver) -> None:
    for _ in range(10_000):
        if sanitize_log(driver)[1] != 2:
            return
        driver.machine.step()
    raise AssertionError("the sanitize operation does not end")


def test_a_sanitize_erases_every_image_and_tells_when_it_has(two: Driver, tmp_path: Path) -> None:
    assert sanitize_log(two) == (0xFFFF, 0, 0)
    request = two.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST)
    assert two.admin.do(SANITIZE, dwords=(BLOCK_ERASE,)).status == 0
    finish_sanitize(two)
    assert sanitize_log(two) == (0xFFFF, 1, BLOCK_ERASE)
    assert two.admin.wait(request)[0].result == 0x0081_0106
    for name in ("one.img", "two.img"):
        assert (tmp_path / name).read_bytes() == bytes(64 << 10)
        assert (tmp_path / name).stat().st_blocks == 0


@pytest.mark.unsaved("lists what is emptied, and after a restore what was under way is done again")
def test_the_log_says_how_far_a_sanitize_is(two: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(two.machine, TestMachine)
    sanitize = two.machine.guest.device.controller.sanitize
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(Disk, "empty", lambda _: seen.append(struct.unpack_from("<HHI6I", sanitize.page(ANY))))
    two.admin.do(SANITIZE, dwords=(BLOCK_ERASE,))
    finish_sanitize(two)
    assert seen == [(progress, 2, BLOCK_ERASE, *[0xFFFF_FFFF] * 6) for progress in (0, 0x8000)]


@pytest.mark.parametrize("dword10", [0, 3, 4, 5, BLOCK_ERASE | 1 << 9])
def test_a_sanitize_action_that_there_is_not_is_an_invalid_field(two: Driver, tmp_path: Path, dword10: int) -> None:
    assert two.admin.do(SANITIZE, dwords=(dword10,)).code == Status.INVALID_FIELD
    assert (tmp_path / "one.img").read_bytes() == b"1" * (64 << 10)


def test_while_sanitizing_only_some_commands_are_taken(two: Driver) -> None:
    queues = two.create_queues()
    page = two.allocate(PAGE)
    two.admin.put(SANITIZE, dwords=(BLOCK_ERASE,), cid=0x500)
    cids = [
        two.admin.put(FORMAT, nsid=1),
        two.admin.put(SANITIZE, dwords=(BLOCK_ERASE,)),
        two.admin.put(AdminOpcode.DEVICE_SELF_TEST, nsid=1, dwords=(1,)),
        two.admin.put(AdminOpcode.GET_LOG_PAGE, prp1=page, dwords=(0x000F_0007,)),
        two.admin.put(AdminOpcode.GET_LOG_PAGE, prp1=page, dwords=(0x000F_0002,)),
        two.admin.put(AdminOpcode.IDENTIFY, prp1=page, dwords=(1,)),
    ]
    two.admin.ring()
    read = queues.put(READ, nsid=1, prp1=page)
    queues.ring()
    flush = queues.put(IoOpcode.FLUSH, nsid=EVERY)
    queues.ring()
    assert [done.code for done in queues.wait(read, flush)] == [Status.SANITIZE_IN_PROGRESS] * 2
    busy = Status.SANITIZE_IN_PROGRESS
    assert [done.code for done in two.admin.wait(*cids)] == [busy, busy, busy, busy, 0, 0]
    finish_sanitize(two)
    assert transfer(queues, READ, page, 0, 1).status == 0


def fail_to_sanitize(driver: Driver, monkeypatch: pytest.MonkeyPatch, dword10: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as failing:
        failing.setattr(Disk, "zero", fail)
        assert driver.admin.do(SANITIZE, dwords=(dword10,)).status == 0
        finish_sanitize(driver)
    assert sanitize_log(driver) == (0xFFFF, 3, dword10)


def test_after_a_sanitize_that_failed_nothing_is_read_until_one_succeeds(
    two: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_sanitize(two, monkeypatch, BLOCK_ERASE)
    queues = two.create_queues()
    page = two.allocate(PAGE)
    assert transfer(queues, READ, page, 0, 1).code == Status.SANITIZE_FAILED
    assert two.admin.do(FORMAT, nsid=1).code == Status.SANITIZE_FAILED
    assert two.admin.do(SANITIZE, dwords=(EXIT,)).code == Status.SANITIZE_FAILED
    assert two.admin.do(SANITIZE, dwords=(BLOCK_ERASE,)).status == 0
    finish_sanitize(two)
    assert transfer(queues, READ, page, 0, 1).status == 0
    assert not any(two.memory[page : page + 512])


def test_failure_mode_is_left_where_unrestricted_exit_was_allowed(two: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_sanitize(two, monkeypatch, BLOCK_ERASE | 1 << 3)
    assert two.admin.do(SANITIZE, dwords=(EXIT,)).status == 0
    assert transfer(two.create_queues(), READ, two.allocate(PAGE), 0, 1).status == 0
    assert sanitize_log(two)[1] == 3


@pytest.mark.parametrize("how", ["controller reset", "device reset", "snapshot"])
def test_a_sanitize_goes_on_after(two: Driver, tmp_path: Path, how: str) -> None:
    assert isinstance(two.machine, TestMachine)
    assert two.admin.do(SANITIZE, dwords=(BLOCK_ERASE,)).status == 0
    guest = two.machine.guest
    core = guest.device.core
    if how == "snapshot":
        core.restore(core.snapshot())
    else:
        if how == "device reset":
            core.reset()
            guest.enable()
        else:
            two.disable()
        two.admin = Queues(two, 0, 32)
        two.enable()
    finish_sanitize(two)
    assert sanitize_log(two)[1] == 1
    assert (tmp_path / "two.img").read_bytes() == bytes(64 << 10)
