"""A look at what a worker's holder has tells whether the worker gets on."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from bellwired.manager.holder import Holder
from bellwired.manager.watch import Watch
from bellwired.workers.wire import Keep
from vfio_user.journal import BUSY, HEAD, WAITS


class Worker:
    """What a worker has told its ledger, without the worker."""

    def __init__(self) -> None:
        self.holder = Holder("it")
        self.client, theirs = socket.socketpair()
        self.theirs = theirs
        self.state, self.journal, self.rings = (os.memfd_create(name) for name in ("state", "journal", "rings"))
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        for fd in (self.state, self.journal, self.rings):
            os.ftruncate(fd, 4096)
        kept = {"client": theirs.fileno(), "state": self.state, "journal": self.journal, "rings": self.rings}
        for key, fd in {**kept, "event bell": self.bell}.items():
            self.holder.heard(Keep([(key, "{}", 1)]), [os.dup(fd)])
        self.watch = Watch(self.holder)

    def hooks(self, count: int) -> None:
        os.pwrite(self.state, struct.pack("Q", count), 8)

    def mark(self, mark: int, value: int) -> None:
        os.pwrite(self.journal, struct.pack("I", value), 4 * mark)

    def close(self) -> None:
        self.holder.close()
        self.client.close()
        self.theirs.close()
        for fd in (self.state, self.journal, self.rings, self.bell):
            os.close(fd)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def test_nothing_waits_with_an_idle_worker(worker: Worker) -> None:
    assert worker.watch.look() == 0.0


def begin_a_hook(worker: Worker) -> None:
    worker.hooks(1)


def begin_a_command(worker: Worker) -> None:
    worker.mark(BUSY, 32)


def send(worker: Worker) -> None:
    worker.client.send(b"x")


def ring(worker: Worker) -> None:
    os.eventfd_write(worker.bell, 1)


@pytest.mark.parametrize("begin", [begin_a_hook, begin_a_command, send, ring])
def test_what_does_not_move_waits_longer_and_longer(worker: Worker, begin: object) -> None:
    assert callable(begin)
    begin(worker)
    first = worker.watch.look()
    assert 0.0 < first < worker.watch.look()
    worker.watch.answered()
    assert worker.watch.look() == first


def test_a_worker_that_moves_gets_on(worker: Worker) -> None:
    worker.mark(BUSY, 32)
    first = worker.watch.look()
    worker.mark(BUSY, 96)
    worker.mark(HEAD, 64)
    assert worker.watch.look() == first
    worker.hooks(1)
    assert worker.watch.look() == first
    os.pwrite(worker.rings, b"\1", 8)
    assert worker.watch.look() == first


def test_a_worker_that_waits_for_its_client_is_not_to_blame(worker: Worker) -> None:
    worker.hooks(1)
    worker.mark(WAITS, 1)
    assert worker.watch.look() == 0.0


def test_files_that_are_no_memory_are_not_read(worker: Worker) -> None:
    """A read of such a file may wait for whoever has made it."""
    reading, writing = os.pipe()
    worker.holder.heard(Keep([("state", "{}", 1), ("journal", "{}", 1)]), [os.dup(reading), os.dup(reading)])
    worker.holder.heard(Keep([("client", "{}", 1)]), [os.dup(reading)])
    os.write(writing, b"\1" * 64)
    assert worker.watch.look() == 0.0
    os.close(reading)
    os.close(writing)


def test_a_device_without_a_client_is_not_looked_at() -> None:
    assert Watch(Holder("it")).look() == 0.0
