"""nvme's parts by themselves: its options and disks, doorbell writes, Identify's lists, how data is written, saving."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bellwire import OptionError
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import Command, IoOpcode
from bellwire.bundled.nvme.device import images, serial_number
from bellwire.bundled.nvme.inventory import take_stock
from bellwire.bundled.nvme.io import AT_ONCE
from bellwire.bundled.nvme.keeper import Keeper
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.bundled.nvme.store import SpaceRecord, Store
from bellwire.bundled.nvme.task import Task
from bellwire.storage import Disk, KeptDisks, MemoryDisk, StorageError
from bellwire.storage.aio import Transfer
from bellwire.testing import Guest
from nvme.driver import PAGE, Driver, TestMachine

EVERY = 0xFFFF_FFFF


def command(**fields: int) -> Command:
    return Command.unpack(bytes(64))._replace(**fields)


def guest_of(driver: Driver) -> Guest[Nvme]:
    assert isinstance(driver.machine, TestMachine)
    return driver.machine.guest


# -- options


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("", []),
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("a,,b", ["a,b"]),
        ("a,,,b", ["a,", "b"]),
        (",a,", ["a"]),
        (",,", [","]),
    ],
)
def test_a_comma_separates_and_two_are_one(text: str, paths: list[str]) -> None:
    assert [str(path) for path in images(text)] == paths


@pytest.mark.parametrize(
    ("text", "good"), [("x" * 20, True), ("x" * 21, False), ("", True), ("é", False), ("\n", False)]
)
def test_a_serial_number_is_of_20_printable_characters(text: str, good: bool) -> None:
    assert (serial_number(text) is None) is good


def test_256_images_are_the_most() -> None:
    Nvme(image=",".join("x" * 256)).check_options()
    with pytest.raises(OptionError, match="257 images, at most 256"):
        Nvme(image=",".join("x" * 257)).check_options()


def test_there_may_be_more_namespaces_than_images_and_not_fewer() -> None:
    Nvme(image="a,b", namespaces=2).check_options()
    Nvme(image="a,b", namespaces=3).check_options()
    Nvme(image="a,b").check_options()
    with pytest.raises(OptionError, match="2 images for namespaces=1"):
        Nvme(image="a,b", namespaces=1).check_options()


def test_namespaces_without_an_image_are_memory(image: Path) -> None:
    disks = Nvme(image=str(image), namespaces=3, readonly=True).open_disks(KeptDisks(), "")
    assert [type(disk) for disk in disks] == [Disk, MemoryDisk, MemoryDisk]
    assert [(disk.size, disk.readonly) for disk in disks] == [(1 << 20, True), (64 << 20, True), (64 << 20, True)]
    for disk in disks:
        disk.close()
    (disk,) = Nvme(size=4096).open_disks(KeptDisks(), "")
    assert (disk.size, disk.readonly) == (4096, False)
    disk.close()


@pytest.mark.parametrize(("size", "good"), [(4096, True), (4095, False)])
def test_an_image_has_at_least_a_block_and_a_failure_leaves_none_open(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, good: bool
) -> None:
    small = tmp_path / "small"
    small.write_bytes(bytes(size))
    closed: list[int] = []
    close = Disk.close

    def count(disk: Disk) -> None:
        closed.append(disk.size)
        close(disk)

    monkeypatch.setattr(Disk, "close", count)
    device = Nvme(image=f"{image},{small}", block_size=4096)
    if good:
        for disk in device.open_disks(KeptDisks(), ""):
            disk.close()
    else:
        with pytest.raises(StorageError, match="too few for a block"):
            device.open_disks(KeptDisks(), "")
    assert sorted(closed) == sorted([1 << 20, size])


def test_a_serial_number_is_made_from_the_images_or_at_random() -> None:
    first, second = Nvme(image="a").made_up_serial(), Nvme(image="a").made_up_serial()
    assert (first == second, len(first), first[:2]) == (True, 18, "BW")
    assert Nvme(image="b").made_up_serial() != first
    assert Nvme().made_up_serial() != Nvme().made_up_serial()


@pytest.mark.parametrize(
    ("offset", "size", "rung"),
    [
        (0, 4, [("tail", 0)]),
        (4, 4, [("head", 0)]),
        (8, 4, [("tail", 1)]),
        (12, 4, [("head", 1)]),
        (516, 4, [("head", 64)]),
        (0, 8, []),
        (0, 2, []),
        (2, 4, []),
        (6, 4, []),
    ],
)
def test_only_a_write_of_a_whole_doorbell_rings(offset: int, size: int, rung: list[tuple[str, int]]) -> None:
    heard: list[tuple[str, int]] = []
    device = Nvme()
    engine = SimpleNamespace(
        ring_tail=lambda qid, _: heard.append(("tail", qid)), ring_head=lambda qid, _: heard.append(("head", qid))
    )
    device.controller = SimpleNamespace(engine=engine)  # type: ignore[assignment]
    device.ring(offset, size, 7)
    assert heard == rung


# -- the store's namespaces


def stock(records: list[SpaceRecord], *, deleted: tuple[int, ...] = (), disks: int = 2) -> list[tuple[int, int, bool]]:
    store = Store(None)
    store.record.spaces, store.record.deleted = records, list(deleted)
    found = take_stock(store, [MemoryDisk(8192) for _ in range(disks)], 512, uuid.UUID(int=1), spare=0, direct=False)
    return [(space.nsid, space.shift, space.attached) for space in found.allocated]


def test_a_namespace_is_as_the_options_say_unless_the_store_knows_it() -> None:
    assert stock([]) == [(1, 9, True), (2, 9, True)]
    assert stock([SpaceRecord(2, 1, 0, False, 0, [])]) == [(1, 9, True), (2, 12, False)]
    assert stock([], deleted=(1,)) == [(2, 9, True)]
    assert stock([SpaceRecord(5, 0, 0, True, 0, [])]) == [(1, 9, True), (2, 9, True)], "its image is not named"
    assert stock([SpaceRecord(5, 1, 3, True, 4096, [])]) == [(1, 9, True), (2, 9, True), (5, 12, True)]


@pytest.mark.parametrize(
    "record",
    [SpaceRecord(5, 1, 3, True, 4095, []), SpaceRecord(5, 0, 3, True, 511, []), SpaceRecord(2, 0, 3, True, 512, [])],
)
def test_a_store_that_contradicts_itself_or_the_options_is_refused(record: SpaceRecord) -> None:
    with pytest.raises(StorageError):
        stock([record])


# -- Identify


def identified(driver: Driver, cns: int, nsid: int, above: int = 0) -> bytes | Status:
    try:
        page = guest_of(driver).device.controller.engine._admin._inquiry.page(
            command(cdw10=above << 16 | cns, nsid=nsid)
        )
    except CommandError as error:
        return Status(error.status)
    assert len(page) == PAGE
    return page


@pytest.mark.parametrize(
    ("cns", "nsid", "above", "start"),
    [
        (0x02, 0, 0, struct.pack("<III", 1, 2, 0)),
        (0x02, 1, 0, struct.pack("<II", 2, 0)),
        (0x02, 0xFFFF_FFFD, 0, bytes(PAGE)),
        (0x10, 2, 0, bytes(PAGE)),
        (0x12, 1, 0, struct.pack("<HHH", 1, 1, 0)),
        (0x12, 1, 1, struct.pack("<HHH", 1, 1, 0)),
        (0x12, 1, 2, bytes(PAGE)),
        (0x13, 0, 1, struct.pack("<HHH", 1, 1, 0)),
        (0x13, 0, 2, bytes(PAGE)),
        (0x00, 3, 0, bytes(PAGE)),
        (0x11, 3, 0, bytes(PAGE)),
    ],
)
def test_identify_lists(driver: Driver, cns: int, nsid: int, above: int, start: bytes) -> None:
    page = identified(driver, cns, nsid, above)
    assert isinstance(page, bytes)
    assert page.startswith(start)


@pytest.mark.parametrize(
    ("cns", "nsid", "status"),
    [
        (0x02, 0xFFFF_FFFE, Status.INVALID_NAMESPACE),
        (0x10, EVERY, Status.INVALID_NAMESPACE),
        (0x00, 0, Status.INVALID_NAMESPACE),
        (0x00, 33, Status.INVALID_NAMESPACE),
        (0x03, 3, Status.INVALID_FIELD),
        (0x11, EVERY, Status.INVALID_NAMESPACE),
        (0x12, 3, Status.INVALID_FIELD),
        (0x04, 1, Status.INVALID_FIELD),
        (0x14, 1, Status.INVALID_FIELD),
    ],
)
def test_identify_refuses(driver: Driver, cns: int, nsid: int, status: Status) -> None:
    assert identified(driver, cns, nsid) == status


def test_a_namespace_that_is_not_attached_has_no_controllers_and_is_still_allocated(driver: Driver) -> None:
    space = guest_of(driver).device.controller.namespaces.existing(2)
    space.attached = False
    assert identified(driver, 0x12, 2) == identified(driver, 0x00, 2) == bytes(PAGE)
    assert identified(driver, 0x11, 2) == space.identify()
    assert identified(driver, 0x03, 2) == Status.INVALID_FIELD
    assert identified(driver, 0x02, 1) == bytes(PAGE)
    assert identified(driver, 0x10, 1) != bytes(PAGE)


# -- how data is read and written


def made_of(driver: Driver, opcode: IoOpcode, *, nsid: int = 1, control: int = 0, blocks: int = 8) -> Any:
    io = guest_of(driver).device.controller.engine._io
    page = driver.allocate(max(PAGE, blocks * 512))
    return io.execute(command(opcode=opcode, nsid=nsid, prp1=page, cdw12=blocks - 1 | control))


@pytest.mark.parametrize(("control", "cached", "kind"), [(0, 1, "Transfer"), (1 << 30, 1, "Job"), (0, 0, "Job")])
def test_a_write_that_must_be_durable_is_no_mere_transfer(
    on_image: Driver, control: int, cached: int, kind: str
) -> None:
    guest_of(on_image).device.controller.features.words[6] = cached
    job = made_of(on_image, IoOpcode.WRITE, control=control)
    assert type(job).__name__ == kind
    assert not isinstance(job, Transfer) or job.write


def test_a_write_to_memory_is_done_at_once_within_the_turns_budget(driver: Driver) -> None:
    io = guest_of(driver).device.controller.engine._io
    io.budget = PAGE
    assert made_of(driver, IoOpcode.WRITE) is None
    assert io.budget == 0
    job = made_of(driver, IoOpcode.WRITE, blocks=1)
    assert (type(job), job.write) == (Transfer, True)
    io.budget = AT_ONCE
    assert made_of(driver, IoOpcode.READ, blocks=2) is None
    assert io.budget == AT_ONCE - 1024
    io.budget = 511
    job = made_of(driver, IoOpcode.READ, blocks=1)
    assert (type(job), job.write) == (Transfer, False)


@pytest.mark.parametrize("opcode", [IoOpcode.WRITE, IoOpcode.WRITE_ZEROES])
def test_where_blocks_are_lost_a_write_is_a_task_that_heals(on_image: Driver, opcode: IoOpcode) -> None:
    space = guest_of(on_image).device.controller.namespaces.existing(1)
    assert not isinstance(made_of(on_image, opcode), Task)
    space.lost.add(100, 1)
    assert isinstance(made_of(on_image, opcode), Task)


def test_what_is_moved_is_counted_once_in_sectors(driver: Driver) -> None:
    counters = guest_of(driver).device.controller.logs.counters
    before = counters.by_name()
    made_of(driver, IoOpcode.READ, blocks=3)
    made_of(driver, IoOpcode.WRITE, blocks=5)
    after = counters.by_name()
    assert {name: after[name] - before[name] for name in after} == {
        "reads": 1, "writes": 1, "sectors_read": 3, "sectors_written": 5, "media": 0, "errors": 0,
    }  # fmt: skip


# -- saving


class Written:
    """A store that counts what is written."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.record = SimpleNamespace(spaces=[])
        self.count = self.closed = self.remembered = 0

    def encode(self) -> tuple[int, bytes]:
        self.count += 1
        return self.count, b""

    def write(self, number: int, _: bytes) -> None: ...

    def remember(self) -> None:
        self.remembered += 1

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def keeping() -> tuple[Keeper, Written, list[Any], list[str]]:
    """A keeper, its store, the background jobs with what is called at their end, and the warnings."""
    store, jobs, warnings = Written(Path("x")), list[Any](), list[str]()
    controller = SimpleNamespace(
        store=store,
        namespaces=SimpleNamespace(allocated=[]),
        engine=SimpleNamespace(background=lambda job, done: jobs.append((job, done))),
        device=SimpleNamespace(warn=lambda text, *words: warnings.append(text % words)),
    )
    return Keeper(controller), store, jobs, warnings  # type: ignore[arg-type]


