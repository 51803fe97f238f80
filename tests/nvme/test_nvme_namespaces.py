"""nvme's namespaces as the host manages them: identifiers, Namespace Management and Attachment."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.status import Status
from bellwire.storage import MemoryDisk
from bellwire.testing import Guest
from nvme.driver import MEMORY, PAGE, Done, Driver, TestMachine, transfer

MIB = 1 << 20
EVERY = 0xFFFF_FFFF


@pytest.fixture
def roomy() -> Iterator[Driver]:
    """One namespace of 1 MiB, and 4 MiB for others."""
    with Guest(Nvme, memory=MEMORY, size=MIB, serial="TEST0001", capacity=4 * MIB) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        yield driver


def create(driver: Driver, blocks: int, *, form: int = 0, capacity: int | None = None, nsid: int = 0) -> Done:
    page = driver.allocate(PAGE)
    struct.pack_into("<QQ", driver.memory, page, blocks, blocks if capacity is None else capacity)
    driver.memory[page + 26] = form
    return driver.admin.do(AdminOpcode.NAMESPACE_MANAGEMENT, nsid=nsid, prp1=page, dwords=(0,))


def delete(driver: Driver, nsid: int) -> Done:
    return driver.admin.do(AdminOpcode.NAMESPACE_MANAGEMENT, nsid=nsid, dwords=(1,))


def attach(driver: Driver, nsid: int, *, detach: bool = False, controllers: tuple[int, ...] = (1, 1)) -> Done:
    page = driver.allocate(PAGE)
    struct.pack_into(f"<{len(controllers)}H", driver.memory, page, *controllers)
    return driver.admin.do(AdminOpcode.NAMESPACE_ATTACHMENT, nsid=nsid, prp1=page, dwords=(int(detach),))


def listed(driver: Driver, cns: int, nsid: int = 0) -> list[int]:
    return [number for number in struct.unpack("<1024I", driver.identify(cns, nsid)) if number]


def test_a_namespace_has_three_identifiers_that_agree_with_its_structure(driver: Driver) -> None:
    structure, descriptors = driver.identify(0x00, 1), driver.identify(0x03, 1)
    found = {}
    at = 0
    while descriptors[at]:
        kind, length = descriptors[at : at + 2]
        found[kind] = descriptors[at + 4 : at + 4 + length]
        at += 4 + length
    assert found[1] == structure[120:128]
    assert found[2] == structure[104:120]
    assert sorted(map(len, found.values())) == [8, 16, 16]
    assert structure[104:128] != driver.identify(0x00, 2)[104:128]


def test_what_all_namespaces_have_in_common_are_two_formats_without_metadata(driver: Driver) -> None:
    page = driver.identify(0x00, EVERY)
    assert page[25] == 1
    assert struct.unpack_from("<3I", page, 128) == (9 << 16, 12 << 16, 0)


def test_an_id_that_is_valid_and_not_active_has_a_structure_of_zeroes(driver: Driver) -> None:
    assert driver.identify(0x00, 32) == driver.identify(0x11, 32) == bytes(4096)


def test_a_namespace_is_made_attached_used_detached_and_deleted(roomy: Driver) -> None:
    done = create(roomy, 256, form=1)
    assert (done.status, done.result) == (0, 2)
    assert listed(roomy, 0x02) == [1]
    assert listed(roomy, 0x10) == [1, 2]
    assert struct.unpack_from("<Q", roomy.identify(0x11, 2)) == (256,)
    assert roomy.identify(0x12, 2) == bytes(4096)
    queues = roomy.create_queues()
    page = roomy.allocate(PAGE)
    assert transfer(queues, IoOpcode.READ, page, 0, 1, nsid=2, shift=12).code == Status.INVALID_FIELD
    assert attach(roomy, 2).status == 0
    assert listed(roomy, 0x02) == [1, 2]
    assert roomy.identify(0x12, 2)[:4] == bytes((1, 0, 1, 0))
    roomy.memory[page : page + PAGE] = b"bell" * 1024
    assert transfer(queues, IoOpcode.WRITE, page, 255, 1, nsid=2, shift=12).status == 0
    assert transfer(queues, IoOpcode.READ, page, 256, 1, nsid=2, shift=12).code == Status.LBA_OUT_OF_RANGE
    assert attach(roomy, 2, detach=True).status == 0
    assert listed(roomy, 0x02) == [1]
    assert delete(roomy, 2).status == 0
    assert listed(roomy, 0x10) == [1]


def test_the_disk_of_a_namespace_that_is_deleted_is_closed(roomy: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    monkeypatch.setattr(MemoryDisk, "close", lambda disk: closed.append(disk.size))
    assert create(roomy, 256).result == 2
    assert closed == []
    assert delete(roomy, 2).status == 0
    assert closed == [256 * 512]


def test_capacity_is_taken_and_given_back(roomy: Driver) -> None:
    def capacities() -> tuple[int, int]:
        page = roomy.identify(0x01)
        return int.from_bytes(page[280:296], "little"), int.from_bytes(page[296:312], "little")

    assert capacities() == (5 * MIB, 4 * MIB)
    assert create(roomy, 8 * 1024).result == 2
    assert capacities() == (5 * MIB, 0)
    assert create(roomy, 1).code == Status.NAMESPACE_INSUFFICIENT_CAPACITY
    assert delete(roomy, 2).status == 0
    assert capacities() == (5 * MIB, 4 * MIB)
    assert delete(roomy, 1).status == 0
    assert capacities() == (5 * MIB, 5 * MIB)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"blocks": 0}, Status.INVALID_FIELD),
        ({"blocks": 8, "capacity": 4}, Status.THIN_PROVISIONING_NOT_SUPPORTED),
        ({"blocks": 8, "form": 2}, Status.INVALID_FORMAT),
        ({"blocks": 8, "form": 0x10}, Status.INVALID_FORMAT),
        ({"blocks": 8, "nsid": 1}, Status.INVALID_FIELD),
        ({"blocks": 8193}, Status.NAMESPACE_INSUFFICIENT_CAPACITY),
        ({"blocks": (1 << 64) - 1}, Status.NAMESPACE_INSUFFICIENT_CAPACITY),
    ],
)
def test_a_namespace_that_cannot_be_is_not_made(roomy: Driver, fields: dict[str, int], status: Status) -> None:
    assert create(roomy, **fields).code == status
    assert listed(roomy, 0x10) == [1]


def test_ids_run_out(roomy: Driver) -> None:
    for nsid in range(2, 33):
        assert create(roomy, 8).result == nsid
    assert create(roomy, 8).code == Status.NAMESPACE_IDENTIFIER_UNAVAILABLE


def test_an_id_that_is_used_again_gets_other_identifiers(roomy: Driver) -> None:
    names = []
    for _ in range(2):
        create(roomy, 8)
        attach(roomy, 2)
        names.append(roomy.identify(0x03, 2)[:64])
        delete(roomy, 2)
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("nsid", "detach", "controllers", "status"),
    [
        (1, False, (1, 1), Status.NAMESPACE_ALREADY_ATTACHED),
        (2, True, (1, 1), Status.NAMESPACE_NOT_ATTACHED),
        (2, False, (0,), Status.CONTROLLER_LIST_INVALID),
        (2, False, (1, 7), Status.CONTROLLER_LIST_INVALID),
        (2, False, (2, 1, 2), Status.CONTROLLER_LIST_INVALID),
        (2, False, (0xFFFF, 1), Status.CONTROLLER_LIST_INVALID),
        (3, False, (1, 1), Status.INVALID_FIELD),
        (99, False, (1, 1), Status.INVALID_NAMESPACE),
        (EVERY, False, (1, 1), Status.INVALID_NAMESPACE),
    ],
)
def test_an_attachment_that_cannot_be_is_refused(
    roomy: Driver, nsid: int, detach: bool, controllers: tuple[int, ...], status: Status
) -> None:
    create(roomy, 8)
    assert attach(roomy, nsid, detach=detach, controllers=controllers).code == status


@pytest.mark.parametrize("opcode", [AdminOpcode.NAMESPACE_MANAGEMENT, AdminOpcode.NAMESPACE_ATTACHMENT])
def test_an_operation_that_there_is_not_is_an_invalid_field(roomy: Driver, opcode: AdminOpcode) -> None:
    assert roomy.admin.do(opcode, nsid=1, prp1=0x1000, dwords=(7,)).code == Status.INVALID_FIELD


@pytest.mark.parametrize("opcode", [AdminOpcode.NAMESPACE_MANAGEMENT, AdminOpcode.NAMESPACE_ATTACHMENT])
def test_data_outside_memory_changes_nothing(roomy: Driver, opcode: AdminOpcode) -> None:
    assert roomy.admin.do(opcode, prp1=1 << 40).code == Status.DATA_TRANSFER_ERROR
    assert listed(roomy, 0x10) == [1]


@pytest.mark.parametrize("nsid", [1, EVERY])
def test_a_deleted_namespace_leaves_zeroes_in_its_image(on_image: Driver, image: Path, nsid: int) -> None:
    assert image.stat().st_blocks
    assert delete(on_image, nsid).status == 0
    assert image.read_bytes() == bytes(1 << 20)
    assert image.stat().st_blocks == 0
    assert listed(on_image, 0x10) == []
    assert delete(on_image, 1).code == Status.INVALID_FIELD


def test_a_read_only_device_keeps_its_namespaces(image: Path) -> None:
    image.chmod(0o400)
    with Guest(Nvme, memory=MEMORY, image=str(image), readonly=True, capacity=MIB) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        assert delete(driver, 1).code == Status.WRITE_PROTECTED
        assert create(driver, 8).code == Status.WRITE_PROTECTED
