"""nvme's persistent events, telemetry and clock."""

from __future__ import annotations

import errno
import json
import os
import struct

import pytest

from bellwire.bundled.nvme import history
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.history import HEADER_SIZE, Happening, History
from bellwire.bundled.nvme.identify import ControllerIdentity
from bellwire.bundled.nvme.status import Status
from bellwire.bundled.nvme.store import Record
from bellwire.model.outside import Outside
from nvme.driver import PAGE, Done, Driver, Queues, TestMachine, transfer

pytestmark = pytest.mark.same_device("the tests hold the history, and the log that is read piece by piece")

GET_LOG = AdminOpcode.GET_LOG_PAGE
EVERY = 0xFFFF_FFFF


def get_log(driver: Driver, number: int, *, specific: int = 0, size: int = 512, offset: int = 0) -> tuple[Done, bytes]:
    """A log page with its log specific field, which is in dword 10."""
    page = driver.allocate(PAGE)
    dwords = ((size // 4 - 1) << 16 | specific << 8 | number, 0, offset & 0xFFFF_FFFF, offset >> 32)
    done = driver.admin.do(GET_LOG, nsid=EVERY, prp1=page, dwords=dwords)
    return done, bytes(driver.memory[page : page + size])


# -- persistent events


def events(driver: Driver) -> list[tuple[int, bytes]]:
    """Types and data, the newest first; the context is established and released."""
    done, header = get_log(driver, 0x0D, specific=1)
    assert done.status == 0
    count, length = struct.unpack_from("<IQ", header, 4)
    log = header
    while len(log) < length:
        size = min(PAGE, length - len(log) + 3 & ~3)
        log += get_log(driver, 0x0D, size=size, offset=len(log))[1]
    get_log(driver, 0x0D, specific=2)
    found, at = [], HEADER_SIZE
    for _ in range(count):
        assert log[at + 2] == 21
        extra, size = struct.unpack_from("<HH", log, at + 20)
        found.append((log[at], log[at + 24 + extra : at + 24 + size]))
        at += 24 + size
    return found


@pytest.fixture
def quiet(on_image: Driver) -> Driver:
    """One whose log has been emptied."""
    assert isinstance(on_image.machine, TestMachine)
    on_image.machine.guest.device.controller.store.record.events.clear()
    return on_image


def test_the_log_begins_with_the_health_at_power_on_and_the_reset(driver: Driver) -> None:
    assert [(kind, len(data)) for kind, data in events(driver)[-2:]] == [(4, 44), (1, 512)]


def test_the_header_says_who_it_is_and_which_events_there_are(driver: Driver) -> None:
    header = get_log(driver, 0x0D, specific=1)[1]
    assert header[0] == 0x0D
    assert struct.unpack_from("<H", header, 18) == (492,)
    assert header[56:76] == b"TEST0001".ljust(20)
    supported = int.from_bytes(header[480:512], "little")
    assert supported == sum(1 << kind for kind in Happening)
    assert struct.unpack_from("<I", driver.identify(0x01), 352) == (1,)


def test_what_happens_to_namespaces_is_recorded(quiet: Driver) -> None:
    quiet.admin.do(AdminOpcode.FORMAT_NVM, nsid=1, dwords=(1,))
    quiet.admin.do(AdminOpcode.NAMESPACE_MANAGEMENT, nsid=1, dwords=(1,))
    (deleted, change), (ended, end), (started, start) = events(quiet)
    assert (started, ended, deleted) == (7, 8, 6)
    assert struct.unpack("<IB3xI", start) == (1, 0, 1)
    assert struct.unpack("<IBBHI", end) == (1, 0, 0, 0, 0)
    assert struct.unpack("<I4xQQ8xBBBxIHHI", change) == (1, 256, 256, 1, 0, 0, 0, 0, 0, 1)


def test_a_sanitize_a_timestamp_and_a_breakdown_are_recorded(quiet: Driver) -> None:
    page = quiet.allocate(PAGE)
    quiet.admin.do(AdminOpcode.SET_FEATURES, prp1=page, dwords=(0x0E,))
    quiet.admin.do(AdminOpcode.SANITIZE, dwords=(2,))
    for _ in range(1000):
        if struct.unpack_from("<H", quiet.log(0x81), 2) != (2,):
            break
        quiet.machine.step()
    admin, quiet.admin = quiet.admin, Queues(quiet, 0, 32)
    assert admin is not quiet.admin
    quiet.disable()
    quiet.admin.sq = 1 << 40
    quiet.enable()
    quiet.machine.write(0x1000, 1, 4)
    assert quiet.csts & 2
    quiet.admin = Queues(quiet, 0, 32)
    quiet.disable()
    quiet.enable()
    kinds = [kind for kind, _ in events(quiet)]
    assert kinds == [4, 5, 4, 10, 9, 3]


def test_the_log_is_read_as_it_was_when_its_context_was_established(driver: Driver) -> None:
    assert get_log(driver, 0x0D)[0].code == Status.COMMAND_SEQUENCE_ERROR
    before = get_log(driver, 0x0D, specific=1)[1]
    assert get_log(driver, 0x0D, specific=1)[0].code == Status.COMMAND_SEQUENCE_ERROR
    driver.admin.do(AdminOpcode.FORMAT_NVM, nsid=1)
    assert get_log(driver, 0x0D)[1] == before
    assert get_log(driver, 0x0D, specific=2)[0].status == 0
    assert get_log(driver, 0x0D)[0].code == Status.COMMAND_SEQUENCE_ERROR
    assert get_log(driver, 0x0D, specific=3)[0].code == Status.INVALID_FIELD
    assert get_log(driver, 0x0D, specific=1)[1] != before


def test_old_events_make_room(quiet: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_BYTES", 3 * 36)  # a start and an end of a format are 36 bytes and 36 bytes
    for _ in range(3):
        quiet.admin.do(AdminOpcode.FORMAT_NVM, nsid=1)
    assert [kind for kind, _ in events(quiet)] == [8, 7, 8]


def test_the_log_is_64_kib_at_most(driver: Driver) -> None:
    assert isinstance(driver.machine, TestMachine)
    log = driver.machine.guest.device.controller.history
    for number in range(2000):
        log.add(Happening.TIMESTAMP, struct.pack("<QQ", number, 0))
    get_log(driver, 0x0D, specific=1)
    count, length = struct.unpack_from("<IQ", get_log(driver, 0x0D)[1], 4)
    assert (count, length) == (1625, 512 + 1625 * 40)
    assert struct.unpack_from("<Q", get_log(driver, 0x0D, offset=512)[1], 24) == (1999,)


# -- telemetry


def test_host_initiated_telemetry_is_collected_when_the_host_says_so(driver: Driver) -> None:
    header = get_log(driver, 7)[1]
    assert struct.unpack_from("<HHH", header, 8) == (0, 0, 0)
    header = get_log(driver, 7, specific=1)[1]
    first, second, third = struct.unpack_from("<HHH", header, 8)
    assert first == second == third > 0
    data = get_log(driver, 7, size=512 * first, offset=512)[1]
    described = json.loads(data.rstrip(b"\0"))
    assert described["namespaces"][0] == {"id": 1, "blocks": 16384, "block": 512, "attached": True}
    driver.admin.do(AdminOpcode.FORMAT_NVM, nsid=1, dwords=(1,))
    assert get_log(driver, 7, size=512 * first, offset=512)[1] == data


@pytest.mark.parametrize("number", [7, 8])
@pytest.mark.parametrize("offset", [4, 256, 1 << 40])
def test_telemetry_is_read_in_blocks_that_there_are(driver: Driver, number: int, offset: int) -> None:
    assert get_log(driver, number, offset=offset)[0].code == Status.INVALID_FIELD


def fail_once(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    with monkeypatch.context() as failing:
        failing.setattr(os, "pwritev", fail)
        queues = driver.io.get(1) or driver.create_queues()
        assert transfer(queues, IoOpcode.WRITE, driver.allocate(PAGE), 0, 8).code == Status.WRITE_FAULT


def test_a_failing_disk_leaves_telemetry_until_the_host_has_read_it(
    on_image: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = on_image.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST)
    on_image.admin.do(AdminOpcode.SET_FEATURES, dwords=(0x0B, 1 << 10))
    fail_once(on_image, monkeypatch)
    assert on_image.admin.wait(request)[0].result == 0x0008_0202
    assert get_log(on_image, 7)[1][382:384] == bytes((1, 1))
    retained = get_log(on_image, 8, specific=0x80)[1]
    assert retained[382:384] == bytes((1, 1))
    assert retained[384:].startswith(b"[Errno 5] the disk is gone\0")
    fail_once(on_image, monkeypatch)
    header = get_log(on_image, 8)[1]
    assert header[382:384] == bytes((1, 1))
    blocks = struct.unpack_from("<H", header, 8)[0]
    assert json.loads(get_log(on_image, 8, size=512 * blocks, offset=512)[1].rstrip(b"\0"))["counters"]["media"] == 1
    assert get_log(on_image, 8)[1][382] == 0
    fail_once(on_image, monkeypatch)
    assert get_log(on_image, 8)[1][383] == 2


def test_a_long_reason_is_cut_to_its_field(driver: Driver) -> None:
    assert isinstance(driver.machine, TestMachine)
    driver.machine.guest.device.controller.telemetry.failed("x" * 500)
    header = get_log(driver, 8)[1]
    assert header[384:] == b"x" * 127 + b"\0"
    assert header[5:8] == bytes((0x57, 0x42, 0x02))


# -- the clock


def test_the_timestamp_counts_from_what_it_was_set_to(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 5_000
    monkeypatch.setattr(Outside, "clock", lambda _: clock * 1_000_000)
    page = driver.allocate(PAGE)

    def get(select: int = 0) -> tuple[int, int]:
        assert driver.admin.do(AdminOpcode.GET_FEATURES, prp1=page, dwords=(0x0E | select << 8,)).status == 0
        value = bytes(driver.memory[page : page + 8])
        return int.from_bytes(value[:6], "little"), value[6]

    driver.memory[page : page + 8] = (1_700_000_000_000).to_bytes(6, "little") + b"\xff\xff"
    assert driver.admin.do(AdminOpcode.SET_FEATURES, prp1=page, dwords=(0x0E,)).status == 0
    clock += 1234
    assert get() == (1_700_000_001_234, 2)
    assert get(select=1) == (0, 0)
    driver.disable()
    driver.admin = Queues(driver, 0, 32)
    driver.enable()
    assert get() == (1_700_000_001_234, 2)
    assert driver.identify(0x01)[520] & 1 << 6


def test_the_timestamp_of_a_clock_that_was_not_set_counts_from_power_on(driver: Driver) -> None:
    page = driver.allocate(PAGE)
    assert driver.admin.do(AdminOpcode.GET_FEATURES, prp1=page, dwords=(0x0E,)).status == 0
    assert int.from_bytes(driver.memory[page : page + 6], "little") < 1_000_000
    assert driver.memory[page + 6] == 0


@pytest.mark.parametrize("reserved", [0, 0x7FFF_F800], ids=["zeros", "ones"])
@pytest.mark.parametrize(("select", "result", "data"), [(0, 0, "now"), (1, 0, "zeros"), (2, 0, "zeros"), (3, 4, "old")])
def test_the_default_and_the_saved_timestamp_are_zero_and_capabilities_have_no_data(
    driver: Driver, select: int, result: int, data: str, reserved: int
) -> None:
    """§5.13, §5.21.1.14; bits 30:11 of the dword are reserved."""
    page = driver.allocate(PAGE)
    driver.memory[page : page + 8] = b"\x77" * 6 + bytes(2)
    assert driver.admin.do(AdminOpcode.SET_FEATURES, prp1=page, dwords=(0x0E,)).status == 0
    driver.memory[page : page + 8] = b"-" * 8
    done = driver.admin.do(AdminOpcode.GET_FEATURES, prp1=page, dwords=(0x0E | select << 8 | reserved,))
    assert (done.status, done.result) == (0, result)
    found = bytes(driver.memory[page : page + 8])
    assert {"zeros": found == bytes(8), "old": found == b"-" * 8, "now": found[2:7] == b"\x77" * 4 + b"\x02"}[data]


def test_a_timestamp_outside_memory_is_an_error(driver: Driver) -> None:
    for opcode in (AdminOpcode.GET_FEATURES, AdminOpcode.SET_FEATURES):
        assert driver.admin.do(opcode, prp1=1 << 40, dwords=(0x0E,)).code == Status.DATA_TRANSFER_ERROR


def test_the_persistent_event_log_grows_to_the_size_that_hosts_are_told_and_no_further() -> None:
    record = Record()
    log = History(record, ControllerIdentity(1, 2, "S1"), lambda: 0, lambda: None)
    for _ in range(200):
        log.add(Happening.TIMESTAMP, bytes(1000))
    size = HEADER_SIZE + sum(map(len, record.events))
    assert (history.SIZE_UNITS << 16) - 1024 < size <= 1 << 16


@pytest.mark.parametrize("scattered", [False, True], ids=["in a row", "here and there"])
@pytest.mark.parametrize(("opcode", "units", "commands"), [(IoOpcode.READ, 32, 64), (IoOpcode.WRITE, 48, 80)])
def test_data_is_counted_in_thousands_of_sectors_begun(
    driver: Driver, opcode: IoOpcode, units: int, commands: int, scattered: bool
) -> None:
    queues = driver.create_queues(1, 64)
    first, _, third = (driver.allocate(PAGE) for _ in range(3))
    prp2 = third if scattered else first + PAGE
    expected = []
    for number in range(1, 64):
        assert queues.do(opcode, nsid=1, prp1=first, prp2=prp2, dwords=(0, 0, 15)).status == 0
        if number in (62, 63):
            expected.append(-(-number * 16 // 1000))
            page = driver.log(0x02)
            assert struct.unpack_from("<Q", page, units) == (expected[-1],)
            assert struct.unpack_from("<Q", page, commands) == (number,)
            assert struct.unpack_from("<Q", page, 80 - units) == (0,)
    assert expected == [1, 2]
