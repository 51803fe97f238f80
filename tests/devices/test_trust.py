"""Who may write a file, and sockets at paths: which are replaced, which stay, and whose they are."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bellwire.paths import PathError, Place
from bellwire.trust import others_may_write, trusted_users, user
from bellwire.unix_sockets import Bound, Peer, clear, probe

STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


def status(mode: int, uid: int = 1000, gid: int = 1000) -> Any:
    return SimpleNamespace(st_mode=stat.S_IFREG | mode, st_uid=uid, st_gid=gid)


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """User ada, 1000, whose group is hers alone; the test may change that."""
    known: dict[str, Any] = {"name": "ada", "group": "ada", "members": [], "others": []}

    def account(name: str, uid: int, gid: int) -> Any:
        return SimpleNamespace(pw_name=name, pw_uid=uid, pw_gid=gid)

    def by_id(uid: int) -> Any:
        if uid != 1000:
            raise KeyError(uid)
        return account(known["name"], 1000, 1000)

    monkeypatch.setattr(pwd, "getpwuid", by_id)
    monkeypatch.setattr(
        grp, "getgrgid", lambda _: SimpleNamespace(gr_name=known["group"], gr_mem=known["members"], gr_gid=1000)
    )
    monkeypatch.setattr(pwd, "getpwall", lambda: [by_id(1000), *(account(*each) for each in known["others"])])
    return known


@pytest.mark.parametrize(
    ("mode", "others"), [(0o600, False), (0o644, False), (0o660, False), (0o602, True), (0o662, True), (0o666, True)]
)
def test_a_users_private_group_is_no_others(people: dict[str, Any], mode: int, others: bool) -> None:
    assert others_may_write(status(mode)) is others


@pytest.mark.parametrize(
    ("change", "others"),
    [
        ({}, False),
        ({"members": ["ada"]}, False),
        ({"members": ["ada", "bob"]}, True),
        ({"group": "staff"}, True),
        ({"others": [("bob", 1001, 1000)]}, True),
        ({"others": [("bob", 1001, 1001)]}, False),
        ({"others": [("ada2", 1000, 1000)]}, False),
    ],
)
def test_a_group_with_others_in_it_is_others(people: dict[str, Any], change: dict[str, Any], others: bool) -> None:
    people |= change
    assert others_may_write(status(0o660)) is others
    assert not others_may_write(status(0o640))


def test_a_user_or_group_that_nobody_knows_is_others(people: dict[str, Any]) -> None:
    assert others_may_write(status(0o660, uid=7))
    assert not others_may_write(status(0o600, uid=7))


def test_an_access_control_list_may_name_anybody(people: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def getxattr(path: str, name: str) -> bytes:
        asked.append((path, name))
        if path.endswith("/5"):
            return b"acl"
        raise OSError(errno.ENODATA, "none")

    monkeypatch.setattr(os, "getxattr", getxattr)
    assert [others_may_write(status(0o660), fd) for fd in (5, 6, None)] == [True, False, False]
    assert [others_may_write(status(0o600), fd) for fd in (5, 6, None)] == [False] * 3
    assert asked == [("/proc/self/fd/5", "system.posix_acl_access"), ("/proc/self/fd/6", "system.posix_acl_access")]


def test_root_and_ones_own_user_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("bellwire.trust.os.stat", lambda _: SimpleNamespace(st_uid=65534))
    assert trusted_users() == {0, 1000, 65534}


def test_a_user_is_named_if_the_name_is_known(people: dict[str, Any]) -> None:
    assert (user(1000), user(7)) == ("user 1000 (ada)", "user 7")
    assert str(Peer(12, 1000, 5)) == "user 1000 (ada), process 12"


# -- sockets


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Place(tmp_path / "s", follow=False) as place:
        yield place


def bind(path: Path, kind: int = STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(os.fspath(path))
    return sock


@pytest.mark.parametrize("kind", [STREAM, DGRAM])
def test_a_socket_on_which_nobody_listens_is_removed(place: Place, kind: int) -> None:
    bind(place.path, kind).close()
    clear(place, kind)
    assert os.listdir(place.path.parent) == []
    clear(place, kind)


@pytest.mark.parametrize(("kind", "asked"), [(STREAM, STREAM), (DGRAM, DGRAM), (DGRAM, STREAM), (STREAM, DGRAM)])
def test_a_live_socket_stays(place: Place, kind: int, asked: int) -> None:
    with bind(place.path, kind) as live:
        if kind == STREAM:
            live.listen()
        with pytest.raises(PathError, match="a live server listens there") as refused:
            clear(place, asked)
    assert (refused.value.filename, refused.value.hint) == (
        os.fspath(place.path), "stop that server, or choose another path",
    )  # fmt: skip
    assert os.listdir(place.path.parent) == ["s"]


def test_a_server_whose_backlog_is_full_is_live(place: Place) -> None:
    with bind(place.path) as live:
        live.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(os.fspath(place.path))
        with pytest.raises(PathError, match="a live server listens there"):
            clear(place, STREAM)
        for client in clients:
            client.close()


def test_another_error_of_the_look_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    bind(place.path).close()
    monkeypatch.setattr("bellwire.unix_sockets.probe", lambda *_: errno.EACCES)
    with pytest.raises(PathError, match="Permission denied"):
        clear(place, STREAM)
    assert os.listdir(place.path.parent) == ["s"]


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_what_is_no_socket_stays(place: Place, what: str) -> None:
    if what == "file":
        place.path.touch()
    elif what == "folder":
        place.path.mkdir()
    else:
        place.path.symlink_to("x")
    with pytest.raises(PathError, match="it exists and is not a socket"):
        clear(place, STREAM)
    assert os.listdir(place.path.parent) == ["s"]


def test_a_socket_that_comes_between_the_look_and_the_removal_is_put_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind(place.path).close()
    fresh: list[socket.socket] = []

    def look(pinned: int, kind: int) -> int:
        answer = probe(pinned, kind)
        place.path.rename(place.path.with_name("kept"))  # so that its number is not used again
        fresh.append(bind(place.path))
        return answer

    monkeypatch.setattr("bellwire.unix_sockets.probe", look)
    clear(place, STREAM)
    assert sorted(os.listdir(place.path.parent)) == ["kept", "s"]
    fresh[0].listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(place.path))
    fresh[0].close()


@pytest.mark.parametrize("kind", [STREAM, DGRAM])
@pytest.mark.parametrize("mode", [0o600, 0o666, None])
def test_a_bound_socket_has_its_mode_and_goes_with_its_name(tmp_path: Path, kind: int, mode: int | None) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, kind) as sock:
        bound = Bound(sock, path, mode=mode)
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if mode is None else mode)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == (kind == STREAM)
        assert bound.in_place()
        path.rename(tmp_path / "moved")
        assert not bound.in_place()
        path.touch()
        assert not bound.in_place()
        bound.remove()
        assert path.exists()
        path.unlink()
        (tmp_path / "moved").rename(path)
        bound.remove()
        bound.remove()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("backlog", [1, 5])
def test_so_many_clients_may_wait(tmp_path: Path, backlog: int) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        bound = Bound(sock, tmp_path / "s", backlog)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(backlog + 2)]
        for client in clients:
            client.setblocking(False)
        answers = [client.connect_ex(os.fspath(tmp_path / "s")) for client in clients]
        assert answers == [0] * (backlog + 1) + [errno.EAGAIN]  # the kernel takes one more than it is told
        for client in clients:
            client.close()
        bound.remove()


def test_a_socket_of_another_process_in_its_place_is_not_given_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bind(tmp_path / "victim"), socket.socket(socket.AF_UNIX) as sock:
        (tmp_path / "victim").chmod(0o600)
        usual = Place.pin

        def pin(place: Place) -> int:
            if place.path.name == "s" and place.path.exists():
                place.path.unlink()
                place.path.hardlink_to(tmp_path / "victim")
            return usual(place)

        monkeypatch.setattr(Place, "pin", pin)
        with pytest.raises(PathError, match="another process has replaced the socket"):
            Bound(sock, tmp_path / "s", mode=0o666)
    assert stat.S_IMODE((tmp_path / "victim").stat().st_mode) == 0o600
    assert (tmp_path / "s").exists(), "it is not ours to remove"


def test_a_name_that_others_take_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []
    with socket.socket(socket.AF_UNIX) as sock, bind(tmp_path / "s"):
        monkeypatch.setattr("bellwire.unix_sockets.clear", lambda place, _: tries.append(place.name))
        with pytest.raises(OSError, match="Address already in use") as refused:
            Bound(sock, tmp_path / "s")
    assert (tries, refused.value.filename) == (["s"] * 8, str(tmp_path / "s"))
