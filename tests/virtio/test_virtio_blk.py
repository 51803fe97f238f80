"""virtio-blk (virtio 1.2 §5.2): requests, features, several queues, resizing."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwire import GuestError, Job, OptionError
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_blk.request import HEADER, Blk
from bellwire.storage import StorageError
from bellwire.testing import Guest, conformance
from bellwire.virtio import Status
from bellwire.virtio.chain import MOST_BYTES
from vfio_user import IrqIndex
from virtio.conftest import FORMATS
from virtio.driver import Driver

RINGS = FORMATS
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IO_ERROR, UNSUPPORTED = 0, 1, 2
SIZE = 1 << 20
SECTORS = SIZE // 512
CONTENT = random.Random(7).randbytes(SIZE)
ALL = {Blk.SEG_MAX, Blk.BLK_SIZE, Blk.FLUSH, Blk.CONFIG_WCE, Blk.DISCARD, Blk.WRITE_ZEROES}

TestVirtioBlk = conformance(VirtioBlk, size=SIZE)


class Disk:
    """The driver of a disk."""

    def __init__(self, features: set[int], queues: int = 1, **options: Any) -> None:
        self.driver = Driver(VirtioBlk, queues=queues, **options)
        assert isinstance(self.driver.device, VirtioBlk)
        self.device = self.driver.device
        self.driver.start(features, range(queues), size=64)
        self.used_length = 0
        """What the device said that it had written for the last request."""

    def request(
        self,
        kind: int,
        sector: int = 0,
        data: bytes = b"",
        room: int = 0,
        *,
        queue: int = 0,
        pieces: int = 1,
        indirect: bool = False,
    ) -> tuple[int, bytes]:
        """Its result, and what was read."""
        used = self.driver.queues[queue]
        parts = [data[len(data) * n // pieces : len(data) * (n + 1) // pieces] for n in range(pieces)] if data else []
        rooms = [room // pieces] * pieces if room else []
        used.send(struct.pack("<IIQ", kind, 0, sector), *parts, write=[*rooms, 1], indirect=indirect)
        self.driver.guest.advance()
        (done,) = used.used()
        self.used_length = done.written
        *content, result = used.whole(done)
        return result, bytes(content)

    def write(self, sector: int, data: bytes) -> int:
        return self.request(OUT, sector, data)[0]

    def read(self, sector: int, size: int) -> bytes:
        result, data = self.request(IN, sector, room=size)
        assert result == OK
        return data


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def make(ring: set[int]) -> Iterator[Callable[..., Disk]]:
    with contextlib.ExitStack() as stack:

        def make(features: set[int] | None = None, **options: Any) -> Disk:
            disk = Disk(ring | (ALL if features is None else features), **options)
            stack.callback(disk.driver.close)
            return disk

        yield make


@pytest.fixture(params=["image", "memory"])
def disk(request: pytest.FixtureRequest, make: Callable[..., Disk], image: Path) -> Disk:
    return make(image=image) if request.param == "image" else make(size=SIZE)


def test_what_was_written_is_read(disk: Disk) -> None:
    data = os.urandom(4096)
    assert disk.write(8, data) == OK
    assert disk.read(8, 4096) == data
    assert disk.read(10, 512) == data[1024:1536]


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_data_may_be_in_pieces(disk: Disk, indirect: bool) -> None:
    data = os.urandom(4096)
    assert disk.request(OUT, 3, data, pieces=7, indirect=indirect)[0] == OK
    assert disk.request(IN, 3, room=4096, pieces=8, indirect=indirect) == (OK, data)


def test_a_request_may_be_laid_out_in_any_pieces(disk: Disk) -> None:
    raw = struct.pack("<IIQ", OUT, 0, 5) + b"x" * 512
    queue = disk.driver.queues[0]
    queue.send(raw[:3], raw[3:30], raw[30:], write=[1])
    disk.driver.guest.advance()
    assert queue.answers() == [b"\0"]
    queue.send(struct.pack("<IIQ", IN, 0, 5), write=[513])
    disk.driver.guest.advance()
    assert queue.answers() == [b"x" * 512 + b"\0"]


def test_the_image_holds_what_was_written(make: Callable[..., Disk], image: Path) -> None:
    disk = make(image=image)
    assert disk.write(SECTORS - 1, b"z" * 512) == OK
    assert image.read_bytes()[-512:] == b"z" * 512


def test_a_flush_is_answered(disk: Disk) -> None:
    assert disk.request(FLUSH)[0] == OK


def test_the_serial_is_told(make: Callable[..., Disk]) -> None:
    assert make(size=SIZE, serial="SN-1").request(GET_ID, room=20) == (OK, b"SN-1".ljust(20, b"\0"))


@pytest.mark.parametrize(
    ("kind", "sector", "data", "room", "result", "length"),
    [
        (IN, 0, b"", 1024, OK, 1025),
        (OUT, 0, bytes(512), 0, OK, 1),
        (FLUSH, 0, b"", 0, OK, 1),
        (FLUSH, 0, b"", 16, OK, 0),
        (GET_ID, 0, b"", 20, OK, 21),
        (GET_ID, 0, b"", 7, OK, 8),
        (GET_ID, 0, b"", 512, OK, 20),
        (IN, SECTORS, b"", 1024, IO_ERROR, 0),
        (IN, 0, b"", 1000, IO_ERROR, 0),
        (OUT, SECTORS, bytes(512), 0, IO_ERROR, 1),
        (99, 0, b"", 512, UNSUPPORTED, 0),
        (99, 0, b"", 0, UNSUPPORTED, 1),
    ],
)
def test_the_used_length_is_what_was_written_without_a_gap(
    disk: Disk, kind: int, sector: int, data: bytes, room: int, result: int, length: int
) -> None:
    """A driver may take so many bytes from the start for the device's own (§2.7.8.2)."""
    assert disk.request(kind, sector, data, room)[0] == result
    assert disk.used_length == length


