"""virtio-net on stream sockets: frames with their length before them."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bellwire.bundled.virtio_net import VirtioNet
from bellwire.network import LinkError
from bellwire.testing import Guest
from virtio.card import PATIENCE, Card
from virtio.frames import THEIRS, frame


@pytest.fixture
def stream(tmp_path: Path, ring: set[int]) -> Iterator[tuple[Card, Callable[[], socket.socket]]]:
    """A card that listens, and a way to connect to it."""
    path = tmp_path / "stream"
    with contextlib.ExitStack() as stack:
        card = Card(ring, stream=path, listen=True, mac="52:54:00:12:34:56")
        stack.callback(card.close)

        def connect() -> socket.socket:
            far = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            far.settimeout(PATIENCE)
            far.connect(os.fspath(path))
            assert card.driver.guest.poll(PATIENCE)
            return far

        yield card, connect


def with_length(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def test_frames_on_a_stream_have_their_length_before_them(
    stream: tuple[Card, Callable[[], socket.socket]],
) -> None:
    card, connect = stream
    far = connect()
    card.send(frame(THEIRS))
    assert far.recv(2000) == with_length(frame(THEIRS))
    far.sendall(with_length(frame(fill=1)) + with_length(frame(fill=2))[:30])
    assert [packet.frame[-1] for packet in card.await_packets()] == [1]
    far.sendall(with_length(frame(fill=2))[30:])
    assert [packet.frame[-1] for packet in card.await_packets()] == [2]


def test_when_the_peer_goes_the_next_may_come(stream: tuple[Card, Callable[[], socket.socket]]) -> None:
    card, connect = stream
    connect().close()
    assert card.driver.guest.poll(PATIENCE)
    far = connect()
    far.sendall(with_length(frame()))
    assert len(card.await_packets()) == 1


@pytest.mark.parametrize("length", [0, 1 << 20, 0xFFFF_FFFF])
def test_a_length_that_cannot_be_ends_the_connection(tmp_path: Path, length: int) -> None:
    card = Card(stream=tmp_path / "stream", listen=True)
    with contextlib.closing(card), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as far:
        far.settimeout(PATIENCE)
        far.connect(os.fspath(tmp_path / "stream"))
        far.sendall(struct.pack(">I", length))
        assert card.driver.guest.poll(PATIENCE)
        assert far.recv(1) == b""


def test_a_peer_that_does_not_read_loses_whole_frames_only(
    stream: tuple[Card, Callable[[], socket.socket]],
) -> None:
    card, connect = stream
    far = connect()
    big = frame(THEIRS, size=60_000)
    sent = 0
    while not card.device.dropped:
        card.send(big)
        sent += 1
    far.setblocking(False)
    data = bytearray()
    while True:
        try:
            data += far.recv(1 << 20)
        except BlockingIOError:
            if not card.driver.guest.poll():
                break
    count, rest = divmod(len(data), len(big) + 4)
    assert rest == 0
    assert count == sent - card.device.dropped
    assert data == with_length(big) * count


def test_a_card_may_connect_itself(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(tmp_path / "stream"))
        listener.listen()
        with contextlib.closing(Card(stream=tmp_path / "stream")) as card:
            far, _ = listener.accept()
            with far:
                far.settimeout(PATIENCE)
                card.send(frame(THEIRS))
                assert far.recv(2000) == with_length(frame(THEIRS))


@pytest.mark.parametrize("sending", [False, True])
def test_a_peer_that_was_called_and_has_gone_is_a_link_that_is_down(tmp_path: Path, sending: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(tmp_path / "stream"))
        listener.listen()
        with contextlib.closing(Card(stream=tmp_path / "stream")) as card:
            listener.accept()[0].close()
            if sending:
                card.send(frame(THEIRS))
            assert card.driver.guest.poll(PATIENCE)
            assert card.driver.config(6, 2) == 0
            assert not card.driver.guest.poll()


def test_a_stream_to_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=r"stream: No such file"):
        Guest(VirtioNet, stream=tmp_path / "stream")


def test_a_file_in_the_way_of_a_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("kept")
    with pytest.raises(LinkError, match="is not a socket"):
        Guest(VirtioNet, local=path)
    assert path.read_text() == "kept"
