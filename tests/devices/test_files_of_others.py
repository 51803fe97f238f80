"""Another user of the machine plants links, FIFOs and second names where a device opens its files and sockets."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwire import BellwireError
from bellwire.bundled.edu import Edu
from bellwire.bundled.nvme.store import Store
from bellwire.network.sockets import DatagramLink, StreamLink
from bellwire.storage import Disk
from bellwire.stream import open_stream
from bellwire.testing.serve import serve

NOBODY = 65534
Open = Callable[[Path], object]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")


def served(path: Path) -> None:
    with serve(Edu, path=path):
        pass


IN_FOLDER: dict[str, Open] = {
    "image": lambda folder: Disk.open(folder / "disk.img", size=512).close(),
    "store": lambda folder: Store(folder / "store").close(),
    "file": lambda folder: open_stream(f"file:{folder}/log").close(),
    "unix": lambda folder: open_stream(f"unix:{folder}/sock").close(),
    "connect": lambda folder: open_stream(f"connect:{folder}/live").close(),
    "pty": lambda folder: open_stream(f"pty:{folder}/tty").close(),
    "datagram": lambda folder: DatagramLink(folder / "sock", None).close(),
    "stream": lambda folder: StreamLink(folder / "sock", listen=True).close(),
    "stream to": lambda folder: StreamLink(folder / "live").close(),
    "serve": lambda folder: served(folder / "sock"),
}
"""What opens a file or a socket in a folder that a user names."""

OPENED: dict[str, Open] = {
    "image": lambda path: Disk.open(path).close(),
    "new image": lambda path: Disk.open(path, size=512).close(),
    "image to read": lambda path: Disk.open(path, readonly=True).close(),
    "file": lambda path: open_stream(f"file:{path}").close(),
}
"""What opens a file that a user names."""


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """Root's own folder, which others would like to have written to, with a socket that listens."""
    made = tmp_path / "secrets"
    made.mkdir(mode=0o700)
    (made / "shadow").write_bytes(bytes(512))
    return made


