"""nvme's I/O commands: what goes where, and what is refused."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.status import Status
from bellwire.testing import Guest
from nvme.driver import CC, MEMORY, PAGE, Driver, Fields, TestMachine, prps, transfer

READ, WRITE = IoOpcode.READ, IoOpcode.WRITE
USUAL: Fields = {"nsid": 1, "prp1": 0x2000}


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("offset", [0, 512, 4092])
@pytest.mark.parametrize("kibibytes", [4, 8, 12, 128, 1020])
def test_what_is_written_is_read_back(block_size: int, offset: int, kibibytes: int) -> None:
    with Guest(Nvme, memory=MEMORY, size=8 << 20, block_size=block_size) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        queues = driver.create_queues()
        length = kibibytes << 10
        source, target = driver.allocate(length + PAGE) + offset, driver.allocate(length + PAGE) + offset
        content = random.Random(length).randbytes(length)
        driver.memory[source : source + length] = content
        shift = block_size.bit_length() - 1
        for opcode, address in ((WRITE, source), (READ, target)):
            assert transfer(queues, opcode, address, 3, length >> shift, shift=shift).status == 0
        assert driver.memory[target : target + length] == content


def test_scattered_pages_come_in_their_order(driver: Driver) -> None:
    queues = driver.create_queues()
    base = driver.allocate(64 * PAGE)
    pages = [base + PAGE * number for number in range(64)]
    random.Random(7).shuffle(pages)
    content = random.Random(8).randbytes(64 * PAGE)
    for number, page in enumerate(pages):
        driver.memory[page : page + PAGE] = content[number * PAGE : (number + 1) * PAGE]
    prp1, prp2 = prps(driver, pages)
    assert queues.do(WRITE, nsid=1, prp1=prp1, prp2=prp2, dwords=(0, 0, 511)).status == 0
    flat = driver.allocate(64 * PAGE)
    assert transfer(queues, READ, flat, 0, 512).status == 0
    assert driver.memory[flat : flat + 64 * PAGE] == content


@pytest.mark.parametrize("strays", [0, 1, 29, 30])
def test_one_page_that_lies_elsewhere_gets_what_is_its_own(driver: Driver, strays: int) -> None:
    queues = driver.create_queues()
    content = random.Random(9).randbytes(32 * PAGE)
    source, elsewhere = driver.allocate(32 * PAGE), driver.allocate(PAGE)
    driver.memory[source : source + 32 * PAGE] = content
    assert transfer(queues, WRITE, source, 0, 256).status == 0
    base = driver.allocate(32 * PAGE)
    pages = [base + PAGE * number for number in range(32)]
    pages[1 + strays] = elsewhere
    prp1, prp2 = prps(driver, pages)
    assert queues.do(READ, nsid=1, prp1=prp1, prp2=prp2, dwords=(0, 0, 255)).status == 0
    assert b"".join(bytes(driver.memory[page : page + PAGE]) for page in pages) == content
    assert not any(driver.memory[base + (1 + strays) * PAGE : base + (2 + strays) * PAGE])


def test_many_large_reads_rung_for_at_once_all_come(driver: Driver) -> None:
    queues = driver.create_queues(1, 64)
    content = random.Random(10).randbytes(32 * PAGE)
    source = driver.allocate(32 * PAGE)
    driver.memory[source : source + 32 * PAGE] = content
    assert transfer(queues, WRITE, source, 0, 256).status == 0
    targets = [driver.allocate(32 * PAGE) for _ in range(40)]
    for cid, target in enumerate(targets):
        prp1, prp2 = prps(driver, range(target, target + 32 * PAGE, PAGE))
        queues.put(READ, nsid=1, prp1=prp1, prp2=prp2, dwords=(0, 0, 255), cid=cid)
    queues.ring()
    assert {done.status for done in queues.wait(*range(40))} == {0}
    assert all(driver.memory[target : target + 32 * PAGE] == content for target in targets)


def test_a_list_may_begin_at_the_end_of_its_page_and_go_on_in_another(driver: Driver) -> None:
    queues = driver.create_queues()
    pages = [driver.allocate(PAGE) for _ in range(5)]
    head, tail = driver.allocate(PAGE), driver.allocate(PAGE)
    struct.pack_into("<2Q", driver.memory, head + PAGE - 16, pages[1], tail)
    struct.pack_into("<3Q", driver.memory, tail, *pages[2:])
    content = random.Random(9).randbytes(5 * PAGE)
    for number, page in enumerate(pages):
        driver.memory[page : page + PAGE] = content[number * PAGE : (number + 1) * PAGE]
    assert queues.do(WRITE, nsid=1, prp1=pages[0], prp2=head + PAGE - 16, dwords=(0, 0, 39)).status == 0
    flat = driver.allocate(5 * PAGE)
    transfer(queues, READ, flat, 0, 40)
    assert driver.memory[flat : flat + 5 * PAGE] == content


@pytest.mark.parametrize(
    ("opcode", "fields", "status"),
    [
        (0x7F, {}, Status.INVALID_OPCODE),
        (READ, {"nsid": 0}, Status.INVALID_NAMESPACE),
        (READ, {"nsid": 3}, Status.INVALID_FIELD),
        (READ, {"nsid": 33}, Status.INVALID_NAMESPACE),
        (READ, {"nsid": 0xFFFF_FFFF}, Status.INVALID_NAMESPACE),
        (READ, {"dwords": (16384,)}, Status.LBA_OUT_OF_RANGE),
        (READ, {"dwords": (16380, 0, 7)}, Status.LBA_OUT_OF_RANGE),
        (READ, {"dwords": (0, 0xFFFF_FFFF)}, Status.LBA_OUT_OF_RANGE),
        (READ, {"dwords": (0, 0, 2048)}, Status.INVALID_FIELD),
        (READ, {"prp1": 0x2001}, Status.INVALID_PRP_OFFSET),
        (READ, {"prp2": 0x2004, "dwords": (0, 0, 15)}, Status.INVALID_PRP_OFFSET),
        (READ, {"prp2": 0x2004, "dwords": (0, 0, 31)}, Status.INVALID_PRP_OFFSET),
        (READ, {"prp1": 1 << 50}, Status.DATA_TRANSFER_ERROR),
        (READ, {"prp2": 1 << 50, "dwords": (0, 0, 31)}, Status.DATA_TRANSFER_ERROR),
        (WRITE, {"prp1": 0xFFFF_FFFF_FFFF_F000}, Status.DATA_TRANSFER_ERROR),
        (READ, {"flags": 0x40}, Status.INVALID_FIELD),
        (IoOpcode.FLUSH, {"nsid": 3}, Status.INVALID_FIELD),
        (IoOpcode.FLUSH, {"nsid": 33}, Status.INVALID_NAMESPACE),
        (IoOpcode.WRITE_ZEROES, {"dwords": (16384,)}, Status.LBA_OUT_OF_RANGE),
    ],
)
def test_a_wrong_command_gets_the_status_that_names_the_fault(
    driver: Driver, opcode: int, fields: Fields, status: Status
) -> None:
    queues = driver.create_queues()
    assert queues.do(opcode, **(USUAL | fields)).code == status
    assert transfer(queues, READ, 0x2000, 0, 1).status == 0


def test_an_image_holds_what_was_written(on_image: Driver, image: Path) -> None:
    queues = on_image.create_queues()
    page = on_image.allocate(PAGE)
    on_image.memory[page : page + PAGE] = b"bell" * 1024
    assert transfer(queues, WRITE, page, 8, 8).status == 0
    assert queues.do(IoOpcode.FLUSH, nsid=1).status == 0
    content = image.read_bytes()
    assert content[PAGE : 2 * PAGE] == b"bell" * 1024
    assert content[:PAGE] == bytes(range(256)) * 16


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been asked of the host's kernel that makes writes durable."""
    calls: list[str] = []
    pwritev, fdatasync = os.pwritev, os.fdatasync

    def write(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_DSYNC:
            calls.append("durable write")
        return pwritev(fd, buffers, offset, flags)

    def sync(fd: int) -> None:
        calls.append("fdatasync")
        fdatasync(fd)

    monkeypatch.setattr(os, "pwritev", write)
    monkeypatch.setattr(os, "fdatasync", sync)
    return calls


@pytest.mark.same_device("lists what the disk is asked for, and it is flushed when a device closes it")
def test_a_flush_is_an_fdatasync_and_a_write_alone_is_none(on_image: Driver, synced: list[str]) -> None:
    queues = on_image.create_queues()
    assert transfer(queues, WRITE, on_image.allocate(PAGE), 0, 8).status == 0
    assert synced == []
    assert queues.do(IoOpcode.FLUSH, nsid=1).status == 0
    assert synced == ["fdatasync"]


@pytest.mark.same_device("lists what the disk is asked for, and it is flushed when a device closes it")
@pytest.mark.parametrize("asked", ["by the command", "by the write cache's being off"])
def test_a_durable_write_is_on_the_medium_before_it_completes(on_image: Driver, synced: list[str], asked: str) -> None:
    queues = on_image.create_queues()
    unit_access = 1 << 30 if asked == "by the command" else 0
    if not unit_access:
        assert on_image.admin.do(AdminOpcode.SET_FEATURES, dwords=(0x06, 0)).status == 0
        synced.clear()
    page = on_image.allocate(PAGE)
    assert queues.do(WRITE, nsid=1, prp1=page, dwords=(0, 0, 7 | unit_access)).status == 0
    assert synced == ["durable write"]
    assert queues.do(IoOpcode.WRITE_ZEROES, nsid=1, dwords=(0, 0, 7 | unit_access)).status == 0
    assert synced == ["durable write", "fdatasync"]


@pytest.mark.same_device("lists what the disk is asked for, and it is flushed when a device closes it")
def test_turning_the_write_cache_off_flushes(on_image: Driver, synced: list[str]) -> None:
    assert transfer(on_image.create_queues(), WRITE, on_image.allocate(PAGE), 0, 8).status == 0
    assert on_image.admin.do(AdminOpcode.SET_FEATURES, dwords=(0x06, 1)).status == 0
    assert synced == []
    assert on_image.admin.do(AdminOpcode.SET_FEATURES, dwords=(0x06, 0)).status == 0
    assert synced == ["fdatasync"]


@pytest.mark.parametrize("first", ["a flush", "a durable write"])
def test_once_data_has_been_lost_no_flush_succeeds(
    on_image: Driver, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """The kernel tells of a failed write-back once."""
    queues = on_image.create_queues()
    page = on_image.allocate(PAGE)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as failing:
        failing.setattr(os, "fdatasync", fail)
        failing.setattr(os, "pwritev", fail)
        if first == "a flush":
            assert queues.do(IoOpcode.FLUSH, nsid=1).code == Status.WRITE_FAULT
        else:
            assert queues.do(WRITE, nsid=1, prp1=page, dwords=(0, 0, 1 << 30)).code == Status.WRITE_FAULT
    assert queues.do(IoOpcode.FLUSH, nsid=1).code == Status.WRITE_FAULT
    assert transfer(queues, WRITE, page, 0, 8).status == 0


@pytest.mark.unsaved("counts flushes, and a shutdown that is under way in a snapshot flushes again")
def test_a_shutdown_flushes(on_image: Driver, synced: list[str]) -> None:
    on_image.machine.write(CC, 0x0046_4001, 4)
    on_image.wait_for(0xC, 0x8)
    assert synced == ["fdatasync"]


@pytest.mark.parametrize(
    ("error", "status"), [(errno.EIO, Status.WRITE_FAULT), (errno.ENOSPC, Status.CAPACITY_EXCEEDED)]
)
def test_a_write_that_fails_on_the_host_says_why(
    on_image: Driver, monkeypatch: pytest.MonkeyPatch, error: int, status: Status
) -> None:
    def fail(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "pwritev", fail)
    queues = on_image.create_queues()
    assert transfer(queues, WRITE, on_image.allocate(PAGE), 0, 8).code == status
    assert struct.unpack_from("<Q", on_image.log(2), 160) == (1,)


@pytest.mark.parametrize("control", [0, 1 << 25])
def test_write_zeroes_zeroes(on_image: Driver, image: Path, control: int) -> None:
    queues = on_image.create_queues()
    assert queues.do(IoOpcode.WRITE_ZEROES, nsid=1, dwords=(16, 0, 7 | control)).status == 0
    content = image.read_bytes()
    assert content[8192:12288] == bytes(4096)
    assert content[:8192] == bytes(range(256)) * 32
    assert content[12288:] == bytes(range(256)) * (4096 - 48)


def test_deallocated_blocks_are_given_back_to_the_file(on_image: Driver, image: Path) -> None:
    queues = on_image.create_queues()
    page = on_image.allocate(PAGE)
    before = image.stat().st_blocks
    struct.pack_into("<IIQIIQ", on_image.memory, page, 0, 512, 0, 0, 512, 1024)
    done = queues.do(IoOpcode.DATASET_MANAGEMENT, nsid=1, prp1=page, dwords=(1, 4))
    assert done.status == 0
    assert image.stat().st_blocks <= before - 1024
    content = image.read_bytes()
    assert len(content) == 1 << 20
    assert content[512 * 512 : 1024 * 512] == bytes(range(256)) * 1024


def test_a_range_outside_the_namespace_deallocates_nothing(on_image: Driver, image: Path) -> None:
    queues = on_image.create_queues()
    page = on_image.allocate(PAGE)
    struct.pack_into("<IIQIIQ", on_image.memory, page, 0, 8, 0, 0, 8, 2045)
    done = queues.do(IoOpcode.DATASET_MANAGEMENT, nsid=1, prp1=page, dwords=(1, 4))
    assert done.code == Status.LBA_OUT_OF_RANGE
    assert image.read_bytes()[:4096] == bytes(range(256)) * 16


def test_a_read_only_namespace_refuses_every_change(image: Path) -> None:
    image.chmod(0o400)
    with Guest(Nvme, memory=MEMORY, image=str(image), readonly=True) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        assert driver.identify(0x00, nsid=1)[99] == 1
        queues = driver.create_queues()
        page = driver.allocate(PAGE)
        for opcode in (WRITE, IoOpcode.WRITE_ZEROES):
            assert queues.do(opcode, nsid=1, prp1=page).code == Status.WRITE_PROTECTED
        done = queues.do(IoOpcode.DATASET_MANAGEMENT, nsid=1, prp1=page, dwords=(0, 4))
        assert done.code == Status.WRITE_PROTECTED
        assert transfer(queues, READ, page, 0, 8).status == 0
        assert driver.memory[page : page + 256] == bytes(range(256))


def test_a_failing_disk_is_a_status_and_an_error_log_entry(on_image: Driver, image: Path) -> None:
    queues = on_image.create_queues()
    page = on_image.allocate(PAGE)
    os.truncate(image, 4096)
    done = transfer(queues, READ, page, 64, 1)
    assert done.code == Status.UNRECOVERED_READ_ERROR
    _, sqid, cid, status, _, lba = struct.unpack_from("<QHHHHQ", on_image.log(1, 64))
    assert (sqid, cid, status >> 1 & 0x7FF, lba) == (1, done.cid, Status.UNRECOVERED_READ_ERROR, 64)
    assert struct.unpack_from("<Q", on_image.log(2), 160) == (1,)


def test_namespaces_are_apart(driver: Driver) -> None:
    queues = driver.create_queues()
    page = driver.allocate(PAGE)
    driver.memory[page : page + 512] = b"x" * 512
    transfer(queues, WRITE, page, 0, 1, nsid=2)
    transfer(queues, READ, page, 0, 1, nsid=1)
    assert driver.memory[page : page + 512] == bytes(512)
