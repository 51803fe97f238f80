"""The socket that a device is served on."""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwire.unix_sockets import probe
from bellwired.errors import CommandError
from bellwired.listen import Listener, inherited, listening, refuse_live


def test_the_socket_is_its_owners_alone_and_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with listening(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = stale(tmp_path / "d.sock")
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


@pytest.fixture
def swapped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], None]], None]:
    """The owner of the folder acts between bind(2) and the next step: it is called with the path."""

    def arrange(act: Callable[[Path], None]) -> None:
        class Slow(socket.socket):
            def bind(self, address: str) -> None:  # type: ignore[override]
                super().bind(address)
                act(Path(address))

        monkeypatch.setattr("bellwired.listen._stream", lambda path: Slow(socket.AF_UNIX, socket.SOCK_STREAM))

    return arrange


Arrange = Callable[[Callable[[Path], None]], None]


def test_a_link_in_the_sockets_place_gives_nobody_the_links_target(tmp_path: Path, swapped: Arrange) -> None:
    secret = tmp_path / "shadow"
    secret.write_text("root's")
    secret.chmod(0o600)

    def act(path: Path) -> None:
        path.unlink()
        path.symlink_to(secret)

    swapped(act)
    with pytest.raises(CommandError, match="another process has replaced the socket"):
        Listener(tmp_path / "d.sock", 0o666)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert (tmp_path / "d.sock").is_symlink()


def test_another_socket_in_the_sockets_place_is_not_given_away(tmp_path: Path, swapped: Arrange) -> None:
    with socket.socket(socket.AF_UNIX) as victim:
        victim.bind(str(tmp_path / "victim"))
        (tmp_path / "victim").chmod(0o600)

        def act(path: Path) -> None:
            path.unlink()
            path.hardlink_to(tmp_path / "victim")

        swapped(act)
        with pytest.raises(CommandError, match="another process has replaced the socket"):
            Listener(tmp_path / "d.sock", 0o666)
    assert stat.S_IMODE((tmp_path / "victim").stat().st_mode) == 0o600


def test_a_folder_that_was_replaced_by_a_link_loses_no_file(tmp_path: Path) -> None:
    folder, other = tmp_path / "vm", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (other / "d.sock").write_text("root's")
    listener = Listener(folder / "d.sock")
    folder.rename(tmp_path / "moved")
    folder.symlink_to(other)
    listener.close()
    assert (other / "d.sock").read_text() == "root's"


def stale(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    return path


def test_of_two_who_replace_one_stale_socket_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stale(tmp_path / "d.sock")

    def late(pinned: int, kind: int) -> int:
        """The other one comes after the look for a live server."""
        refused = probe(pinned, kind)
        with pytest.raises(CommandError, match=r"d\.sock: another process is making the socket"):
            Listener(path)
        return refused

    monkeypatch.setattr("bellwire.unix_sockets.probe", late)
    listener = Listener(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))
    listener.close()


def test_a_socket_that_does_not_listen_yet_is_not_taken_for_a_stale_one(tmp_path: Path, swapped: Arrange) -> None:
    path = tmp_path / "d.sock"

    def come_second(path: Path) -> None:
        with pytest.raises(CommandError, match="another process is making the socket"):
            Listener(path)

    swapped(come_second)
    Listener(path).close()


def test_a_lock_that_its_last_owner_has_removed_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, (path, lock) = fcntl.flock, (tmp_path / "d.sock", tmp_path / ".d.sock.lock")
    times = iter(range(99))

    def late(fd: int, how: int) -> None:
        if next(times) == 0:
            lock.unlink()
        usual(fd, how)

    monkeypatch.setattr("bellwire.unix_sockets.fcntl.flock", late)
    with listening(path):
        assert next(times) == 2
        assert os.listdir(tmp_path) == ["d.sock"]


def test_a_lock_that_is_removed_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_fds: set[int]
) -> None:
    monkeypatch.setattr("bellwire.unix_sockets.fcntl.flock", lambda fd, how: (tmp_path / ".d.sock.lock").unlink())
    with pytest.raises(CommandError, match="another process is making the socket"):
        Listener(tmp_path / "d.sock")
    assert {int(name) for name in os.listdir("/proc/self/fd")} <= open_fds | {max(open_fds)}


def test_nothing_but_the_socket_is_left_in_the_folder(tmp_path: Path, open_fds: set[int]) -> None:
    with listening(stale(tmp_path / "d.sock")):
        assert os.listdir(tmp_path) == ["d.sock"]
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == len(open_fds)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a socket to another user")
def test_the_owner_and_the_group_are_the_sockets(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "d.sock", 0o620, "nobody", "daemon")
    found = (tmp_path / "d.sock").stat()
    listener.close()
    assert (found.st_uid, found.st_gid) == (pwd.getpwnam("nobody").pw_uid, grp.getgrnam("daemon").gr_gid)
    assert stat.S_IMODE(found.st_mode) == 0o620


def test_a_check_tells_a_live_socket_from_one_that_is_gone_or_stale(tmp_path: Path) -> None:
    path = tmp_path / "s"
    refuse_live(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        refuse_live(path)
        server.listen()
        with pytest.raises(CommandError, match=f"^{path}: a live server listens there"):
            refuse_live(path)


def test_a_stale_socket_that_another_program_has_just_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stale(tmp_path / "d.sock")
    with socket.socket(socket.AF_UNIX) as other:

        def late(pinned: int, kind: int) -> int:
            refused = probe(pinned, kind)
            if refused:
                path.unlink()
                other.bind(os.fspath(path))
                other.listen()
            return refused

        monkeypatch.setattr("bellwire.unix_sockets.probe", late)
        with pytest.raises(CommandError, match="a live server listens there"):
            Listener(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
    assert os.listdir(tmp_path) == ["d.sock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
def test_a_folder_behind_a_link_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to("root")
    os.chown(tmp_path / "link", 65534, 65534, follow_symlinks=False)
    with pytest.raises(CommandError, match="is not followed: it belongs to user 65534"):
        Listener(tmp_path / "link/d.sock")
    assert not list((tmp_path / "root").iterdir())
