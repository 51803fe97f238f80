"""virtio-console (virtio 1.2 §5.3): bytes both ways, several ports, the messages about them."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwire import OptionError
from bellwire.bundled.virtio_console import VirtioConsole
from bellwire.bundled.virtio_console.control import Console, Event
from bellwire.stream import StreamError
from bellwire.testing import Guest, conformance
from bellwire.virtio import Feature, Status
from bellwire.virtio.chain import MOST_DESCRIPTORS
from virtio.conftest import FORMATS
from virtio.driver import DEVICE, Driver
from virtio.rings import DESCRIPTOR, INDIRECT, NEXT, Part, SplitQueue

RINGS = FORMATS
PATIENCE = 30.0
MULTIPORT: set[int] = {Console.MULTIPORT}

TestVirtioConsole = conformance(VirtioConsole, ports="console=null,log=null")


class Terminal:
    """The driver of a console, and the far ends of its ports: sockets."""

    def __init__(self, folder: Path, ring: set[int], features: set[int], count: int = 2, room: int = 64) -> None:
        self.stack = contextlib.ExitStack()
        self.folder = folder
        names = [f"port{n}" for n in range(count)]
        ports = ",".join(f"{name}=unix:{folder / name}" for name in names)
        self.driver = Driver(VirtioConsole, ports=ports)
        self.stack.callback(self.driver.close)
        self.start(ring | features, range(2 * count + 2) if features else range(2), room)

    def start(self, features: set[int], queues: range, room: int = 64) -> None:
        """Start the driver, with buffers for what comes."""
        self.driver.start(features, queues, size=32)
        self.queues = self.driver.queues
        for index in queues:
            if index % 2 == 0:
                for _ in range(20 if index == 2 else 4):
                    self.queues[index].add(write=room)
                self.queues[index].kick()

    def join(self, number: int) -> socket.socket:
        """Connect to a port's socket."""
        far = self.stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        far.settimeout(PATIENCE)
        far.connect(os.fspath(self.folder / f"port{number}"))
        assert self.driver.guest.poll(PATIENCE)
        return far

    def tell(self, number: int, event: Event, value: int = 1) -> None:
        self.queues[3].send(struct.pack("<IHH", number, event, value))
        self.queues[3].used()

    def told(self) -> list[tuple[int, int, int, bytes]]:
        """Messages that have come."""
        return [(*struct.unpack_from("<IHH", data), data[8:]) for data in self.queues[2].answers()]

    def begin(self) -> None:
        """What a driver says at first, of all ports."""
        self.tell(0, Event.DEVICE_READY)
        for number, event, _, _ in self.told():
            assert event == Event.PORT_ADD
            self.tell(number, Event.PORT_READY)
        self.told()


@pytest.fixture
def plain(tmp_path: Path, ring: set[int]) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, ring, set(), 1)
    with terminal.stack:
        yield terminal


@pytest.fixture
def terminal(tmp_path: Path, ring: set[int]) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, ring, MULTIPORT)
    with terminal.stack:
        yield terminal


def test_a_peer_is_heard_of_before_the_guest_has_made_room_for_what_it_says(tmp_path: Path, ring: set[int]) -> None:
    with Driver(VirtioConsole, ports=f"a=unix:{tmp_path / 'a'}") as driver:
        driver.start(ring, range(2), size=32)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as far:
            far.settimeout(PATIENCE)
            far.connect(os.fspath(tmp_path / "a"))
            assert driver.guest.poll(PATIENCE)
            driver.queues[1].send(b"hello")
            assert far.recv(100) == b"hello"


def test_without_multiport_port_0_is_open(plain: Terminal) -> None:
    far = plain.join(0)
    plain.queues[1].send(b"login: ")
    assert far.recv(100) == b"login: "
    far.sendall(b"root\n")
    assert plain.driver.guest.poll(PATIENCE)
    assert plain.queues[0].answers() == [b"root\n"]


def test_input_is_spread_over_buffers_and_waits_for_more(plain: Terminal) -> None:
    far = plain.join(0)
    far.sendall(bytes(range(256)) + b"rest")
    assert plain.driver.guest.poll(PATIENCE)
    assert b"".join(plain.queues[0].answers()) == bytes(range(256))
    assert not plain.driver.guest.poll()
    plain.queues[0].send(write=64)
    assert plain.queues[0].answers() == [b"rest"]


