"""nvme's log pages and the data of its events byte by byte, where test_nvme_identity.py has Identify."""

from __future__ import annotations

import struct

import pytest

from bellwire.bundled.nvme.command import Command
from bellwire.bundled.nvme.events import Event, Events, EventState
from bellwire.bundled.nvme.features import WORDS, Features
from bellwire.bundled.nvme.history import Happening, History, reset_event
from bellwire.bundled.nvme.identify import ControllerIdentity
from bellwire.bundled.nvme.logs import ERRORS_SIZE, Counters, Logs
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.bundled.nvme.store import Record
from bellwire.bundled.nvme.telemetry import Telemetry
from bellwire.bundled.nvme.timestamp import Timestamp, TimestampState

WHO = ControllerIdentity(0x1B36, 0x1AF4, "S1")


def command(*dwords: int, cid: int = 0, nsid: int = 0) -> Command:
    ten = [*dwords, 0, 0, 0, 0, 0, 0][:6]
    return Command(0, 0, cid, nsid, 0, 0, 0, 0, *ten)


READ, ESTABLISH, RELEASE = command(0), command(1 << 8), command(2 << 8)


# -- persistent events


def test_an_event_has_its_header_and_its_data() -> None:
    record, changes = Record(), []
    log = History(record, WHO, lambda: 0x0102_0304_0506, lambda: changes.append(len(record.events)))
    log.add(Happening.TIMESTAMP, b"data")
    log.add(Happening.RESET, b"")
    header = bytes.fromhex("03 01 15 00 0100 0605040302010000") + bytes(6) + bytes.fromhex("0000 0400")
    assert record.events[0] == header + b"data"
    assert record.events[1] == b"\x04" + header[1:22] + bytes(2)
    assert changes == [1, 2]


def test_the_event_log_has_every_field_of_its_header() -> None:
    log = History(Record(power_cycles=7), WHO, lambda: 0x0102_0304_0506, lambda: None)
    log.add(Happening.TIMESTAMP, b"old")
    log.add(Happening.RESET, b"new")
    page = log.page(ESTABLISH)
    expected = bytearray(512)
    expected[0] = 0x0D
    expected[4:16] = struct.pack("<IQ", 2, 512 + 2 * 27)
    expected[16] = 1
    expected[18:20] = (492).to_bytes(2, "little")
    expected[20:28] = (0x0102_0304_0506).to_bytes(8, "little")
    expected[44:52] = (7).to_bytes(8, "little")
    expected[52:56] = struct.pack("<HH", 0x1B36, 0x1B36)
    expected[56:76] = b"S1".ljust(20)
    expected[76:116] = b"Bellwire NVMe".ljust(40)
    expected[116:372] = WHO.nqn.ljust(256, b"\0")
    expected[480:482] = (0b111_1111_1010).to_bytes(2, "little")
    assert page[:512] == expected
    assert (page[512], page[536:539], page[539], page[563:]) == (4, b"new", 3, b"old")


def test_an_event_that_fits_exactly_pushes_none_out() -> None:
    record = Record()
    log = History(record, WHO, lambda: 0, lambda: None)
    for number in range(1017):  # of 64 bytes each; there is room for 65536 - 512 bytes of them
        log.add(Happening.TIMESTAMP, number.to_bytes(40, "little"))
        assert len(record.events) == min(number + 1, 1016)
    assert record.events[0][24:] == (1).to_bytes(40, "little")


def test_a_context_ends_with_its_release_and_with_a_reset() -> None:
    log = History(Record(), WHO, lambda: 0, lambda: None)
    for end in (lambda: log.page(RELEASE), log.release):
        assert log.page(ESTABLISH) == log.page(READ)
        with pytest.raises(CommandError, match="COMMAND_SEQUENCE_ERROR"):
            log.page(ESTABLISH)
        end()
        with pytest.raises(CommandError, match="COMMAND_SEQUENCE_ERROR"):
            log.page(READ)
    assert log.page(RELEASE) == b""
    with pytest.raises(CommandError, match="INVALID_FIELD"):
        log.page(command(3 << 8))
    assert log.page(command(1 << 8 | 1 << 12))  # the bits above the field are others


def test_a_reset_event_has_the_firmware_and_one_controller() -> None:
    expected = b"1       " + bytes.fromhex("0100 00 00") + bytes(12) + struct.pack("<IQQ", 2, 77, 77)
    assert reset_event((1 << 32) + 2, 77) == expected


# -- asynchronous events


@pytest.fixture
def events() -> Events:
    return Events(EventState())


