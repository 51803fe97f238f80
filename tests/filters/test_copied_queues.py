"""Virtqueues while a filter looks at DMA: rings and buffers are copies, and nothing is lost when it comes or goes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bellwire import GuestError
from bellwire.filters import DmaRead, DmaWrite, Filter
from bellwire.virtio import Feature, Status
from bellwire.virtio.packed import PackedRing
from bellwire.virtio.split import SplitRing
from virtio.driver import Driver
from virtio.echo import Echo


class Look(Filter):
    strict = True

    def start(self) -> None:
        self.read: list[bytes] = []
        self.written: list[bytes] = []

    def after_dma_read(self, read: DmaRead) -> None:
        self.read.append(read.data)

    def before_dma_write(self, write: DmaWrite) -> None:
        self.written.append(write.data)


@pytest.fixture(params=[set(), {Feature.RING_PACKED}], ids=["split", "packed"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    with Driver(Echo) as driver:
        driver.start(request.param, range(3))
        yield driver


def test_a_filter_sees_what_is_in_buffers_and_rings(driver: Driver) -> None:
    look = Look()
    driver.guest.filters.add(look)
    driver.queues[0].send(b"ab", b"cd", write=[1, 8])
    assert driver.queues[0].answers() == [b"dcba"]
    assert {b"ab", b"cd"} <= set(look.read)
    assert {b"d", b"cba"} <= set(look.written)


def test_a_filter_changes_what_a_device_reads(driver: Driver) -> None:
    class Twist(Filter):
        strict = True

        def after_dma_read(self, read: DmaRead) -> None:
            if read.data == b"abcd":
                read.data = b"ABCD"

    driver.guest.filters.add(Twist())
    driver.queues[0].send(b"abcd", write=4)
    assert driver.queues[0].answers() == [b"DCBA"]


def test_no_buffer_is_lost_when_a_filter_comes_or_goes(driver: Driver) -> None:
    device, queue = driver.device, driver.queues[2]
    assert isinstance(device, Echo)
    queue.send(b"before it", write=16)
    look = Look()
    driver.guest.filters.add(look)
    queue.send(b"with it", write=16)
    device.let_go()
    assert queue.answers() == [b"before it", b"with it"]
    queue.send(b"until it goes", write=16)
    driver.guest.filters.remove(look)
    queue.send(b"after it", write=16)
    device.let_go()
    assert queue.answers() == [b"until it goes", b"after it"]
    queue.send(b"in place", write=16)
    assert type(device.virtqueues[2]._ring) in (SplitRing, PackedRing)
    device.let_go()
    assert queue.answers() == [b"in place"]


def test_buffers_that_filters_copy_are_limited(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bellwire.virtio.copied.MOST_COPIED", 3000)
    driver.guest.filters.add(Look())
    queue = driver.queues[2]
    queue.send(bytes(1000), write=1000)
    with pytest.raises(GuestError, match="buffers of 4000 bytes at a time, while filters look at DMA"):
        queue.send(bytes(1000), write=1000)
    assert Status.NEEDS_RESET in driver.status
