"""How a disk divides its work: what it does at once, what it leaves to threads, and when it tells the driver."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bellwire import Job, OptionError
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_blk.at_once import Writes
from bellwire.bundled.virtio_blk.request import Blk, Failure, Result
from bellwire.storage import MemoryDisk
from bellwire.storage.aio import Transfer
from bellwire.testing import Guest
from bellwire.virtio import Feature, Status, Virtqueue
from bellwire.virtio.split import SplitRing
from vfio_user import IrqIndex
from virtio.driver import DEVICE, Driver
from virtio.rings import Part
from virtio.test_virtio_blk import ALL, DISCARD, FLUSH, GET_ID, IN, OUT, WRITE_ZEROES, Disk, segment

SIZE = 4 << 20
FEATURES = {*map(int, ALL), int(Feature.INDIRECT_DESC)}
EIGHTH = 128 << 10


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk(FEATURES, size=SIZE)
    with disk.driver:
        yield disk


def add(disk: Disk, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> None:
    """Make a request available; the device is not told."""
    parts = [data] if data else []
    disk.driver.queues[0].add(
        struct.pack("<IIQ", kind, 0, sector), *parts, write=[room, 1] if room else [1], indirect=True
    )


class Watched:
    """The content of a disk in memory. ``look`` is called whenever some of it is read."""

    def __init__(self, content: memoryview, look: Callable[[], object]) -> None:
        self._content = content
        self._look = look

    def __len__(self) -> int:
        return len(self._content)

    def __getitem__(self, where: slice) -> memoryview:
        self._look()
        return self._content[where]


@pytest.mark.parametrize("fast", [True, False])
def test_a_driver_is_told_of_half_a_mebibyte_while_the_rest_is_read(
    disk: Disk, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, seen, content = disk.driver.queues[0], [], disk.device.disk
    watched = Watched(content.view, lambda: seen.append(queue.word(queue.parts[2] + 2)))  # the index of the used ring
    if not fast:
        disk.device.fast = None
    for number in range(8):
        add(disk, IN, number * 256, room=EIGHTH)
    with monkeypatch.context() as patch:
        patch.setattr(content, "view", watched)
        queue.kick()
    assert seen == [0, 0, 0, 0, 4, 4, 4, 4]
    assert len(queue.used()) == 8
    assert disk.driver.guest.interrupts == {(IrqIndex.MSIX, 1): 2}
    meter = disk.device.meter.to_dict()
    assert meter["totals"]["read"] == (8, 8 * EIGHTH)
    assert sum(meter["latency"]) == 8


def test_the_meter_tells_the_requests_of_a_batch_apart(disk: Disk) -> None:
    assert disk.device.totals() == {"read": (0, 0), "write": (0, 0)}
    add(disk, IN, 0, room=512)
    add(disk, OUT, 1, b"w" * 1024)
    add(disk, GET_ID, room=20)
    add(disk, IN, 1 << 40, room=512)
    add(disk, IN, 1, room=2048)
    add(disk, OUT, 1 << 40, b"w" * 512)
    add(disk, FLUSH)
    disk.driver.queues[0].kick()
    assert len(disk.driver.queues[0].used()) == 7
    meter = disk.device.meter.to_dict()
    assert meter["totals"] == {"read": (2, 2560), "write": (1, 1024)}
    assert sum(meter["latency"]) == 7
    assert 0 < meter["nanoseconds"] < 60e9


def groups(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Job, ...]]:
    """The jobs that threads get together; they run at once all the same."""
    found: list[tuple[Job, ...]] = []
    usual = disk.device.workers.submit

    def submit(*jobs: Job) -> None:
        found.append(jobs)
        usual(*jobs)

    monkeypatch.setattr(disk.device.workers, "submit", submit)
    return found


def shape(job: Job) -> object:
    """How many writes it has, or whether it writes."""
    if isinstance(job, Writes):
        return len(job.rows)
    return job.write if isinstance(job, Transfer) else None


@pytest.mark.parametrize(
    ("fast", "shapes"), [(True, [[None], [16], [5]]), (False, [[False], [False], [None], [True] * 16, [True] * 5])]
)
def test_a_thread_gets_16_writes_and_each_other_job_by_itself(
    image: Path, fast: bool, shapes: list[list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(FEATURES, image=image)
    if not fast:
        disk.device.fast = None
    with disk.driver:
        given = groups(disk, monkeypatch)
        monkeypatch.setattr(disk.device.disk, "try_read", lambda *_: False)
        for number in range(21):
            add(disk, OUT, number, bytes([number]) * 512)
        for _ in range(2):
            add(disk, IN, 30, room=512)
        add(disk, FLUSH)
        disk.driver.queues[0].kick()
        disk.driver.guest.advance()
        assert [used.written for used in disk.driver.queues[0].used()] == [513, 513, *[1] * 22]
        assert [[*map(shape, jobs)] for jobs in given] == shapes
        meter = disk.device.meter.to_dict()
        assert meter["totals"] == {"read": (2, 1024), "write": (21, 21 * 512)}
        assert sum(meter["latency"]) == 24
        assert 0 < meter["nanoseconds"] < 24 * 60e9
    assert image.read_bytes()[: 21 * 512] == b"".join(bytes([number]) * 512 for number in range(21))


def test_of_writes_that_a_thread_does_together_each_has_its_own_result(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usual = os.pwritev

    def pwritev(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if offset == 512:
            raise OSError(errno.ENOSPC, "No space left on device")
        return usual(fd, [buffers[0][:100]], offset, flags)  # a short write is not the end

    disk = Disk(FEATURES, image=image)
    with disk.driver as driver:
        monkeypatch.setattr(os, "pwritev", pwritev)
        for number in range(3):
            add(disk, OUT, number, bytes([number + 1]) * 512)
        driver.queues[0].kick()
        driver.guest.advance()
        answers = driver.queues[0].answers()
    assert answers == [b"\0", bytes([Result.IO_ERROR]), b"\0"]
    assert "No space left on device" in caplog.text
    assert image.read_bytes()[:1536] == b"\1" * 512 + bytes(512) + b"\3" * 512


def test_threads_complete_requests_of_each_queue(image: Path) -> None:
    disk = Disk(FEATURES | {int(Blk.MQ)}, queues=3, image=image)
    with disk.driver:
        for index in (0, 1, 1, 2):
            disk.driver.queues[index].send(struct.pack("<IIQ", OUT, 0, index), bytes(512), write=1)
        disk.driver.guest.advance()
        assert [len(disk.driver.queues[index].used()) for index in range(3)] == [1, 2, 1]
        interrupts = disk.driver.guest.interrupts
        assert interrupts == {(IrqIndex.MSIX, 1): 1, (IrqIndex.MSIX, 2): 1, (IrqIndex.MSIX, 3): 1}


def test_a_job_that_raises_an_unknown_error_is_an_io_error_and_logged(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a mistake")

    disk = Disk(FEATURES, image=image)
    with disk.driver:
        with monkeypatch.context() as patch:
            patch.setattr(disk.device.disk, "flush", fail)
            assert disk.request(FLUSH)[0] == Result.IO_ERROR
        assert "request failed" in caplog.text
        assert "a mistake" in caplog.text
        for result in Result:
            assert disk.device.blame(Failure(result)) is result


@pytest.mark.parametrize(
    ("features", "register", "durable"),
    [
        (set(), 1, True),
        ({Blk.CONFIG_WCE}, 1, True),
        ({Blk.FLUSH}, 1, False),
        ({Blk.FLUSH}, 0, False),
        ({Blk.FLUSH, Blk.CONFIG_WCE}, 1, False),
        ({Blk.FLUSH, Blk.CONFIG_WCE}, 0, True),
    ],
)
def test_a_cache_is_written_back_for_a_driver_that_can_flush_and_has_not_turned_it_off(
    features: set[Blk], register: int, durable: bool
) -> None:
    """§5.2.5."""
    disk = Disk(set(map(int, features)), size=SIZE)
    with disk.driver as driver:
        driver.guest.write(driver.places[DEVICE].bar, register, offset=driver.places[DEVICE].offset + 0x20, size=1)
        assert disk.device.durable is durable
        assert driver.config(0x20, 1) == (not durable)


@pytest.mark.parametrize(
    ("options", "features"),
    [
        ({}, {Blk.DISCARD, Blk.WRITE_ZEROES}),
        ({"queues": 2}, {Blk.DISCARD, Blk.WRITE_ZEROES, Blk.MQ}),
        ({"readonly": True}, {Blk.RO}),
    ],
)
def test_what_a_disk_offers(options: dict[str, Any], features: set[Blk]) -> None:
    with Guest(VirtioBlk, size=SIZE, **options) as guest:
        always = {Blk.SIZE_MAX, Blk.SEG_MAX, Blk.BLK_SIZE, Blk.FLUSH, Blk.CONFIG_WCE}
        assert guest.device.features() == always | features


def test_a_disk_without_options_is_64_mib_of_memory() -> None:
    with Driver(VirtioBlk) as driver:
        device = driver.device
        assert isinstance(device, VirtioBlk)
        assert driver.config(0x00, 8) == (64 << 20) // 512
        assert (device.size, device.shrink, device.readonly, device.block_size) == (0, False, False, 512)
        assert (device.queues, device.threads, device.direct) == (1, 4, False)


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        ("size", (0, 512), (-1,)),
        ("threads", (1, 64), (0, 65)),
        ("queues", (1, 16), (0, 17)),
        ("block_size", (512, 1024, 2048, 4096), (256, 513, 8192)),
        ("serial", ("", "x" * 20), ("x" * 21, "é" * 11)),
    ],
)
def test_the_last_value_that_an_option_takes_and_the_first_that_it_does_not(
    option: str, good: Sequence[object], bad: Sequence[object]
) -> None:
    def make(value: object) -> VirtioBlk:
        options: dict[str, Any] = {"size": SIZE, option: value}
        return VirtioBlk(**options)

    for value in good:
        assert getattr(make(value), option) == value
    for value in bad:
        with pytest.raises(OptionError, match=option):
            make(value)


def test_a_closed_disk_has_ended_its_threads_and_closed_its_image(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(FEATURES, image=image)
    ended: list[str] = []

    def noting(name: str, usual: Callable[[], None]) -> Callable[[], None]:
        def close() -> None:
            ended.append(name)
            usual()

        return close

    for name in ("workers", "disk"):
        part = getattr(disk.device, name)
        monkeypatch.setattr(part, "close", noting(name, part.close))
    disk.driver.close()
    assert ended == ["workers", "disk"]
    assert disk.device.virtqueues == []


@pytest.mark.parametrize("finished", [False, True])
def test_a_reset_waits_for_the_threads(disk: Disk, finished: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[int] = []
    monkeypatch.setattr(disk.device.workers, "settle", lambda: settled.append(1))
    if finished:
        disk.driver.status = Status(0)
    else:
        disk.driver.guest.reset()
    assert settled == [1]


@pytest.mark.parametrize(("last", "size"), [(1, 1), (2, 1), (513, 512), (3, 2)])
def test_the_status_is_the_last_byte_wherever_the_room_for_data_ends(disk: Disk, last: int, size: int) -> None:
    """§5.2.6: also if it shares a descriptor with data."""
    queue = disk.driver.queues[0]
    queue.send(struct.pack("<IIQ", GET_ID, 0, 0), write=[20 - size, last] if size < 20 else [last])
    (used,) = queue.used()
    content = queue.whole(used)
    identity = b"bellwire".ljust(20, b"\0")[: sum(part.length for part in used.parts if part.write) - 1]
    assert content[: len(identity)] == identity
    assert content[-1] == 0


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_segments_that_are_empty_change_nothing(disk: Disk, kind: int) -> None:
    assert isinstance(disk.device.disk, MemoryDisk)
    disk.device.disk.view[:1024] = b"x" * 1024
    assert disk.request(kind, 0, segment(0, 0) + segment(1, 1) + segment(4, 0))[0] == Result.OK
    assert bytes(disk.device.disk.view[:1024]) == b"x" * 512 + bytes(512)


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
@pytest.mark.parametrize(("count", "result"), [(1, 0), (256, 0), (257, 1)])
def test_a_request_has_1_to_256_segments(disk: Disk, kind: int, count: int, result: int) -> None:
    assert disk.request(kind, 0, segment(0, 1) * count)[0] == result


def test_a_segment_may_end_where_the_disk_does(disk: Disk) -> None:
    last = SIZE // 512 - 1
    for sector, count, result in ((last, 1, 0), (last, 2, 1), (last + 1, 0, 0), (last + 1, 1, 1), (0, last + 1, 0)):
        assert disk.request(WRITE_ZEROES, 0, segment(sector, count))[0] == result


@pytest.mark.parametrize(("sector", "size", "result"), [(0, SIZE, 0), (SIZE // 512 - 1, 512, 0), (SIZE // 512, 512, 1)])
@pytest.mark.parametrize("kind", [IN, OUT])
def test_a_transfer_may_end_where_the_disk_does(disk: Disk, kind: int, sector: int, size: int, result: int) -> None:
    queue = disk.driver.queues[0]
    data = disk.driver.allocate(min(size, 2 << 20))
    header, status = disk.driver.store(struct.pack("<IIQ", kind, 0, sector)), disk.driver.allocate(1)
    pieces = max(1, size // (2 << 20))
    parts = [Part(header, 16, False), *[Part(data, size // pieces, kind == IN)] * pieces, Part(status, 1, True)]
    queue.publish(parts, indirect=False)
    queue.kick()
    disk.driver.guest.advance()
    assert len(queue.used()) == 1
    assert disk.driver.memory[status] == result


@pytest.mark.parametrize("rooms", [[512, 1], [511, 2], [510, 3], [513], [0, 513], [1, 511, 1]], ids=str)
@pytest.mark.parametrize("on", ["memory", "image"])
def test_the_last_sector_is_read_into_room_of_any_shape(on: str, rooms: list[int], image: Path) -> None:
    options: dict[str, Any] = {"image": image} if on == "image" else {"size": SIZE}
    disk = Disk(FEATURES, **options)
    with disk.driver as driver:
        disk.device.disk.write([memoryview(bytes(range(256)) * 2)], SIZE - 512)
        queue = driver.queues[0]
        queue.send(struct.pack("<IIQ", IN, 0, SIZE // 512 - 1), write=rooms)
        driver.guest.advance()
        assert queue.answers() == [bytes(range(256)) * 2 + b"\0"]


@pytest.mark.parametrize(("fast", "looks"), [(True, {"rows": 2, "take": 0}), (False, {"rows": 0, "take": 1})])
def test_a_disk_takes_no_more_buffers_once_its_turn_is_over(disk: Disk, fast: bool, looks: dict[str, int]) -> None:
    if not fast:
        disk.device.fast = None
    for number in range(10):
        add(disk, IN, number, room=EIGHTH)
    with (
        mock.patch.object(Virtqueue, "take", autospec=True, side_effect=Virtqueue.take) as take,
        mock.patch.object(SplitRing, "rows", autospec=True, side_effect=SplitRing.rows) as rows,
    ):
        disk.driver.queues[0].kick()
    assert {"rows": rows.call_count, "take": take.call_count} == looks
    assert len(disk.driver.queues[0].used()) == 8
