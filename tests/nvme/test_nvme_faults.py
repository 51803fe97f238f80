"""What nvme can do wrong on demand, as its driver sees it."""

from __future__ import annotations

from typing import Any

import pytest

from bellwire import OptionError
from bellwire.bundled.nvme import Nvme, faults
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.registers import FATAL
from bellwire.bundled.nvme.status import DO_NOT_RETRY, Status
from bellwire.faults import Fault
from bellwire.testing import Guest
from nvme.driver import Done, Driver, Queues

EVENTS, SET_FEATURES = 0x0B, AdminOpcode.SET_FEATURES


def put(guest: Guest[Nvme], fault_kind: type[Fault], /, **arguments: Any) -> Fault:
    fault = fault_kind(**{"for" if name == "lasts" else name: value for name, value in arguments.items()})
    guest.filters.add(fault)
    return fault


def read(queues: Queues, first: int = 0, blocks: int = 1) -> Done:
    return queues.do(IoOpcode.READ, nsid=1, prp1=0x2000, dwords=(first, 0, blocks - 1))


def test_chosen_blocks_fail_with_a_chosen_status(guest: Guest[Nvme], driver: Driver) -> None:
    queues = driver.create_queues()
    put(guest, faults.FailedCommand, status="unrecovered-read-error", command="read", first=8, last=15)
    codes = [read(queues, first, blocks).code for first, blocks in ((0, 8), (0, 9), (15, 1), (16, 8))]
    assert codes == [0, Status.UNRECOVERED_READ_ERROR, Status.UNRECOVERED_READ_ERROR, 0]


def test_only_the_command_that_is_named_fails(guest: Guest[Nvme], driver: Driver) -> None:
    queues = driver.create_queues()
    put(guest, faults.FailedCommand, command="flush", status="aborted-by-request")
    assert queues.do(IoOpcode.FLUSH, nsid=1).code == Status.ABORTED_BY_REQUEST
    assert read(queues).status == 0
    assert queues.do(IoOpcode.FLUSH, nsid=1).code == Status.ABORTED_BY_REQUEST


def test_only_the_namespace_that_is_named_fails(guest: Guest[Nvme], driver: Driver) -> None:
    queues = driver.create_queues()
    put(guest, faults.FailedCommand, nsid=2)
    assert read(queues).status == 0
    assert queues.do(IoOpcode.READ, nsid=2, prp1=0x2000).code == Status.INTERNAL_ERROR


def test_an_admin_command_fails_by_its_name(guest: Guest[Nvme], driver: Driver) -> None:
    put(guest, faults.FailedCommand, command="identify", status="internal-error", times=1)
    assert driver.admin.do(AdminOpcode.IDENTIFY, prp1=0x4000, dwords=(1,)).code == Status.INTERNAL_ERROR
    assert driver.admin.do(AdminOpcode.IDENTIFY, prp1=0x4000, dwords=(1,)).status == 0


@pytest.mark.parametrize(("retry", "bit"), [("default", 0), ("yes", 0), ("no", DO_NOT_RETRY)])
def test_retry_is_a_choice(guest: Guest[Nvme], driver: Driver, retry: str, bit: int) -> None:
    queues = driver.create_queues()
    put(guest, faults.FailedCommand, retry=retry)
    assert read(queues).status & DO_NOT_RETRY == bit


def test_slow_blocks_complete_behind_others(guest: Guest[Nvme], driver: Driver) -> None:
    queues = driver.create_queues()
    put(guest, faults.SlowCommand, by="50ms", last=7)
    slow = queues.put(IoOpcode.READ, nsid=1, prp1=0x2000, dwords=(0, 0, 0))
    fast = queues.put(IoOpcode.READ, nsid=1, prp1=0x3000, dwords=(8, 0, 0))
    queues.ring()
    assert [done.cid for done in queues.reap()] == [fast]
    guest.advance(0.05)
    assert [done.cid for done in queues.reap()] == [slow]


def test_a_slow_command_completes_when_its_fault_is_taken_out(guest: Guest[Nvme], driver: Driver) -> None:
    queues = driver.create_queues()
    first = put(guest, faults.SlowCommand, by="60min", last=7)
    put(guest, faults.SlowCommand, by="60min")
    freed = queues.put(IoOpcode.READ, nsid=1, prp1=0x2000, dwords=(0, 0, 0))
    queues.put(IoOpcode.READ, nsid=1, prp1=0x3000, dwords=(8, 0, 0))
    queues.ring()
    guest.filters.remove(first)
    guest.advance(0)
    assert [done.cid for done in queues.reap()] == [freed]


def test_every_third_command_is_lost(guest: Guest[Nvme], driver: Driver) -> None:
    queues = driver.create_queues()
    fault = put(guest, faults.LostCommand, every=3)
    cids = [queues.put(IoOpcode.READ, nsid=1, prp1=0x2000) for _ in range(6)]
    queues.ring()
    assert [done.cid for done in queues.reap()] == [cids[0], cids[1], cids[3], cids[4]]
    assert fault.report() == {"struck": 2, "seen": 6}


