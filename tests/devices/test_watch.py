"""Descriptors that device code watches: in a worker, and in a test's own guest."""

from __future__ import annotations

import os
import threading

import pytest

from bellwire import Bar, PciDevice
from bellwire.testing import Guest
from devices.serving import PATIENCE, served


class Listener(PciDevice, vendor=0x1234, device=0x11F0, class_code=0x088000):
    """Reads a pipe."""

    mmio = Bar(0, size=4096)

    def setup(self) -> None:
        self.source, self.sink = os.pipe()
        self.heard = threading.Event()
        self.calls: list[bytes] = []
        self.watch(self.source, self.arrived)

    def close(self) -> None:
        self.unwatch(self.source)
        os.close(self.source)
        os.close(self.sink)

    def arrived(self) -> None:
        data = os.read(self.source, 100)
        self.calls.append(data)
        self.heard.set()
        if data == b"fail":
            raise ZeroDivisionError("in a callback")


def test_a_worker_calls_back() -> None:
    device = Listener()
    with served(device):
        os.write(device.sink, b"hello")
        assert device.heard.wait(PATIENCE)
    assert device.calls == [b"hello"]


def test_a_callback_that_fails_is_logged_and_called_again(caplog: pytest.LogCaptureFixture) -> None:
    device = Listener()
    with served(device):
        for data in (b"fail", b"again"):
            device.heard.clear()
            os.write(device.sink, data)
            assert device.heard.wait(PATIENCE)
    assert device.calls == [b"fail", b"again"]
    assert "in a callback" in caplog.text


def test_what_is_no_longer_watched_is_left_alone() -> None:
    with Guest(Listener) as guest:
        device = guest.device
        assert isinstance(device, Listener)
        os.write(device.sink, b"hello")
        device.unwatch(device.source)
        device.unwatch(device.source)
        assert not guest.poll()
        device.watch(device.source, device.arrived)
        assert guest.poll()
    assert device.calls == [b"hello"]


def test_a_device_in_the_making_cannot_watch() -> None:
    device = Listener()
    with pytest.raises(RuntimeError, match="ask in setup"):
        device.watch(0, device.arrived)
    device.core.close()
