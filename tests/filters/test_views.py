"""A filter that only looks at DMA lets device code use guest memory in place, and is told which."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bellwire import GuestError, PciDevice, Unshared
from bellwire.filters import DmaRead, DmaView, DmaWrite, Filter
from bellwire.filters.builtin.trace import Trace
from bellwire.testing import Guest
from bellwire.virtio.split import SplitRing
from virtio.driver import Driver
from virtio.echo import Echo


class Plain(PciDevice, vendor=0x1234, device=0x11F1, class_code=0x088000):
    """Its DMA is what a test does with it."""


class Look(Filter):
    strict = True
    in_place = True

    def start(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def after_dma_read(self, read: DmaRead) -> None:
        self.seen.append(("read", read.address, read.data))

    def after_dma_write(self, write: DmaWrite) -> None:
        self.seen.append(("write", write.address, write.data))

    def dma_view(self, view: DmaView) -> None:
        self.seen.append(("view", view.address, view.size, view.writable))


class Needs(Filter):
    """As any filter of DMA: it may change the bytes."""

    def after_dma_read(self, read: DmaRead) -> None:
        read.data = read.data.upper()


@pytest.fixture
def guest() -> Iterator[Guest[Plain]]:
    with Guest(Plain, filters=[Look()]) as guest:
        yield guest


def seen(guest: Guest[Plain]) -> list[tuple[object, ...]]:
    ((_, look),) = guest.filters
    assert isinstance(look, Look)
    return look.seen


def test_views_are_guest_memory_and_the_filter_is_told_which(guest: Guest[Plain]) -> None:
    dma = guest.device.dma
    (view,) = dma.map(0x1000, 4, write=True)
    view[:] = b"abcd"
    assert bytes(guest.memory[0x1000:0x1004]) == b"abcd"
    assert bytes(dma.whole(0x1002, 2)) == b"cd"
    found = dma.shared_map(0x1000, write=True)
    assert found is not None
    assert bytes(found.view[0x1000:0x1004]) == b"abcd"
    assert seen(guest) == [
        ("view", 0x1000, 4, True),
        ("view", 0x1002, 2, False),
        ("view", 0, len(guest.memory), True),
    ]


def test_what_is_copied_is_seen_byte_by_byte_and_is_no_view(guest: Guest[Plain]) -> None:
    dma = guest.device.dma
    for data in (b"one", b"two"):
        dma.write(0x2000, data)
        assert dma.read(0x2000, 3) == data
    assert [each[0] for each in seen(guest)] == ["write", "read"] * 2
    assert seen(guest)[3] == ("read", 0x2000, b"two")
    assert dma.counts == {"dma_read": 6, "dma_written": 6, "dma_in_place": 0}


def test_no_view_is_told_that_is_not_given(guest: Guest[Plain]) -> None:
    dma = guest.device.dma
    beyond = len(guest.memory)
    for give in (dma.map, dma.whole):
        with pytest.raises(GuestError):
            give(beyond, 4)
    assert dma.shared_map(beyond) is None
    assert seen(guest) == []


def test_one_filter_that_needs_the_bytes_makes_the_device_copy_for_all(guest: Guest[Plain]) -> None:
    dma = guest.device.dma
    needs = Needs()
    guest.memory[:4] = b"abcd"
    guest.filters.add(needs)
    assert guest.device.dma.copied
    with pytest.raises(Unshared):
        dma.map(0, 4)
    assert dma.read(0, 4) == b"ABCD"
    guest.filters.remove(needs)
    assert [bytes(view) for view in dma.map(0, 4)] == [b"abcd"]
    assert [each[0] for each in seen(guest)] == ["read", "view"]


def test_a_filter_may_look_at_views_alone() -> None:
    class Views(Filter):
        strict = True

        def dma_view(self, view: DmaView) -> None:
            raise AssertionError(f"a view of {view.size} bytes")

    with Guest(Plain, filters=[Views()]) as guest:
        assert guest.device.dma.read(0, 4) == bytes(4)
        with pytest.raises(AssertionError, match="a view of 4 bytes"):
            guest.device.dma.map(0, 4)


def test_a_filter_that_fails_at_a_view_is_taken_out_and_the_device_has_its_view() -> None:
    class Fails(Filter):
        def dma_view(self, view: DmaView) -> None:
            raise RuntimeError("no")

    with Guest(Plain, filters=[Fails()]) as guest:
        assert [bytes(view) for view in guest.device.dma.map(0, 4)] == [bytes(4)]
        assert list(guest.filters) == []


@pytest.mark.parametrize("copy", [False, True])
def test_a_trace_leaves_virtqueues_in_place_unless_it_is_told_to_copy(copy: bool) -> None:
    trace = Trace(only="dma", log=False, copy=copy)
    with Driver(Echo) as driver:
        driver.start(set(), range(3))
        driver.guest.filters.add(trace)
        driver.queues[0].send(b"abcd", write=4)
        assert driver.queues[0].answers() == [b"dcba"]
        assert (type(driver.device.virtqueues[0]._ring) is SplitRing) is not copy
        lines = [record.line()[16:] for record in trace.last(100)]
    assert any("view" in line and "in place" in line for line in lines) is not copy
    assert any("4 bytes: 61626364" in line for line in lines) is copy
