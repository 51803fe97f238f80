"""What nvme saves, and when: before a command completes, soon after it, or not at all."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.controller import Controller
from bellwire.bundled.nvme.keeper import Keeper
from bellwire.bundled.nvme.status import Status
from bellwire.testing import Guest
from nvme.driver import PAGE, Driver, TestMachine

counts = pytest.mark.unsaved("counts how often the store is written, and a restore writes it too")

RETAIN = 1 << 15


def guest_of(driver: Driver) -> Guest[Nvme]:
    assert isinstance(driver.machine, TestMachine)
    return driver.machine.guest


def controller_of(driver: Driver) -> Controller:
    return guest_of(driver).device.controller


@pytest.fixture
def saves(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often the store was to be saved at once or soon, as words."""
    seen: list[str] = []
    monkeypatch.setattr(Keeper, "save", lambda _: seen.append("now"))
    monkeypatch.setattr(Keeper, "save_soon", lambda _: seen.append("soon"))
    return seen


def run_out(driver: Driver) -> None:
    for _ in range(2000):
        if not controller_of(driver).engine._loose:
            return
        driver.machine.step()
    raise AssertionError("a background job does not end")


@counts
def test_telemetry_that_was_read_is_saved_as_such(driver: Driver, saves: list[str]) -> None:
    record = controller_of(driver).store.record
    page = driver.allocate(PAGE)
    for log, flags, saved, news in ((8, RETAIN, [], True), (7, 0, [], True), (2, 0, [], True), (8, 0, ["soon"], False)):
        record.telemetry_news = True
        saves.clear()
        assert driver.admin.do(AdminOpcode.GET_LOG_PAGE, prp1=page, dwords=(127 << 16 | flags | log,)).status == 0
        assert (saves, record.telemetry_news) == (saved, news)


@counts
@pytest.mark.parametrize(
    ("status", "failure", "action", "code", "left", "saved"),
    [
        (3, True, 8, Status.SUCCESS, False, ["soon"]),
        (3, True, 0, Status.SANITIZE_FAILED, True, []),
        (1, False, 0, Status.SUCCESS, False, []),
        (2, False, 8, Status.SANITIZE_IN_PROGRESS, False, []),
    ],
)
def test_the_end_of_failure_mode_is_saved(
    driver: Driver,
    saves: list[str],
    status: int,
    failure: bool,
    action: int,
    code: Status,
    left: bool,
    saved: list[str],
) -> None:
    controller = controller_of(driver)
    state = controller.store.record.sanitize
    state.status, state.failure_mode, state.action = status, failure, action
    closed = Status.SANITIZE_FAILED if failure else None
    controller.namespaces.close_for(closed)
    assert driver.admin.do(AdminOpcode.SANITIZE, dwords=(1,)).code == code
    assert (state.failure_mode, controller.namespaces.closed, saves) == (left, closed if left else None, saved)


def test_a_failure_mode_that_was_left_does_not_come_back(driver: Driver) -> None:
    controller = controller_of(driver)
    state = controller.store.record.sanitize
    state.status, state.failure_mode = 3, True
    controller.sanitize.resume()
    assert controller.namespaces.closed == Status.SANITIZE_FAILED
    controller.namespaces.close_for(None)
    state.failure_mode = False
    controller.sanitize.resume()
    assert controller.namespaces.closed is None


@counts
@pytest.mark.parametrize(
    ("opcode", "fields", "saved"),
    [
        (AdminOpcode.FORMAT_NVM, {"nsid": 1}, ["soon", "soon", "now"]),  # two events, then the end
        (AdminOpcode.SANITIZE, {"dwords": (2,)}, ["now", "soon", "soon", "soon"]),
        (AdminOpcode.NAMESPACE_MANAGEMENT, {"nsid": 2, "dwords": (1,)}, ["soon", "now"]),
        (AdminOpcode.DEVICE_SELF_TEST, {"nsid": 1, "dwords": (1,)}, ["soon"]),
        (AdminOpcode.IDENTIFY, {"dwords": (1,)}, []),
        (AdminOpcode.SET_FEATURES, {"dwords": (6, 1)}, []),
        (AdminOpcode.SET_FEATURES, {"dwords": (0x0E,)}, ["soon"]),
    ],
)
def test_what_a_command_changes_is_saved(
    driver: Driver, saves: list[str], opcode: AdminOpcode, fields: dict[str, Any], saved: list[str]
) -> None:
    assert driver.admin.do(opcode, prp1=driver.allocate(PAGE), **fields).status == 0
    run_out(driver)
    assert saves == saved


@counts
def test_an_attachment_is_saved_before_it_completes_or_is_none(driver: Driver, saves: list[str]) -> None:
    page = driver.allocate(PAGE)
    struct.pack_into("<HH", driver.memory, page, 1, 1)
    for detach in (1, 0):
        saves.clear()
        fields: dict[str, Any] = {"nsid": 2, "prp1": page, "dwords": (detach,)}
        assert driver.admin.do(AdminOpcode.NAMESPACE_ATTACHMENT, **fields).status == 0
        assert saves == ["now"]
        assert controller_of(driver).namespaces.existing(2).attached is not bool(detach)


@pytest.mark.parametrize("attached", [True, False])
def test_an_attachment_that_cannot_be_saved_is_none(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, attached: bool
) -> None:
    namespaces = controller_of(driver).namespaces
    space = namespaces.existing(2)
    space.attached = attached
    namespaces.refresh()

    def fail(_: Keeper) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Keeper, "save", fail)
    page = driver.allocate(PAGE)
    struct.pack_into("<HH", driver.memory, page, 1, 1)
    done = driver.admin.do(AdminOpcode.NAMESPACE_ATTACHMENT, nsid=2, prp1=page, dwords=(int(attached),))
    assert done.code == Status.CAPACITY_EXCEEDED
    assert (space.attached, 2 in namespaces.open) == (attached, attached)


def test_what_a_guest_breaks_and_what_a_disk_does_is_saved_soon(driver: Driver, saves: list[str]) -> None:
    controller = controller_of(driver)
    controller.media_failed(OSError("gone"))
    assert saves == ["soon"]
    saves.clear()
    controller.resize(16 << 20, shrink=False)
    assert saves == ["soon"]
    saves.clear()
    controller.break_down("no memory")
    assert saves == ["soon", "soon"], "the event, and the telemetry"


@counts
def test_blocks_marked_as_uncorrectable_are_saved_before_that_completes(driver: Driver, saves: list[str]) -> None:
    queues = driver.create_queues()
    assert queues.do(IoOpcode.WRITE_UNCORRECTABLE, nsid=1, dwords=(8,)).status == 0
    assert saves == ["now"]
