"""What a virtio device can do wrong on demand, as its driver sees it."""

from __future__ import annotations

from typing import Any

import pytest

from bellwire import OptionError
from bellwire.faults import Fault
from bellwire.virtio import Feature, Status, faults
from virtio.driver import Driver
from virtio.echo import Echo


def driver_with(kind: type[Fault], *, started: bool = True, **arguments: Any) -> Driver:
    driver = Driver(Echo)
    driver.guest.filters.add(kind(**arguments))
    if started:
        driver.start(queues=range(3))
    return driver


def echo(driver: Driver, data: bytes, queue: int = 0) -> None:
    driver.queues[queue].add(data, write=len(data))
    driver.queues[queue].kick()


def test_a_used_length_is_short() -> None:
    with driver_with(faults.ShortUsed, missing=2) as driver:
        echo(driver, b"hello")
        assert driver.queues[0].answers() == [b"oll"]


def test_a_used_length_is_zero() -> None:
    with driver_with(faults.ShortUsed) as driver:
        echo(driver, b"hello")
        (used,) = driver.queues[0].used()
        assert (used.written, driver.queues[0].whole(used)) == (0, b"olleh")


def test_only_the_queue_that_is_named_is_struck() -> None:
    with driver_with(faults.ShortUsed, queue=1) as driver:
        echo(driver, b"ab", queue=0)
        echo(driver, b"cd", queue=1)
        assert driver.queues[0].answers() + driver.queues[1].answers() == [b"ba", b""]


@pytest.mark.parametrize("ring", [set(), {Feature.RING_PACKED}], ids=["split", "packed"])
def test_a_late_buffer_comes_back_behind_others(ring: set[int]) -> None:
    driver = driver_with(faults.LateUsed, started=False, by="50ms", at=1)
    driver.start(ring)
    with driver:
        echo(driver, b"ab")
        echo(driver, b"cd")
        assert driver.queues[0].answers() == [b"dc"]
        driver.guest.advance(0.05)
        assert driver.queues[0].answers() == [b"ba"]


def test_a_late_buffer_of_a_queue_that_was_reset_never_comes_back() -> None:
    with driver_with(faults.LateUsed, by="50ms") as driver:
        echo(driver, b"ab")
        driver.start(queues=range(3))
        driver.guest.advance(0.05)
        assert driver.queues[0].used() == []


def test_a_late_buffer_comes_back_when_its_fault_is_taken_out() -> None:
    with driver_with(faults.LateUsed, by="60min") as driver:
        echo(driver, b"ab")
        driver.guest.filters.clear()
        driver.guest.advance(0)
        assert driver.queues[0].answers() == [b"ba"]


def test_faults_of_one_queue_stack() -> None:
    with driver_with(faults.LostUsed, at=1) as driver:
        driver.guest.filters.add(faults.LateUsed(by="50ms", at=1))
        driver.guest.filters.add(faults.ShortUsed(missing=1, at=1))
        for data in (b"ab", b"cd", b"ef"):
            echo(driver, data)
        assert driver.queues[0].answers() == [b"fe"]
        driver.guest.advance(0.05)
        assert driver.queues[0].answers() == [b"b"]


def test_a_fault_below_others_can_be_taken_out() -> None:
    with driver_with(faults.LostUsed) as driver:
        driver.guest.filters.add(faults.ShortUsed(missing=1))
        driver.guest.filters.remove("virtio-lost-used")
        echo(driver, b"ab")
        assert driver.queues[0].answers() == [b"b"]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (faults.LostUsed(queue=3), "queue=3: the device has 0 to 2"),
        (faults.FewerFeatures(without="999"), r"without=999: the device offers 5\+28\+29\+32\+33\+34"),
        (faults.FewerFeatures(without="-1"), "without=-1: the device offers"),
        (faults.FewerFeatures(without="x"), r"without=x: expected feature bits, as 29\+34"),
    ],
)
def test_what_the_device_does_not_have_is_refused(fault: Fault, why: str) -> None:
    with Driver(Echo) as driver:
        before = dict(vars(driver.device)), dict(vars(driver.device.virtqueues[0]))
        with pytest.raises(OptionError, match=why):
            driver.guest.filters.add(fault)
        assert (dict(vars(driver.device)), dict(vars(driver.device.virtqueues[0]))) == before


def test_a_buffer_is_lost() -> None:
    with driver_with(faults.LostUsed, every=2) as driver:
        for data in (b"ab", b"cd", b"ef"):
            echo(driver, data)
        assert driver.queues[0].answers() == [b"ba", b"fe"]


def test_the_device_needs_a_reset_at_a_ring() -> None:
    with driver_with(faults.NeedsReset, at=2) as driver:
        echo(driver, b"ab")
        assert Status.NEEDS_RESET not in driver.status
        echo(driver, b"cd")
        assert Status.NEEDS_RESET in driver.status
        assert driver.queues[0].answers() == [b"ba"]
        driver.start(queues=range(3))
        echo(driver, b"ef")
        assert driver.queues[0].answers() == [b"fe"]


def test_the_device_needs_a_reset_after_a_time() -> None:
    with driver_with(faults.NeedsReset, after="1s") as driver:
        driver.guest.advance(1)
        assert Status.NEEDS_RESET in driver.status


def test_features_are_refused() -> None:
    with driver_with(faults.RefusedFeatures, started=False, times=1) as driver:
        assert not driver.negotiate()
        assert driver.negotiate()


def test_fewer_features_are_offered() -> None:
    with driver_with(faults.FewerFeatures, started=False, without="29+34") as driver:
        assert not {Feature.EVENT_IDX, Feature.RING_PACKED} & driver.offered()
        assert Feature.INDIRECT_DESC in driver.offered()


def test_features_are_missing_once() -> None:
    driver = driver_with(faults.FewerFeatures, started=False, at=1, **{"for": "1s"})
    with driver:
        assert Feature.EVENT_IDX not in driver.offered()
        driver.guest.advance(1)
        assert Feature.EVENT_IDX in driver.offered()
        assert [each.report()["struck"] for _, each in driver.guest.filters] == [1]


def test_a_fault_that_is_taken_out_leaves_nothing_behind() -> None:
    driver = Driver(Echo)
    before = dict(vars(driver.device)), [dict(vars(queue)) for queue in driver.device.virtqueues]
    for kind in faults.VIRTIO_FAULTS:
        driver.guest.filters.add(kind(times=1, after="60min"))
        driver.guest.filters.remove(kind.name)
    assert (dict(vars(driver.device)), [dict(vars(queue)) for queue in driver.device.virtqueues]) == before
