"""nvme's logs and clock: self-tests, persistent events, telemetry, commands' effects, the timestamp."""

from __future__ import annotations

import errno
import json
import os
import random
import struct
from typing import Any

import pytest

from bellwire.bundled.nvme import history, timestamp
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.history import HEADER_SIZE, Happening
from bellwire.bundled.nvme.status import Status
from bellwire.storage import Disk
from nvme.driver import PAGE, Done, Driver, Queues, TestMachine, transfer

SELF_TEST, GET_LOG = AdminOpcode.DEVICE_SELF_TEST, AdminOpcode.GET_LOG_PAGE
EVERY = 0xFFFF_FFFF


def get_log(driver: Driver, number: int, *, specific: int = 0, size: int = 512, offset: int = 0) -> tuple[Done, bytes]:
    """A log page with its log specific field, which is in dword 10."""
    page = driver.allocate(PAGE)
    dwords = ((size // 4 - 1) << 16 | specific << 8 | number, 0, offset & 0xFFFF_FFFF, offset >> 32)
    done = driver.admin.do(GET_LOG, nsid=EVERY, prp1=page, dwords=dwords)
    return done, bytes(driver.memory[page : page + size])


# -- self-tests


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


def test_an_extended_self_test_reads_every_byte_and_says_how_far_it_is(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(driver.machine, TestMachine)
    self_test = driver.machine.guest.device.controller.self_test
    seen: list[tuple[int, int, int]] = []
    monkeypatch.setattr(
        Disk, "read", lambda _, buffers, offset: seen.append((offset, len(buffers[0]), self_test.page(None)[1]))
    )
    driver.admin.do(SELF_TEST, nsid=2, dwords=(2,))
    finish_test(driver)
    assert seen == [(number << 20, 1 << 20, number * 100 // 8) for number in range(8)]
    assert driver.log(6, 564)[:2] == bytes(2)


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


def test_a_format_of_another_namespace_does_not_wait_for_the_end_of_a_self_test(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    read, empty = Disk.read, Disk.empty
    monkeypatch.setattr(Disk, "read", lambda *what: (done.append("read"), read(*what)))
    monkeypatch.setattr(Disk, "empty", lambda *what: (done.append("format"), empty(*what)))
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
    monkeypatch.setattr(timestamp, "_clock", lambda: clock)
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


def test_a_timestamp_outside_memory_is_an_error(driver: Driver) -> None:
    for opcode in (AdminOpcode.GET_FEATURES, AdminOpcode.SET_FEATURES):
        assert driver.admin.do(opcode, prp1=1 << 40, dwords=(0x0E,)).code == Status.DATA_TRANSFER_ERROR


# -- commands


def test_the_effects_log_has_every_command_that_is_taken_and_no_other(driver: Driver) -> None:
    log = driver.log(5, 2048)
    supported = [bool(entry & 1) for entry in struct.unpack("<512I", log)]
    queues = driver.create_queues()
    for opcode in range(256):
        known = queues.do(opcode, nsid=1, dwords=(1 << 31,), prp1=1 << 40).code != Status.INVALID_OPCODE
        assert known == supported[256 + opcode], f"I/O command {opcode:#x}"
    for opcode in set(range(256)) - {AdminOpcode.ASYNC_EVENT_REQUEST}:
        known = driver.admin.do(opcode, flags=1).code != Status.INVALID_OPCODE
        assert known == supported[opcode], f"admin command {opcode:#x}"


@pytest.mark.parametrize(
    ("field", "offset", "commands"),
    [
        ("ONCS", 520, {0: IoOpcode.COMPARE, 1: IoOpcode.WRITE_UNCORRECTABLE, 2: IoOpcode.DATASET_MANAGEMENT,
                       3: IoOpcode.WRITE_ZEROES, 7: IoOpcode.VERIFY, 8: IoOpcode.COPY}),
        ("OACS", 256, {1: AdminOpcode.FORMAT_NVM, 3: AdminOpcode.NAMESPACE_MANAGEMENT, 4: AdminOpcode.DEVICE_SELF_TEST,
                       8: AdminOpcode.DOORBELL_BUFFER_CONFIG}),
    ],
)  # fmt: skip
def test_identify_names_the_optional_commands_that_the_effects_log_has(
    driver: Driver, field: str, offset: int, commands: dict[int, int]
) -> None:
    (bits,) = struct.unpack_from("<H", driver.identify(0x01), offset)
    log = struct.unpack("<512I", driver.log(5, 2048))
    for bit, opcode in commands.items():
        assert bits >> bit & 1 == log[(256 if field == "ONCS" else 0) + opcode] & 1 == 1


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [
        (78, 2, 1),  # CNTLID
        (92, 4, 1 << 8),  # OAES: namespace attribute notices
        (256, 2, 0x11A),  # OACS
        (258, 1, 3),  # ACL, counted from zero
        (259, 1, 3),  # AERL
        (261, 1, 0x1E),  # LPA
        (316, 2, 2),  # EDSTT, minutes
        (318, 1, 1),  # DSTO: one self-test at a time
        (328, 4, 0x6000_0002),  # SANICAP: block erase, no-deallocate inhibited, media not modified afterwards
        (352, 4, 1),  # PELS, 64 KiB
        (520, 2, 0x1DF),  # ONCS
        (524, 1, 0),  # FNA: formats and erases are of one namespace
        (534, 2, 1),  # OCFS
    ],
)
def test_identify_controller_says_what_it_can_do(driver: Driver, offset: int, size: int, value: int) -> None:
    assert int.from_bytes(driver.identify(0x01)[offset : offset + size], "little") == value


def test_the_effects_are_those_that_linux_freezes_io_and_rescans_for(driver: Driver) -> None:
    log = struct.unpack("<512I", driver.log(5, 2048))
    assert [log[opcode] for opcode in (0x80, 0x84, 0x0D, 0x15, 0x06)] == [0x1_0007, 0x2_0003, 0xB, 0x9, 1]
    assert {log[256 + opcode] for opcode in (0x01, 0x04, 0x08, 0x09, 0x19)} == {3}
    assert {log[256 + opcode] for opcode in (0x00, 0x02, 0x05, 0x0C)} == {1}


def test_random_log_requests_end_with_a_status(driver: Driver) -> None:
    chance = random.Random(11)
    for _ in range(300):
        number = chance.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 0x0D, 0x81, chance.randrange(256)])
        done: Any = driver.admin.do(
            GET_LOG,
            nsid=chance.choice([0, 1, EVERY]),
            prp1=chance.choice([0x2000, 0x2004, 1 << 40]),
            prp2=chance.choice([0, 0x3000, 0x3004]),
            dwords=(chance.getrandbits(16) << 16 | chance.randrange(256) << 8 | number, chance.choice([0, 0, 1]),
                    chance.choice([0, 4, 512, chance.getrandbits(32)]), chance.choice([0, chance.getrandbits(32)])),
        )  # fmt: skip
        assert done.code in set(Status)
    assert driver.csts == 1