def test_a_read_that_fails_on_the_way_has_written_nothing(make: Callable[..., Disk], image: Path) -> None:
    disk = make(image=image)
    os.truncate(image, 512)
    assert disk.request(IN, 0, room=1024)[0] == IO_ERROR
    assert disk.used_length == 0


@pytest.mark.parametrize("sector", [SECTORS, SECTORS - 1, 1 << 62])
def test_what_lies_beyond_the_end_is_an_error(disk: Disk, sector: int) -> None:
    assert disk.request(IN, sector, room=1024)[0] == IO_ERROR
    assert disk.request(OUT, sector, bytes(1024))[0] == IO_ERROR


def test_parts_of_sectors_are_an_error(disk: Disk) -> None:
    assert disk.request(OUT, 0, bytes(100))[0] == IO_ERROR


def test_an_unknown_request_is_unsupported(disk: Disk) -> None:
    assert disk.request(99)[0] == UNSUPPORTED


def segment(sector: int, count: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, count, flags)


@pytest.mark.parametrize("flags", [0, 1], ids=["keep", "unmap"])
def test_zeroes_are_written(disk: Disk, flags: int) -> None:
    disk.write(0, b"x" * 4096)
    assert disk.request(WRITE_ZEROES, 0, segment(1, 2, flags) + segment(5, 1, flags))[0] == OK
    data = disk.read(0, 4096)
    assert [data[at : at + 1] for at in range(0, 4096, 512)] == [b"x", b"\0", b"\0", b"x", b"x", b"\0", b"x", b"x"]


