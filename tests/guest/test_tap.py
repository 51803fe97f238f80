"""The tap that stands between clients and servers in these tests loses nothing itself."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tap import Tap
from vfio_user import Channel, Command, MessageFlags
from vfio_user.message import Message

LARGE = 1 << 19
PATIENCE = 20.0


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[Channel, Channel]]:
    """A client's channel and a server's, with a tap between them."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as near:
        listener.bind(os.fspath(tmp_path / "server"))
        listener.listen()
        tap = Tap(tmp_path / "tap", tmp_path / "server")
        near.connect(os.fspath(tap.path))
        far, _ = listener.accept()
        with far:
            yield Channel(near, LARGE, PATIENCE), Channel(far, LARGE, PATIENCE)
            tap.close()


def received(channel: Channel) -> Message:
    return channel.receive_by(time.monotonic() + PATIENCE)


def test_what_a_server_asks_while_it_does_not_read_reaches_the_client(ends: tuple[Channel, Channel]) -> None:
    client, server = ends
    client.send(1, Command.DMA_READ, MessageFlags.REPLY, 0, [bytes(LARGE)])  # fills the server's socket
    server.send(2, Command.DMA_READ, 0, 0, [b"meanwhile"])
    assert received(server).id == 1
    assert received(client).id == 2
