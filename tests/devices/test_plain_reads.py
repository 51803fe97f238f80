"""Reads of registers that only look at memory are answered while the worker waits, whatever else it waits for."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping

import pytest

from bellwire import Bar, PciDevice
from bellwire.serve.busy_poll import MOST
from bellwire.serve.worker import Worker
from devices.serving import PATIENCE, read, running, write
from vfio_user import Client

READS = 100


class Timed(PciDevice, vendor=0x1234, device=0x0002, class_code=0x088000):
    """Does what it is told to a while later."""

    mmio = Bar(0, size=4096)
    done = mmio.reg(0x00, access="ro")
    start = mmio.reg(0x04, access="wo")

    @start.write
    def begin(self, milliseconds: int) -> None:
        self.after(milliseconds / 1000, self.finish)

    def finish(self) -> None:
        self.done = 1


def counted(worker: Worker) -> list[int]:
    """One entry for each turn of the worker's loop from now on."""
    turns: list[int] = []
    turn = worker.served.turn

    def count(ready: Mapping[int, int]) -> None:
        turns.append(1)
        turn(ready)

    worker.served.turn = count  # type: ignore[method-assign]
    return turns


@pytest.mark.parametrize("busy_poll", [0.0, MOST], ids=["asleep", "busy"])
@pytest.mark.parametrize("delay", [None, 3_600_000], ids=["no timer", "armed timer"])
def test_reads_take_no_turn_of_the_loop(delay: int | None, busy_poll: float) -> None:
    ours, theirs = socket.socketpair()
    worker = Worker(Timed(), connection=theirs, busy_poll=busy_poll)
    turns = counted(worker)
    with running(worker), Client(ours) as client:
        if delay is not None:
            write(client, Timed.start.offset, delay)
        read(client, Timed.done.offset)
        before = len(turns)
        for _ in range(READS):
            assert read(client, Timed.done.offset) == 0
        assert len(turns) - before < READS / 10


def test_a_driver_that_never_stops_polling_holds_up_no_timer() -> None:
    ours, theirs = socket.socketpair()
    with running(Worker(Timed(), connection=theirs)), Client(ours) as client:
        write(client, Timed.start.offset, 5)
        deadline = time.monotonic() + PATIENCE
        while not read(client, Timed.done.offset):
            assert time.monotonic() < deadline, "the timer has not run"
