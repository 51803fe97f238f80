"""Streams: standard input and output of this process, and what peers and paths are at their limits."""

from __future__ import annotations

import contextlib
import os
import socket
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwire.stream import Stream, open_stream, stream_fault
from virtio.test_streams import PATIENCE, join, make, readable


@pytest.fixture
def opened() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


# -- standard input and output of this process


@pytest.fixture
def standard() -> Iterator[tuple[int, int]]:
    """The ends of this process's own terminal: ours, and theirs, which is descriptor 0 and 1 for the test."""
    kept = [os.dup(fd) for fd in (0, 1)]
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    try:
        for fd in (0, 1):
            os.dup2(theirs, fd)
        yield ours, theirs
    finally:
        for fd, was in enumerate(kept):
            os.dup2(was, fd)
            os.close(was)
        os.close(ours)
        os.close(theirs)


def test_a_terminal_is_set_for_single_keys_and_set_back(standard: tuple[int, int]) -> None:
    _, theirs = standard
    before = termios.tcgetattr(theirs), os.get_blocking(0)
    stream = open_stream("stdio")
    flags = termios.tcgetattr(theirs)[3]
    assert (bool(flags & termios.ICANON), bool(flags & termios.ISIG), os.get_blocking(0)) == (False, True, False)
    assert stream.name == "standard input and output"
    stream.close()
    assert (termios.tcgetattr(theirs), os.get_blocking(0)) == before
    os.fstat(0)
    os.fstat(1)


def test_output_by_descriptor_0_waits_for_room_too() -> None:
    """Where standard input is closed, a socket may get its number."""
    kept = os.dup(0)
    one, other = socket.socketpair()
    try:
        os.dup2(one.fileno(), 0)
        one.close()
        with contextlib.closing(Stream("zero")) as stream:
            stream.take(0)
            assert stream.connected
            block = bytes(1 << 16)
            while stream.send([block]) == len(block):
                pass
            assert not readable(stream, 0)
            while not readable(stream, 0):
                other.recv(1 << 20)
            stream.look()
            assert stream.send([b"more"]) == 4
            other.sendall(b"hello")
            assert readable(stream)
            assert stream.receive() == b"hello"
    finally:
        other.close()
        os.dup2(kept, 0)
        os.close(kept)


# -- small things


def test_what_is_received_is_at_most_what_was_asked_for(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    stream = make(opened, f"unix:{tmp_path / 'line'}")
    far = join(opened, stream, tmp_path / "line")
    far.sendall(bytes(70000))
    assert [len(stream.receive(10)), len(stream.receive()), len(stream.receive())] == [10, 65536, 4454]


def test_bytes_to_nobody_are_taken_and_none_are_none(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    stream = make(opened, f"unix:{tmp_path / 'line'}")
    assert (stream.send([b"abc", b"de"]), stream.send([]), stream.send([b""])) == (5, 0, 0)
    far = join(opened, stream, tmp_path / "line")
    assert stream.send([b""]) == 0
    far.close()
    assert stream.send([b"abc"]) == 3


@pytest.mark.parametrize("length", [107, 108])
@pytest.mark.parametrize("kind", ["unix", "connect", "file", "pty"])
def test_only_a_sockets_path_has_a_length_that_is_too_long(kind: str, length: int) -> None:
    fault = stream_fault(f"{kind}:{'x' * length}")
    assert (fault is not None) is (length == 108 and kind in ("unix", "connect"))


def test_a_second_peer_waits_until_the_first_has_gone(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    stream = make(opened, f"unix:{tmp_path / 'line'}")
    first = join(opened, stream, tmp_path / "line")
    second = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    second.settimeout(PATIENCE)
    second.connect(os.fspath(tmp_path / "line"))
    assert not readable(stream, 0)
    stream.look()
    stream.send([b"to the first"])
    assert first.recv(100) == b"to the first"
    stream.hang_up()
    assert first.recv(100) == b""
    assert readable(stream)
    stream.look()
    stream.send([b"to the second"])
    assert second.recv(100) == b"to the second"
    stream.hang_up()
    stream.hang_up()
    assert not stream.connected


def test_holding_what_is_held_changes_nothing(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    stream = make(opened, f"unix:{tmp_path / 'line'}")
    far = join(opened, stream, tmp_path / "line")
    far.sendall(b"x")
    for held in (True, True, False, False):
        stream.hold(held)
        assert readable(stream, 0) is not held
