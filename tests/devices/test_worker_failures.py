"""Device code that fails in a worker: told in the log, and the worker lives on."""

from __future__ import annotations

import errno
import gc
import logging
import os
import threading

import pytest

from bellwire import Bar, PciDevice
from bellwire.serve.loop import FEW_TIMERS, Deadline
from devices.serving import (
    PATIENCE,
    Probe,
    read,
    served,
    sub_regions,
    wait_until,
    write,
)
from vfio_user import (
    RemoteError,
)


def test_a_hook_that_raises_answers_with_an_error_and_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    with served(Probe()) as client:
        for _ in range(3):
            with pytest.raises(RemoteError) as refused:
                write(client, Probe.fails.offset, 7)
            assert refused.value.errno == errno.EIO
        with pytest.raises(RemoteError):
            read(client, Probe.fails.offset)
        write(client, Probe.scratch.offset, 5)
        assert read(client, Probe.scratch.offset) == 5
    writes = [
        record for record in caplog.records if "RuntimeError" in str(record.exc_info) or "hook failed" in record.message
    ]
    assert [record.exc_info is not None for record in writes] == [True, False, False]
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 4


def test_a_flood_of_failures_is_logged_a_few_times_only(caplog: pytest.LogCaptureFixture) -> None:
    with served(Probe()) as client:
        for _ in range(500):
            write(client, Probe.fails.offset, 7, posted=True)
        read(client, Probe.scratch.offset)
    assert 1 <= len([record for record in caplog.records if "hook failed" in record.message]) <= 10


def test_a_bell_that_raises_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    device = Probe()
    with served(device) as client, sub_regions(client) as subs:
        os.eventfd_write(subs[Probe.broken_bell.offset].fd, 1)
        read(client, Probe.scratch.offset)
        os.eventfd_write(subs[Probe.bell.offset].fd, 1)
        read(client, Probe.scratch.offset)
        assert device.bell.rung == 1
    assert "a bell that breaks" in caplog.text


def test_a_hook_that_calls_exit_does_not_end_its_worker(caplog: pytest.LogCaptureFixture) -> None:
    with served(Probe()) as client, sub_regions(client) as subs:
        with pytest.raises(RemoteError):
            write(client, Probe.leave.offset, 0)
        for how in (1, 2):
            write(client, Probe.leave.offset, how)
        os.eventfd_write(subs[Probe.leaving_bell.offset].fd, 1)
        write(client, Probe.scratch.offset, 5)
        wait_until(lambda: sum("SystemExit" in message for message in caplog.messages) == 4)
        assert read(client, Probe.scratch.offset) == 5
    assert "a hook leaves" in caplog.text
    assert "a bell leaves" in caplog.text


class Mistaken(PciDevice, vendor=0x1234, device=0x11, class_code=0xFF0000):
    mmio = Bar(0, size=64)
    one = mmio.reg(0)
    two = mmio.reg(4)
    later = mmio.reg(8)
    scratch = mmio.reg(12)

    @one.write
    def first_mistake(self, value: int) -> None:
        raise ValueError(value)

    @two.write
    def second_mistake(self, value: int) -> None:
        raise ValueError(value)

    @later.write
    def wait(self, value: int) -> None:
        self.after(0, self.third_mistake, value)

    def reset(self) -> None:
        self.after(3600, self.third_mistake, 1)

    def third_mistake(self, value: int) -> None:
        raise ValueError(value)


def test_each_mistake_in_device_code_has_its_traceback_once(caplog: pytest.LogCaptureFixture) -> None:
    with served(Mistaken()) as client:
        for register in (Mistaken.one, Mistaken.two, Mistaken.later) * 2:
            write(client, register.offset, 1, posted=True)
        wait_until(lambda: caplog.text.count("Mistaken.third_mistake failed at") == 2)
    for number in ("first", "second", "third"):
        assert caplog.text.count(f", in {number}_mistake") == 1


def test_a_slow_hook_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    device = Probe()
    with served(device) as client:
        write(client, Probe.blocks.offset, 1, posted=True)
        assert device.blocked.wait(PATIENCE)
        threading.Timer(0.02, device.go_on.set).start()
        read(client, Probe.scratch.offset)
    assert "Probe.block took" in caplog.text


def test_the_timers_of_a_guest_that_resets_its_device_for_ever_do_not_pile_up() -> None:
    with served(Mistaken()) as client:
        for _ in range(4 * FEW_TIMERS):
            client.reset()
        assert sum(isinstance(each, Deadline) for each in gc.get_objects()) <= FEW_TIMERS + 1


def test_failures_of_device_code_are_counted_apart_from_the_guests_mistakes() -> None:
    device = Probe()
    with served(device) as client, sub_regions(client) as subs:
        for _ in range(3):
            write(client, Probe.fails.offset, 7, posted=True)
        os.eventfd_write(subs[Probe.broken_bell.offset].fd, 1)
        read(client, Probe.scratch.offset)
        write(client, Probe.fetch.offset, 1 << 40, size=8, posted=True)
        write(client, Probe.fetch.offset, 1 << 41, size=8, posted=True)
        read(client, Probe.scratch.offset)
        assert (device.core.tally.failures, device.core.tally.guest_errors) == (4, 2)
