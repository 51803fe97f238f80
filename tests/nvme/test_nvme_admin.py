"""nvme's admin commands: identify, queues, features, logs, events."""

from __future__ import annotations

import struct
import uuid

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.identify import ControllerIdentity
from bellwire.bundled.nvme.status import Status
from bellwire.testing import Guest
from nvme.driver import MEMORY, PAGE, Done, Driver, Fields, Queues, TestMachine, transfer
from vfio_user import IrqIndex

READ, WRITE = IoOpcode.READ, IoOpcode.WRITE


def interrupts(guest: Guest[Nvme], vector: int) -> int:
    return guest.interrupts[IrqIndex.MSIX, vector]


def test_identify_controller_says_who_it_is(driver: Driver) -> None:
    page = driver.identify(0x01)
    assert page[4:24] == b"TEST0001".ljust(20)
    assert page[77] == 8
    assert struct.unpack_from("<I", page, 516) == (32,)
    assert page[768:].startswith(b"nqn.2014-08.org.nvmexpress:uuid:")


def test_identify_namespace_says_how_large_it_is(driver: Driver) -> None:
    page = driver.identify(0x00, nsid=1)
    assert struct.unpack_from("<QQQ", page) == (16384, 16384, 16384)
    assert page[130] == 9
    assert page[33] == 0b1001  # deallocated blocks read as zeroes, and Write Zeroes may deallocate


def test_the_list_of_active_namespaces_starts_after_the_one_given(driver: Driver) -> None:
    assert struct.unpack_from("<3I", driver.identify(0x02)) == (1, 2, 0)
    assert struct.unpack_from("<3I", driver.identify(0x02, nsid=1)) == (2, 0, 0)


def test_each_namespace_has_a_uuid_that_follows_from_the_serial_number(driver: Driver) -> None:
    first, second = driver.identify(0x03, nsid=1), driver.identify(0x03, nsid=2)
    assert first[:4] == second[:4] == bytes((3, 16, 0, 0))
    assert first[4:20] == uuid.uuid5(ControllerIdentity(1, 2, "TEST0001").uuid, "1").bytes
    assert second[4:20] == uuid.uuid5(ControllerIdentity(3, 4, "TEST0001").uuid, "2").bytes
    with Guest(Nvme, memory=MEMORY, size=1 << 20, serial="TEST0001") as other:
        twin = Driver(TestMachine(other))
        twin.enable()
        assert twin.identify(0x03, nsid=1) == first


@pytest.mark.parametrize(
    ("cns", "nsid", "status"),
    [
        (0x00, 0, Status.INVALID_NAMESPACE),
        (0x00, 33, Status.INVALID_NAMESPACE),
        (0x00, 0xFFFF_FFFE, Status.INVALID_NAMESPACE),
        (0x02, 0xFFFF_FFFE, Status.INVALID_NAMESPACE),
        (0x03, 9, Status.INVALID_FIELD),
        (0x03, 33, Status.INVALID_NAMESPACE),
        (0x10, 0xFFFF_FFFE, Status.INVALID_NAMESPACE),
        (0x11, 33, Status.INVALID_NAMESPACE),
        (0x12, 3, Status.INVALID_FIELD),
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


@pytest.mark.unsaved("counts interrupts, and a restore adds one for each queue that was not read")
def test_64_queue_pairs_work_each_with_its_vector(driver: Driver, guest: Guest[Nvme]) -> None:
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
        (0x04, 1 << 16 | 300, Status.INVALID_FIELD),  # a sensor that there is not
        (0x04, 2 << 20 | 300, Status.INVALID_FIELD),
        (0x05, 1, Status.FEATURE_NOT_CHANGEABLE),
    ],
)
def test_features_that_cannot_be_set_are_refused(driver: Driver, dword10: int, dword11: int, status: Status) -> None:
    assert driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(dword10, dword11)).code == status


def test_a_feature_of_the_controller_is_not_set_for_one_namespace(driver: Driver) -> None:
    done = driver.admin.do(AdminOpcode.SET_FEATURES, nsid=1, dwords=(0x06, 0))
    assert done.code == Status.FEATURE_NOT_NAMESPACE_SPECIFIC
    assert driver.admin.do(AdminOpcode.GET_FEATURES, dwords=(0x06,)).result == 1
    assert driver.admin.do(AdminOpcode.SET_FEATURES, nsid=0xFFFF_FFFF, dwords=(0x06, 0)).status == 0


def test_there_is_a_threshold_for_warmth_and_one_for_cold(driver: Driver) -> None:
    def thresholds() -> list[int]:
        return [driver.admin.do(AdminOpcode.GET_FEATURES, dwords=(4, kind << 20)).result for kind in (0, 1)]

    assert thresholds() == [343, 0]
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(4, 1 << 20 | 280))
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(4, 15 << 16 | 350))
    assert thresholds() == [350, 280]
    defaults = [driver.admin.do(AdminOpcode.GET_FEATURES, dwords=(4 | 1 << 8, kind << 20)).result for kind in (0, 1)]
    assert defaults == [343, 0]
    assert driver.admin.do(AdminOpcode.GET_FEATURES, dwords=(4, 15 << 16)).code == Status.INVALID_FIELD


