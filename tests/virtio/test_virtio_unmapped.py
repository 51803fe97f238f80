"""Buffers that a disk has finished while the client has unmapped their ring: none is lost."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_blk.request import Blk
from pieces import PAGE, cut
from vfio_user import DmaFlags, DmaMap, DmaUnmap, IrqIndex
from virtio.conftest import KINDS
from virtio.driver import Driver

OUT, SECTOR = 1, 512
PAGES = 32


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", [KINDS["split"], KINDS["packed"]], ids=["split", "packed"])
def test_writes_that_end_while_their_ring_is_unmapped_come_back_when_it_is_mapped_again(
    kind: set[int], fast: bool, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8 * SECTOR))
    with Driver(VirtioBlk, memory=PAGES * PAGE, image=image, queues=2) as driver:
        guest = driver.guest
        driver.memory = cut(guest, range(PAGES))
        assert isinstance(driver.device, VirtioBlk)
        if not fast:
            driver.device.fast = None
        driver.start({*kind, Blk.FLUSH, Blk.MQ}, ())
        for index in range(2):
            driver._free = (index + 1) * PAGE  # each queue's parts have a page of their own
            driver.add_queue(index)
        driver._free = 4 * PAGE
        for index in range(2):
            for place in range(2):
                driver.queues[index].add(struct.pack("<IIQ", OUT, 0, 2 * index + place), b"w" * SECTOR, write=1)
            driver.queues[index].kick()
        table, page = guest._dma, driver.queues[0].parts[0] // PAGE * PAGE
        table.unmap(table.inside(DmaUnmap(page, PAGE)))
        driver.device.dma.changed()
        guest.advance()  # the threads are done
        assert driver.queues[1].answers() == [b"\0", b"\0"]
        assert guest.interrupts == {(IrqIndex.MSIX, 2): 1}
        flags = DmaFlags.READ | DmaFlags.WRITE
        table.map(DmaMap(flags=flags, offset=page, address=page, size=PAGE), os.dup(guest._memory_fd))
        driver.device.dma.changed()
        driver.device.core.news.memory()
        assert driver.queues[0].answers() == [b"\0", b"\0"]
        assert guest.interrupts == {(IrqIndex.MSIX, 1): 1, (IrqIndex.MSIX, 2): 1}
        assert driver.device.virtqueues[0].out == 0
    assert image.read_bytes() == b"w" * 4 * SECTOR + bytes(4 * SECTOR)
