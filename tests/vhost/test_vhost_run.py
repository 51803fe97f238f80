"""A back end that misbehaves, or goes, under ``bellwire run``: the process that serves is not lost for it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bellwire.vhost.messages import Request
from daemon.commands import COMMAND as BELLWIRE
from daemon.commands import PATIENCE, children
from devices.serving import COMMAND, MEMORY_AND_MASTER
from vfio_user import Client, RegionIndex
from vhost.test_vhost_device import Start
from vhost.test_wires import RUN

pytestmark = [pytest.mark.daemon, pytest.mark.slow]

MEMORY, STATUS = 1 << 16, 0x14


class Running:
    """``bellwire run vhost`` with the options of every day: its parent is ``process``."""

    def __init__(self, place: Path) -> None:
        self.socket, self.log = place.with_name("device"), place.with_name("log")
        ready, told = os.pipe()
        words = ["run", "vhost", "-o", f"backend=unix:{place}", "-o", "type=rng", "--socket-path", str(self.socket)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*BELLWIRE, *words, "--runtime-dir", str(place.with_name("run")), "--ready-fd", str(told)],
                pass_fds=[told],
                stderr=log,
            )
        os.close(told)
        with open(ready, "rb") as file:
            assert file.read() == b"\n", self.said()

    @property
    def pid(self) -> int:
        """Of the process that serves."""
        (pid,) = children(self.process.pid)
        return pid

    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture
def run(place: Path) -> Iterator[Callable[[], Running]]:
    """Start the device: ``run()``, once the back end is there."""
    with contextlib.ExitStack() as stack:

        def run() -> Running:
            running = Running(place)
            stack.enter_context(running.process)
            stack.callback(running.process.kill)
            return running

        yield run


@contextlib.contextmanager
def driven(running: Running, memory: int) -> Iterator[Client]:
    """A client whose driver is ready."""
    with Client.connect(running.socket, timeout=PATIENCE) as client:
        client.write(RegionIndex.CONFIG, COMMAND, MEMORY_AND_MASTER.to_bytes(2, "little"))
        client.dma_map(0, MEMORY, memory)
        for register, value, size in RUN:
            client.write(0, register, value.to_bytes(size, "little"))
        assert status(client) == 15
        yield client


def status(client: Client) -> int:
    return client.read(0, STATUS, 1)[0]


def reset(client: Client) -> None:
    client.write(0, STATUS, b"\0")


@pytest.mark.parametrize("silent", [{Request.GET_VRING_BASE}, set(Request)], ids=["at-one-request", "wholly"])
def test_a_back_end_that_hangs_at_a_reset_is_given_up_before_the_process_counts_as_hung(
    start: Start, run: Callable[[], Running], memfd: Callable[[int], int], silent: set[Request]
) -> None:
    program = start()
    running = run()
    before = running.pid
    with driven(running, memfd(MEMORY)) as client:
        program.answer = lambda request: b"" if request in silent else None
        reset(client)
        assert status(client) == 0
        assert running.pid == before
    assert "does not answer GET_VRING_BASE in time" in running.said()


def test_a_process_that_dies_while_no_back_end_is_there_is_followed_by_one_that_waits_for_it(
    start: Start, run: Callable[[], Running], memfd: Callable[[int], int]
) -> None:
    program = start()
    running = run()
    with driven(running, memfd(MEMORY)) as client:
        program.crash()
        for _ in range(2):
            os.kill(running.pid, signal.SIGKILL)
            assert status(client) == 15
        program = start()
        deadline = time.monotonic() + PATIENCE
        while "SET_VRING_ENABLE" not in program.said:
            assert time.monotonic() < deadline
            assert status(client) == 15