@pytest.mark.parametrize(("dword11", "warning"), [(299, 0), (298, 2), (1 << 20 | 297, 0), (1 << 20 | 298, 2)])
def test_a_temperature_beyond_a_threshold_is_a_critical_warning(driver: Driver, dword11: int, warning: int) -> None:
    assert driver.log(2)[0] == 0
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(4, dword11))
    assert driver.log(2)[0] == warning


def test_a_temperature_beyond_a_threshold_is_an_event_for_a_host_that_wants_it(driver: Driver) -> None:
    request = driver.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST)
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(4, 280))
    assert request not in driver.admin.reaped
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(0x0B, 2))
    assert driver.admin.wait(request)[0].result == 0x0002_0101
    request = driver.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST)
    driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(4, 280))
    driver.machine.write(0x1000 + 8 * 9, 1, 4)
    assert driver.admin.wait(request)[0].result == 0x0001_0000  # of the temperature it knows, and has not looked yet


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


def test_what_has_happened_before_it_is_asked_for_is_told_at_once(driver: Driver) -> None:
    driver.machine.write(0x1000 + 8 * 9, 1, 4)
    assert driver.admin.do(AdminOpcode.ASYNC_EVENT_REQUEST).result == 0x0001_0000


def test_a_wrong_tail_in_the_shadow_is_an_event_and_gives_the_device_nothing_to_do(
    guest: Guest[Nvme], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = driver.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST)
    queues = driver.create_queues(1, 8)
    tails = driver.allocate(PAGE)
    driver.admin.do(AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=tails, prp2=driver.allocate(PAGE))
    rounds: list[object] = []
    monkeypatch.setattr(guest, "after", lambda *later: rounds.append(later))
    driver.memory[tails + 8] = queues.size
    driver.machine.write(0x1008, 0, 4)
    assert driver.admin.wait(request)[0].result == 0x0001_0100
    assert rounds == []


def test_a_fifth_event_request_is_too_many(driver: Driver) -> None:
    for _ in range(4):
        driver.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST)
    assert driver.admin.do(AdminOpcode.ASYNC_EVENT_REQUEST).code == Status.TOO_MANY_EVENT_REQUESTS


def test_an_event_request_can_be_aborted(driver: Driver) -> None:
    request = driver.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST)
    abort = driver.admin.put(AdminOpcode.ABORT, dwords=(request << 16,))
    driver.admin.ring()
    first, second = driver.admin.wait(request, abort)
    assert (first.code, first.result, second.result) == (Status.ABORTED_BY_REQUEST, 0, 0)
    assert driver.admin.do(AdminOpcode.ABORT, dwords=(99 << 16 | 1,)).result == 1


def test_commands_that_tell_nothing_in_their_completion_leave_it_zero(driver: Driver) -> None:
    page, ring = driver.allocate(PAGE), driver.allocate(PAGE)
    commands: list[tuple[AdminOpcode, Fields]] = [
        (AdminOpcode.GET_LOG_PAGE, {"nsid": 0xFFFF_FFFF, "prp1": page, "dwords": (127 << 16 | 2,)}),
        (AdminOpcode.IDENTIFY, {"prp1": page, "dwords": (1,)}),
        (AdminOpcode.CREATE_COMPLETION_QUEUE, {"prp1": page, "dwords": (15 << 16 | 1, 1 << 16 | 3)}),
        (AdminOpcode.CREATE_SUBMISSION_QUEUE, {"prp1": ring, "dwords": (15 << 16 | 1, 1 << 16 | 1)}),
        (AdminOpcode.DELETE_SUBMISSION_QUEUE, {"dwords": (1,)}),
        (AdminOpcode.DELETE_COMPLETION_QUEUE, {"dwords": (1,)}),
    ]
    for opcode, fields in commands:
        done = driver.admin.do(opcode, **fields)
        assert (opcode, done.status, done.result) == (opcode, 0, 0)


def test_a_vectors_coalescing_is_by_default_and_until_it_is_turned_off_on(driver: Driver) -> None:
    def get(select: int) -> int:
        done = driver.admin.do(AdminOpcode.GET_FEATURES, dwords=(select << 8 | 9, 2))
        assert done.status == 0
        return done.result

    assert [get(select) for select in (0, 1, 2)] == [2, 2, 2]
    assert driver.admin.do(AdminOpcode.SET_FEATURES, dwords=(9, 1 << 16 | 2)).status == 0
    assert [get(select) for select in (0, 1, 2)] == [1 << 16 | 2, 2, 2]
