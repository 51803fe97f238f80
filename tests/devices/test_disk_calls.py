"""What a disk asks of the kernel: in which portions, with which flags, and what it makes of the answers."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bellwire.paths import Place
from bellwire.storage import Disk, StorageError
from bellwire.storage import disk as storage

SIZE = 8192
MEBIBYTE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(number % 251 for number in range(SIZE)))
    with closing(Disk.open(path)) as disk:
        yield disk


def fail(number: int) -> Any:
    def call(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def limit(monkeypatch: pytest.MonkeyPatch, name: str, most: int) -> list[tuple[int, int]]:
    """Let a call move at most so many bytes; the offsets and lengths that it was asked for."""
    usual, asked = getattr(os, name), []

    def call(fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
        length = sum(map(len, buffers))
        asked.append((offset, length))
        view = memoryview(buffers[0])[: min(most, len(buffers[0]))]
        return int(usual(fd, [view], offset, flags)) if most else 0

    monkeypatch.setattr(os, name, call)
    return asked


def test_a_read_that_is_cut_short_goes_on(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = limit(monkeypatch, "preadv", 3)
    pieces = [bytearray(4), bytearray(3)]
    disk.read(pieces, 100)
    assert b"".join(pieces) == bytes(range(100, 107))
    assert asked == [(100, 7), (103, 4), (104, 3)]


def test_a_write_that_is_cut_short_goes_on(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = limit(monkeypatch, "pwritev", 3)
    disk.write([bytearray(b"abcd"), bytearray(b"efg")], 100)
    assert os.pread(disk.fd, 9, 99) == b"\x63abcdefg\x6b"
    assert asked == [(100, 7), (103, 4), (104, 3)]


def test_an_image_that_ends_or_takes_nothing_is_an_error(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"the image ends at 0x2000: somebody has cut it short") as failed:
        disk.read([bytearray(512)], SIZE - 256)
    assert failed.value.errno == errno.EIO
    limit(monkeypatch, "pwritev", 0)
    with pytest.raises(OSError, match=r"the image takes nothing at 0x100"):
        disk.write([bytearray(512)], 256)


@pytest.mark.parametrize("durable", [False, True])
def test_a_durable_write_says_so_to_the_kernel(disk: Disk, monkeypatch: pytest.MonkeyPatch, durable: bool) -> None:
    flags: list[int] = []

    def pwritev(_fd: int, buffers: Sequence[Any], _offset: int, how: int) -> int:
        flags.append(how)
        return sum(map(len, buffers))

    monkeypatch.setattr(os, "pwritev", pwritev)
    disk.write([bytearray(4)], 0, durable=durable)
    assert flags == [os.RWF_DSYNC if durable else 0]


@pytest.mark.parametrize(
    ("number", "durable", "lost"),
    [(errno.EIO, True, True), (errno.EIO, False, False), (errno.ENOSPC, True, False)],
)
def test_after_data_was_lost_every_flush_fails(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, number: int, durable: bool, lost: bool
) -> None:
    with monkeypatch.context() as failing:
        failing.setattr(os, "pwritev", fail(number))
        with pytest.raises(OSError, match=os.strerror(number)):
            disk.write([bytearray(4)], 0, durable=durable)
    if lost:
        for _ in range(2):
            with pytest.raises(OSError, match="an earlier flush has failed") as failed:
                disk.flush()
            assert failed.value.errno == number
    else:
        disk.flush()


def test_a_flush_that_fails_is_remembered_and_a_read_only_disk_has_none(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as failing:
        failing.setattr(os, "fdatasync", fail(errno.EDQUOT))
        disk.readonly = True
        disk.flush()
        disk.readonly = False
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            disk.flush()
    with pytest.raises(OSError, match="an earlier flush has failed"):
        disk.flush()


@pytest.mark.parametrize(
    ("answer", "result", "at_once"),
    [(512, True, 8), (511, False, 8), (errno.EAGAIN, False, 8), (errno.EOPNOTSUPP, False, None),
     (errno.ENOSYS, False, None), (errno.EINVAL, False, None)],
)  # fmt: skip
def test_a_read_at_once_is_tried_until_the_file_turns_out_to_have_none(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, answer: int, result: bool, at_once: int | None
) -> None:
    asked: list[int] = []

    def preadv(_fd: int, _buffers: object, _offset: int, flags: int) -> int:
        asked.append(flags)
        return answer if answer > 500 else int(fail(answer)())

    monkeypatch.setattr(os, "preadv", preadv)
    disk.at_once = 8
    assert disk.try_read([bytearray(512)], 0, 512) is result
    assert (disk.at_once, asked) == (at_once, [8])
    disk.try_read([bytearray(512)], 0, 512)
    assert len(asked) == (1 if at_once is None else 2)


def test_a_read_at_once_that_fails_is_an_error_and_one_of_many_pieces_is_not_tried(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [bytearray(1) for _ in range(1025)]
    assert disk.try_read(pieces, 0, 1025) is False
    assert not any(map(any, pieces))
    monkeypatch.setattr(os, "preadv", fail(errno.EIO))
    assert disk.at_once is not None
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        disk.try_read([bytearray(512)], 0, 512)


@pytest.mark.parametrize("number", [1023, 1024, 1025, 2048, 2049])
def test_many_pieces_go_in_portions_of_1024(disk: Disk, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    counts: list[tuple[int, int]] = []
    usual = os.preadv

    def preadv(fd: int, buffers: Sequence[Any], offset: int) -> int:
        counts.append((offset, len(buffers)))
        return usual(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    pieces = [bytearray(2) for _ in range(number)]
    disk.read(pieces, 10)
    assert b"".join(pieces) == os.pread(disk.fd, 2 * number, 10)
    assert counts == [(10 + 2048 * at, min(1024, number - 1024 * at)) for at in range(-(-number // 1024))]


# -- zeros


PUNCH, ZERO, KEEP = 2, 16, 1


@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("works", [1, 2, 0])
def test_zeros_are_made_by_the_kernel_if_it_can(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, release: bool, works: int
) -> None:
    asked: list[tuple[int, int, int]] = []

    def fallocate(_fd: int, mode: int, offset: int, length: int) -> None:
        asked.append((mode, offset, length))
        if len(asked) != works:
            fail((errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)[len(asked) - 1])()

    monkeypatch.setattr(storage, "fallocate", fallocate)
    disk.zero(512, 1024, release=release)
    modes = [PUNCH | KEEP, ZERO | KEEP] if release else [ZERO | KEEP, PUNCH | KEEP]
    assert asked == [(mode, 512, 1024) for mode in modes[: works or 2]]
    assert any(os.pread(disk.fd, 1024, 512)) is (works != 0)
    assert any(os.pread(disk.fd, 512, 0))
    assert any(os.pread(disk.fd, 512, 1536))


def test_zeros_that_are_written_are_written_by_the_mebibyte(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    wrote: list[tuple[int, int, bool]] = []

    def write(_: Disk, buffers: Sequence[memoryview], offset: int) -> None:
        wrote.append((offset, len(buffers[0]), any(bytes(buffers[0][:8]))))

    monkeypatch.setattr(storage, "fallocate", fail(errno.EOPNOTSUPP))
    monkeypatch.setattr(Disk, "write", write)
    disk.zero(512, 2 * MEBIBYTE + 5)
    assert wrote == [(512, MEBIBYTE, False), (512 + MEBIBYTE, MEBIBYTE, False), (512 + 2 * MEBIBYTE, 5, False)]


@pytest.mark.parametrize("call", ["zero", "discard"])
def test_an_error_that_is_none_of_ability_is_told(disk: Disk, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(storage, "fallocate", fail(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        getattr(disk, call)(0, 512)


def test_a_discard_frees_space_if_it_can_be(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(storage, "fallocate", lambda fd, *what: asked.append(what))
    disk.discard(512, 1024)
    assert asked == [(PUNCH | KEEP, 512, 1024)]
    monkeypatch.setattr(storage, "fallocate", fail(errno.EOPNOTSUPP))
    disk.discard(512, 1024)


def test_an_empty_disk_is_all_zeros_on_the_medium(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    disk.empty()
    assert os.pread(disk.fd, SIZE, 0) == bytes(SIZE)
    assert synced == [disk.fd]


# -- without the page cache


def test_a_medium_that_needs_aligned_memory_gets_a_copy(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not aligned is EINVAL with O_DIRECT; here each buffer that is not a whole mapping."""
    preadv, pwritev = os.preadv, os.pwritev

    def read(fd: int, buffers: Sequence[Any], *rest: int) -> int:
        return preadv(fd, buffers, *rest) if len(buffers) == 1 and len(buffers[0]) == 8 else int(fail(errno.EINVAL)())

    def write(fd: int, buffers: Sequence[Any], *rest: int) -> int:
        return pwritev(fd, buffers, *rest) if len(buffers) == 1 and len(buffers[0]) == 8 else int(fail(errno.EINVAL)())

    disk.direct = True
    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr(os, "pwritev", write)
    pieces = [bytearray(3), bytearray(5)]
    disk.read(pieces, 20)
    assert b"".join(pieces) == bytes(range(20, 28))
    disk.write([bytearray(b"abc"), bytearray(b"defgh")], 20)
    assert os.pread(disk.fd, 10, 19) == b"\x13abcdefgh\x1c"
    disk.direct = False
    for call in (disk.read, disk.write):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            call([bytearray(3), bytearray(5)], 20)