@pytest.fixture(params=["in a sticky folder", "in a folder of the other user"])
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder in which another user can make links."""
    made = tmp_path / "theirs"
    made.mkdir()
    if request.param == "in a sticky folder":
        made.chmod(0o1777)
    else:
        os.chown(made, NOBODY, NOBODY)
    return made


def plant(link: Path, target: Path) -> Path:
    """A symbolic link that another user has made."""
    link.symlink_to(target)
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    return link


@as_root
@pytest.mark.parametrize("kind", IN_FOLDER)
def test_a_folder_behind_a_link_of_another_user_is_not_used(theirs: Path, secrets: Path, kind: str) -> None:
    link = plant(theirs / "link", secrets)
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(secrets / "live"))
        live.listen()
        with pytest.raises((BellwireError, PermissionError), match=r"the link .* is not followed: .* user 65534"):
            IN_FOLDER[kind](link)
    assert sorted(path.name for path in secrets.iterdir()) == ["live", "shadow"]


@as_root
@pytest.mark.parametrize("kind", OPENED)
def test_a_file_behind_a_link_of_another_user_is_not_opened(theirs: Path, secrets: Path, kind: str) -> None:
    link = plant(theirs / "link", secrets / "shadow")
    with pytest.raises(BellwireError, match=r"the link .* is not followed: .* user 65534"):
        OPENED[kind](link)
    link.unlink()
    link = plant(theirs / "link", secrets / "new")
    with pytest.raises(BellwireError):
        OPENED[kind](link)
    assert not (secrets / "new").exists()


@as_root
@pytest.mark.parametrize("kind", OPENED)
def test_a_second_name_of_a_file_is_not_opened_where_others_may_write(theirs: Path, secrets: Path, kind: str) -> None:
    (theirs / "mine").hardlink_to(secrets / "shadow")
    with pytest.raises(BellwireError, match="it has a second name, and others may write its folder"):
        OPENED[kind](theirs / "mine")


@as_root
def test_a_file_that_another_user_has_put_where_one_was_to_be_made_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "disk.img").write_bytes(bytes(512))
    os.chown(tmp_path / "disk.img", NOBODY, NOBODY)
    with pytest.raises(BellwireError, match="it belongs to user 65534"):
        Disk.open(tmp_path / "disk.img", size=512)
    with pytest.raises(BellwireError, match="it belongs to user 65534"):
        open_stream(f"file:{tmp_path}/disk.img")
    Disk.open(tmp_path / "disk.img", readonly=True).close()


@pytest.mark.parametrize("kind", ["image", "new image", "image to read", "store"])
def test_a_fifo_in_the_place_of_a_file_does_not_make_a_device_wait(tmp_path: Path, kind: str, impatient: None) -> None:
    os.mkfifo(tmp_path / "nvme.json")
    work = (lambda path: Store(path.parent).close()) if kind == "store" else OPENED[kind]
    with pytest.raises(BellwireError, match="it is a FIFO, expected a file"):
        work(tmp_path / "nvme.json")


def test_a_stream_to_a_fifo_without_a_reader_does_not_wait(tmp_path: Path, impatient: None) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(BellwireError, match="No such device or address"):
        open_stream(f"file:{tmp_path}/log")


@pytest.mark.parametrize("kind", IN_FOLDER)
def test_a_folder_behind_a_link_of_ones_own_is_used(tmp_path: Path, kind: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(tmp_path / "real/live"))
        live.listen()
        IN_FOLDER[kind](tmp_path / "link")


@as_root
@pytest.mark.parametrize("kind", OPENED)
def test_roots_links_are_followed_as_those_of_dev_disk_are(tmp_path: Path, secrets: Path, kind: str) -> None:
    (tmp_path / "by-id").mkdir()
    (tmp_path / "by-id/disk").symlink_to("../secrets/shadow")
    tmp_path.chmod(0o1777)
    (tmp_path / "run").symlink_to(tmp_path / "by-id")  # root's link in a sticky folder
    OPENED[kind](tmp_path / "run/disk")


def test_a_descriptor_of_the_process_can_be_named(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    stream = open_stream(f"file:/proc/self/fd/{fd}")
    stream.send([memoryview(b"text")])
    stream.close()
    os.close(fd)
    assert (tmp_path / "log").read_text() == "text"


@as_root
def test_a_store_writes_through_no_link_that_lies_in_its_folder(tmp_path: Path, secrets: Path) -> None:
    store = Store(tmp_path / "store")
    plant(tmp_path / "store/nvme.json.new", secrets / "shadow")
    plant(tmp_path / "store/namespace-1.img", secrets / "shadow")
    store.write(*store.encode())
    with pytest.raises(BellwireError, match="it is a link, expected a file"):
        store.disk(1, 512, 512)
    store.close()
    assert (secrets / "shadow").read_bytes() == bytes(512)
    assert not (tmp_path / "store/nvme.json").is_symlink()


def test_a_store_whose_folder_has_been_replaced_writes_into_the_old_one(tmp_path: Path, secrets: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "moved")
    (tmp_path / "store").symlink_to(secrets)
    store.write(*store.encode())
    store.disk(1, 512, 512, new=True).close()
    store.close()
    assert sorted(path.name for path in secrets.iterdir()) == ["shadow"]
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == ["namespace-1.img", "nvme.json"]


@as_root
def test_frames_go_to_no_socket_behind_a_link_of_another_user(theirs: Path, secrets: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(secrets / "journal"))
        journal.setblocking(False)
        link = DatagramLink(None, plant(theirs / "peer", secrets / "journal"))
        assert not link.send([memoryview(bytes(64))])
        link.close()
        with pytest.raises(BlockingIOError):
            journal.recv(1)


def test_frames_find_a_peer_that_has_come_anew(tmp_path: Path) -> None:
    link = DatagramLink(None, tmp_path / "peer")
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.bind(str(tmp_path / "peer"))
            assert link.send([memoryview(bytes(64))])
            assert len(peer.recv(100)) == 64 - 12
        (tmp_path / "peer").unlink()
        assert not link.send([memoryview(bytes(64))])
    link.close()


LISTEN: dict[str, Callable[[Path], object]] = {
    "unix": lambda path: open_stream(f"unix:{path}"),
    "datagram": lambda path: DatagramLink(path, None),
    "stream": lambda path: StreamLink(path, listen=True),
}


@pytest.mark.parametrize("kind", LISTEN)
def test_a_socket_that_another_process_serves_is_not_taken_away(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        with pytest.raises(BellwireError, match="a live server listens there"):
            LISTEN[kind](path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@pytest.mark.parametrize("kind", LISTEN)
def test_what_another_process_has_put_in_a_sockets_place_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "sock"
    listening = LISTEN[kind](path)
    path.unlink()
    path.write_text("another's")
    listening.close()  # type: ignore[attr-defined]
    assert path.read_text() == "another's"


@as_root
@pytest.mark.parametrize("kind", LISTEN)
def test_a_socket_is_bound_in_the_folder_that_was_looked_at(
    tmp_path: Path, secrets: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's owner puts a link in its place between the look and bind(2)."""
    folder = tmp_path / "vm"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    bind = socket.socket.bind

    def late(sock: socket.socket, address: str) -> None:
        folder.rename(tmp_path / "moved")
        plant(folder, secrets)
        bind(sock, address)

    class Slow(socket.socket):
        bind = late  # type: ignore[assignment]

    monkeypatch.setattr(socket, "socket", Slow)
    listening = LISTEN[kind](folder / "sock")
    assert [path.name for path in secrets.iterdir()] == ["shadow"]
    assert stat.S_ISSOCK((tmp_path / "moved/sock").lstat().st_mode)
    listening.close()  # type: ignore[attr-defined]


def test_a_pty_leaves_the_link_that_another_process_has_made_meanwhile(tmp_path: Path) -> None:
    stream = open_stream(f"pty:{tmp_path}/tty")
    (tmp_path / "tty").unlink()
    (tmp_path / "tty").symlink_to("another")
    stream.close()
    assert os.readlink(tmp_path / "tty") == "another"
