"""A worker is killed at any line while a back end without a record has its rings: each request is answered once."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire.bundled.vhost import Vhost
from bellwire.serve.remembered import Remembered
from bellwire.serve.worker import Worker
from bellwire.vhost.bequest import CONNECTION
from bellwire.virtio.transport import NOTIFY
from devices.serving import COMMAND, MEMORY_AND_MASTER, running, sub_regions
from devices.test_fault_points import GAP
from dying import Outcome, play
from vfio_user import Client, RegionIndex, RemoteError
from vhost.program import DESCRIPTOR, NEXT, WRITE, Program, Ring
from vhost.test_vhost_crash import UNTRACKED
from vhost.test_vhost_device import Start
from vhost.test_wires import RUN

pytestmark = pytest.mark.slow

PAGE, MEMORY, ELSEWHERE = 4096, 1 << 16, 1 << 20
DESC, AVAIL, USED, DATA = 0x1000, 0x2000, 0x3000, 0x4000  # as RUN has them
REQUESTS = 6
PATIENCE = 30.0


class Backwards(Program):
    """Keeps the first of each three requests, and returns the others first: no ring tells what is missing."""

    def _serve(self, ring: Ring) -> None:
        super()._serve(ring)
        if len(ring.held) > 2:
            kept, *others = ring.held
            ring.held = [kept]
            for head in reversed(others):
                self._finish(ring, head)


@pytest.fixture(scope="module")
def socket_path() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder) / "sock"


def returned(memory: mmap.mmap, count: int) -> None:
    """Wait until so many requests have come back."""
    deadline = time.monotonic() + PATIENCE
    while struct.unpack_from("<H", memory, USED + 2)[0] < count:
        assert time.monotonic() < deadline
        select.select([], [], [], 0.001)


def repeated(work: Callable[[], None]) -> None:
    """Do it again if the worker died with the descriptor that came with it."""
    try:
        work()
    except RemoteError:
        work()


def ask(client: Client) -> Any:
    """Send requests, three at a time, while memory comes and goes. Returns the device's status, and the answers."""
    fd, other = (os.memfd_create("guest") for _ in range(2))
    for file in (fd, other):
        os.ftruncate(file, MEMORY)
    memory = mmap.mmap(fd, MEMORY)
    client.write(RegionIndex.CONFIG, COMMAND, MEMORY_AND_MASTER.to_bytes(2, "little"))
    repeated(lambda: client.dma_map(0, MEMORY, fd))
    for register, value, size in RUN:
        client.write(0, register, value.to_bytes(size, "little"))
    with sub_regions(client) as found:
        for count in range(3, REQUESTS + 1, 3):
            for number in range(count - 3, count):
                put(memory, number)
            os.eventfd_write(found[NOTIFY].fd, 1)
            repeated(lambda: client.dma_map(ELSEWHERE, MEMORY, other))
            returned(memory, count - 2)
            client.dma_unmap(ELSEWHERE, MEMORY)
    used = struct.unpack_from("<H", memory, USED + 2)[0]
    heads = [struct.unpack_from("<I", memory, USED + 4 + 8 * at)[0] for at in range(used)]
    answers = [bytes(memory[DATA + 32 * head + 32 :][:5]) for head in heads]
    assert len(set(heads)) == used <= REQUESTS
    assert answers == [b"%d ksa" % (head // 2) for head in heads]
    return client.read(0, 0x14, 1)[0]


def put(memory: mmap.mmap, number: int) -> None:
    """Put a request into the ring: what it asks, and room for the answer."""
    at, text, head = DATA + 64 * number, b"ask %d" % number, 2 * number
    memory[at : at + len(text)] = text
    DESCRIPTOR.pack_into(memory, DESC + 16 * head, at, len(text), NEXT, head + 1)
    DESCRIPTOR.pack_into(memory, DESC + 16 * (head + 1), at + 32, len(text), WRITE, 0)
    struct.pack_into("<H", memory, AVAIL + 4 + 2 * number, head)
    struct.pack_into("<H", memory, AVAIL + 2, number + 1)


def played(place: Path, fault: int | None = None) -> Outcome:
    program = Backwards(place, protocol=UNTRACKED, holds=True)
    try:
        return play(ask, lambda: Vhost(backend=f"unix:{place}", type="rng"), fault)
    finally:
        program.crash()


@functools.cache
def undisturbed(place: Path) -> Outcome:
    return played(place)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_each_request_is_answered_once_in_spite_of_a_death_between_any_two_lines(
    socket_path: Path, data: st.DataObject
) -> None:
    before = undisturbed(socket_path)
    outcome = played(socket_path, data.draw(st.integers(1, before.lines)))
    if not outcome.killed.startswith(GAP):
        assert outcome.seen == before.seen == 15


def test_the_ledger_has_the_connection_while_a_client_is_there(
    start: Start, place: Path, memfd: Callable[[int], int]
) -> None:
    start(protocol=UNTRACKED)
    ours, theirs = socket.socketpair()
    ledger = Remembered()
    device = Vhost(backend=f"unix:{place}", type="rng")
    with running(Worker(device, connection=theirs, ledger=ledger)), Client(ours) as client:
        client.write(RegionIndex.CONFIG, COMMAND, MEMORY_AND_MASTER.to_bytes(2, "little"))
        client.dma_map(0, MEMORY, memfd(MEMORY))
        for register, value, size in RUN:
            client.write(0, register, value.to_bytes(size, "little"))
        client.dma_map(ELSEWHERE, PAGE, memfd(PAGE))
        with contextlib.closing(ledger.estate()) as estate:
            note = estate.note(f"file {CONNECTION}")
            assert [(*place[:3],) for place in note["table"]] == [(0, MEMORY, 0), (ELSEWHERE, PAGE, 0)]
            assert (note["rings"], note["steady"]) == ([0], True)
    assert list(ledger.estate()) == []


def test_a_worker_that_makes_room_for_another_one_lets_the_rings_run(
    start: Start, place: Path, memfd: Callable[[int], int]
) -> None:
    program = start(protocol=UNTRACKED)
    ours, theirs = socket.socketpair()
    ledger, fd = Remembered(), memfd(MEMORY)
    memory = mmap.mmap(fd, MEMORY)
    worker = Worker(Vhost(backend=f"unix:{place}", type="rng"), connection=theirs, ledger=ledger)
    with contextlib.ExitStack() as stack:
        with running(worker):
            client = stack.enter_context(Client(ours))
            client.write(RegionIndex.CONFIG, COMMAND, MEMORY_AND_MASTER.to_bytes(2, "little"))
            client.dma_map(0, MEMORY, fd)
            for register, value, size in RUN:
                client.write(0, register, value.to_bytes(size, "little"))
            worker.leave()
        assert program.said[-1] == "SET_VRING_ENABLE"
        put(memory, 0)
        os.eventfd_write(program.rings[0].kick, 1)
        returned(memory, 1)
        put(memory, 1)
        os.eventfd_write(program.rings[0].kick, 1)
        successor = Vhost(backend=f"unix:{place}", type="rng")
        with running(Worker(successor, ledger=ledger, estate=ledger.estate())):
            returned(memory, 2)
            assert client.read(0, 0x14, 1)[0] == 15
    assert program.said.count("SET_OWNER") == 1
