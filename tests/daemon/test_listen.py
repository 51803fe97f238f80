"""The socket that a device is served on."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from bellwired.errors import CommandError
from bellwired.listen import inherited, listening


def test_the_socket_is_its_owners_alone_and_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with listening(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    with listening(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))


def test_a_live_socket_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with listening(path), pytest.raises(CommandError, match="a live server listens there"), listening(path):
        pass


def test_a_file_in_the_way_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    path.write_text("mine")
    with pytest.raises(CommandError, match="is not a socket"), listening(path):
        pass
    assert path.read_text() == "mine"


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="at most 107 bytes"), listening(tmp_path / ("x" * 120)):
        pass


def test_a_socket_that_is_no_longer_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with listening(path):
        path.unlink()
        path.write_text("somebody else's")
    assert path.exists()


def test_an_inherited_listener_and_an_inherited_client_are_told_apart(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "d.sock"))
        listener.listen()
        given, listens = inherited(os.dup(listener.fileno()))
        given.close()
        assert listens
    one, other = socket.socketpair()
    with one, other:
        given, listens = inherited(os.dup(one.fileno()))
        given.close()
        assert not listens


@pytest.mark.parametrize("family", ["file", "datagram", "closed"])
def test_an_inherited_fd_of_another_kind_is_refused(family: str, tmp_path: Path) -> None:
    fd = -1
    if family == "file":
        fd = os.open(tmp_path / "f", os.O_CREAT | os.O_RDWR)
    elif family == "datagram":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
            fd = datagram.detach()
    else:
        fd = os.open("/dev/null", os.O_RDONLY)
        os.close(fd)
    with pytest.raises(CommandError, match=f"--fd {fd}: not a"):
        inherited(fd)
    if family != "closed":
        os.close(fd)