def test_a_command_completes_twice(guest: Guest[Nvme], driver: Driver) -> None:
    queues = driver.create_queues()
    put(guest, faults.DoubleCompletion, at=1)
    cid = queues.put(IoOpcode.READ, nsid=1, prp1=0x2000)
    queues.ring()
    assert [done.cid for done in queues.reap()] == [cid, cid]


def test_a_controller_fails_and_a_reset_helps(guest: Guest[Nvme], driver: Driver) -> None:
    queues = driver.create_queues()
    put(guest, faults.FatalStatus, times=1)
    queues.put(IoOpcode.READ, nsid=1, prp1=0x2000)
    queues.ring()
    assert driver.csts & FATAL
    driver.disable()
    again = Driver(driver.machine)
    again.enable()
    assert not again.csts & FATAL
    assert read(again.create_queues()).status == 0


def test_queues_fill_for_a_time(guest: Guest[Nvme], driver: Driver) -> None:
    queues = driver.create_queues()
    put(guest, faults.FullQueue, lasts="1s")
    cid = queues.put(IoOpcode.READ, nsid=1, prp1=0x2000)
    queues.ring()
    assert queues.reap() == []
    guest.advance(1)
    assert [done.cid for done in queues.reap()] == [cid]


def listen(driver: Driver) -> int:
    """Ask for all events: the command id of the request."""
    assert driver.admin.do(SET_FEATURES, dwords=(EVENTS, 0x1FF)).status == 0
    cid = driver.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST)
    driver.admin.ring()
    return cid


def active(driver: Driver) -> list[int]:
    page = driver.identify(2)
    return [nsid for at in range(0, 64, 4) if (nsid := int.from_bytes(page[at : at + 4], "little"))]


def test_a_namespace_is_gone_and_comes_back(guest: Guest[Nvme], driver: Driver) -> None:
    queues = driver.create_queues()
    request = listen(driver)
    put(guest, faults.NamespaceGone, nsid=1, lasts="1s")
    assert driver.admin.wait(request)[0].result == 0x04_00_02
    assert driver.log(4, 8)[:4] == b"\x01\0\0\0"
    assert active(driver) == [2]
    assert read(queues).code == Status.INVALID_FIELD
    request = listen(driver)
    guest.advance(1)
    assert driver.admin.wait(request)[0].result == 0x04_00_02
    assert active(driver) == [1, 2]
    assert read(queues).status == 0


def test_a_namespace_that_a_fault_has_taken_is_kept_in_the_store(guest: Guest[Nvme]) -> None:
    put(guest, faults.NamespaceGone, nsid=1)
    space = guest.device.controller.namespaces.allocated[0]
    assert (space.attached, space.assigned) == (False, True)


def test_a_namespace_that_is_not_there_cannot_go(guest: Guest[Nvme]) -> None:
    with pytest.raises(OptionError, match="nsid=9: the device has no such namespace"):
        put(guest, faults.NamespaceGone, nsid=9)


def test_a_disk_is_hot_for_a_time(guest: Guest[Nvme], driver: Driver) -> None:
    request = listen(driver)
    put(guest, faults.Temperature, celsius=90, lasts="1s")
    assert driver.admin.wait(request)[0].result == 0x02_01_01
    page = driver.log(2)
    assert (page[0], int.from_bytes(page[1:3], "little")) == (0x02, 363)
    guest.advance(1)
    page = driver.log(2)
    assert (page[0], int.from_bytes(page[1:3], "little")) == (0, 298)


@pytest.mark.parametrize(("kind", "bit", "event"), [("spare", 1, 0x02_02_01), ("read-only", 8, 0x02_00_01)])
def test_a_critical_warning_is_told(guest: Guest[Nvme], driver: Driver, kind: str, bit: int, event: int) -> None:
    request = listen(driver)
    put(guest, faults.CriticalWarning, kind=kind, lasts="1s")
    assert driver.admin.wait(request)[0].result == event
    assert driver.log(2)[0] == bit
    guest.advance(1)
    assert driver.log(2)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"first": 10, "last": 5}, "first=10,last=5: the last block is before the first"),
        ({"first": 10, "command": "identify"}, "first=10,last=-1: identify has no blocks: read, write, compare"),
        ({"nsid": 99}, "nsid=99: the device has 1 to 32"),
    ],
)
def test_what_no_command_has_is_refused(guest: Guest[Nvme], arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(OptionError, match=why):
        put(guest, faults.FailedCommand, **arguments)


def test_an_error_says_which_commands_there_are() -> None:
    with pytest.raises(OptionError, match="option command=raed: expected any, flush, write, read"):
        faults.FailedCommand(command="raed")
