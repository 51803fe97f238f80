"""nvme's interrupts (§7.5): which completions interrupt, by what, and when those come that are held back."""

from __future__ import annotations

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.testing import Guest
from nvme.driver import MEMORY, Driver, Queues, TestMachine
from vfio_user import IrqIndex

counts = pytest.mark.unsaved("counts interrupts, and a restore adds one for each queue that was not read")

SET = AdminOpcode.SET_FEATURES
UNIT = 100e-6
CREATE_CQ, CREATE_SQ = AdminOpcode.CREATE_COMPLETION_QUEUE, AdminOpcode.CREATE_SUBMISSION_QUEUE


def count(guest: Guest[Nvme], vector: int) -> int:
    return guest.interrupts[IrqIndex.MSIX, vector]


def complete(queues: Queues, number: int) -> None:
    for _ in range(number):
        queues.put(IoOpcode.FLUSH, nsid=1)
        queues.ring()
        queues.reap()


@pytest.fixture
def coalescing(driver: Driver) -> Queues:
    """A queue whose interrupts wait for four completions (the field counts from 0), or for a millisecond."""
    driver.admin.do(SET, dwords=(8, 10 << 8 | 3))
    return driver.create_queues()


@counts
def test_the_fourth_completion_releases_the_interrupt_at_once(guest: Guest[Nvme], coalescing: Queues) -> None:
    complete(coalescing, 3)
    assert count(guest, 1) == 0
    complete(coalescing, 1)
    assert count(guest, 1) == 1
    guest.advance(1)
    assert count(guest, 1) == 1, "its timer has been cancelled"
    complete(coalescing, 3)
    assert count(guest, 1) == 1, "it counts from 0 again"
    complete(coalescing, 1)
    assert count(guest, 1) == 2


@counts
def test_an_interrupt_comes_a_millisecond_after_the_first_completion(guest: Guest[Nvme], coalescing: Queues) -> None:
    complete(coalescing, 1)
    guest.advance(9 * UNIT)
    complete(coalescing, 1)
    guest.advance(0.9 * UNIT)
    assert count(guest, 1) == 0
    guest.advance(0.2 * UNIT)
    assert count(guest, 1) == 1
    complete(coalescing, 3)
    guest.advance(9 * UNIT)
    assert count(guest, 1) == 1
    guest.advance(1.1 * UNIT)
    assert count(guest, 1) == 2


@counts
def test_a_threshold_of_one_holds_nothing_back(guest: Guest[Nvme], driver: Driver) -> None:
    driver.admin.do(SET, dwords=(8, 10 << 8))
    complete(driver.create_queues(), 2)
    assert count(guest, 1) == 2


@counts
def test_without_a_time_nothing_is_held_back(guest: Guest[Nvme], driver: Driver) -> None:
    driver.admin.do(SET, dwords=(8, 3))
    complete(driver.create_queues(), 2)
    assert count(guest, 1) == 2


@counts
def test_the_shortest_time_is_one_unit(guest: Guest[Nvme], driver: Driver) -> None:
    """§5.21.1.8: 100 microseconds."""
    driver.admin.do(SET, dwords=(8, 1 << 8 | 3))
    complete(driver.create_queues(), 1)
    guest.advance(0.9 * UNIT)
    assert count(guest, 1) == 0
    guest.advance(0.2 * UNIT)
    assert count(guest, 1) == 1


@counts
def test_admin_completions_are_never_held_back(guest: Guest[Nvme], driver: Driver) -> None:
    before = count(guest, 0)
    driver.admin.do(SET, dwords=(8, 10 << 8 | 3))
    driver.admin.do(0x7F)
    assert count(guest, 0) == before + 2


@counts
def test_vectors_are_held_back_one_by_one(guest: Guest[Nvme], driver: Driver, coalescing: Queues) -> None:
    other = driver.create_queues(2)
    complete(coalescing, 3)
    complete(other, 4)
    assert (count(guest, 1), count(guest, 2)) == (0, 1)
    guest.advance(1)
    assert (count(guest, 1), count(guest, 2)) == (1, 1)


@counts
@pytest.mark.parametrize("how", ["device", "controller"])
def test_a_reset_forgets_what_is_held_back(guest: Guest[Nvme], driver: Driver, coalescing: Queues, how: str) -> None:
    complete(coalescing, 3)
    if how == "device":
        guest.reset()
        guest.enable()
    else:
        driver.disable()
    guest.advance(1)
    again = Driver(driver.machine)
    again.enable()
    again.admin.do(SET, dwords=(8, 10 << 8 | 3))
    complete(again.create_queues(), 3)
    assert count(guest, 1) == 0
    guest.advance(1)
    assert count(guest, 1) == 1


