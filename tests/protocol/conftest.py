from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from protocol.backend import QEMU_PROPOSAL, REPLY, FakeDevice, Link, Server, Wire, message, served
from vfio_user import Capabilities, Channel, Client, Command, DmaTable, Version

ANSWER = Version(0, 2, Capabilities.of(max_msg_fds=16, write_multiple=True)).pack()


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    with closing(FakeDevice()) as device:
        yield device


@pytest.fixture
def stranger(device: FakeDevice) -> Iterator[Link]:
    """A client that has not introduced itself."""
    with closing(Link(device)) as link:
        yield link


@pytest.fixture
def link(stranger: Link) -> Link:
    """A client that has introduced itself as QEMU does."""
    assert stranger.greet().error == 0
    stranger.device.calls.clear()
    return stranger


@pytest.fixture
def eventfd() -> Iterator[Callable[[], int]]:
    """Make an eventfd, closed when the test ends."""
    with ExitStack() as stack:

        def make() -> int:
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            stack.callback(os.close, fd)
            return fd

        yield make


@pytest.fixture
def memfd() -> Iterator[Callable[[int], int]]:
    """Make a memory file of a size, closed when the test ends."""
    with ExitStack() as stack:

        def make(size: int) -> int:
            fd = os.memfd_create("guest")
            stack.callback(os.close, fd)
            os.ftruncate(fd, size)
            return fd

        yield make


@pytest.fixture
def ends() -> Iterator[tuple[Wire, Channel]]:
    """A raw peer and the channel at the other end."""
    ours, theirs = socket.socketpair()
    with closing(Wire(ours)) as wire, closing(Channel(theirs, 1 << 20, timeout=0.05)) as channel:
        yield wire, channel


@pytest.fixture
def fake_server() -> Iterator[Callable[..., tuple[Client, Wire]]]:
    """Make a client, with these options, and the raw server that it talks to."""
    with ExitStack() as stack:

        def make(answer: bytes = ANSWER, **options: Any) -> tuple[Client, Wire]:
            ours, theirs = socket.socketpair()
            wire = Wire(theirs)
            stack.callback(wire.close)
            wire.raw(message(Command.VERSION, answer, flags=REPLY))
            client = Client(ours, **options)
            stack.callback(client.close)
            assert wire.receive().command == Command.VERSION
            return client, wire

        yield make


@pytest.fixture
def table() -> Iterator[DmaTable]:
    table = DmaTable(max_maps=8)
    yield table
    table.clear()


@pytest.fixture
def conversation(device: FakeDevice) -> Iterator[tuple[Server, Wire]]:
    """A server, and a raw client which has introduced itself."""
    with served(device) as (server, sock), closing(Wire(sock)) as wire:
        wire.send(Command.VERSION, bytes(4) + QEMU_PROPOSAL)
        assert wire.receive().flags == REPLY
        yield server, wire


@pytest.fixture
def short_conversation(device: FakeDevice) -> Iterator[tuple[Server, Wire]]:
    """The same with a server that waits half a second."""
    with served(device, timeout=0.5) as (server, sock), closing(Wire(sock)) as wire:
        wire.send(Command.VERSION, bytes(4) + QEMU_PROPOSAL)
        assert wire.receive().flags == REPLY
        yield server, wire