def test_requests_are_answered_in_order_and_one_can_be_withdrawn(events: Events) -> None:
    for cid in (10, 11, 12, 13):
        events.request(cid)
    with pytest.raises(CommandError, match="TOO_MANY_EVENT_REQUESTS"):
        events.request(14)
    assert events.withdraw(11) is True
    assert events.withdraw(11) is False
    assert events.deliver() is None
    for event, cid in ((Event.TEMPERATURE, 10), (Event.SANITIZE_COMPLETED, 12), (Event.INVALID_DOORBELL_VALUE, 13)):
        events.happened(event)
        assert events.deliver() == (event, cid)
    assert events.withdraw(13) is False


def test_news_of_a_log_page_is_kept_once_until_it_is_read(events: Events) -> None:
    events.happened(Event.INVALID_DOORBELL_REGISTER)
    events.happened(Event.INVALID_DOORBELL_VALUE)
    for cid in (1, 2, 3):
        events.request(cid)
    assert events.deliver() == (Event.INVALID_DOORBELL_REGISTER, 1)
    assert events.deliver() is None
    events.happened(Event.INVALID_DOORBELL_VALUE)
    assert events.deliver() is None
    events.seen(0x02)
    events.seen(0x77)
    events.happened(Event.INVALID_DOORBELL_VALUE)
    assert events.deliver() is None
    events.seen(0x01)
    events.happened(Event.INVALID_DOORBELL_VALUE)
    assert events.deliver() == (Event.INVALID_DOORBELL_VALUE, 2)


def test_events_of_one_type_wait_for_each_other(events: Events) -> None:
    for cid in (1, 2):
        events.request(cid)
    events.happened(Event.TELEMETRY_CHANGED)
    events.happened(Event.NAMESPACE_ATTRIBUTE_CHANGED)
    assert events.deliver() == (Event.NAMESPACE_ATTRIBUTE_CHANGED, 1)
    assert events.deliver() is None
    events.seen(0x04)
    assert events.deliver() == (Event.TELEMETRY_CHANGED, 2)


def test_changed_namespaces_are_listed_until_the_list_is_read(events: Events) -> None:
    for nsid in (256, 32, 1, 31, 1):
        events.namespace_changed(nsid)
    events.seen(0x02)
    assert events.changed_page(READ) == struct.pack("<4I", 1, 31, 32, 256).ljust(4096, b"\0")
    events.seen(0x04)
    assert events.changed_page(READ) == bytes(4096)


def test_a_reset_forgets_requests_and_news(events: Events) -> None:
    events.request(1)
    events.happened(Event.TEMPERATURE)
    events.namespace_changed(1)
    events.reset()
    assert (events.deliver(), events.withdraw(1)) == (None, False)
    assert events.changed_page(READ) == bytes(4096)


# -- telemetry


def test_telemetry_has_every_field_of_its_header() -> None:
    record = Record()
    telemetry = Telemetry(record, lambda: b"t" * 513)
    header = bytearray(512)
    header[0], header[5:8] = 7, bytes((0x57, 0x42, 0x02))
    assert telemetry.host_page(command(7)) == header
    header[8:14] = struct.pack("<3H", 2, 2, 2)
    assert telemetry.host_page(command(1 << 8 | 7)) == header + (b"t" * 513).ljust(1024, b"\0")
    telemetry.failed("why")
    header[0], header[382], header[383], header[384:387] = 8, 1, 1, b"why"
    assert telemetry.controller_page(command(8)) == header + (b"t" * 513).ljust(1024, b"\0")
    telemetry.seen()
    assert telemetry.controller_page(command(8))[382:384] == bytes((0, 1))


def test_the_generation_of_telemetry_goes_round_and_is_never_0_again() -> None:
    record = Record()
    telemetry = Telemetry(record, lambda: b"")
    found = []
    for _ in range(256):
        telemetry.failed("")
        telemetry.failed("again")
        telemetry.seen()
        found.append(record.telemetry_generation)
    assert found == [*range(1, 256), 1]
    assert record.telemetry == bytes(128)


def test_telemetry_is_of_256_kib_at_most() -> None:
    record = Record()
    telemetry = Telemetry(record, lambda: b"t" * (257 << 10))
    telemetry.failed("x" * 200)
    assert record.telemetry == b"x" * 127 + b"\0" + b"t" * (256 << 10)
    assert (
        len(telemetry.host_page(command(1 << 8 | 7))) == len(telemetry.controller_page(command(8))) == 257 * 1024 - 512
    )


@pytest.mark.parametrize(("low", "high"), [(511, 0), (513, 0), (1, 1), (256, 1 << 31)])
def test_telemetry_is_read_from_the_start_of_a_block(low: int, high: int) -> None:
    telemetry = Telemetry(Record(), lambda: b"")
    for page in (telemetry.host_page, telemetry.controller_page):
        assert len(page(command(0, 0, 512, high))) == 512
        with pytest.raises(CommandError, match="INVALID_FIELD") as refused:
            page(command(0, 0, low, high))
        assert refused.value.parameter == 48


# -- the clock