@counts
def test_a_restore_forgets_what_was_held_back_and_interrupts_for_it(
    guest: Guest[Nvme], driver: Driver, coalescing: Queues
) -> None:
    coalescing.auto_head = False
    complete(coalescing, 3)
    guest.restore(guest.snapshot())
    assert count(guest, 1) == 1
    complete(coalescing, 1)
    assert count(guest, 1) == 1, "it counts from 0 again"
    guest.advance(9 * UNIT)
    assert count(guest, 1) == 1
    guest.advance(1.1 * UNIT)
    assert count(guest, 1) == 2


def test_a_queue_without_interrupts_has_none(guest: Guest[Nvme], driver: Driver) -> None:
    queues = Queues(driver, 1, 8)
    assert driver.admin.do(CREATE_CQ, prp1=queues.cq, dwords=(7 << 16 | 1, 1 << 16 | 1)).status == 0
    assert driver.admin.do(CREATE_SQ, prp1=queues.sq, dwords=(7 << 16 | 1, 1 << 16 | 1)).status == 0
    assert queues.do(IoOpcode.FLUSH, nsid=1).status == 0
    queues.auto_head = False
    complete(queues, 1)
    assert count(guest, 1) == 0
    guest.restore(guest.snapshot())
    assert count(guest, 1) == 0


def test_after_a_restore_those_are_interrupted_for_that_have_not_been_taken(guest: Guest[Nvme], driver: Driver) -> None:
    taken, waiting = driver.create_queues(1), driver.create_queues(2)
    complete(taken, 1)
    waiting.auto_head = False
    complete(waiting, 1)
    before = [count(guest, vector) for vector in range(4)]
    guest.restore(guest.snapshot())
    assert [count(guest, vector) - was for vector, was in enumerate(before)] == [0, 0, 1, 0]


# -- without MSI-X


@pytest.fixture
def plain() -> Guest[Nvme]:
    """A guest that has turned MSI-X off."""
    guest = Guest(Nvme, memory=MEMORY, size=1 << 20)
    guest.config_write(guest.device.core.config.at[0x11] + 2, 0, 2)
    return guest


@counts
def test_a_masked_message_comes_when_it_is_unmasked(plain: Guest[Nvme]) -> None:
    with plain as guest:
        guest.config_write(guest.device.core.config.at[0x05] + 2, 1, 2)
        driver = Driver(TestMachine(guest))
        driver.enable()
        driver.admin.auto_head = False

        def messages() -> int:
            return guest.interrupts[IrqIndex.MSI, 0]

        guest.write(Nvme.intms, 1)
        driver.admin.do(0x7F)
        assert messages() == 0
        guest.write(Nvme.intmc, 2)
        assert (messages(), guest.read(Nvme.intms), guest.read(Nvme.intmc)) == (0, 1, 1)
        guest.write(Nvme.intmc, 1)
        assert (messages(), guest.read(Nvme.intms), guest.read(Nvme.intmc)) == (1, 0, 0)
        driver.admin.take_head()
        guest.write(Nvme.intms, 1)
        guest.write(Nvme.intmc, 1)
        assert messages() == 1, "all has been taken"
        assert not guest.line


@counts
def test_a_mask_does_not_concern_msix(guest: Guest[Nvme], driver: Driver) -> None:
    driver.admin.auto_head = False
    guest.write(Nvme.intms, 1)
    before = count(guest, 0)
    driver.admin.do(0x7F)
    assert count(guest, 0) == before + 1
    guest.write(Nvme.intmc, 1)
    assert count(guest, 0) == before + 1
    assert not guest.line


def test_the_line_falls_when_the_controller_or_the_queue_ends(plain: Guest[Nvme]) -> None:
    with plain as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        levels = []
        queues = driver.create_queues(1, vector=0)
        queues.auto_head = False
        complete(queues, 1)
        levels.append(guest.line)
        for opcode in (AdminOpcode.DELETE_SUBMISSION_QUEUE, AdminOpcode.DELETE_COMPLETION_QUEUE):
            assert driver.admin.do(opcode, dwords=(1,)).status == 0
        levels.append(guest.line)
        driver.admin.auto_head = False
        driver.admin.do(0x7F)
        levels.append(guest.line)
        driver.disable()
        levels.append(guest.line)
        assert levels == [True, False, True, False]


def test_only_vector_0_is_there_without_msix(plain: Guest[Nvme]) -> None:
    with plain as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        page = driver.allocate(4096)
        for vector, code in ((1, 0x108), (0, 0)):
            assert driver.admin.do(CREATE_CQ, prp1=page, dwords=(7 << 16 | 1, vector << 16 | 3)).code == code
