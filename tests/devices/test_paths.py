"""Where a path leads: where the kernel says, unless another user has a hand in it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire.paths import PathError, Place, check_folder, make_folders, open_file
from bellwire.trust import others_may_write, trusted_users, user

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
NOBODY = 65534
CLONE_NEWUSER, PR_SET_DUMPABLE = 0x10000000, 4


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """Folders, files and links of all kinds, the impossible ones too."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "a/b").mkdir(parents=True)
        (root / "c").mkdir()
        (root / "a/f").write_text("f")
        for link, target in {
            "a/up": "..", "a/l": "b", "l": "a/l", "abs": f"{root}/c", "loop": "loop", "ring": "gnir", "gnir": "ring",
            "dangling": "nope/x", "c/x": "../a/f", "c/dots": "./.././a//b/..", "proc": "/proc/self/fd", "root": "/",
        }.items():  # fmt: skip
            (root / link).symlink_to(target)
        yield root


NAMES = ["a", "b", "c", "f", "up", "l", "abs", "loop", "ring", "dangling", "x", "dots", "..", "nope", "root", "proc"]


@given(names=st.lists(st.sampled_from([*NAMES, "."]), max_size=8), last=st.sampled_from(NAMES))
def test_a_path_leads_where_the_kernel_says(tree: Path, names: list[str], last: str) -> None:
    path = "/".join([str(tree), *names, last])
    assert outcome(lambda: os.stat(path)) == outcome(lambda: walked(path)), path


def walked(path: str) -> os.stat_result:
    with Place(path) as place:
        pinned = place.pin()
        found = os.fstat(pinned)
        os.close(pinned)
        return found


def outcome(work: Callable[[], os.stat_result]) -> tuple[int, int] | str:
    """The file that was found, or why not."""
    try:
        found = work()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return found.st_dev, found.st_ino


@settings(max_examples=30)
@given(names=st.lists(st.sampled_from(NAMES), max_size=8), last=st.sampled_from(NAMES))
def test_no_descriptor_is_left_open(tree: Path, names: list[str], last: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.suppress(OSError):
        Place("/".join([str(tree), *names, last]), follow=len(names) % 2 == 0).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_relative_path_begins_at_the_current_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    with Place("c/x") as place:
        assert os.stat(place.name, dir_fd=place.folder).st_ino == (tree / "a/f").stat().st_ino
    with pytest.raises(FileNotFoundError):
        Place("")


def test_an_error_names_the_path_that_was_asked_for(tree: Path) -> None:
    with pytest.raises(FileNotFoundError) as failed:
        Place(tree / "nope/x/y")
    assert failed.value.filename == str(tree / "nope/x/y")


def test_a_name_that_comes_and_goes_all_the_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: object) -> int:
        raise FileExistsError(errno.EEXIST, "")

    with Place(tmp_path / "f") as place:
        monkeypatch.setattr(place, "_make", taken)
        with pytest.raises(PathError, match="somebody makes and removes it all the time"):
            place.open(os.O_WRONLY | os.O_CREAT)


@pytest.mark.parametrize(
    "make",
    [os.mkdir, os.mkfifo, pytest.param(lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, 0x103), marks=as_root)],
    ids=["folder", "fifo", "device"],
)
def test_what_is_no_regular_file_stays_where_it_is(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "there")
    before = (tmp_path / "there").stat()
    with Place(tmp_path / "there") as place, pytest.raises(PathError, match=r"it is a .*, expected a file"):
        place.replace(b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").stat() == before


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    with Place(tmp_path / "f") as place, pytest.raises(IsADirectoryError), place.replacing():
        (tmp_path / "f").mkdir()
    assert os.listdir(tmp_path) == ["f"]


def test_folders_are_made_with_their_parents_and_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    assert make_folders(tmp_path / "a/b") == [tmp_path / "a", tmp_path / "a/b"]
    assert make_folders(tmp_path / "a/b") == []
    (tmp_path / "f").touch()
    with pytest.raises(NotADirectoryError):
        make_folders(tmp_path / "f/g")


@as_root
def test_a_folder_is_checked_up_to_the_root_even_if_it_is_not_there_yet(tmp_path: Path) -> None:
    check_folder(tmp_path / "a/b")
    os.chown(tmp_path, NOBODY, NOBODY)
    with pytest.raises(PathError) as refused:
        check_folder(tmp_path / "a/b")
    assert (refused.value.filename, refused.value.strerror) == (str(tmp_path), f"belongs to {user(NOBODY)}")
    check_folder(tmp_path / "a/b", trusted_users() | {NOBODY})


def acl(uid: int) -> bytes:
    """An access control list that lets the user ``uid`` write (acl(5), version 2 of its binary form)."""
    anyone = 0xFFFFFFFF
    entries = [(0x01, 6, anyone), (0x02, 6, uid), (0x04, 4, anyone), (0x10, 6, anyone), (0x20, 4, anyone)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_a_user_in_an_access_control_list_is_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bellwire.trust._private_group", lambda status: True)
    path = tmp_path / "f"
    path.touch()
    path.chmod(0o660)
    os.close(open_file(path))
    try:
        os.setxattr(path, "system.posix_acl_access", acl(NOBODY))
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")
    with pytest.raises(PathError, match="others than its owner may write it"):
        open_file(path)
    assert not others_may_write(path.stat()), "what the mode alone says"


@as_root
def test_where_root_is_not_mapped_the_owner_of_the_root_folder_counts_as_root() -> None:
    """In a user namespace of one user, root's links appear as those of user 65534."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setresgid(7777, 7777, 7777)
            os.setresuid(7777, 7777, 7777)
            libc = ctypes.CDLL(None, use_errno=True)
            libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # or /proc/self is root's
            if libc.unshare(CLONE_NEWUSER):
                os._exit(2)  # the kernel's settings forbid it
            Path("/proc/self/uid_map").write_text("7777 7777 1\n")
            assert os.stat("/").st_uid == NOBODY
            Place("/etc/mtab").close()
            Place("/var/run/x").close()
            status = 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(ended) == 2:
        pytest.skip("this kernel lets no user make a user namespace")
    assert os.waitstatus_to_exitcode(ended) == 0
