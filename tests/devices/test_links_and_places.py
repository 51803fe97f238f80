"""Stream links whose sockets are full, sockets whose owners are checked, folders, and timers of a worker's client."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from bellwire import unix_sockets
from bellwire.network import LinkError
from bellwire.network.link import HEADER_SIZE
from bellwire.network.sockets import LENGTH, StreamLink
from bellwire.network.tap import _why
from bellwire.paths import PathError, Place
from bellwire.unix_sockets import Bound, Peer, check_peer, connect

# -- a stream link


class Far:
    """A peer's socket that takes ``room`` bytes; -1: it fails."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sent = b""

    def sendmsg(self, pieces: list[Any]) -> int:
        return self.send(b"".join(pieces))

    def send(self, data: bytes) -> int:
        if self.room < 0:
            raise BlockingIOError
        some = bytes(data[: self.room])
        self.room -= len(some)
        self.sent += some
        return len(some)

    def close(self) -> None: ...


@pytest.fixture
def link() -> Any:
    """A link without sockets; ``asked`` has the events that it watches its peer for."""
    made = StreamLink.__new__(StreamLink)
    made._path, made._listener, made._bound = Path("x"), None, None
    made._input, made._output = bytearray(), bytearray()
    asked: list[int] = []
    made._epoll = SimpleNamespace(modify=lambda _, events: asked.append(events), close=lambda: None)  # type: ignore[assignment]
    made.asked = asked  # type: ignore[attr-defined]
    return made


PACKET = [memoryview(bytes(HEADER_SIZE)), memoryview(b"f" * 60)]
FRAME = LENGTH.pack(60) + b"f" * 60


@pytest.mark.parametrize(("room", "kept", "asked"), [(64, 0, []), (63, 1, [5]), (0, 64, [5])])
def test_what_a_socket_has_no_room_for_is_kept(link: Any, room: int, kept: int, asked: list[int]) -> None:
    assert select.EPOLLIN | select.EPOLLOUT == 5
    link._peer = Far(room)
    assert link.send(PACKET) is True
    assert (len(link._output), link.asked) == (kept, asked)
    assert link._peer.sent + link._output == FRAME


def test_the_rest_of_a_frame_goes_before_the_next(link: Any) -> None:
    link._peer = far = Far(10)
    assert link.send(PACKET) is True
    assert link.send(PACKET) is False, "it is dropped"
    far.room = 54
    assert link.send(PACKET) is True
    assert far.sent + link._output == FRAME * 2
    assert link.asked == [5, select.EPOLLIN, 5]
    far.room = -1
    assert link.send(PACKET) is False
    assert far.sent + link._output == FRAME * 2


def test_without_a_peer_or_with_a_full_one_a_frame_is_dropped(link: Any) -> None:
    link._peer = None
    assert link.send(PACKET) is False
    link._output += b"rest"
    assert link.send(PACKET) is False
    link._output.clear()
    link._peer = Far(-1)
    assert (link.send(PACKET), bytes(link._output)) == (False, b"")


def test_a_link_that_connects_ends_with_its_peer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "s"))
        listener.listen()
        link = StreamLink(tmp_path / "s")
        far, _ = listener.accept()
        far.sendall(FRAME)
        buffers = [memoryview(bytearray(HEADER_SIZE)), memoryview(bytearray(100))]
        assert link.receive(buffers) == HEADER_SIZE + 60
        assert link.receive(buffers) == 0
        far.close()
        with pytest.raises(LinkError, match="the peer has gone"):
            link.receive(buffers)
        link.close()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EPERM, "x"), "not permitted: it takes CAP_NET_ADMIN, or a tap that was made for this user"),
        (OSError(errno.EBUSY, "x"), "somebody else has it open"),
        (
            OSError(errno.EINVAL, "x"),
            "it exists and is another kind of interface, or has another number of queues",
        ),
        (OSError(errno.ENOENT, "gone", "/dev/tun"), "gone (/dev/tun)"),
        (OSError(errno.ENOENT, "gone"), "gone"),
        (OSError("odd"), "odd"),
    ],
)
def test_why_there_is_no_tap(error: OSError, text: str) -> None:
    assert _why(error) == text


# -- folders


