"""A worker's DMA: by message, and outside the map."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from devices.serving import (
    PATIENCE,
    Probe,
    read,
    served,
    write,
)
from vfio_user import (
    RemoteError,
    VfioUserError,
)


class Ram:
    """Memory that a client keeps to itself."""

    def __init__(self) -> None:
        self.content = bytearray(4096)
        self.asked = 0
        self.before_reading: Callable[[], None] = lambda: None

    def read(self, address: int, count: int) -> bytes:
        if address + count > len(self.content):
            raise VfioUserError("no such memory", errno.EFAULT)
        self.asked += 1
        self.before_reading()
        return bytes(self.content[address : address + count])

    def write(self, address: int, data: bytes) -> None:
        self.content[address : address + len(data)] = data


def test_memory_that_is_not_shared_is_reached_by_message() -> None:
    memory = Ram()
    memory.content[0x40:0x44] = b"wire"
    device = Probe()
    with served(device, memory=memory) as client:
        client.dma_map(0, 4096)
        write(client, Probe.fetch.offset, 0x40, size=8)
        assert read(client, Probe.fetched.offset).to_bytes(4, "little") == b"wire"
        write(client, Probe.scratch.offset, 0x6C6C6562)
        write(client, Probe.store.offset, 0x80, size=8)
        assert memory.content[0x80:0x84] == b"bell"


def test_commands_that_come_while_memory_is_asked_for_keep_their_order() -> None:
    memory = Ram()
    device = Probe()
    with served(device, memory=memory) as client:
        client.dma_map(0, 4096)
        device.seen.clear()
        write(client, Probe.fetch.offset, 0, size=8, posted=True)
        for value in range(20):
            write(client, Probe.scratch.offset, value, posted=True)
        assert read(client, Probe.scratch.offset) == 19
        assert device.seen == [("scratch", value) for value in range(20)]


def test_commands_that_come_while_a_timer_asks_for_memory_are_handled_at_once() -> None:
    memory = Ram()
    device = Probe()
    with served(device, memory=memory) as client:
        client.dma_map(0, 4096)
        write(client, Probe.fetch_later.offset, 0x40)
        memory.before_reading = lambda: write(client, Probe.scratch.offset, 9, posted=True)
        while not memory.asked:
            client.poll(PATIENCE)
        assert device.wrote.wait(PATIENCE)


def test_dma_outside_the_map_is_the_guests_own_error(caplog: pytest.LogCaptureFixture) -> None:
    with served(Probe()) as client:
        with pytest.raises(RemoteError):
            write(client, Probe.fetch.offset, 0xDEAD_0000, size=8)
        assert read(client, Probe.fetched.offset) == 0
    assert "0xdead0000" in caplog.text
    assert "Traceback" not in caplog.text


def test_dma_is_refused_while_bus_mastering_is_off(caplog: pytest.LogCaptureFixture) -> None:
    with served(Probe(), memory=Ram(), enabled=False) as client:
        client.dma_map(0, 4096)
        with pytest.raises(RemoteError):
            write(client, Probe.fetch.offset, 0, size=8)
    assert "bus mastering off" in caplog.text
