from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.backend import Link
from vfio_user import Command, DeviceFeature, FeatureFlags, MigrationData, MigrationRead, ProtocolError

GET, SET, PROBE = FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (Command.DEVICE_FEATURE, DeviceFeature(GET, 1).pack(16)),
        (Command.DEVICE_FEATURE, DeviceFeature(GET | SET | PROBE, 2).pack()),
        (Command.DEVICE_FEATURE, DeviceFeature(SET, 2, struct.pack("<II", 1, 0)).pack()),
        (Command.MIG_DATA_READ, MigrationRead(4096).pack()),
        (Command.MIG_DATA_WRITE, MigrationData(b"state").pack()),
    ],
)
def test_a_device_that_cannot_migrate_says_so(link: Link, command: Command, payload: bytes) -> None:
    assert link.refused(command, payload) == errno.ENOTSUP
    assert "cannot migrate" in str(link.device.refusals[0])


BAD = {
    "feature cut short": (Command.DEVICE_FEATURE, bytes(7)),
    "feature argsz": (Command.DEVICE_FEATURE, struct.pack("<II", 7, GET | 1)),
    "feature without action": (Command.DEVICE_FEATURE, struct.pack("<II", 8, 1)),
    "feature GET and SET": (Command.DEVICE_FEATURE, struct.pack("<II", 8, GET | SET | 1)),
    "feature unknown flag": (Command.DEVICE_FEATURE, struct.pack("<II", 8, int(GET) | 1 << 19)),
    "feature top flag": (Command.DEVICE_FEATURE, struct.pack("<II", 8, int(PROBE) | 1 << 31)),
    "read cut short": (Command.MIG_DATA_READ, bytes(7)),
    "read too long": (Command.MIG_DATA_READ, bytes(9)),
    "read argsz": (Command.MIG_DATA_READ, struct.pack("<II", 12, 5)),
    "write cut short": (Command.MIG_DATA_WRITE, bytes(7)),
    "write size": (Command.MIG_DATA_WRITE, struct.pack("<II", 13, 6) + b"state"),
}


@pytest.mark.parametrize(("command", "payload"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_is_refused_as_such(link: Link, command: Command, payload: bytes) -> None:
    assert link.refused(command, payload) == errno.EINVAL


def test_a_feature_is_written_as_the_text_has_it() -> None:
    assert DeviceFeature(GET | PROBE, 6, b"data").pack() == struct.pack("<II", 12, 1 << 16 | 1 << 18 | 6) + b"data"
    assert DeviceFeature(GET, 1).pack(argsz=16) == struct.pack("<II", 16, 1 << 16 | 1)


def test_padding_behind_migration_data_is_passed_over() -> None:
    assert MigrationData.unpack(memoryview(struct.pack("<II", 16, 3) + b"abc     ")) == MigrationData(b"abc")


actions = st.sampled_from([GET, SET, PROBE, GET | PROBE, SET | PROBE, GET | SET | PROBE])


@given(st.builds(DeviceFeature, actions, st.integers(0, 0xFFFF), st.binary(max_size=64)))
def test_a_feature_is_read_as_it_was_written(feature: DeviceFeature) -> None:
    assert DeviceFeature.unpack(memoryview(feature.pack())) == feature


@given(st.integers(0, (1 << 32) - 9))
def test_a_read_is_read_as_it_was_written(size: int) -> None:
    assert MigrationRead.unpack(memoryview(MigrationRead(size).pack())) == MigrationRead(size)


@given(st.binary(max_size=100))
def test_data_is_read_as_it_was_written(data: bytes) -> None:
    assert MigrationData.unpack(memoryview(MigrationData(data).pack())) == MigrationData(data)


@given(st.binary(max_size=24), st.sampled_from([DeviceFeature, MigrationRead, MigrationData]))
def test_any_bytes_are_read_or_refused(
    payload: bytes, kind: type[DeviceFeature | MigrationRead | MigrationData]
) -> None:
    try:
        kind.unpack(memoryview(payload))
    except ProtocolError as error:
        assert error.errno == errno.EINVAL  # noqa: PT017
