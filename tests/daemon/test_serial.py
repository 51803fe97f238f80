"""A serial port in a process of its own: what is said at the other end reaches the guest, and the other way round."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bellwire.bundled.serial import Serial
from bellwire.bundled.serial.registers import Enabled
from daemon.commands import COMMAND, PATIENCE, ended, line, started
from vfio_user import Client, IrqIndex, RegionIndex

pytestmark = pytest.mark.daemon

DATA, IER = Serial.data.offset, Serial.ier.offset
COMMAND_REGISTER, IO_AND_MASTER = 0x04, 0x05


class Driver:
    """Reads and writes bytes as a driver does: it waits for the interrupt."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        client.write(RegionIndex.CONFIG, COMMAND_REGISTER, IO_AND_MASTER.to_bytes(2, "little"))
        client.trigger_eventfds(IrqIndex.INTX, 0, [self._event])
        client.write(RegionIndex.BAR0, IER, bytes([Enabled.RECEIVED]))

    def read(self) -> bytes:
        ready, _, _ = select.select([self._event], [], [], PATIENCE)
        assert ready, "no interrupt came"
        os.eventfd_read(self._event)
        data = self._client.read(RegionIndex.BAR0, DATA, 1)
        self._client.unmask(IrqIndex.INTX)
        return data

    def write(self, data: bytes) -> None:
        for byte in data:
            self._client.write(RegionIndex.BAR0, DATA, bytes([byte]))

    def close(self) -> None:
        os.close(self._event)


def exactly(fd: int, size: int) -> bytes:
    """So many bytes from ``fd``."""
    data = b""
    while len(data) < size:
        ready, _, _ = select.select([fd], [], [], PATIENCE)
        assert ready, f"only {data!r} came"
        data += os.read(fd, size - len(data))
    return data


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_what_is_typed_at_a_pty_is_received_and_what_is_sent_shows_there(tmp_path: Path) -> None:
    path, tty = tmp_path / "socket", tmp_path / "tty"
    words = ("run", "serial", "-o", f"backend=pty:{tty}", "--socket-path", str(path))
    with started(*words) as process:
        line(process)
        terminal = os.open(tty, os.O_RDWR | os.O_NOCTTY)
        try:
            with Client.connect(path, timeout=PATIENCE) as client, closing(Driver(client)) as driver:
                os.write(terminal, b"typed")
                assert b"".join(driver.read() for _ in range(5)) == b"typed"
                driver.write(b"shown")
                assert exactly(terminal, 5) == b"shown"
        finally:
            os.close(terminal)
        assert ended(process, signal.SIGTERM) == 0
    assert not tty.is_symlink()


def test_its_other_end_may_be_standard_input_and_output(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    words = [*COMMAND, "run", "serial", "-o", "backend=stdio", "--fd", str(theirs.fileno())]
    with subprocess.Popen(
        words, pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        theirs.close()
        assert process.stdin
        assert process.stdout
        with Client(ours, timeout=PATIENCE) as client, closing(Driver(client)) as driver:
            os.write(process.stdin.fileno(), b"typed")
            assert b"".join(driver.read() for _ in range(5)) == b"typed"
            driver.write(b"shown")
            assert exactly(process.stdout.fileno(), 5) == b"shown"
        assert process.wait(PATIENCE) == 0
