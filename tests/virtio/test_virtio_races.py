"""Buffers that come at the last moment: after the device has found none, and before it has asked to be told of more."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bellwire.bundled.virtio_console import VirtioConsole
from bellwire.bundled.virtio_console.control import Console, Event
from bellwire.virtio import Virtqueue
from virtio.driver import Driver
from virtio.echo import Echo
from virtio.frames import Make, frame

PATIENCE = 30.0


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Callable[[], object]], None]]:
    """Do something once, just before the device asks queue ``index`` to tell of the next buffer."""
    waiting: dict[int, Callable[[], object]] = {}
    usual = Virtqueue.listen

    def listen(queue: Virtqueue) -> bool:
        if act := waiting.pop(queue.index, None):
            act()
        return usual(queue)

    monkeypatch.setattr(Virtqueue, "listen", listen)
    yield waiting.__setitem__
    assert not waiting, "nothing has been asked"


def test_a_device_that_takes_all_takes_it_too(
    ring: set[int], late: Callable[[int, Callable[[], object]], None]
) -> None:
    with contextlib.closing(Driver(Echo)) as driver:
        driver.start(ring)
        queue = driver.queues[0]
        late(0, lambda: queue.add(b"second", write=6))
        queue.send(b"first", write=5)
        assert queue.answers() == [b"tsrif", b"dnoces"]


def test_input_of_a_console_finds_it(
    ring: set[int], tmp_path: Path, late: Callable[[int, Callable[[], object]], None]
) -> None:
    with Driver(VirtioConsole, ports=f"a=unix:{tmp_path / 'a'}") as driver:
        driver.start(ring, range(2), size=32)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as far:
            far.connect(os.fspath(tmp_path / "a"))
            far.sendall(b"hello")
            queue = driver.queues[0]
            late(0, lambda: queue.add(write=64))
            while not (found := queue.answers()):
                assert driver.guest.poll(PATIENCE)
            assert found == [b"hello"]


def test_a_message_of_a_console_finds_it(ring: set[int], late: Callable[[int, Callable[[], object]], None]) -> None:
    with Driver(VirtioConsole, ports="a=null") as driver:
        driver.start(ring | {Console.MULTIPORT}, range(4), size=32)
        messages = driver.queues[2]
        late(2, lambda: messages.add(write=64))
        driver.queues[3].send(struct.pack("<IHH", 0, Event.DEVICE_READY, 1))
        assert messages.answers() == [struct.pack("<IHH", 0, Event.PORT_ADD, 0)]


def test_a_packet_finds_it(
    make: Make, ring: set[int], far: socket.socket, late: Callable[[int, Callable[[], object]], None]
) -> None:
    card = make(ring, buffers=0)
    far.send(frame(fill=3))
    late(0, lambda: card.refill(1))
    card.driver.queues[0].kick()
    assert [packet.frame for packet in card.await_packets()] == [frame(fill=3)]
    assert card.device.dropped == 0