@pytest.mark.parametrize(
    ("number", "direct", "readonly", "hint"),
    [
        (errno.EINVAL, True, False, "; its file system cannot pass the page cache by: leave direct out"),
        (errno.EINVAL, False, False, ""),
        (errno.ENOENT, True, False, "; give size= to have it made"),
        (errno.ENOENT, False, False, "; give size= to have it made"),
        (errno.ENOENT, False, True, ""),
        (errno.EACCES, True, False, ""),
    ],
)
def test_an_image_that_cannot_be_opened_gets_the_hint_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, direct: bool, readonly: bool, hint: str
) -> None:
    monkeypatch.setattr(Place, "open", fail(number))
    path = tmp_path / "disk.img"
    with pytest.raises(StorageError) as refused:
        Disk.open(path, direct=direct, readonly=readonly)
    assert str(refused.value) == f"image {path}: {os.strerror(number)}{hint}"


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("size", [0, 512])
@pytest.mark.parametrize("direct", [False, True])
def test_an_image_is_opened_for_what_is_done_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readonly: bool, size: int, direct: bool
) -> None:
    asked: list[int] = []

    def open_it(_: object, flags: int, mode: int, **__: object) -> int:
        asked.append(flags)
        assert mode == 0o600
        raise OSError(errno.EPERM, "that is enough")

    monkeypatch.setattr(Place, "open", open_it)
    with pytest.raises(StorageError):
        Disk.open(tmp_path / "disk.img", size=size, readonly=readonly, direct=direct)
    expected = os.O_RDONLY if readonly else os.O_RDWR | (os.O_CREAT if size else 0)
    assert asked == [expected | (os.O_DIRECT if direct else 0)]