def test_one_write_is_under_way_and_one_more_follows(keeping: Any) -> None:
    keeper, store, jobs, warnings = keeping
    for _ in range(3):
        keeper.save_soon()
    assert (len(jobs), store.count) == (1, 1)
    job, done = jobs.pop()
    done(job)
    assert (len(jobs), store.count) == (1, 2)
    job, done = jobs.pop()
    done(job)
    assert (len(jobs), store.count, warnings) == (0, 2, [])
    keeper.save_soon()
    assert len(jobs) == 1


def test_a_write_that_fails_is_not_tried_again_by_itself(keeping: Any) -> None:
    keeper, _, jobs, warnings = keeping
    keeper.save_soon()
    keeper.save_soon()
    job, done = jobs.pop()
    job.error = OSError("full")
    done(job)
    assert (jobs, warnings) == ([], ["store x: full"])
    keeper.save_soon()
    assert len(jobs) == 1


def test_a_write_whose_job_was_dropped_is_begun_again(keeping: Any) -> None:
    keeper, _, jobs, _ = keeping
    keeper.save_soon()
    keeper.forgotten()
    keeper.save_soon()
    assert len(jobs) == 2


def test_without_a_folder_nothing_is_written_soon_but_a_successor_shall_know_at_once(keeping: Any) -> None:
    keeper, store, jobs, _ = keeping
    store.folder = None
    keeper.save_soon()
    assert (jobs, store.count, store.remembered) == ([], 0, 1)


def test_the_last_save_closes_the_store_even_if_it_fails(keeping: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, store, _, warnings = keeping
    keeper.close()
    assert (store.count, store.closed, warnings) == (1, 1, [])

    def fail(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(store, "write", fail)
    keeper.close()
    assert (store.closed, warnings) == (2, ["store x: full"])
