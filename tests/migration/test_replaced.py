"""A device's code is not exchanged while the device migrates; a log of its writes outlives the exchange."""

from __future__ import annotations

import pytest

from bellwire import StateError
from devices.test_replace import code, on_loop, served
from vfio_user import DeviceState, VfioUserError
from vfio_user.written_pages import WrittenPages

PAGE = 4096


def test_newer_code_waits_for_the_end_of_a_migration() -> None:
    with served(code()) as (worker, client):
        client.migration.set_state(DeviceState.STOP)
        refused = on_loop(worker, lambda: worker.replace(code(2)()))
        assert isinstance(refused, StateError)
        assert "while it migrates" in str(refused)
        client.migration.set_state(DeviceState.RUNNING)
        assert on_loop(worker, lambda: worker.replace(code(2)())) is None


def test_a_log_goes_on_with_newer_code() -> None:
    try:
        WrittenPages().close()
    except VfioUserError as error:
        pytest.skip(str(error))
    with served(code()) as (worker, client):
        client.dirty.start([], PAGE)
        for _ in range(2):
            assert on_loop(worker, lambda: worker.replace(code()())) is None
            assert client.dirty.report(0, 1 << 16, PAGE) == b"\xff\xff" + bytes(6)
            assert client.dirty.report(0, 1 << 16, PAGE) == bytes(8)
        client.write(0, 0x30, b"\1\0\0\0")
        assert client.dirty.report(0, 1 << 16, PAGE) == b"\1" + bytes(7)
