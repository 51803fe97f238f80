"""The life of a console's ports (virtio 1.2 §5.3.6): before the driver, with it, after it, and in a snapshot."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from bellwire import StateError
from bellwire.bundled.virtio_console import VirtioConsole
from bellwire.bundled.virtio_console.control import Event
from bellwire.bundled.virtio_console.device import Port, ports_fault
from bellwire.stream import Stream, StreamError
from bellwire.testing import Guest
from bellwire.virtio import Status
from saved import move
from virtio.driver import DEVICE, READY, Driver
from virtio.test_virtio_console import MULTIPORT, Terminal


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, set(), MULTIPORT)
    with terminal.stack:
        yield terminal


def console(terminal: Terminal) -> VirtioConsole:
    assert isinstance(terminal.driver.device, VirtioConsole)
    return terminal.driver.device


@pytest.mark.parametrize("number", [0, 1])
def test_a_port_is_closed_until_the_driver_opens_it(terminal: Terminal, number: int) -> None:
    terminal.begin()
    far = terminal.join(number)
    far.sendall(b"hello")
    terminal.driver.guest.poll()
    queue = terminal.queues[4 * number]
    assert queue.answers() == []
    terminal.tell(number, Event.PORT_OPEN, 2)
    assert queue.answers() == [b"hello"]
    terminal.tell(number, Event.PORT_OPEN, 0)
    far.sendall(b"again")
    terminal.driver.guest.poll()
    assert queue.answers() == []


def test_a_port_that_is_closed_leaves_the_other_open(terminal: Terminal) -> None:
    terminal.begin()
    far = terminal.join(0)
    for number in (0, 1):
        terminal.tell(number, Event.PORT_OPEN)
    terminal.tell(1, Event.PORT_OPEN, 0)
    far.sendall(b"hello")
    assert terminal.driver.guest.poll(5)
    assert terminal.queues[0].answers() == [b"hello"]


def test_a_driver_that_takes_no_messages_yet_is_told_nothing(terminal: Terminal) -> None:
    terminal.join(1)
    assert terminal.told() == []


@pytest.mark.parametrize("event", [Event.DEVICE_READY, Event.PORT_READY])
def test_a_driver_that_has_failed_to_make_a_port_ready_is_told_nothing(terminal: Terminal, event: Event) -> None:
    """A value of 0 says that it has failed (§5.3.6.2)."""
    terminal.tell(1, event, 0)
    assert terminal.told() == []
    assert console(terminal).ready is False


def test_a_port_that_is_ready_again_is_described_again(terminal: Terminal) -> None:
    terminal.begin()
    terminal.join(1)
    expected = [(1, Event.PORT_OPEN, 1, b"")]
    assert terminal.told() == expected
    terminal.tell(1, Event.PORT_READY)
    assert terminal.told() == [(1, Event.PORT_NAME, 1, b"port1"), *expected]


def test_messages_for_one_driver_are_not_given_to_the_next(tmp_path: Path) -> None:
    with Driver(VirtioConsole, ports="a=null,b=null") as driver:
        driver.start(MULTIPORT, range(6))
        driver.queues[3].send(struct.pack("<IHH", 0, Event.DEVICE_READY, 1))
        driver.start(MULTIPORT, range(6))
        driver.queues[2].send(write=64)
        assert driver.queues[2].answers() == []
        assert isinstance(driver.device, VirtioConsole)
        assert driver.device.ready is False


def test_a_peer_of_a_driver_that_has_gone_wakes_nobody(terminal: Terminal) -> None:
    terminal.begin()
    far = terminal.join(1)
    terminal.tell(1, Event.PORT_OPEN)
    terminal.driver.status = Status(0)
    far.sendall(b"hello")
    assert not terminal.driver.guest.poll(), "the stream is watched"


def test_a_console_without_a_client_watches_no_more(terminal: Terminal) -> None:
    terminal.begin()
    far = terminal.join(1)
    terminal.tell(1, Event.PORT_OPEN)
    terminal.driver.device.core.join(False)
    before = bytes(terminal.driver.memory)
    far.sendall(b"hello")
    assert terminal.driver.guest.poll(5)
    assert terminal.driver.guest._watched.keys() == {console(terminal).lines[0].stream.fileno()}
    assert bytes(terminal.driver.memory) == before
    terminal.driver.device.core.join(True)
    terminal.queues[4].kick()
    assert terminal.queues[4].answers() == [b"hello"]
    far.sendall(b"again")
    assert terminal.driver.guest.poll(5)
    assert terminal.queues[4].answers() == [b"again"]


def test_a_buffer_without_room_comes_back_empty(terminal: Terminal) -> None:
    terminal.begin()
    far = terminal.join(1)
    queue = terminal.queues[4]
    assert len(queue.held) == 4
    queue.add(b"only to read")
    queue.add(write=64)
    terminal.tell(1, Event.PORT_OPEN)
    far.sendall(bytes(4 * 64) + b"rest")
    assert terminal.driver.guest.poll(5)
    assert queue.answers() == [bytes(64)] * 4 + [b"", b"rest"]


@pytest.mark.parametrize("stays", [False, True])
def test_a_restored_driver_is_told_which_peers_there_are(terminal: Terminal, stays: bool) -> None:
    """It knows those of the time of the snapshot."""
    terminal.begin()
    far = terminal.join(1)
    assert terminal.told() == [(1, Event.PORT_OPEN, 1, b"")]
    snapshot, memory = terminal.driver.guest.snapshot(), bytes(terminal.driver.memory)
    if not stays:
        far.close()
        assert terminal.driver.guest.poll(5)
    terminal.driver.guest.restore(snapshot)
    terminal.driver.memory[:] = memory
    terminal.driver.guest.advance()
    assert terminal.told()[-2:] == [(0, Event.PORT_OPEN, 0, b""), (1, Event.PORT_OPEN, stays, b"")]


def test_messages_that_wait_for_buffers_go_along(tmp_path: Path) -> None:
    with Driver(VirtioConsole, ports="a=null,b=null") as driver:
        driver.start(MULTIPORT, range(6), size=32)
        driver.queues[3].send(struct.pack("<IHH", 0, Event.DEVICE_READY, 1))
        move(driver.guest)
        driver.queues[2].send(write=64)
        driver.queues[2].send(write=64)
        added = [struct.pack("<IHH", port, Event.PORT_ADD, 1) for port in range(2)]
        assert [answer[:6] for answer in driver.queues[2].answers()] == [each[:6] for each in added]


@pytest.mark.parametrize("length", [1, 7, 73])
def test_a_waiting_message_of_a_length_that_none_has_is_refused(length: int) -> None:
    with Guest(VirtioConsole, ports="a=null") as guest:
        snapshot = guest.snapshot()
        guest.device.waiting[73] = length
        with (
            mock.patch.object(VirtioConsole, "saving"),
            pytest.raises(StateError, match=f"a control message of {length} bytes"),
        ):
            guest.restore(guest.snapshot())
        guest.restore(snapshot)


def test_what_a_peer_has_taken_of_a_buffer_is_not_sent_again_after_a_move(terminal: Terminal) -> None:
    far = terminal.join(0)
    queue = terminal.queues[1]
    block = bytes(range(256)) * 256
    sent = 0
    while len(queue.held) < 2:
        queue.send(block)
        queue.used()
        sent += 1
    move(terminal.driver.guest)
    terminal.driver.guest.advance()
    data = b""
    while len(data) < sent * len(block):
        data += far.recv(1 << 20)
        terminal.driver.guest.poll()
    assert data == block * sent
    far.setblocking(False)
    with pytest.raises(BlockingIOError):
        far.recv(1)
    assert len(queue.used()) == 2


def test_a_buffer_that_was_sent_in_part_is_not_returned_to_the_next_driver(terminal: Terminal) -> None:
    far = terminal.join(0)
    queue = terminal.queues[1]
    while not queue.held:
        queue.send(bytes(1 << 16))
        queue.used()
    terminal.start(terminal.driver.features, range(6))
    queue = terminal.queues[1]
    far.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while far.recv(1 << 20):
            pass
    terminal.driver.guest.poll()
    assert queue.used() == []
    queue.send(b"hello")
    assert far.recv(100) == b"hello"
    assert len(queue.used()) == 1


def test_a_console_without_a_driver_is_not_watched(terminal: Terminal) -> None:
    with Guest(VirtioConsole, ports="a=null,b=null") as guest:
        assert guest._watched == {}
    assert len(terminal.driver.guest._watched) == 2
    for _ in range(3):
        terminal.driver.status = Status(0)
        assert terminal.driver.guest._watched == {}


def test_a_closed_console_watches_nothing_and_leaves_no_socket(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, set(), MULTIPORT)
    guest, device = terminal.driver.guest, terminal.driver.device
    assert len(guest._watched) == 2
    streams = [port.stream for port in console(terminal).lines]
    terminal.stack.close()
    assert device.virtqueues == []
    assert guest._watched == {}
    for stream in streams:
        with pytest.raises(ValueError, match="closed"):
            stream.fileno()
    assert not (tmp_path / "port0").exists()


def test_streams_of_a_console_that_cannot_start_are_closed(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="No such file"):
        Guest(VirtioConsole, ports=f"a=unix:{tmp_path / 'a'},b=file:/no/such/folder/b")
    assert not (tmp_path / "a").exists()


def test_a_port_begins_unwatched() -> None:
    with contextlib.closing(Stream()) as stream:
        port = Port(3, "name", stream)
        assert (port.number, port.name, port.stream, port.held, port.watched) == (3, "name", stream, None, False)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (",".join(f"p{n}=null" for n in range(16)), False),
        (",".join(f"p{n}=null" for n in range(17)), True),
        ("n" * 64 + "=null", False),
        ("n" * 65 + "=null", True),
        ("a=null,", False),
        (",", True),
        ("é" * 33 + "=null", True),
    ],
)
def test_a_console_has_1_to_16_ports_with_names_of_1_to_64_bytes(text: str, wrong: bool) -> None:
    assert (ports_fault(text) is not None) is wrong


def test_an_emergency_character_is_the_low_byte_on_port_0(tmp_path: Path) -> None:
    """§5.3.4."""
    with Driver(VirtioConsole, ports=f"a=file:{tmp_path / 'a'},b=file:{tmp_path / 'b'}") as driver:
        place = driver.places[DEVICE]
        for value in (0x41, 0x1F42, 0xFF):
            driver.guest.write(place.bar, value, offset=place.offset + 8, size=4)
    assert (tmp_path / "a").read_bytes() == b"AB\xff"
    assert (tmp_path / "b").read_bytes() == b""


def test_what_a_buffer_holds_is_sent_once_and_then_comes_back(terminal: Terminal) -> None:
    terminal.begin()
    far = terminal.join(0)
    queue = terminal.queues[1]
    for text in (b"one", b"", b"three"):
        queue.add(text)
    queue.kick()
    assert len(queue.used()) == 3
    assert far.recv(100) == b"onethree"
    far.setblocking(False)
    with pytest.raises(BlockingIOError):
        far.recv(100)


def test_buffers_behind_one_that_was_sent_in_part_wait_in_their_order(terminal: Terminal) -> None:
    terminal.begin()
    far = terminal.join(0)
    queue = terminal.queues[1]
    blocks = [bytes([number]) * (128 << 10) for number in range(6)]
    for block in blocks:
        queue.add(block)
    queue.kick()
    assert len(queue.used()) < 6
    data = b""
    while len(data) < 6 * len(blocks[0]):
        data += far.recv(1 << 20)
        terminal.driver.guest.poll()
    assert data == b"".join(blocks)
    queue.used()
    assert queue.held == {}


def test_a_message_about_the_first_port_that_is_not_there_is_void(terminal: Terminal) -> None:
    terminal.begin()
    for event in (Event.PORT_READY, Event.PORT_OPEN):
        terminal.tell(2, event)
    assert terminal.told() == []
    assert terminal.driver.status == READY


def test_a_port_that_is_opened_is_watched_again_after_another_client_has_come(terminal: Terminal) -> None:
    terminal.begin()
    far, core, guest = terminal.join(1), terminal.driver.device.core, terminal.driver.guest
    core.join(False)
    far.sendall(b"hello")
    while len(guest._watched) == 2:
        console(terminal).lines[1].stream.hold(False)
        assert guest.poll(5)
    core.join(True)
    terminal.tell(1, Event.PORT_OPEN)
    assert terminal.queues[4].answers() == [b"hello"]
    far.sendall(b"again")
    assert guest.poll(5)
    assert terminal.queues[4].answers() == [b"again"]
