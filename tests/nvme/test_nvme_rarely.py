"""What nvme does rarely: a second deletion, a flush that fails, an image that cannot be made, memory not shared."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

from bellwire import Job
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.io import AT_ONCE
from bellwire.bundled.nvme.self_test import Kind, SelfTest
from bellwire.bundled.nvme.status import Status
from bellwire.storage import StorageError
from bellwire.testing import Guest
from nvme.driver import PAGE, Driver, TestMachine


def guest_of(driver: Driver) -> Guest[Nvme]:
    assert isinstance(driver.machine, TestMachine)
    return driver.machine.guest


def test_a_queue_that_is_being_deleted_is_not_deleted_again(on_image: Driver) -> None:
    queues = on_image.create_queues()
    queues.put(IoOpcode.FLUSH, nsid=1)
    queues.ring()
    cids = [on_image.admin.put(AdminOpcode.DELETE_SUBMISSION_QUEUE, dwords=(1,)) for _ in range(2)]
    on_image.admin.ring()
    assert [done.code for done in on_image.admin.wait(*cids)] == [0, Status.INVALID_QUEUE_ID]


def test_a_flush_that_fails_at_the_shutdown_is_logged_and_ends_it(
    on_image: Driver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = guest_of(on_image).device.controller.namespaces.existing(1).disk

    def fail() -> None:
        raise OSError(errno.EIO, "gone")

    monkeypatch.setattr(disk, "flush", fail)
    on_image.machine.write(0x14, 0x0046_0001 | 1 << 14, 4)
    on_image.wait_for(0xC, 0x8)
    assert "flush at shutdown: [Errno 5] gone" in caplog.text


@pytest.mark.parametrize("select", [0, 1])
def test_the_number_of_queues_is_what_there_is(driver: Driver, select: int) -> None:
    assert driver.admin.do(AdminOpcode.GET_FEATURES, dwords=(select << 8 | 7,)).result == 0x003F_003F


def test_a_namespace_whose_image_cannot_be_made_is_an_internal_error(
    driver: Driver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = guest_of(driver).device.controller
    controller.namespaces._spare = 1 << 20

    def refuse(*_: Any, **__: Any) -> None:
        raise StorageError("no room")

    monkeypatch.setattr(controller.store, "disk", refuse)
    page = driver.allocate(PAGE)
    struct.pack_into("<QQ", driver.memory, page, 8, 8)
    made = controller.store.record.made
    assert driver.admin.do(AdminOpcode.NAMESPACE_MANAGEMENT, prp1=page, dwords=(0,)).code == Status.INTERNAL_ERROR
    assert "namespace 3: no room" in caplog.text
    assert (controller.store.record.made, len(controller.namespaces.allocated)) == (made, 2)


@pytest.fixture
def testing(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> tuple[SelfTest, list[Job]]:
    """A self-test, and its reads, which nobody does."""
    controller = guest_of(driver).device.controller
    jobs: list[Job] = []
    monkeypatch.setattr(controller.engine, "background", lambda job, _: jobs.append(job))
    return controller.self_test, jobs


@pytest.mark.unsaved("lists what is read, and after a restore a read that was under way is done again")
def test_a_self_test_without_a_read_under_way_goes_on_with_the_next(
    driver: Driver, testing: tuple[SelfTest, list[Job]]
) -> None:
    self_test, jobs = testing
    self_test.resume()
    assert jobs == [], "there is none"
    driver.admin.do(AdminOpcode.DEVICE_SELF_TEST, nsid=1, dwords=(1,))
    assert [job.arguments[1] for job in jobs] == [0]
    self_test.resume()
    assert [job.arguments[1] for job in jobs] == [0, 0], "the same again"
    self_test._reading = None
    self_test.resume()
    assert [job.arguments[1] for job in jobs][2:] == [(16384 - 1) // 15 * 512]


@pytest.mark.parametrize("kind", [Kind.SHORT, Kind.EXTENDED])
def test_only_a_short_self_test_ends_with_a_reset(
    driver: Driver, testing: tuple[SelfTest, list[Job]], kind: Kind
) -> None:
    self_test, _ = testing
    driver.admin.do(AdminOpcode.DEVICE_SELF_TEST, nsid=1, dwords=(kind,))
    self_test.controller_reset()
    assert self_test._kind == (Kind.NONE if kind is Kind.SHORT else kind)


def test_a_result_without_a_namespace_names_none(driver: Driver, testing: tuple[SelfTest, list[Job]]) -> None:
    results = guest_of(driver).device.controller.store.record.self_tests
    for nsid, valid in ((0, 0), (1, 1), (0xFFFF_FFFF, 1)):
        driver.admin.do(AdminOpcode.DEVICE_SELF_TEST, nsid=nsid, dwords=(2,))
        driver.admin.do(AdminOpcode.DEVICE_SELF_TEST, dwords=(0xF,))
        result = 2 << 4 if nsid == 0 else 2 << 4 | 1  # it ends at once: there is nothing to read
        assert results[-1] == struct.pack("<BBBxQIQBBxx", result, 0, valid, 0, nsid if valid else 0, 0, 0, 0)


def test_doorbells_that_the_client_does_not_share_are_read_each_time(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = guest_of(driver)
    shadow = guest.device.controller.queues.shadow
    monkeypatch.setattr(type(guest.device.dma), "shared_map", lambda *_, **__: None)
    shadow.configure(0x4000, 0x5000)
    struct.pack_into("<4I", guest.memory, 0x4000, 1, 2, 3, 0x0102_0304)
    assert (shadow.tail(0), shadow.head(0), shadow.tail(1), shadow.head(1)) == (1, 2, 3, 0x0102_0304)
    assert shadow._words is None


@pytest.mark.unsaved("counts turns, and a restored controller works off its queues at once")
def test_a_turn_ends_where_half_of_what_may_be_done_at_once_is_done(driver: Driver) -> None:
    guest = guest_of(driver)
    queues = driver.create_queues()
    guest.memory[0x4000:0x6000] = bytes(0x2000)
    guest.device.controller.queues.shadow.configure(0x4000, 0x5000)
    page = driver.allocate(PAGE * 32)
    listed = driver.allocate(PAGE)
    struct.pack_into("<32Q", driver.memory, listed, *range(page + PAGE, page + 33 * PAGE, PAGE))
    turns: list[int] = []
    engine = guest.device.controller.engine
    more = engine._queues._more_in_shadow

    def look(sq: Any) -> bool:
        turns.append(engine._io.budget)
        return more(sq)

    engine._queues._more_in_shadow = look  # type: ignore[method-assign]
    for number in range(9):
        queues.put(IoOpcode.READ, nsid=1, prp1=page, prp2=listed, dwords=(number, 0, 255))
    struct.pack_into("<I", guest.memory, 0x4000 + 8, 9)
    queues.ring()
    assert len(queues.reap()) == 9
    assert turns == [AT_ONCE], "1,152 KiB are done: the host's shadow is looked at in the next turn"
    guest.advance()
    assert turns == [AT_ONCE] * 2