def test_discarded_space_is_given_back(make: Callable[..., Disk], image: Path) -> None:
    disk = make(image=image)
    before = image.stat().st_blocks
    assert disk.request(DISCARD, 0, segment(0, SECTORS // 2))[0] == OK
    assert image.stat().st_blocks < before


@pytest.mark.parametrize(
    ("kind", "data", "result"),
    [
        (DISCARD, segment(SECTORS, 1), IO_ERROR),
        (DISCARD, segment(0, 1 << 23), IO_ERROR),
        (DISCARD, segment(0, 1, 1), UNSUPPORTED),
        (WRITE_ZEROES, segment(0, 1, 2), UNSUPPORTED),
        (WRITE_ZEROES, segment(0, 1)[:-1], IO_ERROR),
        (DISCARD, b"", IO_ERROR),
        (DISCARD, segment(0, 0) * 257, IO_ERROR),
    ],
)
def test_segments_that_cannot_be_are_refused(disk: Disk, kind: int, data: bytes, result: int) -> None:
    before = disk.read(0, 512)
    assert disk.request(kind, 0, data)[0] == result
    assert disk.read(0, 512) == before


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_a_segment_has_no_more_sectors_than_drivers_are_told(make: Callable[..., Disk], kind: int) -> None:
    disk = make(size=4 << 30)
    most = disk.driver.config(0x24 if kind == DISCARD else 0x30, 4)
    assert disk.request(kind, 0, segment(0, most))[0] == OK
    assert disk.request(kind, 0, segment(0, most + 1))[0] == IO_ERROR


def test_a_read_only_disk_refuses_writes_and_says_so(make: Callable[..., Disk], image: Path) -> None:
    disk = make({Blk.RO, Blk.FLUSH}, image=image, readonly=True)
    before = image.read_bytes()
    assert not disk.driver.offered() & {Blk.DISCARD, Blk.WRITE_ZEROES}
    for kind, data in ((OUT, bytes(512)), (DISCARD, segment(0, 1)), (WRITE_ZEROES, segment(0, 1))):
        assert disk.request(kind, 0, data)[0] == IO_ERROR
    assert disk.request(FLUSH)[0] == OK
    assert image.read_bytes() == before


def test_the_configuration_describes_the_disk(make: Callable[..., Disk], image: Path) -> None:
    driver = make(image=image, block_size=4096).driver
    assert driver.config(0x00, 8) == SECTORS
    assert driver.config(0x14, 4) == 4096
    assert driver.config(0x22, 2) == 1


def test_the_largest_request_that_drivers_may_make_is_a_chain(disk: Disk) -> None:
    assert Blk.SIZE_MAX in disk.driver.offered()
    largest, most = disk.driver.config(0x08, 4), disk.driver.config(0x0C, 4)
    assert HEADER.size + largest * most + 1 <= MOST_BYTES


def test_several_queues_work_side_by_side(make: Callable[..., Disk], image: Path) -> None:
    disk = make(ALL | {Blk.MQ}, queues=4, image=image)
    assert disk.driver.config(0x22, 2) == 4
    for queue in range(4):
        assert disk.request(OUT, queue, bytes([queue]) * 512, queue=queue)[0] == OK
    assert disk.read(0, 2048) == b"".join(bytes([n]) * 512 for n in range(4))
    assert {vector for _, vector in disk.driver.guest.interrupts} == {1, 2, 3, 4}


def test_what_threads_have_done_together_is_one_interrupt(make: Callable[..., Disk], image: Path) -> None:
    disk = make(image=image)
    queue = disk.driver.queues[0]
    for sector in range(6):
        queue.send(struct.pack("<IIQ", OUT, 0, sector), bytes(512), write=1)
    disk.driver.guest.advance()
    assert queue.answers() == [b"\0"] * 6
    assert disk.driver.guest.interrupts == {(IrqIndex.MSIX, 1): 1}


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been put onto the medium, by which call."""
    calls: list[str] = []
    flush, write = os.fdatasync, os.pwritev

    def fdatasync(fd: int) -> None:
        calls.append("flush")
        flush(fd)

    def pwritev(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        calls.extend(["write"] if flags & os.RWF_DSYNC else [])
        return write(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(os, "pwritev", pwritev)
    return calls


@pytest.mark.same_device("lists what the disk is asked for, and it is flushed when a device closes it")
def test_a_driver_that_cannot_flush_has_its_writes_on_the_medium(
    make: Callable[..., Disk], image: Path, synced: list[str]
) -> None:
    disk = make({Blk.WRITE_ZEROES}, image=image)
    assert (disk.write(0, bytes(512)), disk.request(WRITE_ZEROES, 0, segment(1, 1))[0]) == (OK, OK)
    assert synced == ["write", "flush"]


@pytest.mark.same_device("lists what the disk is asked for, and it is flushed when a device closes it")
def test_a_driver_that_can_flush_has_its_writes_in_the_cache_until_it_does(
    make: Callable[..., Disk], image: Path, synced: list[str]
) -> None:
    disk = make(image=image)
    assert (disk.write(0, bytes(512)), disk.request(WRITE_ZEROES, 0, segment(1, 1))[0]) == (OK, OK)
    assert synced == []
    assert disk.request(FLUSH)[0] == OK
    assert synced == ["flush"]


def test_the_cache_can_be_turned_off(make: Callable[..., Disk]) -> None:
    disk = make(size=SIZE)
    place = disk.driver.places[4]
    assert disk.driver.config(0x20, 1) == 1
    disk.driver.guest.write(place.bar, 0, offset=place.offset + 0x20, size=1)
    assert disk.driver.config(0x20, 1) == 0
    assert disk.device.durable
    assert disk.write(0, bytes(512)) == OK


def test_a_disk_can_grow_while_the_guest_runs(make: Callable[..., Disk], image: Path) -> None:
    disk = make(image=image)
    disk.driver.set_common(0x10, 0, 2)
    assert disk.request(IN, SECTORS, room=512)[0] == IO_ERROR
    disk.device.resize(2 * SIZE)
    assert disk.driver.guest.interrupts[IrqIndex.MSIX, 0] == 1
    assert disk.driver.config(0x00, 8) == 2 * SECTORS
    assert disk.read(SECTORS, 512) == bytes(512)


def test_a_disk_takes_the_size_that_others_gave_its_image(make: Callable[..., Disk], image: Path) -> None:
    disk = make(image=image)
    os.truncate(image, SIZE // 2)
    disk.device.resize()
    assert disk.driver.config(0x00, 8) == SECTORS // 2


@pytest.mark.parametrize("option", ["image", "memory"])
def test_a_disk_is_not_cut_without_a_word(make: Callable[..., Disk], image: Path, option: str) -> None:
    disk = make(image=image) if option == "image" else make(size=SIZE)
    with pytest.raises(StorageError, match=f"size={SIZE // 2} would cut the disk from {SIZE} bytes .* shrink=yes"):
        disk.device.change("size", SIZE // 2)
    assert disk.driver.config(0x00, 8) == SECTORS
    disk.device.change("shrink", True)
    disk.device.change("size", SIZE // 2)
    assert disk.driver.config(0x00, 8) == SECTORS // 2
    with pytest.raises(StorageError, match="shrink=yes"):  # the word was for that once
        disk.device.change("size", SIZE // 4)


def test_writes_under_way_do_not_make_a_shrunken_image_longer_again(
    make: Callable[..., Disk], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, waiting = make(image=image, shrink=True), list[Job]()
    monkeypatch.setattr(disk.device.workers, "submit", waiting.append)  # threads that have not come to it
    monkeypatch.setattr(disk.device.workers, "finish", lambda: [*map(Job.run, (waiting.pop() for _ in list(waiting)))])
    disk.driver.queues[0].send(struct.pack("<IIQ", OUT, 0, SECTORS - 1), bytes(512), write=[1])
    disk.device.change("size", SIZE // 2)
    disk.device.workers.finish()
    assert image.stat().st_size == SIZE // 2


def test_a_disk_is_a_whole_number_of_blocks(make: Callable[..., Disk], image: Path, tmp_path: Path) -> None:
    disk = make(image=image, block_size=4096)
    disk.device.change("shrink", True)
    for size in (1000, SIZE + 512):
        with pytest.raises(StorageError, match=f"size={size}: expected a whole number of blocks of 4096 bytes"):
            disk.device.change("size", size)
    for options in ({}, {"image": tmp_path / "new"}):
        with pytest.raises(StorageError, match="size=1000: expected a whole number of blocks of 512 bytes"):
            make(size=1000, **options)
    assert not (tmp_path / "new").exists()


def test_an_image_keeps_its_size_at_the_next_start(
    make: Callable[..., Disk], image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert make(image=image, size=2 * SIZE).driver.config(0x00, 8) == SECTORS
    assert f"image {image} keeps its {SIZE} bytes: size={2 * SIZE} is for an image" in caplog.text


@pytest.mark.parametrize("size", [1 << 62, (1 << 63) - 512])
def test_a_size_that_no_image_can_have_is_refused(make: Callable[..., Disk], limited_folder: Path, size: int) -> None:
    disk = make(image=limited_folder / "image", size=SIZE)
    with pytest.raises(StorageError, match=f"a disk of {size} bytes cannot be made of this"):
        disk.device.change("size", size)
    assert disk.driver.config(0x00, 8) == SECTORS


def test_an_image_that_is_only_read_keeps_its_size(make: Callable[..., Disk], image: Path) -> None:
    with pytest.raises(StorageError, match="cannot be made of this: Invalid argument"):
        make({Blk.RO}, image=image, readonly=True).device.change("size", 2 * SIZE)
    assert image.stat().st_size == SIZE


def test_an_image_that_was_cut_short_is_an_error_that_is_logged(
    make: Callable[..., Disk], image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = make(image=image)
    os.truncate(image, 0)
    assert disk.request(IN, 0, room=512)[0] == IO_ERROR
    assert "the image ends at 0x0: somebody has cut it short" in caplog.text


def test_an_image_that_fails_at_once_is_logged_too(
    make: Callable[..., Disk], image: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    disk = make(image=image)
    monkeypatch.setattr(os, "preadv", fail)
    assert disk.request(IN, 0, room=512)[0] == IO_ERROR
    assert "Input/output error" in caplog.text


@pytest.mark.parametrize(("header", "room"), [(b"short", 1), (bytes(16), 0)], ids=["header", "room"])
def test_a_buffer_that_is_no_request_breaks_the_device(disk: Disk, header: bytes, room: int) -> None:
    with pytest.raises(GuestError, match="a request of"):
        disk.driver.queues[0].send(header, write=[room] if room else [])
    assert Status.NEEDS_RESET in disk.driver.status


def test_a_reset_forgets_what_was_under_way(make: Callable[..., Disk], image: Path) -> None:
    disk = make(image=image)
    disk.driver.queues[0].send(struct.pack("<IIQ", OUT, 0, 0), bytes(512), write=1)
    disk.driver.start(ALL, size=64)
    disk.driver.guest.advance()
    assert disk.driver.queues[0].answers() == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"queues": 17}, OptionError, "queues=17: expected 1 to 16"),
        ({"serial": "x" * 21}, OptionError, "at most 20 bytes"),
        ({"block_size": 100}, OptionError, "block_size=100"),
        ({"image": Path("/")}, StorageError, "image /: it is a folder, expected a file or a block device"),
        ({"image": Path("/no/such/file")}, StorageError, "No such file"),
        ({"size": -1}, OptionError, f"size=-1: expected 0 to {(1 << 63) - 1:#x}"),
        ({"size": 1 << 70}, OptionError, "expected 0 to"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Guest(VirtioBlk, **options)