def test_the_clock_says_where_its_time_comes_from() -> None:
    clock = 1_000
    timer = Timestamp(TimestampState(), lambda: clock * 1_000_000)
    clock = 1_250
    assert timer.get() == (250).to_bytes(6, "little") + bytes(2)
    assert timer.set((1 << 40).to_bytes(6, "little") + b"\xff\xff") == struct.pack("<QQ", 250, 250)
    clock = 1_300
    assert timer.get() == ((1 << 40) + 50).to_bytes(6, "little") + bytes((2, 0))
    assert timer.set(b"\xff" * 8) == struct.pack("<QQ", (1 << 40) + 50, 300)
    assert timer.now == (1 << 48) - 1
    clock = 1_302
    assert timer.now == 1
    clock = 900  # of another machine, after a restore
    assert timer.now == (1 << 48) - 1
    assert timer.set(bytes(8)) == struct.pack("<QQ", (1 << 48) - 1, 0)


def test_a_clock_that_was_not_set_counts_from_the_last_power_on() -> None:
    clock = 1_000
    timer = Timestamp(TimestampState(), lambda: clock * 1_000_000)
    clock = 2_000
    timer.power_on()
    clock = 2_001
    assert timer.now == 1


# -- the other logs


@pytest.fixture
def logs() -> Logs:
    features = Features(memoryview(bytearray(4 * WORDS)).cast("I"), 4, 32)
    features.reset()
    return Logs(Counters(), memoryview(bytearray(ERRORS_SIZE)), features)


def test_the_health_log_has_every_field(logs: Logs) -> None:
    logs.power_cycles = 6
    for name, value in {
        "reads": 3, "writes": 4, "sectors_read": 1000, "sectors_written": 1001, "media": 7, "errors": 8,
    }.items():  # fmt: skip
        setattr(logs.counters, name, value)
    expected = bytearray(512)
    expected[1:3] = (25 + 273).to_bytes(2, "little")
    expected[3], expected[4] = 100, 10
    for at, value in {32: 1, 48: 2, 64: 3, 80: 4, 112: 6, 160: 7, 176: 8}.items():
        expected[at] = value
    assert logs.health_page() == expected


def test_a_controller_that_has_just_been_made_has_had_power_once(logs: Logs) -> None:
    assert logs.health_page()[112:120] == (1).to_bytes(8, "little")
    assert logs.counters.by_name() == dict.fromkeys(
        ("reads", "writes", "sectors_read", "sectors_written", "media", "errors"), 0
    )


def test_the_firmware_log_has_one_slot_which_is_in_use(logs: Logs) -> None:
    page = logs.get(command(127 << 16 | 3))
    assert page == (bytes((1, 0, 0, 0, 0, 0, 0, 0)) + b"1       ").ljust(512, b"\0")


def test_the_error_log_has_every_field_and_the_newest_entry_first(logs: Logs) -> None:
    logs.failed(0, command(1, 2, cid=0x1234, nsid=9), CommandError(Status.INVALID_FIELD, 40))
    logs.failed(3, command(0x89AB_CDEF, 0x0123_4567, cid=5, nsid=1), CommandError(Status.WRITE_FAULT))
    page = logs.get(command(0x0FFF << 16 | 1))
    first = struct.pack("<QHHHHQIBB2xQ", 1, 0, 0x1234, 0x8004, 40, 0, 9, 0, 0, 0)
    second = struct.pack("<QHHHHQIBB2xQ", 2, 3, 5, 0x8500, 0xFFFF, 0x0123_4567_89AB_CDEF, 1, 0, 0, 0)
    assert page[:40] == second[:40]
    assert page == (second.ljust(64, b"\0") + first.ljust(64, b"\0")).ljust(0x4000, b"\0")


def test_the_error_log_has_64_entries(logs: Logs) -> None:
    for number in range(70):
        logs.failed(0, command(cid=number), CommandError(Status.INVALID_FIELD))
    page = logs.get(command(0x0FFF << 16 | 1))
    counts = [struct.unpack_from("<Q", page, at)[0] for at in range(0, len(page), 64)]
    assert counts[:64] == list(range(70, 6, -1))
    assert not any(counts[64:])


def test_a_log_is_read_from_a_dword_up_to_its_end(logs: Logs) -> None:
    whole = logs.get(command(127 << 16 | 2))
    assert len(whole) == 512
    assert logs.get(command(127 << 16 | 2, 0, 4)) == whole[4:] + bytes(4)
    assert logs.get(command(0 << 16 | 2, 1)) == whole.ljust((1 << 18) + 4, b"\0")
    assert logs.get(command(2, 0, 512)) == bytes(4)
    for offset in (1, 2, 513, 514, 516, 1 << 32):
        with pytest.raises(CommandError, match="INVALID_FIELD") as refused:
            logs.get(command(2, 0, offset & 0xFFFF_FFFF, offset >> 32))
        assert refused.value.parameter == 48