def test_output_waits_for_a_peer_that_does_not_read(plain: Terminal) -> None:
    far = plain.join(0)
    queue = plain.queues[1]
    block = bytes(range(256)) * 256
    sent = 0
    while len(queue.held) < 4:
        queue.send(block)
        queue.used()
        sent += 1
    data = b""
    while len(data) < sent * len(block):
        data += far.recv(1 << 20)
        plain.driver.guest.poll()
    assert data == block * sent
    assert len(queue.used()) == 4


def test_output_of_a_port_that_the_guest_has_closed_still_arrives(terminal: Terminal) -> None:
    terminal.begin()
    far = terminal.join(1)
    terminal.tell(1, Event.PORT_OPEN)
    queue = terminal.queues[5]
    block = bytes(range(256)) * 256
    sent = 0
    while len(queue.held) < 4:
        queue.send(block)
        queue.used()
        sent += 1
    terminal.tell(1, Event.PORT_OPEN, 0)
    far.settimeout(0)
    received = 0
    while received < sent * len(block):
        received += len(far.recv(4096))
        terminal.driver.guest.poll()
    assert len(queue.used()) == 4


def test_the_guest_hears_that_a_peer_has_gone_with_the_port_closed(terminal: Terminal) -> None:
    terminal.begin()
    far = terminal.join(1)
    assert terminal.told() == [(1, Event.PORT_OPEN, 1, b"")]
    far.close()
    assert terminal.driver.guest.poll(PATIENCE)
    assert terminal.told() == [(1, Event.PORT_OPEN, 0, b"")]


def test_a_peer_that_talks_to_a_closed_port_keeps_nobody_busy(terminal: Terminal) -> None:
    terminal.begin()
    far = terminal.join(1)
    far.sendall(b"is anybody there?")
    terminal.driver.guest.poll()
    assert not terminal.driver.guest.poll()


def test_a_chain_longer_than_a_system_call_takes_arrives_and_comes_back(ring: set[int]) -> None:
    """Direct descriptors, the last of which is a table of as many as there may be (§2.7.5.3)."""
    with Driver(VirtioConsole) as driver:
        driver.start(ring - {Feature.RING_PACKED}, range(2), size=32)
        queue = driver.queues[1]
        assert isinstance(queue, SplitQueue)
        text = bytes(range(33, 127)) * 12
        parts = [Part(driver.store(text[at : at + 1]), 1, False) for at in range(31 + MOST_DESCRIPTORS)]
        table = driver.store(
            b"".join(
                DESCRIPTOR.pack(part.address, 1, NEXT if number < MOST_DESCRIPTORS else 0, number)
                for number, part in enumerate(parts[31:], 1)
            )
        )
        for slot, part in enumerate(parts[:31]):
            queue.describe(slot, part.address, 1, NEXT, slot + 1)
        queue.describe(31, table, DESCRIPTOR.size * MOST_DESCRIPTORS, INDIRECT, 0)
        queue.offer(0)
        stream = driver.device.lines[0].stream  # type: ignore[attr-defined]
        far = os.open(stream.path, os.O_RDONLY | os.O_NOCTTY)
        try:
            queue.kick()
            got = b""
            while len(got) < len(parts):
                got += os.read(far, 1 << 16)
        finally:
            os.close(far)
        assert got == text[: len(parts)]
        assert queue.word(queue.ring + 2) == 1


def test_without_a_peer_output_is_lost(plain: Terminal) -> None:
    plain.queues[1].send(b"hello")
    assert len(plain.queues[1].used()) == 1


def test_the_driver_is_told_of_ports_and_names(terminal: Terminal) -> None:
    assert terminal.driver.config(4, 4) == 2
    terminal.tell(0, Event.DEVICE_READY)
    assert terminal.told() == [(0, Event.PORT_ADD, 0, b""), (1, Event.PORT_ADD, 0, b"")]
    terminal.tell(0, Event.PORT_READY)
    assert terminal.told() == [(0, Event.CONSOLE_PORT, 1, b""), (0, Event.PORT_NAME, 1, b"port0")]
    terminal.tell(1, Event.PORT_READY)
    assert terminal.told() == [(1, Event.PORT_NAME, 1, b"port1")]


def test_the_driver_is_told_who_is_there(terminal: Terminal) -> None:
    terminal.begin()
    far = terminal.join(1)
    assert terminal.told() == [(1, Event.PORT_OPEN, 1, b"")]
    terminal.tell(1, Event.PORT_OPEN)
    far.close()
    assert terminal.driver.guest.poll(PATIENCE)
    assert terminal.told() == [(1, Event.PORT_OPEN, 0, b"")]


