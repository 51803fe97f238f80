"""virtio-rng (virtio 1.2 §5.4)."""

from __future__ import annotations

import pytest

from bellwire import OptionError, StateError
from bellwire.bundled.virtio_rng import LARGEST, VirtioRng
from bellwire.testing import Guest, conformance
from saved import move
from virtio.driver import Driver

TestVirtioRng = conformance(VirtioRng)
TestSlowVirtioRng = conformance(VirtioRng, rate=100)


def test_buffers_are_filled_with_different_bytes(ring: set[int]) -> None:
    with Driver(VirtioRng) as driver:
        driver.start(ring)
        driver.queues[0].add(write=64)
        driver.queues[0].send(write=[30, 34])
        one, other = driver.queues[0].answers()
        assert len(one) == len(other) == 64
        assert one != other


def test_a_large_buffer_is_filled_in_part() -> None:
    with Driver(VirtioRng) as driver:
        driver.start()
        driver.queues[0].send(write=1 << 16)
        assert [len(answer) for answer in driver.queues[0].answers()] == [LARGEST]


def test_a_rate_spreads_buffers_over_time(ring: set[int]) -> None:
    with Driver(VirtioRng, rate=100) as driver:
        driver.start(ring)
        queue = driver.queues[0]
        for _ in range(3):
            queue.send(write=50)
        counts = []
        for _ in range(4):
            counts.append(len(queue.answers()))
            driver.guest.advance(0.5)
        assert counts == [1, 1, 1, 0]


@pytest.mark.parametrize("reset", ["virtio", "pci"])
def test_a_reset_does_not_make_bytes_come_sooner(reset: str) -> None:
    with Driver(VirtioRng, rate=10) as driver:
        driver.start()
        driver.queues[0].send(write=20)
        driver.guest.advance(1.5)
        if reset == "pci":
            driver.device.core.reset()
            driver.guest.enable()
        driver.start()
        queue = driver.queues[0]
        queue.send(write=10)
        queue.send(write=10)
        counts = []
        for seconds in (1.0, 1.5, 1.0):
            counts.append(len(queue.answers()))
            driver.guest.advance(seconds)
        assert [*counts, len(queue.answers())] == [0, 0, 1, 1]


def test_a_pause_begins_again_in_the_device_that_goes_on() -> None:
    with Driver(VirtioRng, rate=10) as driver:
        driver.start()
        driver.queues[0].send(write=20)
        driver.queues[0].send(write=10)
        move(driver.guest)
        driver.guest.advance(1.9)
        assert len(driver.queues[0].answers()) == 1
        driver.guest.advance(0.2)
        assert len(driver.queues[0].answers()) == 1


@pytest.mark.parametrize("pause", [-1.0, 4097.0, float("nan")])
def test_a_pause_that_no_bytes_have_caused_is_refused(pause: float) -> None:
    with Guest(VirtioRng) as guest:
        guest.device.pause = pause
        with pytest.raises(StateError, match="a pause of"):
            guest.restore(guest.snapshot())


def test_a_rate_below_zero_is_refused() -> None:
    with pytest.raises(OptionError, match="rate=-1"):
        Driver(VirtioRng, rate=-1)
