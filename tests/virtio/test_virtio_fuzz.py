"""Every device and kind of ring, fed with buffers and rings of junk: GuestErrors at most, and a reset mends it."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire import GuestError
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_console import VirtioConsole
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.bundled.virtio_rng import VirtioRng
from bellwire.virtio import Feature, Status
from virtio.conftest import KINDS
from virtio.driver import DEVICE, READY, Driver
from virtio.rings import NEXT, WRITE, PackedQueue, Queue, SplitQueue

pytestmark = pytest.mark.slow

MEMORY = 1 << 20
DEVICES: dict[str, Callable[[Path], Driver]] = {
    "rng": lambda _: Driver(VirtioRng, memory=MEMORY),
    "net": lambda near: Driver(VirtioNet, memory=MEMORY, local=near),
    "blk": lambda _: Driver(VirtioBlk, memory=MEMORY, size=MEMORY, queues=2),
    "console": lambda near: Driver(VirtioConsole, memory=MEMORY, ports=f"a=pty,b=unix:{near}"),
}
RING = {Feature.RING_PACKED, Feature.EVENT_IDX}


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where those from outside reach a device that has a socket."""
    return tmp_path_factory.mktemp("fuzz") / "socket"


def start(driver: Driver, ring: set[int], chance: random.Random) -> None:
    driver._free = 4096  # memory of an earlier life may be used again
    count = driver.common(0x12, 2)
    features = {feature for feature in driver.offered() - RING if chance.random() < 0.8}
    driver.start(features | ring, range(count))
    assert driver.status == READY


def message(chance: random.Random) -> bytes:
    """What may be the beginning of a command, a request, a packet."""
    return chance.choice(
        [
            chance.randbytes(chance.randrange(40)),
            bytes([chance.randrange(6), chance.randrange(6)]) + chance.randbytes(chance.randrange(12)),
            struct.pack("<IIQ", chance.choice([0, 1, 4, 8, 11, 13, 99]), 0, chance.choice([0, 1, 2047, 1 << 60])),
            struct.pack("<QII", chance.randrange(3000), chance.randrange(3000), chance.randrange(3)),
            struct.pack("<IHH", chance.randrange(3), chance.randrange(9), chance.randrange(2)),
        ]
    )


def buffer(queue: Queue, chance: random.Random) -> None:
    """A buffer whose parts lie in memory, but may say anything and have any length."""
    readable = [message(chance) for _ in range(chance.randrange(3))]
    rooms = [chance.choice([0, 1, 2, 511, 513, 4096]) for _ in range(chance.randrange(3))]
    if readable or rooms:
        queue.add(*readable, write=rooms, indirect=chance.random() < 0.3)


def send(outside: contextlib.ExitStack, near: Path, data: bytes) -> None:
    """From outside, if there is a way in."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        far = outside.enter_context(socket.socket(socket.AF_UNIX, kind))
        far.setblocking(False)
        with contextlib.suppress(OSError):
            far.connect(os.fspath(near))
            far.send(data)


def nonsense(queue: Queue, chance: random.Random) -> None:
    """Descriptors that need not be any."""
    raw = [
        (
            chance.choice([0, 0x1000, MEMORY - 1, 1 << 63]),
            chance.choice([0, 16, 1 << 31]),
            chance.choice([0, NEXT, WRITE, 4]),
        )
        for _ in range(chance.randrange(1, 4))
    ]
    if isinstance(queue, PackedQueue):
        queue.write_chain(chance.randrange(9), raw)
    elif isinstance(queue, SplitQueue):
        for slot, (address, length, flags) in enumerate(raw):
            queue.describe(slot, address, length, flags, chance.randrange(20))
        queue.offer(chance.randrange(18))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_junk_in_the_rings(near: Path, device: str, kind: str, seed: int) -> None:
    junk(near, device, kind, seed)


def junk(near: Path, device: str, kind: str, seed: int) -> None:
    """Feed a device junk, which ``seed`` chooses, and then start it as a good driver does."""
    chance = random.Random(seed)
    ring = KINDS[kind] | {Feature.INDIRECT_DESC}
    with DEVICES[device](near) as driver, contextlib.ExitStack() as outside:
        start(driver, ring, chance)
        for _ in range(60):
            queue = chance.choice(list(driver.queues.values()))
            with contextlib.suppress(GuestError, IndexError, KeyError):  # the last two are this driver's own
                chance.choices([buffer, nonsense], [12, 1])[0](queue, chance)
                if chance.random() < 0.5:
                    queue.kick()
                if chance.random() < 0.2:
                    driver.guest.advance(0.1)
                if chance.random() < 0.2:
                    send(outside, near, chance.randbytes(chance.choice([0, 13, 60, 1514, 9000])))
                    driver.guest.poll()
                if chance.random() < 0.1:
                    driver.guest.write(
                        driver.places[DEVICE].bar,
                        chance.getrandbits(64),
                        offset=driver.places[DEVICE].offset + chance.randrange(64),
                        size=chance.choice([1, 2, 4, 8]),
                    )
            if Status.NEEDS_RESET in driver.status or chance.random() < 0.02:
                start(driver, ring, chance)
        start(driver, ring, chance)
