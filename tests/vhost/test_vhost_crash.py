"""A back end crashes and another one comes: what was in flight is done, once, and the driver sees a pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwire.bundled.vhost import Vhost
from bellwire.vhost.bequest import RECORD
from bellwire.vhost.errors import BackendLost
from bellwire.vhost.messages import ProtocolFeature
from bellwire.vhost.resume import base_of, set_base
from bellwire.virtio import Feature, Status
from killing import remains, succeed
from vhost.program import EVERYTHING, USUAL, Program
from vhost.test_vhost_device import PATIENCE, VECTOR, Attach, Start, answers, until
from virtio.driver import Driver
from virtio.echo import Echo
from virtio.rings import SplitQueue

pytestmark = pytest.mark.slow

UNTRACKED = EVERYTHING & ~ProtocolFeature.INFLIGHT_SHMFD


def crash_with(program: Program, driver: Driver, count: int, order: Callable[[list[int]], list[int]] = list) -> None:
    """Let the back end crash with its last ``count`` buffers in its hands, after it has returned the others."""

    def some(heads: list[int]) -> list[int]:
        ordered = order(heads)
        kept.extend(ordered[len(ordered) - count :] if count else [])
        return ordered[: len(ordered) - count]

    kept: list[int] = []
    until(driver, lambda: sum(len(ring.held) for ring in program.rings.values()) == len(driver.queues[0].held))
    program.let_go(some)
    program.crash()
    until(driver, lambda: driver.device.plane.backend is None)  # type: ignore[attr-defined]


def send(driver: Driver, *texts: bytes) -> None:
    for text in texts:
        driver.queues[0].send(text, write=len(text))


@pytest.mark.parametrize("order", [list, lambda heads: heads[::-1]], ids=["in-order", "backwards"])
def test_a_back_end_that_keeps_a_record_does_again_what_was_in_flight_and_nothing_twice(
    start: Start, attach: Attach, order: Callable[[list[int]], list[int]]
) -> None:
    program = start(holds=True)
    driver = attach()
    driver.start()
    send(driver, b"ab", b"cd", b"ef", b"gh")
    crash_with(program, driver, 2, order)
    send(driver, b"ij")
    start()
    assert sorted(answers(driver, 5)) == [b"ba", b"dc", b"fe", b"hg", b"ji"]
    send(driver, b"kl")
    assert answers(driver) == [b"lk"]


@pytest.mark.parametrize("missing", [0, 1, 3, 4])
def test_what_a_back_end_without_a_record_had_returned_in_order_tells_what_is_missing(
    start: Start, attach: Attach, missing: int
) -> None:
    program = start(holds=True, protocol=UNTRACKED)
    driver = attach()
    driver.start()
    send(driver, b"ab", b"cd", b"ef", b"gh")
    crash_with(program, driver, missing)
    start(protocol=UNTRACKED)
    assert answers(driver, 4) == [b"ba", b"dc", b"fe", b"hg"]
    assert driver.status == Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK


def test_if_it_is_uncertain_what_is_missing_the_driver_is_told_to_reset(
    start: Start, attach: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    program = start(holds=True, protocol=UNTRACKED)
    driver = attach()
    driver.start()
    send(driver, b"ab", b"cd", b"ef")
    crash_with(program, driver, 1, lambda heads: heads[::-1])
    start(protocol=UNTRACKED)
    until(driver, lambda: Status.NEEDS_RESET in driver.status)
    assert "gone with 1 buffers, and had returned others out of order" in caplog.text
    driver.start()
    send(driver, b"gh")
    assert answers(driver) == [b"hg"]


def test_with_guess_the_rings_go_on_all_the_same(start: Start, attach: Attach) -> None:
    program = start(holds=True, protocol=UNTRACKED)
    driver = attach(guess=True)
    driver.start()
    send(driver, b"ab", b"cd", b"ef")
    crash_with(program, driver, 1, lambda heads: heads[::-1])
    start(protocol=UNTRACKED)
    until(driver, lambda: driver.device.plane.running)  # type: ignore[attr-defined]
    assert Status.NEEDS_RESET not in driver.status


def test_the_driver_is_interrupted_for_what_came_back_last(start: Start, attach: Attach) -> None:
    program = start(holds=True)
    driver = attach()
    driver.start()
    send(driver, b"ab")
    until(driver, lambda: program.rings[0].held)
    program.do(lambda: setattr(program.rings[0], "call", program._swap(program.rings[0].call, [])))
    crash_with(program, driver, 0)
    assert not driver.guest.interrupts[VECTOR]
    start()
    until(driver, lambda: driver.guest.interrupts[VECTOR])
    assert answers(driver) == [b"ba"]


def test_a_reset_while_no_back_end_is_there_is_no_obstacle(start: Start, attach: Attach) -> None:
    program = start(holds=True)
    driver = attach()
    driver.start()
    send(driver, b"ab")
    crash_with(program, driver, 1)
    driver.start()
    driver.queues[0].add(b"cd", write=2)
    start()
    assert answers(driver) == [b"dc"]


def test_a_new_back_end_that_lacks_what_the_driver_uses_is_not_taken(
    start: Start, attach: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    program = start()
    driver = attach()
    driver.start({5})
    program.crash()
    until(driver, lambda: driver.device.plane.backend is None)  # type: ignore[attr-defined]
    lesser = start(features=USUAL & ~(1 << 5))
    until(driver, lambda: "lacks the features 0x20" in caplog.text)
    lesser.crash()
    start()
    send(driver, b"ab")
    assert answers(driver) == [b"ba"]


def test_a_packed_ring_is_lost_with_its_back_end(start: Start, attach: Attach) -> None:
    packed = USUAL | 1 << Feature.RING_PACKED
    program = start(features=packed, protocol=UNTRACKED)
    driver = attach()
    driver.start({Feature.RING_PACKED})
    program.crash()
    until(driver, lambda: driver.device.plane.backend is None)  # type: ignore[attr-defined]
    start(features=packed, protocol=UNTRACKED)
    until(driver, lambda: Status.NEEDS_RESET in driver.status)


def test_a_snapshot_without_a_back_end_says_that_the_place_is_unknown(start: Start, attach: Attach) -> None:
    program = start(holds=True, protocol=UNTRACKED)
    driver = attach()
    driver.start()
    send(driver, b"ab", b"cd")
    crash_with(program, driver, 1)
    snapshot = driver.guest.snapshot()
    driver.guest.restore(snapshot)
    start(protocol=UNTRACKED)
    assert answers(driver, 2) == [b"ba", b"dc"]


def test_the_successor_of_a_worker_that_died_goes_on_with_the_rings(start: Start, attach: Attach, place: Path) -> None:
    program = start(protocol=UNTRACKED)
    driver = attach()
    driver.start()
    for _ in range(3):
        send(driver, b"ab")
        assert answers(driver) == [b"ba"]
    program.holds = True
    send(driver, b"cd")
    until(driver, lambda: program.rings[0].held)
    left = remains(driver.guest)
    driver.close()
    queue = driver.queues[0]
    assert isinstance(queue, SplitQueue)
    with succeed(left, Vhost, backend=f"unix:{place}", type="rng") as guest:
        assert "GET_VRING_BASE" not in program.said, "the ring runs on"
        program.let_go()
        deadline = time.monotonic() + PATIENCE
        while guest.memory[queue.ring + 2] != 4:
            assert time.monotonic() < deadline
            guest.poll(0.01)
        assert b"dc" in bytes(guest.memory)


def test_what_was_in_flight_when_worker_and_back_end_died_is_known_from_the_back_ends_record(
    start: Start, attach: Attach, place: Path
) -> None:
    program = start(holds=True)
    driver = attach()
    driver.start()
    send(driver, b"ab", b"cd", b"ef", b"gh")
    until(driver, lambda: len(program.rings[0].held) == 4)
    program.let_go(lambda heads: heads[:0:-1])  # all but the first, the last one first: the rings do not tell which
    until(driver, lambda: driver.memory[driver.queues[0].ring + 2] == 3)  # type: ignore[attr-defined]
    left = remains(driver.guest)
    assert RECORD in left.files
    driver.close()
    program.crash()
    start()
    with succeed(left, Vhost, backend=f"unix:{place}", type="rng") as guest:
        queue, deadline = driver.queues[0], time.monotonic() + PATIENCE
        while guest.memory[queue.ring + 2] != 4:  # type: ignore[attr-defined]
            assert time.monotonic() < deadline
            guest.poll(0.01)
        assert b"ba" in bytes(guest.memory)
        assert not guest.found


@pytest.mark.parametrize("base", [0x8003_8002, 0x0001_0001])
def test_the_base_of_a_packed_ring_has_both_positions_and_wrap_counters(base: int) -> None:
    with Driver(Echo) as driver:
        driver.start({Feature.RING_PACKED})
        queue = driver.device.virtqueues[0]
        set_base(queue, base, packed=True)
        assert base_of(queue, packed=True) == base
        assert (queue.next, queue.next_wrap) == (base & 0x7FFF, base >> 15 & 1)
        assert (queue.used, queue.used_wrap) == (base >> 16 & 0x7FFF, base >> 31)
        with pytest.raises(BackendLost, match="beyond a ring of 16"):
            set_base(queue, 16, packed=True)


def test_a_successor_without_a_back_end_tells_the_driver_what_the_last_one_had(
    start: Start, attach: Attach, place: Path
) -> None:
    program = start(holds=True, features=USUAL | 1 << 5, config=bytes(range(60)))
    driver = attach(type="blk")
    driver.start({5})
    send(driver, b"ab", b"cd")
    until(driver, lambda: len(program.rings[0].held) == 2)
    left = remains(driver.guest)
    driver.close()
    program.crash()
    with succeed(left, Vhost, backend=f"unix:{place}", type="blk") as guest:
        assert guest.read(0, 0x2000, 4) == 0x03020100
        start(config=bytes(range(60)))
        queue, deadline = driver.queues[0], time.monotonic() + PATIENCE
        while guest.memory[queue.ring + 2] != 2:  # type: ignore[attr-defined]
            assert time.monotonic() < deadline
            guest.poll(0.01)
            guest.advance(0.1)
        assert b"ba" in bytes(guest.memory)
        assert not guest.found
