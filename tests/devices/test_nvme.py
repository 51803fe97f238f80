"""nvme: registers, admin commands and I/O, driven as a host would."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwire import OptionError
from bellwire.bundled.nvme import Nvme
from bellwire.nvme.command import AdminOpcode, IoOpcode
from bellwire.nvme.status import Status
from bellwire.storage import StorageError
from bellwire.testing import Guest, conformance
from devices.nvme_driver import CC, MEMORY, PAGE, Done, Driver, Queues, TestMachine, prps, transfer
from vfio_user import IrqIndex

TestNvme = conformance(Nvme, size=1 << 20)
TestShadowNvme = conformance(Nvme, size=1 << 20, doorbells="shadow")

READ, WRITE = IoOpcode.READ, IoOpcode.WRITE


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest(Nvme, memory=MEMORY, size=8 << 20, serial="TEST0001", namespaces=2) as guest:
        yield guest


@pytest.fixture
def driver(guest: Guest) -> Driver:
    driver = Driver(TestMachine(guest))
    driver.enable()
    return driver


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 4096)
    return path


@pytest.fixture
def on_image(image: Path) -> Iterator[Driver]:
    """A driver of a controller whose namespace is ``image``, of 1 MiB."""
    with Guest(Nvme, memory=MEMORY, image=str(image)) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        yield driver


def interrupts(guest: Guest, vector: int) -> int:
    return guest.interrupts[IrqIndex.MSIX, vector]


# -- registers and life


def test_it_is_an_nvme_controller_of_version_1_4(guest: Guest) -> None:
    assert guest.config_read(0x09, 3) == 0x010802
    assert guest.read(Nvme.vs) == 0x0001_0400
    assert guest.read(Nvme.cap) & 0xFFFF == 1023


def test_enabling_makes_it_ready_and_disabling_ends_that(driver: Driver) -> None:
    assert driver.csts == 1
    driver.disable()
    assert driver.csts == 0


@pytest.mark.parametrize("configuration", [0x0046_0011, 0x0046_0081, 0x0046_0801])
def test_a_configuration_that_it_does_not_offer_is_fatal(guest: Guest, configuration: int) -> None:
    driver = Driver(TestMachine(guest))
    guest.write(Nvme.aqa, 0x001F_001F)
    guest.write(Nvme.cc, configuration)
    assert driver.csts == 2
    guest.write(Nvme.cc, 0)
    assert driver.csts == 0


def test_a_queue_of_one_entry_is_fatal(guest: Guest) -> None:
    guest.write(Nvme.cc, 0x0046_0001)
    assert guest.read(Nvme.csts) == 2


def test_an_admin_queue_outside_memory_is_fatal_once_it_is_rung(guest: Guest) -> None:
    driver = Driver(TestMachine(guest))
    driver.admin.sq = 1 << 40
    driver.enable()
    driver.machine.write(0x1000, 1, 4)
    assert driver.csts & 2


def test_shutdown_is_notified_when_all_is_on_the_disk(on_image: Driver) -> None:
    on_image.machine.write(CC, 0x0046_4001, 4)
    assert on_image.csts & 0xC == 0x4
    on_image.wait_for(0xC, 0x8)


def test_a_function_level_reset_brings_registers_and_queues_back(driver: Driver, guest: Guest) -> None:
    driver.create_queues(1)
    express = guest.device.core.config.at[0x10]
    guest.config_write(express + 8, 0x8000, 2)
    assert (guest.read(Nvme.cc), guest.read(Nvme.csts), guest.read(Nvme.asq)) == (0, 0, 0)
    guest.enable()
    again = Driver(TestMachine(guest))
    again.enable()
    again.create_queues(1)


def test_a_controller_reset_keeps_the_admin_queues_registers(driver: Driver, guest: Guest) -> None:
    driver.disable()
    assert guest.read(Nvme.asq) == driver.admin.sq


# -- identify


def test_identify_controller_says_who_it_is(driver: Driver) -> None:
    page = driver.identify(0x01)
    assert page[4:24] == b"TEST0001".ljust(20)
    assert page[77] == 8
    assert struct.unpack_from("<I", page, 516) == (2,)
    assert page[768:].startswith(b"nqn.2014-08.org.nvmexpress:uuid:")


def test_identify_namespace_says_how_large_it_is(driver: Driver) -> None:
    page = driver.identify(0x00, nsid=1)
    assert struct.unpack_from("<QQQ", page) == (16384, 16384, 16384)
    assert page[130] == 9


def test_the_list_of_active_namespaces_starts_after_the_one_given(driver: Driver) -> None:
    assert struct.unpack_from("<3I", driver.identify(0x02)) == (1, 2, 0)
    assert struct.unpack_from("<3I", driver.identify(0x02, nsid=1)) == (2, 0, 0)


def test_each_namespace_has_a_uuid_that_follows_from_the_serial_number(driver: Driver) -> None:
    first, second = driver.identify(0x03, nsid=1), driver.identify(0x03, nsid=2)
    assert first[:4] == second[:4] == bytes((3, 16, 0, 0))
    assert first[4:20] != second[4:20]
    with Guest(Nvme, memory=MEMORY, size=1 << 20, serial="TEST0001") as other:
        twin = Driver(TestMachine(other))
        twin.enable()
        assert twin.identify(0x03, nsid=1) == first


@pytest.mark.parametrize(
    ("cns", "nsid", "status"),
    [
        (0x00, 0, Status.INVALID_NAMESPACE),
        (0x00, 3, Status.INVALID_NAMESPACE),
        (0x00, 0xFFFF_FFFF, Status.INVALID_NAMESPACE),
        (0x02, 0xFFFF_FFFE, Status.INVALID_NAMESPACE),
        (0x03, 9, Status.INVALID_NAMESPACE),
        (0x77, 1, Status.INVALID_FIELD),
    ],
)
def test_identify_refuses_what_there_is_not(driver: Driver, cns: int, nsid: int, status: Status) -> None:
    page = driver.allocate(PAGE)
    assert driver.admin.do(AdminOpcode.IDENTIFY, nsid=nsid, prp1=page, dwords=(cns,)).code == status


def test_an_unknown_admin_command_is_an_invalid_opcode(driver: Driver) -> None:
    assert driver.admin.do(0x7F).code == Status.INVALID_OPCODE


@pytest.mark.parametrize("flags", [0x01, 0x40, 0x80])
def test_sgls_and_fused_commands_are_invalid_fields(driver: Driver, flags: int) -> None:
    page = driver.allocate(PAGE)
    done = driver.admin.do(AdminOpcode.IDENTIFY, prp1=page, dwords=(1,), flags=flags)
    assert done.code == Status.INVALID_FIELD


# -- queues


def create(driver: Driver, opcode: AdminOpcode, base: int, dword10: int, dword11: int) -> Status:
    return Status(driver.admin.do(opcode, prp1=base, dwords=(dword10, dword11)).code)


CREATE_CQ, CREATE_SQ = AdminOpcode.CREATE_COMPLETION_QUEUE, AdminOpcode.CREATE_SUBMISSION_QUEUE


@pytest.mark.parametrize(
    ("base", "dword10", "dword11", "status"),
    [
        (0x1000, 63 << 16 | 0, 3, Status.INVALID_QUEUE_ID),
        (0x1000, 63 << 16 | 65, 3, Status.INVALID_QUEUE_ID),
        (0x1000, 0 << 16 | 1, 3, Status.INVALID_QUEUE_SIZE),
        (0x1000, 1024 << 16 | 1, 3, Status.INVALID_QUEUE_SIZE),
        (0x1000, 63 << 16 | 1, 2, Status.INVALID_FIELD),
        (0x1004, 63 << 16 | 1, 3, Status.INVALID_PRP_OFFSET),
        (0x1000, 63 << 16 | 1, 65 << 16 | 3, Status.INVALID_INTERRUPT_VECTOR),
    ],
)
def test_a_completion_queue_that_cannot_be_is_refused(
    driver: Driver, base: int, dword10: int, dword11: int, status: Status
) -> None:
    assert create(driver, CREATE_CQ, base, dword10, dword11) == status


def test_a_submission_queue_needs_its_completion_queue(driver: Driver) -> None:
    assert create(driver, CREATE_SQ, 0x1000, 63 << 16 | 1, 1 << 16 | 1) == Status.INVALID_COMPLETION_QUEUE
    assert create(driver, CREATE_SQ, 0x1000, 63 << 16 | 1, 0 << 16 | 1) == Status.INVALID_QUEUE_ID
    assert create(driver, CREATE_SQ, 0x1000, 63 << 16 | 1, 99 << 16 | 1) == Status.INVALID_QUEUE_ID


def test_a_queue_exists_once(driver: Driver) -> None:
    driver.create_queues(1)
    assert create(driver, CREATE_CQ, 0x1000, 63 << 16 | 1, 3) == Status.INVALID_QUEUE_ID


def test_a_completion_queue_in_use_is_not_deleted(driver: Driver) -> None:
    driver.create_queues(1)
    assert driver.admin.do(AdminOpcode.DELETE_COMPLETION_QUEUE, dwords=(1,)).code == Status.INVALID_QUEUE_DELETION
    assert driver.admin.do(AdminOpcode.DELETE_SUBMISSION_QUEUE, dwords=(1,)).code == Status.SUCCESS
    assert driver.admin.do(AdminOpcode.DELETE_COMPLETION_QUEUE, dwords=(1,)).code == Status.SUCCESS
    assert driver.admin.do(AdminOpcode.DELETE_COMPLETION_QUEUE, dwords=(1,)).code == Status.INVALID_QUEUE_ID


def test_a_submission_queue_is_deleted_when_its_commands_have_ended(on_image: Driver) -> None:
    queues = on_image.create_queues(1)
    cid = queues.put(IoOpcode.FLUSH, nsid=1)
    queues.ring()
    deletion = on_image.admin.put(AdminOpcode.DELETE_SUBMISSION_QUEUE, dwords=(1,))
    on_image.admin.ring()
    assert on_image.admin.reap() == []
    assert on_image.admin.wait(deletion)[0].status == 0
    assert [done.cid for done in queues.reap()] == [cid]


def test_64_queue_pairs_work_each_with_its_vector(driver: Driver, guest: Guest) -> None:
    page = driver.allocate(PAGE)
    for qid in range(1, 65):
        queues = driver.create_queues(qid, 4)
        assert transfer(queues, READ, page, qid, 1).status == 0
        assert interrupts(guest, qid) == 1


def test_fewer_queues_may_be_offered() -> None:
    with Guest(Nvme, memory=MEMORY, size=1 << 20, queues=2) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        assert driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(7, 0x3F003F)).result == 0x0001_0001
        assert create(driver, CREATE_CQ, 0x1000, 63 << 16 | 3, 3) == Status.INVALID_QUEUE_ID


def test_a_full_completion_queue_holds_commands_back(driver: Driver) -> None:
    queues = driver.create_queues(1, 4)
    queues.auto_head = False
    page = driver.allocate(PAGE)
    for _ in range(2):
        for block in range(2):
            queues.put(READ, nsid=1, prp1=page, dwords=(block,))
        queues.ring()
    assert len(queues.reap()) == 3
    assert queues.reap() == []
    queues.take_head()
    assert len(queues.reap()) == 1


def test_a_completion_has_the_heads_and_ids_of_its_command(driver: Driver) -> None:
    queues = driver.create_queues(3)
    cid = queues.put(IoOpcode.FLUSH, nsid=1, cid=0xABCD)
    queues.ring()
    assert queues.wait(cid) == [Done(result=0, sq_head=1, sqid=3, cid=0xABCD, status=0)]


# -- features, logs, events


def test_features_are_kept_and_reset(driver: Driver) -> None:
    for number, value in ((0x08, 0x0503), (0x0B, 0x100), (0x06, 0)):
        assert driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(number, value)).status == 0
        assert driver.admin.do(AdminOpcode.GET_FEATURES, dwords=(number,)).result == value
        driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(number, value))
    driver.disable()
    driver.admin = Queues(driver, 0, 32)
    driver.enable()
    assert driver.admin.do(AdminOpcode.GET_FEATURES, dwords=(0x06,)).result == 1


@pytest.mark.parametrize(
    ("dword10", "dword11", "status"),
    [
        (0x7E, 0, Status.INVALID_FIELD),
        (0x8000_0006, 0, Status.FEATURE_NOT_SAVEABLE),
        (0x07, 0xFFFF, Status.INVALID_FIELD),
        (0x09, 99, Status.INVALID_FIELD),
        (0x02, 1, Status.INVALID_FIELD),
    ],
)
def test_features_that_cannot_be_set_are_refused(driver: Driver, dword10: int, dword11: int, status: Status) -> None:
    assert driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(dword10, dword11)).code == status


def test_the_number_of_queues_is_settled_before_there_are_any(driver: Driver) -> None:
    assert driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(7, 0x0003_0003)).result == 63 << 16 | 63
    driver.create_queues(1)
    assert driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(7, 0)).code == Status.COMMAND_SEQUENCE_ERROR


def test_get_features_tells_defaults_and_capabilities(driver: Driver) -> None:
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(0x06, 0))
    assert driver.admin.do(AdminOpcode.GET_FEATURES, dwords=(0x106,)).result == 1
    assert driver.admin.do(AdminOpcode.GET_FEATURES, dwords=(0x306,)).result == 4


def test_a_failed_command_is_in_the_error_log(driver: Driver) -> None:
    driver.admin.do(0x7F, nsid=5)
    count, sqid, _, status, parameter, _, nsid = struct.unpack_from("<QHHHHQI", driver.log(1, 64))
    assert (count, sqid, status >> 1 & 0x7FF, parameter, nsid) == (1, 0, Status.INVALID_OPCODE, 0, 5)


def test_smart_counts_what_was_done(driver: Driver) -> None:
    queues = driver.create_queues(1)
    page = driver.allocate(PAGE)
    for _ in range(3):
        transfer(queues, READ, page, 0, 8)
    transfer(queues, WRITE, page, 0, 8)
    log = driver.log(2)
    assert struct.unpack_from("<Q8xQ8xQ8xQ", log, 32) == (1, 1, 3, 1)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_log_pages_can_be_read_from_an_offset(driver: Driver, number: int) -> None:
    assert driver.log(number, 64, offset=16)[:48] == driver.log(number, 64)[16:]


@pytest.mark.parametrize(
    ("dwords", "status"),
    [((0x000F_0099,), Status.INVALID_LOG_PAGE), ((0x000F_0002, 0, 2), Status.INVALID_FIELD),
     ((0x000F_0002, 0, 4096), Status.INVALID_FIELD), ((0xFFFF_0002, 0xFFFF), Status.INVALID_FIELD)],
)  # fmt: skip
def test_log_pages_that_there_are_not_are_refused(driver: Driver, dwords: tuple[int, ...], status: Status) -> None:
    page = driver.allocate(PAGE)
    assert driver.admin.do(AdminOpcode.GET_LOG_PAGE, prp1=page, dwords=dwords).code == status


def test_a_wrong_doorbell_is_an_event_told_once_until_the_log_is_read(driver: Driver) -> None:
    requests = [driver.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST) for _ in range(2)]
    driver.admin.ring()
    assert driver.admin.reap() == []
    driver.machine.write(0x1000 + 8 * 9, 1, 4)
    driver.machine.write(0x1000 + 8 * 9, 1, 4)
    assert [(done.cid, done.result) for done in driver.admin.reap()] == [(requests[0], 0x0001_0000)]
    driver.log(1, 64)
    driver.machine.write(0x1000, 999, 4)
    assert [(done.cid, done.result) for done in driver.admin.reap()] == [(requests[1], 0x0001_0100)]


def test_a_fifth_event_request_is_too_many(driver: Driver) -> None:
    for _ in range(4):
        driver.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST)
    assert driver.admin.do(AdminOpcode.ASYNC_EVENT_REQUEST).code == Status.TOO_MANY_EVENT_REQUESTS


def test_an_event_request_can_be_aborted(driver: Driver) -> None:
    request = driver.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST)
    abort = driver.admin.put(AdminOpcode.ABORT, dwords=(request << 16,))
    driver.admin.ring()
    first, second = driver.admin.wait(request, abort)
    assert (first.code, second.result) == (Status.ABORTED_BY_REQUEST, 0)
    assert driver.admin.do(AdminOpcode.ABORT, dwords=(99 << 16 | 1,)).result == 1


# -- I/O


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
        (READ, {"nsid": 3}, Status.INVALID_NAMESPACE),
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
        (IoOpcode.FLUSH, {"nsid": 3}, Status.INVALID_NAMESPACE),
        (IoOpcode.WRITE_ZEROES, {"dwords": (16384,)}, Status.LBA_OUT_OF_RANGE),
    ],
)
def test_a_wrong_command_gets_the_status_that_names_the_fault(
    driver: Driver, opcode: int, fields: dict[str, int], status: Status
) -> None:
    queues = driver.create_queues()
    assert queues.do(opcode, **({"nsid": 1, "prp1": 0x2000} | fields)).code == status
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


# -- interrupts


def test_one_interrupt_stands_for_a_batch(driver: Driver, guest: Guest) -> None:
    queues = driver.create_queues(1, 64)
    page = driver.allocate(PAGE)
    for block in range(32):
        queues.put(READ, nsid=1, prp1=page, dwords=(block,))
    queues.ring()
    assert len(queues.reap()) == 32
    assert interrupts(guest, 1) == 1


def test_coalescing_waits_for_the_threshold_or_the_time(driver: Driver, guest: Guest) -> None:
    queues = driver.create_queues(1, 64)
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(8, 10 << 8 | 3))
    for _ in range(3):
        queues.put(IoOpcode.FLUSH, nsid=1)
        queues.ring()
    assert interrupts(guest, 1) == 0
    guest.advance(0.001)
    assert interrupts(guest, 1) == 1
    for _ in range(4):
        queues.put(IoOpcode.FLUSH, nsid=1)
        queues.ring()
    assert interrupts(guest, 1) == 2


def test_a_vector_may_be_left_out_of_coalescing(driver: Driver, guest: Guest) -> None:
    queues = driver.create_queues(1, 64)
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(8, 10 << 8 | 3))
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(9, 1 << 16 | 1))
    queues.do(IoOpcode.FLUSH, nsid=1)
    assert interrupts(guest, 1) == 1


def test_the_line_is_up_while_completions_wait(guest: Guest) -> None:
    guest.config_write(guest.device.core.config.at[0x11] + 2, 0, 2)
    driver = Driver(TestMachine(guest))
    driver.enable()
    driver.admin.auto_head = False
    cid = driver.admin.put(0x7F)
    driver.admin.ring()
    assert guest.line
    guest.write(Nvme.intms, 1)
    assert not guest.line
    guest.write(Nvme.intmc, 1)
    assert guest.line
    driver.admin.wait(cid)
    driver.admin.take_head()
    assert not guest.line


def test_msi_is_one_message_for_all_queues(guest: Guest) -> None:
    capabilities = guest.device.core.config.at
    guest.config_write(capabilities[0x11] + 2, 0, 2)
    guest.config_write(capabilities[0x05] + 2, 1, 2)
    driver = Driver(TestMachine(guest))
    driver.enable()
    driver.create_queues(1, vector=0).do(IoOpcode.FLUSH, nsid=1)
    assert guest.interrupts[IrqIndex.MSI, 0] == 3
    assert not guest.line


# -- options


@pytest.mark.parametrize(
    "options",
    [{"block_size": 1024}, {"queues": 0}, {"queues": 65}, {"serial": "x" * 21}, {"doorbells": "loud"}, {"threads": 0}],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        Guest(Nvme, **options)


def test_an_image_is_made_where_a_size_is_given(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    with pytest.raises(StorageError, match="give size="):
        Guest(Nvme, image=str(path))
    with Guest(Nvme, image=str(path), size=1 << 20):
        assert path.stat().st_size == 1 << 20
    with pytest.raises(StorageError, match="leave size out"):
        Guest(Nvme, image=str(path), size=2 << 20)


def test_two_devices_do_not_share_an_image(on_image: Driver, image: Path) -> None:
    with pytest.raises(StorageError, match="another device uses it"):
        Guest(Nvme, image=str(image))


def test_images_and_memory_may_be_mixed(image: Path) -> None:
    with Guest(Nvme, memory=MEMORY, image=str(image), namespaces=2) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        assert [struct.unpack_from("<Q", driver.identify(0, nsid))[0] for nsid in (1, 2)] == [2048, 131072]
