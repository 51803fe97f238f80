"""Bundled virtio devices that are killed in the middle of their work: the driver sees no more than a pause."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_blk.request import Blk
from bellwire.bundled.virtio_console import VirtioConsole
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.bundled.virtio_rng import VirtioRng
from bellwire.testing import Guest
from bellwire.virtio import Feature, Status
from killing import killed, remains, succeed
from virtio.card import PLAIN
from virtio.driver import Driver
from virtio.rings import Queue

pytestmark = pytest.mark.slow

MEMORY = 1 << 18
HEADER = struct.Struct("<IIQ")
IN, OUT, FLUSH = 0, 1, 4
RINGS = [{Feature.EVENT_IDX}, {Feature.RING_PACKED}]


def go_on(driver: Driver, guest: Guest[Any]) -> None:
    """``driver`` has the successor in front of it now."""
    driver.guest.close()
    driver.guest, driver.device, driver.memory = guest, guest.device, guest.memory
    for queue in driver.queues.values():
        queue.memory = guest.memory


def through_a_kill(driver: Driver, step: int, action: Callable[[], object], **options: Any) -> bool:
    """Do ``action``, with a kill at ``step``; whether it came to that."""
    kind = type(driver.device)
    left = killed(driver.guest, step, action)
    if left is not None:
        driver.guest.close()
        guest = succeed(left, kind, **options)
        go_on(driver, guest)
    driver.guest.advance(0.1)
    return left is not None


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("step", range(0, 700, 50))
def test_a_disk_does_each_request_once_more_or_not_at_all(tmp_path: Path, ring: set[int], step: int) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * 256)
    driver = Driver(VirtioBlk, memory=MEMORY, image=image)
    driver.start(ring | {Feature.INDIRECT_DESC}, size=16)
    queue = driver.queues[0]

    def work() -> None:
        queue.kick()
        driver.guest.advance(0.01)

    for sector in range(4):
        queue.add(HEADER.pack(IN, 0, sector), write=[512, 1], indirect=True)
        queue.add(HEADER.pack(OUT, 0, 64 + sector), bytes([sector + 1]) * 512, write=[1], indirect=True)
    queue.add(HEADER.pack(FLUSH, 0, 0), write=[1], indirect=True)
    through_a_kill(driver, step, work, image=image)
    answers = sorted(queue.whole(used) for used in queue.used())
    assert answers == sorted([bytes(range(256)) * 2 + b"\0"] * 4 + [b"\0"] * 5)
    content = image.read_bytes()
    assert content[64 * 512 : 68 * 512] == b"".join(bytes([n]) * 512 for n in (1, 2, 3, 4))
    driver.close()


def test_a_flush_fails_in_a_successor_if_one_has_failed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"image": tmp_path / "disk.img", "size": 1 << 16}
    driver = Driver(VirtioBlk, memory=MEMORY, **options)
    driver.start({Blk.FLUSH}, size=16)
    queue = driver.queues[0]

    def flush() -> bytes:
        queue.send(HEADER.pack(FLUSH, 0, 0), write=[1])
        driver.guest.advance(0.01)
        return queue.whole(queue.used()[-1])

    with monkeypatch.context() as failing:
        failing.setattr(os, "fdatasync", broken)
        assert flush() == b"\1"
    for _ in range(2):
        go_on(driver, succeed(remains(driver.guest), VirtioBlk, **options))
        assert flush() == b"\1"
    driver.close()


def broken(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_disk_of_memory_outlives_its_process() -> None:
    driver = Driver(VirtioBlk, memory=MEMORY, size=1 << 16)
    driver.start(size=16)
    queue = driver.queues[0]
    queue.send(HEADER.pack(OUT, 0, 3), b"A" * 512, write=[1])
    go_on(driver, succeed(remains(driver.guest), VirtioBlk, size=1 << 16))
    queue.add(HEADER.pack(IN, 0, 3), write=[512, 1])
    queue.kick()
    driver.guest.advance(0.01)
    assert queue.whole(queue.used()[-1]) == b"A" * 512 + b"\0"
    driver.close()


def test_a_disk_of_memory_that_was_not_kept_is_lost_with_its_process_and_the_driver_is_told() -> None:
    driver = Driver(VirtioBlk, memory=MEMORY, size=1 << 16)
    driver.start(size=16)
    driver.guest.drop_file("disk")
    left = remains(driver.guest)
    go_on(driver, succeed(left, VirtioBlk, size=1 << 16))
    assert driver.status == Status.NEEDS_RESET
    assert set(driver.guest.interrupts) >= {(2, 0), (2, 1)}
    driver.close()


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("step", range(0, 300, 30))
def test_a_card_sends_and_receives_all_packets(tmp_path: Path, ring: set[int], step: int) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(str(far))
        peer.settimeout(30)
        options = {"local": near, "dgram": far, "mac": "02:00:00:00:00:01"}
        driver = Driver(VirtioNet, memory=MEMORY, **options)
        driver.start(ring, range(3), size=16)
        receive, transmit = driver.queues[0], driver.queues[1]
        for _ in range(4):
            receive.add(write=2048)
        packets = [b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x08\0" + bytes([n]) * 50 for n in range(5)]
        transmit.send(PLAIN + packets[0])  # the card knows the map after that
        assert (len(transmit.used()), peer.recv(4096)) == (1, packets[0])
        for packet in packets[:3]:
            transmit.add(PLAIN + packet)
        for packet in packets[3:]:
            transmit.add(PLAIN, packet)
        through_a_kill(driver, step, transmit.kick, **options)
        sent = []
        with contextlib.suppress(BlockingIOError):
            peer.setblocking(False)
            while True:
                sent.append(peer.recv(4096))
        assert list(dict.fromkeys(sent)) == packets, "a packet is lost, or out of order"
        assert len(transmit.used()) == 5
        peer.sendto(packets[0], str(near))
        assert driver.guest.poll(30)
        (packet,) = receive.answers()
        assert packet[len(PLAIN) :] == packets[0]
        driver.close()


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("step", range(0, 300, 30))
def test_a_card_that_is_killed_as_it_receives_keeps_order_and_buffers(
    tmp_path: Path, ring: set[int], step: int
) -> None:
    """A packet that the dead process has read may be lost, as on a wire. None comes twice, and no buffer is lost."""
    near = tmp_path / "near"
    options = {"local": near, "mac": "02:00:00:00:00:01"}
    driver = Driver(VirtioNet, memory=MEMORY, **options)
    driver.start(ring, range(3), size=16)
    receive = driver.queues[0]
    for _ in range(12):
        receive.add(write=300)
    receive.kick()
    packets = [b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x08\0" + bytes([n]) * 50 for n in range(12)]

    def send(some: list[bytes]) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            for packet in some:
                peer.sendto(packet, str(near))

    send(packets[:1])
    assert driver.guest.poll(5)
    send(packets[1:6])
    through_a_kill(driver, step, lambda: driver.guest.poll(5), **options)
    while driver.guest.poll():
        pass
    came = [answer[len(PLAIN) :] for answer in receive.answers()]
    assert came == [packet for packet in packets if packet in came], "a packet came twice, or out of order"
    assert came[0] == packets[0]
    left = packets[6:] + packets[: 6 - len(came)]
    for packet in left:
        send([packet])
        assert driver.guest.poll(5)
    assert [answer[len(PLAIN) :] for answer in receive.answers()] == left
    driver.close()


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("step", range(0, 160, 20))
def test_random_bytes_come_for_each_buffer(ring: set[int], step: int) -> None:
    driver = Driver(VirtioRng, memory=MEMORY)
    driver.start(ring, size=8)
    queue: Queue = driver.queues[0]
    for _ in range(5):
        queue.add(write=64)
    through_a_kill(driver, step, queue.kick)
    answers = queue.answers()
    assert [len(answer) for answer in answers] == [64] * 5
    assert len(set(answers)) == 5
    driver.close()


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("step", range(0, 240, 30))
def test_a_console_takes_each_line_once_and_goes_on_in_both_directions(
    tmp_path: Path, ring: set[int], step: int
) -> None:
    options = {"ports": f"port=unix:{tmp_path / 'port'}"}
    driver = Driver(VirtioConsole, memory=MEMORY, **options)
    driver.start(ring, range(2), size=16)
    receive, transmit = driver.queues[0], driver.queues[1]
    receive.add(write=64)
    receive.kick()
    lines = [bytes([ord("a") + n]) * 7 + b"\n" for n in range(5)]
    with terminal(driver, tmp_path / "port") as first:
        for text in lines:
            transmit.add(text)
        through_a_kill(driver, step, transmit.kick, **options)
        shown = received(first)
    assert len(transmit.used()) == 5
    kept = list(dict.fromkeys(shown.splitlines(keepends=True)))
    assert kept == lines[: len(kept)], "a line is lost, or out of order"
    with terminal(driver, tmp_path / "port") as second:
        second.send(b"hello")
        assert driver.guest.poll(30)
        assert receive.answers() == [b"hello"]
    driver.close()


def received(far: socket.socket) -> bytes:
    """What has come at the far end of a port."""
    data = b""
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        far.setblocking(False)
        while more := far.recv(4096):
            data += more
    return data


@contextlib.contextmanager
def terminal(driver: Driver, path: Path) -> Iterator[socket.socket]:
    """The far end of a port."""
    with socket.socket(socket.AF_UNIX) as far:
        far.connect(str(path))
        assert driver.guest.poll(30)
        yield far


@pytest.mark.parametrize("step", [0, 20, 60, 120])
def test_a_reset_that_was_cut_short_is_done_again(step: int) -> None:
    driver = Driver(VirtioRng, memory=MEMORY)
    driver.start(size=8)

    def reset() -> None:
        driver.status = Status(0)

    if through_a_kill(driver, step, reset) and driver.status:
        reset()  # the write was lost: the successor's client sends it again
    assert driver.status == Status(0)
    assert not driver.device.virtqueues[0].enabled
    driver.start(size=8)
    driver.queues[0].send(write=16)
    assert len(driver.queues[0].answers()[0]) == 16
    driver.close()


def test_an_address_that_was_made_up_goes_with_the_state(tmp_path: Path) -> None:
    options = {"local": tmp_path / "near", "dgram": tmp_path / "far"}
    driver = Driver(VirtioNet, memory=MEMORY, **options)
    driver.start(RINGS[0], range(3), size=16)
    before = driver.config(0, 6)
    left = remains(driver.guest)
    driver.guest.close()
    go_on(driver, succeed(left, VirtioNet, **options))
    assert driver.config(0, 6) == before
    driver.guest.device.core.reset()
    assert driver.config(0, 6) == before
    driver.close()
