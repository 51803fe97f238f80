"""Vectored calls: more pieces than the kernel takes at once, and fewer bytes moved than were asked for."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire.network import DatagramLink, StreamLink
from bellwire.network.link import HEADER_SIZE
from bellwire.network.tap import TapEnd
from bellwire.pieces import MOST_PIECES, after, one_call, write
from bellwire.storage import Disk
from vfio_user import Channel, VfioUserError
from vfio_user.received_fds import KERNEL_MAX_FDS

MANY = 3 * MOST_PIECES + 7
DATA = bytes(number * 5 % 251 for number in range(MANY))
PATIENCE = 30.0


def single(data: bytes) -> list[memoryview]:
    """Each byte a piece of its own."""
    return [memoryview(data)[at : at + 1] for at in range(len(data))]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ours, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_the_kernel_takes_no_more_than_most_pieces(pipe: tuple[int, int]) -> None:
    assert os.sysconf("SC_IOV_MAX") == MOST_PIECES
    with pytest.raises(OSError, match="Invalid argument"):
        os.writev(pipe[1], single(DATA[: MOST_PIECES + 1]))


@given(st.lists(st.binary(max_size=5)), st.integers(0, 40))
def test_what_is_left_is_what_follows(pieces: list[bytes], done: int) -> None:
    left = after(pieces, done)
    assert b"".join(left) == b"".join(pieces)[done:]
    assert all(left)


@given(st.lists(st.binary(max_size=3), max_size=12), st.integers(1, 12))
def test_one_call_has_the_same_bytes_in_few_pieces(pieces: list[bytes], most: int) -> None:
    few = one_call([memoryview(piece) for piece in pieces], most)
    assert b"".join(few) == b"".join(pieces)
    assert len(few) <= most


def test_many_pieces_are_written_in_several_calls(pipe: tuple[int, int]) -> None:
    assert write(pipe[1], single(DATA)) == MANY
    assert os.read(pipe[0], 1 << 16) == DATA


def test_pieces_without_bytes_are_no_reason_to_stop(pipe: tuple[int, int]) -> None:
    assert write(pipe[1], [b""] * MANY + [b"end"]) == 3
    assert write(pipe[1], [b""] * MANY) == 0
    assert os.read(pipe[0], 100) == b"end"


def test_what_there_was_room_for_is_counted(pipe: tuple[int, int]) -> None:
    block = bytes(range(256)) * 256
    sent = write(pipe[1], [block, block])
    assert 0 < sent < 2 * len(block)
    assert write(pipe[1], [block]) == 0
    assert os.read(pipe[0], 1 << 20) == (block + block)[:sent]


# -- disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 16))
    with closing(Disk.open(path)) as disk:
        yield disk


def halting(call: Callable[..., int], most: int) -> Callable[..., int]:
    """``call``, which moves no more than ``most`` bytes, as the kernel may."""

    def moved(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        assert len(buffers) <= MOST_PIECES
        some, left = [], most
        for buffer in buffers:
            some.append(memoryview(buffer)[:left])
            left -= len(some[-1])
        return call(fd, some, offset, flags)

    return moved


@pytest.mark.parametrize("most", [1, 100, 1 << 20])
def test_a_disk_is_read_and_written_whole_whatever_a_call_moves(
    disk: Disk, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, room = (DATA, MANY) if most > 1 else (DATA[:500], 500)
    monkeypatch.setattr(os, "pwritev", halting(os.pwritev, most))
    monkeypatch.setattr(os, "preadv", halting(os.preadv, most))
    disk.write(single(data), 123)
    found = bytearray(room)
    disk.read([memoryview(found)[at : at + 1] for at in range(room)], 123)
    assert found == data


def test_an_image_that_takes_nothing_is_an_error_and_no_loop(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(OSError, match="takes nothing at 0x200") as failed:
        disk.write([b"x" * 512], 512)  # type: ignore[list-item]
    assert failed.value.errno == errno.EIO


def test_a_read_at_once_that_brings_less_is_none(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.at_once = 0
    monkeypatch.setattr(os, "preadv", halting(os.preadv, 100))
    assert not disk.try_read([bytearray(101)], 0, 101)
    assert disk.try_read([bytearray(100)], 0, 100)
    assert not disk.try_read([bytearray(1) for _ in range(MOST_PIECES + 1)], 0, MOST_PIECES + 1)


# -- packets, which go whole or not at all


PACKET = bytes(HEADER_SIZE) + DATA
SHAPES = {
    "each byte a piece": single(PACKET),
    "the header with the first of many": [memoryview(PACKET)[: HEADER_SIZE + 1], *single(PACKET)[HEADER_SIZE + 1 :]],
    "as many as there may be": [
        memoryview(PACKET)[: HEADER_SIZE + 1],
        *single(PACKET)[HEADER_SIZE + 1 : HEADER_SIZE + MOST_PIECES],
    ],
}


@pytest.mark.parametrize("packet", SHAPES.values(), ids=SHAPES.keys())
def test_a_datagram_may_be_in_many_pieces(tmp_path: Path, packet: list[memoryview]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
        far.bind(os.fspath(tmp_path / "far"))
        far.settimeout(PATIENCE)
        with closing(DatagramLink(None, tmp_path / "far")) as link:
            assert link.send(packet)
            assert far.recv(1 << 16) == b"".join(packet)[HEADER_SIZE:]


@pytest.mark.parametrize("packet", SHAPES.values(), ids=SHAPES.keys())
def test_a_frame_on_a_stream_may_be_in_many_pieces(tmp_path: Path, packet: list[memoryview]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(tmp_path / "far"))
        listener.listen()
        with closing(StreamLink(tmp_path / "far")) as link:
            far, _ = listener.accept()
            with far:
                assert link.send(packet)
                frame = b"".join(packet)[HEADER_SIZE:]
                assert far.recv(1 << 16) == len(frame).to_bytes(4, "big") + frame


def test_a_packet_for_a_tap_may_be_in_many_pieces(pipe: tuple[int, int]) -> None:
    assert TapEnd(pipe[1]).send(SHAPES["each byte a piece"])
    assert os.read(pipe[0], 1 << 16) == PACKET


# -- messages


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = socket.socketpair()
    with closing(Channel(ours, 1 << 20)) as one, closing(Channel(theirs, 1 << 20)) as other:
        yield one, other


@pytest.mark.parametrize("count", [MOST_PIECES - 1, MOST_PIECES, 2 * MANY])
def test_a_message_may_be_in_many_pieces(channels: tuple[Channel, Channel], count: int) -> None:
    one, other = channels
    pieces = [memoryview(bytes((number % 251,)) * 5) for number in range(count)]  # with its header it is one more
    one.send(1, 10, 0, 0, pieces)
    assert other.receive_by(time.monotonic() + PATIENCE).payload == b"".join(pieces)


def test_as_many_descriptors_travel_as_the_kernel_carries(channels: tuple[Channel, Channel]) -> None:
    one, other = channels
    fds = [0] * KERNEL_MAX_FDS
    one.send(1, 8, 0, 0, [], fds)
    received = other.receive_by(time.monotonic() + PATIENCE).fds
    assert len(received) == KERNEL_MAX_FDS
    for fd in received:
        os.close(fd)


def test_with_more_descriptors_the_message_is_refused_and_the_next_goes(channels: tuple[Channel, Channel]) -> None:
    one, other = channels
    with pytest.raises(VfioUserError, match="DEVICE_SET_IRQS: 254 fds, at most 253") as refused:
        one.send(1, 8, 0, 0, [], [0] * (KERNEL_MAX_FDS + 1))
    assert refused.value.errno == errno.E2BIG
    one.send(2, 13, 0)
    assert other.receive_by(time.monotonic() + PATIENCE).id == 2
