"""The limits of nvme's admin commands: the last value that is taken, and the first that is not."""

from __future__ import annotations

import pytest

from bellwire.bundled.nvme.command import AdminOpcode
from bellwire.bundled.nvme.status import Status
from nvme.driver import PAGE, Driver

CREATE_CQ, CREATE_SQ = AdminOpcode.CREATE_COMPLETION_QUEUE, AdminOpcode.CREATE_SUBMISSION_QUEUE
DELETE_CQ, DELETE_SQ = AdminOpcode.DELETE_COMPLETION_QUEUE, AdminOpcode.DELETE_SUBMISSION_QUEUE
SET, GET = AdminOpcode.SET_FEATURES, AdminOpcode.GET_FEATURES
BELLS = AdminOpcode.DOORBELL_BUFFER_CONFIG
OK = Status.SUCCESS


@pytest.mark.parametrize("create", [CREATE_CQ, CREATE_SQ])
@pytest.mark.parametrize(
    ("qid", "entries", "status"),
    [
        (0, 2, Status.INVALID_QUEUE_ID),
        (2, 2, OK),
        (64, 1024, OK),
        (65, 2, Status.INVALID_QUEUE_ID),
        (2, 1, Status.INVALID_QUEUE_SIZE),
        (2, 1025, Status.INVALID_QUEUE_SIZE),
    ],
)
def test_a_queue_has_a_number_from_1_to_64_and_2_to_1024_entries(
    driver: Driver, create: AdminOpcode, qid: int, entries: int, status: Status
) -> None:
    assert driver.admin.do(CREATE_CQ, prp1=0x2000, dwords=(1 << 16 | 1, 3)).status == 0
    done = driver.admin.do(create, prp1=0x1000, dwords=((entries - 1) << 16 | qid, 1 << 16 | 1))
    assert done.code == status


@pytest.mark.parametrize("delete", [DELETE_CQ, DELETE_SQ])
@pytest.mark.parametrize("qid", [0, 1, 64, 65, 0xFFFF])
def test_a_queue_that_there_is_not_is_not_deleted(driver: Driver, delete: AdminOpcode, qid: int) -> None:
    assert driver.admin.do(delete, dwords=(qid,)).code == Status.INVALID_QUEUE_ID


@pytest.mark.parametrize(
    ("prp1", "prp2", "status"),
    [
        (0, 0x2000, Status.INVALID_FIELD),
        (0x1000, 0, Status.INVALID_FIELD),
        (0x1004, 0x2000, Status.INVALID_FIELD),
        (0x1000, 0x2800, Status.INVALID_FIELD),
        (0x1000, 0x2000, OK),
    ],
)
def test_shadow_doorbells_are_two_whole_pages(driver: Driver, prp1: int, prp2: int, status: Status) -> None:
    done = driver.admin.do(BELLS, prp1=prp1, prp2=prp2)
    assert (done.code, done.result) == (status, 0)


def test_a_new_queue_begins_with_empty_shadows(driver: Driver) -> None:
    events = driver.allocate(PAGE)
    driver.admin.do(BELLS, prp1=driver.allocate(PAGE), prp2=events)
    driver.memory[events + 16 : events + 24] = b"\xff" * 8
    driver.create_queues(2)
    assert driver.memory[events + 16 : events + 24] == bytes(8)
    assert driver.memory[events + 24 : events + 32] == bytes(8)


@pytest.mark.parametrize(
    ("opcode", "dwords", "status", "result"),
    [
        (GET, (0x09, 64), OK, 64),
        (GET, (0x09, 65), Status.INVALID_FIELD, 0),
        (SET, (0x09, 64 | 1 << 16), OK, 0),
        (SET, (0x09, 65), Status.INVALID_FIELD, 0),
        (SET, (0x07, 0xFFFE_FFFE), OK, 63 << 16 | 63),
        (SET, (0x07, 0xFFFF_0000), Status.INVALID_FIELD, 0),
        (SET, (0x07, 0x0000_FFFF), Status.INVALID_FIELD, 0),
        (GET, (0x01,), OK, 7),
        (GET, (0x02,), OK, 0),
        (GET, (0x04,), OK, 343),
        (GET, (0x06,), OK, 1),
        (GET, (0x06 | 4 << 8,), Status.INVALID_FIELD, 0),
        (SET, (0x02, 0x20), OK, 0),  # the hint of a workload
        (SET, (0x02, 0x10), Status.INVALID_FIELD, 0),
        (SET, (0x05, 0), OK, 0),
        *((GET, (identifier | 3 << 8,), OK, 4) for identifier in (1, 4, 6, 7, 8, 9, 10, 11, 14)),
        (GET, (0x02 | 3 << 8,), OK, 0),
        (GET, (0x05 | 3 << 8,), OK, 2),
    ],
)
def test_a_feature_answers(
    driver: Driver, opcode: AdminOpcode, dwords: tuple[int, ...], status: Status, result: int
) -> None:
    done = driver.admin.do(opcode, prp1=0x1000, dwords=dwords)
    assert (done.code, done.result) == (status, result)


@pytest.mark.parametrize(("identifier", "settable"), [(1, 0xFFFF_FF07), (6, 1), (8, 0xFFFF), (10, 1), (11, 0x5FF)])
def test_only_bits_that_mean_something_are_kept(driver: Driver, identifier: int, settable: int) -> None:
    assert driver.admin.do(SET, dwords=(identifier, 0xFFFF_FFFF)).status == 0
    assert driver.admin.do(GET, dwords=(identifier,)).result == settable


@pytest.mark.parametrize(("nsid", "code"), [(32, OK), (33, Status.INVALID_NAMESPACE), (0xFFFF_FFFF, OK)])
def test_a_feature_is_asked_for_a_namespace_that_there_can_be(driver: Driver, nsid: int, code: Status) -> None:
    assert driver.admin.do(GET, nsid=nsid, dwords=(0x05,)).code == code