def test_a_peer_that_was_there_first_is_told_of_too(terminal: Terminal) -> None:
    terminal.join(1)
    terminal.begin()
    terminal.tell(1, Event.PORT_READY)
    assert terminal.told()[-1] == (1, Event.PORT_OPEN, 1, b"")


def test_a_driver_that_starts_anew_is_told_who_comes(terminal: Terminal) -> None:
    terminal.begin()
    terminal.driver.status = Status(0)
    terminal.start(terminal.driver.features, range(6))
    terminal.begin()
    terminal.join(1)
    assert terminal.told() == [(1, Event.PORT_OPEN, 1, b"")]


def test_input_waits_until_the_guest_opens_the_port(terminal: Terminal) -> None:
    terminal.begin()
    far = terminal.join(1)
    far.sendall(b"hello")
    assert not terminal.driver.guest.poll(), "the socket is watched, and there is no use for what it has"
    assert terminal.queues[4].answers() == []
    terminal.tell(1, Event.PORT_OPEN)
    assert terminal.queues[4].answers() == [b"hello"]


def test_ports_are_apart(terminal: Terminal) -> None:
    terminal.begin()
    far = [terminal.join(0), terminal.join(1)]
    terminal.queues[1].send(b"zero")
    terminal.queues[5].send(b"one")
    assert [each.recv(100) for each in far] == [b"zero", b"one"]


def test_messages_wait_for_buffers(tmp_path: Path) -> None:
    driver = Driver(VirtioConsole, ports="a=null,b=null")
    with contextlib.closing(driver):
        driver.start(MULTIPORT, range(6))
        driver.queues[3].send(struct.pack("<IHH", 0, Event.DEVICE_READY, 1))
        assert driver.queues[2].answers() == []
        driver.queues[2].add(write=8)
        driver.queues[2].send(write=8)
        assert [data[:1] for data in driver.queues[2].answers()] == [b"\0", b"\1"]


@pytest.mark.parametrize("data", [b"", b"short", struct.pack("<IHH", 99, Event.PORT_OPEN, 1), b"\xff" * 40])
def test_messages_that_make_no_sense_are_void(terminal: Terminal, data: bytes) -> None:
    terminal.queues[3].send(data)
    assert len(terminal.queues[3].used()) == 1
    assert terminal.told() == []
    assert Status.NEEDS_RESET not in terminal.driver.status


def test_a_flood_of_messages_is_bounded(tmp_path: Path) -> None:
    driver = Driver(VirtioConsole, ports="a=null")
    with contextlib.closing(driver):
        driver.start(MULTIPORT, range(4))
        for _ in range(500):
            driver.queues[3].send(struct.pack("<IHH", 0, Event.PORT_READY, 1))
            driver.queues[3].used()
        assert isinstance(driver.device, VirtioConsole)
        assert len(driver.device.messages) <= 64


def test_an_emergency_needs_no_driver(tmp_path: Path) -> None:
    path = tmp_path / "log"
    driver = Driver(VirtioConsole, ports=f"console=file:{path}")
    with contextlib.closing(driver):
        place = driver.places[DEVICE]
        for character in b"panic":
            driver.guest.write(place.bar, character, offset=place.offset + 8, size=4)
    assert path.read_bytes() == b"panic"


def test_a_reset_gives_up_what_was_held(plain: Terminal) -> None:
    far = plain.join(0)
    queue = plain.queues[1]
    while not queue.held:
        queue.send(bytes(1 << 16))
        queue.used()
    plain.driver.status = Status(0)
    assert not plain.driver.guest.poll()
    plain.driver.start(plain.driver.features)
    far.recv(1)
    assert Status.NEEDS_RESET not in plain.driver.status


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ports": ""}, OptionError, "1 to 16 different names"),
        ({"ports": "a=null,a=null"}, OptionError, "different names"),
        ({"ports": ",".join(f"p{n}=null" for n in range(17))}, OptionError, "1 to 16"),
        ({"ports": "=null"}, OptionError, "1 to 64 bytes"),
        ({"ports": "a"}, OptionError, "ports=a: expected pty, pty:LINK"),
        ({"ports": f"a=unix:/{'x' * 200}"}, OptionError, "expected a socket's path: at most 107 bytes"),
        ({"ports": "a=file:/no/such/folder/file"}, StreamError, "No such file"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Guest(VirtioConsole, **options)
