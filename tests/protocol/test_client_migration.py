"""What the client sends to migrate a device and to log its writes, and which answers it accepts."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.backend import Wire
from vfio_user import (
    Capabilities,
    Client,
    Command,
    DeviceState,
    FeatureFlags,
    MigrationFlags,
    ProtocolError,
    RemoteError,
    Version,
)
from vfio_user.dialects import DIALECTS, Dialect
from vfio_user.dma_logging import LoggedRange, LoggingControl, LoggingReport, bitmap_size

GET, SET = int(FeatureFlags.GET), int(FeatureFlags.SET)
MakeServer = Callable[..., tuple[Client, Wire]]


def feature(flags: int, data: bytes) -> bytes:
    return struct.pack("<II", 8 + len(data), flags) + data


def replies(*payloads: bytes) -> Sequence[tuple[bytes, Sequence[int]]]:
    return [(payload, ()) for payload in payloads]


def refused(wire: Wire, number: int, call: Callable[[], Any]) -> Any:
    """What ``call`` does when the server answers it with this errno."""
    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(call)
        wire.reply(wire.receive(), error=number)
        return result.result()


def test_the_ways_to_migrate_are_asked_for_as_the_text_has_it(fake_server: MakeServer) -> None:
    client, wire = fake_server()
    with wire.answering(*replies(feature(GET | 1, struct.pack("<Q", 5)))) as asked:
        assert client.migration.flags() == MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY
    assert asked[0][1] == Command.DEVICE_FEATURE
    assert asked[0].payload == struct.pack("<II", 16, GET | 1)


@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_server_without_the_feature_has_no_way_to_migrate(fake_server: MakeServer, number: int) -> None:
    client, wire = fake_server()
    assert refused(wire, number, client.migration.flags) == MigrationFlags(0)


def test_a_server_that_fails_is_not_taken_for_one_that_cannot_migrate(fake_server: MakeServer) -> None:
    client, wire = fake_server()
    with pytest.raises(RemoteError):
        refused(wire, errno.EIO, client.migration.flags)


def test_the_state_is_read_and_set(fake_server: MakeServer) -> None:
    client, wire = fake_server()
    now, then = struct.pack("<II", 3, 0), struct.pack("<II", 1, 0)
    with wire.answering(*replies(feature(GET | 2, now), feature(SET | 2, then))) as asked:
        assert client.migration.state is DeviceState.STOP_COPY
        client.migration.set_state(DeviceState.STOP)
    assert [each.payload for each in asked] == [struct.pack("<II", 16, GET | 2), feature(SET | 2, then)]


def test_a_state_that_is_none_is_refused_by_its_number(fake_server: MakeServer) -> None:
    client, wire = fake_server()
    with (
        wire.answering(*replies(feature(GET | 2, struct.pack("<II", 8, 0)))),
        pytest.raises(ProtocolError, match="device_state 8"),
    ):
        _ = client.migration.state


def test_data_is_read_up_to_its_end_and_padding_is_passed_over(fake_server: MakeServer) -> None:
    client, wire = fake_server()
    with wire.answering(*replies(struct.pack("<II", 12, 3) + b"abc\0\0\0", struct.pack("<II", 8, 0))) as asked:
        assert client.migration.read(100) == b"abc"
        assert client.migration.read(1 << 30) == b""
    assert [each.payload for each in asked] == [
        struct.pack("<II", 108, 100),
        struct.pack("<II", 8 + (1 << 20), 1 << 20),
    ]


def test_more_data_than_was_asked_for_is_refused(fake_server: MakeServer) -> None:
    client, wire = fake_server()
    with (
        wire.answering(*replies(struct.pack("<II", 12, 4) + b"abcd")),
        pytest.raises(ProtocolError, match="4 bytes, asked were 3"),
    ):
        client.migration.read(3)


def test_data_is_written_in_as_many_messages_as_it_takes(fake_server: MakeServer) -> None:
    client, wire = fake_server(Version(0, 2, Capabilities.of(max_data_xfer_size=4)).pack())
    with wire.answering(*replies(b"", b"")) as asked:
        client.migration.write(b"abcdef")
    assert [each.payload for each in asked] == [struct.pack("<II", 12, 4) + b"abcd", struct.pack("<II", 10, 2) + b"ef"]


def test_logging_starts_and_stops_as_the_text_has_it(fake_server: MakeServer) -> None:
    client, wire = fake_server()
    start = struct.pack("<QIIQQ", 4096, 1, 0, 0x1000, 0x3000)
    chosen, stop = struct.pack("<QIIQQ", 8192, 1, 0, 0x1000, 0x3000), struct.pack("<QII", 0, 0, 0)
    with wire.answering(*replies(feature(SET | 6, chosen), feature(SET | 7, stop))) as asked:
        assert client.dirty.start([(0x1000, 0x3000)], 4096) == 8192
        client.dirty.stop()
    assert [each.payload for each in asked] == [feature(SET | 6, start), feature(SET | 7, stop)]


def test_a_bitmap_larger_than_a_message_is_asked_for_in_parts(fake_server: MakeServer) -> None:
    client, wire = fake_server(Version(0, 2, Capabilities.of(max_data_xfer_size=48)).pack())
    first, last = struct.pack("<QQQ", 0x1000, 128 << 12, 4096), struct.pack("<QQQ", 0x81000, 4096, 4096)
    with wire.answering(*replies(feature(GET | 8, first + b"a" * 16), feature(GET | 8, last + b"b" * 8))) as asked:
        assert client.dirty.report(0x1000, 129 << 12, 4096) == b"a" * 16 + b"b" * 8
    assert asked[0].payload == struct.pack("<II", 48, GET | 8) + first
    assert asked[1].payload == struct.pack("<II", 40, GET | 8) + last


def test_a_bitmap_of_another_size_is_refused(fake_server: MakeServer) -> None:
    client, wire = fake_server()
    with wire.answering(*replies(feature(GET | 8, bytes(24 + 7)))), pytest.raises(ProtocolError, match="7 bytes, exp"):
        client.dirty.report(0, 4096, 4096)


@pytest.mark.parametrize("page_size", [0, -1, 3, 4097])
def test_a_page_size_is_a_power_of_two(fake_server: MakeServer, page_size: int) -> None:
    client, wire = fake_server()
    with pytest.raises(ProtocolError, match="page_size"):
        client.dirty.start([], page_size)
    with pytest.raises(ProtocolError, match="page_size"):
        client.dirty.report(0, 4096, page_size)
    assert wire.silent


@pytest.mark.parametrize(("iova", "length"), [(0, -5), (0, 0), (-4096, 4096), (4096, (1 << 64) - 4095)])
@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_a_report_is_of_a_range_of_addresses(fake_server: MakeServer, dialect: Dialect, iova: int, length: int) -> None:
    client, wire = fake_server(Version(0, 2, Capabilities.of(max_msg_fds=16)).pack(), dialect=dialect)
    with pytest.raises(ProtocolError, match="is empty or wraps around"):
        client.dirty.report(iova, length, 4096)
    assert wire.silent


ranges = st.integers(0, (1 << 63) - 1).flatmap(
    lambda iova: st.builds(LoggedRange, st.just(iova), st.integers(1, (1 << 63) - 1))
)


@given(st.builds(LoggingControl, st.sampled_from([1 << n for n in range(64)]), st.lists(ranges, max_size=4).map(tuple)))
def test_what_shall_be_logged_is_read_as_it_was_written(control: LoggingControl) -> None:
    assert LoggingControl.unpack(control.pack(), "it") == control


@given(ranges, st.sampled_from([1 << n for n in range(12, 64)]))
def test_a_report_is_read_as_it_was_written(where: LoggedRange, page_size: int) -> None:
    report = LoggingReport(*where, page_size)
    assert LoggingReport.unpack(report.pack(), "it") == report
    assert report.bitmap_size == bitmap_size(where.length, page_size) >= 8
    assert report.bitmap_size % 8 == 0


@given(st.binary(max_size=80), st.sampled_from([LoggingControl, LoggingReport]))
def test_any_bytes_are_read_or_refused(data: bytes, kind: type[LoggingControl | LoggingReport]) -> None:
    try:
        kind.unpack(data, "it")
    except ProtocolError as error:
        assert str(error).startswith("it: ")  # noqa: PT017