def test_a_folder_has_exactly_the_mode_that_it_must_have(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with Place(tmp_path / "exact", follow=False) as place:
            assert place.make_folder(0o755, exact=True) is True
            assert place.make_folder(0o700, exact=True) is False
        with Place(tmp_path / "masked", follow=False) as place:
            assert place.make_folder(0o755) is True
    finally:
        os.umask(before)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    assert modes == {"exact": 0o755, "masked": 0o700}


def test_only_an_empty_folder_is_removed(tmp_path: Path) -> None:
    (tmp_path / "full" / "x").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for name in ("full", "empty", "none"):
        with Place(tmp_path / name, follow=False) as place:
            place.remove_folder()
    assert os.listdir(tmp_path) == ["full"]


def test_a_file_is_made_once_with_what_is_in_it(tmp_path: Path) -> None:
    with Place(tmp_path / "new", follow=False) as place:
        place.create(b"text")
        with pytest.raises(FileExistsError):
            place.create(b"other")
    assert (tmp_path / "new").read_bytes() == b"text"
    assert not stat.S_IMODE((tmp_path / "new").stat().st_mode) & 0o111


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Place(tmp_path / "file") as place, pytest.raises(NotADirectoryError) as refused:
        place.open_folder()
    assert refused.value.filename == os.fspath(tmp_path / "file")
    with Place(tmp_path / "file", follow=False) as place, pytest.raises(NotADirectoryError) as refused:
        place.make_folder()
    assert refused.value.filename == os.fspath(tmp_path / "file")


# -- sockets


def test_a_refused_connection_names_the_path(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(tmp_path / "s"))
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ConnectionRefusedError) as refused:
        connect(sock, tmp_path / "s")
    assert refused.value.filename == os.fspath(tmp_path / "s")


@pytest.mark.parametrize(
    ("uid", "let", "good"), [(0, False, True), (1000, False, True), (7, False, False), (7, True, True)]
)
def test_who_listens_is_trusted_or_let_by_root(
    monkeypatch: pytest.MonkeyPatch, uid: int, let: bool, good: bool
) -> None:
    monkeypatch.setattr(unix_sockets, "peer", lambda _: Peer(5, uid, 5))
    monkeypatch.setattr(unix_sockets, "asking_users", lambda: {0, 1000})
    monkeypatch.setattr(unix_sockets, "_let_by_root", lambda *_: let)
    with socket.socket(socket.AF_UNIX) as sock:
        if good:
            check_peer(sock, Path("s"))
        else:
            with pytest.raises(PathError, match=r"user 7.*, process 5 listens there, who is neither root nor you"):
                check_peer(sock, Path("s"))


@pytest.mark.parametrize(
    ("mode", "owner", "folder", "doubts", "let"),
    [
        (0o755, 7, 0o755, [], True),
        (0o755, 0, 0o755, [], True),
        (0o775, 0, 0o755, [], True),
        (0o755, 8, 0o755, [], False),
        (0o757, 7, 0o755, [], False),
        (0o755, 7, 0o775, [], False),
        (0o755, 7, 0o757, [], False),
        (0o755, 7, 0o755, ["x"], False),
        (None, 7, 0o755, [], False),
    ],
)
def test_root_lets_whom_it_gave_the_folder(
    monkeypatch: pytest.MonkeyPatch, mode: int | None, owner: int, folder: int, doubts: list[str], let: bool
) -> None:
    found = None if mode is None else SimpleNamespace(st_mode=stat.S_IFDIR | mode, st_uid=owner)

    class Found:
        folder = 99

        def __init__(self, _: Path) -> None: ...

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def status(self) -> Any:
            return found

        def doubts(self, roots: set[int]) -> list[str]:
            assert 0 in roots
            return doubts

    monkeypatch.setattr(unix_sockets, "Place", Found)
    monkeypatch.setattr("bellwire.unix_sockets.os.fstat", lambda _: SimpleNamespace(st_mode=stat.S_IFDIR | folder))
    answer = unix_sockets._let_by_root(Path("/run/bellwire"), 7)
    monkeypatch.undo()
    assert answer is let


def test_a_lock_that_another_process_holds_is_told(tmp_path: Path) -> None:
    with open(tmp_path / ".s.lock", "w") as held, socket.socket(socket.AF_UNIX) as sock:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(PathError, match="another process is making the socket"):
            Bound(sock, tmp_path / "s")
    assert os.listdir(tmp_path) == [".s.lock"]


def test_a_socket_knows_whether_it_still_has_its_name(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        bound = Bound(sock, tmp_path / "s")
        assert bound.in_place()
        (tmp_path / "s").rename(tmp_path / "t")
        assert not bound.in_place()
        (tmp_path / "s").touch()
        assert not bound.in_place()
        bound.remove()
        assert sorted(os.listdir(tmp_path)) == ["s", "t"], "it is somebody else's"
