"""Chains of descriptors (virtio 1.2 §2.7.4, §2.7.5), wherever in guest memory they and their tables lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest

from bellwire import GuestError
from bellwire.model.dma import Dma
from bellwire.virtio import Chain
from bellwire.virtio.chain import DESCRIPTOR, WRITE, Window
from pieces import PAGE, cut
from vfio_user import DmaFlags, DmaMap
from virtio.driver import Driver
from virtio.echo import Echo

MEMORY = 8 * PAGE


@pytest.fixture
def driver() -> Iterator[Driver]:
    with Driver(Echo, memory=MEMORY) as driver:
        yield driver


def window(driver: Driver) -> Window:
    return Window(driver.device.virtqueues[0], driver.device.dma)


@pytest.mark.parametrize("flags", [0, WRITE], ids=["read", "write"])
def test_buffers_in_one_map_cost_one_lookup(driver: Driver, flags: int) -> None:
    """From the map's first byte to its last one, wherever it begins."""
    cut(driver.guest, [2])
    first, last = 2 * PAGE, MEMORY
    made = window(driver)
    with mock.patch.object(Dma, "shared_map", autospec=True, side_effect=Dma.shared_map) as lookup:
        for part in ((first, last - first), (first, 1), (last - 1, 1), (first + 7, 9)):
            made.chain(0, 1, [(*part, flags, 0)])
    assert lookup.call_count == 1


@pytest.mark.parametrize("write", [False, True])
def test_pieces_of_a_buffer_are_the_bytes_at_their_addresses(driver: Driver, write: bool) -> None:
    memory = cut(driver.guest, [2, 4])
    memory[:] = os.urandom(MEMORY)
    parts = [(at, size) for start in (0, 2 * PAGE, 4 * PAGE) for at, size in ((start, 5), (start + 9, 3), (start, 2))]
    chain = window(driver).chain(0, 1, [(*part, WRITE if write else 0, 0) for part in parts])
    views = chain.writable if write else chain.readable
    assert [bytes(view) for view in views] == [bytes(memory[at : at + size]) for at, size in parts]


def table(driver: Driver, address: int, count: int) -> bytes:
    """Descriptors in guest memory that name each other's number."""
    raw = b"".join(DESCRIPTOR.pack(number, 1, 0, 0) for number in range(count))
    driver.guest.memory[address : address + len(raw)] = raw
    return raw


@pytest.mark.parametrize("address", [0, PAGE - 16, 3 * PAGE - 32, 5 * PAGE])
@pytest.mark.parametrize("count", [1, 2, 3, 600])
@pytest.mark.parametrize("pages", [(), (1, 3), range(8)], ids=["whole", "cut", "pages"])
def test_an_indirect_table_may_lie_anywhere(driver: Driver, pages: tuple[int, ...], count: int, address: int) -> None:
    """Also in several maps (§2.7.5.3)."""
    cut(driver.guest, pages)
    raw, made = table(driver, address, count), window(driver)
    for _ in range(2):  # the second time, the map is known
        assert bytes(made.table(address, len(raw))) == raw


def test_tables_in_one_map_cost_one_lookup(driver: Driver) -> None:
    cut(driver.guest, [2])
    made = window(driver)
    with mock.patch.object(Dma, "shared_map", autospec=True, side_effect=Dma.shared_map) as lookup:
        for address in (2 * PAGE, MEMORY - 32, 2 * PAGE):
            made.table(address, 32)
    assert lookup.call_count == 1


def test_a_table_may_lie_in_memory_that_is_read_only(driver: Driver) -> None:
    """The device only reads it (§2.7.5.3.2)."""
    raw, maps = table(driver, PAGE, 2), driver.guest._dma
    maps.clear()
    maps.map(DmaMap(DmaFlags.READ, 0, 0, MEMORY), os.dup(driver.guest._memory_fd))
    driver.device.dma.changed()
    made = window(driver)
    assert bytes(made.table(PAGE, 32)) == raw
    assert bytes(made.chain(0, 1, [(PAGE, 16, 0, 0)]).read()) == raw[:16]
    with pytest.raises(GuestError):
        made.chain(0, 1, [(PAGE, 16, WRITE, 0)])


def test_dma_counts_a_buffer_once_however_its_memory_is_mapped(driver: Driver) -> None:
    cut(driver.guest, [1])
    dma = driver.device.dma
    window(driver).chain(0, 1, [(PAGE - 3, 8, 0, 0), (0, 9, 0, 0), (PAGE - 3, 8, WRITE, 0)])
    assert dma.counts["dma_in_place"] == 0  # the queue counts what it publishes


def test_a_device_that_fills_views_itself_says_how_much_it_has_written() -> None:
    """The used length (§2.7.8.2)."""
    with Driver(Echo) as driver:
        driver.start()
        queue, ours = driver.queues[0], driver.device.virtqueues[0]
        queue.add(write=8)
        chain: Chain
        (chain,) = ours.take()
        chain.writable[0][:3] = b"abc"
        chain.done(3)
        ours.flush()
        assert queue.answers() == [b"abc"]
