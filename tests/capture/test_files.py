"""The files of a capture are bounded, take turns, and hold whole records whatever happens."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bellwire.capture.files import SMALLEST, Files, check_files

HEAD, TAIL = b"head", b"tail"
RECORD = bytes(range(256)) * 16


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[int], list[int]]:
    return lambda number: [
        os.open(tmp_path / f"file{each}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for each in range(number)
    ]


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Let no file grow beyond a size."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_file_has_the_head_the_records_and_the_tail(opened: Callable[[int], list[int]], tmp_path: Path) -> None:
    files = Files(opened(1), SMALLEST, HEAD, TAIL)
    assert files.write(b"one")
    assert files.write(b"two")
    files.close()
    assert (tmp_path / "file0").read_bytes() == b"headonetwotail"
    assert (files.records, files.ended) == (2, "it was stopped")


def test_what_was_in_a_file_before_is_gone(opened: Callable[[int], list[int]], tmp_path: Path) -> None:
    (tmp_path / "file0").write_bytes(bytes(9999))
    Files(opened(1), SMALLEST, HEAD).close()
    assert (tmp_path / "file0").read_bytes() == HEAD


def test_records_are_in_the_file_at_once(opened: Callable[[int], list[int]], tmp_path: Path) -> None:
    files = Files(opened(1), SMALLEST, HEAD)
    files.write(RECORD)
    assert (tmp_path / "file0").read_bytes() == HEAD + RECORD
    files.close()


def test_a_single_file_that_is_full_ends_the_capture(opened: Callable[[int], list[int]], tmp_path: Path) -> None:
    files = Files(opened(1), SMALLEST, HEAD, TAIL)
    while files.write(RECORD):
        pass
    assert "which is the limit" in files.ended
    assert not files.write(b"")
    files.close()
    content = (tmp_path / "file0").read_bytes()
    assert SMALLEST - len(RECORD) < len(content) <= SMALLEST
    assert content == HEAD + RECORD * files.records + TAIL


def test_files_take_turns_and_hold_the_latest(opened: Callable[[int], list[int]], tmp_path: Path) -> None:
    files = Files(opened(3), SMALLEST, HEAD, TAIL)
    for number in range(100):
        assert files.write(bytes([number]) * 4096)
    files.close()
    contents = [(tmp_path / f"file{each}").read_bytes() for each in range(3)]
    assert all(len(each) <= SMALLEST for each in contents)
    assert all(each.startswith(HEAD) and each.endswith(TAIL) for each in contents)
    held = sorted({each for content in contents for each in content[len(HEAD) : -len(TAIL)]})
    assert held == list(range(held[0], 100))
    assert len(held) > 30


def test_a_record_larger_than_a_file_is_left_out(opened: Callable[[int], list[int]]) -> None:
    files = Files(opened(2), SMALLEST, HEAD)
    assert not files.write(bytes(SMALLEST))
    assert files.write(RECORD)
    files.close()


def test_a_full_disk_ends_the_capture_with_whole_records(
    opened: Callable[[int], list[int]], tmp_path: Path, limited: Callable[[int], None]
) -> None:
    files = Files(opened(2), SMALLEST, HEAD)
    limited(10000)
    while files.write(RECORD):
        pass
    assert files.ended.startswith("a write failed: ")
    assert (tmp_path / "file0").read_bytes() == HEAD + RECORD * 2
    files.close()


def test_an_end_that_nobody_asked_for_is_told_once(opened: Callable[[int], list[int]]) -> None:
    told: list[str] = []
    files = Files(opened(1), SMALLEST, HEAD, TAIL)
    files.ends_early = told.append
    while files.write(RECORD):
        pass
    files.write(RECORD)
    files.close()
    assert told == [f"the file has {SMALLEST} bytes, which is the limit"]


def test_an_end_that_was_asked_for_is_not_told(opened: Callable[[int], list[int]]) -> None:
    told: list[str] = []
    files = Files(opened(1), SMALLEST, HEAD, TAIL)
    files.ends_early = told.append
    files.close()
    assert told == []


@pytest.mark.parametrize(
    ("flags", "what"),
    [(os.O_RDONLY, "open for writing"), (os.O_WRONLY | os.O_APPEND, "not for appending"), (os.O_WRONLY, "")],
)
def test_descriptors_are_checked(tmp_path: Path, flags: int, what: str) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", flags)
    try:
        assert what in check_files([fd])
        assert bool(check_files([fd])) == bool(what)
    finally:
        os.close(fd)


def test_a_pipe_and_no_file_at_all_are_refused() -> None:
    ends = os.pipe()
    assert "regular files" in check_files([ends[1]])
    for fd in ends:
        os.close(fd)
    assert check_files([]) == "a capture needs a file"
    assert "Bad file descriptor" in check_files([ends[1]])
