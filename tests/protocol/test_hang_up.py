"""A connection that this side ends: what the peer reads."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from vfio_user.hang_up import hang_up


def test_a_peer_whose_bytes_nobody_has_read_reads_an_end_of_file() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(bytes(100_000))
        hang_up(ours.fileno())
        ours.close()
        assert theirs.recv(1) == b""


def test_what_was_sent_to_the_peer_before_it_can_be_read() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(b"reply")
        hang_up(ours.fileno())
        ours.close()
        assert theirs.recv(10) == b"reply"
        assert theirs.recv(10) == b""


def test_descriptors_that_nobody_has_received_are_closed() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    with ours, theirs:
        socket.send_fds(theirs, [b"look"], [writer])
        os.close(writer)
        hang_up(ours.fileno())
        assert os.read(reader, 1) == b""
    os.close(reader)


def test_the_socket_itself_stays_open() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        hang_up(ours.fileno())
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert theirs.recv(1) == b""


def test_what_is_no_connected_socket_is_left_alone(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with (tmp_path / "file").open("wb+") as file, socket.socket(socket.AF_UNIX) as unconnected:
        file.write(b"here")
        for fd in (file.fileno(), unconnected.fileno()):
            hang_up(fd)
        file.seek(0)
        assert file.read() == b"here"
    assert len(os.listdir("/proc/self/fd")) == before
