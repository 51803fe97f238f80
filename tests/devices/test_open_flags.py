"""With which flags files and folders are opened: none is inherited, followed or waited for."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from bellwire.paths import PathError, Place, make_folders, open_any_file, open_file
from bellwire.unix_sockets import Bound, connect, peer

Opened = list[tuple[str, int]]
ACCESS = os.O_ACCMODE | os.O_CREAT | os.O_EXCL | os.O_DIRECTORY | os.O_PATH | os.O_NOFOLLOW | os.O_NONBLOCK


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Names and flags of what is opened; each must be closed on exec."""
    calls: Opened = []
    usual = os.open

    def note(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        name = os.path.basename(str(path))
        calls.append(("FD" if name.isdigit() else name or "/", flags & ACCESS))
        assert flags & os.O_CLOEXEC, f"{path} would be inherited"
        return usual(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", note)
    return calls


def test_a_walk_opens_nothing_but_places(tmp_path: Path, opened: Opened) -> None:
    Place(tmp_path / "file").close()
    assert opened[0] == ("/", os.O_PATH | os.O_DIRECTORY)
    assert {flags for _, flags in opened[1:]} == {os.O_PATH | os.O_NOFOLLOW}


def test_a_file_is_pinned_then_opened_without_a_wait(tmp_path: Path, opened: Opened) -> None:
    (tmp_path / "file").write_text("here")
    with Place(tmp_path / "file") as place:
        opened.clear()
        os.close(place.open(os.O_RDWR | os.O_CREAT))
    assert opened == [("file", os.O_PATH | os.O_NOFOLLOW), ("FD", os.O_RDWR | os.O_NONBLOCK)]


def test_a_file_that_is_made_is_new(tmp_path: Path, opened: Opened) -> None:
    with Place(tmp_path / "file") as place:
        opened.clear()
        os.close(place.open(os.O_WRONLY | os.O_CREAT, 0o640))
    made = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NONBLOCK
    assert opened == [("file", os.O_PATH | os.O_NOFOLLOW), ("file", made)]
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_file_that_is_not_to_be_made_is_not(tmp_path: Path, opened: Opened) -> None:
    with Place(tmp_path / "file") as place, pytest.raises(FileNotFoundError) as missing:
        place.open(os.O_RDWR)
    assert missing.value.filename == str(tmp_path / "file")


def test_a_file_that_comes_and_goes_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def miss(_: Place) -> int:
        tries.append(1)
        raise FileNotFoundError

    def exists(*_: object) -> int:
        raise FileExistsError

    with Place(tmp_path / "file") as place:
        monkeypatch.setattr(Place, "pin", miss)
        monkeypatch.setattr(Place, "_make", exists)
        with pytest.raises(PathError, match="somebody makes and removes it all the time"):
            place.open(os.O_RDWR | os.O_CREAT)
    assert len(tries) == 8


def test_a_folder_is_opened_as_one(tmp_path: Path, opened: Opened) -> None:
    (tmp_path / "folder").mkdir()
    with Place(tmp_path / "folder") as place:
        opened.clear()
        os.close(place.open_folder())
    assert opened == [("folder", os.O_PATH | os.O_NOFOLLOW), ("FD", os.O_DIRECTORY)]


@pytest.mark.parametrize("aside", ["", "other"])
def test_a_file_is_replaced_by_a_new_one(tmp_path: Path, opened: Opened, aside: str) -> None:
    if aside:
        (tmp_path / aside).write_text("of one that has died")
    with Place(tmp_path / "file") as place:
        opened.clear()
        place.replace(b"first", 0o640, aside=aside)
        place.replace(b"second", 0o604, aside=aside, sync=True)
    assert [flags for _, flags in opened] == [os.O_RDWR | os.O_CREAT | os.O_EXCL] * 2
    assert (tmp_path / "file").read_bytes() == b"second"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o604
    assert os.listdir(tmp_path) == ["file"]


def test_a_replacement_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("old")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with Place(tmp_path / "file") as place, pytest.raises(OSError, match="no"):
        place.replace(b"new", 0o600)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_any_file_is_opened_without_a_wait(tmp_path: Path, opened: Opened) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("here")
    os.close(open_any_file(tmp_path / "file"))
    os.close(open_file(tmp_path / "file"))
    with pytest.raises(PathError, match="expected a file"):
        open_any_file(tmp_path / "fifo")
    assert opened[0] == ("file", os.O_NONBLOCK)
    assert opened[-1] == ("fifo", os.O_NONBLOCK)


def test_folders_are_made_from_the_outermost_on(tmp_path: Path) -> None:
    assert make_folders(tmp_path / "a/b", 0o700) == [tmp_path / "a", tmp_path / "a/b"]
    assert make_folders(tmp_path / "a/b") == []
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        make_folders(tmp_path / "file")


def test_links_are_followed_forty_times(tmp_path: Path) -> None:
    (tmp_path / "l0").write_text("here")
    for number in range(1, 42):
        (tmp_path / f"l{number}").symlink_to(f"l{number - 1}")
    with Place(tmp_path / "l40") as place:
        assert place.status() is not None
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        Place(tmp_path / "l41")


def test_a_lock_is_a_new_file_that_nobody_waits_for(tmp_path: Path, opened: Opened) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        bound = Bound(sock, tmp_path / "s", mode=0o600)
        flags = dict(opened)[".s.lock"]
        assert flags == os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        assert os.listdir(tmp_path) == ["s"]
        with socket.socket(socket.AF_UNIX) as client:
            connect(client, tmp_path / "s")
            met, _ = sock.accept()
            with met:
                assert peer(met)[:3] == (os.getpid(), os.geteuid(), os.getegid())
        bound.remove()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("length", [107, 108])
def test_a_sockets_path_has_at_most_107_bytes(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("x" * (length - len(str(tmp_path)) - 1))
    with socket.socket(socket.AF_UNIX) as sock:
        if length == 107:
            Bound(sock, path).remove()
        else:
            with pytest.raises(PathError, match="at most 107 bytes"):
                Bound(sock, path)
